"""One grasp executed in the simulator's physics: approach, close by force, lift, shake; and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..geometry import invert, rotation_angle_rad, transform_points
from .simulator_bodies import TIMESTEP_S
from .simulator_gripper import PARTS
from .simulator_objects import PART_NAMES

if TYPE_CHECKING:
    from .simulator_physics import PhysicsWorld

TOUCH_N = 0.3
"""Contacts weaker than this are not reported."""
REACHED_M, REACHED_RAD = 0.005, np.radians(5.0)
FRAME_S = 0.04
"""Between calls of `on_step`: 25 Hz."""
OnStep = Callable[[float, np.ndarray, float, dict[int, np.ndarray]], None]
"""(time_s, T_world_gripper [4, 4], opening_m, {instance: T_world_object [4, 4]})."""


@dataclass(frozen=True)
class Collision:
    """Something touched before the fingers closed.

    Attributes:
        part: of the gripper: "palm", "finger -x" or "finger +x". instance: of the object touched; 0 = the table.
        force_n: the largest normal force. depth_m: the deepest penetration.
    """

    part: str
    instance: int
    name: str
    force_n: float
    depth_m: float


@dataclass(frozen=True)
class Trial:
    """What became of one grasp.

    Attributes:
        reason: "held"; "missed" (nothing between the fingers), "collided" (nothing between the fingers, and something
            touched before), "blocked" (the pose was not reached), "slipped" (in the lift), "dropped" (in the shake).
        reached: the pose was reached within 5 mm and 5 degrees. collisions: touched on the way, the target included.
        grasped_instance: the object with contacts on both fingers after closing; None where there is none.
        lifted: it rose by at least three quarters of the lift. held: it was still between the fingers at the end.
        lifted_instances: all objects that rose so far, held or carried along.
        contact_points_world, contact_points_object: [K, 3] float64, metres, contacts of the closed fingers.
        contact_instances: [K] int, the object each lies on. contact_parts: [K] its exact part there (PART_NAMES).
        contact_fingers: [K] int, -1 or +1: the finger on that side of the gripper's x axis.
        opening_m: between the closed fingers. slip_m: how far the object moved within the grip from closing to the end.
        moved: {instance: metres} every object's displacement. duration_sim_s: simulated time.
    """

    reason: str
    reached: bool
    collisions: tuple[Collision, ...] = ()
    grasped_instance: int | None = None
    lifted: bool = False
    held: bool = False
    lifted_instances: tuple[int, ...] = ()
    contact_points_world: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    contact_points_object: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    contact_instances: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    contact_parts: tuple[str, ...] = ()
    contact_fingers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    opening_m: float = float("nan")
    slip_m: float = float("nan")
    moved: dict[int, float] = field(default_factory=dict)
    duration_sim_s: float = 0.0


class Execution:
    """One trial: the phases in order."""

    def __init__(self, world: PhysicsWorld, on_step: OnStep | None):
        self.world, self.on_step, self.drive, self.data = world, on_step, world.drive, world.data
        self.collisions: dict[tuple[int, int], np.ndarray] = {}
        self.watching = False
        self.start_s = self.data.time
        self.next_frame_s = self.data.time
        self.begun = world.poses

    def run(self, T: np.ndarray, width_m: float, standoff_m: float, lift_m: float, shake: bool) -> Trial:
        """All of it; arguments as `PhysicsWorld.execute`."""
        world, drive, gripper = self.world, self.drive, self.world.gripper
        opening = min(width_m + 2 * gripper.clearance_m, gripper.max_width_m)
        drive.put(_moved(T, -standoff_m * T[:3, 2]), opening)
        world.mujoco.mj_forward(world.model, self.data)
        if any(touch.depth_m > 1e-3 for touch in world.touches()):
            self._watch()
            return self._ended("blocked", reached=False)
        self.watching = True
        self._line(T, -standoff_m * T[:3, 2], np.zeros(3), duration_s=max(0.3, standoff_m / 0.12))
        self._hold(T, 0.15)
        self.watching = False
        reached_m = np.linalg.norm(drive.T_world_gripper[:3, 3] - T[:3, 3])
        turned = rotation_angle_rad(drive.T_world_gripper[:3, :3], T[:3, :3])
        if reached_m > REACHED_M or turned > REACHED_RAD:
            return self._ended("blocked", reached=False)

        self._close(T)
        target = world.held_instance()
        contacts = self._contacts()
        if target is None:
            return self._ended("collided" if self._reported() else "missed", **contacts)
        grip = self._in_grip(target)
        contacts["grasped_instance"] = target
        up = np.array([0.0, 0.0, lift_m])
        self._line(T, np.zeros(3), up, duration_s=max(0.3, lift_m / 0.2))
        top = _moved(T, up)
        self._hold(top, 0.3)
        if not self._carried(target, grip, 0.75 * lift_m, T):
            return self._ended("slipped", **contacts)
        if shake:
            self._shake(top)
            self._hold(top, 0.2)
        held = self._carried(target, grip, 0.75 * lift_m, T)
        rose = {i for i in world.instances if world.pose(i)[2, 3] - self.begun[i][2, 3] >= 0.75 * lift_m}
        rose |= {target} if held else set()
        slip = float(np.linalg.norm((self._in_grip(target) @ invert(grip))[:3, 3]))
        contacts |= {"lifted_instances": tuple(sorted(rose)), "slip_m": slip}
        return self._ended("held" if held else "dropped", lifted=True, held=held, **contacts)

    def _ended(self, reason: str, **what: Any) -> Trial:
        world = self.world
        world.check()
        moved = {i: float(np.linalg.norm(world.pose(i)[:3, 3] - T[:3, 3])) for i, T in self.begun.items()}
        what = {"reached": True, "moved": moved, "duration_sim_s": float(self.data.time - self.start_s), **what}
        return Trial(reason, collisions=self._reported(), **what)

    def _reported(self) -> tuple[Collision, ...]:
        return tuple(
            Collision(PARTS[part], instance, self.world.name_of(instance), float(force), float(depth))
            for (part, instance), (force, depth) in self.collisions.items()
            if force > TOUCH_N or depth > 1e-3
        )

    def _contacts(self) -> dict[str, Any]:
        """The fields of Trial that tell where the closed fingers touch."""
        world = self.world
        touches = [t for t in world.touches() if t.part > 0 and t.instance > 0 and t.force_n > TOUCH_N]
        points = np.array([t.point_world for t in touches]).reshape(-1, 3)
        local = [transform_points(invert(world.pose(t.instance)), t.point_world[None]) for t in touches]
        surfaces = [world.objects[t.instance - 1].parts[t.surface] for t in touches]
        return {
            "contact_points_world": points,
            "contact_points_object": np.concatenate([np.zeros((0, 3)), *local]),
            "contact_instances": np.array([t.instance for t in touches], np.int32),
            "contact_parts": tuple(PART_NAMES[int(s.part_number(p)[0])] for s, p in zip(surfaces, local)),
            "contact_fingers": np.array([2 * t.part - 3 for t in touches], np.int32),
            "opening_m": self.drive.opening_m,
        }

    def _in_grip(self, instance: int) -> np.ndarray:
        """T_gripper_object now."""
        return invert(self.drive.T_world_gripper) @ self.world.pose(instance)

    def _carried(self, instance: int, grip: np.ndarray, height_m: float, T: np.ndarray) -> bool:
        """Is the object between the fingers and off the table, the place where it was gripped raised by a height?

        A pan held by its handle may hang down from the fingers: its own frame rises less than the handle does.
        """
        gripped = (self.world.pose(instance) @ invert(grip))[2, 3]
        raised = gripped - T[2, 3] >= height_m
        return bool(raised and self.world.held_instance() == instance and not self.world.stands(instance))

    def _close(self, T: np.ndarray, speed_m_s: float = 0.06) -> None:
        """Drives the fingers together until they have stood still for a tenth of a second."""
        still_s = elapsed_s = 0.0
        opening = self.drive.opening_m
        longest_s = opening / (2 * speed_m_s) + 1.0
        while still_s < 0.1 and elapsed_s < longest_s:
            opening = max(opening - 2 * speed_m_s * TIMESTEP_S, -0.05)
            self.drive.open_to(opening)
            self._step(T, np.zeros(6), np.zeros(3))
            elapsed_s += TIMESTEP_S
            still_s = still_s + TIMESTEP_S if elapsed_s > 0.1 and self.drive.finger_speed_m_s < 0.003 else 0.0
        self.drive.open_to(-0.05)
        self._hold(T, 0.1)

    def _line(self, T: np.ndarray, start_m: np.ndarray, stop_m: np.ndarray, duration_s: float) -> None:
        """From one offset of a pose to another along the smoothest course (minimum jerk, Flash and Hogan 1985)."""
        steps, way = round(duration_s / TIMESTEP_S), stop_m - start_m
        for s in np.arange(1, steps + 1) / steps:
            share = s**3 * (10 - 15 * s + 6 * s**2)
            speed = 30 * s**2 * (1 - s) ** 2 / duration_s
            acceleration = 60 * s * (1 - s) * (1 - 2 * s) / duration_s**2
            self._step(_moved(T, start_m + share * way), np.concatenate([speed * way, np.zeros(3)]), acceleration * way)

    def _hold(self, T: np.ndarray, duration_s: float) -> None:
        for _ in range(round(duration_s / TIMESTEP_S)):
            self._step(T, np.zeros(6), np.zeros(3))

    def _shake(self, T: np.ndarray, duration_s: float = 1.5) -> None:
        """Along x, y, z at once, and tilted about both horizontal axes; fades in and out."""
        amplitude, rate_hz = np.array([0.025, 0.02, 0.015]), np.array([2.0, 2.7, 3.3])
        tilt, tilt_hz = np.radians([12.0, 12.0, 0.0]), np.array([1.3, 1.7, 0.0])

        def course(time_s: float) -> np.ndarray:
            fade = np.sin(np.pi * np.clip(time_s / duration_s, 0, 1)) ** 0.5 if 0 < time_s < duration_s else 0.0
            window = min(1.0, fade) ** 4
            return window * np.concatenate(
                [amplitude * np.sin(2 * np.pi * rate_hz * time_s), tilt * np.sin(2 * np.pi * tilt_hz * time_s)]
            )

        h = TIMESTEP_S
        for time_s in np.arange(1, round(duration_s / h) + 1) * h:
            before, now, after = course(time_s - h), course(time_s), course(time_s + h)
            velocity, acceleration = (after - before) / (2 * h), (after - 2 * now + before) / h**2
            wanted = _moved(T, now[:3])
            wanted[:3, :3] = _rotation(now[3:]) @ T[:3, :3]
            self._step(wanted, velocity, acceleration[:3])

    def _step(self, T: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray) -> None:
        world, data = self.world, self.data
        self.drive.follow(T, velocity, acceleration)
        world.mujoco.mj_step(world.model, data)
        if self.watching:
            self._watch()
        if self.on_step is not None and data.time >= self.next_frame_s:
            self.next_frame_s += FRAME_S
            self.on_step(data.time - self.start_s, self.drive.T_world_gripper, self.drive.opening_m, world.poses)

    def _watch(self) -> None:
        """Notes what is touched now."""
        for touch in self.world.touches():
            worst = self.collisions.setdefault((touch.part, touch.instance), np.zeros(2))
            np.maximum(worst, [touch.force_n, touch.depth_m], out=worst)


def _moved(T: np.ndarray, offset_m: np.ndarray) -> np.ndarray:
    out = T.copy()
    out[:3, 3] += offset_m
    return out


def _rotation(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix of a rotation vector [3]."""
    import cv2

    return np.asarray(cv2.Rodrigues(vector)[0])
