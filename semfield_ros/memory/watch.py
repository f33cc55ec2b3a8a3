"""Watching a known place: does a frame that shows no new view show a change?

A map is fused from keyframes only, and a frame beside a known view is none: what is taken away before a camera at rest
would be remembered for ever. So every such frame is compared with some of the voxels that the view looks at, and with a
lattice of its own pixels. Which voxels those are is remembered until the view or the map changes; a frame then costs
O(SAMPLES), whatever the map's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from ..frame import Frame
from ..geometry import visible
from .keyframes import view_distances

if TYPE_CHECKING:
    from .point_map import PointMap

SAMPLES = 4096
"""Voxels, and half as many as pixels, that a frame is compared with."""
_LEAST_VOXELS = 8
_PATCH = np.ones((2, 2), np.uint8)
_PATCHES = 4
"""Fewer such squares of lattice pixels are noise, an edge or a highlight."""
_SUDDEN = 3.0
"""Times what is usual that makes a change."""
_FRAMES = 40
"""Frames over which it is learnt what is usual; five times as many while it is a change."""
_LOOKS = 4
"""Keyframes after a change, if there is no other reason for them."""
Change = Literal["", "vanished", "appeared", "recoloured", "followed"]


class Watch:
    """Compares frames with a PointMap. Not thread-safe: the engine's thread owns both."""

    def __init__(self, points: PointMap):
        self.map = points
        self._view: Frame | None = None
        self._rows: np.ndarray | None = None
        self._owed = 0
        self._looked_s = -np.inf
        self._usual = np.zeros(3)
        """Contradicted share of the voxels, patches new, patches of another colour: running means over frames."""

    def fused(self, frame: Frame) -> None:
        """The map has just taken this frame in. O(1)."""
        self._view, self._rows, self._looked_s = frame, None, frame.stamp_s
        self._owed = max(0, self._owed - 1)

    def change(self, frame: Frame) -> Change:
        """How a frame contradicts the map: '' where it does not.

        `vanished`: a share of the settled voxels is seen through; `appeared`: a patch of surface stands where there was
        none; `recoloured`: a patch of known surface has another colour; `followed`: something changed a moment ago, and
        one look at what is new would be a poor witness.
        """
        period_s = self.map.config.change_period_s
        if abs(frame.stamp_s - self._looked_s) < period_s:
            return ""
        self._looked_s = frame.stamp_s
        change = self._change(frame)
        if change:
            self._owed = _LOOKS
        elif self._owed and self._view is not None:
            return "followed" if abs(frame.stamp_s - self._view.stamp_s) >= _LOOKS * period_s else ""
        return change

    def _change(self, frame: Frame) -> Change:
        config = self.map.config
        if self._rows is None or not self._near(frame):
            self._look(frame)
        assert self._rows is not None
        rows = self._rows[self.map.settled(self._rows)]
        stride = max(1, round(np.sqrt(frame.depth_m.size / (2 * SAMPLES))))
        measured, at = self.map.lattice(frame, stride)
        known = at >= 0
        other = np.zeros_like(known)
        other[known] = self.map.other_colour(at[known], frame.rgb[::stride, ::stride][known].astype(np.float32))
        through = np.count_nonzero(self.map.contradicted(frame, rows)) / max(1, len(rows))
        found = np.array([through, _patches(measured & ~known), _patches(other)])
        least = np.array([max(config.min_changed_fraction, _LEAST_VOXELS / max(1, len(rows))), _PATCHES, _PATCHES])
        # poses that are off contradict the map a little all the time
        sudden = found >= np.maximum(least, _SUDDEN * self._usual)
        self._usual += (found - self._usual) / np.where(sudden, 5 * _FRAMES, _FRAMES)
        changes: tuple[Change, ...] = ("vanished", "appeared", "recoloured")
        return changes[int(sudden.argmax())] if sudden.any() else ""

    def _near(self, frame: Frame) -> bool:
        if self._view is None or frame.camera != self._view.camera:
            return False
        pose = self._view.T_world_camera
        return bool(view_distances(self.map.config, pose[None], frame.T_world_camera)[0] < 1)

    def _look(self, frame: Frame) -> None:
        """Choose the voxels to compare: some of those that the view sees, or sees through. O(voxels)."""
        if self._view is None or not self._near(frame):
            self._view = frame
        view, config = self._view, self.map.config
        rows = self.map.in_view(view)
        rows = rows[:: max(1, len(rows) // (4 * SAMPLES))]  # some are hidden
        points = self.map.points[rows]
        mask, _ = visible(
            view.camera, view.T_world_camera, view.depth_m, points,
            tolerance_m=config.visibility_tolerance_m, tolerance_relative=config.visibility_tolerance_relative,
        )  # fmt: skip
        seen = rows[mask | (self.map.contradicted(view, rows) > 0)]
        self._rows = seen[:: max(1, len(seen) // SAMPLES)]


def _patches(mask: np.ndarray) -> int:
    """Squares of lattice pixels [h, w] bool that are set, away from the edges of the image: what a view shows there is
    new, and no change."""
    image = mask.astype(np.uint8)
    image[[0, -1]], image[:, [0, -1]] = 0, 0
    return int(cv2.erode(image, _PATCH).sum())
