"""Image files to arrays, with torn ones told from good ones, and lens distortion taken out."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from ..errors import FrameRejected, Reason
from ..geometry import Camera

# A decoder fills what is missing of a cut-off file with grey; its end marker says that the file is whole.
_END_MARKERS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}
_TRAILER_BYTES = 4096


def read_colour(path: Path) -> np.ndarray:
    """An image file as [H, W, 3] uint8 RGB. Raises FrameRejected(COLOUR_TYPE) when it is missing or torn."""
    image = _decoded(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, Reason.COLOUR_TYPE)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_raw(path: Path, reason: Reason) -> np.ndarray:
    """A depth or label image as stored. Raises FrameRejected(reason) when it is missing or torn."""
    return _decoded(path, cv2.IMREAD_UNCHANGED, reason)


def _decoded(path: Path, flags: int, reason: Reason) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FrameRejected(reason, f"cannot read {path.name}: {error.strerror}") from error
    for start, end in _END_MARKERS.items():
        if data.startswith(start) and end not in data[-_TRAILER_BYTES:]:
            raise FrameRejected(reason, f"{path.name} is torn: its {len(data)} bytes have no end marker")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise FrameRejected(reason, f"{path.name} ({len(data)} bytes) is not an image that can be decoded")
    return image


def undistorted(
    camera: Camera, distortion: tuple[float, ...], rgb: np.ndarray, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both images as the distortion-free `camera` would have seen them; both have its size.

    Args:
        distortion: OpenCV's k1, k2, p1, p2[, k3[, k4, k5, k6]].

    Returns:
        rgb interpolated, depth by its nearest pixel (never mixed across edges), both 0 where nothing was seen.
    """
    if not any(distortion):
        return rgb, depth
    for name, image in (("colour", rgb), ("depth", depth)):
        if image.shape[:2] != (camera.height, camera.width):
            raise FrameRejected(
                Reason.SIZE_MISMATCH,
                f"{name} is {image.shape[1]}x{image.shape[0]} and the distorted camera {camera.width}x{camera.height}; "
                "sizes must agree to take the distortion out",
            )
    u, v = _undistortion_maps(camera, distortion)
    return (
        cv2.remap(rgb, u, v, cv2.INTER_LINEAR),
        cv2.remap(depth, np.rint(u), np.rint(v), cv2.INTER_NEAREST),
    )


@lru_cache(maxsize=4)
def _undistortion_maps(camera: Camera, distortion: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    size = (camera.width, camera.height)
    u, v = cv2.initUndistortRectifyMap(
        camera.matrix, np.array(distortion), np.eye(3), camera.matrix, size, cv2.CV_32FC1
    )
    return u, v
