"""Changing scenes: what is gone is forgotten, what is there is not, in the point map, the replay and the answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import BLUE, CAMERA, RED, SMALL, Block, frame_at, mapped, ring, stream

from semfield_ros.config import EncoderConfig, MemoryConfig
from semfield_ros.encoders import create
from semfield_ros.encoders.base import Target, Window
from semfield_ros.errors import ConfigError
from semfield_ros.geometry import look_at
from semfield_ros.mapping import Mapping
from semfield_ros.memory.changes import crowded, disagreement, in_image, neighbour_keys, seen_through
from semfield_ros.memory.features import FeatureShape
from semfield_ros.memory.forgetting import forget_voxels
from semfield_ros.memory.point_map import PointMap, voxel_centres, voxel_keys
from semfield_ros.memory.replay import FORGOTTEN, Replay

CONFIG = MemoryConfig()
FINE = MemoryConfig(voxel_size_m=0.01)
LARGE = CAMERA.resized(160, 120)
LOW = Block((-0.06, -0.06, 0.0), (0.06, 0.06, 0.03), "red")
POLE = Block((-0.006, -0.006, 0.0), (0.006, 0.006, 0.25), "red")
BOX = Block((-0.211, -0.071, 0.0), (-0.069, 0.051, 0.153), "red")
"""No face of it lies on the border of a voxel."""
STUB = create(EncoderConfig(name="stub"))


def inside(points: np.ndarray, block: Block, margin: float = 1e-3, above: float = 0.0) -> np.ndarray:
    low, high = np.array(block.low) - margin, np.array(block.high) + margin
    low[2] = above
    return ((points >= low) & (points <= high)).all(1)


def jittered(frame, rng, mm: float = 4.0, deg: float = 0.4):
    from semfield_ros.benchmarks.changes_static import moved

    return moved(frame, mm, deg, rng)


def noisy(frame, rng, sigma_m: float = 0.002):
    depth = frame.depth_m + (rng.normal(size=frame.depth_m.shape) * sigma_m).astype(np.float32)
    return replace(frame, depth_m=np.where(frame.depth_m > 0, depth, 0))


def views(n: int, blocks, camera=LARGE, **path):
    return [frame_at(T, 0.1 * i, blocks, camera) for i, T in enumerate(ring(n, **path))]


# ---- seen through ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height_m", [0.15, 0.5, 1.2])
def test_a_point_above_a_table_is_as_far_from_it_however_it_is_looked_at(height_m):
    """On a plane the nearest measurement is straight below: the distance is the height, at 12 degrees or at 60."""
    camera = CAMERA.resized(320, 240)
    frame = frame_at(look_at([0.7, 0.0, height_m], [0.0, 0.0, 0.0]), blocks=(), camera=camera)
    margin = max(0.75 * FINE.voxel_size_m, FINE.forget_relative * np.hypot(0.7, height_m))
    for times, clear in ((0.5, False), (0.95, False), (1.2, True), (2.0, True)):
        height = times * margin
        points = np.array([[0.0, y, height] for y in (-0.05, 0.0, 0.05)], np.float32)
        ratio = seen_through(FINE, frame, points)
        assert (ratio > 1).all() if clear else (ratio == 0).all()
        if clear:
            assert (ratio * margin > 0.95 * height).all()


def test_what_is_hidden_beside_the_image_or_over_a_hole_is_not_seen_through():
    frame = frame_at(look_at([0.7, 0.0, 0.5], [0.0, 0.0, 0.0]), blocks=(), camera=LARGE)
    points = np.array([[0.0, 0.0, 0.1], [0.0, 0.0, -0.1], [0.0, 5.0, 0.1], [2.0, 0.0, 0.5]], np.float32)
    assert (seen_through(FINE, frame, points) > 0).tolist() == [True, False, False, False]
    blind = replace(frame, depth_m=np.zeros_like(frame.depth_m))
    assert not seen_through(FINE, blind, points).any()
    holes = frame.depth_m.copy()
    holes[::2, ::2] = 0
    assert not seen_through(FINE, replace(frame, depth_m=holes), points).any()
    assert seen_through(FINE, frame, np.zeros((0, 3), np.float32)).shape == (0,)


def test_a_frame_that_disagrees_with_the_map_must_show_more():
    frame = frame_at(look_at([0.0, 0.0, 1.0], [0.0, 0.01, 0.0]), blocks=(), camera=LARGE)
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-0.3, 0.3, (2000, 2)), np.zeros((2000, 1))], 1).astype(np.float32)
    normals = np.tile(np.array([0, 0, 1], np.float32), (2000, 1))
    assert disagreement(frame, points, normals) < 1e-4
    lifted = points + np.array([0, 0, 0.012], np.float32)
    usual = disagreement(frame, lifted, normals)
    assert usual == pytest.approx(0.012, rel=0.1)
    assert seen_through(FINE, frame, lifted).mean() > 0.9 and not seen_through(FINE, frame, lifted, usual).any()
    assert disagreement(frame, points[:3], normals[:3]) == 0.0, "too few tell nothing"


def test_points_in_the_image_are_those_that_project_into_it():
    frame = frame_at(ring(3)[1])
    points = np.random.default_rng(0).uniform(-2, 2, (5000, 3)).astype(np.float32)
    local = (points - frame.T_world_camera[:3, 3]) @ frame.T_world_camera[:3, :3]
    with np.errstate(invalid="ignore", divide="ignore"):
        u = CAMERA.fx * local[:, 0] / local[:, 2] + CAMERA.cx
        v = CAMERA.fy * local[:, 1] / local[:, 2] + CAMERA.cy
    expected = (local[:, 2] > 0) & (u > -1) & (v > -1) & (u < CAMERA.width) & (v < CAMERA.height)
    generous = (local[:, 2] > 0) & (u > -2) & (v > -2) & (u < CAMERA.width + 1) & (v < CAMERA.height + 1)
    found = np.zeros(len(points), bool)
    found[in_image(frame, points)] = True
    assert (found >= expected).all() and (found <= generous).all()


def test_neighbours_of_a_voxel_are_the_26_around_it():
    centre = np.array([[-0.13, 0.27, 0.011]])
    near = voxel_centres(neighbour_keys(voxel_keys(centre, 0.02))[:, 0], 0.02)
    offset = np.round((near - voxel_centres(voxel_keys(centre, 0.02), 0.02)) / 0.02).astype(int)
    assert len(np.unique(offset, axis=0)) == 26 and np.abs(offset).max() == 1 and np.abs(offset).sum(1).min() == 1
    cube = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3) * 0.02 + 0.01
    keys = np.sort(voxel_keys(np.concatenate([cube, [[1.0, 1.0, 1.0]]]), 0.02))
    assert crowded(keys, 7).sum() == 27 and crowded(keys, 26).sum() == 1


# ---- the point map --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height_m", [0.25, 0.6])
def test_a_low_box_is_forgotten_in_seconds_and_nothing_else(height_m):
    points = PointMap(FINE, 3)
    for frame in views(12, (LOW, BLUE), height_m=height_m):
        points.fuse(frame)
    cloud = points.cloud().points
    before, others = inside(cloud, LOW, above=0.02).sum(), points.keys[~inside(cloud, LOW, 0.03)]
    assert before > 100
    for frame in views(8, (BLUE,), height_m=height_m):
        points.fuse(frame)
    assert inside(points.cloud().points, LOW, above=0.02).sum() < 0.02 * before
    assert np.isin(others, points.keys).mean() > 0.999


def test_one_look_is_not_enough_and_four_clear_ones_are():
    points = PointMap(FINE, 3)
    top = look_at([0.3, 0.0, 0.7], [0.0, 0.0, 0.0])
    for i in range(10):
        points.fuse(frame_at(top, float(i), (RED,), LARGE))
    left = []
    for i in range(6):
        carved = points.fuse(frame_at(top, 10.0 + i, (), LARGE)).carved
        left.append(inside(points.cloud().points, RED, above=0.08).sum())
        assert (np.diff(carved) > 0).all() and not np.isin(carved, points.keys).any()
    assert left[0] == left[2] > 100 and left[4] == 0


def test_a_thin_pole_and_its_rims_stay_under_noise_and_inexact_poses():
    rng, points = np.random.default_rng(0), PointMap(FINE, 3)
    # a pixel is 4 mm wide, the pole 12 mm
    for frame in views(24, (POLE, BLUE)) * 2:
        points.fuse(jittered(noisy(frame, rng), rng))
    cloud = points.cloud().points
    around = (np.abs(cloud[:, :2]) < 0.02).all(1)
    heights = np.unique(np.floor(cloud[around, 2] / 0.01))
    assert set(range(2, 24)) <= set(heights.astype(int)), "without a gap"


def test_a_static_scene_under_noise_loses_none_of_its_surface():
    rng, points, kept = np.random.default_rng(1), PointMap(FINE, 3), PointMap(replace(FINE, forget=False), 3)
    frames = [noisy(frame, rng) for frame in views(16, (RED, BLUE))] * 4
    for frame in frames:
        points.fuse(frame)
        assert len(kept.fuse(frame).carved) == 0
    assert len(points) > 0.998 * len(kept)
    exact = frame_at(ring(5)[2], 0.0, (RED, BLUE), LARGE)
    assert points.unseen_fraction(exact) == kept.unseen_fraction(exact)
    assert (points.observations[points.rows] >= 4).mean() > 0.5


def test_forgetting_can_be_switched_off():
    points = PointMap(replace(FINE, forget=False), 3)
    for frame in [*views(4, (RED,)), *views(8, ())]:
        fusion = points.fuse(frame)
        assert len(fusion.carved) == len(fusion.recoloured) == 0 and not points.change(frame)
    assert inside(points.cloud().points, RED, above=0.05).sum() > 100


def one(value: int) -> Target:
    features = np.zeros((1, 1, 3), np.float32)
    features[..., value] = 1
    return Target.dense(features, Window.pixel())


def test_meaning_and_colour_of_an_exchanged_object_follow_within_six_looks():
    blue = Block(RED.low, RED.high, "blue")
    points = PointMap(FINE, 3)
    T = look_at([0.5, -0.2, 0.6], [-0.1, 0.0, 0.05])
    for i in range(60):
        points.fuse(frame_at(T, float(i), (RED,), LARGE), step=i)
        points.fuse_features(frame_at(T, float(i), (RED,), LARGE), one(0))
    rows = points.rows[inside(points.points[points.rows], RED, above=0.05) & (points.observations[points.rows] > 50)]
    assert len(rows) > 100
    changed = []
    for i in range(6):
        fusion = points.fuse(frame_at(T, 60.0 + i, (blue,), LARGE), step=100 + i)
        points.fuse_features(frame_at(T, 60.0 + i, (blue,), LARGE), one(1))
        changed.append(len(fusion.recoloured))
    assert changed[:2] == [0, 0] and changed[2] > 100, "three looks agree first"
    assert (points.features[rows].argmax(1) == 1).mean() > 0.9
    assert (points.rgb[rows][:, 2] > points.rgb[rows][:, 0]).mean() > 0.85
    assert (points.created_step[rows] > 100).mean() > 0.9, "the field has yet to learn it"
    table = points.rows[points.points[points.rows][:, 1] > 0.25]
    assert (points.features[table].argmax(1) == 1).mean() < 0.1 and (points.created_step[table] == 0).mean() > 0.9


def test_neighbours_of_what_is_gone_are_in_doubt_and_others_are_not():
    points = PointMap(FINE, 3)
    for i, frame in enumerate(views(8, (LOW, BLUE))):
        points.fuse(frame, step=i)
        points.fuse_features(frame, one(0))
    for i, frame in enumerate(views(8, (BLUE,))):
        points.fuse(frame, step=500 + i)
    cloud, created = points.points[points.rows], points.created_step[points.rows]
    mass = points.feature_mass[points.rows]
    rim = inside(cloud, LOW, 0.02, above=-0.01) & (cloud[:, 2] < 0.01)
    far = np.linalg.norm(cloud[:, :2], axis=1) > 0.4
    assert (created[rim] >= 500).mean() > 0.9 and mass[rim].max() <= 1.0
    assert (created[far] < 500).mean() > 0.99 and mass[far].max() > 2.0


def test_the_hidden_back_of_an_exchanged_object_is_unknown_and_its_neighbour_stays():
    blue, beside = Block(BOX.low, BOX.high, "blue"), Block((-0.05, -0.25, 0.0), (0.05, -0.15, 0.1), "green")
    points, shown = PointMap(FINE, 3), PointMap(FINE, 3)
    for frame in views(16, (BOX, beside)):
        points.fuse(frame)
    neighbour = points.keys[inside(points.cloud().points, beside, above=0.02)]
    front = [look_at([0.6 * np.cos(a), 0.6 * np.sin(a), 0.6], [-0.1, 0.0, 0.05]) for a in np.linspace(0, 0.5, 12)]
    for T in front:  # what these views alone can see
        shown.fuse(frame_at(T, 0.0, (BOX, beside), LARGE))
    back = np.setdiff1d(points.keys[inside(points.cloud().points, BOX, above=0.02)], neighbour_keys(shown.keys))
    assert len(back) > 50 and len(neighbour) > 50
    for i, T in enumerate(front):
        points.fuse(frame_at(T, 10.0 + i, (blue, beside), LARGE))
    assert np.isin(back, points.keys).mean() < 0.1, "nobody knows what colour it is now"
    assert np.isin(neighbour, points.keys).all()


# ---- frames that would be skipped -----------------------------------------------------------------------------------


def add(mapping: Mapping, frame) -> None:
    target = STUB.encode_frame(frame)
    mapping.add_features(mapping.add_keyframe(frame, FeatureShape.of(target)), frame, target)


def at_rest(blocks, n: int, first_s: float, camera=LARGE):
    return [frame_at(look_at([0.6, 0.0, 0.5], [0.0, 0.0, 0.0]), first_s + 0.1 * i, blocks, camera) for i in range(n)]


@pytest.mark.parametrize(
    ("after", "reason"),
    [((BLUE,), "vanished"), ((RED, BLUE, Block((-0.05, -0.25, 0.0), (0.05, -0.15, 0.1), "green")), "appeared"),
     ((Block(RED.low, RED.high, "blue"), BLUE), "recoloured")],
)  # fmt: skip
def test_a_camera_at_rest_notices_a_change_and_then_rests_again(after, reason):
    mapping = Mapping(replace(SMALL, memory=replace(FINE, replay_mb=8)), STUB.dim, "cpu")
    for frame in at_rest((RED, BLUE), 12, 0.0):
        if mapping.accepts(frame):
            add(mapping, frame)
    assert len(mapping.keyframes) == 1, "a scene at rest makes no keyframes"
    for frame in at_rest((RED, BLUE), 8, 2.0):  # it is well known
        add(mapping, frame)
    used = []
    for frame in at_rest(after, 80, 4.0):
        if mapping.accepts(frame):
            used.append(round(10 * (frame.stamp_s - 4.0)))
            add(mapping, frame)
    assert used[0] <= 1 and mapping.counts[f"keyframes_{reason}"] >= 1
    assert len(used) <= 16 and used[-1] < 50, "and then there is nothing new"


def test_changes_are_looked_for_ten_times_a_second():
    mapping = Mapping(replace(SMALL, memory=replace(FINE, replay_mb=8)), STUB.dim, "cpu")
    for frame in at_rest((RED, BLUE), 8, 0.0):
        add(mapping, frame)
    soon, later = (frame_at(frame.T_world_camera, 0.7 + s, (BLUE,), LARGE) for s in (0.05, 0.11))
    assert not mapping.accepts(soon) and mapping.accepts(later)


def test_a_scene_at_rest_under_inexact_poses_makes_few_keyframes():
    rng = np.random.default_rng(0)
    mapping = Mapping(replace(SMALL, memory=replace(FINE, replay_mb=8)), STUB.dim, "cpu")
    used = 0
    for i, frame in enumerate(at_rest((RED, BLUE), 80, 0.0)):
        frame = jittered(noisy(frame, rng), rng)
        if mapping.accepts(frame):
            used += i > 20
            add(mapping, frame)
    assert used <= 10, "of 60 frames"


# ---- the replay -----------------------------------------------------------------------------------------------------


def replay_points(replay: Replay) -> tuple[np.ndarray, np.ndarray]:
    """World points [S, R, 3] float64 of all records, by hand, and their depths [S, R]."""
    all_points = []
    for slot in replay.order:
        v, u = np.divmod(replay.pixel[slot].numpy().astype(np.int64), replay.width)
        fx, fy, cx, cy = replay.camera[slot].numpy().astype(np.float64)
        local = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(len(u))], -1) * replay.depth[slot].numpy()[:, None]
        T = replay.pose[slot].numpy().astype(np.float64)
        all_points.append(local @ T[:3, :3].T + T[:3, 3])
    return np.stack(all_points), replay.depth[replay.order].numpy()


def filled(blocks=(BOX, BLUE), n: int = 6) -> Replay:
    replay = Replay(MemoryConfig(replay_mb=8, pixels_per_keyframe=1200), CAMERA.width, CAMERA.height,
                    FeatureShape(4, 48, 48), "cpu")  # fmt: skip
    rng = np.random.default_rng(0)
    for slot, frame in enumerate(stream(n, blocks)):
        replay.write(slot, frame, rng)
        replay.write_target(slot, Target.dense(rng.normal(size=(6, 8, 4)).astype(np.float32), Window.pixel()))
    return replay


def test_records_in_forgotten_voxels_are_forgotten_and_all_others_kept_exactly():
    replay = filled()
    points, depth = replay_points(replay)
    keys = voxel_keys(points.reshape(-1, 3), 0.02).reshape(depth.shape)
    gone = np.unique(keys[inside(points.reshape(-1, 3), BOX, above=0.01).reshape(depth.shape) & (depth > 0)])
    expected = np.isin(keys, gone) & (depth > 0)
    # points on a voxel's border may fall to either side of it
    border = np.abs(points / 0.02 - np.round(points / 0.02)).min(-1) < 1e-4
    before = {name: getattr(replay, name).clone() for name in ("pixel", "depth", "rgb", "pose")}
    features = replay.language.values.clone()
    count = forget_voxels(replay, gone, 0.02, spare=2)
    forgotten = replay.depth[replay.order].numpy() == FORGOTTEN
    assert not forgotten[2].any() and expected[2].any(), "the newest view is spared"
    expected[2] = False
    assert np.array_equal(forgotten[~border], expected[~border]) and count == forgotten.sum() > 200
    for name, value in before.items():
        if name != "depth":
            assert torch.equal(getattr(replay, name), value)
    assert torch.equal(replay.language.values, features)
    assert np.array_equal(replay.depth[replay.order].numpy()[~forgotten], depth[~forgotten])
    rays = replay.rays(20_000, 0.3, torch.Generator().manual_seed(0))
    hit = (rays.origins + rays.directions * rays.depth_m[:, None])[rays.slots != 2].numpy()
    assert not np.isin(voxel_keys(hit, 0.02), gone)[np.abs(hit / 0.02 - np.round(hit / 0.02)).min(-1) > 1e-3].any()
    assert forget_voxels(replay, gone, 0.02, spare=2) == 0 and forget_voxels(replay, gone[:0], 0.02) == 0


def test_features_measured_on_what_is_gone_go_too_and_others_stay():
    replay = filled()
    points, depth = replay_points(replay)
    keys = voxel_keys(points.reshape(-1, 3), 0.02).reshape(depth.shape)
    on_red = inside(points.reshape(-1, 3), BOX, above=0.01).reshape(depth.shape) & (depth > 0)
    forget_voxels(replay, np.unique(keys[on_red]), 0.02)
    lost = replay.depth[replay.order].numpy() == FORGOTTEN
    for slot in replay.order:
        # by hand: 6 x 8 cells of 5 x 5 records
        of = lost[slot] | (depth[slot] > 0)
        share = lost[slot].reshape(6, 5, 8, 5).sum((1, 3)) / of.reshape(6, 5, 8, 5).sum((1, 3))
        kept = replay.language.cell_row[slot, :48].numpy().reshape(6, 8) >= 0
        assert np.array_equal(kept, share < 0.2) and 0 < (~kept).sum() < 24


def test_records_of_a_changed_colour_go_and_those_of_the_new_one_stay():
    replay = filled()
    points, depth = replay_points(replay)
    keys = voxel_keys(points.reshape(-1, 3), 0.02).reshape(depth.shape)
    on_red = inside(points.reshape(-1, 3), BOX, above=0.02).reshape(depth.shape) & (depth > 0)
    changed = np.unique(keys[on_red])
    red = replay.rgb[replay.order].numpy()[on_red][0].astype(np.float32)
    assert forget_voxels(replay, changed, 0.02, np.tile(red, (len(changed), 1))) < 0.05 * on_red.sum()
    blue = np.tile(np.array([0, 0, 255], np.float32), (len(changed), 1))
    assert forget_voxels(replay, changed, 0.02, blue) > 0.9 * on_red.sum()


def test_a_map_forgets_the_rays_of_what_was_taken_away():
    mapping = mapped(8, replace(SMALL, memory=replace(SMALL.memory, max_keyframes=40)))
    points, depth = replay_points(mapping.replay)
    on_red = inside(points.reshape(-1, 3), RED, above=0.06).reshape(depth.shape) & (depth > 0)
    for frame in stream(8, blocks=(BLUE,), first_s=5.0) * 2:
        add(mapping, replace(frame, stamp_s=frame.stamp_s))
    depth = mapping.replay.depth[mapping.replay.order[: len(on_red)]].numpy()
    assert mapping.counts["rays_forgotten"] > 0 and mapping.counts["voxels_removed"] > 0
    assert (depth[on_red] > 0).mean() < 0.1 < 0.9 < (depth[~on_red] > 0).mean()


# ---- the simulator --------------------------------------------------------------------------------------------------


def changing(kinds, seed: int = 3):
    pytest.importorskip("mujoco")
    from semfield_ros.sources.simulator import SimulatorConfig
    from semfield_ros.sources.simulator_changes import ChangingSimulator, Event

    config = SimulatorConfig(seed=seed, frames=4 * len(kinds) + 4, width=64, height=48)
    return ChangingSimulator(config, [Event(4 * (i + 1), kind) for i, kind in enumerate(kinds)])


def test_objects_leave_move_come_and_are_exchanged():
    simulator = changing(("remove", "move", "add", "swap", "swap_alike"))
    counts = [len(epoch.objects) for epoch in simulator.epochs]
    assert np.diff(counts).tolist() == [-1, 0, 1, 0, 0]
    removed, moved, added, swapped, alike = simulator.changes
    assert removed.after is None and added.before is None
    assert moved.before.kind == moved.after.kind and np.linalg.norm(moved.before.centre_m - moved.after.centre_m) > 0.05
    assert swapped.before.kind != swapped.after.kind
    assert np.linalg.norm((swapped.before.centre_m - swapped.after.centre_m)[:2]) < 0.05
    assert alike.before.kind != alike.after.kind and np.array_equal(alike.before.centre_m, alike.after.centre_m)
    for epoch in simulator.epochs:
        lows = [min(part.points_world[:, 2].min() for part in thing.parts) for thing in epoch.objects]
        assert np.abs(lows).max() < 1e-3, "everything stands on the table"
        rests = [item.hull_world[:, :2] for item in epoch.scene.objects]
        for i, a in enumerate(rests):
            for b in rests[:i]:
                assert np.linalg.norm(a[:, None] - b[None], axis=2).min() > 0.01, "and on nothing else"


def test_frames_show_the_scene_of_their_time():
    simulator = changing(("remove",))
    frames = list(simulator)
    gone = simulator.changes[0].before.kind
    label = simulator.class_names.index(gone)
    others = sum(thing.kind == gone for thing in simulator.epochs[1].objects)
    assert [simulator.epoch(i) for i in range(8)] == [0] * 4 + [1] * 4
    T = frames[0].T_world_camera
    before, after = (epoch.render(T, noisy=False) for epoch in simulator.epochs)
    if not others:
        assert (before.semantic == label).any() and not any((f.semantic == label).any() for f in frames[4:])
    assert (before.semantic == label).sum() > (after.semantic == label).sum()
    assert np.array_equal(frames[5].depth_m, simulator.frame(5).depth_m), "the same index, the same frame"


def test_unusable_events_are_refused():
    pytest.importorskip("mujoco")
    from semfield_ros.sources.simulator import SimulatorConfig
    from semfield_ros.sources.simulator_changes import ChangingSimulator, Event

    config = SimulatorConfig(frames=8, width=32, height=24)
    for events in ([Event(0, "remove")], [Event(8, "remove")], [Event(5, "add"), Event(3, "remove")]):
        with pytest.raises(ConfigError, match="events are at frames"):
            ChangingSimulator(config, events)
    with pytest.raises(ConfigError, match="allowed: remove"):
        ChangingSimulator(config, [Event(2, "explode")])
    with pytest.raises(ConfigError, match="poses are"):
        ChangingSimulator(config, [], np.zeros((3, 4, 4)))


# ---- the benchmark ---------------------------------------------------------------------------------------------------


def test_the_benchmark_runs_and_compares_with_a_memory_that_does_not_forget(monkeypatch, capsys):
    pytest.importorskip("mujoco")
    import json

    from rich.console import Console

    from semfield_ros.benchmarks import changes, changes_static

    monkeypatch.setattr(changes, "LEARN_S", 0.4)
    monkeypatch.setattr(changes, "CALM_S", 0.4)
    monkeypatch.setattr(changes, "WIDTH", 64)
    monkeypatch.setattr(changes, "STEPS_HZ", 1.0)
    whole, at_rest = changes.stream, changes_static.simulated
    monkeypatch.setattr(changes, "stream", lambda *arguments: whole(*arguments, kinds=("remove",)))
    monkeypatch.setattr(changes_static, "simulated", lambda seed: at_rest(seed, frames=12, views=6, width=48))
    assert changes.run("simulator", console=Console(width=200), as_json=True, seeds=1, train_s=1.0, event_s=1.0) == 0
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [(e["event"], e["source"], e["forget"]) for e in report["events"]] == [
        ("remove", source, forget) for source in changes.SOURCES for forget in (True, False)
    ]
    assert len(report["static"]) == 4 and all(0 <= row["miou_after"] <= 1 for row in report["static"])
    assert all(row["removed"] == 0 for row in report["static"] if not row["forget"])


def test_a_recording_at_rest_is_measured(tmp_path, monkeypatch, capsys):
    from rich.console import Console

    from semfield_ros.benchmarks import changes_static

    monkeypatch.setattr(changes_static, "open_source", lambda *_, **__: views(12, (RED, BLUE), CAMERA))
    rows = changes_static.recorded("there", Console(width=160))
    assert [row["forget"] for row in rows] == [True, False] and rows[1]["removed"] == 0
    assert all(row["complete"] > 0.8 and row["error_median_m"] < 0.05 for row in rows)
