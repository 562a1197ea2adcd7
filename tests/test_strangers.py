"""No command replaces or removes what it did not write, whether it is told to overwrite or not."""

import json
from pathlib import Path

import pytest
from PIL import Image
from writing_commands import COMMANDS, Command, make_inputs, run_out

# Names that our own outputs have too, and some that nobody of ours writes.
NAMES = (
    "notes.md", ".git/HEAD", "index.json", "model_index.json", "config.json", "metadata.jsonl", "report.json",
    "result.json", "search.json", "benchmark.json", "study.json", "generation.json", "config.yaml", "train.parquet",
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("commands") / "inputs")


def stranger(path: Path) -> Path:
    """Something of somebody's, with names that ours have too."""
    if path.suffix == ".png":
        Image.new("RGB", (4, 4)).save(path)
    elif path.suffix:
        path.write_text('{"mine": true}')
    else:
        (path / ".git").mkdir(parents=True)
        for name in NAMES:
            (path / name).write_text(json.dumps({"mine": name}))
        Image.new("RGB", (4, 4)).save(path / "a.png")
    return path


def contents(path: Path) -> dict:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file): file.read_bytes() for file in files}


def refused(command: Command, inputs: Path, place: Path, path: Path) -> str:
    """What a command answers at `path`, with and without `--overwrite`; nothing there changes."""
    before = contents(path)
    for further in ([], ["--overwrite"]):
        status, told = run_out(command, [*command.arguments(inputs, place), *further])
        assert status == 2 and contents(path) == before, told
        last = told.strip().splitlines()[-1]
        if further and command.again is None:
            assert "unrecognized arguments: --overwrite" in last or str(path) in last
        else:
            assert last.startswith("error: ") and str(path) in last
    return last


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "generate"])
def test_what_somebody_else_wrote_is_left_alone(name, inputs, tmp_path):
    command = COMMANDS[name]
    path = stranger(tmp_path / Path(command.output).parts[0])
    refused(command, inputs, tmp_path, path)


def test_generate_adds_under_new_names(inputs, tmp_path):
    path, command = stranger(tmp_path / "out"), COMMANDS["generate"]
    before = contents(path)
    for count in (2, 4):
        assert run_out(command, command.arguments(inputs, tmp_path))[0] == 0
        found = contents(path)
        assert found | before == found and len(found) == len(before) + count
