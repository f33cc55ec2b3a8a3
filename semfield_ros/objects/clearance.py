"""Space around an object: what a `Clearance` knows of gripper poses, and clearances of points and of the field."""

from __future__ import annotations

import numpy as np

from ..config import GripperConfig
from .grasps import Clearance
from .gripper import inside_points

BLOCKED_SHARE = 0.12
"""A pose is blocked when more than this share of the points in fingers and palm lie inside of something..."""
DEPTH_M = 0.002
"""...by so much: what maps measure wrong."""


def placed_points(
    origin: np.ndarray, rotation: np.ndarray, opening_m: np.ndarray, gripper: GripperConfig, way_m: float
) -> tuple[np.ndarray, int]:
    """Points in the gripper and on its way in, of poses [Q, 3], [Q, 3, 3]: [Q, K, 3] world; how many are fingers'."""
    local, fingers = inside_points(gripper, opening_m, way_m)
    return np.einsum("qij,qkj->qki", rotation, local) + origin[:, None], fingers


def blocked(
    clearance: Clearance, origin: np.ndarray, rotation: np.ndarray, opening_m: np.ndarray, gripper: GripperConfig,
    way_m: float,
) -> np.ndarray:  # fmt: skip
    """[Q] bool: fingers, palm or the way in lie inside of something."""
    if not len(origin):
        return np.zeros(0, bool)
    points, fingers = placed_points(origin, rotation, opening_m, gripper, way_m)
    inside = (clearance.distance(points.reshape(-1, 3)) < -DEPTH_M).reshape(len(origin), -1)
    return np.asarray(
        (inside[:, :fingers].mean(1) > BLOCKED_SHARE) | (inside[:, fingers:].mean(1) > BLOCKED_SHARE)
    )


def unseen(
    clearance: Clearance, origin: np.ndarray, rotation: np.ndarray, opening_m: np.ndarray, gripper: GripperConfig,
    way_m: float,
) -> np.ndarray:  # fmt: skip
    """[Q] bool: most of the fingers, or of the palm and its way in, would be where no camera has looked."""
    if not len(origin):
        return np.zeros(0, bool)
    points, fingers = placed_points(origin, rotation, opening_m, gripper, way_m)
    unknown = clearance.unknown(points.reshape(-1, 3)).reshape(len(origin), -1)
    return np.asarray((unknown[:, :fingers].mean(1) > 0.3) | (unknown[:, fingers:].mean(1) > 0.3))
