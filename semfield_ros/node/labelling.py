"""Labelled maps: which class each point is of, and which points of a class are one thing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from ..cloud import SurfaceCloud
from ..config import ObjectConfig
from ..engine import Engine
from ..field.snapshot import Snapshot
from ..objects.boxes import unit
from ..objects.objects import supports_of
from ..objects.regions import grow_regions
from ..query.labels import label_points
from ..query.prompt import EncodedPrompts

MAX_THING_POINTS = 10_000
"""A class of more points (a floor, all chairs of a hall) is parted where there are gaps only, which costs little."""
_HALF_OF_NEIGHBOURS = np.array([(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)][14:])


@dataclass(frozen=True)
class LabelledMap:
    """N points of a map, labelled.

    Attributes:
        label: [N] int32, the class, -1 = none. instance: [N] int32, 0 = none, numbered from 1 over all classes.
        confidence: [N] float32 in [0, 1].
    """

    cloud: SurfaceCloud
    label: np.ndarray
    instance: np.ndarray
    confidence: np.ndarray


def label_floor(engine: Engine, score: str) -> float | None:
    """The score below which a class is none: that down to which objects grow. None for cosines that have no such."""
    low = engine.config.objects.low
    return engine.encoder.calibration.low if low is None and score == "relevancy" else low


def label_map(snapshot: Snapshot, classes: EncodedPrompts, engine: Engine) -> LabelledMap:
    """Label the whole point map. O(N Q) for labels, O(N log N) for instances."""
    config = engine.config
    labels = label_points(
        snapshot, classes, source=config.query.source, temperature=config.query.temperature,
        score=config.query.score, least=label_floor(engine, config.query.score),
    )  # fmt: skip
    near = replace(config.objects, radius_m=max(config.objects.radius_m, 2 * snapshot.voxel_size_m))
    instance = instances(snapshot.cloud, labels.label, near)
    return LabelledMap(snapshot.cloud, labels.label, instance, labels.confidence)


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
