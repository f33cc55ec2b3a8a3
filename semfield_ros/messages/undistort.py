"""Lens distortion of CameraInfo, taken out of images of any size that camera delivers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ..errors import FrameRejected, Reason
from ..geometry import Camera
from .images import camera_of

_MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}
"""Numbers of coefficients by distortion model, in OpenCV's order; `equidistant` is OpenCV's fisheye model."""


class Undistorter:
    """One camera's calibration: the distortion-free camera, and images as it would have seen them.

    Attributes:
        camera: of CameraInfo's size and K.
        distorts: False where all coefficients are zero; then images are returned as they are.
    """

    def __init__(self, info: Any):
        """Raises FrameRejected: UNCALIBRATED, or IMAGE_ENCODING for a distortion model that is not known."""
        self.camera = camera_of(info)
        self._coefficients = np.asarray(info.d, dtype=np.float64).reshape(-1)
        self._model = str(info.distortion_model)
        self.distorts = bool(self._coefficients.any())
        if self.distorts:
            allowed = _MODELS.get(self._model, ())
            if len(self._coefficients) not in allowed or not np.isfinite(self._coefficients).all():
                models = ", ".join(f"{name} ({' or '.join(map(str, n))})" for name, n in _MODELS.items())
                raise FrameRejected(
                    Reason.IMAGE_ENCODING,
                    f"distortion model {self._model!r} with coefficients {self._coefficients.tolist()} is not known; "
                    f"allowed: {models}, or all zero. Rectify with image_proc and use the rectified topics",
                )
        self._maps: dict[tuple[int, int], _Map] = {}

    def colour(self, rgb: np.ndarray) -> np.ndarray:
        """[H, W, 3] without distortion, interpolated; 0 where the camera saw nothing."""
        if not self.distorts:
            return rgb
        at = self._map(rgb)
        return cv2.remap(rgb, at.u, at.v, cv2.INTER_LINEAR)

    def values(self, image: np.ndarray) -> np.ndarray:
        """[H, W] depth or labels without distortion: the nearest pixel, never mixed; 0 where the camera saw nothing."""
        if not self.distorts:
            return image
        at = self._map(image)
        return np.where(at.inside, image.reshape(-1)[at.nearest], image.dtype.type(0))

    def _map(self, image: np.ndarray) -> _Map:
        height, width = image.shape[:2]
        if (width, height) not in self._maps:
            self._maps[width, height] = self._computed(self.camera.resized(width, height))
        return self._maps[width, height]

    def _computed(self, camera: Camera) -> _Map:
        initialise = (
            cv2.fisheye.initUndistortRectifyMap if self._model == "equidistant" else cv2.initUndistortRectifyMap
        )
        u, v = initialise(
            camera.matrix, self._coefficients, np.eye(3), camera.matrix, (camera.width, camera.height), cv2.CV_32FC1
        )
        column, row = np.rint(u), np.rint(v)
        with np.errstate(invalid="ignore"):  # absurd coefficients send pixels to infinity, which is outside
            inside = (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
            pixel = row * camera.width + column
        return _Map(u, v, inside, np.where(inside, pixel, 0).astype(np.intp))


@dataclass(frozen=True)
class _Map:
    """Where each pixel of the distortion-free image lies in the distorted one.

    Attributes:
        u, v: [H, W] float32. inside: [H, W] bool, whether the nearest pixel exists. nearest: its flat index, or 0.
    """

    u: np.ndarray
    v: np.ndarray
    inside: np.ndarray
    nearest: np.ndarray
