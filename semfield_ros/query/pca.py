"""Features as colours: their first three principal components, scaled between the 1% and 99% quantiles.

A projection is fitted once and kept until it is asked to follow (F3RM's viewer, Shen et al. 2023, does the same), so a
thing keeps its colour from view to view and while the map is trained. A refreshed projection is turned towards the one
before: colours move only as far as the features did.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import QueryError

QUANTILES = (0.01, 0.99)
MAX_ROWS = 50_000
"""Of features a projection is fitted to; more are drawn from evenly."""


@dataclass(frozen=True)
class Projection:
    """Features [N, D] to colours: (f / |f| - mean) axes^T, then low..high to 0..1; a middle grey where they are equal.

    Attributes:
        mean: [D]. axes: [3, D], orthonormal rows (zeros where D < 3). low, high: [3]. All float32.
    """

    mean: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def colours(self, features: np.ndarray, unknown: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
        """uint8 [..., 3] of features [..., D]; `unknown` where a feature is zero or not finite.

        Raises:
            QueryError: features of another length.
        """
        features = np.asarray(features)
        if features.shape[-1:] != self.mean.shape:
            raise QueryError(
                f"features have shape {features.shape}, this projection {len(self.mean)} dimensions; refit it"
            )
        flat = features.reshape(-1, features.shape[-1])
        out = np.full((len(flat), 3), unknown, np.uint8)
        span = self.high - self.low
        for start in range(0, len(flat), 65536):
            rows, known = _unit(flat[start : start + 65536])
            scaled = ((rows - self.mean) @ self.axes.T - self.low) / np.maximum(span, 1e-6)
            scaled = np.where(span > 1e-6, scaled, 0.5)
            out[start : start + 65536][known] = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)[known]
        return out.reshape(*features.shape[:-1], 3)


def _unit(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows float32 (zeros where there is no direction) and which have one."""
    rows = features.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.linalg.norm(rows, axis=1)
    known = np.isfinite(length) & (length > 1e-6)
    rows[~known] = 0
    return rows / np.where(known, length, 1)[:, None], known


def fit(features: np.ndarray, before: Projection | None = None) -> Projection:
    """The projection of feature rows [N, D], each counted as a direction; rows of zeros are left out.

    Signs are settled: each axis points to where its component of largest size is positive. With `before` (of the same
    D) the three axes are turned, within their own span, to lie as near to its axes as they can (orthogonal Procrustes,
    Schoenemann 1966).

    Raises:
        QueryError: no matrix, or no usable row.
    """
    features = np.asarray(features)
    if features.ndim != 2:
        raise QueryError(f"features have shape {features.shape}; expected [N, D]")
    rows, known = _unit(features[:: max(1, -(-len(features) // MAX_ROWS))])
    rows = rows[known]
    if not len(rows):
        raise QueryError("there are no features to fit colours to; wait until the map has some")
    mean = rows.mean(0)
    centred = (rows - mean).astype(np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    kept = vectors[:, :-4:-1].T
    axes = np.zeros((3, features.shape[1]))
    # an axis has no sign of its own: settled, or the colours of one scene would flip from run to run
    axes[: len(kept)] = kept * np.sign(kept[np.arange(len(kept)), np.abs(kept).argmax(1)])[:, None]
    if before is not None and before.axes.shape == axes.shape:
        u, _, vt = np.linalg.svd(before.axes @ axes.T)
        axes = (u @ vt) @ axes
    low, high = np.quantile(centred @ axes.T, QUANTILES, axis=0)
    return Projection(*(np.asarray(a, np.float32) for a in (mean, axes, low, high)))


class PcaColours:
    """Colours of features with one projection, fitted to the first features that come and kept until `refresh`."""

    def __init__(self, projection: Projection | None = None):
        self.projection = projection

    def refresh(self, features: np.ndarray) -> Projection:
        """Fit the projection again, near the one before; QueryError as `fit`."""
        self.projection = fit(features, self.projection)
        return self.projection

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """See `Projection.colours`. Features of another length (another encoder) start afresh."""
        projection = self.projection
        if projection is None or len(projection.mean) != features.shape[-1]:
            self.projection = None
            projection = self.refresh(features.reshape(-1, features.shape[-1]))
        return projection.colours(features)


def write_png(path: str | Path, image: np.ndarray) -> Path:
    """Write an RGB image [H, W, 3] uint8 (of a view's colours, say); returns the path, with its suffix.

    Raises:
        QueryError: no such image, or a folder that cannot be written.
    """
    path = Path(path).with_suffix(".png")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise QueryError(f"image is {image.dtype} of shape {image.shape}; expected uint8 [H, W, 3]")
    _, data = cv2.imencode(".png", image[..., ::-1])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise QueryError(f"{path} cannot be written: {error}") from error
    return path
