"""The short form of `kill_commands.py`."""

import pytest
from kill_commands import try_command
from writing_commands import lego_pickle


@pytest.mark.parametrize("name", ["data check", "convert resadapter", "convert lego"])
def test_a_killed_command_leaves_the_old_or_the_new(name, tmp_path):
    (tmp_path / "lego.pkl").write_bytes(lego_pickle())
    tally = try_command(name, 2, tmp_path, tmp_path / "places")
    assert not tally.faults and tally.kills >= 2 and tally.finished
