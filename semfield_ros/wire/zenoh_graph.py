"""rmw_zenoh's names: key expressions of topics and services, liveliness tokens, and the graph read from them.

The format follows rmw_zenoh_cpp's design document ("Graph cache") and its `liveliness_utils`.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import xxhash
import zenoh

from .bus import Endpoint, Graph, QoS

log = logging.getLogger(__name__)

Kind = Literal["publisher", "subscription", "server", "client"]

_SPACE = "@ros2_lv"
_CODES: dict[str, Kind] = {"MP": "publisher", "MS": "subscription", "SS": "server", "SC": "client"}
_CODE_OF = {kind: code for code, kind in _CODES.items()}
_DEFAULT_DEPTH = 42
"""rmw_zenoh's: a token leaves out what is default."""
_ATTACHMENT = struct.Struct("<qqB16s")
_GID_BYTES = 16


def dds_type(name: str) -> str:
    """`sensor_msgs/msg/Image` -> `sensor_msgs::msg::dds_::Image_`."""
    package, kind, base = name.split("/")
    return f"{package}::{kind}::dds_::{base}_"


def ros_type(name: str) -> str:
    """The way back; what has no such form is left as it is."""
    parts = name.split("::")
    if len(parts) != 4 or parts[2] != "dds_":
        return name
    return "/".join([*parts[:2], parts[3].removesuffix("_")])


def key_expression(domain: int, name: str, type: str, type_hash: str) -> str:
    """Where samples of a topic, or calls of a service, travel."""
    return f"{domain}/{name.strip('/')}/{dds_type(type)}/{type_hash}"


def write_qos(qos: QoS) -> str:
    """The last part of a token: reliability:durability:history,depth:deadline:lifespan:liveliness."""
    reliability = "" if qos.reliable else "2"
    durability = "1" if qos.transient_local else ""
    return f"{reliability}:{durability}:{'2' if qos.keep_all else ''},{qos.depth}:,:,:,,"


def read_qos(text: str) -> QoS:
    """The way back; ValueError or IndexError when it is none."""
    reliability, durability, history, *_ = text.split(":")
    kept, depth = history.split(",")
    return QoS(
        depth=int(depth) if depth else _DEFAULT_DEPTH,
        reliable=reliability != "2",
        transient_local=durability == "1",
        keep_all=kept == "2",
    )


@dataclass(frozen=True)
class NodeTokens:
    """Writes the liveliness tokens of one node and its endpoints."""

    domain: int
    session_id: str
    node: str
    """Absolute name."""

    def of_node(self) -> str:
        """The token every node needs exactly one of."""
        return self._token(0, "NN")

    def of_endpoint(self, number: int, endpoint: Endpoint) -> str:
        """The token of an endpoint; `number` tells those of one session apart."""
        return self._token(
            number, _CODE_OF[endpoint.kind], _mangled(endpoint.name), dds_type(endpoint.type), endpoint.type_hash,
            write_qos(endpoint.qos),
        )  # fmt: skip

    def _token(self, number: int, code: str, *rest: str) -> str:
        namespace, _, name = self.node.rpartition("/")
        where = [_SPACE, str(self.domain), self.session_id, "0", str(number), code]
        return "/".join([*where, "%", _mangled(namespace or "/"), name, *rest])


def read_token(token: str) -> Endpoint | str | None:
    """An endpoint, the absolute name of a node, or None for what is neither."""
    parts = token.split("/")
    if len(parts) < 9 or parts[0] != _SPACE:
        return None
    code, namespace, name = parts[5], _plain(parts[7]), _plain(parts[8])
    node = f"{'' if namespace == '/' else namespace}/{name}"
    if code == "NN":
        return node
    try:
        topic, type_name, type_hash, qos = parts[9:13]
        return Endpoint(_CODES[code], _plain(topic), ros_type(type_name), type_hash, read_qos(qos), node)
    except (KeyError, ValueError, IndexError):
        return None


def graph_of(tokens: Iterable[str]) -> Graph:
    """The graph that liveliness tokens describe; foreign ones are skipped."""
    found = [read_token(token) for token in tokens]
    endpoints = [e for e in found if isinstance(e, Endpoint)]
    nodes = {n for n in found if isinstance(n, str)}
    return Graph(tuple(sorted(endpoints, key=lambda e: (e.name, e.kind, e.node, e.type_hash))), tuple(sorted(nodes)))


class GraphCache:
    """The tokens alive just now, kept up to date by a liveliness subscription: reading the graph asks nobody."""

    def __init__(self, session: zenoh.Session, domain: int):
        self._tokens: set[str] = set()
        self._version = 0
        self._read: tuple[int, Graph] = (0, Graph())
        self._lock = threading.Lock()
        self._subscriber = session.liveliness().declare_subscriber(
            f"{_SPACE}/{domain}/**", zenoh.handlers.Callback(self._heard, indirect=False), history=True
        )

    def _heard(self, sample: zenoh.Sample) -> None:
        token = str(sample.key_expr)
        with self._lock:
            (self._tokens.add if sample.kind == zenoh.SampleKind.PUT else self._tokens.discard)(token)
            self._version += 1

    def read(self) -> Graph:
        """The graph as it is known now."""
        with self._lock:
            version, graph = self._read
            if version == self._version:
                return graph
            version, tokens = self._version, list(self._tokens)
        graph = graph_of(tokens)
        with self._lock:
            self._read = max(self._read, (version, graph), key=lambda read: read[0])
        return graph

    def close(self) -> None:
        """Hear no more."""
        self._subscriber.undeclare()


def gid_of(token: str) -> bytes:
    """The 16 bytes that identify an endpoint: XXH3-128 of its token, low half first, as others compute it."""
    return bytes(xxhash.xxh3_128_digest(token.encode())[::-1])


def write_attachment(number: int, gid: bytes) -> bytes:
    """What rmw_zenoh expects beside every payload: sequence number, time of sending, who."""
    return _ATTACHMENT.pack(number, time.time_ns(), _GID_BYTES, gid)


def read_attachment(data: bytes) -> tuple[int, bytes]:
    """Sequence number and gid of a request.

    Raises:
        struct.error: bytes that are none.
    """
    number, _, _, gid = _ATTACHMENT.unpack(data)
    return number, gid


def _mangled(name: str) -> str:
    return name.replace("/", "%")


def _plain(name: str) -> str:
    return name.replace("%", "/")
