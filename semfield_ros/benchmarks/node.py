"""`semfield bench node`: the node as a process, a camera as another, and what comes of 640x480 RGB-D at 30 Hz.

Every image is accounted for; questions are asked over the wire while the node fuses and trains. The baselines, in the
same run: the same node before the camera starts, and the same map when nothing else is going on.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..errors import SemfieldError
from ..node.commands import open_bus
from ..wire.bus import Bus
from .node_account import Account, Watch
from .node_camera import HEIGHT, WIDTH, write_shots
from .node_processes import START_S, Child, Stage, Usage, Wire
from .node_trials import kill_trial, soak_trial
from .report import json_line, show_table

NODE = "/semfield"
PROMPTS = ("mug", "bottle")
SETTINGS: dict[str, object] = {
    "frame.max-depth-m": 1.6, "memory.voxel-size-m": 0.004, "memory.min-translation-m": 0.06,
    "memory.min-rotation-deg": 6.0, "train.settle-steps": 0, "output.diagnostics-hz": 2.0,
}  # fmt: skip
"""The demo's, but for the voxels: so small that the simulated table has about 200,000 of them. Training never rests."""
CLIENTS = 20
PATIENCE_S = 60.0
"""For one answer, and for the map to be whole, on however slow a machine."""
_VARIANTS: dict[str, dict[str, bool]] = {
    "objects": {}, "and grasps": {"with_grasps": True}, "and object clouds": {"with_object_clouds": True},
    "and the scored cloud": {"with_cloud": True},
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How long and how much; what the tests make small."""

    wire: Wire = "zenoh"
    seed: int = 7
    shots: int = 120
    rate_hz: float = 30.0
    idle_s: float = 3.0
    stream_s: float = 15.0
    query_hz: float = 2.0
    clients: int = CLIENTS
    repeats: int = 3
    soak_s: float = 0.0
    kill: bool = False
    settings: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """One answered question: how long it took, the size of the answer on the wire, what was wrong ('' = nothing)."""

    seconds: float
    size_bytes: int
    error: str = ""


class Asker:
    """A client of `~/query`."""

    def __init__(self, bus: Bus):
        self.bus = bus
        self.client = bus.client("semfield_ros/srv/Query", f"{NODE}/query")

    def ask(self, **options: bool) -> Reply:
        """Ask for two things."""
        request = self.bus.new(
            "semfield_ros/srv/Query_Request", prompts=list(PROMPTS),
            options=self.bus.new("semfield_ros/msg/QueryOptions", **options),
        )  # fmt: skip
        started = time.perf_counter()
        try:
            response = self.client.call(request, PATIENCE_S)
        except SemfieldError as error:
            return Reply(time.perf_counter() - started, 0, str(error))
        seconds = time.perf_counter() - started
        return Reply(seconds, len(self.bus.types.encode(response)), response.message)

    def ask_for(self, seconds: float, rate_hz: float) -> list[Reply]:
        """Ask at a steady rate; a question waits for the answer before it."""
        replies, due_s = [], time.monotonic()
        end_s = due_s + seconds
        while due_s < end_s:
            time.sleep(max(0.0, due_s - time.monotonic()))
            replies.append(self.ask())
            due_s = max(due_s + 1 / rate_hz, time.monotonic())
        return replies

    def close(self) -> None:
        """Ask no more."""
        self.client.close()


def percentiles_ms(replies: Sequence[Reply]) -> tuple[float, float]:
    """p50 and p99 of the answered, nan if none was."""
    seconds = [r.seconds for r in replies if not r.error]
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3 if seconds else (float("nan"), float("nan"))
    return float(p50), float(p99)


def run(plan: Plan, *, console: Console, as_json: bool) -> int:
    """The benchmark, and the trials that the plan asks for."""
    with tempfile.TemporaryDirectory(prefix="semfield_bench_") as name:
        folder = Path(name)
        shots = folder / "shots.npz"
        prepare(shots, plan)
        report: dict[str, Any] = {"bench": "node", "wire": plan.wire, "cores": os.cpu_count(), **stream(plan, shots)}
        show(console, plan, report)
        settings = {**SETTINGS, **plan.settings, "service.map-folder": folder / "maps"}
        if plan.kill:
            report["kill"] = kill_trial(console, plan.wire, folder, shots, plan.rate_hz, settings)
        if plan.soak_s:
            report["soak"] = soak_trial(console, plan.wire, folder, shots, plan.rate_hz, settings, plan.soak_s)
    if as_json:
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0


def prepare(shots: Path, plan: Plan) -> None:
    """Half a turn around the simulated table, at the pace of the demo."""
    from ..sources.simulator import Simulator, SimulatorConfig

    simulator = Simulator(SimulatorConfig(seed=plan.seed, frames=2 * plan.shots))
    write_shots(shots, list(islice(iter(simulator), plan.shots)))


@dataclass
class _Run:
    """What is there while the node runs."""

    node: Child
    camera: Child
    watch: Watch
    bus: Bus
    asker: Asker


def stream(plan: Plan, shots: Path) -> dict[str, Any]:
    """One node, from its start to its end."""
    settings = {**SETTINGS, **plan.settings, "service.map-folder": shots.parent / "maps"}
    with Stage(shots.parent, plan.wire) as stage:
        node = stage.start_node(settings)
        bus = open_bus("semfield_bench", stage.joined)
        try:
            asker, watch = Asker(bus), Watch(bus, NODE)
            node.wait_for(lambda: asker.client.wait(0.1))
            watch.next(START_S)
            idle = _usage_over(node, plan.idle_s)
            camera = stage.start_camera(shots, plan.rate_hz)
            camera.wait_for(lambda: camera.said.get("ready"))
            report = _measure(plan, _Run(node, camera, watch, bus, asker))
        finally:
            bus.close()
    report |= {"cpu_percent_idle": idle[0], "rss_mb_idle": idle[1].rss_mb}
    return report


def _usage_over(child: Child, seconds: float) -> tuple[float, Usage]:
    before = child.usage()
    time.sleep(seconds)
    child.check()
    after = child.usage()
    return after.percent_since(before), after


def _measure(plan: Plan, at: _Run) -> dict[str, Any]:
    at.camera.say("go")
    whole = _map_is_whole(at.watch, plan.shots / plan.rate_hz)
    before, used_before = at.watch.next(), at.node.usage()
    replies = at.asker.ask_for(plan.stream_s, plan.query_hz)
    after, used_after = at.watch.next(), at.node.usage()
    variants = {name: [at.asker.ask(**how) for _ in range(plan.repeats)] for name, how in _VARIANTS.items()}
    crowd = _crowd(at.bus, plan.clients)
    at.camera.say("stop")
    end = at.watch.settled(PATIENCE_S)
    sent, missed = at.camera.said.get("sent", 0), at.camera.said.get("missed", 0)
    _pause(at.bus, True)
    quiet = [at.asker.ask() for _ in range(2 * plan.repeats)]
    at.node.check()
    seconds = after.at_s - before.at_s
    (p50, p99), (quiet_p50, quiet_p99), (crowd_p50, crowd_p99) = map(percentiles_ms, (replies, quiet, crowd))
    asked = [*replies, *crowd, *quiet, *(r for rs in variants.values() for r in rs)]
    return {
        "frames_sent": sent, "frames_missed_by_camera": missed, "frames_in": end.received,
        "frames_used": end.used, "frames_skipped": end.skipped, "frames_lost": end.lost,
        "frames_lost_on_the_wire": sent - end.received, "frames_dropped": dict(end.unused),
        "features_dropped": end.features_dropped,
        "frames_in_hz": (after.received - before.received) / seconds,
        "frames_handled_hz": (after.handled - before.handled) / seconds,
        "query_p50_ms": p50, "query_p99_ms": p99, "queries": len(replies),
        "query_points": after.voxels, "query_quiet_p50_ms": quiet_p50, "query_quiet_p99_ms": quiet_p99,
        "answers": {
            name: {"bytes": max(r.size_bytes for r in rs), "p50_ms": percentiles_ms(rs)[0]}
            for name, rs in variants.items()
        },
        "clients": plan.clients, "clients_answered": sum(not r.error for r in crowd),
        "clients_p50_ms": crowd_p50, "clients_p99_ms": crowd_p99,
        "errors": sorted({r.error for r in asked if r.error}),
        "callback_p50_ms": end.callback_p50_ms, "callback_p99_ms": end.callback_p99_ms,
        "cpu_percent": used_after.percent_since(used_before), "rss_mb": used_after.rss_mb,
        "steps_per_s": (after.steps - before.steps) / seconds, "keyframes": end.keyframes, "whole_map_s": whole,
    }  # fmt: skip


def _map_is_whole(watch: Watch, pass_s: float) -> float:
    """Wait until a whole pass of the camera has not made the map grow by a hundredth; how long it took."""
    started = time.monotonic()
    mark: list[Account] = []

    def grown(account: Account) -> bool:
        if not mark or not account.voxels or account.voxels > 1.01 * mark[-1].voxels:
            mark.append(account)
        return bool(account.voxels) and account.at_s - mark[-1].at_s >= pass_s

    watch.until(grown, PATIENCE_S)
    return time.monotonic() - started


def _crowd(bus: Bus, clients: int) -> list[Reply]:
    """So many clients who all ask at once."""
    askers = [Asker(bus) for _ in range(clients)]
    for asker in askers:
        asker.client.wait(START_S)
    together = threading.Barrier(clients)

    def ask(asker: Asker) -> Reply:
        together.wait()
        return asker.ask()

    with ThreadPoolExecutor(clients) as pool:
        replies = list(pool.map(ask, askers))
    for asker in askers:
        asker.close()
    return replies


def _pause(bus: Bus, paused: bool) -> None:
    client = bus.client("std_srvs/srv/SetBool", f"{NODE}/pause")
    client.wait(START_S)
    client.call(bus.new("std_srvs/srv/SetBool_Request", data=paused), PATIENCE_S)
    client.close()


def show(console: Console, plan: Plan, r: dict[str, Any]) -> None:
    """The report as tables."""
    dropped = ", ".join(f"{reason} {count}" for reason, count in r["frames_dropped"].items()) or "none"
    title = f"{WIDTH}x{HEIGHT} RGB-D at {plan.rate_hz:g} Hz over {plan.wire}, the node training, {r['cores']} cores"
    columns = {
        "sent": "frames_sent", "too late for the camera": "frames_missed_by_camera", "in": "frames_in",
        "keyframes": "frames_used", "nothing new": "frames_skipped", "lost": "frames_lost",
        "lost on the wire": "frames_lost_on_the_wire",
    }  # fmt: skip
    show_table(console, title, [*columns, "dropped, by reason"], [[*(r[key] for key in columns.values()), dropped]])
    show_table(
        console, "the node, and the same node before the camera started",
        ["", "CPU % of a core", "resident MB", "steps/s", "frames/s in", "frames/s used or skipped", "callback p99 ms"],
        [["streaming, training, asked", r["cpu_percent"], r["rss_mb"], r["steps_per_s"], r["frames_in_hz"],
          r["frames_handled_hz"], r["callback_p99_ms"]],
         ["idle", r["cpu_percent_idle"], r["rss_mb_idle"], 0.0, 0.0, 0.0, float("nan")]],
    )  # fmt: skip
    nan = float("nan")
    rows: list[list[Any]] = [
        [f"~/query, {plan.query_hz:g} Hz", r["query_p50_ms"], r["query_p99_ms"], r["answers"]["objects"]["bytes"]],
        ["the same, camera and training stopped", r["query_quiet_p50_ms"], r["query_quiet_p99_ms"], "-"],
        [f"{r['clients_answered']} of {r['clients']} clients at once", r["clients_p50_ms"], r["clients_p99_ms"], "-"],
        *([f"objects {name}", a["p50_ms"], nan, a["bytes"]] for name, a in r["answers"].items() if name != "objects"),
    ]
    show_table(
        console, f"two prompts, a map of {r['query_points']} points, over {plan.wire}",
        ["asked", "p50 ms", "p99 ms", "answer bytes"], rows,
    )  # fmt: skip
    for error in r["errors"]:
        console.print(f"[red]not answered:[/] {error}")
