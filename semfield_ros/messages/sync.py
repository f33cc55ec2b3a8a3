"""Synchroniser: messages of several streams whose stamps belong together. Pure: no threads, no clock.

Unlike a greedy matcher it never takes a partner while a nearer one may still come: a pair is made once each is the
other's nearest and nothing nearer can arrive, judged by the newest stamp of the other stream plus half of the shortest
gap seen in it. For cameras in step that is at once; in the worst case it is one image later.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError

_GAPS_REMEMBERED = 20


@dataclass
class _Stream:
    """What waits of one stream, in the order of stamps, and its rhythm."""

    waiting: list[tuple[int, int, Any]] = field(default_factory=list)
    """Stamp, running number (so that items are never compared), item."""
    newest_ns: int | None = None
    gaps_ns: list[int] = field(default_factory=list)

    @property
    def next_ns(self) -> int:
        """A stamp before which nothing more is expected."""
        return (self.newest_ns or 0) + (min(self.gaps_ns) // 2 if self.gaps_ns else 0)

    def advance(self, stamp_ns: int) -> None:
        if self.newest_ns is not None and stamp_ns > self.newest_ns:
            self.gaps_ns = [*self.gaps_ns[-_GAPS_REMEMBERED + 1 :], stamp_ns - self.newest_ns]
        self.newest_ns = stamp_ns if self.newest_ns is None else max(self.newest_ns, stamp_ns)

    def nearest(self, stamp_ns: int) -> int | None:
        """Index of what waits nearest to a stamp; of two equally near the earlier."""
        place = bisect_left(self.waiting, (stamp_ns, -1))
        around = [i for i in (place - 1, place) if 0 <= i < len(self.waiting)]
        return min(around, key=lambda i: abs(self.waiting[i][0] - stamp_ns), default=None)


class Synchroniser:
    """Brings items of several named streams together, one of each, by integer nanoseconds.

    Args:
        streams: their names; the first one is what others are matched to. Tuples come in this order.
        slop_s: how far stamps of one tuple may be from the first stream's; 0 = equal stamps only.
        queue_size: items of each stream that may wait.

    Attributes:
        received, dropped: items by stream; received = dropped + matched + waiting, for each.
        matched: tuples made.
        last_miss_ns: how far away the nearest partner was of the last item of the first stream that went without.
    """

    def __init__(self, streams: Sequence[str], *, slop_s: float = 0.0, queue_size: int = 10):
        if len(streams) < 2 or len(set(streams)) < len(streams) or slop_s < 0 or queue_size < 1:
            raise ConfigError(
                f"streams are {list(streams)}, slop_s {slop_s}, queue_size {queue_size}; allowed: two or more "
                "different names, >= 0, >= 1"
            )
        self._streams = {name: _Stream() for name in streams}
        self._pivot, *self._others = streams
        self._slop_ns, self._queue_size = round(slop_s * 1e9), queue_size
        self._number = 0
        self._last_made_ns: dict[str, int] = {}
        self.received: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.matched = 0
        self.last_miss_ns: int | None = None

    def put(self, stream: str, stamp_ns: int, item: Any) -> list[tuple[Any, ...]]:
        """Take an item; returns the tuples that are complete now, in the order of stamps.

        Items may come late, but what is older than the last tuple is dropped, as is a second one of the same stamp.
        """
        queue = self._streams[stream]
        self.received[stream] += 1
        place = bisect_left(queue.waiting, (stamp_ns, -1))
        twice = place < len(queue.waiting) and queue.waiting[place][0] == stamp_ns
        if twice or stamp_ns <= self._last_made_ns.get(stream, stamp_ns - 1):
            self.dropped[stream] += 1
            return []
        queue.advance(stamp_ns)
        self._number += 1
        insort(queue.waiting, (stamp_ns, self._number, item))
        made = self._made(final=False)
        for name, full in self._streams.items():
            while len(full.waiting) > self._queue_size:
                self._give_up(name)
        return made

    def flush(self) -> list[tuple[Any, ...]]:
        """The tuples that wait for certainty, when nothing more will come; the rest is dropped."""
        made = self._made(final=True)
        for name, stream in self._streams.items():
            while stream.waiting:
                self._give_up(name)
        return made

    def waiting(self, stream: str) -> int:
        """How many items wait for partners."""
        return len(self._streams[stream].waiting)

    def newest_ns(self, stream: str) -> int | None:
        """The newest stamp that came, for diagnostics."""
        return self._streams[stream].newest_ns

    def clear(self) -> None:
        """Drop (and count) what waits, forget the order: time jumped."""
        for name, stream in self._streams.items():
            self.dropped[name] += len(stream.waiting)
        self._streams = {name: _Stream() for name in self._streams}
        self._last_made_ns.clear()

    def _made(self, final: bool) -> list[tuple[Any, ...]]:
        made: list[tuple[Any, ...]] = []
        pivots = self._streams[self._pivot].waiting
        place = 0
        while place < len(pivots):
            partners = [self._partner(name, pivots[place][0], final) for name in self._others]
            if None in partners:
                place += 1
            else:
                made.append(self._take(place, [index for index in partners if index is not None]))
                place = 0
        return made

    def _partner(self, name: str, stamp_ns: int, final: bool) -> int | None:
        """Index of the partner in a stream of what the first stream has at this stamp; None while it is not sure."""
        pivot, other = self._streams[self._pivot], self._streams[name]
        index = other.nearest(stamp_ns)
        if index is None:
            return None
        partner_ns = other.waiting[index][0]
        distance_ns = abs(partner_ns - stamp_ns)
        rival = pivot.nearest(partner_ns)
        if distance_ns > self._slop_ns or rival is None or pivot.waiting[rival][0] != stamp_ns:
            return None
        certain = (
            final
            or distance_ns == 0
            or (other.next_ns - stamp_ns >= distance_ns and pivot.next_ns - partner_ns >= distance_ns)
        )
        return index if certain else None

    def _take(self, place: int, partners: Sequence[int]) -> tuple[Any, ...]:
        """Make a tuple; what is older than it in any stream will never be needed."""
        items = []
        for name, index in zip((self._pivot, *self._others), (place, *partners)):
            waiting = self._streams[name].waiting
            for _ in range(index):
                self._give_up(name)
            stamp_ns, _, item = waiting.pop(0)
            self._last_made_ns[name] = stamp_ns
            items.append(item)
        self.matched += 1
        return tuple(items)

    def _give_up(self, name: str, index: int = 0) -> None:
        stamp_ns = self._streams[name].waiting.pop(index)[0]
        self.dropped[name] += 1
        if name == self._pivot:
            gaps = [self._distance_ns(other, stamp_ns) for other in self._others]
            known = [gap for gap in gaps if gap is not None]
            self.last_miss_ns = max(known) if known else None

    def _distance_ns(self, name: str, stamp_ns: int) -> int | None:
        """From a stamp to the nearest of a stream that waits, or was the last to be matched or to come."""
        stream = self._streams[name]
        stamps = [entry[0] for entry in stream.waiting]
        stamps += [s for s in (stream.newest_ns, self._last_made_ns.get(name)) if s is not None]
        return min((abs(s - stamp_ns) for s in stamps), default=None)
