"""Volume rendering of a field: every head reduced with the weights of one set of samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .model import Field
from .proposal import Samples
from .volume import density_of_distance, stretch, weights_of


@dataclass(frozen=True)
class Composite:
    """R volume-rendered rays.

    Attributes:
        weights: [R, S] of the samples' intervals. middle_m: [R, S] metres along the ray.
        distance: [R, S] the field's signed distance there, in truncations.
        outputs: head name -> [R, out_dim], on nothing (0) where the ray ends in nothing.
    """

    weights: torch.Tensor
    middle_m: torch.Tensor
    distance: torch.Tensor
    outputs: dict[str, torch.Tensor]


def reduced(
    field: Field, name: str, points: torch.Tensor, directions: torch.Tensor, weights: torch.Tensor,
    encoded: dict[str, torch.Tensor], top: int = 0,
) -> torch.Tensor:  # fmt: skip
    """A head reduced along rays: points [R, S, 3], directions [R, 3], weights [R, S] -> [R, width].

    Only heads that shape geometry pass gradients to weights and to the geometry grid.

    Args:
        encoded: what is known of grids at the points, [R * S, *] by name; added to.
        top: heads on the feature grid are asked at so many samples of each ray, those of the largest weight (LERF takes
            24; their weights stay what they are); 0 = at all.
    """
    head = field.head(name)
    grid, shapes = head.config.grid, head.config.shapes_geometry
    if 0 < top < weights.shape[1] and grid == "feature":
        weights, best = weights.topk(top, dim=1)
        points = points.gather(1, best[..., None].expand(-1, -1, 3))
        at = field.encode(grid, points.reshape(-1, 3))
    else:
        if grid not in encoded:
            encoded[grid] = field.encode(grid, points.reshape(-1, 3))
        at = encoded[grid]
    n, count = weights.shape
    if not shapes:
        weights = weights.detach()
        at = at.detach() if grid == "geometry" else at
    positions = field.workspace.to_unit(points.reshape(-1, 3)) if head.config.frequencies else None
    per_sample = head.hidden(at, directions.repeat_interleave(count, 0), positions).view(n, count, -1)
    return head.finish((per_sample * weights[..., None]).sum(1))


def composite(
    field: Field, origins: torch.Tensor, unit_directions: torch.Tensor, samples: Samples, heads: tuple[str, ...],
    top: int = 0,
) -> Composite:  # fmt: skip
    """Render rays [R, 3], [R, 3] in given intervals. Differentiable; only heads that shape geometry do shape it.

    Args:
        top: see `reduced`.
    """
    n, count = samples.middle_m.shape
    points = origins[:, None] + unit_directions[:, None] * samples.middle_m[..., None]
    flat = points.reshape(-1, 3)
    encoded = {"geometry": field.encode("geometry", flat)}
    distance = field.distance(encoded["geometry"])
    density = density_of_distance(distance, field.config.truncation_m, stretch(flat, field.workspace))
    weights = weights_of(density.view(n, count), samples.delta_m)
    outputs = {name: reduced(field, name, points, unit_directions, weights, encoded, top) for name in heads}
    return Composite(weights, samples.middle_m, distance.view(n, count) / field.config.truncation_m, outputs)
