"""The feature measurements of one teacher (a 2-D encoder), by keyframe slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..encoders.base import Target, Window

TENSORS = ("values", "cell_row", "confidence", "grid_shape")


@dataclass(frozen=True)
class FeatureShape:
    """Room for one keyframe's feature measurements: feature length, rows of values, cells of the grid."""

    dim: int
    rows: int
    cells: int

    @classmethod
    def of(cls, target: Target) -> FeatureShape:
        """Room for targets like this one: a row a cell where it is dense, else 128 rows (masks, labels)."""
        cells = target.index.size
        return cls(target.values.shape[1], cells if len(target.values) >= cells else 128, cells)

    @property
    def bytes(self) -> int:
        """Of one keyframe."""
        return self.rows * (2 * self.dim + 4) + self.cells * 4 + 16


class FeatureStore:
    """Measurements of up to `capacity` keyframes; allocated whole, nothing grows.

    Args:
        slots: keyframe slots there are. budget_mb: bytes at most; where they do not hold a row for each slot the
            measurements of the keyframe written longest ago give way. None = a row for each slot.

    Attributes:
        values: [n, rows, dim] float16 unit features. cell_row: [n, cells] int32 row of each cell, -1 = none.
        confidence: [n, rows]. grid_shape: [n, 2] cells down and across. slots: those with measurements, oldest first.
        row: [slots] int64, which of the n each slot has; -1 = none.
        window: what every value was measured through. kernel_cdf: its kernel, summed up, flat.
    """

    def __init__(self, shape: FeatureShape, slots: int, device: torch.device, budget_mb: float | None = None):
        self.shape, self.device = shape, device
        fits = slots if budget_mb is None else int(budget_mb * 2**20 // shape.bytes)
        self.capacity = n = max(1, min(slots, fits))
        self.values = torch.zeros(n, shape.rows, shape.dim, dtype=torch.float16, device=device)
        self.cell_row = torch.full((n, shape.cells), -1, dtype=torch.int32, device=device)
        self.confidence = torch.zeros(n, shape.rows, dtype=torch.float32, device=device)
        self.grid_shape = torch.ones(n, 2, dtype=torch.int64, device=device)
        self.slots: list[int] = []
        whole = n == slots
        self.row = torch.arange(n, device=device) if whole else torch.full((slots,), -1, device=device)
        self._free = [] if whole else list(range(n))
        self._whole = whole
        self.window: Window | None = None
        self.kernel_cdf = torch.ones(1, device=device)

    @property
    def bytes(self) -> int:
        """Allocated bytes."""
        return self.capacity * self.shape.bytes

    def drop(self, slot: int) -> None:
        """Forget a slot's measurements, if there are any."""
        row = int(self.row[slot])
        if row >= 0:
            self.cell_row[row] = -1
        if slot in self.slots:
            self.slots.remove(slot)
        if row >= 0 and not self._whole:
            self.row[slot] = -1
            self._free.append(row)

    def _place(self, slot: int) -> int:
        if int(self.row[slot]) < 0:
            if not self._free:
                self.drop(self.slots[0])
            self.row[slot] = self._free.pop()
        return int(self.row[slot])

    def write(self, slot: int, target: Target) -> None:
        """Take in a slot's measurements. A finer grid than there is room for is thinned out evenly; rows (masks)
        beyond the room for them are left out."""
        index = target.index
        if index.size > self.shape.cells:
            # the cells under the centres of a coarser grid: its cells mean the same places
            share = np.sqrt(self.shape.cells / index.size)
            h = max(1, min(int(index.shape[0] * share), self.shape.cells))
            w = max(1, min(int(index.shape[1] * share), self.shape.cells // h))
            rows_kept = (2 * np.arange(h) + 1) * index.shape[0] // (2 * h)
            columns_kept = (2 * np.arange(w) + 1) * index.shape[1] // (2 * w)
            index = index[rows_kept[:, None], columns_kept]
        rows, index_flat = np.unique(index, return_inverse=True)
        shift = 1 if len(rows) and rows[0] < 0 else 0
        rows = rows[shift:][: self.shape.rows]
        flat = index_flat.reshape(-1) - shift
        flat = np.where(flat < len(rows), flat, -1).astype(np.int32)
        if not (flat >= 0).any():
            self.drop(slot)
            self._use_window(target.window)
            return
        at = self._place(slot)
        self.values[at, : len(rows)] = torch.from_numpy(target.values[rows].astype(np.float16)).to(self.device)
        self.confidence[at, : len(rows)] = torch.from_numpy(target.confidence[rows]).to(self.device)
        self.cell_row[at] = -1
        self.cell_row[at, : flat.size] = torch.from_numpy(flat).to(self.device)
        self.grid_shape[at] = torch.tensor(index.shape, device=self.device)
        self._use_window(target.window)
        if slot not in self.slots:
            self.slots.append(slot)

    def target(self, slot: int) -> Target | None:
        """A slot's measurements as they were taken, None where there are none."""
        if slot not in self.slots or self.window is None:
            return None
        row = int(self.row[slot])
        h, w = (int(n) for n in self.grid_shape[row])
        index = self.cell_row[row, : h * w].cpu().numpy().reshape(h, w)
        return Target(self.values[row].float().cpu().numpy(), index, self.confidence[row].cpu().numpy(), self.window)

    def state(self, slots: list[int]) -> dict[str, torch.Tensor]:
        """The measurements of `slots`, for a checkpoint."""
        rows = self.row[torch.tensor(slots, dtype=torch.int64, device=self.device)]
        return {name: getattr(self, name)[rows] for name in TENSORS}

    def load(
        self, state: dict[str, torch.Tensor], slots: list[int], measured: list[int], window: Window | None
    ) -> None:
        """Fill `slots` from a `state()`; of these, `measured` have measurements."""
        for slot in slots:
            self._place(slot)
        rows = self.row[torch.tensor(slots, dtype=torch.int64, device=self.device)]
        for name in TENSORS:
            getattr(self, name)[rows] = state[name].to(self.device)
        self.slots = list(measured)
        if window is not None:
            self._use_window(window)

    def _use_window(self, window: Window) -> None:
        if window is not self.window:
            self.window = window
            cdf = torch.from_numpy(np.cumsum(window.kernel.reshape(-1), dtype=np.float64).astype(np.float32))
            self.kernel_cdf = (cdf / cdf[-1]).to(self.device)
