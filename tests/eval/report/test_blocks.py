"""Reports: one set of blocks as Markdown, HTML, JSON and PNG, with nothing from a field read as markup."""

import io
import json
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from brickwork.eval.report.blocks import Code, Panels, Picture, Plot, Report, Table, Text
from brickwork.eval.report.numbers import between, number

HOSTILE = "<script>alert('x')</script>\"&|"


class Tags(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def blocks_with(text: str) -> list:
    return [
        text,
        Text(f"## {text}\n\n- {text}\n- `{text}` **{text}**", warning=True),
        Code(text, text),
        Table([text, text], [[text, f"{text}\n{text}"]], text),
        Picture(np.zeros((4, 4, 3), np.uint8), text, name=text),
    ]


def test_no_field_becomes_markup():
    found, plain = (Tags(Report(text, blocks_with(text)).html()) for text in (HOSTILE, "words"))
    assert found.tags == plain.tags
    assert set(found.attributes) == set(plain.attributes)


def test_text_has_headings_lists_and_emphasis():
    page = Report("T", [Text("## Head\n\ntwo\nlines **bold** `code`\n\n- one\n- two")]).html()
    assert "<h2>Head</h2>" in page
    assert "<p>two lines <b>bold</b> <code>code</code></p>" in page
    assert "<ul><li>one</li><li>two</li></ul>" in page


def test_a_report_as_files(tmp_path):
    pytest.importorskip("matplotlib")
    plot = Plot({"a": ([1, 2, 3], [0.5, float("nan"), 0.1])}, "images", "loss", caption="A curve.", name="curve")
    blocks = ["Lead.", None, "", Table(["name", "value"], [["a|b", 1.23456], ["c", None]]), plot]
    page = Report("Title", [*blocks, Picture(Image.new("RGB", (3, 2)), "P", name="../x y")]).write(tmp_path, "table")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "-x-y.png",
        "curve.png",
        "index.html",
        "table.json",
        "table.md",
    ]
    assert page.read_text().count("data:image/png;base64,") == 2
    assert (tmp_path / "table.md").read_text() == (
        "# Title\n\nLead.\n\n| name | value |\n| --- | --- |\n| a\\|b | 1.235 |\n| c | – |\n\n![A curve.](curve.png)"
        "\n\n![P](-x-y.png)\n"
    )
    stored = json.loads((tmp_path / "table.json").read_text())["blocks"]
    assert stored[1]["rows"] == [["a|b", 1.23456], ["c", None]]
    assert stored[2]["series"] == {"a": [[1, 2, 3], [0.5, None, 0.1]]}
    assert Image.open(tmp_path / "-x-y.png").size == (3, 2)


def test_pictures_beside_a_page_are_linked(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a b.png")
    report = Report("T", [Picture(tmp_path / "a b.png")])
    assert 'src="a%20b.png"' in report.html(beside=tmp_path)
    assert "data:image/png" in report.html()


def test_plots_show_what_they_are_given():
    pytest.importorskip("matplotlib")
    series = {"a": ([1, 2, 3], [1, 2, 3]), "b": ([1, 2, 3], [3, 2, 1])}
    plain = Plot(series, "x", "y")
    variants = [
        plain,
        Plot(series, "x", "y", bands={"a": ([0, 1, 2], [2, 3, 4])}),
        Plot(series, "x", "y", marks={"here": 2, "there": (None, 1.5), "point": (2, 2)}),
        Plot(series, "x", "y", points=["a"]),
        Plot(series, "x", "y", log_x=True),
        Plot(series, "x", "y", log_y=True),
        Plot(series, "x", "y", colours={"a": "black"}),
        Plot(series, "x", "y", title="title"),
        Plot(series, "x", "y", x_limits=(None, 2)),
        Plot({"a": ([1, 2], ["one", "two"])}, "x", points=True, bands={"a": ([0.5, 1], [2, 3])}),
        Plot({"a": (["one", "two"], [1, 2])}, "x", points=True),
    ]
    drawn = [np.asarray(Image.open(io.BytesIO(plot.png()))) for plot in variants]
    assert len({picture.tobytes() for picture in drawn}) == len(variants)
    several = Image.open(io.BytesIO(Panels([plain] * 4).png()))
    assert several.width > several.height * 1.5


def test_without_matplotlib_plots_are_tables(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    plot = Plot({"a": ([1, 2], [0.5, 0.25])}, "images", "loss")
    with pytest.raises(ValueError, match=r"pip install 'brickwork\[report\]'"):
        plot.png()
    page = Report("T", [plot, Panels([plot, plot])]).write(tmp_path)
    assert page.read_text().count("<td>0.25</td>") == 3
    assert "brickwork[report]" in page.read_text()
    assert "| a | 2 | 0.25 |" in (tmp_path / "report.md").read_text()
    assert not list(tmp_path.glob("*.png"))


def test_tables():
    table = Table(["name", "x"], [["long name", 1.0], ["b\nremark", 20]])
    assert table.text() == "name        x\nlong name   1\nb remark   20"
    assert table.markdown().splitlines()[-1] == "| b<br>remark | 20 |"
    with pytest.raises(ValueError, match="a row of 1 cells"):
        Table(["a", "b"], [["only"]])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((7.612345,), "7.612"),
        ((7.612345, 0.0312), "7.612 ± 0.031"),
        ((1234.5, 123.0), "1234 ± 123"),
        ((0.5, 0.0), "0.5 ± 0"),
        ((None,), "–"),
        ((float("nan"), 0.1), "nan ± 0.1"),
    ],
)
def test_numbers(arguments, text):
    assert number(*arguments) == text
    assert between(1, 0.5, 2) == "1.00 (0.50–2.00)"
    assert number(1.0, 0.25, signed=True) == "+1.00 ± 0.25"
