"""YAML within bounds: no file of a few bytes costs more than a few bytes, and nothing is said twice."""

from pathlib import Path
from typing import Any

import yaml

from brickwork.errors import shown

MAX_BYTES = 2**18
MAX_VALUES = 100_000  # what aliases and merges refer to counts as often as it is referred to
MAX_DEPTH = 40


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text.

    Args:
        text: in YAML 1.1.
        what: the text's name in errors, such as "The configuration run.yaml".

    Raises:
        ValueError: for text that is not YAML, has a key twice, or grows beyond the bounds of this file.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"{what} has {len(text):,} characters; a configuration has at most {MAX_BYTES:,}.")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _extent(node, {}, what, 0)
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is not YAML: {_problem(error)}.") from None
    except RecursionError:
        raise ValueError(f"{what} nests deeper than {MAX_DEPTH} levels.") from None
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(f"{what} has a value that is none: {_problem(error)}.") from None


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file.

    Raises:
        ValueError: naming the file, where it holds none.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8-sig"), f"The configuration {path}")
    except OSError as error:
        raise ValueError(f"The configuration {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"The configuration {path} is not text in UTF-8.") from None
    if not isinstance(values, dict):
        raise ValueError(f"The configuration {path} holds no mapping.")
    return values


def _problem(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    return shown(problem)[1:-1] + (f", line {mark.line + 1}, column {mark.column + 1}" if mark else "")


def _extent(node: yaml.Node, known: dict[int, tuple[int, int]], what: str, depth: int) -> tuple[int, int]:
    """How many values a node comes to, with all that it refers to, and how many levels.

    Args:
        node: of the text's graph; an alias is the node that it refers to.
        known: extents of nodes by their id; `(0, 0)` for those that `node` is part of.
        what: the text's name in errors.
        depth: levels above the node.
    """
    line = node.start_mark.line + 1
    if id(node) in known:
        values, levels = known[id(node)]
        if not values:
            raise ValueError(f"{what} refers in line {line} to what it is part of.")
        if depth + levels <= MAX_DEPTH:
            return values, levels
    known[id(node)] = (0, 0)
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in parts if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(keys) > len(set(keys)):
            twice = next(key for number, key in enumerate(keys) if key in keys[:number])
            raise ValueError(f"{what} has {shown(twice)} twice in the mapping from line {line} on.")
        parts = [part for pair in parts for part in pair]
    values, levels = 1, 0
    for part in parts:
        if depth >= MAX_DEPTH:
            raise ValueError(f"{what} nests deeper than {MAX_DEPTH} levels.")
        more, below = _extent(part, known, what, depth + 1)
        values, levels = values + more, max(levels, below + 1)
    if values > MAX_VALUES:
        raise ValueError(f"{what} refers to itself so often that it has more than {MAX_VALUES:,} values.")
    known[id(node)] = (values, levels)
    return values, levels
