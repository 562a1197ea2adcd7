"""How a network is shared among processes: accelerate's ways, fitted to the network and to the checkpoints here."""

from accelerate.utils import DistributedType

from brickwork.training.config.optimizer import OptimizerConfig
from brickwork.training.config.run import RunConfig
from brickwork.training.engine.zero import fit_zero
from brickwork.training.task import Task


def fit_distribution(task: Task, run: RunConfig, optimizer: OptimizerConfig) -> None:
    """Fit the way that accelerate shares a task's network among processes to this network.

    FSDP2 shards block by block, and accelerate refuses a network without one of the kinds of blocks that its class
    names (`_no_split_modules`): a LEGO stack without a pretrained brick, a UNet without one sort of stage. Those that
    it has are enough.

    Raises:
        ValueError: for the first FSDP, which keeps all parameters of a process in one flat tensor, for networks
            that FSDP2 cannot draw with, and for what DeepSpeed cannot do (see `fit_zero`).
    """
    accelerator, network = task.accelerator, task.network
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        fit_zero(task, run, optimizer)
    elif accelerator.is_fsdp2:
        if task.drawn_in_part:
            raise ValueError(
                f"accelerate is set up for FSDP, but pictures are drawn with a part of a {type(network).__name__}, "
                "which is not gathered alone; launch with one_node.yaml or deepspeed.yaml of "
                "training/configs/accelerate/."
            )
        plugin = accelerator.state.fsdp_plugin
        if plugin.transformer_cls_names_to_wrap is None:
            kinds = {type(module).__name__ for module in network.modules()}
            named = getattr(network, "_no_split_modules", None) or []
            plugin.transformer_cls_names_to_wrap = [name for name in named if name in kinds]
    elif accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "accelerate is set up for FSDP version 1, whose optimiser states the checkpoints here cannot hold; "
            "training/configs/accelerate/one_node_fsdp2.yaml shards weights, gradients, optimiser and averages alike "
            "(fsdp_version: 2)."
        )
