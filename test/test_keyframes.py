"""Keyframes: novelty by hand, admission, forgetting the most redundant, pose corrections."""

from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import frame_at, ring
from scipy.spatial.transform import Rotation

from semfield_ros.config import MemoryConfig
from semfield_ros.geometry import look_at
from semfield_ros.memory.keyframes import Keyframes, view_distances

CONFIG = MemoryConfig(min_translation_m=0.1, min_rotation_deg=10.0)
FRAME = frame_at(ring(1)[0])


def at(x: float = 0.0, yaw_deg: float = 0.0, stamp_s: float = 0.0):
    T = np.eye(4)
    T[:3, :3], T[0, 3] = Rotation.from_euler("y", yaw_deg, degrees=True).as_matrix(), x
    return replace(FRAME, T_world_camera=T, stamp_s=stamp_s)


@pytest.mark.parametrize(
    ("x", "yaw", "distance"), [(0.05, 0, 0.5), (0.3, 0, 3), (0, 5, 0.5), (0, 25, 2.5), (0.05, 25, 2.5), (0.3, 25, 3)]
)
def test_view_distance_by_hand(x, yaw, distance):
    a, b = at().T_world_camera, at(x, yaw).T_world_camera
    assert view_distances(CONFIG, a[None], b) == pytest.approx(distance, abs=1e-6)
    assert view_distances(CONFIG, b[None], a) == pytest.approx(distance, abs=1e-6)


def test_novelty_is_the_distance_to_the_nearest():
    keyframes = Keyframes(CONFIG, 10)
    assert keyframes.novelty(at()) == float("inf")
    for x in (0.0, 1.0):
        keyframes.admit(at(x))
    assert keyframes.novelty(at(0.25)) == pytest.approx(2.5)
    assert keyframes.novelty(at(0.97)) == pytest.approx(0.3)


def test_ids_are_never_reused_and_slots_always_differ():
    keyframes = Keyframes(CONFIG, 7)
    rng = np.random.default_rng(0)
    admitted = []
    for i in range(60):
        admitted.append(keyframes.admit(at(rng.uniform(-2, 2), rng.uniform(-180, 180), float(i))))
        assert len(keyframes) <= 7
        assert sorted(k.slot for k in keyframes.items) == list(range(len(keyframes)))
    assert [k.id for k in admitted] == list(range(60))
    assert keyframes.items[-1] == admitted[-1] and admitted[-1].stamp_s == 59.0
    assert [k.id for k in keyframes.items] == sorted(k.id for k in keyframes.items), "oldest first"


def test_of_the_two_closest_the_older_makes_room():
    keyframes = Keyframes(CONFIG, 8)
    for x in (0.0, 1.0, 1.02, 3.0, 4.0, 5.0, 6.0, 7.0):
        keyframes.admit(at(x))
    slot = keyframes.items[1].slot
    assert keyframes.admit(at(8.0)).slot == slot
    assert [round(float(k.T_world_camera[0, 3]), 2) for k in keyframes.items] == [0, 1.02, 3, 4, 5, 6, 7, 8]


def test_turning_counts_as_well_as_moving():
    keyframes = Keyframes(CONFIG, 7)
    for yaw in (0, 90, 93, 180, 270, 45, 135):
        keyframes.admit(at(0.0, yaw))
    keyframes.admit(at(0.0, 225))
    assert [k.id for k in keyframes.items] == [0, 2, 3, 4, 5, 6, 7]


def test_the_newest_are_kept_however_close_they_are():
    keyframes = Keyframes(CONFIG, 6)
    for x in (0.0, 5.0, 5.001, 5.002, 5.003, 5.004):
        keyframes.admit(at(x))
    keyframes.admit(at(5.005))
    assert [k.id for k in keyframes.items] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("capacity", [1, 2])
def test_tiny_capacities_work(capacity):
    keyframes = Keyframes(CONFIG, capacity)
    for i in range(5):
        assert 0 <= keyframes.admit(at(float(i))).slot < capacity
    assert len(keyframes) == capacity and keyframes.items[-1].id == 4


def test_pose_corrections():
    keyframes = Keyframes(CONFIG, 3)
    for x in (0.0, 1.0, 2.0):
        keyframes.admit(at(x))
    T = look_at([0.0, 5.0, 1.0], [0.0, 0.0, 0.0])
    corrected = keyframes.replace_pose(1, T)
    assert corrected.id == 1 and corrected.slot == 1 and np.array_equal(corrected.T_world_camera, T)
    assert keyframes.items[1] is corrected and keyframes.novelty(at(1.0)) >= 9
    T[:3, 3] = 0.0
    assert corrected.T_world_camera[1, 3] == 5.0, "a private copy"
    assert keyframes.replace_pose(17, T) is None


def test_restore_continues():
    first = Keyframes(CONFIG, 3)
    for x in (0.0, 1.0, 2.0):
        first.admit(at(x))
    second = Keyframes(CONFIG, 3)
    second.restore(first.items, first.next_id)
    a, b = first.admit(at(3.0)), second.admit(at(3.0))
    assert (a.id, a.slot) == (b.id, b.slot) == (3, a.slot)
