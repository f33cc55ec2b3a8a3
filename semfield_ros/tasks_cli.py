"""`semfield task record | show | list`: ways to hold things, shown once and asked for afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, UseAppendAction

from .config import demo_config
from .errors import CheckpointError, ConfigError, QueryError

if TYPE_CHECKING:
    from .engine import Engine

FOLDER = Path("tasks")
# tables stay whole where there is no terminal to say how wide it is
console = Console(width=None if sys.stdout.isatty() else 120)

PoseNumbers = tuple[float, float, float, float, float, float, float]
Poses = Annotated[tuple[PoseNumbers, ...], UseAppendAction]


def pose_matrix(numbers: Sequence[float]) -> np.ndarray:
    """T_world_gripper [4, 4] of x y z (metres, global_frame) and a quaternion qx qy qz qw of length 1.

    Raises:
        QueryError: not 7 finite numbers, or a quaternion that is none.
    """
    from scipy.spatial.transform import Rotation

    values = np.asarray(numbers, np.float64)
    if values.shape != (7,) or not np.isfinite(values).all():
        raise QueryError(f"a pose is {list(numbers)}; expected 7 finite numbers: x y z qx qy qz qw")
    length = float(np.linalg.norm(values[3:]))
    if abs(length - 1) > 1e-2:
        raise QueryError(f"a quaternion has length {length:.3g}; allowed is 1 (order: qx qy qz qw)")
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_quat(values[3:]).as_matrix(), values[:3]
    return T


def record(
    name: Positional[str],
    map: Path | None = None,
    pose: Poses = (),
    simulator: int | None = None,
    object: str = "",
    part: str = "",
    frames: int = 120,
    train_s: float = 12.0,
    head: str = "language",
    out: Path | None = None,
    overwrite: bool = False,
) -> int:
    """Record how something is held. What counts is what the map knows around the fingertips, not the place.

    An existing file of the same task gets the new demonstrations added; more of them, on different things, make it
    mind what they have in common. Ask for it with `semfield query MAP "mug" --task FILE`: words say which object, the
    task says how. Example:

        semfield task record hang --map kitchen.semfield --pose 0.42 0.10 0.17 1 0 0 0

    Args:
        name: of the task; it is reported under it.
        map: the .semfield of the scene that it is shown in.
        pose: x y z qx qy qz qw of the gripper in the map's frame, metres (repeat the flag). Origin midway between the
            fingertips, x closes, z approaches: pointing straight down is a quaternion of 1 0 0 0.
        simulator: instead of a map, scan the simulator's table of this seed and show it the best geometric grasp.
        object: with the simulator: of what, e.g. "red mug".
        part: with the simulator: by which part, e.g. handle.
        frames: with the simulator: of the scan.
        train_s: with the simulator: seconds of training after it.
        head: whose features: language, or a teacher's (teacher_...).
        out: the file; default: tasks/NAME.task.
        overwrite: start it anew instead of adding to it.
    """
    from .query.tasks import SUFFIX, demonstrate, load_task, merged, save_task

    if (map is None) == (simulator is None):
        raise ConfigError("give either --map with --pose, or --simulator with --object")
    if map is not None and (not pose or object or part):
        raise ConfigError("--map takes one or several --pose x y z qx qy qz qw; --object and --part are --simulator's")
    if simulator is not None and (pose or not object):
        raise ConfigError('--simulator takes --object "red mug", perhaps --part handle, and no --pose')
    path = out or FOLDER / f"{name.strip().replace(' ', '_')}{SUFFIX}"
    path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
    engine, shown = _loaded(map, pose) if map is not None else _scanned(simulator or 0, object, part, frames, train_s)
    snapshot, key = engine.snapshot(), engine.encoder.cache_key
    task = demonstrate(name, [(snapshot, T) for T in shown], head=head, encoder=key)
    if path.exists() and not overwrite:
        task = merged(load_task(path, key), task)
    save_task(path, task, overwrite=True)
    console.print(f"wrote {path}: {task.demonstrations} demonstration(s) of {task.name!r}", soft_wrap=True)
    return 0


def _loaded(map: Path, pose: Sequence[Sequence[float]]) -> tuple[Engine, list[np.ndarray]]:
    """A saved map and the poses shown in it."""
    from .checkpoint import saved_config
    from .engine import Engine

    shown = [pose_matrix(numbers) for numbers in pose]
    with Engine(saved_config(map)) as engine:
        engine.pause()
        engine.load(map)
    return engine, shown


def _scanned(seed: int, thing: str, part: str, frames: int, train_s: float) -> tuple[Engine, list[np.ndarray]]:
    """The simulator's table, scanned, and the best geometric grasp of a thing on it.

    Raises:
        QueryError: it is not found, or cannot be grasped.
    """
    from .engine import Engine
    from .session import feed
    from .sources.simulator import Simulator, SimulatorConfig

    prompt = f"{thing} > {part}" if part else thing
    with Engine(demo_config()) as engine:
        engine.prompts.encode([prompt])  # an unusable prompt is refused before any work
        feed(engine, Simulator(SimulatorConfig(seed=seed, frames=frames)), total=frames, train_s=train_s)
        engine.snapshot(fresh=True)
        found = engine.query([prompt]).prompts[0]
    if not found.objects:
        raise QueryError(f"{prompt!r} was not found on the table of seed {seed}; name another object or seed")
    best = found.objects[0]
    if part and best.part is None:
        raise QueryError(f"the {part} of {thing!r} was not found on the table of seed {seed}; name another part")
    if not best.grasps:
        why = ", ".join(f"{reason} ({count})" for reason, count in best.rejected.items())
        raise QueryError(f"{prompt!r} cannot be grasped on the table of seed {seed}: {why or 'no candidates'}")
    return engine, [best.grasps[0].T_world_gripper]


def show(file: Positional[Path]) -> int:
    """What a task file holds.

    Args:
        file: a .task file that `semfield task record` wrote.
    """
    _table([file], strict=True)
    return 0


def list_tasks(folder: Positional[Path] = FOLDER) -> int:
    """The tasks of a folder; files that cannot be read are named with the reason.

    Args:
        folder: where `semfield task record` wrote them.
    """
    from .query.tasks import SUFFIX

    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; record a task first, or name the folder of your .task files")
    _table(sorted(folder.glob(f"*{SUFFIX}")), strict=False)
    return 0


def _table(files: Sequence[Path], strict: bool) -> None:
    from .query.tasks import load_task

    table = Table(title=f"{len(files)} task(s)")
    for column in ("task", "file", "demonstrations", "head", "features", "solid", "encoder"):
        table.add_column(column, justify="right" if column in ("demonstrations", "features", "solid") else "left")
    for file in files:
        try:
            task = load_task(file)
        except CheckpointError as error:
            if strict:
                raise
            table.add_row("?", file.name, "", "", "", "", str(error))
            continue
        solid = float(np.linalg.norm(task.features, axis=1).mean())
        dim = str(task.features.shape[1])
        table.add_row(
            task.name, file.name, str(task.demonstrations), task.head, f"{len(task.points)} x {dim}", f"{solid:.2f}",
            task.encoder or "unknown",
        )  # fmt: skip
    console.print(table)


def main(arguments: Sequence[str]) -> int:
    """`semfield task ...`; returns the exit code."""
    commands: dict[str, Callable[..., int]] = {"record": record, "show": show, "list": list_tasks}
    code: int = tyro.extras.subcommand_cli_from_dict(
        commands, args=list(arguments), prog="semfield task",
        description="Ways to hold things, shown by example: record them, look at them, ask with `query --task FILE`.",
    )  # fmt: skip
    return code


def task(action: Positional[str], file: Positional[tuple[str, ...]] = ()) -> int:
    """Ways to hold things, shown by example: record NAME | show FILE | list [FOLDER].

    `semfield task record NAME --map MAP.semfield --pose x y z qx qy qz qw` writes what the map knows around a gripper
    pose into tasks/NAME.task; `semfield query MAP "mug" --task tasks/NAME.task` then ranks grasps by how much they are
    like it. `semfield task record --help` tells all flags.

    Args:
        action: record, show or list.
        file: what each takes.
    """
    return main([action, *file])
