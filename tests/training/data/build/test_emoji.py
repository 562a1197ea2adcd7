"""The builder of the emoji set, from tiny packages made here, and the sample that lies in tests/data."""

import argparse
import hashlib
import io
import json
import os
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from brickwork.training.data.build import emoji
from brickwork.training.data.build.codepoints import SKIN_TONES, base_codepoints
from brickwork.training.data.build.emoji import GROUPS, SOURCES, STYLES, build_emoji, read_members
from brickwork.training.data.build.svg import rasterise

SAMPLE = Path(__file__).parents[3] / "data" / "emoji" / "sample.parquet"
FULL_SET = Path(__file__).parents[5] / "shared" / "data" / "emoji" / "train.parquet"

RED_DISC = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36"><circle cx="18" cy="18" r="12" fill="#F00"/></svg>'
)
NAMES = [
    {
        "unified": "1F44B",
        "name": "WAVING HAND SIGN",
        "category": "People & Body",
        "subcategory": "hand-fingers-open",
        "skin_variations": {"1F3FB": {"unified": "1F44B-1F3FB"}, "1F3FE-1F3FE": {"unified": "1F44B-1F3FE"}},
    },
    {
        "unified": "2620-FE0F",
        "name": "SKULL",
        "category": "Smileys & Emotion",
        "subcategory": "face-negative",
    },
    {"unified": "1F3FB", "name": "TONE", "category": "Component", "subcategory": "skin-tone"},
    {"unified": "1F999", "name": "NEVER DRAWN", "category": "Objects", "subcategory": "tool"},
]


def blue_square(size: int = 40) -> bytes:
    """A half-transparent blue picture, as the Fluent package has them."""
    file = io.BytesIO()
    Image.new("RGBA", (size, size), (0, 0, 255, 128)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def write_tarball(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return hashlib.sha512(path.read_bytes()).hexdigest()


@pytest.fixture
def packages(tmp_path):
    """(folder of tarballs, sources with their digests): 4 names, 4 SVGs, 3 pictures, and files that are no emoji."""
    folder = tmp_path / "packages"
    folder.mkdir()
    contents = {
        "twemoji": {f"package/{name}.svg": RED_DISC for name in ("1f44b", "1f44b-1f3fb", "1f3fb", "2620")}
        | {"package/license": b"text", "../outside.svg": RED_DISC, "../package/1f999.svg": RED_DISC},
        "fluent": {f"package/assets/{name}.webp": blue_square() for name in ("2620-fe0f", "1f44b", "1f44b-1f3fe")},
        "names": {"package/emoji.json": json.dumps(NAMES).encode(), "package/emoji_pretty.json": b"[]"},
    }
    sources = {
        kind: replace(package, sha512=write_tarball(folder / package.tarball, contents[kind]))
        for kind, package in vars(SOURCES).items()
    }
    return folder, emoji.Sources(**sources)


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Puts only a stand-in `npm` on PATH; call it with the shell script's body, or with None for no npm at all."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def install(body: str | None):
        if body is not None:
            script = folder / "npm"
            script.write_text(f"#!/bin/sh\n{body}\n")
            script.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return install


def picture(row: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


def rows_of(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_build_draws_every_named_emoji_once_in_both_styles(packages, tmp_path):
    folder, sources = packages
    path = build_emoji(tmp_path / "new" / "out", packages=folder, size=48, sources=sources)
    assert path == tmp_path / "new" / "out" / "train.parquet"
    assert sorted(file.name for file in path.parent.iterdir()) == ["ATTRIBUTION.md", "train.parquet"]
    rows = rows_of(path)
    found = sorted((row["style"], row["codepoints"], row["text"], GROUPS[row["label"]]) for row in rows)
    hand, skull = ("waving hand sign", "People & Body"), ("skull", "Smileys & Emotion")
    assert found == [
        ("fluent", "1f44b", *hand),
        ("fluent", "1f44b-1f3fe", "waving hand sign: medium-dark skin tone", "People & Body"),
        ("fluent", "2620", *skull),
        ("twemoji", "1f44b", *hand),
        ("twemoji", "1f44b-1f3fb", "waving hand sign: light skin tone", "People & Body"),
        ("twemoji", "2620", *skull),
    ]
    assert {row["subgroup"] for row in rows} == {"hand-fingers-open", "face-negative"}
    assert all(row["image"]["path"] == f"{row['style']}/{row['codepoints']}.webp" for row in rows)


@pytest.mark.parametrize("size", [33, 64])
def test_pictures_lie_on_white_at_the_wanted_size(packages, tmp_path, size):
    folder, sources = packages
    for row in rows_of(build_emoji(tmp_path / "out", packages=folder, size=size, sources=sources)):
        pixels = picture(row)
        assert pixels.shape == (size, size, 3)
        middle, corner = pixels[size // 2, size // 2], pixels[0, 0]
        expected = {"twemoji": ([255, 0, 0], [255, 255, 255]), "fluent": ([127, 127, 255], [127, 127, 255])}
        np.testing.assert_allclose(np.stack([middle, corner]), np.stack(expected[row["style"]]), atol=12)


@pytest.mark.parametrize("size", [31, 300])
def test_svg_is_drawn_at_the_size_itself(size):
    drawn = Image.open(io.BytesIO(rasterise(RED_DISC.decode(), size)))
    assert drawn.size == (size, size) and drawn.convert("RGBA").getpixel((0, 0))[3] == 0


def test_build_can_be_repeated_byte_for_byte(packages, tmp_path):
    folder, sources = packages
    first, second = (build_emoji(tmp_path / name, packages=folder, size=16, sources=sources) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_built_file_is_a_hugging_face_image_data_set(packages, tmp_path):
    from datasets import Dataset, load_dataset

    folder, sources = packages
    path = build_emoji(tmp_path / "out", packages=folder, size=32, sources=sources)
    for data in (
        Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")),
        load_dataset(str(path.parent), split="train", cache_dir=str(tmp_path / "cache")),
    ):
        assert data.features["label"].names == list(GROUPS)
        assert data[0]["image"].size == (32, 32) and data.num_rows == 6


def test_attribution_names_works_licences_and_versions(packages, tmp_path):
    folder, sources = packages
    path = build_emoji(tmp_path / "out", packages=folder, size=16, sources=sources)
    text = path.with_name("ATTRIBUTION.md").read_text()
    for phrase in ("CC-BY 4.0", "Twitter", "Microsoft", "Cal Henderson", "Permission is hereby granted", "16×16"):
        assert phrase in text
    for package in vars(sources).values():
        assert package.spec in text
    assert "| 3, style `twemoji` |" in text and "| 3, style `fluent` |" in text


def test_files_of_others_are_kept_and_its_own_unless_told_otherwise(packages, tmp_path):
    folder, sources = packages
    out = tmp_path / "out"
    out.mkdir()
    other = (SAMPLE.parents[1] / "avatars" / "sample.parquet").read_bytes()
    for name, content in (("train.parquet", b"mine"), ("train.parquet", other), ("ATTRIBUTION.md", b"mine")):
        (out / name).write_bytes(content)
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=f"{name}.*something else"):
                build_emoji(out, packages=folder, size=16, sources=sources, overwrite=overwrite)
        assert [file.name for file in out.iterdir()] == [name] and (out / name).read_bytes() == content
        (out / name).unlink()
    build_emoji(out, packages=folder, size=16, sources=sources)
    with pytest.raises(ValueError, match="train.parquet.*--overwrite"):
        build_emoji(out, packages=folder, size=16, sources=sources)
    path = build_emoji(out, packages=folder, size=24, sources=sources, overwrite=True)
    assert len(rows_of(path)) == 6


def test_a_build_that_fails_leaves_nothing_behind(packages, tmp_path, monkeypatch):
    folder, sources = packages
    out = tmp_path / "out"

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(emoji, "attribution", fail)
    with pytest.raises(OSError, match="disk full"):
        build_emoji(out, packages=folder, size=16, sources=sources)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("size", [0, -64, 15, 1025])
def test_sizes_out_of_range_are_refused(packages, tmp_path, size):
    with pytest.raises(ValueError, match=f"size {size} .*16 to 1024"):
        build_emoji(tmp_path / "out", packages=packages[0], size=size, sources=packages[1])
    assert not (tmp_path / "out").exists()


def test_output_that_is_a_file_is_refused(packages, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        build_emoji(tmp_path / "out", packages=packages[0], sources=packages[1])


def test_missing_rasteriser_is_named_before_anything_is_downloaded(tmp_path, npm, monkeypatch):
    npm(None)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ValueError, match=r"resvg-py.*brickwork\[build\]"):
        build_emoji(tmp_path / "out")


@pytest.mark.parametrize("kind", ["twemoji", "fluent", "names"])
def test_a_tarball_with_another_digest_is_refused(packages, tmp_path, kind):
    folder, sources = packages
    tarball = folder / getattr(sources, kind).tarball
    tarball.write_bytes(tarball.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ValueError, match=f"{tarball.name} is not .*sha512"):
        build_emoji(tmp_path / "out", packages=folder, size=16, sources=sources)
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_a_package_without_emoji_is_refused(packages, tmp_path):
    folder, sources = packages
    digest = write_tarball(folder / sources.fluent.tarball, {"package/readme.md": b"no pictures"})
    sources = replace(sources, fluent=replace(sources.fluent, sha512=digest))
    with pytest.raises(ValueError, match="fluent-emoji-3d"):
        build_emoji(tmp_path / "out", packages=folder, size=16, sources=sources)


def test_missing_npm_says_how_to_go_on(tmp_path, npm):
    npm(None)
    with pytest.raises(ValueError, match=r"(?s)npm.*not found.*Node\.js.*twemoji-svg-15\.0\.0\.tgz.*--packages DIR"):
        build_emoji(tmp_path / "out")


def test_npm_that_fails_is_quoted(tmp_path, npm):
    npm("echo 'getaddrinfo EAI_AGAIN' >&2; exit 7")
    with pytest.raises(ValueError, match=r"(?s)`npm pack @twemoji/svg@15\.0\.0` failed.*7.*EAI_AGAIN.*--packages DIR"):
        build_emoji(tmp_path / "out")


def test_missing_tarballs_are_downloaded_checked_and_kept(packages, tmp_path, npm):
    """The stand-in for npm copies from a "registry" folder into the folder named on its command line ($4)."""
    registry, sources = packages
    npm(
        f'case "$2" in {sources.twemoji.spec}) /bin/cp "{registry / sources.twemoji.tarball}" "$4/";; *) exit 1;; esac'
    )
    have = tmp_path / "have"
    have.mkdir()
    for package in (sources.fluent, sources.names):
        os.link(registry / package.tarball, have / package.tarball)
    build_emoji(tmp_path / "out", packages=have, size=16, sources=sources)
    assert sorted(path.name for path in have.iterdir()) == sorted(
        package.tarball for package in vars(sources).values()
    )

    (have / sources.twemoji.tarball).unlink()
    other = replace(sources, twemoji=replace(sources.twemoji, sha512="0" * 128))
    with pytest.raises(ValueError, match="sha512"):
        build_emoji(tmp_path / "out2", packages=have, size=16, sources=other)
    assert not (have / sources.twemoji.tarball).exists(), "a tarball with a wrong digest must not be kept"


def test_nothing_outside_the_package_is_read_or_written(packages, tmp_path):
    folder, sources = packages
    files = read_members(sources.twemoji, folder / sources.twemoji.tarball)
    assert sorted(files) == ["1f3fb", "1f44b", "1f44b-1f3fb", "2620"]
    assert not list(tmp_path.rglob("*.svg"))


def test_first_spelling_counts_where_a_package_draws_an_emoji_twice():
    names = emoji.list_drawings({}, {"26a7-fe0f": b"with", "26a7": b"without"}, [NAMES[1] | {"unified": "26A7-FE0F"}])
    assert [(drawing.codepoints, drawing.source) for drawing in names] == [("26a7", b"with")]


@pytest.mark.parametrize(
    "variants, base",
    [
        (["1f44b", "1F44B-1F3FB", "1f44b-1f3ff"], "1f44b"),
        (["1f3c3", "1f3c3-200d-2640-fe0f", "1f3c3-1f3fd-200d-2642-200d-27a1"], "1f3c3"),
        (["1f468-200d-1f692", "1f469-1f3fc-200d-1f692", "1f9d1-200d-1f692"], "1f9d1-200d-1f692"),
        (["1f491", "1f491-1f3fb", "1f469-1f3fb-200d-2764-fe0f-200d-1f468-1f3ff"], "1f9d1-200d-2764-200d-1f9d1"),
        (["1f46b-1f3fc", "1f46d", "1f9d1-1f3fb-200d-1f91d-200d-1f9d1-1f3fc"], "1f9d1-200d-1f91d-200d-1f9d1"),
        (["1f46a", "1f468-200d-1f469-200d-1f467", "1f469-200d-1f469-200d-1f466"], "1f9d1-200d-1f9d1-200d-1f9d2"),
        (["23-20e3", "0023-fe0f-20e3"], "0023-20e3"),
        (["1f1eb-1f1f7", "1f1e8-1f1f5"], "1f1eb-1f1f7"),
        (["2640", "2640-fe0f"], "2640"),
        (["1f3fb"], "1f3fb"),
        (["2764", "2764-fe0f"], "2764"),
        (["2764-200d-1f525"], "2764-200d-1f525"),
    ],
)
def test_variants_of_one_drawing_share_their_base(variants, base):
    assert {base_codepoints(variant) for variant in variants} == {base}
    assert base_codepoints(base) == base


def test_sample_is_small_and_whole():
    table = pq.read_table(SAMPLE)
    rows = table.to_pylist()
    assert SAMPLE.stat().st_size < 200_000 and SAMPLE.with_name("ATTRIBUTION.md").exists()
    assert len(rows) == 108 and {row["label"] for row in rows} == set(range(9))
    assert sum(row["label"] == 0 for row in rows) == 48
    by_style = {style: {row["codepoints"] for row in rows if row["style"] == style} for style in STYLES}
    assert by_style["fluent"] == by_style["twemoji"] and len(by_style["fluent"]) == 54
    assert all(picture(row).shape == (64, 64, 3) for row in rows)


def test_a_split_by_base_keeps_twins_together():
    """In the sample, the waving hand in six skin tones and two styles is one drawing of twelve rows."""
    rows = rows_of(SAMPLE)
    bases = [base_codepoints(row["codepoints"]) for row in rows]
    assert bases.count("1f44b") == 12
    for base in set(bases):
        texts = {row["text"].split(":")[0] for row, own in zip(rows, bases) if own == base}
        assert len(texts) == 1, f"{base} joins {texts}"


@pytest.mark.skipif(not FULL_SET.exists(), reason="the full set is not beside the clone")
def test_full_set_has_no_picture_on_two_bases_and_holds_the_sample():
    rows = rows_of(FULL_SET)
    bases, columns = {}, ("style", "codepoints", "text", "label", "subgroup")
    for row in rows:
        bases.setdefault((row["style"], row["image"]["bytes"]), set()).add(base_codepoints(row["codepoints"]))
    assert max(len(own) for own in bases.values()) == 1
    assert len(set.union(*bases.values())) == 1673
    described = {tuple(row[column] for column in columns) for row in rows}
    assert {tuple(row[column] for column in columns) for row in rows_of(SAMPLE)} <= described
    tones = {part for row in rows for part in base_codepoints(row["codepoints"]).split("-")[1:]} & set(SKIN_TONES)
    assert not tones


def test_command_builds_and_reports(packages, tmp_path, capsys, monkeypatch):
    folder, sources = packages
    monkeypatch.setattr(build_emoji, "__kwdefaults__", build_emoji.__kwdefaults__ | {"sources": sources})
    parser = argparse.ArgumentParser(prog="brickwork data build emoji")
    emoji.configure_parser(parser)
    command = ["--output", str(tmp_path / "out"), "--packages", str(folder), "--size", "24", "--sample"]
    args = parser.parse_args(command)
    assert args.run(args) == 0
    assert "sample.parquet" in capsys.readouterr().out
    # Both styles have the plain hand and the skull; the two tones are drawn in one style each.
    assert (
        sorted(row["codepoints"] for row in rows_of(tmp_path / "out" / "sample.parquet"))
        == ["1f44b"] * 2 + ["2620"] * 2
    )
    with pytest.raises(ValueError, match="--overwrite"):
        args.run(args)
    again = parser.parse_args([*command, "--overwrite"])
    assert again.run(again) == 0
    assert "--packages downloads/" in parser.format_help()
