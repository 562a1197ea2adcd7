"""The plain reference that our LEGO is timed against: the stack as one writes it down first.

Written from the paper (arXiv 2310.06389): all windows of all images go through a brick as one batch of sequences, each
with a condition of its own, so that the modulation is computed once a window, as in the authors' implementation;
attention is torch's fused one at every window size; every layer is the library's, out of place.
"""

import torch
import torch.nn.functional as F
from torch import nn

from brickwork.gen.conditioning import ClassTimeEmbedding, coordinate_channels, sincos_position_table


class PlainBlock(nn.Module):
    """A DiT block on `(N, tokens, D)` with a condition `(N, cond_dim)` for each of `N` windows."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, cond_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.modulation = nn.Linear(cond_dim, 6 * dim)

    def forward(self, hidden_states: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        update = self.attention(self.norm1(hidden_states) * (1 + scale1) + shift1)
        hidden_states = hidden_states + gate1 * update
        update = self.fc1(self.norm2(hidden_states) * (1 + scale2) + shift2)
        update = self.fc2(F.gelu(update, approximate="tanh"))
        return hidden_states + gate2 * update

    def attention(self, hidden_states: torch.Tensor) -> torch.Tensor:
        count, tokens, dim = hidden_states.shape
        qkv = self.qkv(hidden_states).reshape(count, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        update = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(update.transpose(1, 2).reshape(count, tokens, dim))


class PlainBrick(nn.Module):
    """One brick on square windows that divide the image."""

    def __init__(self, brick: nn.Module, in_channels: int, cond_dim: int):
        super().__init__()
        self.window, self.patch, dim = brick.window_size, brick.patch_size, brick.patch_embed.out_features
        self.out_channels = brick.out_channels
        self.patch_embed = nn.Conv2d(in_channels, dim, self.patch, stride=self.patch)
        side = brick.window_tokens
        self.register_buffer("positions", sincos_position_table(dim, side, side), persistent=False)
        heads, hidden_dim = brick.blocks[0].attn.num_attention_heads, brick.blocks[0].mlp.fc1.out_features
        self.blocks = nn.ModuleList(PlainBlock(dim, heads, hidden_dim, cond_dim) for _ in brick.blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(cond_dim, 2 * dim)
        self.proj_out = nn.Linear(dim, self.out_channels * self.patch**2)

    def forward(self, sample: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """`sample (B, in_channels, H, W)`, `condition (B, cond_dim)` => `(B, out_channels, H, W)`."""
        batch, channels, height, width = sample.shape
        down, across = height // self.window, width // self.window
        windows = sample.reshape(batch, channels, down, self.window, across, self.window).permute(0, 2, 4, 1, 3, 5)
        windows = windows.reshape(-1, channels, self.window, self.window)
        condition = condition.repeat_interleave(down * across, dim=0)
        hidden_states = self.patch_embed(windows).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            hidden_states = block(hidden_states, condition)
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        patches = self.proj_out(self.norm(hidden_states) * (1 + scale) + shift)
        side = self.window // self.patch
        patches = patches.reshape(batch, down, across, side, side, self.out_channels, self.patch, self.patch)
        return patches.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(batch, self.out_channels, height, width)


class PlainLego(nn.Module):
    """The plain counterpart of a `LegoTransformer2DModel`, with the same weights and the same outputs.

    Args:
        model: the network to stand beside. Its windows must divide the images that the reference is given.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        channels, cond_dim = model.config.in_channels, model.bricks[0].final_modulation.linear.in_features
        self.num_classes = model.config.num_classes
        self.condition = ClassTimeEmbedding(cond_dim, self.num_classes, linear=True)
        self.bricks = nn.ModuleList(
            PlainBrick(brick, channels + 2 if number == 0 else 2 * channels + 2, cond_dim)
            for number, brick in enumerate(model.bricks)
        )
        # A patch embedding is a convolution here, the same numbers in another shape.
        named = _plain_names(model).items()
        self.load_state_dict({name: value.view(self.get_parameter(name).shape) for name, value in named})

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """`(B, C, H, W)`, `(B,)`, `(B,)` => the estimate of each brick, `(B, C, H, W)`."""
        condition = self.condition(timestep, class_labels, sample.dtype)
        position = coordinate_channels(*sample.shape[-2:], sample.device, sample.dtype).expand(len(sample), -1, -1, -1)
        estimates = []
        for brick in self.bricks:
            estimates.append(brick(torch.cat([*estimates[-1:], sample, position], dim=1), condition))
        return estimates


def _plain_names(model: nn.Module) -> dict[str, torch.Tensor]:
    """Our weights under the reference's names."""
    renamed = {}
    for name, value in model.state_dict().items():
        for ours, plain in ((".attn.", "."), (".mlp.", "."), ("final_modulation", "modulation"), (".linear.", ".")):
            name = name.replace(ours, plain)
        renamed[name] = value
    return renamed
