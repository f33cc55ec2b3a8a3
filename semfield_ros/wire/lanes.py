"""Lanes: threads on which callbacks run one after the other, fed from bounded inboxes. Knows no middleware.

A receive thread only puts an item into an inbox, which takes microseconds and never waits: what a callback cannot keep
up with is dropped, the oldest first, and counted.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..errors import WireError
from .bus import QoS, Traffic

log = logging.getLogger(__name__)

KEEP_ALL_LIMIT = 1000
"""How many messages wait where QoS says `keep_all`: nothing is unbounded."""
DURATIONS_KEPT = 1000
BUSY_S = 1.0
"""A callback that runs for longer is reported."""


def depth_of(qos: QoS) -> int:
    """How many messages wait for their callback at most."""
    return KEEP_ALL_LIMIT if qos.keep_all else max(1, qos.depth)


class Inbox:
    """Items that wait for one callback. Made by `Lane.inbox`.

    `decode` turns an item into a message on the lane's thread; what it raises counts as malformed, what the callback
    raises as failed.
    """

    def __init__(
        self, lane: Lane, name: str, callback: Callable[[Any], None], depth: int, decode: Callable[[Any], Any] | None
    ):
        if depth < 1:
            raise WireError(f"an inbox of {depth} messages for {name} cannot hold any; use a depth of at least 1")
        self.name, self.traffic = name, Traffic()
        self._lane, self._callback, self._decode, self._depth = lane, callback, decode, depth
        self._items: deque[Any] = deque()
        self._open = True

    def put(self, item: Any) -> None:
        """Hand an item over, from any thread; never waits, never raises."""
        lane = self._lane
        with lane._changed:
            if not self._open:
                return
            self.traffic.received += 1
            if len(self._items) >= self._depth:
                self._items.popleft()
                self.traffic.dropped += 1
            elif not self._items:
                lane._filled.append(self)
                lane._changed.notify()
            self._items.append(item)

    @property
    def waiting(self) -> int:
        """Items that wait for the callback."""
        return len(self._items)

    def close(self) -> None:
        """No callback starts after this; what still waits counts as dropped."""
        with self._lane._changed:
            self._open = False
            self.traffic.dropped += len(self._items)
            self._items.clear()

    def _take(self) -> Any:
        """The next item; its lane holds the lock and knows that there is one."""
        item = self._items.popleft()
        if self._items:
            self._lane._filled.append(self)
        return item

    def _handle(self, item: Any) -> None:
        traffic = self.traffic
        try:
            message = item if self._decode is None else self._decode(item)
        except Exception as error:
            traffic.malformed += 1
            traffic.last_error = str(error)
            if _worth_logging(traffic.malformed):
                log.warning("%s: malformed message dropped (%d so far): %s", self.name, traffic.malformed, error)
            return
        with self._lane._changed:
            if not self._open:
                traffic.dropped += 1
                return
        start_s = time.perf_counter()
        try:
            self._callback(message)
            traffic.handled += 1
        except Exception as error:
            traffic.failed += 1
            traffic.last_error = f"{type(error).__name__}: {error}"
            if _worth_logging(traffic.failed):
                log.exception("%s: callback failed (%d times so far)", self.name, traffic.failed)
        traffic.callback_s.append(time.perf_counter() - start_s)
        if len(traffic.callback_s) > 2 * DURATIONS_KEPT:
            del traffic.callback_s[:-DURATIONS_KEPT]


class Timer:
    """Calls back on a lane every so many seconds of wall time. Made by `Lane.timer`."""

    def __init__(self, lane: Lane, period_s: float, callback: Callable[[], None]):
        if not (math.isfinite(period_s) and period_s > 0):
            raise WireError(f"a timer every {period_s} s is not possible; use a period above 0")
        self.period_s, self.failed = period_s, 0
        self._lane, self._callback = lane, callback
        self._due_s = time.monotonic() + period_s

    def close(self) -> None:
        """No call starts after this."""
        with self._lane._changed:
            if self in self._lane._timers:
                self._lane._timers.remove(self)

    def _handle(self) -> None:
        with self._lane._changed:
            if self not in self._lane._timers:
                return
        try:
            self._callback()
        except Exception:
            self.failed += 1
            if _worth_logging(self.failed):
                log.exception("a timer on lane %s failed (%d times so far)", self._lane.name, self.failed)

    def _reschedule(self, now_s: float) -> None:
        missed = math.floor((now_s - self._due_s) / self.period_s)
        self._due_s += self.period_s * (1 + missed)


class Lane:
    """One daemon thread. Inboxes take turns, message by message; due timers go first, each at most once a turn."""

    def __init__(self, name: str):
        self.name = name
        self._changed = threading.Condition()
        self._filled: deque[Inbox] = deque()
        self._timers: list[Timer] = []
        self._open = True
        self._busy_since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"lane-{name}", daemon=True)
        self._thread.start()

    def inbox(
        self, name: str, callback: Callable[[Any], None], depth: int, decode: Callable[[Any], Any] | None = None
    ) -> Inbox:
        """An inbox for at most `depth` items whose callback runs on this lane."""
        return Inbox(self, name, callback, depth, decode)

    def timer(self, period_s: float, callback: Callable[[], None]) -> Timer:
        """Call back every `period_s` seconds on this lane; a late call is not repeated to catch up."""
        timer = Timer(self, period_s, callback)
        with self._changed:
            self._timers.append(timer)
            self._changed.notify()
        return timer

    @property
    def busy_s(self) -> float:
        """For how long the present callback has run; 0 when there is none."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop after the present callback; wait that long for it. Safe to call twice, and from the lane itself."""
        with self._changed:
            self._open = False
            self._timers.clear()
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Do what is due; False when the lane is closed."""
        work = self._next()
        if work is None:
            return False
        timers, inbox, item = work
        for timer in timers:
            self._busy_since_s = time.monotonic()
            timer._handle()
        if inbox is not None:
            self._busy_since_s = time.monotonic()
            inbox._handle(item)
        self._busy_since_s = None
        return True

    def _next(self) -> tuple[list[Timer], Inbox | None, Any] | None:
        """Wait for work: due timers and one item, or None when the lane closes."""
        with self._changed:
            while self._open:
                now_s = time.monotonic()
                due = [timer for timer in self._timers if timer._due_s <= now_s]
                for timer in due:
                    timer._reschedule(now_s)
                while self._filled:
                    inbox = self._filled.popleft()
                    if inbox._items:
                        return due, inbox, inbox._take()
                if due:
                    return due, None, None
                next_s = min((timer._due_s for timer in self._timers), default=None)
                self._changed.wait(None if next_s is None else max(0.0, next_s - now_s))
        return None


class Lanes:
    """The lanes of a bus by name, made when first asked for."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._lock = threading.Lock()
        self._open = True

    def __getitem__(self, name: str) -> Lane:
        with self._lock:
            if not self._open:
                raise WireError(f"the bus is closed; lane {name!r} cannot be opened")
            if name not in self._lanes:
                self._lanes[name] = Lane(name)
            return self._lanes[name]

    def busy(self) -> list[str]:
        """Names of the lanes whose callback has run for more than a second."""
        return [lane.name for lane in self._copy() if lane.busy_s > BUSY_S]

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop all; callbacks that do not end within that time are left behind on their daemon threads."""
        with self._lock:
            self._open = False
        end_s = time.monotonic() + timeout_s
        for lane in self._copy():
            lane.close(0.0)
        for lane in self._copy():
            lane.close(max(0.0, end_s - time.monotonic()))

    def _copy(self) -> list[Lane]:
        with self._lock:
            return list(self._lanes.values())


def _worth_logging(count: int) -> bool:
    """The 1st, 2nd, 4th, 8th ... time: a fault at 30 Hz must not fill the log."""
    return count & (count - 1) == 0
