"""How a convolution and the BatchNorm behind it work together: four modes for fine-tuning and for use.

After "Efficient ConvBN Blocks for Transfer Learning and Beyond" (You et al., arXiv 2305.11624): with frozen
statistics, a BatchNorm is an affine map that can be folded into the convolution before it. Folded anew at every step
(`tune`), outputs and gradients are those of `eval`, but the convolution's output is not kept for the backward pass,
and one pass over it is saved. Folded once and for all (`deploy`) it is cheapest, and trains badly: the folded weights
lose the scale that BatchNorm gave them.

Inductor has the same rewrite for compiled graphs (`efficient_conv_bn_eval_fx_passes`, off by default); here it holds
without compiling as well.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_weights

from brickwork import compat
from brickwork.errors import one_of

CONVBN_MODES = ("train", "eval", "tune", "deploy")


class _FrozenBatchNorm(nn.BatchNorm2d):
    """Keeps to its running statistics, also when the network around it is told to train."""

    def train(self, mode: bool = True) -> "_FrozenBatchNorm":
        return super().train(False)


class _FoldedBatchNorm(_FrozenBatchNorm):
    """Holds the tensors; its convolution does the work."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


class _FoldingConv2d(nn.Conv2d):
    """A convolution that folds the BatchNorm behind it into its weight on the fly."""

    def __init__(self, *args, **kwargs):
        # None is ever built, convolutions become one: PEFT builds layers of an adapter in the convolution's class.
        raise ValueError(
            "A convolution in mode 'tune' takes no adapter: its BatchNorm would miss it. Call "
            "`set_convbn_mode(model, 'eval')`, add the adapter, then choose the mode again."
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        (norm,) = self.folded_norm
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.running_mean if self.bias is None else self.bias - norm.running_mean
        bias = shift * scale if norm.bias is None else norm.bias + shift * scale
        return self._conv_forward(hidden_states, self.weight * scale[:, None, None, None], bias)


def set_convbn_mode(model: nn.Module, mode: str, pairs: Iterable[tuple[str, str]] | None = None) -> list[str]:
    """Choose how every convolution with a BatchNorm behind it works. Lasts through `model.train()` and `model.eval()`.

    Args:
        model: one of our networks, or any other.
        mode: `"train"` (statistics of the batch in training, torch's own way), `"eval"` (running statistics, also in
            training), `"tune"` (the same outputs and gradients as `"eval"`, from less memory and time), `"deploy"`
            (the BatchNorm is gone, its work is in the convolution's weight and bias; there is no way back. Networks
            of blocks note it in their configuration, `convbn_folded`, and load again from what `save_pretrained`
            writes).
        pairs: names of `(convolution, BatchNorm)`, the second fed by nothing but the first. By default those that our
            blocks declare (`convbn_pairs`) and neighbours within an `nn.Sequential`. A BatchNorm in no pair, such as
            the one that MaxViT's blocks begin with, goes on as it was.

    Returns:
        The names of the convolutions whose mode was set. One that PEFT has wrapped keeps its BatchNorm beside it: in
        `"tune"` and `"deploy"` such a pair stays in `"eval"` and is not among the names; merge the adapter first.
        Adapters on convolutions come before the choice of `"tune"`, not after it.

    Raises:
        ValueError: for an unknown mode, a model without such pairs (one that was deployed has none), or names that are
            no convolution and BatchNorm of equal channels.
    """
    one_of("mode", mode, CONVBN_MODES)
    found = find_convbn_pairs(model) if pairs is None else list(pairs)
    if not found:
        raise ValueError(
            f"`model` ({type(model).__name__}) has no convolution with a BatchNorm behind it, or they are fused "
            "already; give `pairs`, or load the weights anew."
        )
    modules = [_checked_pair(model, *names) for names in found]
    changed = []
    for (name, norm_name), (conv, norm) in zip(found, modules):
        _restore(conv, norm)
        wrapped = not isinstance(conv, nn.Conv2d)
        if mode == "train":
            norm.train(model.training)
        elif mode == "eval" or wrapped:
            _become(norm, _FrozenBatchNorm).eval()
        elif mode == "tune":
            _become(norm, _FoldedBatchNorm).eval()
            # In a tuple, so that it is not a part of the convolution's own state dict.
            _become(conv, _FoldingConv2d).folded_norm = (norm,)
        else:
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            conv.bias.requires_grad_(conv.weight.requires_grad)  # torch freezes a bias that was not there before
            model.set_submodule(norm_name, nn.Identity())
        if not wrapped or mode in ("train", "eval"):
            changed.append(name)
    config = getattr(model, "config", {})
    if "convbn_folded" in config and not find_convbn_pairs(model):
        model.register_to_config(convbn_folded=True)
    return changed


def find_convbn_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and the BatchNorms that nothing else feeds, in the order of the network."""
    pairs = []
    for prefix, module in model.named_modules():
        names = list(getattr(type(module), "convbn_pairs", ()))
        if isinstance(module, nn.Sequential):
            children = [name for name, _ in module.named_children()]
            names += zip(children, children[1:])
        for conv, norm in names:
            if _is_conv(getattr(module, conv)) and isinstance(getattr(module, norm), nn.BatchNorm2d):
                pairs.append((f"{prefix}.{conv}".lstrip("."), f"{prefix}.{norm}".lstrip(".")))
    return pairs


def _is_conv(module: nn.Module) -> bool:
    """A convolution, or PEFT's wrapper around one."""
    return type(getattr(module, "base_layer", module)) in (nn.Conv2d, _FoldingConv2d)


def _checked_pair(model: nn.Module, conv_name: str, norm_name: str) -> tuple[nn.Module, nn.BatchNorm2d]:
    try:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
    except AttributeError as error:
        raise ValueError(f"`pairs` has {(conv_name, norm_name)!r}, but {error}; see `named_modules()`.") from None
    if not _is_conv(conv) or not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
        raise ValueError(
            f"`pairs` has {(conv_name, norm_name)!r}, which are {type(conv).__name__} and {type(norm).__name__}; give "
            "an nn.Conv2d and an nn.BatchNorm2d with running statistics."
        )
    channels = getattr(conv, "base_layer", conv).out_channels
    if channels != norm.num_features:
        raise ValueError(
            f"`pairs` has {(conv_name, norm_name)!r} with {channels} and {norm.num_features} channels; give two that "
            "belong together."
        )
    return conv, norm


def _become(module: nn.Module, kind: type) -> nn.Module:
    """Change what a module does, not what it holds: the optimiser and the state dict notice nothing."""
    module.plain_class = type(module)
    return compat.become(module, kind)


def _restore(*modules: nn.Module) -> None:
    for module in modules:
        module = getattr(module, "base_layer", module)
        if isinstance(module, (_FrozenBatchNorm, _FoldingConv2d)):
            compat.become(module, module.__dict__.pop("plain_class"))
            module.__dict__.pop("folded_norm", None)
