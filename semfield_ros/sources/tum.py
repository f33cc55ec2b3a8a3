"""The TUM RGB-D layout (Sturm et al. 2012): rgb.txt, depth.txt and groundtruth.txt, each line starting with a stamp.

A colour image is paired with the depth image nearest in time (at most 20 ms away), one to one. The frame takes the
depth image's stamp, and the trajectory is interpolated to it: geometry is what must not shift. Depth is uint16, 5000 a
metre.

Intrinsics and distortion are the published ones of freiburg1, 2 or 3, found in the directory's name; a `camera.txt`
(fx fy cx cy [k1 k2 p1 p2 [k3]]) overrides them. Distortion is taken out of both images.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from ..errors import FrameRejected, Reason, SourceError
from ..geometry import Camera
from .images import read_colour, read_raw, undistorted
from .recording import Shot

PREFIXES = ("tum",)
LAYOUT = "TUM RGB-D: rgb.txt, depth.txt and groundtruth.txt"
_PER_METRE = 5000.0
_MAX_PAIR_S = 0.02
_MAX_POSE_GAP_S = 0.1
_PUBLISHED = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    "freiburg2": (520.9, 521.0, 325.1, 249.7, 0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}


def recognises(directory: Path) -> bool:
    """Whether the directory holds this layout."""
    return all((directory / name).is_file() for name in ("rgb.txt", "depth.txt", "groundtruth.txt"))


def shots(directory: Path) -> list[Shot]:
    """Every pair of colour and depth in order."""
    colour_s, colour_files = _image_list(directory / "rgb.txt")
    depth_s, depth_files = _image_list(directory / "depth.txt")
    trajectory = _trajectory(directory / "groundtruth.txt")
    intrinsics = _intrinsics(directory)
    return [
        Shot(
            float(depth_s[j]),
            partial(_load, directory / colour_files[i], directory / depth_files[j], depth_s[j], trajectory, intrinsics),
        )
        for i, j in associate(colour_s, depth_s, _MAX_PAIR_S)
    ]


def associate(a_s: np.ndarray, b_s: np.ndarray, max_gap_s: float) -> list[tuple[int, int]]:
    """Pairs (i, j) of mutually nearest stamps at most `max_gap_s` apart, in order of b; each index at most once."""
    if not len(a_s) or not len(b_s):
        return []
    nearest_a, nearest_b = _nearest(a_s, b_s), _nearest(b_s, a_s)
    return [
        (int(i), j)
        for j, i in enumerate(nearest_a)
        if nearest_b[i] == j and abs(a_s[i] - b_s[j]) <= max_gap_s
    ]


def _nearest(stamps_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """For each wanted stamp the index of the nearest of the sorted `stamps_s`."""
    after = np.clip(np.searchsorted(stamps_s, wanted_s), 1, max(len(stamps_s) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(stamps_s) - 1)
    return np.where(np.abs(stamps_s[before] - wanted_s) <= np.abs(stamps_s[after] - wanted_s), before, after)


def pose_at(trajectory: np.ndarray, stamp_s: float) -> np.ndarray:
    """T_world_camera at a stamp between two rows (stamp, t xyz, q xyzw): t linearly, rotation spherically.

    Raises:
        FrameRejected: the stamp lies outside, or in a gap of more than 0.1 s.
    """
    after = int(np.searchsorted(trajectory[:, 0], stamp_s))
    around = trajectory[[max(after - 1, 0), min(after, len(trajectory) - 1)]]
    start_s, end_s = around[:, 0]
    if not start_s <= stamp_s <= end_s or end_s - start_s > _MAX_POSE_GAP_S:
        raise FrameRejected(
            Reason.POSE_NOT_FINITE,
            f"no ground truth around stamp {stamp_s:.4f} s; gaps up to {_MAX_POSE_GAP_S} s are interpolated",
        )
    share = (stamp_s - start_s) / (end_s - start_s) if end_s > start_s else 0.0
    T = np.eye(4)
    try:
        T[:3, :3] = Slerp([0.0, 1.0], Rotation.from_quat(around[:, 4:]))(share).as_matrix()
    except ValueError as error:
        raise FrameRejected(Reason.POSE_NOT_RIGID, f"ground truth near {stamp_s:.4f} s: {error}") from error
    T[:3, 3] = (1 - share) * around[0, 1:4] + share * around[1, 1:4]
    return T


def _load(
    colour: Path,
    depth: Path,
    stamp_s: float,
    trajectory: np.ndarray,
    intrinsics: tuple[float, ...],
) -> dict[str, Any]:
    T_world_camera = pose_at(trajectory, stamp_s)
    rgb, raw = read_colour(colour), read_raw(depth, Reason.DEPTH_TYPE)
    camera = Camera(rgb.shape[1], rgb.shape[0], *intrinsics[:4])
    rgb, raw = undistorted(camera, intrinsics[4:], rgb, raw)
    return {
        "camera": camera,
        "T_world_camera": T_world_camera,
        "rgb": rgb,
        "depth": raw.astype(np.float32) / np.float32(_PER_METRE),
    }


def _intrinsics(directory: Path) -> tuple[float, ...]:
    override = directory / "camera.txt"
    if not override.exists():
        for name, values in _PUBLISHED.items():
            if name in directory.resolve().name:
                return values
        raise SourceError(
            f"no intrinsics for {directory.resolve().name!r}: put camera.txt (fx fy cx cy [k1 k2 p1 p2 [k3]]) into it, "
            f"or keep the published name, which has one of {', '.join(_PUBLISHED)}"
        )
    try:
        values = tuple(np.loadtxt(override).reshape(-1).tolist())
    except ValueError as error:
        raise SourceError(f"{override} holds something else than numbers: {error}") from error
    if len(values) not in (4, 8, 9):
        raise SourceError(f"{override} has {len(values)} numbers; expected fx fy cx cy [k1 k2 p1 p2 [k3]]")
    return values


def _image_list(path: Path) -> tuple[np.ndarray, list[str]]:
    """Stamps (sorted) and file names of a list of images."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            try:
                stamp, name = line.split(maxsplit=1)
                rows.append((float(stamp), name.strip()))
            except ValueError as error:
                raise SourceError(f"{path}, line {number} is {line!r}; expected a stamp and a file name") from error
    rows.sort()
    return np.array([stamp_s for stamp_s, _ in rows]), [name for _, name in rows]


def _trajectory(path: Path) -> np.ndarray:
    """Rows of stamp, translation xyz, quaternion xyzw, sorted by stamp: [N, 8] float64."""
    try:
        rows = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise SourceError(f"{path} does not hold numbers in columns: {error}") from error
    if not len(rows) or rows.shape[1] != 8:
        raise SourceError(f"{path} has shape {rows.shape}; expected rows of stamp tx ty tz qx qy qz qw")
    return rows[np.argsort(rows[:, 0])]
