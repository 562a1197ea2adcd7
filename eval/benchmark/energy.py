"""Energy on a GPU: the driver's power readings while something runs over and over."""

import time
from collections.abc import Callable
from functools import partial
from statistics import fmean
from threading import Event, Thread

import torch

INTERVAL = 0.02  # seconds between two readings
SECONDS = 2.0  # of readings, behind a quarter of that to warm up


def power_reader(device: torch.device) -> Callable[[], float] | None:
    """What reads the watts that a device draws; `None` on a CPU, or where the driver does not tell."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.power_draw(device)
    except (ModuleNotFoundError, RuntimeError):  # without nvidia-ml-py, or on a device without a meter
        return None
    return lambda: torch.cuda.power_draw(device) / 1000


def joules(function: Callable[[], object], power: Callable[[], float], synchronize: Callable[[], None]) -> float:
    """Joules of one call, the device's idle power among them.

    Args:
        function: called again and again.
        power: watts now.
        synchronize: waits for what was called.
    """
    readings: list[float] = []
    ended = Event()

    def read() -> None:
        while not ended.wait(INTERVAL):
            readings.append(power())

    def run(duration: float) -> tuple[int, float]:
        calls, started = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - started < duration:
            function()
            synchronize()
            calls += 1
        return calls, time.perf_counter() - started

    run(SECONDS / 4)
    reader = Thread(target=read, daemon=True)
    reader.start()
    try:
        calls, spent = run(SECONDS)
    finally:
        ended.set()
        reader.join()
    return fmean(readings or [power()]) * spent / calls


def joules_of(function: Callable[[], object], device: torch.device) -> float | None:
    """Joules of one call on a GPU; `None` elsewhere."""
    power = power_reader(device)
    return None if power is None else joules(function, power, partial(torch.cuda.synchronize, device))
