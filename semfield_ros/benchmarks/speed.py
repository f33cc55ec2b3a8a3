"""`semfield bench speed`: samples trained a second, beside plain torch in the same run, and how far the limits are.

A replay of a few simulated keyframes, features from the measured encoder (no model is needed), default configuration.
FLOPs and bytes are counted from the shapes of a step: multiply and add are two; bytes are what must be read or written
at least once if every level's table stays in a cache while points pass through it. The limits, a copy and a square
matrix product, are measured in the same run with the same threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ..config import FieldConfig, MemoryConfig, TrainConfig
from ..evaluation.measured import Faults, MeasuredEncoder
from ..field import trainer as trainers
from ..field.hash_grid import choose_backend
from ..field.heads import HeadConfig
from ..field.model import Field
from ..field.trainer import Trainer
from ..field.workspace import Workspace
from ..frame import Frame
from ..geometry import back_project
from ..mapping import colour_head, language_head, pick_device, workspace_around
from ..memory.features import FeatureShape
from ..memory.replay import RayBatch, Replay
from .report import json_line, show_table

COLOUR_INPUTS = 9
"""The viewing direction's spherical harmonics."""


@dataclass(frozen=True)
class Plan:
    """What is measured: the device, keyframes in the replay, steps a measurement and measurements, of which the fastest
    counts (fewer of the baseline, which is slow); edge of the square matrices and floats of the copy that tell the
    machine's limits."""

    device: str = "auto"
    keyframes: int = 8
    warm_up_steps: int = 40
    steps: int = 10
    repeats: int = 20
    baseline_warm_up_steps: int = 3
    baseline_steps: int = 4
    baseline_repeats: int = 4
    matrix: int = 2048
    floats: int = 1 << 26
    train: TrainConfig = field(default_factory=lambda: TrainConfig(depthless_rays=0))
    field: FieldConfig = field(default_factory=FieldConfig)


@dataclass(frozen=True)
class Count:
    """FLOPs and bytes of one step."""

    flops: float
    bytes: float

    def __add__(self, other: Count) -> Count:
        return Count(self.flops + other.flops, self.bytes + other.bytes)


def fastest_s(work: Callable[[], object], repeats: int, device: str) -> float:
    """Seconds of the fastest of several calls, the device's work included."""
    times = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def filled_replay(plan: Plan, device: str) -> tuple[Replay, Workspace, int]:
    """A replay of simulated keyframes with features, the workspace around them, and the features' length."""
    from ..sources.simulator import Simulator, SimulatorConfig

    simulator = Simulator(SimulatorConfig(seed=0, frames=plan.keyframes))
    frames: list[Frame] = list(simulator)
    kinds = 1 + max(int(f.semantic.max()) for f in frames if f.semantic is not None)
    encoder = MeasuredEncoder([str(i) for i in range(kinds)], Faults(), dim=128)
    targets = [encoder.encode_frame(frame) for frame in frames]
    camera, rng = frames[0].camera, np.random.default_rng(0)
    replay = Replay(MemoryConfig(), camera.width, camera.height, FeatureShape.of(targets[0]), device)
    for slot, (frame, target) in enumerate(zip(frames, targets)):
        replay.write(slot, frame, rng)
        replay.write_target(slot, target)
    points = np.concatenate([back_project(f.camera, f.T_world_camera, f.depth_m)[0] for f in frames])
    return replay, workspace_around(points, 1.2), encoder.dim


@dataclass(frozen=True)
class Rate:
    """Of a step: seconds, processor seconds of all threads together, samples and rays trained."""

    step_s: float
    processor_s: float
    samples: float
    rays: float


def trained_rate(trainer: Trainer, replay: Replay, plan: Plan, device: str) -> Rate:
    """The fastest steps, after a warm-up that also compiles."""
    for _ in range(plan.warm_up_steps):
        trainer.step(replay)
    counted: list[tuple[int, int]] = []
    processor: list[float] = []

    def some() -> None:
        started = time.process_time()
        for _ in range(plan.steps):
            report = trainer.step(replay)
            counted.append((report.samples, report.rays))
        processor.append((time.process_time() - started) / plan.steps)

    step_s = fastest_s(some, plan.repeats, device) / plan.steps
    samples, rays = np.mean(counted, axis=0)
    return Rate(step_s, min(processor), float(samples), float(rays))


def limits(plan: Plan, device: str) -> tuple[float, float]:
    """(FLOPs a second of a square float32 product, bytes a second read and written by a copy)."""
    a = torch.rand(plan.matrix, plan.matrix, device=device)
    source = torch.rand(plan.floats, device=device)
    target = torch.empty_like(source)
    a @ a, target.copy_(source)
    product_s = fastest_s(lambda: a @ a, 5, device)
    copy_s = fastest_s(lambda: target.copy_(source), 5, device)
    return 2 * plan.matrix**3 / product_s, 2 * 4 * plan.floats / copy_s


def touched_rows(field: Field, grid: str, positions: torch.Tensor) -> int:
    """Rows of a grid's table that a batch of positions [N, 3] moves."""
    from ..field.hash_grid import corner_rows

    offsets = torch.tensor([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], device=positions.device)
    rows = [
        corner_rows(level, (positions * level.scale + 0.5).floor().long()[:, None] + offsets).unique().numel()
        for level in field.grid(grid).levels
    ]
    return sum(rows)


def grid_count(field: Field, grid: str, positions: torch.Tensor) -> Count:
    """A grid's forward and backward pass over a batch, and Adam on the rows it touched."""
    config = field.grid(grid).config
    cells, table_rows = len(positions) * config.levels, len(field.grid(grid).table)
    touched = touched_rows(field, grid, positions)
    # 8 corners: a product and a sum a feature; their weights 24 operations, their rows 20
    interpolation = cells * (8 * 2 * config.features + 44)
    adam = touched * config.features * 14
    row_bytes = 4 * config.features
    # tables read, gradients read and written; encodings and their gradients too; positions read by each level
    moved = 3 * touched * row_bytes + 4 * cells * row_bytes + 2 * 12 * cells
    # Adam looks at every row's gradient; where it is not zero: table, mean, square and gradient, read and written
    return Count(2 * interpolation + adam, moved + table_rows * row_bytes + 7 * touched * row_bytes)


def mlp_count(samples: float, widths: list[int]) -> Count:
    """An MLP of these widths, forward and backward: three products a layer; its bytes stay in a cache."""
    return Count(3 * 2 * samples * sum(a * b for a, b in pairwise(widths)), 0.0)


def step_count(field: Field, positions: torch.Tensor, rays: float) -> Count:
    """One step of geometry and colour over positions [N, 3]."""
    hidden, inner = field.config.hidden, field.grid("geometry").width
    records = Count(0.0, rays * (4 + 4 + 3 + 1))
    return (
        grid_count(field, "geometry", positions)
        + mlp_count(len(positions), [inner, hidden, 1])
        + mlp_count(rays, [inner + COLOUR_INPUTS, hidden, hidden, 3])
        + records
    )


def sampled(trainer: Trainer, replay: Replay) -> tuple[RayBatch, torch.Tensor]:
    """A batch of rays, and the grid positions [N, 3] of its samples."""
    config, field = trainer.config, trainer.field
    batch = replay.rays(config.rays, config.recent_fraction, trainer.generator)
    z = trainers.depth_guided(
        batch, config.free_samples, config.surface_samples, field.config.truncation_m, trainers.NEAR_M,
        trainer.generator,
    )  # fmt: skip
    points = batch.origins[:, None] + batch.directions[:, None] * torch.cat(z, 1)[..., None]
    return batch, field.workspace.to_unit(points.view(-1, 3))


def parts_ms(trainer: Trainer, replay: Replay, plan: Plan, device: str) -> dict[str, float]:
    """The parts of a step of geometry and colour, each alone; milliseconds."""
    field, config = trainer.field, trainer.config
    grid = field.grid("geometry")
    batch, positions = sampled(trainer, replay)
    computing, table = grid.kernels(), grid.table

    def encode() -> torch.Tensor:
        with torch.no_grad():
            return grid(positions)

    def back() -> None:
        if computing is not None and table.grad is not None:
            computing.backward(positions, upstream, grid.layout, table.grad)
        else:
            grid(positions).backward(upstream)

    def losses() -> None:
        values, _ = trainer._ray_losses(batch)
        torch.stack(list(values.values())).sum().backward()

    def adam() -> None:
        back()
        trainer.grids["geometry"].step(config.learning_rate)

    upstream = torch.randn(len(positions), grid.width, device=device)
    cleared = table.grad = torch.zeros_like(table)
    with quiet(trainer):
        for work in (encode, back, losses, adam):
            work()
        times = {
            name: 1000 * fastest_s(work, plan.repeats, device)
            for name, work in {
                "replay": lambda: replay.rays(config.rays, config.recent_fraction, trainer.generator),
                "grid forward": encode, "grid backward": back, "losses": losses, "adam": adam,
                "MLP adam": trainer.dense.step,
            }.items()
        }  # fmt: skip
    times["adam"] -= times["grid backward"]
    times["MLP and losses"] = times.pop("losses") - times["grid forward"] - times["grid backward"]
    if computing is None:  # plain torch's way back goes the way there once more
        times["grid backward"] -= times["grid forward"]
        times["MLP and losses"] += times["grid forward"]
    cleared.zero_()
    return times


def quiet(trainer: Trainer) -> AbstractContextManager[None]:
    """Parts run as a step does: with the threads of the fused kernels alone, where a step is fused."""
    return trainers.fused.undisturbed() if trainer._fuses("geometry") else nullcontext()


def run(plan: Plan, *, console: Console, as_json: bool) -> int:
    """Measure, count, print."""
    device = pick_device(plan.device)
    replay, workspace, dim = filled_replay(plan, device)

    def trainer_of(config: FieldConfig, *heads: HeadConfig) -> Trainer:
        return Trainer(Field(config, workspace, heads).to(device), plan.train)

    backend = choose_backend(plan.field.backend, device)
    colour, language = colour_head(), language_head(dim)
    plain = replace(plan.field, backend="torch")
    rows: list[list[Any]] = []
    report: dict[str, Any] = {}
    for key, name, trainer in (
        ("", f"{backend}: geometry, colour", trainer_of(plan.field, colour)),
        ("language_", f"{backend}: geometry, colour, language", trainer_of(plan.field, colour, language)),
        ("baseline_", "torch: geometry, colour", trainer_of(plain, colour)),
        ("baseline_language_", "torch: geometry, colour, language", trainer_of(plain, colour, language)),
    ):
        slow = replace(
            plan, warm_up_steps=plan.baseline_warm_up_steps, steps=plan.baseline_steps, repeats=plan.baseline_repeats
        )
        rate = trained_rate(trainer, replay, slow if "baseline" in key else plan, device)
        report |= {
            f"{key}samples_per_s": rate.samples / rate.step_s, f"{key}steps_per_s": 1 / rate.step_s,
            f"{key}samples_per_step": rate.samples, f"{key}samples_per_core_s": rate.samples / rate.processor_s,
        }  # fmt: skip
        rows.append(
            [name, rate.samples, 1000 * rate.step_s, 1 / rate.step_s, rate.samples / rate.step_s,
             rate.samples / rate.processor_s]
        )  # fmt: skip
        if key == "":
            parts = parts_ms(trainer, replay, plan, device)
            parts["the rest"] = 1000 * rate.step_s - sum(parts.values())
            count = step_count(trainer.field, sampled(trainer, replay)[1], rate.rays)
            count = Count(count.flops / rate.samples, count.bytes / rate.samples)
        elif key == "language_":
            parts["language"] = 1000 * rate.step_s - 1000 / report["steps_per_s"]
    peak, bandwidth = limits(plan, device)
    flops, moved = (report["samples_per_s"] * n for n in (count.flops, count.bytes))
    show_table(
        console, f"training steps on {device}, {torch.get_num_threads()} CPU threads",
        ["backend: heads", "samples a step", "ms a step", "steps/s", "samples/s", "samples/core s"], rows,
    )  # fmt: skip
    show_table(console, "parts of a step, each alone", ["part", "ms"], [[k, v] for k, v in parts.items()])
    show_table(
        console, "roofline of geometry and colour", ["", "a sample", "reached, G/s", "limit, G/s", "share"],
        [
            ["float32 operations", count.flops, flops / 1e9, peak / 1e9, flops / peak],
            ["bytes moved", count.bytes, moved / 1e9, bandwidth / 1e9, moved / bandwidth],
        ],
    )  # fmt: skip
    if as_json:
        report |= {
            "bench": "speed", "device": device, "backend": backend, "threads": torch.get_num_threads(),
            "flops_per_sample": count.flops, "bytes_per_sample": count.bytes, "peak_flops_per_s": peak,
            "copy_bytes_per_s": bandwidth, "share_of_flops": flops / peak, "share_of_bandwidth": moved / bandwidth,
            "parts_ms": parts,
        }  # fmt: skip
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0
