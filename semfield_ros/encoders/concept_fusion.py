"""`concept_fusion`: pixel-aligned features from an encoder of whole images and class-agnostic masks.

ConceptFusion (Jatavallabhula et al., RSS 2023, section III): every mask i is cropped and encoded, f_i, as is the whole
image, f_G. A mask that is like the whole, or like the other masks, keeps more of the whole:

    w = softmax_i((cos(f_i, f_G) + u_i) / tau),   u_i = mean_j cos(f_i, f_j) with `uniqueness`, else 0
    g_i = norm(w_i f_G + (1 - w_i) f_i)

A pixel has the normalised sum of the features of all masks that hold it; a pixel in no mask has f_G. Any encoder of
images and words will do (`encoders.boxes`). The words are those of that encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..config import EncoderConfig
from ..errors import ConfigError
from ..frame import Frame
from .base import Calibration, CropEncoder, Encoder, Target, Window
from .boxes import boxes_of, encode_boxes, encode_image, pooled, unit_rows
from .masks import MaskMaker, mask_maker


def global_shares(
    local: np.ndarray, whole: np.ndarray, *, temperature: float = 1.0, uniqueness: bool = True
) -> np.ndarray:
    """w [K] of unit mask features [K, D] and a unit image feature [D]: how much of the whole each keeps. Sums to 1."""
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; allowed: > 0")
    if not len(local):
        return np.zeros(0, np.float32)
    likeness = local @ whole
    if uniqueness:
        # the mean over all masks is one product with their mean
        likeness = likeness + local @ local.mean(0)
    scaled = likeness / temperature
    share = np.exp(scaled - scaled.max())
    return np.asarray(share / share.sum(), np.float32)


def mixed(
    local: np.ndarray, whole: np.ndarray, *, temperature: float = 1.0, uniqueness: bool = True
) -> np.ndarray:
    """g [K, D]: unit features of masks mixed with that of the image, by `global_shares`."""
    share = global_shares(local, whole, temperature=temperature, uniqueness=uniqueness)[:, None]
    return unit_rows(share * whole + (1 - share) * local)


def spread(masks: np.ndarray, features: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of pixels: rows [R, D] and the row of each pixel [H, W] int32, the commonest rows first.

    Pixels held by the same masks [K, H, W] share a row: the unit sum of those masks' `features` [K, D]; `whole` [D]
    where no mask is.
    """
    height, width = masks.shape[1:]
    if not len(masks):
        return unit_rows(whole[None]), np.zeros((height, width), np.int32)
    packed = np.packbits(masks.reshape(len(masks), -1), axis=0).T
    keys = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).reshape(-1)
    _, first, inverse, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    held = masks.reshape(len(masks), -1)[:, first].T
    rows = np.where(np.asarray(held.any(1))[:, None], held.astype(np.float32) @ features, whole)
    order = np.argsort(-count, kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    return unit_rows(rows[order]), rank[inverse.reshape(-1)].reshape(height, width)


class ConceptFusionEncoder:
    """See `encoders.base.Encoder`, and the module's text.

    Args:
        base: encodes crops, the whole image and words. masks: a frame to masks [K, H, W] bool; its name goes into the
            cache key. temperature: tau. uniqueness: whether masks are also compared with each other.
        local: "crop" encodes each mask's crop; "pooled" takes the mean of the base's dense features under the mask,
            which keeps its surroundings in sight: better where the base was never shown crops.
    """

    name = "concept_fusion"

    def __init__(
        self,
        base: Encoder,
        masks: MaskMaker | str = "felzenszwalb",
        *,
        temperature: float = 1.0,
        uniqueness: bool = True,
        local: str = "crop",
    ):
        if not base.has_text:
            raise ConfigError(f"encoder {base.name!r} has no text space, which concept_fusion needs; use another base")
        if local not in ("crop", "pooled"):
            raise ConfigError(f"local is {local!r}; allowed: crop, pooled")
        self.base, self.temperature, self.uniqueness, self.local = base, temperature, uniqueness, local
        self.masks = mask_maker(masks) if isinstance(masks, str) else masks
        self.dim, self.has_text = base.dim, True
        self.calibration: Calibration = base.calibration
        described = masks if isinstance(masks, str) else f"{masks.__module__}:{masks.__qualname__}"
        text = repr((base.cache_key, described, temperature, uniqueness, local, _VERSION))
        self.cache_key = f"concept_fusion-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def encode_frame(self, frame: Frame) -> Target:
        """One row of values for all pixels held by the same masks, at full resolution."""
        masks, whole = self.masks(frame), encode_image(self.base, frame.rgb)
        if self.local == "pooled":
            local = pooled(self.base.encode_frame(frame), masks)
        else:
            local = encode_boxes(self.base, frame.rgb, boxes_of(masks))
        features = mixed(local, whole, temperature=self.temperature, uniqueness=self.uniqueness)
        rows, index = spread(masks, features, whole)
        return Target(rows, index, np.ones(len(rows), np.float32), Window.pixel())

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """The base's text vectors [N, D] float32."""
        return self.base.encode_text(texts)

    def encode_crops(self, crops: np.ndarray, frame_width_px: int) -> np.ndarray:
        """The base's unit features [N, D] of crops [N, h, w, 3] uint8 of one size."""
        _, height, width = crops.shape[:3]
        if isinstance(self.base, CropEncoder):
            return self.base.encode_crops(crops, frame_width_px)
        return np.concatenate([encode_boxes(self.base, crop, np.array([[0, 0, width, height]])) for crop in crops])


_VERSION = 1
"""Raised when the same settings give other features."""


def create(config: EncoderConfig) -> ConceptFusionEncoder:
    """From `config.concept_fusion`; the base takes its own settings from `config`."""
    from . import create as create_encoder

    settings = config.concept_fusion
    if settings.base == ConceptFusionEncoder.name:
        raise ConfigError("concept_fusion.base is 'concept_fusion' itself; name an encoder of images and words")
    return ConceptFusionEncoder(
        create_encoder(replace(config, name=settings.base)), settings.masks, temperature=settings.temperature,
        uniqueness=settings.uniqueness, local=settings.local,
    )  # fmt: skip
