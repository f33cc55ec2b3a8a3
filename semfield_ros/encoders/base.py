"""What an encoder is: one Protocol, and Target, the measurements it makes of one frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ..errors import ConfigError
from ..frame import Frame


@dataclass(frozen=True)
class Window:
    """The receptive window a feature was measured through (DESIGN idea 13): a point-spread function.

    Attributes:
        kernel: [n, n] float32, n odd, >= 0, sums to 1: weight of the surroundings of a measurement's centre.
        pitch_px: image pixels per kernel cell. 0 = a single pixel (labels).
    """

    kernel: np.ndarray
    pitch_px: float

    def __post_init__(self) -> None:
        n = self.kernel.shape[0]
        if self.kernel.shape != (n, n) or n % 2 == 0:
            raise ConfigError(f"window kernel has shape {self.kernel.shape}; expected square with odd edge")
        if (self.kernel < 0).any() or abs(float(self.kernel.sum()) - 1) > 1e-3:
            raise ConfigError(f"window kernel sums to {float(self.kernel.sum()):.4f}; expected >= 0 and a sum of 1")

    @classmethod
    def pixel(cls) -> Window:
        """A measurement of exactly one pixel."""
        return cls(np.ones((1, 1), np.float32), 0.0)

    @classmethod
    def gaussian(cls, sigma_px: float, pitch_px: float) -> Window:
        """An isotropic Gaussian cut off at 2.5 sigma."""
        half = max(1, int(np.ceil(2.5 * sigma_px / pitch_px)))
        axis = np.arange(-half, half + 1) * pitch_px
        line = np.exp(-(axis**2) / (2 * sigma_px**2))
        kernel = np.outer(line, line)
        return cls((kernel / kernel.sum()).astype(np.float32), pitch_px)

    @classmethod
    def box(cls, edge_px: float, pitch_px: float) -> Window:
        """Uniform over a square of `edge_px` pixels, in cells of about `pitch_px`."""
        half = max(0, round((edge_px / pitch_px - 1) / 2))
        n = 2 * half + 1
        return cls(np.full((n, n), 1.0 / n**2, np.float32), edge_px / n)


@dataclass(frozen=True)
class Target:
    """Feature measurements of one frame on a regular grid of cells over the image.

    The cell (i, j) of an [h, w] grid over an H x W image is centred on pixel
    ((j + .5) W / w - .5, (i + .5) H / h - .5). Cells may share a row of `values` (masks, labels).

    Attributes:
        values: [K, D] float32, unit rows.
        index: [h, w] int32, the row of each cell, -1 = nothing was measured there.
        confidence: [K] float32 in [0, 1].
        window: what each value was measured through, in pixels of the frame.
    """

    values: np.ndarray
    index: np.ndarray
    confidence: np.ndarray
    window: Window

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.index.ndim != 2 or self.confidence.shape != self.values.shape[:1]:
            raise ConfigError(
                f"target shapes disagree: values {self.values.shape}, index {self.index.shape}, "
                f"confidence {self.confidence.shape}; expected [K, D], [h, w], [K]"
            )

    @classmethod
    def dense(cls, features: np.ndarray, window: Window) -> Target:
        """From one feature per cell: [h, w, D], normalised here."""
        h, w, d = features.shape
        values = features.reshape(-1, d).astype(np.float32)
        norm = np.linalg.norm(values, axis=1, keepdims=True)
        index = np.where(norm[:, 0] > 1e-12, np.arange(h * w), -1).astype(np.int32).reshape(h, w)
        return cls(values / np.maximum(norm, 1e-12), index, np.ones(h * w, np.float32), window)

    def cell_of_pixels(self, width: int, height: int) -> np.ndarray:
        """For every pixel of a `height` x `width` image its row of `values` or -1: [H, W] int32."""
        h, w = self.index.shape
        rows = np.minimum((np.arange(height) * h) // height, h - 1)
        columns = np.minimum((np.arange(width) * w) // width, w - 1)
        return self.index[rows[:, None], columns[None, :]]


@dataclass(frozen=True)
class Calibration:
    """Where this encoder's scores mean something, measured on data not used to train it.

    Relevancies: a prompt whose best surface stays below `no_match` is absent; objects are seeded at `high` and grow
    down to `low`.
    """

    no_match: float = 0.5
    high: float = 0.55
    low: float = 0.5


@runtime_checkable
class Encoder(Protocol):
    """Pixels and words to features.

    Attributes:
        name: registry name. dim: feature length D. has_text: False where there is no text space (DINO).
        cache_key: changes whenever the features would. calibration: score thresholds of this encoder.
    """

    name: str
    dim: int
    has_text: bool
    cache_key: str
    calibration: Calibration

    def encode_frame(self, frame: Frame) -> Target:
        """Feature measurements of one frame."""
        ...

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit text features [N, D] float32; ConfigError where has_text is False."""
        ...


def targets_of(name: str, encoder: Encoder, frame: Frame) -> dict[str, Target]:
    """All that an encoder measures of a frame, by name: what its `encode_targets(frame)` gives, where it has one (each
    level of a pyramid), else its target under its own name."""
    several = getattr(encoder, "encode_targets", None)
    return several(frame) if several is not None else {name: encoder.encode_frame(frame)}


def in_steps(name: str, encoder: Encoder, frame: Frame) -> Iterator[dict[str, Target] | None]:
    """`targets_of`, in steps after which something else may come first: None after each but the last.

    Slow encoders have `encode_steps(frame)`, which yields None again and again and then their target.
    """
    steps = getattr(encoder, "encode_steps", None)
    if steps is None:
        yield targets_of(name, encoder, frame)
        return
    for target in steps(frame):
        yield None if target is None else {name: target}


@runtime_checkable
class CropEncoder(Encoder, Protocol):
    """An encoder that can also say in one feature what a whole crop shows."""

    def encode_crops(self, crops: np.ndarray, frame_width_px: int) -> np.ndarray:
        """Unit features [N, D] float32 of crops [N, h, w, 3] uint8 of a frame, all of one size, in the text's space.

        Args:
            frame_width_px: width of the frame they were cut from; it tells their scale.
        """
        ...
