"""Grasps by gradient: derivatives against differences, poses that find back, words and tasks that decide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from surface_shapes import box, cylinder, join, mug, sphere, table

torch = pytest.importorskip("torch")

from semfield_ros.config import GraspConfig, GripperConfig  # noqa: E402
from semfield_ros.errors import QueryError  # noqa: E402
from semfield_ros.objects.grasp_optimiser import (  # noqa: E402
    OptimisedPlanner,
    OptimiserSettings,
    descend,
    optimise,
    scene_grids,
)
from semfield_ros.objects.grasp_terms import Poses, SceneGrids, Terms, opened, placed, posed, rotation_of  # noqa: E402
from semfield_ros.objects.grasping import planner_of  # noqa: E402
from semfield_ros.objects.grasps import GraspScene  # noqa: E402
from semfield_ros.objects.local_grid import FAR_M, Nodes, nearest, signed_distance  # noqa: E402
from semfield_ros.objects.wish import Wish  # noqa: E402
from semfield_ros.query.tasks import TaskEmbedding, query_points  # noqa: E402

GRIPPER, CONFIG = GripperConfig(), GraspConfig()
UP = np.array([0.0, 0.0, 1.0])
FEW = OptimiserSettings(poses=96, keep=32, near_nodes=30_000, far_nodes=20_000, sense_nodes=15_000)


def scene_of(surface, surroundings=None, wish=None, rows=None):
    points, normals = surface
    rows = np.arange(len(points)) if rows is None else rows
    surroundings = table()[0] if surroundings is None else surroundings
    colours = np.zeros((len(points), 3), np.uint8)
    return GraspScene(points, normals, colours, rows, surroundings, UP, wish=wish)


def double(grids: SceneGrids) -> SceneGrids:
    moved_grids = {name: getattr(grids, name).moved("cpu", torch.float64) for name in ("near", "far")}
    asked = grids.asked
    if asked is not None:
        moved_grids["sense"] = grids.sense.moved("cpu", torch.float64)
        asked = replace(asked, around=asked.around.double(), points=asked.points.double(), codes=asked.codes.double())
    return replace(grids, **moved_grids, up=grids.up.double(), centroid=grids.centroid.double(), asked=asked)


def downward(middle, width, turn_deg=0.0, depth=0.01):
    """One pose from above whose closing axis is x, turned about the vertical."""
    R = Rotation.from_euler("zx", [turn_deg, 180], degrees=True).as_matrix()
    return Poses(*(torch.as_tensor(np.asarray(v)[None], dtype=torch.float32) for v in (R, middle, width, depth)))


def many(pose, changes):
    count = len(changes)
    start = Poses(*(v.expand(count, *v.shape[1:]) for v in vars(pose).values()))
    return posed(start, torch.as_tensor(changes, dtype=torch.float32))


def two_colours(points, directions):
    """Features: the first axis where x < 0, the second elsewhere; solid up to 1 cm above everything."""
    along = np.where(points[:, :1] < 0, directions[:, 0], directions[:, 1])
    return np.ones(len(points), np.float32), along.astype(np.float32)


def wavy(points, directions):
    """Smooth unit features of four dimensions."""
    f = np.stack([np.sin(20 * points[:, k % 3] + k) + 1.5 for k in range(4)], 1)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    return (0.5 + 0.4 * np.sin(30 * points[:, 2])).astype(np.float32), (f @ directions.T).astype(np.float32)


def test_a_grid_is_exact_for_linear_functions_and_passes_on_their_slope():
    nodes = Nodes.around(np.array([[0.0, 0, 0], [0.05, 0.04, 0.03]]), 0.01, 0.006, 10**6)
    slope = np.array([[1.0, -2, 3], [0.5, 4, 0]])
    grid = nodes.grid(nodes.points @ slope.T + 1).moved("cpu", torch.float64)
    x = torch.from_numpy(np.random.default_rng(0).uniform([-0.01] * 3, [0.06, 0.05, 0.04], (50, 3))).requires_grad_()
    found = grid.at(x)
    assert np.allclose(found.detach(), x.detach().numpy() @ slope.T + 1, atol=1e-5)
    for channel in (0, 1):
        (gradient,) = torch.autograd.grad(found[:, channel].sum(), x, retain_graph=True)
        assert np.allclose(gradient, slope[channel], atol=1e-3)
    outside = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(grid.at(outside)[:, 0].sum(), outside)
    assert gradient[0, 0] == 0 and abs(float(gradient[0, 1]) + 2) < 1e-3
    assert len(Nodes.around(nodes.points, 0.0, 0.001, 5000).points) < 8000


def test_rotations_are_scipys():
    vectors = np.random.default_rng(1).normal(size=(20, 3))
    vectors[0] = 0
    expected = Rotation.from_rotvec(vectors).as_matrix()
    assert np.allclose(rotation_of(torch.from_numpy(vectors)).numpy(), expected, atol=1e-9)


def test_distances_are_those_of_the_shape():
    rng = np.random.default_rng(0)
    points, normals = sphere(np.zeros(3), 0.03, 0.003)
    asked = rng.normal(size=(500, 3))
    asked *= rng.uniform(0.012, 0.055, (500, 1)) / np.linalg.norm(asked, axis=1, keepdims=True)
    distance, normal = signed_distance(points, normals, asked, 0.003)
    true = np.linalg.norm(asked, axis=1) - 0.03
    assert np.abs(distance - true).max() < 0.002
    assert ((normal * asked).sum(1) / np.linalg.norm(asked, axis=1)).min() > 0.97
    # beside a face's edge, in its plane, is outside
    points, normals = box([0, 0, 0.04], [0.06, 0.06, 0.08], 0.004)
    beside = np.array([[0.045, 0.0, 0.08], [0.0, 0.0, 0.1], [0.0, 0.0, 0.07]])
    assert np.allclose(signed_distance(points, normals, beside, 0.004)[0], [0.015, 0.02, -0.01], atol=0.005)
    assert signed_distance(points, normals, np.array([[1.0, 1, 1]]), 0.004)[0][0] == FAR_M


def test_both_sides_of_a_thin_wall_keep_their_normals():
    outer, inner = box([0, 0, 0.03], [0.004, 0.06, 0.06], 0.004, faces="+x"), box(
        [0, 0, 0.03], [0.004, 0.06, 0.06], 0.004, faces="-x"
    )
    points, normals = join(outer, inner)
    asked = np.array([[0.004, 0.0, 0.03], [-0.004, 0.0, 0.03]])
    distance, normal = signed_distance(points, normals, asked, 0.004)
    assert np.allclose(distance, 0.002, atol=1e-6) and np.allclose(normal[:, 0], [1, -1], atol=1e-6)


def test_nearest_is_the_same_by_tree_and_by_matrix():
    rng = np.random.default_rng(2)
    points, asked = rng.uniform(0, 0.1, (200, 3)), rng.uniform(-0.05, 0.15, (300, 3))
    tree, matrix = nearest(points, asked, 3), nearest(points, asked, 3, "cpu:0")
    assert np.allclose(tree[0], matrix[0], atol=1e-6) and (tree[1] == matrix[1]).mean() > 0.99
    assert (nearest(np.zeros((0, 3)), asked, 1)[0] == FAR_M).all()


def test_the_gradient_of_the_loss_is_its_difference():
    task = TaskEmbedding("t", query_points(20), np.random.default_rng(3).normal(size=(20, 4)).astype(np.float32), 1)
    wish = Wish(wavy, np.eye(4, dtype=np.float32)[:1], np.eye(4, dtype=np.float32)[1:2], task)
    scene = scene_of(mug(), wish=wish)
    grids = double(scene_grids(scene, GRIPPER, FEW))
    terms = Terms(grids, GRIPPER, replace(CONFIG, max_approach_deg=20))
    rng = np.random.default_rng(4)
    pose = downward([0.043, 0.0, 0.085], 0.006)
    start = Poses(*(v.double().expand(12, *v.shape[1:]) for v in vars(pose).values()))
    scale = np.array([0.004] * 3 + [0.4] * 3 + [0.002, 0.002])
    change = torch.from_numpy(rng.normal(size=(12, 8)) * scale).requires_grad_()
    loss = terms.loss(posed(start, change))
    assert set(terms(posed(start, change))) >= {"contact", "opposed", "free", "language", "task", "approach"}
    (gradient,) = torch.autograd.grad(loss.sum(), change)
    step = 1e-7
    for k in range(8):
        shift = torch.zeros(8, dtype=torch.float64)
        shift[k] = step
        up, down = (terms.loss(posed(start, change.detach() + s * shift)) for s in (1, -1))
        difference = (up - down) / (2 * step)
        # between cells the slope jumps: a difference across such a face is no derivative
        agree = np.isclose(difference.numpy(), gradient[:, k].numpy(), rtol=1e-3, atol=1e-3)
        assert agree.mean() > 0.9, k


def test_poses_off_a_box_come_back():
    scene = scene_of(box([0, 0, 0.04], [0.05, 0.09, 0.08], 0.004))
    terms = Terms(scene_grids(scene, GRIPPER, FEW), GRIPPER, CONFIG)
    rng = np.random.default_rng(5)
    shift, turn = rng.normal(size=(2, 40, 3))
    shift *= 0.008 / np.linalg.norm(shift, axis=1, keepdims=True)
    turn *= np.deg2rad(15) / np.linalg.norm(turn, axis=1, keepdims=True)
    off = np.column_stack([shift, turn, rng.uniform(-0.006, 0.006, 40), np.zeros(40)])
    start = many(downward([0, 0, 0.07], 0.05), off)
    run = descend(terms, start, replace(FEW, keep=40, steps=60))
    assert len(run.end.width) == 40 and (run.end_loss < run.start_loss).all()
    angle = np.degrees(np.arccos(run.end.rotation[:, 0, 0].abs().clamp(max=1).numpy()))
    good = (angle < 3) & (np.abs(run.end.width.numpy() - 0.05) < 0.001) & (run.end.middle[:, 0].abs().numpy() < 0.001)
    assert good.mean() >= 0.95
    assert good.mean() > ((np.degrees(np.arccos(start.rotation[:, 0, 0].abs().clamp(max=1).numpy())) < 3).mean()) + 0.5


def test_poses_off_a_cylinder_come_back_through_its_axis():
    scene = scene_of(cylinder(0.03, 0.1, 0.004))
    terms = Terms(scene_grids(scene, GRIPPER, FEW), GRIPPER, CONFIG)
    rng = np.random.default_rng(6)
    shift, turn = rng.normal(size=(2, 40, 3))
    shift *= 0.008 / np.linalg.norm(shift, axis=1, keepdims=True)
    turn *= np.deg2rad(15) / np.linalg.norm(turn, axis=1, keepdims=True)
    start = many(downward([0, 0, 0.085], 0.06, 30), np.column_stack([shift, turn, np.zeros((40, 2))]))
    run = descend(terms, start, replace(FEW, keep=40, steps=60))
    level = np.abs(run.end.rotation[:, 2, 0].numpy()) < np.sin(np.deg2rad(3))
    on_axis = run.end.middle[:, :2].norm(dim=1).numpy() < 0.002
    assert (level & on_axis & (np.abs(run.end.width.numpy() - 0.06) < 0.002)).mean() >= 0.95


def free_and_closed(grasp, points, surroundings):
    """The slow way, no code shared: boxes in the gripper frame, and the line between the contacts."""
    T, g = grasp.T_world_gripper, GRIPPER
    assert np.allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-9) and np.linalg.det(T[:3, :3]) > 0
    local = np.linalg.inv(T)
    inner = grasp.width_m / 2 + g.clearance_m
    for cloud in (points, surroundings):
        p = cloud @ local[:3, :3].T + local[:3, 3]
        x, y, z = np.abs(p[:, 0]), np.abs(p[:, 1]), p[:, 2]
        fingers = (x > inner) & (x < inner + g.finger_thickness_m) & (z < 0) & (z > -g.finger_length_m)
        palm = (x < g.max_width_m / 2 + g.finger_thickness_m) & (z < -g.finger_length_m)
        assert not ((fingers | palm) & (y < g.finger_breadth_m / 2) & (z > -g.finger_length_m - g.palm_depth_m)).any()
    ends = grasp.contacts @ local[:3, :3].T + local[:3, 3]
    assert np.allclose(ends[:, 0], [-grasp.width_m / 2, grasp.width_m / 2], atol=1e-6)
    assert np.allclose(ends[:, 1], 0, atol=1e-6) and (ends[:, 2] < 0).all()
    to_surface = np.linalg.norm(points[None] - grasp.contacts[:, None], axis=2).min(1)
    assert (to_surface < 0.006).all()


@pytest.mark.parametrize(
    "surface",
    [box([0, 0, 0.04], [0.05, 0.07, 0.08]), cylinder(0.033, 0.12), sphere(np.array([0.1, 0, 0.03]), 0.03), mug()],
    ids=["box", "can", "ball", "mug"],
)
def test_what_it_answers_holds_and_is_free(surface):
    plan = OptimisedPlanner(FEW, "cpu").plan(scene_of(surface), GRIPPER, CONFIG)
    assert len(plan.grasps) >= 8
    assert [g.score for g in plan.grasps] == sorted((g.score for g in plan.grasps), reverse=True)
    for grasp in plan.grasps:
        free_and_closed(grasp, surface[0], table()[0])
        assert 0 <= grasp.score <= 1 and GRIPPER.min_width_m <= grasp.width_m <= GRIPPER.max_width_m


def handles():
    return join(
        box([-0.06, 0, 0.05], [0.02, 0.08, 0.02], 0.004, "-x+x-y+y+z-z"),
        box([0.06, 0, 0.05], [0.02, 0.08, 0.02], 0.004, "-x+x-y+y+z-z"),
    )


@pytest.mark.parametrize("side", [0, 1])
def test_of_two_like_handles_words_take_theirs(side):
    words = np.eye(4, dtype=np.float32)
    wish = Wish(two_colours, words[side : side + 1], words[1 - side : 2 - side])
    plan = optimise(scene_of(handles(), wish=wish), GRIPPER, CONFIG, FEW)
    where = np.array([g.contacts.mean(0)[0] for g in plan.grasps]) * (1, -1)[side]
    assert (where[: max(3, len(where) // 3)] < 0).all()
    without = optimise(scene_of(handles()), GRIPPER, CONFIG, FEW)
    both = np.sign([g.contacts.mean(0)[0] for g in without.grasps[:12]])
    assert {-1.0, 1.0} == set(both.tolist())


def exact_similarity(task, features, T):
    """`TaskEmbedding.similarity`, from whole features."""
    world = task.points @ T[:3, :3].T + T[:3, 3]
    alpha, whole = features(world, np.eye(task.features.shape[1], dtype=np.float32))
    found = alpha[:, None] * whole
    return float((found * task.features).sum() / np.linalg.norm(found) / np.linalg.norm(task.features))


def test_similarity_by_grid_is_that_by_whole_features():
    points = query_points(60)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_euler("zx", [20, 170], degrees=True).as_matrix(), [0.0, 0.01, 0.07]
    alpha, whole = wavy(points @ T[:3, :3].T + T[:3, 3], np.eye(4, dtype=np.float32))
    task = TaskEmbedding("t", points, alpha[:, None] * whole, 1)
    assert exact_similarity(task, wavy, T) == pytest.approx(1, abs=1e-5)
    none = np.zeros((0, 4), np.float32)
    scene = scene_of(box([0, 0, 0.04], [0.05, 0.07, 0.08]), wish=Wish(wavy, none, none, task))
    terms = Terms(scene_grids(scene, GRIPPER, FEW), GRIPPER, CONFIG)
    changes = np.random.default_rng(7).normal(size=(10, 8)) * ([0.01] * 3 + [0.5] * 3 + [0, 0])
    poses = many(downward([0, 0, 0.07], 0.05), changes)
    found = terms.similarity(poses).numpy()
    for k in range(10):
        T[:3, :3], T[:3, 3] = poses.rotation[k].numpy(), poses.origin[k].numpy()
        assert found[k] == pytest.approx(exact_similarity(task, wavy, T), abs=0.02)


def test_a_task_shown_at_one_handle_is_done_at_the_one_like_it():
    def coloured(flip):
        def features(points, directions):
            near = np.abs(points[:, 0]) < 0.1
            _, along = two_colours(points * (flip, 1, 1), directions)
            distance, _ = signed_distance(*handles(), points.astype(np.float64), 0.004)
            alpha = (near & (distance < 0.003)).astype(np.float32)
            return alpha, along * (alpha > 0)[:, None]

        return features

    T = np.eye(4)  # on the left handle, where its features are the first axis
    T[:3, :3], T[:3, 3] = Rotation.from_euler("x", 180, degrees=True).as_matrix(), [-0.06, 0.0, 0.05]
    world = query_points() @ T[:3, :3].T + T[:3, 3]
    alpha, whole = coloured(1)(world, np.eye(4, dtype=np.float32))
    task = TaskEmbedding("left", query_points(), alpha[:, None] * whole, 1)
    none = np.zeros((0, 4), np.float32)
    for flip in (1, -1):
        scene = scene_of(handles(), wish=Wish(coloured(flip), none, none, task))
        best = optimise(scene, GRIPPER, CONFIG, FEW).grasps[0]
        assert best.contacts.mean(0)[0] * flip < -0.04 and best.score > 0.7


def test_only_the_part_is_held():
    points, normals = join(cylinder(0.03, 0.1, 0.005), box([0.06, 0, 0.05], [0.06, 0.012, 0.02], 0.004, "-y+y+z-z"))
    rows = np.flatnonzero(points[:, 0] > 0.04)
    plan = optimise(scene_of((points, normals), rows=rows), GRIPPER, CONFIG, FEW)
    assert plan.grasps and all(g.contacts[:, 0].min() > 0.03 for g in plan.grasps)


def test_the_same_question_has_the_same_answer():
    scene = scene_of(mug())
    first, second = (optimise(scene, GRIPPER, CONFIG, FEW) for _ in range(2))
    assert len(first.grasps) == len(second.grasps) and first.rejected == second.rejected
    for a, b in zip(first.grasps, second.grasps):
        assert np.array_equal(a.T_world_gripper, b.T_world_gripper) and a.score == b.score


def test_what_cannot_be_held_gives_reasons():
    wide = optimise(scene_of(box([0, 0, 0.1], [0.3, 0.3, 0.2], 0.01)), GRIPPER, CONFIG, FEW)
    assert not wide.grasps and wide.why_none
    points = np.random.default_rng(0).normal(size=(30, 3)) * 0.02
    unknown = optimise(scene_of((points, np.zeros_like(points))), GRIPPER, CONFIG, FEW)
    assert not unknown.grasps and unknown.why_none
    far = optimise(scene_of(mug()), GRIPPER, replace(CONFIG, reach_m=0.1, reach_from=(5.0, 0.0, 0.0)), FEW)
    assert all(np.linalg.norm(g.T_world_gripper[:3, 3] - [5, 0, 0]) <= 0.1 for g in far.grasps)
    none = optimise(scene_of((np.zeros((0, 3)), np.zeros((0, 3)))), GRIPPER, CONFIG, FEW)
    assert not none.grasps


def test_wishes_of_another_encoder_are_refused():
    task = TaskEmbedding("t", query_points(10), np.ones((10, 8), np.float32), 1)
    wish = Wish(wavy, np.eye(4, dtype=np.float32)[:1], np.zeros((0, 4), np.float32), task)
    with pytest.raises(QueryError, match="another encoder"):
        optimise(scene_of(mug(), wish=wish), GRIPPER, CONFIG, FEW)


def test_it_is_chosen_by_name():
    assert isinstance(planner_of(GraspConfig(planner="optimised")), OptimisedPlanner)


def test_the_body_is_inside_of_fingers_and_palm():
    places, radius = opened(downward([0, 0, 0.07], 0.05), GRIPPER)
    pose = downward([0, 0, 0.07], 0.05)
    local = (places[0] - pose.origin[0]) @ pose.rotation[0]
    assert np.allclose(placed(pose, local)[0], places[0], atol=1e-6)
    x, y, z = local.abs().numpy().T
    r, inner = radius.numpy(), 0.025 + GRIPPER.clearance_m
    fingers = local[:, 2].numpy() > -GRIPPER.finger_length_m - 1e-6
    assert (x[fingers] - r[fingers] > inner - 1e-6).all() and (y + r <= GRIPPER.finger_breadth_m / 2 + 1e-6).all()
    assert (x[fingers] + r[fingers] < inner + GRIPPER.finger_thickness_m + 1e-6).all()
    assert (z + r <= GRIPPER.finger_length_m + GRIPPER.palm_depth_m + 1e-6).all()
