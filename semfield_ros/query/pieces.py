"""Pieces of space: what hangs together, what is joined across blocks, and what it was called before."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

APART_M = 0.1
"""Pieces of one slot that are farther apart are two instances: what is never seen together may share a slot."""
MIN_POINTS = 12
"""Map points of an instance."""
ISLAND = 0.1
TOUCHING = 4


def pieces(points: np.ndarray, label: np.ndarray, apart_m: float, min_points: int) -> np.ndarray:
    """Which piece each point [N, 3] of a label [N] > 0 lies in: 1, 2, ... [N]; pieces of one label are about `apart_m`
    or more apart. 0 for label 0, for pieces of fewer than `min_points`, and for islands: pieces of less than ISLAND of
    the largest of their label. O(N log N)."""
    found = np.zeros(len(points), np.int64)
    rows = np.flatnonzero(label > 0)
    if not len(rows):
        return found
    cell = np.floor(points[rows] / (apart_m / 2)).astype(np.int64)
    cell -= cell.min(0) - 1
    size = cell.max(0) + 2
    key = ((label[rows] * size[0] + cell[:, 0]) * size[1] + cell[:, 1]) * size[2] + cell[:, 2]
    unique, inverse = np.unique(key, return_inverse=True)
    a, b = [], []
    for dx, dy, dz in np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], [-1, 0, 1]), -1).reshape(-1, 3)[14:]:
        other = unique + (dx * size[1] + dy) * size[2] + dz
        at = np.minimum(np.searchsorted(unique, other), len(unique) - 1)
        touching = np.flatnonzero(unique[at] == other)
        a.append(touching)
        b.append(at[touching])
    left, right = np.concatenate(a), np.concatenate(b)
    graph = coo_matrix((np.ones(len(left)), (left, right)), (len(unique), len(unique)))
    piece = connected_components(graph, directed=False)[1][inverse.reshape(-1)]
    count = np.bincount(piece)
    largest = np.zeros(int(label.max()) + 1)
    np.maximum.at(largest, label[rows], count[piece])
    of = np.zeros(len(count), np.int64)
    of[piece] = label[rows]
    good = (count >= min_points) & (count >= ISLAND * largest[of])
    number = np.where(good, np.cumsum(good), 0)
    found[rows] = number[piece]
    return found


def joined(points: np.ndarray, piece: np.ndarray, block: np.ndarray, reach_m: float) -> np.ndarray:
    """Pieces [N] of points [N, 3], one number for those of different blocks [N] that touch: TOUCHING pairs of their
    points, and no fewer than half of what the better match of either has, are `reach_m` apart or less."""
    rows = np.flatnonzero(piece > 0)
    a, b = (np.zeros(0, np.int64),) * 2
    if len(rows):
        pairs = cKDTree(points[rows]).query_pairs(reach_m, output_type="ndarray")
        pairs = rows[pairs[block[rows[pairs[:, 0]]] != block[rows[pairs[:, 1]]]]]
        a, b = piece[pairs].T
    size = int(piece.max(initial=0)) + 1
    contact = coo_matrix((np.ones(len(a)), (a, b)), (size, size)).tocsr()
    contact = (contact + contact.T).tocoo()
    most = np.zeros(size)
    np.maximum.at(most, contact.row, contact.data)
    good = (contact.data >= TOUCHING) & (contact.data >= 0.5 * np.maximum(most[contact.row], most[contact.col]))
    graph = coo_matrix((contact.data[good], (contact.row[good], contact.col[good])), (size, size))
    group = connected_components(graph, directed=False)[1]
    return np.where(piece > 0, np.unique(group, return_inverse=True)[1].reshape(-1)[piece] + 1, 0)


def matched(piece: np.ndarray, before: np.ndarray, next_id: int) -> np.ndarray:
    """The id of each piece [P + 1] (of piece 0: 0): one to one, the overlap with the ids before is largest.

    A piece takes an old id where they share a fifth of the smaller of them; others get next_id, next_id + 1, ...

    Args:
        piece: [N] 1 to P, 0 = none. before: [N] old ids of the same places, 0 = none.
    """
    table = np.zeros(int(piece.max(initial=0)) + 1, np.int64)
    old = np.unique(before[before > 0])
    if len(old) and len(table) > 1:
        both = (piece > 0) & (before > 0)
        shared = np.zeros((len(table), len(old)))
        np.add.at(shared, (piece[both], np.searchsorted(old, before[both])), 1)
        sizes = np.bincount(piece, minlength=len(table))[:, None], np.bincount(before)[old][None]
        shared = np.where(shared >= 0.2 * np.minimum(*sizes), shared, 0)
        rows, columns = linear_sum_assignment(shared, maximize=True)
        good = shared[rows, columns] > 0
        table[rows[good]] = old[columns[good]]
    fresh = np.flatnonzero(table[1:] == 0) + 1
    table[fresh] = np.arange(next_id, next_id + len(fresh))
    return table


def majority(ids: np.ndarray, classes: np.ndarray) -> dict[int, int]:
    """The commonest class > 0 of each id > 0 among n points: class by id; an id none of whose points has one is left
    out."""
    use = (ids > 0) & (classes > 0)
    pairs, count = np.unique(np.stack([ids[use], classes[use]]).astype(np.int64), axis=1, return_counts=True)
    order = np.argsort(count, kind="stable")
    return {int(i): int(c) for i, c in pairs[:, order].T}
