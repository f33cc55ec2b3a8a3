"""~/query_points: what the map says of given points, as fields of the response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cloud import sureness
from ..engine import Engine
from ..errors import QueryError
from ..field.snapshot import Snapshot
from ..field.world import WorldSnapshot
from ..messages.clouds import cloud_points
from ..query.classes import best_class, probabilities
from ..query.fan_out import fan_out
from ..query.labels import label_points
from ..query.points import features_at
from ..query.scores import Source
from ..query.semantics import entropy_of, semantics_at
from .instances import InstanceBook
from .labelling import label_floor
from .questions import bounded, matching, reply_of, thresholds

PROBABILITIES, ENTROPY, INSTANCES, FEATURES = 1, 2, 4, 8
_ALL = PROBABILITIES | ENTROPY | INSTANCES | FEATURES


@dataclass(frozen=True)
class Known:
    """N points against P labels: label [N] (-1 = none), scores and probabilities [N, P], confidence [N], seen [N]."""

    prompts: list[str]
    label: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray
    confidence: np.ndarray
    seen: np.ndarray


def answer_points(
    snapshot: Snapshot, request: Any, engine: Engine, book: InstanceBook, vocabulary: tuple[str, ...],
    class_names: Mapping[int, str],
) -> dict[str, Any]:  # fmt: skip
    """The fields of a QueryPoints response.

    Raises:
        SemfieldError: it cannot be answered as asked.
    """
    extras = int(request.extras)
    if extras & ~_ALL:
        raise QueryError(f"extras is {extras}; allowed: a sum of EXTRA_... of QueryPoints.srv, up to {_ALL}")
    points = cloud_points(request.points)
    how = matching(request.options)
    dim = snapshot.features.shape[1] if extras & FEATURES else 0
    if request.use_classes:
        known = _by_classes(snapshot, points, request, engine, class_names)
    else:
        known = _by_words(snapshot, points, request, engine, vocabulary, dim)
    fields = {
        "prompts": known.prompts,
        "labels": known.label,
        "scores": np.where(known.seen[:, None], known.scores, np.float32(0)).astype(np.float32).reshape(-1),
        "confidence": known.confidence,
        "seen": known.seen,
    }
    if extras & PROBABILITIES:
        fields["probabilities"] = known.probabilities.reshape(-1)
    if extras & ENTROPY:
        # what was not seen is not certain
        fields["entropy"] = np.where(known.seen, entropy_of(known.probabilities), np.float32(np.nan))
    if extras & INSTANCES:
        fields["instances"] = np.maximum(book.of(snapshot).at(points), 0)
    if extras & FEATURES:
        reply_of(len(points), dim, "points", "dimensions")
        source = how["source"] or engine.config.query.source
        found = _features(snapshot, points, source if source in ("field", "points") else "auto")
        fields |= {"feature_dim": found.shape[1], "features": found.reshape(-1)}
    return fields


def _by_words(
    snapshot: Snapshot, points: np.ndarray, request: Any, engine: Engine, vocabulary: tuple[str, ...], dim: int
) -> Known:
    config, options = engine.config, request.options
    prompts = list(request.prompts) or list(vocabulary)
    if not prompts:
        raise QueryError("there are no prompts and no vocabulary is set; give prompts or call ~/set_vocabulary")
    bounded(prompts, options.negatives, len(points))
    reply_of(len(points), max(len(prompts), dim), "points")
    how = matching(options)
    score = how["score"] or config.query.score
    least = thresholds(options, score).get("low", label_floor(engine, score))
    encoded = engine.prompts.encode(prompts, how["negatives"])
    found = label_points(
        snapshot, encoded, points, source=how["source"] or config.query.source, scales_m=how.get("scales_m", ()),
        temperature=config.query.temperature, score=score, least=least,
    )  # fmt: skip
    label = found.label
    if request.with_other:
        if len(prompts) < 2:
            raise QueryError("the last prompt stands for everything else; give at least one before it")
        best = best_class(found.cosine, other=True)
        label = np.where((label >= 0) & (best < len(prompts) - 1), best, -1).astype(np.int32)
    share = np.where(found.seen[:, None], probabilities(found.cosine), np.float32(0))
    return Known([p.label for p in encoded.prompts], label, found.scores, share, found.confidence, found.seen)


def _by_classes(
    snapshot: Snapshot, points: np.ndarray, request: Any, engine: Engine, names: Mapping[int, str]
) -> Known:
    if len(request.prompts) or request.with_other:
        raise QueryError("prompts and use_classes were given; ask for one of them at a time")
    how = matching(request.options)
    source = how["source"] or engine.config.query.source
    if how["source"] is None and source not in ("field", "points"):
        source = "auto"
    reply_of(len(points), engine.config.heads.semantic_classes, "points", "classes")
    found = semantics_at(snapshot, points, source=source)
    least = thresholds(request.options, "relevancy").get("low", 0.0)
    label = np.where(found.seen & (found.probabilities.max(1, initial=0) >= least), found.label - 1, -1)
    rows = snapshot.rows_of(points)
    surface = np.zeros(len(points), np.float32)
    surface[rows >= 0] = sureness(snapshot.cloud.observations[rows[rows >= 0]])
    called = [class_name(names, k + 1) for k in range(found.probabilities.shape[1])]
    return Known(called, label.astype(np.int32), found.probabilities, found.probabilities, surface, found.seen)


def class_name(names: Mapping[int, str], number: int) -> str:
    """What a class is called."""
    return names.get(number) or f"class {number}"


@dataclass(frozen=True)
class _Rows:
    values: np.ndarray


def _features(snapshot: Snapshot, points: np.ndarray, source: Source) -> np.ndarray:
    """Unit features [N, D] at points [N, 3], whichever block knows them; 0 where nothing is known."""
    if isinstance(snapshot, WorldSnapshot):

        def ask(block: Snapshot, at: np.ndarray | None) -> _Rows:
            assert at is not None
            return _Rows(features_at(block, at, source))

        return fan_out(snapshot, points, source == "field", ask).values
    return features_at(snapshot, points, source)
