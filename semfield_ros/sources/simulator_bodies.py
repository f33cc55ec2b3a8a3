"""A table scene as a MuJoCo model: free bodies of convex pieces on a table, everyday masses, and the gripper."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial import ConvexHull

from ..config import GripperConfig
from ..errors import SourceError
from .simulator_gripper import GRIPPER_BIT, OBJECT_BIT, SUPPORT_BIT, add_gripper
from .simulator_scene import FLOOR_Z_M, TABLE_HALF_M, TABLE_THICKNESS_M, Placed

TIMESTEP_S = 0.002
MASS_KG = {
    "mug": 0.3, "bowl": 0.3, "plate": 0.4, "bottle": 0.5, "wine glass": 0.18, "pitcher": 0.6, "can": 0.35,
    "cereal box": 0.4, "book": 0.45, "banana": 0.15, "ball": 0.08, "screwdriver": 0.12, "hammer": 0.45, "spoon": 0.06,
    "frying pan": 0.6, "flashlight": 0.18, "toy car": 0.2,
}  # fmt: skip
"""What such things weigh; any other kind weighs 400 kg per cubic metre."""
HEAVY_PARTS = {("hammer", "head"): 8.0, ("screwdriver", "shaft"): 6.0}
"""Densities that differ from the rest of the object's."""


def compile_bodies(
    objects: tuple[Placed, ...], gripper: GripperConfig, friction: float, grip_force_n: float, surface_friction: float
) -> tuple[Any, dict[int, tuple[int, int]]]:
    """MuJoCo's model, and {geom: (instance, number of the object's surface)}; instance 0 is the table and the floor."""
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise SourceError("the simulator needs MuJoCo: pip install 'semfield_ros[sim]'") from error

    spec = mujoco.MjSpec()
    spec.memory = 64 * 2**20
    option = spec.option
    option.timestep, option.integrator = TIMESTEP_S, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone, option.impratio, option.noslip_iterations = mujoco.mjtCone.mjCONE_ELLIPTIC, 10.0, 3
    # Flat contacts need several points; the flag became the default in MuJoCo 4.
    option.enableflags |= int(getattr(mujoco.mjtEnableBit, "mjENBL_MULTICCD", 0))
    surface = {"condim": 6, "solref": [0.005, 1.0], "friction": [surface_friction, 0.003, 0.0005]}
    support = {"contype": SUPPORT_BIT, "conaffinity": GRIPPER_BIT, **surface}
    box, mesh = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_MESH
    world, thick = spec.worldbody, TABLE_THICKNESS_M
    world.add_geom(name="table", type=box, size=(*TABLE_HALF_M, thick / 2), pos=(0, 0, -thick / 2), **support)
    world.add_geom(name="floor", type=box, size=(40, 40, 0.5), pos=(0, 0, FLOOR_Z_M - 0.5), **support)
    found: dict[str, tuple[int, int]] = {"table": (0, 0), "floor": (0, 0)}
    for instance, item in enumerate(objects, start=1):
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(item.T_world_object[:3, :3]).reshape(-1))
        body = world.add_body(name=f"object{instance}", pos=item.T_world_object[:3, 3], quat=quaternion)
        body.add_freejoint(name=f"object{instance}")
        # A plane meets a solid where it meets its convex hull: one geom for the table, instead of a hundred pieces.
        vertices = np.concatenate([part.surface.vertices for part in item.parts])
        spec.add_mesh(name=f"hull{instance}", uservert=vertices[ConvexHull(vertices).vertices].reshape(-1))
        body.add_geom(
            name=f"hull{instance}", type=mesh, meshname=f"hull{instance}", mass=0, contype=0, conaffinity=SUPPORT_BIT,
            **surface,
        )  # fmt: skip
        for number, part in enumerate(item.parts):
            for piece, index in enumerate(part.surface.pieces):
                name = f"{instance}/{number}/{piece}"
                found[name] = (instance, number)
                spec.add_mesh(name=name, uservert=part.surface.vertices[index].reshape(-1).astype(np.float32))
                density = 400.0 * HEAVY_PARTS.get((item.kind.name, part.name), 1.0)
                body.add_geom(
                    name=name, type=mesh, meshname=name, density=density, contype=OBJECT_BIT,
                    conaffinity=OBJECT_BIT | GRIPPER_BIT, **surface,
                )  # fmt: skip
    add_gripper(spec, gripper, friction, grip_force_n)
    model = spec.compile()
    for instance, item in enumerate(objects, start=1):
        body_id = model.body(f"object{instance}").id
        factor = MASS_KG.get(item.kind.name, model.body_mass[body_id]) / model.body_mass[body_id]
        model.body_mass[body_id] *= factor
        model.body_inertia[body_id] *= factor
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model, {model.geom(name).id: what for name, what in found.items()}
