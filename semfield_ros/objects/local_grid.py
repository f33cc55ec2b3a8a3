"""A copy of the space around one object on dense grids, so that poses can be optimised without asking the map again.

The map is asked once, at the nodes; between them values are interpolated trilinearly, and so are their derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

FAR_M = 0.03
"""Distances are exact up to here and no larger beyond."""


class _Trilinear(torch.autograd.Function):
    """Values [N, C] of a grid [X * Y * Z, C] at x [N, 3] in cells; derivatives by x only. Outside, the border's."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, values: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
        last = torch.tensor(shape, dtype=x.dtype, device=x.device) - 1
        inside = (x >= 0) & (x <= last)
        x = torch.minimum(x.clamp_min(0), last - 1e-4)
        cell = x.floor()
        share = x - cell
        i = cell.long()
        row = (i[:, 0] * shape[1] + i[:, 1]) * shape[2] + i[:, 2]
        dx, dy = shape[1] * shape[2], shape[2]
        corner = values[torch.stack([row + a * dx + b * dy + c for a in (0, 1) for b in (0, 1) for c in (0, 1)])]
        u, v, w = (share[:, k : k + 1] for k in range(3))
        # edges along z, faces along y, then x: values and the derivatives they pass on
        low, step = corner[0::2], corner[1::2] - corner[0::2]
        edge = low + w * step
        along_y = edge[1::2] - edge[0::2]
        face, along_z = edge[0::2] + v * along_y, step[0::2] + v * (step[1::2] - step[0::2])
        along_x = face[1] - face[0]
        out = face[0] + u * along_x
        if ctx.needs_input_grad[0]:
            along_y, along_z = (a[0] + u * (a[1] - a[0]) for a in (along_y, along_z))
            slope = torch.stack([along_x, along_y, along_z], -1)
            ctx.save_for_backward(slope * inside[:, None, :])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (gradients[0].unsqueeze(-1) * slope).sum(1), None, None


@dataclass(frozen=True)
class LocalGrid:
    """Channels on the nodes of a regular grid.

    Attributes:
        values: [X, Y, Z, C]. origin_m: [3] of the first node, in global_frame. spacing_m: between nodes.
    """

    values: torch.Tensor
    origin_m: torch.Tensor
    spacing_m: float

    def at(self, points: torch.Tensor) -> torch.Tensor:
        """[..., C] at points [..., 3] in global_frame, metres; differentiable. Outside, the values of the border."""
        x = (points.reshape(-1, 3) - self.origin_m) / self.spacing_m
        shape = tuple(self.values.shape[:3])
        flat: torch.Tensor = _Trilinear.apply(x, self.values.reshape(-1, self.values.shape[3]), shape)
        return flat.reshape(*points.shape[:-1], self.values.shape[3])

    def moved(self, device: str, dtype: torch.dtype = torch.float32) -> LocalGrid:
        """The same grid elsewhere."""
        return LocalGrid(self.values.to(device, dtype), self.origin_m.to(device, dtype), self.spacing_m)


@dataclass(frozen=True)
class Nodes:
    """Where a grid is asked: `points` [X * Y * Z, 3] float64 in global_frame."""

    points: np.ndarray
    shape: tuple[int, int, int]
    spacing_m: float

    @classmethod
    def around(cls, points: np.ndarray, margin_m: float, finest_m: float, most: int) -> Nodes:
        """Of the box of points [N, 3] and so much around it: `finest_m` apart, or farther where it were more nodes."""
        low, high = points.min(0) - margin_m, points.max(0) + margin_m
        spacing = max(finest_m, float(np.prod(high - low) / most) ** (1 / 3))
        counts = np.maximum(np.ceil((high - low) / spacing).astype(int) + 1, 2)
        axes = [low[k] + spacing * np.arange(counts[k]) for k in range(3)]
        nodes = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        return cls(nodes, (int(counts[0]), int(counts[1]), int(counts[2])), spacing)

    def grid(self, channels: np.ndarray) -> LocalGrid:
        """The grid with channels [X * Y * Z, C] on these nodes."""
        values = torch.from_numpy(np.ascontiguousarray(channels, np.float32)).reshape(*self.shape, -1)
        return LocalGrid(values, torch.from_numpy(self.points[0].astype(np.float32)), self.spacing_m)


def nearest(
    points: np.ndarray, asked: np.ndarray, count: int, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Distances [N, count], at most FAR_M, and rows [N, count] of the nearest points [M, 3] to those asked [N, 3].

    Where there are fewer within FAR_M, the distance is FAR_M and the row M: none.
    """
    if not len(points):
        return np.full((len(asked), count), FAR_M), np.full((len(asked), count), 0)
    if device == "cpu":
        tree = cKDTree(points)
        distance, row = tree.query(asked, k=[*range(1, count + 1)], distance_upper_bound=FAR_M, workers=2)
        return np.minimum(distance, FAR_M), row
    centre = points.mean(0)
    p = torch.from_numpy((points - centre).astype(np.float32)).to(device)
    x = torch.from_numpy((asked - centre).astype(np.float32)).to(device)
    found, rows = [], []
    k = min(count, len(p))
    for part in x.split(max(1, 2**28 // len(p))):
        d, r = torch.cdist(part, p, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False)
        found.append(d)
        rows.append(r)
    distance = np.pad(torch.cat(found).cpu().numpy().astype(np.float64), ((0, 0), (0, count - k)), constant_values=1.0)
    row = np.pad(torch.cat(rows).cpu().numpy(), ((0, 0), (0, count - k)))
    beyond = distance > FAR_M
    return np.where(beyond, FAR_M, distance), np.where(beyond, len(points), row)


def signed_distance(
    points: np.ndarray, normals: np.ndarray, asked: np.ndarray, spacing_m: float, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Distance [N], positive outside, and outward normal [N, 3] of the surface of oriented points, at points [N, 3].

    Tangent planes of the three nearest points, blended (Hoppe et al. 1992; IMLS, Kolluri 2005); only those that face
    like the nearest, so that both sides of a thin wall keep their own. Beside the border of what was sampled, space is
    outside. +FAR_M where nothing is near.

    Args:
        points, normals: [M, 3], unit normals. spacing_m: of the samples.
    """
    distance, row = nearest(points, asked, 3, device)
    near = distance[:, 0] < FAR_M
    out, normal = np.full(len(asked), FAR_M), np.zeros((len(asked), 3))
    if not near.any():
        return out, normal
    d, row = distance[near], row[near]
    there = row < len(points)
    row = np.where(there, row, 0)
    n = normals[row]
    offset = asked[near][:, None] - points[row]
    plane = (offset * n).sum(-1)
    alike = there & ((n * n[:, :1]).sum(-1) > 0.2)
    weight = np.exp((d[:, :1] ** 2 - d**2) / (2 * spacing_m**2)) * alike
    weight /= weight.sum(1, keepdims=True)
    height = (weight * plane).sum(1)
    n = (weight[..., None] * n).sum(1)
    aside = np.sqrt(np.maximum(d[:, 0] ** 2 - plane[:, 0] ** 2, 0))
    behind = (height < 0) & (aside <= 2 * spacing_m)
    beyond = np.hypot(height, np.maximum(aside - spacing_m, 0))
    out[near] = np.where(behind, height, beyond)
    normal[near] = n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-9)
    return out, normal


def sample_spacing(points: np.ndarray) -> float:
    """The median distance of a point [N, 3] to its neighbour, metres; 1 mm at least."""
    if len(points) < 2:
        return 0.005
    few = points[:: max(1, len(points) // 500)]
    return max(float(np.median(cKDTree(points).query(few, k=2)[0][:, 1])), 1e-3)
