"""MoveIt: a GraspCandidate of ~/query or ~/locate as moveit_msgs/Grasp, and where its links go.

MoveIt plans for the link that carries the hand, whose place only a robot's owner knows: `T_link_gripper` says where the
middle between the fingertips is in that link, and which way the fingers close (x) and point (z). Postures are names of
joints, which are theirs too: they are left empty.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..geometry import invert
from ..messages.poses import matrix_of, quaternion

PANDA_HAND = np.array([[0.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.1034], [0.0, 0.0, 0.0, 1.0]])
"""T_link_gripper of `panda_hand`, `fr3_hand`: the fingers move along its y."""
LEAST_SHARE = 0.5
"""Of the way in and out, so much must be possible in a straight line."""


def link_pose(pose: Any, T_link_gripper: np.ndarray) -> np.ndarray:
    """T_world_link [4, 4] that puts the gripper to a pose of a GraspCandidate (`pose`, `pregrasp` or `retreat`)."""
    return np.asarray(matrix_of(pose) @ invert(T_link_gripper))


def moveit_grasp(
    candidate: Any, T_link_gripper: np.ndarray, *, id: str = "", allowed_touch_objects: Sequence[str] = ()
) -> Any:
    """moveit_msgs/Grasp, of the ROS that is sourced; `pre_grasp_posture` and `grasp_posture` are left to you.

    Args:
        candidate: semfield_ros/GraspCandidate, of either wire. allowed_touch_objects: ids of the planning scene.

    Raises:
        ConfigError: moveit_msgs is not there.
    """
    try:
        packages = ("moveit_msgs", "geometry_msgs", "std_msgs", "builtin_interfaces")
        moveit, geometry, std, builtin = (importlib.import_module(f"{package}.msg") for package in packages)
    except ImportError as error:
        raise ConfigError(f"moveit_msgs cannot be imported: {error}; install it and source its workspace") from error
    stamp = builtin.Time(sec=int(candidate.header.stamp.sec), nanosec=int(candidate.header.stamp.nanosec))
    header = std.Header(stamp=stamp, frame_id=str(candidate.header.frame_id))

    def way(direction: Any, start: Any, end: Any) -> Any:
        length_m = float(np.linalg.norm(matrix_of(end)[:3, 3] - matrix_of(start)[:3, 3]))
        vector = geometry.Vector3(x=float(direction.x), y=float(direction.y), z=float(direction.z))
        return moveit.GripperTranslation(
            direction=geometry.Vector3Stamped(header=header, vector=vector),
            desired_distance=length_m, min_distance=LEAST_SHARE * length_m,
        )  # fmt: skip

    T = link_pose(candidate.pose, T_link_gripper)
    (x, y, z), (qx, qy, qz, qw) = map(float, T[:3, 3]), quaternion(T[:3, :3])
    pose = geometry.Pose(
        position=geometry.Point(x=x, y=y, z=z), orientation=geometry.Quaternion(x=qx, y=qy, z=qz, w=qw)
    )
    return moveit.Grasp(
        id=id,
        grasp_pose=geometry.PoseStamped(header=header, pose=pose),
        grasp_quality=float(candidate.score),
        pre_grasp_approach=way(candidate.approach_direction, candidate.pregrasp, candidate.pose),
        post_grasp_retreat=way(candidate.retreat_direction, candidate.pose, candidate.retreat),
        allowed_touch_objects=list(allowed_touch_objects),
    )
