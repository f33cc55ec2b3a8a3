"""Convex pieces of turned and swept solids: physics engines know only convex shapes, and mugs are hollow.

A piece is a set of indices into the vertices of the closed mesh; the convex hulls of all pieces together are the solid,
to within TOLERANCE_M. Index sets survive scaling, moving and bending of the mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

import numpy as np

Pieces = tuple[np.ndarray, ...]

TOLERANCE_M = 0.0006
"""How deep a piece may fill a hollow: where the outline bends inwards, and behind the chord of a sector of a wall."""


def lathe_pieces(profile: np.ndarray, segments: int) -> Pieces:
    """Of a turned solid: stacked frusta where it is solid, sectors of the convex parts of its wall where it is hollow.

    Args:
        profile: [N, 2] (radius, z) as `lathe` takes it; the mesh has N - 2 rings of vertices, then two poles.
    """
    last = len(profile) - 1
    if (np.diff(profile[:, 1]) >= -1e-9).all():
        rows = [np.arange(start, stop + 1) for start, stop in _runs(profile)]
    else:
        rows = [np.asarray(polygon) for polygon in convex_polygons(profile, _dent_of_turned)]
    pieces: list[np.ndarray] = []
    for row in rows:
        line, poles = profile[row], np.isin([0, last], row)
        whole = len(row) == last + 1 or poles.all() or (np.diff(profile[:, 1]) >= -1e-9).all()
        for columns in [np.arange(segments)] if whole else _sectors(float(line[:, 0].max()), segments):
            rings = row[(row > 0) & (row < last)]
            index = ((rings - 1)[:, None] * segments + columns % segments).reshape(-1)
            pieces.append(np.concatenate([index, (last - 1) * segments + np.flatnonzero(poles)]))
    return tuple(pieces)


def tube_pieces(vertices: np.ndarray, rings: int, sides: int) -> Pieces:
    """Of a sweep: runs of neighbouring rings that bend by no more than the tolerance.

    Args:
        vertices: [rings * sides + 2, 3], the two poles last.
    """
    def index(start: int, stop: int) -> np.ndarray:
        return np.arange(start * sides, (stop + 1) * sides)

    pieces, start = [], 0
    while start < rings - 1:
        stop = start + 1
        while stop + 1 < rings and _dent_m(vertices[index(start, stop + 1)]) <= TOLERANCE_M:
            stop += 1
        pieces.append(index(start, stop))
        start = stop
    return tuple(pieces)


def convex_polygons(outline: np.ndarray, dent_m: Callable[[np.ndarray], float]) -> list[list[int]]:
    """A simple polygon as few nearly convex ones: triangles by ear cutting, merged while no dent exceeds the tolerance
    (after Hertel and Mehlhorn 1983).

    Args:
        outline: [N, 2] corners, counter-clockwise. dent_m: the depth of the deepest dent of a polygon [M, 2].

    Returns:
        Corner numbers of each, counter-clockwise.
    """
    polygons = _triangles(outline)
    merged = True
    while merged:
        merged = False
        for a, b in combinations(range(len(polygons)), 2):
            union = _union(polygons[a], polygons[b])
            if union is not None and dent_m(outline[union]) <= TOLERANCE_M:
                polygons[a] = union
                del polygons[b]
                merged = True
                break
    return polygons


def _runs(profile: np.ndarray) -> list[tuple[int, int]]:
    """Longest stretches of a rising outline that bulge: the frusta of a solid, first and last row of each."""
    runs, start, last = [], 0, len(profile) - 1
    while start < last:
        stop = start + 1
        while stop < last:
            line = profile[start : stop + 2]
            if _dent_of_polygon(np.concatenate([line, line[::-1] * [-1, 1]])) > TOLERANCE_M:
                break
            stop += 1
        if profile[stop, 1] - profile[start, 1] > 1e-6:
            runs.append((start, stop))
        start = stop
    return runs


def _sectors(radius_m: float, segments: int) -> list[np.ndarray]:
    """Columns of each sector of a wall, end column included (it may exceed `segments` by wrapping)."""
    angle = 2 * np.arccos(max(1 - TOLERANCE_M / max(radius_m, 2 * TOLERANCE_M), 0.0))
    count = int(np.clip(np.ceil(2 * np.pi / angle), 5, segments))
    cuts = np.rint(np.linspace(0, segments, count + 1)).astype(int)
    return [np.arange(low, high + 1) for low, high in pairwise(cuts)]


def _dent_m(points: np.ndarray) -> float:
    """How deep the deepest of some points [N, 3] lies inside their convex hull."""
    from scipy.spatial import ConvexHull

    equations = ConvexHull(points).equations
    return float((-(points @ equations[:, :3].T + equations[:, 3]).max(axis=1)).max())


def _dent_of_polygon(corners: np.ndarray) -> float:
    """How far the deepest corner of a counter-clockwise polygon [N, 2] lies inside the polygon's convex hull."""
    hull = _hull(corners)
    edge = np.roll(corners[hull], -1, axis=0) - corners[hull]
    length = np.linalg.norm(edge, axis=1)
    offset = corners[:, None] - corners[hull][None]
    inside = (edge[:, 0] * offset[..., 1] - edge[:, 1] * offset[..., 0]) / np.maximum(length, 1e-12)
    return float(inside[:, length > 1e-12].min(axis=1).max())


def _dent_of_turned(corners: np.ndarray) -> float:
    """The same of a polygon that is turned about the axis: a full turn where an edge of it lies on the axis."""
    if (corners[:, 0] < 1e-9).sum() > 1:
        return _dent_of_polygon(np.concatenate([corners, corners * [-1, 1]]))
    return _dent_of_polygon(corners)


def _hull(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull of points [N, 2], counter-clockwise (Andrew's chain); qhull refuses slivers."""
    order = np.lexsort((points[:, 1], points[:, 0]))

    def chain(indices: np.ndarray) -> list[int]:
        out: list[int] = []
        for i in indices:
            while len(out) > 1 and _cross(points[out[-2]], points[out[-1]], points[i]) <= 0:
                out.pop()
            out.append(int(i))
        return out

    return np.asarray(chain(order)[:-1] + chain(order[::-1])[:-1])


def _cross(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    """Twice the signed area of a triangle."""
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))


def _triangles(outline: np.ndarray) -> list[list[int]]:
    """Ear cutting of a simple polygon, the best-shaped ear first."""
    left, triangles = list(range(len(outline))), []
    while len(left) > 3:
        best, shape = 0, -np.inf
        for k in range(len(left)):
            a, b, c = left[k - 1], left[k], left[(k + 1) % len(left)]
            quality = _ear(outline, a, b, c, left)
            if quality > shape:
                best, shape = k, quality
        triangles.append([left[best - 1], left[best], left[(best + 1) % len(left)]])
        del left[best]
    return [t for t in [*triangles, left] if _cross(*outline[t]) > 1e-12]


def _ear(outline: np.ndarray, a: int, b: int, c: int, left: list[int]) -> float:
    """How well-shaped an ear is: twice its area over its longest side squared; -inf where it is none."""
    p, q, r = outline[[a, b, c]]
    area = _cross(p, q, r)
    if area < -1e-12:
        return -np.inf
    for other in left:
        x = outline[other]
        if other not in (a, b, c) and min(_cross(p, q, x), _cross(q, r, x), _cross(r, p, x)) > 1e-12:
            return -np.inf
    return area / max(float(((p - q) ** 2).sum()), float(((q - r) ** 2).sum()), float(((r - p) ** 2).sum()), 1e-18)


def _union(a: list[int], b: list[int]) -> list[int] | None:
    """Two counter-clockwise polygons joined along the one edge they share; None where they share none."""
    for i in range(len(a)):
        start, stop = a[i], a[(i + 1) % len(a)]
        for j in range(len(b)):
            if b[j] == stop and b[(j + 1) % len(b)] == start:
                own = a[(i + 1) % len(a) :] + a[: (i + 1) % len(a)]
                other = b[(j + 1) % len(b) :] + b[: (j + 1) % len(b)]
                return own + other[1:-1]
    return None
