"""Adam for grids and MLPs."""

from __future__ import annotations

import torch

from .hash_grid import HashGrid, adam_reference

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-15


class GridAdam:
    """Adam on the touched rows of a hash grid only, as tiny-cuda-nn does: untouched entries keep their moments.

    The bias correction uses the number of steps taken in all. Clears the gradient while it passes.
    """

    def __init__(self, grid: HashGrid):
        self.grid = grid
        self.mean = torch.zeros_like(grid.table)
        self.square = torch.zeros_like(grid.table)
        self.steps = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update; nothing happens where no gradient has come."""
        table = self.grid.table
        grad = table.grad
        if grad is None:
            return
        self.steps += 1
        correction1 = 1 / (1 - BETA1**self.steps)
        correction2 = 1 / (1 - BETA2**self.steps)
        numbers = (rate, BETA1, BETA2, EPSILON, correction1, correction2)
        kernels = self.grid.kernels()
        adam = adam_reference if kernels is None else kernels.adam_touched
        adam(table, grad, self.mean, self.square, numbers)

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs to resume."""
        return {"mean": self.mean, "square": self.square, "steps": torch.tensor(self.steps)}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Resume from `state()`."""
        self.mean.copy_(state["mean"])
        self.square.copy_(state["square"])
        self.steps = int(state["steps"])


@torch.no_grad()
def widen_moments(optimiser: torch.optim.Adam) -> None:
    """Give parameters that have grown rows since the last step zero moments there; their other moments stay."""
    for parameter, state in optimiser.state.items():
        for key in ("exp_avg", "exp_avg_sq"):
            if key in state and state[key].shape != parameter.shape:
                wide = torch.zeros_like(parameter)
                wide[: len(state[key])] = state[key]
                state[key] = wide
