"""What `Replay` draws, on CPUs (numba): the same in one pass, several times faster than operation by operation."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit


def world_rays(
    slots: torch.Tensor, pixels: torch.Tensor, width: int, camera: torch.Tensor, pose: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Origins [N, 3], directions [N, 3] (camera z = 1) and their lengths [N] of pixels [N] of keyframe slots [N]."""
    n = len(slots)
    origins, directions, norms = torch.empty(n, 3), torch.empty(n, 3), torch.empty(n)
    _world_rays(
        slots.numpy(), pixels.numpy(), width, camera.numpy(), pose.numpy(),
        origins.numpy(), directions.numpy(), norms.numpy(),
    )  # fmt: skip
    return origins, directions, norms


@njit(nogil=True, cache=True, error_model="numpy")
def _world_rays(slots, pixels, width, camera, pose, origins, directions, norms):
    one = np.float32(1)
    for i in range(len(slots)):
        slot = slots[i]
        v = pixels[i] // width
        u = pixels[i] - v * width
        x = (np.float32(u) - camera[slot, 2]) / camera[slot, 0]
        y = (np.float32(v) - camera[slot, 3]) / camera[slot, 1]
        for j in range(3):
            origins[i, j] = pose[slot, j, 3]
            directions[i, j] = pose[slot, j, 0] * x + pose[slot, j, 1] * y + pose[slot, j, 2]
        norms[i] = np.sqrt(x * x + y * y + one)


def window_points(
    slots: torch.Tensor, u: torch.Tensor, v: torch.Tensor, width: int, height: int, stride: int, grid_width: int,
    depth: torch.Tensor, pixel: torch.Tensor, camera: torch.Tensor, pose: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points [P, K, 3], directions [P, K, 3] and whether they are usable [P, K] of the records at pixels u, v [P, K]
    (any float) of keyframe slots [P]."""
    p, k = u.shape
    points, directions = torch.empty(p, k, 3), torch.empty(p, k, 3)
    usable = torch.empty(p, k, dtype=torch.bool)
    _window_points(
        slots.numpy(), u.numpy(), v.numpy(), width, height, stride, grid_width, depth.numpy(), pixel.numpy(),
        camera.numpy(), pose.numpy(), points.numpy(), directions.numpy(), usable.numpy(),
    )  # fmt: skip
    return points, directions, usable


def neighbour_pairs(
    slots: torch.Tensor, draws: torch.Tensor, shape: tuple[int, int], reach: int, scales: tuple[float, float],
    width: int, depth: torch.Tensor, rgb: torch.Tensor, pixel: torch.Tensor, camera: torch.Tensor, pose: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `Replay.neighbours` says, of slots [N] and draws [4, N] in [0, 1): ends a, b [M, 3] and weights [M].

    Args:
        shape: rows and columns of the lattice of records. scales: COLOUR_SCALE, BEND_SCALE.
    """
    n = len(slots)
    a, b, weight = np.empty((n, 3), np.float32), np.empty((n, 3), np.float32), np.empty(n, np.float32)
    count = _neighbour_pairs(
        slots.numpy(), draws.numpy(), *shape, reach, np.float32(scales[0]), np.float32(scales[1]), width, depth.numpy(),
        rgb.numpy(), pixel.numpy(), camera.numpy(), pose.numpy(), a, b, weight,
    )  # fmt: skip
    return torch.from_numpy(a[:count]), torch.from_numpy(b[:count]), torch.from_numpy(weight[:count])


@njit(inline="always", error_model="numpy")
def _surface(slot, pixel, depth, width, camera, pose, point, direction):
    v = pixel // width
    u = pixel - v * width
    x = (np.float32(u) - camera[slot, 2]) / camera[slot, 0]
    y = (np.float32(v) - camera[slot, 3]) / camera[slot, 1]
    for j in range(3):
        direction[j] = pose[slot, j, 0] * x + pose[slot, j, 1] * y + pose[slot, j, 2]
        point[j] = pose[slot, j, 3] + direction[j] * depth


@njit(nogil=True, cache=True, error_model="numpy")
def _window_points(
    slots, us, vs, width, height, stride, grid_width, depth, pixel, camera, pose, points, directions, usable
):
    for i in range(us.shape[0]):
        slot = slots[i]
        for k in range(us.shape[1]):
            u, v = np.int64(np.rint(us[i, k])), np.int64(np.rint(vs[i, k]))
            inside = u >= 0 and v >= 0 and u < width and v < height
            u, v = min(max(u, 0), width - 1), min(max(v, 0), height - 1)
            record = (v // stride) * grid_width + u // stride
            z = depth[slot, record]
            usable[i, k] = inside and z > 0
            _surface(slot, pixel[slot, record], z, width, camera, pose, points[i, k], directions[i, k])


@njit(nogil=True, cache=True, error_model="numpy")
def _neighbour_pairs(
    slots, draws, rows, columns, reach, colour_scale, bend_scale, width, depth, rgb, pixel, camera, pose, a, b, weight
):
    count, span, unused = 0, np.float32(2 * reach + 1), np.empty(3, np.float32)
    one, two = np.float32(1), np.float32(2)
    for i in range(len(slots)):
        slot = slots[i]
        row, column = np.int64(draws[0, i] * np.float32(rows)), np.int64(draws[1, i] * np.float32(columns))
        down, right = np.int64(draws[2, i] * span) - reach, np.int64(draws[3, i] * span) - reach
        if row < abs(down) or row + abs(down) >= rows or column < abs(right) or column + abs(right) >= columns:
            continue
        first = (row - down) * columns + column - right
        second = (row + down) * columns + column + right
        za, zb, middle = depth[slot, first], depth[slot, second], depth[slot, row * columns + column]
        if not (za > 0 and zb > 0 and middle > 0):
            continue
        squared = np.float32(0)
        for c in range(3):
            difference = np.float32(rgb[slot, first, c]) - np.float32(rgb[slot, second, c])
            squared += difference * difference
        bend = middle * abs(one / za + one / zb - two / middle) / bend_scale
        weight[count] = np.exp(-squared / (colour_scale * colour_scale) - bend * bend)
        _surface(slot, pixel[slot, first], za, width, camera, pose, a[count], unused)
        _surface(slot, pixel[slot, second], zb, width, camera, pose, b[count], unused)
        count += 1
    return count
