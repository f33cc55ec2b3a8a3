"""One question to many blocks: each scores its own points, and the scores stand together again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import numpy as np

from ..errors import QueryError
from ..field.snapshot import Snapshot
from ..field.world import WorldSnapshot

T = TypeVar("T")


def fan_out(
    world: WorldSnapshot, points: np.ndarray | None, need_field: bool, score: Callable[[Snapshot, np.ndarray | None], T]
) -> T:
    """A dataclass of arrays [N, ...], row by row from the block that knows the point; zeros where none does.

    Args:
        points: [N, 3], or None for the world's own N voxels. O(points), one block in use at a time.
        need_field: leave out blocks whose field has learnt nothing yet.
        score: asks one block about points [n, 3], or about all its own (None).

    Raises:
        QueryError: `need_field`, and no block has one.
    """
    if need_field and not world.language:
        raise QueryError("the field has not learnt features yet; ask the point map (source='points') or wait")
    if points is None:
        count = len(world.cloud)
        asked = [(k, np.arange(world.offsets[k], world.offsets[k + 1])) for k in range(len(world.parts))]
    else:
        count = len(points)
        asked = list(world.split(world.rows_of(points)))
    kind: type[T] | None = None
    columns: dict[str, np.ndarray] = {}

    def gather(rows: np.ndarray, found: T) -> None:
        nonlocal kind
        kind = type(found)
        for field in fields(found):  # type: ignore[arg-type]
            values = getattr(found, field.name)
            if field.name not in columns:
                columns[field.name] = np.zeros((count, *values.shape[1:]), values.dtype)
            columns[field.name][rows] = values

    for number, rows in asked:
        part = world.parts[number]
        if not len(rows) or (need_field and not part.language):
            continue
        snapshot = part.read()
        whole = snapshot is not None and len(snapshot.cloud) == len(rows)
        if snapshot is not None and (points is not None or whole):
            gather(rows, score(snapshot, None if points is None else points[rows]))
    if kind is None:  # nobody knows any of the points: what an empty map says of them
        return score(world.nothing(), np.zeros((count, 3), np.float32) if points is None else points)
    return kind(**columns)
