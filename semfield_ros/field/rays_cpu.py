"""Where a ray is sampled, and where that lies in the unit cube (numba): what `trainer._ray_losses` and
`Workspace.to_unit` say, operation by operation, without an array for each of them.

A step's samples take a tenth of a millisecond: less than it takes to share them out among threads.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from .workspace import Workspace

_FLOAT = np.float32


def to_unit(workspace: Workspace, points: torch.Tensor) -> torch.Tensor:
    """Points [N, 3] in metres to grid positions [N, 3] in [0, 1]."""
    points = points.detach().contiguous()
    out = torch.empty_like(points)
    centre, scale = np.array(workspace.centre_m, _FLOAT), _FLOAT(2.0 / workspace.extent_m)
    _units(points.numpy(), centre, scale, out.numpy())
    return out


def guided_samples(
    workspace: Workspace, origins: torch.Tensor, directions: torch.Tensor, norms: torch.Tensor, depth_m: torch.Tensor,
    incidence: torch.Tensor, draws: torch.Tensor, free: int, truncation_m: float, near_m: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Grid positions [R * S, 3] and distances in truncations [R, S] of samples along rays; draws: [R, S] in [0, 1)."""
    rays, samples = draws.shape
    positions, target = torch.empty(rays * samples, 3), torch.empty(rays, samples)
    centre, scale = np.array(workspace.centre_m, _FLOAT), _FLOAT(2.0 / workspace.extent_m)
    arrays = [x.contiguous().numpy() for x in (origins, directions, norms, depth_m, incidence, draws)]
    _samples(
        *arrays, free, _FLOAT(truncation_m), _FLOAT(near_m), centre, scale, positions.numpy(), target.numpy()
    )
    return positions, target


@njit(inline="always", error_model="numpy")
def _unit(x, y, z, centre, scale, out):
    x, y, z = (x - centre[0]) * scale, (y - centre[1]) * scale, (z - centre[2]) * scale
    size = max(max(abs(x), abs(y)), max(abs(z), _FLOAT(1e-9)))
    if not size < _FLOAT(1):
        factor = _FLOAT(2) - _FLOAT(1) / size
        x, y, z = factor * (x / size), factor * (y / size), factor * (z / size)
    out[0] = min(max((x + _FLOAT(2)) / _FLOAT(4), _FLOAT(0)), _FLOAT(1))
    out[1] = min(max((y + _FLOAT(2)) / _FLOAT(4), _FLOAT(0)), _FLOAT(1))
    out[2] = min(max((z + _FLOAT(2)) / _FLOAT(4), _FLOAT(0)), _FLOAT(1))


@njit(nogil=True, cache=True, error_model="numpy")
def _units(points, centre, scale, out):
    for i in range(points.shape[0]):
        _unit(points[i, 0], points[i, 1], points[i, 2], centre, scale, out[i])


@njit(nogil=True, cache=True, error_model="numpy")
def _samples(
    origins, directions, norms, depths, incidences, draws, free, truncation, near, centre, scale,
    positions, target,
):  # fmt: skip
    samples = draws.shape[1]
    surface = _FLOAT(samples - free)
    for r in range(draws.shape[0]):
        depth, norm = depths[r], norms[r]
        band, slope = truncation / norm, incidences[r] / truncation
        room = max(max(depth - band, near) - near, _FLOAT(0))
        for s in range(samples):
            if s < free:
                z = near + room * ((_FLOAT(s) + draws[r, s]) / _FLOAT(free))
                target[r, s] = _FLOAT(1)
            else:
                step = (_FLOAT(s - free) + draws[r, s]) / surface * _FLOAT(2) - _FLOAT(1)
                step = _FLOAT(0.5) * (step + abs(step) * step)
                z = depth + step * band
                target[r, s] = min(max((depth - z) * norm * slope, _FLOAT(-1)), _FLOAT(1))
            _unit(
                origins[r, 0] + directions[r, 0] * z, origins[r, 1] + directions[r, 1] * z,
                origins[r, 2] + directions[r, 2] * z, centre, scale, positions[r * samples + s],
            )
