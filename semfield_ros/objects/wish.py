"""What the place that is held should be like: words, and a task that was demonstrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..field.snapshot import Snapshot
from ..query.prompt import EncodedPrompts
from ..query.tasks import FieldFeatures, TaskEmbedding, TaskPrompts, taught


class FeatureSource(Protocol):
    """Features of space, asked along a few directions so that no whole feature is ever built."""

    def __call__(self, points: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """alpha [N] in [0, 1], how solid space is at points [N, 3] (0 = free), and dot products [N, R] float32 of the
        unit features there with directions [R, D]; 0 where nothing is known."""
        ...


@dataclass(frozen=True)
class Wish:
    """Attributes:
    features: of the map that the scene is from.
    positives: [S, D] unit vectors of the words, any of which may fit; S = 0: no words.
    negatives: [M, D] unit vectors of what to tell it apart from.
    task: how it was shown to be held; None = nobody showed it.
    """

    features: FeatureSource
    positives: np.ndarray
    negatives: np.ndarray
    task: TaskEmbedding | None = None


def wish_of(snapshot: Snapshot, question: EncodedPrompts, prompt: int) -> Wish | None:
    """What prompt number `prompt` of a question asks of a place to hold: its part's words, else its own, and its task.
    None where the map has not learnt the features it takes."""
    task = question.tasks[prompt] if isinstance(question, TaskPrompts) else None
    head = "language" if task is None else task.head
    if next(taught(snapshot, head), None) is None:
        return None
    part = question.parts.get(prompt)
    if head != "language":  # words have no features there
        positives, negatives = np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)
    elif part is not None:
        positives, negatives = part.positives, part.negatives
    else:
        positives, negatives = question.positives[question.owner == prompt], question.negatives
    return Wish(FieldFeatures(snapshot, head), positives, negatives, task)
