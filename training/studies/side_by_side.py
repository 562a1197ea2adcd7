"""Adapters on activations beside one another on one frozen text-to-image base: what a study of them has in common.

Each way learns for equal processor seconds, by the same optimiser, from the same pictures, conditions and noise of a
seed. On held-out pictures every adapter, and the base without one, has its paired loss (see
`brickwork.eval.held_out.paired_loss`) under each picture's own condition, and whatever a study measures of pictures
that are drawn from captions and conditions. The loop is the studies' own, as a training run is told images and not
seconds. A cell that is there is not computed again.
"""

import argparse
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from brickwork import options
from brickwork.adapters.modules import ModuleAdapter
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.report.blocks import Picture, Report
from brickwork.eval.report.numbers import number
from brickwork.eval.report.pictures import labelled_sheet
from brickwork.eval.studies.core import Cell, Study, StudyFolder, compare_pairs, mean_and_spread, run_study, table_of
from brickwork.files import write_file
from brickwork.pipelines.latents import encode
from brickwork.pipelines.prompts import encode_captions, encode_no_caption
from brickwork.pipelines.stable_diffusion import PromptedUNet, load_pipeline, objective_of
from brickwork.training.data.images import to_unit_range

BATCH, WARMUP, COOLDOWN = 8, 0.05, 0.3  # the rate rises and falls over so large shares of the seconds
GROUP = 4  # held-out pictures whose losses are averaged
ADAPTER, PICTURES, SHOWN = "adapter.safetensors", "pictures.npz", 6
TRUTH = "held-out pictures"


class SideBySide(ABC):
    """The cells `trained/WAY/SEED` and `scored/WAY/SEED` of a study, and its report.

    Attributes:
        name: of the study.
        title: of its report.
        none: what the base without an adapter is called.
        measures: what tables call each list of a scored cell; losses come first, and are lower where better.
        asked: arguments of the command line on which numbers depend, beside those of `add_arguments`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    none: ClassVar[str] = "no adapter"
    measures: ClassVar[Mapping[str, str]]
    asked: ClassVar[tuple[str, ...]] = ()

    def __init__(self, args: argparse.Namespace):
        self.args, self.output = args, Path(args.output)
        self.pipeline = cache(partial(load_pipeline, args.base))
        self.prepared = cache(self._prepared)

    @property
    @abstractmethod
    def ways(self) -> Mapping[str, Callable[[Any], ModuleAdapter]]:
        """Each puts an untrained adapter on a pipeline; the others are compared with the first."""

    @abstractmethod
    def read(self, split: str, count: int) -> dict[str, Any]:
        """`pictures` uint8 `(N, H, W, 3)`, `captions`, and what conditions and measures are made of."""

    @abstractmethod
    def given(self, data: Mapping[str, Any], rows: Any) -> dict[str, Any]:
        """What `adapter.condition` takes for some rows, numbers or a slice."""

    @abstractmethod
    def measure(self, pictures: np.ndarray, data: Mapping[str, Any]) -> dict[str, list[float]]:
        """Of every picture drawn, each measure but the losses."""

    def shown(self, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Rows of the sheet above those of the ways, uint8 `(SHOWN, H, W, 3)`."""
        return {"held out": data["pictures"][:SHOWN]}

    def conditions(self) -> dict[str, Any]:
        """What all numbers depend on."""
        shared = ("base", "size", "pictures", "seconds", "rate", "samples", "steps", "guidance", "seeds", "bf16")
        return {name: getattr(self.args, name) for name in (*self.asked, *shared)}

    @torch.no_grad()
    def _prepared(self, split: str) -> dict[str, Any]:
        """What `read` gives, with `latents` and `prompts`."""
        data = self.read(split, self.args.pictures if split == "train" else self.args.samples)
        pixels = torch.from_numpy(np.stack([to_unit_range(picture) for picture in data["pictures"]]))
        captions = sorted(set(data["captions"]))
        parts = [captions[start : start + 64] for start in range(0, len(captions), 64)]
        prompts = torch.cat([encode_captions(self.pipeline(), part)["prompt_embeds"] for part in parts])
        places = {caption: place for place, caption in enumerate(captions)}
        return data | {
            "latents": torch.cat([encode(self.pipeline().vae, part) for part in pixels.split(64)]),
            "prompts": prompts,
            "prompt_of": torch.tensor([places[caption] for caption in data["captions"]]),
        }

    def autocast(self) -> torch.autocast:
        """What networks compute under."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16)

    def trained(self, results: Mapping[str, Any]) -> list[Cell]:
        """Each way at each seed."""
        return [
            Cell(f"trained/{way}/{seed}", self.train, {"way": way, "seed": seed}, alone=True, describe=str)
            for seed in range(self.args.seeds)
            for way in self.ways
        ]

    def train(self, folder: Path, *, way: str, seed: int) -> dict[str, float]:
        """Train an adapter on the frozen base; its `parameters`, `steps`, and mean `loss` over the last quarter."""
        torch.manual_seed(seed)
        data, pipeline, unet = self.prepared("train"), self.pipeline(), self.pipeline().unet
        unet.requires_grad_(False).eval()
        adapter, objective = self.ways[way](pipeline), objective_of(pipeline.scheduler)
        weights = adapter.trainable_parameters()
        optimizer = torch.optim.AdamW(weights, lr=self.args.rate, weight_decay=0.0)
        generator, losses, started, share = torch.Generator().manual_seed(seed), [], time.process_time(), 0.0
        while share < 1:
            rows = torch.randint(len(data["latents"]), (BATCH,), generator=generator)
            images, prompts = data["latents"][rows], data["prompts"][data["prompt_of"][rows]]
            noise = torch.randn(images.shape, generator=generator)
            level = objective.noise_levels(torch.randn(BATCH, generator=generator))
            sample, timestep = objective.network_inputs(images, noise, level)
            with adapter.condition(**self.given(data, rows)), self.autocast():
                output = unet(sample, timestep, encoder_hidden_states=prompts).sample
            loss = objective.losses(output, images, noise, level).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([weight for weight in weights if weight.grad is not None], 1.0)
            optimizer.param_groups[0]["lr"] = self.args.rate * min(1, share / WARMUP + 0.01, (1 - share) / COOLDOWN)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            share = (time.process_time() - started) / self.args.seconds
        write_file(folder / ADAPTER, partial(save_file, adapter.state()))
        adapter.unload()
        counted = sum(weight.numel() for weight in weights)
        return {"parameters": counted, "steps": len(losses), "loss": float(np.mean(losses[-len(losses) // 4 :]))}

    def scored(self, results: Mapping[str, Any]) -> list[Cell]:
        """Held-out pictures themselves, the base alone, and each adapter."""
        cells = [
            Cell(f"scored/{TRUTH}/0", self.score_truth),
            Cell(f"scored/{self.none}/0", self.score, {"way": None, "seed": 0}),
        ]
        return cells + [
            Cell(f"scored/{way}/{seed}", self.score, {"way": way, "seed": seed})
            for way in self.ways
            for seed in range(self.args.seeds)
        ]

    def score_truth(self, folder: Path) -> dict[str, list[float]]:
        """What the measures say of the held-out pictures themselves."""
        data = self.prepared("held_out_seeds")
        return self.measure(data["pictures"], data)

    @contextlib.contextmanager
    def loaded(self, way: str | None, seed: int) -> Iterator[ModuleAdapter | None]:
        """The pipeline with a trained adapter on it, or without one."""
        if way is None:
            yield None
            return
        adapter = self.ways[way](self.pipeline())
        try:
            adapter.parts.load_state_dict(load_file(self.output / f"trained/{way}/{seed}" / ADAPTER), strict=False)
            yield adapter
        finally:
            adapter.unload()

    @torch.no_grad()
    def score(self, folder: Path, *, way: str | None, seed: int) -> dict[str, list[float]]:
        """`losses` of groups of pictures, and of each picture drawn what the study measures."""
        data, pipeline = self.prepared("held_out_seeds"), self.pipeline()
        network = PromptedUNet(pipeline.unet, {"prompt_embeds": data["prompts"]})
        objective, numbers, losses, drawn = objective_of(pipeline.scheduler), data["prompt_of"], [], []
        nothing = encode_no_caption(pipeline)["prompt_embeds"]
        with self.loaded(way, seed) as adapter:

            def under(rows: slice) -> contextlib.AbstractContextManager:
                return contextlib.nullcontext() if adapter is None else adapter.condition(**self.given(data, rows))

            for start in range(0, len(numbers), GROUP):
                rows = slice(start, start + GROUP)
                with under(rows), self.autocast():
                    pairs = PairedSet.from_images(data["latents"][rows], numbers[rows], seed=start)
                    losses.append(paired_loss(network, pairs, objective)["loss"])
            for start in range(0, len(numbers), BATCH):
                rows = slice(start, start + BATCH)
                prompts = data["prompts"][numbers[rows]]
                with under(rows), self.autocast():
                    pictures = pipeline(
                        prompt_embeds=prompts, negative_prompt_embeds=nothing.expand_as(prompts),
                        height=self.args.size, width=self.args.size, num_inference_steps=self.args.steps,
                        guidance_scale=self.args.guidance, output_type="np",
                        generator=[torch.Generator().manual_seed(start + row) for row in range(len(prompts))],
                    ).images  # fmt: skip
                drawn.append((np.nan_to_num(pictures).clip(0, 1) * 255).round().astype(np.uint8))
        pictures = np.concatenate(drawn)
        write_file(folder / PICTURES, partial(np.savez_compressed, pictures=pictures))
        return {"losses": losses, **self.measure(pictures, data)}

    def report(self, folder: StudyFolder) -> tuple[Report, dict[str, Any]]:
        """A row a way; how far each is from the first, over seeds; and what is drawn."""
        results = folder.results()
        scores: dict[str, list[dict[str, list[float]]]] = {way: [] for way in (TRUTH, self.none, *self.ways)}
        for name, result in sorted(results.items()):
            part, way, _ = name.split("/")
            if part == "scored":
                scores[way].append(result)
        means = {
            way: {
                # Over what is known: `None` where a picture says nothing of a measure.
                name: [pd.Series(one[name], dtype=float).mean() for one in found if name in one]
                for name in self.measures
            }
            for way, found in scores.items()
        }

        def of(measure: str, way: str) -> str:
            found = means[way][measure]
            return number(*mean_and_spread(found)) if found else "–"

        def trained(value: str, way: str) -> str:
            if way not in self.ways:
                return "–"
            found = [results[f"trained/{way}/{seed}"][value] for seed in range(self.args.seeds)]
            return f"{round(float(np.mean(found))):,}"

        columns = {"way": str} | {name: partial(trained, name) for name in ("parameters", "steps")}
        table = table_of(list(scores), columns | {told: partial(of, name) for name, told in self.measures.items()})
        first, *others = self.ways
        apart = {way: {name: self._apart(means, name, first, way) for name in self.measures} for way in others}
        caption = f"Differences to {first}, by seeds; *: it exceeds its spread, and no seed reverses it."
        differences = table_of(
            others, {"way": str} | {told: partial(_told, apart, name) for name, told in self.measures.items()}, caption
        )
        sheet = Picture(self.sheet(), name=self.name)
        return Report(self.title, [table, differences, sheet]), {"scores": scores, "means": means}

    def _apart(self, means: Mapping[str, Any], measure: str, first: str, way: str) -> tuple[Any, bool]:
        """The difference of a way to the first, and whether it exceeds its spread."""
        up = compare_pairs(means[first][measure], means[way][measure])
        down = compare_pairs(means[way][measure], means[first][measure])
        return up, bool(up.exceeds or down.exceeds)

    def sheet(self) -> Image.Image:
        """Rows of what is asked for, and of what each way draws at the first seed."""
        rows = self.shown(self.prepared("held_out_seeds"))
        for way in (self.none, *self.ways):
            rows[way] = np.load(self.output / f"scored/{way}/0" / PICTURES)["pictures"][:SHOWN]
        pictures = [[Image.fromarray(np.concatenate(list(row), axis=1))] for row in rows.values()]
        labels = [label.replace("×", "x") for label in rows]  # which the font has
        return labelled_sheet(pictures, labels, [""], side=2 * SHOWN * self.args.size)

    def run(self) -> int:
        """Train, score, and write the report."""
        study = Study(self.name, self.conditions(), [self.trained, self.scored], self.report)
        return 0 if run_study(study, self.output) else 1


def _told(apart: Mapping[str, Mapping[str, Any]], measure: str, way: str) -> str:
    difference, exceeds = apart[way][measure]
    return number(difference.mean, difference.spread, signed=True) + (" *" if exceeds else "")


def add_arguments(parser: argparse.ArgumentParser, samples: int = 48) -> None:
    """What all such studies take."""
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the study")
    parser.add_argument("--size", type=int, default=64, help="pixels of a picture's side (default: 64)")
    parser.add_argument("--pictures", type=int, default=2048, help="to train on (default: 2048)")
    parser.add_argument("--seconds", type=float, default=60, help="of the processor, for each adapter (default: 60)")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate (default: 5e-4)")
    parser.add_argument("--seeds", type=int, default=3, help="of training (default: 3)")
    parser.add_argument("--samples", type=int, default=samples, help=f"held-out pictures (default: {samples})")
    options.add_common(parser, "--steps", default=8)
    options.add_common(parser, "--guidance", default=3.0)
    parser.add_argument("--bf16", action="store_true", help="compute under bf16 autocast")
