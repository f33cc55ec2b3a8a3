"""Classes of labelled pixels (Semantic-NeRF, Zhi et al. 2021): logits or probabilities, learnt where the surface is.

Every labelled pixel has a measured depth, so what a ray composites is what lies on the surface: cross-entropy there
is that of the composited logits, and neither density nor colour has to be learnt first. What is not labelled is not
ignored: neighbours on one surface of one colour are of one class, so a few labels, even single clicks, spread as far as
their object goes, and labels that are wrong are outvoted by those around them.
"""

from __future__ import annotations

import torch

from ..config import HeadsConfig
from ..memory.replay import Replay
from .heads import HeadConfig
from .model import Field
from .objectives import Stateless

HEAD = "semantic"
SMOOTH_FROM_STEP = 300
"""Smoothness has its full weight from here on: at once, everything would be of one class."""
HELD_OUT = 16
"""Of so many labels of a frame one is kept from training, to tell how many are wrong..."""
PLENTY = 256
"""...in frames that have this many; clicks are all needed."""
WRONG_FIRST, WRONG_RANGE = 0.02, (1e-3, 0.95)
"""The share of wrong labels that is believed at first, and at least and at most."""
_MEMORY = 0.97


def heads(config: HeadsConfig) -> tuple[HeadConfig, ...]:
    """One output a class, where classes are known."""
    if not config.semantic_classes:
        return ()
    bounded = config.semantic_compositing == "probability"
    return (
        HeadConfig(
            HEAD, config.semantic_classes, weight=config.semantic_weight, late_linear=not bounded,
            activation="softmax" if bounded else "none", loss="own",
            grid="geometry" if config.semantic_shapes_geometry else "feature",
            shapes_geometry=config.semantic_shapes_geometry,
        ),
    )  # fmt: skip


def objectives(config: HeadsConfig, field: Field) -> tuple[Labels, ...]:
    """Learn labels, where there is a head for them."""
    return (Labels(config),) if HEAD in field.heads else ()


def log_probabilities(config: HeadConfig, composited: torch.Tensor) -> torch.Tensor:
    """Logarithms [N, C] of class probabilities from what a ray composites [N, C]: logits (S4), or probabilities, whose
    sum the ray may fall short of (P3: S / (sum S + 1e-8))."""
    if config.activation != "softmax":
        return composited.log_softmax(-1)
    return (composited / (composited.sum(-1, keepdim=True) + 1e-8)).clamp_min(1e-8).log()


def label_loss(log_p: torch.Tensor, labels: torch.Tensor, wrong: float | torch.Tensor = 0.0) -> torch.Tensor:
    """Mean of -log((1 - e) p[label] + e / C) over labels [N] (1 to C), log-probabilities [N, C] and a share e of wrong
    labels; cross-entropy for e = 0. Void and what is no class is ignored."""
    known, picked = _picked(log_p, labels)
    likelihood = (1 - wrong) * picked.exp() + wrong / log_p.shape[1]
    nll = -picked if isinstance(wrong, float) and wrong == 0 else -likelihood.clamp_min(1e-12).log()
    return (nll * known).sum() / known.sum().clamp_min(1)


def wrong_share(log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The share of labels [N] that are random, by those the likeliest class agrees with, chance included: were every
    answer right, a share e of random labels would leave 1 - e + e / C of them agreeing. NaN without labels, 0-d."""
    known, _ = _picked(log_p, labels)
    agreeing = ((log_p.argmax(1) + 1 == labels) & known).sum() / known.sum()
    classes = log_p.shape[1]
    return (1 - agreeing) * (classes / max(classes - 1, 1))


def held_out(pixel: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """[N] bool: one in HELD_OUT pixels [N] of slots [N], always the same, in no pattern that labels might have."""
    scattered = (pixel.long() + 7919 * slots.long()) & 0xFFFFFFFF
    for _ in range(2):
        scattered = (scattered * 0x45D9F3B) & 0xFFFFFFFF
        scattered = scattered ^ (scattered >> 16)
    return scattered < (1 << 32) // HELD_OUT


def _picked(log_p: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which labels [N] are classes, and the log-probabilities [N] of those."""
    classes = log_p.shape[1]
    known = (labels > 0) & (labels <= classes)
    return known, log_p.gather(1, (labels - 1).clamp(0, classes - 1)[:, None]).squeeze(1)


def apart(log_p_a: torch.Tensor, log_p_b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean of |p_a - p_b|^2 over N pairs [N, C]: 0 for equal distributions, 2 for certain, different ones.

    Bounded, so a true border that has no edge in colour or shape costs a constant and stays.
    """
    squared = (log_p_a.exp() - log_p_b.exp()).square().sum(-1)
    return (squared * weight).sum() / weight.sum().clamp_min(1e-6)


class Labels(Stateless):
    """Classes at labelled surface points, whatever share of labels is wrong, and the prior that neighbours are of one.

    Attributes:
        wrong: 0-d, the share of labels that is believed to be wrong.
    """

    name = HEAD

    def __init__(self, config: HeadsConfig):
        self.config = config
        self.wrong = torch.tensor(WRONG_FIRST)

    def losses(
        self, field: Field, replay: Replay, step: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], int]:
        """The losses of a batch of labelled pixels and of neighbours anywhere."""
        config, head = self.config, field.head(HEAD)
        batch = replay.labelled(config.label_rays, 0.0, generator) if replay.labels.classed else None
        if batch is None:
            return {}, 0
        points, count, labels = batch.points, len(batch.points), batch.semantic
        pairs = replay.neighbours(config.semantic_pairs, generator) if config.semantic_smoothness > 0 else None
        if pairs is not None:
            points = torch.cat([points, pairs.a, pairs.b])
        out = field.values(HEAD, points)
        log_p = log_probabilities(head.config, out)
        kept = (replay.labels.named[batch.slots] >= PLENTY) & held_out(batch.pixel, batch.slots)
        self.wrong = self.wrong.to(log_p.device)
        losses = {HEAD: head.config.weight * label_loss(log_p[:count], labels * ~kept, self.wrong)}
        with torch.no_grad():
            found = wrong_share(log_p[:count], labels * kept)
            found = torch.where(found.isnan(), self.wrong, found)
            self.wrong = (_MEMORY * self.wrong + (1 - _MEMORY) * found).clamp(*WRONG_RANGE)
        if pairs is not None and len(pairs.weight):
            ramp = min(1.0, step / SMOOTH_FROM_STEP)
            weight = head.config.weight * config.semantic_smoothness * ramp
            a, b = log_p[count:].chunk(2)
            losses[f"{HEAD}_smooth"] = weight * apart(a, b, pairs.weight)
        return losses, len(points)

    def state(self) -> dict[str, torch.Tensor]:
        """What is believed of the labels."""
        return {"wrong": self.wrong}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a `state()`."""
        self.wrong = state["wrong"].clone()
