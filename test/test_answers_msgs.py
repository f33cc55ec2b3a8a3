"""Answers as messages, questions from messages, labels and colours: on a map whose scores are known by construction."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from semfield_ros.answer import answer
from semfield_ros.cloud import SurfaceCloud
from semfield_ros.config import EncoderConfig, ObjectConfig, QueryConfig, SemfieldConfig
from semfield_ros.encoders import create
from semfield_ros.engine import EngineStatus
from semfield_ros.errors import QueryError
from semfield_ros.field.snapshot import Snapshot
from semfield_ros.geometry import Camera, look_at
from semfield_ros.mapping import MappingStatus
from semfield_ros.memory.keyframes import Keyframe
from semfield_ros.memory.point_map import voxel_keys
from semfield_ros.messages.clouds import from_cloud, unpack_rgb
from semfield_ros.messages.poses import header_of, matrix_of_transform
from semfield_ros.messages.types import types
from semfield_ros.node import answers
from semfield_ros.node.commands import _grasps as in_words
from semfield_ros.node.grasp_frames import MAX_OBJECTS, frames_message, frames_of
from semfield_ros.node.labelling import instances, islands
from semfield_ros.node.palette import NONE, FeaturePainter, class_colour, colour_labels
from semfield_ros.node.questions import ask_like, ask_words, likeness_threshold, thresholds
from semfield_ros.objects import Grasp
from semfield_ros.objects.grasping import grasp_scene
from semfield_ros.objects.objects import ObjectPart
from semfield_ros.planners import scene_of
from semfield_ros.query.click import prompts_like
from semfield_ros.query.prompt import PromptEncoder

VOXEL_M = 0.02
CONFIG = SemfieldConfig(encoder=EncoderConfig(name="stub"))
CALIBRATED = create(CONFIG.encoder).calibration


def block(centre, n=6):
    axis = (np.arange(n) - (n - 1) / 2) * VOXEL_M
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    return (grid + centre).astype(np.float32)


@pytest.fixture(scope="module")
def texts():
    return PromptEncoder(create(CONFIG.encoder), QueryConfig())


@pytest.fixture(scope="module")
def snapshot(texts):
    """Two red blocks and a blue one; the last voxels of the blue one have no features yet."""
    centres = [[0.01, 0.01, 0.11], [0.51, 0.01, 0.11], [0.01, 0.51, 0.11]]
    red, blue = texts.vectors(["red", "blue"])
    points = np.concatenate([block(c) for c in centres])
    n = len(points) // 3
    features = np.repeat(np.stack([red, red, blue]), n, axis=0).astype(np.float16)
    rgb = np.repeat(np.array([[200, 10, 10], [200, 10, 10], [10, 10, 200]], np.uint8), n, axis=0)
    measured = np.arange(3 * n) < 3 * n - 40
    features[~measured] = 0
    keys = voxel_keys(points, VOXEL_M)
    order = np.argsort(keys)
    sideways = np.tile(np.float32([1, 0, 0]), (3 * n, 1))  # or their layers would be tables
    cloud = SurfaceCloud(
        points[order], sideways, rgb[order], np.full(3 * n, 6, np.int32), np.full(3 * n, 2.0)
    )
    return Snapshot(
        stamp_s=2.25, frames=3, step=0, cloud=cloud, features=features[order], measured=measured[order],
        created_step=np.zeros(3 * n, np.int64), keys=keys[order], voxel_size_m=VOXEL_M, field=None, language=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(snapshot, texts):
    """Red and blue, and a grasp made up for the best object."""
    told = answer(snapshot, texts, ["red; crimson", "blue"], config=CONFIG, grasps=False)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_euler("x", 180, degrees=True).as_matrix(), [0.01, 0.01, 0.17]
    grasp = Grasp(T, 0.04, 0.9, "top", np.array([[-0.01, 0.01, 0.15], [0.03, 0.01, 0.15]]), measured=False)
    best = replace(told.prompts[0].objects[0], grasps=(grasp,))
    first = replace(told.prompts[0], objects=(best, *told.prompts[0].objects[1:]))
    return replace(told, prompts=(first, told.prompts[1]))


def wired(message):
    """The message after a journey as CDR bytes: its types and sizes are right."""
    return types().decode(types().encode(message), message.__msgtype__)


def options(**values):
    return types().new("semfield_ros/msg/QueryOptions", **values)


# ---- Answer.msg -----------------------------------------------------------------------------------------------


def test_answer_says_what_was_found(found):
    message = wired(answers.answer_message(found, found.scores.relevancy))
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (2, 250_000_000)
    assert message.header.frame_id == "map" and message.source == options().SOURCE_POINTS
    assert message.prompts == ["red", "blue"] and list(message.found) == [True, True]
    np.testing.assert_allclose(message.best_scores, [p.peak for p in found.prompts], rtol=1e-6)
    assert message.seen_fraction == pytest.approx((3 * 216 - 40) / (3 * 216))
    assert [o.id for o in message.objects] == [0, 1, 2] and message.cloud.width == 0
    scores = [o.score for o in message.objects]
    assert scores == sorted(scores, reverse=True)
    red = next(o for o in message.objects if o.prompt == "red" and o.centroid.x < 0.3)
    np.testing.assert_allclose([red.centroid.x, red.centroid.y, red.centroid.z], [0.01, 0.01, 0.11], atol=1e-6)
    np.testing.assert_allclose([red.box_size.x, red.box_size.y, red.box_size.z], 5 * VOXEL_M, atol=1e-6)
    assert red.observations == 6 and red.last_seen.sec == 2 and 0 < red.confidence <= 1
    grasp = red.grasps[0]
    assert (grasp.width, grasp.score) == (pytest.approx(0.04), pytest.approx(0.9))
    assert grasp.approach == grasp.APPROACH_TOP and not grasp.measured and grasp.contacts[1].x == pytest.approx(0.03)
    assert (grasp.header.frame_id, grasp.header.stamp.sec) == ("map", 2)
    q = grasp.pose.orientation
    np.testing.assert_allclose(abs(Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()[2, 2] + 1), 0, atol=1e-9)


def xyz(of):
    return np.array([of.x, of.y, of.z])


def test_a_grasp_says_from_where_and_where_to(found):
    config = replace(CONFIG, grasp=replace(CONFIG.grasp, standoff_m=0.12, retreat_m=0.07))
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("x", 150, degrees=True).as_matrix()  # obliquely, z forwards and down
    T[:3, 3] = [0.01, 0.01, 0.12]
    thing = found.prompts[0].objects[0]
    ends = np.tile(T[:3, 3] - 0.02 * T[:3, 2], (2, 1))
    slanted = replace(thing.grasps[0], T_world_gripper=T, width_m=0.04, contacts=ends)
    best = replace(found.prompts[0], objects=(replace(thing, grasps=(slanted,)),))
    told = replace(found, prompts=(best,))
    grasp = wired(answers.answer_message(told, found.scores.relevancy[:, :1], config=config)).objects[0].grasps[0]
    approach = np.array([0.0, -0.5, -np.sqrt(3) / 2])
    np.testing.assert_allclose(xyz(grasp.approach_direction), approach, atol=1e-9)
    np.testing.assert_allclose(xyz(grasp.pregrasp.position), T[:3, 3] - 0.12 * approach, atol=1e-9)
    np.testing.assert_allclose(xyz(grasp.retreat.position), T[:3, 3] + [0, 0, 0.07], atol=1e-9)
    np.testing.assert_allclose(xyz(grasp.retreat_direction), [0, 0, 1])
    assert grasp.pose.orientation == grasp.pregrasp.orientation == grasp.retreat.orientation
    assert grasp.opening == pytest.approx(0.04 + 2 * config.gripper.clearance_m) and grasp.depth == pytest.approx(0.02)
    narrow = replace(config, gripper=replace(config.gripper, max_width_m=0.045, clearance_m=0.004))
    message = answers.answer_message(told, found.scores.relevancy[:, :1], config=narrow)
    assert message.objects[0].grasps[0].opening == pytest.approx(0.045)


def test_an_object_without_grasps_says_why_and_only_if_they_were_asked_for(found):
    thing = replace(found.prompts[0].objects[0], grasps=(), rejected={"out of reach": 2, "too wide": 30})
    told = replace(found, prompts=(replace(found.prompts[0], objects=(thing,)),))
    scores = found.scores.relevancy[:, :1]
    message = wired(answers.answer_message(told, scores, with_grasps=True)).objects[0]
    assert message.rejected_reasons == ["too wide", "out of reach"] and list(message.rejected_counts) == [30, 2]
    assert message.why_no_grasps == "too wide (30), out of reach (2)"
    bare = replace(told, prompts=(replace(told.prompts[0], objects=(replace(thing, rejected={}),)),))
    assert wired(answers.answer_message(bare, scores)).objects[0].why_no_grasps == ""
    assert wired(answers.answer_message(bare, scores, with_grasps=True)).objects[0].why_no_grasps != ""
    best = next(o for o in answers.answer_message(found, found.scores.relevancy, with_grasps=True).objects if o.grasps)
    assert best.why_no_grasps == ""
    assert [in_words(one) for one in (best, message)] == ["1: 0.90 from top, 40 mm wide", message.why_no_grasps]


def test_a_part_comes_with_its_own_cloud_and_place(found):
    thing = found.prompts[0].objects[0]
    rows = thing.rows[found.cloud.points[thing.rows, 2] > thing.centroid[2]]
    part = ObjectPart("lid", 0.75, rows)
    handled = replace(found.prompts[0], objects=(replace(thing, part=part),), part="lid")
    told = replace(found, prompts=(handled, replace(found.prompts[1], part="stem")))
    message = wired(answers.answer_message(told, found.scores.relevancy, with_object_clouds=True, config=CONFIG))
    assert message.parts == ["lid", "stem"] and list(message.parts_found) == [True, False]
    first = next(o for o in message.objects if o.prompt == "red")
    assert first.part == "lid" and first.part_score == pytest.approx(0.75)
    np.testing.assert_allclose(xyz(first.part_centroid), found.cloud.points[rows].mean(0), atol=1e-6)
    channels = from_cloud(first.part_cloud)
    np.testing.assert_array_equal(np.stack([channels[c] for c in "xyz"], -1), found.cloud.points[rows])
    other = next(o for o in message.objects if o.prompt == "blue")
    assert other.part == "" and np.isnan(other.part_score) and np.isnan(xyz(other.part_centroid)).all()
    assert other.part_cloud.width == 0
    # what a robot hears is a whole scene again, held at the part alone
    scene = scene_of(first)
    np.testing.assert_allclose(scene.target, found.cloud.points[rows])
    np.testing.assert_allclose(scene.own, thing.cloud.points)
    np.testing.assert_array_equal(scene.own_rgb, thing.cloud.rgb)
    ours = grasp_scene(found.cloud, thing, CONFIG.objects, CONFIG.gripper)
    assert len(scene.surroundings) >= len(ours.surroundings)
    with pytest.raises(QueryError, match="with_object_clouds"):
        scene_of(answers.answer_message(told, found.scores.relevancy, config=CONFIG).objects[0])


def test_frames_of_an_answer(found):
    things = answers.ranked(found)
    frames = frames_of(things, "robot/semfield", CONFIG)
    place = next(k for k, thing in enumerate(things) if thing.grasps)
    name = f"robot/semfield/grasp_{place}"
    grasped = {name, f"{name}_pregrasp", f"{name}_retreat"}
    assert set(frames) == {f"robot/semfield/object_{k}" for k in range(3)} | grasped
    np.testing.assert_allclose(frames["robot/semfield/object_1"], things[1].box.T_world_box)
    # 0.1 m back along its approach from above is 0.1 m up
    np.testing.assert_allclose(frames[f"{name}_pregrasp"][:3, 3], frames[name][:3, 3] + [0, 0, CONFIG.grasp.standoff_m])
    assert len(frames_of(things * 20, "s", CONFIG)) <= 4 * MAX_OBJECTS
    message = wired(frames_message(frames, header_of(2.25, "map")))
    assert {t.child_frame_id for t in message.transforms} == set(frames)
    assert all(t.header.frame_id == "map" for t in message.transforms)
    for t in message.transforms:
        np.testing.assert_allclose(matrix_of_transform(t.transform), frames[t.child_frame_id], atol=1e-9)


def test_objects_of_several_prompts_are_merged_by_score_and_keep_their_order(found):
    def scored(*values):
        things = tuple(replace(found.prompts[0].objects[0], score=v) for v in values)
        return replace(found.prompts[0], objects=things)

    told = replace(found, prompts=(scored(0.8, 0.9), scored(0.85, 0.1)))
    assert [o.score for o in answers.ranked(told)] == [0.85, 0.8, 0.9, 0.1]


def test_scored_cloud_has_every_channel(found, snapshot):
    channels = from_cloud(wired(answers.answer_message(found, found.scores.relevancy, with_cloud=True)).cloud)
    assert list(channels) == ["x", "y", "z", "rgb", "seen", "confidence", "relevancy_0", "relevancy_1"]
    np.testing.assert_array_equal(np.stack([channels[c] for c in "xyz"], -1), snapshot.cloud.points)
    np.testing.assert_array_equal(unpack_rgb(channels["rgb"]), snapshot.cloud.rgb)
    np.testing.assert_array_equal(channels["seen"].astype(bool), snapshot.measured)
    np.testing.assert_allclose(channels["confidence"], 6 / 8)
    np.testing.assert_array_equal(channels["relevancy_1"], found.scores.relevancy[:, 1])


def test_object_clouds_come_with_surroundings_and_view_points(snapshot, texts):
    told = answer(snapshot, texts, "blue", config=CONFIG, grasps=False)
    camera = Camera(80, 60, 70.0, 70.0, 39.5, 29.5)
    at = {"before": [1.0, 0.3, 0.5], "behind": [-1.0, 0.3, 0.5], "far": [9.0, 0.3, 0.5]}
    poses = [look_at(eye, [0.01, 0.51, 0.11]) for eye in at.values()]
    poses.append(look_at(at["before"], [2.0, 0.3, 0.5]))  # looks away
    frames = [Keyframe(k, k, 0.0, camera, T) for k, T in enumerate(poses)]
    message = wired(
        answers.answer_message(
            told, told.scores.relevancy, with_object_clouds=True, config=CONFIG, keyframes=frames
        )
    ).objects[0]  # fmt: skip
    own = from_cloud(message.cloud)
    assert list(own) == ["x", "y", "z", "rgb", "normal_x", "normal_y", "normal_z"] and (own["normal_x"] == 1).all()
    around = from_cloud(message.surroundings)
    mine = {tuple(p) for p in np.stack([own[c] for c in "xyz"], -1)}
    assert not mine & {tuple(p) for p in np.stack([around[c] for c in "xyz"], -1)}
    assert len(around["x"]) >= 40  # its voxels without features are not its own, but in the way
    assert around["y"].min() > 0.2  # the red blocks are out of reach
    assert [(p.x, p.y, p.z) for p in message.view_points] == [tuple(at["before"])]


def test_nothing_seen_is_nan_not_minus_infinity(snapshot, texts):
    unseen = replace(snapshot, measured=np.zeros(len(snapshot.cloud), bool))
    told = answer(unseen, texts, "red", config=CONFIG)
    message = wired(answers.answer_message(told, told.scores.relevancy, with_cloud=True))
    assert np.isnan(message.best_scores).all() and not message.found.any() and message.seen_fraction == 0


# ---- topics ---------------------------------------------------------------------------------------------------


def test_detections_name_the_prompt_and_the_box(found):
    message = wired(answers.detections(found))
    assert [d.id for d in message.detections] == ["0", "1", "2"]
    first = message.detections[0]
    thing = answers.ranked(found)[0]
    assert first.results[0].hypothesis.class_id == thing.prompt
    assert first.results[0].hypothesis.score == pytest.approx(thing.score)
    centre = first.bbox.center.position
    np.testing.assert_allclose([centre.x, centre.y, centre.z], thing.box.centre)
    np.testing.assert_allclose([first.bbox.size.x, first.bbox.size.z], 2 * thing.box.half_extents[[0, 2]])


def test_markers_delete_the_old_ones_first_and_draw_boxes_labels_and_grippers(found):
    shown = wired(answers.markers(found, CONFIG.gripper)).markers
    assert shown[0].action == shown[0].DELETEALL
    by_kind = {ns: [m for m in shown if m.ns == ns] for ns in ("boxes", "labels", "grasps")}
    assert [len(by_kind[ns]) for ns in by_kind] == [3, 3, 1]
    assert len({(m.ns, m.id) for m in shown[1:]}) == len(shown) - 1
    things = answers.ranked(found)
    for thing, box, label in zip(things, by_kind["boxes"], by_kind["labels"]):
        ends = np.array([[p.x, p.y, p.z] for p in box.points])
        assert box.type == box.LINE_LIST and len(ends) == 24
        edges = np.sort(np.linalg.norm(ends[::2] - ends[1::2], axis=1))
        np.testing.assert_allclose(edges, np.sort(np.repeat(2 * thing.box.half_extents, 4)), atol=1e-9)
        assert label.type == label.TEXT_VIEW_FACING and label.text.startswith(thing.prompt)
        assert label.pose.position.z > ends[:, 2].max()
    assert all(m.color.a == 1 and m.lifetime.sec == m.lifetime.nanosec == 0 for m in shown[1:])
    gripper = np.array([[p.x, p.y, p.z] for p in by_kind["grasps"][0].points])
    assert gripper[:, 2].max() > 0.17  # it comes from above


def test_grasps_of_the_best_object_come_first(found):
    T = np.eye(4)
    worse = replace(found.prompts[0].objects[0].grasps[0], score=0.1, T_world_gripper=T)
    things = answers.ranked(found)
    told = replace(found.prompts[0], objects=tuple(replace(o, grasps=(worse,)) for o in things[:1]))
    poses = wired(answers.grasps(replace(found, prompts=(found.prompts[0], told)))).poses
    assert len(poses) == 2
    assert len(wired(answers.grasps(found)).poses) == 1


def test_relevancy_cloud_has_the_maximum_and_glows_where_it_matches(found, snapshot):
    rows = np.arange(0, len(snapshot.cloud), 2)
    channels = from_cloud(wired(answers.relevancy_cloud(found, found.scores.relevancy, rows)))
    scores = found.scores.relevancy[rows]
    np.testing.assert_array_equal(channels["relevancy"], scores.max(1))
    np.testing.assert_array_equal(channels["relevancy_0"], scores[:, 0])
    colours = unpack_rgb(channels["rgb"]).astype(int)
    unseen = ~snapshot.measured[rows]
    assert colours[scores.max(1) > 0.9].max(1).min() > colours[unseen].max(1).max()


def test_an_empty_answer_makes_valid_messages(texts, snapshot):
    nothing = replace(snapshot, cloud=SurfaceCloud.empty(), features=snapshot.features[:0], keys=snapshot.keys[:0],
                      measured=np.zeros(0, bool), created_step=np.zeros(0, np.int64), stamp_s=float("nan"))  # fmt: skip
    told = answer(nothing, texts, "red", config=CONFIG)
    for message in (
        answers.answer_message(told, told.scores.relevancy, with_cloud=True, with_object_clouds=True),
        answers.relevancy_cloud(told, told.scores.relevancy),
        answers.detections(told), answers.grasps(told),
    ):  # fmt: skip
        assert wired(message).header.stamp.sec == 0
    assert len(answers.markers(told, CONFIG.gripper).markers) == 1


def test_status_adds_up():
    status = EngineStatus(
        MappingStatus(frames=20, keyframes=5, steps=100, voxels=7, losses={"rgb": 0.5, "sdf": 0.25}),
        submitted=28, used=6, skipped=14, dropped={"queue_full": 3, "reset": 1, "depth_empty": 2, "encoder_behind": 4},
        frames_waiting=2, encoder_waiting=0, train_s=1.0, encode_s=1.0,
    )  # fmt: skip
    message = wired(
        answers.status_message(
            status, stamp_s=1.5, global_frame="map", rejected={"pose_missing": 5, "depth_empty": 1}
        )
    )
    assert (message.frames_used, message.frames_skipped, message.frames_dropped) == (6, 14, 4)
    assert dict(zip(message.rejected_reasons, message.rejected_counts)) == {"depth_empty": 3, "pose_missing": 5}
    assert message.frames_in == 6 + 14 + 4 + 8 + 2 and message.features_dropped == 4
    assert message.loss == pytest.approx(0.75) and message.state == message.STATE_RUNNING
    assert answers.status_message(status, stamp_s=1.5, global_frame="map", rejected={},
                                  paused=True, failed=True).state == message.STATE_FAILED  # fmt: skip


# ---- questions ------------------------------------------------------------------------------------------------


def test_zero_options_are_as_configured(snapshot, texts):
    question = ask_words(["red"], options(), CONFIG)
    assert {k: v for k, v in question.options.items() if v is not None} == {"grasps": False}
    assert question.score(CONFIG) == "relevancy"
    told = answer(snapshot, texts, list(question.prompts), config=CONFIG, **question.options)
    assert (told.no_match, told.high) == (CALIBRATED.no_match, CALIBRATED.high)


def test_options_in_the_engines_words():
    new, point = types().new, "geometry_msgs/msg/Point"
    question = ask_words(
        ["red", "blue"],
        options(
            negatives=["table"], source=2, score=2, threshold_mode=3, threshold=0.5, threshold_low=0.25,
            use_region=True, region_min=new(point, x=-1.0), region_max=new(point, x=1.0, y=2.0, z=3.0),
            max_objects=4, with_grasps=True,
        ),
        CONFIG,
    )  # fmt: skip
    assert question.prompts == ("red", "blue")
    assert question.options == {
        "negatives": ["table"], "source": "field", "score": "cosine", "no_match": 0.5, "high": 0.5, "low": 0.25,
        "region": [[-1.0, 0.0, 0.0], [1.0, 2.0, 3.0]], "max_objects": 4, "grasps": True,
    }  # fmt: skip
    absolute = thresholds(options(threshold_mode=1, threshold=0.5), "relevancy")
    assert absolute == {"no_match": 0.5, "high": 0.5, "low": 0.5}
    assert thresholds(options(threshold_mode=2, threshold=25), "relevancy") == {"top_percent": 25}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"score": 9}, "score is 9; allowed: 0, 1, 2"),
        ({"source": 6}, "source is 6"),
        ({"threshold_mode": 7}, "threshold_mode is 7"),
        ({"threshold_mode": 1, "threshold": float("nan")}, "threshold is nan; allowed: 0 to 1"),
        ({"threshold_mode": 1, "threshold": float("inf")}, "threshold is inf"),
        ({"threshold_mode": 1, "threshold": -0.5}, "allowed: 0 to 1, the range of relevancy"),
        ({"threshold_mode": 1, "threshold": -1.5, "score": 2}, "allowed: -1 to 1, the range of cosine"),
        ({"threshold_mode": 2, "threshold": 0.0}, "0 < threshold <= 100"),
        ({"threshold_mode": 2, "threshold": float("nan")}, "0 < threshold <= 100"),
        ({"threshold_mode": 3, "threshold": 0.5, "threshold_low": float("nan")}, "threshold_low is nan"),
        ({"threshold_mode": 3, "threshold": 0.5, "threshold_low": 0.75}, "threshold_low <= threshold"),
        ({"score": 2}, "no calibrated thresholds"),
        ({"max_objects": 4_000_000_000}, "max_objects is 4000000000; allowed: up to 200"),
        ({"max_objects": 200, "with_grasps": True}, "ask for fewer prompts"),
    ],
)
def test_unusable_options_are_refused(values, words):
    with pytest.raises(QueryError, match=words):
        ask_words(["red"] * 10, options(**values), CONFIG)


def test_a_click_finds_the_same_elsewhere_and_not_the_other(snapshot, texts):
    features = prompts_like(snapshot, snapshot.cloud.points[0])
    question = ask_like(snapshot, features, options(), CONFIG)
    told = answer(snapshot, texts, question.prompts, config=CONFIG, **question.options)
    assert sorted(round(float(o.centroid[0]), 2) for o in told.objects) == [0.01, 0.51]
    assert all(o.centroid[1] < 0.3 for o in told.objects) and question.scores(told, CONFIG) is told.scores.cosine
    with pytest.raises(QueryError, match="a place has no negatives"):
        ask_like(snapshot, features, options(score=1), CONFIG)
    strict = ask_like(snapshot, features, options(threshold_mode=1, threshold=0.875), CONFIG)
    assert strict.options["high"] == 0.875


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("levels", [(0.3, 0.3), (0.1, 0.45)])
def test_likeness_parts_the_like_from_the_rest_whatever_their_share(share, levels):
    rng = np.random.default_rng(0)
    alike = rng.random(20_000) < share
    rest = rng.normal(rng.choice(levels, 20_000), 0.06)
    cosines = np.where(alike, rng.normal(0.93, 0.02, 20_000), rest).clip(-1, 1)
    threshold = likeness_threshold(cosines)
    assert ((cosines >= threshold) == alike).mean() > 0.995


def test_likeness_of_degenerate_maps():
    assert likeness_threshold(np.zeros(0)) == 1.0
    assert likeness_threshold(np.full(5, 0.7)) == pytest.approx(0.7)
    assert likeness_threshold(np.array([0.2])) == pytest.approx(0.2)


# ---- labels and colours ---------------------------------------------------------------------------------------


def test_instances_are_the_separate_things_of_a_class(snapshot):
    cloud = snapshot.cloud
    label = np.where(cloud.points[:, 1] > 0.3, 1, 0).astype(np.int32)
    label[~snapshot.measured] = -1
    number = instances(cloud, label, ObjectConfig(radius_m=0.04))
    assert set(number[label == -1]) == {0} and set(number[label == 1]) == {3}
    left = cloud.points[:, 0] < 0.3
    assert {len(set(number[(label == 0) & side])) for side in (left, ~left)} == {1} and set(number) == {0, 1, 2, 3}


def test_islands_agree_with_a_tree_of_neighbours():
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(3)
    centres = rng.uniform(-1, 1, (12, 3))[rng.integers(12, size=2000)]
    points = rng.normal(centres, 0.05).astype(np.float32)
    groups = islands(points, 0.1)
    assert sorted(np.concatenate(groups)) == list(range(2000))
    # touching cells are at most two cell diagonals wide, and everything within one cell's edge touches
    label = np.empty(2000, int)
    for number, rows in enumerate(groups):
        label[rows] = number
    pairs = cKDTree(points).query_pairs(0.1, output_type="ndarray")
    assert (label[pairs[:, 0]] == label[pairs[:, 1]]).all()
    wide = cKDTree(points).sparse_distance_matrix(cKDTree(points), 0.1 * 2 * 3**0.5)
    assert len(groups) >= connected_components(wide)[0] > 1


def test_colours_are_distinct_and_do_not_depend_on_how_many_there_are():
    first = np.array([class_colour(k) for k in range(20)], int)
    apart = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(20, dtype=int)
    assert apart.min() > 40
    np.testing.assert_array_equal(colour_labels(np.array([3, -1, 0])), [class_colour(3), NONE, class_colour(0)])
    assert colour_labels(np.zeros(0, int)).shape == (0, 3)


def test_feature_colours_stay_until_the_map_has_doubled(snapshot):
    painter = FeaturePainter()
    noise = np.random.default_rng(1).normal(size=snapshot.features.shape).astype(np.float16)
    snapshot = replace(snapshot, features=noise)
    view = np.zeros((2, 3, snapshot.features.shape[1]), np.float32)
    view[:, 1:] = np.random.default_rng(0).normal(size=view[:, 1:].shape)
    depth = np.ones((2, 3))
    depth[0, 0] = 0
    half = snapshot.measured & (np.arange(len(snapshot.cloud)) % 3 > 0)
    before = painter.paint(replace(snapshot, measured=half), view, depth)
    np.testing.assert_array_equal(painter.paint(snapshot, view, depth), before)
    np.testing.assert_array_equal(painter.paint(snapshot, 5 * view, depth), before)  # their length says nothing
    assert (before[:, 1] != before[:, 2]).any()
    few = snapshot.measured & (np.arange(len(snapshot.cloud)) % 3 == 0)
    assert (painter.paint(replace(snapshot, measured=few), view, depth) != before).any()  # another map
