"""Instances of the scene from masks of views: two objectives, slots and embedding, of `instance_losses`.

Masks are `Frame.instance` where a view has them (0 is then known to be no instance), else `Frame.segments`, of which 0
says little: a detector misses things.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..config import HeadsConfig
from ..memory.replay import LabelBatch, Replay
from .heads import Head, HeadConfig
from .instance_losses import (
    Masks,
    Regions,
    allowed_slots,
    assign_images,
    believed,
    follow,
    slot_loss,
    slow_fast,
)
from .model import Field
from .objectives import Stateless

SLOTS, EMBEDDING = "instance_slots", "instance_embedding"
FIRST_SLOTS = 32
DIM = 3
"""Of the embedding, as in Contrastive Lift."""
IMAGES = 4
"""Keyframes a step; ids are compared within each of them, so many pixels of few images say more than few of many."""
DRAWN, KEPT = 4, 0.25
"""So many times the rays of a step are drawn; of those on stuff this share is trained: most of an image is stuff."""
NO_MASK = 0.1
"""What it counts for that a detector has found nothing in a pixel."""
ENOUGH = 0.2
"""A mask is given a slot that is believed in to this degree."""
FIRST = 60
"""Steps before slots are opened: things and stuff are told apart first."""
EVIDENCE = 2.0
"""Pixels of a mask in a batch that are worth opening or confirming a slot for."""
NEW = 0.4
"""A mask opens a slot where this share of it lies in no other's: what is cut off a mask is no new thing."""
LASTS = 20
"""A slot is another's to open when every keyframe has been drawn so often without confirming it."""


def heads(config: HeadsConfig) -> tuple[HeadConfig, ...]:
    """Slots or an embedding, where instances are asked for."""
    if config.instances == "slots":
        return (HeadConfig(SLOTS, FIRST_SLOTS, late_linear=True),)
    return (HeadConfig(EMBEDDING, DIM, late_linear=True),) if config.instances == "embedding" else ()


def objectives(config: HeadsConfig, field: Field) -> tuple[Slots | Embedding, ...]:
    """What the heads of a field are trained for."""
    found: list[Slots | Embedding] = []
    if SLOTS in field.heads:
        found.append(Slots(config.label_rays, field.head(SLOTS).config.out_dim))
    if EMBEDDING in field.heads:
        found.append(Embedding(config.label_rays))
    return tuple(found)


@dataclass(frozen=True)
class MaskBatch:
    """N pixels of a few images: points [N, 3], mask ids [N] (0 = none), confidence [N], image [N] (from 0, sorted)."""

    points: torch.Tensor
    ids: torch.Tensor
    confidence: torch.Tensor
    image: torch.Tensor


def draw_masks(replay: Replay, rays: int, generator: torch.Generator) -> MaskBatch | None:
    """About `rays` pixels of IMAGES keyframes, three quarters of the drawn stuff left out; None without labels."""
    batch = replay.labelled_images(IMAGES, max(2, DRAWN * rays // IMAGES), generator)
    if batch is None or not len(batch.points):
        return None
    ids, confidence, image = masks_of(batch)
    luck = torch.rand(len(ids), generator=generator, device=ids.device) < KEPT
    keep = torch.nonzero((ids != 0) | luck).squeeze(1)
    return MaskBatch(batch.points[keep], ids[keep], confidence[keep], image[keep]) if len(keep) > 1 else None


def masks_of(batch: LabelBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask ids [N] (0 = none), confidences [N] and images [N] (0, 1, ..., one a run of rows) of labelled pixels."""
    image = torch.unique_consecutive(batch.slots, return_inverse=True)[1]
    known = torch.zeros(int(image.max()) + 1 if len(image) else 0, dtype=torch.bool, device=image.device)
    known[image[batch.instance > 0]] = True
    exact = known[image]
    ids = torch.where(exact, batch.instance, batch.segment)
    doubted = torch.where(ids > 0, batch.confidence, NO_MASK)
    return ids, torch.where(exact, torch.ones_like(doubted), doubted), image


def grow(head: Head, outputs: int) -> None:
    """Give a head's last layer more outputs, those it has staying as they are. Its parameters stay the same tensors,
    for whoever trains them."""
    last = head.last
    fresh = torch.nn.Linear(last.in_features, outputs - last.out_features).to(last.weight.device)
    with torch.no_grad():
        last.weight.data = torch.cat([last.weight.data, fresh.weight.data])
        last.bias.data = torch.cat([last.bias.data, fresh.bias.data])
    last.weight.grad = last.bias.grad = None
    last.out_features = outputs
    head.config = replace(head.config, out_dim=outputs)


class Slots:
    """Cross-entropy to slots that each image's masks are assigned to.

    Slots are opened by one image at a time, the one that shows most of what no slot explains, for its masks: if every
    image opened its own, a thing would begin as many. There are always more slots than things: when they run out,
    their number doubles.

    Attributes:
        confirmed: [S] step at which a mask was last given each slot; -1 = never. masks: [S] how many were.
        regions: where they are, a running mean over those masks.
    """

    name = SLOTS

    def __init__(self, rays: int, slots: int):
        self.rays = rays
        self.confirmed, self.masks = np.full(slots, -1, np.int64), np.zeros(slots, np.int64)
        self.regions = Regions(np.zeros((slots, 3)), np.zeros(slots))
        self.begun: int | None = None

    def losses(
        self, field: Field, replay: Replay, step: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], int]:
        """The loss of some pixels of a few images."""
        batch = draw_masks(replay, self.rays, generator)
        if batch is None:
            return {}, 0
        ids, confidence, image = batch.ids, batch.confidence, batch.image
        head = field.head(SLOTS)
        hidden = field.hidden(SLOTS, batch.points)
        with torch.no_grad():
            probability = head.finish(hidden).softmax(-1)
        self.begun = step if self.begun is None else self.begun
        lasts = LASTS * (1 + len(replay.labels.slots) // IMAGES)
        settled = (self.confirmed >= 0) & (step - self.confirmed < lasts)
        masks = believed(probability, batch.points, ids, image, settled, self.regions)
        slots = assign_images(masks, np.where(settled, ENOUGH, np.inf))
        self._confirm(masks, slots, step)
        if step - self.begun >= FIRST:
            self._open(masks, slots, settled, step)
        if len(self.confirmed) > head.config.out_dim:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(head.config.out_dim)
                grow(head, len(self.confirmed))
        allowed = allowed_slots(masks, slots, len(self.confirmed))
        loss = slot_loss(head.finish(hidden), masks, allowed, ids, confidence)
        return {SLOTS: head.config.weight * loss}, len(batch.points)

    def _confirm(self, masks: Masks, slots: np.ndarray, step: int) -> None:
        """Move regions to where the masks are that were given their slots."""
        given = np.flatnonzero((slots >= 0) & (masks.pixels >= EVIDENCE))
        at = slots[given]
        self.confirmed[at] = step
        # of several images, one after the other
        for slot, mask in zip(at.tolist(), given.tolist()):
            self.masks[slot] += 1
            rate = max(0.02, 1 / self.masks[slot])
            self.regions.centre[slot] += rate * (masks.middle.centre[mask] - self.regions.centre[slot])
            self.regions.spread[slot] += rate * (masks.middle.spread[mask] - self.regions.spread[slot])

    def _open(self, masks: Masks, slots: np.ndarray, settled: np.ndarray, step: int) -> None:
        """Slots for what an image shows that none explains; fills in `slots`."""
        lost = (slots < 0) & (masks.pixels >= EVIDENCE) & (masks.unexplained >= NEW)
        if not lost.any():
            return
        at = np.flatnonzero(lost & (masks.image == np.bincount(masks.image[lost], masks.pixels[lost]).argmax()))
        free = np.flatnonzero(~settled[1:]) + 1  # not that of stuff
        count = len(settled)
        if len(free) < len(at):
            more = max(count, len(at))
            free = np.append(free, np.arange(count, count + more))
            self.confirmed = np.pad(self.confirmed, (0, more), constant_values=-1)
            self.masks = np.pad(self.masks, (0, more))
            centre, spread = self.regions.centre, self.regions.spread
            self.regions = Regions(np.pad(centre, ((0, more), (0, 0))), np.pad(spread, (0, more)))
        slots[at] = free[: len(at)]
        self.masks[slots[at]] = 0
        fresh = np.full(len(slots), -1)
        fresh[at] = slots[at]
        self._confirm(masks, fresh, step)

    def parameters(self) -> tuple[torch.Tensor, ...]:
        """None beside the head's own."""
        return ()

    def state(self) -> dict[str, torch.Tensor]:
        """Which slots are of something."""
        arrays = {"confirmed": self.confirmed, "masks": self.masks, "centre": self.regions.centre}
        return {k: torch.from_numpy(a.copy()) for k, a in (arrays | {"spread": self.regions.spread}).items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a `state()`."""
        found = {k: a.cpu().numpy().copy() for k, a in state.items()}
        self.confirmed, self.masks = found["confirmed"], found["masks"]
        self.regions, self.begun = Regions(found["centre"], found["spread"]), -FIRST


class Embedding(Stateless):
    """Concentration and contrast against a slow copy of the head, on the same grid.

    The copy starts as the head is: it lags by some ten steps, so nothing is lost where a map is loaded.
    """

    name = EMBEDDING

    def __init__(self, rays: int):
        self.rays = rays
        self.slow: Head | None = None

    def losses(
        self, field: Field, replay: Replay, step: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], int]:
        """The loss of some pixels of a few images."""
        batch = draw_masks(replay, self.rays, generator)
        if batch is None:
            return {}, 0
        ids, confidence, image = batch.ids, batch.confidence, batch.image
        head = field.head(EMBEDDING)
        if self.slow is None:
            self.slow = copy.deepcopy(head).requires_grad_(False)
        follow(self.slow, head)
        encoded = field.encode(head.config.grid, batch.points)
        fast = head.finish(head.hidden(encoded, None))
        with torch.no_grad():
            slow = self.slow.finish(self.slow.hidden(encoded.detach(), None))
        at = torch.arange(len(image), device=image.device)
        place = at - torch.searchsorted(image, image)
        shape = (int(image[-1]) + 1, int(place.max()) + 1)

        def padded(values: torch.Tensor, fill: float) -> torch.Tensor:
            out = torch.full((*shape, *values.shape[1:]), fill, dtype=values.dtype, device=values.device)
            return out.index_put((image, place), values)

        near, apart = slow_fast(padded(fast, 0.0), padded(slow, 0.0), padded(ids, -1), padded(confidence, 0.0))
        return {EMBEDDING: head.config.weight * near, "instance_contrast": head.config.weight * apart}, len(at)
