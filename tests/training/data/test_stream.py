"""Samples by position: the same for every number of processes, workers, accumulation steps, and after every resume."""

import itertools

import numpy as np
import pytest
import torch

from brickwork.training.data.buckets import BlockShuffledRows, BucketedRows, ShuffledRows
from brickwork.training.data.images import BrokenImage, DataLost
from brickwork.training.data.stream import PositionBatches, TrainingStream, stream_batches


class Pictures:
    """Rows whose first pixel is their number."""

    def __init__(self, number, broken=()):
        self.shapes, self.buckets, self.table, self.broken = [(4, 6)], np.zeros(number, dtype=int), None, broken
        self.fingerprint = "pictures"

    def sample(self, row, random=None):
        if row in self.broken:
            raise BrokenImage("no picture")
        return np.full((3, 4, 6), row, dtype=np.float32) + np.arange(6, dtype=np.float32) / 100, row % 3


def stream_of(number=10, **options):
    return TrainingStream(
        Pictures(number, options.pop("broken", ())), np.arange(number), options.pop("seed", 3), **options
    )


def positions_of(batch_size, accumulation, processes, start=0, steps=3):
    """Rows of positions `(steps, batch_size)` as all processes together see them."""
    streams = [iter(PositionBatches(batch_size, accumulation, rank, processes, start)) for rank in range(processes)]
    return [
        [position for _ in range(accumulation) for stream in streams for position in next(stream)]
        for _ in range(steps)
    ]


@pytest.mark.parametrize(("accumulation", "processes"), list(itertools.product((1, 2, 3), (1, 2, 4))))
def test_all_ways_to_cut_a_step_see_the_same_positions(accumulation, processes):
    expected = [list(range(100 + 24 * step, 124 + 24 * step)) for step in range(3)]
    assert positions_of(24, accumulation, processes, start=100) == expected


def test_a_step_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="multiple of 6 = 2 accumulation steps × 3 processes"):
        PositionBatches(8, 2, 0, 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    def first(workers):
        loader = stream_batches(stream_of(horizontal_flip=True), PositionBatches(4, 1, 0, 1, start=8), workers)
        return list(itertools.islice(loader, 5))

    for one, other in zip(first(0), first(workers)):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_stream_that_starts_later_goes_on_with_the_same_samples():
    early = list(itertools.islice(stream_batches(stream_of(), PositionBatches(4, 1, 0, 1), 0), 5))
    late = list(itertools.islice(stream_batches(stream_of(), PositionBatches(4, 1, 0, 1, start=12), 0), 2))
    for one, other in zip(early[3:], late):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_row_once_an_epoch_in_a_fresh_order():
    order = ShuffledRows(np.arange(5, 12), seed=0)
    epochs = [[order(position) for position in range(7 * epoch, 7 * epoch + 7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(5, 12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [order(position) for position in range(7)] == epochs[0]  # back again
    assert [ShuffledRows(np.arange(5, 12), seed=1)(position) for position in range(7)] != epochs[0]


def test_noise_levels_and_draws_are_spread_as_they_should():
    samples = [stream_of(50)[position] for position in range(800)]
    levels = torch.stack([sample["level"] for sample in samples])
    draws = torch.stack([sample["label_draw"] for sample in samples])
    assert abs(levels.mean()) < 0.12
    assert abs(levels.std() - 1) < 0.1
    assert abs(draws.mean() - 0.5) < 0.04
    assert abs(torch.corrcoef(torch.stack([levels, draws]))[0, 1]) < 0.12
    noise = torch.stack([sample["noise"] for sample in samples])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_half_of_the_images_are_mirrored_if_wanted():
    mirrored = [bool(stream_of(horizontal_flip=True)[p]["image"][0, 0].diff()[0] < 0) for p in range(200)]
    assert 60 < sum(mirrored) < 140
    assert not any(stream_of()[p]["image"][0, 0].diff()[0] < 0 for p in range(50))


def test_flipping_changes_no_other_number():
    plain, flipped = stream_of()[5], stream_of(horizontal_flip=True)[5]
    assert all(torch.equal(plain[name], flipped[name]) for name in ("noise", "level", "label_draw", "label"))


def test_a_broken_picture_is_replaced_in_the_same_way_every_time_and_named():
    stream = stream_of(broken={4, 7})
    samples = [stream[position] for position in range(10)]
    again = [stream_of(broken={4, 7})[position] for position in range(10)]
    assert sorted(int(sample["broken"]) for sample in samples)[-2:] == [4, 7]
    assert sum(int(sample["broken"]) >= 0 for sample in samples) == 2
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(samples, again))
    assert not {4, 7} & {int(sample["image"][0, 0, 0]) for sample in samples}


def test_data_that_is_gone_is_an_error():
    with pytest.raises(DataLost, match="is `data.source` still there"):
        stream_of(broken=set(range(10)))[0]


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="No image is left"):
        TrainingStream(Pictures(3), np.arange(0), 0)


def bucketed(batch_size, counts=(7, 12, 2), seed=0):
    buckets = np.repeat(np.arange(len(counts)), counts)
    rows = np.random.default_rng(0).permutation(100)[: len(buckets)]
    shapes = [(4, 8), (6, 6), (8, 4)]
    return BucketedRows(rows, buckets, shapes, batch_size, seed), dict(zip(rows.tolist(), buckets.tolist()))


@pytest.mark.filterwarnings("ignore:Buckets with fewer")
def test_every_step_has_one_bucket_and_every_row_comes_every_epoch():
    order, bucket_of = bucketed(4)
    assert len(order) == 4 * (2 + 3 + 1)
    orders = []
    for epoch in range(3):
        rows = [order(position) for position in range(epoch * len(order), (epoch + 1) * len(order))]
        steps = np.array(rows).reshape(-1, 4)
        assert all(len({bucket_of[row] for row in step}) == 1 for step in steps.tolist())
        assert set(rows) == set(bucket_of)
        orders.append(tuple(bucket_of[row] for row in steps[:, 0].tolist()))
    assert len(set(orders)) > 1  # buckets take turns in another order


def test_a_thin_bucket_is_named():
    with pytest.warns(UserWarning, match=r"fewer images than the 4 of a step.*8×4 \(2\)"):
        bucketed(4)


@pytest.mark.filterwarnings("ignore:Buckets with fewer")
def test_a_position_inside_an_epoch_can_be_asked_for_at_once():
    order, _ = bucketed(4)
    rows = [order(position) for position in range(60)]
    assert [bucketed(4)[0](position) for position in (41, 3, 59, 24)] == [rows[p] for p in (41, 3, 59, 24)]


def test_shards_are_mixed_a_few_at_a_time():
    rows, shards = np.arange(60), np.repeat(np.arange(6), 10)
    order = BlockShuffledRows(rows, shards, seed=0, open_shards=2)
    epoch = [order(position) for position in range(60)]
    assert sorted(epoch) == rows.tolist()
    blocks = [{shards[row] for row in epoch[first : first + 20]} for first in (0, 20, 40)]
    assert all(len(block) == 2 for block in blocks)
    assert shards[epoch[:20]].tolist() != sorted(shards[epoch[:20]].tolist())


@pytest.mark.filterwarnings("ignore:Buckets with fewer")
def test_a_broken_picture_is_replaced_by_one_of_its_shape():
    images = Pictures(12, broken={1, 2})
    images.shapes, images.buckets = [(4, 6), (6, 4)], np.arange(12) % 2
    stream = TrainingStream(images, np.arange(12), seed=0, batch_size=3)
    samples = [stream[position] for position in range(24)]
    replaced = [(int(s["broken"]), int(s["image"][0, 0, 0])) for s in samples if s["broken"] >= 0]
    assert {row for row, _ in replaced} == {1, 2}
    assert all(row % 2 == other % 2 and other not in {1, 2} for row, other in replaced)
