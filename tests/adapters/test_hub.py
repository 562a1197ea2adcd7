"""Adapters and base models named by their place on the Hub, with a stand-in for the Hub."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from brickwork.adapters.comfyui.reading import read_adapter
from brickwork.adapters.hub import local_adapter
from brickwork.adapters.resadapter.base_norms import read_base_norms
from brickwork.adapters.resadapter.functions import load_resadapter


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A folder that stands for the Hub: `owner/name/...`; downloads are copied into a cache."""
    root, cache = tmp_path / "hub", tmp_path / "cache"
    monkeypatch.chdir(tmp_path)

    def hf_hub_download(repository, filename):
        file = root / repository / filename
        if not (root / repository).is_dir():
            raise LocalEntryNotFoundError("no connection")
        if not file.is_file():
            raise EntryNotFoundError("no such file")
        target = cache / repository / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
        return str(target)

    class FileSystem:
        def open(self, path, mode, block_size):
            return open(root / path, mode)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", FileSystem)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *arguments: None)
    return root


@pytest.mark.parametrize("inner", ["", "/v2_sd1.5", "/deep/er", "/v2_sd1.5/pytorch_lora_weights.safetensors"])
def test_adapters(hub, unet, helpers, inner):
    folder = inner.removesuffix("/pytorch_lora_weights.safetensors")
    helpers.write_official(hub / f"owner/name{folder}", *helpers.random_adapter_tensors(unet))
    load_resadapter(unet, f"owner/name{inner}")
    adapter = read_adapter(local_adapter(f"owner/name{inner}"))
    assert len(adapter.convs) == 2 and bool(adapter.norms) == (".safetensors" not in inner)


def test_adapters_that_are_not_there(hub, tmp_path):
    (hub / "owner" / "empty").mkdir(parents=True)
    with pytest.raises(ValueError, match="the repository has none of pytorch_lora_weights.safetensors, resolution"):
        local_adapter("owner/empty")
    with pytest.raises(ValueError, match="'owner/gone' is no local path, and the Hub cannot be reached"):
        local_adapter("owner/gone")
    (tmp_path / "owner" / "gone").mkdir(parents=True)
    assert local_adapter("owner/gone") == "owner/gone"  # a local folder goes first
    assert local_adapter(Path("other/folder")) == Path("other/folder")
    assert local_adapter("folder/misspelt.safetensors") == "folder/misspelt.safetensors"


def test_base_models(hub, unet, helpers):
    unet.save_pretrained(hub / "owner" / "base" / "unet", variant="fp16")
    keys = list(helpers.random_adapter_tensors(unet)[1])
    found = read_base_norms("owner/base", keys)
    assert all(torch.equal(found[key], unet.state_dict()[key]) for key in keys)
    with pytest.raises(ValueError, match="no such repository with unet/diffusion_pytorch_model"):
        read_base_norms("owner/none", keys)
