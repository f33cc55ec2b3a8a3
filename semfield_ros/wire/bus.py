"""The Bus: all the node knows of the middleware. Two implementations: `zenoh_bus.ZenohBus` and `rclpy_bus.RclpyBus`.

Messages are objects of `messages.types` on both (CDR bytes are the common currency underneath), names follow ROS: `/a`
absolute, `a` in the node's namespace, `~/a` under the node's own name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from ..errors import WireError
from ..messages.types import Types


class ServiceUnavailable(WireError):
    """Nobody serves that name, or the server died before it answered."""


class ServiceTimeout(WireError):
    """The server did not answer in time."""


class RemoteError(WireError):
    """The server refused the request as malformed or failed with an exception."""


@dataclass(frozen=True)
class QoS:
    """Quality of service. The default is ROS's: reliable, volatile, keep the last 10."""

    depth: int = 10
    reliable: bool = True
    transient_local: bool = False
    keep_all: bool = False


SENSOR = QoS(1, reliable=False)
LATCHED = QoS(1, transient_local=True)


@dataclass(frozen=True)
class Endpoint:
    """One publisher, subscription, server or client of the ROS graph."""

    kind: Literal["publisher", "subscription", "server", "client"]
    name: str
    """Topic or service, absolute."""
    type: str
    """`sensor_msgs/msg/Image`; of a service `std_srvs/srv/Trigger`."""
    type_hash: str
    """`RIHS01_...`; empty where the middleware does not tell."""
    qos: QoS
    node: str
    """Absolute name of the node it belongs to."""


@dataclass(frozen=True)
class Graph:
    """What is there to talk to."""

    endpoints: tuple[Endpoint, ...] = ()
    nodes: tuple[str, ...] = ()

    def of(self, name: str, kind: str) -> list[Endpoint]:
        """Endpoints of a kind on an absolute topic or service name."""
        return [e for e in self.endpoints if e.name == name and e.kind == kind]


@dataclass
class Traffic:
    """Counters of one subscription. `received` = handled + dropped + malformed + failed + still waiting."""

    received: int = 0
    handled: int = 0
    dropped: int = 0
    """Superseded in a full queue before they were handled."""
    malformed: int = 0
    failed: int = 0
    """The callback raised."""
    last_error: str = ""
    callback_s: list[float] = field(default_factory=list)
    """Durations of the last callbacks (bounded)."""


class Publisher(Protocol):
    """A topic this node publishes."""

    topic: str

    def publish(self, message: Any) -> None:
        """Send; never blocks on slow subscribers, never raises because the session is closing."""

    @property
    def subscribers(self) -> int:
        """How many listen (the Zenoh wire says only 0 or 1: none or some)."""

    def close(self) -> None: ...


class Subscription(Protocol):
    """A topic this node listens to. Its callback runs on its lane's thread."""

    topic: str
    type: str
    qos: QoS
    traffic: Traffic

    def close(self) -> None: ...


class Client(Protocol):
    """A service this node calls."""

    def wait(self, timeout_s: float) -> bool:
        """Whether a server is there within that time."""

    def call(self, request: Any, timeout_s: float = 10.0) -> Any:
        """The response. Raises ServiceUnavailable, ServiceTimeout or RemoteError. Not from a callback of this bus."""

    def close(self) -> None: ...


class Transforms(Protocol):
    """tf2, or its stand-in: where frames are."""

    def lookup(self, target: str, source: str, stamp_s: float) -> np.ndarray:
        """T_target_source [4, 4] at a time, interpolated; never waits.

        Raises:
            TransformMissing (messages.transforms): says whether a frame is unknown, the trees are not connected, or the
                time lies before or after what is known.
        """

    def clear(self) -> None:
        """Forget everything (time jumped back). Static transforms stay."""


class Bus(Protocol):
    """A node on the ROS 2 graph."""

    node_name: str
    """Absolute name, `/namespace/name`."""
    types: Types
    transforms: Transforms

    def resolve(self, name: str) -> str:
        """The absolute form of a topic or service name, remappings applied."""

    def new(self, type: str, /, **fields: Any) -> Any:
        """A message; see `Types.new`."""

    def publisher(self, type: str, topic: str, qos: QoS = QoS()) -> Publisher: ...

    def subscribe(
        self, type: str, topic: str, callback: Callable[[Any], None], qos: QoS = SENSOR, *, lane: str = "input",
        raw: bool = False,
    ) -> Subscription:  # fmt: skip
        """Call back with every message, in order; callbacks of one lane never overlap, those of two lanes may.

        At most `qos.depth` messages wait; the oldest is dropped, counted in `traffic`. With `raw`, the callback gets
        the CDR bytes.
        """

    def serve(self, type: str, name: str, handler: Callable[[Any], Any]) -> Closeable:
        """Answer requests (`TYPE_Request` -> `TYPE_Response`) on a pool of worker threads, several at a time.

        A handler answers what went wrong as `success=False` with a message. An exception is logged; the caller gets an
        error (Zenoh) or a default response with `success=False` and the message where the type has these (rclpy).
        """

    def client(self, type: str, name: str) -> Client: ...

    def timer(self, period_s: float, callback: Callable[[], None], *, lane: str = "timer") -> Closeable:
        """Call back every so many seconds of wall time, on a lane; a late callback is not repeated to catch up."""

    def now_s(self) -> float:
        """Seconds: /clock under use_sim_time (0 before the first tick), else the system's clock."""

    def graph(self) -> Graph: ...

    def lanes_busy(self) -> Sequence[str]:
        """Lanes whose callback has run for more than a second: for diagnostics."""

    def close(self) -> None:
        """Leave the graph, stop the threads. Safe to call twice."""


class Closeable(Protocol):
    """Something that can be taken back."""

    def close(self) -> None: ...
