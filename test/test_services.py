"""The node's services over a real wire: a map of two blocks on a table, asked from another bus; and all that is asked
wrongly, which is answered with words."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
import trimesh
from analytic_scene import BLUE, CAMERA, RED, SMALL, cast, ring, stream

from semfield_ros.config import EncoderConfig, GripperConfig, HeadsConfig, PyramidConfig, SemfieldConfig
from semfield_ros.engine import Engine
from semfield_ros.errors import ConfigError
from semfield_ros.geometry import look_at, project
from semfield_ros.messages.clouds import from_cloud, to_cloud
from semfield_ros.messages.images import decode_colour, decode_depth, decode_labels, info_of
from semfield_ros.messages.poses import TransformMissing, header_of, matrix_of, pose_of, time_of
from semfield_ros.messages.types import types
from semfield_ros.node.config import NodeConfig
from semfield_ros.node.diagnostics import WARN, planner_finding
from semfield_ros.node.grasp_frames import GraspFrames
from semfield_ros.node.maps import MapFolder
from semfield_ros.node.node import SemfieldNode
from semfield_ros.node.services import _SERVICES, Services
from semfield_ros.node.things import majorities
from semfield_ros.node.world import World
from semfield_ros.objects import Grasp, GraspPlan
from semfield_ros.query.tasks import demonstrate, save_task
from semfield_ros.wire.zenoh_bus import ZenohBus

SCENE = replace(SMALL, encoder=EncoderConfig(name="stub"))
CONFIG = NodeConfig(**{f.name: getattr(SCENE, f.name) for f in fields(SemfieldConfig)})
PATIENCE_S = 60.0
RED_MIDDLE = (np.array(RED.low) + RED.high) / 2
NAN = float("nan")
new = types().new


def services_of(engine, folder, **more):
    return Services(engine, lambda: CONFIG, MapFolder(folder), World(), **more)


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """Services of a map that has seen the whole scene and whose field is trusted; training rests."""
    with Engine(SCENE) as engine:
        services = services_of(engine, tmp_path_factory.mktemp("maps"))
        for frame in stream(12):
            services.world.saw(frame)
            engine.submit(frame, block=True)
        assert engine.drain(PATIENCE_S)
        engine.pause()
        engine.train(steps=320)
        yield services


@pytest.fixture(scope="module")
def bus(services):
    """A bus on which the services are offered."""
    with_services = ZenohBus("semfield", mode="test")
    services.serve_all(with_services)
    yield with_services
    with_services.close()


@pytest.fixture(scope="module")
def call(bus):
    """Call a service from another bus: call("query", prompts=["red"])."""
    other = ZenohBus("client", mode="join", endpoint=bus.endpoint)
    clients = {}

    def call(name, /, **fields):
        if name not in clients:
            clients[name] = other.client(_SERVICES[name], f"/semfield/{name}")
            assert clients[name].wait(PATIENCE_S)
        return clients[name].call(new(f"{_SERVICES[name]}_Request", **fields), PATIENCE_S)

    yield call
    other.close()


@pytest.fixture
def other(tmp_path):
    """Services of a map of its own, to change."""
    with Engine(SCENE) as engine:
        engine.pause()
        services = services_of(engine, tmp_path / "maps")
        for frame in stream(8):
            services.world.saw(frame)
            engine.submit(frame, block=True)
        assert engine.drain(PATIENCE_S)
        yield services


def point(*xyz):
    return new("geometry_msgs/msg/Point", **dict(zip("xyz", map(float, xyz))))


def options(**values):
    return new("semfield_ros/msg/QueryOptions", **values)


def ask(services, name, /, **fields):
    """Call a handler as the bus does, its response through CDR."""
    response = getattr(services, name)(new(f"{_SERVICES[name]}_Request", **fields))
    return types().decode(types().encode(response), f"{_SERVICES[name]}_Response")


def stamped(header):
    return header.stamp.sec + header.stamp.nanosec * 1e-9, header.frame_id


# ---- what they are for ----------------------------------------------------------------------------------------


class Nonsense:
    """A planner that raises, or answers with what no gripper can do."""

    def plan(self, scene, gripper, config):
        if scene.own[:, 0].mean() > RED_MIDDLE[0]:
            raise RuntimeError("no weights")
        return GraspPlan((Grasp(np.full((4, 4), NAN), 0.01, 0.5, "top", np.zeros((2, 3))),))


def test_a_broken_planner_leaves_the_objects_and_is_counted(services, call, monkeypatch):
    before = services.engine.config
    broken = replace(before.grasp, planner=f"{__name__}:Nonsense")
    monkeypatch.setattr(services.engine, "config", replace(before, grasp=broken))
    response = call("query", prompts=["red", "blue"], options=options(with_grasps=True))
    assert response.success and {o.prompt for o in response.answer.objects} == {"red", "blue"}
    assert not any(len(o.grasps) for o in response.answer.objects)
    said = sorted(o.why_no_grasps for o in response.answer.objects)
    assert all("planner" in words and "(1)" in words for words in said)
    told = services.world.planner_failures()
    assert sum(told.values()) == len(response.answer.objects)
    finding = planner_finding("mine:Planner", told)
    assert finding.level == WARN and "mine:Planner" in finding.message
    assert call("query", prompts=["red"]).success and planner_finding("antipodal", {}) is None


def test_a_node_does_not_start_without_its_planner():
    with pytest.raises(ConfigError, match="'nowhere'"):
        SemfieldNode(None, replace(CONFIG, grasp=replace(CONFIG.grasp, planner="nowhere")))


def test_query_says_why_there_is_no_grasp(services, call, monkeypatch):
    """The red block is 16 cm wide."""
    red = call("query", prompts=["red"], options=options(with_grasps=True)).answer.objects[0]
    assert not len(red.grasps) and len(red.rejected_reasons) == len(red.rejected_counts) > 0
    assert red.rejected_reasons[0] in red.why_no_grasps
    assert call("query", prompts=["red"]).answer.objects[0].why_no_grasps == ""


def test_query_takes_tasks_of_the_map_folder(services, call):
    """A task shown at the blue block is found there, not at the red one."""
    T = np.diag([1.0, -1.0, -1.0, 1.0])
    T[:3, 3] = [*((np.array(BLUE.low) + BLUE.high) / 2)[:2], BLUE.high[2]]
    shown = demonstrate("lift", [(services.engine.snapshot(), T)], encoder=services.engine.encoder.cache_key)
    save_task(services.maps.new("lift", ".task", overwrite=True), shown)
    wanted = options(tasks=["lift"], with_grasps=True)
    alone = call("query", prompts=[], options=wanted).answer
    assert alone.prompts == ["lift"] and list(alone.found) == [True]
    centre = alone.objects[0].box_pose.position
    assert (np.abs(np.array([centre.x, centre.y]) - T[:2, 3]) < 0.05).all()
    both = call("query", prompts=["red"], options=wanted).answer
    assert both.prompts == ["red", "lift"]
    for names, more, words in (
        (["none"], {}, "there is no none.task"), (["../lift"], {}, "cannot be used in the map folder"),
        (["lift"] * 17, {}, "allowed: 16"), (["lift"], {"negatives": ["table"]}, "negatives"),
    ):  # fmt: skip
        refused = call("query", prompts=["red"], options=options(tasks=names, **more))
        assert not refused.success and words in refused.message
    click = call("query_click", mode=1, point=point(*T[:3, 3]), options=options(tasks=["lift"]))
    assert not click.success and "tasks" in click.message


def test_query_publishes_frames_when_asked(services, bus, monkeypatch):
    frames = GraspFrames(bus, lambda: CONFIG)
    monkeypatch.setattr(services, "_frames", frames.publish)
    wide = GripperConfig(max_width_m=0.158, finger_length_m=0.06)  # the blue block is 14 cm wide
    monkeypatch.setattr(services.engine, "config", replace(services.engine.config, gripper=wide))
    early = ZenohBus("early", mode="join", endpoint=bus.endpoint)
    client = early.client("semfield_ros/srv/Query", "/semfield/query")
    assert client.wait(PATIENCE_S)
    try:

        def asked(**fields):
            request = new("semfield_ros/srv/Query_Request", prompts=["red", "blue"], options=options(**fields))
            return client.call(request, PATIENCE_S).answer

        asked(with_grasps=True)
        told = asked(with_grasps=True, publish_tf=True)
        assert any(len(thing.grasps) for thing in told.objects)
        late = ZenohBus("late", mode="join", endpoint=bus.endpoint)
        try:
            for listener in (early, late):
                for place, thing in enumerate(told.objects):
                    np.testing.assert_allclose(
                        found_by(listener, "map", f"semfield/object_{place}"), matrix_of(thing.box_pose), atol=1e-9
                    )
                    for best in thing.grasps[:1]:
                        name = f"semfield/grasp_{place}"
                        poses = {name: best.pose, f"{name}_pregrasp": best.pregrasp, f"{name}_retreat": best.retreat}
                        for frame, pose in poses.items():
                            np.testing.assert_allclose(
                                found_by(listener, "map", frame), matrix_of(pose), atol=1e-6
                            )
        finally:
            late.close()
    finally:
        early.close()
        frames.close()


def found_by(bus, target, source):
    """The transform, as soon as it is known there."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return bus.transforms.lookup(target, source, 0.0)
        except TransformMissing:
            assert time.monotonic() < end_s, f"{source} was never heard of"
            time.sleep(0.02)


def test_query_finds_the_block_where_it_is(call):
    wanted = options(with_cloud=True, with_grasps=True)
    response = call("query", prompts=["red", "blue; azure", "zebra"], options=wanted)
    assert response.success and response.message == ""
    told = response.answer
    assert stamped(told.header) == (pytest.approx(1.1), "map")
    assert told.prompts == ["red", "blue", "zebra"] and list(told.found) == [True, True, False]
    red = next(o for o in told.objects if o.prompt == "red")
    centre = red.box_pose.position
    np.testing.assert_allclose([centre.x, centre.y, centre.z], RED_MIDDLE, atol=0.03)
    np.testing.assert_allclose(sorted([red.box_size.x, red.box_size.y]), [0.16, 0.16], atol=0.05)
    channels = from_cloud(told.cloud)
    points = np.stack([channels[c] for c in "xyz"], -1)
    sure = channels["relevancy_0"] > 0.9
    assert sure.sum() > 100 and (np.abs(points[sure] - RED_MIDDLE) < 0.11).all(1).mean() > 0.95


def test_query_without_cloud_builds_none(services, call, monkeypatch):
    monkeypatch.setattr("semfield_ros.node.answers.scored_cloud", lambda *_: 1 / 0)
    response = call("query", prompts=["red"])
    assert response.success and response.answer.cloud.width == 0 and not len(response.answer.cloud.data)
    assert not len(response.answer.objects[0].grasps) and response.answer.objects[0].cloud.width == 0


def test_query_with_object_clouds_says_from_where_it_was_seen(call):
    red = call("query", prompts=["red"], options=options(with_object_clouds=True)).answer.objects[0]
    eyes = np.array([[p.x, p.y, p.z] for p in red.view_points])
    poses = np.array([T[:3, 3] for T in ring(12)])
    assert len(eyes) >= 3 and all(np.linalg.norm(poses - eye, axis=1).min() < 1e-9 for eye in eyes)
    around = from_cloud(red.surroundings)
    assert around["z"].min() < 0.02  # the table, also where the block hides it
    under = (np.abs(around["x"] - RED_MIDDLE[0]) < 0.05) & (np.abs(around["y"] - RED_MIDDLE[1]) < 0.05)
    assert (np.abs(around["z"][under]) < 0.03).any()


def test_query_points_labels_any_points(call):
    points = np.array([[-0.14, -0.02, 0.16], [0.15, 0.02, 0.1], [5, 5, 5], [NAN, 0, 0]], np.float32)
    cloud = to_cloud(points, header_of(0, "map"))
    response = call("query_points", points=cloud, prompts=["blue", "red"])
    assert response.success and response.prompts == ["blue", "red"]
    assert list(response.labels) == [1, 0, -1, -1] and list(response.seen) == [True, True, False, False]
    scores = response.scores.reshape(4, 2)
    assert scores[0, 1] > 0.9 > scores[0, 0] and not scores[2:].any()
    assert (response.confidence[:2] > 0.3).all() and not response.confidence[2:].any()
    assert stamped(response.header) == (pytest.approx(1.1), "map")


def test_query_points_uses_the_vocabulary(services, call):
    cloud = to_cloud(np.array([[-0.14, -0.02, 0.16]]), header_of(0, ""))
    refused = call("query_points", points=cloud)
    assert not refused.success and "~/set_vocabulary" in refused.message
    assert call("set_vocabulary", names=["white", "red; crimson"]).success
    assert services.world.vocabulary == ("white", "red; crimson")
    response = call("query_points", points=cloud)
    assert response.prompts == ["white", "red"] and list(response.labels) == [1]
    high = options(threshold_mode=1, threshold=1.0)
    assert list(call("query_points", points=cloud, options=high).labels) == [-1]
    assert call("set_vocabulary", names=[]).success and services.world.vocabulary == ()


@pytest.mark.parametrize("scale", [0, 2])
def test_a_clicked_pixel_finds_the_block(services, call, scale):
    frame = services.world.last_frame()
    depth, what = cast(frame.T_world_camera)
    rows, columns = np.nonzero(what == 2)
    middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    v, u = int(rows[middle]), int(columns[middle])
    clicked = {"u": u, "v": v}
    if scale:
        clicked = {"u": u * 2, "v": v * 2 + 1, "image_width": 2 * CAMERA.width, "image_height": 2 * CAMERA.height}
    response = call("query_click", **clicked)
    assert response.success, response.message
    at = np.array([response.point.x, response.point.y, response.point.z])
    seen_u, seen_v, z = project(frame.camera, frame.T_world_camera, at[None])
    assert (seen_u[0], seen_v[0], z[0]) == (pytest.approx(u), pytest.approx(v), pytest.approx(depth[v, u], rel=1e-5))
    assert response.answer.prompts == ["click"] and list(response.answer.found) == [True]
    centre = response.answer.objects[0].centroid
    assert BLUE.low[0] - 0.02 < centre.x < BLUE.high[0] + 0.02 and BLUE.low[1] - 0.02 < centre.y < BLUE.high[1] + 0.02


def test_a_clicked_point_finds_the_block(call):
    response = call("query_click", mode=1, point=point(-0.14, -0.02, 0.16))
    assert response.success and abs(response.answer.objects[0].centroid.x - RED_MIDDLE[0]) < 0.05
    assert len(response.answer.objects) == 1


def test_render_from_the_last_pose_and_from_elsewhere(services, call):
    frame = services.world.last_frame()
    own = call("render", use_last_pose=True, with_features=True, prompts=["red"])
    assert own.success and (own.image.width, own.image.height) == (CAMERA.width, CAMERA.height)
    depth, what = decode_depth(own.depth), cast(frame.T_world_camera)[1]
    both = (depth > 0) & (frame.depth_m > 0)
    assert both.mean() > 0.6 and np.median(np.abs(depth - frame.depth_m)[both]) < 0.03
    red = (what == 1) & both
    relevancy = decode_depth(own.relevancy[0])
    assert np.median(relevancy[red]) > np.median(relevancy[(what == 0) & both]) + 0.2
    assert decode_colour(own.features).shape == (CAMERA.height, CAMERA.width, 3)
    assert np.median(decode_depth(own.accumulation)[both]) > 0.9 and stamped(own.header) == (pytest.approx(1.1), "map")
    small = info_of(CAMERA.resized(40, 30), header_of(0, ""))
    away = call("render", pose=pose_of(look_at([0.5, 0.5, 0.6], [0.0, 0.0, 0.05])), camera_info=small)
    assert away.success and (away.depth.width, away.depth.height) == (40, 30)
    assert not len(away.relevancy) and not len(away.features.data)


def test_export_writes_what_other_programs_read(services, call):
    written = call("export", name="cloud")
    assert written.success and written.file == "cloud.ply", written.message
    cloud = trimesh.load(services.maps.path / "cloud.ply")
    assert len(cloud.vertices) == written.points == len(services.engine.snapshot().cloud)
    refused = call("export", name="labels", kind=1)
    assert not refused.success and "vocabulary" in refused.message
    services.world.vocabulary = ("red", "blue")
    try:
        assert call("export", name="labels", kind=1).success
    finally:
        services.world.vocabulary = ()
    text = (services.maps.path / "labels.ply").read_bytes()
    assert b"property int label" in text and b"label 1 is blue" in text
    mesh = call("export", name="mesh", kind=2, resolution=0.03)
    assert mesh.success, mesh.message
    loaded = trimesh.load(services.maps.path / "mesh.ply", process=False)
    above = loaded.vertices[(np.abs(loaded.vertices - RED_MIDDLE)[:, :2] < 0.04).all(1)]
    assert len(loaded.faces) > 100 and above[:, 2].max() == pytest.approx(RED.high[2], abs=0.03)
    assert not call("export", name="cloud").success and call("export", name="cloud", overwrite=True).success


def test_save_reset_load_goes_on_where_it_was(other):
    before = ask(other, "query", prompts=["red"]).answer.objects[0]
    saved = ask(other, "save_map", name="blocks")
    assert saved.success and saved.size == (other.maps.path / "blocks.semfield").stat().st_size > 1000
    assert stamped(saved.header)[0] == pytest.approx(0.7)
    again = ask(other, "save_map", name="blocks")
    assert not again.success and "already" in again.message
    assert ask(other, "save_map", name="blocks", overwrite=True).success
    reset = ask(other, "reset")
    assert reset.success and not len(other.engine.snapshot().cloud) and other.world.last_frame() is None
    assert not ask(other, "query", prompts=["red"]).success
    loaded = ask(other, "load_map", name="blocks")
    assert loaded.success and loaded.keyframes == 8 and stamped(loaded.header)[0] == pytest.approx(0.7)
    after = ask(other, "query", prompts=["red"]).answer.objects[0]
    assert after.centroid.x == pytest.approx(before.centroid.x, abs=1e-4) and after.score == pytest.approx(before.score)
    steps = other.engine.status().mapping.steps
    other.engine.train(steps=3)
    assert other.engine.status().mapping.steps == steps + 3


def test_loading_refuses_torn_files_and_other_frames_and_keeps_the_map(other):
    assert ask(other, "save_map", name="good").success
    good = (other.maps.path / "good.semfield").read_bytes()
    (other.maps.path / "torn.semfield").write_bytes(good[: len(good) // 2])
    (other.maps.path / "foreign.semfield").write_text("not a map")
    elsewhere = Services(other.engine, lambda: replace(CONFIG, global_frame="odom"), other.maps, other.world)
    count = len(other.engine.snapshot().cloud)
    for services, name, words in (
        (other, "torn", "torn"), (other, "foreign", "not a semfield map"), (other, "missing", "it holds foreign, good"),
        (other, "../good", "allowed: letters"), (elsewhere, "good", "made in frame 'map'; set global_frame"),
    ):  # fmt: skip
        response = ask(services, "load_map", name=name)
        assert not response.success and words in response.message, response.message
    assert len(other.engine.snapshot().cloud) == count


def test_pause_stops_training_and_says_so_to_the_inputs(other):
    assert ask(other, "pause", data=False).message == "running"
    deadline = time.monotonic() + PATIENCE_S
    start = other.engine.status().mapping.steps
    while other.engine.status().mapping.steps == start and time.monotonic() < deadline:
        time.sleep(0.01)
    assert other.engine.status().mapping.steps > start and not other.world.paused
    assert ask(other, "pause", data=True).success and other.world.paused
    assert ask(other, "query", prompts=["red"]).success


def test_clear_region_forgets_one_block(other):
    low, high = np.array(RED.low) - 0.06, np.array(RED.high) + 0.06
    cleared = ask(other, "clear_region", region_min=point(*low), region_max=point(*high))
    assert cleared.success and cleared.voxels > 50 and cleared.rays > 50
    told = ask(other, "query", prompts=["red", "blue"], options=options(source=3)).answer
    assert list(told.found) == [False, True]
    points = other.engine.snapshot().cloud.points
    assert not ((points > low) & (points < high)).all(1).any()


def test_correct_poses_moves_the_map(other):
    shift = np.eye(4)
    shift[2, 3] = 0.1
    frames = stream(8)
    before = other.engine.snapshot().cloud.points[:, 2].min()
    response = ask(
        other, "correct_poses", stamps=[time_of(f.stamp_s) for f in frames] + [time_of(99.0)],
        poses=[pose_of(shift @ f.T_world_camera) for f in frames] + [pose_of(np.eye(4))],
    )  # fmt: skip
    assert response.success and (response.corrected, response.unknown) == (8, 1)
    assert response.largest_translation == pytest.approx(0.1) and response.largest_rotation < 1e-6
    assert other.engine.drain(PATIENCE_S)
    assert other.engine.snapshot().cloud.points[:, 2].min() == pytest.approx(before + 0.1, abs=0.03)


def test_twenty_clients_at_once_get_their_own_answers(call):
    prompts = ["red", "blue"] * 10
    call("query", prompts=["red"])  # its client is made once
    with ThreadPoolExecutor(20) as pool:
        responses = list(pool.map(lambda p: call("query", prompts=[p]), prompts))
    assert all(r.success for r in responses)
    assert [r.answer.objects[0].prompt for r in responses] == prompts


def test_an_answer_is_shown_with_its_question(services):
    shown = []
    showing = services_of(services.engine, services.maps.path, show=lambda *it: shown.append(it))
    ask(showing, "query", prompts=["red; crimson"], options=options(threshold_mode=2, threshold=5.0))
    ask(showing, "query_click", mode=1, point=point(-0.14, -0.02, 0.16))
    (answer, question), (clicked, features) = shown
    assert answer.prompts[0].label == "red" and question.options["top_percent"] == 5.0
    assert clicked.prompts[0].label == "click" and features.prompts.positives.shape[0] == 1


# ---- what is asked wrongly ------------------------------------------------------------------------------------

CLOUD = to_cloud(np.zeros((4, 3)), header_of(0, ""))
LARGE, ELSEWHERE = to_cloud(np.zeros((200_000, 3)), header_of(0, "")), to_cloud(np.zeros((1, 3)), header_of(0, "odom"))
TILTED = new("geometry_msgs/msg/Pose", orientation=new("geometry_msgs/msg/Quaternion", w=3.0))
HUGE = info_of(replace(CAMERA, width=20_000, height=20_000), header_of(0, ""))
BLANK = new("sensor_msgs/msg/CameraInfo", width=8, height=8)
WRONG = [
    ("query", {"prompts": [";".join(f"{k}" for k in range(250))] * 3}, "750 synonyms in all; allowed: 512"),
    ("query", {"prompts": ["red"], "options": options(negatives=["x" * 2000])}, "a negative has 2000 characters"),
    ("query", {}, "0 prompts; allowed: 1 to"),
    ("query", {"prompts": [""]}, "is empty"),
    ("query", {"prompts": [" ; "]}, "is empty"),
    ("query", {"prompts": ["red"] * 10_000_000}, "10000000 prompts; allowed: 1 to"),
    ("query", {"prompts": ["x" * 2_000_000]}, "2000000 characters"),
    ("query", {"prompts": ["red"], "options": options(negatives=["x"] * 1000)}, "1000 negatives"),
    ("query", {"prompts": ["red"], "options": options(threshold_mode=1, threshold=NAN)}, "threshold is nan"),
    ("query", {"prompts": ["red"], "options": options(use_region=True, region_min=point(NAN, 0, 0))}, "region is"),
    ("query", {"prompts": ["red"], "options": options(use_region=True, region_min=point(1, 0, 0))}, "region is"),
    ("query", {"prompts": ["red"], "options": options(max_objects=2**32 - 1)}, "max_objects is"),
    ("query", {"prompts": ["red"], "options": options(score=200)}, "score is 200"),
    ("query_points", {"points": CLOUD, "prompts": ["red"] * 1000}, "1000 prompts"),
    ("query_points", {"points": replace(CLOUD, width=2**31), "prompts": ["red"]}, "the cloud says"),
    ("query_points", {"points": replace(CLOUD, fields=CLOUD.fields[:2]), "prompts": ["red"]}, "no field 'z'"),
    ("query_points", {"points": ELSEWHERE, "prompts": ["red"]}, "transform them"),
    ("query_points", {"points": LARGE, "prompts": ["red"] * 200}, "in parts"),
    ("query_click", {"mode": 7}, "mode is 7"),
    ("query_click", {"camera_name": "rear"}, "no frame of camera 'rear'"),
    ("query_click", {"u": 2**32 - 1}, "lies outside the image of 80x60"),
    ("query_click", {"u": 100, "image_width": 90, "image_height": 90}, "lies outside the image of 90x90"),
    ("query_click", {"mode": 1, "point": point(NAN, 0, 0)}, "three finite numbers"),
    ("query_click", {"mode": 1, "point": point(5, 5, 5)}, "click on something that has been seen"),
    ("query_click", {"mode": 1, "point": point(-0.14, -0.02, 0.16), "options": options(score=1)}, "no negatives"),
    ("set_vocabulary", {"names": ["red", ""]}, "is empty"),
    ("set_vocabulary", {"names": ["mug; cup", "mug"]}, "'mug' is there twice"),
    ("set_vocabulary", {"names": ["x"] * 1000}, "1000 prompts"),
    ("render", {}, "quaternion (0.0, 0.0, 0.0, 0.0)"),
    ("render", {"pose": TILTED}, "has length 3"),
    ("render", {"pose": new("geometry_msgs/msg/Pose", position=point(NAN, 0, 0))}, "finite"),
    ("render", {"pose": pose_of(np.diag([1.0, 1, 1, 1]) + 1e9 * np.eye(4, k=3))}, "within 100000 m"),
    ("render", {"use_last_pose": True, "camera_info": HUGE}, "20000x20000 pixels; allowed"),
    ("render", {"use_last_pose": True, "camera_info": BLANK}, "calibrated"),
    ("render", {"use_last_pose": True, "prompts": [""]}, "is empty"),
    ("save_map", {"name": "../../etc/passwd"}, "allowed: letters"),
    ("save_map", {"name": ""}, "allowed: letters"),
    ("load_map", {"name": "/etc/passwd"}, "allowed: letters"),
    ("export", {"name": "a/b"}, "allowed: letters"),
    ("export", {"name": "x", "kind": 9}, "kind is 9; allowed: 0, 1, 2"),
    ("export", {"name": "x", "kind": 2, "resolution": NAN}, "resolution is nan"),
    ("export", {"name": "x", "kind": 2, "resolution": 1e-6}, "coarser resolution"),
    ("clear_region", {"region_min": point(1, 1, 1)}, "two finite corners"),
    ("clear_region", {"region_min": point(-np.inf, 0, 0)}, "two finite corners"),
    ("correct_poses", {}, "0 stamps and 0 poses"),
    ("correct_poses", {"stamps": [time_of(1)], "poses": []}, "1 stamps and 0 poses"),
    ("correct_poses", {"stamps": [time_of(1)], "poses": [new("geometry_msgs/msg/Pose")]}, "has length 0"),
    ("correct_poses", {"stamps": [time_of(1)], "poses": [pose_of(np.eye(4))], "tolerance": NAN}, "tolerance"),
    ("correct_poses", {"stamps": [time_of(1)] * 50_000, "poses": [pose_of(np.eye(4))] * 50_000}, "send more in parts"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "request_fields", "words"), WRONG, ids=[f"{w[0]}-{w[2][:24]}" for w in WRONG])
def test_what_is_asked_wrongly_is_answered_with_words(services, name, request_fields, words):
    voxels = len(services.engine.snapshot().cloud)
    response = ask(services, name, **request_fields)
    assert not response.success and words in response.message, response.message
    assert len(response.message) < 1100 and len(services.engine.snapshot().cloud) == voxels
    header = response.answer.header if hasattr(response, "answer") else getattr(response, "header", None)
    assert header is None or stamped(header) == (pytest.approx(1.1), "map")


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    with Engine(SCENE) as engine:
        yield services_of(engine, tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize("name", [n for n in _SERVICES if n not in ("set_vocabulary", "load_map", "reset", "pause")])
def test_before_the_first_frame_everything_says_that_the_map_is_empty(empty, name):
    fields = {"name": "x"} if name in ("save_map", "export") else {}
    response = ask(empty, name, **fields)
    assert not response.success and "the map is empty" in response.message
    header = response.answer.header if hasattr(response, "answer") else response.header
    assert stamped(header) == (0.0, "map") and not list(empty.maps.path.iterdir())


def test_a_full_disk_is_told(services, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("semfield_ros.node.exports.write_ply", full)
    response = ask(services, "export", name="big")
    assert not response.success and "No space left" in response.message


def test_a_stopped_engine_is_told(tmp_path):
    engine = Engine(SCENE)
    engine.start()
    services = services_of(engine, tmp_path)
    for frame in stream(2):
        engine.submit(frame, block=True)
    assert engine.drain(PATIENCE_S)
    engine.stop()
    assert ask(services, "query", prompts=["red"]).success  # the last snapshot still answers
    requests = {"save_map": {"name": "x"}, "reset": {}, "clear_region": {"region_max": point(1, 1, 1)}}
    for name, request in requests.items():
        response = ask(services, name, **request)
        assert not response.success and "not running" in response.message


def test_a_fault_inside_is_an_answer_and_goes_to_the_status(services, monkeypatch, caplog):
    monkeypatch.setattr("semfield_ros.node.views.render_view", lambda *_, **__: 1 / 0)
    response = ask(services, "render", use_last_pose=True)
    assert not response.success and "internal error" in response.message
    assert "ZeroDivisionError" in services.world.last_error and "~/render failed" in caplog.text
    services.world.last_error = ""


def test_names_of_requests_stay_inside_the_map_folder(services, tmp_path):
    outside = services.maps.path.parent / "outside.ply"
    os.symlink(outside, services.maps.path / "link.ply")
    response = ask(services, "export", name="link", overwrite=True)
    assert not response.success and "leads out" in response.message and not outside.exists()


# ---- heads --------------------------------------------------------------------------------------------------------

HEADS = HeadsConfig(
    semantic_classes=3, class_names=("table", "red box", "blue box"), instances="slots", label_rays=256,
    semantic_pairs=128,
)  # fmt: skip
TAUGHT = replace(CONFIG, heads=HEADS)
TOPS = np.array([[-0.14, -0.02, 0.16], [0.15, 0.02, 0.1], [0.0, -0.25, 0.0], [5, 5, 5]], np.float32)
"""On the red block, on the blue one, on the table, nowhere."""


def labelled(frame, ids=(0, 1, 2)):
    """The same with classes 1 (table), 2 and 3 (blocks), and these ids of instances."""
    what = cast(frame.T_world_camera)[1]
    return replace(frame, semantic=what + 1, instance=np.array(ids, np.int32)[what])


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Services of a map whose field has learnt classes, and instances whose ids change from frame to frame."""
    with Engine(TAUGHT.engine_config()) as engine:
        services = Services(engine, lambda: TAUGHT, MapFolder(tmp_path_factory.mktemp("maps")), World())
        for k, frame in enumerate(stream(12)):
            services.world.saw(frame)
            engine.submit(labelled(frame, (0, 1 + k, 20 - k)), block=True)
        assert engine.drain(PATIENCE_S)
        engine.pause()
        engine.train(steps=180)
        yield services


def at(points):
    return to_cloud(np.asarray(points, np.float32), header_of(0, "map"))


def test_points_are_of_the_classes_that_were_taught(taught):
    cloud = taught.engine.snapshot().cloud
    response = ask(taught, "query_points", points=at(cloud.points), use_classes=True, extras=1 | 2)
    assert response.success, response.message
    assert response.prompts == ["table", "red box", "blue box"]
    on_block = (cloud.points[:, 2] > 0.03).astype(int)
    truth = np.where(cloud.points[:, 0] < 0, 1, 2) * on_block
    assert (response.labels == truth).mean() > 0.95 and (response.labels == truth)[on_block > 0].mean() > 0.9
    shares = response.probabilities.reshape(-1, 3)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-4)
    np.testing.assert_array_equal(response.scores.reshape(-1, 3), shares)
    p = np.clip(shares.astype(np.float64), 1e-12, 1)
    np.testing.assert_allclose(response.entropy, -(p * np.log(p)).sum(1), atol=1e-4)
    border = np.abs(cloud.points[:, 2] - 0.02) < 0.015
    assert response.entropy[border & (np.abs(cloud.points[:, 0]) < 0.3)].max() > np.median(response.entropy) * 3


def test_what_was_not_seen_has_no_class_and_is_not_certain(taught):
    response = ask(taught, "query_points", points=at(TOPS), use_classes=True, extras=1 | 2 | 4 | 8)
    assert list(response.labels) == [1, 2, 0, -1] and list(response.seen) == [True, True, True, False]
    assert np.isnan(response.entropy[3]) and np.isfinite(response.entropy[:3]).all()
    assert not response.probabilities.reshape(4, 3)[3].any() and response.instances[3] == 0
    features = response.features.reshape(4, response.feature_dim)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), [1, 1, 1, 0], atol=1e-3)
    high = options(threshold_mode=1, threshold=1.0)
    assert set(ask(taught, "query_points", points=at(TOPS), use_classes=True, options=high).labels) <= {-1, 0, 1, 2}


def test_instances_are_one_a_thing_and_stay_who_they_are(taught):
    first = ask(taught, "query_points", points=at(TOPS), use_classes=True, extras=4).instances
    assert first[0] > 0 and first[1] > 0 and first[0] != first[1] and first[2] == first[3] == 0
    taught.engine.train(steps=5)
    again = ask(taught, "query_points", points=at(TOPS), prompts=["red", "blue"], extras=4)
    np.testing.assert_array_equal(again.instances, first)
    answer = ask(taught, "query", prompts=["red", "blue"]).answer
    told = {thing.prompt: thing for thing in answer.objects}
    assert (told["red"].instance, told["blue"].instance) == (first[0], first[1])
    assert (told["red"].class_id, told["red"].class_name) == (2, "red box")
    assert told["blue"].class_name == "blue box" and 0 <= told["blue"].entropy < np.log(3)


def test_prompts_have_probabilities_too(taught):
    asked = {"points": at(TOPS), "prompts": ["red", "blue", "white"]}
    plain, response = ask(taught, "query_points", **asked), ask(taught, "query_points", **asked, extras=1 | 2)
    np.testing.assert_array_equal(plain.labels, response.labels)
    np.testing.assert_array_equal(plain.scores, response.scores)
    shares = response.probabilities.reshape(4, 3)
    assert list(shares[:3].argmax(1)) == [0, 1, 2] and np.isnan(response.entropy[3])
    other = ask(taught, "query_points", **asked, with_other=True)
    assert list(other.labels) == [0, 1, -1, -1]


def test_nothing_is_said_that_was_not_asked_for(taught, services):
    for asked in (taught, services):
        response = ask(asked, "query_points", points=at(TOPS), prompts=["red", "blue"])
        assert not len(response.probabilities) and not len(response.entropy) and not len(response.instances)
        assert response.feature_dim == 0 and not len(response.features)
        answer = ask(asked, "query", prompts=["red"]).answer
        assert not len(answer.scales) and not len(answer.searched_scales) and not len(answer.scale_peaks)
        view = ask(asked, "render", use_last_pose=True)
        for image in (view.labels, view.entropy, view.instances, view.normals):
            assert image.width == 0 and not len(image.data)
    red = ask(services, "query", prompts=["red"]).answer.objects[0]
    assert (red.instance, red.class_id, red.class_name) == (0, 0, "") and np.isnan(red.entropy)


def test_views_of_classes_and_instances(taught):
    response = ask(taught, "render", use_last_pose=True, with_labels=True, with_instances=True)
    assert response.success, response.message
    what = cast(ring(12)[11])[1]
    labels, instances = decode_labels(response.labels), decode_labels(response.instances)
    assert response.labels.encoding == "16UC1" and response.instances.encoding == "32SC1"
    solid = (decode_depth(response.depth) > 0) & (labels > 0) & (decode_depth(response.depth) < 1.5)
    assert (labels == what + 1)[solid].mean() > 0.9
    known = ask(taught, "query_points", points=at(TOPS), use_classes=True, extras=4).instances
    for k in (1, 2):
        assert (instances == known[k - 1])[solid & (what == k)].mean() > 0.8
    entropy = decode_depth(response.entropy)
    assert np.array_equal(np.isnan(entropy), labels == 0) and np.nanmax(entropy) <= np.log(3) + 1e-4
    again = ask(taught, "render", use_last_pose=True, with_instances=True)
    np.testing.assert_array_equal(decode_labels(again.instances), instances)


def test_what_was_not_learnt_is_refused_and_the_setting_named(services, taught):
    scales = options(source=5)
    for name, request, words in (
        ("query_points", {"points": at(TOPS), "use_classes": True}, "heads.semantic_classes"),
        ("query_points", {"points": at(TOPS), "prompts": ["red"], "extras": 4}, "heads.instances"),
        ("render", {"use_last_pose": True, "with_labels": True}, "heads.semantic_classes"),
        ("render", {"use_last_pose": True, "with_instances": True}, "heads.instances"),
        ("render", {"use_last_pose": True, "with_normals": True}, "heads.normals"),
        ("render", {"use_last_pose": True, "with_features": True, "features_of": "dino"}, "heads.teachers"),
        ("render", {"use_last_pose": True, "prompts": ["red"], "options": scales}, "heads.teachers"),
        ("render", {"use_last_pose": True, "edited": True}, "~/edit"),
        ("query", {"prompts": ["red"], "options": scales}, "heads.teachers"),
        ("export", {"name": "classes", "kind": 3, "resolution": 0.03}, "heads.semantic_classes"),
        ("label", {"mode": 1, "point": point(*TOPS[0]), "class_id": 1}, "heads.semantic_classes"),
        ("edit", {"instance": 1}, "heads.instances"),
    ):  # fmt: skip
        response = ask(services, name, **request)
        assert not response.success and words in response.message, (name, response.message)
    for name, request, words in (
        ("query_points", {"points": at(TOPS), "prompts": ["red"], "extras": 16}, "extras is 16"),
        ("query_points", {"points": at(TOPS), "prompts": ["red"], "use_classes": True}, "one of them at a time"),
        ("query_points", {"points": at(TOPS), "prompts": ["red"], "with_other": True}, "at least one before"),
        ("query", {"prompts": ["red"], "options": options(scales=[0.1])}, "SOURCE_SCALES only"),
        ("query", {"prompts": ["red"], "options": options(source=5, scales=[0.1, -1.0])}, "> 0 and finite"),
        ("query", {"prompts": ["red"], "options": options(source=5, scales=[0.1] * 65)}, "up to 64"),
        ("query", {"prompts": ["red"], "options": options(source=6)}, "source is 6"),
        ("label", {"mode": 1, "point": point(*TOPS[0]), "class_id": 4}, "1 to 3"),
        ("label", {"mode": 1, "point": point(*TOPS[0]), "class_name": "cup"}, "red box"),
        ("label", {"mode": 1, "point": point(5, 5, 5), "class_id": 1}, "label what was mapped"),
        ("edit", {"action": 9, "instance": 1}, "action is 9"),
        ("edit", {"instance": 999}, "there is no instance 999"),
        ("export", {"name": "x", "kind": 5}, "allowed: 0, 1, 2, 3, 4"),
    ):  # fmt: skip
        response = ask(taught, name, **request)
        assert not response.success and words in response.message, (name, response.message)


def test_features_of_too_many_points_are_refused(services, monkeypatch):
    monkeypatch.setattr("semfield_ros.node.questions.MAX_VALUES", 4 * services.engine.encoder.dim - 1)
    asked = {"points": at(TOPS), "prompts": ["red", "blue"]}
    assert ask(services, "query_points", **asked).success
    response = ask(services, "query_points", **asked, extras=8)
    assert not response.success and "ask in parts" in response.message


def test_the_surer_map_answers(services):
    response = ask(services, "query", prompts=["red", "blue"], options=options(source=4))
    assert response.success and list(response.answer.found) == [True, True]


def test_files_of_classes_and_features(taught):
    mesh = ask(taught, "export", name="classes", kind=3, resolution=0.03)
    assert mesh.success and mesh.file == "classes.ply", mesh.message
    written = trimesh.load(taught.maps.path / "classes.ply", process=False)
    assert len(written.vertices) == mesh.points > 100
    lexicon = ask(taught, "export", name="lexicon", kind=4)
    assert lexicon.success and lexicon.file == "lexicon", lexicon.message
    assert len(np.load(taught.maps.path / "lexicon" / "index.npy")) == lexicon.points > 1000
    again = ask(taught, "export", name="lexicon", kind=4)
    assert not again.success and "overwriting" in again.message
    assert ask(taught, "export", name="lexicon", kind=4, overwrite=True).success
    (taught.maps.path / "precious").mkdir()
    (taught.maps.path / "precious" / "mine").write_text("mine")
    assert not ask(taught, "export", name="precious", kind=4, overwrite=True).success
    assert (taught.maps.path / "precious" / "mine").read_text() == "mine"


def test_edits_make_a_scene_beside_the_map(taught):
    red, blue = ask(taught, "query_points", points=at(TOPS), use_classes=True, extras=4).instances[:2]
    before = len(taught.engine.snapshot().cloud)
    gone = ask(taught, "edit", action=0, instance=int(red))
    assert gone.success, gone.message
    channels = from_cloud(gone.cloud)
    assert gone.cloud.width < before == len(taught.engine.snapshot().cloud) and red not in channels["instance"]
    further = np.eye(4)
    further[0, 3] = 0.2
    twin = ask(taught, "edit", action=2, instance=int(blue), transform=pose_of(further))
    channels = from_cloud(twin.cloud)
    x = {i: channels["x"][channels["instance"] == i].mean() for i in (blue, twin.instance)}
    assert twin.instance not in (red, blue) and x[twin.instance] - x[blue] == pytest.approx(0.2, abs=1e-3)
    view = ask(taught, "render", use_last_pose=True, edited=True)
    assert view.success and red not in decode_labels(view.instances) and blue in decode_labels(view.instances)
    assert ask(taught, "edit", action=4).success
    assert not ask(taught, "render", use_last_pose=True, edited=True).success


def test_one_label_teaches_a_class(tmp_path):
    """Nobody has labelled anything: three clicks do."""
    config = replace(TAUGHT, heads=replace(HEADS, instances="off"))
    with Engine(config.engine_config()) as engine:
        engine.pause()
        services = Services(engine, lambda: config, MapFolder(tmp_path), World())
        for frame in stream(8):
            services.world.saw(frame)
            engine.submit(frame, block=True)
        assert engine.drain(PATIENCE_S)
        for place, name in zip(TOPS[:3], ("red box", "blue box", "table")):
            response = ask(services, "label", mode=1, point=point(*place), class_name=name)
            assert response.success, response.message
        engine.train(steps=150)
        labels = ask(services, "query_points", points=at(TOPS), use_classes=True).labels
        assert list(labels) == [1, 2, 0, -1]


def test_prompts_are_answered_at_their_scales(tmp_path):
    """With the teacher pyramid; normals beside it."""
    heads = HeadsConfig(teachers=("pyramid",), pyramid=PyramidConfig(smallest=0.2), normals=True)
    config = replace(CONFIG, heads=heads)
    with Engine(config.engine_config()) as engine:
        engine.pause()
        services = Services(engine, lambda: config, MapFolder(tmp_path), World())
        for frame in stream(8):
            services.world.saw(frame)
            engine.submit(frame, block=True)
        assert engine.drain(PATIENCE_S)
        engine.train(steps=60)
        asked = {"prompts": ["red", "blue"], "options": options(source=5)}
        response = ask(services, "query", **asked)
        answer = response.answer
        assert response.success, response.message
        searched, peaks = answer.searched_scales, answer.scale_peaks.reshape(2, -1)
        assert len(searched) == peaks.shape[1] == 30 and (np.diff(searched) > 0).all()
        np.testing.assert_array_equal(answer.scales, searched[peaks.argmax(1)])
        one = ask(services, "query", prompts=["red"], options=options(source=5, scales=[0.2])).answer
        assert list(one.scales) == list(one.searched_scales) == [pytest.approx(0.2)] and len(one.scale_peaks) == 1
        view = ask(services, "render", use_last_pose=True, with_normals=True, **asked)
        assert view.success and len(view.relevancy) == len(view.scales) == 2, view.message
        assert decode_depth(view.relevancy[0]).shape == (60, 80) and decode_depth(view.relevancy[0]).max() > 0
        table = (decode_depth(view.depth) > 0) & (cast(ring(8)[7])[1] == 0)
        normals = decode_colour(view.normals)[table].astype(float) / 127.5 - 1
        assert np.median(normals[:, 2]) > 0.8  # up
        points = ask(services, "query_points", points=at(TOPS), **asked)
        assert points.success and not points.seen[3] and points.seen[:3].all()


def test_majorities():
    owner, ids = np.array([0, 0, 0, 1, 1, 1, 2]), np.array([5, 5, 2, 0, -1, 7, -1])
    assert list(majorities(owner, ids, 4)) == [5, 0, 0, 0]
