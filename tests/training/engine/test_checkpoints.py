"""Checkpoints: whole or absent, damaged ones passed over, the last good one never deleted."""

import json
import os
import resource

import pytest
import torch

from brickwork.training.engine import checkpoints
from brickwork.training.engine.checkpoints import (
    CheckpointFolder,
    load_optimizer_tensors,
    load_tensors,
    optimizer_tensors,
    trained_tensors,
)
from brickwork.training.engine.loop import train


def save(folder, images, size=4):
    return folder.save(images, {"model": {"w": torch.full((size,), float(images))}}, {"note": "kept"})


def value(folder):
    tensors, state = folder.newest()
    return tensors["model"]["w"][0].item(), state["images"]


def test_what_is_saved_comes_back(tmp_path):
    folder = CheckpointFolder(tmp_path / "new")
    assert folder.newest() is None
    tensors = {"model": {"a": torch.randn(3, 2), "b": torch.arange(3)}, "empty": {}}
    folder.save(5, tensors, {"note": [1, None]})
    loaded, state = folder.newest()
    assert state["images"] == 5
    assert state["note"] == [1, None]
    assert all(torch.equal(loaded["model"][name], tensor) for name, tensor in tensors["model"].items())
    assert not loaded["empty"]


def test_the_newest_few_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for images in (8, 16, 120, 24):
        save(folder, images)
    assert [path.name[-3:] for path in folder.list()] == ["024", "120"]


def damage(path, how):
    if how == "flipped byte":
        data = bytearray((path / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (path / "model.safetensors").write_bytes(data)
    elif how == "cut short":
        with (path / "model.safetensors").open("r+b") as file:
            file.truncate(20)
    elif how == "no manifest":
        (path / "manifest.json").unlink()
    elif how == "half a manifest":
        text = (path / "manifest.json").read_text()
        (path / "manifest.json").write_text(text[: len(text) // 2])
    elif how == "file gone":
        (path / "model.safetensors").unlink()
    elif how == "no checksums":
        (path / "manifest.json").write_text(json.dumps({"images": 3}))


@pytest.mark.parametrize(
    "how", ["flipped byte", "cut short", "no manifest", "half a manifest", "file gone", "no checksums"]
)
def test_a_damaged_one_is_reported_and_the_one_before_is_used(tmp_path, how):
    folder = CheckpointFolder(tmp_path, keep=2)
    save(folder, 1)
    damage(save(folder, 2), how)
    with pytest.warns(UserWarning, match="000002 is damaged"):
        assert value(folder) == (1.0, 1)


def test_rotation_counts_good_ones_only(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    save(folder, 1)
    damage(save(folder, 2), "flipped byte")
    with pytest.warns(UserWarning, match="damaged"):
        folder.newest()
    save(folder, 3)
    assert [path.name[-1] for path in folder.list()] == ["1", "2", "3"]
    damage(folder.list()[-1], "flipped byte")
    with pytest.warns(UserWarning, match="damaged"):
        assert value(CheckpointFolder(tmp_path)) == (1.0, 1)


def test_a_damaged_one_is_replaced_and_a_good_one_is_left(tmp_path):
    folder = CheckpointFolder(tmp_path)
    save(folder, 1)
    path = save(folder, 2)
    inode = path.stat().st_ino
    save(folder, 2)
    assert path.stat().st_ino == inode
    damage(path, "cut short")
    with pytest.warns(UserWarning, match="damaged"):
        folder.newest()
    save(folder, 2)
    assert value(folder) == (2.0, 2)


def test_all_damaged_is_an_error_and_no_fresh_start(tmp_path):
    folder = CheckpointFolder(tmp_path)
    damage(save(folder, 1), "cut short")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="Every checkpoint"):
        folder.newest()


def test_nothing_half_written_gets_the_name(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    save(folder, 1)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(folder, 2)
    assert value(folder) == (1.0, 1)
    assert list(tmp_path.glob(".images-*"))  # what a kill leaves behind …
    save(folder, 3)
    assert not list(tmp_path.glob(".images-*"))  # … is cleared away by the next


def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path):
    folder = CheckpointFolder(tmp_path)
    save(folder, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # writing beyond fails as on a full disk
    try:
        with pytest.raises(ValueError, match=r"000002 could not be written.*the last good one is .*000001"):
            save(folder, 2, size=5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert value(folder) == (1.0, 1)
    assert [path.name[-1] for path in tmp_path.iterdir()] == ["1"]


def test_a_read_only_folder_is_an_error_that_loses_nothing(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    save(folder, 1)

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoints.Path, "mkdir", refuse)  # tests may run as root, whom modes do not stop
    with pytest.raises(ValueError, match="Permission denied"):
        save(folder, 2)
    assert value(folder) == (1.0, 1)


def test_a_damaged_one_is_not_called_the_last_good_one(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    save(folder, 1)
    damage(save(folder, 2), "cut short")
    with pytest.warns(UserWarning, match="000002 is damaged"):
        folder.newest()
    monkeypatch.setattr(checkpoints, "save_file", lambda *arguments: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(ValueError, match="no room.*the last good one is .*000001"):
        save(folder, 3)


def test_every_file_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        checkpoints.os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(checkpoints.os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    save(CheckpointFolder(tmp_path), 1)
    names = [event.rsplit("/", 1)[-1] for event in events]
    assert names[:2] == ["model.safetensors", "manifest.json"]
    assert names[2].startswith(".images-")
    assert names[3:] == ["rename", tmp_path.name]


def test_an_optimizer_goes_on_as_if_nothing_had_happened():
    torch.manual_seed(0)
    networks = [torch.nn.Linear(3, 2) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    first, second = (torch.optim.AdamW(n.parameters(), lr=0.1, fused=True) for n in networks)

    def step(network, optimizer):
        network(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(networks[0], first)
    load_tensors(trained_tensors(networks[1]), trained_tensors(networks[0]))
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(first, networks[0]).items()}
    load_optimizer_tensors(second, networks[1], saved)
    for network, optimizer in zip(networks, (first, second)):
        step(network, optimizer)
    assert torch.equal(networks[0].weight, networks[1].weight)


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="another network.*weight"):
        load_tensors(trained_tensors(torch.nn.Linear(3, 2)), trained_tensors(torch.nn.Linear(2, 2)))


def test_states_that_share_a_table_or_count_in_plain_numbers_are_kept(tmp_path):
    """As bitsandbytes' 8-bit optimisers do; AdamW's own counters stay tensors."""

    def parts():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = parts()
    table = torch.arange(256.0)
    for parameter in model.parameters():
        optimizer.state[parameter] = {"step": 3, "state1": torch.ones_like(parameter).to(torch.uint8), "qmap1": table}
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {"optimizer": optimizer_tensors(optimizer, model)}, {})
    model, optimizer = parts()
    load_optimizer_tensors(optimizer, model, folder.newest()[0]["optimizer"])
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert type(state["step"]) is int and state["step"] == 3
        assert torch.equal(state["qmap1"], table) and state["state1"].dtype == torch.uint8


def test_an_8bit_optimiser_goes_on_bit_for_bit(tiny_run, tmp_path, final_tensors, equal_bits):
    pytest.importorskip("bitsandbytes")
    wide = "model.config.hidden_sizes=[64, 64]"  # small tensors keep states of 32 bits
    train(tiny_run("whole", "optimizer.type=adamw_8bit", wide))
    train(tiny_run("parts", "optimizer.type=adamw_8bit", wide, "run.total_images=16"))
    train(tiny_run("parts", "optimizer.type=adamw_8bit", wide))
    whole = final_tensors(tmp_path / "whole")
    assert sum(tensor.dtype == torch.uint8 for tensor in whole.values()) > 20
    assert equal_bits(whole, final_tensors(tmp_path / "parts"))
