"""The benchmark on tiny networks: what it counts, compares and writes; never how long anything takes."""

import json

import pytest
import torch

from brickwork.cli import main
from brickwork.eval.benchmark import energy, startup
from brickwork.eval.benchmark import networks as benchmark_networks
from brickwork.eval.benchmark import suites as benchmark_suites
from brickwork.eval.benchmark import timing as benchmark_timing
from brickwork.eval.benchmark.compression import bench_compression
from brickwork.eval.benchmark.convolutions import DenseBlock, bench_convolutions, of_equal_size
from brickwork.eval.benchmark.costs import MovedBytes, bench_costs, traffic
from brickwork.eval.benchmark.memory import TensorBytes, derive_memory
from brickwork.eval.benchmark.networks import DIT, OURS, PLAIN, UNET, forward_of, step_of, subjects
from brickwork.eval.benchmark.reference import PlainLego
from brickwork.eval.benchmark.suites import Settings
from brickwork.eval.benchmark.tables import marks, memory_table, suite_text
from brickwork.eval.benchmark.timing import Case, Spread, fit_exponent, interleave
from brickwork.eval.commands import benchmark
from brickwork.gen.blocks.osa import OSABlock
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.operations import count_operations
from brickwork.gen.presets import LEGO_PRESETS, UNET_PRESETS
from brickwork.pipelines.schedules import BrickSchedule, schedule_from_file

TINY = {
    "sample_size": 16, "window_sizes": (4, 16), "patch_sizes": (2, 4), "num_layers": (1, 2), "hidden_sizes": 16,
    "num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_probe(monkeypatch):
    monkeypatch.setitem(benchmark_timing.PROBE_SIDE, "cpu", 32)


@pytest.fixture
def tiny(monkeypatch):
    """A preset small enough for tests."""
    monkeypatch.setitem(LEGO_PRESETS, "lego-tiny", TINY)
    monkeypatch.setitem(benchmark_networks.PRESETS, "lego-tiny", TINY)
    return "lego-tiny"


@pytest.fixture
def random_lego():
    torch.manual_seed(0)
    model = LegoTransformer2DModel(**TINY, num_classes=5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("batch, height, width", [(1, 16, 16), (3, 16, 32)])
def test_plain_reference_is_the_same_network(random_lego, batch, height, width):
    plain = PlainLego(random_lego)
    sample, timestep = torch.randn(batch, 3, height, width), torch.randn(batch)
    labels = torch.arange(batch) % 6
    ours = random_lego(sample, timestep, labels, return_intermediates=True).intermediates
    reference = plain(sample, timestep, labels)
    assert len(ours) == len(reference) == 2
    for a, b in zip(ours, reference):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_plain_reference_modulates_once_a_window(random_lego):
    """What makes it plain, in operations: its modulation runs for every window, ours once an image."""
    sample, timestep = torch.randn(2, 3, 16, 16), torch.randn(2)
    ours, _ = count_operations(lambda: random_lego(sample, timestep))
    plain, _ = count_operations(lambda: PlainLego(random_lego)(sample, timestep))
    windows = {0: 16, 1: 1}
    extra = sum(
        2 * 2 * (windows[number] - 1) * layer.linear.weight.numel()
        for number, brick in enumerate(random_lego.bricks)
        for layer in [brick.final_modulation, *(block.modulation for block in brick.blocks)]
    )
    assert plain - ours == extra > 0


def test_counted_operations_are_those_of_the_network(random_lego):
    counted, _ = count_operations(lambda: random_lego(torch.randn(3, 3, 16, 16), torch.randn(3), torch.arange(3)))
    assert counted == 3 * random_lego.subnets(16, 16)["0+1"]


def test_peers_are_of_like_size(tiny):
    found = subjects(tiny)
    assert list(found) == [OURS, PLAIN, DIT, UNET]
    networks = {name: subject.build() for name, subject in found.items()}
    assert len(networks[DIT].transformer_blocks) == 3 and networks[DIT].config.patch_size == 2
    for name, subject in found.items():
        estimates = forward_of(subject, networks[name], Settings(batch=2))()
        assert all(estimate.shape == (2, 3, 16, 16) and estimate.abs().max() > 0 for estimate in estimates), name


def test_unet_has_about_as_many_parameters():
    found = subjects("lego-s-pg-64")
    with torch.device("meta"):
        ours, unet = (sum(p.numel() for p in found[name].build().parameters()) for name in (OURS, UNET))
    assert 0.7 < unet / ours < 1.4


def test_reference_is_left_out_where_windows_do_not_divide(tiny):
    assert PLAIN not in subjects(tiny, size=24)


def test_step_gives_every_parameter_a_gradient(tiny):
    for name, subject in subjects(tiny).items():
        network = subject.build().train()
        step_of(subject, network, Settings(batch=2))()
        without = [key for key, p in network.named_parameters() if p.grad is None and "embedding_table" not in key]
        assert not without, name


class Clock:
    """Hands out times given in advance, in the order in which cases run."""

    def __init__(self, seconds):
        self.seconds, self.ran = iter(seconds), []

    def __call__(self, function):
        function()
        return next(self.seconds)


def test_cases_run_in_turn_and_are_compared_within_a_round():
    ran = []
    cases = [
        Case("g", name, lambda n=name: ran.append(n), count, lambda: 10.0) for name, count in (("a", 20), ("b", 80))
    ]
    # The machine is twice as slow in the second round: ratios do not see it.
    timings = interleave(cases, 2, Clock([9, 9, 1, 3, 2, 6]))
    assert ran == ["a", "b"] * 3
    assert timings.seconds == [[1, 2], [3, 6]]
    assert timings.ratio(1, 0) == Spread(3, 3, 3)
    assert timings.ratio(1, 0, per_operation=True) == Spread(0.75, 0.75, 0.75)
    assert timings.fraction_of(0) == Spread(1.5, 1.25, 1.75)
    assert timings.number_of("g", "b") == 1 and timings.number_of("g", "c") is None


def test_spread_is_median_and_quartiles():
    assert Spread.of([4, 1, 2, 3, 5]) == Spread(3, 2, 4)


def test_exponent():
    sizes = [1, 4, 16]
    assert fit_exponent(sizes, [[size**1.5, 3 * size**1.5] for size in sizes]).median == pytest.approx(1.5)


def test_tensor_bytes_follow_what_is_alive():
    with TensorBytes() as counted:
        first = torch.zeros(1000)
        view = first.view(10, 100)
        assert (counted.now, counted.peak) == (4000, 4000)
        second = first + 1
        del first, view
        assert (counted.now, counted.peak) == (4000, 8000)
        del second
    assert counted.now == 0


def test_derived_memory_counts_weights_gradients_averages_and_activations():
    def make_step():
        layer = torch.nn.Linear(100, 200, bias=False)
        sample = torch.zeros(50, 100)
        return layer, lambda: layer(sample).square().sum().backward()

    derived = derive_memory(make_step)
    weights = 4 * 100 * 200
    assert derived["weights"] == weights and derived["optimizer"] == 2 * weights
    # Weights, averages, gradient; the sample; the output, its gradient, and that of its square at the most.
    least = 4 * weights + 4 * 50 * (100 + 200)
    assert least <= derived["peak"] <= least + 3 * 4 * 50 * 200 + 100


def test_ours_keeps_less_than_the_reference(tiny):
    settings = Settings(batch=4)
    peaks = {}
    for name in (OURS, PLAIN):
        row = benchmark_suites.memory_of(tiny, subjects(tiny)[name], settings, measured=False)
        assert row["measured"] is None
        peaks[name] = row["derived"]["peak"] - row["derived"]["weights"] - row["derived"]["optimizer"]
    assert peaks[OURS] < 0.75 * peaks[PLAIN]


def test_memory_is_measured_in_a_process_of_its_own():
    subject = subjects("lego-avatars-64", peers=False)[OURS]
    row = benchmark_suites.memory_of("lego-avatars-64", subject, Settings(batch=4), measured=True)
    derived, measured = row["derived"]["peak"], row["measured"]["peak"]
    assert 0.7 * derived < measured < 2 * derived
    assert f"{measured / 2**30:.2f}" in memory_table([row])


def test_command_writes_json_table_and_plot(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_suites, "measure_in_child", lambda specification: {"peak": 2**30, "baseline": 0})
    out = tmp_path / "out"
    assert run_command([tiny, "--batch", "2", "--rounds", "2", "--threads", "1", "-o", str(out)]) == 0
    result = json.loads((out / "benchmark.json").read_text())
    assert result["format"] == benchmark.FORMAT and result["settings"]["batch"] == 2
    suite = result["suites"][tiny]
    cases = {(row["group"], row["case"]) for row in suite["rows"]}
    assert {
        (group, name) for group in ("forward", "training step", "sampling") for name in (OURS, PLAIN, DIT, UNET)
    } <= cases
    assert ("sampling", "ours, fast schedule") in cases
    rows = {(row["group"], row["case"]): row for row in suite["rows"]}
    model = LegoTransformer2DModel(**TINY, num_classes=10)
    assert rows["forward", OURS]["operations"] == 2 * model.subnets(16, 16)["0+1"]
    assert all(len(row["seconds"]) == len(row["machine_rate"]) >= 2 for row in suite["rows"])
    assert {row["case"] for row in suite["memory"]} == {OURS, PLAIN, DIT, UNET}
    assert {entry["met"] for entry in result["marks"]} <= {True, False} and len(result["marks"]) >= 5
    assert (out / "benchmark.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "plain reference" in printed and "mark" in printed
    assert (out / "benchmark.txt").read_text().strip() in printed + "\n" or "== lego-tiny" in printed
    assert sorted(path.name for path in out.iterdir()) == ["benchmark.json", "benchmark.png", "benchmark.txt"]


def run_command(words):
    """`brickwork benchmark` with the words."""
    return main(["benchmark", *words])


def test_scaling_finds_an_exponent_for_every_block():
    suite = benchmark_suites.bench_scaling(Settings(rounds=1), sides=(8, 16))
    assert set(suite["exponents"]) == {"dit", "i2rmb", "maxvit"} and len(suite["rows"]) == 6
    small, large = (row["operations"] for row in suite["rows"][:2])
    assert 3.9 < large / small < 4.1  # operations are linear in pixels, but for the modulation
    assert marks({"scaling": suite})[0]["wanted"] == "about 1"


def test_what_moves_is_what_operations_read_and_write():
    left, right = torch.zeros(10, 20), torch.zeros(20, 30)
    with MovedBytes() as moved:
        product = left @ right
        assert moved.total == 4 * (200 + 600 + 300)
        product.view(30, 10).transpose(0, 1)[:5]
        assert moved.total == 4 * 1100
        product.add_(1.0)
    assert moved.total >= 4 * (1100 + 600)


def test_energy_is_power_by_time_of_a_call(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(energy.time, "perf_counter", lambda: clock[0])

    def call():
        clock[0] += 0.25

    assert energy.joules(call, lambda: 200.0, lambda: None) == pytest.approx(50)
    assert energy.joules_of(lambda: None, torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 300_000)
    assert energy.power_reader(torch.device("cuda"))() == 300

    def no_meter(device):
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "power_draw", no_meter)
    assert energy.power_reader(torch.device("cuda")) is None


def test_weights_are_not_among_what_a_pass_keeps_alive():
    def prepare():
        layer, sample = torch.nn.Linear(100, 50), torch.zeros(2, 100)
        return lambda: layer(sample)

    moved, alive = traffic(prepare)
    assert alive == 4 * 2 * 50 and moved >= 4 * (100 * 50 + 50 + 2 * 100 + 2 * 50)


def test_costs_of_networks_beside_the_first(monkeypatch):
    tiny = {"block_types": "resnet", "block_out_channels": (32, 32), "layers_per_block": 1, "time_embed_dim": 16}
    for name, block in (("tiny-a", "resnet"), ("tiny-b", "osa")):
        monkeypatch.setitem(UNET_PRESETS, name, tiny | {"block_types": block})
    suite = bench_costs(Settings(batch=2, rounds=1, size=16), ("tiny-a", "tiny-b"))
    assert [row["case"] for row in suite["rows"]] == ["tiny-a", "tiny-b"]
    for name, parameters in suite["parameters"].items():
        assert suite["traffic"][name]["moved"] > 4 * parameters and suite["traffic"][name]["peak"] > 0
    assert "GB moved" in suite_text("costs", suite)


def test_aggregations_of_equal_size_and_layouts(monkeypatch):
    tiny = {"block_types": "resnet", "block_out_channels": (32, 32), "layers_per_block": 1, "time_embed_dim": 16}
    monkeypatch.setitem(UNET_PRESETS, "tiny-a", tiny)
    suite = bench_convolutions(Settings(batch=2, rounds=1, size=16), ("tiny-a",), channels=64, side=8)
    assert [(row["group"], row["case"]) for row in suite["rows"]] == [
        ("aggregation", "residual"), ("aggregation", "one-shot"), ("aggregation", "dense"), ("tiny-a", "as it is"),
        ("tiny-a", "channels last"),
    ]  # fmt: skip
    operations = {row["case"]: row["operations"] for row in suite["rows"][:3]}
    assert max(operations.values()) < 1.25 * min(operations.values())
    assert suite["moved"]["dense"][0] > suite["moved"]["one-shot"][0] > suite["moved"]["residual"][0]
    blocks = of_equal_size(64)
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks.values()]
    assert max(sizes) < 1.05 * min(sizes)
    # With the weights of maps that it reads besides at zero, a dense block is one-shot aggregation.
    one, dense = OSABlock(8, 4, mid_ratio=0.5, num_convs=3), DenseBlock(8, 4, mid_ratio=0.5, num_convs=3)
    for parameter in one.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = one.state_dict()
    for number, conv in enumerate(dense.convs):
        key, weight = f"convs.{number}.conv.weight", torch.zeros_like(conv.conv.weight)
        weight[:, -state[key].shape[1] :] = state[key]
        state[key] = weight
    dense.load_state_dict(state)
    maps, condition = torch.randn(2, 8, 5, 6), torch.randn(2, 4)
    torch.testing.assert_close(dense(maps, condition), one(maps, condition))


def test_compressed_keys_and_values_are_compared_within_a_size():
    suite = bench_compression(Settings(rounds=1), sides=(64, 128))
    counts = {(row["group"], row["case"]): row["operations"] for row in suite["rows"]}
    assert list(counts)[:4] == [("64 px", f"ratio {r}") for r in (1, 2, 4)] + [("64 px", "no self-attention")]
    for size in ("64 px", "128 px"):
        falling = [count for (group, _), count in counts.items() if group == size]
        assert falling == sorted(falling, reverse=True) and len(set(falling)) == 4
    assert "128 px: ratio 4" in suite_text("kv-compression", suite)
    assert suite["training_peaks"]["128 px, ratio 2"] < suite["training_peaks"]["128 px, ratio 1"]


def test_where_shares_add_up(tiny):
    suite = benchmark_suites.bench_where(Settings(batch=2), tiny)
    assert list(suite["shares"])[:2] == ["forward, batch 1", "forward, batch 2"]
    assert all(sum(shares.values()) == pytest.approx(1) for shares in suite["shares"].values())
    assert suite["sampler"]["evaluations"] == 7 and 0 < suite["sampler"]["seconds_in_network"]
    assert "outside the network" in suite_text("where", suite)


def test_schedules_count_what_runs(tmp_path):
    from brickwork.eval.sampling.pipelines import load_lego_pipeline

    network = load_lego_pipeline("lego-avatars-64", "cpu").transformer
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps({"schedule": BrickSchedule.fast(network, 1.0).to_dict()}))
    suite = benchmark_suites.bench_schedules(Settings(batch=1, rounds=1, steps=4, size=16, schedule=str(path)))
    counts = {row["case"]: row["operations"] for row in suite["rows"]}
    costs = network.subnets(16, 16)
    assert counts["full"] == 7 * costs["0+1"] and counts["searched"] == 7 * costs["0"]
    assert counts["fast 0.5"] == 4 * costs["0"] + 3 * costs["0+1"]  # the early steps, of high noise, without the last
    assert suite["losses"] is None
    wanted = {entry["what"].split(", ")[1]: entry["met"] for entry in marks({"schedules": suite})}
    assert set(wanted) == {"fast 0.5 to full", "fast 0.65 to full", "searched to full"}


def test_startup_counts_a_process_and_all_beyond_the_first(monkeypatch):
    seconds = iter([3.0, 0.25, 6.0, 18.0, 3.0, 0.25, 8.0, 20.0])
    monkeypatch.setattr(startup, "processor_seconds", lambda *arguments: next(seconds))
    chosen = {startup.BASE: [], startup.HELP: [], startup.PICTURE: [], startup.FIRST: []}
    suite = startup.bench_startup(Settings(rounds=2), chosen)
    assert suite["beyond"][startup.PICTURE] == [3.0, 5.0] and suite["seconds"][startup.HELP] == [0.25, 0.25]
    assert [(entry["measured"], entry["met"]) for entry in suite["marks"]] == [
        (0.25, True), (4.0, True), (12.0, False),
    ]  # fmt: skip
    assert startup.PICTURE in suite_text("startup", suite)


def test_processor_seconds_are_those_of_a_fresh_process():
    assert startup.processor_seconds(["-c", "sum(range(10**6))"]) > 0
    with pytest.raises(ValueError, match="failed: NameError"):
        startup.processor_seconds(["-c", "missing"])


def test_a_bare_schedule_is_read_too(tmp_path):
    schedule = {"window_sizes": [64, 8], "rules": [["always"], ["steps", 0.5, 1.0]]}
    (tmp_path / "s.json").write_text(json.dumps(schedule))
    assert schedule_from_file(str(tmp_path / "s.json")).to_dict() == schedule


@pytest.mark.parametrize(
    "words, message",
    [
        (["lego-s-pg-46"], "lego-s-pg-64"),
        (["lego", "--batch", "0"], "--batch"),
        (["lego", "--dtype", "float8"], "float32"),
        (["lego", "--device", "warp"], "--device"),
        (["schedules", "--schedule", "missing.json"], "no such file"),
        (["schedules", "--data", "missing"], "no such file"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, capsys):
    assert run_command([*words, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_a_schedule_that_is_no_json(tmp_path):
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(ValueError, match="is no schedule of .brickwork search."):
        schedule_from_file(str(tmp_path / "s.json"))
