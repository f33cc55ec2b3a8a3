"""TransformBuffer: random trees against chains composed by transforms3d and scipy, and tf2's rules."""

import threading
from itertools import pairwise

import numpy as np
import pytest
import transforms3d
from scipy.spatial.transform import Rotation, Slerp

from semfield_ros.messages.poses import header_of, transform_of
from semfield_ros.messages.transforms import TransformBuffer, TransformMissing
from semfield_ros.messages.types import types

NOW = 1_700_000_000_000_000_000


def stamped(parent: str, child: str, T: np.ndarray, ns: int = NOW) -> object:
    return types().new(
        "geometry_msgs/msg/TransformStamped", header=header_of(ns, parent), child_frame_id=child,
        transform=transform_of(T),
    )  # fmt: skip


def tf(*transforms: object) -> object:
    return types().new("tf2_msgs/msg/TFMessage", transforms=list(transforms))


def shift(x: float, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    return transforms3d.affines.compose([x, y, z], np.eye(3), np.ones(3))


def rotation(seed: int) -> np.ndarray:
    return Rotation.random(random_state=seed).as_matrix()


def kind_of(buffer: TransformBuffer, target: str, source: str, stamp_s: float = NOW * 1e-9) -> tuple[str, str, str]:
    with pytest.raises(TransformMissing) as error:
        buffer.lookup(target, source, stamp_s)
    return error.value.kind, error.value.frame, error.value.message


class Oracle:
    """Chains of 4x4 matrices from transforms3d, each edge interpolated by scipy."""

    def __init__(self, seed: int, frames: int = 12):
        random = np.random.default_rng(seed)
        self.parent = {k: int(random.integers(0, k)) for k in range(1, frames)}
        self.static = {k: bool(random.random() < 0.4) for k in self.parent}
        self.stamps = {k: NOW + np.cumsum(random.integers(1_000_000, 90_000_000, 25)) for k in self.parent}
        self.t = {k: random.normal(size=(25, 3)) for k in self.parent}
        self.R = {k: Rotation.random(25, random_state=seed + k) for k in self.parent}

    def messages(self) -> list[tuple[object, bool]]:
        found = []
        for k, parent in self.parent.items():
            for i in range(1 if self.static[k] else 25):
                T = transforms3d.affines.compose(self.t[k][i], self.R[k][i].as_matrix(), np.ones(3))
                found.append((tf(stamped(f"f{parent}", f"f{k}", T, int(self.stamps[k][i]))), self.static[k]))
        return found

    def edge(self, k: int, ns: int) -> np.ndarray:
        if self.static[k]:
            return transforms3d.affines.compose(self.t[k][0], self.R[k][0].as_matrix(), np.ones(3))
        at_s, stamps_s = (ns - NOW) * 1e-9, (self.stamps[k] - NOW) * 1e-9
        R = Slerp(stamps_s, self.R[k])(at_s).as_matrix()
        return transforms3d.affines.compose([np.interp(at_s, stamps_s, c) for c in self.t[k].T], R, np.ones(3))

    def T_root(self, k: int, ns: int) -> np.ndarray:
        return np.eye(4) if k == 0 else self.T_root(self.parent[k], ns) @ self.edge(k, ns)

    def times(self) -> tuple[int, int]:
        moving = [self.stamps[k] for k in self.parent if not self.static[k]]
        return max(int(s[0]) for s in moving), min(int(s[-1]) for s in moving)


@pytest.mark.parametrize("seed", range(6))
def test_random_trees(seed):
    oracle, buffer = Oracle(seed), TransformBuffer()
    messages = oracle.messages()
    for place in np.random.default_rng(seed).permutation(len(messages)):
        buffer.add(messages[place][0], static=messages[place][1])
    assert not buffer.refused
    random = np.random.default_rng(seed + 100)
    first, last = oracle.times()
    for _ in range(30):
        a, b = (int(k) for k in random.integers(0, len(oracle.parent) + 1, 2))
        ns = int(random.integers(first, last))
        expected = np.linalg.inv(oracle.T_root(a, ns)) @ oracle.T_root(b, ns)
        assert np.allclose(buffer.lookup_ns(f"f{a}", f"f{b}", ns), expected, atol=1e-6)
        assert np.allclose(buffer.lookup(f"f{a}", f"f{b}", ns * 1e-9), expected, atol=1e-4)


def test_each_kind_of_ignorance_has_its_name():
    buffer = TransformBuffer()
    assert kind_of(buffer, "map", "camera")[:2] == ("unknown_frame", "map")
    buffer.add(tf(stamped("map", "base", shift(1), NOW), stamped("map", "base", shift(2), NOW + 10**9)))
    kind, frame, message = kind_of(buffer, "map", "camera")
    assert (kind, frame) == ("unknown_frame", "camera") and "base, map" in message
    buffer.add(tf(stamped("mount", "camera", shift(1))), static=True)
    kind, _, message = kind_of(buffer, "map", "camera")
    assert kind == "not_connected" and "'map'" in message and "'mount'" in message
    assert kind_of(buffer, "map", "base", NOW * 1e-9 - 1)[:2] == ("too_early", "base")
    assert kind_of(buffer, "map", "base", NOW * 1e-9 + 2)[:2] == ("too_late", "base")
    buffer.clear()
    assert kind_of(buffer, "map", "base")[0] == "empty"
    assert buffer.lookup("camera", "mount", 0.0)[0, 3] == -1, "static transforms hold always, and stay"


def test_a_frame_in_itself_is_the_identity_at_any_time():
    assert np.array_equal(TransformBuffer().lookup("map", "map", 5.0), np.eye(4))


def test_leading_slashes_are_no_part_of_names():
    buffer = TransformBuffer()
    buffer.add(tf(stamped("/map", "/base", shift(1))))
    assert buffer.lookup("map", "/base", NOW * 1e-9)[0, 3] == 1


def test_the_newest_stamp_itself_is_found_through_float_seconds():
    ns = 1_700_000_000_123_456_789
    buffer = TransformBuffer()
    buffer.add(tf(stamped("map", "base", shift(1), ns)))
    assert buffer.lookup("map", "base", ns * 1e-9)[0, 3] == 1


def test_a_frame_moves_to_another_parent():
    buffer = TransformBuffer()
    buffer.add(tf(stamped("map", "table", shift(1)), stamped("map", "hand", shift(0, 5)),
                  stamped("table", "cup", shift(1))))  # fmt: skip
    assert buffer.lookup("map", "cup", NOW * 1e-9)[:3, 3].tolist() == [2, 0, 0]
    buffer.add(tf(stamped("hand", "cup", shift(0, 1))))
    assert buffer.lookup("map", "cup", NOW * 1e-9)[:3, 3].tolist() == [0, 6, 0]
    assert buffer.frames() == {"table": "map", "hand": "map", "cup": "hand"}


def test_what_is_no_transform_is_refused_and_counted():
    buffer = TransformBuffer()
    bad, zero = stamped("map", "a", shift(np.nan)), stamped("map", "a", shift(1))
    zero.transform.rotation.w = 0.0
    buffer.add(tf(bad, zero, stamped("map", "b", shift(1)), stamped("b", "map", shift(1)), stamped("c", "c", shift(1))))
    assert dict(buffer.refused) == {"pose_not_finite": 1, "pose_not_rigid": 1, "not_a_tree": 2}
    assert buffer.frames() == {"b": "map"} and "'c'" in buffer.last_error


def test_old_transforms_are_forgotten_and_refused():
    buffer = TransformBuffer(keep_s=1.0)
    for k in range(500):
        buffer.add(tf(stamped("map", "base", shift(k), NOW + k * 10_000_000)))
    assert kind_of(buffer, "map", "base", NOW * 1e-9)[0] == "too_early"
    buffer.add(tf(stamped("map", "base", shift(0), NOW)))
    assert buffer.refused["old"] == 1
    buffer.clear()
    buffer.add(tf(stamped("map", "base", shift(7), NOW)))
    assert buffer.lookup("map", "base", NOW * 1e-9)[0, 3] == 7, "after a jump back, time starts anew"


def test_quaternions_are_normalised():
    buffer, message = TransformBuffer(), stamped("map", "base", shift(1))
    message.transform.rotation.w = 1.05
    buffer.add(tf(message))
    assert np.array_equal(buffer.lookup("map", "base", NOW * 1e-9), shift(1))


def test_threads_may_look_while_others_add():
    buffer, failures = TransformBuffer(), []
    chain = [f"f{k}" for k in range(7)]
    buffer.add(tf(*(stamped(a, b, shift(1)) for a, b in pairwise(chain))))

    def look():
        try:
            for _ in range(300):
                assert buffer.lookup("f0", "f6", NOW * 1e-9)[0, 3] == 6
        except BaseException as error:
            failures.append(error)

    def add():
        for k in range(300):
            buffer.add(tf(*(stamped(a, b, shift(1), NOW + k) for a, b in pairwise(chain))))
            buffer.add(tf(stamped("f0", f"other{k % 20}", shift(k))))

    threads = [threading.Thread(target=target) for target in (look, add, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.ros
def test_the_same_as_tf2():
    rclpy_time = pytest.importorskip("rclpy.time")
    tf2 = pytest.importorskip("tf2_ros")
    from geometry_msgs.msg import TransformStamped

    oracle, ours, theirs = Oracle(3), TransformBuffer(), tf2.BufferCore(tf2.Duration(seconds=10))
    for message, static in oracle.messages():
        ours.add(message, static=static)
        for s in message.transforms:
            copy = TransformStamped(child_frame_id=s.child_frame_id)
            copy.header.frame_id = s.header.frame_id
            copy.header.stamp.sec, copy.header.stamp.nanosec = s.header.stamp.sec, s.header.stamp.nanosec
            for part, axes in (("translation", "xyz"), ("rotation", "xyzw")):
                for axis in axes:
                    setattr(getattr(copy.transform, part), axis, getattr(getattr(s.transform, part), axis))
            (theirs.set_transform_static if static else theirs.set_transform)(copy, "test")
    random, (first, last) = np.random.default_rng(4), oracle.times()
    for _ in range(40):
        a, b = (f"f{k}" for k in random.integers(0, len(oracle.parent) + 1, 2))
        ns = int(random.integers(first, last))
        transform = theirs.lookup_transform_core(a, b, rclpy_time.Time(nanoseconds=ns)).transform
        q, t = transform.rotation, transform.translation
        T = transforms3d.affines.compose(
            [t.x, t.y, t.z], transforms3d.quaternions.quat2mat([q.w, q.x, q.y, q.z]), np.ones(3)
        )
        assert np.allclose(ours.lookup_ns(a, b, ns), T, atol=1e-6)
