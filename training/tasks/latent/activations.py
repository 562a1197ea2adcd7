"""How much memory a UNet's training step keeps for its backward pass, counted without computing anything."""

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from brickwork import compat
from brickwork.pipelines.stable_diffusion import is_xl
from brickwork.training.tasks.latent.encoding import HALF


class _Fused(torch.autograd.Function):
    """Attention as fused kernels do it: inputs and output are kept, the matrix of weights is not."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            tensors = dict(zip(("query", "key", "value"), args)) | kwargs
            return _Fused.apply(*(tensors[name] for name in ("query", "key", "value")))
        return function(*args, **kwargs)


def kept_bytes(pipeline, batch: int, height: int, width: int, precision: str) -> int:
    """Bytes that the UNet keeps of a batch of latents, with what of it is trained and checkpointed as it is now.

    Weights are left out. What one checkpointed block computes again comes on top.

    Args:
        pipeline: its UNet with what is to be trained in it, of which a twin without memory is run.
        batch: latents at once.
        height: of a latent.
        width: of a latent.
        precision: of the run; all of the twin is in it, though autocast keeps some of the norms' results in float32.
    """
    unet, dtype = pipeline.unet, HALF[precision]
    with torch.device("meta"):
        twin = torch.nn.Module.to(type(unet).from_config(unet.config).requires_grad_(False), dtype)
    for name, parameter in unet.named_parameters():
        if parameter.requires_grad:  # a LoRA keeps what its layer's own weight would
            twin.get_parameter(f"{name.split('.lora_')[0]}.weight" if ".lora_" in name else name).requires_grad_(True)
    if unet.is_gradient_checkpointing:
        twin.enable_gradient_checkpointing()
    kept = {compat.storage_key(parameter.untyped_storage()): None for parameter in twin.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(compat.storage_key(tensor.untyped_storage()), tensor.untyped_storage())
        return tensor

    config = unet.config
    with (
        torch.device("meta"),
        _FusedAttention(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        latents = torch.empty(batch, config.in_channels, height, width, dtype=dtype)
        text = torch.empty(batch, pipeline.tokenizer.model_max_length, config.cross_attention_dim, dtype=dtype)
        added = None
        if is_xl(pipeline):
            pooled = pipeline.text_encoder_2.config.projection_dim
            added = {"text_embeds": torch.empty(batch, pooled, dtype=dtype), "time_ids": torch.empty(batch, 6)}
        twin.train()(latents, torch.zeros(batch), text, added_cond_kwargs=added)
    return sum(storage.nbytes() for storage in kept.values() if storage is not None)
