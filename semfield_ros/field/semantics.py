"""Classes of labelled pixels (Semantic-NeRF, Zhi et al. 2021): logits or probabilities, learnt where the surface is."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..config import HeadsConfig
from ..memory.replay import Replay
from .heads import HeadConfig
from .model import Field
from .objectives import Stateless

HEAD = "semantic"


def heads(config: HeadsConfig) -> tuple[HeadConfig, ...]:
    """One output a class, where classes are known."""
    if not config.semantic_classes:
        return ()
    bounded = config.semantic_compositing == "probability"
    return (
        HeadConfig(
            HEAD, config.semantic_classes, weight=config.semantic_weight, late_linear=not bounded,
            activation="softmax" if bounded else "none",
        ),
    )  # fmt: skip


def objectives(config: HeadsConfig, field: Field) -> tuple[Labels, ...]:
    """Learn labels, where there is a head for them."""
    return (Labels(config),) if HEAD in field.heads else ()


class Labels(Stateless):
    """Cross-entropy of the class at labelled surface points; what is not labelled is ignored."""

    name = HEAD

    def __init__(self, config: HeadsConfig):
        self.config = config

    def losses(
        self, field: Field, replay: Replay, step: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], int]:
        """The loss of a batch of labelled pixels."""
        batch = replay.labelled(self.config.label_rays, 0.0, generator)
        if batch is None:
            return {}, 0
        head = field.head(HEAD)
        use = (batch.semantic > 0) & (batch.semantic <= head.config.out_dim)
        out = head.finish(head.hidden(field.encode(head.config.grid, batch.points[use]), None))
        log_p = out.clamp_min(1e-8).log() if head.config.activation == "softmax" else out.log_softmax(-1)
        loss = F.nll_loss(log_p, batch.semantic[use] - 1, reduction="sum") / use.sum().clamp_min(1)
        return {HEAD: head.config.weight * loss}, len(batch.points)
