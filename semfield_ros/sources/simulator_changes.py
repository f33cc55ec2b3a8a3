"""A simulated table that changes while it is looked at: objects are taken away, moved, added and exchanged.

Between two events the scene is at rest, so it is a sequence of scenes ("epochs"), each with the exact truth of then.
What leaves is taken off the table; what moves or comes finds a free place and rests on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from ..errors import ConfigError
from ..frame import Frame
from ..geometry import look_at
from .simulator import Simulator, SimulatorConfig, TruthObject
from .simulator_objects import COLOURS, KINDS
from .simulator_scene import TABLE_HALF_M, Placed, jittered, place_objects

EventKind = Literal["remove", "move", "add", "swap", "swap_alike"]
EVENT_KINDS: tuple[EventKind, ...] = ("remove", "move", "add", "swap", "swap_alike")
_CELL_M = 0.004
_MARGIN_M = 0.03


@dataclass(frozen=True)
class Event:
    """What happens just before frame `frame`: one object, chosen by the scene's seed.

    remove: it is taken off the table. move: it is put elsewhere. add: a kind that was not there comes. swap: another
    kind stands in its place. swap_alike: the same shape in its place is another kind in another colour.
    """

    frame: int
    kind: EventKind


@dataclass(frozen=True)
class Change:
    """What really happened: the object before (None: it came) and after (None: it left)."""

    event: Event
    before: TruthObject | None
    after: TruthObject | None


class ChangingSimulator:
    """A source of Frames of a scene that changes at given frames.

    Args:
        config: as of a `Simulator`; `frames` is the length of the recording.
        events: in order of their frames, each in 1 to frames - 1.
        poses: [frames, 4, 4] T_world_camera; None = once around the table.

    Attributes:
        epochs: one Simulator for each time between events; its `objects` and `surface_points` are the truth then.
        starts: first frame of each epoch. changes: what happened between epoch k and k + 1.
    """

    def __init__(self, config: SimulatorConfig, events: Sequence[Event], poses: np.ndarray | None = None):
        frames = [e.frame for e in events]
        if frames != sorted(set(frames)) or any(not 0 < f < config.frames for f in frames):
            raise ConfigError(f"events are at frames {frames}; expected increasing ones in 1 to {config.frames - 1}")
        for event in events:
            if event.kind not in EVENT_KINDS:
                raise ConfigError(f"event is {event.kind!r}; allowed: {', '.join(EVENT_KINDS)}")
        if poses is not None and poses.shape != (config.frames, 4, 4):
            raise ConfigError(f"poses are {poses.shape}; expected {(config.frames, 4, 4)}")
        self.config, self.name, self.rate_hz = config, f"changing:{config.seed}", config.rate_hz
        self.epochs = [Simulator(config)]
        self.starts = [0, *frames]
        self.changes: list[Change] = []
        self.poses = self.epochs[0].path(config.frames) if poses is None else poses
        rng = np.random.default_rng([config.seed, 4])
        touched: set[str] = set()
        for event in events:
            before = list(self.epochs[-1].scene.objects)
            # each thing changes once, so that it was well known before
            rested = [i for i, item in enumerate(before) if _name(item) not in touched]
            old, after, new = _happen(rng, event.kind, before, rested, config.gap_m)
            touched |= {_name(item) for item in ([] if old is None else [before[old]]) + ([] if new is None else [new])}
            epoch = Simulator(config, objects=tuple(after))
            self.changes.append(
                Change(
                    event,
                    None if old is None else self.epochs[-1].objects[old],
                    None if new is None else epoch.objects[[item is new for item in after].index(True)],
                )
            )
            self.epochs.append(epoch)
        self.camera, self.class_names = self.epochs[0].camera, self.epochs[0].class_names

    def __len__(self) -> int:
        return self.config.frames

    def __iter__(self) -> Iterator[Frame]:
        return (self.frame(i) for i in range(len(self)))

    def epoch(self, index: int) -> int:
        """The number of the epoch that frame `index` shows."""
        return int(np.searchsorted(self.starts, index, side="right") - 1)

    def frame(self, index: int) -> Frame:
        """One frame; the same index always gives the same frame."""
        return self.epochs[self.epoch(index)].render(self.poses[index], index / self.rate_hz)


def swaying(
    seed: int, frames: int, rate_hz: float, around: int, sweep_rad: float = 0.9, period_s: float = 8.0
) -> np.ndarray:
    """Poses [frames, 4, 4] that go once around the table in `around` frames, and then look at it swaying to and fro."""
    orbit = Simulator(SimulatorConfig(seed=seed)).path(around) if around else np.zeros((0, 4, 4))
    rng = np.random.default_rng([seed, 5])
    middle = rng.uniform(0, 2 * np.pi)
    poses = [*orbit]
    for k in range(frames - around):
        swing = 2 * np.pi * k / rate_hz / period_s
        angle = middle + sweep_rad * np.sin(swing)
        eye = [0.8 * np.cos(angle), 0.8 * np.sin(angle), 0.62 + 0.03 * np.sin(2 * swing)]
        poses.append(look_at(np.array(eye), np.array([0.02 * np.sin(swing), 0.0, 0.0])))
    return np.stack(poses[:frames])


def _name(item: Placed) -> str:
    return f"{item.colour} {item.kind.name}"


def _happen(
    rng: np.random.Generator, kind: EventKind, items: list[Placed], rested: list[int], gap_m: float, tries: int = 200
) -> tuple[int | None, list[Placed], Placed | None]:
    """One event: index of the object it happens to, all objects after it, and the new (or moved) one."""
    here = {item.kind.name for item in items}
    for _ in range(tries):
        if kind == "add":
            item = _newcomer(rng, here, gap_m)
            placed = None if item is None else _placed(rng, item, items, gap_m)
            if placed is not None:
                return None, [*items, placed], placed
            continue
        if not rested:
            break
        old = rested[int(rng.integers(len(rested)))]
        item, others = items[old], [*items[:old], *items[old + 1 :]]
        if kind == "remove":
            return old, others, None
        if kind == "move":
            placed = _placed(rng, item, items, gap_m)
            if placed is not None:
                return old, [*others, placed], placed
            continue
        if kind == "swap_alike":
            kinds = [k for k in KINDS if k.name not in here]
            colour = _other_colour(rng, item.colour)
            like = kinds[int(rng.integers(len(kinds)))]
            placed = replace(item, kind=like, colour=colour, rgb=jittered(rng, COLOURS[colour]))
            return old, [*others, placed], placed
        another = _newcomer(rng, here, gap_m)
        if another is None or another.colour == item.colour:
            continue
        T = another.T_world_object.copy()
        T[:2, 3] += item.hull_world[:, :2].mean(0) - another.hull_world[:, :2].mean(0)
        placed = replace(another, T_world_object=T)
        if _fits(placed, others, gap_m):
            return old, [*others, placed], placed
    raise ConfigError(f"no object of this scene can be the one of an event {kind!r}; take another seed or fewer events")


def _other_colour(rng: np.random.Generator, colour: str) -> str:
    far = [c for c in COLOURS if np.abs(np.subtract(COLOURS[c], COLOURS[colour])).max() > 0.45]
    return far[int(rng.integers(len(far)))]


def _newcomer(rng: np.random.Generator, here: set[str], gap_m: float) -> Placed | None:
    """A resting object of a kind that is not here."""
    for item in place_objects(rng, 6, gap_m):
        if item.kind.name not in here:
            return item
    return None


def _placed(
    rng: np.random.Generator, item: Placed, others: list[Placed], gap_m: float, tries: int = 60
) -> Placed | None:
    """The object as it rests now, turned about the vertical, at a place that is free of all others."""
    reach = np.array(TABLE_HALF_M) - _MARGIN_M
    for _ in range(tries):
        yaw = rng.uniform(0, 2 * np.pi)
        c, s = np.cos(yaw), np.sin(yaw)
        T = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]) @ item.T_world_object
        T[:2, 3] += rng.uniform(-reach, reach) - T[:2, 3]
        moved = replace(item, T_world_object=T)
        if _fits(moved, others, gap_m):
            return moved
    return None


def _fits(item: Placed, others: list[Placed], gap_m: float) -> bool:
    """Whether an object stands on the table, at least `gap_m` from the footprints of all others."""
    reach = np.array(TABLE_HALF_M) - _MARGIN_M
    if (np.abs(item.hull_world[:, :2]) > reach).any():
        return False
    taken = np.zeros([int(2 * half / _CELL_M) for half in reversed(TABLE_HALF_M)], np.uint8)
    for other in others:
        cv2.fillConvexPoly(taken, _outline(other), 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * int(gap_m / _CELL_M) + 1,) * 2)
    near, own = cv2.dilate(taken, disc) > 0, np.zeros_like(taken)
    cv2.fillConvexPoly(own, _outline(item), 1)
    return not near[own > 0].any()


def _outline(item: Placed) -> np.ndarray:
    pixels = np.rint((item.hull_world[:, :2] + TABLE_HALF_M) / _CELL_M).astype(np.int32)
    return cv2.convexHull(pixels)
