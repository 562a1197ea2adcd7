"""An autoencoder whose decoder is wider than its encoder."""

from collections.abc import Sequence

from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Encoder


class UnequalAutoencoderKL(AutoencoderKL):
    """diffusers' `AutoencoderKL` with an encoder of widths of its own.

    To code a picture is easier than to draw it again, and networks trained on latents need them to stay what they are:
    a wide decoder on a narrow encoder draws better from the same latents. (diffusers' `AsymmetricAutoencoderKL` has
    such widths too, and attention and a second encoder for inpainting beside them.)

    Args:
        encoder_block_out_channels: widths of the encoder; as many as of the decoder.
        block_out_channels: widths of the decoder.
        others: as `AutoencoderKL` has them.

    Raises:
        ValueError: for more or fewer widths of the one than of the other.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        encoder_block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ):
        if len(encoder_block_out_channels) != len(block_out_channels):
            raise ValueError(
                f"`encoder_block_out_channels` has {len(encoder_block_out_channels)} widths and `block_out_channels` "
                f"{len(block_out_channels)}; give as many of both."
            )
        # By keyword: diffusers takes what comes by place for defaults, which `from_config` then leaves out.
        super().__init__(
            in_channels=in_channels, out_channels=out_channels, down_block_types=down_block_types,
            up_block_types=up_block_types, block_out_channels=block_out_channels, layers_per_block=layers_per_block,
            act_fn=act_fn, latent_channels=latent_channels, norm_num_groups=norm_num_groups, sample_size=sample_size,
            scaling_factor=scaling_factor, shift_factor=shift_factor, latents_mean=latents_mean,
            latents_std=latents_std, force_upcast=force_upcast, use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv, mid_block_add_attention=mid_block_add_attention,
        )  # fmt: skip
        self.encoder = Encoder(
            in_channels, latent_channels, tuple(down_block_types), tuple(encoder_block_out_channels),
            layers_per_block, norm_num_groups, act_fn, mid_block_add_attention=mid_block_add_attention,
        )  # fmt: skip
