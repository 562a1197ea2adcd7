"""No command replaces or removes what it did not write, whether it is told to overwrite or not."""

import json
from pathlib import Path

import pytest
from PIL import Image

from brickwork import cli, pretrained

SAMPLE = Path(__file__).parent / "data" / "emoji" / "sample.parquet"
EMOJI_SD = pretrained("emoji-sd-64")
ADAPTER = str(EMOJI_SD / "resadapter")


def stranger_folder(path):
    """A folder of somebody's, with a few names that ours have too."""
    (path / ".git").mkdir(parents=True)
    for name in ("notes.md", "index.json", "model_index.json", ".git/HEAD", "metadata.jsonl", "report.json"):
        (path / name).write_text(json.dumps({"mine": name}))
    Image.new("RGB", (4, 4)).save(path / "a.png")
    return path


def stranger_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.new("RGB", (4, 4)).save(path)
    else:
        path.write_text('{"mine": true}')
    return path


def contents(path):
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file): file.read_bytes() for file in files}


FOLDERS = {
    "benchmark": ["benchmark", "startup", "-o", "OUT"],
    "search": ["search", "lego-emoji-64", str(SAMPLE), "--budget", "0.6", "-o", "OUT"],
    "seams": ["seams", "lego-emoji-64", "-o", "OUT"],
    "sweep": ["sweep", str(EMOJI_SD), "--prompt", "a face", "--sizes", "64", "-o", "OUT"],
    "battle": ["battle", "-o", "OUT", f"data.source={SAMPLE}"],
    "convbn": ["convbn", "-o", "OUT"],
    "report": ["report", "RESULT", "-o", "OUT"],
    "evaluate gen": ["evaluate", "gen", "lego-emoji-64", "-n", "4", "-o", "OUT"],
    "merge": ["merge", str(EMOJI_SD), ADAPTER, "OUT"],
    "data split": ["data", "split", "--output", "OUT", f"data.source={SAMPLE}", "data.held_out=0.2"],
    "data check": ["data", "check", str(SAMPLE), "-o", "OUT"],
    "data cache": ["data", "cache", "--output", "OUT", "--captions", str(EMOJI_SD), f"data.source={SAMPLE}"],
    "train": ["train", "--preset", "tiny-lego", "run.output_dir=OUT", f"data.source={SAMPLE}", "data.classes=null"],
}  # fmt: skip
FILES = {
    "evaluate ref": (["evaluate", "ref", str(SAMPLE), "-o", "OUT"], "ref.safetensors"),
    "demo": (["demo", "--output", "OUT"], "demo.png"),
    "demo resadapter": (["demo", "resadapter", "--output", "OUT"], "demo.png"),
    "data select": (["data", "select", str(SAMPLE), "--where", "style=fluent", "--output", "OUT"], "rows.parquet"),
    "new-config": (["new-config", "tiny-lego", "-o", "OUT"], "mine.yaml"),
    "convert resadapter": (
        [
            "convert",
            "resadapter",
            str(EMOJI_SD / "resadapter"),
            "OUT",
            "--to",
            "comfyui",
            "--base-model",
            str(EMOJI_SD),
        ],
        "res.safetensors",
    ),
}


def refused(arguments, out, tmp_path, capsys):
    """Run a command at `out`, with and without `--overwrite`: it says no in one line, and nothing there changes."""
    result = tmp_path / "result.json"
    result.write_text("{}")
    arguments = [str(out) if word == "OUT" else word.replace("=OUT", f"={out}") for word in arguments]
    arguments = [str(result) if word == "RESULT" else word for word in arguments]
    before = contents(out)
    for further in ([], ["--overwrite"]):
        try:
            status = cli.main([*arguments, *further])
        except SystemExit as stop:  # a command that has no such option
            assert further and "--overwrite" in capsys.readouterr().err, arguments
            status = stop.code
        assert status == 2, (arguments, further)
        said = capsys.readouterr().err
        assert not said or said.strip().splitlines()[-1].startswith("error:")
        assert contents(out) == before
    return said


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_strangers_are_left_alone(name, tmp_path, capsys):
    refused(FOLDERS[name], stranger_folder(tmp_path / "out"), tmp_path, capsys)


@pytest.mark.parametrize("name", FILES)
def test_files_of_strangers_are_left_alone(name, tmp_path, capsys):
    arguments, file = FILES[name]
    refused(arguments, stranger_file(tmp_path / "out" / file), tmp_path, capsys)
