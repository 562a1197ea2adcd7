"""Schedules of subnets: one at each noise level, for any network and for several networks."""

import json
import math
from types import SimpleNamespace

import pytest
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

import brickwork
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler
from brickwork.pipelines.schedules import BrickSchedule, SubnetSchedule, read_schedule, step_sigmas, subnet_costs

NAMES = ["small", "middle", "large"]


def network(names=NAMES):
    """All of a network that a schedule looks at; each subnet costs ten times the one before."""
    subnets = lambda height, width: {name: 10**place * height * width for place, name in enumerate(names)}  # noqa: E731
    return SimpleNamespace(config=SimpleNamespace(sample_size=8), subnets=subnets)


def test_full_is_the_network_itself():
    assert SubnetSchedule.full(network()).subnets == ("large",)
    plain = BlockTransformer2DModel(in_channels=3, sample_size=8, hidden_size=8, num_layers=1, attention_head_dim=8)
    assert SubnetSchedule.full(plain).subnets == ("full",)
    assert SubnetSchedule.full({"full": network(), "small": network()}).subnets == ("full",)
    assert SubnetSchedule.from_rules(network(), {"whole": (0, None)}) == SubnetSchedule.full(network())
    assert brickwork.SubnetSchedule is SubnetSchedule


def test_rules_tile_every_noise_level():
    rules = {"small": (5.0, math.inf), "large": [(0, 1.0), (2.0, 5.0)], "middle": (1.0, 2.0)}
    schedule = SubnetSchedule.from_rules(network(), rules)
    assert [schedule.subnet_at(sigma) for sigma in (0.001, 0.999, 1.0, 1.99, 2.0, 4.9, 5.0, 1e6)] == [
        "large", "large", "middle", "middle", "large", "large", "small", "small",
    ]  # fmt: skip
    assert schedule.subnet_at(4.99999) == "small"  # schedulers round their noise levels
    one = SubnetSchedule.from_rules(network(), {"large": [(None, 1.0), (1.0, None)]})
    assert one == SubnetSchedule.full(network()) and one.breaks == ()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"small": (0, 1.0)}, "none above the noise level 1; let the last range end with None"),
        ({"small": (0.5, None)}, "none at the noise levels between 0 and 0.5"),
        ({"small": (0, 1.0), "large": (2.0, None)}, "none at the noise levels between 1 and 2"),
        ({"small": (0, 2.0), "large": (1.0, None)}, "several subnets.* between 1 and 2"),
        ({"small": (0, None), "large": (0, None)}, "several subnets"),
        ({"small": (0, 1.0), "large": (1.0, 1.0), "middle": (1.0, None)}, "ends where it begins"),
        ({"smal": (0, None)}, "`subnet` is 'smal'; did you mean 'small'"),
        ({"small": 3.0}, r"`rules\['small'\]` is 3.0; give \(sigma_low, sigma_high\), a list of such pairs\."),
        ({"small": None}, "give .sigma_low, sigma_high"),
        ({"small": (0, float("nan"))}, "`sigma_high` is nan"),
        ({"small": (-1.0, None)}, "between -1 and 0"),
        ({}, "give a dictionary {subnet"),
        ([("small", 0, None)], "give a dictionary"),
    ],
)
def test_rules_that_do_not_tile_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        SubnetSchedule.from_rules(network(), rules)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=12))
def test_subnets_chosen_level_by_level_come_back_level_by_level(chosen):
    scheduler = EDMHeunScheduler()
    scheduler.set_timesteps(len(chosen))
    sigmas = step_sigmas(scheduler)
    schedule = SubnetSchedule.from_levels(network(), dict(zip(sigmas, chosen)))
    again = read_schedule(json.loads(json.dumps(schedule.to_dict(), allow_nan=False)))
    assert again == schedule and hash(again) == hash(schedule) and again.resolve(scheduler) == chosen
    assert schedule.subnet_at(1e5) == chosen[0] and schedule.subnet_at(1e-6) == chosen[-1]


def test_both_kinds_are_read_from_json():
    stack = SimpleNamespace(config=SimpleNamespace(window_sizes=[4, 16], trained_subsets="prefix"))
    for schedule in (BrickSchedule.fast(stack), SubnetSchedule(("large", "small"), (3.0,))):
        assert read_schedule(schedule.to_dict()) == schedule
    for bad, message in [
        ({"subnets": ["a"]}, "A subnet schedule has exactly the keys"),
        ("fast", "exactly the keys"),
        ({"subnets": ["a", "b"], "breaks": []}, "one subnet more than breaks"),
        ({"subnets": ["a", "b", "c"], "breaks": [2.0, 1.0]}, "which rise"),
        ({"subnets": ["a", "b"], "breaks": [0.0]}, "lie above 0"),
        ({"subnets": ["a", "b"], "breaks": [None]}, "which rise"),
        ({"subnets": [1], "breaks": []}, "give a list of names"),
        ({"subnets": "ab", "breaks": []}, "`subnets` is 'ab'; give a list"),
        ({"subnets": ["a", "b"], "breaks": ["x"]}, "`breaks` is 'x'"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_schedule(bad)


def test_a_schedule_of_another_network_is_refused():
    schedule = SubnetSchedule.from_rules(network(), {"small": (1.0, None), "large": (None, 1.0)})
    schedule.validate(network())
    with pytest.raises(ValueError, match="`subnet` is 'large'; choose one of full"):
        schedule.validate(network(["full"]))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), EulerDiscreteScheduler()])
def test_noise_levels_of_other_schedulers(scheduler):
    """Whether a scheduler says its noise levels or they follow from its signal, they are the same."""
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps.long()
    cumprod = DDIMScheduler().alphas_cumprod[timesteps].double()
    expected = ((1 - cumprod) / cumprod).sqrt().tolist()
    assert step_sigmas(scheduler) == pytest.approx(expected, rel=1e-4)
    schedule = SubnetSchedule.from_rules(network(), {"small": (1.0, None), "large": (None, 1.0)})
    assert schedule.resolve(scheduler) == ["small" if sigma >= 1 else "large" for sigma in expected]


def test_noise_levels_of_flow_matching_are_its_own():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    assert step_sigmas(scheduler) == scheduler.sigmas[:4].tolist()


def test_operations_of_subnets_and_of_several_networks():
    scheduler = EDMHeunScheduler()
    scheduler.set_timesteps(3)
    rules = {"small": (10.0, None), "large": (None, 10.0)}
    schedule = SubnetSchedule.from_rules(network(), rules)
    assert schedule.operations(network(), scheduler, 4, 5) == 20 * (2 * 1 + 3 * 100)
    two = {"small": network(["full"]), "large": network()}
    assert subnet_costs(two, 4, 5) == {"small": 20, "large": 2000}
    assert SubnetSchedule.from_rules(two, rules).operations(two, scheduler, 4, 5) == 20 * (2 * 1 + 3 * 100)


def test_a_stack_of_bricks_has_subnets_too():
    model = LegoTransformer2DModel(
        sample_size=8,
        window_sizes=(2, 8),
        patch_sizes=(1, 1),
        num_layers=(1, 1),
        hidden_sizes=16,
        num_attention_heads=2,
    )  # fmt: skip
    schedule = SubnetSchedule.from_rules(model, {"0": (1.0, None), "full": (None, 1.0)})
    assert schedule.subnets == ("0+1", "0")
    assert schedule.subnet_at(3.0) == BrickSchedule.from_rules(model, {1: (None, 1.0)}).subnet_at(3.0)
    with pytest.raises(ValueError, match="`subnet` is '1'"):  # these weights were trained for early exits alone
        SubnetSchedule.from_rules(model, {"1": (0, None)})
    assert str(schedule) == "at noise 1 and above: 0\nat noise 0 to 1: 0+1"
