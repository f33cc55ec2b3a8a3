"""Poses refined while mapping: a correction in SO(3) x R^3 of each keyframe, learnt against the field.

With a keyframe's reported pose (R, t) and its correction (w, v) the refined pose is (R exp[w], t + R v), as nerfstudio
has it (Tancik et al. 2023). What moves it is what the field says of the surface that the keyframe measured: its signed
distance there should be 0, its colour the pixel's. Hash grids are not differentiable in the position here, so both are
linearised at the measured points by finite differences; the gradient of the correction is the same to first order.

The refined pose is written to the replay, so that everything else that is learnt from the keyframe follows; a pose that
somebody else writes there (a loop closure, another keyframe in the slot) is a new reported one. Keyframes and field fit
as well anywhere else together, so what all corrections have in common is taken back, and penalties hold the rest: the
map does not drift in its frame.
"""

from __future__ import annotations

import torch
from torch.nn.functional import smooth_l1_loss

from ..config import HeadsConfig
from ..memory.replay import Replay
from .heads import HeadConfig
from .model import Field
from .normals import STEP, TETRAHEDRON

NAME = "poses"
KEYFRAMES, RAYS = 8, 96
"""Keyframes a step, and rays of each."""
FIRST_RATE, LAST_RATE, DECAY_STEPS = 1e-3, 1e-4, 400
"""Adam's rate (metres, radians), exponentially from the first to the last over a keyframe's own steps."""
PENALTY_M, PENALTY_RAD = 1e-2, 1e-3
"""Of the lengths of v and w."""
START_STEP = 150
"""A field that has just begun says nothing about poses."""
BETA, WEIGHT = 0.2, 0.4
"""Errors are squared below this many truncations; the weight says how much evidence moves a pose against the
penalties."""
BETAS, EPSILON = (0.9, 0.99), 1e-3
TENSORS = ("reported", "refined", "correction", "mean", "square", "steps")


def skew(w: torch.Tensor) -> torch.Tensor:
    """[..., 3] to the matrices [..., 3, 3] of the cross product with them."""
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def corrected(T: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    """Poses [N, 4, 4] times (exp[w], v) of corrections [N, 6] = (v, w): in the camera's own frame. Differentiable."""
    move = torch.eye(4, dtype=T.dtype, device=T.device).repeat(len(T), 1, 1)
    move[:, :3, 3] = correction[:, :3]
    move[:, :3, :3] = torch.linalg.matrix_exp(skew(correction[:, 3:]))
    return T @ move


def heads(config: HeadsConfig) -> tuple[HeadConfig, ...]:
    """None: poses are no part of the field."""
    return ()


def objectives(config: HeadsConfig, field: Field) -> tuple[PoseRefinement, ...]:
    """Where it is asked for."""
    return (PoseRefinement(),) if config.refine_poses else ()


class PoseRefinement:
    """Corrections of all keyframe slots, moved by an Adam of their own (only the slots that were looked at)."""

    name = NAME

    def __init__(self) -> None:
        self.reported = self.refined = torch.empty(0, 4, 4)
        self.correction = self.mean = self.square = torch.empty(0, 6)
        self.steps = torch.empty(0, dtype=torch.int64)

    def parameters(self) -> tuple[torch.Tensor, ...]:
        """None for the field's optimiser: these have rates of their own."""
        return ()

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint; empty before the first step."""
        return {name: getattr(self, name) for name in TENSORS} if len(self.steps) else {}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a `state()`."""
        for name in TENSORS:
            setattr(self, name, state[name].clone())

    def losses(
        self, field: Field, replay: Replay, step: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Move some keyframes' corrections; the loss has no gradient for anything else."""
        if step < START_STEP or len(replay.order) < 2:
            return {}, 0
        self._follow(replay)
        order = torch.tensor(replay.order, device=replay.device)
        slots = order[torch.randperm(len(order), generator=generator, device=replay.device)[:KEYFRAMES]]
        per_ray = slots.repeat_interleave(RAYS)
        record = torch.randint(replay.records, (len(per_ray),), generator=generator, device=replay.device)
        depth = replay.depth[per_ray, record]
        per_ray, record, depth = (x[depth > 0] for x in (per_ray, record, depth))
        if not len(depth):
            return {}, 0
        origins, directions, _ = replay.world_rays(per_ray, replay.pixel[per_ray, record])
        points = origins + directions * depth[:, None]
        with torch.no_grad():
            distance, colour = linearised(field, points, directions)
        local = ((points - origins)[:, None] @ replay.pose[per_ray, :3, :3]).squeeze(1)
        with torch.enable_grad():
            correction = self.correction[slots].requires_grad_(True)
            poses = corrected(self.reported[slots], correction)
            which = torch.searchsorted(slots.sort().values, per_ray)
            pose = poses[slots.argsort()[which]]
            moved = (pose[:, :3, :3] @ local[..., None]).squeeze(-1) + pose[:, :3, 3] - points
            residual = distance[0] + (distance[1] * moved).sum(-1)
            error = smooth_l1_loss(residual, torch.zeros_like(residual), reduction="none", beta=BETA)
            # where the field says it is far from any surface, it says nothing about the pose
            near = (distance[0].abs() < 0.9).float()
            seen = replay.rgb[per_ray, record].float() / 255
            tint = (colour[0] + (colour[1] * moved[:, None]).sum(-1) - seen).square().sum(-1)
            # sums over a keyframe's rays, as each keyframe is a problem of its own
            fit = WEIGHT * (near * (error + tint)).sum() / RAYS
            size = PENALTY_M * correction[:, :3].norm(dim=-1) + PENALTY_RAD * correction[:, 3:].norm(dim=-1)
            (gradient,) = torch.autograd.grad(fit + size.sum(), correction)
        self._adam(slots, gradient.nan_to_num(0.0))
        self._stay(order)
        self.refined[order] = corrected(self.reported[order], self.correction[order])
        replay.pose[order] = self.refined[order]
        return {NAME: fit.detach() / len(slots)}, 4 * len(points)

    def _stay(self, slots: torch.Tensor) -> None:
        """Take back what all keyframes have in common: most were reported where they are."""
        rotation = self.reported[slots, :3, :3]
        for part in (slice(0, 3), slice(3, 6)):
            world = (rotation @ self.correction[slots, part, None]).squeeze(-1)
            shared = world.median(0).values
            self.correction[slots, part] = ((world - shared)[:, None] @ rotation).squeeze(1)

    def _follow(self, replay: Replay) -> None:
        """Make room, and take poses that somebody else wrote as newly reported."""
        if len(self.steps) != replay.capacity or self.reported.device != replay.device:
            self.reported, self.refined = replay.pose.clone(), replay.pose.clone()
            self.correction = torch.zeros(replay.capacity, 6, device=replay.device)
            self.mean, self.square = torch.zeros_like(self.correction), torch.zeros_like(self.correction)
            self.steps = torch.zeros(replay.capacity, dtype=torch.int64, device=replay.device)
            return
        changed = (replay.pose != self.refined).flatten(1).any(1)
        self.reported = torch.where(changed[:, None, None], replay.pose, self.reported)
        self.refined = replay.pose.clone()
        for name in ("correction", "mean", "square"):
            setattr(self, name, torch.where(changed[:, None], 0, getattr(self, name)))
        self.steps = torch.where(changed, 0, self.steps)

    def _adam(self, slots: torch.Tensor, gradient: torch.Tensor) -> None:
        self.steps[slots] += 1
        steps = self.steps[slots][:, None].float()
        mean = self.mean[slots] = BETAS[0] * self.mean[slots] + (1 - BETAS[0]) * gradient
        square = self.square[slots] = BETAS[1] * self.square[slots] + (1 - BETAS[1]) * gradient.square()
        rate = FIRST_RATE * (LAST_RATE / FIRST_RATE) ** (steps / DECAY_STEPS).clamp_max(1)
        unbiased = mean / (1 - BETAS[0] ** steps), square / (1 - BETAS[1] ** steps)
        self.correction[slots] -= rate * unbiased[0] / (unbiased[1].sqrt() + EPSILON)


def linearised(
    field: Field, points: torch.Tensor, directions: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Signed distance in truncations [N] and colour [N, 3] at points [N, 3], and their slopes [N, 3], [N, 3, 3] per
    metre, by four evaluations around each point."""
    step_m = STEP * field.config.truncation_m
    corners = points.new_tensor(TETRAHEDRON)
    around = (points[:, None] + step_m * corners).reshape(-1, 3)
    encoded = field.encode("geometry", around)
    distance = field.distance(encoded).view(-1, 4) / field.config.truncation_m
    head = field.head("rgb")
    colour = head.finish(head.hidden(encoded, directions.repeat_interleave(4, 0))).view(-1, 4, 3)
    slopes = distance @ corners / (4 * step_m), colour.transpose(1, 2) @ corners / (4 * step_m)
    return (distance.mean(1), slopes[0]), (colour.mean(1), slopes[1])
