"""Adam for grids and MLPs."""

from __future__ import annotations

import torch

from .hash_grid import HashGrid, kernels

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
        if not table.is_cuda and kernels is not None and self.grid.backend != "torch":
            kernels.adam_touched(
                table.numpy(), grad.numpy(), self.mean.numpy(), self.square.numpy(),
                (rate, BETA1, BETA2, EPSILON, correction1, correction2),
            )
            return
        touched = (grad != 0).any(-1, keepdim=True)
        mean = torch.where(touched, self.mean * BETA1 + grad * (1 - BETA1), self.mean)
        square = torch.where(touched, self.square * BETA2 + grad * grad * (1 - BETA2), self.square)
        update = (mean * correction1) / ((square * correction2).sqrt() + EPSILON)
        table.sub_(torch.where(touched, rate * update, 0))
        self.mean, self.square = mean, square
        grad.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs to resume."""
        return {"mean": self.mean, "square": self.square, "steps": torch.tensor(self.steps)}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Resume from `state()`."""
        self.mean.copy_(state["mean"])
        self.square.copy_(state["square"])
        self.steps = int(state["steps"])
