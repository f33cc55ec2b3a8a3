"""Image messages: against bytes made by hand, OpenCV and the formulas of the transports."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

from semfield_ros.errors import FrameRejected, Reason
from semfield_ros.geometry import Camera
from semfield_ros.messages import images
from semfield_ros.messages.poses import header_of
from semfield_ros.messages.types import types
from semfield_ros.messages.undistort import Undistorter

HEADER = header_of(1_500_000_000, "camera_optical_frame")
RED, GREEN = (255, 0, 0), (0, 255, 0)


def image(encoding: str, height: int, width: int, step: int, data: bytes, big: int = 0) -> object:
    return types().new(
        "sensor_msgs/msg/Image", header=HEADER, encoding=encoding, height=height, width=width, step=step,
        data=np.frombuffer(data, np.uint8), is_bigendian=big,
    )  # fmt: skip


def compressed(kind: str, data: bytes) -> object:
    return types().new(
        "sensor_msgs/msg/CompressedImage", header=HEADER, format=kind, data=np.frombuffer(data, np.uint8)
    )


def rejected(reason: Reason, decode, message: object) -> str:
    with pytest.raises(FrameRejected) as error:
        decode(message)
    assert error.value.reason == reason
    return str(error.value)


@pytest.mark.parametrize(
    ("encoding", "red", "green"),
    [
        ("rgb8", b"\xff\x00\x00", b"\x00\xff\x00"),
        ("bgr8", b"\x00\x00\xff", b"\x00\xff\x00"),
        ("rgba8", b"\xff\x00\x00\x07", b"\x00\xff\x00\x07"),
        ("bgra8", b"\x00\x00\xff\x07", b"\x00\xff\x00\x07"),
    ],
)
@pytest.mark.parametrize("padding", [0, 3])
def test_colours_from_bytes(encoding, red, green, padding):
    row = red + green + b"\xee" * padding
    rgb = images.decode_colour(image(encoding, 2, 2, len(row), row * 2))
    assert rgb.dtype == np.uint8 and rgb.tolist() == [[list(RED), list(GREEN)]] * 2


def test_grey_becomes_colour():
    rgb = images.decode_colour(image("mono8", 1, 2, 4, b"\x05\xff\xee\xee"))
    assert rgb.tolist() == [[[5] * 3, [255] * 3]]


def test_the_last_row_may_lack_its_padding():
    assert images.decode_colour(image("mono8", 2, 1, 4, b"\x01\xee\xee\xee\x02"))[..., 0].tolist() == [[1], [2]]


@pytest.mark.parametrize(("big", "order"), [(0, "<"), (1, ">")])
def test_depth_from_bytes(big, order):
    mm = struct.pack(f"{order}3H", 0, 1234, 65535)
    for encoding in ("16UC1", "mono16"):
        depth = images.decode_depth(image(encoding, 1, 3, 8, mm + b"\xee\xee", big))
        assert depth.dtype == np.uint16 and depth.dtype.isnative and depth.tolist() == [[0, 1234, 65535]]
    metres = images.decode_depth(image("32FC1", 3, 1, 4, struct.pack(f"{order}3f", 1.5, np.nan, np.inf), big))
    assert metres.dtype == np.float32 and metres.dtype.isnative
    assert np.array_equal(metres, np.array([[1.5], [np.nan], [np.inf]], np.float32), equal_nan=True)


@pytest.mark.parametrize(("big", "order"), [(0, "<"), (1, ">")])
@pytest.mark.parametrize(
    ("encoding", "letter", "ids"),
    [
        ("mono8", "B", [0, 255]), ("8UC1", "B", [0, 255]), ("mono16", "H", [1, 65535]), ("16UC1", "H", [1, 65535]),
        ("32SC1", "i", [-1, 2**31 - 1]),
    ],
)  # fmt: skip
def test_labels_from_bytes(encoding, letter, ids, big, order):
    data = struct.pack(f"{order}2{letter}", *ids)
    labels = images.decode_labels(image(encoding, 1, 2, len(data), data, big))
    assert labels.dtype == np.int32 and labels.tolist() == [ids]


@pytest.mark.parametrize(
    ("decode", "encoding", "said"),
    [
        (images.decode_colour, "bayer_rggb8", "image_proc"),
        (images.decode_colour, "yuv422_yuy2", "rgb8, bgr8, rgba8, bgra8, mono8"),
        (images.decode_depth, "rgb8", "16UC1, mono16, 32FC1"),
        (images.decode_labels, "32FC1", "32SC1"),
    ],
)
def test_other_encodings_are_refused_by_name(decode, encoding, said):
    message = rejected(Reason.IMAGE_ENCODING, decode, image(encoding, 2, 2, 8, bytes(16)))
    assert repr(encoding) in message and said in message


@pytest.mark.parametrize(
    ("height", "width", "step", "size"), [(2, 2, 5, 12), (2, 2, 6, 11), (0, 2, 6, 12), (2, 0, 6, 12), (9, 9, 27, 12)]
)
def test_sizes_that_lie_are_malformed(height, width, step, size):
    rejected(Reason.IMAGE_MALFORMED, images.decode_colour, image("rgb8", height, width, step, bytes(size)))


def test_raw_images_survive():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    depth = np.random.default_rng(1).uniform(0, 70, (5, 7)).astype(np.float32)

    def sent(message):
        return types().decode(types().encode(message), message.__msgtype__)

    assert np.array_equal(images.decode_colour(sent(images.encode_colour(rgb, HEADER))), rgb)
    assert np.array_equal(images.decode_depth(sent(images.encode_depth(depth, HEADER))), depth)
    mm = images.decode_depth(sent(images.encode_depth(depth, HEADER, "16UC1")))
    expected = np.where(depth <= 65.535, np.rint(depth.astype(np.float64) * 1000), 0)
    assert mm.dtype == np.uint16 and np.array_equal(mm, expected)
    labels = np.array([[0, -3], [2**31 - 1, 7]])
    assert np.array_equal(images.decode_labels(images.encode_labels(labels, HEADER)), labels)


def test_millimetres_of_no_measurement_are_zero():
    depth = np.array([[np.nan, np.inf, -1, 0, 66.0]], np.float32)
    assert images.decode_depth(images.encode_depth(depth, HEADER, "16UC1")).tolist() == [[0] * 5]


def smooth() -> np.ndarray:
    v, u = np.mgrid[:48, :64]
    return np.stack([u * 4, v * 5, 255 - u * 2], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["jpeg", "jpg", "rgb8; jpeg compressed bgr8", "whatever"])
def test_jpeg_of_another_library(kind):
    data = io.BytesIO()
    PilImage.fromarray(smooth()).save(data, "JPEG", quality=95)
    error = np.abs(images.decode_colour(compressed(kind, data.getvalue())).astype(int) - smooth())
    assert error.mean() < 2, "red stays red"


def test_png_of_another_library():
    data = io.BytesIO()
    PilImage.fromarray(smooth()).save(data, "PNG")
    assert np.array_equal(images.decode_colour(compressed("rgb8; png compressed bgr8", data.getvalue())), smooth())


def test_what_we_compress_others_read():
    message = images.compress_colour(smooth(), HEADER, "png")
    assert np.array_equal(np.array(PilImage.open(io.BytesIO(bytes(message.data)))), smooth())
    assert np.array_equal(images.decode_colour(message), smooth())
    jpeg = images.compress_colour(smooth(), HEADER)
    assert jpeg.format == "rgb8; jpeg compressed bgr8" and bytes(jpeg.data[:2]) == b"\xff\xd8"


def test_torn_and_foreign_compressed_images():
    whole = bytes(images.compress_colour(smooth(), HEADER).data)
    rejected(Reason.IMAGE_MALFORMED, images.decode_colour, compressed("jpeg", whole[: len(whole) // 2]))
    rejected(Reason.IMAGE_MALFORMED, images.decode_colour, compressed("png", b"\x89PNG\r\n\x1a\nnonsense IEND"))
    assert "'tiff'" in rejected(Reason.IMAGE_ENCODING, images.decode_colour, compressed("tiff", b"II*\x00" + whole))
    rejected(Reason.IMAGE_ENCODING, images.decode_colour, compressed("jpeg", b""))


def png16(values: list[list[int]]) -> bytes:
    data = io.BytesIO()
    PilImage.fromarray(np.array(values, np.uint16)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("kind", ["16UC1; compressedDepth", "16UC1; compressedDepth png", "mono16; compressedDepth"])
def test_compressed_millimetres(kind):
    message = compressed(kind, struct.pack("<iff", 0, 0, 0) + png16([[0, 1234], [65535, 1]]))
    depth = images.decode_depth(message)
    assert depth.dtype == np.uint16 and depth.tolist() == [[0, 1234], [65535, 1]]


def test_compressed_inverse_depth():
    # compressed_depth_image_transport with depth_quantization 100 and depth_max 10
    a, b = 100.0 * 101.0, 1 - 100.0 * 101.0 / 10.0
    message = compressed("32FC1; compressedDepth png", struct.pack("<iff", 1, a, b) + png16([[0, 9091], [4041, 1]]))
    depth = images.decode_depth(message)
    expected = [[np.nan, a / (9091 - b)], [a / (4041 - b), a / (1 - b)]]
    assert depth.dtype == np.float32 and np.allclose(depth, expected, rtol=1e-5, equal_nan=True)
    assert np.isclose(depth[0, 1], 1.0, atol=1e-3) and np.isclose(depth[1, 1], 10.0)


@pytest.mark.parametrize(("encoding", "tolerance"), [("16UC1", 0.0006), ("32FC1", 0.01)])
def test_depth_survives_compression(encoding, tolerance):
    depth = np.random.default_rng(0).uniform(0.2, 9.9, (12, 16)).astype(np.float32)
    depth[0] = 0
    back = images.decode_depth(images.compress_depth(depth, HEADER, encoding))
    metres = np.nan_to_num(back.astype(np.float64) / (1000 if encoding == "16UC1" else 1))
    assert np.array_equal(metres > 0, depth > 0) and np.abs(metres - depth).max() < tolerance


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("16UC1; compressedDepth rvl", bytes(40), Reason.IMAGE_ENCODING),
        ("64FC1; compressedDepth", bytes(40), Reason.IMAGE_ENCODING),
        ("16UC1; zstd", bytes(40), Reason.IMAGE_ENCODING),
        ("16UC1; compressedDepth", bytes(5), Reason.IMAGE_MALFORMED),
        ("16UC1; compressedDepth", bytes(40), Reason.IMAGE_ENCODING),
        ("16UC1; compressedDepth", bytes(12) + png16([[1, 2], [3, 4]])[:-20], Reason.IMAGE_MALFORMED),
        ("16UC1; compressedDepth", bytes(12) + cv2.imencode(".png", smooth())[1].tobytes(), Reason.IMAGE_MALFORMED),
    ],
)
def test_other_compressed_depth_is_refused(kind, data, reason):
    rejected(reason, images.decode_depth, compressed(kind, data))


def test_rvl_is_refused_with_the_remedy():
    message = rejected(Reason.IMAGE_ENCODING, images.decode_depth, compressed("16UC1; compressedDepth rvl", bytes(40)))
    assert "'16UC1; compressedDepth rvl'" in message and "`format` to png" in message


CAMERA = Camera(64, 48, 60.0, 62.0, 30.5, 25.0)


def info(camera: Camera = CAMERA, **values) -> object:
    message = images.info_of(camera, HEADER)
    for name, value in values.items():
        setattr(message, name, value)
    return message


def test_cameras_survive():
    message = types().decode(types().encode(info()), "sensor_msgs/msg/CameraInfo")
    assert images.camera_of(message) == CAMERA
    assert message.p.reshape(3, 4)[:, :3].tolist() == CAMERA.matrix.tolist()


def test_regions_of_interest_and_binning_move_the_centre():
    # A ray through pixel (u, v) of the full image goes through ((u - x) / 2, (v - y) / 2) of the one delivered.
    roi = types().new("sensor_msgs/msg/RegionOfInterest", x_offset=10, y_offset=8, width=40, height=32)
    camera = images.camera_of(info(roi=roi, binning_x=2, binning_y=2))
    assert (camera.width, camera.height) == (20, 16)
    assert (camera.fx, camera.fy) == (30.0, 31.0)
    # Pixel centres: a binned pixel covers full pixels 2u and 2u + 1, so its centre is at 2u + 0.5.
    assert np.isclose(2 * camera.cx + 0.5, CAMERA.cx - 10) and np.isclose(2 * camera.cy + 0.5, CAMERA.cy - 8)


@pytest.mark.parametrize("k", [np.zeros(9), np.full(9, np.nan), np.diag([60.0, -1, 1]).reshape(-1)])
def test_an_uncalibrated_camera_is_refused(k):
    with pytest.raises(FrameRejected, match="Calibrate") as error:
        images.camera_of(info(k=k))
    assert error.value.reason == Reason.UNCALIBRATED


PLUMB = [0.2, -0.3, 0.004, -0.006, 0.1]
RATIONAL = [0.1, -0.05, 0.002, -0.001, 0.01, 0.05, -0.02, 0.005]
FISHEYE = [-0.02, 0.01, -0.004, 0.001]


def projected(model: str, d: list[float], x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distorted normalised coordinates, by the formulas of image_geometry's models (Brown; Kannala and Brandt)."""
    r2 = x * x + y * y
    if model == "equidistant":
        r = np.sqrt(r2)
        theta = np.arctan(r)
        bent = theta * (1 + sum(k * theta ** (2 * i + 2) for i, k in enumerate(d)))
        scale = np.where(r > 1e-12, bent / np.maximum(r, 1e-12), 1.0)
        return x * scale, y * scale
    k1, k2, p1, p2, k3, *more = d
    k4, k5, k6 = more or (0.0, 0.0, 0.0)
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y)


@pytest.mark.parametrize(
    ("model", "d"), [("plumb_bob", PLUMB), ("rational_polynomial", RATIONAL), ("equidistant", FISHEYE)]
)
@pytest.mark.parametrize("factor", [1, 2])
def test_distortion_is_taken_out(model, d, factor):
    undistorter = Undistorter(info(distortion_model=model, d=np.array(d)))
    camera = CAMERA.resized(64 * factor, 48 * factor)
    v, u = np.mgrid[: camera.height, : camera.width].astype(np.float64)
    x, y = projected(model, d, (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy)
    at_u, at_v = x * camera.fx + camera.cx, y * camera.fy + camera.cy
    seen = (at_u > 0.5) & (at_v > 0.5) & (at_u < camera.width - 1.5) & (at_v < camera.height - 1.5)
    # The distorted image holds each pixel's own coordinates: what is found at a pixel tells where it was taken.
    distorted = np.stack([u, v, 0 * u], axis=-1).astype(np.uint8)
    straight = undistorter.colour(distorted)
    assert np.abs(straight[..., 0] - at_u)[seen].max() < 0.6 and np.abs(straight[..., 1] - at_v)[seen].max() < 0.6
    for kind in (np.uint16, np.float32, np.int32):
        code = (v * 256 + u).astype(kind)
        found = undistorter.values(code)
        assert found.dtype == kind and seen.mean() > 0.5
        row, column = np.divmod(found.astype(np.int64), 256)
        assert np.abs(column - at_u)[seen].max() < 0.51 and np.abs(row - at_v)[seen].max() < 0.51, "nearest, unmixed"
    outside = (at_u < -0.6) | (at_v < -0.6) | (at_u > camera.width - 0.4) | (at_v > camera.height - 0.4)
    assert not undistorter.values(np.full(u.shape, 7, np.uint16))[outside].any()


def test_no_distortion_means_nothing_is_done():
    for d in (np.zeros(5), np.zeros(0), np.zeros(3)):
        undistorter = Undistorter(info(d=d, distortion_model="anything"))
        depth = np.ones((48, 64), np.float32)
        assert not undistorter.distorts and undistorter.values(depth) is depth
        assert undistorter.colour(smooth()).shape == (48, 64, 3) and undistorter.camera == CAMERA


@pytest.mark.parametrize(("model", "d"), [("thin_prism", PLUMB), ("plumb_bob", [0.1]), ("equidistant", PLUMB),
                                          ("plumb_bob", [np.nan] * 5)])  # fmt: skip
def test_unknown_distortion_is_refused_by_name(model, d):
    with pytest.raises(FrameRejected, match=model) as error:
        Undistorter(info(distortion_model=model, d=np.array(d)))
    assert error.value.reason == Reason.IMAGE_ENCODING and "image_proc" in str(error.value)
