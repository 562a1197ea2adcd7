"""Adapters and base models named by their place on the Hub, with a stand-in for the Hub."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from brickwork import cli, load_adapter
from brickwork.adapters.comfyui.reading import read_adapter
from brickwork.adapters.hub import local_adapter
from brickwork.adapters.resadapter.base_norms import read_base_norms
from brickwork.adapters.resadapter.functions import load_resadapter
from brickwork.hub import shipped_folder


@pytest.fixture
def asked():
    """What was asked of the stand-in: a path or a repository, and with what."""
    return []


@pytest.fixture
def hub(monkeypatch, tmp_path, asked):
    """A folder that stands for the Hub: `owner/name/...`; downloads are copied into a cache."""
    root, cache = tmp_path / "hub", tmp_path / "cache"
    monkeypatch.chdir(tmp_path)

    monkeypatch.setattr("brickwork.hub._reachable", lambda: True)

    def hf_hub_download(repository, filename, **options):
        asked.append((repository, options))
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
        def __init__(self, token=None):
            self.token = token

        def open(self, path, mode, block_size):
            asked.append((path, self.token))
            return open(root / re.sub("@[^/]*", "", path), mode)

    def snapshot_download(repository, allow_patterns, **options):
        asked.append((repository, options | {"allow_patterns": allow_patterns}))
        return str(root / repository)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", FileSystem)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *arguments, **options: None)
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


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache of the Hub's own layout, and no connection: `cache("owner/name", folder)` fills it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for function in ("hf_hub_download", "try_to_load_from_cache"):
        original = getattr(huggingface_hub, function)
        monkeypatch.setattr(
            huggingface_hub,
            function,
            lambda repository, name, f=original, **more: f(repository, name, cache_dir=str(tmp_path / "hub"), **more),
        )

    def fill(repository, folder, inner="", absent=()):
        root = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, root / "snapshots" / "abc" / inner)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text("abc")
        for name in absent:
            (root / ".no_exist" / "abc" / inner).mkdir(parents=True, exist_ok=True)
            (root / ".no_exist" / "abc" / inner / name).touch()

    return fill


@pytest.mark.parametrize("inner", ["", "v2_sd1.5"])
@pytest.mark.parametrize("old_names", [False, True])
def test_offline_with_a_full_cache(cache, unet, official, inner, old_names, recwarn):
    """Names that the cache has not, the older ones of the same files, are no reason to ask the Hub."""
    if old_names:
        (official / "pytorch_lora_weights.safetensors").rename(official / "resolution_lora.safetensors")
        (official / "diffusion_pytorch_model.safetensors").rename(official / "resolution_normalization.safetensors")
    cache("owner/name", official, inner)
    adapter = load_adapter(unet, f"owner/name/{inner}".rstrip("/"))
    assert adapter.scale == 1.0 and not [one for one in recwarn if "offline" in str(one.message)]


@pytest.mark.parametrize("known", [False, True])
def test_offline_with_one_half(cache, unet, official, known):
    (official / "diffusion_pytorch_model.safetensors").unlink()
    absent = ["diffusion_pytorch_model.safetensors", "resolution_normalization.safetensors"]
    cache("owner/name", official, absent=[*absent, "resolution_lora.safetensors"] if known else ())
    if known:
        load_adapter(unet, "owner/name")
    else:
        with pytest.warns(UserWarning, match="the cache has pytorch_lora_weights.safetensors alone"):
            load_adapter(unet, "owner/name")


def test_a_connection_that_is_lost_is_no_reason_for_half_an_adapter(cache, monkeypatch, unet, official):
    (official / "diffusion_pytorch_model.safetensors").unlink()
    cache("owner/name", official)
    constants = SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setattr(huggingface_hub, "constants", constants)
    monkeypatch.setattr("brickwork.hub._cached", lambda text, kind: True)
    monkeypatch.setattr("brickwork.hub._reachable", lambda: True)
    with pytest.raises(ValueError, match="the Hub cannot be reached"):
        load_adapter(unet, "owner/name")


def test_offline_with_nothing(cache, unet):
    with pytest.raises(ValueError, match="the Hugging Face Hub cannot be reached"):
        load_adapter(unet, "owner/name")
    with pytest.raises(ValueError, match="the Hugging Face Hub cannot be reached"):
        load_adapter(unet, "owner/name/file.safetensors")


def test_slips_are_answered_before_any_network(monkeypatch, tmp_path):
    def no_network(*arguments, **options):
        raise AssertionError("the network is touched")

    monkeypatch.setattr("brickwork.hub._reachable", no_network)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "res" / "adapter").mkdir(parents=True)
    for name in ("runs/ress", "runs/res/adaptr"):
        with pytest.raises(ValueError, match=f"`adapter` is '{name}'; .* did you mean 'runs/res"):
            local_adapter(name, "adapter")
    with pytest.raises(ValueError, match="`base_model` is 'runs/ress'.* did you mean 'runs/res'"):
        read_base_norms("runs/ress", [])


def test_what_ships_is_found_by_its_name():
    place = next(shipped_folder().glob("*/resadapter"))
    assert local_adapter(f"{place.parent.name}/resadapter") == place


def test_base_models(hub, unet, helpers):
    unet.save_pretrained(hub / "owner" / "base" / "unet", variant="fp16")
    keys = list(helpers.random_adapter_tensors(unet)[1])
    found = read_base_norms("owner/base", keys)
    assert all(torch.equal(found[key], unet.state_dict()[key]) for key in keys)
    with pytest.raises(ValueError, match="no such repository with unet/diffusion_pytorch_model"):
        read_base_norms("owner/none", keys)


def test_commands_tell_the_base_of_the_hub_from_the_adapter(hub, asked, unet, helpers, tmp_path, capsys):
    """`--revision` is the adapter's, `--base-revision` and `--variant` are the base's, `--token` goes to both."""
    unet.save_pretrained(hub / "owner" / "base" / "unet", variant="fp16")
    helpers.write_official(hub / "owner" / "adapter", *helpers.random_adapter_tensors(unet))
    shutil.copytree(hub / "owner" / "base" / "unet", hub / "owner" / "network")
    told = ["--revision", "new", "--base-revision", "old", "--variant", "fp16", "--token", "mine"]
    assert cli.main(["merge", "owner/network", "owner/adapter", str(tmp_path / "merged"), *told]) == 0
    merged = type(unet).from_pretrained(tmp_path / "merged", variant="fp16").state_dict()
    assert any(not torch.equal(merged[key], value) for key, value in unet.state_dict().items())
    assert {"revision": "new", "token": "mine"} in [given for name, given in asked if name == "owner/adapter"]
    of_base = [given for name, given in asked if name == "owner/network"]
    assert all((given["revision"], given["token"]) == ("old", "mine") for given in of_base)
    assert of_base[-1]["allow_patterns"] == ["*.json", "*.fp16.safetensors"]

    form = ["--to", "comfyui", "--base-model", "owner/base"]
    target = str(tmp_path / "one.safetensors")
    assert cli.main(["convert", "resadapter", "owner/adapter", target, *form, *told]) == 0
    assert asked[-1] == ("owner/base@old/unet/diffusion_pytorch_model.fp16.safetensors", "mine")
    assert cli.main(["merge", "owner/bsae/x", "owner/adapter", str(tmp_path / "other")]) == 2
    assert "`base` is 'owner/bsae/x', which is not there" in capsys.readouterr().err
