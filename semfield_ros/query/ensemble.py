"""The 2-D/3-D ensemble (OpenScene, Peng et al. 2023, section 3.3): of each point's two features, the surer one.

The point map has what 2-D encoders measured there, fused; the field has what it learnt of it, which is smoother and
knows shape. Per point the one is kept whose best cosine over the labels is larger.
"""

from __future__ import annotations

import numpy as np

from ..errors import QueryError


def from_distilled(fused: np.ndarray, distilled: np.ndarray) -> np.ndarray:
    """[N] bool: points whose distilled feature has the larger best cosine. Equal ones keep what was measured.

    Args:
        fused, distilled: [N, L] cosines of both (unit) features with all labels.

    Raises:
        QueryError: shapes differ, or there is no label.
    """
    if fused.shape != distilled.shape or fused.ndim != 2 or not fused.shape[1]:
        raise QueryError(f"cosines are {fused.shape} and {distilled.shape}; expected equal shapes [N, L], L >= 1")
    return np.asarray(distilled.max(1) > fused.max(1))


def combined(fused: np.ndarray, distilled: np.ndarray, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines [N, T] of the surer feature of each point, and which ones are the distilled [N] bool.

    Args:
        fused, distilled: [N, T]; the first `labels` columns are of the labels, the others of what they are told apart
            from, which has no say.
    """
    chosen = from_distilled(fused[:, :labels], distilled[:, :labels])
    return np.where(chosen[:, None], distilled, fused), chosen


def ensemble_features(fused: np.ndarray, distilled: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """The surer unit feature [N, D] of each point, of fused and distilled [N, D], any length, by unit texts [L, D]."""
    unit = [f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12) for f in (fused, distilled)]
    chosen = from_distilled(unit[0] @ texts.T, unit[1] @ texts.T)
    return np.asarray(np.where(chosen[:, None], unit[1], unit[0]), np.float32)
