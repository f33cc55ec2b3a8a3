"""Which part of an object a point of its surface belongs to: exact, from the shapes the objects are made of."""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError
from ..geometry import Camera, back_project, invert, transform_points
from .simulator_scene import Placed, Scene
from .simulator_shapes import Surface

SAMPLE_SPACING_M = 0.003
"""Mean distance of the truth's surface samples."""
_PAIRS = 1 << 19
"""Pairs of a point and a triangle looked at together, which bounds memory."""


def part_of(scene: Scene, geom: np.ndarray, points_world: np.ndarray) -> np.ndarray:
    """The exact parts of surface points, as rays meet them.

    Args:
        geom: [...] geom ids of the scene, -1 = nothing. points_world: [..., 3] metres, on those geoms.

    Returns:
        [...] int32 indices into `scene.part_names`; 0 = no part of an object.

    Raises:
        ConfigError: the shapes do not belong together.
    """
    geom, points = np.asarray(geom), np.asarray(points_world)
    if points.shape != (*geom.shape, 3):
        raise ConfigError(f"points are {points.shape} for geoms {geom.shape}; expected {(*geom.shape, 3)}")
    number = np.zeros(geom.shape, np.int32)
    for instance, item in enumerate(scene.objects, 1):
        for geom_id, part in zip(np.flatnonzero(scene.geom_instance == instance), item.parts, strict=True):
            mask = geom == geom_id
            if mask.any():
                number[mask] = part.part_number(transform_points(invert(item.T_world_object), points[mask]))
    return number


def part_image(
    scene: Scene, camera: Camera, T_world_camera: np.ndarray, geom: np.ndarray, depth_m: np.ndarray
) -> np.ndarray:
    """The part every pixel of an exact cast shows: geom, depth_m [H, W] -> [H, W] int32, see `part_of`."""
    points, index = back_project(camera, np.asarray(T_world_camera, np.float64), depth_m)
    number = np.zeros(geom.size, np.int32)
    number[index] = part_of(scene, geom.reshape(-1)[index], points)
    return number.reshape(geom.shape)


def nearest_part(item: Placed, points_object: np.ndarray) -> np.ndarray:
    """The part of an object whose surface is nearest to each point.

    Args:
        points_object: [N, 3] metres, in the object's own frame (which moves with it).

    Returns:
        [N] int32 indices into `PART_NAMES` (simulator_objects).
    """
    points = np.asarray(points_object, np.float64).reshape(-1, 3)
    nearest = np.argmin([distance_to(part.surface, points) for part in item.parts], axis=0)
    numbers = np.stack([part.part_number(points) for part in item.parts])
    return numbers[nearest, np.arange(len(points))]


def surface_samples(item: Placed, spacing_m: float = SAMPLE_SPACING_M) -> tuple[np.ndarray, np.ndarray]:
    """The object's outside: the vertices of its surfaces and points spread evenly over them, none inside another part.

    Returns:
        points [N, 3] float64 in the object's frame, part numbers [N] int32; always the same ones.
    """
    rng = np.random.default_rng(0)
    clouds, numbers = [], []
    for part in item.parts:
        points = np.concatenate([part.surface.vertices, _spread(rng, part.surface, spacing_m)])
        for other in item.parts:
            if other is not part:
                points = points[~encloses(other.surface, points)]
        clouds.append(points)
        numbers.append(part.part_number(points))
    return np.concatenate(clouds), np.concatenate(numbers)


def _spread(rng: np.random.Generator, surface: Surface, spacing_m: float) -> np.ndarray:
    """Random points [N, 3], even in area (Osada et al. 2002, equation 1)."""
    a, b, c = (surface.vertices[surface.faces[:, k]] for k in range(3))
    area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
    face = rng.choice(len(area), size=int(np.ceil(area.sum() / spacing_m**2)), p=area / area.sum())
    root, along = np.sqrt(rng.random(len(face)))[:, None], rng.random(len(face))[:, None]
    points: np.ndarray = (1 - root) * a[face] + root * (1 - along) * b[face] + root * along * c[face]
    return points


def encloses(surface: Surface, points: np.ndarray) -> np.ndarray:
    """Which points [N, 3] lie inside a closed surface: [N] bool, by its solid angle (Van Oosterom, Strackee 1983)."""
    inside = np.zeros(len(points), bool)
    low, high = surface.vertices.min(0), surface.vertices.max(0)
    candidates = np.flatnonzero(((points > low) & (points < high)).all(1))
    for some in _chunks(candidates, len(surface.faces)):
        a, b, c = (surface.vertices[surface.faces[:, k]] - points[some, None] for k in range(3))
        la, lb, lc = (np.sqrt(np.einsum("ijk,ijk->ij", v, v)) for v in (a, b, c))
        ab, bc, ca = (np.einsum("ijk,ijk->ij", v, w) for v, w in ((a, b), (b, c), (c, a)))
        volume = np.einsum("ijk,ijk->ij", a, np.cross(b, c))
        inside[some] = np.arctan2(volume, la * lb * lc + ab * lc + bc * la + ca * lb).sum(1) > np.pi
    return inside


def distance_to(surface: Surface, points: np.ndarray) -> np.ndarray:
    """The distance of points [N, 3] from a triangle surface, inside or outside: [N] metres."""
    corners = surface.vertices[surface.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    distance = np.empty(len(points))
    for some in _chunks(np.arange(len(points)), len(corners)):
        square = np.full((len(some), len(corners)), np.inf)
        over_face = np.ones(square.shape, bool)
        for k in range(3):
            start, edge = corners[:, k], corners[:, (k + 1) % 3] - corners[:, k]
            away = points[some, None] - start
            share = np.einsum("ijk,jk->ij", away, edge) / np.maximum(np.einsum("jk,jk->j", edge, edge), 1e-30)
            gap = away - np.clip(share, 0, 1)[..., None] * edge
            square = np.minimum(square, np.einsum("ijk,ijk->ij", gap, gap))
            over_face &= np.einsum("ijk,jk->ij", away, np.cross(normal, edge)) >= 0
        height = np.einsum("ijk,jk->ij", points[some, None] - corners[:, 0], normal)
        distance[some] = np.sqrt(np.where(over_face, np.minimum(square, height**2), square).min(1))
    return distance


def _chunks(index: np.ndarray, faces: int) -> list[np.ndarray]:
    """`index` in pieces that keep pieces x faces small."""
    size = max(1, _PAIRS // faces)
    return [index[k : k + size] for k in range(0, len(index), size)]
