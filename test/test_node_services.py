"""The node's services and outputs as another process meets them: every service through the whole node, many callers at
a time, late listeners."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zenoh", reason="the extra `zenoh` is not installed")
import trimesh
from analytic_scene import BLUE, RED, cast, ring, stream
from node_peer import Robot, feed, fill, node_config, running, settle, until

from semfield_ros.config import GripperConfig, HeadsConfig
from semfield_ros.frame import Segments
from semfield_ros.messages.clouds import from_cloud, to_cloud
from semfield_ros.messages.images import decode_colour, decode_depth, decode_labels
from semfield_ros.messages.poses import header_of, pose_of, stamp_of, time_of
from semfield_ros.messages.types import types
from semfield_ros.node import outputs
from semfield_ros.node.config import CameraConfig, OutputConfig

FIRST_S = 1000.0
LAST_NS = 1_001_100_000_000
STEPS = 150
"""After so many the field knows this scene."""
RATES = OutputConfig(
    map_cloud_hz=20, labelled_cloud_hz=20, relevancy_hz=20, rendered_hz=20, status_hz=20, diagnostics_hz=20
)
WIDE = GripperConfig(max_width_m=0.158, finger_length_m=0.06)
"""The blue block is 14 cm wide, the red one 16."""
WITH_CLOUD = {"with_cloud": True, "with_grasps": True}
new = types().new


def middle(block):
    return (np.array(block.low) + block.high) / 2


def point(xyz):
    return new("geometry_msgs/msg/Point", **dict(zip("xyz", map(float, xyz))))


def options(**fields):
    return new("semfield_ros/msg/QueryOptions", **fields)


@pytest.fixture(scope="module")
def robot():
    robot = Robot()
    yield robot
    robot.close()


def caller(robot):
    """Call services of the node on the robot's wire."""

    def call(service, kind, /, **fields):
        return robot.call(f"/semfield/{service}", kind if "/" in kind else f"semfield_ros/srv/{kind}", **fields)

    return call


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """A node that has mapped the scene and trained a while, and a robot on its wire. Tests leave its map alone."""
    robot = Robot()
    with running(robot, node_config(tmp_path_factory.mktemp("node"), output=RATES)) as node:
        fill(node, robot, stream(12, first_s=FIRST_S))
        node.engine.train(steps=STEPS)
        yield node, robot
    robot.close()


@pytest.fixture
def asked(mapped):
    """Call a service of the mapped node."""
    return caller(mapped[1])


@pytest.fixture
def listener(mapped):
    """The robot of the mapped node, which listens to nothing any more after the test."""
    node, robot = mapped
    yield robot
    robot.join(node.bus.endpoint)


@pytest.fixture
def own(robot, tmp_path):
    """A node of the test's own that has mapped the scene, and a way to call it."""
    with running(robot, node_config(tmp_path, output=RATES)) as node:
        fill(node, robot, stream(12, first_s=FIRST_S))
        yield node, caller(robot)


def inside(position, block, margin_m=0.03):
    p = np.array([position.x, position.y, position.z])
    return (np.array(block.low) - margin_m <= p).all() and (p <= np.array(block.high) + margin_m).all()


# ---- questions ----------------------------------------------------------------------------------------------------


def test_query(asked):
    response = asked("query", "Query", prompts=["red box; crimson", "blue", "unicorn"], options=options(**WITH_CLOUD))
    answer = response.answer
    assert response.success and response.message == ""
    assert answer.header.frame_id == "map" and stamp_of(answer.header.stamp) == LAST_NS
    assert list(answer.prompts) == ["red box", "blue", "unicorn"] and list(answer.found) == [True, True, False]
    found = {thing.prompt: thing for thing in answer.objects}
    assert found.keys() == {"red box", "blue"}
    for prompt, block in (("red box", RED), ("blue", BLUE)):
        assert inside(found[prompt].box_pose.position, block) and inside(found[prompt].centroid, block)
        size = found[prompt].box_size
        edges = np.array(block.high) - block.low
        np.testing.assert_allclose(sorted([size.x, size.y, size.z]), sorted(edges), atol=0.05)
        assert stamp_of(found[prompt].last_seen) <= LAST_NS and found[prompt].observations >= 1
    # Only the blue block is narrow enough to be held.
    for grasp in found["blue"].grasps:
        assert inside(grasp.pose.position, BLUE, 0.02) and 0 < grasp.width < 0.15
    cloud = from_cloud(answer.cloud)
    assert {"x", "y", "z", "rgb", "seen", "confidence", "relevancy_0", "relevancy_1", "relevancy_2"} <= cloud.keys()
    best = np.argmax(np.where(cloud["seen"] > 0, cloud["relevancy_1"], -1))
    assert inside(point([cloud["x"][best], cloud["y"][best], cloud["z"][best]]), BLUE)


def test_query_points(asked):
    header = header_of(0, "map")
    where = np.array([[RED.high[0] - 0.08, 0.0, RED.high[2]], [0.15, 0.0, BLUE.high[2]], [3.0, 3.0, 3.0]])
    response = asked("query_points", "QueryPoints", points=to_cloud(where, header), prompts=["red", "blue"])
    assert response.success
    assert response.labels.tolist() == [0, 1, -1] and response.seen.tolist() == [True, True, False]
    scores = response.scores.reshape(3, 2)
    assert scores[0, 0] > scores[0, 1] and scores[1, 1] > scores[1, 0] and not scores[2].any()
    in_base = asked("query_points", "QueryPoints", points=to_cloud(where, header_of(0, "base")), prompts=["red"])
    assert not in_base.success and "'base'" in in_base.message and "'map'" in in_base.message


def test_query_click(asked):
    what = cast(ring(12)[11])[1]
    v, u = np.argwhere(what == 1).mean(0).astype(int)
    assert what[v, u] == 1
    by_pixel = asked("query_click", "QueryClick", mode=0, u=int(u), v=int(v))
    assert by_pixel.success and inside(by_pixel.point, RED)
    by_point = asked("query_click", "QueryClick", mode=1, point=by_pixel.point)
    for response in (by_pixel, by_point):
        assert list(response.answer.prompts) == ["click"] and inside(response.answer.objects[0].box_pose.position, RED)
    nowhere = asked("query_click", "QueryClick", mode=1, point=point([5, 5, 5]))
    assert not nowhere.success and "no surface" in nowhere.message


def test_render(asked):
    response = asked("render", "Render", use_last_pose=True, prompts=["red"], with_features=True)
    assert response.success
    depth, what = cast(ring(12)[11])
    rendered = decode_depth(response.depth)
    assert rendered.shape == depth.shape
    surface = (rendered > 0) & (depth > 0) & (depth < 1.5)
    assert surface.mean() > 0.5 and np.median(np.abs(rendered - depth)[surface]) < 0.05
    assert decode_colour(response.image).shape == (*depth.shape, 3) == decode_colour(response.features).shape
    relevancy = decode_depth(response.relevancy[0])
    assert relevancy[what == 1].mean() > relevancy[what == 2].mean()
    assert decode_depth(response.accumulation).max() <= 1.0 + 1e-6


def test_twenty_callers_at_once_get_their_own_answers(mapped):
    node, robot = mapped
    colours = ["red", "blue"] * 10
    requests = [{"prompts": [f"{colour} {k}"], "options": options(with_cloud=True)} for k, colour in enumerate(colours)]
    responses = robot.calls("/semfield/query", "semfield_ros/srv/Query", requests)
    assert len(responses) == 20
    for k, response in enumerate(responses):
        assert response.success, response.message
        assert list(response.answer.prompts) == [f"{colours[k]} {k}"] and list(response.answer.found) == [True]
        block = RED if colours[k] == "red" else BLUE
        assert inside(response.answer.objects[0].box_pose.position, block)
        assert len(from_cloud(response.answer.cloud)["relevancy_0"]) == len(node.engine.snapshot().cloud)


# ---- the map ------------------------------------------------------------------------------------------------------


def test_save_forget_load_and_train_on(own, tmp_path):
    node, call = own
    node.engine.train(steps=20)
    before = node.engine.snapshot()
    saved = call("save_map", "SaveMap", name="kitchen")
    assert saved.success and saved.size == (tmp_path / "maps/kitchen.semfield").stat().st_size
    again = call("save_map", "SaveMap", name="kitchen")
    assert not again.success and "overwrit" in again.message
    assert call("save_map", "SaveMap", name="kitchen", overwrite=True).success

    assert call("reset", "std_srvs/srv/Trigger").success
    assert len(node.engine.snapshot().cloud) == 0
    empty = call("query", "Query", prompts=["red"])
    assert not empty.success and "map is empty" in empty.message

    missing = call("load_map", "LoadMap", name="garage")
    assert not missing.success and "kitchen" in missing.message  # says what there is
    loaded = call("load_map", "LoadMap", name="kitchen")
    assert loaded.success and loaded.keyframes == 12 and stamp_of(loaded.header.stamp) == LAST_NS
    after = node.engine.snapshot()
    np.testing.assert_array_equal(np.sort(after.cloud.points, 0), np.sort(before.cloud.points, 0))
    steps = node.engine.status().mapping.steps
    assert steps >= 20
    node.engine.train(steps=5)
    assert node.engine.status().mapping.steps >= steps + 5
    assert call("query", "Query", prompts=["red"]).answer.found.tolist() == [True]


HOSTILE = (
    "../out", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "", "a" * 101, "a\0b", "a b", "COM1:", "~root", "ü",
)  # fmt: skip


@pytest.mark.parametrize("service", [("save_map", "SaveMap"), ("load_map", "LoadMap"), ("export", "Export")])
def test_names_stay_in_the_map_folder(mapped, asked, service):
    folder = Path(mapped[0].config.service.map_folder)
    before = sorted(folder.parent.rglob("*"))
    for name in HOSTILE:
        response = asked(*service, name=name)
        assert not response.success and "letters, digits" in response.message, name
    assert sorted(folder.parent.rglob("*")) == before


def test_links_do_not_lead_out_of_the_map_folder(own, tmp_path):
    _, call = own
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps/out.semfield").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_text("mine")
    for service in (("save_map", "SaveMap"), ("load_map", "LoadMap")):
        extra = {"overwrite": True} if service[0] == "save_map" else {}
        response = call(*service, name="out", **extra)
        assert not response.success and "link" in response.message
    assert (tmp_path / "precious").read_text() == "mine"


def test_export(own, tmp_path):
    node, call = own
    node.engine.train(steps=STEPS)
    cloud = call("export", "Export", name="cloud", kind=0)
    assert cloud.success and cloud.file == "cloud.ply"
    assert len(trimesh.load(tmp_path / "maps/cloud.ply").vertices) == cloud.points > 1000
    unlabelled = call("export", "Export", name="labels", kind=1)
    assert not unlabelled.success and "vocabulary" in unlabelled.message
    assert call("set_vocabulary", "SetVocabulary", names=["red", "blue"]).success
    assert call("export", "Export", name="labels", kind=1).success
    mesh = call("export", "Export", name="mesh", kind=2, resolution=0.03)
    assert mesh.success, mesh.message
    vertices = np.asarray(trimesh.load(tmp_path / "maps/mesh.ply", process=False).vertices)
    assert len(vertices) == mesh.points
    for place in ([*middle(RED)[:2], RED.high[2]], [*middle(BLUE)[:2], BLUE.high[2]], [0.0, -0.25, 0.0]):
        assert np.linalg.norm(vertices - place, axis=1).min() < 0.05


def test_pause_counts_what_comes_meanwhile(own, robot):
    node, call = own
    assert call("pause", "std_srvs/srv/SetBool", data=True).message == "paused"
    feed(robot, stream(3, first_s=FIRST_S + 10))
    settle(node, 15)
    assert node.inputs.unused() == {"paused": 3} and node.inputs.submitted == 12
    robot.listen("/semfield/status", "semfield_ros/msg/Status")
    status = robot.until_heard("/semfield/status", lambda s: dict(zip(s.rejected_reasons, s.rejected_counts)))
    assert status.state == status.STATE_PAUSED and list(status.rejected_counts) == [3]
    assert call("query", "Query", prompts=["red"]).answer.found.tolist() == [True]
    assert call("pause", "std_srvs/srv/SetBool", data=False).success
    fill(node, robot, stream(3, first_s=FIRST_S + 20))
    assert node.inputs.submitted == 15


def test_clear_region(own):
    _, call = own
    low, high = np.array(RED.low) - 0.03, np.array(RED.high) + 0.03
    low[2] = -0.03
    cleared = call("clear_region", "ClearRegion", region_min=point(low), region_max=point(high))
    assert cleared.success and cleared.voxels > 50 and cleared.rays > 0
    found = call("query", "Query", prompts=["red", "blue"]).answer.found.tolist()
    assert found == [False, True]
    wrong = call("clear_region", "ClearRegion", region_min=point(high), region_max=point(low))
    assert not wrong.success


def test_correct_poses(own):
    """Every keyframe half a metre to the right: the map follows."""
    node, call = own
    before = call("query", "Query", prompts=["red"]).answer.objects[0].box_pose.position
    shift = np.eye(4)
    shift[0, 3] = 0.5
    stamps = [time_of(round((FIRST_S + 0.1 * k) * 1e9)) for k in range(13)]
    poses = [pose_of(shift @ T) for T in [*ring(12), ring(12)[0]]]
    moved = call("correct_poses", "CorrectPoses", stamps=stamps, poses=poses)
    assert moved.success and (moved.corrected, moved.unknown) == (12, 1)
    assert moved.largest_translation == pytest.approx(0.5) and moved.largest_rotation == pytest.approx(0, abs=1e-4)
    assert node.engine.drain(60)
    after = call("query", "Query", prompts=["red"], options=options(source=3)).answer.objects[0].box_pose.position
    assert after.x - before.x == pytest.approx(0.5, abs=0.02) and after.y == pytest.approx(before.y, abs=0.02)
    node.engine.train(steps=5)  # trains on


def test_before_the_first_frame_answers_say_so(robot, tmp_path):
    with running(robot, node_config(tmp_path)):
        for name, kind in (
            ("query", "Query"), ("query_points", "QueryPoints"), ("query_click", "QueryClick"), ("render", "Render"),
            ("save_map", "SaveMap"), ("export", "Export"), ("clear_region", "ClearRegion"),
            ("correct_poses", "CorrectPoses"),
        ):  # fmt: skip
            response = robot.call(f"/semfield/{name}", f"semfield_ros/srv/{kind}")
            assert not response.success and "map is empty" in response.message, name


# ---- the action, as the rclpy side runs it ------------------------------------------------------------------------


def locate(node, prompt, timeout_s, cancelled=lambda: False, feedback=lambda message: None):
    """The result of ~/locate."""
    kind, run = node.actions["~/locate"]
    goal = new(f"{kind}_Goal", prompt=prompt, options=options(with_grasps=True), timeout=timeout_s)
    return run(goal, feedback, cancelled)


def test_locate_waits_until_something_matches(robot, tmp_path):
    with running(robot, node_config(tmp_path, gripper=WIDE)) as node:
        early = locate(node, "red", 0.1)
        assert not early.success and "nothing has been seen yet" in early.message
        told, results = [], []
        seeker = threading.Thread(target=lambda: results.append(locate(node, "red", 60.0, feedback=told.append)))
        seeker.start()
        until(lambda: told)
        assert not results and told[0].frames == 0
        fill(node, robot, stream(12, first_s=FIRST_S))
        seeker.join()
        (result,) = results
        assert result.success and result.message == "" and list(result.answer.prompts) == ["red"]
        assert inside(result.answer.objects[0].box_pose.position, RED) and told[-1].elapsed >= told[0].elapsed
        assert result.answer.objects[0].why_no_grasps
        blue = locate(node, "blue", 60.0).answer.objects[0]
        best = blue.grasps[0]
        assert best.header.frame_id == "map" and stamp_of(best.header.stamp) == LAST_NS and blue.why_no_grasps == ""
        up = best.retreat.position.z - best.pose.position.z
        assert up == pytest.approx(node.config.grasp.retreat_m)


def test_locate_gives_up_when_time_runs_out_or_it_is_cancelled(mapped):
    node, _ = mapped
    late = locate(node, "unicorn", 0.3)
    assert not late.success and "nothing matched within 0.3 s" in late.message
    assert list(late.answer.found) == [False]
    stopped = locate(node, "unicorn", 0.0, cancelled=lambda: True)
    assert not stopped.success and stopped.message.startswith("cancelled after")
    for timeout_s, prompt, words in ((-1.0, "red", "timeout is -1"), (float("nan"), "red", "timeout"), (1.0, "", "")):
        wrong = locate(node, prompt, timeout_s)
        assert not wrong.success and words in wrong.message and wrong.message


# ---- outputs ------------------------------------------------------------------------------------------------------


def test_the_map_cloud_reaches_whoever_comes_late(mapped, listener):
    node, _ = mapped
    topic = "/semfield/map_cloud"
    listener.listen(topic, "sensor_msgs/msg/PointCloud2", transient_local=True, depth=1)
    first = listener.heard(topic)[-1]
    snapshot = node.engine.snapshot()
    assert first.header.frame_id == "map" and stamp_of(first.header.stamp) == LAST_NS
    cloud = from_cloud(first)
    assert {"x", "y", "z", "rgb"} == cloud.keys() and len(cloud["x"]) == len(snapshot.cloud)
    late = Robot(node.bus.endpoint, name="late")
    try:
        late.listen(topic, "sensor_msgs/msg/PointCloud2", transient_local=True, depth=1)
        assert bytes(late.heard(topic)[-1].data) == bytes(first.data)
    finally:
        late.close()


def test_answers_and_views_are_published(mapped, listener, asked):
    node, _ = mapped
    assert asked("set_vocabulary", "SetVocabulary", names=["red", "blue", "white"]).success
    topics = {
        "labelled_cloud": "sensor_msgs/msg/PointCloud2", "relevancy_cloud": "sensor_msgs/msg/PointCloud2",
        "objects": "vision_msgs/msg/Detection3DArray", "markers": "visualization_msgs/msg/MarkerArray",
        "grasps": "geometry_msgs/msg/PoseArray", "rendered/image": "sensor_msgs/msg/Image",
        "rendered/depth": "sensor_msgs/msg/Image", "rendered/features": "sensor_msgs/msg/Image",
        "status": "semfield_ros/msg/Status",
    }  # fmt: skip
    for topic, kind in topics.items():
        latched = {"transient_local": True, "depth": 1} if topic == "labelled_cloud" else {}
        listener.listen(f"/semfield/{topic}", kind, **latched)
    assert asked("query", "Query", prompts=["blue"], options=options(with_grasps=True)).success
    heard = {topic: listener.heard(f"/semfield/{topic}", 2 if topic != "labelled_cloud" else 1)[-1] for topic in topics}
    for topic, message in heard.items():
        header = message.markers[0].header if topic == "markers" else message.header
        assert header.frame_id == "map" and stamp_of(header.stamp) == LAST_NS, topic

    labels = from_cloud(heard["labelled_cloud"])
    assert {"label", "instance", "confidence", "rgb"} <= labels.keys()
    on_red = (labels["z"] > 0.1) & (labels["x"] < -0.05)
    assert on_red.sum() > 20 and (labels["label"][on_red] == 0).mean() > 0.9
    relevancy = from_cloud(heard["relevancy_cloud"])
    assert {"relevancy", "relevancy_0"} <= relevancy.keys()
    blue = listener.until_heard("/semfield/objects", lambda m: m.detections).detections[0]
    assert blue.results[0].hypothesis.class_id == "blue" and inside(blue.bbox.center.position, BLUE)
    assert {m.ns for m in listener.until_heard("/semfield/markers", lambda m: len(m.markers) > 1).markers} >= {"boxes"}
    for pose in heard["grasps"].poses:
        assert inside(pose.position, BLUE, 0.02)
    assert heard["rendered/image"].encoding == "rgb8" and heard["rendered/depth"].encoding == "32FC1"
    assert heard["rendered/image"].width == heard["rendered/features"].width == RATES.rendered_width
    status = heard["status"]
    assert status.frames_in == 12 == status.frames_used + status.frames_skipped
    assert status.keyframes == 12 and status.voxels == len(node.engine.snapshot().cloud) and status.train_steps >= STEPS


def test_nothing_is_computed_while_nobody_listens(own, robot, monkeypatch):
    _, call = own
    made = []
    for name in ("to_cloud", "label_map", "render_view", "detections", "markers", "grasps", "relevancy_cloud"):
        real = getattr(outputs, name)
        monkeypatch.setattr(
            outputs, name, lambda *a, _real=real, _name=name, **k: made.append(_name) or _real(*a, **k)
        )
    call("set_vocabulary", "SetVocabulary", names=["red"])
    call("query", "Query", prompts=["red"])
    # All timers run at the rate of the status, which is listened to.
    robot.listen("/semfield/status", "semfield_ros/msg/Status")
    robot.heard("/semfield/status", 20)
    assert made == []
    robot.listen("/semfield/objects", "vision_msgs/msg/Detection3DArray")
    robot.heard("/semfield/objects", 2)
    until(lambda: "detections" in made)
    assert set(made) == {"detections"}


def test_status_counts_every_image_that_came(own, robot):
    """frames_in = used + skipped + dropped + rejected + waiting, rejections at the door among them."""
    node, _ = own
    blind = stream(4, first_s=FIRST_S + 10)
    for frame in blind:
        frame.depth_m[:] = 0
    feed(robot, blind)
    settle(node, 16)
    robot.listen("/semfield/status", "semfield_ros/msg/Status")
    status = robot.until_heard("/semfield/status", lambda s: s.frames_in == 16)
    assert dict(zip(status.rejected_reasons, status.rejected_counts)) == {"depth_empty": 4}
    assert status.frames_used + status.frames_skipped + status.frames_dropped + status.frames_waiting + 4 == 16
    assert status.last_error.startswith("depth_empty")


# ---- heads --------------------------------------------------------------------------------------------------------


def labelled(frame, k):
    """The same with classes 1 (table), 2 and 3 (blocks), and masks of the blocks whose ids change."""
    what = cast(frame.T_world_camera)[1]
    return replace(frame, semantic=what + 1, segments=Segments(np.array([0, 1 + k, 30 - k], np.int32)[what], {}))


def test_labels_and_masks_of_other_nodes_are_learnt_and_told(robot, tmp_path):
    """Label images with a LabelInfo, and masks without names: classes, instances and entropy on services and topics."""
    heads = HeadsConfig(semantic_classes=3, instances="slots", label_rays=256, semantic_pairs=128)
    camera = CameraConfig(
        sync_queue_size=200, labels_topic="labels/image", masks_topic="masks/image", masks_named=False,
        labels_timeout_s=30.0,
    )  # fmt: skip
    names = {1: "table", 2: "red box", 3: "blue box"}
    with running(robot, node_config(tmp_path, heads=heads, camera=camera, output=RATES)) as node:
        call = caller(robot)
        frames = [labelled(frame, k) for k, frame in enumerate(stream(12, first_s=FIRST_S))]
        fill(node, robot, frames, labels=True, class_names=names)
        assert node.world.last_frame().segments is not None and node.world.class_names == names
        node.engine.train(steps=180)
        node.engine.pause()
        snapshot = node.engine.snapshot()
        points = snapshot.cloud.points
        request = {"points": to_cloud(points, header_of(0, "map")), "use_classes": True, "extras": 2 | 4}
        response = call("query_points", "QueryPoints", **request)
        assert response.success, response.message
        assert list(response.prompts) == list(names.values())
        raised = points[:, 2] > 0.03
        truth = np.where(raised, np.where(points[:, 0] < 0, 1, 2), 0)
        assert (response.labels == truth).mean() > 0.95 and (response.labels == truth)[raised].mean() > 0.9
        assert np.isfinite(response.entropy).all()
        numbers = [np.bincount(response.instances[raised & (truth == k)]).argmax() for k in (1, 2)]
        assert 0 < numbers[0] != numbers[1] > 0

        kinds = {
            "labelled_cloud": "sensor_msgs/msg/PointCloud2", "labels/info": "vision_msgs/msg/LabelInfo",
            "objects": "vision_msgs/msg/Detection3DArray", "rendered/labels": "sensor_msgs/msg/Image",
            "rendered/entropy": "sensor_msgs/msg/Image", "rendered/instances": "sensor_msgs/msg/Image",
            "status": "semfield_ros/msg/Status",
        }  # fmt: skip
        for topic, kind in kinds.items():
            latched = {"transient_local": True, "depth": 1} if topic in ("labelled_cloud", "labels/info") else {}
            robot.listen(f"/semfield/{topic}", kind, **latched)
        info = robot.heard("/semfield/labels/info")[-1]
        assert {entry.class_id: entry.class_name for entry in info.class_map} == names
        cloud = from_cloud(robot.heard("/semfield/labelled_cloud")[-1])
        np.testing.assert_array_equal(cloud["label"], response.labels)
        assert (cloud["instance"] == response.instances).mean() > 0.99  # but for splinters, which are no things
        np.testing.assert_allclose(cloud["entropy"], response.entropy, atol=1e-5)
        what = cast(ring(12)[11])[1]
        labels = robot.heard("/semfield/rendered/labels")[-1]
        assert labels.encoding == "16UC1" and set(np.unique(decode_labels(labels))) <= {0, 1, 2, 3}
        share = [(decode_labels(labels) == k + 1).mean() for k in (1, 2)]
        np.testing.assert_allclose(share, [(what == k).mean() for k in (1, 2)], atol=0.03)
        shown = decode_labels(robot.heard("/semfield/rendered/instances")[-1])
        assert set(numbers) <= set(np.unique(shown)) <= {0, *np.unique(response.instances)}
        assert robot.heard("/semfield/rendered/entropy")[-1].encoding == "32FC1"
        assert call("query", "Query", prompts=["red"]).success
        found = robot.until_heard("/semfield/objects", lambda m: m.detections).detections[0]
        assert found.id == str(numbers[0])
        status = robot.heard("/semfield/status")[-1]
        steps = dict(zip(status.heads, status.head_steps))
        assert steps["semantic"] >= 180 and steps["instance_slots"] >= 180 and steps["rgb"] >= 180

        # words go before classes once there are any
        assert call("set_vocabulary", "SetVocabulary", names=["blue", "red"]).success
        spoken = robot.until_heard("/semfield/labelled_cloud", lambda m: (from_cloud(m)["label"][raised] == 0).any())
        label = from_cloud(spoken)["label"]
        assert (label[raised & (truth == 2)] == 0).mean() > 0.8 and (label[raised & (truth == 1)] == 1).mean() > 0.8
        findings = {finding.name: finding for finding in node.diagnostics.findings()}
        assert findings["labels"].message == "3 classes"


def test_a_recording_is_published_with_its_labels(robot):
    """`semfield publish --labels`, and a node that comes late hears the names."""
    from semfield_ros.node.publisher import publish
    from semfield_ros.wire.zenoh_bus import ZenohBus

    class Recorded(list):
        class_names = ("void", "table", "red box", "blue box")

    frames = Recorded(labelled(frame, 0) for frame in stream(3, first_s=FIRST_S))
    bus = ZenohBus("camera", domain=0, mode="test")
    try:
        robot.join(bus.endpoint)
        robot.listen("/rgb/image", "sensor_msgs/msg/Image")
        robot.listen("/labels/image", "sensor_msgs/msg/Image")
        heard = bus.publisher("sensor_msgs/msg/Image", "/labels/image")
        until(lambda: heard.subscribers, 30.0)
        assert publish(bus, frames, rate=0, labels=True, stamps="source") == 3
        last = robot.heard("/labels/image", 3)[-1]
        np.testing.assert_array_equal(decode_labels(last), frames[-1].semantic)
        assert stamp_of(last.header.stamp) == round(frames[-1].stamp_s * 1e9)
        robot.listen("/labels/info", "vision_msgs/msg/LabelInfo", transient_local=True, depth=1)
        info = robot.heard("/labels/info")[-1]
        assert [(e.class_id, e.class_name) for e in info.class_map] == [(1, "table"), (2, "red box"), (3, "blue box")]
    finally:
        bus.close()
