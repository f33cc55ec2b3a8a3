"""Answers about points that do not depend on how many were asked at a time.

A matrix product rounds differently when it has another number of rows. So points are worked on in tiles of one size,
the last one filled up with points that are nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from ..errors import QueryError

TILE = 4096
T = TypeVar("T")


def in_tiles(points: np.ndarray, chunk: int, work: Callable[[np.ndarray], T]) -> T:
    """`work` on points [N, 3], tile by tile, as one dataclass of arrays [N, ...].

    Args:
        chunk: points whose answers are held apart before they are put together, at least a tile.
        work: points [TILE, 3] float32, NaN where there is none, to a dataclass of arrays [TILE, ...].

    Raises:
        QueryError: an unusable chunk.
    """
    if chunk < 1:
        raise QueryError(f"chunk is {chunk}; allowed: >= 1")
    step = -(-chunk // TILE) * TILE
    return _joined([_tiled(points[start : start + step], work) for start in range(0, max(1, len(points)), step)])


def _tiled(points: np.ndarray, work: Callable[[np.ndarray], T]) -> T:
    found = []
    for start in range(0, max(1, len(points)), TILE):
        part = points[start : start + TILE]
        tile = np.full((TILE, 3), np.nan, np.float32)
        tile[: len(part)] = part
        answer = work(tile)
        found.append(type(answer)(**{name: values[: len(part)] for name, values in vars(answer).items()}))
    return _joined(found)


def _joined(parts: list[T]) -> T:
    if len(parts) == 1:
        return parts[0]
    return type(parts[0])(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})
