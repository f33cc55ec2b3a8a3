"""Colours of classes: as many as there are, each the same whatever the others are."""

from __future__ import annotations

import colorsys
from functools import lru_cache

import numpy as np

from ..field.snapshot import Snapshot
from ..query.pca import Projection, fit
from ..viewer import UNKNOWN

NONE = (96, 96, 96)
"""Colour of what has no label."""
_GOLDEN = (5**0.5 - 1) / 2


@lru_cache(maxsize=1024)
def class_colour(label: int) -> tuple[int, int, int]:
    """The colour (r, g, b), 0 to 255, of a label from 0; `NONE` below.

    Hues advance by the golden section, so that any first few lie far apart; three kinds of shade take turns.
    """
    if label < 0:
        return NONE
    saturation, value = ((0.75, 0.95), (0.95, 0.65), (0.45, 1.0))[label // 7 % 3]
    r, g, b = colorsys.hsv_to_rgb(label * _GOLDEN % 1.0, saturation, value)
    return round(255 * r), round(255 * g), round(255 * b)


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """The colours [N, 3] uint8 of labels [N], -1 = none."""
    if not len(labels):
        return np.zeros((0, 3), np.uint8)
    table = np.array([class_colour(k) for k in range(-1, int(labels.max()) + 1)], np.uint8)
    return table[np.maximum(labels, -1) + 1]


class FeaturePainter:
    """Features as colours that stay the same from view to view and while training goes on.

    The projection is fitted to the point map, which has features from the first frame on and all around, and anew
    whenever the map has doubled: a few times in its life.
    """

    def __init__(self) -> None:
        self._projection: Projection | None = None
        self._points = 0

    def paint(self, snapshot: Snapshot, features: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 of rendered features [H, W, D]; `viewer.UNKNOWN` where depth [H, W] is 0."""
        count = int(snapshot.measured.sum())
        fitted = self._projection
        if fitted is None or len(fitted.mean) != features.shape[2] or not self._points <= count < 2 * self._points:
            fitted = self._projection = fit(snapshot.features[snapshot.measured], fitted)
            self._points = count
        return fitted.colours(np.where((depth_m > 0)[..., None], features, np.float32(0)), UNKNOWN)
