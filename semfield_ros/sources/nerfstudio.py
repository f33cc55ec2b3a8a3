"""The nerfstudio layout (Tancik et al. 2023), which LERF and F3RM use too: transforms.json with depth images.

Poses are camera-to-world in OpenGL axes (x right, y up, z back); their y and z axes are turned to OpenCV's. The layout
puts pixel centres at half-integers, this package at integers, so principal points move by half a pixel. Depth is
z-depth in units of `depth_unit_scale_factor` metres (default 1e-3). `applied_transform` is undone, so that the world is
the recording's own; an `applied_scale` other than 1 is refused, because depth and poses would no longer be metric.
Distortion of the OPENCV camera model is taken out; fisheye models are refused. `mask_path` is not read. The layout has
no stamps: frames are laid out at 10 Hz in the order of their file names. Intrinsics may stand in each frame (Polycam,
Record3D) or once for the scene; file names may lack their suffix (instant-ngp).

Captures processed by COLMAP alone have no depth, and no metres. Depth rendered or measured later is found without
`depth_file_path` in depth/ or depths/ beside images/, under the image's name with .png or .npy; frames without any are
left out.
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
from .posed_folder import Split
from .recording import Shot

LAYOUT = "nerfstudio: transforms.json with depth_file_path or depth/ (LERF, F3RM)"
PREFIXES = ("nerfstudio", "lerf", "f3rm")
_RATE_HZ = 10.0
_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE")
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_TRAIN_FRACTION = 0.9


def recognises(directory: Path) -> bool:
    """Whether the directory holds this layout."""
    return (directory / "transforms.json").is_file()


def shots(directory: Path) -> list[Shot]:
    """Every frame that has a depth image, in the order of file names."""
    path = directory / "transforms.json"
    scene = _scene(path)
    with_depth = _with_depth(directory, scene)
    if scene["frames"] and not with_depth:
        raise SourceError(
            f"{path}: none of {len(scene['frames'])} frames has a depth_file_path, nor a file of its name in depth/ or "
            "depths/; depth is needed, in metres of the poses. Measure it, or render it from a reconstruction"
        )
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


def split(directory: Path) -> Split:
    """The frames that train_filenames and test_filenames (or val_filenames) name; without them nerfstudio's fraction:
    90% evenly spaced train, the others test. Both counted among all frames, so also among those without depth."""
    scene = _scene(directory / "transforms.json")
    names = [str(frame["file_path"]) for frame in _with_depth(directory, scene)]
    if "train_filenames" in scene:
        train, test = (set(map(str, scene.get(key) or ())) for key in ("train_filenames", "test_filenames"))
        test = test or set(map(str, scene.get("val_filenames") or ()))
    else:
        every = sorted(str(frame["file_path"]) for frame in scene["frames"])
        chosen = np.linspace(0, len(every) - 1, math.ceil(len(every) * _TRAIN_FRACTION), dtype=int)
        train = {every[i] for i in chosen}
        test = set(every) - train
    parts = (tuple(i for i, name in enumerate(names) if name in part) for part in (train, test))
    return Split(*parts)


def _scene(path: Path) -> dict[str, Any]:
    """transforms.json, with its frames in the order of their files."""
    try:
        scene = json.loads(path.read_text(encoding="utf-8"))
        return {**scene, "frames": sorted(scene["frames"], key=lambda frame: str(frame["file_path"]))}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{path} is not a scene with frames and their file_path: {error!r}") from error


def _with_depth(directory: Path, scene: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The frames with depth, each with its depth_file_path."""
    places = [directory / name for name in ("depth", "depths") if (directory / name).is_dir()]
    found = []
    for frame in scene["frames"]:
        if "depth_file_path" not in frame:
            stem = Path(str(frame["file_path"])).stem
            files = (place / f"{stem}{suffix}" for place in places for suffix in (".png", ".npy"))
            beside = next((file for file in files if file.is_file()), None)
            if beside is None:
                continue
            frame = {**frame, "depth_file_path": str(beside.relative_to(directory))}
        found.append(frame)
    return found


def _image(directory: Path, name: str) -> Path:
    """The image's file; instant-ngp leaves its suffix out."""
    path = directory / name
    candidates = (path.with_name(path.name + suffix) for suffix in _IMAGE_SUFFIXES if not path.is_file())
    return next((candidate for candidate in candidates if candidate.is_file()), path)


def _load(
    directory: Path,
    frame: Mapping[str, Any],
    intrinsics: Mapping[str, float],
    distortion: tuple[float, ...],
    T_world_scene: np.ndarray,
    unit_m: float,
) -> dict[str, Any]:
    rgb = read_colour(_image(directory, str(frame["file_path"])))
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
