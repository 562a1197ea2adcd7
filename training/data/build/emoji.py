"""The emoji data set: 7,013 captioned drawings in two styles, built from three public packages.

`brickwork data build emoji` takes Twemoji's SVGs, Microsoft's Fluent Emoji 3D and the names of emoji-datasource, draws
every emoji on white and writes one Parquet file in the Hugging Face image layout with its attribution beside it. The
packages are pinned by version and digest, so everyone who builds the set has the same pictures.

Build the emoji data set (7,013 captioned drawings in two styles, about 23 MB) from three npm packages, pinned by
version and digest. Takes 42 MB of downloads and about two minutes.
"""

import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import tarfile
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm.contrib.concurrent import thread_map

from brickwork import options
from brickwork.files import check_file, filled, new_files, write_file
from brickwork.training.data.build.codepoints import SKIN_TONES, base_codepoints, plain_codepoints
from brickwork.training.data.build.svg import rasterise, require_rasteriser


@dataclass(frozen=True)
class Package:
    """One pinned npm package: `sha512` is the tarball's digest in hexadecimal, `members` the files we read in it."""

    name: str
    version: str
    sha512: str
    members: str

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def tarball(self) -> str:
        """The file name `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def fetch_package(package: Package, folder: Path) -> Path:
    """Path of the package's tarball in `folder`, downloaded with the user's own npm if it is not there yet.

    Raises `ValueError` if npm is missing or fails, or if the file's digest is not the pinned one.
    """
    path = folder / package.tarball
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".npm-") as temporary:
            downloaded = _npm_pack(package, Path(temporary))
            _check_digest(package, downloaded)
            write_file(path, downloaded.rename)
    else:
        _check_digest(package, path)
    return path


def _npm_pack(package: Package, folder: Path) -> Path:
    fix = (
        f"Or download the tarball {package.tarball} of {package.spec} where there is a network "
        f"(`npm pack {package.spec}`) and pass its folder with --packages DIR."
    )
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"npm, which downloads {package.spec}, was not found on PATH: install Node.js. {fix}")
    command = [npm, "pack", package.spec, "--pack-destination", str(folder), "--ignore-scripts", "--loglevel=error"]
    result = subprocess.run(command, capture_output=True, text=True)
    path = folder / package.tarball
    if result.returncode != 0 or not path.exists():
        said = " ".join((result.stderr or result.stdout).split())[:300] or "it said nothing"
        raise ValueError(f"`npm pack {package.spec}` failed with exit status {result.returncode} ({said}). {fix}")
    return path


def _check_digest(package: Package, path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").hexdigest()
    if digest != package.sha512:
        raise ValueError(
            f"{path} is not {package.spec}: its sha512 is {digest[:16]}…, but {package.sha512[:16]}… is needed. "
            "Delete the file and run the command again to download it anew."
        )


def read_members(package: Package, tarball: Path) -> dict[str, bytes]:
    """The files of a tarball that `package.members` matches, keyed by the pattern's group, sorted by file name.

    They are read in place: nothing is unpacked, so no path inside the archive can reach the disk.
    """
    found = {}
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            match = re.fullmatch(package.members, member.name)
            if match and member.isfile():
                found[member.name] = (match[1], archive.extractfile(member).read())
    if not found:
        raise ValueError(f"{tarball} has no file like {package.members}: is it really {package.spec}?")
    return dict(found[name] for name in sorted(found))


GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
STYLES = ("fluent", "twemoji")
MIN_SIZE, MAX_SIZE = 16, 1024
MAKER = "brickwork data build emoji"
CARD = Path(__file__).with_name("emoji.md.jinja")
ROWS_PER_GROUP = 500  # of the Parquet file: small enough that one picture can be read without the rest


@dataclass(frozen=True)
class Sources:
    """The three packages the set is made of."""

    twemoji: Package
    fluent: Package
    names: Package


SOURCES = Sources(
    twemoji=Package(
        "@twemoji/svg",
        "15.0.0",
        "6523de7f607a9c16989df81d4db032e23816f79a3ba62db13c6c06094f96313c"
        "68ec9e81d6530f4d6c12abfc13ba232af8dd24850f7409cbd8a75c05a10a68ff",
        r"package/([0-9a-f-]+)\.svg",
    ),
    fluent=Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "5a5ab69554ad4e7afc043a48274a449d328ee0bb83c71a931214ef46d0f50cb4"
        "45d267bba207914232a87a10c75ee549d9069e720979c1106feb4954006de1ee",
        r"package/assets/([0-9a-f-]+)\.webp",
    ),
    names=Package(
        "emoji-datasource",
        "16.0.0",
        "fea1caa8ae4daf7fbcce180eea41e6178dc59b90bc1cd9f401a151229830f071"
        "77fae17455f73c8e02c8d59412e5b6b5bc1ce4b12f0d0428c77a3c0b6f60ff4a",
        r"package/(emoji)\.json",
    ),
)


# --- which drawings there are ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """One row to be: `source` is an SVG (twemoji) or a WebP picture (fluent); `label` indexes `GROUPS`."""

    style: str
    codepoints: str
    text: str
    label: int
    subgroup: str
    source: bytes


def emoji_rows(emoji: Sequence[dict]) -> list[tuple[str, str, int, str]]:
    """(codepoints, text, label, subgroup) of every emoji and skin-tone variant in emoji-datasource, in its order."""
    rows = []
    for entry in emoji:
        if entry["category"] not in GROUPS:  # the bare skin tones and hair pieces
            continue
        label, subgroup, name = GROUPS.index(entry["category"]), entry["subcategory"], entry["name"].lower()
        rows.append((plain_codepoints(entry["unified"]), name, label, subgroup))
        for tones, variant in entry.get("skin_variations", {}).items():
            spoken = ", ".join(dict.fromkeys(SKIN_TONES[tone] for tone in tones.lower().split("-")))
            rows.append((plain_codepoints(variant["unified"]), f"{name}: {spoken}", label, subgroup))
    return rows


def list_drawings(twemoji: dict[str, bytes], fluent: dict[str, bytes], emoji: Sequence[dict]) -> list[Drawing]:
    """Every emoji that has a name and a picture, in the order of the names, `fluent` before `twemoji`."""
    pictures = {}
    for style, files in zip(STYLES, (fluent, twemoji)):
        for codepoints, source in files.items():
            # Fluent has two emoji in both spellings, with and without variation selector: the first file counts.
            pictures.setdefault((style, plain_codepoints(codepoints)), source)
    return [
        Drawing(style, codepoints, text, label, subgroup, pictures[style, codepoints])
        for codepoints, text, label, subgroup in emoji_rows(emoji)
        for style in STYLES
        if (style, codepoints) in pictures
    ]


# --- drawing --------------------------------------------------------------------------------------------------------


def draw(drawing: Drawing, size: int) -> bytes:
    """The drawing on white, `size`×`size` RGB, as WebP (lossy, quality 80)."""
    png_or_webp = rasterise(drawing.source.decode(), size) if drawing.style == "twemoji" else drawing.source
    with Image.open(io.BytesIO(png_or_webp)) as opened:
        picture = opened.convert("RGBA")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    encoded = io.BytesIO()
    page.convert("RGB").save(encoded, "WEBP", quality=80, method=6)
    return encoded.getvalue()


def take_sample(drawings: Sequence[Drawing]) -> list[Drawing]:
    """About a hundred drawings for tests, in both styles: 24 smileys, 3 of each other group, one hand in 6 tones."""
    twins = [pair for pair in zip(drawings, drawings[1:]) if pair[0].codepoints == pair[1].codepoints]
    chosen = []
    for label in range(len(GROUPS)):
        group = [pair for pair in twins if pair[0].label == label]
        count = min(24 if label == 0 else 3, len(group))
        chosen += [group[index * len(group) // count] for index in range(count)]
    chosen += [pair for pair in twins if base_codepoints(pair[0].codepoints) == "1f44b" and pair not in chosen]
    return [drawing for pair in chosen for drawing in pair]


# --- writing --------------------------------------------------------------------------------------------------------


def write_parquet(path: Path, drawings: Sequence[Drawing], pictures: Sequence[bytes]) -> None:
    """One Parquet file in the Hugging Face image layout; the schema's metadata name the features and the classes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "image": {"bytes": picture, "path": f"{drawing.style}/{drawing.codepoints}.webp"},
            **vars(drawing),  # of which the schema takes all but the source
        }
        for drawing, picture in zip(drawings, pictures, strict=True)
    ]
    table = pa.Table.from_pylist(rows, schema=_schema())
    # The pictures are compressed already.
    pq.write_table(table, path, compression="none", row_group_size=ROWS_PER_GROUP)


def _schema():
    from datasets import ClassLabel, Features, Image, Value

    text = Value("string")
    return Features(
        image=Image(), text=text, style=text, label=ClassLabel(names=list(GROUPS)), subgroup=text, codepoints=text
    ).arrow_schema


def _is_ours(path: Path) -> bool:
    """Whether a file is one that an earlier build wrote."""
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        return pq.read_schema(path).equals(_schema(), check_metadata=True)
    return f"made by `{MAKER}`." in path.read_text(encoding="utf-8")


def attribution(file_name: str, drawings: Sequence[Drawing], size: int, sources: Sources = SOURCES) -> str:
    """The licences and sources of a built file, as Markdown; whoever passes the pictures on passes this on too."""
    count = {style: sum(drawing.style == style for drawing in drawings) for style in STYLES}
    return filled(CARD, file=file_name, size=size, maker=MAKER, count=count, sources=sources)


# --- the command ----------------------------------------------------------------------------------------------------


def build_emoji(
    output: str | Path,
    *,
    packages: str | Path | None = None,
    size: int = 256,
    sample: bool = False,
    overwrite: bool = False,
    sources: Sources = SOURCES,
) -> Path:
    """Builds the data set and returns the path of its Parquet file.

    Args:
        output: folder for `train.parquet` (or `sample.parquet`) and `ATTRIBUTION.md`; made if missing.
        packages: folder that holds the packages' tarballs; those missing are downloaded into it. None: downloaded
            into a temporary folder.
        size: side of the pictures in pixels, 16 to 1024. The Fluent pictures are 256 wide at the source.
        sample: only the hundred drawings of `take_sample`.
        overwrite: replace files of these names.

    Raises `ValueError` for a size out of range, existing files, a missing resvg-py or npm, and foreign tarballs.
    """
    output = Path(output)
    target = output / ("sample.parquet" if sample else "train.parquet")
    notice = output / "ATTRIBUTION.md"
    _check_request(output, (target, notice), size, overwrite)
    output.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory(prefix="brickwork-emoji-") as temporary:
        drawings = load_drawings(Path(packages or temporary), sources)
    if sample:
        drawings = take_sample(drawings)
    random.Random(0).shuffle(drawings)  # so that any part of the file is a fair sample
    bar = {"desc": "drawing", "unit": "emoji"}
    pictures = thread_map(partial(draw, size=size), drawings, max_workers=os.cpu_count(), **bar)

    with new_files(target, notice) as (built, written):
        write_parquet(built, drawings, pictures)
        written.write_text(attribution(target.name, drawings, size, sources), encoding="utf-8")
    return target


def _check_request(output: Path, files: Sequence[Path], size: int, overwrite: bool) -> None:
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size {size} is out of range: choose {MIN_SIZE} to {MAX_SIZE} pixels")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file: choose a folder")
    for path in files:
        check_file(path, _is_ours, overwrite=overwrite)
    require_rasteriser()


def load_drawings(folder: Path, sources: Sources = SOURCES) -> list[Drawing]:
    """All drawings of the packages, whose tarballs lie in `folder` or are downloaded into it."""
    folder.mkdir(parents=True, exist_ok=True)
    twemoji, fluent, names = (
        read_members(package, fetch_package(package, folder))
        for package in (sources.twemoji, sources.fluent, sources.names)
    )
    return list_drawings(twemoji, fluent, json.loads(names["emoji"]))


def configure_parser(parser: ArgumentParser) -> None:
    specs = " ".join(package.spec for package in (SOURCES.twemoji, SOURCES.fluent, SOURCES.names))
    parser.epilog = (
        "examples:\n"
        "  brickwork data build emoji --output data/emoji\n"
        "  brickwork data build emoji --packages downloads/ --size 64\n"
        "where npm has no network, fetch the packages elsewhere and pass their folder with --packages:\n"
        f"  npm pack {specs}"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("data/emoji"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--packages",
        type=Path,
        metavar="DIR",
        help="folder with the packages' tarballs; missing ones are downloaded into it with npm",
    )
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels (default: %(default)s)")
    parser.add_argument("--sample", action="store_true", help="build only about a hundred drawings, for tests")
    options.add_common(parser, "--overwrite")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    path = build_emoji(
        args.output, packages=args.packages, size=args.size, sample=args.sample, overwrite=args.overwrite
    )
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB); licences in {path.with_name('ATTRIBUTION.md')}")
    return 0
