"""The robot's side: a recording or the simulator as a camera on the wire."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from ..messages.stream import frame_messages
from ..sources import Source
from ..sources.playback import play
from ..wire.bus import Bus, Publisher, QoS


def publish(
    bus: Bus,
    source: Source,
    *,
    namespace: str = "",
    rate: float = 1.0,
    loops: int = 1,
    compressed: bool = False,
    depth_encoding: str = "32FC1",
    qos: QoS = QoS(),  # noqa: B008 (frozen)
    stamps: str = "now",
    stopped: Callable[[], bool] = lambda: False,
    report: Callable[[int], None] = lambda frames: None,
) -> int:
    """Publish a source as rgb/image, depth/image, rgb/camera_info and /tf, in real time; returns how many frames.

    Args:
        namespace: of the camera's topics. rate: 1 = real time, 0 = as fast as possible.
        loops: how often; 0 = until stopped. compressed: JPEG and compressedDepth PNG instead of raw images.
        depth_encoding: 32FC1 (metres) or 16UC1 (millimetres).
        stamps: now = the wall clock's; source = the source's own, which jump back when it loops.
    """
    publishers: dict[str, Publisher] = {}
    frames = loop = 0
    while not stopped() and (loops == 0 or loop < loops):
        for frame in play(source, rate or None):
            if stopped():
                break
            if stamps == "now":
                frame = replace(frame, stamp_s=time.time())
            messages = frame_messages(
                frame, namespace=namespace, compressed=compressed, depth_encoding=depth_encoding
            )
            for topic, (type_name, message) in messages.items():
                if topic not in publishers:
                    publishers[topic] = bus.publisher(type_name, topic, qos)
                publishers[topic].publish(message)
            frames += 1
            report(frames)
        loop += 1
    return frames
