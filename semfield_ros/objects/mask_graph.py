"""Instances in space from 2-D masks of many views whose ids disagree: a graph of masks over shared voxels.

View consensus (after the idea of MaskClustering, Yan et al., CVPR 2024): two masks are of one thing when most of the
views that hold each of them in a mask hold both in the same one. "Holds" is containment of the VISIBLE part,

    c(i, j) = |voxels of i that are in mask j| / |voxels of i that the view of j sees|,

so that a partial view of a thing agrees with a whole one, which intersection over union would punish. Groups of masks
grow by pairs, the best agreement first, and what a group covers is measured anew after each round: along a chain of
pairs that overlap, the group soon is in no single mask any more, and growth ends. Masks of one view are never grouped.

Everything is products of sparse matrices over voxels that are drawn so that each mask keeps about as many
(`sampled_voxels`): the time does not depend on how finely space is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..config import MaskConfig
from ..errors import QueryError

SAMPLE = 100
"""Voxels that a mask keeps, about, while masks are compared."""
_BITS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1, dtype=np.uint8)
_SPOKEN = 0.5
"""Views whose masks cover less of a group than this share of what they see of it have not spoken about it."""


@dataclass(frozen=True)
class MaskInstances:
    """K things found from M masks over V voxels.

    Attributes:
        label: [M] int32, the row of the instance a mask belongs to; -1 = none.
        voxels: [K, V] bool csr, what each instance covers; instances may overlap.
        views: [K] int32, masks (each of another view) an instance is made of.
        score: [K] float32 in [0, 1): mean agreement of its masks with it, surer with more of them.
    """

    label: np.ndarray
    voxels: sparse.csr_matrix
    views: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.views)

    def of_voxels(self) -> np.ndarray:
        """The instance each voxel belongs to, the best one where several claim it: [V] int32, -1 = none."""
        owner = np.full(self.voxels.shape[1], -1, np.int32)
        for row in np.argsort(self.score, kind="stable"):  # the best is written last
            owner[self.voxels.indices[self.voxels.indptr[row] : self.voxels.indptr[row + 1]]] = row
        return owner


def instances_from_masks(
    incidence: sparse.spmatrix,
    visibility: sparse.spmatrix,
    view: np.ndarray,
    config: MaskConfig | None = None,
) -> MaskInstances:
    """Group masks of several views into instances. No mask, no voxel and no view are normal input.

    Args:
        incidence: [M, V], nonzero where a mask covers a voxel; masks of one view may overlap.
        visibility: [T, V], nonzero where a view sees a voxel. What a mask covers, its view sees.
        view: [M] int, the view of each mask.

    Returns:
        instances with two views and more (`config.min_views`), the best first.

    Raises:
        QueryError: shapes that do not belong together, or a view that there is not.
    """
    config = config or MaskConfig()
    masks, sight = _binary(incidence), _binary(visibility)
    view = np.asarray(view, np.int64).reshape(-1)
    if masks.shape[0] != len(view) or masks.shape[1] != sight.shape[1]:
        raise QueryError(
            f"incidence is {masks.shape}, visibility {sight.shape}, view [{len(view)}]; expected [M, V], [T, V], [M]"
        )
    if len(view) and not (0 <= view.min() and view.max() < sight.shape[0]):
        raise QueryError(f"views go from {view.min()} to {view.max()}; allowed: 0 to {sight.shape[0] - 1}")
    group = group_masks(masks, sight, view, config)
    return _described(masks, sight, view, group, config)


def sampled_voxels(masks: sparse.csr_matrix, per_mask: int = SAMPLE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Columns drawn so that every mask keeps about `per_mask` of its voxels (all where it has fewer), and the weights
    that keep sums over them unbiased (Horvitz & Thompson 1952): [S] int64 sorted, [S] float32 >= 1."""
    size = np.diff(masks.indptr)
    smallest = np.full(masks.shape[1], np.inf)
    np.minimum.at(smallest, masks.indices, np.repeat(size, size).astype(np.float64))
    with np.errstate(divide="ignore"):
        chance = np.where(np.isfinite(smallest), np.minimum(1.0, per_mask / smallest), 0.0)
    chosen = np.flatnonzero(np.random.default_rng(seed).random(masks.shape[1]) < chance)
    return chosen, (1.0 / chance[chosen]).astype(np.float32)


def group_masks(
    masks: sparse.csr_matrix, sight: sparse.csr_matrix, view: np.ndarray, config: MaskConfig
) -> np.ndarray:
    """The group of each mask: [M] int64, -1 for masks over several things (and for those that cover no voxel)."""
    columns, weight = sampled_voxels(masks)
    masks, sight = masks[:, columns], sight[:, columns]
    group = np.where(np.diff(masks.indptr) > 0, np.arange(len(view)), -1)
    usable = np.flatnonzero(group >= 0)
    if not len(usable):
        return group
    evidence = _Evidence(masks[usable], sight, view[usable], weight, config)
    whole = ~evidence.spans_several()
    group[usable[~whole]] = -1
    usable = usable[whole]
    evidence = _Evidence(masks[usable], sight, view[usable], weight, config)
    member = np.arange(len(usable))
    while True:
        merged = evidence.merged(member)
        if merged is None:
            break
        member = merged
    group[usable] = member
    return group


@dataclass(frozen=True)
class _Contained:
    """Which groups K are seen by which of T views, and in which of M masks they lie."""

    observed: np.ndarray  # [K, T] bool
    held: np.ndarray  # [K, T] bool, it lies in one mask of that view
    inside: sparse.csr_matrix  # [K, M] float32, 1 where contained


class _Evidence:
    """What the views say of groups of masks."""

    def __init__(
        self, masks: sparse.csr_matrix, sight: sparse.csr_matrix, view: np.ndarray, weight: np.ndarray,
        config: MaskConfig,
    ):  # fmt: skip
        self.masks, self.view, self.config, self.weight = masks, view, config, weight
        self.sight, self.size = sight, np.diff(masks.indptr)
        self.masks_by_voxel = masks.T.tocsr()
        self.weighted_sight = sparse.diags(weight) @ sight.T.tocsr()
        self.in_view = _indicator(view, sight.shape[0]).T.tocsr()  # [M, T]

    def contained(self, cover: sparse.csr_matrix) -> _Contained:
        """Measure groups that cover voxels [K, V] (binary)."""
        config, views = self.config, self.sight.shape[0]
        size = cover @ self.weight
        seen = np.asarray((cover @ self.weighted_sight).todense(), np.float32)
        weighted = cover.multiply(self.weight[None]).tocsr()
        overlap = (weighted @ self.masks_by_voxel).tocoo()
        at = self.view[overlap.col]
        spoken = np.bincount(overlap.row * views + at, overlap.data, minlength=len(size) * views).reshape(-1, views)
        observed = (seen >= config.visible_share * size[:, None]) & (spoken >= _SPOKEN * seen) & (seen > 0)
        lies = observed[overlap.row, at] & (overlap.data >= config.contained_share * seen[overlap.row, at])
        row, column = overlap.row[lies], overlap.col[lies]
        held = np.zeros_like(observed)
        held[row, self.view[column]] = True
        inside = sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=overlap.shape)
        return _Contained(observed, held, inside)

    def spans_several(self) -> np.ndarray:
        """[M] bool: masks that too many of the views which see them divide among several masks: they cover more than
        one thing."""
        found = self.contained(self.masks)
        split = (found.observed & ~found.held).sum(1)
        looks, share = found.observed.sum(1), self.config.divided_share
        # a standard deviation of chance: few views, or many things, and some are cut more often than most
        return np.asarray(split > share * looks + np.sqrt(share * (1 - share) * looks))

    def merged(self, member: np.ndarray) -> np.ndarray | None:
        """One round: the groups [M] after the pairs that agree best have joined; None when no pair agrees."""
        count = int(member.max(initial=-1)) + 1
        belongs = _indicator(member, count)  # [K, M]
        found = self.contained(majority(belongs @ self.masks, belongs @ self.in_view, self.sight, self.config))
        support = sparse.triu(found.inside @ found.inside.T, 1).tocoo()
        a, b, both = support.row.astype(np.int64), support.col.astype(np.int64), support.data
        # a view that divides one of the two says little of whether they are one thing
        held, observed = _packed(found.held), _packed(found.observed)
        agree = both >= self.config.consensus * _common(held, held, a, b)
        a, b, both = a[agree], b[agree], both[agree]
        observers = np.maximum(_common(observed, observed, a, b), both)
        agree = both >= (1 - self.config.divided_share) * self.config.consensus * observers
        a, b = a[agree], b[agree]
        # agreement that many views stand behind comes first
        pairs = matched(a, b, both[agree] / (observers[agree] + 1.0), count)
        if not len(pairs):
            return None
        target = np.arange(count)
        target[b[pairs]] = a[pairs]
        return self._one_a_view(np.where(member >= 0, target[member], -1))

    def _one_a_view(self, member: np.ndarray) -> np.ndarray:
        """Groups [M] numbered anew, without the smaller masks where a group has several of one view: that view cut the
        thing to pieces."""
        at = np.flatnonzero(member >= 0)
        order = at[np.lexsort((-self.size[at], self.view[at], member[at]))]
        first = np.ones(len(order), bool)
        first[1:] = (np.diff(member[order]) != 0) | (np.diff(self.view[order]) != 0)
        alone = np.full(len(member), -1)
        kept = order[first]
        alone[kept] = np.unique(member[kept], return_inverse=True)[1].reshape(-1)
        return alone


def majority(
    covered: sparse.csr_matrix, views: sparse.csr_matrix, sight: sparse.csr_matrix, config: MaskConfig
) -> sparse.csr_matrix:
    """Which voxels groups of masks cover: those that `voxel_share` of a group's views put into its masks, of the views
    that see them. A stray border pixel of one view does not stay.

    Args:
        covered: [K, V] how many masks of the group hold a voxel. views: [K, T] nonzero where a group has a mask.
        sight: [T, V] what views see.

    Returns:
        [K, V] float32 csr of ones.
    """
    covered = covered.tocsr()
    group = np.repeat(np.arange(covered.shape[0]), np.diff(covered.indptr))
    looks = _common(_packed(views), _packed(sight.T), group, covered.indices)
    kept = covered.copy()
    kept.data = (covered.data >= config.voxel_share * looks).astype(np.float32)
    kept.eliminate_zeros()
    return kept


def matched(a: np.ndarray, b: np.ndarray, strength: np.ndarray, nodes: int) -> np.ndarray:
    """Indices of pairs (a, b) of which each is the strongest left for both its ends, until none is left; no node is
    used twice. Ties are broken alike every time, but not in order, or all would want the same partner."""
    tie = ((a * 0x9E3779B1) ^ (b * 0x85EBCA77)) & 0xFFFFFF
    order = np.lexsort((tie, -strength))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    chosen, left = [], np.arange(len(a))
    while len(left):
        best = np.full(nodes, len(order))
        np.minimum.at(best, a[left], rank[left])
        np.minimum.at(best, b[left], rank[left])
        mutual = left[(best[a[left]] == rank[left]) & (best[b[left]] == rank[left])]
        chosen.append(mutual)
        taken = np.zeros(nodes, bool)
        taken[a[mutual]] = taken[b[mutual]] = True
        left = left[~taken[a[left]] & ~taken[b[left]]]
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


def _described(
    masks: sparse.csr_matrix, sight: sparse.csr_matrix, view: np.ndarray, group: np.ndarray, config: MaskConfig
) -> MaskInstances:
    """Groups as instances over all voxels, without the small splinters of larger ones, the best first."""
    count = int(group.max(initial=-1)) + 1
    belongs = _indicator(group, count)
    in_view = _indicator(view, sight.shape[0]).T.tocsr()
    cover = majority(belongs @ masks, belongs @ in_view, sight, config)
    views = np.asarray(belongs.sum(1), np.int32).reshape(-1)
    size = np.diff(cover.indptr)
    score = _agreement(masks, sight, view, group, cover) * views / (views + 2.0)
    keep = (views >= config.min_views) & (size > 0)
    overlap = (cover @ cover.T).tocoo()
    splinter = (overlap.row != overlap.col) & (overlap.data >= config.contained_share * size[overlap.row])
    mutual = overlap.data >= config.contained_share * size[overlap.col]
    better = (score[overlap.col] > score[overlap.row]) | (
        (score[overlap.col] == score[overlap.row]) & (overlap.col < overlap.row)
    )
    splinter &= (2 * views[overlap.row] < views[overlap.col]) | (mutual & better)
    keep[overlap.row[splinter]] = False
    order = np.flatnonzero(keep)[np.argsort(-score[keep], kind="stable")]
    label = np.full(len(view), -1, np.int32)
    row = np.full(count, -1, np.int32)
    row[order] = np.arange(len(order))
    label[group >= 0] = row[group[group >= 0]]
    return MaskInstances(label, cover[order].astype(bool), views[order], score[order].astype(np.float32))


def _agreement(
    masks: sparse.csr_matrix, sight: sparse.csr_matrix, view: np.ndarray, group: np.ndarray,
    cover: sparse.csr_matrix,
) -> np.ndarray:  # fmt: skip
    """Mean intersection over union of an instance with its masks, each within what its view sees: [K] float."""
    at = np.flatnonzero(group >= 0)
    owner = group[at]
    shared = np.zeros(len(at))
    seen = np.zeros(len(at))
    for start in range(0, len(at), 1024):
        part = slice(start, start + 1024)
        theirs = cover[owner[part]]
        shared[part] = np.asarray(masks[at[part]].multiply(theirs).sum(1)).reshape(-1)
        seen[part] = np.asarray(sight[view[at[part]]].multiply(theirs).sum(1)).reshape(-1)
    size = np.diff(masks.indptr)[at]
    iou = shared / np.maximum(seen + size - shared, 1.0)
    count = cover.shape[0]
    return np.asarray(np.bincount(owner, iou, minlength=count) / np.maximum(np.bincount(owner, minlength=count), 1))


def _binary(matrix: sparse.spmatrix) -> sparse.csr_matrix:
    """Ones where there is anything, float32 csr without duplicates."""
    found = sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    found.sum_duplicates()
    found.eliminate_zeros()
    found.data[:] = 1.0
    return found


def _indicator(index: np.ndarray, count: int) -> sparse.csr_matrix:
    """[count, N] csr with a one in row index[n] of column n; none where index[n] is -1."""
    n = np.flatnonzero(index >= 0)
    return sparse.csr_matrix((np.ones(len(n), np.float32), (index[n], n)), shape=(count, len(index)))


def _packed(flags: sparse.spmatrix | np.ndarray) -> np.ndarray:
    """Rows of flags [K, T] as bits: [K, ceil(T / 64)] uint64."""
    count, columns = flags.shape
    packed = np.zeros((count, 8 * -(-columns // 64)), np.uint8)
    if isinstance(flags, np.ndarray):
        packed[:, : -(-columns // 8)] = np.packbits(flags, axis=1)
    else:
        at = flags.tocoo()
        np.bitwise_or.at(packed, (at.row, at.col // 8), (128 >> (at.col % 8)).astype(np.uint8))
    return packed.view(np.uint64)


def _common(left: np.ndarray, right: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many bits are set in both left[a[n]] and right[b[n]] (rows of `_packed`): [N] float64."""
    count = np.zeros(len(a), np.float64)
    for word in range(left.shape[1]):
        both = left[:, word][a] & right[:, word][b]
        bits = _BITS[both.view(np.uint16)].reshape(-1, 4)
        count += bits[:, 0] + bits[:, 1] + bits[:, 2] + bits[:, 3]  # many times faster than a sum along a short axis
    return count
