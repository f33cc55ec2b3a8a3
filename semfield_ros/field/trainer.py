"""One training step: geometry from depth, heads at the measured surface, features through their window.

Every ray has a measured depth, so nothing needs to be searched: signed distances are regressed at depth-guided samples
(iSDF, Ortiz et al. 2022; Co-SLAM, Wang et al. 2023), and heads are supervised where the sensor saw the surface. A head
therefore never waits for geometry to converge and never bends it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import TrainConfig
from ..memory.replay import NeighbourBatch, PatchBatch, RayBatch, Replay
from .heads import head_loss
from .model import Field
from .optimiser import GridAdam

SMOOTH_FROM_STEP = 200
"""The smoothness prior has its full weight from here on."""


@dataclass(frozen=True)
class StepReport:
    """What one step did: losses by name (0-d tensors, not synchronised) and the samples that were trained."""

    losses: dict[str, torch.Tensor]
    samples: int
    rays: int


def depth_guided(
    batch: RayBatch, free: int, surface: int, truncation_m: float, near_m: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """z-depths of stratified samples: [R, free] between the camera and the band, [R, surface] within +-truncation.

    The band is measured along the ray: truncation / |direction| of z either side.
    """
    n, device = len(batch.depth_m), batch.depth_m.device
    band = truncation_m / batch.norms
    front = (batch.depth_m - band).clamp_min(near_m)
    u = torch.rand(n, free + surface, generator=generator, device=device)
    steps_free = (torch.arange(free, device=device) + u[:, :free]) / max(free, 1)
    # sqrt-free stratification weighted by 1 / t would favour the near part; free space is one constant, uniform does
    z_free = near_m + (front - near_m).clamp_min(0)[:, None] * steps_free
    steps = (torch.arange(surface, device=device) + u[:, free:]) / surface * 2 - 1
    # cubed half-way: denser at the surface, where the zero crossing is decided
    steps = 0.5 * (steps + steps.abs() * steps)
    return z_free, batch.depth_m[:, None] + steps * band[:, None]


class Trainer:
    """Owns a field's optimisers and random state. Not thread-safe: the engine's thread owns it."""

    def __init__(self, field: Field, config: TrainConfig):
        self.field, self.config = field, config
        device = next(field.parameters()).device
        self.generator = torch.Generator(device=device).manual_seed(config.seed)
        self.grids = {name: GridAdam(field.grid(name)) for name in field.grids}
        tables = {id(grid.table) for grid in (field.grid(name) for name in field.grids)}
        dense = [p for p in field.parameters() if id(p) not in tables]
        self.dense = torch.optim.Adam(dense, lr=config.learning_rate, betas=(0.9, 0.99), eps=1e-15, fused=True)
        self.steps = 0

    def step(self, replay: Replay) -> StepReport:
        """One step on random rays and patches of the replay. O(rays x samples), whatever the map's size."""
        config = self.config
        rays = replay.rays(config.rays, config.recent_fraction, self.generator)
        losses, samples = self._ray_losses(rays)
        patches = None
        if "language" in self.field.heads:
            patches = replay.patches(
                config.feature_patches, config.window_rays, config.through_window, config.recent_fraction,
                self.generator, config.window_scale,
            )
        if patches is not None and len(patches.values):
            losses["language"] = self._patch_loss(patches)
            samples += patches.valid.numel()
            if config.smoothness > 0:
                pairs = replay.neighbours(config.smooth_pairs, self.generator)
                # first something to be smooth: at once, everything would mean the same
                ramp = min(1.0, self.steps / SMOOTH_FROM_STEP)
                losses["smooth"] = config.smoothness * ramp * self._smooth_loss(pairs)
                samples += 2 * len(pairs.weight)
        if losses:
            total = torch.stack(list(losses.values())).sum()
            self.dense.zero_grad(set_to_none=True)
            total.backward()
            rate = config.learning_rate
            self.dense.step()
            for optimiser in self.grids.values():
                optimiser.step(rate)
        self.steps += 1
        return StepReport({k: v.detach() for k, v in losses.items()}, samples, len(rays.depth_m))

    def state(self) -> dict[str, torch.Tensor]:
        """Moments of all optimisers, for a checkpoint."""
        state = {f"{name}.{k}": v for name, grid in self.grids.items() for k, v in grid.state().items()}
        for i, p in enumerate(self.dense.param_groups[0]["params"]):
            state |= {f"dense.{i}.{k}": v for k, v in self.dense.state.get(p, {}).items()}
        return state

    def load(self, state: dict[str, torch.Tensor], steps: int) -> None:
        """Resume from `state()` at step `steps`."""
        for name, grid in self.grids.items():
            grid.load({k: state[f"{name}.{k}"] for k in ("mean", "square", "steps")})
        for i, p in enumerate(self.dense.param_groups[0]["params"]):
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"dense.{i}.step" in state:
                self.dense.state[p] = {k: state[f"dense.{i}.{k}"].to(p.device).clone() for k in keys}
        self.steps = steps

    def _ray_losses(self, batch: RayBatch) -> tuple[dict[str, torch.Tensor], int]:
        n = len(batch.depth_m)
        if n == 0:
            return {}, 0
        config, field = self.config, self.field
        truncation = field.config.truncation_m
        z_free, z_surface = depth_guided(
            batch, config.free_samples, config.surface_samples, truncation, 0.05, self.generator
        )
        z = torch.cat([z_free, z_surface], 1)
        points = batch.origins[:, None] + batch.directions[:, None] * z[..., None]
        encoded = field.encode("geometry", points.reshape(-1, 3))
        distance = field.distance(encoded).view(z.shape)
        along = (batch.depth_m[:, None] - z) * batch.norms[:, None]
        # a ray that grazes a surface overstates the distance to it by 1 / cos(incidence)
        target = (along * batch.incidence[:, None]).clamp(-truncation, truncation)
        target[:, : config.free_samples] = truncation
        error = (distance - target).abs() / truncation
        losses = {
            "sdf": 5 * error[:, config.free_samples :].mean(),
            "free": error[:, : config.free_samples].mean() if config.free_samples else distance.new_zeros(()),
        }
        encoded = encoded.view(n, z.shape[1], -1)
        # the sample just before or just behind the surface, in turn, so that colour is not learnt off to one side
        side = torch.arange(n, device=z.device) % min(2, config.surface_samples)
        nearest = encoded[torch.arange(n, device=z.device), config.free_samples + config.surface_samples // 2 - side]
        for name in field.heads:
            head = field.head(name)
            if head.config.grid == "geometry":
                values = head.hidden(nearest, batch.directions)
                losses[name] = head_loss(head.config, head.finish(values), batch.rgb)
        return losses, z.numel()

    def _smooth_loss(self, pairs: NeighbourBatch) -> torch.Tensor:
        """Neighbours on one surface of one colour mean the same: what no window can tell apart is settled by them."""
        head = self.field.head("language")
        n = len(pairs.weight)
        h = head.hidden(self.field.encode(head.config.grid, torch.cat([pairs.a, pairs.b])), None)
        apart = (1 - head.cosine(h[:n], h[n:]) + 1e-3).sqrt()
        return (apart * pairs.weight).sum() / pairs.weight.sum().clamp_min(1e-6)

    def _patch_loss(self, batch: PatchBatch) -> torch.Tensor:
        head = self.field.head("language")
        p, k = batch.valid.shape
        encoded = self.field.encode(head.config.grid, batch.points.reshape(-1, 3))
        hidden = head.hidden(encoded, None).view(p, k, -1)
        weight = batch.valid.float()
        mean = (hidden * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp_min(1)
        # windows that mostly look past the known surface say little about what they do see
        confidence = batch.confidence * weight.mean(1)
        return head_loss(head.config, head.finish(mean), batch.values, confidence)
