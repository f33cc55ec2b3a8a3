"""Recording: a directory of image files as a stream of frames, decoded ahead on one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..config import FrameConfig
from ..errors import FrameRejected
from ..frame import Frame, FrameGate, make_frame, resized

T = TypeVar("T")

_AHEAD = 3


@dataclass(frozen=True)
class Shot:
    """One recorded image that has not been decoded yet.

    Attributes:
        stamp_s: seconds.
        load: reads the files and returns the other arguments of `make_frame`; may raise FrameRejected.
    """

    stamp_s: float
    load: Callable[[], dict[str, Any]]


class Recording:
    """A Source over shots. Unusable shots are counted in `gate` and left out; each iteration starts anew.

    Args:
        name: what to call the recording. shots: in the order of their stamps.
        width, height: size frames are resampled to; one alone keeps the aspect ratio, none the recorded size.
        class_names: by semantic id, the first being void; empty where frames have no semantic ids or no names.
    """

    def __init__(
        self,
        name: str,
        shots: Sequence[Shot],
        *,
        width: int | None = None,
        height: int | None = None,
        frame_config: FrameConfig | None = None,
        class_names: Sequence[str] = (),
    ):
        self.name = name
        self.class_names = tuple(class_names)
        self.gate = FrameGate(frame_config)
        self._shots = shots
        self._width, self._height = width, height
        gaps = np.diff([shot.stamp_s for shot in shots])
        self.rate_hz = float(1.0 / np.median(gaps)) if len(gaps) and np.median(gaps) > 0 else 30.0

    def __len__(self) -> int:
        return len(self._shots)

    def __iter__(self) -> Iterator[Frame]:
        self.gate.reset()
        for made in ahead(self._frame, self._shots, depth=_AHEAD):
            if isinstance(made, FrameRejected):
                self.gate.count(made)
            elif self.gate.admit_frame(made) is not None:
                yield made

    def _frame(self, shot: Shot) -> Frame | FrameRejected:
        try:
            frame = make_frame(stamp_s=shot.stamp_s, config=self.gate.config, **shot.load())
        except FrameRejected as rejection:
            return rejection
        return resized(frame, *fitted(frame.camera.width, frame.camera.height, self._width, self._height))


def fitted(width: int, height: int, wanted_width: int | None, wanted_height: int | None) -> tuple[int, int]:
    """An image size changed to what is wanted; one wanted edge alone keeps the aspect ratio."""
    if wanted_width and not wanted_height:
        return wanted_width, round(height * wanted_width / width)
    if wanted_height and not wanted_width:
        return round(width * wanted_height / height), wanted_height
    return wanted_width or width, wanted_height or height


def ahead(function: Callable[[Any], T], items: Iterable[Any], *, depth: int) -> Iterator[T]:
    """`map(function, items)`, computed up to `depth` results ahead on one thread.

    An exception of `function` is raised where its result would have been. The thread ends with the iterator, also when
    that is abandoned half-way.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool:
        pending: deque[Future[T]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
