"""Recording: what a node hears, publishes and answers, as a bag that `ros2 bag`, Foxglove and `semfield run` read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..messages.recorder import BagRecorder
from ..wire.bus import SENSOR, Bus, Closeable, Publisher, QoS, Subscription

_TF = "tf2_msgs/msg/TFMessage"
TRANSFORMS = {"/tf": QoS(100), "/tf_static": QoS(100, transient_local=True)}


class Recording:
    """A bag being written. `bus` is the bus to give to the node: it does what the other does, and is heard.

    Inputs are recorded as the very bytes that came, answers of services that carry one as semfield_ros/msg/Answer on
    SERVICE/answer. A full queue of the writer drops messages, counted in `recorder`.
    """

    def __init__(self, bus: Bus, path: Path):
        self.recorder = BagRecorder(path)
        self.bus: Bus = _Heard(bus, self.recorder)
        self._taps = [
            bus.subscribe(_TF, topic, _tap(self.recorder, topic, _TF, qos), qos, lane="record", raw=True)
            for topic, qos in TRANSFORMS.items()
        ]

    def close(self) -> None:
        """Write what waits and close the bag."""
        for tap in self._taps:
            tap.close()
        self.recorder.close()


def _tap(recorder: BagRecorder, topic: str, type_name: str, qos: QoS) -> Callable[[bytes], None]:
    def heard(data: bytes) -> None:
        recorder.record(topic, type_name, data, time.time_ns(), latched=qos.transient_local)

    return heard


class _Heard:
    """A bus whose traffic is recorded."""

    def __init__(self, bus: Bus, recorder: BagRecorder):
        self._bus, self._recorder = bus, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def subscribe(
        self, type: str, topic: str, callback: Callable[[Any], None], qos: QoS = SENSOR, *, lane: str = "input",
        raw: bool = False,
    ) -> Subscription:  # fmt: skip
        record = _tap(self._recorder, self._bus.resolve(topic), type, qos)

        def heard(data: bytes) -> None:
            record(data)
            callback(data if raw else self._bus.types.decode(data, type))

        return self._bus.subscribe(type, topic, heard, qos, lane=lane, raw=True)

    def publisher(self, type: str, topic: str, qos: QoS = QoS()) -> Publisher:  # noqa: B008 (frozen)
        record = _tap(self._recorder, self._bus.resolve(topic), type, qos)
        return _HeardPublisher(self._bus.publisher(type, topic, qos), lambda m: record(self._bus.types.encode(m)))

    def serve(self, type: str, name: str, handler: Callable[[Any], Any]) -> Closeable:
        topic = f"{self._bus.resolve(name)}/answer"

        def heard(request: Any) -> Any:
            response = handler(request)
            answer = getattr(response, "answer", None)
            if answer is not None and response.success:
                self._recorder.record(topic, answer.__msgtype__, self._bus.types.encode(answer), time.time_ns())
            return response

        return self._bus.serve(type, name, heard)


class _HeardPublisher:
    def __init__(self, publisher: Publisher, record: Callable[[Any], None]):
        self._publisher, self._record = publisher, record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._publisher, name)

    def publish(self, message: Any) -> None:
        self._record(message)
        self._publisher.publish(message)
