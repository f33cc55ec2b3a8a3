"""From antipodal pairs to gripper poses: from which sides each may be approached."""

from __future__ import annotations

import numpy as np

from ..config import GraspConfig
from .antipodal import Pairs
from .boxes import horizontal_basis

STEP_DEG = 15.0


def approaches(
    pairs: Pairs, up: np.ndarray, middle: np.ndarray, config: GraspConfig
) -> tuple[np.ndarray, np.ndarray, int]:
    """Gripper rotations [Q, 3, 3], the pair of each [Q], and how many were left out as too steep from below.

    Each pair is approached from all around its closing axis in steps of STEP_DEG, beginning with the one nearest
    straight down, as far as `max_approach_deg` allows.

    Args:
        up: [3] unit. middle: [3] of the object: where down is no direction, the way in leads there.
    """
    x = pairs.axis
    down = -up + (x @ up)[:, None] * x
    inward = middle - pairs.middle
    inward -= (inward * x).sum(axis=1, keepdims=True) * x
    fallback = np.cross(x, horizontal_basis(up)[:, 1])
    z = np.where(np.linalg.norm(down, axis=1, keepdims=True) > 0.1, down, inward)
    z = np.where(np.linalg.norm(z, axis=1, keepdims=True) > 1e-6, z, fallback)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    y = np.cross(z, x)
    half = np.arange(STEP_DEG, 180.0, STEP_DEG)
    turns = np.deg2rad(np.concatenate([[0.0], np.stack([-half, half], 1).reshape(-1), [180.0]]))[:, None, None]
    forward = np.cos(turns) * z + np.sin(turns) * y
    axis = np.broadcast_to(x, forward.shape)
    rotation = np.stack([axis, np.cross(forward, axis), forward], axis=-1).reshape(-1, 3, 3)
    pair = np.tile(np.arange(len(x)), len(turns))
    steep = rotation[:, :, 2] @ -up >= np.cos(np.deg2rad(config.max_approach_deg)) - 1e-9
    return rotation[steep], pair[steep], int((~steep).sum())

