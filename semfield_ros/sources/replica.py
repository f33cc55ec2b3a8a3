"""Replica (Straub et al. 2019) as rendered for Semantic-NeRF (Zhi et al. 2021) and for NICE-SLAM (Zhu et al. 2022).

Semantic-NeRF's renders: rgb/rgb_N.png, depth/depth_N.png (uint16 millimetres), traj_w_c.txt (line N: T_world_camera,
16 numbers) and, where they exist, semantic_class/semantic_class_N.png and semantic_instance/semantic_instance_N.png
(0 = void). The horizontal field of view is 90 degrees: fx = fy = W / 2, c = (size - 1) / 2. Names of classes come from
info_semantic.json ({"classes": [{"id", "name"}]}) in the folder, beside it or above; the renders themselves have none.

NICE-SLAM's renders: results/frameNNNNNN.jpg, results/depthNNNNNN.png and traj.txt; cam_params.json in the folder or
above it holds the intrinsics and `scale`, depth units a metre; without it the published ones of 1200x680 are assumed.

Poses of both are camera-to-world, OpenCV axes, metres. Neither has stamps: frame N was taken at N / 30 s.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FrameRejected, Reason, SourceError
from ..geometry import Camera
from .images import read_colour, read_raw
from .posed_folder import Split, images, numbers, read_ids_if_any, read_trajectory
from .recording import Shot

LAYOUT = "Replica: traj_w_c.txt with rgb/ and depth/ (Semantic-NeRF), or traj.txt with results/ (NICE-SLAM)"
PREFIXES = ("replica",)
_RATE_HZ = 30.0
_STEP, _OFFSET = 5, 2
_PUBLISHED = {"w": 1200, "h": 680, "fx": 600.0, "fy": 600.0, "cx": 599.5, "cy": 339.5, "scale": 6553.5}


def recognises(directory: Path) -> bool:
    """Whether the directory holds one of the two layouts."""
    return _rendered(directory) or ((directory / "traj.txt").is_file() and (directory / "results").is_dir())


def _rendered(directory: Path) -> bool:
    return (directory / "traj_w_c.txt").is_file() and (directory / "rgb").is_dir()


def shots(directory: Path) -> list[Shot]:
    """Every frame in order.

    Raises:
        SourceError: images without poses, or a trajectory, calibration or list of names that cannot be read.
    """
    rendered = _rendered(directory)
    colours = images(directory / ("rgb" if rendered else "results"), "rgb*" if rendered else "frame*")
    trajectory_file = directory / ("traj_w_c.txt" if rendered else "traj.txt")
    poses = read_trajectory(trajectory_file)
    listed = {numbers(stem)[-1]: path for stem, path in colours.items() if numbers(stem)}
    if listed and max(listed) >= len(poses):
        raise SourceError(
            f"{trajectory_file} has {len(poses)} poses and there is an image {max(listed)}, counted from 0: "
            "the trajectory is cut off, or belongs to another recording"
        )
    if rendered:
        loads = {n: partial(_load_render, directory, path, poses[n]) for n, path in listed.items()}
    else:
        calibration = _calibration(directory)
        loads = {n: partial(_load_slam, path, poses[n], calibration) for n, path in listed.items()}
    return [Shot(n / _RATE_HZ, loads[n]) for n in sorted(loads)]


def class_names(directory: Path) -> tuple[str, ...]:
    """Names by semantic id, the first being void; empty where info_semantic.json is not found."""
    places = [directory, directory / "habitat", *list(directory.resolve().parents)[:2]]
    places += [place / "habitat" for place in places[2:]]
    path = next((place / "info_semantic.json" for place in places if (place / "info_semantic.json").is_file()), None)
    if path is None or not (directory / "semantic_class").is_dir():
        return ()
    try:
        named = {int(c["id"]): str(c["name"]) for c in json.loads(path.read_text(encoding="utf-8"))["classes"]}
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f'{path} is not {{"classes": [{{"id": 1, "name": "bed"}}]}}: {error!r}') from error
    if not named or min(named) < 0 or max(named) > 65535:
        raise SourceError(f"{path} has class ids {sorted(named)[:1]}..{sorted(named)[-1:]}; expected 0 to 65535")
    return ("void", *(named.get(k, f"class {k}") for k in range(1, max(named) + 1)))


def split(directory: Path) -> Split:
    """Frames 0, 5, 10, ... train, 2, 7, 12, ... test, by the numbers of the images (Zhi et al. 2021)."""
    n = [round(shot.stamp_s * _RATE_HZ) for shot in shots(directory)]
    return Split(
        tuple(i for i, number in enumerate(n) if number % _STEP == 0),
        tuple(i for i, number in enumerate(n) if number % _STEP == _OFFSET),
    )


def _load_render(directory: Path, colour: Path, T_world_camera: np.ndarray) -> dict[str, Any]:
    def beside(kind: str) -> Path:
        return directory / kind / f"{colour.stem.replace('rgb', kind)}.png"

    rgb = read_colour(colour)
    height, width = rgb.shape[:2]
    return {
        "camera": Camera(width, height, width / 2, width / 2, (width - 1) / 2, (height - 1) / 2),
        "T_world_camera": T_world_camera,
        "rgb": rgb,
        "depth": read_raw(beside("depth"), Reason.DEPTH_TYPE),
        "semantic": read_ids_if_any(beside("semantic_class")),
        "instance": read_ids_if_any(beside("semantic_instance")),
    }


def _load_slam(colour: Path, T_world_camera: np.ndarray, calibration: dict[str, float]) -> dict[str, Any]:
    rgb = read_colour(colour)
    raw = read_raw(colour.with_name(colour.stem.replace("frame", "depth") + ".png"), Reason.DEPTH_TYPE)
    if raw.ndim != 2:
        raise FrameRejected(Reason.DEPTH_TYPE, f"depth of {colour.name} has shape {raw.shape}; expected [H, W]")
    width, height = int(calibration["w"]), int(calibration["h"])
    return {
        "camera": Camera(width, height, *(calibration[key] for key in ("fx", "fy", "cx", "cy"))),
        "T_world_camera": T_world_camera,
        "rgb": rgb,
        "depth": (raw / np.float64(calibration["scale"])).astype(np.float32),
    }


def _calibration(directory: Path) -> dict[str, float]:
    """w, h, fx, fy, cx, cy in pixels, and scale in units a metre."""
    path = next((d / "cam_params.json" for d in (directory, directory.resolve().parent)
                 if (d / "cam_params.json").is_file()), None)  # fmt: skip
    if path is None:
        return dict(_PUBLISHED)
    try:
        camera = json.loads(path.read_text(encoding="utf-8"))["camera"]
        values = {key: float(camera[key]) for key in _PUBLISHED}
        if not all(math.isfinite(v) for v in values.values()) or min(values["scale"], values["w"], values["h"]) <= 0:
            raise ValueError(f"{values}")
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(
            f'{path} is not {{"camera": {{"w", "h", "fx", "fy", "cx", "cy", "scale"}}}} in finite numbers: {error!r}'
        ) from error
    return values
