"""A pretrained denoiser of diffusers as the lowest brick of a LEGO stack (claimed in arXiv 2310.06389).

The wrapped network was trained on a discrete variance-preserving schedule to predict the noise, the velocity or the
image; the bricks of a stack estimate EDM's F (arXiv 2206.00364). Both are the same denoiser in other coordinates: the
brick takes F's inputs to those of the wrapped network, and its prediction back to F. A network trained from the start
in a stack may as well estimate F itself (`prediction_type="edm"`).
"""

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from torch import nn

from brickwork.errors import explained, no_unknown, one_of
from brickwork.gen.operations import count_operations

# The only classes that a configuration may name.
DENOISERS = ("UNet2DModel", "DiTTransformer2DModel")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "edm")
# What of a scheduler's configuration makes its noise levels.
SCHEDULE_KEYS = (
    "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr",
)  # fmt: skip
# A timestep as near as this to a whole number is that number: the way through log(sigma) in float32 costs about 1e-4.
_SNAP = 1e-3


def denoiser_class(name: str) -> type:
    """One of `DENOISERS`; diffusers imports a class when it is asked for, and most networks need none."""
    return getattr(diffusers, name)


def vp_log_sigmas(schedule: Mapping[str, Any]) -> torch.Tensor:
    """`ln σ` of each timestep, float32 `(T,)`, rising, where `σ = √((1 − ᾱ) / ᾱ)`.

    Args:
        schedule: some of `SCHEDULE_KEYS`, as in diffusers' `DDPMScheduler`.
    """
    alphas_cumprod = diffusers.DDPMScheduler(**schedule).alphas_cumprod.double()
    # A schedule rescaled to zero terminal SNR ends in pure noise, σ = ∞; the table ends at 1e5 instead.
    return ((1 - alphas_cumprod) / alphas_cumprod.clamp(min=1e-10)).log().float() / 2


class PretrainedBrick(nn.Module):
    """A `UNet2DModel` or `DiTTransformer2DModel` that answers as a brick does.

    Args:
        class_name: one of `DENOISERS`.
        config: configuration of the wrapped network.
        in_channels: channels of the stack's `sample`; the wrapped network reads the same, and returns as many or, with
            a learned variance, twice as many, of which the second half is dropped.
        num_classes: classes of the stack. The wrapped network has one row more, the last for "no class", or none at
            all, and then sees no classes.
        prediction_type: `"epsilon"`, `"v_prediction"`, `"sample"`, or `"edm"` for F itself, of the stack's own inputs.
        schedule: noise schedule that it was trained on, see `vp_log_sigmas`.
        sigma_data: of the stack's objective and scheduler.

    Raises:
        ValueError: for networks that cannot be translated; the text says why.
    """

    blocks = ()  # of our own

    def __init__(
        self,
        class_name: str,
        config: Mapping[str, Any],
        in_channels: int,
        num_classes: int | None,
        prediction_type: str = "epsilon",
        schedule: Mapping[str, Any] | None = None,
        sigma_data: float = 0.5,
    ):
        super().__init__()
        schedule = dict(schedule or {})
        _check_names(class_name, config, schedule, prediction_type)
        self.model = denoiser_class(class_name)(**config)
        self.in_channels, self.prediction_type, self.sigma_data = in_channels, prediction_type, float(sigma_data)
        _check_channels(self.model.config, in_channels)
        self.class_rows = class_rows(self.model.config)
        if self.class_rows and num_classes not in (None, self.class_rows - 1):
            raise ValueError(
                f"`num_classes` is {num_classes}, but the wrapped {class_name} has {self.class_rows - 1} classes "
                f"and a row for no class; make it {self.class_rows - 1}, or None to use that row alone."
            )
        if class_name == "DiTTransformer2DModel":
            # The trainer hides labels; a second dropout inside would hide more.
            for block in self.model.transformer_blocks:
                block.norm1.emb.class_embedder.dropout_prob = 0.0
        self.patch_size = brick_sizes(class_name, self.model.config)[1]
        self.register_buffer("log_sigmas", vp_log_sigmas(schedule), persistent=False)
        self._operations: dict[tuple[int, int], int] = {}

    def train(self, mode: bool = True) -> "PretrainedBrick":
        """Set the mode; a frozen network stays in evaluation, so that it drops nothing out."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def _apply(self, fn, recurse=True):
        # Noise levels stay in float32 whatever the network's dtype.
        table = self.log_sigmas
        super()._apply(fn, recurse)
        self.log_sigmas = table.to(self.log_sigmas.device)
        return self

    def level(self, log_sigma: torch.Tensor) -> torch.Tensor:
        """`ln σ (B,)` => timestep `(B,)`, between whole numbers linear in `ln σ`, at most the schedule's ends."""
        last = len(self.log_sigmas) - 1
        above = torch.searchsorted(self.log_sigmas, log_sigma).clamp(1, last)
        low, high = self.log_sigmas[above - 1], self.log_sigmas[above]
        level = above - 1 + ((log_sigma - low) / (high - low)).clamp(0, 1)
        nearest = level.round()
        if getattr(self.model.config, "time_embedding_type", None) == "learned":
            return nearest.long()
        return torch.where((level - nearest).abs() < _SNAP, nearest, level)

    def check_size(self, height: int, width: int) -> None:
        """Raise a `ValueError` for sizes that the wrapped network cannot take."""
        name, unit = type(self.model).__name__, self.patch_size
        if height % unit or width % unit:
            raise ValueError(
                f"`sample` has height and width {(height, width)}; the lowest brick of this stack is a {name} that "
                f"takes multiples of {unit} alone. Change the size, or leave brick 0 out."
            )
        if name == "DiTTransformer2DModel" and height != width:
            raise ValueError(
                f"`sample` has height and width {(height, width)}; the lowest brick of this stack is a {name}, which "
                "takes squares alone. Make both sides equal, or leave brick 0 out."
            )

    def operations(self, height: int, width: int) -> int:
        """Floating-point operations for one image (a multiply-add counts as two), by running it without numbers."""
        self.check_size(height, width)
        if (height, width) not in self._operations:
            with torch.device("meta"), torch.no_grad():
                twin = type(self.model)(**_own_config(self.model.config))
                labels = {"class_labels": torch.zeros(1, dtype=torch.long)} if self.class_rows else {}
                sample, level = torch.zeros(1, self.in_channels, height, width), torch.zeros(1, dtype=torch.long)
                self._operations[height, width], _ = count_operations(lambda: twin(sample, level, **labels))
        return self._operations[height, width]

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """EDM's estimate F.

        Args:
            sample: `(B, C, H, W)`, the noisy image over `√(σ² + σd²)`.
            timestep: `(B,)` float32, `ln(σ) / 4`.
            class_labels: `(B,)` from 0 to `num_classes`, which stands for "no class", as does `None`.

        Returns:
            `(B, C, H, W)` in the dtype of `sample`.
        """
        self.check_size(*sample.shape[-2:])
        sigma = (4 * timestep).exp().view(-1, 1, 1, 1)
        total = (sigma**2 + self.sigma_data**2).sqrt()
        vp_total = (sigma**2 + 1).sqrt()  # 1 / √ᾱ
        inputs = sample.float()
        labels = {}
        if self.class_rows:
            null = torch.full_like(timestep, self.class_rows - 1, dtype=torch.long)
            labels = {"class_labels": null if class_labels is None else class_labels}
        noisy = inputs if self.prediction_type == "edm" else inputs * (total / vp_total)
        output = self.model(noisy.to(sample.dtype), self.level(4 * timestep), return_dict=False, **labels)[0]
        output = output[:, : self.in_channels].float()
        if self.prediction_type == "edm":
            return output.to(sample.dtype)
        # D = c_skip·x + c_out·F, with x = total·inputs, solved for F and written out to cancel what cancels:
        # D = x − σε; D = x / (1 + σ²) − σ / √(1 + σ²)·v; D as it is.
        if self.prediction_type == "epsilon":
            estimate = (sigma * inputs - total * output) / self.sigma_data
        elif self.prediction_type == "v_prediction":
            shift = sigma * (1 - self.sigma_data**2) / vp_total**2
            estimate = (shift * inputs - total / vp_total * output) / self.sigma_data
        else:
            estimate = (total * output - self.sigma_data**2 * inputs) / (sigma * self.sigma_data)
        return estimate.to(sample.dtype)


def build_pretrained_brick(
    described: Mapping[str, Any], in_channels: int, num_classes: int | None, sample_size: int, firsts: dict[str, int]
) -> PretrainedBrick:
    """The brick that a stack's configuration describes; it sees the full image, so its window is `sample_size`.

    Args beside the stack's own:
        described: `class_name`, `config`, and what else of `PretrainedBrick`'s arguments differs from the defaults.
        firsts: what the stack's `window_sizes`, `patch_sizes` and `num_layers` begin with.

    Raises:
        ValueError: for what is not such a description, or lists that begin otherwise.
    """
    known = ("class_name", "config", "prediction_type", "schedule", "sigma_data")
    if not isinstance(described, Mapping) or not set(known[:2]) <= set(described) <= set(known):
        raise ValueError(
            f"`pretrained_brick` is {described!r}; give a mapping with class_name and config, and if wanted "
            f"{', '.join(known[2:])}."
        )
    brick = PretrainedBrick(in_channels=in_channels, num_classes=num_classes, **described)
    brick.window_size = sample_size
    right = {"window_sizes": sample_size, "patch_sizes": brick.patch_size, "num_layers": 0}
    for name, value in right.items():
        if firsts[name] != value:
            raise ValueError(
                f"`{name}` begins with {firsts[name]!r}; the pretrained brick is the first of the stack, and here its "
                f"entry is {value}."
            )
    brick.check_size(sample_size, sample_size)
    return brick


def brick_sizes(class_name: str, config: Mapping[str, Any]) -> tuple[int | None, int]:
    """Side of the images that a denoiser was built for, if it says, and the side whose multiples it takes."""
    size = config.get("sample_size")
    if class_name == "DiTTransformer2DModel":
        return size, config["patch_size"]
    return (size if isinstance(size, int) else None), 2 ** (len(config["block_out_channels"]) - 1)


def describe_denoiser(denoiser: nn.Module, scheduler: Any, sigma_data: float = 0.5) -> dict[str, Any]:
    """A loaded denoiser and its scheduler as the `pretrained_brick` of a `LegoTransformer2DModel`'s configuration.

    Args:
        denoiser: one of `DENOISERS`.
        scheduler: that it was trained with, or its configuration.
        sigma_data: of the stack's objective and scheduler.
    """
    name = type(denoiser).__name__
    _check_class(name)
    settings = getattr(scheduler, "config", scheduler)
    schedule = {key: settings[key] for key in SCHEDULE_KEYS if settings.get(key) is not None}
    if "beta_schedule" not in schedule and "trained_betas" not in schedule:
        raise ValueError(
            f"`scheduler` is a {settings.get('_class_name', type(scheduler).__name__)}, which has no betas; give the "
            "one that the network was trained with, such as DDPMScheduler or DDIMScheduler."
        )
    return {
        "class_name": name,
        "config": _own_config(denoiser.config),
        "prediction_type": settings.get("prediction_type") or "epsilon",
        "schedule": schedule,
        "sigma_data": float(sigma_data),
    }


def with_row_for_no_class(denoiser: nn.Module, num_classes: int | None) -> nn.Module:
    """A `UNet2DModel` whose last class row stands for "no class".

    One that has a row for each of its classes alone gets another, their mean; the network given is left as it is.

    Args:
        denoiser: the network.
        num_classes: how many of its rows are classes; `None` for all.
    """
    _check_class(type(denoiser).__name__)
    rows = class_rows(denoiser.config)
    if not isinstance(denoiser, diffusers.UNet2DModel) or not rows or num_classes == rows - 1:
        return denoiser
    if num_classes not in (None, rows):
        raise ValueError(f"`num_classes` is {num_classes}, but `denoiser` has {rows} rows; give {rows} or {rows - 1}.")
    grown = diffusers.UNet2DModel(**_own_config(denoiser.config) | {"num_class_embeds": rows + 1})
    weights = denoiser.state_dict()
    table = weights["class_embedding.weight"]
    weights["class_embedding.weight"] = torch.cat([table, table.mean(dim=0, keepdim=True)])
    grown.load_state_dict(weights)
    return grown


def load_denoiser(source: str, **kwargs) -> tuple[nn.Module, Any, dict[int, str] | None]:
    """A pipeline's denoiser, its scheduler's configuration and its class names, if any.

    Args:
        source: folder or hub id of a pipeline such as `DDPMPipeline` or `DiTPipeline`; nothing else of it is read.
        kwargs: for `from_pretrained`.

    Raises:
        ValueError: for what is no such pipeline.
    """
    with explained(f"{source!r} is no pipeline of diffusers; give a folder or hub id with model_index.json"):
        index = diffusers.DiffusionPipeline.load_config(source, **kwargs)
    parts = {name: part[1] for name, part in index.items() if isinstance(part, (list, tuple)) and len(part) == 2}
    found = next((name for name in ("unet", "transformer") if parts.get(name)), None)
    if found is None:
        raise ValueError(f"{source!r} has no `unet` and no `transformer`, only {', '.join(parts)}.")
    _check_class(parts[found])
    denoiser = denoiser_class(parts[found]).from_pretrained(source, subfolder=found, **kwargs)
    scheduler = diffusers.DDPMScheduler.load_config(source, subfolder="scheduler", **kwargs)
    names = index.get("id2label")
    return denoiser, scheduler, None if names is None else {int(key): name for key, name in names.items()}


def _own_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without diffusers' own entries; tuples as lists, as JSON gives them back."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.items()
        if not key.startswith("_")
    }


def _check_class(class_name: str) -> None:
    if class_name not in DENOISERS:
        raise ValueError(
            f"The denoiser is a {class_name}, which cannot be a brick; those that can are {', '.join(DENOISERS)}."
        )


def _check_names(
    class_name: str, config: Mapping[str, Any], schedule: Mapping[str, Any], prediction_type: str
) -> None:
    _check_class(class_name)
    known = set(inspect.signature(denoiser_class(class_name).__init__).parameters) - {"self"}
    no_unknown("pretrained_brick.config", config, known, class_name)
    no_unknown("pretrained_brick.schedule", schedule, SCHEDULE_KEYS, class_name)
    one_of("pretrained_brick.prediction_type", prediction_type, PREDICTION_TYPES)
    if config.get("time_embedding_type", "positional") not in ("positional", "learned"):
        raise ValueError(
            f"The wrapped network has `time_embedding_type` {config['time_embedding_type']!r}, which goes with "
            "another noise schedule; those that can be wrapped have 'positional' or 'learned'."
        )
    if config.get("class_embed_type") is not None:
        raise ValueError(
            f"The wrapped network has `class_embed_type` {config['class_embed_type']!r}; those that can be wrapped "
            "have a row for each class (`num_class_embeds`) or no classes."
        )


def _check_channels(config: Mapping[str, Any], in_channels: int) -> None:
    out_channels = config["out_channels"] or config["in_channels"]
    if config["in_channels"] != in_channels or out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(
            f"`in_channels` is {in_channels}, but the wrapped network reads {config['in_channels']} channels and "
            f"returns {out_channels}; it must read as many as the stack, and return as many or twice as many."
        )


def class_rows(config: Mapping[str, Any]) -> int:
    """Rows of a network's class table, "no class" included; 0 for one without classes."""
    if config.get("num_embeds_ada_norm") is not None:
        return config["num_embeds_ada_norm"] + 1
    return config.get("num_class_embeds") or 0
