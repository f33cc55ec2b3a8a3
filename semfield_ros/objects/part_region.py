"""The part of an object: which of its points, once each has a score for the words of the part.

Language is coarse (a patch of a dense encoder covers 2 to 3 cm of a table-top thing, a handle is half as thick), shape
is not. So the part is found as a minimum cut of the object's surface (Boykov & Jolly, ICCV 2001): points near
the best scores of their object pull to the part, others to the rest, and the border between both runs where it is
short, along concave creases and where colour changes. Scores count by their place in the object's own range: which of
its points are most the part is asked, not how much (LERF-TOGO, Rashid et al., CoRL 2023). No kinds of things are known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from ..cloud import SurfaceCloud
from ..config import ObjectConfig, QueryConfig
from ..field.snapshot import Snapshot
from ..query.parts import part_scores
from ..query.prompt import PartTexts, Prompt
from ..query.scores import Source
from .boxes import unit
from .cells import Cells, build_cells, components
from .objects import Object, ObjectPart
from .parts import top_mean
from .reasons import PART_NOT_FOUND

LEVEL = 0.7
"""The part lies above this share of the way from the middle of its object's scores to their top: a point too many is
worse than one too few where fingers are to close."""
STIFFNESS = 0.3
"""A point cut off from all its neighbours costs so much of the way from their middle to their top."""
CREASE_SHARE = 0.2
"""Cutting along a crease, or where colour changes, costs this share of it."""
FAIR_SHARE = 0.7
"""Of separate pieces those count that hold so much of the best one's evidence."""
LEAST_CONTRAST = 0.02
"""A part's mean score lies at least so far above that of the rest: noise has its peaks too."""
LEAST_POINTS = 6
MOST_CELLS = 10_000
"""Larger objects are cut as coarsely as it takes to keep about so many."""
_SCALE = 10_000
"""Capacities of the flow are whole numbers."""


@dataclass(frozen=True)
class PartRegion:
    """Points of an object that are its part.

    Attributes:
        rows: [p] int64, sorted, among the object's n points. score: mean of the best tenth of their scores.
    """

    rows: np.ndarray
    score: float


def span(values: np.ndarray) -> tuple[float, float]:
    """Middle and top of [N] values: their median, and the mean of the best twentieth."""
    best = max(3, len(values) // 20)
    return float(np.median(values)), float(np.sort(values)[-best:].mean())


def minimum_cut(pull: np.ndarray, links: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """[K] bool, the labelling x that minimises sum_k -pull_k x_k + sum_links cost |x_a - x_b|, exactly.

    Args:
        pull: [K], > 0 towards True. links: [E, 2]. cost: [E], >= 0.
    """
    count = len(pull)
    source, sink = count, count + 1
    capacity = np.round(np.abs(pull) * _SCALE).astype(np.int64)
    price = np.round(cost * _SCALE).astype(np.int64)
    yes, no = np.flatnonzero(pull > 0), np.flatnonzero(pull <= 0)
    tail = np.concatenate([np.full(len(yes), source), no, links[:, 0], links[:, 1]])
    head = np.concatenate([yes, np.full(len(no), sink), links[:, 1], links[:, 0]])
    values = np.concatenate([capacity[yes], capacity[no], price, price]).clip(0, 2**30).astype(np.int32)
    graph = coo_matrix((values, (tail, head)), shape=(count + 2, count + 2)).tocsr()
    left = graph - maximum_flow(graph, source, sink).flow
    left.data[left.data < 0] = 0
    left.eliminate_zeros()
    inside = np.zeros(count + 2, bool)
    inside[breadth_first_order(left, source, return_predecessors=False)] = True
    return inside[:count]


def part_region(
    cloud: SurfaceCloud, score: np.ndarray, *, config: ObjectConfig, voxel_size_m: float, no_match: float = 0.0
) -> PartRegion | None:
    """The part of one object, or None where nothing of it stands out. O(n log n), and a flow of n nodes.

    Args:
        cloud: the object's n points. score: [n] of the part's words; NaN or unseen points as 0.
        no_match: the mean of the part's best points is at least this.
    """
    if len(cloud) < LEAST_POINTS:
        return None
    spacing_m = voxel_size_m * max(1.0, (len(cloud) / MOST_CELLS) ** 0.5)
    graph = replace(config, radius_m=2.2 * spacing_m)
    nowhere = np.full(len(cloud), -1)
    cells, cell_of_point = build_cells(cloud, score, None, unit(config.up), nowhere, np.zeros(0), graph)
    value = _smoothed(cells)
    middle, top = span(value)
    pull = ((value - middle) / max(top - middle, 1e-9) - LEVEL).clip(-0.5, 0.5)
    inside = minimum_cut(pull, cells.links, _cost(cells, spacing_m))
    if not inside.any() or inside.all():
        return None
    chosen = _best_component(cells, inside, pull)
    rows = np.flatnonzero(chosen[cell_of_point])
    rest = np.flatnonzero(~inside[cell_of_point])
    if len(rows) < LEAST_POINTS or not len(rest):
        return None
    best = top_mean(score[rows])
    stands_out = score[rows].mean() - score[rest].mean() >= LEAST_CONTRAST
    return PartRegion(rows, best) if stands_out and best >= no_match else None


def _smoothed(cells: Cells) -> np.ndarray:
    """Scores averaged over neighbours, not across creases and colours."""
    links = cells.links[~(cells.concave | cells.unlike)]
    both = np.concatenate([links, links[:, ::-1]])
    count = len(cells.points)
    total = np.bincount(both[:, 0], weights=cells.score[both[:, 1]], minlength=count) + cells.score
    return np.asarray(total / (np.bincount(both[:, 0], minlength=count) + 1))


def _cost(cells: Cells, spacing_m: float) -> np.ndarray:
    """What cutting each link costs, [E]: less for long ones, along creases, and where colour changes."""
    a, b = cells.links.T
    length = np.linalg.norm(cells.points[a] - cells.points[b], axis=1)
    weight = 1.0 / np.maximum(length, 0.6 * spacing_m)
    whole = 2 * weight.sum() / len(cells.points)
    return np.asarray(STIFFNESS * weight / whole * np.where(cells.concave | cells.unlike, CREASE_SHARE, 1.0))


def _best_component(cells: Cells, inside: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """The connected piece with the most evidence, and those with a fair share of it (four wheels), [K] bool."""
    _, label = components(len(inside), cells.links[inside[cells.links].all(axis=1)])
    evidence = np.bincount(label, weights=np.maximum(pull, 0) ** 2 * cells.size * inside)  # few sure points beat many
    return np.asarray(inside & (evidence >= FAIR_SHARE * evidence.max())[label])


def with_parts(
    objects: Iterable[Object], snapshot: Snapshot, prompt: Prompt, texts: PartTexts, *, config: ObjectConfig,
    query: QueryConfig, source: Source = "auto",
) -> list[Object]:  # fmt: skip
    """The same objects, each with the part that a prompt asks for, or without one and PART_NOT_FOUND in `rejected`."""
    found = []
    for thing in objects:
        scores = part_scores(snapshot, texts, thing.cloud.points, source=source, temperature=query.temperature)
        region = part_region(
            thing.cloud, scores, config=config, voxel_size_m=snapshot.voxel_size_m, no_match=query.part_no_match
        )
        if region is None:
            found.append(replace(thing, rejected={PART_NOT_FOUND: 1}))
            continue
        part = ObjectPart(prompt.part[0], region.score, thing.rows[region.rows], scores)
        found.append(replace(thing, part=part))
    return found
