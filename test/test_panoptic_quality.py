"""Panoptic quality against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from semfield_ros.errors import ConfigError
from semfield_ros.evaluation.panoptic import panoptic_quality


def test_by_hand():
    """Class 1: one match of IoU 3/4, one missed, one false. Class 2 (stuff): IoU 4/5 across two views."""
    true_class = np.array([[1, 1, 1, 1, 2, 2], [1, 1, 2, 2, 0, 0]])
    true_instance = np.array([[1, 1, 1, 1, 0, 0], [2, 2, 0, 0, 0, 0]])
    predicted_class = np.array([[1, 1, 1, 2, 2, 2], [1, 2, 2, 2, 1, 1]])
    predicted_instance = np.array([[7, 7, 7, 0, 0, 0], [8, 0, 0, 0, 9, 9]])
    found = panoptic_quality(predicted_class, predicted_instance, true_class, true_instance)
    things, stuff = found.classes[1], found.classes[2]
    # 8 covers one of two pixels: IoU 1/2 does not match; 9 lies where nothing is true and is not held against it
    assert (things.matched, things.false, things.missed) == (1, 1, 1)
    assert things.pq == pytest.approx(0.75 / 2)
    assert things.sq == pytest.approx(0.75) and things.rq == pytest.approx(0.5)
    assert stuff.pq == pytest.approx(4 / 6)
    assert found.pq == pytest.approx((0.375 + 4 / 6) / 2)
    assert found.things == pytest.approx(0.375) and found.stuff == pytest.approx(4 / 6)


def test_perfect_labels_under_other_names():
    rng = np.random.default_rng(0)
    instance = rng.integers(0, 5, (3, 8, 8))
    classes = np.where(instance > 0, 1 + instance % 2, 3)
    renamed = np.array([0, 40, 30, 20, 10])[instance]
    found = panoptic_quality(classes, renamed, classes, instance)
    assert found.pq == found.sq == found.rq == found.things == found.stuff == 1.0
    assert panoptic_quality(None, renamed, None, instance).pq == 1.0


def test_an_id_that_changes_between_views_is_split():
    """Each half of an object in two equal views has IoU 1/2: nothing matches, although each view alone is perfect."""
    true = np.ones((2, 4, 4), int)
    predicted = np.stack([np.full((4, 4), 1), np.full((4, 4), 2)])
    apart = [panoptic_quality(None, p, None, t).pq for p, t in zip(predicted, true)]
    assert apart == [1.0, 1.0]
    scene = panoptic_quality(None, predicted, None, true)
    assert scene.pq == 0.0
    assert (scene.classes[1].matched, scene.classes[1].false, scene.classes[1].missed) == (0, 2, 1)


def test_classes_must_agree_and_stuff_has_no_instances():
    true_class, true_instance = np.full(10, 1), np.full(10, 1)
    wrong = panoptic_quality(np.full(10, 2), true_instance, true_class, true_instance)
    assert wrong.pq == 0.0 and wrong.classes.keys() == {1}
    assert wrong.everywhere == 0.0
    split = np.array([1] * 5 + [2] * 5)
    assert panoptic_quality(true_class, split, true_class, true_instance).pq == 0.0
    assert panoptic_quality(true_class, split, true_class, true_instance, stuff=[1]).pq == 1.0


def test_no_answer_is_a_miss_and_not_a_false_segment():
    found = panoptic_quality(np.zeros(4, int), np.full(4, -1), np.full(4, 1), np.full(4, 1))
    assert (found.classes[1].matched, found.classes[1].false, found.classes[1].missed) == (0, 0, 1)
    assert found.pq == 0.0


def test_instances_alone_pay_for_what_they_cover_beside():
    true = np.array([1, 1, 0, 0, 0, -1])
    assert panoptic_quality(None, np.array([5, 5, 0, 0, 0, 5]), None, true).pq == 1.0
    assert panoptic_quality(None, np.array([5, 5, 5, 0, 0, 0]), None, true).pq == pytest.approx(2 / 3)
    assert panoptic_quality(None, np.array([5, 5, 5, 5, 0, 0]), None, true).pq == 0.0  # IoU 1/2 is no match


def test_nothing_at_all_is_nan():
    nothing = np.zeros((0,), int)
    assert np.isnan(panoptic_quality(nothing, nothing, nothing, nothing).pq)
    assert np.isnan(panoptic_quality(None, np.zeros(4, int), None, np.zeros(4, int)).pq)


def test_agrees_with_plain_loops():
    rng = np.random.default_rng(5)
    tc, ti = rng.integers(0, 3, 300), rng.integers(0, 2, 300)
    keep = rng.random(300) < 0.85
    pc, pi = np.where(keep, tc, rng.integers(0, 3, 300)), np.where(keep, ti + 3, 9)
    found = panoptic_quality(pc, pi, tc, ti)
    for c in (1, 2):
        truths = [set(np.flatnonzero((tc == c) & (ti == i))) for i in np.unique(ti[tc == c])]
        guesses = [set(np.flatnonzero((pc == c) & (pi == i))) for i in np.unique(pi[pc == c])]
        void = set(np.flatnonzero(tc == 0))
        ious = [len(t & g) / len(t | (g - void)) for t in truths for g in guesses]
        hits = [x for x in ious if x > 0.5]
        false = sum(
            len(g & void) <= len(g) / 2 and not any(len(t & g) / len(t | (g - void)) > 0.5 for t in truths)
            for g in guesses
        )
        weight = len(hits) + 0.5 * false + 0.5 * (len(truths) - len(hits))
        assert found.classes[c].pq == pytest.approx(sum(hits) / weight)


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="four equal shapes"):
        panoptic_quality(np.zeros(3, int), np.zeros(3, int), np.zeros(4, int), np.zeros(4, int))
    with pytest.raises(ConfigError, match="one side"):
        panoptic_quality(None, np.zeros(3, int), np.zeros(3, int), np.zeros(3, int))
