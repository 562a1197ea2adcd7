"""Multi-granularity distillation (MGD-SSSS, arXiv 2208.10169): what teachers say of images, of regions and of pixels.

The authors distil segmentation networks, from a deep teacher (regions) and a wide one (images); here the networks are
denoisers, so that the pixels' pseudo-labels become the teachers' outputs. No level needs a projection: outputs have
the same channels, and similarities of regions have none, so that teachers may be of any kind and width.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from brickwork.training.objectives.registry import Objective, register_objective
from brickwork.training.task import Step, Task

REGIONS = 7  # along each side, as the authors pool


def image_level(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The L1 distance of outputs `(B, C, H, W)` pooled over their pixels: summed over channels, averaged over images.

    The authors sum over images too, which would make the weight depend on the batch.
    """
    ours, theirs = (F.adaptive_avg_pool2d(one.float(), 1) for one in (output, target))
    return (ours - theirs).abs().sum() / len(output)


def self_similarity(features: torch.Tensor) -> torch.Tensor:
    """The cosines between 7 × 7 regions of features `(B, C, H, W)` of any width, `(B, 49, 49)`."""
    pooled = F.normalize(F.adaptive_avg_pool2d(features.float(), REGIONS).flatten(2), dim=1)
    return pooled.transpose(1, 2) @ pooled


def region_level(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean squared error between the self-similarities of features `(B, C, H, W)` and `(B, D, h, w)`."""
    return F.mse_loss(self_similarity(features), self_similarity(target))


def pixel_level(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean squared error between outputs `(B, C, H, W)`."""
    return F.mse_loss(output.float(), target.float())


@register_objective("mgd")
class MultiGranularityObjective(Objective):
    """Losses at three levels; a weight of 0 leaves one out.

    A picture without a caption or class is shown to network and teachers under the null condition.

    Args:
        teacher: a pipeline, by folder or name, that was trained for the same objective, classes and channels; or two,
            of which the first teaches regions, the second images, and both pixels.
        taps: a module of the network => the module of the first teacher whose regions its own should be like; for
            `None` the deepest features of both.
        image: weight of the image level, L1 of globally pooled outputs.
        region: of the region level, self-similarities of features.
        pixel: of the pixel level, the outputs themselves.
        weight: of all three.
    """

    def __init__(
        self,
        teacher: str | list[str],
        taps: dict[str, str] | None = None,
        image: float = 0.1,
        region: float = 1.0,
        pixel: float = 1.0,
        weight: float = 1.0,
    ):
        super().__init__(weight)
        sources = [teacher] if isinstance(teacher, str) else list(teacher)
        if not 1 <= len(sources) <= 2 or len(set(sources)) < len(sources):
            raise ValueError(f"`teacher` is {teacher!r}; give one or two different pipelines.")
        self.weights = {"image": image, "region": region, "pixel": pixel}
        if min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise ValueError(f"`image`, `region` and `pixel` are {self.weights}; give 0 or more, and not all 0.")
        if taps is not None and (not isinstance(taps, dict) or not taps):
            raise ValueError(
                f"`taps` is {taps!r}; give modules of network and teacher, such as {{mid_block: mid_block}}."
            )
        self.sources, self.pairs = sources, taps
        self._name_taps()

    def _name_taps(self) -> None:
        pairs = (self.pairs or {}) if self.weights["region"] else {}
        self.taps, self.teacher_taps = tuple(pairs), tuple(dict.fromkeys(pairs.values()))

    @property
    def teachers(self) -> dict[str, tuple[str, ...]]:
        return {source: () if number else self.teacher_taps for number, source in enumerate(self.sources)}

    def join(self, task: Task, networks: Mapping[str, torch.nn.Module]) -> None:
        if self.pairs is None and self.weights["region"]:
            self.pairs = {deepest(task.network): deepest(networks[self.sources[0]])}
            self._name_taps()

    def prepare(self, step: Step, teacher: Step | tuple[Step, ...]) -> None:
        for source, seen in zip(self.sources, as_tuple(teacher)):
            ours, theirs = (tuple(one.outputs[-1].shape[1:]) for one in (step, seen))
            if ours != theirs:
                raise ValueError(f"`teacher` is {source!r}, whose output is {theirs}; this network's is {ours}.")
        for ours, theirs in (self.pairs or {}).items() if self.weights["region"] else ():
            as_map(step.taps[ours], step.sample, ours)
            as_map(as_tuple(teacher)[0].taps[theirs], step.sample, theirs)

    def forward(
        self, step: Step, taps: Mapping[str, torch.Tensor], teacher: Step | tuple[Step, ...]
    ) -> dict[str, torch.Tensor]:
        """`image`, `region` and `pixel`, as far as they have a weight."""
        steps, output, losses = as_tuple(teacher), step.outputs[-1], {}
        if self.weights["image"]:
            losses["image"] = image_level(output, steps[-1].outputs[-1])
        if self.weights["region"]:
            pairs = [
                region_level(as_map(taps[ours], step.sample, ours), as_map(steps[0].taps[theirs], step.sample, theirs))
                for ours, theirs in self.pairs.items()
            ]
            losses["region"] = torch.stack(pairs).mean()
        if self.weights["pixel"]:
            losses["pixel"] = sum(pixel_level(output, one.outputs[-1]) for one in steps)
        return {f"mgd_{name}": self.weights[name] * loss for name, loss in losses.items()}


def as_tuple(teacher: Step | tuple[Step, ...]) -> tuple[Step, ...]:
    """What one teacher saw, or several did."""
    return teacher if isinstance(teacher, tuple) else (teacher,)


def deepest(network: torch.nn.Module) -> str:
    """The module of a network whose output shows most of the picture to each number.

    Raises:
        ValueError: for a network whose parts this does not know.
    """
    names = dict(network.named_modules())
    blocks = sorted((name for name in names if name.startswith("blocks.") and name.count(".") == 1), key=_number)
    for name in ("mid_block", *blocks[len(blocks) // 2 :][:1], "bricks.0"):
        module = names.get(name)
        if isinstance(module, torch.nn.ModuleList):
            name = f"{name}.{len(module) - 1}" if len(module) else ""
        if names.get(name) is not None:
            return name
    raise ValueError(f"`taps` is null, and no features of a {type(network).__name__} are known; name modules.")


def _number(name: str) -> int:
    return int(name.rpartition(".")[2])


def as_map(features: torch.Tensor, sample: torch.Tensor, name: str) -> torch.Tensor:
    """Features as a map `(B, C, h, w)`: as they are, or tokens `(B, h · w, C)` of a sample `(B, C, H, W)`.

    Raises:
        ValueError: naming the module, for another shape.
    """
    if isinstance(features, tuple):
        features = features[0]
    if features.ndim == 4:
        return features
    height, width = sample.shape[-2:]
    if features.ndim == 3:
        rows = round(math.sqrt(features.shape[1] * height / width))
        if rows and features.shape[1] % rows == 0:
            return features.transpose(1, 2).unflatten(2, (rows, -1))
    raise ValueError(f"`taps` has {name!r}, whose output is {tuple(features.shape)}; name one with maps or tokens.")
