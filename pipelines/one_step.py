"""Images from a generator, in one step."""

import torch
from diffusers import ImagePipelineOutput, ModelMixin

from brickwork.errors import one_of, whole_number
from brickwork.pipelines.sampling import OUTPUT_TYPES, SamplingPipeline, checked_generator, first_noise


class OneStepPipeline(SamplingPipeline):
    """Unconditional images of the generator's size.

    Args:
        transformer: a `MaxViTGenerator2DModel`.
    """

    model_cpu_offload_seq = "transformer"
    _optional_components = []
    takes_conditions = False
    vae = schedule = None

    def __init__(self, transformer: ModelMixin):
        super().__init__(transformer=transformer)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        truncation: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw images.

        Args:
            batch_size: how many.
            generator: one generator for the batch, or a list with one an image.
            latents: noise of unit variance `(batch_size, latent_dim)` instead of drawing it.
            truncation: standard deviation of the noise; below 1 for fewer oddities and less variety.
            output_type: `"pil"`, `"np"` for `(B, H, W, C)` and `"pt"` for `(B, C, H, W)` in [0, 1], or `"latent"` for
                the network's own [-1, 1].
            return_dict: return an `ImagePipelineOutput` rather than `(images,)`.

        Raises:
            ValueError: for numbers and shapes that the network cannot take.
        """
        whole_number("batch_size", batch_size)
        one_of("output_type", output_type, OUTPUT_TYPES)
        if not 0 < truncation <= 1:
            raise ValueError(f"`truncation` is {truncation!r}; give a number above 0, at most 1.")
        shape = (batch_size, self.transformer.config.latent_dim)
        noise = first_noise(latents, shape, checked_generator(generator, batch_size), self._execution_device)
        images = self._decode(self.transformer(noise * truncation, return_dict=False)[0], output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
