"""The process of one cell: `python -m brickwork.eval.studies.core.child FOLDER`, as `run_cells` starts it."""

import importlib
import sys
from pathlib import Path

from brickwork.eval.studies.core.cells import STOPPED, TASK, Stopped, keep
from brickwork.files import read_json


def main(arguments: list[str] | None = None) -> int:
    """Compute the cell that a folder's `task.json` describes, and keep its result there; the exit status."""
    folder = Path((arguments or sys.argv[1:])[0])
    task = read_json(folder / TASK, "task of a cell")
    module, _, function = task["run"].partition(":")
    try:
        run, head = getattr(importlib.import_module(module), function), task["head"]
        keep(folder, head, lambda: run(folder, **head["identity"], **task["settings"]))
    except Stopped:
        return STOPPED
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
