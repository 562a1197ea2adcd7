"""`brickwork ablation`, `battle`, `convbn` and `search-blocks`: their arguments; light, so that `--help` is quick."""

import argparse
from pathlib import Path

from brickwork import options

CONVBN_NETWORKS = ("d-emo-s-2", "u-emo-s")
_CONVS = (10.0, 100.0, 300.0, 1000.0)
CONVBN_RATES = {
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2),
    "sgd": (0.01, 0.03, 0.1, 0.3),
    "sgd-convs": _CONVS,
    "sgd-convs-turned": _CONVS,
}


def configure_ablation(parser: argparse.ArgumentParser) -> None:
    """Train one configuration with a few keys changed at a time, over several seeds, at equal images or seconds, and
    tell by the held-out loss which changes exceed the spread. The same command goes on where it was stopped.

    examples:
      brickwork ablation ablation_growth -o runs/growth --dry-run
      brickwork ablation my-study.yaml -o runs/mine ablation.seeds='[0, 1]' run.total_images=4000
    """
    parser.add_argument("study", help="YAML file with `variants`, or the name of one that ships")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the study")
    options.add_common(parser, "--jobs", "--dry-run", "overrides")
    parser.set_defaults(run=run_ablation)


def run_ablation(args: argparse.Namespace) -> int:
    """Train the variants, or say what would be trained."""
    from brickwork.training.config.config import load_config
    from brickwork.training.studies import ablation

    config = load_config(args.study, args.overrides, ablation.AblationConfig)
    done = ablation.run_ablation(config, args.output, args.dry_run, args.jobs)
    return 0 if done or args.dry_run else 1


def configure_battle(parser: argparse.ArgumentParser) -> None:
    """Train networks of equal size on the same pictures with the same objective, a few learning rates and several
    seeds, and write tables at equal images, operations and time. The same command goes on where it was stopped.

    examples:
      brickwork battle -o runs/battle --dry-run
      brickwork battle -o runs/battle --jobs 2
      brickwork battle -o runs/small --jobs 2 run.total_images=4000 battle.networks='[lego, dit]'
      brickwork battle --report-only runs/battle
    """
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument("-o", "--output", type=Path, help="folder of the battle")
    parser.add_argument("--config", type=Path, help="YAML file (default: training/configs/battle.yaml)")
    options.add_common(parser, "--jobs", "--dry-run", "overrides")
    folder.add_argument(
        "--report-only", type=Path, metavar="FOLDER", help="write the report of a battle anew, finished or not"
    )
    parser.set_defaults(run=run_battle)


def run_battle(args: argparse.Namespace) -> int:
    """Fight, say what would be fought, or report."""
    if args.report_only is not None:
        from brickwork.eval.studies.core import StudyFolder, write_report
        from brickwork.training.studies.battle_report import STUDY, report

        write_report(StudyFolder.read(args.report_only, STUDY), report)
        return 0
    if args.output is None:
        raise ValueError("`--output` was not given; name the folder of the battle, such as -o runs/battle.")
    options.check_at_least(args, 1, "jobs")
    from brickwork.training.config.config import load_config
    from brickwork.training.studies.battle import CONFIG, BattleConfig, battle

    battle(load_config(args.config or CONFIG, args.overrides, BattleConfig), args.output, args.jobs, args.dry_run)
    return 0


def configure_convbn(parser: argparse.ArgumentParser) -> None:
    """The four modes of `set_convbn_mode` (arXiv 2305.11624) in fine-tuning. First what a step costs in each: peak
    memory and time, in turn, round by round. Then a small network is pretrained on one group of pictures, or one of
    yours is taken, and fine-tuned on another group from the same weights with the same pictures and noise, in each
    mode at several learning rates. The same command again goes on with what is missing.

    examples (values of the pretraining come first):
      brickwork convbn -o runs/convbn
      brickwork convbn data.source=my-pictures data.classes='[cats]' --target dogs -o runs/convbn-dogs
      brickwork convbn --pretrained runs/tiny-u-emo/pipeline --rates sgd 0.1 1 --only curves -o runs/convbn-u
      brickwork convbn run.batch_size=32 run.mixed_precision=bf16 --curves d-emo-s-2 --steps 60 \\
          --device cuda --dtype bfloat16 --batch 64 -o runs/convbn-gpu
    """
    options.add_common(parser, "overrides", help="values over training/configs/convbn.yaml, for pretraining and data")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("convbn"), help="folder for convbn.json, .md and .png (convbn)"
    )
    parser.add_argument("--only", choices=("cost", "curves"), help="one half of the study")
    options.add_common(parser, "--device")
    cost = parser.add_argument_group("what a step costs")
    cost.add_argument(
        "--networks",
        nargs="+",
        default=CONVBN_NETWORKS,
        metavar="NAME",
        help=f"presets ({', '.join(CONVBN_NETWORKS)})",
    )
    options.add_common(cost, "--batch-size", default=4, dest="batch")
    cost.add_argument("--size", type=int, help="side of the images or latents (default: the training size)")
    cost.add_argument("--rounds", type=int, default=5, help="how often each mode is timed (default: 5)")
    cost.add_argument("--dtype", default="float32", help="float32 (default), or bfloat16 or float16 by autocast")
    curves = parser.add_argument_group("fine-tuning")
    curves.add_argument(
        "--curves", nargs="+", default=("tiny-d-emo",), metavar="NAME", help="presets to pretrain (tiny-d-emo)"
    )
    curves.add_argument("--pretrained", type=Path, metavar="FOLDER", help="in their place, a pipeline or a model")
    curves.add_argument(
        "--target", nargs="+", default=["Animals & Nature"], metavar="CLASS", help="classes to fine-tune on"
    )
    curves.add_argument(
        "--rates",
        nargs="+",
        action="append",
        metavar=("OPTIMISER", "RATE"),
        help="how to learn, and its learning rates: adamw; sgd; sgd-convs, where the convolutions and their "
        "BatchNorms alone learn; sgd-convs-turned, the same after rescaling |γ|/σ to its inverse, with the same "
        "function; can be repeated (default: "
        + ", ".join(f"{name} {' '.join(f'{rate:g}' for rate in rates)}" for name, rates in CONVBN_RATES.items())
        + ")",
    )
    curves.add_argument("--steps", type=int, default=60, help="of fine-tuning (default: 60)")
    parser.set_defaults(run=run_convbn)


def run_convbn(args: argparse.Namespace) -> int:
    """Measure, fine-tune, and print the tables."""
    from brickwork.training.studies.convbn import compare_modes

    args.rates = args.rates or [(name, *rates) for name, rates in CONVBN_RATES.items()]
    print(compare_modes(args))
    return 0


def configure_search_blocks(parser: argparse.ArgumentParser) -> None:
    """Which blocks, widths and depths for a UNet: stage-wise supernets learn without labels (BossNAS, arXiv
    2103.12424), their choices are rated, and the best network within a budget of operations is written as a
    configuration for `brickwork train --config`. The same command goes on where it was stopped.

    examples:
      brickwork search-blocks block_space -o runs/blocks --dry-run
      brickwork search-blocks my-space.yaml -o runs/blocks space.budget=5.0e+8 search.steps=2000
    """
    parser.add_argument("space", help="YAML file of the space, or the name of one that ships (block_space)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the search")
    options.add_common(parser, "--dry-run", "overrides")
    parser.set_defaults(run=run_search_blocks)


def run_search_blocks(args: argparse.Namespace) -> int:
    """Search, or say what would be searched."""
    from brickwork.training.config.config import load_config
    from brickwork.training.studies.block_search import SearchConfig, search_blocks

    search_blocks(load_config(args.space, args.overrides, SearchConfig), args.output, args.dry_run)
    return 0
