"""The benchmark suite `precision`: networks in fewer bits on this processor, what they gain and what they lose."""

import copy
import importlib.util
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from brickwork.eval.benchmark.networks import Settings, forward_of, ours
from brickwork.eval.benchmark.suites import counted, mark, time_cases
from brickwork.eval.benchmark.timing import Case
from brickwork.eval.report.numbers import spread

FLOAT, HALF, INT8 = "float32", "bfloat16", "int8, torch"
AO_INT8, AO_WEIGHTS = "int8, torchao", "int8 weights alone, torchao"
GROUP = 8  # pictures, over whose losses the spread is taken
WITHIN = 0.01  # by which the paired loss may rise


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks; embeddings and what leads to pixels stay as they are."""
    kinds = set(network._repeated_blocks)
    return [module for module in network.modules() if type(module).__name__ in kinds]


def quantized(network: nn.Module) -> nn.Module:
    """A copy whose blocks multiply in int8: weights rounded once, activations by each call's range (torch's own)."""
    found = copy.deepcopy(network)
    for block in _blocks(found):
        torch.ao.quantization.quantize_dynamic(block, {nn.Linear}, dtype=torch.qint8, inplace=True)
    return found


def quantized_by_torchao(network: nn.Module, weights_alone: bool) -> nn.Module:
    """The same by torchao, by rows of weights and of activations, or of weights alone, which multiply in float32."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    found = copy.deepcopy(network)
    for block in _blocks(found):
        quantize_(block, Int8WeightOnlyConfig() if weights_alone else Int8DynamicActivationInt8WeightConfig())
    return found


def variants() -> dict[str, Callable[[nn.Module], nn.Module]]:
    """What makes a network of fewer bits of one in float32, by name; torchao's where it is installed."""
    found: dict[str, Callable[[nn.Module], nn.Module]] = {
        FLOAT: lambda network: network,
        HALF: lambda network: copy.deepcopy(network).to(torch.bfloat16),
        INT8: quantized,
    }
    if importlib.util.find_spec("torchao"):
        found[AO_INT8] = lambda network: quantized_by_torchao(network, weights_alone=False)
        found[AO_WEIGHTS] = lambda network: quantized_by_torchao(network, weights_alone=True)
    return found


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of what a tensor holds, or of the tensors that it is made of."""
    if is_traceable_wrapper_subclass(tensor):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.nbytes


def bytes_of(network: nn.Module) -> int:
    """Bytes of weights, packed ones included."""
    total = 0
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if callable(weight):  # torch packs what it quantises
            total += weight().numel() * weight().element_size()
        total += sum(map(_bytes, module.parameters(recurse=False)))
    return total


def bench_precision(settings: Settings) -> dict:
    """Forward pass, bytes of weights, and the error of the estimate; with `data`, the paired loss of what ships.

    The error is the root mean square of the difference to float32, over that of float32's estimate.

    Args:
        settings: `presets` with random weights, and `weights` that ship.
    """
    plain, rows, facts = replace(settings, device="cpu", dtype=FLOAT), [], {}
    half, probe = replace(plain, dtype=HALF), plain.probe()
    for name in (*settings.presets, settings.weights):
        subject = ours(name, settings)
        network = _loaded(name) if name == settings.weights else subject.build()
        network = network.eval().requires_grad_(False)
        made = {title: make(network) for title, make in variants().items()}
        runs = {title: forward_of(subject, one, half if title == HALF else plain) for title, one in made.items()}
        exact = runs[FLOAT]()[-1]
        operations = counted(name, FLOAT, runs[FLOAT], probe).operations
        losses = paired_losses(made, settings) if name == settings.weights and settings.data else {}
        for title, run in runs.items():
            error = (run()[-1].float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
            facts[name, title] = {"bytes": bytes_of(made[title]), "error": error.item(), "losses": losses.get(title)}
        # torch would not count products in int8
        cases = [Case(name, title, run, operations, probe) for title, run in runs.items()]
        rows += time_cases(cases, settings, {name: FLOAT})
        del cases, made, runs, network
    return {
        "kind": "precision", "rows": rows, "facts": {": ".join(key): values for key, values in facts.items()},
        "tables": [_table(rows, facts)], "marks": _marks(settings.weights, facts),
    }  # fmt: skip


def _loaded(name: str) -> nn.Module:
    from brickwork.eval.sampling.pipelines import load_class_pipeline

    return load_class_pipeline(name, "cpu").transformer


class _InOwnDtype(nn.Module):
    """A network that is given float32."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.module = network

    def forward(self, sample: torch.Tensor, *args, **kwargs):
        return self.module(sample.to(self.module.dtype), *args, **kwargs)


def paired_losses(made: Mapping[str, nn.Module], settings: Settings) -> dict[str, list[float]]:
    """Paired losses of each variant on held-out pictures, over eight noise levels: one number for `GROUP` of them."""
    from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
    from brickwork.eval.held_out.pictures import held_out_pairs
    from brickwork.eval.sampling.pipelines import load_class_pipeline
    from brickwork.gen.parameterization import EDMObjective

    pipe = load_class_pipeline(settings.weights, "cpu")
    found = held_out_pairs(pipe, settings.data, settings.pairs)[0]
    objective = EDMObjective(sigma_data=pipe.scheduler.config.sigma_data)
    losses: dict[str, list[float]] = {title: [] for title in made}
    for number, first in enumerate(range(0, len(found.images), GROUP)):
        part = slice(first, first + GROUP)
        labels = None if found.labels is None else found.labels[part]
        pairs = PairedSet.from_images(found.images[part], labels, seed=number)
        for title, network in made.items():
            losses[title].append(paired_loss(_InOwnDtype(network), pairs, objective)["loss"])
    return losses


def change_of(losses: Sequence[float], exact: Sequence[float]) -> tuple[float, float]:
    """How much higher paired losses are, as a share of the exact ones' mean, and the standard error of that."""
    mean, beyond = statistics.fmean(exact), [ours - theirs for ours, theirs in zip(losses, exact)]
    error = statistics.stdev(beyond) / len(beyond) ** 0.5 if len(beyond) > 1 else 0.0
    return statistics.fmean(beyond) / mean, error / mean


def _marks(name: str, facts: Mapping[tuple[str, str], dict]) -> list[dict]:
    """Whether the paired losses of what ships stay where they are."""
    found, exact = [], facts[name, FLOAT]["losses"]
    for (owner, title), fact in facts.items():
        if owner == name and title != FLOAT and fact["losses"]:
            change = change_of(fact["losses"], exact)[0]
            found.append(mark(f"{name}: paired loss in {title}, above {FLOAT}", f"≤ {WITHIN}", change))
    return found


def _table(rows: list[dict], facts: Mapping[tuple[str, str], dict]) -> dict:
    shown = []
    for row in rows:
        fact, loss = facts[row["group"], row["case"]], "–"
        if fact["losses"]:
            change, error = change_of(fact["losses"], facts[row["group"], FLOAT]["losses"])
            loss = f"{statistics.fmean(fact['losses']):.5f} ({change:+.3%} ± {error:.3%})"
        size = f"{fact['bytes'] / 2**20:.1f}"
        shown.append((f"{row['group']}: {row['case']}", spread(row["ratio"]), size, f"{fact['error']:.2%}", loss))
    return {"columns": ("", "time, to float32", "weights, MiB", "error", "paired loss"), "rows": shown}
