"""Labels: which of several prompts a point matches best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..cloud import sureness
from ..errors import QueryError
from ..field.snapshot import Snapshot
from .prompt import EncodedPrompts
from .scores import Source, checked, score_points


@dataclass(frozen=True)
class Labels:
    """N points against Q prompts.

    Attributes:
        label: [N] int32, the prompt with the highest score; -1 where nothing was seen or none scores enough.
        scores: [N, Q] float32, relevancies or cosines, as asked; 0 = unseen. cosine: [N, Q] float32.
        confidence: [N] float32 in [0, 1], how sure the map is of a surface there: n / (n + 2) after n observations.
        seen: [N] bool.
    """

    label: np.ndarray
    scores: np.ndarray
    cosine: np.ndarray
    confidence: np.ndarray
    seen: np.ndarray


def label_points(
    snapshot: Snapshot,
    encoded: EncodedPrompts,
    points: np.ndarray | None = None,
    *,
    source: Source = "auto",
    temperature: float = 10.0,
    score: str = "relevancy",
    least: float | None = None,
    scales_m: Sequence[float] = (),
) -> Labels:
    """The best prompt at points [N, 3] in global_frame (None = the map's own). O(N Q).

    Args:
        score: relevancy, or cosine, which needs no negatives. The order of prompts at a point is the same in both.
        least: a label whose score is lower is none. scales_m: see `score_points`.

    Raises:
        QueryError: unusable points, or relevancy without negatives.
    """
    if score == "relevancy" and not len(encoded.negatives):
        raise QueryError("relevancy needs at least one negative; give some or ask for raw cosines")
    rows = None
    if points is not None:
        points = checked(points)
        rows = snapshot.rows_of(points)
    found = score_points(
        snapshot, encoded, points, source=source, temperature=temperature, rows=rows, scales_m=scales_m
    )
    values = found.relevancy if score == "relevancy" else found.cosine
    label = found.cosine.argmax(1).astype(np.int32)
    known = found.seen if least is None else found.seen & (values[np.arange(len(label)), label] >= least)
    surface = sureness(snapshot.cloud.observations if rows is None else snapshot.cloud.observations[rows])
    if rows is not None:
        surface[rows < 0] = 0.0
    return Labels(np.where(known, label, -1).astype(np.int32), values, found.cosine, surface, found.seen)
