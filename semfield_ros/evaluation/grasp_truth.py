"""What perfect perception would hand a planner, and which object of a scene a found one is: the simulator's own shapes.

The same planner on this `GraspScene` fails only by its own and the gripper's fault; what it fails more often on a map's
scene is perception's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
from scipy.spatial import cKDTree

from ..config import GripperConfig
from ..geometry import invert, transform_points
from ..objects.grasps import GraspScene
from ..sources.simulator_objects import PART_NAMES, RIM_M
from ..sources.simulator_parts import nearest_part, surface_samples
from ..sources.simulator_scene import TABLE_HALF_M, Placed
from ..sources.simulator_solids import Solid, TruthClearance

SPACING_M, TABLE_SPACING_M = 0.004, 0.01
NEAR_M = 0.03
"""A found point farther than this from every object lies on none of them."""
UP = np.array([0.0, 0.0, 1.0])


class ExactScene:
    """Objects standing on the simulator's table, by the instance ids of the caller."""

    def __init__(self, objects: Mapping[int, Placed]):
        self.objects = dict(objects)

    @cached_property
    def space(self) -> TruthClearance:
        """The `Clearance` around all of them; everything is known."""
        return TruthClearance(tuple(self.objects.values()))

    @cached_property
    def surfaces(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Points and outward normals [N, 3] of every object, all sides, world frame."""
        return {instance: _surface(item) for instance, item in self.objects.items()}

    @cached_property
    def _nearest(self) -> tuple[cKDTree, np.ndarray]:
        points = np.concatenate([points for points, _ in self.surfaces.values()])
        owner = np.concatenate([np.full(len(points), i) for i, (points, _) in self.surfaces.items()])
        return cKDTree(points), owner

    def instance_of(self, points: np.ndarray) -> int:
        """The object that most of some points [N, 3] lie on; 0 = none."""
        if not len(points) or not self.objects:
            return 0
        tree, owner = self._nearest
        distance, row = tree.query(points)
        votes = np.bincount(np.where(distance <= NEAR_M, owner[row % len(owner)], 0))
        return int(votes.argmax())

    def grasp_scene(self, instance: int, part: str, gripper: GripperConfig) -> GraspScene:
        """One object, all around, among everything else; `part` = what of it may be held, empty = all."""
        points, normals = self.surfaces[instance]
        item = self.objects[instance]
        rows = np.arange(len(points))
        if part:
            local = transform_points(invert(item.T_world_object), points)
            rows = np.flatnonzero(nearest_part(item, local) == PART_NAMES.index(part))
        reach = gripper.finger_length_m + gripper.palm_depth_m + gripper.max_width_m
        low, high = points.min(axis=0) - reach, points.max(axis=0) + reach
        others = [p for i, (p, _) in self.surfaces.items() if i != instance]
        around = np.concatenate([*others, _table()])
        near = ((around > low) & (around < high)).all(axis=1)
        return GraspScene(
            own=points, own_normals=normals, own_rgb=np.full((len(points), 3), 128, np.uint8), target_rows=rows,
            surroundings=around[near], up=UP, clearance=self.space, part=part,
        )  # fmt: skip

    def distance_to_part(self, instance: int, part: str, points_object: np.ndarray) -> np.ndarray:
        """[N] metres from points [N, 3] in the object's own frame to its part, to within the samples' 3 mm spacing. A
        pitcher's rim runs round the edge of its spout."""
        samples, number = surface_samples(self.objects[instance])
        wanted = number == PART_NAMES.index(part)
        if part == "rim":
            wanted |= (number == PART_NAMES.index("spout")) & (samples[:, 2] > samples[:, 2].max() - RIM_M)
        chosen = samples[wanted]
        if not len(chosen):
            return np.full(len(points_object), np.inf)
        return np.asarray(cKDTree(chosen).query(np.asarray(points_object).reshape(-1, 3))[0])


def standing(
    objects: tuple[Placed, ...], instances: tuple[int, ...], poses: Mapping[int, np.ndarray]
) -> dict[int, Placed]:
    """Some objects at the poses of a moment; instance i is objects[i - 1]."""
    return {i: replace(objects[i - 1], T_world_object=np.asarray(poses[i], np.float64)) for i in instances}


def _surface(item: Placed) -> tuple[np.ndarray, np.ndarray]:
    area = 0.0
    for part in item.parts:
        a, b, c = np.moveaxis(part.surface.vertices[part.surface.faces], 1, 0)
        area += 0.5 * float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum())
    return Solid(item).surface(max(200, int(area / SPACING_M**2)))


def _table() -> np.ndarray:
    """The table top as points [N, 3]."""
    x, y = (np.arange(-half, half + 1e-9, TABLE_SPACING_M) for half in TABLE_HALF_M)
    grid = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.concatenate([grid, np.zeros((len(grid), 1))], axis=1)
