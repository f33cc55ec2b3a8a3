"""Co-SLAM's mapping (Wang et al. 2023) on this field: its samples, its losses and their weights, its rates.

2048 rays, 32 stratified samples and 11 within 10 cm of the measured depth, colour 5, depth .1, signed distance 1000,
free space 10, truncation 10 cm. It has no semantics. In its own program 10 iterations follow every fifth frame (21 with
tracking); here frames are there from the start and iterations follow each other.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..config import FieldConfig
from ..field.model import Field
from ..field.optimiser import GridAdam
from ..field.workspace import Workspace
from ..mapping import colour_head
from .published import Rays, Seen

RAYS, STRATIFIED, NEAR_SURFACE, TRUNCATION_M = 2048, 32, 11, 0.1
COLOUR, DEPTH, SIGNED, FREE = 5.0, 0.1, 1000.0, 10.0


class CoSlam:
    """The field with a colour head, trained by Co-SLAM's losses."""

    def __init__(self, config: FieldConfig, workspace: Workspace, far_m: float, seed: int = 0):
        self.field = Field(replace(config, truncation_m=TRUNCATION_M, seed=seed), workspace, (colour_head(),))
        self.far_m, self.steps = far_m, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.grid = GridAdam(self.field.grid("geometry"))
        dense = [*self.field.sdf.parameters(), *self.field.head("rgb").parameters()]
        self.dense = torch.optim.Adam(dense, lr=1e-2, betas=(0.9, 0.99), eps=1e-15, fused=True)

    def step(self, rays: Rays) -> float:
        """One iteration; returns the colour's mean squared error."""
        known = rays.depth_m > 0
        depth = rays.depth_m[known, None]
        z = self._samples(rays.origins[known], depth)
        seen, signed = self._rendered(rays.origins[known], rays.directions[known], z)
        colour = (seen.rgb - rays.rgb[known]).square().mean()
        ahead = depth - z
        free, near = ahead > TRUNCATION_M, ahead.abs() <= TRUNCATION_M
        # both halves count by their share of all samples, as published
        share = near.sum() / (free.sum() + near.sum()).clamp_min(1)
        free_loss = ((signed - 1).square() * free).mean() * share
        # in metres: 1000 is a weight for errors of centimetres
        signed_loss = ((signed * TRUNCATION_M - ahead).square() * near).mean() * (1 - share)
        total = COLOUR * colour + DEPTH * (seen.depth_m - depth.squeeze(1)).square().mean()
        total = total + SIGNED * signed_loss + FREE * free_loss
        self.dense.zero_grad(set_to_none=True)
        total.backward()
        self.dense.step()
        self.grid.step(1e-2)
        self.steps += 1
        return float(colour.detach())

    @torch.no_grad()
    def render(self, origins: torch.Tensor, directions: torch.Tensor, scale_m: float, chunk: int = 4096) -> Seen:
        """Rays without their depth: 96 stratified samples, then 32 where the weights are."""
        parts = []
        for o, d in zip(origins.split(chunk), directions.split(chunk)):
            z = (torch.linspace(0.1, self.far_m, 96)).expand(len(o), -1)
            coarse, _ = self._rendered(o, d, z)
            spread = torch.linspace(-1, 1, 32) * TRUNCATION_M
            peak = z.gather(1, coarse.weights.argmax(1, keepdim=True))
            parts.append(self._rendered(o, d, torch.cat([z, peak + spread], 1).sort(1).values)[0])
        return Seen(*(torch.cat([getattr(p, name) for p in parts]) for name in Seen.__dataclass_fields__))

    def _samples(self, origins: torch.Tensor, depth_m: torch.Tensor) -> torch.Tensor:
        n = len(origins)
        draw = torch.rand(n, STRATIFIED + NEAR_SURFACE, generator=self.generator)
        stratified = 0.1 + (self.far_m - 0.1) * (torch.arange(STRATIFIED) + draw[:, :STRATIFIED]) / STRATIFIED
        near = (torch.arange(NEAR_SURFACE) + draw[:, STRATIFIED:]) / NEAR_SURFACE * 2 - 1
        return torch.cat([stratified, depth_m + near * TRUNCATION_M], 1).sort(1).values

    def _rendered(
        self, origins: torch.Tensor, directions: torch.Tensor, z: torch.Tensor
    ) -> tuple[Seen, torch.Tensor]:
        """Weights sigmoid(s / tr) sigmoid(-s / tr) up to the first crossing's far side, normalised."""
        n, count = z.shape
        points = origins[:, None] + directions[:, None] * z[..., None]
        encoded = self.field.encode("geometry", points.reshape(-1, 3))
        signed = (self.field.distance(encoded) / TRUNCATION_M).view(n, count)
        weights = torch.sigmoid(signed * 10) * torch.sigmoid(-signed * 10)
        crossing = (signed[:, :-1] > 0) & (signed[:, 1:] <= 0)
        first = torch.where(crossing.any(1), crossing.int().argmax(1), count - 1)
        weights = weights * (z < z.gather(1, first[:, None]) + TRUNCATION_M)
        weights = weights / (weights.sum(1, keepdim=True) + 1e-8)
        head = self.field.head("rgb")
        colour = head.hidden(encoded, directions.repeat_interleave(count, 0)).view(n, count, 3)
        rgb, depth = (weights[..., None] * colour).sum(1), (weights * z).sum(1)
        return Seen(rgb, depth, rgb[:, :0], weights, torch.cat([z, z[:, -1:]], 1)), signed
