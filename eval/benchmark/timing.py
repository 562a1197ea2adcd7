"""Fair timing: cases in turn, round after round, beside this machine's own rate of matrix products."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from brickwork.eval.report.versions import cpu_says

PROBE_SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product measures the machine


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, and their quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        lower, median, upper = np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75)).tolist()
        return cls(median, lower, upper)


@dataclass(frozen=True)
class Case:
    """Something to be timed.

    Attributes:
        group: cases are compared within their group.
        name: of the case.
        function: does it once.
        operations: counted operations of one run.
        probe: gives the machine's own rate, operations a second, in the case's number format.
    """

    group: str
    name: str
    function: Callable[[], object]
    operations: int
    probe: Callable[[], float]


@dataclass
class Timings:
    """Seconds of each case, round by round, and the machine's rate measured right before each.

    Attributes:
        cases: in the order in which they ran.
        seconds: by case, one entry a round: processor time on a CPU, all threads together; device time elsewhere.
        rates: by case, operations a second of a matrix product in the same unit of time.
    """

    cases: list[Case]
    seconds: list[list[float]] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)

    def seconds_of(self, number: int) -> Spread:
        """Seconds of a run."""
        return Spread.of(self.seconds[number])

    def fraction_of(self, number: int) -> Spread:
        """Share of the machine's own rate, each run against the product before it."""
        count = self.cases[number].operations
        return Spread.of([count / seconds / rate for seconds, rate in zip(self.seconds[number], self.rates[number])])

    def ratio(self, number: int, base: int, per_operation: bool = False) -> Spread:
        """How many times as long `number` takes as `base`, round by round; per counted operation if asked for."""
        scale = self.cases[base].operations / self.cases[number].operations if per_operation else 1.0
        return Spread.of([scale * a / b for a, b in zip(self.seconds[number], self.seconds[base])])

    def number_of(self, group: str, name: str) -> int | None:
        """Where a case is, `None` if there is no such case."""
        found = [i for i, case in enumerate(self.cases) if (case.group, case.name) == (group, name)]
        return found[0] if found else None


class Stopwatch:
    """Seconds that a function takes: processor time on a CPU, which other programs disturb least, events elsewhere."""

    def __init__(self, device: torch.device):
        self.device = device

    def __call__(self, function: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            started = time.process_time()
            function()
            return time.process_time() - started
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize(self.device)
        return begin.elapsed_time(end) / 1000


@contextmanager
def inside(*networks: nn.Module) -> Iterator[list[float]]:
    """Processor seconds within networks' calls, beginnings negative: their sum is what they took."""
    clock: list[float] = []
    handles = [
        handle
        for network in networks
        for handle in (
            network.register_forward_pre_hook(lambda *_: clock.append(-time.process_time())),
            network.register_forward_hook(lambda *_: clock.append(time.process_time())),
        )
    ]
    try:
        yield clock
    finally:
        for handle in handles:
            handle.remove()


class MatmulProbe:
    """This machine's own rate: operations a second of a large matrix product in the networks' number format."""

    def __init__(self, device: torch.device, dtype: torch.dtype, side: int | None = None):
        self.side = side or PROBE_SIDE.get(device.type, 2048)
        generator = torch.Generator().manual_seed(0)
        self.left, self.right = (
            torch.randn(self.side, self.side, generator=generator).to(device, dtype) for _ in range(2)
        )
        self.stopwatch = Stopwatch(device)
        self.stopwatch(lambda: self.left @ self.right)  # the first product pays for setting up

    def __call__(self) -> float:
        return 2 * self.side**3 / self.stopwatch(lambda: self.left @ self.right)


def interleave(
    cases: Sequence[Case],
    rounds: int,
    stopwatch: Callable[[Callable[[], object]], float],
    warm_up: bool = True,
    bar=None,
) -> Timings:
    """Time all cases in turn, `rounds` times, after a round that does not count unless all have run before.

    What disturbs a machine for a while then disturbs all alike, and a ratio within a round is that of neighbours.
    """
    timings = Timings(list(cases), [[] for _ in cases], [[] for _ in cases])
    for number in range(0 if warm_up else 1, rounds + 1):
        for case, seconds, rates in zip(timings.cases, timings.seconds, timings.rates):
            rate, spent = case.probe(), stopwatch(case.function)
            if number:
                rates.append(rate)
                seconds.append(spent)
            if bar is not None:
                bar.set_postfix_str(f"{case.group} {case.name}"[:40])
                bar.update()
    return timings


def fit_exponent(sizes: Sequence[float], seconds: Sequence[Sequence[float]]) -> Spread:
    """The exponent `e` in `seconds ~ size**e`, fitted to each round by least squares of logarithms.

    Args:
        sizes: one a case, at least two different ones.
        seconds: for each case one entry a round.
    """
    logs = np.log(np.asarray(seconds, dtype=np.float64))
    return Spread.of(np.polyfit(np.log(np.asarray(sizes, dtype=np.float64)), logs, 1)[0])


def describe_machine(device: torch.device) -> dict:
    """What the numbers were measured on."""
    name = cpu_says("model name") or platform.processor() or platform.machine()
    machine = {"cpu": name, "threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return machine
