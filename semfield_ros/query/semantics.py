"""Closed-set classes of a map, at points and in views: label, probabilities, entropy (Semantic-NeRF's outputs).

Class ids are those of the label images, 1 to C; 0 = nothing is known there. Column k - 1 is class k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import QueryError
from ..field.semantics import HEAD, log_probabilities
from ..field.snapshot import Snapshot
from ..field.volume import density_of_distance, stretch
from ..field.world import WorldSnapshot
from ..geometry import Camera
from .fan_out import fan_out
from .scores import Source, checked
from .view import rendered

_CHUNK = 65536


@dataclass(frozen=True)
class Semantics:
    """N points.

    Attributes:
        label: [N] int32, 0 = unknown. probabilities: [N, C] float32, 0 where unknown. entropy: [N] float32, nats, of
            the probabilities, log C where unknown. logits: [N, C] float32, log-probabilities where the point map or a
            field of probabilities answers. density: [N] float32 sigma, 1/m, 0 where only the point map answers.
        seen: [N] bool, whether anything is known. from_field: [N] bool, which map answered.
    """

    label: np.ndarray
    probabilities: np.ndarray
    entropy: np.ndarray
    logits: np.ndarray
    density: np.ndarray
    seen: np.ndarray
    from_field: np.ndarray


@dataclass(frozen=True)
class SemanticView:
    """A view, H x W: everything that Semantic-NeRF renders.

    Attributes:
        rgb: [H, W, 3] uint8. depth_m: [H, W] float32 z-depth, 0 = nothing there. disparity: [H, W] float32, 1/m, 0 =
            nothing there. accumulation: [H, W] in [0, 1]. label: [H, W] int32, 0 = nothing there.
        probabilities: [H, W, C] float32. entropy: [H, W] float32, nats; 0 where nothing is.
    """

    rgb: np.ndarray
    depth_m: np.ndarray
    disparity: np.ndarray
    accumulation: np.ndarray
    label: np.ndarray
    probabilities: np.ndarray
    entropy: np.ndarray


def entropy_of(probabilities: np.ndarray) -> np.ndarray:
    """-sum p log p [...] float32, nats, of distributions [..., C]; p = 0 adds nothing."""
    p = np.asarray(probabilities, np.float64)
    return np.asarray(-np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1), np.float32)


def semantics_at(snapshot: Snapshot, points: np.ndarray | None = None, *, source: Source = "auto") -> Semantics:
    """Classes at points [N, 3] in global_frame (None = the point map's own voxels). O(N C).

    Args:
        source: field = where it has learnt labels; points = the votes of the labels that fell into each voxel, which
            knows nothing where none did; auto = the field where the map has been seen, else the votes.

    Raises:
        QueryError: unusable points, a map that learns no labels, or source "field" before it has learnt any.
    """
    if source not in ("auto", "field", "points"):
        raise QueryError(f"source is {source!r}; allowed: auto, field, points")
    points = None if points is None else checked(points)
    if isinstance(snapshot, WorldSnapshot):
        return fan_out(snapshot, points, False, lambda block, at: semantics_at(block, at, source=source))
    classes = snapshot.votes.shape[1]
    if not classes and len(snapshot.cloud):
        raise QueryError("this map learns no labels; set heads.semantic_classes and feed frames with label images")
    learnt = snapshot.field is not None and snapshot.learnt.get(HEAD, 0) > 0
    if source == "field" and not learnt:
        raise QueryError("the field has learnt no labels yet; feed labelled frames, or ask the votes (source='points')")
    rows = np.arange(len(snapshot.cloud)) if points is None else snapshot.rows_of(points)
    points = snapshot.cloud.points if points is None else points
    count = len(points)
    log_p = np.full((count, classes), -np.inf, np.float32)
    logits, density = np.zeros((count, classes), np.float32), np.zeros(count, np.float32)
    from_field = (rows >= 0) & learnt & (source != "points")
    if from_field.any():
        log_p[from_field], logits[from_field], density[from_field] = _field_at(snapshot, points[from_field])
    votes = np.zeros((count, classes), np.float32)
    voted = (rows >= 0) & ~from_field
    votes[voted] = snapshot.votes[rows[voted]]
    total = votes.sum(1)
    voted = total > 0
    with np.errstate(divide="ignore"):
        log_p[voted] = np.log(votes[voted] / total[voted, None])
    logits[voted] = np.maximum(log_p[voted], -30)
    seen = from_field | voted
    p = np.exp(log_p)
    entropy = np.where(seen, entropy_of(p), np.float32(np.log(max(classes, 1))))
    label = np.zeros(count, np.int32)
    label[seen] = p[seen].argmax(1) + 1 if classes else 0
    return Semantics(label, p, entropy.astype(np.float32), logits, density, seen, from_field)


@torch.no_grad()
def _field_at(snapshot: Snapshot, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities [N, C], outputs of the head [N, C] and density [N] at points [N, 3]."""
    field = snapshot.field
    assert field is not None
    head = field.head(HEAD)
    parts = []
    for start in range(0, len(points), _CHUNK):
        x = torch.from_numpy(np.ascontiguousarray(points[start : start + _CHUNK], np.float32))
        x = x.to(next(field.parameters()).device)
        out = field.values(HEAD, x)
        log_p = log_probabilities(head.config, out)
        sigma = density_of_distance(field.distance_at(x), field.config.truncation_m, stretch(x, field.workspace))
        logits = log_p if head.config.activation == "softmax" else out
        parts.append([t.cpu().numpy() for t in (log_p, logits, sigma)])
    columns = [np.concatenate(column) for column in zip(*parts)]
    return columns[0], columns[1], columns[2]


def semantic_view(
    snapshot: Snapshot, camera: Camera, T_world_camera: np.ndarray, *, far_m: float = 6.0
) -> SemanticView:
    """Render the field's classes from a pose (OpenCV optical axes): what is composited is normalised, then labelled.

    Raises:
        QueryError: there is no field yet, it has learnt no labels, or too many pixels.
    """
    blocks = [b.snapshot for b in snapshot.blocks()] if isinstance(snapshot, WorldSnapshot) else [snapshot]
    if not any(b.field is not None and b.learnt.get(HEAD, 0) > 0 for b in blocks):
        raise QueryError("the field has learnt no labels yet; set heads.semantic_classes and feed labelled frames")
    out = rendered(snapshot, camera, T_world_camera, ("rgb", HEAD), far_m)
    config = next(b.field.head(HEAD).config for b in blocks if b.field is not None and HEAD in b.field.heads)
    shape = (camera.height, camera.width)
    depth_m = out.depth.cpu().numpy().reshape(shape)
    there = depth_m > 0
    p = log_probabilities(config, out.outputs[HEAD]).exp().cpu().numpy().reshape(*shape, -1)
    p = np.where(there[..., None], p, 0).astype(np.float32)
    return SemanticView(
        (out.outputs["rgb"].clamp(0, 1) * 255).round().byte().cpu().numpy().reshape(*shape, 3),
        depth_m,
        np.where(there, 1 / np.where(there, depth_m, 1), 0).astype(np.float32),
        out.accumulation.cpu().numpy().reshape(shape),
        np.where(there, p.argmax(-1) + 1, 0).astype(np.int32),
        p,
        entropy_of(p),
    )
