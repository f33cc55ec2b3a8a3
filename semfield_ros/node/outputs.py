"""Outputs: what the node publishes about its map. Nothing is computed for a topic that nobody listens to."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from ..answer import Answer
from ..atlas import AnyMap
from ..cloud import SurfaceCloud
from ..engine import Engine
from ..errors import EngineError, QueryError
from ..field.snapshot import Snapshot
from ..messages.clouds import to_cloud
from ..messages.images import encode_colour, encode_depth
from ..messages.stream import label_info
from ..query.scores import Scores
from ..query.view import render_view
from ..wire.bus import LATCHED, Bus, Closeable, Publisher, QoS
from .answers import detections, grasps, map_header, markers, ranked, relevancy_cloud, status_message
from .config import NodeConfig, OutputConfig
from .labelling import class_map, label_map
from .palette import colour_labels
from .points_service import class_name
from .questions import Question
from .things import about
from .views import Views
from .world import World, class_names

log = logging.getLogger(__name__)

NEWCOMER_S = 0.25
"""Latched topics look this often whether somebody new listens."""
SHOW_S = 0.05
"""An answer to ~/query waits this long at most before it is published."""
STATUS_PATIENCE_S = 2.0
LATEST = QoS(1)
RENDERED = (
    "rendered/image", "rendered/depth", "rendered/features", "rendered/labels", "rendered/entropy",
    "rendered/instances",
)  # fmt: skip


def thinned(count: int, most: int) -> slice | np.ndarray:
    """Rows of `count` points, at most `most` of them, evenly spread."""
    return slice(None) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


class Version:
    """Equal only to a version of the very same object, which it does not keep alive."""

    def __init__(self, thing: object):
        self._thing = weakref.ref(thing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._thing() is not None and self._thing() is other._thing()

    __hash__ = None  # type: ignore[assignment]  # it changes when the object dies


class Latched:
    """A latched topic: sent when what it shows has changed, at most every so often, and when somebody new listens."""

    def __init__(self, publisher: Publisher):
        self.publisher = publisher
        self._listeners = 0
        self._shown: object = None
        self._message: Any = None
        self._made_s = float("-inf")

    def tick(self, period_s: float, shown: Callable[[], object], make: Callable[[], Any]) -> None:
        """Send what `make` returns if due.

        Args:
            period_s: changes are sent this often at most. shown: says what would be shown now, by value; cheap.
        """
        listeners = self.publisher.subscribers
        newcomer, self._listeners = listeners > self._listeners, listeners
        if not listeners:
            return
        now_s, what = time.monotonic(), shown()
        changed = what != self._shown and now_s - self._made_s >= period_s - NEWCOMER_S / 2
        if changed:
            self._made_s = now_s
            self._message, self._shown = make(), what
        if self._message is not None and (changed or newcomer):
            self.publisher.publish(self._message)


class Outputs:
    """Publishes clouds, objects, grasps, views and the status, each on a lane of its own.

    A failure is logged once, told in `world.last_error`, and tried again at the next tick.

    Args:
        config: the settings of now; after a change of rates call `reschedule`.
    """

    def __init__(self, bus: Bus, engine: Engine, config: Callable[[], NodeConfig], world: World):
        self.bus, self.engine, self.config, self.world = bus, engine, config, world
        self._publishers: dict[str, Publisher] = {}
        self._timers: dict[str, tuple[float, Closeable]] = {}
        self._failing: dict[str, str] = {}
        self._lock = threading.Lock()
        self._question: Question | None = None
        self._shown_prompts: tuple[str, ...] = ()
        self._pending: tuple[Answer, Question] | None = None
        self._answered: tuple[Any, ...] = ()
        self._answer: tuple[Answer, Question] | None = None
        self._rendered: tuple[Any, ...] = ()
        self._views: dict[str, Any] = {}
        self._painter = Views(world.instances)
        self._map_version, self._map_arrays = 0, (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))
        self._memory_bytes, self._samples, self._samples_s = 0, 0, 0.0

    def start(self) -> None:
        """Offer all topics. A second call does nothing."""
        if self._publishers:
            return
        cloud, image = "sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/Image"
        for topic, kind, qos in (
            ("map_cloud", cloud, LATCHED), ("labelled_cloud", cloud, LATCHED), ("relevancy_cloud", cloud, LATEST),
            ("objects", "vision_msgs/msg/Detection3DArray", LATEST),
            ("markers", "visualization_msgs/msg/MarkerArray", LATEST),
            ("grasps", "geometry_msgs/msg/PoseArray", LATEST),
            ("labels/info", "vision_msgs/msg/LabelInfo", LATCHED), *((topic, image, LATEST) for topic in RENDERED),
            ("status", "semfield_ros/msg/Status", LATEST),
        ):  # fmt: skip
            self._publishers[topic] = self.bus.publisher(kind, f"~/{topic}", qos)
        self._map_cloud = Latched(self._publishers["map_cloud"])
        self._labelled_cloud = Latched(self._publishers["labelled_cloud"])
        self._label_info = Latched(self._publishers["labels/info"])
        self.reschedule()

    def close(self) -> None:
        """Publish nothing any more. Safe to call twice."""
        for _, timer in self._timers.values():
            timer.close()
        for publisher in self._publishers.values():
            publisher.close()
        self._timers, self._publishers = {}, {}

    def reschedule(self) -> None:
        """Follow the rates of the configuration; timers whose rate has not changed go on undisturbed."""
        if not self._publishers:
            return
        output = self.config().output
        for name, rate_hz, longest_s, lane, tick in (
            ("map_cloud", output.map_cloud_hz, NEWCOMER_S, "map", self._tick_map),
            ("labelled_cloud", output.labelled_cloud_hz, NEWCOMER_S, "labels", self._tick_labels),
            ("label_info", max(output.labelled_cloud_hz, output.rendered_hz), NEWCOMER_S, "labels", self._tick_names),
            ("relevancy", output.relevancy_hz, np.inf, "answers", self._tick_answers),
            ("shown", output.relevancy_hz, SHOW_S, "answers", self._tick_shown),
            ("rendered", output.rendered_hz, np.inf, "render", self._tick_rendered),
            ("status", output.status_hz, np.inf, "status", self._tick_status),
        ):
            period_s = 0.0 if rate_hz == 0 else min(1 / rate_hz, longest_s)
            before_s, timer = self._timers.get(name, (0.0, None))
            if before_s == period_s:
                continue
            if timer is not None:
                self._timers.pop(name)[1].close()
            if period_s:
                self._timers[name] = period_s, self.bus.timer(period_s, self._guarded(name, tick), lane=lane)

    def show(self, answer: Answer, question: Question) -> None:
        """Publish an answer soon; its question becomes the active one. Returns at once, from any thread."""
        labels = tuple(p.label for p in answer.prompts)
        with self._lock:
            self._question = question
            self._shown_prompts = question.prompts if isinstance(question.prompts, tuple) else labels
            self._pending = answer, question
            self.world.prompts = self._shown_prompts

    def _guarded(self, name: str, tick: Callable[[OutputConfig], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                tick(self.config().output)
                self._failing.pop(name, None)
            except Exception as error:
                words = f"{name}: {error}"
                if self._failing.get(name) != words:
                    log.error("cannot publish %s", words, exc_info=not isinstance(error, EngineError))
                self._failing[name] = self.world.last_error = words

        return run

    def _listened(self, *topics: str) -> set[str]:
        return {topic for topic in topics if self._publishers[topic].subscribers}

    def _publish(self, topic: str, message: Any) -> None:
        publisher = self._publishers.get(topic)  # none while closing
        if publisher is not None:
            publisher.publish(message)

    # ---- clouds -----------------------------------------------------------------------------------------------

    def _tick_map(self, output: OutputConfig) -> None:
        def shown() -> object:
            cloud = self.engine.snapshot().cloud
            points, rgb = self._map_arrays
            if not (np.array_equal(cloud.points, points) and np.array_equal(cloud.rgb, rgb)):
                self._map_version, self._map_arrays = self._map_version + 1, (cloud.points, cloud.rgb)
            return self._map_version or None

        def make() -> Any:
            snapshot = self.engine.snapshot()
            cloud = snapshot.cloud[thinned(len(snapshot.cloud), output.max_cloud_points)]  # type: ignore[index]
            return to_cloud(cloud.points, self._header(snapshot), rgb=cloud.rgb)

        self._map_cloud.tick(1 / output.map_cloud_hz, shown, make)

    def _tick_labels(self, output: OutputConfig) -> None:
        snapshot, names = self.engine.snapshot(), self.world.vocabulary
        by_words = bool(names) and output.labels != "classes"
        by_classes = bool(self.engine.config.heads.semantic_classes) and output.labels != "vocabulary" and not by_words

        def shown() -> object:
            what = (Version(snapshot), names, by_classes, output.instances)
            return what if (by_words or by_classes) and len(snapshot.cloud) else None

        def make() -> Any:
            if shown() is None:
                return to_cloud(np.zeros((0, 3)), self._header(snapshot))
            book = self.world.instances if output.instances else None
            if by_classes:
                found = class_map(snapshot, self.engine, book)
            else:
                found = label_map(snapshot, self.engine.prompts.encode(list(names)), self.engine, book)
            rows = thinned(len(found.cloud), output.max_cloud_points)
            fields = {"label": found.label, "instance": found.instance, "confidence": found.confidence}
            fields |= {} if found.entropy is None else {"entropy": found.entropy}
            return to_cloud(
                found.cloud.points[rows], self._header(snapshot), rgb=colour_labels(found.label[rows]),
                fields={name: values[rows] for name, values in fields.items()},
            )  # fmt: skip

        self._labelled_cloud.tick(1 / output.labelled_cloud_hz, shown, make)

    def _tick_names(self, output: OutputConfig) -> None:
        count, names = self.engine.config.heads.semantic_classes, class_names(self.config(), self.world)
        called = {k: class_name(names, k) for k in range(1, count + 1)}
        self._label_info.tick(
            NEWCOMER_S, lambda: called or None, lambda: label_info(called, self._header(self.engine.snapshot()))
        )

    def _header(self, snapshot: Snapshot) -> Any:
        return map_header(snapshot.stamp_s, self.config().global_frame)

    # ---- answers ----------------------------------------------------------------------------------------------

    def _active(self) -> Question | None:
        """What is asked now: the last ~/query, or the prompts that were set since."""
        with self._lock:
            prompts = self.world.prompts
            if prompts != self._shown_prompts:
                self._shown_prompts = prompts
                self._question = Question(prompts) if prompts else None
            return self._question

    def _tick_answers(self, output: OutputConfig) -> None:
        listened = self._listened("relevancy_cloud", "objects", "markers", "grasps")
        if not listened:
            return
        question, snapshot = self._active(), self.engine.snapshot()
        if question is None or not len(snapshot.cloud):
            self._answer = None
            self._send(self._nothing(snapshot), Question(()), output)  # nothing of before may stay
            return
        with_grasps = bool(listened & {"markers", "grasps"})
        key = Version(snapshot), Version(question), with_grasps
        if self._answer is None or key != self._answered:
            answer = question.ask(self.engine, grasps=with_grasps)
            self.world.planned(answer.objects)
            with self._lock:
                if question is not self._question:
                    return  # another was asked meanwhile and is on its way
            self._answer, self._answered = (answer, question), key
        self._send(*self._answer, output)

    def _tick_shown(self, output: OutputConfig) -> None:
        with self._lock:
            pending, self._pending = self._pending, None
        if pending is not None:
            self._answer, self._answered = pending, ()  # the next tick asks anew
            self._send(*pending, output)

    def _send(self, answer: Answer, question: Question, output: OutputConfig) -> None:
        listened = self._listened("relevancy_cloud", "objects", "markers", "grasps")
        if "relevancy_cloud" in listened:
            scores = question.scores(answer, self.engine.config)
            rows = thinned(len(answer.cloud), output.max_cloud_points)
            self._publish("relevancy_cloud", relevancy_cloud(answer, scores, rows))
        if "objects" in listened:
            known = about(self.engine.snapshot(), ranked(answer), self.world.instances)
            self._publish("objects", detections(answer, known))
        if "markers" in listened:
            self._publish("markers", markers(answer, self.engine.config.gripper))
        if "grasps" in listened:
            self._publish("grasps", grasps(answer))

    def _nothing(self, snapshot: Snapshot) -> Answer:
        none = np.zeros((0, 0), np.float32)
        scores = Scores(none, none, np.zeros(0, bool), np.zeros(0, bool))
        frame = self.config().global_frame
        return Answer(frame, snapshot.stamp_s, SurfaceCloud.empty(), scores, (), "points", 0.0, 0.0)

    # ---- views ------------------------------------------------------------------------------------------------

    def _tick_rendered(self, output: OutputConfig) -> None:
        listened = self._listened(*RENDERED)
        if not listened:
            return
        snapshot, frame = self.engine.snapshot(), self.world.last_frame()
        if frame is None or snapshot.field is None:
            return
        features = "rendered/features" in listened and snapshot.language
        labels = bool(listened & {"rendered/labels", "rendered/entropy"})
        instances = "rendered/instances" in listened
        key = Version(snapshot), Version(frame), features, labels, instances, output.rendered_width
        if key != self._rendered:
            width = output.rendered_width
            camera = frame.camera.resized(width, max(1, round(frame.camera.height * width / frame.camera.width)))
            far_m, T = self.engine.config.frame.max_depth_m, frame.T_world_camera
            view = render_view(snapshot, camera, T, features=features, far_m=far_m)
            header = map_header(frame.stamp_s, self.config().global_frame)
            views = {"image": encode_colour(view.rgb, header), "depth": encode_depth(view.depth_m, header)}
            if view.features is not None:
                views["features"] = encode_colour(self._painter.painted(snapshot, view), header)
            with suppress(QueryError):  # they may not have been learnt yet
                if labels:
                    views |= self._painter.labels(snapshot, camera, T, far_m, header)
            with suppress(QueryError):
                if instances:
                    views["instances"] = self._painter.instances(snapshot, camera, T, far_m, header)
            self._views = {f"rendered/{what}": image for what, image in views.items()}
            self._rendered = key
        for topic in listened & self._views.keys():
            self._publish(topic, self._views[topic])

    # ---- status -----------------------------------------------------------------------------------------------

    def _tick_status(self, output: OutputConfig) -> None:
        if self._listened("status"):
            self._publish("status", self.status())

    def status(self) -> Any:
        """semfield_ros/msg/Status of now; also when the engine has failed."""
        failed, stamp_s = False, float("nan")
        try:
            stamp_s = self.engine.snapshot().stamp_s
            job = self.engine.run(_memory_bytes)
            try:
                self._memory_bytes = job.result(STATUS_PATIENCE_S)
            except FutureTimeout:  # saving a map takes longer; what was known goes on
                job.cancel()
        except EngineError as error:
            failed, self.world.last_error = True, str(error)
        status, now_s = self.engine.status(), time.monotonic()
        trained, passed_s = status.mapping.samples - self._samples, now_s - self._samples_s
        rate = max(0.0, trained / passed_s) if self._samples_s and passed_s > 0 else 0.0
        self._samples, self._samples_s = status.mapping.samples, now_s
        return status_message(
            status, stamp_s=stamp_s, global_frame=self.config().global_frame,
            rejected=self.world.counts(), paused=self.world.paused, failed=failed, last_error=self.world.last_error,
            samples_per_s=rate, memory_bytes=self._memory_bytes, learnt=status.mapping.learnt,
            gpu_memory_bytes=torch.cuda.memory_allocated() if self.engine.device.startswith("cuda") else 0,
        )  # fmt: skip


def _memory_bytes(map: AnyMap) -> int:
    return map.bytes
