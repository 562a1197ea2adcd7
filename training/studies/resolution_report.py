"""The table and the picture of `resolution_proof.py`, from its values alone."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from brickwork.eval.report.numbers import number
from brickwork.eval.report.pictures import save_picture
from brickwork.eval.sets.pictures import write_atomically
from brickwork.files import write_json

TEXT_HEIGHT, GAP = 18, 4
SHOWN = 2
METRIC = "KD-EffNetLite0"


def write_report(values: dict, names: dict[str, str], folder: Path) -> None:
    """Write `proof.json`, `proof.md` and `proof.png`.

    Args:
        values: of `Proof.run`.
        names: what to call each variant.
        folder: to write to.
    """
    shown = values.pop("shown")
    save_picture(picture_of(shown, names), folder / "proof.png")
    write_json(folder / "proof.json", values)
    text = "\n".join(tables(values, names)) + "\n"
    write_atomically(folder / "proof.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    print(text)


def tables(values: dict, names: dict[str, str]) -> list[str]:
    """Markdown: for each model its two losses, then kernel distances and shares of style."""
    lines = []
    for model in values["losses"]:
        lines += [f"**The {model} model**", ""]
        for title, part in (
            ("held-out paired loss", "losses"),
            ("on training drawings", "losses_on_training_drawings"),
        ):
            lines += [*_table_of_losses(title, values[part][model], names), ""]
        distances, style = values["kernel_distance"][model], values["style"][model]
        extremes = list(next(iter(distances.values())))
        header = ["", *(f"{METRIC} {size}" for size in extremes), *(f"taken for personal {size}" for size in extremes)]
        rows = [
            [
                names[variant],
                *(number(*distances[variant][size]) for size in extremes),
                *(f"{style[variant][size]:.0%}" for size in extremes),
            ]
            for variant in distances
        ]
        lines += [*_markdown(header, rows), ""]
    right = ", ".join(f"{share:.0%} at {size}" for size, share in values["probe"].items())
    return [*lines, f"The probe is right on held-out drawings: {right}."]


def _table_of_losses(title: str, variants: dict, names: dict[str, str]) -> list[str]:
    sizes = list(variants["base"])
    rows = [
        [names[variant], *(loss_cell(groups[size], variants["base"][size]) for size in sizes)]
        for variant, groups in variants.items()
    ]
    return _markdown([title, *(size.replace("x", " × ") for size in sizes)], rows)


def loss_cell(groups: list[float], base: list[float]) -> str:
    """The mean loss, and by how much it differs from the base's, with the standard error of the paired difference."""
    mean, before = np.mean(groups), np.mean(base)
    if groups == base:
        return f"{mean:.4f}"
    differences = (np.array(groups) - np.array(base)) / before
    error = differences.std(ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return f"{mean:.4f} ({100 * differences.mean():+.1f} ± {100 * error:.1f}%)"


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def picture_of(shown: dict[str, dict[str, dict[str, np.ndarray]]], names: dict[str, str]) -> Image.Image:
    """For each model a row a variant, with the same prompts and seeds at every size, sizes side by side."""
    strips = [
        (f"{model}: {names[variant]}", [np.concatenate(list(pictures[:SHOWN]), axis=1) for pictures in sizes.values()])
        for model, variants in shown.items()
        for variant, sizes in variants.items()
    ]
    width = max(sum(block.shape[1] + 2 * GAP for block in blocks) for _, blocks in strips)
    heights = [TEXT_HEIGHT + max(block.shape[0] for block in blocks) + GAP for _, blocks in strips]
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(13), 0
    for (caption, blocks), height in zip(strips, heights):
        pen.text((GAP, top), caption, fill="black", font=font)
        left = GAP
        for block in blocks:
            sheet.paste(Image.fromarray(block), (left, top + TEXT_HEIGHT))
            left += block.shape[1] + 2 * GAP
        top += height
    # A palette halves the file, and shows no difference at this size.
    return sheet.quantize(128, dither=Image.Dither.NONE)
