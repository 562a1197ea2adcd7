"""Networks as ONNX graphs, which run faster on a CPU than torch does, compiled or not; no torch in the graphs.

A folder holds one graph for each subnet and size, with any batch, and `exported.json`. Sides are constants of a graph:
how windows are cut is decided in Python. A graph answers only as long as the network is what was exported: with an
adapter on it, other weights, hooks or processors within, or in training, it runs in torch.
"""

import copy
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brickwork.adapters.base import denoiser_of
from brickwork.files import new_folder, read_json, tensor_digest, write_json
from brickwork.gen.networks.base import SampleOutput
from brickwork.gen.networks.inputs import check_class_labels, check_sample, check_timestep, join_tokens
from brickwork.gen.subnets import FULL_NAMES, find_subnet, name_of

INDEX = "exported.json"
FORMAT = "brickwork.exported/1"
TOLERANCE = 1e-4  # of the largest value
_MAKER = "brickwork export"


class _Graph(nn.Module):
    """A network with its subnet chosen and its conditions in order, as tracing wants it."""

    def __init__(self, network: nn.Module, subnet: str, names: Sequence[str]):
        super().__init__()
        self.network, self.subnet, self.names = network, subnet, tuple(names)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.network(**dict(zip(self.names, inputs)), subnet=self.subnet, return_dict=False)[0]


def export_network(
    network: nn.Module,
    folder: str | Path,
    sizes: Iterable[tuple[int, int]] | None = None,
    subnets: Iterable[str] | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a network as ONNX graphs in float32, each compared with the network before it is kept.

    Args:
        network: a network of ours that takes `sample`, `timestep` and perhaps classes or a text.
        folder: to write; see `brickwork.files.new_folder`.
        sizes: heights and widths of `sample` (of latents, where it works on those); `None` for the training size.
        subnets: their names; `None` for every one that was trained.
        overwrite: replace an earlier export.

    Returns:
        What `exported.json` holds: for each graph subnet, height, width, file and the largest difference.

    Raises:
        ValueError: an unknown subnet, a size that the network does not take, the extra `export` missing, or a graph
            that differs by more than 1e-4 of the largest value.
    """
    _runtime()
    names = _inputs(network)
    size = network.config.sample_size
    sizes = list(sizes or [(size, size)])
    plain = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    plain.__dict__.pop("forward", None)  # an exported one that is in use
    graphs = []
    with new_folder(folder, _MAKER, overwrite=overwrite) as part:
        for height, width in sizes:
            known = list(plain.subnets(height, width))
            for subnet in known if subnets is None else [find_subnet(name, known) for name in subnets]:
                file = f"{re.sub(r'[^0-9A-Za-z]+', '-', subnet)}-{height}x{width}.onnx"
                difference = _write_graph(plain, subnet, names, (height, width), part / file)
                graph = {"subnet": subnet, "height": height, "width": width, "file": file}
                graphs.append(graph | {"difference": difference})
        index = {"format": FORMAT, "network": type(network).__name__, "weights": _digest(network)}
        index |= {"inputs": names, "graphs": graphs}
        write_json(part / INDEX, index)
    return index


def use_exported(pipe_or_network: Any, folder: str | Path, threads: int | None = None) -> "ExportedForward":
    """Let a pipeline's network run as the graphs of `folder`; what they do not cover runs in torch as before.

    Args:
        pipe_or_network: a pipeline with a `transformer` or `unet`, or the network.
        folder: what `export_network` wrote of the same weights.
        threads: of the processor; `None` for torch's number.

    Returns:
        The handle; `handle.remove()` puts the network back.

    Raises:
        ValueError: no such folder, other weights, or the extra `export` missing.
    """
    network = denoiser_of(pipe_or_network, "pipe_or_network")
    handle = ExportedForward(network, Path(folder), threads)
    network.forward = handle
    return handle


class ExportedForward:
    """In the place of a network's `forward`: its graphs, by subnet and size.

    Attributes:
        network: whose forward it is.
        ran: how many calls a graph answered.
        missed: how many calls no graph covered.
    """

    def __init__(self, network: nn.Module, folder: Path, threads: int | None = None):
        index = _read_index(folder)
        if any(tensor.is_meta for tensor in network.state_dict().values()):
            raise ValueError(
                f"the weights of this {type(network).__name__} are not in memory; load it without offloading."
            )
        if index["weights"] != _digest(network):
            raise ValueError(
                f"`folder` is {str(folder)!r}, the export of other weights (a {index['network']}); export these with "
                "`brickwork export`."
            )
        self.network, self.folder, self.threads = network, folder, threads or torch.get_num_threads()
        self.inputs = index["inputs"]
        self.files = {(graph["subnet"], graph["height"], graph["width"]): graph["file"] for graph in index["graphs"]}
        self.ran = self.missed = 0
        self._forward = network.forward
        self._sessions: dict[str, Any] = {}
        self._removed = False
        with torch.device("meta"):
            self._structure = _structure(type(network).from_config(network.config))
        self._weights, self._known = index["weights"], ([], False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the graphs in memory, which a copy of the network loads by itself."""
        return self.__dict__ | {"_sessions": {}}

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        *arguments,
        subnet: str | None = None,
        bricks: Sequence[int] | None = None,
        return_dict: bool = True,
        **conditions,
    ) -> SampleOutput | tuple:
        """What the network's `forward` takes, returns and raises."""
        check_sample(sample, self.network.config.in_channels)
        full = self.network.subnet_names()[-1]
        name = name_of(bricks) if bricks is not None else full if subnet in FULL_NAMES else subnet
        file = self.files.get((name, *sample.shape[-2:]))
        given = {key: value for key, value in conditions.items() if _says_something(value)}
        covered = file is not None and not arguments and not torch.is_grad_enabled() and set(given) <= set(self.inputs)
        if not covered or not self._as_exported():
            self.missed += not self._removed
            chosen = {"bricks": bricks} if bricks is not None else {"subnet": subnet}
            return self._forward(sample, timestep, *arguments, return_dict=return_dict, **chosen, **conditions)
        self.ran += 1
        fed = self._fed(sample, timestep, **given)
        (output,) = self._session(file).run(None, fed)
        output = torch.from_numpy(output).to(sample.device, sample.dtype)
        return SampleOutput(sample=output) if return_dict else (output,)

    def _fed(self, sample: torch.Tensor, timestep: Any, **given: torch.Tensor) -> dict[str, Any]:
        """What a graph reads, as arrays; a `ValueError` for what the network would refuse."""
        batch, config = len(sample), self.network.config
        classes = config.get("num_classes")
        labels = check_class_labels(given.get("class_labels"), batch, classes)
        width = config.get("cross_attention_dim")
        values = {
            "sample": sample.float(),
            "timestep": check_timestep(timestep, batch, torch.device("cpu")),
            "class_labels": torch.full((batch,), classes or 0) if labels is None else labels,
            "encoder_hidden_states": join_tokens(given.get("encoder_hidden_states"), None, batch, width, True),
        }
        return {
            key: (value.float() if value.is_floating_point() else value).cpu().contiguous().numpy()
            for key in self.inputs
            if (value := values[key]) is not None
        }

    def _as_exported(self) -> bool:
        """Whether the network still is what the graphs were made of; weights are read anew where they may differ."""
        if self._removed or self.network.training:
            return False
        found = _fingerprint(self.network)
        if found != self._known[0]:
            same = _structure(self.network) == self._structure and self._weights == _digest(self.network)
            self._known = found, same
        return self._known[1]

    def remove(self) -> None:
        """Let the network run in torch again."""
        self._removed = True  # who has put another forward around this one, calls it still
        if self.network.__dict__.get("forward") is self:
            del self.network.forward

    def _session(self, file: str):
        if file not in self._sessions:
            runtime = _runtime()
            options = runtime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
            providers = [name for name in _PROVIDERS if name in runtime.get_available_providers()]
            self._sessions[file] = runtime.InferenceSession(str(self.folder / file), options, providers=providers)
        return self._sessions[file]


_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


def _inputs(network: nn.Module) -> list[str]:
    config = getattr(network, "config", {})
    if "subnets" not in dir(network) or "in_channels" not in config:
        raise ValueError(f"a {type(network).__name__} cannot be exported; give a denoiser of ours.")
    if network.example_inputs(1, 8, 8)["sample"].ndim != 4:
        raise ValueError(f"a {type(network).__name__} cannot be exported; give a denoiser of pictures.")
    further = {"class_labels": config.get("num_classes"), "encoder_hidden_states": config.get("cross_attention_dim")}
    return ["sample", "timestep", *(name for name, wanted in further.items() if wanted)]


def example_inputs(
    network: nn.Module, names: Sequence[str], size: tuple[int, int], batch: int
) -> tuple[torch.Tensor, ...]:
    """Random inputs of these names for a network, the same every time."""
    draw = torch.Generator().manual_seed(batch)
    config = network.config
    made = {
        "sample": lambda: torch.randn(batch, config.in_channels, *size, generator=draw),
        "timestep": lambda: torch.rand(batch, generator=draw),
        "class_labels": lambda: torch.arange(batch) % (config.num_classes + 1),
        "encoder_hidden_states": lambda: torch.randn(batch, 8, config.cross_attention_dim, generator=draw),
    }
    return tuple(made[name]() for name in names)


def _write_graph(network: nn.Module, subnet: str, names: Sequence[str], size: tuple[int, int], path: Path) -> float:
    """Trace, write and compare; the largest difference over the largest value, for batches of one and three."""
    graph, batch = _Graph(network, subnet, names), torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        shapes = {"inputs": tuple({0: batch} for _ in names)}
        inputs = example_inputs(network, names, size, 2)
        with _quietly():
            how = {"input_names": list(names), "output_names": ["estimate"], "dynamic_shapes": shapes}
            program = torch.onnx.export(graph, inputs, dynamo=True, verbose=False, **how)
        program.save(str(path))
        session = _runtime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
        differences = []
        for count in (1, 3):
            given = example_inputs(network, names, size, count)
            expected = graph(*given)
            (found,) = session.run(None, {name: value.numpy() for name, value in zip(names, given)})
            scale = expected.abs().max().clamp(min=1e-6)
            differences.append(((torch.from_numpy(found) - expected).abs().max() / scale).item())
    if not max(differences) <= TOLERANCE:
        raise ValueError(
            f"the graph of subnet {subnet!r} differs from the network by {max(differences):.1e} of its largest value; "
            f"at most {TOLERANCE:.0e} is kept. Nothing was written."
        )
    return max(differences)


def _digest(network: nn.Module) -> str:
    """Of the weights in float32, so that weights saved in half precision are the same ones however they are loaded."""
    return tensor_digest((name, tensor.float()) for name, tensor in network.state_dict().items())


def _structure(network: nn.Module) -> list[tuple]:
    """What runs inside: for each module below the network its kind, hooks, processor, and whether it was replaced."""
    return [
        (
            name,
            type(module),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            type(getattr(module, "processor", None)),
            "forward" in module.__dict__,
        )
        for name, module in network.named_modules()
        if name
    ]


def _fingerprint(network: nn.Module) -> list[tuple]:
    """Equal as long as nobody changes what `_structure` tells, or a weight.

    Of a weight it is where it lies and how often it was written; half a millisecond for `lego-avatars-64`.
    """
    found, left = [], [network]
    while left:
        module = left.pop()
        own = module.__dict__
        if module is not network:
            hooks = len(own["_forward_hooks"]), len(own["_forward_pre_hooks"])
            found.append((id(module), type(module), *hooks, id(own.get("processor")), "forward" in own))
        for tensor in (*own["_parameters"].values(), *own["_buffers"].values()):
            if tensor is not None:
                found.append((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version))
        left += [inner for inner in own["_modules"].values() if inner is not None]
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says of operators that torchvision would bring, and of names of axes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX).is_file():
        raise ValueError(f"`folder` is {str(folder)!r}, which holds no {INDEX}; write one with `brickwork export`.")
    index = read_json(folder / INDEX)
    if index.get("format") != FORMAT:
        raise ValueError(f"{folder / INDEX} has the format {index.get('format')!r}; need {FORMAT!r}: export again.")
    return index


def _says_something(value: Any) -> bool:
    """Whether an argument is more than a default: not false, and not a pair of falses."""
    return isinstance(value, torch.Tensor) or bool(value) and (not isinstance(value, tuple) or any(value))


def _runtime():
    """onnxruntime, where the extra is installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"Exported networks need {error.name}; pip install 'brickwork[export]'.") from None
    return onnxruntime
