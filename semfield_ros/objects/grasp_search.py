"""From antipodal pairs to ranked grasps: approaches, how deep they reach, what the fingers close on, what it is worth.

What a thin sample of the obstacles leaves is taken in the order of a first score, in batches of hundreds: closed on the
surface, tested against every point, against the `Clearance`, for reach; scored again and thinned to diverse ones.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from scipy.spatial import cKDTree

from ..config import GraspConfig, GripperConfig
from . import reasons
from .antipodal import Pairs
from .approaches import approaches
from .boxes import upright_box
from .clearance import blocked, unseen
from .closing import Closing, close
from .collisions import Obstacles, Reach
from .diversity import diverse
from .grasps import Approach, Grasp, GraspScene
from .gripper import outline

MAX_PAIRS = 256
THIN = 16
"""A sample of every so many points rules most poses out."""
TIP = 0.8
"""How far the fingertips reach past the contacts where there is room, in finger breadths..."""
PART_TIP = 0.3
"""...or past those on a part: deeper fingers would hold what lies behind it..."""
LEAST_TIP = 0.15
"""...and how far at least."""
BATCH = 256
"""Poses that are tested against everything at once..."""
ENOUGH = 4
"""...until so many times the wanted number are free."""
ESTIMATED_FACTOR = 0.6
"""What a grasp counts whose contacts are guessed."""
UNSURE_FACTOR = 0.15
"""What a grasp counts whose contacts are the least sure points of a part."""
LEVER_M = 0.12
"""The farther beside the object's middle it is held, the more it turns in the grip."""


class Search:
    """One object among its surroundings: turns pairs into ranked grasps, and counts what drops out."""

    def __init__(self, scene: GraspScene, gripper: GripperConfig, config: GraspConfig, rejected: Counter[str]):
        self.scene, self.gripper, self.config, self.rejected = scene, gripper, config, rejected
        self.up, own = scene.up, scene.own
        self.box_middle = upright_box(scene.target, self.up).centre
        self.centroid, self.weight = scene.target.mean(axis=0), own.mean(axis=0)
        self.radius = max(float(np.linalg.norm(scene.target - self.centroid, axis=1).max()), 1e-6)
        back = config.standoff_m + gripper.finger_length_m + gripper.palm_depth_m + gripper.finger_breadth_m
        reach = self.radius + 2 * gripper.clearance_m + float(np.linalg.norm([back, *gripper.palm_half_m]))
        near: list[np.ndarray] = []
        for points in (own, scene.surroundings):
            near.append(points[np.asarray(np.linalg.norm(points - self.centroid, axis=1) <= reach)])
        self.tree = cKDTree(near[1]) if len(near[1]) else None
        heights = own @ self.up
        low = near[1] @ self.up
        under = low[low < heights.min() + 0.005]
        flat = len(under) > 0 and heights.max() - np.median(under) < 3 * gripper.clearance_m
        self.obstacles = Obstacles(near[0], near[1], bool(flat))
        sample = own[:: max(1, len(own) // 500)]
        self.spacing_m = 1.5 * float(np.median(cKDTree(own).query(sample, k=2)[0][:, 1])) if len(own) > 1 else 0.0
        self.wanted = np.zeros(len(own), bool)
        self.wanted[scene.target_rows] = True
        self.of_part = bool(scene.part)
        self.part = cKDTree(scene.target) if scene.target_sureness is not None and len(scene.target) else None

    def grasps(self, pairs: Pairs) -> list[Grasp]:
        """Collision-free, diverse grasps of the pairs, best first."""
        gripper = self.gripper
        sure = self._sure(pairs.middle, pairs.axis, pairs.width)
        worth = np.round(sure * self._worth(pairs.quality, pairs.axis, pairs.middle), 9)
        chosen = diverse(pairs.middle, pairs.axis[:, :, None], worth, 0.008, 20.0, MAX_PAIRS)
        if len(chosen) == 0:
            return []
        pairs, sure = pairs[chosen], sure[chosen]
        rotation, pair, below = approaches(pairs, self.up, self.box_middle, self.config)
        self.rejected[reasons.FROM_BELOW] += below
        opening = _opening(pairs.width[pair], gripper)
        reach = self.obstacles.reach(
            pairs.middle[pair], rotation, opening, gripper, self.config.standoff_m, THIN
        )
        left = np.flatnonzero(self._deep_enough(reach))
        rotation, pair, opening = rotation[left], pair[left], opening[left]
        tip = np.minimum(reach.tip_m[left], (PART_TIP if self.of_part else TIP) * gripper.finger_breadth_m)
        first = self._worth(pairs.quality[pair], pairs.axis[pair], pairs.middle[pair]) + self._from_above(rotation)
        order = np.argsort(-np.round(sure[pair] * first, 9), kind="stable")
        done: list[Scored] = []
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            done.append(self.tested(pairs, pair[rows], rotation[rows], tip[rows], opening[rows]))
            if sum(len(d.score) for d in done) >= ENOUGH * gripper.candidates:
                break
        if not done:
            return []
        scored = Scored.joined(done)
        best = diverse(scored.origin, scored.rotation, scored.score, 0.01, 25.0, gripper.candidates)
        return [scored.grasp(int(k), self.up) for k in best]

    def _lever(self, middle: np.ndarray) -> np.ndarray:
        """[Q] horizontal metres from the grasp to the object's weight."""
        offset = self.weight - middle
        return np.asarray(np.linalg.norm(offset - (offset @ self.up)[:, None] * self.up, axis=1))

    def _sure(self, middle: np.ndarray, axis: np.ndarray, width: np.ndarray) -> np.ndarray:
        """[Q] in [UNSURE_FACTOR, 1]: how sure it is that both contacts are the part; 1 where nothing says."""
        if self.part is None or self.scene.target_sureness is None or not len(middle):
            return np.ones(len(middle))
        ends = middle[:, None] + np.array([[-0.5], [0.5]]) * (width[:, None] * axis)[:, None]
        row = self.part.query(ends, k=min(4, len(self.scene.target)))[1].reshape(len(middle), -1)
        return np.asarray(UNSURE_FACTOR + (1 - UNSURE_FACTOR) * self.scene.target_sureness[row].mean(1))

    def tested(
        self, pairs: Pairs, pair: np.ndarray, rotation: np.ndarray, tip: np.ndarray, opening: np.ndarray
    ) -> Scored:
        """Those of Q poses that are free, closed on the surface and scored."""
        gripper, config, scene = self.gripper, self.config, self.scene
        measured = pairs.measured[pair]
        origin = pairs.middle[pair] + tip[:, None] * rotation[:, :, 2]
        closing = close(
            scene.own, scene.own_normals, self.wanted, origin, rotation, opening, gripper, self.spacing_m
        )
        # where one side was only guessed there is nothing to close on
        seen = measured & closing.valid & (closing.width >= gripper.min_width_m)
        shift = np.where(seen, (closing.low + closing.high) / 2, 0.0)
        width = np.where(seen, closing.width, pairs.width[pair])
        middle = pairs.middle[pair] + shift[:, None] * rotation[:, :, 0]
        opening = _opening(width, gripper)
        keep = self._count(
            reasons.TOO_WIDE, width <= gripper.widest_m + 1e-9, np.ones(len(pair), bool)
        )
        keep = self._count(reasons.POOR_CONTACT, ~measured | (closing.cone > 0) & (closing.wanted > 0.3), keep)
        rows = np.flatnonzero(keep)
        reach = self.obstacles.reach(middle[rows], rotation[rows], opening[rows], gripper, config.standoff_m)
        keep[rows] = self._deep_enough(reach)
        tip[rows] = np.minimum(tip[rows], reach.tip_m)
        origin = middle + tip[:, None] * rotation[:, :, 2]
        owned = np.zeros(len(pair))
        rows = np.flatnonzero(keep)
        owned[rows] = self.obstacles.owned(origin[rows], rotation[rows], opening[rows], gripper)
        keep = self._count(reasons.POOR_CONTACT, owned > 0, keep)
        if config.reach_m > 0:
            distance = np.linalg.norm(origin - np.asarray(config.reach_from), axis=1)
            keep = self._count(reasons.OUT_OF_REACH, distance <= config.reach_m, keep)
        if scene.clearance is not None:
            for reason, test in ((reasons.IN_FIELD, blocked), (reasons.UNSEEN, unseen)):
                if reason != reasons.UNSEEN or config.unseen == "occupied":
                    rows = np.flatnonzero(keep)
                    bad = test(scene.clearance, origin[rows], rotation[rows], opening[rows], gripper, config.standoff_m)
                    ok = keep.copy()
                    ok[rows] = ~bad
                    keep = self._count(reason, ok, keep)
        rows = np.flatnonzero(keep)
        score = self._score(closing, rows, origin, rotation, opening, pairs.quality[pair], measured, middle)
        if self.of_part:
            score *= np.where(measured, closing.wanted, 1.0)[rows]
        score *= owned[rows] * self._sure(middle[rows], rotation[rows][:, :, 0], width[rows])
        return Scored(
            origin[rows], rotation[rows], width[rows], middle[rows], np.round(score, 9), measured[rows]
        )

    def _deep_enough(self, reach: Reach) -> np.ndarray:
        """[Q] bool; the others are counted under what they would hit."""
        free = reach.tip_m >= LEAST_TIP * self.gripper.finger_breadth_m
        for word, count in zip(self.obstacles.words, np.bincount(reach.limit[~free], minlength=6).tolist()):
            self.rejected[word] += count
        return np.asarray(free)

    def _count(self, reason: str, ok: np.ndarray, keep: np.ndarray) -> np.ndarray:
        self.rejected[reason] += int((keep & ~ok).sum())
        return np.asarray(keep & ok)

    def _score(
        self, closing: Closing, rows: np.ndarray, origin: np.ndarray, rotation: np.ndarray, opening: np.ndarray,
        quality: np.ndarray, measured: np.ndarray, middle: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """[K] in [0, 1]."""
        contact = 0.4 * closing.cone + 0.35 * closing.patch + 0.25 * closing.centred
        hold = np.where(measured, contact * closing.wanted, ESTIMATED_FACTOR * quality)[rows]
        free = self._clearance(origin[rows], rotation[rows], opening[rows])
        score = self._worth(hold, rotation[rows][:, :, 0], middle[rows]) + self._from_above(rotation[rows])
        score = score + 0.05 * free
        return np.asarray(np.where(measured[rows], score, ESTIMATED_FACTOR * score))

    def _worth(self, hold: np.ndarray, axis: np.ndarray, middle: np.ndarray) -> np.ndarray:
        """[Q] in [0, .8]: how well it is held [Q]; fingers that close level, as what hangs from one finger instead of
        between both slips; near its weight."""
        level = 1 - (axis @ self.up) ** 2
        return np.asarray(0.3 * hold + 0.3 * level + 0.2 * np.exp(-self._lever(middle) / LEVER_M))

    def _from_above(self, rotation: np.ndarray) -> np.ndarray:
        """[Q] in [0, .15]: 0 from the side."""
        tilt = np.arccos(np.clip(-(rotation[:, :, 2] @ self.up), -1, 1))
        return np.asarray(0.15 * np.clip(1 - tilt / (np.pi / 2), 0, 1))

    def _clearance(self, origin: np.ndarray, rotation: np.ndarray, opening: np.ndarray) -> np.ndarray:
        """Distance of fingers and palm to the nearest obstacle, 1 at 3 cm or more: [Q]."""
        if self.tree is None or len(origin) == 0:
            return np.ones(len(origin))
        shape = np.stack([outline(self.gripper, float(w)) for w in opening])
        placed = np.einsum("qij,qkj->qki", rotation, shape) + origin[:, None]
        return np.clip(self.tree.query(placed.reshape(-1, 3))[0].reshape(len(origin), -1).min(axis=1) / 0.03, 0, 1)


def _opening(width_m: np.ndarray, gripper: GripperConfig) -> np.ndarray:
    """`GripperConfig.opening_m` of widths [Q]."""
    return np.minimum(width_m + 2 * gripper.clearance_m, gripper.max_width_m)


class Scored:
    """Free poses [K] with their scores."""

    def __init__(
        self, origin: np.ndarray, rotation: np.ndarray, width: np.ndarray, middle: np.ndarray, score: np.ndarray,
        measured: np.ndarray,
    ):  # fmt: skip
        self.arrays = origin, rotation, width, middle, score, measured
        self.origin, self.rotation, self.width, self.middle, self.score, self.measured = self.arrays

    @classmethod
    def joined(cls, parts: list[Scored]) -> Scored:
        """One after the other."""
        return cls(*(np.concatenate(column) for column in zip(*(part.arrays for part in parts))))

    def grasp(self, k: int, up: np.ndarray) -> Grasp:
        """The pose of that row."""
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = self.rotation[k], self.origin[k]
        width, downward = float(self.width[k]), float(-(self.rotation[k][:, 2] @ up))
        ends = self.middle[k] + np.array([[-0.5], [0.5]]) * width * self.rotation[k][:, 0]
        approach: Approach = "top" if downward > np.cos(np.pi / 6) else "side" if downward < 0.5 else "oblique"
        return Grasp(T, width, float(self.score[k]), approach, ends, bool(self.measured[k]))
