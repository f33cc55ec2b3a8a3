"""Actions under rclpy: what may take long, with feedback and cancel, such as `~/locate`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse

from .pool import ServicePool
from .rclpy_bus import RclpyBus
from .rclpy_executor import Deferred
from .rclpy_types import failed, from_ros, ros_class, to_ros

log = logging.getLogger(__name__)

Handler = Callable[[Any, Callable[[Any], None], Callable[[], bool]], Any]
"""(goal, feedback, cancelled) -> result: runs on a worker thread, reports by calling `feedback` with feedback messages,
and returns soon after `cancelled()` turns true. All are messages of `messages.types`: `TYPE_Goal`, `TYPE_Feedback`,
`TYPE_Result`."""


class RclpyAction:
    """One action of a node. Closing cancels the goals that run.

    A goal succeeds when its result says `success`, is cancelled when that was asked for, and is aborted otherwise.

    Args:
        type: such as `semfield_ros/action/Locate`.
        goals: pursued at a time; more are refused.
        accepting: whether goals are accepted now.
    """

    def __init__(
        self, bus: RclpyBus, type: str, name: str, handler: Handler, *, goals: int = 4,
        accepting: Callable[[], bool] = lambda: True,
    ):  # fmt: skip
        self._bus, self._type, self._handler, self._accepting = bus, type, handler, accepting
        self._kind = ros_class(type)
        self._pool = ServicePool(goals, max_waiting=0)
        self._stopping = False
        self._server = ActionServer(
            bus.node, self._kind, name, self._execute, callback_group=bus.group,
            goal_callback=lambda _: GoalResponse.ACCEPT if self._accepting() else GoalResponse.REJECT,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )  # fmt: skip

    def cancel_all(self) -> None:
        """Let the goals that run end."""
        self._stopping = True
        self._pool.close(timeout_s=2.0)

    def close(self) -> None:
        """Cancel, and serve no more."""
        self.cancel_all()
        self._server.destroy()

    async def _execute(self, goal: Any) -> Any:
        answer = Deferred(self._bus.executor)
        self._pool.submit(lambda: answer.set(self._pursue(goal)), lambda reason: answer.set(self._failed(reason)))
        result = await answer.future
        if goal.is_cancel_requested:
            goal.canceled()
        elif getattr(result, "success", True):
            goal.succeed()
        else:
            goal.abort()
        return result

    def _pursue(self, goal: Any) -> Any:
        types = self._bus.types

        def feedback(message: Any) -> None:
            try:
                goal.publish_feedback(to_ros(types, message, self._kind.Feedback))
            except Exception as error:  # the context may be gone
                log.debug("feedback not sent: %s", error)

        def cancelled() -> bool:
            return self._stopping or not self._bus.alive or bool(goal.is_cancel_requested)

        try:
            result = self._handler(from_ros(types, goal.request, f"{self._type}_Goal"), feedback, cancelled)
            return to_ros(types, result, self._kind.Result)
        except Exception as error:
            log.exception("a goal of %s failed", self._type)
            return self._failed(f"{type(error).__name__}: {error}")

    def _failed(self, reason: str) -> Any:
        types = self._bus.types
        return to_ros(types, failed(types, f"{self._type}_Result", reason), self._kind.Result)
