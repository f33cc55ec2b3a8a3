"""Analytic surfaces sampled to points with outward normals, for the tests of objects and grasps."""

from __future__ import annotations

import numpy as np

from semfield_ros.cloud import SurfaceCloud

Surface = tuple[np.ndarray, np.ndarray]


def grid(lower: float, upper: float, spacing: float) -> np.ndarray:
    """Cell centres of an interval."""
    count = max(1, round((upper - lower) / spacing))
    return lower + (np.arange(count) + 0.5) * (upper - lower) / count


def box(centre, size, spacing=0.005, faces="-x+x-y+y+z") -> Surface:
    """Faces of an axis-aligned box; the bottom is left out by default, as no camera sees it."""
    half = np.asarray(size) / 2
    points, normals = [], []
    for name in (faces[i : i + 2] for i in range(0, len(faces), 2)):
        axis, sign = "xyz".index(name[1]), -1.0 if name[0] == "-" else 1.0
        others = [a for a in range(3) if a != axis]
        u, v = np.meshgrid(*(grid(-half[a], half[a], spacing) for a in others))
        p = np.zeros((u.size, 3))
        p[:, others[0]], p[:, others[1]], p[:, axis] = u.ravel(), v.ravel(), sign * half[axis]
        n = np.zeros_like(p)
        n[:, axis] = sign
        points.append(p + centre)
        normals.append(n)
    return np.concatenate(points), np.concatenate(normals)


def sphere(centre, radius, spacing=0.005) -> Surface:
    """A Fibonacci sphere."""
    count = int(4 * np.pi * radius**2 / spacing**2)
    z = 1 - (2 * np.arange(count) + 1) / count
    angle = np.arange(count) * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - z**2)
    normals = np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)
    return centre + radius * normals, normals


def tube(radius, height, spacing=0.005, inward=False) -> Surface:
    """The side of an upright cylinder standing on z = 0."""
    angle = np.linspace(0, 2 * np.pi, max(6, int(2 * np.pi * radius / spacing)), endpoint=False)
    a, z = (g.ravel() for g in np.meshgrid(angle, grid(0, height, spacing)))
    normals = np.stack([np.cos(a), np.sin(a), 0 * a], axis=1)
    points = radius * normals + np.stack([0 * z, 0 * z, z], axis=1)
    return points, -normals if inward else normals


def disc(radius, z, spacing=0.005) -> Surface:
    """A horizontal disc facing up."""
    x, y = (g.ravel() for g in np.meshgrid(grid(-radius, radius, spacing), grid(-radius, radius, spacing)))
    inside = np.hypot(x, y) < radius
    points = np.stack([x[inside], y[inside], np.full(inside.sum(), z)], axis=1)
    return points, np.tile([0.0, 0.0, 1.0], (len(points), 1))


def cylinder(radius, height, spacing=0.005) -> Surface:
    """An upright can on z = 0, without a bottom."""
    return join(tube(radius, height, spacing), disc(radius, height, spacing))


def torus_part(centre, major, minor, spacing=0.004) -> Surface:
    """Half a ring standing upright, bulging towards +x: a handle."""
    a = np.linspace(-np.pi / 2, np.pi / 2, int(np.pi * major / spacing))
    b = np.linspace(0, 2 * np.pi, max(8, int(2 * np.pi * minor / spacing)), endpoint=False)
    a, b = (g.ravel() for g in np.meshgrid(a, b))
    normals = np.stack([np.cos(b) * np.cos(a), np.sin(b), np.cos(b) * np.sin(a)], axis=1)
    spine = major * np.stack([np.cos(a), 0 * a, np.sin(a)], axis=1)
    return spine + minor * normals + centre, normals


def mug(radius=0.045, height=0.09, wall=0.004, spacing=0.004) -> Surface:
    """A mug too wide to take across, with a thin wall and a handle towards +x."""
    return join(
        tube(radius, height, spacing),
        tube(radius - wall, height, spacing, inward=True),
        disc(radius - wall, 0.006, spacing),
        torus_part(np.array([radius, 0.0, height / 2]), 0.028, 0.005, spacing),
    )


def table(half=0.35, spacing=0.01, z=0.0, away_from=()) -> Surface:
    """A horizontal plane; `away_from` lists (x, y, radius) that something stands on."""
    x, y = (g.ravel() for g in np.meshgrid(grid(-half, half, spacing), grid(-half, half, spacing)))
    keep = np.ones(x.shape, bool)
    for cx, cy, r in away_from:
        keep &= np.hypot(x - cx, y - cy) > r
    points = np.stack([x[keep], y[keep], np.full(keep.sum(), z)], axis=1)
    return points, np.tile([0.0, 0.0, 1.0], (len(points), 1))


def join(*surfaces: Surface) -> Surface:
    """Several surfaces as one."""
    return np.concatenate([s[0] for s in surfaces]), np.concatenate([s[1] for s in surfaces])


def moved(surface: Surface, offset=(0, 0, 0), rotation=None) -> Surface:
    """A surface turned and then shifted."""
    R = np.eye(3) if rotation is None else rotation
    return surface[0] @ R.T + np.asarray(offset), surface[1] @ R.T


def about_z(angle: float) -> np.ndarray:
    """A rotation about +z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def about_x(angle: float) -> np.ndarray:
    """A rotation about +x."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])


def cloud_of(*coloured: tuple[Surface, tuple[int, int, int]], observations=5, stamp_s=1.0) -> SurfaceCloud:
    """A cloud of surfaces, each in one colour."""
    points, normals = join(*(surface for surface, _ in coloured))
    rgb = np.concatenate([np.tile(np.uint8(colour), (len(surface[0]), 1)) for surface, colour in coloured])
    return SurfaceCloud(
        points.astype(np.float32),
        normals.astype(np.float32),
        rgb,
        np.full(len(points), observations, np.int32),
        np.full(len(points), stamp_s),
    )
