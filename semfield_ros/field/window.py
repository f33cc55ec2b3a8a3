"""The window features were measured through, learnt while mapping.

An encoder declares its receptive window; the field is trained through it (DESIGN idea 13), and pays for one that is
wrong. So a small share of the measurements is never trained, and every few steps the field predicts them through
windows of several sizes: the right size predicts them best. What was learnt through too narrow a window predicts nearly
as well through any narrower one, so of sizes about equally good the widest is taken (as cross-validation takes the
simplest model within one standard error: Breiman et al., Classification and Regression Trees, 1984, 3.4.3).
"""

from __future__ import annotations

import math

import torch

from ..memory.replay import PatchBatch, Replay
from .heads import Head, head_loss
from .model import Field

SCALES = (0.25, 0.35, 0.5, 0.71, 1.0, 1.41, 2.0, 2.83)
"""Sizes tried, relative to the declared window."""
EVERY_STEPS = 20
FROM_STEP = 60
"""Before, the field predicts nothing well enough to tell."""
MARGIN = 0.25
"""Sizes are about equally good whose losses are apart by this share of what the widest size costs."""
PATCHES, RAYS = 96, 32
_MEMORY = 0.8


class WindowFit:
    """The size of an encoder's window, relative to what it declares, 1 to begin with. State: two small vectors.

    Args:
        share: of its window that the field is trained through. A field is smooth by itself: what it predicts through
            a window is blurred by more than the window.

    Attributes:
        size: the window's size. loss: [len(SCALES)] running means of the held-out loss of each size, NaN before the
            first.
    """

    def __init__(self, share: float, seed: int = 0):
        self.share = share
        self.size = 1.0
        self.loss = torch.full((len(SCALES),), float("nan"))
        self._seed = seed

    @property
    def scale(self) -> float:
        """The size that is trained through."""
        return self.share * self.size

    def due(self, step: int) -> bool:
        """Whether the sizes are to be compared after training step `step`."""
        return step >= FROM_STEP and step % EVERY_STEPS == 0

    @torch.no_grad()
    def update(self, field: Field, replay: Replay, step: int) -> None:
        """Predict held-out measurements through every size and choose. No gradients; O(sizes x patches x rays)."""
        losses = []
        for scale in SCALES:
            # the same measurements and the same draws for every size: only their differences matter
            generator = torch.Generator(device=replay.device).manual_seed(self._seed + step)
            batch = replay.patches(PATCHES, RAYS, True, 0.0, generator, scale, held_out=True)
            if batch is None or not len(batch.values):
                return
            losses.append(prediction_loss(field, batch))
        found = torch.stack(losses).cpu()
        self.loss = torch.where(self.loss.isnan(), found, _MEMORY * self.loss + (1 - _MEMORY) * found)
        # a size at a time: what little a young field knows may be wrong
        now = min(range(len(SCALES)), key=lambda i: abs(math.log(SCALES[i] / self.size)))
        best = widest_of_the_best(self.loss)
        self.size = SCALES[now + (best > now) - (best < now)]

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint; empty before the first comparison."""
        if bool(self.loss.isnan().any()):
            return {}
        return {"size": torch.tensor(self.size, dtype=torch.float64), "loss": self.loss}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a `state()`."""
        self.size, self.loss = float(state["size"]), state["loss"].cpu().clone()


def patch_shape(replay: Replay, n: int, rays: int, through_window: bool) -> tuple[int, int]:
    """How many measurements, and rays of each, to draw instead of `n` x `rays`.

    A measurement of a pixel or two needs no more rays than it covers records; up to four times the measurements take
    the rest.
    """
    store = replay.language
    if store.window is None or not store.slots or (through_window and store.window.pitch_px > 0):
        return n, rays
    h, w = store.grid_shape[store.slots[-1]].tolist()
    needed = min(rays, max(-(-replay.records // (h * w)), -(-rays // 4)))
    return n * rays // needed, needed


def widest_of_the_best(loss: torch.Tensor) -> int:
    """Index of the widest of SCALES whose loss [len(SCALES)] is about as small as the smallest."""
    least = loss.min()
    return int(torch.nonzero(loss <= least + MARGIN * (loss[-1] - least))[-1])


def patch_loss(head: Head, batch: PatchBatch, means: torch.Tensor) -> torch.Tensor:
    """The loss of measurements predicted by the means [P, *] of what their windows composite, a scalar."""
    # windows that mostly look past the known surface say little about what they do see
    confidence = batch.confidence * batch.valid.float().mean(1)
    return head_loss(head.config, head.finish(means), batch.values, confidence)


def prediction_loss(field: Field, batch: PatchBatch, name: str = "language") -> torch.Tensor:
    """How badly a head predicts measurements through the window they were drawn with: the training loss, a scalar."""
    head = field.head(name)
    p, k = batch.valid.shape
    hidden = field.hidden(name, batch.points.reshape(-1, 3)).view(p, k, -1)
    weight = batch.valid.float()
    mean = (hidden * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp_min(1)
    return patch_loss(head, batch, mean)
