"""The best sum of losses for every sum of costs, exactly, one choice a step."""

from dataclasses import dataclass

import numpy as np

# Combinations kept while steps are added: none is dropped below this number, and the result is then exact.
MAX_STATES = 100_000


@dataclass(frozen=True)
class Frontier:
    """The best loss for every cost, and the choices that reach it.

    Attributes:
        costs: rising `(n,)`. losses: falling `(n,)`.
        choices: `(n, steps)`, numbers of the choices.
    """

    costs: np.ndarray
    losses: np.ndarray
    choices: np.ndarray

    def within(self, cost: float) -> int:
        """The position of the best that costs no more."""
        return int(np.searchsorted(self.costs, cost, side="right")) - 1


def cost_loss_frontier(costs: np.ndarray, losses: np.ndarray, max_states: int = MAX_STATES) -> Frontier:
    """Solve the multiple-choice knapsack for all budgets: one choice a step, sums of costs against sums of losses.

    Steps are added one by one and only combinations are kept that nothing beats in both sums (Nemhauser & Ullmann,
    1969), which loses none. Where more than `max_states` of them remain, the range of costs is cut into as many cells
    and the lowest loss of each is kept: costs stay true, and the loss for a budget is at least as good as the exact
    one for a budget smaller by `steps / max_states` of the range.

    Args:
        costs: `(steps, choices)`, integers.
        losses: `(steps, choices)`.
        max_states: how many combinations are kept.
    """
    cost, loss = np.zeros(1, dtype=np.int64), np.zeros(1)
    trail = []
    for step_costs, step_losses in zip(costs, losses):
        all_costs = (cost[:, None] + step_costs[None]).ravel()
        all_losses = (loss[:, None] + step_losses[None]).ravel()
        order = np.lexsort((all_losses, all_costs))
        best = np.minimum.accumulate(all_losses[order])
        keep = order[np.concatenate([[True], best[1:] < best[:-1]])]
        if len(keep) > max_states:
            cells = (all_costs[keep] - all_costs[keep[0]]) * max_states // (np.ptp(all_costs[keep]) + 1)
            keep = keep[np.concatenate([cells[1:] != cells[:-1], [True]])]
        cost, loss = all_costs[keep], all_losses[keep]
        trail.append(np.divmod(keep, len(step_costs)))
    choices, position = np.empty((len(cost), len(trail)), dtype=np.int64), np.arange(len(cost))
    for step in reversed(range(len(trail))):
        before, chosen = trail[step]
        choices[:, step], position = chosen[position], before[position]
    return Frontier(cost, loss, choices)
