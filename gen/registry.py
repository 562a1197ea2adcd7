"""Classes of one kind by name: building blocks, stems, necks, objectives."""

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

from torch import nn

from brickwork.errors import no_unknown, one_of


class Registry:
    """Names of classes, and what their constructors take by keyword.

    Args:
        kind: what the classes are, for errors: `"block"`.
        positional: whether all arguments of a constructor are settings, not only those by keyword.
    """

    def __init__(self, kind: str, positional: bool = False):
        self.kind = kind
        self.settings = {Parameter.KEYWORD_ONLY, *([Parameter.POSITIONAL_OR_KEYWORD] if positional else [])}
        self.classes: dict[str, Callable[..., nn.Module]] = {}

    def register(self, name: str) -> Callable:
        """Decorator that makes a class, or a function that builds a module, known under a name."""

        def add(cls: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
            if name in self.classes:
                holder = self.classes[name].__name__
                raise ValueError(f"`name` is {name!r}, which {holder} has already; choose another.")
            self.classes[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.classes)

    def find(self, name: str) -> Any:
        """The class of a name, or a `ValueError` with the name that comes near, or else all of them."""
        return one_of(self.kind, name, self.classes)

    def keywords(self, name: str) -> set[str]:
        """Settings of a class's constructor and of those that it hands them on to, or of a function."""
        known: set[str] = set()
        found = self.find(name)
        for part in found.__mro__ if isinstance(found, type) else [found]:
            if part.__module__.startswith("torch."):
                break
            constructor = part.__init__ if isinstance(part, type) else part
            parameters = inspect.signature(constructor).parameters.values()
            known |= {parameter.name for parameter in parameters if parameter.kind in self.settings}
        return known - {"self"}

    def check_options(self, name: str, options: Mapping[str, Any] | None, argument: str) -> dict[str, Any]:
        """The options as a dictionary, or a `ValueError` for one that the class does not take."""
        no_unknown(argument, options or {}, self.keywords(name), f"the {self.kind} {name!r}")
        return dict(options or {})

    def known_options(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a network's settings that the class takes and that are not `None`."""
        known = self.keywords(name)
        return {key: value for key, value in settings.items() if key in known and value is not None}
