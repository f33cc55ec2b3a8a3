"""FrameAssembler: frames are what was sent, and every colour image is a frame, counted, or waits."""

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from semfield_ros.config import FrameConfig
from semfield_ros.errors import Reason
from semfield_ros.frame import Frame, Segments
from semfield_ros.geometry import Camera
from semfield_ros.messages import images
from semfield_ros.messages.assembly import AssemblyConfig, FrameAssembler
from semfield_ros.messages.poses import header_of, pose_of, stamp_of, transform_of
from semfield_ros.messages.stream import frame_messages, label_info
from semfield_ros.messages.transforms import TransformBuffer
from semfield_ros.messages.types import types

CAMERA = Camera(16, 12, 15.0, 15.5, 7.5, 5.0)
START = 1_700_000_000_000_000_000
MS = 1_000_000


def pose(k: int) -> np.ndarray:
    c, s = np.cos(0.1 * k), np.sin(0.1 * k)
    return np.array([[c, -s, 0, k], [s, c, 0, 2.0], [0, 0, 1, 3.0], [0, 0, 0, 1]])


def frame(k: int, **more) -> Frame:
    random = np.random.default_rng(k)
    rgb = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    depth = random.uniform(0.5, 3.0, (12, 16)).astype(np.float32)
    return Frame(stamp_s=0.0, camera=CAMERA, T_world_camera=pose(k), rgb=rgb, depth_m=depth, **more)


def stamp(k: int) -> int:
    return START + k * 100 * MS


def sent(k: int, **options) -> dict[str, object]:
    """The messages of frame k by topic, through their bytes."""
    options.setdefault("stamp_ns", stamp(k))
    found = frame_messages(options.pop("frame", None) or frame(k), **options)
    return {topic: types().decode(types().encode(m), kind) for topic, (kind, m) in found.items()}


class Rig:
    """An assembler with transforms, and short names for what is handed in."""

    def __init__(self, frame_config: FrameConfig | None = None, **config):
        self.transforms = TransformBuffer()
        self.lookups = 0
        self.jumps = 0
        self.assembler = FrameAssembler(AssemblyConfig(**config), self.lookup, frame_config, self.jumped)

    def lookup(self, target: str, source: str, stamp_s: float) -> np.ndarray:
        self.lookups += 1
        return self.transforms.lookup(target, source, stamp_s)

    def jumped(self) -> None:
        self.jumps += 1
        self.transforms.clear()

    def take(self, messages: dict[str, object], *, leave: str = "", camera: str = "") -> None:
        handlers = {
            "rgb/image": self.assembler.colour, "rgb/image/compressed": self.assembler.colour,
            "depth/image": self.assembler.depth, "depth/image/compressedDepth": self.assembler.depth,
            "rgb/camera_info": self.assembler.info, "labels/image": self.assembler.labels,
            "labels/info": self.assembler.label_info, "masks/image": self.assembler.masks,
            "masks/info": self.assembler.masks_info,
        }  # fmt: skip
        for topic, message in messages.items():
            if topic in leave.split():
                continue
            elif topic == "/tf":
                self.transforms.add(message)
            elif topic == "odom":
                self.assembler.odometry(message)
            elif topic == "pose":
                self.assembler.pose(message)
            else:
                handlers[topic.removeprefix(f"{camera}/")](camera, message)

    @property
    def colours_in(self) -> int:
        return self.assembler.received["colour"]

    def balanced(self) -> bool:
        a = self.assembler
        return self.colours_in == a.frames + sum(a.counters.values()) + a.waiting


def assert_same(got: Frame, k: int) -> None:
    expected = frame(k)
    assert np.array_equal(got.rgb, expected.rgb) and np.array_equal(got.depth_m, expected.depth_m)
    assert np.allclose(got.T_world_camera, expected.T_world_camera, atol=1e-12)
    assert got.camera == CAMERA and round(got.stamp_s * 1e6) == round(stamp(k) * 1e-3)


def test_frames_are_what_was_sent():
    rig = Rig()
    for k in range(5):
        rig.take(sent(k))
        (got,) = rig.assembler.poll(k * 0.1)
        assert_same(got, k)
        assert got.camera_name == "camera" and got.semantic is None and got.segments is None
    assert rig.assembler.frames == 5 and rig.assembler.waiting == 0 and rig.balanced()


@pytest.mark.parametrize("source", ["odometry", "pose"])
def test_poses_of_topics_are_interpolated(source):
    rig = Rig(pose_source=source, max_gap_s=0.25)
    rig.take(sent(0, pose=source))
    rig.take(sent(2, pose=source), leave="rgb/image depth/image")
    rig.take(sent(1), leave="/tf")
    first, between = rig.assembler.poll(0.0)
    assert np.allclose(first.T_world_camera, pose(0)) and np.allclose(between.T_world_camera, pose(1))
    rig.take(sent(4, pose=source), leave="odom pose")
    assert rig.assembler.poll(0.1) == [], "the pose may still come"
    rig.take(sent(8, pose=source), leave="rgb/image depth/image")
    assert rig.assembler.poll(0.2) == []
    assert rig.assembler.counters[Reason.POSE_MISSING.value] == 1, "no pose is guessed across a gap"
    assert "max_gap_s" in rig.assembler.gate.last_error and rig.balanced()


def test_poses_of_a_base_and_of_another_world_go_through_transforms():
    rig = Rig(pose_source="odometry", global_frame="map")
    shift, mount = np.eye(4), np.eye(4)
    shift[:3, 3], mount[:3, 3] = [10, 0, 0], [0, 0, 1]
    new = types().new
    for parent, child, T in (("map", "odom", shift), ("base", "camera_optical_frame", mount)):
        stamped = new("geometry_msgs/msg/TransformStamped", header=header_of(0, parent), child_frame_id=child,
                      transform=transform_of(T))  # fmt: skip
        rig.transforms.add(new("tf2_msgs/msg/TFMessage", transforms=[stamped]), static=True)
    rig.take(sent(0, pose="odometry", global_frame="odom", optical_frame="base"), leave="rgb/image depth/image")
    rig.take(sent(0), leave="/tf")
    (got,) = rig.assembler.poll(0.0)
    assert np.allclose(got.T_world_camera, shift @ pose(0) @ mount)


def test_a_pose_frame_is_what_the_poses_are_of():
    rig = Rig(pose_source="pose", pose_frame="tool", pose_timeout_s=0.0)
    rig.take(sent(0, pose="pose"))
    assert rig.assembler.poll(0.0) == [] and "'tool'" in rig.assembler.last_pose_error


def test_nothing_is_decoded_and_no_pose_asked_where_messages_come_in(monkeypatch):
    for name in ("decode_colour", "decode_depth"):
        monkeypatch.setattr(f"semfield_ros.messages.assembly.{name}", lambda message: pytest.fail("decoded"))
    rig = Rig()
    rig.take(sent(0), leave="/tf")
    assert rig.lookups == 0
    rig.assembler.poll(0.0)
    assert rig.lookups == 1 and rig.assembler.waiting == 1


def test_a_frame_waits_for_its_pose():
    rig = Rig(pose_timeout_s=1.0)
    messages = sent(0)
    rig.take(messages, leave="/tf")
    assert rig.assembler.poll(10.0) == [] == rig.assembler.poll(10.9)
    assert "camera_optical_frame" in rig.assembler.health(10.9).last_pose_error
    rig.take({"/tf": messages["/tf"]})
    assert len(rig.assembler.poll(10.95)) == 1 and not rig.assembler.health(10.95).last_pose_error


def test_and_not_for_ever():
    rig = Rig(pose_timeout_s=1.0)
    rig.take(sent(0), leave="/tf")
    rig.assembler.poll(10.0)
    assert rig.assembler.poll(11.0) == []
    assert dict(rig.assembler.counters) == {"pose_missing": 1} and rig.balanced()


def test_a_pose_that_can_not_come_any_more_is_not_waited_for():
    rig = Rig(pose_timeout_s=100.0)
    rig.take(sent(5), leave="rgb/image depth/image")
    rig.take(sent(1), leave="/tf")
    assert rig.assembler.poll(0.0) == [] and rig.assembler.counters["pose_missing"] == 1


def test_frames_waiting_for_poses_are_bounded():
    rig = Rig(pending_frames=3, pose_timeout_s=100.0)
    for k in range(7):
        rig.take(sent(k), leave="/tf")
        rig.assembler.poll(k * 0.1)
    assert rig.assembler.waiting == 3 and rig.assembler.counters["pending_full"] == 4 and rig.balanced()
    for k in range(7):
        rig.take({"/tf": sent(k)["/tf"]})
    for got, k in zip(rig.assembler.poll(1.0), (4, 5, 6), strict=True):
        assert_same(got, k)


def test_without_camera_info_frames_wait_then_say_so():
    rig = Rig(pose_timeout_s=1.0)
    rig.take(sent(0), leave="rgb/camera_info")
    assert rig.assembler.poll(0.0) == []
    assert any("no CameraInfo" in warning for warning in rig.assembler.health(0.1).cameras[""].warnings)
    rig.assembler.poll(1.0)
    assert dict(rig.assembler.counters) == {"info_missing": 1}
    rig.take(sent(1))
    assert len(rig.assembler.poll(2.0)) == 1


def test_a_bad_calibration_is_said_and_a_better_one_taken():
    rig = Rig()
    messages = sent(0)
    messages["rgb/camera_info"].k = np.zeros(9)
    rig.take(messages)
    assert rig.assembler.poll(0.0) == [] and dict(rig.assembler.counters) == {"uncalibrated": 1}
    assert any("Calibrate" in warning for warning in rig.assembler.health(0.0).cameras[""].warnings)
    rig.take(sent(1))
    assert len(rig.assembler.poll(0.1)) == 1 and not rig.assembler.health(0.1).cameras[""].warnings


def test_intrinsics_fit_images_of_another_size():
    rig, messages = Rig(), sent(0)
    double = CAMERA.resized(32, 24)
    messages["rgb/camera_info"] = images.info_of(double, header_of(stamp(0), "c"))
    rig.take(messages)
    (got,) = rig.assembler.poll(0.0)
    assert got.camera.width == 16 and np.allclose(got.camera.matrix, CAMERA.matrix)
    messages = sent(1)
    messages["rgb/camera_info"] = images.info_of(Camera(40, 12, 15, 15, 20, 6), header_of(stamp(1), "c"))
    rig.take(messages)
    assert rig.assembler.poll(0.1) == [] and rig.assembler.counters["size_mismatch"] == 1


def test_frames_are_reduced():
    rig = Rig(width=8)
    rig.take(sent(0))
    (got,) = rig.assembler.poll(0.0)
    assert got.rgb.shape == (6, 8, 3) and got.depth_m.shape == (6, 8) and got.camera == CAMERA.resized(8, 6)
    assert set(got.depth_m.ravel()) <= set(frame(0).depth_m.ravel()), "depth is never mixed"
    wide = Rig(width=320)
    wide.take(sent(0))
    assert wide.assembler.poll(0.0)[0].rgb.shape == (12, 16, 3), "and never blown up"


def test_distortion_is_taken_out_of_all_images():
    rig, messages = Rig(labels=True), sent(0, frame=frame(0, semantic=np.ones((12, 16), np.int32)), labels=True)
    messages["rgb/camera_info"].d = np.array([0.8, 0, 0, 0, 0])
    rig.take(messages)
    (got,) = rig.assembler.poll(0.0)
    assert not got.rgb[0, 0].any() and got.depth_m[0, 0] == 0 and got.semantic[0, 0] == 0, "the corners were not seen"
    assert got.rgb[5, 7].any() and got.depth_m[5, 7] > 0 and got.semantic[5, 7] == 1


def test_compressed_images():
    rig = Rig()
    rig.take(sent(0, compressed=True, depth_encoding="16UC1"))
    (got,) = rig.assembler.poll(0.0)
    assert np.abs(got.depth_m - frame(0).depth_m).max() < 6e-4


def test_bad_images_are_rejected_one_by_one():
    rig = Rig(FrameConfig(max_depth_m=6.0))
    for k, (topic, change) in enumerate(
        [("rgb/image", {"encoding": "bayer_rggb8"}), ("depth/image", {"encoding": "rgb8"}), ("rgb/image", {"step": 1}),
         ("depth/image", {"data": np.zeros(12 * 16 * 4, np.uint8)})]
    ):  # fmt: skip
        messages = sent(k)
        for name, value in change.items():
            setattr(messages[topic], name, value)
        rig.take(messages)
        assert rig.assembler.poll(k * 0.1) == []
    rig.take(sent(9))
    assert len(rig.assembler.poll(1.0)) == 1
    assert dict(rig.assembler.counters) == {"image_encoding": 2, "image_malformed": 1, "depth_empty": 1}
    assert rig.balanced()


def test_labels_and_masks():
    semantic = np.arange(192, dtype=np.int32).reshape(12, 16) % 3
    segments = Segments(np.arange(192, dtype=np.int32).reshape(12, 16) % 4, {1: "mug", 2: "bowl"})
    full = frame(0, semantic=semantic, segments=segments)
    rig = Rig(labels=True, masks=True)
    rig.take(sent(0, frame=full, labels=True, class_names={1: "table", 2: "wall"}))
    (got,) = rig.assembler.poll(0.0)
    assert np.array_equal(got.semantic, semantic) and rig.assembler.label_names[""] == {1: "table", 2: "wall"}
    assert np.array_equal(got.segments.ids, np.where(segments.ids == 3, 0, segments.ids)), "unnamed ids say nothing"
    assert got.segments.names == {1: "mug", 2: "bowl"}


def labelled(k: int) -> dict[str, object]:
    return sent(k, frame=frame(k, semantic=np.ones((12, 16), np.int32)), labels=True)


def test_frames_wait_for_their_labels_but_not_for_ever():
    rig = Rig(labels=True, labels_timeout_s=0.5)
    messages = labelled(0)
    rig.take(messages, leave="labels/image")
    assert rig.assembler.poll(0.0) == [] == rig.assembler.poll(0.4)
    rig.take({"labels/image": messages["labels/image"]})
    assert rig.assembler.poll(0.45)[0].semantic is not None
    rig.take(labelled(1), leave="labels/image")
    assert rig.assembler.poll(1.0) == []
    assert rig.assembler.poll(1.5)[0].semantic is None
    assert rig.assembler.unused["without_labels"] == 1
    # Labels of a later image are there: those of this one were skipped and will not come.
    rig.take(labelled(2), leave="labels/image")
    rig.take({"labels/image": labelled(3)["labels/image"]})
    assert rig.assembler.poll(2.0)[0].semantic is None and rig.balanced()


def test_unusable_labels_cost_the_labels_not_the_frame():
    rig, messages = Rig(labels=True), labelled(0)
    messages["labels/image"].encoding = "32FC1"
    rig.take(messages)
    assert rig.assembler.poll(0.0)[0].semantic is None and rig.assembler.unused["labels_image_encoding"] == 1


def test_masks_without_names_are_kept_where_they_are_wanted():
    rig = Rig(masks=True, masks_named=False, labels_timeout_s=0.5)
    ids = np.arange(12 * 16, dtype=np.int32).reshape(12, 16) % 4
    rig.take(sent(0, frame=frame(0, segments=Segments(ids, {1: "mug"})), labels=True), leave="masks/info")
    kept = rig.assembler.poll(0.0)[0].segments
    np.testing.assert_array_equal(kept.ids, ids)
    assert kept.names == {} and not rig.assembler.health(0.0).cameras[""].warnings
    rig.assembler.masks_info("", label_info({1: "mug"}, header_of(0, "")))
    rig.take(sent(1, frame=frame(1, segments=Segments(ids, {1: "mug"})), labels=True), leave="masks/info")
    kept = rig.assembler.poll(1.0)[0].segments
    np.testing.assert_array_equal(kept.ids, ids)
    assert kept.names == {1: "mug"}


def test_masks_nobody_names_are_left_out():
    rig = Rig(masks=True, labels_timeout_s=0.5)
    rig.take(sent(0, frame=frame(0, segments=Segments(np.ones((12, 16), np.int32), {1: "mug"})), labels=True),
             leave="masks/info")  # fmt: skip
    assert rig.assembler.poll(0.0) == []
    assert any("LabelInfo" in warning for warning in rig.assembler.health(0.1).cameras[""].warnings)
    assert rig.assembler.poll(0.6)[0].segments is None and rig.assembler.unused["masks_unnamed"] == 1
    rig.assembler.masks_info("", label_info({1: "mug"}, header_of(0, "")))
    rig.take(sent(1, frame=frame(1, segments=Segments(np.ones((12, 16), np.int32), {1: "mug"})), labels=True),
             leave="masks/info")  # fmt: skip
    assert rig.assembler.poll(1.0)[0].segments.names == {1: "mug"}


def test_several_cameras_and_their_names():
    rig = Rig(cameras=("left", "/robot/right"))
    for k in range(3):
        rig.take(sent(k, namespace="left"), camera="left")
        rig.take(sent(k, namespace="/robot/right", stamp_ns=stamp(k) + 7 * MS), leave="/tf", camera="/robot/right")
    rig.take(sent(3), leave="rgb/image depth/image rgb/camera_info")
    frames = rig.assembler.poll(0.0)
    assert [f.camera_name for f in frames] == ["left", "robot/right"] * 3
    assert [f.stamp_s for f in frames] == sorted(f.stamp_s for f in frames) and rig.balanced()


def test_exact_and_approximate_synchronisation():
    for config, expected in (({"approx_sync": False}, 0), ({"sync_slop_s": 0.0}, 0), ({"sync_slop_s": 0.02}, 4)):
        rig, frames = Rig(**config, sync_queue_size=3), []
        for k in range(6):
            messages = sent(k)
            messages["rgb/image"].header.stamp.nanosec += 1
            rig.take(messages)
            frames += rig.assembler.poll(k * 0.1)
        assert len(frames) >= expected and bool(frames) == bool(expected) and rig.balanced()
        if not expected:
            assert rig.assembler.counters["unsynchronised"] == 3
            assert "sync is exact" in rig.assembler.gate.last_error


def test_health_tells_what_is_wrong():
    rig = Rig(cameras=("", "other"), sync_slop_s=0.01, sync_queue_size=2)
    for k in range(20):
        messages = sent(k)
        messages["rgb/image"].header.stamp.nanosec += 40 * MS
        messages["depth/image"].header.frame_id = "depth_optical_frame"
        rig.take(messages, leave="/tf")
        assert rig.assembler.poll(k * 0.1) == []
    health = rig.assembler.health(2.4)
    camera = health.cameras[""]
    assert camera.streams["colour"].received == 20 and camera.synchronised == 0
    assert camera.streams["depth"].age_s == pytest.approx(0.5) and camera.streams["depth"].rate_hz == pytest.approx(10)
    assert camera.streams["depth"].dropped == 18 and camera.streams["depth"].waiting == 2
    assert camera.nearest_miss_s == pytest.approx(0.04) and health.rejected == {"unsynchronised": 18}
    assert "40.0 ms" in health.last_error and "10.0 ms" in health.last_error
    assert any("depth_optical_frame" in warning for warning in camera.warnings)
    silent = health.cameras["other"].streams
    assert all(stream.received == 0 and stream.age_s is None for stream in silent.values())
    assert rig.assembler.health(60.0).cameras[""].streams["colour"].rate_hz == 0


def test_a_loop_of_a_bag_starts_anew():
    rig = Rig(pose_timeout_s=100.0)
    rig.take(sent(50))
    rig.take(sent(51), leave="/tf")
    assert len(rig.assembler.poll(0.0)) == 1
    for k in range(3):
        rig.take(sent(k))
        rig.take({"/tf": sent(k)["/tf"]})
    assert [round(f.stamp_s * 10) for f in rig.assembler.poll(0.3)] == [round(stamp(k) * 1e-8) for k in range(3)]
    assert rig.jumps == 1 and rig.assembler.health(0.3).time_jumps == 1
    assert dict(rig.assembler.counters) == {"time_jump": 1} and rig.balanced()


def test_unusable_poses_are_counted_and_said():
    rig = Rig(pose_source="pose")
    messages = sent(0, pose="pose")
    messages["pose"].pose.orientation.w = 0.0
    rig.take(messages)
    assert rig.assembler.poll(0.0) == [] and rig.assembler.unused["pose_pose_not_rigid"] == 1
    assert rig.assembler.health(0.0).poses.received == 1


def test_the_end_of_a_stream_leaves_nothing_waiting():
    rig = Rig()
    for k in range(3):
        messages = sent(k)
        messages["rgb/image"].header.stamp.nanosec += 5 * MS
        rig.take(messages)
    rig.take(sent(9), leave="depth/image")
    got = rig.assembler.poll(0.0) + rig.assembler.finish(0.0)
    assert len(got) == 3 and rig.assembler.waiting == 0 and rig.balanced()
    assert dict(rig.assembler.counters) == {"unsynchronised": 1}


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["next"] * 8 + ["again", "skip", "jump"]),
        st.sets(st.sampled_from(["colour", "depth", "tf", "labels", "poll"]), max_size=2),
        st.integers(-12, 12),
        st.sampled_from(["", "", "", "colour", "depth"]),
    ),
    max_size=60,
)
"""How the stream goes on, what is missing then, how far colour is off in ms, what is damaged."""


@settings(max_examples=150)
@given(EVENTS, st.booleans(), st.integers(1, 4), st.integers(1, 5), st.booleans(), st.booleans(), st.booleans())
def test_every_colour_image_is_a_frame_or_counted_or_waits(events, approx, queue, pending, labels, calibrated, end):
    rig = Rig(approx_sync=approx, sync_queue_size=queue, pending_frames=pending, labels=labels, pose_timeout_s=0.3,
              labels_timeout_s=0.2)  # fmt: skip
    now_s, k, frames, a = 0.0, 3000, [], rig.assembler
    if calibrated:
        a.info("", sent(k)["rgb/camera_info"])
    for way, missing, off_ms, damaged in events:
        now_s += 0.1
        k += {"next": 1, "again": 0, "skip": 5, "jump": -30}[way]
        messages = labelled(k)
        colour, depth = messages["rgb/image"], messages["depth/image"]
        if approx:
            colour.header.stamp = header_of(stamp(k) + off_ms * MS, "").stamp
        if damaged == "colour":
            colour.encoding = "nonsense"
        if damaged == "depth":
            depth.step = 1
        if "tf" not in missing:
            rig.transforms.add(messages["/tf"])
        for name, take, message in (("colour", a.colour, colour), ("depth", a.depth, depth),
                                    ("labels", a.labels, messages["labels/image"])):  # fmt: skip
            if name not in missing:
                take("", message)
        if "poll" not in missing:
            frames += a.poll(now_s)
        assert rig.balanced() and len(frames) == a.frames
        assert a.waiting <= queue + pending
    if end:
        frames += a.finish(now_s)
        assert a.waiting == 0 and rig.balanced() and len(frames) == a.frames
    event(f"frames {min(len(frames), 3)}, reasons {min(len(a.counters), 3)}")
    for got in frames:
        sent_k = round((got.stamp_s - START * 1e-9) * 10)
        assert np.array_equal(got.rgb, frame(sent_k).rgb), "colour and depth of one moment"


def test_stamps_of_frames_are_depths():
    rig = Rig()
    messages = [sent(k) for k in range(3)]
    for parts in messages:
        parts["rgb/image"].header.stamp.nanosec += 3 * MS
        rig.take(parts)
    got = rig.assembler.poll(0.0)
    stamps = [stamp_of(parts["depth/image"].header.stamp) for parts in messages]
    assert [round(f.stamp_s * 1e5) for f in got] == [round(s * 1e-4) for s in stamps][: len(got)] and got


def test_a_lookup_that_fails_in_its_own_way_is_not_swallowed():
    def broken(target, source, stamp_s):
        raise RuntimeError("tf is broken")

    rig = Rig()
    rig.assembler = FrameAssembler(AssemblyConfig(), broken)
    rig.take(sent(0))
    with pytest.raises(RuntimeError, match="tf is broken"):
        rig.assembler.poll(0.0)


def test_pose_messages_hold_the_pose():
    for kind, topic in (("tf", "/tf"), ("odometry", "odom"), ("pose", "pose")):
        message = sent(3, pose=kind)[topic]
        found = {"/tf": lambda m: m.transforms[0].transform.translation, "odom": lambda m: m.pose.pose.position,
                 "pose": lambda m: m.pose.position}[topic](message)  # fmt: skip
        expected = pose_of(pose(3)).position
        assert (found.x, found.y, found.z) == (expected.x, expected.y, expected.z)
