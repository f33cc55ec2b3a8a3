"""What masks need to become instances later: small images of the keyframes that had masks, within a byte budget.

Kept of a view are its masks, its depth and its colour, compressed (PNG; JPEG for colour), and which keyframe it was:
poses are looked up when instances are made, so that a correction of poses moves masks too. Above the budget the older
of the two most alike views goes.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from ..config import MemoryConfig
from ..errors import ConfigError
from ..frame import Frame
from ..geometry import Camera
from .keyframes import Keyframe, view_distances

MAX_MASKS = 4096
"""Of one view; the largest stay."""
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class MaskView:
    """The masks of one keyframe. Immutable: snapshots share it.

    Attributes:
        keyframe: its id. stamp_s, camera, T_world_camera, camera_name: as of the keyframe (the pose: as last
            corrected).
        depth: PNG of uint16 millimetres. colour: JPEG. layers: PNGs of uint16 mask numbers from 1 on, 0 = none; a mask
            is in one layer, masks of different layers may overlap.
        names: the class name each mask was given by what made it, '' = none. confidence: [n] float32.
    """

    keyframe: int
    stamp_s: float
    camera: Camera
    T_world_camera: np.ndarray
    depth: bytes | memoryview
    colour: bytes | memoryview
    layers: tuple[bytes | memoryview, ...]
    camera_name: str
    names: tuple[str, ...] = ()
    confidence: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def bytes(self) -> int:
        """Held in memory."""
        return len(self.depth) + len(self.colour) + sum(map(len, self.layers)) + self.confidence.nbytes + 400

    def depth_m(self) -> np.ndarray:
        """[H, W] float32 metres, 0 = no measurement."""
        return _read(self.depth).astype(np.float32) / np.float32(1000)

    def rgb(self) -> np.ndarray:
        """[H, W, 3] uint8."""
        return np.ascontiguousarray(_read(self.colour)[..., ::-1])

    def numbers(self) -> list[np.ndarray]:
        """One [H, W] int32 image a layer: mask n of this view is where it holds n + 1; 0 = none."""
        return [_read(layer).astype(np.int32) for layer in self.layers]


def mask_view(
    keyframe: Keyframe,
    frame: Frame,
    masks: np.ndarray | Sequence[np.ndarray],
    names: Sequence[str] = (),
    confidence: Sequence[float] | np.ndarray = (),
) -> MaskView:
    """A view from masks [K, H, W] bool that may overlap, or from one [H, W] integer image (ids > 0; 0 and less: none).

    Args:
        names, confidence: of the K masks, or of the ids in rising order; '' and 1 where not given.

    Raises:
        ConfigError: masks of another size than the frame, or names or confidences of another number.
    """
    shape = frame.depth_m.shape
    array = np.asarray(masks)
    if array.ndim == 2 and array.dtype.kind in "iu":
        ids = np.unique(array)
        ids = ids[ids > 0]
        layers = [np.where(array > 0, np.searchsorted(ids, array) + 1, 0)]
        count = len(ids)
        size = np.asarray(np.bincount(layers[0].reshape(-1), minlength=count + 1)[1:])
    else:
        array = array.reshape(-1, *shape) if array.size == 0 else array
        layers, count = _layers(array.astype(bool)), len(array)
        size = array.reshape(count, -1).sum(1, dtype=np.int64) if count else np.zeros(0, np.int64)
    if any(layer.shape != shape for layer in layers):
        raise ConfigError(f"masks are {array.shape}, the frame is {shape}; expected [K, H, W] bool or [H, W] integers")
    for name, given in (("names", names), ("confidence", confidence)):
        if len(given) not in (0, count):
            raise ConfigError(f"{len(given)} {name} for {count} masks; expected one each, or none")
    words = list(names) or [""] * count
    sure = np.asarray(confidence, np.float32) if len(confidence) else np.ones(count, np.float32)
    if count > MAX_MASKS:
        kept = np.sort(np.argsort(-size, kind="stable")[:MAX_MASKS])
        renamed = np.zeros(count + 1, np.int64)
        renamed[kept + 1] = np.arange(1, MAX_MASKS + 1)
        layers = [renamed[layer] for layer in layers]
        words, sure = [words[k] for k in kept], sure[kept]
    return MaskView(
        keyframe.id, frame.stamp_s, frame.camera, keyframe.T_world_camera,
        _png(np.rint(np.clip(frame.depth_m, 0, 65.535) * 1000)),
        _bytes(".jpg", np.ascontiguousarray(frame.rgb[..., ::-1]), cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY),
        tuple(_png(layer) for layer in layers), frame.camera_name, tuple(words), sure,
    )  # fmt: skip


def masks_of(frame: Frame) -> tuple[np.ndarray, list[str], list[float]] | None:
    """The masks a frame brings, with names and confidences: its segments, else its instances, else None."""
    if frame.segments is not None:
        ids = frame.segments.ids
        found = np.unique(ids[ids > 0]).tolist()
        names = [str(frame.segments.names.get(i, "")) for i in found]
        return ids, names, [float(frame.segments.scores.get(i, 1.0)) for i in found]
    if frame.instance is not None:
        return frame.instance, [], []
    return None


class MaskStore:
    """Views with masks, at most `max_bytes` of them. Not thread-safe; `views` is what readers may keep."""

    def __init__(self, max_bytes: float, config: MemoryConfig):
        self.max_bytes, self.config = max_bytes, config
        self.views: tuple[MaskView, ...] = ()
        self.dropped = 0

    @property
    def bytes(self) -> int:
        """Held in memory."""
        return sum(view.bytes for view in self.views)

    def add(self, view: MaskView) -> None:
        """Remember a view; the budget may cost another one, or this one where it alone exceeds it."""
        views = [known for known in self.views if known.keyframe != view.keyframe] + [view]
        total = sum(v.bytes for v in views)
        while views and total > self.max_bytes:
            gone = views.pop(_most_redundant(views, self.config))
            total -= gone.bytes
            self.dropped += 1
        self.views = tuple(views)

    def keep(self, keyframes: Container[int]) -> None:
        """Forget the views of all other keyframes: nobody corrects their poses any more."""
        self.views = tuple(view for view in self.views if view.keyframe in keyframes)

    def replace_poses(self, poses: Iterable[tuple[int, np.ndarray]]) -> int:
        """Move views of keyframes (id, T_world_camera [4, 4]); returns how many."""
        moved = dict(poses)
        hit = [view.keyframe in moved for view in self.views]
        self.views = tuple(
            replace(view, T_world_camera=np.array(moved[view.keyframe])) if is_hit else view
            for view, is_hit in zip(self.views, hit, strict=True)
        )
        return sum(hit)

    def state(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """For a checkpoint: what JSON can say of each view, and its bytes as arrays."""
        said = [
            {
                "keyframe": view.keyframe, "stamp_s": view.stamp_s, "camera": vars(view.camera),
                "T_world_camera": np.asarray(view.T_world_camera).tolist(), "camera_name": view.camera_name,
                "names": list(view.names), "confidence": view.confidence.tolist(),
                "sizes": [len(part) for part in (view.depth, view.colour, *view.layers)],
            }
            for view in self.views
        ]  # fmt: skip
        joined = b"".join(b"".join((view.depth, view.colour, *view.layers)) for view in self.views)
        return said, {"bytes": np.frombuffer(joined, np.uint8)} if said else {}

    def load(self, said: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray]) -> None:
        """Replace the views by a `state()`."""
        # slices of the whole, which may lie in a file
        joined, views, at = arrays["bytes"].data if said else memoryview(b""), [], 0
        for one in said:
            parts = []
            for size in one["sizes"]:
                parts.append(joined[at : at + size])
                at += size
            camera, T_world_camera = Camera(**one["camera"]), np.array(one["T_world_camera"])
            made_by = one["camera_name"], tuple(one["names"]), np.array(one["confidence"], np.float32)
            images = parts[0], parts[1], tuple(parts[2:])
            views.append(MaskView(one["keyframe"], one["stamp_s"], camera, T_world_camera, *images, *made_by))
        self.views = tuple(views)


def _most_redundant(views: Sequence[MaskView], config: MemoryConfig) -> int:
    """The older of the two views most alike; the newest is spared unless it is alone."""
    if len(views) < 3:
        return 0
    poses = np.stack([view.T_world_camera for view in views])
    nearest = [
        np.delete(view_distances(config, poses, pose), at).min() for at, pose in enumerate(poses[:-1])
    ]
    return int(np.argmin(nearest))


def _layers(masks: np.ndarray) -> list[np.ndarray]:
    """Numbers from 1 on in as few images as masks [K, H, W] that overlap need, each in the first with room for it."""
    layers: list[np.ndarray] = []
    for number, mask in enumerate(masks, 1):
        layer = next((layer for layer in layers if not layer[mask].any()), None)
        if layer is None:
            layer = np.zeros(masks.shape[1:], np.int64)
            layers.append(layer)
        layer[mask] = number
    return layers


def _png(image: np.ndarray) -> bytes:
    return _bytes(".png", image.astype(np.uint16), cv2.IMWRITE_PNG_COMPRESSION, 1)


def _bytes(kind: str, image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(kind, image, list(options))[1].tobytes()


def _read(data: bytes | memoryview) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
