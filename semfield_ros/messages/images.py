"""sensor_msgs Image, CompressedImage and CameraInfo to arrays and back.

Row steps and byte order are honoured; whatever a message says that its bytes do not hold is a `FrameRejected`. The
encodings are those of sensor_msgs/image_encodings.h; depth follows REP-118 (uint16 millimetres or float32 metres).
"""

from __future__ import annotations

import struct
from typing import Any, Literal

import cv2
import numpy as np

from ..errors import FrameRejected, Reason
from ..geometry import Camera
from .types import types

_COLOUR = {"rgb8": (3, None), "bgr8": (3, cv2.COLOR_BGR2RGB), "rgba8": (4, cv2.COLOR_RGBA2RGB),
           "bgra8": (4, cv2.COLOR_BGRA2RGB), "mono8": (1, cv2.COLOR_GRAY2RGB)}  # fmt: skip
"""Channels, and what OpenCV calls the way to RGB."""
_DEPTH = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}
_LABELS = {"mono8": "u1", "8UC1": "u1", "mono16": "u2", "16UC1": "u2", "32SC1": "i4"}
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# A decoder fills what is missing of a cut-off image with grey; the end marker says that it is whole.
_END = {_PNG: b"IEND", _JPEG: b"\xff\xd9"}
_TRAILER_BYTES = 4096
_INVERSE_DEPTH = 1
"""compressed_depth_image_transport's enum of its 12-byte header: format, depth parameters A and B."""
_HEADER = struct.Struct("<iff")


def decode_colour(message: Any) -> np.ndarray:
    """[H, W, 3] uint8 RGB of an Image (rgb8, bgr8, rgba8, bgra8, mono8) or a CompressedImage (JPEG, PNG).

    Raises:
        FrameRejected: IMAGE_ENCODING for any other kind, IMAGE_MALFORMED when the bytes are not what is announced.
    """
    if _is_compressed(message):
        image = _unpacked(bytes(message.data), message.format, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if message.encoding not in _COLOUR:
        raise _refused(message.encoding, "colour", _COLOUR, "convert Bayer and YUV images with image_proc")
    channels, conversion = _COLOUR[message.encoding]
    image = _pixels(message, "u1", channels)
    return image if conversion is None else cv2.cvtColor(np.ascontiguousarray(image), conversion)


def decode_depth(message: Any) -> np.ndarray:
    """[H, W] uint16 millimetres or float32 metres of an Image (16UC1, mono16, 32FC1) or a compressedDepth PNG.

    Raises: as `decode_colour`.
    """
    if _is_compressed(message):
        return _decompressed_depth(message)
    if message.encoding not in _DEPTH:
        raise _refused(message.encoding, "depth", _DEPTH, "depth is uint16 millimetres or float32 metres")
    return _pixels(message, _DEPTH[message.encoding])


def decode_labels(message: Any) -> np.ndarray:
    """[H, W] int32 ids of an Image (mono8, 8UC1, mono16, 16UC1, 32SC1). Raises: as `decode_colour`."""
    if _is_compressed(message):
        raise _refused(message.format, "label", _LABELS, "labels are not to be compressed")
    if message.encoding not in _LABELS:
        raise _refused(message.encoding, "label", _LABELS, "ids are integers, 0 = none")
    return _pixels(message, _LABELS[message.encoding]).astype(np.int32)


def _is_compressed(message: Any) -> bool:
    return not hasattr(message, "encoding")


def _refused(encoding: str, kind: str, allowed: Any, remedy: str) -> FrameRejected:
    return FrameRejected(
        Reason.IMAGE_ENCODING, f"{kind} image is encoded as {encoding!r}; allowed: {', '.join(allowed)}. {remedy}"
    )


def _pixels(message: Any, kind: str, channels: int = 1) -> np.ndarray:
    """The pixels of an Image in native byte order: [H, W] or [H, W, channels]; a view where possible."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    dtype = np.dtype(f"{'>' if message.is_bigendian else '<'}{kind}")
    data = np.frombuffer(message.data, np.uint8)
    row = width * channels * dtype.itemsize
    if height < 1 or width < 1 or step < row or len(data) < (height - 1) * step + row:
        raise FrameRejected(
            Reason.IMAGE_MALFORMED,
            f"image says {width}x{height} {message.encoding} with rows of {step} bytes and has {len(data)} bytes; "
            f"needed are rows of {row} or more, and {height} of them",
        )
    shape, strides = (height, width, channels), (step, channels * dtype.itemsize, dtype.itemsize)
    image = np.ndarray(shape, dtype, data, strides=strides)
    image = image.astype(dtype.newbyteorder("="), copy=False)
    return image[..., 0] if channels == 1 else image


def _unpacked(data: bytes, kind: str, flags: int) -> np.ndarray:
    """A JPEG or PNG file image, told by its first bytes: publishers spell the format in many ways."""
    start = next((start for start in _END if data.startswith(start)), None)
    if start is None:
        raise FrameRejected(
            Reason.IMAGE_ENCODING, f"compressed image has format {kind!r} and starts {data[:4]!r}; allowed: jpeg, png"
        )
    if _END[start] not in data[-_TRAILER_BYTES:]:
        raise FrameRejected(Reason.IMAGE_MALFORMED, f"{kind!r} image of {len(data)} bytes is torn: no end marker")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise FrameRejected(Reason.IMAGE_MALFORMED, f"{kind!r} image of {len(data)} bytes cannot be decoded")
    return image


def _decompressed_depth(message: Any) -> np.ndarray:
    """compressed_depth_image_transport: `ENCODING; compressedDepth[ png]`, 12 bytes of header, a 16-bit PNG."""
    encoding, _, compression = (part.strip() for part in message.format.partition(";"))
    if encoding not in _DEPTH or compression not in ("compressedDepth", "compressedDepth png", ""):
        raise _refused(
            message.format, "compressed depth", ("16UC1; compressedDepth png", "32FC1; compressedDepth png"),
            "RVL is not read: set the publisher's parameter `format` to png",
        )  # fmt: skip
    data = bytes(message.data)
    if len(data) < _HEADER.size:
        raise FrameRejected(Reason.IMAGE_MALFORMED, f"compressed depth has {len(data)} bytes, less than its header")
    _, a, b = _HEADER.unpack_from(data)
    stored = _unpacked(data[_HEADER.size :], message.format, cv2.IMREAD_UNCHANGED)
    if stored.ndim != 2 or stored.dtype != np.uint16:
        raise FrameRejected(
            Reason.IMAGE_MALFORMED, f"compressed depth is {stored.dtype} of shape {stored.shape}; expected 16-bit grey"
        )
    if encoding != "32FC1":
        return stored
    inverse = stored.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        metres = np.float32(a) / (inverse - np.float32(b))
    return np.where(stored > 0, metres, np.float32(np.nan))


def _image(header: Any, encoding: str, pixels: np.ndarray) -> Any:
    pixels = np.ascontiguousarray(pixels)
    return types().new(
        "sensor_msgs/msg/Image",
        header=header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=pixels.strides[0],
        data=pixels.reshape(-1).view(np.uint8),
    )


def encode_colour(rgb: np.ndarray, header: Any) -> Any:
    """An rgb8 Image of [H, W, 3] uint8."""
    return _image(header, "rgb8", rgb)


def encode_depth(depth_m: np.ndarray, header: Any, encoding: Literal["32FC1", "16UC1"] = "32FC1") -> Any:
    """An Image of z-depth [H, W] metres, 0 = none; 16UC1 holds millimetres up to 65.535 m."""
    return _image(header, encoding, depth_m.astype(np.float32) if encoding == "32FC1" else _millimetres(depth_m))


def encode_labels(labels: np.ndarray, header: Any) -> Any:
    """A 32SC1 Image of ids [H, W]."""
    return _image(header, "32SC1", labels.astype(np.int32))


def encode_classes(classes: np.ndarray, header: Any) -> Any:
    """A 16UC1 Image of classes [H, W], 0 = none."""
    return _image(header, "16UC1", classes.astype(np.uint16))


def _millimetres(depth_m: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        mm = np.rint(depth_m.astype(np.float64) * 1000)
        return np.where((mm > 0) & (mm <= 65535), mm, 0).astype(np.uint16)


def compress_colour(rgb: np.ndarray, header: Any, kind: Literal["jpeg", "png"] = "jpeg", quality: int = 90) -> Any:
    """A CompressedImage of [H, W, 3] uint8 RGB; `quality` is JPEG's, 1 to 100."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == "jpeg" else []
    _, data = cv2.imencode(f".{kind}", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    return _compressed(header, f"rgb8; {kind} compressed bgr8", data.tobytes())


def compress_depth(
    depth_m: np.ndarray,
    header: Any,
    encoding: Literal["16UC1", "32FC1"] = "16UC1",
    *,
    max_depth_m: float = 10.0,
    quantisation: float = 100.0,
) -> Any:
    """A CompressedImage as compressed_depth_image_transport makes it.

    16UC1 is millimetres. 32FC1 is inverse depth A / z + B in 16 bits, with A = q (q + 1) and B = 1 - A / max_depth_m:
    about z^2 / A metres of error; depth beyond `max_depth_m` is lost.
    """
    a = b = 0.0
    stored = _millimetres(depth_m)
    if encoding == "32FC1":
        a = quantisation * (quantisation + 1)
        b = 1 - a / max_depth_m
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = a / depth_m.astype(np.float64) + b
            usable = (depth_m > 0) & (depth_m < max_depth_m) & (inverse < 65536)
            stored = np.where(usable, inverse, 0).astype(np.uint16)
    _, png = cv2.imencode(".png", stored)
    kind = _INVERSE_DEPTH if encoding == "32FC1" else 0
    return _compressed(header, f"{encoding}; compressedDepth png", _HEADER.pack(kind, a, b) + png.tobytes())


def _compressed(header: Any, kind: str, data: bytes) -> Any:
    return types().new(
        "sensor_msgs/msg/CompressedImage", header=header, format=kind, data=np.frombuffer(data, np.uint8)
    )


def camera_of(info: Any) -> Camera:
    """The pinhole camera of a CameraInfo, after its region of interest and binning.

    Distortion is the business of `undistort.Undistorter`.

    Raises:
        FrameRejected: UNCALIBRATED (K[0] == 0), or a K that no pinhole camera has.
    """
    K = np.array(info.k, dtype=np.float64).reshape(3, 3)
    if not np.isfinite(K).all() or K[0, 0] <= 0 or K[1, 1] <= 0 or info.width < 1 or info.height < 1:
        raise FrameRejected(
            Reason.UNCALIBRATED,
            f"CameraInfo of {info.width}x{info.height} has K = {K.reshape(-1).tolist()}; the camera is not calibrated. "
            "Calibrate it (camera_calibration), or give the driver its calibration file",
        )
    # K is of the full image; a driver that crops and bins says so beside it, 0 being "not".
    roi, bin_x, bin_y = info.roi, max(int(info.binning_x), 1), max(int(info.binning_y), 1)
    K[:2, 2] -= int(roi.x_offset), int(roi.y_offset)
    cropped = Camera.from_matrix(K, int(roi.width or info.width), int(roi.height or info.height))
    return cropped.resized(cropped.width // bin_x, cropped.height // bin_y)


def info_of(camera: Camera, header: Any) -> Any:
    """A CameraInfo without distortion."""
    K = camera.matrix
    return types().new(
        "sensor_msgs/msg/CameraInfo",
        header=header,
        width=camera.width,
        height=camera.height,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=K.reshape(-1),
        r=np.eye(3).reshape(-1),
        p=np.hstack([K, np.zeros((3, 1))]).reshape(-1),
    )
