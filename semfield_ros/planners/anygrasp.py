"""AnyGrasp (Fang et al., T-RO 2023) and GraspNet: what `AnyGrasp.get_grasp(points, colors, lims)` takes, what it
answers.

Takes points and colours in the camera's optical frame, and the limits of the workspace there. Answers with a GraspGroup
of graspnetAPI: rows of 17 numbers, score, width, height, depth, rotation (9, row by row), translation (3), object id;
the columns of the rotation are approach, closing direction, and their cross product; the fingertips are `depth` ahead
of the translation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import QueryError
from ..geometry import invert, transform_points
from ..objects.grasps import Grasp, GraspScene

HEIGHT_M = 0.02
UNKNOWN_GREY = 0.5
_NUMBERS = 17


@dataclass(frozen=True)
class AnyGraspInput:
    """Arguments of `get_grasp`, in the camera frame.

    Attributes:
        points: [N, 3] float32 metres. colors: [N, 3] float32 in 0..1; what is around an object is grey.
        lims: xmin, xmax, ymin, ymax, zmin, zmax of what was asked for, with a margin [m].
    """

    points: np.ndarray
    colors: np.ndarray
    lims: list[float]


def get_grasp_input(scene: GraspScene, T_world_camera: np.ndarray, *, margin_m: float = 0.02) -> AnyGraspInput:
    """What AnyGrasp takes, as seen from a camera (`foreign.view_of` makes one up).

    Raises:
        QueryError: what was asked for is not in front of the camera.
    """
    T = invert(T_world_camera)
    points = transform_points(T, np.concatenate([scene.own, scene.surroundings]))
    colours = np.full((len(points), 3), UNKNOWN_GREY, np.float32)
    colours[: len(scene.own)] = np.asarray(scene.own_rgb, np.float32) / 255
    target = transform_points(T, scene.target)
    if not len(target) or (target[:, 2] <= 0).any():
        raise QueryError("what was asked for is not in front of the camera; take another T_world_camera")
    ahead = points[:, 2] > 0
    low, high = target.min(0) - margin_m, target.max(0) + margin_m
    low[2] = max(low[2], 0.0)
    return AnyGraspInput(
        points[ahead].astype(np.float32), colours[ahead], [float(end) for pair in zip(low, high) for end in pair]
    )


def poses_of(grasp_group_array: np.ndarray, T_world_camera: np.ndarray) -> np.ndarray:
    """[G, 4, 4] in our convention, in global_frame, of `GraspGroup.grasp_group_array` [G, 17]."""
    rows = _rows(grasp_group_array)
    R, t, depth = rows[:, 4:13].reshape(-1, 3, 3), rows[:, 13:16], rows[:, 3]
    T = np.tile(np.eye(4), (len(rows), 1, 1))
    T[:, :3, :3] = R[:, :, [1, 2, 0]]
    T[:, :3, 3] = t + depth[:, None] * R[:, :, 0]
    return np.asarray(T_world_camera @ T)


def scores_of(grasp_group_array: np.ndarray) -> np.ndarray:
    """[G] in [0, 1]."""
    return np.clip(_rows(grasp_group_array)[:, 0], 0.0, 1.0)


def openings_of(grasp_group_array: np.ndarray) -> np.ndarray:
    """[G] metres."""
    return _rows(grasp_group_array)[:, 1]


def row_of(
    grasp: Grasp, opening_m: float, T_world_camera: np.ndarray, *, depth_m: float = 0.02, object_id: int = -1
) -> np.ndarray:
    """[17] float64 of a grasp of ours, as graspnetAPI has it."""
    T = invert(T_world_camera) @ grasp.T_world_gripper
    R = T[:3, [2, 0, 1]]
    t = T[:3, 3] - depth_m * R[:, 0]
    return np.concatenate([[grasp.score, opening_m, HEIGHT_M, depth_m], R.reshape(-1), t, [object_id]])


def _rows(grasp_group_array: np.ndarray) -> np.ndarray:
    rows = np.asarray(grasp_group_array, np.float64)
    if rows.ndim != 2 or rows.shape[1] != _NUMBERS:
        raise QueryError(f"the grasp group has shape {rows.shape}; expected [G, {_NUMBERS}], as graspnetAPI stores it")
    return rows
