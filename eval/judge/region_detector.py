"""The region head as a detector: one forward pass of a denoiser, then regions all over its feature maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brickwork.errors import explained
from brickwork.eval.judge.denoiser_features import DenoiserFeatures
from brickwork.eval.judge.detectors import Detection, Found, register_detector
from brickwork.eval.judge.region_head import RegionHead, decode_boxes, proposals, surest_boxes
from brickwork.eval.judge.teachers import Teacher, load_teacher, to_square

LEAST = 0.05  # scores that are handed on
REFINED = 2  # times that boxes are moved onto objects before these are named


class RegionDetector:
    """Finds objects by a trained region head.

    Args:
        head: the head.
        features: those that it was trained on.
        teacher: embeds the names; it may know more than the head was trained on.
        name: what results call it.
        authors: take the ensemble of ViLD's authors (`RegionHead.probabilities`) for scores.
    """

    def __init__(
        self, head: RegionHead, features: DenoiserFeatures, teacher: Teacher, name: str = "region-head",
        authors: bool = False,
    ):  # fmt: skip
        self.head, self.features, self.teacher, self.name = head.eval(), features, teacher, name
        self.names = teacher.names
        self.authors = authors
        self.anchors = proposals().to(head.background.device)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray], names: Sequence[Sequence[str]]) -> list[Found]:
        batch = torch.stack([to_square(picture, self.features.size) for picture in pictures])
        trunks = self.head.trunk(self.head.gather(self.features(batch)))
        return [
            self._find(trunk[None], *picture.shape[:2], asked)
            for trunk, picture, asked in zip(trunks, pictures, names, strict=True)
        ]

    def _find(self, trunk: torch.Tensor, height: int, width: int, asked: Sequence[str]) -> Found:
        boxes = self.anchors
        for _ in range(
            REFINED
        ):  # proposals, which the head then looks at itself: they fit objects better than anchors
            _, _, offsets, sure = self.head.read(trunk, boxes)
            boxes = decode_boxes(offsets[0], boxes)
            boxes = boxes[surest_boxes(boxes, sure[0].sigmoid(), LEAST)]
        text, image, offsets, sure = (one[0] for one in self.head.read(trunk, boxes))
        boxes = decode_boxes(offsets, boxes).cpu()
        trained = list(self.head.config.names)
        known = list(dict.fromkeys([*trained, *asked]))
        new, embeddings = [name for name in known if name not in trained], self.head.name_embeddings
        if new:
            embeddings = torch.cat([embeddings, self.teacher.texts(new).to(embeddings)])
        is_trained = torch.tensor([name in trained for name in known])
        if self.authors:
            scores = self.head.probabilities(text, image, embeddings, is_trained).cpu()
        else:
            scores = self.head.scores(text, image, sure, embeddings, is_trained).cpu()
        found, pixels = {}, boxes * torch.tensor([width, height, width, height])
        for name in asked:
            of_name = scores[:, known.index(name)]
            kept = surest_boxes(boxes, of_name, LEAST).tolist()
            found[name] = [Detection(tuple(pixels[i].tolist()), float(of_name[i])) for i in kept]
        return found


@register_detector("region-head:")
def load_region_detector(source: str, device: Any = None, **options: str) -> RegionDetector:
    """A detector from a folder that `training/train_region_head.py` wrote: the head, its pipeline and its teacher.

    `options` are of the hub, where the pipeline is there.
    """
    from brickwork.eval.sampling.pipelines import load_pipeline, to_device

    if not (Path(source) / "config.json").is_file():
        raise ValueError(f"`detector` is 'region-head:{source}', and there is no such head; train one.")
    with explained(f"`detector` is 'region-head:{source}', which another version made; train it again", TypeError):
        head = RegionHead.from_pretrained(source)
    config = head.config
    features = DenoiserFeatures(load_pipeline(config.pipeline, device=device, **options), **config.features)
    teacher = load_teacher(config.teacher, device)
    return RegionDetector(to_device(head, device), features, teacher, f"region-head:{source}")
