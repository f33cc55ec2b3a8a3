"""Losses of instances against values worked out by hand, plain loops and laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from semfield_ros.field.instance_losses import (
    Masks,
    Regions,
    allowed_slots,
    assign,
    assign_images,
    believed,
    bounded_log,
    follow,
    grouped_mean,
    middle_of,
    segment_consistency,
    slot_loss,
    slow_fast,
    soft_cross_entropy,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bounded_segmentation_by_hand():
    """Samples 3:1 for class 0 and 1:1, weights .5 and .25: S = (.5, .25), normalised (2/3, 1/3)."""
    logits = torch.tensor([[[math.log(3.0), 0.0], [5.0, 5.0]]])
    found = bounded_log(logits, torch.tensor([[0.5, 0.25]])).exp()
    torch.testing.assert_close(found, torch.tensor([[2 / 3, 1 / 3]]), atol=1e-6, rtol=0)


def test_no_sample_outvotes_the_others():
    logits = torch.zeros(1, 4, 3)
    logits[0, :3, 1] = 4.0
    logits[0, 3, 2] = 1e4
    found = bounded_log(logits, torch.full((1, 4), 0.25))
    assert int(found.argmax()) == 1
    assert torch.isfinite(found).all()


def test_geometry_gets_no_gradient_from_semantics():
    weights = torch.rand(5, 4, generator=generator()).requires_grad_()
    logits = torch.randn(5, 4, 3, generator=generator()).requires_grad_()
    soft_cross_entropy(bounded_log(logits, weights), torch.zeros(5, dtype=torch.int64), torch.ones(5)).backward()
    assert weights.grad is None
    assert logits.grad is not None and float(logits.grad.abs().sum()) > 0


def test_confidence_weights_cross_entropy_by_hand():
    log_p = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]).log()
    target, confidence = torch.tensor([0, 1, -1]), torch.tensor([1.0, 0.5, 1.0])
    expected = (-math.log(0.5) - 0.5 * math.log(0.75)) / 2
    assert float(soft_cross_entropy(log_p, target, confidence)) == pytest.approx(expected)
    one_hot = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(soft_cross_entropy(log_p[:2], one_hot, confidence[:2])) == pytest.approx(expected)
    assert float(soft_cross_entropy(log_p, torch.full((3,), -1), confidence)) == 0.0


def test_segments_follow_their_majority():
    """The mean of segment 7 prefers class 0, so its doubting pixel is pulled there; unknown pixels are left alone."""
    logits = torch.tensor([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 5.0]]).requires_grad_()
    segment = torch.tensor([7, 7, 7, -1])
    loss = segment_consistency(logits.log_softmax(-1), segment)
    expected = torch.nn.functional.cross_entropy(logits[:3], torch.zeros(3, dtype=torch.int64))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()))
    loss.backward()
    assert float(logits.grad[2, 0]) < 0
    assert logits.grad[3].abs().sum() == 0
    assert float(segment_consistency(logits.detach().log_softmax(-1), torch.full((4,), -1))) == 0.0


def test_assignment_is_the_best_of_all():
    rng = np.random.default_rng(0)
    belief, pixels = rng.random((4, 7)), rng.random(4) + 0.5
    found = assign(belief, pixels, np.zeros(7))
    gain = belief * pixels[:, None]
    best = max(itertools.permutations(range(7), 4), key=lambda p: sum(gain[i, s] for i, s in enumerate(p)))
    assert tuple(found) == best


def test_two_masks_of_an_image_never_share_a_slot():
    """Both fit slot 1 best: the larger gets it, the other one it is believed in enough, or none."""
    belief, pixels = np.array([[0.0, 0.9, 0.02], [0.0, 0.8, 0.1]]), np.array([10.0, 30.0])
    least = np.array([np.inf, 0.2, 0.2])
    assert assign(belief, pixels, least).tolist() == [-1, 1]
    belief[0, 2] = 0.3
    assert assign(belief, pixels, least).tolist() == [2, 1]
    assert assign(belief, pixels, np.full(3, np.inf)).tolist() == [-1, -1]


def test_a_stray_pixel_does_not_take_a_things_slot():
    """By means alone its mask would win: .95 against .8."""
    assert assign(np.array([[0.95], [0.8]]), np.array([1.0, 50.0]), np.array([0.2])).tolist() == [-1, 0]


def scene() -> tuple[torch.Tensor, torch.Tensor, Regions]:
    """60 points of each of two things at x = 0 and x = 1, and 20 of stuff between; slots 1 and 2 know the places."""
    g = generator(5)
    points = torch.randn(140, 3, generator=g) * 0.05
    points[60:120, 0] += 1
    points[120:, 0] += 0.5
    probability = torch.full((140, 4), 0.1)
    probability[120:, 0] = 0.7
    return points, probability, Regions(np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0], [9, 9, 9]], float), np.full(4, 0.05))


def test_a_field_that_knows_nothing_tells_things_apart_by_place():
    """Ids are swapped between the two images; slots are not. The thing at neither place gets none."""
    points, probability, regions = scene()
    instance = torch.cat([torch.full((60,), 5), torch.full((60,), 8), torch.zeros(20, dtype=torch.int64)])
    other = torch.cat([torch.full((60,), 8), torch.full((60,), 5), torch.full((20,), -1)])
    image = torch.arange(2).repeat_interleave(140)
    settled = np.array([False, True, True, False])
    masks = believed(
        probability.repeat(2, 1), points.repeat(2, 1), torch.cat([instance, other]), image, settled, regions
    )
    assert masks.image.tolist() == [0, 0, 1, 1] and masks.mask.tolist() == [5, 8, 5, 8]
    least = np.where(settled, 0.2, np.inf)
    assert assign_images(masks, least).tolist() == [1, 2, 2, 1]
    assert (masks.unexplained < 0.4).all()
    far = Regions(regions.centre + 5, regions.spread)
    lost = believed(probability, points, instance, image[:140], settled, far)
    assert assign_images(lost, least).tolist() == [-1, -1] and (lost.unexplained > 0.85).all()
    nothing = believed(probability, points, torch.zeros_like(instance), image[:140], settled, regions)
    assert len(assign_images(nothing, least)) == 0


def test_the_middle_of_a_mask_is_not_moved_by_strays():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(40, 3)) * 0.03 + [1, 0, 0], rng.uniform(-1, 1, (24, 3))])
    centre, spread = middle_of(points, np.ones(64))
    assert np.linalg.norm(centre - [1, 0, 0]) < 0.03 < np.linalg.norm(points.mean(0) - [1, 0, 0])
    assert 0.015 < spread < 0.06
    clean = middle_of(points[:40], np.ones(40))
    assert clean[1] == pytest.approx(0.03, rel=0.5)


def test_a_mask_without_a_slot_learns_what_it_is_not():
    """Its image gave slot 1 to another mask, so it may be 2 or 3; of the rest nothing is said."""
    none = np.zeros(0)
    masks = Masks(
        torch.tensor([0, 1, -1, -1]), np.array([0, 0]), np.array([4, 7]), np.ones(2), Regions(none, none), none, none
    )
    allowed = allowed_slots(masks, np.array([1, -1]), 4)
    assert allowed.tolist() == [[False, True, False, False], [False, False, True, True], [True, False, False, False]]
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 4).requires_grad_()
    instance, confidence = torch.tensor([4, 7, 0, -1]), torch.tensor([1.0, 0.5, 1.0, 1.0])
    p = logits.detach()[0].softmax(0)
    expected = -(p[1].log() + 0.5 * (p[2] + p[3]).log() + p[0].log()) / 3
    loss = slot_loss(logits, masks, allowed, instance, confidence)
    assert float(loss.detach()) == pytest.approx(float(expected))
    loss.backward()
    assert logits.grad[3].abs().sum() == 0, "unknown pixels teach nothing"
    assert logits.grad[1, 1] > 0 and logits.grad[1, 2] < 0


def test_grouped_mean():
    found = grouped_mean(torch.tensor([[1.0], [3.0], [10.0]]), torch.tensor([0, 0, 2]), 3)
    assert found.squeeze(1).tolist() == [2.0, 0.0, 10.0]


def naive_slow_fast(fast, slow, instance, confidence, temperature):
    """The formulas, pixel by pixel."""
    near, info, weights = [], [], []
    half = fast.shape[1] // 2
    for image in range(len(fast)):
        others = [(slow[image, j], int(instance[image, j])) for j in range(half, 2 * half)]
        for i in range(half):
            label, f = int(instance[image, i]), fast[image, i]
            alike = [s for s, other in others if other == label]
            if label < 0 or (not alike and label > 0):
                continue
            centre = torch.zeros_like(f) if label == 0 else torch.stack(alike).mean(0)
            near.append(torch.exp(-((f - centre) ** 2).sum()))
            every = [s for s, other in others if other >= 0] + [torch.zeros_like(f)]
            alike = alike + ([torch.zeros_like(f)] if label == 0 else [])
            top = sum(torch.exp(torch.exp(-((f - s) ** 2).sum()) / temperature) for s in alike)
            bottom = sum(torch.exp(torch.exp(-((f - s) ** 2).sum()) / temperature) for s in every)
            info.append(-torch.log(top / bottom))
            weights.append(confidence[image, i])
    w = torch.stack(weights)
    return -(w * torch.stack(near)).sum() / w.sum(), (w * torch.stack(info)).sum() / w.sum()


def test_slow_fast_equals_its_formulas():
    g = generator(3)
    fast, slow = torch.randn(3, 16, 3, generator=g), torch.randn(3, 16, 3, generator=g)
    instance = torch.randint(-1, 4, (3, 16), generator=g)
    confidence = torch.rand(3, 16, generator=g)
    for found, expected in zip(
        slow_fast(fast, slow, instance, confidence, 0.3), naive_slow_fast(fast, slow, instance, confidence, 0.3)
    ):
        torch.testing.assert_close(found, expected)


def test_ids_of_two_images_are_never_compared():
    """Renaming the masks of one image changes nothing; nor do pixels of another image."""
    g = generator(4)
    fast, slow = torch.randn(2, 20, 3, generator=g), torch.randn(2, 20, 3, generator=g)
    instance, confidence = torch.randint(0, 4, (2, 20), generator=g), torch.ones(2, 20)
    before = slow_fast(fast, slow, instance, confidence)
    renamed = instance.clone()
    renamed[1] = torch.where(instance[1] > 0, 40 - instance[1], 0)
    torch.testing.assert_close(slow_fast(fast, slow, renamed, confidence), before)
    alone = [slow_fast(fast[i : i + 1], slow[i : i + 1], instance[i : i + 1], confidence[:1]) for i in range(2)]
    usable = [
        float(((instance[i, :10, None] == instance[i, None, 10:]).any(1) | (instance[i, :10] == 0)).sum())
        for i in range(2)
    ]
    for k in range(2):
        expected = sum(a[k] * n for a, n in zip(alone, usable)) / sum(usable)
        torch.testing.assert_close(before[k], expected)


def test_gradients_reach_fast_pixels_only():
    fast, slow = torch.randn(1, 12, 3).requires_grad_(), torch.randn(1, 12, 3).requires_grad_()
    instance = torch.tensor([[1, 2, 1, 0, -1, 1, 1, 2, 2, 0, 1, 2]])
    sum(slow_fast(fast, slow, instance, torch.ones(1, 12))).backward()
    assert slow.grad is None
    assert fast.grad[0, 6:].abs().sum() == 0 and fast.grad[0, 4].abs().sum() == 0
    assert (fast.grad[0, :4].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_similarity_does_not_overflow(dtype):
    """exp(1 / .07) is beyond float16; a bounded similarity in log space is not."""
    x = torch.zeros(1, 64, 3, dtype=dtype)
    instance = (torch.arange(64) % 3 + 1)[None]
    for value in slow_fast(x, x, instance, torch.ones(1, 64, dtype=dtype), temperature=0.07):
        assert torch.isfinite(value)


def test_masks_settle_apart_and_stuff_at_the_origin():
    """Free embeddings of three things and stuff in one image, from a cramped start."""
    fast = torch.nn.Parameter(torch.randn(1, 80, 3, generator=generator(1)) * 0.3)
    instance = (torch.arange(80) % 4)[None]
    optimiser = torch.optim.Adam([fast], lr=0.05)
    order = generator(2)
    slow = fast.detach().clone()
    for _ in range(300):
        pick = torch.randperm(80, generator=order)
        slow.lerp_(fast.detach(), 0.1)
        loss = sum(slow_fast(fast[:, pick], slow[:, pick], instance[:, pick], torch.ones(1, 80)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = fast.detach()[0]
    centres = torch.stack([found[instance[0] == k].mean(0) for k in range(4)])
    spread = max(float((found[instance[0] == k] - centres[k]).norm(dim=-1).max()) for k in range(4))
    assert float(centres[0].norm()) < 0.1
    assert float(torch.pdist(centres).min()) > 3 * spread


def test_the_slow_copy_follows():
    slow, fast = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    before = slow.weight.detach().clone()
    follow(slow, fast, 0.9)
    torch.testing.assert_close(slow.weight.detach(), 0.9 * before + 0.1 * fast.weight.detach())
