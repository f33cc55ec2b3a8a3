"""The workspace: metres in global_frame to the unit cube of the grids, contracted outside."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import ConfigError
from ..memory.draws import on_device

SPAN = 2.0
"""Grid cells an edge of the unit cube per cell an edge of the workspace: contraction leaves it the middle half."""


def contract(x: torch.Tensor) -> torch.Tensor:
    """L-infinity contraction of [..., 3]: identity inside the unit cube |x|inf < 1, the rest into |x|inf < 2.

    f(x) = (2 - 1/|x|inf) x/|x|inf (Barron et al. 2022 with the norm of nerfacto, Tancik et al. 2023).
    """
    size = x.abs().amax(-1, keepdim=True).clamp_min(1e-9)
    return torch.where(size < 1, x, (2 - 1 / size) * (x / size))


@dataclass(frozen=True)
class Workspace:
    """A cube in global_frame: centre and edge in metres. Inside it the field has its full resolution."""

    centre_m: tuple[float, float, float]
    extent_m: float

    def __post_init__(self) -> None:
        if not self.extent_m > 0:
            raise ConfigError(f"workspace extent_m is {self.extent_m}; allowed: > 0")

    def to_unit(self, points_world: torch.Tensor) -> torch.Tensor:
        """Points [..., 3] in metres to grid positions [..., 3] in [0, 1]: (contract(x) + 2) / 4."""
        centre = on_device(self.centre_m, points_world.device, points_world.dtype)
        return ((contract((points_world - centre) * (2.0 / self.extent_m)) + 2) / 4).clamp(0, 1)
