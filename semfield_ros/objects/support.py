"""Horizontal supports (tables, shelves, floors) of a cloud: what objects stand on, and what must not glue them."""

from __future__ import annotations

import numpy as np

from .boxes import horizontal_basis

BIN_M = 0.01
CELL_M = 0.05


def support_heights(
    points: np.ndarray,
    normals: np.ndarray,
    up: np.ndarray,
    *,
    tolerance_m: float = 0.012,
    min_area_m2: float = 0.05,
    max_supports: int = 8,
) -> np.ndarray:
    """Heights along `up` of the horizontal surfaces of at least `min_area_m2`, largest first: [K] float64, metres.

    A histogram of the heights of upward-facing points; peaks are refined to the median and accepted by the area they
    occupy in a `CELL_M` grid, so dense sampling of a small lid does not make it a table. O(N).

    Args:
        points, normals: [N, 3]; zero normals are unknown and count as upward. up: [3] unit vector.
    """
    facing = (normals @ up > 0.85) | (np.abs(normals).sum(axis=1) == 0)
    flat = np.asarray(points, dtype=np.float64)[facing]
    heights: list[float] = []
    if len(flat) == 0:
        return np.zeros(0)
    height = flat @ up
    across = _horizontal(flat, up)
    bins = np.floor((height - height.min()) / BIN_M).astype(np.int64)
    counts = np.convolve(np.bincount(bins, minlength=3), [0.5, 1.0, 0.5], mode="same")
    for _ in range(4 * max_supports):
        top = int(counts.argmax())
        if counts[top] <= 0 or len(heights) == max_supports:
            break
        counts[max(0, top - 2) : top + 3] = 0.0
        middle = height.min() + (top + 0.5) * BIN_M
        middle = float(np.median(height[np.abs(height - middle) <= 1.5 * BIN_M]))
        on = np.abs(height - middle) <= tolerance_m
        cells = np.unique(np.floor(across[on] / CELL_M).astype(np.int64) @ [1 << 31, 1])
        if len(cells) * CELL_M**2 >= min_area_m2 and all(abs(middle - other) > 2 * tolerance_m for other in heights):
            heights.append(middle)
    return np.asarray(heights)


def on_support(
    points: np.ndarray, normals: np.ndarray, up: np.ndarray, heights: np.ndarray, tolerance_m: float
) -> np.ndarray:
    """For every point the index into `heights` of the support it is part of, -1 = none: [N] int64.

    Part of a support is what lies within the tolerance of its height and does not face sideways.
    """
    if len(heights) == 0 or len(points) == 0:
        return np.full(len(points), -1, dtype=np.int64)
    gap = np.abs((points @ up)[:, None] - heights[None, :])
    nearest = gap.argmin(axis=1)
    sideways = (normals @ up <= 0.7) & (np.abs(normals).sum(axis=1) > 0)
    return np.where((gap.min(axis=1) <= tolerance_m) & ~sideways, nearest, -1)


def support_patch(
    points: np.ndarray, up: np.ndarray, heights: np.ndarray, *, tolerance_m: float, reach_m: float, spacing_m: float
) -> np.ndarray:
    """A grid of points on the support right under an object, [M, 3]; empty where there is none.

    The object hides the support beneath and behind itself, where no camera saw the obstacle a gripper would meet.
    The patch covers the object's horizontal bounding rectangle grown by `reach_m`.
    """
    bottom = float((points @ up).min())
    under = heights[heights <= bottom + 2 * tolerance_m]
    if len(under) == 0:
        return np.zeros((0, 3))
    basis = horizontal_basis(up)
    plane = _horizontal(points, up)
    lower, upper = plane.min(axis=0) - reach_m, plane.max(axis=0) + reach_m
    u, v = np.meshgrid(np.arange(lower[0], upper[0], spacing_m), np.arange(lower[1], upper[1], spacing_m))
    return np.asarray(u.reshape(-1, 1) * basis[:, 0] + v.reshape(-1, 1) * basis[:, 1] + float(under.max()) * up)


def _horizontal(points: np.ndarray, up: np.ndarray) -> np.ndarray:
    return np.asarray(points @ horizontal_basis(up)[:, :2])
