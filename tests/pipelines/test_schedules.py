"""Brick schedules: what they run, what they refuse, and how they are saved and shown."""

import json
from types import SimpleNamespace

import pytest
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from brickwork.gen.presets import LEGO_PRESETS
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler
from brickwork.pipelines.schedules import BrickRule, BrickSchedule, stack_layout


def stack(*windows, trained_subsets="prefix"):
    """All of a model that a schedule looks at."""
    return SimpleNamespace(config=SimpleNamespace(window_sizes=list(windows), trained_subsets=trained_subsets))


def resolved(schedule, num_steps, scheduler=None):
    scheduler = scheduler or EDMHeunScheduler()
    scheduler.set_timesteps(num_steps)
    return schedule.resolve(scheduler)


def test_full_runs_every_brick():
    assert resolved(BrickSchedule.full(stack(4, 16, 64)), 5) == [(0, 1, 2)] * 5


@pytest.mark.parametrize("windows", [(4, 16, 64), (64, 16, 4, 16, 64), (8, 32)])
def test_fast_leaves_the_last_brick_of_pg_and_u_out_at_low_noise(windows):
    full = tuple(range(len(windows)))
    assert resolved(BrickSchedule.fast(stack(*windows)), 18) == [full] * 9 + [full[:-1]] * 9
    assert resolved(BrickSchedule.fast(stack(*windows), t_break=0.3), 10) == [full] * 7 + [full[:-1]] * 3


@pytest.mark.parametrize("windows", [(64, 16, 4), (32, 8)])
def test_fast_leaves_the_last_brick_of_pr_out_at_high_noise(windows):
    full = tuple(range(len(windows)))
    assert resolved(BrickSchedule.fast(stack(*windows)), 18) == [full[:-1]] * 9 + [full] * 9
    assert resolved(BrickSchedule.fast(stack(*windows), t_break=0.3), 10) == [full[:-1]] * 3 + [full] * 7


@pytest.mark.parametrize("windows", [(4, 8), (8, 4)])
@given(num_steps=st.integers(1, 60), left_out=st.integers(0, 60))
def test_the_break_is_a_share_of_the_steps(windows, num_steps, left_out):
    left_out = min(left_out, num_steps)
    steps = resolved(BrickSchedule.fast(stack(*windows), t_break=left_out / num_steps), num_steps)
    assert steps.count((0,)) == left_out


@pytest.mark.parametrize("scheduler", [EDMEulerScheduler(), EDMDPMSolverMultistepScheduler(), EDMHeunScheduler()])
def test_every_scheduler_has_one_set_of_bricks_a_step(scheduler):
    model = stack(4, 16, 64)
    assert resolved(BrickSchedule.fast(model), 7, scheduler) == [(0, 1, 2)] * 4 + [(0, 1)] * 3
    rules = BrickSchedule.from_rules(model, {2: (1.0, 80.0)})
    assert resolved(rules, 7, scheduler) == [(0, 1, 2)] * 4 + [(0, 1)] * 3


def test_the_layout_of_every_preset_is_recognised():
    for name, preset in LEGO_PRESETS.items():
        assert f"-{stack_layout(preset['window_sizes']).lower()}-" in name
    assert stack_layout((4, 4, 8)) == "PG"
    for windows in [(4,), (8, 8), (4, 16, 4), (16, 4, 16, 4)]:
        assert stack_layout(windows) is None
        with pytest.raises(ValueError, match="from_rules|BrickSchedule.full"):
            BrickSchedule.fast(stack(*windows))


def test_rules_hold_between_their_ends():
    schedule = BrickSchedule.from_rules(stack(4, 16, 64), {1: (None, 10.0), 2: (None, 2.0)})
    assert [schedule.bricks_at(sigma) for sigma in (80, 10, 5, 2, 0.1)] == [
        (0,),
        (0, 1),
        (0, 1),
        (0, 1, 2),
        (0, 1, 2),
    ]
    # Schedulers' highest and lowest noise levels are rounded: 79.99999 and 0.0019999.
    assert len(BrickSchedule.from_rules(stack(4, 16), {0: (0.002, 80.0)}).bricks_at(80.000008)) == 2
    assert len(BrickSchedule.from_rules(stack(4, 16), {0: (0.002, 80.0)}).bricks_at(0.00199999)) == 2
    assert BrickSchedule.from_rules(stack(4, 16), {1: None}).bricks_at(1.0) == (0,)


def test_gaps_in_the_stack_need_weights_trained_for_them():
    rules = {0: (1.0, None), 1: (None, 3.0)}
    with pytest.raises(ValueError, match="brick dropout"):
        BrickSchedule.from_rules(stack(4, 16, 64), rules)
    schedule = BrickSchedule.from_rules(stack(4, 16, 64, trained_subsets="any"), rules)
    assert [schedule.bricks_at(sigma) for sigma in (20, 2, 0.5)] == [(0, 2), (0, 1, 2), (1, 2)]
    assert schedule.subnet_at(20) == "0+2"
    with pytest.raises(ValueError, match="brick dropout"):
        schedule.validate(stack(4, 16, 64))
    schedule.validate(stack(4, 16, 64, trained_subsets="any"))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({0: (1.0, None), 1: (1.0, None)}, "no brick at noise level 0.002"),
        ({0: (None, 1.0), 1: (2.0, None)}, "no brick at noise level 1.41"),
        ({0: None, 1: None}, "no brick"),
        ({2: (1.0, 2.0)}, "has 0 to 1"),
        ({"1": (1.0, 2.0)}, "has 0 to 1"),
        ({1: (2.0, 1.0)}, "from 2.0 to 1.0"),
        ({1: (-1.0, 1.0)}, "below 0"),
        ({1: 3.0}, "sigma_low, sigma_high"),
        ({1: ("a", 3.0)}, "`sigma_low` is 'a'"),
        ({1: (float("nan"), 3.0)}, "`sigma_low` is nan"),
        ({1: [(0.1, 1.0), (0.5, 2.0)]}, "0.1 to 1.0, 0.5 to 2.0; the ends must rise"),
        ({1: [(0.1, 1.0), 2.0]}, "a list of such pairs"),
        ([(1.0, 2.0)], "give a dictionary"),
    ],
)
def test_refuses_bad_rules(rules, message):
    with pytest.raises(ValueError, match=message):
        BrickSchedule.from_rules(stack(4, 16, trained_subsets="any"), rules)


def test_a_schedule_that_runs_nothing_at_an_unusual_noise_level_is_refused_when_it_is_met():
    schedule = BrickSchedule.from_rules(stack(4, 16), {0: (0.002, 80.0), 1: (0.002, 80.0)})
    with pytest.raises(ValueError, match="no brick at noise level 500"):
        resolved(schedule, 4, EDMHeunScheduler(sigma_max=500.0))


def test_refuses_another_stack_and_other_models():
    schedule = BrickSchedule.fast(stack(4, 16, 64))
    for other in (stack(64, 16, 4), stack(4, 16)):
        with pytest.raises(ValueError, match="build one for this model"):
            schedule.validate(other)
    with pytest.raises(ValueError, match="need a LegoTransformer2DModel"):
        BrickSchedule.full(SimpleNamespace(config=SimpleNamespace()))
    for t_break in (-0.1, 1.1):
        with pytest.raises(ValueError, match="from 0 to 1"):
            BrickSchedule.fast(stack(4, 16), t_break=t_break)


def test_a_brick_can_run_in_several_ranges():
    schedule = BrickSchedule.from_rules(stack(4, 16), {1: [(None, 0.5), (3.0, 7.0)]})
    assert [len(schedule.bricks_at(sigma)) for sigma in (0.1, 0.5, 1, 3, 7, 20)] == [2, 2, 1, 2, 2, 1]
    assert schedule.to_dict()["rules"][1] == ["sigma", 0.0, 0.5, 3.0, 7.0]
    assert "at noise 0 to 0.5 and at noise 3 to 7" in str(schedule)


@settings(max_examples=60)
@given(st.lists(st.sampled_from([(0,), (1,), (2,), (0, 2), (0, 1, 2)]), min_size=1, max_size=12))
def test_bricks_chosen_level_by_level_come_back_level_by_level(chosen):
    """Whatever runs at each of the sampler's levels, the schedule made of it resolves to just that."""
    scheduler = EDMHeunScheduler()
    scheduler.set_timesteps(len(chosen))
    sigmas = scheduler.sigmas[::2].tolist()[: len(chosen)]
    schedule = BrickSchedule.from_levels(stack(4, 16, 64, trained_subsets="any"), dict(zip(sigmas, chosen)))
    assert BrickSchedule.from_dict(json.loads(json.dumps(schedule.to_dict()))).resolve(scheduler) == chosen
    assert schedule.bricks_at(1e4) == chosen[0] and schedule.bricks_at(1e-5) == chosen[-1]


def test_levels_meet_halfway_in_logarithm():
    schedule = BrickSchedule.from_levels(stack(4, 16), {0.1: [0], 10.0: [0, 1]})
    assert schedule.to_dict()["rules"] == [["always"], ["sigma", 1.0, None]]
    assert BrickSchedule.from_levels(stack(4, 16), {1.0: (0,)}).to_dict()["rules"] == [["always"], ["never"]]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({}, "noise levels above zero"),
        ({0.0: (0,)}, "noise levels above zero"),
        ([(0,)], "noise levels above zero"),
        ({1.0: ()}, "one at least must run"),
        ({1.0: (0, 2)}, "this stack has 0 to 1"),
        ({1.0: (1,)}, "brick dropout"),
    ],
)
def test_refuses_bad_levels(levels, message):
    with pytest.raises(ValueError, match=message):
        BrickSchedule.from_levels(stack(4, 16), levels)


@pytest.mark.parametrize(
    ("scheduler", "expected"), [(EDMHeunScheduler(), 2 * 110 + 2 * 100 + 100), (EDMEulerScheduler(), 110 + 2 * 100)]
)
def test_operations_are_those_of_every_evaluation(scheduler, expected):
    """A step of Heun's evaluates twice, but for the last."""
    model = stack(4, 16)
    model.subnets = lambda height, width: {"0": 100 * height // width, "0+1": 110 * height // width}
    scheduler.set_timesteps(3)
    schedule = BrickSchedule.from_rules(model, {1: (10.0, None)})
    assert schedule.operations(model, scheduler, 8, 8) == expected
    assert schedule.operations(model, scheduler, 16, 8) == 2 * expected


SCHEDULES = [
    BrickSchedule.full(stack(4, 16)),
    BrickSchedule.fast(stack(4, 16)),
    BrickSchedule.fast(stack(16, 4), t_break=0.3),
    BrickSchedule.fast(stack(16, 4), t_break=1),
    BrickSchedule.from_rules(stack(4, 16), {1: (0.5, None)}),
    BrickSchedule.from_rules(stack(4, 16), {1: (0.5, 3.0)}),
    BrickSchedule.from_rules(stack(4, 16), {1: [(None, 0.5), (3.0, 7.0), (20.0, None)]}),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_survives_json(schedule):
    text = json.dumps(schedule.to_dict(), allow_nan=False)
    again = BrickSchedule.from_dict(json.loads(text))
    assert again == schedule and hash(again) == hash(schedule)
    assert resolved(again, 11) == resolved(schedule, 11)


def test_json_is_read_strictly():
    good = BrickSchedule.fast(stack(4, 16)).to_dict()
    for bad, message in [
        (good | {"version": 1}, "exactly the keys"),
        ({"rules": good["rules"]}, "exactly the keys"),
        ("fast", "exactly the keys"),
        (good | {"rules": [["always"]]}, "1 rules for 2 bricks"),
        (good | {"rules": [["always"], ["often"]]}, "A rule is"),
        (good | {"rules": [["always"], ["sigma", 1.0]]}, "A rule is"),
        (good | {"rules": [["always"], ["sigma", 1.0, 2.0, 3.0]]}, "A rule is"),
        (good | {"rules": [["always"], ["sigma", 1.0, None, 3.0, 4.0]]}, "must rise"),
        (good | {"rules": [["always", 0, 1], ["never"]]}, "A rule is"),
        (good | {"rules": [["always"], ["days", 0, 1]]}, "always, never, sigma, steps"),
        (good | {"rules": [["never"], ["never"]]}, "no brick"),
        (good | {"rules": 3}, "`rules` is 3"),
        (good | {"window_sizes": "4,16"}, "`window_sizes`"),
    ]:
        with pytest.raises(ValueError, match=message):
            BrickSchedule.from_dict(bad)


def test_cannot_be_changed():
    schedule = BrickSchedule.full(stack(4, 16))
    with pytest.raises(AttributeError):
        schedule.rules = (BrickRule(), BrickRule(ranges=()))


def test_shows_a_table():
    text = str(BrickSchedule.fast(stack(4, 16, 64), t_break=0.4))
    assert text.splitlines() == [
        "brick  window  runs",
        "0      4       always",
        "1      16      always",
        "2      64      in the first 60% of the steps (high noise)",
    ]
    assert "in the last 60% of the steps (low noise)" in str(BrickSchedule.fast(stack(64, 16, 4), t_break=0.4))
    assert "at noise 0.5 and above" in str(BrickSchedule.from_rules(stack(4, 16), {1: (0.5, None)}))
    assert "at noise 0 to 3" in str(BrickSchedule.from_rules(stack(4, 16), {1: (None, 3)}))
    assert "never" in str(BrickSchedule.from_rules(stack(4, 16), {1: None}))
