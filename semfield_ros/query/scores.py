"""Scores of prompts over points, from the field, from the point map, or from whichever knows better.

The field's cosines are computed in factored form: with feature f = A h, A = [W b], h = [hidden, 1], and unit text t,
cos(t, f) = (A^T t) . h / sqrt(h^T (A^T A) h),
so no D-dimensional vector is ever formed: N points and Q prompts cost O(N (H^2 + H Q)) whatever D is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..errors import QueryError
from ..field.model import Field
from ..field.snapshot import Snapshot
from ..field.world import WorldSnapshot
from .ensemble import combined
from .fan_out import fan_out
from .prompt import EncodedPrompts
from .relevancy import best_synonym, pairwise_relevancy

MAX_POINTS = 20_000_000
Source = Literal["auto", "field", "points", "ensemble", "scales"]


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
def field_cosines(
    field: Field, points: np.ndarray, texts: np.ndarray, chunk: int = 16384, *, head_name: str = "language"
) -> np.ndarray:
    """Cosines [N, T] float32 of the field's features at points [N, 3] with unit texts [T, D]; any chunk size agrees.

    One matrix product a chunk gives both (A^T A) h and (A^T t) . h; chunks are small enough to stay in the cache.
    """
    head = field.head(head_name)
    device = head.last.weight.device
    affine = head.affine()
    t = torch.from_numpy(np.ascontiguousarray(texts, np.float32)).to(device)
    if t.shape[1] != affine.shape[0]:
        raise QueryError(f"texts have {t.shape[1]} dimensions, the map's features {affine.shape[0]}: another encoder")
    gram, projected = affine.T @ affine, affine.T @ t.T
    # h ends with a 1, which need not be multiplied
    width = len(gram) - 1
    product = torch.cat([gram[:width, :width], projected[:width]], 1)
    offset = torch.cat([2 * gram[width, :width], projected[width]])
    out = np.empty((len(points), len(t)), np.float32)
    # what fits a processor's cache keeps no GPU busy
    chunk = chunk if device.type == "cpu" else 64 * chunk
    for start in range(0, len(points), chunk):
        part = slice(start, start + chunk)
        x = torch.from_numpy(np.ascontiguousarray(points[part], np.float32)).to(device)
        h = field.trunk_at(head_name, x)
        both = torch.addmm(offset, h, product)
        square = (both[:, :width] * h).sum(-1) + gram[width, width]
        out[part] = (both[:, width:] * square.clamp_min(1e-12).rsqrt()[:, None]).cpu().numpy()
    return out


@torch.no_grad()
def map_cosines(
    features: np.ndarray,
    texts: np.ndarray,
    chunk: int = 4096,
    *,
    rows: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Cosines [N, T] of feature rows [M, D] (any length or float type; zero rows give 0) with unit texts [T, D].

    Args:
        rows: [N] those asked for; None = all. lengths: [M] of the features, where they are known.
    """
    if texts.shape[1] != features.shape[1]:
        raise QueryError(f"texts have {texts.shape[1]} dimensions, the map's features {features.shape[1]}")
    t = torch.from_numpy(np.ascontiguousarray(texts.T, np.float32))
    asked, every = torch.from_numpy(features), None if rows is None else torch.from_numpy(rows)
    out = np.empty((len(features) if rows is None else len(rows), t.shape[1]), np.float32)
    for start in range(0, len(out), chunk):
        part = slice(start, start + chunk)
        f = (asked[part] if every is None else asked[every[part]]).float()
        cosine = f @ t
        if lengths is None:
            length = f.norm(dim=1)
        else:
            length = torch.from_numpy(lengths[part] if rows is None else lengths[rows[part]])
        cosine *= torch.where(length > 1e-6, 1 / length.clamp_min(1e-6), 0.0)[:, None]
        out[part] = cosine.numpy()
    return out


def checked(points: np.ndarray) -> np.ndarray:
    """Points [N, 3] as float32; QueryError for what is none."""
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
    rows: np.ndarray | None = None,
    scales_m: Sequence[float] = (),
) -> Scores:
    """Score prompts at points [N, 3] in global_frame (default: the point map's own voxels).

    `auto` takes the field where it is trained and seen, the point map elsewhere; `ensemble`, where both know a point,
    the one that is surer of its best prompt; `scales` each prompt at the scale where it is most relevant among the
    points (`query.scales`). Non-finite points are unseen.

    Args:
        rows: [N], `snapshot.rows_of(points)` where the caller has them already.
        scales_m: to search, for `scales`; none = what was learnt.
    """
    if source not in ("auto", "field", "points", "ensemble", "scales"):
        raise QueryError(f"source is {source!r}; allowed: auto, field, points, ensemble, scales")
    if source == "scales":
        from .scales import score_scales

        rated = "relevancy" if len(texts.negatives) else "cosine"
        return score_scales(
            snapshot, texts, points, scales_m=scales_m or None, temperature=temperature, score=rated
        ).scores
    if isinstance(snapshot, WorldSnapshot):
        return fan_out(
            snapshot, None if points is None else checked(points), source == "field",
            lambda block, at: score_points(block, texts, at, source=source, temperature=temperature),
        )  # fmt: skip
    if source == "field" and (snapshot.field is None or not snapshot.language):
        raise QueryError("the field has not learnt features yet; ask the point map (source='points') or wait")
    if points is None:
        rows = None
        points, measured, trusted = snapshot.cloud.points, snapshot.measured, snapshot.trusted
    else:
        points = checked(points)
        rows = snapshot.rows_of(points) if rows is None else rows
        measured, trusted = (_at(flags, rows) for flags in (snapshot.measured, snapshot.trusted))
    use_field = measured if source == "field" else trusted if source != "points" else np.zeros(len(points), bool)
    vectors = np.concatenate([texts.positives, texts.negatives])
    if len(points) and use_field.all() and source != "ensemble":
        assert snapshot.field is not None
        cosine = field_cosines(snapshot.field, points, vectors)
    else:
        cosine = np.zeros((len(points), len(vectors)), np.float32)
        from_field, from_map = np.flatnonzero(use_field), np.flatnonzero(measured & ~use_field)
        if len(from_field):
            assert snapshot.field is not None
            cosine[from_field] = field_cosines(snapshot.field, points[from_field], vectors)
        if len(from_map):
            at = from_map if rows is None else rows[from_map]
            cosine[from_map] = map_cosines(snapshot.features, vectors, rows=at, lengths=snapshot.feature_lengths)
        if source == "ensemble" and len(from_field):
            at = from_field if rows is None else rows[from_field]
            fused = map_cosines(snapshot.features, vectors, rows=at, lengths=snapshot.feature_lengths)
            cosine[from_field], surer = combined(fused, cosine[from_field], len(texts.positives))
            use_field = use_field.copy()
            use_field[from_field] = surer
    positive, negative = cosine[:, : len(texts.positives)], cosine[:, len(texts.positives) :]
    count = len(texts.prompts)
    if negative.shape[1]:
        relevancy = best_synonym(pairwise_relevancy(positive, negative, temperature), texts.owner, count)
        relevancy[~measured] = 0.0
    else:
        relevancy = np.full((len(points), count), np.nan, np.float32)
    return Scores(best_synonym(positive, texts.owner, count), relevancy, measured, use_field)


def _at(flags: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`flags` [M] at rows [N], False where a row is -1."""
    known = rows >= 0
    return known & flags[np.where(known, rows, 0)] if len(flags) else known
