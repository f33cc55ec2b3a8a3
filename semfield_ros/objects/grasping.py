"""From objects to grasps: the scene around each one, and the planner that is asked."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from ..cloud import SurfaceCloud
from ..config import GraspConfig, GripperConfig, ObjectConfig
from ..errors import ConfigError
from . import reasons
from .boxes import unit
from .field_space import PointSpace, points_of
from .grasps import GraspPlanner, GraspScene
from .objects import Object, ObjectPart, supports_of
from .planned import planned
from .support import support_patch
from .wish import Wish

SUPPORT_SPACING_M = 0.015
SUPPORT_NOISE_M = 0.005
"""What lies no higher above its support than this may be the support."""
TOUCHING = 1.6
"""Points are neighbours up to so many times the usual distance of neighbours."""
PLANNERS = {
    "antipodal": "semfield_ros.objects.antipodal_planner:AntipodalPlanner",
    "optimised": "semfield_ros.objects.grasp_optimiser:OptimisedPlanner",
}


def planner_of(config: GraspConfig) -> GraspPlanner:
    """The planner of that name, or somebody's own as `module:attribute`; made once and asked from several threads.

    Raises:
        ConfigError: there is none, it cannot be imported, or it is no planner.
    """
    return _made(config.planner)


@functools.lru_cache(maxsize=8)
def _made(planner: str) -> GraspPlanner:
    module, _, attribute = PLANNERS.get(planner, planner).partition(":")
    if not attribute:
        raise ConfigError(f"grasp.planner is {planner!r}; allowed: {', '.join(PLANNERS)}, or module:attribute")
    try:
        made: GraspPlanner = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # whatever somebody's own module does when it is loaded
        raise ConfigError(f"grasp.planner {planner!r} cannot be used: {type(error).__name__}: {error}") from error
    if not callable(getattr(made, "plan", None)):
        raise ConfigError(f"grasp.planner {planner!r} has no method plan(scene, gripper, config)")
    return made


def grasp_scene(
    cloud: SurfaceCloud,
    thing: Object,
    config: ObjectConfig,
    gripper: GripperConfig,
    *,
    space: PointSpace | None = None,
    standoff_m: float = 0.0,
) -> GraspScene:
    """An object among what the cloud it was found in knows around it.

    Other points as near to the object as its own are to each other, and above its support, count as its own, though
    not as what may be held: a prompt rarely names every point of a thing.

    Args:
        space: where its surface, the clearance around and the view points come from; None = the cloud alone.
        standoff_m: how far back the way in begins.
    """
    up = unit(config.up)
    rows = thing.rows
    points = cloud.points[rows].astype(np.float64)
    reach = gripper.finger_length_m + gripper.palm_depth_m + gripper.max_width_m + standoff_m
    near = ((cloud.points > points.min(axis=0) - reach) & (cloud.points < points.max(axis=0) + reach)).all(axis=1)
    near[rows] = False
    around = cloud.points[near].astype(np.float64)
    heights = _standing_on(points @ up, around @ up, supports_of(cloud, up, config.support_tolerance_m), config)
    hidden = support_patch(
        points, up, heights, tolerance_m=config.support_tolerance_m, reach_m=reach / 2, spacing_m=SUPPORT_SPACING_M
    )
    others = np.flatnonzero(near)
    touching = _touching(points, cloud.points[others].astype(np.float64), up, hidden)
    around = cloud.points[others[~touching]].astype(np.float64)
    grown = np.concatenate([rows, others[touching]])
    if space is None:
        own, normals, row = points_of(cloud, grown)
    else:
        surface = space.surface(cloud, grown)
        own, normals, row = surface.points, surface.normals, surface.row
    wanted = np.isin(grown, rows if thing.part is None else thing.part.rows)
    target = np.flatnonzero(wanted[row])
    sure = None if thing.part is None else _sureness(thing.part, rows, grown)
    return GraspScene(
        own=own,
        own_normals=normals,
        own_rgb=cloud.rgb[grown[row]],
        target_rows=target,
        surroundings=np.concatenate([around, hidden]),
        up=up,
        view_points=np.zeros((0, 3)) if space is None else space.view_points(points),
        clearance=space,
        part="" if thing.part is None else thing.part.prompt,
        target_sureness=None if sure is None else sure[row[target]],
    )


def _sureness(part: ObjectPart, rows: np.ndarray, grown: np.ndarray) -> np.ndarray | None:
    """How sure it is that points [G], the object's own rows [n] first, are the part: its scores from the least of the
    part to the best of it, as 0 to 1."""
    if len(part.scores) != len(rows):
        return None
    scores = np.zeros(len(grown))
    scores[: len(rows)] = part.scores
    low, high = np.quantile(scores[np.isin(grown, part.rows)], (0.05, 0.95))
    return np.asarray(np.clip((scores - low) / max(high - low, 1e-6), 0, 1))


def _standing_on(own_m: np.ndarray, around_m: np.ndarray, heights: np.ndarray, config: ObjectConfig) -> np.ndarray:
    """Of all supports [K] the one that an object stands on: not above its lowest points, and seen around it: [0 or 1].

    Args:
        own_m, around_m: heights of the object's points and of those around.
    """
    tolerance = config.support_tolerance_m
    under = heights[heights <= np.min(own_m, initial=np.inf) + 2 * tolerance]
    seen = (np.abs(around_m[:, None] - under) < tolerance).sum(0)
    return under[[seen.argmax()]] if len(under) else under


def _touching(own: np.ndarray, others: np.ndarray, up: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Which of the other points [M, 3] are as near to an object's as those are to each other: [M] bool."""
    if len(own) < 2 or not len(others):
        return np.zeros(len(others), bool)
    tree = cKDTree(own)
    spacing = float(np.median(tree.query(own[:: max(1, len(own) // 200)], k=2)[0][:, 1]))
    touching = tree.query(others, distance_upper_bound=TOUCHING * spacing)[0] < np.inf
    if len(support):
        touching &= others @ up > float(support[0] @ up) + SUPPORT_NOISE_M
    return np.asarray(touching)


def with_grasps(
    objects: Iterable[Object],
    cloud: SurfaceCloud,
    *,
    objects_config: ObjectConfig,
    gripper: GripperConfig,
    config: GraspConfig,
    space: PointSpace | None = None,
    planner: GraspPlanner | None = None,
    wish: Wish | None = None,
) -> list[Object]:
    """The same objects, each with its ranked grasps or with the reasons for none.

    Args:
        cloud: the one the objects were found in. space: see `grasp_scene`. planner: None = as configured.
        wish: what the places held should be like; one with a task takes the planner that can follow it.
    """
    if planner is None and wish is not None and wish.task is not None:
        config = replace(config, planner="optimised")
    make = (lambda: planner_of(config)) if planner is None else (lambda: planner)
    found = []
    for thing in objects:
        if reasons.PART_NOT_FOUND in thing.rejected:  # a grasp elsewhere is not what was asked for
            found.append(thing)
            continue
        scene = grasp_scene(cloud, thing, objects_config, gripper, space=space, standoff_m=config.standoff_m)
        scene = replace(scene, wish=wish)
        plan = planned(make, scene, gripper, config)
        found.append(replace(thing, grasps=plan.grasps, rejected=plan.rejected))
    return found
