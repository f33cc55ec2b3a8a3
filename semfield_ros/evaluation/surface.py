"""The exact surface of a simulated scene: where classes meet, and what no camera of a recording has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from ..field.snapshot import Snapshot
from ..frame import Frame
from ..geometry import visible
from ..query.prompt import EncodedPrompts
from ..query.scores import Source, field_cosines, score_points
from .metrics import confusion_matrix, segmentation

BOUNDARY_M = 0.015
"""Surface this near to another class is boundary."""
COMPLETION_M = 0.03
"""Unseen surface is asked about no farther than this from surface that was seen."""
FEWEST = 50
"""So few hidden points say nothing."""
VISIBLE_M = 0.008
"""A camera sees a point when its exact depth there agrees to this."""


@dataclass(frozen=True)
class Surface:
    """Exact surface samples: points [N, 3], semantic [N] (> 0), whether near a boundary between classes [N].

    `hidden` [M, 3], `hidden_semantic` [M]: points that no frame saw, within COMPLETION_M of some that one did.
    """

    points: np.ndarray
    semantic: np.ndarray
    boundary: np.ndarray
    hidden: np.ndarray
    hidden_semantic: np.ndarray

    @classmethod
    def of(cls, simulator: Any, frames: Sequence[Frame] = (), samples: int = 12_000) -> Surface:
        """From a `sources.simulator.Simulator` (passed in: evaluation knows no source) and what it showed, at its true
        poses; without frames, nothing is hidden."""
        points, _, semantic, _ = simulator.surface_points(samples)
        labelled = semantic > 0
        points, semantic = points[labelled], semantic[labelled]
        boundary = np.zeros(len(points), bool)
        for label in np.unique(semantic):
            other = semantic != label
            if other.any():
                distance, _ = cKDTree(points[other]).query(points[~other], distance_upper_bound=BOUNDARY_M)
                boundary[~other] = np.isfinite(distance)
        seen = np.full(len(points), not frames)
        for frame in frames:
            exact = simulator.cast(frame.T_world_camera).depth_m
            mask, _ = visible(frame.camera, frame.T_world_camera, exact, points, tolerance_m=VISIBLE_M)
            seen |= mask
        near = ~seen
        if seen.any():
            distance, _ = cKDTree(points[seen]).query(points, distance_upper_bound=COMPLETION_M)
            near &= np.isfinite(distance)
        return cls(points[seen], semantic[seen], boundary[seen], points[near], semantic[near])


def rate(snapshot: Snapshot, texts: EncodedPrompts, ids: Sequence[int], surface: Surface, source: Source) -> dict:
    """mIoU, frequency-weighted mIoU, error at boundaries, share seen; `hidden`: accuracy where no camera looked.

    On hidden surface a map may answer from what is near: the field speaks for any place, a point map gives the nearest
    measured voxel's answer (the best it can do). What it answers by itself is `hidden_by_itself`.

    Args:
        texts: one prompt for each of `ids`, the semantic ids it stands for (ascending).
    """
    truth = np.searchsorted(ids, surface.semantic)
    scores = score_points(snapshot, texts, surface.points, source=source)
    predicted = np.where(scores.seen, scores.cosine.argmax(1), -1)
    result = segmentation(confusion_matrix(predicted, truth, len(ids)))
    edge = surface.boundary & scores.seen
    figures = {
        "miou": result.miou,
        "fmiou": result.frequency_weighted_iou,
        "boundary_error": float((predicted != truth)[edge].mean()) if edge.any() else float("nan"),
        "seen": float(scores.seen.mean()),
    }
    known = np.isin(surface.hidden_semantic, ids)
    hidden, truth = surface.hidden[known], np.searchsorted(ids, surface.hidden_semantic[known])
    if len(hidden) >= FEWEST and snapshot.measured.any():
        own = score_points(snapshot, texts, hidden, source=source)
        if source != "points" and snapshot.field is not None:
            cosine = field_cosines(snapshot.field, hidden, texts.positives)
        else:
            measured = snapshot.cloud.points[snapshot.measured]
            nearest = measured[cKDTree(measured).query(hidden)[1]]
            cosine = score_points(snapshot, texts, nearest, source=source).cosine
        figures["hidden"] = float((cosine.argmax(1) == truth).mean())
        figures["hidden_by_itself"] = float((np.where(own.seen, own.cosine.argmax(1), -1) == truth).mean())
    else:
        figures["hidden"] = figures["hidden_by_itself"] = float("nan")
    return figures
