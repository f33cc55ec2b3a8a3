"""Fusing views on points: the visibility rules of the published systems, weights by hand, exact means, no depth."""

from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import CAMERA, RED, cast, ring, stream

from semfield_ros.encoders.base import Target, Window
from semfield_ros.encoders.stub import StubEncoder
from semfield_ros.errors import ConfigError
from semfield_ros.frame import Frame
from semfield_ros.geometry import VISIBILITY_RULES, Camera, Visibility, back_project, invert, look_at, project, visible
from semfield_ros.memory.point_fusion import FUSION_RULES, FusionRule, PointFusion, radial_weight
from semfield_ros.memory.splatting import depth_of_points, spacing_of

WIDE = Camera(100, 80, 80.0, 80.0, 49.5, 39.5)
FLAT = np.full((80, 100), 2.0, np.float32)
EYE = np.eye(4)


def seen_at(rule: str, u: float, v: float, z: float) -> bool:
    """Whether a point at pixel (u, v) and depth z is visible before a wall at 2 m."""
    point = np.array([[(u - WIDE.cx) / WIDE.fx * z, (v - WIDE.cy) / WIDE.fy * z, z]])
    return bool(VISIBILITY_RULES[rule].seen(WIDE, EYE, FLAT, point)[0][0])


@pytest.mark.parametrize(
    ("rule", "near", "far"),
    [
        ("openscene", 1.5, 2.5), ("openscene_matterport", 1.96, 2.04), ("openmask3d", 1.8, 2.2),
        ("conceptfusion", 1.95, 2.05),
    ],
)  # fmt: skip
def test_each_rule_is_its_tolerance(rule, near, far):
    assert seen_at(rule, 50, 40, near + 1e-3) and seen_at(rule, 50, 40, far - 1e-3)
    assert not seen_at(rule, 50, 40, near - 1e-3) and not seen_at(rule, 50, 40, far + 1e-3)


@pytest.mark.parametrize("rule", ["openscene", "openscene_matterport"])
def test_a_border_of_ten_pixels_is_dropped_after_rounding(rule):
    for u, v, expected in [(10, 40, True), (9.4, 40, False), (9.6, 40, True), (89, 40, True), (90, 40, False),
                           (89.4, 40, True), (89.6, 40, False), (50, 10, True), (50, 9, False), (50, 69, True),
                           (50, 70, False)]:  # fmt: skip
        assert seen_at(rule, u, v, 2.0) == expected, (u, v)
    assert seen_at("openmask3d", 0, 0, 2.0) and seen_at("conceptfusion", 99, 79, 2.0), "the others have no border"


def test_the_tolerance_is_relative_to_what_was_measured_not_to_the_point():
    depth = np.full((80, 100), 1.0, np.float32)
    point = np.array([[0.0, 0.0, 1.26]])
    assert not VISIBILITY_RULES["openscene"].seen(WIDE, EYE, depth, point)[0][0], ".26 > .25 x 1 m, though < .25 x z"


def test_no_measurement_and_infinite_depth_see_nothing():
    point = np.array([[0.0, 0.0, 2.0]])
    for value in (0.0, np.inf, np.nan, -1.0):
        assert not VISIBILITY_RULES["openscene"].seen(WIDE, EYE, np.full((80, 100), value, np.float32), point)[0][0]


@pytest.mark.parametrize("bad", [{"border_px": -1}, {"tolerance_m": -0.1}, {"tolerance_relative": np.nan}])
def test_impossible_rules_are_refused(bad):
    with pytest.raises(ConfigError, match="allowed"):
        Visibility(**bad)


def test_the_camera_centre_of_a_world_to_camera_pose_is_minus_RT_t():
    T_world_camera = look_at([0.5, -0.7, 0.6], [0.0, 0.1, 0.0])
    T_camera_world = np.linalg.inv(T_world_camera)
    R, t = T_camera_world[:3, :3], T_camera_world[:3, 3]
    assert np.allclose(-R.T @ t, T_world_camera[:3, 3]) and np.allclose(invert(T_camera_world), T_world_camera)
    assert not np.allclose(t, T_world_camera[:3, 3]), "the trap"


# ---- fusion --------------------------------------------------------------------------------------------------------


def target_of(image: np.ndarray, confidence: float = 1.0) -> Target:
    """One measurement a pixel, of vectors [H, W, D]."""
    target = Target.dense(image, Window.pixel())
    return replace(target, confidence=np.full(len(target.values), confidence, np.float32))


def wall(rgb=0) -> Frame:
    return Frame(0.0, WIDE, EYE, np.full((80, 100, 3), rgb, np.uint8), FLAT)


def test_features_are_running_means_and_unseen_points_are_masked():
    points = np.array([[0, 0, 2.0], [0, 0, 3.0], [0, 0, -2.0], [0.2, 0.1, 2.01]], np.float32)
    fusion = PointFusion(points, 2, FusionRule(Visibility(tolerance_m=0.05)))
    looks = [np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.0, 1.0])]
    for look in looks:
        assert fusion.add(wall(), target_of(np.broadcast_to(look, (80, 100, 2)))) == 2
    assert fusion.seen.tolist() == [True, False, False, True] and fusion.views.tolist() == [3, 0, 0, 3]
    assert np.allclose(fusion.features[[0, 3]], np.mean(looks, 0)) and not fusion.features[[1, 2]].any()


def test_the_mean_is_weighted_by_confidence_and_by_distance_from_the_centre():
    points = np.array([[0, 0, 2.0]], np.float32)
    fusion = PointFusion(points, 2, FusionRule(Visibility(tolerance_m=0.05)))
    fusion.add(wall(), target_of(np.broadcast_to([1.0, 0.0], (80, 100, 2)), 0.75))
    fusion.add(wall(), target_of(np.broadcast_to([0.0, 1.0], (80, 100, 2)), 0.25))
    assert np.allclose(fusion.features[0], [0.75, 0.25]) and fusion.mass[0] == pytest.approx(1.0)
    pixel = np.array([40 * 100 + 50, 0])
    half_u, half_v = 0.5 / 100, 0.5 / 80
    expected = np.exp(-2 * np.array([half_u**2 + half_v**2, (0.5 - half_u) ** 2 + (0.5 - half_v) ** 2]) / (2 * 0.36))
    assert np.allclose(radial_weight(WIDE, pixel), expected, atol=1e-6)
    assert radial_weight(WIDE, pixel)[1] == pytest.approx(np.exp(-1 / 0.72), abs=0.02), "r = 1 at a corner"


def test_conceptfusion_asks_for_surfaces_that_face_alike():
    """A wall seen head on: points whose normals are 15 and 25 degrees off it, one that looks away, one unknown."""
    rule = FUSION_RULES["conceptfusion"]
    assert rule.visibility.tolerance_m == 0.05 and rule.radial_sigma == 0.6 and rule.max_angle_deg == 20.0
    angles = np.radians([0, 15, 25, 180])
    normals = np.stack([np.sin(angles), np.zeros(4), -np.cos(angles)], 1)
    normals = np.concatenate([normals, np.zeros((1, 3))])
    points = np.stack([np.linspace(-0.2, 0.2, 5), np.zeros(5), np.full(5, 2.0)], 1)
    fusion = PointFusion(points, 2, rule, normals=normals)
    fusion.add(wall(), target_of(np.ones((80, 100, 2))))
    assert fusion.seen.tolist() == [True, True, False, False, True]


def test_fused_features_name_the_blocks_of_the_analytic_scene():
    encoder, frames = StubEncoder(), stream(8)
    points = np.concatenate([back_project(f.camera, f.T_world_camera, f.depth_m)[0] for f in frames[::2]])
    fusion = PointFusion(points, encoder.dim, FusionRule(Visibility(tolerance_relative=0.02, border_px=2)))
    for frame in frames:
        fusion.add(frame, encoder.encode_frame(frame))
    best = (fusion.features @ encoder.encode_text(["red", "blue", "white"]).T).argmax(1)
    inside = ((points > np.array(RED.low) + 0.02) & (points < np.array(RED.high) + [-0.02, -0.02, 0.01])).all(1)
    inside &= points[:, 2] > 0.1
    assert inside.sum() > 50 and (best[inside] == 0).mean() > 0.95


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="openscene"):
        PointFusion(np.zeros((1, 3)), 4, "nobody's")
    with pytest.raises(ConfigError, match="normals"):
        PointFusion(np.zeros((2, 3)), 4, normals=np.zeros((1, 3)))
    with pytest.raises(ConfigError, match="dimensions"):
        PointFusion(np.zeros((2, 3)), 4).add(wall(), target_of(np.ones((80, 100, 2))))
    empty = PointFusion(np.zeros((0, 3)), 2)
    assert empty.add(wall(), target_of(np.ones((80, 100, 2)))) == 0 and empty.features.shape == (0, 2)


# ---- depth from points ---------------------------------------------------------------------------------------------


def test_splatted_depth_is_the_measured_depth_where_the_cloud_is_dense():
    T = ring(8)[1]
    clouds = [back_project(CAMERA, P, cast(P)[0].astype(np.float32))[0] for P in ring(8)]
    depth = depth_of_points(CAMERA, T, np.concatenate(clouds))
    exact = cast(T)[0]
    known = (depth > 0) & (exact > 0)
    assert known.mean() > 0.95
    assert np.median(np.abs(depth[known] - exact[known])) < 0.01
    assert (depth[known] > exact[known] + 0.05).mean() < 0.01, "a dense surface hides what is behind it"


def test_splatting_takes_the_nearest_and_nothing_behind_the_camera():
    points = np.array([[0, 0, 2.0], [0, 0, 1.0], [0, 0, -1.0], [50.0, 0, 1.0]])
    depth = depth_of_points(WIDE, EYE, points, spacing_m=0.0)
    u, v, _ = project(WIDE, EYE, points[1:2])
    assert depth[int(np.rint(v[0])), int(np.rint(u[0]))] == 1.0 and (depth > 0).sum() == 1
    assert not depth_of_points(WIDE, EYE, np.zeros((0, 3))).any()
    assert spacing_of(np.zeros((1, 3))) == 0.0
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(20), [0]), -1).reshape(-1, 3) * 0.03
    assert spacing_of(grid) == pytest.approx(0.03)


def test_visible_is_still_one_test():
    points = np.random.default_rng(0).uniform(-1, 3, (500, 3))
    by_rule = Visibility(0.1, 0.05, 3).seen(WIDE, EYE, FLAT, points)
    direct = visible(WIDE, EYE, FLAT, points, tolerance_m=0.1, tolerance_relative=0.05, border_px=3)
    assert np.array_equal(by_rule[0], direct[0]) and np.array_equal(by_rule[1], direct[1])
