"""What can be set for a pipeline, and drawing with it: previews on the way, then seconds and counted operations."""

import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from brickwork.adapters.base import denoiser_of
from brickwork.eval.report.pictures import grid
from brickwork.eval.sampling.pipelines import draws_from_text, size_rule
from brickwork.gen.operations import count_operations
from brickwork.pipelines.latents import decode
from brickwork.pipelines.schedules import BrickSchedule, SubnetSchedule, named_schedule, steps_text, subnet_names

PREVIEW_SECONDS = 0.4  # from one preview to the next
_SHOWN = 4  # pictures of a preview
_SMALL_VAE = 5e6  # parameters up to which a preview is decoded
_STEPS = 25  # where a pipeline recommends nothing

Side = Annotated[int, Field(ge=8, le=4096)]
Text = Annotated[str, StringConstraints(max_length=1000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Strength = Annotated[float, Field(ge=-4, le=4, allow_inf_nan=False)]


class Source(BaseModel):
    """Which pipeline.

    Attributes:
        model: weights that ship, a folder, or a name on the hub.
        revision: branch, tag or commit of a model on the hub; `None` for its main branch.
        variant: which of several sets of weights, such as fp16; `None` for the plain ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: Name
    revision: Annotated[str, StringConstraints(max_length=200, pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")] | None = None
    variant: Annotated[str, StringConstraints(max_length=60, pattern=r"^[\w-]+$")] | None = None


class Settings(Source):
    """Everything that makes a picture what it is; kept in each PNG as JSON.

    Attributes:
        model, revision, variant: see `Source`.
        label: class by name or number; `None` for none.
        prompt: of text-to-image pipelines.
        schedule: saved, full, fast (of LEGO), or the name of a subnet for all steps.
        fast_share: of `fast`, the share of the steps after (or before) which a brick is skipped.
        height, width: in pixels; `None` for the training size.
        steps, guidance: `None` for what the pipeline recommends.
        seed: of the first picture; the next has the next.
        count: pictures.
        adapters: strength by the name each was loaded by; 0 is off.
    """

    label: Text | None = None
    prompt: Text = ""
    schedule: Text = "saved"
    fast_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    height: Side | None = None
    width: Side | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=-100, le=100)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    count: Annotated[int, Field(ge=1, le=16)] = 1
    adapters: dict[str, Strength] = {}


def checked(kind: type[BaseModel], values: Any) -> Any:
    """A model of pydantic from JSON values; what is wrong as one line.

    Raises:
        ValueError: naming the first wrong entry.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        if first["type"] == "missing":
            raise ValueError(f"`{name}` is missing; say which.") from None
        raise ValueError(f"`{name}` is {str(first['input'])[:80]!r}; {first['msg'].lower()}.") from None


class Stopped(Exception):
    """The person who asked for pictures does not want them any more."""


@dataclass(frozen=True)
class Drawing:
    """Pictures and what they cost together.

    Attributes:
        seconds: without loading, and without counting.
        operations: of the network, a multiply-add as two.
        subnets: that ran, in words.
    """

    pictures: list[Image.Image]
    seconds: float
    operations: int
    subnets: str


def describe(pipe) -> dict:
    """What can be set for a pipeline, and to what, as JSON values.

    Raises:
        ValueError: for a pipeline that draws one size only.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    multiple, smallest, native = size_rule(pipe)
    network, config = denoiser_of(pipe), denoiser_of(pipe).config
    classes = config.get("num_classes") if "class_labels" in parameters else None
    names = {int(number): name for number, name in (config.get("id2label") or {}).items()}
    prompt = draws_from_text(pipe)
    recommended = pipe.config.get("guidance_scale")
    return {
        "kind": type(pipe).__name__,
        "classes": [names.get(number, str(number)) for number in range(classes or 0)],
        "prompt": prompt,
        "multiple": multiple,
        "smallest": smallest,
        "native": native,
        "steps": (pipe.config.get("num_inference_steps") or (18 if "brick_schedule" in parameters else _STEPS))
        if "num_inference_steps" in parameters
        else None,
        "guidance": (5.0 if prompt else recommended or 1.0)
        if "guidance_scale" in parameters and (prompt or classes)
        else None,
        "schedules": _schedules(pipe, network),
    }


def _schedules(pipe, network) -> list[str]:
    if not hasattr(pipe, "schedule_name"):
        return []
    names = subnet_names(network)
    fast = ["fast"] if pipe.schedule_name == "brick_schedule" and len(names) > 1 else []
    return [*(["saved"] if pipe.schedule is not None else []), "full", *fast, *names[:-1]]


def draw(
    pipe,
    settings: Settings,
    adapters: Mapping[str, Any],
    watch: Callable[[int, int, Image.Image | None], None] = lambda step, steps, preview: None,
) -> Drawing:
    """Draw pictures; each has a generator of its own, so it comes out the same alone.

    Args:
        pipe: the pipeline.
        settings: what is drawn.
        adapters: those on the pipeline, by the names that the settings give them; one that they do not name is off.
        watch: called after each step with its number, how many there are, and now and then with a preview; what it
            raises ends the drawing.
    """
    call, steps = _call(pipe, settings)
    latest = -math.inf

    def after_step(pipeline, step: int, timestep, tensors: dict) -> dict:
        nonlocal latest
        due = time.monotonic() - latest > PREVIEW_SECONDS
        watch(step + 1, steps, preview(pipe, tensors["latents"]) if due else None)
        latest = time.monotonic() if due else latest
        return tensors

    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        call["callback_on_step_end"] = after_step
    with ExitStack() as strengths, torch.no_grad():
        for name, adapter in adapters.items():
            strengths.enter_context(adapter.at(settings.adapters.get(name, 0.0)))
        with noted_calls(denoiser_of(pipe)) as calls:
            started = time.perf_counter()
            pictures = pipe(**call).images
            seconds = time.perf_counter() - started
        return Drawing(pictures, seconds, calls.operations(), steps_text(calls.order))


def _call(pipe, settings: Settings) -> tuple[dict, int]:
    """Arguments of the pipeline, and its steps; those of the settings that it does not take are refused."""
    facts, number = describe(pipe), settings.count
    if settings.prompt and not facts["prompt"]:
        raise ValueError(f"`prompt` is {settings.prompt!r}, but a {facts['kind']} draws no text; leave it empty.")
    if facts["prompt"] and not settings.prompt.strip():
        raise ValueError("`prompt` is empty, and this pipeline draws from text; say what it is to draw.")
    steps = settings.steps or facts["steps"] or 1
    guidance = facts["guidance"] if settings.guidance is None else settings.guidance
    sizes = {name: getattr(settings, name) or facts["native"] for name in ("height", "width")}
    for name, side in sizes.items():
        if side < facts["smallest"] or side % facts["multiple"]:
            near = max(facts["smallest"], round(side / facts["multiple"]) * facts["multiple"])
            raise ValueError(
                f"`{name}` is {side}; a {facts['kind']} takes multiples of {facts['multiple']} from "
                f"{facts['smallest']} pixels up, so {near}."
            )
    call: dict[str, Any] = {
        **sizes,
        "generator": [torch.Generator().manual_seed(settings.seed + index) for index in range(number)],
    }
    if facts["steps"] is not None:
        call["num_inference_steps"] = steps
    if facts["guidance"] is not None:
        call["guidance_scale"] = float(guidance)
    elif settings.guidance not in (None, 1.0):
        raise ValueError(f"`guidance` is {settings.guidance}, but this network knows no classes; leave it at 1.")
    if facts["prompt"]:
        call |= {"prompt": settings.prompt, "num_images_per_prompt": number}
    elif "class_labels" in inspect.signature(pipe.__call__).parameters:
        label = settings.label or None
        call["class_labels"] = [int(label) if label is not None and label.isdecimal() else label] * number
    if facts["schedules"]:
        call[pipe.schedule_name] = schedule_of(settings, denoiser_of(pipe))
    elif settings.schedule not in ("saved", "full"):
        raise ValueError(f"`schedule` is {settings.schedule!r}, but a {facts['kind']} has no subnets; choose full.")
    return call, steps


def schedule_of(settings: Settings, network) -> BrickSchedule | SubnetSchedule | None:
    """The schedule that settings name, checked against the network."""
    if settings.schedule == "fast":
        return BrickSchedule.fast(network, settings.fast_share)
    if settings.schedule in ("saved", "full"):
        return named_schedule(settings.schedule, network)
    schedule = SubnetSchedule((settings.schedule,))
    schedule.validate(network)
    return schedule


def preview(pipe, latents: torch.Tensor) -> Image.Image:
    """What is there so far, `(B, C, h, w)` with noise: through a small decoder, else three channels as colours."""
    sample = latents[:_SHOWN].float()
    sample = sample / sample.std().clamp(min=1)
    vae = getattr(pipe, "vae", None)
    if vae is not None and sum(p.numel() for p in vae.parameters()) <= _SMALL_VAE:
        with torch.no_grad():
            sample = decode(vae, sample.to(vae.dtype)).float()
    elif vae is not None:
        sample = sample / 2
    colours = sample[:, :3].expand(-1, 3, -1, -1) if sample.shape[1] < 3 else sample[:, :3]
    pixels = ((colours.nan_to_num() + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return grid([np.ascontiguousarray(picture) for picture in pixels], columns=len(pixels))


class Calls:
    """Calls of a network: how many of each subnet and shape, and one of each to count its operations by."""

    def __init__(self, network: torch.nn.Module):
        self.network, self.times, self.order, self.examples = network, Counter(), [], {}

    def note(self, module, args: tuple, kwargs: dict) -> None:
        """A forward pre-hook."""
        sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        key = (kwargs.get("subnet"), tuple(sample.shape))
        self.times[key] += 1
        self.order.append(key[0] or "full")
        self.examples.setdefault(key, (args, kwargs))

    def operations(self) -> int:
        """Of all calls together; each kind is evaluated once more for it."""
        total = 0
        for key, (args, kwargs) in self.examples.items():
            counted, _ = count_operations(lambda args=args, kwargs=kwargs: self.network(*args, **kwargs))
            total += self.times[key] * counted
        return total


@contextmanager
def noted_calls(network: torch.nn.Module) -> Iterator[Calls]:
    """Within the block, calls of the network are noted."""
    calls = Calls(network)
    handle = network.register_forward_pre_hook(calls.note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
