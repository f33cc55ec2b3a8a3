"""A table scene from a seed: which objects, where, in what colours; a MuJoCo model with one body per object."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from scipy.spatial import ConvexHull

from ..errors import SourceError
from ..geometry import transform_points
from .simulator_objects import ACCENTS, COLOURS, KINDS, MAIN, PART_NAMES, STUFF, Kind, Part, Vec

TABLE_HALF_M = (0.56, 0.46)
TABLE_THICKNESS_M = 0.035
FLOOR_Z_M = -0.72
ROOM_HALF_M = 2.1
STUFF_GROUP, OBJECT_GROUP = 0, 1
"""MuJoCo geom groups."""
TABLE_TOP_GEOM = 0
STUFF_GEOMS = 10
"""Geoms of table and room; they come first in every compiled scene."""
"""The table top is the first geom of every scene."""
_CELL_M = 0.004


@dataclass(frozen=True)
class Placed:
    """An object that found its place.

    Attributes:
        kind, colour: what it is. rgb: [3] its own shade of that colour, 0 to 1. parts: its surfaces, object frame.
        T_world_object: [4, 4] float64, metres.
    """

    kind: Kind
    colour: str
    rgb: np.ndarray
    parts: tuple[Part, ...]
    T_world_object: np.ndarray

    @cached_property
    def hull_world(self) -> np.ndarray:
        """Corners of the convex hull, world frame: [N, 3]."""
        vertices = np.concatenate([part.surface.vertices for part in self.parts])
        return transform_points(self.T_world_object, vertices[ConvexHull(vertices).vertices])


@dataclass(frozen=True)
class Scene:
    """A compiled scene.

    Attributes:
        model, data: MuJoCo's. objects: instance id i is objects[i - 1].
        geom_instance, geom_semantic: [G + 1] int32 by geom id; the last entry, reached by id -1, is void.
        geom_rgb: [G + 1, 3] float32. geom_gloss: [G + 1] float32.
        geom_main: [G + 1] bool, the part carries its object's colour. geom_part: names of whole surfaces by geom id
            (simulator_parts.part_of tells their zones apart).
    """

    model: Any
    data: Any
    objects: tuple[Placed, ...]
    geom_instance: np.ndarray
    geom_semantic: np.ndarray
    geom_rgb: np.ndarray
    geom_gloss: np.ndarray
    geom_main: np.ndarray
    geom_part: tuple[str, ...]

    @property
    def part_names(self) -> tuple[str, ...]:
        """What part numbers stand for, the same in every scene; 0 = no part of an object."""
        return PART_NAMES


CLASS_NAMES: tuple[str, ...] = ("void", *STUFF, *(kind.name for kind in KINDS))


def jittered(rng: np.random.Generator, rgb: tuple[float, float, float]) -> np.ndarray:
    """A nearby shade: [3] float in [0, 1]."""
    gain = rng.uniform(0.85, 1.1)
    return np.clip(np.asarray(rgb) * gain + rng.normal(0, 0.02, 3), 0.02, 1.0)


def resting_rotation(rng: np.random.Generator, vertices: np.ndarray, down: Vec | None) -> np.ndarray:
    """Rotation [3, 3] that lets a shape rest on the plane with `down` (object frame) pointing at it, turned about z.

    The facet of the convex hull nearest to `down` becomes the support, so that nothing hovers.
    """
    if down is None:
        angle = rng.uniform(0, 2 * np.pi)
        down = (float(np.cos(angle)), float(np.sin(angle)), 0.0)
    wanted = np.asarray(down, dtype=np.float64)
    hull = ConvexHull(vertices)
    normals, offsets = hull.equations[:, :3], hull.equations[:, 3]
    edge = vertices[hull.simplices]
    area = np.linalg.norm(np.cross(edge[:, 1] - edge[:, 0], edge[:, 2] - edge[:, 0]), axis=1)
    # The foot point of the centroid must fall on the supporting facet's side of the shape, or it would tip over.
    centroid = vertices[hull.vertices].mean(0)
    lever = -(normals @ centroid + offsets)
    score = normals @ wanted - 0.5 * lever / np.ptp(vertices, axis=0).max() + 0.02 * (area > 1e-5)
    down_now = normals[int(np.argmax(np.where(normals @ wanted > 0.85, score, -np.inf)))]
    yaw = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1.0]])
    return turn @ _rotation_between(down_now, np.array([0.0, 0.0, -1.0]))


def _rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation that turns unit vector a into b."""
    axis, cosine = np.cross(a, b), float(a @ b)
    if cosine < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    K = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + K + K @ K / (1 + cosine)


def place_objects(rng: np.random.Generator, count: int, gap_m: float) -> tuple[Placed, ...]:
    """Up to `count` objects on the table, at least `gap_m` apart, each (kind, colour) once.

    Several objects of one kind in different colours are common on purpose.
    """
    size = [int(2 * half / _CELL_M) for half in TABLE_HALF_M]
    taken = np.zeros((size[1], size[0]), np.uint8)
    dilate = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * int(gap_m / _CELL_M) + 1,) * 2)
    placed: list[Placed] = []
    chosen: set[tuple[str, str]] = set()
    for _ in range(count):
        if placed and rng.random() < 0.3:
            kind = placed[rng.integers(len(placed))].kind
        else:
            kind = KINDS[rng.integers(len(KINDS))]
        free = [colour for colour in COLOURS if (kind.name, colour) not in chosen]
        if not free:
            continue
        colour = free[rng.integers(len(free))]
        item = _place(rng, kind, colour, taken, dilate)
        if item is not None:
            chosen.add((kind.name, colour))
            placed.append(item)
    return tuple(placed)


def _place(
    rng: np.random.Generator, kind: Kind, colour: str, taken: np.ndarray, dilate: np.ndarray, tries: int = 40
) -> Placed | None:
    """One object at a free place, which is then marked taken in the [H, W] occupancy image; None when none is found."""
    parts = kind.build(rng)
    scale = rng.uniform(0.92, 1.08)
    parts = tuple(part.scaled(scale) for part in parts)
    vertices = np.concatenate([p.surface.vertices for p in parts])
    down, weights = zip(*kind.rests)
    rotation = resting_rotation(rng, vertices, down[rng.choice(len(down), p=weights)])
    turned = vertices @ rotation.T
    low, high = turned.min(0), turned.max(0)
    rgb = jittered(rng, COLOURS[colour])
    hull = turned[ConvexHull(turned[:, :2]).vertices, :2]
    margin = 0.03
    for _ in range(tries):
        reach = [half - margin for half in TABLE_HALF_M]
        centre = np.array([rng.uniform(-r, r) for r in reach])
        offset = centre - (low[:2] + high[:2]) / 2
        if (np.abs(centre) + (high - low)[:2] / 2 > reach).any():
            continue
        pixels = np.rint((hull + offset + TABLE_HALF_M) / _CELL_M).astype(np.int32)
        footprint = np.zeros_like(taken)
        cv2.fillConvexPoly(footprint, pixels, 1)
        if (footprint & taken).any():
            continue
        taken |= cv2.dilate(footprint, dilate)
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = rotation, (*offset, -low[2])
        return Placed(kind, colour, rgb, parts, T)
    return None


def compile_scene(objects: tuple[Placed, ...]) -> Scene:
    """The MuJoCo model of table, room and objects, with the look-up tables of its geoms.

    Raises:
        SourceError: MuJoCo is not installed.
    """
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise SourceError("the simulator needs MuJoCo: pip install 'semfield_ros[sim]'") from error

    spec = mujoco.MjSpec()
    box = mujoco.mjtGeom.mjGEOM_BOX
    world = spec.worldbody
    labels: list[tuple[int, int, np.ndarray, float, bool, str]] = []

    def stuff(name: str, half_m: tuple[float, ...], centre_m: tuple[float, ...]) -> None:
        world.add_geom(type=box, size=half_m, pos=centre_m, group=STUFF_GROUP)
        labels.append((0, CLASS_NAMES.index(name), np.ones(3), 0.0, False, name))

    x, y = TABLE_HALF_M
    stuff("table", (x, y, TABLE_THICKNESS_M / 2), (0, 0, -TABLE_THICKNESS_M / 2))
    for sx in (-1, 1):
        for sy in (-1, 1):
            leg_half = (-FLOOR_Z_M - TABLE_THICKNESS_M) / 2
            stuff("table", (0.03, 0.03, leg_half), (sx * (x - 0.06), sy * (y - 0.06), FLOOR_Z_M + leg_half))
    stuff("floor", (ROOM_HALF_M, ROOM_HALF_M, 0.05), (0, 0, FLOOR_Z_M - 0.05))
    for axis in (0, 1):
        for sign in (-1, 1):
            half = [ROOM_HALF_M, ROOM_HALF_M, 1.3]
            centre = [0.0, 0.0, FLOOR_Z_M + 1.3]
            half[axis], centre[axis] = 0.05, sign * (ROOM_HALF_M + 0.05)
            stuff("wall", tuple(half), tuple(centre))
    for instance, item in enumerate(objects, start=1):
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, item.T_world_object[:3, :3].reshape(-1))
        body = world.add_body(name=f"object{instance}", pos=item.T_world_object[:3, 3], quat=quaternion)
        for number, part in enumerate(item.parts):
            mesh = f"mesh{instance}_{number}"
            spec.add_mesh(
                name=mesh,
                uservert=part.surface.vertices.reshape(-1).astype(np.float32),
                userface=part.surface.faces.reshape(-1),
                inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
            )
            body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=mesh, group=OBJECT_GROUP, contype=0, conaffinity=0)
            rgb = item.rgb if part.tint == MAIN else np.asarray(ACCENTS[part.tint])
            semantic = CLASS_NAMES.index(item.kind.name)
            labels.append((instance, semantic, rgb, part.gloss, part.tint == MAIN, part.name))
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    labels.append((0, 0, np.array([0.75, 0.78, 0.82]), 0.0, False, "void"))
    instance_of, semantic_of, rgb_of, gloss_of, main_of, part_of = zip(*labels)
    return Scene(
        model,
        data,
        objects,
        np.array(instance_of, np.int32),
        np.array(semantic_of, np.int32),
        np.array(rgb_of, np.float32),
        np.array(gloss_of, np.float32),
        np.array(main_of),
        tuple(part_of),
    )
