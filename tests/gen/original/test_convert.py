"""`brickwork convert lego`, and loading the authors' files."""

import argparse
import os
import subprocess
import sys

import pytest
import torch

from brickwork.eval.commands.convert import configure_lego
from brickwork.gen.conditioning import sincos_position_table
from brickwork.gen.networks.lego import LegoTransformer2DModel


@pytest.fixture
def snapshot(maker, tiny, tmp_path):
    path = tmp_path / "tiny.pkl"
    path.write_bytes(maker.dumps(tiny))
    return path


@pytest.fixture
def convert():
    """Runs the command with these arguments."""

    def run(*arguments):
        parser = argparse.ArgumentParser()
        configure_lego(parser)
        args = parser.parse_args([str(argument) for argument in arguments])
        return args.run(args)

    return run


def test_a_model_folder_is_written_and_described(convert, snapshot, tmp_path, capsys):
    folder = tmp_path / "new" / "model"
    assert not convert(snapshot, folder)
    told = capsys.readouterr().out
    for part in (
        "a stack of its own",
        "windows 4;",
        "heads 2;",
        "3 channels",
        "unconditional",
        "float32",
        str(folder),
    ):
        assert part in told
    assert os.listdir(folder.parent) == ["model"]
    expected = LegoTransformer2DModel.from_original(snapshot)
    model = LegoTransformer2DModel.from_pretrained(folder)
    assert list(model.config.window_sizes) == [4]
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_what_is_there_is_kept_unless_asked(convert, snapshot, tmp_path):
    folder = tmp_path / "model"
    convert(snapshot, folder)
    before = (folder / "config.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match="there already.*--overwrite"):
        convert(snapshot, folder)
    assert (folder / "config.json").stat().st_mtime_ns == before
    convert(snapshot, folder, "--overwrite")
    assert (folder / "config.json").stat().st_mtime_ns > before
    assert sorted(os.listdir(tmp_path)) == ["model", "tiny.pkl"]


def test_what_is_no_model_is_never_replaced(convert, snapshot, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="OUT.*something else.*notes.txt"):
        convert(snapshot, folder, "--overwrite")
    with pytest.raises(ValueError, match="tiny.pkl.*is a file"):
        convert(snapshot, snapshot, "--overwrite")
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_bad_file_leaves_nothing_behind(convert, tmp_path):
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(ValueError, match="bad.pkl.*os.system"):
        convert(tmp_path / "bad.pkl", tmp_path / "model")
    assert os.listdir(tmp_path) == ["bad.pkl"]


MEASURE = """
import resource, sys
from brickwork.gen.conditioning import sincos_position_table
from brickwork.gen.networks.lego import LegoTransformer2DModel
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
LegoTransformer2DModel.from_original(sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_loading_takes_little_more_memory_than_the_file(maker, shapes_of, tmp_path):
    shapes = shapes_of((4,), (2,), (1,), width=4, channels=3, classes=6_000_000)
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    tensors["model.model.0.pos_embed"] = sincos_position_table(4, 2, 2)[None]
    path = tmp_path / "large.pkl"
    path.write_bytes(maker.dumps(tensors))
    told = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 1.5 * path.stat().st_size
