"""Frames: what is valid, why the rest is not, and that every form of the same picture gives the same frame."""

import warnings

import numpy as np
import pytest
import transforms3d
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from semfield_ros.config import FrameConfig
from semfield_ros.errors import FrameRejected, Reason
from semfield_ros.frame import FrameGate, Segments, make_frame, metric_depth, resized
from semfield_ros.geometry import Camera, back_project

WIDTH, HEIGHT = 64, 48
CAMERA = Camera(WIDTH, HEIGHT, 60.0, 55.0, 30.5, 25.0)
CONFIG = FrameConfig(min_depth_m=0.1, max_depth_m=6.0)


def parts(**changes):
    """Arguments of a valid frame, with changes."""
    rng = np.random.default_rng(0)
    valid = {
        "stamp_s": 1.0,
        "camera": CAMERA,
        "T_world_camera": np.eye(4),
        "rgb": rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        "depth": np.full((HEIGHT, WIDTH), 2.0, np.float32),
    }
    return {**valid, **changes}


def pose(scale=1.0, **entries):
    T = transforms3d.affines.compose([1, 2, 3], transforms3d.euler.euler2mat(0.1, 0.2, 0.3), [scale] * 3)
    for place, value in entries.items():
        T[int(place[1]), int(place[2])] = value
    return T


def camera(**changes):
    return Camera(**{**{k: getattr(CAMERA, k) for k in ("width", "height", "fx", "fy", "cx", "cy")}, **changes})


def test_a_valid_frame_arrives_unchanged():
    given_parts = parts(T_world_camera=pose())
    frame = make_frame(**given_parts)
    assert frame.camera == CAMERA and frame.stamp_s == 1.0
    assert np.array_equal(frame.rgb, given_parts["rgb"]) and np.array_equal(frame.depth_m, given_parts["depth"])
    assert np.array_equal(frame.T_world_camera, given_parts["T_world_camera"])
    given_parts["T_world_camera"][0, 3] = 99.0
    assert frame.T_world_camera[0, 3] == 1.0, "the pose must be a private copy"


REJECTIONS = [
    (Reason.DEPTH_TYPE, {"depth": None}),
    (Reason.DEPTH_TYPE, {"depth": [[1.0, 2.0]]}),
    (Reason.DEPTH_TYPE, {"depth": np.ones((HEIGHT, WIDTH, 1), np.float32)}),
    (Reason.DEPTH_TYPE, {"depth": np.ones((HEIGHT, WIDTH), np.uint8)}),
    (Reason.DEPTH_TYPE, {"depth": np.ones((HEIGHT, WIDTH), np.int32)}),
    (Reason.DEPTH_TYPE, {"depth": np.ones((HEIGHT, WIDTH), bool)}),
    (Reason.DEPTH_EMPTY, {"depth": np.zeros((HEIGHT, WIDTH), np.float32)}),
    (Reason.DEPTH_EMPTY, {"depth": np.full((HEIGHT, WIDTH), np.nan, np.float32)}),
    (Reason.DEPTH_EMPTY, {"depth": np.full((HEIGHT, WIDTH), 1500.0, np.float32)}),  # millimetres given as float
    (Reason.DEPTH_EMPTY, {"depth": np.full((HEIGHT, WIDTH), 2, np.uint16)}),  # metres given as uint16
    (Reason.COLOUR_TYPE, {"rgb": None}),
    (Reason.COLOUR_TYPE, {"rgb": np.zeros((HEIGHT, WIDTH), np.uint8)}),
    (Reason.COLOUR_TYPE, {"rgb": np.zeros((HEIGHT, WIDTH, 4), np.uint8)}),
    (Reason.COLOUR_TYPE, {"rgb": np.zeros((HEIGHT, WIDTH, 3), np.float32)}),
    (Reason.SIZE_MISMATCH, {"rgb": np.zeros((HEIGHT, HEIGHT, 3), np.uint8)}),
    (Reason.SIZE_MISMATCH, {"rgb": np.zeros((0, 0, 3), np.uint8)}),
    (Reason.SIZE_MISMATCH, {"rgb": np.zeros((WIDTH, HEIGHT, 3), np.uint8)}),  # transposed
    (Reason.SIZE_MISMATCH, {"camera": camera(width=640, height=480)}),
    (
        Reason.SIZE_MISMATCH,
        {
            "camera": camera(width=4, height=4),
            "rgb": np.zeros((4, 4, 3), np.uint8),
            "depth": np.ones((4, 4), np.float32),
        },
    ),
    (Reason.UNCALIBRATED, {"camera": camera(fx=0.0)}),
    (Reason.UNCALIBRATED, {"camera": camera(fy=-1.0)}),
    (Reason.UNCALIBRATED, {"camera": camera(fx=float("nan"))}),
    (Reason.UNCALIBRATED, {"camera": camera(cx=float("inf"))}),
    (Reason.POSE_NOT_FINITE, {"T_world_camera": None}),
    (Reason.POSE_NOT_FINITE, {"T_world_camera": "identity"}),
    (Reason.POSE_NOT_FINITE, {"T_world_camera": np.eye(3)}),
    (Reason.POSE_NOT_FINITE, {"T_world_camera": pose(e03=np.nan)}),
    (Reason.POSE_NOT_FINITE, {"T_world_camera": pose(e11=-np.inf)}),
    (Reason.POSE_NOT_RIGID, {"T_world_camera": pose(scale=1.05)}),
    (Reason.POSE_NOT_RIGID, {"T_world_camera": np.zeros((4, 4))}),
    (Reason.POSE_NOT_RIGID, {"T_world_camera": np.diag([1.0, 1.0, -1.0, 1.0])}),  # a mirror
    (Reason.POSE_NOT_RIGID, {"T_world_camera": pose(e30=0.1)}),
    (Reason.STAMP_NOT_FINITE, {"stamp_s": float("nan")}),
    (Reason.STAMP_NOT_FINITE, {"stamp_s": float("inf")}),
    (Reason.STAMP_NOT_FINITE, {"stamp_s": None}),
    (Reason.TARGET_TYPE, {"semantic": np.zeros((HEIGHT, WIDTH), np.float32)}),
    (Reason.TARGET_TYPE, {"instance": np.zeros((HEIGHT, WIDTH, 3), np.uint8)}),
    (Reason.TARGET_TYPE, {"semantic": np.zeros((HEIGHT, HEIGHT), np.uint8)}),
    (Reason.TARGET_TYPE, {"instance": np.full((HEIGHT, WIDTH), 2**31, np.int64)}),
    (Reason.TARGET_TYPE, {"segments": Segments(np.zeros((HEIGHT, WIDTH)), {})}),
    (Reason.TARGET_TYPE, {"segments": Segments(None, {})}),
]


@pytest.mark.parametrize(("reason", "changes"), REJECTIONS, ids=lambda value: getattr(value, "value", ""))
def test_rejections_have_their_reason(reason, changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FrameRejected) as caught:
            make_frame(**parts(**changes))
    assert caught.value.reason is reason
    assert str(caught.value).startswith(f"{reason.value}: ") and len(str(caught.value)) > len(reason.value) + 20


def test_every_reason_is_tested():
    order_is_for_the_gate = {Reason.STAMP_BACKWARDS}
    # tested where messages become frames
    of_messages = {
        Reason.IMAGE_ENCODING, Reason.IMAGE_MALFORMED, Reason.INFO_MISSING, Reason.POSE_MISSING, Reason.UNSYNCHRONISED,
        Reason.PENDING_FULL, Reason.TIME_JUMP,
    }  # fmt: skip
    assert {reason for reason, _ in REJECTIONS} | order_is_for_the_gate | of_messages == set(Reason)


def test_millimetres_and_metres_are_the_same_to_the_last_bit():
    millimetres = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    wide = FrameConfig(min_depth_m=1e-9, max_depth_m=100.0)
    exact = np.array([float(f"{mm}e-3") for mm in range(2**16)]).reshape(256, 256)
    assert np.array_equal(metric_depth(millimetres, wide), exact.astype(np.float32))
    assert np.array_equal(metric_depth(millimetres, wide), metric_depth(exact, wide))


def test_unusable_depth_becomes_zero():
    nothing = [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 0.0999, 6.001, 1e300]
    depth = np.array([[*nothing, 0.1001, 3.25, 5.999]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metres = metric_depth(depth, CONFIG)
    assert metres.dtype == np.float32
    assert metres.tolist() == [[0.0] * len(nothing) + [np.float32(0.1001), 3.25, np.float32(5.999)]]


@given(arrays(np.float32, (8, 9), elements=st.floats(width=32)))
def test_metric_depth_is_always_usable_and_idempotent(depth):
    metres = metric_depth(depth, CONFIG)
    assert np.isin(metres[metres != 0], depth).all()
    assert ((metres == 0) | ((metres >= np.float32(0.1)) & (metres <= 6))).all()
    assert np.array_equal(metric_depth(metres, CONFIG), metres)


def test_the_smallest_share_of_valid_depth_counts():
    depth = np.zeros((10, 100), np.float32)
    depth[0, :10] = 1.0
    changes = {"camera": Camera(100, 10, 60, 60, 50, 5), "rgb": np.zeros((10, 100, 3), np.uint8), "depth": depth}
    make_frame(**parts(**changes), config=FrameConfig(min_valid_fraction=0.01))
    with pytest.raises(FrameRejected, match="10 of 1000 depth pixels"):
        make_frame(**parts(**changes), config=FrameConfig(min_valid_fraction=0.011))


@pytest.mark.parametrize("intrinsics_of", ["colour", "depth"])
@pytest.mark.parametrize("scale", [2, 3])
def test_larger_colour_is_brought_to_depth_with_its_intrinsics(intrinsics_of, scale):
    rgb = np.random.default_rng(1).integers(0, 256, (HEIGHT * scale, WIDTH * scale, 3), dtype=np.uint8)
    large = Camera(
        WIDTH * scale, HEIGHT * scale, 60.0 * scale, 55.0 * scale, (30.5 + 0.5) * scale - 0.5, (25 + 0.5) * scale - 0.5
    )
    frame = make_frame(**parts(rgb=rgb, camera=large if intrinsics_of == "colour" else CAMERA))
    for name in ("width", "height", "fx", "fy", "cx", "cy"):
        assert getattr(frame.camera, name) == pytest.approx(getattr(CAMERA, name))
    blocks = rgb.reshape(HEIGHT, scale, WIDTH, scale, 3).mean((1, 3))
    assert np.abs(frame.rgb - blocks).max() <= 0.5 + 1e-6


def test_smaller_colour_is_brought_to_depth():
    frame = make_frame(**parts(rgb=np.full((HEIGHT // 2, WIDTH // 2, 3), 7, np.uint8)))
    assert frame.rgb.shape == (HEIGHT, WIDTH, 3) and (frame.rgb == 7).all()


def test_labels_of_another_size_are_never_mixed():
    small = np.random.default_rng(2).choice([0, 3, 200, 70000], (HEIGHT // 4, WIDTH // 4))
    frame = make_frame(**parts(semantic=small, instance=small.astype(np.uint32), segments=Segments(small, {3: "cup"})))
    expected = np.repeat(np.repeat(small, 4, 0), 4, 1)
    for image in (frame.semantic, frame.instance, frame.segments.ids):
        assert image.dtype == np.int32 and image.shape == (HEIGHT, WIDTH)
        assert np.array_equal(image, expected)
    assert frame.segments.names == {3: "cup"}


@pytest.mark.parametrize("size", [(32, 24), (21, 16), (64, 48), (128, 96), (100, 75)])
def test_resized_frames_lie_on_the_same_surface(size):
    # The plane z = 2 + x/2 in camera axes: at pixel direction d, z = 2 + z d_x / 2.
    columns = np.arange(WIDTH)
    depth = np.tile(2 / (1 - 0.5 * (columns - 30.5) / 60), (HEIGHT, 1))
    frame = resized(make_frame(**parts(depth=depth, semantic=np.tile(columns, (HEIGHT, 1)))), *size)
    width, height = size
    assert (frame.camera.width, frame.camera.height) == size
    assert frame.depth_m.shape == frame.semantic.shape == frame.rgb.shape[:2] == (height, width)
    points, _ = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
    # Nearest sampling is off by at most half a pixel of the given image: half of z^2 / (2 fx) on this slope.
    assert np.abs(points[:, 2] - (2 + points[:, 0] / 2)).max() < 0.5 * depth.max() / 60
    centres = (np.arange(width) + 0.5) * WIDTH / width - 0.5
    assert np.abs(frame.semantic[0] - centres).max() <= 0.5


def test_odd_reduction_takes_the_middle_pixel():
    semantic = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    rgb, depth = np.zeros((48, 63, 3), np.uint8), np.ones((48, 63), np.float32)
    frame = make_frame(**parts(rgb=rgb, depth=depth, semantic=semantic[:, :63], camera=camera(width=63)))
    assert np.array_equal(resized(frame, 21, 16).semantic, semantic[1::3, 1:63:3])


def test_gate_counts_by_reason_and_goes_on():
    gate = FrameGate()
    frames = [gate.admit(**parts(stamp_s=float(i), **changes)) for i, (_, changes) in enumerate(REJECTIONS[:6])]
    assert frames == [None] * 6
    assert gate.admit(**parts(stamp_s=10.0)) is not None
    assert gate.admit(**parts(stamp_s=11.0, camera=camera(fx=0.0))) is None
    assert gate.rejected == {"depth_type": 6, "uncalibrated": 1}
    assert gate.admitted == 1 and gate.last_error.startswith("uncalibrated: ")


def test_gate_wants_stamps_that_advance_for_each_camera():
    gate = FrameGate()
    stamps = [("left", 1.0), ("left", 1.0), ("right", 0.5), ("left", 0.9), ("left", 1.1), ("right", 0.4)]
    admitted = [gate.admit(**parts(stamp_s=stamp, camera_name=name)) is not None for name, stamp in stamps]
    assert admitted == [True, False, True, False, True, False]
    assert gate.rejected == {"stamp_backwards": 3}
    gate.reset()
    assert gate.admit(**parts(stamp_s=0.0, camera_name="left")) is not None
    assert gate.rejected == {"stamp_backwards": 3}, "counters survive a reset"


def test_a_rejected_frame_does_not_move_the_gate_s_clock():
    gate = FrameGate()
    assert gate.admit(**parts(stamp_s=5.0, camera=camera(fx=0.0))) is None
    assert gate.admit(**parts(stamp_s=1.0)) is not None


def test_gate_uses_its_configuration():
    gate = FrameGate(FrameConfig(max_depth_m=1.5))
    assert gate.admit(**parts()) is None and gate.rejected == {"depth_empty": 1}
