"""Normals: the slope of the signed distance, and a head that predicts them more smoothly (Verbin et al. 2022).

A normal is the direction in which the distance grows, so it points to the side that was seen. It is taken by finite
differences in METRES: whatever contraction the grids have lies inside the function, so no Jacobian is forgotten, and
the hash grids, whose encodings are not differentiable in the position here, teach their tables through it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import normalize

from ..config import HeadsConfig
from ..memory.replay import Replay
from .heads import HeadConfig
from .model import Field
from .objectives import Stateless

HEAD = "normal"
ORIENTATION_WEIGHT, PREDICTED_WEIGHT = 1e-4, 1e-3
"""Nerfacto's, for sums over the samples of a ray (here there is one, of weight 1)."""
RAYS = 512
STEP = 0.1
"""Of finite differences, in truncations: below the finest cells there is only noise."""
TETRAHEDRON = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))

DistanceFunction = Callable[[torch.Tensor], torch.Tensor]
"""Points [N, 3] in metres to signed distances [N], positive on the seen side."""


def slope(distance: DistanceFunction, points: torch.Tensor, step_m: float) -> torch.Tensor:
    """Gradient [N, 3] at points [N, 3] by four evaluations at the corners of a tetrahedron; exact for planes.

    Its graph leads to the parameters of `distance`.
    """
    corners = points.new_tensor(TETRAHEDRON)
    values = distance((points[:, None] + step_m * corners).reshape(-1, 3)).view(-1, 4)
    return values @ corners / (4 * step_m)


def orientation_loss(weights: torch.Tensor, normals: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Mean over rays of sum_i w_i min(0, n_i . (-d))^2: what is seen must not face away (Verbin et al. 2022, eq. 11).

    Args:
        weights: [R, S]. normals: [R, S, 3] unit. directions: [R, 3] unit, away from the camera. Neither is detached:
            the loss exists to move them.
    """
    facing = -(normals * directions[:, None]).sum(-1)
    return (weights * facing.clamp_max(0).square()).sum(-1).mean()


def predicted_normal_loss(weights: torch.Tensor, normals: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Mean over rays of sum_i w_i (1 - n_i . n^_i) of [R, S], [R, S, 3], [R, S, 3]; weights and normals are detached:
    a prediction never bends what it predicts."""
    apart = 1 - (normals.detach() * predicted).sum(-1)
    return (weights.detach() * apart).sum(-1).mean()


def field_normals(field: Field, points: torch.Tensor) -> torch.Tensor:
    """Unit normals [N, 3] of the field's shape at points [N, 3]; 0 where the distance is flat."""

    def distance(at: torch.Tensor) -> torch.Tensor:
        return field.distance(field.encode("geometry", at))

    return normalize(slope(distance, points, STEP * field.config.truncation_m), dim=-1)


def predicted_normals(field: Field, points: torch.Tensor) -> torch.Tensor:
    """Unit normals [N, 3] as the head predicts them; ConfigError where there is no such head."""
    return field.values(HEAD, points)


def heads(config: HeadsConfig) -> tuple[HeadConfig, ...]:
    """Geometry features and the position in 2 frequencies -> 64, 64 -> 3, tanh, length 1 (nerfacto's)."""
    if not config.normals:
        return ()
    return (HeadConfig(HEAD, 3, grid="geometry", layers=2, frequencies=2, activation="direction", detach_grid=True),)


def objectives(config: HeadsConfig, field: Field) -> tuple[Normals, ...]:
    """Where there is a head for them."""
    return (Normals(),) if HEAD in field.heads else ()


class Normals(Stateless):
    """Predict the shape's normals at measured surfaces, and keep those facing the camera that measured them."""

    name = HEAD

    def losses(
        self, field: Field, replay: Replay, step: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Both losses of a few rays; a measured surface is one sample of weight 1."""
        rays = replay.rays(RAYS, 0.0, generator)
        if not len(rays.depth_m):
            return {}, 0
        points = rays.origins + rays.directions * rays.depth_m[:, None]
        normals = field_normals(field, points)[:, None]
        weights = torch.ones_like(normals[..., 0])
        predicted = predicted_normals(field, points)[:, None]
        return {
            HEAD: PREDICTED_WEIGHT * predicted_normal_loss(weights, normals, predicted),
            "orientation": ORIENTATION_WEIGHT * orientation_loss(weights, normals, normalize(rays.directions, dim=-1)),
        }, 5 * len(points)  # fmt: skip
