"""Part words inside an object: how much each of its points is the handle, and not the rim (LERF-TOGO, Rashid et al.,
CoRL 2023: the part's relevancy, conditioned on the object)."""

from __future__ import annotations

import numpy as np

from ..errors import QueryError
from ..field.snapshot import Snapshot
from .prompt import EncodedPrompts, PartTexts, Prompt
from .scores import Source, score_points


def part_scores(
    snapshot: Snapshot, texts: PartTexts, points: np.ndarray, *, source: Source = "auto", temperature: float = 10.0
) -> np.ndarray:
    """Relevancy [n] float32 of a part's words at an object's points [n, 3], 0 where nothing is known.

    They are told apart from the words of other parts, of which some are always near: on a mug that is all "mug", only
    what else a point could be says where the handle ends. A part is a few voxels, at which field and point map err each
    in its own way: `auto` takes the mean of both.

    Raises:
        QueryError: there is nothing to tell the part apart from.
    """
    if not len(texts.negatives):
        raise QueryError("a part is told apart from others, and no words for those are known; set query.part_words")
    prompt = Prompt("part", tuple("part" for _ in texts.positives))
    owner = np.zeros(len(texts.positives), np.int64)
    encoded = EncodedPrompts((prompt,), texts.positives, owner, texts.negatives)
    asked: tuple[Source, ...] = ("auto", "points") if source == "auto" else (source,)
    found = [score_points(snapshot, encoded, points, source=s, temperature=temperature) for s in asked]
    return np.asarray(np.mean([scores.relevancy[:, 0] for scores in found], axis=0), np.float32)
