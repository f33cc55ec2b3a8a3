"""Region growing: which scored surface points belong together.

Seeds score at least `high`, growth reaches down to `low` (hysteresis), on the graph of `cells.py`, whose parts
`parts.py` turns into things. Only points that score at least `low` enter the graph: O(N log N) for N of them.
"""

from __future__ import annotations

import numpy as np

from ..cloud import SurfaceCloud
from ..config import ObjectConfig
from .boxes import horizontal_basis, unit
from .cells import build_cells, components
from .parts import join_parts, settle, split_valleys
from .support import on_support

FARTHEST_M = 1e6
"""Points beyond are no measurement."""


def grow_regions(
    cloud: SurfaceCloud,
    score: np.ndarray,
    *,
    high: float,
    low: float,
    config: ObjectConfig,
    support_heights_m: np.ndarray | None = None,
    features: np.ndarray | None = None,
    seen: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Rows of the cloud of each region, sorted; regions in the order of their first row.

    A region is connected, holds at least `config.min_points` points of which one scores `high`. Points that are not
    finite, not seen, or without a score belong to none.

    Args:
        score: [N]. support_heights_m: [K] heights of tables along `config.up` (`support.support_heights`).
        features: [N, F], instead of colour where appearance is compared. seen: [N] bool, None = all.
    """
    up = unit(config.up)
    heights = np.zeros(0) if support_heights_m is None else support_heights_m
    with np.errstate(invalid="ignore"):
        active = score >= low
        if seen is not None:
            active &= seen
        rows = np.flatnonzero(active)
        rows = rows[(np.abs(cloud.points[rows]) < FARTHEST_M).all(axis=1)]
    if features is not None:
        rows = rows[np.isfinite(features[rows]).all(axis=1)]
    if len(rows) < config.min_points or score[rows].max() < high:
        return []
    cloud, score = cloud[rows], np.asarray(score[rows], dtype=np.float64)
    support = on_support(cloud.points, cloud.normals, up, heights, config.support_tolerance_m)
    cells, cell_of_point = build_cells(
        cloud, score, None if features is None else features[rows], up, support, heights, config
    )
    plane = cells.points @ horizontal_basis(up)[:, :2]
    healable = ~cells.standing
    kept = healable & ~cells.concave & ~cells.unlike
    _, parts = components(len(cells.points), cells.links[kept])
    lost = healable & ~kept
    regions = join_parts(cells, parts, cells.links[lost], cells.concave[lost], plane)
    regions = split_valleys(
        cells, regions, cells.links[healable], high=high, low=low, valley_ratio=config.valley_ratio
    )
    regions = settle(
        cells, regions, cells.links[cells.standing], plane, cells.points @ up, high=high, margin_m=config.radius_m / 3
    )
    region = regions[cell_of_point]
    order = np.argsort(region, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(region[order])) + 1)
    found = [
        rows[group]
        for group in groups
        if region[group[0]] >= 0 and len(group) >= config.min_points and score[group].max() >= high
    ]
    return sorted(found, key=lambda group: int(group[0]))
