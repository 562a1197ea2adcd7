"""The benchmark suite `costs`: does memory traffic, rather than operations, decide what a network costs?

VoVNet's claim (Lee et al., arXiv 1904.09730), asked of denoisers of equal parameters: time, operations, bytes that the
operations read and write, peak memory, and on a GPU joules.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from brickwork import compat
from brickwork.eval.benchmark.energy import joules_of
from brickwork.eval.benchmark.memory import TensorBytes
from brickwork.eval.benchmark.networks import Settings, forward_of, ours
from brickwork.eval.benchmark.suites import counted, memory_of, time_cases
from brickwork.eval.report.numbers import spread

PRESETS = ("resnet-s", "osa-u-s", "resnet-rs-u-s", "ffnet-s", "giraffe-s", "pvt-u-s")  # of equal parameters within 5%


class MovedBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations read and write; views move nothing.

    It is what a processor without caches would move: what a kernel reads twice, or keeps in its cache for the next,
    is not seen.

    Attributes:
        total: bytes so far.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.total += sum(
                leaf.nbytes for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)
            )
        return result


@torch.no_grad()
def traffic(prepare: Callable[[], Callable]) -> tuple[int, int]:
    """Bytes that a forward pass reads and writes, and the most that is alive beside the weights and its input.

    Args:
        prepare: makes the network and its input, whose tensors have to be known, and returns its forward pass.
    """
    with TensorBytes() as alive:
        forward = prepare()
        alive.peak = before = alive.now
        forward()
        peak = alive.peak - before
        with MovedBytes() as moved:
            forward()
    return moved.total, peak


def traffic_of(name: str, settings: Settings) -> tuple[int, int]:
    """`traffic` of a network of ours; nothing is computed."""
    subject, on_cpu = ours(name, settings), replace(settings, device="cpu")

    def prepare() -> Callable:
        return forward_of(subject, on_cpu.ready(subject.build()), on_cpu)

    with compat.fake_tensors()[0]():
        return traffic(prepare)


def bench_costs(settings: Settings, names: Sequence[str] = PRESETS) -> dict:
    """Time, operations, traffic and memory of networks beside the first."""
    probe, cases, parameters = settings.probe(), [], {}
    for name in names:
        subject = ours(name, settings)
        network = settings.ready(subject.build())
        parameters[name] = sum(parameter.numel() for parameter in network.parameters())
        cases.append(counted("forward", name, forward_of(subject, network, settings), probe))
    rows = time_cases(cases, settings, {"forward": names[0]})
    energy = {case.name: joules_of(case.function, settings.torch_device) for case in cases}
    traffics = {name: traffic_of(name, settings) for name in names}
    memory = [memory_of(name, ours(name, settings), settings, False) for name in names]
    shown = []
    for row, trained in zip(rows, memory):
        name, (moved, peak) = row["case"], traffics[row["case"]]
        shown.append(
            (
                name, f"{parameters[name] / 1e6:.1f}", f"{row['operations'] / 1e9:.1f}", f"{moved / 1e9:.2f}",
                f"{row['operations'] / moved:.0f}", spread(row["ratio"]), f"{peak / 2**20:.0f}",
                f"{trained['derived']['peak'] / 2**20:.0f}",
                "–" if energy[name] is None else f"{energy[name] / settings.batch:.3g}",
            )
        )  # fmt: skip
    columns = (
        "network", "parameters, M", "GFLOP", "GB moved", "FLOP a byte", "time, to the first's", "forward, MiB",
        "training step, MiB", "J a picture (GPU)",
    )  # fmt: skip
    return {
        "kind": "costs", "rows": rows, "parameters": parameters, "memory": memory, "joules": energy,
        "traffic": {name: {"moved": moved, "peak": peak} for name, (moved, peak) in traffics.items()},
        "tables": [{"columns": columns, "rows": shown}],
    }  # fmt: skip
