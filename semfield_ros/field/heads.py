"""Heads: what a field knows besides its shape, each a configuration of one mechanism (DESIGN idea 1).

A head reads a grid (and the viewing direction, if asked), passes an MLP, is activated per sample, composited along the
ray, and only then, where `late_linear` is set, mapped by its last linear layer. Compositing commutes with a linear
layer, sum_i w_i (W h_i + b) = W (sum_i w_i h_i) + b sum_i w_i, so a 512-D feature costs a hidden-width one in the ray
loop, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..errors import ConfigError


@dataclass(frozen=True)
class HeadConfig:
    """One head.

    Attributes:
        grid: which hash grid it reads. direction: whether it sees the viewing direction (SH degree 2).
        out_dim: length of the output. layers: hidden layers of the MLP.
        activation: per sample, before compositing (late_linear heads have none).
        late_linear: apply the last linear layer after compositing.
        loss: l2 | l1 to a target, or cosine_sqrt (sqrt(1 - cos), robust to wrong views). weight: of the loss.
        detach_grid: keep this head's gradients out of the grid it reads.
    """

    name: str
    out_dim: int
    grid: Literal["geometry", "feature"] = "feature"
    direction: bool = False
    layers: int = 1
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    late_linear: bool = False
    loss: Literal["l1", "l2", "cosine_sqrt"] = "l2"
    weight: float = 1.0
    detach_grid: bool = False

    def __post_init__(self) -> None:
        if self.out_dim < 1 or self.layers < 0:
            raise ConfigError(f"head {self.name!r}: out_dim {self.out_dim}, layers {self.layers}; allowed: >= 1, >= 0")
        if self.late_linear and self.activation != "none":
            raise ConfigError(f"head {self.name!r}: late_linear is exact only without a per-sample activation")


def spherical_harmonics(directions: torch.Tensor) -> torch.Tensor:
    """The 9 real spherical harmonics up to degree 2 of unit directions [..., 3]."""
    x, y, z = directions.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, 0.28209479),
            0.48860251 * y,
            0.48860251 * z,
            0.48860251 * x,
            1.09254843 * x * y,
            1.09254843 * y * z,
            0.31539157 * (3 * z * z - 1),
            1.09254843 * x * z,
            0.54627422 * (x * x - y * y),
        ],
        dim=-1,
    )


class Head(nn.Module):
    """The trainable part of a head."""

    def __init__(self, config: HeadConfig, grid_width: int, hidden: int):
        super().__init__()
        self.config = config
        width = grid_width + (9 if config.direction else 0)
        layers: list[nn.Module] = []
        for _ in range(config.layers):
            layers += [nn.Linear(width, hidden), nn.ReLU(inplace=True)]
            width = hidden
        self.trunk = nn.Sequential(*layers)
        self.last = nn.Linear(width, config.out_dim)

    def hidden(self, encoded: torch.Tensor, directions: torch.Tensor | None) -> torch.Tensor:
        """What is composited: [N, hidden] for late_linear heads, the activated output [N, out_dim] for others."""
        if self.config.detach_grid:
            encoded = encoded.detach()
        if self.config.direction:
            if directions is None:
                raise ConfigError(f"head {self.config.name!r} needs viewing directions")
            unit = torch.nn.functional.normalize(directions, dim=-1)
            encoded = torch.cat([encoded, spherical_harmonics(unit)], -1)
        h: torch.Tensor = self.trunk(encoded)
        if self.config.late_linear:
            return h
        out: torch.Tensor = self.last(h)
        if self.config.activation == "sigmoid":
            return out.sigmoid()
        return out.softmax(-1) if self.config.activation == "softmax" else out

    def finish(self, composited: torch.Tensor, accumulation: torch.Tensor | None = None) -> torch.Tensor:
        """The output of composited values [..., *]; `accumulation` [...] is the sum of weights (1 if None)."""
        if not self.config.late_linear:
            return composited
        out = composited @ self.last.weight.T
        bias = self.last.bias if accumulation is None else accumulation[..., None] * self.last.bias
        return out + bias


def head_loss(
    config: HeadConfig, predicted: torch.Tensor, target: torch.Tensor, confidence: torch.Tensor | None = None
) -> torch.Tensor:
    """The head's mean loss over [R, out_dim] rows, weighted by `confidence` [R]."""
    if config.loss == "cosine_sqrt":
        cosine = torch.nn.functional.cosine_similarity(predicted, target, dim=-1)
        per_row = (1 - cosine + 1e-3).sqrt()
    elif config.loss == "l1":
        per_row = (predicted - target).abs().mean(-1)
    else:
        per_row = (predicted - target).square().mean(-1)
    if confidence is None:
        return config.weight * per_row.mean()
    return config.weight * (per_row * confidence).sum() / confidence.sum().clamp_min(1e-6)
