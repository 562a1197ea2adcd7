"""The task of `train_backbone.py`: a backbone learns to denoise pictures with class labels, or their latents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from brickwork.adapters.base import denoiser_of
from brickwork.errors import explained
from brickwork.eval.held_out.paired_loss import PairedSet, estimates
from brickwork.eval.sampling.pipelines import load_pipeline, load_vae, pipeline_folder
from brickwork.gen.blocks.windows import check_maps
from brickwork.gen.conditioning import crop_coordinates
from brickwork.gen.networks.stitched import StitchedDenoiser
from brickwork.gen.parameterization import OBJECTIVES
from brickwork.gen.subnets import name_of
from brickwork.pipelines.objective_file import saved_objective
from brickwork.training.config.config import TrainConfig
from brickwork.training.config.data import DataConfig
from brickwork.training.config.run import RunConfig
from brickwork.training.data.augmentation import Augmentation, label_width
from brickwork.training.data.buckets import STEP, random_numbers
from brickwork.training.data.cache import CachedLatents, TensorCache
from brickwork.training.data.canvas import CanvasSettings, CanvasStream
from brickwork.training.data.images import BrokenImage, LabelledImages, images_of
from brickwork.training.data.stream import TrainingStream
from brickwork.training.engine.previews import build_metrics
from brickwork.training.engine.schedule import course
from brickwork.training.task import Phase, Step
from brickwork.training.tasks.backbones import TrainedOn, build_model, build_objective, check_patch, pipeline_of
from brickwork.training.tasks.brick_by_brick import draw_bricks, frozen_digest, stages_of, without_later_bricks
from brickwork.training.tasks.denoising import LabelledTask


def build_images(data: DataConfig) -> LabelledImages | CachedLatents:
    """Pictures, or their cached latents."""
    images = images_of(data)
    if data.latents is None:
        return images
    return CachedLatents(images, data.latents, load_vae(TensorCache(data.latents).source))


def trained_on(images: LabelledImages | CachedLatents, data: DataConfig) -> TrainedOn:
    """What a network is to know of a data set."""
    augment_dim = label_width(data.augmentations) if data.augment else None
    return TrainedOn(images.class_names, images.size, images.channels, data.crop_share > 0, augment_dim)


def build_stream(data: DataConfig, images: LabelledImages | CachedLatents, rows, run: RunConfig) -> TrainingStream:
    """Pictures as the data say, with `data.crop_share` crops of canvases among them."""
    seed, batch_size = run.seed, run.batch_size
    if data.crop_share == 0:
        augmentation = Augmentation(data.augment, data.augmentations) if data.augment else None
        further = {"augmentation": augmentation, "progressive": data.progressive}
        return TrainingStream(images, rows, seed, data.horizontal_flip, batch_size, **further)
    canvases = CanvasSettings(data.crop_share, data.crop_scale, data.crop_aspect)
    return CanvasStream(images, rows, seed, data.horizontal_flip, batch_size, canvases=canvases)


def build_held_out(images: LabelledImages | CachedLatents, rows) -> PairedSet | None:
    """The held-out samples in one shape; broken ones are left out, and latents of another shape than the first."""
    stills, labels = [], []
    for row in rows:
        try:
            still = torch.from_numpy(images.still(row))
        except BrokenImage:
            continue
        if not stills or still.shape == stills[0].shape:
            stills.append(still)
            labels.append(int(images.labels[row]))
    if not stills:
        return None
    return PairedSet.from_images(torch.stack(stills), torch.tensor(labels) if images.class_names else None)


class BackboneTask(LabelledTask):
    """Networks of `BACKBONES`, bricks and crops of canvases among them.

    Attributes:
        vae: of cached latents.
        scheduler: that pipelines draw with in place of the parameterization's own.
    """

    configuration, sections = TrainConfig, (*LabelledTask.sections, "metrics")
    vae: torch.nn.Module | None
    scheduler: Any = None

    @staticmethod
    def handlers(config: TrainConfig) -> list[Any]:
        # What a step leaves out has no gradient: bricks with brick dropout, layers with a random stitch.
        in_part = config.objective.brick_dropout > 0 or config.model.type == "StitchedDenoiser"
        return [DistributedDataParallelKwargs(find_unused_parameters=in_part)]

    @classmethod
    def build(cls, config: TrainConfig, accelerator: Accelerator, dry_run: bool = False) -> Self:
        task = cls()
        task.config, task.accelerator, task.parameterization = config, accelerator, build_objective(config.objective)
        images = build_images(config.data)
        train_rows, held_out_rows = images.split(config.data.held_out)
        task.vae = getattr(images, "vae", None)
        if task.vae is not None:
            task.vae.to(accelerator.device)
        task.network = network = build_model(
            config.model, config.objective, trained_on(images, config.data), config.run.seed
        )
        for _, size in config.data.progressive:
            check_maps(size, size, network.maps, "`data.progressive` makes")
            check_patch(network, size, "data.progressive")
        if config.run.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if config.model.attention_backend:
            network.set_attention_backend(config.model.attention_backend)
        task.fixed = frozen_digest(network)
        task.leaves_out = "objective.brick_dropout" if config.objective.brick_dropout > 0 else None
        if isinstance(network, StitchedDenoiser):
            task.leaves_out = "model.type"
        task.stream = build_stream(config.data, images, train_rows, config.run)
        task.held_out = build_held_out(images, held_out_rows)
        task.metrics = build_metrics(config.metrics, config.data.size, network.config.num_classes, accelerator)
        parameters, learning = task.sizes()
        # Weights, gradients, two moments and the average, in float32; activations come on top.
        memory, classes = 4 * (parameters + 4 * learning) / 2**30, len(images.class_names)
        data = f"images of {classes or 'no'} class{'es' * (classes != 1)}"
        task.plan = (
            f"{config.model.type}: {parameters:,} parameters, {learning:,} of them trained; about {memory:.2f} GiB of "
            "weights and optimiser state, before activations.\n"
            + course(config.run, data, len(train_rows), len(held_out_rows), accelerator.num_processes)
        )
        return task

    def phases(self) -> list[Phase]:
        config = self.config
        return stages_of(config.objective, self.network, config.run.total_images, config.model.comes_trained)

    def step(self, batch: dict[str, torch.Tensor], number: int) -> Step:
        conditions = {"class_labels": self.labels(batch)}
        random, subnet = random_numbers(self.config.run.seed, STEP, number), None
        if "crop" in batch:
            conditions["coordinates"] = crop_coordinates(batch["crop"], *batch["image"].shape[-2:])
        if "augment_labels" in batch:
            conditions["augment_labels"] = batch["augment_labels"]
        if isinstance(self.network, StitchedDenoiser):
            names = self.network.subnet_names()
            subnet = names[int(random.integers(len(names)))]
        elif hasattr(self.network, "num_bricks"):
            dropout = self.config.objective.brick_dropout
            bricks = draw_bricks(random, dropout, self.network.num_bricks, self.phase)
            subnet = None if bricks is None else name_of(bricks)
        step = self.noisy(batch["image"], batch, conditions, subnet)
        step.pixels = batch["image"] if self.vae is None else None
        return step

    def call(self, network: torch.nn.Module, step: Step) -> list[torch.Tensor]:
        """The estimate of every brick that ran, of every copy of a composite, or the one of any other network."""
        conditions = dict(step.conditions)
        if getattr(getattr(network, "module", network), "config", {}).get("augment_dim") is None:
            conditions.pop("augment_labels", None)  # a teacher that was trained without sees what its student sees
        return estimates(network, step.sample, step.timestep, subnet=step.subnet, **conditions)

    def teacher(self, source: str) -> torch.nn.Module:
        with explained(f"`teacher` is {source!r}, which cannot be loaded", ValueError):
            pipeline = load_pipeline(source, device=self.accelerator.device)
        noted = saved_objective(pipeline_folder(source))
        if noted is None:
            raise ValueError(f"`teacher` is {source!r}, which does not say what it was trained for (objective.json).")
        network = denoiser_of(pipeline)
        self.check_teacher(source, OBJECTIVES[noted[0]](**noted[1]), network.config.in_channels)
        classes, ours = network.config.num_classes, self.network.config.num_classes
        if classes != ours:
            raise ValueError(f"`teacher` is {source!r}, a network of {classes} classes; this one has {ours}.")
        return network

    def sample_with(self, changes: dict[str, Any]) -> None:
        scheduler = self.parameterization.scheduler()
        self.scheduler = type(scheduler).from_config(scheduler.config, **changes)

    def without_conditions(self, step: Step) -> Step:
        classes = self.network.config.num_classes
        if classes is None:
            return super().without_conditions(step)
        labels = torch.full_like(step.conditions["class_labels"], classes)
        return replace(step, conditions=step.conditions | {"class_labels": labels})

    def pipeline(self, network: torch.nn.Module) -> Any:
        pipeline = pipeline_of(network, self.parameterization, self.vae)
        if self.scheduler is not None:
            pipeline.register_modules(scheduler=self.scheduler)
        return without_later_bricks(pipeline, network, getattr(self.phase, "runs", None))

    def shown_subnet(self) -> str | None:
        bricks = getattr(self.phase, "runs", None)
        return None if bricks is None else name_of(bricks)
