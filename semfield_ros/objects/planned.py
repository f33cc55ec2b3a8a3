"""A planner asked, whoever wrote it: what it answers is looked at before anybody moves an arm by it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ..config import GraspConfig, GripperConfig
from ..geometry import rigid_error
from .grasps import Grasp, GraspPlan, GraspPlanner, GraspScene

log = logging.getLogger(__name__)

FAILED = "the planner failed"
"""How the reason begins where a planner raised, or answered with something else than a plan."""
UNUSABLE = "the planner's grasp is unusable"
"""How the reason begins for a grasp that is none."""
RIGID = 1e-3
_CHARACTERS = 200


def planned(
    make: Callable[[], GraspPlanner], scene: GraspScene, gripper: GripperConfig, config: GraspConfig
) -> GraspPlan:
    """The plan of any planner, best grasp first; what cannot be executed is a counted rejection. Raises nothing.

    Args:
        make: returns the planner; where it raises, that is the reason.
    """
    try:
        plan: Any = make().plan(scene, gripper, config)
        grasps, rejected = tuple(plan.grasps), {str(reason): int(n) for reason, n in plan.rejected.items()}
    except Exception as error:
        words = f"{FAILED}: {type(error).__name__}: {error}"[:_CHARACTERS]
        log.debug("%s", words, exc_info=True)
        return GraspPlan((), {words: 1})
    wrong = [unusable(grasp, gripper) for grasp in grasps]
    counts = Counter(f"{UNUSABLE}: {why}" for why in wrong if why)
    kept = [grasp for grasp, why in zip(grasps, wrong) if not why]
    return GraspPlan(tuple(sorted(kept, key=lambda grasp: -grasp.score)), rejected | counts)


def unusable(grasp: Any, gripper: GripperConfig) -> str:
    """What is wrong with a grasp; '' = nothing.

    Args:
        grasp: anything; a `Grasp` has a rigid pose, finite contacts, a width that fits the gripper, a score in [0, 1].
    """
    if not isinstance(grasp, Grasp):
        return f"it is of type {type(grasp).__name__}, not Grasp"
    try:
        T, contacts = np.asarray(grasp.T_world_gripper, np.float64), np.asarray(grasp.contacts, np.float64)
        width_m, score = float(grasp.width_m), float(grasp.score)
    except (TypeError, ValueError):
        return "it holds something else than numbers"
    if T.shape != (4, 4) or contacts.shape != (2, 3):
        return "its pose is not [4, 4], or its contacts are not [2, 3]"
    if not (np.isfinite(T).all() and np.isfinite(contacts).all()):
        return "its pose or its contacts are not finite"
    if rigid_error(T) > RIGID:
        return "its pose is not rigid"
    if not 0 <= width_m <= gripper.max_width_m:
        return "its width is not 0 to gripper.max_width_m"
    if not 0 <= score <= 1:
        return "its score is not in [0, 1]"
    if grasp.approach not in ("top", "oblique", "side"):
        return "its approach is not top, oblique or side"
    return ""


def failures(rejected: dict[str, int]) -> dict[str, int]:
    """Of an object's rejections, those that say the planner itself is broken."""
    return {reason: count for reason, count in rejected.items() if reason.startswith((FAILED, UNUSABLE))}
