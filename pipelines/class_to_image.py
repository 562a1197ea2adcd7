"""Images from a network of blocks, for a class or for none, by any of diffusers' usual schedulers."""

from typing import Any, Self

from diffusers import AutoencoderKL, ImagePipelineOutput, ModelMixin, SchedulerMixin

from brickwork.pipelines.arguments import shared_call
from brickwork.pipelines.sampling import SamplingPipeline
from brickwork.pipelines.schedules import SubnetSchedule


class ClassToImagePipeline(SamplingPipeline):
    """Class-conditional or unconditional images.

    The scheduler must speak of what the network was trained to predict: `EpsilonObjective` and `VObjective` go with
    DDPM, DDIM, DPM-Solver++ and their like under the same betas and `prediction_type`, `EDMObjective` with the EDM
    family, `FlowObjective` with the flow-matching ones. `from_objective` builds a fitting pair.

    Args:
        transformer: the network: `BlockTransformer2DModel`, `BlockUNet2DModel`, or `LegoTransformer2DModel` with all
            its bricks (`LegoPipeline` has schedules of bricks).
        scheduler: a scheduler of diffusers, or `EDMHeunScheduler`.
        vae: decoder of a latent model; `None` for a model of pixels.
        subnet_schedule: which subnet runs at which noise level, for calls that name none; as JSON when it comes from a
            file; `None` for the network itself.
        guidance_scale: recommended for calls that name none; `None` for 1.
        num_inference_steps: likewise; `None` for 50.
    """

    default_steps = 50
    subnet_schedule = SamplingPipeline.schedule

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        subnet_schedule: SubnetSchedule | dict | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
    ):
        super().__init__(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(guidance_scale=guidance_scale, num_inference_steps=num_inference_steps)
        self.schedule = subnet_schedule

    @classmethod
    def from_objective(
        cls, transformer: ModelMixin, objective: Any, vae: AutoencoderKL | None = None, **settings
    ) -> Self:
        """The pipeline of a network that was trained with `objective`, one of `brickwork.gen.parameterization`."""
        return cls(transformer, objective.scheduler(), vae, **settings)

    @shared_call(SamplingPipeline._draw, default_steps)
    def __call__(
        self,
        *shared,
        subnet_schedule: SubnetSchedule | None = None,
        **further,
    ) -> ImagePipelineOutput | tuple:
        """Draw images.

        Args:
            SHARED
            subnet_schedule: which subnet runs at which noise level; by default the pipeline's own, else the network.

        Raises:
            ValueError: for labels, sizes, schedules and other arguments that the network cannot take.
        """
        return self._draw(*shared, schedule=subnet_schedule, **further)

    def _check_components(self) -> None:
        if self.transformer.config.get("cross_attention_dim") is not None:
            raise ValueError(
                "`transformer` reads a text (`cross_attention_dim`); use it as `unet` of StableDiffusionPipeline."
            )
