"""Snapshot: an immutable copy of everything a reader needs; training goes on beside it (DESIGN idea 7)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from ..cloud import SurfaceCloud
from ..memory.free_space import SeenSpace
from ..memory.mask_store import MaskView
from ..memory.point_map import PointMap, voxel_keys
from .model import Field

TRUSTED_STEPS = 150
"""A surface is the field's after this many steps in which replay could draw it: where it overtakes the point map."""


@dataclass(frozen=True)
class Snapshot:
    """The map at one instant, in global_frame.

    Attributes:
        stamp_s: stamp of the last fused frame. frames: fused so far. step: training steps taken.
        cloud: the point map's N voxels. features: [N, D] float16 running means (not normalised).
        measured: [N] bool, voxels with at least one feature measurement. created_step: [N] int64.
        field: the neural field, None before the first keyframe. language: whether the field has learnt features.
        learnt: how many steps each head of the field, or part of it, has been trained, by name.
        votes: [N, C] float32 label pixels of each class that voxels have seen; C = 0 where labels are not mapped.
        masks: the keyframes that had 2-D masks, as far as the budget for them goes.
        seen_space: what the remembered keyframes looked through; without any view nothing is known of free space.
    """

    stamp_s: float
    frames: int
    step: int
    cloud: SurfaceCloud
    features: np.ndarray
    measured: np.ndarray
    created_step: np.ndarray
    keys: np.ndarray
    voxel_size_m: float
    field: Field | None
    language: bool
    learnt: dict[str, int] = dataclass_field(default_factory=dict)
    votes: np.ndarray = dataclass_field(default_factory=lambda: np.zeros((0, 0), np.float32))
    masks: tuple[MaskView, ...] = ()
    seen_space: SeenSpace = dataclass_field(default_factory=SeenSpace)

    @cached_property
    def feature_lengths(self) -> np.ndarray:
        """[N] float32, lengths of `features`; worked out when first asked for."""
        lengths = np.empty(len(self.features), np.float32)
        for start in range(0, len(lengths), 8192):
            part = torch.from_numpy(self.features[start : start + 8192])
            lengths[start : start + 8192] = part.float().norm(dim=1).numpy()
        return lengths

    @cached_property
    def trusted(self) -> np.ndarray:
        """[N] bool: voxels that were there for enough training steps for the field to know them."""
        if self.field is None or not self.language:
            return np.zeros(len(self.cloud), bool)
        return self.measured & (self.step - self.created_step >= TRUSTED_STEPS)

    def blocks(self) -> Iterator[Block]:
        """The blocks of space that were mapped apart: here this one, without end."""
        yield Block(self, np.full(3, -np.inf), np.full(3, np.inf))

    def within(self, low: np.ndarray, high: np.ndarray) -> Snapshot:
        """The blocks that reach into an axis-aligned box [3], [3]: here all there is."""
        return self

    def rows_of(self, points: np.ndarray) -> np.ndarray:
        """`find`, for points [N, 3] some of which may not be finite: those are unseen, -1."""
        finite = np.isfinite(points).all(1)
        rows = np.full(len(points), -1)
        rows[finite] = self.find(points[finite])
        return rows

    def find(self, points: np.ndarray) -> np.ndarray:
        """Rows [N] of the voxels at points [N, 3] or, where there is none, at a face neighbour; -1 = unseen space."""
        rows = np.full(len(points), -1)
        if not len(self.keys):
            return rows
        offsets = np.array(
            [[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float32
        )
        for offset in offsets * self.voxel_size_m:
            todo = np.flatnonzero(rows < 0)
            keys = voxel_keys(points[todo] + offset, self.voxel_size_m)
            at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            rows[todo] = np.where(self.keys[at] == keys, at, -1)
        return rows


class Block(NamedTuple):
    """A snapshot, and the corners [3] of the space in global_frame that it speaks of."""

    snapshot: Snapshot
    low_m: np.ndarray
    high_m: np.ndarray


def frozen(field: Field) -> Field:
    """A copy of a field that shares nothing with it and cannot be trained."""
    gradients = [p.grad for p in field.parameters()]
    for p in field.parameters():
        p.grad = None  # not worth copying
    try:
        twin = copy.deepcopy(field)
    finally:
        for p, grad in zip(field.parameters(), gradients, strict=True):
            p.grad = grad
    for p in twin.parameters():
        p.requires_grad_(False)
    return twin.eval()


def take(
    points: PointMap, field: Field | None, *, stamp_s: float, frames: int, step: int, language: bool,
    learnt: dict[str, int] | None = None, masks: tuple[MaskView, ...] = (),
    seen_space: SeenSpace | None = None,
) -> Snapshot:
    """Copy the point map and the field. Costs one pass over their bytes."""
    rows = points.rows
    with torch.no_grad():
        twin = frozen(field) if field is not None else None
    return Snapshot(
        stamp_s=stamp_s,
        frames=frames,
        step=step,
        cloud=points.cloud(),
        features=points.features[rows],
        measured=points.feature_mass[rows] > 0,
        created_step=points.created_step[rows],
        keys=points.keys.copy(),
        voxel_size_m=points.config.voxel_size_m,
        field=twin,
        language=language,
        learnt=dict(learnt or {}),
        votes=points.votes[rows].astype(np.float32),
        masks=masks,
        seen_space=seen_space or SeenSpace(),
    )
