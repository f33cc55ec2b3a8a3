"""The simulated building: a plan that can be walked, images that agree with geometry, truth that agrees with images."""

from itertools import pairwise

import numpy as np
import pytest

from semfield_ros.errors import ConfigError, SourceError
from semfield_ros.geometry import Camera, back_project, image_directions, look_at, visible
from semfield_ros.sources import open_source
from semfield_ros.sources.simulator_floorplan import (
    HEIGHT_M,
    LARGE,
    PITCH_M,
    TABLE_Z_M,
    centre_of,
    serpentine,
    structure,
    walk,
)

pytest.importorskip("mujoco")
from semfield_ros.sources.simulator_building import Building, BuildingConfig, cast_boxes


@pytest.fixture(scope="module")
def building():
    return Building(BuildingConfig(rooms=4, frames_per_room=24, width=64, height=48))


# ---- the plan ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rooms", [1, 2, 5, 20, 23])
def test_rooms_are_visited_from_door_to_door(rooms):
    cells = serpentine(rooms)
    assert len(set(cells)) == rooms
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in pairwise(cells))


def test_the_walk_passes_doors_and_no_wall():
    cells = serpentine(6)
    rng = np.random.default_rng(0)
    boxes = structure(rng, cells, ("void", "floor", "wall", "table", *LARGE))
    poses = walk(rng, cells, 400)
    eyes = poses[:, :3, 3]
    inside = ((eyes[:, None] > boxes.low - 0.05) & (eyes[:, None] < boxes.high + 0.05)).all(2)
    assert not inside.any(), "nothing is walked through"
    assert (eyes[:, 2] > 1.0).all() and (eyes[:, 2] < HEIGHT_M).all()
    assert np.linalg.norm(np.diff(eyes, axis=0), axis=1).max() < 0.15, "no step is a jump"
    turn = np.arccos(np.clip((np.einsum("kij,kij->k", poses[1:, :3, :3], poses[:-1, :3, :3]) - 1) / 2, -1, 1))
    assert np.degrees(turn).max() < 40
    for k, cell in enumerate(cells):
        mine = poses[400 * k + 30 : 400 * (k + 1) - 30]
        assert (np.abs(mine[:, :2, 3] - centre_of(cell)[:2]) < PITCH_M / 2).all()
        towards = (centre_of(cell) + [0, 0, TABLE_Z_M]) - mine[:, :3, 3]
        looking = np.einsum("ij,ij->i", towards / np.linalg.norm(towards, axis=1, keepdims=True), mine[:, :3, 2])
        assert (looking > 0.9).mean() > 0.4 and (looking < -0.3).mean() > 0.3, "at the table, then at the walls"


# ---- boxes ---------------------------------------------------------------------------------------------------------


def test_boxes_are_cast_as_geometry_says():
    """Against hits found by testing every ray with every side, in double precision."""
    rng = np.random.default_rng(1)
    low = rng.uniform(-3, 2.5, (30, 3))
    high = low + rng.uniform(0.05, 1.0, (30, 3))
    camera = Camera(40, 30, 25.0, 25.0, 19.5, 14.5)
    T = look_at([0.1, -4.0, 0.3], [0.0, 0.0, 0.0])
    z, box, normal = cast_boxes(low, high, camera, T)
    rays = image_directions(camera).reshape(-1, 3).astype(np.float64) @ T[:3, :3].T
    best, which = np.full(len(rays), np.inf), np.full(len(rays), -1)
    for b in range(30):
        for axis in range(3):
            for plane in (low[b, axis], high[b, axis]):
                t = (plane - T[axis, 3]) / rays[:, axis]
                at = T[:3, 3] + rays * t[:, None]
                others = [a for a in range(3) if a != axis]
                on = (t > 0) & ((at[:, others] >= low[b, others]) & (at[:, others] <= high[b, others])).all(1)
                closer = on & (t < best)
                best[closer], which[closer] = t[closer], b
    agree = box == which
    assert agree.mean() > 0.995 and (which >= 0).mean() > 0.3, "single rays may slip along an edge"
    hit = agree & (which >= 0)
    assert np.abs(z[hit] - best[hit]).max() < 1e-4 and (z[which < 0] == 0).mean() > 0.99
    assert np.allclose(np.linalg.norm(normal[hit], axis=1), 1) and ((normal[hit] * rays[hit]).sum(1) < 0).all()
    assert (cast_boxes(low, high, camera, look_at([0.1, -9, 0.3], [0, -20, 0]))[1] == -1).all(), "all behind"


def test_from_inside_a_box_nothing_is_seen_of_it():
    camera = Camera(8, 8, 8.0, 8.0, 3.5, 3.5)
    z, box, _ = cast_boxes(np.full((1, 3), -1.0), np.full((1, 3), 1.0), camera, look_at([0, 0, 0], [1, 0, 0]))
    assert (box == -1).all() and (z == 0).all()


# ---- images --------------------------------------------------------------------------------------------------------


def test_frames_agree_with_each_other(building):
    """The surface one view measures is where another one sees it."""
    a, b = (building.render(building.path[i], noisy=False) for i in (4, 5))
    points, index = back_project(a.camera, a.T_world_camera, a.depth_m)
    seen, pixel = visible(b.camera, b.T_world_camera, b.depth_m, points, tolerance_m=0.05)
    assert seen.mean() > 0.4
    same = a.semantic.reshape(-1)[index][seen] == b.semantic.reshape(-1)[pixel[seen]]
    assert same.mean() > 0.93


def test_surfaces_lie_where_the_plan_has_them(building):
    frame = building.render(building.path[6], noisy=False)
    points, index = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
    semantic = frame.semantic.reshape(-1)[index]
    name = {n: i for i, n in enumerate(building.class_names)}
    assert np.abs(points[semantic == name["floor"], 2]).max() < 1e-3
    table = points[semantic == name["table"]]
    assert np.abs(table[:, 2] - TABLE_Z_M).min() < 1e-3 and table[:, 2].max() < TABLE_Z_M + 1e-3
    things = points[(semantic > 3) & (semantic < name["cabinet"])]
    assert len(things) > 5 and (things[:, 2] > TABLE_Z_M - 1e-3).all() and (things[:, 2] < TABLE_Z_M + 0.4).all()
    assert (building.room_of(points) >= 0).mean() > 0.98
    assert set(np.unique(frame.instance[frame.semantic > 3])) > {0} or (frame.instance[frame.semantic > 3] > 0).all()


def test_frames_are_deterministic_and_valid(building):
    first, again = (Building(building.config).render(building.path[30], 1.0) for _ in range(2))
    assert np.array_equal(first.rgb, again.rgb) and np.array_equal(first.depth_m, again.depth_m)
    assert first.rgb.std() > 5 and np.isfinite(first.depth_m).all() and (first.depth_m > 0).mean() > 0.5
    other = Building(BuildingConfig(seed=1, rooms=4, frames_per_room=24, width=64, height=48))
    assert not np.array_equal(other.render(building.path[30], 1.0).rgb, first.rgb)


def test_every_room_has_things_to_find(building):
    for room in range(4):
        points, semantic = building.surface_points(room, 2000, views=24)
        assert (building.room_of(points) == room).all() and 1000 < len(points) <= 2000
        assert {1, 2, 3} <= set(semantic.tolist()) and (semantic > 3).sum() > 20


def test_a_stream_is_its_path(building):
    assert len(building) == 96
    frames = [f for _, f in zip(range(3), building)]
    assert [f.stamp_s for f in frames] == [i / 30 for i in range(3)]
    late = list(open_source("building?rooms=4&frames_per_room=24", width=64, start=90, stride=2))
    assert [round(30 * f.stamp_s) for f in late] == [90, 92, 94]
    assert all(np.array_equal(f.T_world_camera, building.path[i]) for i, f in enumerate(frames))


# ---- names ---------------------------------------------------------------------------------------------------------


def test_buildings_are_opened_by_name():
    source = open_source("building:3?rooms=2&frames_per_room=16", width=64, limit=5)
    assert source.name == "building:3" and len(source) == 5 and next(iter(source)).depth_m.shape == (48, 64)
    assert len(open_source("building")) == 10_000 and len(open_source("building?rooms=3")) == 1500


@pytest.mark.parametrize(
    "uri", ["building:x", "building?rooms=", "building?room=3", "building?rooms=3&", "building:1?-", "building:1:2"]
)
def test_unknown_buildings_are_refused(uri):
    with pytest.raises(SourceError, match="rooms=N"):
        open_source(uri)


@pytest.mark.parametrize(
    "wrong", [{"rooms": 0}, {"rooms": 2.5}, {"frames_per_room": 1}, {"width": 4}, {"depth_noise": -1}, {"seed": True}]
)
def test_unusable_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BuildingConfig(**wrong)
