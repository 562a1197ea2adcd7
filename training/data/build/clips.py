"""Clips of avatars whose motion is known: a blink, a nod, a turn of mood, a walk.

Every frame is drawn at four times its size and reduced, so that an avatar moves by quarters of a pixel, and by exactly
what the column `truth` says.
"""

import io
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image

from brickwork.training.data.build.attributes import Drawing, expand, table, values_of
from brickwork.training.data.build.avatar_files import (
    MAKER,
    SPLITS,
    Draws,
    Wanted,
    draw_picture,
    open_set,
    png_of,
    write_rows,
)
from brickwork.training.data.build.captions import phrase

FRAMES, FPS = 16, 8
FINER = 4  # drawn at so many times the size
STILLS = "frames.parquet"  # a frame of every training clip, for the image network
# Styles with eyes that close. A style that is nothing but a face on its ground has nothing to move.
CLOSED_EYES = {"avataaars": {"eyes": "closed"}, "big-smile": {"eyes": "sleepy"}, "open-peeps": {"face": "eyesClosed"}}
REFUSED = ("fun-emoji",)


@dataclass
class Motion:
    """What happens in a clip.

    Attributes:
        words: that say it.
        scale: side of the avatar over that of the picture.
        shifts: across and down of each frame, in sides of the picture, from the middle.
        changed: options over the drawing's in some frames, by number of the frame.
        truth: what is known of it, for the column.
    """

    words: str
    scale: float
    shifts: list[tuple[float, float]]
    changed: dict[int, dict] = field(default_factory=dict)
    truth: dict = field(default_factory=dict)


def blink(drawing: Drawing, described: dict, rng: random.Random) -> Motion | None:
    """Closed eyes for two frames, twice."""
    closed = CLOSED_EYES.get(drawing.style)
    if closed is None:
        return None
    options = {name: [value] for name, value in closed.items()}
    first = rng.randrange(1, FRAMES // 2 - 2)
    at = [first, first + 1, first + FRAMES // 2, first + FRAMES // 2 + 1]
    return Motion("blinking", 0.9, [(0.0, 0.0)] * FRAMES, dict.fromkeys(at, options), {"closed": at})


def nod(drawing: Drawing, described: dict, rng: random.Random) -> Motion:
    """Up and down by a sine of two periods."""
    height, phase = rng.uniform(0.05, 0.09), rng.uniform(0, 2 * math.pi)
    angles = [phase + 4 * math.pi * frame / FRAMES for frame in range(FRAMES)]
    return Motion("nodding", 0.85, [(0.0, height * math.sin(angle)) for angle in angles])


def turn_of_mood(drawing: Drawing, described: dict, rng: random.Random) -> Motion | None:
    """Another mood from a frame near the middle on."""
    moods = {
        mood: options
        for mood, options in values_of(drawing.style, "mood").items()
        if "sets" not in options and mood != drawing.attributes["mood"]
    }
    if not moods or drawing.attributes["mood"] is None:
        return None
    mood, options = rng.choice(sorted(moods.items())), {}
    for option, pattern in mood[1].items():
        wanted = [one for choice in _listed(pattern) for one in expand(choice, described[option]["values"])]
        options |= {option: [rng.choice(wanted)]} if wanted else {}
    turn = rng.randrange(FRAMES // 2 - 2, FRAMES // 2 + 3)
    changed = dict.fromkeys(range(turn, FRAMES), options)
    truth = {"moods": [drawing.attributes["mood"], mood[0]], "turn": turn}
    return Motion(f"turning {mood[0]}", 0.9, [(0.0, 0.0)] * FRAMES, changed, truth)


def walk(drawing: Drawing, described: dict, rng: random.Random) -> Motion:
    """From one side to the other at an even pace, with a small bob."""
    way, scale = rng.choice((1, -1)), rng.uniform(0.45, 0.6)
    reach = (1 - scale) / 2
    across = [way * reach * (2 * frame / (FRAMES - 1) - 1) for frame in range(FRAMES)]
    shifts = [(x, 0.1 - 0.03 * abs(math.sin(math.pi * frame / 4))) for frame, x in enumerate(across)]
    return Motion(f"walking {'right' if way > 0 else 'left'}", scale, shifts)


MOTIONS: dict[str, Callable[[Drawing, dict, random.Random], Motion | None]] = {
    "blink": blink,
    "nod": nod,
    "mood": turn_of_mood,
    "walk": walk,
}


@dataclass
class ClipToBe:
    """A drawing, the name of its motion, and that."""

    drawing: Drawing
    kind: str
    motion: Motion
    text: str


def compose(number: int, draws: Draws, wanted: Wanted) -> ClipToBe:
    """The clip of a number: motions in turn, an avatar that can do it."""
    kind = list(MOTIONS)[number % len(MOTIONS)]
    rng = random.Random(f"{wanted.seed} clip {draws.split} {number}")
    while True:
        style = rng.choice([name for name in wanted.styles if kind != "blink" or name in CLOSED_EYES])
        drawing, words = draws(style)
        motion = MOTIONS[kind](drawing, draws.described[style]["options"], rng)
        if motion is not None:
            return ClipToBe(drawing, kind, motion, f"{phrase(drawing, words)}, {motion.words}")


def paint(clip: ClipToBe, size: int, hand) -> tuple[list[PIL.Image.Image], dict]:
    """The frames, and what is known of them: `dx` and `dy` of each in sides of the picture."""
    fine, motion = size * FINER, clip.motion
    side = round(fine * motion.scale)
    ground = f"#{table()['palettes']['ground'][clip.drawing.attributes['ground'] or 'white']}"
    own = {name: value for name, value in clip.drawing.options.items() if name != "backgroundColor"}
    drawn: dict[str, PIL.Image.Image] = {}
    frames, truth = [], {"dx": [], "dy": [], **motion.truth}
    for number, shift in enumerate(motion.shifts):
        options = own | motion.changed.get(number, {})
        key = json.dumps(options, sort_keys=True)
        if key not in drawn:
            drawn[key] = draw_picture(hand, clip.drawing.style, options, side)
        across, down = (round(fine * part) for part in shift)
        page, corner = PIL.Image.new("RGB", (fine, fine), ground), (fine - side) // 2
        page.paste(drawn[key], (corner + across, corner + down), drawn[key])
        frames.append(page.reduce(FINER))
        truth["dx"].append(across / fine)
        truth["dy"].append(down / fine)
    return frames, truth


def build_clips(
    output: str | Path, *, packages: str | Path | None = None, overwrite: bool = False, **asked: Any
) -> Path:
    """Builds clips in the folder `output` and returns that; the same bytes for the same arguments and versions.

    The columns are `clip` (lossless animated WebP), `text`, `label` (the motion), `split`, `style`, `frames`, `fps`
    and `truth`, a JSON mapping: `dx` and `dy` of every frame in sides of the picture, `closed` (frames with closed
    eyes), `moods` and `turn`. The held-out files are as those of single avatars. `frames.parquet` has one frame of
    every training clip as a picture, to train the image network on.

    Args:
        packages, overwrite: see `open_set`.
        asked: see `Wanted`; by default 2,000 clips of 64 pixels, and 200 in each held-out file.

    Raises `ValueError` for what `Wanted` and `open_set` refuse, and for styles that cannot move, or none that blinks.
    """
    asked["styles"] = asked.get("styles") or [style for style in table()["styles"] if style not in REFUSED]
    wanted = Wanted(**{"count": 2000, "held_out": 200, "size": 64} | asked)
    still = [style for style in wanted.styles if style in REFUSED]
    if still or not set(wanted.styles) & set(CLOSED_EYES):
        what = f"{still[0]}, which is a face on its ground" if still else "no style whose eyes close"
        raise ValueError(f"styles has {what}; name others, among them one of {', '.join(CLOSED_EYES)}.")
    told = [
        f"Made by `{MAKER} --clips`: {wanted.count} clips of {FRAMES} frames at {FPS} a second, and {wanted.held_out} "
        f"in each held-out file; {wanted.size}×{wanted.size} pixels, seed {wanted.seed}; DiceBear 9.4.3. Motions: "
        f"{', '.join(MOTIONS)}.",
    ]
    with open_set(output, wanted, packages, overwrite, "Clips of avatars", told) as (folder, hand, drawn):
        for split, name in SPLITS.items():
            _write(folder, name, split, wanted, hand, drawn)
    return Path(output)


def _write(folder: Path, name: str, split: str, wanted: Wanted, hand, drawn: Counter) -> None:
    from datasets import ClassLabel, Features, Image, Value

    draws = Draws(split, wanted, hand.styles)
    clips = [compose(number, draws, wanted) for number in range(wanted.rows(split))]
    drawn.update(clip.drawing.style for clip in clips)
    text, label, stills = Value("string"), ClassLabel(names=list(MOTIONS)), []

    def finish(number: int, clip: ClipToBe) -> dict:
        frames, truth = paint(clip, wanted.size, hand)
        file, kind = io.BytesIO(), list(MOTIONS).index(clip.kind)
        times = {"duration": round(1000 / FPS), "loop": 0}
        frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True, **times)
        stills.append((png_of(frames[number * 7 % FRAMES]), kind, clip.text))
        told = {"text": clip.text, "split": split, "style": clip.drawing.style, "truth": json.dumps(truth)}
        content = {"bytes": file.getvalue(), "path": f"{split}/{number:07d}.webp"}
        return {"clip": content, "label": kind, "frames": FRAMES, "fps": float(FPS), **told}

    columns = {"text": text, "split": text, "style": text, "truth": text, "frames": Value("int64")}
    features = Features(clip=Image(), label=label, fps=Value("float64"), **columns)
    write_rows(folder / name, features, clips, finish)
    if split == "train":

        def row(number: int, still: tuple) -> dict:
            return {"image": {"bytes": still[0], "path": f"{number:07d}.png"}, "label": still[1], "text": still[2]}

        write_rows(folder / STILLS, Features(image=Image(), label=label, text=text), stills, row)


def _listed(pattern) -> list[str]:
    return [str(one) for one in (pattern if isinstance(pattern, list) else [pattern])]
