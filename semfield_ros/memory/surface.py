"""Surface normals of a depth image."""

from __future__ import annotations

import cv2
import numpy as np

from ..geometry import Camera, image_directions


def depth_normals(camera: Camera, depth_m: np.ndarray, step_px: int = 2, edge_relative: float = 0.04) -> np.ndarray:
    """Camera-frame unit normals [H, W, 3] float32, towards the camera; 0 where depth is missing or jumps.

    Cross product of central differences over `step_px` pixels of the back-projected, lightly smoothed image. A
    difference spanning more than `edge_relative` of the depth is an edge, not a surface.
    """
    valid = depth_m > 0
    weight = cv2.blur(valid.astype(np.float32), (3, 3))
    smooth = np.where(valid, cv2.blur(depth_m, (3, 3)) / np.maximum(weight, 1e-6), 0).astype(np.float32)
    jumps = valid & (np.abs(smooth - depth_m) > edge_relative * depth_m)
    smooth[jumps] = depth_m[jumps]
    points = image_directions(camera) * smooth[..., None]
    normals = np.zeros_like(points)
    s = step_px
    dx = points[s:-s, 2 * s :] - points[s:-s, : -2 * s]
    dy = points[2 * s :, s:-s] - points[: -2 * s, s:-s]
    cross = np.cross(dy, dx)
    length = np.linalg.norm(cross, axis=-1)
    limit = edge_relative * depth_m[s:-s, s:-s] * s
    usable = (
        valid[s:-s, s:-s] & valid[s:-s, 2 * s :] & valid[s:-s, : -2 * s] & valid[2 * s :, s:-s] & valid[: -2 * s, s:-s]
    )
    usable &= (np.abs(dx[..., 2]) < limit) & (np.abs(dy[..., 2]) < limit) & (length > 1e-12)
    unit = cross / np.maximum(length, 1e-12)[..., None]
    # a surface that was seen faces the camera: n . ray < 0
    rays = points[s:-s, s:-s]
    flip = np.sign(-(unit * rays).sum(-1, keepdims=True))
    normals[s:-s, s:-s] = np.where(usable[..., None], unit * flip, 0)
    return normals
