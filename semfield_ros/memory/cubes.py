"""Blocks of space: a lattice of cubes. Every voxel belongs to exactly one of them, by its centre."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..frame import Frame
from ..geometry import back_project, image_directions, transform_points

Cell = tuple[int, int, int]
MARGIN_M = 0.3
"""Surface this far beyond a cube still trains its field, so that it is whole at the border; at most a quarter cube."""


def cells_of(points: np.ndarray, voxel_size_m: float, edge_m: float) -> np.ndarray:
    """Cubes [N, 3] int64 of points [N, 3]: those of the centres of their voxels, so that no voxel is cut."""
    # in the points' own type, as the point map's keys are: both must agree on the voxel
    voxel = np.floor(points / voxel_size_m).astype(np.float64)
    return np.floor((voxel + 0.5) * (voxel_size_m / edge_m) + 0.5).astype(np.int64)


@dataclass(frozen=True)
class Cube:
    """One block of space in global_frame: cell (i, j, k) of a lattice of cubes of `edge_m`.

    The origin is in the middle of cell (0, 0, 0): where a robot starts, and the floor it stands on, are no borders.
    """

    cell: Cell
    edge_m: float

    @property
    def low_m(self) -> np.ndarray:
        """[3] float64, the least corner."""
        return (np.array(self.cell, np.float64) - 0.5) * self.edge_m

    @property
    def high_m(self) -> np.ndarray:
        """[3] float64, the greatest corner."""
        return (np.array(self.cell, np.float64) + 0.5) * self.edge_m

    @property
    def centre_m(self) -> tuple[float, float, float]:
        """The middle."""
        x, y, z = (self.low_m + self.high_m) / 2
        return float(x), float(y), float(z)

    @property
    def margin_m(self) -> float:
        """How far beyond the cube its field is trained."""
        return min(MARGIN_M, self.edge_m / 4)

    def owns(self, points: np.ndarray, voxel_size_m: float) -> np.ndarray:
        """[N] bool: points [N, 3] whose voxels are this cube's."""
        return np.asarray((cells_of(points, voxel_size_m, self.edge_m) == self.cell).all(1))

    def reaches(self, points: np.ndarray, margin_m: float) -> np.ndarray:
        """[N] bool: points [N, 3] inside the cube or within a margin of it."""
        low, high = self.low_m - margin_m, self.high_m + margin_m
        return np.asarray(((points >= low) & (points <= high)).all(1))

    def part_of(self, frame: Frame, margin_m: float) -> Frame:
        """The frame with only the depth that lies in the cube or within a margin of it. O(pixels)."""
        points, pixel = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
        depth_m = np.zeros_like(frame.depth_m)
        mine = pixel[self.reaches(points, margin_m)]
        depth_m.reshape(-1)[mine] = frame.depth_m.reshape(-1)[mine]
        return replace(frame, depth_m=depth_m)


def counted(cells: np.ndarray) -> dict[Cell, int]:
    """How often each cube occurs in [N, 3], most often first; ties in the order of the lattice."""
    unique, counts = np.unique(cells, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {(int(unique[i][0]), int(unique[i][1]), int(unique[i][2])): int(counts[i]) for i in order}


def _measured_rays(frame: Frame, sample: int) -> np.ndarray:
    """About `sample` of a frame's rays to its measured surface, in camera coordinates: [N, 3] metres."""
    pixels = np.flatnonzero(frame.depth_m.reshape(-1) > 0)
    v, u = np.divmod(pixels[:: max(1, len(pixels) // sample)], frame.camera.width)
    return np.asarray(image_directions(frame.camera)[v, u] * frame.depth_m[v, u, None])


def surface_shares(frame: Frame, voxel_size_m: float, edge_m: float, sample: int = 4000) -> dict[Cell, float]:
    """Share of a frame's measured surface in each cube, largest first, judged by about `sample` pixels."""
    rays = _measured_rays(frame, sample)
    cells = cells_of(transform_points(frame.T_world_camera, rays), voxel_size_m, edge_m)
    return {cell: n / len(rays) for cell, n in counted(cells).items()}


def crossed(frame: Frame, voxel_size_m: float, edge_m: float, sample: int = 500) -> dict[Cell, float]:
    """Share of a frame's rays that pass through each cube on their way to the surface, judged by `sample` pixels."""
    rays = _measured_rays(frame, sample)
    found: dict[Cell, set[int]] = {}
    for share in np.linspace(0.1, 0.9, 9, dtype=np.float32):
        cells = cells_of(transform_points(frame.T_world_camera, rays * share), voxel_size_m, edge_m)
        for cell in counted(cells):
            found.setdefault(cell, set()).update(np.flatnonzero((cells == cell).all(1)).tolist())
    return {cell: len(rows) / len(rays) for cell, rows in found.items()}
