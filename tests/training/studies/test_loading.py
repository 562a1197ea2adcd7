"""The benchmark suite `loader` on a handful of pictures; never how long anything takes."""

from brickwork.eval.benchmark.suites import Settings
from brickwork.training.studies import loading


def test_shards_of_both_kinds_are_read_as_training_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "read_in_child", lambda source, batch, copies: loading.read_here(str(source), batch))
    monkeypatch.setattr(loading, "ROWS", 4)
    suite = loading.bench_loader(Settings(batch=2, rounds=1, pictures=10, output=str(tmp_path)))
    assert [len(list((tmp_path / "loader-10" / name).iterdir())) for name in ("parquet", "tar")] == [3, 1]
    assert set(suite["runs"]) == {loading.FIRST, loading.AGAIN, loading.TARS}
    for run, *_ in suite["runs"].values():
        assert run["rows"] == 10 and run["drawn"] == 8
    (tmp_path / "loader-10" / "copies").mkdir()
    again = loading.bench_loader(Settings(batch=2, rounds=1, pictures=10, output=str(tmp_path)))
    assert loading.FIRST not in again["runs"]
