"""The avatar data set: DiceBear's styles, every part drawn by us, so that all attributes of a picture are known.

`brickwork data build avatars` writes three Parquet files: pictures to train on, pictures with combinations of
attributes that no training picture has, and pictures of other seeds. With `--scenes` each picture has several avatars,
with `--pairs` each has the same avatar in another style beside it.

Build avatars of known attributes with DiceBear's styles: about 5 ms a picture at 128 pixels. With --scenes, pictures
of one to five avatars, in several shapes, with their boxes. With --pairs, the same avatar in two styles.

example: brickwork data build avatars --output data/avatars --count 40000 --size 64
         brickwork data build avatars --styles micah bottts --where mood=happy,sad
         brickwork data build avatars --scenes 20000 --output data/scenes
         brickwork data build avatars --pairs 10000 --output data/pairs
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from brickwork import options
from brickwork.training.data.build.attributes import table
from brickwork.training.data.build.avatar_files import CARD, MAKER, SPLITS, Wanted, open_set, write_avatars
from brickwork.training.data.build.clips import build_clips
from brickwork.training.data.build.pairs import build_pairs
from brickwork.training.data.build.scenes import build_scenes


def build_avatars(
    output: str | Path, *, packages: str | Path | None = None, overwrite: bool = False, **asked: Any
) -> Path:
    """Builds the data set in the folder `output` and returns that; the same bytes for the same arguments and versions.

    Args:
        packages, overwrite: see `open_set`.
        asked: see `Wanted`.

    Raises `ValueError` for what `Wanted` and `open_set` refuse.
    """
    wanted = Wanted(**asked)
    count, held_out, size = wanted.count, wanted.held_out, wanted.size
    told = [
        f"Made by `{MAKER}`: {count + 2 * held_out} pictures of {size}×{size} pixels, seed {wanted.seed}; DiceBear "
        "9.4.3.",
        "",
        f"- `{SPLITS['train']}`: {count} pictures",
        f"- `{SPLITS['combination']}`: {held_out} whose `combination` is in no training picture",
        f"- `{SPLITS['seed']}`: {held_out} of other seeds, with the training pictures' combinations",
    ]
    with open_set(output, wanted, packages, overwrite, "Avatars", told) as (folder, hand, drawn):
        for split, name in SPLITS.items():
            write_avatars(folder / name, split, wanted, hand, drawn)
    return Path(output)


# --- the command ----------------------------------------------------------------------------------------------------


def configure_parser(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("data/avatars"), help="a folder (default: %(default)s)"
    )
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument("-n", "--count", type=int, default=10000, help="training pictures (default: %(default)s)")
    pictures.add_argument(
        "--scenes", type=int, metavar="N", help="build N training pictures of several avatars instead"
    )
    pictures.add_argument("--clips", type=int, metavar="N", help="build N training clips of moving avatars instead")
    pictures.add_argument("--pairs", type=int, metavar="N", help="build N training pairs of two styles instead")
    parser.add_argument("--held-out", type=int, default=1000, help="in each held-out file (default: %(default)s)")
    parser.add_argument(
        "--size",
        type=int,
        default=128,
        help="side of the pictures in pixels, of scenes the root of their area (default: %(default)s)",
    )
    parser.add_argument(
        "--aspects", type=float, nargs="+", metavar="A", help="of scenes, width over height (default: 8 from 0.5 to 2)"
    )
    parser.add_argument("--styles", nargs="+", metavar="STYLE", help=f"of {', '.join(table()['styles'])}")
    parser.add_argument("--where", nargs="+", default=[], metavar="ATTRIBUTE=VALUE,…", help="draw these values only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", type=Path, metavar="DIR", help="keep the npm packages there, for the next time")
    options.add_common(parser, "--overwrite")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    where = {}
    for given in args.where:
        attribute, equals, values = given.partition("=")
        if not equals or not values:
            raise ValueError(f"--where has {given!r}; write attribute=value, or attribute=value,value.")
        where[attribute] = values.split(",")
    several = {"scenes": build_scenes, "clips": build_clips, "pairs": build_pairs}
    given = {name: getattr(args, name) for name in several if getattr(args, name) is not None}
    build, count = next(((several[name], number) for name, number in given.items()), (build_avatars, args.count))
    if args.aspects and args.scenes is None:
        raise ValueError(f"--aspects is {args.aspects}, but other pictures than scenes are square; add --scenes.")
    asked = {name: getattr(args, name) for name in ("held_out", "size", "styles", "seed", "packages", "overwrite")}
    asked |= {"aspects": args.aspects} if args.aspects else {}
    output = build(args.output, count=count, where=where, **asked)
    print(f"{', '.join(SPLITS.values())} in {output}; designers and licences in {output / CARD}")
    return 0
