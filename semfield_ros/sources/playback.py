"""Playback: a source at a chosen pace, with frames dropped as a live stream would drop them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from ..errors import ConfigError
from ..frame import Frame
from . import Source


class Playback(Iterator[Frame]):
    """The frames of a source on a clock of their stamps; see `play`.

    Attributes:
        dropped: frames left out so far, because the consumer was busy when their successor came.
        slipped_s: how far the stream has fallen behind its clock so far, because the source itself was slow.
    """

    def __init__(
        self,
        source: Source,
        rate: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if rate is not None and not 0 < rate < math.inf:
            raise ConfigError(f"rate is {rate!r}; allowed: > 0 (1 = real time), or None for as fast as possible")
        self.dropped = 0
        self.slipped_s = 0.0
        self._clock, self._sleep = clock, sleep
        self._frames = iter(source) if rate is None else self._paced(iter(source), rate)

    def __next__(self) -> Frame:
        return next(self._frames)

    def _paced(self, frames: Iterator[Frame], rate: float) -> Iterator[Frame]:
        upcoming = next(frames, None)
        if upcoming is None:
            return
        started, first_s = self._clock(), upcoming.stamp_s

        def now() -> float:
            return self._clock() - started - self.slipped_s

        def due(frame: Frame) -> float:
            return (frame.stamp_s - first_s) / rate

        def fetch() -> Frame | None:
            before = now()
            frame = next(frames, None)
            if frame is not None:
                # The clock stands still for a late source: its time must not count as the consumer's.
                self.slipped_s += min(now() - before, max(0.0, now() - due(frame)))
            return frame

        asked = 0.0
        while upcoming is not None:
            current, upcoming = upcoming, None
            while due(current) < asked:
                upcoming = fetch()
                if upcoming is None or due(upcoming) > asked:
                    break
                self.dropped += 1
                current, upcoming = upcoming, None
            wait_s = due(current) - now()
            if wait_s > 0:
                self._sleep(wait_s)
            yield current
            asked = now()
            upcoming = upcoming or fetch()


def play(
    source: Source,
    rate: float | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Playback:
    """Frames as fast as possible (`rate` None), or by their stamps at `rate` times real time.

    A frame that is superseded before the consumer asks is dropped and counted, as by a live stream with a queue of one.

    Raises:
        ConfigError: `rate` is not positive.
    """
    return Playback(source, rate, clock=clock, sleep=sleep)
