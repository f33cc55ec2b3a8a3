"""The point map: surface voxels with running means of colour, normal and features, answering from the first frame.

Voxels come from back-projected depth. Every keyframe's features are fused into all voxels that its depth image sees
(OpenScene's projection with the one visibility test, Peng et al. 2023) as a running mean with PointFusion's radial
weight exp(-r^2 / (2 .6^2)) (ConceptFusion, Jatavallabhula et al. 2023). Space seen through a voxel speaks against it:
each voxel keeps a clamped hit count (as OctoMap's log-odds, Hornung et al. 2013) and disappears below zero, so what was
moved away is forgotten after a bounded number of keyframes. A fusion costs O(voxels + pixels) of projection and
O(visible voxels x D) of averaging; memory is bounded by `max_voxels`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..cloud import SurfaceCloud
from ..config import MemoryConfig
from ..encoders.base import Target
from ..frame import Frame
from ..geometry import back_project, project, transform_points, visible
from .surface import depth_normals

_HALF = 1 << 20  # voxel coordinates are packed as three unsigned 21-bit integers
_MAX_HITS = 5
_BORDER_PX = 2


@dataclass(frozen=True)
class Fusion:
    """What one fusion did: voxels created, seen, removed; the share of depth pixels on voxels not known before."""

    created: int
    seen: int
    removed: int
    unseen_fraction: float


def voxel_keys(points: np.ndarray, voxel_size_m: float) -> np.ndarray:
    """Packed int64 voxel keys [N] of points [N, 3]; points beyond +-2^20 voxels clamp to the outermost voxel."""
    # clipped as numbers: a cast of what does not fit an integer is undefined
    cell = np.clip(np.floor(points / voxel_size_m), -_HALF, _HALF - 1).astype(np.int64) + _HALF
    return (cell[:, 0] << 42) | (cell[:, 1] << 21) | cell[:, 2]


class PointMap:
    """Voxels in rows of growing arrays; freed rows are reused. Not thread-safe: the engine's thread owns it."""

    def __init__(self, config: MemoryConfig, feature_dim: int):
        self.config, self.feature_dim = config, feature_dim
        self.keys = np.zeros(0, np.int64)  # sorted, with _rows beside it
        self._rows = np.zeros(0, np.int64)
        self._allocate(4096)
        self._free = np.arange(4096)
        self._live = np.zeros(4096, bool)

    def _allocate(self, rows: int) -> None:
        self.points = np.zeros((rows, 3), np.float32)
        self.normals = np.zeros((rows, 3), np.float32)
        self.rgb = np.zeros((rows, 3), np.float32)
        self.hits = np.zeros(rows, np.int8)
        self.mass = np.zeros(rows, np.float32)
        self.observations = np.zeros(rows, np.int32)
        self.last_seen_s = np.zeros(rows, np.float64)
        self.created_step = np.zeros(rows, np.int64)
        self.features = np.zeros((rows, self.feature_dim), np.float16)
        self.feature_mass = np.zeros(rows, np.float32)

    _ARRAYS = (
        "points", "normals", "rgb", "hits", "mass", "observations", "last_seen_s", "created_step", "features",
        "feature_mass",
    )  # fmt: skip

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def rows(self) -> np.ndarray:
        """Rows of the living voxels, in key order: [N] int64."""
        return self._rows

    @property
    def bytes(self) -> int:
        """Allocated bytes."""
        return sum(getattr(self, name).nbytes for name in self._ARRAYS) + 17 * len(self._live)

    @property
    def max_bytes(self) -> int:
        """Bytes at `max_voxels`."""
        return self.config.max_voxels * (3 * 12 + 1 + 4 + 4 + 8 + 8 + 2 * self.feature_dim + 4 + 17)

    def find(self, points: np.ndarray) -> np.ndarray:
        """Rows [N] of the voxels that hold points [N, 3]; -1 where there is none."""
        keys = voxel_keys(points, self.config.voxel_size_m)
        return self._find(keys)

    def _find(self, keys: np.ndarray) -> np.ndarray:
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self._rows[at], -1)

    def unseen_fraction(self, frame: Frame, sample: int = 2000) -> float:
        """Share of a frame's depth pixels that fall on no voxel and no neighbour of one (about `sample` pixels)."""
        pixels = np.flatnonzero(frame.depth_m.reshape(-1) > 0)
        pixels = pixels[:: max(1, len(pixels) // sample)]
        depth = np.zeros_like(frame.depth_m)
        depth.reshape(-1)[pixels] = frame.depth_m.reshape(-1)[pixels]
        points, _ = back_project(frame.camera, frame.T_world_camera, depth)
        known = np.zeros(len(points), bool)
        step = self.config.voxel_size_m
        for offset in np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]):
            known |= self.find(points + (offset * step).astype(np.float32)) >= 0
        return float(1 - known.mean()) if len(known) else 0.0

    def fuse(self, frame: Frame, step: int = 0) -> Fusion:
        """Add a frame's surface: create, refresh and carve voxels. `step` is remembered as the voxels' age."""
        points, pixel = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
        keys = voxel_keys(points, self.config.voxel_size_m)
        unique, inverse = np.unique(keys, return_inverse=True)
        rows = self._find(unique)
        fresh = rows < 0
        unseen = float(fresh[inverse].mean()) if len(inverse) else 0.0
        rows[fresh] = self._create(unique[fresh], step)
        rows_new = rows[fresh]

        count = np.bincount(inverse, minlength=len(unique)).astype(np.float32)

        def mean(values: np.ndarray) -> np.ndarray:
            columns = [np.bincount(inverse, values[:, c], minlength=len(unique)) for c in range(3)]
            return np.stack(columns, 1).astype(np.float32) / count[:, None]

        normals = depth_normals(frame.camera, frame.depth_m).reshape(-1, 3)[pixel]
        normals = transform_points(frame.T_world_camera, normals) - frame.T_world_camera[:3, 3].astype(np.float32)
        # noise grows with distance squared: near looks count for more
        distance = np.linalg.norm(mean(points) - frame.T_world_camera[:3, 3].astype(np.float32), axis=1)
        weight = count / np.maximum(distance, 0.3) ** 2
        self.mass[rows] += weight
        share = (weight / np.maximum(self.mass[rows], 1e-9))[:, None]
        self.points[rows] += (mean(points) - self.points[rows]) * share
        self.rgb[rows] += (mean(frame.rgb.reshape(-1, 3)[pixel].astype(np.float32)) - self.rgb[rows]) * share
        self.normals[rows] += (mean(normals) - self.normals[rows]) * share
        # old evidence fades, so that a surface which changed is not held by its past
        self.mass[rows] = np.minimum(self.mass[rows], 2000.0)

        removed = self._carve(frame)
        seen = rows[self._live[rows]]
        self.observations[seen] += 1
        self.last_seen_s[seen] = frame.stamp_s
        self.hits[seen] = np.minimum(self.hits[seen] + 1, _MAX_HITS)
        if len(self) > self.config.max_voxels:
            removed += self._evict(len(self) - self.config.max_voxels, keep=rows_new)
        return Fusion(int(fresh.sum()), len(seen), removed, unseen)

    def fuse_features(self, frame: Frame, target: Target) -> int:
        """Average a frame's feature measurements into the voxels it sees; returns how many."""
        config, rows = self.config, self._rows
        if not len(rows):
            return 0
        mask, pixel = visible(
            frame.camera, frame.T_world_camera, frame.depth_m, self.points[rows],
            tolerance_m=config.visibility_tolerance_m, tolerance_relative=config.visibility_tolerance_relative,
            border_px=_BORDER_PX,
        )  # fmt: skip
        rows, pixel = rows[mask], pixel[mask]
        cell = target.cell_of_pixels(frame.camera.width, frame.camera.height).reshape(-1)[pixel]
        rows, pixel, cell = rows[cell >= 0], pixel[cell >= 0], cell[cell >= 0]
        v, u = np.divmod(pixel, frame.camera.width)
        radius2 = ((u / frame.camera.width - 0.5) ** 2 + (v / frame.camera.height - 0.5) ** 2) * 2
        weight = (np.exp(-radius2 / (2 * 0.6**2)) * target.confidence[cell]).astype(np.float32)
        self.feature_mass[rows] += weight
        share = weight / np.maximum(self.feature_mass[rows], 1e-9)
        for start in range(0, len(rows), 8192):
            part = slice(start, start + 8192)
            mean = self.features[rows[part]].astype(np.float32)
            mean += (target.values[cell[part]] - mean) * share[part, None]
            self.features[rows[part]] = mean
        return len(rows)

    def _create(self, keys: np.ndarray, step: int) -> np.ndarray:
        n = len(keys)
        if n > len(self._free):
            used = len(self._live)
            # by half, but not past the budget; a frame's voxels may exceed it until `fuse` has evicted
            extra = max(n - len(self._free), min(used // 2, self.config.max_voxels - used))
            for name in self._ARRAYS:
                array = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.zeros((extra, *array.shape[1:]), array.dtype)]))
            self._live = np.concatenate([self._live, np.zeros(extra, bool)])
            self._free = np.concatenate([self._free, np.arange(used, used + extra)])
        rows, self._free = self._free[:n], self._free[n:]
        for name in self._ARRAYS:
            getattr(self, name)[rows] = 0
        self.created_step[rows] = step
        self._live[rows] = True
        at = np.searchsorted(self.keys, keys)
        self.keys = np.insert(self.keys, at, keys)
        self._rows = np.insert(self._rows, at, rows)
        return rows

    def _remove(self, dead: np.ndarray) -> int:
        """Remove the rows where `dead` [N] (in key order) is set."""
        if not dead.any():
            return 0
        gone = self._rows[dead]
        self._live[gone] = False
        self._free = np.concatenate([self._free, gone])
        self.keys, self._rows = self.keys[~dead], self._rows[~dead]
        return len(gone)

    def _carve(self, frame: Frame) -> int:
        """Count against voxels that this frame sees through; remove those that lost."""
        config, rows = self.config, self._rows
        u, v, z = project(frame.camera, frame.T_world_camera, self.points[rows])
        camera = frame.camera
        with np.errstate(invalid="ignore"):
            inside = (z > 0) & (u >= 1) & (v >= 1) & (u < camera.width - 2) & (v < camera.height - 2)
        column, row = np.rint(u[inside]).astype(np.int64), np.rint(v[inside]).astype(np.int64)
        # the nearest of the 3x3 around it: silhouettes are ragged, one pixel must not carve a rim
        d = frame.depth_m
        nearest = np.full(len(row), np.inf, np.float32)
        for dv in (-1, 0, 1):
            for du in (-1, 0, 1):
                value = d[row + dv, column + du]
                nearest = np.minimum(nearest, np.where(value > 0, value, 0))
        margin = 2 * np.maximum(config.visibility_tolerance_m, config.visibility_tolerance_relative * z[inside])
        through = nearest > z[inside] + margin
        against = rows[inside][through]
        self.hits[against] -= 1
        return self._remove(np.asarray(self.hits[self._rows] < -1))

    def _evict(self, n: int, keep: np.ndarray) -> int:
        """Forget the n least recently seen voxels."""
        seen = self.last_seen_s[self._rows].copy()
        seen[np.isin(self._rows, keep)] = np.inf
        dead = np.zeros(len(self._rows), bool)
        dead[np.argpartition(seen, n - 1)[:n]] = True
        return self._remove(dead)

    def clear_region(self, low: np.ndarray, high: np.ndarray) -> int:
        """Forget everything inside an axis-aligned box in global_frame; returns how many voxels."""
        points = self.points[self._rows]
        return self._remove(np.asarray(((points >= low) & (points <= high)).all(1)))

    def cloud(self) -> SurfaceCloud:
        """A copy of the living voxels as a SurfaceCloud, in key order."""
        rows = self._rows
        normals = self.normals[rows]
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        return SurfaceCloud(
            points=self.points[rows],
            normals=np.where(length > 0.2, normals / np.maximum(length, 1e-9), 0).astype(np.float32),
            rgb=np.clip(np.rint(self.rgb[rows]), 0, 255).astype(np.uint8),
            observations=self.observations[rows],
            last_seen_s=self.last_seen_s[rows],
        )

    def state(self) -> dict[str, np.ndarray]:
        """Everything a checkpoint needs, in key order."""
        return {"keys": self.keys.copy(), **{name: getattr(self, name)[self._rows] for name in self._ARRAYS}}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Replace the map by a `state()`."""
        n = len(state["keys"])
        size = max(n, 4096)
        self._allocate(size)
        for name in self._ARRAYS:
            getattr(self, name)[:n] = state[name]
        self.keys, self._rows = state["keys"].astype(np.int64), np.arange(n)
        self._live = np.arange(size) < n
        self._free = np.arange(n, size)
