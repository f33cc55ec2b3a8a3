"""A head whose output depends on a scale in metres, which costs nothing where it is read.

LERF (Kerr et al. 2023) puts the scale beside the position into its MLP, so every scale is another pass of the field.
Here the scale enters last: the last linear layer itself depends on it, A(s) = (1 - u) A_k + u A_(k+1), linear in log s
between K knots. Position and scale still meet in a product, and

- compositing commutes with A(s) for every s: a ray is composited once for all scales;
- the feature is f(s) = A(s) h, so with unit text t both t . f(s) and |f(s)|^2 follow, for any number of scales, from
  K products t^T A_k h and 2K - 1 of h^T A_j^T A_k h (k = j, j + 1): one pass of the trunk, whatever the scales.

Between two knots a feature moves on the chord between theirs, as LERF's targets do between two levels of its pyramid.

A place is seen from some distances only, and so at some scales only; at others the head says anything at all, and the
scale of the highest relevancy anywhere is likely to be one of those. So it is counted what was taught where.
"""

from __future__ import annotations

import torch
from torch import nn

from .heads import Head, HeadConfig

CELLS = 32
"""Of the workspace's edge: it is remembered in each which scales were taught there."""
UNTAUGHT = 0.02
"""A knot with less than this share of what a cell was taught knows nothing of its scale there."""


class ScaleHead(Head):
    """A late_linear head with a last layer for each of `config.knots_m`.

    What it composites, [h, 1], is also what `finish` gives: `at` makes features of it, once a scale is known.

    Attributes:
        taught: [CELLS^3, K] how much each knot was trained in each cell of the workspace, a sum of weights.
    """

    taught: torch.Tensor

    def __init__(
        self, config: HeadConfig, grid_width: int, hidden: int, backend: str = "auto", precision: str = "float32"
    ):
        super().__init__(config, grid_width, hidden, backend, precision)
        self.last = nn.Linear(self.last.in_features, config.out_dim * len(config.knots_m))
        self.register_buffer("log_knots", torch.tensor(config.knots_m).log())
        self.register_buffer("taught", torch.zeros(CELLS**3, len(config.knots_m)))

    @property
    def width(self) -> int:
        """Length of what is composited."""
        return int(self.last.in_features) + 1

    def affines(self) -> torch.Tensor:
        """[W b] of every knot: [K, out_dim, hidden + 1]."""
        return super().affine().view(len(self.config.knots_m), self.config.out_dim, -1)

    def finish(self, composited: torch.Tensor) -> torch.Tensor:
        """Itself: what it says depends on the scale."""
        return composited

    def place(self, scale_m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The knot [N] int64 below scales [N] and the way to the next, [N] in [0, 1]; clamped to the knots."""
        log_knots = self.get_buffer("log_knots")
        x = scale_m.clamp_min(1e-9).log().clamp(log_knots[0], log_knots[-1])
        k = (torch.searchsorted(log_knots, x, right=True) - 1).clamp(0, len(log_knots) - 2)
        return k, (x - log_knots[k]) / (log_knots[k + 1] - log_knots[k])

    def at(self, h: torch.Tensor, scale_m: torch.Tensor) -> torch.Tensor:
        """Features [N, out_dim] of composited values [N, hidden + 1] at scales [N]. O(two knots a row)."""
        k, u = self.place(scale_m)
        affines = self.affines()
        if h.is_cuda:
            return at_every_knot(h, k, u, affines)
        order = torch.argsort(k)
        h, u = h[order], u[order, None]
        parts, first = [], 0
        for knot, count in enumerate(torch.bincount(k, minlength=len(affines) - 1).tolist()):
            if count:
                rows = slice(first, first + count)
                mixed = torch.cat([(1 - u[rows]) * h[rows], u[rows] * h[rows]], 1)
                parts.append(mixed @ torch.cat([affines[knot], affines[knot + 1]], 1).T)
                first += count
        out = torch.cat(parts) if parts else h.new_zeros(0, self.config.out_dim)
        return out[torch.argsort(order)]

    @torch.no_grad()
    def count(self, positions: torch.Tensor, scale_m: torch.Tensor) -> None:
        """Remember that scales [N] were trained at positions [N, 3] in the workspace, in [0, 1]."""
        k, u = self.place(scale_m)
        cell = cells_of(positions) * self.taught.shape[1] + k
        flat = self.taught.view(-1)
        flat.index_add_(0, cell, 1 - u)
        flat.index_add_(0, cell + 1, u)

    def range_at(self, positions: torch.Tensor) -> torch.Tensor:
        """The lowest and highest knot [N, 2] int64 that was taught at positions [N, 3]; lowest > highest: none was."""
        mass = self.taught[cells_of(positions)]
        known = mass > UNTAUGHT * mass.sum(1, keepdim=True).clamp_min(1e-9)
        last = known.shape[1] - 1
        any_ = known.any(1)
        low = torch.where(any_, known.byte().argmax(1), last)
        high = torch.where(any_, last - known.flip(1).byte().argmax(1), 0)
        return torch.stack([low, high], 1)

    def known(self) -> tuple[int, int] | None:
        """The lowest and highest knot that was taught anywhere; None before."""
        mass = self.taught.sum(0)
        known = torch.nonzero(mass > UNTAUGHT * mass.sum()).flatten().tolist()
        return (known[0], known[-1]) if known else None

    def range_m(self) -> tuple[float, float] | None:
        """Their scales."""
        known = self.known()
        return (self.config.knots_m[known[0]], self.config.knots_m[known[1]]) if known else None


def at_every_knot(h: torch.Tensor, k: torch.Tensor, u: torch.Tensor, affines: torch.Tensor) -> torch.Tensor:
    """`ScaleHead.at` where counting rows would be waited for (GPUs): all knots, most of them with weight 0."""
    weight = torch.zeros(len(h), len(affines), dtype=h.dtype, device=h.device)
    weight = weight.scatter(1, k[:, None], 1 - u[:, None]).scatter(1, k[:, None] + 1, u[:, None])
    return (weight[:, :, None] * h[:, None]).flatten(1) @ affines.transpose(1, 2).flatten(0, 1)


def cells_of(positions: torch.Tensor) -> torch.Tensor:
    """The cell [N] int64 of positions [N, 3] in [0, 1]."""
    at = (positions * CELLS).long().clamp(0, CELLS - 1)
    return (at[:, 0] * CELLS + at[:, 1]) * CELLS + at[:, 2]
