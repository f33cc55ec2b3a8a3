"""From views to instances that answer words: incidence, best views, crops, and the whole way through the engine."""

from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import BLUE, RED, SMALL, cast, frame_at, ring
from scipy import sparse

from semfield_ros.config import EncoderConfig, GraspConfig, GripperConfig, MaskConfig, ObjectConfig
from semfield_ros.encoders import create
from semfield_ros.encoders.boxes import encode_boxes
from semfield_ros.encoders.crops import crop_features, grown_boxes
from semfield_ros.engine import Engine
from semfield_ros.errors import ConfigError, QueryError
from semfield_ros.frame import Segments
from semfield_ros.geometry import project
from semfield_ros.memory.keyframes import Keyframe
from semfield_ros.memory.mask_store import mask_view
from semfield_ros.objects import with_grasps
from semfield_ros.objects.instance_objects import instance_objects
from semfield_ros.objects.mask_instances import ask, find_instances
from semfield_ros.objects.mask_views import mask_incidence, top_views, visible_boxes
from semfield_ros.query.prompt import PromptEncoder


def views_of(poses):
    out = []
    for number, T in enumerate(poses):
        frame = frame_at(T, float(number))
        out.append(mask_view(Keyframe(number, number, float(number), frame.camera, T), frame, cast(T)[1]))
    return out


def surface(block, n=400, seed=0):
    """Points on the faces of a block."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(block.low, block.high, (n, 3))
    face = rng.integers(0, 5, n)
    for axis in range(3):
        points[face == axis, axis] = np.array(block.high)[axis]
        points[face == axis + 3, axis] = np.array(block.low)[axis]
    return points


def test_incidence_agrees_with_projecting_point_by_point():
    poses = ring(5)
    points = np.concatenate([surface(RED), surface(BLUE)])
    views = views_of(poses)
    got = mask_incidence(views, points, tolerance_m=0.01, tolerance_relative=0.0, border_px=0)
    assert got.visibility.shape == (5, 800)
    dense, sight = got.incidence.toarray(), got.visibility.toarray()
    for t, T in enumerate(poses):
        depth, what = cast(T)
        u, v, z = project(views[t].camera, T, points)
        for p in range(0, 800, 7):
            column, row = round(u[p]), round(v[p])
            inside = 0 <= column < 80 and 0 <= row < 60
            seen = bool(inside and abs(round(depth[row, column], 3) - z[p]) <= 0.01)
            assert sight[t, p] == seen
            for mask in np.flatnonzero(got.view == t):
                assert dense[mask, p] == (seen and what[row, column] == got.number[mask] + 1)
    assert (dense.sum(0) <= sight.sum(0)).all()


def test_incidence_of_nothing():
    got = mask_incidence([], np.zeros((7, 3)))
    assert (got.incidence.shape, got.visibility.shape, len(got.view)) == ((0, 7), (0, 7), 0)
    got = mask_incidence(views_of(ring(2)), np.zeros((0, 3)))
    assert (got.incidence.shape, got.visibility.shape) == ((0, 0), (2, 0))


def test_visible_pixels_and_boxes_are_counted_by_hand():
    T = ring(4)[0]
    view = views_of([T])[0]
    depth, _ = cast(T)
    # three points: two in one pixel, one 25 cm behind what the camera sees
    directions = [(30, 20), (30.3, 20.2), (50, 40), (10, 50)]
    offsets = [0, 0, 0.19, 0.25]
    camera = view.camera
    points = []
    for (u, v), offset in zip(directions, offsets):
        z = depth[round(v), round(u)] + offset
        local = np.array([(u - camera.cx) / camera.fx * z, (v - camera.cy) / camera.fy * z, z])
        points.append(T[:3, :3] @ local + T[:3, 3])
    instances = sparse.csr_matrix(np.array([[1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 0, 0]], bool))
    got = visible_boxes(instances, np.array(points), [view], tolerance_m=0.2)
    assert got.pixels[:, 0].tolist() == [2, 0, 1]
    assert got.boxes[0, 0].tolist() == [30, 20, 51, 41]
    assert got.boxes[1, 0].tolist() == [0, 0, 0, 0]
    assert got.boxes[2, 0].tolist() == [30, 20, 31, 21]
    with pytest.raises(QueryError, match="expected"):
        visible_boxes(instances, np.zeros((3, 3)), [view])


def test_top_views_by_pixel_count():
    pixels = np.array([[5, 9, 0, 9], [0, 0, 0, 0], [1, 2, 3, 4]])
    assert top_views(pixels, 3).tolist() == [[1, 3, 0], [-1, -1, -1], [3, 2, 1]]
    assert top_views(pixels, 9).shape == (3, 4)
    assert top_views(np.zeros((2, 0), int), 5).shape == (2, 0)
    assert top_views(np.zeros((0, 4), int), 5).shape == (0, 4)


def test_boxes_grow_by_a_tenth_a_level():
    assert grown_boxes(np.array([100, 100, 200, 150]), 640, 480).tolist() == [
        [100, 100, 200, 150], [90, 95, 210, 155], [80, 90, 220, 160],
    ]  # fmt: skip
    # cut off at the image's edge
    assert grown_boxes(np.array([0, 0, 50, 480]), 640, 480)[2].tolist() == [0, 0, 60, 480]
    # a crop of a pixel is widened, inside the image
    for box in ([3, 3, 4, 4], [0, 0, 1, 1], [639, 479, 640, 480]):
        left, top, right, bottom = grown_boxes(np.array(box), 640, 480, levels=1)[0]
        assert right - left == bottom - top == 8
        assert left >= 0 and top >= 0 and right <= 640 and bottom <= 480
        assert left <= box[0] and right >= box[2]
    with pytest.raises(ConfigError, match="levels are 0"):
        grown_boxes(np.array([0, 0, 9, 9]), 640, 480, levels=0)
    with pytest.raises(ConfigError, match="shows nothing"):
        grown_boxes(np.array([700, 0, 720, 9]), 640, 480)


@pytest.mark.parametrize("name", ["stub", "tiny"])
def test_crop_features_are_the_mean_of_unit_features(name):
    encoder = create(EncoderConfig(name=name))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (60, 80, 3)).astype(np.uint8) for _ in range(2)]
    boxes = np.array([[10, 10, 40, 40], [30, 20, 70, 50]], np.float32)
    looks = [(lambda: images[0], np.array([0, 2]), boxes), (lambda: images[1], np.array([2]), boxes[:1])]
    got = crop_features(encoder, 3, looks)
    by_hand = [
        np.concatenate([encode_boxes(encoder, images[0], grown_boxes(boxes[1], 80, 60))])
        , encode_boxes(encoder, images[1], grown_boxes(boxes[0], 80, 60)),
    ]  # fmt: skip
    expected = np.concatenate(by_hand).mean(0)
    assert got.shape == (3, encoder.dim)
    assert got[2] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)
    assert np.linalg.norm(got[0]) == pytest.approx(1, abs=1e-5)
    assert not got[1].any()  # never seen: nothing is known


def test_openclip_has_an_image_tower_for_crops():
    pytest.importorskip("open_clip")
    encoder = create(EncoderConfig(name="openclip", model="ViT-B-32", pretrained="", device="cpu"))
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    got = crop_features(encoder, 1, [(lambda: image, np.array([0]), np.array([[5, 5, 60, 50]]))], levels=2)
    assert got.shape == (1, encoder.dim)
    assert np.linalg.norm(got[0]) == pytest.approx(1, abs=1e-4)


def stream(n: int = 10, shuffled: bool = True, named: bool = False):
    """Frames of the analytic scene whose instance ids (of the table, too) mean nothing beyond their view."""
    rng = np.random.default_rng(0)
    for number, T in enumerate(ring(n)):
        what = cast(T)[1] + 1
        ids = np.concatenate([[0], rng.permutation(9)[:3] + 1]) if shuffled else np.arange(4)
        image = ids[what].astype(np.int32)
        frame = frame_at(T, number / 10)
        if named:
            names = {int(i): n for i, n in zip(ids[1:], ("white table", "red block", "blue block"))}
            yield replace(frame, segments=Segments(image, names))
        else:
            yield replace(frame, instance=image)


def snapshot_of(frames, **masks):
    with Engine(replace(SMALL, encoder=EncoderConfig(name="stub"), masks=MaskConfig(**masks))) as engine:
        engine.pause()
        for frame in frames:
            engine.submit(frame, block=True)
        engine.drain()
        return engine.snapshot(fresh=True), engine.encoder, engine.prompts


def test_masks_of_a_stream_become_instances_that_answer_words():
    snapshot, encoder, texts = snapshot_of(stream())
    found = find_instances(snapshot, encoder)
    assert len(snapshot.masks) >= 6
    assert len(found) == 3
    points = found.cloud.points
    for word, block in (("red", RED), ("blue", BLUE)):
        best = int(ask(found, texts, ["red", "blue", "white"])[:, ["red", "blue"].index(word)].argmax())
        mine = points[found.rows(best)]
        inside = ((mine >= np.array(block.low) - 0.03) & (mine <= np.array(block.high) + 0.03)).all(1)
        assert inside.mean() > 0.97
        # and it is all of the block's surface that was seen
        every = ((points >= np.array(block.low)) & (points <= np.array(block.high) - 0.02)).all(1)
        every &= points[:, 2] > 0.03
        assert np.isin(np.flatnonzero(every), found.rows(best)).mean() > 0.9
    assert found.best_views.shape[1] == 5
    assert (found.best_views < len(snapshot.masks)).all()


def test_synonyms_take_the_best_and_bad_questions_are_refused():
    snapshot, encoder, texts = snapshot_of(stream(6))
    found = find_instances(snapshot, encoder)
    both, red, blue = (ask(found, texts, [p])[:, 0] for p in ("red; blue", "red", "blue"))
    assert both == pytest.approx(np.maximum(red, blue))
    with pytest.raises(QueryError, match="no features"):
        ask(find_instances(snapshot), texts, ["red"])
    with pytest.raises(QueryError, match="template"):
        ask(found, texts, ["red"], template="a thing")


def test_names_of_masks_describe_where_there_is_no_image_tower():
    snapshot, encoder, texts = snapshot_of(stream(6, named=True))
    found = find_instances(snapshot, encoder, by_name=True)
    assert set(found.names) == {"white table", "red block", "blue block"}
    best = int(ask(found, texts, ["red"], template="{}")[:, 0].argmax())
    assert found.names[best] == "red block"


def test_no_masks_and_no_budget_give_no_instances():
    frames = [replace(frame, instance=None) for frame in stream(3)]
    snapshot, encoder, texts = snapshot_of(frames)
    assert snapshot.masks == ()
    found = find_instances(snapshot, encoder)
    assert len(found) == 0
    assert ask(found, texts, ["red", "blue"]).shape == (0, 2)
    assert snapshot_of(stream(3), store_mb=0)[0].masks == ()


def test_saved_maps_and_corrected_poses_keep_their_masks(tmp_path):
    config = replace(SMALL, encoder=EncoderConfig(name="stub"))
    frames = list(stream(6))
    with Engine(config) as engine:
        engine.pause()
        for frame in frames:
            engine.submit(frame, block=True)
        engine.drain()
        before = engine.snapshot()
        path = engine.save(tmp_path / "map")
        engine.correct_poses("", [frames[2].stamp_s], [ring(6, height_m=0.6)[2]])
        engine.drain()
        moved = [v.T_world_camera for v in engine.snapshot().masks if v.stamp_s == frames[2].stamp_s]
        assert np.allclose(moved, ring(6, height_m=0.6)[2])
    with Engine(config) as engine:
        engine.pause()
        engine.load(path)
        after = engine.snapshot()
    assert [v.keyframe for v in after.masks] == [v.keyframe for v in before.masks]
    texts = PromptEncoder(engine.encoder, config.query)
    found = find_instances(after, engine.encoder)
    assert len(found) == len(find_instances(before))
    assert ask(found, texts, ["red"]).max() > 0.5


def test_masks_are_made_where_frames_bring_none():
    pytest.importorskip("skimage")
    frames = [replace(frame, instance=None) for frame in stream(4)]
    snapshot, _, _ = snapshot_of(frames, segmenter="felzenszwalb")
    assert len(snapshot.masks) >= 2
    assert min(map(len, snapshot.masks)) >= 2  # a block and the table, at least
    # frames that bring masks keep their own
    snapshot, _, _ = snapshot_of(stream(2), segmenter="felzenszwalb")
    assert max(map(len, snapshot.masks)) <= 3
    with pytest.raises(ConfigError, match="nonsense"):
        Engine(replace(SMALL, encoder=EncoderConfig(name="stub"), masks=MaskConfig(segmenter="nonsense")))


def test_blocks_of_space_give_each_view_once(tmp_path):
    memory = replace(SMALL.memory, block_m=0.4, max_active_blocks=2)
    config = replace(SMALL, encoder=EncoderConfig(name="stub"), memory=memory)
    with Engine(config) as engine:
        engine.pause()
        for frame in stream(8):
            engine.submit(frame, block=True)
        engine.drain()
        snapshot = engine.snapshot()
        assert len(snapshot.parts) > 2  # some of them sleep, on disk
        stamps = [view.stamp_s for view in snapshot.masks]
        assert stamps == sorted(set(stamps))
        assert len(stamps) >= 6
        found = find_instances(snapshot, engine.encoder)
        points = found.cloud.points
        best = int(ask(found, engine.prompts, ["red", "white"])[:, 0].argmax())
        middle = np.median(points[found.rows(best)], axis=0)
        assert ((middle > np.array(RED.low) - 0.03) & (middle < np.array(RED.high) + 0.03)).all()


def test_instances_are_objects_with_boxes_and_grasps():
    snapshot, encoder, texts = snapshot_of(stream())
    found = find_instances(snapshot, encoder)
    score = ask(found, texts, ["blue"])[:, 0]
    gripper = GripperConfig(max_width_m=0.25)
    objects = instance_objects(found, score, prompt="blue", least=float(np.sort(score)[-2]))
    objects = with_grasps(
        objects, found.cloud, objects_config=ObjectConfig(), gripper=gripper, config=GraspConfig()
    )
    assert [o.score for o in objects] == sorted((float(s) for s in score if s >= np.sort(score)[-2]), reverse=True)
    best = objects[0]
    low, high = np.array(BLUE.low), np.array(BLUE.high)
    assert np.abs(best.box.centre - (low + high) / 2).max() < 0.04
    assert len(best.grasps) > 0
    assert 0 < best.confidence < 1
    nothing = instance_objects(found, np.full(len(found), np.nan), prompt="x")
    assert nothing == []
    with pytest.raises(QueryError, match="expected one each"):
        instance_objects(found, np.zeros(99), prompt="x")
