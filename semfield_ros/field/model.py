"""The field: two hash grids, a signed-distance MLP and heads."""

from __future__ import annotations

import torch
from torch import nn

from ..config import FieldConfig
from ..errors import ConfigError
from .hash_grid import HashGrid
from .heads import Head, HeadConfig
from .workspace import SPAN, Workspace


class Field(nn.Module):
    """Position in global_frame (metres) -> signed distance and head values.

    The geometry grid holds shape and whatever heads ask for it (colour); the feature grid is coarse and shared by the
    feature heads, so that features never shape geometry.
    """

    def __init__(self, config: FieldConfig, workspace: Workspace, heads: tuple[HeadConfig, ...]):
        super().__init__()
        names = [head.name for head in heads]
        if len(set(names)) != len(names):
            raise ConfigError(f"head names are {names}; each must be different")
        self.config, self.workspace = config, workspace
        generator = torch.Generator().manual_seed(config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.grids = nn.ModuleDict(
                {
                    "geometry": HashGrid(config.geometry_grid, SPAN, generator),
                    "feature": HashGrid(config.feature_grid, SPAN, generator),
                }
            )
            self.sdf = nn.Sequential(
                nn.Linear(self.grid("geometry").width, config.hidden),
                nn.ReLU(inplace=True),
                nn.Linear(config.hidden, 1),
            )
            self.heads = nn.ModuleDict(
                {head.name: Head(head, self.grid(head.grid).width, config.hidden) for head in heads}
            )

    def grid(self, name: str) -> HashGrid:
        """The hash grid of that name."""
        grid = self.grids[name]
        assert isinstance(grid, HashGrid)
        return grid

    def head(self, name: str) -> Head:
        """The head of that name; ConfigError where there is none."""
        if name not in self.heads:
            raise ConfigError(f"the field has no head {name!r}; it has: {', '.join(self.heads) or 'none'}")
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    def encode(self, grid: str, points_world: torch.Tensor) -> torch.Tensor:
        """Grid features [N, width] at points [N, 3]."""
        encoded: torch.Tensor = self.grid(grid)(self.workspace.to_unit(points_world))
        return encoded

    def distance(self, encoded: torch.Tensor) -> torch.Tensor:
        """Signed distance [N] in metres (positive in front of surfaces), meaningful within the truncation band."""
        distance: torch.Tensor = self.sdf(encoded).squeeze(-1)
        return distance * self.config.truncation_m
