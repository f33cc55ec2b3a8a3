"""Antipodal pairs: places where two fingers closing on each other would hold a surface.

Two contacts hold under Coulomb friction when the line between them lies within both friction cones (Nguyen, 1988).
Sampled surfaces rarely have a sample right opposite another, and fingers have pads, so the closing axis is taken from
the two normals, and contacts may be offset across it by up to half a pad.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import cKDTree

from ..config import GripperConfig
from . import reasons


@dataclass(frozen=True)
class Pairs:
    """P antipodal pairs: middle, closing axis [P, 3], width, quality in [0, 1], measured [P].

    `rejected`: how many opposed pairs were too wide or too thin, by reason.
    """

    middle: np.ndarray
    axis: np.ndarray
    width: np.ndarray
    quality: np.ndarray
    measured: np.ndarray
    rejected: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.width)

    def __getitem__(self, rows: np.ndarray) -> Pairs:
        return Pairs(self.middle[rows], self.axis[rows], self.width[rows], self.quality[rows], self.measured[rows])


def antipodal_pairs(points: np.ndarray, normals: np.ndarray, seen: np.ndarray, gripper: GripperConfig) -> Pairs:
    """All pairs of samples that a gripper of this width and friction can hold, at least one of each pair seen."""
    offset_limit = gripper.finger_breadth_m / 2
    cosine_limit = 1.0 / np.sqrt(1.0 + gripper.friction**2)
    i, j = np.nonzero(np.triu((normals @ normals.T) <= 1.0 - 2.0 * cosine_limit**2, 1))
    keep = seen[i] | seen[j]
    i, j = i[keep], j[keep]
    across = points[j] - points[i]
    # Opposed normals within both cones of their mean direction: the angle between them halves onto each contact.
    axis = normals[j] - normals[i]
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    width = (across * axis).sum(axis=1)
    offset = np.linalg.norm(across - width[:, None] * axis, axis=1)
    cosine = (normals[j] * axis).sum(axis=1)
    good = (width > 0) & (offset <= offset_limit) & (cosine >= cosine_limit)
    i, j, axis, width, cosine, offset = (a[good] for a in (i, j, axis, width, cosine, offset))
    wide, thin = width > gripper.widest_m, width < gripper.min_width_m
    rejected = {reasons.TOO_WIDE: int(wide.sum()), reasons.TOO_THIN: int(thin.sum())}
    fits = ~wide & ~thin
    i, j, axis, width, cosine, offset = (a[fits] for a in (i, j, axis, width, cosine, offset))
    slack = 1.0 - np.arccos(np.clip(cosine, -1, 1)) / np.arctan(gripper.friction)
    quality = slack * (1.0 - 0.5 * offset / offset_limit)
    return Pairs((points[i] + points[j]) / 2, axis, width, np.clip(quality, 0, 1), seen[i] & seen[j], rejected)


def guess_unseen(
    points: np.ndarray, normals: np.ndarray, middle: np.ndarray, up: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The sideways surface turned by half a turn about the vertical through `middle`, where nothing was seen."""
    sideways = np.abs(normals @ up) < 0.7
    points_s, normals_s = points[sideways], normals[sideways]
    height = (points_s - middle) @ up
    turned = 2 * middle + 2 * height[:, None] * up - points_s
    turned_normals = 2 * (normals_s @ up)[:, None] * up - normals_s
    spacing = np.median(cKDTree(points).query(points, k=2)[0][:, 1]) if len(points) > 1 else 0.0
    unseen = cKDTree(points).query(turned)[0] > max(2 * spacing, 0.005) if len(turned) else np.zeros(0, bool)
    return turned[unseen], turned_normals[unseen]
