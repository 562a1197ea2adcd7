"""The configuration of a training run: one YAML file over the defaults, single values over that."""

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

DEFAULTS = Path(__file__).parent / "configs" / "defaults.yaml"


def _require(condition: bool, key: str, value: Any, rule: str) -> None:
    if not condition:
        raise ValueError(f"`{key}` is {value!r}; {rule}.")


@dataclass(frozen=True)
class ModelConfig:
    """Which network: a class, a preset if wanted, and configuration values over it."""

    type: str
    preset: str | None
    config: dict[str, Any]
    init_from: str | None
    attention_backend: str | None


@dataclass(frozen=True)
class DataConfig:
    """Which images: a folder, a Parquet file or a data set of the hub, and how they are prepared."""

    source: str
    split: str
    image_column: str
    label_column: str | None
    group_column: str | None
    classes: list[str] | None
    size: int
    horizontal_flip: bool
    held_out: float
    num_workers: int

    def __post_init__(self):
        _require(self.size >= 1, "data.size", self.size, "give the side of the training images in pixels")
        _require(0 <= self.held_out < 1, "data.held_out", self.held_out, "give a share from 0 to below 1")
        _require(self.num_workers >= 0, "data.num_workers", self.num_workers, "give 0 or more")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the network learns to predict, and what it learns to do without."""

    type: str
    options: dict[str, float]
    label_dropout: float
    brick_dropout: float

    def __post_init__(self):
        for name in ("label_dropout", "brick_dropout"):
            _require(0 <= getattr(self, name) <= 1, f"objective.{name}", getattr(self, name), "give a share, 0 to 1")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up, a constant rate, and a linear cool-down at the end; counted in images."""

    learning_rate: float
    betas: list[float]
    weight_decay: float
    max_grad_norm: float
    warmup_images: int
    cooldown_images: int

    def __post_init__(self):
        _require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "give a positive rate")
        _require(len(self.betas) == 2, "optimizer.betas", self.betas, "give two numbers")


@dataclass(frozen=True)
class EMAConfig:
    """Averaged weights: half-life in images, shortened to a share of the images seen so far while training is young."""

    half_life_images: int
    rampup_ratio: float


@dataclass(frozen=True)
class RunConfig:
    """How long, how large, where to, and what to show on the way."""

    output_dir: str
    total_images: int
    batch_size: int
    gradient_accumulation_steps: int
    mixed_precision: str
    gradient_checkpointing: bool
    compile: bool
    seed: int
    log_images: int
    sample_images: int
    checkpoint_images: int
    keep_checkpoints: int
    max_nonfinite_steps: int

    def __post_init__(self):
        for name in ("total_images", "batch_size", "gradient_accumulation_steps", "log_images", "checkpoint_images"):
            _require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "give at least 1")
        _require(self.keep_checkpoints >= 1, "run.keep_checkpoints", self.keep_checkpoints, "keep at least 1")
        allowed = ("no", "bf16", "fp16")
        _require(
            self.mixed_precision in allowed, "run.mixed_precision", self.mixed_precision, f"choose one of {allowed}"
        )
        _require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            "run.batch_size",
            self.batch_size,
            f"make it a multiple of run.gradient_accumulation_steps = {self.gradient_accumulation_steps}",
        )


@dataclass(frozen=True)
class TrainConfig:
    """A whole run. No field has a default here: defaults live in `configs/defaults.yaml` alone."""

    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    ema: EMAConfig
    run: RunConfig

    def to_yaml(self) -> str:
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    options = get_args(hint)
    if get_origin(hint) in (list, dict):
        return isinstance(value, get_origin(hint))
    if options:  # a union such as str | None
        return any(_fits(value, option) for option in options)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _build(cls: type, values: Any, path: str = "") -> Any:
    """A dataclass from plain values; unknown, missing and ill-typed keys are errors."""
    if not isinstance(values, dict):
        raise ValueError(f"`{path or 'config'}` is {values!r}; give a mapping.")
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            mend = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(hints)}."
            raise ValueError(f"Unknown key `{path}{key}` in the configuration; {mend}")
    built = {}
    for key, hint in hints.items():
        if key not in values:
            raise ValueError(f"The configuration has no `{path}{key}`; add it.")
        if dataclasses.is_dataclass(hint):
            built[key] = _build(hint, values[key], f"{path}{key}.")
        elif _fits(values[key], hint):
            built[key] = float(values[key]) if hint is float else values[key]
        else:
            raise ValueError(f"`{path}{key}` is {values[key]!r}; it takes {getattr(hint, '__name__', hint)}.")
    return cls(**built)


def _merge(base: dict, over: dict) -> dict:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _read_yaml(path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"The configuration {path} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"The configuration {path} is not YAML: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"The configuration {path} holds no mapping.")
    return values


def load_config(path: str | Path | None = None, overrides: list[str] | None = None) -> TrainConfig:
    """Read a run's configuration.

    Args:
        path: YAML file with the values that differ from `configs/defaults.yaml`.
        overrides: `section.key=value` strings, values in YAML, applied last.

    Raises:
        ValueError: for unknown or missing keys (the nearest key is named), values of the wrong type or range.
    """
    values = _read_yaml(DEFAULTS)
    if path is not None:
        values = _merge(values, _read_yaml(Path(path)))
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"The override {override!r} is no `section.key=value`.")
        value: Any = yaml.safe_load(text)
        for part in reversed(key.split(".")):
            value = {part: value}
        values = _merge(values, value)
    return _build(TrainConfig, values)
