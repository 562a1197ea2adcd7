"""What a prompt asks for: objects, their number, colours and positions, in GenEval's terms.

GenEval (Ghosh et al., arXiv 2310.11513) judges six kinds of prompts: a single object, two objects, counting, colours,
position and colour attribution. Its metadata files (`{"prompt", "tag", "include", "exclude"}`) are read as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brickwork.errors import explained, no_unknown, one_of, shown
from brickwork.eval.sets.scan import read_rows

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Clause:
    """Objects of one name that must be there; in `exclude`, how many must not.

    Attributes:
        name: of the objects.
        count: at least so many.
        colour: of each of them, one of `COLOURS`; `None` for any.
        position: `(one of POSITIONS, number of the clause among the included ones that it is relative to)`.
    """

    name: str
    count: int = 1
    colour: str | None = None
    position: tuple[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As GenEval writes it."""
        found = {"class": self.name, "count": self.count, "color": self.colour, "position": self.position}
        return {key: list(value) if key == "position" else value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Requirements:
    """All that a prompt asks for.

    Attributes:
        prompt: the words.
        include: clauses that must all hold.
        exclude: clauses none of which may hold.
        category: one of `CATEGORIES`, by default what the clauses make it.
    """

    prompt: str
    include: tuple[Clause, ...] = ()
    exclude: tuple[Clause, ...] = ()
    category: str = field(default="")

    def __post_init__(self):
        if not self.include and not self.exclude:
            raise ValueError(
                f"`prompt` is {shown(self.prompt)}, which names nothing that can be judged; name objects."
            )
        for number, clause in enumerate(self.include):
            _check(clause, number)
        object.__setattr__(self, "category", self.category or _category(self.include))

    @property
    def names(self) -> list[str]:
        """The names of all objects, each once."""
        return list(dict.fromkeys(clause.name for clause in (*self.include, *self.exclude)))

    def to_dict(self) -> dict[str, Any]:
        """As a row of GenEval's metadata."""
        found = {"tag": self.category, "include": [clause.to_dict() for clause in self.include]}
        if self.exclude:
            found["exclude"] = [clause.to_dict() for clause in self.exclude]
        return found | {"prompt": self.prompt}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], where: str = "requirements") -> "Requirements":
        """A row of GenEval's metadata; keys other than its own are left alone.

        Raises:
            ValueError: for a row that is none, naming what is wrong.
        """
        parts = {}
        for part in ("include", "exclude"):
            clauses = row.get(part, [])
            if not isinstance(clauses, list) or not all(isinstance(clause, dict) for clause in clauses):
                raise ValueError(f"{where}: `{part}` is {shown(clauses)}; give a list of objects in braces.")
            parts[part] = tuple(_clause(clause, f"{where}: `{part}`") for clause in clauses)
        prompt = row.get("prompt", "")
        with explained(where, ValueError):
            return cls(str(prompt), **parts, category=str(row.get("tag") or ""))


def _clause(row: Mapping[str, Any], where: str) -> Clause:
    no_unknown(where, row, ("class", "count", "color", "position"), "a clause")
    name, count, position = row.get("class"), row.get("count", 1), row.get("position")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where} has a clause whose `class` is {shown(name)}; name the object.")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{where} has a clause whose `count` is {shown(count)}; give 1 or more.")
    if position is not None and not (isinstance(position, (list, tuple)) and len(position) == 2):
        raise ValueError(f"{where} has a clause whose `position` is {shown(position)}; give [relation, clause].")
    return Clause(name.strip(), count, row.get("color"), None if position is None else tuple(position))


def _check(clause: Clause, number: int) -> None:
    if clause.colour is not None:
        one_of("color", clause.colour, COLOURS)
    if clause.position is not None:
        relation, target = clause.position
        one_of("position", relation, POSITIONS)
        if not isinstance(target, int) or not 0 <= target < number:
            raise ValueError(f"`position` is relative to clause {shown(target)}; give one before it, from 0 up.")


def _category(include: Sequence[Clause]) -> str:
    """The kind of a prompt that does not say its own: by the hardest thing that it asks for."""
    coloured = sum(clause.colour is not None for clause in include)
    if any(clause.position for clause in include):
        return "position"
    if coloured:
        return "color_attr" if len(include) > 1 else "colors"
    if any(clause.count > 1 for clause in include) or not include:
        return "counting"
    return "two_object" if len(include) > 1 else "single_object"


def read_requirements(path: str | Path) -> list[tuple[str | None, Requirements]]:
    """Requirements in a `.jsonl` file (a row a line) or a `.json` file (a list of rows, or a single one).

    Returns:
        For each row its `file_name`, `None` where it has none, and what it asks for.

    Raises:
        ValueError: for what is no such file, naming the row.
    """
    path = Path(path)
    found = []
    for where, row in _rows(path):
        name = row.get("file_name")
        found.append((None if name is None else str(name), Requirements.from_dict(row, where.rstrip(","))))
    if not found:
        raise ValueError(f"`requirements` is {str(path)!r}, which is empty; give a row for each prompt.")
    return found


def _rows(path: Path) -> Iterable[tuple[str, dict]]:
    if not path.is_file():
        raise ValueError(f"`requirements` is {str(path)!r}, and there is no such file.")
    if path.suffix.lower() != ".json":
        return read_rows(path)
    import json

    with explained(f"{str(path)!r} is no JSON", ValueError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))
    rows = content if isinstance(content, list) else [content]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{str(path)!r}, row {number}, is {shown(row)}; give an object in braces.")
    return [(f"{str(path)!r}, row {number}", row) for number, row in enumerate(rows)]
