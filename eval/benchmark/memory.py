"""Peak memory of a training step: measured in a process of its own, or derived without computing anything."""

import re
import resource
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from brickwork import compat
from brickwork.errors import explained
from brickwork.eval.benchmark.fresh import in_fresh_process

STATUS = Path("/proc/self/status")


class TensorBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and their peak; what kernels use inside is not seen.

    Attributes:
        now: bytes alive.
        peak: their highest number so far.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = compat.storage_key(storage)
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key)


def derive_memory(make_step: Callable[[], tuple[torch.nn.Module, Callable[[], None]]]) -> dict[str, int]:
    """Bytes of one training step with AdamW, by running it on tensors without numbers.

    Args:
        make_step: builds a network on the CPU and a function that runs it forward and backward.

    Returns:
        `weights`, `optimizer` (AdamW's two averages) and `peak` of both, gradients and all that is alive at once.
    """
    with compat.fake_tensors()[0](), TensorBytes() as counted:
        network, forward_backward = make_step()
        weights = sum(parameter.nbytes for parameter in network.parameters())
        averages = [torch.zeros_like(p) for p in network.parameters() if p.requires_grad for _ in range(2)]
        counted.peak = counted.now
        forward_backward()
        return {"weights": weights, "optimizer": sum(tensor.nbytes for tensor in averages), "peak": counted.peak}


def measure_in_child(specification: dict) -> dict[str, int]:
    """Run a training step in a process of its own.

    Args:
        specification: what `eval.benchmark_networks.training_step` takes, as JSON values.

    Returns:
        `peak`: bytes of the process's highest resident size above that before the network was built; `baseline`.
    """
    what = f"The process that measures the memory of {specification['name']} failed; where it is short, lower --batch"
    with explained(what, ValueError):
        return in_fresh_process(f"{__name__}:measure_here", specification)


def _highest_resident() -> int:
    """The highest resident size of this process so far, or since it was last reset, in bytes."""
    if STATUS.is_file():
        return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)[1])
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest


def _reset_highest() -> None:
    """Forget what imports needed for a moment, where the system lets a process do so (Linux)."""
    with suppress(OSError):  # else the baseline is the imports' peak, and small steps come out too small
        Path("/proc/self/clear_refs").write_text("5")


def peak_during(function: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Run `function` once.

    Returns:
        `peak`: bytes of this process's highest resident size (on a GPU, of allocated memory) above what there was
        before; `baseline`: that.
    """
    _reset_highest()
    baseline = _highest_resident()
    if device.type == "cuda":
        torch.cuda.init()  # a fresh process has no statistics to reset
        torch.cuda.reset_peak_memory_stats(device)
        baseline = torch.cuda.memory_allocated(device)
    function()
    highest = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _highest_resident()
    return {"peak": highest - baseline, "baseline": baseline}


def measure_here(specification: dict) -> dict[str, int]:
    """A training step with AdamW in this process, its averages in place as from the second step on."""
    from brickwork.eval.benchmark.networks import training_step

    def step() -> None:
        network, forward_backward = training_step(specification)
        optimizer = torch.optim.AdamW(network.parameters(), foreach=False)
        for parameter in network.parameters():
            optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter).fill_(0.0),
                "exp_avg_sq": torch.zeros_like(parameter).fill_(0.0),
            }
        forward_backward()
        optimizer.step()

    torch.set_num_threads(specification["threads"])
    return peak_during(step, torch.device(specification["device"]))
