"""Grasps on analytic shapes; every candidate is checked again by a slow routine that shares no code."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import Delaunay
from surface_shapes import about_x, about_z, box, cylinder, join, moved, mug, sphere, table

from semfield_ros.config import GraspConfig, GripperConfig
from semfield_ros.errors import ConfigError
from semfield_ros.objects import Grasp, grasp_candidates, reasons
from semfield_ros.objects.antipodal_planner import AntipodalPlanner
from semfield_ros.objects.closing import close
from semfield_ros.objects.collisions import Obstacles
from semfield_ros.objects.diversity import diverse
from semfield_ros.objects.grasps import GraspScene

GRIPPER = GripperConfig()
TABLE = table()[0]


def solid(T, lower, upper):
    """A box of the gripper frame as a tetrahedralised solid in the world."""
    corners = np.stack(np.meshgrid(*zip(lower, upper)), axis=-1).reshape(-1, 3)
    return Delaunay(corners @ T[:3, :3].T + T[:3, 3])


def hit_by(grasp: Grasp, points, gripper=GRIPPER, margin=0.0, inner_margin=0.0):
    """How many points are inside the fingers or the palm, shrunk by a hair for points on the very boundary."""
    m, hair = margin, 2e-6
    opening = min(grasp.width_m + 2 * gripper.clearance_m, gripper.max_width_m)
    inner, outer = opening / 2 - inner_margin, opening / 2 + gripper.finger_thickness_m + m
    y, length = gripper.finger_breadth_m / 2 + m, gripper.finger_length_m
    palm = gripper.max_width_m / 2 + gripper.finger_thickness_m + m
    boxes = [
        ((inner, -y, -length - m), (outer, y, m)),
        ((-outer, -y, -length - m), (-inner, y, m)),
        ((-palm, -y, -length - gripper.palm_depth_m - m), (palm, y, -length + m)),
    ]
    T, inside = grasp.T_world_gripper, np.zeros(len(points), bool)
    for low, up in boxes:
        inside |= solid(T, np.add(low, hair), np.subtract(up, hair)).find_simplex(points) >= 0
    return int(inside.sum())


def recheck(grasps, points, normals, surroundings, gripper=GRIPPER, up=(0, 0, 1)):
    """Everything a candidate promises, tested the slow way."""
    for g in grasps:
        T = g.T_world_gripper
        assert np.linalg.det(T[:3, :3]) == pytest.approx(1) and np.allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3))
        assert gripper.min_width_m <= g.width_m <= gripper.max_width_m - gripper.clearance_m
        assert np.linalg.norm(g.contacts[1] - g.contacts[0]) == pytest.approx(g.width_m)
        local = (g.contacts - T[:3, 3]) @ T[:3, :3]
        np.testing.assert_allclose(local[:, 0], [-g.width_m / 2, g.width_m / 2], atol=1e-9)
        np.testing.assert_allclose(local[:, 1], 0, atol=1e-9)
        assert (local[:, 2] < 0).all() and (local[:, 2] > -gripper.finger_length_m).all()
        assert hit_by(g, surroundings, gripper, gripper.clearance_m, gripper.clearance_m) == 0
        assert hit_by(g, points, gripper) == 0
        angle = np.degrees(np.arccos(np.clip(-T[:3, 2] @ np.asarray(up, float), -1, 1)))
        assert g.approach == ("top" if angle < 30 else "side" if angle > 60 else "oblique") or min(
            abs(angle - 30), abs(angle - 60)
        ) < 0.1
        assert 0 <= g.score <= 1
        if g.measured:
            cone = np.arctan(gripper.friction) + 1e-6
            for contact, outward in zip(g.contacts, (-T[:3, 0], T[:3, 0])):
                near = np.linalg.norm(points - contact, axis=1) <= gripper.finger_breadth_m / 2 / 2 + 1e-6
                angles = np.arccos(np.clip(normals[near] @ outward, -1, 1))
                assert near.any() and angles.min() <= cone
    assert [g.score for g in grasps] == sorted((g.score for g in grasps), reverse=True)
    assert len(grasps) <= gripper.candidates


def candidates(surface, surroundings=TABLE, **options):
    grasps = grasp_candidates(*surface, surroundings, **options)
    recheck(grasps, *surface, surroundings, options.get("gripper", GRIPPER), options.get("up", (0, 0, 1)))
    return grasps


def axis(grasp, k):
    return grasp.T_world_gripper[:3, k]


@pytest.mark.parametrize("spacing", [0.002, 0.005, 0.01, 0.02])
def test_a_small_box_is_taken_from_above_across_two_faces(spacing):
    best = candidates(box([0, 0, 0.025], [0.05] * 3, spacing))[0]
    assert best.approach == "top" and best.measured
    assert best.width_m == pytest.approx(0.05, abs=1e-6)
    assert axis(best, 2) @ [0, 0, -1] == pytest.approx(1, abs=1e-6)
    assert max(abs(axis(best, 0)[:2])) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(best.T_world_gripper[:2, 3], 0, atol=0.0126)
    assert best.T_world_gripper[2, 3] >= GRIPPER.clearance_m  # the tips stay above the table


def test_a_ball_is_taken_through_its_middle():
    grasps = candidates(sphere([0.1, 0, 0.03], 0.03))
    assert grasps[0].approach == "top" and len(grasps) == GRIPPER.candidates
    for g in grasps:
        middle = g.contacts.mean(axis=0)
        assert np.linalg.norm(middle - [0.1, 0, 0.03]) < 0.015 and 0.05 < g.width_m <= 0.0601


def test_cans():
    standing = candidates(cylinder(0.033, 0.12))
    assert standing[0].approach == "top" and standing[0].width_m == pytest.approx(0.066, abs=1e-3)
    assert abs(axis(standing[0], 0)[2]) < 0.1
    lying = candidates(moved(cylinder(0.033, 0.12), (0, 0.06, 0.033), about_x(np.pi / 2)))
    assert lying[0].approach == "top" and abs(axis(lying[0], 0)[0]) > 0.95  # across, not along


def test_a_wide_mug_is_taken_by_its_wall_or_handle():
    assert GRIPPER.max_width_m < 0.09 < 2 * 0.0451
    grasps = candidates(mug())
    assert grasps and all(g.width_m < 0.015 for g in grasps)
    on_rim = [g for g in grasps if abs(np.hypot(*g.contacts.mean(axis=0)[:2]) - 0.043) < 0.002]
    assert on_rim and on_rim[0].approach == "top" and abs(on_rim[0].width_m - 0.004) < 1e-3


def test_a_handle_alone_is_found():
    handle_only = tuple(a[a_ok] for a, a_ok in zip(mug(), [mug()[0][:, 0] > 0.05] * 2))
    rest = mug()[0][mug()[0][:, 0] <= 0.05]
    grasps = candidates(handle_only, np.concatenate([TABLE, rest]))
    measured = [g for g in grasps if g.measured]
    assert measured and all(g.width_m <= 0.0135 for g in measured)


def test_what_is_wider_than_the_gripper_has_no_grasp():
    assert candidates(box([0, 0, 0.1], [0.2] * 3)) == []
    assert candidates(box([0, 0, 0.025], [0.05] * 3), gripper=GripperConfig(max_width_m=0.055)) == []
    assert candidates(box([0, 0, 0.025], [0.05] * 3), gripper=GripperConfig(max_width_m=0.062)) != []


def test_a_wall_beside_the_object_blocks_that_side():
    surface = box([0, 0, 0.025], [0.05] * 3)
    wall = box([-0.042, 0, 0.1], [0.02, 0.3, 0.2])[0]
    free, blocked = candidates(surface), candidates(surface, np.concatenate([TABLE, wall]))
    assert any(abs(axis(g, 0)[0]) > 0.9 for g in free)
    assert blocked and all(abs(axis(g, 0)[1]) > 0.9 for g in blocked)


def test_walls_on_all_sides_leave_nothing():
    surface = box([0, 0, 0.025], [0.05] * 3)
    walls = [box([x, y, 0.1], [0.02, 0.02, 0.2] + 0.3 * np.array([y != 0, x != 0, 0]))[0]
             for x, y in ((-0.042, 0), (0.042, 0), (0, -0.042), (0, 0.042))]
    assert candidates(surface, np.concatenate([TABLE, *walls])) == []


def test_a_lid_above_leaves_only_grasps_from_the_side():
    surface = moved(cylinder(0.025, 0.15))
    lid = table(half=0.1, spacing=0.005, z=0.16)[0]
    grasps = candidates(surface, np.concatenate([TABLE, lid]))
    assert grasps and all(g.approach != "top" for g in grasps)


def test_a_flat_thing_on_the_table_is_not_grasped_through_the_table():
    for g in candidates(box([0, 0, 0.01], [0.1, 0.04, 0.02])):
        assert g.T_world_gripper[2, 3] >= GRIPPER.clearance_m - 1e-6
    assert candidates(box([0, 0, 0.002], [0.1, 0.04, 0.004], 0.002)) == []


def test_an_unseen_back_is_guessed_and_says_so():
    seen = candidates(box([0, 0, 0.03], [0.06] * 3))
    front = candidates(box([0, 0, 0.03], [0.06] * 3, faces="-y+z"))
    assert front and all(not g.measured for g in front)
    assert front[0].approach == "top" and abs(axis(front[0], 0)[1]) > 0.99
    assert front[0].width_m == pytest.approx(0.06, abs=0.004)
    assert front[0].score < seen[0].score and all(g.measured for g in seen)


@pytest.mark.parametrize("angle", [0.3, 2.0, -1.2])
def test_turning_and_shifting_the_scene_turns_and_shifts_the_grasps(angle):
    rng = np.random.default_rng(1)
    points, normals = join(sphere([0, 0, 0.03], 0.028, 0.006), box([0.03, 0.01, 0.02], [0.05, 0.03, 0.04], 0.006))
    points = points + rng.normal(0, 3e-4, points.shape)  # no ties between candidates
    R, t = about_z(angle), np.array([3.0, -2.0, 0.7])
    here = grasp_candidates(points, normals, TABLE)
    there = grasp_candidates(points @ R.T + t, normals @ R.T, TABLE @ R.T + t)
    assert len(here) == len(there) > 5
    for a, b in zip(here, there):
        np.testing.assert_allclose(b.T_world_gripper[:3, :3], R @ a.T_world_gripper[:3, :3], atol=1e-6)
        np.testing.assert_allclose(b.T_world_gripper[:3, 3], R @ a.T_world_gripper[:3, 3] + t, atol=1e-6)
        np.testing.assert_allclose(b.contacts, a.contacts @ R.T + t, atol=1e-6)
        assert b.score == pytest.approx(a.score, abs=1e-6) and b.approach == a.approach


def test_up_may_be_any_direction():
    tip = about_x(np.pi / 2)  # +z becomes -y
    surface = moved(box([0, 0, 0.025], [0.05] * 3), rotation=tip)
    best = candidates(surface, TABLE @ tip.T, up=(0, -1, 0))[0]
    assert best.approach == "top" and axis(best, 2) @ [0, 1, 0] == pytest.approx(1, abs=1e-6)


def test_noise_and_outliers():
    rng = np.random.default_rng(5)
    points, normals = cylinder(0.03, 0.1)
    points = points + rng.normal(0, 0.001, points.shape)
    normals = normals + rng.normal(0, 0.15, normals.shape)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    best = candidates((points, normals))[0]
    assert best.approach == "top" and best.width_m == pytest.approx(0.06, abs=0.005)


def test_the_answer_repeats_and_is_diverse():
    surface = cylinder(0.03, 0.1)
    first, second = candidates(surface), candidates(surface)
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a.T_world_gripper, b.T_world_gripper)
    for i, a in enumerate(first):
        for b in first[:i]:
            moved_m = np.linalg.norm(a.T_world_gripper[:3, 3] - b.T_world_gripper[:3, 3])
            cosines = np.sum(a.T_world_gripper[:3, :3] * b.T_world_gripper[:3, :3], axis=0)
            assert moved_m > 0.01 or (np.abs(cosines) < np.cos(np.radians(25))).any()


def test_suppression_by_hand():
    position = np.array([[0, 0, 0], [0.001, 0, 0], [0.001, 0, 0], [1, 0, 0.0]])
    eye, flipped, turned = np.eye(3), np.diag([-1.0, -1.0, 1.0]), about_z(np.pi / 2)
    kept = diverse(position, np.stack([eye, flipped, turned, eye]), np.array([0.9, 0.8, 0.7, 0.95]), 0.01, 25.0, 9)
    assert kept.tolist() == [3, 0, 2]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_too_little_or_degenerate_input_has_no_grasp(count):
    line = np.linspace(0, 0.05, count)[:, None] * [1.0, 0.0, 0.0]
    same = np.tile([0.0, 0.0, 1.0], (count, 1))
    assert grasp_candidates(line, same, TABLE) == []
    assert grasp_candidates(np.zeros((count, 3)), same, np.zeros((0, 3))) == []
    assert grasp_candidates(line, np.zeros((count, 3)), TABLE) == []
    assert grasp_candidates(np.full((count, 3), np.nan), same, TABLE) == []


def test_rows_that_are_not_finite_are_ignored():
    points, normals = box([0, 0, 0.025], [0.05] * 3, 0.01)
    bad = np.array([[np.nan] * 3, [np.inf, 0, 0], [0, -np.inf, np.nan]])
    grasps = grasp_candidates(*(np.concatenate([good, bad]) for good in (points, normals, TABLE)))
    recheck(grasps, points, normals, TABLE)
    assert grasps and grasps[0].width_m == pytest.approx(0.05)


def test_nothing_around():
    assert candidates(sphere([0, 0, 0], 0.03), np.zeros((0, 3)))


def test_shapes_and_settings_that_do_not_fit_are_refused():
    points = np.zeros((4, 3))
    with pytest.raises(ConfigError, match="disagree"):
        grasp_candidates(points, points[:3], points)
    with pytest.raises(ConfigError, match="surroundings_points"):
        grasp_candidates(points, points, np.zeros((4, 2)))
    with pytest.raises(ConfigError, match="up is"):
        grasp_candidates(points, points, points, up=(0, 0, 0))
    for wrong in ({"min_width_m": 0.08}, {"friction": 0.0}, {"candidates": 0}, {"clearance_m": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            GripperConfig(**wrong)


def scene_of(surface, rows=None, surroundings=TABLE):
    points, normals = surface
    rows = np.arange(len(points)) if rows is None else rows
    return GraspScene(points, normals, np.zeros((len(points), 3), np.uint8), rows, surroundings, np.array([0, 0, 1.0]))


def plan(scene):
    return AntipodalPlanner().plan(scene, GRIPPER, GraspConfig())


@pytest.mark.parametrize(
    ("surface", "reason"),
    [
        (box([0, 0, 0.1], [0.2] * 3), reasons.TOO_WIDE),
        (box([0, 0, 0.005], [0.06, 0.06, 0.01], 0.004), reasons.FLAT),
        (table(0.05, z=0.1), reasons.NOT_OPPOSED),
        (box([0, 0, 0.06], [0.001, 0.1, 0.1], 0.008), reasons.TOO_THIN),
        ((np.zeros((0, 3)), np.zeros((0, 3))), reasons.NOTHING_SEEN),
        ((np.zeros((5, 3)), np.zeros((5, 3))), reasons.NOTHING_SEEN),
        ((np.full((5, 3), np.nan), np.ones((5, 3))), reasons.NOTHING_SEEN),
    ],
)
def test_no_grasp_comes_with_its_reason(surface, reason):
    found = plan(scene_of(surface))
    assert found.grasps == () and found.rejected[reason] > 0 and reason in found.why_none


def test_reasons_are_counted_where_there_are_grasps_too():
    found = plan(scene_of(box([0, 0, 0.025], [0.05] * 3)))
    assert found.grasps and found.why_none == "" and sum(found.rejected.values()) > 0


def test_a_part_is_held_where_it_is_and_the_rest_is_in_the_way():
    """A bar on a wide block: only the bar fits the gripper, and the block is under it."""
    bar, block = box([0, 0, 0.12], [0.02, 0.1, 0.04], 0.004), box([0, 0, 0.05], [0.15, 0.15, 0.1], 0.006)
    whole = join(bar, block)
    found = plan(scene_of(whole, np.arange(len(bar[0]))))
    assert found.grasps and all((g.contacts[:, 2] > 0.1).all() for g in found.grasps)
    for g in found.grasps:
        assert hit_by(g, whole[0]) == 0 and g.T_world_gripper[2, 3] > 0.1


def test_what_borders_on_a_part_is_held_where_the_part_cannot_be():
    """The top face of a box has no sides: it is held just below, and counts less than a box that was asked for."""
    surface = box([0, 0, 0.05], [0.05, 0.05, 0.1], 0.005)
    top = np.flatnonzero(surface[1][:, 2] > 0.9)
    found, whole = plan(scene_of(surface, top)), plan(scene_of(surface))
    assert found.grasps and (found.grasps[0].contacts[:, 2] > 0.08).all()
    assert found.grasps[0].score < whole.grasps[0].score


def test_fingers_close_on_what_is_really_there():
    """A wedge between the pads: the width is that of its thick end, the contact its middle."""
    points = np.array([[x * (1 + z), y, z] for x in (-0.01, 0.01) for y in (-0.005, 0.0, 0.005) for z in (-0.01, 0.0)])
    normals = np.sign(points[:, :1]) * [1.0, 0, 0]
    wanted = np.ones(len(points), bool)
    found = close(points, normals, wanted, np.zeros((1, 3)), np.eye(3)[None], np.array([0.05]), GRIPPER, 0.005)
    assert found.valid[0] and found.width[0] == pytest.approx(0.02)
    assert found.cone[0] == pytest.approx(1) and found.centred[0] == pytest.approx(1) and found.wanted[0] == 1
    slanted = normals @ about_z(np.radians(40)).T
    assert close(points, slanted, wanted, np.zeros((1, 3)), np.eye(3)[None], np.array([0.05]), GRIPPER, 0.005).cone == 0
    empty = close(points, normals, wanted, np.full((1, 3), 9.0), np.eye(3)[None], np.array([0.05]), GRIPPER, 0.005)
    assert not empty.valid[0] and empty.cone[0] == 0


def test_the_deepest_reach_is_exact():
    """One point ahead of a finger, one ahead of the palm, one beside: the nearer bound holds, by the margins."""
    eye, middle, opening = np.eye(3)[None], np.zeros((1, 3)), np.array([0.04])
    c, length = GRIPPER.clearance_m, GRIPPER.finger_length_m

    def deepest(*points):
        obstacles = Obstacles(np.zeros((0, 3)), np.array(points).reshape(-1, 3))
        return float(obstacles.reach(middle, eye, opening, GRIPPER, 0.1).tip_m[0])

    assert deepest() == np.inf and deepest([0.2, 0, 0.01]) == np.inf
    assert deepest([0.025, 0, 0.03]) == pytest.approx(0.03 - c)  # in the column of a finger
    assert deepest([0.0, 0, 0.03]) == pytest.approx(0.03 + length - c)  # between the fingers: the palm meets it
    assert deepest([0.025, 0, 0.03], [0.0, 0, -0.03]) == pytest.approx(-0.03 + length - c)
    behind = -length - GRIPPER.palm_depth_m - 0.05
    assert deepest([0.0, 0, behind]) < 0  # on the way in
    assert deepest([0.0, 0, behind - 0.1]) == np.inf  # before it begins
