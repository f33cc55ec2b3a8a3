"""The multi-resolution hash grid: one variant, one parameter layout, whatever computes it.

The variant is tiny-cuda-nn's (Mueller et al. 2022): level l has scale s_l = N_min b^l - 1 and ceil(s_l) + 1 cells an
edge, positions are x s_l + 1/2, levels whose resolution^3 fits the table are indexed densely (x fastest), the others by
x ^ 2654435761 y ^ 805459861 z modulo the table size. Parameters are [rows, features], level after level.
`encode` is differentiable in the table only: geometry is never moved by gradients through positions here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..config import GridConfig

try:
    from . import hash_grid_cpu as kernels
except (ImportError, RuntimeError):  # an accelerator, not a need; RuntimeError: nowhere to keep its cache
    kernels = None  # type: ignore[assignment]

PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True)
class Level:
    """One resolution: positions are `x * scale + .5`; rows `offset .. offset + rows` of the table."""

    scale: float
    resolution: int
    rows: int
    offset: int
    dense: bool


def levels_of(config: GridConfig, span: float = 1.0) -> list[Level]:
    """The levels of a grid over the unit cube; `span` multiplies both resolutions (contracted space is wider)."""
    growth = 1.0
    if config.levels > 1:
        growth = (config.max_resolution / config.min_resolution) ** (1.0 / (config.levels - 1))
    levels, offset = [], 0
    for level in range(config.levels):
        scale = config.min_resolution * span * growth**level - 1.0
        # 1e-6: the last level's resolution must not grow by one through rounding of the power
        resolution = int(-(-(scale - 1e-6) // 1)) + 1
        cells = resolution**3
        rows = min(-(-cells // 8) * 8, 2**config.log2_table)
        levels.append(Level(scale, resolution, rows, offset, cells <= rows))
        offset += rows
    return levels


def corner_rows(level: Level, corners: torch.Tensor) -> torch.Tensor:
    """Table rows [...] int64 of integer grid corners [..., 3] int64."""
    if level.dense:
        x, y, z = corners.unbind(-1)
        index = x + level.resolution * (y + level.resolution * z)
    else:
        x, y, z = (corners[..., i] * PRIMES[i] & 0xFFFFFFFF for i in range(3))
        index = x ^ y ^ z
    return index % level.rows + level.offset


def encode_reference(table: torch.Tensor, positions: torch.Tensor, levels: list[Level]) -> torch.Tensor:
    """Interpolated features [N, levels * features] of positions [N, 3] in [0, 1]; plain torch, any device."""
    offsets = torch.tensor(
        [[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], device=positions.device, dtype=torch.int64
    )
    out = []
    for level in levels:
        scaled = positions * level.scale + 0.5
        base = scaled.floor()
        fraction = (scaled - base)[:, None, :]
        corners = base.to(torch.int64)[:, None, :] + offsets
        weight = torch.where(offsets.bool(), fraction, 1 - fraction).prod(-1)
        out.append((weight[..., None] * table[corner_rows(level, corners)]).sum(1))
    return torch.cat(out, dim=-1)


class HashGrid(torch.nn.Module):
    """A trainable hash grid over [0, 1]^3; on CPUs through the numba kernels where numba is importable.

    The kernels add into `table.grad` in place (a dense gradient per call would be written and read once more), so
    gradients must be cleared by the optimiser: `GridAdam` does.
    """

    def __init__(self, config: GridConfig, span: float, generator: torch.Generator, backend: str = "auto"):
        super().__init__()
        self.config = config
        self.levels = levels_of(config, span)
        self.width = config.levels * config.features
        rows = sum(level.rows for level in self.levels)
        self.table = torch.nn.Parameter(
            (torch.rand(rows, config.features, generator=generator) * 2 - 1) * 1e-4, requires_grad=True
        )
        self.backend = backend
        self._arguments = (
            np.array([level.scale for level in self.levels], np.float32),
            np.array([level.resolution for level in self.levels], np.int64),
            np.array([level.rows for level in self.levels], np.int64),
            np.array([level.offset for level in self.levels], np.int64),
            np.array([level.dense for level in self.levels], np.bool_),
        )

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Features [N, levels * features] of positions [N, 3] in [0, 1]."""
        if positions.is_cuda or self.backend == "torch" or kernels is None:
            return encode_reference(self.table, positions, self.levels)
        if self.table.requires_grad and torch.is_grad_enabled():
            if self.table.grad is None:
                self.table.grad = torch.zeros_like(self.table)
            encoded: torch.Tensor = _Encode.apply(self.table, positions, self._arguments)
            return encoded
        return _forward(self.table, positions, self._arguments)


def warm_up() -> None:
    """Compile the CPU kernels (seconds the first time on a machine, then from numba's cache); nothing without numba."""
    if kernels is not None:
        kernels.compile_kernels()


def _forward(table: torch.Tensor, positions: torch.Tensor, arguments: tuple[np.ndarray, ...]) -> torch.Tensor:
    out = torch.empty(len(positions), len(arguments[0]), table.shape[1])
    kernels.forward(positions.detach().contiguous().numpy(), table.detach().numpy(), arguments, out.numpy())
    return out.flatten(1)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, positions: torch.Tensor, arguments: tuple[np.ndarray, ...]) -> Any:
        ctx.table, ctx.positions, ctx.arguments = table, positions, arguments
        return _forward(table, positions, arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        table = ctx.table
        (grad_out,) = grads
        grad_out = grad_out.contiguous().view(len(grad_out), len(ctx.arguments[0]), table.shape[1])
        kernels.backward(
            ctx.positions.detach().contiguous().numpy(), grad_out.numpy(), ctx.arguments, table.grad.numpy()
        )
        return None, None, None
