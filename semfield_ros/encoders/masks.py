"""Class-agnostic masks of an image: where something is, not what.

`felzenszwalb` is the embedded default: a graph-based segmentation at several scales (Felzenszwalb and Huttenlocher,
"Efficient Graph-Based Image Segmentation", IJCV 2004; scikit-image's) of colour and of the logarithm of depth.
`segments` takes the masks a frame carries. Any other mask generator is named as `module:attribute`, a callable that
takes an image [H, W, 3] uint8 and returns one of

- [K, H, W] bool, or a sequence of [H, W] bool masks, which may overlap,
- [H, W] integers, one id a mask, 0 = none,
- a sequence of mappings with "segmentation" [H, W] bool (what Segment Anything's automatic generator returns).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import cv2
import numpy as np

from ..errors import ConfigError
from ..frame import Frame

MaskMaker = Callable[[Frame], np.ndarray]
"""A frame to masks [K, H, W] bool that may overlap; K may be 0."""

SCALES = (100.0, 300.0, 1000.0)
"""Observation scales: larger ones prefer larger segments."""
WIDTH_PX = 160
"""Images are segmented at this width at most: masks for crops need no finer outline."""
DEPTH_WEIGHT = 1.0
"""A step to a depth e times as large, as a difference of colour in [0, 1]."""


def mask_maker(name: str) -> MaskMaker:
    """The generator of that name: felzenszwalb, segments, or `module:attribute`.

    Raises:
        ConfigError: an unknown name, or a module or attribute that is not there.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError(
            f"masks is {name!r}; allowed: {', '.join(sorted(_BUILT_IN))}, or 'module:attribute' of a callable that "
            "takes an image [H, W, 3] uint8"
        )
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"masks is {name!r}, which cannot be imported ({error}); install what it is in") from error
    if not callable(found):
        raise ConfigError(f"masks is {name!r}, which is {type(found).__name__}, no callable")
    return lambda frame: filtered(as_masks(found(frame.rgb), frame.rgb.shape[:2]))


def felzenszwalb_masks(frame: Frame) -> np.ndarray:
    """Segments of colour and depth at all SCALES: [K, H, W] bool, disjoint within a scale, overlapping between them."""
    from skimage.segmentation import felzenszwalb

    height, width = frame.rgb.shape[:2]
    small = (min(width, WIDTH_PX), max(1, round(height * min(width, WIDTH_PX) / width)))
    # texture and noise go, edges stay
    colour = cv2.bilateralFilter(np.ascontiguousarray(frame.rgb), 5, 25, 3).astype(np.float32) / np.float32(255)
    depth = cv2.medianBlur(frame.depth_m, 5)
    channels = np.dstack([colour, DEPTH_WEIGHT * np.log(np.maximum(depth, 0.1))])
    if small != (width, height):
        channels = cv2.resize(channels, small, interpolation=cv2.INTER_AREA)
    least = max(2, small[0] * small[1] // 800)
    rows, columns = np.arange(height) * small[1] // height, np.arange(width) * small[0] // width
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # four channels are meant
        for scale in SCALES:
            ids = felzenszwalb(channels, scale=scale, sigma=0.5, min_size=least, channel_axis=2)
            masks = ids == np.arange(ids.max() + 1)[:, None, None]
            found.append(masks[:, rows[:, None], columns])
    return filtered(np.concatenate(found))


def segment_masks(frame: Frame) -> np.ndarray:
    """The machine-made masks that a frame carries: [K, H, W] bool.

    Raises:
        ConfigError: it carries none at all.
    """
    if frame.segments is None:
        raise ConfigError("this frame carries no masks; use a source that has them, or masks = felzenszwalb")
    return as_masks(frame.segments.ids, frame.rgb.shape[:2])


_BUILT_IN: dict[str, MaskMaker] = {"felzenszwalb": felzenszwalb_masks, "segments": segment_masks}


def as_masks(found: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What a mask generator returned, as [K, H, W] bool for an image of `shape` (H, W); empty masks left out.

    Raises:
        ConfigError: it is none of the forms of the module's text, or of another size.
    """
    if isinstance(found, np.ndarray) and found.ndim == 2 and found.dtype.kind in "iu":
        ids = np.unique(found)
        masks = found[None] == ids[ids > 0][:, None, None]
    elif isinstance(found, (np.ndarray, Sequence)) and not isinstance(found, str):
        each = [item.get("segmentation") if isinstance(item, Mapping) else item for item in found]
        try:
            masks = np.stack([np.asarray(item) for item in each]) if each else np.zeros((0, *shape), bool)
        except ValueError as error:
            raise ConfigError(f"the masks have different shapes ({error}); expected {shape} each") from error
    else:
        raise ConfigError(f"the mask generator returned {type(found).__name__}; expected masks [K, H, W] bool")
    if masks.shape[1:] != tuple(shape) or masks.dtype != bool:
        raise ConfigError(f"the masks are {masks.dtype} of shape {masks.shape}; expected bool of shape [K, *{shape}]")
    return np.asarray(masks[masks.any((1, 2))])


def filtered(masks: np.ndarray, *, least: float = 5e-4, most: int = 120) -> np.ndarray:
    """The `most` largest masks of at least a share `least` of the image, each kept once, largest first."""
    area = masks.sum((1, 2))
    order = [k for k in np.argsort(-area, kind="stable") if area[k] >= least * masks[0].size]
    packed = [masks[k].tobytes() for k in order]
    once = [k for i, k in enumerate(order) if packed[i] not in packed[:i]]
    return np.asarray(masks[once[:most]])
