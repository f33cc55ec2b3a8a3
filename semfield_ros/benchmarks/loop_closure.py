"""`semfield bench loop_closure`: keyframes whose poses drifted are corrected; how fast do map and field follow?"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from ..config import demo_config
from ..engine import Engine
from ..evaluation.simulated import Truth
from ..evaluation.simulated import rate as rate_simulated
from ..frame import Frame
from ..session import take_in
from .held_out import rate as rate_held_out
from .report import json_line, mean, show_table

DRIFT_M = 0.10
DRIFT_DEG = 4.0
"""Of the last frame; it grows evenly from the first."""
MARKS_S = (0.0, 2.0, 5.0, 10.0, 20.0)


def drifted(frames: list[Frame]) -> list[Frame]:
    """The same stream with odometry that drifts: sideways and in heading."""
    moved = []
    for i, frame in enumerate(frames):
        share = i / max(1, len(frames) - 1)
        angle = np.radians(DRIFT_DEG) * share
        T = np.eye(4)
        T[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        T[:3, 3] = DRIFT_M * share * np.array([0.8, 0.5, 0.33])
        moved.append(replace(frame, T_world_camera=T @ frame.T_world_camera))
    return moved


def figures(engine: Engine, truth: Truth, views: list[Frame]) -> dict[str, float]:
    """Held-out depth against the exact one, and how right answers are."""
    snapshot = engine.snapshot(fresh=True)
    held = rate_held_out(snapshot, views, pixels=1500, far_m=2.5)
    points = rate_simulated(truth, snapshot, engine.prompts, engine.config, source="points")
    field = rate_simulated(truth, snapshot, engine.prompts, engine.config, source="field")
    return {
        "depth_mm": held.depth_median_m * 1000, "within_5cm": held.depth_within_5cm,
        "miou_field": field.miou, "miou_points": points.miou,
        "right_field": field.localisation, "right_points": points.localisation,
    }  # fmt: skip


def run(*, console: Console, as_json: bool, seeds: int, train_s: float) -> int:
    """Drifted, corrected, and the same scene without drift as the baseline, each trained equally long in all."""
    from ..sources.simulator import Simulator, SimulatorConfig
    from ..sources.simulator_objects import KINDS

    config, kinds = demo_config(), [kind.name for kind in KINDS]
    rows: list[list[Any]] = []
    scenes: list[dict[str, Any]] = []
    for seed in range(seeds):
        simulator = Simulator(SimulatorConfig(seed=seed, frames=120))
        truth, frames = Truth.of(simulator, kinds), list(simulator)
        exact = [simulator.render(T, noisy=False) for T in simulator.path(61)[1::12]]
        exact = [replace(f, depth_m=np.where(f.depth_m < 1.6, f.depth_m, 0)) for f in exact]

        with Engine(config) as engine:
            take_in(engine, drifted(frames), train_s=train_s)
            before = figures(engine, truth, exact)
            started = time.perf_counter()
            moved = engine.correct_poses("", [f.stamp_s for f in frames], [f.T_world_camera for f in frames])
            call_s = time.perf_counter() - started
            engine.drain()
            rebuilt_s = time.perf_counter() - started
            after, spent = {}, 0.0
            for mark in MARKS_S:
                if mark > spent:
                    engine.train(seconds=mark - spent)
                    spent = mark
                after[mark] = figures(engine, truth, exact)
        with Engine(config) as engine:
            take_in(engine, frames, train_s=train_s + MARKS_S[-1])
            clean = figures(engine, truth, exact)
        scenes.append({
            "seed": seed, "corrected": moved.corrected, "largest_m": moved.largest_translation_m, "call_s": call_s,
            "rebuilt_s": rebuilt_s, "before": before, "after": after, "clean": clean,
        })  # fmt: skip
        for name, figure in (("drifted", before), *((f"{m:g} s after", f) for m, f in after.items()), ("never", clean)):
            rows.append([f"{seed} {name}", *figure.values()])
    names = list(clean)
    show_table(
        console, f"drift of {DRIFT_M * 100:g} cm and {DRIFT_DEG:g} degrees, corrected after {train_s:g} s of training",
        ["scene, when", "depth mm", "within 5 cm", "mIoU field", "mIoU points", "right field", "right points"], rows,
    )  # fmt: skip
    states: dict[str, list[dict[str, float]]] = {
        "before": [s["before"] for s in scenes],
        **{f"after_{m:g}_s": [s["after"][m] for s in scenes] for m in MARKS_S},
        "clean": [s["clean"] for s in scenes],
    }
    report = {
        "bench": "loop_closure", "scenes": len(scenes), "drift_m": DRIFT_M, "drift_deg": DRIFT_DEG,
        "call_s": mean([s["call_s"] for s in scenes]), "rebuilt_s": mean([s["rebuilt_s"] for s in scenes]),
        **{state: {n: mean([f[n] for f in found]) for n in names} for state, found in states.items()},
    }  # fmt: skip
    show_table(console, "mean over scenes", ["when", *names],
               [[state, *(report[state][n] for n in names)] for state in states])  # type: ignore[index]  # fmt: skip
    console.print(
        f"the call took {report['call_s']:.2f} s, the point map was new after {report['rebuilt_s']:.2f} s", markup=False
    )
    if as_json:
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0
