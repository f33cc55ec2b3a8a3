"""Closed triangle surfaces from few numbers: lathes, tubes and boxes, all outward-facing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from .simulator_pieces import Pieces, lathe_pieces, tube_pieces

Points = Sequence[Sequence[float]] | np.ndarray


@dataclass(frozen=True)
class Surface:
    """A closed triangle mesh.

    Attributes:
        vertices: [V, 3] float64, metres. faces: [F, 3] int32, counter-clockwise seen from outside.
        cut: finds `pieces`, when they are asked for; None where the solid is convex.
    """

    vertices: np.ndarray
    faces: np.ndarray
    cut: Callable[[], Pieces] | None = None

    @cached_property
    def pieces(self) -> Pieces:
        """Index sets into `vertices` whose convex hulls together are the solid (`simulator_pieces`)."""
        return (np.arange(len(self.vertices)),) if self.cut is None else self.cut()

    def deformed(self, vertices: np.ndarray) -> Surface:
        """With other vertices [V, 3] in the same order, near enough for the same pieces to be about convex."""
        return replace(self, vertices=vertices)

    def scaled(self, scale: Sequence[float]) -> Surface:
        """Stretched along the axes by positive factors."""
        return self.deformed(self.vertices * np.asarray(scale, dtype=np.float64))

    def moved(self, offset_m: Sequence[float]) -> Surface:
        """Translated."""
        return self.deformed(self.vertices + np.asarray(offset_m, dtype=np.float64))


def chaikin(points: Points, rounds: int = 2) -> np.ndarray:
    """A rounder polyline through the same ends: corner cutting (Chaikin 1974). [N, D] -> [M, D]."""
    line = np.asarray(points, dtype=np.float64)
    for _ in range(rounds):
        near, far = 0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]
        line = np.concatenate([line[:1], np.stack([near, far], 1).reshape(-1, line.shape[1])[1:-1], line[-1:]])
    return line


def lathe(profile: Points, segments: int = 40) -> Surface:
    """The profile [(radius, z), ...] turned about z. It must start and end on the axis, running up the outside."""
    line = np.asarray(profile, dtype=np.float64)
    ring, count = line[1:-1], len(line) - 2
    angle = np.arange(segments) * (2 * np.pi / segments)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    body = np.concatenate(
        [ring[:, None, :1] * circle[None], np.broadcast_to(ring[:, None, 1:], (count, segments, 1))], axis=2
    )
    vertices = np.concatenate([body.reshape(-1, 3), [[0, 0, line[0, 1]], [0, 0, line[-1, 1]]]])
    return Surface(vertices, _ring_faces(count, segments), partial(lathe_pieces, line, segments))


def tube(path: Points, radius_m: float | Sequence[float] | Points, sides: int = 14) -> Surface:
    """A capped sweep along `path` [N, 3].

    Args:
        radius_m: one radius, one per path point [N], or (across, up) half widths per point [N, 2], "up" being the
            direction nearest to world z.
    """
    line = np.asarray(path, dtype=np.float64)
    radii = np.asarray(radius_m, dtype=np.float64)
    if radii.ndim < 2:
        radii = np.broadcast_to(radii.reshape(-1, 1), (len(line), 1))
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.cross([0.0, 0.0, 1.0], tangent[0])
    if np.linalg.norm(side) < 1e-3:
        side = np.array([0.0, 1.0, 0.0])
    sides_along = []
    for direction in tangent:
        side = side - direction * (side @ direction)
        side /= np.linalg.norm(side)
        sides_along.append(side)
    across = np.asarray(sides_along)
    up = np.cross(tangent, across)
    angle = np.arange(sides) * (2 * np.pi / sides)
    ring = (
        line[:, None]
        + np.cos(angle)[None, :, None] * radii[:, None, :1] * across[:, None]
        + np.sin(angle)[None, :, None] * radii[:, None, -1:] * up[:, None]
    )
    vertices = np.concatenate([ring.reshape(-1, 3), line[:1], line[-1:]])
    return Surface(vertices, _ring_faces(len(line), sides), partial(tube_pieces, vertices, len(line), sides))


def box(size_m: Sequence[float], centre_m: Sequence[float] = (0.0, 0.0, 0.0)) -> Surface:
    """An axis-aligned box with the given edge lengths."""
    corner = np.array([[x, y, z] for z in (-0.5, 0.5) for y in (-0.5, 0.5) for x in (-0.5, 0.5)])
    faces = [
        [0, 2, 1],
        [1, 2, 3],
        [4, 5, 6],
        [5, 7, 6],
        [0, 1, 4],
        [1, 5, 4],
        [2, 6, 3],
        [3, 6, 7],
        [0, 4, 2],
        [2, 4, 6],
        [1, 3, 5],
        [3, 7, 5],
    ]
    return Surface(corner * np.asarray(size_m) + np.asarray(centre_m), np.asarray(faces, dtype=np.int32))


def _ring_faces(rings: int, segments: int) -> np.ndarray:
    """Faces of `rings` stacked rings of vertices, closed by two poles that follow them in the vertex list."""
    here = np.arange(segments)
    following = (here + 1) % segments
    faces = []
    for row in range(rings - 1):
        low, high = row * segments, (row + 1) * segments
        faces.append(np.stack([low + here, low + following, high + following], axis=1))
        faces.append(np.stack([low + here, high + following, high + here], axis=1))
    first, last, top = rings * segments, rings * segments + 1, (rings - 1) * segments
    faces.append(np.stack([np.full(segments, first), following, here], axis=1))
    faces.append(np.stack([np.full(segments, last), top + here, top + following], axis=1))
    return np.concatenate(faces).astype(np.int32)
