"""`semfield bench scale`: what a building costs, room by room, in blocks that sleep; beside it, one map."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from ..config import FieldConfig, FrameConfig, GridConfig, MemoryConfig, SemfieldConfig, TrainConfig
from ..engine import Engine
from ..errors import ConfigError
from ..evaluation.measured import Faults, MeasuredEncoder
from ..evaluation.metrics import confusion_matrix, segmentation
from ..field.snapshot import Snapshot
from ..frame import Frame
from ..progress import memory_mb
from ..query.prompt import EncodedPrompts
from ..query.scores import score_points
from .report import json_line, mean, peak_rss_mb, show_table

FAULTS = Faults(patch_px=8, window_px=16, noise=0.5, wrong_views=0.1)
BATCH = 25
"""Frames between two looks at the clock: the engine maps them, then trains."""
TRUTH_POINTS = 4000
"""Surface points of a room that are labelled."""
PROMPTS = (1, 10, 100)
SAMPLE = 200_000
"""Points all over the building that prompts are scored at: the result is as large as points x prompts."""


@dataclass(frozen=True)
class Plan:
    """How large a building, how it is mapped, and of how many rooms the baseline makes one map."""

    rooms: int = 20
    frames_per_room: int = 500
    steps_per_room: int = 600
    baseline_rooms: int = 8
    block_m: float = 4.5
    max_active_blocks: int = 4
    seed: int = 0
    plot: Path | None = None

    def __post_init__(self) -> None:
        for name in ("rooms", "frames_per_room", "steps_per_room", "max_active_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: >= 1")
        if not 0 <= self.baseline_rooms <= self.rooms:
            raise ConfigError(f"baseline_rooms is {self.baseline_rooms}; allowed: 0 to {self.rooms}")


def settings(plan: Plan) -> SemfieldConfig:
    """Budgets of a block: a furnished room."""
    return SemfieldConfig(
        frame=FrameConfig(max_depth_m=5.0),
        memory=MemoryConfig(
            block_m=plan.block_m, max_active_blocks=plan.max_active_blocks, voxel_size_m=0.03, max_voxels=160_000,
            max_keyframes=150, replay_mb=40, min_translation_m=0.15, min_rotation_deg=12, asleep_mb=256,
        ),
        field=FieldConfig(
            geometry_grid=GridConfig(levels=8, log2_table=15, max_resolution=256),
            feature_grid=GridConfig(levels=6, log2_table=15, max_resolution=192),
        ),
        train=TrainConfig(rays=1024, settle_steps=plan.steps_per_room),
    )  # fmt: skip


def undivided(config: SemfieldConfig) -> SemfieldConfig:
    """One map, with all that the blocks in memory have between them."""
    memory, n = config.memory, config.memory.max_active_blocks
    return replace(
        config,
        memory=replace(
            memory, block_m=None, max_voxels=n * memory.max_voxels, max_keyframes=n * memory.max_keyframes,
            replay_mb=n * memory.replay_mb,
        ),
    )  # fmt: skip


@dataclass
class Room:
    """What one more room cost, as of its last frame; and how it is known then and at the end."""

    room: int
    frames: int
    points: int
    blocks: int
    awake: int
    wakes: int
    map_ms: float
    """Of a frame: accepting it and, where it is new, fusing it; without training and encoding beside it."""
    steps_per_s: float
    query_ms: float
    region_ms: float
    resident_mb: float
    disk_mb: float
    miou: float
    miou_end: float = float("nan")


class Walk:
    """A building walked through with one engine; yields a Room after each."""

    def __init__(self, plan: Plan, config: SemfieldConfig, rooms: int):
        from ..sources.simulator_building import Building, BuildingConfig

        self.plan, self.rooms = plan, rooms
        self.building = Building(BuildingConfig(plan.seed, plan.rooms, plan.frames_per_room))
        self.engine = Engine(config, MeasuredEncoder(self.building.class_names, FAULTS, dim=32))
        self.texts: EncodedPrompts = self.engine.prompts.encode(list(self.building.class_names[1:]))
        self.truth = [self.building.surface_points(room, TRUTH_POINTS) for room in range(rooms)]
        self.mapped_s = self.rendered_s = self.trained_s = 0.0

    def miou(self, snapshot: Snapshot, room: int) -> float:
        """Of one room's surface, all classes of the building competing."""
        points, semantic = self.truth[room]
        found = score_points(snapshot, self.texts, points)
        predicted = np.where(found.seen, found.cosine.argmax(1), -1)
        return segmentation(confusion_matrix(predicted, semantic - 1, len(self.building.class_names) - 1)).miou

    def box(self, room: int) -> list[list[float]]:
        """Around a room's surface."""
        points = self.truth[room][0]
        return [points.min(0).tolist(), points.max(0).tolist()]

    def frames(self, room: int) -> Iterator[list[Frame]]:
        """A room's frames, a batch at a time."""
        n = self.plan.frames_per_room
        for first in range(room * n, (room + 1) * n, BATCH):
            started = time.perf_counter()
            batch = [
                self.building.render(self.building.path[i], i / self.building.rate_hz)
                for i in range(first, min(first + BATCH, (room + 1) * n))
            ]
            self.rendered_s += time.perf_counter() - started
            yield batch

    def walk(self) -> Iterator[Room]:
        """Map room after room; the engine must be running and paused."""
        engine, plan = self.engine, self.plan
        batches = -(-plan.frames_per_room // BATCH)
        for room in range(self.rooms):
            mapped_s = trained_s = 0.0
            steps = 0
            for number, batch in enumerate(self.frames(room)):
                started = time.perf_counter()
                for frame in batch:
                    engine.submit(frame, block=True)
                engine.drain()
                mapped_s += time.perf_counter() - started
                share = plan.steps_per_room * (number + 1) // batches - plan.steps_per_room * number // batches
                started = time.perf_counter()
                steps += engine.train(steps=share) if share else 0
                trained_s += time.perf_counter() - started
            self.mapped_s, self.trained_s = self.mapped_s + mapped_s, self.trained_s + trained_s
            snapshot, status = engine.snapshot(fresh=True), engine.status().mapping
            yield Room(
                room=room + 1, frames=status.frames, points=len(snapshot.cloud), blocks=status.blocks,
                awake=status.awake, wakes=status.wakes, map_ms=1000 * mapped_s / plan.frames_per_room,
                steps_per_s=steps / max(trained_s, 1e-9), query_ms=self.ask_ms(["mug"]),
                region_ms=self.ask_ms(["mug"], region=self.box(room)), resident_mb=memory_mb(),
                disk_mb=engine.run(_disk_bytes).result() / 2**20, miou=self.miou(snapshot, room),
            )  # fmt: skip

    def ask_ms(self, prompts: list[str], repeats: int = 3, **options: Any) -> float:
        """Scores and objects of the whole map, the fastest of a few times; the first may have to read blocks."""
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            self.engine.query(prompts, grasps=False, **options)
            times.append(time.perf_counter() - started)
        return 1000 * min(times)


    def score_ms(self, prompts: list[str], points: np.ndarray, repeats: int = 3) -> float:
        """Scores alone, without objects, at points [N, 3] all over the map: likewise."""
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            self.engine.scores(prompts, points)
            times.append(time.perf_counter() - started)
        return 1000 * min(times)


def _disk_bytes(map: Any) -> int:
    return int(map.shelf.disk_bytes) if hasattr(map, "shelf") else 0


def walked(plan: Plan, config: SemfieldConfig, rooms: int, tell: Progress, name: str) -> tuple[list[Room], dict]:
    """Map so many rooms; each room's row, and figures of the whole."""
    walk = Walk(plan, config, rooms)
    found: list[Room] = []
    task = tell.add_task(name, total=rooms)
    with walk.engine as engine:
        engine.pause()
        for room in walk.walk():
            found.append(room)
            tell.advance(task)
        snapshot = engine.snapshot(fresh=True)
        for room in found:
            room.miou_end = walk.miou(snapshot, room.room - 1)
        points = snapshot.cloud.points[:: max(1, -(-len(snapshot.cloud) // SAMPLE))]
        by_prompts = {n: walk.score_ms([f"thing {i}" for i in range(n)], points) for n in PROMPTS}
        started = time.perf_counter()
        first = walk.building.path[0]
        engine.submit(walk.building.render(first, stamp_s=1e6), block=True)
        engine.drain()
        return_ms = 1000 * (time.perf_counter() - started)
        status = engine.status()
    return found, {
        "score_ms_by_prompts": by_prompts, "scored_points": len(points), "return_ms": return_ms,
        "wakes": status.mapping.wakes, "unreadable": status.mapping.unreadable,
        "keyframes": status.used, "mapped_s": walk.mapped_s, "trained_s": walk.trained_s,
        "rendered_s": walk.rendered_s, "steps": status.mapping.steps,
    }  # fmt: skip


def draw(path: Path, rooms: list[Room], baseline: list[Room]) -> None:
    """Costs and quality against rooms, as a picture.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("drawing needs matplotlib: pip install 'semfield_ros[bench]'") from error
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("resident memory [MB]", "resident_mb"), ("training steps a second", "steps_per_s"),
        ("mapping a frame [ms]", "map_ms"), ("one prompt, whole map [ms]", "query_ms"),
        ("mIoU right after the room", "miou"), ("mIoU at the end", "miou_end"),
    )  # fmt: skip
    for axes, (title, name) in zip(figure.subplots(2, 3).flat, panels):
        for label, rows in (("blocks", rooms), ("one map", baseline)):
            if rows:
                axes.plot([r.room for r in rows], [getattr(r, name) for r in rows], "o-", ms=3, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("rooms" if "mIoU" not in title else "room")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def run(plan: Plan, *, console: Console, as_json: bool) -> int:
    """The building in blocks, then its first rooms in one map with the memory of all active blocks."""
    config = settings(plan)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as tell:
        rooms, whole = walked(plan, config, plan.rooms, tell, "blocks")
        peak_mb = peak_rss_mb()
        baseline: list[Room] = []
        if plan.baseline_rooms:
            baseline, _ = walked(plan, undivided(config), plan.baseline_rooms, tell, "one map")
    columns = [
        "rooms", "frames", "points", "blocks", "awake", "ms/frame", "steps/s", "query ms", "in region", "RSS MB",
        "disk MB", "mIoU then", "mIoU end",
    ]  # fmt: skip
    for title, rows in ((f"{plan.rooms} rooms in blocks of {plan.block_m} m", rooms), ("one map", baseline)):
        if rows:
            show_table(console, title, columns, [
                [r.room, r.frames, r.points, r.blocks, r.awake, r.map_ms, r.steps_per_s, r.query_ms, r.region_ms,
                 r.resident_mb, r.disk_mb, r.miou, r.miou_end] for r in rows
            ])  # fmt: skip
    console.print(
        f"peak memory {peak_mb:.0f} MB; {whole['wakes']} wakes; back in the first room, a frame takes "
        f"{whole['return_ms']:.0f} ms; scores at {whole['scored_points']} points by prompts: "
        + ", ".join(f"{n}: {ms:.0f} ms" for n, ms in whole["score_ms_by_prompts"].items())
    )
    if plan.plot is not None:
        draw(plan.plot, rooms, baseline)
        console.print(f"wrote {plan.plot}")
    if as_json:
        shared = [r.miou_end for r in rooms[: len(baseline)]]
        report = {
            "bench": "scale", "rooms": plan.rooms, "frames": rooms[-1].frames, "peak_rss_mb": peak_mb,
            "steps_per_s_first": rooms[0].steps_per_s, "steps_per_s_last": rooms[-1].steps_per_s,
            "map_ms_first": rooms[0].map_ms, "map_ms_last": rooms[-1].map_ms,
            "query_ms_per_million_points": 1e6 * rooms[-1].query_ms / max(1, rooms[-1].points),
            "miou_then": mean([r.miou for r in rooms]), "miou_end": mean([r.miou_end for r in rooms]),
            "first_room_then": rooms[0].miou, "first_room_end": rooms[0].miou_end,
            "baseline_rooms": len(baseline), "miou_end_same_rooms": mean(shared),
            "baseline_miou_end": mean([r.miou_end for r in baseline]),
            "baseline_first_room_end": baseline[0].miou_end if baseline else float("nan"),
            **{k: v for k, v in whole.items() if k != "score_ms_by_prompts"},
            "score_ms_by_prompts": {str(k): v for k, v in whole["score_ms_by_prompts"].items()},
            "by_room": [asdict(r) for r in rooms], "baseline_by_room": [asdict(r) for r in baseline],
        }  # fmt: skip
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0
