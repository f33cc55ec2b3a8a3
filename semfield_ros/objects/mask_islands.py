"""Instances without islands: what a mask took in past an outline lies apart in space, on the wall behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from .mask_graph import MaskInstances


def without_islands(
    instances: MaskInstances, points: np.ndarray, *, reach_m: float, share: float = 0.2
) -> MaskInstances:
    """The instances of points [V, 3] without the parts that are farther than `reach_m` from the rest and smaller than
    `share` of the largest part; an occluder may well cut a thing in two. O(n log n)."""
    voxels = sparse.csr_matrix(instances.voxels)
    kept: list[np.ndarray] = []
    for row in range(len(instances)):
        members = voxels.indices[voxels.indptr[row] : voxels.indptr[row + 1]]
        pairs = cKDTree(points[members]).query_pairs(reach_m, output_type="ndarray")
        graph = sparse.csr_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(members),) * 2)
        _, part = connected_components(graph, directed=False)
        size = np.bincount(part, minlength=1)
        kept.append(members[size[part] >= share * size.max()])
    start = np.concatenate([[0], np.cumsum([len(members) for members in kept])]).astype(np.int64)
    index = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    return replace(
        instances, voxels=sparse.csr_matrix((np.ones(len(index), bool), index, start), shape=voxels.shape)
    )
