"""Open-vocabulary detectors of transformers: OWLv2 (arXiv 2306.09683) and Grounding DINO (arXiv 2303.05499)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from brickwork.errors import explained
from brickwork.eval.judge.detectors import Detection, Found, register_detector

FLOOR = 0.02  # scores below are not handed on: OWLv2 says something of every patch


class _TransformersDetector(ABC):
    """A zero-shot detector of transformers with its processor.

    Args:
        source: a folder or a hub id.
        device: of the network, by default the best there is.
        options: of the hub, `revision`, `variant` and `token`.
    """

    kind: str
    names = None  # any

    def __init__(self, source: str, device: Any = None, **options: str):
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        from brickwork.eval.sampling.pipelines import to_device
        from brickwork.hub import without_variant

        self.name = f"{self.kind}:{source}"
        with explained(f"`detector` is {self.name!r}, which could not be loaded", OSError, ValueError, ImportError):
            self.processor = AutoProcessor.from_pretrained(source, **without_variant(options))
            model = AutoModelForZeroShotObjectDetection.from_pretrained(source, **options).eval()
        if model.config.model_type not in self.model_types:
            known = " or ".join(self.model_types)
            raise ValueError(f"`detector` is {self.name!r}, which holds a {model.config.model_type}; give a {known}.")
        self.model = to_device(model, device)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[np.ndarray], names: Sequence[Sequence[str]]) -> list[Found]:
        return [self._find(picture, list(asked)) for picture, asked in zip(pictures, names, strict=True)]

    def _find(self, picture: np.ndarray, names: list[str]) -> Found:
        """Each box goes to the name that it fits best."""
        scores, boxes = self._scores(picture, names)
        middles, sizes = boxes[:, :2], boxes[:, 2:]
        corners = torch.cat([middles - sizes / 2, middles + sizes / 2], dim=1) * self._side(picture)
        height, width = picture.shape[:2]
        corners = corners.clamp_min(0).minimum(torch.tensor([width, height, width, height])).tolist()
        found: dict[str, list[Detection]] = {name: [] for name in names}
        best = scores.max(dim=1)
        for corner, score, index in zip(corners, best.values.tolist(), best.indices.tolist()):
            if score > FLOOR:
                found[names[index]].append(Detection(tuple(corner), score))
        return found

    @abstractmethod
    def _scores(self, picture: np.ndarray, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores `(queries, names)` from 0 to 1, and boxes `(queries, 4)` as relative middle and size, on the CPU."""

    def _side(self, picture: np.ndarray) -> torch.Tensor:
        """What relative boxes are relative to, in pixels `(4,)`."""
        height, width = picture.shape[:2]
        return torch.tensor([width, height, width, height])


class Owlv2Detector(_TransformersDetector):
    """OWLv2 or OWL-ViT: a score for every patch and every name; pictures of OWLv2 are padded to squares."""

    kind, model_types = "owlv2", ("owlv2", "owlvit")

    def _scores(self, picture: np.ndarray, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        texts = [[f"a photo of a {name}" for name in names]]
        inputs = self.processor(text=texts, images=[picture], return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        return outputs.logits[0].float().sigmoid().cpu(), outputs.pred_boxes[0].float().cpu()

    def _side(self, picture: np.ndarray) -> torch.Tensor:
        padded = self.model.config.model_type == "owlv2"
        return torch.full((4,), max(picture.shape[:2])) if padded else super()._side(picture)


class GroundingDinoDetector(_TransformersDetector):
    """Grounding DINO: a score for every query and every token; a name has that of its best token."""

    kind, model_types = "grounding-dino", ("grounding-dino", "mm-grounding-dino")

    def _scores(self, picture: np.ndarray, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ends = np.cumsum([len(name) + 2 for name in names]).tolist()
        text = " ".join(f"{name.lower()}." for name in names)
        inputs = self.processor(text=text, images=[picture], return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        tokens = outputs.logits[0].float().sigmoid().cpu()
        spans = self.processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        scores = []
        for name, end in zip(names, ends):
            start = end - len(name) - 2
            own = [i for i, (low, high) in enumerate(spans) if start <= low < high <= start + len(name)]
            scores.append(tokens[:, own].amax(dim=1) if own else torch.zeros(len(tokens)))
        return torch.stack(scores, dim=1), outputs.pred_boxes[0].float().cpu()


register_detector("owlv2:")(Owlv2Detector)
register_detector("grounding-dino:")(GroundingDinoDetector)
