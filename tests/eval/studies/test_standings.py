"""What is read off the curves of a battle, against hand-worked cases and scipy."""

import math

import numpy as np
import pytest

from brickwork.eval.studies.core import kendall_tau
from brickwork.eval.studies.core.standings import Curve, agreement_of_seeds, compare_neighbours, standings


def curve(network, seed, losses, operations=1.0, seconds=1.0, images=(100, 200, 400)) -> Curve:
    return Curve(network, seed, images, losses, operations, seconds)


def order(table: dict) -> list[str]:
    return [row["network"] for row in table["networks"]]


def row_of(table: dict, network: str) -> dict:
    return next(row for row in table["networks"] if row["network"] == network)


def test_a_cheap_network_has_seen_more_images_for_the_same_operations():
    cheap = [curve("cheap", seed, [1.0, 0.8, 0.6], operations=1.0) for seed in (0, 1)]
    dear = [curve("dear", seed, [0.9, 0.7, 0.5], operations=2.0, seconds=0.5) for seed in (0, 1)]
    tables = standings(cheap + dear)
    assert order(tables["images"]) == ["dear", "cheap"] and tables["images"]["budget"] == 400
    assert row_of(tables["images"], "dear")["mean"] == pytest.approx(0.5)
    # 400 operations: the dear one is at 200 images, the cheap one at 400.
    assert order(tables["operations"]) == ["cheap", "dear"] and tables["operations"]["budget"] == 400
    row = row_of(tables["operations"], "dear")
    assert row["losses"] == {0: pytest.approx(0.7), 1: pytest.approx(0.7)} and row["images"] == 200
    # 200 seconds: the cheap one, slower by the clock, is at 200 images.
    assert tables["seconds"]["budget"] == 200 and row_of(tables["seconds"], "cheap")["mean"] == pytest.approx(0.8)


def test_the_budget_is_what_the_shortest_run_reached():
    curves = [curve("a", 0, [1, 1, 1]), curve("a", 1, [1, 1, 1], images=(100, 200, 300)), curve("b", 0, [2, 2, 2])]
    tables = standings(curves)
    assert [tables[axis]["budget"] for axis in ("images", "operations", "seconds")] == [300, 300, 300]


def test_losses_between_points_are_linear_in_log_images_and_stop_at_the_ends():
    images = [100, 250, 1000]
    one = Curve("one", 3, images, [2 - 0.1 * math.log(n) for n in images])
    assert one.loss_at(500) == pytest.approx(2 - 0.1 * math.log(500))
    assert one.loss_at(1000 * (1 + 1e-12)) == pytest.approx(2 - 0.1 * math.log(1000))
    for beyond in (99, 1001):
        with pytest.raises(ValueError, match=f"got {beyond}, but the curve of one, seed 3, goes from 100 to 1000"):
            one.loss_at(beyond)


def test_networks_that_an_axis_has_no_place_for_are_left_out_by_name():
    known = curve("known", 0, [1, 1, 1], operations=1.0)
    uncounted = curve("uncounted", 0, [0.5, 0.5, 0.5], operations=None)
    late = curve("late", 0, [0.4, 0.4, 0.4], operations=5.0)  # 400 operations are 80 of its images
    table = standings([known, uncounted, late])["operations"]
    assert order(table) == ["known"]
    assert "not measured" in table["left_out"]["uncounted"] and "100 images" in table["left_out"]["late"]
    assert order(standings([known, uncounted, late])["images"]) == ["late", "uncounted", "known"]
    assert set(standings([curve("a", 0, [1, 1, 1], operations=None, seconds=None)])) == {"images"}


def test_spread_and_places_over_seeds():
    curves = [curve("a", seed, [1, 1, loss]) for seed, loss in enumerate((0.5, 0.6, 0.7))]
    curves += [curve("b", seed, [1, 1, loss]) for seed, loss in enumerate((0.65, 0.66, 0.67))]
    table = standings(curves)["images"]
    row = table["networks"][0]
    assert (row["mean"], row["spread"]) == (pytest.approx(0.6), pytest.approx(0.1))
    assert row["rank"] == 1 and row["ranks"] == {0: 1, 1: 1, 2: 2}
    alone = standings([curve("a", 0, [1, 1, 0.5])])["images"]
    assert alone["networks"][0]["spread"] is None and alone["kendall_tau"] is None and alone["neighbours"] == []


def test_a_seed_that_one_network_lacks_is_not_compared():
    curves = [curve("a", 0, [1, 1, 0.5]), curve("a", 1, [1, 1, 0.9]), curve("b", 0, [1, 1, 0.6])]
    table = standings(curves)["images"]
    assert order(table) == ["b", "a"] and table["kendall_tau"] is None
    assert row_of(table, "a")["ranks"] == {0: 1} and row_of(table, "a")["spread"] is not None
    (pair,) = table["neighbours"]
    assert pair["seeds"] == [0] and pair["reversed"] == [0] and pair["separated"] is None


@pytest.mark.parametrize(
    ("worse", "separated", "turned"),
    [
        ((1.5, 1.4, 1.6), True, []),
        ((1.1, 1.0001, 1.4), False, []),  # a gap smaller than its spread
        ((3.0, 3.0, 0.99), False, [2]),  # a gap larger than its spread, and one seed that says otherwise
    ],
)
def test_neighbours_are_separated_by_more_than_the_spread_and_by_every_seed(worse, separated, turned):
    losses = {"a": {0: 1.0, 1: 1.0, 2: 1.0}, "b": dict(enumerate(worse))}
    pair = compare_neighbours("a", "b", losses)
    assert pair["separated"] is separated and pair["reversed"] == turned
    assert pair["gap"] == pytest.approx(np.mean(worse) - 1) and pair["spread"] == pytest.approx(np.std(worse, ddof=1))


def test_a_shift_that_a_seed_gives_to_both_does_not_blur_them():
    losses = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 1.1, 1: 2.11, 2: 3.09}}
    assert compare_neighbours("a", "b", losses)["separated"] is True


def test_agreement_of_seeds():
    losses = {"a": {0: 1, 1: 3, 2: 2}, "b": {0: 2, 1: 2, 2: 1}, "c": {0: 3, 1: 1, 2: 3}}
    agreement = agreement_of_seeds(losses)
    assert agreement["pairs"] == [[0, 1, -1], [0, 2, pytest.approx(1 / 3)], [1, 2, pytest.approx(-1 / 3)]]
    assert (agreement["mean"], agreement["least"]) == (pytest.approx(-1 / 3), -1)
    # Networks that only one of two seeds has do not count for that pair.
    assert agreement_of_seeds(losses | {"d": {0: 0}}) == agreement


def test_kendall_tau_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    for size in (2, 3, 8):
        for values in (draw.normal(size=(2, size)), draw.integers(0, 3, size=(2, size))):
            expected = stats.kendalltau(*values).statistic
            found = kendall_tau(*values)
            assert found is None if math.isnan(expected) else found == pytest.approx(expected)
    assert kendall_tau([1, 1], [1, 2]) is None and kendall_tau([1], [1]) is None
