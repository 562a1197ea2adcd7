"""Train a Stable Diffusion pipeline on captioned pictures: its UNet, UNet and text encoder, or a LoRA over the UNet.

    accelerate launch training/train_text_to_image.py --config training/configs/miniature_general.yaml

`model.base` is a pipeline's folder or hub name; `training/new_stable_diffusion.py` writes an untrained one. Running
the same command again goes on from the newest checkpoint.
"""

import argparse
import sys
from functools import partial

from accelerate import Accelerator
from accelerate.utils import set_seed

from brickwork.training.commands.train import add_run_arguments, run_script, train_as_asked
from brickwork.training.config.latent import TextToImageConfig
from brickwork.training.engine.loop import Run
from brickwork.training.tasks.latent.stable_diffusion import (
    freeze_encoders,
    freeze_unet,
    is_xl,
    load_pipeline,
    objective_of,
)
from brickwork.training.tasks.latent.task import SizePreviews, encoding_loss, open_stream, plan
from brickwork.training.tasks.latent.text_to_image import (
    Export,
    JointPreviews,
    NumberedStream,
    TokensFirst,
    UNetWithText,
    add_whole_lora,
)


def build_network(config: TextToImageConfig, pipeline):
    """The network to train, on parts of the pipeline.

    Raises:
        ValueError: for text encoders that this cannot train.
    """
    parts, unet = config.parts, pipeline.unet
    if parts.train == "lora":
        freeze_unet(unet, config.run.mixed_precision)
        add_whole_lora(unet, parts.rank, parts.alpha)
    if parts.train != "unet_and_text":
        return unet
    if is_xl(pipeline):
        raise ValueError("`parts.train` is 'unet_and_text', which trains one text encoder; SDXL has two. Take unet.")
    pipeline.text_encoder.float().requires_grad_(True)
    return UNetWithText(unet, pipeline.text_encoder)


def prepare(config: TextToImageConfig, accept_changes: bool = False, dry_run: bool = False) -> Run:
    """Everything that a run needs, built from its configuration; a dry run leaves nothing behind."""
    set_seed(config.run.seed)
    settings = config.run
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision, gradient_accumulation_steps=settings.gradient_accumulation_steps
    )
    pipeline = load_pipeline(config.model.base, config.model.revision, config.model.variant)
    # A whole pipeline is left with its encoders as they came, not rounded to what training computes in.
    precision = settings.mixed_precision if config.parts.train == "lora" else "no"
    freeze_encoders(pipeline, precision, accelerator.device)
    stream, held_out = open_stream(config, pipeline, accelerator, use_cache=not dry_run)
    network = build_network(config, pipeline)
    pipeline.unet.to(accelerator.device)
    if settings.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    if config.model.attention_backend:
        pipeline.unet.set_attention_backend(config.model.attention_backend)
    accelerator.print(plan(config, pipeline, stream, len(held_out), accelerator.num_processes))
    joint = config.parts.train == "unet_and_text"
    if joint:
        stream = NumberedStream(stream.captioned, stream.row.rows, config, pipeline, stream.cache)
        loss = TokensFirst(pipeline, stream.captioned.captions, config.objective.caption_dropout)
    else:
        loss = encoding_loss(stream, pipeline)
    return Run(
        config,
        accelerator,
        network,
        objective_of(pipeline.scheduler, config.objective.min_snr_gamma),
        stream,
        loss=loss,
        preview=(JointPreviews if joint else SizePreviews)(config, pipeline, stream, held_out),
        export=Export(pipeline, network, config.parts, accelerator),
        accept_changes=accept_changes,
    )


def configure_parser(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser, "training/configs/text_to_image_defaults.yaml")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    return train_as_asked(args, partial(prepare, dry_run=args.dry_run), TextToImageConfig)


def main(arguments: list[str] | None = None) -> int:
    return run_script("train_text_to_image.py", __doc__, configure_parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
