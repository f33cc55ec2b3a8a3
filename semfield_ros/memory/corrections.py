"""Pose corrections: which keyframes the corrected poses of a loop closure belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import QueryError
from ..geometry import rigid_error, rotation_angle_rad
from .keyframes import Keyframe


@dataclass(frozen=True)
class Correction:
    """What a pose correction did: keyframes moved, stamps that belong to none, the largest moves."""

    corrected: int
    unknown: int
    largest_translation_m: float
    largest_rotation_rad: float


def check_poses(stamps_s: np.ndarray, poses: np.ndarray, tolerance_s: float, rigid_tolerance: float) -> None:
    """Raise QueryError unless stamps [K], poses [K, 4, 4] and tolerance can be used."""
    if stamps_s.ndim != 1 or poses.shape != (len(stamps_s), 4, 4):
        raise QueryError(f"stamps are {stamps_s.shape} and poses {poses.shape}; expected [K] and [K, 4, 4]")
    if not np.isfinite(stamps_s).all() or not (np.isfinite(tolerance_s) and tolerance_s >= 0):
        raise QueryError(f"stamps and tolerance must be finite, and the tolerance ({tolerance_s}) >= 0")
    for stamp_s, T in zip(stamps_s, poses):
        if not np.isfinite(T).all() or rigid_error(T) > rigid_tolerance:
            raise QueryError(f"the pose for stamp {stamp_s:.6f} s is not rigid; check its quaternion")


def match_poses(
    keyframes: Sequence[Keyframe], camera_name: str, stamps_s: np.ndarray, poses: np.ndarray, tolerance_s: float
) -> tuple[dict[int, np.ndarray], Correction]:
    """New poses by keyframe id, and what they amount to. O(keyframes x stamps)."""
    moved: dict[int, np.ndarray] = {}
    translation_m = rotation_rad = 0.0
    unknown = 0
    mine = [k for k in keyframes if camera_name in ("", k.camera_name)]
    times = np.array([k.stamp_s for k in mine])
    for stamp_s, T in zip(stamps_s, poses):
        # stamps are nanoseconds on the wire and doubles here: equal to a microsecond is equal
        near = np.flatnonzero(np.abs(times - stamp_s) <= max(tolerance_s, 1e-6))
        if not len(near):
            unknown += 1
            continue
        keyframe = mine[int(near[np.argmin(np.abs(times[near] - stamp_s))])]
        translation_m = max(translation_m, float(np.linalg.norm(T[:3, 3] - keyframe.T_world_camera[:3, 3])))
        rotation_rad = max(rotation_rad, rotation_angle_rad(keyframe.T_world_camera[:3, :3], T[:3, :3]))
        moved[keyframe.id] = T
    return moved, Correction(len(moved), unknown, translation_m, rotation_rad)
