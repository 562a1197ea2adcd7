"""Train a backbone on images with class labels.

    accelerate launch training/train_backbone.py --config training/configs/lego_emoji_64.yaml

Running the same command again goes on from the newest checkpoint. Values can be set on the command line, in YAML:

    accelerate launch training/train_backbone.py --config … run.total_images=200000 data.size=32
"""

import argparse
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed

from brickwork.eval.paired_loss import PairedSet
from brickwork.gen.lego import LegoTransformer2DModel
from brickwork.gen.objectives import OBJECTIVES
from brickwork.training.config import TrainConfig, load_config
from brickwork.training.data.images import LabelledImages, load_table, to_unit_range
from brickwork.training.data.stream import TrainingStream
from brickwork.training.loop import Run, train

MODELS = {"LegoTransformer2DModel": LegoTransformer2DModel}


def choose(kinds: dict, name: str, key: str):
    if name not in kinds:
        raise ValueError(f"`{key}` is {name!r}; choose one of {', '.join(kinds)}.")
    return kinds[name]


def build_model(config: TrainConfig, class_names: list[str]):
    model_class = choose(MODELS, config.model.type, "model.type")
    if config.model.init_from:
        return model_class.from_pretrained(config.model.init_from)
    values = {
        "sample_size": config.data.size,
        "num_classes": len(class_names) or None,
        "id2label": dict(enumerate(class_names)) or None,
        "trained_subsets": "any" if config.objective.brick_dropout > 0 else "prefix",
    } | config.model.config
    unknown = sorted(set(values) - set(model_class._get_init_keys(model_class)))
    if unknown:
        raise ValueError(f"`model.config` has {unknown}, which {config.model.type} does not take.")
    torch.manual_seed(config.run.seed)
    if config.model.preset:
        return model_class.from_preset(config.model.preset, **values)
    return model_class(**values)


def build_held_out(images: LabelledImages, rows) -> PairedSet | None:
    if len(rows) == 0:
        return None
    pictures, labels = zip(*(images[row] for row in rows))
    pictures = torch.stack([torch.from_numpy(to_unit_range(picture)) for picture in pictures])
    return PairedSet.from_images(pictures, torch.tensor(labels) if images.class_names else None)


def prepare(config: TrainConfig) -> Run:
    set_seed(config.run.seed)
    accelerator = Accelerator(
        mixed_precision=config.run.mixed_precision,
        gradient_accumulation_steps=config.run.gradient_accumulation_steps,
        # With brick dropout, the bricks that a step leaves out have no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=config.objective.brick_dropout > 0)],
    )
    data = config.data
    images = LabelledImages(
        load_table(data.source, data.split),
        data.size,
        data.image_column,
        data.label_column,
        data.group_column,
        data.classes,
    )
    train_rows, held_out_rows = images.split(data.held_out)
    model = build_model(config, images.class_names)
    if config.run.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.model.attention_backend:
        model.set_attention_backend(config.model.attention_backend)
    objective = choose(OBJECTIVES, config.objective.type, "objective.type")(**config.objective.options)
    stream = TrainingStream(images, train_rows, config.run.seed, data.horizontal_flip)
    accelerator.print(
        f"{config.model.type}: {sum(p.numel() for p in model.parameters()):,} parameters; {len(train_rows):,} images "
        f"of {len(images.class_names) or 'no'} classes to train on, {len(held_out_rows):,} held out; "
        f"{config.run.total_images / len(train_rows):,.0f} epochs on {accelerator.num_processes} process(es)."
    )
    return Run(config, accelerator, model, objective, stream, build_held_out(images, held_out_rows))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="train_backbone.py"
    )
    parser.add_argument("--config", type=Path, help="YAML file over training/configs/defaults.yaml")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values over the file")
    args = parser.parse_args(arguments)
    try:
        config = load_config(args.config, args.overrides)
        run = prepare(config)
        if args.dry_run:
            print(config.to_yaml())
            return 0
        folder = Path(config.run.output_dir)
        if run.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(config.to_yaml())
        train(run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
