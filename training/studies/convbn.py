"""Memory, time and stability of the four modes of `set_convbn_mode` in fine-tuning, for `brickwork convbn`.

Every mode starts from the same weights and sees the same pictures and noise.
"""

import argparse
import copy
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoModel
from diffusers.utils import logging
from torch import nn

from brickwork import options
from brickwork.errors import explained, one_of
from brickwork.eval.benchmark.memory import derive_memory, measure_here, measure_in_child
from brickwork.eval.benchmark.networks import DTYPES, OURS, Settings, training_step
from brickwork.eval.benchmark.suites import counted, time_cases
from brickwork.eval.held_out.paired_loss import PairedSet, paired_loss
from brickwork.eval.sampling.pipelines import to_device
from brickwork.eval.studies.core import Cell, Study, run_study
from brickwork.files import weights_digest
from brickwork.gen.convbn import CONVBN_MODES, find_convbn_pairs, set_convbn_mode
from brickwork.gen.networks.parts import network_folder
from brickwork.gen.parameterization import EDMObjective
from brickwork.training.config.config import TrainConfig, load_config
from brickwork.training.config.recipes import list_recipes, recipe
from brickwork.training.data.images import LabelledImages
from brickwork.training.engine.loop import prepare, train
from brickwork.training.studies.convbn_report import BASE, STUDY, report_of
from brickwork.training.tasks.backbone import BackboneTask, build_held_out, build_images
from brickwork.training.tasks.backbones import build_objective

WITH_BATCH_NORM = ("d-emo", "u-emo", "maxvit", "mixed")  # the presets with a BatchNorm behind a convolution
TIMED_RATE = 1e-6  # of AdamW in the steps that are timed: weights stay about where they are
CONFIG = Path(__file__).parents[1] / "configs" / "convbn.yaml"
# What goes over a preset here: EDM asks for no learned variance, and 64 tokens are enough for two cores.
OVER_PRESETS = {"d-emo": "model.config.out_channels=null", "tiny-d-emo": "model.config.patch_size=4"}


@dataclass(frozen=True)
class Optimization:
    """How networks learn here; never with clipping or a warm-up, which hide what is looked for.

    Attributes:
        make: parameters, learning rate => optimiser.
        convs: whether the convolutions and their BatchNorms alone learn; nothing but the mode then makes a difference.
        turned: whether the network is first passed through `turn_scales`.
    """

    make: Callable[..., torch.optim.Optimizer]
    convs: bool = False
    turned: bool = False


_SGD = partial(torch.optim.SGD, momentum=0.9)  # as in the paper
OPTIMIZATIONS = {
    "adamw": Optimization(partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=0.0)),  # as in the trainer
    "sgd": Optimization(_SGD),
    "sgd-convs": Optimization(_SGD, convs=True),
    "sgd-convs-turned": Optimization(_SGD, convs=True, turned=True),
}


@dataclass(frozen=True)
class Task:
    """What networks are fine-tuned on, the same for every mode, optimiser and learning rate.

    Attributes:
        images: `(N, C, H, W)` in [-1, 1].
        held_out: as many noise levels for each of the pictures to score on.
        objective: of pretraining and fine-tuning.
        batch: pictures a step. steps: of the optimiser. seed: of the choice of pictures, and of the noise.
    """

    images: torch.Tensor
    held_out: PairedSet
    objective: EDMObjective
    batch: int
    steps: int
    seed: int = 0

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Pictures, noise and noise levels of each step, on the CPU, the same for every device.

        The levels of a batch are the middles of equally likely parts of the training distribution, so that losses of
        different steps can be compared.
        """
        random = torch.Generator().manual_seed(self.seed)
        sigma = self.objective.noise_levels(torch.special.ndtri((torch.arange(self.batch) + 0.5) / self.batch))
        for _ in range(self.steps):
            images = self.images[torch.randint(len(self.images), (self.batch,), generator=random)]
            yield images, torch.randn(images.shape, generator=random), sigma


def make_task(images: LabelledImages, config: TrainConfig, steps: int) -> Task:
    """The task that a configuration's other classes make.

    Raises:
        ValueError: where the split leaves no pictures on one side.
    """
    train_rows, held_out_rows = images.split(config.data.held_out)
    learned, held_out = build_held_out(images, train_rows), build_held_out(images, held_out_rows)
    if learned is None or held_out is None:
        raise ValueError(
            f"`data.held_out` is {config.data.held_out}, which leaves {len(train_rows)} pictures to fine-tune on and "
            f"{len(held_out_rows)} to score on; change it, or name other `--target` classes."
        )
    objective, run = build_objective(config.objective), config.run
    return Task(learned.images, held_out, objective, run.batch_size, steps, run.seed)


def pretrain(preset: str, overrides: list[str], folder: Path) -> nn.Module:
    """Train a preset in `folder` by the ordinary trainer, or go on with it, or load what it left.

    Returns:
        The network with the averaged weights and statistics.

    Raises:
        ValueError: for a preset without BatchNorm behind a convolution.
        SystemExit: where the training was asked to stop; the same command goes on.
    """
    _, of_preset = recipe(preset)
    special = [over for name, over in OVER_PRESETS.items() if preset.startswith(name)]
    run = prepare(BackboneTask, load_config(CONFIG, [*of_preset, *special, *overrides, f"run.output_dir={folder}"]))
    if not find_convbn_pairs(run.task.network):
        raise ValueError(f"`--curves` has {preset!r}, which has no BatchNorm behind a convolution; take a d-emo.")
    if train(run) < run.config.run.total_images:
        raise SystemExit(130)
    return load_network(folder / "pipeline")


def load_network(folder: Path) -> nn.Module:
    """The network of a pipeline's or a model's folder.

    Raises:
        ValueError: where there is none, or none with BatchNorm behind a convolution.
    """
    with explained(f"`--pretrained` is {str(folder)!r}"):
        network = AutoModel.from_pretrained(str(network_folder(folder)), torch_dtype=torch.float32)
    if not find_convbn_pairs(network):
        raise ValueError(
            f"`--pretrained` is {str(folder)!r}, a {type(network).__name__} without BatchNorm behind a convolution "
            "(or one that was deployed); take one that has."
        )
    return network


def describe(network: nn.Module, task: Task, device: torch.device) -> dict:
    """What matters of the pretrained network.

    Returns:
        `parameters`, `pairs` (convolutions with a BatchNorm), `scales`: the 5%, 50% and 95% quantiles of |γ|/σ, by
        which folding multiplies the rows of a convolution; `losses` of the steps' batches without any update, and the
        `held_out` loss before fine-tuning.
    """
    scales = torch.cat([_scales(norm) for _, norm in _pairs(network)])
    pairs = len(_pairs(network))
    network = copy.deepcopy(network).to(device)
    return {
        "parameters": network.num_parameters(),
        "pairs": pairs,
        "scales": scales.double().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist(),
        "losses": course(network.eval(), task),
        "held_out": score(network, task),
    }


@torch.no_grad()
def turn_scales(network: nn.Module) -> None:
    """Make |γ|/σ as much smaller than 1 as it is larger, or the other way about, and leave the function as it is.

    A convolution's weights times k, with k times its mean and σ in the BatchNorm, are the same function in eval mode;
    k is chosen for each pair so that the median of |γ|/σ turns into its inverse.
    """
    for conv, norm in _pairs(network):
        factor = _scales(norm).median() ** 2
        conv.weight.mul_(factor)
        if conv.bias is not None:
            conv.bias.mul_(factor)
        norm.running_mean.mul_(factor)
        norm.running_var.add_(norm.eps).mul_(factor**2).sub_(norm.eps)


def _pairs(network: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    return [tuple(map(network.get_submodule, names)) for names in find_convbn_pairs(network)]


def _scales(norm: nn.BatchNorm2d) -> torch.Tensor:
    """|γ|/σ of every channel, by which folding multiplies the rows of the convolution."""
    return (norm.weight.abs() * torch.rsqrt(norm.running_var + norm.eps)).detach()


def score(network: nn.Module, task: Task) -> float | None:
    """The held-out loss with running statistics, `None` if it is no number."""
    pairs = task.held_out if _labels(network, 1) is not None else replace(task.held_out, labels=None)
    if pairs.labels is not None:
        pairs = replace(pairs, labels=torch.zeros_like(pairs.labels))
    return _finite(paired_loss(network.eval(), pairs, task.objective)["loss"])


def fine_tune(network: nn.Module, mode: str, optimizer: str, rate: float, task: Task, device: torch.device) -> dict:
    """Fine-tune a copy of the network in float32.

    New pictures are class 0 of a network with classes.

    Args:
        network: pretrained; left as it is.
        mode: one of `CONVBN_MODES`.
        optimizer: one of `OPTIMIZATIONS`.
        rate: its learning rate.
        task: what to learn.
        device: where.

    Returns:
        `losses` of each step, before its update, and the `held_out` loss at the end; `None` for what is no number.
    """
    network = copy.deepcopy(network).to(device)
    way, pairs = OPTIMIZATIONS[optimizer], _pairs(network)
    if way.turned:
        turn_scales(network)
    set_convbn_mode(network, mode)
    if way.convs:
        network.requires_grad_(False)
        for module in chain.from_iterable(pairs):
            module.requires_grad_(True)
    stepper = way.make([parameter for parameter in network.parameters() if parameter.requires_grad], lr=rate)
    return {"losses": course(network.train(), task, stepper), "held_out": score(network, task)}


def course(network: nn.Module, task: Task, optimizer: torch.optim.Optimizer | None = None) -> list[float | None]:
    """The loss of each step, before its update; without an optimiser nothing is updated."""
    device, losses = next(network.parameters()).device, []
    labels = _labels(network, task.batch)
    # Rounding alone may tell tune from eval: TF32 would round the folded weights otherwise than the plain ones.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        for batch in task.batches():
            images, noise, sigma = (tensor.to(device, non_blocking=True) for tensor in batch)
            sample, timestep = task.objective.network_inputs(images, noise, sigma)
            with torch.set_grad_enabled(optimizer is not None):
                estimate = network(sample, timestep, class_labels=labels).sample
                loss = task.objective.losses(estimate, images, noise, sigma).mean()
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            losses.append(loss.detach())
    return [_finite(loss) for loss in torch.stack(losses).tolist()]


def _labels(network: nn.Module, count: int) -> torch.Tensor | None:
    if network.config.num_classes is None:
        return None
    return torch.zeros(count, dtype=torch.long, device=next(network.parameters()).device)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def memory_of(name: str, mode: str, settings: dict) -> dict:
    """Bytes of one step with AdamW.

    Args:
        name: a preset of a network of blocks.
        mode: one of `CONVBN_MODES`.
        settings: `batch`, `size` (`None` for the training size), `device`, `dtype`, `threads`.

    Returns:
        `fixed`: weights and AdamW's two averages. `derived`: the peak of all tensors on a CPU, found without
        computing; `None` on a GPU. `measured`: on a CPU the highest resident size of a process of its own above that
        before the network was built, on a GPU the highest number of bytes allocated.
    """
    device, specification = torch.device(settings["device"]), _specification(name, mode, settings)
    if device.type == "cuda":
        gc.collect()  # what is left of the mode before would be counted
        network, _ = training_step(specification | {"device": "meta"})
        fixed = sum(parameter.nbytes * (3 if parameter.requires_grad else 1) for parameter in network.parameters())
        derived = None
        measured = measure_here(specification)["peak"]
    else:
        found = derive_memory(lambda: training_step(specification))
        fixed, derived = found["weights"] + found["optimizer"], found["peak"]
        measured = measure_in_child(specification)["peak"]
    return {"fixed": fixed, "derived": derived, "measured": measured}


def _specification(name: str, mode: str, settings: dict) -> dict:
    """What `training_step` runs."""
    return {**settings, "name": name, "subject": OURS, "convbn_mode": mode}


def time_modes(name: str, settings: dict, rounds: int) -> dict[str, dict]:
    """Seconds of a step, AdamW's included, in all modes, in turn, round after round.

    Args:
        name: a preset of a network of blocks.
        settings: as for `memory_of`.
        rounds: how often each mode is timed.

    Returns:
        For each mode the row of `time_cases`, compared with `BASE`.
    """
    measured = Settings(rounds=rounds, **settings)
    on_cpu = measured.torch_device.type == "cpu"
    probe = measured.probe(side=1024 if on_cpu else None)
    cases = []
    for mode in CONVBN_MODES:
        torch.manual_seed(0)
        network, forward_backward = training_step(_specification(name, mode, settings))
        update = torch.optim.AdamW(network.parameters(), lr=TIMED_RATE).step
        cases.append(counted(name, mode, lambda one=forward_backward, two=update: (one(), two()), probe))
    return {row["case"]: row for row in time_cases(cases, measured, {name: BASE}, warm=on_cpu)}


def compare_modes(args: argparse.Namespace) -> str:
    """Measure and fine-tune what is not there yet, and write it after each network; returns the tables."""
    logging.set_verbosity_error()
    settings, rates, stages = check(args), read_rates(args.rates), []
    if args.only != "curves":
        stages += [partial(cost_cells, name, settings, args.rounds) for name in args.networks]
    if args.only != "cost":
        fine_tuned = fine_tuning(args, rates, settings["device"])
        names = list(dict.fromkeys(args.curves))
        if args.pretrained is not None:
            folder = args.pretrained.resolve()
            names = [folder.parent.name if folder.name in ("pipeline", "transformer") else folder.name]
        stages += [partial(fine_tuned, name) for name in names]
    for number in range(1, len(stages) + 1):
        run_study(Study(STUDY, {}, stages[:number], partial(report_of, settings)), args.output)
    return (args.output / f"{STUDY}.md").read_text(encoding="utf-8")


def check(args: argparse.Namespace) -> dict:
    """The settings of the measurements.

    Raises:
        ValueError: for what the command cannot work with, before anything is measured.
    """
    options.check_at_least(args, 1, "batch", "rounds", "size", "steps")
    one_of("--dtype", args.dtype, DTYPES)
    presets = [name for name in list_recipes() if any(kind in name for kind in WITH_BATCH_NORM)]
    for option, known in (("networks", [name for name in presets if "tiny" not in name]), ("curves", presets)):
        for name in getattr(args, option):
            one_of(f"--{option}", name, known)
    device = to_device(torch.empty(1), args.device).device
    return {
        "device": str(device), "dtype": args.dtype, "batch": args.batch, "size": args.size,
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def read_rates(given: Sequence[Sequence]) -> dict[str, list[float]]:
    """Learning rates by optimiser, rising.

    Raises:
        ValueError: for an unknown optimiser, or what is no rate.
    """
    rates: dict[str, list[float]] = {}
    for name, *numbers in given:
        one_of("--rates", name, OPTIMIZATIONS)
        try:
            found = sorted(float(number) for number in numbers)
        except ValueError:
            found = []
        if not found or not 0 < found[0] <= found[-1] < float("inf"):
            raise ValueError(f"`--rates {name}` is {numbers}; give one or more positive numbers behind the optimiser.")
        rates[name] = sorted({*rates.get(name, []), *found})
    return rates


def cost_cells(name: str, settings: dict, rounds: int, results: Mapping[str, Any]) -> list[Cell]:
    """Memory of every mode of one network, and time of all in turn."""
    memory = [
        Cell(
            f"cost/{name}/memory-{mode}", lambda folder, mode, **_: memory_of(name, mode, settings),
            settings | {"mode": mode},
        )
        for mode in CONVBN_MODES
    ]  # fmt: skip
    timed = settings | {"rounds": rounds}
    return [*memory, Cell(f"cost/{name}/time", lambda folder, **_: time_modes(name, settings, rounds), timed)]


def fine_tuning(args: argparse.Namespace, rates: dict[str, list[float]], device: str) -> Callable[..., list[Cell]]:
    """The cells of a network by its name; nothing is trained yet.

    These are `curves/NAME/about`, see `describe`, and `curves/NAME/OPTIMISER/RATE/MODE`, see `fine_tune`.
    """
    if args.pretrained:
        load_network(args.pretrained)  # what is wrong with it is said before anything is measured
    config = load_config(CONFIG, args.overrides)
    try:
        images = build_images(config.data.replace(classes=args.target))
    except ValueError as error:
        raise ValueError(str(error).replace("`data.classes`", "`--target`")) from None
    task, where = make_task(images, config, args.steps), torch.device(device)
    identity = yaml.safe_load(config.to_yaml())
    del identity["data"]["source"], identity["run"]["output_dir"]  # data may move; its pictures are looked at
    identity |= {"--target": args.target, "pictures": images.fingerprint[:16], "--steps": args.steps}
    pretrained = args.pretrained and weights_digest(network_folder(args.pretrained))
    identity |= {"--device": device, "--pretrained": pretrained}

    def cells_of(name: str, results: Mapping[str, Any]) -> list[Cell]:
        @cache
        def network():
            if args.pretrained:
                return load_network(args.pretrained)
            return pretrain(name, args.overrides, args.output / "pretrained" / name)

        def fine_tuned(folder: Path, optimizer: str, rate: float, mode: str, **_) -> dict:
            return fine_tune(network(), mode, optimizer, rate, task, where)

        return [
            Cell(f"curves/{name}/about", lambda folder, **_: describe(network(), task, where), identity),
            *(
                Cell(
                    f"curves/{name}/{optimizer}/{rate:g}/{mode}", fine_tuned,
                    identity | {"optimizer": optimizer, "rate": rate, "mode": mode},
                )
                for optimizer, chosen in rates.items()
                for rate in chosen
                for mode in CONVBN_MODES
            ),
        ]  # fmt: skip

    return cells_of
