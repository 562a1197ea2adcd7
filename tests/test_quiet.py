"""With --quiet no command draws a progress bar, whether tqdm was imported before it, or a library draws it."""

import re

import pytest
from writing_commands import COMMANDS, make_inputs, run_out

BAR = re.compile(r"\d+%\||\[\d\d:\d\d[<,]|\d(it|s|image|step|pair|batch|round)/(s|it|image|step)")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("commands") / "inputs")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("battle", "distill", "export")])
def test_a_quiet_command_draws_no_bar(name, inputs, tmp_path):
    command = COMMANDS[name]
    status, told = run_out(command, [*command.arguments(inputs, tmp_path), "--quiet"])
    assert status == 0 and not BAR.search(told), told


def test_bars_are_known_here_where_they_are_drawn(inputs, tmp_path):
    command = COMMANDS["evaluate gen"]
    assert BAR.search(run_out(command, command.arguments(inputs, tmp_path))[1])
