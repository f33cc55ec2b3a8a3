"""Figures of merit as pure functions. Whatever cannot be computed (nothing to compare) is NaN, never 0 or an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def confusion_matrix(
    predicted: np.ndarray, truth: np.ndarray, classes: int, *, void: int | Sequence[int] = ()
) -> np.ndarray:
    """Counts of (truth, prediction): [C, C + 1] int64; the last column is "no class answered".

    Args:
        predicted, truth: integer labels of any equal shape. Truth equal to `void` or negative is not counted.
            Predictions outside 0..C-1 (an abstention) count as no answer, which is wrong. classes: C.

    Raises:
        ConfigError: shapes differ, or truth holds a label >= C that is not void.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape:
        raise ConfigError(f"predicted has shape {predicted.shape}, truth {truth.shape}; expected equal shapes")
    predicted, truth = predicted.reshape(-1).astype(np.int64), truth.reshape(-1).astype(np.int64)
    counted = (truth >= 0) & ~np.isin(truth, np.atleast_1d(np.asarray(void, dtype=np.int64)))
    predicted, truth = predicted[counted], truth[counted]
    if len(truth) and truth.max() >= classes:
        raise ConfigError(f"truth holds label {truth.max()}; allowed: 0 to {classes - 1} or void")
    answer = np.where((predicted >= 0) & (predicted < classes), predicted, classes)
    return np.bincount(truth * (classes + 1) + answer, minlength=classes * (classes + 1)).reshape(classes, -1)


@dataclass(frozen=True)
class Segmentation:
    """How well labels agree. Published tables differ in what they average over, so all conventions are here.

    Attributes:
        miou: mean IoU over classes present in the truth (Semantic-NeRF's "valid class" mIoU; OpenScene's evaluation).
        miou_answered: over classes present in the truth or in the prediction (Semantic-NeRF's plain mIoU).
        miou_all: over all C classes, an absent one counting 0 (OpenScene's original division).
        frequency_weighted_iou: IoU of present classes weighted by their share of the truth.
        accuracy: share of labels that are right. class_accuracy: recall, averaged over classes present.
        iou: [C], NaN for classes in neither. recall: [C], NaN for classes not in the truth.
    """

    miou: float
    miou_answered: float
    miou_all: float
    frequency_weighted_iou: float
    accuracy: float
    class_accuracy: float
    iou: np.ndarray
    recall: np.ndarray


def segmentation(confusion: np.ndarray) -> Segmentation:
    """Scores of a confusion matrix [C, C] or [C, C + 1] (rows: truth)."""
    confusion = np.asarray(confusion, dtype=np.float64)
    classes = len(confusion)
    if confusion.ndim != 2 or confusion.shape[1] not in (classes, classes + 1):
        raise ConfigError(f"confusion matrix has shape {confusion.shape}; expected [C, C] or [C, C + 1]")
    right, truth, answered = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)[:classes]
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, recall = right / (truth + answered - right), right / truth
        accuracy = float(right.sum() / truth.sum())
        weighted = float(np.nansum(np.where(truth > 0, truth * iou, 0.0)) / truth.sum())
    present = truth > 0
    nothing = not present.any()
    return Segmentation(
        miou=_mean(iou[present]),
        miou_answered=_mean(iou[~np.isnan(iou)]),
        miou_all=float("nan") if nothing else float(iou[present].sum() / classes),
        frequency_weighted_iou=weighted,
        accuracy=accuracy,
        class_accuracy=_mean(recall[present]),
        iou=iou,
        recall=recall,
    )


@dataclass(frozen=True)
class Depth:
    """Errors of z-depth where truth and prediction both exist: the list of Eigen et al. (2014), and two more.

    Attributes:
        abs_rel, sq_rel (m): relative to the truth. abs_diff, rmse, median (m). log_rmse: natural logarithm.
        delta_1, delta_2, delta_3: share with max(p / t, t / p) < 1.25, 1.25^2, 1.25^3.
        within_5cm: share of pixels with truth that were predicted to 5 cm; a missing prediction is a miss.
        coverage: share of pixels with truth that were predicted at all. count: pixels compared.
    """

    abs_rel: float
    abs_diff_m: float
    sq_rel_m: float
    rmse_m: float
    log_rmse: float
    delta_1: float
    delta_2: float
    delta_3: float
    median_m: float
    within_5cm: float
    coverage: float
    count: int


def depth(predicted_m: np.ndarray, truth_m: np.ndarray) -> Depth:
    """Depth errors; 0, negative and non-finite depth is no measurement, on either side.

    Raises:
        ConfigError: shapes differ.
    """
    p, t = np.asarray(predicted_m, dtype=np.float64), np.asarray(truth_m, dtype=np.float64)
    if p.shape != t.shape:
        raise ConfigError(f"predicted depth has shape {p.shape}, truth {t.shape}; expected equal shapes")
    with np.errstate(invalid="ignore"):
        measured = np.isfinite(t) & (t > 0)
        both = measured & np.isfinite(p) & (p > 0)
    wanted = int(measured.sum())
    p, t = p[both], t[both]
    error = np.abs(p - t)
    ratio = np.maximum(p / t, t / p)
    return Depth(
        abs_rel=_mean(error / t),
        abs_diff_m=_mean(error),
        sq_rel_m=_mean(error**2 / t),
        rmse_m=float(np.sqrt(_mean(error**2))),
        log_rmse=float(np.sqrt(_mean(np.log(p / t) ** 2))),
        delta_1=_mean(ratio < 1.25),
        delta_2=_mean(ratio < 1.25**2),
        delta_3=_mean(ratio < 1.25**3),
        median_m=float(np.median(error)) if len(error) else float("nan"),
        within_5cm=float((error < 0.05).sum() / wanted) if wanted else float("nan"),
        coverage=len(error) / wanted if wanted else float("nan"),
        count=len(error),
    )


def psnr_db(predicted: np.ndarray, truth: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio of images [..., 3], decibel; infinite for equal images, NaN for nothing.

    Both uint8 (peak 255) or both float in [0, 1] (peak 1). mask: [...] bool, pixels that count.

    Raises:
        ConfigError: shapes differ, or one is uint8 and the other is not.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape or (predicted.dtype == np.uint8) != (truth.dtype == np.uint8):
        raise ConfigError(
            f"images are {predicted.dtype} {predicted.shape} and {truth.dtype} {truth.shape}; "
            "expected equal shapes, both uint8 or both float in [0, 1]"
        )
    peak = 255.0 if truth.dtype == np.uint8 else 1.0
    error = (predicted.astype(np.float64) - truth.astype(np.float64)) ** 2
    mean = _mean(error.reshape(-1) if mask is None else error[mask].reshape(-1))
    with np.errstate(divide="ignore"):
        return float(10.0 * np.log10(peak**2 / np.float64(mean)))


def inside_boxes(points: np.ndarray, lower: np.ndarray, upper: np.ndarray, margin_m: float = 0.0) -> np.ndarray:
    """Which points [N, 3] lie inside any of K axis-aligned boxes [K, 3], grown by `margin_m`: [N] bool; NaN is out."""
    points = np.atleast_2d(np.asarray(points, dtype=np.float64))[:, None]
    lower, upper = np.atleast_2d(lower)[None], np.atleast_2d(upper)[None]
    with np.errstate(invalid="ignore"):
        inside = np.all((points >= lower - margin_m) & (points <= upper + margin_m), axis=2)
    return np.any(inside, axis=1)


def localised(centre: np.ndarray | None, lower: np.ndarray, upper: np.ndarray, margin_m: float = 0.05) -> bool:
    """Whether the best object's centre [3] is inside a right box; None (no object) is not."""
    return centre is not None and bool(inside_boxes(centre, lower, upper, margin_m)[0])


def top_share_inside(
    points: np.ndarray,
    score: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    *,
    share: float = 0.01,
    margin_m: float = 0.05,
) -> float:
    """Of the best-scoring `share` of the points (at least one), how many are inside a right box; NaN for no points."""
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}; allowed: 0 to 1, not 0")
    score = np.asarray(score)
    rows = np.flatnonzero(np.isfinite(score))
    if len(rows) == 0:
        return float("nan")
    count = max(1, int(np.ceil(share * len(rows))))
    best = rows[np.argsort(-score[rows], kind="stable")[:count]]
    return float(inside_boxes(np.asarray(points)[best], lower, upper, margin_m).mean())


def rate(outcomes: Sequence[bool] | np.ndarray) -> float:
    """Share of outcomes that are true (localisation accuracy, correct abstentions); NaN for none."""
    return _mean(np.asarray(outcomes, dtype=np.float64))
