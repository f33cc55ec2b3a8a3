"""Hash-grid kernels for CPUs (numba): the same numbers as `hash_grid.encode_reference`, many times faster.

Work is split over levels, never over points: each thread owns whole levels, so the scattered additions of the backward
pass need no atomics and the result does not depend on the number of threads, and one level's table stays in a core's
cache while all points pass through it. A row of the table is one vector (`lanes_cpu`), and no corner needs a division:
a hashed level's rows are a power of two, and a dense level's index exceeds its rows by less than their number.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .lanes_cpu import adam, fma, load, scale, store
from .workers_cpu import split

Array = np.ndarray
Layout = tuple[np.ndarray, ...]
"""Of each level: scale, resolution, rows, offset, dense."""


def _unit(table: Array) -> tuple[int, ...]:
    """A tuple as long as a row: numba knows the length of a tuple when it compiles, so a row becomes one vector."""
    return (0,) * table.shape[1]


def forward(positions: Array, table: Array, layout: Layout, out: Array) -> None:
    """out [N, L, F] = interpolated rows of table [rows, F] at positions [N, 3]."""
    unit, flat = _unit(table), table.reshape(-1)
    split(len(layout[0]), lambda first, last: _forward(first, last, unit, positions, flat, *layout, out))


def backward(positions: Array, grad_out: Array, layout: Layout, grad_table: Array) -> None:
    """grad_table [rows, F] += the transpose of `forward` applied to grad_out [N, L, F]."""
    unit, flat = _unit(grad_table), grad_table.reshape(-1)
    split(len(layout[0]), lambda first, last: _backward(first, last, unit, positions, grad_out, *layout, flat))


def adam_touched(table: Array, grad: Array, mean: Array, square: Array, numbers: tuple[float, ...]) -> None:
    """Adam on the rows whose gradient is not zero (as tiny-cuda-nn does for grids), zeroing the gradient.

    numbers: rate, beta1, beta2, epsilon, and the bias corrections 1 / (1 - beta^t) of mean and square.
    """
    singles, unit = tuple(np.float32(x) for x in numbers), _unit(table)
    flat = [x.reshape(-1) for x in (table, grad, mean, square)]
    split(len(table), lambda first, last: _adam_touched(first, last, unit, *flat, singles))


_PY = np.uint32(2654435761)
_PZ = np.uint32(805459861)


@njit(inline="always")
def _wrapped(index, rows):
    inside = index - rows if index >= rows else index
    return inside if inside < rows else np.uint32(0)  # what is not a position must not read beyond the table


@njit(inline="always")
def _corners(position, scale_, resolution, rows, dense):
    """Rows of a level's table, and trilinear weights, of the eight corners around a position."""
    count, edge, one, unity = np.uint32(rows), np.uint32(resolution), np.uint32(1), np.float32(1)
    x = position[0] * scale_ + np.float32(0.5)
    y = position[1] * scale_ + np.float32(0.5)
    z = position[2] * scale_ + np.float32(0.5)
    # by way of signed integers: processors have no other conversion
    ix, iy, iz = np.int32(x), np.int32(y), np.int32(z)
    x0, y0, z0 = np.uint32(ix), np.uint32(iy), np.uint32(iz)
    fx, fy, fz = x - np.float32(ix), y - np.float32(iy), z - np.float32(iz)
    gx = unity - fx
    a, b, c, d = (unity - fy) * (unity - fz), fy * (unity - fz), (unity - fy) * fz, fy * fz
    weights = (gx * a, fx * a, gx * b, fx * b, gx * c, fx * c, gx * d, fx * d)
    if dense:
        slab = edge * edge
        p = x0 + edge * (y0 + edge * z0)
        q = p + slab
        rows_ = (
            _wrapped(p, count), _wrapped(p + one, count), _wrapped(p + edge, count), _wrapped(p + edge + one, count),
            _wrapped(q, count), _wrapped(q + one, count), _wrapped(q + edge, count), _wrapped(q + edge + one, count),
        )  # fmt: skip
    else:
        mask, x1 = count - one, x0 + one
        hy0, hz0 = y0 * _PY, z0 * _PZ
        hy1, hz1 = hy0 + _PY, hz0 + _PZ
        e, f, g, h = hy0 ^ hz0, hy1 ^ hz0, hy0 ^ hz1, hy1 ^ hz1
        rows_ = (
            (x0 ^ e) & mask, (x1 ^ e) & mask, (x0 ^ f) & mask, (x1 ^ f) & mask,
            (x0 ^ g) & mask, (x1 ^ g) & mask, (x0 ^ h) & mask, (x1 ^ h) & mask,
        )  # fmt: skip
    return rows_, weights


@njit(inline="always")
def _fetched(table, start, count, points):
    """Read a level's table in order, so that it comes to the cache as a stream: points would ask for all of it anyway,
    line by random line, at twice the time. The sum is returned only to have the reads not optimised away."""
    total = np.float32(0)
    if 8 * points > count // 4:
        for i in range(start, start + count, 16):
            total += table[i]
    return total


@njit(nogil=True, fastmath=True, cache=True)
def _forward(first, last, unit, positions, table, scales, resolutions, rows, offsets, dense, out):
    f, flat = len(unit), out.reshape(-1)
    stride, read = out.shape[1] * f, np.float32(0)
    for level in range(first, last):
        s, resolution, count, d = scales[level], resolutions[level], rows[level], dense[level]
        start = offsets[level] * f
        read += _fetched(table, start, count * f, positions.shape[0])
        for i in range(positions.shape[0]):
            r, w = _corners(positions[i], s, resolution, count, d)
            # two sums, for the processor to work on side by side
            a = scale(w[0], load(table, start + r[0] * f, unit))
            b = scale(w[1], load(table, start + r[1] * f, unit))
            a = fma(w[2], load(table, start + r[2] * f, unit), a)
            b = fma(w[3], load(table, start + r[3] * f, unit), b)
            a = fma(w[4], load(table, start + r[4] * f, unit), a)
            b = fma(w[5], load(table, start + r[5] * f, unit), b)
            a = fma(w[6], load(table, start + r[6] * f, unit), a)
            b = fma(w[7], load(table, start + r[7] * f, unit), b)
            store(flat, i * stride + level * f, fma(np.float32(1), a, b))
    return read


@njit(nogil=True, fastmath=True, cache=True)
def _backward(first, last, unit, positions, grad_out, scales, resolutions, rows, offsets, dense, grad_table):
    f, flat = len(unit), grad_out.reshape(-1)
    stride, read = grad_out.shape[1] * f, np.float32(0)
    for level in range(first, last):
        s, resolution, count, d = scales[level], resolutions[level], rows[level], dense[level]
        start = offsets[level] * f
        read += _fetched(grad_table, start, count * f, positions.shape[0])
        for i in range(positions.shape[0]):
            r, w = _corners(positions[i], s, resolution, count, d)
            upstream = load(flat, i * stride + level * f, unit)
            for k in range(8):
                at = start + r[k] * f
                store(grad_table, at, fma(w[k], upstream, load(grad_table, at, unit)))
    return read


@njit(nogil=True, fastmath=True, cache=True)
def _adam_touched(first, last, unit, table, grad, mean, square, numbers):
    for row in range(first, last):
        adam(table, grad, mean, square, row * len(unit), unit, numbers)
