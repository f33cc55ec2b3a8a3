"""From objects to grasps: the scene around each one, and the planner that is asked."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ..cloud import SurfaceCloud
from ..config import GraspConfig, GripperConfig, ObjectConfig
from ..errors import ConfigError
from .boxes import unit
from .grasps import Clearance, GraspPlanner, GraspScene
from .objects import Object, supports_of
from .support import support_patch

SUPPORT_SPACING_M = 0.015
PLANNERS = {"antipodal": "semfield_ros.objects.antipodal_planner:AntipodalPlanner"}


def planner_of(config: GraspConfig) -> GraspPlanner:
    """The planner of that name, or somebody's own as `module:attribute`.

    Raises:
        ConfigError: there is none, or it cannot be imported.
    """
    name = PLANNERS.get(config.planner, config.planner)
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ConfigError(f"grasp.planner is {config.planner!r}; allowed: {', '.join(PLANNERS)}, or module:attribute")
    try:
        planner: GraspPlanner = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"grasp.planner {config.planner!r} cannot be used: {error}") from error
    return planner


def grasp_scene(
    cloud: SurfaceCloud,
    thing: Object,
    config: ObjectConfig,
    gripper: GripperConfig,
    *,
    clearance: Clearance | None = None,
    view_points: np.ndarray | None = None,
) -> GraspScene:
    """An object among what the cloud it was found in knows around it."""
    up = unit(config.up)
    rows = thing.rows
    points = cloud.points[rows].astype(np.float64)
    reach = gripper.finger_length_m + gripper.palm_depth_m + gripper.max_width_m
    near = ((cloud.points > points.min(axis=0) - reach) & (cloud.points < points.max(axis=0) + reach)).all(axis=1)
    near[rows] = False
    heights = supports_of(cloud, up, config.support_tolerance_m)
    hidden = support_patch(
        points, up, heights, tolerance_m=config.support_tolerance_m, reach_m=reach / 2, spacing_m=SUPPORT_SPACING_M
    )
    target = np.arange(len(rows)) if thing.part is None else np.flatnonzero(np.isin(rows, thing.part.rows))
    return GraspScene(
        own=points,
        own_normals=cloud.normals[rows],
        own_rgb=cloud.rgb[rows],
        target_rows=target,
        surroundings=np.concatenate([cloud.points[near].astype(np.float64), hidden]),
        up=up,
        view_points=np.zeros((0, 3)) if view_points is None else view_points,
        clearance=clearance,
    )


def with_grasps(
    objects: Iterable[Object],
    cloud: SurfaceCloud,
    *,
    objects_config: ObjectConfig,
    gripper: GripperConfig,
    config: GraspConfig,
    clearance: Clearance | None = None,
    view_points: np.ndarray | None = None,
    planner: GraspPlanner | None = None,
) -> list[Object]:
    """The same objects, each with its ranked grasps or with the reasons for none.

    Args:
        cloud: the one the objects were found in. planner: None = as configured.
    """
    planner = planner or planner_of(config)
    found = []
    for thing in objects:
        scene = grasp_scene(cloud, thing, objects_config, gripper, clearance=clearance, view_points=view_points)
        plan = planner.plan(scene, gripper, config)
        found.append(replace(thing, grasps=plan.grasps, rejected=plan.rejected))
    return found
