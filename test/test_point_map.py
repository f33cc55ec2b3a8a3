"""The point map: running means against a naive loop, forgetting, bounds, round trips."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import BLOCKS, BLUE, CAMERA, RED, frame_at, ring, stream
from hypothesis import given
from hypothesis import strategies as st

from semfield_ros.config import MemoryConfig
from semfield_ros.encoders.base import Target, Window
from semfield_ros.geometry import back_project, look_at
from semfield_ros.memory.point_map import PointMap, voxel_keys

DIM = 3
CONFIG = MemoryConfig()
SIZE = CONFIG.voxel_size_m


def fused(frames, config=CONFIG) -> PointMap:
    points = PointMap(config, DIM)
    for frame in frames:
        points.fuse(frame)
    return points


def target_of(seed: int, h: int = 6, w: int = 8) -> Target:
    rng = np.random.default_rng(seed)
    target = Target.dense(rng.normal(size=(h, w, DIM)).astype(np.float32), Window.pixel())
    index = np.where(rng.random((h, w)) < 0.2, -1, target.index)
    return replace(target, index=index, confidence=rng.random(h * w).astype(np.float32))


def within(points: np.ndarray, low, high) -> np.ndarray:
    return ((points >= low) & (points <= high)).all(1)


# ---- keys ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(*[st.integers(-(2**20), 2**20 - 1)] * 3), min_size=2, max_size=30))
def test_keys_tell_all_voxels_apart_and_sort_like_them(cells):
    points = (np.array(cells) + 0.5) * 0.02
    keys = voxel_keys(points, 0.02)
    assert len(set(keys.tolist())) == len(set(cells))
    assert [cells[i] for i in np.argsort(keys, kind="stable")] == sorted(cells)


def test_points_of_one_voxel_share_its_key():
    rng = np.random.default_rng(0)
    corner = np.array([-3, 0, 7]) * 0.05
    assert len(np.unique(voxel_keys(corner + rng.uniform(1e-6, 0.05 - 1e-6, (200, 3)), 0.05))) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("far", [1e6, 1e12, 1e30, np.inf])
def test_points_far_outside_clamp_to_the_outermost_voxel_on_their_side(far):
    for dtype in (np.float32, np.float64):
        edge = voxel_keys(np.array([[2e4, 0, 0], [-3e4, 0, 0]], dtype), 0.02)
        beyond = voxel_keys(np.array([[far, 0, 0], [-far, 0, 0]], dtype), 0.02)
        assert np.array_equal(beyond, voxel_keys(np.array([[1e5, 0, 0], [-1e5, 0, 0]], dtype), 0.02))
        assert beyond[0] >= edge[0] and beyond[1] <= edge[1]


# ---- surface -------------------------------------------------------------------------------------------------------


def naive_surface(frames) -> dict[int, np.ndarray]:
    """Per voxel (mass, x, y, z, r, g, b, observations), one pixel at a time."""
    voxels: dict[int, np.ndarray] = {}
    for frame in frames:
        points, pixel = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
        groups = defaultdict(list)
        for key, point, colour in zip(voxel_keys(points, SIZE), points, frame.rgb.reshape(-1, 3)[pixel]):
            groups[int(key)].append(np.concatenate([point, colour]).astype(np.float64))
        for key, members in groups.items():
            mean = np.mean(members, axis=0)
            weight = len(members) / max(np.linalg.norm(mean[:3] - frame.T_world_camera[:3, 3]), 0.3) ** 2
            voxel = voxels.setdefault(key, np.zeros(8))
            voxel[1:7] = (voxel[0] * voxel[1:7] + weight * mean) / (voxel[0] + weight)
            voxel[0] += weight
            voxel[7] += 1
    return voxels


def test_surface_is_the_running_mean_of_a_naive_loop():
    frames = stream(4)
    points, expected = fused(frames), naive_surface(frames)
    assert points.keys.tolist() == sorted(expected)
    naive = np.array([expected[key] for key in points.keys.tolist()])
    rows = points.rows
    assert np.abs(points.points[rows] - naive[:, 1:4]).max() < 1e-5
    assert np.abs(points.rgb[rows] - naive[:, 4:7]).max() < 1e-2
    assert np.allclose(points.mass[rows], naive[:, 0], rtol=1e-4)
    assert np.array_equal(points.observations[rows], naive[:, 7])


def test_points_lie_in_their_voxel_and_on_the_surface():
    fine = CAMERA.resized(240, 180)
    cloud = fused([frame_at(T, camera=fine) for T in ring(4, radius_m=0.4, height_m=0.7)]).cloud()
    assert cloud.points.dtype == np.float32 and cloud.rgb.dtype == np.uint8
    on_table = np.abs(cloud.points[:, 2]) < SIZE
    near_block = np.zeros(len(cloud), bool)
    for block in BLOCKS:
        near_block |= within(cloud.points, np.array(block.low) - SIZE, np.array(block.high) + SIZE)
    assert (on_table | near_block).all()
    top = within(cloud.points, (-0.2, -0.08, 0.159), (-0.08, 0.04, 0.161))
    assert top.sum() > 10 and (cloud.normals[top] @ [0, 0, 1] > 0.98).mean() > 0.8
    norm = np.linalg.norm(cloud.normals, axis=1)
    assert (np.isclose(norm, 1, atol=1e-3) | (norm == 0)).all()


def test_a_second_look_creates_nothing():
    frame = stream(5)[0]
    points = PointMap(CONFIG, DIM)
    first, second = points.fuse(frame, step=3), points.fuse(frame, step=9)
    assert first.created == first.seen == len(points) and first.unseen_fraction == 1.0
    assert (second.created, second.removed, second.unseen_fraction) == (0, 0, 0.0) and second.seen == len(points)
    assert (points.created_step[points.rows] == 3).all(), "age counts from the first look"


def test_unseen_fraction_of_views():
    points = PointMap(CONFIG, DIM)
    here, slightly, behind = (frame_at(T) for T in (*ring(60)[:2], look_at([3.0, 3.0, 0.5], [5.0, 5.0, 0.0])))
    assert points.unseen_fraction(here) == 1.0
    points.fuse(here)
    assert points.unseen_fraction(here) == 0.0
    assert 0.0 <= points.unseen_fraction(slightly) < 0.2
    assert points.unseen_fraction(behind) == 1.0


def test_find_returns_the_voxel_that_holds_a_point():
    frames = stream(4)
    points = fused(frames)
    pixels, _ = back_project(CAMERA, frames[2].T_world_camera, frames[2].depth_m)
    rows = points.find(pixels)
    assert (rows >= 0).all() and (np.abs(points.points[rows] - pixels) < SIZE + 1e-6).all()
    assert (points.find(np.array([[0.0, 0.0, 5.0], [100.0, 0, 0], [1e9, 1e9, 1e9]], np.float32)) == -1).all()
    assert points.find(np.zeros((0, 3))).shape == (0,)
    assert (PointMap(CONFIG, DIM).find(pixels) == -1).all()


def test_a_frame_without_depth_changes_nothing():
    frame = stream(1)[0]
    blind = replace(frame, depth_m=np.zeros_like(frame.depth_m))
    points = PointMap(CONFIG, DIM)
    fusion = points.fuse(blind)
    assert (fusion.created, fusion.seen, fusion.removed, fusion.unseen_fraction) == (0, 0, 0, 0.0)
    assert points.unseen_fraction(blind) == 0.0 and points.fuse_features(blind, target_of(0)) == 0
    points.fuse(frame)
    before = points.state()
    points.fuse(blind)
    assert points.fuse_features(blind, target_of(0)) == 0
    assert all(np.array_equal(before[k], v) for k, v in points.state().items())
    assert len(PointMap(CONFIG, DIM).cloud()) == 0


# ---- features ------------------------------------------------------------------------------------------------------


def test_features_are_the_running_mean_of_a_naive_loop():
    frames = stream(6)
    points = fused(frames)
    targets = [target_of(i) for i in range(len(frames))]
    for frame, target in zip(frames, targets):
        points.fuse_features(frame, target)
    rows = points.rows
    mass, mean = np.zeros(len(rows)), np.zeros((len(rows), DIM))
    for frame, target in zip(frames, targets):
        T_camera_world = np.linalg.inv(frame.T_world_camera)
        for n, p in enumerate(points.points[rows]):
            x, y, z = T_camera_world[:3, :3] @ p + T_camera_world[:3, 3]
            if z <= 0:
                continue
            u, v = round(CAMERA.fx * x / z + CAMERA.cx), round(CAMERA.fy * y / z + CAMERA.cy)
            if not (2 <= u < 78 and 2 <= v < 58):
                continue
            depth = frame.depth_m[v, u]
            row = target.index[v * 6 // 60, u * 8 // 80]
            if depth <= 0 or abs(depth - z) > max(0.05, 0.02 * depth) or row < 0:
                continue
            radius2 = 2 * ((u / 80 - 0.5) ** 2 + (v / 60 - 0.5) ** 2)
            weight = np.exp(-radius2 / (2 * 0.6**2)) * target.confidence[row]
            mean[n] = (mass[n] * mean[n] + weight * target.values[row]) / (mass[n] + weight)
            mass[n] += weight
    assert (mass > 0).mean() > 0.8
    assert np.allclose(points.feature_mass[rows], mass, atol=1e-4)
    assert np.abs(points.features[rows] - mean).max() < 5e-3, "half precision"


def test_occluded_voxels_take_no_features():
    """What is behind the red block is in the image's frustum and yet not seen."""
    points = fused(stream(8))
    frame = frame_at(look_at([-0.9, -0.02, 0.1], [0.0, -0.02, 0.1]))
    assert points.fuse_features(frame, Target.dense(np.ones((1, 1, DIM), np.float32), Window.pixel())) > 0
    rows, cloud = points.rows, points.cloud().points
    measured = points.feature_mass[rows] > 0
    behind = within(cloud, (-0.04, -0.06, -0.01), (0.06, 0.02, 0.05))
    front = within(cloud, (-0.24, -0.08, 0.03), (-0.2, 0.04, 0.14))
    assert behind.sum() > 10 and front.sum() > 10
    assert not measured[behind].any() and measured[front].mean() > 0.9


# ---- forgetting ----------------------------------------------------------------------------------------------------


def test_a_static_scene_is_never_carved():
    points = PointMap(CONFIG, DIM)
    assert sum(points.fuse(frame).removed for frame in stream(16)) == 0


def test_what_was_taken_away_is_forgotten_within_seven_looks():
    points = fused(stream(8) + stream(8))
    rows = points.rows
    red = within(points.points[rows], np.array(RED.low) + (0, 0, SIZE), np.array(RED.high) + 1e-3)
    assert red.sum() > 100 and points.hits[rows].max() == 5, "evidence is clamped"
    # what hovers less than the tolerance over the table cannot be told from it
    low = np.array(RED.low) + (0, 0, 0.06)
    tall = within(points.points[rows], low, np.array(RED.high) + 1e-3).sum()
    removed, left = 0, []
    for frame in stream(7, blocks=(BLUE,)) * 2:
        removed += points.fuse(frame).removed
        left.append(within(points.cloud().points, low, np.array(RED.high) + 1e-3).sum())
    assert left[0] == tall > 100, "one look is not enough"
    assert left[6] < 0.1 * tall, "seven looks through it outvote any past"
    assert left[-1] == 0, "also for what some looks do not see"
    assert removed >= tall
    blue = within(points.cloud().points, np.array(BLUE.low) - SIZE, np.array(BLUE.high) + SIZE)
    assert blue.sum() > 50, "what is still there stays"
    missing = points.find(np.array([[-0.14, -0.02, 0.16], [0.15, 0.02, 0.1]], np.float32) - 1e-3)
    assert missing[0] == -1 and missing[1] >= 0


def test_holes_in_depth_carve_nothing():
    points = fused(stream(8))
    n = len(points)
    for frame in stream(8, blocks=(BLUE,)) * 2:
        depth = frame.depth_m.copy()
        depth[::2, ::2] = 0.0  # no 3x3 neighbourhood is whole
        assert points.fuse(replace(frame, depth_m=depth)).removed == 0
    assert len(points) >= n


def test_a_cleared_region_is_empty_and_can_be_filled_again():
    frames = stream(6)
    points = fused(frames)
    low, high = np.array([-0.3, -0.2, -0.1]), np.array([0.0, 0.2, 0.3])
    inside = within(points.cloud().points, low, high)
    others = points.cloud()[~inside]
    assert points.clear_region(low, high) == inside.sum() > 0
    assert np.array_equal(points.cloud().points, others.points), "and nothing else is touched"
    assert points.clear_region(low, high) == 0
    for frame in frames:
        points.fuse(frame)
    again = within(points.cloud().points, low, high)
    assert again.sum() == inside.sum()
    assert points.observations[points.rows][again].max() <= len(frames), "freed rows start anew"


# ---- bounds --------------------------------------------------------------------------------------------------------


def test_the_least_recently_seen_are_evicted():
    config = replace(CONFIG, max_voxels=6000)
    points = PointMap(config, DIM)
    points.fuse(frame_at(look_at([5.0, 0.0, 0.5], [5.5, 0, 0.0]), 1.0))
    for stamp_s, frame in enumerate(stream(8)):
        points.fuse(replace(frame, stamp_s=2.0 + stamp_s))
        assert len(points) <= 6000
    cloud = points.cloud()
    assert (cloud.points[:, 0] < 4).all(), "the first view is the first to go"
    newest = back_project(CAMERA, stream(8)[-1].T_world_camera, stream(8)[-1].depth_m)[0]
    assert (points.find(newest) >= 0).mean() > 0.95


def test_a_hundred_random_frames_never_exceed_the_budget():
    config = replace(CONFIG, max_voxels=6000)
    points, rng = PointMap(config, 64), np.random.default_rng(0)
    size, evicted, per_frame = [], 0, CAMERA.width * CAMERA.height
    for i in range(100):
        eye = rng.uniform([-4, -4, 0.3], [4, 4, 2.0])
        fusion = points.fuse(frame_at(look_at(eye, eye + [*rng.uniform(-1, 1, 2), -1.0]), float(i)))
        evicted += fusion.removed
        size.append(points.bytes)
        assert len(points) <= 6000 and len(np.unique(points.rows)) == len(points)
        assert (np.diff(points.keys) > 0).all(), "keys stay sorted"
    assert evicted > 1000
    # at most one frame's voxels beyond the budget, while it makes room
    row = points.max_bytes / config.max_voxels
    assert max(size) <= points.max_bytes + per_frame * row
    assert size[-1] == size[50], "nothing grows any more"


def test_one_frame_larger_than_the_whole_budget():
    config = replace(CONFIG, max_voxels=1000, voxel_size_m=0.005)
    points = PointMap(config, DIM)
    for frame in stream(3):
        fusion = points.fuse(frame)
        assert len(points) == 1000 and fusion.created > 1000
        assert points.fuse_features(frame, target_of(0)) > 0


# ---- copies --------------------------------------------------------------------------------------------------------


def test_state_round_trip_continues_alike():
    frames = stream(8)
    first = fused(frames[:4])
    first.fuse(stream(3, blocks=(BLUE,))[0])
    for i, frame in enumerate(frames[:4]):
        first.fuse_features(frame, target_of(i))
    second = PointMap(CONFIG, DIM)
    second.load({k: v.copy() for k, v in first.state().items()})
    for points in (first, second):
        for i, frame in enumerate(frames[4:]):
            points.fuse(frame, step=7)
            points.fuse_features(frame, target_of(i))
    a, b = first.state(), second.state()
    assert set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_cloud_is_a_copy():
    points = fused(stream(2))
    cloud = points.cloud()
    kept = cloud.points.copy()
    for frame in stream(5):
        points.fuse(frame)
    cloud.rgb[:] = 0
    assert np.array_equal(cloud.points, kept) and points.cloud().rgb.any()
