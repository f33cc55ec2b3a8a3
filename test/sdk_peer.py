"""zenoh-ros2-sdk, which knows nothing of this package, as the other side of the wire; see wire_peer.py.

python sdk_peer.py PORT FOLDER     FOLDER/PACKAGE/{msg,srv}/*: definitions, so that it needs neither git nor network
"""

import os
import sys
import zlib
from typing import Any

from wire_peer import IMAGE, SET_BOOL, STRING, obey, pixels, until


class Obedient:
    """What the peer process can do."""

    def __init__(self, port: int):
        self.where: dict[str, Any] = {"domain_id": 0, "router_ip": "127.0.0.1", "router_port": port}
        self.session = sdk.ZenohSession.get_instance("127.0.0.1", port)
        self.publishers: dict[str, Any] = {}
        self.heard: dict[str, list[Any]] = {}
        self.kept: list[Any] = []

    def advertise(self, topic: str, type: str = STRING, qos: str | None = None) -> None:
        self.publishers[topic] = sdk.ROS2Publisher(topic, type, qos=qos, node_name="sdk_publisher", **self.where)

    def matched(self, topic: str) -> None:
        until(lambda: self.publishers[topic].pub.matching_status.matching, 60.0)

    def publish(self, topic: str, texts: list[str]) -> None:
        for text in texts:
            self.publishers[topic].publish(data=text)

    def publish_image(self, topic: str, height: int, width: int, seed: int) -> None:
        types = self.session.store.types
        header = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](sec=1, nanosec=2), "camera")
        self.publishers[topic].publish(
            header=header, height=height, width=width, encoding="rgb8", is_bigendian=0, step=3 * width,
            data=pixels(3 * height * width, seed),
        )  # fmt: skip

    def listen(self, topic: str, type: str = STRING, qos: str | None = None) -> None:
        heard = self.heard[topic] = []

        def keep(message: Any) -> None:
            heard.append(message.data if type == STRING else [message.header.frame_id, zlib.crc32(message.data)])

        self.kept.append(sdk.ROS2Subscriber(topic, type, keep, qos=qos, node_name="sdk_listener", **self.where))

    def received(self, topic: str, count: int) -> list[Any]:
        until(lambda: len(self.heard[topic]) >= count)
        return self.heard[topic]

    def serve(self, name: str) -> None:
        def answer(request: Any) -> Any:
            response = self.session.store.types[self.session._registered_types[f"{SET_BOOL}_Response"]]
            return response(success=not request.data, message="from the sdk")

        self.kept.append(sdk.ROS2ServiceServer(name, SET_BOOL, answer, node_name="sdk_server", **self.where))

    def call(self, name: str, data: bool) -> list[Any] | None:
        client = sdk.ROS2ServiceClient(name, SET_BOOL, timeout=10.0, **self.where)
        until(lambda: client.querier.matching_status.matching)
        response = client.call(data=data)
        return None if response is None else [response.success, response.message]

    def hashes(self) -> dict[str, str]:
        for type in (STRING, IMAGE):
            self.advertise(f"/hash/{type}", type)
        return {type: self.publishers[f"/hash/{type}"].type_hash for type in (STRING, IMAGE)}

    def topics(self) -> dict[str, list[str]]:
        return dict(sdk.get_topic_names_and_types(**self.where))


if __name__ == "__main__":
    import zenoh_ros2_sdk as sdk

    sdk.get_registry(sys.argv[2])
    obey(Obedient(int(sys.argv[1])), sdk.__version__)
    # Its threads would keep the process alive.
    os._exit(0)
