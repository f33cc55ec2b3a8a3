"""Publishers, subscriptions, servers and clients on a Zenoh session, as rmw_zenoh makes them."""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

import zenoh
import zenoh.ext

from ..errors import WireError
from ..messages.types import Types
from .bus import Endpoint, RemoteError, ServiceTimeout, ServiceUnavailable, Traffic
from .graph import why_silent
from .lanes import Inbox, Lane, depth_of
from .pool import ServicePool
from .zenoh_graph import GraphCache, gid_of, key_expression, read_attachment, write_attachment

log = logging.getLogger(__name__)

_HEARTBEAT_S = 0.5
_EVERY_SERVER = zenoh.QueryTarget.ALL_COMPLETE
_GRACE_S = 1.0
"""How much later than its caller zenoh gives a call up."""
_POLL_S = 0.01


@dataclass(frozen=True)
class Place:
    """What every endpoint needs to know of its bus."""

    session: zenoh.Session
    domain: int
    types: Types
    graph: GraphCache


class Declared:
    """An endpoint with its liveliness token; taken back once, whatever state the session is in."""

    def __init__(self, place: Place, endpoint: Endpoint, token: str):
        self.endpoint = endpoint
        self.key = key_expression(place.domain, endpoint.name, endpoint.type, endpoint.type_hash)
        self._place, self._gid = place, gid_of(token)
        self._count = 0
        # Around every use of the entity: zenoh's objects cannot be undeclared while another thread is in them.
        self._lock = threading.Lock()
        try:
            self._entity = self._declare(place.session)
            # After the entity: whoever sees the token may send at once.
            self._token = place.session.liveliness().declare_token(token)
        except zenoh.ZError as error:
            raise WireError(f"{endpoint.kind} {endpoint.name} could not be declared: {error}") from error
        self.open = True

    def _declare(self, session: zenoh.Session) -> Any:
        raise NotImplementedError

    def _encoded(self, message: Any, type: str) -> bytes | bytearray:
        """CDR bytes of a message that must be of that type; bytes are taken as they are."""
        if isinstance(message, bytes):
            return message
        found = getattr(message, "__msgtype__", message.__class__.__name__)
        if found != type:
            raise WireError(f"{self.endpoint.name} carries {type}, not {found}")
        return self._place.types.encode_buffer(message)

    def _attachment(self) -> bytes:
        """What goes with the next message; under the lock."""
        self._count += 1
        return write_attachment(self._count, self._gid)

    def close(self) -> None:
        """Leave the graph. Safe to call twice."""
        with self._lock:
            if not self.open:
                return
            self.open = False
            for declared in (self._token, self._entity):
                try:
                    declared.undeclare()
                except zenoh.ZError as error:
                    log.debug("%s: %s", self.endpoint.name, error)


class ZenohPublisher(Declared):
    """A topic this node publishes. Made by `ZenohBus.publisher`."""

    def __init__(self, place: Place, endpoint: Endpoint, token: str):
        self.topic = endpoint.name
        super().__init__(place, endpoint, token)

    def _declare(self, session: zenoh.Session) -> Any:
        qos = self.endpoint.qos
        how: dict[str, Any] = {
            "congestion_control": zenoh.CongestionControl.DROP,
            "reliability": zenoh.Reliability.RELIABLE if qos.reliable else zenoh.Reliability.BEST_EFFORT,
        }
        if not qos.transient_local:
            return session.declare_publisher(self.key, **how)
        missed = zenoh.ext.MissDetectionConfig(heartbeat=None, sporadic_heartbeat=_HEARTBEAT_S)
        return zenoh.ext.declare_advanced_publisher(
            session, self.key, cache=zenoh.ext.CacheConfig(depth_of(qos)), publisher_detection=True,
            sample_miss_detection=missed if qos.reliable else None, **how,
        )  # fmt: skip

    def publish(self, message: Any) -> None:
        """Send a message of the topic's type, or its CDR bytes. A closed publisher sends nothing.

        Slow subscribers are not waited for; a congested network is, for 50 ms, before the message is given up.

        Raises:
            WireError: a message of another type, or with fields that cannot be encoded.
        """
        data = self._encoded(message, self.endpoint.type)
        with self._lock:
            if not self.open:
                return
            try:
                self._entity.put(data, attachment=self._attachment())
            except zenoh.ZError as error:
                log.debug("%s: not sent: %s", self.topic, error)

    @property
    def subscribers(self) -> int:
        """How many subscriptions of the graph fit."""
        wanted = self.endpoint
        return sum(
            e.type == wanted.type and e.type_hash == wanted.type_hash
            for e in self._place.graph.read().of(self.topic, "subscription")
        )


class ZenohSubscription(Declared):
    """A topic this node listens to. Made by `ZenohBus.subscribe`."""

    def __init__(
        self, place: Place, endpoint: Endpoint, token: str, callback: Callable[[Any], None], lane: Lane, raw: bool
    ):
        self.topic, self.type, self.qos = endpoint.name, endpoint.type, endpoint.qos
        types = place.types

        def decoded(payload: zenoh.ZBytes) -> Any:
            return types.decode(payload.to_bytes(), endpoint.type)

        self._inbox: Inbox = lane.inbox(
            self.topic, callback, depth_of(self.qos), zenoh.ZBytes.to_bytes if raw else decoded
        )
        self.traffic: Traffic = self._inbox.traffic
        super().__init__(place, endpoint, token)

    def _declare(self, session: zenoh.Session) -> Any:
        put = self._inbox.put

        def heard(sample: zenoh.Sample) -> None:
            put(sample.payload)

        handler: Any = zenoh.handlers.Callback(heard, indirect=False)
        if not self.qos.transient_local:
            return session.declare_subscriber(self.key, handler)
        return zenoh.ext.declare_advanced_subscriber(
            session, self.key, handler, subscriber_detection=True,
            history=zenoh.ext.HistoryConfig(detect_late_publishers=True, max_samples=depth_of(self.qos)),
            recovery=zenoh.ext.RecoveryConfig(periodic_queries=None, heartbeat=True) if self.qos.reliable else None,
        )  # fmt: skip

    def close(self) -> None:
        """Leave the graph; what waits counts as dropped."""
        super().close()
        self._inbox.close()


class ZenohServer(Declared):
    """A service this node answers. Made by `ZenohBus.serve`."""

    def __init__(self, place: Place, endpoint: Endpoint, token: str, handler: Callable[[Any], Any], pool: ServicePool):
        self.name, self._handler, self._pool = endpoint.name, handler, pool
        super().__init__(place, endpoint, token)

    def _declare(self, session: zenoh.Session) -> Any:
        handler: Any = zenoh.handlers.Callback(self._heard, indirect=False)
        return session.declare_queryable(self.key, handler, complete=True)

    def _heard(self, query: zenoh.Query) -> None:
        self._pool.submit(lambda: self._answer(query), lambda reason: self._refuse(query, reason))

    def _answer(self, query: zenoh.Query) -> None:
        with query:
            type_name = self.endpoint.type
            try:
                request = self._place.types.decode(_bytes(query.payload), f"{type_name}_Request")
            except WireError as error:
                return self._fail(query, f"malformed request: {error}")
            try:
                data = self._encoded(self._handler(request), f"{type_name}_Response")
            except Exception as error:
                log.exception("service %s failed", self.name)
                return self._fail(query, f"{type(error).__name__}: {error}")
            self._send(query, data)

    def _refuse(self, query: zenoh.Query, reason: str) -> None:
        """Say so in the response where the type can: callers through rmw_zenoh never see an error reply."""
        with query:
            types, response = self._place.types, f"{self.endpoint.type}_Response"
            if {"success", "message"} <= set(types.fields(response)):
                self._send(query, types.encode(types.new(response, success=False, message=reason)))
            else:
                self._fail(query, reason)

    def _send(self, query: zenoh.Query, data: bytes | bytearray) -> None:
        try:
            number, gid = read_attachment(_bytes(query.attachment))
        except struct.error:
            number, gid = 0, self._gid
        try:
            query.reply(self.key, data, attachment=write_attachment(number, gid))
        except zenoh.ZError as error:
            log.debug("%s: the caller is gone: %s", self.name, error)

    def _fail(self, query: zenoh.Query, reason: str) -> None:
        try:
            query.reply_err(reason.encode())
        except zenoh.ZError as error:
            log.debug("%s: the caller is gone: %s", self.name, error)


class ZenohClient(Declared):
    """A service this node calls. Made by `ZenohBus.client`."""

    def __init__(self, place: Place, endpoint: Endpoint, token: str):
        self.name = endpoint.name
        super().__init__(place, endpoint, token)

    def _declare(self, session: zenoh.Session) -> Any:
        """Tells whether somebody serves; calls have timeouts of their own, which a querier has not."""
        return session.declare_querier(self.key, target=_EVERY_SERVER)

    def wait(self, timeout_s: float) -> bool:
        """Whether a server is there within that time."""
        end_s = time.monotonic() + timeout_s
        while not self._served():
            if not self.open or time.monotonic() >= end_s:
                return False
            time.sleep(_POLL_S)
        return True

    def _served(self) -> bool:
        """Whether a server is there now."""
        with self._lock:
            return self.open and bool(self._entity.matching_status.matching)

    def call(self, request: Any, timeout_s: float = 10.0) -> Any:
        """The response of the first server that answers.

        Raises:
            ServiceUnavailable: nobody serves, or the server died before it answered.
            ServiceTimeout: no answer in time.
            RemoteError: the server refused or failed.
        """
        data = self._encoded(request, f"{self.endpoint.type}_Request")
        if not self._served():
            raise ServiceUnavailable(self._absence())
        answer: Future[bytes] = Future()
        cancellation = zenoh.CancellationToken()
        handler: Any = zenoh.handlers.Callback(
            lambda reply: self._replied(answer, reply), lambda: self._ended(answer), indirect=False
        )
        try:
            with self._lock:
                if not self.open:
                    raise ServiceUnavailable(self._absence())
                # Zenoh keeps a kilobyte a call until the call's own limit has passed, so that must not be long.
                self._place.session.get(
                    self.key, handler, target=_EVERY_SERVER, consolidation=zenoh.ConsolidationMode.NONE,
                    timeout=timeout_s + _GRACE_S, payload=data, attachment=self._attachment(),
                    cancellation_token=cancellation,
                )  # fmt: skip
            reply = answer.result(timeout_s)
        except zenoh.ZError as error:
            raise ServiceUnavailable(f"{self.name}: {error}") from error
        except FutureTimeout:
            cancellation.cancel()
            raise ServiceTimeout(f"{self.name} did not answer within {timeout_s:g} s") from None
        try:
            return self._place.types.decode(reply, f"{self.endpoint.type}_Response")
        except WireError as error:
            raise RemoteError(f"{self.name}: malformed response: {error}") from error

    def _replied(self, answer: Future[bytes], reply: zenoh.Reply) -> None:
        """On zenoh's thread. Where several servers answer, the first is heard."""
        if answer.done():
            return
        if reply.ok is not None:
            answer.set_result(reply.ok.payload.to_bytes())
        elif reply.err is not None:
            answer.set_exception(RemoteError(f"{self.name}: {_bytes(reply.err.payload).decode('utf-8', 'replace')}"))

    def _ended(self, answer: Future[bytes]) -> None:
        """On zenoh's thread, after the last reply, or when nobody is left who could send one."""
        if not answer.done():
            answer.set_exception(ServiceUnavailable(f"{self.name}: the server went away before it answered"))

    def _absence(self) -> str:
        if not self.open:
            return f"the client of {self.name} is closed"
        return why_silent(self._place.graph.read(), self.endpoint) or f"{self.name} is not reachable yet; wait for it"


def _bytes(data: zenoh.ZBytes | None) -> bytes:
    return b"" if data is None else data.to_bytes()
