"""Contact-GraspNet (Sundermeyer et al., ICRA 2021): what it takes, what it answers.

`inference.py --np_path FILE` takes an .npz with `depth` [H, W] metres, `K` [3, 3], and `segmap` [H, W] and `rgb` where
there are any; `GraspEstimator.predict_scene_grasps` takes clouds in the camera's optical frame, the whole one and one
for each object. It answers with poses [G, 4, 4] of the Panda hand in that frame: x closes, z approaches, as ours; but
the origin is at the hand's base, 0.1034 m before the middle of the contacts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import QueryError
from ..frame import Frame
from ..geometry import invert, transform_points
from ..objects.grasps import Grasp, GraspScene
from .foreign import point_masks

BASE_TO_TIPS_M = 0.1034
"""Of the Panda hand, which it was trained with."""


def depth_input(frame: Frame, objects: Sequence[np.ndarray], *, within_m: float = 0.015) -> dict[str, np.ndarray]:
    """`depth`, `K`, `segmap` and `rgb` of one frame, for `np.savez(FILE, **...)`.

    Args:
        objects: [N, 3] points of each object, global_frame; the first is 1 in `segmap`. within_m: see `point_masks`.
    """
    return {
        "depth": frame.depth_m.astype(np.float32),
        "K": frame.camera.matrix,
        "segmap": point_masks(frame, objects, within_m).astype(np.uint8),
        "rgb": frame.rgb,
    }


def cloud_input(scene: GraspScene, T_world_camera: np.ndarray) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """`pc_full` [N, 3] float32 and `pc_segments` {1: [T, 3]} of one object, in the camera frame.

    Segments are rows of the whole: it keeps grasps whose contact is one of them to 0.01 mm. `foreign.view_of` makes a
    camera up.

    Raises:
        QueryError: what was asked for is not in front of the camera.
    """
    points = transform_points(invert(T_world_camera), np.concatenate([scene.own, scene.surroundings]))
    points = points.astype(np.float32)
    target = points[scene.target_rows]
    if not len(target) or (target[:, 2] <= 0).any():
        raise QueryError("what was asked for is not in front of the camera; take another T_world_camera")
    return points[points[:, 2] > 0], {1: target}


def poses_of(
    pred_grasps_cam: np.ndarray, T_world_camera: np.ndarray, *, base_to_tips_m: float = BASE_TO_TIPS_M
) -> np.ndarray:
    """[G, 4, 4] in our convention, in global_frame, of one object's `pred_grasps_cam`."""
    T = np.array(pred_grasps_cam, np.float64).reshape(-1, 4, 4)
    T[:, :3, 3] += base_to_tips_m * T[:, :3, 2]
    return np.asarray(T_world_camera @ T)


def hand_pose_of(
    grasp: Grasp, T_world_camera: np.ndarray, *, base_to_tips_m: float = BASE_TO_TIPS_M
) -> np.ndarray:
    """[4, 4]: the Panda hand in the camera frame, as it would have answered with a grasp of ours."""
    return np.asarray(invert(T_world_camera) @ grasp.backed_off(base_to_tips_m))
