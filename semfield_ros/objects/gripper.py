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
    finger, palm, _ = hit_parts(
        local, opening_m, gripper, tip_m=tip_m, margin_m=margin_m, inner_margin_m=inner_margin_m
    )
    return np.asarray(finger | palm)


def hit_parts(
    local: np.ndarray,
    opening_m: np.ndarray,
    gripper: GripperConfig,
    *,
    tip_m: float | np.ndarray = 0.0,
    margin_m: float = 0.0,
    inner_margin_m: float = 0.0,
    way_m: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which points the fingers, the palm and the straight way in (both, moved back by up to `way_m`) would hit.

    Args: as of `hits`; `tip_m` may be [P, 1].

    Returns:
        [P, M] bool each. A box that moves along its own axis sweeps a longer box, so the way in is exact too.
    """
    across, along, ahead = np.abs(local[0]), np.abs(local[1]), local[2] - tip_m
    beside = along < gripper.finger_breadth_m / 2 + margin_m
    inner = (opening_m / 2 - inner_margin_m)[:, None]
    outer = (opening_m / 2 + gripper.finger_thickness_m + margin_m)[:, None]
    in_finger = beside & (across > inner) & (across < outer) & (ahead < margin_m)
    finger = in_finger & (ahead > -gripper.finger_length_m - margin_m)
    palm_front = -gripper.finger_length_m + margin_m
    palm_back = -gripper.finger_length_m - gripper.palm_depth_m - margin_m
    half_x, half_y = gripper.palm_half_m
    in_palm = (along < half_y + margin_m) & (across < half_x + margin_m) & (ahead < palm_front)
    palm = in_palm & (ahead > palm_back)
    way = in_palm & (ahead <= palm_back) & (ahead > palm_back - way_m)
    return finger, palm, way


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
    palm = gripper.palm_half_m[0]
    front, back = -gripper.finger_length_m, -gripper.finger_length_m - gripper.palm_depth_m
    return np.array(
        [[s * x, 0.0, z] for s in (-1.0, 1.0) for z in (0.0, front / 2, front)]
        + [[s * palm, 0.0, z] for s in (-1.0, 1.0) for z in (front, (front + back) / 2, back)]
    )


def inside_points(gripper: GripperConfig, opening_m: np.ndarray, way_m: float = 0.0) -> tuple[np.ndarray, int]:
    """Points inside the fingers, then inside the palm and the way it comes, of P grippers: [P, K, 3], frame of each.

    Half a finger from its faces: what measures a few millimetres wrong does not turn a touch into a collision.

    Returns:
        the points, and how many of the K are the fingers'.
    """
    y = np.array([-0.3, 0.0, 0.3]) * gripper.finger_breadth_m
    z = -np.linspace(0.15 * gripper.finger_thickness_m, gripper.finger_length_m, 7)
    finger = np.stack(np.meshgrid([-1.0, 1.0], y, z, indexing="ij"), -1).reshape(-1, 3)
    half, breadth = (side - 0.3 * gripper.finger_thickness_m for side in gripper.palm_half_m)
    back = np.linspace(gripper.finger_length_m + 0.005, gripper.finger_length_m + gripper.palm_depth_m + way_m, 6)
    x = np.linspace(-half, half, 7)
    palm = np.stack(np.meshgrid(x, [-breadth, breadth], -back, indexing="ij"), -1).reshape(-1, 3)
    fingers = np.broadcast_to(finger, (len(opening_m), *finger.shape)).copy()
    fingers[..., 0] *= (np.asarray(opening_m) / 2 + gripper.finger_thickness_m / 2)[:, None]
    return np.concatenate([fingers, np.broadcast_to(palm, (len(fingers), *palm.shape))], 1), len(finger)
