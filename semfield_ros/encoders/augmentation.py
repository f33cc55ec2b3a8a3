"""Test-time augmentation of any 2-D panoptic model: 13 looks at one image, and what they agree on.

The image is shown as it is, mirrored, and in other colours and sharpness; masks of different looks that overlap are
one, averaged (Siddiqui et al., Panoptic Lifting, CVPR 2023). What few looks show has little confidence, and
probabilities of classes become softer where the looks disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from ..errors import ConfigError
from ..frame import Segments

SAME = 0.5
"""Masks are one where sum min / sum max is at least this."""


@dataclass(frozen=True)
class PanopticMasks:
    """What a panoptic model says of one image.

    Attributes:
        masks: [M, H, W] float32 in [0, 1]. classes: [M, C] float32, probabilities. scores: [M] float32 in [0, 1].
    """

    masks: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        m = len(self.masks)
        if self.masks.ndim != 3 or self.classes.ndim != 2 or len(self.classes) != m or self.scores.shape != (m,):
            raise ConfigError(
                f"masks are {self.masks.shape}, classes {self.classes.shape}, scores {self.scores.shape}; "
                "expected [M, H, W], [M, C], [M]"
            )


PanopticModel = Callable[[np.ndarray], PanopticMasks]
"""[H, W, 3] uint8 RGB to its masks, at the same size."""


@dataclass(frozen=True)
class Look:
    """One way to show an image, and back again for masks [M, H, W]."""

    name: str
    show: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray] = lambda masks: masks


def _scaled(gain: float, offset: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rgb: np.clip(np.rint(rgb * np.float32(gain) + np.float32(offset)), 0, 255).astype(np.uint8)


def _gamma(power: float) -> Callable[[np.ndarray], np.ndarray]:
    table = np.rint(255 * (np.arange(256) / 255) ** power).astype(np.uint8)
    return lambda rgb: table[rgb]


def _saturated(share: float) -> Callable[[np.ndarray], np.ndarray]:
    def show(rgb: np.ndarray) -> np.ndarray:
        grey = (rgb @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
        return np.clip(np.rint(grey + share * (rgb - grey)), 0, 255).astype(np.uint8)

    return show


def _tinted(gains: tuple[float, float, float]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rgb: np.clip(np.rint(rgb * np.array(gains, np.float32)), 0, 255).astype(np.uint8)


def _sharpened(rgb: np.ndarray) -> np.ndarray:
    return cv2.addWeighted(rgb, 2.0, cv2.GaussianBlur(rgb, (0, 0), 1.5), -1.0, 0)


def _equalised(rgb: np.ndarray) -> np.ndarray:
    lab = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(np.ascontiguousarray(lab[..., 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


LOOKS: tuple[Look, ...] = (
    Look("as it is", lambda rgb: rgb),
    Look("mirrored", lambda rgb: np.ascontiguousarray(rgb[:, ::-1]), lambda masks: masks[..., ::-1]),
    Look("brighter", _scaled(1.0, 30)),
    Look("darker", _scaled(1.0, -30)),
    Look("more contrast", _scaled(1.25, -32)),
    Look("less contrast", _scaled(0.75, 32)),
    Look("gamma .8", _gamma(0.8)),
    Look("gamma 1.25", _gamma(1.25)),
    Look("grey", _saturated(0.0)),
    Look("warmer", _tinted((1.1, 1.0, 0.9))),
    Look("blurred", lambda rgb: cv2.GaussianBlur(rgb, (0, 0), 1.0)),
    Look("sharpened", _sharpened),
    Look("equalised", _equalised),
)


def soft_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sum min / sum max of soft masks [A, H, W] with [B, H, W]: [A, B]; 0 for two empty ones."""
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    # min + max = a + b, so one pass gives both
    low = np.array([[np.minimum(x, y).sum() for y in flat_b] for x in flat_a]).reshape(len(a), len(b))
    high = flat_a.sum(1)[:, None] + flat_b.sum(1)[None] - low
    return np.where(high > 0, low / np.maximum(high, 1e-12), 0.0)


def agreed(looks: Sequence[PanopticMasks]) -> PanopticMasks:
    """Masks of several looks at one image, clustered by soft IoU (>= SAME with the cluster's mean, one to one: two
    masks of one look are never one) and averaged; a cluster's score is its mean, times the share of looks that have it.

    Raises:
        ConfigError: no looks, or looks of different sizes or classes.
    """
    if not looks:
        raise ConfigError("there is no look at the image to average; give one or more")
    shapes = {(m.masks.shape[1:], m.classes.shape[1]) for m in looks}
    if len(shapes) > 1:
        raise ConfigError(f"looks have masks and classes of {sorted(shapes)}; expected the same of all")
    sums: list[np.ndarray] = []
    classes: list[np.ndarray] = []
    scores: list[float] = []
    counts: list[int] = []
    for look in looks:
        joined: dict[int, int] = {}
        if sums and len(look.masks):
            means = np.stack([s / n for s, n in zip(sums, counts)])
            iou = soft_iou(means, look.masks)
            rows, columns = linear_sum_assignment(np.where(iou >= SAME, iou, 0), maximize=True)
            joined = {int(c): int(r) for r, c in zip(rows, columns) if iou[r, c] >= SAME}
        for number, (mask, probability, score) in enumerate(zip(look.masks, look.classes, look.scores)):
            if number in joined:
                at = joined[number]
                sums[at], classes[at] = sums[at] + mask, classes[at] + probability
                scores[at] += float(score)
                counts[at] += 1
            else:
                sums.append(mask.astype(np.float32))
                classes.append(probability.astype(np.float32))
                scores.append(float(score))
                counts.append(1)
    if not sums:
        return looks[0]
    n = np.array(counts, np.float32)
    mean = np.array(scores, np.float32) / len(looks)
    return PanopticMasks(np.stack(sums) / n[:, None, None], np.stack(classes) / n[:, None], mean)


def augmented(model: PanopticModel, looks: Sequence[Look] = LOOKS) -> PanopticModel:
    """The model, asked through every look: slower by their number, and steadier."""

    def ask(rgb: np.ndarray) -> PanopticMasks:
        found = []
        for look in looks:
            seen = model(look.show(rgb))
            if seen.masks.shape[1:] != rgb.shape[:2]:
                raise ConfigError(f"the model's masks are {seen.masks.shape[1:]}; expected the image's {rgb.shape[:2]}")
            found.append(PanopticMasks(np.ascontiguousarray(look.back(seen.masks)), seen.classes, seen.scores))
        return agreed(found)

    return ask


def segments_of(found: PanopticMasks, names: Sequence[str], least: float = 0.25) -> Segments:
    """One mask a pixel, as frames carry them: the one whose mask times score is largest there, if that is `least` or
    more; its name is that of its likeliest class.

    Raises:
        ConfigError: another number of names than of classes.
    """
    if len(names) != found.classes.shape[1]:
        raise ConfigError(f"{len(names)} names for {found.classes.shape[1]} classes; give one for each")
    if not len(found.masks):
        return Segments(np.zeros(found.masks.shape[1:], np.int32), {}, {})
    weight = found.masks * found.scores[:, None, None]
    ids = np.where(weight.max(0) >= least, weight.argmax(0) + 1, 0).astype(np.int32)
    there = np.unique(ids[ids > 0]).tolist()
    best = found.classes.argmax(1)
    return Segments(ids, {i: names[best[i - 1]] for i in there}, {i: float(found.scores[i - 1]) for i in there})
