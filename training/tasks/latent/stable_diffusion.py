"""Stable Diffusion taken apart for training: its parts, what goes into its UNet, and the loss.

For SD 1.x, SD 2.x and SDXL alike. A batch of `latent_loss` holds what `brickwork.training.data.captioned` makes:

- `image (B, C, h, w)`: scaled latents; or `posterior (B, C, h, w)`, the normal numbers that choose a latent from the
  VAE's distribution, with its `mean` and `logvar` or `pixels (B, 3, H, W)` in [-1, 1];
- `noise (B, C, h, w)`, with any noise offset in it; `level (B,)` normal, which becomes a timestep;
- `prompt_embeds (B, tokens, width)`, with `pooled_prompt_embeds (B, width)` for SDXL; or `caption (B,)`, numbers of
  captions, -1 for none;
- `time_ids (B, 6)` for SDXL: the picture's own height and width, the crop's top and left, and the size, in pixels.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from brickwork.gen.parameterization import EpsilonObjective, VObjective
from brickwork.pipelines import latents
from brickwork.pipelines.latents import pixels_per_latent
from brickwork.training.data.text_cache import encode_captions, encode_no_caption, encoders_of

PREDICTIONS = {"epsilon": EpsilonObjective, "v_prediction": VObjective}
HALF = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_pipeline(source: str, revision: str | None = None, variant: str | None = None):
    """A pipeline in float32, without its safety checker.

    Args:
        source: a pipeline's folder, or its name on the hub; of any task, as the parts are the same.
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
    try:
        name = DiffusionPipeline.load_config(source, revision=revision)["_class_name"]
        if not name.startswith("StableDiffusion") or name.startswith("StableDiffusion3"):
            raise ValueError("it is no Stable Diffusion 1.x, 2.x or XL")
        kind, extra = StableDiffusionXLPipeline, {"add_watermarker": False}
        if not name.startswith("StableDiffusionXL"):
            kind, extra = StableDiffusionPipeline, {"safety_checker": None, "requires_safety_checker": False}
        pipeline = kind.from_pretrained(
            source, revision=revision, variant=variant, dtype=torch.float32, use_safetensors=True, **extra
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"`model.base` is {source!r}, which cannot be loaded: {error}.") from error
    if pipeline.unet.config.in_channels != pipeline.vae.config.latent_channels:
        raise ValueError(
            f"`model.base` is {source!r}, whose UNet takes {pipeline.unet.config.in_channels} channels (inpainting, "
            f"or an edit model); take the text-to-image model with {pipeline.vae.config.latent_channels}."
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def vae_factor(pipeline) -> int:
    """Pixels a latent, along each side."""
    return pixels_per_latent(pipeline.vae)


def size_step(pipeline) -> int:
    """What heights and widths must be a multiple of: pixels of the UNet's coarsest level."""
    return vae_factor(pipeline) * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)


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
    config = scheduler.config
    kind = PREDICTIONS.get(config.prediction_type)
    if kind is None:
        raise ValueError(
            f"The scheduler's prediction_type is {config.prediction_type!r}; {', '.join(PREDICTIONS)} can be trained."
        )
    objective = kind(
        config.num_train_timesteps, config.beta_schedule, config.beta_start, config.beta_end, min_snr_gamma
    )
    # With betas that are given one by one, or rescaled to end in pure noise.
    objective.alphas_cumprod = DDPMScheduler.from_config(config).alphas_cumprod.double()
    if kind is EpsilonObjective and objective.alphas_cumprod.min() <= 0:
        raise ValueError("The scheduler's noise ends at zero signal, where epsilon says nothing; that takes v.")
    return objective


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


def network_arguments(batch: dict[str, torch.Tensor]) -> dict:
    """The UNet's arguments beside sample and timestep."""
    arguments = {"encoder_hidden_states": batch["prompt_embeds"]}
    if "pooled_prompt_embeds" in batch:
        arguments["added_cond_kwargs"] = {
            "text_embeds": batch["pooled_prompt_embeds"],
            "time_ids": batch["time_ids"],
        }
    return arguments


def latent_loss(run, model: torch.nn.Module, batch: dict, bricks: tuple[int, ...] | None = None) -> torch.Tensor:
    """The denoising loss of each image `(B,)`, for `brickwork.training.engine.loop.Run`.

    `run.objective` is an `objective_of` the pipeline's scheduler. `bricks` is of other networks.
    """
    image, noise = batch["image"], batch["noise"]
    level = run.objective.noise_levels(batch["level"])
    sample, timestep = run.objective.network_inputs(image, noise, level)
    output = model(sample, timestep, **network_arguments(batch)).sample
    return run.objective.losses(output, image, noise, level)


class EncodeFirst:
    """A loss for batches of pixels, moments or numbers of captions, which become what the UNet takes on the device.

    Args:
        pipeline: its VAE and text encoders, on the device and frozen.
        captions: by number; `None` where batches have embeddings.
        loss: of the completed batch.
    """

    def __init__(self, pipeline, captions: Sequence[str] | None, loss: Callable[..., torch.Tensor] = latent_loss):
        self.pipeline, self.captions, self.loss = pipeline, captions, loss
        self.nothing = encode_no_caption(pipeline) if captions is not None else {}

    def __call__(self, run, model: torch.nn.Module, batch: dict, bricks=None) -> torch.Tensor:
        return self.loss(run, model, self.complete(batch), bricks)

    @torch.no_grad()
    def complete(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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
        without = [place for place, number in enumerate(numbers) if number < 0]
        for name, tensor in encoded.items():
            tensor[without] = self.nothing[name]
        return {name: tensor.to(device) for name, tensor in encoded.items()}


class PromptedUNet(torch.nn.Module):
    """A UNet with its prompts inside, so that it is called as class-conditional networks are.

    For `brickwork.eval.held_out.paired_loss`, whose labels are then numbers of prompts.

    Args:
        unet: the network.
        prompts: `prompt_embeds (N, tokens, width)` and, for SDXL, `pooled_prompt_embeds (N, width)`.
        pixels_per_latent: see `vae_factor`.
    """

    def __init__(self, unet: torch.nn.Module, prompts: dict[str, torch.Tensor], pixels_per_latent: int = 8):
        super().__init__()
        self.unet, self.prompts, self.pixels_per_latent = unet, prompts, pixels_per_latent

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor):
        """`sample (B, C, h, w)`, `timestep (B,)`, `class_labels (B,)` numbers of prompts."""
        batch = {name: tensor.to(sample.device)[class_labels] for name, tensor in self.prompts.items()}
        height, width = (side * self.pixels_per_latent for side in sample.shape[-2:])
        batch["time_ids"] = plain_time_ids(height, width).to(sample.device).expand(len(sample), 6)
        return self.unet(sample, timestep, **network_arguments(batch))


def plain_time_ids(height: int, width: int) -> torch.Tensor:
    """SDXL's size conditions `(6,)` as its pipeline has them when nothing is said: a whole picture of that size."""
    return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
