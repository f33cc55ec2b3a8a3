"""Another process on the Zenoh wire, told what to do by the tests: one JSON object a line in, one a line out.

    {"do": "publish", "topic": "/a", "text": "x"}  ->  {"ok": null}

Run by `Peer` (in the tests' process), never by pytest.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STRING, IMAGE, SET_BOOL, TF = (
    "std_msgs/msg/String", "sensor_msgs/msg/Image", "std_srvs/srv/SetBool", "tf2_msgs/msg/TFMessage",
)  # fmt: skip
OTHER_HASH = "RIHS01_" + "0" * 64


def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """Wait for something to become true; what it is then. Generous: only a broken wire takes so long."""
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > end_s:
            raise TimeoutError(f"not true within {timeout_s} s")
        time.sleep(0.005)
    return value


def pixels(count: int, seed: int) -> np.ndarray:
    """Bytes that nobody would get right by accident."""
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


def environment() -> dict[str, str]:
    """Where another process finds the package that this one uses."""
    import semfield_ros

    found = str(Path(semfield_ros.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([found, os.environ.get("PYTHONPATH", "")])}


class Peer:
    """A peer process, seen from the test."""

    def __init__(self, *arguments: str, script: str = __file__):
        command = [sys.executable, script, *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment())
        self.endpoint = self._answer()

    def do(self, what: str, **how: Any) -> Any:
        self.ask(what, **how)
        return self._answer()

    def ask(self, what: str, **how: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"do": what, **how}) + "\n")
        self.process.stdin.flush()

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with {self.process.wait(10)}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["ok"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def close(self) -> int:
        """Let it end by itself; its exit status."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        try:
            return self.process.wait(20)
        finally:
            self.process.stdout.close()
            self.process.kill()


class Obedient:
    """What the peer process can do."""

    def __init__(self, bus: Any):
        from semfield_ros.wire.bus import QoS

        self.bus, self.qos = bus, QoS
        self.publishers: dict[str, Any] = {}
        self.clients: dict[str, Any] = {}
        self.subscriptions: dict[str, Any] = {}
        self.heard: dict[str, list[Any]] = {}

    def advertise(self, topic: str, type: str = STRING, **qos: Any) -> None:
        self.publishers[topic] = self.bus.publisher(type, topic, self.qos(**qos))

    def matched(self, topic: str, exactly: int = 1) -> None:
        until(lambda: self.publishers[topic].subscribers == exactly)

    def publish(self, topic: str, texts: list[str]) -> None:
        for text in texts:
            self.publishers[topic].publish(self.bus.new(STRING, data=text))

    def publish_image(self, topic: str, height: int, width: int, seed: int) -> None:
        data = pixels(height * width * 3, seed)
        self.publishers[topic].publish(
            self.bus.new(IMAGE, height=height, width=width, step=3 * width, encoding="rgb8", data=data)
        )

    def burst(self, topic: str, height: int, width: int, count: int) -> None:
        """Images as fast as they go."""
        image = self.bus.new(IMAGE, height=height, width=width, data=pixels(height * width * 3, 0))
        for _ in range(count):
            self.publishers[topic].publish(image)

    def publish_bytes(self, topic: str, hexadecimal: str) -> None:
        self.publishers[topic].publish(bytes.fromhex(hexadecimal))

    def publish_clock(self, topic: str, sec: int, nanosec: int) -> None:
        time_type = "builtin_interfaces/msg/Time"
        clock = self.bus.new(time_type, sec=sec, nanosec=nanosec)
        self.publishers[topic].publish(self.bus.new("rosgraph_msgs/msg/Clock", clock=clock))

    def publish_tf(self, topic: str, parent: str, child: str, x: float, sec: int = 0) -> None:
        new = self.bus.new
        header = new("std_msgs/msg/Header", frame_id=parent, stamp=new("builtin_interfaces/msg/Time", sec=sec))
        transform = new(
            "geometry_msgs/msg/Transform", translation=new("geometry_msgs/msg/Vector3", x=x),
            rotation=new("geometry_msgs/msg/Quaternion", w=1.0),
        )  # fmt: skip
        stamped = new("geometry_msgs/msg/TransformStamped", header=header, child_frame_id=child, transform=transform)
        self.publishers[topic].publish(new(TF, transforms=[stamped]))

    def listen(self, topic: str, type: str = STRING, **qos: Any) -> None:
        heard = self.heard[topic] = []

        def keep(message: Any) -> None:
            heard.append(message.data if type == STRING else zlib.crc32(message.data))

        self.subscriptions[topic] = self.bus.subscribe(type, topic, keep, self.qos(**qos))

    def received(self, topic: str, count: int) -> list[Any]:
        until(lambda: len(self.heard[topic]) >= count)
        return self.heard[topic]

    def serve(self, name: str) -> None:
        """A SetBool that waits 30 s when told `True`."""

        def answer(request: Any) -> Any:
            if request.data:
                time.sleep(30.0)
            return self.bus.new(f"{SET_BOOL}_Response", success=True, message="from the peer")

        self.bus.serve(SET_BOOL, name, answer)

    def call(self, name: str, data: bool, timeout_s: float = 10.0, wait_s: float = 10.0) -> list[Any]:
        """[success, message], or the error's name and text."""
        from semfield_ros.errors import WireError

        client = self.clients.setdefault(name, None) or self.bus.client(SET_BOOL, name)
        self.clients[name] = client
        client.wait(wait_s)
        try:
            response = client.call(self.bus.new(f"{SET_BOOL}_Request", data=data), timeout_s)
        except WireError as error:
            return [type(error).__name__, str(error)]
        return [response.success, response.message]

    def connected(self) -> bool:
        return bool(self.bus.connected)

    def nodes(self) -> list[str]:
        return list(self.bus.graph().nodes)


def obey(obedient: Any, greeting: Any) -> None:
    """Do what comes in until the input ends."""
    print(json.dumps({"ok": greeting}), flush=True)
    for line in sys.stdin:
        how = json.loads(line)
        try:
            answer = {"ok": getattr(obedient, how.pop("do"))(**how)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", default="join")
    parser.add_argument("--endpoint", default="tcp/127.0.0.1:7447")
    parser.add_argument("--name", default="peer")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--other-hash", action="store_true", help="every type has another definition here")
    parser.add_argument("--abandon", action="store_true", help="end without closing the bus")
    arguments = parser.parse_args()

    from semfield_ros.messages.types import Types
    from semfield_ros.wire.zenoh_bus import ZenohBus

    class OtherTypes(Types):
        def hash(self, name: str) -> str:
            return OTHER_HASH

    bus = ZenohBus(
        arguments.name, mode=arguments.mode, endpoint=arguments.endpoint, config_file=arguments.config, domain=0,
        types=OtherTypes() if arguments.other_hash else None,
    )  # fmt: skip
    obey(Obedient(bus), bus.endpoint)
    if not arguments.abandon:
        bus.close()


if __name__ == "__main__":
    main()
