"""Instances of the scene from masks of views: learnt, named, kept over time, edited. Two blocks on a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import BLUE, CAMERA, RED, SMALL, cast, frame_at, mapped_frames, ring

from semfield_ros import checkpoint
from semfield_ros.config import EncoderConfig
from semfield_ros.encoders import create
from semfield_ros.engine import Engine
from semfield_ros.errors import QueryError
from semfield_ros.evaluation.panoptic import panoptic_quality
from semfield_ros.field.heads import Head, HeadConfig
from semfield_ros.field.instances import FIRST, FIRST_SLOTS, SLOTS, Slots, grow
from semfield_ros.frame import Frame, Segments
from semfield_ros.geometry import transform_points
from semfield_ros.mapping import Mapping
from semfield_ros.memory.features import FeatureShape
from semfield_ros.objects.editing import EditedScene
from semfield_ros.query.instances import InstanceIds, cluster_centres, head_values
from semfield_ros.query.pieces import joined, majority, matched, pieces
from semfield_ros.query.prompt import PromptEncoder

STEPS = 220


def masked(T: np.ndarray, number: int, as_segments: bool = False) -> Frame:
    """A frame whose masks are right and whose ids are not those of the frame before."""
    frame = frame_at(T, 0.1 * number)
    _, what = cast(T)
    ids = np.random.default_rng(number).permutation(np.arange(1, 6))[:2]
    instance = np.where(what > 0, ids[np.maximum(what, 1) - 1], 0).astype(np.int32)
    if as_segments:
        return replace(frame, segments=Segments(instance, {int(i): "block" for i in ids}, {int(ids[0]): 0.9}))
    return replace(frame, instance=instance)


def taught(kind: str, steps: int = STEPS, as_segments: bool = False, frames: int = 16) -> Mapping:
    config = replace(SMALL, heads=replace(SMALL.heads, instances=kind, label_rays=512))
    return mapped_frames([masked(T, number, as_segments) for number, T in enumerate(ring(frames))], config, steps)


@pytest.fixture(scope="module", params=["slots", "embedding"])
def mapping(request: pytest.FixtureRequest) -> Mapping:
    return taught(request.param)


@pytest.fixture(scope="module")
def scene(mapping: Mapping) -> EditedScene:
    return EditedScene(InstanceIds().update(mapping.snapshot()))


def inside(points: np.ndarray, block, margin: float = 0.012) -> np.ndarray:
    low, high = np.array(block.low) - margin, np.array(block.high) + margin
    return ((points > low) & (points < high)).all(1)


def id_of(scene: EditedScene, block) -> int:
    """The commonest id within a block."""
    cloud = scene.snapshot.cloud.points
    ids = scene.instances.ids[inside(cloud, block, 0.0) & (cloud[:, 2] > 0.03)]
    return int(np.bincount(ids[ids > 0]).argmax())


def test_ids_mean_the_same_in_every_view(mapping, scene):
    """PQ_scene of views from between the keyframes."""
    found, true = [], []
    for T in ring(7, radius_m=0.65):
        ids, depth = scene.instances.view(CAMERA, T)
        exact, what = cast(T)
        found.append(ids)
        true.append(np.where(exact > 0, what, -1))
        assert np.median(np.abs(depth - exact)[(exact > 0) & (depth > 0)]) < 0.02
    assert panoptic_quality(None, np.stack(found), None, np.stack(true)).pq > 0.75
    ids, count = np.unique(scene.instances.ids, return_counts=True)
    assert (count > 50).sum() == 3 and ids[0] == 0


def test_points_are_named_like_views(scene):
    points = np.array([[-0.14, -0.02, 0.16], [0.15, 0.02, 0.1], [0.0, -0.25, 0.0], [0.5, 0.5, 0.6], [np.nan, 0, 0]])
    ids = scene.instances.at(points)
    assert ids[:3].tolist() == [id_of(scene, RED), id_of(scene, BLUE), 0]
    assert ids[3:].tolist() == [-1, -1]
    parts = np.concatenate([scene.instances.at(points[i : i + 1]) for i in range(5)])
    np.testing.assert_array_equal(parts, ids)


def test_instances_never_bend_the_surface(mapping):
    """d(loss) / d(geometry) = 0: the heads read another grid, at points that are data."""
    field, replay = mapping.field, mapping.replay
    objective = mapping.trainer.objectives[next(n for n in mapping.trainer.objectives if n.startswith("instance"))]
    for p in field.parameters():
        p.grad = None
    losses, samples = objective.losses(field, replay, mapping.steps, torch.Generator().manual_seed(0))
    torch.stack(list(losses.values())).sum().backward()
    assert samples > 0 and all(torch.isfinite(v) for v in losses.values())
    assert field.grid("geometry").table.grad is None
    assert all(p.grad is None for p in field.sdf.parameters())
    assert float(field.grid("feature").table.grad.abs().sum()) > 0
    for p in field.parameters():
        p.grad = None


def test_ids_last_while_the_field_learns_on(mapping, scene):
    ids = InstanceIds()
    first = ids.update(mapping.snapshot())
    for _ in range(30):
        mapping.train_step()
    second = ids.update(mapping.snapshot())
    same = (first.ids == second.ids).mean()
    assert same > 0.97
    for block in (RED, BLUE):
        assert id_of(EditedScene(first), block) == id_of(EditedScene(second), block)


def test_a_saved_map_knows_its_instances(mapping, tmp_path):
    path = checkpoint.save(tmp_path / "map.semfield", mapping, create(EncoderConfig(name="stub")))
    loaded = checkpoint.load(path, mapping.config, create(EncoderConfig(name="stub")), "cpu")
    points = mapping.snapshot().cloud.points[:200]
    for m in (mapping, loaded):
        assert m.snapshot().field is not None
    np.testing.assert_allclose(
        head_values(loaded.snapshot().field, points), head_values(mapping.snapshot().field, points), atol=1e-6
    )
    loaded.train_step()
    assert loaded.steps == mapping.steps + 1


def test_deleting_leaves_a_hole_that_says_so(scene):
    red, blue = id_of(scene, RED), id_of(scene, BLUE)
    without = scene.delete(red)
    cloud, rows, ids = without.cloud()
    assert len(cloud) < len(scene.snapshot.cloud) and red not in ids and blue in ids
    np.testing.assert_array_equal(cloud.points, scene.snapshot.cloud.points[rows])
    T = ring(8)[4]
    before, after = scene.view(CAMERA, T), without.view(CAMERA, T)
    covered = before.ids == red
    assert covered.sum() > 50 and not (after.ids == red).any()
    gone = covered & (after.depth_m > 0)
    assert (after.depth_m[gone] > before.depth_m[gone]).mean() > 0.9
    assert ((after.ids == blue) == (before.ids == blue))[~covered].mean() > 0.99
    assert without.source_of(np.array([[-0.14, -0.02, 0.16]]))[1].tolist() == [-1]
    with pytest.raises(QueryError, match="taken out"):
        without.move(red, np.eye(4))
    assert red in np.unique(scene.view(CAMERA, T).ids), "the scene it was made from is as it was"


def test_extracting_leaves_nothing_else(scene):
    blue = id_of(scene, BLUE)
    alone = scene.extract(blue)
    assert set(alone.cloud()[2].tolist()) == {blue}
    view = alone.view(CAMERA, ring(8)[0])
    assert set(np.unique(view.ids)) == {-1, blue}
    assert (view.depth_m[view.ids == -1] == 0).all()


def test_moving_takes_cloud_scores_and_views_along(scene):
    blue = id_of(scene, BLUE)
    T_move = np.eye(4)
    T_move[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    T_move[:3, 3] = [-0.05, -0.3, 0.0]
    moved = scene.move(blue, T_move)
    cloud, rows, ids = moved.cloud()
    mine = ids == blue
    np.testing.assert_allclose(
        cloud.points[mine], transform_points(T_move, scene.snapshot.cloud.points[rows[mine]]), atol=1e-6
    )
    top_old = np.array([[0.15, 0.02, 0.1]])
    top_new = transform_points(T_move, top_old)
    points = np.concatenate([top_old, top_new])
    at, ids = moved.source_of(points)
    assert ids.tolist() == [-1, blue]
    np.testing.assert_allclose(at[1], top_old[0], atol=1e-6)
    texts = PromptEncoder(create(EncoderConfig(name="stub")), SMALL.query).encode(["blue", "red"])
    scores = moved.score(texts, points)
    assert scores.seen.tolist() == [False, True]
    assert scores.cosine[1].argmax() == 0 and not scores.cosine[0].any()
    asked = moved.map()
    assert (np.diff(asked.keys) > 0).all() and asked.find(top_new.astype(np.float32))[0] >= 0
    T = ring(8)[6]
    old, new = scene.view(CAMERA, T), moved.view(CAMERA, T)
    assert (old.ids == blue).sum() > 30 and (new.ids == blue).sum() > 30
    assert ((old.ids == blue) & (new.ids == blue)).sum() < 0.5 * (new.ids == blue).sum()
    seen = new.rgb[new.ids == blue].astype(int)
    assert (seen[:, 2] > seen[:, 0]).mean() > 0.8, "it is still blue"


def test_moving_back_is_no_move(scene):
    red = id_of(scene, RED)
    T = np.eye(4)
    T[:3, 3] = [0.1, 0.2, 0.0]
    there = scene.move(red, T).move(red, np.linalg.inv(T))
    cloud, rows, _ = there.cloud()
    np.testing.assert_allclose(cloud.points, scene.snapshot.cloud.points[rows], atol=1e-6)
    assert sorted(rows) == list(range(len(scene.snapshot.cloud)))


def test_duplicating_gives_a_second_one(scene):
    red = id_of(scene, RED)
    T = np.eye(4)
    T[:3, 3] = [0.1, -0.3, 0.0]
    two, copy = scene.duplicate(red, T)
    _, _, ids = two.cloud()
    assert copy not in scene.instances.ids and (ids == copy).sum() == (ids == red).sum()
    again, third = two.duplicate(copy, T)
    assert third not in (copy, red) and len(again.placed) == 2
    assert copy not in two.delete(copy).cloud()[2] and red in two.delete(copy).cloud()[2]


def test_bad_edits_are_refused(scene):
    with pytest.raises(QueryError, match="there is no instance 99"):
        scene.delete(99)
    with pytest.raises(QueryError, match="rigid"):
        scene.move(id_of(scene, RED), np.diag([2.0, 2.0, 2.0, 1.0]))
    with pytest.raises(QueryError, match="no instance 0"):
        scene.instances.rows(0)


def test_maps_without_instances_say_so():
    mapping = taught("off", steps=2, frames=2)
    with pytest.raises(QueryError, match=r"heads\.instances"):
        InstanceIds().update(mapping.snapshot())
    with pytest.raises(QueryError, match="not learnt instances"):
        InstanceIds().update(taught("slots", steps=0, frames=2).snapshot())


def test_machine_masks_teach_as_well():
    """`Frame.segments`, whose 0 means little."""
    snapshot = taught("slots", steps=150, as_segments=True).snapshot()
    scene = EditedScene(InstanceIds().update(snapshot))
    assert id_of(scene, RED) != id_of(scene, BLUE)


def test_slots_grow_with_what_there_is():
    """40 masks in one image do not fit 32 slots; what the head knew stays."""
    head = Head(HeadConfig(SLOTS, FIRST_SLOTS, late_linear=True), 4, 16)
    x = torch.randn(9, 17)
    weight, before = head.last.weight, head.finish(x).detach()
    grow(head, 50)
    assert head.last.weight is weight and head.config.out_dim == 50
    torch.testing.assert_close(head.finish(x)[:, :FIRST_SLOTS], before)
    mapping = taught("slots", steps=FIRST, frames=3)
    for slot in range(3):
        entries = mapping.replay.labels.instance[slot]
        entries[:] = torch.arange(len(entries)) % 40 + 1
    for _ in range(4):
        mapping.train_step()
    slots = mapping.trainer.objectives[SLOTS]
    assert isinstance(slots, Slots)
    assert mapping.field.head(SLOTS).config.out_dim == len(slots.confirmed) > FIRST_SLOTS
    assert mapping.snapshot().field.head(SLOTS).config.out_dim > FIRST_SLOTS


def test_pieces_that_are_apart_are_two():
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(300, 3)) * 0.02
    points = np.concatenate([ball, ball + [0.5, 0, 0], ball + [0, 0.5, 0], [[2.0, 2, 2]]]).astype(np.float32)
    label = np.array([1] * 600 + [2] * 300 + [1])
    found = pieces(points, label, apart_m=0.1, min_points=5)
    groups = [np.unique(found[part]) for part in (slice(0, 300), slice(300, 600), slice(600, 900))]
    assert all(len(g) == 1 and g[0] > 0 for g in groups) and len({int(g[0]) for g in groups}) == 3
    assert found[900] == 0, "a stray is no instance"
    assert not pieces(points, np.zeros(901, int), apart_m=0.1, min_points=5).any()


def test_pieces_of_blocks_are_joined_where_they_touch():
    """A bar across the border x = 0 is one thing; what lies beside it on the other side alone is another."""
    x = np.arange(-10, 10) * 0.02 + 0.01
    bar = np.stack(np.meshgrid(x, np.arange(5) * 0.02, [0.0], indexing="ij"), -1).reshape(-1, 3)
    other = bar[bar[:, 0] > 0] + [0, 0.5, 0]
    points = np.concatenate([bar, other]).astype(np.float32)
    block = (points[:, 0] > 0).astype(int)
    piece = np.where(block == 0, 1, 2)
    piece[len(bar) :] = 3
    found = joined(points, piece, block, 0.036)
    assert len(np.unique(found[: len(bar)])) == 1 and len(np.unique(found)) == 2 and found.min() > 0
    apart = joined(points, np.where(points[:, 1] > 0.3, 0, piece), np.zeros(len(points), int), 0.036)
    assert len(np.unique(apart[: len(bar)])) == 2 and not apart[len(bar) :].any(), "within a block the field decides"


def test_an_engine_names_its_instances_once_a_snapshot():
    config = replace(SMALL, heads=replace(SMALL.heads, instances="slots", label_rays=256))
    with Engine(config, create(EncoderConfig(name="stub"))) as engine:
        engine.pause()
        for number, T in enumerate(ring(4)):
            engine.submit(masked(T, number), block=True)
        engine.drain()
        engine.train(steps=FIRST + 20)
        engine.snapshot(fresh=True)
        found = engine.instances()
        assert engine.instances() is found and len(found.ids) == len(engine.snapshot().cloud)
        engine.reset()
        with pytest.raises(QueryError):
            engine.instances()


def test_ids_go_to_the_largest_overlap():
    before = np.array([7, 7, 7, 7, 9, 9, 9, 9, 0, 0])
    piece = np.array([1, 1, 1, 2, 2, 2, 2, 0, 3, 3])
    assert matched(piece, before, 20).tolist() == [0, 7, 9, 20]
    split = matched(np.array([1, 1, 2, 2, 2, 2, 0, 0, 0, 0]), before, 20)
    assert split[1] == 7 or split[2] == 7
    assert matched(np.zeros(10, int), before, 20).tolist() == [0]


def test_an_instance_that_was_lost_gets_its_id_back():
    ids, keys = InstanceIds(), np.arange(10)
    first = ids.named(keys, np.array([1] * 5 + [2] * 5))
    assert not ids.named(keys, np.array([1] * 5 + [0] * 5))[5:].any()
    again = ids.named(np.arange(3, 13), np.array([1] * 2 + [2] * 5 + [0] * 3))
    assert again[:2].tolist() == [first[0]] * 2 and again[2] == first[9]


def test_clusters_of_embeddings():
    rng = np.random.default_rng(1)
    centres = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2]])
    which = rng.integers(0, 4, 2000)
    x = (centres[which] + rng.normal(size=(2000, 3)) * 0.05).astype(np.float32)
    for clustering in ("hdbscan", "mean_shift"):
        found = cluster_centres(x, clustering=clustering)
        assert len(found) == 4 and not found[0].any()
        nearest = np.linalg.norm(found[1:, None] - centres[None, 1:], axis=2).argmin(1)
        assert sorted(nearest) == [0, 1, 2]
    assert len(cluster_centres(np.zeros((50, 3), np.float32))) == 1
    assert len(cluster_centres(np.zeros((0, 3), np.float32))) == 1
    with pytest.raises(QueryError, match="mean_shift"):
        cluster_centres(x, clustering="k-means")


def test_majority_of_classes():
    assert majority(np.array([1, 1, 1, 2, 2, 0, 3]), np.array([4, 4, 5, 6, 0, 9, 0])) == {1: 4, 2: 6}


def test_segments_carry_classes_further():
    """Labels on a corner of the red block only; its segment says that the rest is the same."""
    found = {}
    for weight in (0.0, 1.0):
        heads = replace(SMALL.heads, semantic_classes=2, semantic_smoothness=0.0, segment_weight=weight)
        mapping = Mapping(replace(SMALL, heads=heads), 8, "cpu")
        for number, T in enumerate(ring(8)):
            frame = masked(T, number, as_segments=True)
            _, what = cast(T)
            corner = np.arange(what.shape[1])[None] < np.median(np.nonzero(what == 1)[1]) - 3
            labels = np.where((what == 1) & corner, 2, np.where(what == 0, 1, 0))
            mapping.add_keyframe(replace(frame, semantic=labels.astype(np.int32)), FeatureShape(8, 4, 4))
        for _ in range(150):
            mapping.train_step()
        assert ("segments" in mapping.learnt) == (weight > 0)
        field = mapping.snapshot().field
        points = mapping.snapshot().cloud.points
        points = points[inside(points, BLUE, -0.005) | (inside(points, BLUE, 0.012) & (points[:, 2] > 0.03))]
        head = field.head("semantic")
        with torch.no_grad():
            x = torch.from_numpy(points)
            log_p = head.finish(head.hidden(field.encode(head.config.grid, x), None)).log_softmax(-1)
        found[weight] = float(-(log_p.exp() * log_p).sum(-1).mean())
    assert found[1.0] < found[0.0], "an unlabelled segment makes up its mind"
