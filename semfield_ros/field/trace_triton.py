"""Sphere tracing on GPUs (Triton): a ray goes all its way to the surface in one kernel.

Otherwise every step of every ray is a pass over memory, and the host waits for how many rays are still on their way.
Here a program takes a block of rays, encodes, asks the signed-distance MLP and steps on until all of them
have hit or left; the numbers are those of `render.trace`.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from .hash_grid_triton import device_layout, interpolate
from .mlp_triton import PRECISIONS, Layers, all_layers, operands, padded, padded_levels

RAYS = 64


def trace(
    origins: torch.Tensor, directions: torch.Tensor, table: torch.Tensor, layout: tuple[np.ndarray, ...],
    layers: Layers, centre_m: tuple[float, float, float], extent_m: float, truncation_m: float, near_m: float,
    far_m: float, max_steps: int, precision: str = "float32",
) -> torch.Tensor:  # fmt: skip
    """z-depth [R] of each ray's first zero crossing, nan where there is none; see `render.trace`.

    Args:
        origins, directions: [R, 3]. table, layout, layers: of the grid, and of an MLP of two layers whose one output,
            times truncation_m, is the signed distance. centre_m, extent_m: of the workspace.
    """
    n, levels, features = len(origins), len(layout[0]), table.shape[1]
    tensors, widths = operands([(w.detach(), b.detach()) for w, b in layers])
    hit = torch.empty(n, device=origins.device)
    if n:
        _trace[(triton.cdiv(n, RAYS),)](
            origins.contiguous(), directions.contiguous(), table.detach(), *device_layout(layout, table.device),
            *tensors, hit, n, levels, *(float(c) for c in centre_m), 2.0 / extent_m, float(truncation_m),
            float(near_m), float(far_m), max_steps, features, padded_levels(levels, features), *widths,
            *padded(widths, len(layers)), PRECISIONS[precision], RAYS,
        )  # fmt: skip
    return hit


@triton.jit
def _unit(x, y, z, centre_x, centre_y, centre_z, scale):
    """`Workspace.to_unit`: L-infinity contraction into [0, 1]."""
    x, y, z = (x - centre_x) * scale, (y - centre_y) * scale, (z - centre_z) * scale
    size = tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.maximum(tl.abs(z), 1e-9))
    shrink = tl.where(size < 1, 1.0, (2 - 1 / size) / size)
    x, y, z = (x * shrink + 2) * 0.25, (y * shrink + 2) * 0.25, (z * shrink + 2) * 0.25
    return (
        tl.minimum(tl.maximum(x, 0.0), 1.0), tl.minimum(tl.maximum(y, 0.0), 1.0), tl.minimum(tl.maximum(z, 0.0), 1.0)
    )  # fmt: skip


@triton.jit(do_not_specialize=["n", "levels", "max_steps"])
def _trace(
    origins, directions, table, scales, numbers, w1, b1, w2, b2, w3, b3, hit, n, levels,
    centre_x, centre_y, centre_z, scale, truncation, near, far, max_steps,
    FEATURES: tl.constexpr, LEVELS: tl.constexpr,
    K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr,
    PRECISION: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    known = i < n
    ox = tl.load(origins + i * 3, mask=known, other=0.0)
    oy = tl.load(origins + i * 3 + 1, mask=known, other=0.0)
    oz = tl.load(origins + i * 3 + 2, mask=known, other=0.0)
    dx = tl.load(directions + i * 3, mask=known, other=0.0)
    dy = tl.load(directions + i * 3 + 1, mask=known, other=0.0)
    dz = tl.load(directions + i * 3 + 2, mask=known, other=1.0)
    norm = tl.sqrt(dx * dx + dy * dy + dz * dz)
    z = tl.zeros([B], tl.float32) + near
    before = z
    d_before = tl.zeros([B], tl.float32) + truncation
    found = tl.full([B], float("nan"), tl.float32)
    active = known
    first = (tl.arange(0, P2) == 0)[None, :]
    step = 0
    while (step < max_steps) & (tl.max(active.to(tl.int32), 0) > 0):
        x, y, w = _unit(ox + dx * z, oy + dy * z, oz + dz * z, centre_x, centre_y, centre_z, scale)
        encoded = interpolate(table, x, y, w, tl.arange(0, LEVELS), scales, numbers, levels, FEATURES)
        out = all_layers(
            tl.reshape(encoded, [B, LEVELS * FEATURES]), w1, b1, w2, b2, w3, b3, K0, K1, K2, K3, P0, P1, P2, P3,
            2, False, PRECISION,
        )  # fmt: skip
        d = tl.sum(tl.where(first, out, 0.0), 1) * truncation
        crossed = active & (d <= 0)
        share = d_before / tl.maximum(d_before - d, 1e-9)
        found = tl.where(crossed, before + (z - before) * share, found)
        active = active & (d > 0)
        before = tl.where(active, z, before)
        d_before = tl.where(active, d, d_before)
        # a learnt distance is not exact: 0.8 of it, and at least a tenth of the band
        forward = tl.minimum(tl.maximum(0.8 * d, 0.1 * truncation), truncation) / norm
        z = tl.where(active, z + forward, z)
        active = active & (z < far)
        step += 1
    tl.store(hit + i, found, mask=known)
