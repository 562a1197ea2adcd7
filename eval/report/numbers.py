"""How numbers are written in every table: a value and its spread to the same place."""

import math


def number(value: float | None, spread: float | None = None, *, signed: bool = False, digits: int = 4) -> str:
    """`7.61 ± 0.03`, `7.612 ± 0` and `7.612`.

    Args:
        value: what to write; `–` for `None`.
        spread: of the value: two digits of it are written, and the value to the same place.
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
