"""Hash-grid kernels for GPUs (Triton): the same numbers as `hash_grid.encode_reference`, no CUDA toolkit needed.

One program computes a block of points on one level, so the few levels' rows that neighbouring points share stay close,
and one gather of a row is one vector load. The backward pass adds with relaxed atomics: the order of the additions, and
so the last bits of a gradient, may differ from run to run. Nothing here waits for the device, and no kernel is compiled
again because a batch has another size.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

PRIME_Y: tl.constexpr = tl.constexpr(2654435761)
PRIME_Z: tl.constexpr = tl.constexpr(805459861)
POINTS = 128
"""Points a program."""
ROWS = 512
"""Table rows a program of the optimiser."""
_tables: dict[tuple[bytes, str], tuple[torch.Tensor, torch.Tensor]] = {}


def forward(positions: torch.Tensor, table: torch.Tensor, layout: tuple[np.ndarray, ...]) -> torch.Tensor:
    """Features [N, levels * features] of positions [N, 3] float32 in [0, 1]; table [rows, features] float32."""
    n, levels, features = len(positions), len(layout[0]), table.shape[1]
    out = torch.empty(n, levels * features, device=table.device)
    if n:
        grid = (triton.cdiv(n, POINTS), levels)
        _forward[grid](positions, table, *device_layout(layout, table.device), out, n, levels, features, POINTS)
    return out


def backward(
    positions: torch.Tensor, grad_out: torch.Tensor, layout: tuple[np.ndarray, ...], grad_table: torch.Tensor
) -> None:
    """grad_table [rows, features] += the transpose of `forward` applied to grad_out [N, levels * features]."""
    n, levels, features = len(positions), len(layout[0]), grad_table.shape[1]
    if n:
        grid = (triton.cdiv(n, POINTS), levels)
        numbers = device_layout(layout, grad_table.device)
        _backward[grid](positions, grad_out, *numbers, grad_table, n, levels, features, POINTS)


def adam_touched(
    table: torch.Tensor, grad: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, numbers: tuple[float, ...]
) -> None:
    """Adam on the rows whose gradient is not zero, clearing it: one pass. `numbers`: rate, beta1, beta2, epsilon, and
    the bias corrections 1 / (1 - beta^t) of mean and square."""
    rows, features = table.shape
    rate, beta1, beta2, epsilon, correction1, correction2 = (float(x) for x in numbers)
    _adam_touched[(triton.cdiv(rows, ROWS),)](
        table, grad, mean, square, rate, beta1, beta2, 1 - beta1, 1 - beta2, epsilon, correction1, correction2,
        rows, features, ROWS,
    )  # fmt: skip


def device_layout(layout: tuple[np.ndarray, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The layout on a device, copied there once: scales [L] float32; resolution, rows, offset, dense [L, 4] int32."""
    key = (b"".join(part.tobytes() for part in layout), str(device))
    if key not in _tables:
        numbers = np.stack(layout[1:], -1).astype(np.int32)
        _tables[key] = (torch.from_numpy(layout[0]).to(device), torch.from_numpy(numbers).to(device))
    return _tables[key]


@triton.jit
def load_positions(positions, i, known):
    """x, y, z [B] of the points i [B]; zeros where they are not known."""
    x = tl.load(positions + i * 3, mask=known, other=0.0)
    y = tl.load(positions + i * 3 + 1, mask=known, other=0.0)
    z = tl.load(positions + i * 3 + 2, mask=known, other=0.0)
    return x, y, z


@triton.jit
def _cell(x, scale):
    """Lower corner [B, L] uint32 and fraction [B, L] along one axis of coordinates [B] at scales [L]."""
    scaled = x[:, None] * scale[None, :] + 0.5
    corner = scaled.to(tl.int32)
    return corner.to(tl.uint32), scaled - corner.to(tl.float32)


@triton.jit
def _load_layout(scales, numbers, level, levels):
    """Of levels [L]: scale, resolution, rows, offset, dense; beyond the last, a level of one row."""
    known = level < levels
    scale = tl.load(scales + level, mask=known, other=0.0)
    resolution = tl.load(numbers + level * 4, mask=known, other=1).to(tl.uint32)
    rows = tl.load(numbers + level * 4 + 1, mask=known, other=1).to(tl.uint32)
    offset = tl.load(numbers + level * 4 + 2, mask=known, other=0).to(tl.uint32)
    dense = tl.load(numbers + level * 4 + 3, mask=known, other=0) != 0
    return scale, resolution[None, :], rows[None, :], offset[None, :], dense[None, :]


@triton.jit
def _rows(x, y, z, resolution, rows, offset, dense):
    """Table rows [B, L] int64 of corners; the same as `hash_grid.corner_rows` without a division.

    A hashed level has a power of two rows; a dense index is less than twice the rows, whatever corner it is of.
    """
    plain = x + resolution * (y + resolution * z)
    plain = tl.where(plain >= rows, plain - rows, plain)
    plain = tl.where(plain < rows, plain, 0)  # what is not a position must not read beyond the table
    mixed = (x ^ (y * PRIME_Y) ^ (z * PRIME_Z)) & (rows - 1)
    return (tl.where(dense, plain, mixed) + offset).to(tl.int64)


@triton.jit
def interpolate(table, x, y, z, level, scales, numbers, levels, FEATURES: tl.constexpr):
    """Features [B, L, F] of points [B] on levels [L]; those of levels beyond the last mean nothing."""
    scale, resolution, rows, offset, dense = _load_layout(scales, numbers, level, levels)
    x0, fx = _cell(x, scale)
    y0, fy = _cell(y, scale)
    z0, fz = _cell(z, scale)
    column = tl.arange(0, FEATURES)[None, None, :]
    total = tl.zeros([x0.shape[0], x0.shape[1], FEATURES], tl.float32)
    for corner in tl.static_range(8):
        weight = fx if corner % 2 else 1 - fx
        weight *= fy if corner // 2 % 2 else 1 - fy
        weight *= fz if corner // 4 else 1 - fz
        row = _rows(x0 + corner % 2, y0 + corner // 2 % 2, z0 + corner // 4, resolution, rows, offset, dense)
        total += weight[:, :, None] * tl.load(table + row[:, :, None] * FEATURES + column)
    return total


@triton.jit(do_not_specialize=["n", "levels"])
def _forward(positions, table, scales, numbers, out, n, levels, FEATURES: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    level = tl.program_id(1) + tl.arange(0, 1)
    x, y, z = load_positions(positions, i, i < n)
    total = interpolate(table, x, y, z, level, scales, numbers, levels, FEATURES)
    at = (i[:, None, None] * levels + level[None, :, None]) * FEATURES + tl.arange(0, FEATURES)[None, None, :]
    tl.store(out + at, total, mask=(i < n)[:, None, None])


@triton.jit(do_not_specialize=["n", "levels"])
def _backward(positions, grad_out, scales, numbers, grad_table, n, levels, FEATURES: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    level = tl.program_id(1) + tl.arange(0, 1)
    known = (i < n)[:, None, None]
    x, y, z = load_positions(positions, i, i < n)
    column = tl.arange(0, FEATURES)[None, None, :]
    at = (i[:, None, None] * levels + level[None, :, None]) * FEATURES + column
    gradient = tl.load(grad_out + at, mask=known, other=0.0)
    scale, resolution, rows, offset, dense = _load_layout(scales, numbers, level, levels)
    x0, fx = _cell(x, scale)
    y0, fy = _cell(y, scale)
    z0, fz = _cell(z, scale)
    for corner in tl.static_range(8):
        weight = fx if corner % 2 else 1 - fx
        weight *= fy if corner // 2 % 2 else 1 - fy
        weight *= fz if corner // 4 else 1 - fz
        row = _rows(x0 + corner % 2, y0 + corner // 2 % 2, z0 + corner // 4, resolution, rows, offset, dense)
        at = row[:, :, None] * FEATURES + column
        tl.atomic_add(grad_table + at, weight[:, :, None] * gradient, mask=known, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def _adam_touched(
    table, grad, mean, square, rate, beta1, beta2, keep1, keep2, epsilon, correction1, correction2, rows,
    FEATURES: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    at = row[:, None] * FEATURES + tl.arange(0, FEATURES)[None, :]
    g = tl.load(grad + at, mask=(row < rows)[:, None], other=0.0)
    touched = (tl.max(tl.abs(g), 1) > 0)[:, None] & (at >= 0)
    m = beta1 * tl.load(mean + at, mask=touched, other=0.0) + keep1 * g
    v = beta2 * tl.load(square + at, mask=touched, other=0.0) + keep2 * g * g
    old = tl.load(table + at, mask=touched, other=0.0)
    new = old - rate * (m * correction1) / (tl.sqrt(v * correction2) + epsilon)
    tl.store(mean + at, m, mask=touched)
    tl.store(square + at, v, mask=touched)
    tl.store(table + at, new, mask=touched)
    tl.store(grad + at, 0.0, mask=touched)
