"""`brickwork train PICTURES`: preset, size, batch and length for pictures of one's own, on this machine.

What is chosen is a list of `section.key=value`, so that the run's configuration says all of it and values on the
command line go over it.
"""

import os
import re
from pathlib import Path

import torch

from brickwork.errors import counted, shown
from brickwork.options import as_overrides
from brickwork.training.commands import own_captions
from brickwork.training.commands.looked_at import SMALL_SET, Pictures, lengths, look_at, passes_per_second
from brickwork.training.config.config import TrainConfig, given_values, load_config
from brickwork.training.config.reading import read_yaml
from brickwork.training.tasks.backbones import TrainedOn, build_model

OVERHEAD = 1.3  # of optimiser, averages and reading, over the network's two passes

# What a processor and a GPU train: network, side in pixels, images of a step.
_TINY = {"num_layers": [4, 2], "hidden_sizes": [128, 64], "num_attention_heads": [4, 2]}
_SMALL = {"num_layers": [6, 3], "hidden_sizes": [160, 128], "num_attention_heads": [5, 4]}
_ON_CPU, _ON_GPU = ("tiny-lego", _TINY, 32, 16), ("small-lego", _SMALL, 64, 128)


def choose(source: str, overrides: list[str]) -> tuple[list[str], list[str]]:
    """What to train on a source.

    Args:
        source: PICTURES.
        overrides: `section.key=value` that beat what is chosen.

    Returns:
        The choice as `section.key=value`, the overrides behind it; and lines that say what was chosen and why.

    Raises:
        ValueError: for a source that cannot be read, or overrides that do not fit.
    """
    given = given_values(overrides)
    found = look_at(source, given)
    if own_captions.wanted(found, overrides):
        return own_captions.choose(found, f"runs/{_name(source)}", overrides)
    preset, network, side, batch = _ON_GPU if torch.cuda.is_available() else _ON_CPU
    size = given.get("data.size", min(side, max(8, found.side // 4 * 4)))
    chosen: dict[str, object] = {"data.source": source, "run.output_dir": f"runs/{_name(source)}", "data.size": size}
    chosen |= {f"data.{key}": value for key, value in found.columns.items()}
    chosen |= {"data.held_out": 0.05 if found.count >= SMALL_SET else 0.0}
    chosen |= {"objective.brick_dropout": 0.2, "optimizer.learning_rate": 1e-3}
    named = [given[key] for key in ("model.preset", "model.type", "model.init_from", "model.wrap") if key in given]
    if named:
        preset = str(named[0])
        chosen |= {"objective.brick_dropout": 0.0}
    else:
        chosen |= {"model.type": "LegoTransformer2DModel", "model.config": _windows(size) | network}
    chosen |= {"run.batch_size": min(batch, found.count, given.get("run.total_images", batch))}
    config = load_config(None, [*as_overrides(chosen), *overrides])
    rate = images_per_second(config, list(found.classes))
    batch = config.run.batch_size
    chosen |= lengths(found, rate, batch, given.get("run.total_images"))
    config = load_config(None, [*as_overrides(chosen), *overrides])
    return [*as_overrides(chosen), *overrides], _say(found, config, preset, rate)


def described(source: str, overrides: list[str]) -> list[str]:
    """What a configuration says of a source: where it is and which columns it has, unless overrides say which."""
    columns = look_at(source, given_values(overrides)).columns
    return as_overrides({"data.source": source} | {f"data.{key}": name for key, name in columns.items()})


def images_per_second(config: TrainConfig, class_names: list[str]) -> float:
    """How many images this machine trains on in a second, from a few passes of the network over one batch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = TrainedOn(class_names, config.data.size, 3, config.data.crop_share > 0)
    network = build_model(config.model, config.objective, data).to(device)
    batch, size = max(1, config.run.batch_size // config.run.gradient_accumulation_steps), config.data.size
    sample, timestep = torch.zeros(batch, 3, size, size, device=device), torch.zeros(batch, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device) if class_names else None
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = dtypes.get(config.run.mixed_precision)

    def passing() -> torch.Tensor:
        with torch.autocast(device.type, kind, enabled=kind is not None):
            return network(sample, timestep, labels).sample.float().square().mean()

    return batch * passes_per_second(device, passing) / OVERHEAD


def begun(source: str, overrides: list[str]) -> Path | None:
    """The configuration of the run that the same command began before, `None` where it is the first time.

    Raises:
        ValueError: where the folder holds a run on other pictures.
    """
    folder = Path(given_values(overrides).get("run.output_dir", f"runs/{_name(source)}"))
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    former = str((read_yaml(path).get("data") or {}).get("source", ""))
    if os.path.realpath(former) != os.path.realpath(source):
        raise ValueError(
            f"`run.output_dir` is {str(folder)!r}, which holds a run on {shown(former)}; add run.output_dir=FOLDER to "
            f"train on {source!r} elsewhere."
        )
    return path


def _name(source: str) -> str:
    """The name of a run on a source: `pics/cats.parquet` => `cats`."""
    path = Path(source).resolve()
    return re.sub(r"[^\w.-]+", "-", path.stem if path.is_file() else path.name).strip("-.") or "pictures"


def _windows(size: int) -> dict[str, list[int]]:
    """A brick that sees all of the picture, and one for windows of 8 pixels."""
    patch = next(patch for patch in (4, 3, 2, 1) if size % patch == 0)
    return {"window_sizes": [size, 8], "patch_sizes": [patch, 2]}


def _say(found: Pictures, config: TrainConfig, preset: str, rate: float) -> list[str]:
    run, size = config.run, config.data.size
    names = [f"{name} {number:,}" for name, number in found.classes.items()]
    classes = f", {len(names)} classes: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}" if names else ""
    lines = [
        f"{found.source}: {_counted(found.count)}{classes or ', no classes'}; shorter side {found.side} pixels.",
        f"Chosen: {preset} at {size} pixels, precision {run.mixed_precision}, {counted(run.batch_size)} a step.",
        f"Length: {run.total_images:,} images, {run.total_images / found.count:,.1f} times each, about "
        f"{max(1, round(run.total_images / rate / 60))} min at {rate:,.0f} images/s.",
        f"The run is in {run.output_dir}; values behind the folder beat these, such as data.size=64 or "
        f"run.total_images={2 * run.total_images}.",
        f"Then: brickwork generate {run.output_dir}",
    ]
    if found.captions:
        to_text = f"brickwork train {found.source} {own_captions.BASE}={own_captions.shipped_base()}"
        lines.insert(
            1, f"Captions ({', '.join(found.captions)}) are there, which this network does not read; {to_text} does."
        )
    if size > found.side:
        lines.insert(2, f"Pictures below {size} pixels are enlarged.")
    return lines


def _counted(pictures: int) -> str:
    if pictures > 1:
        return f"{pictures:,} pictures"
    return "1 picture, which will be learnt by heart (add more to draw others)"
