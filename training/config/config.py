"""The configuration of a training run: one YAML file over the defaults, single values over that."""

import dataclasses
import difflib
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

DEFAULTS = Path(__file__).parents[1] / "configs" / "defaults.yaml"
OPTIMIZERS = ("adamw", "adamw_8bit")
SCHEDULES = ("constant", "cosine", "inverse_sqrt")

# What may change when a run goes on: how long, how fast, and what is shown, but nothing that changes what is learned.
# `data.source` is judged by what is in it (see `LabelledImages.fingerprint`): a data set may move.
_FREE_SECTIONS = ("samples", "metrics")
_FREE_KEYS = {
    "model.init_from",
    "model.wrap",
    "model.attention_backend",
    "data.source",
    "data.latents",
    "data.cache",
    "data.num_workers",
    "data.max_broken_images",
    "optimizer.cooldown_images",
    "run.output_dir",
    "run.total_images",
    "run.gradient_accumulation_steps",
    "run.gradient_checkpointing",
    "run.compile",
    "run.log_images",
    "run.sample_images",
    "run.checkpoint_images",
    "run.keep_checkpoints",
    "run.max_nonfinite_steps",
    "run.wandb_project",
}


def require(condition: bool, key: str, value: Any, rule: str) -> None:
    """Raise a `ValueError` about the value of a key unless the condition holds."""
    if not condition:
        raise ValueError(f"`{key}` is {value!r}; {rule}.")


@dataclass(frozen=True)
class ModelConfig:
    """Which network: a class, a preset if wanted, and configuration values over it."""

    type: str
    preset: str | None
    config: dict[str, Any]
    init_from: str | None
    wrap: str | None
    attention_backend: str | None


@dataclass(frozen=True)
class SourceConfig:
    """Which images: a folder, a Parquet file or a data set of the hub, and which of its rows."""

    source: str
    split: str
    image_column: str
    label_column: str | None
    group_column: str | None
    classes: list[str] | None
    held_out: float
    max_broken_images: int
    num_workers: int

    def __post_init__(self):
        require(self.max_broken_images >= 0, "data.max_broken_images", self.max_broken_images, "give 0 or more")
        require(0 <= self.held_out < 1, "data.held_out", self.held_out, "give a share from 0 to below 1")
        require(self.num_workers >= 0, "data.num_workers", self.num_workers, "give 0 or more")


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    """How images with class labels are prepared."""

    size: int
    bucket_step: int
    bucket_max_aspect: float
    latents: str | None
    horizontal_flip: bool
    crop_share: float
    crop_scale: float
    crop_aspect: float

    def __post_init__(self):
        super().__post_init__()
        require(self.size >= 1, "data.size", self.size, "give the side of the training images in pixels")
        require(0 <= self.bucket_step <= self.size, "data.bucket_step", self.bucket_step, "give 0 to data.size")
        require(self.bucket_max_aspect >= 1, "data.bucket_max_aspect", self.bucket_max_aspect, "give at least 1")
        require(0 <= self.crop_share <= 1, "data.crop_share", self.crop_share, "give a share, 0 to 1")
        require(self.crop_scale >= 1, "data.crop_scale", self.crop_scale, "give at least 1")
        require(self.crop_aspect >= 1, "data.crop_aspect", self.crop_aspect, "give at least 1")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the network learns to predict, and what it learns to do without."""

    type: str
    options: dict[str, float]
    label_dropout: float
    brick_dropout: float
    train_bricks: list[int] | None
    brick_images: list[int] | None

    def __post_init__(self):
        bricks, images = self.train_bricks, self.brick_images
        rising = bricks is None or _whole(bricks, 0) and bricks == sorted(set(bricks))
        require(rising, "objective.train_bricks", bricks, "give brick numbers from 0, rising, such as [0, 1], or null")
        require(images is None or _whole(images, 1), "objective.brick_images", images, "give one number a brick")
        for name in ("label_dropout", "brick_dropout"):
            require(0 <= getattr(self, name) <= 1, f"objective.{name}", getattr(self, name), "give a share, 0 to 1")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser, and its rate: a linear warm-up, a course, a linear cool-down at the end; counted in images."""

    type: str
    learning_rate: float
    schedule: str
    decay_images: int
    betas: list[float]
    weight_decay: float
    max_grad_norm: float
    warmup_images: int
    cooldown_images: int

    def __post_init__(self):
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "give a positive rate")
        numbers = [beta for beta in self.betas if fits(beta, float) and 0 <= beta < 1]
        require(len(numbers) == len(self.betas) == 2, "optimizer.betas", self.betas, "give two numbers below 1")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "give 0 or more")
        require(self.max_grad_norm > 0, "optimizer.max_grad_norm", self.max_grad_norm, "give a positive norm")
        require(self.type in OPTIMIZERS, "optimizer.type", self.type, f"choose one of {OPTIMIZERS}")
        require(self.schedule in SCHEDULES, "optimizer.schedule", self.schedule, f"choose one of {SCHEDULES}")
        for name in ("warmup_images", "cooldown_images", "decay_images"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "give 0 or more")
        needs_length = self.schedule == "inverse_sqrt" and self.decay_images == 0
        require(not needs_length, "optimizer.decay_images", 0, "inverse_sqrt needs the images after which it falls")


@dataclass(frozen=True)
class EMAConfig:
    """Averaged weights: half-life in images, at most a share of the images seen so far."""

    half_life_images: int
    rampup_ratio: float

    def __post_init__(self):
        require(self.half_life_images >= 0, "ema.half_life_images", self.half_life_images, "give 0 or more")
        require(self.rampup_ratio >= 0, "ema.rampup_ratio", self.rampup_ratio, "give 0 (no ramp) or more")


@dataclass(frozen=True)
class SamplesConfig:
    """The grid of pictures that the averaged weights draw as the run goes, from the same noise every time."""

    count: int
    steps: int
    guidance_scale: float

    def __post_init__(self):
        require(self.count >= 0, "samples.count", self.count, "give a number of pictures, 0 for none")
        require(self.steps >= 1, "samples.steps", self.steps, "give at least 1")


@dataclass(frozen=True)
class MetricsConfig:
    """Distances to a reference (see `brickwork evaluate ref`) of what the averaged weights draw, at intervals."""

    every_images: int
    reference: str | None
    weights: str | None
    count: int
    batch_size: int
    steps: int
    guidance_scale: float

    def __post_init__(self):
        require(self.every_images >= 0, "metrics.every_images", self.every_images, "give 0 (never) or more")
        require(self.count >= 2, "metrics.count", self.count, "give at least 2 samples, thousands to be of use")
        for name in ("batch_size", "steps"):
            require(getattr(self, name) >= 1, f"metrics.{name}", getattr(self, name), "give at least 1")


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
    wandb_project: str | None

    def __post_init__(self):
        for name in ("total_images", "batch_size", "gradient_accumulation_steps", "log_images", "checkpoint_images"):
            require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "give at least 1")
        for name in ("sample_images", "max_nonfinite_steps", "seed"):
            require(getattr(self, name) >= 0, f"run.{name}", getattr(self, name), "give 0 or more")
        require(self.keep_checkpoints >= 1, "run.keep_checkpoints", self.keep_checkpoints, "keep at least 1")
        allowed = ("no", "bf16", "fp16")
        require(
            self.mixed_precision in allowed, "run.mixed_precision", self.mixed_precision, f"choose one of {allowed}"
        )
        require(
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
    samples: SamplesConfig
    metrics: MetricsConfig
    run: RunConfig

    defaults = (DEFAULTS,)  # a task's own configuration may take the sections it shares from here

    def to_yaml(self) -> str:
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


def require_task(config: TrainConfig, model_type: str, objective_type: str) -> None:
    """Raise a `ValueError` unless a configuration is one of the script that trains just these."""
    pairs = {"model.type": (config.model.type, model_type), "objective.type": (config.objective.type, objective_type)}
    for key, (value, wanted) in pairs.items():
        require(value == wanted, key, value, f"this script trains with {wanted!r}")


def _is_number(value: Any) -> bool:
    """Numbers, and text such as `1e-3`, which YAML 1.1 does not take for a number."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of a field's type."""
    if hint is Any:
        return True
    options = get_args(hint)
    if get_origin(hint) in (list, dict):
        return isinstance(value, get_origin(hint))
    if options:  # a union such as str | None
        return any(fits(value, option) for option in options)
    if hint is float:
        return _is_number(value)
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
        if hint is str and values[key] is False:  # YAML 1.1 reads `run.mixed_precision=no` so
            values = values | {key: "no"}
        if dataclasses.is_dataclass(hint):
            built[key] = _build(hint, values[key], f"{path}{key}.")
        elif fits(values[key], hint):
            number = values[key] is not None and hint in (float, float | None)
            built[key] = float(values[key]) if number else values[key]
        else:
            raise ValueError(f"`{path}{key}` is {values[key]!r}; it takes {getattr(hint, '__name__', hint)}.")
    return cls(**built)


def _whole(values: list, least: int) -> bool:
    return bool(values) and all(fits(value, int) and value >= least for value in values)


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


def _defaults(kind: type) -> dict:
    """What the files of defaults say about the sections and keys that a configuration has, later ones over earlier."""
    values: dict = {}
    sections = get_type_hints(kind)
    for path in kind.defaults:
        for section in sections.keys() & (content := _read_yaml(path)).keys():
            known = get_type_hints(sections[section])
            keys = {key: value for key, value in content[section].items() if key in known}
            values = _merge(values, {section: keys})
    return values


def load_config(path: str | Path | None = None, overrides: list[str] | None = None, kind: type = TrainConfig):
    """Read a run's configuration.

    Args:
        path: YAML file with the values that differ from the defaults.
        overrides: `section.key=value` strings, values in YAML, applied last.
        kind: `TrainConfig`, or another task's, whose `defaults` names its files of defaults.

    Raises:
        ValueError: for unknown or missing keys (the nearest key is named), values of the wrong type or range.
    """
    values = _defaults(kind)
    if path is not None:
        values = _merge(values, _read_yaml(Path(path)))
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"The override {override!r} is no `section.key=value`.")
        try:
            value: Any = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"The override {override!r} has a value that is not YAML; quote it.") from None
        for part in reversed(key.split(".")):
            value = {part: value}
        values = _merge(values, value)
    return _build(kind, values)


def _flat(values: dict) -> dict[str, Any]:
    """`{"run": {"seed": 0}}` => `{"run.seed": 0}`; two levels, so that a network's own configuration is one value."""
    return {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}


def changed_keys(saved: str, config: TrainConfig, bound: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
    """What in a configuration would change a training that began with another one.

    Args:
        saved: the configuration of the run so far, as YAML; keys that it does not know had their default.
        config: the configuration to go on with.
        bound: keys that may change with other networks, but not with this one.

    Returns:
        `{"section.key": (saved value, new value)}`, empty where the run may go on.
    """
    before = _flat(_merge(_defaults(type(config)), yaml.safe_load(saved)))
    now = _flat(yaml.safe_load(config.to_yaml()))
    # A cosine course ends with the run: its length is part of what is learned.
    free = _FREE_KEYS - ({"run.total_images"} if config.optimizer.schedule == "cosine" else set()) - set(bound)
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(set(before) | set(now))
        if before.get(key) != now.get(key) and key not in free and key.split(".")[0] not in _FREE_SECTIONS
    }
