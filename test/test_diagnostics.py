"""What the node says when something is wrong: in words that name the topic, the frame or the setting, on the wire."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("zenoh", reason="the extra `zenoh` is not installed")
from analytic_scene import frame_at, ring, stream
from node_peer import PATIENCE_S, Robot, feed, fill, messages_of, node_config, running, settle, until

from semfield_ros.config import HeadsConfig
from semfield_ros.encoders.stub import StubEncoder
from semfield_ros.engine import Engine
from semfield_ros.messages.poses import header_of
from semfield_ros.messages.types import types
from semfield_ros.node.config import CameraConfig, DiagnosticsConfig, OutputConfig, PoseConfig
from semfield_ros.node.diagnostics import ERROR, OK, WARN, frames_finding, labels_finding

FIRST_S = 1000.0
SUBJECTS = {"camera camera", "pose", "frames", "engine", "callbacks"}
SILENT = DiagnosticsConfig(silent_after_s=0.3)


@pytest.fixture(scope="module")
def robot():
    robot = Robot()
    yield robot
    robot.close()


def one(k=0):
    return frame_at(ring(12)[k % 12], FIRST_S + 0.1 * k)


def finding(node, name):
    """What is said now about one subject."""
    return next(f for f in node.diagnostics.findings() if f.name == name)


def until_said(node, name, words, level=ERROR):
    """Wait until something is said about a subject."""
    return until(
        lambda: (f := finding(node, name)).level == level and words in f.message and f,
        lambda: finding(node, name),
    )


def test_all_is_well(robot, tmp_path):
    config = node_config(tmp_path, diagnostics=DiagnosticsConfig(silent_after_s=PATIENCE_S))
    with running(robot, config) as node:
        fill(node, robot, stream(12, first_s=FIRST_S))
        found = {f.name: f for f in node.diagnostics.findings()}
        assert set(found) == SUBJECTS
        assert {f.level for f in found.values()} == {OK}
        assert found["camera camera"].values["colour received"] == 12 == found["camera camera"].values["frames"]
        assert found["frames"].message == "12 of 12 reached the engine"
        assert found["engine"].values["keyframes"] == 12
        assert found["engine"].values["resident [MB]"] > 50
        assert float(found["callbacks"].values["p99 [ms]"]) > 0


# ---- what does not come -------------------------------------------------------------------------------------------


def test_topics_that_nobody_publishes_are_named_with_those_that_are_there(robot, tmp_path):
    with running(robot, node_config(tmp_path, diagnostics=SILENT)) as node:
        robot.do("advertise", "/camera/color/image_raw", "sensor_msgs/msg/Image")
        said = until_said(node, "camera camera", "/camera/color/image_raw")
        for topic in ("/rgb/image", "/depth/image", "/rgb/camera_info"):
            assert f"nobody publishes {topic}" in said.message
        assert "/camera/color/image_raw" in said.message  # the remapping that is wanted


def test_a_topic_that_falls_silent_is_named_and_the_other_is_not(robot, tmp_path):
    with running(robot, node_config(tmp_path, diagnostics=SILENT)) as node:
        fill(node, robot, [one(0)])
        until_said(node, "camera camera", "/depth/image is silent since")
        k = 1

        def depth_is_blamed_alone():
            nonlocal k
            messages = dict(messages_of(one(k)))
            k += 1
            del messages["depth/image"]
            robot.publish(messages.items())
            said = finding(node, "camera camera").message
            return "/depth/image is silent" in said and "/rgb/image is silent" not in said

        until(depth_is_blamed_alone)
        more = itertools.count(k)
        until(lambda: feed(robot, [one(next(more))]) or finding(node, "camera camera").level == OK)


def test_a_publisher_that_sends_nothing_is_told_from_none(robot, tmp_path):
    with running(robot, node_config(tmp_path, diagnostics=SILENT)) as node:
        robot.do("advertise", "/rgb/image", "sensor_msgs/msg/Image")
        until_said(node, "camera camera", "/rgb/image has brought nothing yet: a publisher is there, but sends nothing")


def test_another_definition_of_a_type_is_named(robot, tmp_path):
    with running(robot, node_config(tmp_path, diagnostics=SILENT)) as node:
        robot.join(node.bus.endpoint, other_hash=True)
        robot.publish(messages_of(one(0)), awaited=False)
        said = until_said(node, "camera camera", "another definition of sensor_msgs/msg/Image")
        assert "/robot has" in said.message and "same version" in said.message and node.inputs.frames_in() == 0


def test_another_type_on_the_topic_is_named(robot, tmp_path):
    with running(robot, node_config(tmp_path, diagnostics=SILENT)) as node:
        robot.do("advertise", "/rgb/image", "sensor_msgs/msg/CompressedImage")
        until_said(node, "camera camera", "sensor_msgs/msg/CompressedImage, wanted is sensor_msgs/msg/Image")


def test_quality_of_service_that_does_not_fit_is_named(robot, tmp_path):
    with running(robot, node_config(tmp_path, camera=CameraConfig(reliable=True), diagnostics=SILENT)) as node:
        robot.do("advertise", "/rgb/image", "sensor_msgs/msg/Image", reliable=False)
        until_said(node, "camera camera", "/robot offers best effort, wanted is reliable: ask for best effort")


def test_silent_labels_and_unheard_names_are_told(robot, tmp_path):
    camera = CameraConfig(labels_topic="labels/image", masks_topic="masks/image", labels_timeout_s=0.05)
    with running(robot, node_config(tmp_path, camera=camera, diagnostics=SILENT)) as node:
        said = until_said(node, "camera camera", "/labels/image has brought nothing yet: nobody publishes /labels")
        assert "/masks/image has brought nothing yet" in said.message
        assert "labels/info" not in said.message  # some who label have no names
        robot.do("advertise", "/labels/info", "vision_msgs/msg/LabelInfo", transient_local=False)
        until_said(node, "camera camera", "/labels/info is not heard: /robot offers volatile, wanted is transient")


def test_a_missing_transform_is_named(robot, tmp_path):
    with running(robot, node_config(tmp_path, pose=PoseConfig(timeout_s=0.1))) as node:
        _, *images = messages_of(one(0), optical_frame="front_lens")
        robot.publish(images)
        settle(node, 1)
        said = finding(node, "pose")
        assert said.level == ERROR and "'front_lens'" in said.message and "'map'" in said.message
        robot.publish([pair for k in (1, 2) for pair in messages_of(one(k), global_frame="odom")])
        settle(node, 3)
        until_said(node, "pose", "'map' (for 'map' <- 'camera_optical_frame') is on neither /tf nor /tf_static")
        fill(node, robot, [one(3)])
        assert node.inputs.unused() == {"pose_missing": 3}


@pytest.mark.parametrize("source, topic", [("odometry", "/odom"), ("pose", "/pose")])
def test_a_silent_pose_topic_is_named(robot, tmp_path, source, topic):
    config = node_config(tmp_path, pose=PoseConfig(source=source, timeout_s=0.1), diagnostics=SILENT)
    with running(robot, config) as node:
        robot.publish(messages_of(one(0))[1:])
        settle(node, 1)
        said = until_said(node, "pose", topic)
        assert f"nobody publishes {topic}" in said.message
        fill(node, robot, [one(1)], pose=source)
        said = until_said(node, "pose", f"{topic} is silent: a publisher is there, but sends nothing")


def test_stamps_that_never_meet_are_measured(robot, tmp_path):
    """Two clocks 120 ms apart."""
    config = node_config(tmp_path, camera=CameraConfig(sync_queue_size=3))
    with running(robot, config) as node:
        for k in range(12):
            messages = dict(messages_of(one(3 * k)))
            late = messages.pop("depth/image")
            late.header = header_of(round((one(3 * k).stamp_s + 0.12) * 1e9), "camera_optical_frame")
            robot.publish([*messages.items(), ("depth/image", late)])
        until(lambda: node.inputs.frames_in() == 12)
        said = until_said(node, "camera camera", "colour and depth never come together")
        assert "0.120 s apart" in said.message and "sync_slop_s" in said.message
        assert node.inputs.submitted == 0


def test_images_without_camera_info_and_in_two_frames_are_warned_of(robot, tmp_path):
    with running(robot, node_config(tmp_path)) as node:
        messages = dict(messages_of(one(0)))
        del messages["rgb/camera_info"]
        messages["depth/image"].header = header_of(round(FIRST_S * 1e9), "depth_optical_frame")
        robot.publish(messages.items())
        until_said(node, "camera camera", "images come, but no CameraInfo")
        until_said(
            node, "camera camera", "colour is in frame 'camera_optical_frame' and depth in 'depth_optical_frame'"
        )


def test_most_images_rejected_is_a_warning_with_the_reason(robot, tmp_path):
    with running(robot, node_config(tmp_path)) as node:
        blind = [replace(one(k), depth_m=np.zeros_like(one(k).depth_m)) for k in range(25)]
        feed(robot, blind)
        settle(node, 25)
        said = finding(node, "frames")
        assert said.level == WARN and "25 of 25 images were not used, most of them for depth_empty" in said.message
        assert said.values["depth_empty"] == 25
    assert frames_finding(25, 13, 0, {"paused": 12}, "").level == OK


# ---- what breaks --------------------------------------------------------------------------------------------------


class FailingEncoder(StubEncoder):
    """Breaks at its second image."""

    def __init__(self):
        super().__init__()
        self.images = 0

    def encode_frame(self, frame):
        self.images += 1
        if self.images > 1:
            raise MemoryError("the accelerator is on fire")
        return super().encode_frame(frame)


def test_a_worker_that_fails_is_told_and_the_node_stays(robot, tmp_path):
    config = node_config(tmp_path, output=OutputConfig(status_hz=20, relevancy_hz=20, map_cloud_hz=20))
    with running(robot, config, engine=Engine(config.engine_config(), FailingEncoder())) as node:
        feed(robot, stream(6, first_s=FIRST_S))
        said = until_said(node, "engine", "the accelerator is on fire")
        assert said.level == ERROR
        feed(robot, stream(3, first_s=FIRST_S + 10))
        settle(node, 9)
        assert node.inputs.unused().get("engine_failed", 0) >= 3
        for name, kind in (
            ("query", "semfield_ros/srv/Query"), ("save_map", "semfield_ros/srv/SaveMap"),
            ("reset", "std_srvs/srv/Trigger"), ("pause", "std_srvs/srv/SetBool"), ("render", "semfield_ros/srv/Render"),
        ):  # fmt: skip
            response = robot.call(f"/semfield/{name}", kind)
            assert not response.success and "on fire" in response.message, name
        robot.listen("/semfield/status", "semfield_ros/msg/Status")
        status = robot.heard("/semfield/status")[-1]
        assert status.state == status.STATE_FAILED and "on fire" in status.last_error
        robot.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray")
        said = {s.name: s for s in robot.heard("/diagnostics")[-1].status}["semfield: engine"]
        assert int(said.level) == ERROR and "on fire" in said.message


def test_time_that_jumps_back_after_a_failure_is_survived(robot, tmp_path):
    """With on_time_jump = reset the engine is asked to forget, which it cannot any more."""
    config = node_config(tmp_path, pose=PoseConfig(on_time_jump="reset"))
    with running(robot, config, engine=Engine(config.engine_config(), FailingEncoder())) as node:
        feed(robot, stream(6, first_s=FIRST_S))
        until_said(node, "engine", "the accelerator is on fire")
        settle(node, 6)
        feed(robot, stream(4, first_s=FIRST_S - 100))
        settle(node, 10)
        assert node.inputs.assembler.time_jumps == 1 and "malformed" not in node.inputs.unused()


# ---- on the wire --------------------------------------------------------------------------------------------------


def test_diagnostics_arrive_on_the_wire(robot, tmp_path):
    with running(robot, node_config(tmp_path, output=OutputConfig(diagnostics_hz=20))) as node:
        robot.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray")
        array = robot.heard("/diagnostics")[-1]
        status = {s.name: s for s in array.status}
        assert set(status) == {f"semfield: {name}" for name in SUBJECTS}
        camera = status["semfield: camera camera"]
        assert int(camera.level) == ERROR and "nobody publishes /rgb/image" in camera.message
        assert camera.hardware_id == "semfield"
        assert {v.key: v.value for v in camera.values}["colour received"] == "0"
        assert abs(array.header.stamp.sec - time.time()) < PATIENCE_S
        fill(node, robot, stream(3, first_s=FIRST_S))
        robot.until_heard(
            "/diagnostics", lambda m: any(s.name == "semfield: frames" and "3 of 3" in s.message for s in m.status)
        )


def test_the_log_tells_once_what_goes_on_and_when_it_is_well_again(robot, tmp_path, caplog):
    caplog.set_level("INFO", "semfield_ros.node.diagnostics")
    config = node_config(
        tmp_path, output=OutputConfig(diagnostics_hz=50), diagnostics=DiagnosticsConfig(silent_after_s=PATIENCE_S)
    )
    with running(robot, config) as node:
        told = until(lambda: [r for r in caplog.records if "nobody publishes /rgb/image" in r.getMessage()])
        robot.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray")
        robot.heard("/diagnostics", 10)
        assert len(told) == 1
        fill(node, robot, stream(3, first_s=FIRST_S))
        until(lambda: [r for r in caplog.records if r.levelname == "INFO" and "camera camera" in r.getMessage()])


def test_rates_follow_the_settings_while_everything_runs(robot, tmp_path):
    config = node_config(tmp_path, output=OutputConfig(diagnostics_hz=0))
    with running(robot, config) as node:
        robot.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray")
        until(lambda: node.bus.graph().of("/diagnostics", "subscription"))
        node.configure_live(replace(config, output=replace(config.output, diagnostics_hz=20)))
        robot.heard("/diagnostics", 2)
        assert types().fields("diagnostic_msgs/msg/DiagnosticArray") == ["header", "status"]


# ---- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "camera", "names", "level", "words"),
    [
        ({}, {"labels_topic": "labels/image"}, (), WARN, "no head learns them; set heads.semantic_classes"),
        ({"instances": "slots"}, {}, (), WARN, "heads.instances is slots and nothing brings masks; set camera.masks"),
        ({"semantic_classes": 3}, {"labels_topic": "l"}, (1, 3, 4, 9), WARN, "2 classes of labels/info (4, 9)"),
        ({"semantic_classes": 3}, {"labels_topic": "l"}, (0, 1, 2, 3), OK, "3 classes"),
        ({"instances": "slots"}, {"masks_topic": "m"}, (), OK, "0 classes"),
    ],
)
def test_labels_that_teach_nothing_are_told(heads, camera, names, level, words):
    found = labels_finding(HeadsConfig(**heads), CameraConfig(**camera), names)
    assert found.level == level and words in found.message


def test_without_labels_nothing_is_said_of_them():
    assert labels_finding(HeadsConfig(), CameraConfig(), ()) is None
