"""What protects a run: its folder, its configuration, its data."""

import json
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors import safe_open

from brickwork.gen.blocks.norms import BatchNorm
from brickwork.training.engine import guards
from brickwork.training.engine.checkpoints import CheckpointFolder
from brickwork.training.engine.guards import LOCK, StopSignal, run_folder
from brickwork.training.engine.loop import train

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
file.truncate(0); file.write("process 1 on elsewhere"); file.flush()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_dead(tmp_path, holder):
    with pytest.raises(ValueError, match=r"another run is at work \(process 1 on elsewhere\)"), run_folder(tmp_path):
        pass
    holder.kill()  # SIGKILL: nothing is tidied up, and the lock is free all the same
    holder.wait()
    with run_folder(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()


def test_the_lock_of_windows_keeps_clear_of_the_text(tmp_path, monkeypatch):
    """With a stand-in for its module, since no Windows is at hand."""
    places = []

    def locking(descriptor, mode, count):
        assert (mode, count) == (2, 1)
        places.append(os.lseek(descriptor, 0, os.SEEK_CUR))
        if len(places) == 2:
            raise PermissionError("locked")

    monkeypatch.setattr(guards.sys, "platform", "win32")
    monkeypatch.setattr(guards, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking), raising=False)
    with run_folder(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()
        with pytest.raises(ValueError, match=rf"at work \(process {os.getpid()} on"), run_folder(tmp_path):
            pass
    assert len(places) == 2 and min(places) > 1000


def test_a_refused_second_run_changes_nothing(tiny_run, tmp_path):
    folder = tmp_path / "run"
    train(tiny_run("run"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder / LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another run is at work"):
            train(tiny_run("run", "run.total_images=64"))
    finally:
        process.kill()
        process.wait()
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert {p for p in after if after[p] != before.get(p)} <= {folder / LOCK}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match="`run.output_dir` is .*cannot be written"),
        run_folder(tmp_path / "file" / "x"),
    ):
        pass


def test_a_folder_of_something_else_is_left_alone(tiny_run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("mine: 1")
    with pytest.raises(ValueError, match="holds config.yaml and no run"):
        train(tiny_run("run"))
    assert (folder / "config.yaml").read_text() == "mine: 1"


def test_another_configuration_is_refused_by_key_and_changes_nothing(tiny_run, tmp_path):
    train(tiny_run("run"))
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(ValueError, match=r"optimizer.weight_decay was 0.0 and is 0.1; run.seed was 0 and is 4\. Put"):
        train(tiny_run("run", "run.seed=4", "optimizer.weight_decay=0.1", "run.total_images=64"))
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    changed = tiny_run("run", "optimizer.weight_decay=0.1", "run.total_images=40", accept_changes=True)
    assert train(changed) == 40
    assert "weight_decay: 0.1" in (tmp_path / "run" / "config.yaml").read_text()


def test_accumulation_may_change_unless_a_network_normalises_over_batches(tiny_run, tmp_path):
    run = tiny_run("run")
    saved = {"config": run.config.to_yaml()}
    config = tiny_run("run", "run.gradient_accumulation_steps=2").settings
    guards.check_unchanged(saved, config, "", run.task.network)
    network = torch.nn.Sequential(run.task.network, BatchNorm(3))
    with pytest.raises(ValueError, match="run.gradient_accumulation_steps was 1 and is 2"):
        guards.check_unchanged(saved, config, "", network)
    network[1].eval()  # its statistics are frozen
    guards.check_unchanged(saved, config, "", network)


def test_other_data_are_refused(tiny_run, tmp_path):
    train(tiny_run("run"))
    run = tiny_run("run", "run.total_images=64")
    run.task.stream.images.labels = run.task.stream.images.labels[::-1].copy()
    with pytest.raises(ValueError, match="began with other data"):
        train(run)


def test_a_checkpoint_of_an_older_version_goes_on(tiny_run, tmp_path):
    """The first version wrote neither the data's fingerprint nor the keys that came later."""
    train(tiny_run("run"))
    manifest = max((tmp_path / "run" / "checkpoints").iterdir()) / "manifest.json"
    state = json.loads(manifest.read_text())
    del state["data"]
    kept = [line for line in state["config"].splitlines() if "bucket" not in line and "schedule" not in line]
    state["config"] = "\n".join(kept)
    manifest.write_text(json.dumps(state))
    assert train(tiny_run("run", "run.total_images=40")) == 40


def test_a_checkpoint_of_before_objectives_had_names_goes_on_bit_for_bit(
    tiny_run, tmp_path, final_tensors, equal_bits
):
    """It holds weights, averages and optimiser by parameter, and a configuration without `objectives`."""
    train(tiny_run("run", "run.total_images=16"))
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "ema.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors",
    }  # fmt: skip
    with safe_open(folder / "optimizer.safetensors", "pt") as file:
        network = tiny_run("other").task.network
        wanted = {
            f"{name}|{key}" for name, _ in network.named_parameters() for key in ("step", "exp_avg", "exp_avg_sq")
        }
        assert set(file.keys()) == wanted
    state = json.loads((folder / "manifest.json").read_text())
    config = yaml.safe_load(state["config"])
    assert config.pop("objectives") == []
    (folder / "manifest.json").write_text(json.dumps(state | {"config": yaml.safe_dump(config, sort_keys=False)}))
    train(tiny_run("run"))
    train(tiny_run("whole"))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "run"))


def test_a_damaged_newest_checkpoint_costs_one_interval_and_no_bit(tiny_run, tmp_path, final_tensors, equal_bits):
    train(tiny_run("run", "run.total_images=32"))
    newest = CheckpointFolder(tmp_path / "run" / "checkpoints").list()[-1]
    (newest / "ema.safetensors").write_bytes(b"\0" * 100)
    with pytest.warns(UserWarning, match="000032 is damaged"):
        train(tiny_run("run", "run.total_images=48"))
    train(tiny_run("whole", "run.total_images=48"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "run"))


def test_pictures_that_vanish_stop_the_run_and_lose_nothing(tiny_run, tmp_path, final_tensors):
    run = tiny_run("run", "run.checkpoint_images=1000", "run.total_images=400")
    images = run.task.stream.images
    sample = images.sample

    def vanish(row, random=None):
        from brickwork.training.data.images import BrokenImage

        calls.append(row)
        if len(calls) > 30:
            raise BrokenImage("No such file")
        return sample(row, random)

    calls, images.sample = [], vanish
    with pytest.raises(ValueError, match=r"No such file.*is `data.source` still there"):
        train(run)
    assert CheckpointFolder(tmp_path / "run" / "checkpoints").newest()[1]["images"] == 24


def test_broken_pictures_are_skipped_up_to_the_limit_and_named(tiny_run, tmp_path, capsys):
    def run_with_broken(name, *overrides):
        run = tiny_run(name, "run.total_images=112", *overrides)
        sample = run.task.stream.images.sample

        def some_broken(row, random=None):
            from brickwork.training.data.images import BrokenImage

            if row in broken:
                raise BrokenImage("bad")
            return sample(row, random)

        run.task.stream.images.sample = some_broken
        return run

    broken = {int(row) for row in tiny_run("rows").task.stream.row.rows[:3]}
    train(run_with_broken("run"))
    assert {int(line) for line in (tmp_path / "run" / "broken_images.txt").read_text().split()} == broken
    assert "3 pictures could not be read" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"`data.max_broken_images` is 2, and 3 pictures"):
        train(run_with_broken("other", "data.max_broken_images=2"))


def test_copies_of_a_signal_are_ignored_and_an_impatient_ctrl_c_is_not():
    import signal

    with StopSignal(patience=1000) as stop:
        assert not stop.requested
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):  # as launchers pass them on
            os.kill(os.getpid(), number)
        assert stop.requested
    with StopSignal(patience=0) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_commit_is_of_our_own_clone_alone(tmp_path, monkeypatch):
    """Not of a repository that the package is installed inside."""

    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments], check=True)

    def found(file):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
        monkeypatch.setattr(guards, "__file__", str(tmp_path / file))
        answer = guards.versions.__wrapped__()
        return answer["commit"], answer["dirty"]

    assert found("training/engine/guards.py") == (None, None)
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "a")
    head = (tmp_path / ".git" / "HEAD").read_text().split()[-1]
    commit = (tmp_path / ".git" / head).read_text().strip()
    assert found("training/engine/guards.py") == (commit, False)
    assert found("env/brickwork/training/engine/guards.py") == (None, None)
    (tmp_path / "training" / "engine" / "guards.py").write_text("changed")
    monkeypatch.setattr(guards, "__file__", str(tmp_path / "training" / "engine" / "guards.py"))
    assert guards.versions.__wrapped__()["dirty"] is True
