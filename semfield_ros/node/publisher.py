"""The robot's side: a recording or the simulator as a camera on the wire."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from ..messages.stream import frame_messages
from ..sources import Source
from ..sources.playback import play
from ..wire.bus import LATCHED, Bus, Publisher, QoS

log = logging.getLogger(__name__)

POLL_S = 0.02


def publish(
    bus: Bus,
    source: Source,
    *,
    namespace: str = "",
    rate: float = 1.0,
    loops: int = 1,
    compressed: bool = False,
    depth_encoding: Literal["32FC1", "16UC1"] = "32FC1",
    labels: bool = False,
    qos: QoS = QoS(),  # noqa: B008 (frozen)
    stamps: str = "now",
    patience_s: float = 2.0,
    stopped: Callable[[], bool] = lambda: False,
    report: Callable[[int], None] = lambda frames: None,
) -> int:
    """Publish a source as rgb/image, depth/image, rgb/camera_info and /tf, in real time; returns how many frames.

    Args:
        namespace: of the camera's topics. rate: 1 = real time, 0 = as fast as possible.
        loops: how often; 0 = until stopped. compressed: JPEG and compressedDepth PNG instead of raw images.
        depth_encoding: 32FC1 (metres) or 16UC1 (millimetres). labels: also labels/image and masks/image, as far as the
            source has them, and labels/info and masks/info, which whoever comes late hears as well.
        stamps: now = the wall clock's; source = the source's own, which jump back when it loops.
        patience_s: the first image waits so long for somebody to listen: what is sent before is lost.
    """
    publishers: dict[str, Publisher] = {}
    names = {k: name for k, name in enumerate(getattr(source, "class_names", ())) if k}
    frames = loop = 0
    while not stopped() and (loops == 0 or loop < loops):
        for frame in play(source, rate or None):
            if stopped():
                break
            if stamps == "now":
                frame = replace(frame, stamp_s=time.time())
            messages = frame_messages(
                frame, namespace=namespace, compressed=compressed, depth_encoding=depth_encoding, labels=labels,
                class_names=names,
            )  # fmt: skip
            for topic, (type_name, _) in messages.items():
                if topic not in publishers:
                    publishers[topic] = bus.publisher(type_name, topic, LATCHED if "LabelInfo" in type_name else qos)
            if not frames:
                _await_listener(publishers[next(iter(messages))], patience_s, stopped)
            for topic, (_, message) in messages.items():
                publishers[topic].publish(message)
            frames += 1
            report(frames)
        loop += 1
    return frames


def _await_listener(publisher: Publisher, patience_s: float, stopped: Callable[[], bool]) -> None:
    end_s = time.monotonic() + patience_s
    while not publisher.subscribers and not stopped():
        if time.monotonic() >= end_s:
            log.warning("nobody listens to %s yet; is the node there, on the same wire?", publisher.topic)
            return
        time.sleep(POLL_S)
