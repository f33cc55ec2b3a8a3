"""The networks of published systems, from their descriptions.

`FrequencyNet` is Semantic-NeRF's (Zhi et al. 2021), `HashNet` nerfacto's (Tancik et al. 2023) with the feature fields
of F3RM (Shen et al. 2023) and LERF (Kerr et al. 2023), which are hash grids and a small MLP apart from the density.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from ..config import GridConfig
from ..field.hash_grid import HashGrid
from ..field.heads import spherical_harmonics
from ..field.workspace import SPAN, Workspace


def frequencies(x: torch.Tensor, count: int) -> torch.Tensor:
    """[x, sin 2^k x, cos 2^k x] for k < count, of [..., D]: [..., D (1 + 2 count)]; NeRF's, so without pi."""
    scaled = x[..., None, :] * 2.0 ** torch.arange(count, device=x.device, dtype=x.dtype)[:, None]
    return torch.cat([x, scaled.sin().flatten(-2), scaled.cos().flatten(-2)], -1)


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class FrequencyNet(nn.Module):
    """Positions / 10 m in 10 frequencies through `depth` layers (a skip after the 4th); labels see no direction."""

    def __init__(self, outputs: int, width: int = 256, depth: int = 8):
        super().__init__()
        self.before = mlp([63] + [width] * 5)
        self.after = mlp([width + 63] + [width] * (depth - 5))
        self.density = nn.Linear(width, 1)
        self.code = nn.Linear(width, width)
        self.colour = mlp([width + 27, width // 2, 3])
        self.label = mlp([width, width // 2, outputs])

    def forward(
        self, points: torch.Tensor, unit_directions: torch.Tensor, scale_m: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Density [N] 1/m, colour [N, 3] in [0, 1], logits [N, outputs] at points [N, 3]."""
        place = frequencies(points / 10, 10)
        h = self.after(torch.cat([self.before(place).relu(), place], -1)).relu()
        seen = torch.cat([self.code(h), frequencies(unit_directions, 4)], -1)
        return self.density(h).squeeze(-1).relu(), self.colour(seen).sigmoid(), self.label(h)


class HashNet(nn.Module):
    """Density and colour on one hash grid; features on grids of their own, at detached positions.

    Args:
        feature_grids: of the feature field, concatenated. feature_frequencies: of the position beside them (0 = none).
        feature_widths: hidden layers. scaled: whether features depend on the metric size of what is meant (LERF).
    """

    def __init__(
        self, workspace: Workspace, outputs: int, grid: GridConfig, feature_grids: Sequence[GridConfig],
        feature_widths: Sequence[int], feature_frequencies: int = 0, scaled: bool = False, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.workspace, self.feature_frequencies, self.scaled = workspace, feature_frequencies, scaled
        self.grid = HashGrid(grid, SPAN, generator)
        self.feature_grids = nn.ModuleList(HashGrid(g, SPAN, generator) for g in feature_grids)
        self.shape = mlp([self.grid.width, 64, 16])
        self.colour = mlp([15 + 9, 64, 64, 3])
        extra = (3 + 6 * feature_frequencies if feature_frequencies else 0) + int(scaled)
        width = sum(g.levels * g.features for g in feature_grids) + extra
        self.feature = mlp([width, *feature_widths, outputs])

    def forward(
        self, points: torch.Tensor, unit_directions: torch.Tensor, scale_m: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Density [N] 1/m, colour [N, 3], features [N, outputs] at points [N, 3], for sizes scale_m [N] if scaled."""
        unit = self.workspace.to_unit(points)
        shape = self.shape(self.grid(unit))
        density = shape[:, 0].clamp(-15, 15).exp() * (2.0 / self.workspace.extent_m)
        colour = self.colour(torch.cat([shape[:, 1:], spherical_harmonics(unit_directions)], -1)).sigmoid()
        inputs = [grid(unit) for grid in self.feature_grids]
        if self.feature_frequencies:
            inputs.append(frequencies(unit, self.feature_frequencies))
        if self.scaled:
            inputs.append((torch.zeros_like(unit[:, 0]) if scale_m is None else scale_m)[:, None])
        return density, colour, self.feature(torch.cat(inputs, -1))
