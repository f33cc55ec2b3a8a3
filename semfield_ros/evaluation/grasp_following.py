"""Does the map follow? One thing is lifted and taken away, the camera goes on looking, the map is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..engine import Engine
from ..sources.simulator import Simulator
from .grasp_trials import Following, Outcome

if TYPE_CHECKING:
    from .grasp_stage import MapName, Stage

STEPS_HZ, POLL_FRAMES = 20.0, 3
"""Training steps a second of stream, and frames between two questions."""
SILENT_MARGIN_M, KEPT_M, TOUCHED_M = 0.015, 0.03, 0.01
"""An answer with its centre so near the old box is of the old place; another object answers as before where its centre
moved by no more than this; and was touched where its pose moved by more than that."""


def follow(stage: Stage, engine: Engine, name: MapName, outcomes: Sequence[Outcome]) -> Following | None:
    """Lift what was held first, take it away, look on; None where nothing was held.

    Meanwhile every other object that answered to its colour and kind, and was not touched, should answer where it did;
    last, the next request that can be fulfilled is, from the scene as it is then.
    """
    held = next((o.prompt for o in outcomes if o.map == name and o.held), None)
    if held is None:
        return None
    world = stage.world
    world.restore(stage.settled)
    taken = stage.execute(stage.executed[name, held]).grasped_instance
    if taken is None:
        return None
    box, half = next(
        (t.T_world_box, t.half_extents_m) for t in stage.simulator.objects if stage.instances[t.instance - 1] == taken
    )
    before = {i: _centre(stage, engine, name, i) for i in stage.instances if i != taken}
    world.take_away(taken)
    silent_s = _look_on(stage, engine, name, held, box, half)
    rest = {i: item.T_world_object[:3, 3] for i, item in stage.exact.objects.items()}
    kept = []
    for i, was in before.items():
        if was is not None and np.linalg.norm(world.pose(i)[:3, 3] - rest[i]) <= TOUCHED_M:
            now = _centre(stage, engine, name, i)
            kept.append(now is not None and bool(np.linalg.norm(now - was) <= KEPT_M))
    text, second = _second(stage, engine, name, taken)
    return Following(stage.seed, held, silent_s, sum(kept), len(kept), second, text)


def _look_on(stage: Stage, engine: Engine, name: MapName, text: str, box: np.ndarray, half_m: np.ndarray) -> float:
    """Go round the changed scene until the old place is silent twice in a row: seconds of stream, inf = a whole round
    was not enough."""
    frames, rate_hz, owed, silent = stage.stage.frames, stage.stage.rate_hz, 0.0, 0
    changed = Simulator(stage.simulated, objects=stage.world.objects_now())
    for k, T in enumerate(changed.path(frames)):
        engine.submit(changed.render(T, (frames + k) / rate_hz), block=True)
        engine.drain()
        owed += STEPS_HZ / rate_hz
        engine.train(steps=int(owed))
        owed -= int(owed)
        if (k + 1) % POLL_FRAMES:
            continue
        engine.snapshot(fresh=True)
        thing, _ = stage.answer(engine, name, text, grasps=False)
        silent = 0 if thing is not None and inside(thing.box.centre, box, half_m) else silent + 1
        if silent == 2:
            return float((k + 1 - POLL_FRAMES) / rate_hz)
    return float("inf")


def _second(stage: Stage, engine: Engine, name: MapName, taken: int) -> tuple[str, bool | None]:
    """The next request that can be fulfilled without what was taken, and whether it was."""
    here = set(stage.world.instances_now) - {taken}
    for request, can in zip(stage.requests, stage.possible):
        if can and request.instances and here.issuperset(request.instances):
            thing, _ = stage.answer(engine, name, request.text)
            if thing is None or not thing.grasps:
                return request.text, False
            return request.text, stage.held_as_asked(stage.execute(thing.grasps[0]), request)
    return "", None


def _centre(stage: Stage, engine: Engine, name: MapName, instance: int) -> np.ndarray | None:
    """Where an object answers to its colour and kind; None where it does not, or something else does."""
    thing, _ = stage.answer(engine, name, stage.world.name_of(instance), grasps=False)
    if thing is None or stage.exact.instance_of(thing.cloud.points) != instance:
        return None
    return np.asarray(thing.box.centre)


def inside(centre: np.ndarray, T_world_box: np.ndarray, half_m: np.ndarray) -> bool:
    """Whether a point [3] lies in a box, or so near that it is meant."""
    local = T_world_box[:3, :3].T @ (np.asarray(centre) - T_world_box[:3, 3])
    return bool((np.abs(local) <= half_m + SILENT_MARGIN_M).all())
