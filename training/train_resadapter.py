"""Train a ResAdapter: Stable Diffusion learns to draw at sizes that it was not trained for.

    accelerate launch training/train_resadapter.py --config training/configs/resadapter_sd15.yaml

Running the same command again goes on from the newest checkpoint. Values can be set on the command line, in YAML:

    accelerate launch training/train_resadapter.py --config … model.base=my-model resolution.max_size=768

`--cache-only` makes the cache of latents and captions that `data.cache` names, and trains nothing.
"""

import argparse
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import diffusers
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import set_seed

from brickwork.training.commands.train import add_run_arguments, run_script, train_as_asked
from brickwork.training.config.config import load_config
from brickwork.training.config.latent import ResAdapterConfig
from brickwork.training.engine.loop import Run
from brickwork.training.tasks.latent.resadapter import ResAdapterInTraining, add_resadapter, trained_weights
from brickwork.training.tasks.latent.stable_diffusion import freeze_encoders, freeze_unet, load_pipeline, objective_of
from brickwork.training.tasks.latent.task import SizePreviews, drop_text_encoders, encoding_loss, open_stream, plan

# The other processes wait while one fills the cache.
CACHE_TIME = timedelta(hours=12)


def prepare(config: ResAdapterConfig, accept_changes: bool = False, dry_run: bool = False) -> Run:
    """Everything that a run needs, built from its configuration; a dry run leaves nothing behind."""
    set_seed(config.run.seed)
    # A long caption is named once, in the plan, and not whenever it is drawn.
    diffusers.utils.logging.set_verbosity_error()
    settings = config.run
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=CACHE_TIME)],
    )
    pipeline = load_pipeline(config.model.base, config.model.revision, config.model.variant)
    objective = objective_of(pipeline.scheduler, config.objective.min_snr_gamma)
    freeze_encoders(pipeline, settings.mixed_precision, accelerator.device)
    freeze_unet(pipeline.unet, settings.mixed_precision)
    pipeline.unet.to(accelerator.device)
    adapter = add_resadapter(pipeline.unet, config)
    if settings.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    if config.model.attention_backend:
        pipeline.unet.set_attention_backend(config.model.attention_backend)
    stream, held_out = open_stream(config, pipeline, accelerator, use_cache=not dry_run)
    preview = SizePreviews(config, pipeline, stream, held_out, adapter.switched_off)
    accelerator.print(plan(config, pipeline, stream, len(held_out), accelerator.num_processes))
    if stream.cache is not None:
        drop_text_encoders(pipeline)
    return Run(
        config,
        accelerator,
        pipeline.unet,
        objective,
        stream,
        loss=encoding_loss(stream, pipeline),
        preview=partial(show, adapter, preview),
        export=partial(export, adapter, accelerator),
        accept_changes=accept_changes,
    )


def show(adapter: ResAdapterInTraining, preview: SizePreviews, run: Run, network, images: int, log) -> None:
    """Show what the averaged adapter can do, and leave it as files that can be tried."""
    weights = trained_weights(network)
    if run.accelerator.is_main_process:
        adapter.write(weights, Path(run.config.run.output_dir))
    preview(run, network, images, log)


def export(
    adapter: ResAdapterInTraining, accelerator: Accelerator, weights: dict[str, torch.Tensor], folder: Path
) -> None:
    """Leave the averaged adapter as the run's result."""
    official, single = adapter.write(weights, folder)
    accelerator.print(f"The adapter is in {official} (load_resadapter), and for ComfyUI, Forge and A1111 in {single}.")


def configure_parser(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser, "training/configs/stable_diffusion_defaults.yaml")
    parser.add_argument("--cache-only", action="store_true", help="fill data.cache, train nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.cache_only:
        return fill_cache(load_config(args.config, args.overrides, ResAdapterConfig), args.accept_changes)
    return train_as_asked(args, partial(prepare, dry_run=args.dry_run), ResAdapterConfig)


def fill_cache(config: ResAdapterConfig, accept_changes: bool) -> int:
    """Compute what `data.cache` keeps, and train nothing."""
    if config.data.cache is None:
        raise ValueError("`data.cache` is null, so there is nothing to fill; name a folder.")
    prepare(config, accept_changes, dry_run=False)
    return 0


def main(arguments: list[str] | None = None) -> int:
    return run_script("train_resadapter.py", __doc__, configure_parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
