"""Time and class for the block networks, and the checks of what a caller hands them."""

import torch
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import nn

from brickwork.gen.embeddings import NUM_FREQUENCIES


class ClassTable(nn.Embedding):
    """A row for each class, without the float attributes of `nn.Embedding`, which make a compiler start over."""

    def forward(self, class_labels: torch.Tensor) -> torch.Tensor:
        """`(B,)` => `(B, dim)`."""
        return nn.functional.embedding(class_labels, self.weight)


class ClassTimeEmbedding(nn.Module):
    """The sum of a time embedding and a row of a table of classes, whose last row is "no class" (DiT).

    Args:
        dim: width of the condition.
        num_classes: number of classes, `None` for a network without them.
        freq_shift: frequencies are `10000^(-k / (128 - freq_shift))`: 0 in the authors' DiT, 1 in diffusers'.
        time_cond_proj_dim: width of `timestep_cond`, a second condition such as an embedded guidance scale.
    """

    def __init__(self, dim: int, num_classes: int | None, freq_shift: int = 0, time_cond_proj_dim: int | None = None):
        super().__init__()
        self.num_classes, self.freq_shift = num_classes, freq_shift
        self.time_embed = TimestepEmbedding(NUM_FREQUENCIES, dim, cond_proj_dim=time_cond_proj_dim)
        self.class_embed = None if num_classes is None else ClassTable(num_classes + 1, dim)
        for linear in (self.time_embed.linear_1, self.time_embed.linear_2):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if self.class_embed is not None:
            nn.init.normal_(self.class_embed.weight, std=0.02)

    def forward(
        self,
        timestep: torch.Tensor,
        class_labels: torch.Tensor | None,
        dtype: torch.dtype,
        timestep_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`timestep (B,)`, `class_labels (B,)`, `timestep_cond (B, time_cond_proj_dim)` => `(B, dim)` in `dtype`."""
        # Cosines first, in float32 whatever the network's dtype.
        features = get_timestep_embedding(
            timestep, NUM_FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=self.freq_shift
        )
        temb = self.time_embed(features.to(dtype), None if timestep_cond is None else timestep_cond.to(dtype))
        if self.class_embed is None:
            return temb
        if class_labels is None:
            class_labels = torch.full_like(timestep, self.num_classes, dtype=torch.long)
        return temb + self.class_embed(class_labels).to(dtype)


def batch_timestep(timestep: torch.Tensor | float, batch: int, device: torch.device) -> torch.Tensor:
    """A timestep for each image: `(B,)`, `(1,)` or a scalar => float32 `(B,)`."""
    timestep = torch.as_tensor(timestep, device=device, dtype=torch.float32)
    if timestep.ndim > 1 or timestep.numel() not in (1, batch):
        raise ValueError(f"`timestep` has shape {tuple(timestep.shape)}; give a scalar, or one for each of {batch}.")
    return timestep.expand(batch)


def check_sample(sample: torch.Tensor, in_channels: int, smallest: int = 1) -> None:
    """Raise a `ValueError` unless `sample` is `(B, in_channels, H, W)` with sides of at least `smallest`."""
    if sample.ndim != 4 or sample.shape[1] != in_channels:
        raise ValueError(
            f"`sample` has shape {tuple(sample.shape)}; this network reads (batch, {in_channels}, height, width)."
        )
    if min(sample.shape[-2:]) < smallest:
        raise ValueError(
            f"`sample` has height and width {tuple(sample.shape[-2:])}, below {smallest} pixels; make both sides at "
            f"least {smallest}."
        )


def check_class_labels(class_labels: torch.Tensor | None, batch: int, num_classes: int | None) -> torch.Tensor | None:
    """Class labels as int64 `(B,)`, or a `ValueError`. Values are looked at on the CPU only."""
    if class_labels is None:
        return None
    if num_classes is None:
        raise ValueError("`class_labels` were given, but this network has no classes; leave them out.")
    if class_labels.shape != (batch,) or class_labels.is_floating_point():
        raise ValueError(
            f"`class_labels` has shape {tuple(class_labels.shape)} and dtype {class_labels.dtype}; give integers of "
            f"shape ({batch},)."
        )
    # Reading values would stall an accelerator and break a compiled graph; the table asserts there by itself.
    if class_labels.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(class_labels.min()), int(class_labels.max())
        if low < 0 or high > num_classes:
            raise ValueError(
                f"`class_labels` lie between {low} and {high}; allowed are 0 to {num_classes - 1}, and {num_classes} "
                "for no class."
            )
    return class_labels.long()


def check_text(encoder_hidden_states: torch.Tensor | None, batch: int, cross_attention_dim: int | None) -> None:
    """Raise a `ValueError` unless a text fits the network: `(B, length, cross_attention_dim)`."""
    if encoder_hidden_states is None:
        return
    if cross_attention_dim is None:
        raise ValueError(
            "`encoder_hidden_states` were given, but this network reads no text; build it with `cross_attention_dim`."
        )
    shape = tuple(encoder_hidden_states.shape)
    if len(shape) != 3 or shape[0] != batch or shape[2] != cross_attention_dim:
        raise ValueError(f"`encoder_hidden_states` has shape {shape}; give ({batch}, length, {cross_attention_dim}).")
