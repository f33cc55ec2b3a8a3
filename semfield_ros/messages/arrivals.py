"""What arrived when: the health of the streams that frames are made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

_WINDOW_S = 5.0


@dataclass(frozen=True)
class StreamHealth:
    """One topic.

    Attributes:
        received: messages so far. age_s: seconds since the last one; None = there was none.
        rate_hz: over the last seconds. waiting: messages that wait for their partners. dropped: gone without one.
        newest_stamp_s: newest header stamp; None where stamps play no part.
    """

    received: int
    age_s: float | None
    rate_hz: float
    waiting: int = 0
    dropped: int = 0
    newest_stamp_s: float | None = None


@dataclass(frozen=True)
class CameraHealth:
    """One camera.

    Attributes:
        streams: by name: colour, depth, info, and labels, masks where these are expected.
        synchronised: pairs of colour and depth so far. frames: of these, frames that went out.
        nearest_miss_s: how far the nearest depth stamp was from the last colour image that found no partner.
        pending: pairs that wait for pose, camera info or labels.
        warnings: what looks wrong, in words.
    """

    streams: Mapping[str, StreamHealth]
    synchronised: int
    frames: int
    nearest_miss_s: float | None
    pending: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class AssemblyHealth:
    """All of it.

    Attributes:
        cameras: by namespace. poses: the odometry or pose topic; None when poses come from transforms.
        rejected: colour images that did not become frames, by reason. unused: other messages that went to waste.
        last_error: the newest rejection. last_pose_error: why the newest lookup of a pose failed; '' = it did not.
        time_jumps: how often time jumped back.
    """

    cameras: Mapping[str, CameraHealth]
    poses: StreamHealth | None
    pending: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)
    last_error: str = ""
    last_pose_error: str = ""
    time_jumps: int = 0


class Arrivals:
    """Counts messages of a stream; times are those of `note`, so no clock is read where messages come in."""

    def __init__(self) -> None:
        self.count = 0
        self._marks: deque[tuple[float, int]] = deque(maxlen=256)
        """Time and count, each time the count was found changed."""

    def note(self, now_s: float) -> None:
        """Tell the time; to be called often."""
        if self._marks and now_s < self._marks[-1][0]:
            self._marks.clear()
        if self.count > (self._marks[-1][1] if self._marks else 0):
            self._marks.append((now_s, self.count))
        while len(self._marks) > 2 and self._marks[1][0] < now_s - _WINDOW_S:
            self._marks.popleft()

    def health(self, now_s: float, **details: int | float | None) -> StreamHealth:
        """As of now; `details` are the other fields of StreamHealth."""
        self.note(now_s)
        age_s = now_s - self._marks[-1][0] if self._marks else None
        rate_hz = 0.0
        if len(self._marks) > 1 and age_s is not None and age_s < _WINDOW_S:
            (t0, n0), (t1, n1) = self._marks[0], self._marks[-1]
            # A stream that has stopped slows down instead of keeping its last rate.
            rate_hz = (n1 - n0) / max(t1 - t0, age_s, 1e-9)
        return StreamHealth(self.count, age_s, rate_hz, **details)  # type: ignore[arg-type]
