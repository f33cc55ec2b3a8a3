"""Poses and stamps of messages, and poses between two messages.

Stamps are integer nanoseconds: as float seconds since 1970 they are only good to a quarter of a microsecond, and equal
stamps must stay equal.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any, Literal

import numpy as np

from ..errors import FrameRejected, Reason
from .types import types

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
"""x, y, z, w, as in messages."""

Kind = Literal["unknown_frame", "not_connected", "too_early", "too_late", "empty", "gap"]

STAMP_TOLERANCE_NS = 1000
"""Stamps that went through float seconds are off by up to 240 ns; within this they count as the same."""
_UNIT_TOLERANCE = 0.1
_OLD_IN_A_ROW = 5
"""So many poses too old to keep, and none newer between: time has jumped back. Fewer are stragglers."""


class TransformMissing(FrameRejected, LookupError):
    """A pose that is not known at the asked time.

    Attributes:
        kind: unknown_frame (nobody has spoken of it), not_connected (two trees), too_early (older than everything
            kept: it will not come any more), too_late (newer than everything: it may still come), empty (nothing has
            come yet), gap (between two poses too far apart: it will not come any more).
        frame: the frame it is about.
        message: in words, with the remedy.
    """

    def __init__(self, kind: Kind, frame: str, message: str):
        super().__init__(Reason.POSE_MISSING, message)
        self.kind, self.frame, self.message = kind, frame, message

    @property
    def hopeless(self) -> bool:
        """Whether waiting cannot help."""
        return self.kind in ("too_early", "gap")


def stamp_of(time: Any) -> int:
    """builtin_interfaces/Time (such as `msg.header.stamp`) in nanoseconds."""
    return int(time.sec) * 1_000_000_000 + int(time.nanosec)


def time_of(stamp: int | float) -> Any:
    """builtin_interfaces/Time of integer nanoseconds, or of float seconds (rounded to nanoseconds)."""
    ns = stamp if isinstance(stamp, (int, np.integer)) else round(float(stamp) * 1e9)
    sec, nanosec = divmod(int(ns), 1_000_000_000)
    return types().new("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)


def seconds(stamp_ns: int) -> float:
    """A stamp as float seconds, never later than it: so a lookup at the newest pose's own stamp finds it."""
    value = stamp_ns * 1e-9
    while round(value * 1e9) > stamp_ns:
        value = math.nextafter(value, -math.inf)
    return value


def header_of(stamp: int | float, frame_id: str) -> Any:
    """std_msgs/Header with a stamp as of `time_of`."""
    return types().new("std_msgs/msg/Header", stamp=time_of(stamp), frame_id=frame_id)


def parts_of(position: Any, orientation: Any) -> tuple[Vector, Quaternion]:
    """Position and unit quaternion of message fields with x, y, z[, w].

    Raises:
        FrameRejected: POSE_NOT_FINITE, or POSE_NOT_RIGID for a quaternion far from unit length (such as all zero).
    """
    t = (float(position.x), float(position.y), float(position.z))
    q = (float(orientation.x), float(orientation.y), float(orientation.z), float(orientation.w))
    if not all(map(math.isfinite, t + q)):
        raise FrameRejected(Reason.POSE_NOT_FINITE, f"position {t}, quaternion {q}; expected finite numbers")
    norm = math.sqrt(sum(c * c for c in q))
    if abs(norm - 1.0) > _UNIT_TOLERANCE:
        raise FrameRejected(
            Reason.POSE_NOT_RIGID,
            f"quaternion {q} (x, y, z, w) has length {norm:.3g}; expected 1. Its publisher left it unset or unscaled",
        )
    return t, (q[0] / norm, q[1] / norm, q[2] / norm, q[3] / norm)


def matrix(t: Vector, q: Quaternion) -> np.ndarray:
    """[4, 4] float64 of a translation and a unit quaternion."""
    x, y, z, w = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w), t[0]],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w), t[1]],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y), t[2]],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )


def quaternion(R: np.ndarray) -> Quaternion:
    """Unit quaternion, w >= 0, of a 3x3 rotation: the branch with the largest divisor (Shepperd 1978)."""
    r = [[float(R[i, j]) for j in range(3)] for i in range(3)]
    trace = r[0][0] + r[1][1] + r[2][2]
    largest = max(range(4), key=lambda k: trace if k == 3 else r[k][k])
    if largest == 3:
        q = [r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1], 1.0 + trace]
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        q = [0.0, 0.0, 0.0, r[k][j] - r[j][k]]
        q[i], q[j], q[k] = 1.0 + 2 * r[i][i] - trace, r[j][i] + r[i][j], r[k][i] + r[i][k]
    norm = math.copysign(math.sqrt(sum(c * c for c in q)), q[3])
    return (q[0] / norm, q[1] / norm, q[2] / norm, q[3] / norm)


def slerp(a: Quaternion, b: Quaternion, share: float) -> Quaternion:
    """From a (share 0) to b (share 1) the shorter way round at constant speed (Shoemake 1985)."""
    cosine = a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]
    sign = -1.0 if cosine < 0 else 1.0
    angle = math.acos(min(1.0, abs(cosine)))
    if angle < 1e-6:
        wa, wb = 1.0 - share, sign * share
    else:
        wa, wb = math.sin((1 - share) * angle) / math.sin(angle), sign * math.sin(share * angle) / math.sin(angle)
    q = (wa * a[0] + wb * b[0], wa * a[1] + wb * b[1], wa * a[2] + wb * b[2], wa * a[3] + wb * b[3])
    norm = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    return (q[0] / norm, q[1] / norm, q[2] / norm, q[3] / norm)


def matrix_of(pose: Any) -> np.ndarray:
    """[4, 4] float64 of a geometry_msgs/Pose. Raises as `parts_of`."""
    return matrix(*parts_of(pose.position, pose.orientation))


def matrix_of_transform(transform: Any) -> np.ndarray:
    """[4, 4] float64 of a geometry_msgs/Transform. Raises as `parts_of`."""
    return matrix(*parts_of(transform.translation, transform.rotation))


def pose_of(T: np.ndarray) -> Any:
    """geometry_msgs/Pose of a rigid [4, 4]."""
    (x, y, z), (qx, qy, qz, qw) = map(float, T[:3, 3]), quaternion(T[:3, :3])
    return types().new(
        "geometry_msgs/msg/Pose",
        position=types().new("geometry_msgs/msg/Point", x=x, y=y, z=z),
        orientation=types().new("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
    )


def transform_of(T: np.ndarray) -> Any:
    """geometry_msgs/Transform of a rigid [4, 4]."""
    (x, y, z), (qx, qy, qz, qw) = map(float, T[:3, 3]), quaternion(T[:3, :3])
    return types().new(
        "geometry_msgs/msg/Transform",
        translation=types().new("geometry_msgs/msg/Vector3", x=x, y=y, z=z),
        rotation=types().new("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
    )


class PoseBuffer:
    """The last seconds of one moving pose: translations interpolated linearly, rotations spherically, as tf2 does.

    Args:
        frame: what moves, for messages.
        keep_s: older poses than this, counted from the newest, are forgotten.
        max_gap_s: no pose is guessed between neighbours farther apart.
        max_poses: hard bound whatever the rate.
    """

    def __init__(
        self, frame: str = "pose", *, keep_s: float = 10.0, max_gap_s: float = math.inf, max_poses: int = 20_000
    ):
        self.frame = frame
        self._keep_ns, self._max_gap_s, self._max_poses = int(keep_s * 1e9), max_gap_s, max_poses
        self._stamps_ns: list[int] = []
        self._poses: list[tuple[Vector, Quaternion]] = []
        self._old_in_a_row = 0

    def __len__(self) -> int:
        return len(self._stamps_ns)

    @property
    def newest_ns(self) -> int | None:
        """Stamp of the newest pose."""
        return self._stamps_ns[-1] if self._stamps_ns else None

    def add(self, stamp_ns: int, t: Vector, q: Quaternion) -> bool:
        """Remember a pose (unit quaternion); False where it is older than what is kept. A known stamp is replaced.

        Several old ones in a row mean that time has jumped back: then everything before is forgotten.
        """
        stamps = self._stamps_ns
        if stamps and stamp_ns < stamps[-1] - self._keep_ns:
            self._old_in_a_row += 1
            if self._old_in_a_row < _OLD_IN_A_ROW:
                return False
            self.clear()
        self._old_in_a_row = 0
        place = len(stamps) if not stamps or stamp_ns > stamps[-1] else bisect_left(stamps, stamp_ns)
        if place < len(stamps) and stamps[place] == stamp_ns:
            self._poses[place] = (t, q)
            return True
        stamps.insert(place, stamp_ns)
        self._poses.insert(place, (t, q))
        # In blocks: dropping one at a time from the front of a list moves all of it.
        if len(stamps) > self._max_poses or stamps[0] < stamps[-1] - 2 * self._keep_ns:
            first = max(bisect_left(stamps, stamps[-1] - self._keep_ns), len(stamps) - self._max_poses * 3 // 4)
            del stamps[:first], self._poses[:first]
        return True

    def add_matrix(self, stamp_ns: int, T: np.ndarray) -> bool:
        """`add` of a rigid [4, 4]."""
        x, y, z = map(float, T[:3, 3])
        return self.add(stamp_ns, (x, y, z), quaternion(T[:3, :3]))

    def at(self, stamp_ns: int) -> np.ndarray:
        """The pose [4, 4] at a time.

        Raises:
            TransformMissing: empty, too_early, too_late or gap.
        """
        stamps = self._stamps_ns
        if not stamps:
            raise TransformMissing("empty", self.frame, f"no pose of {self.frame!r} has come yet")
        place = bisect_left(stamps, stamp_ns)
        if place == len(stamps):
            if stamp_ns > stamps[-1] + STAMP_TOLERANCE_NS:
                raise self._outside("too_late", stamp_ns, "after the newest one", stamps[-1])
            return matrix(*self._poses[-1])
        if stamps[place] == stamp_ns:
            return matrix(*self._poses[place])
        if place == 0:
            if stamp_ns < stamps[0] - STAMP_TOLERANCE_NS:
                raise self._outside("too_early", stamp_ns, "before the oldest one kept", stamps[0])
            return matrix(*self._poses[0])
        before_ns, after_ns = stamps[place - 1], stamps[place]
        gap_s = (after_ns - before_ns) * 1e-9
        if gap_s > self._max_gap_s:
            raise TransformMissing(
                "gap", self.frame,
                f"poses of {self.frame!r} around stamp {stamp_ns * 1e-9:.6f} s are {gap_s:.3f} s apart; allowed are "
                f"{self._max_gap_s} s. Publish them faster, or raise max_gap_s",
            )  # fmt: skip
        share = (stamp_ns - before_ns) / (after_ns - before_ns)
        (t0, q0), (t1, q1) = self._poses[place - 1], self._poses[place]
        x, y, z = (a + share * (b - a) for a, b in zip(t0, t1))
        return matrix((x, y, z), slerp(q0, q1, share))

    def _outside(self, kind: Kind, stamp_ns: int, where: str, nearest_ns: int) -> TransformMissing:
        return TransformMissing(
            kind, self.frame,
            f"pose of {self.frame!r} is asked at {stamp_ns * 1e-9:.6f} s, {abs(stamp_ns - nearest_ns) * 1e-9:.6f} s "
            f"{where}. If it stays so, the clocks of the camera and of the pose's publisher disagree",
        )  # fmt: skip

    def clear(self) -> None:
        """Forget everything."""
        self._stamps_ns.clear()
        self._poses.clear()
        self._old_in_a_row = 0
