"""What a node heard and answered, as a bag that other programs read; and bags played through a node."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zenoh", reason="the extra `zenoh` is not installed")
from analytic_scene import stream
from node_peer import Program, Robot, free_endpoint, messages_of, node_config, running, settle
from rosbags.rosbag2 import Reader

from semfield_ros import cli
from semfield_ros.config_io import to_yaml
from semfield_ros.errors import ConfigError
from semfield_ros.messages.types import types
from semfield_ros.node.node import SemfieldNode
from semfield_ros.node.publisher import publish
from semfield_ros.node.recording import Recording
from semfield_ros.sources import open_source
from semfield_ros.sources.bag_writer import write_bag
from semfield_ros.wire.zenoh_bus import ZenohBus

FIRST_S = 1000.0
QUERY = "semfield_ros/srv/Query"


@pytest.fixture(scope="module")
def robot():
    robot = Robot()
    yield robot
    robot.close()


def contents(bag):
    """CDR bytes by topic, in order."""
    found = {}
    with Reader(bag) as reader:
        for connection, _, data in reader.messages():
            found.setdefault(connection.topic, []).append(bytes(data))
    return found


def qos_of(connection):
    return connection.ext.offered_qos_profiles


@pytest.fixture(scope="module")
def recorded(robot, tmp_path_factory):
    """A bag of a node that was fed, asked and listened to; what was sent and answered."""
    folder = tmp_path_factory.mktemp("recorded")
    bus = ZenohBus("semfield", mode="test", domain=0)
    recording = Recording(bus, folder / "bag")
    node = SemfieldNode(recording.bus, node_config(folder))
    sent, answers = {}, []
    try:
        robot.join(bus.endpoint)
        node.start()
        robot.listen("/semfield/map_cloud", "sensor_msgs/msg/PointCloud2", transient_local=True, depth=1)
        for frame in stream(8, first_s=FIRST_S):
            messages = messages_of(frame)
            robot.publish(messages)
            for topic, message in messages:
                sent.setdefault("/" + topic.lstrip("/"), []).append(types().encode(message))
        torn = types().encode(message)[:100]
        robot.publish([("rgb/image", ("sensor_msgs/msg/Image", torn))])
        sent["/rgb/image"].append(torn)
        settle(node, 9)
        assert node.inputs.submitted == 8 and node.inputs.unused() == {"malformed": 1}
        for prompt in ("red", "blue", "red"):
            answers.append(robot.call("/semfield/query", QUERY, prompts=[prompt]).answer)
        assert not robot.call("/semfield/query", QUERY).success  # nothing asked, nothing recorded
        robot.heard("/semfield/map_cloud")
    finally:
        node.close()
        recording.close()
        bus.close()
    assert recording.recorder.dropped == recording.recorder.failed == 0
    return folder / "bag", sent, answers


def test_inputs_are_recorded_byte_for_byte(recorded):
    bag, sent, _ = recorded
    found = contents(bag)
    assert set(sent) == {"/rgb/image", "/depth/image", "/rgb/camera_info", "/tf"}
    for topic, data in sent.items():
        assert found[topic] == data, topic


def test_answers_and_outputs_are_recorded(recorded):
    bag, _, answers = recorded
    found = contents(bag)
    assert found["/semfield/query/answer"] == [types().encode(answer) for answer in answers]
    assert len(found["/semfield/map_cloud"]) >= 1
    with Reader(bag) as reader:
        kinds = {c.topic: (c.msgtype, c.digest) for c in reader.connections}
        latched = {c.topic for c in reader.connections if any(q.durability.value == 1 for q in qos_of(c))}
    assert kinds["/semfield/query/answer"] == ("semfield_ros/msg/Answer", types().hash("semfield_ros/msg/Answer"))
    assert latched == {"/semfield/map_cloud"}
    assert (bag / "metadata.yaml").is_file() and list(bag.glob("*.mcap"))


def test_a_recording_is_a_source_of_the_same_frames(recorded):
    """What the node was fed comes out of the bag again."""
    bag, _, _ = recorded
    found = list(open_source(f"bag:{bag}"))
    for frame, original in zip(found, stream(8, first_s=FIRST_S), strict=True):
        np.testing.assert_array_equal(frame.rgb, original.rgb)
        np.testing.assert_array_equal(frame.depth_m, original.depth_m)
        np.testing.assert_allclose(frame.T_world_camera, original.T_world_camera, atol=1e-9)
        assert frame.stamp_s == pytest.approx(original.stamp_s, abs=1e-6)


def test_a_folder_that_exists_is_not_recorded_into(tmp_path):
    bus = ZenohBus("semfield", mode="test", domain=0)
    try:
        with pytest.raises(ConfigError, match=r"cannot record to .*another folder"):
            Recording(bus, tmp_path)
    finally:
        bus.close()


def test_a_recorded_node_is_a_node(robot, tmp_path):
    """Everything that is no traffic goes to the bus itself."""
    bus = ZenohBus("semfield", mode="test", domain=0)
    recording = Recording(bus, tmp_path / "bag")
    try:
        heard = recording.bus
        assert heard.node_name == bus.node_name and heard.transforms is bus.transforms
        assert heard.resolve("~/a") == "/semfield/a" and heard.graph().nodes == bus.graph().nodes
        publisher = heard.publisher("std_msgs/msg/String", "a")
        assert publisher.topic == "/a" and publisher.subscribers == 0
        with pytest.raises(Exception, match="wrong type"):
            publisher.publish(types().new("std_msgs/msg/String", data=3))
    finally:
        recording.close()
        bus.close()
    assert recording.recorder.recorded == 0


@pytest.mark.ros
@pytest.mark.slow
def test_ros2_bag_reads_a_recording(recorded):
    bag, sent, answers = recorded
    assert shutil.which("ros2")
    said = subprocess.run(["ros2", "bag", "info", str(bag)], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    lines = [line for line in said.stdout.splitlines() if "Topic:" in line]
    counts = {line.split("Topic:")[1].split("|")[0].strip(): line for line in lines}
    for topic, data in {**sent, "/semfield/query/answer": answers}.items():
        assert f"Count: {len(data)} " in counts[topic] + " ", said.stdout


# ---- bags through a node ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bag_is_played_to_a_node(tmp_path, storage):
    """Under stamps of now, each loop after the other; the node maps all of it, from the first image on."""
    frames = stream(8, first_s=FIRST_S)
    write_bag(frames, tmp_path / "bag", storage)
    with running(None, node_config(tmp_path)) as node:
        bus = ZenohBus("player", mode="join", endpoint=node.bus.endpoint, domain=0)
        try:
            source = open_source(f"bag:{tmp_path / 'bag'}")
            assert publish(bus, source, rate=0, loops=2, patience_s=60) == 16
            settle(node, 16)
        finally:
            bus.close()
        assert node.inputs.submitted == 16
        last = node.world.last_frame()
        np.testing.assert_array_equal(last.rgb, frames[-1].rgb)
        np.testing.assert_allclose(last.T_world_camera, frames[-1].T_world_camera, atol=1e-9)


def test_a_player_nobody_listens_to_says_so_and_goes_on(caplog):
    bus = ZenohBus("player", mode="test", domain=0)
    try:
        assert publish(bus, Frames(stream(2)), rate=0, patience_s=0.05) == 2
        assert "nobody listens to /rgb/image yet" in caplog.text
        assert publish(bus, Frames(stream(2)), rate=0, loops=0, stopped=lambda: True) == 0
    finally:
        bus.close()


class Frames(list):
    """A source of given frames."""

    name, rate_hz = "frames", 10.0


@pytest.mark.parametrize("stamps", ["source", "now"])
def test_a_loop_under_the_stamps_of_the_bag_is_a_jump_of_time(tmp_path, stamps):
    with running(None, node_config(tmp_path)) as node:
        bus = ZenohBus("player", mode="join", endpoint=node.bus.endpoint, domain=0)
        try:
            sent = publish(bus, Frames(stream(12, first_s=FIRST_S)), rate=3, loops=3, stamps=stamps, patience_s=60)
            settle(node, sent)
        finally:
            bus.close()
        assert node.inputs.assembler.time_jumps == (2 if stamps == "source" else 0)
        # Images of the new time may meet poses of the old, and a busy machine may fall behind: these are counted.
        assert set(node.inputs.unused()) <= {"pose_missing", "time_jump", "pending_full", "transport"}
        assert node.inputs.submitted >= 12


# ---- the programs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_robot_node_and_question_in_three_programs_and_the_bag_of_it_all(tmp_path):
    """`semfield publish simulator`, `semfield node --record` and `semfield ask`, as the documentation shows them."""
    pytest.importorskip("mujoco", reason="the extra `sim` is not installed")
    endpoint = free_endpoint()
    (tmp_path / "node.yaml").write_text(to_yaml(node_config(tmp_path)))
    wire = ("--wire.endpoint", endpoint)
    with Program("node", "--config", tmp_path / "node.yaml", "--record", tmp_path / "bag", *wire) as node:
        node.says("listens to /rgb/image")
        with Program("publish", "simulator:7", "--width", 80, "--loops", 0, "--wire.mode", "join", *wire) as camera:
            watcher = Robot(endpoint, name="watcher")
            try:
                watcher.listen("/semfield/status", "semfield_ros/msg/Status")
                watcher.until_heard("/semfield/status", lambda s: s.keyframes >= 3)
            finally:
                watcher.close()
            with Program("ask", "red; red thing", "unicorn", *wire) as question:
                assert question.ends() == 0, question.text
                assert "/semfield, in map, metres" in question.text and "no match" in question.text
            assert camera.stop() == 0 and "published" in camera.text
        assert node.stop() == 0, node.text
        assert "Traceback" not in node.text + camera.text
    found = contents(tmp_path / "bag")
    assert len(found["/semfield/query/answer"]) == 1
    assert {"/rgb/image", "/depth/image", "/rgb/camera_info", "/tf"} <= found.keys()
    answer = types().decode(found["/semfield/query/answer"][0], "semfield_ros/msg/Answer")
    assert list(answer.prompts) == ["red", "unicorn"] and answer.header.frame_id == "map"
    # The bag of the node is a recording like any other.
    assert len(list(open_source(f"bag:{tmp_path / 'bag'}"))) >= 3


NOBODY = ("--wire.endpoint", "tcp/127.0.0.1:9")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("ask", "mug", "--timeout-s", 0.3, "--node", "/kitchen"), "nobody serves /kitchen/query"),
        (("ask", "mug", "--wire.endpoint", "robot:7447"), "is no Zenoh endpoint; write PROTOCOL/HOST:PORT"),
        (("ask", "mug", "--wire.remap", "a=b"), "expected FROM:=TO"),
        (("ask", "mug", "--wire.remap", "rgb image:=b"), "no topic or service name"),
        (("ask", "mug", "--wire.zenoh-config", "missing.json5"), "missing.json5 does not exist"),
        (("publish", "nowhere"), "'nowhere' is no directory"),
        (("publish", "bag:nowhere"), "nowhere does not exist"),
        (("publish", "simulator", "--name", "a b"), "no node name"),
        (("node", "--record", Path("/"), "--encoder.name", "stub"), "cannot record to /"),
    ],
)
def test_what_cannot_work_is_said(arguments, words, capsys):
    """In words, with exit status 2."""
    elsewhere = () if "--wire.endpoint" in arguments else NOBODY
    assert cli.main([*map(str, arguments), *elsewhere, "--wire.mode", "join"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said and "Traceback" not in said


def test_a_question_nobody_hears_ends_the_program():
    with Program("ask", "mug", "--timeout-s", 0.3, "--wire.endpoint", free_endpoint()) as program:
        assert program.ends() == 2, program.text
        assert "nobody serves /semfield/query" in program.text and "Traceback" not in program.text
