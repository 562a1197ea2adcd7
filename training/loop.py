"""The training loop, one function to be read from top to bottom, and the parts it is made of."""

import json
import os
import platform
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from accelerate import Accelerator
from tqdm import tqdm

from brickwork.eval.paired_loss import PairedSet, estimates, paired_loss
from brickwork.gen.objectives import EDMObjective
from brickwork.training.checkpoints import CheckpointFolder, load_optimizer_tensors, optimizer_tensors
from brickwork.training.config import TrainConfig
from brickwork.training.data.stream import STEP, PositionBatches, TrainingStream, random_numbers, stream_batches
from brickwork.training.ema import EMA


@dataclass
class Run:
    """Everything that a run works with."""

    config: TrainConfig
    accelerator: Accelerator
    model: torch.nn.Module
    objective: EDMObjective
    stream: TrainingStream
    held_out: PairedSet | None


def learning_rate(config: TrainConfig, images: int) -> float:
    """The rate after `images` images: a linear rise, a plateau, a linear fall to zero at the end."""
    optimizer, total = config.optimizer, config.run.total_images
    rise = min(1.0, (images + config.run.batch_size) / max(optimizer.warmup_images, 1))
    fall = min(1.0, (total - images) / max(optimizer.cooldown_images, 1)) if optimizer.cooldown_images else 1.0
    return optimizer.learning_rate * rise * max(fall, 0.0)


def draw_bricks(config: TrainConfig, num_bricks: int, step: int) -> tuple[int, ...] | None:
    """The bricks that a step trains: all of them, or on a share of the steps a random subset, alike on all ranks."""
    random = random_numbers(config.run.seed, STEP, step)
    if random.random() >= config.objective.brick_dropout:
        return None
    subset = int(random.integers(1, 2**num_bricks))
    return tuple(brick for brick in range(num_bricks) if subset >> brick & 1)


def denoising_loss(run: Run, model: torch.nn.Module, batch: dict, bricks: tuple[int, ...] | None) -> torch.Tensor:
    """The loss of each image `(B,)`, averaged over the estimates of the bricks that ran."""
    network = run.accelerator.unwrap_model(model)
    images, noise = batch["image"], batch["noise"]
    labels = None
    if network.config.num_classes is not None:
        hidden = batch["label_draw"] < run.config.objective.label_dropout
        labels = torch.where(hidden, network.config.num_classes, batch["label"])
    sigma = run.objective.noise_levels(batch["level"])
    sample, timestep = run.objective.network_inputs(images, noise, sigma)
    outputs = estimates(model, sample, timestep, labels, bricks)
    return torch.stack([run.objective.losses(output, images, noise, sigma) for output in outputs]).mean(dim=0)


def train(run: Run) -> None:
    """Train until `total_images`, going on from the newest checkpoint of the run's folder."""
    config, accelerator = run.config, run.accelerator
    settings, folder = config.run, Path(config.run.output_dir)
    network = run.model
    ema_model = _averaged_copy(network).to(accelerator.device)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=config.optimizer.learning_rate,
        betas=tuple(config.optimizer.betas),
        weight_decay=config.optimizer.weight_decay,
        fused=accelerator.device.type in ("cpu", "cuda"),
    )
    if settings.compile:
        network.compile_repeated_blocks(fullgraph=True)
    model, optimizer = accelerator.prepare(network, optimizer)
    ema = EMA(network.named_parameters(), config.ema.half_life_images, config.ema.rampup_ratio)
    checkpoints = CheckpointFolder(folder / "checkpoints", settings.keep_checkpoints)
    images = _resume(checkpoints, network, optimizer, ema, accelerator)
    steps = images // settings.batch_size

    batches = PositionBatches(
        settings.batch_size, settings.gradient_accumulation_steps, accelerator.process_index,
        accelerator.num_processes, start=images,
    )  # fmt: skip
    loader = iter(stream_batches(run.stream, batches, config.data.num_workers))
    log = RunLog(folder, accelerator, settings.total_images, images)
    stop = StopSignal()
    model.train()
    while images < settings.total_images and not stop.requested:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, images)
        bricks = draw_bricks(config, network.num_bricks, steps) if hasattr(network, "num_bricks") else None
        for _ in range(settings.gradient_accumulation_steps):
            batch = {name: tensor.to(accelerator.device) for name, tensor in next(loader).items()}
            with accelerator.accumulate(model), accelerator.autocast():
                losses = denoising_loss(run, model, batch, bricks)
                accelerator.backward(losses.mean())
                log.add(losses, batch["level"])
        norm = accelerator.clip_grad_norm_(network.parameters(), config.optimizer.max_grad_norm)
        if log.check_finite(norm, settings.max_nonfinite_steps):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        steps, images = steps + 1, images + settings.batch_size
        ema.update(images, settings.batch_size)
        log.step(images, settings.batch_size)
        finished = images >= settings.total_images
        if _due(images, settings.log_images, settings.batch_size) or finished:
            log.write(images, learning_rate(config, images))
        if _due(images, settings.sample_images, settings.batch_size) or finished:
            ema.copy_to(ema_model)
            show(run, ema_model, images, log)
        if _due(images, settings.checkpoint_images, settings.batch_size) or finished or stop.requested:
            save_checkpoint(run, checkpoints, network, optimizer, ema, images)
    if accelerator.is_main_process and not stop.requested:
        ema.copy_to(ema_model)
        ema_model.save_pretrained(folder / "transformer")
    log.close()


def save_checkpoint(run: Run, checkpoints: CheckpointFolder, network, optimizer, ema: EMA, images: int) -> None:
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        checkpoints.save(
            images,
            {
                "model": network.state_dict(),
                "ema": ema.state_dict(),
                "optimizer": optimizer_tensors(optimizer, network),
            },
            {
                "config": run.config.to_yaml(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "diffusers": diffusers.__version__,
                },
            },
        )
    run.accelerator.wait_for_everyone()


def _resume(checkpoints: CheckpointFolder, network, optimizer, ema: EMA, accelerator: Accelerator) -> int:
    found = checkpoints.newest()
    if found is None:
        return 0
    tensors, state = found
    network.load_state_dict(tensors["model"])
    load_optimizer_tensors(optimizer, network, tensors["optimizer"])
    ema.load_state_dict(tensors["ema"])
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    accelerator.print(f"Going on from {state['images']:,} images.")
    return state["images"]


def _due(images: int, interval: int, batch_size: int) -> bool:
    """Whether a step that ended at `images` passed a multiple of `interval`; 0 for never."""
    return interval > 0 and images // interval > (images - batch_size) // interval


def _averaged_copy(network):
    copy = type(network).from_config(network.config)
    copy.load_state_dict(network.state_dict())
    return copy.eval().requires_grad_(False)


def show(run: Run, ema_model, images: int, log: "RunLog") -> None:
    """Score the averaged weights on the held-out list."""
    if run.accelerator.is_main_process and run.held_out is not None:
        with run.accelerator.autocast():
            result = paired_loss(ema_model, run.held_out, run.objective)
        log.scalars(images, {"held_out/loss": result["loss"]})
        log.scalars(images, {f"held_out/brick_{i}": loss for i, loss in enumerate(result["per_brick"])})
        run.accelerator.print(f"{images:,} images: held-out paired loss {result['loss']:.4f}")


class StopSignal:
    """SIGTERM and SIGINT ask the loop to finish its step, save and leave."""

    def __init__(self):
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, number, frame) -> None:
        self.requested = True


class RunLog:
    """Progress bar, TensorBoard and a line of JSON for every interval."""

    def __init__(self, folder: Path, accelerator: Accelerator, total_images: int, images: int):
        self.accelerator, self.folder = accelerator, folder
        self.sums: list[torch.Tensor] = []
        self.nonfinite, self.since, self.images = 0, time.perf_counter(), images
        self.bar = self.writer = None
        if accelerator.is_main_process:
            from torch.utils.tensorboard import SummaryWriter

            folder.mkdir(parents=True, exist_ok=True)
            self.writer = SummaryWriter(folder / "tensorboard", purge_step=images + 1)
            self.bar = tqdm(total=total_images, initial=images, unit="image", unit_scale=True, mininterval=5)

    def add(self, losses: torch.Tensor, levels: torch.Tensor) -> None:
        self.sums.append(losses.detach())

    def check_finite(self, norm: torch.Tensor | None, limit: int) -> bool:
        """Whether the gradients are finite; after `limit` steps in a row with others, training stops."""
        if norm is None or torch.isfinite(norm):
            self.nonfinite = 0
            return True
        self.nonfinite += 1
        if self.nonfinite > limit:
            raise ValueError(
                f"`run.max_nonfinite_steps` is {limit}, and gradients were not finite in {self.nonfinite} steps in a "
                "row; lower `optimizer.learning_rate`, or train in bf16 or full precision."
            )
        return False

    def step(self, images: int, batch_size: int) -> None:
        if self.bar is not None:
            self.bar.update(batch_size)

    def write(self, images: int, rate: float) -> None:
        loss = self.accelerator.gather(torch.cat(self.sums)).mean().item()
        now = time.perf_counter()
        speed = (images - self.images) / (now - self.since)
        self.sums, self.since, self.images = [], now, images
        self.scalars(images, {"train/loss": loss, "train/learning_rate": rate, "train/images_per_second": speed})
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def scalars(self, images: int, values: dict[str, float]) -> None:
        if self.writer is None:
            return
        for name, value in values.items():
            self.writer.add_scalar(name, value, images)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"images": images, "time": round(time.time(), 1), **values}) + os.linesep)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.bar.close()
