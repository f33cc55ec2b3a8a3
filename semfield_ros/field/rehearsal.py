"""A rehearsal: every kernel of a field once, before a stream waits for them to be compiled."""

from __future__ import annotations

import torch

from ..config import FieldConfig
from .heads import HeadConfig
from .model import Field
from .optimiser import GridAdam
from .workspace import Workspace


def rehearse(config: FieldConfig, heads: tuple[HeadConfig, ...], device: str) -> None:
    """Compile what a field of this configuration computes with: one small pass forward and back, and a step.

    Takes seconds the first time on a machine, and then what reading the compilers' own caches takes. Only kernels'
    sizes matter, so a field of its own is used and forgotten.
    """
    field = Field(config, Workspace((0.0, 0.0, 0.0), 1.0), heads).to(device)
    points = torch.linspace(-1, 1, 96, device=device).view(-1, 3)
    total = field.distance(field.encode("geometry", points)).sum()
    field.distance_at(points)
    field.traced(points, points, 0.1, 0.2, 1)
    for head in map(field.head, field.heads):
        directions = points if head.config.direction else None
        total = total + field.hidden(head.config.name, points, directions).sum()
        if directions is None:
            field.trunk_at(head.config.name, points)
    total.backward()
    for name in field.grids:
        GridAdam(field.grid(name)).step(1e-2)
