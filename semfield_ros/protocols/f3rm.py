"""F3RM's protocol (Shen et al., CoRL 2023): features distilled into a field, asked in words and by demonstration.

The same frames and the same encoder's features teach three systems for the same time: this project's field as it comes,
its field with F3RM's released settings (grids, head, loss, a feature for every ray; `config/f3rm.yaml` with the encoder
left as it is), and the voxel average. Rated are words (the right object, classes of the surface), how near features of
held-out views are to what the encoder says of them, and few-shot tasks: a gripper pose is shown on an object of one
scene, and of all objects of another scene the one most like it should be of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from tyro.conf import Positional

from ..config import (
    FieldConfig,
    GridConfig,
    HeadsConfig,
    LanguageConfig,
    SemfieldConfig,
    TrainConfig,
    VolumeConfig,
    demo_config,
    require,
)

if TYPE_CHECKING:
    from ..encoders.base import Encoder
    from ..engine import Engine
    from ..evaluation.simulated import Truth
    from ..field.snapshot import Snapshot
    from ..frame import Frame

OURS, RELEASED, VOXELS = "this field", "F3RM's settings", "voxel average"
HELD_OUT_PIXELS = 1000


@dataclass(frozen=True)
class Plan:
    """Features distilled into a field and asked in words and by demonstration (F3RM), beside its released settings."""

    source: Positional[str] = "simulator"
    """simulator, simulator:SEED (words, tasks, held-out features), or any recording (held-out features alone)."""
    seeds: int = 3
    """Scenes of the simulator; tasks are shown in one and asked in another."""
    frames: int = 120
    """Frames that are mapped."""
    held_out: int = 8
    """Views that features are compared in."""
    width: int = 320
    """Of the frames, in pixels."""
    stride: int = 5
    """Of a recording every so manieth frame is mapped, and those half-way between them are compared."""
    train_s: float = 15.0
    """Seconds of training after the last frame, for each system."""
    steps: int = 0
    """Training steps instead of seconds; 0 = seconds."""
    reduction: int = 8
    """F3RM's settings take so many times fewer rays a step than its 4096: a machine without a GPU gets nowhere else."""
    out: Path | None = None
    """Folder for views of the last scene in PCA colours, one projection for all of them."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        for name in ("seeds", "frames", "held_out", "stride", "reduction"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(self.train_s >= 0 and self.steps >= 0, "train_s, steps", (self.train_s, self.steps), ">= 0")
        require(self.width >= 32, "width", self.width, ">= 32")


def released(config: SemfieldConfig, reduction: int = 1) -> SemfieldConfig:
    """The configuration with F3RM's released field, head and training in place of its own; the rest stays.

    Args:
        reduction: divides rays and features of a step.
    """
    shape = GridConfig(levels=16, features=2, log2_table=19, min_resolution=8, max_resolution=1024)
    feature = GridConfig(levels=12, features=8, log2_table=19, min_resolution=8, max_resolution=64)
    coarse = replace(VolumeConfig().coarse_grid, log2_table=17, min_resolution=8, max_resolution=64)
    volume = replace(
        config.field.volume, coarse_samples=256, fine_samples=96, samples=48, coarse_grid=coarse,
        fine_grid=replace(coarse, max_resolution=128),
    )  # fmt: skip
    field: FieldConfig = replace(config.field, geometry_grid=shape, feature_grid=feature, hidden=64, volume=volume)
    language = LanguageConfig(layers=2, frequencies=6, unit=False, loss="l2", weight=1e-3)
    heads: HeadsConfig = replace(config.heads, language=language)
    rays = max(64, 4096 // reduction)
    train: TrainConfig = replace(
        config.train, rays=rays, feature_patches=rays, window_rays=1, through_window=False, fit_window=False,
        smoothness=0.0, recent_fraction=0.0, learning_rate=1e-2, decay_steps=30_000, settle_steps=30_000,
    )  # fmt: skip
    return replace(config, field=field, heads=heads, train=train)


@dataclass(frozen=True)
class Outcome:
    """One system on one scene. Shares in [0, 1], nan where there is no truth; `feature_cosine`: held-out views."""

    localisation: float
    miou: float
    accuracy: float
    no_match: float
    feature_cosine: float
    steps: int


@dataclass(frozen=True)
class Example:
    """A scene to show or ask tasks in: its map, and of each object its kind and a gripper pose [4, 4] on top of it."""

    snapshot: Snapshot
    kinds: list[str]
    poses: np.ndarray


def run(plan: Plan, console: Console) -> int:
    """All systems on all scenes; a table, and with `json` a line."""
    from ..benchmarks.report import json_line, mean, show_table

    found: dict[str, list[Outcome]] = {OURS: [], RELEASED: [], VOXELS: []}
    examples: dict[str, list[Example]] = {OURS: [], RELEASED: []}
    simulated = plan.source == "simulator" or plan.source.startswith("simulator:")
    first = int(plan.source.partition(":")[2] or 0) if simulated else 0
    classes: tuple[str, ...] = ()
    base = demo_config() if simulated else SemfieldConfig()
    for seed in range(first, first + plan.seeds if simulated else first + 1):
        train, held_out, truth = _simulated(plan, seed) if simulated else (*_recorded(plan), None)
        classes = truth.classes if truth is not None else classes
        for name, config in ((OURS, base), (RELEASED, released(base, plan.reduction))):
            engine, snapshot = _mapped(plan, config, train)
            maps = {name: "field"} | ({VOXELS: "points"} if name == OURS else {})
            for system, source in maps.items():
                found[system].append(_rated(engine, snapshot, truth, held_out, config, source))
            if truth is not None:
                examples[name].append(_example(snapshot, truth))
            if plan.out is not None:
                _write_views(plan.out, name, snapshot, held_out)
            console.print(f"scene {seed}, {name}: {snapshot.step} steps", highlight=False)
    tasks = {name: few_shot(shown) for name, shown in examples.items()}
    columns = ["", "right object", "mIoU", "accuracy", "no match", "held-out cosine", "task: right kind", "steps"]
    rows = [
        [
            name, *(mean([getattr(o, c) for o in outcomes]) for c in ("localisation", "miou", "accuracy", "no_match",
            "feature_cosine")), tasks.get(name, (float("nan"), 0))[0],
            mean([float(o.steps) for o in outcomes]) if name != VOXELS else float("nan"),
        ]
        for name, outcomes in found.items()
    ]  # fmt: skip
    budget = f"{plan.steps} steps" if plan.steps else f"{plan.train_s:g} s"
    title = f"F3RM's protocol on {plan.source}, {budget} of training each; its settings with rays / {plan.reduction}"
    show_table(console, title, columns, rows)
    if plan.json:
        metrics = {
            name: {
                **{c: mean([getattr(o, c) for o in outcomes]) for c in Outcome.__dataclass_fields__},
                "task_right": tasks.get(name, (float("nan"), 0))[0], "tasks": tasks.get(name, (0, 0))[1],
            }
            for name, outcomes in found.items()
        }  # fmt: skip
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(plan).items()}
        report = {
            "protocol": "f3rm", "source": plan.source, "metrics": metrics, "classes": list(classes),
            "settings": settings, "encoder": base.encoder.name,
        }  # fmt: skip
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0


def few_shot(examples: Sequence[Example]) -> tuple[float, int]:
    """Of all (object shown in one scene, other scene with its kind), the share whose best match is of that kind."""
    from ..query.tasks import demonstrate

    right = []
    for i, shown in enumerate(examples):
        for j, asked in enumerate(examples):
            for kind in sorted(set(shown.kinds) & set(asked.kinds)) if i != j else ():
                pose = shown.poses[shown.kinds.index(kind)]
                task = demonstrate(kind, [(shown.snapshot, pose)])
                best = int(task.similarity(asked.snapshot, asked.poses).argmax())
                right.append(asked.kinds[best] == kind)
    return (float(np.mean(right)) if right else float("nan")), len(right)


def feature_cosine(snapshot: Snapshot, encoder: Encoder, frames: Sequence[Frame], source: str) -> float:
    """Mean cosine between what a map says of the surface in other views and what the encoder measures there."""
    from ..geometry import back_project
    from ..query.tasks import field_features

    rng, found = np.random.default_rng(0), []
    for frame in frames:
        target = encoder.encode_frame(frame)
        points, pixel = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
        row = target.cell_of_pixels(frame.camera.width, frame.camera.height).reshape(-1)[pixel]
        at = snapshot.rows_of(points)
        usable = np.flatnonzero((row >= 0) & (at >= 0))
        usable = usable[snapshot.measured[at[usable]]]
        pick = rng.choice(usable, min(HELD_OUT_PIXELS, len(usable)), replace=False)
        if not len(pick):
            continue
        measured = target.values[row[pick]]
        if source == "field":
            assert snapshot.field is not None
            known = field_features(snapshot.field, points[pick])[1]
        else:
            known = np.asarray(snapshot.features[at[pick]], np.float32)
            known /= np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-6)
        found.append(float((known * measured).sum(1).mean()))
    return float(np.mean(found)) if found else float("nan")


def _simulated(plan: Plan, seed: int) -> tuple[list[Frame], list[Frame], Truth]:
    from ..evaluation.simulated import Truth
    from ..sources.simulator import Simulator, SimulatorConfig
    from ..sources.simulator_objects import KINDS

    height = max(24, plan.width * 3 // 4)
    simulator = Simulator(SimulatorConfig(seed=seed, frames=plan.frames, width=plan.width, height=height, processes=0))
    poses = simulator.path(2 * plan.held_out + 1)[1::2]
    held_out = [simulator.render(T, noisy=True) for T in poses[: plan.held_out]]
    return list(simulator), held_out, Truth.of(simulator, [kind.name for kind in KINDS])


def _recorded(plan: Plan) -> tuple[list[Frame], list[Frame]]:
    from ..sources import open_source

    frames = list(open_source(plan.source, width=plan.width, limit=plan.frames * plan.stride))
    train, between = frames[:: plan.stride], frames[plan.stride // 2 :: plan.stride] if plan.stride > 1 else frames
    return train, between[:: max(1, len(between) // plan.held_out)][: plan.held_out]


def _mapped(plan: Plan, config: SemfieldConfig, frames: Sequence[Frame]) -> tuple[Engine, Snapshot]:
    from ..engine import Engine
    from ..session import take_in

    with Engine(config) as engine:
        take_in(engine, frames, steps=plan.steps, train_s=plan.train_s)
        return engine, engine.snapshot(fresh=True)


def _rated(
    engine: Engine, snapshot: Snapshot, truth: Truth | None, held_out: Sequence[Frame], config: SemfieldConfig,
    source: Any,
) -> Outcome:  # fmt: skip
    from ..evaluation.simulated import rate

    cosine = feature_cosine(snapshot, engine.encoder, held_out, source)
    if truth is None:
        nan = float("nan")
        return Outcome(nan, nan, nan, nan, cosine, snapshot.step)
    score = rate(truth, snapshot, engine.prompts, config, source)
    return Outcome(score.localisation, score.miou, score.accuracy, score.no_match, cosine, snapshot.step)


def _example(snapshot: Snapshot, truth: Truth) -> Example:
    """Gripper poses that come from above, fingertips a centimetre inside each object's box."""
    poses = []
    for T_world_box, half in truth.boxes:
        top = T_world_box[:3, 3].copy()
        top[2] += float(np.abs(T_world_box[2, :3]) @ half) - 0.01
        pose = np.diag([1.0, -1.0, -1.0, 1.0])
        pose[:3, 3] = top
        poses.append(pose)
    return Example(snapshot, list(truth.kinds), np.stack(poses))


def _write_views(folder: Path, name: str, snapshot: Snapshot, frames: Sequence[Frame]) -> None:
    """Views of one map with one projection, as PNG."""
    from ..query.pca import PcaColours, write_png
    from ..query.view import render_view

    colours = PcaColours()
    for i, frame in enumerate(frames[:4]):
        view = render_view(snapshot, frame.camera, frame.T_world_camera, features=True)
        assert view.features is not None
        write_png(folder / f"{name.split()[0].lower().replace(chr(39), '')}-{i}", colours(view.features))
