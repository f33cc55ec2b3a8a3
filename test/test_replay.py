"""Replay: records are pixels, rays move with their keyframe's pose, windows are the encoder's, bytes are bounded."""

import json

import numpy as np
import pytest
import torch
from analytic_scene import BLOCKS, CAMERA, SMALL, frame_at, mapped, ring

from semfield_ros.config import EncoderConfig, MemoryConfig
from semfield_ros.encoders import create
from semfield_ros.encoders.base import Target, Window
from semfield_ros.geometry import Camera, back_project, look_at, pixel_directions, transform_points
from semfield_ros.memory.features import TENSORS, FeatureShape
from semfield_ros.memory.replay import Replay
from semfield_ros.memory.surface import depth_normals

DIM = 4
SHAPE = FeatureShape(DIM, 48, 48)


def replay_of(config=None, camera: Camera = CAMERA, shape: FeatureShape = SHAPE) -> Replay:
    config = config or MemoryConfig(replay_mb=8, pixels_per_keyframe=1200)
    return Replay(config, camera.width, camera.height, shape, "cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def target_of(h: int, w: int, window: Window | None = None, seed: int = 0) -> Target:
    features = np.random.default_rng(seed).normal(size=(h, w, DIM)).astype(np.float32)
    return Target.dense(features, window or Window.pixel())


def wall(depth_m: float, camera: Camera = CAMERA, T=None):
    """A frame of a wall square to the camera."""
    from semfield_ros.frame import make_frame

    shape = (camera.height, camera.width)
    rgb = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    T = np.eye(4) if T is None else T
    return make_frame(stamp_s=0.0, camera=camera, T_world_camera=T, rgb=rgb, depth=np.full(shape, depth_m))


# ---- normals -------------------------------------------------------------------------------------------------------


def test_normals_of_a_tilted_plane_are_its_normal():
    camera = CAMERA.resized(320, 240)
    frame = frame_at(look_at([0.5, 0.2, 0.7], [0.0, 0.0, 0.0]), blocks=(), camera=camera)
    normals = depth_normals(camera, frame.depth_m)
    expected = frame.T_world_camera[:3, :3].T @ [0.0, 0.0, 1.0]
    known = np.abs(normals).sum(-1) > 0
    assert known[10:-10, 10:-10].mean() > 0.99 and not known[:2].any()
    assert (normals[10:-10, 10:-10][known[10:-10, 10:-10]] @ expected).min() > 0.999
    assert (normals[known] @ expected).min() > 0.99, "smoothing is one-sided at the border"


def test_normals_are_unknown_at_edges_and_holes():
    frame = frame_at(look_at([0.7, 0.0, 0.5], [0.0, 0.0, 0.05]))
    depth = frame.depth_m.copy()
    depth[30:34, 20:24] = 0.0
    normals = depth_normals(CAMERA, depth)
    assert not normals[28:36, 18:26][depth[28:36, 18:26] <= 0].any()
    jump = np.abs(np.diff(depth, axis=1)) > 0.15
    rows, columns = np.nonzero(jump[2:-2, 2:-2])
    assert len(rows) and not normals[rows + 2, columns + 2].any(), "a jump is no surface"


# ---- records -------------------------------------------------------------------------------------------------------


def test_records_are_exact_pixels_of_the_frame():
    replay = replay_of()
    frame = frame_at(ring(1)[0])
    replay.write(0, frame, np.random.default_rng(0))
    pixel = replay.pixel[0].numpy()
    assert replay.stride == 2 and len(pixel) == 40 * 30
    assert np.array_equal(replay.depth[0].numpy(), frame.depth_m.reshape(-1)[pixel])
    assert np.array_equal(replay.rgb[0].numpy(), frame.rgb.reshape(-1, 3)[pixel])
    v, u = np.divmod(pixel.reshape(30, 40), CAMERA.width)
    assert np.array_equal(v // 2, np.broadcast_to(np.arange(30)[:, None], (30, 40))), "one record a block, in order"
    assert np.array_equal(u // 2, np.broadcast_to(np.arange(40)[None], (30, 40)))
    assert len(np.unique(pixel % 2)) == 2 and len(np.unique(v % 2)) == 2, "anywhere in the block"


def test_blocks_prefer_pixels_with_depth():
    frame = wall(1.0)
    frame.depth_m[::2] = 0.0  # half of every block
    replay = replay_of()
    replay.write(0, frame, np.random.default_rng(0))
    assert float((replay.depth[0] > 0).float().mean()) == pytest.approx(1 - 1 / 8, abs=0.04), "three draws"


def test_images_that_are_no_multiple_of_the_block_are_covered():
    camera = Camera(83, 61, 70.0, 70.0, 41.0, 30.0)
    replay = replay_of(MemoryConfig(replay_mb=8, pixels_per_keyframe=600), camera)
    frame = wall(1.0, camera)
    replay.write(0, frame, np.random.default_rng(0))
    assert replay.stride == 3 and replay.records == 28 * 21
    assert np.array_equal(replay.rgb[0].numpy(), frame.rgb.reshape(-1, 3)[replay.pixel[0].numpy()])
    assert (replay.depth[0] == 1.0).all()


def test_incidence_is_the_cosine_to_the_surface():
    replay = replay_of()
    replay.write(0, wall(1.0), np.random.default_rng(0))
    rays = replay.rays(2000, 0.0, generator())
    forward = 1 / rays.norms
    assert float(((rays.incidence - forward).abs() < 0.01).float().mean()) > 0.8, "a wall: cosine to the optical axis"
    assert (((rays.incidence - forward).abs() < 0.01) | (rays.incidence == 1)).all(), "or unknown, at the border"


def test_rays_reproduce_the_points_of_the_frame():
    replay = replay_of()
    T = ring(5)[2]
    frame = frame_at(T)
    replay.write(0, frame, np.random.default_rng(0))
    rays = replay.rays(3000, 0.3, generator())
    ends = (rays.origins + rays.directions * rays.depth_m[:, None]).numpy()
    truth, _ = back_project(frame.camera, T, frame.depth_m)
    keys = {tuple(p) for p in np.round(truth, 4)}
    near = [tuple(p) in keys for p in np.round(ends, 4)]
    assert np.mean(near) > 0.9
    assert torch.allclose(rays.directions.norm(dim=1), rays.norms, atol=1e-5)
    # on a face of the scene, exactly
    on_table = np.abs(ends[:, 2]) < 1e-4
    on_block = np.zeros(len(ends), bool)
    for block in BLOCKS:
        low, high = np.array(block.low) - 1e-4, np.array(block.high) + 1e-4
        inside = ((ends >= low) & (ends <= high)).all(1)
        on_face = (np.minimum(np.abs(ends - block.low), np.abs(ends - block.high)) < 2e-4).any(1)
        on_block |= inside & on_face
    assert (on_table | on_block).all()


def test_pixels_without_depth_are_no_rays():
    frame = wall(1.0)
    frame.depth_m[:, :40] = 0.0
    replay = replay_of()
    replay.write(0, frame, np.random.default_rng(0))
    rays = replay.rays(2000, 0.0, generator())
    assert 800 < len(rays.depth_m) < 1200 and (rays.depth_m == 1.0).all()
    frame.depth_m[:] = 0.0
    replay.write(0, frame, np.random.default_rng(0))
    assert len(replay.rays(100, 0.0, generator()).depth_m) == 0


def test_a_pose_correction_moves_rays_and_patches_with_it():
    replay = replay_of()
    replay.write(0, wall(1.0), np.random.default_rng(0))
    replay.write_target(0, target_of(6, 8))
    before, patches = replay.rays(500, 0.0, generator()), replay.patches(50, 4, True, 0.0, generator())
    T = look_at([1.0, -2.0, 0.7], [0.3, 0.1, 0.0])
    replay.set_pose(0, T)
    after, moved = replay.rays(500, 0.0, generator()), replay.patches(50, 4, True, 0.0, generator())
    ends = before.origins + before.directions * before.depth_m[:, None]
    expected = transform_points(T, ends.numpy())
    assert np.abs((after.origins + after.directions * after.depth_m[:, None]).numpy() - expected).max() < 1e-5
    assert np.abs(moved.points.numpy() - transform_points(T, patches.points.numpy())).max() < 1e-5
    assert torch.equal(before.rgb, after.rgb) and torch.equal(before.depth_m, after.depth_m)


# ---- budgets and slots ---------------------------------------------------------------------------------------------


def test_capacity_follows_the_budget_and_bytes_are_what_is_allocated():
    config = MemoryConfig(replay_mb=1, max_keyframes=400, pixels_per_keyframe=1200)
    replay = replay_of(config)
    held = sum(getattr(replay, name).nbytes for name in Replay._TENSORS)
    held += sum(getattr(replay.language, name).nbytes for name in TENSORS)
    assert held == replay.bytes <= 2**20 and replay.capacity == 2**20 // replay.bytes_per_slot < 400
    assert replay_of(MemoryConfig(replay_mb=512, max_keyframes=3)).capacity == 3
    rng = np.random.default_rng(0)
    for i in range(3 * replay.capacity):
        replay.write(i % replay.capacity, wall(1.0), rng)
        replay.write_target(i % replay.capacity, target_of(6, 8))
    after = sum(getattr(replay, name).nbytes for name in Replay._TENSORS)
    assert after + sum(getattr(replay.language, name).nbytes for name in TENSORS) == held, "nothing grows"
    assert len(replay.order) == len(replay.language.slots) == replay.capacity


def test_a_slot_is_overwritten_whole():
    replay = replay_of(MemoryConfig(replay_mb=8, max_keyframes=2, pixels_per_keyframe=1200))
    rng = np.random.default_rng(0)
    for slot in (0, 1):
        replay.write(slot, wall(1.0 + slot), rng)
        replay.write_target(slot, target_of(6, 8))
    replay.write(0, wall(3.0), rng)
    assert replay.order == [1, 0], "the newest is last"
    assert replay.language.slots == [1], "its old features went with the old frame"
    assert set(replay.rays(500, 0.0, generator()).depth_m.tolist()) == {2.0, 3.0}
    patches = replay.patches(200, 2, True, 0.3, generator())
    assert patches.points[..., 2].unique().tolist() == [2.0]
    assert (replay.language.cell_row[0] == -1).all()


def test_recent_keyframes_are_drawn_more_often():
    replay = replay_of(MemoryConfig(replay_mb=8, max_keyframes=16, pixels_per_keyframe=1200))
    for slot in range(16):
        replay.write(slot, wall(1.0), np.random.default_rng(0))
    slots = replay.rays(20_000, 0.5, generator()).slots
    share = torch.bincount(slots, minlength=16) / len(slots)
    assert float(share[14:].sum()) == pytest.approx(0.5 + 0.5 * 2 / 16, abs=0.02), "half from the newest eighth"
    assert float(share[:14].min()) == pytest.approx(0.5 / 16, abs=0.01)
    even = replay.rays(20_000, 0.0, generator()).slots
    assert float((torch.bincount(even, minlength=16) / len(even)).max()) < 0.08


def test_frames_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(83, 61\).*\(80, 60\)"):
        replay_of().write(0, wall(1.0, Camera(83, 61, 70.0, 70.0, 41.0, 30.0)), np.random.default_rng(0))


def test_state_round_trip():
    first = replay_of()
    rng = np.random.default_rng(0)
    for slot, T in enumerate(ring(3)):
        first.write(slot, frame_at(T), rng)
        if slot != 1:
            first.write_target(slot, target_of(6, 8, Window.gaussian(3.0, 1.0)))
    first.write(0, frame_at(ring(4)[3]), rng)
    first.write_target(0, target_of(6, 8, Window.gaussian(3.0, 1.0)))
    second = replay_of()
    state = {k: v.clone() for k, v in first.state().items()}
    second.load(state, json.loads(json.dumps(first.describe())))
    a, b = (r.rays(300, 0.3, generator()) for r in (first, second))
    p, q = (r.patches(60, 4, True, 0.3, generator()) for r in (first, second))
    for name in ("origins", "directions", "depth_m", "rgb", "incidence", "slots"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for name in ("points", "valid", "values", "confidence"):
        assert torch.equal(getattr(p, name), getattr(q, name)), name


# ---- features and windows ------------------------------------------------------------------------------------------


def test_no_measurements_are_no_patches():
    replay = replay_of()
    replay.write(0, wall(1.0), np.random.default_rng(0))
    assert replay.patches(10, 4, True, 0.3, generator()) is None
    features = np.zeros((6, 8, DIM), np.float32)
    replay.write_target(0, Target.dense(features, Window.pixel()))
    assert replay.patches(10, 4, True, 0.3, generator()) is None, "a target in which nothing was measured"


def test_patches_lie_on_the_surface_and_carry_their_cells_value():
    replay = replay_of()
    T = ring(5)[1]
    frame = frame_at(T)
    replay.write(0, frame, np.random.default_rng(0))
    target = target_of(6, 8)
    replay.write_target(0, target)
    batch = replay.patches(400, 4, True, 0.3, generator())
    assert batch.points.shape == (400, 4, 3) and batch.values.shape == (400, DIM)
    local = transform_points(np.linalg.inv(T), batch.points.numpy().astype(np.float64))
    valid = batch.valid.numpy()
    u = CAMERA.fx * local[..., 0] / local[..., 2] + CAMERA.cx
    v = CAMERA.fy * local[..., 1] / local[..., 2] + CAMERA.cy
    row, column = np.rint(v[valid]).astype(int), np.rint(u[valid]).astype(int)
    assert np.abs(frame.depth_m[row, column] - local[..., 2][valid]).max() < 1e-4, "a pixel's own depth"
    cell = (row // 10) * 8 + column // 10
    patch = np.broadcast_to(np.arange(400)[:, None], (400, 4))[valid]
    mine = target.values[cell] - batch.values.numpy()[patch]
    # the record of a block can lie one pixel over the border of the cell
    assert (np.abs(mine).max(1) < 1e-3).mean() > 0.85
    seen = {tuple(np.round(x, 2)) for x in batch.values.numpy()}
    assert len(seen) == 48, "every cell is drawn"


@pytest.mark.parametrize("through_window", [True, False])
def test_points_are_drawn_as_the_window_weighs_them(through_window):
    """A measurement's points, as offsets from its centre, against the kernel it was measured through."""
    camera = Camera(85, 85, 70.0, 70.0, 42.0, 42.0)
    rng = np.random.default_rng(0)
    kernel = rng.random((5, 5)).astype(np.float32)
    kernel[0, :] = 0.0
    kernel /= kernel.sum()
    window = Window(kernel, pitch_px=3.0)
    # 17 x 17 cells of 5 px; only the middle one, centred on pixel (42, 42), was measured
    features = np.zeros((17, 17, DIM), np.float32)
    features[8, 8, 0] = 1.0
    config = MemoryConfig(replay_mb=8, pixels_per_keyframe=100_000)
    replay = replay_of(config, camera, FeatureShape(DIM, 289, 289))
    replay.write(0, wall(1.0, camera), rng)
    assert replay.stride == 1, "records are exact"
    replay.write_target(0, Target.dense(features, window))
    batch = replay.patches(120_000, 32, through_window, 0.0, generator())
    points = batch.points.reshape(-1, 3).numpy()
    du, dv = (np.rint(points[:, axis] * 70.0).astype(int) for axis in (0, 1))
    assert batch.valid.all() and len(du) > 8_000
    reach = 7 if through_window else 2
    assert max(np.abs(du).max(), np.abs(dv).max()) == reach
    histogram = np.zeros((15, 15))
    np.add.at(histogram, (dv + 7, du + 7), 1 / len(du))
    if through_window:
        found, expected = histogram.reshape(5, 3, 5, 3).sum((1, 3)), kernel
    else:
        found, expected = histogram[5:10, 5:10], np.full((5, 5), 1 / 25)
    assert np.abs(found - expected).max() < 4 * np.sqrt(expected.max() / len(du))


def test_window_rays_outside_the_image_are_not_valid():
    replay = replay_of()
    replay.write(0, wall(1.0), np.random.default_rng(0))
    replay.write_target(0, target_of(6, 8, Window.box(200.0, 20.0)))
    batch = replay.patches(300, 16, True, 0.0, generator())
    assert 0.1 < float(batch.valid.float().mean()) < 0.6


def test_sparse_targets_share_rows_and_skip_unmeasured_cells():
    values = np.eye(2, DIM, dtype=np.float32)
    index = np.full((6, 8), -1, np.int32)
    index[:, 6:], index[0, :2] = 1, 0
    target = Target(values, index, np.array([0.25, 0.75], np.float32), Window.pixel())
    replay = replay_of(shape=FeatureShape.of(target))
    assert replay.language.shape == FeatureShape(DIM, 128, 48), "masks: room for 128 of them"
    replay.write(0, wall(1.0), np.random.default_rng(0))
    replay.write_target(0, target)
    batch = replay.patches(2000, 3, True, 0.0, generator())
    assert len(batch.values) == pytest.approx(2000 * 14 / 48, rel=0.2), "unmeasured cells fall out"
    second = batch.values[:, 1] == 1
    assert torch.equal(batch.confidence, torch.where(second, 0.75, 0.25))
    assert float(second.float().mean()) == pytest.approx(12 / 14, abs=0.05), "as often as it has cells"
    right = batch.points[..., 0] > pixel_directions(CAMERA, np.array(57.5), np.array(0.0))[0]
    assert torch.equal(right.all(1), second)


@pytest.mark.parametrize(("h", "w"), [(7, 9), (12, 16), (5, 5), (60, 80), (1, 49)])
def test_targets_larger_than_their_room_are_thinned_out(h, w):
    for room in (3, 20, 48):
        replay = replay_of(shape=FeatureShape(DIM, room, room))
        replay.write(0, wall(1.0), np.random.default_rng(0))
        # a feature that says where it was measured
        v, u = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        features = np.stack([u, v, np.ones_like(u), 0 * u], -1)
        replay.write_target(0, Target.dense(features, Window.pixel()))
        batch = replay.patches(500, 2, True, 0.0, generator())
        where = batch.values[:, :2] / batch.values[:, 2:3] * torch.tensor([80.0, 60.0]) - 0.5
        points = batch.points / batch.points[..., 2:3]
        pixel = torch.stack([points[..., 0] * CAMERA.fx + CAMERA.cx, points[..., 1] * CAMERA.fy + CAMERA.cy], -1)
        grid = tuple(replay.language.grid_shape[0].tolist())
        assert len(batch.values) == 500 and room / 4 <= grid[0] * grid[1] <= room
        # half a kept cell, half an original cell, and a block of records
        reach = torch.tensor([80.0 / grid[1], 60.0 / grid[0]]) / 2 + torch.tensor([80.0 / w, 60.0 / h]) / 2 + 2
        assert ((pixel - where[:, None]).abs() <= reach).all()


def test_neighbours_lie_on_the_surface_and_weigh_little_across_edges():
    """On the analytic table: pairs of one face weigh 1 (one colour, small steps of depth), pairs of two things less."""
    replay, rng, stub = None, np.random.default_rng(0), create(EncoderConfig(name="stub"))
    for slot, T in enumerate(ring(6)):
        frame = frame_at(T)
        target = stub.encode_frame(frame)
        if replay is None:
            replay = Replay(SMALL.memory, 80, 60, FeatureShape.of(target), "cpu")
        replay.write(slot, frame, rng)
    pairs = replay.neighbours(4000, torch.Generator().manual_seed(0))
    assert 2000 < len(pairs.weight) <= 4000 and pairs.a.shape == pairs.b.shape == (len(pairs.weight), 3)

    def thing(points):
        inside = [
            ((points > torch.tensor(b.low) - 1e-3) & (points < torch.tensor(b.high) + 1e-3)).all(1) for b in BLOCKS
        ]
        on_table = points[:, 2].abs() < 1e-3
        return torch.where(inside[0], 1, torch.where(inside[1], 2, torch.where(on_table, 0, -1)))

    a, b = thing(pairs.a), thing(pairs.b)
    assert ((a >= 0) & (b >= 0)).float().mean() > 0.99, "they lie on what is there"
    same = (a == b) & (a >= 0)
    assert same.float().mean() > 0.7 and float(pairs.weight[same].median()) > 0.8
    apart = (a != b) & (a >= 0) & (b >= 0)
    # a table pixel within a millimetre of a block counts as the block above, hence not all
    assert float((pairs.weight[apart] < 0.05).float().mean()) > 0.98, "red, blue and white are far apart"
    assert (pairs.weight >= 0).all() and (pairs.weight <= 1).all()


def test_kernels_draw_what_torch_draws(monkeypatch):
    """The same random numbers give the same rays, windows and pairs, with numba and without."""
    from semfield_ros.memory import replay as replays

    if replays.rays_cpu is None:
        pytest.skip("numba is not installed")
    replay = mapped(4).replay
    found = []
    for enabled in (True, False):
        if not enabled:
            monkeypatch.setattr(replays, "rays_cpu", None)
        generator = torch.Generator().manual_seed(6)
        found.append((
            replay.rays(300, 0.3, generator), replay.neighbours(500, generator),
            replay.patches(40, 6, True, 0.3, generator, 3.0), replay.patches(40, 6, False, 0.3, generator),
        ))  # fmt: skip
    for fast, slow in zip(*found):
        for name, expected in vars(slow).items():
            actual = getattr(fast, name)
            assert actual.shape == expected.shape and actual.dtype == expected.dtype, name
            assert torch.allclose(actual.float(), expected.float(), atol=2e-6), name
    assert not found[0][2].valid.all() and len(found[0][1].weight) > 100
