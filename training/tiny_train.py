"""Training of `tiny`: patches, objects and whole crops against captions."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tiny_captions import PARTS_OF, Captions, CaptionSampler, taught_texts
from tiny_data import IGNORE, load_shards
from torch import distributed
from torch.nn import functional

from semfield_ros.encoders.tiny import dense_features, load_weights, new_model, new_tokenizer, normalised_images
from semfield_ros.sources.simulator_objects import PART_NAMES, STUFF
from semfield_ros.sources.simulator_scene import CLASS_NAMES

TEMPERATURE = 10.0
"""Of the pairwise relevancy at query time (LERF)."""
FIRST_KIND = 1 + len(STUFF)


class Rows:
    """Things to be named: N rows of unit features with labels, patches and whole objects alike."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor):
        self.features, self.weight = features, weight
        self.semantic, self.colour, self.main, self.part = labels.long().unbind(1)

    def matches(self, captions: Captions) -> tuple[torch.Tensor, torch.Tensor]:
        """Which captions are right, and which count at all: two [N, C] bool."""
        kind, colour, part = (torch.as_tensor(x)[None] for x in (captions.kind, captions.colour, captions.part))
        right = ~torch.as_tensor(captions.absent)[None]
        right = right & ((kind < 0) | (self.semantic[:, None] == kind))
        right = right & ((colour < 0) | (self.colour[:, None] == colour)) & ((part < 0) | (self.part[:, None] == part))
        colour_alone = torch.as_tensor(captions.family == "colour")[None]
        accent = (self.semantic >= FIRST_KIND) & (self.main == 0)
        # An object has no single part, so part captions say nothing about whole objects (main == 2) and mixed patches.
        no_part = ((self.main == 2) | (self.part == IGNORE))[:, None] & (part >= 0)
        return right, ~(colour_alone & accent[:, None]) & ~no_part

    def part_shares(self) -> torch.Tensor:
        """Weights that let small parts count as much as large ones: [N], by the square root of how rare each is."""
        area = torch.bincount(self.part, minlength=IGNORE + 1)[self.part]
        return self.weight * area.float().rsqrt()


def augmented(rng: np.random.Generator, rgb: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Flips, exposure, contrast, colour cast, blur and sensor noise: float images [B, H, W, 3] 0..255 and labels."""
    images = torch.from_numpy(rgb).float()
    labels_t = torch.from_numpy(labels)
    flip = torch.from_numpy(rng.random(len(rgb)) < 0.5)
    images[flip] = images[flip].flip(2)
    labels_t[flip] = labels_t[flip].flip(3)

    def draw(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (len(rgb), 1, 1, channels)).astype(np.float32))

    images = (images - 110) * draw(0.85, 1.15) + 110 * draw(0.82, 1.15)
    images = images * draw(0.95, 1.05, 3)
    images += torch.randn(images.shape[:3])[..., None] * draw(0.0, 5.0)
    return images.clamp_(0, 255), labels_t


def patch_and_object_rows(features: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Rows of the labelled patches and of every object with at least two patches (the mean of its unit features).

    Args:
        features: [B, h, w, D]. labels: [B, 5, h, w] uint8 in the order of tiny_data.PatchLabels.
    """
    batch, h, w, dim = features.shape
    unit = functional.normalize(features.reshape(-1, dim), dim=-1)
    flat = labels.permute(0, 2, 3, 1).reshape(-1, 5).long()
    thing = flat[:, 4] > 0
    keys = torch.arange(batch).repeat_interleave(h * w) * 32 + flat[:, 4]
    area = torch.bincount(keys[thing], minlength=batch * 32)
    weight = torch.where(
        thing, area[keys].clamp(min=1).float().rsqrt() * 2, torch.full_like(keys, 1, dtype=torch.float32) * 0.12
    )
    keep = flat[:, 0] != IGNORE
    # Plain table and wall teach little each; a part of them, and most things, are enough for one step.
    keep &= torch.from_numpy(rng.random(len(keep)).astype(np.float32)) < torch.where(thing, 0.75, 0.2)
    patches = Rows(unit[keep], flat[keep, :4], weight[keep])
    used, inverse = torch.unique(keys[thing], return_inverse=True)
    sums = torch.zeros(len(used), dim).index_add_(0, inverse, unit[thing])
    object_labels = torch.zeros(len(used), 4, dtype=torch.long)
    object_labels[inverse] = flat[thing, :4]
    object_labels[:, 2] = 2
    big = area[used] >= 2
    objects = Rows(functional.normalize(sums[big], dim=-1), object_labels[big], torch.ones(int(big.sum())))
    return patches, objects


def loss_of_rows(
    rows: Rows, text: torch.Tensor, captions: Captions, scale: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Softmax within caption families, and the pairwise relevancy of every caption against the canonical negatives."""
    cosine = rows.features @ text.T
    right, counts = rows.matches(captions)
    family = captions.family
    negatives = cosine[:, torch.as_tensor(family == "canonical")]
    figures: dict[str, float] = {}
    total = cosine.new_zeros(())
    things = rows.semantic >= FIRST_KIND
    columns_of = {
        name: np.flatnonzero(family == name)
        for name in ("kind", "stuff", "colour", "pair", "part", "own part", "absent")
    }
    groups = {
        "kind": (np.concatenate([columns_of["kind"][0::2], columns_of["stuff"]]), torch.ones_like(things)),
        "kind_again": (np.concatenate([columns_of["kind"][1::2], columns_of["stuff"]]), things),
        "colour": (columns_of["colour"], things & (rows.main > 0)),
        "pair": (columns_of["pair"], things),
    }
    for name, (columns, mask) in groups.items():
        hit = right[:, columns]
        mask = mask & (hit.sum(1) == 1)
        if not bool(mask.any()):
            continue
        logits = scale * torch.cat([cosine[mask][:, columns], negatives[mask]], 1)
        target = hit[mask].int().argmax(1)
        weight = rows.weight[mask]
        share = (functional.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
        total = total + share
        figures[name] = float((((logits.argmax(1) == target) * weight).sum() / weight.sum()).detach())
    parts_loss, part_figures = loss_of_parts(rows, cosine, captions, scale)
    total, figures = total + parts_loss, figures | part_figures
    margin = TEMPERATURE * (cosine - negatives.max(1, keepdim=True).values)
    for name, columns in columns_of.items():
        weight = rows.weight[:, None] * counts[:, columns]
        hit = right[:, columns]
        yes, no = weight * hit, weight * ~hit
        m = margin[:, columns]
        total = total + 0.5 * (functional.softplus(-m) * yes).sum() / yes.sum().clamp(min=1e-3)
        total = total + 0.5 * (functional.softplus(m) * no).sum() / no.sum().clamp(min=1e-3)
        # The means hide the few captions that score highest wrongly, which are what a threshold meets.
        if name in ("pair", "kind", "absent"):
            worst = torch.where(no > 0, m, torch.full_like(m, -20.0)).max(1).values
            total = total + 0.5 * (functional.softplus(worst) * rows.weight).sum() / rows.weight.sum()
    return total, figures


def loss_of_parts(
    rows: Rows, cosine: torch.Tensor, captions: Captions, scale: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Softmax among part captions: of everything, and of what is asked inside an object, the parts of its own kind."""
    right, counts = rows.matches(captions)
    family = captions.family
    canonical = np.flatnonzero(family == "canonical")
    of_kind = torch.zeros(256, len(PART_NAMES), dtype=torch.bool)
    for kind, parts in PARTS_OF.items():
        of_kind[CLASS_NAMES.index(kind), [PART_NAMES.index(part) for part in parts]] = True
    alone, own = np.flatnonzero(family == "part"), np.flatnonzero(family == "own part")
    everything = torch.ones(len(rows.semantic), len(alone), dtype=torch.bool)
    siblings = of_kind[rows.semantic][:, torch.as_tensor(captions.part[alone])]
    same_kind = rows.semantic[:, None] == torch.as_tensor(captions.kind[own])[None]
    total, figures, weights = cosine.new_zeros(()), {}, rows.part_shares()
    for name, columns, allowed in (("part", alone, everything), ("sibling", alone, siblings), ("own", own, same_kind)):
        hit = right[:, columns] & counts[:, columns]
        mask = (hit.sum(1) == 1) & (rows.semantic >= FIRST_KIND)
        if not bool(mask.any()):
            continue
        logits = torch.cat([cosine[mask][:, columns].masked_fill(~allowed[mask], -3.0), cosine[mask][:, canonical]], 1)
        target, weight = hit[mask].int().argmax(1), weights[mask]
        loss = functional.cross_entropy(scale * logits, target, reduction="none")
        total = total + 0.5 * (loss * weight).sum() / weight.sum()
        figures[name] = float((((logits.argmax(1) == target) * weight).sum() / weight.sum()).detach())
    return total, figures


def crop_loss(
    model: torch.nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    text: torch.Tensor,
    captions: Captions,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of the pooled crop (open_clip's encode_image) against its shares of kinds and stuff."""
    pooled = functional.normalize(features.mean((1, 2)), dim=-1)
    columns = np.concatenate(
        [np.flatnonzero(captions.family == "kind")[0::2], np.flatnonzero(captions.family == "stuff")]
    )
    ids = torch.as_tensor(captions.kind[columns])
    share = (labels[:, 0].reshape(len(labels), -1, 1).long() == ids).float().mean(1)
    share = share / share.sum(1, keepdim=True).clamp(min=1e-6)
    return -(share * functional.log_softmax(scale * pooled @ text[columns].T, dim=1)).sum(1).mean()


def save(model: torch.nn.Module, path: Path) -> None:
    """fp16 safetensors, written aside and renamed."""
    from safetensors.torch import save_file

    state = {
        name: value.detach().half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(state, str(temporary), metadata={"format": "pt", "model": "semfield-tiny"})
    temporary.rename(path)


def words_of(tokenizer: object) -> list[str]:
    """Whole plain words that are one token."""
    encoder: dict[str, int] = tokenizer.encoder  # type: ignore[attr-defined]
    return [w[:-4] for w in encoder if w.endswith("</w>") and w[:-4].isascii() and w[:-4].isalpha() and len(w) > 6]


@dataclass(frozen=True)
class TrainSettings:
    """One training run. `workers` processes of one thread each share every step (data parallel)."""

    data: Path
    out: Path
    minutes: float = 60.0
    batch: int = 48
    """Crops per step and worker."""
    peak_rate: float = 2e-3
    seed: int = 1
    resume: Path | None = None
    save_minutes: float = 5.0
    workers: int = 2


def train(settings: TrainSettings) -> None:
    """One-cycle training (Smith and Topin 2018) over wall-clock minutes: a busy machine still anneals in time.

    Weights are averaged (Polyak) over about the last 300 steps for what is saved.
    """
    if settings.workers == 1:
        _work(0, settings, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (settings, f"file://{folder}/rendezvous"), nprocs=settings.workers)


def _work(rank: int, s: TrainSettings, rendezvous: str) -> None:
    if rendezvous:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=s.workers)
    torch.manual_seed(s.seed)
    model = new_model()
    with torch.no_grad():
        model.token_embedding.weight.zero_()
        model.logit_scale.fill_(float(np.log(14.0)))
    if s.resume:
        load_weights(model, s.resume)
    # Words never taught stay exactly zero and carry nothing; Adam's steps for rare rows would be large noise instead.
    untaught = torch.ones(len(model.token_embedding.weight), dtype=torch.bool)
    untaught[new_tokenizer()(taught_texts()).reshape(-1)] = False
    with torch.no_grad():
        model.token_embedding.weight[untaught] = 0
    model = model.to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(model).eval()
    # The text tower follows slowly: at the image tower's rate it runs away from features that must answer to it.
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decay = 0.05 if parameter.ndim > 1 and "embedding" not in name else 0.0
        share = 1.0 if name.startswith("visual.") else 0.3
        groups.setdefault((decay, share), []).append(parameter)
    optimiser = torch.optim.AdamW(
        [{"params": p, "weight_decay": decay, "share": share} for (decay, share), p in groups.items()], fused=True
    )
    stepper = _Stepper(model, np.random.default_rng([s.seed, rank]), s)
    start = last_print = last_save = time.monotonic()
    step, shown = 0, {}
    while True:
        now = time.monotonic()
        progress = _shared((now - start) / (60 * s.minutes), s.workers)
        if progress >= 1:
            break
        warm, cool = progress / 0.08, 0.5 * (1 + np.cos(np.pi * (progress - 0.08) / 0.92))
        for group in optimiser.param_groups:
            group["lr"] = group["share"] * s.peak_rate * min(warm, cool) + 1e-6
        optimiser.zero_grad(set_to_none=True)
        loss, figures = stepper.loss()
        loss.backward()
        if s.workers > 1:
            _share_gradients(model, s.workers)
        model.token_embedding.weight.grad[untaught] = 0
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        step += 1
        if rank > 0:
            continue
        with torch.no_grad():
            keep = min(0.997, step / (step + 20))
            for mean, value in zip(average.state_dict().values(), model.state_dict().values()):
                mean.lerp_(value, 1 - keep) if mean.is_floating_point() else mean.copy_(value)
        for name, value in figures.items():
            shown[name] = 0.97 * shown.get(name, value) + 0.03 * value
        if now - last_print > 20:
            last_print = now
            speed = step * s.batch * s.workers / (now - start)
            line = " ".join(f"{k} {v:.3f}" for k, v in shown.items())
            print(f"{(now - start) / 60:5.1f} min step {step} {speed:.0f} crops/s {line}", flush=True)
        if now - last_save > 60 * s.save_minutes:
            last_save = now
            save(average, s.out)
    if rank == 0:
        save(average, s.out)
        print(f"saved {s.out} after {step} steps", flush=True)
    if rendezvous:
        distributed.destroy_process_group()


class _Stepper:
    """Draws batches and computes the loss of one step."""

    def __init__(self, model: torch.nn.Module, rng: np.random.Generator, settings: TrainSettings):
        self.model, self.rng, self.batch = model, rng, settings.batch
        self.tokenizer = new_tokenizer()
        self.sampler = CaptionSampler(words_of(self.tokenizer))
        self.images, self.labels = load_shards(settings.data)
        self.order = np.zeros((0, 2), np.int64)

    def loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a new batch, and shares of right answers."""
        rng, model = self.rng, self.model
        if len(self.order) < self.batch:
            index = [np.stack([np.full(len(x), k), np.arange(len(x))], 1) for k, x in enumerate(self.labels)]
            self.order = rng.permutation(np.concatenate(index))
        picked, self.order = self.order[: self.batch], self.order[self.batch :]
        rgb = np.stack([self.images[k][i] for k, i in picked])
        pixels, target = augmented(rng, rgb, np.stack([self.labels[k][i] for k, i in picked]))
        pairs = target[:, :2].permute(0, 2, 3, 1).reshape(-1, 2)
        pairs = torch.unique(pairs[(pairs[:, 1] != IGNORE) & (pairs[:, 0] != IGNORE)], dim=0).tolist()
        captions = self.sampler.sample(rng, [(int(a), int(b)) for a, b in pairs])
        with torch.autocast("cpu", torch.bfloat16):
            features = dense_features(model, normalised_images(model, pixels)).float()
        text = functional.normalize(model.encode_text(self.tokenizer(list(captions.texts))).float(), dim=-1)
        scale = model.logit_scale.exp().clamp(max=40)
        patches, objects = patch_and_object_rows(features, target, rng)
        patch_loss, figures = loss_of_rows(patches, text, captions, scale)
        object_loss, object_figures = loss_of_rows(objects, text, captions, scale)
        loss = patch_loss + 0.6 * object_loss + 0.1 * crop_loss(model, features, target, text, captions, scale)
        figures |= {f"object_{name}": value for name, value in object_figures.items()} | {"loss": float(loss.detach())}
        return loss, figures


def _shared(value: float, workers: int) -> float:
    """The largest of the workers' values, so that all agree on rate and end."""
    if workers == 1:
        return value
    box = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(box, distributed.ReduceOp.MAX)
    return float(box)


def _share_gradients(model: torch.nn.Module, workers: int) -> None:
    """Replace every gradient by its mean over the workers.

    Gradients keep their memory layout: the fused AdamW walks weight and gradient side by side in memory, and would
    pair the wrong elements of a channels-last weight with those of a contiguous gradient.
    """
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    distributed.all_reduce(flat)
    flat /= workers
    for parameter, part in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()])):
        assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()
        parameter.grad.copy_(part.view_as(parameter))


assert CLASS_NAMES[FIRST_KIND] == "mug"
