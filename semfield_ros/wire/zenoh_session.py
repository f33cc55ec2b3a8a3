"""A Zenoh session configured as rmw_zenoh expects it, and who plays the router.

What a Zenoh configuration file says (TLS, access control, endpoints ...) stands; only what it leaves out is filled in.
"""

from __future__ import annotations

import json
import logging
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zenoh

from ..errors import WireError

log = logging.getLogger(__name__)

Mode = Literal["embedded", "join", "test"]
ROUTER_ENDPOINT = "tcp/127.0.0.1:7447"
"""Where ROS 2's Zenoh sessions look for their router."""

_LOCATOR = re.compile(r"(?P<protocol>[a-z-]+)/(?P<host>\[[^\]]+\]|[^:/]+):(?P<port>\d+)")
_CONNECTED = ("tcp", "tls", "ws")
"""Protocols over TCP, whose ports can be tried."""

# As rmw_zenoh's default configuration: no multicast, gossip through the router, peers retry for ever. But a message
# of one packet may wait for the sending thread as long as larger ones may: with 1 ms, half a burst of small images is
# lost on a busy machine.
_COMMON: dict[str, Any] = {
    "scouting/multicast/enabled": False,
    "scouting/gossip/enabled": True,
    "scouting/gossip/target": {"router": ["router", "peer"], "peer": ["router"]},
    "scouting/gossip/autoconnect": {"router": [], "peer": ["router", "peer"]},
    "scouting/delay": 0,
    "timestamping/enabled": {"router": True, "peer": True, "client": True},
    "connect/timeout_ms": {"router": -1, "peer": -1, "client": 0},
    "connect/exit_on_failure": {"router": False, "peer": False, "client": True},
    "connect/retry": {"period_init_ms": 250, "period_max_ms": 2000, "period_increase_factor": 2},
    "queries_default_timeout": 600_000,
    "transport/link/tx/queue/congestion_control/drop/wait_before_drop": 50_000,
}


@dataclass(frozen=True)
class Connection:
    """An open session."""

    session: zenoh.Session
    endpoint: str
    """Where others find the router: this process, or the one it connects to."""
    router: bool
    """Whether this process is the router."""

    @property
    def connected(self) -> bool:
        """Whether there is a router: this process, or one that is reached just now."""
        try:
            return not self.session.is_closed() and (self.router or bool(self.session.info.routers_zid()))
        except (zenoh.ZError, RuntimeError):  # closed by another thread in between
            return False


def connect(mode: Mode, endpoint: str = ROUTER_ENDPOINT, config_file: str | Path | None = None) -> Connection:
    """Open a session.

    Args:
        mode: `embedded`: this process is the router at `endpoint`, or a peer of the router that is there already.
            `join`: a peer of the router at `endpoint`, which may come and go. `test`: a router on a free port.
        endpoint: such as `tcp/127.0.0.1:7447`. Ignored in `test`.
        config_file: a Zenoh configuration (JSON5) whose values stand.

    Raises:
        WireError: a mode, endpoint or file that cannot be used.
    """
    zenoh.try_init_log_from_env()
    if mode == "join":
        return _peer(endpoint, config_file)
    if mode == "embedded":
        return _router_or_peer(endpoint, config_file)
    if mode == "test":
        # Another process may take the port between its choice and its use.
        for _ in range(4):
            try:
                return _router(f"tcp/127.0.0.1:{_free_port()}", config_file)
            except zenoh.ZError as error:
                refused = _first_line(error)
        raise WireError(f"no router can be opened on a free port of 127.0.0.1: {refused}")
    raise WireError(f"mode {mode!r} is not known; use embedded, join or test")


def _router_or_peer(endpoint: str, config_file: str | Path | None) -> Connection:
    try:
        return _router(endpoint, config_file)
    except zenoh.ZError as error:
        if not _answers(endpoint):
            raise WireError(
                f"no router can be opened at {endpoint}: {_first_line(error)}; use an address of this machine, or the "
                "mode join for a router elsewhere"
            ) from error
        log.info("%s is taken; joining the router there", endpoint)
        return _peer(endpoint, config_file)


def _router(endpoint: str, config_file: str | Path | None) -> Connection:
    _check(endpoint)
    return _open(configuration("router", endpoint, config_file), "listen", endpoint)


def _peer(endpoint: str, config_file: str | Path | None) -> Connection:
    _check(endpoint)
    try:
        return _open(configuration("peer", endpoint, config_file), "connect", endpoint)
    except zenoh.ZError as error:
        raise WireError(f"no session could be opened towards {endpoint}: {_first_line(error)}") from error


def configuration(role: Literal["router", "peer"], endpoint: str, config_file: str | Path | None) -> zenoh.Config:
    """The configuration of a router that listens at `endpoint`, or of a peer that connects to it.

    Raises:
        WireError: a file that is missing or no Zenoh configuration.
    """
    config, untouched = _read(config_file), zenoh.Config()
    local = "tcp/127.0.0.1:0"
    ours = {
        **_COMMON,
        "mode": role,
        "listen/endpoints": [endpoint if role == "router" else local],
        "connect/endpoints": [] if role == "router" else [endpoint],
    }
    for key, value in ours.items():
        if _value(config, key) == _value(untouched, key):
            config.insert_json5(key, json.dumps(value))
    return config


def _read(config_file: str | Path | None) -> zenoh.Config:
    if config_file is None:
        return zenoh.Config()
    path = Path(config_file).expanduser()
    if not path.is_file():
        raise WireError(f"the Zenoh configuration file {path} does not exist")
    try:
        return zenoh.Config.from_file(str(path))
    except zenoh.ZError as error:
        raise WireError(f"{path} is no Zenoh configuration: {_first_line(error)}") from error


def _value(config: zenoh.Config, key: str) -> Any:
    return json.loads(config.get_json(key))


def _open(config: zenoh.Config, side: Literal["listen", "connect"], endpoint: str) -> Connection:
    """A session; the first endpoint it uses in the end, as a configuration file may have its own."""
    mode, used = _value(config, "mode"), _value(config, f"{side}/endpoints")
    used = used.get(mode) if isinstance(used, dict) else used
    return Connection(zenoh.open(config), str(used[0]) if used else endpoint, mode == "router")


def _check(endpoint: str) -> None:
    if not _LOCATOR.match(endpoint):
        raise WireError(f"{endpoint!r} is no Zenoh endpoint; write PROTOCOL/HOST:PORT, such as {ROUTER_ENDPOINT}")


def _answers(endpoint: str) -> bool:
    """Whether something accepts connections there."""
    found = _LOCATOR.match(endpoint)
    if not found or found["protocol"] not in _CONNECTED:
        return False
    try:
        with socket.create_connection((found["host"].strip("[]"), int(found["port"])), timeout=0.5):
            return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_line(error: Exception) -> str:
    """Zenoh's messages end with the places in its sources."""
    return str(error).splitlines()[0].partition(" at /")[0].rstrip(". [") if str(error) else type(error).__name__
