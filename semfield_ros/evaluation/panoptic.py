"""Panoptic quality of a scene: every pixel of every test view together, so an id must mean the same in all of them.

PQ = sum of IoU over matches / (TP + FP / 2 + FN / 2) = SQ x RQ, of each class and then averaged (Kirillov et al.,
Panoptic Segmentation, CVPR 2019). Segments match where their class is the same and IoU > 1/2, which at most one can.
PQ_scene (Siddiqui et al., Panoptic Lifting, CVPR 2023) takes a scene's views for one large image: an object that has
another id in the next view is split, and pays for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError


@dataclass(frozen=True)
class ClassQuality:
    """One class: matches, segments that match nothing, true segments that were missed, and what follows."""

    matched: int
    false: int
    missed: int
    iou_sum: float

    @property
    def pq(self) -> float:
        """Panoptic quality; nan where there is no segment of the class at all."""
        return self.iou_sum / self._weight if self._weight else float("nan")

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matches, 0 where nothing matches."""
        return self.iou_sum / self.matched if self.matched else 0.0 if self._weight else float("nan")

    @property
    def rq(self) -> float:
        """Recognition quality: F1 of the segments."""
        return self.matched / self._weight if self._weight else float("nan")

    @property
    def _weight(self) -> float:
        return self.matched + 0.5 * self.false + 0.5 * self.missed


@dataclass(frozen=True)
class PanopticQuality:
    """Means over the classes in `classes` (those in the truth); nan where there are none.

    Attributes:
        things, stuff: PQ over classes with and without instances in the truth.
        classes: by id. `everywhere`: PQ averaged over classes in truth or prediction, as the challenges have it.
    """

    pq: float
    sq: float
    rq: float
    things: float
    stuff: float
    everywhere: float
    classes: dict[int, ClassQuality]


def panoptic_quality(
    predicted_class: np.ndarray | None,
    predicted_instance: np.ndarray,
    true_class: np.ndarray | None,
    true_instance: np.ndarray,
    *,
    stuff: Sequence[int] = (),
    void: int = 0,
) -> PanopticQuality:
    """PQ, SQ and RQ of labels of any equal shape, all pixels of a scene together.

    A segment is a class and an instance; instance 0 is the class's stuff.

    Args:
        predicted_class, true_class: integers, `void` (or negative) = none; None in both = one class of every instance
            > 0, and void elsewhere where nothing is true.
        predicted_instance, true_instance: integers; negative = no answer, or not known.
        stuff: classes whose instances say nothing.

    Raises:
        ConfigError: shapes differ, or only one side has classes.
    """
    if (predicted_class is None) != (true_class is None):
        raise ConfigError("classes are given on one side only; give both, or neither to rate instances alone")
    if predicted_class is None or true_class is None:
        known = np.asarray(true_instance) >= 0
        true_class = np.where(known, np.where(np.asarray(true_instance) > 0, 1, 2), void)
        predicted_class = np.where(np.asarray(predicted_instance) > 0, 1, 2)
        # what is no instance is context: it is not rated, yet an instance that reaches into it pays
        result = _quality(predicted_class, predicted_instance, true_class, true_instance, (2,), void)
        return _summary({k: v for k, v in result.items() if k == 1}, {1}, {1})
    result = _quality(predicted_class, predicted_instance, true_class, true_instance, stuff, void)
    classes, instances = np.asarray(true_class).reshape(-1), np.asarray(true_instance).reshape(-1)
    present = set(np.unique(classes[(classes != void) & (classes >= 0)]).tolist())
    things = set(np.unique(classes[instances > 0]).tolist()) - set(stuff)
    return _summary(result, present, things)


def _summary(result: dict[int, ClassQuality], present: set[int], things: set[int]) -> PanopticQuality:
    here = {c: q for c, q in result.items() if c in present}

    def mean(values: list[float]) -> float:
        finite = [v for v in values if np.isfinite(v)]
        return float(np.mean(finite)) if finite else float("nan")

    return PanopticQuality(
        pq=mean([q.pq for q in here.values()]),
        sq=mean([q.sq for q in here.values()]),
        rq=mean([q.rq for q in here.values()]),
        things=mean([q.pq for c, q in here.items() if c in things]),
        stuff=mean([q.pq for c, q in here.items() if c not in things]),
        everywhere=mean([q.pq for q in result.values()]),
        classes=here,
    )


def _segments(
    classes: np.ndarray, instances: np.ndarray, stuff: Sequence[int], void: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of the segment [N] of each pixel (-1 = none), and class and instance of each segment [S]."""
    instances = np.where(np.isin(classes, stuff), 0, instances)
    valid = (classes != void) & (classes >= 0) & (instances >= 0)
    pairs = np.stack([classes[valid], instances[valid]], 1)
    unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
    number = np.full(len(classes), -1)
    number[valid] = inverse.reshape(-1)
    return number, unique[:, 0], unique[:, 1]


def _quality(
    predicted_class: np.ndarray, predicted_instance: np.ndarray, true_class: np.ndarray, true_instance: np.ndarray,
    stuff: Sequence[int], void: int,
) -> dict[int, ClassQuality]:  # fmt: skip
    arrays = [np.asarray(a) for a in (predicted_class, predicted_instance, true_class, true_instance)]
    if len({a.shape for a in arrays}) != 1:
        raise ConfigError(f"labels have shapes {[a.shape for a in arrays]}; expected four equal shapes")
    pc, pi, tc, ti = (a.reshape(-1).astype(np.int64) for a in arrays)
    predicted, class_p, _ = _segments(pc, pi, stuff, void)
    true, class_t, _ = _segments(tc, ti, stuff, void)
    n_p, n_t = len(class_p), len(class_t)
    # row n_t: where nothing is true; column n_p: where nothing is predicted
    at = np.where(true >= 0, true, n_t) * (n_p + 1) + np.where(predicted >= 0, predicted, n_p)
    cells, count = np.unique(at, return_counts=True)
    row, column = np.divmod(cells, n_p + 1)
    size_t, size_p, ignored = np.zeros(n_t), np.zeros(n_p), np.zeros(n_p)
    np.add.at(size_t, row[row < n_t], count[row < n_t])
    np.add.at(size_p, column[column < n_p], count[column < n_p])
    nowhere = (row == n_t) & (column < n_p)
    ignored[column[nowhere]] = count[nowhere]
    both = (row < n_t) & (column < n_p)
    row, column, count = row[both], column[both], count[both]
    # pixels without truth are not held against a segment
    iou = count / (size_t[row] + size_p[column] - ignored[column] - count)
    match = (iou > 0.5) & (class_t[row] == class_p[column])
    found_t, found_p = np.zeros(n_t, bool), np.zeros(n_p, bool)
    found_t[row[match]], found_p[column[match]] = True, True
    outside = ignored > 0.5 * size_p
    result = {}
    for c in np.union1d(class_t, class_p).tolist():
        result[c] = ClassQuality(
            matched=int((match & (class_t[row] == c)).sum()),
            false=int((~found_p & ~outside & (class_p == c)).sum()),
            missed=int((~found_t & (class_t == c)).sum()),
            iou_sum=float(iou[match & (class_t[row] == c)].sum()),
        )
    return result
