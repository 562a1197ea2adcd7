"""`merge_resadapter`: an adapter baked into a checkpoint, for programs that load no adapters; `brickwork merge`.

The result has the base's tensors, names, types and metadata; only the down- and upsampler convolutions and the ResNet
norms differ. There is no way back but the base itself.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from brickwork.adapters.base import checked_scale
from brickwork.adapters.comfyui.reading import ResAdapterWeights, check_fits, read_adapter
from brickwork.adapters.hub import local_adapter
from brickwork.adapters.resadapter.base_norms import UNET_FILES, canonical_tensor


def merge_resadapter(
    base: str | Path,
    adapter: str | Path,
    dst: str | Path,
    *,
    scale: float = 1.0,
    lora_scale: float | None = None,
    norm_scale: float | None = None,
) -> Path:
    """Writes `base` with a ResAdapter baked in at the given strength.

    Args:
        base: a single-file checkpoint (.safetensors, original or diffusers names), a UNet's folder or a pipeline's.
        adapter: a file, an authors' folder or a place on the Hub, as for `load_resadapter`. Absolute norms replace the
            base's own by the scale; differences are added.
        dst: a file if `base` is one, else a folder; must not exist.
        scale: strength, a finite number; `lora_scale` and `norm_scale` go before it for one half.

    Raises:
        ValueError: something in the way at `dst`, a base or adapter that cannot be read, or a pair that does not fit.
    """
    base, dst = Path(base), Path(dst)
    strengths = {"scale": scale, "lora_scale": lora_scale, "norm_scale": norm_scale}
    numbers = {name: checked_scale(name, value) for name, value in strengths.items() if value is not None}
    lora, norm = (numbers.get(half, numbers["scale"]) for half in ("lora_scale", "norm_scale"))
    if dst.exists():
        raise ValueError(f"dst={str(dst)!r} exists already: choose another")
    if not base.exists():
        raise ValueError(f"base={str(base)!r} does not exist")
    files = _weight_files(base)
    loaded = read_adapter(local_adapter(adapter))
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= _shapes(file)
    check_fits(loaded, shapes, str(base))
    dst.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=dst.parent, prefix=f".{dst.name}."))
    try:
        if base.is_file():
            _merge_file(base, temporary / dst.name, loaded, lora, norm)
        else:
            skipped = {str(file) for file in files}
            shutil.copytree(
                base, temporary / dst.name, ignore=lambda at, names: [n for n in names if str(Path(at, n)) in skipped]
            )
            for file in files:
                _merge_file(file, temporary / dst.name / file.relative_to(base), loaded, lora, norm)
        os.replace(temporary / dst.name, dst)
    finally:
        shutil.rmtree(temporary)
    return dst


def _weight_files(base: Path) -> list[Path]:
    """The safetensors files that hold the UNet of a checkpoint or folder."""
    if base.is_file():
        if base.suffix != ".safetensors":
            raise ValueError(f"{base}: only .safetensors checkpoints are read, as pickles can run code when opened")
        return [base]
    unet = base / "unet" if (base / "unet").is_dir() else base
    index = unet / (UNET_FILES[0] + ".index.json")
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [unet / name for name in sorted(set(names))]
    found = [unet / name for name in UNET_FILES if (unet / name).is_file()]
    if not found:
        raise ValueError(f"{unet} has neither {' nor '.join(UNET_FILES)}")
    return found


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The checkpoint's convolutions and norms, as `check_fits` takes them."""
    shapes = {}
    try:
        with safe_open(str(file), framework="pt", device="cpu") as opened:
            for key in opened.keys():
                name = canonical_tensor(key)
                if name is not None:
                    shape = tuple(opened.get_slice(key).get_shape())
                    shapes[name.removesuffix(".weight") if "samplers" in name else name] = shape[
                        : 1 + ("samplers" in name)
                    ]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no readable safetensors file: {error}") from error
    return shapes


def _merge_file(src: Path, dst: Path, adapter: ResAdapterWeights, lora: float, norm: float) -> None:
    with safe_open(str(src), framework="pt", device="cpu") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}
        metadata = opened.metadata()
    for key, tensor in tensors.items():
        name = canonical_tensor(key)
        path = (name or "").removesuffix(".weight")
        if path in adapter.convs:
            tensors[key] = (tensor.float() + adapter.convs[path].delta() * lora).to(tensor.dtype)
        elif name in adapter.norms:
            value = adapter.norms[name].double()
            change = value if adapter.differences else value - tensor.double()
            tensors[key] = (tensor.double() + change * norm).to(tensor.dtype)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, str(dst), metadata)


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """The arguments of `brickwork merge`."""
    parser.description = "Bake a ResAdapter into a checkpoint, for programs that load no adapters."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "example:\n  brickwork merge model.safetensors resadapter_v2_sd1.5 merged.safetensors --scale 0.7"
    parser.add_argument("base", help="a .safetensors checkpoint, or the folder of a pipeline or a UNet")
    parser.add_argument("adapter", help="the adapter: a file, an authors' folder, or owner/name/folder on the Hub")
    parser.add_argument("dst", help="where to write the result: a file or a folder, as the base is; must not exist")
    parser.add_argument("--scale", type=float, default=1.0, help="strength of LoRA and norms (default: 1.0)")
    parser.add_argument("--lora-scale", type=float, help="strength of the LoRA alone")
    parser.add_argument("--norm-scale", type=float, help="strength of the norms alone")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Merges and prints where to."""
    print(
        "wrote",
        merge_resadapter(
            args.base,
            args.adapter,
            args.dst,
            scale=args.scale,
            lora_scale=args.lora_scale,
            norm_scale=args.norm_scale,
        ),
    )
