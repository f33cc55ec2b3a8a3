"""The dictionary adapter: photographs of known blocks name the points of a cloud, by every method."""

from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import BLUE, RED, SMALL, cast, frame_at, ring

from semfield_ros.adapter import frames_of, label_cloud
from semfield_ros.config import MaskConfig
from semfield_ros.encoders.stub import StubEncoder
from semfield_ros.errors import ConfigError, FrameRejected, QueryError
from semfield_ros.geometry import Camera, back_project

NAMES = ["red", "blue", "white"]
METHODS = ["nerf", "openscene", "openmask3d", "conceptfusion"]
CAMERA = Camera(160, 120, 140.0, 140.0, 79.5, 59.5)
K = CAMERA.matrix
FRAMES = [frame_at(T, float(i), camera=CAMERA) for i, T in enumerate(ring(10))]
IMAGES = [frame.rgb for frame in FRAMES]
CAMERAS = [(K, np.linalg.inv(frame.T_world_camera)[:3]) for frame in FRAMES]
SETTINGS = replace(SMALL, masks=MaskConfig(crop_levels=1))
"""Crops without surroundings: this encoder takes a crop's mean colour."""


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Points of what the cameras see within 45 cm of the middle, and what each is: 0 red, 1 blue, 2 table."""
    points, truth = [], []
    for frame in FRAMES[::2]:
        p, pixel = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
        points.append(p)
        truth.append(np.array([2, 0, 1])[cast(frame.T_world_camera, camera=CAMERA)[1].reshape(-1)[pixel]])
    points, truth = np.concatenate(points), np.concatenate(truth)
    near = (np.abs(points[:, :2]) < 0.45).all(1)
    return points[near][::8], truth[near][::8]


POINTS, TRUTH = scene()


def edge(points: np.ndarray) -> np.ndarray:
    """Points within 2.5 cm of an edge of a block, where pixels and points mix."""
    out = np.zeros(len(points), bool)
    for block in (RED, BLUE):
        gap = np.abs(points[:, None] - np.stack([block.low, block.high]))
        out |= ((gap < 0.025).any(1).sum(1) >= 2)
    return out


@pytest.mark.parametrize("method", METHODS)
def test_every_method_names_the_blocks(method):
    cloud = {"pos": POINTS, "rgb": np.zeros((len(POINTS), 3), np.uint8), "id": "kept"}
    before = POINTS.copy()
    out = label_cloud(
        cloud, IMAGES, CAMERAS, method, names=NAMES, encoder=StubEncoder(), config=SETTINGS, steps=120, template="{}"
    )
    assert set(cloud) == {"pos", "rgb", "id"}
    assert np.array_equal(cloud["pos"], before), "it is not touched"
    assert out["id"] == "kept" and out["label_names"] == NAMES and out["pos"] is cloud["pos"]
    labels, confidence = out["labels"], out["label_confidence"]
    assert labels.shape == confidence.shape == (len(POINTS),) and labels.dtype == np.int32
    assert ((confidence >= 0) & (confidence <= 1)).all() and (confidence[labels < 0] == 0).all()
    clear = ~edge(POINTS)
    things = clear & (TRUTH < 2)
    answered = labels[things] >= 0
    assert answered.mean() > 0.8
    assert (labels[things] == TRUTH[things])[answered].mean() > 0.9
    if method != "openmask3d":  # the table is no one's thing
        assert (labels[clear] == TRUTH[clear]).mean() > 0.9
        assert confidence[clear & (labels == TRUTH)].mean() > 0.5


def test_the_camera_stands_at_minus_RT_t():
    frames = frames_of(POINTS, IMAGES, CAMERAS)
    assert len(frames) == len(FRAMES)
    for made, true, (_, RT) in zip(frames, FRAMES, CAMERAS):
        assert np.allclose(made.T_world_camera[:3, 3], -RT[:, :3].T @ RT[:, 3])
        assert np.allclose(made.T_world_camera, true.T_world_camera, atol=1e-9)
        both = (made.depth_m > 0) & (true.depth_m > 0)
        assert both.mean() > 0.2 and np.median(np.abs(made.depth_m - true.depth_m)[both]) < 0.02
    wrong = [(K, frame.T_world_camera[:3]) for frame in FRAMES]  # camera-to-world, the usual mistake
    crossed = label_cloud(
        {"pos": POINTS}, IMAGES, wrong, "conceptfusion", names=NAMES, encoder=StubEncoder(), config=SETTINGS
    )["labels"]
    right = label_cloud(
        {"pos": POINTS}, IMAGES, CAMERAS, "conceptfusion", names=NAMES, encoder=StubEncoder(), config=SETTINGS
    )["labels"]
    assert (crossed == right).mean() < 0.6, "and it shows"


def test_poses_of_both_shapes_and_given_depth():
    square = [(k, np.vstack([rt, [0, 0, 0, 1]])) for k, rt in CAMERAS]
    depths = [(frame.depth_m * 1000).astype(np.uint16) for frame in FRAMES]
    frames = frames_of(POINTS, IMAGES, square, depths)
    assert all(np.allclose(f.depth_m, t.depth_m, atol=1e-3) for f, t in zip(frames, FRAMES))


def test_unknown_stays_unknown():
    far = np.array([[5.0, 5.0, 5.0], [np.nan, 0, 0]], np.float32)
    cloud = {"pos": np.concatenate([POINTS, far])}
    out = label_cloud(
        cloud, IMAGES, CAMERAS, "conceptfusion", names=NAMES, encoder=StubEncoder(), config=SETTINGS, template="{}"
    )
    assert out["labels"][-2:].tolist() == [-1, -1] and (out["labels"][:-2] >= 0).mean() > 0.9
    strict = label_cloud(
        cloud, IMAGES, CAMERAS, "conceptfusion", names=NAMES, encoder=StubEncoder(), config=SETTINGS, template="{}",
        least=1.1,
    )  # fmt: skip
    assert (strict["labels"] == -1).all() and not strict["label_confidence"].any()


def test_other_takes_what_no_name_fits_and_is_reported_as_unknown():
    class Other(StubEncoder):
        def encode_text(self, texts):
            return super().encode_text(["white" if text == "other" else text for text in texts])

    out = label_cloud(
        {"pos": POINTS}, IMAGES, CAMERAS, "conceptfusion", names=["red", "blue"], encoder=Other(), config=SETTINGS,
        template="{}", other=True,
    )  # fmt: skip
    assert out["label_names"] == ["red", "blue"] and set(np.unique(out["labels"])) == {-1, 0, 1}
    table = (TRUTH == 2) & ~edge(POINTS)
    assert (out["labels"][table] == -1).mean() > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_no_points_and_no_view(method):
    empty = label_cloud(
        {"pos": np.zeros((0, 3))}, IMAGES[:1], CAMERAS[:1], method, names=NAMES, encoder=StubEncoder(), config=SETTINGS
    )
    assert empty["labels"].shape == empty["label_confidence"].shape == (0,)
    blind = label_cloud({"pos": POINTS}, [], [], method, names=NAMES, encoder=StubEncoder(), config=SETTINGS)
    assert (blind["labels"] == -1).all()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"method": "magic"}, ConfigError), ({"cloud": {}}, ConfigError),
        ({"cloud": {"pos": np.zeros(3)}}, ConfigError),
        ({"cloud": {"pos": POINTS, "rgb": np.zeros((2, 3))}}, ConfigError), ({"cloud": {"pos": "here"}}, ConfigError),
        ({"cameras": CAMERAS[:3]}, ConfigError), ({"images": [None] * 10}, ConfigError), ({"names": []}, QueryError),
        ({"images": [image.astype(float) for image in IMAGES]}, FrameRejected), ({"steps": 0}, ConfigError),
        ({"cameras": [(K, np.eye(3))] * 10}, ConfigError), ({"depths": [FRAMES[0].depth_m]}, ConfigError),
        ({"cameras": [(np.eye(4), rt) for _, rt in CAMERAS]}, ConfigError),
        ({"cameras": [(k, rt * 2) for k, rt in CAMERAS]}, FrameRejected),
        ({"masks": "no such thing"}, ConfigError),
    ],
)  # fmt: skip
def test_unusable_input_is_told_of(change, error):
    given = {"cloud": {"pos": POINTS}, "images": IMAGES, "cameras": CAMERAS, "method": "conceptfusion", "names": NAMES,
             "encoder": StubEncoder(), "config": SETTINGS} | change  # fmt: skip
    with pytest.raises(error):
        label_cloud(given.pop("cloud"), given.pop("images"), given.pop("cameras"), given.pop("method"), **given)
