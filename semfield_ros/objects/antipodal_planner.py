"""Grasp candidates for a parallel gripper from surface points with normals: antipodal pairs, approaches, collisions.

Rims, handles and necks are found like any other pair: a mug's wall is an outer and an inner surface a few millimetres
apart. Work is bounded: at most MAX_PAIRS pairs of MAX_SAMPLES samples, each with 7 approaches and 3 depths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.spatial import cKDTree

from ..config import GraspConfig, GripperConfig
from ..errors import ConfigError
from .antipodal import Pairs, antipodal_pairs, guess_unseen
from .boxes import finite_points, horizontal_basis, unit, upright_box
from .grasps import Approach, Grasp, GraspPlan, GraspScene
from .gripper import between, hits, outline

MAX_SAMPLES = 400
MAX_PAIRS = 128
ANGLES_DEG = (0.0, -30.0, 30.0, -60.0, 60.0, -90.0, 90.0)
"""Approaches of a pair: the one nearest straight down, turned about the closing axis."""
TIPS = (0.5, 1.0, 0.2)
"""How far the fingertips reach past the contacts, in finger breadths; the first that is free is taken."""
ESTIMATED_FACTOR = 0.6
MAX_PRODUCT = 1_000_000


class AntipodalPlanner:
    """The default `GraspPlanner`."""

    def plan(self, scene: GraspScene, gripper: GripperConfig, config: GraspConfig) -> GraspPlan:
        """Ranked, diverse, collision-free antipodal grasps of the target."""
        rest = np.setdiff1d(np.arange(len(scene.own)), scene.target_rows)
        surroundings = np.concatenate([scene.surroundings, scene.own[rest]])
        found = grasp_candidates(scene.target, scene.target_normals, surroundings, gripper=gripper, up=scene.up)
        return GraspPlan(tuple(found), {} if found else {"no free pair of opposed surfaces": 1})


def grasp_candidates(
    points: np.ndarray,
    normals: np.ndarray,
    surroundings_points: np.ndarray,
    *,
    gripper: GripperConfig | None = None,
    up: np.ndarray | Sequence[float] = (0.0, 0.0, 1.0),
    seed: int = 0,
) -> list[Grasp]:
    """Ranked, diverse, collision-free grasps of one object; none is a normal answer.

    Ranking: approach from above, antipodal quality, closeness to the middle of the object, clearance. Where fewer than
    half the wanted candidates have both contacts measured, the unseen side is guessed by half a turn about the box's
    vertical axis; such candidates rank lower and say so (`Grasp.measured`).

    Args:
        points, normals: [N, 3] of the object, metres, unit normals towards the seen side (0 = unknown). Rows that are
            not finite are ignored.
        surroundings_points: [M, 3] of everything else within reach: the table, other objects.
        up: against gravity. seed: of the subsample of large objects.

    Raises:
        ConfigError: shapes that do not fit.
    """
    gripper = gripper or GripperConfig()
    up = unit(up)
    points, normals = np.asarray(points, dtype=np.float64), np.asarray(normals, dtype=np.float64)
    if points.ndim != 2 or points.shape[1:] != (3,) or points.shape != normals.shape:
        raise ConfigError(f"points {points.shape} and normals {normals.shape} disagree; expected [N, 3] both")
    finite = np.isfinite(points).all(axis=1) & np.isfinite(normals).all(axis=1)
    points, normals = points[finite], normals[finite]
    surroundings = finite_points(surroundings_points, "surroundings_points")
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    known = length[:, 0] > 1e-6
    if known.sum() < 2:
        return []
    normals = normals / np.maximum(length, 1e-6)

    # By index, not by place: the same object elsewhere gives the same grasps there.
    order = np.random.default_rng(seed).permutation(len(points))
    sample = order[known[order]][:MAX_SAMPLES]
    scene = _Scene(points[order], surroundings, upright_box(points, up).centre, gripper, up)
    measured = scene.grasps(antipodal_pairs(points[sample], normals[sample], np.ones(len(sample), bool), gripper))
    if 2 * len(measured) < gripper.candidates:
        guess = guess_unseen(points[sample], normals[sample], scene.middle, up)
        if len(guess[0]):
            all_points = np.concatenate([points[sample], guess[0]])
            all_normals = np.concatenate([normals[sample], guess[1]])
            seen = np.arange(len(all_points)) < len(sample)
            pairs = antipodal_pairs(all_points, all_normals, seen, gripper)
            measured += scene.grasps(pairs[~pairs.measured])
    return sorted(measured, key=lambda grasp: -grasp.score)[: gripper.candidates]


class _Scene:
    """One object among its surroundings: turns pairs into ranked grasps."""

    def __init__(
        self, own: np.ndarray, surroundings: np.ndarray, middle: np.ndarray, gripper: GripperConfig, up: np.ndarray
    ):
        self.own, self.middle, self.gripper, self.up = own, middle, gripper, up
        self.centroid = own.mean(axis=0)
        self.radius = max(float(np.linalg.norm(own - self.centroid, axis=1).max()), 1e-6)
        reach = self.radius + np.hypot(
            gripper.finger_length_m + gripper.palm_depth_m + gripper.finger_breadth_m,
            gripper.max_width_m / 2 + gripper.finger_thickness_m + gripper.finger_breadth_m,
        ) + 2 * gripper.clearance_m
        near = np.linalg.norm(surroundings - self.centroid, axis=1) <= reach
        self.surroundings = surroundings[near]
        self.tree = cKDTree(self.surroundings) if near.any() else None

    def grasps(self, pairs: Pairs) -> list[Grasp]:
        """Collision-free, diverse grasps of the pairs, best first."""
        closeness = 1.0 - np.linalg.norm(pairs.middle - self.centroid, axis=1) / self.radius
        chosen = diverse(
            pairs.middle, pairs.axis[:, :, None], pairs.quality + 0.5 * closeness, 0.008, 20.0, MAX_PAIRS
        )
        pairs, closeness = pairs[chosen], np.clip(closeness[chosen], 0, 1)
        if len(chosen) == 0:
            return []
        rotation, pair = self._approaches(pairs)
        tip, owned = self._collisions(pairs, rotation, pair)
        free = np.flatnonzero(np.isfinite(tip))
        rotation, pair, tip, owned = rotation[free], pair[free], tip[free], owned[free]
        origin = pairs.middle[pair] + tip[:, None] * rotation[:, :, 2]
        opening = pairs.width[pair] + 2 * self.gripper.clearance_m
        downward = -(rotation[:, :, 2] @ self.up)
        score = (
            0.4 * (1.0 + downward) / 2
            + 0.3 * pairs.quality[pair]
            + 0.2 * closeness[pair]
            + 0.1 * self._clearance(origin, rotation, opening)
        ) * owned
        score = np.round(np.where(pairs.measured[pair], score, ESTIMATED_FACTOR * score), 9)
        best = diverse(origin, rotation, score, 0.01, 25.0, self.gripper.candidates)
        return [
            self._grasp(rotation[k], origin[k], pairs, int(pair[k]), float(score[k]), float(downward[k])) for k in best
        ]

    def _grasp(
        self, R: np.ndarray, origin: np.ndarray, pairs: Pairs, pair: int, score: float, downward: float
    ) -> Grasp:
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = R, origin
        width = float(pairs.width[pair])
        ends = pairs.middle[pair] + np.array([[-0.5], [0.5]]) * width * pairs.axis[pair]
        approach: Approach = "top" if downward > np.cos(np.pi / 6) else "side" if downward < 0.5 else "oblique"
        return Grasp(T, width, score, approach, ends, bool(pairs.measured[pair]))

    def _approaches(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """Gripper rotations [Q, 3, 3] and the pair of each [Q]: several approaches about every closing axis."""
        x = pairs.axis
        down = -self.up + (x @ self.up)[:, None] * x
        # A vertical closing axis has no approach nearest to straight down: come from outside, towards the middle.
        inward = self.middle - pairs.middle
        inward -= (inward * x).sum(axis=1, keepdims=True) * x
        fallback = np.cross(x, horizontal_basis(self.up)[:, 1])
        z = np.where(np.linalg.norm(down, axis=1, keepdims=True) > 0.1, down, inward)
        z = np.where(np.linalg.norm(z, axis=1, keepdims=True) > 1e-6, z, fallback)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        y = np.cross(z, x)
        turns = np.deg2rad(np.asarray(ANGLES_DEG))[:, None, None]
        forward = np.cos(turns) * z + np.sin(turns) * y
        axis = np.broadcast_to(x, forward.shape)
        rotation = np.stack([axis, np.cross(forward, axis), forward], axis=-1)
        return rotation.reshape(-1, 3, 3), np.tile(np.arange(len(x)), len(ANGLES_DEG))

    def _collisions(self, pairs: Pairs, rotation: np.ndarray, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far the tips reach past the contacts (NaN: no reach is free), and the share of what is between the
        fingers that is the object's, [Q] each.

        A thin sample of the obstacles rules most poses out; the rest are tested against every point.
        """
        gripper = self.gripper
        opening = pairs.width[pair] + 2 * gripper.clearance_m
        middle = pairs.middle[pair]
        tips = np.array(TIPS) * gripper.finger_breadth_m
        free = np.ones((len(tips), len(pair)), dtype=bool)
        obstacles = ((self.own, 0.0), (self.surroundings, gripper.clearance_m))
        for stride in (16, 1):
            for points, inner_margin in obstacles:
                for q, local in _batches(points[::stride], middle, rotation, np.flatnonzero(free.any(axis=0))):
                    for t, tip in enumerate(tips):
                        hit = hits(
                            local, opening[q], gripper,
                            tip_m=tip, margin_m=gripper.clearance_m, inner_margin_m=inner_margin,
                        )
                        free[t, q] &= ~hit.any(axis=1)
        reach = np.where(free.any(axis=0), tips[free.argmax(axis=0)], np.nan)
        origin = middle + reach[:, None] * rotation[:, :, 2]
        held = np.zeros((2, len(pair)))
        for kind, (points, _) in enumerate(obstacles):
            for q, local in _batches(points, origin, rotation, np.flatnonzero(np.isfinite(reach))):
                held[kind, q] = between(local, opening[q], gripper).sum(axis=1)
        return np.where(held[0] > 0, reach, np.nan), held[0] / np.maximum(held.sum(axis=0), 1.0)

    def _clearance(self, origin: np.ndarray, rotation: np.ndarray, opening: np.ndarray) -> np.ndarray:
        """Distance of fingers and palm to the nearest obstacle, 1 at 5 cm or more: [Q]."""
        if self.tree is None or len(origin) == 0:
            return np.ones(len(origin))
        shape = np.stack([outline(self.gripper, float(w)) for w in opening])
        placed = np.einsum("qij,qkj->qki", rotation, shape) + origin[:, None]
        return np.clip(self.tree.query(placed.reshape(-1, 3))[0].reshape(len(origin), -1).min(axis=1) / 0.05, 0, 1)


def _batches(
    points: np.ndarray, origin: np.ndarray, rotation: np.ndarray, poses: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some of the poses [q], and the points [M, 3] in their frames [3, q, M] float32, within a bounded memory."""
    step = max(1, MAX_PRODUCT // max(len(points), 1))
    for start in range(0, len(poses) if len(points) else 0, step):
        q = poses[start : start + step]
        centre = points[0]  # float32 is exact enough only near the origin
        rows = np.moveaxis(rotation[q], 2, 0).reshape(-1, 3).astype(np.float32)
        local = (rows @ (points - centre).astype(np.float32).T).reshape(3, len(q), len(points))
        local += np.einsum("qj,qji->iq", centre - origin[q], rotation[q]).astype(np.float32)[:, :, None]
        yield q, local


def diverse(
    position: np.ndarray, axes: np.ndarray, score: np.ndarray, distance_m: float, angle_deg: float, limit: int
) -> np.ndarray:
    """Non-maximum suppression: rows by falling score, none near a better one in both place and direction.

    Args:
        position: [N, 3]. axes: [N, 3, A] unit columns; two poses point the same way when every column does, where the
            first (the closing axis) and second may be reversed, as a gripper turned by half a turn is the same.
    """
    order = np.argsort(-score, kind="stable")
    cosine = np.cos(np.deg2rad(angle_deg))
    kept: list[int] = []
    while len(order) and len(kept) < limit:
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        alike = np.einsum("nij,ij->nj", axes[rest], axes[best])
        alike[:, :2] = np.abs(alike[:, :2])
        near = ((position[rest] - position[best]) ** 2).sum(axis=1) <= distance_m**2
        order = rest[~(near & (alike >= cosine).all(axis=1))]
    return np.asarray(kept, dtype=np.int64)
