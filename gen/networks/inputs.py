"""The checks of what a caller hands a network, the same for all of them."""

from collections.abc import Sequence

import torch

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_sample(
    sample: torch.Tensor, in_channels: int, smallest: int = 1, axes: Sequence[str] = ("height", "width")
) -> None:
    """Raise a `ValueError` unless `sample` is floating point `(B, in_channels, *axes)`.

    The batch is not empty, and the sides are at least `smallest`, a patch of the network.
    """
    shape = tuple(getattr(sample, "shape", ()))
    if len(shape) != 2 + len(axes) or shape[0] == 0 or shape[1] != in_channels:
        given = f"has shape {shape}" if isinstance(sample, torch.Tensor) else f"is a {type(sample).__name__}"
        raise ValueError(f"`sample` {given}; this network reads (batch, {in_channels}, {', '.join(axes)}).")
    if not sample.is_floating_point():
        raise ValueError(f"`sample` has dtype {sample.dtype}; give floating point numbers, scaled by the scheduler.")
    if min(shape[2:]) < smallest:
        raise ValueError(
            f"`sample` has {' and '.join(axes)} {shape[2:]}, below one patch of {smallest} pixels; make both sides at "
            f"least {smallest}."
        )


def check_timestep(timestep: torch.Tensor | float, batch: int, device: torch.device) -> torch.Tensor:
    """A timestep for each image: `(B,)`, `(1,)` or a scalar => float32 `(B,)`."""
    timestep = torch.as_tensor(timestep, device=device, dtype=torch.float32)
    if timestep.ndim > 1 or (timestep.ndim == 1 and timestep.shape[0] not in (1, batch)):
        raise ValueError(f"`timestep` has shape {tuple(timestep.shape)}; give a scalar or shape ({batch},).")
    return timestep.expand(batch)


def check_class_labels(class_labels: torch.Tensor | None, batch: int, num_classes: int | None) -> torch.Tensor | None:
    """Class labels as int64 `(B,)`, or a `ValueError`. Values are looked at on the CPU only."""
    if class_labels is None:
        return None
    if num_classes is None:
        raise ValueError(
            "`class_labels` were given, but this network has no classes (it is unconditional); leave them out."
        )
    if not isinstance(class_labels, torch.Tensor):
        raise ValueError(f"`class_labels` is {class_labels!r}; give an integer tensor of shape ({batch},).")
    if class_labels.shape != (batch,) or class_labels.dtype not in _INTEGERS:
        raise ValueError(
            f"`class_labels` has shape {tuple(class_labels.shape)} and dtype {class_labels.dtype}; give integers of "
            f"shape ({batch},)."
        )
    # Reading values would stall an accelerator and break a compiled graph; the layers assert there by themselves.
    if class_labels.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(class_labels.min()), int(class_labels.max())
        if low < 0 or high > num_classes:
            raise ValueError(
                f"`class_labels` lie between {low} and {high}; allowed are 0 to {num_classes - 1}, and {num_classes} "
                "for no class."
            )
    return class_labels.long()


def join_tokens(
    text: torch.Tensor | None,
    further: torch.Tensor | None,
    batch: int,
    cross_attention_dim: int | None,
    required: bool = False,
) -> torch.Tensor | None:
    """What the blocks of a network attend to: a text, further tokens behind it, either, or `None`.

    Args:
        text: `encoder_hidden_states (B, length, cross_attention_dim)`.
        further: `additional_context_tokens (B, length, cross_attention_dim)`.
        batch: images.
        cross_attention_dim: of the network, `None` for one that reads no text.
        required: whether a network that reads a text must get one.

    Raises:
        ValueError: for tokens of another shape, or where the network reads none.
    """
    found = []
    for name, tokens in (("encoder_hidden_states", text), ("additional_context_tokens", further)):
        if tokens is None:
            continue
        if cross_attention_dim is None:
            raise ValueError(
                f"`{name}` were given, but this network reads no text; build it with `cross_attention_dim`."
            )
        shape = tuple(getattr(tokens, "shape", ()))
        if len(shape) != 3 or shape[0] != batch or shape[2] != cross_attention_dim:
            raise ValueError(f"`{name}` has shape {shape}; give ({batch}, length, {cross_attention_dim}).")
        found.append(tokens)
    if required and cross_attention_dim is not None and text is None:
        raise ValueError("`encoder_hidden_states` is None, but this network reads a text; give its embedding.")
    return torch.cat([tokens.to(found[0]) for tokens in found], dim=1) if len(found) > 1 else next(iter(found), None)
