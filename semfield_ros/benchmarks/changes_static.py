"""What a scene that does not change loses by forgetting: simulated with noise and inexact poses, or recorded."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from scipy.spatial.transform import Rotation

from ..config import SemfieldConfig, demo_config
from ..evaluation.measured import Faults, MeasuredEncoder
from ..evaluation.metrics import confusion_matrix, segmentation
from ..frame import Frame, within_range
from ..geometry import project
from ..mapping import Mapping
from ..memory.features import FeatureShape
from ..query.prompt import EncodedPrompts, PromptEncoder
from ..query.scores import score_points
from ..sources import open_source
from .report import show_table

FAULTS = Faults(patch_px=8, window_px=12, noise=0.3, wrong_views=0.1)
POSES = ((0.0, 0.0), (4.0, 0.4))
"""Errors of the poses: mm, degrees."""


def moved(frame: Frame, error_mm: float, error_deg: float, rng: np.random.Generator) -> Frame:
    """The frame with a pose that is off by about so much."""
    T = frame.T_world_camera.copy()
    T[:3, 3] += rng.normal(size=3) * error_mm / 1000 / math.sqrt(3)
    turn = rng.normal(size=3) * np.radians(error_deg) / math.sqrt(3)
    T[:3, :3] = T[:3, :3] @ Rotation.from_rotvec(turn).as_matrix()
    return replace(frame, T_world_camera=T)


def simulated(seed: int, frames: int = 2000, views: int = 150, width: int = 240) -> list[dict[str, Any]]:
    """A table that is at rest, `frames` frames of it (laps of `views` views), every second of which is looked at as
    closely as a keyframe: surface and meaning after the first lap and at the end, with forgetting and without."""
    from ..sources.simulator import Simulator, SimulatorConfig

    config = demo_config()
    simulator = Simulator(SimulatorConfig(seed=seed, frames=views, width=width, height=width * 3 // 4))
    lap = [within_range(frame, config.frame) for frame in simulator]
    surface, _, semantic, _ = simulator.surface_points(20_000)
    encoder = MeasuredEncoder(simulator.class_names, FAULTS)
    texts = PromptEncoder(encoder, config.query)
    here = sorted(set(semantic[semantic > 0].tolist()))
    prompts = texts.encode([simulator.class_names[i] for i in here], [])
    rows = []
    for error_mm, error_deg in POSES:
        for forget in (True, False):
            rng = np.random.default_rng(seed)
            mapping = Mapping(replace(config, memory=replace(config.memory, forget=forget)), encoder.dim, "cpu")

            before: dict[str, float] = {}
            for i in range(frames):
                frame = replace(moved(lap[i % views], error_mm, error_deg, rng), stamp_s=i / 30)
                mapping.saw(frame)
                if mapping.accepts(frame) or i < views:
                    target = encoder.encode_frame(frame)
                    mapping.add_features(mapping.add_keyframe(frame, FeatureShape.of(target)), frame, target)
                elif i % 2:
                    mapping.look_through(frame)
                if i == views - 1:
                    before = _known(mapping, prompts, here, surface, semantic)
            after = _known(mapping, prompts, here, surface, semantic)
            rows.append({
                "seed": seed, "pose_mm": error_mm, "pose_deg": error_deg, "forget": forget, "frames": frames,
                "keyframes": mapping.counts["keyframes"],
                **{f"{k}_before": v for k, v in before.items()}, **{f"{k}_after": v for k, v in after.items()},
                "surface_lost": before["known"] - after["known"], "removed": mapping.counts["voxels_removed"],
                "voxels": len(mapping.points), "rays_forgotten": mapping.counts["rays_forgotten"],
            })  # fmt: skip
    return rows


def _known(
    mapping: Mapping, prompts: EncodedPrompts, here: list[int], surface: np.ndarray, semantic: np.ndarray
) -> dict[str, float]:
    """Share of the true surface [N, 3] that the point map knows, and mIoU of its labels against `semantic` [N]."""
    scores = score_points(mapping.snapshot(), prompts, surface, source="points")
    predicted = np.where(scores.seen, scores.cosine.argmax(1), -1)
    labelled = semantic > 0
    matrix = confusion_matrix(predicted[labelled], np.searchsorted(here, semantic[labelled]), len(here))
    return {"known": float(scores.seen.mean()), "miou": segmentation(matrix).miou}


def show(console: Console, scenes: list[list[dict[str, Any]]]) -> None:
    """The table of static scenes."""
    show_table(
        console, "scenes at rest: what is lost",
        ["scene, poses off by", "forget", "surface known, first lap", "at the end", "mIoU, first lap", "at the end",
         "voxels", "removed (strays)", "rays forgotten", "keyframes"],
        [[f"{r['seed']}, {r['pose_mm']:g} mm {r['pose_deg']:g} deg", "on" if r["forget"] else "off", r["known_before"],
          r["known_after"], r["miou_before"], r["miou_after"], r["voxels"], r["removed"], r["rays_forgotten"],
          r["keyframes"]] for rows in scenes for r in rows],
    )  # fmt: skip


def recorded(folder: str, console: Console) -> list[dict[str, Any]]:
    """A real recording of a place at rest, every 8th frame held out: how complete the map is for held-out views, and
    how far their depth is from the nearest voxel on each ray (4-pixel blocks), with forgetting and without."""
    config = SemfieldConfig()
    frames = list(open_source(folder, width=320, frame_config=config.frame))
    rows = []
    for forget in (True, False):
        mapping = Mapping(replace(config, memory=replace(config.memory, forget=forget)), 4, "cpu")
        asked_s = fused_s = 0.0
        for i, frame in enumerate(frames):
            if i % 8 == 0:
                continue
            mapping.saw(frame)
            started = time.perf_counter()
            accepted = mapping.accepts(frame)
            asked_s += time.perf_counter() - started
            if accepted:
                started = time.perf_counter()
                mapping.add_keyframe(frame, FeatureShape(4, 1, 1))
                fused_s += time.perf_counter() - started
        points = mapping.points.points[mapping.points.rows]
        errors = np.concatenate([_depth_error(frame, points) for frame in frames[::40]])
        keyframes = mapping.counts["keyframes"]
        rows.append({
            "forget": forget, "voxels": len(points), "removed": mapping.counts["voxels_removed"],
            "complete": float(np.mean([1 - mapping.points.unseen_fraction(frame) for frame in frames[::40]])),
            "error_median_m": float(np.median(np.abs(errors))), "before_surface": float(np.mean(errors < -0.1)),
            "keyframes": keyframes, "accept_ms": 1000 * asked_s / len(frames), "fuse_ms": 1000 * fused_s / keyframes,
        })  # fmt: skip
    show_table(
        console, "a recording of a place at rest, held-out views",
        ["forget", "voxels", "removed", "complete", "median error mm", "10 cm before the surface", "keyframes",
         "accept ms", "keyframe ms"],
        [["on" if r["forget"] else "off", r["voxels"], r["removed"], r["complete"], r["error_median_m"] * 1000,
          r["before_surface"], r["keyframes"], r["accept_ms"], r["fuse_ms"]] for r in rows],
    )  # fmt: skip
    return rows


def _depth_error(frame: Frame, points: np.ndarray, block_px: int = 4) -> np.ndarray:
    """Of a map's points [N, 3]: nearest depth in each block of pixels minus the measured one in its middle, metres."""
    u, v, z = project(frame.camera, frame.T_world_camera, points)
    height, width = (n // block_px for n in frame.depth_m.shape)
    with np.errstate(invalid="ignore"):
        inside = (z > 0.1) & (u >= 0) & (v >= 0) & (u < width * block_px) & (v < height * block_px)
    nearest = np.full((height, width), np.inf)
    block = tuple((x[inside] / block_px).astype(int) for x in (v, u))
    np.minimum.at(nearest, block, z[inside])
    middle = frame.depth_m[block_px // 2 :: block_px, block_px // 2 :: block_px][:height, :width]
    both = np.isfinite(nearest) & (middle > 0)
    return np.asarray(nearest[both] - middle[both])
