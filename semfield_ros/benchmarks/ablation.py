"""`semfield bench ablation`: does the field earn its cost? The same features, averaged in voxels, trained, and both."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from ..answer import answer
from ..config import SemfieldConfig, demo_config
from ..engine import Engine
from ..errors import ConfigError
from ..evaluation.measured import MeasuredEncoder
from ..evaluation.simulated import Truth
from ..evaluation.surface import Surface, rate
from ..field.snapshot import Snapshot
from ..frame import Frame
from ..query.prompt import EncodedPrompts, PromptEncoder
from ..query.scores import Source, score_points
from .ablation_settings import Setting, settings
from .online import ask_recorded, open_recording, paused_engine
from .report import json_line, mean, show_table

MAPS: tuple[Source, ...] = ("field", "points", "auto")
WIDTH = 160
"""Of the frames: a patch of 16 pixels is then as coarse as a ViT-B/16's at 224 pixels is in a wider view."""
CORNER_SCENES = 2
"""Scenes of each corner of the factorial; the settings that vary one thing have all."""
MARKS = 8
"""Times at which the field's way to its final mIoU is looked at."""


@lru_cache(maxsize=32)
def recording(seed: int, views: int, arc: float) -> tuple[Truth, Surface, tuple[Frame, ...]]:
    """A simulated table: its truth, its surface (hidden or not from these frames), and frames at their true poses."""
    from ..sources.simulator import Simulator, SimulatorConfig
    from ..sources.simulator_objects import KINDS

    simulator = Simulator(SimulatorConfig(seed=seed, frames=views, width=WIDTH, height=WIDTH * 3 // 4))
    frames = tuple(simulator)[: max(1, round(arc * views))]
    truth = Truth.of(simulator, [kind.name for kind in KINDS], samples=100)
    return truth, Surface.of(simulator, frames), frames


def localisation(
    truth: Truth, snapshot: Snapshot, texts: PromptEncoder, config: SemfieldConfig, source: Source
) -> float:
    """Share of the kinds on the table whose best object lies in the box of one of them."""
    kinds = list(dict.fromkeys(truth.kinds))
    found = answer(snapshot, texts, kinds, config=config, source=source, grasps=False)
    hits = [bool(p.objects) and truth.right(k, p.objects[0].box.centre) for k, p in zip(kinds, found.prompts)]
    return float(np.mean(hits))


def cost(snapshot: Snapshot, texts: EncodedPrompts, source: Source) -> dict[str, float]:
    """Milliseconds to score all voxels, the best of three; bytes that answers of this map are read from."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        score_points(snapshot, texts, source=source)
        times.append(time.perf_counter() - started)
    cloud = snapshot.cloud
    found = snapshot.keys.nbytes + sum(a.nbytes for a in (cloud.points, snapshot.measured, snapshot.created_step))
    if source != "field":
        found += snapshot.features.nbytes
    if source != "points" and snapshot.field is not None:
        head = snapshot.field.head("language")
        parts = (snapshot.field.grid(head.config.grid), head)
        found += sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    return {"query_ms": 1000 * min(times), "bytes": found}


def measure(config: SemfieldConfig, setting: Setting, seed: int, train_s: float) -> dict[str, Any]:
    """One setting on one scene: figures of every map, seconds to 95% of the final mIoU of the field."""
    truth, surface, frames = recording(seed, setting.views, setting.arc)
    memory = replace(config.memory, min_translation_m=1e-6, min_rotation_deg=1e-6)
    config = replace(config, train=setting.training(config.train, seed), memory=memory)
    encoder = MeasuredEncoder(truth.classes, replace(setting.faults, seed=seed))
    here = sorted(set(surface.semantic.tolist()))
    rng = np.random.default_rng(seed)
    with Engine(config, encoder) as engine:
        engine.pause()
        for frame in frames:
            engine.submit(setting.jittered(frame, rng), block=True)
        engine.drain()
        texts = engine.prompts.encode([truth.classes[i] for i in here], [])
        curve, spent = [], 0.0
        while spent < train_s - 1e-6:
            slice_s = min(max(0.5, train_s / MARKS), train_s - spent)
            engine.train(seconds=slice_s)
            spent += slice_s
            curve.append((spent, rate(engine.snapshot(), texts, here, surface, "field")["miou"]))
        snapshot = engine.snapshot(fresh=True)
        trainer = engine.run(lambda mapping: mapping.trainer).result()
        figures: dict[str, Any] = {
            m: rate(snapshot, texts, here, surface, m) | cost(snapshot, texts, m)
            | {"localisation": localisation(truth, snapshot, engine.prompts, config, m)}
            for m in MAPS
        }  # fmt: skip
    figures["steps"] = snapshot.step
    figures["window_size"] = trainer.window.size if trainer else float("nan")
    figures["t95_s"] = next(t for t, miou in curve if miou >= 0.95 * curve[-1][1])
    return figures


def measured(setting: Setting, seeds: int, train_s: float, tell: Progress, task: Any) -> dict[str, Any]:
    """One row: means over scenes of each map's figures, named like `miou_field`."""
    scenes = []
    for seed in range(min(seeds, CORNER_SCENES) if setting.corner else seeds):
        scenes.append(measure(demo_config(), setting, seed, train_s))
        tell.advance(task)
    gains = [s["field"]["miou"] - s["points"]["miou"] for s in scenes]
    return {
        "name": setting.name, "counted": setting.counted, "scenes": len(scenes), **asdict(setting.faults),
        **{k: v for k, v in asdict(setting).items() if k not in ("name", "faults")},
        "worst_scene_gain": min(gains),
        **{k: mean([s[k] for s in scenes]) for k in ("t95_s", "steps", "window_size")},
        **{f"{k}_{m}": mean([s[m][k] for s in scenes]) for m in MAPS for k in scenes[0][m]},
    }  # fmt: skip


def recorded(folder: Path, text_table: Path | None, train_s: float) -> dict[str, Any]:
    """A row for a real recording: its 2-D masks as features, labelled boxes as truth (`bench online` tells how)."""
    config, labelled, keyframes, _ = open_recording(folder, text_table)
    engine, _ = paused_engine(config, keyframes)
    with engine:
        engine.train(seconds=train_s)
        snapshot = engine.snapshot(fresh=True)
        _, scores = ask_recorded(engine, snapshot, config, labelled, MAPS)
        texts = engine.prompts.encode([next(iter(labelled.values()))["names"][0]])
        figures = {m: scores[m] | cost(snapshot, texts, m) for m in MAPS}
    gain = figures["field"]["miou"] - figures["points"]["miou"]
    return {
        "name": folder.name, "counted": True, "scenes": 1, "views": len(keyframes), "train_s": train_s,
        "worst_scene_gain": gain, "steps": snapshot.step,
        **{f"{k}_{m}": v for m in MAPS for k, v in figures[m].items()},
    }  # fmt: skip


def run(
    *,
    console: Console,
    as_json: bool,
    seeds: int,
    train_s: float,
    only: str = "",
    source: str = "simulator",
    text_table: Path | None = None,
) -> int:
    """All settings whose name contains `only`, on `seeds` simulated scenes (corners on CORNER_SCENES) and, where
    `source` is a 7-Scenes folder, on that; field, points (what voxel maps do) and auto (both) in the same run."""
    chosen = [setting for setting in settings() if only in setting.name]
    folder = None if source == "simulator" or only not in Path(source).name else Path(source)
    if not chosen and folder is None:
        names = ", ".join(repr(setting.name) for setting in settings())
        raise ConfigError(f"no setting's name contains {only!r}; there are: {names}")
    log = logging.getLogger("semfield_ros.mapping")
    level = log.level
    log.setLevel(logging.WARNING)  # budgets of a hundred maps
    found: list[dict[str, Any]] = []
    total = sum(min(seeds, CORNER_SCENES) if s.corner else seeds for s in chosen)
    try:
        if chosen:
            recording.cache_clear()
            measure(demo_config(), chosen[0], 0, 0.5)  # kernels are compiled on first use
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("ablation", total=total)
            for setting in chosen:
                found.append(measured(setting, seeds, train_s, bar, task))
                figures = ", ".join(f"{m} {found[-1][f'miou_{m}']:.3f}" for m in MAPS)
                bar.console.print(f"{setting.name}: {figures}", markup=False, highlight=False)
        if folder is not None:
            found.append(recorded(folder, text_table, 3 * train_s))
    finally:
        log.setLevel(level)
    show(console, found, seeds, train_s)
    report = {
        "bench": "ablation", "scenes": seeds, "train_s": train_s,
        **{f"miou_{m}": mean([s[f"miou_{m}"] for s in found]) for m in MAPS},
        # of what the field is run as: the settings that switch a part of it off are there to show what it is for
        "worst_gain": min((s["miou_field"] - s["miou_points"] for s in found if s["counted"]), default=float("nan")),
        "worst_gain_auto": min((s["miou_auto"] - s["miou_points"] for s in found if s["counted"]),
                               default=float("nan")),
        "settings": found,
    }  # fmt: skip
    if as_json:
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0


def show(console: Console, found: Sequence[dict[str, Any]], seeds: int, train_s: float) -> None:
    """The tables: how right, and at what price."""

    def of(row: dict[str, Any], *names: str) -> list[Any]:
        return [row.get(name, float("nan")) for name in names]

    def named(columns: dict[str, str], *rest: list[Any]) -> list[list[Any]]:
        return [[row["name"], *of(row, *columns.values()), *(r[i] for r in rest)] for i, row in enumerate(found)]

    right = {
        "points": "miou_points", "field": "miou_field", "auto": "miou_auto", "worst scene": "worst_scene_gain",
        "f-mIoU pts": "fmiou_points", "f field": "fmiou_field", "t95 s": "t95_s", "window": "window_size",
    }  # fmt: skip
    gains = [row["miou_field"] - row["miou_points"] for row in found]
    show_table(
        console, f"mIoU; {seeds} simulated tables ({CORNER_SCENES} for corners), {train_s:g} s of training each",
        ["setting", *right, "gain"], named(right, gains),
    )  # fmt: skip
    where = {
        "edges pts": "boundary_error_points", "edges field": "boundary_error_field",
        "object pts": "localisation_points", "object field": "localisation_field",
        "hidden pts": "hidden_by_itself_points", "nearest": "hidden_points", "hidden field": "hidden_field",
    }  # fmt: skip
    show_table(
        console, "wrong within 1.5 cm of an edge; right object found; right on surface that no camera saw",
        ["setting", *where], named(where),
    )  # fmt: skip
    price = {
        "steps": "steps", "ms points": "query_ms_points", "ms field": "query_ms_field", "ms auto": "query_ms_auto",
    }  # fmt: skip
    kilobytes = [[row[f"bytes_{m}"] / 1000 for row in found] for m in ("points", "field")]
    show_table(
        console, "what an answer takes and is read from", ["setting", *price, "kB points", "kB field"],
        named(price, *kilobytes),
    )  # fmt: skip
