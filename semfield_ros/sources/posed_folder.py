"""Folders of numbered images beside their poses: what the layouts of ScanNet, Replica and Panoptic Lifting share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import FrameRejected, Reason, SourceError
from ..geometry import Camera
from .images import read_raw

_CENTRED = 0.2
"""A principal point farther than this share of the image from its centre belongs to an image of another size."""
_MAX_PADDING = 0.01


@dataclass(frozen=True)
class Split:
    """Which frames of a recording its layout trains and tests with, as positions in the recording."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def every(count: int, step: int, offset: int) -> Split:
    """Positions 0, step, 2 step ... to train, each `offset` later to test where that exists (Zhi et al. 2021, s. 4)."""
    train = tuple(range(0, count, step))
    return Split(train, tuple(i + offset for i in train if i + offset < count))


def numbers(stem: str) -> tuple[int, ...]:
    """All numbers in a file's stem: what such files are sorted by, "frame000010" after "frame000009"."""
    return tuple(int(digits) for digits in re.findall(r"\d+", stem))


def images(folder: Path, pattern: str = "*") -> dict[str, Path]:
    """The PNG and JPEG files of a folder by stem, in the order of the numbers in their names; empty without it."""
    found = [path for path in folder.glob(pattern) if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    return {path.stem: path for path in sorted(found, key=lambda path: (numbers(path.stem), path.stem))}


def read_pose(path: Path) -> np.ndarray:
    """T_world_camera [4, 4] from a text file. Raises FrameRejected(POSE_NOT_FINITE) where there is none."""
    try:
        return np.loadtxt(path).reshape(4, 4)
    except (OSError, ValueError) as error:
        raise FrameRejected(Reason.POSE_NOT_FINITE, f"{path.name} does not hold a 4x4 matrix: {error}") from error


def read_trajectory(path: Path) -> np.ndarray:
    """T_world_camera of every frame, [N, 4, 4] float64, from lines of 16 numbers."""
    try:
        rows = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} does not hold 16 numbers a line: {error}") from error
    if not len(rows) or rows.shape[1] != 16:
        raise SourceError(f"{path} has shape {rows.shape}; expected lines of 16 numbers, camera-to-world row by row")
    return rows.reshape(-1, 4, 4)


def read_matrix(path: Path) -> np.ndarray | None:
    """A 3x3 intrinsic matrix from a 3x3 or 4x4 text file; None where there is no such file."""
    if not path.exists():
        return None
    try:
        matrix = np.loadtxt(path)
        if matrix.shape not in ((3, 3), (3, 4), (4, 4)) or not np.isfinite(matrix).all():
            raise ValueError(f"shape {matrix.shape}")
    except ValueError as error:
        raise SourceError(f"{path} does not hold a 3x3 or 4x4 intrinsic matrix: {error}") from error
    return matrix[:3, :3]


def read_ids_if_any(path: Path) -> np.ndarray | None:
    """An image of ids, [H, W] integers; None where there is no such file, as frames may be labelled sparsely.

    Raises:
        FrameRejected: TARGET_TYPE, when it is torn or coloured.
    """
    if not path.is_file():
        return None
    ids = read_raw(path, Reason.TARGET_TYPE)
    if ids.ndim != 2:
        raise FrameRejected(Reason.TARGET_TYPE, f"{path.name} has shape {ids.shape}; expected one channel of ids")
    return ids


def fitting_camera(matrices: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Camera:
    """The camera whose matrix belongs to one of the sizes (width, height), the first that does.

    Layouts keep a matrix for colour and one for depth, and their images are often stored resized: what tells which
    matrix still holds is its principal point, which must lie near the image's centre.

    Raises:
        FrameRejected: UNCALIBRATED, when no matrix fits any size.
    """
    for width, height in sizes:
        for K in matrices:
            if abs(K[0, 2] / width - 0.5) < _CENTRED and abs(K[1, 2] / height - 0.5) < _CENTRED:
                return Camera.from_matrix(K, width, height)
    centres = [f"({K[0, 2]:.4g}, {K[1, 2]:.4g})" for K in matrices]
    raise FrameRejected(
        Reason.UNCALIBRATED,
        f"principal points {', '.join(centres) or 'are missing and'} lie far from the centre of images of "
        f"{', '.join(f'{w}x{h}' for w, h in sizes)}; were the images resized without their intrinsics?",
    )


def registered(
    rgb: np.ndarray,
    depth: np.ndarray,
    labels: Mapping[str, np.ndarray | None],
    matrices: Sequence[np.ndarray],
) -> dict[str, object]:
    """Colour, depth and labels as arguments of `make_frame`, which brings them to the size of depth.

    ScanNet's colour (1296x968) lacks the rows that depth (640x480) has: images of the colour's size whose aspect is off
    by less than 1% are padded to depth's aspect, half above and half below (Zhi et al. 2021), labels with 0.
    """
    height, width = rgb.shape[:2]
    missing = round(width * depth.shape[0] / depth.shape[1]) - height if depth.ndim == 2 and depth.size else 0
    above = missing // 2 if 0 < missing <= _MAX_PADDING * height else 0
    below = missing - above if above else 0
    camera = fitting_camera(matrices, [(depth.shape[1], depth.shape[0]), (width, height)])
    if (camera.width, camera.height) == (width, height):
        camera = Camera(width, height + above + below, camera.fx, camera.fy, camera.cx, camera.cy + above)
    padded: dict[str, object] = {"camera": camera, "rgb": _padded(rgb, above, below, cv2.BORDER_REPLICATE)}
    for name, image in labels.items():
        same = image is not None and image.shape == (height, width)
        padded[name] = _padded(image, above, below, cv2.BORDER_CONSTANT) if same and image is not None else image
    return {**padded, "depth": depth}


def _padded(image: np.ndarray, above: int, below: int, border: int) -> np.ndarray:
    if not above + below:
        return image
    if image.ndim == 3:
        return cv2.copyMakeBorder(image, above, below, 0, 0, border)
    return np.pad(image, ((above, below), (0, 0)))
