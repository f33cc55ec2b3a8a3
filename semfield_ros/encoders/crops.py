"""A thing seen in several views as one vector: crops of growing size, the mean of their unit features.

OpenMask3D (Takmaz et al., NeurIPS 2023): of each view the box around the thing and the same box grown by .1 and .2 of
its size on every side, so that the encoder sees the thing and what it stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..errors import ConfigError
from .base import Encoder
from .boxes import encode_boxes, unit_rows

LEAST_PX = 8
"""Smaller crops show an encoder nothing; boxes are widened to this, or to the image."""


def grown_boxes(box: np.ndarray, width: int, height: int, levels: int = 3, growth: float = 0.1) -> np.ndarray:
    """The boxes [levels, 4] int64 of a box [4] (left, top, right, bottom in pixels; right and bottom excluded) in an
    image: level l is grown by l x growth of its size on every side, and cut off at the image's edge.

    Raises:
        ConfigError: no level, negative growth, or a box without an inside in the image.
    """
    if levels < 1 or growth < 0:
        raise ConfigError(f"levels are {levels} and growth {growth}; allowed: levels >= 1, growth >= 0")
    size = np.array([width, height])
    low, high = np.clip(np.floor(box[:2]), 0, size), np.clip(np.ceil(box[2:]), 0, size)
    if (high <= low).any():
        raise ConfigError(f"box {np.asarray(box).tolist()} shows nothing of an image of {width}x{height}")
    short = np.maximum(np.minimum(LEAST_PX, size) - (high - low), 0)
    low = np.maximum(low - np.ceil(short / 2), 0)
    high = np.minimum(np.maximum(high, low + np.minimum(LEAST_PX, size)), size)
    low = np.minimum(low, np.maximum(high - np.minimum(LEAST_PX, size), 0))
    grow = np.round(growth * np.arange(levels)[:, None] * (high - low))
    return np.concatenate([np.maximum(low - grow, 0), np.minimum(high + grow, size)], axis=1).astype(np.int64)


def crop_features(
    encoder: Encoder,
    count: int,
    looks: Iterable[tuple[Callable[[], np.ndarray], np.ndarray, np.ndarray]],
    levels: int = 3,
    growth: float = 0.1,
) -> np.ndarray:
    """Unit features [count, D] float32 of things over all their looks; rows of things without a look are zero.

    Args:
        looks: an image each: what reads it ([H, W, 3] uint8), the things [n] seen in it, and their boxes [n, 4].
    """
    total = np.zeros((count, encoder.dim), np.float32)
    for read, things, boxes in looks:
        if not len(things):
            continue
        rgb = read()
        height, width = rgb.shape[:2]
        every = np.concatenate([grown_boxes(box, width, height, levels, growth) for box in boxes])
        features = encode_boxes(encoder, rgb, every).reshape(len(things), levels, -1)
        np.add.at(total, things, features.sum(1))
    return unit_rows(total)
