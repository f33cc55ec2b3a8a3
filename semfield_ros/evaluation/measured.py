"""An encoder whose faults are known: true class features, blurred, noisy, and wrong in some views.

It stands for any 2-D model in ablations: what it sees through (patch, receptive window), how noisy it is, and how often
it takes one class for another in a whole view can be set one at a time, and the truth it measured is exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np

from ..encoders.base import Calibration, Target, Window
from ..errors import ConfigError
from ..frame import Frame


@dataclass(frozen=True)
class Faults:
    """How far a 2-D model is from the truth."""

    patch_px: int = 16
    """Stride of the grid of measurements."""
    window_px: float = 32.0
    """Edge of the square a measurement averages over."""
    noise: float = 0.5
    """Length of the Gaussian noise added to each unit feature, in the mean."""
    wrong_views: float = 0.2
    """Share of (view, class) pairs in which the class looks like another one throughout."""
    assumed_window_px: float | None = None
    """What the encoder says its window is; None = the truth."""
    seed: int = 0


class MeasuredEncoder:
    """Features of the classes of `Frame.semantic`, seen through faults. Deterministic: a frame is measured alike twice.

    Args:
        class_names: by semantic id; each is an orthogonal direction, and its text feature.
        faults: see Faults.
    """

    name = "measured"
    has_text = True
    calibration = Calibration()

    def __init__(self, class_names: Sequence[str], faults: Faults, dim: int = 64):
        if len(class_names) > dim:
            raise ConfigError(f"{len(class_names)} classes do not fit {dim} orthogonal directions; raise dim")
        self.class_names, self.faults, self.dim = tuple(class_names), faults, dim
        rng = np.random.default_rng(12345)
        self.vectors = np.linalg.qr(rng.normal(size=(dim, dim)))[0][: len(class_names)].astype(np.float32)
        text = repr((self.class_names, asdict(faults), dim))
        self.cache_key = f"measured-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        edge = faults.window_px if faults.assumed_window_px is None else faults.assumed_window_px
        self.window = Window.box(edge, 4.0) if edge > 4 else Window.pixel()

    def encode_frame(self, frame: Frame) -> Target:
        """Measurements of one frame; needs its true `semantic` image."""
        if frame.semantic is None:
            raise ConfigError("the measured encoder needs frames with true labels; use the simulator")
        faults = self.faults
        rng = np.random.default_rng((faults.seed, round(frame.stamp_s * 1e6) & 0xFFFFFFFF))
        classes = len(self.class_names)
        seen_as = np.arange(classes)
        wrong = np.flatnonzero(rng.random(classes) < faults.wrong_views)
        seen_as[wrong] = (wrong + rng.integers(1, classes, len(wrong))) % classes
        height, width = frame.semantic.shape
        h, w = height // faults.patch_px, width // faults.patch_px
        rows = np.minimum(((np.arange(h) + 0.5) * height / h).astype(int), height - 1)
        columns = np.minimum(((np.arange(w) + 0.5) * width / w).astype(int), width - 1)
        share = np.zeros((h, w, classes), np.float32)
        for label in np.unique(frame.semantic):
            mask = (frame.semantic == label).astype(np.float32)
            edge = max(1, round(faults.window_px))
            blurred = cv2.blur(mask, (edge, edge), borderType=cv2.BORDER_REPLICATE)
            share[..., seen_as[label]] += blurred[rows[:, None], columns]
        features = share @ self.vectors
        features /= np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-6)
        features += rng.normal(size=features.shape).astype(np.float32) * (faults.noise / np.sqrt(self.dim))
        return Target.dense(features, self.window)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """The direction of the class a text names; the mean of all for any other text."""
        neutral = self.vectors.mean(0) / np.linalg.norm(self.vectors.mean(0))
        table = dict(zip(self.class_names, self.vectors))
        return np.stack([table.get(text, neutral) for text in texts]).astype(np.float32)
