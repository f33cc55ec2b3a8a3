"""Proposals: small densities that say where along a ray the field is worth asking (mip-NeRF 360; nerfacto).

They are trained by `volume.interlevel_loss` to never fall below the field's weights, and by nothing else; nothing of
theirs moves the field.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..config import GridConfig, VolumeConfig
from .hash_grid import HashGrid
from .mlp import Mlp
from .volume import Span, anneal_exponent, resample, uniform_edges, weights_of
from .workspace import SPAN, Workspace


@dataclass(frozen=True)
class Samples:
    """R rays in S intervals.

    Attributes:
        edges: [R, S + 1] ray coordinates. middle_m, delta_m: [R, S] metres along the ray.
        proposals: (edges, weights) of each network that led here; weights carry gradients when they are to be trained.
    """

    edges: torch.Tensor
    middle_m: torch.Tensor
    delta_m: torch.Tensor
    proposals: list[tuple[torch.Tensor, torch.Tensor]]


class Proposal(nn.Module):
    """A density, 1/m: hash grid, one hidden layer, exp."""

    def __init__(
        self, grid: GridConfig, hidden: int, workspace: Workspace, generator: torch.Generator, backend: str = "auto"
    ):
        super().__init__()
        self.workspace = workspace
        self.grid = HashGrid(grid, SPAN, generator, backend)
        layers = (nn.Linear(self.grid.width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, 1))
        self.mlp = Mlp(*layers, backend=backend)

    def forward(self, points_world: torch.Tensor) -> torch.Tensor:
        """Densities [N] at points [N, 3]."""
        raw = self.mlp(self.grid(self.workspace.to_unit(points_world))).squeeze(-1)
        density: torch.Tensor = torch.exp(raw.clamp(-15, 15)) * (2.0 / self.workspace.extent_m)
        return density


class Proposals(nn.Module):
    """The chain of proposals, from equal intervals to those the field is asked in."""

    def __init__(self, config: VolumeConfig, workspace: Workspace, seed: int, backend: str = "auto"):
        super().__init__()
        self.config, self.workspace = config, workspace
        generator = torch.Generator().manual_seed(seed)
        half_m = workspace.extent_m / 2
        self.span = Span(config.near_m / half_m, config.far_extents * 2, half_m)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.coarse = Proposal(config.coarse_grid, config.hidden, workspace, generator, backend)
            self.fine = Proposal(config.fine_grid, config.hidden, workspace, generator, backend)

    @property
    def networks(self) -> tuple[Proposal, Proposal]:
        """In the order they are asked."""
        return self.coarse, self.fine

    def sample(
        self, origins: torch.Tensor, unit_directions: torch.Tensor, *, step: int | None = None, learn: bool = False,
        generator: torch.Generator | None = None,
    ) -> Samples:  # fmt: skip
        """Intervals of rays [R, 3], [R, 3] (unit length). With a training `step` jittered by `generator` and annealed;
        without, in the middle. Gradients reach the proposals where they are to `learn`."""
        config = self.config
        n, device = len(origins), origins.device
        training = step is not None
        exponent = anneal_exponent(step) if step is not None else 1.0
        counts = (config.coarse_samples, config.fine_samples, config.samples)
        jitter = torch.rand(n, counts[0] + 1, generator=generator, device=device) if training else None
        edges = uniform_edges(n, counts[0], jitter, device)
        proposals = []
        for network, count in zip(self.networks, counts[1:]):
            middle_m, delta_m = _intervals(self.span, edges)
            points = origins[:, None] + unit_directions[:, None] * middle_m[..., None]
            with torch.set_grad_enabled(learn):
                weights = weights_of(network(points.reshape(-1, 3)).view(n, -1), delta_m)
            proposals.append((edges, weights))
            jitter = torch.rand(n, 1, generator=generator, device=device) if training else None
            edges = resample(edges, weights.detach() ** exponent, count, jitter)
        return Samples(edges, *_intervals(self.span, edges), proposals)


def _intervals(span: Span, edges: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    distance_m = span.distance_m(edges)
    return (distance_m[:, 1:] + distance_m[:, :-1]) / 2, distance_m[:, 1:] - distance_m[:, :-1]
