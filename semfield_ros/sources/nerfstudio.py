"""The nerfstudio layout (Tancik et al. 2023): transforms.json with depth images.

Poses are camera-to-world in OpenGL axes (x right, y up, z back); their y and z axes are turned to OpenCV's. The layout
puts pixel centres at half-integers, this package at integers, so principal points move by half a pixel. Depth is
z-depth in units of `depth_unit_scale_factor` metres (default 1e-3). `applied_transform` is undone, so that the world is
the recording's own; an `applied_scale` other than 1 is refused, because depth and poses would no longer be metric.
Distortion of the OPENCV camera model is taken out; fisheye models are refused. `mask_path` is not read. The layout has
no stamps: frames are laid out at 10 Hz in the order of their file names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FrameRejected, Reason, SourceError
from ..geometry import Camera, invert, rigid_error
from .images import read_colour, read_raw, undistorted
from .recording import Shot

LAYOUT = "nerfstudio: transforms.json with depth_file_path"
_RATE_HZ = 10.0
_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE")
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def recognises(directory: Path) -> bool:
    """Whether the directory holds this layout."""
    return (directory / "transforms.json").is_file()


def shots(directory: Path) -> list[Shot]:
    """Every frame that has a depth image, in the order of file names."""
    path = directory / "transforms.json"
    try:
        scene = json.loads(path.read_text(encoding="utf-8"))
        frames = sorted(scene["frames"], key=lambda frame: str(frame["file_path"]))
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{path} is not a scene with frames and their file_path: {error!r}") from error
    with_depth = [frame for frame in frames if "depth_file_path" in frame]
    if frames and not with_depth:
        raise SourceError(f"{path}: none of {len(frames)} frames has a depth_file_path; depth is needed")
    T_world_scene = _undo_applied(scene, path)
    unit_m = scene.get("depth_unit_scale_factor", 1e-3)
    if not isinstance(unit_m, (int, float)) or not 0 < unit_m < math.inf:
        raise SourceError(f"{path}: depth_unit_scale_factor is {unit_m!r}; allowed: metres per unit, > 0")
    listed = []
    for i, frame in enumerate(with_depth):
        settings = {**scene, **frame}
        intrinsics, distortion = _intrinsics(settings, path), _distortion(settings, path)
        load = partial(_load, directory, frame, intrinsics, distortion, T_world_scene, float(unit_m))
        listed.append(Shot(i / _RATE_HZ, load))
    return listed


def _load(
    directory: Path,
    frame: Mapping[str, Any],
    intrinsics: Mapping[str, float],
    distortion: tuple[float, ...],
    T_world_scene: np.ndarray,
    unit_m: float,
) -> dict[str, Any]:
    rgb = read_colour(directory / frame["file_path"])
    depth = _depth(directory / frame["depth_file_path"], unit_m)
    try:
        T_scene_camera = np.array(frame["transform_matrix"], dtype=np.float64).reshape(4, 4) @ _OPENGL_TO_OPENCV
    except (KeyError, TypeError, ValueError) as error:
        raise FrameRejected(
            Reason.POSE_NOT_FINITE, f"{frame['file_path']}: transform_matrix is not 4x4 numbers: {error!r}"
        ) from error
    width, height = int(intrinsics.get("w", rgb.shape[1])), int(intrinsics.get("h", rgb.shape[0]))
    fx = intrinsics["fl_x"] if "fl_x" in intrinsics else 0.5 * width / math.tan(0.5 * intrinsics["camera_angle_x"])
    camera = Camera(
        width,
        height,
        fx,
        intrinsics.get("fl_y", fx),
        intrinsics.get("cx", width / 2) - 0.5,
        intrinsics.get("cy", height / 2) - 0.5,
    )
    rgb, depth = undistorted(camera, distortion, rgb, depth)
    return {"camera": camera, "T_world_camera": T_world_scene @ T_scene_camera, "rgb": rgb, "depth": depth}


def _depth(path: Path, unit_m: float) -> np.ndarray:
    """Metres, float32, from an image or an .npy array in units of `unit_m` metres."""
    if path.suffix == ".npy":
        try:
            raw = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FrameRejected(Reason.DEPTH_TYPE, f"cannot read {path.name}: {error}") from error
    else:
        raw = read_raw(path, Reason.DEPTH_TYPE)
    if raw.ndim == 3 and raw.shape[2] == 1:
        raw = raw[..., 0]
    return (raw * np.float64(unit_m)).astype(np.float32)


def _intrinsics(settings: Mapping[str, Any], path: Path) -> dict[str, float]:
    keys = ("w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x")
    values = {key: settings[key] for key in keys if key in settings}
    for key, value in values.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise SourceError(f"{path}: {key} is {value!r}; expected a finite number")
    if "fl_x" not in values and "camera_angle_x" not in values:
        raise SourceError(f"{path}: neither scene nor frame has fl_x (pixels) or camera_angle_x (radians)")
    return values


def _distortion(settings: Mapping[str, Any], path: Path) -> tuple[float, ...]:
    model = settings.get("camera_model", "OPENCV")
    if model not in _MODELS:
        raise SourceError(
            f"{path}: camera_model is {model!r}; supported: {', '.join(_MODELS)}. Undistort the images first "
            "(for instance with COLMAP's image_undistorter)"
        )
    try:
        values = tuple(float(settings.get(key, 0.0)) for key in ("k1", "k2", "p1", "p2", "k3", "k4"))
    except (TypeError, ValueError) as error:
        raise SourceError(f"{path}: distortion k1, k2, p1, p2, k3 must be numbers: {error}") from error
    if values[5] != 0 or not all(map(math.isfinite, values)):
        raise SourceError(f"{path}: distortion k1, k2, p1, p2, k3, k4 is {values}; allowed: finite, with k4 = 0")
    return values[:5]


def _undo_applied(scene: Mapping[str, Any], path: Path) -> np.ndarray:
    """T_world_scene, from the scene's axes back to the recording's world."""
    if scene.get("applied_scale", 1.0) != 1.0:
        raise SourceError(
            f"{path}: applied_scale is {scene['applied_scale']!r}; poses must be in metres. "
            "Export the scene again without scaling, and remove the key"
        )
    applied = np.eye(4)
    if "applied_transform" in scene:
        try:
            applied[:3] = np.array(scene["applied_transform"], dtype=np.float64)[:3].reshape(3, 4)
        except (TypeError, ValueError) as error:
            raise SourceError(f"{path}: applied_transform is not 3x4 numbers: {error}") from error
        if not rigid_error(applied) < 1e-4:
            raise SourceError(f"{path}: applied_transform is not rigid; poses must be in metres: {applied.tolist()}")
    return invert(applied)
