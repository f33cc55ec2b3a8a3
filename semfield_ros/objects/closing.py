"""What the fingers would touch if they closed: width, contacts and how well both pads lie on the surface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..config import GripperConfig

PATCH_M = 0.003
"""Surface this near to where a finger first touches lies on its pad: noise, and pads that give way."""
WHOLE_PATCH_M = 0.01
"""A contact this long in both directions holds as well as a larger one."""
PAD_M = 0.006
"""Contacts are areas: their middles may lie this much beside each other before the line between them tilts."""
FAR_M = 1e3
"""Where there is nothing."""
MAX_PRODUCT = 1_000_000


@dataclass(frozen=True)
class Closing:
    """Of Q poses: what both fingers meet when they close.

    Attributes:
        low, high: [Q] x of the contacts in the gripper frame. cone: [Q] in [0, 1], 1 = normals along the closing axis,
            0 = at the rim of the friction cone. patch: [Q] in [0, 1] size of the smaller contact. centred: [Q] in
            [0, 1], 1 = the contacts lie in the middle of the pads. wanted: [Q] share of the contacts on what is to be
            held. valid: [Q] something lies between the fingers on both sides.
    """

    low: np.ndarray
    high: np.ndarray
    cone: np.ndarray
    patch: np.ndarray
    centred: np.ndarray
    wanted: np.ndarray
    valid: np.ndarray

    @property
    def width(self) -> np.ndarray:
        """[Q] metres."""
        return np.asarray(self.high - self.low)


def batches(
    points: np.ndarray, origin: np.ndarray, rotation: np.ndarray, poses: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some of the poses [q], and the points [M, 3] in their frames [3, q, M] float32, within a bounded memory."""
    step = max(1, MAX_PRODUCT // max(len(points), 1))
    for start in range(0, len(poses) if len(points) else 0, step):
        q = poses[start : start + step]
        centre = points[0]  # float32 is exact enough only near the origin
        rows = np.moveaxis(rotation[q], 2, 0).reshape(-1, 3).astype(np.float32)
        local = (rows @ (points - centre).astype(np.float32).T).reshape(3, len(q), len(points))
        local += np.einsum("qj,qji->iq", centre - origin[q], rotation[q]).astype(np.float32)[:, :, None]
        yield q, local


def close(
    points: np.ndarray,
    normals: np.ndarray,
    wanted: np.ndarray,
    origin: np.ndarray,
    rotation: np.ndarray,
    opening_m: np.ndarray,
    gripper: GripperConfig,
    spacing_m: float,
) -> Closing:
    """Close on the points [N, 3] with unit normals (0 = unknown) from poses [Q, 3], [Q, 3, 3]. O(Q x N).

    Args:
        wanted: [N] bool, what is to be held. opening_m: [Q] between the inner faces. spacing_m: of the points.
    """
    count = len(origin)
    low, high, cone, patch, centred, share = np.zeros((6, count))
    out = Closing(low, high, cone, patch, centred, share, np.zeros(count, bool))
    limit = np.arctan(gripper.friction)
    for q, local in batches(points, origin, rotation, np.arange(count)):
        x, y, z = local
        inside = (np.abs(x) <= (opening_m[q] / 2)[:, None]) & (np.abs(y) < gripper.finger_breadth_m / 2)
        inside &= (z <= 0) & (z >= -gripper.finger_length_m)
        out.valid[q] = inside.any(1)
        out.low[q] = np.where(inside, x, FAR_M).min(1, initial=FAR_M)
        out.high[q] = np.where(inside, x, -FAR_M).max(1, initial=-FAR_M)
        # of curved contacts the mean normal counts: what leans to one side is held by what leans to the other
        turned = np.moveaxis(rotation[q].astype(np.float32), 2, 0) @ normals.T.astype(np.float32)
        along = turned[0]
        cones, patches, middles, shares, ends = [], [], [], [], []
        for sign, end in ((-1.0, out.low[q]), (1.0, out.high[q])):
            touched = inside & (np.abs(x - end[:, None]) <= PATCH_M)
            facing = touched & (sign * along > 0)
            mean = np.where(facing, turned, 0).sum(2)
            cosine = sign * mean[0] / np.maximum(np.sqrt((mean**2).sum(0)), 1e-9)
            cones.append(1 - np.arccos(np.clip(cosine, 0, 1)) / limit)
            lengths = []
            for coordinate in (y, z):
                top = np.where(touched, coordinate, -FAR_M).max(1, initial=-FAR_M)
                bottom = np.where(touched, coordinate, FAR_M).min(1, initial=FAR_M)
                lengths.append(np.clip((top - bottom + spacing_m) / WHOLE_PATCH_M, 0, 1))
                ends.append((top + bottom) / 2)
            middles.append(1 - 2 * np.abs(ends[-2]) / gripper.finger_breadth_m)
            patches.append(lengths[0] * lengths[1])
            shares.append((touched & wanted).sum(1) / np.maximum(touched.sum(1), 1))
        # the line from contact to contact must lie in both cones as well, wherever on the pads it ends
        aside = np.hypot(ends[0] - ends[2], ends[1] - ends[3])
        line = np.arctan2(np.maximum(aside - PAD_M, 0), np.maximum(out.high[q] - out.low[q], 1e-6))
        out.cone[q] = np.clip(np.minimum(np.minimum(*cones), 1 - line / limit), 0, 1)
        out.patch[q] = np.minimum(*patches)
        out.centred[q] = np.clip(np.minimum(*middles), 0, 1)
        out.wanted[q] = np.minimum(*shares)
    return out
