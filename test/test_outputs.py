"""What the node publishes, heard over a real wire by another bus; and that it does nothing for nobody."""

import threading
import time
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
from analytic_scene import BLUE, CAMERA, RED, SMALL, cast, stream

from semfield_ros.config import EncoderConfig, SemfieldConfig
from semfield_ros.encoders import create
from semfield_ros.engine import Engine
from semfield_ros.messages.clouds import from_cloud, unpack_rgb
from semfield_ros.messages.images import decode_colour, decode_depth
from semfield_ros.node import outputs as outputs_module
from semfield_ros.node.config import NodeConfig, OutputConfig
from semfield_ros.node.outputs import Latched, Outputs, thinned
from semfield_ros.node.palette import class_colour
from semfield_ros.node.questions import Question
from semfield_ros.node.world import World
from semfield_ros.wire.bus import LATCHED, QoS
from semfield_ros.wire.zenoh_bus import ZenohBus

SCENE = replace(SMALL, encoder=EncoderConfig(name="stub"))
FAST = OutputConfig(map_cloud_hz=20, labelled_cloud_hz=20, relevancy_hz=20, rendered_hz=10, status_hz=20)
PATIENCE_S = 30.0
A_WHILE_S = 0.6
"""Several periods of FAST."""
CLOUD, IMAGE = "sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/Image"
KINDS = {
    "map_cloud": CLOUD, "labelled_cloud": CLOUD, "relevancy_cloud": CLOUD,
    "objects": "vision_msgs/msg/Detection3DArray", "markers": "visualization_msgs/msg/MarkerArray",
    "grasps": "geometry_msgs/msg/PoseArray", "rendered/image": IMAGE, "rendered/depth": IMAGE,
    "rendered/features": IMAGE, "rendered/labels": IMAGE, "rendered/instances": IMAGE,
    "labels/info": "vision_msgs/msg/LabelInfo", "status": "semfield_ros/msg/Status",
}  # fmt: skip


@pytest.fixture(scope="module")
def buses():
    speaker = ZenohBus("semfield", mode="test")
    listener = ZenohBus("listener", mode="join", endpoint=speaker.endpoint)
    yield speaker, listener
    listener.close()
    speaker.close()


@pytest.fixture(scope="module")
def engine():
    """A map that has seen the whole scene and whose field is trusted; training rests."""
    with Engine(SCENE) as engine:
        for frame in stream(12):
            engine.submit(frame, block=True)
        assert engine.drain(PATIENCE_S)
        engine.pause()
        engine.train(steps=320)
        yield engine


class Heard:
    """Messages of a topic, as they come in."""

    def __init__(self, bus, topic, qos):
        self.messages, self._new = [], threading.Condition()
        self.subscription = bus.subscribe(KINDS[topic], f"/semfield/{topic}", self._hear, qos, lane=topic)

    def _hear(self, message):
        with self._new:
            self.messages.append(message)
            self._new.notify_all()

    def until(self, good=lambda _: True):
        """The first message from now on that is good."""
        with self._new:
            seen = len(self.messages)
            fits = lambda: next((m for m in self.messages[seen:] if good(m)), None)  # noqa: E731
            assert self._new.wait_for(lambda: fits() is not None, PATIENCE_S), "nothing good was heard"
            return fits()

    def first(self):
        with self._new:
            assert self._new.wait_for(lambda: self.messages, PATIENCE_S), "nothing was heard"
            return self.messages[0]


@pytest.fixture
def node(engine, buses):
    """Outputs with settings that can be changed, and ears."""
    speaker, listener = buses
    node = Node(speaker, listener, engine)
    yield node
    node.close()


class Node:
    def __init__(self, speaker, listener, engine):
        self.config = NodeConfig(**{f.name: getattr(SCENE, f.name) for f in fields(SemfieldConfig)}, output=FAST)
        self.world, self._listener, self._ears = World(), listener, []
        self.world.saw(stream(12)[-1])
        self.outputs = Outputs(speaker, engine, lambda: self.config, self.world)
        self.engine = engine

    def start(self, **output):
        self.set(**output)
        self.outputs.start()
        return self

    def set(self, **output):
        self.config = replace(self.config, output=replace(self.config.output, **output))
        self.outputs.reschedule()

    def hear(self, topic, qos=QoS()):  # noqa: B008
        self._ears.append(Heard(self._listener, topic, qos))
        return self._ears[-1]

    def close(self):
        self.outputs.close()
        for ear in self._ears:
            ear.subscription.close()


def wait_for(what):
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nothing_is_computed_while_nobody_listens(node, monkeypatch):
    work = "to_cloud label_map render_view detections markers grasps relevancy_cloud status_message"
    for name in work.split():
        monkeypatch.setattr(outputs_module, name, lambda *_, name=name, **__: pytest.fail(name))
    monkeypatch.setattr(node.engine, "query", lambda *_, **__: pytest.fail("query"))
    node.world.vocabulary, node.world.prompts = ("red",), ("red",)
    node.start()
    node.outputs.show(SimpleNamespace(prompts=()), Question(("red",)))
    time.sleep(A_WHILE_S)
    assert node.world.last_error == ""


def test_map_cloud_is_latched_and_comes_again_only_when_it_changed(buses):
    with Engine(SCENE) as engine:
        engine.pause()
        for frame in stream(4):
            engine.submit(frame, block=True)
        assert engine.drain(PATIENCE_S)
        node = Node(*buses, engine).start()
        try:
            ear = node.hear("map_cloud", LATCHED)
            first = from_cloud(ear.first())
            cloud = engine.snapshot().cloud
            np.testing.assert_array_equal(np.stack([first[c] for c in "xyz"], -1), cloud.points)
            np.testing.assert_array_equal(unpack_rgb(first["rgb"]), cloud.rgb)
            assert ear.messages[0].header.frame_id == "map" and ear.messages[0].header.stamp.nanosec == 300_000_000
            time.sleep(A_WHILE_S)
            assert len(ear.messages) == 1
            late = node.hear("map_cloud", LATCHED)
            assert late.first().width == len(cloud)
            plain = node.hear("map_cloud")  # keeps nothing of before, and still gets it
            assert plain.first().width == len(cloud)
            engine.clear_region([-1, -1, 0.05], [1, 1, 1])
            assert plain.until().width == len(engine.snapshot().cloud) < len(cloud)
            engine.reset()
            assert plain.until(lambda m: m.width == 0).header.stamp.sec == 0
        finally:
            node.close()


def test_a_latched_cloud_waits_for_whoever_comes_after_the_first(buses):
    """One who comes when the others have gone gets the last one, and what changed since."""

    class Ear:
        subscribers = 0

        def __init__(self):
            self.sent = []

        def publish(self, message):
            self.sent.append(message)

    ear, made = Ear(), []
    latched = Latched(ear)
    version = 1

    def tick():
        latched.tick(0.0, lambda: version, lambda: made.append(version) or version)

    tick()
    assert made == [] and ear.sent == []
    ear.subscribers = 1
    tick(), tick()
    assert (made, ear.sent) == ([1], [1])
    ear.subscribers = 2
    tick()
    assert (made, ear.sent) == ([1], [1, 1])
    ear.subscribers = 0
    version = 2
    tick()
    ear.subscribers = 1
    tick(), tick()
    assert (made, ear.sent) == ([1, 2], [1, 1, 2])


def test_labelled_cloud_has_labels_instances_and_the_palette(node):
    node.world.vocabulary = ("blue", "red", "white")
    ear = node.start().hear("labelled_cloud", LATCHED)
    channels = from_cloud(ear.first())
    assert list(channels) == ["x", "y", "z", "rgb", "label", "instance", "confidence"]
    assert channels["label"].dtype == channels["instance"].dtype == np.int32
    points = np.stack([channels[c] for c in "xyz"], -1)
    for k, block in enumerate((BLUE, RED)):
        low, high = np.array(block.low) + [0, 0, 0.04], np.array(block.high) + 0.02
        inside = ((points > low) & (points < high)).all(1)
        assert (channels["label"][inside] == k).mean() > 0.9
        numbers = channels["instance"][inside & (channels["label"] == k)]
        assert (numbers == np.bincount(numbers).argmax()).mean() > 0.9 and np.bincount(numbers).argmax() > 0
        np.testing.assert_array_equal(unpack_rgb(channels["rgb"])[channels["label"] == k][0], class_colour(k))
    assert ((channels["instance"] == 0) | (channels["label"] >= 0)).all()
    assert 0 <= channels["confidence"].min() and channels["confidence"].max() <= 1
    node.world.vocabulary = ()
    assert ear.until(lambda m: m.width == 0)


def test_prompts_become_scores_objects_markers_and_grasps(node):
    node.world.prompts = ("red", "blue")
    node.start()
    ears = {topic: node.hear(topic) for topic in ("relevancy_cloud", "objects", "markers", "grasps")}
    channels = from_cloud(ears["relevancy_cloud"].first())
    assert list(channels) == ["x", "y", "z", "rgb", "relevancy", "relevancy_0", "relevancy_1"]
    np.testing.assert_array_equal(channels["relevancy"], np.maximum(channels["relevancy_0"], channels["relevancy_1"]))
    found = ears["objects"].first().detections
    assert {d.results[0].hypothesis.class_id for d in found} == {"red", "blue"}
    assert len([m for m in ears["markers"].first().markers if m.ns == "boxes"]) == len(found)
    assert len(ears["grasps"].first().poses) == len(
        [g for o in node.engine.query(["red", "blue"]).objects for g in o.grasps]
    )
    node.world.prompts = ("blue",)
    other = ears["objects"].until(lambda m: len(m.detections) < len(found))
    assert {d.results[0].hypothesis.class_id for d in other.detections} == {"blue"}
    node.world.prompts = ()
    assert ears["objects"].until(lambda m: not m.detections)
    assert len(ears["markers"].until(lambda m: len(m.markers) == 1).markers) == 1
    assert ears["relevancy_cloud"].until(lambda m: m.width == 0)


def test_an_answer_is_shown_at_once_and_its_question_stays(node):
    node.world.prompts = ("red",)
    node.start(relevancy_hz=0.01)  # the refresh does not come in this test's time
    ears = {topic: node.hear(topic) for topic in ("objects", "relevancy_cloud")}
    publishers = node.outputs._publishers
    wait_for(lambda: all(publishers[topic].subscribers for topic in ears))
    region = [[0.0, -1.0, 0.0], [1.0, 1.0, 1.0]]
    question = Question(("blue; azure",), {"region": region, "grasps": False})
    answer = question.ask(node.engine)
    node.outputs.show(answer, question)
    assert [d.results[0].hypothesis.class_id for d in ears["objects"].first().detections] == ["blue"]
    assert ears["relevancy_cloud"].first().width == len(answer.cloud)
    assert node.world.prompts == ("blue; azure",)
    node.set(relevancy_hz=20)
    again = ears["relevancy_cloud"].until()
    assert again.width == len(answer.cloud) < len(node.engine.snapshot().cloud)  # still the question's region
    node.world.prompts = ("red",)
    assert ears["relevancy_cloud"].until(lambda m: m.width == len(node.engine.snapshot().cloud))


def test_an_unchanged_map_is_asked_only_once(node, monkeypatch):
    asked, query = [], node.engine.query
    monkeypatch.setattr(node.engine, "query", lambda *a, **k: asked.append(a) or query(*a, **k))
    node.world.prompts = ("red",)
    ear = node.start().hear("objects")
    for _ in range(3):
        ear.until()
    assert len(asked) == 1


def test_views_are_rendered_from_the_last_frame(node):
    node.start(rendered_width=40)
    image, depth = node.hear("rendered/image"), node.hear("rendered/depth")
    seen = decode_depth(depth.first())
    assert seen.shape == (30, 40) and decode_colour(image.first()).shape == (30, 40, 3)
    frame = node.world.last_frame()
    truth = cast(frame.T_world_camera, camera=CAMERA.resized(40, 30))[0]
    both = (seen > 0) & (truth > 0)
    assert both.mean() > 0.6 and np.median(np.abs(seen - truth)[both]) < 0.03
    assert depth.messages[0].header.stamp.sec + depth.messages[0].header.stamp.nanosec * 1e-9 == pytest.approx(1.1)
    colours = node.hear("rendered/features")
    first = decode_colour(colours.first())
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 10
    node.set(rendered_width=80)
    larger = decode_colour(colours.until(lambda m: m.width == 80))
    assert np.median(np.abs(larger[::2, ::2].astype(int) - first)) < 25  # the same colours


def test_status_adds_up(node):
    node.world.count("pose_missing", 3, "no transform")
    message = node.start().hear("status").first()
    assert message.state == message.STATE_RUNNING and message.last_error == "no transform"
    assert dict(zip(message.rejected_reasons, message.rejected_counts)) == {"pose_missing": 3}
    lost = message.frames_dropped + sum(message.rejected_counts) + message.frames_waiting
    assert message.frames_in == message.frames_used + message.frames_skipped + lost == 12 + 3
    assert message.voxels == len(node.engine.snapshot().cloud) and message.keyframes == 12
    assert message.train_steps >= 320 and message.memory_bytes > 1e6 and message.loss > 0
    node.world.paused = True
    assert node.outputs.status().state == message.STATE_PAUSED


def test_status_of_an_engine_that_failed(buses):
    class Broken:
        def __init__(self, encoder):
            self.name, self.dim, self.has_text = encoder.name, encoder.dim, True
            self.cache_key, self.calibration = encoder.cache_key, encoder.calibration

        def encode_frame(self, frame):
            raise RuntimeError("the lens is dirty")

        encode_text = None

    engine = Engine(SCENE, Broken(create(SCENE.encoder)))
    engine.start()
    node = Node(*buses, engine).start()
    ear, cloud = node.hear("status"), node.hear("map_cloud", LATCHED)
    assert ear.first().state == ear.first().STATE_WAITING
    engine.submit(stream(1)[0])
    message = ear.until(lambda m: m.state == m.STATE_FAILED)
    assert "the lens is dirty" in message.last_error and not cloud.messages
    node.close()
    engine.stop()


def test_rates_are_live_and_zero_is_never(node):
    node.start(status_hz=0)
    ear = node.hear("status")
    time.sleep(A_WHILE_S)
    assert not ear.messages
    node.set(status_hz=20)
    ear.first()
    timers = dict(node.outputs._timers)
    node.set(status_hz=0)
    assert {name for name in timers if node.outputs._timers.get(name) is not timers[name]} == {"status"}
    time.sleep(0.2)
    heard = len(ear.messages)
    time.sleep(A_WHILE_S)
    assert len(ear.messages) == heard


def test_a_failure_is_logged_once_told_and_tried_again(node, monkeypatch, caplog):
    node.world.prompts = ("red",)
    query = node.engine.query
    monkeypatch.setattr(node.engine, "query", lambda *_, **__: 1 / 0)
    ear = node.start().hear("objects")
    wait_for(lambda: node.world.last_error)
    time.sleep(A_WHILE_S)
    assert node.world.last_error == "relevancy: division by zero"
    assert len([r for r in caplog.records if "cannot publish relevancy" in r.message]) == 1
    monkeypatch.setattr(node.engine, "query", query)
    assert ear.first().detections


def test_large_clouds_are_thinned_evenly(node):
    assert thinned(10, 10) == slice(None)
    rows = thinned(1000, 7)
    assert len(rows) == 7 and rows[0] == 0 and rows[-1] == 999 and np.ptp(np.diff(rows)) <= 1
    node.world.prompts = ("red",)
    node.start(max_cloud_points=100)
    assert node.hear("map_cloud", LATCHED).first().width == 100
    assert node.hear("relevancy_cloud").first().width == 100
    node.world.vocabulary = ("red",)
    assert node.hear("labelled_cloud", LATCHED).first().width == 100


def test_close_and_start_twice(node):
    node.start()
    node.outputs.start()
    node.outputs.close()
    node.outputs.close()
    node.outputs.reschedule()
    assert not node.outputs._timers


def test_a_map_without_classes_publishes_none(node):
    """Whoever listens to what is not learnt hears nothing, and nobody else is disturbed."""
    node.start()
    labels, instances, info = (node.hear(t) for t in ("rendered/labels", "rendered/instances", "labels/info"))
    image = node.hear("rendered/image")
    image.until()
    image.until()
    assert not labels.messages and not instances.messages and not info.messages and node.world.last_error == ""


def test_labelled_cloud_shows_what_is_asked_for(node):
    node.world.vocabulary = ("red", "blue")
    node.start(labels="classes")
    ear = node.hear("labelled_cloud", LATCHED)
    time.sleep(A_WHILE_S)
    assert not ear.messages  # no classes were learnt
    node.set(labels="auto")
    cloud = from_cloud(ear.first())
    assert set(np.unique(cloud["label"])) == {-1, 0, 1} and "entropy" not in cloud
