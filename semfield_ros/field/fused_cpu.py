"""The losses of a training step on CPUs, fused: each a torch function whose way back is computed on the way there.

What autograd would build from `Field.distance`, `Head.hidden` and the losses in `trainer`, these compute in one pass of
the kernels in `mlp_cpu`; they take part in a torch graph like any other function, and the numbers are the same. The
batch is cut into PARTS whatever the number of threads, so results do not depend on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..config import FieldConfig, GridConfig
from ..memory.replay import RayBatch
from . import mlp_cpu, rays_cpu
from .heads import Head, HeadConfig, learns_colour, spherical_harmonics
from .lanes_cpu import padded
from .model import Field
from .optimiser import GridAdam
from .workers_cpu import split, undisturbed
from .workspace import Workspace

__all__ = [
    "compile_kernels", "encode", "fuses_language", "fuses_rays", "guided", "language", "ray_losses", "undisturbed",
]  # fmt: skip

PARTS = 8
"""A batch's gradients are summed in so many parts, then over the parts."""
Array = np.ndarray
LINEAR = tuple[torch.Tensor, torch.Tensor]


def fuses_rays(field: Field) -> bool:
    """Whether `ray_losses` knows all that a field's geometry grid is read by: its distance and at most one colour."""
    heads = [head for head in (field.head(name).config for name in field.heads) if learns_colour(head)]
    return type(field) is Field and len(heads) <= 1 and all(
        head.direction and head.layers == 2 and head.activation == "sigmoid" and head.loss == "l2"
        and not head.late_linear and not head.frequencies and not head.images
        for head in heads
    )  # fmt: skip


def fuses_language(head: Head) -> bool:
    """Whether `language` knows a head: one hidden layer, unit length, no direction."""
    config = head.config
    plain = not (config.direction or config.detach_grid or config.frequencies or config.images)
    return config.layers == 1 and config.unit and plain


def encode(field: Field, grid: str, points_world: torch.Tensor) -> torch.Tensor:
    """`Field.encode`."""
    encoded: torch.Tensor = field.grid(grid)(rays_cpu.to_unit(field.workspace, points_world))
    return encoded


def guided(
    field: Field, batch: RayBatch, free: int, surface: int, near_m: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Geometry features [R * S, I] and distances in truncations [R, S] of `trainer.depth_guided` samples."""
    draws = torch.rand(len(batch.depth_m), free + surface, generator=generator)
    positions, target = rays_cpu.guided_samples(
        field.workspace, batch.origins, batch.directions, batch.norms, batch.depth_m, batch.incidence, draws, free,
        field.config.truncation_m, near_m,
    )  # fmt: skip
    return field.grid("geometry")(positions), target


def ray_losses(
    field: Field, head: Head | None, encoded: torch.Tensor, target: torch.Tensor, free: int, picks: torch.Tensor,
    directions: torch.Tensor, rgb: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """The losses sdf, free and, where there is one, of the colour head, of R > 0 rays.

    Args:
        encoded: [R * S, I] geometry features. target: [R, S] distances in truncations, the first `free` in free space.
        picks: [R] int64, the sample of each ray that colour is read at. directions, rgb: [R, 3].

    Raises:
        RuntimeError: on the way back, where they were not summed with equal weights.
    """
    parameters: tuple[torch.Tensor, ...] = _linear(field.sdf[0]) + _linear(field.sdf[2])
    if head is not None:
        parameters += _linear(head.trunk[0]) + _linear(head.trunk[2]) + _linear(head.last)
    weight = head.config.weight if head is not None else 0.0
    losses: tuple[torch.Tensor, ...] = _RayLosses.apply(
        encoded, target, free, picks, directions, rgb, weight, *parameters
    )
    return losses


def language(
    head: Head, encoded: torch.Tensor, share: torch.Tensor, weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a unit head composites over windows, and the loss of pairs that should mean the same.

    Args:
        encoded: [P * K + 2 N, I] features of the windows' points, of the pairs' first ends and of their second ones.
        share: [P, K] of a window's points in its mean. weight: [N] of the pairs; None = no pairs.

    Returns:
        means [P, hidden + 1]; the weighted mean of sqrt(1 - cos + .001) over pairs, None without them.
    """
    affine = head.affine()
    gram = affine.T @ affine
    parameters = _linear(head.trunk[0])
    if weight is None:
        return _WindowMeans.apply(encoded, share, *parameters, gram), None
    windows, ends = encoded.split([share.numel(), 2 * len(weight)])
    factor = weight / weight.sum().clamp_min(1e-6)
    return _WindowMeans.apply(windows, share, *parameters, gram), _PairLoss.apply(ends, factor, *parameters, gram)


def compile_kernels() -> None:
    """Compile (or fetch from numba's cache) every kernel of a step: some seconds the first time on a machine."""
    grid = GridConfig(levels=1, log2_table=4, min_resolution=2, max_resolution=2)
    heads = (
        HeadConfig("rgb", 3, grid="geometry", direction=True, layers=2, activation="sigmoid"),
        HeadConfig("language", 2, late_linear=True, unit=True),
    )
    field = Field(FieldConfig(geometry_grid=grid, feature_grid=grid, backend="numba"), Workspace((0, 0, 0), 1.0), heads)
    one, ray, generator = torch.ones(1), torch.ones(1, 3), torch.Generator()
    batch = RayBatch(ray, ray, one, one, ray, one, torch.zeros(1, dtype=torch.int64))
    encoded, target = guided(field, batch, 1, 1, 0.05, generator)
    losses = ray_losses(field, field.head("rgb"), encoded, target, 1, torch.zeros(1, dtype=torch.int64), ray, ray)
    means, smooth = language(field.head("language"), encode(field, "feature", torch.ones(3, 3)), torch.ones(1, 1), one)
    assert smooth is not None
    torch.stack([*losses, means.sum(), smooth]).sum().backward()
    for name in field.grids:
        GridAdam(field.grid(name)).step(0.0)


def _linear(layer: nn.Module) -> LINEAR:
    assert isinstance(layer, nn.Linear)
    return layer.weight, layer.bias


def _forward_matrix(weight: torch.Tensor) -> Array:
    """[out, in] to [in, out padded]."""
    out, inner = weight.shape
    matrix = np.zeros((inner, padded(out)), np.float32)
    matrix[:, :out] = weight.detach().numpy().T
    return matrix


def _backward_matrix(weight: torch.Tensor) -> Array:
    """[out, in] to [out padded, in padded]."""
    out, inner = weight.shape
    matrix = np.zeros((padded(out), padded(inner)), np.float32)
    matrix[:out, :inner] = weight.detach().numpy()
    return matrix


def _vector(values: torch.Tensor) -> Array:
    """[n] to [n padded]."""
    vector = np.zeros(padded(len(values)), np.float32)
    vector[: len(values)] = values.detach().numpy()
    return vector


def _buffers(arrays: tuple[Array, ...], parts: int) -> tuple[Array, ...]:
    return tuple(np.zeros((parts, *array.shape), np.float32) for array in arrays)


def _summed(buffers: tuple[Array, ...]) -> list[torch.Tensor]:
    return [torch.from_numpy(buffer.sum(0)) for buffer in buffers]


def _edges(count: int) -> Array:
    """Where the parts of `count` rays or groups begin and end."""
    parts = max(1, min(PARTS, count))
    return np.arange(parts + 1) * count // parts


class _RayLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, encoded: Any, target: Any, free: int, picks: Any, directions: Any, rgb: Any, factor: float,
        *parameters: Any,
    ) -> Any:  # fmt: skip
        rays, samples = target.shape
        counts = np.repeat([rays * free, rays * (samples - free)], [free, samples - free])
        slope = (np.repeat([1.0, 5.0], [free, samples - free]) / counts).astype(np.float32)
        w1, b1, w2, b2 = parameters[:4]
        x, grad_x = encoded.detach().contiguous().numpy(), np.empty(encoded.shape, np.float32)
        weights = (
            _forward_matrix(w1), _backward_matrix(w1), _vector(b1), _vector(w2[0]), np.array(b2.detach().numpy()),
        )  # fmt: skip
        edges = _edges(rays)
        grads = _buffers((weights[0], *weights[2:]), len(edges) - 1)
        errors, colour_errors = np.zeros((len(edges) - 1, samples)), np.zeros(len(edges) - 1)
        goal = np.ascontiguousarray(target.numpy())
        coloured = len(parameters) > 4
        if coloured:
            v1, c1, v2, c2, v3, c3 = parameters[4:]
            colour_weights = (
                _forward_matrix(v1), _backward_matrix(v1), _vector(c1), _backward_matrix(v2.T), _backward_matrix(v2),
                _vector(c2), _padded_columns(v3), np.array(c3.detach().numpy()),
            )  # fmt: skip
            colour_grads = _buffers(tuple(colour_weights[i] for i in (0, 2, 3, 5, 6, 7)), len(edges) - 1)
            picked = picks.numpy()
            viewing = spherical_harmonics(nn.functional.normalize(directions, dim=-1)).numpy()
            seen = rgb.numpy()
            colour_factor = np.float32(factor / max(1, seen.size))

        def work(first: int, last: int) -> None:
            mlp_cpu.distances(first, last, edges, x, goal, slope, weights, grad_x, grads, errors)
            if coloured:
                mlp_cpu.colours(
                    first, last, edges, x, picked, viewing, seen, colour_factor, colour_weights, grad_x, colour_grads,
                    colour_errors,
                )

        split(len(edges) - 1, work)
        a, b, w, c = _summed(grads)
        out = len(b1)
        ctx.grads = [torch.from_numpy(grad_x), a[:, :out].T, b[:out], w[None, :out], c]
        if coloured:
            a, b, d, f, w, c = _summed(colour_grads)
            out = len(c1)
            ctx.grads += [a[:, :out].T, b[:out], d[:out, :out].T, f[:out], w[:, :out], c]
        total = slope * errors.sum(0)
        losses = [total[free:].sum(), total[:free].sum()]
        if coloured:
            losses.append(colour_factor * colour_errors.sum())
        return tuple(torch.tensor(loss, dtype=torch.float32) for loss in losses)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        factor, *others = (float(u) for u in upstream)
        if any(other != factor for other in others):
            raise RuntimeError("fused losses share one gradient: they can only be summed with equal weights")
        encoded, *parameters = ctx.grads if factor == 1 else [g * factor for g in ctx.grads]
        return (encoded, None, None, None, None, None, None, *parameters)


def _padded_columns(weight: torch.Tensor) -> Array:
    """[out, in] to [out, in padded]."""
    matrix = np.zeros((weight.shape[0], padded(weight.shape[1])), np.float32)
    matrix[:, : weight.shape[1]] = weight.detach().numpy()
    return matrix


class _Unit:
    """The parameters of a unit head of H hidden units as the kernels take them, and their gradients as torch does."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, gram: torch.Tensor):
        self.size = out = len(bias)
        gram = gram.detach()
        self.weights = (_forward_matrix(weight), _backward_matrix(weight), _vector(bias))
        self.gram = (_backward_matrix(gram[:out, :out]), _vector(gram[:out, out]), np.array(gram[out:, out].numpy()))

    def buffers(self, parts: int) -> tuple[Array, ...]:
        """Zeros for the gradients of weight, bias and the Gram matrix's blocks."""
        return _buffers((self.weights[0], self.weights[2], *self.gram), parts)

    def gradients(self, buffers: tuple[Array, ...]) -> list[torch.Tensor]:
        """Of weight, bias and gram."""
        out = self.size
        a, b, square, cross, constant = _summed(buffers)
        gram = torch.empty(out + 1, out + 1)
        gram[:out, :out] = square[:out, :out]
        gram[:out, out] = gram[out, :out] = cross[:out]
        gram[out, out] = constant[0]
        return [a[:, :out].T, b[:out], gram]


class _WindowMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, encoded: Any, share: Any, weight: Any, bias: Any, gram: Any) -> Any:
        unit, (windows, points) = _Unit(weight, bias, gram), share.shape
        x, shares = encoded.detach().contiguous().numpy(), share.contiguous().view(-1).numpy()
        wide = len(unit.weights[2])
        hidden, turned = np.empty((len(x), wide), np.float32), np.empty((len(x), wide), np.float32)
        length, means = np.empty(len(x), np.float32), np.empty((windows, wide + 1), np.float32)
        split(
            windows,
            lambda first, last: mlp_cpu.unit_means(
                first, last, points, shares, x, unit.weights, unit.gram, hidden, turned, length, means
            ),
        )
        ctx.kept = (unit, points, shares, x, hidden, turned, length)
        kept, out = torch.from_numpy(means), unit.size
        return kept if wide == out else torch.cat([kept[:, :out], kept[:, -1:]], 1)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        unit, points, shares, x, hidden, turned, length = ctx.kept
        grad_means = np.zeros((len(upstream[0]), hidden.shape[1] + 1), np.float32)
        grad_means[:, : unit.size] = upstream[0][:, :-1].numpy()
        grad_means[:, -1] = upstream[0][:, -1].numpy()
        edges, grad_x = _edges(len(grad_means)), np.empty(x.shape, np.float32)
        grads = unit.buffers(len(edges) - 1)
        split(
            len(edges) - 1,
            lambda first, last: mlp_cpu.unit_means_back(
                first, last, edges, points, shares, x, unit.weights, hidden, turned, length, grad_means, grad_x, grads
            ),
        )
        return torch.from_numpy(grad_x), None, *unit.gradients(grads)


class _PairLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, encoded: Any, factor: Any, weight: Any, bias: Any, gram: Any) -> Any:
        unit, x = _Unit(weight, bias, gram), encoded.detach().contiguous().numpy()
        edges, grad_x, share = _edges(len(factor)), np.empty(encoded.shape, np.float32), factor.contiguous().numpy()
        grads, losses = unit.buffers(len(edges) - 1), np.zeros(len(edges) - 1)
        split(
            len(edges) - 1,
            lambda first, last: mlp_cpu.pairs(
                first, last, edges, x, share, unit.weights, unit.gram, grad_x, grads, losses
            ),
        )
        ctx.grads = [torch.from_numpy(grad_x), *unit.gradients(grads)]
        return torch.tensor(losses.sum(), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        factor = float(upstream[0])
        encoded, *parameters = ctx.grads if factor == 1 else [g * factor for g in ctx.grads]
        return encoded, None, *parameters
