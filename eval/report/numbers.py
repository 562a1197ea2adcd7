"""How numbers are written in every table: a value and its spread to as many decimals."""

import math
from collections.abc import Mapping, Sequence


def number(value: float | None, spread: float | None = None, *, signed: bool = False, digits: int = 4) -> str:
    """`7.61 ± 0.03`, `7.612 ± 0` and `7.612`.

    Args:
        value: what to write; `–` for `None`.
        spread: of the value: two digits of it are written, and the value to as many decimals.
        signed: write `+` before what is not negative, as for differences.
        digits: of a value without spread.
    """
    if value is None:
        return "–"
    sign = "+" if signed else ""
    if not spread or not math.isfinite(spread) or not math.isfinite(value):
        return f"{value:{sign}.{digits}g}" + ("" if spread is None else f" ± {spread:.2g}")
    decimals = max(0, 1 - math.floor(math.log10(abs(spread))))
    return f"{value:{sign}.{decimals}f} ± {spread:.{decimals}f}"


def between(middle: float, low: float, high: float, form: str = ".2f") -> str:
    """`1.02 (0.98–1.10)`: a median and its quartiles, or a value and its interval."""
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


def spread(values: Mapping[str, float] | None, form: str = ".2f") -> str:
    """`{"median": 1.02, "lower": 0.98, "upper": 1.1}` => `1.02 (0.98–1.10)`; a dash for `None`."""
    return "–" if values is None else between(values["median"], values["lower"], values["upper"], form)


def column(values: Sequence[tuple[float, float | None] | None]) -> list[str]:
    """Values with their spreads, all to as many decimals, as a column of a table has them.

    The last decimal is the second digit of the largest spread, or else of the fourth digit of the largest value.
    `None` is a dash.
    """
    known = [value for value in values if value]
    spread = max((value[1] or 0.0 for value in known), default=0.0)
    size, digits = (spread, 2) if spread else (max((abs(value[0]) for value in known), default=0.0), 4)
    places = max(0, digits - 1 - math.floor(math.log10(size))) if size else 0

    def text(value: float, spread: float | None) -> str:
        return f"{value:.{places}f}" if spread is None else f"{value:.{places}f} ± {spread:.{places}f}"

    return ["–" if value is None else text(*value) for value in values]


def in_units(value: float, unit: str) -> str:
    """`1234567, "FLOP"` => `1.23 MFLOP`."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            scaled = value / factor
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {prefix}{unit}"
    return f"{value:.3g} {unit}"
