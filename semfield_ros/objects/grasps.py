"""Grasps: what is asked of a planner, what it answers, and what any planner must look like.

A planner sees a `GraspScene`, nothing else: not where the surface came from (field, point map, exact geometry), nor who
asks. So the same planner serves them all, and a robot owner's own takes its place by name (`grasp.planner`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from ..config import GraspConfig, GripperConfig

if TYPE_CHECKING:
    from .wish import Wish

Approach = Literal["top", "oblique", "side"]


@dataclass(frozen=True)
class Grasp:
    """A pose for the open gripper.

    Attributes:
        T_world_gripper: [4, 4] float64; origin midway between the fingertips, x closes, z approaches.
        width_m: what is held, between the contacts. Open the fingers to `width_m` + 2 clearance before approaching.
        score: in [0, 1]; candidates are ranked by it.
        approach: top within 30 degrees of straight down, side beyond 60.
        contacts: [2, 3] metres, on the -x and on the +x finger.
        measured: False where one contact lies on a surface no camera saw, guessed by symmetry.
    """

    T_world_gripper: np.ndarray
    width_m: float
    score: float
    approach: Approach
    contacts: np.ndarray
    measured: bool = True

    def backed_off(self, distance_m: float) -> np.ndarray:
        """[4, 4]: the same pose `distance_m` back along the approach; where the straight way in begins."""
        T = self.T_world_gripper.copy()
        T[:3, 3] -= distance_m * T[:3, 2]
        return T

    def raised(self, distance_m: float, up: np.ndarray) -> np.ndarray:
        """[4, 4]: the same pose `distance_m` along `up`; where the object is taken first."""
        T = self.T_world_gripper.copy()
        T[:3, 3] += distance_m * np.asarray(up)
        return T


class Clearance(Protocol):
    """Space around an object, asked at points [N, 3] in global_frame."""

    def distance(self, points: np.ndarray) -> np.ndarray:
        """[N] float32 metres to the nearest surface, negative inside of things; exact near surfaces, at least the sign
        is elsewhere. What is unknown may be anything."""
        ...

    def unknown(self, points: np.ndarray) -> np.ndarray:
        """[N] bool: no camera has seen what is there, neither surface nor free space."""
        ...


@dataclass(frozen=True)
class GraspScene:
    """One object among its surroundings, in global_frame, metres.

    Attributes:
        own: [N, 3] float64 points of the whole object. own_normals: [N, 3] unit, towards the seen side (0 = unknown).
        own_rgb: [N, 3] uint8.
        target_rows: [T] int64 rows of `own` that may be held: all of them, or those of the part that was asked for.
        part: what of the object was asked for; empty = the whole thing.
        target_sureness: [T] in [0, 1], how sure it is that they are the part; None = all alike.
        surroundings: [M, 3] everything else within reach, also what the object hides of the support under it.
        up: [3] unit, against gravity. view_points: [V, 3] where cameras were that saw the object.
        clearance: the space around; None = only the points above are known.
        wish: what the place that is held should be like, for planners that mind (`optimised`).
    """

    own: np.ndarray
    own_normals: np.ndarray
    own_rgb: np.ndarray
    target_rows: np.ndarray
    surroundings: np.ndarray
    up: np.ndarray
    view_points: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    clearance: Clearance | None = None
    wish: Wish | None = None
    part: str = ""
    target_sureness: np.ndarray | None = None

    @property
    def target(self) -> np.ndarray:
        """[T, 3] points that may be held."""
        return np.asarray(self.own[self.target_rows])

    @property
    def target_normals(self) -> np.ndarray:
        """[T, 3]."""
        return np.asarray(self.own_normals[self.target_rows])


@dataclass(frozen=True)
class GraspPlan:
    """What a planner found: ranked grasps, best first, and how many candidates each reason ruled out."""

    grasps: tuple[Grasp, ...] = ()
    rejected: dict[str, int] = field(default_factory=dict)

    @property
    def why_none(self) -> str:
        """The reasons, the commonest first, where there is no grasp; else empty."""
        if self.grasps:
            return ""
        order = sorted(self.rejected.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{reason} ({count})" for reason, count in order) or "nothing to hold was seen"


class GraspPlanner(Protocol):
    """What takes the place of ours: `grasp.planner: module:attribute`, the attribute being called without arguments.

    It is made once a process and asked by several threads at a time. What it answers is looked at (`planned.py`): where
    it raises, or answers with what no gripper can do, the object has no grasp and a reason that says so.
    """

    def plan(self, scene: GraspScene, gripper: GripperConfig, config: GraspConfig) -> GraspPlan:
        """Grasps of `scene.target` that hit neither `scene.surroundings` nor `scene.clearance`."""
        ...
