"""Part labels of the simulator against shapes measured by hand, a ray through each point, and closed forms."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from semfield_ros.errors import ConfigError
from semfield_ros.geometry import back_project, look_at, transform_points
from semfield_ros.sources.simulator import Simulator, SimulatorConfig
from semfield_ros.sources.simulator_objects import KINDS, PART_NAMES, Part, Zone
from semfield_ros.sources.simulator_parts import distance_to, encloses, nearest_part, part_of, surface_samples
from semfield_ros.sources.simulator_scene import Placed, place_objects
from semfield_ros.sources.simulator_shapes import box, lathe

SMALL = {"width": 160, "height": 120, "frames": 4, "processes": 0}


def placed(kind_name: str, T_world_object: np.ndarray | None = None, seed: int = 1) -> Placed:
    kind = next(k for k in KINDS if k.name == kind_name)
    T = np.eye(4) if T_world_object is None else T_world_object
    return Placed(kind, "red", np.array([0.8, 0.1, 0.1]), kind.build(np.random.default_rng(seed)), T)


def close_up(item: Placed, eye=(0.22, -0.3, 0.3), at=(0.0, 0.0, 0.06)) -> tuple[Simulator, np.ndarray]:
    return Simulator(SimulatorConfig(**SMALL), objects=(item,)), look_at(np.array(eye), np.array(at))


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(SimulatorConfig(seed=3, **SMALL))


def test_zones_change_no_shape():
    """Shapes and order of the catalogue are those on which all figures rest: a hash of what a fixed seed builds."""
    digest = hashlib.sha256()
    for item in place_objects(np.random.default_rng(5), 12, 0.03):
        for part in item.parts:
            digest.update(np.round(part.surface.vertices, 6).astype(np.float32).tobytes() + part.name.encode())
    assert digest.hexdigest()[:16] == "ff5a259f34282807"


def test_every_name_of_the_catalogue_has_a_number_and_every_number_a_part():
    used = {
        name
        for kind in KINDS
        for part in kind.build(np.random.default_rng(0))
        for name in (part.name, *(zone.name for zone in part.zones))
    }
    assert used == set(PART_NAMES[1:]) and PART_NAMES[0] == ""
    assert {"handle", "rim", "neck", "lid", "shaft"} <= used


def test_zones_have_half_open_ends_and_grow_with_the_object():
    zone = Zone("rim", z_m=(0.1, 0.2), radius_m=(0.0, 0.05))
    points = np.array([[0, 0, 0.1], [0, 0, 0.2], [0.03, 0.04, 0.15], [0.03, 0.039, 0.15], [0, 0, 0.099]])
    assert zone.contains(points).tolist() == [True, False, False, True, False]
    part = Part("body", box((0.1, 0.1, 0.2)), zones=(zone, Zone("neck", z_m=(0.05, np.inf))))
    number = part.part_number(points)
    assert [PART_NAMES[k] for k in number] == ["rim", "neck", "neck", "rim", "neck"], "the first zone decides"
    np.testing.assert_array_equal(part.scaled(1.7).part_number(1.7 * points), number)


def test_the_rim_of_a_mug_is_its_upper_edge_wherever_it_lies():
    angle = 1.1
    T = np.eye(4)
    T[:3, :3] = [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    T[:3, 3] = [0.05, -0.02, 0.05]
    item = placed("mug", T)
    simulator, pose = close_up(item, at=(0.05, -0.06, 0.08))
    cast = simulator.cast(pose)
    points, index = back_project(simulator.camera, pose, cast.depth_m)
    image = simulator.part_image(pose)
    assert image.dtype == np.int32 and image.shape == (120, 160)
    height = item.parts[0].surface.vertices[:, 2].max()
    local = (points - T[:3, 3]) @ T[:3, :3]
    number, instance = image.reshape(-1)[index], simulator.scene.geom_instance[cast.geom.reshape(-1)[index]]
    assert ((number > 0) == (instance == 1)).all()
    handle = np.array([simulator.scene.geom_part[g] == "handle" for g in cast.geom.reshape(-1)[index]])
    expected = np.where(handle, "handle", np.where(local[:, 2] >= height - 0.018, "rim", "body"))
    mug = instance == 1
    # within a hair of the boundary single precision may decide either way
    sure = mug & (np.abs(local[:, 2] - height + 0.018) > 1e-5)
    assert [PART_NAMES[k] for k in number[sure]] == expected[sure].tolist()
    assert set(expected[mug]) == {"rim", "body", "handle"}


def test_nearest_parts_agree_with_what_rays_meet(simulator):
    asked = 0
    for T in simulator.path(2):
        cast = simulator.cast(T)
        points, index = back_project(simulator.camera, T, cast.depth_m)
        geom = cast.geom.reshape(-1)[index]
        number = part_of(simulator.scene, geom, points)
        for truth in simulator.objects:
            mine = np.flatnonzero(simulator.scene.geom_instance[geom] == truth.instance)[::9]
            names = truth.part_at(points[mine])
            assert np.mean([PART_NAMES[k] == name for k, name in zip(number[mine], names)] or [1]) > 0.97
            asked += len(mine)
    assert asked > 200


def test_parts_follow_an_object_that_was_moved(simulator):
    truth = next(t for t in simulator.objects if len(t.parts) > 1)
    cloud = np.concatenate([p.points_world[::40] for p in truth.parts]).astype(np.float64)
    before = truth.part_at(cloud)
    shift = np.eye(4)
    shift[:3, :3], shift[:3, 3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]], [0.1, 0.2, 0.3]
    assert truth.part_at(transform_points(shift, cloud), shift @ truth.T_world_object) == before


def test_truth_parts_are_each_name_once_on_their_own_surface(simulator):
    for truth in simulator.objects:
        names = [part.name for part in truth.parts]
        assert len(names) == len(set(names))
        for part in truth.parts:
            assert part.points_world.dtype == np.float32 and len(part.points_world) > 10
            some = part.points_world[:: max(1, len(part.points_world) // 40)]
            assert np.mean([name == part.name for name in truth.part_at(some)]) > 0.9, (truth.kind, part.name)
            local = (some - truth.T_world_box[:3, 3]) @ truth.T_world_box[:3, :3]
            assert (np.abs(local) <= truth.half_extents_m + 1e-5).all()


def test_samples_are_even_in_area_and_outside_other_parts():
    """A cube of 4 cm with a knob: the knob's foot inside the cube has no samples, every face of the cube its share."""
    cube, knob = Part("body", box((0.04, 0.04, 0.04))), Part("handle", box((0.01, 0.01, 0.05), (0, 0, 0.025)))
    item = Placed(KINDS[0], "red", np.ones(3), (cube, knob), np.eye(4))
    points, number = surface_samples(item, spacing_m=0.001)
    handle = points[number == PART_NAMES.index("handle")]
    assert handle[:, 2].min() >= 0.02 - 1e-9 and len(handle) == pytest.approx(4 * 300 + 100, rel=0.12)
    body = points[number == PART_NAMES.index("body")]
    assert len(body) == pytest.approx(6 * 1600 - 100, rel=0.05)
    top = np.abs(body[:, 2] - 0.02) < 1e-12
    assert not (np.abs(body[top][:, :2]) < 0.005 - 1e-9).all(1).any(), "nothing under the knob"
    np.testing.assert_array_equal(surface_samples(item, 0.001)[0], points)


def test_distance_and_inside_are_those_of_a_box_and_a_cylinder():
    rng = np.random.default_rng(2)
    half = np.array([0.5, 1.0, 1.5])
    points = rng.uniform(-2, 2, (400, 3))
    q = np.abs(points) - half
    signed = np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)
    solid = box(2 * half)
    np.testing.assert_allclose(distance_to(solid, points), np.abs(signed), atol=1e-12)
    np.testing.assert_array_equal(encloses(solid, points), signed < 0)
    cup = lathe([(0, 0), (1, 0), (1, 2), (0.8, 2), (0.8, 0.2), (0, 0.2)], segments=200)
    radius = np.hypot(points[:, 0], points[:, 1])
    wall = (radius < 1) & (points[:, 2] > 0) & (points[:, 2] < 2) & ~((radius < 0.8) & (points[:, 2] > 0.2))
    clear = np.minimum.reduce([np.abs(radius - 1), np.abs(radius - 0.8)]) > 1e-3
    np.testing.assert_array_equal(encloses(cup, points)[clear], wall[clear])


def test_part_points_are_the_surface_points_with_their_parts(simulator):
    points, part, instance = simulator.part_points(1500, seed=2, views=4)
    same, _, semantic, same_instance = simulator.surface_points(1500, seed=2, views=4)
    np.testing.assert_array_equal(points, same)
    np.testing.assert_array_equal(instance, same_instance)
    assert ((part > 0) == (instance > 0)).all() and (semantic[part > 0] > 3).all()
    truth = simulator.objects[0]
    mine = np.flatnonzero(instance == truth.instance)[:60]
    assert np.mean([simulator.scene.part_names[k] == n for k, n in zip(part[mine], truth.part_at(points[mine]))]) > 0.95


def test_a_whole_wine_glass_is_base_stem_bowl_and_rim_from_below():
    item = placed("wine glass")
    z = np.sort(item.parts[0].surface.vertices[:, 2])
    heights = np.linspace(z[0], z[-1], 200)
    profile = nearest_part(item, np.stack([np.full(200, 0.03), np.zeros(200), heights], 1))
    names = [PART_NAMES[k] for k in profile]
    assert list(dict.fromkeys(names)) == ["base", "stem", "bowl", "rim"] and names == sorted(
        names, key=["base", "stem", "bowl", "rim"].index
    )


def test_points_that_do_not_belong_to_the_geoms_are_refused(simulator):
    with pytest.raises(ConfigError, match=r"expected \(4, 3\)"):
        part_of(simulator.scene, np.zeros(4, int), np.zeros((5, 3)))
    assert part_of(simulator.scene, np.array([-1, 0]), np.zeros((2, 3))).tolist() == [0, 0]
