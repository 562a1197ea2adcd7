"""The authors' checkpoints become our network, with their outputs."""

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from brickwork.gen.conditioning import sincos_position_table
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.original.lego_checkpoints import convert_original_lego, load_original_lego, preset_name
from brickwork.gen.presets import LEGO_PRESETS

SIZES = {"pg": (32, 64), "pr": (32, 64), "u": (16, 32)}


def relative_error(estimate: torch.Tensor, expected: torch.Tensor) -> float:
    return ((estimate - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def snapshot(maker, tensors_of, tmp_path):
    """Writes one of the parity networks as a snapshot."""

    def write(stack: str, **options):
        path = tmp_path / f"{stack}.pkl"
        path.write_bytes(maker.dumps(tensors_of(stack), **options))
        return path

    return write


@pytest.mark.parametrize("stack", SIZES)
def test_every_brick_gives_the_outputs_of_the_authors(snapshot, parity, marker, stack):
    model = LegoTransformer2DModel.from_original(snapshot(stack))
    for size in SIZES[stack]:
        arrays = load_file(parity / f"{stack}_{size}.safetensors")
        with torch.no_grad():
            out = model(arrays["sample"], arrays["timestep"], arrays.get("labels"), return_intermediates=True)
        expected = [arrays[f"brick_{brick}"] for brick in range(model.num_bricks)]
        assert len(out.intermediates) == len(expected)
        assert max(map(relative_error, out.intermediates, expected)) < 2e-5
    assert not marker.exists(), "the source code in the file was run"


@pytest.mark.parametrize("stack", ["pg", "u"])
def test_no_class_gives_the_outputs_of_the_authors(snapshot, parity, stack):
    model = LegoTransformer2DModel.from_original(snapshot(stack))
    arrays = load_file(parity / f"{stack}_{SIZES[stack][1]}.safetensors")
    expected = arrays[f"no_class_brick_{model.num_bricks - 1}"]
    with torch.no_grad():
        for labels in (None, torch.tensor([10])):
            assert relative_error(model(arrays["sample"], arrays["timestep"], labels).sample, expected) < 2e-5
        assert relative_error(model(arrays["sample"], arrays["timestep"], torch.tensor([3])).sample, expected) > 1e-3


def test_the_stack_is_recognised(snapshot):
    assert load_original_lego(snapshot("u", img_resolution=24))[0] == {
        "sample_size": 24,
        "in_channels": 4,
        "num_classes": 10,
        "window_sizes": (16, 8, 4, 8, 16),
        "patch_sizes": (2, 4, 2, 4, 2),
        "num_layers": (1, 1, 1, 1, 1),
        "hidden_sizes": 32,
        "num_attention_heads": 2,
        "mlp_ratio": 4.0,
    }
    config, _ = load_original_lego(snapshot("pr"))
    assert config["num_classes"] is None
    assert config["num_layers"] == (2, 1, 1)
    assert preset_name(config) is None


@pytest.mark.parametrize("name", LEGO_PRESETS)
def test_every_preset_is_recognised_by_its_tensors_alone(shapes_of, name):
    preset = LEGO_PRESETS[name]
    windows, patches, width = preset["window_sizes"], preset["patch_sizes"], preset["hidden_sizes"]
    shapes = shapes_of(windows, patches, preset["num_layers"], width, channels=4, classes=7)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    for brick, (window, patch) in enumerate(zip(windows, patches)):
        tensors[f"model.model.{brick}.pos_embed"] = sincos_position_table(width, window // patch, window // patch)[
            None
        ]
    config, state_dict = convert_original_lego(tensors)
    assert preset_name(config) == name
    assert (config["in_channels"], config["num_classes"]) == (4, 7)
    with torch.device("meta"):
        expected = LegoTransformer2DModel(**config).state_dict()
    assert {key: tensor.shape for key, tensor in state_dict.items()} == {key: t.shape for key, t in expected.items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", "-legacy.pt"])
def test_state_dicts_load_like_snapshots(maker, tensors_of, tmp_path, suffix):
    tensors, path = tensors_of("pg"), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=suffix == ".pt")
    with pytest.raises(ValueError, match="width of 32.*num_attention_heads"):
        load_original_lego(path)
    config, state_dict = load_original_lego(path, num_attention_heads=2)
    (tmp_path / "snapshot.pkl").write_bytes(maker.dumps(tensors))
    expected_config, expected = load_original_lego(tmp_path / "snapshot.pkl")
    assert config == expected_config
    assert all(torch.equal(state_dict[name], expected[name]) for name in expected | state_dict)


def test_a_bare_lego_module_and_an_augmentation_layer_are_taken(tensors_of):
    tensors = tensors_of("pg")
    expected = convert_original_lego(tensors, num_attention_heads=2)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    bare |= {"map_augment.weight": torch.ones(32, 9), "map_augment.bias": torch.ones(32)}
    config, state_dict = convert_original_lego(bare, num_attention_heads=2)
    assert config == expected[0]
    assert state_dict.keys() == expected[1].keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_stored_dtype_is_kept(maker, tiny, tmp_path, dtype):
    path = tmp_path / "tiny.pkl"
    path.write_bytes(maker.dumps({name: tensor.to(dtype) for name, tensor in tiny.items()}))
    _, state_dict = load_original_lego(path)
    assert {tensor.dtype for tensor in state_dict.values()} == {dtype}
    assert torch.equal(state_dict["bricks.0.blocks.0.attn.qkv.weight"].float(), tiny[QKV].to(dtype).float())


QKV = "model.model.0.blocks.0.attn.qkv.weight"
TABLE = "model.model.0.pos_embed"


@pytest.mark.parametrize(
    "change, message",
    [
        ({QKV: None}, r"model\.0\.blocks\.0\.attn\.qkv\.weight is missing"),
        ({QKV: torch.zeros(12, 5)}, r"qkv\.weight has the shape \(12, 5\), not \(12, 4\)"),
        ({QKV: torch.zeros(12, 4, dtype=torch.int32)}, r"qkv\.weight is missing"),
        ({"model.model.0.norm.weight": torch.zeros(4)}, r"model\.0\.norm\.weight does not belong"),
        ({"model.model.0.blocks.9.attn.qkv.weight": torch.zeros(12, 4)}, "blocks.1.attn.qkv.weight is missing"),
        ({"model.model.7.pos_embed": torch.zeros(1, 4, 4)}, "model.1.x_embedder.proj.weight"),
        ({TABLE: torch.zeros(1, 4, 4)}, "not the fixed sine-cosine table"),
        ({TABLE: torch.full((1, 4, 4), float("nan"))}, "not the fixed sine-cosine table"),
        ({TABLE: torch.zeros(1, 5, 4)}, r"pos_embed has the shape \(1, 5, 4\)"),
        ({TABLE: None}, "pos_embed.*missing"),
        ({"model.model.0.x_embedder.proj.weight": torch.zeros(4, 20)}, "x_embedder.proj.weight.*missing"),
        ({"model.model.0.x_embedder.proj.weight": torch.zeros(0, 5, 2, 2)}, "x_embedder.proj.weight.*missing"),
        ({"model.y_embedder.embedding_table.bias": torch.zeros(4)}, "embedding_table.weight.*missing"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tiny, change, message):
    tensors = {name: tensor for name, tensor in (tiny | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        convert_original_lego(tensors, num_attention_heads=2)


def test_no_lego_network_is_named(tmp_path):
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors.*no brick"):
        load_original_lego(tmp_path / "other.safetensors")


@pytest.mark.parametrize("stored, given, message", [(2, 4, "leave it out"), (3, None, "divide"), (None, 3, "divide")])
def test_impossible_heads_are_refused(maker, tiny, tmp_path, stored, given, message):
    path = tmp_path / "tiny.pkl"
    path.write_bytes(maker.dumps(tiny, heads=stored))
    with pytest.raises(ValueError, match=message):
        load_original_lego(path, num_attention_heads=given)


def test_python_itself_would_run_the_source_in_these_snapshots(maker, tiny, marker):
    pickle.loads(maker.dumps(tiny))
    assert marker.exists()
