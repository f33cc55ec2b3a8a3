"""`semfield bench geometry`: signed distance or density? The same grid, rays, samples and seconds, two ways to learn.

The product uses signed distances; the density here is NeRF's, trained with DS-NeRF's depth term (Deng et al. 2022,
reference B9): -sum_k log(w_k + 1e-7) exp(-(t_k - D)^2 / (2 s^2)) dt_k, and rendered with 96 uniform + 48 importance
samples to the median depth. Colour is trained alike in both, so only geometry differs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ..config import MemoryConfig, SemfieldConfig, demo_config
from ..evaluation.metrics import Depth
from ..evaluation.metrics import depth as depth_errors
from ..field.model import Field
from ..field.optimiser import GridAdam
from ..field.render import trace
from ..field.trainer import Trainer, depth_guided
from ..frame import Frame
from ..geometry import pixel_directions
from ..mapping import workspace_around
from ..memory.features import FeatureShape
from ..memory.point_map import PointMap
from ..memory.replay import Replay
from ..sources import open_source
from .report import json_line, show_table

FAR_M = 6.0


def density_weights(sigma: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Volume-rendering weights [R, S] of densities at ray distances t [R, S] (reference B5)."""
    delta = torch.cat([t[:, 1:] - t[:, :-1], t.new_full((len(t), 1), 1e10)], 1)
    alpha = 1 - torch.exp(-sigma * delta)
    transmittance = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1] + 1e-10], 1), 1)
    return alpha * transmittance


def density(field: Field, points: torch.Tensor) -> torch.Tensor:
    """The field's geometry network read as a density [N], 1/m."""
    raw = field.sdf(field.encode("geometry", points)).squeeze(-1)
    return torch.nn.functional.softplus(raw + 1.0) * 20.0


class DensityTrainer:
    """The rival: the same rays and samples, compositing weights instead of distances."""

    def __init__(self, field: Field, config: SemfieldConfig):
        self.field, self.config = field, config.train
        self.generator = torch.Generator().manual_seed(config.train.seed)
        self.grid = GridAdam(field.grid("geometry"))
        self.dense = torch.optim.Adam(field.sdf.parameters(), lr=config.train.learning_rate, eps=1e-15, fused=True)

    def step(self, replay: Replay) -> int:
        """One step; returns samples trained."""
        config = self.config
        batch = replay.rays(config.rays, config.recent_fraction, self.generator)
        z = torch.cat(
            depth_guided(
                batch, config.free_samples, config.surface_samples, self.field.config.truncation_m, 0.05, self.generator
            ), 1,
        ).sort(1).values  # fmt: skip
        points = batch.origins[:, None] + batch.directions[:, None] * z[..., None]
        t = z * batch.norms[:, None]
        weights = density_weights(density(self.field, points.reshape(-1, 3)).view(z.shape), t)
        measured = (batch.depth_m * batch.norms)[:, None]
        spread = self.field.config.truncation_m / 4
        delta = torch.cat([t[:, 1:] - t[:, :-1], t.new_full((len(t), 1), 0.01)], 1)
        target = torch.exp(-((t - measured) ** 2) / (2 * spread**2)) * delta
        target = target / target.sum(1, keepdim=True).clamp_min(1e-6)
        loss = -((weights + 1e-7).log() * target).sum(1).mean()
        self.dense.zero_grad(set_to_none=True)
        loss.backward()
        self.dense.step()
        self.grid.step(config.learning_rate)
        return z.numel()


@torch.no_grad()
def density_depth(field: Field, origins: torch.Tensor, directions: torch.Tensor, generator: Any) -> torch.Tensor:
    """Median z-depth [R] by 96 uniform and 48 importance samples."""
    n, norms = len(origins), directions.norm(dim=-1, keepdim=True)
    z = (torch.arange(96) + torch.rand(n, 96, generator=generator)) / 96 * (FAR_M - 0.1) + 0.1

    def weights(z: torch.Tensor) -> torch.Tensor:
        points = origins[:, None] + directions[:, None] * z[..., None]
        return density_weights(density(field, points.view(-1, 3)).view(z.shape), z * norms)

    cdf = torch.cumsum(weights(z) + 1e-5, 1)
    at = torch.searchsorted(cdf / cdf[:, -1:], torch.rand(n, 48, generator=generator)).clamp_max(94)
    low, high = z.gather(1, at), z.gather(1, at + 1)
    fine = low + (high - low) * torch.rand(n, 48, generator=generator)
    z = torch.cat([z, fine], 1).sort(1).values
    cumulative = torch.cumsum(weights(z), 1)
    return z.gather(1, (cumulative < 0.5).sum(1, keepdim=True).clamp_max(z.shape[1] - 1)).squeeze(1)


def _errors(field: Field, views: Sequence[Frame], signed: bool, pixels: int = 1500) -> Depth:
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    predicted, measured = [], []
    for frame in views:
        valid = np.flatnonzero(frame.depth_m.reshape(-1) > 0)
        pick = rng.choice(valid, min(pixels, len(valid)), replace=False)
        v, u = np.divmod(pick, frame.camera.width)
        T = frame.T_world_camera.astype(np.float32)
        rays = torch.from_numpy(pixel_directions(frame.camera, u, v) @ T[:3, :3].T)
        origins = torch.from_numpy(T[:3, 3]).expand_as(rays)
        with torch.no_grad():
            z = trace(field, origins, rays, 0.1, FAR_M) if signed else density_depth(field, origins, rays, generator)
        predicted.append(z.nan_to_num(0.0).numpy())
        measured.append(frame.depth_m.reshape(-1)[pick])
    return depth_errors(np.concatenate(predicted), np.concatenate(measured))


def run(source: str, *, console: Console, as_json: bool, train_s: float) -> int:
    """Train both for the same seconds on 50 keyframes of a source; compare rendered depth on held-out views."""
    config = demo_config() if source.startswith("simulator") else SemfieldConfig()
    config = replace(config, memory=MemoryConfig())
    frames = list(open_source(source, width=320, frame_config=config.frame))
    limit = config.frame.max_depth_m
    frames = [replace(f, depth_m=np.where(f.depth_m <= limit, f.depth_m, 0)) for f in frames]
    views, kept = frames[::8][::4], [f for i, f in enumerate(frames) if i % 8]
    keyframes = [kept[i] for i in np.linspace(0, len(kept) - 1, 50).round().astype(int)]
    camera = keyframes[0].camera
    replay = Replay(config.memory, camera.width, camera.height, FeatureShape(1, 1, 1), "cpu")
    points = PointMap(config.memory, 1)
    rng = np.random.default_rng(0)
    for slot, frame in enumerate(keyframes):
        replay.write(slot, frame, rng)
        points.fuse(frame)
    workspace = workspace_around(points.points[points.rows], 1.1)
    rows, report = [], {}
    for name in ("sdf", "density"):
        field = Field(config.field, workspace, ())
        trainer = Trainer(field, config.train) if name == "sdf" else DensityTrainer(field, config)
        trainer.step(replay)  # kernels are compiled outside the clock
        spent, steps = 0.0, 0
        for mark in sorted({train_s / 3, train_s}):
            while spent < mark:
                started = time.perf_counter()
                trainer.step(replay)
                spent += time.perf_counter() - started
                steps += 1
            e = _errors(field, views, name == "sdf")
            rows.append([name, spent, steps, e.median_m * 1000, e.within_5cm, e.coverage])
            report[name] = {"steps": steps, "depth_median_m": e.median_m, "depth_within_5cm": e.within_5cm}
    show_table(
        console, f"{source}: geometry from depth, 50 keyframes, held-out views",
        ["geometry", "training s", "steps", "depth median mm", "within 5 cm", "coverage"], rows,
    )  # fmt: skip
    if as_json:
        console.print(json_line({"bench": "geometry", "source": source, "train_s": train_s, **report}), soft_wrap=True,
                      highlight=False, markup=False)  # fmt: skip
    return 0
