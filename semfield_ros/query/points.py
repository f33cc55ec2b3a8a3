"""Everything a map says about given points: labels, probabilities, confidence, features; and scores of words.

What is said of a point is the same to the last bit however many are asked at a time (`tiles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..cloud import sureness
from ..errors import QueryError
from ..field.model import Field
from ..field.snapshot import Snapshot
from ..field.volume import density_of_distance, stretch
from ..field.world import WorldSnapshot
from ..geometry import Camera, image_directions, transform_points
from .classes import best_class, probabilities
from .fan_out import fan_out
from .prompt import EncodedPrompts, PromptEncoder
from .scores import Source, checked, score_points
from .semantics import semantics_at
from .tiles import in_tiles
from .view import render_view


@dataclass(frozen=True)
class PointAnswer:
    """What is known of N points.

    Attributes:
        label: [N] int32, the likeliest class; -1 = nothing is known there.
        probabilities: [N, C] float32, rows sum to 1; 0 where nothing is known.
        confidence: [N] float32 in [0, 1], that there is a surface: 1 - exp(-density x delta) where the field answers,
            n / (n + 2) after n observations where the point map does; 0 where nothing is known.
        features: [N, D] float32 unit features, D = 0 where they were not asked for. seen: [N] bool.
    """

    label: np.ndarray
    probabilities: np.ndarray
    confidence: np.ndarray
    features: np.ndarray
    seen: np.ndarray


@dataclass(frozen=True)
class TextAnswer:
    """Scores of Q texts at points [N] or pixels [H, W].

    Attributes:
        scores: [..., Q] float32, relevancies where there are negatives, else cosines; 0 where nothing is known.
        best: [...] int32, the best text; -1 where not valid. valid: [...] bool, known and, where there is a threshold,
            the best score reaches it.
    """

    scores: np.ndarray
    best: np.ndarray
    valid: np.ndarray


@torch.no_grad()
def surface_confidence(field: Field, points: np.ndarray, delta_m: float | None = None) -> np.ndarray:
    """1 - exp(-sigma delta) [N] float32 at points [N, 3]: how opaque `delta_m` of what is there would be.

    Args:
        delta_m: None = the truncation band, over which a surface is decided.
    """
    delta_m = field.config.truncation_m if delta_m is None else delta_m
    if not 0 < delta_m < np.inf:
        raise QueryError(f"delta_m is {delta_m}; allowed: > 0 and finite")
    device = next(field.parameters()).device
    x = torch.from_numpy(np.ascontiguousarray(points, np.float32)).to(device)
    density = density_of_distance(field.distance_at(x), field.config.truncation_m, stretch(x, field.workspace))
    confidence: np.ndarray = (1 - torch.exp(-density * delta_m)).cpu().numpy()
    return confidence


def query_points(
    snapshot: Snapshot,
    points: np.ndarray,
    classes: EncodedPrompts | None = None,
    *,
    source: Source = "auto",
    other: bool = False,
    temperature: float = 0.07,
    delta_m: float | None = None,
    features: bool = False,
    chunk: int = 1 << 18,
) -> PointAnswer:
    """What is known of points [N, 3] in global_frame. O(N).

    Args:
        classes: class names (`classes.encode_classes`), compared by cosine. None = the classes of the field's semantic
            head; `label` then starts at 0 for class 1.
        other: the last class is "other". temperature: of the softmax over cosines.
        delta_m: see `surface_confidence`. features: give those as well.
        chunk: points whose intermediate results are held at once, at least a tile; the answer is the same for any.

    Raises:
        QueryError: unusable points or chunk; no classes, and none learnt; source "field" before it has learnt any.
    """
    points = checked(points)

    def known(at: np.ndarray) -> PointAnswer:
        def ask(block: Snapshot, part: np.ndarray | None) -> PointAnswer:
            assert part is not None
            return _known(block, part, classes, source, other, temperature, delta_m, features)

        if not isinstance(snapshot, WorldSnapshot):
            return ask(snapshot, at)
        found = fan_out(snapshot, at, source == "field", ask)
        return replace(found, label=np.where(found.seen, found.label, -1).astype(np.int32))

    return in_tiles(points, chunk, known)


def text_query(
    snapshot: Snapshot,
    texts: PromptEncoder,
    asked: str | Sequence[str] | EncodedPrompts,
    *,
    points: np.ndarray | None = None,
    view: tuple[Camera, np.ndarray] | None = None,
    negatives: Sequence[str] | None = None,
    temperature: float = 10.0,
    threshold: float | None = None,
    source: Source = "auto",
    far_m: float = 6.0,
    chunk: int = 1 << 18,
) -> TextAnswer:
    """Score texts (or vectors: of clicks, of images) at points [N, 3], or at the pixels of a view.

    Args:
        points: None = the map's own voxels, unless there is a view. view: a camera and T_world_camera; its pixels are
            the surface that the field shows there, up to `far_m`.
        negatives: what to tell the texts apart from; None = the configured ones, [] = raw cosines.
        temperature: of the pairwise relevancy. threshold: the least valid score.
        chunk: see `query_points`; of no matter for the map's own voxels.

    Raises:
        QueryError: unusable texts, points, threshold, both points and a view, or a view before there is a field.
    """
    if points is not None and view is not None:
        raise QueryError("points and a view were given; ask about one of them at a time")
    if threshold is not None and not np.isfinite(threshold):
        raise QueryError(f"threshold is {threshold}; allowed: a finite score, or None")
    encoded = asked if isinstance(asked, EncodedPrompts) else texts.encode(asked, negatives)
    shape: tuple[int, ...] | None = None
    if view is not None:
        camera, T_world_camera = view
        depth_m = render_view(snapshot, camera, T_world_camera, far_m=far_m).depth_m
        shape = depth_m.shape
        local = image_directions(camera) * np.where(depth_m > 0, depth_m, np.nan)[..., None]
        points = transform_points(T_world_camera, local.reshape(-1, 3).astype(np.float32))
    if points is None:
        found = score_points(snapshot, encoded, source=source, temperature=temperature)
    else:
        found = in_tiles(
            checked(points), chunk,
            lambda at: score_points(snapshot, encoded, at, source=source, temperature=temperature),
        )  # fmt: skip
    scores = found.relevancy if len(encoded.negatives) else np.where(found.seen[:, None], found.cosine, 0)
    best = scores.argmax(1).astype(np.int32)
    valid = found.seen if threshold is None else found.seen & (scores.max(1) >= threshold)
    best = np.where(valid, best, -1).astype(np.int32)
    if shape is None:
        return TextAnswer(scores, best, valid)
    return TextAnswer(scores.reshape(*shape, -1), best.reshape(shape), valid.reshape(shape))


def features_at(snapshot: Snapshot, points: np.ndarray, source: Source = "auto") -> np.ndarray:
    """Unit features [N, D] float32 at points [N, 3] of one block; 0 where nothing is known."""
    rows = snapshot.rows_of(points)
    measured = _at(snapshot.measured, rows)
    trusted = measured if source == "field" else _at(snapshot.trusted, rows) & (source != "points")
    out = np.zeros((len(points), snapshot.features.shape[1]), np.float32)
    out[measured] = snapshot.features[rows[measured]]
    if trusted.any():
        if snapshot.field is None or not snapshot.language:
            raise QueryError("the field has not learnt features yet; ask the point map (source='points') or wait")
        out[trusted] = _head_at(snapshot.field, "language", points[trusted])
    return np.asarray(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6), np.float32)


def _known(
    snapshot: Snapshot, points: np.ndarray, classes: EncodedPrompts | None, source: Source, other: bool,
    temperature: float, delta_m: float | None, features: bool,
) -> PointAnswer:  # fmt: skip
    """`query_points` of one block, all at once."""
    if classes is not None:
        scores = score_points(snapshot, classes, points, source=source)
        share, seen = probabilities(scores.cosine, temperature), scores.seen
        label = best_class(scores.cosine, other)
        from_field = scores.from_field
    else:
        known = semantics_at(snapshot, points, source="auto" if source == "ensemble" else source)
        share, seen, label, from_field = known.probabilities, known.seen, known.label - 1, known.from_field
    share[~seen] = 0.0
    confidence = np.zeros(len(points), np.float32)
    rows = snapshot.rows_of(points)
    on_map = seen & (rows >= 0)
    confidence[on_map] = sureness(snapshot.cloud.observations[rows[on_map]])
    if snapshot.field is not None and from_field.any():
        confidence[from_field] = surface_confidence(snapshot.field, points[from_field], delta_m)
    wanted = features_at(snapshot, points, source) if features else np.zeros((len(points), 0), np.float32)
    return PointAnswer(np.where(seen, label, -1).astype(np.int32), share, confidence, wanted, seen)


@torch.no_grad()
def _head_at(field: Field, name: str, points: np.ndarray) -> np.ndarray:
    """Outputs [N, out_dim] of a head at points [N, 3]."""
    x = torch.from_numpy(np.ascontiguousarray(points, np.float32)).to(next(field.parameters()).device)
    out: np.ndarray = field.values(name, x).cpu().numpy()
    return out


def _at(flags: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`flags` [M] at rows [N], False where a row is -1."""
    known = rows >= 0
    return known & flags[np.where(known, rows, 0)] if len(flags) else known
