"""Frame: one posed RGB-D image, and what makes one valid.

`make_frame` is the only door: it converts what drivers deliver (uint16 millimetres or float metres, NaN and infinity,
colour and depth of different size) into one canonical form or raises a typed `FrameRejected`. `FrameGate` is the
stateful shell a stream goes through: it also checks the order of stamps, and counts rejections by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from .config import FrameConfig
from .errors import FrameRejected, Reason
from .geometry import Camera, rigid_error


@dataclass(frozen=True)
class Segments:
    """2-D instance masks of one image, from another program: ids disagree between images.

    Attributes:
        ids: [H, W] int32, 0 = no mask, aligned with the colour image of the frame.
        names: class name by id. scores: confidence in [0, 1] by id (1 where absent).
    """

    ids: np.ndarray
    names: Mapping[int, str]
    scores: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Frame:
    """A valid posed RGB-D image. Arrays are read-only by convention: frames are shared between threads.

    Attributes:
        stamp_s: seconds, of the exposure.
        camera: intrinsics of both images (same size, registered).
        T_world_camera: [4, 4] float64, camera-to-world, OpenCV optical axes, metres.
        rgb: [H, W, 3] uint8. depth_m: [H, W] float32 z-depth in metres, 0 = no measurement.
        semantic, instance: optional [H, W] int32 ground truth or labels (0 = void).
        segments: optional machine-made instance masks.
        camera_name: which camera of a rig this is.
    """

    stamp_s: float
    camera: Camera
    T_world_camera: np.ndarray
    rgb: np.ndarray
    depth_m: np.ndarray
    semantic: np.ndarray | None = None
    instance: np.ndarray | None = None
    segments: Segments | None = None
    camera_name: str = "camera"


def metric_depth(depth: np.ndarray, config: FrameConfig) -> np.ndarray:
    """Depth as float32 metres with 0 for everything unusable.

    uint16 is millimetres (0 = none); float is metres. NaN, +-inf, zero, negative and out-of-range values become 0
    (REP-117/118; written as `min <= z <= max` so that NaN falls out).

    Raises:
        FrameRejected: DEPTH_TYPE, when it is not a [H, W] array of one of these types.
    """
    if not isinstance(depth, np.ndarray) or depth.ndim != 2:
        raise FrameRejected(Reason.DEPTH_TYPE, f"depth is {_described(depth)}; expected [H, W]")
    if depth.dtype == np.uint16:
        # Division rounds correctly, so 1234 mm is the very float32 that 1.234 m is; a product with 1e-3 is not.
        metres = depth.astype(np.float32) / np.float32(1000)
    elif depth.dtype in (np.float32, np.float64):
        with np.errstate(over="ignore"):
            metres = depth.astype(np.float32)
    else:
        raise FrameRejected(
            Reason.DEPTH_TYPE, f"depth is {_described(depth)}; expected uint16 (millimetres) or float32/64 (metres)"
        )
    with np.errstate(invalid="ignore"):
        usable = (metres >= config.min_depth_m) & (metres <= config.max_depth_m)
    return np.where(usable, metres, np.float32(0.0))


def _described(image: object) -> str:
    """Type and shape of what was given as an image, for messages."""
    if isinstance(image, np.ndarray):
        return f"{image.dtype} of shape {image.shape}"
    return type(image).__name__


def within_range(frame: Frame, config: FrameConfig) -> Frame:
    """The frame without the depth that this configuration does not trust."""
    depth = metric_depth(frame.depth_m, config)
    return frame if np.array_equal(depth, frame.depth_m) else replace(frame, depth_m=depth)


def _same_aspect(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two images (H, W) can be registered to each other: aspect ratios equal within 1%."""
    return min(*a, *b) > 0 and abs(a[1] / a[0] - b[1] / b[0]) <= 0.01 * b[1] / b[0]


def _nearest(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resampled to the source pixel under each target pixel's centre, as `Camera.resized` has it: values never mix."""
    rows = (2 * np.arange(height) + 1) * image.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * image.shape[1] // (2 * width)
    return image[rows[:, None], columns[None, :]]


def _recoloured(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """Colour at another size: averaged when it shrinks, interpolated when it grows."""
    shrinks = rgb.shape[1] > width
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _labels(name: str, image: object, width: int, height: int) -> np.ndarray | None:
    """A label image as int32 at the frame's size; None stays None."""
    if image is None:
        return None
    if not isinstance(image, np.ndarray) or image.ndim != 2 or image.dtype.kind not in "iub":
        raise FrameRejected(Reason.TARGET_TYPE, f"{name} is {_described(image)}; expected integer [H, W]")
    if not _same_aspect(image.shape, (height, width)):
        raise FrameRejected(
            Reason.TARGET_TYPE, f"{name} is {_described(image)}; expected the aspect ratio of depth, {width}x{height}"
        )
    if image.dtype.itemsize >= 4 and not (image.min() >= -(2**31) and image.max() < 2**31):
        raise FrameRejected(
            Reason.TARGET_TYPE, f"{name} has ids from {image.min()} to {image.max()}; expected ids that fit int32"
        )
    return np.ascontiguousarray(_nearest(image, width, height), dtype=np.int32)


def _pose(T_world_camera: object, tolerance: float) -> np.ndarray:
    """A private float64 copy of a rigid [4, 4] transform."""
    try:
        T = np.array(T_world_camera, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FrameRejected(Reason.POSE_NOT_FINITE, f"pose is not a matrix of numbers: {error}") from error
    if T.shape != (4, 4) or not np.isfinite(T).all():
        raise FrameRejected(Reason.POSE_NOT_FINITE, f"pose of shape {T.shape} has missing or non-finite entries")
    deviation = rigid_error(T)
    if deviation > tolerance:
        raise FrameRejected(
            Reason.POSE_NOT_RIGID,
            f"pose is {deviation:.3g} away from a rigid transform; allowed is {tolerance}. "
            "Check for a scale in the matrix or a quaternion that is not normalised",
        )
    return T


def make_frame(
    *,
    stamp_s: float,
    camera: Camera,
    T_world_camera: np.ndarray,
    rgb: np.ndarray,
    depth: np.ndarray,
    semantic: np.ndarray | None = None,
    instance: np.ndarray | None = None,
    segments: Segments | None = None,
    camera_name: str = "camera",
    config: FrameConfig | None = None,
) -> Frame:
    """Validate and canonicalise one posed RGB-D image.

    Colour and depth may differ in size when they share an aspect ratio (registered images): the frame then takes the
    depth image's size, colour is area-averaged or interpolated to it, and the intrinsics are rescaled. `camera` must
    have the size of one of the two.

    Raises:
        FrameRejected: with a `Reason`, on anything unusable.
    """
    config = config or FrameConfig()
    if not isinstance(stamp_s, (int, float, np.number)) or not np.isfinite(stamp_s):
        raise FrameRejected(Reason.STAMP_NOT_FINITE, f"stamp is {stamp_s!r}; expected finite seconds")
    T = _pose(T_world_camera, config.rigid_tolerance)
    if not np.isfinite([camera.fx, camera.fy, camera.cx, camera.cy]).all() or camera.fx <= 0 or camera.fy <= 0:
        raise FrameRejected(
            Reason.UNCALIBRATED,
            f"focal lengths are {camera.fx}, {camera.fy}; the camera is not calibrated (K[0] == 0?)",
        )
    metres = metric_depth(depth, config)
    if not isinstance(rgb, np.ndarray) or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise FrameRejected(Reason.COLOUR_TYPE, f"colour is {_described(rgb)}; expected uint8 [H, W, 3]")
    height, width = metres.shape
    if (
        height < 8
        or width < 8
        or (camera.width, camera.height) not in {(width, height), (rgb.shape[1], rgb.shape[0])}
        or not _same_aspect(rgb.shape[:2], (height, width))
    ):
        raise FrameRejected(
            Reason.SIZE_MISMATCH,
            f"intrinsics are for {camera.width}x{camera.height}, colour is {rgb.shape[1]}x{rgb.shape[0]}, depth is "
            f"{width}x{height}; intrinsics must match one of them, images must be at least 8x8 and registered to each "
            "other, so of one aspect ratio: use the driver's aligned depth",
        )
    valid = np.count_nonzero(metres)
    if valid < config.min_valid_fraction * metres.size:
        raise FrameRejected(
            Reason.DEPTH_EMPTY,
            f"{valid} of {metres.size} depth pixels lie in [{config.min_depth_m}, {config.max_depth_m}] m; needed is "
            f"{config.min_valid_fraction:.0%}. Is the depth in millimetres as uint16, or in metres as float?",
        )
    if segments is not None:
        ids = _labels("segments", segments.ids, width, height)
        if ids is None:
            raise FrameRejected(Reason.TARGET_TYPE, "segments have no ids; expected integer [H, W]")
        segments = Segments(ids, segments.names, segments.scores)
    if rgb.shape[:2] != metres.shape:
        rgb = _recoloured(rgb, width, height)
    return Frame(
        stamp_s=float(stamp_s),
        camera=camera if (camera.width, camera.height) == (width, height) else camera.resized(width, height),
        T_world_camera=T,
        rgb=np.ascontiguousarray(rgb),
        depth_m=metres,
        semantic=_labels("semantic", semantic, width, height),
        instance=_labels("instance", instance, width, height),
        segments=segments,
        camera_name=camera_name,
    )


def resized(frame: Frame, width: int, height: int) -> Frame:
    """The frame at another size: colour averaged, depth and labels nearest (never mixed across edges)."""
    if (frame.camera.width, frame.camera.height) == (width, height):
        return frame

    def labels(image: np.ndarray | None) -> np.ndarray | None:
        return None if image is None else _nearest(image, width, height)

    segments = frame.segments
    return replace(
        frame,
        camera=frame.camera.resized(width, height),
        rgb=_recoloured(frame.rgb, width, height),
        depth_m=_nearest(frame.depth_m, width, height),
        semantic=labels(frame.semantic),
        instance=labels(frame.instance),
        segments=segments and replace(segments, ids=_nearest(segments.ids, width, height)),
    )


class FrameGate:
    """Admits frames of a stream: validates, checks that stamps advance per camera, counts rejections by reason."""

    def __init__(self, config: FrameConfig | None = None):
        self.config = config or FrameConfig()
        self.rejected: Counter[str] = Counter()
        self.admitted = 0
        self.last_error = ""
        self._last_stamp_s: dict[str, float] = {}

    def admit(self, **parts: Any) -> Frame | None:
        """`make_frame(**parts)`, or None with the rejection counted and its message in `last_error`."""
        try:
            frame = make_frame(config=self.config, **parts)
        except FrameRejected as error:
            self.count(error)
            return None
        return self.admit_frame(frame)

    def admit_frame(self, frame: Frame) -> Frame | None:
        """A frame that `make_frame` already made, if it is in order; otherwise None, counted."""
        try:
            self.check_order(frame)
        except FrameRejected as error:
            self.count(error)
            return None
        self.admitted += 1
        return frame

    def check_order(self, frame: Frame) -> None:
        """Raise FrameRejected(STAMP_BACKWARDS) unless this frame is newer than the last one of its camera."""
        last = self._last_stamp_s.get(frame.camera_name)
        if last is not None and frame.stamp_s <= last:
            raise FrameRejected(
                Reason.STAMP_BACKWARDS,
                f"stamp {frame.stamp_s:.6f} s is not after the last one, {last:.6f} s; "
                "after a bag loop or a clock reset, reset the gate",
            )
        self._last_stamp_s[frame.camera_name] = frame.stamp_s

    def count(self, error: FrameRejected) -> None:
        """Count a rejection."""
        self.rejected[error.reason.value] += 1
        self.last_error = str(error)

    def reset(self) -> None:
        """Forget the last stamps (a clock jumped back); counters stay."""
        self._last_stamp_s.clear()
