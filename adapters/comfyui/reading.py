"""Reading a ResAdapter from disk, in every form it is found in, and refusing whatever is none.

Forms: the authors' folder (LoRA in kohya names, norms as absolute values in a second file; newer and older file
names), a LoRA file in PEFT names with `<name>_norms.safetensors` beside it, and one LyCORIS-style file whose norms are
differences (`w_norm`, `b_norm`) from the base model's. Only safetensors are opened, never a pickle. Every refusal is a
`ValueError` that names the file and the tensors. This file runs inside ComfyUI too: see `names`.
"""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .metadata import MAX_RANK, check_alpha, kept, peft_alphas, read_info
from .names import FAMILIES, is_text_key, kohya_name, parse_key, unet_layout
from .strength import OFFICIAL_RANGES, TrainingRange

LORA_FILES = ("pytorch_lora_weights.safetensors", "resolution_lora.safetensors")
NORM_FILES = ("diffusion_pytorch_model.safetensors", "resolution_normalization.safetensors")
NORMS_SUFFIX = "_norms.safetensors"

_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
_SHOWN = 4  # tensors named in an error before "and N more"


@dataclass(frozen=True)
class LowRank:
    """A LoRA on one 3x3 convolution: `down` (rank, in, 3, 3), `up` (out, rank, 1, 1), `alpha` a scalar or None."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def factor(self) -> float:
        """alpha / rank, by which the product is multiplied; 1 where the file states no alpha."""
        return 1.0 if self.alpha is None else self.alpha.item() / self.rank

    def delta(self) -> torch.Tensor:
        """What the LoRA adds to the convolution's weight at strength 1: (out, in, 3, 3), float32."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (product * self.factor).reshape(self.up.shape[0], *self.down.shape[1:])


@dataclass(frozen=True)
class ResAdapterWeights:
    """One ResAdapter as read.

    convs: LoRA of each down- and upsampler convolution, by diffusers path; may be empty.
    norms: `<path>.weight` and `<path>.bias` of each ResNet norm, (channels,); may be empty.
    differences: whether the norms are differences from a base model's, rather than absolute values.
    info: what the file states of itself (family, sizes, trainer, ...), JSON values.
    source: the file or folder it was read from, for messages.
    notes: what trainers and other programs noted in the metadata.
    """

    convs: dict[str, LowRank]
    norms: dict[str, torch.Tensor]
    differences: bool = False
    info: dict = field(default_factory=dict)
    source: str = "the adapter"
    notes: dict[str, str] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Convolutions as (out, in) channels and norms as (channels,): what must fit the model."""
        convs = {path: (pair.up.shape[0], pair.down.shape[1]) for path, pair in self.convs.items()}
        return convs | {key: tuple(tensor.shape) for key, tensor in self.norms.items()}

    def kohya_tensors(self, rename: Callable[[str], str] = str) -> dict[str, torch.Tensor]:
        """The LoRA under kohya's names, of paths that `rename` may change before."""
        tensors = {}
        for path, pair in self.convs.items():
            name = kohya_name(rename(path))
            tensors |= {f"{name}.lora_down.weight": pair.down, f"{name}.lora_up.weight": pair.up}
            if pair.alpha is not None:
                tensors[f"{name}.alpha"] = pair.alpha
        return tensors

    def families(self) -> list[str]:
        """Keys of the Stable Diffusion families whose UNet these tensors fit: ['sd1', 'sd2'], ['sdxl'] or []."""
        found = []
        for family in FAMILIES:
            convs, norms = unet_layout(family.channels)
            norm_shapes = {f"{path}.{part}": (width,) for path, width in norms.items() for part in ("weight", "bias")}
            expected = (convs if self.convs else {}) | (norm_shapes if self.norms else {})
            if self.shapes() == expected:
                found.append(family.key)
        official = "sdxl" if "sdxl" in self.official_name() else "sd1" if self.official_name() else None
        stated = self.info.get("family") or official
        return [stated] if stated in found else found

    def training_range(self) -> TrainingRange | None:
        """The sizes the file states, or the authors' for a folder of theirs, or None."""
        stated = self.info.get("range")
        return OFFICIAL_RANGES.get(self.official_name()) if stated is None else TrainingRange(**stated)

    def official_name(self) -> str:
        """The authors' name for it, by the folder it was read from; empty for none of theirs."""
        path = Path(self.source)
        return next((name for name in (path.name, path.parent.name) if name in OFFICIAL_RANGES), "")


def listed(names) -> str:
    """The first few of many names, for a message."""
    names = sorted(names)
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + rest


@contextmanager
def opened(file: str | Path) -> Iterator[safe_open]:
    """A safetensors file; a `ValueError` that names it where it cannot be read."""
    try:
        with safe_open(str(file), framework="pt", device="cpu") as found:
            yield found
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no readable safetensors file, perhaps cut short: {error}") from error


def adapter_files(source: str | Path) -> list[Path]:
    """The one or two files that make up the adapter at `source`, a file or a folder."""
    path = Path(source)
    if path.is_dir():
        pair = (LORA_FILES, NORM_FILES)
        found = [next((path / name for name in names if (path / name).is_file()), None) for names in pair]
        if any(found):
            return [file for file in found if file]
        others = [file for file in sorted(path.glob("*.safetensors")) if not file.name.endswith(NORMS_SUFFIX)]
        if len(others) == 1:
            return adapter_files(others[0])
        raise ValueError(
            f"{path} holds no ResAdapter: expected {' and '.join(LORA_FILES[:1] + NORM_FILES[:1])}, the older "
            f"{' and '.join(LORA_FILES[1:] + NORM_FILES[1:])}, or one .safetensors file; found "
            f"{listed(file.name for file in path.iterdir()) or 'nothing'}"
        )
    if path.suffix.lower() in _PICKLES:
        raise ValueError(f"{path} is a pickle, which can run code when opened: only .safetensors files are read")
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise ValueError(f"{path} does not exist" + (f"; did you mean {near[0]}?" if near else ""))
    if path.name in LORA_FILES:
        beside = [path.with_name(name) for name in NORM_FILES]
    else:
        beside = [path.with_name(path.stem + NORMS_SUFFIX)]
    return [path] + [file for file in beside if file.is_file()][:1]


def read_adapter(source: str | Path) -> ResAdapterWeights:
    """Reads and checks the ResAdapter at `source`, a file or a folder; see the module's text for the forms.

    Raises:
        ValueError: nothing there, a pickle, a damaged file, tensors no ResAdapter has, half of a pair missing, wrong
            shapes or types, NaN or infinity, or norms both absolute and as differences.
    """
    tensors: dict[tuple[str, str], torch.Tensor] = {}
    info: dict = {}
    notes: dict[str, str] = {}
    for file in adapter_files(source):
        metadata = _read_file(file, tensors)
        info |= read_info(file, metadata)
        notes |= kept(metadata)
        _add_alphas(file, metadata, tensors, info.pop("alphas", {}))
    if not tensors:
        raise ValueError(f"{source} holds no tensors, so no ResAdapter")
    convs = _pair_convs(source, tensors)
    norms, differences = _pair_norms(source, tensors)
    return ResAdapterWeights(convs, norms, differences, info, str(source), notes)


def _read_file(file: Path, tensors: dict) -> dict[str, str]:
    """Adds the file's tensors by (path, part), after a look at all the names before any tensor is read.

    Returns:
        The file's metadata.
    """
    with opened(file) as found:
        kind = (found.metadata() or {}).get("brickwork.adapter", "resadapter")[:60]
        if kind != "resadapter":
            raise ValueError(
                f"{file} is a {kind!r} adapter, no ResAdapter: it works by code of Brickwork's own, which neither a "
                "file for ComfyUI nor a merged checkpoint can hold; load it in Python with brickwork.load_adapter"
            )
        # Zeros by which InvokeAI tells the family are no part of the adapter.
        keys = [key for key in found.keys() if not (is_text_key(key) and not found.get_tensor(key).any())]
        parsed = {key: parse_key(key) for key in keys}
        unknown = [key for key, name in parsed.items() if name is None]
        if unknown:
            raise ValueError(
                f"{file} is no ResAdapter: {len(unknown)} of its {len(keys)} tensors belong to none, such as "
                f"{listed(unknown)}. A ResAdapter has LoRA on down- and upsampler convolutions and the norms of "
                "ResNet blocks, nothing else; load other LoRAs with the usual LoRA loader"
            )
        for key, name in parsed.items():
            if name in tensors:
                raise ValueError(f"{file}: {key!r} gives the {name[1]} of {name[0]} a second time")
            tensors[name] = _checked(file, key, found.get_tensor(key))
        return found.metadata() or {}


def _add_alphas(file: Path, metadata: dict[str, str], tensors: dict, stated: dict[str, list]) -> None:
    """Adds the alphas that the PEFT form keeps in its metadata: those we noted with their type, else PEFT's own."""
    ranks = {path: down.shape[0] for (path, part), down in tensors.items() if part == "down" and down.ndim}
    given = {path: torch.tensor(alpha) for path, alpha in peft_alphas(file, metadata, ranks).items()}
    noted = {
        path: torch.tensor(value, dtype=torch.float64).to(getattr(torch, t)) for path, (value, t) in stated.items()
    }
    for path, alpha in (given | noted).items():
        if (path, "alpha") in tensors and path in noted:
            raise ValueError(f"{file}: the alpha of {path} is given a second time, in the metadata")
        tensors.setdefault((path, "alpha"), alpha)


def _checked(file: Path, key: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise ValueError(f"{file}: {key!r} is {tensor.dtype}, need a floating-point type of 16 bits or more")
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise ValueError(f"{file}: {key!r} has {bad} values that are NaN or infinite, so the file is damaged")
    return tensor


def _pair_convs(source: str | Path, tensors: dict[tuple[str, str], torch.Tensor]) -> dict[str, LowRank]:
    convs = {}
    for path in sorted({path for path, part in tensors if part in ("down", "up", "alpha")}):
        down, up, alpha = (tensors.get((path, part)) for part in ("down", "up", "alpha"))
        if down is None or up is None:
            raise ValueError(
                f"{source}: the LoRA of {path} has no {'lora_down' if down is None else 'lora_up'} weight"
            )
        rank = down.shape[0] if down.ndim else 0
        if down.ndim != 4 or down.shape[2:] != (3, 3) or up.ndim != 4 or up.shape[1:] != (rank, 1, 1) or rank == 0:
            raise ValueError(
                f"{source}: the LoRA of {path} has lora_down {tuple(down.shape)} and lora_up {tuple(up.shape)}; need "
                "(rank, in, 3, 3) and (out, rank, 1, 1)"
            )
        if rank > MAX_RANK:
            raise ValueError(f"{source}: the LoRA of {path} has rank {rank}; allowed: up to {MAX_RANK}")
        if alpha is not None and alpha.numel() != 1:
            raise ValueError(f"{source}: alpha of {path} has shape {tuple(alpha.shape)}, need a single number")
        if alpha is not None:
            check_alpha(f"{source}: the LoRA of {path}", alpha.item(), rank)
        convs[path] = LowRank(down, up, None if alpha is None else alpha.reshape(()))
    return convs


def _pair_norms(source: str | Path, tensors: dict[tuple[str, str], torch.Tensor]) -> tuple[dict, bool]:
    parts = {part for _, part in tensors} & {"weight", "bias", "w_norm", "b_norm"}
    differences = bool(parts & {"w_norm", "b_norm"})
    if differences and parts & {"weight", "bias"}:
        raise ValueError(f"{source} gives norms both as absolute values and as differences; need one of the two")
    weight, bias = ("w_norm", "b_norm") if differences else ("weight", "bias")
    norms = {}
    for path in sorted({path for path, part in tensors if part in parts}):
        pair = [tensors.get((path, part)) for part in (weight, bias)]
        if pair[0] is None or pair[1] is None:
            raise ValueError(f"{source}: {path} lacks its {weight if pair[0] is None else bias}")
        if pair[0].ndim != 1 or not pair[0].numel() or pair[0].shape != pair[1].shape:
            shapes = " and ".join(str(tuple(tensor.shape)) for tensor in pair)
            raise ValueError(f"{source}: {path} has shapes {shapes}; need two of one length")
        norms[f"{path}.weight"], norms[f"{path}.bias"] = pair
    return norms, differences


def check_fits(adapter: ResAdapterWeights, shapes: dict[str, tuple[int, ...]], target: str) -> None:
    """Refuses an adapter that does not fit a model, whose parts are given as in `ResAdapterWeights.shapes`.

    The LoRA must cover every down- and upsampler or be absent, the norms every ResNet norm or be absent.

    Raises:
        ValueError: naming what is missing, left over or of another shape, and what the adapter is for.
    """
    own = adapter.shapes()
    expected = {name: shape for name, shape in shapes.items() if (adapter.convs if len(shape) == 2 else adapter.norms)}
    problems = []
    if missing := expected.keys() - own.keys():
        problems.append(f"it lacks {listed(missing)}")
    if extra := own.keys() - expected.keys():
        problems.append(f"the model has no {listed(extra)}")
    if wrong := [name for name in own.keys() & expected.keys() if own[name] != expected[name]]:
        name = min(wrong)
        problems.append(f"{len(wrong)} shapes differ, such as {name!r}: {own[name]} here, {expected[name]} there")
    if problems:
        titles = [family.title for family in FAMILIES if family.key in adapter.families()]
        made_for = f"; it is a ResAdapter for {' and '.join(titles)}" if titles else ""
        raise ValueError(f"{adapter.source} does not fit {target}: {'; '.join(problems)}{made_for}")
