"""Objects: what a scored surface cloud says is there, each with a box, a cloud and a confidence."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dataclass_field

import numpy as np

from ..cloud import SurfaceCloud
from ..config import ObjectConfig
from ..errors import QueryError
from .boxes import OrientedBox, unit, upright_box
from .grasps import Grasp
from .parts import top_mean
from .regions import FARTHEST_M, grow_regions
from .support import support_heights


def supports_of(cloud: SurfaceCloud, up: np.ndarray, tolerance_m: float) -> np.ndarray:
    """`support_heights` of a cloud's finite points, worked out once a cloud."""
    key = ("supports", *map(float, up), tolerance_m)
    if key not in cloud.found:
        with np.errstate(invalid="ignore"):
            finite = (np.abs(cloud.points) < FARTHEST_M).all(axis=1)
        points, normals = cloud.points[finite], cloud.normals[finite]
        cloud.found[key] = support_heights(points, normals, up, tolerance_m=tolerance_m)
    heights: np.ndarray = cloud.found[key]
    return heights


@dataclass(frozen=True)
class ObjectPart:
    """The part of an object that was asked for.

    Attributes:
        prompt: its words. score: the mean of its best points. rows: [p] int64, its rows in the cloud that was searched,
            all of them the object's. scores: [n] float32, how much each of the object's n points is the part.
    """

    prompt: str
    score: float
    rows: np.ndarray
    scores: np.ndarray = dataclass_field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class Object:
    """One thing that matches a prompt.

    Attributes:
        id: place in the answer, 0 = best. prompt: what was asked for.
        score: mean of the best 10% of its points. confidence: in [0, 1], see `confidence`.
        centroid: [3] float64, mean of its points (global_frame, metres).
        box: upright oriented box. cloud: its points. rows: [n] int64, their rows in the cloud that was searched.
        observations: median number of frames that saw its points. last_seen_s: newest stamp of a point.
        stamp_s: when it was found. part: what of it was asked for; None = the whole thing.
        grasps: ranked candidates, best first; may be empty. rejected: how many each reason ruled out.
    """

    id: int
    prompt: str
    score: float
    confidence: float
    centroid: np.ndarray
    box: OrientedBox
    cloud: SurfaceCloud
    rows: np.ndarray
    observations: int
    last_seen_s: float
    stamp_s: float
    part: ObjectPart | None = None
    grasps: tuple[Grasp, ...] = ()
    rejected: dict[str, int] = dataclass_field(default_factory=dict)

    @property
    def n_points(self) -> int:
        """Points of its cloud."""
        return len(self.rows)


def confidence(score: float, observations: float, n_points: int, *, high: float, low: float, min_points: int) -> float:
    """How far to trust an object, in [0, 1]: the geometric mean of three shares.

    Score margin: 0 at `low`, 1/2 at `high`, 1 as far again above. Observations: n / (n + 2).
    Size: n / (n + min_points).
    """
    margin = np.clip((score - low) / (2.0 * max(high - low, 1e-6)), 0.0, 1.0)
    seen = observations / (observations + 2.0)
    return float(np.cbrt(margin * seen * n_points / (n_points + min_points)))


def find_objects(
    cloud: SurfaceCloud,
    score: np.ndarray,
    *,
    prompt: str,
    high: float,
    low: float,
    config: ObjectConfig | None = None,
    features: np.ndarray | None = None,
    seen: np.ndarray | None = None,
    stamp_s: float = 0.0,
    evidence: int = 0,
    least: float = -np.inf,
) -> list[Object]:
    """The objects of a scored cloud, best first; none is a normal answer.

    Regions grow from points that score `high` over points that score `low` (`regions.py`); tables do not glue what
    stands on them. Only points above `low` enter the graph: O(N) + O(n log n) for n of them. The same input gives the
    same objects with the same ids.

    Args:
        score: [N], relevancy or cosine of every point; NaN = none. high, low: thresholds, low <= high.
        features: [N, F] to tell touching things apart; colour is used where None.
        seen: [N] bool; unseen points are never part of an object. stamp_s: time of the question.
        evidence: objects are ranked by the sum of their best so many scores, so that a splinter of a high score does
            not come before a whole thing; 0 = by score alone.
        least: objects whose best `evidence` scores have a lower mean than this, or that have fewer than a quarter of so
            many points, are left out.

    Raises:
        QueryError: arrays that do not belong together, or thresholds the wrong way round.
    """
    config = config or ObjectConfig()
    score = np.asarray(score)
    _check_lengths(cloud, score=score, features=features, seen=seen)
    if not np.isfinite([high, low]).all() or low > high:
        raise QueryError(f"thresholds are low {low} and high {high}; expected finite numbers, low <= high")
    with np.errstate(invalid="ignore"):
        hit = score >= high
    if not (hit if seen is None else hit & seen).any():
        return []
    up = unit(config.up)
    heights = supports_of(cloud, up, config.support_tolerance_m)
    regions = grow_regions(
        cloud, score, high=high, low=low, config=config, support_heights_m=heights, features=features, seen=seen
    )
    best = max(1, evidence)
    regions = [r for r in regions if 4 * len(r) >= evidence and np.sort(score[r])[-best:].mean() >= least]
    scored = [(top_mean(np.asarray(score[rows], dtype=np.float64)), rows) for rows in regions]

    def rank(item: tuple[float, np.ndarray]) -> tuple[float, int]:
        value, rows = item
        return -(float(np.sort(score[rows])[-evidence:].sum()) if evidence else value), int(rows[0])

    scored.sort(key=rank)
    objects = []
    for number, (value, rows) in enumerate(scored[: config.max_objects]):
        part = cloud[rows]
        points = part.points.astype(np.float64)
        observations = float(np.median(part.observations))
        objects.append(
            Object(
                id=number,
                prompt=prompt,
                score=value,
                confidence=confidence(
                    value, observations, len(rows), high=high, low=low, min_points=config.min_points
                ),
                centroid=points.mean(axis=0),
                box=upright_box(points, up),
                cloud=part,
                rows=rows,
                observations=int(observations),
                last_seen_s=float(part.last_seen_s.max()),
                stamp_s=float(stamp_s),
            )
        )
    return objects


def _check_lengths(cloud: SurfaceCloud, **arrays: np.ndarray | None) -> None:
    for name, array in arrays.items():
        dimensions = 2 if name == "features" else 1
        if array is not None and (array.ndim != dimensions or len(array) != len(cloud)):
            expected = f"[{len(cloud)}, F]" if dimensions == 2 else f"[{len(cloud)}]"
            raise QueryError(f"{name} has shape {array.shape}; expected {expected}, one row a point of the cloud")
