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


def composite(
    field: Field, origins: torch.Tensor, unit_directions: torch.Tensor, samples: Samples, heads: tuple[str, ...]
) -> Composite:
    """Render rays [R, 3], [R, 3] in given intervals. Differentiable; only heads that shape geometry do shape it."""
    n, count = samples.middle_m.shape
    points = (origins[:, None] + unit_directions[:, None] * samples.middle_m[..., None]).reshape(-1, 3)
    encoded = {"geometry": field.encode("geometry", points)}
    distance = field.distance(encoded["geometry"])
    density = density_of_distance(distance, field.config.truncation_m, stretch(points, field.workspace))
    weights = weights_of(density.view(n, count), samples.delta_m)
    outputs = {}
    for name in heads:
        head = field.head(name)
        grid = head.config.grid
        if grid not in encoded:
            encoded[grid] = field.encode(grid, points)
        shapes = head.config.shapes_geometry
        at = encoded[grid] if shapes or grid != "geometry" else encoded[grid].detach()
        per_sample = head.hidden(at, unit_directions.repeat_interleave(count, 0)).view(n, count, -1)
        w = weights if shapes else weights.detach()
        outputs[name] = head.finish((per_sample * w[..., None]).sum(1))
    return Composite(weights, samples.middle_m, distance.view(n, count) / field.config.truncation_m, outputs)
