import pytest

from brickwork.training.battle_tables import Curve, order_stability, standings


def curve(network: str, seed: int, losses, operations=1.0, cpu_seconds=1.0, images=(100, 200, 400)) -> Curve:
    return Curve(network, seed, images, losses, operations, cpu_seconds)


def test_a_cheap_network_has_seen_more_images_for_the_same_operations():
    cheap = [curve("cheap", seed, [1.0, 0.8, 0.6], operations=1.0) for seed in (0, 1)]
    dear = [curve("dear", seed, [0.9, 0.7, 0.5], operations=2.0) for seed in (0, 1)]
    tables = standings(cheap + dear)
    assert list(tables["images"]["networks"]) == ["dear", "cheap"]
    assert tables["images"]["networks"]["dear"]["mean"] == pytest.approx(0.5)
    # 400 operations: the dear one is at 200 images, the cheap one at 400.
    assert tables["operations"]["budget"] == 400
    assert list(tables["operations"]["networks"]) == ["cheap", "dear"]
    assert tables["operations"]["networks"]["dear"]["losses"] == {0: pytest.approx(0.7), 1: pytest.approx(0.7)}
    assert tables["cpu_seconds"]["networks"]["dear"]["mean"] == pytest.approx(0.5)


def test_losses_between_two_points_and_beyond():
    one = curve("one", 0, [1.0, 0.8, 0.6], cpu_seconds=0.5)
    assert one.loss_at("images", 150) == pytest.approx(0.9)
    assert one.loss_at("cpu_seconds", 150) == pytest.approx(0.7)
    for budget in (99, 401):
        with pytest.raises(ValueError, match="the curve of one goes from 100 to 400"):
            one.loss_at("images", budget)


def test_spread_over_seeds():
    curves = [curve("a", seed, [1, 1, loss]) for seed, loss in enumerate((0.5, 0.6, 0.7))]
    row = standings(curves)["images"]["networks"]["a"]
    assert (row["mean"], row["spread"]) == (pytest.approx(0.6), pytest.approx(0.1))


def test_stability_of_the_order():
    one, other = {"a": 1, "b": 2, "c": 3}, {"a": 3, "b": 2, "c": 1}
    swapped = {"a": 2, "b": 1, "c": 3}
    assert order_stability([one, one])["kendall_tau"] == 1
    assert order_stability([one, other])["kendall_tau"] == -1
    assert order_stability([one, swapped])["kendall_tau"] == pytest.approx(1 / 3)
    assert order_stability([one, swapped, other])["winners"] == ["a", "b", "c"]
    assert order_stability([one])["kendall_tau"] is None


def test_a_seed_that_one_network_lacks_is_not_compared():
    curves = [curve("a", 0, [1, 1, 0.5]), curve("a", 1, [1, 1, 0.9]), curve("b", 0, [1, 1, 0.6])]
    table = standings(curves)["images"]
    assert table["winners"] == ["a"] and table["kendall_tau"] is None
    assert list(table["networks"]) == ["b", "a"]
