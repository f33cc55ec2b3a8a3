"""Gripper poses of any planner as grasps: what they hold and what they hit is measured on our surface.

Planners that look at whole scenes answer with poses on other things too, say widths in their own ways, and know
nothing of what their camera did not see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from ..config import GraspConfig, GripperConfig
from ..frame import Frame
from ..geometry import back_project, invert, look_at, rigid_error, transform_points
from ..objects import reasons
from ..objects.grasps import Approach, Grasp, GraspPlan, GraspScene
from ..objects.gripper import between, hits, outline

NOT_A_POSE = "not a finite rigid pose"
NOTHING_HELD = "nothing that was asked for is between the fingers"
SWEEP_STEP_M = 0.01
TOP_DEG, SIDE_DEG = 30.0, 60.0


def approach_of(z: np.ndarray, up: np.ndarray) -> Approach:
    """From which side a gripper comes that approaches along the unit vector `z` [3]."""
    angle = np.degrees(np.arccos(np.clip(-z @ up, -1.0, 1.0)))
    return "top" if angle <= TOP_DEG else "side" if angle > SIDE_DEG else "oblique"


def grasp_at(
    T_world_gripper: np.ndarray,
    score: float,
    scene: GraspScene,
    gripper: GripperConfig,
    *,
    opening_m: float | None = None,
) -> Grasp | str:
    """The grasp of a pose in our convention (origin midway between the fingertips, x closes, z approaches), or why
    there is none.

    Args:
        T_world_gripper: [4, 4]. score: clipped to [0, 1].
        opening_m: how wide the fingers are open when they get there; None = as wide as they go.
    """
    T = np.asarray(T_world_gripper, np.float64)
    if T.shape != (4, 4) or not np.isfinite(T).all() or rigid_error(T) > 1e-3:
        return NOT_A_POSE
    wide = np.array([gripper.max_width_m if opening_m is None else opening_m])
    if not 0 < wide[0] <= gripper.max_width_m + 1e-6:
        return reasons.TOO_WIDE
    local = transform_points(invert(T), scene.target)
    held = local[between(local.T[:, None], wide, gripper)[0]]
    if not len(held):
        return NOTHING_HELD
    ends = held[[held[:, 0].argmin(), held[:, 0].argmax()]]
    width_m = float(ends[1, 0] - ends[0, 0])
    return Grasp(
        T, width_m, float(np.clip(score, 0.0, 1.0)), approach_of(T[:3, 2], scene.up), transform_points(T, ends)
    )


def foreign_plan(
    poses: np.ndarray,
    scores: np.ndarray | Sequence[float],
    scene: GraspScene,
    gripper: GripperConfig,
    config: GraspConfig,
    *,
    openings_m: np.ndarray | Sequence[float] | None = None,
) -> GraspPlan:
    """The plan of foreign poses: those that hold what was asked for and reach it freely, best first.

    Args:
        poses: [G, 4, 4] in our convention, in global_frame; `gpd`, `anygrasp` and `contact_graspnet` make them.
        scores: [G]. openings_m: [G] of the fingers on the way in; None = as wide as they go.
    """
    grasps, rejected = [], Counter[str]()
    for k, (T, score) in enumerate(zip(np.asarray(poses, np.float64).reshape(-1, 4, 4), scores)):
        opening_m = gripper.max_width_m if openings_m is None else min(float(openings_m[k]), gripper.max_width_m)
        found = grasp_at(T, float(score), scene, gripper, opening_m=opening_m)
        if not isinstance(found, str):
            found = _blocked(T, opening_m, scene, gripper, config) or found
        if isinstance(found, str):
            rejected[found] += 1
        else:
            grasps.append(found)
    grasps.sort(key=lambda grasp: -grasp.score)
    return GraspPlan(tuple(grasps[: gripper.candidates]), dict(rejected))


def _blocked(T: np.ndarray, opening_m: float, scene: GraspScene, gripper: GripperConfig, config: GraspConfig) -> str:
    """What the open gripper would hit in its place, or on the straight way in; '' = nothing."""
    own = transform_points(invert(T), scene.own).T[:, None]
    if hits(own, np.array([opening_m]), gripper).any():
        return reasons.FINGERS_HIT_OBJECT
    steps = np.arange(0.0, config.standoff_m + SWEEP_STEP_M / 2, SWEEP_STEP_M)
    local = transform_points(invert(T), scene.surroundings).T[:, None]
    for back in steps:
        if hits(local, np.array([opening_m]), gripper, tip_m=-back).any():
            return reasons.WAY_BLOCKED if back else reasons.FINGERS_HIT
    if scene.clearance is None or config.unseen == "free":
        return ""
    swept = (outline(gripper, opening_m)[None] - steps[:, None, None] * [0.0, 0.0, 1.0]).reshape(-1, 3)
    return reasons.UNSEEN if scene.clearance.unknown(transform_points(T, swept)).any() else ""


def view_of(scene: GraspScene) -> np.ndarray:
    """T_world_camera [4, 4] of a view at the middle of what was asked for, from the nearest place a camera was (or from
    half a metre above): planners that were trained on single views want their clouds in such a frame."""
    middle = scene.target.mean(0)
    eyes = scene.view_points if len(scene.view_points) else (middle + 0.5 * scene.up)[None]
    return look_at(eyes[np.linalg.norm(eyes - middle, axis=1).argmin()], middle, scene.up)


def point_masks(frame: Frame, clouds: Sequence[np.ndarray], within_m: float) -> np.ndarray:
    """Which pixels of a frame show which cloud: [H, W] int32, 0 = none, 1 = the first ...

    Args:
        clouds: [N, 3] each, global_frame. within_m: a pixel's point is this near to the nearest point of its cloud; the
            map's voxel size and a half is right.
    """
    ids = np.zeros(frame.depth_m.shape, np.int32)
    seen, pixels = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
    nearest = np.full(len(seen), within_m)
    for number, cloud in enumerate(clouds, 1):
        distance = cKDTree(cloud).query(seen, distance_upper_bound=within_m)[0] if len(cloud) else nearest
        closer = distance < nearest
        ids.reshape(-1)[pixels[closer]], nearest[closer] = number, distance[closer]
    return ids
