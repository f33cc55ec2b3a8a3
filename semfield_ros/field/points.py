"""Distillation to points, and its alignment with words: further losses of the language head, off by default.

- Points (OpenScene, Peng et al. 2023, section 3.2): the field's feature at a point that a camera saw against what was
  measured there, 1 - cos; points nobody saw have no part. Drawn view by view, so the features need not be fused first:
  sum_v (1 - cos(f, f_v)) over the views of a point is least where f has the direction of the mean of the unit f_v,
  which is OpenScene's fused feature.
- Alignment: where a pixel has a class, cross-entropy of norm(f) norm(t)^T / tau over the words t of all classes, which
  stay as they are (InfoNCE with the temperature .07 of CLIP, Radford et al. 2021). Logits reach 1 / .07 and their
  exponentials do not fit half precision; they are computed in single precision and their maximum is taken off.
- Masked distillation is the sum of the two, alignment by half.

The language head is the 3-D network of this: position in, feature out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..config import HeadsConfig
from ..memory.replay import Replay
from .heads import HeadConfig
from .model import Field
from .objectives import Stateless

TEMPERATURE = 0.07
HEAD = "language"


def cosine_distillation(
    predicted: torch.Tensor, target: torch.Tensor, visible: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of 1 - cos(predicted, target) [N, D] over the visible [N] bool points; 0 where there is none.

    What is not visible may be anything, not even a number: it has no part in the loss nor in its gradients.

    Args:
        weight: [N] >= 0 of the points.
    """
    predicted, target = predicted[visible].float(), target[visible].float()
    apart = 1 - F.cosine_similarity(predicted, target, dim=-1)
    if weight is None:
        return apart.sum() / max(1, len(apart))
    weight = weight[visible].float()
    return (apart * weight).sum() / weight.sum().clamp_min(1e-6)


def contrastive_alignment(
    features: torch.Tensor, texts: torch.Tensor, labels: torch.Tensor, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """Mean cross-entropy of norm(f) norm(t)^T / temperature against labels; 0 where no point has one.

    Args:
        features: [N, D] of any float type. texts: [C, D]; no gradient reaches them. labels: [N] int64, rows of
            `texts`; negative = none.
    """
    labelled = labels >= 0
    f = F.normalize(features[labelled].float(), dim=-1)
    t = F.normalize(texts.detach().float(), dim=-1)
    return F.cross_entropy(f @ t.T / temperature, labels[labelled], reduction="sum") / max(1, len(f))


def masked_distillation(
    predicted: torch.Tensor,
    target: torch.Tensor,
    visible: torch.Tensor,
    texts: torch.Tensor,
    labels: torch.Tensor,
    contrast: float = 0.5,
) -> torch.Tensor:
    """`cosine_distillation` on visible points + `contrast` times `contrastive_alignment` where labels exist."""
    distilled = cosine_distillation(predicted, target, visible)
    return distilled + contrast * contrastive_alignment(predicted, texts, labels)


def heads(config: HeadsConfig) -> tuple[HeadConfig, ...]:
    """None of its own."""
    return ()


def objectives(config: HeadsConfig, field: Field) -> tuple[Points, ...]:
    """Where either weight says so and there are features to learn."""
    wanted = config.point_weight > 0 or config.align_weight > 0
    return (Points(config),) if wanted and HEAD in field.heads else ()


class Points(Stateless):
    """Both losses on random points of the replay."""

    name = "points"

    def __init__(self, config: HeadsConfig):
        self.config = config

    def losses(
        self, field: Field, replay: Replay, step: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], int]:
        """"points" and "alignment", each where it is wanted and there is anything to learn from."""
        losses: dict[str, torch.Tensor] = {}
        samples, config = 0, self.config
        # half-way through a keyframe's arrival there are pixels without features
        batch = replay.patches(config.point_rays, 1, False, 0.0, generator) if config.point_weight > 0 else None
        if batch is not None and len(batch.values):
            visible = batch.valid[:, 0]
            loss = cosine_distillation(at(field, batch.points[:, 0]), batch.values, visible, batch.confidence)
            losses["points"], samples = config.point_weight * loss, len(visible)
        texts = field.class_texts
        labelled = replay.labelled(config.label_rays, 0.0, generator) if config.align_weight > 0 else None
        if labelled is not None and texts is not None:
            classes = torch.where(labelled.semantic <= len(texts), labelled.semantic, 0)
            chosen = classes > 0
            loss = contrastive_alignment(at(field, labelled.points[chosen]), texts, classes[chosen] - 1)
            losses["alignment"], samples = config.align_weight * loss, samples + len(classes)
        return losses, samples


def at(field: Field, points: torch.Tensor) -> torch.Tensor:
    """The field's features [N, D] at points [N, 3]; differentiable."""
    return field.values(HEAD, points)
