"""Labels of pixels: kept however few, drawn where the surface is, forgotten with it, learnt, saved."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import BLUE, CAMERA, RED, SMALL, STUB_DIM, cast, frame_at, mapped_frames, ring, stream

from semfield_ros.checkpoint import load, save
from semfield_ros.config import EncoderConfig, HeadsConfig, MemoryConfig
from semfield_ros.encoders import create
from semfield_ros.encoders.base import Target, Window
from semfield_ros.engine import Engine
from semfield_ros.errors import ConfigError
from semfield_ros.field.heads import HeadConfig
from semfield_ros.frame import Segments
from semfield_ros.memory.features import FeatureShape, FeatureStore
from semfield_ros.memory.labels import LabelStore
from semfield_ros.memory.replay import Replay

STUB = create(EncoderConfig(name="stub"))
SHAPE = FeatureShape(STUB_DIM, 48, 48)
LABELS = replace(SMALL, heads=HeadsConfig(semantic_classes=3, class_names=("table", "red", "blue")))


def labelled(T, stamp_s=0.0):
    """A frame whose classes are exact: 1 the table, 2 red, 3 blue."""
    depth, what = cast(T)
    return replace(frame_at(T, stamp_s), semantic=np.where(depth > 0, what + 1, 0).astype(np.int32))


def generator():
    return torch.Generator().manual_seed(0)


def replay_of(frames, config: MemoryConfig = SMALL.memory) -> Replay:
    replay = Replay(config, CAMERA.width, CAMERA.height, SHAPE, "cpu")
    for slot, frame in enumerate(frames):
        replay.write(slot, frame, np.random.default_rng(slot))
    return replay


def mapped_labels(n, config=LABELS, steps=0, every=1):
    frames = [labelled(T, 0.1 * i) if i % every == 0 else frame_at(T, 0.1 * i) for i, T in enumerate(ring(n))]
    return mapped_frames(frames, config, steps)


def test_a_single_click_is_never_lost():
    T = ring(3)[0]
    depth, _ = cast(T)
    click = np.zeros(depth.shape, np.int32)
    click[31, 41] = 2
    replay = replay_of([replace(frame_at(T), semantic=click), frame_at(ring(3)[1])])
    assert replay.labels.slots == [0]
    batch = replay.labelled(200, 0.0, generator())
    clicked = batch.semantic > 0
    assert clicked.any() and (batch.pixel[clicked] == 31 * CAMERA.width + 41).all()
    ray = np.array([(41 - CAMERA.cx) / CAMERA.fx, (31 - CAMERA.cy) / CAMERA.fy, 1.0, 0]) * depth[31, 41]
    expected = (T @ (ray + [0, 0, 0, 1]))[:3]
    assert np.allclose(batch.points[clicked].numpy(), expected, atol=1e-4)


def test_labels_lie_on_what_they_name_and_frames_without_any_cost_nothing():
    unlabelled = replay_of(stream(3))
    assert unlabelled.labels.bytes == 0 and unlabelled.labelled(10, 0.0, generator()) is None
    replay = replay_of([labelled(T) for T in ring(4)])
    batch = replay.labelled(3000, 0.0, generator())
    points, semantic = batch.points.numpy(), batch.semantic.numpy()
    for block, label in ((RED, 2), (BLUE, 3)):
        mine = points[semantic == label]
        inside = (mine > np.array(block.low) - 1e-3) & (mine < np.array(block.high) + 1e-3)
        assert len(mine) > 50 and inside.all()
    assert np.abs(points[semantic == 1][:, 2]).max() < 1e-3
    assert (batch.confidence == 1).all() and (batch.instance == 0).all()


def test_too_many_labels_are_sampled_and_some_unlabelled_pixels_kept():
    depth, what = cast(ring(1)[0])
    frame = replace(frame_at(ring(1)[0]), instance=what.astype(np.int32))  # the table is none
    replay = replay_of([frame], replace(SMALL.memory, labels_per_keyframe=400))
    labels = replay.labels
    n = int(labels.count[0])
    kept = labels.instance[0, :n].numpy()
    assert n == 400 and 0.2 < (kept == 0).mean() <= 0.25
    pixel = labels.pixel[0, :n].numpy()
    assert len(np.unique(pixel)) == n and np.array_equal(what.reshape(-1)[pixel], kept)
    assert np.array_equal(labels.depth[0, :n].numpy(), depth.reshape(-1)[pixel].astype(np.float32))


def test_a_budget_bounds_labels():
    store = LabelStore(MemoryConfig(labels_mb=0.1, labels_per_keyframe=4096), 50, torch.device("cpu"))
    store.write(3, labelled(ring(1)[0]), np.random.default_rng(0))
    assert store.entries == 0.1 * 2**20 // (50 * 19) and store.bytes <= 0.1 * 2**20
    held = sum(getattr(store, name).nbytes for name in ("pixel", "depth", "semantic", "instance", "segment"))
    assert held + store.confidence.nbytes == store.bytes


def test_segments_bring_their_scores():
    _, what = cast(ring(1)[0])
    segments = Segments(what.astype(np.int32), {1: "box", 2: "box"}, {2: 0.5})
    batch = replay_of([replace(frame_at(ring(1)[0]), segments=segments)]).labelled(2000, 0.0, generator())
    assert (batch.confidence[batch.segment == 1] == 1).all()
    assert batch.confidence[batch.segment == 2].numpy() == pytest.approx(0.5, abs=2e-3)


def test_images_come_apart():
    replay = replay_of([labelled(T) for T in ring(4)])
    batch = replay.labelled_images(6, 50, generator())
    runs = batch.slots.view(6, 50)
    assert (runs == runs[:, :1]).all() and len(torch.unique(runs)) > 1


def test_what_is_forgotten_is_no_label_any_more():
    replay = replay_of([labelled(T) for T in ring(4)])
    replay.clear_region(np.array(RED.low) - 0.02, np.array(RED.high) + 0.02)
    batch = replay.labelled(4000, 0.0, generator())
    left = (batch.semantic == 2).float().mean()
    assert left < 0.01 < (batch.semantic == 3).float().mean()
    replay.write(0, frame_at(ring(4)[0]), np.random.default_rng(0))
    assert 0 not in replay.labels.slots, "labels go with their frame"


def test_classes_are_learnt_from_a_quarter_of_the_frames():
    snapshot = mapped_labels(8, steps=150, every=4).snapshot()
    assert snapshot.learnt["semantic"] == 150 and snapshot.votes.shape == (len(snapshot.cloud), 3)
    field, head = snapshot.field, snapshot.field.head("semantic")
    points = {1: [(0.0, -0.3, 0.0), (0.0, 0.35, 0.0)], 2: [(-0.14, -0.02, 0.16)], 3: [(0.15, 0.02, 0.1)]}
    for label, places in points.items():
        encoded = field.encode(head.config.grid, torch.tensor(places, dtype=torch.float32))
        assert (head.finish(head.hidden(encoded, None)).argmax(-1) + 1 == label).all()
        rows = snapshot.find(np.array(places, np.float32))
        assert (snapshot.votes[rows].argmax(1) + 1 == label).all()


def test_labels_and_heads_survive_a_checkpoint(tmp_path):
    mapping = mapped_labels(4, steps=20)
    mapping.know(HeadConfig("extra", 5))
    mapping.train_step()
    path = save(tmp_path / "map", mapping, STUB)
    again = load(path, LABELS, STUB, "cpu")
    assert list(again.heads) == ["rgb", "language", "semantic", "extra"] and again.learnt == mapping.learnt
    a, b = (m.replay.labelled(300, 0.0, generator()) for m in (mapping, again))
    assert torch.equal(a.points, b.points) and torch.equal(a.semantic, b.semantic)
    assert np.array_equal(again.points.votes[again.points.rows], mapping.points.votes[mapping.points.rows])
    state, loaded = mapping.trainer.state(), again.trainer.state()
    assert set(state) == set(loaded) and all(torch.equal(v, loaded[k]) for k, v in state.items())


def test_a_point_map_made_anew_keeps_its_votes():
    mapping = mapped_labels(4)
    keyframe = mapping.remembered()[0]
    frame, _ = mapping.replay.frame(keyframe.slot, keyframe)
    exact = labelled(keyframe.T_world_camera).semantic
    known = frame.semantic > 0
    assert known.mean() > 0.3
    v, u = np.argwhere(known).T
    s = mapping.replay.stride
    block = exact[: exact.shape[0] // s * s, : exact.shape[1] // s * s]
    for r, c in list(zip(v, u))[::7]:
        assert frame.semantic[r, c] in block[r * s : (r + 1) * s, c * s : (c + 1) * s]


def test_a_teacher_gets_a_head_when_it_first_speaks():
    config = replace(SMALL, encoder=EncoderConfig(name="stub"), heads=HeadsConfig(teachers=("stub",)))
    with Engine(config) as engine:
        for frame in stream(6):
            engine.submit(frame, block=True)
        assert engine.drain(60)
        engine.train(steps=120)
        snapshot = engine.snapshot(fresh=True)
        status = engine.status()
    assert snapshot.learnt["teacher_stub"] > 60
    head, language = snapshot.field.head("teacher_stub"), snapshot.field.head("language")
    points = torch.tensor([(-0.14, -0.02, 0.16), (0.15, 0.02, 0.1), (0.0, -0.3, 0.0)])
    encoded = snapshot.field.encode("feature", points)
    both = [torch.nn.functional.normalize(h.finish(h.hidden(encoded, None)), dim=-1) for h in (head, language)]
    # taught by the same encoder: the same meaning, in heads of their own
    assert (both[0] * both[1]).sum(-1).min() > 0.9
    assert status.dropped.get("teacher_behind", 0) <= 5


def test_unknown_teachers_are_refused():
    with pytest.raises(ConfigError, match="teacher 'nobody'"):
        Engine(replace(SMALL, heads=HeadsConfig(teachers=("nobody",))))
    with pytest.raises(ConfigError, match="each encoder once"):
        HeadsConfig(teachers=("stub", "stub:x"))
    with pytest.raises(ConfigError, match="class_names"):
        HeadsConfig(semantic_classes=2, class_names=("one",))


def test_a_budget_keeps_the_newest_measurements():
    shape = FeatureShape(4, 6, 6)
    store = FeatureStore(shape, 5, torch.device("cpu"), budget_mb=3 * shape.bytes / 2**20)
    rng = np.random.default_rng(0)
    targets = [Target.dense(rng.normal(size=(2, 3, 4)).astype(np.float32), Window.pixel()) for _ in range(5)]
    for slot, target in enumerate(targets):
        store.write(slot, target)
    assert store.capacity == 3 and store.slots == [2, 3, 4] and store.target(0) is None
    for slot in store.slots:
        assert np.allclose(store.target(slot).values, targets[slot].values, atol=1e-3)
    store.drop(3)
    store.write(0, targets[0])
    assert store.slots == [2, 4, 0] and np.allclose(store.target(0).values, targets[0].values, atol=1e-3)
