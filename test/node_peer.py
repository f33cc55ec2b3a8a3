"""A robot in another process: it publishes, listens and calls what the tests of the node tell it, over a real wire.

`Robot` runs in the tests' process and speaks to its own process through pipes; messages travel as CDR bytes. Run by
`Robot`, never by pytest.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PATIENCE_S = 60.0
"""Only what is broken takes so long, on a loaded machine too."""
OTHER_HASH = "RIHS01_" + "0" * 64


def until(condition: Callable[[], Any], what: Callable[[], Any] | str = "", timeout_s: float = PATIENCE_S) -> Any:
    """Wait for something to become true; what it is then."""
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > end_s:
            raise TimeoutError(f"not true within {timeout_s} s: {what() if callable(what) else what}")
        time.sleep(0.01)
    return value


def free_endpoint() -> str:
    """Where a router can be opened."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp/127.0.0.1:{probe.getsockname()[1]}"


def environment() -> dict[str, str]:
    """Where another process finds the package that this one uses, and leaves cores to others."""
    import semfield_ros

    found = str(Path(semfield_ros.__file__).parents[1])
    path = os.pathsep.join([found, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ROS_DOMAIN_ID": "0"}


# ---- in the tests' process ----------------------------------------------------------------------------------------


class Robot:
    """The other process, seen from the test."""

    def __init__(self, endpoint: str = "", **join: Any):
        from semfield_ros.messages.types import types

        self.types = types()
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, env=environment())
        self._lock = threading.Lock()
        if endpoint:
            self.join(endpoint, **join)

    def do(self, what: str, *values: Any, **how: Any) -> Any:
        """What the other process answers; its error is raised here."""
        with self._lock:
            assert self.process.stdin and self.process.stdout
            pickle.dump((what, values, how), self.process.stdin)
            self.process.stdin.flush()
            fine, value = pickle.load(self.process.stdout)
        if not fine:
            raise RuntimeError(value)
        return value

    def join(self, endpoint: str, name: str = "robot", **how: Any) -> str:
        """Be a node on the wire there, and no longer one elsewhere; the router's endpoint."""
        return self.do("join", endpoint, name, **how)

    def publish(self, messages: Iterable[tuple[str, Any]], **how: Any) -> None:
        """Send (topic, message or (type, bytes)) in order; see `Obedient.publish` for how."""
        self.do("publish", [self._packed(topic, message) for topic, message in messages], **how)

    def _packed(self, topic: str, message: Any) -> tuple[str, str, bytes]:
        if isinstance(message, tuple):
            return topic, message[0], bytes(message[1])
        return topic, message.__msgtype__, self.types.encode(message)

    def listen(self, topic: str, type: str, **qos: Any) -> None:
        """Keep what comes on a topic from now on."""
        self.do("listen", topic, type, **qos)

    def heard(self, topic: str, count: int = 1) -> list[Any]:
        """The last messages, once there are so many since the last look; the newest comes last."""
        type, found = self.do("heard", topic, count)
        return [self.types.decode(data, type) for data in found]

    def until_heard(self, topic: str, condition: Callable[[Any], Any]) -> Any:
        """The first message that fulfils a condition."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            for message in self.heard(topic):
                if condition(message):
                    return message
        raise TimeoutError(f"no such message on {topic}")

    def call(self, name: str, type: str, /, **fields: Any) -> Any:
        """The response of a service."""
        return self.calls(name, type, [fields])[0]

    def calls(self, name: str, type: str, requests: list[dict[str, Any]]) -> list[Any]:
        """The responses to requests that are made all at once."""
        data = [self.types.encode(self.types.new(f"{type}_Request", **fields)) for fields in requests]
        return [self.types.decode(reply, f"{type}_Response") for reply in self.do("calls", name, type, data)]

    def kill(self) -> None:
        """As if its battery was taken out."""
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._closed()

    def close(self) -> None:
        """Let it end by itself."""
        if self.process.poll() is None:
            assert self.process.stdin
            self.process.stdin.close()
            try:
                assert self.process.wait(PATIENCE_S) == 0
            finally:
                self.process.kill()
                self._closed()

    def _closed(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()


class Program:
    """A `semfield` command in a process of its own, with what it prints."""

    def __init__(self, *arguments: object, cwd: Path | None = None):
        command = [sys.executable, "-u", "-m", "semfield_ros.cli", *map(str, arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment(),
            cwd=cwd,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        self.lines.extend(self.process.stdout)

    @property
    def text(self) -> str:
        """Everything printed so far; line ends of narrow terminals are spaces."""
        return " ".join(line.strip() for line in self.lines)

    def says(self, words: str) -> None:
        """Wait until it has printed these words."""
        until(lambda: words in self.text or self.process.poll() is not None, lambda: self.text, 2 * PATIENCE_S)
        assert words in self.text, f"ended with {self.process.returncode}: {self.text}"

    def ends(self) -> int:
        """Wait for its exit status."""
        status = self.process.wait(2 * PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return status

    def stop(self, how: int = signal.SIGINT) -> int:
        """Signal it and wait for its exit status."""
        self.process.send_signal(how)
        return self.ends()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.process.stdout
        self.process.stdout.close()


def node_config(folder: Path, **settings: Any) -> Any:
    """Settings under which the analytic scene is learnt in a second, by the stub encoder; training ends by itself."""
    from dataclasses import fields, replace

    from analytic_scene import SMALL

    from semfield_ros.config import EncoderConfig
    from semfield_ros.node.config import CameraConfig, NodeConfig, ServiceConfig

    small = {field.name: getattr(SMALL, field.name) for field in fields(SMALL)}
    ours = {
        "encoder": EncoderConfig(name="stub"),
        "train": replace(SMALL.train, steps_per_keyframe=3),
        "engine": replace(SMALL.engine, queue_size=200),
        "camera": CameraConfig(sync_queue_size=200),
        "service": ServiceConfig(map_folder=str(folder / "maps")),
    }
    return NodeConfig(**{**small, **ours, **settings})


@contextmanager
def running(
    robot: Robot | None, config: Any, *, engine: Any = None, start: bool = True, **wire: Any
) -> Iterator[Any]:
    """A node in this process, and the robot on its wire."""
    from semfield_ros.node.node import SemfieldNode
    from semfield_ros.wire.zenoh_bus import ZenohBus

    bus = ZenohBus("semfield", domain=0, **{"mode": "test", **wire})
    try:
        node = SemfieldNode(bus, config, engine)
        try:
            if robot is not None:
                robot.join(bus.endpoint)
            if start:
                node.start()
            yield node
        finally:
            node.close()
    finally:
        bus.close()


def messages_of(frame: Any, **how: Any) -> list[tuple[str, Any]]:
    """(topic, message) of a frame as `frame_messages` makes them, the pose first: it is there when the images come."""
    from semfield_ros.messages.stream import frame_messages

    return [(topic, message) for topic, (_, message) in reversed(frame_messages(frame, **how).items())]


def feed(robot: Robot, frames: Iterable[Any], **how: Any) -> None:
    """Publish frames at a pace that no queue is filled by."""
    robot.publish([sent for frame in frames for sent in messages_of(frame, **how)], pace_s=0.002)


def accounted(node: Any) -> int:
    """Colour images of which the node can say what became of them."""
    inputs = node.inputs
    return inputs.submitted + sum(inputs.unused().values()) + inputs.assembler.waiting


def settle(node: Any, frames_in: int, waiting: int = 0) -> None:
    """Wait until so many colour images came and nothing but `waiting` is undecided; the law must hold then."""

    from semfield_ros.errors import EngineError

    def how_it_stands() -> str:
        inputs = node.inputs
        return (
            f"{inputs.frames_in()} in, {inputs.submitted} used, {inputs.unused()}, {inputs.assembler.waiting} waiting; "
            f"{inputs.assembler.gate.last_error}"
        )

    until(
        lambda: node.inputs.frames_in() >= frames_in
        and accounted(node) >= node.inputs.frames_in()
        and node.inputs.assembler.waiting == waiting,
        how_it_stands,
    )
    assert accounted(node) == node.inputs.frames_in() == frames_in, how_it_stands()
    try:
        node.engine.check()
    except EngineError:  # whether before or after the last frame: there is nothing to wait for
        return
    assert node.engine.drain(PATIENCE_S)
    status = node.engine.status()
    lost = sum(n for reason, n in status.dropped.items() if reason != "encoder_behind")
    assert status.submitted == node.inputs.submitted == status.used + status.skipped + lost


def fill(node: Any, robot: Robot, frames: Iterable[Any], **how: Any) -> None:
    """Have the node map frames."""
    frames = list(frames)
    before = node.inputs.frames_in()
    feed(robot, frames, **how)
    settle(node, before + len(frames))


# ---- in the other process -----------------------------------------------------------------------------------------


class Obedient:
    """What the other process can do."""

    def __init__(self) -> None:
        self.bus: Any = None

    def join(self, endpoint: str, name: str, mode: str = "join", other_hash: bool = False) -> str:
        """Be a node; `other_hash`: one whose types all have another definition."""
        from semfield_ros.messages.types import Types, types
        from semfield_ros.wire.zenoh_bus import ZenohBus

        class OtherTypes(Types):
            def hash(self, name: str) -> str:
                return OTHER_HASH

        self.leave()
        known = OtherTypes() if other_hash else types()
        self.bus = ZenohBus(name, mode=mode, endpoint=endpoint, domain=0, types=known)
        self.publishers: dict[str, Any] = {}
        self.clients: dict[str, Any] = {}
        self.kept: dict[str, list[bytes]] = defaultdict(list)
        self.kinds: dict[str, str] = {}
        return self.bus.endpoint

    def leave(self) -> None:
        if self.bus is not None:
            self.bus.close()
        self.bus = None

    def advertise(self, topic: str, type: str, **qos: Any) -> Any:
        from semfield_ros.wire.bus import QoS

        if topic not in self.publishers:
            self.publishers[topic] = self.bus.publisher(type, topic, QoS(**{"depth": 100, **qos}))
        return None

    def publish(
        self, messages: list[tuple[str, str, bytes]], pace_s: float = 0.0, awaited: bool = True, **qos: Any
    ) -> None:
        """`awaited`: wait until another node listens to each topic."""
        for topic, type, data in messages:
            new = topic not in self.publishers
            self.advertise(topic, type, **qos)
            publisher = self.publishers[topic]
            if new and awaited:
                until(lambda: self._listeners(publisher.topic), f"a subscription of {topic}", 30)  # noqa: B023
            publisher.publish(data)
            time.sleep(pace_s)

    def _listeners(self, topic: str) -> list[Any]:
        """Subscriptions of others: this node itself listens to /tf."""
        return [e for e in self.bus.graph().of(topic, "subscription") if e.node != self.bus.node_name]

    def listen(self, topic: str, type: str, **qos: Any) -> None:
        from semfield_ros.wire.bus import QoS

        kept, self.kinds[topic] = self.kept[topic], type
        self.bus.subscribe(type, topic, kept.append, QoS(**{"depth": 50, **qos}), lane=f"heard{topic}", raw=True)

    def heard(self, topic: str, count: int) -> tuple[str, list[bytes]]:
        kept = self.kept[topic]
        until(lambda: len(kept) >= count, f"{count} messages on {topic}, there are {len(kept)}")
        found, kept[:] = list(kept), []
        return self.kinds[topic], found

    def count(self, topic: str) -> int:
        """How many came since the last look."""
        return len(self.kept[topic])

    def calls(self, name: str, type: str, requests: list[bytes]) -> list[bytes]:
        from concurrent.futures import ThreadPoolExecutor

        client = self.clients.setdefault(name, None) or self.bus.client(type, name)
        self.clients[name] = client
        if not client.wait(PATIENCE_S):
            raise TimeoutError(f"nobody serves {name}")
        known = self.bus.types

        def one(data: bytes) -> bytes:
            response = client.call(known.decode(data, f"{type}_Request"), PATIENCE_S)
            return known.encode(response)

        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(one, requests))

    def topics(self) -> list[str]:
        return sorted({e.name for e in self.bus.graph().endpoints})

    def connected(self) -> bool:
        return bool(self.bus.connected)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    obedient, output = Obedient(), sys.stdout.buffer
    while True:
        try:
            what, values, how = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        try:
            answer = True, getattr(obedient, what)(*values, **how)
        except Exception as error:
            answer = False, f"{type(error).__name__}: {error}"
        pickle.dump(answer, output)
        output.flush()
    obedient.leave()


if __name__ == "__main__":
    main()
