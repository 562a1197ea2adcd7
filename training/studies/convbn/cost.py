"""Memory and time of a fine-tuning step in each of the four modes of `set_convbn_mode`."""

import gc
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn

from brickwork.eval.benchmark.memory import derive_memory, measure_here, measure_in_child
from brickwork.eval.benchmark.networks import DTYPES, OURS, Subject, step_of, subjects
from brickwork.eval.benchmark.timing import Case, MatmulProbe, Stopwatch, interleave
from brickwork.gen.convbn import CONVBN_MODES, set_convbn_mode
from brickwork.gen.operations import count_operations

BASE = "eval"  # what the other modes are compared with
RATE = 1e-6  # of AdamW in the steps that are timed: weights stay about where they are


def memory_of(name: str, mode: str, settings: dict) -> dict:
    """Bytes of one step with AdamW.

    Args:
        name: a preset of a network of blocks.
        mode: one of `CONVBN_MODES`.
        settings: `batch`, `size` (`None` for the training size), `device`, `dtype`, `threads`.

    Returns:
        `fixed`: weights and AdamW's two averages. `derived`: the peak of all tensors on a CPU, found without
        computing; `None` on a GPU. `measured`: on a CPU the highest resident size of a process of its own above that
        before the network was built, on a GPU the highest number of bytes allocated.
    """
    subject, device = subjects(name, settings["size"])[OURS], torch.device(settings["device"])
    specification = {**settings, "name": name, "subject": OURS, "convbn_mode": mode}
    if device.type == "cuda":
        gc.collect()  # what is left of the mode before would be counted
        network, _ = _step(subject, mode, {**settings, "device": "meta"})
        fixed = sum(parameter.nbytes * (3 if parameter.requires_grad else 1) for parameter in network.parameters())
        derived = None
        measured = measure_here(specification)["peak"]
    else:
        found = derive_memory(lambda: _step(subject, mode, settings))
        fixed, derived = found["weights"] + found["optimizer"], found["peak"]
        measured = measure_in_child(specification)["peak"]
    return {"fixed": fixed, "derived": derived, "measured": measured}


def _step(subject: Subject, mode: str, settings: dict) -> tuple[nn.Module, Callable[[], None]]:
    """A network in a mode, and its forward and backward pass."""
    device = torch.device(settings["device"])
    with device:
        network = subject.build()
    network.train()
    set_convbn_mode(network, mode)
    return network, step_of(subject, network, settings["batch"], device, DTYPES[settings["dtype"]])


def time_modes(name: str, settings: dict, rounds: int) -> dict[str, dict]:
    """Seconds of a step, AdamW's included, in all modes, in turn, round after round.

    Args:
        name: a preset of a network of blocks.
        settings: as for `memory_of`.
        rounds: how often each mode is timed.

    Returns:
        For each mode `seconds` of every round (processor time on a CPU, device time on a GPU), `machine_rate` (the
        matrix product before each, operations a second), `operations` and `ratio` to `BASE` within a round, its median
        and quartiles.
    """
    subject, device = subjects(name, settings["size"])[OURS], torch.device(settings["device"])
    probe = MatmulProbe(device, DTYPES[settings["dtype"]], side=1024 if device.type == "cpu" else None)
    cases = []
    for mode in CONVBN_MODES:
        torch.manual_seed(0)
        function = _fine_tuning_step(*_step(subject, mode, settings))
        cases.append(Case(name, mode, function, count_operations(function)[0], probe))
    timings = interleave(cases, rounds, Stopwatch(device), warm_up=device.type == "cuda")
    base = CONVBN_MODES.index(BASE)
    return {
        mode: {
            "seconds": timings.seconds[number],
            "machine_rate": timings.rates[number],
            "operations": cases[number].operations,
            "ratio": asdict(timings.ratio(number, base)),
        }
        for number, mode in enumerate(CONVBN_MODES)
    }


def _fine_tuning_step(network: nn.Module, forward_backward: Callable[[], None]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)

    def step() -> None:
        forward_backward()
        optimizer.step()

    return step
