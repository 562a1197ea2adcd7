"""No command of the evaluation replaces what it did not write."""

import json

import pytest

from brickwork import cli

COMMANDS = {
    "evaluate ref nowhere -o OUT/a.safetensors": "a.safetensors",
    "evaluate calc nowhere --reference nothing -o OUT/a.json": "a.json",
    "evaluate calc elsewhere --reference nothing -o OUT/a.json": "a.neighbours.png",
    "demo --output OUT/a.png": "a.png",
    "demo resadapter --output OUT/a.png": "a.png",
    "benchmark where -o OUT": "benchmark.json",
    "benchmark memory -o OUT": "benchmark.png",
    "seams lego-avatars-64 -o OUT": "seams.json",
    "seams lego-avatars-64 --sizes 64x128 -o OUT": "fixed-64x128.png",
    "search lego-avatars-64 nowhere -o OUT": "search.json",
    "search lego-avatars-64 elsewhere --budget 0.5 -o OUT": "schedule-0.5.json",
}


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("content", ["mine", json.dumps({"format": "another", "notes": "mine"})])
def test_what_another_wrote_is_kept(words, content, tmp_path, capsys, monkeypatch):
    file = tmp_path / "out" / COMMANDS[words]
    file.parent.mkdir()
    file.write_text(content)
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words.replace("OUT", str(file.parent)).split(), "--overwrite"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert file.read_text() == content
    assert list(file.parent.iterdir()) == [file]


def test_a_file_of_the_right_name_and_suffix_is_said_to_be_somebody_elses(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    words = ["evaluate", "calc", "x", "--reference", "y", "-o", str(tmp_path / "a.json"), "--overwrite"]
    assert cli.main(words) == 2
    assert "a.json', which holds something else and is not touched; name another file" in capsys.readouterr().err
