"""Bags: what is written comes back; rosbags itself and hand-made bags stand on the other side."""

import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from semfield_ros.errors import ConfigError, SourceError
from semfield_ros.frame import Frame, Segments
from semfield_ros.geometry import Camera
from semfield_ros.messages.poses import header_of, transform_of
from semfield_ros.messages.recorder import BagRecorder
from semfield_ros.messages.stream import frame_messages
from semfield_ros.messages.types import types
from semfield_ros.sources import open_source
from semfield_ros.sources.bag_writer import write_bag

CAMERA = Camera(32, 24, 30.0, 31.0, 15.5, 11.0)
START_S = 1_700_000_000.0


def frames(count: int = 6) -> list[Frame]:
    made = []
    for k in range(count):
        random, T = np.random.default_rng(k), np.eye(4)
        T[:3, 3] = k, 1, 2
        made.append(
            Frame(
                START_S + k / 8, CAMERA, T, random.integers(0, 256, (24, 32, 3), dtype=np.uint8),
                random.uniform(0.5, 4, (24, 32)).astype(np.float32),
            )
        )  # fmt: skip
    return made


def assert_same(got: list[Frame], expected: list[Frame]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        assert np.array_equal(a.rgb, b.rgb) and np.array_equal(a.depth_m, b.depth_m) and a.camera == b.camera
        assert np.allclose(a.T_world_camera, b.T_world_camera, atol=1e-9) and abs(a.stamp_s - b.stamp_s) < 1e-6


class Tape:
    """A bag written message by message."""

    def __init__(self, path: Path):
        self.bag = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self.connections = {}

    def __enter__(self):
        self.bag.open()
        return self

    def __exit__(self, *_):
        self.bag.close()

    def write(self, topic: str, message: object, stamp_s: float) -> None:
        kind = message.__msgtype__
        if topic not in self.connections:
            self.connections[topic] = self.bag.add_connection(topic, kind, typestore=types().store)
        self.bag.write(self.connections[topic], round(stamp_s * 1e9), types().encode(message))

    def frame(self, frame: Frame, leave: str = "", **options) -> None:
        for topic, (_, message) in frame_messages(frame, **options).items():
            if topic not in leave.split():
                self.write(f"/{topic.lstrip('/')}", message, frame.stamp_s)


def tf(parent: str, child: str, x: float, stamp_s: float) -> object:
    T = np.eye(4)
    T[0, 3] = x
    stamped = types().new("geometry_msgs/msg/TransformStamped", header=header_of(stamp_s, parent),
                          child_frame_id=child, transform=transform_of(T))  # fmt: skip
    return types().new("tf2_msgs/msg/TFMessage", transforms=[stamped])


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("pose", ["tf", "odometry", "pose"])
def test_frames_come_back(tmp_path, storage, pose):
    assert write_bag(frames(), tmp_path / "bag", storage, pose=pose) == 6
    source = open_source(f"bag:{tmp_path / 'bag'}")
    assert len(source) == 6 and source.name == "bag" and 7 < source.rate_hz < 10
    assert_same(list(source), frames())
    assert_same(list(source), frames()), "and again"
    assert not source.gate.rejected


def test_the_simulator_comes_back(tmp_path):
    pytest.importorskip("mujoco")
    from semfield_ros.sources.simulator import Simulator, SimulatorConfig

    rendered = list(Simulator(SimulatorConfig(seed=3, frames=4, width=96, height=72, processes=0)))
    write_bag(rendered, tmp_path / "bag", depth_encoding="32FC1")
    bare = [replace(frame, semantic=None, instance=None) for frame in rendered]
    assert_same(list(open_source(tmp_path / "bag")), bare)


def test_a_folder_and_a_file_are_known_without_a_scheme(tmp_path):
    write_bag(frames(), tmp_path / "bag")
    (file,) = (tmp_path / "bag").glob("*.mcap")
    for uri in (tmp_path / "bag", file, f"bag:{file}"):
        assert_same(list(open_source(uri)), frames())
    (tmp_path / "bag" / "metadata.yaml").unlink()
    assert_same(list(open_source(f"bag:{tmp_path / 'bag'}")), frames()), "one file needs no metadata"


def test_excerpts_and_sizes(tmp_path):
    write_bag(frames(), tmp_path / "bag")
    got = list(open_source(tmp_path / "bag", start=1, stride=2, limit=2, width=16))
    assert [round((f.stamp_s - START_S) * 8) for f in got] == [1, 3] and got[0].rgb.shape == (12, 16, 3)


def test_compressed_bags(tmp_path):
    write_bag(frames(), tmp_path / "bag", compressed=True, depth_encoding="16UC1")
    source = open_source(tmp_path / "bag")
    assert source.topics.rgb == "/rgb/image/compressed" and source.topics.depth == "/depth/image/compressedDepth"
    for got, sent in zip(source, frames(), strict=True):
        assert np.abs(got.depth_m - sent.depth_m).max() < 6e-4 and np.abs(got.rgb.astype(int) - sent.rgb).mean() < 60


def test_labels_and_masks_of_a_bag(tmp_path):
    ids = np.arange(24 * 32, dtype=np.int32).reshape(24, 32) % 3
    full = [replace(f, semantic=ids, segments=Segments(ids, {1: "mug", 2: "bowl"})) for f in frames()]
    write_bag(full, tmp_path / "bag", labels=True)
    uri = f"bag:{tmp_path / 'bag'}?labels=/labels/image&masks=/masks/image&masks_info=/masks/info"
    got = list(open_source(uri))
    assert len(got) == 6 and all(np.array_equal(f.semantic, ids) for f in got)
    assert all(np.array_equal(f.segments.ids, ids) and f.segments.names[1] == "mug" for f in got)
    assert all(f.semantic is None for f in open_source(tmp_path / "bag")), "only when asked for"


def test_the_pose_goes_through_the_tree_and_late_static_transforms(tmp_path):
    with Tape(tmp_path / "bag") as tape:
        for k, frame in enumerate(frames()):
            tape.frame(frame, leave="/tf")
            tape.write("/tf", tf("world", "base", float(k), frame.stamp_s), frame.stamp_s + 0.1)
        tape.write("/tf_static", tf("base", "camera_optical_frame", 100.0, 0.0), frame.stamp_s + 1)
    source = open_source(tmp_path / "bag")
    assert source.topics.frame == "world"
    assert [f.T_world_camera[0, 3] for f in source] == [100.0 + k for k in range(6)]


def test_odometry_is_taken_where_transforms_do_not_move(tmp_path):
    with Tape(tmp_path / "bag") as tape:
        tape.write("/tf_static", tf("base", "camera_optical_frame", 10.0, START_S), START_S)
        for frame in frames():
            tape.frame(frame, leave="odom", pose="odometry")
            (kind, odometry) = frame_messages(frame, pose="odometry", optical_frame="base", global_frame="odom")["odom"]
            tape.write("/odom", odometry, frame.stamp_s)
    source = open_source(tmp_path / "bag")
    assert source.topics.pose == "/odom" and source.topics.frame == "odom" and kind == "nav_msgs/msg/Odometry"
    assert [f.T_world_camera[0, 3] for f in source] == [10.0 + k for k in range(6)]


def test_registered_depth_is_preferred(tmp_path):
    with Tape(tmp_path / "bag") as tape:
        for frame in frames():
            tape.frame(frame)
            _, raw = frame_messages(frame)["depth/image"]
            raw.header.frame_id = "depth_optical_frame"
            tape.write("/raw_depth/image", raw, frame.stamp_s)
    assert open_source(tmp_path / "bag").topics.depth == "/depth/image"


def test_a_recording_of_our_own_node_is_no_riddle(tmp_path):
    with Tape(tmp_path / "bag") as tape:
        for frame in frames():
            tape.frame(frame)
            sent = frame_messages(frame)
            tape.write("/semfield/rendered/image", sent["rgb/image"][1], frame.stamp_s)
            tape.write("/semfield/rendered/depth", sent["depth/image"][1], frame.stamp_s)
    topics = open_source(tmp_path / "bag").topics
    assert (topics.rgb, topics.depth) == ("/rgb/image", "/depth/image")


def test_two_cameras_are_to_be_named(tmp_path):
    with Tape(tmp_path / "bag") as tape:
        for frame in frames():
            for side in ("left", "right"):
                tape.frame(frame, namespace=side, optical_frame=f"{side}_optical_frame")
    with pytest.raises(SourceError, match="not clear") as error:
        open_source(tmp_path / "bag")
    assert "/left/rgb/image or /right/rgb/image" in str(error.value) and "bag:PATH?rgb=" in str(error.value)
    source = open_source(f"bag:{tmp_path / 'bag'}?rgb=/left/rgb/image&depth=/left/depth/image")
    assert source.topics.info == "/left/rgb/camera_info"
    assert len(list(source)) == 6


def without(path: Path, *topics: str, **options) -> Path:
    with Tape(path) as tape:
        for frame in frames():
            tape.frame(frame, leave=" ".join(topics), **options)
    return path


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("/tf", "no /tf, no nav_msgs/Odometry, no geometry_msgs/PoseStamped. Record"),
        ("rgb/image", "no colour image"),
        ("depth/image", "no depth image"),
        ("rgb/camera_info", r"CameraInfo of /rgb/image is not in the bag"),
    ],
)
def test_what_is_missing_is_said_with_what_is_there(tmp_path, missing, said):
    with pytest.raises(SourceError, match=said) as error:
        open_source(without(tmp_path / "bag", missing))
    there = {"/tf", "/rgb/image", "/depth/image", "/rgb/camera_info"} - {f"/{missing.lstrip('/')}"}
    assert all(f"{topic}: " in str(error.value) for topic in there)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("rgb=/rgb/imag", r"not in the bag \(did you mean /rgb/image\?\)"),
        ("rgb=/tf", "is tf2_msgs/msg/TFMessage; expected sensor_msgs/msg/Image or"),
        ("pose=/rgb/image", "expected tf2_msgs/msg/TFMessage or nav_msgs/msg/Odometry or"),
        ("colour=/rgb/image", "'colour' is no setting of a bag; allowed: rgb, depth"),
        ("rgb", "no setting"),
    ],
)
def test_wrong_names_are_refused_with_the_right_ones(tmp_path, query, said):
    write_bag(frames(), tmp_path / "bag")
    with pytest.raises(SourceError, match=said):
        open_source(f"bag:{tmp_path / 'bag'}?{query}")


def test_transforms_that_do_not_reach_the_camera(tmp_path):
    with Tape(tmp_path / "bag") as tape:
        for frame in frames():
            tape.frame(frame, leave="/tf")
            tape.write("/tf", tf("map", "base", 1.0, frame.stamp_s), frame.stamp_s)
    with pytest.raises(SourceError, match=r"no transform leads to 'camera_optical_frame'.* base.*tf_static"):
        open_source(tmp_path / "bag")


def test_a_bag_without_usable_frames_says_why(tmp_path):
    with Tape(tmp_path / "bag") as tape:
        for frame in frames():
            tape.frame(replace(frame, depth_m=frame.depth_m * 1000))
    with pytest.raises(SourceError, match=r"none of the 6 depth images.*depth_empty.*millimetres"):
        list(open_source(tmp_path / "bag"))


def test_types_this_program_does_not_know_do_no_harm(tmp_path):
    store = get_typestore(Stores.ROS2_JAZZY)
    with Tape(tmp_path / "bag") as tape:
        connection = tape.bag.add_connection("/custom", "my_msgs/msg/Secret", msgdef="int32 x\n", rihs01="RIHS01_00")
        tape.bag.write(connection, round(START_S * 1e9), b"\x00\x01\x00\x00\x05\x00\x00\x00")
        for frame in frames():
            tape.frame(frame)
    assert "my_msgs/msg/Secret" not in store.types
    assert_same(list(open_source(tmp_path / "bag")), frames())
    with pytest.raises(SourceError, match="is my_msgs/msg/Secret"):
        open_source(f"bag:{tmp_path / 'bag'}?rgb=/custom")


def test_another_definition_of_a_known_type_is_refused(tmp_path):
    with Tape(tmp_path / "bag") as tape:
        tape.connections["/rgb/image"] = tape.bag.add_connection(
            "/rgb/image", "sensor_msgs/msg/Image", msgdef="int32 x\n", rihs01="RIHS01_00"
        )
        for frame in frames():
            tape.frame(frame)
    with pytest.raises(SourceError, match="/rgb/image was recorded with another definition"):
        list(open_source(tmp_path / "bag"))


def test_single_malformed_messages_are_left_out(tmp_path):
    with Tape(tmp_path / "bag") as tape:
        for k, frame in enumerate(frames()):
            tape.frame(frame)
            if k == 2:
                tape.bag.write(tape.connections["/rgb/image"], round(frame.stamp_s * 1e9) + 1, b"\x00\x01\x00\x00junk")
    assert_same(list(open_source(tmp_path / "bag")), frames())


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_torn_bags_are_refused_with_the_remedy(tmp_path, storage):
    write_bag(frames(), tmp_path / "bag", storage)
    (file,) = [f for f in (tmp_path / "bag").iterdir() if f.suffix in (".mcap", ".db3")]
    whole = file.read_bytes()
    for size in (0, 5, 3000, len(whole) // 2, len(whole) - 9):
        file.write_bytes(whole[:size])
        for uri in (tmp_path / "bag", f"bag:{file}"):
            try:
                got = list(open_source(uri))
            except SourceError as error:
                assert "reindex" in str(error) or "no messages" in str(error) or "has" in str(error)
            else:
                assert len(got) <= 6


def test_torn_metadata(tmp_path):
    write_bag(frames(), tmp_path / "bag")
    (tmp_path / "bag" / "metadata.yaml").write_text("rosbag2_bagfile_information: {version: 99}")
    with pytest.raises(SourceError, match="cannot be read"):
        open_source(tmp_path / "bag")
    (tmp_path / "bag" / "metadata.yaml").write_text("{")
    with pytest.raises(SourceError, match="cannot be read"):
        open_source(tmp_path / "bag")


def test_no_bag_at_all(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        open_source(f"bag:{tmp_path / 'nothing'}")
    (tmp_path / "file.txt").touch()
    with pytest.raises(SourceError, match=r"is no \.mcap or \.db3 file"):
        open_source(f"bag:{tmp_path / 'file.txt'}")
    with pytest.raises(SourceError, match=r"has no metadata\.yaml"):
        open_source(f"bag:{tmp_path}")
    with pytest.raises(SourceError, match="a bag of rosbag2"):
        open_source(tmp_path)
    with Tape(tmp_path / "empty"):
        pass
    with pytest.raises(SourceError, match="no messages"):
        open_source(tmp_path / "empty")


def test_a_bag_is_not_overwritten(tmp_path):
    write_bag(frames(1), tmp_path / "bag")
    with pytest.raises(SourceError, match="exists"):
        write_bag(frames(1), tmp_path / "bag")
    with pytest.raises(SourceError, match="allowed: mcap, sqlite3"):
        write_bag(frames(1), tmp_path / "other", "rosbag1")


# The recorder


def read(path: Path) -> list[tuple[str, str, int, bytes]]:
    """Everything in a bag, by rosbags' general reader."""
    with AnyReader([path]) as reader:
        return [(c.topic, c.msgtype, stamp, bytes(data)) for c, stamp, data in reader.messages()]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_what_is_recorded_is_there(tmp_path, storage):
    answer = types().encode(types().new("semfield_ros/msg/Answer", prompts=["mug"], found=np.array([True])))
    with BagRecorder(tmp_path / "bag", storage) as recorder:
        for k in range(5):
            assert recorder.record("/semfield/answer", "semfield_ros/msg/Answer", answer, 100 + k, latched=True)
        assert recorder.record("/text", "std_msgs/msg/String", memoryview(bytes(8) + b"\0"), 7)
    assert (recorder.recorded, recorder.dropped, recorder.failed) == (6, 0, 0)
    found = read(tmp_path / "bag")
    assert found[0] == ("/text", "std_msgs/msg/String", 7, bytes(9))
    assert found[1:] == [("/semfield/answer", "semfield_ros/msg/Answer", 100 + k, bytes(answer)) for k in range(5)]
    with AnyReader([tmp_path / "bag"]) as reader:
        (connection,) = [c for c in reader.connections if c.topic == "/semfield/answer"]
        message = reader.deserialize(answer, connection.msgtype)
        assert message.prompts == ["mug"], "the bag explains its types itself"
        assert connection.ext.offered_qos_profiles[0].durability.name == "TRANSIENT_LOCAL"


def test_many_threads_record_at_once(tmp_path):
    recorder = BagRecorder(tmp_path / "bag")

    def record(n: int) -> None:
        for k in range(200):
            recorder.record(f"/t{n}", "std_msgs/msg/Int32", bytes(4) + k.to_bytes(4, "little"), 1000 * n + k)

    threads = [threading.Thread(target=record, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    recorder.close()
    assert recorder.recorded == 800 == len(read(tmp_path / "bag")) and recorder.waiting == 0


def test_a_slow_disk_costs_messages_never_memory_and_all_are_accounted_for(tmp_path, monkeypatch):
    held = threading.Event()
    write = Writer.write
    monkeypatch.setattr(Writer, "write", lambda *a: held.wait() and write(*a))
    recorder = BagRecorder(tmp_path / "bag", max_waiting_mb=1.0)
    kept = sum(recorder.record("/t", "sensor_msgs/msg/Image", bytes(400_000), k) for k in range(10))
    assert 2 <= kept <= 3 and recorder.dropped == 10 - kept
    held.set()
    recorder.close()
    assert recorder.recorded == kept == len(read(tmp_path / "bag"))
    assert not recorder.record("/t", "sensor_msgs/msg/Image", bytes(1), 0) and recorder.dropped == 11 - kept


def test_types_nobody_knows_are_counted_and_the_rest_goes_on(tmp_path):
    with BagRecorder(tmp_path / "bag") as recorder:
        recorder.record("/x", "my_msgs/msg/Secret", b"", 0)
        recorder.record("/t", "std_msgs/msg/String", bytes(9), 1)
    assert (recorder.failed, recorder.recorded) == (1, 1) and "my_msgs/msg/Secret" in recorder.last_error


def test_a_full_disk_ends_the_recording_not_the_program(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Writer, "write", full)
    recorder = BagRecorder(tmp_path / "bag")
    for k in range(3):
        recorder.record("/t", "std_msgs/msg/String", bytes(9), k)
    recorder.close()
    assert recorder.recorded == 0 and "no space left" in recorder.last_error
    assert recorder.dropped + recorder.failed == 3


def test_a_recording_does_not_overwrite(tmp_path):
    (tmp_path / "bag").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        BagRecorder(tmp_path / "bag")
    with pytest.raises(ConfigError, match="allowed: mcap, sqlite3"):
        BagRecorder(tmp_path / "other", "rosbag1")


@pytest.mark.ros
@pytest.mark.parametrize(("ours", "theirs"), [("mcap", "sqlite3"), ("sqlite3", "mcap")])
def test_rosbag2_reads_what_we_write_and_we_what_it_writes(tmp_path, ours, theirs):
    if shutil.which("ros2") is None:
        pytest.skip("ros2cli is not installed")
    write_bag(frames(), tmp_path / "bag", ours)
    preset = ", storage_preset_profile: zstd_fast" if theirs == "mcap" else ""
    (tmp_path / "out.yaml").write_text(
        f"output_bags: [{{uri: {tmp_path / 'copy'}, storage_id: {theirs}, all_topics: true{preset}}}]"
    )
    command = ["ros2", "bag", "convert", "-i", str(tmp_path / "bag"), "-o", str(tmp_path / "out.yaml")]
    made = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    assert_same(list(open_source(tmp_path / "copy")), frames())
