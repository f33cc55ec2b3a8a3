"""Non-maximum suppression of poses: of those that are nearly the same only the best stays."""

from __future__ import annotations

import numpy as np


def diverse(
    position: np.ndarray, axes: np.ndarray, score: np.ndarray, distance_m: float, angle_deg: float, limit: int
) -> np.ndarray:
    """Rows by falling score, none near a better one in both place and direction.

    Args:
        position: [N, 3]. axes: [N, 3, A] unit columns; two poses point the same way when every column does, where the
            first (the closing axis) and second may be reversed, as a gripper turned by half a turn is the same.
    """
    order = np.argsort(-score, kind="stable")
    cosine = np.cos(np.deg2rad(angle_deg))
    kept: list[int] = []
    while len(order) and len(kept) < limit:
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        alike = np.einsum("nij,ij->nj", axes[rest], axes[best])
        alike[:, :2] = np.abs(alike[:, :2])
        near = ((position[rest] - position[best]) ** 2).sum(axis=1) <= distance_m**2
        order = rest[~(near & (alike >= cosine).all(axis=1))]
    return np.asarray(kept, dtype=np.int64)
