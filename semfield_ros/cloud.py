"""SurfaceCloud: points on surfaces with what is known of each; the common currency of maps, queries and objects."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np


def sureness(observations: np.ndarray) -> np.ndarray:
    """How sure a map is of a surface after [N] observations: n / (n + 2), float32 in [0, 1)."""
    return np.asarray(observations / (observations + np.float32(2.0)), np.float32)


@dataclass(frozen=True)
class SurfaceCloud:
    """N surface points in global_frame.

    Attributes:
        points: [N, 3] float32, metres. normals: [N, 3] float32, unit, towards the side that was seen (0 = unknown).
        rgb: [N, 3] uint8. observations: [N] int32, frames that saw the point. last_seen_s: [N] float64, stamp.
    """

    points: np.ndarray
    normals: np.ndarray
    rgb: np.ndarray
    observations: np.ndarray
    last_seen_s: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def found(self) -> dict[Hashable, Any]:
        """What was worked out from these points alone, kept for the next who asks; nobody changes a cloud."""
        return {}

    def __getitem__(self, rows: np.ndarray) -> SurfaceCloud:
        """The selected points, as a SurfaceCloud."""
        return SurfaceCloud(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def empty(cls) -> SurfaceCloud:
        """No points."""
        return cls(
            np.zeros((0, 3), np.float32),
            np.zeros((0, 3), np.float32),
            np.zeros((0, 3), np.uint8),
            np.zeros(0, np.int32),
            np.zeros(0, np.float64),
        )
