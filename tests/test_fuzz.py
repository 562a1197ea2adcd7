"""The short form of `fuzz.py`."""

import fuzz
import pytest


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damaged_files_never_surprise(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    tally = fuzz.fuzz(fuzz.KINDS[kind], 150, tmp_path)
    assert not tally.surprises
    assert tally.read >= 2 and tally.refused >= 2  # whole files are read, damaged ones are told
    assert tally.slowest < fuzz.SLOWEST
