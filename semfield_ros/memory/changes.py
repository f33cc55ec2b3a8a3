"""What a view says against a map: space that is free where a surface was, another colour where it still is."""

from __future__ import annotations

from itertools import product

import numpy as np

from ..config import MemoryConfig
from ..frame import Frame
from ..geometry import project, visible

COLOUR_CHANGE = 60.0
"""A distance of 8-bit colours that light and noise do not make."""
NEIGHBOURS = np.array([d for d in product((-1, 0, 1), repeat=3) if any(d)], np.int64)
"""Offsets of the 26 voxels around one."""
_STEPS = np.linspace(-1, 1, 7)
_PART = 8_000
SURE = 5.0
"""Times a frame's usual disagreement with the map that is more than disagreement."""
_SAMPLES = 4000


def in_image(frame: Frame, points: np.ndarray) -> np.ndarray:
    """Indices [M] of the points [N, 3] float32 (world) that project into a frame's image, give or take a pixel."""
    camera, T = frame.camera, frame.T_world_camera.astype(np.float32)
    x, y, z = np.ascontiguousarray(points.T)

    def along(axis: np.ndarray) -> np.ndarray:
        return np.asarray(x * axis[0] + y * axis[1] + z * axis[2] - axis @ T[:3, 3])

    depth = along(T[:3, 2])
    inside = depth > 0
    sides = ((camera.fx, camera.cx, camera.width, T[:3, 0]), (camera.fy, camera.cy, camera.height, T[:3, 1]))
    for focal, centre, size, axis in sides:
        # one plane through the camera's centre for each side of the image
        across = along(axis)
        inside &= across >= np.float32((-1.5 - centre) / focal) * depth
        inside &= across <= np.float32((size + 0.5 - centre) / focal) * depth
    return np.flatnonzero(inside)


def disagreement(frame: Frame, points: np.ndarray, normals: np.ndarray) -> float:
    """How far a frame usually is from a map's points [N, 3], along their normals, as a share of depth: the median.

    It is what noise, calibration and pose do to this frame, as measured on what has not changed: 1 to 2 mm in a metre
    with exact poses, 5 mm with poses that are 4 mm and .4 degrees off, 6 mm in a hand-held Kinect's recording.
    O(1): a few thousand of the points tell.
    """
    step = max(1, len(points) // _SAMPLES)
    points, normals = points[::step], normals[::step]
    mask, pixel = visible(
        frame.camera, frame.T_world_camera, frame.depth_m, points, tolerance_m=0.05, tolerance_relative=0.03
    )
    if np.count_nonzero(mask) < 30:
        return 0.0
    T = frame.T_world_camera
    ray, normal = points[mask] - T[:3, 3], normals[mask]
    z = ray @ T[:3, 2]
    length = np.linalg.norm(normal, axis=1)
    across = np.abs((ray * normal).sum(1)) / np.maximum(length, 1e-6)
    across = np.where(length > 0.2, across, np.linalg.norm(ray, axis=1))
    return float(np.median(np.abs(frame.depth_m.reshape(-1)[pixel[mask]] / z - 1) * across / z))


def seen_through(config: MemoryConfig, frame: Frame, points: np.ndarray, usual: float = 0.0) -> np.ndarray:
    """How clearly a frame sees through points [N, 3] (world): [N] float32, the distance from a point to the nearest
    measured surface over the margin within which they agree; 0 where that is less than one, or where the ray ends
    before the point. The margin is the largest of .75 voxels, `forget_relative` of the depth, and five times the
    `usual` share of the depth (`disagreement`).

    The distance is to the surface measured all around the point, not along its ray: a table under a grazing ray, a rim
    beside the background, and a pole that an inexact pose has moved by a few pixels are all near to something that was
    measured, and a box of 3 cm is 3 cm from its table however it is looked at. (Surface that lies outside a window of
    one margin's radius is not looked for; the distance is then overestimated, and larger than one margin anyway.) A
    hole in the depth near the ray says nothing. O(N) to project, and 49 measurements for each of the few points whose
    ray ends behind them.
    """
    clear = np.zeros(len(points), np.float32)
    camera, depth_m = frame.camera, frame.depth_m
    u, v, z = project(camera, frame.T_world_camera, points)
    margin = np.maximum(0.75 * config.voxel_size_m, max(config.forget_relative, SURE * usual) * z)
    with np.errstate(invalid="ignore", divide="ignore"):
        reach = camera.fx * margin / z + 1  # pixels lie up to half of one beside it
        inside = (z > 0) & (u >= reach) & (v >= reach)
        inside &= (u <= camera.width - 1 - reach) & (v <= camera.height - 1 - reach)
    at = np.flatnonzero(inside)
    row, column = np.rint(v[at]).astype(np.int64), np.rint(u[at]).astype(np.int64)
    row, column = np.clip(row, 1, camera.height - 2), np.clip(column, 1, camera.width - 2)
    behind = depth_m[row, column] > z[at] + margin[at]
    at, row, column = at[behind], row[behind], column[behind]
    nearest = np.full(len(at), np.inf, np.float32)
    for dv, du in product((-1, 0, 1), repeat=2):
        nearest = np.minimum(nearest, depth_m[row + dv, column + du])
    at = at[nearest > z[at] + 0.5 * margin[at]]  # a hole is 0
    for start in range(0, len(at), _PART):
        part = at[start : start + _PART]
        uu = np.rint(u[part, None] + reach[part, None] * _STEPS).astype(np.int64)[:, None, :]
        vv = np.rint(v[part, None] + reach[part, None] * _STEPS).astype(np.int64)[:, :, None]
        d = depth_m[np.clip(vv, 0, camera.height - 1), np.clip(uu, 0, camera.width - 1)]
        uu, vv, zz = uu - camera.cx, vv - camera.cy, z[part, None, None]
        x = ((uu * d - (u[part, None, None] - camera.cx) * zz) / camera.fx).astype(np.float32)
        y = ((vv * d - (v[part, None, None] - camera.cy) * zz) / camera.fy).astype(np.float32)
        around = np.stack([x, y, (d - zz).astype(np.float32)])
        around[:, d <= 0] = np.inf
        # most have a measurement near them
        square = (around[0] ** 2 + around[1] ** 2 + around[2] ** 2).min((1, 2))
        apart = np.flatnonzero(square > margin[part] ** 2)
        ratio = _nearest(around[:, apart]) / margin[part[apart]]
        clear[part[apart]] = np.where(ratio > 1, np.minimum(ratio, 100.0), 0.0)
    return clear


def _nearest(around: np.ndarray) -> np.ndarray:
    """Distance [N] from the origin to the nearest line between neighbours in lattices of points [3, N, h, w]; points
    that are not there are inf. Of a table under a grazing ray the points themselves lie far apart."""
    square = np.full(around.shape[1], np.inf, np.float32)
    for a, b in ((around[:, :, 1:], around[:, :, :-1]), (around[..., 1:], around[..., :-1])):
        there = np.isfinite(a[0]) & np.isfinite(b[0])
        a, b = np.where(there, a, 0), np.where(there, b, 0)
        along = b - a
        length2 = along[0] ** 2 + along[1] ** 2 + along[2] ** 2
        share = -(a[0] * along[0] + a[1] * along[1] + a[2] * along[2]) / np.maximum(length2, 1e-12)
        foot = a + along * np.clip(share, 0, 1)
        distance2 = foot[0] ** 2 + foot[1] ** 2 + foot[2] ** 2
        square = np.minimum(square, np.where(there, distance2, np.inf).min((1, 2)))
    return np.asarray(np.sqrt(square))


def crowded(keys: np.ndarray, least: int) -> np.ndarray:
    """[N] bool: voxel keys [N] (sorted) with at least `least` others of them among their 26 neighbours."""
    count = np.zeros(len(keys), np.int64)
    for near in neighbour_keys(keys):
        count += np.isin(near, keys)
    return count >= least


def neighbour_keys(keys: np.ndarray) -> np.ndarray:
    """Keys of the 26 voxels around each of the voxels `keys` [N]: [26, N]."""
    steps = NEIGHBOURS[:, 0] * (1 << 42) + NEIGHBOURS[:, 1] * (1 << 21) + NEIGHBOURS[:, 2]
    return keys[None] + steps[:, None]
