"""Stable Diffusion taken apart: SD 1.x, SD 2.x and SDXL alike, what goes into their UNets, and what these predict."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from brickwork.errors import explained
from brickwork.gen import parameterization
from brickwork.gen.operations import count_operations
from brickwork.gen.parameterization import EpsilonObjective, VObjective
from brickwork.gen.subnets import FULL, Subnets
from brickwork.hub import located, saved_variant, without_bars
from brickwork.pipelines.latents import pixels_per_latent

PREDICTIONS = {"epsilon": EpsilonObjective, "v_prediction": VObjective}


def load_pipeline(source: str, revision: str | None = None, variant: str | None = None):
    """A pipeline in float32, without its safety checker.

    Args:
        source: weights that ship, a pipeline's folder, or its name on the hub; of any task, as the parts are the same.
        revision: branch, tag or commit on the hub.
        variant: such as `fp16`, where the weights come in several.

    Raises:
        ValueError: for a single file, another kind of pipeline, or one whose UNet takes more than latents.
    """
    if not source:
        raise ValueError("`model.base` is empty; name a Stable Diffusion folder, or a model on the hub.")
    if Path(source).is_file():
        raise ValueError(
            f"`model.base` is {source!r}, a single file; turn it into a folder once, with "
            "`StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)` (or StableDiffusionXLPipeline)."
        )
    if source.startswith((".", "/")) and not (Path(source) / "model_index.json").is_file():
        raise ValueError(f"`model.base` is {source!r}, which holds no pipeline (no model_index.json).")
    place, options = located(source, "model.base")
    options |= {"revision": revision}
    without_bars()
    weights = {"variant": variant} if variant else saved_variant(place)
    with explained(f"`model.base` is {source!r}, which cannot be loaded", OSError, ValueError, KeyError):
        name = DiffusionPipeline.load_config(place, **options)["_class_name"]
        if not name.startswith("StableDiffusion") or name.startswith("StableDiffusion3"):
            raise ValueError("it is no Stable Diffusion 1.x, 2.x or XL")
        kind, extra = StableDiffusionXLPipeline, {"add_watermarker": False}
        if not name.startswith("StableDiffusionXL"):
            kind, extra = StableDiffusionPipeline, {"safety_checker": None, "requires_safety_checker": False}
        pipeline = kind.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, **weights, **options, **extra
        )
    if pipeline.unet.config.in_channels != pipeline.vae.config.latent_channels:
        raise ValueError(
            f"`model.base` is {source!r}, whose UNet takes {pipeline.unet.config.in_channels} channels (inpainting, "
            f"or an edit model); take the text-to-image model with {pipeline.vae.config.latent_channels}."
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def size_step(pipeline) -> int:
    """What heights and widths must be a multiple of: pixels of the UNet's coarsest level."""
    return pixels_per_latent(pipeline.vae) * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)


def is_xl(pipeline) -> bool:
    """Whether the UNet wants the pooled embedding and the size conditions of SDXL."""
    return pipeline.unet.config.addition_embed_type == "text_time"


def objective_of(scheduler, min_snr_gamma: float | None = None) -> EpsilonObjective:
    """What a pipeline's UNet was taught to predict, on the noise schedule of the pipeline's own scheduler.

    Args:
        scheduler: of the pipeline; any with betas.
        min_snr_gamma: see `EpsilonObjective`.

    Raises:
        ValueError: for other predictions than epsilon and v.
    """
    prediction = scheduler.config.prediction_type
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"The scheduler's prediction_type is {prediction!r}; {', '.join(PREDICTIONS)} can be trained."
        )
    objective = parameterization.objective_of(scheduler, min_snr_gamma)
    if prediction == "epsilon" and objective.alphas_cumprod.min() <= 0:
        raise ValueError("The scheduler's noise ends at zero signal, where epsilon says nothing; that takes v.")
    return objective


def unet_arguments(batch: dict[str, torch.Tensor]) -> dict:
    """The UNet's arguments beside sample and timestep."""
    arguments = {"encoder_hidden_states": batch["prompt_embeds"]}
    if "pooled_prompt_embeds" in batch:
        arguments["added_cond_kwargs"] = {"text_embeds": batch["pooled_prompt_embeds"], "time_ids": batch["time_ids"]}
    return arguments


def plain_time_ids(height: int, width: int) -> torch.Tensor:
    """SDXL's size conditions `(6,)` as its pipeline has them by default: an uncropped picture of that size."""
    return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)


class PromptedUNet(torch.nn.Module):
    """A UNet with its prompts inside, so that it is called as class-conditional networks are.

    For `brickwork.eval.held_out`, whose labels are then numbers of prompts.

    Args:
        unet: the network.
        prompts: `prompt_embeds (N, tokens, width)` and, for SDXL, `pooled_prompt_embeds (N, width)`.
        pixels_per_latent: along each side.
    """

    def __init__(self, unet: torch.nn.Module, prompts: dict[str, torch.Tensor], pixels_per_latent: int = 8):
        super().__init__()
        self.unet, self.prompts, self.pixels_per_latent = unet, prompts, pixels_per_latent

    @property
    def config(self):
        """Of the UNet."""
        return self.unet.config

    @torch.no_grad()
    def subnets(self, height: int, width: int) -> Subnets:
        """The UNet alone, with the counted operations of one sample of `height x width`."""
        like = next(self.unet.parameters())
        sample = torch.zeros(1, self.config.in_channels, height, width, dtype=like.dtype, device=like.device)
        first = torch.zeros(1, dtype=torch.long, device=like.device)
        return Subnets({FULL: count_operations(lambda: self(sample, first, first.cpu()))[0]})

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor):
        """`sample (B, C, h, w)`, `timestep (B,)`, `class_labels (B,)` numbers of prompts."""
        batch = {name: tensor.to(sample.device)[class_labels] for name, tensor in self.prompts.items()}
        height, width = (side * self.pixels_per_latent for side in sample.shape[-2:])
        batch["time_ids"] = plain_time_ids(height, width).to(sample.device).expand(len(sample), 6)
        return self.unet(sample, timestep, **unet_arguments(batch))
