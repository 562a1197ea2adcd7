"""The ComfyUI node, against a small copy of the parts of ComfyUI it stands on.

The same checks were run on ComfyUI's own code of October 2023, August 2024 and October 2025; what is copied here is
the contract they share: key maps from LoRA names to model keys, patches as (strength, value, strength of the model),
and weights patched in float32 from the unpatched ones.
"""

import ast
import importlib.util
import json
import os
import shutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import brickwork
import brickwork.adapters.comfyui as pack
from brickwork.adapters.comfyui.names import compvis_path, kohya_name, module_path
from brickwork.adapters.resadapter.convert import convert_resadapter
from brickwork.adapters.resadapter.functions import load_resadapter, set_resadapter_scale

FOLDER = Path(pack.__file__).parent
LEVELS = 3  # names of a model with SDXL's; the UNet of these tests has two levels of them


class Model(torch.nn.Module):
    """ComfyUI's model object: the diffusers UNet's tensors under the original code's names."""

    def __init__(self, unet, context_dim=768):
        super().__init__()
        self.tensors = {}
        for key, value in unet.state_dict().items():
            path, _, part = key.rpartition(".")
            name = compvis_path(path, LEVELS) if module_path(path) else path
            self.tensors[f"diffusion_model.{name}.{part}"] = value.detach().clone()
        self.model_config = SimpleNamespace(unet_config={"context_dim": context_dim})
        self.model_type = SimpleNamespace(name="EPS")

    def state_dict(self):
        return self.tensors


class Patcher:
    """ComfyUI's ModelPatcher, as far as patches of weights go; `new` for the shape its parts have from 2024 on."""

    def __init__(self, model, new=True, patches=None):
        self.model, self.new, self.patches, self.backup = model, new, patches or {}, {}

    def clone(self):
        other = Patcher(self.model, self.new, {key: list(value) for key, value in self.patches.items()})
        other.backup = self.backup
        return other

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        known = [key for key in patches if key in self.model.tensors]
        for key in known:
            self.patches.setdefault(key, []).append((strength_patch, patches[key], strength_model))
        return known

    def get_key_patches(self, filter_prefix=None):
        entries = {}
        for key, weight in self.model.tensors.items():
            if key.startswith(filter_prefix or ""):
                first = (weight, lambda value, inplace=False: value) if self.new else weight
                entries[key] = [first, *self.patches.get(key, [])]
        return entries

    def patched(self):
        """All weights as the sampler would see them."""
        result = dict(self.model.tensors)
        for key, patches in self.patches.items():
            weight = result[key].float().clone()
            for strength, value, strength_model in patches:
                weight *= strength_model
                if len(value) == 1:
                    weight += strength * value[0].to(weight)
                else:
                    up, down, alpha = value[1]
                    factor = alpha / down.shape[0] if alpha is not None else 1.0
                    product = up.float().flatten(1) @ down.float().flatten(1)
                    weight += strength * factor * product.reshape(weight.shape)
            result[key] = weight
        return result

    def patch_in_place(self):
        """As a loaded model is: patched weights in the model, its own put by."""
        for key, value in self.patched().items():
            if key in self.patches:
                original = self.model.tensors[key]
                self.backup[key] = SimpleNamespace(weight=original) if self.new else original
                self.model.tensors[key] = value


def model_lora_keys_unet(model, key_map):
    for key in model.state_dict():
        if key.endswith(".weight"):
            name = key.removeprefix("diffusion_model.").removesuffix(".weight")
            key_map["lora_unet_" + name.replace(".", "_")] = key
            if path := module_path(name):
                key_map[kohya_name(path)] = key
    key_map["lora_unet_down_blocks_9_downsamplers_0_conv"] = "diffusion_model.input_blocks.30.0.op.weight"
    return key_map


def load_lora(lora, to_load):
    patches = {}
    for name, key in to_load.items():
        if f"{name}.lora_up.weight" in lora:
            alpha = lora[f"{name}.alpha"].item() if f"{name}.alpha" in lora else None
            patches[key] = ("lora", (lora[f"{name}.lora_up.weight"], lora[f"{name}.lora_down.weight"], alpha))
        if f"{name}.w_norm" in lora:
            patches[key] = (lora[f"{name}.w_norm"],)
            patches[key.removesuffix("weight") + "bias"] = (lora[f"{name}.b_norm"],)
    return patches


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """ComfyUI's modules, with `tmp_path/loras` as its LoRA folder."""
    loras = tmp_path / "loras"
    loras.mkdir()
    package, lora, folder_paths = ModuleType("comfy"), ModuleType("comfy.lora"), ModuleType("folder_paths")
    lora.model_lora_keys_unet, lora.load_lora, package.lora = model_lora_keys_unet, load_lora, lora
    folder_paths.get_filename_list = lambda kind: sorted(
        str(path.relative_to(loras)) for path in loras.rglob("*.safetensors") if kind == "loras"
    )
    folder_paths.get_full_path = lambda kind, name: str(loras / name) if (loras / name).is_file() else None
    for module in (package, lora, folder_paths):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return loras


@pytest.fixture
def node(tmp_path):
    """The node class from a copy of the folder, as ComfyUI imports it, where Brickwork cannot be imported."""
    copy = tmp_path / "custom_nodes" / "brickwork resadapter-1.0"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    name = "custom_nodes.copied"
    spec = importlib.util.spec_from_file_location(name, copy / "__init__.py", submodule_search_locations=[str(copy)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    kept = {key: sys.modules.pop(key) for key in list(sys.modules) if key.partition(".")[0] == "brickwork"}
    sys.modules["brickwork"] = None  # importing it is an error
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules.update(kept)
        if sys.modules.get("brickwork") is None:
            del sys.modules["brickwork"]
    yield module.NODE_CLASS_MAPPINGS["BrickworkResAdapter"]
    for key in [key for key in sys.modules if key.startswith(name)]:
        del sys.modules[key]


def effective(unet):
    """What the library's adapters amount to, as weights: what fusing writes."""
    from brickwork.adapters.resadapter.functions import fuse_resadapter, unfuse_resadapter

    fuse_resadapter(unet)
    state = Model(unet).state_dict()
    unfuse_resadapter(unet)
    return state


def assert_close(one, other):
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("new", [True, False])
def test_node_does_what_the_library_does(unet, helpers, comfy, node, new):
    for number, (name, alpha) in enumerate({"a": 1.5, "b": None}.items()):
        tensors = helpers.random_adapter_tensors(unet, alpha=alpha, seed=number, rank=2 + number)
        helpers.write_official(comfy / name, *tensors)
    names = node.INPUT_TYPES()["required"]["resadapter"][0]
    assert names == ["a/pytorch_lora_weights.safetensors", "b/pytorch_lora_weights.safetensors"]
    model = Model(unet)
    before = {key: value.clone() for key, value in model.tensors.items()}
    patcher = Patcher(model, new)
    one, automatic = node().apply(patcher, names[0], 0.8, 0.6)
    two, _ = node().apply(one, names[1], 0.5, -0.3)
    assert automatic == 1.0
    assert not patcher.patches and all(torch.equal(model.tensors[key], before[key]) for key in before)
    for name, lora, norm, patched in (("a", 0.8, 0.6, one), ("b", 0.5, -0.3, two)):
        load_resadapter(unet, comfy / name, name)
        set_resadapter_scale(unet, adapter_name=name, lora_scale=lora, norm_scale=norm)
        assert_close(patched.patched(), effective(unet))
    one.patch_in_place()  # the first is in use when the second is added
    again, _ = node().apply(one, names[1], 0.5, -0.3)
    own = Patcher(Model(helpers.make_unet("two")), new, again.patches)
    assert_close(own.patched(), effective(unet))


@pytest.mark.parametrize("naming", ["diffusers", "compvis"])
def test_the_stock_loader_takes_the_single_file(unet, official, comfy, tmp_path, naming):
    (path,) = convert_resadapter(
        official, tmp_path / "one.safetensors", to="comfyui", base_model=unet, naming="diffusers"
    )
    lora = load_file(path)
    if naming == "compvis":  # what the converter writes for SDXL, at this UNet's two levels
        renamed = {}
        for key, value in lora.items():
            name, _, part = key.partition(".")
            renamed[f"{kohya_name(compvis_path(module_path(name.removeprefix('lora_unet_')), LEVELS))}.{part}"] = value
        lora = renamed
    patcher = Patcher(Model(unet))
    patches = load_lora(lora, model_lora_keys_unet(patcher.model, {}))
    assert len(patcher.add_patches(patches, 0.7)) == 2 + 2 * 2 * (2 * 2 + 2 + 2 * 3)
    load_resadapter(unet, official, scale=0.7)
    assert_close(patcher.patched(), effective(unet))


def test_node_reads_the_single_file_too(unet, official, comfy, node):
    convert_resadapter(official, comfy / "one.safetensors", to="comfyui", base_model=unet)
    convert_resadapter(official, comfy / "two.safetensors", to="diffusers")
    names = node.INPUT_TYPES()["required"]["resadapter"][0]
    assert names == ["one.safetensors", "two.safetensors"]
    load_resadapter(unet, official)
    for name in names:
        assert_close(node().apply(Patcher(Model(unet)), name, 1.0, 1.0)[0].patched(), effective(unet))


def test_halves_at_zero_patch_nothing(unet, official, comfy, node):
    shutil.copytree(official, comfy / "a")
    name = "a/pytorch_lora_weights.safetensors"
    assert not node().apply(Patcher(Model(unet)), name, 0.0, 0.0)[0].patches
    lora_only = node().apply(Patcher(Model(unet)), name, 1.0, 0.0)[0].patches
    assert lora_only.keys() == {
        f"diffusion_model.{name}.weight" for name in ("input_blocks.3.0.op", "output_blocks.2.2.conv")
    }


@pytest.mark.parametrize(
    "context, kind, size, expected",
    [
        (768, "EPS", 512, 1.0),
        (768, "EPS", 1024, 0.3),
        (1024, "EPS", 768, 0.59),
        (1024, "V_PREDICTION", 768, 1.0),
        (2048, "EPS", 1024, 1.0),
        (2048, "EPS", 4096, 0.3),
    ],
)
def test_automatic_strength_from_the_latent(unet, official, comfy, node, context, kind, size, expected):
    shutil.copytree(official, comfy / "a")
    patcher = Patcher(Model(unet, context))
    patcher.model.model_type.name = kind
    name = "a/pytorch_lora_weights.safetensors"
    patched, automatic = node().apply(patcher, name, 1.0, 0.5, {"samples": torch.zeros(1, 4, size // 8, size // 8)})
    assert automatic == pytest.approx(expected, abs=0.01)
    manual, _ = node().apply(patcher, name, automatic, automatic * 0.5)
    assert_close(patched.patched(), manual.patched())


def test_node_refuses_what_does_not_fit(unet, helpers, comfy, node):
    other = helpers.make_unet("sd")
    helpers.write_official(comfy / "a", *helpers.random_adapter_tensors(other))
    name = "a/pytorch_lora_weights.safetensors"
    with pytest.raises(ValueError, match="does not fit this model"):
        node().apply(Patcher(Model(unet)), name, 1.0, 1.0)
    with pytest.raises(ValueError, match="no longer in ComfyUI's models/loras"):
        node().apply(Patcher(Model(unet)), "gone.safetensors", 1.0, 1.0)
    helpers.write_official(comfy / "b", *helpers.random_adapter_tensors(unet))
    flux = Patcher(Model(unet, context_dim=4096))
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    with pytest.raises(ValueError, match="is no Stable Diffusion 1, 2 or SDXL"):
        node().apply(flux, "b/pytorch_lora_weights.safetensors", 1.0, 1.0, latent)


def test_a_replaced_file_is_noticed(unet, helpers, comfy, node):
    helpers.write_official(comfy / "a", *helpers.random_adapter_tensors(unet))
    name = "a/pytorch_lora_weights.safetensors"
    before = node.IS_CHANGED(name, model=None)
    assert node.IS_CHANGED(name) == before
    helpers.write_official(comfy / "a", *helpers.random_adapter_tensors(unet, rank=5))
    assert node.IS_CHANGED(name) != before


def test_a_second_file_that_is_replaced_added_or_gone_is_noticed(unet, helpers, comfy, node):
    for folder, second, first in (
        ("a", "diffusion_pytorch_model.safetensors", "a/pytorch_lora_weights.safetensors"),
        ("", "own_norms.safetensors", "own.safetensors"),
    ):
        helpers.write_official(comfy / "a", *helpers.random_adapter_tensors(unet))
        if not folder:
            convert_resadapter(comfy / "a", comfy / first, to="diffusers")
        before = node.IS_CHANGED(first)
        path = comfy / folder / second
        os.utime(path, (1, 1))
        replaced = node.IS_CHANGED(first)
        path.rename(path.with_suffix(".away"))
        gone = node.IS_CHANGED(first)
        assert len({before, replaced, gone}) == 3
        path.with_suffix(".away").rename(path)
        assert node.IS_CHANGED(first) == replaced


@pytest.mark.parametrize(
    "first, second",
    [
        ("a/pytorch_lora_weights.safetensors", "diffusion_pytorch_model.safetensors"),
        ("a/resolution_lora.safetensors", "resolution_normalization.safetensors"),
        ("renamed.safetensors", "renamed_norms.safetensors"),
    ],
)
def test_half_an_adapter_is_refused_by_name(unet, helpers, comfy, node, first, second):
    tensors = helpers.random_adapter_tensors(unet)
    helpers.write_official(comfy / "a", *tensors)
    (comfy / "a" / "diffusion_pytorch_model.safetensors").unlink()
    (comfy / "a" / "pytorch_lora_weights.safetensors").rename(comfy / first)
    with pytest.raises(ValueError, match=f"the second, {second}, is not beside it.*'ResAdapter, LoRA alone"):
        node().apply(Patcher(Model(unet)), first, 1.0, 1.0)
    save_file(tensors[1], (comfy / first).with_name(second))
    assert len(node().apply(Patcher(Model(unet)), first, 1.0, 1.0)[0].patches) == 2 + 4 * (2 * 2 + 2 + 2 * 3)
    (comfy / first).unlink()
    half = str((comfy / first).with_name(second).relative_to(comfy))
    assert half in node.INPUT_TYPES()["required"]["resadapter"][0]
    with pytest.raises(ValueError, match=f"the first, {Path(first).name}, is not beside it"):
        node().apply(Patcher(Model(unet)), half, 1.0, 1.0)


def test_the_lora_alone_says_so_in_its_title(unet, helpers, comfy, node):
    pack_of_node = sys.modules[node.__module__]
    alone = pack_of_node.NODE_CLASS_MAPPINGS["BrickworkResAdapterLoraAlone"]
    assert "LoRA alone" in pack_of_node.NODE_DISPLAY_NAME_MAPPINGS["BrickworkResAdapterLoraAlone"]
    assert list(alone.INPUT_TYPES()["required"]) == ["model", "resadapter", "strength_lora"]
    helpers.write_official(comfy / "a", *helpers.random_adapter_tensors(unet))
    name = "a/pytorch_lora_weights.safetensors"
    expected = node().apply(Patcher(Model(unet)), name, 0.7, 0.0)[0].patched()
    for _ in range(2):
        assert_close(alone().apply(Patcher(Model(unet)), name, 0.7)[0].patched(), expected)
        (comfy / "a" / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    save_file(helpers.random_adapter_tensors(unet)[1], comfy / "n.safetensors")
    with pytest.raises(ValueError, match="has no LoRA"):
        alone().apply(Patcher(Model(unet)), "n.safetensors", 1.0)


@pytest.mark.parametrize("kind, half", [("interpolation", 0), ("extrapolation", 1)])
def test_an_adapter_made_of_one_half_is_whole(unet, helpers, comfy, node, kind, half):
    tensors = helpers.random_adapter_tensors(unet)[half]
    save_file(tensors, comfy / "one.safetensors", {"brickwork.resadapter": json.dumps({"kind": kind})})
    assert node().apply(Patcher(Model(unet)), "one.safetensors", 1.0, 1.0)[0].patches


def test_other_files_are_not_in_the_list(unet, helpers, official, comfy, node):
    """Ordinary LoRAs, also those that touch a ResAdapter's convolutions, and what is no safetensors file."""
    lora, norms = helpers.random_adapter_tensors(unet)
    other = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.ones(4, 1)}
    save_file(other, comfy / "style.safetensors")
    save_file(lora | other, comfy / "lcm.safetensors")
    save_file({"text_model.a.lora_A.weight": torch.ones(1)}, comfy / "text.safetensors")
    (comfy / "broken.safetensors").write_bytes(b"<html>404</html>")
    (comfy / "empty.safetensors").write_bytes(b"")
    convert_resadapter(official, comfy / "mine.safetensors", to="comfyui", base_model=unet, norm_keys="diff")
    convert_resadapter(official, comfy / "pair.safetensors", to="diffusers")
    names = node.INPUT_TYPES()["required"]["resadapter"][0]
    assert names == ["mine.safetensors", "pair.safetensors"]
    save_file(lora, comfy / "style.safetensors")  # what a name holds may change
    assert "style.safetensors" in node.INPUT_TYPES()["required"]["resadapter"][0]


def test_a_download_that_broke_off_is_told_of(unet, official, comfy, node):
    shutil.copytree(official, comfy / "a")
    name = "a/pytorch_lora_weights.safetensors"
    (comfy / name).write_bytes((comfy / name).read_bytes()[:50])
    assert name in node.INPUT_TYPES()["required"]["resadapter"][0]
    with pytest.raises(ValueError, match="perhaps cut short"):
        node().apply(Patcher(Model(unet)), name, 1.0, 1.0)


def test_what_the_registry_reads():
    """The registry wants a name, a version and a publisher; the template browser a picture of the same name."""
    stated = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    assert (
        stated["project"]["name"] == "brickwork-resadapter" and stated["project"]["version"] == brickwork.__version__
    )
    assert stated["project"]["dependencies"] == [] and stated["tool"]["comfy"]["PublisherId"]
    for workflow in (FOLDER / "example_workflows").glob("*.json"):
        with Image.open(workflow.with_suffix(".jpg")) as picture:
            assert picture.size == (512, 512)


def test_the_folder_imports_torch_and_safetensors_alone():
    allowed = set(sys.stdlib_module_names) | {"torch", "safetensors", "comfy", "folder_paths"}
    for file in FOLDER.glob("*.py"):
        for statement in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(statement, ast.Import):
                names = [alias.name for alias in statement.names]
            elif isinstance(statement, ast.ImportFrom) and statement.level == 0:
                names = [statement.module]
            assert {name.partition(".")[0] for name in names} <= allowed, file


def test_example_workflow_is_whole():
    """Every link joins an output and an input of one type, and our node has the sockets and widgets it should."""
    workflow = json.loads((FOLDER / "example_workflows" / "resadapter.json").read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, out, target, into, kind in workflow["links"]:
        output, entry = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert number in output["links"] and entry["link"] == number
        assert output["type"] == entry["type"] == kind or entry["type"] == kind == "*"
    ids = [link[0] for link in workflow["links"]]
    assert len(ids) == len(set(ids)) and workflow["last_link_id"] == max(ids)
    (ours,) = [node for node in workflow["nodes"] if node["type"] == "BrickworkResAdapter"]
    assert [entry["name"] for entry in ours["inputs"]] == ["model", "latent"]
    (shown,) = [node for node in workflow["nodes"] if node["type"] == "PreviewAny"]  # ComfyUI's own
    assert [12, ours["id"], 1, shown["id"], 0, "*"] in workflow["links"]  # the automatic strength is shown
    assert [output["type"] for output in ours["outputs"]] == list(
        pack.NODE_CLASS_MAPPINGS["BrickworkResAdapter"].RETURN_TYPES
    )
    assert ours["widgets_values"] == ["resadapter_v2_sd1.5/pytorch_lora_weights.safetensors", 1.0, 1.0]
