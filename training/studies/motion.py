"""How well pipelines draw motion that is known: clips of avatars from a given first frame, against the truth.

    python -m brickwork.training.studies.motion runs/video/pipeline runs/image --data data/clips/held_out_seeds.parquet

Each pipeline of clips is measured frame by frame too, the same weights without neighbours in time, as a pipeline of
pictures always is. Written as a table: the paired held-out loss; the error of the
moving avatar's middle against the truth, in pixels (also of standing still, which knows nothing); flicker, the mean
change of a pixel from frame to frame in 8-bit steps, beside that of the clips themselves.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import torch
from pyarrow import parquet

from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.sampling.pipelines import load_class_pipeline, pipeline_class, pipeline_folder
from brickwork.gen.networks.video import inflate
from brickwork.gen.parameterization import OBJECTIVES
from brickwork.pipelines.objective_file import saved_objective
from brickwork.pipelines.video import VideoPipeline
from brickwork.training.data.clips import read_animation

MOVING = ("nod", "walk")


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


def read_clips(path: Path, frames: int, stride: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Windows from the first frame on, uint8 `(N, F, H, W, 3)`; where the avatar is `(N, F, 2)`; the motions."""
    from datasets import Features

    table = parquet.read_table(path)
    names = Features.from_arrow_schema(table.schema)["label"].names
    rows = table.to_pylist()
    window = slice(0, (frames - 1) * stride + 1, stride)
    clips = [
        read_animation(io.BytesIO(row["clip"]["bytes"]), row.get("fps"), row.get("frames"))[0][window] for row in rows
    ]
    truth = [json.loads(row["truth"]) for row in rows]
    ways = np.array([np.stack([one["dx"], one["dy"]], axis=1)[window] for one in truth])
    full = [row for row, clip in enumerate(clips) if len(clip) == frames]  # the end of a clip may stand still
    clips = np.stack([np.stack([np.asarray(frame) for frame in clips[row]]) for row in full])
    return clips, ways[full], [names[rows[row]["label"]] for row in full]


def video_pipeline(name: str, frames: int) -> VideoPipeline:
    """A pipeline of clips; one of pictures draws frame by frame."""
    pipe = load_class_pipeline(name, "cpu")
    if not isinstance(pipe, VideoPipeline):
        pipe = VideoPipeline(inflate(pipe.transformer), pipe.scheduler, num_frames=frames)
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


@torch.no_grad()
def measure(
    name: str, clips: np.ndarray, truth: np.ndarray, motions: list[str], steps: int, guidance: float, alone: bool
) -> dict[str, float]:
    """The figures of one pipeline, `alone`: frame by frame, with the spread over clips where they have one."""
    pipe = video_pipeline(name, clips.shape[1])
    kind, options = saved_objective(pipeline_folder(name)) or ("edm", {})
    pixels = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    known = {label: int(number) for number, label in (pipe.transformer.config.id2label or {}).items()}
    labels = torch.tensor([known[motion] for motion in motions])
    held_out = PairedSet.from_images(pixels, labels, num_levels=4)
    network = FrameByFrame(pipe.transformer) if alone else pipe.transformer
    loss = paired_loss(network, held_out, OBJECTIVES[kind](**options))["loss"]
    drawn = pipe(
        class_labels=labels.tolist(),
        num_frames=clips.shape[1],
        first_frames=pixels[:, :, :1],
        **({"window": 1, "overlap": 0} if alone else {}),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(k) for k in range(len(labels))],
        output_type="np",
    ).frames
    drawn = (drawn * 255).round().astype(np.uint8)
    moving = np.array([motion in MOVING for motion in motions])
    errors = motion_error(drawn[moving], truth[moving])
    spread = errors.std(ddof=1) / len(errors) ** 0.5
    return {"loss": loss, "motion": float(errors.mean()), "motion_se": float(spread), "flicker": flicker(drawn)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipelines", nargs="+", help="pipeline folders, of clips or of pictures")
    parser.add_argument("--data", type=Path, required=True, help="a file of `brickwork data build avatars --clips`")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--count", type=int, help="of the clips, from the first on (default: all)")
    args = parser.parse_args(arguments)
    clips, truth, motions = (part[: args.count] for part in read_clips(args.data, args.frames, args.stride))
    moving = np.array([motion in MOVING for motion in motions])
    still = motion_error(np.repeat(clips[moving, :1], args.frames, axis=1), truth[moving]).mean()
    own = motion_error(clips[moving], truth[moving]).mean()
    print(
        f"{len(clips)} clips, {moving.sum()} of them moving; standing still {still:.2f} px; the clips themselves "
        f"{own:.2f} px, flicker {flicker(clips):.2f}"
    )
    print("| pipeline | held-out loss | motion error, px | flicker |\n| --- | --- | --- | --- |")
    kinds = [(name, False) for name in args.pipelines]
    kinds += [(name, True) for name in args.pipelines if pipeline_class(name) == "VideoPipeline"]
    for name, alone in kinds:
        found = measure(name, clips, truth, motions, args.steps, args.guidance, alone)
        name += ", frame by frame" * alone
        print(f"| {name} | {found['loss']:.4f} | {found['motion']:.2f} ± {found['motion_se']:.2f} | "
              f"{found['flicker']:.2f} |", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
