"""Rendering: one set of samples, one weight vector, every head reduced with it.

A ray is sphere-traced through the signed-distance field to its first zero crossing (distances are truncated, so a step
never overshoots a surface by more than the trained band), then a few samples around the crossing get NeuS weights
(Wang et al. 2021): alpha_i = max(0, (S(d_i) - S(d_i+1)) / S(d_i)), S a sigmoid of the distance. Depth, accumulation and
entropy come from the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .composite import composite, reduced
from .model import Field
from .volume import median_depth

SOLID = 0.5
"""Below this accumulation a zero crossing is no surface that depth taught: those swing through the whole band."""


@dataclass(frozen=True)
class Rendering:
    """R rendered rays.

    Attributes:
        depth: [R] z-depth in metres, 0 where nothing was hit. accumulation: [R] sum of weights in [0, 1].
        entropy: [R] of the weights' distribution, nats. outputs: head name -> [R, out_dim].
    """

    depth: torch.Tensor
    accumulation: torch.Tensor
    entropy: torch.Tensor
    outputs: dict[str, torch.Tensor]


def neus_weights(distance: torch.Tensor, sharpness: float) -> torch.Tensor:
    """Weights [R, S] of samples ordered along the ray from their signed distances [R, S].

    Each interval's weight is shared by its two ends, so a crossing midway weighs both alike.
    """
    s = torch.sigmoid(distance * sharpness)
    alpha = ((s[:, :-1] - s[:, 1:]) / s[:, :-1].clamp_min(1e-6)).clamp(0, 1)
    transmittance = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1] + 1e-7], 1), 1)
    interval = alpha * transmittance
    half = 0.5 * interval
    weights = torch.zeros_like(distance)
    weights[:, :-1] += half
    weights[:, 1:] += half
    return weights


def trace(
    field: Field, origins: torch.Tensor, directions: torch.Tensor, near_m: float, far_m: float, max_steps: int = 160
) -> torch.Tensor:
    """z-depth [R] of the first zero crossing of each ray, nan where there is none before `far_m`. No gradients.

    Costs O(active rays) a step; rays leave as they hit.
    """
    traced = field.traced(origins, directions, near_m, far_m, max_steps)
    if traced is not None:
        return traced
    n, device = len(origins), origins.device
    norms = directions.norm(dim=-1)
    truncation = field.config.truncation_m
    z = torch.full((n,), near_m, device=device)
    before, d_before = z.clone(), torch.full((n,), truncation, device=device)
    hit = torch.full((n,), float("nan"), device=device)
    active = torch.arange(n, device=device)
    with torch.no_grad():
        for _ in range(max_steps):
            if not len(active):
                break
            points = origins[active] + directions[active] * z[active, None]
            d = field.distance_at(points)
            crossed = d <= 0
            at = active[crossed]
            share = d_before[at] / (d_before[at] - d[crossed]).clamp_min(1e-9)
            hit[at] = before[at] + (z[at] - before[at]) * share
            go, d = active[~crossed], d[~crossed]
            before[go], d_before[go] = z[go], d
            # a learnt distance is not exact: 0.8 of it, and at least a tenth of the band
            z[go] = z[go] + torch.clamp(0.8 * d, 0.1 * truncation, truncation) / norms[go]
            active = go[z[go] < far_m]
    return hit


def render(
    field: Field,
    origins: torch.Tensor,
    directions: torch.Tensor,
    heads: tuple[str, ...] = (),
    *,
    near_m: float = 0.1,
    far_m: float = 6.0,
    samples: int = 8,
    top: int = 0,
    chunk: int = 65536,
) -> Rendering:
    """Render rays [R, 3] + [R, 3] (directions with camera z = 1, so depths are z-depths). No gradients; chunked.

    Args:
        samples: around the surface that is met. top: see `composite.reduced`.
    """
    parts = [
        _render_chunk(field, origins[i : i + chunk], directions[i : i + chunk], heads, near_m, far_m, samples, top)
        for i in range(0, len(origins), chunk)
    ] or [_render_chunk(field, origins, directions, heads, near_m, far_m, samples, top)]
    return Rendering(
        torch.cat([p.depth for p in parts]),
        torch.cat([p.accumulation for p in parts]),
        torch.cat([p.entropy for p in parts]),
        {name: torch.cat([p.outputs[name] for p in parts]) for name in heads},
    )


@torch.no_grad()
def _render_chunk(
    field: Field, origins: torch.Tensor, directions: torch.Tensor, heads: tuple[str, ...],
    near_m: float, far_m: float, samples: int, top: int,
) -> Rendering:  # fmt: skip
    hit = trace(field, origins, directions, near_m, far_m)
    rows = torch.nonzero(torch.isfinite(hit)).squeeze(1)
    n = len(origins)
    depth, accumulation, entropy = (torch.zeros(n, device=origins.device) for _ in range(3))
    outputs = {name: torch.zeros(n, field.head(name).width, device=origins.device) for name in heads}
    image = Rendering(depth, accumulation, entropy, outputs)
    if not len(rows):
        _render_volume(field, origins, directions, heads, far_m, image, top)
        return image
    o, d = origins[rows], directions[rows]
    truncation = field.config.truncation_m
    spread = torch.linspace(-0.5, 0.5, samples, device=o.device) * truncation
    z = (hit[rows, None] + spread / d.norm(dim=-1, keepdim=True)).clamp_min(near_m)
    points = o[:, None] + d[:, None] * z[..., None]
    encoded = {"geometry": field.encode("geometry", points.view(-1, 3))}
    weights = neus_weights(field.distance(encoded["geometry"]).view(z.shape), sharpness=10.0 / truncation)
    total = weights.sum(1)
    share = weights / total.clamp_min(1e-6)[:, None]
    accumulation[rows] = total
    depth[rows] = torch.where(total > 1e-3, (share * z).sum(1), hit[rows])
    entropy[rows] = -(share * (share + 1e-10).log()).sum(1)
    for name in heads:
        outputs[name][rows] = reduced(field, name, points, d, share, encoded, top)
    _render_volume(field, origins, directions, heads, far_m, image, top)
    return image


def _render_volume(
    field: Field, origins: torch.Tensor, directions: torch.Tensor, heads: tuple[str, ...], far_m: float,
    image: Rendering, top: int,
) -> None:  # fmt: skip
    """Fill the rows of an image in which no surface was met, or nothing solid, with what colour alone has taught.

    Depth is the median's where it is half opaque before `far_m`; what lies beyond has a colour and no depth.
    """
    if field.proposals is None:
        return
    rows = torch.nonzero(image.accumulation < SOLID).squeeze(1)
    if not len(rows):
        return
    norms = directions[rows].norm(dim=-1, keepdim=True)
    o, d = origins[rows], directions[rows] / norms
    out = composite(field, o, d, field.proposals.sample(o, d), heads, top)
    total = out.weights.sum(1)
    z = median_depth(out.weights, out.middle_m) / norms.squeeze(1)
    image.depth[rows] = torch.where((total > 0.5) & (z < far_m), z, 0)
    image.accumulation[rows] = total
    share = out.weights / total.clamp_min(1e-6)[:, None]
    image.entropy[rows] = -(share * (share + 1e-10).log()).sum(1)
    for name in heads:
        image.outputs[name][rows] = out.outputs[name]
