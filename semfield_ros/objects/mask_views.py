"""Masks of views over the voxels of a map, and the views that show an instance best (Takmaz et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..errors import QueryError
from ..geometry import project, visible
from ..memory.mask_store import MaskView


@dataclass(frozen=True)
class MaskIncidence:
    """M masks of T views over V points.

    Attributes:
        incidence: [M, V] bool csr, points a mask covers. visibility: [T, V] bool csr, points a view sees.
        view: [M] int64, the view of each mask. number: [M] int64, which of that view's masks it is.
    """

    incidence: sparse.csr_matrix
    visibility: sparse.csr_matrix
    view: np.ndarray
    number: np.ndarray


def mask_incidence(
    views: Sequence[MaskView],
    points: np.ndarray,
    *,
    tolerance_m: float = 0.03,
    tolerance_relative: float = 0.01,
    border_px: int = 2,
) -> MaskIncidence:
    """Which points [V, 3] in global_frame the masks cover, by the one visibility test. O(T V).

    Args:
        tolerance_m, tolerance_relative: how exactly the measured depth must agree. Generous ones have masks cover what
            lies close behind a thin thing, differently from every side.
        border_px: pixels at the image's edge, where masks and depth end, say nothing.
    """
    count = len(points)
    rows: list[np.ndarray] = []
    lengths: list[int] = []
    sight: list[np.ndarray] = []
    owner: list[int] = []
    number: list[int] = []
    for t, view in enumerate(views):
        mask, pixel = visible(
            view.camera, view.T_world_camera, view.depth_m(), points, tolerance_m=tolerance_m,
            tolerance_relative=tolerance_relative, border_px=border_px,
        )  # fmt: skip
        seen = np.flatnonzero(mask)
        sight.append(seen)
        for image in view.numbers():
            numbers = without_specks(image).reshape(-1)[pixel[seen]]
            order = np.argsort(numbers, kind="stable")
            order = order[numbers[order] > 0]
            present, first = np.unique(numbers[order], return_index=True)
            for n, part in zip(present.tolist(), np.split(seen[order], first[1:]), strict=False):
                rows.append(part)
                lengths.append(len(part))
                owner.append(t)
                number.append(n - 1)
    return MaskIncidence(
        _csr(rows, lengths, count), _csr(sight, list(map(len, sight)), count), np.array(owner, np.int64),
        np.array(number, np.int64),
    )  # fmt: skip


def without_specks(image: np.ndarray, least: int = 2) -> np.ndarray:
    """Mask numbers [H, W] without the pixels that fewer than `least` of their eight neighbours agree with: to a small
    mask, single stray pixels all over the image would be most of it."""
    height, width = image.shape
    padded = np.pad(image, 1)
    alike = np.zeros(image.shape, np.uint8)
    for row in range(3):
        for column in range(3):
            alike += padded[row : row + height, column : column + width] == image
    return np.where(alike > least, image, 0)  # each agrees with itself


@dataclass(frozen=True)
class VisibleBoxes:
    """How K instances look in T views.

    Attributes:
        pixels: [K, T] int64, distinct pixels that show a visible point of the instance.
        boxes: [K, T, 4] float32, left, top, right, bottom around them in pixels (right and bottom excluded); 0 where
            nothing is visible.
    """

    pixels: np.ndarray
    boxes: np.ndarray


def visible_boxes(
    instances: sparse.spmatrix,
    points: np.ndarray,
    views: Sequence[MaskView],
    *,
    tolerance_m: float = 0.2,
    spacing_m: float = 0.0,
) -> VisibleBoxes:
    """Count and frame the visible pixels of instances [K, V] of points [V, 3] in every view.

    Args:
        tolerance_m: a point is visible iff |D - z| is at most this.
        spacing_m: between points; boxes grow by half of it as it looks from there.
    """
    if instances.shape[1] != len(points):
        raise QueryError(f"instances are {instances.shape}, points {points.shape}; expected [K, V] and [V, 3]")
    members = sparse.coo_matrix(instances)
    wanted, column = np.unique(members.col, return_inverse=True)
    row, column = members.row.astype(np.int64), column.reshape(-1)
    count = instances.shape[0]
    pixels, boxes = np.zeros((count, len(views)), np.int64), np.zeros((count, len(views), 4), np.float32)
    for t, view in enumerate(views):
        camera = view.camera
        seen, pixel = visible(
            camera, view.T_world_camera, view.depth_m(), points[wanted], tolerance_m=tolerance_m
        )
        if not seen.any():
            continue
        entries = np.flatnonzero(seen[column])
        who, where = np.divmod(
            np.unique(row[entries] * (camera.width * camera.height) + pixel[column[entries]]),
            camera.width * camera.height,
        )
        pixels[:, t] = np.bincount(who, minlength=count)
        v, u = np.divmod(where, camera.width)
        start = np.flatnonzero(np.r_[True, np.diff(who) != 0])
        nearest_m = np.maximum(project(camera, view.T_world_camera, points[wanted[seen]])[2].min(), 1e-3)
        grown = 0.5 * spacing_m * max(camera.fx, camera.fy) / nearest_m
        corners = np.stack(
            [
                np.minimum.reduceat(u, start) - grown, np.minimum.reduceat(v, start) - grown,
                np.maximum.reduceat(u, start) + 1 + grown, np.maximum.reduceat(v, start) + 1 + grown,
            ],
            axis=1,
        )  # fmt: skip
        size = (camera.width, camera.height) * 2
        boxes[who[start], t] = np.clip(corners, 0, size)
    return VisibleBoxes(pixels, boxes)


def top_views(pixels: np.ndarray, k: int = 5) -> np.ndarray:
    """The k views [K, min(k, T)] with the most visible pixels [K, T], most first; -1 where an instance is not visible
    in so many. Ties go to the earlier view."""
    order = np.argsort(-pixels, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(pixels, order, axis=1) > 0, order, -1)


def _csr(rows: Sequence[np.ndarray], lengths: Sequence[int], columns: int) -> sparse.csr_matrix:
    """[len(rows), columns] bool with ones at the given columns of each row."""
    index = np.concatenate(rows) if len(rows) else np.zeros(0, np.int64)
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return sparse.csr_matrix((np.ones(len(index), bool), index, start), shape=(len(rows), columns))
