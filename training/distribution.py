"""How a network is shared among processes: accelerate's ways, fitted to the network and to the checkpoints here."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType


def fit_distribution(accelerator: Accelerator, network: torch.nn.Module) -> None:
    """Fit the way that accelerate shares networks to this one.

    FSDP2 shards block by block, and accelerate refuses a network without one of the kinds of blocks that its class
    names (`_no_split_modules`): a LEGO stack without a pretrained brick, a UNet without one sort of stage. Those that
    it has are enough.

    Raises:
        ValueError: for DeepSpeed and the first FSDP, which keep all parameters of a process in one flat tensor.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP and accelerator.is_fsdp2:
        plugin = accelerator.state.fsdp_plugin
        if plugin.transformer_cls_names_to_wrap is None:
            kinds = {type(module).__name__ for module in network.modules()}
            named = getattr(network, "_no_split_modules", None) or []
            plugin.transformer_cls_names_to_wrap = [name for name in named if name in kinds]
    elif kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"accelerate is set up for {kind.value}{' version 1' if kind == DistributedType.FSDP else ''}, whose "
            "optimiser states the checkpoints here cannot hold; training/configs/accelerate/one_node_fsdp2.yaml "
            "shards weights, gradients, optimiser and averages alike (fsdp_version: 2)."
        )
