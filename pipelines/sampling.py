"""The one call and the one sampling loop of all pipelines, and what else their calls share.

A pipeline's `__call__` hands what all calls take to `_draw`, with its schedule and its hooks; what is particular to it
lies in the methods that `_draw` calls. One of another shape calls those itself, round `_denoise`: its latents may have
any axes behind the batch and the channels.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import ImagePipelineOutput
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor

from brickwork.adapters.modules import under_conditions
from brickwork.errors import one_of, whole_number
from brickwork.gen.blocks.windows import check_maps
from brickwork.gen.subnets import FULL, FULL_NAMES, find_subnet, patch_of
from brickwork.pipelines.labels import resolve_class_labels
from brickwork.pipelines.latents import decode, encode, pixels_per_latent, sample_size
from brickwork.pipelines.saving import BrickworkPipeline
from brickwork.pipelines.schedulers.edm_heun import float_dtype_for
from brickwork.pipelines.schedules import Schedule, read_schedule, subnet_names
from brickwork.pipelines.trajectory import agree

Generators = torch.Generator | list[torch.Generator] | None


def checked_generator(generator: Generators, batch_size: int) -> Generators:
    """The generator or generators that draw a call's noise, by diffusers' `randn_tensor`.

    Args:
        generator: one, from which the noise of the batch is drawn at once; or a list with one an image, by which
            an image's noise is the same alone and in any batch; or `None`, for torch's global one.
        batch_size: number of images.

    Raises:
        ValueError: for a list of another length, and for anything else.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if not isinstance(generator, (list, tuple)) or not all(isinstance(one, torch.Generator) for one in generator):
        raise ValueError(f"`generator` is {generator!r}; give a torch.Generator, a list with one an image, or None.")
    if len(generator) != batch_size:
        raise ValueError(
            f"`generator` has {len(generator)} entries for {batch_size} images; give one an image, or one for all."
        )
    return list(generator)


def first_noise(
    latents: Any, shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Noise of unit variance `(B, …)` of any shape, drawn in float32, or given and checked."""
    if latents is None:
        latents = randn_tensor(tuple(shape), generator, device, torch.float32)
    if not isinstance(latents, torch.Tensor):
        raise ValueError(f"`latents` is a {type(latents).__name__}; give a tensor of the shape {tuple(shape)}.")
    if tuple(latents.shape) != tuple(shape):
        raise ValueError(f"`latents` has shape {tuple(latents.shape)}; this call needs {tuple(shape)}.")
    return latents.to(device, dtype)


OUTPUT_TYPES = ("pil", "np", "pt", "latent")
Conditions = Mapping[str, tuple[torch.Tensor | None, torch.Tensor | None]]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the network in a call of a pipeline.

    Attributes:
        number: counted from 0.
        timestep: as the scheduler says it.
        subnet: that runs; `None` for the network itself.
    """

    number: int
    timestep: torch.Tensor
    subnet: str | None = None


class Hook:
    """What a pipeline or an extension does round the network's calls; each method may be left as it is.

    Hooks of a call come from its pipeline; those in `pipeline.hooks` are called besides, in every call.
    """

    def before(self, latents: torch.Tensor, evaluation: Evaluation) -> tuple[torch.Tensor, dict[str, Any]]:
        """The latents `(B, C, …)` as the network is to see them, and further arguments of the network."""
        return latents, {}

    def at(self, network: Callable[..., torch.Tensor], sample: torch.Tensor, timestep: torch.Tensor, **arguments):
        """Instead of the network's call, whose result is a tensor; with guidance the batch is twice as long."""
        return network(sample, timestep, **arguments)

    def after(self, output: torch.Tensor, evaluation: Evaluation) -> torch.Tensor:
        """The guided output `(B, C, …)` as the scheduler is to see it; called in the reverse order of `before`."""
        return output

    def after_step(self, latents: torch.Tensor, evaluation: Evaluation) -> torch.Tensor:
        """The latents to go on with, once the scheduler has used an evaluation."""
        return latents


class SamplingPipeline(BrickworkPipeline):
    """A pipeline of a `transformer`, a `scheduler` and an optional `vae`.

    Attributes:
        hooks: called round the network in every call (see `Hook`).
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents"]
    _axes = ("batch", "channels", "height", "width")  # of the latents
    schedule_name = "subnet_schedule"  # of the schedule, as an argument and in the saved configuration
    default_steps = 1
    takes_conditions = True  # of adapters on the network, by name
    in_float64 = False  # latents are computed, where the device can
    whole_steps = False  # callbacks come after each step rather than after each evaluation
    output_types = OUTPUT_TYPES

    def __init__(self, **modules):
        super().__init__()
        if modules:
            self.register_modules(**modules)
        self.hooks: list[Hook] = []
        self.image_processor = VideoProcessor()  # of pictures too
        self._others: Mapping[str, torch.nn.Module] = {}
        self._guidance_subnet, self._whole = None, FULL

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of an image along one pixel of the network's sample."""
        return pixels_per_latent(self.vae)

    @property
    def guidance_scale(self) -> float:
        """Guidance of the running call; a callback may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the running call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the running call stops before its next step; a callback may set `_interrupt`."""
        return self._interrupt

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels `(B, 3, H, W)` in [-1, 1] => what the network sees: themselves, or the mean of the VAE's latents."""
        return encode(self.vae, images)

    def _draw(
        self,
        class_labels: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_label: int = 1,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["SamplingPipeline", int, torch.Tensor, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        num_images_per_prompt: int | None = None,
        networks: Mapping[str, torch.nn.Module] | None = None,
        guidance_subnet: str | None = None,
        *,
        schedule: Schedule | None = None,
        hooks_at: Callable[[tuple[int, int]], Sequence[Hook]] = lambda size: (),
        axes: Sequence[int] = (),
        **conditions: Any,
    ) -> BaseOutput | tuple:
        """A call: see `arguments.SHARED_ARGUMENTS`.

        Args:
            schedule: instead of the pipeline's own.
            hooks_at: height and width of what the network sees => hooks of this call.
            axes: of the latents between channels and height, such as frames.
            conditions: of adapters on the network, with their strengths.
        """
        steps = self._recommended("num_inference_steps", num_inference_steps, self.default_steps)
        number = num_images_per_label if num_images_per_prompt is None else num_images_per_prompt
        guidance_scale = self._recommended("guidance_scale", guidance_scale, 1.0)
        self._others = self._check_networks(networks or {})
        self._set_guidance_subnet(guidance_subnet)
        self._check_arguments(
            steps, guidance_scale, output_type, callback_on_step_end_tensor_inputs, num_images_per_label=number
        )
        device, labels = self._execution_device, self._labels(class_labels, number)
        subnets = self._set_steps(steps, schedule)
        weak = [] if guidance_scale == 1 or self._guidance_subnet is None else [self._guidance_subnet]
        ran = [(self._network(subnet)[0].config, subnet) for subnet in {*subnets, *weak}]
        patch = max(patch_of(config, None if name in self._others else name) for config, name in ran)
        size = self._sample_size(height, width, latents, patch)
        generator = checked_generator(generator, len(labels))
        shape = (len(labels), self.transformer.config.in_channels, *axes, *size)
        dtype = float_dtype_for(device) if self.in_float64 else torch.float32
        with under_conditions(self.transformer, conditions, type(self).__name__):
            latents, ran = self._denoise(
                first_noise(latents, shape, generator, device, dtype),
                self._class_conditions(labels, device),
                generator,
                subnets,
                hooks=hooks_at(size),
                callback=callback_on_step_end,
                tensor_inputs=callback_on_step_end_tensor_inputs,
                evaluations=self.scheduler.order if self.whole_steps else 1,
            )
        output = self._output(self._decode(latents, output_type), subnets[:ran])
        return output if return_dict else output.to_tuple()

    def _output(self, images: Any, subnets: Sequence[str | None]) -> BaseOutput:
        """What a call returns, from the images and the subnets of the steps that ran."""
        return ImagePipelineOutput(images=images)

    def _denoise(
        self,
        noise: torch.Tensor,
        conditions: Conditions,
        generator: Generators,
        subnets: Sequence[str | None],
        hooks: Iterable[Hook] = (),
        callback: Callable | None = None,
        tensor_inputs: Sequence[str] = (),
        evaluations: int = 1,
    ) -> tuple[torch.Tensor, int]:
        """The loop of all pipelines, once `scheduler.set_timesteps` was called and `_guidance_scale` is set.

        Args:
            noise: of unit variance `(B, C, …)`, in the dtype to compute the latents in.
            conditions: arguments of the network with a batch axis: with the condition, and without it for guidance
                (`None` where guidance would change nothing).
            generator: for schedulers that draw.
            subnets: of each step.
            hooks: called after those in `self.hooks`.
            callback: called after every so many evaluations.
            tensor_inputs: what the callback gets.
            evaluations: of the network from one callback to the next.

        Returns:
            The latents, and the number of callbacks' worth of evaluations that ran.
        """
        timesteps, order, hooks = self.scheduler.timesteps, self.scheduler.order, [*self.hooks, *hooks]
        draws = "generator" in inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if draws else {}
        latents = noise * getattr(self.scheduler, "init_noise_sigma", 1.0)
        self._num_timesteps, self._interrupt = math.ceil(len(timesteps) / evaluations), False
        with self.progress_bar(total=self.num_timesteps) as progress_bar:
            for step in range(self.num_timesteps):
                if self.interrupt:
                    return latents, step
                first = step * evaluations
                for number, timestep in enumerate(timesteps[first : first + evaluations], first):
                    evaluation = Evaluation(number, timestep, subnets[number // order])
                    output = self._predict(latents, evaluation, conditions, hooks)
                    latents = self.scheduler.step(output, timestep, latents, return_dict=False, **extra)[0]
                    for hook in hooks:
                        latents = hook.after_step(latents, evaluation)
                if callback is not None:
                    given = dict.fromkeys(tensor_inputs or (), latents)
                    latents = (callback(self, step, timesteps[first], given) or {}).get("latents", latents).to(latents)
                progress_bar.update()
        return latents, self.num_timesteps

    def _predict(
        self, latents: torch.Tensor, evaluation: Evaluation, conditions: Conditions, hooks: Sequence[Hook]
    ) -> torch.Tensor:
        """What the scheduler's step takes: the guided estimate, and behind it a learned variance if it wants one."""
        sample, arguments = latents, {}
        for hook in hooks:
            sample, further = hook.before(sample, evaluation)
            arguments |= further
        if hasattr(self.scheduler, "scale_model_input"):  # flow-matching schedulers have none
            sample = self.scheduler.scale_model_input(sample, evaluation.timestep)
        network, subnet = self._network(evaluation.subnet)
        apart = self._guides_apart(evaluation.subnet)
        guided = self.guidance_scale != 1 and (apart or any(without is not None for _, without in conditions.values()))
        given = {name: condition for name, (condition, _) in conditions.items()}
        less = {name: condition if without is None else without for name, (condition, without) in conditions.items()}
        if guided and not apart:
            sample = torch.cat([sample, sample])
            pairs = {name: (condition, less[name]) for name, condition in given.items() if condition is not None}
            given |= {name: torch.cat(pair) for name, pair in pairs.items()}

        def run(network: torch.nn.Module, **arguments) -> torch.Tensor:
            def call(sample: torch.Tensor, timestep: torch.Tensor, **arguments) -> torch.Tensor:
                return network(sample, timestep, return_dict=False, **arguments)[0]

            for hook in hooks:
                call = partial(hook.at, call)
            timestep = evaluation.timestep.to(sample.device).expand(len(sample))
            return call(sample.to(network.dtype), timestep, **arguments).to(latents.dtype)

        output = run(network, **arguments | subnet | given)
        if guided and apart:
            network, subnet = self._network(self._guidance_subnet)
            output = torch.cat([output, run(network, **arguments | subnet | less)])
        estimate, variance = output[:, : latents.shape[1]], output[:, latents.shape[1] :]
        if guided:  # a learned variance is not guided
            conditional, unconditional = estimate.chunk(2)
            estimate = unconditional + self.guidance_scale * (conditional - unconditional)
            variance = variance.chunk(2)[0]
        for hook in reversed(hooks):
            estimate = hook.after(estimate, evaluation)
        return torch.cat([estimate, variance], dim=1) if self._learns_variance else estimate

    @property
    def _learns_variance(self) -> bool:
        return self.scheduler.config.get("variance_type") in ("learned", "learned_range")

    @property
    def _guides(self) -> bool:
        """Whether there is something to guide to."""
        return self.transformer.config.num_classes is not None

    def _set_guidance_subnet(self, name: str | None) -> None:
        """Remember what guidance leads away from, and what the network itself is called, for the running call."""
        names = [] if name is None else subnet_names(self._all_networks())
        self._whole = names[-1] if names else FULL
        self._guidance_subnet = find_subnet(name, names, "guidance_subnet") if names else None

    def _guides_apart(self, subnet: str | None) -> bool:
        """Whether guidance leads away from another subnet than the one that runs."""
        running = self._whole if subnet in FULL_NAMES else subnet
        return self._guidance_subnet not in (None, running)

    def _network(self, subnet: str | None) -> tuple[torch.nn.Module, dict[str, Any]]:
        """The network that an evaluation calls, and the arguments that choose its subnet."""
        if subnet in self._others:
            return self._others[subnet], {}
        return self.transformer, {} if subnet is None else {"subnet": subnet}

    def _decode(self, latents: torch.Tensor, output_type: str) -> list | np.ndarray | torch.Tensor:
        """Sampler's result => pixels, [-1, 1] => the type asked for; the end of a call.

        Frames `(B, C, F, H, W)` become lists of PIL images, an array `(B, F, H, W, C)` or a tensor `(B, F, C, H, W)`.
        """
        result = latents.float()
        if output_type != "latent":
            pixels, processor = decode(self.vae, result).float(), self.image_processor
            convert = processor.postprocess_video if pixels.ndim == 5 else processor.postprocess
            result = convert(pixels, output_type=output_type)
        self.maybe_free_model_hooks()
        return result

    def _labels(self, class_labels: Any, number: int) -> list[int] | list[None]:
        """One label an image, `number` of each."""
        config = self.transformer.config
        labels = resolve_class_labels(class_labels, config.num_classes, config.id2label)
        return [label for label in labels for _ in range(number)]

    def _class_conditions(self, labels: list[int] | list[None], device: torch.device) -> Conditions:
        """The labels `(B,)` and as many of "no class", `None` where the network or guidance has no use for them."""
        num_classes = self.transformer.config.num_classes
        if num_classes is None:
            return {"class_labels": (None, None)}
        with_class = torch.tensor(labels, device=device)
        # Guidance away from "no class" to "no class" changes nothing.
        guides = any(label != num_classes for label in labels)
        return {"class_labels": (with_class, torch.full_like(with_class, num_classes) if guides else None)}

    def _sample_size(self, height: int | None, width: int | None, latents: Any, patch: int) -> tuple[int, int]:
        """Height and width of what the network sees, from those of the image; `patch` is the smallest it can see."""
        config, factor = self.transformer.config, self.vae_scale_factor
        if latents is not None and getattr(latents, "ndim", 0) != len(self._axes):
            shape = getattr(latents, "shape", None)
            found = f"is a {type(latents).__name__}" if shape is None else f"has shape {tuple(shape)}"
            raise ValueError(f"`latents` {found}; give a tensor ({', '.join(self._axes)}).")
        defaults = (config.sample_size,) * 2 if latents is None else latents.shape[-2:]
        size = sample_size(height, width, defaults, factor, patch)
        # Networks of blocks say what their windows need.
        check_maps(*size, getattr(self.transformer, "maps", {}), "the network's sample has")
        return size

    def check_call(
        self,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_subnet: str | None = None,
        networks: Mapping[str, torch.nn.Module] | None = None,
    ) -> None:
        """Raise the `ValueError` that a call with these would raise, before anything is drawn."""
        config = self.transformer.config
        self._others = self._check_networks(networks or {})
        self._set_guidance_subnet(guidance_subnet)
        steps = self._recommended("num_inference_steps", num_inference_steps, self.default_steps)
        self._check_arguments(steps, self._recommended("guidance_scale", guidance_scale, 1.0), "pil", ())
        self._sample_size(height, width, None, min(config.get("patch_sizes") or [patch_of(config)]))

    def _set_steps(self, num_inference_steps: int, schedule: Schedule | None) -> list[str | None]:
        """Lay out the scheduler's steps; the subnet of each by a schedule, or by the one saved with the pipeline."""
        schedule = self.schedule if schedule is None else schedule
        if schedule is not None:
            self._check_schedule(schedule)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        if schedule is None:
            return [None] * math.ceil(len(self.scheduler.timesteps) / self.scheduler.order)
        return schedule.subnet_steps(self.scheduler)

    @property
    def schedule(self) -> Schedule | None:
        """The schedule that is saved with the pipeline; assigning one checks it against the network."""
        saved = self.config.get(self.schedule_name)
        return None if saved is None else read_schedule(saved)

    @schedule.setter
    def schedule(self, schedule: Schedule | dict | None) -> None:
        schedule = read_schedule(schedule) if isinstance(schedule, dict) else schedule
        if schedule is not None:
            self._check_schedule(schedule)
        self.register_to_config(**{self.schedule_name: None if schedule is None else schedule.to_dict()})

    def _check_schedule(self, schedule: Schedule) -> None:
        if not isinstance(schedule, Schedule):
            kind = "BrickSchedule" if self.schedule_name == "brick_schedule" else "SubnetSchedule"
            raise ValueError(f"`{self.schedule_name}` is {schedule!r}; give a {kind}, or None for the pipeline's own.")
        schedule.validate(self._all_networks())

    def _all_networks(self) -> Any:
        """The network, or with others by name: what schedules are of."""
        return {**self._others, FULL: self.transformer} if self._others else self.transformer

    def _check_networks(self, networks: Mapping[str, torch.nn.Module]) -> Mapping[str, torch.nn.Module]:
        for name, network in networks.items():
            agree(f"networks[{name!r}]", self.transformer, network, ("in_channels", "num_classes"))
        return networks

    def _recommended(self, name: str, value: Any, default: Any) -> Any:
        """An argument of a call: as given, else as saved with the pipeline, else the pipeline's default."""
        value = self.config.get(name) if value is None else value
        return default if value is None else value

    @property
    def components(self) -> dict[str, Any]:
        """What another pipeline of the class is made of, with what is saved beside networks and scheduler."""
        components = super().components
        taken = inspect.signature(type(self).__init__).parameters
        return components | {
            name: self.config[name] for name in taken if name in self.config and name not in components
        }

    def _check_components(self) -> None:
        """Raise a `ValueError` where a call would not know what to make of them."""

    def _check_arguments(
        self, steps: int, guidance_scale: float, output_type: str, callback_inputs: Sequence[str], **counts: int
    ) -> None:
        config = self.transformer.config
        self._check_components()
        if self.vae is not None and self.vae.config.latent_channels != config.in_channels:
            raise ValueError(
                f"`vae` has {self.vae.config.latent_channels} latent channels and `transformer` {config.in_channels}; "
                "they must be the same."
            )
        if self._learns_variance and config.get("out_channels") != 2 * config.in_channels:
            raise ValueError(
                f"`scheduler` has the variance_type {self.scheduler.config.variance_type!r}, but the network learned "
                "no variance; choose 'fixed_small'."
            )
        for name, value in {"num_inference_steps": steps, **counts}.items():
            whole_number(name, value)
        number = isinstance(guidance_scale, (int, float)) and not isinstance(guidance_scale, bool)
        if not number or not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` is {guidance_scale!r}; give a finite number, 1 for no guidance.")
        if guidance_scale != 1 and not self._guides and self._guidance_subnet is None:
            raise ValueError(
                f"`guidance_scale` is {guidance_scale}, but this network is unconditional; leave it at 1, or name a "
                "`guidance_subnet`."
            )
        one_of("output_type", output_type, self.output_types)
        if output_type == "pil" and self.vae is None and config.in_channels not in (1, 3, 4):
            raise ValueError(
                f"`output_type` is 'pil', but images of {config.in_channels} channels are no pictures; choose 'np', "
                "'pt' or 'latent'."
            )
        unknown = sorted(set(callback_inputs or ()) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {unknown}; allowed are {self._callback_tensor_inputs}."
            )
        self._guidance_scale = guidance_scale
