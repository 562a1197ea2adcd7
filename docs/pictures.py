"""The drawings of `concepts.md`: `python docs/pictures.py` writes them beside itself, the same bytes every time."""

from pathlib import Path

INK, PAPER, BLUE, ORANGE, GREY = "#334", "#fff", "#4063d8", "#e8873a", "#c9cedb"


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{INK}">{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str = PAPER, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" stroke="{INK}"{dashes}/>'


def arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{INK}" marker-end="url(#tip)"/>'


def svg(width: int, height: int, title: str, *parts: str) -> str:
    tip = '<marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="3" orient="auto">'
    tip = f'<defs>{tip}<path d="M0,0 L7,3 L0,6 z" fill="{INK}"/></marker></defs>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    paper = f'<rect width="{width}" height="{height}" fill="{PAPER}"/>'
    return "\n".join([head, f"<title>{title}</title>", tip, paper, *parts, "</svg>\n"])


def windows(x: float, y: float, side: float, count: int, fill: str) -> str:
    """A picture of `side` cut into `count` × `count` windows."""
    step = side / count
    cells = [box(x + i * step, y + j * step, step, step, fill) for j in range(count) for i in range(count)]
    return "".join(cells)


def brick() -> str:
    """Three bricks of growing windows, each with an estimate of the whole picture."""
    parts = [text(50, 100, "noisy"), text(50, 116, "picture"), box(20, 125, 60, 60, GREY)]
    for i, (count, name) in enumerate([(8, "brick 0"), (4, "brick 1"), (1, "brick 2")]):
        x = 150 + i * 190
        parts += [arrow(x - 65, 155, x - 6, 155), windows(x, 95, 120, count, "#dfe6fb")]
        parts += [text(x + 60, 82, name, 15), text(x + 60, 240, f"{count * count} window{'s' * (count > 1)}")]
        parts += [arrow(x + 60, 250, x + 60, 275), text(x + 60, 292, "estimate of the whole")]
    return svg(720, 310, "What a brick is", text(360, 35, "What a brick is", 18), *parts)


def subnet() -> str:
    """Which bricks run from high noise to low."""
    parts = []
    runs = [[1] * 9, [1] * 9, [1, 1, 1, 1, 1, 0, 0, 0, 0]]
    for i, row in enumerate(runs):
        parts.append(text(90, 92 + 40 * i, f"brick {i}", 14, "end"))
        for j, on in enumerate(row):
            parts.append(box(110 + 62 * j, 70 + 40 * i, 54, 30, BLUE if on else PAPER, "" if on else "4 3"))
    parts += [text(110, 215, "high noise", anchor="start"), arrow(190, 211, 590, 211)]
    parts.append(text(664, 215, "low noise", anchor="end"))
    parts.append(text(387, 245, "subnet “0,1,2” first, “0,1” later: a third of the bricks left out of 4 of 9 steps"))
    return svg(720, 265, "What a subnet is", text(360, 35, "What a subnet and a schedule are", 18), *parts)


def resadapter() -> str:
    """The UNet's halves, with what a ResAdapter changes."""
    sizes = [150, 110, 75]
    parts = []
    for i, height in enumerate(sizes):
        for side, x in ((0, 60 + 105 * i), (1, 600 - 105 * i)):
            parts.append(box(x, 150 - height / 2, 60, height, "#eef0f5"))
            parts += [box(x + 8, 150 - height / 2 + 8, 44, 12, ORANGE), text(x + 30, 154, "ResNet", 12)]
            if i < 2:
                at = x + 68 if side == 0 else x - 38
                parts += [box(at, 135, 30, 30, BLUE), text(at + 15, 155, "3×3", 11)]
    parts += [box(345, 120, 30, 60, "#eef0f5")]
    notes = [(60, 245, BLUE, "LoRA on the down- and upsamplers: small pictures")]
    notes += [(60, 270, ORANGE, "own norms in every ResNet block: large pictures")]
    notes += [(420, 245, "#eef0f5", "everything else: untouched")]
    for x, y, fill, words in notes:
        parts += [box(x, y, 16, 16, fill), text(x + 24, y + 13, words, anchor="start")]
    return svg(720, 300, "What a ResAdapter changes", text(360, 35, "What a ResAdapter changes in a UNet", 18), *parts)


PICTURES = {"concept-brick.svg": brick, "concept-subnet.svg": subnet, "concept-resadapter.svg": resadapter}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(__file__).parent / name).write_text(draw(), encoding="utf-8")
