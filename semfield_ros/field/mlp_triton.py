"""Small multi-layer perceptrons on GPUs (Triton): all layers in one kernel, forward and backward.

A program takes a block of rows through every layer; weights stay in registers and shared memory, hidden activations
never reach memory. The backward kernel takes one layer at a time, computes the activations again (cheaper than reading
them back: a 64-wide layer is 128 FLOPs for every 4 bytes), keeps that layer's gradients of all its blocks in registers,
and writes one partial sum a program; the partial sums are then added in a fixed order, so gradients do not change from
run to run.

`grid_mlp` goes from positions to outputs: the encoding lives in registers only. It has no backward pass, for queries
and tracing; in training the encoding is needed again (other heads read it) and stays in a GPU's cache anyway.

One to three linear layers, ReLU after all but the last, and after the last too where asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from .hash_grid_triton import device_layout, interpolate, load_positions

ROWS = 64
"""Rows a program takes at once..."""
BACKWARD_ROWS = 32
"""...and a program of the backward kernel, which has more to keep. Multiples of 16."""
PROGRAMS = 528
"""Programs of the backward kernel: each sums its own gradients. Four for each multiprocessor of an H200."""
MAX_WIDTH = 64
"""Wider layers do not fit a program's registers."""
SHARED_BYTES = 112 * 1024
"""What the way back through two wide layers takes of a multiprocessor's shared memory, at most."""
PRECISIONS = {"float32": 0, "tf32": 1, "bfloat16": 2}
"""How products are taken: float32 = three TF32 products (as good as float32), the others rounded; sums are float32."""
Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Weight [out, in] and bias [out] of each layer, as nn.Linear has them."""


def fits(widths: Sequence[int]) -> bool:
    """Whether layers of these widths, from the input's to the output's, have a kernel on this machine's GPU."""
    if not 2 <= len(widths) <= 4 or max(widths) > MAX_WIDTH:
        return False
    # one wide layer fits anywhere
    return sum(width > 16 for width in widths[1:]) < 2 or _shared_bytes() >= SHARED_BYTES


@lru_cache
def _shared_bytes() -> int:
    """Memory that a program can share on the GPU; the interpreter has any."""
    if not torch.cuda.is_available():
        return SHARED_BYTES
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return int(getattr(properties, "shared_memory_per_block_optin", 48 * 1024))


def mlp(x: torch.Tensor, layers: Layers, relu_out: bool, precision: str = "float32") -> torch.Tensor:
    """Outputs [N, O] of rows x [N, K]; differentiable in x and in the layers."""
    flat = [tensor for layer in layers for tensor in layer]
    out: torch.Tensor = _Mlp.apply(x, relu_out, precision, *flat)
    return out


def grid_mlp(
    positions: torch.Tensor, table: torch.Tensor, layout: tuple[np.ndarray, ...], layers: Layers, relu_out: bool,
    precision: str = "float32",
) -> torch.Tensor:  # fmt: skip
    """Outputs [N, O] of the layers on the hash grid's features at positions [N, 3] in [0, 1]. No gradients."""
    n, levels, features = len(positions), len(layout[0]), table.shape[1]
    tensors, widths = operands([(w.detach(), b.detach()) for w, b in layers])
    out = torch.empty(n, widths[len(layers)], device=positions.device)
    if n:
        _grid_mlp[(triton.cdiv(n, ROWS),)](
            positions.detach().contiguous(), table.detach(), *device_layout(layout, table.device), *tensors, out,
            n, levels, features, padded_levels(levels, features), *widths, *padded(widths, len(layers)), len(layers),
            relu_out, PRECISIONS[precision], ROWS,
        )  # fmt: skip
    return out


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, relu_out: bool, precision: str, *flat: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        layers = list(zip(flat[::2], flat[1::2]))
        tensors, widths = operands(layers)
        out = torch.empty(len(x), widths[len(layers)], device=x.device)
        if len(x):
            _forward[(triton.cdiv(len(x), ROWS),)](
                x, *tensors, out, len(x), *widths, *padded(widths, len(layers)), len(layers), relu_out,
                PRECISIONS[precision], ROWS,
            )  # fmt: skip
        ctx.save_for_backward(x, *flat)
        ctx.relu_out, ctx.precision = relu_out, precision
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, *flat = ctx.saved_tensors
        layers = list(zip(flat[::2], flat[1::2]))
        tensors, widths = operands(layers)
        blocks = triton.cdiv(len(x), BACKWARD_ROWS)
        programs = max(1, min(PROGRAMS, blocks))
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        sizes = [tensor.numel() for tensor in flat]
        partial = torch.empty(programs, sum(sizes), device=x.device)
        for layer in range(len(layers), 0, -1):
            _backward[(programs,)](
                x, grads[0].contiguous(), *tensors, x if grad_x is None else grad_x, partial,
                len(x), blocks, programs, sum(sizes), *widths, *padded(widths, len(layers)), len(layers), ctx.relu_out,
                layer, layer == 1 and grad_x is not None, PRECISIONS[ctx.precision], BACKWARD_ROWS, num_stages=1,
            )  # fmt: skip
        parts = partial.sum(0).split(sizes)
        return grad_x, None, None, *(part.view_as(tensor) for part, tensor in zip(parts, flat))


def operands(layers: Layers) -> tuple[list[torch.Tensor], tuple[int, int, int, int]]:
    """Six tensors and four widths whatever the number of layers; those of layers that are not there are never read."""
    tensors = [tensor.contiguous() for layer in layers for tensor in layer]
    widths = [layers[0][0].shape[1], *(weight.shape[0] for weight, _ in layers)]
    missing = 3 - len(layers)
    return tensors + tensors[:2] * missing, tuple((widths + [1] * missing)[:4])  # type: ignore[return-value]


def padded(widths: Sequence[int], depth: int) -> list[int]:
    """Widths as blocks have them: powers of two, 16 at least."""
    return [max(16, triton.next_power_of_2(width)) if i <= depth else 16 for i, width in enumerate(widths)]


def padded_levels(levels: int, features: int) -> int:
    """Levels as blocks have them, so that their features are a power of two columns, 16 at least."""
    return int(max(triton.next_power_of_2(levels), 16 // features))


@triton.jit
def _product(a, b, PRECISION: tl.constexpr):
    if PRECISION == 2:
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    if PRECISION == 1:
        return tl.dot(a, b, input_precision="tf32")
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _weight(weight, K: tl.constexpr, H: tl.constexpr, KP: tl.constexpr, HP: tl.constexpr):
    """nn.Linear's weight [H, K], transposed and padded with zeros: [KP, HP]."""
    k, h = tl.arange(0, KP), tl.arange(0, HP)
    return tl.load(weight + h[None, :] * K + k[:, None], mask=(k < K)[:, None] & (h < H)[None, :], other=0.0)


@triton.jit
def _linear(x, weight, bias, RELU: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, PRECISION: tl.constexpr):
    h = tl.arange(0, HP)
    out = _product(x, weight, PRECISION) + tl.load(bias + h, mask=h < H, other=0.0)[None, :]
    if RELU:
        out = tl.maximum(out, 0.0)
    return out


@triton.jit
def all_layers(
    x, w1, b1, w2, b2, w3, b3,
    K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr,
    DEPTH: tl.constexpr, RELU_OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs [B, padded] of x [B, P0]."""
    a = _linear(x, _weight(w1, K0, K1, P0, P1), b1, DEPTH > 1 or RELU_OUT, K1, P1, PRECISION)
    if DEPTH > 1:
        a = _linear(a, _weight(w2, K1, K2, P1, P2), b2, DEPTH > 2 or RELU_OUT, K2, P2, PRECISION)
    if DEPTH > 2:
        a = _linear(a, _weight(w3, K2, K3, P2, P3), b3, RELU_OUT, K3, P3, PRECISION)
    return a


@triton.jit
def _load_rows(x, i, n, K: tl.constexpr, KP: tl.constexpr):
    k = tl.arange(0, KP)
    return tl.load(x + i[:, None] * K + k[None, :], mask=(i < n)[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def _store_rows(out, i, n, values, K: tl.constexpr, KP: tl.constexpr):
    k = tl.arange(0, KP)
    tl.store(out + i[:, None] * K + k[None, :], values, mask=(i < n)[:, None] & (k < K)[None, :])


@triton.jit
def _store_layer(out, grad_weight, grad_bias, K: tl.constexpr, H: tl.constexpr, KP: tl.constexpr, HP: tl.constexpr):
    """Write gradients [KP, HP] and [HP] of a layer as nn.Linear has them, weight [H, K] and then bias [H]."""
    k, h = tl.arange(0, KP), tl.arange(0, HP)
    tl.store(out + h[None, :] * K + k[:, None], grad_weight, mask=(k < K)[:, None] & (h < H)[None, :])
    tl.store(out + H * K + h, grad_bias, mask=h < H)


@triton.jit(do_not_specialize=["n"])
def _forward(
    x, w1, b1, w2, b2, w3, b3, out, n,
    K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr,
    DEPTH: tl.constexpr, RELU_OUT: tl.constexpr, PRECISION: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    a = all_layers(
        _load_rows(x, i, n, K0, P0), w1, b1, w2, b2, w3, b3, K0, K1, K2, K3, P0, P1, P2, P3, DEPTH, RELU_OUT, PRECISION
    )
    if DEPTH == 1:
        _store_rows(out, i, n, a, K1, P1)
    elif DEPTH == 2:
        _store_rows(out, i, n, a, K2, P2)
    else:
        _store_rows(out, i, n, a, K3, P3)


@triton.jit(do_not_specialize=["n", "levels"])
def _grid_mlp(
    positions, table, scales, numbers, w1, b1, w2, b2, w3, b3, out, n, levels,
    FEATURES: tl.constexpr, LEVELS: tl.constexpr,
    K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr,
    DEPTH: tl.constexpr, RELU_OUT: tl.constexpr, PRECISION: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    x, y, z = load_positions(positions, i, i < n)
    encoded = interpolate(table, x, y, z, tl.arange(0, LEVELS), scales, numbers, levels, FEATURES)
    # columns of levels beyond the last meet weights that are zero
    a = all_layers(
        tl.reshape(encoded, [B, LEVELS * FEATURES]), w1, b1, w2, b2, w3, b3, K0, K1, K2, K3, P0, P1, P2, P3,
        DEPTH, RELU_OUT, PRECISION,
    )  # fmt: skip
    if DEPTH == 1:
        _store_rows(out, i, n, a, K1, P1)
    elif DEPTH == 2:
        _store_rows(out, i, n, a, K2, P2)
    else:
        _store_rows(out, i, n, a, K3, P3)


@triton.jit(do_not_specialize=["n", "blocks", "programs", "size"])
def _backward(
    x, grad_out, w1, b1, w2, b2, w3, b3, grad_x, partial, n, blocks, programs, size,
    K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr,
    DEPTH: tl.constexpr, RELU_OUT: tl.constexpr, LAYER: tl.constexpr, GRAD_X: tl.constexpr,
    PRECISION: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Gradients of one layer, and of x too where asked. Layers are passed from the last to the first; `g` is the
    gradient of what a layer gives, before its ReLU."""
    IN: tl.constexpr = P0 if LAYER == 1 else (P1 if LAYER == 2 else P2)
    OUT: tl.constexpr = P1 if LAYER == 1 else (P2 if LAYER == 2 else P3)
    grad_weight, grad_bias = tl.zeros([IN, OUT], tl.float32), tl.zeros([OUT], tl.float32)
    for block in range(tl.program_id(0), blocks, programs):
        i = block * B + tl.arange(0, B).to(tl.int64)
        a0 = _load_rows(x, i, n, K0, P0)
        if DEPTH > 1 or RELU_OUT:
            a1 = _linear(a0, _weight(w1, K0, K1, P0, P1), b1, True, K1, P1, PRECISION)
        if DEPTH > 2 or (DEPTH == 2 and RELU_OUT):
            a2 = _linear(a1, _weight(w2, K1, K2, P1, P2), b2, True, K2, P2, PRECISION)
        if DEPTH == 3:
            g = _load_rows(grad_out, i, n, K3, P3)
            if RELU_OUT:
                g = tl.where(_linear(a2, _weight(w3, K2, K3, P2, P3), b3, True, K3, P3, PRECISION) > 0, g, 0.0)
            if LAYER == 3:
                grad_weight += _product(tl.trans(a2), g, PRECISION)
            else:
                g = tl.where(a2 > 0, _product(g, tl.trans(_weight(w3, K2, K3, P2, P3)), PRECISION), 0.0)
        elif DEPTH == 2:
            g = _load_rows(grad_out, i, n, K2, P2)
            if RELU_OUT:
                g = tl.where(a2 > 0, g, 0.0)
        else:
            g = _load_rows(grad_out, i, n, K1, P1)
            if RELU_OUT:
                g = tl.where(a1 > 0, g, 0.0)
        if LAYER == 2:
            grad_weight += _product(tl.trans(a1), g, PRECISION)
        if LAYER == 1:
            if DEPTH > 1:
                g = tl.where(a1 > 0, _product(g, tl.trans(_weight(w2, K1, K2, P1, P2)), PRECISION), 0.0)
            grad_weight += _product(tl.trans(a0), g, PRECISION)
            if GRAD_X:
                _store_rows(grad_x, i, n, _product(g, tl.trans(_weight(w1, K0, K1, P0, P1)), PRECISION), K0, P0)
        grad_bias += tl.sum(g, 0)
    out = partial + tl.program_id(0).to(tl.int64) * size
    if LAYER == 1:
        _store_layer(out, grad_weight, grad_bias, K0, K1, P0, P1)
    elif LAYER == 2:
        _store_layer(out + K0 * K1 + K1, grad_weight, grad_bias, K1, K2, P1, P2)
    else:
        _store_layer(out + K0 * K1 + K1 + K1 * K2 + K2, grad_weight, grad_bias, K2, K3, P2, P3)
