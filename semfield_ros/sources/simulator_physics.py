"""A table scene in MuJoCo's physics, and grasps executed in it by contact and friction alone.

Every object is a free rigid body of convex pieces; nothing is ever attached to the gripper. The gripper flies freely
(`simulator_gripper`): reach, singularities and collisions of an arm are not simulated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..config import GripperConfig
from ..errors import ConfigError, SourceError
from ..geometry import rigid_error
from .simulator_bodies import TIMESTEP_S, compile_bodies
from .simulator_gripper import GripperDrive
from .simulator_scene import FLOOR_Z_M, Placed
from .simulator_trial import TOUCH_N, Collision, Execution, OnStep, Trial

__all__ = ["Collision", "PhysicsWorld", "Touch", "Trial"]

STILL = 0.02
"""Slower than this, metres or radians per second, is standing still."""
FALLEN_Z_M = -0.05
_BIN = np.array([0.0, 12.0, FLOOR_Z_M])
"""Where objects go that are taken away."""


@dataclass(frozen=True)
class Touch:
    """A contact of the gripper: part by index in PARTS, instance (0 = table), number of the object's surface."""

    part: int
    instance: int
    surface: int
    point_world: np.ndarray
    force_n: float
    depth_m: float


class PhysicsWorld:
    """A table with objects and a gripper above it. Instance i is objects[i - 1], as in `Simulator`.

    Args:
        objects: as placed. gripper: its dimensions. friction: Coulomb coefficient of the fingers.
        grip_force_n: of each finger; a Panda hand holds 70 N, a Robotiq 2F-85 20 to 235 N. surface_friction: of
            everything else.

    Raises:
        ConfigError: a friction or force that is not positive. SourceError: MuJoCo is not installed.
    """

    def __init__(
        self,
        objects: tuple[Placed, ...],
        gripper: GripperConfig | None = None,
        *,
        friction: float = 0.8,
        grip_force_n: float = 40.0,
        surface_friction: float = 0.5,
    ):
        values = {"friction": friction, "grip_force_n": grip_force_n, "surface_friction": surface_friction}
        for name, value in values.items():
            if not (np.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value!r}; allowed: finite and > 0")
        self.objects, self.gripper = tuple(objects), gripper or GripperConfig()
        self.model, self._surface = compile_bodies(self.objects, self.gripper, friction, grip_force_n, surface_friction)
        import mujoco

        self.mujoco = mujoco
        self.data = mujoco.MjData(self.model)
        self.drive = GripperDrive(self.model, self.data)
        self._bodies = [self.model.body(f"object{i}").id for i in self.instances]
        self._qpos = [int(self.model.joint(f"object{i}").qposadr[0]) for i in self.instances]
        self._dof = [int(self.model.joint(f"object{i}").dofadr[0]) for i in self.instances]
        self._object_dofs = np.array([start + k for start in self._dof for k in range(6)], dtype=np.int64)
        self._park()

    @property
    def instances(self) -> range:
        """All instance ids, those no longer on the table included."""
        return range(1, len(self.objects) + 1)

    def pose(self, instance: int) -> np.ndarray:
        """T_world_object [4, 4] now."""
        body = self._bodies[instance - 1]
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = self.data.xmat[body].reshape(3, 3), self.data.xpos[body]
        return T

    @property
    def poses(self) -> dict[int, np.ndarray]:
        """T_world_object [4, 4] of every instance."""
        return {instance: self.pose(instance) for instance in self.instances}

    @property
    def instances_now(self) -> tuple[int, ...]:
        """Objects still on the table or above it."""
        return tuple(i for i in self.instances if self._here(self.pose(i)[:3, 3]))

    def objects_now(self) -> tuple[Placed, ...]:
        """What is still on the table, where it is now; the row k is instance `instances_now[k]` here, k + 1 there."""
        return tuple(replace(self.objects[i - 1], T_world_object=self.pose(i)) for i in self.instances_now)

    def snapshot(self) -> np.ndarray:
        """The state of everything, for `restore`: [S] float64."""
        what = self.mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(self.mujoco.mj_stateSize(self.model, what))
        self.mujoco.mj_getState(self.model, self.data, state, what)
        return state

    def restore(self, snapshot: np.ndarray) -> None:
        """Back to a state of this world (or of an equal one)."""
        self.mujoco.mj_setState(self.model, self.data, snapshot, self.mujoco.mjtState.mjSTATE_INTEGRATION)
        self.mujoco.mj_forward(self.model, self.data)

    def settle(self, longest_s: float = 3.0) -> float:
        """Lets gravity act for 0.4 s, and on until all stand still: a few placements tip over. The gripper leaves.

        Returns: the furthest any object's frame moved, metres.
        """
        before = self.poses
        self._park()
        for step in range(round(longest_s / TIMESTEP_S)):
            self.mujoco.mj_step(self.model, self.data)
            if step * TIMESTEP_S >= 0.4 and np.abs(self.data.qvel[self._object_dofs]).max(initial=0.0) < STILL:
                break
        self.mujoco.mj_forward(self.model, self.data)
        self.check()
        return max((float(np.linalg.norm(self.pose(i)[:3, 3] - T[:3, 3])) for i, T in before.items()), default=0.0)

    def take_away(self, instance: int | None = None) -> int | None:
        """Puts an object (or else what is between the fingers) into a bin far away; the gripper leaves.

        Returns: its instance; None where there was none.
        """
        taken = self.held_instance() if instance is None else instance
        if taken is not None:
            if taken not in self.instances:
                raise ConfigError(f"instance {taken} is not in this scene; allowed: 1 to {len(self.objects)}")
            start, dof = self._qpos[taken - 1], self._dof[taken - 1]
            self.data.qpos[start : start + 3] = _BIN + [taken - 1.0, 0.0, 0.5]
            self.data.qvel[dof : dof + 6] = 0
        self.settle()
        return taken

    def execute(
        self,
        T_world_gripper: np.ndarray,
        width_m: float,
        *,
        standoff_m: float = 0.10,
        lift_m: float = 0.2,
        shake: bool = True,
        on_step: OnStep | None = None,
    ) -> Trial:
        """Approaches along the gripper's z axis, closes by force, lifts, shakes, and tells what happened.

        The gripper stays where the trial ends: `take_away` or `restore` comes next.

        Args:
            T_world_gripper: [4, 4] the grasp (`GripperConfig`'s frame). width_m: of what is held; the fingers open by
                the clearance more on each side. standoff_m: the approach begins this far back.
            shake: a few centimetres at 2 to 4 Hz along three axes with a tilt, 1.5 s. on_step: called at 25 Hz.

        Raises:
            ConfigError: a pose that is not finite or not rigid, a width the gripper does not have, negative distances.
        """
        T = np.asarray(T_world_gripper, dtype=np.float64)
        if T.shape != (4, 4) or not np.isfinite(T).all() or rigid_error(T) > 1e-3:
            raise ConfigError(f"T_world_gripper is no rigid transform: {T.tolist()}; expected a finite [4, 4] in SE(3)")
        if not 0 <= width_m <= self.gripper.max_width_m:
            raise ConfigError(f"width_m is {width_m!r}; allowed: 0 to max_width_m = {self.gripper.max_width_m}")
        for name, value in {"standoff_m": standoff_m, "lift_m": lift_m}.items():
            if not 0 <= value < 2:
                raise ConfigError(f"{name} is {value!r}; allowed: 0 to 2 m")
        return Execution(self, on_step).run(T, float(width_m), standoff_m, lift_m, shake)

    def _here(self, position: np.ndarray) -> bool:
        return bool(position[2] > FALLEN_Z_M and np.abs(position[1]) < 0.5 * _BIN[1])

    def _park(self) -> None:
        T = np.eye(4)
        T[:3, 3] = 0, 0, 1.5
        self.drive.put(T, self.gripper.max_width_m)
        self.mujoco.mj_forward(self.model, self.data)

    def touches(self) -> list[Touch]:
        """What the gripper touches now."""
        data, found = self.data, []
        force = np.zeros(6)
        geom = data.contact.geom
        part = self.drive.part_of_geom[geom]
        for number in np.flatnonzero((part >= 0).any(axis=1)):
            contact, own = data.contact[number], int(part[number, 1] >= 0)
            self.mujoco.mj_contactForce(self.model, data, number, force)
            instance, surface = self._surface[int(geom[number, 1 - own])]
            where, depth = contact.pos.copy(), float(-contact.dist)
            found.append(Touch(int(part[number, own]), instance, surface, where, float(force[0]), depth))
        return found

    def held_instance(self) -> int | None:
        """The object with contacts on both fingers; where there are several, the one pressed hardest."""
        force: dict[int, np.ndarray] = {}
        for touch in self.touches():
            if touch.part > 0 and touch.instance > 0:
                force.setdefault(touch.instance, np.zeros(2))[touch.part - 1] += touch.force_n
        both = {instance: float(pressed.min()) for instance, pressed in force.items() if pressed.min() > TOUCH_N}
        return max(both, key=lambda instance: both[instance]) if both else None

    def check(self) -> None:
        """Raises SourceError where the simulation has diverged: MuJoCo would silently start over."""
        bad = self.mujoco.mjtWarning
        if any(self.data.warning[int(w)].number for w in (bad.mjWARN_BADQPOS, bad.mjWARN_BADQVEL, bad.mjWARN_BADQACC)):
            raise SourceError("the physics diverged: did objects start deep inside one another? move them apart")

    def stands(self, instance: int) -> bool:
        """Does an object touch the table or the floor?"""
        geom, body = self.data.contact.geom, self.model.geom_bodyid
        pairs = body[geom[self.data.contact.dist < 0]].reshape(-1, 2)
        return bool(((pairs == self._bodies[instance - 1]).any(axis=1) & (pairs == 0).any(axis=1)).any())

    def name_of(self, instance: int) -> str:
        """The table, or an object's colour and kind."""
        return f"{self.objects[instance - 1].colour} {self.objects[instance - 1].kind.name}" if instance else "table"
