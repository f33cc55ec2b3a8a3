"""Objects from scored clouds of known scenes, and their boxes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import trimesh
from surface_shapes import about_x, about_z, box, cloud_of, cylinder, disc, moved, mug, sphere, table, tube

from semfield_ros.cloud import SurfaceCloud
from semfield_ros.config import GraspConfig, GripperConfig, ObjectConfig
from semfield_ros.errors import ConfigError, QueryError
from semfield_ros.objects import confidence, find_objects, principal_box, upright_box, with_grasps
from semfield_ros.objects.objects import supports_of
from semfield_ros.objects.support import support_heights, support_patch

WHITE, RED, BLUE, WOOD = (230, 230, 225), (200, 30, 30), (30, 60, 200), (150, 110, 70)
SPACINGS = [0.004, 0.01, 0.02]


def search(*parts, noise=0.01, seed=0, **options):
    """find_objects on (surface, colour, score) parts, with a little noise on the scores."""
    cloud, score = scored(*parts, noise=noise, seed=seed)
    return find_objects(cloud, score, **{"prompt": "thing", "high": 0.6, "low": 0.55, **options})


def search_grasps(*parts):
    """The same, with grasps."""
    return with_grasps(
        search(*parts), scored(*parts)[0],
        objects_config=ObjectConfig(), gripper=GripperConfig(), config=GraspConfig(),
    )  # fmt: skip


def scored(*parts, noise=0.01, seed=0):
    """The cloud [N] of (surface, colour, score) parts, and its scores."""
    cloud = cloud_of(*((surface, colour) for surface, colour, _ in parts))
    score = np.concatenate([np.broadcast_to(s, len(surface[0])) for surface, _, s in parts]).astype(np.float32)
    return cloud, score + np.random.default_rng(seed).normal(0, noise, len(score)).astype(np.float32)


def wood(spacing=0.01, score=0.4):
    return (table(spacing=max(spacing, 0.005)), WOOD, score)


def centres(objects):
    return sorted(tuple(np.round(o.box.centre, 2) + 0.0) for o in objects)


def test_the_supports_of_a_cloud_are_worked_out_once():
    cloud = cloud_of((table(), WOOD))
    up = np.array([0.0, 0.0, 1.0])
    heights = supports_of(cloud, up, 0.012)
    assert np.array_equal(heights, support_heights(cloud.points, cloud.normals, up, tolerance_m=0.012))
    assert supports_of(cloud, up, 0.012) is heights
    assert supports_of(cloud, -up, 0.012) is not heights, "for another direction of gravity"
    assert supports_of(cloud[np.arange(len(cloud))], up, 0.012) is not heights, "another cloud knows nothing of it"


@pytest.mark.parametrize("spacing", SPACINGS)
def test_two_mugs_apart_are_two_objects(spacing):
    a, b = mug(spacing=spacing), moved(mug(spacing=spacing), (0.16, 0.02, 0), about_z(1.0))
    objects = search((a, WHITE, 0.7), (b, WHITE, 0.68), wood(spacing))
    assert len(objects) == 2
    assert [o.id for o in objects] == [0, 1] and objects[0].score > objects[1].score
    first = objects[0]
    np.testing.assert_array_equal(first.rows, np.arange(len(a[0])))
    np.testing.assert_allclose(first.cloud.points, a[0].astype(np.float32))
    assert first.n_points == len(a[0]) and first.prompt == "thing" and first.grasps == ()
    np.testing.assert_allclose(first.centroid, a[0].mean(axis=0), atol=1e-6)
    assert first.box.contains(a[0], 1e-6).all() and not first.box.contains(b[0], 0.01).any()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_table_that_leaks_into_the_score_does_not_glue(spacing):
    here, there = np.array([-0.1, 0, 0]), np.array([0.1, 0, 0])
    top = wood(spacing)[0]
    distance = np.minimum(np.linalg.norm(top[0] - here, axis=1), np.linalg.norm(top[0] - there, axis=1))
    halo = np.where(distance < 0.13, 0.64, 0.4)
    c = cylinder(0.04, 0.1, spacing)
    objects = search((moved(c, here), WHITE, 0.7), (moved(c, there), WHITE, 0.7), (top, WOOD, halo))
    assert len(objects) == 2
    for thing in objects:
        assert thing.n_points == len(c[0]) and (thing.cloud.points[:, 2] > 0.001).all()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_what_lies_on_the_table_is_an_object_though_it_is_as_flat(spacing):
    leaf = box([0, 0, 0.004], [0.25, 0.2, 0.008], spacing, faces="+z")
    objects = search((leaf, RED, 0.7), wood(spacing))
    assert len(objects) == 1 and objects[0].n_points == len(leaf[0])
    np.testing.assert_allclose(objects[0].box.half_extents, [0.125, 0.1, 0], atol=spacing)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_book_that_is_a_support_itself_is_not_glued_to_its_halo(spacing):
    book, top = box([0, 0, 0.015], [0.3, 0.22, 0.03], spacing), wood(spacing)[0]
    halo = np.where((np.abs(top[0]) < [0.2, 0.16, 1]).all(axis=1), 0.64, 0.4)
    objects = search((book, RED, 0.7), (top, WOOD, halo))
    assert len(objects) == 1 and objects[0].n_points == pytest.approx(len(book[0]), rel=0.1)
    assert objects[0].cloud.points[:, 2].min() > 0.001


def test_the_table_itself_can_be_asked_for():
    objects = search((mug(), WHITE, 0.3), wood(0.01, 0.7))
    assert len(objects) == 1 and objects[0].n_points == len(wood()[0][0])


def test_the_middle_of_a_plate_belongs_to_it():
    middle, rim = disc(0.07, 0.006, 0.005), moved(tube(0.09, 0.02, 0.005), (0, 0, 0.01))
    lip = moved(tube(0.075, 0.012, 0.005), (0, 0, 0.016))
    objects = search((middle, WHITE, 0.7), (rim, WHITE, 0.7), (lip, WHITE, 0.7), wood())
    assert len(objects) == 1 and objects[0].n_points == len(middle[0]) + len(rim[0]) + len(lip[0])


@pytest.mark.parametrize("spacing", [0.004, 0.008])
def test_touching_balls_come_apart_at_the_crease(spacing):
    balls = [sphere([x, 0, 0.04], 0.04, spacing) for x in (-0.0405, 0.0405)]
    objects = search(*((b, RED, 0.7) for b in balls), wood(spacing))
    assert len(objects) == 2
    assert sorted(o.n_points for o in objects) == pytest.approx(sorted(len(b[0]) for b in balls), rel=0.05)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_touching_boxes_of_two_colours_come_apart(spacing):
    red, blue = box([-0.03, 0, 0.04], [0.06, 0.06, 0.08], spacing), box([0.031, 0, 0.04], [0.06, 0.06, 0.08], spacing)
    objects = search((red, RED, 0.7), (blue, BLUE, 0.7), wood(spacing))
    assert sorted(o.n_points for o in objects) == [len(red[0]), len(blue[0])]
    upper = box([0, 0, 0.105], [0.05] * 3, spacing)
    lower = box([0, 0, 0.04], [0.08] * 3, spacing)
    stacked = search((lower, RED, 0.7), (upper, BLUE, 0.7), wood(spacing))
    assert sorted(o.n_points for o in stacked) == sorted([len(lower[0]), len(upper[0])])


def test_touching_things_with_other_features_come_apart_whatever_their_colour():
    left, right = box([-0.03, 0, 0.02], [0.06, 0.06, 0.04]), box([0.031, 0, 0.02], [0.06, 0.06, 0.04])
    top = table()
    rng = np.random.default_rng(0)
    kinds = np.linalg.qr(rng.normal(size=(16, 3)))[0].T
    counts = [len(s[0]) for s in (left, right, top)]
    features = np.repeat(kinds, counts, axis=0) + rng.normal(0, 0.05, (sum(counts), 16))
    parts = ((left, WHITE, 0.7), (right, WHITE, 0.7), (top, WOOD, 0.4))
    assert len(search(*parts)) == 1
    assert [o.n_points for o in search(*parts, features=features)] == counts[:2]


def test_a_patterned_thing_stays_whole():
    side, lid = tube(0.035, 0.1, 0.005), disc(0.035, 0.1, 0.005)
    label = (side[0][:, 2] > 0.03) & (side[0][:, 2] < 0.07)
    parts = [((side[0][m], side[1][m]), c, 0.7) for m, c in ((label, RED), (~label, WHITE))]
    objects = search(*parts, (lid, BLUE, 0.7), wood())
    assert len(objects) == 1 and objects[0].n_points == len(side[0]) + len(lid[0])


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_valley_in_the_score_parts_what_geometry_cannot(spacing):
    slab = box([0, 0, 0.03], [0.4, 0.15, 0.02], spacing)
    ridge = 0.551 + 0.14 * np.clip(np.abs(slab[0][:, 0]) / 0.2 * 1.5 - 0.2, 0, 1)
    objects = search((slab, WHITE, ridge), wood(spacing))
    assert len(objects) == 2 and sum(o.n_points for o in objects) > 0.8 * len(slab[0])
    assert sorted(np.sign(o.centroid[0]) for o in objects) == [-1, 1]
    shallow = search((slab, WHITE, 0.62 + 0.4 * (ridge - 0.551)), wood(spacing))
    assert len(shallow) == 1


def test_growth_reaches_down_to_low_and_no_further():
    bar = box([0, 0, 0.2], [0.3, 0.03, 0.03])
    x = bar[0][:, 0]
    objects = search((bar, WHITE, 0.7 - 0.5 * np.abs(x)), noise=0.0, high=0.69, low=0.65)
    assert len(objects) == 1
    np.testing.assert_array_equal(objects[0].rows, np.flatnonzero(0.7 - 0.5 * np.abs(x).astype(np.float32) >= 0.65))
    assert search((bar, WHITE, 0.66), noise=0.0, high=0.69, low=0.65) == []


def test_no_match_is_an_answer():
    assert search((mug(), WHITE, 0.5), wood()) == []
    assert find_objects(SurfaceCloud.empty(), np.zeros(0), prompt="x", high=0.6, low=0.5) == []
    few = (np.random.default_rng(0).random((5, 3)) * 0.01, np.tile([0, 0, 1.0], (5, 1)))
    assert search((few, RED, 0.9)) == []
    assert len(search((few, RED, 0.9), config=ObjectConfig(min_points=5))) == 1


def test_unseen_unscored_and_broken_points_belong_to_nothing():
    cloud = cloud_of((mug(), WHITE), (moved(mug(), (0.3, 0, 0)), WHITE))
    n = len(cloud) // 2
    score = np.full(len(cloud), 0.8)
    seen = np.arange(len(cloud)) < n
    assert [o.n_points for o in find_objects(cloud, score, prompt="x", high=0.6, low=0.5, seen=seen)] == [n]
    score[n:] = np.nan
    assert [o.n_points for o in find_objects(cloud, score, prompt="x", high=0.6, low=0.5)] == [n]
    points = cloud.points.copy()
    points[:7], points[7] = np.nan, 1e30
    broken = dataclasses.replace(cloud, points=points)
    assert [o.n_points for o in find_objects(broken, score, prompt="x", high=0.6, low=0.5)] == [n - 8]


def test_the_cloud_says_how_well_an_object_was_seen():
    cloud = cloud_of((mug(), WHITE))
    cloud.observations[:], cloud.last_seen_s[:] = np.arange(len(cloud)) % 9, np.linspace(1, 2, len(cloud))
    thing = find_objects(cloud, np.full(len(cloud), 0.8), prompt="mug", high=0.6, low=0.5, stamp_s=4.0)[0]
    assert thing.observations == 4 and thing.last_seen_s == 2.0 and thing.stamp_s == 4.0
    assert thing.score == pytest.approx(0.8)


def test_confidence_by_hand_and_its_laws():
    at = {"high": 0.6, "low": 0.5, "min_points": 12}
    assert confidence(0.6, 2, 12, **at) == pytest.approx((0.5 * 0.5 * 0.5) ** (1 / 3))
    assert confidence(0.5, 9, 99, **at) == 0 and confidence(0.7, 0, 99, **at) == 0
    assert confidence(0.9, 10**6, 10**6, **at) == pytest.approx(1, abs=1e-4)
    base = confidence(0.62, 5, 40, **at)
    assert confidence(0.65, 5, 40, **at) > base < confidence(0.62, 6, 40, **at)
    assert confidence(0.62, 5, 50, **at) > base


def test_most_objects_and_the_best_first():
    cans = [(moved(cylinder(0.02, 0.05), (0.1 * k, 0, 0)), WHITE, 0.65 + 0.02 * k) for k in range(5)]
    objects = search(*cans, wood(), config=ObjectConfig(max_objects=3))
    assert [round(float(o.centroid[0]), 1) for o in objects] == [0.4, 0.3, 0.2] and [o.id for o in objects] == [0, 1, 2]


def test_grasps_come_along_and_avoid_neighbours_and_the_hidden_table():
    can = cylinder(0.03, 0.1)
    top = table(away_from=[(0, 0, 0.1)])  # nobody saw the table near the can
    plain = search_grasps((can, WHITE, 0.7), (top, WOOD, 0.4))
    assert plain[0].grasps and plain[0].grasps[0].approach == "top"
    assert all(g.T_world_gripper[2, 3] >= 0.004 for g in plain[0].grasps)
    neighbour = box([0.05, 0, 0.1], [0.03, 0.3, 0.2])
    beside = search_grasps((can, WHITE, 0.7), (top, WOOD, 0.4), (neighbour, BLUE, 0.1))
    assert beside[0].grasps and all(abs(g.T_world_gripper[0, 0]) < 0.75 for g in beside[0].grasps)


def test_the_same_input_gives_the_same_objects():
    parts = [(moved(mug(), (0.2 * k, 0, 0)), WHITE, 0.7) for k in range(3)]
    a, b = (search_grasps(*parts, wood()) for _ in range(2))
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x.rows, y.rows)
        assert x.id == y.id and x.score == y.score and len(x.grasps) == len(y.grasps)


def test_up_need_not_be_z():
    tip = about_x(np.pi / 2)  # +z becomes -y
    parts = [(cylinder(0.04, 0.1), WHITE, 0.7), (moved(cylinder(0.04, 0.1), (0.2, 0, 0)), WHITE, 0.7)]
    halo = np.where(np.abs(table()[0][:, 1]) < 0.05, 0.64, 0.4)
    upright = search(*parts, (table(), WOOD, halo))
    tipped = search(
        *((moved(s, rotation=tip), c, v) for s, c, v in (*parts, (table(), WOOD, halo))),
        config=ObjectConfig(up=(0, -1, 0)),
    )
    assert [o.n_points for o in tipped] == [o.n_points for o in upright] == [len(parts[0][0][0])] * 2
    np.testing.assert_allclose(tipped[0].box.axes[:, 2], [0, -1, 0])
    assert tipped[0].box.volume_m3 == pytest.approx(upright[0].box.volume_m3, rel=0.05)


def test_bad_questions_are_refused():
    cloud = cloud_of((mug(), WHITE))
    score = np.full(len(cloud), 0.8)
    for wrong, message in (
        ({"score": score[:-1]}, "score has shape"),
        ({"features": np.zeros(len(cloud))}, "features has shape"),
        ({"seen": np.ones(3, bool)}, "seen has shape"),
        ({"high": 0.4}, "low <= high"),
        ({"low": float("nan")}, "low nan"),
    ):
        arguments = {"score": score, "high": 0.6, "low": 0.5, **wrong}
        with pytest.raises(QueryError, match=message):
            find_objects(cloud, arguments.pop("score"), prompt="x", **arguments)
    for wrong in ({"radius_m": 0.0}, {"up": (0.0, 0.0, 0.0)}, {"min_points": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ObjectConfig(**wrong)


def test_dense_and_sparse_clouds_of_one_scene_agree():
    found = [search((mug(spacing=s), WHITE, 0.7), wood(s)) for s in (0.003, 0.006, 0.012)]
    assert [len(f) for f in found] == [1, 1, 1]
    for f in found[1:]:
        np.testing.assert_allclose(f[0].box.half_extents, found[0][0].box.half_extents, atol=0.008)


def test_supports_are_found_by_area():
    shelf = table(half=0.2, z=0.5)
    lid = box([0, 0, 0.2], [0.15, 0.15, 0.01], 0.002, faces="+z")
    points, normals = (np.concatenate(a) for a in zip(table(), shelf, lid, cylinder(0.03, 0.1)))
    heights = support_heights(points, normals, np.array([0, 0, 1.0]))
    np.testing.assert_allclose(heights, [0.0, 0.5], atol=1e-6)
    noisy = points + np.random.default_rng(0).normal(0, 0.004, points.shape)
    np.testing.assert_allclose(sorted(support_heights(noisy, normals, np.array([0, 0, 1.0]))), [0, 0.5], atol=3e-3)
    assert len(support_heights(points[:0], normals[:0], np.array([0, 0, 1.0]))) == 0


def test_the_patch_under_an_object_fills_what_it_hides():
    can, up = cylinder(0.03, 0.1)[0], np.array([0, 0, 1.0])
    patch = support_patch(can, up, np.array([0.0, 0.5]), tolerance_m=0.012, reach_m=0.1, spacing_m=0.01)
    assert (patch[:, 2] == 0).all() and len(patch) > 500
    np.testing.assert_allclose([patch[:, 0].min(), patch[:, 0].max()], [-0.13, 0.13], atol=0.011)
    assert len(support_patch(can, up, np.array([0.5]), tolerance_m=0.012, reach_m=0.1, spacing_m=0.01)) == 0


# --- boxes ---


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.5, -1.2, 3.0])
def test_upright_box_of_a_turned_box(angle):
    points = moved(box([0, 0, 0], [0.3, 0.1, 0.05], faces="-x+x-y+y-z+z"), (1.0, -2.0, 0.5), about_z(angle))[0]
    found = upright_box(points)
    np.testing.assert_allclose(found.half_extents, [0.15, 0.05, 0.025], atol=1e-9)
    np.testing.assert_allclose(found.centre, [1.0, -2.0, 0.5], atol=1e-9)
    assert np.linalg.det(found.axes) == pytest.approx(1)
    np.testing.assert_allclose(found.axes[:, 2], [0, 0, 1])
    assert abs(found.axes[:, 0] @ about_z(angle)[:, 0]) == pytest.approx(1)
    yaw = np.degrees(np.arctan2(found.axes[1, 0], found.axes[0, 0]))
    assert -90 < yaw <= 90 + 1e-9
    assert found.contains(points, 1e-9).all() and found.contains(found.corners(), 1e-9).all()
    assert not found.contains(found.corners() + (found.corners() - found.centre) * 0.01).any()
    np.testing.assert_allclose(found.T_world_box @ [0.15, 0.05, 0.025, 1], [*found.corners()[7], 1], atol=1e-9)


def test_no_rectangle_at_any_angle_is_smaller():
    rng = np.random.default_rng(2)
    for _ in range(20):
        points = rng.normal(size=(rng.integers(3, 40), 3)) @ rng.normal(size=(3, 3))
        found = upright_box(points)
        for angle in np.linspace(0, np.pi / 2, 200):
            turned = points @ about_z(angle)
            assert np.prod(np.ptp(turned[:, :2], axis=0)) >= 4 * np.prod(found.half_extents[:2]) * (1 - 1e-9)
        _, extents = trimesh.bounds.oriented_bounds_2D(points[:, :2])
        assert np.prod(extents) == pytest.approx(4 * np.prod(found.half_extents[:2]), rel=1e-6)


@pytest.mark.parametrize("build", [upright_box, principal_box])
def test_degenerate_sets_have_boxes(build):
    one = build(np.array([[1.0, 2, 3]]))
    np.testing.assert_allclose(one.centre, [1, 2, 3])
    np.testing.assert_allclose(one.half_extents, 0, atol=1e-12)
    line = build(np.array([[0.0, 0, 0], [1, 1, 0], [3, 3, 0]]))
    np.testing.assert_allclose(sorted(line.half_extents), [0, 0, np.sqrt(18) / 2], atol=1e-7)
    np.testing.assert_allclose(line.centre, [1.5, 1.5, 0], atol=1e-7)
    flat = build(np.array([[0.0, 0, 1], [2, 0, 1], [2, 1, 1], [0, 1, 1]]))
    np.testing.assert_allclose(sorted(flat.half_extents), [0, 0.5, 1], atol=1e-9)
    same = build(np.ones((5, 3)))
    np.testing.assert_allclose(same.half_extents, 0, atol=1e-12)
    assert one.volume_m3 == line.volume_m3 == pytest.approx(0, abs=1e-12)
    upright = build(np.array([[0, 0, z] for z in (0.0, 0.5, 2)]))
    np.testing.assert_allclose(sorted(upright.half_extents), [0, 0, 1], atol=1e-9)
    for found in (one, line, flat, same, upright):
        np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(found.axes) == pytest.approx(1)
    with pytest.raises(ConfigError, match="at least one"):
        build(np.full((3, 3), np.nan))
    with pytest.raises(ConfigError, match="expected"):
        build(np.zeros((3, 2)))


def test_principal_box_of_a_leaning_rod():
    R = about_x(0.5) @ about_z(0.3)
    found = principal_box(moved(box([0, 0, 0], [0.4, 0.05, 0.02]), rotation=R)[0])
    np.testing.assert_allclose(found.half_extents, [0.2, 0.025, 0.01], atol=2e-3)
    assert abs(found.axes[:, 0] @ R[:, 0]) > 0.999


def test_a_whole_thing_comes_before_a_splinter_that_scores_higher():
    """With evidence asked for: 300 points at .8 beat 15 points at .9; by score alone it is the other way round."""
    rng = np.random.default_rng(0)
    whole = rng.uniform(-0.04, 0.04, (300, 3)) + [0.0, 0.0, 0.3]
    splinter = rng.uniform(-0.01, 0.01, (15, 3)) + [0.5, 0.0, 0.3]
    points = np.concatenate([whole, splinter]).astype(np.float32)
    n = len(points)
    cloud = SurfaceCloud(
        points, np.zeros((n, 3), np.float32), np.full((n, 3), 128, np.uint8), np.full(n, 5, np.int32), np.zeros(n)
    )
    score = np.where(np.arange(n) < 300, 0.8, 0.9)
    first = find_objects(cloud, score, prompt="x", high=0.75, low=0.6, evidence=80)[0]
    assert first.n_points == 300 and first.id == 0
    assert find_objects(cloud, score, prompt="x", high=0.75, low=0.6)[0].n_points == 15
