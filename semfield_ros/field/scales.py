"""Language with scale, learnt from a pyramid of crops (LERF: Kerr et al., ICCV 2023, section 3).

A random pixel of a keyframe and a random size between two levels of the pyramid give a target feature, interpolated
among the nearest crops' and not renormalised, and a scale in metres, s = r H t / f: how high the crop is where the
surface is. The head is asked at the measured surface point; geometry never learns from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..config import HeadsConfig, PyramidConfig
from ..encoders.pyramid import blend, levels_of, metric_scale, ratios
from ..memory.draws import kept, on_device
from ..memory.replay import Replay
from .heads import HeadConfig
from .model import Field
from .objectives import Stateless
from .scale_head import ScaleHead

HEAD = "scales"
"""Name of the head, and of its loss."""
TEACHER = "pyramid"
"""Whose measurements teach it."""
HUBER_DELTA = 1.25


@dataclass(frozen=True)
class ScaleBatch:
    """N pixels: world points [N, 3] of their surface, scales [N] in metres, target features [N, D]."""

    points: torch.Tensor
    scale_m: torch.Tensor
    values: torch.Tensor


def huber_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Huber loss of LERF's code: delta 1.25, summed over dimensions, mean over rows. [N, D], [N, D] -> scalar."""
    return F.huber_loss(predicted, target, delta=HUBER_DELTA, reduction="none").sum(-1).mean()


def cosine_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Minus the products of unit predictions with targets, mean over rows (LERF's paper, equation 2)."""
    return -(predicted * target).sum(-1).mean()


def knots_of(config: PyramidConfig) -> tuple[float, ...]:
    """Knots of the head, evenly in the logarithm of the scale."""
    return tuple(np.geomspace(config.smallest_m, config.largest_m, config.knots).round(6).tolist())


def heads(config: HeadsConfig) -> tuple[HeadConfig, ...]:
    """None from the beginning: the length of features is known when the first have come."""
    return ()


def teacher_head(name: str, dim: int, config: HeadsConfig) -> HeadConfig:
    """On the feature grid, two hidden layers, last layer after compositing and at a scale."""
    return HeadConfig(HEAD, dim, layers=2, late_linear=True, knots_m=knots_of(config.pyramid))


def objectives(config: HeadsConfig, field: Field) -> tuple[Scales, ...]:
    """One, where the field has the head."""
    return (Scales(config.pyramid),) if HEAD in field.heads else ()


def draw(replay: Replay, config: PyramidConfig, n: int, generator: torch.Generator) -> ScaleBatch | None:
    """At most n random pixels at random sizes; None before the first pyramid."""
    store = replay.store(TEACHER)
    if store is None or not store.slots:
        return None
    device = replay.device
    levels = levels_of(replay.width, replay.height, config)
    if store.shape.rows != levels[-1].first + levels[-1].count:
        return None  # measured with other tiles, before this map was loaded
    slots = replay.pick_slots(store.slots, n, 0.0, generator)
    record = torch.randint(replay.records, (n,), generator=generator, device=device)
    size = torch.rand(2, n, generator=generator, device=device)
    depth = replay.depth[slots, record]
    keep = kept(depth > 0)
    slots, record, depth, size = slots[keep], record[keep], depth[keep], size[:, keep]
    pixel = replay.pixel[slots, record]
    origins, directions, norms = replay.world_rays(slots, pixel)
    level = (size[0] * (len(levels) - 1)).long()
    v = torch.div(pixel, replay.width, rounding_mode="floor")
    row, weight = blend(levels, (pixel - v * replay.width).float(), v.float(), level, size[1])
    values = store.values[store.row[slots][:, None], row].float()
    tile = on_device(ratios(config), device, torch.float32)
    ratio = tile[level] + size[1] * (tile[level + 1] - tile[level])
    scale_m = metric_scale(ratio, replay.height, depth * norms, replay.camera[slots, 1])
    return ScaleBatch(origins + directions * depth[:, None], scale_m, (values * weight[..., None]).sum(1))


def predicted(field: Field, points: torch.Tensor, scale_m: torch.Tensor) -> torch.Tensor:
    """Unit features [N, D] of the scale head at points [N, 3] and scales [N] in metres. Differentiable."""
    head = field.head(HEAD)
    assert isinstance(head, ScaleHead)
    return F.normalize(head.at(field.hidden(HEAD, points), scale_m), dim=-1)


class Scales(Stateless):
    """Learn a pyramid's features."""

    name = HEAD

    def __init__(self, config: PyramidConfig):
        self.config = config

    def losses(
        self, field: Field, replay: Replay, step: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Features at random surface pixels and scales against what the pyramid measured."""
        batch = draw(replay, self.config, self.config.pixels, generator)
        if batch is None or not len(batch.values):
            return {}, 0
        head = field.head(HEAD)
        assert isinstance(head, ScaleHead)
        head.count(field.workspace.to_unit(batch.points), batch.scale_m)
        loss = huber_loss if self.config.loss == "huber" else cosine_loss
        found = loss(predicted(field, batch.points, batch.scale_m), batch.values)
        return {HEAD: self.config.weight * found}, len(batch.values)
