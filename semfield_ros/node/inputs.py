"""Inputs: camera topics, poses and labels in, frames to the engine. Everything that arrives is used or counted."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..engine import Engine
from ..errors import EngineError
from ..frame import Frame
from ..messages.arrivals import AssemblyHealth
from ..messages.assembly import FrameAssembler
from ..wire.bus import LATCHED, Bus, QoS, Subscription, Traffic
from .config import NodeConfig
from .world import World

log = logging.getLogger(__name__)

POLL_S = 0.05
"""Frames that wait for their pose or labels are looked at this often, besides whenever something arrives."""
JUMP_S = 1.0
"""A clock that goes back by more than this has jumped: a simulation that restarts."""
LANE = "input"


class Inputs:
    """Subscriptions of all cameras and of the pose, on one lane; one assembler brings them together."""

    def __init__(self, bus: Bus, engine: Engine, config: NodeConfig, world: World):
        self.bus, self.engine, self.config, self.world = bus, engine, config, world
        self.assembler = FrameAssembler(
            config.assembly(), bus.transforms.lookup, config.frame, on_time_jump=self._time_jumped
        )
        self.subscriptions: dict[str, Subscription] = {}
        self.topics: dict[str, dict[str, str]] = {}
        """Absolute topic by stream, by camera."""
        self.pose_topic = ""
        self.submitted = 0
        self._colour: list[Traffic] = []
        """Of all subscriptions of colour images there have been: messages under way are counted after they close."""
        self._told: Counter[str] = Counter()
        self._last_now_s = 0.0
        self._timer: Any = None
        self._lock = threading.RLock()
        """The assembler belongs to one thread at a time: the lane's, or that of who stops listening."""

    @property
    def running(self) -> bool:
        """Whether topics are listened to."""
        return self._timer is not None

    def start(self) -> None:
        """Listen."""
        if self.running:
            return
        camera, pose = self.config.camera, self.config.pose
        image_qos = QoS(camera.sync_queue_size, reliable=camera.reliable)
        for space in camera.namespaces:
            self.topics[space] = {}
            for stream, topic, type_name, handler, qos in self._camera_topics(space, image_qos):
                name = self._subscribe(type_name, f"{space}/{topic}" if space else topic, handler, qos)
                self.topics[space][stream] = name
                if stream == "colour":
                    self._colour.append(self.subscriptions[name].traffic)
        if pose.source == "odometry":
            kind, topic, handler = "nav_msgs/msg/Odometry", pose.odometry_topic, self.assembler.odometry
            self.pose_topic = self._subscribe(kind, topic, handler, QoS(100, reliable=False))
        elif pose.source == "pose":
            kind, topic, handler = "geometry_msgs/msg/PoseStamped", pose.pose_topic, self.assembler.pose
            self.pose_topic = self._subscribe(kind, topic, handler, QoS(100, reliable=False))
        self._timer = self.bus.timer(POLL_S, self._poll, lane=LANE)

    def _camera_topics(self, space: str, qos: QoS) -> list[tuple[str, str, str, Callable[[Any], None], QoS]]:
        camera = self.config.camera
        colour, depth = camera.rgb_topic, camera.depth_topic
        colour_type = depth_type = "sensor_msgs/msg/Image"
        if camera.rgb_transport == "compressed":
            colour, colour_type = f"{colour}/compressed", "sensor_msgs/msg/CompressedImage"
        if camera.depth_transport == "compressed_depth":
            depth, depth_type = f"{depth}/compressedDepth", "sensor_msgs/msg/CompressedImage"
        a, info = self.assembler, "vision_msgs/msg/LabelInfo"
        topics: list[tuple[str, str, str, Callable[[Any], None], QoS]] = [
            ("colour", colour, colour_type, lambda m: a.colour(space, m), qos),
            ("depth", depth, depth_type, lambda m: a.depth(space, m), qos),
            ("info", camera.info_topic, "sensor_msgs/msg/CameraInfo", lambda m: a.info(space, m), qos),
        ]
        if camera.labels_topic:
            topics += [
                ("labels", camera.labels_topic, "sensor_msgs/msg/Image", lambda m: a.labels(space, m), qos),
                ("label_info", camera.label_info_topic, info, lambda m: a.label_info(space, m), LATCHED),
            ]
        if camera.masks_topic:
            topics += [
                ("masks", camera.masks_topic, "sensor_msgs/msg/Image", lambda m: a.masks(space, m), qos),
                ("masks_info", camera.masks_info_topic, info, lambda m: a.masks_info(space, m), LATCHED),
            ]
        return topics

    def _subscribe(self, type_name: str, topic: str, handler: Callable[[Any], None], qos: QoS) -> str:
        def handle(message: Any) -> None:
            with self._lock:
                handler(message)
            self._poll()

        name = self.bus.resolve(topic)
        self.subscriptions[name] = self.bus.subscribe(type_name, topic, handle, qos, lane=LANE)
        return name

    def stop(self) -> None:
        """Stop listening; what still waits is counted."""
        if not self.running:
            return
        self._timer.close()
        self._timer = None
        for subscription in self.subscriptions.values():
            subscription.close()
        self.subscriptions = {}
        with self._lock:
            self.assembler.time_jumped()

    def _time_jumped(self) -> None:
        self.bus.transforms.clear()
        reset = self.config.pose.on_time_jump == "reset"
        log.warning("time jumped back: waiting frames are dropped, the map is %s",
                    "forgotten" if reset else "kept (pose.on_time_jump)")  # fmt: skip
        if reset:
            try:
                self.engine.reset()
            except EngineError as error:  # diagnostics tell it; this image is no worse than others
                self.world.last_error = str(error)
            self.world.forget_map()

    def _poll(self) -> None:
        now_s = self.bus.now_s()
        with self._lock:
            if now_s < self._last_now_s - JUMP_S:
                self.assembler.time_jumped()
                self._time_jumped()
            self._last_now_s = now_s
            for frame in self.assembler.poll(time.monotonic()):
                self._use(frame)
            names = {number: name for known in self.assembler.label_names.values() for number, name in known.items()}
            if names != self.world.class_names:
                self.world.class_names = names
            self._tell()

    def _use(self, frame: Frame) -> None:
        if self.world.paused:
            self.world.count("paused")
            return
        self.world.saw(frame)
        try:
            self.engine.submit(frame)
            self.submitted += 1
        except EngineError as error:
            self.world.count("engine_failed", error=str(error))

    def _tell(self) -> None:
        """Have the world know what was counted here since the last time."""
        counts = Counter(self.assembler.counters)
        counts["transport"] = sum(traffic.dropped for traffic in self._colour)
        counts["malformed"] = sum(traffic.malformed + traffic.failed for traffic in self._colour)
        for reason, count in (counts - self._told).items():
            rejected = reason in self.assembler.counters
            self.world.count(reason, count, error=self.assembler.gate.last_error if rejected else "")
        self._told = counts

    def frames_in(self) -> int:
        """Colour images that reached this process."""
        return sum(traffic.received for traffic in self._colour)

    def unused(self) -> dict[str, int]:
        """Colour images that came in and did not reach the engine, by reason."""
        with self._lock:
            self._tell()
        return self.world.counts()

    def health(self) -> AssemblyHealth:
        """What comes, what is missing, what looks wrong."""
        with self._lock:
            return self.assembler.health(time.monotonic())

    def callback_seconds(self) -> list[float]:
        """How long the last callbacks took."""
        return [s for subscription in list(self.subscriptions.values()) for s in list(subscription.traffic.callback_s)]
