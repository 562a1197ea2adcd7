"""What a network is told beside the image: time, class and position."""

import torch
from diffusers.models.embeddings import (
    TimestepEmbedding,
    get_1d_sincos_pos_embed_from_grid,
    get_timestep_embedding,
)
from torch import nn

NUM_FREQUENCIES = 256


class ClassTable(nn.Embedding):
    """A row for each class, without the float attributes of `nn.Embedding`, which make a compiler start over."""

    def forward(self, class_labels: torch.Tensor) -> torch.Tensor:
        """`(B,)` => `(B, dim)`."""
        return nn.functional.embedding(class_labels, self.weight)


class ClassTimeEmbedding(nn.Module):
    """The sum of a time embedding and a class embedding.

    Args:
        dim: width of the condition.
        num_classes: number of classes, `None` for a network without them.
        freq_shift: frequencies are `10000^(-k / (128 - freq_shift))`: 0 in the authors' DiT, 1 in diffusers'.
        time_cond_proj_dim: width of `timestep_cond`, a second condition such as an embedded guidance scale.
        augment_dim: numbers of `augment_labels`, which begin without effect; `None` for none.
        linear: classes go through a linear layer on the one-hot vector, and "no class" is the zero vector, to which
            the bias is still added (LEGO); otherwise they are rows of a table, whose last is "no class" (DiT).
    """

    def __init__(
        self,
        dim: int,
        num_classes: int | None,
        freq_shift: int = 0,
        time_cond_proj_dim: int | None = None,
        linear: bool = False,
        augment_dim: int | None = None,
    ):
        super().__init__()
        self.num_classes, self.freq_shift = num_classes, freq_shift
        self.augment_embed = None
        if augment_dim is not None:
            if augment_dim < 1:
                raise ValueError(f"`augment_dim` is {augment_dim}; give 1 or more, or None for no augmentation.")
            self.augment_embed = nn.Linear(augment_dim, dim, bias=False)
            nn.init.zeros_(self.augment_embed.weight)
        self.time_embed = TimestepEmbedding(NUM_FREQUENCIES, dim, cond_proj_dim=time_cond_proj_dim)
        self.class_embed = self.label_embed = None
        if num_classes is not None and linear:
            self.label_embed = nn.Linear(num_classes, dim)
        elif num_classes is not None:
            self.class_embed = ClassTable(num_classes + 1, dim)
        for layer in (self.time_embed.linear_1, self.time_embed.linear_2, self.label_embed or self.class_embed):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        timestep: torch.Tensor,
        class_labels: torch.Tensor | None,
        dtype: torch.dtype,
        timestep_cond: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`(B, dim)` in `dtype`.

        Args:
            timestep: `(B,)`.
            class_labels: `(B,)`.
            dtype: of the network.
            timestep_cond: `(B, time_cond_proj_dim)`.
            augment_labels: `(B, augment_dim)`, what was done to the images; `None` and zeros: nothing.
        """
        # Cosines first, in float32 whatever the network's dtype.
        features = get_timestep_embedding(
            timestep, NUM_FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=self.freq_shift
        )
        temb = self.time_embed(features.to(dtype), None if timestep_cond is None else timestep_cond.to(dtype))
        if augment_labels is not None:
            temb = temb + self.augment_embed(self._check_augmented(augment_labels, len(timestep)).to(dtype))
        if self.num_classes is None:
            return temb
        if class_labels is None:
            class_labels = torch.full_like(timestep, self.num_classes, dtype=torch.long)
        if self.class_embed is not None:
            return temb + self.class_embed(class_labels).to(dtype)
        one_hot = nn.functional.one_hot(class_labels, self.num_classes + 1)[:, : self.num_classes]
        return temb + self.label_embed(one_hot.to(dtype))

    def _check_augmented(self, augment_labels: torch.Tensor, batch: int) -> torch.Tensor:
        if self.augment_embed is None:
            raise ValueError("`augment_labels` were given, but this network has no `augment_dim`; leave them out.")
        shape, wanted = tuple(augment_labels.shape), (batch, self.augment_embed.in_features)
        if shape != wanted:
            raise ValueError(f"`augment_labels` has shape {shape}; give {wanted}.")
        return augment_labels


def sincos_position_table(dim: int, rows: int, columns: int) -> torch.Tensor:
    """MAE's fixed 2-D sine-cosine table: float32 `(rows * columns, dim)`, the column's half first."""
    if dim % 4:
        raise ValueError(f"A width of {dim} has no 2-D sine-cosine table; choose a multiple of 4.")
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = (get_1d_sincos_pos_embed_from_grid(dim // 2, one, output_type="pt") for one in (column, row))
    return torch.cat([*halves], dim=1).float()


def crop_coordinates(crops: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What `coordinate_channels` are where crops lie on larger canvases.

    Args:
        crops: integers `(B, 4)`: top and left of the crop, height and width of its canvas. A crop that reaches over an
            end of the canvas goes on at the opposite one.
        height: of the crops.
        width: of the crops.

    Returns:
        float32 `(B, 2, height, width)`: row, then column coordinate, each from -1 to 1 over the canvas.
    """

    def positions(length: int, start: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        steps = (torch.arange(length, device=crops.device) + start[:, None]) % total[:, None]
        return (steps / (total[:, None] - 1).clamp(min=1) - 0.5) * 2

    top, left, canvas_height, canvas_width = crops.unbind(1)
    rows = positions(height, top, canvas_height)[:, :, None].expand(-1, height, width)
    columns = positions(width, left, canvas_width)[:, None, :].expand(-1, height, width)
    return torch.stack([rows, columns], dim=1)


def coordinate_channels(height: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """`(1, 2, height, width)`: row, then column coordinate, each from -1 to 1 over the image."""

    def ramp(length: int) -> torch.Tensor:
        return (torch.arange(length, device=device, dtype=torch.float32) / max(length - 1, 1) - 0.5) * 2

    rows = ramp(height)[:, None].expand(height, width)
    columns = ramp(width)[None, :].expand(height, width)
    return torch.stack([rows, columns])[None].to(dtype)
