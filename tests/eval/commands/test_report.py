"""The page holds every number and picture of its results, by itself, and is well-formed."""

import argparse
import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from brickwork.eval.commands import report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects text, pictures and links; fails where a tag is closed that is not open."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text, self.pictures, self.headings = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe")
        attributes = dict(attributes)
        for value in (attributes.get("src"), attributes.get("href")):
            assert value is None or value.startswith("data:image/png;base64,"), "the page reaches outside itself"
        if tag == "img":
            self.pictures.append(attributes["alt"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def make_result(name: str, mean: float, images: float, **changes) -> dict:
    def metric(value, spread=None, over=None, **settings):
        return {"mean": value, "spread": spread, "spread_over": over, "values": [value], "settings": settings}

    return {
        "format": "brickwork-evaluation/1",
        "name": name,
        "tags": {"size": 64, "training images": images},
        "protocol": {"name": "clean", "description": "bicubic <with> antialias"},
        "extractor": {"name": "efficientnet-lite0", "label": "EffNetLite0", "weights_sha256": "ab" * 32},
        "preparation": {"resolution": None, "filter": None},
        "count": 5000,
        "seeds": [0, 1],
        "reference": {"identity": "0123456789abcdef", "source": "emoji", "count": 7013},
        "sets": [{"data_sha256": "cd" * 32, "converted": {"grey": 3}}] * 2,
        "metrics": {"FD-EffNetLite0": metric(mean, 0.25, "2 sets"), "coverage": metric(0.5, k=5)},
        "versions": {"torch": "2.13"},
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    pytest.importorskip("matplotlib")

    def write_results(*results):
        paths = []
        for i, result in enumerate(results):
            paths.append(tmp_path / f"{i}.json")
            paths[-1].write_text(json.dumps(result))
        return paths

    return write_results


def page_of(paths, tmp_path) -> Page:
    return Page(report.write_report(paths, tmp_path / "out").read_text(encoding="utf-8"))


def test_the_page_shows_every_number_and_what_it_depends_on(write, tmp_path):
    page = page_of(write(make_result("a <b>", 7.0, 100), make_result("second", 6.5, 200)), tmp_path)
    text = " ".join(page.text)
    assert page.headings == ["Metrics", "Curves", "What the numbers depend on"]
    numbers = ("7.00 ± 0.25", "6.50 ± 0.25", "-0.50 ± 0.35", "over 2 sets", "N = 5000", '"k": 5')
    origins = ("clean", "3 grey", "0123456789abcdef", "ab" * 6, "cd" * 6, "0, 1", '"torch": "2.13"')
    for expected in ("a <b>", *numbers, *origins):
        assert expected in text, expected
    assert "FD-EffNetLite0 ↓" in text and "coverage ↑" in text


def test_curves_are_drawn_over_tags_that_vary_and_no_others(write, tmp_path):
    page = page_of(write(make_result("a", 7.0, 100), make_result("b", 6.5, 200)), tmp_path)
    assert page.pictures == ["Metrics over training images; bars show the spread."]
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["curves-training-images.png"]
    with Image.open(tmp_path / "out" / "curves-training-images.png") as picture:
        assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_pictures_are_inside_the_page_and_beside_it(write, tmp_path):
    found = {"copies": 0.125, "distance_ratio": 1.5, "nearest": {}}
    pictures = {"grid": "a.grid.png", "neighbours": "a.neighbours.png"}
    for name in pictures.values():
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    page = page_of(write(make_result("a", 7.0, 100, pictures=pictures, memorisation=found)), tmp_path)
    assert len(page.pictures) == 2 and "12.5%" in " ".join(page.text) and "1.50 times" in " ".join(page.text)
    for kind, name in pictures.items():
        assert (tmp_path / "out" / f"00-a.{kind}.png").read_bytes() == (tmp_path / name).read_bytes()


def test_unlike_results_are_said_to_be_unlike_and_have_no_differences(write, tmp_path):
    page = page_of(write(make_result("a", 7.0, 100), make_result("b", 6.5, 200, count=400)), tmp_path)
    text = " ".join(page.text)
    assert "cannot be compared" in text and "N: a 5000, b 400" in text and "Differences" not in text


def test_other_files_in_the_folder_are_left_alone(write, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    paths = write(make_result("a", 7.0, 100))
    first = report.write_report(paths, tmp_path / "out").read_bytes()
    assert report.write_report(paths, tmp_path / "out").read_bytes() == first
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_what_is_no_result_is_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "broken.json").write_text("{")
    for name, message in (
        ("other.json", "is no result"),
        ("broken.json", "cannot be read"),
        ("none", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            report.write_report([tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_where_the_page_is(write, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    report.configure_parser(parser)
    paths = [str(path) for path in write(make_result("a", 7.0, 100))]
    args = parser.parse_args([*paths, "-o", str(tmp_path / "page"), "--title", "My <title>"])
    args.run(args)
    assert capsys.readouterr().out.strip() == str(tmp_path / "page" / "index.html")
    assert "My <title>" in " ".join(Page((tmp_path / "page" / "index.html").read_text(encoding="utf-8")).text)
