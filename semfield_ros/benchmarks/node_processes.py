"""The processes of `semfield bench node`: the node as people run it, a camera, a Zenoh router; and what they cost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import SemfieldError
from ..node.commands import WireConfig

Wire = Literal["zenoh", "rclpy"]
START_S = 60.0
"""A process that has not shown up within this time never will."""
STOP_S = 20.0


@dataclass(frozen=True)
class Usage:
    """What a process has used: processor time in seconds, over all threads, and resident memory in MB."""

    at_s: float
    cpu_s: float
    rss_mb: float

    def percent_since(self, before: Usage) -> float:
        """Processor use between two looks, in percent of one core."""
        return 100 * (self.cpu_s - before.cpu_s) / max(self.at_s - before.at_s, 1e-9)


def usage(pid: int) -> Usage:
    """Of a process as the system tells (Linux: /proc); nan elsewhere, and of a process that has ended."""
    now_s = time.monotonic()
    try:
        # the name of the program, in brackets, may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
        cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return Usage(now_s, cpu_s, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    except (OSError, IndexError, ValueError):
        return Usage(now_s, float("nan"), float("nan"))


class Child:
    """A process whose lines of JSON are read, and that is gone when this is closed.

    Attributes:
        said: everything it told, newest values by name.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path):
        self.name = name
        self.said: dict[str, Any] = {}
        self.log = folder / f"{name}-{time.monotonic_ns()}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=_environment(), start_new_session=True,  # Ctrl-C is for this process, which ends the others
            )  # fmt: skip
        self._ear = threading.Thread(target=self._listen, daemon=True)
        self._ear.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self.said.update(json.loads(line))

    def say(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def usage(self) -> Usage:
        """What it has used so far."""
        return usage(self.process.pid)

    def check(self) -> None:
        """Raise SemfieldError if it has ended."""
        code = self.process.poll()
        if code is not None:
            raise self._failure(f"ended with code {code}")

    def _failure(self, what: str) -> SemfieldError:
        said = self.log.read_text(encoding="utf-8", errors="replace").strip()
        return SemfieldError(f"the {self.name} process {what}; its last words:\n{said[-2000:]}")

    def wait_for(self, what: Callable[[], Any], timeout_s: float = START_S) -> Any:
        """Wait until `what()` is true; what it is then.

        Raises:
            SemfieldError: it ended meanwhile, or the time is up.
        """
        end_s = time.monotonic() + timeout_s
        while not (found := what()):
            self.check()
            if time.monotonic() > end_s:
                raise self._failure(f"did not get ready within {timeout_s:g} s")
            time.sleep(0.01)
        return found

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Ask it to end; kill it if it does not. Safe to call twice."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._ear.join(1.0)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def _environment() -> dict[str, str]:
    """Where another process finds the package that this one uses."""
    import semfield_ros

    found = str(Path(semfield_ros.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [found, os.environ.get("PYTHONPATH")]))}


@dataclass
class Stage:
    """One wire and the processes on it. Use as a context manager: all of them end with it.

    Attributes:
        folder: for logs, prepared frames and saved maps.
        router: whether the Zenoh router is a process of its own; else the node is it.
    """

    folder: Path
    wire: Wire = "zenoh"
    router: bool = False
    endpoint: str = field(default_factory=lambda: f"tcp/127.0.0.1:{_free_port()}")
    children: list[Child] = field(default_factory=list)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for child in reversed(self.children):
            child.close()

    @property
    def joined(self) -> WireConfig:
        """How this process reaches the others."""
        return WireConfig(kind=self.wire, mode="join", endpoint=self.endpoint)

    def start_router(self) -> Child:
        """A Zenoh router."""
        return self._start("router", ["semfield_ros.benchmarks.node_router", self.endpoint])

    def start_node(self, settings: Mapping[str, object]) -> Child:
        """`semfield node` with these flags."""
        mode = "join" if self.router else "embedded"
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        return self._start("node", ["semfield_ros.cli", "node", *self._wire(mode), *flags])

    def start_camera(self, shots: Path, rate_hz: float) -> Child:
        """A camera that waits for `go`."""
        module = "semfield_ros.benchmarks.node_camera"
        return self._start("camera", [module, str(shots), *self._wire("join"), "--rate-hz", str(rate_hz)])

    def _wire(self, mode: str) -> list[str]:
        return ["--wire.kind", self.wire, "--wire.mode", mode, "--wire.endpoint", self.endpoint]

    def _start(self, name: str, command: Sequence[str]) -> Child:
        child = Child(name, command, self.folder)
        self.children.append(child)
        return child


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
