"""The baseline of instances: masks of each frame joined to those before, greedily, by their overlap in voxels.

What systems without a field do: frame by frame, a mask takes the id whose voxels it overlaps most, or a new one, and
votes for it in its voxels; a voxel belongs to the id with most votes. No frame is looked at twice.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.spatial import cKDTree

from ..frame import Frame
from ..geometry import back_project
from ..memory.point_map import voxel_keys

LEAST_IOU = 0.25
"""Masks that overlap no id this well, among the voxels in view, get one of their own."""


def masks_of(frame: Frame) -> np.ndarray | None:
    """A frame's mask ids [H, W], 0 = none: its instances, or else its segments; None where it has neither."""
    if frame.instance is not None:
        return frame.instance
    return None if frame.segments is None else frame.segments.ids


class MaskVotes:
    """Votes of a fixed set of voxels, sorted by key."""

    def __init__(self, keys: np.ndarray, voxel_size_m: float):
        self.keys, self.voxel_size_m = keys, voxel_size_m
        self.votes = np.zeros((len(keys), 16), np.float32)
        """[V, ids]; column 0 = pixels of no mask."""
        self.ids = 1

    def fuse(self, frame: Frame) -> None:
        """Join a frame's masks; nothing where it has none. O(pixels + voxels in view x ids)."""
        masks = masks_of(frame)
        if masks is None:
            return
        points, pixel = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
        keys = voxel_keys(points, self.voxel_size_m)
        row = np.minimum(np.searchsorted(self.keys, keys), max(0, len(self.keys) - 1))
        mask = np.maximum(masks.reshape(-1)[pixel], 0)
        good = (self.keys[row] == keys) & (masks.reshape(-1)[pixel] >= 0)
        row, mask = row[good], mask[good]
        numbers, mask = np.unique(mask, return_inverse=True)
        rows, at = np.unique(row, return_inverse=True)
        count = np.zeros((len(rows), len(numbers)), np.float32)
        np.add.at(count, (at.reshape(-1), mask.reshape(-1)), 1)
        table = self._joined(numbers, count.argmax(1), rows)
        for column, of in enumerate(table.tolist()):
            self.votes[rows, of] += count[:, column]

    def _joined(self, numbers: np.ndarray, winner: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The id of each of a frame's masks `numbers`; `winner` [R]: the mask that has most pixels of each voxel."""
        table = np.zeros(len(numbers), np.int64)
        before = self.votes[rows, : self.ids].argmax(1)
        overlap = np.zeros((len(numbers), self.ids))
        np.add.at(overlap, (winner, before), 1)
        union = overlap.sum(1, keepdims=True) + overlap.sum(0, keepdims=True) - overlap
        iou = overlap / np.maximum(union, 1)
        iou[:, 0] = 0
        iou[numbers == 0] = 0
        for _ in range(len(numbers)):
            a, b = np.unravel_index(iou.argmax(), iou.shape)
            if iou[a, b] < LEAST_IOU:
                break
            table[a] = b
            iou[a], iou[:, b] = 0, 0
        fresh = np.flatnonzero((table == 0) & (numbers > 0))
        table[fresh] = np.arange(self.ids, self.ids + len(fresh))
        self.ids += len(fresh)
        if self.ids > self.votes.shape[1]:
            self.votes = np.pad(self.votes, ((0, 0), (0, max(self.ids, self.votes.shape[1]))))
        return table

    def labels(self) -> np.ndarray:
        """Id of each voxel [V] int32: 0 = no instance, -1 = no vote."""
        best = self.votes.argmax(1)
        return np.where(self.votes.any(1), best, -1).astype(np.int32)


def nearest_ids(places: np.ndarray, ids: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Ids [N] at points [N, 3]: those of the nearest of places [V, 3] that has one (>= 0); -1 where none has."""
    known = np.flatnonzero(ids >= 0)
    if not len(known):
        return np.full(len(points), -1, np.int32)
    return np.asarray(ids[known][cKDTree(places[known]).query(points)[1]], np.int32)


def associate(frames: Iterable[Frame], keys: np.ndarray, voxel_size_m: float) -> np.ndarray:
    """Ids [V] int32 of voxels with sorted keys [V] after all frames, in their order."""
    votes = MaskVotes(keys, voxel_size_m)
    for frame in frames:
        votes.fuse(frame)
    return votes.labels()
