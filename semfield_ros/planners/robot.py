"""What a robot hears, as what a planner takes: a SemanticObject of ~/query or ~/locate is a whole `GraspScene`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import QueryError
from ..messages.clouds import from_cloud, unpack_rgb
from ..objects.grasps import GraspScene

UP = np.array([0.0, 0.0, 1.0])


def scene_of(thing: Any, up: np.ndarray = UP) -> GraspScene:
    """The scene of a semfield_ros/SemanticObject that was asked for with `with_object_clouds`, in its frame.

    Args:
        thing: the message, of either wire. up: [3] unit, against gravity.

    Raises:
        QueryError: it has no cloud.
    """
    if not thing.cloud.width:
        raise QueryError("the object has no cloud; ask with options.with_object_clouds")
    own = from_cloud(thing.cloud)
    points = _xyz(own)
    rows = np.arange(len(points))
    if thing.part_cloud.width:
        part = {tuple(point) for point in _xyz(from_cloud(thing.part_cloud))}
        rows = np.flatnonzero([tuple(point) in part for point in points])
    elif thing.part:
        rows = rows[:0]
    views = np.array([[p.x, p.y, p.z] for p in thing.view_points], np.float64)
    return GraspScene(
        own=points,
        own_normals=np.stack([own[f"normal_{axis}"] for axis in "xyz"], -1),
        own_rgb=unpack_rgb(own["rgb"]),
        target_rows=rows,
        surroundings=_xyz(from_cloud(thing.surroundings)),
        up=np.asarray(up, np.float64),
        view_points=views.reshape(-1, 3),
    )


def _xyz(channels: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([channels[axis] for axis in "xyz"], -1).astype(np.float64)
