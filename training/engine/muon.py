"""Muon: steps of equal length in all directions of a matrix, for networks that have to learn from few images."""

from collections.abc import Iterable
from typing import Any

import torch

LEAST = (
    16  # rows and columns of what is taken for a matrix; less is a bias, a norm, a depthwise filter, a picture's side
)
MOMENTUM = 0.95
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """Muon for weights of matrices and convolutions, AdamW for all else.

    The step of a matrix is its momentum with all singular values made one (Jordan et al., 2024,
    https://kellerjordan.github.io/posts/muon), times `0.2 sqrt(max(rows, columns))`, so that it is as long as one of
    AdamW and takes its rates (Liu et al., arXiv 2502.16982, equation 4). A convolution is a matrix of its outputs by
    everything that an output sees. `torch.optim.Muon` has the same step and refuses all but matrices.

    Args:
        groups: parameters, with whatever else a group is to hold.
        lr, weight_decay: as AdamW's.
        betas: of AdamW.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], weight_decay: float):
        split = []
        for group in groups:
            for matrix in (True, False):
                chosen = [parameter for parameter in group["params"] if is_matrix(parameter) == matrix]
                if chosen:
                    split.append({**group, "params": chosen, "matrices": matrix})
        options = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(split, {**options, "fused": True})
        others = [group for group in self.param_groups if not group["matrices"]]
        self._others = torch.optim.AdamW(others, **options, fused=True) if others else None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"] if group["matrices"] else ():
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                ahead = parameter.grad.lerp(state["momentum"], MOMENTUM).flatten(1)
                length = 0.2 * max(ahead.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonal(ahead).view_as(parameter), alpha=-group["lr"] * length)
        if self._others is not None:  # these very groups and states, which accelerate and `load_state_dict` exchange
            self._others.param_groups = [group for group in self.param_groups if not group["matrices"]]
            self._others.state = self.state
            self._others.step()


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether a parameter is a matrix, or a convolution, of at least 16 rows and columns."""
    return parameter.ndim > 1 and min(parameter.shape[0], parameter[0].numel()) >= LEAST


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix `(M, N)` with its singular values brought near one, between 0.7 and 1.2, by a Newton-Schulz iteration.

    In bf16 on a GPU, in the matrix' own precision on a CPU, of which not all have bf16.
    """
    first, second, third = COEFFICIENTS
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide.bfloat16() if wide.is_cuda else wide
    wide = wide / wide.norm().clamp_min(1e-7)
    for _ in range(ROUNDS):
        square = wide @ wide.mT
        wide = first * wide + torch.addmm(square, square, square, beta=second, alpha=third) @ wide
    return (wide.mT if matrix.shape[0] > matrix.shape[1] else wide).to(matrix.dtype)
