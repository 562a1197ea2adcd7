"""Our control adapter beside diffusers' ControlNet of equal size, on a frozen text-to-image base.

    python -m brickwork.training.studies.control runs/scenes/general/pipeline data/scenes-square -o runs/control

Each way learns for equal processor seconds, by the same optimiser, from the same scenes, maps and noise of a seed. On
held-out scenes, for each way and without control:

- **Held-out paired loss**: see `brickwork.eval.held_out.paired_loss`, with each scene's own map as the condition.
- **Edges**: pictures are drawn from the scenes' captions and maps; the harmonic mean of the shares of drawn edges near
  an asked one and of asked edges near a drawn one (within a pixel).
- **Masks**: the intersection over the union of what stands on the ground, drawn and asked.

The loop is the study's own, as a training run is told images and not seconds. A cell that is there is not computed
again.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from brickwork import options
from brickwork.adapters.base import load_adapter
from brickwork.adapters.control.adapter import ControlAdapter
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.judge.flat_ground import differs_from_ground
from brickwork.eval.report.blocks import Picture, Report
from brickwork.eval.report.numbers import number
from brickwork.eval.report.pictures import labelled_sheet
from brickwork.eval.studies.core import Cell, Study, StudyFolder, compare_pairs, mean_and_spread, run_study, table_of
from brickwork.files import write_file
from brickwork.pipelines.latents import encode
from brickwork.pipelines.prompts import encode_captions
from brickwork.pipelines.stable_diffusion import PromptedUNet, load_pipeline, objective_of
from brickwork.training.commands.train import run_script
from brickwork.training.data.images import to_unit_range
from brickwork.training.studies.scenes_proof import Scenes

NONE = "no control"
WAYS = {"ControlAdapter": {"variant": "composite", "middle": True}, "ControlNet": {"variant": "controlnet"}}
MEASURES = {"losses": "held-out paired loss", "edges": "edges", "mask": "masks"}
BATCH, WARMUP, COOLDOWN = 8, 0.05, 0.3  # the rate rises and falls over so large shares of the seconds
GROUP = 4  # held-out scenes whose losses are averaged
STEEP = 60.0  # levels of 255 by a pixel, from which a border is an edge
ADAPTER, PICTURES, SHOWN = "adapter.safetensors", "pictures.npz", 6


def edges(picture: np.ndarray) -> np.ndarray:
    """Where some channel of a picture, uint8 `(H, W, 3)`, changes fast; bool `(H, W)`."""
    channels = picture.astype(np.float64)
    slopes = [ndimage.sobel(channels, axis=axis, mode="nearest") / 4 for axis in (0, 1)]
    return np.hypot(*slopes).max(axis=-1) > STEEP


def mask(picture: np.ndarray) -> np.ndarray:
    """Where something stands on a picture's ground; bool `(H, W)`."""
    return ndimage.binary_fill_holes(differs_from_ground(picture))


MAPS = {"edges": edges, "mask": mask}


def edges_agree(drawn: np.ndarray, asked: np.ndarray) -> float:
    """The F-measure of two maps of edges, in [0, 1], where a pixel's distance does not count."""
    near = np.ones((3, 3), bool)
    shares = [
        float(ndimage.binary_dilation(other, near)[one].mean()) if one.any() else 0.0
        for one, other in ((drawn, asked), (asked, drawn))
    ]
    return 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0


def masks_agree(drawn: np.ndarray, asked: np.ndarray) -> float:
    """Intersection over union of two masks, in [0, 1]."""
    union = (drawn | asked).sum()
    return float((drawn & asked).sum() / union) if union else 1.0


AGREEMENT = {"edges": edges_agree, "mask": masks_agree}


class Control:
    """The cells `trained/WAY/SEED` and `scored/WAY/SEED` of the study.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.output = args, Path(args.output)
        self.scenes = cache(partial(Scenes, args.scenes))
        self.pipeline = cache(partial(load_pipeline, args.base))
        self.prepared = cache(self._prepared)

    def conditions(self) -> dict[str, Any]:
        """What all numbers depend on."""
        names = (
            "base",
            "scenes",
            "map",
            "size",
            "pictures",
            "seconds",
            "rate",
            "samples",
            "steps",
            "guidance",
            "seeds",
        )
        return {name: getattr(self.args, name) for name in names}

    @torch.no_grad()
    def _prepared(self, split: str) -> dict[str, Any]:
        """Scenes: `pictures` uint8 `(N, H, W, 3)`, `captions`, `maps (N, 1, H, W)`, `latents` and `prompts`."""
        scenes, pipeline, size = self.scenes(split), self.pipeline(), (self.args.size,) * 2
        rows = scenes.rows(size, self.args.pictures if split == "train" else self.args.samples)
        pictures, captions = scenes.pictures(rows, size), scenes.captions(rows)
        pixels = torch.from_numpy(np.stack([to_unit_range(picture) for picture in pictures]))
        maps = np.stack([MAPS[self.args.map](picture) for picture in pictures])
        parts = [captions[start : start + 64] for start in range(0, len(captions), 64)]
        return {
            "pictures": pictures,
            "captions": captions,
            "maps": torch.from_numpy(maps)[:, None].float(),
            "latents": torch.cat([encode(pipeline.vae, part) for part in pixels.split(64)]),
            "prompts": torch.cat([encode_captions(pipeline, part)["prompt_embeds"] for part in parts]),
        }

    def autocast(self) -> torch.autocast:
        """What networks compute under."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16)

    def trained(self, results: Mapping[str, Any]) -> list[Cell]:
        """Each way at each seed."""
        return [
            Cell(f"trained/{way}/{seed}", self.train, {"way": way, "seed": seed}, alone=True, describe=str)
            for seed in range(self.args.seeds)
            for way in WAYS
        ]

    def train(self, folder: Path, *, way: str, seed: int) -> dict[str, float]:
        """Train an adapter on the frozen base; its `parameters`, `steps`, and mean `loss` over the last quarter."""
        torch.manual_seed(seed)
        data, pipeline, unet = self.prepared("train"), self.pipeline(), self.pipeline().unet
        unet.requires_grad_(False).eval()
        adapter, objective = (
            ControlAdapter.create(pipeline, image_channels=1, **WAYS[way]),
            objective_of(pipeline.scheduler),
        )
        weights = adapter.trainable_parameters()
        optimizer = torch.optim.AdamW(weights, lr=self.args.rate, weight_decay=0.0)
        generator, losses, started, share = torch.Generator().manual_seed(seed), [], time.process_time(), 0.0
        while share < 1:
            rows = torch.randint(len(data["latents"]), (BATCH,), generator=generator)
            images = data["latents"][rows]
            noise = torch.randn(images.shape, generator=generator)
            level = objective.noise_levels(torch.randn(BATCH, generator=generator))
            sample, timestep = objective.network_inputs(images, noise, level)
            with adapter.condition(image=data["maps"][rows]), self.autocast():
                output = unet(sample, timestep, encoder_hidden_states=data["prompts"][rows]).sample
            loss = objective.losses(output, images, noise, level).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([weight for weight in weights if weight.grad is not None], 1.0)
            optimizer.param_groups[0]["lr"] = self.args.rate * min(1, share / WARMUP + 0.01, (1 - share) / COOLDOWN)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            share = (time.process_time() - started) / self.args.seconds
        adapter.save(folder / ADAPTER, overwrite=True)
        adapter.unload()
        counted = sum(weight.numel() for weight in weights)
        return {"parameters": counted, "steps": len(losses), "loss": float(np.mean(losses[-len(losses) // 4 :]))}

    def scored(self, results: Mapping[str, Any]) -> list[Cell]:
        """Each adapter, and the base alone."""
        cells = [Cell(f"scored/{NONE}/0", self.score, {"source": None})]
        return cells + [
            Cell(f"scored/{way}/{seed}", self.score, {"source": f"trained/{way}/{seed}/{ADAPTER}"})
            for way in WAYS
            for seed in range(self.args.seeds)
        ]

    @torch.no_grad()
    def score(self, folder: Path, *, source: str | None) -> dict[str, list[float]]:
        """`losses` of groups of scenes, and of each picture drawn its agreement, `edges` and `mask`."""
        data, pipeline = self.prepared("held_out_seeds"), self.pipeline()
        adapter = None if source is None else load_adapter(pipeline, self.output / source)
        network, objective = (
            PromptedUNet(pipeline.unet, {"prompt_embeds": data["prompts"]}),
            objective_of(pipeline.scheduler),
        )

        @contextlib.contextmanager
        def under(rows: slice):
            with contextlib.ExitStack() as held:
                held.enter_context(self.autocast())
                if adapter is not None:
                    held.enter_context(adapter.condition(image=data["maps"][rows]))
                yield

        numbers, losses, drawn = torch.arange(len(data["latents"])), [], []
        for start in range(0, len(numbers), GROUP):
            rows = slice(start, start + GROUP)
            with under(rows):
                pairs = PairedSet.from_images(data["latents"][rows], numbers[rows], seed=start)
                losses.append(paired_loss(network, pairs, objective)["loss"])
        for start in range(0, len(numbers), BATCH):
            rows = slice(start, start + BATCH)
            with under(rows):
                pictures = pipeline(
                    data["captions"][rows], height=self.args.size, width=self.args.size,
                    num_inference_steps=self.args.steps, guidance_scale=self.args.guidance, output_type="np",
                    generator=[torch.Generator().manual_seed(int(row)) for row in numbers[rows]],
                ).images  # fmt: skip
            drawn.append((np.nan_to_num(pictures).clip(0, 1) * 255).round().astype(np.uint8))
        if adapter is not None:
            adapter.unload()
        pictures = np.concatenate(drawn)
        write_file(folder / PICTURES, partial(np.savez_compressed, pictures=pictures))
        found = {
            name: [agree(MAPS[name](one), MAPS[name](own)) for one, own in zip(pictures, data["pictures"])]
            for name, agree in AGREEMENT.items()
        }
        return {"losses": losses, **found}

    def report(self, folder: StudyFolder) -> tuple[Report, dict[str, Any]]:
        """A row a way; and how far the two are apart, by seeds and by pictures."""
        results = folder.results()
        scores: dict[str, list[dict[str, list[float]]]] = {way: [] for way in (NONE, *WAYS)}
        for name, result in results.items():
            part, way, _ = name.split("/")
            if part == "scored":
                scores[way].append(result)

        def of(measure: str, way: str) -> str:
            means = [float(np.mean(seed[measure])) for seed in scores[way]]
            return number(*mean_and_spread(means))

        def from_training(value: str, way: str) -> str | None:
            found = [results[f"trained/{way}/{seed}"][value] for seed in range(self.args.seeds)] if way in WAYS else []
            return f"{round(float(np.mean(found))):,}" if found else "–"

        columns = {"way": str} | {name: partial(from_training, name) for name in ("parameters", "steps")}
        table = table_of([NONE, *WAYS], columns | {told: partial(of, name) for name, told in MEASURES.items()})
        said = [
            _compared(told, *([one[name] for one in scores[way]] for way in WAYS)) for name, told in MEASURES.items()
        ]
        sheet = Picture(self.sheet(), name="control")
        return Report("Two control adapters of equal size", [table, *said, sheet]), {"scores": scores}

    def sheet(self) -> Image.Image:
        """A row each for scenes, their maps, and what is drawn from map and caption at the first seed."""
        data = self.prepared("held_out_seeds")
        maps = (255 * data["maps"][:SHOWN, 0].numpy()).astype(np.uint8)
        rows = {"scene": data["pictures"][:SHOWN], self.args.map: np.repeat(maps[..., None], 3, axis=-1)}
        for way in (NONE, *WAYS):
            rows[way] = np.load(self.output / f"scored/{way}/0" / PICTURES)["pictures"][:SHOWN]
        pictures = [[Image.fromarray(np.concatenate(list(row), axis=1))] for row in rows.values()]
        return labelled_sheet(pictures, list(rows), [""], side=2 * SHOWN * self.args.size)


def _compared(measure: str, ours: list[list[float]], theirs: list[list[float]]) -> str:
    """How far ControlNet is above the adapter, over seeds and, averaged over these, over held-out pictures."""
    seeds = compare_pairs([float(np.mean(one)) for one in ours], [float(np.mean(one)) for one in theirs])
    pictures = compare_pairs(*(np.mean(one, axis=0).tolist() for one in (ours, theirs)))
    spread = "" if seeds.spread is None else f" (spread over {len(seeds.keys)} seeds {seeds.spread:.4f})"
    return f"{measure}: ControlNet − ControlAdapter = {pictures.mean:+.4f} ± {pictures.error or 0:.4f}{spread}."


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", help="folder of a Stable Diffusion pipeline")
    parser.add_argument("scenes", help="folder of square scenes, `brickwork data build avatars --scenes`")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the study")
    parser.add_argument("--map", choices=MAPS, default="edges", help="what the adapters are shown (default: edges)")
    parser.add_argument("--size", type=int, default=64, help="pixels of a picture's side (default: 64)")
    parser.add_argument("--pictures", type=int, default=2048, help="scenes to train on (default: 2048)")
    parser.add_argument("--seconds", type=float, default=60, help="of the processor, for each adapter (default: 60)")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate (default: 5e-4)")
    parser.add_argument("--seeds", type=int, default=3, help="of training (default: 3)")
    parser.add_argument("--samples", type=int, default=48, help="held-out scenes (default: 48)")
    options.add_common(parser, "--steps", default=8)
    options.add_common(parser, "--guidance", default=3.0)
    parser.add_argument("--bf16", action="store_true", help="compute under bf16 autocast")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, score, and write the report."""
    study = Control(args)
    done = run_study(Study("control", study.conditions(), [study.trained, study.scored], study.report), args.output)
    return 0 if done else 1


main = partial(run_script, "control", __doc__, configure_parser)

if __name__ == "__main__":
    sys.exit(main())
