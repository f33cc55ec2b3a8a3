"""The field: two hash grids, a signed-distance MLP and heads."""

from __future__ import annotations

import torch
from torch import nn

from ..config import FieldConfig
from ..errors import ConfigError
from .hash_grid import HashGrid
from .heads import Head, HeadConfig, position_frequencies
from .mlp import Mlp
from .proposal import Proposals
from .scale_head import ScaleHead
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
                    "geometry": HashGrid(config.geometry_grid, SPAN, generator, config.backend),
                    "feature": HashGrid(config.feature_grid, SPAN, generator, config.backend),
                }
            )
            self.sdf = Mlp(
                nn.Linear(self.grid("geometry").width, config.hidden),
                nn.ReLU(inplace=True),
                nn.Linear(config.hidden, 1),
                backend=config.backend,
                precision=config.precision,
            )
            self.heads = nn.ModuleDict({head.name: self._head_of(head) for head in heads})
        self.proposals: Proposals | None = None
        """Where to look along rays without depth; there once any have been trained on."""
        self.class_texts: torch.Tensor | None = None
        """Words of the classes of labels as unit vectors [C, D], where features are aligned with them."""

    def _head_of(self, head: HeadConfig) -> Head:
        kind = ScaleHead if head.knots_m else Head
        return kind(head, self.grid(head.grid).width, self.config.hidden, self.config.backend, self.config.precision)

    def add_head(self, head: HeadConfig) -> Head:
        """One head more, untrained; what the others know stays. ConfigError where there is one of that name."""
        if head.name in self.heads:
            raise ConfigError(f"the field has a head {head.name!r} already")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed + len(self.heads))
            made = self._head_of(head)
        self.heads[head.name] = made.to(self.grid("feature").table.device)
        return made

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

    def hidden(self, name: str, points_world: torch.Tensor, directions: torch.Tensor | None = None) -> torch.Tensor:
        """What a head composites of points [N, 3], seen along directions [N, 3] where it sees them: `Head.hidden`."""
        head, positions = self.head(name), self.workspace.to_unit(points_world)
        return head.hidden(self.grid(head.config.grid)(positions), directions, positions)

    def values(self, name: str, points_world: torch.Tensor, directions: torch.Tensor | None = None) -> torch.Tensor:
        """What a head says of points [N, 3], seen along directions [N, 3] where it sees them: `Head.finish` of
        `hidden`. Differentiable."""
        return self.head(name).finish(self.hidden(name, points_world, directions))

    def distance(self, encoded: torch.Tensor) -> torch.Tensor:
        """Signed distance [N] in metres (positive in front of surfaces), meaningful within the truncation band."""
        distance: torch.Tensor = self.sdf(encoded).squeeze(-1)
        return distance * self.config.truncation_m

    def distance_at(self, points_world: torch.Tensor) -> torch.Tensor:
        """`distance` [N] at points [N, 3]. No gradients; on GPUs one kernel, in which the encoding never leaves."""
        if not self.sdf.fused(points_world.device.type):
            with torch.no_grad():
                return self.distance(self.encode("geometry", points_world))
        distance = self.sdf.of_grid(self.grid("geometry"), self.workspace.to_unit(points_world)).squeeze(-1)
        return distance * self.config.truncation_m

    def traced(
        self, origins: torch.Tensor, directions: torch.Tensor, near_m: float, far_m: float, max_steps: int
    ) -> torch.Tensor | None:
        """What `render.trace` gives, where one kernel does it all; else None."""
        grid = self.grid("geometry")
        if not self.sdf.fused(origins.device.type) or not grid.by_triton():
            return None
        from .trace_triton import trace

        return trace(
            origins, directions, grid.table, grid.layout, self.sdf.linears(), self.workspace.centre_m,
            self.workspace.extent_m, self.config.truncation_m, near_m, far_m, max_steps, self.config.precision,
        )  # fmt: skip

    def trunk_at(self, name: str, points_world: torch.Tensor) -> torch.Tensor:
        """What the trunk of a head without viewing directions gives, [N, hidden] at points [N, 3]; as `distance_at`."""
        head, positions = self.head(name), self.workspace.to_unit(points_world)
        if not head.config.frequencies:
            return head.trunk.of_grid(self.grid(head.config.grid), positions)
        with torch.no_grad():
            seen = position_frequencies(positions, head.config.frequencies)
            out: torch.Tensor = head.trunk(torch.cat([self.grid(head.config.grid)(positions), seen], -1))
        return out
