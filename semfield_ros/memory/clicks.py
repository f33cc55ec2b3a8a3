"""Labels given by hand: a click on the map, a class, and the pixel that a keyframe remembers there."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import QueryError
from .replay import Replay


def checked_labels(points: np.ndarray, classes: np.ndarray, known: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] float32 and classes [N] int64, 1 to `known`; QueryError for what is none."""
    at, label = np.asarray(points, np.float32), np.asarray(classes)
    if at.ndim != 2 or at.shape[1:] != (3,) or not np.isfinite(at).all():
        raise QueryError(f"points have shape {at.shape}; expected finite numbers [N, 3], in metres")
    if label.shape != (len(at),) or label.dtype.kind not in "iu":
        raise QueryError(f"classes are {label.dtype} of shape {label.shape}; expected an integer for each of {len(at)}")
    if not known:
        raise QueryError("this map learns no labels; set heads.semantic_classes before mapping")
    if len(label) and not (1 <= label.min() and label.max() <= known):
        raise QueryError(f"classes are {label.min()} to {label.max()}; allowed: 1 to {known}")
    return at, label.astype(np.int64)


def label_surface(replay: Replay, points: np.ndarray, classes: np.ndarray, reach_m: float) -> np.ndarray:
    """Give classes [N] to the remembered pixels nearest to points [N, 3], within `reach_m` of them. A later click on
    the same pixel replaces the class. O(keyframes x records x N).

    Returns:
        [N] bool: whether some keyframe has seen the point.
    """
    at = torch.from_numpy(points).to(replay.device)
    best = torch.full((len(at),), float("inf"), device=replay.device)
    slot_of = torch.full((len(at),), -1, dtype=torch.int64, device=replay.device)
    record_of = torch.zeros_like(slot_of)
    for slot in replay.order:
        records = torch.nonzero(replay.depth[slot] > 0).squeeze(1)
        if not len(records):
            continue
        slots = torch.full_like(records, slot)
        origins, directions, _ = replay.world_rays(slots, replay.pixel[slot, records])
        surface = origins + directions * replay.depth[slot, records, None]
        for k, point in enumerate(at):
            nearest = (surface - point).square().sum(1).min(0)
            if float(nearest.values) < float(best[k]):
                best[k], slot_of[k], record_of[k] = nearest.values, slot, records[nearest.indices]
    reached = (best.sqrt() <= reach_m).cpu().numpy()
    for k in np.flatnonzero(reached).tolist():
        slot, record = int(slot_of[k]), int(record_of[k])
        replay.labels.add(slot, int(replay.pixel[slot, record]), float(replay.depth[slot, record]), int(classes[k]))
    return reached
