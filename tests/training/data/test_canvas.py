"""Crops of canvases: what is in them, where they say that they lie, and what a network learns from them."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from brickwork.gen.conditioning import coordinate_channels, crop_coordinates
from brickwork.training.data.canvas import CanvasSettings, CanvasStream, cut, draw_corner, draw_proportions, lay_out
from brickwork.training.data.stream import PositionBatches, TrainingStream, stream_batches


class Pictures:
    """Rows of one colour each, `side` pixels large, of three classes; all that a stream asks of a data set."""

    def __init__(self, number=9, side=24, shape=(4, 6)):
        self.shapes, self.buckets, self.table = [shape], np.zeros(number, dtype=int), None
        self.labels, self.side = np.arange(number) % 3, side

    def natural_size(self, row):
        return self.side, self.side * 2

    def decoded(self, row):
        return Image.fromarray(np.full((*self.natural_size(row), 3), row, dtype=np.uint8))

    def sample(self, row, random=None):
        return np.full((3, *self.shapes[0]), row / 127.5 - 1, dtype=np.float32), int(self.labels[row])


def stream_of(share=1.0, scale=4.0, aspect=4.0, horizontal_flip=False, **pictures):
    images = Pictures(**pictures)
    rows = np.arange(6)  # the others are held out
    return CanvasStream(images, rows, 3, horizontal_flip, canvases=CanvasSettings(share, scale, aspect))


@pytest.mark.parametrize(
    ("scale", "aspect", "tall", "expected"),
    [
        (1.0, 1.0, False, (8, 10, (8, 10), [(0, 0)])),
        (2.0, 1.0, True, (16, 20, (16, 20), [(0, 0)])),
        (1.0, 3.0, False, (8, 30, (8, 10), [(0, 0), (0, 10), (0, 20)])),
        (1.0, 2.0, True, (16, 10, (8, 10), [(0, 0), (8, 0)])),
        (1.0, 2.4, False, (8, 24, (8, 10), [(0, 1), (0, 13)])),  # gaps of white
        (1.0, 1.6, False, (8, 16, (6, 8), [(1, 0), (1, 8)])),  # smaller, so as not to overlap
    ],
)
def test_pictures_side_by_side(scale, aspect, tall, expected):
    canvas = lay_out((8, 10), scale, aspect, tall)
    assert (canvas.height, canvas.width, canvas.tile, canvas.corners) == expected


def test_every_canvas_holds_its_pictures_and_is_no_smaller_than_a_crop():
    random = np.random.default_rng(0)
    for _ in range(300):
        shape = tuple(int(side) for side in random.integers(2, 20, 2))
        canvas = lay_out(shape, *draw_proportions(random, CanvasSettings(1.0, 3.5, 5.0)))
        assert canvas.height >= shape[0] and canvas.width >= shape[1]
        boxes = [(top, left, top + canvas.tile[0], left + canvas.tile[1]) for top, left in canvas.corners]
        assert all(min(box) >= 0 and box[2] <= canvas.height and box[3] <= canvas.width for box in boxes)
        for one, other in itertools.pairwise(boxes):
            assert one[2] <= other[0] or one[3] <= other[1]
        top, left = draw_corner(random, canvas, shape)
        assert top < canvas.height and left < canvas.width
        assert canvas.height > shape[0] or top == 0


def test_a_crop_goes_on_at_the_opposite_end():
    canvas = lay_out((2, 3), 1.0, 3.0, False)
    drawn = np.arange(3 * 2 * 3 * 3, dtype=np.uint8).reshape(3, 2, 3, 3)
    pictures = [lambda number=number: drawn[number] for number in range(3)]
    whole = np.concatenate(list(drawn), axis=1)
    for top, left in itertools.product(range(2), range(9)):
        expected = np.roll(whole, (-top, -left), (0, 1))[:2, :3]
        assert np.array_equal(cut(canvas, (top, left), (2, 3), pictures), expected)


def test_pictures_out_of_sight_are_not_read():
    canvas = lay_out((2, 3), 1.0, 3.0, False)
    read = []
    pictures = [lambda number=number: read.append(number) or np.zeros((2, 3, 3), np.uint8) for number in range(3)]
    cut(canvas, (0, 8), (2, 3), pictures)
    assert read == [0, 2]


def test_coordinates_are_those_of_the_place_on_the_canvas():
    whole = coordinate_channels(7, 11, torch.device("cpu"), torch.float32)
    assert torch.equal(crop_coordinates(torch.tensor([[0, 0, 7, 11]]), 7, 11), whole)
    crops = torch.tensor([[2, 9, 7, 11], [6, 0, 7, 11]])
    rolled = [torch.roll(whole, (-top, -left), (2, 3))[..., :4, :5] for top, left, *_ in crops.tolist()]
    assert torch.equal(crop_coordinates(crops, 4, 5), torch.cat(rolled))


def test_samples_lie_where_they_say():
    stream, seen = stream_of(), set()
    for position in range(60):
        sample = stream[position]
        top, left, height, width = sample["crop"].tolist()
        image = ((sample["image"] + 1) * 127.5).round().int()
        assert image.shape == (3, 4, 6) and 0 <= top < height and 0 <= left < width
        shown = set(image.unique().tolist()) - {255}
        assert shown <= set(range(6)), "held-out rows on a canvas"
        assert {row % 3 for row in shown} <= {int(sample["label"])}, "another class on a canvas"
        seen.add((height > 4, width > 6))
    assert seen >= {(True, True), (True, False), (False, True)}


def test_pictures_are_never_enlarged():
    for side, largest in ((24, 4 * 6), (6, 6 * 6 // 4), (3, 6)):
        stream = stream_of(aspect=1.0, side=side)
        widths = [stream[position]["crop"][3].item() for position in range(80)]
        assert max(widths) <= largest and (max(widths) > 0.8 * largest or largest == 6)


def test_a_share_of_the_samples_are_crops_and_the_others_as_ever():
    stream, plain = stream_of(share=0.3), TrainingStream(Pictures(), np.arange(6), 3)
    crops = 0
    for position in range(200):
        sample, other = stream[position], plain[position]
        assert all(torch.equal(sample[name], other[name]) for name in ("noise", "level", "label_draw"))
        if sample["crop"].tolist() == [0, 0, 4, 6]:
            assert torch.equal(sample["image"], other["image"])
        else:
            crops += 1
    assert 35 < crops < 85


def test_a_mirrored_crop_lies_on_the_mirrored_canvas():
    plain, flipped = stream_of(), stream_of(horizontal_flip=True)
    mirrored = 0
    for position in range(40):
        one, other = plain[position], flipped[position]
        if torch.equal(one["crop"], other["crop"]) and torch.equal(one["image"], other["image"]):
            continue
        mirrored += 1
        assert torch.equal(one["image"].flip(2), other["image"])
        here, there = (crop_coordinates(sample["crop"][None], 4, 6) for sample in (one, other))
        torch.testing.assert_close(there[:, 1], -here[:, 1].flip(2))
        assert torch.equal(there[:, 0], here[:, 0])
    assert mirrored > 8


def test_workers_change_nothing():
    def first(workers):
        loader = stream_batches(stream_of(share=0.5), PositionBatches(4, 1, 0, 1), workers)
        return list(itertools.islice(loader, 3))

    for one, other in zip(first(0), first(1)):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_on_crops_marks_the_network_and_tells_it_the_place(tiny_run, monkeypatch):
    run = tiny_run("crops", "data.crop_share=0.5", "run.total_images=8", "run.checkpoint_images=8")
    assert run.task.network.config.trained_crops
    told = []
    forward = run.task.network.forward
    monkeypatch.setattr(run.task.network, "forward", lambda *a, **k: told.append(k["coordinates"]) or forward(*a, **k))
    from brickwork.training.engine.loop import train

    assert train(run) == 8
    expected = crop_coordinates(torch.stack([run.task.stream[position]["crop"] for position in range(8)]), 8, 8)
    assert torch.equal(told[0], expected)
    assert len(told[0].unique(dim=0)) > 1


@pytest.mark.parametrize("override", ["model.type=BlockUNet2DModel", "data.latents=somewhere"])
def test_who_cannot_learn_from_crops_says_so(tiny_yaml, override):
    from brickwork.training.config.config import load_config

    with pytest.raises(ValueError, match="`data.crop_share` is 0.5; only LegoTransformer2DModel on pixels"):
        load_config(tiny_yaml, ["data.crop_share=0.5", override])
    with pytest.raises(ValueError, match="`data.crop_scale` is 0.5; give at least 1"):
        load_config(tiny_yaml, ["data.crop_scale=0.5"])
