"""Hash-grid kernels for CPUs (numba): the same numbers as `hash_grid.encode_reference`, several times faster.

Work is split over levels, never over points: each thread owns whole levels, so the scattered additions of the backward
pass need no atomics and the result does not depend on the number of threads, and one level's table stays in a core's
cache while all points pass through it. The kernels release the GIL and run on a pool of our own: numba's own layers
either spin while they wait, which starves the other threads of a robot's computer, or are not safe to enter from two
threads, which training and queries do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numba import njit

Array = np.ndarray
Layout = tuple[np.ndarray, ...]
"""Of each level: scale, resolution, rows, offset, dense."""


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "semfield-grid")


def _split(count: int, work: Callable[[int, int], None]) -> None:
    """Call work(first, last) over 0..count in as many parts as torch uses threads, on the pool and on this thread."""
    parts = min(torch.get_num_threads(), count)
    edges = [count * i // parts for i in range(parts + 1)]
    others = [_pool().submit(work, edges[i], edges[i + 1]) for i in range(1, parts)]
    work(edges[0], edges[1])
    for other in others:
        other.result()


def _unit(table: Array) -> tuple[int, ...]:
    """A tuple as long as a row: numba knows the length of a tuple when it compiles, and unrolls the loop over it."""
    return (0,) * table.shape[1]


def forward(positions: Array, table: Array, layout: Layout, out: Array) -> None:
    """out [N, L, F] = interpolated rows of table [rows, F] at positions [N, 3]."""
    unit = _unit(table)
    _split(len(layout[0]), lambda first, last: _forward(first, last, unit, positions, table, *layout, out))


def backward(positions: Array, grad_out: Array, layout: Layout, grad_table: Array) -> None:
    """grad_table [rows, F] += the transpose of `forward` applied to grad_out [N, L, F]."""
    unit = _unit(grad_table)
    _split(len(layout[0]), lambda first, last: _backward(first, last, unit, positions, grad_out, *layout, grad_table))


def adam_touched(table: Array, grad: Array, mean: Array, square: Array, numbers: tuple[float, ...]) -> None:
    """Adam on the rows whose gradient is not zero (as tiny-cuda-nn does for grids), zeroing the gradient.

    numbers: rate, beta1, beta2, epsilon, and the bias corrections 1 / (1 - beta^t) of mean and square.
    """
    singles = tuple(np.float32(x) for x in numbers)
    _split(len(table), lambda first, last: _adam_touched(first, last, table, grad, mean, square, *singles))


def compile_kernels() -> None:
    """Compile (or fetch from numba's cache) every kernel: some seconds the first time, better before a stream runs."""
    positions, table = np.full((1, 3), 0.5, np.float32), np.zeros((8, 4), np.float32)
    level = (np.ones(1, np.float32), np.full(1, 2), np.full(1, 8), np.zeros(1, np.int64), np.ones(1, np.bool_))
    encoded = np.zeros((1, 1, 4), np.float32)
    forward(positions, table, level, encoded)
    backward(positions, encoded, level, table)
    adam_touched(table, table.copy(), table.copy(), table.copy(), (0, 0, 0, 1, 1, 1))


_PY = np.uint32(2654435761)
_PZ = np.uint32(805459861)


@njit(inline="always")
def _row(x, y, z, dense, resolution, rows):
    if dense:
        return (x + resolution * (y + resolution * z)) % rows
    return (x ^ (y * _PY) ^ (z * _PZ)) % rows


@njit(inline="always")
def _corners(position, scale, resolution, rows, offset, dense):
    """Table rows and trilinear weights of the eight corners around a position."""
    count, edge, one = np.uint32(rows), np.uint32(resolution), np.uint32(1)
    x = position[0] * scale + np.float32(0.5)
    y = position[1] * scale + np.float32(0.5)
    z = position[2] * scale + np.float32(0.5)
    x0, y0, z0 = np.uint32(x), np.uint32(y), np.uint32(z)
    x1, y1, z1 = x0 + one, y0 + one, z0 + one
    fx, fy, fz = x - np.float32(x0), y - np.float32(y0), z - np.float32(z0)
    gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
    return (
        (offset + _row(x0, y0, z0, dense, edge, count), gx * gy * gz),
        (offset + _row(x1, y0, z0, dense, edge, count), fx * gy * gz),
        (offset + _row(x0, y1, z0, dense, edge, count), gx * fy * gz),
        (offset + _row(x1, y1, z0, dense, edge, count), fx * fy * gz),
        (offset + _row(x0, y0, z1, dense, edge, count), gx * gy * fz),
        (offset + _row(x1, y0, z1, dense, edge, count), fx * gy * fz),
        (offset + _row(x0, y1, z1, dense, edge, count), gx * fy * fz),
        (offset + _row(x1, y1, z1, dense, edge, count), fx * fy * fz),
    )


@njit(nogil=True, fastmath=True, cache=True, boundscheck=False)
def _forward(first, last, unit, positions, table, scales, resolutions, rows, offsets, dense, out):
    for level in range(first, last):
        scale, resolution, count = scales[level], resolutions[level], rows[level]
        offset, d = offsets[level], dense[level]
        for i in range(positions.shape[0]):
            corners = _corners(positions[i], scale, resolution, count, offset, d)
            for c in range(len(unit)):
                total = np.float32(0)
                for row, weight in corners:
                    total += weight * table[row, c]
                out[i, level, c] = total


@njit(nogil=True, fastmath=True, cache=True, boundscheck=False)
def _backward(first, last, unit, positions, grad_out, scales, resolutions, rows, offsets, dense, grad_table):
    for level in range(first, last):
        scale, resolution, count = scales[level], resolutions[level], rows[level]
        offset, d = offsets[level], dense[level]
        for i in range(positions.shape[0]):
            for row, weight in _corners(positions[i], scale, resolution, count, offset, d):
                for c in range(len(unit)):
                    grad_table[row, c] += weight * grad_out[i, level, c]


@njit(nogil=True, fastmath=True, cache=True, boundscheck=False)
def _adam_touched(first, last, table, grad, mean, square, rate, beta1, beta2, epsilon, correction1, correction2):
    f = table.shape[1]
    for row in range(first, last):
        touched = False
        for c in range(f):
            touched |= grad[row, c] != 0
        if touched:
            for c in range(f):
                g = grad[row, c]
                m = beta1 * mean[row, c] + (1 - beta1) * g
                v = beta2 * square[row, c] + (1 - beta2) * g * g
                mean[row, c] = m
                square[row, c] = v
                table[row, c] -= rate * (m * correction1) / (np.sqrt(v * correction2) + epsilon)
                grad[row, c] = 0
