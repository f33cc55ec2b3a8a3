"""`semfield bench ablation`: does the field earn its cost? The same features, averaged in voxels, trained, and both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from ..config import SemfieldConfig, demo_config
from ..engine import Engine
from ..evaluation.measured import Faults, MeasuredEncoder
from ..evaluation.metrics import confusion_matrix, segmentation
from ..frame import Frame
from ..query.scores import Source, score_points
from .report import json_line, mean, show_table

MAPS: tuple[Source, ...] = ("field", "points", "auto")
BOUNDARY_M = 0.015
"""Surface this near to another class is boundary."""
POINTS = 12_000
WIDTH = 160
"""Of the frames: a patch of 16 pixels is then as coarse as a ViT-B/16's at 224 pixels is in a wider view."""


@dataclass(frozen=True)
class Setting:
    """One row of the ablation: what the encoder and the poses do wrong, how many views there are."""

    name: str
    faults: Faults
    views: int = 30
    pose_mm: float = 0.0
    pose_deg: float = 0.0
    through_window: bool = True
    smooth: bool = True


BASE = Faults(patch_px=16, window_px=32, noise=0.5, wrong_views=0.2)


def settings() -> Iterator[Setting]:
    """One thing varied at a time around patch 16, window 32, noise .5, 20% wrong views, 30 views, exact poses."""
    yield Setting("base: patch 16, window 32", BASE)
    yield Setting("no noise", replace(BASE, noise=0.0, wrong_views=0.0))
    yield Setting("noise .3, 10% wrong", replace(BASE, noise=0.3, wrong_views=0.1))
    yield Setting("noise 1, 30% wrong", replace(BASE, noise=1.0, wrong_views=0.3))
    yield Setting("patch 8, window 24", replace(BASE, patch_px=8, window_px=24))
    yield Setting("patch 8, no blur", replace(BASE, patch_px=8, window_px=8))
    yield Setting("patch 16, window 48", replace(BASE, window_px=48))
    yield Setting("poses 4 mm, .4 deg off", BASE, pose_mm=4, pose_deg=0.4)
    yield Setting("poses 12 mm, 1.2 deg off", BASE, pose_mm=12, pose_deg=1.2)
    yield Setting("8 views", BASE, views=8)
    yield Setting("12 views, noise 1, 30% wrong", replace(BASE, noise=1.0, wrong_views=0.3), views=12)
    yield Setting("window assumed 16 instead of 32", replace(BASE, assumed_window_px=16))
    yield Setting("window assumed 64 instead of 32", replace(BASE, assumed_window_px=64))
    yield Setting("field fitted per pixel", BASE, through_window=False)
    yield Setting("no smoothness prior", BASE, smooth=False)


def jittered(frame: Frame, setting: Setting, rng: np.random.Generator) -> Frame:
    """The frame with an erroneous pose."""
    if not (setting.pose_mm or setting.pose_deg):
        return frame
    T = frame.T_world_camera.copy()
    T[:3, 3] += rng.normal(size=3) * setting.pose_mm / 1000 / math.sqrt(3)
    turn = rng.normal(size=3) * np.radians(setting.pose_deg) / math.sqrt(3)
    T[:3, :3] = T[:3, :3] @ Rotation.from_rotvec(turn).as_matrix()
    return replace(frame, T_world_camera=T)


@dataclass(frozen=True)
class Surface:
    """Exact surface samples: points [N, 3], semantic [N], whether at a boundary between classes, or unseen [N]."""

    points: np.ndarray
    semantic: np.ndarray
    boundary: np.ndarray

    @classmethod
    def of(cls, simulator: Any) -> Surface:
        points, _, semantic, _ = simulator.surface_points(POINTS)
        labelled = semantic > 0
        points, semantic = points[labelled], semantic[labelled]
        boundary = np.zeros(len(points), bool)
        for label in np.unique(semantic):
            other = semantic != label
            if other.any():
                distance, _ = cKDTree(points[other]).query(points[~other], distance_upper_bound=BOUNDARY_M)
                boundary[~other] = np.isfinite(distance)
        return cls(points, semantic, boundary)


def rated(engine: Engine, surface: Surface, names: tuple[str, ...], source: Source) -> dict[str, float]:
    """mIoU, frequency-weighted mIoU, error at boundaries, share of the surface that was seen."""
    here = sorted(set(surface.semantic.tolist()))
    scores = score_points(engine.snapshot(), engine.prompts.encode([names[i] for i in here], []), surface.points,
                          source=source)  # fmt: skip
    predicted = np.where(scores.seen, scores.cosine.argmax(1), -1)
    truth = np.searchsorted(here, surface.semantic)
    result = segmentation(confusion_matrix(predicted, truth, len(here)))
    edge = surface.boundary & scores.seen
    return {
        "miou": result.miou,
        "fmiou": result.frequency_weighted_iou,
        "boundary_error": float((predicted != truth)[edge].mean()) if edge.any() else float("nan"),
        "seen": float(scores.seen.mean()),
    }


def measure(config: SemfieldConfig, setting: Setting, seed: int, train_s: float) -> dict[str, Any]:
    """One setting on one scene: figures of every map, seconds to 95% of the final mIoU of the field."""
    from ..sources.simulator import Simulator, SimulatorConfig

    simulator = Simulator(SimulatorConfig(seed=seed, frames=setting.views, width=WIDTH, height=WIDTH * 3 // 4))
    surface, names = Surface.of(simulator), tuple(simulator.class_names)
    train = replace(config.train, through_window=setting.through_window, seed=seed)
    if not setting.smooth:
        train = replace(train, smoothness=0.0)
    memory = replace(config.memory, min_translation_m=1e-6, min_rotation_deg=1e-6)
    config = replace(config, train=train, memory=memory)
    encoder = MeasuredEncoder(names, replace(setting.faults, seed=seed))
    rng = np.random.default_rng(seed)
    with Engine(config, encoder) as engine:
        engine.pause()
        for frame in simulator:
            engine.submit(jittered(frame, setting, rng), block=True)
        engine.drain()
        curve, spent = [], 0.0
        while spent < train_s - 1e-6:
            slice_s = min(max(1.0, train_s / 8), train_s - spent)
            engine.train(seconds=slice_s)
            spent += slice_s
            curve.append((spent, rated(engine, surface, names, "field")["miou"]))
        figures: dict[str, Any] = {m: rated(engine, surface, names, m) for m in MAPS}
        figures["steps"] = engine.snapshot().step
    figures["t95_s"] = next(t for t, miou in curve if miou >= 0.95 * curve[-1][1])
    return figures


def run(*, console: Console, as_json: bool, seeds: int, train_s: float, only: str = "") -> int:
    """All settings on `seeds` scenes; field, points (what voxel maps do) and auto (both) in the same run."""
    rows: list[list[Any]] = []
    found: list[dict[str, Any]] = []
    for setting in settings():
        if only not in setting.name:
            continue
        scenes = [measure(demo_config(), setting, seed, train_s) for seed in range(seeds)]
        average = {m: {k: mean([s[m][k] for s in scenes]) for k in scenes[0][m]} for m in MAPS}
        gains = [s["field"]["miou"] - s["points"]["miou"] for s in scenes]
        found.append(
            {
                "name": setting.name, **asdict(setting.faults), "views": setting.views, "pose_mm": setting.pose_mm,
                "pose_deg": setting.pose_deg, "through_window": setting.through_window, "smooth": setting.smooth,
                "worst_scene_gain": min(gains), "t95_s": mean([s["t95_s"] for s in scenes]),
                **{f"{k}_{m}": v for m in MAPS for k, v in average[m].items()},
            }
        )  # fmt: skip
        f, p, a = (average[m] for m in MAPS)
        rows.append([
            setting.name, p["miou"], f["miou"], a["miou"], f["miou"] - p["miou"], min(gains), p["fmiou"], f["fmiou"],
            p["boundary_error"], f["boundary_error"], found[-1]["t95_s"],
        ])  # fmt: skip
        console.print(f"{setting.name}: " + ", ".join(f"{m} {average[m]['miou']:.3f}" for m in MAPS), markup=False)
    show_table(
        console, f"{seeds} simulated tables, {train_s:g} s of training; the encoder's faults are known",
        ["setting", "mIoU points", "field", "auto", "gain", "worst scene", "f-mIoU points", "field",
         "wrong at edges points", "field", "95% s"], rows,
    )  # fmt: skip
    report = {
        "bench": "ablation", "scenes": seeds, "train_s": train_s,
        **{f"miou_{m}": mean([s[f"miou_{m}"] for s in found]) for m in MAPS},
        # of what the field is run as: the settings that switch a part of it off are there to show what it is for
        "worst_gain": min(s["miou_field"] - s["miou_points"] for s in found if s["through_window"] and s["smooth"]),
        "settings": found,
    }
    if as_json:
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0
