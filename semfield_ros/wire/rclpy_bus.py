"""The Bus on rclpy: messages travel as CDR bytes, callbacks run on lanes, requests on a pool.

The executor's thread never waits and never runs our code: a subscription hands its bytes to an inbox, a service its
request to the pool, whose worker answers through a future that the executor awaits.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import WireError

try:
    import rclpy
except ImportError as error:
    raise WireError(
        f"rclpy cannot be imported ({error}); source a ROS 2 installation for Python "
        f"{sys.version_info.major}.{sys.version_info.minor}, or do without ROS over the Zenoh wire"
    ) from error
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter

from ..messages.types import Types
from ..messages.types import types as common_types
from .bus import SENSOR, Client, Closeable, Graph, Publisher, QoS, Subscription, Transforms
from .lanes import Inbox, Lanes
from .names import expand, node_name
from .pool import ServicePool
from .rclpy_endpoints import RclpyClient, RclpyPublisher, RclpyService, RclpySubscription
from .rclpy_executor import end, spin
from .rclpy_graph import read_graph
from .rclpy_transforms import RclpyTransforms

log = logging.getLogger(__name__)


def open_rclpy_bus(
    name: str, *, namespace: str = "", use_sim_time: bool = False, remappings: Mapping[str, str] | None = None,
    workers: int = 4, max_waiting: int = 32,
) -> RclpyBus:  # fmt: skip
    """A bus with a ROS node and context of its own, which end with it. ROS arguments of the process are not read.

    Raises:
        WireError: a name, namespace or remapping that ROS does not allow.
    """
    absolute = node_name(name, namespace)
    arguments = ["--ros-args"]
    for source, target in (remappings or {}).items():
        expand(source, absolute)
        expand(target, absolute)
        arguments += ["-r", f"{source}:={target}"]
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    try:
        node = rclpy.create_node(
            name, namespace=namespace or None, context=context, cli_args=arguments, use_global_arguments=False,
            parameter_overrides=[Parameter("use_sim_time", value=use_sim_time)],
        )  # fmt: skip
    except BaseException:
        context.try_shutdown()
        raise
    return _OwnNodeBus(node, workers=workers, max_waiting=max_waiting)


class RclpyBus:
    """`Bus` for an rclpy node, lifecycle or not. The node stays the caller's, and outlives the bus.

    Args:
        node: whose names, parameters (use_sim_time, qos_overrides) and remappings hold.
        workers, max_waiting: requests answered at a time, and how many more may wait.
        executor: spins the node, run by the caller (see `rclpy_executor.spin`); None = one of its own, on a thread.
        types: None = the common ones.
    """

    def __init__(
        self, node: Node, *, workers: int = 4, max_waiting: int = 32, executor: Executor | None = None,
        types: Types | None = None,
    ):  # fmt: skip
        self.node = node
        self.node_name = node.get_fully_qualified_name()
        self.types = types or common_types()
        self.group = ReentrantCallbackGroup()
        self.pool = ServicePool(workers, max_waiting)
        self._lanes = Lanes()
        self._open = True
        self._lock = threading.Lock()
        self._parts: list[Any] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.executor = executor or SingleThreadedExecutor(context=node.context)
        self._tf2 = RclpyTransforms(node)
        self.transforms: Transforms = self._tf2
        if executor is None:
            self.executor.add_node(node)
            self._thread = threading.Thread(target=spin, args=(self.executor, self._stop), name="rclpy", daemon=True)
            self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether neither the bus nor the ROS context is closed."""
        return self._open and bool(self.node.context.ok())

    def resolve(self, name: str) -> str:
        """The absolute form of a topic or service name, remappings applied.

        Raises:
            WireError: a name that ROS does not allow.
        """
        expand(name, self.node_name)
        return str(self.node.resolve_topic_name(name))

    def new(self, type: str, /, **fields: Any) -> Any:
        """A message; see `Types.new`."""
        return self.types.new(type, **fields)

    def publisher(self, type: str, topic: str, qos: QoS = QoS()) -> Publisher:  # noqa: B008 (frozen)
        """Publish on a topic."""
        return self._made(type, topic, lambda: RclpyPublisher(self, type, topic, qos))

    def subscribe(
        self, type: str, topic: str, callback: Callable[[Any], None], qos: QoS = SENSOR, *, lane: str = "input",
        raw: bool = False,
    ) -> Subscription:  # fmt: skip
        """Listen to a topic; see `Bus.subscribe`."""
        decode = None if raw else lambda data: self.types.decode(data, type)
        on = self._lanes[lane]

        def inbox(name: str, depth: int) -> Inbox:
            return on.inbox(name, callback, depth, decode)

        return self._made(type, topic, lambda: RclpySubscription(self, type, topic, qos, inbox))

    def serve(self, type: str, name: str, handler: Callable[[Any], Any]) -> Closeable:
        """Answer requests; see `Bus.serve`."""
        return self._made(type, name, lambda: RclpyService(self, type, name, handler))

    def client(self, type: str, name: str) -> Client:
        """Call a service."""
        return self._made(type, name, lambda: RclpyClient(self, type, name))

    def timer(self, period_s: float, callback: Callable[[], None], *, lane: str = "timer") -> Closeable:
        """Call back every so many seconds of wall time, on a lane."""
        return self._lanes[lane].timer(period_s, callback)

    def now_s(self) -> float:
        """Seconds by the node's clock: /clock under use_sim_time."""
        return float(self.node.get_clock().now().nanoseconds * 1e-9)

    def graph(self) -> Graph:
        """What is there to talk to."""
        return read_graph(self.node) if self.alive else Graph()

    def lanes_busy(self) -> Sequence[str]:
        """Lanes whose callback has run for more than a second."""
        return self._lanes.busy()

    def close(self) -> None:
        """Take everything back from the node, stop the threads. Safe to call twice."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            parts = list(self._parts)
        self.pool.close()
        self._lanes.close()
        for part in [*parts, self._tf2]:
            try:
                part.close()
            except Exception as error:  # the context may be gone already
                log.debug("while closing: %s", error)
        if self._thread is not None:
            end(self.executor, self._stop)
            if self._thread is not threading.current_thread():
                self._thread.join(2.0)
            self.executor.remove_node(self.node)
            self.executor.shutdown(timeout_sec=0)

    def forget(self, part: Any) -> None:
        """A part closed itself."""
        with self._lock:
            if part in self._parts:
                self._parts.remove(part)

    def _made(self, type: str, name: str, make: Callable[[], Any]) -> Any:
        """A part of a known type under an allowed name, to be closed with the bus."""
        self.types.hash(type)
        expand(name, self.node_name)
        try:
            part = make()
        except Exception as error:
            if self.alive:
                raise
            raise WireError("the bus is closed") from error
        with self._lock:
            if self._open:
                self._parts.append(part)
                return part
        part.close()
        raise WireError("the bus is closed")


class _OwnNodeBus(RclpyBus):
    def close(self) -> None:
        """Also the node and its context."""
        super().close()
        if self.node.context.ok():
            self.node.destroy_node()
            self.node.context.try_shutdown()
