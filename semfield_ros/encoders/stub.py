"""`stub`: colour words and colours in one small space, without a network. Deterministic; for tests and dry runs.

Twelve named colours are orthogonal directions. A pixel is the mixture of the directions of the colours near it,
softly (a Gaussian in CIE L*a*b*, lightness at half weight: shading is not colour), so features change smoothly with
colour; a cell is the mean over its pixels. A text is the mean of the colours it names ("red mug" is red). The canonical
negatives name no colour and are the mean of all; any other text is a direction of its own (from a hash) orthogonal to
every colour, so it matches nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import cv2
import numpy as np

from ..config import EncoderConfig
from ..errors import ConfigError
from ..frame import Frame
from .base import Calibration, Target, Window

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (175, 20, 25),
    "orange": (240, 140, 30),
    "yellow": (235, 215, 50),
    "green": (60, 160, 70),
    "cyan": (60, 190, 200),
    "blue": (45, 85, 200),
    "purple": (130, 60, 170),
    "pink": (240, 140, 180),
    "brown": (110, 78, 45),
    "black": (20, 20, 20),
    "grey": (128, 128, 128),
    "white": (240, 240, 240),
}
NEGATIVES = frozenset({"object", "things", "stuff", "texture"})
CELL_PX = 8
COLOUR_SIGMA = 12.0
"""Width of a colour's neighbourhood, CIE L*a*b* units."""

_SYNONYMS = {"gray": "grey", "violet": "purple", "turquoise": "cyan", "magenta": "pink"}


def create(config: EncoderConfig) -> StubEncoder:
    """No setting is used."""
    return StubEncoder()


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of [H, W, 3] uint8, lightness halved (0 to 50)."""
    return cv2.cvtColor(rgb.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB) * np.array([0.5, 1, 1], np.float32)


class StubEncoder:
    """Colour as meaning. `dim` must leave room for the palette and for words that name no colour."""

    name = "stub"
    has_text = True
    calibration = Calibration(no_match=0.5, high=0.8, low=0.5)

    def __init__(self, dim: int = 32):
        if dim <= len(PALETTE):
            raise ConfigError(f"stub dim is {dim}; allowed: more than the {len(PALETTE)} colours of its palette")
        self.dim = dim
        self.cache_key = f"stub-1-{dim}"
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0]
        self._colours = basis[:, : len(PALETTE)].T.astype(np.float32)
        self._elsewhere = basis[:, len(PALETTE) :].T
        self._palette_lab = _lab(np.array([list(PALETTE.values())], np.uint8))[0]

    def memberships(self, rgb: np.ndarray) -> np.ndarray:
        """How much each pixel of [H, W, 3] uint8 is each colour: [H, W, 12] float32, >= 0, summing to 1."""
        lab = _lab(rgb).reshape(-1, 3)
        squared = (lab**2).sum(1)[:, None] - 2 * lab @ self._palette_lab.T + (self._palette_lab**2).sum(1)
        weights = np.exp(-(squared - squared.min(axis=1, keepdims=True)) / (2 * COLOUR_SIGMA**2))
        return (weights / weights.sum(axis=1, keepdims=True)).reshape(*rgb.shape[:2], -1)

    def encode_frame(self, frame: Frame) -> Target:
        """Means over cells of about 8 x 8 pixels, measured through exactly that square."""
        height, width = frame.rgb.shape[:2]
        grid = (max(1, width // CELL_PX), max(1, height // CELL_PX))
        parts = np.moveaxis(self.memberships(frame.rgb), 2, 0)
        mean = np.stack([cv2.resize(part, grid, interpolation=cv2.INTER_AREA) for part in parts], axis=-1)
        edge_px = float(np.sqrt(width / grid[0] * height / grid[1]))
        return Target.dense(mean @ self._colours, Window.box(edge_px, edge_px / 5))

    def encode_crops(self, crops: np.ndarray, frame_width_px: int) -> np.ndarray:
        """Unit features [N, D] float32 of crops [N, h, w, 3] uint8: their mean colours."""
        n, height, width = crops.shape[:3]
        mean = self.memberships(crops.reshape(n * height, width, 3)).reshape(n, height * width, -1).mean(1)
        features = (mean @ self._colours).astype(np.float32)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [N, D] float32; every text is answered."""
        return np.stack([self._vector(text) for text in texts]) if len(texts) else np.zeros((0, self.dim), np.float32)

    def _vector(self, text: str) -> np.ndarray:
        words = [_SYNONYMS.get(word, word) for word in re.findall(r"[a-z]+", text.lower())]
        named = [index for index, colour in enumerate(PALETTE) if colour in words]
        if named or " ".join(words) in NEGATIVES:
            vector = self._colours[named].sum(0) if named else self._colours.sum(0)
        else:
            seed = int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "big")
            vector = np.random.default_rng(seed).normal(size=len(self._elsewhere)) @ self._elsewhere
        return (vector / np.linalg.norm(vector)).astype(np.float32)
