"""GPD (ten Pas et al., "Grasp Pose Detection in Point Clouds", IJRR 2017): what its node takes, what it answers.

It takes gpd_ros/CloudIndexed: a cloud x y z normal_x normal_y normal_z, for each point which of `view_points` saw it,
and the rows at which hands are looked for. It answers with gpd_ros/GraspConfig: `position` in the middle between the
fingers at their base (not at the tips: those are `hand_depth` ahead, a setting of GPD), unit vectors `approach`,
`binormal` (the fingers close along it) and `axis` with R = [approach binormal axis], `width` and an unbounded `score`.
"""

from __future__ import annotations

import importlib
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..messages.clouds import to_cloud
from ..messages.poses import header_of
from ..objects.grasps import Grasp, GraspScene

HAND_DEPTH_M = 0.06
"""As in the settings that come with GPD."""


@dataclass(frozen=True)
class CloudIndexed:
    """gpd_ros/CloudIndexed as arrays, in global_frame.

    Attributes:
        points: [N, 3] float32, the object first. normals: [N, 3] float32, 0 = unknown.
        camera_source: [N] int64 rows of `view_points`. view_points: [V, 3] float64, V >= 1.
        indices: [T] int64 rows of `points` at which hands are looked for: what was asked for.
    """

    points: np.ndarray
    normals: np.ndarray
    camera_source: np.ndarray
    view_points: np.ndarray
    indices: np.ndarray


def cloud_indexed(scene: GraspScene) -> CloudIndexed:
    """What GPD takes. Each point's camera is the nearest that it faces; without any known, one is made up half a metre
    above."""
    points = np.concatenate([scene.own, scene.surroundings]).astype(np.float32)
    normals = np.zeros((len(points), 3), np.float32)
    normals[: len(scene.own)] = scene.own_normals
    views = np.asarray(scene.view_points, np.float64).reshape(-1, 3)
    if not len(views):
        views = (scene.target.mean(0) + 0.5 * scene.up)[None]
    rays = views[None] - points[:, None].astype(np.float64)
    facing = np.einsum("nvk,nk->nv", rays, normals.astype(np.float64)) >= 0
    distance = np.linalg.norm(rays, axis=-1)
    source = np.where(facing, distance, distance + distance.max()).argmin(axis=1)
    return CloudIndexed(points, normals, source, views, np.asarray(scene.target_rows, np.int64))


def cloud_indexed_message(scene: GraspScene, header: Any) -> Any:
    """gpd_ros/CloudIndexed, of the ROS that is sourced.

    Args:
        header: std_msgs/Header of that ROS; its frame is the scene's, global_frame.

    Raises:
        ConfigError: gpd_ros is not there.
    """
    try:
        packages = ("gpd_ros", "std_msgs", "sensor_msgs", "geometry_msgs")
        gpd, std, sensor, geometry = (importlib.import_module(f"{package}.msg") for package in packages)
    except ImportError as error:
        raise ConfigError(f"gpd_ros cannot be imported: {error}; build it and source its workspace") from error
    data = cloud_indexed(scene)
    normals = dict(zip(("normal_x", "normal_y", "normal_z"), data.normals.T))
    ours = to_cloud(data.points, header_of(0, ""), fields=normals)
    fields = [
        sensor.PointField(name=f.name, offset=int(f.offset), datatype=int(f.datatype), count=int(f.count))
        for f in ours.fields
    ]
    cloud = sensor.PointCloud2(
        header=header, height=int(ours.height), width=int(ours.width), fields=fields, is_bigendian=False,
        point_step=int(ours.point_step), row_step=int(ours.row_step), data=array("B", bytes(ours.data)), is_dense=True,
    )  # fmt: skip
    sources = gpd.CloudSources(
        cloud=cloud,
        camera_source=[std.Int64(data=int(k)) for k in data.camera_source],
        view_points=[geometry.Point(x=float(x), y=float(y), z=float(z)) for x, y, z in data.view_points],
    )
    return gpd.CloudIndexed(cloud_sources=sources, indices=[std.Int64(data=int(k)) for k in data.indices])


def poses_of(
    position: np.ndarray, approach: np.ndarray, binormal: np.ndarray, *, hand_depth_m: float = HAND_DEPTH_M
) -> np.ndarray:
    """[G, 4, 4] in our convention of [G, 3] each, in the same frame."""
    z, x = (np.asarray(v, np.float64).reshape(-1, 3) for v in (approach, binormal))
    T = np.tile(np.eye(4), (len(z), 1, 1))
    T[:, :3, 0], T[:, :3, 1], T[:, :3, 2] = x, np.cross(z, x), z
    T[:, :3, 3] = np.asarray(position, np.float64).reshape(-1, 3) + hand_depth_m * z
    return T


def scores_of(score: np.ndarray) -> np.ndarray:
    """[G] in (0, 1), the same order: GPD's score is the difference of two logits, so this is the classifier's own
    probability."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(np.asarray(score, np.float64), -50, 50))))


def hand_of(grasp: Grasp, *, hand_depth_m: float = HAND_DEPTH_M) -> dict[str, np.ndarray]:
    """`position`, `approach`, `binormal` and `axis` [3] of a grasp of ours, as GraspConfig has them."""
    T = grasp.T_world_gripper
    return {
        "position": T[:3, 3] - hand_depth_m * T[:3, 2], "approach": T[:3, 2], "binormal": T[:3, 0], "axis": T[:3, 1]
    }  # fmt: skip
