"""Segments: pixels of one 2-D segment mean one thing, whatever that is (Siddiqui et al., Panoptic Lifting, CVPR 2023).

Segments need no classes, so they carry a few labels further: the class that is likeliest in the mean over a segment is
what each of its pixels is drawn to.
"""

from __future__ import annotations

import torch

from ..config import HeadsConfig
from ..memory.replay import Replay
from .heads import HeadConfig
from .instance_losses import segment_consistency
from .model import Field
from .objectives import Stateless
from .semantics import HEAD, log_probabilities

IMAGES = 4
"""Keyframes a step; segments are those of one image."""
FROM_STEP = 100
"""Classes must be known somewhere before they are carried further."""


def heads(config: HeadsConfig) -> tuple[HeadConfig, ...]:
    """None of its own: it is the class head's."""
    return ()


def objectives(config: HeadsConfig, field: Field) -> tuple[Consistency, ...]:
    """Where it has a weight and there are classes."""
    return (Consistency(config),) if config.segment_weight > 0 and HEAD in field.heads else ()


class Consistency(Stateless):
    """Cross-entropy of classes to the likeliest class of their segment."""

    name = "segments"

    def __init__(self, config: HeadsConfig):
        self.config = config

    def losses(
        self, field: Field, replay: Replay, step: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], int]:
        """The loss of some pixels of a few images; nothing where frames have no segments."""
        if step < FROM_STEP:
            return {}, 0
        batch = replay.labelled_images(IMAGES, max(1, self.config.label_rays // IMAGES), generator)
        if batch is None:
            return {}, 0
        rows = torch.nonzero(batch.segment > 0).squeeze(1)
        if not len(rows):
            return {}, 0
        # ids are those of one image
        segment = batch.slots[rows] * (int(batch.segment.max()) + 1) + batch.segment[rows]
        log_p = log_probabilities(field.head(HEAD).config, field.values(HEAD, batch.points[rows]))
        loss = segment_consistency(log_p, segment, batch.confidence[rows])
        return {"segments": self.config.segment_weight * loss}, len(rows)
