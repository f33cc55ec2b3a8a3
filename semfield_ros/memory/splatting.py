"""Depth images of point clouds, where a camera delivered none: a z-buffer of points as wide as they lie apart."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from ..geometry import Camera, project

MAX_RADIUS_PX = 12
_SAMPLE = 2000


def spacing_of(points: np.ndarray) -> float:
    """The median distance of points [N, 3] to their nearest neighbours, metres; 0 for fewer than two. Of a sample."""
    if len(points) < 2:
        return 0.0
    asked = points[:: max(1, len(points) // _SAMPLE)]
    distance, _ = cKDTree(points).query(asked, k=2)
    return float(np.median(distance[:, 1]))


def depth_of_points(
    camera: Camera, T_world_camera: np.ndarray, points_world: np.ndarray, spacing_m: float | None = None
) -> np.ndarray:
    """z-depth [H, W] float32 of points [N, 3] seen by a camera: the nearest at each pixel, 0 where there is none.

    A point covers the square of pixels within `spacing_m` of it (None = `spacing_of`), so a surface sampled that
    densely hides what is behind it. O(N x covered pixels).
    """
    points = np.asarray(points_world, np.float64).reshape(-1, 3)
    spacing_m = spacing_of(points) if spacing_m is None else spacing_m
    u, v, z = project(camera, T_world_camera, points)
    image = np.full((camera.height, camera.width), np.inf)
    with np.errstate(invalid="ignore"):
        reach = MAX_RADIUS_PX + 1
        near = (z > 1e-6) & (u > -reach) & (v > -reach) & (u < camera.width + reach) & (v < camera.height + reach)
    u, v, z = np.rint(u[near]).astype(np.int64), np.rint(v[near]).astype(np.int64), z[near]
    focal = np.sqrt(camera.fx * camera.fy)
    radius = np.minimum(np.ceil(focal * spacing_m / z - 0.5).clip(0), MAX_RADIUS_PX).astype(np.int64)
    for r in np.unique(radius):
        at = np.flatnonzero(radius == r)
        for down in range(-r, r + 1):
            for right in range(-r, r + 1):
                row, column = v[at] + down, u[at] + right
                inside = (row >= 0) & (row < camera.height) & (column >= 0) & (column < camera.width)
                np.minimum.at(image, (row[inside], column[inside]), z[at[inside]])
    return np.where(np.isfinite(image), image, 0.0).astype(np.float32)
