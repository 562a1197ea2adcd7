"""The arguments that the calls of all pipelines take: their text, and how a call takes them over."""

import inspect
from collections.abc import Callable

import torch

SHARED_ARGUMENTS = """class_labels: one label an image: a number, a name of the network's `id2label` (case does not
                matter), or `None` for no class; or a list of them.
            height: of the images in pixels, any number from one patch up (for latent models a multiple of the VAE's
                scale factor); by default the training size.
            width: likewise.
            num_inference_steps: steps of the sampler; one of a second-order sampler evaluates the network twice. By
                default what is saved with the pipeline, else {steps}.
            guidance_scale: classifier-free guidance, `uncond + scale * (cond - uncond)`. 1 switches it off; otherwise
                classes and no-class go through the network as one batch. By default what is saved, else 1.
            num_images_per_label: images of each label, next to one another in the result.
            generator: one generator, from which the noise of the batch is drawn, as by every pipeline of
                diffusers; or a list with one an image, by which the noise of an image is the same alone and in any
                batch (the network's rounding, about 1e-6, is not).
            latents: noise of unit variance `(B, C, h, w)` to start from instead of drawing it.
            output_type: `"pil"`, `"np"` for `(B, H, W, C)` and `"pt"` for `(B, C, H, W)` in [0, 1], or `"latent"` for
                the sampler's result, which for models of pixels lies about [-1, 1].
            return_dict: return an output with `.images` rather than a tuple.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": …})` after each {unit};
                may return a dictionary with other latents.
            callback_on_step_end_tensor_inputs: what the callback gets; `"latents"` is all there is.
            num_images_per_prompt: diffusers' name for `num_images_per_label`.
            networks: further networks of the same objective by name, which the schedule may name as it does subnets;
                the pipeline's own is then `"full"`. Put them on the pipeline's device.
            guidance_subnet: the subnet, or one of `networks`, whose estimate without a class guidance leads away from;
                by default the one that runs. A cheaper one makes guidance cheaper, and gives one to networks that know
                no classes (autoguidance, arXiv 2406.02507).
            Further ones by name are for adapters on the network: their conditions (`reference_image=…`) and strengths
                (`reference_scale=…`)."""


def shared_call(draw: Callable, steps: int, unit: str = "evaluation") -> Callable[[Callable], Callable]:
    """A decorator for a `__call__(self, *shared, …, **further)` that hands both to `draw`.

    It computes no gradients, and shows what it takes: in its signature, and in its docstring instead of `SHARED`.

    Args:
        draw: `SamplingPipeline._draw`, or another with `SHARED_ARGUMENTS`.
        steps: the pipeline's `default_steps`.
        unit: after which the callback is called.
    """

    def fill(call: Callable) -> Callable:
        shared = [one for one in _parameters(draw) if one.kind is one.POSITIONAL_OR_KEYWORD]
        own = [one for one in _parameters(call) if one.kind is one.KEYWORD_ONLY]
        call.__signature__ = inspect.signature(call).replace(parameters=[*shared, *own])
        if call.__doc__:  # python -OO leaves none
            shared_text = SHARED_ARGUMENTS.replace("{steps}", str(steps)).replace("{unit}", unit)
            call.__doc__ = call.__doc__.replace("SHARED", shared_text)
        return torch.no_grad()(call)

    return fill


def _parameters(function: Callable) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())
