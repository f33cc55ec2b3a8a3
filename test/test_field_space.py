"""Surfaces and clearances from the field: a field whose signed distance is known exactly, and voxels that are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import mapped
from surface_shapes import box, sphere, table

from semfield_ros.cloud import SurfaceCloud
from semfield_ros.config import GraspConfig, GripperConfig
from semfield_ros.field.snapshot import TRUSTED_STEPS, Block, Snapshot
from semfield_ros.field.workspace import Workspace
from semfield_ros.geometry import Camera, look_at
from semfield_ros.memory.free_space import FreeSpace, SeenSpace, space_view
from semfield_ros.memory.keyframes import Keyframe
from semfield_ros.objects import reasons
from semfield_ros.objects.antipodal_planner import AntipodalPlanner
from semfield_ros.objects.field_space import FieldSpace, PointSpace, space_of
from semfield_ros.objects.grasps import GraspScene

CENTRE, RADIUS = np.array([0.0, 0.0, 0.05]), 0.03
CAMERA = Camera(160, 120, 140.0, 140.0, 79.5, 59.5)


class BallOnTable:
    """Stands for a trained field: the exact signed distance of a ball above the plane z = 0."""

    workspace = Workspace((0.0, 0.0, 0.0), 1.0)

    def parameters(self):
        yield torch.zeros(1)

    def distance_at(self, points):
        ball = (points - torch.tensor(CENTRE, dtype=torch.float32)).norm(dim=1) - RADIUS
        return torch.minimum(ball, points[:, 2])


def snapshot_of(points, normals, field=None, step=1000, created=0):
    cloud = SurfaceCloud(
        points.astype(np.float32), normals.astype(np.float32), np.zeros((len(points), 3), np.uint8),
        np.full(len(points), 9, np.int32), np.zeros(len(points)),
    )  # fmt: skip
    age = np.full(len(points), created)
    return Snapshot(
        0.0, 1, step, cloud, np.zeros((len(points), 1), np.float16), np.ones(len(points), bool), age,
        np.zeros(0, np.int64), 0.01, field, True,
    )  # fmt: skip


def noisy_ball(noise_m=0.0015):
    points, normals = sphere(CENTRE, RADIUS, 0.01)
    return points + np.random.default_rng(0).normal(0, noise_m, points.shape), normals


def test_the_surface_is_drawn_to_the_zero_level_and_denser_than_the_voxels():
    points, normals = noisy_ball()
    space = FieldSpace(snapshot_of(points, normals, BallOnTable()))
    found = space.surface(space.snapshot.cloud, np.arange(len(points)))
    off = np.abs(np.linalg.norm(found.points - CENTRE, axis=1) - RADIUS)
    before = np.abs(np.linalg.norm(points - CENTRE, axis=1) - RADIUS)
    assert len(found.points) > 3 * len(points)
    assert np.median(off) < 1e-4 < np.median(before) and np.percentile(off, 90) < 5e-4
    exact = (found.points - CENTRE) / np.linalg.norm(found.points - CENTRE, axis=1, keepdims=True)
    assert np.median((found.normals * exact).sum(1)) > 0.98
    np.testing.assert_allclose(np.linalg.norm(found.normals, axis=1), 1, atol=1e-5)
    assert np.linalg.norm(found.points - points[found.row], axis=1).max() < 0.012


def test_what_the_field_does_not_confirm_stays_as_measured():
    points, normals = box([0.2, 0.2, 0.2], [0.05] * 3, 0.01)  # nothing is there in the field
    space = FieldSpace(snapshot_of(points, normals, BallOnTable()))
    found = space.surface(space.snapshot.cloud, np.arange(len(points)))
    np.testing.assert_allclose(np.sort(found.points, axis=0), np.sort(points, axis=0), atol=1e-6)


def test_thin_walls_stay_as_measured():
    front, back = sphere(CENTRE, RADIUS, 0.01), sphere(CENTRE, RADIUS - 0.004, 0.01)
    points, normals = np.concatenate([front[0], back[0]]), np.concatenate([front[1], -back[1]])
    space = FieldSpace(snapshot_of(points, normals, BallOnTable()))
    found = space.surface(space.snapshot.cloud, np.arange(len(points)))
    assert len(found.points) == len(points)


def test_distances_are_the_fields_inside_its_workspace_and_the_points_elsewhere():
    points, normals = noisy_ball(0)
    space = FieldSpace(snapshot_of(points, normals, BallOnTable()))
    at = np.random.default_rng(1).uniform(-0.2, 0.2, (500, 3))
    exact = np.minimum(np.linalg.norm(at - CENTRE, axis=1) - RADIUS, at[:, 2])
    np.testing.assert_allclose(space.distance(at), exact, atol=1e-6)
    np.testing.assert_array_equal(space.distance(at), np.concatenate([space.distance(at[:7]), space.distance(at[7:])]))
    outside = np.array([[0.0, 0.0, 0.8]])
    np.testing.assert_allclose(space.distance(outside), PointSpace(space.snapshot).distance(outside))
    assert space.distance(np.zeros((0, 3))).shape == (0,)


def test_near_fresh_surface_the_points_are_asked():
    points, normals = noisy_ball(0)
    fresh = snapshot_of(points, normals, BallOnTable(), step=1000, created=1000 - TRUSTED_STEPS + 1)
    at = CENTRE + [[0.0, 0.0, 0.0335], [0.0, 0.0, 0.2]]
    np.testing.assert_allclose(FieldSpace(fresh).distance(at)[0], PointSpace(fresh).distance(at)[0])
    np.testing.assert_allclose(FieldSpace(fresh).distance(at)[1], 0.17, atol=1e-6)


def test_each_block_answers_for_its_own_space():
    points, normals = noisy_ball(0)
    ball = snapshot_of(points, normals, BallOnTable())
    empty = replace(ball, field=None)

    class Two(Snapshot):
        def blocks(self):
            yield Block(ball, np.full(3, -np.inf), np.array([0.0, np.inf, np.inf]))
            yield Block(empty, np.array([0.0, -np.inf, -np.inf]), np.full(3, np.inf))

    space = FieldSpace(Two(*(getattr(ball, name) for name in (
        "stamp_s", "frames", "step", "cloud", "features", "measured", "created_step", "keys", "voxel_size_m", "field",
        "language",
    ))))  # fmt: skip
    left, right = space.distance(np.array([[-0.1, 0.0, 0.05], [0.1, 0.0, 0.05]]))
    assert left == pytest.approx(0.05, abs=1e-6)  # the table is nearer than the ball
    assert right == pytest.approx(PointSpace(ball).distance(np.array([[0.1, 0.0, 0.05]]))[0])


def test_points_know_front_and_back():
    points, normals = table(0.1)
    space = PointSpace(snapshot_of(points, normals))
    above, below, far = space.distance(np.array([[0.0, 0, 0.012], [0, 0, -0.012], [0, 0, 3.0]]))
    assert above == pytest.approx(0.0131, abs=2e-3) and below < -0.01 and far == 1.0
    assert (PointSpace(snapshot_of(points[:0], normals[:0])).distance(points[:3]) == 1.0).all()


def test_the_source_is_chosen_by_the_configuration():
    points, normals = noisy_ball()
    trained, bare = snapshot_of(points, normals, BallOnTable()), snapshot_of(points, normals)
    assert isinstance(space_of(trained, GraspConfig()), FieldSpace)
    assert not isinstance(space_of(trained, GraspConfig(source="points")), FieldSpace)
    assert not isinstance(space_of(bare, GraspConfig(source="field")), FieldSpace)
    assert not isinstance(space_of(replace(trained, step=10), GraspConfig()), FieldSpace)


def keyframe(number, eye, target=(0.0, 0.0, 0.0)):
    return Keyframe(number, number, 0.0, CAMERA, look_at(np.array(eye), np.array(target)))


def wall_seen(number=0, depth_m=1.0):
    """A camera at the origin looks along +x at a wall `depth_m` away."""
    return space_view(keyframe(number, [0, 0, 0], [1, 0, 0]), np.full((120, 160), depth_m, np.float32))


def test_space_is_seen_up_to_the_surface_and_inside_the_image():
    seen = SeenSpace((wall_seen(),))
    at = np.array([[0.5, 0, 0], [0.99, 0.1, 0.1], [1.1, 0, 0], [-0.5, 0, 0], [0.5, 0.5, 0], [0.5, 0, -0.5]])
    assert seen.unknown(at).tolist() == [False, False, True, True, True, True]
    assert seen.views[0].depth_m.shape == (60, 80) and seen.bytes < 10_000
    # a second camera behind the wall has seen what the first has not
    behind = space_view(keyframe(1, [2, 0, 0], [1, 0, 0]), np.full((120, 160), 0.9, np.float32))
    assert SeenSpace((*seen.views, behind)).unknown(at[2:3]).tolist() == [False]


def test_a_coarse_pixel_claims_no_more_than_its_nearest_measurement():
    depth = np.full((120, 160), 2.0, np.float32)
    depth[::2, ::2] = 1.0  # one pixel of each block is near
    view = space_view(keyframe(0, [0, 0, 0], [1, 0, 0]), depth)
    assert (view.depth_m == 1).all()
    depth[:] = 0
    depth[::2, ::2] = 1.0  # a quarter was measured: an edge or a hole
    assert (space_view(keyframe(0, [0, 0, 0], [1, 0, 0]), depth).depth_m == 0).all()


def test_views_leave_with_their_keyframes_and_move_with_their_poses():
    space = FreeSpace()
    for number in range(3):
        space.add(wall_seen(number), {0, 1, 2})
    held = space.seen
    space.add(wall_seen(3), {2, 3})
    assert [v.keyframe for v in space.seen.views] == [2, 3] and len(held) == 3
    turned = look_at(np.zeros(3), np.array([-1.0, 0, 0]))
    space.replace_poses([(2, turned)])
    assert space.seen.unknown(np.array([[-0.5, 0, 0], [0.5, 0, 0]])).tolist() == [False, False]
    assert held.unknown(np.array([[-0.5, 0, 0]])).all()


def test_view_points_are_those_of_cameras_that_saw_it():
    seen = SeenSpace((wall_seen(0), space_view(keyframe(1, [1, 1, 0], [1, 2, 0]), np.full((120, 160), 1, np.float32))))
    np.testing.assert_allclose(seen.seeing(np.array([[1.0, 0, 0]])), [[0, 0, 0]])
    assert seen.seeing(np.zeros((0, 3))).shape == (0, 3)


class Space:
    """A clearance of two half spaces: x < `wall` is solid, y < `dark` is unseen."""

    def __init__(self, wall=-9.0, dark=-9.0):
        self.wall, self.dark = wall, dark

    def distance(self, points):
        return (points[:, 0] - self.wall).astype(np.float32)

    def unknown(self, points):
        return points[:, 1] < self.dark


def plan(clearance=None, **config):
    points, normals = box([0, 0, 0.025], [0.05] * 3, 0.005)
    rgb, rows = np.zeros((len(points), 3), np.uint8), np.arange(len(points))
    scene = GraspScene(points, normals, rgb, rows, table()[0], np.array([0, 0, 1.0]), clearance=clearance)
    return AntipodalPlanner().plan(scene, GripperConfig(), GraspConfig(**config))


def test_the_clearance_rules_out_what_the_points_do_not_show():
    def sides(found):
        return {"x" if abs(g.T_world_gripper[0, 0]) > 0.9 else "y" for g in found.grasps if g.approach == "top"}

    assert sides(plan()) == {"x", "y"}
    walled = plan(Space(wall=-0.032))
    assert sides(walled) == {"y"} and walled.rejected[reasons.IN_FIELD] > 0
    dark = plan(Space(dark=-0.026))
    assert sides(dark) == {"x"} and dark.rejected[reasons.UNSEEN] > 0
    assert sides(plan(Space(dark=-0.026), unseen="free")) == {"x", "y"}
    buried = plan(Space(wall=9.0))
    assert buried.grasps == () and reasons.IN_FIELD in buried.why_none


def test_reach_and_approach_are_limits():
    far = plan(reach_from=(0.0, 0.0, 2.0), reach_m=0.5)
    assert far.grasps == () and far.rejected[reasons.OUT_OF_REACH] > 0
    assert plan(reach_from=(0.0, 0.0, 0.5), reach_m=0.6).grasps
    steep = plan(max_approach_deg=20.0)
    assert steep.grasps and steep.rejected[reasons.FROM_BELOW] > 0
    assert all(g.T_world_gripper[2, 2] <= -np.cos(np.radians(20)) + 1e-9 for g in steep.grasps)


def test_a_map_remembers_what_its_keyframes_looked_through():
    mapping = mapped(6)
    seen = mapping.snapshot().seen_space
    assert len(seen) == len(mapping.remembered()) > 0
    eye, centre = seen.views[0].T_world_camera[:3, 3], mapping.snapshot().cloud.points.mean(0)
    between = eye + np.linspace(0.1, 0.6, 6)[:, None] * (centre - eye)
    assert not seen.unknown(between).any()
    assert seen.unknown(np.array([[0.0, 0.0, -5.0], [0.0, 0.0, 30.0]])).all()  # under the ground, above all cameras
    # what the replay kept makes nearly the same views again, as after loading a file
    mapping.recall_space()
    again = mapping.snapshot().seen_space
    at = np.random.default_rng(0).uniform([-0.5, -0.5, -0.2], [0.5, 0.5, 0.5], (2000, 3))
    assert (seen.unknown(at) == again.unknown(at)).mean() > 0.95
    # a corrected pose moves its view
    keyframe = mapping.remembered()[0]
    moved = keyframe.T_world_camera.copy()
    moved[:3, 3] += [5.0, 0, 0]
    assert mapping.correct_pose(keyframe.id, moved)
    np.testing.assert_allclose(mapping.snapshot().seen_space.centres()[0], moved[:3, 3])
    np.testing.assert_allclose(seen.centres()[0], keyframe.T_world_camera[:3, 3])
