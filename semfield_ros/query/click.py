"""Clicks: a place instead of a word. What looks like the surface there?"""

from __future__ import annotations

import numpy as np

from ..errors import QueryError
from ..field.snapshot import Snapshot
from ..frame import Frame
from ..geometry import pixel_directions, transform_points
from .prompt import EncodedPrompts, Prompt

REACH_PX = 3
"""A click into a hole of the depth image takes the nearest measured pixel within so many."""


def surface_point(frame: Frame, u: int, v: int) -> np.ndarray:
    """The point [3] in global_frame that a frame measured at pixel (u, v) of its depth image.

    Raises:
        QueryError: outside the image, or no depth there nor within REACH_PX.
    """
    height, width = frame.depth_m.shape
    if not (0 <= u < width and 0 <= v < height):
        raise QueryError(f"pixel ({u}, {v}) lies outside the image of {width}x{height}")
    left, top = max(0, u - REACH_PX), max(0, v - REACH_PX)
    around = frame.depth_m[top : v + REACH_PX + 1, left : u + REACH_PX + 1]
    rows, columns = np.nonzero(around > 0)
    if not len(rows):
        raise QueryError(f"there is no depth at pixel ({u}, {v}); click on a surface that the camera measures")
    best = np.argmin((rows + top - v) ** 2 + (columns + left - u) ** 2)
    v, u = int(rows[best]) + top, int(columns[best]) + left
    ray = pixel_directions(frame.camera, np.array(u), np.array(v))
    return transform_points(frame.T_world_camera, (ray * frame.depth_m[v, u])[None].astype(np.float64))[0]


def prompts_like(snapshot: Snapshot, point: np.ndarray, radius_m: float | None = None) -> EncodedPrompts:
    """The features of the surface within `radius_m` (None = 1.5 voxels) of a point [3], as a prompt named "click".

    Raises:
        QueryError: a point that is not finite, or with no surface near it whose features are known.
    """
    try:
        at = np.asarray(point, np.float64)
    except (TypeError, ValueError):
        at = np.empty(0)
    if at.shape != (3,) or not np.isfinite(at).all():
        raise QueryError(f"point is {point!r}; expected three finite numbers [m]")
    reach_m = 1.5 * snapshot.voxel_size_m if radius_m is None else radius_m
    snapshot = snapshot.within(at - reach_m, at + reach_m)
    distance_m = np.linalg.norm(snapshot.cloud.points - at, axis=1)
    near = np.flatnonzero((distance_m <= reach_m) & snapshot.measured)
    if not len(near):
        raise QueryError(
            f"there is no surface with known features within {reach_m:.3f} m of {np.round(at, 3).tolist()}; "
            "click on something that has been seen"
        )
    features = snapshot.features[near].astype(np.float32)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    mean = features.mean(0, keepdims=True)
    mean /= max(float(np.linalg.norm(mean)), 1e-6)
    none = np.zeros((0, mean.shape[1]), np.float32)
    return EncodedPrompts((Prompt("click", ("click",)),), mean, np.zeros(1, np.int64), none)
