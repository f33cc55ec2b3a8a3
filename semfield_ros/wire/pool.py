"""A pool of worker threads that refuses what it cannot take. Knows no middleware."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import WireError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    run: Callable[[], None]
    refuse: Callable[[str], None]


class ServicePool:
    """Answers several requests at a time; at most `max_waiting` more wait, the rest is refused at once.

    The workers are daemon threads: a handler that hangs does not keep the process from ending.
    """

    def __init__(self, workers: int = 4, max_waiting: int = 32):
        if workers < 1 or max_waiting < 0:
            raise WireError(f"{workers} workers with {max_waiting} waiting are not possible; use >= 1 and >= 0")
        self.workers, self.max_waiting = workers, max_waiting
        self.served, self.refused = 0, 0
        self._jobs: deque[_Job] = deque()
        self._running = 0
        self._open = True
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"service-{index}", daemon=True) for index in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, run: Callable[[], None], refuse: Callable[[str], None]) -> bool:
        """Run on a worker, or call `refuse(reason)` from this thread; False then. Never waits."""
        with self._changed:
            free = self.workers - self._running
            if not self._open:
                reason = "the server is shutting down"
            elif len(self._jobs) >= free + self.max_waiting:
                reason = f"the server is busy: {self.workers} requests run and {self.max_waiting} wait; try again later"
            else:
                self._jobs.append(_Job(run, refuse))
                self._changed.notify()
                return True
            self.refused += 1
        _guarded(refuse, reason)
        return False

    def close(self, timeout_s: float = 1.0) -> None:
        """Refuse what waits and stop; wait that long for requests that run. Safe to call twice, and from a worker."""
        mine = int(threading.current_thread() in self._threads)
        with self._changed:
            self._open = False
            waiting = list(self._jobs)
            self._jobs.clear()
            self.refused += len(waiting)
            self._changed.notify_all()
        for job in waiting:
            _guarded(job.refuse, "the server is shutting down")
        with self._changed:
            self._changed.wait_for(lambda: self._running <= mine, timeout_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._jobs) or not self._open)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
                self._running += 1
            _guarded(job.run)
            del job
            with self._changed:
                self._running -= 1
                self.served += 1
                self._changed.notify_all()


def _guarded(call: Callable[..., None], *arguments: str) -> None:
    try:
        call(*arguments)
    except Exception:
        log.exception("a service request failed")
