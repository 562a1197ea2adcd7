"""What a section of a configuration is: a frozen pydantic model, whose errors name `section.key`, value and rule."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from brickwork.errors import advice, near_names, shown

_SHOWN_ERRORS = 3
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a mapping"}


class Section(BaseModel):
    """Values that do not change; unknown, missing and ill-typed ones are errors.

    No field has a default: defaults live in `configs/*defaults.yaml` alone. A field's description is its rule, as it
    follows "give" in an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    def replace(self, **values: Any) -> Self:
        """A copy with other values, checked like the original."""
        return type(self).model_validate(dict(self) | values)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def as_number(value: Any) -> Any:
    """Text such as `1e-3`, which YAML 1.1 does not take for a number, is one."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Number = Annotated[float, BeforeValidator(as_number), Field(allow_inf_nan=False)]
Share = Annotated[Number, Field(ge=0, le=1, description="a share, 0 to 1")]
Count = Annotated[int, Field(ge=0, description="a whole number, 0 or more")]
Positive = Annotated[int, Field(ge=1, description="a whole number, at least 1")]


def require(condition: bool, key: str, value: Any, rule: str) -> None:
    """Raise a `ValueError` about the value of a key unless the condition holds."""
    if not condition:
        raise ValueError(f"`{key}` is {shown(value)}; {rule}.")


def build(kind: type[Section], values: Any) -> Any:
    """A section, or a configuration, from plain values.

    Raises:
        ValueError: naming up to three keys that are unknown, missing, or of the wrong type or range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        said = dict.fromkeys(_say(kind, values, entry) for entry in error.errors(include_url=False))
        raise ValueError(" ".join(list(said)[:_SHOWN_ERRORS])) from None


def keys_of(kind: type[Section], path: str = "") -> Iterator[tuple[str, str]]:
    """Each key of a configuration's sections as `(section.key, key)`."""
    for name, field in kind.model_fields.items():
        inner = _section_in(field.annotation)
        yield from keys_of(inner, f"{path}{name}.") if inner and not path else [(f"{path}{name}", name)]


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that a field holds, if it is one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _say(root: type[Section], values: Any, entry: dict) -> str:
    """One of pydantic's errors in our words."""
    if entry["type"] == "value_error":  # of `require`
        return str(entry["ctx"]["error"])
    kind, path, value, field = root, "", values, None
    for part in entry["loc"]:
        if kind is None:  # within a field: all of it is shown
            break
        path += f"{'.' if path else ''}{part}"
        if part not in kind.model_fields:
            return f"Unknown key `{path}` in the configuration; {_meant(root, kind, part)}"
        if entry["type"] == "missing" and part not in value:
            return f"The configuration has no `{path}`; add it."
        field, value = kind.model_fields[part], value[part]
        kind = _section_in(field.annotation)
    if entry["type"] == "model_type":
        return f"`{path or 'config'}` is {shown(value)}; give a mapping."
    return f"`{path}` is {shown(value)}; {_rule(field, value)}"


def _meant(root: type[Section], kind: type[Section], part: Any) -> str:
    """What an unknown key was meant to be: one of the same section, or of another."""
    elsewhere = dict(keys_of(root))
    same = [path for path, name in elsewhere.items() if name == part]
    near = near_names(part, kind.model_fields)
    far = [path for path, name in elsewhere.items() if name in near_names(part, elsewhere.values())]
    for found in (same, near, far):
        if found:
            return f"did you mean `{found[0]}`?"
    return f"known: {', '.join(kind.model_fields)}."


def _rule(field: FieldInfo, value: Any) -> str:
    choices = _choices(field.annotation)
    if choices:
        return advice(value, choices)
    if field.description:
        return f"give {field.description}."
    union = get_origin(field.annotation) in (Union, UnionType)
    options = get_args(field.annotation) if union else [field.annotation]
    words = [text for kind, text in _KINDS.items() if any(kind in (o, get_origin(o)) for o in options)]
    if not words or list in map(get_origin, options):
        words = ["a list"]
    return f"give {' or '.join(words)}{' or null' if type(None) in options else ''}."


def _choices(annotation: Any) -> list[str]:
    """The texts that a field takes, where it takes only some."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for option in get_args(annotation) for choice in _choices(option)]
