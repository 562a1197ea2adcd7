"""Tables of series: what is read, and what is told of others."""

import numpy as np
import pandas as pd
import pytest

from brickwork.eval.sets.series import read_series


def table(rows=30, **columns):
    times = pd.date_range("2024-03-01", periods=rows, freq="h")
    return pd.DataFrame({"time": times, "a": np.arange(rows) * 1.0, "b": np.ones(rows)} | columns)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_of_numbers_over_time(tmp_path, suffix):
    path, found = tmp_path / f"s.{suffix}", table(text=["x"] * 30)
    found.to_csv(path, index=False) if suffix == "csv" else found.to_parquet(path)
    series = read_series(path)
    assert series.names == ("a", "b") and series.values.shape == (2, 30) and series.step == "h"
    assert list(series.later_times(2)) == [pd.Timestamp("2024-03-02 06:00"), pd.Timestamp("2024-03-02 07:00")]
    assert read_series(path, columns=["b", "a"]).names == ("b", "a")
    assert read_series(path).fingerprint == series.fingerprint != read_series(path, columns=["a"]).fingerprint


def test_tables_without_times_and_with_numbers_for_times(tmp_path):
    path = tmp_path / "s.csv"
    table().drop(columns="time").to_csv(path, index=False)
    series = read_series(path)
    assert series.times is None and list(series.later_times(2)) == [30, 31]
    pd.DataFrame({"year": range(1950, 1990), "a": np.ones(40)}).to_csv(path, index=False)
    series = read_series(path, time_column="year")
    assert series.names == ("a",) and list(series.later_times(2)) == [1990, 1991]
    months = pd.date_range("2020-01-31", periods=30, freq="ME")  # unequal in days, equal as months
    table(time=months).to_csv(path, index=False)
    assert read_series(path).later_times(1)[0] == pd.Timestamp("2022-07-31")


def test_gaps_within_are_read_and_gaps_at_one_end(tmp_path):
    path, found = tmp_path / "s.csv", table()
    found.loc[3:5, "a"] = np.nan
    found.loc[28:, "b"] = np.nan
    found.to_csv(path, index=False)
    assert np.isnan(read_series(path).values).sum() == 5


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.iloc[[0, 2, 1, *range(3, 30)]], r"is not sorted by time: row 2 .*table.sort_values\('time'\)"),
        (lambda t: t.iloc[::-1], "is not sorted by time"),
        (lambda t: t.iloc[[0, 1, 1, *range(2, 30)]], r"time stamps twice: 1 .*drop_duplicates\('time'\)"),
        (lambda t: t.drop(index=[7, 8]), r"1 steps that are not 0 days 01:00:00 long.*asfreq"),
        (lambda t: t.assign(time=[None, *t.time[1:]]), "lacks 1 time stamps"),
        (lambda t: t.assign(a=[np.nan] * 2 + [1.0] * 25 + [np.nan] * 3), r"gaps at both ends of 'a' \(2 rows.*3 at"),
        (lambda t: t.assign(b=np.nan), "has no number in 'b'"),
        (lambda t: t.assign(a=[np.inf, *t.a[1:]]), "has infinite values"),
        (lambda t: t[["time"]].assign(a="x"), "no column of numbers"),
    ],
)
def test_what_is_wrong_is_told_with_its_fix(tmp_path, change, message):
    change(table()).to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(ValueError, match=message):
        read_series(tmp_path / "s.csv")


def test_wrong_names(tmp_path):
    table().to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(ValueError, match="`time_column` is 'tme'; did you mean 'time'"):
        read_series(tmp_path / "s.csv", time_column="tme")
    with pytest.raises(ValueError, match="`columns` has 'c'"):
        read_series(tmp_path / "s.csv", columns=["c"])
    for name in ("none.csv", "s.txt"):
        with pytest.raises(ValueError, match=r"is no .csv or .parquet file"):
            read_series(tmp_path / name)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="cannot be read"):
        read_series(tmp_path / "bad.parquet")
