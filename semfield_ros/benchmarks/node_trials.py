"""Trials of `semfield bench node`: processes that die in the middle, and a long day."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import SemfieldError
from ..node.commands import open_bus
from ..wire.bus import Bus
from .node_account import Account, Watch, longest_pause_s, slope
from .node_processes import START_S, Child, Stage, Wire
from .report import show_table

NODE = "/semfield"
SAVED = "saved"
BUDGET = {"memory.max-keyframes": 20, "memory.max-voxels": 150_000}
"""Of the soak: so small that both are full within a minute, and the stream replaces keyframes and voxels ever after."""
_STEADY_S = 4.0
_DOWN_S = 2.0
_SAVING_S = 0.05
"""Into the saving of a map, the node dies."""
_SAMPLE_S = 5.0
_QUESTION_S = 0.5
_ANSWER_S = 60.0
_SAME = 0.98
"""A map loses a voxel here and there to what is seen through it."""


def _ask(bus: Bus, timeout_s: float = _ANSWER_S) -> Any:
    client = bus.client("semfield_ros/srv/Query", f"{NODE}/query")
    try:
        if not client.wait(timeout_s):
            raise SemfieldError(f"{NODE}/query is not there after {timeout_s:g} s")
        return client.call(bus.new("semfield_ros/srv/Query_Request", prompts=["mug"]), timeout_s)
    finally:
        client.close()


def _save(bus: Bus) -> Any:
    client = bus.client("semfield_ros/srv/SaveMap", f"{NODE}/save_map")
    try:
        client.wait(START_S)
        return client.call(bus.new("semfield_ros/srv/SaveMap_Request", name=SAVED, overwrite=True), _ANSWER_S)
    finally:
        client.close()


class _Scene:
    """A camera, a node and this process on one wire, all of whom may be killed but the last."""

    def __init__(self, stage: Stage, shots: Path, rate_hz: float, settings: dict[str, object]):
        self.stage, self.shots, self.rate_hz, self.settings = stage, shots, rate_hz, settings
        if stage.router:
            self.router = stage.start_router()
            self.router.wait_for(lambda: self.router.said.get("ready"))
        self.node = stage.start_node(settings)
        self.bus = open_bus("semfield_bench", stage.joined)
        self.watch = Watch(self.bus, NODE)
        self.node.wait_for(lambda: self.watch.accounts)
        self.camera = self.start_camera()
        self.watch.until(lambda account: account.steps > 0, _ANSWER_S)

    def start_camera(self) -> Child:
        """A camera that plays."""
        camera = self.stage.start_camera(self.shots, self.rate_hz)
        camera.wait_for(lambda: camera.said.get("ready"))
        camera.say("go")
        return camera

    @property
    def sent(self) -> int:
        """By the camera of now."""
        return int(self.camera.said.get("sent", 0))

    @property
    def last(self) -> Account:
        """The newest account."""
        return self.watch.accounts[-1]

    def at_rest(self) -> tuple[Account, int]:
        """Stop the camera; the account when everything has come to rest, and what this camera has sent."""
        self.camera.say("stop")
        return self.watch.settled(), self.sent

    def go_on(self) -> None:
        """Have the camera play on for a while."""
        self.camera.say("go")
        time.sleep(_STEADY_S)


def kill_trial(
    console: Console, wire: Wire, folder: Path, shots: Path, rate_hz: float, settings: dict[str, object]
) -> dict[str, Any]:
    """SIGKILL for the camera, the router (Zenoh only) and the node in turn, each started again."""
    with Stage(folder, wire, router=wire == "zenoh") as stage:
        scene = _Scene(stage, shots, rate_hz, {**settings, "output.diagnostics-hz": 10.0})
        try:
            time.sleep(_STEADY_S)
            report = {"camera": _kill_camera(scene)}
            if stage.router:
                report["router"] = _kill_router(scene)
            report["node"] = _kill_node(scene)
        finally:
            scene.bus.close()
    show_table(
        console, f"killed and started again, over {wire}",
        ["", "no frames for s", "frames not in", "lost by the node", "remarks"],
        [[who, r["pause_s"], r["frames_not_in"], r["frames_lost"], r.pop("remarks")] for who, r in report.items()],
    )  # fmt: skip
    return report


def _kill_camera(scene: _Scene) -> dict[str, Any]:
    """What was sent and is not in: what was still on its way out of the camera."""
    killed_s = time.monotonic()
    scene.camera.kill()
    rest = scene.watch.settled()
    not_in = scene.sent - rest.received
    scene.camera = scene.start_camera()
    scene.watch.until(lambda account: account.received > rest.received, _ANSWER_S)
    time.sleep(_STEADY_S)
    pause_s = longest_pause_s(scene.watch.accounts, killed_s, time.monotonic())
    return {
        "pause_s": pause_s, "frames_not_in": not_in, "frames_lost": rest.lost,
        "remarks": f"with the {rest.voxels} voxels of before; most of the pause is the camera's own start",
    }  # fmt: skip


def _kill_router(scene: _Scene) -> dict[str, Any]:
    """Those who know each other go on without it; newcomers need it."""
    before, sent = scene.at_rest()
    scene.go_on()
    killed_s = time.monotonic()
    scene.router.kill()
    time.sleep(_DOWN_S)
    scene.router = scene.stage.start_router()
    scene.router.wait_for(lambda: scene.router.said.get("ready"))
    back_s = time.monotonic()
    newcomer = open_bus("semfield_newcomer", scene.stage.joined)
    try:
        _ask(newcomer)
        newcomer_s = time.monotonic() - back_s
    finally:
        newcomer.close()
    time.sleep(_STEADY_S)
    pause_s = longest_pause_s(scene.watch.accounts, killed_s, time.monotonic())
    rest, sent_then = scene.at_rest()
    return {
        "pause_s": pause_s, "frames_not_in": sent_then - sent - (rest.received - before.received),
        "frames_lost": rest.lost, "newcomer_s": newcomer_s, "down_s": back_s - killed_s,
        "remarks": f"down for {back_s - killed_s:.1f} s; a newcomer was answered {newcomer_s:.1f} s after it was back",
    }  # fmt: skip


def _kill_node(scene: _Scene) -> dict[str, Any]:
    """A map is saved; then the node is killed while it saves again, and goes on from what is there."""
    before, sent = scene.at_rest()
    scene.go_on()
    saved = scene.watch.next()
    saved_bytes = _save(scene.bus).size
    saving = threading.Thread(target=_try_to_save, args=(scene.bus,), daemon=True)
    saving.start()
    time.sleep(_SAVING_S)
    last, killed_s = scene.last, time.monotonic()
    scene.node.kill()
    saving.join(START_S)
    scene.node = scene.stage.start_node({**scene.settings, "service.load-on-start": SAVED})
    scene.node.wait_for(lambda: scene.last.at_s > killed_s and scene.last.voxels)
    first, answer = scene.last, _ask(scene.bus)
    answered_s = time.monotonic() - killed_s
    scene.watch.until(lambda account: account.received > 0, _ANSWER_S)
    time.sleep(_STEADY_S)
    pause_s = longest_pause_s(scene.watch.accounts, killed_s, time.monotonic())
    rest, sent_then = scene.at_rest()
    kept = answer.success and first.steps >= saved.steps and first.voxels >= _SAME * saved.voxels
    return {
        "pause_s": pause_s, "frames_not_in": sent_then - sent - (last.received - before.received) - rest.received,
        "frames_lost": rest.lost, "answered_s": answered_s, "kept": bool(kept), "saved_bytes": int(saved_bytes),
        "saved_voxels": saved.voxels, "voxels": first.voxels, "saved_steps": saved.steps, "steps": first.steps,
        "steps_at_death": last.steps,
        "remarks": f"killed while it saved; {'all' if kept else 'NOT all'} that had been saved is there ("
        f"{saved.voxels} voxels, {saved.steps} steps; {first.voxels}, {first.steps} when it was back, {last.steps} "
        f"steps when it died); answered after {answered_s:.1f} s",
    }  # fmt: skip


def _try_to_save(bus: Bus) -> None:
    with suppress(SemfieldError):  # the node dies meanwhile
        _save(bus)


def _full(account: Account) -> bool:
    """Whether the budgets are used up; voxels come and go."""
    keyframes, voxels = BUDGET.values()
    return account.keyframes >= keyframes and account.voxels >= 0.95 * voxels


def soak_trial(
    console: Console, wire: Wire, folder: Path, shots: Path, rate_hz: float, settings: dict[str, object],
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """A stream, training and questions for a long time, under small budgets: once those are full, memory must not
    grow."""
    samples: list[tuple[float, Account]] = []
    queries = failed = 0
    with Stage(folder, wire) as stage:
        scene = _Scene(stage, shots, rate_hz, {**settings, **BUDGET})
        try:
            started = time.monotonic()
            while (now_s := time.monotonic() - started) < seconds:
                if not samples or now_s - samples[-1][0] >= _SAMPLE_S:
                    scene.node.check()
                    samples.append((now_s, replace(scene.last, rss_mb=scene.node.usage().rss_mb)))
                try:
                    failed += not _ask(scene.bus).success
                except SemfieldError:
                    failed += 1
                queries += 1
                time.sleep(_QUESTION_S)
            rest, sent = scene.at_rest()
        finally:
            scene.bus.close()
    full_s = next((t for t, a in samples if _full(a)), float("nan"))
    late = [(t, a.rss_mb) for t, a in samples if t >= max(full_s, seconds / 3)]
    growth = 60 * slope([t for t, _ in late], [mb for _, mb in late])
    minutes = [(t, a) for k, (t, a) in enumerate(samples) if k == 0 or t // 60 > samples[k - 1][0] // 60]
    rows = [
        [f"{t / 60:.1f}", a.received, a.used, a.keyframes, a.voxels, a.steps, a.rss_mb]
        for t, a in dict([*minutes, samples[-1]]).items()
    ]
    show_table(
        console, f"{seconds:g} s over {wire}; {BUDGET}, full after {full_s:.0f} s",
        ["minute", "frames in", "used", "keyframes", "voxels", "steps", "resident MB"], rows,
    )  # fmt: skip
    console.print(
        f"growth after {max(full_s, seconds / 3):.0f} s: {growth:+.2f} MB a minute; {rest.received} frames in, "
        f"{rest.lost} lost; "
        f"{queries} questions, {failed} not answered"
    )
    return {
        "seconds": seconds, "budget_full_s": full_s, "growth_mb_per_min": growth,
        "rss_mb": [a.rss_mb for _, a in minutes],
        "frames_sent": sent, "frames_in": rest.received, "frames_used": rest.used, "frames_lost": rest.lost,
        "frames_dropped": dict(rest.unused), "queries": queries, "queries_failed": failed,
    }  # fmt: skip
