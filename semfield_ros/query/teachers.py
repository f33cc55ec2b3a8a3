"""Words asked of several teachers at once: each scores in its own space, and only the scores meet (late fusion)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config import QueryConfig
from ..encoders.ensemble import Ensemble, Fusion
from ..errors import QueryError
from ..field.snapshot import Snapshot
from ..field.teachers import PREFIX
from ..field.world import WorldSnapshot
from .fan_out import fan_out
from .prompt import EncodedPrompts, PromptEncoder
from .relevancy import best_synonym, pairwise_relevancy
from .scores import Scores, checked, field_cosines, score_points

MAIN = "language"
"""The ensemble's name of the main encoder; others have their teacher's name and a head of the field."""


def score_teachers(
    snapshot: Snapshot,
    ensemble: Ensemble,
    prompts: str | Sequence[str | Sequence[str]],
    points: np.ndarray | None = None,
    *,
    config: QueryConfig | None = None,
    how: Fusion = "log_odds",
) -> Scores:
    """Prompts at points [N, 3] (None = the map's own), by all teachers that know words and have been learnt.

    A point counts for a teacher where the map has seen it; the main encoder also answers from the point map. Teachers
    with scales (the pyramid) are asked through `query.scales` and take no part.

    Returns:
        Scores with fused relevancy; `cosine` is the main encoder's, or nan where it is none of them.

    Raises:
        QueryError: no teacher with a text space, unusable prompts or points.
    """
    config = config or QueryConfig()
    if not ensemble.aligned:
        ensemble.encode_text([])  # says which teachers there are, and that none knows words
    encoded = {
        name: PromptEncoder(ensemble.encoders[name], config).encode(prompts) for name in ensemble.aligned
    }
    return _score(snapshot, ensemble, encoded, None if points is None else checked(points), config, how)


def _score(
    snapshot: Snapshot, ensemble: Ensemble, encoded: dict[str, EncodedPrompts], points: np.ndarray | None,
    config: QueryConfig, how: Fusion,
) -> Scores:  # fmt: skip
    if isinstance(snapshot, WorldSnapshot):
        return fan_out(snapshot, points, False, lambda block, at: _score(block, ensemble, encoded, at, config, how))
    at = snapshot.cloud.points if points is None else points
    rows = np.arange(len(at)) if points is None else snapshot.rows_of(points)
    seen = rows >= 0
    relevancy: dict[str, np.ndarray] = {}
    main: Scores | None = None
    for name, texts in encoded.items():
        if name == MAIN:
            main = score_points(snapshot, texts, points, temperature=config.temperature)
            relevancy[name] = np.where(main.seen[:, None], main.relevancy, np.nan)
            continue
        head = PREFIX + name
        field = snapshot.field
        if field is None or not snapshot.learnt.get(head) or field.head(head).config.knots_m:
            continue
        vectors = np.concatenate([texts.positives, texts.negatives])
        cosine = field_cosines(field, at[seen], vectors, head_name=head)
        positive, negative = cosine[:, : len(texts.positives)], cosine[:, len(texts.positives) :]
        found = np.full((len(at), len(texts.prompts)), np.nan, np.float32)
        paired = pairwise_relevancy(positive, negative, config.temperature)
        found[seen] = best_synonym(paired, texts.owner, len(texts.prompts))
        relevancy[name] = found
    if not relevancy:
        raise QueryError("no teacher with a text space has been learnt yet; wait for the first training steps")
    count = len(next(iter(encoded.values())).prompts)
    known = np.any([np.isfinite(r).all(1) for r in relevancy.values()], axis=0)
    cosine = main.cosine if main is not None else np.full((len(at), count), np.nan, np.float32)
    from_field = main.from_field if main is not None else known
    return Scores(cosine, ensemble.fuse(relevancy, how), known, from_field)
