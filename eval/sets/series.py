"""Series of numbers from CSV and Parquet files: columns of numbers, a row for each step of equal length.

Nothing is sorted, resampled or filled in: what is wrong is told, with the line of pandas that corrects it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brickwork.errors import advice, count_and_name, explained
from brickwork.files import digest

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class SeriesTable:
    """Variables over time.

    Attributes:
        values: `(variables, steps)` float64, NaN for gaps.
        names: of the variables.
        times: time stamps `(steps,)`, or `None` where the file has none.
        step: between two of them, as pandas writes it, or `None`.
        source: where they are from.
    """

    values: np.ndarray
    names: tuple[str, ...]
    times: "pd.DatetimeIndex | pd.Index | None"
    step: str | None
    source: str

    @property
    def fingerprint(self) -> str:
        """A digest of names and values."""
        return digest(" ".join(self.names), np.ascontiguousarray(self.values).tobytes())

    def without_gaps_at_the_ends(self) -> "SeriesTable":
        """The table itself, or a `ValueError` where a variable has a gap at the beginning and one at the end."""
        for name, row in zip(self.names, np.isfinite(self.values)):
            if not row.any():
                raise ValueError(f"{self.source!r} has no number in {name!r}; leave that column out.")
            first, last = int(row.argmax()), int(row[::-1].argmax())
            if first and last:
                raise ValueError(
                    f"{self.source!r} has gaps at both ends of {name!r} ({first} rows at the beginning, {last} at the "
                    f"end); cut them off: table.iloc[{first}:-{last}]."
                )
        return self

    def later_times(self, count: int) -> Any:
        """The time stamps of the `count` steps behind the last one, or their numbers where there are none."""
        steps = self.values.shape[1]
        if self.times is None:
            return np.arange(steps, steps + count)
        if self.step is None:
            return self.times[-1] + (self.times[-1] - self.times[-2]) * np.arange(1, count + 1)
        import pandas as pd

        return pd.date_range(self.times[-1], periods=count + 1, freq=self.step)[1:]


def read_series(path: str | Path, time_column: str | None = None, columns: Sequence[str] | None = None) -> SeriesTable:
    """Read a table of series.

    Args:
        path: a `.csv` or `.parquet` file.
        time_column: the column of time stamps, or of rising numbers; by default the first one if it holds dates, and
            no column otherwise.
        columns: of the variables, in this order; by default every other column of numbers.

    Raises:
        ValueError: for files and columns that are none, time stamps that are not sorted, there twice, missing or
            unevenly spaced, and gaps at both ends.
    """
    import pandas as pd

    path = Path(path)
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise ValueError(f"{str(path)!r} is no {' or '.join(SUFFIXES)} file; give one with a row for each step.")
    with explained(f"{str(path)!r} cannot be read"):
        table = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path).reset_index()
    table = table.drop(columns=[name for name in ("index", "Unnamed: 0") if name in table and name != time_column])
    times = _times(table, time_column, str(path))
    names = _variables(table, columns, times, str(path))
    values = np.stack([pd.to_numeric(table[name]).to_numpy(np.float64, na_value=np.nan) for name in names])
    if np.isinf(values).any():
        raise ValueError(f"{str(path)!r} has infinite values; replace them: table.replace([np.inf, -np.inf], np.nan).")
    index = None if times is None else pd.Index(times)
    return SeriesTable(values, tuple(names), index, _step(index, str(path)), str(path)).without_gaps_at_the_ends()


def _times(table: "pd.DataFrame", time_column: str | None, source: str) -> "pd.Series | None":
    """The time stamps, or rising numbers, of a table."""
    import pandas as pd

    if time_column is not None and time_column not in table:
        raise ValueError(f"`time_column` is {time_column!r}; {advice(time_column, list(table.columns))}")
    name = table.columns[0] if time_column is None and len(table.columns) else time_column
    if name is None or time_column is None and pd.api.types.is_numeric_dtype(table[name]):
        return None
    if pd.api.types.is_numeric_dtype(table[name]):
        found = table[name]
    else:
        try:
            found = pd.to_datetime(table[name])
        except (ValueError, TypeError, OverflowError) as error:
            if time_column is None:
                return None
            raise ValueError(f"{source!r} has no time stamps in {time_column!r}: {error}") from None
    found = found.rename(name)
    if found.isna().any():
        raise ValueError(f"{source!r} lacks {int(found.isna().sum())} time stamps in {name!r}; fill them in.")
    if found.duplicated().any():
        some = count_and_name([str(value) for value in found[found.duplicated()]], 3)
        raise ValueError(
            f"{source!r} has time stamps twice: {some}; keep one of each: table.drop_duplicates({name!r})."
        )
    if not found.is_monotonic_increasing:
        row = int((found.diff() < found.diff().iloc[1] * 0).to_numpy().argmax())
        raise ValueError(
            f"{source!r} is not sorted by time: row {row} ({found.iloc[row]}) is before row {row - 1}; sort it: "
            f"table.sort_values({name!r})."
        )
    return found


def _step(times: "pd.Index | None", source: str) -> str | None:
    """The step between time stamps, as pandas writes it; `None` for numbers.

    Raises:
        ValueError: for steps that are not equal.
    """
    import pandas as pd

    if times is None or len(times) < 3:
        return None
    if isinstance(times, pd.DatetimeIndex):
        with warnings.catch_warnings():  # later versions of pandas will give an object of that name
            warnings.simplefilter("ignore")
            found = pd.infer_freq(times)
        if found is not None:
            return getattr(found, "freqstr", found)  # months and the like are equal steps too
    steps = np.diff(times.to_numpy())
    usual = np.sort(steps)[len(steps) // 2]
    odd = np.flatnonzero(np.abs(steps - usual) > usual / 1000)
    if len(odd):
        row, how = int(odd[0]), f"table.set_index({times.name!r})"
        how += f".asfreq({str(pd.Timedelta(usual))!r})" if isinstance(times, pd.DatetimeIndex) else ".reindex(…)"
        raise ValueError(
            f"{source!r} has {len(odd)} steps that are not {pd.Timedelta(usual) if how.count('asfreq') else usual} "
            f"long, such as from row {row} ({times[row]}) to {row + 1} ({times[row + 1]}); make them gaps: {how}."
        )
    return None if not isinstance(times, pd.DatetimeIndex) else f"{int(usual.astype('timedelta64[s]').astype(int))}s"


def _variables(table: "pd.DataFrame", columns: Sequence[str] | None, times: Any, source: str) -> list[str]:
    """The columns of the variables."""
    import pandas as pd

    others = [str(name) for name in table.columns if times is None or name != times.name]
    for name in columns or ():
        if name not in others:
            raise ValueError(f"`columns` has {name!r}; {advice(name, others)}")
    chosen = list(columns or [name for name in others if pd.api.types.is_numeric_dtype(table[name])])
    wrong = [name for name in chosen if not pd.api.types.is_numeric_dtype(table[name])]
    if wrong or not chosen:
        what = f"text in {wrong[0]!r}" if wrong else "no column of numbers"
        raise ValueError(f"{source!r} has {what}; name columns of numbers in `columns`.")
    return chosen
