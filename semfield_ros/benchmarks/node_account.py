"""What a node says of itself on /diagnostics, as an account of every frame: what came in, and what became of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import SemfieldError
from ..wire.bus import Bus, QoS

_FRAMES = ("in", "to the engine", "waiting")
"""What the finding `frames` tells besides reasons."""
_DROPPED = "dropped: "
_FEATURES_ONLY = "encoder_behind"
"""The engine's count of keyframes without features: no frames are lost by it."""

_REST_S = 2.0


@dataclass(frozen=True)
class Account:
    """One look at a node.

    Attributes:
        at_s: when, on the monotonic clock. received: colour images that reached the process. used: became keyframes.
        skipped: valid frames that showed nothing new. waiting: for depth, pose, or the engine.
        unused: everything else that was told, by reason. callback_p99_ms: of the input callbacks.
    """

    at_s: float
    received: int = 0
    used: int = 0
    skipped: int = 0
    waiting: int = 0
    unused: Mapping[str, int] = field(default_factory=dict)
    features_dropped: int = 0
    callback_p50_ms: float = float("nan")
    callback_p99_ms: float = float("nan")
    keyframes: int = 0
    voxels: int = 0
    steps: int = 0
    rss_mb: float = float("nan")

    @property
    def lost(self) -> int:
        """Frames that came in of which nobody says what became of them. Between two of the node's counters there may be
        a few for a moment; of a node at rest there must be none."""
        return self.received - self.used - self.skipped - self.waiting - sum(self.unused.values())

    @property
    def handled(self) -> int:
        """Frames that were used or skipped."""
        return self.used + self.skipped


def read_account(message: Any, at_s: float) -> Account:
    """The account of a diagnostic_msgs/DiagnosticArray of a semfield node.

    Raises:
        SemfieldError: it is another node's.
    """
    found = {s.name.rpartition(": ")[2]: {kv.key: kv.value for kv in s.values} for s in message.status}
    if not {"frames", "engine", "callbacks"} <= set(found):
        raise SemfieldError(f"diagnostics of {sorted(found)}; expected those of a semfield node: frames, engine ...")
    frames, engine, callbacks = found["frames"], found["engine"], found["callbacks"]
    unused = {reason: int(count) for reason, count in frames.items() if reason not in _FRAMES}
    dropped = {k.removeprefix(_DROPPED): int(v) for k, v in engine.items() if k.startswith(_DROPPED)}
    features_dropped = dropped.pop(_FEATURES_ONLY, 0)
    for reason, count in dropped.items():
        unused[reason] = unused.get(reason, 0) + count
    return Account(
        at_s, int(frames["in"]), int(engine["frames used"]), int(engine["frames skipped"]),
        int(frames["waiting"]) + int(engine["frames waiting"]), unused, features_dropped,
        float(callbacks["p50 [ms]"]), float(callbacks["p99 [ms]"]),
        int(engine["keyframes"]), int(engine["voxels"]), int(engine["steps"]), float(engine["resident [MB]"]),
    )  # fmt: skip


class Watch:
    """Listens to a node's diagnostics and keeps every account."""

    def __init__(self, bus: Bus, node: str):
        self.accounts: list[Account] = []
        self._node = node.lstrip("/")
        self._changed = threading.Condition()
        kind = "diagnostic_msgs/msg/DiagnosticArray"
        self._subscription = bus.subscribe(kind, "/diagnostics", self._hear, QoS(100), lane="diagnostics")

    def _hear(self, message: Any) -> None:
        if not message.status or not message.status[0].name.startswith(f"{self._node}: "):
            return
        account = read_account(message, time.monotonic())
        with self._changed:
            self.accounts.append(account)
            self._changed.notify_all()

    def close(self) -> None:
        """Listen no more."""
        self._subscription.close()

    def next(self, timeout_s: float = 30.0) -> Account:
        """The next account that comes."""
        return self.until(lambda account: True, timeout_s)

    def until(self, enough: Callable[[Account], bool], timeout_s: float = 30.0) -> Account:
        """The first account from now on that is enough.

        Raises:
            SemfieldError: none came in time.
        """
        seen, end_s = len(self.accounts), time.monotonic() + timeout_s
        with self._changed:
            while True:
                for account in self.accounts[seen:]:
                    if enough(account):
                        return account
                seen = len(self.accounts)
                if not self._changed.wait(max(0.0, end_s - time.monotonic())) and time.monotonic() >= end_s:
                    last = self.accounts[-1] if self.accounts else "none ever came"
                    raise SemfieldError(f"no such diagnostics within {timeout_s:g} s; the last: {last}")

    def settled(self, timeout_s: float = 30.0) -> Account:
        """The account of a node at rest: the camera has stopped, and for longer than a frame waits for its pose nothing
        has changed."""
        since: list[tuple[float, tuple[object, ...]]] = []

        def at_rest(account: Account) -> bool:
            now = account.received, account.handled, account.waiting, sum(account.unused.values())
            if not since or since[-1][1] != now:
                since.append((account.at_s, now))
            return account.at_s - since[-1][0] >= _REST_S

        return self.until(at_rest, timeout_s)


def longest_pause_s(accounts: Sequence[Account], from_s: float, to_s: float) -> float:
    """The longest time in which no more frames were counted, as far as accounts tell; a node that started again counts
    from zero."""
    changes = [from_s]
    last: int | None = None
    for account in accounts:
        if last is not None and account.received not in (0, last) and from_s < account.at_s <= to_s:
            changes.append(account.at_s)
        last = account.received
    return max(b - a for a, b in zip(changes, [*changes[1:], max(to_s, changes[-1])]))


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of values over times; nan of fewer than three."""
    if len(times) < 3:
        return float("nan")
    t0, v0 = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - t0) ** 2 for t in times)
    return sum((t - t0) * (v - v0) for t, v in zip(times, values)) / spread if spread else float("nan")
