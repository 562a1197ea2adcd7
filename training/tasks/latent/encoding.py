"""What a Stable Diffusion pipeline's frozen encoders do while its UNet is trained.

A batch holds what `brickwork.training.data.captioned` makes:

- `row (B,)`, of the data set;
- `image (B, C, h, w)`: scaled latents; or `posterior (B, C, h, w)`, the normal numbers that choose a latent from the
  VAE's distribution, with its `mean` and `logvar` or `pixels (B, 3, H, W)` in [-1, 1];
- `noise (B, C, h, w)`, with any noise offset in it; `level (B,)` normal, which becomes a timestep;
- `prompt_embeds (B, tokens, width)`, with `pooled_prompt_embeds (B, width)` for SDXL; or `caption (B,)`, numbers of
  captions, -1 for none;
- `time_ids (B, 6)` for SDXL: the picture's own height and width, the crop's top and left, and the size, in pixels.
"""

from collections.abc import Sequence

import torch

from brickwork.pipelines import latents
from brickwork.pipelines.prompts import encode_captions, encode_no_caption, encoders_of

HALF = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def freeze_encoders(pipeline, precision: str, device: torch.device) -> None:
    """Move the VAE and the text encoders to the device, frozen, in the type that training computes in.

    Args:
        pipeline: whose networks are changed in place.
        precision: `no`, `bf16` or `fp16`; a VAE whose configuration asks for it stays in float32 instead of fp16.
        device: of the training.
    """
    for network in (pipeline.vae, *encoders_of(pipeline)):
        keep = precision == "fp16" and getattr(network.config, "force_upcast", False)
        # Not through diffusers' own `to`, which warns of layers to keep in float32 where there are none.
        torch.nn.Module.to(network.requires_grad_(False).eval(), device, torch.float32 if keep else HALF[precision])


def freeze_unet(unet: torch.nn.Module, precision: str) -> None:
    """Freeze the UNet, and store what autocast computes in half precision so; norms stay in float32.

    What is to be trained is added or unfrozen after this.
    """
    unet.requires_grad_(False)
    for module in unet.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.to(HALF[precision])


class EncodeFirst:
    """Batches of pixels, moments or numbers of captions become what the UNet takes, on the device.

    Args:
        pipeline: its VAE and text encoders, on the device and frozen.
        captions: by number; `None` where batches have embeddings.
    """

    def __init__(self, pipeline, captions: Sequence[str] | None):
        self.pipeline, self.captions = pipeline, captions
        self.nothing = encode_no_caption(pipeline) if captions is not None else {}

    @torch.no_grad()
    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch with `image` and the embeddings of its captions."""
        batch, vae = dict(batch), self.pipeline.vae
        if "pixels" in batch:
            batch["mean"], batch["logvar"] = latents.moments(vae, batch.pop("pixels"))
        if "mean" in batch:
            batch["image"] = latents.draw(vae, *(batch.pop(name) for name in ("mean", "logvar", "posterior")))
        if "caption" in batch:
            batch |= self._embeddings(batch.pop("caption").tolist(), batch["noise"].device)
        return batch

    def _embeddings(self, numbers: list[int], device: torch.device) -> dict[str, torch.Tensor]:
        encoded = encode_captions(self.pipeline, [self.captions[n] if n >= 0 else "" for n in numbers])
        without = [index for index, number in enumerate(numbers) if number < 0]
        for name, tensor in encoded.items():
            tensor[without] = self.nothing[name]
        return {name: tensor.to(device) for name, tensor in encoded.items()}
