"""`LayoutAdapter`: what is to be drawn where, as boxes with phrases, for a trained denoiser."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.embeddings import GLIGENTextBoundingboxProjection
from torch import nn

from brickwork.adapters.layout.boxes import KEY_POINTS, checked_layouts, key_points, padded
from brickwork.adapters.layout.relation import BridgedRelation, RelativePositionMap
from brickwork.adapters.modules import ModuleAdapter, ModuleHook, for_batch
from brickwork.errors import near_names, one_of

ENCODINGS = ("relative", "fourier")
_LISTS = ("blocks", "resnets", "attentions")  # what stages call their layers, here and in diffusers


@dataclass
class Layout:
    """What the layers find within `condition`.

    Attributes:
        boxes: `(B, N, 4)`, from 0 to 1.
        phrases: `(B, N, phrase_dim)`.
        mask: `(B, N)`, true where there is a box.
        share: first share of the sampling steps in which it acts.
        active: whether this call of the network is among them.
    """

    boxes: torch.Tensor
    phrases: torch.Tensor
    mask: torch.Tensor
    share: float = 1.0
    active: bool = True

    def rows(self, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Boxes, phrases and mask of a batch."""
        return tuple(for_batch("boxes", part, batch) for part in (self.boxes, self.phrases, self.mask))


class Site(nn.Module):
    """The layer for one map of the network: to the adapter's width, the relation, and back through a gate of zeros."""

    def __init__(self, channels: int, dim: int, num_heads: int, kinds: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.proj_in = nn.Linear(channels, dim)
        self.relation = BridgedRelation(dim, num_heads, kinds, null_key=True)
        self.proj_out = nn.Linear(dim, channels)
        self.gate = nn.Parameter(torch.zeros(channels))

    def forward(
        self,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        position_map: RelativePositionMap | None,
    ) -> torch.Tensor:
        """What is added to `hidden_states (B, C, H, W)`."""
        height, width = hidden_states.shape[-2:]
        queries = self.proj_in(self.norm(hidden_states.flatten(2).transpose(1, 2)))
        grid = pixel_centres(height, width).to(queries)
        output = queries + self.relation(queries, grid, keys, positions, mask, position_map)
        # A picture without boxes stays as it is.
        change = self.proj_out(output) * self.gate * mask.any(dim=1)[:, None, None]
        return change.transpose(1, 2).unflatten(2, (height, width))


class LayoutParts(nn.Module):
    """All weights of the adapter.

    Args:
        sites: name and channels of each map that it changes.
        phrase_dim: width of a phrase's vector.
        dim: width of queries and keys.
        num_heads: heads.
        key_points: kinds of key points, some of `KEY_POINTS`.
        encoding: `"relative"` for key points and the map of relative positions; `"fourier"` for GLIGEN's embedding of
            boxes (arXiv 2301.07093), with which a box is one key.
    """

    def __init__(
        self,
        sites: dict[str, int],
        phrase_dim: int,
        dim: int,
        num_heads: int,
        key_points: Sequence[str],
        encoding: str,
    ):
        super().__init__()
        self.kinds = tuple(key_points) if encoding == "relative" else ("center",)
        if encoding == "relative":
            self.phrase = nn.Linear(phrase_dim, dim)
            self.kind = nn.Parameter(torch.randn(len(self.kinds), dim) * 0.02)
            self.position_map = RelativePositionMap(num_heads)
        else:
            self.phrase = GLIGENTextBoundingboxProjection(positive_len=phrase_dim, out_dim=dim)
            self.position_map = None
        self.sites = nn.ModuleDict(
            {name.replace(".", "/"): Site(width, dim, num_heads, len(self.kinds)) for name, width in sites.items()}
        )

    def keys(
        self, boxes: torch.Tensor, phrases: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features `(kinds, B, N, dim)` and positions `(kinds, B, N, 2)` of the key points."""
        positions = key_points(boxes, self.kinds)
        if self.position_map is None:
            return self.phrase(boxes, mask.to(phrases.dtype), phrases)[None], positions
        return self.phrase(phrases)[None] + self.kind[:, None, None, :], positions


class LayoutAdapter(ModuleAdapter):
    """Boxes with phrases for `BlockUNet2DModel` and diffusers' `UNet2DConditionModel`.

    Behind the last block of every stage the map's pixels attend to centres and corners of the boxes, by phrase and by
    relative position, and a gate that starts at zero lets the answer in. The layers are those of RelationNet++
    (arXiv 2010.15831); with `encoding="fourier"` the boxes are embedded as GLIGEN does (arXiv 2301.07093).

        adapter = LayoutAdapter.create(pipe, dim=128)
        with adapter.condition(boxes=[(0.1, 0.2, 0.5, 0.9)], phrases=["a robot"], share=0.5):
            pipe("a robot and a cat")

    A phrase is a text for pipelines with a text encoder, a class name or number for class-conditional networks, or a
    vector. `share` is the first share of the sampling steps in which the layout acts (GLIGEN's scheduled sampling);
    the strength is `scale`. Under guidance both halves of a batch have the layout.
    """

    kind = "layout"
    conditions, strength_argument = ("boxes", "phrases", "share"), "layout_scale"
    _pipeline: Any = staticmethod(lambda: None)

    @classmethod
    def build(
        cls,
        network: nn.Module,
        phrase_dim: int | None = None,
        dim: int = 128,
        num_heads: int = 8,
        key_points: Sequence[str] = KEY_POINTS,
        encoding: str = "relative",
    ) -> tuple[nn.Module, dict]:
        """The weights for a network, the UNet.

        Args:
            phrase_dim: width of a phrase's vector, `None` for what the network reads: its text's width, or a number
                for each class; this and the others as of `LayoutParts`.

        Raises:
            ValueError: for another kind of network, or settings that do not fit each other.
        """
        one_of("encoding", encoding, ENCODINGS)
        key_points = list(key_points)
        for kind in key_points or [""]:
            one_of("key_points", kind, KEY_POINTS)
        config = getattr(network, "config", {})
        if phrase_dim is None:
            phrase_dim = config.get("cross_attention_dim") or config.get("num_classes")
        if not isinstance(phrase_dim, int) or phrase_dim < 1:
            raise ValueError(f"`phrase_dim` is {phrase_dim!r}; give the width of the phrases' vectors.")
        config = {"phrase_dim": phrase_dim, "dim": dim, "num_heads": num_heads}
        config |= {"key_points": key_points, "encoding": encoding}
        return LayoutParts(layout_sites(network), **config), config

    @classmethod
    def create(cls, model, name: str | None = None, **config) -> Self:
        return super().create(model, name, **config).reads_from(model)

    @classmethod
    def load(cls, pipe_or_model, source: str | Path, name: str | None = None, scale: float = 1.0, **options) -> Self:
        return super().load(pipe_or_model, source, name, scale, **options).reads_from(pipe_or_model)

    def hooks(self) -> list[tuple[nn.Module, str, Any]]:
        sites = [(self.network.get_submodule(name), "post", AtSite(self, name)) for name in layout_sites(self.network)]
        return [(self.network, "pre", AtStart(self)), *sites]

    def prepare(self, boxes: Any = None, phrases: Any = None, share: float = 1.0) -> Layout:
        """The layouts as tensors; see the class."""
        if boxes is None or phrases is None:
            raise ValueError("`boxes` and `phrases` belong together; give both.")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(f"`share` is {share!r}; give the first share of the steps, from 0 to 1.")
        if share < 1 and self._pipeline() is None:
            raise ValueError(f"`share` is {share}, a share of a pipeline's steps; load the adapter on the pipeline.")
        rows, words = checked_layouts(boxes, phrases)
        width, vectors = self.config["phrase_dim"], []
        for row in words:
            texts = [entry for entry in row if isinstance(entry, str)]
            of_text = dict(zip(texts, self._embed(texts))) if texts else {}
            found = [of_text[entry] if isinstance(entry, str) else self._vector(entry) for entry in row]
            vectors.append(torch.stack(found) if found else torch.zeros(0, width))
        all_boxes, mask = padded([torch.tensor(row, dtype=torch.float32).reshape(-1, 4) for row in rows])
        return Layout(all_boxes, padded(vectors)[0], mask, float(share))

    def reads_from(self, model: Any) -> Self:
        """Let a pipeline, not kept alive by it, read the phrases and count the steps; a bare network does neither."""
        self._pipeline = (lambda: None) if isinstance(model, nn.Module) else weakref.ref(model)
        return self

    def _embed(self, texts: list[str]) -> torch.Tensor:
        """Vectors `(n, phrase_dim)` of texts: the text encoder's pooled output, or a number for each class."""
        empty = [text for text in texts if not text.strip()]
        if empty:
            raise ValueError(f"`phrases` has {empty[0]!r}; say what is in the box.")
        pipeline = self._pipeline()
        encoder = getattr(pipeline, "text_encoder", None)
        if encoder is not None:
            length = pipeline.tokenizer.model_max_length
            how = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
            tokens = pipeline.tokenizer(texts, **how)
            with torch.no_grad():
                output = encoder(tokens.input_ids.to(encoder.device))
            pooled = getattr(output, "pooler_output", None)
            return (output.last_hidden_state[:, 0] if pooled is None else pooled).float().cpu()
        names = {name.casefold(): int(number) for number, name in (self.network.config.get("id2label") or {}).items()}
        if not names:
            raise ValueError(
                "`phrases` are texts, but no text encoder is there; load the adapter on a pipeline with one."
            )
        for text in texts:
            if text.strip().casefold() not in names:
                near = near_names(text.casefold(), names, 3) or list(names)[:8]
                raise ValueError(f"`phrases` has {text!r}, no class of the network; there are {', '.join(near)}.")
        return torch.stack([self._vector(names[text.strip().casefold()]) for text in texts])

    def _vector(self, entry: Any) -> torch.Tensor:
        width = self.config["phrase_dim"]
        if isinstance(entry, int) and not isinstance(entry, bool):
            if self.network.config.get("num_classes") != width or not 0 <= entry < width:
                raise ValueError(f"`phrases` has {entry}; numbers are classes of the network, from 0 to {width - 1}.")
            return nn.functional.one_hot(torch.tensor(entry), width).float()
        vector = torch.as_tensor(entry, dtype=torch.float32)
        if tuple(vector.shape) != (width,):
            raise ValueError(f"`phrases` has a vector of shape {tuple(vector.shape)}; this adapter reads ({width},).")
        return vector


class AtStart(ModuleHook):
    """Before the network: whether this step is within the layout's share of the steps."""

    def act(self, strength: float, module: nn.Module, args: tuple, kwargs: dict) -> None:
        layout = self.adapter.present()
        if layout is None or layout.share == 1:
            return
        timestep = torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"]).flatten()[0].double().cpu()
        steps = self.adapter._pipeline().scheduler.timesteps.double().cpu()
        layout.active = bool((steps - timestep).abs().argmin() < layout.share * len(steps))


class AtSite(ModuleHook):
    """Behind a stage's last block: the map with what the layout says about it."""

    def __init__(self, adapter: LayoutAdapter, name: str):
        super().__init__(adapter)
        self.name = name.replace(".", "/")

    def act(self, strength: float, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        layout = self.adapter.present()
        if layout is None or not layout.active:
            return None
        hidden_states = output if isinstance(output, torch.Tensor) else output[0]
        parts = self.adapter.parts
        weight = parts.sites[self.name].gate
        boxes, phrases, mask = (part.to(hidden_states.device) for part in layout.rows(len(hidden_states)))
        keys, positions = parts.keys(boxes.to(weight.dtype), phrases.to(weight.dtype), mask)
        change = parts.sites[self.name](hidden_states.to(weight.dtype), keys, positions, mask, parts.position_map)
        changed = hidden_states + strength * change.to(hidden_states.dtype)
        if isinstance(output, torch.Tensor):
            return changed
        return (changed, *output[1:]) if isinstance(output, tuple) else type(output)(sample=changed)


def layout_sites(network: nn.Module) -> dict[str, int]:
    """The modules behind which a layout acts, the last of every stage, and the channels of their maps.

    Raises:
        ValueError: for a network that is no UNet of ours or of diffusers.
    """
    last_of: dict[str, str] = {}
    for name, module in network.named_modules():
        stage, _, kind = name.rpartition(".")
        listed = isinstance(module, nn.ModuleList) and len(module) and _is_stage(stage, kind)
        if listed and (kind == "attentions" or stage not in last_of):
            last_of[stage] = f"{name}.{len(module) - 1}"
    sites = {name: _channels(network.get_submodule(name)) for name in last_of.values()}
    if not sites:
        raise ValueError(
            f"a {type(network).__name__} has no stages that a layout can go on; give a BlockUNet2DModel or a "
            "UNet2DConditionModel, or a pipeline with one."
        )
    return sites


def pixel_centres(height: int, width: int) -> torch.Tensor:
    """Positions `(height * width, 2)` of a map's pixels, x then y, from 0 to 1."""
    rows, columns = ((torch.arange(side) + 0.5) / side for side in (height, width))
    return torch.stack([columns.repeat(height), rows.repeat_interleave(width)], dim=-1)


def _is_stage(stage: str, kind: str) -> bool:
    if not stage:
        return kind == "mid_block"
    first, *number = stage.split(".")
    return first in ("down_blocks", "mid_block", "up_blocks") and len(number) < 2 and kind in _LISTS


def _channels(module: nn.Module) -> int:
    for name in ("out_dim", "out_channels", "in_channels"):
        if isinstance(getattr(module, name, None), int):
            return getattr(module, name)
    raise ValueError(f"a {type(module).__name__} does not say how many channels its map has")
