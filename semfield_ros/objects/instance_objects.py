"""Instances as objects: with a box and a cloud, as `find_objects` gives them for regions."""

from __future__ import annotations

import numpy as np

from ..config import ObjectConfig
from ..errors import QueryError
from .boxes import unit, upright_box
from .mask_instances import OpenInstances
from .objects import Object


def instance_objects(
    instances: OpenInstances,
    score: np.ndarray,
    *,
    prompt: str,
    least: float = -np.inf,
    config: ObjectConfig | None = None,
) -> list[Object]:
    """The instances that score `least` or more, best first, at most `config.max_objects`; none is a normal answer.

    An object's `score` is the one given, its `confidence` how well the views agree on the instance.

    Args:
        score: [K], e.g. a column of `mask_instances.ask`; NaN = none.

    Raises:
        QueryError: another number of scores than instances.
    """
    config = config or ObjectConfig()
    score = np.asarray(score, np.float64)
    if score.shape != (len(instances),):
        raise QueryError(f"{score.shape} scores for {len(instances)} instances; expected one each")
    with np.errstate(invalid="ignore"):
        chosen = np.flatnonzero(score >= least)
    chosen = chosen[np.argsort(-score[chosen], kind="stable")][: config.max_objects]
    cloud, up = instances.cloud, unit(config.up)
    objects = []
    for number, k in enumerate(chosen.tolist()):
        rows = np.sort(instances.rows(k)).astype(np.int64)
        part = cloud[rows]
        points = part.points.astype(np.float64)
        objects.append(
            Object(
                id=number,
                prompt=prompt,
                score=float(score[k]),
                confidence=float(instances.score[k]),
                centroid=points.mean(axis=0),
                box=upright_box(points, up),
                cloud=part,
                rows=rows,
                observations=int(np.median(part.observations)),
                last_seen_s=float(part.last_seen_s.max()),
                stamp_s=float(instances.stamp_s),
            )
        )
    return objects
