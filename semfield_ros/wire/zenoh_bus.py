"""The Bus on a Zenoh session: a ROS 2 node as rmw_zenoh makes them, without ROS."""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import WireError
from ..messages.transforms import TransformBuffer
from ..messages.types import Types
from ..messages.types import types as default_types
from .bus import SENSOR, Endpoint, Graph, QoS, Transforms
from .lanes import Lanes, Timer
from .names import node_name as absolute_node_name
from .names import remapped
from .pool import ServicePool
from .zenoh_endpoints import Declared, Place, ZenohClient, ZenohPublisher, ZenohServer, ZenohSubscription
from .zenoh_graph import GraphCache, Kind, NodeTokens
from .zenoh_session import ROUTER_ENDPOINT, Mode, connect

log = logging.getLogger(__name__)

_TF = QoS(100)
_TF_STATIC = QoS(100, transient_local=True)
_CLOCK = QoS(1, reliable=False)
_CLOSING_S = 5.0
"""How long a second `close` waits for the first to end: the process must not end in the middle of it."""


class ZenohBus:
    """A node on the ROS 2 graph of rmw_zenoh; see `bus.Bus` for what it does.

    Args:
        node_name: without namespace.
        namespace: such as `/robot`; '' = none.
        mode, endpoint, config_file: see `zenoh_session.connect`.
        domain: the ROS domain; None = ROS_DOMAIN_ID, or 0.
        workers, max_waiting: requests answered at a time, and how many more may wait.
        use_sim_time: `now_s` follows /clock.
        remappings: topic and service names, as in `ros2 run ... -r a:=b`.

    Raises:
        WireError: names, endpoint or configuration that cannot be used.
    """

    def __init__(
        self,
        node_name: str,
        *,
        namespace: str = "",
        mode: Mode = "embedded",
        endpoint: str = ROUTER_ENDPOINT,
        config_file: str | Path | None = None,
        domain: int | None = None,
        workers: int = 4,
        max_waiting: int = 32,
        use_sim_time: bool = False,
        remappings: Mapping[str, str] | None = None,
        types: Types | None = None,
    ):
        self.node_name: str = absolute_node_name(node_name, namespace)
        self.types: Types = default_types() if types is None else types
        self.domain = _domain() if domain is None else domain
        self._remappings = dict(remappings or {})
        for name in self._remappings:
            self.resolve(name)
        self._sim_time, self._clock_s = use_sim_time, 0.0
        self._lock, self._open, self._closed = threading.RLock(), True, threading.Event()
        self._numbers = itertools.count(1)
        self._endpoints: list[Declared] = []
        self._connection = connect(mode, endpoint, config_file)
        session = self._connection.session
        # Exit without close aborts the process: zenoh's threads call into an interpreter that is gone.
        atexit.register(self.close)
        self._lanes, self._pool = Lanes(), ServicePool(workers, max_waiting)
        self._graph = GraphCache(session, self.domain)
        self._place = Place(session, self.domain, self.types, self._graph)
        self._tokens = NodeTokens(self.domain, str(session.zid()), self.node_name)
        self._node_token = session.liveliness().declare_token(self._tokens.of_node())
        self._buffer = TransformBuffer()
        self.transforms: Transforms = self._buffer
        self._listen_to_time_and_frames()

    def _listen_to_time_and_frames(self) -> None:
        if self._sim_time:
            self.subscribe("rosgraph_msgs/msg/Clock", "/clock", self._tick, _CLOCK, lane="clock")
        tf = "tf2_msgs/msg/TFMessage"
        self.subscribe(tf, "/tf", lambda m: self._buffer.add(m, static=False), _TF, lane="tf")
        self.subscribe(tf, "/tf_static", lambda m: self._buffer.add(m, static=True), _TF_STATIC, lane="tf")

    def _tick(self, message: Any) -> None:
        self._clock_s = message.clock.sec + message.clock.nanosec * 1e-9

    @property
    def endpoint(self) -> str:
        """Where the router is; other processes join it there."""
        return self._connection.endpoint

    @property
    def connected(self) -> bool:
        """Whether this process is the router, or reaches it just now. Joining goes on by itself."""
        return self._open and self._connection.connected

    def resolve(self, name: str) -> str:
        """The absolute form of a topic or service name, remappings applied."""
        return remapped(name, self.node_name, self._remappings)

    def new(self, type: str, /, **fields: Any) -> Any:
        """A message; see `Types.new`."""
        return self.types.new(type, **fields)

    def publisher(self, type: str, topic: str, qos: QoS = QoS()) -> ZenohPublisher:  # noqa: B008 (frozen)
        """A topic to publish on."""
        return self._added(ZenohPublisher, "publisher", type, topic, qos)

    def subscribe(
        self, type: str, topic: str, callback: Callable[[Any], None], qos: QoS = SENSOR, *, lane: str = "input",
        raw: bool = False,
    ) -> ZenohSubscription:  # fmt: skip
        """Call back with every message; see `Bus.subscribe`."""
        return self._added(ZenohSubscription, "subscription", type, topic, qos, callback, self._lanes[lane], raw)

    def serve(self, type: str, name: str, handler: Callable[[Any], Any]) -> ZenohServer:
        """Answer requests on the pool of workers; see `Bus.serve`."""
        return self._added(ZenohServer, "server", type, name, QoS(), handler, self._pool)

    def client(self, type: str, name: str) -> ZenohClient:
        """A service to call."""
        return self._added(ZenohClient, "client", type, name, QoS())

    def timer(self, period_s: float, callback: Callable[[], None], *, lane: str = "timer") -> Timer:
        """Call back every so many seconds of wall time, on a lane."""
        return self._lanes[lane].timer(period_s, callback)

    def _added(self, make: Any, kind: Kind, type: str, name: str, qos: QoS, *how: Any) -> Any:
        endpoint = Endpoint(kind, self.resolve(name), type, self.types.hash(type), qos, self.node_name)
        with self._lock:
            if not self._open:
                raise WireError(f"the bus is closed; no {kind} of {endpoint.name} can be made")
            made = make(self._place, endpoint, self._tokens.of_endpoint(next(self._numbers), endpoint), *how)
            self._endpoints = [*(kept for kept in self._endpoints if kept.open), made]
            return made

    def now_s(self) -> float:
        """Seconds: /clock under use_sim_time (0 before the first tick), else the system's clock."""
        return self._clock_s if self._sim_time else time.time()

    def graph(self) -> Graph:
        """What is there to talk to, as known now."""
        return self._graph.read()

    def lanes_busy(self) -> Sequence[str]:
        """Lanes whose callback has run for more than a second."""
        return self._lanes.busy()

    def close(self) -> None:
        """Leave the graph, stop the threads. Safe to call twice, also from a callback or handler."""
        with self._lock:
            first, self._open = self._open, False
        if not first:
            self._closed.wait(_CLOSING_S)
            return
        # While the session is there, those who wait for an answer can be told.
        self._pool.close()
        for made in self._endpoints:
            made.close()
        self._graph.close()
        self._connection.session.close()
        self._lanes.close()
        self._closed.set()
        atexit.unregister(self.close)


def _domain() -> int:
    text = os.environ.get("ROS_DOMAIN_ID", "") or "0"
    if not text.isdigit():
        raise WireError(f"ROS_DOMAIN_ID is {text!r}; it must be a whole number of at least 0")
    return int(text)
