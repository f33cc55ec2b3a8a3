"""Average precision against values worked out by hand, and ScanNet's rules one at a time."""

import numpy as np
import pytest
from scipy import sparse

from semfield_ros.errors import ConfigError
from semfield_ros.evaluation.average_precision import InstanceScene, average_precision

N = 1000


def mask(*parts: tuple[int, int]) -> np.ndarray:
    out = np.zeros(N, bool)
    for low, high in parts:
        out[low:high] = True
    return out


def scene(answers, score, truth=None, truth_class=None, answer_class=None) -> InstanceScene:
    if truth is None:
        truth = np.zeros(N, int)
        truth[0:200], truth[200:400] = 1, 2
    stacked = np.stack(answers) if len(answers) else np.zeros((0, N), bool)
    return InstanceScene(truth, truth_class or {}, stacked, np.asarray(score, float), answer_class)


def test_perfect_answers_score_one():
    got = average_precision(scene([mask((0, 200)), mask((200, 400))], [0.9, 0.8]))
    assert (got.ap, got.ap50, got.ap25, got.recall50, got.truths) == (1.0, 1.0, 1.0, 1.0, 2)


def test_a_missing_answer_halves_recall():
    # precision 1 up to recall .5, closed at (1, 0): area .5
    got = average_precision(scene([mask((0, 200))], [0.9]))
    assert got.ap == pytest.approx(0.5)
    assert got.recall50 == 0.5


def test_partial_overlap_counts_below_its_iou_only():
    # IoU 150 / 200 = .75: right at .5 .55 .6 .65 .7, and not above .75 itself (strictly larger)
    got = average_precision(scene([mask((0, 150)), mask((200, 350))], [0.9, 0.8]))
    assert got.ap == pytest.approx(5 / 9)
    assert got.ap50 == got.ap25 == 1.0


def test_a_wrong_answer_above_the_right_ones():
    # scores .9 wrong, .8 right, .7 right: (precision, recall) = (1, 0) (0, 0) (1/2, 1/2) (2/3, 1)
    # widths: half the recall to both neighbours: 0, 1/4, 1/2, 1/4
    got = average_precision(scene([mask((600, 800)), mask((0, 200)), mask((200, 400))], [0.9, 0.8, 0.7]))
    assert got.ap50 == pytest.approx(0 * 0.25 + 0.5 * 0.5 + 2 / 3 * 0.25)


def test_a_second_answer_to_one_truth_is_wrong():
    # .9 right, .8 the same thing again: (1, 0) (1, 1/2) (1/2, 1/2): widths 1/4, 1/4, 0
    got = average_precision(scene([mask((0, 200)), mask((0, 190))], [0.9, 0.8]))
    assert got.ap50 == pytest.approx(0.5)
    # a single step, both at one score: (1, 0) (1/2, 1/2), widths 1/4, 1/4
    tied = average_precision(scene([mask((0, 200)), mask((0, 190))], [0.9, 0.9]))
    assert tied.ap50 == pytest.approx(0.25 + 0.125)


def test_one_answer_over_two_things_takes_one_of_them_at_low_thresholds():
    # IoU .5 with both: no match at .5 (strict), one of the two at .25
    got = average_precision(scene([mask((0, 400))], [0.9]))
    assert got.ap50 == 0.0
    assert got.ap25 == pytest.approx(0.5)


def test_answers_on_points_that_nobody_annotated_are_ignored():
    truth = np.full(N, -1)
    truth[0:200] = 1
    right, stray = mask((0, 200)), mask((600, 800))
    assert average_precision(scene([right, stray], [0.5, 0.9], truth)).ap == 1.0
    truth[600:750] = 0  # now three quarters of it lie on annotated background: .25 <= any threshold of AP
    assert average_precision(scene([right, stray], [0.5, 0.9], truth)).ap50 < 1.0


def test_small_truths_do_not_count_and_excuse_their_answers():
    truth = np.zeros(N, int)
    truth[0:200], truth[300:380] = 1, 2  # 80 points are too few
    answers = [mask((0, 200)), mask((300, 380), (500, 530))]
    got = average_precision(scene(answers, [0.5, 0.9], truth))
    assert (got.ap50, got.truths) == (1.0, 1)
    # its IoU with the small one and the share of it there are 80 / 110: neither excuses it from .75 on, where it comes
    # first and is wrong: (1, 0) (0, 0) (1/2, 1), widths 0, 1/2, 1/2
    assert got.ap == pytest.approx(5 / 9 + 4 / 9 * 0.25)
    assert average_precision(scene(answers, [0.5, 0.9], truth), min_points=50).truths == 2


def test_small_answers_are_left_out():
    got = average_precision(scene([mask((0, 200)), mask((200, 400)), mask((600, 650))], [0.5, 0.5, 0.9]))
    assert got.ap == 1.0


def test_classes_are_averaged_and_must_be_right():
    answers = [mask((0, 200)), mask((200, 400))]
    got = average_precision(scene(answers, [0.9, 0.8], None, {1: 3, 2: 4}, np.array([3, 3])))
    # class 3: the right one first, then a wrong one: AP 1; class 4: nothing
    assert got.by_class[3][1] == pytest.approx(1.0)
    assert got.by_class[4][1] == 0.0
    assert got.ap50 == pytest.approx(0.5)


def test_scenes_share_one_curve():
    right = scene([mask((0, 200)), mask((200, 400))], [0.9, 0.9])
    nothing = scene([], [])
    got = average_precision([right, nothing])
    assert got.truths == 4
    assert got.ap == pytest.approx(0.5)


def test_nothing_to_compare():
    assert np.isnan(average_precision(scene([], [], np.zeros(N, int))).ap)
    assert np.isnan(average_precision([]).ap)
    assert average_precision(scene([], [])).ap == 0.0
    no_points = InstanceScene(np.zeros(0, int), {}, np.zeros((0, 0), bool), np.zeros(0))
    assert np.isnan(average_precision(no_points).ap25)


def test_sparse_and_dense_answers_agree():
    rng = np.random.default_rng(0)
    answers = rng.random((20, N)) < 0.3
    truth = rng.integers(-1, 4, N)
    dense = InstanceScene(truth, {}, answers, rng.random(20))
    thin = InstanceScene(truth, {}, sparse.csr_matrix(answers), dense.score)
    assert average_precision(dense) == average_precision(thin)


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ConfigError, match=r"truth \(3,\)"):
        InstanceScene(np.zeros(3), {}, np.zeros((1, 4), bool), np.zeros(1))
