"""Labels made worse on purpose, as Semantic-NeRF does (Zhi et al., ICCV 2021, section 4): fewer, noisier, coarser.

Pure functions of label images [H, W] (integers, 0 = void, C classes with void) and a random generator; `corrupt` puts
them together for a sequence, whose result can be saved and read again for exact reruns. Each frame draws from a
generator of its own, so what happens to one does not depend on how many there are.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from ..config import require
from ..errors import ConfigError
from ..export import write_file

Mode = Literal["none", "pixels", "regions_sort", "regions_even", "coarse", "lattice", "clicks"]
_MODES = ("none", "pixels", "regions_sort", "regions_even", "coarse", "lattice", "clicks")


@dataclass(frozen=True)
class Corruption:
    """What is done to the labels; every mode combines with fewer labelled views."""

    mode: Mode = "none"
    """pixels = random labels at random pixels; regions_sort, regions_even = an instance is another class in some frames
    (its smallest views, or views spread over its sizes); coarse = labels at 1 / factor of the resolution; lattice =
    only every factor-th pixel of every factor-th row; clicks = a spot in each class of each frame."""
    amount: float = 0.0
    """Share of pixels (pixels) or of an instance's views (regions) that are wrong; of clicks, the share of each class
    that the spot covers, 0 = one pixel."""
    factor: int = 8
    """Of coarse and lattice."""
    drop_views: float = 0.0
    """Share of the frames that keep no labels at all."""
    random_views: bool = False
    """Dropped at random instead of evenly."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.mode in _MODES, "mode", self.mode, ", ".join(_MODES))
        require(0 <= self.amount <= 1, "amount", self.amount, "0 to 1")
        require(self.factor >= 1, "factor", self.factor, ">= 1")
        require(0 <= self.drop_views <= 1, "drop_views", self.drop_views, "0 to 1")
        require(self.seed >= 0, "seed", self.seed, ">= 0")


def spread(n: int, k: int) -> np.ndarray:
    """k of n positions, evenly: with q, rem = divmod(n, k) the i-th is q i + min(i, rem); none for k = 0."""
    if not 0 <= k <= n:
        raise ConfigError(f"{k} of {n} positions; allowed: 0 to {n}")
    if k == 0:
        return np.zeros(0, np.int64)
    q, rem = divmod(n, k)
    i = np.arange(k)
    return q * i + np.minimum(i, rem)


def labelled_views(n: int, drop: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """Which of n frames keep their labels when int(n drop) lose them: [n] bool.

    Evenly without `rng`: the dropped ones are spread over the sequence or, where they are the majority, the kept ones.
    """
    require(0 <= drop <= 1, "drop_views", drop, "0 to 1")
    dropped = int(n * drop)
    keep = np.ones(n, bool)
    if rng is not None:
        keep[rng.choice(n, dropped, replace=False)] = False
    elif drop <= 0.5:
        keep[spread(n, dropped)] = False
    else:
        keep[:] = False
        keep[spread(n, n - dropped)] = True
    return keep


def noisy_pixels(labels: np.ndarray, share: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    """int(H W share) different random pixels get a label of 0 to C - 1 at random, void and the right one included."""
    require(0 <= share <= 1, "amount", share, "0 to 1")
    out = labels.copy()
    where = rng.choice(labels.size, int(labels.size * share), replace=False)
    out.reshape(-1)[where] = rng.integers(0, classes, len(where))
    return out


def noisy_regions(
    labels: Sequence[np.ndarray], instances: Sequence[np.ndarray], share: float, classes: int, *, even: bool,
    rng: np.random.Generator,
) -> list[np.ndarray]:  # fmt: skip
    """In int(M share) of the M frames that show an instance, all of it is one other class, drawn for each frame.

    Args:
        labels, instances: of N frames [H, W]; instance 0 is none. even: the frames are spread over the instance's
            areas from small to large; otherwise they are those with the smallest areas.
    """
    require(0 <= share <= 1, "amount", share, "0 to 1")
    if len(labels) != len(instances) or any(a.shape != b.shape for a, b in zip(labels, instances)):
        raise ConfigError("regions need an instance image for every label image, of its size")
    out = [image.copy() for image in labels]
    areas = [dict(zip(*(a.tolist() for a in np.unique(image, return_counts=True)))) for image in instances]
    for instance in sorted({i for each in areas for i in each if i > 0}):
        frames = sorted((f for f in range(len(out)) if instance in areas[f]), key=lambda f: areas[f][instance])
        flips = int(len(frames) * share)
        for f in (frames[i] for i in spread(len(frames), flips)) if even else frames[:flips]:
            region = instances[f] == instance
            right = int(np.bincount(labels[f][region].astype(np.int64)).argmax())
            others = [c for c in range(1, classes) if c != right]
            if others:
                out[f][region] = others[rng.integers(len(others))]
    return out


def coarse(labels: np.ndarray, factor: int) -> np.ndarray:
    """Sampled at every factor-th pixel, then enlarged again by repetition, cut to the image."""
    require(factor >= 1, "factor", factor, ">= 1")
    small = labels[::factor, ::factor]
    return np.ascontiguousarray(small.repeat(factor, 0).repeat(factor, 1)[: labels.shape[0], : labels.shape[1]])


def lattice(labels: np.ndarray, factor: int) -> np.ndarray:
    """Labels at [::factor, ::factor] only; void elsewhere."""
    require(factor >= 1, "factor", factor, ">= 1")
    out = np.zeros_like(labels)
    out[::factor, ::factor] = labels[::factor, ::factor]
    return out


def clicks(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A spot in each class of the image, void elsewhere: a random pixel of the class, grown inside it by a 5 x 5
    square at a time to ceil(share x its pixels); share 0 = that pixel alone. A part that is full is left for another.
    """
    require(0 <= share <= 1, "amount", share, "0 to 1")
    out = np.zeros_like(labels)
    for label in np.unique(labels[labels > 0]):
        mask = labels == label
        wanted = max(1, int(np.ceil(share * np.count_nonzero(mask) - 1e-9)))
        spot = np.zeros(labels.shape, np.uint8)
        count = 0
        while count < wanted:
            ring = cv2.dilate(spot, np.ones((5, 5), np.uint8)).astype(bool) & mask & (spot == 0)
            found = np.flatnonzero(ring)
            if not len(found):
                found = rng.choice(np.flatnonzero(mask & (spot == 0)), 1)
            if len(found) > wanted - count:
                found = rng.choice(found, wanted - count, replace=False)
            spot.reshape(-1)[found] = 1
            count += len(found)
        out[spot > 0] = label
    return out


@dataclass(frozen=True)
class Corrupted:
    """Labels of N frames, made worse.

    Attributes:
        labels: [N, H, W] int32; all void where a frame has none. labelled: [N] bool, frames that keep labels.
        corruption: what was done. classes: C. digest: of the labels before, so that a saved set is used on its own.
    """

    labels: np.ndarray
    labelled: np.ndarray
    corruption: Corruption
    classes: int
    digest: str


def digest_of(labels: Sequence[np.ndarray] | np.ndarray) -> str:
    """A short digest of label images [N, H, W]."""
    stack = np.ascontiguousarray(np.stack([np.asarray(image, np.int32) for image in labels]))
    return hashlib.sha256(repr(stack.shape).encode() + stack.tobytes()).hexdigest()[:16]


def corrupt(
    labels: Sequence[np.ndarray], corruption: Corruption, classes: int, instances: Sequence[np.ndarray] | None = None
) -> Corrupted:
    """Apply a corruption to the labels of N frames [H, W]; first views are dropped, then the others are made worse.

    Args:
        classes: C, with void. instances: [H, W] each, for the modes of regions.

    Raises:
        ConfigError: no frames, labels outside 0 to C - 1, frames of different sizes, or regions without instances.
    """
    if not len(labels) or len({image.shape for image in labels}) != 1:
        raise ConfigError(f"{len(labels)} label images of sizes {sorted({i.shape for i in labels})}; expected one size")
    stack = np.stack(labels).astype(np.int32)
    if stack.min() < 0 or stack.max() >= classes:
        raise ConfigError(f"labels are {stack.min()} to {stack.max()}; allowed: 0 to {classes - 1}")
    seed, mode = corruption.seed, corruption.mode
    views = np.random.default_rng([seed, 1]) if corruption.random_views else None
    keep = labelled_views(len(stack), corruption.drop_views, views)
    out = np.where(keep[:, None, None], stack, 0)
    kept = np.flatnonzero(keep).tolist()
    if mode in ("regions_sort", "regions_even"):
        if instances is None:
            raise ConfigError(f"corruption {mode} needs instances; this source has none")
        rng = np.random.default_rng([seed, 2])
        even = mode == "regions_even"
        changed = noisy_regions(
            [stack[i] for i in kept], [instances[i] for i in kept], corruption.amount, classes, even=even, rng=rng
        )
        for i, image in zip(kept, changed):
            out[i] = image
    elif mode != "none":
        for i in kept:
            out[i] = _worse(stack[i], corruption, classes, np.random.default_rng([seed, 3, i]))
    return Corrupted(out, keep, corruption, classes, digest_of(stack))


def _worse(labels: np.ndarray, corruption: Corruption, classes: int, rng: np.random.Generator) -> np.ndarray:
    """One frame's labels in a mode that looks at one frame."""
    if corruption.mode == "pixels":
        return noisy_pixels(labels, corruption.amount, classes, rng)
    if corruption.mode == "clicks":
        return clicks(labels, corruption.amount, rng)
    return (coarse if corruption.mode == "coarse" else lattice)(labels, corruption.factor)


def save_corrupted(path: str | Path, corrupted: Corrupted, *, overwrite: bool = False) -> Path:
    """Write to an .npz, whole or not at all; ConfigError where the path is taken."""
    about = {"corruption": asdict(corrupted.corruption), "classes": corrupted.classes, "digest": corrupted.digest}
    data = io.BytesIO()
    np.savez_compressed(
        data, labels=corrupted.labels, labelled=corrupted.labelled,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
    )  # fmt: skip
    return write_file(path, data.getvalue(), overwrite=overwrite)


def load_corrupted(path: str | Path, truth: Sequence[np.ndarray] | None = None) -> Corrupted:
    """Read what `save_corrupted` wrote.

    Args:
        truth: the labels they were made of; others are refused.

    Raises:
        ConfigError: no such file, none of this kind, or of other labels than `truth`.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            about = json.loads(data["about"].tobytes().decode())
            names = {f.name for f in fields(Corruption)}
            corruption = Corruption(**{k: v for k, v in about["corruption"].items() if k in names})
            found = Corrupted(data["labels"], data["labelled"], corruption, about["classes"], about["digest"])
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} holds no corrupted labels: {error}; write them with --save-labels") from error
    if truth is not None and digest_of(truth) != found.digest:
        raise ConfigError(f"{path} was made of other labels than these; use the same source, width and frames")
    return found
