"""The task of `train_text_to_image.py`: what of a Stable Diffusion pipeline is trained, and what is left.

For the UNet or a LoRA over it, captions are embedded by the frozen text encoder. A text encoder that is trained with
the UNet sees every caption anew, so that only latents are of use in a cache.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tqdm import tqdm

from brickwork.pipelines.stable_diffusion import is_xl
from brickwork.training.config.latent import TextToImageConfig
from brickwork.training.engine.checkpoints import load_tensors, trained_tensors
from brickwork.training.engine.previews import export_pipeline
from brickwork.training.tasks.latent.encoding import EncodeFirst, freeze_unet
from brickwork.training.tasks.latent.task import LatentTask

CARD = """# A Stable Diffusion pipeline trained with Brickwork

From `{base}`. Its previews were drawn with:

```python
pipe(prompt, {call})
```
"""


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


def save_unet_lora(pipeline: Any, folder: Path) -> None:
    """Write the LoRA of a pipeline's UNet; its alpha is in no tensor, and without it the LoRA would load otherwise."""
    config, layers = pipeline.unet.peft_config["default"].to_dict(), get_peft_model_state_dict(pipeline.unet)
    pipeline.save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=config)


def add_unet_lora(unet: torch.nn.Module, rank: int, alpha: float) -> None:
    """Put a LoRA on every linear layer and convolution of a frozen UNet, but the first and the last."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    names = [name for name, module in unet.named_modules() if isinstance(module, kinds)]
    targets = [name for name in names if name not in ("conv_in", "conv_out")]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class TokensFirst(EncodeFirst):
    """Pictures become latents, and rows their captions' tokens, for a text encoder that is being trained.

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

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rows = batch["row"].cpu()
        hidden = torch.rand(len(rows)) < self.dropout  # the loop seeds torch's numbers for every step
        tokens = self.tokens[torch.where(hidden, 0, rows + 1)].to(batch["noise"].device)
        unused = ("row", "caption", "prompt_embeds")
        batch = super().__call__({name: tensor for name, tensor in batch.items() if name not in unused})
        return batch | {"prompt_embeds": tokens}


class TextToImageTask(LatentTask):
    """A pipeline's UNet, or a LoRA over it, learns from captioned pictures.

    It leaves `pipeline/`, or `pytorch_lora_weights.safetensors` that `load_lora_weights` takes.
    """

    configuration, sections = TextToImageConfig, (*LatentTask.sections, "parts")

    @classmethod
    def build(cls, config: TextToImageConfig, accelerator: Accelerator, dry_run: bool = False) -> Self:
        if config.parts.train == "unet_and_text":
            cls = JointTask
        lora = config.parts.train == "lora"
        # A pipeline is left with its encoders as they came, not rounded to what training computes in.
        task = cls(config, accelerator, config.run.mixed_precision if lora else "no")
        task.network = task.trained_part()
        task.base.unet.to(accelerator.device)
        task.finish(use_cache=not dry_run)
        return task

    def trained_part(self) -> torch.nn.Module:
        """The network to train, on parts of the pipeline.

        Raises:
            ValueError: for text encoders that this cannot train.
        """
        parts, unet = self.config.parts, self.base.unet
        if parts.train == "lora":
            freeze_unet(unet, self.config.run.mixed_precision)
            add_unet_lora(unet, parts.rank, parts.alpha)
        return unet

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        if not self.accelerator.is_main_process:
            return
        load_tensors(trained_tensors(self.network), weights)
        if self.config.parts.train == "lora":
            save_unet_lora(self.base, folder)
            tqdm.write(f"The LoRA with the averaged weights is in {folder}.")
        else:
            shown = self.config.samples
            call = f"num_inference_steps={shown.steps}, guidance_scale={shown.guidance_scale:g}"
            export_pipeline(self.base, folder, card=CARD.format(call=call, base=self.config.model.base))


class JointTask(TextToImageTask):
    """A pipeline's UNet and its text encoder learn together: every caption is encoded anew."""

    drawn_in_part = True

    def trained_part(self) -> torch.nn.Module:
        if is_xl(self.base):
            raise ValueError(
                "`parts.train` is 'unet_and_text', which trains one text encoder; SDXL has two. Take unet."
            )
        self.base.text_encoder.float().requires_grad_(True)
        return UNetWithText(self.base.unet, self.base.text_encoder)

    def finish(self, use_cache: bool, baseline: Callable | None = None) -> None:
        super().finish(use_cache, baseline)
        self.complete = TokensFirst(self.base, self.stream.captioned.captions, self.config.objective.caption_dropout)

    def preview(self, images: int, log: Any) -> None:
        with self.accelerator.autocast():
            self.previews.encode(self.base)
        super().preview(images, log)

    def teacher(self, source: str) -> torch.nn.Module:
        raise ValueError(
            f"`teacher` is {source!r}, but a text encoder that learns has none; set `parts.train` to unet."
        )
