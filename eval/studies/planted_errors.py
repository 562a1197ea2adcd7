"""What a judge sees of errors that are planted in scenes: precision and recall by kind.

    python -m brickwork.eval.studies.planted_errors --detector shapes
    python -m brickwork.eval.studies.planted_errors --detector region-head:region-head

Scenes of coloured shapes (`brickwork.eval.judge.scenes`), a fifth of them right, the others with one shape dropped,
moved, recoloured or doubled. A kind of error is seen where a verdict gives a reason of that kind.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np

from brickwork.eval.commands.judge import add_detector, make_judge
from brickwork.eval.judge.scenes import ERRORS, make_scene, plant
from brickwork.eval.judge.verdicts import Judge, kind_of
from brickwork.eval.report.blocks import Table
from brickwork.eval.report.numbers import number
from brickwork.eval.studies import core
from brickwork.eval.studies.core import mean_and_spread

REASONS = {"dropped": "missing", "moved": "position", "recoloured": "colour", "doubled": "too many"}


def scores_of(judge: Judge, count: int, seed: int, size: int = 64) -> dict[str, tuple[float, float]]:
    """Precision and recall of each of `ERRORS`, and of `any` error, over so many scenes; NaN for none seen."""
    random = np.random.default_rng(seed)
    kinds = [(None, *ERRORS)[i % 5] for i in range(count)]
    scenes = [make_scene(random) for _ in kinds]
    shown = [scene if kind is None else plant(scene, kind, random) for scene, kind in zip(scenes, kinds)]
    verdicts = judge([scene.draw(size) for scene in shown], [scene.asked for scene in scenes])
    reasons = [{kind_of(reason) for reason in verdict.reasons} for verdict in verdicts]
    planted = {error: [kind == error for kind in kinds] for error in ERRORS}
    seen = {error: [REASONS[error] in found for found in reasons] for error in ERRORS}
    planted["any"], seen["any"] = [kind is not None for kind in kinds], [not verdict.correct for verdict in verdicts]
    return {error: _precision_and_recall(planted[error], seen[error]) for error in planted}


def _precision_and_recall(planted: Sequence[bool], seen: Sequence[bool]) -> tuple[float, float]:
    both = sum(a and b for a, b in zip(planted, seen))
    return both / sum(seen) if any(seen) else float("nan"), both / sum(planted) if any(planted) else float("nan")


def table_of(judge: Judge, count: int, seeds: Sequence[int]) -> Table:
    """Mean and spread over seeds of what `scores_of` gives."""
    runs = [scores_of(judge, count, seed) for seed in seeds]

    def told(which: int, error: str) -> str:
        return number(*mean_and_spread([run[error][which] for run in runs]))

    columns = {"error": str, "precision": partial(told, 0), "recall": partial(told, 1)}
    return core.table_of(list(runs[0]), columns, f"{judge.detector.name}, {len(seeds)} × {count} scenes.")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_detector(parser, "--detector", required=True)
    parser.add_argument("--count", type=int, default=250, help="scenes of each seed (default: 250)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    args = parser.parse_args(arguments)
    print(table_of(make_judge(args), args.count, args.seeds).text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
