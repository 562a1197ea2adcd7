"""The task of `train_autoencoder.py`: an autoencoder gives pictures back at any size, from latents near a normal."""

from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL

from brickwork.errors import explained, one_of
from brickwork.eval.report.pictures import grid
from brickwork.eval.sampling.pipelines import load_pipeline, load_vae, pipeline_folder
from brickwork.gen.networks.autoencoder import UnequalAutoencoderKL
from brickwork.gen.parameterization import make_objective
from brickwork.pipelines.latents import moments, scale, unscale
from brickwork.pipelines.objective_file import saved_objective
from brickwork.training.config.config import TrainConfig, require_task
from brickwork.training.data.images import LabelledImages, images_of
from brickwork.training.data.stream import TrainingStream
from brickwork.training.engine.previews import averaged_copy, show_sheet
from brickwork.training.engine.schedule import course
from brickwork.training.objectives.divergence import DivergenceObjective
from brickwork.training.objectives.steps import CLEAN, SIGMA_MIN, Paths
from brickwork.training.task import Step, Task
from brickwork.training.tasks.brick_by_brick import frozen_digest

STEP = 8  # between the sizes of a step's pictures, in pixels
MEASURED = 256
SHOWN, SCORED = 8, 64
NEW = "new"


class AutoencoderTask(Task):
    """L1 plus squared error of a picture coded and decoded, at a size of each step's own; the divergence beside it.

    `objective.options` are `kl_weight`, of the divergence from a standard normal in nats a latent number, `min_size`,
    the shortest side of the training pictures in pixels, `learns`: `all`, or `decoder`, which leaves the latents
    as they are, so that networks trained on them draw with the new decoder, and `noise`: the decoder learns from
    latents with noise of up to so many of their standard deviations, so that it puts right the small errors of a
    network that draws them (Zheng et al., arXiv 2510.11690, section 3.3).

    A decoder that learns alone goes on as that of `model.init_from`; or, of other widths, as `model.config` has it,
    from that of the autoencoder `objective.options.decoder`, or anew (`decoder: new`).

    With `redrawn_by`, a pipeline on these latents, it learns besides from latents as that pipeline leaves them: half
    of each batch has noise of up to `redrawn_level` added, which the pipeline's network takes away again.
    """

    configuration = TrainConfig
    images: LabelledImages
    rows: np.ndarray
    held_out: np.ndarray
    min_size: int
    decoder_alone: bool
    noise: float
    decoder: str | None
    redrawn_by: str | None
    redrawn_level: float

    @classmethod
    def build(cls, config: TrainConfig, accelerator: Accelerator, dry_run: bool = False) -> Self:
        kinds = {kind.__name__: kind for kind in (AutoencoderKL, UnequalAutoencoderKL)}
        require_task(config, tuple(kinds), "reconstruction")
        task = cls()
        task.config, task.accelerator = config, accelerator
        with explained("`objective.options` or `model.config` has a value that does not fit", TypeError):
            task._set(**config.objective.options)
            task.network = kinds[config.model.type](**config.model.config)
        if config.model.init_from:
            start = load_vae(config.model.init_from).float()
            if task.decoder is None:
                task.network = start
            else:
                factor = {"scaling_factor": start.config.scaling_factor}
                task.network = kinds[config.model.type](**config.model.config | factor)
                take_parts(task.network, start, task.decoder)
        elif task.decoder_alone:
            raise ValueError(
                "`objective.options.learns` is 'decoder', and there is no encoder to learn from; give the folder of a "
                "trained autoencoder in `model.init_from`."
            )
        if task.noise:
            task.network.post_quant_conv.register_forward_pre_hook(partial(with_noise, share=task.noise))
        if task.redrawn_by is not None:
            redraw = Redraw(task.redrawn_by, task.network, task.redrawn_level, accelerator.device)
            task.network.post_quant_conv.register_forward_pre_hook(redraw)
        if task.decoder_alone:
            for part in (task.network.encoder, task.network.quant_conv):
                part.requires_grad_(False)
            task.fixed, task.objectives = frozen_digest(task.network), []  # the latents' divergence cannot change
        config.data.require_unset(
            ("augment", "progressive"), "this script trains on pictures as they are; leave it out"
        )
        images, run = images_of(config.data), config.run
        task.images, (task.rows, task.held_out) = images, images.split(config.data.held_out)
        task.plan = f"{type(task.network).__name__}: {task.sizes()[0]:,} parameters.\n" + course(
            run, "images", len(task.rows), len(task.held_out), accelerator.num_processes
        )
        task.stream = TrainingStream(images, task.rows, run.seed, config.data.horizontal_flip, run.batch_size)
        return task

    def _set(
        self,
        kl_weight: float = 5e-4,
        min_size: float = 32,
        learns: str = "all",
        noise: float = 0.0,
        decoder: str | None = None,
        redrawn_by: str | None = None,
        redrawn_level: float = 0.6,
    ) -> None:
        if min(kl_weight, noise, redrawn_level) < 0 or min_size < STEP:
            raise ValueError(
                f"`objective.options` are kl_weight {kl_weight}, noise {noise}, redrawn_level {redrawn_level}, "
                f"min_size {min_size}; give 0 or more for the first three, and at least {STEP}."
            )
        self.noise, self.decoder = float(noise), decoder
        self.redrawn_by, self.redrawn_level = redrawn_by, float(redrawn_level)
        for name, given in (("decoder", decoder), ("redrawn_by", redrawn_by)):
            if given is not None and learns != "decoder":
                raise ValueError(
                    f"`objective.options.{name}` is {given!r} and `learns` {learns!r}; give it where the decoder "
                    "alone learns."
                )
        self.decoder_alone = one_of("objective.options.learns", learns, ("all", "decoder")) == "decoder"
        self.objectives, self.min_size = [DivergenceObjective(weight=kl_weight)], int(min_size)

    def teacher(self, source: str) -> AutoencoderKL:
        return load_vae(source)

    def step(self, batch: dict[str, torch.Tensor], number: int) -> Step:
        pictures = at_random_size(batch["image"], self.min_size)
        return Step(pictures, None, batch["level"], pictures, batch["level"])

    def call(self, network: torch.nn.Module, step: Step) -> list[torch.Tensor]:
        return [network(step.sample, sample_posterior=True).sample.float()]

    def losses(self, step: Step) -> torch.Tensor:
        error = step.outputs[-1] - step.images
        return (error.abs() + error.square()).flatten(1).mean(dim=1)

    def preview(self, images: int, log: Any) -> None:
        """PSNR of held-out pictures at several sizes, and a sheet of some of them above what became of them."""
        if not len(self.held_out):
            return
        rows, scalars, sheet, full = self.held_out[:SCORED], {}, [], self.images.size
        pictures = torch.stack([torch.from_numpy(self.images.sample(int(row))[0]) for row in rows])
        pictures = pictures.to(self.accelerator.device)
        for size in (self.min_size, full // 2, full):
            small = torch.nn.functional.interpolate(pictures, size=size, mode="bilinear", antialias=True)
            with self.accelerator.autocast():
                decoded = torch.cat([self.network(part).sample.float() for part in small.split(8)])
            error = ((decoded.clamp(-1, 1) - small.clamp(-1, 1)) / 2).square().flatten(1).mean(1)
            scalars[f"held_out/psnr_{size}"] = (-10 * error.log10()).mean().item()
            if size == full // 2:
                sheet = [*small[:SHOWN], *decoded[:SHOWN]]
        log.scalars(images, scalars)
        listed = ", ".join(f"{name} {value:.2f}" for name, value in scalars.items())
        self.accelerator.print(f"{images:,} images: {listed}")
        arrays = [((one.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy() for one in sheet]
        show_sheet(self, grid(np.stack(arrays), columns=len(arrays) // 2), images, log)

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        """Leave `vae/`, whose scaling factor makes the standard deviation of the training pictures' latents one."""
        vae = averaged_copy(self.network, weights)
        if self.accelerator.is_main_process:
            if not self.decoder_alone:
                vae.register_to_config(scaling_factor=round(latent_scale(vae, self.images, self.rows), 5))
            vae.save_pretrained(folder / "vae")
            factor = vae.config.scaling_factor
            self.accelerator.print(f"The averaged weights are in {folder / 'vae'}; scaling factor {factor}.")


def at_random_size(pictures: torch.Tensor, min_size: int) -> torch.Tensor:
    """The pictures, smaller, or as large a part of them; small sizes come up in proportion to their speed.

    torch's own random numbers, which the loop seeds for each step.
    """
    largest = pictures.shape[-1]
    sizes = torch.arange(min_size, largest + 1, STEP)
    size = int(sizes[torch.multinomial(1 / sizes.float().square(), 1)])
    if torch.rand(()) < 0.5:
        return torch.nn.functional.interpolate(pictures, size=size, mode="bilinear", antialias=True)
    top, left = torch.randint(largest - size + 1, (2,)).tolist()
    return pictures[..., top : top + size, left : left + size]


def take_parts(network: AutoencoderKL, start: AutoencoderKL, decoder: str) -> None:
    """Give a new network the encoder, and so the latents, of a trained one, and the decoder of another.

    Args:
        network: to change.
        start: whose encoder it takes.
        decoder: an autoencoder's folder or name, or `NEW`, for a decoder that begins anew.

    Raises:
        ValueError: for an encoder or decoder of other widths than the new network's.
    """
    parts = {"model.init_from": (start, ("encoder", "quant_conv"))}
    if decoder != NEW:
        parts["objective.options.decoder"] = load_vae(decoder).float(), ("decoder", "post_quant_conv")
    for key, (source, names) in parts.items():
        with explained(f"`{key}` is an autoencoder of other widths than `model.config`", RuntimeError):
            for name in names:
                network.get_submodule(name).load_state_dict(source.get_submodule(name).state_dict())


def with_noise(module: torch.nn.Module, latents: tuple[torch.Tensor], share: float) -> torch.Tensor | None:
    """In training, the latents `(B, C, h, w)` with noise of 0 to `share` of their standard deviation, each its own."""
    if not module.training:
        return None
    (raw,) = latents
    return raw + share * torch.rand(len(raw), 1, 1, 1, device=raw.device) * raw.detach().std() * torch.randn_like(raw)


class Redraw:
    """A hook before the decoder: in training, half of the latents as a pipeline's network leaves them.

    Args:
        name: of the pipeline, class-conditional or not, on latents of the same encoder.
        vae: whose decoder learns.
        highest: the most noise that is added, in standard deviations of the pipeline's latents; each picture has its
            own, from 0 up. It is taken away in two steps and without guidance.
        device: to compute on.

    Raises:
        ValueError: for a pipeline of pixels or of other latents, and one that does not say what its network predicts.
    """

    def __init__(self, name: str, vae: AutoencoderKL, highest: float, device: torch.device):
        pipeline, objective = load_pipeline(name), saved_objective(pipeline_folder(name))
        other = pipeline.vae.config if pipeline.vae is not None else {}
        keys = ("latent_channels", "scaling_factor", "shift_factor")
        if objective is None or any(other.get(key) != vae.config.get(key) for key in keys):
            raise ValueError(
                f"`objective.options.redrawn_by` is {name!r}, which does not draw latents of this autoencoder "
                f"({', '.join(f'{key} {vae.config.get(key)}' for key in keys)}); name a pipeline trained on them."
            )
        self.network, self.vae, self.highest = pipeline.transformer.float().eval().to(device), vae, highest
        self.paths = Paths(make_objective(*objective, "objective"))

    @torch.no_grad()
    def __call__(self, module: torch.nn.Module, latents: tuple[torch.Tensor]) -> torch.Tensor | None:
        if not module.training:
            return None
        (raw,) = latents
        clean = scale(self.vae, raw)
        level = (self.highest * torch.rand(len(raw), device=raw.device)).clamp(min=SIGMA_MIN)
        levels = torch.stack([level, level / 4, torch.full_like(level, CLEAN)])
        sample, _ = self.paths.inputs(clean, torch.randn_like(clean), level)
        classes = self.network.config.num_classes
        none = None if classes is None else torch.full((len(raw),), classes, device=raw.device)

        def ask(sample: torch.Tensor, level: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return self.network(sample, timestep, none, return_dict=False)[0][:, : sample.shape[1]].float()

        drawn = unscale(self.vae, self.paths.follow(ask, sample.float(), levels))
        chosen = torch.rand(len(raw), 1, 1, 1, device=raw.device) < 0.5
        return torch.where(chosen, drawn, raw)


def latent_scale(vae: AutoencoderKL, images: LabelledImages, rows: np.ndarray) -> float:
    """One over the standard deviation of the latents of pictures at half the largest size."""
    side = images.size // 2
    chosen = rows[:: max(1, len(rows) // MEASURED)]
    pictures = torch.stack([torch.from_numpy(images.sample(int(row))[0]) for row in chosen])
    with torch.no_grad():
        small = torch.nn.functional.interpolate(pictures, size=side, mode="bilinear", antialias=True)
        latents = torch.cat([moments(vae, part)[0] for part in small.split(16)])
    return 1 / latents.double().std().item()
