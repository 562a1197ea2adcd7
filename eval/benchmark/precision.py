"""The benchmark suite `precision`: networks in fewer bits on this processor, what they gain and what they lose."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn

from brickwork.eval.benchmark.networks import OURS, forward_of, subjects
from brickwork.eval.benchmark.suites import Settings, counted, in_dtype, time_cases
from brickwork.eval.benchmark.timing import Case, MatmulProbe
from brickwork.eval.report.numbers import spread

PRESET = "lego-s-pg-64"
FLOAT, HALF, INT8 = "float32", "bfloat16", "int8, dynamic"


def quantized(network: nn.Module) -> nn.Module:
    """A copy whose blocks multiply in int8: weights rounded once, activations by the range of each call (torch's own).

    Embeddings and what leads to pixels stay as they are.
    """
    found = copy.deepcopy(network)
    kinds = set(found._repeated_blocks)
    for block in [module for module in found.modules() if type(module).__name__ in kinds]:
        torch.ao.quantization.quantize_dynamic(block, {nn.Linear}, dtype=torch.qint8, inplace=True)
    return found


def bytes_of(network: nn.Module) -> int:
    """Bytes of weights, packed ones included."""
    total = 0
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if callable(weight):  # torch packs what it quantises
            total += weight().numel() * weight().element_size()
        total += sum(tensor.nbytes for tensor in module.parameters(recurse=False))
    return total


VARIANTS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    FLOAT: lambda network: network,
    HALF: lambda network: in_dtype(copy.deepcopy(network), torch.bfloat16),
    INT8: quantized,
}


def bench_precision(settings: Settings, preset: str = PRESET) -> dict:
    """Forward pass, bytes of weights, and the error of the estimate; with `data`, the paired loss of what ships.

    The error is the root mean square of the difference to float32, over that of float32's estimate.
    """
    device, cases, facts = torch.device("cpu"), [], {}
    probe = MatmulProbe(device, torch.float32)
    for name in (preset, settings.weights):
        subject = subjects(name, settings.size, peers=False)[OURS]
        network = _loaded(name) if name == settings.weights else subject.build()
        network = network.eval().requires_grad_(False)
        made = {title: make(network) for title, make in VARIANTS.items()}
        runs = {
            title: forward_of(subject, one, settings.batch, device, torch.bfloat16 if title == HALF else torch.float32)
            for title, one in made.items()
        }
        exact = runs[FLOAT]()[-1]
        operations = counted(name, FLOAT, runs[FLOAT], probe).operations
        losses = paired_losses(made, settings) if name == settings.weights and settings.data else {}
        for title, run in runs.items():
            error = (run()[-1].float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
            facts[name, title] = {"bytes": bytes_of(made[title]), "error": error.item(), "loss": losses.get(title)}
            cases.append(Case(name, title, run, operations, probe))  # torch would not count products in int8
    rows = time_cases(cases, settings, dict.fromkeys((preset, settings.weights), FLOAT))
    return {"kind": "precision", "rows": rows, "facts": _named(facts), "tables": [_table(rows, facts)]}


def _loaded(name: str) -> nn.Module:
    from brickwork.eval.sampling.pipelines import load_class_pipeline

    return load_class_pipeline(name, "cpu").transformer


def paired_losses(made: Mapping[str, nn.Module], settings: Settings) -> dict[str, float]:
    """The paired loss of each variant on held-out pictures, over eight noise levels."""
    from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
    from brickwork.eval.held_out.pictures import held_out_pairs
    from brickwork.eval.sampling.pipelines import load_class_pipeline
    from brickwork.gen.parameterization import EDMObjective

    pipe = load_class_pipeline(settings.weights, "cpu")
    found = held_out_pairs(pipe, settings.data, settings.pairs)[0]
    pairs = PairedSet.from_images(found.images, found.labels)
    objective = EDMObjective(sigma_data=pipe.scheduler.config.sigma_data)
    return {title: paired_loss(one, pairs, objective)["loss"] for title, one in made.items()}


def _named(facts: Mapping[tuple[str, str], dict]) -> dict[str, dict]:
    return {f"{name}: {title}": values for (name, title), values in facts.items()}


def _table(rows: list[dict], facts: Mapping[tuple[str, str], dict]) -> dict:
    shown = []
    for row in rows:
        fact = facts[row["group"], row["case"]]
        loss = "–" if fact["loss"] is None else f"{fact['loss']:.4f}"
        size = f"{fact['bytes'] / 2**20:.1f}"
        shown.append((f"{row['group']}: {row['case']}", spread(row["ratio"]), size, f"{fact['error']:.2%}", loss))
    return {"columns": ("", "time, to float32", "weights, MiB", "error", "paired loss"), "rows": shown}
