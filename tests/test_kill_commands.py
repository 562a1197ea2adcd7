"""The short form of `kill_commands.py`."""

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("kill_commands", Path(__file__).with_name("kill_commands.py"))
script = importlib.util.module_from_spec(_SPEC)
sys.modules["kill_commands"] = script
_SPEC.loader.exec_module(script)


@pytest.mark.parametrize("name", ["data check", "convert resadapter"])
def test_a_killed_command_leaves_the_old_or_the_new(name, tmp_path):
    tally = script.try_command(name, 2, tmp_path)
    assert not tally.faults and tally.finished == 2
