"""The region head as a detector: one forward pass of a denoiser, then regions all over its feature maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brickwork.eval.judge.denoiser_features import DenoiserFeatures, joined
from brickwork.eval.judge.detectors import Detection, Found, register_detector
from brickwork.eval.judge.region_head import RegionHead, box_overlaps, decode_boxes, proposals
from brickwork.eval.judge.teachers import Teacher, load_teacher, to_square

LEAST, OVERLAP = 0.05, 0.5  # scores that are handed on, and the overlap of boxes that are the same object


class RegionDetector:
    """Finds objects by a trained region head.

    Args:
        head: the head.
        features: those that it was trained on.
        teacher: embeds the names; it may know more than the head was trained on.
    """

    def __init__(self, head: RegionHead, features: DenoiserFeatures, teacher: Teacher, name: str = "region-head"):
        self.head, self.features, self.teacher, self.name = head.eval(), features, teacher, name
        self.names = teacher.names
        self.anchors = proposals().to(head.background.device)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray], names: Sequence[Sequence[str]]) -> list[Found]:
        batch = torch.stack([to_square(picture, self.features.size) for picture in pictures])
        text, image, offsets = self.head(joined(self.features(batch)), self.anchors)
        boxes = decode_boxes(offsets, self.anchors)
        found = []
        for i, (picture, asked) in enumerate(zip(pictures, names, strict=True)):
            trained = list(self.head.config.names)
            known = list(dict.fromkeys([*trained, *asked]))
            new = [name for name in known if name not in trained]
            embeddings = self.head.name_embeddings
            if new:
                embeddings = torch.cat([embeddings, self.teacher.texts(new).to(embeddings)])
            is_trained = torch.tensor([name in trained for name in known])
            scores = self.head.probabilities(text[i], image[i], embeddings, is_trained).cpu()
            height, width = picture.shape[:2]
            pixels = boxes[i].cpu() * torch.tensor([width, height, width, height])
            found.append({name: _apart(pixels, scores[:, known.index(name)]) for name in asked})
        return found


def _apart(boxes: torch.Tensor, scores: torch.Tensor) -> list[Detection]:
    """Boxes with scores, without those that lie over a surer one."""
    order = torch.where(scores > LEAST)[0]
    order = order[scores[order].argsort(descending=True)]
    kept: list[Detection] = []
    while len(order):
        first = order[0]
        kept.append(Detection(tuple(boxes[first].tolist()), float(scores[first])))
        order = order[box_overlaps(boxes[first][None], boxes[order])[0] < OVERLAP]
    return kept


@register_detector("region-head:")
def load_region_detector(source: str, device: Any = None, **options: str) -> RegionDetector:
    """A detector from a folder that `training/train_region_head.py` wrote: the head, its pipeline and its teacher.

    `options` are of the hub, where the pipeline is there.
    """
    from brickwork.eval.sampling.pipelines import load_pipeline, to_device

    if not (Path(source) / "config.json").is_file():
        raise ValueError(f"`detector` is 'region-head:{source}', and there is no such head; train one.")
    head = RegionHead.from_pretrained(source)
    config = head.config
    features = DenoiserFeatures(load_pipeline(config.pipeline, device=device, **options), **config.features)
    teacher = load_teacher(config.teacher, device)
    return RegionDetector(to_device(head, device), features, teacher, f"region-head:{source}")
