"""Grasps as messages: where the gripper goes, from where, where to next; and in words why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config import GripperConfig, SemfieldConfig
from ..messages.poses import pose_of
from ..messages.types import types
from ..objects import Grasp, Object
from ..objects.boxes import unit
from ..objects.grasps import GraspPlan

APPROACHES = {"top": 0, "oblique": 1, "side": 2}


def opening_m(grasp: Grasp, gripper: GripperConfig) -> float:
    """How wide the fingers are opened before the approach."""
    return min(grasp.width_m + 2 * gripper.clearance_m, gripper.max_width_m)


def reach_past_contacts_m(grasp: Grasp) -> float:
    """How far the fingertips reach past the middle of the contacts, along the approach."""
    T = grasp.T_world_gripper
    return float((T[:3, 3] - np.asarray(grasp.contacts).mean(0)) @ T[:3, 2])


def candidate(grasp: Grasp, header: Any, config: SemfieldConfig) -> Any:
    """semfield_ros/msg/GraspCandidate; `header` says the frame and the time."""
    up = unit(config.objects.up)
    return types().new(
        "semfield_ros/msg/GraspCandidate",
        header=header,
        pose=pose_of(grasp.T_world_gripper),
        pregrasp=pose_of(grasp.backed_off(config.grasp.standoff_m)),
        retreat=pose_of(grasp.raised(config.grasp.retreat_m, up)),
        approach_direction=vector(grasp.T_world_gripper[:3, 2]),
        retreat_direction=vector(up),
        width=float(grasp.width_m),
        opening=opening_m(grasp, config.gripper),
        depth=reach_past_contacts_m(grasp),
        score=float(grasp.score),
        contacts=[point(contact) for contact in grasp.contacts],
        approach=APPROACHES[grasp.approach],
        measured=bool(grasp.measured),
    )


def grasp_fields(thing: Object, header: Any, config: SemfieldConfig, *, asked: bool) -> dict[str, Any]:
    """The fields of a SemanticObject about grasps: candidates, and what ruled the others out.

    Args:
        asked: whether grasps were looked for; only then does their absence need a reason.
    """
    reasons = sorted(thing.rejected, key=lambda reason: (-thing.rejected[reason], reason))
    return {
        "grasps": [candidate(grasp, header, config) for grasp in thing.grasps],
        "rejected_reasons": reasons,
        "rejected_counts": np.array([thing.rejected[reason] for reason in reasons], np.uint32),
        "why_no_grasps": GraspPlan(thing.grasps, thing.rejected).why_none if asked else "",
    }


def poses(things: Sequence[Object], header: Any) -> Any:
    """geometry_msgs/PoseArray: the grasps of the first object, best first, then those of the next."""
    found = [pose_of(grasp.T_world_gripper) for thing in things for grasp in thing.grasps]
    return types().new("geometry_msgs/msg/PoseArray", header=header, poses=found)


def point(at: np.ndarray) -> Any:
    """geometry_msgs/Point of [3]."""
    return types().new("geometry_msgs/msg/Point", x=float(at[0]), y=float(at[1]), z=float(at[2]))


def vector(of: np.ndarray) -> Any:
    """geometry_msgs/Vector3 of [3]."""
    return types().new("geometry_msgs/msg/Vector3", x=float(of[0]), y=float(of[1]), z=float(of[2]))
