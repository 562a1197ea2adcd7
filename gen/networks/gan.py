"""MaxViT's generator: an image in one step (Tu et al., arXiv 2204.01697, section 4.5), and what it is trained against.

The authors published a table, not the code: five stages of 256, 256, 256, 128 and 128 channels from 8×8 to 128×128,
blocks in the inverse order grid, window, MBConv, cross-attention to the latent, pixel shuffle, BatchNorm, 18.6M
parameters. Two blocks a stage and a latent of 64 numbers, read as 16 tokens, give 18.8M; both are our choice.
"""

from collections.abc import Callable, Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from brickwork.gen.blocks.maxvit import MaxViTBlock
from brickwork.gen.blocks.norms import make_norm
from brickwork.gen.networks.base import Adaptable, Denoiser, SampleOutput

LATENT_TOKENS = 16


class Upsample(nn.Module):
    """Twice the height and width: a 1×1 convolution, and its channels shuffled into pixels."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, 4 * out_dim, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.pixel_shuffle(self.conv(hidden_states), 2)


class MaxViTGenerator2DModel(Denoiser, ModelMixin, ConfigMixin, Adaptable):
    """Noise => image, in one step.

    Args beside those of `Denoiser`, of which `sample_size` is a multiple of `2 ** (stages - 1)`:
        latent_dim: numbers that an image is made from.
        block_out_channels: channels of each stage; every stage after the first doubles height and width.
        layers_per_stage: blocks of each stage.
        attention_head_dim: channels of a head.
        window_size: side of the windows and grids; at most the side of the first stage.
        conv_norm: norm of the convolutions, see `make_norm`; the paper's is `"batch"`.
        block_options: further settings of `MaxViTBlock`.
    """

    _no_split_modules = _repeated_blocks = ["MaxViTBlock"]
    pipeline = "OneStepPipeline"
    smallest = {
        "sample_size": 16, "latent_dim": 16, "block_out_channels": (16, 16), "layers_per_stage": 1,
        "attention_head_dim": 8, "window_size": 4,
    }  # fmt: skip

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        out_channels: int = 3,
        latent_dim: int = 64,
        block_out_channels: Sequence[int] = (256, 256, 256, 128, 128),
        layers_per_stage: int = 2,
        attention_head_dim: int = 32,
        window_size: int = 8,
        conv_norm: str = "batch",
        block_options: dict | None = None,
    ):
        super().__init__()
        start = _first_side(sample_size, len(block_out_channels), window_size)
        first = block_out_channels[0]
        self.tokens = nn.Linear(latent_dim, LATENT_TOKENS * latent_dim)
        self.start = nn.Linear(latent_dim, first * start * start)
        self.stages, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        settings = {"attention_head_dim": attention_head_dim, "window_size": window_size, "conv_norm": conv_norm}
        settings |= {"modulation": "none", "decoder": True, "cross_attention_dim": latent_dim} | (block_options or {})
        for stage, dim in enumerate(block_out_channels):
            if stage:
                self.upsamplers.append(Upsample(block_out_channels[stage - 1], dim))
            self.stages.append(
                nn.ModuleList(MaxViTBlock(dim, latent_dim, **settings) for _ in range(layers_per_stage))
            )
        self.norm_out = make_norm(conv_norm, block_out_channels[-1], eps=1e-5)
        self.conv_out = nn.Conv2d(block_out_channels[-1], out_channels, 3, padding=1)

    def example_inputs(self, batch: int, height: int, width: int) -> dict[str, torch.Tensor]:
        side = self.config.sample_size
        if (height, width) != (side, side):
            raise ValueError(f"`height`, `width` are {height}, {width}; this network draws {side} × {side} alone.")
        return {"latents": torch.zeros(batch, self.config.latent_dim)}

    def forward(
        self, latents: torch.Tensor, return_dict: bool = True, subnet: str | None = None
    ) -> SampleOutput | tuple:
        """`latents (B, latent_dim)` of unit variance => `sample (B, out_channels, H, W)` in [-1, 1]."""
        self._find_subnet(subnet)
        if latents.ndim != 2 or latents.shape[1] != self.config.latent_dim:
            raise ValueError(
                f"`latents` has shape {tuple(latents.shape)}; this network reads (batch, {self.config.latent_dim})."
            )
        latents = latents.to(self.dtype)
        tokens = self.tokens(latents).unflatten(1, (LATENT_TOKENS, -1))
        side = self.config.sample_size // 2 ** (len(self.stages) - 1)
        hidden_states = self.start(latents).unflatten(1, (-1, side, side))
        for stage, blocks in enumerate(self.stages):
            if stage:
                hidden_states = self.upsamplers[stage - 1](hidden_states)
            for block in blocks:
                hidden_states = self._run(block, hidden_states, latents, tokens)
        sample = torch.tanh(self.conv_out(nn.functional.gelu(self.norm_out(hidden_states))))
        return SampleOutput(sample=sample) if return_dict else (sample,)


class ResidualStage(nn.Module):
    """Two 3×3 convolutions beside a 1×1 one, then half the height and width."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, out_dim, 3, padding=1)
        self.skip = nn.Conv2d(dim, out_dim, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        update = self.conv1(nn.functional.leaky_relu(hidden_states, 0.2))
        update = self.conv2(nn.functional.leaky_relu(update, 0.2))
        return nn.functional.avg_pool2d((self.skip(hidden_states) + update) * 0.5**0.5, 2)


class ResidualDiscriminator(nn.Module):
    """One number an image: how real it looks.

    Args:
        sample_size: side of the images in pixels.
        in_channels: of the images.
        dims: channels, one more than there are halvings of the side.
    """

    def __init__(self, sample_size: int, in_channels: int, dims: Sequence[int]):
        super().__init__()
        halvings = len(dims) - 1
        if sample_size % 2**halvings:
            raise ValueError(
                f"`discriminator_channels` has {len(dims)} entries, which halve the side {halvings} times; the side "
                f"{sample_size} is no multiple of {2**halvings}."
            )
        self.conv_in = nn.Conv2d(in_channels, dims[0], 3, padding=1)
        self.stages = nn.ModuleList(ResidualStage(*pair) for pair in zip(dims, dims[1:]))
        # One channel more: how much the images of the batch differ, which shows a generator that always draws one.
        self.conv_out = nn.Conv2d(dims[-1] + 1, dims[-1], 3, padding=1)
        self.linear = nn.Linear(dims[-1] * (sample_size // 2**halvings) ** 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` in [-1, 1] => `(B,)`."""
        hidden_states = self.conv_in(images)
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        spread = (hidden_states.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        spread = spread.expand(len(images), 1, *hidden_states.shape[-2:])
        hidden_states = self.conv_out(torch.cat([hidden_states, spread], dim=1))
        return self.linear(nn.functional.leaky_relu(hidden_states, 0.2).flatten(1)).squeeze(1)


class MaxViTGAN2DModel(Denoiser, ModelMixin, ConfigMixin):
    """A generator and its discriminator as one network to train.

    Args beside those of `Denoiser`:
        discriminator_channels: channels of the discriminator, one more than it halves the side.
        generator_config: settings of `MaxViTGenerator2DModel` over its defaults.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        in_channels: int = 3,
        discriminator_channels: Sequence[int] = (64, 128, 256, 512, 512),
        generator_config: dict | None = None,
    ):
        super().__init__()
        # By keyword: diffusers takes positional arguments for defaults when it saves a configuration.
        self.generator = MaxViTGenerator2DModel(
            sample_size=sample_size, out_channels=in_channels, **(generator_config or {})
        )
        self.discriminator = ResidualDiscriminator(sample_size, in_channels, discriminator_channels)

    def forward(
        self,
        images: torch.Tensor,
        latents: torch.Tensor,
        augment: Callable[[torch.Tensor], torch.Tensor],
        penalised: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Everything that the loss needs, in one pass, so that wrappers for several devices see one call.

        Args:
            images: real ones `(B, C, H, W)` in [-1, 1].
            latents: `(B, latent_dim)` of unit variance.
            augment: what the discriminator gets to see of an image, real or not; differentiable.
            penalised: number of real images to measure the discriminator's gradient at.

        Returns:
            What the discriminator says, each `(B,)`: of drawn images, for the generator (the discriminator gets no
            gradient); of drawn images, for the discriminator; of the real ones. And the squared norm of its gradient
            at the first real ones `(penalised,)`.
        """
        drawn = self.generator(latents, return_dict=False)[0]
        self.discriminator.requires_grad_(False)
        persuaded = self.discriminator(augment(drawn))
        self.discriminator.requires_grad_(True)
        found = self.discriminator(augment(drawn.detach()))
        real = self.discriminator(augment(images))
        with torch.autocast(images.device.type, enabled=False), torch.enable_grad():
            at = images[:penalised].float().detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.discriminator(augment(at)).sum(), at, create_graph=True)
        return persuaded, found, real, gradient.square().flatten(1).sum(dim=1)


def _first_side(sample_size: int, stages: int, window_size: int) -> int:
    """The side of the first stage."""
    factor = 2 ** (stages - 1)
    if stages < 1 or sample_size < factor or sample_size % factor:
        raise ValueError(
            f"`sample_size` is {sample_size}; with {stages} stages give a multiple of {factor}, or change the number "
            "of `block_out_channels`."
        )
    if window_size > sample_size // factor:
        raise ValueError(
            f"`window_size` is {window_size}, more than the first stage's side of {sample_size // factor}; give at "
            "most that."
        )
    return sample_size // factor
