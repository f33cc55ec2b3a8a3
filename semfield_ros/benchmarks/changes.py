"""`semfield bench changes`: objects are removed, moved, added and exchanged; how soon a running map follows.

The encoder is one of known faults, so what is measured is the memory. Time is the stream's: between two frames the
field trains as often as `STEPS_HZ` says, however fast the machine is. The baseline is the same stream with
`memory.forget` off; what must not be forgotten is measured beside it (`changes_static`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..answer import answer
from ..config import SemfieldConfig, demo_config
from ..errors import QueryError
from ..evaluation.measured import Faults, MeasuredEncoder
from ..frame import Frame, within_range
from ..mapping import Mapping
from ..memory.features import FeatureShape
from ..query.prompt import PromptEncoder
from ..query.scores import Source
from . import changes_static
from .report import json_line, mean, show_table

SOURCES: tuple[Source, ...] = ("field", "points", "auto")
FAULTS = Faults(patch_px=8, window_px=12, noise=0.3, wrong_views=0.1)
RATE_HZ, STEPS_HZ = 15.0, 20.0
"""Frames, and training steps, a second of stream."""
WIDTH = 240
LEARN_S, EVENT_S = 4.0, 6.0
"""Seconds of stream before the scene is known, and after each event."""
CALM_S = 2.0
"""Seconds of stream between that and the first event."""
POLL_FRAMES = 4
MATCH, HIGH = 0.85, 0.9
"""Relevancies: its class is at least .4 of a feature of this encoder, .45 in the middle of an object."""


@dataclass
class Following:
    """How the answers of one map followed one event: seconds of stream, inf = not before the next event, nan = there
    was nothing to follow (the old place did not answer before)."""

    kind: str
    source: Source
    forget: bool
    old_s: float
    new_s: float
    old_keyframes: float
    new_keyframes: float


def run(
    source: str, *, console: Console, as_json: bool, seeds: int, train_s: float = 15.0, event_s: float = EVENT_S
) -> int:
    """Simulated events, and static scenes; or, with a 7-Scenes folder, what a static recording loses."""
    report: dict[str, Any]
    if source != "simulator":
        report = {"bench": "changes", "source": Path(source).name, "recorded": changes_static.recorded(source, console)}
    else:
        followings = [f for seed in range(seeds) for f in stream(seed, train_s, event_s)]
        events = _table(console, followings, seeds, event_s)
        static = [changes_static.simulated(0)]
        changes_static.show(console, static)
        report = {
            "bench": "changes", "source": "simulator", "scenes": seeds, "rate_hz": RATE_HZ,
            "steps_hz": STEPS_HZ, "event_s": event_s,
            "events": events, "static": [row for scene in static for row in scene],
        }  # fmt: skip
    if as_json:
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0


def stream(seed: int, train_s: float, event_s: float, kinds: Sequence[str] = ()) -> list[Following]:
    """One scene and its events, into a map that forgets and into one that does not, each of which has first trained
    for `train_s` seconds on what it saw before."""
    from ..sources.simulator import SimulatorConfig
    from ..sources.simulator_changes import EVENT_KINDS, ChangingSimulator, Event, swaying

    kinds = kinds or EVENT_KINDS
    learn, each = round(LEARN_S * RATE_HZ), round(event_s * RATE_HZ)
    first = learn + round(CALM_S * RATE_HZ)
    frames = first + each * len(kinds)
    events = [Event(first + each * i, kind) for i, kind in enumerate(kinds)]  # type: ignore[arg-type]
    config = SimulatorConfig(seed=seed, frames=frames, width=WIDTH, height=WIDTH * 3 // 4, rate_hz=RATE_HZ)
    poses = swaying(seed, frames, RATE_HZ, learn)
    simulator = ChangingSimulator(config, events, poses)
    seen = [_light(frame) for frame in simulator]
    return [f for forget in (True, False) for f in _follow(simulator, seen, forget, learn, train_s)]


def _light(frame: Frame) -> Frame:
    assert frame.semantic is not None
    return replace(frame, semantic=frame.semantic.astype(np.uint8), instance=None)


def _follow(simulator: Any, frames: list[Frame], forget: bool, learn: int, train_s: float) -> list[Following]:
    """Get to know the scene, then follow the stream, training beside it, and ask all the time."""
    config = demo_config()
    config = replace(config, memory=replace(config.memory, forget=forget))
    encoder = MeasuredEncoder(simulator.class_names, FAULTS)
    mapping, texts = Mapping(config, encoder.dim, "cpu"), PromptEncoder(encoder, config.query)
    polls: list[dict[str, Any]] = []
    owed = 0.0
    for k, frame in enumerate(frames):
        frame = within_range(frame, config.frame)
        mapping.saw(frame)
        if mapping.accepts(frame):
            target = encoder.encode_frame(frame)
            mapping.add_features(mapping.add_keyframe(frame, FeatureShape.of(target)), frame, target)
        owed += train_s * STEPS_HZ if k == learn - 1 else STEPS_HZ / RATE_HZ
        while owed >= 1:
            mapping.train_step()
            owed -= 1
        if k >= learn and k % POLL_FRAMES == 0:
            epoch = simulator.epoch(k)
            # before an event as well: what did not answer cannot stop
            for change in simulator.changes[max(0, epoch - 1) : epoch + 1]:
                polls.append(_ask(mapping, texts, config, change, k))
    return [
        _judge(change, polls, source, forget, simulator.rate_hz)
        for change in simulator.changes for source in SOURCES
    ]  # fmt: skip


def _ask(mapping: Mapping, texts: PromptEncoder, config: SemfieldConfig, change: Any, index: int) -> dict[str, Any]:
    """Whether the old and the new place answer, by every map."""
    snapshot, found = mapping.snapshot(), {}
    kinds = list(dict.fromkeys(thing.kind for thing in (change.before, change.after) if thing is not None))
    for source in SOURCES:
        try:
            result = answer(
                snapshot, texts, kinds, config=config, source=source, grasps=False, no_match=MATCH, high=HIGH,
                low=MATCH,
            )  # fmt: skip
        except QueryError:
            continue  # the field knows no words yet
        centres = {p.label: [o.box.centre for o in p.objects] for p in result.prompts}
        found[source] = tuple(
            thing is not None and any(_inside(thing, centre) for centre in centres[thing.kind])
            for thing in (change.before, change.after)
        )
    return {"change": change, "index": index, "found": found, "keyframes": mapping.counts["keyframes"]}


def _inside(thing: Any, centre: np.ndarray, margin_m: float = 0.015) -> bool:
    T = thing.T_world_box
    return bool((np.abs(T[:3, :3].T @ (centre - T[:3, 3])) <= thing.half_extents_m + margin_m).all())


def _judge(change: Any, polls: list[dict[str, Any]], source: Source, forget: bool, rate_hz: float) -> Following:
    start = change.event.frame
    mine = [p for p in polls if p["change"] is change and source in p["found"]]
    before = [p for p in mine if p["index"] < start]
    after = [p for p in mine if p["index"] >= start]
    used = before[-1]["keyframes"] if before else 0

    def first(wanted: bool, which: int) -> tuple[float, float]:
        """When the answer is as wanted, twice in a row."""
        for a, b in pairwise(after):
            if a["found"][source][which] == b["found"][source][which] == wanted:
                return (a["index"] - start + 1) / rate_hz, float(a["keyframes"] - used)
        return math.inf, math.inf

    answered = bool(before) and np.mean([p["found"][source][0] for p in before[-5:]]) > 0.5
    old = first(False, 0) if change.before is not None and answered else (math.nan, math.nan)
    new = first(True, 1) if change.after is not None else (math.nan, math.nan)
    return Following(change.event.kind, source, forget, old[0], new[0], old[1], new[1])


def _table(console: Console, followings: list[Following], seeds: int, event_s: float) -> list[dict[str, Any]]:
    rows, events = [], []
    for kind in dict.fromkeys(f.kind for f in followings):
        for source in SOURCES:
            for forget in (True, False):
                mine = [f for f in followings if (f.kind, f.source, f.forget) == (kind, source, forget)]
                entry: dict[str, Any] = {"event": kind, "source": source, "forget": forget}
                for what in ("old", "new"):
                    times = [t for f in mine if not math.isnan(t := getattr(f, f"{what}_s"))]
                    done = [t for t in times if math.isfinite(t)]
                    looks = [n for f in mine if math.isfinite(n := getattr(f, f"{what}_keyframes"))]
                    entry |= {
                        f"{what}_median_s": float(np.median(times)) if times else math.nan,
                        f"{what}_mean_s": mean(done), f"{what}_done": len(done), f"{what}_of": len(times),
                        f"{what}_keyframes": mean(looks),
                    }  # fmt: skip
                events.append(entry)
                rows.append([
                    kind, source, "on" if forget else "off",
                    *(cell for what in ("old", "new") for cell in (
                        entry[f"{what}_median_s"] if entry[f"{what}_of"] else "-",
                        f"{entry[f'{what}_done']}/{entry[f'{what}_of']}", entry[f"{what}_keyframes"],
                    )),
                ])  # fmt: skip
    show_table(
        console, f"{seeds} simulated tables at {RATE_HZ:g} Hz, {STEPS_HZ:g} steps/s; {event_s:g} s for each event",
        ["event", "map", "forget", "old place silent, median s", "of", "keyframes", "new place answers, median s", "of",
         "keyframes"], rows,
    )  # fmt: skip
    return events
