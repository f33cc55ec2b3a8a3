"""Running an rclpy executor so that nothing a callback raises ends it, and answers that come from other threads."""

from __future__ import annotations

import logging
import threading
from typing import Any

from rclpy.executors import Executor, ExternalShutdownException
from rclpy.task import Future

log = logging.getLogger(__name__)


def spin(executor: Executor, stop: threading.Event) -> None:
    """Execute callbacks until `end` or until the context is shut down.

    rclpy's own spin ends with the first exception, and there is always one: a response to a client that has gone
    raises, for example.
    """
    while executor.context.ok() and not stop.is_set():
        try:
            executor.spin_once()
        except ExternalShutdownException:
            return
        except Exception:
            if not executor.context.ok() or stop.is_set():
                return
            log.exception("a ROS callback failed")


def end(executor: Executor, stop: threading.Event) -> None:
    """Let `spin` return; from any thread."""
    stop.set()
    # Waking is not enough: the executor looks for work, finds none and waits on.
    executor.create_task(_nothing, None)


class Deferred:
    """A value that another thread will set and a coroutine on the executor awaits."""

    def __init__(self, executor: Executor):
        self.future: Any = Future(executor=executor)
        # A future wakes its executor only to run callbacks.
        self.future.add_done_callback(_nothing)

    def set(self, value: Any) -> None:
        """From any thread; quietly nothing when the executor is gone."""
        try:
            self.future.set_result(value)
        except Exception as error:
            log.debug("an answer comes too late: %s", error)


def _nothing(_: Any) -> None:
    pass
