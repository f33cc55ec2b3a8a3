"""Heads: what a field knows besides its shape, each a configuration of one mechanism (DESIGN idea 1).

A head reads a grid (and the viewing direction, if asked), passes an MLP, is activated per sample, composited along the
ray, and only then, where `late_linear` is set, mapped by its last linear layer. Compositing commutes with a linear
layer, sum_i w_i (W h_i + b) = W (sum_i w_i h_i) + b sum_i w_i, so a 512-D feature costs a hidden-width one in the ray
loop, exactly. The bias is one more hidden unit that is always 1, so what is composited is [h, 1].

The features of image encoders are directions. Where `unit` is set, every sample's output has length 1 before it is
composited: otherwise a window's mean could be had from a few long features among many that say nothing, and a field
trained through windows would not know which. The length |W h + b| comes from the Gram matrix of [W b], hidden width
squared, so this costs no output-sized vector either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..errors import ConfigError
from .mlp import Mlp

CODE = 32
"""Length of an image's code (nerfacto)."""


@dataclass(frozen=True)
class HeadConfig:
    """One head.

    Attributes:
        grid: which hash grid it reads. direction: whether it sees the viewing direction (SH degree 2).
        frequencies: of the position it sees beside the grid (6 inputs each; 0 = none).
        out_dim: length of the output. layers: hidden layers of the MLP.
        activation: per sample, before compositing (late_linear heads have none); direction = tanh, then length 1.
        late_linear: apply the last linear layer after compositing. unit: samples' outputs have length 1 (late_linear
            heads only).
        loss: l2 | l1 to a target, cosine_sqrt (sqrt(1 - cos), robust to wrong views), or own: what an objective says.
            A head on the geometry grid whose loss is not its own is one of colour. weight: of the loss.
        detach_grid: keep this head's gradients out of the grid it reads.
        shapes_geometry: where it is composited, its loss moves the weights and the geometry grid too.
        images: it has a code of CODE numbers for each of so many keyframe slots (exposure, white balance: NeRF in the
            Wild, Martin-Brualla et al. 2021), and sees the mean of all where no image is meant; 0 = none.
        knots_m: scales in metres, ascending, that the output depends on between (late_linear heads only): see
            `scale_head`. () = it depends on no scale.
    """

    name: str
    out_dim: int
    grid: Literal["geometry", "feature"] = "feature"
    direction: bool = False
    layers: int = 1
    activation: Literal["none", "sigmoid", "softmax", "direction"] = "none"
    late_linear: bool = False
    unit: bool = False
    loss: Literal["l1", "l2", "cosine_sqrt", "own"] = "l2"
    weight: float = 1.0
    detach_grid: bool = False
    shapes_geometry: bool = False
    frequencies: int = 0
    images: int = 0
    knots_m: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "knots_m", tuple(self.knots_m))  # files give lists
        if self.knots_m and (len(self.knots_m) < 2 or not self.late_linear or self.unit):
            raise ConfigError(f"head {self.name!r}: scales are for late_linear heads without unit, two knots at least")
        if any(not 0 < a < b for a, b in zip(self.knots_m, self.knots_m[1:])):
            raise ConfigError(f"head {self.name!r}: knots_m are {self.knots_m}; allowed: > 0 and ascending")
        if self.images < 0:
            raise ConfigError(f"head {self.name!r}: images {self.images}; allowed: >= 0")
        if not 0 <= self.frequencies <= 16:
            raise ConfigError(f"head {self.name!r}: frequencies {self.frequencies}; allowed: 0 to 16")
        if self.out_dim < 1 or self.layers < 0:
            raise ConfigError(f"head {self.name!r}: out_dim {self.out_dim}, layers {self.layers}; allowed: >= 1, >= 0")
        if self.late_linear and self.activation != "none":
            raise ConfigError(f"head {self.name!r}: late_linear is exact only without a per-sample activation")
        if self.unit and not self.late_linear:
            raise ConfigError(f"head {self.name!r}: unit is for late_linear heads")


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


def position_frequencies(positions: torch.Tensor, count: int) -> torch.Tensor:
    """[sin 2^k pi x, cos 2^k pi x] for k < count, of grid positions [..., 3] in [0, 1]: [..., 6 count].

    tiny-cuda-nn's Frequency encoding, so with pi, unlike NeRF's.
    """
    scales = torch.pi * 2.0 ** torch.arange(count, device=positions.device, dtype=positions.dtype)
    angle = (positions[..., None, :] * scales[:, None]).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)


def learns_colour(head: HeadConfig) -> bool:
    """Whether a head is taught the colour of the surface, beside the distances to it."""
    return head.grid == "geometry" and not head.detach_grid and head.loss != "own"


class Head(nn.Module):
    """The trainable part of a head."""

    def __init__(
        self, config: HeadConfig, grid_width: int, hidden: int, backend: str = "auto", precision: str = "float32"
    ):
        super().__init__()
        self.config = config
        width = grid_width + (9 if config.direction else 0) + 6 * config.frequencies + (CODE if config.images else 0)
        layers: list[nn.Module] = []
        for _ in range(config.layers):
            layers += [nn.Linear(width, hidden), nn.ReLU(inplace=True)]
            width = hidden
        self.trunk = Mlp(*layers, backend=backend, precision=precision)
        self.last = nn.Linear(width, config.out_dim)
        if config.images:
            self.codes = nn.Parameter(torch.zeros(config.images, CODE))
            self.register_buffer("met", torch.zeros(config.images, dtype=torch.bool))

    @torch.no_grad()
    def meet(self, slot: int) -> None:
        """A new image takes a slot: its code begins as what an image usually has."""
        if self.config.images:
            self.codes[slot] = self._code(None)
            self.get_buffer("met")[slot] = True

    def _code(self, images: torch.Tensor | None) -> torch.Tensor:
        """Codes [N, CODE] of images [N]; of none the mean [CODE] of those that were met."""
        if images is not None:
            return self.codes[images]
        met = self.get_buffer("met").to(self.codes.dtype)
        return (self.codes * met[:, None]).sum(0) / met.sum().clamp_min(1)

    @property
    def width(self) -> int:
        """Length of what `finish` gives."""
        return self.config.out_dim

    def hidden(
        self, encoded: torch.Tensor, directions: torch.Tensor | None, positions: torch.Tensor | None = None,
        images: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """What is composited: [N, hidden + 1] for late_linear heads, the activated output [N, out_dim] for others.

        Args:
            encoded: [N, width] of the head's grid. directions: [N, 3], where it sees them. positions: [N, 3] in the
                grid, where it sees their frequencies. images: [N] int64 keyframe slots, where it has codes of them;
                None = as images are on average.
        """
        if self.config.detach_grid:
            encoded = encoded.detach()
        if self.config.direction:
            if directions is None:
                raise ConfigError(f"head {self.config.name!r} needs viewing directions")
            unit = torch.nn.functional.normalize(directions, dim=-1)
            encoded = torch.cat([encoded, spherical_harmonics(unit)], -1)
        if self.config.frequencies:
            if positions is None:
                raise ConfigError(f"head {self.config.name!r} needs positions")
            encoded = torch.cat([encoded, position_frequencies(positions, self.config.frequencies)], -1)
        if self.config.images:
            encoded = torch.cat([encoded, self._code(images).expand(len(encoded), CODE)], -1)
        h: torch.Tensor = self.trunk(encoded)
        if self.config.late_linear:
            h = torch.cat([h, torch.ones_like(h[..., :1])], -1)
            return h * self.squared_length(h).clamp_min(1e-12).rsqrt()[..., None] if self.config.unit else h
        out: torch.Tensor = self.last(h)
        if self.config.activation == "sigmoid":
            return out.sigmoid()
        if self.config.activation == "direction":
            return nn.functional.normalize(out.tanh(), dim=-1)
        return out.softmax(-1) if self.config.activation == "softmax" else out

    def affine(self) -> torch.Tensor:
        """[W b], [out_dim, hidden + 1]: the last layer as a matrix on what late_linear heads composite."""
        return torch.cat([self.last.weight, self.last.bias[:, None]], 1)

    def squared_length(self, h: torch.Tensor) -> torch.Tensor:
        """|W h + b|^2 of composited values [..., hidden + 1], by their Gram matrix."""
        affine = self.affine()
        return ((h @ (affine.T @ affine)) * h).sum(-1)

    def finish(self, composited: torch.Tensor) -> torch.Tensor:
        """The output of composited values [..., *]."""
        return composited @ self.affine().T if self.config.late_linear else composited

    def cosine(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Cosines [N] between the outputs of composited values [N, hidden + 1], without forming the outputs."""
        affine = self.affine()
        gram = affine.T @ affine
        ga, gb = a @ gram, b @ gram
        square = (ga * a).sum(-1) * (gb * b).sum(-1)
        return (ga * b).sum(-1) / square.clamp_min(1e-12).sqrt()


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
