"""The 7-Scenes layout (Shotton et al. 2013): frame-NNNNNN.color.png|jpg, .depth.png, .pose.txt, all in one directory.

Poses are camera-to-world, OpenCV axes, metres. Depth is uint16 millimetres, 0 or 65535 = none, and is taken to be
registered to the colour image (the published recordings are not; registered copies exist). `camera-intrinsics.txt`
holds the 3x3 matrix; without it the depth camera's published 585, 585, 320, 240 at 640x480 is assumed.

Optional instance masks: frame-NNNNNN.masks.png (8-bit ids, 0 = none) and masks.json
({frame: [{"id", "class", "score"}]}) become `Frame.segments`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Reason, SourceError
from ..frame import Segments
from ..geometry import Camera
from .images import read_colour, read_raw
from .posed_folder import read_pose
from .recording import Shot

PREFIXES = ("seven_scenes",)
LAYOUT = "7-Scenes: frame-*.color.png|jpg with .depth.png and .pose.txt"
_RATE_HZ = 30.0
_NO_DEPTH = 65535
_DEFAULT_CAMERA = Camera(640, 480, 585.0, 585.0, 320.0, 240.0)


def recognises(directory: Path) -> bool:
    """Whether the directory holds this layout."""
    return any(directory.glob("frame-*.color.*"))


def shots(directory: Path) -> list[Shot]:
    """Every frame in order; the layout has no stamps, so frame N was taken at N / 30 s."""
    matrix = _intrinsics(directory / "camera-intrinsics.txt")
    masks = _masks(directory / "masks.json")
    listed = {}
    for colour in directory.glob("frame-*.color.*"):
        match = re.fullmatch(r"(frame-(\d+))\.color\.(?:png|jpe?g)", colour.name)
        if match:
            listed[int(match[2])] = partial(_load, colour, match[1], matrix, masks)
    return [Shot(number / _RATE_HZ, listed[number]) for number in sorted(listed)]


def _load(colour: Path, stem: str, matrix: np.ndarray | None, masks: Mapping[str, list[dict]] | None) -> dict[str, Any]:
    rgb = read_colour(colour)
    depth = read_raw(colour.with_name(f"{stem}.depth.png"), Reason.DEPTH_TYPE)
    depth = np.where(depth == _NO_DEPTH, depth.dtype.type(0), depth)
    height, width = rgb.shape[:2]
    return {
        "camera": _DEFAULT_CAMERA if matrix is None else Camera.from_matrix(matrix, width, height),
        "T_world_camera": read_pose(colour.with_name(f"{stem}.pose.txt")),
        "rgb": rgb,
        "depth": depth,
        "segments": None if masks is None else _segments(colour.with_name(f"{stem}.masks.png"), masks.get(stem, [])),
    }


def _segments(path: Path, listed: list[dict]) -> Segments:
    ids = read_raw(path, Reason.TARGET_TYPE).astype(np.int32)
    names = {int(mask["id"]): str(mask["class"]) for mask in listed}
    scores = {int(mask["id"]): float(mask.get("score", 1.0)) for mask in listed}
    # Ids that nobody named say nothing.
    return Segments(np.where(np.isin(ids, list(names)), ids, 0), names, scores)


def _intrinsics(path: Path) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        return np.loadtxt(path).reshape(3, 3)
    except ValueError as error:
        raise SourceError(f"{path} does not hold a 3x3 intrinsic matrix: {error}") from error


def _masks(path: Path) -> Mapping[str, list[dict]] | None:
    if not path.exists():
        return None
    try:
        masks = json.loads(path.read_text(encoding="utf-8"))
        for listed in masks.values():
            for mask in listed:
                int(mask["id"]), str(mask["class"]), float(mask.get("score", 1.0))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(
            f'{path} is not a list of masks by frame, {{"frame-000000": [{{"id": 1, "class": "cup"}}]}}: {error!r}'
        ) from error
    return masks
