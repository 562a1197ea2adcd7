"""A tiny LEGO run on real images, in the process of the tests."""

import multiprocessing
import os
import socket
import traceback
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState

SAMPLE = Path(__file__).parents[1] / "data" / "emoji" / "sample.parquet"
TINY = {
    "model": {
        "config": {
            "window_sizes": [8, 4],
            "patch_sizes": [4, 2],
            "num_layers": [1, 1],
            "hidden_sizes": [8, 8],
            "num_attention_heads": [2, 2],
        }
    },
    "data": {"source": str(SAMPLE), "size": 8, "group_column": "codepoints", "held_out": 0.1},
    "objective": {"brick_dropout": 0.5},
    "optimizer": {"learning_rate": 1.0e-2, "warmup_images": 32},
    "samples": {"count": 0},
    "run": {
        "total_images": 32,
        "batch_size": 8,
        "log_images": 16,
        "sample_images": 0,
        "checkpoint_images": 16,
        "mixed_precision": "no",
    },
}


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """accelerate keeps its state in class attributes; every run starts from none."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_yaml(tmp_path):
    """A configuration file of a tiny run."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def tiny_run(tiny_yaml, tmp_path):
    """`tiny_run("name", "section.key=value", …)` => a `Run` in `tmp_path/name`."""
    from brickwork.training.config.config import load_config
    from brickwork.training.engine.loop import prepare
    from brickwork.training.tasks.backbone import BackboneTask

    def build(name: str, *overrides: str, **options):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return prepare(
            BackboneTask, load_config(tiny_yaml, [f"run.output_dir={tmp_path / name}", *overrides]), **options
        )

    return build


@pytest.fixture
def watch():
    """`watch(run, function)` has a function look at `(network, step)` whenever the run calls its network."""

    def watched(run, look):
        call = run.task.call

        def looked_at(network, step):
            look(network, step)
            return call(network, step)

        run.task.call = looked_at
        return run

    return watched


@pytest.fixture
def with_losses():
    """`with_losses(run, function)` puts a function between the run's losses `(B,)` and what it does with them."""

    def changed(run, change):
        losses = run.task.losses
        run.task.losses = lambda step: change(losses(step))
        return run

    return changed


@pytest.fixture
def final_tensors():
    """A run's folder => everything in its newest checkpoint that must come out the same."""
    from brickwork.training.engine.checkpoints import CheckpointFolder

    def read(folder: Path) -> dict[str, torch.Tensor]:
        tensors, _ = CheckpointFolder(folder / "checkpoints").newest()
        return {f"{stem}/{name}": tensor for stem, content in tensors.items() for name, tensor in content.items()}

    return read


@pytest.fixture
def equal_bits():
    """Whether two dictionaries hold the same tensors, bit for bit."""

    def compare(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
        return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)

    return compare


@pytest.fixture
def two_processes(tmp_path):
    """`two_processes(function)` runs `function(rank)` in two forked processes that form a gloo group."""

    def run(function):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("fork")
        answers = context.Queue()

        def child(rank):
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
            }  # fmt: skip
            torch.set_num_threads(1)
            try:
                function(rank)
                answers.put((rank, None))
            except BaseException:
                answers.put((rank, traceback.format_exc()))
            answers.close()
            answers.join_thread()
            os._exit(0)

        processes = [context.Process(target=child, args=(rank,)) for rank in range(2)]
        for process in processes:
            process.start()
        try:
            errors = dict(answers.get(timeout=120) for _ in processes)
        finally:
            for process in processes:
                process.kill()
                process.join()
        assert errors == {0: None, 1: None}, "\n".join(filter(None, errors.values()))

    return run
