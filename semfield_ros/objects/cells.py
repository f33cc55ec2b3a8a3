"""The growth graph: scored surface points pooled to cells, linked to neighbours, with the reasons to cut a link.

A link is cut across a concave crease or a step, where appearance differs, and between a support and what stands on
it. Only concave creases count (local convexity, Stein et al., CVPR 2014): things are mostly convex inside and meet in
concave creases. Pooling to a third of the radius bounds the links of a cell, so dense clouds cost no more than sparse
ones: O(N log N) for N points.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..cloud import SurfaceCloud
from ..config import ObjectConfig

CONVEX = 0.5
"""Between surfaces that face different ways, (n_i - n_j) . d of a link must say clearly that it rounds an edge or goes
through a wall: at the point where two balls touch it is near 0."""
STEP_COSINE = 0.75
"""Surfaces that face the same way but lie one behind the other, seen along their normals, are not neighbours."""

MAX_GAP = 2.0
"""A link may be this many times as long as the distance to the fourth neighbour: densely seen things part at gaps
narrower than the radius."""


@dataclass(frozen=True)
class Cells:
    """K pooled points of the growth graph, and its links.

    Attributes:
        points, normals: [K, 3] float64 (normal 0 = unknown). score: [K]. peak: [K], best score of a member.
        size: [K] points pooled. support: [K] index of the support the cell is part of, -1 = none.
        appearance: [K, A], distances in it are in units of "different": > 1 differs.
        links: [E, 2], pairs within the radius.
        concave, unlike, standing: [E] bool, why a link is cut; a step counts as concave.
    """

    points: np.ndarray
    normals: np.ndarray
    score: np.ndarray
    peak: np.ndarray
    size: np.ndarray
    support: np.ndarray
    appearance: np.ndarray
    links: np.ndarray
    concave: np.ndarray
    unlike: np.ndarray
    standing: np.ndarray


def components(count: int, links: np.ndarray) -> tuple[int, np.ndarray]:
    """Connected components of an undirected graph: their number, and the component of each node [count]."""
    graph = csr_matrix((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(count, count))
    found, label = connected_components(graph, directed=False)
    return int(found), label.astype(np.int64)


def build_cells(
    cloud: SurfaceCloud,
    score: np.ndarray,
    features: np.ndarray | None,
    up: np.ndarray,
    support: np.ndarray,
    support_heights_m: np.ndarray,
    config: ObjectConfig,
) -> tuple[Cells, np.ndarray]:
    """The growth graph of a cloud whose points all score at least `low`.

    Args:
        features: [N, F] or None. support: [N] index of each point's support (`support.on_support`).

    Returns:
        cells, and the cell of each point [N] int64.
    """
    keys = np.floor(cloud.points.astype(np.float64) / (config.radius_m / 3.0)).astype(np.int64)
    keys -= keys.min(axis=0)
    extent = keys.max(axis=0) + 1
    # Columns are numbered first so that the code of a cell fits an int64 however far apart the points are.
    column = np.unique(keys[:, 0] * extent[1] + keys[:, 1], return_inverse=True)[1].reshape(-1)
    code = (column * extent[2] + keys[:, 2]) * (len(support_heights_m) + 1) + support + 1
    code = code * 7 + _facing(cloud.normals)
    _, first, cell_of_point = np.unique(code, return_index=True, return_inverse=True)
    cell_of_point = cell_of_point.reshape(-1)
    count = len(first)
    size = np.bincount(cell_of_point, minlength=count)
    pool = coo_matrix((1.0 / size[cell_of_point], (cell_of_point, np.arange(len(cloud)))), shape=(count, len(cloud)))
    pool = pool.tocsr()
    points = pool @ cloud.points.astype(np.float64)
    normals = _unit_rows(pool @ cloud.normals.astype(np.float64))
    peak = np.full(count, -np.inf)
    np.maximum.at(peak, cell_of_point, score)

    tree = cKDTree(points)
    links = tree.query_pairs(config.radius_m, output_type="ndarray").astype(np.int64).reshape(-1, 2)
    spacing = tree.query(points, k=[min(5, count)])[0][:, 0]
    offset = np.take(points, links[:, 0], axis=0) - np.take(points, links[:, 1], axis=0)
    length = np.sqrt(_dot(offset, offset))
    near = length <= np.maximum(MAX_GAP * np.maximum(*spacing[links.T]), config.radius_m / 3)
    links, offset, length = links[near], offset[near], np.maximum(length[near], 1e-9)
    appearance, unlike = _appearance(pool, cloud.rgb, features, links, config)
    concave = _creases(normals, links, offset, length, config.max_normal_angle_deg)
    node_support = support[first]
    cells = Cells(
        points, normals, pool @ score.astype(np.float64), peak, size, node_support, appearance, links, concave, unlike,
        _stands_on(points @ up, node_support, support_heights_m, links, config.support_tolerance_m),
    )
    return cells, cell_of_point


def _creases(
    normals: np.ndarray, links: np.ndarray, offset: np.ndarray, length: np.ndarray, max_angle_deg: float
) -> np.ndarray:
    """Links across a concave crease or a step: [E] bool. offset: [E, 3] from second to first. Unknown normals: none."""
    first, second = np.take(normals, links[:, 0], axis=0), np.take(normals, links[:, 1], axis=0)
    first_along, second_along = _dot(first, offset) / length, _dot(second, offset) / length
    cosine = _dot(first, second)
    known = np.abs(normals).sum(axis=1) > 0
    known = known[links[:, 0]] & known[links[:, 1]]
    sharp = (cosine < np.cos(np.deg2rad(max_angle_deg))) & (first_along - second_along < CONVEX)
    # |n_i + n_j|^2 = 2 + 2 cos: a step needs normals that agree, at least roughly.
    along = np.abs(first_along + second_along)
    step = (cosine > -0.5) & (along > STEP_COSINE * np.sqrt(2.0 + 2.0 * cosine.clip(-1, 1)))
    return np.asarray(known & (sharp | step))


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ij,ij->i", a, b))


def _facing(normals: np.ndarray) -> np.ndarray:
    """The signed axis nearest to each normal, 0 to 5, and 6 for none: the two sides of a wall must not be pooled."""
    axis = np.abs(normals).argmax(axis=1)
    largest = normals[np.arange(len(normals)), axis]
    return np.where(largest == 0, 6, 2 * axis + (largest > 0))


def _stands_on(
    height: np.ndarray, support: np.ndarray, heights_m: np.ndarray, links: np.ndarray, tolerance_m: float
) -> np.ndarray:
    """Links between a support and a cell that is not part of it and not below it: [E] bool."""
    stands = np.zeros(len(links), dtype=bool)
    if len(heights_m) == 0:
        return stands
    for low, up in ((links[:, 0], links[:, 1]), (links[:, 1], links[:, 0])):
        level = heights_m[np.maximum(support[low], 0)]
        stands |= (support[low] >= 0) & (support[up] != support[low]) & (height[up] > level - tolerance_m)
    return stands


def _appearance(
    pool: csr_matrix, rgb: np.ndarray, features: np.ndarray | None, links: np.ndarray, config: ObjectConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Features, or colour where there are none, [K, A] float32, and which links join different ones, [E] bool.

    Scaled so that a distance above 1 means different.
    """
    if features is None:
        lab = cv2.cvtColor(np.ascontiguousarray(rgb, dtype=np.uint8)[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        colour = (pool @ (lab[0] / np.float32(config.max_colour_distance))).astype(np.float32)
        return colour, np.linalg.norm(colour[links[:, 0]] - colour[links[:, 1]], axis=1) > 1.0
    pooled = _unit_rows(pool.astype(np.float32) @ np.asarray(features, dtype=np.float32))
    cosine = np.concatenate(
        [np.zeros(0, np.float32)]
        + [
            _dot(pooled[part[:, 0]], pooled[part[:, 1]])
            for part in np.array_split(links, 1 + len(links) // 100_000)
        ]
    )
    least = config.min_feature_cosine
    if len(links):
        # Dense features differ in contrast from encoder to encoder: what is unusual between neighbours counts.
        middle = float(np.median(cosine))
        least = min(least, middle - 6.0 * 1.4826 * float(np.median(np.abs(cosine - middle))))
    return pooled / np.float32(np.sqrt(max(2.0 - 2.0 * least, 1e-6))), cosine < least


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-9))
