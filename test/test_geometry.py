"""Geometry: laws by hypothesis, transforms3d as the independent reference, visibility by hand."""

import cv2
import numpy as np
import pytest
import transforms3d
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from semfield_ros.errors import ConfigError
from semfield_ros.geometry import (
    Camera,
    back_project,
    image_directions,
    invert,
    look_at,
    pixel_directions,
    project,
    rigid_error,
    rotation_angle_rad,
    transform_points,
    visible,
)

CAMERA = Camera(64, 48, 60.0, 55.0, 30.5, 25.0)

coordinate = st.floats(-10, 10, allow_nan=False, width=32)
points = st.integers(1, 20).flatmap(lambda n: arrays(np.float64, (n, 3), elements=coordinate))


@st.composite
def quaternions(draw):
    q = np.array(draw(st.tuples(*[st.floats(-1, 1, allow_nan=False)] * 4)))
    assume(np.linalg.norm(q) > 0.1)
    return q / np.linalg.norm(q)


@st.composite
def poses(draw):
    translation = draw(st.tuples(coordinate, coordinate, coordinate))
    return transforms3d.affines.compose(translation, transforms3d.quaternions.quat2mat(draw(quaternions())), np.ones(3))


@given(poses(), poses(), points)
def test_transforms_form_a_group(T_a_b, T_b_c, points_c):
    assert np.allclose(invert(T_a_b) @ T_a_b, np.eye(4), atol=1e-9)
    assert np.allclose(invert(T_a_b), np.linalg.inv(T_a_b), atol=1e-9)
    one_by_one = transform_points(T_a_b, transform_points(T_b_c, points_c))
    assert np.allclose(one_by_one, transform_points(T_a_b @ T_b_c, points_c), atol=1e-9)
    assert rigid_error(T_a_b @ T_b_c) < 1e-9


@given(poses(), points)
def test_transform_points_equals_homogeneous_product(T_a_b, points_b):
    homogeneous = np.c_[points_b, np.ones(len(points_b))] @ T_a_b.T
    assert np.allclose(transform_points(T_a_b, points_b), homogeneous[:, :3], atol=1e-9)


def test_transform_points_keeps_floats_and_does_not_truncate_integers():
    T = np.eye(4)
    T[:3, 3] = 0.5
    assert transform_points(T, np.zeros((2, 3), np.float32)).dtype == np.float32
    assert np.array_equal(transform_points(T, np.array([[1, 2, 3]])), [[1.5, 2.5, 3.5]])


@given(quaternions(), quaternions())
def test_rotation_angle_agrees_with_transforms3d(q_a, q_b):
    _, angle = transforms3d.quaternions.quat2axangle(
        transforms3d.quaternions.qmult(transforms3d.quaternions.qinverse(q_a), q_b)
    )
    expected = abs((angle + np.pi) % (2 * np.pi) - np.pi)
    R_a, R_b = transforms3d.quaternions.quat2mat(q_a), transforms3d.quaternions.quat2mat(q_b)
    assert rotation_angle_rad(R_a, R_b) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("matrix", "error"),
    [
        (np.diag([1.1, 1.1, 1.1, 1.0]), 0.331),  # det = 1.331
        (np.diag([-1.0, 1.0, 1.0, 1.0]), 2.0),  # a mirror: R R^T = I, det = -1
        (np.diag([1.0, 1.0, 1.0, 2.0]), 1.0),  # the last row
    ],
)
def test_rigid_error_by_hand(matrix, error):
    assert rigid_error(matrix) == pytest.approx(error)


@given(poses(), arrays(np.float64, (3,), elements=st.floats(-1, 1, allow_nan=False)), st.floats(0.2, 5))
def test_projection_inverts_back_projection(T_world_camera, offset, depth_m):
    depth = np.zeros((48, 64), np.float32)
    rows, columns = [0, 47, 20], [0, 63, 11]
    depth[rows, columns] = depth_m * (1.5 + offset)
    points_world, index = back_project(CAMERA, T_world_camera, depth)
    assert index.tolist() == [0, 20 * 64 + 11, 47 * 64 + 63]
    u, v, z = project(CAMERA, T_world_camera, points_world)
    assert np.allclose(u, index % 64, atol=2e-2) and np.allclose(v, index // 64, atol=2e-2)
    assert np.allclose(z, depth.reshape(-1)[index], atol=1e-4)


def test_back_projection_by_hand():
    depth = np.zeros((48, 64), np.float32)
    depth[25, 30] = np.nan
    depth[10, 60] = 2.0
    points_world, index = back_project(CAMERA, np.eye(4), depth)
    assert index.tolist() == [10 * 64 + 60]
    assert np.allclose(points_world, [[2 * (60 - 30.5) / 60, 2 * (10 - 25) / 55, 2.0]])


def test_directions_have_unit_z_and_match_opencv():
    directions = image_directions(CAMERA)
    assert directions.shape == (48, 64, 3) and directions.dtype == np.float32 and (directions[..., 2] == 1).all()
    u, v = np.array([0.0, 63.0, 12.5]), np.array([0.0, 47.0, 33.25])
    reference = cv2.undistortPoints(np.stack([u, v], -1)[:, None], CAMERA.matrix, None)[:, 0]
    assert np.allclose(pixel_directions(CAMERA, u, v)[:, :2], reference, atol=1e-6)


def test_points_behind_the_camera_have_no_pixel():
    u, v, z = project(CAMERA, np.eye(4), np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert np.isnan(u[:2]).all() and np.isnan(v[:2]).all() and (z[:2] <= 0).all()
    assert (u[2], v[2]) == (30.5, 25.0)


@given(points, st.integers(8, 200), st.integers(8, 200))
def test_rescaled_camera_sees_points_where_the_scaled_image_has_them(points_world, width, height):
    points_world = points_world + [0, 0, 12]
    u, v, _ = project(CAMERA, np.eye(4), points_world)
    u_scaled, v_scaled, _ = project(CAMERA.resized(width, height), np.eye(4), points_world)
    # Pixel i covers [i - 1/2, i + 1/2]: the image's left edge, -1/2, stays the left edge.
    assert np.allclose((u_scaled + 0.5) / width, (u + 0.5) / 64)
    assert np.allclose((v_scaled + 0.5) / height, (v + 0.5) / 48)


def test_rescaled_camera_agrees_with_a_picture_resampled_by_opencv():
    camera = Camera(120, 90, 100.0, 100.0, 59.5, 44.5)
    point = np.array([[0.113, -0.071, 1.0]])
    u, v, _ = project(camera, np.eye(4), point)
    rows, columns = np.mgrid[0:90, 0:120]
    blob = np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 6.0**2))
    small = cv2.resize(blob, (40, 30), interpolation=cv2.INTER_AREA)
    rows, columns = np.mgrid[0:30, 0:40]
    centre = (small * columns).sum() / small.sum(), (small * rows).sum() / small.sum()
    u_small, v_small, _ = project(camera.resized(40, 30), np.eye(4), point)
    assert centre == pytest.approx((u_small[0], v_small[0]), abs=0.01)


def test_camera_matrix_round_trip_and_bad_shape():
    assert Camera.from_matrix(CAMERA.matrix, 64, 48) == CAMERA
    with pytest.raises(ConfigError, match=r"\(3, 4\).*expected \(3, 3\)"):
        Camera.from_matrix(np.zeros((3, 4)), 64, 48)


@given(
    arrays(np.float64, 3, elements=coordinate), arrays(np.float64, 3, elements=coordinate),
    arrays(np.float64, 3, elements=coordinate),
)
def test_look_at_is_rigid_and_looks_there(eye, target, up):
    assume(np.linalg.norm(target - eye) > 1e-3)
    T = look_at(eye, target, up)
    assert rigid_error(T) < 1e-6
    assert np.array_equal(T[:3, 3], eye)
    u, v, z = project(CAMERA, T, target[None])
    assert u[0] == pytest.approx(CAMERA.cx, abs=1e-3) and v[0] == pytest.approx(CAMERA.cy, abs=1e-3)
    assert z[0] == pytest.approx(np.linalg.norm(target - eye))


def test_look_at_keeps_up_on_top_of_the_image():
    T = look_at(np.array([2.0, 0.0, 1.0]), np.zeros(3))
    _, v, _ = project(CAMERA, T, np.array([[0.0, 0.0, 0.1], [0.0, 0.0, -0.1]]))
    assert v[0] < v[1]


@pytest.mark.parametrize("axis", np.eye(3))
def test_look_at_along_up_is_still_rigid(axis):
    for sign in (1, -1):
        assert rigid_error(look_at(np.zeros(3), sign * axis, axis)) < 1e-9


def test_look_at_refuses_its_own_place():
    with pytest.raises(ConfigError, match="coincide"):
        look_at(np.ones(3), np.ones(3))


# A wall 2 m in front of the camera, with a hole and one nearer pixel.
WALL = np.full((48, 64), 2.0, np.float32)
WALL[0:4, 0:4] = 0.0
WALL[30, 40] = 1.0


def at_pixel(u: float, v: float, z: float) -> np.ndarray:
    return np.array([[(u - 30.5) / 60 * z, (v - 25) / 55 * z, z]])


@pytest.mark.parametrize(
    ("u", "v", "z", "options", "expected"),
    [
        (20, 20, 2.00, {}, True),  # exactly on the wall
        (20, 20, 2.05, {"tolerance_m": 0.1}, True),
        (20, 20, 1.95, {"tolerance_m": 0.1}, True),
        (20, 20, 2.15, {"tolerance_m": 0.1}, False),  # behind the wall
        (20, 20, 1.85, {"tolerance_m": 0.1}, False),  # floats in front of it
        (20, 20, 2.45, {"tolerance_relative": 0.25}, True),  # |2 - 2.45| <= .25 x 2
        (20, 20, 2.55, {"tolerance_relative": 0.25}, False),
        (20, 20, 2.45, {"tolerance_m": 0.1, "tolerance_relative": 0.25}, True),  # the larger one counts
        (40, 30, 2.00, {"tolerance_m": 0.1}, False),  # hidden by the nearer pixel
        (40, 30, 1.00, {"tolerance_m": 0.1}, True),
        (1, 1, 2.00, {"tolerance_m": 0.1}, False),  # nothing was measured there
        (20, 20, -2.0, {"tolerance_m": 10.0}, False),  # behind the camera
        (-0.4, 20, 2.0, {"tolerance_m": 0.1}, True),  # rounds to column 0
        (-0.6, 20, 2.0, {"tolerance_m": 0.1}, False),
        (63.4, 47.4, 2.0, {"tolerance_m": 0.1}, True),
        (63.6, 20, 2.0, {"tolerance_m": 0.1}, False),
        (9, 20, 2.0, {"tolerance_m": 0.1, "border_px": 10}, False),
        (10, 20, 2.0, {"tolerance_m": 0.1, "border_px": 10}, True),
        (53, 37, 2.0, {"tolerance_m": 0.1, "border_px": 10}, True),
        (54, 37, 2.0, {"tolerance_m": 0.1, "border_px": 10}, False),
        (53, 38, 2.0, {"tolerance_m": 0.1, "border_px": 10}, False),
        (np.nan, 20, 2.0, {"tolerance_m": 0.1}, False),
    ],
)
def test_visible_by_hand(u, v, z, options, expected):
    # Tolerances of 0 ask for exactness that rounding of the projection does not have.
    mask, index = visible(CAMERA, np.eye(4), WALL, at_pixel(u, v, z), **{"tolerance_m": 1e-9, **options})
    assert mask.tolist() == [expected]
    assert index.tolist() == [round(v) * 64 + round(u) if expected else -1]


@given(poses())
def test_what_a_depth_image_measured_is_visible_in_it(T_world_camera):
    points_world, index = back_project(CAMERA, T_world_camera, WALL)
    mask, pixel = visible(CAMERA, T_world_camera, WALL, points_world, tolerance_m=1e-4)
    assert mask.all() and np.array_equal(pixel, index)


def test_visible_takes_no_points_and_refuses_negative_tolerance():
    mask, index = visible(CAMERA, np.eye(4), WALL, np.zeros((0, 3)))
    assert mask.shape == index.shape == (0,)
    with pytest.raises(ConfigError, match=">= 0, got -1"):
        visible(CAMERA, np.eye(4), WALL, np.zeros((1, 3)), tolerance_m=-1)
