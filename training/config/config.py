"""The configuration of a training run: one YAML file over the defaults, single values over that."""

import json
from collections.abc import Collection, Sequence
from functools import reduce
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from brickwork.errors import shown
from brickwork.training.config.data import DataConfig
from brickwork.training.config.library import CONFIGS, apply_data_set, levels_of
from brickwork.training.config.model import ModelConfig
from brickwork.training.config.objective import FurtherObjectives, ObjectiveConfig
from brickwork.training.config.optimizer import EMAConfig, OptimizerConfig
from brickwork.training.config.precision import choose_precision
from brickwork.training.config.reading import MAX_DEPTH, parse_yaml, read_yaml
from brickwork.training.config.run import RunConfig
from brickwork.training.config.samples import MetricsConfig, SamplesConfig
from brickwork.training.config.section import Section, build, require

DEFAULTS = CONFIGS / "defaults.yaml"

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


class Configuration(Section):
    """A configuration: sections, and the files of their defaults, later ones over earlier."""

    defaults: ClassVar[tuple[Path, ...]] = (DEFAULTS,)


class RunConfiguration(Configuration):
    """What the engine asks of every task's configuration; a task says what is in the first three and the samples."""

    model: Section
    data: Section
    objective: Section
    objectives: FurtherObjectives
    optimizer: OptimizerConfig
    ema: EMAConfig
    samples: Section
    run: RunConfig


class TrainConfig(RunConfiguration):
    """A run."""

    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    samples: SamplesConfig
    metrics: MetricsConfig

    @model_validator(mode="after")
    def _sections_fit(self):
        from brickwork.gen.parameterization import OBJECTIVES  # which imports torch; `--help` reads no configuration

        data, lego = self.data, self.model.type == "LegoTransformer2DModel"
        rule = "only LegoTransformer2DModel on pixels learns from crops; set it to 0"
        require(data.crop_share == 0 or data.latents is None and lego, "data.crop_share", data.crop_share, rule)
        batch = self.run.batch_size
        whole = all(images % batch == 0 for images, _ in data.progressive)
        rule = f"give numbers of images that are multiples of run.batch_size = {batch}, so that a step has one size"
        require(whole, "data.progressive", data.progressive, rule)
        rule = "LEGO's pipeline samples what edm trains; set it to edm"
        others = set(OBJECTIVES) - {"edm"}  # a name that nobody knows has its own answer
        require(not lego or self.objective.type not in others, "objective.type", self.objective.type, rule)
        return self


def require_task(config: TrainConfig, model_types: Sequence[str], objective_type: str) -> None:
    """Raise a `ValueError` unless a configuration is one of the script that trains just these."""
    pairs = {
        "model.type": (config.model.type, model_types),
        "objective.type": (config.objective.type, [objective_type]),
    }
    for key, (value, wanted) in pairs.items():
        require(value in wanted, key, value, f"this script trains with {' or '.join(map(repr, wanted))}")


def load_config(path: str | Path | None = None, overrides: list[str] | None = None, kind: type = TrainConfig):
    """Read a run's configuration; `run.mixed_precision: auto` becomes what it stands for on this machine.

    Args:
        path: YAML file with the values that differ from the defaults, or the name of one that ships.
        overrides: `section.key=value` strings, values in YAML, applied last.
        kind: `TrainConfig`, or another task's, whose `defaults` names its files of defaults.

    Raises:
        ValueError: for unknown or missing keys (the nearest key is named), values of the wrong type or range.
    """
    given = reduce(merge, map(_parse_override, overrides or []), {})
    levels = [_defaults(kind), *apply_data_set([*([] if path is None else levels_of(path)), given])]
    try:
        config = build(kind, reduce(merge, levels))
    except ValueError as error:
        raise ValueError(f"{error}{_begun_with(path)}") from None
    if config.run.mixed_precision != "auto":
        return config
    precision = choose_precision(config.run.output_dir)
    return config.replace(run=config.run.replace(mixed_precision=precision))


def given_values(overrides: list[str], path: str | Path | None = None) -> dict[str, Any]:
    """`["run.seed=1"]` => `{"run.seed": 1}`: what a command line, over a file, says itself, before any default."""
    levels = [] if path is None else levels_of(path)
    return flat(reduce(merge, [*levels, *map(_parse_override, overrides)], {}))


def changed_keys(saved: str, config: TrainConfig, bound: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
    """What in a configuration would change a training that began with another one.

    Args:
        saved: the configuration of the run so far, as YAML; keys that it does not know had their default.
        config: the configuration to go on with.
        bound: keys that may change with other networks, but not with this one.

    Returns:
        `{"section.key": (saved value, new value)}`, empty where the run may go on.
    """
    before = flat(merge(_defaults(type(config)), parse_yaml(saved, "The configuration that the run began with")))
    now = flat(config.model_dump())
    if before.get("run.mixed_precision") == "auto":  # it said nothing of it
        before["run.mixed_precision"] = now["run.mixed_precision"]
    # A cosine course ends with the run: its length is part of what is learned.
    free = _FREE_KEYS - ({"run.total_images"} if config.optimizer.schedule == "cosine" else set()) - set(bound)
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(set(before) | set(now))
        if before.get(key) != now.get(key) and key not in free and key.split(".")[0] not in _FREE_SECTIONS
    }


def _begun_with(path: str | Path | None) -> str:
    """Where a configuration is that of a run which another version began: both versions, for an error."""
    try:
        starts = (Path(path).parent / "starts.jsonl").read_text(encoding="utf-8").splitlines()
        began = json.loads(starts[0])["versions"]["brickwork"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    now = metadata.version("brickwork")
    return "" if began == now else f" The run was begun with brickwork {began}; this is {now}."


def _defaults(kind: type[Configuration]) -> dict:
    """What the files of defaults say about the sections and keys that a configuration has, later ones over earlier."""
    values: dict = {}
    for path in kind.defaults:
        content = read_yaml(path)
        for name in kind.model_fields.keys() & content.keys():
            keys = content[name]
            if isinstance(keys, dict):
                known = kind.model_fields[name].annotation.model_fields
                keys = {key: value for key, value in keys.items() if key in known}
            values = merge(values, {name: keys})
    return values


def _parse_override(override: str) -> dict:
    """`"run.seed=1"` => `{"run": {"seed": 1}}`."""
    key, separator, text = override.partition("=")
    if not separator or key.count(".") >= MAX_DEPTH:
        raise ValueError(f"The override {shown(override)} is no `section.key=value`.")
    return nested(key, parse_yaml(text, f"The override {shown(override)}, whose value may need quotes,"))


def nested(key: str, value: Any) -> dict:
    """`"run.seed", 1` => `{"run": {"seed": 1}}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merge(base: dict, over: dict) -> dict:
    """Values over others, section by section."""
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def flat(values: dict) -> dict[str, Any]:
    """`{"run": {"seed": 0}}` => `{"run.seed": 0}`; two levels, so that a network's own configuration is one value."""
    flat: dict[str, Any] = {}
    for section, keys in values.items():
        flat |= (
            {f"{section}.{key}": value for key, value in keys.items()} if isinstance(keys, dict) else {section: keys}
        )
    return flat
