"""Oriented boxes around point sets: upright (gravity aligned) by default, or along principal axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from ..errors import ConfigError


@dataclass(frozen=True)
class OrientedBox:
    """A box in global_frame.

    Attributes:
        centre: [3] float64, metres.
        axes: [3, 3] float64, columns are the box's unit axes in global_frame, right-handed (R_world_box).
        half_extents: [3] float64, metres along those axes, >= 0.
    """

    centre: np.ndarray
    axes: np.ndarray
    half_extents: np.ndarray

    @property
    def T_world_box(self) -> np.ndarray:
        """The box's pose, [4, 4]: origin in its centre."""
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = self.axes, self.centre
        return T

    @property
    def volume_m3(self) -> float:
        """Volume; 0 for flat sets."""
        return float(np.prod(2.0 * self.half_extents))

    def corners(self) -> np.ndarray:
        """The eight corners, [8, 3]; index bits 4, 2, 1 are the signs along the first, second, third axis."""
        signs = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
        return self.centre + (signs * self.half_extents) @ self.axes.T

    def contains(self, points: np.ndarray, margin_m: float = 0.0) -> np.ndarray:
        """Which points [N, 3] lie inside the box grown by `margin_m` on every side: [N] bool (NaN is outside)."""
        local = (np.atleast_2d(np.asarray(points, dtype=np.float64)) - self.centre) @ self.axes
        with np.errstate(invalid="ignore"):
            return (np.abs(local) <= self.half_extents + margin_m + 1e-9).all(axis=1)


def unit(vector: np.ndarray | Sequence[float], name: str = "up") -> np.ndarray:
    """A direction [3] as a float64 unit vector; ConfigError if it is not one."""
    direction = np.asarray(vector, dtype=np.float64)
    length = np.linalg.norm(direction) if direction.shape == (3,) else 0.0
    if not np.isfinite(length) or length < 1e-9:
        raise ConfigError(f"{name} is {np.asarray(vector).tolist()}; expected three finite numbers, not all zero")
    return np.asarray(direction / length)


def horizontal_basis(up: np.ndarray) -> np.ndarray:
    """Right-handed axes [3, 3] (columns) whose third is the unit vector `up`; the identity for +z."""
    reference = np.array([0.0, 1.0, 0.0]) if abs(up[1]) < 0.9 else np.array([-1.0, 0.0, 0.0])
    x = np.cross(reference, up)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(up, x), up], axis=1)


def finite_points(points: np.ndarray, name: str = "points") -> np.ndarray:
    """The finite rows of [N, 3] as float64; ConfigError on another shape."""
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ConfigError(f"{name} have shape {array.shape}; expected [N, 3]")
    return np.asarray(array[np.isfinite(array).all(axis=1)])


def convex_polygon(plane: np.ndarray) -> np.ndarray:
    """Corners of the convex hull of [N, 2] points, counter-clockwise [M, 2].

    Degenerate sets (fewer than three points, collinear) give their two farthest points, or their only one.
    """
    if len(plane) >= 3:
        try:
            return np.asarray(plane[ConvexHull(plane).vertices])
        except QhullError:
            pass
    offset = plane - plane.mean(axis=0)
    direction = np.linalg.svd(offset, full_matrices=False)[2][0] if len(plane) > 1 else np.array([1.0, 0.0])
    along = offset @ direction
    ends = plane[[int(along.argmin()), int(along.argmax())]]
    return ends if np.ptp(along) > 1e-12 else ends[:1]


def _smallest_rectangle(plane: np.ndarray) -> float:
    """Angle (rad) of a side of the minimum-area rectangle around [N, 2] points.

    One side of that rectangle lies on an edge of the convex hull (Freeman & Shapira 1975), so every hull edge is
    tried at once.
    """
    corners = convex_polygon(plane)
    edges = np.roll(corners, -1, axis=0) - corners
    edges = edges[np.linalg.norm(edges, axis=1) > 1e-12]
    if len(edges) == 0:
        return 0.0
    angles = np.arctan2(edges[:, 1], edges[:, 0])
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    x, y = corners[:, 0], corners[:, 1]
    width, depth = np.ptp(cosine * x + sine * y, axis=1), np.ptp(cosine * y - sine * x, axis=1)
    # The perimeter breaks ties of degenerate sets, whose every rectangle along the line has no area.
    return float(angles[np.argmin(width * depth + 1e-9 * (width + depth))])


def _box_along(points: np.ndarray, axes: np.ndarray) -> OrientedBox:
    local = points @ axes
    lower, upper = local.min(axis=0), local.max(axis=0)
    return OrientedBox(axes @ ((lower + upper) / 2), axes, (upper - lower) / 2)


def upright_box(points: np.ndarray, up: np.ndarray | Sequence[float] = (0.0, 0.0, 1.0)) -> OrientedBox:
    """The box with one axis along `up` and the smallest footprint.

    Axes: third = up, first = the longer horizontal side, turned into (-90, 90] degrees. Flat, collinear and single
    points give zero half extents along the missing directions.

    Args:
        points: [N, 3] metres; rows that are not finite are ignored.

    Raises:
        ConfigError: no finite point, or a shape that is not [N, 3].
    """
    points = finite_points(points)
    if len(points) == 0:
        raise ConfigError("a box needs at least one finite point, got none")
    basis = horizontal_basis(unit(up))
    plane = points @ basis[:, :2]
    angle = _smallest_rectangle(plane)
    for _ in range(2):
        axes = np.stack(
            [
                basis[:, 0] * np.cos(angle) + basis[:, 1] * np.sin(angle),
                basis[:, 1] * np.cos(angle) - basis[:, 0] * np.sin(angle),
                basis[:, 2],
            ],
            axis=1,
        )
        box = _box_along(points, axes)
        if box.half_extents[0] >= box.half_extents[1]:
            break
        angle += np.pi / 2
    if not -np.pi / 2 < np.arctan2(np.sin(angle), np.cos(angle)) <= np.pi / 2:
        axes = axes * np.array([-1.0, -1.0, 1.0])
    return OrientedBox(box.centre, axes, box.half_extents)


def principal_box(points: np.ndarray) -> OrientedBox:
    """The box along the principal axes of the points, longest spread first; for things that stand at any angle.

    Raises:
        ConfigError: no finite point, or a shape that is not [N, 3].
    """
    points = finite_points(points)
    if len(points) == 0:
        raise ConfigError("a box needs at least one finite point, got none")
    axes = np.linalg.eigh(np.cov(points.T, bias=True) if len(points) > 1 else np.zeros((3, 3)))[1][:, ::-1].copy()
    if np.linalg.det(axes) < 0:
        axes[:, 2] *= -1
    return _box_along(points, axes)
