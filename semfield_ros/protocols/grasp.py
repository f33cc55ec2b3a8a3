"""Grasp trials in physics: unseen cluttered tables, asked in words, each answer executed by a parallel gripper.

The same planner on the field, on the point map and on exact geometry: what fails on exact geometry is the planner's or
the gripper's fault, what fails only on a map is perception's. What counts as what: `evaluation.grasp_trials`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tyro.conf import Positional

from ..config import GripperConfig, SemfieldConfig, demo_config, require

if TYPE_CHECKING:
    from ..evaluation.grasp_stage import Film, StageConfig
    from ..evaluation.grasp_trials import Following, Outcome, Tally

COLUMNS = {
    "right_object": "right object", "part_found": "part found", "right_part": "right part", "lifted": "lifted",
    "held": "held", "held_as_asked": "as asked", "collided": "collided", "abstained": "abstained",
}  # fmt: skip
"""Of the table: figure -> heading."""


@dataclass(frozen=True)
class Plan:
    """Ask for objects and parts on unseen cluttered tables, lift what is answered, in MuJoCo's physics.

    Every scene settles, a camera goes round it once, the field trains. Then: prompts for objects, for parts of objects,
    and for what is not there; the best grasp of the best object is executed (approach, close by force, lift 0.2 m,
    shake), each time from the same settled scene. Last, one object is taken away and the map has to follow.
    """

    source: Positional[str] = "simulator"
    """simulator, the one source with physics."""
    first_seed: int = 20
    """Scenes 20 to 44 are reported; planners were tuned on 45 and beyond."""
    seeds: int = 25
    """Scenes."""
    prompts: int = 10
    """Prompts a scene: a fifth of them absent, of the rest half with a part."""
    maps: tuple[Literal["field", "points", "truth"], ...] = ("field", "points", "truth")
    """What the planner plans on; the first one is the headline, and the one whose following is measured."""
    planner: str = "antipodal"
    """antipodal, another of this package, or module:attribute."""
    gripper: str = "parallel"
    """parallel, panda_hand, robotiq_2f85, or a YAML file of the dimensions of another."""
    frames: int = 90
    """Frames once around the table."""
    width: int = 320
    """Of the frames, in pixels."""
    steps: int = 600
    """Training steps after the last frame, about 15 s of an idle core; so many however busy the machine is."""
    train_s: float = 15.0
    """Seconds of training where `steps` is 0."""
    search: int = 12
    """Grasps on exact geometry tried before an object or part counts as one that cannot be held."""
    follow: bool = True
    """Take an object away at the end of a scene and see whether the map follows."""
    workers: int = 2
    """Processes, one thread each, that share the scenes; 0 = this one."""
    out: Path | None = None
    """Folder for outcomes.jsonl, a contact sheet and a video of the trials."""
    tiles: int = 60
    """Trials on the contact sheet: failures first."""
    video: bool = True
    """Whether `out` gets a video."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        require(self.source == "simulator", "source", self.source, "simulator: no recording has physics")
        for name in ("seeds", "prompts", "frames", "search", "tiles"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(self.first_seed >= 0, "first_seed", self.first_seed, ">= 0")
        require(self.train_s >= 0 and self.steps >= 0, "train_s, steps", (self.train_s, self.steps), ">= 0")
        require(self.width >= 32, "width", self.width, ">= 32")
        require(0 <= self.workers <= 64, "workers", self.workers, "0 to 64")
        require(len(set(self.maps)) == len(self.maps) > 0, "maps", self.maps, "at least one, each once")


OUTCOMES = "outcomes.jsonl"
Scene = tuple[list["Outcome"], "Following | None", "list[Film]"]


def run(plan: Plan, console: Console) -> int:
    """Run the plan; returns the exit code."""
    from ..evaluation.grasp_trials import tally

    config, stage = configured(plan)
    outcomes: list[Outcome] = []
    followings: list[Following] = []
    films: list[Film] = []
    if plan.out is not None:
        (plan.out / OUTCOMES).unlink(missing_ok=True)
    with _bar(console) as bar:
        task = bar.add_task("scenes", total=plan.seeds)
        for seed, (these, following, shot) in _scenes(plan, config, stage):
            outcomes += these
            films += shot
            followings += [following] if following is not None else []
            bar.advance(task)
            if not console.is_terminal:
                held = [o.held for o in these if o.map == plan.maps[0] and not o.absent and o.possible]
                console.print(f"scene {seed}: {sum(held)} of {len(held)} held", highlight=False)
            if plan.out is not None:
                _write(plan.out / OUTCOMES, [*these, *([following] if following is not None else [])])
    tallies: dict[str, Tally] = {name: tally([o for o in outcomes if o.map == name]) for name in plan.maps}
    _show(console, plan, tallies, followings)
    if plan.out is not None:
        from ..evaluation.grasp_pictures import write_pictures

        for path in write_pictures(plan.out, films, tiles=plan.tiles, video=plan.video):
            console.print(f"wrote {path}", highlight=False)
    if plan.json:
        from ..benchmarks.report import json_line

        console.print(json_line(report(plan, tallies, followings)), soft_wrap=True, highlight=False, markup=False)
    return 0


def configured(plan: Plan) -> tuple[SemfieldConfig, StageConfig]:
    """The demonstration's settings with the plan's planner and gripper, and how a scene is staged."""
    from ..evaluation.grasp_stage import StageConfig

    config = demo_config()
    config = replace(
        config, grasp=replace(config.grasp, planner=plan.planner), gripper=GripperConfig(model=plan.gripper)
    )
    if plan.workers:
        config = replace(config, engine=replace(config.engine, threads=1))
    stage = StageConfig(
        frames=plan.frames, rate_hz=plan.frames / ROUND_S, width=plan.width, train_s=plan.train_s, steps=plan.steps,
        prompts=plan.prompts, maps=plan.maps, search=plan.search, follow=plan.follow,
        film=plan.out is not None,
    )  # fmt: skip
    return config, stage


ROUND_S = 12.0
"""Seconds of stream that the camera takes once around the table."""


def report(plan: Plan, tallies: dict[str, Tally], followings: list[Following]) -> dict[str, Any]:
    """The last line: the first map's figures at its top, every map's below."""
    from ..evaluation.grasp_trials import GOALS, PUBLISHED, tally_following

    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(plan).items()}
    return {
        "protocol": "grasp", "source": plan.source, "map": plan.maps[0], "scenes": plan.seeds,
        **tallies[plan.maps[0]].json, **tally_following(followings),
        "maps": {name: each.json for name, each in tallies.items()},
        "published": PUBLISHED, "goals": GOALS, "settings": settings,
    }  # fmt: skip


def _scene(seed: int, config: SemfieldConfig, stage: StageConfig) -> Scene:
    """One scene, in whatever process."""
    from ..evaluation.grasp_stage import Stage

    on = Stage(seed, config, stage)
    outcomes, following = on.run()
    return outcomes, following, on.films


def _scenes(plan: Plan, config: SemfieldConfig, stage: StageConfig) -> Iterator[tuple[int, Scene]]:
    seeds = range(plan.first_seed, plan.first_seed + plan.seeds)
    if not plan.workers:
        for seed in seeds:
            yield seed, _scene(seed, config, stage)
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    with _single_threads(), ProcessPoolExecutor(plan.workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_scene, seed, config, stage): seed for seed in seeds}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _single_threads() -> Iterator[None]:
    """Processes started within use one thread each."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:>9}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn(), console=console,
        disable=not console.is_terminal,
    )  # fmt: skip


def _write(path: Path, items: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(item)) + "\n" for item in items)


def _show(console: Console, plan: Plan, tallies: dict[str, Tally], followings: list[Following]) -> None:
    """Tables: the shares beside what is published, why requests failed, how the map followed."""
    from ..benchmarks.report import show_table
    from ..evaluation.grasp_trials import GOALS, PUBLISHED, SOURCES, tally_following

    rows: list[list[Any]] = []
    for name, each in tallies.items():
        cells = [f"{s.share:.2f} ({s.trials})" if (s := each.shares[key]).trials else "-" for key in COLUMNS]
        rows.append([name, *cells, each.json["answer_s"]["median"]])
    for name, known in PUBLISHED.items():
        rows.append([name, *(f"{known[key]:.2f}" if key in known else "" for key in COLUMNS), ""])
    rows.append(["goal", *(f"{GOALS[key]:.2f}" if key in GOALS else "" for key in COLUMNS), ""])
    last = plan.first_seed + plan.seeds - 1
    show_table(
        console, f"{plan.seeds} simulated tables (seeds {plan.first_seed} to {last}), {plan.prompts} prompts each, "
        f"{plan.planner}: shares (of so many)",
        ["planned on", *COLUMNS.values(), "answer s"], rows,
    )  # fmt: skip
    console.print(SOURCES, highlight=False)
    reasons = sorted({reason for each in tallies.values() for reason in each.reasons})
    if reasons:
        table = {reason: [each.reasons.get(reason, 0) for each in tallies.values()] for reason in reasons}
        counts = [[reason, *row] for reason, row in sorted(table.items(), key=lambda item: -sum(item[1]))]
        show_table(console, "why what can be held was not held as asked", ["reason", *tallies], counts)
    if followings:
        told = tally_following(followings)
        show_table(
            console, "after one object was lifted and taken away, seconds of stream",
            ["old place silent, median s", "of", "others kept", "of", "second request held", "of"],
            [[
                told["follows_s"]["median"], f"{told['follows_s']['silent']}/{told['follows_s']['trials']}",
                told["others_kept"]["share"], told["others_kept"]["trials"],
                told["second_held"]["share"], told["second_held"]["trials"],
            ]],
        )  # fmt: skip
