"""How well pipelines draw motion that is known: clips of avatars from a given first frame, against the truth.

    python -m brickwork.training.studies.motion runs/video/pipeline runs/image --data data/clips/held_out_seeds.parquet
    python -m brickwork.training.studies.motion ABC=runs/abc-0,runs/abc-1 A=runs/a-0,runs/a-1 --data … --gif motion.gif

Each pipeline of clips is measured frame by frame too, the same weights without neighbours in time, as a pipeline of
pictures always is. Written as a table, over several runs of one name as mean ± standard deviation: the paired held-out
loss; the error of the moving avatar's middle against the truth, in pixels (also of standing still, which knows
nothing); flicker, the mean change of a number from frame to frame in 8-bit steps, beside that of the clips themselves;
and the kernel distance of all frames but the first, which is given, to those of the clips.
"""

import argparse
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from pyarrow import parquet

from brickwork import options
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.metrics.distances import kernel_distance
from brickwork.eval.metrics.feature_sets import lite_features
from brickwork.eval.report.numbers import number
from brickwork.eval.sampling.pipelines import load_class_pipeline, pipeline_class, pipeline_folder
from brickwork.eval.studies.core import mean_and_spread
from brickwork.gen.networks.video import inflate
from brickwork.gen.parameterization import OBJECTIVES
from brickwork.pipelines.clip_files import write_clip
from brickwork.pipelines.objective_file import saved_objective
from brickwork.pipelines.video import VideoPipeline
from brickwork.training.data.clips import read_animation

MOVING = ("nod", "walk")
FEWEST = 4  # clips, of which a kernel distance can be told


def middle(frames: np.ndarray) -> np.ndarray:
    """Across and down of the middle of what is not the ground, in pixels, `(F, 2)`; `frames` uint8 `(F, H, W, 3)`."""
    border = np.concatenate([frames[:, 0], frames[:, :, 0], frames[:, :, -1]], axis=1)
    ground = np.median(border.astype(float), axis=1)[:, None, None]
    mask = np.abs(frames - ground).sum(axis=-1) > 60
    total = mask.sum(axis=(1, 2)).clip(min=1)
    across = (mask.sum(axis=1) @ np.arange(frames.shape[2])) / total
    down = (mask.sum(axis=2) @ np.arange(frames.shape[1])) / total
    return np.stack([across, down], axis=1)


def flicker(clips: np.ndarray) -> float:
    """The mean change of a number from one frame to the next, of uint8 `(N, F, H, W, 3)`."""
    return float(np.abs(np.diff(clips.astype(float), axis=1)).mean())


def motion_error(clips: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of each clip the root mean square of the way of its middle from the true one, in pixels.

    Args:
        clips: uint8 `(N, F, H, W, 3)`.
        truth: `(N, F, 2)`, across and down in sides of the picture.
    """
    found = np.stack([middle(clip) for clip in clips])
    true = (truth - truth[:, :1]) * clips.shape[2]
    return np.sqrt(np.square(found - found[:, :1] - true)[:, 1:].sum(axis=2).mean(axis=1))


@dataclass(frozen=True)
class Truth:
    """Clips whose motion is known.

    Attributes:
        clips: uint8 `(N, F, H, W, 3)`.
        ways: where the avatar is `(N, F, 2)`, in sides of the picture.
        motions, styles: of each; no styles where the table has none.
    """

    clips: np.ndarray
    ways: np.ndarray
    motions: list[str]
    styles: list[str]

    @property
    def moving(self) -> np.ndarray:
        """Which of them go somewhere, bool `(N,)`."""
        return np.array([motion in MOVING for motion in self.motions])

    def labels(self, id2label: dict) -> torch.Tensor:
        """Numbers by a network's classes, motions or styles."""
        known = {name: int(number) for number, name in (id2label or {}).items()}
        for names in (self.motions, self.styles):
            if names and {*names} <= {*known}:
                return torch.tensor([known[name] for name in names])
        raise ValueError(
            f"`data` has clips of the motions {', '.join(sorted({*self.motions}))} and the styles "
            f"{', '.join(sorted({*self.styles})) or '(none)'}; the network knows {', '.join(known) or 'no classes'}."
        )


def read_clips(path: Path, frames: int, stride: int, count: int | None = None) -> Truth:
    """Windows of the first clips, from their first frame on."""
    from datasets import Features

    table = parquet.read_table(path)
    names = Features.from_arrow_schema(table.schema)["label"].names
    rows = table.to_pylist()[:count]
    window = slice(0, (frames - 1) * stride + 1, stride)
    clips = [
        read_animation(io.BytesIO(row["clip"]["bytes"]), row.get("fps"), row.get("frames"))[0][window] for row in rows
    ]
    truth = [json.loads(row["truth"]) for row in rows]
    ways = np.array([np.stack([one["dx"], one["dy"]], axis=1)[window] for one in truth])
    full = [row for row, clip in enumerate(clips) if len(clip) == frames]  # the end of a clip may stand still
    clips = np.stack([np.stack([np.asarray(frame) for frame in clips[row]]) for row in full])
    styles = [rows[row]["style"] for row in full if rows[row].get("style")]
    return Truth(clips, ways[full], [names[rows[row]["label"]] for row in full], styles)


def video_pipeline(name: str, frames: int) -> VideoPipeline:
    """A pipeline of clips; one of pictures draws frame by frame."""
    pipe = load_class_pipeline(name, "cpu")
    if not isinstance(pipe, VideoPipeline):
        pipe = VideoPipeline(inflate(pipe.transformer), pipe.scheduler, pipe.vae, num_frames=frames)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class FrameByFrame(torch.nn.Module):
    """A video network that sees every frame as a clip of its own."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None):
        batch, frames = sample.shape[0], sample.shape[2]
        each = {"class_labels": None if class_labels is None else class_labels.repeat_interleave(frames)}
        alone = sample.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        output = self.network(alone, timestep.expand(batch).repeat_interleave(frames), **each)
        output.sample = output.sample.squeeze(2).unflatten(0, (batch, frames)).transpose(1, 2)
        return output


class Figures(NamedTuple):
    """What a pipeline made of the clips.

    Attributes:
        loss, motion, flicker, kd: see the module's text; no `motion` where no clip moves, no `kd` for fewer than four.
        drawn: uint8 `(N, F, H, W, 3)`.
    """

    loss: float
    motion: float | None
    flicker: float
    kd: float | None
    drawn: np.ndarray


@torch.no_grad()
def measure(name: str, truth: Truth, steps: int, guidance: float, alone: bool) -> Figures:
    """The figures of one pipeline, `alone`: frame by frame."""
    clips = truth.clips
    pipe = video_pipeline(name, clips.shape[1])
    kind, settings = saved_objective(pipeline_folder(name)) or ("edm", {})
    pixels = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    labels = truth.labels(pipe.transformer.config.id2label)
    held_out = PairedSet.from_images(pipe.encode(pixels), labels, num_levels=4)
    network = FrameByFrame(pipe.transformer) if alone else pipe.transformer
    loss = paired_loss(network, held_out, OBJECTIVES[kind](**settings), batch_size=8)["loss"]
    drawn = np.concatenate([
        pipe(
            class_labels=labels[part].tolist(),
            num_frames=clips.shape[1],
            first_frames=pixels[part, :, :1],
            **({"window": 1, "overlap": 0} if alone else {}),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(int(number)) for number in part],
            output_type="np",
        ).frames
        for part in torch.arange(len(labels)).split(16)
    ])  # fmt: skip
    drawn = (np.nan_to_num(drawn).clip(0, 1) * 255).round().astype(np.uint8)
    error, kd = None, None
    if truth.moving.any():
        error = float(motion_error(drawn[truth.moving], truth.ways[truth.moving]).mean())
    if len(clips) >= FEWEST:
        own, others = (lite_features(part[:, 1:].reshape(-1, *part.shape[2:])) for part in (clips, drawn))
        kd = float(kernel_distance(own, others, subset_size=len(own) // 2)[0])
    return Figures(float(loss), error, flicker(drawn), kd, drawn)


def sheet(rows: list[np.ndarray], shown: int) -> list[Image.Image]:
    """The frames of a picture that shows the first clips of each row, side by side."""
    grids = [np.concatenate(list(row[:shown]), axis=2) for row in rows]  # (F, H, shown W, 3) each
    return [Image.fromarray(frame) for frame in np.concatenate(grids, axis=1)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipelines", nargs="+", metavar="[NAME=]FOLDER[,FOLDER]", help="of clips or of pictures")
    parser.add_argument("--data", type=Path, required=True, help="a file of `brickwork data build avatars --clips`")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--stride", type=int, default=2)
    options.add_common(parser, "--steps")
    options.add_common(parser, "--guidance", default=1.0)
    parser.add_argument("--count", type=int, help="of the clips, from the first on (default: all)")
    parser.add_argument(
        "--alone", action=argparse.BooleanOptionalAction, default=True, help="measure clips frame by frame too"
    )
    parser.add_argument("--gif", type=Path, help="write what the first clips are, and what is drawn of them")
    parser.add_argument("--shown", type=int, default=8, help="clips in the GIF (default: 8)")
    args = parser.parse_args(arguments)
    truth = read_clips(args.data, args.frames, args.stride, args.count)
    clips, moving = truth.clips, truth.moving
    told = f"{len(clips)} clips, {moving.sum()} of them moving"
    if moving.any():
        still = motion_error(np.repeat(clips[moving, :1], args.frames, axis=1), truth.ways[moving]).mean()
        own = motion_error(clips[moving], truth.ways[moving]).mean()
        told += f"; standing still {still:.2f} px; the clips themselves {own:.2f} px"
    print(f"{told}; their flicker {flicker(clips):.2f}")
    print(
        "| pipeline | held-out loss | motion error, px | flicker | KD-EffNetLite0 |\n| --- | --- | --- | --- | --- |"
    )
    ways = {
        name or folders: folders.split(",") for name, _, folders in (one.rpartition("=") for one in args.pipelines)
    }
    kinds = [(name, False) for name in ways]
    if args.alone:
        kinds += [(name, True) for name, runs in ways.items() if pipeline_class(runs[0]) == "VideoPipeline"]
    rows = [clips]
    for name, alone in kinds:
        found = [measure(run, truth, args.steps, args.guidance, alone) for run in ways[name]]
        told = [_told(values) for values in zip(*(one[:-1] for one in found))]
        print(" | ".join([f"| {name}{', frame by frame' * alone}", *told]) + " |", flush=True)
        rows.append(found[0].drawn)
    if args.gif is not None:
        write_clip(sheet(rows, args.shown), args.gif, 4, "brickwork motion")
    return 0


def _told(values: tuple[float | None, ...]) -> str:
    return "–" if None in values else number(*mean_and_spread(list(values)))


if __name__ == "__main__":
    raise SystemExit(main())
