"""The plain way from masks of views to instances, as a baseline: a graph by intersection over union, and whatever is
connected in it. Partial views fall apart, and chains of neighbours grow together; `objects.mask_graph` does neither."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from ..errors import ConfigError
from ..objects.mask_graph import MaskInstances


def components_of_masks(incidence: sparse.spmatrix, iou: float = 0.5, min_masks: int = 2) -> MaskInstances:
    """Masks [M, V] whose voxels overlap by more than `iou`, and all that hang together so, as instances.

    An instance covers what any of its masks covers; its score is n / (n + 2) for n masks.
    """
    if not 0 < iou <= 1:
        raise ConfigError(f"iou is {iou}; allowed: 0 < iou <= 1")
    masks = sparse.csr_matrix(incidence, dtype=np.float32)
    size = np.diff(masks.indptr).astype(np.float32)
    shared = (masks @ masks.T).tocoo()
    edge = shared.data > iou * (size[shared.row] + size[shared.col] - shared.data)
    graph = sparse.csr_matrix((np.ones(int(edge.sum())), (shared.row[edge], shared.col[edge])), shape=shared.shape)
    count, member = connected_components(graph, directed=False)
    members = np.bincount(member, minlength=count)
    order = np.argsort(-members, kind="stable")
    order = order[members[order] >= min_masks]
    row = np.full(count, -1, np.int32)
    row[order] = np.arange(len(order))
    label = row[member] if len(member) else np.zeros(0, np.int32)
    at = np.flatnonzero(label >= 0)
    belongs = sparse.csr_matrix((np.ones(len(at), np.float32), (label[at], at)), shape=(len(order), len(label)))
    views = members[order].astype(np.int32)
    return MaskInstances(label, (belongs @ masks).astype(bool), views, (views / (views + 2.0)).astype(np.float32))
