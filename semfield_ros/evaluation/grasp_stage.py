"""One scene of the grasp trials: it settles, a camera goes round it, it is asked, a gripper does as it is told.

The same planner plans on what the field knows, on what the point map knows, and on the exact geometry, always from the
same settled state, one grasp a request.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from ..answer import answer
from ..config import GripperConfig, SemfieldConfig
from ..engine import Engine
from ..geometry import invert, transform_points
from ..objects.grasping import planner_of
from ..objects.grasps import Grasp, GraspPlan
from ..objects.objects import Object
from ..session import take_in
from ..sources.simulator import Simulator, SimulatorConfig
from ..sources.simulator_objects import COLOURS, KINDS
from ..sources.simulator_physics import PhysicsWorld, Trial
from .grasp_following import follow
from .grasp_trials import FOUND_MARGIN_M, Following, Outcome, Request, on_part, requests_of
from .grasp_truth import ExactScene, standing

MapName = Literal["field", "points", "truth"]
SETTLE_S = 1.0
SEARCH_GRASPS = 12
"""Grasps on exact geometry that are tried before a request is called impossible."""
SEARCH_CLEARANCE_M = 0.001


@dataclass(frozen=True)
class Moment:
    """Where everything was during a trial: the gripper, how far open, and the objects by instance ([4, 4] float32)."""

    time_s: float
    T_world_gripper: np.ndarray
    opening_m: float
    poses: dict[int, np.ndarray]


@dataclass
class Film:
    """A trial to be drawn later. `grasp`: what was planned; None = nothing was. `focus`: [3] metres, the middle of what
    was asked for; None = it is not there. The last moment is where it ended."""

    outcome: Outcome
    grasp: Grasp | None = None
    focus: np.ndarray | None = None
    moments: list[Moment] = field(default_factory=list)


@dataclass(frozen=True)
class StageConfig:
    """How a scene is seen and asked. `frames` at `rate_hz` go once around the table."""

    frames: int = 90
    rate_hz: float = 7.5
    width: int = 320
    train_s: float = 15.0
    steps: int = 0
    prompts: int = 10
    maps: tuple[MapName, ...] = ("field", "points", "truth")
    search: int = SEARCH_GRASPS
    follow: bool = True
    film: bool = True
    film_hz: float = 8.0


class Stage:
    """A settled scene, its exact geometry and its physics.

    Args:
        config: of the map and of the gripper.
    """

    def __init__(self, seed: int, config: SemfieldConfig, stage: StageConfig):
        self.seed, self.config, self.stage = seed, config, stage
        self.simulated = SimulatorConfig(
            seed=seed, frames=stage.frames, rate_hz=stage.rate_hz, width=stage.width, height=stage.width * 3 // 4,
            processes=0,
        )  # fmt: skip
        self.world = PhysicsWorld(Simulator(self.simulated).scene.objects, config.gripper)
        self.world.settle(SETTLE_S)
        self.settled = self.world.snapshot()
        self.instances = self.world.instances_now
        self.simulator = Simulator(self.simulated, objects=self.world.objects_now())
        self.exact = self.exact_now()
        self.films: list[Film] = []
        self._best: dict[tuple[int, str], tuple[GraspPlan, Trial | None, float]] = {}
        self.executed: dict[tuple[str, str], Grasp] = {}

    def exact_now(self) -> ExactScene:
        """The exact geometry of this moment."""
        world = self.world
        return ExactScene(standing(world.objects, world.instances_now, world.poses))

    @cached_property
    def requests(self) -> list[Request]:
        """What the scene is asked, by the instance ids of the physics."""
        things = [replace(t, instance=self.instances[t.instance - 1]) for t in self.simulator.objects]
        return requests_of(things, [k.name for k in KINDS], list(COLOURS), self.seed, self.stage.prompts)

    def run(self) -> tuple[list[Outcome], Following | None]:
        """Map the scene, fulfil every request with every map, then see whether the map follows."""
        stage, outcomes, following = self.stage, list[Outcome](), None
        asked = list(zip(self.requests, self.possible))
        online = [m for m in stage.maps if m != "truth"]
        if online:
            with Engine(self.config) as engine:
                take_in(engine, self.simulator, steps=stage.steps, train_s=stage.train_s)
                engine.snapshot(fresh=True)
                for name in online:
                    outcomes += [self._by_map(engine, name, request, can) for request, can in asked]
                if stage.follow:
                    following = follow(self, engine, online[0], outcomes)
        if "truth" in stage.maps:
            outcomes += [self._by_truth(request, can) for request, can in asked if not request.absent]
        # whatever held, on whichever map, can be held
        possible = {o.prompt for o in outcomes if o.possible or o.as_asked}
        for film in self.films:
            film.outcome = replace(film.outcome, possible=film.outcome.prompt in possible)
        return [replace(o, possible=o.prompt in possible) for o in outcomes], following

    # exact geometry

    @cached_property
    def possible(self) -> list[bool]:
        """Of every request, whether some grasp planned on exact geometry holds what it asks for, as it asks for it."""
        return [any(self._possible(instance, request) for instance in request.instances) for request in self.requests]

    def _possible(self, instance: int, request: Request) -> bool:
        plan, trial, _ = self._best_of(instance, request.part)
        if trial is not None and self.held_as_asked(trial, request):
            return True
        # what a planner would try that leaves less air around the gripper
        gripper, half = self.config.gripper, max(1, self.stage.search // 2)
        bold = replace(gripper, clearance_m=min(SEARCH_CLEARANCE_M, gripper.clearance_m))
        more = self._plan(instance, request.part, bold).grasps
        for grasp in (*plan.grasps[1:half], *more[:half]):
            self.world.restore(self.settled)
            if self.held_as_asked(self.execute(grasp), request):
                return True
        return False

    def _best_of(self, instance: int, part: str) -> tuple[GraspPlan, Trial | None, float]:
        """The plan on exact geometry, what became of its best grasp, seconds to plan; remembered."""
        key = (instance, part)
        if key not in self._best:
            started = time.perf_counter()
            plan = self._plan(instance, part, self.config.gripper)
            spent = time.perf_counter() - started
            self.world.restore(self.settled)
            self._best[key] = plan, self.execute(plan.grasps[0]) if plan.grasps else None, spent
        return self._best[key]

    def _plan(self, instance: int, part: str, gripper: GripperConfig) -> GraspPlan:
        scene = self.exact.grasp_scene(instance, part, gripper)
        return planner_of(self.config.grasp).plan(scene, gripper, self.config.grasp)

    def _by_truth(self, request: Request, possible: bool) -> Outcome:
        best = [self._best_of(instance, request.part) for instance in request.instances]
        plan, trial, spent = max(best, key=lambda b: b[0].grasps[0].score if b[0].grasps else -1.0)
        outcome = replace(
            self._asked("truth", request, possible), answered=True, right_object=True, offered=bool(plan.grasps),
            part_found=bool(request.part), answer_s=spent, reason="no grasp", detail=plan.why_none,
        )  # fmt: skip
        return outcome if trial is None else self._judged(outcome, request, trial, plan.grasps[0])

    # maps

    def _by_map(self, engine: Engine, name: MapName, request: Request, possible: bool) -> Outcome:
        thing, spent = self.answer(engine, name, request.text)
        outcome = replace(self._asked(name, request, possible), answered=thing is not None, answer_s=spent)
        grasp = None if thing is None or not thing.grasps else thing.grasps[0]
        if thing is None:
            outcome = replace(outcome, reason="" if request.absent else "no answer")
        else:
            found = self.exact.instance_of(thing.cloud.points)
            right = found in request.instances
            outcome = replace(
                outcome, right_object=right, offered=grasp is not None, detail=f"named {self.world.name_of(found)}",
                reason="not there" if request.absent else "no grasp" if right else "wrong object",
            )  # fmt: skip
            if right and request.part:
                outcome = replace(outcome, part_found=self._part_found(thing, found, request.part))
            if grasp is None and right:
                outcome = replace(outcome, detail=_why_none(thing))
        asked = self.exact.surfaces[request.instances[0]][0] if request.instances else None
        film = Film(outcome, grasp, None if asked is None else asked.mean(axis=0))
        if grasp is not None and not request.absent:
            self.world.restore(self.settled)
            film.outcome = outcome = self._judged(outcome, request, self.execute(grasp, film), grasp)
            self.executed[name, request.text] = grasp
        else:
            film.moments.append(Moment(0.0, np.eye(4, dtype=np.float32), 0.0, _light(self.exact)))
        if self.stage.film and name == self.stage.maps[0]:
            self.films.append(film)
        return outcome

    def _part_found(self, thing: Object, instance: int, part: str) -> bool:
        if thing.part is None:
            return False
        points = thing.cloud.points[np.isin(thing.rows, thing.part.rows)].astype(np.float64)
        local = transform_points(invert(self.exact.objects[instance].T_world_object), points)
        return bool((self.exact.distance_to_part(instance, part, local) <= FOUND_MARGIN_M).mean() > 0.5)

    def answer(
        self, engine: Engine, name: MapName, text: str, grasps: bool = True
    ) -> tuple[Object | None, float]:
        """The best object and the seconds it took."""
        source: Literal["auto", "points"] = "points" if name == "points" else "auto"
        config = replace(self.config, grasp=replace(self.config.grasp, source=source))
        started = time.perf_counter()
        result = answer(
            engine.snapshot(), engine.prompts, [text], config=config, source=source, max_objects=1, grasps=grasps
        )
        spent = time.perf_counter() - started
        return next(iter(result.prompts[0].objects), None), spent

    # physics

    def execute(self, grasp: Grasp, film: Film | None = None) -> Trial:
        """What physics says to a grasp, from the state the world is in."""
        every = max(1, round(25 / self.stage.film_hz))
        count = 0

        def note(time_s: float, T: np.ndarray, opening_m: float, poses: dict[int, np.ndarray]) -> None:
            nonlocal count
            count += 1
            if film is not None and count % every == 0:
                light = {i: pose.astype(np.float32) for i, pose in poses.items() if i in self.instances}
                film.moments.append(Moment(time_s, T.astype(np.float32), opening_m, light))

        return self.world.execute(
            grasp.T_world_gripper, grasp.width_m, standoff_m=self.config.grasp.standoff_m,
            on_step=None if film is None else note,
        )  # fmt: skip

    def _asked(self, name: MapName, request: Request, possible: bool) -> Outcome:
        return Outcome(self.seed, name, request.text, request.kind, request.part, request.absent, possible)

    def _judged(self, outcome: Outcome, request: Request, trial: Trial, grasp: Grasp) -> Outcome:
        """What physics says of a grasp that was planned for what the outcome names."""
        right = outcome.right_object and trial.grasped_instance in request.instances
        on_it, beside_m = self._on_part(trial, request.part) if right and request.part else (False, 0.0)
        met = ", ".join(sorted({f"{c.part} {c.name}" for c in trial.collisions}))
        parts = ", ".join(sorted(set(trial.contact_parts)))
        detail = f"{grasp.approach}, {1000 * grasp.width_m:.0f} mm, score {grasp.score:.2f}, {trial.reason}"
        detail += (f", held at {parts}" if parts else "") + (f", touched {met}" if met else "")
        detail += f", {1000 * beside_m:.0f} mm beside the {request.part}" if beside_m > 0 else ""
        reason = trial.reason
        if not outcome.right_object:
            reason = "wrong object"
        elif trial.grasped_instance is not None and not right:
            reason = "took a neighbour"
        elif trial.held:
            reason = "held elsewhere than asked" if request.part and not on_it else ""
        return replace(
            outcome, tried=True, right_part=on_it, lifted=right and trial.lifted, held=right and trial.held,
            collided=any(c.instance not in request.instances for c in trial.collisions), brushed=bool(trial.collisions),
            reason=reason, detail=detail,
        )  # fmt: skip

    def _on_part(self, trial: Trial, part: str) -> tuple[bool, float]:
        """Whether what a trial grasped was grasped by a part; how far the middle contact is beside it, metres."""
        own = trial.contact_instances == trial.grasped_instance
        assert trial.grasped_instance is not None
        distance = self.exact.distance_to_part(trial.grasped_instance, part, trial.contact_points_object[own])
        return on_part(distance, trial.contact_fingers[own]), float(np.median(distance))

    def held_as_asked(self, trial: Trial, request: Request) -> bool:
        """Whether a trial held an object the request is right for, by the part it names."""
        right = trial.held and trial.grasped_instance in request.instances
        return right and (not request.part or self._on_part(trial, request.part)[0])


def _light(scene: ExactScene) -> dict[int, np.ndarray]:
    return {i: item.T_world_object.astype(np.float32) for i, item in scene.objects.items()}


def _why_none(thing: Object) -> str:
    return GraspPlan((), thing.rejected).why_none
