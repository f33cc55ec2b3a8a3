"""Faults of machine-made instance masks, one at a time and seeded: what a 2-D model gets wrong, on exact masks.

Every function takes an [H, W] integer image, 0 = no instance, negative = unknown, and returns a new one of int32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..errors import ConfigError
from ..frame import Frame


@dataclass(frozen=True)
class MaskFaults:
    """How far masks are from the truth. Applied in this order: merge, split, noise, shuffle."""

    merge: float = 0.1
    """Share of masks that are one with a neighbour, in a view."""
    split: float = 0.1
    """Share of masks that are cut in two, in a view."""
    noise: float = 0.2
    """Share of pixels with the label of another mask, or of what is none, of the same view."""
    shuffle: bool = True
    """Ids mean nothing beyond their view."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("merge", "split", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 0 to 1, a share")


def faulty(frame: Frame, faults: MaskFaults) -> Frame:
    """The frame with faulty `instance`; the pixels of `semantic` that noise takes get another label of the view.

    A frame is spoilt alike twice.

    Raises:
        ConfigError: it has no instances.
    """
    if frame.instance is None:
        raise ConfigError("the frame has no instances to spoil; use the simulator or a source with true instances")
    rng = np.random.default_rng((faults.seed, round(frame.stamp_s * 1e6) & 0xFFFFFFFF))
    instance = split(merged(frame.instance, faults.merge, rng), faults.split, rng)
    instance, source = noised(instance, faults.noise, rng)
    semantic = None if frame.semantic is None else frame.semantic.reshape(-1)[source].astype(np.int32)
    if faults.shuffle:
        instance = shuffled(instance, rng)
    return replace(frame, instance=instance, semantic=semantic)


def merged(instance: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Each mask, with probability `share`, takes the id of the mask that is nearest to it (both are one then)."""
    out = instance.astype(np.int32)
    for mask in _ids(instance).tolist():
        chosen, others = rng.random() < share, (out > 0) & (out != mask)
        here = out == mask
        if not chosen or not here.any() or not others.any():
            continue
        far = cv2.distanceTransform((~here).astype(np.uint8), cv2.DIST_L2, 3)
        nearest = np.where(others, far, np.inf).argmin()
        out[here] = out.reshape(-1)[nearest]
    return out


def split(instance: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Each mask, with probability `share`, is cut by a random line through its centre; one side gets a new id."""
    out = instance.astype(np.int32)
    fresh = int(out.max(initial=0)) + 1
    for mask in _ids(instance).tolist():
        chosen, angle = rng.random() < share, rng.uniform(0, np.pi)
        if chosen:
            v, u = np.nonzero(out == mask)
            side = (u - u.mean()) * np.cos(angle) + (v - v.mean()) * np.sin(angle) > 0
            out[v[side], u[side]] = fresh
            fresh += 1
    return out


def noised(instance: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """int(HW share) random pixels get another id of the image, each as likely as the others, 0 included.

    Returns:
        the ids, and the flat index [H, W] int64 of the pixel that each pixel's label was taken from.
    """
    flat, source = instance.reshape(-1), np.arange(instance.size)
    ids = np.unique(flat[flat >= 0])
    pixels = rng.permutation(instance.size)[: int(instance.size * share)]
    pixels = pixels[flat[pixels] >= 0]
    if len(ids) > 1:
        # one pixel of each id stands for it
        first = np.array([np.flatnonzero(flat == i)[0] for i in ids])
        own = np.searchsorted(ids, flat[pixels])
        source[pixels] = first[(own + rng.integers(1, len(ids), len(pixels))) % len(ids)]
    taken = source.reshape(instance.shape)
    return flat[taken].astype(np.int32), taken


def shuffled(instance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same masks under ids 1 to n in random order."""
    ids = _ids(instance)
    out = instance.astype(np.int32)
    if len(ids):
        known = np.searchsorted(ids, out).clip(max=len(ids) - 1)
        out = np.where(out > 0, (1 + rng.permutation(len(ids)))[known], out).astype(np.int32)
    return out


def _ids(instance: np.ndarray) -> np.ndarray:
    return np.unique(instance[instance > 0])
