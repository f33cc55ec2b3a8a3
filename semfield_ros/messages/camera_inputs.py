"""What has come from one camera and waits to become frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import FrameRejected
from .arrivals import Arrivals, CameraHealth
from .sync import Synchroniser
from .undistort import Undistorter

_LABELS_KEPT = 30


@dataclass
class Pair:
    """A colour and a depth image that belong together. `since_s`: when it was first found waiting."""

    colour: Any
    depth: Any
    since_s: float | None = None


@dataclass
class Companions:
    """Label images of one kind and the names of their ids."""

    images: deque[tuple[int, Any]] = field(default_factory=lambda: deque(maxlen=_LABELS_KEPT))
    names: dict[int, str] | None = None

    def find(self, stamp_ns: int, slop_ns: int) -> tuple[Any | None, bool]:
        """The image for a stamp, and whether it may still come."""
        near = [(abs(s - stamp_ns), k) for k, (s, _) in enumerate(self.images) if abs(s - stamp_ns) <= slop_ns]
        if near:
            return self.images[min(near)[1]][1], False
        return None, not self.images or self.images[-1][0] <= stamp_ns + slop_ns


class CameraInputs:
    """What is known and what waits of one camera."""

    def __init__(self, namespace: str, companions: Sequence[str], slop_s: float, queue_size: int):
        self.name = namespace.strip("/") or "camera"
        self.arrivals = {stream: Arrivals() for stream in ["colour", "depth", "info", *companions]}
        self.sync = Synchroniser(("colour", "depth"), slop_s=slop_s, queue_size=queue_size)
        self.pending: deque[Pair] = deque()
        self.expected = tuple(companions)
        self.companions = {"labels": Companions(), "masks": Companions()}
        self.info: Any = None
        self.frames = 0
        self.given_up = 0
        """Colour images the synchroniser dropped, as far as they are counted."""
        self.frame_ids: dict[str, str] = {}
        self.calibration_error = ""
        self._calibration: tuple[tuple[object, ...], Undistorter | FrameRejected] | None = None

    def undistorter(self) -> Undistorter:
        """Of the newest CameraInfo, made anew only when that changes. Raises FrameRejected where it is unusable."""
        i = self.info
        key = (
            i.width, i.height, i.distortion_model, bytes(np.asarray(i.d)), bytes(np.asarray(i.k)), i.binning_x,
            i.binning_y, i.roi.x_offset, i.roi.y_offset, i.roi.width, i.roi.height,
        )  # fmt: skip
        if self._calibration is None or self._calibration[0] != key:
            self.calibration_error = ""
            try:
                self._calibration = (key, Undistorter(i))
            except FrameRejected as error:
                self._calibration, self.calibration_error = (key, error), str(error)
        made = self._calibration[1]
        if isinstance(made, FrameRejected):
            raise FrameRejected(made.reason, str(made).partition(": ")[2])
        return made

    def health(self, now_s: float) -> CameraHealth:
        """What comes, what is missing, what looks wrong."""
        streams = {}
        for name, arrivals in self.arrivals.items():
            details: dict[str, Any] = {}
            if name in ("colour", "depth"):
                newest_ns = self.sync.newest_ns(name)
                details = {
                    "waiting": self.sync.waiting(name),
                    "dropped": self.sync.dropped[name],
                    "newest_stamp_s": None if newest_ns is None else newest_ns * 1e-9,
                }
            streams[name] = arrivals.health(now_s, **details)
        miss_ns = self.sync.last_miss_ns
        return CameraHealth(
            streams, self.sync.matched, self.frames, None if miss_ns is None else miss_ns * 1e-9, len(self.pending),
            tuple(self._warnings()),
        )  # fmt: skip

    def _warnings(self) -> list[str]:
        warnings, ids = [], self.frame_ids
        if len(set(ids.values())) > 1:
            warnings.append(
                f"colour is in frame {ids['colour']!r} and depth in {ids['depth']!r}: depth must be registered to "
                "colour; use the driver's aligned depth"
            )
        if self.info is None and ids:
            warnings.append("images come, but no CameraInfo")
        if self.calibration_error:
            warnings.append(self.calibration_error)
        if self.companions["masks"].images and self.companions["masks"].names is None:
            warnings.append("masks come, but no LabelInfo that names them; they are left out")
        return warnings
