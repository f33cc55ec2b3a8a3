"""Average precision of instances in space, by the rules of ScanNet's instance benchmark (Dai et al., CVPR 2017).

An instance answers a true one of its class when their intersection over union is above a threshold. AP is the mean over
thresholds .5, .55 ... .9; AP50 and AP25 are those of one threshold. The rules where nothing is matched: a second
answer to the same truth is wrong; an answer without a truth is wrong, unless more of it than the threshold lies on
points that are not annotated or on true instances too small to count, which are ignored; small answers are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..errors import ConfigError

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(9))
MIN_POINTS = 100
"""Instances of fewer points do not count."""


@dataclass(frozen=True)
class InstanceScene:
    """One scene: P points, G true instances, K answers.

    Attributes:
        truth: [P] int, id of the true instance (> 0); 0 = annotated, but none; -1 = not annotated, ignored.
        truth_class: class of each true id, those not listed have class 0; {} = one class for all.
        answers: [K, P] bool (dense or sparse), points of each answer; answers may overlap.
        score: [K] float, surer answers score higher. answer_class: [K] int; None = one class for all.
    """

    truth: np.ndarray
    truth_class: dict[int, int]
    answers: np.ndarray | sparse.spmatrix
    score: np.ndarray
    answer_class: np.ndarray | None = None

    def __post_init__(self) -> None:
        count, points = self.answers.shape
        given = len(self.score), count if self.answer_class is None else len(self.answer_class)
        if np.shape(self.truth) != (points,) or given != (count, count):
            raise ConfigError(
                f"answers are {self.answers.shape}, truth {np.shape(self.truth)}, scores and classes {given}; expected "
                "[K, P], [P], [K], [K]"
            )


@dataclass(frozen=True)
class AveragePrecision:
    """Means over the classes that have true instances; NaN where there are none.

    Attributes:
        ap: over IoU .5:.05:.9. ap50, ap25: at one threshold. by_class: (ap, ap50, ap25) of each class.
        recall50: share of true instances that were answered at IoU .5, over all classes together. truths: how many.
    """

    ap: float
    ap50: float
    ap25: float
    recall50: float
    truths: int
    by_class: dict[int, tuple[float, float, float]]


def average_precision(
    scenes: InstanceScene | Sequence[InstanceScene], min_points: int = MIN_POINTS
) -> AveragePrecision:
    """AP over all scenes together, each answer against the truth of its own scene.

    Args:
        min_points: instances of fewer points do not count.
    """
    scenes = [scenes] if isinstance(scenes, InstanceScene) else scenes
    tables = [_overlaps(scene, min_points) for scene in scenes]
    classes = sorted({c for table in tables for c in table.truth_class[table.counts].tolist()})
    by_class, found, truths = {}, 0, 0
    for label in classes:
        parts = [table.of_class(label) for table in tables]
        curve = {t: _precision(parts, t) for t in (0.25, *THRESHOLDS)}
        by_class[label] = (float(np.mean([curve[t][0] for t in THRESHOLDS])), curve[0.5][0], curve[0.25][0])
        found += curve[0.5][1]
        truths += curve[0.5][2]
    ap, ap50, ap25 = np.mean(list(by_class.values()), axis=0).tolist() if by_class else [float("nan")] * 3
    return AveragePrecision(ap, ap50, ap25, found / truths if truths else float("nan"), truths, by_class)


@dataclass(frozen=True)
class _Overlaps:
    """Of K answers with G true instances: what is needed to decide who answers whom.

    Attributes:
        shared: [K, G] points in both. size: [K]. truth_size: [G]. void: [K] points that are not annotated.
        counts: [G] bool, large enough. score, answer_class: [K]. truth_class: [G].
    """

    shared: np.ndarray
    size: np.ndarray
    truth_size: np.ndarray
    void: np.ndarray
    counts: np.ndarray
    score: np.ndarray
    answer_class: np.ndarray
    truth_class: np.ndarray

    def of_class(self, label: int) -> _Overlaps:
        """The part of one class."""
        k, g = self.answer_class == label, self.truth_class == label
        return _Overlaps(
            self.shared[k][:, g], self.size[k], self.truth_size[g], self.void[k], self.counts[g], self.score[k],
            self.answer_class[k], self.truth_class[g],
        )  # fmt: skip


def _overlaps(scene: InstanceScene, min_points: int) -> _Overlaps:
    answers = sparse.csr_matrix(scene.answers, dtype=np.int64)
    answers.data[:] = 1
    truth = np.asarray(scene.truth, np.int64)
    ids, where = np.unique(truth[truth > 0], return_inverse=True)
    points = np.flatnonzero(truth > 0)
    member = sparse.csr_matrix(
        (np.ones(len(points), np.int64), (points, where.reshape(-1))), shape=(len(truth), len(ids))
    )
    shared = np.asarray((answers @ member).todense())
    size = np.diff(answers.indptr)
    keep = size >= max(1, min_points)
    classes = np.zeros(len(size), np.int64) if scene.answer_class is None else np.asarray(scene.answer_class, np.int64)
    truth_size = np.bincount(where.reshape(-1), minlength=len(ids))
    return _Overlaps(
        shared[keep], size[keep], truth_size, np.asarray(answers @ (truth < 0).astype(np.int64))[keep],
        truth_size >= min_points, np.asarray(scene.score, np.float64)[keep], classes[keep],
        np.array([scene.truth_class.get(int(i), 0) for i in ids], np.int64),
    )  # fmt: skip


def _precision(parts: Sequence[_Overlaps], threshold: float) -> tuple[float, int, int]:
    """AP of one class at one threshold; how many true instances were answered; how many there are."""
    right: list[float] = []
    wrong: list[float] = []
    truths = 0
    for part in parts:
        union = part.size[:, None] + part.truth_size[None] - part.shared
        match = part.shared > threshold * union
        truths += int(part.counts.sum())
        free = np.ones(len(part.size), bool)  # below an IoU of .5 one answer may match two true instances
        for column in np.flatnonzero(part.counts):
            answers = np.flatnonzero(match[:, column] & free)
            if len(answers):
                answers = answers[np.argsort(-part.score[answers], kind="stable")]
                free[answers[0]] = False
                right.append(float(part.score[answers[0]]))
                wrong.extend(part.score[answers[1:]].tolist())
        ignored = part.void + part.shared[:, ~part.counts].sum(1)
        stray = ~match.any(1) & (ignored <= threshold * part.size)
        wrong.extend(part.score[stray].tolist())
    return _area(np.array(right), np.array(wrong), truths), len(right), truths


def _area(right: np.ndarray, wrong: np.ndarray, truths: int) -> float:
    """Area under precision over recall, as ScanNet sums it: one point a distinct score, half the recall to both
    neighbours as its width, and the curve closed at precision 1 and recall 0."""
    if truths == 0:
        return float("nan")
    scores = np.unique(np.concatenate([right, wrong]))[::-1]
    if not len(scores):
        return 0.0
    hits = np.searchsorted(np.sort(-right), -scores, side="right")
    misses = np.searchsorted(np.sort(-wrong), -scores, side="right")
    precision = np.concatenate([[1.0], hits / (hits + misses)])
    recall = np.concatenate([[0.0], hits / truths])
    before, after = np.concatenate([[0.0], recall[:-1]]), np.concatenate([recall[1:], [recall[-1]]])
    # the lowest score's neighbour below is nothing at all: its width reaches to its own recall
    return float(precision @ ((after - before) / 2))
