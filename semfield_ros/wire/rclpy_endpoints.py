"""Publishers, subscriptions, servers and clients of the Bus on rclpy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rclpy.qos import QoSProfile, qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # before Iron
    from rclpy.qos_event import SubscriptionEventCallbacks

from ..errors import WireError
from .bus import QoS, ServiceTimeout, ServiceUnavailable, Traffic
from .lanes import Inbox, depth_of
from .rclpy_executor import Deferred
from .rclpy_graph import profile_of, qos_of
from .rclpy_types import failed, from_ros, ros_class, to_ros

if TYPE_CHECKING:
    from .rclpy_bus import RclpyBus

log = logging.getLogger(__name__)

SOCKET_DEPTH = 30
"""DDS keeps at least so many messages for us until the executor takes them: what it drops meanwhile nobody counts."""
ALIVE_S = 0.05
"""How often a waiting call looks whether its server still lives."""
REQUESTS_KEPT = 200
"""Of a burst, until the executor takes them; with the default of 10 the others are never answered."""


class RclpyPublisher:
    """A topic this node publishes."""

    def __init__(self, bus: RclpyBus, type: str, topic: str, qos: QoS):
        self.type = type
        self._bus = bus
        self._publisher = bus.node.create_publisher(
            ros_class(type), topic, profile_of(qos), callback_group=bus.group,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )  # fmt: skip
        self.topic = bus.resolve(topic)

    def publish(self, message: Any) -> None:
        """Send a message, or its CDR bytes. Quietly nothing while the bus or the process shuts down.

        Raises:
            WireError: a message of another type.
        """
        data = message if isinstance(message, bytes) else self._encoded(message)
        try:
            self._publisher.publish(data)
        except Exception as error:  # RCLError, InvalidHandle: they have no common ancestor
            if self._bus.alive:
                log.warning("%s: not published: %s", self.topic, error)

    def _encoded(self, message: Any) -> bytes:
        if message.__msgtype__ != self.type:
            raise WireError(f"{self.topic} carries {self.type}, not {message.__msgtype__}")
        return self._bus.types.encode(message)

    @property
    def subscribers(self) -> int:
        """How many listen."""
        try:
            return int(self._publisher.get_subscription_count())
        except Exception:
            return 0

    def close(self) -> None:
        """Stop publishing."""
        self._bus.forget(self)
        self._bus.node.destroy_publisher(self._publisher)


class RclpySubscription:
    """A topic this node listens to.

    Attributes:
        lost: messages that DDS says never arrived; they are not in `traffic`.
    """

    def __init__(self, bus: RclpyBus, type: str, topic: str, qos: QoS, make_inbox: Callable[[str, int], Inbox]):
        self.type, self.topic = type, bus.resolve(topic)
        self.lost = 0
        self._bus = bus
        self._made = threading.Lock()
        # A message may come before this is finished, on the executor's thread: it waits at the lock.
        with self._made:
            self._subscribe(topic, qos, make_inbox)

    def _subscribe(self, topic: str, qos: QoS, make_inbox: Callable[[str, int], Inbox]) -> None:
        # Of latched topics the depth is how much of the past is asked for.
        profile = profile_of(qos, qos.depth if qos.transient_local else max(qos.depth, SOCKET_DEPTH))
        asked = profile.depth
        self._subscription = self._bus.node.create_subscription(
            ros_class(self.type), topic, self._put, profile, raw=True, callback_group=self._bus.group,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._incompatible, message_lost=self._lost),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )  # fmt: skip
        used = qos_of(profile)
        depth = qos.depth if used.depth == asked else used.depth  # overridden by a parameter
        self.qos = QoS(depth, used.reliable, used.transient_local, used.keep_all)
        self._inbox = make_inbox(self.topic, depth_of(self.qos))
        self.traffic: Traffic = self._inbox.traffic
        """What came, and what became of it."""

    @property
    def publishers(self) -> int:
        """How many are heard."""
        return int(self._subscription.get_publisher_count())

    def close(self) -> None:
        """No callback starts after this."""
        self._inbox.close()
        self._bus.forget(self)
        self._bus.node.destroy_subscription(self._subscription)

    def _put(self, data: bytes) -> None:
        with self._made:
            self._inbox.put(data)

    def _incompatible(self, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
        with self._made:
            reason = (
                f"{event.total_count} publisher(s) of {self.topic} offer less {policy} than is asked for and send us "
                f"nothing; ask for less than {self.qos}, or let them offer more"
            )
            self.traffic.last_error = reason
        log.warning("%s", reason)

    def _lost(self, event: Any) -> None:
        self.lost += event.total_count_change


class RclpyService:
    """A service of this node: requests go to the pool, answers come back as futures."""

    def __init__(self, bus: RclpyBus, type: str, name: str, handler: Callable[[Any], Any]):
        self._bus, self._type, self._handler = bus, type, handler
        self._name = bus.resolve(name)
        self._kind = ros_class(type)
        qos = QoSProfile(depth=REQUESTS_KEPT)
        self._service = bus.node.create_service(
            self._kind, name, self._answer, qos_profile=qos, callback_group=bus.group
        )

    def close(self) -> None:
        """Answer no more."""
        self._bus.forget(self)
        self._bus.node.destroy_service(self._service)

    async def _answer(self, request: Any, _: Any) -> Any:
        answer = Deferred(self._bus.executor)
        self._bus.pool.submit(
            lambda: answer.set(self._handle(request)), lambda reason: answer.set(self._failed(reason))
        )
        return await answer.future

    def _handle(self, request: Any) -> Any:
        types = self._bus.types
        try:
            response = self._handler(from_ros(types, request, f"{self._type}_Request"))
            return to_ros(types, response, self._kind.Response)
        except Exception as error:
            log.exception("%s failed", self._name)
            return self._failed(f"{type(error).__name__}: {error}")

    def _failed(self, reason: str) -> Any:
        types = self._bus.types
        return to_ros(types, failed(types, f"{self._type}_Response", reason), self._kind.Response)


class RclpyClient:
    """A service this node calls."""

    def __init__(self, bus: RclpyBus, type: str, name: str):
        self._bus, self._type, self._name = bus, type, bus.resolve(name)
        self._kind = ros_class(type)
        self._client = bus.node.create_client(self._kind, name, callback_group=bus.group)

    def wait(self, timeout_s: float) -> bool:
        """Whether a server is there within that time."""
        end_s = time.monotonic() + timeout_s
        while not self._ready():
            if time.monotonic() >= end_s or not self._bus.alive:
                return False
            time.sleep(min(ALIVE_S, max(0.0, end_s - time.monotonic())))
        return True

    def call(self, request: Any, timeout_s: float = 10.0) -> Any:
        """The response. Raises ServiceUnavailable or ServiceTimeout. Not from the executor's own thread."""
        types = self._bus.types
        if request.__msgtype__ != f"{self._type}_Request":
            raise WireError(f"{self._name} takes {self._type}_Request, not {request.__msgtype__}")
        if not self._ready():
            raise ServiceUnavailable(f"nobody serves {self._name}; is its node running, and in this ROS domain?")
        future = self._client.call_async(to_ros(types, request, self._kind.Request))
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        end_s = time.monotonic() + timeout_s
        try:
            while not done.wait(min(ALIVE_S, max(0.0, end_s - time.monotonic()))):
                if not self._ready() and not done.is_set():
                    raise ServiceUnavailable(f"the server of {self._name} went away before it answered")
                if time.monotonic() >= end_s:
                    raise ServiceTimeout(f"{self._name} did not answer within {timeout_s:g} s")
        finally:
            self._client.remove_pending_request(future)
        return from_ros(types, future.result(), f"{self._type}_Response")

    def close(self) -> None:
        """Call no more."""
        self._bus.forget(self)
        self._bus.node.destroy_client(self._client)

    def _ready(self) -> bool:
        try:
            return self._bus.alive and bool(self._client.service_is_ready())
        except Exception:  # the handle is gone
            return False
