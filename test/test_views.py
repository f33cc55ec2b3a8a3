"""Labels, clicks and views of a map whose every surface is known in closed form."""

import numpy as np
import pytest
from analytic_scene import BLUE, CAMERA, RED, SMALL, cast, frame_at, mapped, ring

from semfield_ros.answer import answer
from semfield_ros.config import EncoderConfig, QueryConfig
from semfield_ros.encoders import create
from semfield_ros.errors import QueryError
from semfield_ros.export import field_mesh, write_mesh
from semfield_ros.field.snapshot import TRUSTED_STEPS
from semfield_ros.mapping import Mapping
from semfield_ros.query.click import prompts_like, surface_point
from semfield_ros.query.labels import label_points
from semfield_ros.query.prompt import PromptEncoder
from semfield_ros.query.view import render_view

STUB = create(EncoderConfig(name="stub"))
TEXTS = PromptEncoder(STUB, QueryConfig())
RED_TOP, BLUE_TOP, TABLE = (-0.14, -0.02, 0.159), (0.15, 0.02, 0.099), (0.0, -0.3, 0.001)


@pytest.fixture(scope="module")
def trained():
    """Twice the steps after which places and names are believed: colours of the field take that long."""
    return mapped(8, steps=2 * TRUSTED_STEPS).snapshot()


@pytest.fixture(scope="module")
def empty():
    return Mapping(SMALL, STUB.dim, "cpu").snapshot()


def test_labels_name_what_is_there(trained):
    points = np.array([RED_TOP, BLUE_TOP, TABLE, (9, 9, 9), (np.nan, 0, 0)], np.float32)
    found = label_points(trained, TEXTS.encode(["blue", "red", "white"]), points)
    assert found.label.tolist() == [1, 0, 2, -1, -1] and found.seen.tolist() == [True, True, True, False, False]
    assert (found.confidence[:3] > 0.3).all() and not found.confidence[3:].any() and not found.scores[3:].any()
    assert (found.label[:3] == found.scores[:3].argmax(1)).all()


def test_labels_below_the_floor_are_none(trained):
    texts = TEXTS.encode(["blue"])
    assert (label_points(trained, texts, [RED_TOP, BLUE_TOP]).label == 0).all(), "the best of one class is that class"
    assert label_points(trained, texts, [RED_TOP, BLUE_TOP], least=0.5).label.tolist() == [-1, 0]


def test_labels_by_cosine_need_no_negatives(trained):
    texts = TEXTS.encode(["blue", "red"], [])
    assert label_points(trained, texts, [RED_TOP], score="cosine").label.tolist() == [1]
    with pytest.raises(QueryError, match="negative"):
        label_points(trained, texts, [RED_TOP])


def test_labels_of_nothing(empty):
    found = label_points(empty, TEXTS.encode(["red"]))
    assert found.label.shape == found.confidence.shape == (0,) and found.scores.shape == (0, 1)


def test_a_pixel_is_a_place():
    T = ring(7)[2]
    frame, (depth, what) = frame_at(T), cast(T)
    v, u = (int(n) for n in np.argwhere(what == 1)[5])
    ray = np.array([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, 1.0, 0]) * depth[v, u]
    expected = (T @ (ray + [0, 0, 0, 1]))[:3]
    assert np.allclose(surface_point(frame, u, v), expected, atol=1e-4)


def test_a_click_beside_a_hole_takes_its_rim_and_one_into_a_void_is_refused():
    frame = frame_at(ring(7)[2])
    frame.depth_m[20:60, 30:50] = 0
    point = surface_point(frame, 31, 30)
    beside = surface_point(frame, 29, 30)
    assert np.allclose(point, beside)
    with pytest.raises(QueryError, match="no depth"):
        surface_point(frame, 40, 40)
    for u, v in ((-1, 0), (0, -1), (80, 0), (0, 60), (2**31, 5)):
        with pytest.raises(QueryError, match="outside the image of 80x60"):
            surface_point(frame, u, v)


@pytest.mark.parametrize(("place", "low", "high"), [(RED_TOP, RED.low, RED.high), (BLUE_TOP, BLUE.low, BLUE.high)])
def test_a_click_finds_the_same_thing(trained, place, low, high):
    found = answer(
        trained, TEXTS, prompts_like(trained, np.array(place)), score="cosine", no_match=0.8, high=0.85, low=0.8
    )
    assert [p.label for p in found.prompts] == ["click"] and len(found.objects) == 1
    centre = found.objects[0].centroid
    assert (centre > np.array(low)).all() and (centre < np.array(high)).all()


@pytest.mark.parametrize("point", [(9.0, 9.0, 9.0), (np.nan, 0, 0), (0.0, 0.0), "here"])
def test_clicks_nowhere_are_query_errors(trained, point):
    with pytest.raises(QueryError, match=r"point|surface"):
        prompts_like(trained, point)


def test_answers_take_thresholds_and_limits_of_their_own(trained):
    both = answer(trained, TEXTS, ["red; blue"])
    assert len(both.objects) == 2
    assert len(answer(trained, TEXTS, ["red; blue"], max_objects=1).objects) == 1
    assert not answer(trained, TEXTS, ["red"], no_match=1.1).objects
    narrow, wide = (
        answer(trained, TEXTS, ["red"], no_match=0.0, high=0.95, low=low).objects[0] for low in (0.95, 0.05)
    )
    assert wide.n_points > narrow.n_points
    with pytest.raises(QueryError, match="max_objects"):
        answer(trained, TEXTS, ["red"], max_objects=0)
    with pytest.raises(QueryError, match="low"):
        answer(trained, TEXTS, ["red"], low=float("nan"))


def test_a_rendered_view_shows_what_is_where(trained):
    T = ring(7)[2]
    exact, what = cast(T)
    view = render_view(trained, CAMERA, T, texts=TEXTS.encode(["red", "blue"]), features=True)
    assert view.rgb.shape == (60, 80, 3) and view.features.shape == (60, 80, STUB.dim)
    assert view.depth_m.shape == view.accumulation.shape == (60, 80) and view.relevancy.shape == (60, 80, 2)
    both = (view.depth_m > 0) & (exact > 0)
    assert both.mean() > 0.8 and np.median(np.abs(view.depth_m - exact)[both]) < 0.02
    for prompt, label in ((0, 1), (1, 2)):
        inside = (what == label) & (view.depth_m > 0)
        assert inside.sum() > 50 and np.median(view.relevancy[inside, prompt]) > 0.7
        assert np.median(view.relevancy[(what == 0) & (view.depth_m > 0), prompt]) < 0.3
    assert not view.relevancy[view.depth_m == 0].any()
    red = view.rgb[(what == 1) & (view.depth_m > 0)].astype(int)
    assert np.median(red[:, 0] - red[:, 2]) > 80


def test_unusable_views_are_query_errors(trained, empty):
    with pytest.raises(QueryError, match="feed frames"):
        render_view(empty, CAMERA, np.eye(4))
    with pytest.raises(QueryError, match="pixels"):
        render_view(trained, CAMERA.resized(100_000, 75_000), np.eye(4))


def test_the_mesh_lies_on_the_blocks_faces_outwards_and_has_their_colours(trained, tmp_path):
    import trimesh

    vertices, faces, rgb = field_mesh(trained, 0.01)
    path = write_mesh(tmp_path / "mesh.ply", vertices, faces, rgb, comments=["frame map"])
    mesh = trimesh.load(path, process=False)
    assert len(mesh.vertices) == len(vertices) and len(mesh.faces) == len(faces) > 500
    assert np.array_equal(np.asarray(mesh.visual.vertex_colors)[:, :3], rgb)
    # the top of the red block is a plane at .16 m, red, facing up
    low, high = np.array(RED.low) + 0.03, np.array(RED.high) - 0.03
    centres = mesh.triangles_center
    top = ((centres[:, :2] > low[:2]) & (centres[:, :2] < high[:2])).all(1) & (abs(centres[:, 2] - 0.16) < 0.04)
    assert top.sum() > 50 and abs(np.median(centres[top, 2]) - 0.16) < 0.008
    assert np.median(mesh.face_normals[top, 2]) > 0.9
    colours = rgb[faces[top].reshape(-1)].astype(int)
    assert np.median(colours[:, 0] - colours[:, 2]) > 80


def test_unusable_meshes_are_errors(trained, empty):
    with pytest.raises(QueryError, match="feed frames"):
        field_mesh(empty)
    with pytest.raises(QueryError, match="coarser"):
        field_mesh(trained, 1e-4)
    for resolution in (0.0, -1.0, np.nan):
        with pytest.raises(QueryError, match="allowed"):
            field_mesh(trained, resolution)
