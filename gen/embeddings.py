"""What a network is told beside the image: time, class and place."""

import torch
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import nn

NUM_FREQUENCIES = 256


class ConditionEmbedding(nn.Module):
    """The sum of a time embedding and a class embedding.

    "No class" is the zero vector: the label layer still adds its bias.

    Args:
        dim: width of the condition.
        num_classes: number of classes, `None` for an unconditional network.
    """

    def __init__(self, dim: int, num_classes: int | None = None):
        super().__init__()
        self.num_classes = num_classes
        self.time_embed = TimestepEmbedding(NUM_FREQUENCIES, dim)
        self.label_embed = nn.Linear(num_classes, dim) if num_classes else None
        for linear in (self.time_embed.linear_1, self.time_embed.linear_2, self.label_embed):
            if linear is not None:
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    def forward(self, timestep: torch.Tensor, class_labels: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """`timestep (B,)`, `class_labels (B,)` integers or `None` => `(B, dim)` in `dtype`."""
        # Cosines first, frequencies 10000^(-k/128), in float32 whatever the network's dtype.
        features = get_timestep_embedding(timestep, NUM_FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        temb = self.time_embed(features.to(dtype))
        if self.label_embed is None:
            return temb
        if class_labels is None:
            class_labels = torch.full_like(timestep, self.num_classes, dtype=torch.long)
        one_hot = nn.functional.one_hot(class_labels, self.num_classes + 1)[:, : self.num_classes]
        return temb + self.label_embed(one_hot.to(dtype))


def sincos_position_table(dim: int, rows: int, columns: int) -> torch.Tensor:
    """MAE's fixed 2-D sine-cosine table: float32 `(rows * columns, dim)`, the column's half first."""
    if dim % 4:
        raise ValueError(f"A width of {dim} has no 2-D sine-cosine table; choose a multiple of 4.")
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))

    def encode(positions: torch.Tensor) -> torch.Tensor:
        angles = positions.double()[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([encode(column.flatten()), encode(row.flatten())], dim=1).float()


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

    def places(length: int, start: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        steps = (torch.arange(length, device=crops.device) + start[:, None]) % total[:, None]
        return (steps / (total[:, None] - 1).clamp(min=1) - 0.5) * 2

    top, left, canvas_height, canvas_width = crops.unbind(1)
    rows = places(height, top, canvas_height)[:, :, None].expand(-1, height, width)
    columns = places(width, left, canvas_width)[:, None, :].expand(-1, height, width)
    return torch.stack([rows, columns], dim=1)


def coordinate_channels(height: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """`(1, 2, height, width)`: row, then column coordinate, each from -1 to 1 over the image."""

    def ramp(length: int) -> torch.Tensor:
        return (torch.arange(length, device=device, dtype=torch.float32) / max(length - 1, 1) - 0.5) * 2

    rows = ramp(height)[:, None].expand(height, width)
    columns = ramp(width)[None, :].expand(height, width)
    return torch.stack([rows, columns])[None].to(dtype)
