"""`brickwork battle`: backbones under equal conditions; light, so that `--help` is quick."""

import argparse
from pathlib import Path


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = (
        "Train networks of equal size on the same pictures with the same objective, a few learning rates and several "
        "seeds, and write tables at equal images, operations and time. The same command goes on where it was stopped."
    )
    parser.epilog = (
        "examples:\n"
        "  brickwork battle -o runs/battle --dry-run\n"
        "  brickwork battle -o runs/battle --jobs 2\n"
        "  brickwork battle -o runs/small --jobs 2 run.total_images=4000 battle.networks='[lego, dit]'\n"
        "  brickwork battle --report-only runs/battle"
    )
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument("-o", "--output", type=Path, help="folder of the battle")
    parser.add_argument("--config", type=Path, help="YAML file (default: training/configs/battle.yaml)")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")
    folder.add_argument(
        "--report-only", type=Path, metavar="FOLDER", help="write the report of a battle anew, finished or not"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values over the file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fight, say what would be fought, or report."""
    if args.report_only is not None:
        from brickwork.eval.studies.core import StudyFolder, write_report
        from brickwork.training.studies.battle.pages import STUDY, report

        write_report(StudyFolder.read(args.report_only, STUDY), report)
        return 0
    if args.output is None:
        raise ValueError("`--output` was not given; name the folder of the battle, such as -o runs/battle.")
    if args.jobs < 1:
        raise ValueError(f"`--jobs` is {args.jobs}; give at least 1.")
    from brickwork.training.config.config import load_config
    from brickwork.training.studies.battle.battle import battle
    from brickwork.training.studies.battle.config import CONFIG, BattleConfig

    battle(load_config(args.config or CONFIG, args.overrides, BattleConfig), args.output, args.jobs, args.dry_run)
    return 0
