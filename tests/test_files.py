"""Whole or absent, and nothing of anybody else's lost."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from brickwork import files
from brickwork.files import check_file, check_folder, new_files, new_folder, write_file, write_json
from brickwork.gen.networks.transformer import BlockTransformer2DModel


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a" / "x.json"
    write_json(path, {"a": 1})

    def fails(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_file(path, fails)
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(tmp_path) == ["a/x.json"]


def test_files_follow_the_umask(tmp_path):
    former = os.umask(0o022)
    try:
        assert write_file(tmp_path / "x", b"1").stat().st_mode & 0o777 == 0o644
        tensors = {"a": torch.ones(2)}
        assert write_file(tmp_path / "y", lambda part: save_file(tensors, part)).stat().st_mode & 0o777 == 0o644
        with new_folder(tmp_path / "folder", "test") as folder:
            (folder / "inner").mkdir()
            save_file(tensors, folder / "inner" / "a.safetensors")
        network = BlockTransformer2DModel(sample_size=4, num_layers=1, hidden_size=8, attention_head_dim=8)
        network.save_pretrained(tmp_path / "folder" / "network")
        modes = {entry.is_dir(): entry.stat().st_mode & 0o777 for entry in (tmp_path / "folder").rglob("*")}
        assert modes == {True: 0o755, False: 0o644}
        os.umask(0o077)
        assert write_file(tmp_path / "x", b"1").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(former)


def test_files_that_belong_together_keep_their_suffix(tmp_path):
    with new_files(tmp_path / "a.safetensors", tmp_path / "b.json") as (a, b):
        assert a.suffix == ".safetensors"
        a.write_text("a")
        b.write_text("b")
        assert not (tmp_path / "b.json").exists()
    assert names(tmp_path) == ["a.safetensors", "b.json"]


def build(folder, content, maker="brickwork publish", **options):
    with new_folder(folder, maker, **options) as part:
        (part / "sub").mkdir()
        (part / "sub" / "one").write_text(content)


def test_a_folder_is_replaced_only_when_asked_and_strangers_stay(tmp_path):
    target = tmp_path / "model"
    build(target, "old")
    with pytest.raises(ValueError, match="is there already; name another, or add --overwrite"):
        build(target, "new")
    (target / ".git").mkdir()
    (target / ".git" / "HEAD").write_text("mine")
    (target / "sub" / "notes.txt").write_text("mine too")
    for content in ("new", "newer"):
        build(target, content, overwrite=True)
        assert (target / "sub" / "one").read_text() == content
        assert (target / ".git" / "HEAD").read_text() == "mine"
        assert (target / "sub" / "notes.txt").read_text() == "mine too"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_another_made_is_refused(tmp_path, overwrite):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"`--output` is .*photos', which holds something else: 1 \(index.json\)"):
        build(tmp_path / "photos", "x", overwrite=overwrite, argument="--output")
    build(tmp_path / "cache", "x", maker="brickwork data cache")
    with pytest.raises(ValueError, match="which holds what `brickwork data cache` made"):
        build(tmp_path / "cache", "x", overwrite=overwrite)
    with pytest.raises(ValueError, match="is a file; name a folder"):
        build(tmp_path / "photos" / "index.json", "x", overwrite=overwrite)


def test_a_stranger_in_the_place_of_a_new_file_is_not_lost(tmp_path):
    with new_folder(tmp_path / "m", "a") as part:
        (part / "x").write_text("1")
    (tmp_path / "m" / "y").write_text("mine")
    with pytest.raises(ValueError, match="'y' is not of this command's making|y' is not of this command's making"):
        with new_folder(tmp_path / "m", "a", overwrite=True) as part:
            (part / "y").write_text("2")
    assert (tmp_path / "m" / "y").read_text() == "mine"
    assert (tmp_path / "m" / "x").read_text() == "1"


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "m").mkdir()
    build(tmp_path / "m", "x")
    assert check_folder(tmp_path / "other", "a") == []


def test_damaged_manifests_are_not_ours(tmp_path):
    for content in ("", "[]", '{"made_by": "a"}', "[" * 100_000):
        (tmp_path / files.MANIFEST).write_text(content)
        with pytest.raises(ValueError, match="something else"):
            check_folder(tmp_path, "a", overwrite=True)


def test_an_error_leaves_the_former_folder(tmp_path):
    build(tmp_path / "m", "old")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "m", "brickwork publish", overwrite=True):
        raise KeyboardInterrupt
    assert (tmp_path / "m" / "sub" / "one").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def gone_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("name", ["plain", "with [glob] *.x"])
def test_what_a_killed_process_left_is_removed_or_put_back(tmp_path, name):
    host = socket.gethostname()
    part, old = (tmp_path / f".{name}.{gone_process()}@{host}.{kind}" for kind in ("part", "old"))
    part.mkdir()
    (part / "half").write_text("half")
    old.mkdir()
    (old / "whole").write_text("whole")
    foreign = tmp_path / f".{name}.{os.getpid()}@elsewhere.part"
    foreign.write_text("")
    files.tidy(tmp_path / name)
    assert names(tmp_path) == sorted([foreign.name, f"{name}/whole"])


def test_without_an_exchange_of_names_the_old_one_is_moved_away(tmp_path, monkeypatch):
    build(tmp_path / "m", "old")
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    build(tmp_path / "m", "new", overwrite=True)
    assert (tmp_path / "m" / "sub" / "one").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_check_file(tmp_path):
    path = tmp_path / "x.json"
    ours = lambda path: files.read_json(path).get("format") == "ours"  # noqa: E731
    check_file(path, ours)
    path.write_text("not even JSON")
    with pytest.raises(ValueError, match="holds something else and is not touched"):
        check_file(path, ours, overwrite=True)
    write_json(path, {"format": "ours"})
    with pytest.raises(ValueError, match="there already; name another, or add --overwrite"):
        check_file(path, ours)
    check_file(path, ours, overwrite=True)
    with pytest.raises(ValueError, match="which is a folder"):
        check_file(tmp_path, ours)


def test_digests(tmp_path):
    (tmp_path / "x").write_bytes(b"ab")
    assert files.file_digest(tmp_path / "x") == files.digest("a", b"b")
    one, other = torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    assert files.tensor_digest([("a", one)]) != files.tensor_digest([("a", other)])
    assert files.tensor_digest([("a", one), ("b", other)]) == files.tensor_digest([("b", other), ("a", one)])


@pytest.fixture
def full_disk():
    """No file may grow beyond 1000 bytes."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("writer", ["text", "safetensors", "folder"])
def test_a_full_disk_is_told_by_the_files_own_name(tmp_path, full_disk, writer):
    from safetensors.torch import save_file

    target = tmp_path / "sub" / "x.safetensors"
    with pytest.raises(OSError, match="x.safetensors' cannot be written: .*; make room there") as error:
        if writer == "text":
            write_file(target, "x" * 5000)
        elif writer == "safetensors":
            write_file(target, lambda part: save_file({"x": torch.zeros(1000)}, part))
        else:
            with new_folder(target, "a") as part:
                (part / "y").write_text("x" * 5000)
    assert ".part" not in str(error.value)
    assert names(tmp_path) == []


def test_errors_of_reading_within_stay_what_they_are(tmp_path):
    from safetensors import SafetensorError, safe_open

    (tmp_path / "bad").write_bytes(b"x" * 20)
    with pytest.raises(SafetensorError):
        write_file(tmp_path / "out", lambda part: safe_open(tmp_path / "bad", "pt"))
