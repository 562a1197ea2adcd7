"""What a judge sees of errors that are planted in scenes: precision and recall by kind.

    python -m brickwork.eval.studies.planted_errors --detector shapes
    python -m brickwork.eval.studies.planted_errors --detector region-head:region-head --new triangle
    python -m brickwork.eval.studies.planted_errors --detector region-head:region-head --colours avatar-attributes \\
        --avatars data/avatars/held_out_seeds.parquet --new micah toon-head

Scenes of coloured shapes (`brickwork.eval.judge.scenes`) or of avatars with coloured hair, a fifth of them right, the
others with one shape dropped, moved, recoloured or doubled. A kind of error is seen where a verdict gives a reason of
that kind. With `--new`, scenes of other names and scenes with one of these are told apart. Several detectors (heads
of several seeds) are put together, each with scenes of its own.
"""

import argparse
import copy
import math
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np

from brickwork.errors import no_unknown
from brickwork.eval.commands.judge import add_detector, make_judge
from brickwork.eval.judge.avatar_scenes import AvatarScenes
from brickwork.eval.judge.scenes import ERRORS, SHAPES, make_scene, plant
from brickwork.eval.judge.verdicts import Judge, kind_of
from brickwork.eval.report.blocks import Table
from brickwork.eval.report.numbers import number
from brickwork.eval.studies import core
from brickwork.eval.studies.core import mean_and_spread

REASONS = {"dropped": "missing", "moved": "position", "recoloured": "colour", "doubled": "too many"}


class ShapeScenes:
    """Scenes of coloured shapes, as `AvatarScenes` are of avatars."""

    names = SHAPES
    make, plant = staticmethod(make_scene), staticmethod(plant)


def scores_of(
    judge: Judge, count: int, seed: int, size: int = 64, scenes=ShapeScenes, new: Sequence[str] = (),
    with_new: bool = False,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Precision and recall of each of `ERRORS`, and of `any` error, over so many scenes; NaN for none seen.

    Args:
        judge: the judge.
        count: of the scenes.
        seed: of the scenes.
        size: of the pictures.
        scenes: `ShapeScenes`, or `AvatarScenes`.
        new: names that scenes are without, or
        with_new: have one of.
    """
    random = np.random.default_rng(seed)
    kinds = [(None, *ERRORS)[i % 5] for i in range(count)]
    old = [name for name in scenes.names if name not in new]
    made = [scenes.make(random, [random.choice(list(new)), random.choice(old)] if with_new else old) for _ in kinds]
    shown = [scene if kind is None else scenes.plant(scene, kind, random) for scene, kind in zip(made, kinds)]
    verdicts = judge([scene.draw(size) for scene in shown], [scene.asked for scene in made])
    reasons = [{kind_of(reason) for reason in verdict.reasons} for verdict in verdicts]
    planted = {error: [kind == error for kind in kinds] for error in ERRORS}
    seen = {error: [REASONS[error] in found for found in reasons] for error in ERRORS}
    planted["any"], seen["any"] = [kind is not None for kind in kinds], [not verdict.correct for verdict in verdicts]
    return {error: _precision_and_recall(planted[error], seen[error]) for error in planted}


def _precision_and_recall(planted: Sequence[bool], seen: Sequence[bool]) -> tuple[float, float]:
    both = sum(a and b for a, b in zip(planted, seen))
    return both / sum(seen) if any(seen) else float("nan"), both / sum(planted) if any(planted) else float("nan")


def table_of(judges: Sequence[Judge], count: int, seeds: Sequence[int], **how) -> Table:
    """Mean and spread over seeds of what `scores_of` gives, of seeds that saw any; judges take turns."""
    runs = [scores_of(judges[i % len(judges)], count, seed, **how) for i, seed in enumerate(seeds)]

    def told(which: int, error: str) -> str:
        figures = [run[error][which] for run in runs if not math.isnan(run[error][which])]
        return number(*mean_and_spread(figures)) if figures else "–"

    columns = {"error": str, "precision": partial(told, 0), "recall": partial(told, 1)}
    shown = f"{', '.join(judge.detector.name for judge in judges)}, {len(seeds)} × {count} scenes"
    if how.get("new"):
        shown += f", {'with one of' if how['with_new'] else 'without'} {', '.join(how['new'])}"
    return core.table_of(list(runs[0]), columns, f"{shown}.")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_detector(parser, "--detector", required=True, nargs="+")
    parser.add_argument("--avatars", help="pictures of single avatars; scenes of these (default: of shapes)")
    parser.add_argument("--names", default="label", metavar="ATTRIBUTE", help="what names avatars (label, the style)")
    parser.add_argument(
        "--new", nargs="+", default=[], metavar="NAME", help="names that the detector was not trained on"
    )
    parser.add_argument("--size", type=int, default=64, help="of the pictures (default: 64)")
    parser.add_argument("--count", type=int, default=250, help="scenes of each seed (default: 250)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    args = parser.parse_args(arguments)
    if args.avatars is None and args.names != "label":
        raise ValueError(f"`--names` is {args.names!r}, which is of avatars; give `--avatars` too.")
    scenes = ShapeScenes if args.avatars is None else AvatarScenes(args.avatars, args.names)
    no_unknown("new", args.new, scenes.names, "the scenes")
    judges = []
    for detector in args.detector:
        one = copy.copy(args)
        one.detector = detector
        judges.append(make_judge(one))
    for with_new in (False, True) if args.new else (False,):
        how = {"size": args.size, "scenes": scenes, "new": args.new, "with_new": with_new}
        if args.new:
            print(f"{'with one of' if with_new else 'without'} {', '.join(args.new)}")
        print(table_of(judges, args.count, args.seeds, **how).text(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
