"""From parts to things: join what the cuts took apart, split at score valleys, settle what lies flat on a support.

Labels are [K] int64 over the cells of a growth graph, -1 = none; every function returns new ones.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from .boxes import convex_polygon
from .cells import Cells, components

TINY_CELLS = 4
"""Parts this small are noise of the cuts: they go to the neighbour they share most links with."""
TINY_SHARE = 0.08
SMALL_SHARE = 0.3
"""A part this much smaller than its neighbour is a part of it (a handle, a lid, a logo)."""
CONCAVE_SHARE = 0.25
"""Two parts meet in a crease when this share of the links between them crosses one."""
INSIDE_SHARE = 0.5
"""So is one of whose cells this share lies within the other's footprint (the floor of a mug)."""


def top_mean(values: np.ndarray, share: float = 0.1, least: int = 3) -> float:
    """Mean of the best `share` of the values, of at least `least` of them: a peak that one outlier cannot make."""
    count = min(len(values), max(least, int(np.ceil(share * len(values)))))
    return float(np.partition(values, len(values) - count)[len(values) - count :].mean())


def footprint_share(points: np.ndarray, corners: np.ndarray, margin: float) -> float:
    """Share of the points [N, 2] inside a convex counter-clockwise polygon [M, 2] grown by `margin`."""
    if len(corners) < 3:
        return 0.0
    edge = np.roll(corners, -1, axis=0) - corners
    normal = np.stack([edge[:, 1], -edge[:, 0]], axis=1) / np.linalg.norm(edge, axis=1, keepdims=True)
    outside = (points[:, None, :] - corners[None]) * normal[None]
    return float((outside.sum(axis=2).max(axis=1) <= margin).mean())


def join_parts(cells: Cells, parts: np.ndarray, links: np.ndarray, cut: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """Parts that the cuts took from one thing become one again.

    Touching parts that look alike and meet without a crease are one. Those that look different and meet in a crease are
    two (a cube on a cube of another colour) unless one is tiny. In between they are one when one is small beside the
    other, or lies within its footprint.

    Args:
        parts: [K] labels. links, cut: [E, 2] and the [E] bool of concave ones, of the links that were cut and may be
            healed. plane: [K, 2] horizontal coordinates.
    """
    parts = _absorb_tiny(parts, links, cells)
    pairs = np.sort(parts[links], axis=1)
    apart = pairs[:, 0] != pairs[:, 1]
    if not apart.any():
        return parts
    code, which = np.unique(pairs[apart] @ [len(parts), 1], return_inverse=True)
    pairs, which = np.stack(np.divmod(code, len(parts)), axis=1), which.reshape(-1)
    borders = np.bincount(which)
    concave = np.bincount(which, weights=cut[apart]) > CONCAVE_SHARE * borders

    root = np.arange(parts.max() + 1)
    members = {int(p): np.flatnonzero(parts == p) for p in np.unique(pairs)}

    def find(p: int) -> int:
        while root[p] != p:
            p = int(root[p])
        return p

    corners = {p: convex_polygon(plane[rows]) for p, rows in members.items()}
    looks = {p: cells.appearance[rows].mean(axis=0) for p, rows in members.items()}
    merged = True
    while merged:
        merged = False
        for k in np.argsort(-borders, kind="stable"):
            a, b = find(int(pairs[k, 0])), find(int(pairs[k, 1]))
            if a == b:
                continue
            small, large = sorted((a, b), key=lambda p: (len(members[p]), p))
            share = len(members[small]) / len(members[large])
            alike = np.linalg.norm(looks[a] - looks[b]) <= 1.0
            if share > TINY_SHARE and (concave[k] or not alike):
                if concave[k] and not alike:
                    continue
                if share > SMALL_SHARE and footprint_share(plane[members[small]], corners[large], 0.0) < INSIDE_SHARE:
                    continue
            root[small], merged = large, True
            both = np.concatenate([members[large], members.pop(small)])
            looks[large] = looks[large] + (looks[small] - looks[large]) * share / (1 + share)
            corners[large] = convex_polygon(np.concatenate([corners[large], corners[small]]))
            members[large] = both
    return np.where(parts >= 0, np.array([find(p) for p in range(len(root))])[parts], -1)


def _absorb_tiny(parts: np.ndarray, links: np.ndarray, cells: Cells) -> np.ndarray:
    """Every tiny part joins the larger neighbour it has most links with."""
    size = np.bincount(parts[parts >= 0], minlength=1)
    ends = parts[np.concatenate([links, links[:, ::-1]])]
    ends = ends[(ends[:, 0] != ends[:, 1]) & (size[ends[:, 0]] <= TINY_CELLS) & (size[ends[:, 1]] > TINY_CELLS)]
    if len(ends) == 0:
        return parts
    pairs, count = np.unique(ends, axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], -count, pairs[:, 0]))
    tiny, best = np.unique(pairs[order, 0], return_index=True)
    target = np.arange(len(size))
    target[tiny] = pairs[order[best], 1]
    return np.where(parts >= 0, target[parts], -1)


def split_valleys(
    cells: Cells, regions: np.ndarray, links: np.ndarray, *, high: float, low: float, valley_ratio: float
) -> np.ndarray:
    """Regions with two peaks and a valley between them become two.

    The level is raised in steps from `low`; where a region falls into several components that each reach `high`, hold
    a fair number of cells and rise far enough above the level (`valley_ratio` of their height above `low`), they become
    regions of their own and the rest goes to the nearest. Scores are averaged over neighbours first, and measured
    against each region's own peak.
    """
    regions = regions.copy()
    count = len(regions)
    inner = links[(regions[links[:, 0]] == regions[links[:, 1]]) & (regions[links[:, 0]] >= 0)]
    both = np.concatenate([inner, inner[:, ::-1]])
    total = np.bincount(both[:, 0], weights=cells.score[both[:, 1]], minlength=count) + cells.score
    smooth = total / (np.bincount(both[:, 0], minlength=count) + 1)
    crest = _group_max(smooth, np.maximum(regions, 0))
    relative = (smooth - low) / np.maximum(crest[np.maximum(regions, 0)] - low, 1e-9)
    for level in np.arange(0.1, 1.0 - valley_ratio + 0.05, 0.1):
        above = (relative >= level) & (regions >= 0)
        inner = inner[(regions[inner[:, 0]] == regions[inner[:, 1]]) & above[inner].all(axis=1)]
        _, label = components(count, inner)
        peaks = _group_max(relative, label)
        raw = _group_max(cells.peak, label)
        size = np.bincount(label)
        fair = (size >= 3 * TINY_CELLS) & (raw >= high) & (peaks * (1.0 - valley_ratio) >= level)
        marked = above & fair[label]
        parent = np.full(len(size), -1)
        parent[label[marked]] = regions[marked]
        for region in np.flatnonzero(np.bincount(parent[parent >= 0]) > 1):
            rows = np.flatnonzero(regions == region)
            seeds = rows[marked[rows]]
            nearest = cKDTree(cells.points[seeds]).query(cells.points[rows])[1]
            _, index = np.unique(label[seeds], return_inverse=True)
            fresh = index.reshape(-1)[nearest]
            regions[rows] = np.where(fresh == 0, region, regions.max() + fresh)
    return regions


def settle(
    cells: Cells,
    regions: np.ndarray,
    links: np.ndarray,
    plane: np.ndarray,
    height: np.ndarray,
    *,
    high: float,
    margin_m: float,
) -> np.ndarray:
    """Decide what lies flat on a support and touches things that stand there.

    A flat region within the footprint of a standing one belongs to it (the middle of a plate). One larger than all it
    carries and at least as well matched is the thing itself and takes them in (a magazine with a curled page). Any
    other is a halo, the blur of a feature past the edge of its object, and is dropped.

    Args:
        links: [E, 2], those between a support's cell and one that stands on it. plane: [K, 2] horizontal coordinates.
        height: [K], metres along up.
    """
    regions, before = regions.copy(), regions
    a, b = links.T
    carries = (cells.support[a] >= 0) & ((cells.support[b] < 0) | (height[a] <= height[b]))
    pairs = before[np.where(carries[:, None], links, links[:, ::-1])]
    pairs = np.unique(pairs[(pairs >= 0).all(axis=1) & (pairs[:, 0] != pairs[:, 1])], axis=0)
    members = {int(region): np.flatnonzero(before == region) for region in np.unique(pairs)}
    for flat in np.unique(pairs[:, 0]):
        rows = members[flat]
        own = cells.support[rows]
        support = np.bincount(own[own >= 0]).argmax() if (own >= 0).any() else -1
        if support < 0 or (own == support).mean() < 0.5:
            continue
        others = [members[other] for other in pairs[pairs[:, 0] == flat, 1]]
        carried = [other for other in others if (cells.support[other] == support).mean() < 0.5]
        carried = [other for other in carried if cells.peak[other].max() >= high]
        if not carried:
            continue
        shares = [footprint_share(plane[rows], convex_polygon(plane[other]), margin_m) for other in carried]
        best = int(np.argmax(shares))
        if shares[best] >= 0.7:
            regions[rows] = before[carried[best][0]]
        elif len(rows) >= sum(map(len, carried)) and top_mean(cells.score[rows]) >= max(
            top_mean(cells.score[other]) for other in carried
        ):
            regions[np.concatenate(carried)] = flat
        else:
            regions[rows] = -1
    return regions


def _group_max(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    best = np.full(int(group.max()) + 1, -np.inf)
    np.maximum.at(best, group, values)
    return best
