"""Snapshots with the structure of the LEGO authors', made at test time from plain tensors.

Their modules are played by empty classes under the same names, which exist only while a snapshot is written.
"""

import enum
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from brickwork.gen.conditioning import sincos_position_table

PARITY = Path(__file__).parents[2] / "data" / "lego_parity"
STACKS = {
    "pg": {"windows": (4, 16, 32), "patches": (2, 8, 2)},
    "pr": {"windows": (32, 16, 4), "patches": (2, 8, 2)},
    "u": {"windows": (16, 8, 4, 8, 16), "patches": (2, 4, 2, 4, 2)},
}
CLASSES = {
    "model": ("training.lego_models", "LEGO"),
    "x_embedder": ("timm.layers.patch_embed", "PatchEmbed"),
    "attn": ("timm.models.vision_transformer", "Attention"),
    "mlp": ("timm.layers.mlp", "Mlp"),
    "final_layer": ("training.lego_models", "FinalLayer"),
}
BRICK, BLOCK = ("training.lego_models", "LEGO_module"), ("training.lego_models", "DiTBlock")
LOSS, EASY_DICT = ("training.loss", "LEGOEDMLoss"), ("dnnlib.util", "EasyDict")


def module_source(marker: Path) -> str:
    """What the persistence wrapper stores beside an object: source code, which must never run."""
    return f"import os\nos.makedirs({str(marker)!r}, exist_ok=True)\n"


def authors_tensors(stack: str) -> dict[str, torch.Tensor]:
    """The parity weights in float32, with the position tables that the files leave out."""
    tensors = {name: tensor.float() for name, tensor in load_file(PARITY / f"{stack}_weights.safetensors").items()}
    for brick, (window, patch) in enumerate(zip(STACKS[stack]["windows"], STACKS[stack]["patches"])):
        tensors[f"model.model.{brick}.pos_embed"] = sincos_position_table(32, window // patch, window // patch)[None]
    return tensors


def authors_shapes(windows, patches, layers, width: int, channels: int, classes: int | None) -> dict[str, tuple]:
    """The shapes of a network's tensors under the authors' names."""
    weights = {"model.t_embedder.mlp.0": (width, 256), "model.t_embedder.mlp.2": (width, width)}
    if classes:
        weights["model.y_embedder.embedding_table"] = (width, classes)
    shapes = {}
    for i, (window, patch, depth) in enumerate(zip(windows, patches, layers)):
        brick = f"model.model.{i}"
        shapes[f"{brick}.pos_embed"] = (1, (window // patch) ** 2, width)
        weights[f"{brick}.x_embedder.proj"] = (width, (2 * channels if i else channels) + 2, patch, patch)
        weights[f"{brick}.final_layer.linear"] = (patch * patch * channels, width)
        weights[f"{brick}.final_layer.adaLN_modulation.1"] = (2 * width, width)
        for j in range(depth):
            block = f"{brick}.blocks.{j}"
            weights[f"{block}.attn.qkv"] = (3 * width, width)
            weights[f"{block}.attn.proj"] = (width, width)
            weights[f"{block}.mlp.fc1"] = (4 * width, width)
            weights[f"{block}.mlp.fc2"] = (width, 4 * width)
            weights[f"{block}.adaLN_modulation.1"] = (6 * width, width)
    for layer, shape in weights.items():
        shapes |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
    return shapes


def tiny_tensors() -> dict[str, torch.Tensor]:
    """One brick of one block, four features wide: a snapshot of some kilobytes."""
    generator = torch.Generator().manual_seed(0)
    shapes = authors_shapes((4,), (2,), (1,), width=4, channels=3, classes=None)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors["model.model.0.pos_embed"] = sincos_position_table(4, 2, 2)[None]
    return tensors


class SnapshotMaker:
    """Writes snapshots; `monkeypatch` takes the played modules away again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, marker: Path):
        self.monkeypatch, self.marker = monkeypatch, marker
        for module, name in {*CLASSES.values(), BRICK, BLOCK}:
            self.play(module, name, type(name, (torch.nn.Module,), {"__module__": module}))
        self.play(*LOSS, type(LOSS[1], (), {"__module__": LOSS[0]}))
        self.play(*EASY_DICT, type(EASY_DICT[1], (dict,), {"__module__": EASY_DICT[0]}))
        image_format = enum.Enum("Format", {"NCHW": "NCHW"}, module="timm.layers.format")
        self.image_format = self.play("timm.layers.format", "Format", image_format).NCHW

        def reconstruct(meta):
            exec(meta["module_src"])  # as the authors' code does

        reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
        self.reconstruct = self.play(reconstruct.__module__, reconstruct.__qualname__, reconstruct)

    def play(self, module: str, name: str, value: object) -> object:
        parts = module.split(".")
        for package in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
            if package not in sys.modules:
                self.monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        self.monkeypatch.setattr(sys.modules[module], name, value, raising=False)
        return value

    def persistent(self, class_name: str, state: dict) -> object:
        """An object in the persistence wrapper."""
        meta = {
            "type": "class", "version": 6, "module_src": module_source(self.marker), "class_name": class_name,
            "state": state,
        }  # fmt: skip
        reduced = types.SimpleNamespace(value=(self.reconstruct, (meta,)))
        return type("Persistent", (), {"__reduce__": lambda _: reduced.value})()

    def module(self, tensors: dict[str, torch.Tensor], path: str = "", heads: int | None = 2) -> torch.nn.Module:
        """A tree of modules whose state dict is `tensors`."""
        children = {}
        leaves = {name: tensor for name, tensor in tensors.items() if "." not in name}
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                children.setdefault(head, {})[rest] = tensor
        place, name = self.class_of(path, leaves, children)
        module = getattr(sys.modules[place], name)()
        if (place, name) == BRICK and heads is not None:
            module.num_heads, module.patch_size = heads, 2
        if name == "PatchEmbed":
            module.output_fmt = self.image_format
        for leaf, tensor in leaves.items():
            module.register_parameter(leaf, torch.nn.Parameter(tensor.clone(), requires_grad=False))
        for child, inner in children.items():
            module.register_module(child, self.module(inner, f"{path}.{child}".lstrip("."), heads))
        return module.eval()

    @staticmethod
    def class_of(path: str, leaves: dict, children: dict) -> tuple[str, str]:
        last = path.split(".")[-1]
        if last in CLASSES and path != "model.model":
            return CLASSES[last]
        if "pos_embed" in leaves:
            return BRICK
        return BLOCK if "adaLN_modulation" in children else ("torch.nn.modules.linear", "Identity")

    def network(self, tensors: dict[str, torch.Tensor], heads: int | None = 2, **state) -> object:
        """The `EDMPrecondLEGO` of a snapshot."""
        outer = self.module(tensors, heads=heads)
        return self.persistent("EDMPrecondLEGO", {**outer.__dict__, "img_resolution": 32, "sigma_data": 0.5, **state})

    def snapshot(self, network: object) -> dict:
        """The dict that the authors' training loop pickles."""
        loss = self.persistent("LEGOEDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5})
        options = sys.modules[EASY_DICT[0]].EasyDict(path="images.zip", use_labels=True, resolution=32)
        plain = sys.modules[LOSS[0]].LEGOEDMLoss()
        return {"ema": network, "loss_fn": loss, "augment_pipe": plain, "dataset_kwargs": options}

    def dumps(self, tensors: dict[str, torch.Tensor], protocol: int = 4, heads: int | None = 2, **state) -> bytes:
        return pickle.dumps(self.snapshot(self.network(tensors, heads, **state)), protocol=protocol)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A folder that exists only if something in a file was run."""
    return tmp_path / "marker"


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch, marker: Path) -> SnapshotMaker:
    return SnapshotMaker(monkeypatch, marker)


@pytest.fixture
def tensors_of():
    return authors_tensors


@pytest.fixture
def shapes_of():
    return authors_shapes


@pytest.fixture
def tiny() -> dict[str, torch.Tensor]:
    return tiny_tensors()


@pytest.fixture
def parity() -> Path:
    """The folder of the parity arrays."""
    return PARITY
