"""Features of further encoders, each in a head and a space of its own (DINO, another CLIP): distilled as language is,
through the window they were measured through, compared by cosine with a robust loss."""

from __future__ import annotations

import torch

from ..config import HeadsConfig
from ..memory.replay import Replay
from .heads import HeadConfig
from .model import Field
from .objectives import Stateless
from .window import prediction_loss

PREFIX = "teacher_"
PATCHES, RAYS = 128, 16


def teacher_head(name: str, dim: int, config: HeadsConfig) -> HeadConfig:
    """On the feature grid, last linear layer after compositing, of length 1."""
    return HeadConfig(PREFIX + name, dim, late_linear=True, unit=True, loss="cosine_sqrt")


def heads(config: HeadsConfig) -> tuple[HeadConfig, ...]:
    """None from the beginning: how long features are is known when the first have come."""
    return ()


def objectives(config: HeadsConfig, field: Field) -> tuple[Distillation, ...]:
    """One for each teacher with a head."""
    return tuple(Distillation(name.removeprefix(PREFIX)) for name in field.heads if name.startswith(PREFIX))


class Distillation(Stateless):
    """Learn one teacher's features."""

    def __init__(self, teacher: str):
        self.teacher, self.name = teacher, PREFIX + teacher

    def losses(
        self, field: Field, replay: Replay, step: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Predicted means over windows against what was measured."""
        batch = replay.patches(PATCHES, RAYS, True, 0.0, generator, teacher=self.teacher)
        if batch is None or not len(batch.values):
            return {}, 0
        return {self.name: prediction_loss(field, batch, self.name)}, batch.valid.numel()
