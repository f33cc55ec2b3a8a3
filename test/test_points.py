"""Losses at points: by hand, and as laws; and the objective inside the trainer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import SMALL, cast, mapped, stream

from semfield_ros.atlas import Atlas
from semfield_ros.config import FieldConfig, HeadsConfig
from semfield_ros.encoders.stub import StubEncoder
from semfield_ros.engine import Engine
from semfield_ros.errors import ConfigError
from semfield_ros.field.points import (
    TEMPERATURE,
    at,
    contrastive_alignment,
    cosine_distillation,
    masked_distillation,
)
from semfield_ros.mapping import Mapping, class_texts
from semfield_ros.memory.features import FeatureShape


def test_distillation_by_hand():
    a = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
    b = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    everyone = torch.ones(3, dtype=torch.bool)
    assert float(cosine_distillation(a, b, everyone)) == pytest.approx((0 + 0.4 + 2) / 3, abs=1e-6)
    assert float(cosine_distillation(a, b, torch.tensor([True, True, False]))) == pytest.approx(0.2, abs=1e-6)
    weight = torch.tensor([1.0, 3.0, 0.0])
    assert float(cosine_distillation(a, b, everyone, weight)) == pytest.approx(0.3, abs=1e-6)


def test_what_is_not_visible_has_no_part_not_even_as_nan():
    predicted = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target, visible = torch.randn(6, 4), torch.tensor([True, False, True, False, False, True])
    target[1] = float("nan")
    loss = cosine_distillation(predicted, target, visible)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(predicted.grad).all()
    assert (predicted.grad[~visible] == 0).all() and (predicted.grad[visible] != 0).any()
    none = cosine_distillation(predicted, target, torch.zeros(6, dtype=torch.bool))
    assert none.requires_grad and none.item() == 0.0


def test_distilling_view_by_view_finds_the_direction_of_the_fused_feature():
    """The law the objective relies on: least of sum_v (1 - cos(f, f_v)) is the direction of the mean of unit f_v."""
    generator = torch.Generator().manual_seed(3)
    views = torch.nn.functional.normalize(torch.randn(7, 5, generator=generator) + 1.0, dim=1)
    f = torch.randn(1, 5, generator=generator).requires_grad_()
    optimiser = torch.optim.Adam([f], lr=0.05)
    for _ in range(250):
        optimiser.zero_grad()
        cosine_distillation(f.expand(7, -1), views, torch.ones(7, dtype=torch.bool)).backward()
        optimiser.step()
    assert float(torch.cosine_similarity(f[0].detach(), views.mean(0), dim=0)) > 0.9999


def test_contrast_is_cross_entropy_of_scaled_cosines():
    features = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 5.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    labels = torch.tensor([0, 1, -1])
    logits = np.array([[1.0, 0.0], [np.sqrt(0.5), np.sqrt(0.5)]]) / TEMPERATURE
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert float(contrastive_alignment(features, texts, labels)) == pytest.approx(
        -(log_p[0, 0] + log_p[1, 1]) / 2, abs=1e-5
    )
    assert float(contrastive_alignment(features, texts, torch.full((3,), -1))) == 0.0


def test_contrast_is_stable_in_half_precision_and_leaves_the_words_alone():
    generator = torch.Generator().manual_seed(1)
    features, texts = torch.randn(64, 32, generator=generator), torch.randn(12, 32, generator=generator)
    labels = torch.randint(0, 12, (64,), generator=generator)
    assert np.exp(1 / TEMPERATURE) > np.finfo(np.float16).max, "why this needs a test"
    for scale in (1.0, 1e4, 1e-4):
        half = (features * scale).half().requires_grad_()
        words = texts.half().requires_grad_()
        loss = contrastive_alignment(half, words, labels)
        loss.backward()
        assert words.grad is None and torch.isfinite(half.grad).all() and torch.isfinite(loss)
        assert loss.item() == pytest.approx(float(contrastive_alignment(features, texts, labels)), rel=2e-2)


def test_masked_distillation_is_the_sum_of_both():
    generator = torch.Generator().manual_seed(2)
    p, t, w = (torch.randn(n, 8, generator=generator) for n in (10, 10, 3))
    visible, labels = torch.arange(10) < 6, torch.tensor([0, 1, 2, -1, -1, -1, -1, 1, 0, -1])
    whole = masked_distillation(p, t, visible, w, labels)
    parts = cosine_distillation(p, t, visible) + 0.5 * contrastive_alignment(p, w, labels)
    assert float(whole) == pytest.approx(float(parts))


def test_alignment_needs_names():
    with pytest.raises(ConfigError, match="class_names"):
        class_texts(HeadsConfig(align_weight=0.5), StubEncoder())
    assert class_texts(HeadsConfig(), StubEncoder()) is None


def test_both_losses_are_trained_only_where_they_are_wanted():
    assert set(mapped(3, steps=1).last_report.losses) & {"points", "alignment"} == set()
    config = replace(SMALL, heads=HeadsConfig(point_weight=1.0, point_rays=128))
    mapping = mapped(4, config)
    found = []
    for _ in range(120):
        mapping.train_step()
        found.append(float(mapping.last_report.losses["points"]))
    assert np.mean(found[-10:]) < 0.5 * np.mean(found[:10]) and mapping.learnt["points"] == 120


def test_labels_draw_features_towards_the_words_of_their_classes():
    """Words that the features know nothing of: only alignment can teach them, and only to the points it has seen."""
    names = ("zebra", "piano", "cloud")
    heads = HeadsConfig(semantic_classes=3, class_names=names, align_weight=2.0, label_rays=256)
    settings = replace(SMALL, heads=heads)
    encoder = StubEncoder()
    words = class_texts(heads, encoder)
    assert words.shape == (3, encoder.dim)
    found = []
    for texts in (None, words):
        mapping = Mapping(settings, encoder.dim, "cpu")
        mapping.align(texts)
        for frame in stream(6):
            frame = replace(frame, semantic=cast(frame.T_world_camera)[1] + 1)
            target = encoder.encode_frame(frame)
            mapping.add_features(mapping.add_keyframe(frame, FeatureShape.of(target)), frame, target)
        for _ in range(100):
            mapping.train_step()
        assert mapping.learnt["alignment"] == (100 if texts is not None else 0)
        tops = torch.tensor([(0.0, -0.3, 0.0), (-0.14, -0.02, 0.16), (0.15, 0.02, 0.1)])
        with torch.no_grad():
            f = torch.nn.functional.normalize(at(mapping.field, tops), dim=1).numpy()
        found.append((f @ words.T).argmax(1).tolist())
    assert found[1] == [0, 1, 2] and found[0] != found[1]
    mapping.make_field(mapping.field.workspace)
    assert mapping.field.class_texts is mapping.class_texts, "a field that starts again knows the words too"


def test_an_engine_and_its_blocks_know_the_words():
    heads = HeadsConfig(semantic_classes=2, class_names=("a", "b"), align_weight=1.0)
    with Engine(replace(SMALL, heads=heads), StubEncoder()) as engine:
        words = engine.run(lambda m: m.class_texts).result()
        assert np.allclose(words.numpy(), StubEncoder().encode_text(["a", "b"]))
        engine.reset()
        assert engine.run(lambda m: m.class_texts is not None).result()
    in_blocks = replace(SMALL, heads=heads, memory=replace(SMALL.memory, block_m=1.0), field=FieldConfig(hidden=32))
    atlas = Atlas(in_blocks, StubEncoder(), "cpu")
    atlas.align(class_texts(heads, StubEncoder()))
    frame = stream(1)[0]
    atlas.saw(frame)
    assert atlas.accepts(frame)
    atlas.add_keyframe(frame, FeatureShape.of(StubEncoder().encode_frame(frame)))
    assert atlas.awake and all(m.field.class_texts is not None for m in atlas.awake.values())
