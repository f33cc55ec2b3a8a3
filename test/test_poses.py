"""Poses: against scipy's rotations, and exact where exactness is promised."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from semfield_ros.errors import FrameRejected, Reason
from semfield_ros.messages import poses
from semfield_ros.messages.poses import PoseBuffer, TransformMissing
from semfield_ros.messages.types import types

STAMPS = st.integers(0, 2**31 * 10**9 - 1)
NUMBERS = st.floats(-1, 1, allow_nan=False)
QUATERNIONS = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS).filter(lambda q: np.linalg.norm(q) > 0.1)


def unit(q) -> np.ndarray:
    return np.array(q) / np.linalg.norm(q)


def message(t, q) -> object:
    new = types().new
    return new(
        "geometry_msgs/msg/Pose",
        position=new("geometry_msgs/msg/Point", x=float(t[0]), y=float(t[1]), z=float(t[2])),
        orientation=new("geometry_msgs/msg/Quaternion", x=float(q[0]), y=float(q[1]), z=float(q[2]), w=float(q[3])),
    )


@given(STAMPS)
def test_stamps_survive_to_the_nanosecond(ns):
    assert poses.stamp_of(poses.time_of(ns)) == ns
    assert poses.time_of(ns).sec == ns // 10**9


@given(STAMPS)
def test_seconds_are_never_later_than_the_stamp(ns):
    value = poses.seconds(ns)
    assert ns - 500 <= round(value * 1e9) <= ns


def test_a_time_may_be_seconds_too():
    assert poses.stamp_of(poses.time_of(1.25)) == 1_250_000_000
    assert poses.stamp_of(poses.time_of(np.int64(7))) == 7


@given(QUATERNIONS)
def test_a_matrix_is_scipys(q):
    q = unit(q)
    T = poses.matrix_of(message((1, 2, 3), 1.05 * q))
    assert np.allclose(T[:3, :3], Rotation.from_quat(q).as_matrix(), atol=1e-12)
    assert T[:3, 3].tolist() == [1, 2, 3] and T[3].tolist() == [0, 0, 0, 1]


@given(QUATERNIONS)
def test_a_quaternion_is_scipys(q):
    R = Rotation.from_quat(unit(q)).as_matrix()
    back = np.array(poses.quaternion(R))
    assert back[3] >= 0 and math.isclose(np.linalg.norm(back), 1, abs_tol=1e-12)
    assert np.allclose(Rotation.from_quat(back).as_matrix(), R, atol=1e-12)


@pytest.mark.parametrize("axis", range(3))
def test_half_turns_keep_their_quaternion(axis):
    R = -np.eye(3)
    R[axis, axis] = 1
    assert np.allclose(np.abs(poses.quaternion(R)), np.eye(4)[axis], atol=1e-12)


def test_a_pose_survives_its_message():
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_euler("xyz", [0.3, -2, 1]).as_matrix(), [1, -2, 3]
    assert np.allclose(poses.matrix_of(poses.pose_of(T)), T, atol=1e-15)
    assert np.allclose(poses.matrix_of_transform(poses.transform_of(T)), T, atol=1e-15)


@given(QUATERNIONS, QUATERNIONS, st.floats(0, 1))
def test_slerp_is_scipys(a, b, share):
    a, b = unit(a), unit(b)
    if abs(abs(a @ b)) < 1e-3:
        return  # the shorter way round is anyone's
    expected = Slerp([0, 1], Rotation.from_quat([a, b]))(share).as_matrix()
    got = Rotation.from_quat(poses.slerp(tuple(a), tuple(b), share)).as_matrix()
    assert np.allclose(got, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("t", "q", "reason"),
    [
        ((math.nan, 0, 0), (0, 0, 0, 1), Reason.POSE_NOT_FINITE),
        ((0, 0, 0), (0, math.inf, 0, 1), Reason.POSE_NOT_FINITE),
        ((0, 0, 0), (0, 0, 0, 0), Reason.POSE_NOT_RIGID),
        ((0, 0, 0), (0, 0, 0, 2), Reason.POSE_NOT_RIGID),
    ],
)
def test_unusable_poses_are_refused(t, q, reason):
    with pytest.raises(FrameRejected) as error:
        poses.matrix_of(message(t, q))
    assert error.value.reason == reason


def trajectory(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stamps in ns, positions, quaternions."""
    random = np.random.default_rng(seed)
    stamps = 1_700_000_000_000_000_000 + np.cumsum(random.integers(5_000_000, 40_000_000, count))
    return stamps, random.normal(size=(count, 3)), Rotation.random(count, random_state=seed).as_quat()


def filled(stamps, t, q, **options) -> PoseBuffer:
    buffer = PoseBuffer("base", **options)
    for row in zip(stamps.tolist(), map(tuple, t.tolist()), map(tuple, q.tolist())):
        buffer.add(*row)
    return buffer


def test_poses_between_are_scipys():
    stamps, t, q = trajectory(30)
    buffer = filled(stamps, t, q)
    relative_s = (stamps - stamps[0]) * 1e-9
    rotations = Slerp(relative_s, Rotation.from_quat(q))
    for ns in np.random.default_rng(1).integers(stamps[0], stamps[-1], 50):
        T, at_s = buffer.at(int(ns)), (ns - stamps[0]) * 1e-9
        assert np.allclose(T[:3, 3], [np.interp(at_s, relative_s, t[:, k]) for k in range(3)], atol=1e-9)
        assert np.allclose(T[:3, :3], rotations(at_s).as_matrix(), atol=1e-6)
    assert np.array_equal(buffer.at(int(stamps[7]))[:3, 3], t[7])


def test_the_order_of_arrival_does_not_matter():
    stamps, t, q = trajectory(20)
    order = np.random.default_rng(2).permutation(20)
    a, b = filled(stamps, t, q), filled(stamps[order], t[order], q[order])
    middle = int(stamps[9] + stamps[10]) // 2
    assert np.array_equal(a.at(middle), b.at(middle))


def test_what_is_outside_is_said():
    buffer = PoseBuffer("base", max_gap_s=0.5)
    with pytest.raises(TransformMissing, match="no pose of 'base'") as error:
        buffer.at(0)
    assert error.value.kind == "empty" and error.value.frame == "base" and not error.value.hopeless
    buffer.add(10**9, (0, 0, 0), (0, 0, 0, 1))
    buffer.add(2 * 10**9, (1, 0, 0), (0, 0, 0, 1))
    for ns, kind, hopeless in ((9 * 10**8, "too_early", True), (21 * 10**8, "too_late", False),
                               (15 * 10**8, "gap", True)):  # fmt: skip
        with pytest.raises(TransformMissing) as error:
            buffer.at(ns)
        assert error.value.kind == kind and error.value.hopeless == hopeless
        assert error.value.reason == Reason.POSE_MISSING and isinstance(error.value, LookupError)


def test_stamps_rounded_by_float_seconds_still_find_the_ends():
    ns = 1_700_000_000_123_456_789
    buffer = PoseBuffer()
    buffer.add(ns, (1, 2, 3), (0, 0, 0, 1))
    for offset in (-240, 240):
        assert buffer.at(ns + offset)[:3, 3].tolist() == [1, 2, 3]


def test_a_second_pose_of_the_same_stamp_replaces_the_first():
    buffer = PoseBuffer()
    buffer.add(5, (1, 0, 0), (0, 0, 0, 1))
    buffer.add(5, (2, 0, 0), (0, 0, 0, 1))
    assert len(buffer) == 1 and buffer.at(5)[0, 3] == 2


def test_the_buffer_is_bounded_in_time_and_number():
    buffer = PoseBuffer(keep_s=1.0, max_poses=1000)
    for k in range(5000):
        buffer.add(k * 10_000_000, (float(k), 0, 0), (0, 0, 0, 1))
        assert len(buffer) <= 202
    assert buffer.at(4950 * 10_000_000)[0, 3] == 4950
    assert not buffer.add(0, (0, 0, 0), (0, 0, 0, 1)), "older than what is kept"
    assert buffer.at(4990 * 10_000_000)[0, 3] == 4990
    dense = PoseBuffer(keep_s=1.0, max_poses=100)
    for k in range(1000):
        dense.add(k, (float(k), 0, 0), (0, 0, 0, 1))
        assert len(dense) <= 100
    assert dense.at(999)[0, 3] == 999
    dense.clear()
    assert len(dense) == 0 and dense.newest_ns is None


def test_stragglers_are_left_out_but_a_clock_set_back_starts_anew():
    buffer, now = PoseBuffer(keep_s=1.0), 100 * 10**9
    for k in range(20):
        assert buffer.add(now + k, (1, 0, 0), (0, 0, 0, 1))
        assert not buffer.add(k, (0, 0, 0), (0, 0, 0, 1)), "one publisher lives in another time"
    assert buffer.newest_ns == now + 19
    taken = [buffer.add(k, (2, 0, 0), (0, 0, 0, 1)) for k in range(10)]
    assert not taken[0] and all(taken[5:]) and buffer.newest_ns == 9
