"""Labels of pixels, by keyframe slot: classes, instances, segments, whatever a source or another program gave.

All labelled pixels of a keyframe are kept where they are few (single clicks must not fall through a sample), else a
random share of them, and with them some that are not labelled: that something is no thing is known of those.
"""

from __future__ import annotations

import numpy as np
import torch

from ..config import MemoryConfig
from ..frame import Frame

_FIELDS = {
    "pixel": torch.int32, "depth": torch.float32, "semantic": torch.int16, "instance": torch.int32,
    "segment": torch.int32, "confidence": torch.uint8,
}  # fmt: skip
_ENTRY_BYTES = 19
_UNLABELLED = 0.25
"""At most this share of what is kept is without any label."""


class LabelStore:
    """Up to `memory.labels_per_keyframe` pixels of each slot, `memory.labels_mb` of all; nothing is allocated before
    the first label.

    Attributes, [slots, entries] each, the first `count` [slots] of a slot's row being used:
        pixel: v * width + u. depth: z-depth [m]. semantic, instance, segment: as in `Frame`, 0 = none.
        confidence: of the segment, 0 to 255.
        named: [slots] how many of them have a label; they come first.
        slots: those with labels, oldest first. classed: whether any label was a class, not only an instance or segment.
    """

    pixel: torch.Tensor
    depth: torch.Tensor
    semantic: torch.Tensor
    instance: torch.Tensor
    segment: torch.Tensor
    confidence: torch.Tensor

    def __init__(self, config: MemoryConfig, slots: int, device: torch.device):
        fits = int(config.labels_mb * 2**20 // (slots * _ENTRY_BYTES))
        self.entries, self.n_slots, self.device = max(1, min(config.labels_per_keyframe, fits)), slots, device
        self.slots: list[int] = []
        self.count = torch.zeros(slots, dtype=torch.int64, device=device)
        self.named = torch.zeros(slots, dtype=torch.int64, device=device)
        self._allocated = self.classed = False

    @property
    def bytes(self) -> int:
        """Allocated bytes."""
        return self.n_slots * self.entries * _ENTRY_BYTES if self._allocated else 0

    def _allocate(self) -> None:
        if not self._allocated:
            for name, dtype in _FIELDS.items():
                setattr(self, name, torch.zeros(self.n_slots, self.entries, dtype=dtype, device=self.device))
            self._allocated = True

    def write(self, slot: int, frame: Frame, rng: np.random.Generator) -> None:
        """Replace a slot's labels by those of a frame. O(pixels) where it has any, else free."""
        if slot in self.slots:
            self.slots.remove(slot)
        self.count[slot] = self.named[slot] = 0
        maps = {
            "semantic": frame.semantic, "instance": frame.instance,
            "segment": None if frame.segments is None else frame.segments.ids,
        }  # fmt: skip
        given = {name: image.reshape(-1) for name, image in maps.items() if image is not None}
        if not given:
            return
        depth = frame.depth_m.reshape(-1)
        labelled = np.logical_or.reduce([image > 0 for image in given.values()]) & (depth > 0)
        pixels = np.flatnonzero(labelled)
        if not len(pixels):
            return
        others = np.flatnonzero(~labelled & (depth > 0))
        room = self.entries
        few = min(len(others), int(_UNLABELLED * room), max(room - len(pixels), room * len(others) // len(depth)))
        if len(pixels) > room - few:
            pixels = rng.choice(pixels, room - few, replace=False)
        self.named[slot] = len(pixels)
        pixels = np.concatenate([pixels, rng.choice(others, few, replace=False)])
        self._allocate()
        n = len(pixels)
        entry = {"pixel": pixels, "depth": depth[pixels], **{k: image[pixels] for k, image in given.items()}}
        score = np.full(n, 255.0)
        if frame.segments is not None and frame.segments.scores:
            ids, inverse = np.unique(entry["segment"], return_inverse=True)
            each = np.array([frame.segments.scores.get(int(i), 1.0) for i in ids])
            score = np.clip(255 * each, 0, 255)[inverse]
        entry["confidence"] = np.rint(score)
        for name, dtype in _FIELDS.items():
            values = entry.get(name)
            row = torch.zeros(n, dtype=dtype) if values is None else torch.from_numpy(np.asarray(values)).to(dtype)
            getattr(self, name)[slot, :n] = row.to(self.device)
        self.count[slot] = n
        self.slots.append(slot)
        self.classed |= bool((entry.get("semantic", np.zeros(1)) > 0).any())

    def add(self, slot: int, pixel: int, depth_m: float, semantic: int) -> None:
        """One more labelled pixel of a slot, or another class for one that has one. Where there is no room it takes the
        place of an unlabelled pixel, else of the one labelled last."""
        self._allocate()
        self.classed = True
        if slot not in self.slots:
            self.slots.append(slot)
        count, named = int(self.count[slot]), int(self.named[slot])
        same = torch.nonzero(self.pixel[slot, :named] == pixel)
        if len(same):
            self.semantic[slot, int(same[0])] = semantic
            return
        at = min(named, self.entries - 1)
        if named < count < self.entries:  # labelled ones come first
            for name in _FIELDS:
                getattr(self, name)[slot, count] = getattr(self, name)[slot, named]
        entry = {"pixel": pixel, "depth": depth_m, "semantic": semantic, "instance": 0, "segment": 0, "confidence": 255}
        for name, value in entry.items():
            getattr(self, name)[slot, at] = value
        self.named[slot] = at + 1
        self.count[slot] = min(self.entries, max(count + 1, at + 1))

    def pixels(self, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [M] of a slot that have a class, and the classes [M]."""
        if slot not in self.slots:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        n = int(self.count[slot])
        pixel, semantic = self.pixel[slot, :n].cpu().numpy(), self.semantic[slot, :n].cpu().numpy()
        return pixel[semantic > 0].astype(np.int64), semantic[semantic > 0].astype(np.int64)

    def state(self, slots: list[int]) -> dict[str, torch.Tensor]:
        """The labels of `slots`, for a checkpoint; empty where there are none."""
        if not self.slots:
            return {}
        rows = torch.tensor(slots, dtype=torch.int64, device=self.device)
        return {name: getattr(self, name)[rows] for name in (*_FIELDS, "count", "named")}

    def load(self, state: dict[str, torch.Tensor], slots: list[int]) -> None:
        """Fill `slots` from a `state()`."""
        if not state:
            return
        self._allocate()
        rows = torch.tensor(slots, dtype=torch.int64, device=self.device)
        for name in (*_FIELDS, "count", "named"):
            getattr(self, name)[rows] = state[name].to(self.device)
        self.slots = [slot for slot in slots if int(self.count[slot])]
        self.classed = bool((self.semantic[rows] > 0).any())
