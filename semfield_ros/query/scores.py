"""Scores of prompts over points, from the field, from the point map, or from whichever knows better.

The field's cosines are computed in factored form: with feature f = A h, A = [W b], h = [hidden, 1], and unit text t,
cos(t, f) = (A^T t) . h / sqrt(h^T (A^T A) h),
so no D-dimensional vector is ever formed: N points and Q prompts cost O(N (H^2 + H Q)) whatever D is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..errors import QueryError
from ..field.model import Field
from ..field.snapshot import Snapshot
from .prompt import EncodedPrompts
from .relevancy import best_synonym, pairwise_relevancy

MAX_POINTS = 20_000_000
Source = Literal["auto", "field", "points"]


@dataclass(frozen=True)
class Scores:
    """N points against Q prompts.

    Attributes:
        cosine, relevancy: [N, Q] float32. seen: [N] bool, False = nothing is known there (scores are then 0).
        from_field: [N] bool, which map answered.
    """

    cosine: np.ndarray
    relevancy: np.ndarray
    seen: np.ndarray
    from_field: np.ndarray


@torch.no_grad()
def field_cosines(field: Field, points: np.ndarray, texts: np.ndarray, chunk: int = 131072) -> np.ndarray:
    """Cosines [N, T] float32 of the field's features at points [N, 3] with unit texts [T, D]; any chunk size agrees."""
    head = field.head("language")
    device = head.last.weight.device
    affine = head.affine()
    t = torch.from_numpy(np.ascontiguousarray(texts, np.float32)).to(device)
    if t.shape[1] != affine.shape[0]:
        raise QueryError(f"texts have {t.shape[1]} dimensions, the map's features {affine.shape[0]}: another encoder")
    projected = affine.T @ t.T
    out = np.empty((len(points), len(t)), np.float32)
    for start in range(0, len(points), chunk):
        x = torch.from_numpy(np.ascontiguousarray(points[start : start + chunk], np.float32)).to(device)
        h = head.hidden(field.encode(head.config.grid, x), None)
        cosine = (h @ projected) / head.squared_length(h).clamp_min(1e-12).sqrt()[:, None]
        out[start : start + chunk] = cosine.cpu().numpy()
    return out


@torch.no_grad()
def map_cosines(features: np.ndarray, texts: np.ndarray, chunk: int = 32768) -> np.ndarray:
    """Cosines [N, T] of feature rows [N, D] (any length or float type; zero rows give 0) with unit texts [T, D]."""
    if texts.shape[1] != features.shape[1]:
        raise QueryError(f"texts have {texts.shape[1]} dimensions, the map's features {features.shape[1]}")
    t = torch.from_numpy(np.ascontiguousarray(texts.T, np.float32))
    out = np.empty((len(features), t.shape[1]), np.float32)
    for start in range(0, len(features), chunk):
        f = torch.from_numpy(features[start : start + chunk]).float()
        norm = f.norm(dim=1, keepdim=True)
        out[start : start + chunk] = torch.where(norm > 1e-6, (f @ t) / norm.clamp_min(1e-6), 0.0).numpy()
    return out


def _checked(points: np.ndarray) -> np.ndarray:
    try:
        points = np.asarray(points)
    except ValueError as error:
        raise QueryError(f"points are no array: {error}; expected numbers of shape [N, 3]") from error
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "fiu":
        raise QueryError(f"points are {points.dtype} of shape {points.shape}; expected numbers of shape [N, 3]")
    if len(points) > MAX_POINTS:
        raise QueryError(f"{len(points)} points; allowed: {MAX_POINTS}; ask in parts")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite: unseen
        return points.astype(np.float32)


def score_points(
    snapshot: Snapshot,
    texts: EncodedPrompts,
    points: np.ndarray | None = None,
    *,
    source: Source = "auto",
    temperature: float = 10.0,
) -> Scores:
    """Score prompts at points [N, 3] in global_frame (default: the point map's own voxels).

    `auto` takes the field where it is trained and seen, the point map elsewhere. Non-finite points are unseen.
    """
    if source not in ("auto", "field", "points"):
        raise QueryError(f"source is {source!r}; allowed: auto, field, points")
    if points is None:
        points, rows = snapshot.cloud.points, np.arange(len(snapshot.cloud))
    else:
        points = _checked(points)
        rows = snapshot.rows_of(points)
    vectors = np.concatenate([texts.positives, texts.negatives])
    n, known = len(points), rows >= 0
    measured = np.zeros(n, bool)
    measured[known] = snapshot.measured[rows[known]]
    use_field = np.zeros(n, bool)
    if source == "field":
        if snapshot.field is None or not snapshot.language:
            raise QueryError("the field has not learnt features yet; ask the point map (source='points') or wait")
        use_field = known & measured
    elif source == "auto":
        use_field[known] = snapshot.trusted[rows[known]]
    cosine = np.zeros((n, len(vectors)), np.float32)
    if use_field.any():
        assert snapshot.field is not None
        cosine[use_field] = field_cosines(snapshot.field, points[use_field], vectors)
    use_map = measured & ~use_field
    if use_map.any():
        cosine[use_map] = map_cosines(snapshot.features[rows[use_map]], vectors)
    positive, negative = cosine[:, : len(texts.positives)], cosine[:, len(texts.positives) :]
    count = len(texts.prompts)
    if negative.shape[1]:
        relevancy = best_synonym(pairwise_relevancy(positive, negative, temperature), texts.owner, count)
        relevancy = np.where(measured[:, None], relevancy, 0.0).astype(np.float32)
    else:
        relevancy = np.full((n, count), np.nan, np.float32)
    return Scores(best_synonym(positive, texts.owner, count), relevancy, measured, use_field)
