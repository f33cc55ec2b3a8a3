"""Published settings on one mechanism: sampling, networks, losses and schedules as their authors give them.

Each `Published` says which network, which samples and which losses; `Peer` trains any of them from posed images.
Sizes are the published ones; `reduced` divides the rays of a step for machines without a GPU, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from ..config import GridConfig, VolumeConfig
from ..field.hash_grid import HashGrid
from ..field.optimiser import GridAdam
from ..field.proposal import Proposals
from ..field.volume import distortion_loss, interlevel_loss, median_depth, resample, update_period, weights_of
from ..field.workspace import Workspace
from .published_nets import FrequencyNet, HashNet


@dataclass(frozen=True)
class Rays:
    """R training rays.

    Attributes:
        origins, directions: [R, 3], camera z = 1. rgb: [R, 3]. depth_m: [R] z-depth, 0 = unknown.
        label: [R] int64, 0 = void. feature: [R, D] unit. angle: [R] size of what the feature was
            measured on, at a distance of 1 m.
    """

    origins: torch.Tensor
    directions: torch.Tensor
    rgb: torch.Tensor
    depth_m: torch.Tensor
    label: torch.Tensor
    feature: torch.Tensor
    angle: torch.Tensor


@dataclass(frozen=True)
class Published:
    """One system's settings.

    Attributes:
        network: which net, and its sampling: coarse_fine (stratified, then importance samples; two nets) or proposals.
        semantics: cross entropy on composited logits (label), squared error of composited features (feature), Huber
            error of normalised features with a scale (scaled). weight: of that loss.
        detached: whether semantics leave density alone. rays: a step. one_image: all of one random image.
        samples: coarse and fine, or those of the proposals and the field. rate: of Adam, times
            decay^(step / decay_steps).
    """

    name: str
    network: Literal["frequency", "hash"]
    semantics: Literal["label", "feature", "scaled"]
    weight: float
    detached: bool
    rays: int
    one_image: bool
    samples: tuple[int, ...]
    rate: float
    decay: float
    decay_steps: int
    feature_grids: tuple[GridConfig, ...] = ()
    feature_widths: tuple[int, ...] = ()
    feature_frequencies: int = 0
    top: int = 0
    optimiser: Literal["adam", "radam"] = "adam"

    def reduced(self, by: int) -> Published:
        """The same with so many times fewer rays a step."""
        return replace(self, name=f"{self.name}, rays / {by}", rays=max(64, self.rays // by))


BACKBONE = GridConfig(levels=16, features=2, log2_table=19, min_resolution=16, max_resolution=2048)
SEMANTIC_NERF = Published(
    "Semantic-NeRF", "frequency", "label", 0.04, False, 1024, True, (64, 128), 5e-4, 0.1, 250_000
)
F3RM = Published(
    "F3RM", "hash", "feature", 1e-3, False, 4096, False, (256, 96, 48), 1e-2, 0.01, 30_000,
    feature_grids=(GridConfig(levels=12, features=8, log2_table=19, min_resolution=16, max_resolution=128),),
    feature_widths=(64, 64), feature_frequencies=6,
)  # fmt: skip
LERF = Published(
    "LERF", "hash", "scaled", 0.1, True, 4096, False, (256, 96, 48), 1e-2, 0.1, 30_000,
    feature_grids=(
        GridConfig(levels=12, features=8, log2_table=19, min_resolution=16, max_resolution=128),
        GridConfig(levels=12, features=8, log2_table=19, min_resolution=128, max_resolution=512),
    ),
    feature_widths=(256, 256, 256, 256), top=24, optimiser="radam",
)  # fmt: skip
PUBLISHED = (SEMANTIC_NERF, F3RM, LERF)


@dataclass(frozen=True)
class Seen:
    """R rendered rays: colour [R, 3], median z-depth [R], semantics [R, outputs], weights [R, S], edges [R, S + 1]."""

    rgb: torch.Tensor
    depth_m: torch.Tensor
    semantics: torch.Tensor
    weights: torch.Tensor
    edges: torch.Tensor


class Peer:
    """A published system being trained.

    Args:
        outputs: classes (label) or feature length. far_m: of coarse_fine sampling; Semantic-NeRF's rooms end at 10 m.
    """

    NEAR_M = 0.1

    def __init__(self, settings: Published, workspace: Workspace, outputs: int, far_m: float = 10.0, seed: int = 0):
        self.settings, self.workspace, self.far_m = settings, workspace, far_m
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = 0
        self.proposals: Proposals | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if settings.network == "frequency":
                self.nets: list[nn.Module] = [FrequencyNet(outputs), FrequencyNet(outputs)]
            else:
                self.nets = [
                    HashNet(
                        workspace, outputs, BACKBONE, settings.feature_grids, settings.feature_widths,
                        settings.feature_frequencies, settings.semantics == "scaled", seed,
                    )
                ]  # fmt: skip
                first, second, last = settings.samples
                grid = GridConfig(levels=5, features=2, log2_table=17, min_resolution=16, max_resolution=128)
                volume = VolumeConfig(
                    coarse_samples=first, fine_samples=second, samples=last, coarse_grid=grid,
                    fine_grid=replace(grid, max_resolution=256),
                )  # fmt: skip
                self.proposals = Proposals(volume, workspace, seed)
        modules = [*self.nets, *([self.proposals] if self.proposals is not None else [])]
        grids = [m for module in modules for m in module.modules() if isinstance(m, HashGrid)]
        tables = {id(grid.table) for grid in grids}
        dense = [p for module in modules for p in module.parameters() if id(p) not in tables]
        self.grids = [GridAdam(grid) for grid in grids]
        kind: Callable[..., torch.optim.Optimizer]
        kind = torch.optim.RAdam if settings.optimiser == "radam" else torch.optim.Adam
        self.dense = kind(dense, lr=settings.rate)

    def step(self, rays: Rays) -> float:
        """One step; returns the colour's mean squared error."""
        settings = self.settings
        total, error = self._losses(rays)
        rate = settings.rate * settings.decay ** (self.steps / settings.decay_steps)
        self.dense.zero_grad(set_to_none=True)
        total.backward()
        self.dense.param_groups[0]["lr"] = rate
        self.dense.step()
        for grid in self.grids:
            grid.step(rate)
        self.steps += 1
        return error

    @torch.no_grad()
    def render(self, origins: torch.Tensor, directions: torch.Tensor, scale_m: float, chunk: int = 2048) -> Seen:
        """Rays [R, 3] + [R, 3] (camera z = 1), features for things of that size; chunked."""
        parts = []
        for o, d in zip(origins.split(chunk), directions.split(chunk)):
            parts.append(
                self._coarse_fine(o, d, False)[1] if self.proposals is None else self._proposed(o, d, scale_m)[0]
            )
        return Seen(*(torch.cat([getattr(p, name) for p in parts]) for name in Seen.__dataclass_fields__))

    def _losses(self, rays: Rays) -> tuple[torch.Tensor, float]:
        if self.proposals is None:
            both = self._coarse_fine(rays.origins, rays.directions, True)
            colour = [(seen.rgb - rays.rgb).square().mean() for seen in both]
            known = rays.label > 0
            entropy = [
                nn.functional.cross_entropy(seen.semantics[known], rays.label[known] - 1) for seen in both
                if bool(known.any())
            ]  # fmt: skip
            total = torch.stack(colour).sum()
            return total + self.settings.weight * sum(entropy, total.new_zeros(())), float(colour[1].detach())
        assert self.proposals is not None
        seen, proposed = self._proposed(rays.origins, rays.directions, rays.angle, self.steps)
        error = (seen.rgb - rays.rgb).square().mean()
        total = error + 0.002 * distortion_loss(seen.edges, seen.weights)
        if proposed and proposed[0][1].requires_grad:
            total = total + interlevel_loss(seen.edges, seen.weights, proposed)
        return total + self.settings.weight * self._feature_loss(seen.semantics, rays.feature), float(error.detach())

    def _feature_loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.settings.semantics == "feature":
            return (predicted - target).square().mean()
        unit = nn.functional.normalize(predicted, dim=-1)
        return nn.functional.huber_loss(unit, target, delta=1.25, reduction="none").sum(-1).mean()

    def _coarse_fine(self, origins: torch.Tensor, directions: torch.Tensor, training: bool) -> tuple[Seen, Seen]:
        """Stratified samples through one net, importance samples among them through the other (z is the parameter)."""
        n = len(origins)
        coarse, fine = self.settings.samples
        strata = torch.arange(coarse) + (torch.rand(n, coarse, generator=self.generator) if training else 0.5)
        z = (self.NEAR_M + (self.far_m - self.NEAR_M) * strata / coarse).expand(n, -1)
        first = self._at(self.nets[0], origins, directions, z)
        middle = (z[:, 1:] + z[:, :-1]) / 2
        jitter = torch.rand(n, 1, generator=self.generator) if training else None
        more = resample(middle, first.weights[:, 1:-1].detach(), fine - 1, jitter, padding=1e-5)
        return first, self._at(self.nets[1], origins, directions, torch.cat([z, more], 1).sort(1).values)

    def _at(self, net: nn.Module, origins: torch.Tensor, directions: torch.Tensor, z: torch.Tensor) -> Seen:
        norms = directions.norm(dim=-1, keepdim=True)
        points = origins[:, None] + directions[:, None] * z[..., None]
        unit = (directions / norms).repeat_interleave(z.shape[1], 0)
        density, colour, logits = net(points.reshape(-1, 3), unit)
        delta = torch.cat([z.diff(dim=1), torch.full_like(z[:, :1], 1e10)], 1) * norms
        weights = weights_of(density.view(z.shape), delta)
        return Seen(
            (weights[..., None] * colour.view(*z.shape, 3)).sum(1), median_depth(weights.detach(), z),
            (weights[..., None] * logits.view(*z.shape, -1)).sum(1), weights, torch.cat([z, z[:, -1:]], 1),
        )  # fmt: skip

    def _proposed(
        self, origins: torch.Tensor, directions: torch.Tensor, scale: torch.Tensor | float, step: int | None = None
    ) -> tuple[Seen, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Proposals, then the net; scale: metres, or of each ray its angle (the scale grows with distance then)."""
        assert self.proposals is not None
        norms = directions.norm(dim=-1, keepdim=True)
        unit = directions / norms
        learn = step is not None and step % update_period(step, ramp_steps=5000) == 0
        samples = self.proposals.sample(origins, unit, step=step, learn=learn, generator=self.generator)
        n, count = samples.middle_m.shape
        points = (origins[:, None] + unit[:, None] * samples.middle_m[..., None]).reshape(-1, 3)
        size_m = samples.middle_m * scale[:, None] if isinstance(scale, torch.Tensor) else scale + 0 * samples.middle_m
        density, colour, feature = self.nets[0](points, unit.repeat_interleave(count, 0), size_m.reshape(-1))
        weights = weights_of(density.view(n, count), samples.delta_m)
        w = weights.detach() if self.settings.detached else weights
        if self.settings.top:
            kept = w.topk(min(self.settings.top, count), dim=1).indices
            w = torch.zeros_like(w).scatter(1, kept, w.gather(1, kept))
        return Seen(
            (weights[..., None] * colour.view(n, count, 3)).sum(1),
            median_depth(weights.detach(), samples.middle_m) / norms.squeeze(1),
            (w[..., None] * feature.view(n, count, -1)).sum(1), weights, samples.edges,
        ), samples.proposals  # fmt: skip
