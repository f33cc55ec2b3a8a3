"""What the heads of the field say of the objects of an answer: which instance each is, of which class, how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import QueryError
from ..field.snapshot import Snapshot
from ..objects import Object
from ..query.semantics import Semantics, semantics_at
from .instances import InstanceBook


@dataclass(frozen=True)
class About:
    """What is known of one object. `instance`, `class_id`: 0 = none. `entropy`: mean over its points [nats], or NaN."""

    instance: int = 0
    class_id: int = 0
    class_name: str = ""
    entropy: float = float("nan")


UNKNOWN = About()


def classes_at(snapshot: Snapshot, points: np.ndarray | None) -> Semantics | None:
    """Classes at points [N, 3] (None = the map's own); None where the map learns none."""
    try:
        return semantics_at(snapshot, points)
    except QueryError:
        return None


def about(
    snapshot: Snapshot, things: Sequence[Object], book: InstanceBook, classes: int = 0,
    names: Mapping[int, str] | None = None,
) -> list[About]:  # fmt: skip
    """What is known of each object, from one question about the points of all. O(points).

    Args:
        classes: how many the map learns. names: of classes, by id.
    """
    if not things:
        return []
    points = np.concatenate([thing.cloud.points for thing in things])
    owner = np.repeat(np.arange(len(things)), [len(thing.cloud) for thing in things])
    found, learnt = book.known(snapshot), classes_at(snapshot, points) if classes else None
    instance = np.zeros(len(things), np.int64) if found is None else majorities(owner, found.at(points), len(things))
    class_id, entropy = np.zeros(len(things), np.int64), np.full(len(things), np.nan)
    if learnt is not None:
        class_id = majorities(owner, learnt.label, len(things))
        count = np.bincount(owner, learnt.seen, len(things))
        total = np.bincount(owner, np.where(learnt.seen, learnt.entropy, 0), len(things))
        entropy = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return [
        About(int(i), int(k), (names or {}).get(int(k), ""), float(e)) for i, k, e in zip(instance, class_id, entropy)
    ]


def majorities(owner: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """The commonest id > 0 among the rows of each of `count` owners, [count]; 0 where most of its rows have none.

    Args:
        owner: [N] 0 to count - 1. ids: [N]; 0 and less = none.
    """
    found = np.zeros(count, np.int64)
    pairs, votes = np.unique(np.stack([owner, np.maximum(ids, 0)]), axis=1, return_counts=True)
    for k in np.argsort(votes, kind="stable"):
        found[pairs[0, k]] = pairs[1, k]
    return found
