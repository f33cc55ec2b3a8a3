"""A parallel gripper as boxes in its own frame, and which surface points they would hit.

Gripper frame: origin midway between the fingertips, x closes, z approaches the object, y = z cross x. The fingers
reach back from the tips to z = -finger_length_m, where the palm begins.
"""

from __future__ import annotations

import numpy as np

from ..config import GripperConfig


def hits(
    local: np.ndarray,
    opening_m: np.ndarray,
    gripper: GripperConfig,
    *,
    tip_m: float = 0.0,
    margin_m: float = 0.0,
    inner_margin_m: float = 0.0,
) -> np.ndarray:
    """Which points the open gripper would hit: [P, M] bool.

    Args:
        local: [3, P, M], coordinates of M points in the gripper frames of P poses, metres.
        opening_m: [P] distance between the inner faces of the fingers.
        tip_m: where the fingertips are along z in `local` (0 when `local` is the gripper frame itself).
        margin_m: all boxes are grown by this on every side but the inner faces of the fingers...
        inner_margin_m: ...which grow by this: 0 for the object itself, as the opening has its clearance already.
    """
    across, along, ahead = np.abs(local[0]), np.abs(local[1]), local[2] - tip_m
    inner = (opening_m / 2 - inner_margin_m)[:, None]
    outer = (opening_m / 2 + gripper.finger_thickness_m + margin_m)[:, None]
    finger = (across > inner) & (across < outer) & (ahead < margin_m) & (ahead > -gripper.finger_length_m - margin_m)
    palm_front = -gripper.finger_length_m + margin_m
    palm_back = -gripper.finger_length_m - gripper.palm_depth_m - margin_m
    palm_half = gripper.max_width_m / 2 + gripper.finger_thickness_m + margin_m
    palm = (across < palm_half) & (ahead < palm_front) & (ahead > palm_back)
    return np.asarray((finger | palm) & (along < gripper.finger_breadth_m / 2 + margin_m))


def between(local: np.ndarray, opening_m: np.ndarray, gripper: GripperConfig, *, tip_m: float = 0.0) -> np.ndarray:
    """Which points lie between the open fingers, where the object is meant to be: [P, M] bool; arguments as `hits`."""
    ahead = local[2] - tip_m
    return np.asarray(
        (np.abs(local[0]) <= (opening_m / 2)[:, None])
        & (np.abs(local[1]) < gripper.finger_breadth_m / 2)
        & (ahead <= 0)
        & (ahead >= -gripper.finger_length_m)
    )


def outline(gripper: GripperConfig, opening_m: float) -> np.ndarray:
    """Points on fingers and palm in the gripper frame, [12, 3] metres: for clearances and for drawing."""
    x = opening_m / 2 + gripper.finger_thickness_m / 2
    palm = gripper.max_width_m / 2 + gripper.finger_thickness_m
    front, back = -gripper.finger_length_m, -gripper.finger_length_m - gripper.palm_depth_m
    return np.array(
        [[s * x, 0.0, z] for s in (-1.0, 1.0) for z in (0.0, front / 2, front)]
        + [[s * palm, 0.0, z] for s in (-1.0, 1.0) for z in (front, (front + back) / 2, back)]
    )
