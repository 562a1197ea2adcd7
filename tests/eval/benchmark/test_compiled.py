"""The suites of compiled networks and of fewer bits, rehearsed on tiny ones; never how long anything takes."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from brickwork.eval.benchmark import compiled, evaluation, precision
from brickwork.eval.benchmark import networks as benchmark_networks
from brickwork.eval.benchmark import timing as benchmark_timing
from brickwork.eval.benchmark.suites import Settings
from brickwork.eval.benchmark.tables import suite_text
from brickwork.gen.presets import LEGO_PRESETS

TINY = {
    "sample_size": 16, "window_sizes": (4, 16), "patch_sizes": (2, 4), "num_layers": (1, 1), "hidden_sizes": 16,
    "num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Tiny presets, whose graphs are made without a C++ compiler."""

    def compile_blocks(network, training=False):
        network.compile_repeated_blocks(backend="eager", fullgraph=training)
        return True

    monkeypatch.setitem(benchmark_timing.PROBE_SIDE, "cpu", 32)
    monkeypatch.setattr(compiled, "compile_blocks", compile_blocks)
    for name in ("lego-s-pg-64", "lego-xl-pg-32"):
        monkeypatch.setitem(LEGO_PRESETS, name, TINY)
        monkeypatch.setitem(benchmark_networks.PRESETS, name, TINY)
    yield
    torch._dynamo.reset()


def test_compiled_beside_eager_and_plain():
    suite = compiled.bench_compiled(Settings(batch=2, rounds=1))
    forward = [row["case"] for row in suite["rows"] if row["group"] == "forward"]
    assert forward == [compiled.EAGER, compiled.BLOCKS, compiled.PLAIN]
    assert len(suite["first"]) == 6 and all(row["compared_with"] == compiled.EAGER for row in suite["rows"])
    assert [entry["wanted"] for entry in suite["marks"]] == ["≥ 0.81", "≥ 1.1", "≥ 1.1", "≥ 1", "≥ 1", "≤ 20.0"]


def test_a_first_call_takes_what_its_processes_take(monkeypatch):
    times = iter([0.5, 2.0])
    monkeypatch.setattr(compiled, "Stopwatch", lambda device: lambda function: function() or 1.0)
    monkeypatch.setattr(compiled.os, "times", lambda: SimpleNamespace(children_user=next(times), children_system=0.25))
    assert compiled.first_seconds(dict, torch.device("cpu")) == 2.5
    found = compiled.first_mark("x", {"forward: eager": 2.0, "forward: by blocks": 25.0})
    assert found["measured"] == 23.0 and not found["met"]


def test_the_gpus_command_is_rehearsed_and_ends_in_time(monkeypatch):
    cells = (("lego-s-pg-64", 64), ("lego-s-pg-64", 2), ("lego-xl-pg-32", 2))
    now, cell, clock = [0.0], compiled._cell, Settings(rounds=1, seconds=100)

    def thrice(name, batch, settings):
        now[0] += 45
        if batch == 64:
            raise torch.OutOfMemoryError("no room")
        return cell(name, batch, settings)

    monkeypatch.setattr(compiled, "_cell", thrice)
    monkeypatch.setattr(compiled.time, "monotonic", lambda: now[0])
    suite = compiled.bench_gpu(clock, cells)
    assert suite["left_out"] == [("lego-s-pg-64", 64, "out of memory"), ("lego-xl-pg-32", 2, "no time left")]
    assert {(row["group"].split(", ")[2], row["case"]) for row in suite["rows"]} == {
        (group, case) for group in ("forward", "sampling", "training step") for case in ("eager", "by blocks")
    }
    assert suite["peaks"][0][:2] == ("lego-s-pg-64", 2) and "no time left" in suite_text("gpu", suite)
    assert suite["marks"][-1]["what"].endswith("batch 256 trains") and not suite["marks"][-1]["met"]


def test_fewer_bits_are_smaller_and_err_little(monkeypatch, tmp_path):
    """With losses of two groups of synthetic pictures, of which the numbers mean nothing."""
    labels = {f"{n}.png": {"label": int(n % 2)} for n in range(4)}
    lines = [json.dumps({"file_name": name} | label) for name, label in labels.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(precision, "GROUP", 2)
    suite = precision.bench_precision(Settings(batch=1, rounds=1, data=str(tmp_path), pairs=4))
    facts = suite["facts"]
    for name in ("lego-s-pg-64", "lego-avatars-64"):
        exact, half, *others = (facts[f"{name}: {title}"] for title in precision.variants())
        assert exact["error"] == 0 and 0 < half["error"] < 0.05 and half["bytes"] == exact["bytes"] / 2
        for other in others:
            assert 0 < other["error"] < 0.3 and other["bytes"] < half["bytes"] * 1.5
    assert len(facts["lego-avatars-64: float32"]["losses"]) == 2
    assert len(suite["marks"]) == len(precision.variants()) - 1
    assert precision.INT8 in suite_text("precision", suite)


def test_a_change_of_paired_losses_and_its_error():
    change, error = precision.change_of([1.1, 2.2], [1.0, 2.0])
    assert change == pytest.approx(0.1) and error == pytest.approx(0.1 / 3)


def test_evaluation_beside_what_computes(monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setattr(evaluation, "DRAWN", 4)
    suite = evaluation.bench_evaluation(Settings(batch=2, rounds=1, pairs=4), (70,), 16)
    one = {"gen", "ref and calc"}
    assert set(suite["shares"]) == one | {f"{what}, two processes" for what in one}
    assert len(suite["read"]["70"]) == 1
    assert all(0 < values[0] < 1 for values in suite["shares"].values())
    assert "70" in suite_text("evaluation", suite)


def test_the_share_beside_a_network():
    networks = [torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)]
    assert evaluation.share_beside(networks, lambda: sum(range(10**6))) == 1
    assert evaluation.share_beside(networks, lambda: [one(torch.ones(1)) for one in networks]) < 1
