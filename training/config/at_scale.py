"""What a run needs on many GPUs: memory under FSDP2, traffic, checkpoints and data, from its configuration alone.

Counted without computing: the network's bytes, the bytes that its forward pass keeps, its operations. What depends on
machines (rates of chips, links and disks) is given, not measured.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from brickwork import compat
from brickwork.eval.benchmark.memory import TensorBytes
from brickwork.gen.operations import count_operations, weights_of

FULL, HALF = 4, 2  # bytes of a number
# Of each weight, sharded over all GPUs: itself, its gradient, AdamW's two averages, the moving average of the run.
KEPT_NUMBERS = 5
SAVED_NUMBERS = 4  # in a checkpoint: all but the gradient
GATHERED_BLOCKS = 2  # whole at a time: the one that computes and the next, which comes meanwhile


@dataclass(frozen=True)
class Cluster:
    """The machines.

    Attributes:
        gpus: number of them.
        rate: operations a second that a GPU does in training, as measured, not as advertised.
        link: bytes a second in and out of each GPU, to the others.
        disk: bytes a second that a checkpoint is written with, of the whole cluster.
    """

    gpus: int
    rate: float = 400e12
    link: float = 50e9
    disk: float = 2e9


@dataclass(frozen=True)
class Counted:
    """What a configuration says of its network.

    Attributes:
        parameters: all of them.
        largest_block: parameters of the largest block that is gathered at once.
        activations: bytes that a forward pass of `batch` images keeps for the backward pass.
        operations: of a forward pass of one image.
        batch: images of a GPU at once.
        number: bytes of a number of the forward pass.
    """

    parameters: int
    largest_block: int
    activations: int
    operations: int
    batch: int
    number: int


def count_run(build: Callable[[], nn.Module], size: int, batch: int, half: bool, checkpointing: bool) -> Counted:
    """Count a network, on tensors without numbers.

    Args:
        build: makes it.
        size: side of its samples.
        batch: images at once.
        half: whether the forward pass runs in half precision.
        checkpointing: whether blocks are computed again in the backward pass.
    """
    with compat.fake_tensors()[0](), TensorBytes() as alive:
        network = build().train()
        kinds = set(network._no_split_modules or ())
        sizes = [weights_of(module) for module in network.modules() if type(module).__name__ in kinds]
        parameters = weights_of(network)
        rest = parameters - sum(sizes)
        if checkpointing:
            network.enable_gradient_checkpointing()
        inputs = network.example_inputs(batch, size, size)
        if half:
            halve(network)
        before = alive.now
        kept = network(**inputs).sample.sum()
        activations = alive.now - before
        del kept
    with torch.device("meta"), torch.no_grad():
        twin = build().eval()
        operations = count_operations(lambda: twin(**twin.example_inputs(1, size, size)))[0]
    largest = max([*sizes, rest])
    return Counted(parameters, largest, activations, operations, batch, HALF if half else FULL)


def halve(network: nn.Module) -> None:
    """Weights in half precision; tensors without numbers cannot be moved by `to`."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().to(torch.bfloat16)))


def memory_of_gpu(counted: Counted, gpus: int) -> dict[str, float]:
    """Bytes of one GPU by purpose, and `total`."""
    parts = {
        "weights, gradients, AdamW, averages": FULL * KEPT_NUMBERS * counted.parameters / gpus,
        "blocks gathered": GATHERED_BLOCKS * counted.number * counted.largest_block,
        "a block's gradients": counted.number * counted.largest_block,
        "activations": float(counted.activations),
    }
    return parts | {"total": sum(parts.values())}


def traffic_of_step(counted: Counted, gpus: int) -> float:
    """Bytes that each GPU sends, and receives, in a step: weights gathered for the forward and for the backward pass,
    gradients summed and scattered."""
    return (gpus - 1) / gpus * counted.parameters * counted.number * 3


def time_of_step(counted: Counted, cluster: Cluster, images: int) -> dict[str, float]:
    """Seconds of a step of `images` images of each GPU: `computing` (a backward pass costs two forward passes),
    `traffic`, and `step`, the longer, since FSDP2 gathers while it computes."""
    computing = 3 * counted.operations * images / cluster.rate
    traffic = traffic_of_step(counted, cluster.gpus) / cluster.link
    return {"computing": computing, "traffic": traffic, "step": max(computing, traffic)}


def checkpoint_bytes(parameters: int) -> int:
    """Bytes of a checkpoint: weights, averages and AdamW's two, in float32."""
    return FULL * SAVED_NUMBERS * parameters
