"""The short form of `kill_and_resume.py`, and a full disk under a whole run."""

import importlib.util
import resource
from pathlib import Path

import pytest

from brickwork.training.engine.checkpoints import CheckpointFolder
from brickwork.training.engine.loop import train


def test_kills_change_no_bit(tmp_path):
    spec = importlib.util.spec_from_file_location("kill_and_resume", Path(__file__).with_name("kill_and_resume.py"))
    script = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["kill_and_resume"] = script
    spec.loader.exec_module(script)
    tally = script.kill_and_resume(tmp_path, kills=3, steps=10)
    assert tally.kills >= 3
    assert not tally.lost


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(tiny_run, tmp_path, final_tensors, equal_bits):
    train(tiny_run("run", "run.total_images=16"))
    size = max(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))  # the largest file no longer fits
    try:
        with pytest.raises(
            ValueError, match=r"could not be written.*the last good one is .*000016.*same command again"
        ):
            train(tiny_run("run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in CheckpointFolder(tmp_path / "run" / "checkpoints").list()] == ["images-000000000016"]
    train(tiny_run("run"))
    train(tiny_run("whole"))
    assert equal_bits(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "run"))
