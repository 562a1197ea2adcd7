"""An open-vocabulary head on regions of feature maps: ViLD (arXiv 2104.13921; tensorflow/tpu, projects/vild).

Regions are cut out of a map, and two branches turn each into a direction in the space of a frozen image-text teacher:

- **text**: cosines with the embeddings of class names, and with a learned background, over a temperature; trained by
  cross-entropy on the classes of the training set (ViLD-text);
- **image**: trained by the L1 distance to the teacher's embedding of the region in the picture, the mean of its 1× and
  1.5× crops (ViLD-image).

At test time the probabilities of both are put together by a geometric mean, two thirds of it the text branch's for
classes it was trained on and a third for new ones. New class names need no new weights.
"""

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from brickwork.eval.judge.denoiser_features import Standardized

TEXT_SHARE = 2 / 3  # of the text branch for classes that it was trained on (λ in the paper's equation 6)
IMAGE_WEIGHT = 5.0  # of the image branch's loss
UNNAMED = -2  # the class of objects that the text branch does not see
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the box's shifts and stretches, as detectors of this family have them
OVERLAP = 0.5  # of boxes that are the same object


def crop_regions(maps: torch.Tensor, boxes: torch.Tensor, side: int) -> torch.Tensor:
    """Cut regions out of maps, by bilinear reading at the middles of `side` × `side` cells.

    Args:
        maps: `(B, C, H, W)`.
        boxes: `(B, N, 4)`, left, top, right, bottom from 0 to 1.
        side: of the result.

    Returns:
        `(B, N, C, side, side)`.
    """
    cells = (torch.arange(side, device=maps.device, dtype=maps.dtype) + 0.5) / side
    (left, top), (right, bottom) = boxes[..., :2].unbind(-1), boxes[..., 2:].unbind(-1)
    x = left[..., None] + (right - left)[..., None] * cells  # (B, N, side)
    y = top[..., None] + (bottom - top)[..., None] * cells
    grid = torch.stack([x[:, :, None, :].expand(-1, -1, side, -1), y[..., None].expand(-1, -1, -1, side)], dim=-1)
    read = F.grid_sample(maps, 2 * grid.flatten(1, 2).to(maps) - 1, padding_mode="border", align_corners=False)
    return read.unflatten(2, (boxes.shape[1], side)).transpose(1, 2)


def proposals() -> torch.Tensor:
    """Boxes `(N, 4)` of several sizes and shapes all over a picture, at distances of a third of their sides."""
    found = []
    for scale, aspect in product((0.2, 0.3, 0.45, 0.7), (1.0, 0.6, 1.6)):
        width, height = scale * aspect**0.5, scale / aspect**0.5
        across, down = (max(2, round(3 * (1 - length) / length) + 1) for length in (width, height))
        lefts, tops = torch.linspace(0, 1 - width, across), torch.linspace(0, 1 - height, down)
        corners = torch.cartesian_prod(lefts, tops)
        found.append(torch.cat([corners, corners + torch.tensor([width, height])], dim=1))
    return torch.cat(found).clamp(0, 1)


def box_overlaps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union `(N, M)` of boxes `(N, 4)` and `(M, 4)`."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp_min(1e-9)


def surest_boxes(boxes: torch.Tensor, scores: torch.Tensor, least: float) -> torch.Tensor:
    """Numbers of the boxes that lie over no surer one, the surest first."""
    order = torch.where(scores > least)[0]
    order, kept = order[scores[order].argsort(descending=True)], []
    while len(order):
        kept.append(order[0])
        order = order[box_overlaps(boxes[order[0]][None], boxes[order])[0] < OVERLAP]
    return torch.stack(kept) if kept else order


def encode_boxes(boxes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Boxes `(…, 4)` as shifts and stretches of anchors, times `BOX_WEIGHTS`."""
    size, anchor = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = ((boxes[..., :2] + size / 2) - (anchors[..., :2] + anchor / 2)) / anchor
    return torch.cat([shift, (size / anchor).log()], dim=-1) * boxes.new_tensor(BOX_WEIGHTS)


def decode_boxes(offsets: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """The inverse of `encode_boxes`, cut to the picture."""
    shift, stretch = (offsets / offsets.new_tensor(BOX_WEIGHTS)).split(2, dim=-1)
    anchor = anchors[..., 2:] - anchors[..., :2]
    middle, size = anchors[..., :2] + anchor / 2 + shift * anchor, anchor * stretch.clamp(-2, 2).exp()
    return torch.cat([middle - size / 2, middle + size / 2], dim=-1).clamp(0, 1)


class RegionHead(ModelMixin, ConfigMixin):
    """ViLD's two branches over regions of feature maps, with class-agnostic boxes and objectness.

    Args:
        channels: of the maps, in the order of `DenoiserFeatures`.
        embedding_dim: of the teacher's space.
        names: classes that the text branch is trained on.
        hidden_size: width of the branches.
        side: of the regions, in cells.
        temperature: by which the text branch's cosines are divided (the authors' 0.01).
        image_temperature: the same of the image branch (the authors' 0.01).
        teacher: where class names and crops are embedded, for whoever loads the head.
        pipeline: whose features it reads, likewise.
        features: how (`DenoiserFeatures.to_dict`), likewise.
    """

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int],
        embedding_dim: int,
        names: Sequence[str],
        hidden_size: int = 128,
        side: int = 5,
        temperature: float = 0.01,
        image_temperature: float = 0.04,
        teacher: str | None = None,
        pipeline: str | None = None,
        features: dict | None = None,
    ):
        super().__init__()
        self.standardized = Standardized(channels)
        self.laterals = nn.ModuleList(nn.Conv2d(count, hidden_size, 1) for count in channels)
        self.trunk = nn.Sequential(
            nn.GroupNorm(8, hidden_size), nn.GELU(), nn.Conv2d(hidden_size, hidden_size, 3, padding=1),
            nn.GroupNorm(8, hidden_size), nn.GELU(),
        )  # fmt: skip
        self.text, self.image, self.place = (_branch(hidden_size, side) for _ in range(3))
        self.text_out, self.image_out = (nn.Linear(hidden_size, embedding_dim) for _ in range(2))
        self.background = nn.Parameter(torch.randn(embedding_dim) * 0.01)
        self.place_out = nn.Linear(hidden_size, 5)
        nn.init.normal_(self.place_out.weight, std=1e-3)
        nn.init.zeros_(self.place_out.bias)
        self.register_buffer("name_embeddings", torch.zeros(len(names), embedding_dim))

    def forward(
        self, maps: Sequence[torch.Tensor], boxes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is in regions.

        Args:
            maps: `(B, C, h, w)`, one for each site.
            boxes: `(B, N, 4)` or `(N, 4)`, from 0 to 1.

        Returns:
            Directions of the text and the image branch `(B, N, embedding_dim)`, of length one; offsets of the boxes
            `(B, N, 4)`; logits of whether an object is there `(B, N)`.
        """
        return self.read(self.trunk(self.gather(maps)), boxes)

    def read(self, trunk: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`forward` for what the trunk made of maps, `(B, hidden_size, H, W)`."""
        boxes = boxes.expand(len(trunk), *boxes.shape[-2:])
        regions = crop_regions(trunk, boxes, self.config.side).flatten(2)
        text, image = (
            F.normalize(out(branch(regions)), dim=-1)
            for branch, out in ((self.text, self.text_out), (self.image, self.image_out))
        )
        places = self.place_out(self.place(regions))
        return text, image, places[..., :4], places[..., 4]

    def gather(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps of several sizes => their sum `(B, hidden_size, H, W)`, at the largest size."""
        size = max(tuple(one.shape[-2:]) for one in maps)
        found = (lateral(one) for lateral, one in zip(self.laterals, self.standardized(maps)))
        return sum(F.interpolate(one, size, mode="bilinear") for one in found)

    def text_logits(self, directions: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Logits `(…, 1 + C)` of directions `(…, D)`: the background's, then those of class embeddings `(C, D)`."""
        known = torch.cat([self.background[None], embeddings.to(self.background)])
        return directions @ F.normalize(known, dim=-1).T / self.config.temperature

    def image_logits(self, directions: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Logits `(…, C)` of the image branch's directions `(…, D)` for class embeddings `(C, D)`."""
        return directions @ F.normalize(embeddings.to(directions), dim=-1).T / self.config.image_temperature

    def probabilities(
        self, text: torch.Tensor, image: torch.Tensor, embeddings: torch.Tensor, trained: torch.Tensor
    ) -> torch.Tensor:
        """The probabilities `(…, C)` of the ensemble as the authors have it.

        Args:
            text, image: directions of both branches.
            embeddings: of the classes `(C, D)`.
            trained: whether the text branch was trained on each, bool `(C,)`.
        """
        by_text = self.text_logits(text, embeddings).softmax(dim=-1)[..., 1:]
        by_image = self.image_logits(image, embeddings).softmax(dim=-1)
        share = torch.where(trained.to(text.device), TEXT_SHARE, 1 - TEXT_SHARE)
        return by_text**share * by_image ** (1 - share)

    def scores(
        self, text: torch.Tensor, image: torch.Tensor, sure: torch.Tensor, embeddings: torch.Tensor,
        trained: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """How surely regions show objects of each class, `(…, C)`.

        That is objectness, times the probability of not being the learned background, times that among the classes.

        The image branch says how likely new names are; the ensemble of both chooses among those trained on. The text
        branch has no say on new names: taught a few names alone, it gives one of them to any object.

        Args:
            text, image, sure: directions of both branches and logits of objectness.
            embeddings: of the classes `(C, D)`.
            trained: whether the text branch was trained on each, bool `(C,)`.
        """
        trained, by_image = trained.to(text.device), self.image_logits(image, embeddings)
        mean = TEXT_SHARE * self.text_logits(text, embeddings)[..., 1:] + (1 - TEXT_SHARE) * by_image
        known, likely = mean.masked_fill(~trained, -torch.inf).softmax(dim=-1), by_image.softmax(dim=-1)
        likely = torch.where(trained, known * (likely * trained).sum(dim=-1, keepdim=True), likely)
        ground = self.text_logits(text, embeddings).softmax(dim=-1)[..., :1]
        return sure.sigmoid()[..., None] * (1 - ground) * likely


def _branch(width: int, side: int) -> nn.Sequential:
    """Regions `(…, width · side²)` => `(…, width)`."""
    return nn.Sequential(nn.Linear(width * side * side, width), nn.LayerNorm(width), nn.GELU())


def matched(
    anchors: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, count: int = 32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Regions to learn from: the boxes themselves, proposals over them, and some of the background.

    Args:
        anchors: proposals `(N, 4)`.
        boxes: of the objects `(M, 4)`. labels: their classes `(M,)`.
        generator: draws among proposals.
        count: of regions.

    Returns:
        Regions `(count, 4)`; their classes `(count,)`, -1 for the background; the box of each `(count, 4)`.
    """
    overlaps = box_overlaps(anchors, boxes)
    best = overlaps.max(dim=1)
    over, apart = torch.where(best.values >= 0.5)[0], torch.where(best.values < 0.4)[0]
    objects = over[torch.randperm(len(over), generator=generator)[: max(0, count // 2 - len(boxes))]]
    ground = apart[torch.randint(len(apart), (count - len(objects) - len(boxes),), generator=generator)]
    regions = torch.cat([boxes, anchors[objects], anchors[ground]])
    of_box = torch.cat([torch.arange(len(boxes)), best.indices[objects], best.indices[ground]])
    classes = torch.cat([labels, labels[best.indices[objects]], torch.full((len(ground),), -1)])
    return regions, classes, boxes[of_box]


def region_losses(
    head: RegionHead, maps: Sequence[torch.Tensor], regions: torch.Tensor, classes: torch.Tensor, boxes: torch.Tensor,
    embeddings: torch.Tensor, teacher: torch.Tensor, objects: torch.Tensor,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """ViLD's losses `text` and `image` (squared distance, in L1's place), and `box` and `object`.

    Args:
        maps: `(B, C, h, w)`, one for each site.
        regions: `(B, N, 4)`.
        classes: `(B, N)`, -1 for the background, `UNNAMED` for what the text branch does not see.
        boxes: where the regions' objects are.
        embeddings: of the classes `(C, D)`.
        teacher: the frozen teacher's directions of the regions `(B, N, D)`, of length one.
        objects: which regions hold an object, of a class that is trained on or not, bool `(B, N)`.
    """
    text, image, offsets, sure = head(maps, regions)
    wanted, logits = encode_boxes(boxes, regions), head.text_logits(text, embeddings)
    return {
        "text": F.cross_entropy(logits.flatten(0, 1), classes.flatten() + 1, ignore_index=-1),
        "image": IMAGE_WEIGHT * (image - teacher)[objects].square().sum(dim=-1).mean(),
        "box": F.smooth_l1_loss(offsets[objects], wanted[objects]),
        "object": F.binary_cross_entropy_with_logits(sure, objects.float()),
    }
