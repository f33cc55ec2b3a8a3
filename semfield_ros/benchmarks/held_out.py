"""Held-out views: how well the field shows what it was not given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..evaluation.metrics import depth as depth_errors
from ..evaluation.metrics import psnr_db
from ..field.render import render
from ..field.snapshot import Snapshot
from ..frame import Frame
from ..geometry import pixel_directions


@dataclass(frozen=True)
class HeldOut:
    """Over all sampled pixels with measured depth: errors of rendered depth, and of colour."""

    depth_median_m: float
    depth_within_5cm: float
    psnr_db: float


def sampled_rays(
    frame: Frame, pixels: int, rng: np.random.Generator
) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """At most `pixels` random pixels with measured depth: flat indices [n], world ray origins, directions [n, 3]."""
    valid = np.flatnonzero(frame.depth_m.reshape(-1) > 0)
    pick = rng.choice(valid, min(pixels, len(valid)), replace=False)
    v, u = np.divmod(pick, frame.camera.width)
    T = frame.T_world_camera.astype(np.float32)
    rays = torch.from_numpy(pixel_directions(frame.camera, u, v) @ T[:3, :3].T)
    return pick, torch.from_numpy(T[:3, 3]).expand_as(rays), rays


def rate(snapshot: Snapshot, frames: Sequence[Frame], *, pixels: int, far_m: float, seed: int = 0) -> HeldOut:
    """Render `pixels` random pixels of each frame from its pose alone, and compare.

    The measured depth chooses which pixels count (those that have one) and nothing else: the renderer does not see it.
    """
    assert snapshot.field is not None
    rng = np.random.default_rng(seed)
    predicted_m, measured_m, predicted, measured = [], [], [], []
    for frame in frames:
        pick, origins, rays = sampled_rays(frame, pixels, rng)
        device = next(snapshot.field.parameters()).device
        out = render(snapshot.field, origins.to(device), rays.to(device), ("rgb",), far_m=far_m)
        predicted_m.append(out.depth.cpu().numpy())
        predicted.append(out.outputs["rgb"].clamp(0, 1).cpu().numpy())
        measured_m.append(frame.depth_m.reshape(-1)[pick])
        measured.append(frame.rgb.reshape(-1, 3)[pick].astype(np.float32) / 255)
    errors = depth_errors(np.concatenate(predicted_m), np.concatenate(measured_m))
    return HeldOut(
        errors.median_m, errors.within_5cm, psnr_db(np.concatenate(predicted), np.concatenate(measured))
    )
