"""Features of many views fused on given points: what a point cloud means, without any training.

A view's measurement counts for the points it sees, by the one visibility test, as a running mean (OpenScene, Peng et
al. 2023). ConceptFusion (Jatavallabhula et al. 2023, after PointFusion, Keller et al. 2013) also asks that the surface
faces the way the point does, and weighs measurements by exp(-r^2 / (2 .6^2)), r the distance from the image's centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..encoders.base import Target
from ..errors import ConfigError
from ..frame import Frame
from ..geometry import VISIBILITY_RULES, Camera, Visibility
from .surface import depth_normals

RADIAL_SIGMA = 0.6
_ROWS = 8192


@dataclass(frozen=True)
class FusionRule:
    """Which measurements count for a point, and how much.

    Attributes:
        visibility: the test. radial_sigma: None = all alike. max_angle_deg: between the point's normal and the
            surface measured in the view, where both are known; None = any.
    """

    visibility: Visibility
    radial_sigma: float | None = None
    max_angle_deg: float | None = None

    def __post_init__(self) -> None:
        if self.radial_sigma is not None and not self.radial_sigma > 0:
            raise ConfigError(f"radial_sigma is {self.radial_sigma}; allowed: > 0, or None")
        if self.max_angle_deg is not None and not 0 < self.max_angle_deg <= 180:
            raise ConfigError(f"max_angle_deg is {self.max_angle_deg}; allowed: 0 to 180, or None")


FUSION_RULES = {
    "openscene": FusionRule(VISIBILITY_RULES["openscene"]),
    "openscene_matterport": FusionRule(VISIBILITY_RULES["openscene_matterport"]),
    "conceptfusion": FusionRule(VISIBILITY_RULES["conceptfusion"], RADIAL_SIGMA, 20.0),
}


def radial_weight(camera: Camera, pixel: np.ndarray, sigma: float = RADIAL_SIGMA) -> np.ndarray:
    """exp(-r^2 / (2 sigma^2)) [N] float32 of flat pixel indices [N]; r = 0 at the image's centre, 1 at its corners."""
    v, u = np.divmod(pixel, camera.width)
    squared = 2 * (((u + 0.5) / camera.width - 0.5) ** 2 + ((v + 0.5) / camera.height - 0.5) ** 2)
    return np.exp(-squared / (2 * sigma**2)).astype(np.float32)


class PointFusion:
    """Running means of features on N fixed points.

    Attributes:
        points: [N, 3] float32. normals: [N, 3], 0 = unknown. mass: [N] float32, weight of what was averaged.
        views: [N] int32, how many counted.
    """

    def __init__(
        self, points: np.ndarray, feature_dim: int, rule: FusionRule | str = "openscene", *,
        normals: np.ndarray | None = None,
    ):  # fmt: skip
        if isinstance(rule, str):
            if rule not in FUSION_RULES:
                raise ConfigError(f"fusion rule is {rule!r}; allowed: {', '.join(FUSION_RULES)}")
            rule = FUSION_RULES[rule]
        self.rule = rule
        self.points = np.asarray(points, np.float32).reshape(-1, 3)
        self.normals = np.zeros_like(self.points) if normals is None else np.asarray(normals, np.float32)
        if self.normals.shape != self.points.shape:
            raise ConfigError(f"normals have shape {self.normals.shape}; expected the points', {self.points.shape}")
        count = len(self.points)
        self.mass = np.zeros(count, np.float32)
        self.views = np.zeros(count, np.int32)
        self._mean = np.zeros((count, feature_dim), np.float32)

    @property
    def seen(self) -> np.ndarray:
        """[N] bool: points of which anything was measured."""
        return self.mass > 0

    @property
    def features(self) -> np.ndarray:
        """[N, D] float32 means of unit features, not normalised; 0 where unseen."""
        return self._mean

    def add(self, frame: Frame, target: Target) -> int:
        """Average one view's measurements in; returns how many points it saw. O(N + visible x D)."""
        if target.values.shape[1] != self._mean.shape[1]:
            raise ConfigError(f"features have {target.values.shape[1]} dimensions; expected {self._mean.shape[1]}")
        camera = frame.camera
        mask, pixel = self.rule.visibility.seen(camera, frame.T_world_camera, frame.depth_m, self.points)
        rows = np.flatnonzero(mask)
        pixel = pixel[rows]
        cell = target.cell_of_pixels(camera.width, camera.height).reshape(-1)[pixel]
        keep = (cell >= 0) & self._faces(frame, rows, pixel)
        rows, pixel, cell = rows[keep], pixel[keep], cell[keep]
        weight = target.confidence[cell].astype(np.float32)
        if self.rule.radial_sigma is not None:
            weight = weight * radial_weight(camera, pixel, self.rule.radial_sigma)
        counted = weight > 0
        rows, cell, weight = rows[counted], cell[counted], weight[counted]
        self.mass[rows] += weight
        self.views[rows] += 1
        share = (weight / self.mass[rows])[:, None]
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            mean = self._mean[rows[part]]
            self._mean[rows[part]] = mean + (target.values[cell[part]] - mean) * share[part]
        return len(rows)

    def _faces(self, frame: Frame, rows: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        """[n] bool: points [n] in `rows` whose normal agrees with what the view measured at `pixel` [n], or may."""
        if self.rule.max_angle_deg is None or not len(rows):
            return np.ones(len(rows), bool)
        measured = depth_normals(frame.camera, frame.depth_m).reshape(-1, 3)[pixel]
        measured = measured @ frame.T_world_camera[:3, :3].T.astype(np.float32)
        own = self.normals[rows]
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(measured, axis=1)
        cosine = (own * measured).sum(1)
        return np.asarray((lengths < 1e-6) | (cosine >= np.cos(np.radians(self.rule.max_angle_deg)) * lengths))
