"""`brickwork data check`: everything that is wrong with a set is found and named."""

import argparse
import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from brickwork.training.commands.data_check import check_data, configure_parser, histogram
from brickwork.training.data.images import LabelledImages, load_table


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


@pytest.fixture
def source(tmp_path):
    """Seven rows: two good ones, an identical and a re-encoded copy, a tiny, a wide and a broken one."""
    noise = np.random.default_rng(0).integers(0, 255, (5, 4, 4, 3), dtype=np.uint8)
    pictures = [Image.fromarray(block).resize((64, 64), Image.Resampling.NEAREST) for block in noise]
    first = encoded(pictures[0], format="PNG")
    rows = [
        first,
        encoded(pictures[1], format="PNG"),
        first,
        encoded(pictures[0].resize((96, 96), Image.Resampling.NEAREST), format="PNG"),
        encoded(pictures[2].resize((16, 16)), format="PNG"),
        encoded(pictures[3].resize((120, 60)), format="PNG"),
        first[: len(first) // 2],
    ]
    table = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": row, "path": None} for row in rows],
            "label": ["a", "b", "a", "a", "b", "b", "a"],
            "text": ["one", "two", "", "four", None, "  ", "seven"],
        },
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.Value("string"), "text": datasets.Value("string")}
        ),
    )
    path = tmp_path / "set.parquet"
    table.to_parquet(str(path))
    return path


def test_everything_is_found(source):
    table = load_table(str(source))
    report = check_data(LabelledImages(table, 32), captions=list(table["text"]))
    assert report.rows == 7
    assert list(report.broken) == [6]
    assert report.tiny == [4]
    assert report.duplicates == [[0, 2]]
    assert report.look_alikes == [[0, 2, 3]]
    assert report.captions_missing == [2, 4, 5]
    assert report.labels == {"a": 4, "b": 3}
    assert sum(report.buckets.values()) == 6
    assert report.buckets["32×32"] == 5
    assert "1 broken, cannot be read: row 6 (" in report.text()


def command(*arguments):
    parser = argparse.ArgumentParser()
    configure_parser(parser)
    args = parser.parse_args([str(argument) for argument in arguments])
    return args.run(args)


def test_the_command(source, tmp_path, capsys):
    picture, listing = tmp_path / "buckets.png", tmp_path / "all.json"
    status = command(source, "--caption-column", "text", "--size", 32, "--histogram", picture, "--json", listing)
    assert status == 1  # something is broken
    assert "7 images" in capsys.readouterr().out
    assert json.loads(listing.read_text())["duplicates"] == [[0, 2]]
    assert Image.open(picture).width == 640


def test_a_clean_set_is_status_0(request):
    sample = request.path.parents[2] / "data" / "emoji" / "sample.parquet"
    assert command(sample, "--caption-column", "text") == 0


def test_bad_arguments_are_named(source):
    with pytest.raises(ValueError, match="`--caption-column` is 'caption'"):
        command(source, "--caption-column", "caption")
    with pytest.raises(ValueError, match="`--bucket-step` is 0"):
        command(source, "--bucket-step", 0)


def test_bars_are_as_long_as_their_counts(tmp_path):
    histogram({"8×8": 100, "8×16": 50}, tmp_path / "bars.png")
    bars = (np.asarray(Image.open(tmp_path / "bars.png")) == (0x33, 0x66, 0xCC)).all(axis=2).sum(axis=1)
    lengths = [bars[10:20].max(), bars[32:42].max()]
    assert lengths[0] == pytest.approx(2 * lengths[1], abs=2)
