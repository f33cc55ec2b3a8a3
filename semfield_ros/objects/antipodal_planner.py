"""Grasp candidates for a parallel gripper from surface points with normals: antipodal pairs, approaches, collisions.

Rims, handles and necks are found like any other pair: a mug's wall is an outer and an inner surface a few millimetres
apart. The order is: pairs of samples; approaches all around each pair; what a thin sample of the obstacles leaves, in
the order of a first score; those in batches of hundreds closed on the surface, tested against every point, against the
scene's `Clearance`, for reach; the rest scored again and thinned to diverse ones. Every candidate that drops out is
counted under its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from ..config import GraspConfig, GripperConfig
from ..errors import ConfigError
from . import reasons
from .antipodal import Pairs, antipodal_pairs, guess_unseen
from .boxes import finite_points, unit
from .diversity import diverse as diverse
from .grasp_search import ESTIMATED_FACTOR, Search
from .grasps import Grasp, GraspPlan, GraspScene

MAX_SAMPLES = 900
NEAR_M = 0.008
"""The density of samples is judged by those so near."""
BORDER_M = 0.015
"""Surface so near to a part that cannot be held itself may be held instead."""


class AntipodalPlanner:
    """The default `GraspPlanner`."""

    def plan(self, scene: GraspScene, gripper: GripperConfig, config: GraspConfig, seed: int = 0) -> GraspPlan:
        """Ranked, diverse, collision-free antipodal grasps of the target; none is a normal answer.

        Ranking: approach from above, how well both pads lie on the surface, weight near the grasp, clearance. Where
        fewer than half the wanted candidates have both contacts measured, the unseen side is guessed by half a turn
        about the box's vertical axis; such candidates rank lower and say so (`Grasp.measured`).
        """
        scene, rejected = usable(scene), Counter[str]()
        found = self._found(scene, gripper, config, seed, rejected)
        if not found and 0 < len(scene.target_rows) < len(scene.own):
            # a can's lid has no sides of its own: what borders on the part, the nearer the better
            away = cKDTree(scene.target).query(scene.own, distance_upper_bound=BORDER_M)[0]
            wider = replace(scene, target_rows=np.flatnonzero(away < np.inf), target_sureness=None)
            found = [_beside(g, scene.target) for g in self._found(wider, gripper, config, seed, rejected)]
        found = sorted(found, key=lambda grasp: -grasp.score)[: gripper.candidates]
        return GraspPlan(tuple(found), {reason: count for reason, count in rejected.items() if count})

    def _found(
        self, scene: GraspScene, gripper: GripperConfig, config: GraspConfig, seed: int, rejected: Counter[str]
    ) -> list[Grasp]:
        """Grasps of the target, in no order; what drops out is counted in `rejected`."""
        target, normals = scene.target, scene.target_normals
        known = (normals != 0).any(1)
        if known.sum() < 2:
            rejected[reasons.NOTHING_SEEN] += 1
            return []
        sample = _even_sample(target, known, seed)
        points, normals = target[sample], normals[sample]
        search = Search(scene, gripper, config, rejected)
        pairs = antipodal_pairs(points, normals, np.ones(len(sample), bool), gripper)
        rejected.update(pairs.rejected)
        if not len(pairs) and not any(pairs.rejected.values()):
            rejected[reasons.NOT_OPPOSED] += 1
        found = search.grasps(pairs)
        if 2 * len(found) < gripper.candidates:
            guess = guess_unseen(points, normals, search.box_middle, scene.up)
            if len(guess[0]):
                all_points, all_normals = np.concatenate([points, guess[0]]), np.concatenate([normals, guess[1]])
                pairs = antipodal_pairs(all_points, all_normals, np.arange(len(all_points)) < len(sample), gripper)
                found += search.grasps(pairs[~pairs.measured])
        return found


def grasp_candidates(
    points: np.ndarray,
    normals: np.ndarray,
    surroundings_points: np.ndarray,
    *,
    gripper: GripperConfig | None = None,
    up: np.ndarray | Sequence[float] = (0.0, 0.0, 1.0),
    seed: int = 0,
    config: GraspConfig | None = None,
) -> list[Grasp]:
    """`AntipodalPlanner.plan` of points alone: ranked, diverse, collision-free grasps of one object.

    Args:
        points, normals: [N, 3] of the object, metres, unit normals towards the seen side (0 = unknown). Rows that are
            not finite are ignored.
        surroundings_points: [M, 3] of everything else within reach: the table, other objects.
        up: against gravity. seed: of the subsample of large objects.

    Raises:
        ConfigError: shapes that do not fit.
    """
    points, normals = np.asarray(points, dtype=np.float64), np.asarray(normals, dtype=np.float64)
    if points.ndim != 2 or points.shape[1:] != (3,) or points.shape != normals.shape:
        raise ConfigError(f"points {points.shape} and normals {normals.shape} disagree; expected [N, 3] both")
    around = finite_points(surroundings_points, "surroundings_points")
    rgb, rows = np.zeros((len(points), 3), np.uint8), np.arange(len(points))
    scene = GraspScene(points, normals, rgb, rows, around, unit(up))
    plan = AntipodalPlanner().plan(scene, gripper or GripperConfig(), config or GraspConfig(), seed)
    return list(plan.grasps)


def assessed(
    scene: GraspScene, gripper: GripperConfig, config: GraspConfig, T_world_gripper: np.ndarray, contacts: np.ndarray
) -> tuple[list[Grasp], Counter[str]]:
    """Poses that somebody else thought of, looked at as the planner's own are: closed on the surface, tested, scored.

    Args:
        T_world_gripper: [Q, 4, 4]. contacts: [Q, 2, 3], about where the fingers will touch.

    Returns:
        those that hold and are free, neither ranked nor thinned, and why the others do not.
    """
    scene, rejected = usable(scene), Counter[str]()
    if not len(T_world_gripper) or not len(scene.target):
        return [], rejected
    rotation, middle = T_world_gripper[:, :3, :3], contacts.mean(1)
    width = np.linalg.norm(contacts[:, 1] - contacts[:, 0], axis=1)
    tip = ((T_world_gripper[:, :3, 3] - middle) * rotation[:, :, 2]).sum(1)
    pairs = Pairs(middle, rotation[:, :, 0], width, np.ones(len(width)), np.ones(len(width), bool))
    search, every = Search(scene, gripper, config, rejected), np.arange(len(width))
    found = search.tested(pairs, every, rotation, tip, width + 2 * gripper.clearance_m)
    return [found.grasp(k, scene.up) for k in range(len(found.score))], rejected


def _beside(grasp: Grasp, part: np.ndarray) -> Grasp:
    """A grasp beside the part [N, 3] that was asked for: it counts less, the less the farther."""
    away_m = float(cKDTree(part).query(grasp.contacts)[0].mean())
    return replace(grasp, score=grasp.score * ESTIMATED_FACTOR * float(np.exp(-2 * away_m / BORDER_M)))


def usable(scene: GraspScene) -> GraspScene:
    """Without rows that are not finite; normals of length one, or zero."""
    own, normals = np.asarray(scene.own, np.float64), np.asarray(scene.own_normals, np.float64)
    finite = np.asarray(np.isfinite(own).all(1) & np.isfinite(normals).all(1))
    length = np.linalg.norm(np.where(finite[:, None], normals, 0), axis=1, keepdims=True)
    normals = np.where(length > 1e-6, normals / np.maximum(length, 1e-6), 0.0)
    row = np.cumsum(finite) - 1
    target = np.asarray(scene.target_rows, np.int64)
    sure = None if scene.target_sureness is None else np.asarray(scene.target_sureness, np.float64)[finite[target]]
    return replace(
        scene, own=own[finite], own_normals=normals[finite], own_rgb=scene.own_rgb[finite],
        target_rows=row[target[finite[target]]], surroundings=finite_points(scene.surroundings, "surroundings"),
        up=unit(scene.up), target_sureness=sure,
    )  # fmt: skip


def _even_sample(points: np.ndarray, known: np.ndarray, seed: int) -> np.ndarray:
    """MAX_SAMPLES rows at most of the points [N, 3] with known [N] normals, even in area however dense they are: drawn
    by the inverse of how many are near (Efraimidis and Spirakis 2006). By index, not by place: the same object
    elsewhere gives the same rows."""
    draw = np.random.default_rng(seed).exponential(size=len(points))
    rows = np.flatnonzero(known)
    if len(rows) > MAX_SAMPLES:
        near = cKDTree(points[rows]).query_ball_point(points[rows], NEAR_M, return_length=True)
        draw[rows] *= near
    return np.asarray(rows[np.argsort(draw[rows], kind="stable")][:MAX_SAMPLES])
