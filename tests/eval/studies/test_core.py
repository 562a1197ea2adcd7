"""The study core: cells once, other conditions refused, processes that fail or are stopped, numbers over seeds."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from brickwork.eval.report.blocks import Report, Text
from brickwork.eval.studies.core import (
    Cell,
    Stopped,
    Study,
    StudyFolder,
    compare_pairs,
    last_words,
    mean_and_spread,
    run_cells,
    run_study,
    table_of,
    write_report,
)
from brickwork.eval.studies.core import processes as core_processes


def note(folder: Path, value: float, log: str = "") -> dict:
    """A cell's work; says in a file that it was at work."""
    print("worked on", value)
    if value < 0:
        raise ValueError("the value is below 0")
    if log:
        with open(log, "a") as file:
            file.write(f"{folder.name}\n")
    return {"value": value, "over": 1e308 * 10 * value}


def wait_for_a_stop(folder: Path) -> None:
    """Work that lasts until it is asked to stop; a second time it is done at once."""
    if (folder / "begun").exists():
        return
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    (folder / "begun").touch()
    while not asked:
        time.sleep(0.01)
    raise Stopped


@pytest.fixture
def importable(monkeypatch):
    """This file's functions, for processes."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return Path(__file__).stem


def test_a_cell_is_computed_once_and_its_identity_must_stay(tmp_path, capsys):
    log, study = tmp_path / "log", StudyFolder(tmp_path / "out", "trial", {"data": {"seed": 0}, "source": "a"})
    cells = [Cell(f"cells/{value}", note, {"value": value}, {"log": str(log)}) for value in (1, 2)]
    for _ in range(2):
        found = run_cells(study, cells)
        assert found == {f"cells/{v}": {"value": v, "over": None} for v in (1, 2)} == study.results()
    assert log.read_text() == "1\n2\n" and capsys.readouterr().out.count("[2/2] cells/2: done") == 1
    moved = Cell("cells/1", note, {"value": 1}, {"log": "elsewhere"})
    assert run_cells(study, [moved]) == {"cells/1": {"value": 1, "over": None}}
    with pytest.raises(ValueError, match="cells/1/cell.json' was computed otherwise: value was 1 and is 3"):
        run_cells(study, [Cell("cells/1", note, {"value": 3})])
    with pytest.raises(ValueError, match="names twice"):
        run_cells(study, [cells[0], cells[0]])


def test_folders_of_other_conditions_and_of_something_else(tmp_path):
    StudyFolder(tmp_path / "out", "trial", {"data": {"seed": 0}, "source": "a"}, free=["source"])
    StudyFolder(tmp_path / "out", "trial", {"data": {"seed": 0}, "source": "b"}, free=["source"])
    with pytest.raises(ValueError, match="holds another trial: data.seed was 0 and is 1. Put the values back"):
        StudyFolder(tmp_path / "out", "trial", {"data": {"seed": 1}, "source": "b"}, free=["source"])
    with pytest.raises(ValueError, match="holds a trial and no race"):
        StudyFolder(tmp_path / "out", "race", {})
    with pytest.raises(ValueError, match="holds no race"):
        StudyFolder.read(tmp_path / "out", "race")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for path, words in ((tmp_path / "mine", "something else"), (tmp_path / "mine" / "thesis.tex", "a file")):
        with pytest.raises(ValueError, match=f"`--output` is .*{words}"):
            StudyFolder(path, "trial", {})
    StudyFolder(tmp_path / "none", "trial", {}, write=False)
    assert not (tmp_path / "none").exists()
    cell = Cell("cells/1", note, {"value": 1})
    StudyFolder(tmp_path / "out", "trial", {}, overwrite=True).compute(cell)
    anew = StudyFolder(tmp_path / "out", "trial", {"data": 1}, overwrite=True)
    assert anew.results() == {} and anew.compute(cell)["value"] == 1
    with pytest.raises(ValueError, match="something else"):
        StudyFolder(tmp_path / "mine", "trial", {}, overwrite=True)


def test_cells_in_processes_of_their_own(tmp_path, importable, forked_cells, monkeypatch):
    study = StudyFolder(tmp_path, "trial", {})
    cells = [Cell(f"cells/{v}", f"{importable}:note", {"value": v}, alone=v == 2) for v in (1, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(core_processes, "Popen", subprocess.Popen)
        run_cells(study, cells[:1])
    found = run_cells(study, cells, jobs=2)
    assert list(found.values()) == [{"value": v, "over": None} for v in (1, 2)]  # what is no number is a result
    assert (tmp_path / "cells" / "1" / "log.txt").read_text() == "worked on 1\n"
    with pytest.raises(ValueError, match=r"cell .*cells/-1 ended with status 2: error: the value is below 0 \(all of"):
        run_cells(study, [Cell("cells/-1", f"{importable}:note", {"value": -1})])
    with pytest.raises(ValueError, match="`--jobs` is 0"):
        run_cells(study, cells, jobs=0)


def test_a_stop_reaches_the_cells_and_the_same_call_goes_on(tmp_path, importable, forked_cells, monkeypatch, capsys):
    stage = [
        Cell("cells/slow", f"{importable}:wait_for_a_stop"),
        Cell("cells/next", f"{importable}:note", {"value": 1}),
    ]
    study = Study("trial", {}, [lambda results: stage], lambda folder: (Report("Trial", []), {}))

    def asked(seconds: float, sleep=time.sleep) -> None:
        sleep(seconds)
        if (tmp_path / "cells" / "slow" / "begun").exists():
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(core_processes.time, "sleep", asked)
        assert not run_study(study, tmp_path)
    assert "Stopped; the same command goes on" in capsys.readouterr().out
    assert not list(tmp_path.rglob("cell.json"))
    assert run_study(study, tmp_path)
    assert len(list(tmp_path.rglob("cell.json"))) == 2 and (tmp_path / "trial.md").is_file()


def test_stages_see_what_came_before_and_the_report_tells_it(tmp_path):
    def second(results):
        return [Cell("cells/sum", note, {"value": sum(result["value"] for result in results.values())})]

    def report(folder: StudyFolder):
        rows = list(folder.results("cells").items())
        columns = {"cell": lambda row: row[0], "value": lambda row: row[1]["value"], "none": lambda row: None}
        return Report("Trial", [Text(f"Seed {folder.conditions['seed']}."), table_of(rows, columns)]), {
            "count": len(rows)
        }

    first = [Cell(f"cells/{value}", note, {"value": value}) for value in (1, 2)]
    study = Study("trial", {"seed": 7}, [lambda results: first, second], report)
    assert run_study(study, tmp_path)
    text = (tmp_path / "trial.md").read_text()
    assert "Seed 7." in text and "| cells/sum | 3 |" in text and "| cell | value |" in text
    values = json.loads((tmp_path / "trial.json").read_text())
    assert values["count"] == 3 and values["conditions"] == {"seed": 7} and values["format"] == "brickwork-trial/1"
    before = (tmp_path / "index.html").read_text()
    write_report(StudyFolder.read(tmp_path, "trial"), report)
    assert (tmp_path / "index.html").read_text() == before


def test_last_words_are_the_error_not_the_progress_bar(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("going\n  0%|  | 0/96\r 22%|# | 20/96error: the disk is full\n 35%|## | 33/96\n")
    assert last_words(log) == f"error: the disk is full (all of it in {log})"
    log.write_text("going\n")
    assert last_words(log) == f"going (all of it in {log})"


def test_differences_are_those_of_what_belongs_together():
    assert mean_and_spread([1.0]) == (1.0, None) and mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    firm = compare_pairs({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.1, 1: 2.11, 2: 3.09, 3: 0.0})
    assert firm.exceeds is True and firm.keys == [0, 1, 2] and firm.mean == pytest.approx(0.1)
    assert firm.spread == pytest.approx(0.01) and firm.error == pytest.approx(0.01 / 3**0.5)
    assert compare_pairs([1.0, 1.0], [1.1, 0.9]).reversed == [1] and compare_pairs([1.0], [2.0]).exceeds is None
    assert compare_pairs({}, {}).mean is None
