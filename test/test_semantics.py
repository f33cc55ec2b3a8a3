"""Closed-set classes: losses by hand, and a scene known in closed form learnt from few, wrong and single labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from analytic_scene import CAMERA, SMALL, STUB_DIM, cast, frame_at, mapped_frames, ring

from semfield_ros.config import EncoderConfig, HeadsConfig
from semfield_ros.encoders import create
from semfield_ros.engine import Engine
from semfield_ros.errors import QueryError
from semfield_ros.field.heads import Head, HeadConfig
from semfield_ros.field.semantics import (
    HELD_OUT,
    Labels,
    apart,
    held_out,
    label_loss,
    log_probabilities,
    wrong_share,
)
from semfield_ros.geometry import back_project
from semfield_ros.mapping import Mapping
from semfield_ros.query.semantics import entropy_of, semantic_view, semantics_at

TABLE, ON_RED, ON_BLUE = (0.0, -0.3, 0.0), (-0.14, -0.02, 0.16), (0.15, 0.02, 0.10)
TRUTH = [1, 2, 3]
"""Classes: the table, the red block, the blue block."""
QUICK = replace(SMALL, train=replace(SMALL.train, rays=192, feature_patches=16, surface_samples=4, free_samples=2))
HEADS = HeadsConfig(semantic_classes=4, label_rays=384, semantic_pairs=384)
CONFIG = replace(QUICK, heads=HEADS)


def labelled_frame(T, stamp_s, labels=True):
    frame = frame_at(T, stamp_s)
    return replace(frame, semantic=(cast(T)[1] + 1).astype(np.int32) if labels is True else labels)


def learnt(frames, steps=200, config=CONFIG):
    return mapped_frames(frames, config, steps)


def surface(n=12):
    """Points on the scene's surface as cameras see it, and their classes."""
    points, classes = [], []
    for T in ring(n, radius_m=0.6):
        frame = frame_at(T)
        p, pixel = back_project(frame.camera, T, np.where(frame.depth_m < 1.2, frame.depth_m, 0))
        points.append(p[::7])
        classes.append((cast(T)[1].reshape(-1) + 1)[pixel][::7])
    return np.concatenate(points), np.concatenate(classes)


def accuracy(snapshot, source="field"):
    """Recall, averaged over the three classes."""
    points, classes = surface()
    label = semantics_at(snapshot, points, source=source).label
    return float(np.mean([(label[classes == c] == c).mean() for c in TRUTH]))


# ---- losses -----------------------------------------------------------------------------------------------------


def test_loss_is_cross_entropy_with_void_ignored():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.randint(0, 8, (50,), generator=torch.Generator().manual_seed(1))
    expected = F.cross_entropy(logits, labels - 1, ignore_index=-1)
    found = label_loss(logits.log_softmax(-1), labels)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert not logits.grad[labels == 0].any() and logits.grad[labels > 0].any(1).all()


def test_labels_that_are_no_class_are_ignored():
    log_p = torch.randn(4, 3).log_softmax(-1)
    assert float(label_loss(log_p, torch.tensor([0, -1, 4, 99]))) == 0.0


def test_a_wrong_label_costs_no_more_than_chance():
    """-log((1 - e) p + e / C) by hand, bounded by -log(e / C) however sure the field is."""
    log_p = torch.tensor([[0.999998, 1e-6, 1e-6]]).log()
    assert float(label_loss(log_p, torch.tensor([2]), torch.tensor(0.3))) == pytest.approx(-np.log(0.1 + 0.7e-6), 1e-4)
    assert float(label_loss(log_p, torch.tensor([1]), torch.tensor(0.3))) == pytest.approx(-np.log(0.8), abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_the_share_of_wrong_labels_is_found(share):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 10, 20000)
    given = np.where(rng.random(20000) < share, rng.integers(0, 10, 20000), truth)
    log_p = torch.full((20000, 10), 1e-4).scatter(1, torch.from_numpy(truth)[:, None], 1 - 9e-4).log()
    assert float(wrong_share(log_p, torch.from_numpy(given) + 1)) == pytest.approx(share, abs=0.01)


def test_without_labels_there_is_no_share():
    assert wrong_share(torch.zeros(5, 3).log_softmax(-1), torch.zeros(5, dtype=torch.int64)).isnan()


def test_held_out_pixels_are_a_sixteenth_of_any_lattice():
    v, u = np.meshgrid(np.arange(0, 240, 8), np.arange(0, 320, 8), indexing="ij")
    pixel = torch.from_numpy((v * 320 + u).reshape(-1))
    for slot in range(8):
        share = held_out(pixel, torch.full_like(pixel, slot)).float().mean()
        assert float(share) == pytest.approx(1 / HELD_OUT, abs=0.02)


def test_neighbours_apart():
    sure = torch.eye(3).clamp(1e-9).log()
    weight = torch.ones(3)
    assert float(apart(sure, sure, weight)) == 0.0
    assert float(apart(sure, sure.roll(1, 0), weight)) == pytest.approx(2.0, abs=1e-5)
    assert float(apart(sure, sure.roll(1, 0), torch.zeros(3))) == 0.0


def test_bounded_compositing_gives_probabilities_and_logits_commute():
    """P3: softmax per sample, summed, normalised. S4: logits composited, whose last layer comes after the sum."""
    torch.manual_seed(0)
    encoded, w = torch.randn(6, 5, 8), torch.rand(6, 5) * 0.2
    bounded = Head(HeadConfig("semantic", 4, activation="softmax"), 8, 16, backend="torch")
    p = (bounded.hidden(encoded.view(-1, 8), None).view(6, 5, 4) * w[..., None]).sum(1)
    by_hand = p / p.sum(-1, keepdim=True)
    torch.testing.assert_close(log_probabilities(bounded.config, p).exp(), by_hand, atol=1e-6, rtol=1e-5)
    late = Head(HeadConfig("semantic", 4, late_linear=True), 8, 16, backend="torch")
    h = late.hidden(encoded.view(-1, 8), None)
    naive = (late.finish(h).view(6, 5, 4) * w[..., None]).sum(1)
    torch.testing.assert_close(late.finish((h.view(6, 5, -1) * w[..., None]).sum(1)), naive, atol=1e-5, rtol=1e-5)


def test_entropy_by_hand():
    assert entropy_of(np.array([[1.0, 0, 0]]))[0] == 0
    assert entropy_of(np.full((1, 8), 1 / 8))[0] == pytest.approx(np.log(8))


# ---- a scene ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return learnt([labelled_frame(T, i) for i, T in enumerate(ring(8))])


@pytest.fixture(scope="module")
def snapshot(trained):
    return trained.snapshot()


def test_points_know_their_class(snapshot):
    found = semantics_at(snapshot, np.array([TABLE, ON_RED, ON_BLUE, (9, 9, 9), (np.nan, 0, 0)], np.float32))
    assert found.label.tolist() == [*TRUTH, 0, 0]
    assert found.seen.tolist() == found.from_field.tolist() == [True, True, True, False, False]
    np.testing.assert_allclose(found.probabilities[:3].sum(1), 1, rtol=1e-4)
    np.testing.assert_allclose(found.entropy[3:], np.log(4), rtol=1e-5)
    assert (found.density[:3] > 1).all() and found.logits[:3].argmax(1).tolist() == [0, 1, 2]
    assert accuracy(snapshot) > 0.97
    assert float(found.entropy[:3].max()) < 0.3


def test_votes_answer_where_labels_fell(snapshot):
    found = semantics_at(snapshot, np.array([TABLE, ON_RED, ON_BLUE, (9, 9, 9)], np.float32), source="points")
    assert found.label.tolist() == [*TRUTH, 0] and not found.from_field.any()
    whole = semantics_at(snapshot, source="points")
    assert len(whole.label) == len(snapshot.cloud)


def test_a_view_is_labelled(snapshot):
    T = ring(7, turn=0.97)[3]
    depth, what = cast(T)
    view = semantic_view(snapshot, CAMERA, T, far_m=3.0)
    near = (depth > 0) & (depth < 1.0) & (view.depth_m > 0)
    assert near.mean() > 0.3
    assert (view.label[near] == what[near] + 1).mean() > 0.93
    np.testing.assert_allclose(view.disparity[near], 1 / view.depth_m[near], rtol=1e-5)
    nothing = view.depth_m == 0
    assert not view.label[nothing].any() and not view.entropy[nothing].any()
    border = np.zeros(what.shape, bool)
    border[:, 1:] |= what[:, 1:] != what[:, :-1]
    assert view.entropy[border & near].mean() > view.entropy[~border & near].mean()


def test_semantics_never_shape_geometry(trained):
    """P5: no gradient of the semantic loss reaches the signed distance or its grid."""
    field = trained.field
    field.zero_grad(set_to_none=True)
    losses, _ = Labels(CONFIG.heads).losses(field, trained.replay, 500, torch.Generator().manual_seed(0))
    assert set(losses) == {"semantic", "semantic_smooth"}
    sum(losses.values()).backward()
    assert field.grid("geometry").table.grad is None or not field.grid("geometry").table.grad.any()
    assert all(p.grad is None or not p.grad.any() for p in field.sdf.parameters())
    assert field.grid("feature").table.grad.any()


def test_semantics_shape_geometry_where_they_are_asked_to():
    """S5: with the flag the loss reaches the grid of shape; colour and distances are trained as before."""
    heads = replace(CONFIG.heads, semantic_shapes_geometry=True)
    mapping = learnt(
        [labelled_frame(T, i) for i, T in enumerate(ring(8))], 150, config=replace(CONFIG, heads=heads)
    )
    field = mapping.field
    assert {"sdf", "free", "rgb", "language", "semantic"} <= set(mapping.last_report.losses)
    field.zero_grad(set_to_none=True)
    losses, _ = Labels(heads).losses(field, mapping.replay, 500, torch.Generator().manual_seed(0))
    sum(losses.values()).backward()
    assert field.grid("geometry").table.grad.any()
    assert field.grid("feature").table.grad is None or not field.grid("feature").table.grad.any()
    assert accuracy(mapping.snapshot()) > 0.9


def test_one_labelled_frame_in_eight_is_nearly_as_good_as_all(snapshot):
    few = learnt([labelled_frame(T, i, labels=True if i == 0 else None) for i, T in enumerate(ring(8))])
    assert accuracy(few.snapshot()) > accuracy(snapshot) - 0.04
    assert accuracy(few.snapshot(), "points") < accuracy(few.snapshot()) - 0.1, "votes know only what was labelled"


def single_clicks(T, rng):
    what, out = cast(T)[1] + 1, np.zeros(cast(T)[1].shape, np.int32)
    depth = cast(T)[0]
    for c in TRUTH:
        at = np.flatnonzero(((what == c) & (depth > 0) & (depth < 1.2)).reshape(-1))
        if len(at):
            out.reshape(-1)[rng.choice(at)] = c
    return out


def test_single_clicks_spread_over_their_object():
    rng = np.random.default_rng(0)
    clicked = learnt([labelled_frame(T, i, labels=single_clicks(T, rng)) for i, T in enumerate(ring(8))], 300)
    assert clicked.replay.labels.named.sum() >= 20, "no click may fall through the sample"
    assert accuracy(clicked.snapshot()) > 0.9
    assert accuracy(clicked.snapshot(), "points") < 0.1


def test_most_labels_may_be_random():
    rng = np.random.default_rng(0)

    def noisy(T):
        right = cast(T)[1] + 1
        return np.where(rng.random(right.shape) < 0.7, rng.integers(1, 5, right.shape), right).astype(np.int32)

    mapping = learnt([labelled_frame(T, i, labels=noisy(T)) for i, T in enumerate(ring(8))], 300)
    labels = mapping.trainer.objectives["semantic"]
    assert 0.6 < float(labels.wrong) < 0.8, "nothing told it that 70% are random"
    assert accuracy(mapping.snapshot()) > max(0.88, accuracy(mapping.snapshot(), "points") + 0.1)
    again = Labels(CONFIG.heads)
    again.load(labels.state())
    assert float(again.wrong) == float(labels.wrong)


def test_probability_compositing_learns_alike():
    config = replace(CONFIG, heads=replace(HEADS, semantic_compositing="probability"))
    mapping = learnt([labelled_frame(T, i) for i, T in enumerate(ring(8))], config=config)
    assert accuracy(mapping.snapshot()) > 0.95
    view = semantic_view(mapping.snapshot(), CAMERA, ring(1)[0])
    np.testing.assert_allclose(view.probabilities[view.depth_m > 0].sum(-1), 1, atol=1e-4)


# ---- online -----------------------------------------------------------------------------------------------------


def test_a_frame_with_labels_nobody_had_is_a_keyframe():
    frames = [labelled_frame(T, i, labels=None) for i, T in enumerate(ring(8))]
    mapping = learnt(frames, 0)
    again = frame_at(ring(8)[2], 100.0)
    assert not mapping.accepts(again), "nothing new"
    assert mapping.accepts(replace(again, semantic=labelled_frame(ring(8)[2], 0).semantic))
    mapping.add_keyframe(labelled_frame(ring(8)[2], 100.0), mapping.feature_shape)
    assert not mapping.accepts(labelled_frame(ring(8)[2], 101.0)), "those labels are known"


def test_clicks_on_a_running_map():
    with Engine(CONFIG, create(EncoderConfig(name="stub"))) as engine:
        engine.pause()
        for i, T in enumerate(ring(8)):
            engine.submit(labelled_frame(T, i, labels=None), block=True)
        engine.drain()
        engine.train(steps=20)
        with pytest.raises(QueryError, match="no labels yet"):
            semantics_at(engine.snapshot(), source="field")
        reached = engine.label(np.array([TABLE, ON_RED, ON_BLUE, (5, 5, 5)]), [1, 2, 3, 4])
        assert reached.tolist() == [True, True, True, False]
        engine.train(steps=250)
        assert accuracy(engine.snapshot(fresh=True)) > 0.85
        engine.label(np.array([ON_RED]), [4])
        engine.train(steps=150)
        assert semantics_at(engine.snapshot(fresh=True), np.array([ON_RED])).label.tolist() == [4], "a click corrects"


@pytest.mark.parametrize(
    ("points", "classes", "match"),
    [([(0, 0, 0)], [5], "1 to 4"), ([(0, 0, 0)], [0], "1 to 4"), ([(0, 0)], [1], "shape"),
     ([(0, 0, np.inf)], [1], "finite"), ([(0, 0, 0)], [1.5], "integer"), ([(0, 0, 0)], [1, 2], "integer")],
)  # fmt: skip
def test_unusable_clicks_are_refused(trained, points, classes, match):
    with pytest.raises(QueryError, match=match):
        trained.label(np.array(points, float), np.array(classes))


def test_instances_alone_teach_no_class():
    frame = frame_at(ring(1)[0])
    mapping = learnt([replace(frame, instance=cast(ring(1)[0])[1].astype(np.int32))], 3)
    assert mapping.replay.labels.slots and not mapping.learnt["semantic"]
    with pytest.raises(QueryError, match="no labels yet"):
        semantics_at(mapping.snapshot(), source="field")


def test_labels_survive_a_checkpoint(trained, tmp_path):
    store, mapping = trained.replay.labels, Mapping(CONFIG, STUB_DIM, "cpu")
    mapping.begin(frame_at(ring(1)[0]), trained.feature_shape)
    mapping.replay.labels.load(store.state(trained.replay.order), trained.replay.order)
    assert mapping.replay.labels.classed and mapping.replay.labels.slots == trained.replay.order
    assert (mapping.replay.labels.pixels(0)[0] == store.pixels(0)[0]).all()


def test_a_click_finds_room_in_a_full_store():
    config = replace(CONFIG, memory=replace(CONFIG.memory, labels_per_keyframe=16))
    store = learnt([labelled_frame(ring(1)[0], 0)], 0, config).replay.labels
    assert int(store.count[0]) == 16
    before = int(store.named[0])
    store.add(0, 7, 1.0, 4)
    store.add(0, 8, 1.0, 3)
    pixels, classes = store.pixels(0)
    assert int(store.count[0]) == 16 and before <= int(store.named[0]) <= 16
    assert classes[pixels == 8].tolist() == [3]
    store.add(0, 8, 1.0, 2)
    assert store.pixels(0)[1][store.pixels(0)[0] == 8].tolist() == [2] and int(store.count[0]) == 16


def test_maps_without_classes_say_so():
    mapping = learnt([frame_at(ring(1)[0])], 1, SMALL)
    with pytest.raises(QueryError, match="semantic_classes"):
        semantics_at(mapping.snapshot())
    with pytest.raises(QueryError, match="semantic_classes"):
        semantic_view(mapping.snapshot(), CAMERA, ring(1)[0])
    with pytest.raises(QueryError, match="semantic_classes"):
        mapping.label(np.zeros((1, 3)), np.array([1]))
    with pytest.raises(QueryError, match="source"):
        semantics_at(mapping.snapshot(), source="both")


def test_a_map_with_nothing_in_it_knows_nothing():
    found = semantics_at(Mapping(CONFIG, STUB_DIM, "cpu").snapshot(), np.zeros((2, 3)))
    assert not found.seen.any() and not found.label.any()


def test_blocks_of_space_learn_and_answer_for_their_own():
    config = replace(CONFIG, memory=replace(CONFIG.memory, block_m=1.0))
    with Engine(config, create(EncoderConfig(name="stub"))) as engine:
        engine.pause()
        for i, T in enumerate(ring(4)):
            engine.submit(labelled_frame(T, i), block=True)
        engine.drain()
        engine.train(steps=150)
        world = engine.snapshot(fresh=True)
        found = semantics_at(world, np.array([TABLE, ON_RED, ON_BLUE, (9, 9, 9)], np.float32))
        assert found.label.tolist() == [*TRUTH, 0] and found.seen.tolist() == [True, True, True, False]
        nowhere = semantics_at(world, np.full((2, 3), 50.0))
        assert not nowhere.seen.any() and not nowhere.label.any()
        assert (semantic_view(world, CAMERA, ring(1)[0]).label > 0).mean() > 0.3
        assert engine.label(np.array([ON_RED, (50, 50, 50)]), [4, 4]).tolist() == [True, False]
