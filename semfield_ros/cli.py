"""The command line: `semfield demo | run | query | export | node | publish | ask | bench | eval | build | task`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from tyro.conf import Positional, UseAppendAction, arg

from .config import SemfieldConfig, demo_config
from .config_io import from_yaml
from .errors import ConfigError, SemfieldError
from .node.commands import ask, node, publish
from .node.config import NodeConfig
from .tasks_cli import main as task_main
from .tasks_cli import task

if TYPE_CHECKING:
    from .answer import Answer
    from .engine import Engine
    from .evaluation.simulated import Truth
    from .field.snapshot import Snapshot
    from .query.prompt import EncodedPrompts
    from .sources import Source

T = TypeVar("T")

# tables stay whole where there is no terminal to say how wide it is
console = Console(stderr=True, width=None if sys.stderr.isatty() else 110)

Queries = Annotated[tuple[str, ...], UseAppendAction, arg(aliases=["-q"], metavar="TEXT")]
Settings = Annotated[SemfieldConfig, arg(name="")]


def demo(
    seed: int = 7,
    frames: int = 240,
    rate: float = 1.0,
    train_s: float = 12.0,
    query: Queries = (),
    out: Path = Path("out"),
) -> int:
    """Watch a simulated robot camera scan a table, a field grow, and words find objects (about a minute).

    Writes clouds, objects with grasps, the map and a picture into the output folder, and prints how right the answers
    are: the simulator knows the truth. Needs the extra [sim].

    Args:
        seed: which table is laid; 0 to 99 were never used to train the embedded encoder.
        frames: length of the camera's path around the table, at 30 Hz.
        rate: speed of the replay; 1 = real time, with frames dropped as a live stream would. 0 = as fast as possible.
        train_s: seconds of training after the last frame.
        query: what to look for (repeat the flag; synonyms separated by ";", or "mug; handle" for a part of an object).
            Default: what is on the table.
        out: output folder; files of the same names are overwritten.
    """
    from .evaluation.simulated import Truth
    from .evaluation.simulated import rate as score
    from .progress import show_answer
    from .sources.simulator import Simulator, SimulatorConfig
    from .sources.simulator_objects import KINDS

    simulator = Simulator(SimulatorConfig(seed=seed, frames=frames))
    truth = Truth.of(simulator, [kind.name for kind in KINDS])
    prompts = list(query) or _interesting(truth)
    config = demo_config()
    console.print(
        f"[bold]A table with {len(truth.kinds)} things[/] (simulator seed {seed}). "
        f"Looking for: {', '.join(prompts)}"
    )
    title = f"semfield demo, seed {seed}"
    engine, snapshot, answer = _session(simulator, config, prompts, rate or None, train_s, out, title)
    table = Table(title="Against the simulator's exact truth, every kind and colour + kind asked for")
    for column in ("map", "right object", "absent: no match", "mIoU", "accuracy"):
        table.add_column(column, justify="right")
    sources: tuple[Literal["points", "field"], ...] = ("points", "field")
    for source in sources:
        s = score(truth, snapshot, engine.prompts, config, source=source)
        table.add_row(
            source, f"{s.localisation:.0%} of {s.prompts}", f"{s.no_match:.0%} of {s.absent}",
            f"{s.miou:.2f}", f"{s.accuracy:.2f}",
        )  # fmt: skip
    show_answer(console, answer)
    console.print(table)
    return 0


def _interesting(truth: Truth) -> list[str]:
    """A few kinds, two coloured ones and one absent thing."""
    kinds = list(dict.fromkeys(truth.kinds))
    coloured = [f"{c} {k}" for c, k in zip(truth.colours, truth.kinds) if truth.kinds.count(k) > 1]
    coloured += [f"{c} {k}" for c, k in zip(truth.colours, truth.kinds)]
    return [*kinds[:3], *dict.fromkeys(coloured[:2]), *truth.absent[:1]]


def run(
    source: Positional[str],
    query: Queries = (),
    out: Path = Path("out"),
    rate: float = 0.0,
    width: int | None = 320,
    stride: int = 1,
    limit: int | None = None,
    train_s: float = 10.0,
    settings: Settings = SemfieldConfig(),  # noqa: B008 (tyro's way to give defaults)
) -> int:
    """Map a recording or the simulator, ask for things, write everything into a folder.

    Args:
        source: simulator, simulator:SEED, bag:PATH (rosbag2: MCAP or SQLite), or a folder in the layout of 7-Scenes,
            TUM RGB-D, Replica (Semantic-NeRF's or NICE-SLAM's), ScanNet, Panoptic Lifting, or nerfstudio's
            transforms.json with depth (LERF, F3RM). The layout is known by its files, or named: scannet:PATH.
            PATH?split=train takes the frames its layout trains with, PATH?labels=nyu13 one of its label sets.
        query: what to look for (repeat the flag; synonyms separated by ";", or "mug; handle" for a part of an object).
        out: output folder; files of the same names are overwritten.
        rate: 0 = as fast as possible, every frame; 1 = real time, with frames dropped as a live stream would.
        width: frames are resampled to this width in pixels; None = as they are.
        stride: use every n-th frame.
        limit: use at most so many frames.
        train_s: seconds of training after the last frame.
        settings: every other setting; `--config FILE.yaml` before them gives other defaults.
    """
    from .progress import show_answer
    from .sources import open_source

    stream = open_source(source, width=width, stride=stride, limit=limit, frame_config=settings.frame)
    _, _, answer = _session(stream, settings, list(query), rate or None, train_s, out, f"semfield, {stream.name}")
    show_answer(console, answer)
    gate = getattr(stream, "gate", None)
    if gate is not None and gate.rejected:
        console.print(f"[yellow]rejected frames:[/] {dict(gate.rejected)}; last: {gate.last_error}")
    return 0


def _session(
    stream: Source, config: SemfieldConfig, prompts: list[str], rate: float | None, train_s: float, out: Path,
    title: str,
) -> tuple[Engine, Snapshot, Answer | None]:
    """Feed a stream with a progress display, answer, write files; returns engine (stopped), snapshot and answer."""
    from .benchmarks.report import peak_rss_mb
    from .engine import Engine
    from .progress import LiveProgress
    from .results import write_results
    from .session import feed
    from .sources.playback import play

    if train_s < 0 or (rate is not None and rate <= 0):
        raise ConfigError(f"train_s is {train_s} and rate {rate}; allowed: >= 0")
    engine = Engine(config)
    if prompts:
        engine.prompts.encode(prompts)  # unusable prompts are refused before any work
    playback = play(stream, rate)
    with engine, LiveProgress(console, train_s) as live:
        session = feed(
            engine, playback, total=len(stream), live=rate is not None, train_s=train_s, report=live.update
        )
        if not session.frames:
            raise ConfigError(f"{stream.name} gave no usable frame")
        snapshot = engine.snapshot(fresh=True)
        live.say("asking and writing")
        answer = engine.query(prompts) if prompts else None
        if answer is not None:
            files = write_results(out, engine, session, answer, prompts, title)
        else:
            files = [engine.save(out / "map", overwrite=True)]
    dropped = playback.dropped + engine.status().dropped.get("queue_full", 0)
    console.print(
        f"{session.frames} frames in {session.mapping_s:.1f} s ({dropped} dropped as late), "
        f"{snapshot.step} steps, {len(snapshot.cloud)} voxels, peak memory {peak_rss_mb():.0f} MB"
    )
    console.print("wrote " + ", ".join(str(f) for f in files), soft_wrap=True)
    return engine, snapshot, answer


def query(
    map: Positional[Path],
    text: Positional[tuple[str, ...]] = (),
    source: Literal["auto", "field", "points", "ensemble"] = "auto",
    task: tuple[Path, ...] = (),
    out: Path | None = None,
) -> int:
    """Ask a saved map.

    Args:
        map: a .semfield file that `run` or `demo` wrote.
        text: what to look for, one or several; synonyms separated by ";", as in "mug; cup". A known part word asks for
            that part of the object: "mug; handle", "the white mug by its handle"; any other does behind ">": "drill >
            chuck". Grasps are on the part alone then.
        source: which map answers.
        task: tasks that were demonstrated (.task files of `semfield task`), asked for like texts. What they find is
            held as it was shown; with one task, so is what the texts find: words say which object, the task says how.
        out: folder for clouds and objects.json; nothing is written without it.
    """
    from .checkpoint import saved_config
    from .engine import Engine
    from .progress import show_answer
    from .results import write_answer

    config = saved_config(map)
    with Engine(config) as engine:
        engine.pause()
        engine.load(map)
        asked: list[str] | EncodedPrompts = list(text)
        if task:
            from .query.tasks import load_task, with_tasks

            tasks = [load_task(path, engine.encoder.cache_key) for path in task]
            asked = with_tasks(engine.prompts, list(text), tasks)
        answer = engine.query(asked, source=source)
    show_answer(console, answer)
    if out is not None:
        files = write_answer(out, answer, config.gripper)
        console.print("wrote " + ", ".join(str(f) for f in files), soft_wrap=True)
    return 0


def export(
    map: Positional[Path],
    out: Positional[Path],
    format: Literal["ply", "mesh", "classes", "openlex3d"] = "ply",
    vocabulary: Queries = (),
    resolution_m: float = 0.01,
    overwrite: bool = False,
) -> int:
    """Write a saved map for another program.

    Args:
        map: a .semfield file.
        out: the .ply to write, or the folder for openlex3d.
        format: ply = the coloured point map. mesh = the field's surface, also as PLY; classes = the same in the colours
            of the classes that labels taught it. openlex3d = a prediction folder of the OpenLex3D benchmark: points
            with their features, which are only comparable with words of the encoder that made the map.
        vocabulary: of openlex3d: things to part the map into (repeat the flag), one feature each; without it every
            point keeps its own.
        resolution_m: of a mesh.
        overwrite: replace what has that name.
    """
    from .checkpoint import saved_config
    from .engine import Engine
    from .node.exports import write_cloud, write_field_mesh, write_semantic_mesh
    from .node.labelling import label_map
    from .openlex3d import write_openlex3d

    with Engine(saved_config(map)) as engine:
        engine.pause()
        engine.load(map)
        snapshot = engine.snapshot()
        if format == "openlex3d":
            things = label_map(snapshot, engine.prompts.encode(list(vocabulary)), engine) if vocabulary else None
            instance = None if things is None else things.instance
            points, embeddings = write_openlex3d(out, snapshot, instance=instance, overwrite=overwrite)
            console.print(f"wrote {out}: {points} points, {embeddings} embeddings")
            return 0
        if format == "ply":
            points = write_cloud(out, snapshot, engine, overwrite=overwrite)
        else:
            write = write_field_mesh if format == "mesh" else write_semantic_mesh
            points = write(out, snapshot, engine, resolution_m, overwrite=overwrite)
    console.print(f"wrote {out}: {points} {'points' if format == 'ply' else 'vertices'}")
    return 0


def bench(
    what: Positional[
        Literal[
            "online", "query", "geometry", "memory", "simulator", "calibrate", "node", "loop_closure", "ablation",
            "speed", "scale", "changes", "unbounded", "peers", "grasp",
        ]
    ],
    source: str = "simulator",
    json: bool = False,
    seeds: int = 6,
    train_s: float = 15.0,
    frames: int = 3000,
    text_table: Path | None = None,
    wire: Literal["zenoh", "rclpy"] = "zenoh",
    soak_s: float = 0.0,
    kill: bool = False,
    rooms: int = 20,
    frames_per_room: int = 500,
    plot: Path | None = None,
    only: str = "",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    semantic_nerf: Path | None = None,
) -> int:
    """Measure, against a baseline in the same run; prints a table and, with --json, one JSON line at the end.

    Args:
        what: online = a stream mapped and asked; field beside point map (the voxel average).
            query = prompts against a million points, factored beside naive.
            geometry = signed distance beside density, learnt from the same depth.
            memory = a long stream against small budgets.
            simulator = frames a second of the simulated camera.
            calibrate = thresholds of the embedded encoder on scenes kept for that.
            ablation = features of known faults, averaged in voxels, trained into the field, and both.
            loop_closure = keyframe poses that drifted are corrected; how fast map and field follow.
            node = the ROS 2 node, a camera and clients as processes on a wire.
            scale = a building of many rooms in blocks of space, beside one map; memory, speed, and what is forgotten.
            changes = objects are removed, moved, added, exchanged; how soon answers follow, what is lost at rest.
            speed = samples trained a second, beside plain torch; how far the machine's limits are.
            unbounded = pixels whose depth the sensor cannot tell, learnt from colour or not.
            grasp = grasps by gradient, beside F3RM's settings and the geometric planner.
            peers = published settings on this engine, and Semantic-NeRF's own code where it is given.
        source: simulator, or a 7-Scenes folder with objects.json (held-out depth, colour and labelled boxes).
        json: end with one line of JSON.
        seeds: simulator scenes, from seed 0.
        train_s: seconds of training.
        frames: length of the long stream.
        text_table: for a folder: the text vectors of the `precomputed` encoder.
        wire: of the node; rclpy needs a sourced ROS 2.
        soak_s: of the node: so many seconds more, and how memory grows.
        only: of the ablation: settings whose name contains this.
        kill: of the node: camera, router and node are killed in the middle.
        rooms: of scale.
        frames_per_room: of scale.
        plot: of scale: a picture to write.
        device: of speed and grasp.
        semantic_nerf: of peers: a checkout of Semantic-NeRF's code, run as another program beside ours.
    """
    from .benchmarks import ablation, calibrate, changes, geometry, loop_closure, memory, online, scale, speed
    from .benchmarks import node as nodes
    from .benchmarks import query as queries
    from .benchmarks import simulator as camera

    # tables stay whole where there is no terminal to say how wide it is
    wide = Console() if sys.stdout.isatty() else Console(width=120)
    if what == "geometry":
        return geometry.run(source, console=wide, as_json=json, train_s=train_s)
    if what == "query":
        return queries.run(console=wide, as_json=json)
    if what == "changes":
        return changes.run(source, console=wide, as_json=json, seeds=seeds, train_s=train_s)
    if what == "calibrate":
        return calibrate.run(console=wide, as_json=json, seeds=seeds, train_s=train_s)
    if what == "ablation":
        return ablation.run(
            console=wide, as_json=json, seeds=seeds, train_s=train_s, only=only, source=source, text_table=text_table
        )
    if what == "loop_closure":
        return loop_closure.run(console=wide, as_json=json, seeds=seeds, train_s=train_s)
    if what == "simulator":
        return camera.run(console=wide, as_json=json)
    if what == "node":
        plan = nodes.Plan(wire=wire, stream_s=train_s, soak_s=soak_s, kill=kill)
        return nodes.run(plan, console=wide, as_json=json)
    if what == "unbounded":
        from .benchmarks import unbounded

        return unbounded.run(console=wide, as_json=json, seeds=seeds, train_s=train_s)
    if what == "peers":
        from .benchmarks import peers

        return peers.run(console=wide, as_json=json, seeds=seeds, train_s=train_s, semantic_nerf=semantic_nerf)
    if what == "grasp":
        from .benchmarks import grasp

        return grasp.run(console=wide, as_json=json, device=device)
    if what == "speed":
        return speed.run(speed.Plan(device=device), console=wide, as_json=json)
    if what == "scale":
        building = scale.Plan(rooms, frames_per_room, baseline_rooms=min(8, rooms), plot=plot)
        return scale.run(building, console=wide, as_json=json)
    if what == "memory":
        return memory.run(console=wide, as_json=json, frames=frames)
    return online.run(source, console=wide, as_json=json, seeds=seeds, train_s=train_s, text_table=text_table)


def evaluate(protocol: Positional[str], source: Positional[str] = "simulator") -> int:
    """Evaluate as a published system is, beside baselines of the same run: a table and, with --json, a line of JSON.

    Args:
        protocol: `semfield eval --help` lists them, `semfield eval PROTOCOL --help` tells its flags.
        source: simulator, or what the protocol takes.
    """
    return _evaluate([protocol, source])


def _evaluate(arguments: list[str]) -> int:
    """`semfield eval`, whose flags are the protocol's own."""
    from .protocols import main as evaluate_protocol

    # tables stay whole where there is no terminal to say how wide it is
    return evaluate_protocol(arguments, Console() if sys.stdout.isatty() else Console(width=120))


def build(
    source: Positional[tuple[str, ...]],
    out: Path = Path("maps"),
    block_m: float | None = None,
    jobs: int = 1,
    steps: int = 2000,
    retries: int = 2,
    cluster: str = "",
    width: int | None = 320,
    stride: int = 1,
    limit: int | None = None,
    overwrite: bool = False,
    settings: Settings = SemfieldConfig(),  # noqa: B008 (tyro's way to give defaults)
) -> int:
    """Build maps of recordings offline, several at once: same source, settings and steps, same bytes, however many.

    Args:
        source: recordings as `run` takes them; each becomes a .semfield in the output folder.
        out: output folder; on a cluster, one that all its machines see.
        block_m: cut each recording into cubes of this edge, jobs of their own; None = a map in one piece.
        jobs: how many at once; more than one needs Ray, the extra [build].
        steps: of training, a job.
        retries: of a job that fails.
        cluster: address of a running Ray cluster; '' = this machine.
        width: frames are resampled to this width in pixels; None = as they are.
        stride: use every n-th frame.
        limit: use at most so many frames.
        overwrite: replace maps of those names.
        settings: every other setting.
    """
    from contextlib import nullcontext
    from dataclasses import replace

    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from .offline import Here, Recording
    from .offline import build as build_maps
    from .offline_ray import RayPool

    if block_m is not None:
        settings = replace(settings, memory=replace(settings.memory, block_m=block_m))
    recordings = [Recording(uri, width, stride, limit) for uri in source]
    several = RayPool(jobs, cluster) if jobs > 1 or cluster else nullcontext(Here())
    bars = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
    tasks: dict[str, object] = {}
    with several as pool, bars:

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)  # type: ignore[arg-type]

        report = build_maps(
            recordings, settings, out, steps=steps, pool=pool, retries=retries, overwrite=overwrite, tell=tell
        )
    table = Table(title=f"{len(report.done)} maps or blocks built, {report.repeated} attempts repeated")
    for column in ("file", "frames", "keyframes", "voxels", "steps", "s"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for done in report.done:
        name = str(done.path.relative_to(out) if done.path.is_relative_to(out) else done.path)
        table.add_row(name, *map(str, (done.frames, done.keyframes, done.voxels, done.steps)), f"{done.seconds:.1f}")
    console.print(table)
    for job, error in report.failed:
        where = job.recording.uri if job.cell is None else f"block {job.cell} of {job.recording.uri}"
        console.print(f"[red]given up:[/] {where}: {error}", soft_wrap=True)
    console.print("wrote " + (", ".join(str(path) for path in report.maps) or "nothing"), soft_wrap=True)
    return 1 if report.failed else 0


COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo, "run": run, "query": query, "export": export, "node": node, "publish": publish, "ask": ask,
    "bench": bench, "eval": evaluate, "build": build, "task": task,
}  # fmt: skip


def _with_preset(arguments: list[str], base: T) -> tuple[list[str], T]:
    """Take `--config FILE` out of the arguments: its settings become the defaults of the flags."""
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--config":
            rest = arguments[:i] + arguments[i + (1 if value else 2) :]
            value = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
            return rest, from_yaml(value, base)
    return arguments, base


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `semfield`; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    handler = RichHandler(console=console, show_path=False, show_time=False)
    # open_clip logs every step of making a model on the root logger; people want to read ours
    handler.addFilter(lambda record: record.name.startswith("semfield_ros"))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler], force=True)
    commands = dict(COMMANDS)
    try:
        if arguments[:1] == ["eval"]:
            return _evaluate(arguments[1:])
        if arguments[:1] == ["task"]:
            return task_main(arguments[1:])
        for name, command, base in (
            ("run", run, SemfieldConfig()), ("build", build, SemfieldConfig()), ("node", node, NodeConfig()),
        ):  # fmt: skip
            if arguments[:1] == [name]:
                arguments, preset = _with_preset(arguments, base)
                if preset != base:
                    command.__defaults__ = (*command.__defaults__[:-1], preset)  # type: ignore[index]
        code: int = tyro.extras.subcommand_cli_from_dict(
            commands, args=arguments, prog="semfield",
            description="Robots that know what they see: RGB-D in, a field to ask in words, objects and grasps out.",
        )  # fmt: skip
        return code
    except SemfieldError as error:
        console.print(f"[red]{type(error).__name__}:[/] {error}", markup=True, highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
