"""Metrics against hand values and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from semfield_ros.errors import ConfigError
from semfield_ros.evaluation.metrics import (
    confusion_matrix,
    depth,
    inside_boxes,
    localised,
    psnr_db,
    rate,
    segmentation,
    top_share_inside,
)


def test_segmentation_by_hand():
    truth = np.array([0, 0, 0, 1, 1, 3, 9])
    predicted = np.array([0, 0, 1, 1, 2, -1, 0])
    matrix = confusion_matrix(predicted, truth, 5, void=9)
    np.testing.assert_array_equal(matrix[0], [2, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(matrix[1], [0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(matrix[3], [0, 0, 0, 0, 0, 1])
    scores = segmentation(matrix)
    # IoU: class 0 2/3, class 1 1/3, class 2 (answered only) 0, class 3 (never right) 0, class 4 in neither.
    np.testing.assert_allclose(scores.iou, [2 / 3, 1 / 3, 0, 0, np.nan])
    assert scores.miou == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert scores.miou_answered == pytest.approx((2 / 3 + 1 / 3 + 0 + 0) / 4)
    assert scores.miou_all == pytest.approx(1 / 5)
    assert scores.frequency_weighted_iou == pytest.approx((3 * 2 / 3 + 2 * 1 / 3 + 0) / 6)
    assert scores.accuracy == pytest.approx(3 / 6)
    assert scores.class_accuracy == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_segmentation_agrees_with_loops():
    rng = np.random.default_rng(3)
    truth, predicted = rng.integers(-1, 6, (20, 30)), rng.integers(-1, 7, (20, 30))
    scores = segmentation(confusion_matrix(predicted, truth, 7, void=(2,)))
    ious, recalls, right, total = [], [], 0, 0
    for c in range(7):
        both = either = true = 0
        for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist()):
            if t < 0 or t == 2:
                continue
            both += t == c and p == c
            either += t == c or p == c
            true += t == c
        right, total = right + both, total + true
        if true:
            ious.append(both / either)
            recalls.append(both / true)
    assert scores.miou == pytest.approx(sum(ious) / len(ious))
    assert scores.miou_all == pytest.approx(sum(ious) / 7)
    assert scores.class_accuracy == pytest.approx(sum(recalls) / len(recalls))
    assert scores.accuracy == pytest.approx(right / total)


def test_perfect_labels_score_one_and_nothing_scores_nan():
    labels = np.array([[0, 1], [2, 2]])
    perfect = segmentation(confusion_matrix(labels, labels, 3))
    assert (perfect.miou, perfect.miou_all, perfect.accuracy, perfect.frequency_weighted_iou) == (1, 1, 1, 1)
    empty = segmentation(confusion_matrix(np.zeros(0, int), np.zeros(0, int), 3))
    assert all(math.isnan(v) for v in (empty.miou, empty.miou_all, empty.accuracy, empty.frequency_weighted_iou))
    void = segmentation(confusion_matrix(np.ones(4, int), np.full(4, 255), 3, void=255))
    assert math.isnan(void.miou) and math.isnan(void.class_accuracy)


def test_labels_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="shape"):
        confusion_matrix(np.zeros(3, int), np.zeros(4, int), 2)
    with pytest.raises(ConfigError, match="label 5"):
        confusion_matrix(np.zeros(2, int), np.array([0, 5]), 2)
    with pytest.raises(ConfigError, match=r"\(2, 4\)"):
        segmentation(np.zeros((2, 4)))


def test_depth_by_hand():
    truth = np.array([1.0, 2.0, 4.0, 0.0, np.nan, 2.0])
    predicted = np.array([1.04, 2.0, 2.0, 1.0, 1.0, 0.0])
    scores = depth(predicted, truth)
    assert scores.count == 3 and scores.coverage == pytest.approx(3 / 4)
    assert scores.abs_diff_m == pytest.approx((0.04 + 0 + 2) / 3)
    assert scores.abs_rel == pytest.approx((0.04 + 0 + 0.5) / 3)
    assert scores.sq_rel_m == pytest.approx((0.0016 + 0 + 1) / 3)
    assert scores.rmse_m == pytest.approx(math.sqrt((0.0016 + 0 + 4) / 3))
    assert scores.log_rmse == pytest.approx(math.sqrt((math.log(1.04) ** 2 + math.log(2) ** 2) / 3))
    assert scores.delta_1 == scores.delta_2 == pytest.approx(2 / 3)  # 4 / 2 = 2 > 1.25^3 = 1.953
    assert scores.delta_3 == pytest.approx(2 / 3)
    assert scores.median_m == pytest.approx(0.04)
    assert scores.within_5cm == pytest.approx(2 / 4)


def test_depth_of_nothing_is_nan():
    for predicted, truth in ((np.zeros((0, 2)), np.zeros((0, 2))), (np.ones(3), np.zeros(3))):
        scores = depth(predicted, truth)
        assert scores.count == 0 and math.isnan(scores.median_m) and math.isnan(scores.within_5cm)
    missed = depth(np.zeros(3), np.ones(3))
    assert missed.within_5cm == 0 and missed.coverage == 0 and math.isnan(missed.rmse_m)
    with pytest.raises(ConfigError):
        depth(np.ones(2), np.ones(3))


def test_psnr():
    black = np.zeros((4, 5, 3))
    assert psnr_db(black + 0.1, black) == pytest.approx(20.0)
    assert psnr_db(np.full((2, 2, 3), 255, np.uint8), np.zeros((2, 2, 3), np.uint8)) == pytest.approx(0.0)
    assert psnr_db(black, black) == math.inf
    mask = np.zeros((4, 5), bool)
    assert math.isnan(psnr_db(black, black, mask=mask))
    mask[0, 0] = True
    half = black.copy()
    half[1:] = 1.0
    half[0, 0] = 0.01
    assert psnr_db(half, black, mask=mask) == pytest.approx(40.0)
    with pytest.raises(ConfigError, match="uint8"):
        psnr_db(black, black.astype(np.uint8))


def test_localisation():
    lower, upper = np.array([[0, 0, 0], [2, 0, 0.0]]), np.array([[1, 1, 1], [3, 1, 1.0]])
    points = np.array([[0.5, 0.5, 0.5], [1.04, 0.5, 0.5], [1.06, 0.5, 0.5], [2.5, 1.0, 0.0], [np.nan, 0, 0]])
    np.testing.assert_array_equal(inside_boxes(points, lower, upper, 0.05), [1, 1, 0, 1, 0])
    assert localised(points[1], lower, upper) and not localised(points[2], lower, upper)
    assert not localised(None, lower, upper)
    assert rate([True, False, True, True]) == 0.75 and math.isnan(rate([]))


def test_top_share_inside():
    points = np.zeros((200, 3))
    points[:50, 0] = 5.0
    score = np.arange(200.0)
    box = (np.array([-1, -1, -1.0]), np.array([1, 1, 1.0]))
    assert top_share_inside(points, score, *box) == 1.0
    assert top_share_inside(points, -score, *box) == 0.0
    assert top_share_inside(points, score, *box, share=1.0) == 0.75
    score[199] = np.nan
    assert top_share_inside(points, score, *box) == 1.0
    assert math.isnan(top_share_inside(points[:0], score[:0], *box))
    with pytest.raises(ConfigError, match="share"):
        top_share_inside(points, score, *box, share=0)
