"""The search for brick schedules: what it measures, that it finds the best, and what it refuses."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EDMEulerScheduler
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import brickwork
from brickwork import BrickSchedule, LegoPipeline, LegoTransformer2DModel, cli
from brickwork.eval.extractors import features as extractors
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.held_out.subnet_losses import (
    candidate_subnets,
    distinct_levels,
    runs_of,
    sampler_steps,
    subnet_losses,
)
from brickwork.eval.metrics.reference import make_reference
from brickwork.eval.search.frontier import cost_loss_frontier
from brickwork.eval.search.schedule_search import search_brick_schedule, step_weights
from brickwork.eval.sets.pictures import Preparation
from brickwork.gen.networks.transformer import BlockTransformer2DModel
from brickwork.gen.operations import count_operations
from brickwork.gen.parameterization import EDMObjective, EpsilonObjective, FlowObjective, VObjective
from brickwork.gen.subnets import BrickFamily, SubnetFamily, brick_subsets, bricks_of, name_of
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler
from brickwork.pipelines.schedules import SubnetSchedule, named_schedule


def make_lego(seed=0, **config):
    stack = {
        "sample_size": 8, "num_classes": 2, "window_sizes": (2, 4, 8), "patch_sizes": (1, 2, 1),
        "num_layers": (1, 1, 1), "hidden_sizes": 16, "num_attention_heads": 2, "trained_subsets": "any",
    }  # fmt: skip
    torch.manual_seed(seed)
    model = LegoTransformer2DModel(**(stack | config)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model


def make_pairs(*shape, labels=True):
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return PairedSet.from_images(images, torch.arange(shape[0]) % 2 if labels else None)


@pytest.fixture(scope="module")
def model():
    return make_lego()


@pytest.fixture(scope="module")
def search(model):
    return search_brick_schedule(model, make_pairs(5, 3, 8, 8), 0.6, num_inference_steps=4, progress=False)


@pytest.fixture
def pictures(tmp_path):
    """Five labelled pictures, larger than the training size and not square."""
    folder = tmp_path / "held-out"
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for i in range(5):
        Image.fromarray(random.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "label": i % 2}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def test_steps_know_their_evaluations():
    scheduler = EDMHeunScheduler()
    scheduler.set_timesteps(3)
    steps, sigmas = sampler_steps(scheduler), scheduler.sigmas[::2].tolist()
    assert [step.levels for step in steps] == [tuple(sigmas[:2]), tuple(sigmas[1:3]), (sigmas[2],)]
    assert [(step.start, step.end) for step in steps] == list(zip(sigmas[:3], [*sigmas[1:3], 0.0]))
    assert distinct_levels(steps) == sigmas[:3]
    churned = EDMHeunScheduler(s_churn=10.0)
    churned.set_timesteps(3)
    assert len(distinct_levels(sampler_steps(churned))) == 5  # every step begins above where the last one landed
    euler = EDMEulerScheduler()
    euler.set_timesteps(3)
    assert [len(step.levels) for step in sampler_steps(euler)] == [1, 1, 1]


@pytest.mark.parametrize("objective", [EDMObjective(), EpsilonObjective(), FlowObjective()])
def test_every_set_of_bricks_scores_what_paired_loss_says(model, objective):
    """At the levels of the list, whatever an objective counts them in."""
    pairs, subsets = make_pairs(3, 3, 8, 8), list(map(name_of, brick_subsets(3, "any")))
    found = subnet_losses(model, pairs, objective, None, subsets, batch_size=2)
    assert sorted(found) == sorted(subsets)
    for subset in subsets:
        expected = list(paired_loss(model, pairs, objective, subnet=subset)["per_level"].values())
        assert found[subset].shape == (len(pairs.levels), 3)
        assert found[subset].mean(axis=1).tolist() == pytest.approx(expected, rel=1e-5)


def test_runs_cover_every_set_once(model):
    prefixes = list(map(name_of, brick_subsets(3, "prefix")))
    assert runs_of(model, prefixes) == [("0", "0+1", "0+1+2")]
    runs = runs_of(model, map(name_of, brick_subsets(3, "any")))
    assert [run[-1] for run in runs] == ["0+1+2", "0+2", "1+2", "2"]
    assert runs_of({"small": model, "large": model}, ["small", "large"]) == [("large",), ("small",)]


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_the_frontier_is_exact(steps, choices, data):
    costs = np.array(data.draw(st.lists(st.lists(st.integers(1, 30), min_size=choices, max_size=choices),
                                        min_size=steps, max_size=steps)))  # fmt: skip
    losses = np.array(data.draw(st.lists(st.lists(st.integers(0, 50), min_size=choices, max_size=choices),
                                         min_size=steps, max_size=steps)), dtype=float)  # fmt: skip
    frontier = cost_loss_frontier(costs, losses)
    combinations = np.array(list(itertools.product(range(choices), repeat=steps)))
    rows = np.arange(steps)
    all_costs, all_losses = costs[rows, combinations].sum(1), losses[rows, combinations].sum(1)
    for budget in range(int(costs.min(1).sum()), int(costs.max(1).sum()) + 1):
        place = frontier.within(budget)
        assert frontier.losses[place] == all_losses[all_costs <= budget].min()
        chosen = frontier.choices[place]
        assert costs[rows, chosen].sum() == frontier.costs[place] <= budget
        assert losses[rows, chosen].sum() == frontier.losses[place]


def test_too_many_combinations_are_thinned_and_stay_true():
    random = np.random.default_rng(0)
    costs = random.integers(1, 10**6, (12, 4))
    losses = -costs / 10**6 + random.random((12, 4)) * 0.1
    exact, thin = cost_loss_frontier(costs, losses), cost_loss_frontier(costs, losses, max_states=100)
    assert len(exact.costs) > 400 and len(thin.costs) <= 100
    rows, slack = np.arange(12), 12 / 100 * np.ptp(exact.costs)
    for budget in np.linspace(thin.costs[0], exact.costs[-1], 20):
        place = thin.within(budget)
        assert costs[rows, thin.choices[place]].sum() == thin.costs[place] <= budget
        if budget - slack >= exact.costs[0]:
            assert thin.losses[place] <= exact.losses[exact.within(budget - slack)]


def test_the_weights_say_how_far_an_error_moves_a_sample():
    """Gaussian data have F = 0; an error in one step ends where the module's text says."""
    scheduler, sigma_data, error = EDMHeunScheduler(), 0.5, 0.1
    scheduler.set_timesteps(64)
    steps = sampler_steps(scheduler)
    weights = step_weights(steps, EDMObjective(sigma_data=sigma_data), "sampler")
    assert weights.sum() == pytest.approx(1)
    for wrong in (20, 35, 45):
        ends = []
        for size in (0.0, error):
            scheduler.set_timesteps(64)
            sample = torch.full((1, 1, 1, 1), 60.0, dtype=torch.float64)
            for i, timestep in enumerate(scheduler.timesteps):
                output = torch.full_like(sample, size if i // 2 == wrong else 0.0)
                sample = scheduler.step(output, timestep, sample).prev_sample
            ends.append(sample.item())
        angle = weights[wrong] * math.atan(80 / sigma_data)
        assert abs(ends[1] - ends[0]) == pytest.approx(sigma_data * error * angle, rel=0.03)


def test_training_weights_are_the_share_of_training_noise():
    scheduler = EDMHeunScheduler()
    scheduler.set_timesteps(5)
    steps, objective = sampler_steps(scheduler), EDMObjective(p_mean=-0.4, p_std=1.0)
    weights = step_weights(steps, objective, "training")
    normal = torch.distributions.Normal(-0.4, 1.0)
    inner = normal.cdf(torch.tensor(steps[2].start).log()) - normal.cdf(torch.tensor(steps[2].end).log())
    assert weights.sum() == pytest.approx(1) and weights[2] == pytest.approx(float(inner), abs=2e-4)
    with pytest.raises(ValueError, match="`weighting` is 'train'; did you mean 'training'"):
        step_weights(steps, objective, "train")


def test_finds_the_best_of_all_schedules(search):
    """Against every one of the 7⁴ ways to choose, priced and scored by the schedules themselves."""
    scheduler = search.scheduler
    found = []
    for choice in itertools.product(search.subnets, repeat=4):
        score = search._score(choice)
        if score.share <= 0.6:
            found.append((score.loss, choice))
    loss, choice = min(found)
    assert search.score.loss == pytest.approx(loss) and search.score.subnets == choice
    assert search.schedule.subnet_steps(scheduler) == list(choice)
    assert search.score.operations == search.schedule.operations(search.model, scheduler, 8, 8)
    assert search.score_of(BrickSchedule.full(search.model)).share == 1


def test_other_weights_of_the_same_measurement(search):
    last = np.eye(4)[3]  # the last step alone, one evaluation at the lowest level
    score = search.reweighted(last).score_of(BrickSchedule.full(search.model))
    assert score.loss == pytest.approx(search.losses["0+1+2"][-1].mean())
    assert step_weights(search.steps, EDMObjective(), "even").tolist() == [0.25] * 4


def test_random_schedules_can_be_drawn_again(search):
    drawn = search.random_schedules(6, seed=1)
    assert drawn == search.random_schedules(6, seed=1) != search.random_schedules(6, seed=2)
    bricks = {search.score_of(schedule).subnets for schedule in drawn.values()}
    assert len(bricks) == 6 and search.score_of(BrickSchedule.full(search.model)).subnets not in bricks


def test_no_more_random_schedules_than_there_are(model):
    exits = search_brick_schedule(model, make_pairs(2, 3, 8, 8), 0.6, num_inference_steps=2, progress=False)
    drawn = exits.random_schedules(60)
    assert len({exits.score_of(schedule).subnets for schedule in drawn.values()}) == len(drawn) == 7 * 7 - 1


@pytest.mark.parametrize("budget", [0.15, 0.5, 0.8, 1.0])
def test_keeps_within_other_budgets_and_gets_no_worse_with_more(search, budget):
    score = search.score_of(search.best(budget))
    assert score.share <= budget
    assert score.loss <= search.score_of(search.best(0.12)).loss


def test_counted_operations_are_those_of_the_pipeline(model, search):
    pipe = LegoPipeline(model, EDMHeunScheduler())
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 4, "brick_schedule": search.schedule, "class_labels": [1]}
    counted, result = count_operations(lambda: pipe(**arguments))
    assert counted == search.score.operations and tuple(map(name_of, result.bricks)) == search.score.subnets
    assert count_operations(lambda: pipe(**arguments, guidance_scale=2.0))[0] == 2 * counted
    wide = search_brick_schedule(
        model, make_pairs(1, 3, 8, 8), 0.6, width=19, num_inference_steps=2, num_pairs=1, progress=False
    )
    arguments |= {"num_inference_steps": 2, "brick_schedule": wide.schedule}
    assert count_operations(lambda: pipe(**arguments, width=19))[0] == wide.score.operations


def test_without_brick_dropout_only_early_exits():
    exits = search_brick_schedule(
        make_lego(trained_subsets="prefix"), make_pairs(3, 3, 8, 8), 0.6, num_inference_steps=4, progress=False
    )
    assert exits.subnets == ["0", "0+1", "0+1+2"]
    assert set(exits.score.subnets) <= {"0", "0+1", "0+1+2"}


def test_the_schedule_is_saved_with_a_pipeline(model, search, tmp_path):
    pipe = LegoPipeline(model, EDMHeunScheduler(), brick_schedule=search.schedule)
    pipe.save_pretrained(tmp_path / "pipe")
    again = brickwork.LegoPipeline.from_pretrained(tmp_path / "pipe")
    assert again.brick_schedule == search.schedule
    again.set_progress_bar_config(disable=True)
    assert tuple(map(name_of, again(class_labels=[0], num_inference_steps=4).bricks)) == search.score.subnets


def test_pictures_are_brought_to_the_training_size(model, pictures):
    pipe = LegoPipeline(model, EDMHeunScheduler())
    found = search_brick_schedule(pipe, pictures, 0.6, num_inference_steps=2, num_pairs=7, progress=False)
    assert found.num_images == 5 and found.losses["0"].shape == (2, 7)
    assert not np.allclose(found.losses["0"][:, 0], found.losses["0"][:, 5])  # one picture, another noise
    few = search_brick_schedule(pipe, str(pictures), 0.6, num_inference_steps=2, num_pairs=2, progress=False)
    assert few.num_images == 2


def test_latent_models_are_scored_on_latents(pictures):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=2, scaling_factor=0.4,
    )  # fmt: skip
    pipe = LegoPipeline(make_lego(sample_size=4, in_channels=4), EDMHeunScheduler(), vae.eval())
    found = search_brick_schedule(pipe, pictures, 0.6, num_inference_steps=2, num_pairs=3, progress=False)
    assert found.settings["height"] == 8 and found.losses["0"].shape == (2, 3)
    with pytest.raises(ValueError, match="reads 4 channels; pass the pipeline"):
        search_brick_schedule(pipe.transformer, pictures, 0.6)
    with pytest.raises(ValueError, match="`width` is 9; .* multiple of the VAE's 2"):
        search_brick_schedule(pipe, pictures, 0.6, width=9)


def test_tall_stacks_are_searched_for_sets_worth_scoring():
    """Ten bricks, each worth something at some noise levels; the sets scored contain almost the best."""
    random = np.random.default_rng(0)
    worth, costs = random.random((6, 10)) ** 3, random.integers(1, 9, 10)
    trained, asked = brick_subsets(10, "any"), []

    def loss(subset):
        return np.array([1 - 0.95 * (1 - np.prod(1 - level[list(subset)])) for level in worth])

    def score(subsets):
        asked.extend(subsets)
        return {name: loss(bricks_of(name)) for name in subsets}

    def cost(subset):
        return int(costs[list(subset)].sum())

    costs_of = {name_of(subset): cost(subset) for subset in trained}
    names = candidate_subnets(costs_of, 120, score, BrickFamily())
    assert sorted(asked) == names and len(set(asked)) == len(asked) <= 120
    chosen = list(map(bricks_of, names))
    assert {(0,), (9,), (0, 1), tuple(range(10))} <= set(chosen)

    def best(subsets):
        frontier = cost_loss_frontier(
            np.array([[cost(s) for s in subsets]] * 6), np.stack([loss(s) for s in subsets], axis=1)
        )
        return frontier.losses[frontier.within(0.5 * 6 * costs.sum())]

    exits = [subset for subset in chosen if subset == tuple(range(len(subset)))]
    assert best(trained) <= best(chosen) <= best(trained) + 0.1 * (best(exits) - best(trained))
    few = dict(list(costs_of.items())[:5])
    assert candidate_subnets(few, 120, score, BrickFamily()) == list(few)


def test_a_limit_is_kept_in_a_real_search():
    found = search_brick_schedule(
        make_lego(), make_pairs(2, 3, 8, 8), 0.7, num_inference_steps=2, max_subnets=5, progress=False
    )
    assert "0+1+2" in found.subnets and not found.settings["all_subnets"]
    with pytest.raises(ValueError, match="did not score"):
        missing = next(subset for subset in brick_subsets(3, "any") if name_of(subset) not in found.subnets)
        found.score_of(BrickSchedule.from_levels(found.model, {1.0: missing}))


def make_plain(seed, layers, **config):
    torch.manual_seed(seed)
    model = BlockTransformer2DModel(
        in_channels=3, num_classes=2, sample_size=8, hidden_size=16, num_layers=layers, attention_head_dim=8, **config
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


class Exits(BlockTransformer2DModel):
    """A network with as many subnets as there are layers to leave out."""

    def subnets(self, height, width):
        whole = super().subnets(height, width)["full"]
        return {f"exit-{n}": whole * n // len(self.blocks) for n in range(1, len(self.blocks))} | {"full": whole}

    def forward(self, sample, timestep, class_labels=None, return_dict=True, subnet=None):
        output = super().forward(sample, timestep, class_labels=class_labels).sample
        kept = 1.0 if subnet in (None, "full") else int(subnet[5:]) / len(self.blocks)
        return Transformer2DModelOutput(kept * output) if return_dict else (kept * output,)


def test_any_network_with_subnets_is_searched():
    torch.manual_seed(0)
    network = Exits(
        in_channels=3, num_classes=2, sample_size=8, hidden_size=16, num_layers=4, attention_head_dim=8
    ).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipe = ClassToImagePipeline(network, EDMHeunScheduler())
    pipe.set_progress_bar_config(disable=True)
    found = search_brick_schedule(pipe, make_pairs(4, 3, 8, 8), 0.6, num_inference_steps=4, progress=False)
    assert found.subnets == ["exit-1", "exit-2", "exit-3", "full"] and isinstance(found.schedule, SubnetSchedule)
    losses = {name: values.mean(axis=1) for name, values in found.losses.items()}
    assert len({round(float(values[0]), 6) for values in losses.values()}) == 4
    best = min(
        (found._score(choice) for choice in itertools.product(found.subnets, repeat=4)),
        key=lambda score: score.loss if score.share <= 0.6 else math.inf,
    )
    assert found.score.loss == pytest.approx(best.loss) and found.score.share <= 0.6
    assert set(found.compared()) == {"full", "only exit-1", "only exit-2", "only exit-3"}
    pipe.schedule = found.schedule
    seen = []
    forward = network.forward
    network.forward = lambda *args, subnet=None, **kwargs: (
        seen.append(subnet) or forward(*args, subnet=subnet, **kwargs)
    )
    pipe(0, num_inference_steps=4)
    assert seen[::2] == list(found.score.subnets)
    assert found.plot and "exit-1" in found.table()


@pytest.mark.parametrize("objective", [EpsilonObjective(), VObjective(), FlowObjective(shift=2.0)])
def test_pipelines_of_other_objectives_are_searched(objective):
    small, large = make_plain(0, 1), make_plain(1, 3)
    pairs, scheduler = make_pairs(4, 3, 8, 8), objective.scheduler()
    found = search_brick_schedule(
        {"small": small, "full": large}, pairs, 0.7, num_inference_steps=4, progress=False, scheduler=scheduler
    )
    pipe = ClassToImagePipeline(large, scheduler)
    pipe.set_progress_bar_config(disable=True)
    told = []
    for network in (small, large):
        network.register_forward_pre_hook(
            lambda module, inputs, network=network: told.append((network is large, float(inputs[1][0])))
        )
    pipe(0, num_inference_steps=4, subnet_schedule=found.schedule, networks={"small": small})
    assert [is_large for is_large, _ in told] == [name == "full" for name in found.score.subnets]
    # What is scored at the noise of a step is what the sampler asks the network there, to the nearest timestep.
    levels = objective.level_of(torch.tensor([step.levels[0] for step in found.steps]))
    asked = [timestep for _, timestep in told]
    assert objective.network_inputs(torch.zeros(4, 1), torch.zeros(4, 1), levels)[1].tolist() == pytest.approx(asked)
    noise = pairs.noise(0, 0, 4)
    sample, timestep = objective.network_inputs(pairs.images, noise, levels[:1].expand(4))
    estimate = large(sample, timestep, class_labels=pairs.labels).sample
    expected = objective.losses(estimate, pairs.images, noise, levels[:1].expand(4)).detach()
    assert np.allclose(found.losses["full"][0], expected, rtol=1e-4)
    for weighting in ("training", "even"):
        assert step_weights(found.steps, objective, weighting).sum() == pytest.approx(1)


@pytest.mark.parametrize("objective", [EDMObjective(), EpsilonObjective(), VObjective(), FlowObjective()])
def test_weights_of_every_objective_say_how_far_an_error_moves_a_sample(objective):
    """Gaussian data, whose exact estimate is linear: the ends of two exact paths, one with an error over a step."""
    flow = isinstance(objective, FlowObjective)
    levels = (np.linspace(0.999, 0.001, 3000) if flow else np.geomspace(60, 0.004, 3000)).tolist()

    def end(error):
        x, trace = 0.3, 0.25
        for level, below in zip(levels, levels[1:]):
            off = error * (below < levels[1200]) * (level > levels[1800])
            if flow:
                slope = x * (level - (1 - level) * trace) / (trace * (1 - level) ** 2 + level**2) + off
            elif isinstance(objective, EDMObjective):
                denoised = trace / (trace + level**2) * x + level * 0.5 / (trace + level**2) ** 0.5 * off
                slope = (x - denoised) / level
            else:
                scale = (1 + level**2) ** -0.5 if isinstance(objective, VObjective) else 1.0
                slope = x * level / (trace + level**2) + scale * off
            x = x + slope * (below - level)
        return x

    moved = abs(end(1e-4) - end(0.0)) / 1e-4
    points = torch.linspace(levels[1800], levels[1200], 2001, dtype=torch.float64)
    assert float(torch.trapezoid(objective.displacement(points), points)) == pytest.approx(moved, rel=0.02)


def test_several_networks_are_searched_as_subnets():
    small, large = make_plain(0, 1), make_plain(1, 3)
    pairs = make_pairs(3, 3, 8, 8)
    networks = {"full": large, "small": small}
    found = search_brick_schedule(networks, pairs, 0.7, num_inference_steps=3, progress=False)
    assert found.subnets == ["small", "full"]
    sigmas = found.levels
    alone = subnet_losses(small, pairs, EDMObjective(), sigmas, ["full"])["full"]
    assert np.allclose(found.losses["small"], alone)
    pipe = ClassToImagePipeline(large, EDMHeunScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe(0, num_inference_steps=3, subnet_schedule=found.schedule, networks={"small": small})


def test_a_network_without_subnets_has_only_itself():
    plain = make_plain(0, 1)
    found = search_brick_schedule(plain, make_pairs(2, 3, 8, 8), 1.0, num_inference_steps=2, progress=False)
    assert found.schedule == SubnetSchedule.full(plain)
    with pytest.raises(ValueError, match="cheapest schedule, subnet full in every step, takes 1.000"):
        search_brick_schedule(plain, make_pairs(2, 3, 8, 8), 0.5, num_inference_steps=2, progress=False)


def test_many_subnets_of_other_kinds_are_searched_from_even_costs():
    costs, asked = {f"stitch-{n}": n for n in range(1, 101)}, []

    def score(names):
        asked.extend(names)
        return {name: np.array([1 / costs[name] + 0.001 * (costs[name] % 3)]) for name in names}

    chosen = candidate_subnets(costs, 20, score, SubnetFamily())
    assert sorted(asked) == chosen and len(set(asked)) == 20
    numbers = sorted(costs[name] for name in chosen)
    assert numbers[0] == 1 and numbers[-1] == 100
    assert min(b - a for a, b in zip(numbers, numbers[1:])) == 1  # neighbours of those on the hull


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0}, "`budget` is 0; give a share"),
        ({"budget": 1.1}, "`budget` is 1.1; give a share"),
        ({"budget": float("nan")}, "`budget` is nan"),
        ({"budget": "half"}, "`budget` is 'half'"),
        ({"budget": 0.05}, r"cheapest schedule, subnet 1 in every step, takes 0.110 .* give at least 0.111"),
        ({"data": make_pairs(2, 3, 8, 9)}, r"shape \(2, 3, 8, 9\); .* \(N, 3, 8, 8\)"),
        ({"data": make_pairs(2, 4, 8, 8)}, r"shape \(2, 4, 8, 8\)"),
        ({"data": make_pairs(2, 3, 8, 8, labels=False)}, "no labels; give each image the number of its class, 0 to 1"),
        ({"data": PairedSet.from_images(torch.zeros(1, 3, 8, 8), torch.tensor([3]))}, "labels from 3 to 3"),
        ({"data": "no/such/folder"}, "'no/such/folder', which is not there"),
        ({"height": 0}, "`height` is 0; give a whole number of pixels from 2 up"),
        ({"scheduler": DDIMScheduler(prediction_type="sample")}, "prediction_type 'sample', .* one of the EDM family"),
        ({"weighting": "evn"}, "`weighting` is 'evn'; did you mean 'even'"),
        ({"model": torch.nn.Linear(1, 1)}, "`model` is a Linear; give a pipeline or a network with subnets"),
    ],
)
def test_refuses_bad_input(model, change, message):
    arguments = {"model": model, "data": make_pairs(2, 3, 8, 8), "num_inference_steps": 2, "progress": False} | change
    with pytest.raises(ValueError, match=message):
        search_brick_schedule(**arguments)


def test_refuses_pictures_without_labels_or_below_the_size(model, pictures):
    metadata = pictures / "metadata.jsonl"
    text = metadata.read_text()
    metadata.write_text(text.replace('"label": 1', '"label": 7'))
    with pytest.raises(ValueError, match="`class_labels` has 7; allowed are 0 to 1"):
        search_brick_schedule(model, pictures, 0.6)
    metadata.unlink()
    with pytest.raises(ValueError, match="has no labels, but the network has 2 classes.*data split"):
        search_brick_schedule(model, pictures, 0.6)
    metadata.write_text(text)
    Image.new("RGB", (7, 9)).save(pictures / "0.png")
    with pytest.raises(ValueError, match=r"1 \(0.png 7x9\) of 5 .* smaller than the training size, 8x8"):
        search_brick_schedule(model, pictures, 0.6)


def test_a_single_picture_has_no_error_but_a_schedule(model, pictures, tmp_path, capsys):
    LegoPipeline(model, EDMHeunScheduler()).save_pretrained(tmp_path / "pipe")
    arguments = ["search", str(tmp_path / "pipe"), str(pictures), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*arguments, "--steps", "2", "--pairs", "1"]) == 0
    assert "±" not in capsys.readouterr().out
    stored = json.loads((tmp_path / "out" / "search.json").read_text())
    assert {score["error"] for score in stored["schedules"].values()} == {None}


def test_the_command_writes_schedules_plot_and_results_for_the_report(
    model, pictures, extractor, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(extractors, "load_extractor", lambda name: extractor)
    make_reference(pictures, extractor, "clean", Preparation(8), progress=False).save(tmp_path / "r.safetensors")
    LegoPipeline(model, EDMHeunScheduler()).save_pretrained(tmp_path / "pipe")
    output = tmp_path / "search"
    arguments = ["search", str(tmp_path / "pipe"), str(pictures), "-o", str(output), "--device", "cpu"]
    arguments += ["--steps", "2", "--pairs", "2", "-n", "2", "--reference", str(tmp_path / "r.safetensors")]
    assert cli.main([*arguments, "--budget", "0.7", "0.5", "--random", "2"]) == 0
    table = capsys.readouterr().out
    assert "searched 0.5" in table and "searched 0.7" in table and "only 0" in table
    stored = json.loads((output / "search.json").read_text())
    assert stored["schedules"]["searched 0.5"]["share"] <= 0.5 and len(stored["levels"]) == 2
    assert set(stored["metric"]["values"]) == set(stored["schedules"]) >= {"random 0", "random 1"}
    assert set(stored["metric"]["rank_correlation"]) == {"sampler", "training", "even"}
    assert "rank correlation of loss and KD-Small, 2 samples over 12 schedules: sampler " in table
    schedule = named_schedule(str(output / "schedule-0.5.json"), model)
    assert schedule.to_dict() == stored["schedule"]
    with Image.open(output / "search.png") as plot:
        assert plot.width > 800  # two panels
    results = sorted(output.glob("results/*.json"))
    assert len(results) == len(stored["schedules"])
    assert cli.main(["report", *map(str, results), "-o", str(tmp_path / "report")]) == 0
    assert "Metrics over share" in (tmp_path / "report" / "index.html").read_text()
    assert cli.main([*arguments, "--budget", "0.7"]) == 2
    assert "search.json', which is there already; name another, or add --overwrite" in capsys.readouterr().err
    for budget, message in (("0.05", "give at least"), ("1.2", "`--budget` is 1.2; give a share")):
        assert cli.main([*arguments, "--budget", budget, "--overwrite"]) == 2
        assert message in capsys.readouterr().err
