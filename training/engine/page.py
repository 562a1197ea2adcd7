"""One HTML page for a run: what it is, curves of everything it logged, and its grids of samples. Needs no network."""

import html
import json
from collections import defaultdict
from pathlib import Path

_WIDTH, _HEIGHT, _MARGIN = 420, 220, 46
_COLOURS = (
    "#3366cc",
    "#dc3912",
    "#ff9900",
    "#109618",
    "#990099",
    "#0099c6",
    "#dd4477",
    "#66aa00",
    "#b82e2e",
    "#316395",
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1340px; padding: 0 1em; color: #222 }
svg { background: #fafafa; border: 1px solid #ddd; margin: 4px } figure { display: inline-block; margin: 4px }
pre { background: #f4f4f4; padding: 1em; overflow: auto } img { max-width: 100%; image-rendering: pixelated }
"""


def read_log(file: Path) -> dict[str, list[tuple[int, float]]]:
    """`log.jsonl` => `{name: [(images, value), …]}`; a line cut off by a crash is left out."""
    series = defaultdict(list)
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        images = values.pop("images")
        values.pop("time", None)
        for name, value in values.items():
            series[name].append((images, value))
    return dict(series)


def chart(title: str, lines: dict[str, list[tuple[int, float]]]) -> str:
    """An SVG chart of some series over images seen."""
    points = [(x, y) for line in lines.values() for x, y in line if abs(y) < float("inf")]
    if not points:
        return ""
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points))
    across, up = (right - left) or 1, (high - low) or 1

    def place(x: float, y: float) -> str:
        column = _MARGIN + (x - left) / across * (_WIDTH - _MARGIN - 10)
        row = _HEIGHT - 26 - (y - low) / up * (_HEIGHT - 60)
        return f"{column:.1f},{row:.1f}"

    parts = [f'<text x="8" y="18" font-size="13" font-weight="bold">{html.escape(title)}</text>']
    for number, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(place(x, y) for x, y in line if abs(y) < float("inf"))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>')
        if len(lines) > 1:
            label = html.escape(name.split("/")[-1])
            parts.append(
                f'<text x="{_WIDTH - 96}" y="{32 + 12 * number}" font-size="10" fill="{colour}">{label}</text>'
            )
    for value, row in ((high, 38), (low, _HEIGHT - 26)):
        parts.append(f'<text x="4" y="{row}" font-size="10">{value:.4g}</text>')
    for value, column, anchor in ((left, _MARGIN, "start"), (right, _WIDTH - 10, "end")):
        parts.append(f'<text x="{column}" y="{_HEIGHT - 8}" font-size="10" text-anchor="{anchor}">{value:,}</text>')
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{"".join(parts)}</svg>'


def run_page(folder: Path) -> str:
    """The page of a run's folder, as HTML; pictures are linked, so it lives in that folder."""
    series = read_log(folder / "log.jsonl")
    groups: dict[str, dict] = defaultdict(dict)
    for name, line in series.items():
        section, _, rest = name.partition("/")
        # Losses by noise level and by brick share a chart; everything else has its own.
        together = section.endswith("_at") or rest.startswith("brick_")
        groups[f"{section}/bricks" if rest.startswith("brick_") else section if together else name][name] = line
    charts = "\n".join(chart(title, lines) for title, lines in groups.items())
    pictures = sorted((folder / "samples").glob("images-*.png"), reverse=True)
    grids = "\n".join(
        f'<figure><img src="samples/{path.name}" alt="">'
        f"<figcaption>{int(path.stem.removeprefix('images-')):,} images</figcaption></figure>"
        for path in pictures
    )
    configuration = folder / "config.yaml"
    text = configuration.read_text(encoding="utf-8") if configuration.exists() else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(folder.name)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(folder.name)}</h1>\n<h2>Curves over images seen</h2>\n{charts}\n"
        f"<h2>Samples of the averaged weights, same noise every time</h2>\n{grids}\n"
        f"<h2>Configuration</h2>\n<pre>{html.escape(text)}</pre></html>\n"
    )
