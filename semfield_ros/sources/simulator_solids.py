"""The simulator's objects as solids: exact surface samples all around, and how far any point is from all matter.

What a planner would get from perfect perception; cameras see less (`Simulator.surface_points`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from scipy.spatial import ConvexHull, cKDTree

from ..errors import ConfigError
from ..geometry import invert, transform_points
from .simulator_scene import TABLE_HALF_M, TABLE_THICKNESS_M, Placed

SEAM_M = 1e-7
"""Pieces overlap by this much, so that their seams are inside."""
INSIDE_M = 2e-4
"""Surface this deep inside another surface of the same object is no outer surface."""
SPACING_M = 0.003
"""Of the samples that distances are taken to."""

NEAR_M = 0.08
"""Beyond it, one sample in 64 is enough."""


class Solid:
    """A placed object as the union of its convex pieces."""

    def __init__(self, item: Placed):
        self.item = item

    @cached_property
    def pieces(self) -> tuple[tuple[int, np.ndarray, np.ndarray, np.ndarray], ...]:
        """Of every convex piece: number of its surface, outward planes [F, 4] (n, d: n x + d <= 0 inside), and the
        corners [3] [3] of its box; object frame."""
        found = []
        for number, part in enumerate(self.item.parts):
            for index in part.surface.pieces:
                corners = part.surface.vertices[index]
                planes = np.unique(np.round(ConvexHull(corners).equations, 9), axis=0)
                found.append((number, planes, corners.min(axis=0) - SEAM_M, corners.max(axis=0) + SEAM_M))
        return tuple(found)

    def depth_m(self, points_world: np.ndarray, without: int = -1) -> np.ndarray:
        """How deep points [N, 3] lie inside, 0 outside: [N] float64; surface number `without` left out.

        Exact for one piece; where pieces overlap, the deepest counts, which is never too deep.
        """
        points = transform_points(invert(self.item.T_world_object), np.asarray(points_world, dtype=np.float64))
        depth = np.zeros(len(points))
        lowest, highest = np.min([p[2] for p in self.pieces], axis=0), np.max([p[3] for p in self.pieces], axis=0)
        about = np.flatnonzero(((points >= lowest) & (points <= highest)).all(axis=1))
        points = points[about]
        for number, planes, low, high in self.pieces:
            near = np.flatnonzero(((points >= low) & (points <= high)).all(axis=1))
            if number != without and len(near):
                inside = SEAM_M - (points[near] @ planes[:, :3].T + planes[:, 3]).max(axis=1)
                depth[about[near]] = np.maximum(depth[about[near]], inside)
        return depth

    def surface(self, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Points on the outer surface, inner walls of hollows included, hidden joints not.

        Returns:
            points [n, 3] float64 world, outward unit normals [n, 3]; even in area.
        """
        if n < 1:
            raise ConfigError(f"{n} surface points were asked for; allowed: >= 1")
        rng = np.random.default_rng([n, seed])
        points, normals = np.zeros((0, 3)), np.zeros((0, 3))
        triangles = [part.surface.vertices[part.surface.faces] for part in self.item.parts]
        number = np.concatenate([np.full(len(t), k) for k, t in enumerate(triangles)])
        a, b, c = np.moveaxis(np.concatenate(triangles), 1, 0)
        across = np.cross(b - a, c - a)
        area = np.linalg.norm(across, axis=1)
        while len(points) < n:
            pick = rng.choice(len(area), 2 * n, p=area / area.sum())
            u, v = np.sqrt(rng.random((2 * n, 1))), rng.random((2 * n, 1))
            local = (1 - u) * a[pick] + u * (1 - v) * b[pick] + u * v * c[pick]
            world = transform_points(self.item.T_world_object, local)
            outer = np.ones(2 * n, bool)
            for part in range(len(triangles) if len(triangles) > 1 else 0):
                own = np.flatnonzero(number[pick] == part)
                outer[own] = self.depth_m(world[own], without=part) < INSIDE_M
            normal = across[pick] / np.maximum(area[pick], 1e-18)[:, None]
            points = np.concatenate([points, world[outer]])
            normals = np.concatenate([normals, normal[outer] @ self.item.T_world_object[:3, :3].T])
        return points[:n], normals[:n]


def solid_surface(objects: Sequence[Placed], n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The whole surface of all objects, sides no camera sees included.

    Returns:
        points [n, 3] float32 world, outward unit normals [n, 3] float32, instance [n] int32; even in area.
    """
    if not objects:
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros(0, np.int32)
    solids = [Solid(item) for item in objects]
    share = np.array([_outline_m2(item) for item in objects])
    counts = np.maximum(np.floor(np.cumsum(share) / share.sum() * n + 0.5).astype(int), 0)
    counts = np.diff(counts, prepend=0)
    found = [solid.surface(count, seed) for solid, count in zip(solids, counts) if count]
    instance = np.repeat(np.arange(1, len(objects) + 1), counts)
    points, normals = (np.concatenate(column) for column in zip(*found))
    return points.astype(np.float32), normals.astype(np.float32), instance.astype(np.int32)


class TruthClearance:
    """Signed distance to the scene's matter: positive outside, negative inside objects or the table.

    The sign is that of the convex pieces (within their tolerance); the distance is taken to dense surface samples and
    is right within a few millimetres.

    Args:
        without: instances (1-based) left out, such as the one about to be grasped.
    """

    def __init__(self, objects: Sequence[Placed], without: Sequence[int] = (), table: bool = True):
        kept = [item for instance, item in enumerate(objects, start=1) if instance not in set(without)]
        self._solids = [Solid(item) for item in kept]
        self._table = table
        area = sum(_outline_m2(item) for item in kept)
        samples = solid_surface(kept, max(1, int(area / SPACING_M**2)))[0] if kept else np.zeros((0, 3))
        self._trees = (cKDTree(samples), cKDTree(samples[::64])) if len(samples) else None

    def unknown(self, points_world: np.ndarray) -> np.ndarray:
        """Nothing is, of points [N, 3]: [N] bool."""
        return np.zeros(len(points_world), bool)

    def distance(self, points_world: np.ndarray) -> np.ndarray:
        """Of points [N, 3]: metres [N] float32."""
        points = np.asarray(points_world, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ConfigError(f"points have shape {points.shape}; expected [N, 3]")
        distance = np.full(len(points), np.inf)
        if self._trees is not None:
            fine, coarse = self._trees
            distance = coarse.query(points)[0]
            near = np.flatnonzero(distance < NEAR_M)
            distance[near] = fine.query(points[near])[0]
        inside = np.zeros(len(points), bool)
        for solid in self._solids:
            inside |= solid.depth_m(points) > 0
        distance = np.where(inside, -np.maximum(distance, 1e-6), distance)
        return (np.minimum(distance, _table_m(points)) if self._table else distance).astype(np.float32)


def _table_m(points: np.ndarray) -> np.ndarray:
    """Signed distance of points [N, 3] to the table top's slab."""
    half = np.array([*TABLE_HALF_M, TABLE_THICKNESS_M / 2])
    over = np.abs(points + [0, 0, TABLE_THICKNESS_M / 2]) - half
    return np.asarray(np.linalg.norm(np.maximum(over, 0), axis=1) + np.minimum(over.max(axis=1), 0))


def _outline_m2(item: Placed) -> float:
    """The area of all its meshes."""
    total = 0.0
    for part in item.parts:
        a, b, c = np.moveaxis(part.surface.vertices[part.surface.faces], 1, 0)
        total += 0.5 * float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum())
    return total
