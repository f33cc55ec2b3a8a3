"""From cosines to scores."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..errors import QueryError


def pairwise_relevancy(positives: np.ndarray, negatives: np.ndarray, temperature: float = 10.0) -> np.ndarray:
    """min_i exp(T c_q) / (exp(T c_q) + exp(T c_i)) (LERF, Kerr et al. 2023, with its temperature of 10).

    Args:
        positives: [N, Q] cosines with what is asked. negatives: [N, M] cosines with what it is told apart from.

    Returns:
        [N, Q] in (0, 1). The minimum over negatives is attained at the largest one.
    """
    if not 0 < temperature < np.inf:
        raise QueryError(f"temperature is {temperature}; allowed: > 0 and finite")
    if negatives.shape[1] == 0:
        raise QueryError("relevancy needs at least one negative; give some or ask for raw cosines (score='cosine')")
    nearest = negatives[:, 0]
    for column in negatives.T[1:]:  # many times faster than a reduction along a short axis
        nearest = np.maximum(nearest, column)
    margin = torch.from_numpy(positives - nearest[:, None])
    return margin.mul_(temperature).sigmoid_().numpy()


def best_synonym(values: np.ndarray, owner: np.ndarray, prompts: int) -> np.ndarray:
    """[N, S] values of synonyms -> [N, prompts], the best synonym's."""
    if len(owner) == prompts:
        return values
    starts = np.searchsorted(owner, np.arange(prompts))
    return np.maximum.reduceat(values, starts, axis=1)


def top_percent(score: np.ndarray, percent: float) -> np.ndarray:
    """[N] bool: the best `percent` of the scores (at least one point unless there are none)."""
    if not 0 < percent <= 100:
        raise QueryError(f"percent is {percent}; allowed: 0 < percent <= 100")
    selected = np.zeros(len(score), bool)
    if len(score):
        n = max(1, round(len(score) * percent / 100))
        selected[np.argpartition(-score, n - 1)[:n]] = True
    return selected


def hysteresis(points: np.ndarray, score: np.ndarray, *, high: float, low: float, radius_m: float) -> np.ndarray:
    """[N] bool: points >= low that are connected, over steps of at most radius_m, to one >= high.

    Points that are not finite are connected to nothing and left out.
    """
    if low > high:
        raise QueryError(f"hysteresis thresholds are high {high} < low {low}; swap them")
    rows = np.flatnonzero((score >= low) & np.isfinite(points).all(1))
    selected = np.zeros(len(score), bool)
    if not len(rows):
        return selected
    pairs = cKDTree(points[rows]).query_pairs(radius_m, output_type="ndarray")
    graph = csr_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(rows), len(rows)))
    count, component = connected_components(graph, directed=False)
    seeded = np.zeros(count, bool)
    seeded[component[score[rows] >= high]] = True
    selected[rows] = seeded[component]
    return selected


def peak(score: np.ndarray, count: int = 8) -> float:
    """A robust maximum: the mean of the best `count` scores (of all where there are fewer); -inf without points."""
    if not len(score):
        return float("-inf")
    n = min(len(score), max(1, count))
    return float(np.partition(score, len(score) - n)[-n:].mean())
