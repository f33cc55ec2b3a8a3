"""The multi-resolution hash grid: one variant, one parameter layout, whatever computes it.

The variant is tiny-cuda-nn's (Mueller et al. 2022): level l has scale s_l = N_min b^l - 1 and ceil(s_l) + 1 cells an
edge, positions are x s_l + 1/2, levels whose resolution^3 fits the table are indexed densely (x fastest), the others by
x ^ 2654435761 y ^ 805459861 z modulo the table size. Parameters are [rows, features], level after level.
Encoding is differentiable in the table only: geometry is never moved by gradients through positions here.

What computes it is a `Kernels`: numba on CPUs, Triton or tiny-cuda-nn on CUDA devices, plain torch (`encode_reference`)
everywhere. They share the table, so a checkpoint moves between them as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from ..config import GridConfig
from ..errors import ConfigError

try:
    from . import hash_grid_cpu as kernels
except (ImportError, RuntimeError):  # an accelerator, not a need; RuntimeError: nowhere to keep its cache
    kernels = None  # type: ignore[assignment]

PRIMES = (1, 2654435761, 805459861)
BACKENDS = ("auto", "torch", "numba", "triton", "tcnn")
Layout = tuple[np.ndarray, ...]
"""Of each level: scale (float32), resolution, rows, offset (int64), dense (bool)."""


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
    corner = torch.arange(8, device=positions.device)
    offsets = torch.stack([corner // 4, corner // 2 % 2, corner % 2], -1)
    out = []
    for level in levels:
        scaled = positions * level.scale + 0.5
        base = scaled.floor()
        fraction = (scaled - base)[:, None, :]
        corners = base.to(torch.int64)[:, None, :] + offsets
        weight = torch.where(offsets.bool(), fraction, 1 - fraction).prod(-1)
        out.append((weight[..., None] * table[corner_rows(level, corners)]).sum(1))
    return torch.cat(out, dim=-1)


@torch.no_grad()
def adam_reference(
    table: torch.Tensor, grad: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, numbers: tuple[float, ...]
) -> None:
    """Adam in place on the rows whose gradient is not zero, clearing it; plain torch, any device.

    numbers: rate, beta1, beta2, epsilon, and the bias corrections 1 / (1 - beta^t) of mean and square.
    """
    rate, beta1, beta2, epsilon, correction1, correction2 = numbers
    touched = (grad != 0).any(-1, keepdim=True)
    mean.copy_(torch.where(touched, mean * beta1 + grad * (1 - beta1), mean))
    square.copy_(torch.where(touched, square * beta2 + grad * grad * (1 - beta2), square))
    update = (mean * correction1) / ((square * correction2).sqrt() + epsilon)
    table.sub_(torch.where(touched, rate * update, 0))
    grad.zero_()


class Kernels(Protocol):
    """What computes a grid. `forward` and `backward` are transposes of each other; gradients ADD into `grad_table`."""

    def forward(self, positions: torch.Tensor, table: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Features [N, levels * features] of positions [N, 3] in [0, 1]."""

    def backward(
        self, positions: torch.Tensor, grad_out: torch.Tensor, layout: Layout, grad_table: torch.Tensor
    ) -> None:
        """grad_table [rows, features] += what grad_out [N, levels * features] means for the table."""

    def adam_touched(
        self, table: torch.Tensor, grad: torch.Tensor, mean: torch.Tensor, square: torch.Tensor,
        numbers: tuple[float, ...],
    ) -> None:
        """What `adam_reference` does."""


class NumbaKernels:
    """The CPU kernels, which take arrays, behind `Kernels`."""

    @staticmethod
    def forward(positions: torch.Tensor, table: torch.Tensor, layout: Layout) -> torch.Tensor:
        """See `Kernels.forward`."""
        out = torch.empty(len(positions), len(layout[0]), table.shape[1])
        kernels.forward(positions.detach().contiguous().numpy(), table.detach().numpy(), layout, out.numpy())
        return out.flatten(1)

    @staticmethod
    def backward(positions: torch.Tensor, grad_out: torch.Tensor, layout: Layout, grad_table: torch.Tensor) -> None:
        """See `Kernels.backward`."""
        grad_out = grad_out.contiguous().view(len(grad_out), len(layout[0]), grad_table.shape[1])
        kernels.backward(positions.detach().contiguous().numpy(), grad_out.numpy(), layout, grad_table.numpy())

    @staticmethod
    def adam_touched(
        table: torch.Tensor, grad: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, numbers: tuple[float, ...]
    ) -> None:
        """See `Kernels.adam_touched`."""
        kernels.adam_touched(table.numpy(), grad.numpy(), mean.numpy(), square.numpy(), numbers)


def choose_backend(backend: str, device_type: str) -> str:
    """The name of what computes on a device of that type ("cpu", "cuda"): `backend`, or for "auto" the best there is.

    Raises:
        ConfigError: no such backend, or not on this device or machine; says what to do.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"field.backend is {backend!r}; allowed: {', '.join(BACKENDS)}")
    if backend == "auto":
        # tiny-cuda-nn computes in half precision: it is asked for, never met by chance
        fast = {"cpu": "numba", "cuda": "triton"}.get(device_type, "torch")
        return fast if _unavailable(fast, device_type) is None else "torch"
    reason = _unavailable(backend, device_type)
    if reason is not None:
        raise ConfigError(f"field.backend is {backend!r}, but {reason}")
    return backend


@lru_cache
def _unavailable(backend: str, device_type: str) -> str | None:
    """Why a backend cannot compute there, with the remedy; None where it can."""
    if backend == "torch":
        return None
    if backend == "numba":
        if device_type != "cpu":
            return "numba's kernels are for CPUs; set field.backend to auto"
        return None if kernels is not None else "numba cannot be used: pip install numba, or set field.backend to auto"
    if backend == "triton":
        return triton_unavailable(device_type)
    from .hash_grid_tcnn import unavailable

    return unavailable(device_type)


@lru_cache
def triton_unavailable(device_type: str) -> str | None:
    """Why Triton kernels cannot run on a device of that type, with the remedy; None where they can."""
    try:
        from triton import knobs
    except ImportError as error:
        return f"Triton is not importable ({error}): pip install triton (Linux), or set field.backend to auto"
    if device_type == "cpu" and not knobs.runtime.interpret:
        return "Triton computes on GPUs and this field is on a CPU: set field.backend to auto, or engine.device to cuda"
    return None


class HashGrid(torch.nn.Module):
    """A trainable hash grid over [0, 1]^3, computed by `backend` (see `choose_backend`) wherever its table is.

    The kernels add into `table.grad` in place (a dense gradient per call would be written and read once more), so
    gradients must be cleared by the optimiser: `GridAdam` does.
    """

    def __init__(self, config: GridConfig, span: float, generator: torch.Generator, backend: str = "auto"):
        super().__init__()
        if backend not in BACKENDS:
            raise ConfigError(f"field.backend is {backend!r}; allowed: {', '.join(BACKENDS)}")
        self.config = config
        self.levels = levels_of(config, span)
        self.width = config.levels * config.features
        rows = sum(level.rows for level in self.levels)
        self.table = torch.nn.Parameter(
            (torch.rand(rows, config.features, generator=generator) * 2 - 1) * 1e-4, requires_grad=True
        )
        self.backend = backend
        self._layout: Layout = (
            np.array([level.scale for level in self.levels], np.float32),
            np.array([level.resolution for level in self.levels], np.int64),
            np.array([level.rows for level in self.levels], np.int64),
            np.array([level.offset for level in self.levels], np.int64),
            np.array([level.dense for level in self.levels], np.bool_),
        )
        self._made: dict[str, Kernels | None] = {}

    @property
    def layout(self) -> Layout:
        """Of each level: scale (float32), resolution, rows, offset (int64), dense (bool); what kernels take."""
        return self._layout

    def kernels(self) -> Kernels | None:
        """What computes on the table's device; None = plain torch. ConfigError where `backend` cannot."""
        device_type = self.table.device.type
        if device_type not in self._made:
            self._made[device_type] = self._make(choose_backend(self.backend, device_type))
        return self._made[device_type]

    def by_triton(self) -> bool:
        """Whether Triton computes this grid where its table is, so that other kernels of ours may read it too."""
        return choose_backend(self.backend, self.table.device.type) == "triton"

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Features [N, levels * features] of positions [N, 3] in [0, 1]."""
        computing, positions = self.kernels(), positions.detach().contiguous()
        if computing is None:
            return encode_reference(self.table, positions, self.levels)
        if self.table.requires_grad and torch.is_grad_enabled():
            if self.table.grad is None:
                self.table.grad = torch.zeros_like(self.table)
            encoded: torch.Tensor = _Encode.apply(self.table, positions, self._layout, computing)
            return encoded
        return computing.forward(positions, self.table.detach(), self._layout)

    def _make(self, name: str) -> Kernels | None:
        if name == "torch":
            return None
        if name == "numba":
            return NumbaKernels()
        if name == "triton":
            from . import hash_grid_triton

            return hash_grid_triton
        from .hash_grid_tcnn import TcnnKernels

        return TcnnKernels(self.config, self.levels)

    def __getstate__(self) -> dict[str, Any]:
        # kernels may hold what cannot be copied; a copy makes its own
        return self.__dict__ | {"_made": {}}


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table: torch.Tensor, positions: torch.Tensor, layout: Layout, computing: Kernels
    ) -> torch.Tensor:
        ctx.table, ctx.positions, ctx.layout, ctx.computing = table, positions, layout, computing
        return computing.forward(positions, table.detach(), layout)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.computing.backward(ctx.positions, grads[0].contiguous(), ctx.layout, ctx.table.grad)
        return None, None, None, None
