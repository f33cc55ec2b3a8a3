"""One training step: geometry from depth, heads at the measured surface, features through their window.

Every ray has a measured depth, so nothing needs to be searched: signed distances are regressed at depth-guided samples
(iSDF, Ortiz et al. 2022; Co-SLAM, Wang et al. 2023), and heads are supervised where the sensor saw the surface. A head
therefore never waits for geometry to converge and never bends it.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from ..config import TrainConfig
from ..memory.replay import NeighbourBatch, PatchBatch, RayBatch, Replay
from .hash_grid import choose_backend
from .heads import head_loss, learns_colour
from .model import Field
from .objectives import Objective
from .optimiser import GridAdam, widen_moments
from .photometric import Photometric
from .window import WindowFit, patch_loss, patch_shape

try:
    from . import fused_cpu as fused
except (ImportError, RuntimeError):  # an accelerator, not a need; RuntimeError: nowhere to keep its cache
    fused = None  # type: ignore[assignment]

NEAR_M = 0.05
"""Rays start here: nothing nearer to a camera is mapped."""
LAST_RATE = 0.01
"""Share of the learning rate that is left after `train.decay_steps`: nerfacto's 1e-4 of 1e-2."""
SMOOTH_FROM_STEP = 300
"""The smoothness prior has its full weight from here on."""
PIXEL_SMOOTHNESS = 0.2
"""Its share where single pixels are measured (masks, labels): there is no window whose blur it has to undo."""


def warm_up() -> None:
    """Compile the CPU kernels (seconds the first time on a machine, then from numba's cache); nothing without numba."""
    if fused is not None:
        fused.compile_kernels()


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

    def __init__(self, field: Field, config: TrainConfig, objectives: tuple[Objective, ...] = ()):
        self.field, self.config = field, config
        self.objectives: dict[str, Objective] = {}
        device = next(field.parameters()).device
        self.generator = torch.Generator(device=device).manual_seed(config.seed)
        self.grids = {name: GridAdam(field.grid(name)) for name in field.grids}
        tables = {id(grid.table) for grid in (field.grid(name) for name in field.grids)}
        dense = [p for p in field.parameters() if id(p) not in tables]
        self.dense = torch.optim.Adam(dense, lr=config.learning_rate, betas=(0.9, 0.99), eps=1e-15, fused=True)
        self.window = WindowFit(config.window_scale, config.seed)
        self.steps = 0
        self.photometric: Photometric | None = None
        self.pursue(objectives)

    def pursue(self, objectives: tuple[Objective, ...]) -> None:
        """Train these from now on besides colour, shape and language; what is pursued already goes on as it was."""
        self.objectives |= {o.name: o for o in objectives if o.name not in self.objectives}
        known = {id(p) for group in self.dense.param_groups for p in group["params"]}
        known |= {id(self.field.grid(name).table) for name in self.field.grids}
        proposals = self.field.proposals
        known |= {id(p) for p in proposals.parameters()} if proposals is not None else set()
        fresh: list[torch.Tensor] = [p for p in self.field.parameters() if id(p) not in known]
        fresh += [p for o in self.objectives.values() for p in o.parameters() if id(p) not in known]
        if fresh:
            self.dense.add_param_group({"params": fresh})

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        config = self.config
        if not config.decay_steps:
            return config.learning_rate
        return config.learning_rate * LAST_RATE ** min(1.0, self.steps / config.decay_steps)

    def _dense_parameters(self) -> dict[str, torch.Tensor]:
        """What `dense` moves, by a name that a checkpoint can tell it by."""
        named: dict[str, torch.Tensor] = dict(self.field.named_parameters())
        for o in self.objectives.values():
            named |= {f"objective.{o.name}.{i}": p for i, p in enumerate(o.parameters())}
        mine = {id(p) for group in self.dense.param_groups for p in group["params"]}
        return {name: p for name, p in named.items() if id(p) in mine}

    def step(self, replay: Replay) -> StepReport:
        """One step on random rays and patches of the replay. O(rays x samples), whatever the map's size."""
        with fused.undisturbed() if self._fuses("geometry") else nullcontext():
            return self._step(replay)

    def _step(self, replay: Replay) -> StepReport:
        config = self.config
        rays = replay.rays(config.rays, config.recent_fraction, self.generator)
        losses, samples = self._ray_losses(rays)
        samples += self._depthless(replay, losses)
        more, count = self._language_losses(replay)
        losses |= more
        samples += count
        for objective in self.objectives.values():
            more, count = objective.losses(self.field, replay, self.steps, self.generator)
            losses |= more
            samples += count
        if losses:
            total = torch.stack(list(losses.values())).sum()
            self.dense.zero_grad(set_to_none=True)
            total.backward()
            rate = self.rate
            for group in self.dense.param_groups:
                group["lr"] = rate
            widen_moments(self.dense)
            self.dense.step()
            for optimiser in self.grids.values():
                optimiser.step(rate)
            if "photometric" in losses and self.photometric is not None:
                self.photometric.step(rate)
        self.steps += 1
        return StepReport({k: v.detach() for k, v in losses.items()}, samples, len(rays.depth_m))

    def state(self) -> dict[str, torch.Tensor]:
        """Moments of all optimisers, for a checkpoint."""
        state = {f"{name}.{k}": v for name, grid in self.grids.items() for k, v in grid.state().items()}
        for name, p in self._dense_parameters().items():
            state |= {f"dense.{name}.{k}": v for k, v in self.dense.state.get(p, {}).items()}
        if self.photometric is not None:
            state |= {f"photometric.{k}": v for k, v in self.photometric.state().items()}
        state |= {f"window.{k}": v for k, v in self.window.state().items()}
        for name, objective in self.objectives.items():
            state |= {f"objective.{name}.{k}": v for k, v in objective.state().items()}
        return state

    def load(self, state: dict[str, torch.Tensor], steps: int) -> None:
        """Resume from `state()` at step `steps`."""
        for name, grid in self.grids.items():
            grid.load({k: state[f"{name}.{k}"] for k in ("mean", "square", "steps")})
        for i, (name, p) in enumerate(self._dense_parameters().items()):
            # by number in maps saved before there were further heads
            saved = f"dense.{name}" if f"dense.{name}.step" in state else f"dense.{i}"
            if f"{saved}.step" in state:
                moments = {k: state[f"{saved}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
                self.dense.state[p] = {k: v.to(p.device).clone() for k, v in moments.items()}
        mine = {k.removeprefix("photometric."): v for k, v in state.items() if k.startswith("photometric.")}
        if mine:
            self.without_depth().load(mine)
        for name, objective in self.objectives.items():
            prefix = f"objective.{name}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if own:
                objective.load(own)
        if "window.size" in state:
            self.window.load({k.removeprefix("window."): v for k, v in state.items() if k.startswith("window.")})
        self.steps = steps

    def without_depth(self) -> Photometric:
        """What learns from rays without depth, made when there are any."""
        if self.photometric is None:
            self.photometric = Photometric(self.field, self.config)
            if self.steps == 0:
                self.photometric.clear_space()
        return self.photometric

    def _depthless(self, replay: Replay, losses: dict[str, torch.Tensor]) -> int:
        """Add the losses of rays without depth; returns the samples they took."""
        if self.steps % self.config.depthless_period or "rgb" not in self.field.heads:
            return 0
        batch = replay.rays_without_depth(self.config.depthless_rays, self.generator)
        if not len(batch.rgb):
            return 0
        more, samples = self.without_depth().losses(batch, self.generator)
        losses |= more
        return samples

    def _ray_losses(self, batch: RayBatch) -> tuple[dict[str, torch.Tensor], int]:
        n = len(batch.depth_m)
        if n == 0:
            return {}, 0
        field, free, samples = self.field, self.config.free_samples, self.config.surface_samples
        # the sample just before or just behind the surface, in turn, so that colour is not learnt off to one side
        ray = torch.arange(n, device=batch.depth_m.device)
        nearest = ray * (free + samples) + free + samples // 2 - ray % min(2, samples)
        heads = [head for head in map(field.head, field.heads) if learns_colour(head.config)]
        if self._fuses("geometry") and fused.fuses_rays(field):
            encoded, target = fused.guided(field, batch, free, samples, NEAR_M, self.generator)
            head = heads[0] if heads else None
            values = fused.ray_losses(field, head, encoded, target, free, nearest, batch.directions, batch.rgb)
            return dict(zip(("sdf", "free", *(h.config.name for h in heads)), values)), target.numel()
        truncation = field.config.truncation_m
        z = torch.cat(depth_guided(batch, free, samples, truncation, NEAR_M, self.generator), 1)
        points = batch.origins[:, None] + batch.directions[:, None] * z[..., None]
        encoded = field.encode("geometry", points.reshape(-1, 3))
        along = (batch.depth_m[:, None] - z) * batch.norms[:, None]
        # a ray that grazes a surface overstates the distance to it by 1 / cos(incidence)
        target = (along * (batch.incidence[:, None] / truncation)).clamp(-1, 1)
        target[:, :free] = 1
        error = (field.distance(encoded).view(z.shape) / truncation - target).abs()
        losses = {"sdf": 5 * error[:, free:].mean(), "free": error[:, :free].mean() if free else error.new_zeros(())}
        for head in heads:
            hidden = head.hidden(encoded[nearest], batch.directions, images=batch.slots)
            losses[head.config.name] = head_loss(head.config, head.finish(hidden), batch.rgb)
        return losses, z.numel()

    def _language_losses(self, replay: Replay) -> tuple[dict[str, torch.Tensor], int]:
        """Features through their windows and, with them, the prior that neighbours on one surface mean the same."""
        config = self.config
        if "language" not in self.field.heads:
            return {}, 0
        window = replay.language.window
        fit = config.fit_window and config.through_window and window is not None and window.pitch_px > 0
        if fit and self.window.due(self.steps):
            self.window.update(self.field, replay, self.steps)
        shape = patch_shape(replay, config.feature_patches, config.window_rays, config.through_window)
        patches = replay.patches(
            *shape, config.through_window, config.recent_fraction, self.generator,
            self.window.scale, held_out=False if fit else None,
        )  # fmt: skip
        if patches is None or not len(patches.values):
            return {}, 0
        losses, samples = {}, patches.valid.numel()
        pairs = replay.neighbours(config.smooth_pairs, self.generator) if config.smoothness > 0 else None
        means, smooth = self._composited(patches, pairs)
        losses["language"] = patch_loss(self.field.head("language"), patches, means)
        if pairs is not None and smooth is not None:
            # first something to be smooth: at once, everything would mean the same
            ramp = min(1.0, self.steps / SMOOTH_FROM_STEP)
            weight = config.smoothness * (1.0 if window is None or window.pitch_px > 0 else PIXEL_SMOOTHNESS)
            losses["smooth"] = weight * ramp * smooth
            samples += 2 * len(pairs.weight)
        return losses, samples

    def _composited(
        self, patches: PatchBatch, pairs: NeighbourBatch | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Means [P, *] over windows of what the language head composites, and the loss of neighbours, where asked for.

        Neighbours on one surface of one colour mean the same: what no window can tell apart is settled by them."""
        head = self.field.head("language")
        p, k = patches.valid.shape
        valid = patches.valid.float()
        share = valid / valid.sum(1, keepdim=True).clamp_min(1)
        points = patches.points.reshape(-1, 3)
        if pairs is not None:
            points = torch.cat([points, pairs.a, pairs.b])
        if self._fuses(head.config.grid) and fused.fuses_language(head):
            encoded = fused.encode(self.field, head.config.grid, points)
            return fused.language(head, encoded, share, pairs.weight if pairs is not None else None)
        hidden = self.field.hidden("language", points)
        means = (hidden[: p * k].view(p, k, -1) * share[..., None]).sum(1)
        if pairs is None:
            return means, None
        a, b = hidden[p * k :].chunk(2) if len(pairs.weight) else (hidden[:0], hidden[:0])
        apart = (1 - head.cosine(a, b) + 1e-3).sqrt()
        return means, (apart * pairs.weight).sum() / pairs.weight.sum().clamp_min(1e-6)

    def _fuses(self, grid: str) -> bool:
        """Whether the fused kernels compute beside a grid's: on CPUs, where its kernels are numba's."""
        backend, device_type = self.field.grid(grid).backend, self.field.grid(grid).table.device.type
        return fused is not None and choose_backend(backend, device_type) == "numba"
