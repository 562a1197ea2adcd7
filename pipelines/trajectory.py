"""Trajectory stitching for pipelines of diffusers (T-Stitch, arXiv 2402.14167): networks share the steps of a picture.

A small network draws the coarse, at high noise, a large one the fine, at low noise. No training is needed: networks of
one objective, latents and conditions walk along nearly the same path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from brickwork.adapters.base import denoiser_of
from brickwork.gen.subnets import FULL, find_subnet
from brickwork.pipelines.schedules import SubnetSchedule, noise_level_at

_OF_NETWORK = (
    "in_channels", "out_channels", "cross_attention_dim", "joint_attention_dim", "num_class_embeds", "num_classes",
)  # fmt: skip
_OF_VAE = ("latent_channels", "scaling_factor", "shift_factor")
_OF_SCHEDULER = (
    "prediction_type", "beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "trained_betas", "sigma_data",
)  # fmt: skip


class StitchedTrajectory:
    """Several networks in the place of a pipeline's own; made by `stitch_trajectory`, undone by `unload`.

    The pipeline's schedule of steps says the noise level, of any scheduler with `sigmas` or `alphas_cumprod`.

    Attributes:
        pipeline: that calls them.
        networks: by name, the pipeline's own as `"full"`.
        schedule: which one runs at which noise level; may be set.
        ran: the name of each evaluation since `ran.clear()`, for whoever wants to know.
    """

    def __init__(self, pipeline: Any, networks: Mapping[str, torch.nn.Module], schedule: SubnetSchedule):
        self.pipeline, self.networks, self.ran = pipeline, dict(networks), []
        self._own, self.schedule = networks[FULL], schedule
        self._forward = self._own.forward
        self._own.forward = self._run

    @property
    def schedule(self) -> SubnetSchedule:
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: SubnetSchedule) -> None:
        if not isinstance(schedule, SubnetSchedule):
            raise ValueError(f"`schedule` is {schedule!r}; give a SubnetSchedule of {', '.join(self.networks)}.")
        for name in schedule.subnets:
            find_subnet(name, list(self.networks))
        self._schedule = schedule

    def _run(self, *arguments, **conditions) -> Any:
        timestep = conditions["timestep"] if "timestep" in conditions else arguments[1]
        sigma = noise_level_at(self.pipeline.scheduler, torch.as_tensor(timestep).flatten()[0])
        name = find_subnet(self.schedule.subnet_at(sigma), list(self.networks))
        self.ran.append(name)
        network, own = self.networks[name], self._own
        if network is own:
            return self._forward(*arguments, **conditions)
        if (network.device, network.dtype) != (own.device, own.dtype):  # where the pipeline went meanwhile
            network.to(own.device, own.dtype)
        return network(*arguments, **conditions)

    def unload(self) -> None:
        """Leave the pipeline as it was."""
        if self._own.__dict__.get("forward") == self._run:
            del self._own.forward
            if self._own.forward != self._forward:  # somebody had put another there before
                self._own.forward = self._forward

    def __enter__(self) -> StitchedTrajectory:
        return self

    def __exit__(self, *error) -> None:
        self.unload()


def stitch_trajectory(
    pipeline: Any, others: Mapping[str, Any], schedule: SubnetSchedule | Mapping[str, tuple]
) -> StitchedTrajectory:
    """Let several networks share the steps of a pipeline of diffusers.

    Args:
        pipeline: with a `unet` or `transformer`, such as a `StableDiffusionPipeline`; its text encoders, VAE and
            scheduler serve all.
        others: further networks by name, or pipelines that have them, of the same latents, text and prediction.
        schedule: which one runs at which noise level, the pipeline's own being `"full"`; or the rules of one,
            `{name: (sigma_low, sigma_high)}`.

    Returns:
        The stitched trajectory, which is also a context manager that undoes it.

    Raises:
        ValueError: for networks or pipelines that are not of one objective, latents and text, and unknown names.
    """
    networks = sharing_networks(pipeline, others)
    if isinstance(schedule, Mapping):
        schedule = SubnetSchedule.from_rules(networks, schedule)
    return StitchedTrajectory(pipeline, networks, schedule)


def sharing_networks(pipeline: Any, others: Mapping[str, Any], argument: str = "others") -> dict[str, torch.nn.Module]:
    """A pipeline's network, as `"full"`, and others that can share its steps, by name.

    Args:
        pipeline: see `stitch_trajectory`.
        others: likewise.
        argument: what they were given for.

    Raises:
        ValueError: for networks or pipelines that are not of one objective, latents and text, and wrong names.
    """
    own = denoiser_of(pipeline, "pipeline")
    if not isinstance(others, Mapping) or not others or FULL in others:
        raise ValueError(f"`{argument}` is {others!r}; give networks or pipelines by name, other names than {FULL!r}.")
    networks = {}
    for name, other in others.items():
        what = f"{argument}[{name!r}]"
        networks[name] = network = denoiser_of(other, what)
        agree(what, own, network, _OF_NETWORK)
        if network is not other:
            for part, keys in (("vae", _OF_VAE), ("scheduler", _OF_SCHEDULER)):
                agree(f"{what}.{part}", getattr(pipeline, part, None), getattr(other, part, None), keys)
    return networks | {FULL: own}


def agree(what: str, ours: Any, theirs: Any, keys: tuple[str, ...]) -> None:
    """Refuse a part that shares the steps where one of these settings is not that of the pipeline's own."""
    if ours is None or theirs is None:
        return
    for key in keys:
        values = [part.config.get(key) for part in (ours, theirs)]
        if values[0] != values[1]:
            raise ValueError(
                f"`{what}` has {key} {values[1]}, and the pipeline's own {values[0]}; give networks that were trained "
                "for the same."
            )
