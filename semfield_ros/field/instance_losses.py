"""Instances from 2-D masks whose ids agree within one image only: the losses, as functions of tensors.

Two mechanisms. Slots: a head of S logits; in each image the masks are assigned to slots, one to one, where the field
already believes them to be, and each pixel then learns its mask's slot (Siddiqui et al., Panoptic Lifting, CVPR 2023).
Embeddings: pixels of one mask are drawn together and those of two masks of one image apart, against a slowly moving
copy of the embedding (Bhalgat et al., Contrastive Lift, NeurIPS 2023); clustering names them later.

Nothing here compares ids of two images. Slot 0, and the origin of embedding space, are everything that is no instance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

REACH = 2.0
"""A slot's region ends about so many spreads from its centre."""
MOST = 64
"""Pixels of a mask that say where it is."""
TRIMS = 5
UNSURE = 0.1
"""Probabilities below this are no reason to prefer a slot."""
STUFF = 0
"""The slot of everything that is no instance."""


def bounded_log(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """log S / (sum S + 1e-8), S = sum_s w_s softmax(logits_s): [R, C] from logits [R, S, C], weights [R, S].

    The softmax is taken per sample, so no sample can outvote the others by the size of its logits (Panoptic Lifting,
    eq. 4). Weights get no gradient.
    """
    mixed = (weights.detach()[..., None] * logits.softmax(-1)).sum(1)
    return (mixed / (mixed.sum(-1, keepdim=True) + 1e-8)).clamp_min(1e-8).log()


def soft_cross_entropy(
    log_probability: torch.Tensor, target: torch.Tensor, confidence: torch.Tensor
) -> torch.Tensor:
    """mean(confidence x CE(target, predicted)), a scalar: log probabilities [N, C] against probabilities [N, C], or
    against classes [N] (negative = none). 0 for nothing."""
    if target.dim() == 1:
        valid = target >= 0
        rows = F.nll_loss(log_probability, target.clamp_min(0), reduction="none") * valid
        count = valid.sum()
    else:
        rows, count = -(target * log_probability).sum(-1), torch.tensor(len(target), device=target.device)
    return (rows * confidence).sum() / count.clamp_min(1)


def segment_consistency(
    log_probability: torch.Tensor, segment: torch.Tensor, confidence: torch.Tensor | None = None
) -> torch.Tensor:
    """Pixels of one segment mean one thing: CE of log probabilities [N, C] to the class that is likeliest in the mean
    over their segment [N] (int64, unique over images, negative = none). The mean gets no gradient."""
    valid = segment >= 0
    if not bool(valid.any()):
        return log_probability.sum() * 0
    log_p, (_, group) = log_probability[valid], torch.unique(segment[valid], return_inverse=True)
    best = grouped_mean(log_p.detach().exp(), group, int(group.max()) + 1).argmax(1)
    weight = torch.ones_like(group, dtype=log_p.dtype) if confidence is None else confidence[valid]
    return soft_cross_entropy(log_p, best[group], weight)


def grouped_mean(values: torch.Tensor, group: torch.Tensor, groups: int) -> torch.Tensor:
    """Means [groups, C] of rows [N, C] by group [N]; 0 for empty ones."""
    total = values.new_zeros(groups, values.shape[1]).index_add_(0, group, values)
    count = values.new_zeros(groups).index_add_(0, group, torch.ones_like(group, dtype=values.dtype))
    return total / count.clamp_min(1)[:, None]


def assign(belief: np.ndarray, pixels: np.ndarray, least: np.ndarray) -> np.ndarray:
    """A slot for each of the L masks of one image, no slot twice, or none: [L] int64, -1 = none.

    The sum of (belief - least) x pixels is largest (Hungarian method). Masks are weighted by their pixels, or one stray
    pixel's mask would take a thing's slot from its own; where nothing is believed enough no slot is forced.

    Args:
        belief: [L, S] mean probability of each slot over the mask's pixels. pixels: [L] weights.
        least: [S] belief without which the slot is not given; infinite = never.
    """
    gain = np.where(np.isfinite(least), belief - np.where(np.isfinite(least), least, 0), -1.0) * pixels[:, None]
    rows, columns = linear_sum_assignment(np.maximum(gain, 0), maximize=True)
    found = np.full(len(belief), -1, np.int64)
    given = gain[rows, columns] > 0
    found[rows[given]] = columns[given]
    return found


@dataclass(frozen=True)
class Regions:
    """Where S slots are: centre [S, 3] world and spread [S] (standard deviation along one axis), metres."""

    centre: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class Masks:
    """The L masks of a batch of N pixels: whose pixels are whose, and what is believed of them.

    Attributes:
        group: [N] int64, the mask of each pixel; -1 = of none. image, mask: [L] image and id.
        pixels: [L] sum of the weights of its pixels. middle: where it is, of [L].
        belief: [L, S] in each slot. unexplained: [L] share of it that lies in no settled slot's region.
    """

    group: torch.Tensor
    image: np.ndarray
    mask: np.ndarray
    pixels: np.ndarray
    middle: Regions
    belief: np.ndarray
    unexplained: np.ndarray


def believed(
    probability: torch.Tensor, points: torch.Tensor, instance: torch.Tensor, image: torch.Tensor, settled: np.ndarray,
    regions: Regions,
) -> Masks:  # fmt: skip
    """The masks of a batch and the belief in slots there, among the settled ones.

    A pixel is weighted by what the field takes for things, and by how near it is to the middle of its mask: those that
    stray say nothing. It speaks for a slot by the field's probability among the slots, as far as it lies in the slot's
    region (a Gaussian of REACH times its spread) or the field is sure: a young field knows where a thing is before it
    knows which.

    Args:
        probability: [N, S] of the slots. points: [N, 3] world. instance: [N] mask ids, 0 or less = none; image: [N].
        settled: [S] bool, slots of something.
    """
    group = torch.full_like(instance, -1)
    things = torch.nonzero(instance > 0).squeeze(1)
    pairs, mine = torch.unique(
        torch.stack([image[things].long(), instance[things].long()], 1), dim=0, return_inverse=True
    )
    group[things] = mine
    ids, device, count = pairs.cpu().numpy(), points.device, len(pairs)
    x, p = points[things], probability[things].detach().float()
    weight = 1 - p[:, STUFF]
    middle = middles(x.cpu().numpy(), weight.cpu().numpy(), mine.cpu().numpy(), count)

    def near(centre: np.ndarray, spread: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        of = torch.from_numpy(centre).to(device, torch.float32)
        return of, 2 * (REACH * torch.from_numpy(spread).to(device, torch.float32)).square().clamp_min(1e-8)

    centre, square = near(middle.centre, middle.spread)
    weight = weight * torch.exp(-(x - centre[mine]).square().sum(1) / square[mine])
    centre, square = near(regions.centre, regions.spread)
    open_ = torch.from_numpy(settled).to(device)
    inside = torch.exp(-torch.cdist(x, centre).square() / square) * open_
    p = p * open_
    likely = (p + UNSURE * open_) * inside / square
    known = torch.maximum(inside, p)
    share = known * likely / likely.sum(1, keepdim=True).clamp_min(1e-9)
    table = torch.cat([share, (1 - known.amax(1, keepdim=True)), torch.ones_like(share[:, :1])], 1) * weight[:, None]
    sums = table.new_zeros(count, table.shape[1]).index_add_(0, mine, table).cpu().numpy().astype(np.float64)
    pixels = sums[:, -1]
    mean = sums / np.maximum(pixels, 1e-9)[:, None]
    return Masks(group, ids[:, 0], ids[:, 1], pixels, middle, mean[:, :-2], mean[:, -2])


def middles(points: np.ndarray, weight: np.ndarray, group: np.ndarray, groups: int) -> Regions:
    """`middle_of` of the points [N, 3] of each group [N], of at most MOST of them."""
    centre, spread = np.zeros((groups, 3)), np.zeros(groups)
    order = np.argsort(group, kind="stable")
    for number, rows in enumerate(np.split(order, np.searchsorted(group[order], np.arange(1, groups)))):
        if len(rows):
            rows = rows[:: -(-len(rows) // MOST)]
            centre[number], spread[number] = middle_of(points[rows].astype(np.float64), weight[rows] + 1e-6)
    return Regions(centre, spread)


def middle_of(points: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre [3] and spread of the densest part of a mask's points [n, 3], weighted [n]: strays are not averaged in."""
    mean = weight @ points / weight.sum()
    reach2 = 0.25 * (weight @ ((points - mean) ** 2).sum(1)) / weight.sum() + 1e-8
    norm = (points**2).sum(1)
    square = np.maximum(norm[:, None] + norm[None] - 2 * points @ points.T, 0)
    best = (np.exp(-square / (0.5 * reach2)) @ weight).argmax()
    centre, variance = points[best], reach2
    for _ in range(TRIMS):
        # a Gaussian's points, weighted by that Gaussian, have half its variance; whatever is beside it shrinks it
        w = weight * np.exp(-((points - centre) ** 2).sum(1) / (2 * variance)) + 1e-12
        centre = w @ points / w.sum()
        variance = 2 * (w @ ((points - centre) ** 2).sum(1)) / w.sum() / 2 + 1e-8
    return centre, float(np.sqrt(variance))


def assign_images(masks: Masks, least: np.ndarray) -> np.ndarray:
    """`assign` for every image of a batch: [L] slots, -1 = none."""
    slots = np.full(len(masks.image), -1, np.int64)
    for number in np.unique(masks.image):
        rows = masks.image == number
        slots[rows] = assign(masks.belief[rows], masks.pixels[rows], least)
    return slots


def allowed_slots(masks: Masks, slots: np.ndarray, count: int) -> np.ndarray:
    """[L + 1, count] bool: the slots that each mask may be. One that was given a slot: that one. One that was given
    none: none that another mask of its image was given, nor stuff. Row L, of pixels in no mask: stuff."""
    allowed = np.zeros((len(slots) + 1, count), bool)
    allowed[-1, STUFF] = True
    for number in np.unique(masks.image):
        rows = np.flatnonzero(masks.image == number)
        given = rows[slots[rows] >= 0]
        free = np.ones(count, bool)
        free[STUFF] = False
        free[slots[given]] = False
        allowed[rows[slots[rows] < 0]] = free
        allowed[given, slots[given]] = True
    return allowed


def slot_loss(
    logits: torch.Tensor, masks: Masks, allowed: np.ndarray, instance: torch.Tensor, confidence: torch.Tensor
) -> torch.Tensor:
    """mean(confidence x -log of the probability of all slots that a pixel may be), a scalar: cross-entropy where that
    is one slot. Logits [N, S]; pixels of instance [N] < 0 are unknown."""
    table = torch.from_numpy(allowed).to(logits.device)
    never = torch.finfo(logits.dtype).min
    possible = torch.where(table[masks.group], logits, never).logsumexp(-1)
    known = (instance >= 0).to(logits.dtype)
    return ((logits.logsumexp(-1) - possible) * confidence * known).sum() / known.sum().clamp_min(1)


def slow_fast(
    fast: torch.Tensor, slow: torch.Tensor, instance: torch.Tensor, confidence: torch.Tensor, temperature: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Concentration and contrast of F images with P pixels each (Contrastive Lift, eq. 3-5), two scalars.

    The first half of each image's pixels learns (fast) from the second half (slow, without gradient):
    -mean conf exp(-|f - c|^2), c the mean slow embedding of the same mask, and InfoNCE over the pixels of the same
    image with similarity exp(-|f - s|^2) / temperature. The similarity is bounded, so nothing overflows. The mean of
    stuff is the origin in every image: it alone is the same thing everywhere.

    Args:
        fast, slow: [F, P, D]. instance: [F, P] mask ids, 0 = stuff, negative = unknown. confidence: [F, P].
    """
    half = fast.shape[1] // 2
    f, s = fast[:, :half], slow[:, half : 2 * half].detach()
    mine, other, weight = instance[:, :half], instance[:, half : 2 * half], confidence[:, :half]
    square = (f[:, :, None] - s[:, None]).square().sum(-1)
    known = (other >= 0)[:, None].expand_as(square)
    same = known & (mine[:, :, None] == other[:, None])
    stuff = mine == STUFF
    share = same.to(f.dtype)
    centre = torch.bmm(share, s) / share.sum(-1, keepdim=True).clamp_min(1)
    centre = torch.where(stuff[..., None], torch.zeros_like(centre), centre)
    usable = ((mine >= 0) & (same.any(-1) | stuff)).to(f.dtype) * weight
    total = usable.sum().clamp_min(1e-6)
    concentration = -(usable * torch.exp(-(f - centre).square().sum(-1))).sum() / total
    # the origin stands for the stuff of every image, whether or not this one shows any
    origin = torch.exp(-f.square().sum(-1, keepdim=True)) / temperature
    similarity = torch.cat([torch.exp(-square) / temperature, origin], -1)
    known = torch.cat([known, torch.ones_like(stuff)[..., None]], -1)
    same = torch.cat([same, stuff[..., None]], -1)
    never = torch.finfo(f.dtype).min
    every = torch.where(known, similarity, never).logsumexp(-1)
    alike = torch.where(same, similarity, never).logsumexp(-1)
    contrast = (usable * torch.where(usable > 0, every - alike, 0.0)).sum() / total
    return concentration, contrast


@torch.no_grad()
def follow(slow: torch.nn.Module, fast: torch.nn.Module, momentum: float = 0.9) -> None:
    """Move every parameter of `slow` to momentum x slow + (1 - momentum) x fast."""
    for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
        a.lerp_(b.detach(), 1 - momentum)
