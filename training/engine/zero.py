"""DeepSpeed's ZeRO-1 and ZeRO-2 through accelerate, with the checkpoints of every other way to train.

DeepSpeed keeps a process's share of weights and optimiser in flat tensors, and saves them with pickles. Here they are
put together by parameter, into the same safetensors that a run without DeepSpeed writes, so that a run may go on with
or without it, and with another number of processes.
"""

from functools import partial

import torch
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper

from brickwork.training.config.optimizer import OptimizerConfig
from brickwork.training.config.run import RunConfig
from brickwork.training.task import Task

MOMENTS = ("exp_avg", "exp_avg_sq")


def fit_zero(task: Task, settings: RunConfig, optimizer: OptimizerConfig) -> None:
    """Fill DeepSpeed's configuration from the run's, before the network is prepared.

    Weights stay in float32, and torch casts to bf16 where it does without DeepSpeed, so that weights, optimiser and
    gradients are the same numbers; DeepSpeed's own `bf16` would round the weights.

    Raises:
        ValueError: for what a flat optimiser cannot do as a run without it does.
    """
    accelerator, refused = task.accelerator, None
    plugin = accelerator.state.deepspeed_plugin
    if plugin.zero_stage not in (1, 2):
        refused = f"`zero_stage` is {plugin.zero_stage}; 1 and 2 are possible"
    elif {plugin.offload_optimizer_device, plugin.offload_param_device} != {"none"}:
        refused = "it is to offload to the CPU or a disk; set both devices to none"
    elif settings.mixed_precision == "fp16":
        refused = "`run.mixed_precision` is 'fp16'; bf16 and no are possible"
    elif optimizer.type != "adamw":
        refused = f"`optimizer.type` is {optimizer.type!r}; adamw is possible"
    elif task.leaves_out is not None:
        refused = f"`{task.leaves_out}` has steps that leave parts out, and its flat optimiser moves those too"
    if refused:
        raise ValueError(
            f"accelerate is set up for DeepSpeed, and {refused}. Or launch with one_node_fsdp2.yaml or one_node.yaml "
            "of training/configs/accelerate/."
        )
    values, parts = plugin.deepspeed_config, settings.gradient_accumulation_steps * accelerator.num_processes
    values["train_micro_batch_size_per_gpu"] = max(settings.batch_size // parts, 1)  # what is uneven is refused later
    values["gradient_accumulation_steps"], values["train_batch_size"] = settings.gradient_accumulation_steps, "auto"
    values["gradient_clipping"] = optimizer.max_grad_norm
    values["bf16"] = values["fp16"] = {"enabled": False}
    values["torch_autocast"] = {
        "enabled": settings.mixed_precision == "bf16",
        "dtype": "bfloat16",
        "lower_precision_safe_modules": [],  # whose gradients would be summed in bf16
    }
    if settings.mixed_precision == "bf16":  # which accelerate leaves to DeepSpeed, and that does inside of its engine
        accelerator.autocast = partial(torch.autocast, accelerator.device.type, torch.bfloat16)


def is_zero(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimiser is DeepSpeed's, as accelerate hands it out."""
    return isinstance(optimizer, DeepSpeedOptimizerWrapper)


def zero_tensors(optimizer: DeepSpeedOptimizerWrapper, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """AdamW's state as `parameter name|state name` => tensor on the CPU; all processes must call this alike."""
    from deepspeed.utils import safe_get_full_optimizer_state

    adamw = optimizer.optimizer.optimizer
    states = [adamw.state.get(group["params"][0]) for group in adamw.param_groups]
    if not all(states):  # before the first step
        return {}
    step, tensors = states[0]["step"].cpu(), {}
    for name, parameter in _learning(model).items():
        tensors[f"{name}|step"] = step
        for key in MOMENTS:
            tensors[f"{name}|{key}"] = safe_get_full_optimizer_state(parameter, key).cpu()
    return tensors


def load_zero_tensors(
    optimizer: DeepSpeedOptimizerWrapper, model: torch.nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """The way back from `zero_tensors`, after that of the weights: each process takes its share of both."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_optimizer_state

    zero = optimizer.optimizer
    zero.refresh_fp32_params()  # of which each process owns a copy of its share
    if not tensors:
        return
    adamw = zero.optimizer
    steps = max(value.item() for name, value in tensors.items() if name.endswith("|step"))
    for parameters, share in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups):
        device = share.device if adamw.defaults["fused"] else "cpu"
        adamw.state[share] = {"step": torch.tensor(steps, dtype=torch.float32, device=device)}
        adamw.state[share] |= {key: torch.zeros_like(share) for key in MOMENTS}
        lazy_init_hp_params_optimizer_state(parameters, share, adamw.state)
    for name, parameter in _learning(model).items():
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, tensors[f"{name}|{key}"].to(parameter.device), key)


def _learning(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
