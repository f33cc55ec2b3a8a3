"""Volume rendering: where to sample a ray whose depth nobody measured, and what the samples weigh. Pure functions.

A sample is an interval between two edges. Edges live on [0, 1], the ray's own coordinate u: linear in distance up to
the border of the workspace and in its inverse beyond (`spacing`), so that few of them reach the horizon. Everything
here is nerfacto's (Tancik et al. 2023; mip-NeRF 360, Barron et al. 2022) but the density, which is read off the signed
distance: the field has one shape, whether depth or colour taught it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..memory.draws import on_device
from .workspace import Workspace

PDF_PADDING = 0.01
"""Added to every weight before resampling, so that no interval is ever given up."""
SHARPNESS = 10.0
"""How many e-folds the density falls by from a surface to the edge of the truncation band."""
HORIZON = 1.0
"""How far into the band all space is taken to be at the horizon: what nobody has measured is far, not fog at hand."""


def spacing(x: torch.Tensor) -> torch.Tensor:
    """s(x) = x/2 for x < 1, 1 - 1/(2x) beyond: distances in half workspace edges to [0, 1)."""
    return torch.where(x < 1, x / 2, 1 - 1 / (2 * x.clamp_min(1)))


def unspacing(s: torch.Tensor) -> torch.Tensor:
    """The distance whose `spacing` is s."""
    return torch.where(s < 0.5, 2 * s, 1 / (2 * (1 - s).clamp_min(1e-9)))


@dataclass(frozen=True)
class Span:
    """The part of a ray that is sampled: near and far in half workspace edges, of which one is `unit_m` metres."""

    near: float
    far: float
    unit_m: float

    def distance_m(self, u: torch.Tensor) -> torch.Tensor:
        """Metres along the ray of ray coordinates u in [0, 1]."""
        low, high = spacing(on_device((self.near, self.far), u.device, u.dtype))
        return unspacing(low + (high - low) * u) * self.unit_m


def uniform_edges(rays: int, bins: int, jitter: torch.Tensor | None, device: torch.device | str) -> torch.Tensor:
    """Edges [R, bins + 1] of equal intervals of u; inner ones move by up to half an interval with jitter [R, bins + 1]
    in [0, 1)."""
    edges = torch.linspace(0, 1, bins + 1, device=device).expand(rays, -1)
    if jitter is None:
        return edges
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    low = torch.cat([edges[:, :1], middle], 1)
    high = torch.cat([middle, edges[:, -1:]], 1)
    return low + (high - low) * jitter


def resample(
    edges: torch.Tensor, weights: torch.Tensor, bins: int, jitter: torch.Tensor | None, padding: float = PDF_PADDING
) -> torch.Tensor:
    """New edges [R, bins + 1], sorted, where the weights are: the inverse of their cumulative distribution.

    Args:
        edges: [R, B + 1]. weights: [R, B] >= 0; `padding` is added to each. jitter: [R, 1] in [0, 1), one of each ray;
            None takes the middle.
    """
    pdf = weights + padding
    pdf = pdf / pdf.sum(1, keepdim=True)
    cdf = torch.cat([torch.zeros_like(pdf[:, :1]), pdf.cumsum(1)], 1).clamp_max(1)
    count = bins + 1
    offset = 0.5 if jitter is None else jitter
    u = (torch.arange(count, device=edges.device, dtype=edges.dtype) + offset) / count
    u = u.expand(len(edges), -1).contiguous()
    at = torch.searchsorted(cdf, u, right=True).clamp(1, weights.shape[1])
    low, high = cdf.gather(1, at - 1), cdf.gather(1, at)
    share = ((u - low) / (high - low).clamp_min(1e-10)).clamp(0, 1)
    left, right = edges.gather(1, at - 1), edges.gather(1, at)
    return left + (right - left) * share


def anneal_exponent(step: int, steps: int = 1000, slope: float = 10.0) -> float:
    """Weights are raised to b x / ((b - 1) x + 1), x = step / steps up to 1: at first, everywhere is worth a look."""
    x = min(1.0, max(0.0, step / steps))
    return slope * x / ((slope - 1) * x + 1)


def update_period(step: int, last: int = 5, ramp_steps: int = 1000) -> int:
    """Steps from one update of the proposals to the next: from 1 at first to `last`."""
    return 1 + int(min(1.0, step / ramp_steps) * (last - 1))


def weights_of(density: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """w_i = (1 - exp(-sigma_i delta_i)) exp(-sum_{j<i} sigma_j delta_j) of [R, S] densities (1/m) and lengths (m).

    What is not a number weighs 0.
    """
    thickness = density * delta
    before = torch.cat([torch.zeros_like(thickness[:, :1]), thickness[:, :-1]], 1).cumsum(1)
    return ((1 - torch.exp(-thickness)) * torch.exp(-before)).nan_to_num(0.0)


def median_depth(weights: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The first t [R] at which the accumulated weight is a half or more; the last one where it never is."""
    at = (weights.cumsum(1) < 0.5).sum(1, keepdim=True).clamp_max(t.shape[1] - 1)
    return t.gather(1, at).squeeze(1)


def expected_depth(weights: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """sum w t / (sum w + 1e-10), [R], kept within the samples."""
    mean = (weights * t).sum(1) / (weights.sum(1) + 1e-10)
    return torch.minimum(torch.maximum(mean, t[:, 0]), t[:, -1])


def outer_weights(edges: torch.Tensor, proposal_edges: torch.Tensor, proposal_weights: torch.Tensor) -> torch.Tensor:
    """What the proposal allows for each interval [R, S] of `edges` [R, S + 1]: all it has in bins that overlap it."""
    cumulative = torch.cat([torch.zeros_like(proposal_weights[:, :1]), proposal_weights.cumsum(1)], 1)
    bins = proposal_weights.shape[1]
    grid = proposal_edges.contiguous()
    first = (torch.searchsorted(grid, edges[:, :-1].contiguous(), right=True) - 1).clamp(0, bins)
    last = torch.searchsorted(grid, edges[:, 1:].contiguous()).clamp(0, bins)
    return cumulative.gather(1, torch.maximum(first, last)) - cumulative.gather(1, first)


def interlevel_loss(
    edges: torch.Tensor, weights: torch.Tensor, proposals: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Sum over proposals (edges, weights) of mean[max(0, w - w_outer)^2 / (w + 1e-7)]; w is the target, detached."""
    w, edges = weights.detach(), edges.detach()
    total = w.new_zeros(())
    for proposal_edges, proposal_weights in proposals:
        short = (w - outer_weights(edges, proposal_edges.detach(), proposal_weights)).clamp_min(0)
        total = total + (short.square() / (w + 1e-7)).mean()
    return total


def distortion_loss(edges: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over rays of sum_ij w_i w_j |m_i - m_j| + 1/3 sum w^2 du, m the middles of edges [R, S + 1]. O(S)."""
    middle, width = (edges[:, 1:] + edges[:, :-1]) / 2, edges[:, 1:] - edges[:, :-1]
    mass = weights.cumsum(1) - weights
    moment = (weights * middle).cumsum(1) - weights * middle
    pairs = 2 * (weights * (middle * mass - moment)).sum(1)
    return (pairs + (weights.square() * width).sum(1) / 3).mean()


def stretch(points_world: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    """Metres per metre of workspace [...] at points [..., 3]: 1 inside, |x|^2 outside, where contraction squeezes."""
    centre = on_device(workspace.centre_m, points_world.device, points_world.dtype)
    x = (points_world - centre) * (2.0 / workspace.extent_m)
    return x.abs().amax(-1).clamp_min(1).square()


def density_of_distance(distance: torch.Tensor, truncation_m: float, stretched: torch.Tensor) -> torch.Tensor:
    """Density, 1/m, of signed distances (positive in front): (k / tau) sigmoid(-k d / tau), tau = truncation x stretch.

    The transmittance down to a plane is then sigmoid(k d / tau): a half on the surface, so the median depth is where
    the distance crosses zero (NeuS, Wang et al. 2021, for a density, VolSDF's way, Yariv et al. 2021). Far from a
    surface it falls like an exponential, which is what gradients need to open up fog. `distance` is in units of an
    unstretched truncation, as the field gives it: the band widens with the space it must cover. Outside the workspace
    distances are HORIZON (1 - 1/|x|) of the band less: space that nothing is known of is clear at hand and ends in
    the horizon, and only parallax brings a surface nearer.
    """
    raw = distance / truncation_m - HORIZON * (1 - stretched.rsqrt())
    density: torch.Tensor = torch.sigmoid(-SHARPNESS * raw) * (SHARPNESS / truncation_m) / stretched
    return density
