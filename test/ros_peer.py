"""Another process on ROS 2, in plain rclpy and generated messages: what the tests of our bus hold it against.

One JSON object a line in, one a line out; see `wire_peer.py`. Run by `RosPeer`, never by pytest.
"""

import argparse
import array
import json
import os
import sys
import threading
import time
import zlib
from typing import Any

import numpy as np
import rclpy
from rclpy.action import ActionClient
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosidl_runtime_py.utilities import get_message
from std_srvs.srv import SetBool
from wire_peer import IMAGE, STRING, TF, pixels, until


def profile(depth: int = 10, reliable: bool = True, transient_local: bool = False) -> QoSProfile:
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if transient_local else DurabilityPolicy.VOLATILE,
    )


class Obedient:
    """What the peer process can do."""

    def __init__(self, node: Any):
        self.node, self.group = node, ReentrantCallbackGroup()
        self.publishers: dict[str, Any] = {}
        self.kinds: dict[str, Any] = {}
        self.clients: dict[str, Any] = {}
        self.subscriptions: dict[str, Any] = {}
        self.services: list[Any] = []
        self.heard: dict[str, list[Any]] = {}

    def advertise(self, topic: str, type: str = STRING, **qos: Any) -> None:
        self.kinds[topic] = get_message(type)
        self.publishers[topic] = self.node.create_publisher(self.kinds[topic], topic, profile(**qos))

    def matched(self, topic: str, exactly: int = 1) -> None:
        until(lambda: self.publishers[topic].get_subscription_count() == exactly)

    def publish(self, topic: str, texts: list[str]) -> None:
        for text in texts:
            self.publishers[topic].publish(self.kinds[topic](data=text))

    def publish_image(self, topic: str, height: int, width: int, seed: int) -> None:
        message = self.kinds[topic](height=height, width=width, step=3 * width, encoding="rgb8")
        message.data = array.array("B", pixels(height * width * 3, seed).tobytes())
        self.publishers[topic].publish(message)

    def publish_bytes(self, topic: str, hexadecimal: str) -> None:
        self.publishers[topic].publish(bytes.fromhex(hexadecimal))

    def publish_clock(self, topic: str, sec: int, nanosec: int) -> None:
        message = self.kinds[topic]()
        message.clock.sec, message.clock.nanosec = sec, nanosec
        self.publishers[topic].publish(message)

    def publish_tf(self, topic: str, parent: str, child: str, x: float, sec: int = 0) -> None:
        stamped = get_message("geometry_msgs/msg/TransformStamped")(child_frame_id=child)
        stamped.header.frame_id, stamped.header.stamp.sec = parent, sec
        stamped.transform.translation.x, stamped.transform.rotation.w = x, 1.0
        self.publishers[topic].publish(get_message(TF)(transforms=[stamped]))

    def listen(self, topic: str, type: str = STRING, **qos: Any) -> None:
        heard = self.heard[topic] = []

        def keep(message: Any) -> None:
            heard.append(message.data if type == STRING else zlib.crc32(np.asarray(message.data)))

        assert type in (STRING, IMAGE)
        self.subscriptions[topic] = self.node.create_subscription(get_message(type), topic, keep, profile(**qos))

    def offered(self, topic: str) -> None:
        until(lambda: self.subscriptions[topic].get_publisher_count())

    def received(self, topic: str, count: int) -> list[Any]:
        until(lambda: len(self.heard[topic]) >= count)
        return self.heard[topic]

    def serve(self, name: str) -> None:
        """A SetBool that waits 30 s when told `True`."""

        def answer(request: Any, response: Any) -> Any:
            if request.data:
                time.sleep(30.0)
            response.success, response.message = True, "from the peer"
            return response

        self.services.append(self.node.create_service(SetBool, name, answer, callback_group=self.group))

    def call(self, name: str, data: bool, wait_s: float = 10.0) -> list[Any]:
        """[success, message]."""
        response = self._called(name, data)
        end_s = time.monotonic() + wait_s
        while not response.done() and time.monotonic() < end_s:
            time.sleep(0.005)
        return [response.result().success, response.result().message]

    def call_and_forget(self, name: str, data: bool) -> None:
        self._called(name, data)

    def _called(self, name: str, data: bool) -> Any:
        if name not in self.clients:
            self.clients[name] = self.node.create_client(SetBool, name, callback_group=self.group)
        assert self.clients[name].wait_for_service(10.0)
        return self.clients[name].call_async(SetBool.Request(data=data))

    def locate(self, name: str, prompt: str, timeout: float = 0.0) -> bool:
        """Whether the goal is accepted."""
        from semfield_ros.action import Locate  # of the overlay

        client = ActionClient(self.node, Locate, name)
        assert client.wait_for_server(10.0)
        self.reports: list[Any] = []
        sent = client.send_goal_async(
            Locate.Goal(prompt=prompt, timeout=timeout), feedback_callback=lambda m: self.reports.append(m.feedback)
        )
        self.goal = self._outcome(sent)
        return bool(self.goal.accepted)

    def feedback(self, count: int) -> list[int]:
        """The looks of so many reports at least."""
        until(lambda: len(self.reports) >= count)
        return [report.frames for report in self.reports]

    def cancel(self) -> int:
        """How many goals were cancelled."""
        return len(self._outcome(self.goal.cancel_goal_async()).goals_canceling)

    def located(self) -> list[Any]:
        """[status, success, message, prompts]."""
        done = self._outcome(self.goal.get_result_async())
        return [done.status, done.result.success, done.result.message, list(done.result.answer.prompts)]

    def _outcome(self, future: Any) -> Any:
        until(future.done)
        return future.result()

    def nodes(self) -> list[str]:
        return sorted({f"{space.rstrip('/')}/{name}" for name, space in self.node.get_node_names_and_namespaces()})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="peer")
    name = parser.parse_args().name
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(name)
    executor = MultiThreadedExecutor(4)
    executor.add_node(node)
    threading.Thread(target=executor.spin, daemon=True).start()
    obedient = Obedient(node)
    print(json.dumps({"ok": name}), flush=True)
    for line in sys.stdin:
        how = json.loads(line)
        try:
            answer = {"ok": getattr(obedient, how.pop("do"))(**how)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    node.destroy_node()
    rclpy.shutdown()
    os._exit(0)  # a service may still be asleep


if __name__ == "__main__":
    main()
