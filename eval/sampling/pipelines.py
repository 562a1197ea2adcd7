"""Opening pipelines by what a person types: the name of weights that ship, a folder, or a name on the hub."""

import inspect
import math
from pathlib import Path
from typing import Any

import torch

from brickwork import hub
from brickwork.adapters.base import denoiser_of
from brickwork.compat import find_variants_of_parts
from brickwork.errors import MissingFile, explained
from brickwork.files import read_json
from brickwork.gen.networks.base import Denoiser


def to_device(module, device: str | torch.device | None = None):
    """A network or a pipeline on `device`; by default on this process's accelerator if there is one, else the CPU.

    Raises:
        ValueError: where torch cannot use `device`.
    """
    from accelerate import PartialState

    device = device or PartialState().device
    try:
        return module.to(device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"`--device` is {str(device)!r}, which torch cannot use here: {error}.") from None


def pipeline_folder(name: str) -> str | Path:
    """The folder of weights that ship; of a run's folder, its pipeline; another folder or a hub id as it is.

    Raises:
        ValueError: for a run that has left no pipeline yet.
    """
    import brickwork

    if name in brickwork.pretrained_names():
        return brickwork.pretrained(name)
    folder = Path(name)
    if (folder / "pipeline" / "model_index.json").is_file() and not (folder / "model_index.json").is_file():
        return folder / "pipeline"
    if (folder / "config.yaml").is_file() and (folder / "starts.jsonl").is_file():
        raise ValueError(
            f"`model` is {str(name)!r}, a run that has left no pipeline yet; let it come to its end, or take what "
            f"it has with `brickwork publish {name} FOLDER`."
        )
    return name


def local_pipeline(name: str, argument: str = "model", **options: str) -> str:
    """As `pipeline_folder`, with a copy of what is on the hub: for what reads files beside the networks.

    Args:
        name: of weights that ship, a folder, a run's, or a name on the hub.
        argument: what it was given for.
        options: of the hub, as those of `brickwork.options.of_hub`.
    """
    return str(pipeline_folder(str(hub.local_copy(pipeline_folder(name), argument, **options))))


def pipeline_class(name: str) -> str | None:
    """The class of a saved pipeline, of weights that ship or in a folder; `None` where there is none to read."""
    return (pipeline_parts(name) or {}).get("_class_name")


def pipeline_parts(name: str) -> dict | None:
    """What `model_index.json` says of a saved pipeline's parts, of weights that ship or in a folder; else `None`."""
    return saved_config(Path(pipeline_folder(name), "model_index.json")) or None


def saved_config(path: Path) -> dict:
    """The object in a JSON file; an empty one where there is none to read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def draws_from_text(pipe: Any) -> bool:
    """Whether a pipeline draws from prompts: it takes them, and has what reads them."""
    takes = "prompt" in inspect.signature(type(pipe).__call__).parameters
    return takes and getattr(pipe, "text_encoder", pipe) is not None


def drawn_with(name: str) -> str:
    """The commands that draw with a pipeline of any class."""
    text = "`brickwork generate --prompt TEXT`, " if "tokenizer" in (pipeline_parts(name) or {}) else ""
    demo = "`brickwork demo resadapter`, " if Path(pipeline_folder(name), "resadapter").is_dir() else ""
    return f"{text}{demo}`brickwork sweep` or `brickwork evaluate gen`"


def load_lego_pipeline(name: str, device: str | None = None, **options):
    """A `LegoPipeline` for a command, on `device` (by default the best there is).

    Args:
        options: of `from_pretrained`, such as those of `brickwork.options.of_hub`.
    """
    import brickwork

    saved = pipeline_class(name)
    if saved not in (None, "LegoPipeline"):
        raise ValueError(
            f"`model` is {name!r}, a {saved}, which this command cannot use; draw with {drawn_with(name)}."
        )
    return to_device(_load(brickwork.LegoPipeline, name, options), device)


def load_class_pipeline(name: str, device: str | None = None, **options):
    """A folder's pipeline for classes on `device`, of pictures or clips; anything else is a `LegoPipeline`'s name."""
    import brickwork

    kind = pipeline_class(name)
    if kind not in ("ClassToImagePipeline", "VideoPipeline"):
        return load_lego_pipeline(name, device, **options)  # which also says what is wrong
    return to_device(_load(getattr(brickwork, kind), name, options), device)


def load_any_pipeline(name: str, device: str | None = None, **options):
    """A pipeline of text to image, or one for classes; see `load_pipeline` and `load_class_pipeline`."""
    if any((pipeline_parts(name) or {}).get("text_encoder", ())):
        return load_pipeline(name, device=device, **options)
    return load_class_pipeline(name, device, **options)


def load_pipeline(name: str, dtype: torch.dtype = torch.float32, device: str | torch.device | None = None, **options):
    """A pipeline of any class by the name of weights that ship, a folder or a hub id, on `device`.

    Args:
        dtype: Of all its networks, whatever they were saved in.
        device: See `to_device`.
        options: Of `from_pretrained`.
    """
    from diffusers import DiffusionPipeline

    import brickwork  # noqa: F401  our classes become attributes of diffusers

    with explained(f"`pipeline` is {name!r}, which could not be loaded", OSError, kind=MissingFile):
        pipeline = _load(DiffusionPipeline, name, {"dtype": dtype} | options)
    if any(getattr(part, "dtype", dtype) != dtype for part in pipeline.components.values()):
        pipeline = pipeline.to(dtype)  # diffusers 0.39 calls the argument `torch_dtype`, and ignores ours
    return to_device(pipeline, device)


def load_vae(name: str, **options: str) -> torch.nn.Module:
    """An `AutoencoderKL`: its folder, that of a pipeline, the name of weights that ship, or a name on the hub.

    Args:
        name: of one of them.
        options: of `from_pretrained`.
    """
    from diffusers import AutoencoderKL

    from brickwork.gen.networks.autoencoder import UnequalAutoencoderKL

    with explained(f"`vae` is {name!r}, which holds no AutoencoderKL"):
        folder = Path(pipeline_folder(name))
        source = folder / "vae" if (folder / "vae").is_dir() else str(folder)
        config = AutoencoderKL.load_config(source, **options)
        kind = UnequalAutoencoderKL if "encoder_block_out_channels" in config else AutoencoderKL
        return kind.from_pretrained(source, **options)


def compile_pipeline(pipeline) -> bool:
    """Compile the blocks of a pipeline's denoiser, for `--compile`; see `brickwork.gen.compiling.compile_blocks`."""
    from brickwork.gen.compiling import compile_blocks

    return compile_blocks(denoiser_of(pipeline))


def _load(kind: type, name: str, options: dict):
    """A pipeline by its name, looked for on the hub only where there can be one; quietly, as it loads in no time."""
    folder = pipeline_folder(name)
    if hub.check_name(folder, "model"):
        options = {"local_files_only": True} | options
    if Path(folder).is_dir():  # of a folder that has one variant alone, no one need be told
        options = hub.saved_variant(folder) | options
    hub.without_bars()
    find_variants_of_parts()
    return kind.from_pretrained(folder, **options)


def size_rule(pipeline) -> tuple[int, int, int]:
    """What sides a pipeline and its network take: their multiple and the smallest, and the training size, in pixels.

    Raises:
        ValueError: for a pipeline that draws one size only.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    if not {"height", "width"} <= set(parameters):
        raise ValueError(
            f"`pipeline` is a {type(pipeline).__name__}, which draws one size only (it takes no height and width)."
        )
    network = denoiser_of(pipeline)
    patches = [network.config.get("patch_size") or 1, *(network.config.get("patch_sizes") or [])]
    patch = max(patch for patch in patches if isinstance(patch, int))
    factor, native = getattr(pipeline, "vae_scale_factor", 1), network.config.get("sample_size") or 64
    native = (native if isinstance(native, int) else min(native)) * factor
    if isinstance(network, Denoiser):  # ours pad what their patches do not divide
        return factor, factor * patch, native
    # Transformers of diffusers cut off what their patches do not divide; its UNets halve at each level but the last,
    # and its pipelines want multiples of 8 whatever the VAE's factor is.
    levels = len(network.config.get("block_out_channels") or [0])
    multiple = math.lcm(8, factor * patch * 2 ** (levels - 1))
    return multiple, multiple, native
