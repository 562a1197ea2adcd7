"""The `brickwork` command."""

import subprocess
import sys

import pytest

from brickwork import cli


def test_the_overview_lists_every_command(capsys):
    assert cli.main([]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in cli.COMMANDS)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "example" in output.lower() and f"brickwork {name}" in output


def test_help_is_quick_to_answer():
    """diffusers takes seconds to import: no command's help waits for it, and the overview not for torch either."""
    names = [[]] + [name.split() for name in cli.COMMANDS]
    code = f"""
import sys
sys.argv = ["brickwork"]
from brickwork import cli
for words in {names!r}:
    try:
        cli.main([*words, "--help"])
    except SystemExit:
        pass
    heavy = ("diffusers", "transformers") if words else ("torch", "diffusers")
    assert not set(heavy) & set(sys.modules), (heavy, words)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demoo"], "did you mean demo"),
        (["convert", "leggo"], "convert lego"),
        (["demo", "resadaptor", "--scale", "1"], "no command 'demo resadaptor'; did you mean demo resadapter?"),
        (["frobnicate"], "no command 'frobnicate'"),
    ],
)
def test_unknown_commands(words, message, capsys):
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


def test_a_group_lists_its_commands(capsys):
    assert cli.main(["convert"]) == 0
    assert "convert lego" in capsys.readouterr().out


def test_bad_input_is_one_line_and_status_2(capsys, tmp_path):
    assert cli.main(["info", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nothing" in error and "Traceback" not in error


def test_ctrl_c_is_no_traceback(capsys, monkeypatch):
    def interrupted(parser):
        def run(args):
            raise KeyboardInterrupt

        parser.set_defaults(run=run)

    monkeypatch.setattr("brickwork.eval.commands.info.configure_parser", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"
