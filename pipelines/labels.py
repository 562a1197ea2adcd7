"""Class labels as a person gives them, by number or by name, turned into the numbers that a network reads."""

import operator
from collections.abc import Iterator, Mapping
from typing import Any

from brickwork.errors import near_names

NO_CLASS = "no class"


def resolve_class_labels(
    class_labels: Any, num_classes: int | None, id2label: Mapping[int | str, str] | None = None
) -> list[int] | list[None]:
    """One label an image.

    Args:
        class_labels: a number, a name (case does not matter), `None` or "no class", or a list, array or tensor of
            these, which may be nested, as diffusers' `DiTPipeline` has them.
        num_classes: number of classes of the network, `None` if it is unconditional.
        id2label: names by number; after JSON the numbers are strings.

    Returns:
        Numbers from 0 to `num_classes`, which itself stands for "no class"; for an unconditional network a list of
        `None`.

    Raises:
        ValueError: for an empty list, a number out of range, or a name that is unknown or stands for several classes.
    """
    labels = list(_flat(class_labels))
    if not labels:
        raise ValueError("`class_labels` is empty; give at least one label, or None for no class.")
    if num_classes is None:
        given = [label for label in labels if not _is_no_class(label)]
        if given:
            raise ValueError(f"`class_labels` has {given[0]!r}, but this network is unconditional; leave labels out.")
        return [None] * len(labels)
    names = {int(number): name for number, name in (id2label or {}).items()}
    return [_resolve(label, num_classes, names) for label in labels]


def _flat(labels: Any) -> Iterator[Any]:
    if hasattr(labels, "tolist"):  # tensors and arrays
        labels = labels.tolist()
    if isinstance(labels, (list, tuple)):
        for label in labels:
            yield from _flat(label)
    else:
        yield labels


def _is_no_class(label: Any) -> bool:
    return label is None or (isinstance(label, str) and label.strip().casefold() == NO_CLASS)


def _resolve(label: Any, num_classes: int, names: Mapping[int, str]) -> int:
    if isinstance(label, str):
        matches = [number for number, name in names.items() if name == label]
        matches = matches or [number for number, name in names.items() if name.casefold() == label.strip().casefold()]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ValueError(f"`class_labels` has {label!r}, the name of the classes {matches}; give a number.")
    if _is_no_class(label):
        return num_classes
    if isinstance(label, str):
        raise ValueError(f"`class_labels` has {label!r}, {_near(label, num_classes, names)}")
    try:
        number = operator.index(label)
    except TypeError:
        raise ValueError(f"`class_labels` has {label!r}; give numbers, names, or None for no class.") from None
    if isinstance(label, bool) or not 0 <= number <= num_classes:
        raise ValueError(
            f"`class_labels` has {label}; allowed are 0 to {num_classes - 1}, and {num_classes} or None for no class."
        )
    return number


def _near(label: str, num_classes: int, names: Mapping[int, str]) -> str:
    if not names:
        return f"but this network has no names for its classes; give numbers from 0 to {num_classes - 1}."
    near = near_names(label, names.values(), 3, cutoff=0.5)
    near += [name for name in names.values() if label.casefold() in name.casefold() and name not in near][:3]
    if near:
        return f"an unknown class; did you mean {' or '.join(map(repr, near))}?"
    listed = ", ".join(repr(name) for name in list(names.values())[:20])
    return f"an unknown class; the first of the {len(names)} classes are {listed}."
