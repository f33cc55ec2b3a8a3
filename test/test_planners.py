"""Other people's planners: what they are handed and what they answer, against poses made by hand; one's own planner by
name; and planners that break."""

import importlib
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from semfield_ros.cloud import SurfaceCloud
from semfield_ros.config import GraspConfig, GripperConfig, ObjectConfig, SemfieldConfig
from semfield_ros.errors import ConfigError, QueryError
from semfield_ros.frame import Frame
from semfield_ros.geometry import Camera, invert, look_at, project, rigid_error, transform_points
from semfield_ros.messages.poses import header_of
from semfield_ros.node.grasp_messages import candidate
from semfield_ros.objects import Grasp, GraspPlan, GraspScene, reasons, with_grasps
from semfield_ros.objects.grasping import planner_of
from semfield_ros.objects.objects import find_objects
from semfield_ros.objects.planned import FAILED, UNUSABLE, failures, planned
from semfield_ros.planners import (
    anygrasp,
    contact_graspnet,
    foreign_plan,
    gpd,
    grasp_at,
    moveit,
    point_masks,
    view_of,
)

UP = np.array([0.0, 0.0, 1.0])
GRIPPER, CONFIG = GripperConfig(), GraspConfig()
WIDTH_M = 0.04
MIDDLE = np.array([0.3, -0.2, 0.03])
EYE = np.array([0.3, -0.6, 0.5])


def box_surface(low, high, step=0.005):
    """Points on the faces of a box and their outward normals, without its bottom."""
    axes = [np.arange(a, b + step / 2, step) for a, b in zip(low, high)]
    points, normals = [], []
    for axis in range(3):
        for side, at in ((-1, low[axis]), (1, high[axis])):
            if axis == 2 and side < 0:
                continue
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
            face = grid[np.abs(grid[:, axis] - at) < step / 3]
            points.append(face)
            normals.append(np.tile(side * np.eye(3)[axis], (len(face), 1)))
    return np.concatenate(points), np.concatenate(normals)


@pytest.fixture(scope="module")
def scene():
    """A box 4 cm wide along x, 10 cm along y, 6 cm high, on a table at z = 0; a camera before it."""
    half = np.array([WIDTH_M / 2, 0.05, 0.03])
    own, normals = box_surface(MIDDLE - half, MIDDLE + half)
    flat = np.stack(np.meshgrid(np.arange(0.1, 0.5, 0.01), np.arange(-0.4, 0.0, 0.01)), -1).reshape(-1, 2)
    table = np.column_stack([flat, np.zeros(len(flat))])
    return GraspScene(
        own, normals, np.full(own.shape, 51, np.uint8), np.arange(len(own)), table, UP, view_points=EYE[None]
    )


def top_down(tips_z=0.03, turn_deg=0.0, at=MIDDLE):
    """Our convention: z down, x turned about it from the world's x."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("z", turn_deg, degrees=True).as_matrix() @ np.diag([1.0, -1.0, -1.0])
    T[:3, 3] = [at[0], at[1], tips_z]
    return T


def grasp(T, width_m=WIDTH_M, score=0.7):
    tips = T[:3, 3]
    ends = np.stack([tips - width_m / 2 * T[:3, 0], tips + width_m / 2 * T[:3, 0]])
    return Grasp(T, width_m, score, "top", ends)


@pytest.fixture
def tilted():
    """A grasp with no axis along another's, and a camera that looks from aside."""
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_euler("xyz", [150, 20, 40], degrees=True).as_matrix(), [0.3, -0.2, 0.05]
    return grasp(T, score=0.8), look_at(EYE, MIDDLE)


# ---- conventions --------------------------------------------------------------------------------------------------


def test_gpd_hand_made_by_hand():
    """A hand whose base is 6 cm above the tips, from straight above, closing along the world's x."""
    T = gpd.poses_of([[0.3, -0.2, 0.09]], [[0, 0, -1]], [[1, 0, 0]], hand_depth_m=0.06)
    np.testing.assert_allclose(T[0], top_down(tips_z=0.03), atol=1e-12)


def test_gpd_there_and_back(tilted):
    ours, _ = tilted
    hand = gpd.hand_of(ours, hand_depth_m=0.07)
    # R = [approach binormal axis] is right-handed, as GraspConfig.msg says
    np.testing.assert_allclose(np.cross(hand["approach"], hand["binormal"]), hand["axis"], atol=1e-12)
    back = gpd.poses_of(hand["position"], hand["approach"], hand["binormal"], hand_depth_m=0.07)
    np.testing.assert_allclose(back[0], ours.T_world_gripper, atol=1e-12)


def test_gpd_scores_keep_their_order_and_are_probabilities():
    scores = gpd.scores_of(np.array([-2000.0, -1.0, 0.0, 3.0, 2000.0]))
    assert (np.diff(scores) > 0).all() and scores[2] == 0.5 and 0 <= scores[0] and scores[-1] <= 1


def test_anygrasp_row_made_by_hand():
    """Camera at the world's origin, looking along the world's z: the camera frame is the world's. Approach along z,
    closing along x: columns z, x, y. The tips are 2 cm beyond the translation."""
    row = np.array([0.9, 0.08, 0.02, 0.02, *np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]).ravel(), 0.1, 0.2, 0.5, -1])
    T = anygrasp.poses_of(row[None], np.eye(4))[0]
    np.testing.assert_allclose(T[:3, :3], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(T[:3, 3], [0.1, 0.2, 0.52])
    assert anygrasp.scores_of(row[None]) == [0.9] and anygrasp.openings_of(row[None]) == [0.08]


def test_anygrasp_there_and_back(tilted):
    ours, T_world_camera = tilted
    row = anygrasp.row_of(ours, 0.06, T_world_camera, depth_m=0.03)
    assert row.shape == (17,) and row[1] == 0.06 and row[3] == 0.03
    rotation = row[4:13].reshape(3, 3)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(anygrasp.poses_of(row[None], T_world_camera)[0], ours.T_world_gripper, atol=1e-12)


@pytest.mark.parametrize("shape", [(17,), (3, 16), (0,)])
def test_a_grasp_group_of_another_form_is_refused(shape):
    with pytest.raises(QueryError, match="17"):
        anygrasp.poses_of(np.zeros(shape), np.eye(4))


def test_contact_graspnet_pose_as_its_paper_builds_it(tilted):
    """Section III-A: t = c + w/2 b - d a, R = [b, a x b, a], d = 0.1034 m to the Panda's base."""
    ours, T_world_camera = tilted
    contact, other = transform_points(invert(T_world_camera), ours.contacts)
    b = (other - contact) / np.linalg.norm(other - contact)
    a = invert(T_world_camera)[:3, :3] @ ours.T_world_gripper[:3, 2]
    theirs = np.eye(4)
    theirs[:3, :3] = np.stack([b, np.cross(a, b), a], axis=1)
    theirs[:3, 3] = contact + WIDTH_M / 2 * b - 0.1034 * a
    np.testing.assert_allclose(contact_graspnet.hand_pose_of(ours, T_world_camera), theirs, atol=1e-9)
    before = theirs.copy()
    back = contact_graspnet.poses_of(theirs[None], T_world_camera)[0]
    np.testing.assert_allclose(back, ours.T_world_gripper, atol=1e-9)
    np.testing.assert_array_equal(theirs, before)


# ---- what they are handed -----------------------------------------------------------------------------------------


def test_gpd_takes_the_cloud_its_cameras_and_where_to_look(scene):
    part = np.arange(5, 40)
    two = replace(scene, target_rows=part, view_points=np.array([EYE, MIDDLE + [0, 0.5, 0.4]]))
    data = gpd.cloud_indexed(two)
    assert data.points.dtype == np.float32 and data.points.shape == data.normals.shape
    np.testing.assert_allclose(data.points[data.indices], scene.own[part], atol=1e-6)
    assert len(data.camera_source) == len(data.points) and set(data.camera_source) == {0, 1}
    rows = np.arange(len(scene.own))
    sides = np.abs(scene.own_normals[:, 1]) == 1  # the faces towards one camera and away from the other
    before = scene.own_normals[:, 1] < 0
    np.testing.assert_array_equal(data.camera_source[rows][sides], np.where(before, 0, 1)[sides])


def test_gpd_always_has_a_camera(scene):
    data = gpd.cloud_indexed(replace(scene, view_points=np.zeros((0, 3))))
    assert data.view_points.shape == (1, 3) and data.view_points[0, 2] > 0.4 and not data.camera_source.any()


@pytest.fixture
def package(monkeypatch):
    """Makes stand-ins for generated classes, which take fields by name."""

    def package(name, *kinds):
        module = ModuleType(f"{name}.msg")
        for kind in kinds:
            setattr(module, kind, lambda kind=kind, **fields: SimpleNamespace(kind=kind, **fields))
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, f"{name}.msg", module)

    return package


def test_gpd_messages_have_the_fields_of_gpd_ros(scene, package):
    package("gpd_ros", "CloudSources", "CloudIndexed")
    package("std_msgs", "Int64")
    package("sensor_msgs", "PointCloud2", "PointField")
    package("geometry_msgs", "Point")
    message = gpd.cloud_indexed_message(replace(scene, target_rows=np.array([3, 8])), "header")
    assert [index.data for index in message.indices] == [3, 8]
    sources = message.cloud_sources
    # gpd_ros takes given normals only from a cloud of exactly these six
    assert [f.name for f in sources.cloud.fields] == ["x", "y", "z", "normal_x", "normal_y", "normal_z"]
    assert sources.cloud.header == "header" and sources.cloud.width == len(sources.camera_source)
    table = np.frombuffer(bytes(sources.cloud.data), np.float32).reshape(-1, 6)
    np.testing.assert_allclose(table[: len(scene.own), :3], scene.own, atol=1e-6)
    np.testing.assert_allclose([[p.x, p.y, p.z] for p in sources.view_points], [EYE])


def test_without_gpd_ros_the_error_names_it(scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "gpd_ros", None)
    with pytest.raises(ConfigError, match="gpd_ros"):
        gpd.cloud_indexed_message(scene, None)


def test_moveit_grasps_have_the_fields_of_moveit_msgs(package):
    """A grasp of a Panda from above, closing along the world's x: its hand is 0.1034 m higher and turned by -90 degrees
    about the vertical, so that its y closes."""
    package("moveit_msgs", "Grasp", "GripperTranslation")
    package("geometry_msgs", "Point", "Pose", "PoseStamped", "Quaternion", "Vector3", "Vector3Stamped")
    package("std_msgs", "Header")
    package("builtin_interfaces", "Time")
    config = SemfieldConfig(grasp=replace(CONFIG, standoff_m=0.12, retreat_m=0.07))
    ours = candidate(grasp(top_down()), header_of(2.25, "map"), config)
    message = moveit.moveit_grasp(ours, moveit.PANDA_HAND, id="a", allowed_touch_objects=["b"])
    assert message.kind == "Grasp" and (message.id, message.allowed_touch_objects) == ("a", ["b"])
    assert not hasattr(message, "grasp_posture") and message.grasp_quality == pytest.approx(0.7)
    at = message.grasp_pose
    assert at.header.frame_id == "map" and (at.header.stamp.sec, at.header.stamp.nanosec) == (2, 250_000_000)
    p, q = at.pose.position, at.pose.orientation
    np.testing.assert_allclose([p.x, p.y, p.z], MIDDLE + [0, 0, 0.1034], atol=1e-9)
    hand = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    np.testing.assert_allclose(np.abs(hand[:, 1]), [1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(hand[:, 2], [0, 0, -1], atol=1e-9)
    way_in, way_out = message.pre_grasp_approach, message.post_grasp_retreat
    assert (way_in.direction.vector.z, way_out.direction.vector.z) == (-1, 1)
    assert way_in.direction.header.frame_id == way_out.direction.header.frame_id == "map"
    assert (way_in.desired_distance, way_out.desired_distance) == (pytest.approx(0.12), pytest.approx(0.07))
    assert 0 < way_in.min_distance < way_in.desired_distance


def test_without_moveit_msgs_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "moveit_msgs", None)
    with pytest.raises(ConfigError, match="moveit_msgs"):
        moveit.moveit_grasp(None, np.eye(4))


def test_anygrasp_takes_what_get_grasp_takes(scene):
    T = look_at(EYE, MIDDLE)
    given = anygrasp.get_grasp_input(scene, T, margin_m=0.02)
    assert given.points.dtype == given.colors.dtype == np.float32 and given.points.shape == given.colors.shape
    assert given.colors[0] == pytest.approx(0.2) and given.colors.min() >= 0 and given.colors.max() <= 1
    xmin, xmax, ymin, ymax, zmin, zmax = given.lims
    low, high = np.array([xmin, ymin, zmin]), np.array([xmax, ymax, zmax])
    inside = ((given.points >= low) & (given.points <= high)).all(1)
    assert inside[: len(scene.own)].all() and not inside.all() and (given.points[:, 2] > 0).all()
    # in optical axes: z is the distance of a camera that looks at it, the middle projects into the middle
    np.testing.assert_allclose((low + high)[:2] / 2, 0, atol=0.03)
    assert zmin < np.linalg.norm(EYE - MIDDLE) < zmax


@pytest.mark.parametrize("take", [anygrasp.get_grasp_input, contact_graspnet.cloud_input])
def test_what_lies_behind_the_camera_is_refused(scene, take):
    with pytest.raises(QueryError, match="in front of the camera"):
        take(scene, look_at(EYE, 2 * EYE - MIDDLE))


def test_contact_graspnet_takes_clouds_of_which_the_segment_is_a_part(scene):
    part = np.arange(30)
    cloud, segments = contact_graspnet.cloud_input(replace(scene, target_rows=part), look_at(EYE, MIDDLE))
    assert cloud.dtype == np.float32 and list(segments) == [1] and segments[1].shape == (30, 3)
    assert {tuple(p) for p in segments[1]} <= {tuple(p) for p in cloud}
    np.testing.assert_allclose(transform_points(look_at(EYE, MIDDLE), segments[1]), scene.own[part], atol=1e-5)


def test_contact_graspnet_takes_an_image_with_segments(scene, tmp_path):
    """Every point of box and table drawn into a small depth image; what comes back from the file is asked for."""
    camera, T = Camera(96, 72, 90.0, 90.0, 47.5, 35.5), look_at(EYE, MIDDLE)
    depth = np.zeros((72, 96), np.float32)
    truth = np.zeros((72, 96), int)
    for points, number in ((scene.surroundings, 0), (scene.own, 1)):
        u, v, z = project(camera, T, points)
        for column, row, far in zip(np.rint(u).astype(int), np.rint(v).astype(int), z):
            if 0 <= row < 72 and 0 <= column < 96 and (not depth[row, column] or far < depth[row, column]):
                depth[row, column], truth[row, column] = far, number
    frame = Frame(0.0, camera, T, np.zeros((72, 96, 3), np.uint8), depth)
    np.savez(tmp_path / "scene.npz", **contact_graspnet.depth_input(frame, [scene.own]))
    loaded = np.load(tmp_path / "scene.npz")
    assert {"depth", "K", "segmap", "rgb"} == set(loaded.files)
    np.testing.assert_array_equal(loaded["K"], [[90, 0, 47.5], [0, 90, 35.5], [0, 0, 1]])
    segmap = loaded["segmap"]
    assert not segmap[depth == 0].any() and (segmap[truth == 1] == 1).mean() > 0.95
    assert (segmap[truth == 0] == 0).mean() > 0.95  # but for the table right at the box


def test_masks_take_the_nearest_cloud_and_bear_empty_ones(scene):
    camera, T = Camera(8, 8, 8.0, 8.0, 3.5, 3.5), np.eye(4)
    frame = Frame(0.0, camera, T, np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 1.0, np.float32))
    left, right = np.array([[-0.25, 0.0, 1.0]]), np.array([[0.25, 0.0, 1.0]])
    ids = point_masks(frame, [left, np.zeros((0, 3)), right], within_m=2.0)
    assert (ids[:, :4] == 1).all() and (ids[:, 4:] == 3).all()
    assert not point_masks(frame, [], 1.0).any()


# ---- foreign poses as grasps --------------------------------------------------------------------------------------


def test_what_a_foreign_pose_holds_is_measured(scene):
    found = grasp_at(top_down(), 1.7, scene, GRIPPER)
    assert isinstance(found, Grasp)
    assert found.width_m == pytest.approx(WIDTH_M) and found.approach == "top" and found.score == 1.0
    np.testing.assert_allclose(np.sort(found.contacts[:, 0]), MIDDLE[0] + np.array([-1, 1]) * WIDTH_M / 2, atol=1e-9)
    assert found.contacts[0] @ found.T_world_gripper[:3, 0] < found.contacts[1] @ found.T_world_gripper[:3, 0]


@pytest.mark.parametrize(
    ("pose", "opening_m", "reason"),
    [
        (top_down(at=MIDDLE + [0.3, 0, 0]), 0.08, "nothing that was asked for"),
        (np.full((4, 4), np.nan), 0.08, "rigid"),
        (2 * np.eye(4), 0.08, "rigid"),
        (top_down(), 0.0, reasons.TOO_WIDE),
    ],
)
def test_why_a_foreign_pose_is_no_grasp(scene, pose, opening_m, reason):
    assert reason in grasp_at(pose, 0.5, scene, GRIPPER, opening_m=opening_m)


def test_foreign_plans_are_ranked_and_say_what_was_ruled_out(scene):
    through = np.eye(4)
    through[:3, :3] = np.stack([[1, 0, 0], [0, 0, -1], [0, 1, 0]], axis=1)
    through[:3, 3] = MIDDLE  # along y: the fingers are shorter than half the box
    scraping = through.copy()
    scraping[:3, 3] = [MIDDLE[0], MIDDLE[1] - 0.03, 0.005]  # 2 cm deep, with fingers 2 cm high
    elsewhere = top_down(at=MIDDLE + [1, 0, 0])
    poses = np.array([top_down(0.04), top_down(0.03), through, scraping, elsewhere])
    plan = foreign_plan(poses, [0.2, 0.9, 0.8, 0.7, 0.6], scene, GRIPPER, CONFIG)
    assert [g.score for g in plan.grasps] == [0.9, 0.2]
    nothing = "nothing that was asked for is between the fingers"
    assert plan.rejected == {reasons.FINGERS_HIT_OBJECT: 1, reasons.FINGERS_HIT: 1, nothing: 1}


def test_unseen_space_blocks_foreign_poses_unless_it_is_taken_for_free(scene):
    class Clearance:
        def distance(self, points):
            return np.ones(len(points), np.float32)

        def unknown(self, points):
            return points[:, 2] > 0.1

    dark = replace(scene, clearance=Clearance())
    assert foreign_plan(top_down()[None], [1], dark, GRIPPER, CONFIG).rejected == {reasons.UNSEEN: 1}
    assert foreign_plan(top_down()[None], [1], dark, GRIPPER, replace(CONFIG, unseen="free")).grasps


def test_a_view_is_made_up_where_no_camera_is_known(scene):
    for views in (scene.view_points, np.zeros((0, 3))):
        T = view_of(replace(scene, view_points=views))
        assert rigid_error(T) < 1e-9
        middle = transform_points(invert(T), scene.target).mean(0)
        np.testing.assert_allclose(middle[:2], 0, atol=1e-9)
        assert middle[2] > 0.3


# ---- one's own planner --------------------------------------------------------------------------------------------


def example(root, name, monkeypatch):
    """A module of examples/, importable by its name as with PYTHONPATH=examples."""
    monkeypatch.syspath_prepend(str(root / "examples"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def found(scene):
    """The box of the scene as an object of a scored cloud, and that cloud."""
    points = np.concatenate([scene.own, scene.surroundings]).astype(np.float32)
    normals = np.concatenate([scene.own_normals, np.tile(UP, (len(scene.surroundings), 1))]).astype(np.float32)
    n = len(points)
    rgb = np.concatenate([np.full((len(scene.own), 3), 200), np.full((n - len(scene.own), 3), 30)]).astype(np.uint8)
    cloud = SurfaceCloud(points, normals, rgb, np.full(n, 5, np.int32), np.zeros(n))
    score = np.where(np.arange(n) < len(scene.own), 0.9, 0.1)
    objects = find_objects(cloud, score, prompt="box", high=0.6, low=0.5)
    assert len(objects) == 1
    return objects, cloud


def ask(found, planner):
    return with_grasps(
        *found, objects_config=ObjectConfig(), gripper=GRIPPER, config=replace(CONFIG, planner=planner)
    )[0]


def test_the_example_planner_is_taken_by_its_name(root, found, monkeypatch):
    example(root, "top_down_planner", monkeypatch)
    thing = ask(found, "top_down_planner:TopDownPlanner")
    best = thing.grasps[0]
    assert best.approach == "top" and best.width_m == pytest.approx(WIDTH_M, abs=0.006)
    assert abs(best.T_world_gripper[0, 0]) > 0.95  # across the narrow side
    np.testing.assert_allclose(best.T_world_gripper[:2, 3], MIDDLE[:2], atol=0.01)


def test_the_contact_graspnet_example_takes_what_a_network_answers(root, scene, monkeypatch):
    """A stand-in network that knows the answer in its own frame and convention."""
    module = example(root, "contact_graspnet_planner", monkeypatch)
    handed = {}

    def network(pc_full, pc_segments):
        handed.update(full=pc_full, segments=pc_segments)
        T = view_of(scene)
        good, aside = (grasp(top_down(at=MIDDLE + offset)) for offset in ([0, 0, 0], [0.5, 0, 0]))
        poses = np.array([contact_graspnet.hand_pose_of(g, T) for g in (aside, good)])
        return {1: poses}, {1: np.array([0.9, 0.6])}, {1: np.zeros((2, 3))}, {1: np.array([0.08, 0.08])}

    plan = module.ContactGraspNet(network).plan(scene, GRIPPER, CONFIG)
    assert len(plan.grasps) == 1 and sum(plan.rejected.values()) == 1
    np.testing.assert_allclose(plan.grasps[0].T_world_gripper, top_down(), atol=1e-6)
    assert handed["full"].shape[1] == 3 and list(handed["segments"]) == [1]
    none = module.ContactGraspNet(lambda *_: ({}, {}, {}, {})).plan(scene, GRIPPER, CONFIG)
    assert not none.grasps and none.why_none


def test_a_planner_is_made_once(root, monkeypatch):
    example(root, "top_down_planner", monkeypatch)
    config = replace(CONFIG, planner="top_down_planner:TopDownPlanner")
    assert planner_of(config) is planner_of(config)


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere", "allowed: "), ("no_such_module:X", "no_such_module"), ("math:X", "X"), ("math:pi", "pi"),
     ("collections:Counter", "no method plan")],
)  # fmt: skip
def test_a_planner_that_is_none_is_told(name, words):
    with pytest.raises(ConfigError, match=words):
        planner_of(replace(CONFIG, planner=name))


def test_an_unknown_planner_is_a_reason_not_an_exception(found):
    thing = ask(found, "nowhere")
    (reason,) = thing.rejected
    assert thing.grasps == () and reason.startswith(f"{FAILED}: ConfigError: grasp.planner is 'nowhere'")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, FAILED),
        (SimpleNamespace(grasps=3, rejected={}), FAILED),
        (GraspPlan(("a grasp",)), "not Grasp"),
        (GraspPlan((grasp(np.full((4, 4), np.nan)),)), "not finite"),
        (GraspPlan((grasp(np.diag([1.0, 1, -1, 1])),)), "not rigid"),
        (GraspPlan((replace(grasp(np.eye(4)), T_world_gripper=np.eye(3)),)), "[4, 4]"),
        (GraspPlan((replace(grasp(np.eye(4)), contacts=np.zeros(3)),)), "[2, 3]"),
        (GraspPlan((replace(grasp(np.eye(4)), width_m=1.0),)), "gripper.max_width_m"),
        (GraspPlan((replace(grasp(np.eye(4)), score=float("nan")),)), "score"),
        (GraspPlan((replace(grasp(np.eye(4)), width_m="wide"),)), "numbers"),
        (GraspPlan((replace(grasp(np.eye(4)), approach="below"),)), "approach"),
    ],
)
def test_what_a_broken_planner_answers_is_never_handed_on(scene, answer, reason):
    plan = planned(lambda: SimpleNamespace(plan=lambda *_: answer), scene, GRIPPER, CONFIG)
    assert plan.grasps == () and reason in plan.why_none and failures(plan.rejected)


def test_a_planner_that_raises_is_a_reason_in_bounded_words(scene):
    def plan(*_):
        raise RuntimeError("no weights " * 1000)

    found = planned(lambda: SimpleNamespace(plan=plan), scene, GRIPPER, CONFIG)
    assert found.grasps == () and f"{FAILED}: RuntimeError: no weights" in found.why_none and len(found.why_none) < 300


def test_good_grasps_of_a_bad_planner_stay_best_first_with_its_own_reasons(scene):
    good = [grasp(top_down(), score=s) for s in (0.2, 0.9)]
    answer = GraspPlan((good[0], grasp(np.full((4, 4), np.nan)), good[1]), {reasons.TOO_WIDE: 4})
    plan = planned(lambda: SimpleNamespace(plan=lambda *_: answer), scene, GRIPPER, CONFIG)
    assert [g.score for g in plan.grasps] == [0.9, 0.2] and plan.rejected[reasons.TOO_WIDE] == 4
    assert list(failures(plan.rejected)) == [f"{UNUSABLE}: its pose or its contacts are not finite"]
