"""Colours against independent decompositions, projections by hand, and inputs a stream will one day deliver."""

from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest

from semfield_ros import viewer
from semfield_ros.errors import ConfigError
from semfield_ros.geometry import Camera, look_at

CAMERA = Camera(320, 240, 200.0, 200.0, 159.5, 119.5)


@dataclass
class Box:
    centre: np.ndarray
    axes: np.ndarray
    half_extents: np.ndarray


@dataclass
class Grasp:
    T_world_gripper: np.ndarray
    width_m: float = 0.08


@dataclass
class Thing:
    box: Box
    prompt: str = "mug"
    score: float = 0.9
    grasps: list = field(default_factory=list)


def thing(centre, half=0.1, **more) -> Thing:
    return Thing(Box(np.array(centre, float), np.eye(3), np.full(3, half)), **more)


def changed(image: np.ndarray) -> np.ndarray:
    """(u, v) of the pixels that are no longer black."""
    return np.argwhere(image.any(axis=2))[:, ::-1]


# scalars


def test_colour_map_is_opencvs_in_rgb():
    values = np.array([[0.0, 0.5, 1.0], [-1.0, 2.0, np.nan]])
    rgb = viewer.colour_map(values, "viridis")
    bgr = cv2.applyColorMap(np.array([[0, 128, 255]], np.uint8), cv2.COLORMAP_VIRIDIS)
    np.testing.assert_array_equal(rgb[0], bgr[0, :, ::-1])
    assert rgb[1, 0].tolist() == rgb[0, 0].tolist() and rgb[1, 1].tolist() == rgb[0, 2].tolist()
    assert tuple(rgb[1, 2]) == viewer.UNKNOWN
    assert viewer.colour_map(np.zeros(0)).shape == (0, 3)
    with pytest.raises(ConfigError, match="'jet' is not known; allowed: turbo"):
        viewer.colour_map(values, "jet")


def test_depth_is_brighter_where_nearer_and_unknown_where_unmeasured():
    depth = np.linspace(0.5, 3, 60, dtype=np.float32).reshape(6, 10)
    depth[0, 0], depth[1, 1], depth[2, 2] = 0, np.nan, np.inf
    rgb = viewer.depth_image(depth)
    for pixel in ((0, 0), (1, 1), (2, 2)):
        assert tuple(rgb[pixel]) == viewer.UNKNOWN
    brightness = rgb.astype(int).sum(2)
    assert brightness[0, 1] > brightness[3, 0] > brightness[5, 8]
    assert (viewer.depth_image(np.zeros((4, 5))) == viewer.UNKNOWN).all()
    fixed = viewer.depth_image(np.full((1, 2), 1.0), range_m=(0.0, 2.0))
    np.testing.assert_array_equal(fixed[0, 0], viewer.colour_map(np.array(0.5), "magma"))


def test_overlay_is_clear_below_no_match_and_strong_at_high():
    rgb = np.full((20, 40, 3), 100, np.uint8)
    relevancy = np.array([[0.2, 0.5, np.nan, 0.75]])
    out = viewer.overlay(rgb, np.repeat(np.repeat(relevancy, 20, 0), 10, 1), no_match=0.5, high=0.75)
    plain = viewer.overlay(rgb, np.zeros((20, 40)))
    for column in (5, 15, 25):
        np.testing.assert_array_equal(out[:, column], plain[:, column])
    full = 0.18 * plain[0, 0] + 0.82 * viewer.colour_map(np.array(0.9)).astype(float)
    np.testing.assert_allclose(out[0, 35], full, atol=1)
    assert viewer.overlay(rgb, relevancy).shape == rgb.shape
    for bad in (np.zeros((2, 2, 2)), np.zeros((0, 4))):
        with pytest.raises(ConfigError, match="relevancy has shape"):
            viewer.overlay(rgb, bad)
    with pytest.raises(ConfigError, match="no_match < high"):
        viewer.overlay(rgb, relevancy, 0.5, 0.5)


# boxes and grasps


def test_box_corners_by_hand():
    turned = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # the box's x axis is the world's y
    corners = viewer.box_corners(Box(np.array([1.0, 2, 3]), turned, np.array([0.3, 0.2, 0.1])))
    np.testing.assert_allclose(corners[0], [1 + 0.2, 2 - 0.3, 3 - 0.1])
    np.testing.assert_allclose(corners[7], [1 - 0.2, 2 + 0.3, 3 + 0.1])
    assert len(np.unique(corners.round(9), axis=0)) == 8


def test_segments_project_by_hand_and_are_cut_in_front_of_the_camera():
    ends = viewer.project_segment(CAMERA, np.eye(4), np.array([[0.5, 0, 2], [0, -0.5, 1]]))
    np.testing.assert_allclose(ends, [[209.5, 119.5], [159.5, 19.5]])
    cut = viewer.project_segment(CAMERA, np.eye(4), np.array([[0.0, 0, -1], [0.01, 0, 1]]))
    share = (1 + viewer.NEAR_M) / 2
    np.testing.assert_allclose(cut, [[159.5 + 200 * 0.01 * share / viewer.NEAR_M, 119.5], [161.5, 119.5]])
    reverse = viewer.project_segment(CAMERA, np.eye(4), np.array([[0.01, 0, 1], [0.0, 0, -1]]))
    np.testing.assert_allclose(reverse, cut[::-1])
    assert viewer.project_segment(CAMERA, np.eye(4), np.array([[0.0, 0, -1], [0, 0, 0]])) is None
    assert viewer.project_segment(CAMERA, np.eye(4), np.array([[0.0, 0, np.nan], [0, 0, 1]])) is None


def test_gripper_lines_by_hand():
    T = np.eye(4)
    T[:3, :3] = np.diag([1.0, -1, -1])  # approach straight down
    T[:3, 3] = [1, 2, 3]
    lines = viewer.gripper_lines(T, width_m=0.08, finger_m=0.05)
    np.testing.assert_allclose(lines[0], [[0.96, 2, 3], [0.96, 2, 3.05]])
    np.testing.assert_allclose(lines[1], [[1.04, 2, 3], [1.04, 2, 3.05]])
    np.testing.assert_allclose(lines[2], [[0.96, 2, 3.05], [1.04, 2, 3.05]])
    np.testing.assert_allclose(lines[3], [[1, 2, 3.05], [1, 2, 3.10]])


def test_box_is_drawn_where_it_projects():
    black = np.zeros((240, 320, 3), np.uint8)
    out = viewer.draw_boxes(black, CAMERA, np.eye(4), [thing([0, 0, 1.1], prompt="", score=1)])
    pixels = changed(out)
    pixels = pixels[pixels[:, 1] > 90]  # below the label
    # front face at 1 m: +-0.1 m is +-20 pixels
    assert abs(pixels[:, 0].min() - 139.5) <= 1.5 and abs(pixels[:, 0].max() - 179.5) <= 1.5
    assert abs(pixels[:, 1].max() - 139.5) <= 1.5
    assert not out[112:116, 148:152].any()
    twice = viewer.draw_boxes(black, CAMERA, np.eye(4), [thing([0, 0, 1.1])], scale=2)
    assert twice.shape == (480, 640, 3) and not black.any()
    assert abs(changed(twice)[:, 1].max() - (140 * 2 - 0.5)) <= 3


def test_grasps_are_drawn_as_many_as_asked():
    grasp = np.eye(4)
    grasp[:3, 3] = [0, 0, 1]
    grasp[:3, :3] = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # approach z along the image's y
    aside = grasp.copy()
    aside[0, 3] = 0.3
    item = thing([0, 0, 1.0], half=0.001, prompt="", grasps=[Grasp(grasp), Grasp(aside)])
    black = np.zeros((240, 320, 3), np.uint8)
    without, one, two = (viewer.draw_boxes(black, CAMERA, np.eye(4), [item], grasps=n) for n in (0, 1, 3))
    assert not one[:, 190:].any() and two[:, 190:].any()
    columns = np.nonzero((one.min(axis=2) > 100) & (without.max(axis=2) == 0))[1]
    assert len(columns) >= 12
    assert abs(columns.min() - 151.5) <= 1.5 and abs(columns.max() - 167.5) <= 1.5  # 8 cm at 1 m: 16 pixels


@pytest.mark.parametrize(
    "centre", [[0, 0, -1.0], [5, 0, 1.0], [np.nan, 0, 1], [1e9, 0, 1e-3], [0, 0, 1e9]],
)
def test_boxes_out_of_sight_leave_the_image_alone_or_nearly(centre):
    rgb = np.full((240, 320, 3), 7, np.uint8)
    out = viewer.draw_boxes(rgb, CAMERA, np.eye(4), [thing(centre)])
    if centre != [0, 0, 1e9]:  # a far point, labelled
        np.testing.assert_array_equal(out, rgb)


def test_a_box_around_the_camera_many_boxes_and_none_are_drawn_without_error():
    rgb = np.zeros((240, 320, 3), np.uint8)
    T = look_at([1, 1, 1], [0, 0, 0])
    assert viewer.draw_boxes(rgb, CAMERA, T, [thing([1, 1, 1], half=2.0)]).any()
    crowd = [thing([0.01 * k, 0, 0], prompt="a rather long name for a mug " * 4) for k in range(40)]
    assert viewer.draw_boxes(rgb, CAMERA, T, crowd).shape == rgb.shape
    assert not viewer.draw_boxes(rgb, CAMERA, T, []).any()
    with pytest.raises(ConfigError, match="image is 10x20, the camera 320x240"):
        viewer.draw_boxes(np.zeros((20, 10, 3), np.uint8), CAMERA, T, [])


# the sheet


def test_sheet_holds_every_tile_at_its_place():
    colours = [(200, 10, 10), (10, 200, 10), (10, 10, 200), (200, 200, 10), (10, 200, 200)]
    tiles = [(f"tile {k}", np.full((60, 80, 3), colour, np.uint8)) for k, colour in enumerate(colours)]
    sheet = viewer.contact_sheet(tiles, columns=3, title="all", tile_width=160, footer="end")
    assert sheet.dtype == np.uint8 and tuple(sheet[0, 0]) == viewer.BACKGROUND
    boxes = []
    for colour in colours:
        v, u = np.nonzero((sheet == colour).all(axis=2))
        assert len(u) == 160 * 120 and np.ptp(u) == 159 and np.ptp(v) == 119
        boxes.append((u.min(), v.min()))
    u, v = np.array(boxes).T
    assert u[0] == u[3] and u[1] == u[4] and u[1] - u[0] == u[2] - u[1] > 160
    assert v[0] == v[1] == v[2] and v[3] == v[4] > v[0] + 120
    assert sheet.shape[1] - (u[2] + 160) == u[0]


def test_sheet_takes_other_shapes_grey_images_and_long_captions():
    tiles = [
        ("first\n" + "many words " * 30, np.zeros((60, 80, 3), np.uint8)),
        ("word " * 100, np.full((90, 30), 255, np.uint8)),
        ("", np.full((1, 1, 3), 99, np.uint8)),
    ]
    sheet = viewer.contact_sheet(tiles, relevancy_bar=(0.5, 1.0), title="t" * 300, footer="f" * 600)
    short = viewer.contact_sheet([(c[:5], i) for c, i in tiles], relevancy_bar=(0.5, 1.0), title="t", footer="f")
    assert sheet.shape[1] == short.shape[1]
    v, u = np.nonzero((sheet == 255).all(axis=2))
    assert np.ptp(v) == 239 and np.ptp(u) == 79  # 90 x 30 fitted into 240 high


def test_sheet_of_nothing_says_so_and_bad_tiles_are_named():
    assert (viewer.contact_sheet([]) != viewer.BACKGROUND).any()
    assert viewer.contact_sheet([], title="t", footer="f", relevancy_bar=(0, 1)).ndim == 3
    for bad in (np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ConfigError, match="tile 'bad' is"):
            viewer.contact_sheet([("bad", bad)])
    for options in ({"columns": 0}, {"tile_width": 5}):
        with pytest.raises(ConfigError, match="contact sheet of"):
            viewer.contact_sheet([], **options)
