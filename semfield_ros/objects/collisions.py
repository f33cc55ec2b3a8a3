"""How deep many gripper poses may reach before something is hit: the points of a scene against the gripper's boxes.

A gripper that moves along its own axis sweeps boxes along that axis, so every point in the column of a finger or of the
palm bounds how far the tips may reach: the bound is exact, for the pose and for the whole way in at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import GripperConfig
from . import reasons
from .closing import batches
from .gripper import between

OWN_SHARE = 0.4
"""Of the clearance, kept to the object itself on all sides but between the fingers, where the opening leaves it."""


@dataclass(frozen=True)
class Reach:
    """Of Q poses: `tip_m`, how far past the contacts the fingertips may reach along z (inf = as far as one likes), and
    `limit`, which of `Obstacles.words` bounds it."""

    tip_m: np.ndarray
    limit: np.ndarray


@dataclass(frozen=True)
class Obstacles:
    """What the gripper must not hit: the object itself [N, 3] (but for what is between the fingers), all else [M, 3].

    Attributes:
        flat: the object lies so low on its support that fingers which hit the support say it is flat.
    """

    own: np.ndarray
    others: np.ndarray
    flat: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Reasons, in the order of `Reach.limit`."""
        fingers = reasons.FLAT if self.flat else reasons.FINGERS_HIT
        own = reasons.FINGERS_HIT_OBJECT, reasons.PALM_HITS_OBJECT, reasons.WAY_BLOCKED
        return *own, fingers, reasons.PALM_HITS, reasons.WAY_BLOCKED

    def reach(
        self, middle: np.ndarray, rotation: np.ndarray, opening_m: np.ndarray, gripper: GripperConfig, way_m: float,
        stride: int = 1,
    ) -> Reach:  # fmt: skip
        """The deepest free reach, by every `stride`-th point. O(Q x (N + M) / stride).

        All but the object keeps `gripper.clearance_m` from fingers, palm and the way of both.

        Args:
            middle: [Q, 3] between the contacts. rotation: [Q, 3, 3]. opening_m: [Q] between the inner faces.
            way_m: how far back the way in begins.
        """
        limits = np.full((6, len(middle)), np.inf)
        for kind, points in enumerate((self.own, self.others)):
            margin = gripper.clearance_m * (1.0 if kind else OWN_SHARE)
            inner_margin = kind * gripper.clearance_m
            back = gripper.finger_length_m + gripper.palm_depth_m
            half_x, half_y = gripper.palm_half_m
            for q, (x, y, z) in batches(points[::stride], middle, rotation, np.arange(len(middle))):
                across = np.abs(x)
                along, near = np.abs(y), z > -back - margin - way_m
                beside = (along < gripper.finger_breadth_m / 2 + margin) & near
                inner, outer = opening_m[q] / 2 - inner_margin, opening_m[q] / 2 + gripper.finger_thickness_m + margin
                finger = beside & (across > inner[:, None]) & (across < outer[:, None])
                palm = near & (along < half_y + margin) & (across < half_x + margin)
                front = gripper.finger_length_m - margin
                column = palm & (z > -back - margin), palm
                for row, (inside, ahead) in enumerate(((finger, -margin), (column[0], front), (column[1], front))):
                    limits[3 * kind + row, q] = np.where(inside, z, np.inf).min(1, initial=np.inf) + ahead
        return Reach(limits.min(0), limits.argmin(0))

    def owned(
        self, origin: np.ndarray, rotation: np.ndarray, opening_m: np.ndarray, gripper: GripperConfig
    ) -> np.ndarray:
        """[Q] share of what is between the fingers that is the object's; 0 where there is nothing."""
        held = np.zeros((2, len(origin)))
        for kind, points in enumerate((self.own, self.others)):
            for q, local in batches(points, origin, rotation, np.arange(len(origin))):
                held[kind, q] = between(local, opening_m[q], gripper).sum(axis=1)
        return np.asarray(held[0] / np.maximum(held.sum(axis=0), 1.0))
