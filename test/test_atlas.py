"""An atlas: one map in blocks of space. A border may go between the boxes of the table."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import SMALL as WELL_TRAINED
from analytic_scene import Block, frame_at, mapped, ring, stream

from semfield_ros import checkpoint
from semfield_ros.answer import answer
from semfield_ros.atlas import Atlas, block_config, new_map
from semfield_ros.atlas_files import bytes_of, folder_of, load_map, save_map
from semfield_ros.config import EncoderConfig, GridConfig, QueryConfig
from semfield_ros.encoders import create
from semfield_ros.engine import Engine
from semfield_ros.errors import CheckpointError, ConfigError, QueryError
from semfield_ros.export import field_mesh
from semfield_ros.field import snapshot as snapshots
from semfield_ros.field.world import WorldSnapshot
from semfield_ros.geometry import look_at
from semfield_ros.mapping import Mapping
from semfield_ros.memory.cubes import Cube, cells_of, surface_shares
from semfield_ros.memory.features import FeatureShape
from semfield_ros.memory.point_map import PointMap, voxel_keys
from semfield_ros.query.click import prompts_like
from semfield_ros.query.prompt import PromptEncoder
from semfield_ros.query.scores import score_points
from semfield_ros.query.view import render_view

SMALL = replace(
    WELL_TRAINED,
    train=replace(WELL_TRAINED.train, rays=64, feature_patches=16, smooth_pairs=16),
    memory=replace(WELL_TRAINED.memory, replay_mb=2, pixels_per_keyframe=1200),
    field=replace(
        WELL_TRAINED.field, geometry_grid=GridConfig(levels=2, log2_table=10, min_resolution=4, max_resolution=16),
        feature_grid=GridConfig(levels=2, log2_table=10, min_resolution=4, max_resolution=16), hidden=16,
    ),
)  # fmt: skip
STUB = create(EncoderConfig(name="stub"))
TEXTS = PromptEncoder(STUB, QueryConfig())
EDGE_M = 4.0
"""Of the blocks; a border goes between the two boxes of the scene."""


@pytest.fixture(autouse=True)
def trusted_soon(monkeypatch):
    """The field answers after a few steps: what it says is not the matter here."""
    monkeypatch.setattr(snapshots, "TRUSTED_STEPS", 10)


def config(edge_m: float | None = EDGE_M, **memory):
    return replace(SMALL, memory=replace(SMALL.memory, **{"block_m": edge_m, **memory}))


def shifted(frame, offset, edge_m: float = EDGE_M):
    """The same view of a scene that stands elsewhere: so far from the least corner of the block (0, 0, 0)."""
    T = frame.T_world_camera.copy()
    T[:3, 3] += np.asarray(offset) - edge_m / 2
    return replace(frame, T_world_camera=T)


AWAY = np.array([0.0, 1.7, 1.0])
"""Puts the scene across the border between the blocks (-1, 0, 0) and (0, 0, 0) alone."""


def fill(map, frames, steps: int = 0):
    for frame in frames:
        target = STUB.encode_frame(frame)
        map.saw(frame)
        if map.accepts(frame):
            map.add_features(map.add_keyframe(frame, FeatureShape.of(target)), frame, target)
    for _ in range(steps):
        map.train_step()
    return map


def two_blocks(steps: int = 0, n: int = 8, **memory) -> Atlas:
    return fill(Atlas(config(**memory), STUB, "cpu"), [shifted(f, AWAY) for f in stream(n)], steps)


def rooms(cells, n: int = 6, steps: int = 0, **memory) -> Atlas:
    """The scene in the middle of several blocks, one after the other."""
    atlas = Atlas(config(**memory), STUB, "cpu")
    for k, (i, j) in enumerate(cells):
        offset = np.array([(i + 0.5) * EDGE_M, (j + 0.5) * EDGE_M, 1.0])
        fill(atlas, [shifted(f, offset) for f in stream(n, first_s=10.0 * k)], steps)
    return atlas


def ask(snapshot, prompt="red", **options):
    return answer(snapshot, TEXTS, [prompt], config=SMALL, grasps=False, **options)


def red_rooms(snapshot) -> list[int]:
    """Which blocks, along x, have a red box."""
    found = ask(snapshot, source="points").objects
    return sorted({round(float(o.box.centre[0]) / EDGE_M) for o in found if o.n_points > 50})


def everything(snapshot) -> dict[str, np.ndarray]:
    """All that an answer says, as arrays."""
    found = answer(snapshot, TEXTS, ["red", "blue"], config=SMALL, grasps=False)
    arrays = {name: getattr(found.cloud, name) for name in ("points", "normals", "rgb", "observations", "last_seen_s")}
    arrays |= {name: getattr(found.scores, name) for name in ("cosine", "relevancy", "seen", "from_field")}
    return arrays | {f"box{k}": o.box.centre for k, o in enumerate(found.objects)}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# ---- space is partitioned ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge_m", [0.31, 1.0, 2.5])
def test_every_voxel_is_of_exactly_one_cube(edge_m):
    rng = np.random.default_rng(0)
    points = rng.uniform(-3, 3, (5000, 3)).astype(np.float32)
    cells = cells_of(points, 0.02, edge_m)
    owners = sum(Cube(tuple(c), edge_m).owns(points, 0.02).astype(int) for c in np.unique(cells, axis=0).tolist())
    assert (owners == 1).all()
    _, first, inverse = np.unique(voxel_keys(points, 0.02), return_index=True, return_inverse=True)
    assert (cells == cells[first][inverse]).all(), "no voxel is cut"
    distance = np.abs(points - cells * edge_m).max(1)
    assert (distance <= edge_m / 2 + 0.02).all(), "and lies where it says, to a voxel"


def test_shares_of_a_frame_are_counted_exactly():
    frame = shifted(stream(1)[0], AWAY)
    from semfield_ros.geometry import back_project

    points, _ = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
    shares = surface_shares(frame, 0.02, EDGE_M, sample=10**6)
    assert sum(shares.values()) == pytest.approx(1.0) and list(shares.values()) == sorted(shares.values())[::-1]
    for cell, share in shares.items():
        assert share == pytest.approx(Cube(cell, EDGE_M).owns(points, 0.02).mean())


def test_blocks_hold_the_voxels_of_one_map_between_them():
    frames = [shifted(f, AWAY) for f in stream(6)]
    whole = PointMap(SMALL.memory, STUB.dim)
    cells = {cell for frame in frames for cell in surface_shares(frame, 0.02, EDGE_M, sample=10**6)}
    parts = {cell: PointMap(SMALL.memory, STUB.dim, Cube(cell, EDGE_M)) for cell in cells}
    for frame in frames:
        target = STUB.encode_frame(frame)
        for points in (whole, *parts.values()):
            points.fuse(frame)
            points.fuse_features(frame, target)
    keys = np.concatenate([p.keys for p in parts.values()])
    assert np.array_equal(np.sort(keys), whole.keys) and sum(len(p) > 500 for p in parts.values()) >= 2
    for part in parts.values():
        mine = np.isin(whole.keys, part.keys)
        for name, values in part.state().items():
            assert np.array_equal(values, whole.state()[name][mine]), name


def test_a_blocks_rays_end_in_it_or_near():
    atlas = two_blocks()
    assert set(atlas.awake) == {(-1, 0, 0), (0, 0, 0)}
    for cell, mapping in atlas.awake.items():
        cube = Cube(cell, EDGE_M)
        rays = mapping.replay.rays(2000, 0.0, torch.Generator().manual_seed(0))
        ends = (rays.origins + rays.directions * rays.depth_m[:, None]).numpy()
        assert cube.reaches(ends, cube.margin_m + 1e-4).all() and not cube.reaches(ends, 0.05).all()
        assert mapping.field.workspace.centre_m == cube.centre_m
        assert mapping.field.workspace.extent_m == EDGE_M + 2 * cube.margin_m


def test_slivers_of_surface_wake_no_block():
    atlas = fill(Atlas(config(), STUB, "cpu"), [shifted(f, [1.8, 1.7, 1.0]) for f in stream(1)])
    frame = shifted(stream(1)[0], [1.8, 1.7, 1.0])
    slivers = {c for c, s in surface_shares(frame, 0.02, EDGE_M).items() if s < 0.08}
    assert slivers and not slivers & set(atlas.awake)


def test_what_is_seen_through_is_forgotten_in_a_block_without_a_share():
    atlas = Atlas(config(edge_m=1.0), STUB, "cpu")
    lone = Block((-0.15, -0.15, 0.0), (0.15, 0.15, 0.3), "red")

    def view(blocks, stamp_s):
        frame = frame_at(look_at([0.0, -0.6, 0.5], [0.0, 0.0, 0.05]), stamp_s, blocks)
        return shifted(frame, [0.5, 0.7, -0.02], 1.0)  # the table below the border, the box above it

    fill(atlas, [view((lone,), 0.0)])
    before = len(atlas.awake[(0, 0, 0)].points)
    assert before > 200
    for k in range(1, 8):
        frame = view((), float(k))
        assert (0, 0, 0) not in surface_shares(frame, 0.02, 1.0)
        atlas.saw(frame)
        atlas.add_keyframe(frame, atlas.feature_shape)
    assert len(atlas.awake[(0, 0, 0)].points) < 0.1 * before


# ---- without blocks nothing is different ---------------------------------------------------------------------------


def test_without_blocks_it_is_one_mapping():
    assert isinstance(new_map(SMALL, STUB, "cpu"), Mapping)
    assert isinstance(new_map(config(), STUB, "cpu"), Atlas)


def test_one_large_block_learns_exactly_what_one_map_does():
    """Same workspace, same surface, same order of steps: bitwise the same answers."""
    atlas = Atlas(config(edge_m=20.0), STUB, "cpu")
    frames = [shifted(f, np.zeros(3), 0.0) for f in stream(6)]
    fill(atlas, frames, 20)
    (cell,) = atlas.awake
    plain = Mapping(block_config(config(edge_m=None), Cube(cell, 20.0)), STUB.dim, "cpu")
    fill(plain, frames, 20)
    assert same(everything(atlas.snapshot()), everything(plain.snapshot()))
    for (name, a), b in zip(plain.field.state_dict().items(), atlas.awake[cell].field.state_dict().values()):
        assert torch.equal(a, b), name


# ---- sleep ---------------------------------------------------------------------------------------------------------


def test_a_sleeping_block_answers_bit_for_bit():
    atlas = two_blocks(40)
    awake = everything(atlas.snapshot())
    assert awake["from_field"].any()
    for cell in list(atlas.awake):
        atlas._sleep(cell)
    assert not atlas.awake and atlas.counts["sleeps"] == 2
    assert same(awake, everything(atlas.snapshot()))
    atlas._open(list(atlas.asleep))
    assert not atlas.asleep and atlas.counts["wakes"] == 2
    assert same(awake, everything(atlas.snapshot()))


def test_training_and_mapping_resume_after_sleep():
    atlas = two_blocks(10)
    steps, voxels = atlas.steps, atlas.status().voxels
    for cell in list(atlas.awake):
        atlas._sleep(cell)
    assert (atlas.steps, atlas.status().voxels) == (steps, voxels) and not atlas.can_train
    fill(atlas, [shifted(f, AWAY) for f in stream(24, first_s=5.0)], 10)
    assert len(atlas.awake) == 2 and atlas.steps == steps + 10
    assert max(m.counts["keyframes"] for m in atlas.awake.values()) > 8, "the old keyframes are there"


def test_blocks_in_memory_are_bounded_and_the_last_seen_stay():
    atlas = rooms([(0, 0), (1, 0), (2, 0), (3, 0)], n=3, max_active_blocks=2)
    assert list(atlas.awake) == [(2, 0, 0), (3, 0, 0)] and set(atlas.asleep) == {(0, 0, 0), (1, 0, 0)}
    status = atlas.status()
    assert (status.blocks, status.awake, status.frames) == (4, 2, 12)
    assert status.keyframes == len(atlas.remembered()) == 12
    assert status.voxels == len(atlas.snapshot().cloud)


def test_a_query_finds_what_sleeps():
    atlas = rooms([(0, 0), (1, 0), (2, 0)], n=6, max_active_blocks=1)
    assert red_rooms(atlas.snapshot()) == [0, 1, 2]


def test_an_object_across_a_border_is_one_object():
    straddling = Block((-0.1, -0.1, 0.0), (0.1, 0.1, 0.16), "red")
    frames = [shifted(frame_at(T, 0.1 * i, (straddling,)), AWAY) for i, T in enumerate(ring(10))]
    atlas = fill(Atlas(config(), STUB, "cpu"), frames)
    snapshot = atlas.snapshot()
    assert len(snapshot.parts) == 2
    (found,) = ask(snapshot, source="points").objects
    assert np.allclose(found.box.centre, AWAY - EDGE_M / 2 + [0, 0, 0.08], atol=0.03)
    (alone,) = ask(fill(Mapping(SMALL, STUB.dim, "cpu"), frames).snapshot(), source="points").objects
    assert found.n_points == alone.n_points


def test_what_queries_keep_of_sleeping_blocks_is_bounded(monkeypatch):
    atlas = rooms([(0, 0), (1, 0), (2, 0), (3, 0)], n=4, max_active_blocks=1)
    whole = everything(atlas.snapshot())
    each = atlas.shelf.bytes // 3
    reads = []
    real = checkpoint.read_snapshot
    monkeypatch.setattr(checkpoint, "read_snapshot", lambda path, *a, **k: reads.append(path) or real(path, *a, **k))
    atlas.shelf._read.clear()
    atlas.shelf.budget = int(1.5 * each)
    for _ in range(2):
        assert same(whole, everything(atlas.snapshot()))
        assert 0 < atlas.shelf.bytes <= atlas.shelf.budget
    assert len(reads) > 4, "what does not fit is read again"
    atlas.shelf.budget = 0
    assert same(whole, everything(atlas.snapshot())) and atlas.shelf.bytes == 0


def test_a_region_asks_only_the_blocks_it_reaches(monkeypatch):
    atlas = rooms([(0, 0), (1, 0), (2, 0), (3, 0)], n=4, max_active_blocks=1)
    reads = []
    real = atlas.shelf.read
    monkeypatch.setattr(atlas.shelf, "read", lambda sleeper: reads.append(sleeper.cube.cell) or real(sleeper))
    snapshot = atlas.snapshot()
    found = ask(snapshot, source="points", region=[[2.5, -1.5, -1.5], [5.5, 1.5, 0.5]])
    assert set(reads) == {(1, 0, 0)} and found.objects
    assert (found.cloud.points[:, 0] > 2.5).all() and (found.cloud.points[:, 0] < 5.5).all()
    with pytest.raises(QueryError, match="region"):
        ask(snapshot, region=[[1, 1, 1], [0, 0, 0]])
    assert not len(ask(snapshot, source="points", region=[[100, 0, 0], [101, 1, 1]]).cloud)


# ---- what readers do with it ---------------------------------------------------------------------------------------


def test_scores_at_given_points_are_those_of_their_blocks():
    atlas = two_blocks(40)
    atlas._sleep((0, 0, 0))
    snapshot, texts = atlas.snapshot(), TEXTS.encode(["red", "blue"])
    cloud = snapshot.cloud
    own = score_points(snapshot, texts)
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(cloud))
    mixed = score_points(snapshot, texts, cloud.points[rows])
    for name in ("seen", "from_field"):
        assert (getattr(own, name)[rows] == getattr(mixed, name)).mean() > 0.99, name
    known = own.seen[rows] & mixed.seen & (own.from_field[rows] == mixed.from_field)
    # a voxel's mean may lie in the voxel beside it
    assert np.quantile(np.abs(own.cosine[rows] - mixed.cosine)[known], 0.95) < 1e-5
    odd = np.array([[np.nan, 0, 0], [1e30, 0, 0], [50.0, 50.0, 50.0]], np.float32)
    assert not score_points(snapshot, texts, odd).seen.any()
    assert score_points(snapshot, texts, np.zeros((0, 3))).cosine.shape == (0, 2)


def test_rows_of_the_world_are_those_of_its_parts():
    atlas = two_blocks()
    snapshot = atlas.snapshot()
    rows = snapshot.rows_of(snapshot.cloud.points)
    assert (rows == np.arange(len(rows))).mean() > 0.95 and (rows >= 0).all()
    np.testing.assert_array_equal(
        snapshot.features[np.arange(len(rows))[::-7]],
        np.concatenate([b.snapshot.features for b in snapshot.blocks()])[::-7],
    )
    assert snapshot.features[snapshot.measured].shape == (snapshot.measured.sum(), STUB.dim)
    assert snapshot.features.shape == (len(snapshot.cloud), STUB.dim)


def test_clicks_views_and_meshes_cross_blocks():
    well = replace(WELL_TRAINED, memory=replace(WELL_TRAINED.memory, block_m=EDGE_M))
    atlas = fill(Atlas(well, STUB, "cpu"), [shifted(f, AWAY) for f in stream(8)], 150)
    atlas._sleep((-1, 0, 0))
    snapshot = atlas.snapshot()
    red = AWAY - EDGE_M / 2 + [-0.14, -0.02, 0.16]
    assert prompts_like(snapshot, red).positives @ STUB.encode_text(["red"])[0] > 0.5
    frame = shifted(stream(8)[0], AWAY)
    view = render_view(snapshot, frame.camera, frame.T_world_camera)
    both = (view.depth_m > 0) & (frame.depth_m > 0) & (frame.depth_m < 1.2)
    assert both.mean() > 0.2 and np.median(np.abs(view.depth_m - frame.depth_m)[both]) < 0.03
    vertices, faces, rgb = field_mesh(snapshot, 0.03)
    assert vertices[:, 0].min() < -2.05 and vertices[:, 0].max() > -1.95 and len(rgb) == len(vertices)
    assert faces.max() == len(vertices) - 1 and faces.min() == 0


def test_an_empty_atlas_is_asked_in_vain():
    atlas = Atlas(config(), STUB, "cpu")
    atlas.train_step()
    snapshot = atlas.snapshot()
    assert isinstance(snapshot, WorldSnapshot) and len(snapshot.cloud) == 0 and snapshot.field is None
    assert not ask(snapshot).objects and not snapshot.trusted.any()
    with pytest.raises(QueryError, match="not learnt"):
        ask(snapshot, source="field")
    assert atlas.status().blocks == 0 and atlas.settled_steps == 0


# ---- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["torn", "missing"])
def test_an_unreadable_block_is_counted_and_its_space_unknown(fault, caplog):
    atlas = rooms([(0, 0), (1, 0), (2, 0)], n=4, max_active_blocks=1)
    path = atlas.asleep[(0, 0, 0)].path
    if fault == "torn":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.unlink()
    for _ in range(2):
        assert red_rooms(atlas.snapshot()) == [1, 2]
    assert atlas.status().unreadable == 1 and "unknown until it is seen again" in caplog.text
    fill(atlas, [shifted(f, [2.0, 2.0, 1.0]) for f in stream(4, first_s=50.0)])
    assert red_rooms(atlas.snapshot()) == [0, 1, 2], "seen again, known again"
    assert atlas.status().unreadable == 1


def test_a_block_that_cannot_be_written_is_forgotten_and_counted(monkeypatch, caplog):
    atlas = rooms([(0, 0)], n=3, max_active_blocks=1)

    def full(*_, **__):
        raise CheckpointError("no space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    fill(atlas, [shifted(f, [6.0, 2.0, 1.0]) for f in stream(3, first_s=9.0)])
    assert list(atlas.awake) == [(1, 0, 0)] and not atlas.asleep and atlas.status().unreadable == 1
    assert "no space left" in caplog.text


def test_features_that_come_after_a_block_fell_asleep_are_counted():
    atlas = rooms([(0, 0)], n=1, max_active_blocks=1)
    frame = shifted(stream(4)[1], [2.0, 2.0, 1.0])
    atlas.accepts(frame)
    keyframe = atlas.add_keyframe(frame, atlas.feature_shape)
    fill(atlas, [shifted(f, [6.0, 2.0, 1.0]) for f in stream(1, first_s=9.0)])
    atlas.add_features(keyframe, frame, STUB.encode_frame(frame))
    assert atlas.counts["features_missed"] == 1


def test_unusable_sizes_are_refused():
    with pytest.raises(ConfigError, match=r"block_m is 0\.05.*minimum of 4 voxels"):
        config(edge_m=0.05)
    with pytest.raises(ConfigError, match="max_active_blocks"):
        config(max_active_blocks=0)


def test_a_snapshot_outlives_the_files_of_its_atlas(tmp_path):
    atlas = rooms([(0, 0), (1, 0)], n=3, max_active_blocks=1, block_folder=str(tmp_path / "blocks"))
    assert len(list((tmp_path / "blocks").glob("*/*.semfield"))) == 1
    snapshot = atlas.snapshot()
    del atlas
    assert red_rooms(snapshot) == [0, 1]
    del snapshot
    assert not list((tmp_path / "blocks").iterdir()), "and then they are gone"


# ---- corrections and clearing reach sleeping blocks ----------------------------------------------------------------


def test_pose_corrections_reach_sleeping_blocks():
    atlas = rooms([(0, 0), (1, 0)], n=6, max_active_blocks=1)
    stamps = np.array([k.stamp_s for k in atlas.remembered()])
    poses = np.stack([k.T_world_camera for k in atlas.remembered()])
    poses[:, 2, 3] += 0.1
    done = atlas.correct_poses("", stamps, poses)
    assert (done.corrected, done.unknown) == (12, 0) and done.largest_translation_m == pytest.approx(0.1)
    assert atlas.rebuilding
    for _ in range(60):
        atlas.rebuild_some()
    assert not atlas.rebuilding and len(atlas.awake) == 1
    assert np.allclose([k.T_world_camera[2, 3] for k in atlas.remembered()], poses[:, 2, 3])
    cloud = atlas.snapshot().cloud
    table = np.abs(cloud.rgb.astype(int) - 240).max(1) < 5
    for room in (0, 1):
        mine = table & (np.rint(cloud.points[:, 0] / EDGE_M) == room)
        assert np.abs(cloud.points[mine, 2] + 0.9).mean() < 0.02, "the table stands where the poses now say"
    assert atlas.correct_poses("", np.array([1e6]), poses[:1]).unknown == 1
    with pytest.raises(QueryError, match="rigid"):
        atlas.correct_poses("", stamps[:1], 2 * poses[:1])


def test_clearing_reaches_sleeping_blocks():
    atlas = rooms([(0, 0), (1, 0), (2, 0)], n=4, max_active_blocks=1)
    cleared = atlas.clear_region(np.array([-2.0, -2.0, -2.0]), np.array([6.0, 2.0, 2.0]))
    assert cleared.voxels > 1000 and cleared.rays > 1000
    assert red_rooms(atlas.snapshot()) == [2] and len(atlas.awake) == 1


# ---- who trains ----------------------------------------------------------------------------------------------------


def test_steps_go_to_what_is_seen_and_to_what_needs_them():
    atlas = rooms([(0, 0), (1, 0), (2, 0)], n=2, max_active_blocks=3)
    for _ in range(300):
        atlas.train_step()
    taken = [atlas.awake[(i, 0, 0)].steps for i in range(3)]
    assert sum(taken) == 300 and taken[2] == pytest.approx(200, abs=5), "half, and a third of the other half"
    assert taken[0] == pytest.approx(50, abs=5) and taken[1] == pytest.approx(50, abs=5)
    assert atlas.settled_steps == min(taken)


def test_settled_blocks_leave_their_steps_to_others():
    atlas = rooms([(0, 0), (1, 0)], n=2)
    atlas.config = replace(atlas.config, train=replace(atlas.config.train, settle_steps=30))
    for _ in range(60):
        atlas.train_step()
    taken = [m.steps for m in atlas.awake.values()]
    assert taken == [30, 30] and atlas.settled_steps == 30


# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_map_in_blocks_comes_back_whole(tmp_path):
    atlas = rooms([(0, 0), (1, 0), (2, 0)], n=4, steps=5, max_active_blocks=2)
    answers = everything(atlas.snapshot())
    path = save_map(tmp_path / "house", atlas, STUB)
    assert path.name == "house.semfield" and checkpoint.saved_config(path) == atlas.config
    assert bytes_of(path) > sum(s.path.stat().st_size for s in atlas.asleep.values())
    loaded = load_map(path, SMALL, STUB, "cpu")
    assert isinstance(loaded, Atlas) and len(loaded.asleep) == 3 and same(answers, everything(loaded.snapshot()))
    assert (loaded.steps, loaded.counts["frames"]) == (atlas.steps, 12)
    fill(loaded, [shifted(f, [2.0, 2.0, 1.0]) for f in stream(9, first_s=70.0)], 3)
    save_map(path, loaded, STUB, overwrite=True)
    assert len(list(folder_of(path).iterdir())) == 1, "one generation of blocks is kept"
    assert same(everything(load_map(path, SMALL, STUB, "cpu").snapshot()), everything(loaded.snapshot()))
    with pytest.raises(CheckpointError, match="exists"):
        save_map(path, loaded, STUB)
    save_map(path, mapped(2), STUB, overwrite=True)
    assert not folder_of(path).exists() and isinstance(load_map(path, SMALL, STUB, "cpu"), Mapping)


def test_a_failed_save_leaves_the_old_map(tmp_path, monkeypatch):
    atlas = rooms([(0, 0), (1, 0)], n=3)
    path = save_map(tmp_path / "house", atlas, STUB)
    answers = everything(load_map(path, SMALL, STUB, "cpu").snapshot())
    fill(atlas, [shifted(f, [2.0, 2.0, 1.0]) for f in stream(9, first_s=70.0)])

    def full(*_, **__):
        raise CheckpointError("no space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(CheckpointError, match="no space"):
        save_map(path, atlas, STUB, overwrite=True)
    assert len(list(folder_of(path).iterdir())) == 1
    assert same(everything(load_map(path, SMALL, STUB, "cpu").snapshot()), answers)


def test_a_saved_map_lacking_a_block_still_answers(tmp_path):
    path = save_map(tmp_path / "house", rooms([(0, 0), (1, 0), (2, 0)], n=4), STUB)
    blocks = sorted(folder_of(path).rglob("*.semfield"))
    blocks[0].unlink()
    whole = bytearray(blocks[1].read_bytes())
    length = int.from_bytes(whole[:8], "little")
    start, _ = json.loads(whole[8 : 8 + length])["points.features"]["data_offsets"]
    whole[8 + length + start + 100] ^= 1  # the checksum tells, on the first read
    blocks[1].write_bytes(whole)
    loaded = load_map(path, SMALL, STUB, "cpu")
    assert red_rooms(loaded.snapshot()) == [2] and loaded.status().unreadable == 2
    other = create(EncoderConfig(name="stub"))
    other.cache_key = "another"
    with pytest.raises(CheckpointError, match="another"):
        load_map(path, SMALL, other, "cpu")
    with pytest.raises(CheckpointError, match="index of a map in blocks"):
        checkpoint.load(path, SMALL, STUB, "cpu")


# ---- in the engine -------------------------------------------------------------------------------------------------


def test_the_engine_maps_asks_saves_and_loads_blocks(tmp_path):
    settings = replace(config(max_active_blocks=1), encoder=EncoderConfig(name="stub"))
    with Engine(settings) as engine:
        for k, offset in enumerate(([2.0, 2.0, 1.0], [6.0, 2.0, 1.0])):
            for frame in stream(5, first_s=10.0 * k):
                engine.submit(shifted(frame, offset), block=True)
        assert engine.drain(30)
        engine.train(steps=20)
        assert red_rooms(engine.snapshot()) == [0, 1]
        status = engine.status().mapping
        assert (status.blocks, status.awake, status.frames) == (2, 1, 10) and status.steps >= 20
        path = engine.save(tmp_path / "house")
        engine.reset()
        assert len(engine.snapshot().cloud) == 0
        engine.load(path)
        assert red_rooms(engine.snapshot()) == [0, 1]
        assert engine.clear_region([-2, -2, -2], [2, 2, 2]).voxels > 500
        assert red_rooms(engine.snapshot()) == [1]
        assert engine.query(["red"], source="points", grasps=False).objects


def test_lost_blocks_are_diagnosed():
    from semfield_ros.engine import EngineStatus
    from semfield_ros.mapping import MappingStatus
    from semfield_ros.node.diagnostics import WARN, engine_finding

    status = EngineStatus(MappingStatus(blocks=7, awake=4, unreadable=2), 0, 0, 0, {}, 0, 0, 0.0, 0.0)
    found = engine_finding(status, 0.0, "", {})
    assert found.level == WARN and "2 blocks" in found.message and found.values["blocks"] == 7
