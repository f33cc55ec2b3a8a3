"""`semfield bench grasp`: grasps by gradient, beside F3RM's settings on the same map and the geometric planner.

The baseline is F3RM's loop as it is published (Shen et al., CoRL 2023, appendix): 2048 poses at least, 100 query points
each, 200 steps of Adam at 2e-3 on translation and quaternion, whole features of the field in every step. It is run for
a few steps and its time is extrapolated; the report says so.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from rich.console import Console

from ..config import EngineConfig, GraspConfig, GripperConfig, demo_config
from ..engine import Engine
from ..errors import QueryError
from ..field.model import Field
from ..field.snapshot import Snapshot
from ..objects.antipodal_planner import AntipodalPlanner, assessed, usable
from ..objects.grasp_optimiser import (
    OptimiserSettings,
    descend,
    matrices,
    optimise,
    proposals,
    scene_grids,
)
from ..objects.grasp_terms import Terms
from ..objects.grasping import grasp_scene
from ..objects.grasps import GraspScene
from ..objects.wish import wish_of
from ..query.tasks import TaskEmbedding, alpha_at, demonstrate, taught
from ..session import take_in
from .report import json_line, mean, show_table

SEED, FRAMES, TRAIN_STEPS, THINGS = 45, 60, 300, 5
POSES = (64, 256, 1024)
F3RM_POSES, F3RM_STEPS, F3RM_MEASURED = 2048, 200, 2


@dataclass(frozen=True)
class Asked:
    """An object that was found, the space around it with the words as a wish, and a task shown on it."""

    name: str
    scene: GraspScene
    text: np.ndarray
    task: TaskEmbedding

    def with_task(self) -> GraspScene:
        """The scene with both wishes."""
        wish = self.scene.wish
        return self.scene if wish is None else replace(self.scene, wish=replace(wish, task=self.task))


@dataclass(frozen=True)
class Row:
    """Means over objects: seconds and processor seconds to plan one, mean loss and share of poses that hold and are
    free before and after, grasps that are answered and the geometric score of the best."""

    name: str
    poses: int
    seconds: float
    cpu_s: float
    loss_before: float = float("nan")
    loss_after: float = float("nan")
    free_before: float = float("nan")
    free_after: float = float("nan")
    grasps: float = float("nan")
    best: float = float("nan")


def run(*, console: Console, as_json: bool, device: Literal["auto", "cpu", "cuda"] = "auto") -> int:
    """One simulated table, some of its objects; a table, and with `as_json` a line."""
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    snapshot, things = _asked(where)
    gripper, config = GripperConfig(), GraspConfig()
    rows = [_geometric(things, gripper, config)]
    for poses in POSES:
        settings = OptimiserSettings(poses=poses)
        rows.append(_ours(f"by gradient, words, {poses} poses", things, gripper, config, settings, where))
    shown = [replace(thing, scene=thing.with_task()) for thing in things]
    rows.append(_ours("by gradient, words and task", shown, gripper, config, OptimiserSettings(), where))
    step_s = f3rm_step_s(snapshot, things[0])
    name = f"F3RM's settings, {F3RM_MEASURED} of {F3RM_STEPS} steps measured, extrapolated"
    rows.append(Row(name, F3RM_POSES, *(F3RM_STEPS * s for s in step_s)))
    names = ["", "poses", "s", "CPU s", "loss before", "after", "hold, free before", "after", "grasps", "best"]
    show_table(
        console, f"{len(things)} objects of simulator seed {SEED}, {where}, {torch.get_num_threads()} threads", names,
        [list(vars(row).values()) for row in rows],
    )  # fmt: skip
    if as_json:
        report = {"bench": "grasp", "device": where, "threads": torch.get_num_threads(), "objects": len(things),
                  "f3rm_step_s": step_s[0], "rows": [vars(row) for row in rows]}  # fmt: skip
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0


def _asked(device: str) -> tuple[Snapshot, list[Asked]]:
    """A table is scanned, and its objects are asked for by kind; the first few that can be grasped."""
    from ..sources.simulator import Simulator, SimulatorConfig

    simulator = Simulator(SimulatorConfig(seed=SEED, frames=FRAMES))
    base = demo_config()
    with Engine(replace(base, engine=replace(EngineConfig(), device=device))) as engine:
        take_in(engine, simulator, steps=TRAIN_STEPS)
        snapshot = engine.snapshot(fresh=True)
        kinds = list(dict.fromkeys(thing.kind for thing in simulator.objects))
        answer = engine.query(kinds)
        question = engine.prompts.encode(kinds)
    found: list[Asked] = []
    for q, prompt in enumerate(answer.prompts):
        for thing in prompt.objects[:1]:
            if thing.grasps and len(found) < THINGS:
                scene = grasp_scene(answer.cloud, thing, base.objects, base.gripper)
                scene = replace(scene, wish=wish_of(snapshot, question, q))
                try:
                    task = demonstrate(kinds[q], [(snapshot, thing.grasps[0].T_world_gripper)])
                except QueryError:
                    continue
                found.append(Asked(kinds[q], scene, question.positives[question.owner == q][0], task))
    return snapshot, found


def _timed(work: Callable[[], object], device: str, repeats: int = 1) -> tuple[float, float]:
    """Seconds and processor seconds of a run, after one that does not count: it loads kernels."""
    work()
    started, used = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats, (time.process_time() - used) / repeats


def _geometric(things: list[Asked], gripper: GripperConfig, config: GraspConfig) -> Row:
    planner, seconds, grasps, best = AntipodalPlanner(), [], [], []
    for thing in things:
        seconds.append(_timed(functools.partial(planner.plan, thing.scene, gripper, config), "cpu"))
        found = planner.plan(thing.scene, gripper, config).grasps
        grasps.append(float(len(found)))
        best.append(max(grasp.score for grasp in found))
    wall_s, cpu_s = map(mean, zip(*seconds))
    return Row("geometric planner", 0, wall_s, cpu_s, grasps=mean(grasps), best=mean(best))


def _ours(
    name: str, things: list[Asked], gripper: GripperConfig, config: GraspConfig, settings: OptimiserSettings,
    device: str,
) -> Row:  # fmt: skip
    columns: list[list[float]] = []
    for thing in things:
        scene = usable(thing.scene)
        work = functools.partial(optimise, scene, gripper, config, settings, device=device)
        seconds, found = _timed(work, device), work().grasps
        terms = Terms(scene_grids(scene, gripper, settings, device), gripper, config)
        # without the geometric planner's own grasps, and without pruning: the same poses before and after
        start = proposals(scene, gripper, config, terms, settings, ())
        done = descend(terms, start, replace(settings, keep=settings.poses))
        free = [
            len(assessed(scene, gripper, config, *matrices(poses))[0]) / max(1, len(poses.width))
            for poses in (done.start, done.end)
        ]
        T = np.array([grasp.T_world_gripper for grasp in found])
        best = assessed(scene, gripper, config, T, np.array([grasp.contacts for grasp in found]))[0]
        loss = float(done.start_loss.mean()), float(done.end_loss.mean())
        top = max((grasp.score for grasp in best), default=0.0)
        columns.append([*seconds, *loss, *free, float(len(found)), top])
    return Row(name, settings.poses, *map(mean, zip(*columns)))


def f3rm_step_s(
    snapshot: Snapshot, thing: Asked, poses: int = F3RM_POSES, steps: int = F3RM_MEASURED
) -> tuple[float, float]:
    """Seconds and processor seconds of one step of F3RM's loop around an object: features of all query points of all
    poses, from the field.

    The loss is the published one: (1 + how well the mean feature fits the words) x (- cosine with the task's features).
    """
    field, _ = next(taught(snapshot, "language"))
    rng = np.random.default_rng(0)
    device = next(field.parameters()).device
    place = thing.scene.own[rng.integers(0, len(thing.scene.own), poses)]
    t = torch.tensor(place, dtype=torch.float32, device=device).requires_grad_(True)
    q = torch.tensor(rng.normal(size=(poses, 4)), dtype=torch.float32, device=device).requires_grad_(True)
    points, shown, text = (
        torch.tensor(a, dtype=torch.float32, device=device)
        for a in (thing.task.points, thing.task.features, thing.text)
    )
    adam = torch.optim.Adam([t, q], lr=2e-3)

    def step() -> None:
        world = (points @ _rotations(q).transpose(1, 2) + t[:, None]).reshape(-1, 3)
        found = _weighted(field, world).reshape(poses, len(points), -1)
        words = torch.nn.functional.cosine_similarity(found.mean(1), text, dim=-1)
        alike = torch.nn.functional.cosine_similarity(found.flatten(1), shown.flatten(), dim=-1)
        adam.zero_grad()
        (torch.relu(1 + words) * -alike).sum().backward()
        adam.step()

    return _timed(step, device.type, steps)


def _weighted(field: Field, world: torch.Tensor) -> torch.Tensor:
    """alpha x unit features [N, D] at points [N, 3], with derivatives by the points."""
    features = torch.nn.functional.normalize(field.values("language", world), dim=-1)
    return alpha_at(field, world, field.distance(field.encode("geometry", world)))[:, None] * features


def _rotations(q: torch.Tensor) -> torch.Tensor:
    """[P, 3, 3] of quaternions [P, 4] (w x y z) of any length."""
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(-1, 3, 3)
