"""The node's inputs from outside: a robot in another process is its camera, over a real wire. Every image is used or
counted, whatever comes."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("zenoh", reason="the extra `zenoh` is not installed")
from analytic_scene import BLOCKS, CAMERA, cast, frame_at, ring, stream
from node_peer import Robot, accounted, feed, fill, messages_of, node_config, running, settle, until

from semfield_ros.errors import Reason
from semfield_ros.frame import Segments
from semfield_ros.geometry import Camera
from semfield_ros.messages.poses import header_of, time_of
from semfield_ros.messages.types import types
from semfield_ros.node.config import CameraConfig, PoseConfig

FIRST_S = 1000.0
OPTICAL = "camera_optical_frame"


@pytest.fixture(scope="module")
def robot():
    robot = Robot()
    yield robot
    robot.close()


def one(k=0, first_s=FIRST_S):
    """The k-th frame of the stream."""
    return frame_at(ring(12)[k % 12], first_s + 0.1 * k)


def seen(frame):
    """A frame as the node holds it has this content, whatever way it came."""

    def same(found):
        np.testing.assert_array_equal(found.rgb, frame.rgb)
        np.testing.assert_allclose(found.depth_m, frame.depth_m, atol=1e-6)
        np.testing.assert_allclose(found.T_world_camera, frame.T_world_camera, atol=1e-9)
        assert found.stamp_s == pytest.approx(frame.stamp_s, abs=1e-6)
        assert found.camera == frame.camera

    return same


# ---- accounting ---------------------------------------------------------------------------------------------------


def test_clean_frames_reach_the_engine_as_they_were_taken(robot, tmp_path):
    with running(robot, node_config(tmp_path)) as node:
        frames = stream(12, first_s=FIRST_S)
        fill(node, robot, frames)
        assert (node.inputs.submitted, node.inputs.unused()) == (12, {})
        seen(frames[-1])(node.world.last_frame())
        status = node.engine.status()
        assert status.used + status.skipped == 12 and not status.dropped
        # The map is where the scene is: everything lies on the table or on the blocks.
        points = node.engine.snapshot().cloud.points
        assert len(points) > 1000 and points[:, 2].min() > -0.03 and points[:, 2].max() < 0.19


def _nan_depth(messages):
    depth = messages["depth/image"]
    depth.data = np.full(CAMERA.width * CAMERA.height, np.nan, np.float32).view(np.uint8)


def _tall_depth(messages):
    depth = messages["depth/image"]
    depth.height, depth.width, depth.step = CAMERA.width, CAMERA.height, CAMERA.height * 4


def _uncalibrated(messages):
    messages["rgb/camera_info"].k = np.zeros(9)


def _lens_of_tomorrow(messages):
    messages["rgb/camera_info"].distortion_model = "pinhole_of_tomorrow"
    messages["rgb/camera_info"].d = np.full(5, 0.01)


def _yuv(messages):
    messages["rgb/image"].encoding = "yuv422"


def _short(messages):
    messages["rgb/image"].data = messages["rgb/image"].data[:-1]


def _torn(messages):
    image = messages["rgb/image"]
    messages["rgb/image"] = (image.__msgtype__, types().encode(image)[: -len(image.data) // 2])


def _no_depth(messages):
    del messages["depth/image"]


def _no_pose(messages):
    messages["/tf"].transforms[0].child_frame_id = "elsewhere"


def _nan_pose(messages):
    messages["/tf"].transforms[0].transform.rotation.w = float("nan")


DIRTY = {
    "depth_empty": _nan_depth,
    "size_mismatch": _tall_depth,
    "uncalibrated": _uncalibrated,
    "image_encoding": _yuv,
    "image_malformed": _short,
    "malformed": _torn,
    "pose_missing": _no_pose,
}


@pytest.mark.parametrize("reason", DIRTY)
def test_what_is_wrong_with_an_image_is_counted_and_the_stream_goes_on(robot, tmp_path, reason):
    config = node_config(tmp_path, pose=PoseConfig(timeout_s=0.2))
    with running(robot, config) as node:
        fill(node, robot, [one(0)])
        for k in range(1, 5):
            messages = dict(messages_of(one(k)))
            DIRTY[reason](messages)
            robot.publish(messages.items())
            settle(node, 1 + k)
        assert node.inputs.unused() == {reason: 4} and node.inputs.submitted == 1
        if reason != "malformed":  # never was a message
            assert Reason(reason) and node.inputs.assembler.gate.last_error.startswith(reason)
        fill(node, robot, [one(k) for k in range(5, 8)])
        assert node.inputs.unused() == {reason: 4} and node.inputs.submitted == 4


@pytest.mark.parametrize("spoil", [_nan_pose, _lens_of_tomorrow])
def test_unusable_poses_and_lenses_cost_their_frames_only(robot, tmp_path, spoil):
    config = node_config(tmp_path, pose=PoseConfig(timeout_s=0.2))
    with running(robot, config) as node:
        fill(node, robot, [one(0)])
        messages = dict(messages_of(one(1)))
        spoil(messages)
        robot.publish(messages.items())
        settle(node, 2)
        assert sum(node.inputs.unused().values()) == 1
        fill(node, robot, [one(2)])
        assert node.inputs.submitted == 2


def test_colour_without_depth_waits_and_is_given_up_when_too_many_wait(robot, tmp_path):
    config = node_config(tmp_path, camera=CameraConfig(sync_queue_size=4))
    with running(robot, config) as node:
        for k in range(10):
            messages = dict(messages_of(one(k)))
            _no_depth(messages)
            robot.publish(messages.items())
            settle(node, k + 1, waiting=min(k + 1, 4))
        assert node.inputs.unused() == {"unsynchronised": 6}
        fill(node, robot, [one(10)])  # what waits is older than this pair and goes
        assert node.inputs.unused() == {"unsynchronised": 10} and node.inputs.submitted == 1


def test_second_images_of_a_stamp_are_counted(robot, tmp_path):
    with running(robot, node_config(tmp_path)) as node:
        fill(node, robot, [one(0), one(1), one(1), one(1), one(0), one(2)])
        assert node.inputs.submitted == 3 and node.inputs.unused() == {"unsynchronised": 3}


def test_a_flood_is_accounted_for_to_the_last_image(robot, tmp_path):
    """Faster than queues of one can be emptied, while the field trains all the time."""
    config = node_config(tmp_path, camera=CameraConfig(sync_queue_size=1))
    config = replace(
        config, train=replace(config.train, steps_per_keyframe=0), engine=replace(config.engine, queue_size=2)
    )
    with running(robot, config) as node:
        robot.publish([message for k in range(120) for message in messages_of(one(k))])
        # The wire may drop what it cannot carry; the node knows of what has reached it.
        last = one(200)
        until(lambda: robot.publish(messages_of(last)) or node.world.last_frame())
        arrived = settled(node)
        assert 1 <= node.inputs.submitted <= arrived
        assert node.engine.drain(60)
        status = node.engine.status()
        lost = sum(n for reason, n in status.dropped.items() if reason != "encoder_behind")
        assert status.submitted == node.inputs.submitted == status.used + status.skipped + lost


def settled(node, quiet_s=0.3):
    """Colour images that came, all of them accounted for, once no more come for a while."""
    since_s, before = time.monotonic(), -1
    while time.monotonic() - since_s < quiet_s or accounted(node) != before:
        if node.inputs.frames_in() != before:
            since_s, before = time.monotonic(), node.inputs.frames_in()
        assert time.monotonic() - since_s < 30, f"{before} in, {accounted(node)} accounted for"
        time.sleep(0.02)
    return before


def test_bytes_of_noise_neither_stop_nor_mislead_the_node(robot, tmp_path):
    """Messages with bytes changed at random on every topic; a clean stream afterwards is mapped as ever."""
    rng = np.random.default_rng(0)
    config = node_config(tmp_path, pose=PoseConfig(timeout_s=0.1, on_time_jump="reset"))
    with running(robot, config) as node:
        noise = []
        for k in range(40):
            for topic, message in messages_of(one(k)):
                data = bytearray(types().encode(message))
                for place in rng.integers(4, min(len(data), 150), rng.integers(0, 4)):
                    data[place] = rng.integers(0, 256)
                keeps = topic == "/tf"  # a stamp of the next century would be the newest for ever
                noise.append((topic, message if keeps else (message.__msgtype__, bytes(data))))
        robot.publish(noise, pace_s=0.002)
        until(lambda: node.inputs.frames_in() == 40 and settled(node) == 40)
        fresh = [one(k, FIRST_S + 100) for k in range(12)]
        feed(robot, fresh)
        until(lambda: node.inputs.frames_in() == 52 and settled(node) == 52)
        until(lambda: node.world.last_frame().stamp_s == pytest.approx(fresh[-1].stamp_s))
        seen(fresh[-1])(node.world.last_frame())


def test_a_stopped_node_counts_what_waited_and_goes_on_when_started_again(robot, tmp_path):
    with running(robot, node_config(tmp_path)) as node:
        fill(node, robot, [one(0)])
        messages = dict(messages_of(one(1)))
        _no_depth(messages)
        robot.publish(messages.items())
        settle(node, 2, waiting=1)
        node.stop()
        assert accounted(node) == node.inputs.frames_in() == 2
        assert node.inputs.unused() == {"time_jump": 1}
        node.start()
        fill(node, robot, [one(2), one(3)])
        assert node.inputs.submitted == 3


def test_stopping_and_starting_in_a_flood_loses_no_count(robot, tmp_path):
    with running(robot, node_config(tmp_path)) as node:
        fill(node, robot, [one(0)])
        flood = threading.Thread(target=feed, args=(robot, [one(k) for k in range(1, 100)]))
        flood.start()
        for _ in range(5):
            came = node.inputs.frames_in()
            until(lambda: node.inputs.frames_in() > came or not flood.is_alive())  # noqa: B023
            node.stop()
            node.start()
        flood.join()
        assert 1 <= node.inputs.submitted <= settled(node) <= 100


# ---- where poses come from ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["tf", "odometry", "pose"])
def test_poses_come_from_transforms_odometry_or_a_pose_topic(robot, tmp_path, source):
    with running(robot, node_config(tmp_path, pose=PoseConfig(source=source))) as node:
        frames = stream(4, first_s=FIRST_S)
        fill(node, robot, frames, pose=source)
        assert node.inputs.submitted == 4
        seen(frames[-1])(node.world.last_frame())


@pytest.mark.parametrize("source", ["tf", "odometry", "pose"])
def test_a_frame_waits_for_its_pose(robot, tmp_path, source):
    with running(robot, node_config(tmp_path, pose=PoseConfig(source=source, timeout_s=60.0))) as node:
        fill(node, robot, [one(0)], pose=source)
        pose, *images = messages_of(one(1), pose=source)
        robot.publish(images)
        settle(node, 2, waiting=1)
        assert node.inputs.submitted == 1 and node.inputs.assembler.last_pose_error
        robot.publish([pose])
        settle(node, 2)
        assert node.inputs.submitted == 2
        seen(one(1))(node.world.last_frame())


def test_poses_of_a_base_are_carried_to_the_camera(robot, tmp_path):
    """Odometry in odom of base_link; map -> odom and base_link -> camera are transforms, one of them static."""
    mount = np.eye(4)
    mount[:3, 3] = [0.1, 0.0, 0.3]
    drift = np.eye(4)
    drift[:3, 3] = [1.0, 2.0, 0.0]
    frame = one(3)
    T_odom_base = np.linalg.inv(drift) @ frame.T_world_camera @ np.linalg.inv(mount)
    with running(robot, node_config(tmp_path, pose=PoseConfig(source="odometry"))) as node:
        _, *images = messages_of(frame)
        odometry = dict(messages_of(replace(frame, T_world_camera=T_odom_base), pose="odometry"))["odom"]
        odometry.header.frame_id, odometry.child_frame_id = "odom", "base_link"
        robot.publish([("/tf_static", transform("base_link", OPTICAL, mount, 0.0))], transient_local=True, depth=1)
        robot.publish([("/tf", transform("map", "odom", drift, frame.stamp_s)), ("odom", odometry), *images])
        settle(node, 1)
        seen(frame)(node.world.last_frame())


def transform(parent, child, T, stamp_s):
    """tf2_msgs/TFMessage."""
    from semfield_ros.messages.poses import transform_of

    stamped = types().new(
        "geometry_msgs/msg/TransformStamped", header=header_of(round(stamp_s * 1e9), parent), child_frame_id=child,
        transform=transform_of(T),
    )  # fmt: skip
    return types().new("tf2_msgs/msg/TFMessage", transforms=[stamped])


# ---- cameras and images -------------------------------------------------------------------------------------------


def test_two_cameras_of_different_size_share_one_map(robot, tmp_path):
    wide = Camera(160, 90, 120.0, 120.0, 79.5, 44.5)
    with running(robot, node_config(tmp_path, camera=CameraConfig(namespaces=("front", "/rig/back")))) as node:
        front, back = one(0), frame_at(ring(12)[6], FIRST_S + 0.05, camera=wide)
        messages = messages_of(front, namespace="front", optical_frame="front_optical")
        messages += messages_of(back, namespace="/rig/back", optical_frame="back_optical")
        robot.publish(messages)
        settle(node, 2)
        assert node.inputs.submitted == 2
        seen(front)(node.world.last_frame("front"))
        seen(back)(node.world.last_frame("rig/back"))
        names = node.engine.run(lambda m: [k.camera_name for k in m.keyframes.items]).result()
        assert sorted(names) == ["front", "rig/back"]


@pytest.mark.parametrize("depth_encoding", ["32FC1", "16UC1"])
def test_compressed_images(robot, tmp_path, depth_encoding):
    camera = CameraConfig(rgb_transport="compressed", depth_transport="compressed_depth")
    with running(robot, node_config(tmp_path, camera=camera)) as node:
        frame = one(0)
        fill(node, robot, [frame], compressed=True, depth_encoding=depth_encoding)
        found = node.world.last_frame()
        assert np.abs(found.rgb.astype(int) - frame.rgb).mean() < 4
        # Half a millimetre, or the quantisation of inverse depth.
        np.testing.assert_allclose(found.depth_m, frame.depth_m, atol=0.501e-3 if depth_encoding == "16UC1" else 2e-3)


def test_images_are_reduced_to_the_configured_width(robot, tmp_path):
    with running(robot, node_config(tmp_path, camera=CameraConfig(width=40))) as node:
        fill(node, robot, [one(0)])
        found = node.world.last_frame()
        assert found.rgb.shape == (30, 40, 3) and found.camera == CAMERA.resized(40, 30)


def labelled(k):
    """A frame with exact labels (7 = table, 8 ..= blocks) and masks of the blocks."""
    frame = one(k)
    what = cast(frame.T_world_camera)[1]
    names = {i + 1: block.colour for i, block in enumerate(BLOCKS)}
    semantic = np.where(frame.depth_m > 0, what + 7, 0).astype(np.int32)
    return replace(frame, semantic=semantic, segments=Segments(what, names))


def test_label_images_and_masks_of_another_node_reach_the_frame(robot, tmp_path):
    camera = CameraConfig(labels_topic="labels/image", masks_topic="masks/image", labels_timeout_s=30.0)
    with running(robot, node_config(tmp_path, camera=camera)) as node:
        frame = labelled(0)
        messages = messages_of(frame, labels=True, class_names={7: "table", 8: "red", 9: "blue"})
        late = [(topic, m) for topic, m in messages if topic.startswith(("labels", "masks"))]
        robot.publish([pair for pair in messages if pair not in late])
        settle(node, 1, waiting=1)  # another node takes its time
        robot.publish(late, transient_local=True, depth=1)
        settle(node, 1)
        found = node.world.last_frame()
        np.testing.assert_array_equal(found.semantic, frame.semantic)
        present = set(np.unique(frame.segments.ids).tolist()) - {0}
        np.testing.assert_array_equal(found.segments.ids, frame.segments.ids)
        assert found.segments.names == {i: frame.segments.names[i] for i in present}
        assert node.inputs.assembler.label_names[""] == {7: "table", 8: "red", 9: "blue"}


def test_a_frame_goes_on_without_labels_that_do_not_come(robot, tmp_path):
    camera = CameraConfig(labels_topic="labels/image", labels_timeout_s=0.1)
    with running(robot, node_config(tmp_path, camera=camera)) as node:
        fill(node, robot, [one(0)])
        assert node.world.last_frame().semantic is None and node.inputs.assembler.unused["without_labels"] == 1


@pytest.mark.parametrize("approx", [True, False])
def test_stamps_that_differ_a_little(robot, tmp_path, approx):
    """Depth 10 ms behind colour: partners with approximate synchronisation, strangers with exact."""
    camera = CameraConfig(approx_sync=approx, sync_queue_size=4)
    with running(robot, node_config(tmp_path, camera=camera)) as node:
        for k in range(8):
            messages = dict(messages_of(one(k)))
            messages["rgb/image"].header = header_of(round(one(k).stamp_s * 1e9) - 10_000_000, OPTICAL)
            robot.publish(messages.items())
        if approx:
            settle(node, 8)
            assert node.inputs.unused() == {} and node.inputs.submitted == 8
        else:
            settle(node, 8, waiting=4)
            assert node.inputs.unused() == {"unsynchronised": 4} and node.inputs.submitted == 0


# ---- time ---------------------------------------------------------------------------------------------------------


def clocked(frames):
    """The messages of frames with the /clock of a player."""
    for frame in frames:
        yield "/clock", types().new("rosgraph_msgs/msg/Clock", clock=time_of(round(frame.stamp_s * 1e9)))
        yield from messages_of(frame)


@pytest.mark.parametrize("choice", ["keep", "reset"])
def test_a_bag_that_loops(robot, tmp_path, choice):
    """Simulated time jumps back by a second and more: frames of every loop are mapped; the map is kept or forgotten."""
    config = node_config(tmp_path, pose=PoseConfig(on_time_jump=choice, timeout_s=0.3))
    with running(robot, config, use_sim_time=True) as node:
        loop = [one(k) for k in range(0, 24, 2)]
        for time_around in range(3):
            before = node.inputs.frames_in()
            robot.publish(clocked(loop), pace_s=0.002)
            until(lambda: node.inputs.frames_in() == before + 12 and settled(node) == before + 12)  # noqa: B023
            last = until(lambda: node.world.last_frame())
            assert last.stamp_s == pytest.approx(loop[-1].stamp_s)
            assert node.inputs.assembler.time_jumps == time_around
            assert node.bus.now_s() == pytest.approx(loop[-1].stamp_s)
        # The images around a jump may meet poses that are not known any more.
        assert set(node.inputs.unused()) <= {"pose_missing", "time_jump"}
        assert node.inputs.submitted >= 30
        node.engine.drain(60)
        mapped = node.engine.status().mapping.frames
        assert mapped == node.inputs.submitted if choice == "keep" else mapped <= 12
