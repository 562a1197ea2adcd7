"""The task of `train_video.py`: an image network becomes one of video, and learns motion from clips."""

from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator

from brickwork.errors import explained
from brickwork.eval.sampling.pipelines import load_vae, pipeline_folder
from brickwork.gen.networks.parts import load_part, network_folder
from brickwork.gen.networks.video import KINDS, VideoDenoiser, inflate
from brickwork.gen.parameterization import SIGMA_DATA
from brickwork.pipelines.objective_file import saved_objective
from brickwork.pipelines.video import VideoPipeline
from brickwork.training.config.clips import VideoTrainConfig
from brickwork.training.data.clips import Clips, LatentClips
from brickwork.training.data.stream import TrainingStream
from brickwork.training.engine.schedule import course
from brickwork.training.task import Step
from brickwork.training.tasks.backbone import build_held_out
from brickwork.training.tasks.backbones import build_objective, check_fits_data
from brickwork.training.tasks.denoising import LabelledTask


class VideoTask(LabelledTask):
    """A `VideoDenoiser` on windows of clips; the frames of a sample are shown side by side.

    Attributes:
        fps: frames a second of what it learns.
        vae: of the image network's pipeline, where that draws latents.
    """

    configuration = VideoTrainConfig
    counted, columns = "clips", 1
    fps: float
    vae: torch.nn.Module | None

    @classmethod
    def build(cls, config: VideoTrainConfig, accelerator: Accelerator, dry_run: bool = False) -> Self:
        task, source = cls(), image_folder(config.model.image)
        task.config, task.accelerator, task.vae = config, accelerator, None
        if (pipeline_of(source) / "vae").is_dir():
            task.vae = load_vae(str(pipeline_of(source))).to(accelerator.device)
        clips = Clips(config.data) if task.vae is None else LatentClips(config.data, task.vae)
        task.parameterization, task.fps = build_objective(config.objective), clips.fps
        torch.manual_seed(config.run.seed)
        task.network = network = build_network(source, config.model.pattern, clips.class_names).train()
        check_fits(network, config.model.image, source, config.objective, clips)
        if config.model.learns == "temporal":
            network.image.requires_grad_(False)
        if config.run.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        (rows, held_out), run = clips.split(config.data.held_out), config.run
        total, new = (sum(p.numel() for p in part.parameters()) for part in (network, network.temporal))
        task.plan = (
            f"VideoDenoiser: {total:,} parameters, {new:,} of them temporal; {config.model.learns} learn. Windows of "
            f"{clips.frames} frames at {clips.fps:g} a second.\n"
        ) + course(run, "clips", len(rows), len(held_out), accelerator.num_processes)
        task.stream = TrainingStream(clips, rows, run.seed, config.data.horizontal_flip, run.batch_size)
        task.held_out = build_held_out(clips, held_out)
        return task

    def step(self, batch: dict[str, torch.Tensor], number: int) -> Step:
        step = self.noisy(batch["image"], batch, {"class_labels": self.labels(batch)})
        share = self.config.model.first_frame_share
        if share:
            given = (batch["label_draw"] * 1024) % 1 < share  # the lower digits of a draw are another draw
            clean, level = self.parameterization.clean_inputs(step.images[:, :, :1])
            first = torch.where(given.view(-1, 1, 1, 1, 1), clean, step.sample[:, :, :1])
            step.sample = torch.cat([first, step.sample[:, :, 1:]], dim=2)
            step.timestep = step.timestep[:, None].repeat(1, step.images.shape[2])
            step.timestep[:, 0] = torch.where(given, level.to(step.timestep), step.timestep[:, 0])
        return step

    def call(self, network: torch.nn.Module, step: Step) -> list[torch.Tensor]:
        outputs = super().call(network, step)
        if step.timestep.ndim == 1:
            return outputs
        # A frame that was given teaches nothing: its noise was not seen, so its target cannot be known.
        given = (step.timestep != step.timestep[:, -1:])[:, None, :, None, None]
        target = self.parameterization.target(step.images, step.noise, step.level)
        return [torch.where(given, target.to(output), output) for output in outputs]

    def pipeline(self, network: torch.nn.Module) -> VideoPipeline:
        clip = {"num_frames": self.config.data.frames, "fps": self.fps}
        clip["clean_first"] = self.config.model.first_frame_share > 0
        return VideoPipeline.from_objective(network, self.parameterization, self.vae, **clip)


def image_folder(source: str) -> Path:
    """The folder of the network of a pipeline that ships, of a folder, or of a training run.

    Raises:
        ValueError: where there is none.
    """
    if not source:
        raise ValueError(
            "`model.image` is empty; name weights that ship, or the folder of an image network, a pipeline or a run."
        )
    with explained(f"`model.image` is {source!r}"):
        return network_folder(pipeline_folder(source))


def pipeline_of(network: Path) -> Path:
    """The folder of a network's pipeline; an image network may lie within the video network there."""
    return network.parent.parent if network.name == "image" else network.parent


def build_network(folder: Path, pattern: str, class_names: list[str]) -> VideoDenoiser:
    """The image network of a folder, inflated; a video network there goes on as it is. Classes get names if need be.

    Raises:
        ValueError: where there is none.
    """
    with explained(f"`model.image` is {str(folder)!r}"):
        if (folder / "temporal").is_dir():
            return VideoDenoiser.from_pretrained(folder)
        image = load_part("model.image", folder, KINDS, "cannot be inflated")
        if class_names and "id2label" in image.config and not image.config.id2label:
            image.register_to_config(id2label=dict(enumerate(class_names)))
        return inflate(image, pattern)


def check_fits(network: VideoDenoiser, source: str, folder: Path, objective: Any, clips: Clips) -> None:
    """Raise a `ValueError` for a network of other classes, channels or another objective than the run has.

    Clips of some of a network's classes alone are numbered as it numbers them.
    """
    known = {int(number): name for number, name in (network.config.id2label or {}).items()}
    if clips.data.classes is None and clips.class_names and {*clips.class_names} <= {*known.values()}:
        clips.number_classes([known[number] for number in sorted(known)])
    check_fits_data(network, "model.image", source, clips.class_names, clips.channels)
    if known and clips.class_names and known != dict(enumerate(clips.class_names)):
        raise ValueError(
            f"`model.image` is {source!r}, whose classes are {', '.join(known.values())}; the clips have "
            f"{', '.join(clips.class_names)}. Name them in `data.classes` in the network's order."
        )
    noted = saved_objective(pipeline_of(folder))
    if noted is not None and noted[0] != objective.type:
        raise ValueError(
            f"`objective.type` is {objective.type!r}, but the network in {source!r} learned {noted[0]!r}; set it so."
        )
    scales = [options.get("sigma_data", SIGMA_DATA) for options in (objective.options, noted[1] if noted else {})]
    if noted is not None and scales[0] != scales[1]:
        raise ValueError(
            f"`objective.options` has the sigma_data {scales[0]:g}, but the network in {source!r} learned "
            f"{scales[1]:g}; set `objective.options.sigma_data={scales[1]:g}`."
        )
