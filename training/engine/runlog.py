"""What a run shows of itself: a progress bar, TensorBoard (and Weights & Biases if asked), and lines of JSON."""

import json
import math
import os
import time
from collections import Counter
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from brickwork.files import write_file
from brickwork.training.data.images import DataLost
from brickwork.training.engine.page import log_entries

LOG = "log.jsonl"
# Training losses are told apart by noise level, in so many equally likely parts of the training distribution.
NUM_LEVELS = 8


def level_quantiles() -> torch.Tensor:
    """The middles of the parts, as standard normal numbers `(NUM_LEVELS,)`."""
    return torch.special.ndtri((torch.arange(NUM_LEVELS, dtype=torch.float64) + 0.5) / NUM_LEVELS).float()


class Diverged(ValueError):
    """Gradients were not finite for too many steps in a row."""


class RunLog:
    """Sums up losses on the device, and writes them out at intervals from the main process.

    Args:
        folder: the run's.
        accelerator: of the run.
        total_images: where the run ends.
        images: where it starts; what an earlier process logged beyond is forgotten, as it is trained again.
        level_names: a name for each noise level part.
        wandb_project: also log there.
        again: the averages at `images` are to be evaluated again, so what was logged of them is forgotten.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        total_images: int,
        images: int,
        level_names: list[str],
        wandb_project: str | None = None,
        again: bool = False,
    ):
        self.accelerator, self.folder, self.level_names = accelerator, folder, level_names
        self.edges = torch.special.ndtri(torch.arange(1, NUM_LEVELS, dtype=torch.float64) / NUM_LEVELS).float()
        self.edges = self.edges.to(accelerator.device)
        self.sums = torch.zeros(2, NUM_LEVELS, dtype=torch.float32, device=accelerator.device)  # losses, counts
        self.extra: dict[str, list[torch.Tensor]] = {}
        self.nonfinite = self.nonfinite_total = 0
        self.broken: Counter[int] = Counter()
        self.since, self.images = time.perf_counter(), images
        self.bar = self.writer = self.wandb = None
        if accelerator.is_main_process:
            from torch.utils.tensorboard import SummaryWriter

            self._forget_beyond(images, again)
            self.writer = SummaryWriter(folder / "tensorboard", purge_step=images + 1)
            self.bar = tqdm(total=total_images, initial=images, unit="image", unit_scale=True, mininterval=5)
            if wandb_project:
                self.wandb = _start_wandb(wandb_project, folder)

    def _forget_beyond(self, images: int, again: bool) -> None:
        file = self.folder / LOG
        if file.exists():
            kept = [entry for entry in log_entries(file) if entry["images"] <= images]
            if again:
                kept = [entry for entry in kept if entry["images"] < images or "train/loss" in entry]
            write_file(file, "".join(json.dumps(entry) + "\n" for entry in kept))

    def add(self, losses: torch.Tensor, levels: torch.Tensor, extra: dict[str, torch.Tensor]) -> None:
        """Take in the losses `(B,)` of images at noise levels `(B,)`, and means of further objectives."""
        values = torch.stack([losses.detach().float(), torch.ones_like(losses, dtype=torch.float32)])
        self.sums.index_add_(1, torch.bucketize(levels, self.edges), values)
        for name, value in extra.items():
            self.extra.setdefault(name, []).append(value.detach().float())

    def add_broken(self, rows: torch.Tensor, limit: int) -> None:
        """Count pictures that could not be read: their rows `(B,)`, -1 for those that could.

        Raises:
            DataLost: beyond the limit, naming rows.
        """
        self.broken.update(row for row in rows.tolist() if row >= 0)
        if len(self.broken) > limit:
            raise DataLost(
                f"`data.max_broken_images` is {limit}, and {len(self.broken)} pictures could not be read (rows "
                f"{sorted(self.broken)[:8]} …); repair or remove them (`brickwork data check` names all), or raise it."
            )

    def check_finite(self, norm: torch.Tensor | float | None, limit: int) -> bool:
        """Whether the gradients are finite; after more than `limit` steps in a row with others, training stops."""
        if norm is None or math.isfinite(norm):
            self.nonfinite = 0
            return True
        self.nonfinite += 1
        self.nonfinite_total += 1
        if self.nonfinite > limit:
            raise Diverged(
                f"`run.max_nonfinite_steps` is {limit}, and gradients were not finite in {self.nonfinite} steps in a "
                "row; lower `optimizer.learning_rate`, or train in bf16 or full precision."
            )
        return False

    def step(self, batch_size: int) -> None:
        if self.bar is not None:
            self.bar.update(batch_size)

    def write(self, images: int, rate: float) -> None:
        """Gather over processes and write: mean loss, loss by noise level, rate, speed, what went wrong."""
        sums = self.accelerator.reduce(self.sums.double(), reduction="sum").cpu()
        means = sums[0] / sums[1]
        loss = (sums[0].sum() / sums[1].sum()).item()
        now = time.perf_counter()
        values = {
            "train/loss": loss,
            "train/learning_rate": rate,
            "train/images_per_second": (images - self.images) / (now - self.since),
            "train/nonfinite_steps": self.nonfinite_total,
            "train/broken_images": len(self.broken),
        }
        values |= {f"loss_at/{n}": mean.item() for n, mean, count in zip(self.level_names, means, sums[1]) if count}
        for name, parts in self.extra.items():
            mean = self.accelerator.reduce(torch.stack(parts).mean(), reduction="mean")
            values[f"objective/{name}"] = mean.item()
        self.sums.zero_()
        self.extra.clear()
        self.since, self.images = now, images
        self.scalars(images, values)
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def scalars(self, images: int, values: dict[str, float]) -> None:
        if self.writer is None:
            return
        for name, value in values.items():
            self.writer.add_scalar(name, value, images)
        if self.wandb is not None:
            self.wandb.log(values, step=images)
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps({"images": images, "time": round(time.time(), 1), **values}) + os.linesep)

    def picture(self, images: int, name: str, picture) -> None:
        """A uint8 array `(H, W, 3)` for TensorBoard."""
        if self.writer is not None:
            self.writer.add_image(name, picture, images, dataformats="HWC")

    def close(self) -> None:
        """Flush everything, and name the pictures that could not be read."""
        if self.writer is None:
            return
        self.bar.close()
        self.writer.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self.broken:
            rows = sorted(self.broken)
            write_file(self.folder / "broken_images.txt", "".join(f"{row}\n" for row in rows))
            print(f"{len(rows)} pictures could not be read and were skipped; rows {rows[:20]} (broken_images.txt)")


def _start_wandb(project: str, folder: Path):
    try:
        import wandb
    except ImportError:
        raise ValueError(f"`run.wandb_project` is {project!r}, which needs wandb; pip install wandb.") from None
    return wandb.init(project=project, name=folder.name, id=folder.name, resume="allow", dir=folder)
