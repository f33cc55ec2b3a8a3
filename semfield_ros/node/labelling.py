"""Labelled maps: which class each point is of, and which points of a class are one thing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from ..cloud import SurfaceCloud, sureness
from ..config import ObjectConfig
from ..engine import Engine
from ..field.snapshot import Snapshot
from ..objects.boxes import unit
from ..objects.objects import supports_of
from ..objects.regions import grow_regions
from ..query.labels import label_points
from ..query.prompt import EncodedPrompts
from ..query.semantics import semantics_at
from .instances import InstanceBook
from .things import classes_at

MAX_THING_POINTS = 10_000
"""A class of more points (a floor, all chairs of a hall) is parted where there are gaps only, which costs little."""
_HALF_OF_NEIGHBOURS = np.array([(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)][14:])


@dataclass(frozen=True)
class LabelledMap:
    """N points of a map, labelled.

    Attributes:
        label: [N] int32, the class, -1 = none. instance: [N] int32, 0 = none, numbered from 1 over all classes.
        confidence: [N] float32 in [0, 1]. entropy: [N] float32, of the probabilities of the classes learnt from label
            images [nats], NaN where nothing is known; None where the map learns none.
    """

    cloud: SurfaceCloud
    label: np.ndarray
    instance: np.ndarray
    confidence: np.ndarray
    entropy: np.ndarray | None = None


def label_floor(engine: Engine, score: str) -> float | None:
    """The score below which a class is none: that down to which objects grow. None for cosines that have no such."""
    low = engine.config.objects.low
    return engine.encoder.calibration.low if low is None and score == "relevancy" else low


def label_map(
    snapshot: Snapshot, classes: EncodedPrompts, engine: Engine, book: InstanceBook | None = None
) -> LabelledMap:
    """Label the whole point map with prompts. O(N Q) for labels, O(N log N) for instances.

    Args:
        book: who is who, where the field has learnt instances; None = connected pieces of a class.
    """
    config = engine.config
    labels = label_points(
        snapshot, classes, source=config.query.source, temperature=config.query.temperature,
        score=config.query.score, least=label_floor(engine, config.query.score),
    )  # fmt: skip
    learnt = classes_at(snapshot, None) if config.heads.semantic_classes else None
    entropy = None if learnt is None else np.where(learnt.seen, learnt.entropy, np.float32(np.nan))
    instance = _numbered(snapshot, labels.label, engine, book)
    return LabelledMap(snapshot.cloud, labels.label, instance, labels.confidence, entropy)


def class_map(snapshot: Snapshot, engine: Engine, book: InstanceBook | None = None) -> LabelledMap:
    """Label the whole point map with the classes learnt from label images; label k is class k + 1. O(N C).

    Raises:
        QueryError: the map learns none.
    """
    found = semantics_at(snapshot)
    label = found.label - 1
    entropy = np.where(found.seen, found.entropy, np.float32(np.nan))
    surface = sureness(snapshot.cloud.observations)
    return LabelledMap(snapshot.cloud, label, _numbered(snapshot, label, engine, book), surface, entropy)


def _numbered(snapshot: Snapshot, label: np.ndarray, engine: Engine, book: InstanceBook | None) -> np.ndarray:
    known = None if book is None else book.known(snapshot)
    if known is not None:
        return known.ids
    config = engine.config.objects
    return instances(snapshot.cloud, label, replace(config, radius_m=max(config.radius_m, 2 * snapshot.voxel_size_m)))


def instances(cloud: SurfaceCloud, label: np.ndarray, config: ObjectConfig) -> np.ndarray:
    """Which points of a class are one thing, as `regions.grow_regions` has it: [N] int32, 0 = none, from 1 on.

    Every point of a class counts alike; groups of fewer than `config.min_points` are none. Numbers go up class by
    class. O(N log N).
    """
    up = unit(config.up)
    heights = supports_of(cloud, up, config.support_tolerance_m)
    found, number = np.zeros(len(cloud), np.int32), 0
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(int(label.max(initial=-1)) + 2))
    for rows in (order[a:b] for a, b in itertools.pairwise(starts)):
        if len(rows) > MAX_THING_POINTS:
            regions = islands(cloud.points[rows], config.radius_m)
        else:
            score = np.ones(len(rows), np.float32)
            regions = grow_regions(cloud[rows], score, high=1.0, low=0.5, config=config, support_heights_m=heights)
        for region in regions:
            if len(region) >= config.min_points:
                number += 1
                found[rows[region]] = number
    return found


def islands(points: np.ndarray, gap_m: float) -> list[np.ndarray]:
    """Rows of the groups of points [N, 3] between which there are gaps: cells of `gap_m` that do not touch."""
    cell = np.floor(points / gap_m).astype(np.int64)
    cell -= cell.min(0) - 1
    shape = tuple(cell.max(0) + 2)
    keys, cell_of_point = np.unique(np.ravel_multi_index(tuple(cell.T), shape), return_inverse=True)
    at = np.stack(np.unravel_index(keys, shape))
    pairs = []
    for offset in _HALF_OF_NEIGHBOURS:
        wanted = np.ravel_multi_index(tuple(at + offset[:, None]), shape)
        rows = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        touching = np.flatnonzero(keys[rows] == wanted)
        pairs.append(np.stack([touching, rows[touching]]))
    i, j = np.concatenate(pairs, axis=1)
    graph = csr_matrix((np.ones(len(i), bool), (i, j)), shape=(len(keys), len(keys)))
    island = connected_components(graph, directed=False)[1][cell_of_point]
    order = np.argsort(island, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(island[order])) + 1)
