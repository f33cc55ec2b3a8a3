"""Grasps in physics: Coulomb's law, what must be missed, hit or held, and that nothing else moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from semfield_ros.config import GripperConfig
from semfield_ros.errors import ConfigError
from semfield_ros.sources.simulator import Simulator, SimulatorConfig
from semfield_ros.sources.simulator_objects import KINDS, Kind, Part
from semfield_ros.sources.simulator_physics import PhysicsWorld
from semfield_ros.sources.simulator_scene import FLOOR_Z_M, TABLE_HALF_M, Placed
from semfield_ros.sources.simulator_shapes import box

GRIPPER = GripperConfig()


def at(position, parts, name="block", colour="red") -> Placed:
    T = np.eye(4)
    T[:3, 3] = position
    return Placed(Kind(name, (), lambda rng: parts, ()), colour, np.ones(3), parts, T)


def block(size=(0.05, 0.05, 0.08), position=(0.0, 0.0, 0.0), colour="red") -> Placed:
    return at(position, (Part("body", box(size, (0, 0, size[2] / 2))),), colour=colour)


def thing(name: str, position=(0.0, 0.0, 0.0), colour="red") -> Placed:
    kind = next(kind for kind in KINDS if kind.name == name)
    return at(position, kind.build(np.random.default_rng(4)), name, colour)


def top_grasp(x: float, y: float, tip_z: float, closing=(1.0, 0.0)) -> np.ndarray:
    """A pose that looks straight down."""
    T = np.eye(4)
    T[:3, 0], T[:3, 2] = (*closing, 0), (0, 0, -1)
    T[:3, 1] = np.cross(T[:3, 2], T[:3, 0])
    T[:3, 3] = x, y, tip_z
    return T


HAND_MADE = [("can", 0.068, 0.08), ("ball", 0.07, 0.036), ("mug", None, 0.08)]


@pytest.mark.parametrize(("name", "width_m", "tip_m"), HAND_MADE)
def test_everyday_things_are_lifted_and_held_through_the_shake(name, width_m, tip_m):
    item = thing(name)
    x = 0.0
    if width_m is None:  # the rim of the mug, across its wall
        rim = item.parts[0].surface.vertices
        x, width_m, tip_m = -rim[:, 0].max() + 0.004, 0.009, rim[:, 2].max() - 0.012
    trial = PhysicsWorld((item,)).execute(top_grasp(x, 0, tip_m), width_m)
    assert (trial.reason, trial.reached, trial.lifted, trial.held) == ("held", True, True, True), trial
    assert trial.grasped_instance == 1 and trial.lifted_instances == (1,)
    assert trial.collisions == () and trial.slip_m < 0.005
    assert trial.moved[1] > 0.15 and set(trial.contact_fingers) == {-1, 1} and set(trial.contact_instances) == {1}


def test_contacts_tell_the_exact_place_and_part():
    hammer = thing("hammer", (0.1, 0.05, 0.02))
    turned = np.eye(4)
    turned[:3, :3] = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], float)  # handle along x, the head's ends along y
    turned[:3, 3] = 0.0, 0.0, 0.017
    world = PhysicsWorld((replace(hammer, T_world_object=turned),))
    world.settle()
    trial = world.execute(top_grasp(0.1, 0, 0.006, closing=(0.0, 1.0)), 0.03)
    assert trial.reason == "held" and set(trial.contact_parts) == {"handle"}
    radius = np.hypot(*trial.contact_points_object[:, :2].T)
    assert (np.abs(radius - 0.0125) < 0.004).all() and (np.abs(trial.contact_points_object[:, 2] - 0.1) < 0.02).all()
    world = PhysicsWorld((block((0.05, 0.06, 0.08)),))
    trial = world.execute(top_grasp(0, 0, 0.05), 0.05)
    assert trial.opening_m == pytest.approx(0.05, abs=1e-3)
    np.testing.assert_allclose(np.abs(trial.contact_points_object[:, 0]), 0.025, atol=1e-3)
    np.testing.assert_array_equal(np.sign(trial.contact_points_world[:, 0]), trial.contact_fingers)


@pytest.mark.parametrize(("share", "reason"), [(0.65, "slipped"), (1.5, "held")])
def test_coulomb_a_block_slips_when_its_weight_exceeds_twice_the_friction(share, reason):
    item = block((0.06, 0.06, 0.12))
    weight_n, force_n = 0.06 * 0.06 * 0.12 * 400 * 9.81, 5.0
    friction = share * weight_n / (2 * force_n)
    world = PhysicsWorld((item,), friction=friction, grip_force_n=force_n)
    trial = world.execute(top_grasp(0, 0, 0.08), 0.06, shake=False)
    assert trial.reason == reason and trial.grasped_instance == 1


def test_empty_air_is_missed_and_nothing_moves():
    world = PhysicsWorld((block(position=(0.3, 0, 0)),))
    trial = world.execute(top_grasp(-0.2, 0, 0.05), 0.04)
    assert trial.reason == "missed" and trial.reached and trial.grasped_instance is None and not trial.collisions
    assert trial.moved[1] < 1e-3 and len(trial.contact_points_world) == 0


def test_table_and_neighbours_in_the_way_are_reported():
    world = PhysicsWorld((block(), block(position=(0.046, 0, 0), colour="blue")))
    state = world.snapshot()
    into_table = world.execute(top_grasp(-0.2, 0, -0.03), 0.04)
    assert into_table.reason == "blocked" and not into_table.reached
    assert {(c.instance, c.name) for c in into_table.collisions} == {(0, "table")}
    assert max(c.force_n for c in into_table.collisions) > 20
    world.restore(state)
    into_block = world.execute(top_grasp(0, 0, 0.03), 0.05)
    assert (2, "blue block") in {(c.instance, c.name) for c in into_block.collisions}
    assert {c.part for c in into_block.collisions if c.instance == 2} <= {"finger +x", "palm"}
    world.restore(state)
    from_inside = world.execute(top_grasp(0, 0, 0.01), 0.05, standoff_m=0.0)
    assert from_inside.reason == "blocked" and from_inside.collisions, "the pre-grasp pose itself is in the way"
    world.restore(state)
    clear = world.execute(top_grasp(0, 0, 0.05, (0, 1)), 0.05, shake=False)
    assert clear.reason == "held" and not clear.collisions, "in y nothing is in the way"
    world.restore(state)
    again = world.execute(top_grasp(0, 0, 0.05, (0, 1)), 0.05, shake=False)
    np.testing.assert_array_equal(again.contact_points_world, clear.contact_points_world)
    assert again.moved == clear.moved, "the same state gives the same trial"


def test_what_is_taken_away_is_gone_and_the_rest_stays():
    world = PhysicsWorld((thing("ball"), block(position=(0.2, 0.1, 0), colour="blue"), thing("can", (-0.25, 0, 0))))
    world.settle()
    assert world.execute(top_grasp(0, 0, 0.032), 0.07).reason == "held"
    rest = {i: world.pose(i) for i in (2, 3)}
    assert world.take_away() == 1
    assert world.instances_now == (2, 3)
    for instance, item in zip(world.instances_now, world.objects_now()):
        assert item.kind.name == world.objects[instance - 1].kind.name
        np.testing.assert_allclose(item.T_world_object, rest[instance], atol=1e-3)
    second = world.execute(top_grasp(0.2, 0.1, 0.05), 0.05, shake=False)
    assert second.reason == "held" and second.grasped_instance == 2
    assert world.take_away(3) == 3 and world.take_away() is None
    with pytest.raises(ConfigError, match="not in this scene"):
        world.take_away(9)


def test_what_is_pushed_off_the_table_is_no_longer_on_it():
    world = PhysicsWorld((block(position=(TABLE_HALF_M[0] + 0.01, 0, 0)), block()))
    world.settle()
    assert world.instances_now == (2,) and FLOOR_Z_M - 0.1 < world.pose(1)[2, 3] < -0.1


def test_scenes_stand_still_and_balls_do_not_roll_away():
    moved = []
    for seed in (45, 46):
        world = PhysicsWorld(Simulator(SimulatorConfig(seed=seed, processes=0)).scene.objects)
        before = world.poses
        assert world.settle() < 0.02
        moved += [float(np.linalg.norm(world.pose(i)[:3, 3] - T[:3, 3])) for i, T in before.items()]
    assert np.median(moved) < 5e-4 and np.mean(np.array(moved) < 2e-3) > 0.9
    world = PhysicsWorld((thing("ball"),))
    assert world.settle() < 1e-3
    world.data.qvel[world.model.joint("object1").dofadr[0]] = 0.1
    world.settle()
    assert world.pose(1)[0, 3] < 0.1 and np.abs(world.data.qvel).max() < 0.05, "rolling friction stops it"


def test_frames_come_at_25_hz_and_show_the_lift():
    frames = []
    world = PhysicsWorld((block(),))
    trial = world.execute(top_grasp(0, 0, 0.05), 0.05, shake=False, on_step=lambda *frame: frames.append(frame))
    times = np.array([frame[0] for frame in frames])
    np.testing.assert_allclose(np.diff(times), 0.04, atol=0.0021)
    assert times[-1] <= trial.duration_sim_s and len(times) == pytest.approx(25 * trial.duration_sim_s, abs=2)
    assert frames[-1][3][1][2, 3] == pytest.approx(0.2, abs=0.01) and frames[-1][1].shape == (4, 4)
    assert frames[0][2] == pytest.approx(0.06, abs=1e-3) and frames[-1][2] == pytest.approx(0.05, abs=1e-3)


def test_unusable_requests_are_refused():
    world = PhysicsWorld((block(),), GRIPPER)
    skewed, lost = top_grasp(0, 0, 0.05), top_grasp(0, 0, np.nan)
    skewed[0, 0] = 1.2
    for T in (skewed, lost, np.eye(3)):
        with pytest.raises(ConfigError, match="rigid"):
            world.execute(T, 0.05)
    for width_m in (-0.01, 0.2, float("nan")):
        with pytest.raises(ConfigError, match="width_m"):
            world.execute(top_grasp(0, 0, 0.05), width_m)
    with pytest.raises(ConfigError, match="lift_m"):
        world.execute(top_grasp(0, 0, 0.05), 0.05, lift_m=-1)
    with pytest.raises(ConfigError, match="friction"):
        PhysicsWorld((), friction=0.0)
