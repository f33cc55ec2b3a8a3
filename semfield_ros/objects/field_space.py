"""The space around objects as a snapshot knows it: from the neural field where it is trained, else from points.

Both are a `Clearance`. The field's also refines surfaces: measured voxels are spread over their tangent planes and
drawn to the zero level of the signed distance along their normals, which gives surface samples several times as dense
as the voxels, with the field's slope in their normals; where the field does not confirm a voxel, and at walls thinner
than it can resolve, the voxel stays as it was measured.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..cloud import SurfaceCloud
from ..config import GraspConfig
from ..field.normals import TETRAHEDRON
from ..field.snapshot import TRUSTED_STEPS, Snapshot

FAR_M = 1.0
"""What is told where nothing is near, or nothing is known."""
SLOPE_M = 0.003
"""Of differences that give the distance's slope: half of the finest cells of a table top's field."""
SHIFT_M = 0.004
"""A sample is drawn to the surface by no more than this..."""
LEVEL_M = 0.0015
"""...and must then lie so near the zero level..."""
STEEP = 0.4
"""A slope less than this is no surface's."""
AGREE = 0.5
"""...with a slope whose cosine with the measured normal is at least this."""
OPPOSED = -0.2
CHUNK = 1 << 17
DENSE_M = 0.006
"""Voxels finer than this are dense enough as they were measured: a few millimetres are what planning needs."""
PATTERN = 6
"""Samples of a voxel: itself and five around it."""


class Surface(NamedTuple):
    """Samples of an object's surface: points, unit normals (0 = unknown) [N, 3], and the row [N] each came from."""

    points: np.ndarray
    normals: np.ndarray
    row: np.ndarray


def points_of(cloud: SurfaceCloud, rows: np.ndarray) -> Surface:
    """The points of those rows, as they were measured."""
    points, normals = cloud.points[rows].astype(np.float64), cloud.normals[rows].astype(np.float64)
    return Surface(points, normals, np.arange(len(rows)))


class PointSpace:
    """What the point map and the views of a snapshot say of the space around."""

    def __init__(self, snapshot: Snapshot):
        self.snapshot = snapshot

    @property
    def _tree(self) -> cKDTree | None:
        cloud = self.snapshot.cloud
        if "tree" not in cloud.found:
            cloud.found["tree"] = cKDTree(cloud.points) if len(cloud) else None
        tree: cKDTree | None = cloud.found["tree"]
        return tree

    def distance(self, points: np.ndarray) -> np.ndarray:
        """[N] float32: to the nearest voxel's point, behind it where it faces away, no nearer than half a voxel."""
        if self._tree is None or not len(points):
            return np.full(len(points), FAR_M, np.float32)
        away, row = self._tree.query(points, distance_upper_bound=FAR_M)
        near = np.isfinite(away)
        out = np.full(len(points), FAR_M, np.float32)
        row = row[near]
        offset = points[near] - self.snapshot.cloud.points[row]
        behind = (offset * self.snapshot.cloud.normals[row]).sum(1) < 0
        out[near] = np.where(behind & (away[near] < 2 * self.snapshot.voxel_size_m), -1, 1) * away[near]
        return out

    def unknown(self, points: np.ndarray) -> np.ndarray:
        """[N] bool: see `memory.free_space`; nothing where no view is remembered, as after reading an old file."""
        seen = self.snapshot.seen_space
        return seen.unknown(points) if len(seen) else np.zeros(len(points), bool)

    def view_points(self, points: np.ndarray) -> np.ndarray:
        """[V, 3] where the cameras were that saw these points."""
        return self.snapshot.seen_space.seeing(points)

    def surface(self, cloud: SurfaceCloud, rows: np.ndarray) -> Surface:
        """The surface of those rows of the cloud: as it was measured."""
        return points_of(cloud, rows)


class FieldSpace(PointSpace):
    """The same, with distances and surfaces of the field where it has been trained."""

    @cached_property
    def _fresh(self) -> cKDTree | None:
        """Voxels that the field has not had the time to learn."""
        found = [
            block.snapshot.cloud.points[block.snapshot.step - block.snapshot.created_step < TRUSTED_STEPS]
            for block in self.snapshot.blocks()
        ]
        points = np.concatenate(found) if found else np.zeros((0, 3))
        return cKDTree(points) if len(points) else None

    def distance(self, points: np.ndarray) -> np.ndarray:
        """[N] float32 signed distance of the field; of the points where it is not trained."""
        points = np.asarray(points, np.float64)
        out = np.full(len(points), np.nan, np.float32)
        for block in self.snapshot.blocks():
            field = block.snapshot.field
            if field is None:
                continue
            inside = ((points >= block.low_m) & (points < block.high_m)).all(1)
            centre, half = np.array(field.workspace.centre_m), field.workspace.extent_m / 2
            inside &= (np.abs(points - centre) <= half).all(1)
            rows = np.flatnonzero(inside)
            device = next(field.parameters()).device
            for start in range(0, len(rows), CHUNK):
                some = rows[start : start + CHUNK]
                at = torch.from_numpy(points[some].astype(np.float32)).to(device)
                out[some] = field.distance_at(at).float().cpu().numpy()
        doubtful = np.isnan(out)
        if self._fresh is not None and len(points):
            doubtful |= self._fresh.query(points, distance_upper_bound=2 * self.snapshot.voxel_size_m)[0] < np.inf
        if doubtful.any():
            out[doubtful] = super().distance(points[doubtful])
        return out

    def slope(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance [N] and its gradient [N, 3] at points [N, 3], by four evaluations each (a tetrahedron)."""
        corners = np.array(TETRAHEDRON)
        values = self.distance((points[:, None] + SLOPE_M * corners).reshape(-1, 3)).reshape(-1, 4).astype(np.float64)
        return values.mean(1), values @ corners / (4 * SLOPE_M)

    def surface(self, cloud: SurfaceCloud, rows: np.ndarray) -> Surface:
        """Samples on the zero level around those rows; the rows themselves where the field does not confirm them, and
        where the voxels are fine."""
        measured = super().surface(cloud, rows)
        if self.snapshot.voxel_size_m < DENSE_M:
            return measured
        known = (measured.normals != 0).any(1) & ~_thin(measured, 1.3 * self.snapshot.voxel_size_m)
        points, normals, row = _spread(measured, known, 0.6 * self.snapshot.voxel_size_m)
        moved = np.zeros(len(points))
        for _ in range(2):
            at = points + moved[:, None] * normals
            ends = self.distance(np.concatenate([at - SLOPE_M * normals, at + SLOPE_M * normals])).reshape(2, -1)
            rate = np.maximum((ends[1] - ends[0]) / (2 * SLOPE_M), 0.5)
            moved = np.clip(moved - ends.mean(0) / rate, -SHIFT_M, SHIFT_M)
        points = points + moved[:, None] * normals
        level, gradient = self.slope(points)
        steep = np.linalg.norm(gradient, axis=1, keepdims=True)
        field_normals = gradient / np.maximum(steep, 1e-6)
        good = (np.abs(level) < LEVEL_M) & ((field_normals * normals).sum(1) > AGREE) & (np.abs(moved) < SHIFT_M)
        good &= self._mine(points, cloud, rows)
        blend = 2 * normals + field_normals
        blend /= np.maximum(np.linalg.norm(blend, axis=1, keepdims=True), 1e-6)
        confirmed = np.zeros(len(rows), bool)
        confirmed[row[good & (np.arange(len(row)) % PATTERN == 0)]] = True
        rest = np.flatnonzero(~confirmed)
        filled = self._filled(measured, cloud, rows)
        rest = np.setdiff1d(rest, filled.row)
        return Surface(
            np.concatenate([points[good], measured.points[rest], filled.points]),
            np.concatenate([blend[good], measured.normals[rest], filled.normals]),
            np.concatenate([row[good], rest, filled.row]),
        )

    def _filled(self, measured: Surface, cloud: SurfaceCloud, rows: np.ndarray) -> Surface:
        """Samples of the zero level near voxels whose normal no camera could tell: stems, edges, thin handles."""
        unknown = np.flatnonzero((measured.normals == 0).all(1))
        radius_m = 0.6 * self.snapshot.voxel_size_m
        around = np.random.default_rng(0).uniform(-radius_m, radius_m, (1, PATTERN, 3))
        points = (measured.points[unknown, None] + around).reshape(-1, 3)
        row = np.repeat(unknown, PATTERN)
        for _ in range(3):
            level, gradient = self.slope(points)
            steep = np.linalg.norm(gradient, axis=1)
            normals = gradient / np.maximum(steep, 1e-6)[:, None]
            step = np.clip(level / np.maximum(steep, 0.5), -SHIFT_M, SHIFT_M)
            points = points - step[:, None] * normals
        good = (np.abs(step) < LEVEL_M) & (steep > STEEP)
        good &= np.linalg.norm(points - measured.points[row], axis=1) < 1.5 * self.snapshot.voxel_size_m
        good &= self._mine(points, cloud, rows)
        return Surface(points[good], normals[good], row[good])

    def _mine(self, points: np.ndarray, cloud: SurfaceCloud, rows: np.ndarray) -> np.ndarray:
        """[N] bool: whether the nearest voxel of the map is one of those rows of the cloud."""
        if self._tree is None or not len(points):
            return np.zeros(len(points), bool)
        mine = np.zeros(len(self.snapshot.cloud), bool)
        own = rows if cloud is self.snapshot.cloud else self.snapshot.find(cloud.points[rows])
        mine[own[own >= 0]] = True
        return mine[self._tree.query(points)[1]]


def space_of(snapshot: Snapshot, config: GraspConfig) -> PointSpace:
    """Where surfaces and clearances come from, as configured."""
    trained = snapshot.field is not None and snapshot.step >= TRUSTED_STEPS
    return FieldSpace(snapshot) if config.source != "points" and trained else PointSpace(snapshot)


def _thin(surface: Surface, within_m: float) -> np.ndarray:
    """[N] bool: samples of a wall whose other side is nearer than this. The field's cells are no finer than such walls,
    and its slope there is a mixture of both sides."""
    if not len(surface.points):
        return np.zeros(0, bool)
    pairs = cKDTree(surface.points).query_pairs(within_m, output_type="ndarray")
    normals = surface.normals
    opposed = pairs[(normals[pairs[:, 0]] * normals[pairs[:, 1]]).sum(1) < OPPOSED]
    thin = np.zeros(len(surface.points), bool)
    thin[opposed] = True
    return thin


def _spread(surface: Surface, known: np.ndarray, radius_m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PATTERN points of each known sample on its tangent plane, itself first: points, normals, rows."""
    points, normals = surface.points[known], surface.normals[known]
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    aside = np.where(np.abs(normals[:, :1]) < 0.7, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    u = np.cross(normals, aside)
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-9)
    v = np.cross(normals, u)
    angle = 2 * np.pi * np.arange(PATTERN - 1) / (PATTERN - 1)
    ring = radius_m * np.stack([np.cos(angle), np.sin(angle)], 1)
    offset = np.concatenate([np.zeros((1, 2)), ring])
    spread = points[:, None] + offset[:, 0, None] * u[:, None] + offset[:, 1, None] * v[:, None]
    rows = np.repeat(np.flatnonzero(known), PATTERN)
    return spread.reshape(-1, 3), np.repeat(normals, PATTERN, 0), rows
