"""`semfield bench unbounded`: what depth cannot tell, learnt from colour; the same frames and seconds with and without.

Three ways in which a depth camera fails, on simulated tables: it ends (nothing beyond a metre), things are invisible to
it in every view (a third of the objects, as glass would be), and the scene has no end (a painted sphere 50 m away).
Held-out views are rendered from their pose alone; errors are taken where no depth was given, and where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.console import Console

from ..config import MemoryConfig, SemfieldConfig, demo_config
from ..evaluation.metrics import psnr_db
from ..field.model import Field
from ..field.render import render
from ..field.trainer import Trainer
from ..frame import Frame
from ..geometry import image_directions
from ..mapping import colour_head, workspace_around
from ..memory.features import FeatureShape
from ..memory.point_map import PointMap
from ..memory.replay import Replay
from ..sources.simulator import Simulator, SimulatorConfig
from .report import json_line, mean, show_table

REACH_M = 1.0
SPHERE_M = 50.0
FAR_M = 200.0
SETTINGS = ("depth ends at 1 m", "objects without depth", "sphere at 50 m", "all measured")


@dataclass(frozen=True)
class View:
    """A held-out view: what the sensor gave and what is true."""

    frame: Frame
    exact_m: np.ndarray


@dataclass(frozen=True)
class Region:
    """How well one part of the held-out images is rendered. Depth errors are relative."""

    psnr_db: float
    depth_median: float
    depth_within_10_percent: float
    covered: float


def painted_sphere(origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multiples of directions [N, 3] from `origin` to a sphere of SPHERE_M around the world's origin, and colours
    [N, 3] uint8 there: smooth waves of a few degrees and more."""
    a = (directions**2).sum(1)
    b = directions @ origin
    t = (-b + np.sqrt(b * b - a * ((origin**2).sum() - SPHERE_M**2))) / a
    unit = (origin + directions * t[:, None]) / SPHERE_M
    waves = np.stack([np.sin(unit @ k) for k in np.array([[9, 4, 2], [-3, 8, 5], [2, -6, 11]], float)], 1)
    return t, (127.5 + 100 * waves).clip(0, 255).astype(np.uint8)


def altered(view: View, setting: str, invisible: Sequence[int]) -> View:
    """The view as a sensor with that fault gives it, and what is true then."""
    frame, exact = view.frame, view.exact_m
    depth = frame.depth_m
    if setting == "all measured":
        return View(replace(frame, depth_m=exact), exact)
    if setting == "objects without depth":
        assert frame.instance is not None
        return View(replace(frame, depth_m=np.where(np.isin(frame.instance, invisible), 0, exact)), exact)
    if setting == "sphere at 50 m":
        T = frame.T_world_camera
        # what is not on the table
        points = T[:3, 3] + (image_directions(frame.camera).astype(np.float64) * exact[..., None]) @ T[:3, :3].T
        beyond = (points[..., 2] < -0.03) | (np.abs(points[..., :2]).max(-1) > 1.2) | (exact == 0)
        rays = image_directions(frame.camera).reshape(-1, 3).astype(np.float64) @ T[:3, :3].T
        t, colour = painted_sphere(T[:3, 3], rays)
        rgb = np.where(beyond[..., None], colour.reshape(frame.rgb.shape), frame.rgb)
        exact = np.where(beyond, t.reshape(exact.shape), exact).astype(np.float32)
        return View(replace(frame, rgb=rgb, depth_m=np.where(beyond, 0, depth)), exact)
    return View(replace(frame, depth_m=np.where(depth <= REACH_M, depth, 0)), exact)


def _rated(field: Field, views: Sequence[View]) -> dict[str, Region]:
    """Errors where no depth was given ("unmeasured") and where it was."""
    parts: dict[str, list[list[np.ndarray]]] = {"unmeasured": [], "measured": []}
    for view in views:
        frame = view.frame
        T = frame.T_world_camera.astype(np.float32)
        rays = torch.from_numpy(image_directions(frame.camera).reshape(-1, 3) @ T[:3, :3].T)
        out = render(field, torch.from_numpy(T[:3, 3]).expand_as(rays), rays, ("rgb",), far_m=FAR_M)
        depth, exact = out.depth.numpy(), view.exact_m.reshape(-1)
        colour, truth = out.outputs["rgb"].clamp(0, 1).numpy(), frame.rgb.reshape(-1, 3) / np.float32(255)
        given = frame.depth_m.reshape(-1) > 0
        for name, here in (("unmeasured", ~given & (exact > 0)), ("measured", given)):
            parts[name].append(
                [colour[here], truth[here], np.abs(depth[here] / exact[here] - 1), depth[here] > 0]
            )
    regions = {}
    for name, pieces in parts.items():
        colour, truth, error, covered = (np.concatenate(column) for column in zip(*pieces))
        regions[name] = Region(
            psnr_db(colour, truth), float(np.median(error)) if len(error) else float("nan"),
            mean(list(map(float, error < 0.1))), mean(list(map(float, covered))),
        )  # fmt: skip
    return regions


def _views(seed: int, frames: int, width: int) -> tuple[list[View], list[int]]:
    """Views all around a table, and the instances that are to be invisible: every third."""
    simulator = Simulator(SimulatorConfig(seed=seed, width=width, height=width * 3 // 4, processes=0))
    views = [
        View(simulator.render(T, stamp_s=float(i)), simulator.cast(T).depth_m)
        for i, T in enumerate(simulator.path(frames))
    ]
    return views, [o.instance for o in simulator.objects][::3]


def _trained(config: SemfieldConfig, views: Sequence[View], train_s: float) -> tuple[Field, int]:
    """A field trained on views for so many seconds, and the steps that were taken."""
    camera = views[0].frame.camera
    replay = Replay(config.memory, camera.width, camera.height, FeatureShape(1, 1, 1), "cpu")
    points, rng = PointMap(config.memory, 1), np.random.default_rng(0)
    for slot, view in enumerate(views):
        replay.write(slot, view.frame, rng)
        points.fuse(view.frame)
    workspace = workspace_around(points.points[points.rows], 1.2)
    warm = Trainer(Field(config.field, workspace, (colour_head(),)), config.train)
    warm.step(replay)  # kernels are compiled outside the clock
    field = Field(config.field, workspace, (colour_head(),))
    trainer = Trainer(field, config.train)
    started = time.perf_counter()
    while time.perf_counter() - started < train_s:
        trainer.step(replay)
    return field, trainer.steps


def run(*, console: Console, as_json: bool, seeds: int, train_s: float, frames: int = 60, width: int = 160) -> int:
    """Both ways, on each setting and seed."""
    base = replace(demo_config(), memory=MemoryConfig(voxel_size_m=0.02))
    ways = {"without": 0, "from colour": base.train.depthless_rays}
    rows, report = [], {}
    scenes = [_views(seed, frames, width) for seed in range(seeds)]
    for setting in SETTINGS:
        for way, rays in ways.items():
            config = replace(base, train=replace(base.train, depthless_rays=rays))
            regions, steps, holes = [], [], []
            for views, invisible in scenes:
                cut = [altered(view, setting, invisible) for view in views]
                held_out = cut[3::6]
                field, taken = _trained(config, [v for i, v in enumerate(cut) if i % 6 != 3], train_s)
                regions.append(_rated(field, held_out))
                steps.append(taken)
                holes.append(float(np.mean([(v.frame.depth_m == 0).mean() for v in held_out])))

            figures = {
                f"{part}_{figure}": mean([getattr(region[part], figure) for region in regions])
                for part in ("unmeasured", "measured")
                for figure in ("psnr_db", "depth_median", "depth_within_10_percent", "covered")
            }
            report[f"{setting}, {way}"] = {"steps": mean(steps), "without_depth": mean(holes), **figures}
            rows.append(
                [
                    setting, way, mean(steps), mean(holes),
                    *(
                        figures[name]
                        for name in (
                            "unmeasured_psnr_db", "unmeasured_depth_median", "unmeasured_depth_within_10_percent",
                            "measured_psnr_db", "measured_depth_median",
                        )
                    ),
                ]
            )  # fmt: skip
    show_table(
        console, f"pixels without depth, {seeds} scenes, {train_s:.0f} s of training each, held-out views",
        ["setting", "rays without depth", "steps", "share of pixels", "PSNR there", "depth there (rel.)",
         "within 10%", "PSNR elsewhere", "depth elsewhere (rel.)"], rows,
    )  # fmt: skip
    if as_json:
        line = {"bench": "unbounded", "seeds": seeds, "train_s": train_s, "settings": report}
        console.print(json_line(line), soft_wrap=True, highlight=False, markup=False)
    return 0
