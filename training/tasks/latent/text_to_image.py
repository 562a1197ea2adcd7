"""Text-to-image training on a Stable Diffusion pipeline's own parts: what is trained, the loss, what is left.

For the UNet or a LoRA over it, captions are embedded by the frozen text encoder. A text encoder that is trained with
the UNet sees every caption anew, so that only latents are of use in a cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from brickwork.training.config.adapter import PartsConfig
from brickwork.training.data.captioned import CaptionedStream
from brickwork.training.data.text_cache import encode_captions, encode_no_caption
from brickwork.training.engine.checkpoints import load_trained_tensors
from brickwork.training.engine.previews import export_pipeline
from brickwork.training.tasks.latent.stable_diffusion import EncodeFirst, latent_loss
from brickwork.training.tasks.latent.task import SizePreviews


class UNetWithText(torch.nn.Module):
    """A UNet and its text encoder as one network to train.

    Args:
        unet: of a pipeline.
        text_encoder: of the same.
    """

    def __init__(self, unet: torch.nn.Module, text_encoder: torch.nn.Module):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor):
        """`sample (B, C, h, w)`, `timestep (B,)`, and the captions' tokens `(B, tokens)` in place of embeddings."""
        return self.unet(sample, timestep, self.text_encoder(encoder_hidden_states)[0])


def add_whole_lora(unet: torch.nn.Module, rank: int, alpha: float) -> None:
    """Put a LoRA on every linear layer and convolution of a frozen UNet, but the first and the last."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    names = [name for name, module in unet.named_modules() if isinstance(module, kinds)]
    targets = [name for name in names if name not in ("conv_in", "conv_out")]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class NumberedStream(CaptionedStream):
    """Samples that tell their row, for a text encoder that is being trained."""

    def _sample(self, row: int, position: int) -> tuple:
        row, picture = super()._sample(row, position)
        return row, picture | {"row": torch.tensor(row)}


class TokensFirst(EncodeFirst):
    """A loss for batches that tell their rows: pictures become latents, and rows their captions' tokens.

    Args:
        pipeline: its VAE, on the device and frozen, and its tokenizer.
        captions: of the rows.
        dropout: share of images whose caption is hidden.
    """

    def __init__(self, pipeline, captions: Sequence[str], dropout: float):
        super().__init__(pipeline, None)
        tokenizer = pipeline.tokenizer
        self.tokens = tokenizer(
            ["", *captions],
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        self.dropout = dropout

    def __call__(self, run, model: torch.nn.Module, batch: dict, bricks=None) -> torch.Tensor:
        rows = batch["row"].cpu()
        hidden = torch.rand(len(rows)) < self.dropout  # the loop seeds torch's numbers for every step
        tokens = self.tokens[torch.where(hidden, 0, rows + 1)].to(batch["noise"].device)
        unused = ("row", "caption", "prompt_embeds")
        batch = self.complete({name: tensor for name, tensor in batch.items() if name not in unused})
        return latent_loss(run, model, batch | {"prompt_embeds": tokens}, bricks)


class JointPreviews(SizePreviews):
    """The previews of a UNet whose text encoder changes with it."""

    def __call__(self, run, network: UNetWithText, images: int, log) -> None:
        captions = self.images.captions
        with run.accelerator.autocast():
            self.embeddings = encode_captions(self.pipeline, self.prompts or [""])
            self.nothing = encode_no_caption(self.pipeline)
            self.texts = encode_captions(self.pipeline, [captions[row] for row in self.number]) if self.number else {}
        super().__call__(run, network.unet, images, log)


@dataclass
class Export:
    """What a run leaves: `pipeline/`, or `pytorch_lora_weights.safetensors` that `load_lora_weights` takes.

    Attributes:
        pipeline: with the networks in training.
        network: the network in training.
        parts: what is trained.
        accelerator: of the run.
    """

    pipeline: object
    network: torch.nn.Module
    parts: PartsConfig
    accelerator: Accelerator

    def __call__(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        load_trained_tensors(self.network, weights)
        if self.parts.train == "lora":
            layers = get_peft_model_state_dict(self.pipeline.unet)
            self.pipeline.save_lora_weights(
                folder, unet_lora_layers=layers, unet_lora_adapter_metadata=self._lora_config()
            )
            self.accelerator.print(f"The LoRA with the averaged weights is in {folder}.")
        else:
            path = export_pipeline(self.pipeline, folder)
            self.accelerator.print(f"The pipeline with the averaged weights is in {path}.")

    def _lora_config(self) -> dict:
        """Alpha is in no tensor of a PEFT file: without this the LoRA would load with another strength."""
        return self.pipeline.unet.peft_config["default"].to_dict()
