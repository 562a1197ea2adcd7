"""Further losses by name, for `objectives: [{type: …, weight: …}]` of a run's configuration: one file each.

A new one is a file in this folder whose class has `@register_objective("name")`; the files are found when they are
asked for.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

from brickwork.training.objectives.registry import (
    REGISTRY,
    Objective,
    check_names,
    objectives_from,
    register_objective,
)

__all__ = ["Objective", "build_objectives", "check_names", "list_objectives", "register_objective"]


def list_objectives() -> list[str]:
    """The names that `objectives` can have in a configuration."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return REGISTRY.names()


def build_objectives(entries: Iterable[Mapping[str, Any]]) -> list[Objective]:
    """What a configuration's `objectives` describe; see `objectives_from`."""
    list_objectives()
    return objectives_from(entries)
