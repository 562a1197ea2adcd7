"""Augmentation: what labels say is what is done, nothing where they say nothing, from seed and position alone."""

from typing import get_args

import numpy as np
import pytest
import torch

from brickwork.gen.networks import load_network_class
from brickwork.training.config.data import Augmentations
from brickwork.training.data.augmentation import KINDS, Augmentation, label_width

LABELS = {
    "x_flip": [1], "y_flip": [1], "quarter_turn": [1, 0], "pixel_shift": [0.5, -1], "scale": [1.5],
    "rotate": [np.cos(0.7) - 1, np.sin(0.7)], "stretch": [0.8, -1.1], "shift": [0.6, -0.3],
}  # fmt: skip
EDM = ["x_flip", "y_flip", "scale", "rotate", "stretch", "shift"]


def picture(height=24, width=24):
    """A smooth pattern without symmetry, `(3, height, width)`, and the function that it samples."""
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    return blob(x, y)


def blob(x, y):
    one = np.exp(-((x - 2) ** 2 / 18 + (y + 1) ** 2 / 8 + (x - 2) * (y + 1) / 20))
    return np.stack([one, one / 2, -one]).astype(np.float32)


def test_the_configuration_names_every_kind():
    assert get_args(Augmentations) == tuple(KINDS)
    assert label_width(EDM) == 9  # `augment_dim` of the authors' networks


@pytest.mark.parametrize("name", list(KINDS))
def test_each_moves_points_as_its_label_says(name):
    """Affine maps about the centre, written out here from the paper's table of transformations."""
    label, side = LABELS[name], 24
    angle = np.arctan2(label[-1], label[0]) / 2
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # as the eye sees it, too
    by = 2 ** (0.2 * np.hypot(*label)) if name == "stretch" else 1
    turn = np.array([[np.cos(0.7), np.sin(0.7)], [-np.sin(0.7), np.cos(0.7)]])  # by 0.7 as the eye sees it
    forward = {
        "x_flip": np.diag([-1, 1]), "y_flip": np.diag([1, -1]), "quarter_turn": np.array([[0, 1], [-1, 0]]),
        "scale": np.eye(2) * 2**0.3, "rotate": turn, "stretch": axes @ np.diag([by, 1 / by]) @ axes.T,
    }.get(name, np.eye(2))  # fmt: skip
    moved = {"pixel_shift": [1.5, 3], "shift": [0.6 * 3, -0.3 * 3]}.get(name, [0, 0])
    moved = np.round(moved) if name == "pixel_shift" else np.array(moved)
    grid = np.arange(side) - (side - 1) / 2
    x, y = np.meshgrid(grid, grid)
    back = np.linalg.inv(forward) @ (np.stack([x.ravel(), y.ravel()]) - moved[:, None])
    expected = blob(*back.reshape(2, side, side))
    found = Augmentation(1.0, [name]).apply(picture(), np.array(label, dtype=np.float32))
    assert abs(found - expected)[:, 4:-4, 4:-4].max() < 0.03 < abs(found - picture()).max()


def test_nothing_is_done_to_the_bit_where_labels_are_zero():
    image, all_kinds = picture(), Augmentation(0.0, [name for name in KINDS if name != "x_flip"])
    labels = all_kinds.draw(np.random.default_rng(0))
    assert not labels.any() and len(labels) == label_width(all_kinds.names)
    assert np.array_equal(all_kinds.apply(image, labels), image)


def test_how_often_and_within_which_range():
    augmentation, random = Augmentation(0.25, list(KINDS)), np.random.default_rng(0)
    labels = np.stack([augmentation.draw(random) for _ in range(2000)])
    starts = np.cumsum([0, *(kind.width for kind in KINDS.values())])
    shares = {
        name: labels[:, first:last].any(axis=1).mean()
        for name, first, last in zip(KINDS, starts, starts[1:])
    }  # fmt: skip
    expected = dict.fromkeys(KINDS, 0.25) | {"x_flip": 0.5, "y_flip": 0.125, "quarter_turn": 0.1875}
    assert all(abs(shares[name] - expected[name]) < 0.04 for name in KINDS), shares
    seen = [augmentation.apply(picture(10, 14), label) for label in labels[:50] if not label[2:4].any()]
    assert all(image.shape == (3, 10, 14) and abs(image).max() <= 1 for image in seen)


@pytest.mark.parametrize("name", ["LegoTransformer2DModel", "BlockTransformer2DModel", "BlockUNet2DModel"])
def test_networks_begin_without_hearing_labels(name):
    torch.manual_seed(0)
    kind = load_network_class(name)
    model = kind(**dict(kind.smallest), augment_dim=9).eval()
    inputs = model.example_inputs(2, 16, 16)
    inputs["sample"] += torch.randn(inputs["sample"].shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    labels = torch.randn(2, 9)
    with torch.no_grad():
        model.condition.augment_embed.weight.zero_()
        without = model(**inputs).sample
        assert torch.equal(model(**inputs, augment_labels=labels).sample, without)
        torch.nn.init.normal_(model.condition.augment_embed.weight)
        assert torch.equal(model(**inputs).sample, without)
        assert not torch.allclose(model(**inputs, augment_labels=labels).sample, without)
        with pytest.raises(ValueError, match=r"`augment_labels` has shape \(2, 4\); give \(2, 9\)"):
            model(**inputs, augment_labels=labels[:, :4])
        with pytest.raises(ValueError, match="has no `augment_dim`"):
            kind(**dict(kind.smallest))(**inputs, augment_labels=labels)


@pytest.fixture
def augmented(tiny_run):
    def build(name, *overrides):
        return tiny_run(name, "data.augment=0.5", "data.progressive=[[0, 4], [16, 8]]", *overrides)

    return build


def test_a_run_goes_on_to_the_bit_and_draws_without_labels(augmented, watch, final_tensors, equal_bits, tmp_path):
    from diffusers import DiffusionPipeline

    from brickwork.training.engine.loop import train

    seen = []
    straight = augmented("straight")
    assert not straight.task.network.condition.augment_embed.weight.any()
    train(watch(straight, lambda network, step: seen.append((step.sample.shape[-1], step.conditions))))
    assert [size for size, _ in seen] == [4, 4, 8, 8]
    assert seen[0][1]["augment_labels"].shape == (8, 9) and any(c["augment_labels"].any() for _, c in seen)
    train(augmented("halves", "run.total_images=16"))
    train(augmented("halves", "run.total_images=24"))
    train(augmented("halves"))
    assert equal_bits(final_tensors(tmp_path / "halves"), final_tensors(tmp_path / "straight"))
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "straight" / "pipeline")
    assert pipe.transformer.config.augment_dim == 9 and pipe.transformer.condition.augment_embed.weight.any()
    pipe.set_progress_bar_config(disable=True)
    assert pipe(num_inference_steps=2).images[0].size == (8, 8)


def test_weights_that_were_trained_without_learn_with_it(tiny_run, tmp_path):
    from brickwork.training.engine.loop import train

    train(tiny_run("before", "run.total_images=8"))
    weights = f"model.init_from={tmp_path / 'before' / 'pipeline'}"
    network = tiny_run("after", weights, "model.config={}", "data.augment=0.1").task.network
    assert network.config.augment_dim == 9 and not network.condition.augment_embed.weight.any()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.augment=2", "`data.augment` is 2"),
        ("data.augmentations=[x_flip, rotation]", "`data.augmentations` is .*rotate"),
        ("data.augmentations=[scale, scale]", "`data.augmentations` is .*each once"),
        ("data.progressive=[[0, 4], [12, 8]]", "`data.progressive` is .*multiples of run.batch_size = 8"),
        ("data.progressive=[[8, 4], [16, 8]]", "`data.progressive` is .*from 0 images"),
        ("data.progressive=[[0, 4], [16, 6]]", "`data.progressive` is .*end with data.size = 8"),
        ("data.progressive=[[0, 2], [16, 8]]", "`data.progressive` makes images"),
        ("data.crop_share=0.5", "`data.augment` is 0.5; .*data.crop_share"),
    ],
)
def test_what_is_refused(augmented, override, message):
    with pytest.raises(ValueError, match=message):
        augmented("refused", override)
