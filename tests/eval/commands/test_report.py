"""The page holds every number and picture of its results, by itself, and is well-formed."""

import argparse
import json
import random
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from brickwork.eval.commands import report
from brickwork.eval.report import blocks

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
    assert page.pictures == ["Metrics over training images; bands show the spread."]
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
    for kind in pictures:
        with Image.open(tmp_path / "out" / f"00-a.{kind}.png") as copy:
            assert copy.size == (8, 8) and copy.getpixel((0, 0)) == (255, 0, 0)


def test_unlike_results_are_said_to_be_unlike_and_have_no_differences(write, tmp_path):
    page = page_of(write(make_result("a", 7.0, 100), make_result("b", 6.5, 200, count=400)), tmp_path)
    text = " ".join(page.text)
    assert "cannot be compared" in text and "N: a 5000, b 400" in text and "Differences" not in text


def test_only_an_earlier_report_is_replaced(write, tmp_path):
    paths, out = write(make_result("a", 7.0, 100)), tmp_path / "out"
    first = report.write_report(paths, out).read_bytes()
    with pytest.raises(ValueError, match="is there already; name another, or add --overwrite"):
        report.write_report(paths, out)
    (out / "notes.txt").write_text("mine")
    assert report.write_report(paths, out, overwrite=True).read_bytes() == first
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "index.html").write_text("mine")
    with pytest.raises(ValueError, match="holds something else: 1 .index.html"):
        report.write_report(paths, tmp_path / "own", overwrite=True)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "a/b.png", "..", "a\\b.png", "", "link.png"])
def test_pictures_are_read_from_beside_the_result_alone(write, tmp_path, name):
    Image.new("RGB", (8, 8)).save(tmp_path.parent / "secret.png")
    (tmp_path / "link.png").symlink_to(tmp_path.parent / "secret.png")
    paths = write(make_result("a", 7.0, 100, pictures={"grid": name}))
    with pytest.raises(ValueError, match=r"0.json names the picture .*; only files beside it are read"):
        report.write_report(paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_beside_a_result_that_is_no_picture_is_not_shown(write, tmp_path):
    (tmp_path / "key.png").write_text("a secret")
    paths = write(make_result("a", 7.0, 100, pictures={"grid": "key.png"}))
    with pytest.raises(ValueError, match="key.png' cannot be read"):
        report.write_report(paths, tmp_path / "out")


HOSTILE = "<script>alert('x')</script>\"&`*[a](http://b)"


def test_every_field_is_escaped(write, tmp_path, monkeypatch):
    """Each text of a result in turn, then each name: the page has no tag that one of plain words has not."""
    monkeypatch.setattr(blocks, "draw", lambda plots, columns: b"")
    plain = make_result("a", 7.0, 100, memorisation={"copies": 0.5, "distance_ratio": 1.0})
    texts = [path for path in places(plain) if isinstance(value_at(plain, path), str) and path != ("format",)]
    variants = [changed_at(plain, path, HOSTILE) for path in texts]
    for holder in (
        ("tags",),
        ("metrics",),
        ("versions",),
        ("sets", 0, "converted"),
        ("metrics", "coverage", "settings"),
    ):
        (first, *_), values = value_at(plain, holder), value_at(plain, holder)
        variants.append(changed_at(plain, holder, {HOSTILE: values[first]} | values))
    pages = [report.make_report(write(result, make_result("b", 6.5, 200))).html() for result in (plain, *variants)]
    allowed = set(re.findall("<[^>]*>", re.sub('alt="[^"]*"', "", pages[0]))) | {"<li>", "<ul>", "</ul>", "</li>"}
    allowed |= {'<div class="warning">'}
    for page in pages:
        assert not set(re.findall("<[^>]*>", re.sub('alt="[^"]*"', "", page))) - allowed
    assert len(pages) > 16


def places(value, path=()):
    """Paths to every value inside a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def value_at(value, path):
    for key in path:
        value = value[key]
    return value


def changed_at(value, path, new):
    """A copy with another value at a path; `None` removes it."""
    copy = json.loads(json.dumps(value))
    holder = value_at(copy, path[:-1])
    if new is REMOVED:
        del holder[path[-1]]
    else:
        holder[path[-1]] = new
    return copy


REMOVED = object()
ODD = [
    REMOVED, None, True, 0, -1, 2**70, 10**400, 1e308, -1e308, float("nan"), float("inf"), "", "x", "\ud800", "\x00",
    "a" * 5000, [], [[]], {}, {"a": {"b": []}}, {"": None}, [None] * 3, "../x", 5e-324,
]  # fmt: skip


def mutated(text: str, generator: random.Random) -> str:
    """JSON with an odd value somewhere, or characters changed, cut out or repeated."""
    if generator.random() < 0.6:
        result = json.loads(text)
        for _ in range(generator.choice((1, 1, 1, 3))):
            result = changed_at(result, generator.choice(list(places(result))), generator.choice(ODD))
        return json.dumps(result)
    at, length = generator.randrange(len(text)), generator.choice((0, 1, 1, 5, 50, len(text)))
    return (
        text[:at]
        + generator.choice(("", "[" * 2000, '"', "1e999", "{", "NaN", chr(0), text[:40]))
        + text[at + length :]
    )


def test_damaged_results_are_answered_by_file_and_key(write, tmp_path, monkeypatch):
    """Mutations end in a page or in a `ValueError` that names the file; a few hundred of them with their plots."""
    found = {"copies": 0.125, "distance_ratio": 1.5}
    paths = write(
        make_result("a", 7.0, 100, pictures={"grid": "a.png"}, memorisation=found), make_result("b", 6.5, 200)
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    text, generator, refused = paths[0].read_text(), random.Random(0), 0
    drawn = blocks.draw
    for i in range(3000):
        monkeypatch.setattr(blocks, "draw", drawn if i % 60 == 0 else lambda plots, columns: b"")
        paths[0].write_text(mutated(text, generator), encoding="utf-8", errors="surrogatepass")
        try:
            made = report.make_report(paths)
            made.html(), made.markdown().encode(), made.json()
        except ValueError as error:
            assert str(paths[0]) in str(error), error
            refused += 1
    assert 1000 < refused < 2900
    paths[0].write_text(json.dumps(changed_at(json.loads(text), ("metrics", "coverage", "mean"), "high")))
    with pytest.raises(ValueError, match=r"0.json is damaged: `metrics.coverage.mean` is 'high'"):
        report.make_report(paths)


def test_what_is_no_result_is_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "broken.json").write_text("{")
    for name, message in (
        ("other.json", "is no result"),
        ("broken.json", "is no result"),
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
