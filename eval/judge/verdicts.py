"""Whether a picture shows what was asked for, by GenEval's rules (Ghosh et al., arXiv 2310.11513).

Included clauses must all hold and excluded ones must not. The surest `count` objects of a name are looked at; their
colours and positions must be the right ones, all of them. An object stands to one side of another if its centre lies
there by more than a tenth of both sizes, and mostly along that axis.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from brickwork.errors import count_and_name, explained
from brickwork.eval.judge.colours import ColourNamer, PixelColours
from brickwork.eval.judge.detectors import Detection, Detector, kept
from brickwork.eval.judge.grammar import read_caption
from brickwork.eval.judge.requirements import CATEGORIES, Clause, Requirements

AT_ONCE = 16


@dataclass(frozen=True)
class JudgeSettings:
    """What a verdict depends on beside detector and colours; GenEval's values are the defaults.

    Attributes:
        threshold: scores above which detections count. counting_threshold: the same for counting prompts.
        max_objects: of a name, the surest.
        max_overlap: of two objects of a name; 1 for any.
        position_threshold: share of the sizes by which centres must be apart.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not math.isfinite(value) or value < 0 or (name != "max_objects" and value > 1) or self.max_objects < 1:
                raise ValueError(f"`{name}` is {value}; give 0 to 1, and 1 or more objects.")


@dataclass(frozen=True)
class Verdict:
    """What was found in a picture, against what was asked for.

    Attributes:
        requirements: what was asked for.
        correct: whether all of it is there.
        reasons: what is wrong, a line each.
        fit: share of the clauses that hold, from 0 to 1, plus up to a thousandth for sure detections: an order among
            pictures of one prompt.
        found: detections by name, the surest first.
    """

    requirements: Requirements
    correct: bool
    reasons: tuple[str, ...]
    fit: float
    found: Mapping[str, Sequence[Detection]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it is stored."""
        found = {name: [[*map(float, one.box), one.score] for one in objects] for name, objects in self.found.items()}
        told = {"correct": self.correct, "reasons": list(self.reasons), "fit": self.fit, "found": found}
        return {**self.requirements.to_dict(), **told}


def relative_positions(box: Sequence[float], other: Sequence[float], threshold: float = 0.1) -> set[str]:
    """Where a box `(left, top, right, bottom)` stands relative to another: none, one or two of `POSITIONS`."""
    boxes = np.array([box[:4], other[:4]], dtype=np.float64).reshape(2, 2, 2)
    centres, sizes = boxes.mean(axis=1), np.abs(boxes[:, 1] - boxes[:, 0])
    offset = centres[0] - centres[1]
    beyond = np.maximum(np.abs(offset) - threshold * sizes.sum(axis=0), 0) * np.sign(offset)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    right, down = beyond / np.linalg.norm(offset)
    sides = {"left of": -right, "right of": right, "above": -down, "below": down}
    return {side for side, share in sides.items() if share > 0.5}


class Judge:
    """Judges pictures by what a detector finds in them.

    Args:
        detector: finds objects.
        colours: names their colours.
        settings: see there.
        rows: what is asked for, `(file name or None, requirements)`, in place of captions; see `asked`.
    """

    def __init__(
        self,
        detector: Detector,
        colours: ColourNamer | None = None,
        settings: JudgeSettings | None = None,
        rows: Sequence[tuple[str | None, Requirements]] | None = None,
    ):
        self.detector, self.colours, self.settings = detector, colours or PixelColours(), settings or JudgeSettings()
        self.rows = rows

    def asked(self, names: Sequence[str], captions: Sequence[str | None] | None) -> list[Requirements]:
        """What is asked of pictures of these file names and captions.

        Of `rows`, a picture has the one of its file name or of its caption; rows that name neither belong to pictures
        in order. Without rows, captions are read by `read_caption`.

        Raises:
            ValueError: for pictures without any, and captions that name nothing that can be judged.
        """
        captions = captions or [None] * len(names)
        if self.rows is None:
            return [self._read(name, caption) for name, caption in zip(names, captions, strict=True)]
        by_key = {key: row for name, row in self.rows for key in (name, row.prompt) if key}
        found = [by_key.get(name, by_key.get(caption)) for name, caption in zip(names, captions, strict=True)]
        if not any(found) and len(self.rows) == len(names) and not any(name for name, _ in self.rows):
            return [row for _, row in self.rows]
        missing = [name for name, row in zip(names, found) if row is None]
        if missing:
            raise ValueError(
                f"`requirements` has no row for {count_and_name(missing)}, neither by `file_name` nor by `prompt`; "
                "give a row for each."
            )
        return found

    def _read(self, name: str, caption: str | None) -> Requirements:
        if caption is None:
            raise ValueError(f"`captions`: {name!r} has none; give it one, or requirements for all pictures.")
        with explained(repr(name), ValueError):
            return read_caption(caption, self.detector.names)

    def to_dict(self) -> dict[str, Any]:
        """All that its verdicts depend on."""
        return {"detector": self.detector.name, "colours": self.colours.name, **asdict(self.settings)}

    def __call__(self, pictures: Sequence[np.ndarray], asked: Sequence[Requirements]) -> list[Verdict]:
        """A verdict for each picture, uint8 `(H, W, 3)`, on what is asked of it.

        Raises:
            ValueError: where something is asked for that the detector does not know.
        """
        self.require_known(asked)
        verdicts = []
        for start in range(0, len(pictures), AT_ONCE):
            part, wanted = pictures[start : start + AT_ONCE], asked[start : start + AT_ONCE]
            found = self.detector(part, [requirements.names for requirements in wanted])
            verdicts += [self.verdict(*one) for one in zip(part, wanted, found, strict=True)]
        return verdicts

    def require_known(self, asked: Sequence[Requirements]) -> None:
        """Raise a `ValueError` where something is asked for that the detector does not know."""
        known = self.detector.names
        for requirements in asked:
            for name in requirements.names if known is not None else ():
                if name not in known:
                    raise ValueError(
                        f"`prompt` is {requirements.prompt!r}, which asks for {name!r}, and {self.detector.name} "
                        f"knows {', '.join(known)}; take a detector that knows it."
                    )

    def verdict(self, picture: np.ndarray, asked: Requirements, found: Mapping[str, Sequence[Detection]]) -> Verdict:
        """The verdict on a picture in which a detector found something."""
        s = self.settings
        threshold = s.counting_threshold if asked.category == "counting" else s.threshold
        objects = {name: kept(one, threshold, s.max_objects, s.max_overlap) for name, one in found.items()}
        objects = {name: one for name, one in objects.items() if one}
        reasons, matched, held, sure = [], [], 0, []
        for clause in asked.include:
            best = objects.get(clause.name, [])[: clause.count]
            wrong = self._wrong(picture, clause, best, matched)
            matched.append(best if wrong is None else None)
            held += wrong is None
            reasons += [] if wrong is None else [wrong]
            sure += [one.score for one in best] + [0.0] * (clause.count - len(best))
        for clause in asked.exclude:
            count = len(objects.get(clause.name, []))
            held += count < clause.count
            reasons += [f"expected {clause.name}<{clause.count}, found {count}"] if count >= clause.count else []
        fit = held / (len(asked.include) + len(asked.exclude)) + 1e-3 * float(np.mean(sure or [0.0]))
        return Verdict(asked, not reasons, tuple(reasons), fit, objects)

    def _wrong(self, picture: np.ndarray, clause: Clause, best: list[Detection], matched: list) -> str | None:
        """What is wrong with the surest objects of a clause."""
        if len(best) < clause.count:
            return f"expected {clause.name}>={clause.count}, found {len(best)}"
        if clause.colour is not None:
            colours = self.colours(picture, best, clause.name)
            if colours.count(clause.colour) < clause.count:
                counted = ", ".join(f"{colours.count(colour)} {colour}" for colour in dict.fromkeys(colours))
                return f"expected {clause.colour} {clause.name}>={clause.count}, found {counted}"
        if clause.position is not None:
            relation, target = clause.position
            if matched[target] is None:
                return f"no target for {clause.name} to be {relation}"
            for one in best:
                for other in matched[target]:
                    sides = relative_positions(one.box, other.box, self.settings.position_threshold)
                    if relation not in sides:
                        told = " and ".join(sorted(sides)) or "beside none of these sides"
                        return f"expected {clause.name} {relation} target, found {told}"
        return None


def kind_of(reason: str) -> str:
    """A reason without its names: `missing`, `too many`, `colour`, `position`; `no target` follows from another."""
    if reason.startswith("no target"):
        return "no target"
    if "target, found" in reason:
        return "position"
    if "<" in reason:
        return "too many"
    return "missing" if reason.rsplit(" ", 1)[-1].isdecimal() else "colour"


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Shares of correct pictures, by category, and their mean over categories as GenEval's overall score."""
    by_category: dict[str, list[bool]] = {}
    for verdict in verdicts:
        by_category.setdefault(verdict.requirements.category, []).append(verdict.correct)
    order = [*CATEGORIES, *sorted(set(by_category) - set(CATEGORIES))]
    shares = {
        name: {"correct": sum(by_category[name]), "count": len(by_category[name])}
        for name in order
        if name in by_category
    }
    means = [entry["correct"] / entry["count"] for entry in shares.values()]
    return {"overall": float(np.mean(means)), "categories": shares}
