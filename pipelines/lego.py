"""Images from a LEGO network, of any size and at any compute budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from diffusers import AutoencoderKL, ImagePipelineOutput, SchedulerMixin

from brickwork.errors import one_of
from brickwork.gen.networks.lego import LegoTransformer2DModel
from brickwork.gen.subnets import bricks_of
from brickwork.pipelines.arguments import shared_call
from brickwork.pipelines.canvas import WINDOWS, WindowPlan
from brickwork.pipelines.class_to_image import ClassToImagePipeline
from brickwork.pipelines.sampling import SamplingPipeline
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler, require_edm
from brickwork.pipelines.schedules import BrickSchedule, SubnetSchedule


@dataclass
class LegoPipelineOutput(ImagePipelineOutput):
    """Output of `LegoPipeline`.

    Attributes:
        images: as `output_type` says.
        bricks: that ran, one tuple a step; both evaluations of a second-order step run the same ones. None of the
            pipeline's own where another of the call's `networks` ran.
    """

    bricks: list[tuple[int, ...]]


class LegoPipeline(ClassToImagePipeline):
    """Class-conditional or unconditional images from a stack of LEGO bricks.

    Args beside those of `ClassToImagePipeline` (18 are the usual `num_inference_steps`):
        transformer: the network, trained with EDM's objective.
        scheduler: `EDMHeunScheduler`, or diffusers' `EDMEulerScheduler` or `EDMDPMSolverMultistepScheduler`.
        brick_schedule: for calls that name none; as JSON when it comes from a file; `None` for all bricks.
        windows: likewise, how windows lie above the training size; `None` for shifted where the network was trained on
            crops, else fixed.
    """

    schedule_name, default_steps = "brick_schedule", 18
    in_float64 = whole_steps = True
    brick_schedule = SamplingPipeline.schedule

    def __init__(
        self,
        transformer: LegoTransformer2DModel,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        brick_schedule: BrickSchedule | SubnetSchedule | dict | None = None,
        windows: str | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
    ):
        super().__init__(transformer, scheduler, vae, brick_schedule, guidance_scale, num_inference_steps)
        self.register_to_config(windows=None if windows is None else one_of("windows", windows, WINDOWS))

    @classmethod
    def from_objective(
        cls, transformer: LegoTransformer2DModel, objective: Any, vae: AutoencoderKL | None = None, **settings
    ) -> Self:
        """The pipeline of a network that was trained with EDM's objective, with its authors' sampler."""
        return cls(transformer, EDMHeunScheduler(sigma_data=objective.sigma_data), vae, **settings)

    @shared_call(SamplingPipeline._draw, default_steps, "step (both evaluations of a second-order one)")
    def __call__(
        self,
        *shared,
        brick_schedule: BrickSchedule | SubnetSchedule | None = None,
        windows: str | None = None,
        **further,
    ) -> LegoPipelineOutput | tuple:
        """Draw images.

        Args:
            SHARED
            brick_schedule: which bricks run at which noise level; by default the pipeline's own, else all bricks.
            windows: on sides above the training size; by default what is saved with the pipeline. `"shifted"`:
                elsewhere in each evaluation, so that borders leave no seams, at the same cost; the picture is one
                canvas whose opposite ends meet in windows. `"fixed"`: always at the same positions. `"tiled"`: the
                same, and each square of the training size is told that it is a picture of its own.

        Raises:
            ValueError: for labels, sizes, schedules and other arguments that the network cannot take.
        """
        kind = self._recommended("windows", windows, None)
        further["hooks_at"] = lambda size: [WindowPlan.of(kind, size, self.transformer, self._others)]
        return self._draw(*shared, schedule=brick_schedule, **further)

    def _output(self, images, subnets: Sequence[str | None]) -> LegoPipelineOutput:
        number = len(self.transformer.config.patch_sizes)
        bricks = [() if subnet in self._others else bricks_of(subnet, number) for subnet in subnets]
        return LegoPipelineOutput(images=images, bricks=bricks)

    def _check_components(self) -> None:
        require_edm(self.scheduler)
