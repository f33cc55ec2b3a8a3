"""A free-flying parallel gripper for the simulator's physics: palm and two fingers, moved and closed by limited force.

There is no arm: the palm is pulled along its trajectory by a spring and damper whose force is bounded, so that
obstacles can stop it. Where an arm can reach is not simulated.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import GripperConfig

PALM_MASS_KG, PALM_INERTIA_KG_M2, FINGER_MASS_KG = 2.0, 0.02, 0.1
STIFFNESS_HZ = 10.0
"""How fast the pose controller is; critically damped."""
MAX_FORCE_N, MAX_TORQUE_NM = 60.0, 8.0
"""What the "arm" can exert."""
FINGER_STIFFNESS_N_M, FINGER_DAMPING_N_S_M = 4000.0, 25.0
PARTS = ("palm", "finger -x", "finger +x")
OBJECT_BIT, GRIPPER_BIT, SUPPORT_BIT = 1, 2, 4
"""Collision groups: the gripper touches objects and table, never itself; objects touch each other; hulls the table."""


def add_gripper(spec: Any, gripper: GripperConfig, friction: float, grip_force_n: float) -> None:
    """Adds the gripper to a MuJoCo specification: body "palm" with a free joint, whose frame is the gripper's.

    The inertia sits at the fingertips, so that pushes there do not turn it: it stands for a stiff arm.
    """
    import mujoco

    contact = {
        "type": mujoco.mjtGeom.mjGEOM_BOX, "contype": GRIPPER_BIT, "conaffinity": OBJECT_BIT, "condim": 4,
        "priority": 1, "friction": [friction, 0.005, 0.0001], "solref": [0.005, 1.0],
    }  # fmt: skip
    half_y = gripper.finger_breadth_m / 2
    palm = spec.worldbody.add_body(
        name=PARTS[0], pos=(0, 0, 1), gravcomp=1.0, mass=PALM_MASS_KG, ipos=(0, 0, 0),
        inertia=(PALM_INERTIA_KG_M2,) * 3, explicitinertial=True,
    )  # fmt: skip
    palm.add_freejoint(name="palm")
    palm.add_geom(
        name=PARTS[0],
        size=(*gripper.palm_half_m, gripper.palm_depth_m / 2),
        pos=(0, 0, -gripper.finger_length_m - gripper.palm_depth_m / 2),
        **contact,
    )
    for name, sign in zip(PARTS[1:], (-1.0, 1.0)):
        finger = palm.add_body(
            name=name, gravcomp=1.0, mass=FINGER_MASS_KG, inertia=(1e-4,) * 3, ipos=(0, 0, 0), explicitinertial=True
        )
        finger.add_joint(
            name=name, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=(sign, 0, 0), limited=True,
            range=(0, gripper.max_width_m / 2), damping=FINGER_DAMPING_N_S_M, solref_limit=[0.005, 1.0],
        )  # fmt: skip
        finger.add_geom(
            name=name,
            size=(gripper.finger_thickness_m / 2, half_y, gripper.finger_length_m / 2),
            pos=(sign * gripper.finger_thickness_m / 2, 0, -gripper.finger_length_m / 2),
            **contact,
        )
        spec.add_actuator(
            name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT, forcelimited=True,
            forcerange=(-grip_force_n, grip_force_n), biastype=mujoco.mjtBias.mjBIAS_AFFINE,
            gainprm=[FINGER_STIFFNESS_N_M, *[0] * 9], biasprm=[0, -FINGER_STIFFNESS_N_M, *[0] * 8],
        )  # fmt: skip
    # One motor drives both fingers of such grippers: they meet in the middle.
    spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT, objtype=mujoco.mjtObj.mjOBJ_JOINT, name1=PARTS[1], name2=PARTS[2],
        solref=[0.004, 1.0],
    )  # fmt: skip


class GripperDrive:
    """Moves the gripper of a compiled model: call `follow` before every step."""

    def __init__(self, model: Any, data: Any):
        self.data = data
        self.body = model.body(PARTS[0]).id
        self.part_of_geom = np.full(model.ngeom, -1)
        for part, name in enumerate(PARTS):
            self.part_of_geom[model.geom(name).id] = part
        self.qpos, self.dof = int(model.joint(PARTS[0]).qposadr[0]), int(model.joint(PARTS[0]).dofadr[0])
        self.finger_qpos = [int(model.joint(name).qposadr[0]) for name in PARTS[1:]]
        self.finger_dof = [int(model.joint(name).dofadr[0]) for name in PARTS[1:]]
        self.actuators = [model.actuator(name).id for name in PARTS[1:]]
        self.mass = PALM_MASS_KG + 2 * FINGER_MASS_KG

    @property
    def T_world_gripper(self) -> np.ndarray:
        """[4, 4] where it is now."""
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = self.data.xmat[self.body].reshape(3, 3), self.data.xpos[self.body]
        return T

    @property
    def opening_m(self) -> float:
        """Distance between the inner faces of the fingers."""
        return float(self.data.qpos[self.finger_qpos].sum())

    @property
    def finger_speed_m_s(self) -> float:
        """Of the faster finger."""
        return float(np.abs(self.data.qvel[self.finger_dof]).max())

    def put(self, T_world_gripper: np.ndarray, opening_m: float) -> None:
        """Places it, at rest."""
        import mujoco

        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(T_world_gripper[:3, :3]).reshape(-1))
        self.data.qpos[self.qpos : self.qpos + 7] = [*T_world_gripper[:3, 3], *quaternion]
        self.data.qvel[self.dof : self.dof + 6] = 0
        self.data.qpos[self.finger_qpos] = opening_m / 2
        self.data.qvel[self.finger_dof] = 0
        self.open_to(opening_m)
        self.data.xfrc_applied[self.body] = 0

    def open_to(self, opening_m: float) -> None:
        """The opening the fingers are driven to; a negative one presses them together with all the force they have."""
        self.data.ctrl[self.actuators] = opening_m / 2

    def follow(self, T: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray) -> None:
        """Pulls the palm towards a pose, within the arm's force.

        Args:
            T: [4, 4] T_world_gripper wanted now. velocity: [6] wanted, metres and radians per second, world axes.
            acceleration: [3] wanted, metres per second squared.
        """
        import mujoco

        data, stiffness = self.data, (2 * np.pi * STIFFNESS_HZ) ** 2
        damping = 2 * np.sqrt(stiffness)
        spin = np.empty(3)
        R = data.xmat[self.body].reshape(3, 3)
        mujoco.mju_rotVecQuat(spin, data.qvel[self.dof + 3 : self.dof + 6], data.xquat[self.body])
        force = self.mass * (
            stiffness * (T[:3, 3] - data.xpos[self.body])
            + damping * (velocity[:3] - data.qvel[self.dof : self.dof + 3])
            + acceleration
        )
        E = T[:3, :3] @ R.T
        # The skew part is the sine of the angle times the axis.
        turn = 0.5 * np.array([E[2, 1] - E[1, 2], E[0, 2] - E[2, 0], E[1, 0] - E[0, 1]])
        torque = PALM_INERTIA_KG_M2 * (stiffness * turn + damping * (velocity[3:] - spin))
        data.xfrc_applied[self.body, :3] = _limited(force, MAX_FORCE_N)
        data.xfrc_applied[self.body, 3:] = _limited(torque, MAX_TORQUE_NM)


def _limited(vector: np.ndarray, longest: float) -> np.ndarray:
    """The vector, cut to a length."""
    length = float(np.linalg.norm(vector))
    return vector if length <= longest else vector * (longest / length)
