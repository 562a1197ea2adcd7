"""What a report is made of: text, code, tables, pictures and plots, which become Markdown, HTML, JSON and PNG.

Every room writes its results with these: `Report(title, [Text(…), Table(…), Plot(…)]).write(folder)`.
"""

import base64
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from brickwork.eval.report.numbers import number
from brickwork.eval.report.plots import NoMatplotlib, draw
from brickwork.files import plain, write_file, write_json

_MARKS = r"\\`*_<\[\]#|"
_SPAN = re.compile(rf"\\([{_MARKS}])|\*\*((?:\\.|[^\\])+?)\*\*|`(.+?)`")


@dataclass(frozen=True)
class Text:
    """Paragraphs, headings (`## …`) and lists (`- …`) between blank lines, with `**bold**` and `` `code` ``.

    Words of others belong in `literal`.
    """

    markdown: str
    warning: bool = False

    def paragraphs(self) -> list[dict]:
        """`tag` (`h2`, `p`, `ul` …) and `lines`, each a list of `(tag, text)`, for the page."""
        found = []
        for part in filter(None, (part.strip() for part in re.split(r"\n\s*\n", self.markdown))):
            lines = part.splitlines()
            heading = re.match(r"(#{1,4}) +(.*)", part)
            if heading and len(lines) == 1:
                found.append({"tag": f"h{len(heading[1])}", "lines": [_spans(heading[2])]})
            elif all(line.startswith("- ") for line in lines):
                found.append({"tag": "ul", "lines": [_spans(line[2:]) for line in lines]})
            else:
                found.append({"tag": "p", "lines": [_spans(" ".join(lines))]})
        return found


@dataclass(frozen=True)
class Code:
    """Text as it is (a configuration, JSON), folded away in a page under its caption."""

    text: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A table; a cell is text, a number or `None`, and what stands behind a line break in it is a remark.

    Attributes:
        columns: names of the columns.
        rows: as many cells each.
        caption: stands below it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"`rows` has a row of {len(row)} cells ({row!r}) for {len(self.columns)} columns.")

    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [
            [number(cell) if cell is None or isinstance(cell, float | np.floating) else str(cell) for cell in row]
            for row in self.rows
        ]

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [[*self.columns], ["---"] * len(self.columns), *self.cells()]
        table = "\n".join("| " + " | ".join(map(_in_cell, line)) + " |" for line in lines)
        return f"{table}\n\n{literal(self.caption)}" if self.caption else table

    def text(self, left: int = 1) -> str:
        """The table for a terminal, in columns of spaces: the first `left` to the left, the others to the right."""
        lines = [[" ".join(cell.split()) for cell in line] for line in ([*self.columns], *self.cells())]
        columns = []
        for index, cells in enumerate(zip(*lines)):
            width = max(map(len, cells))
            columns.append([cell.ljust(width) if index < left else cell.rjust(width) for cell in cells])
        return "\n".join("  ".join(line).rstrip() for line in zip(*columns))


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        image: an image, uint8 `(H, W, 3)`, or the path of a file.
        caption: stands below it.
        name: of the file that it is written to, without suffix; by default its number.
        pixels: keep pixels sharp where the page enlarges it.
    """

    image: Image.Image | np.ndarray | str | Path
    caption: str = ""
    name: str = ""
    pixels: bool = True

    def png(self) -> bytes:
        """The bytes of its file."""
        if isinstance(self.image, str | Path):
            return Path(self.image).read_bytes()
        image = self.image if isinstance(self.image, Image.Image) else Image.fromarray(self.image)
        stream = io.BytesIO()
        image.save(stream, format="PNG")
        return stream.getvalue()


@dataclass(frozen=True)
class Plot:
    """Series over an axis, drawn by matplotlib.

    Attributes:
        series: `{name: (xs, ys)}`; values that are not finite are left out. Where xs or ys are words, the axis has a
            position for each.
        x_label, y_label: of the axes.
        log_x, log_y: whether the axes are logarithmic.
        caption: stands below it.
        bands: `{name: (lows, highs)}` of some series: a shade along a line, bars at points. They lie along x where ys
            are words.
        marks: `{words: x}` is a dotted line at x, `{words: (None, y)}` one at y, `{words: (x, y)}` words at a point.
        points: names of series that are points without a line; `True` for all.
        colours: of some series, as matplotlib takes them.
        x_limits, y_limits: what the axes show, `(low, high)`, either of which may be `None`.
        title: stands above it.
        name: of the file that it is written to, without suffix; by default its number.
    """

    series: Mapping[str, tuple[Sequence, Sequence]]
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    caption: str = ""
    bands: Mapping[str, tuple[Sequence, Sequence]] | None = None
    marks: Mapping[str, Any] | None = None
    points: bool | Sequence[str] = ()
    colours: Mapping[str, str] | None = None
    x_limits: tuple[float | None, float | None] = (None, None)
    y_limits: tuple[float | None, float | None] = (None, None)
    title: str = ""
    name: str = ""

    def png(self) -> bytes:
        """The bytes of its file; a `ValueError` without matplotlib."""
        return Panels([self]).png()

    def table(self) -> Table:
        """The last point of every series, for where there is no picture."""
        last = [(name, xs[-1], ys[-1]) for name, (xs, ys) in self.series.items() if len(xs)]
        return Table(["series", self.x_label or "x", self.y_label or "y"], last, self.title)


@dataclass(frozen=True)
class Panels:
    """Several plots in one picture, side by side, so many in a row; one legend where all have the same series."""

    plots: Sequence[Plot]
    columns: int = 3
    caption: str = ""
    name: str = ""

    def png(self) -> bytes:
        """The bytes of its file; a `ValueError` without matplotlib."""
        return draw(self.plots, self.columns)


Block = Text | Code | Table | Picture | Plot | Panels


@dataclass(frozen=True)
class Report:
    """A title and blocks. Text alone may stand for `Text`, and what is `None` or empty text is left out."""

    title: str
    blocks: Sequence[Block | str | None]

    def __post_init__(self):
        kept = [Text(block) if isinstance(block, str) else block for block in self.blocks if block is not None]
        object.__setattr__(self, "blocks", [block for block in kept if block != Text("")])

    def markdown(self) -> str:
        """The report in Markdown, with links to the files that `write` makes."""
        return self._markdown(self._names())

    def html(self, beside: str | Path | None = None) -> str:
        """The report as a page that needs nothing else.

        Args:
            beside: the folder in which the page will lie; files of pictures in it are then linked, not held in it.
        """
        return self._html(self._drawn(beside))

    def json(self) -> dict:
        """The report as values that JSON takes, with the names of the files that `write` makes."""
        names = self._names()
        return {"title": self.title, "blocks": [_plain(block, names.get(i)) for i, block in enumerate(self.blocks)]}

    def write(self, folder: str | Path, name: str = "report") -> Path:
        """Write `index.html`, `NAME.md`, `NAME.json` and a PNG for each picture and plot.

        Plots are tables where there is no matplotlib. Files of other names in the folder are left alone.

        Returns:
            The path of the page.
        """
        folder, drawn = Path(folder), self._drawn()
        names = {i: file for i, file in self._names().items() if i in drawn}
        for i, file in names.items():
            write_file(folder / file, drawn[i])
        write_file(folder / f"{name}.md", self._markdown(names))
        write_json(folder / f"{name}.json", self.json())
        return write_file(folder / "index.html", self._html(drawn))

    def _names(self) -> dict[int, str]:
        """The file names of pictures and plots by their indices."""
        found: dict[int, str] = {}
        for i, block in enumerate(self.blocks):
            if isinstance(block, Picture | Plot | Panels):
                stem = re.sub(r"[^\w.-]", "-", block.name).lstrip(".") or f"picture-{len(found) + 1}"
                found[i] = f"{stem}.png"
        return found

    def _drawn(self, beside: str | Path | None = None) -> dict[int, bytes | str]:
        """PNGs of pictures and plots by their indices, or links to what lies in the folder `beside`."""
        drawn: dict[int, bytes | str] = {}
        for i in self._names():
            block = self.blocks[i]
            if beside is not None and isinstance(block, Picture) and isinstance(block.image, str | Path):
                drawn[i] = quote(Path(block.image).relative_to(beside).as_posix())
                continue
            with suppress(NoMatplotlib):
                drawn[i] = block.png()
        return drawn

    def _markdown(self, names: Mapping[int, str]) -> str:
        parts = [f"# {literal(self.title)}", *(block_markdown(b, names.get(i)) for i, b in enumerate(self.blocks))]
        return "\n\n".join(parts) + "\n"

    def _html(self, drawn: Mapping[int, bytes | str]) -> str:
        import jinja2

        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        shown = []
        for i, block in enumerate(self.blocks):
            source = drawn.get(i)
            if isinstance(source, bytes):
                source = f"data:image/png;base64,{base64.b64encode(source).decode()}"
            kind = "Picture" if source else type(block).__name__
            shown.append((kind, block, source))
        return template.get_template("page.html.jinja").render(title=self.title, blocks=shown)


def block_markdown(block: Block, file: str | None = None) -> str:
    """A block in Markdown.

    Args:
        block: what to write.
        file: of its picture; plots are tables without one.
    """
    if isinstance(block, Text):
        return block.markdown
    if isinstance(block, Code):
        return "\n".join([*([f"{literal(block.caption)}:\n"] if block.caption else []), "```", block.text, "```"])
    if isinstance(block, Table):
        return block.markdown()
    if file is not None:
        return f"![{literal(block.caption)}]({quote(file)})"
    plots = block.plots if isinstance(block, Panels) else [block]
    return "\n\n".join(plot.table().markdown() for plot in plots)


def literal(text: object) -> str:
    """Words of others as one line of Markdown in which nothing is markup, for `Text`."""
    return re.sub(rf"([{_MARKS}])", r"\\\1", " ".join(str(text).split()))


def _in_cell(cell: str) -> str:
    return "<br>".join(re.sub(r"([<|])", r"\\\1", line) for line in cell.splitlines())


def _spans(text: str) -> list[tuple[str, str]]:
    """`"a **b**"` => `[("", "a "), ("b", "b")]`."""
    spans, at = [], 0
    for found in _SPAN.finditer(text):
        escaped, bold, code = found.groups()
        inner = re.sub(rf"\\([{_MARKS}])", r"\1", bold or "")
        spans += [("", text[at : found.start()]), ("b", inner) if bold else ("code", code) if code else ("", escaped)]
        at = found.end()
    return [span for span in (*spans, ("", text[at:])) if span[1]]


def _plain(block: Block, file: str | None = None) -> dict:
    """A block as JSON takes it: numbers that are not finite are `None`, pictures are left out."""
    fields = {field.name: getattr(block, field.name) for field in dataclasses.fields(block) if field.name != "image"}
    if isinstance(block, Panels):
        fields["plots"] = [_plain(plot) for plot in block.plots]
    named = {"type": type(block).__name__.lower()} | ({} if file is None else {"file": file})
    return named | plain({key: entry for key, entry in fields.items() if entry not in (None, "", ())})
