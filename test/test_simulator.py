"""The simulator against geometry computed by hand, its own labels, and the laws a recording must obey."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from semfield_ros.errors import ConfigError, SourceError
from semfield_ros.frame import make_frame
from semfield_ros.geometry import back_project, image_directions, look_at, project
from semfield_ros.sources.simulator import EVALUATION_SEEDS, Simulator, SimulatorConfig
from semfield_ros.sources.simulator_objects import COLOURS, KINDS
from semfield_ros.sources.simulator_render import Caster, Look, Shader
from semfield_ros.sources.simulator_scene import CLASS_NAMES, TABLE_HALF_M, Placed, compile_scene, place_objects
from semfield_ros.sources.simulator_shapes import box, lathe, tube

SMALL = {"width": 160, "height": 120, "frames": 8, "processes": 0}


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(SimulatorConfig(seed=3, **SMALL))


def enclosed_volume(surface) -> float:
    """By the divergence theorem; positive only when the faces look outward."""
    a, b, c = (surface.vertices[surface.faces[:, k]] for k in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def test_shapes_are_closed_and_face_outward():
    cylinder = lathe([(0, 0), (1, 0), (1, 2), (0, 2)], segments=400)
    assert enclosed_volume(cylinder) == pytest.approx(2 * np.pi, rel=1e-3)
    assert enclosed_volume(box((1, 2, 3), (5, 5, 5))) == pytest.approx(6)
    rod = tube([(0, 0, 0), (1, 0, 0), (3, 0, 0)], 0.5, sides=400)
    assert enclosed_volume(rod) == pytest.approx(3 * np.pi * 0.25, rel=1e-3)
    for kind in KINDS:
        for part in kind.build(np.random.default_rng(0)):
            faces = part.surface.faces
            edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
            forward = {tuple(edge) for edge in edges.tolist()}
            assert len(forward) == len(edges) and all((b, a) in forward for a, b in forward), (kind.name, part.name)
            assert enclosed_volume(part.surface) > 0, (kind.name, part.name)


def test_catalogue_is_wide_enough():
    assert len(KINDS) >= 14 and len(COLOURS) >= 8
    words = [word for kind in KINDS for word in (kind.name, *kind.synonyms)]
    assert len(words) == len(set(words)), "a word that means two kinds cannot be evaluated"


def test_depth_of_the_table_is_the_ray_plane_intersection(simulator):
    T = look_at([0.5, -0.3, 0.6], [0, 0, 0])
    frame = simulator.render(T, noisy=False)
    rays = image_directions(frame.camera) @ T[:3, :3].T
    expected = -T[2, 3] / rays[..., 2]
    hit = T[:3, 3] + rays * expected[..., None]
    on_top = (frame.semantic == CLASS_NAMES.index("table")) & (
        np.abs(hit[..., :2]) < np.array(TABLE_HALF_M) - 1e-3
    ).all(-1)
    assert on_top.sum() > 2000
    np.testing.assert_allclose(frame.depth_m[on_top], expected[on_top], atol=2e-5)
    inside = (np.abs(hit[..., :2]) < np.array(TABLE_HALF_M)).all(-1) & (rays[..., 2] < 0)
    assert (frame.depth_m[inside] <= expected[inside] + 1e-4).all(), "nothing is seen through the table"


def test_depth_of_a_ball_is_the_ray_sphere_intersection():
    kind = next(k for k in KINDS if k.name == "ball")
    parts = kind.build(np.random.default_rng(5))
    radius = parts[0].surface.vertices[:, 2].max() / 2
    pose = np.eye(4)
    pose[:3, 3] = [0.1, 0.05, 0.0]
    centre = pose[:3, 3] + [0, 0, radius]
    scene = compile_scene((Placed(kind, "red", np.array([0.8, 0.1, 0.1]), parts, pose),))
    camera = Simulator(SimulatorConfig(**SMALL)).camera
    T = look_at([0.45, 0.2, 0.35], centre)
    cast = Caster(scene).cast(camera, T)
    rays = (image_directions(camera) @ T[:3, :3].T).reshape(-1, 3).astype(np.float64)
    # |o + t d - c|^2 = r^2, smaller root; d has z = 1 in the camera, so t is z-depth.
    offset = T[:3, 3] - centre
    a, half_b = (rays**2).sum(1), rays @ offset
    discriminant = half_b**2 - a * (offset @ offset - radius**2)
    hit = discriminant > (0.2 * radius) ** 2 * a
    t = (-half_b - np.sqrt(np.maximum(discriminant, 0))) / a
    assert hit.sum() > 100
    np.testing.assert_allclose(cast.depth_m.reshape(-1)[hit], t[hit], atol=4e-4)
    assert (scene.geom_instance[cast.geom.reshape(-1)[hit]] == 1).all()
    missed = discriminant < 0
    assert (scene.geom_instance[cast.geom.reshape(-1)[missed]] == 0).all()
    normal = (T[:3, 3] + rays[hit] * t[hit, None] - centre) / radius
    assert (np.einsum("ij,ij->i", cast.normal.reshape(-1, 3)[hit], normal) > 0.97).all()


def test_cups_are_hollow():
    kind = next(k for k in KINDS if k.name == "mug")
    parts = kind.build(np.random.default_rng(1))
    height = parts[0].surface.vertices[:, 2].max()
    scene = compile_scene((Placed(kind, "red", np.ones(3), parts, np.eye(4)),))
    camera = Simulator(SimulatorConfig(**SMALL)).camera
    cast = Caster(scene).cast(camera, look_at([0, 0, 0.5], [0, 0, 0]))
    floor_of_cup = 0.5 - cast.depth_m[camera.height // 2, camera.width // 2]
    assert 0.004 < floor_of_cup < 0.02 < height


def test_culled_rays_hit_what_all_rays_hit(simulator):
    for T in simulator.path(4):
        cast = simulator.cast(T)
        rays = image_directions(simulator.camera).reshape(-1, 3).astype(np.float64) @ T[:3, :3].T
        geom, distance = np.full(len(rays), -1, np.int32), np.zeros(len(rays))
        scene = simulator.scene
        mujoco.mj_multiRay(
            scene.model,
            scene.data,
            T[:3, 3].copy(),
            rays.reshape(-1),
            None,
            1,
            -1,
            geom,
            distance,
            None,
            len(rays),
            20.0,
        )
        np.testing.assert_array_equal(cast.geom.reshape(-1), geom)
        np.testing.assert_allclose(cast.depth_m.reshape(-1), distance, rtol=1e-5)


def test_processes_change_nothing():
    one, two = (Simulator(SimulatorConfig(seed=1, **{**SMALL, "processes": n})) for n in (0, 2))
    frames = list(one)
    assert len(frames) == len(one) == 8
    for a, b in zip(frames, two, strict=True):
        assert a.stamp_s == b.stamp_s
        for name in ("T_world_camera", "rgb", "depth_m", "semantic", "instance"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_a_process_that_ends_is_an_error_not_a_hang(monkeypatch):
    monkeypatch.setattr("semfield_ros.sources.simulator_worker.__name__", "semfield_ros.sources.no_such_module")
    with pytest.raises(SourceError, match="ended before"):
        list(Simulator(SimulatorConfig(**{**SMALL, "processes": 1})))


def test_processes_end_with_the_iterator():
    stream = iter(Simulator(SimulatorConfig(**{**SMALL, "processes": 2})))
    next(stream)
    children = list(stream.gi_frame.f_locals["processes"])
    stream.close()
    assert [p.poll() is not None for p in children] == [True, True]


def test_labels_agree_with_the_truth_records(simulator):
    seen = set()
    for T in simulator.path(6):
        frame = simulator.render(T, noisy=False)
        points, index = back_project(frame.camera, T, frame.depth_m)
        instance, semantic = frame.instance.reshape(-1)[index], frame.semantic.reshape(-1)[index]
        assert (semantic[instance == 0] <= 3).all()
        for truth in simulator.objects:
            mine = instance == truth.instance
            if not mine.any():
                continue
            seen.add(truth.instance)
            assert {simulator.class_names[i] for i in set(semantic[mine].tolist())} == {truth.kind}
            local = (points[mine] - truth.T_world_box[:3, 3]) @ truth.T_world_box[:3, :3]
            assert (np.abs(local) <= truth.half_extents_m + 1e-3).all()
    assert seen == {truth.instance for truth in simulator.objects}


def test_views_agree_on_where_surfaces_are(simulator):
    poses = simulator.path(12)
    first, second = (simulator.render(T, noisy=False) for T in poses[:2])
    points, index = back_project(first.camera, poses[0], first.depth_m)
    u, v, z = project(second.camera, poses[1], points)
    inside = (z > 0) & (u > 1) & (v > 1) & (u < second.camera.width - 2) & (v < second.camera.height - 2)
    pixel = (np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int))
    difference = second.depth_m[pixel] - z[inside]
    # Rounding to a pixel moves along slanted surfaces by a few millimetres; occlusion only makes depth smaller.
    assert (difference < 0.03).mean() > 0.98
    close = np.abs(difference) < 0.01
    assert close.mean() > 0.75
    same = second.instance[pixel] == first.instance.reshape(-1)[index][inside]
    assert same[close].mean() > 0.97


def test_the_same_seed_is_the_same_recording_and_another_is_not():
    a, b = (list(Simulator(SimulatorConfig(seed=7, **SMALL))) for _ in range(2))
    assert len(a) == 8
    for x, y in zip(a, b):
        for name in ("rgb", "depth_m", "semantic", "instance", "T_world_camera"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))
        assert x.stamp_s == y.stamp_s
    other = next(iter(Simulator(SimulatorConfig(seed=8, **SMALL))))
    assert (other.rgb != a[0].rgb).mean() > 0.5


def test_iteration_equals_render(simulator):
    frames = list(simulator)
    T, stamp = frames[5].T_world_camera, frames[5].stamp_s
    again = simulator.render(T, stamp)
    np.testing.assert_array_equal(again.rgb, frames[5].rgb)
    np.testing.assert_array_equal(again.depth_m, frames[5].depth_m)
    assert np.diff([f.stamp_s for f in frames]) == pytest.approx(1 / simulator.rate_hz)


def test_frames_pass_the_door(simulator):
    frame = simulator.render(simulator.path(1)[0])
    made = make_frame(
        stamp_s=frame.stamp_s,
        camera=frame.camera,
        T_world_camera=frame.T_world_camera,
        rgb=frame.rgb,
        depth=frame.depth_m,
        semantic=frame.semantic,
        instance=frame.instance,
    )
    np.testing.assert_array_equal(made.depth_m, frame.depth_m)


def test_depth_noise_has_the_stated_spread():
    simulator = Simulator(SimulatorConfig(seed=2, **SMALL))
    T = look_at([0.02, 0.0, 0.95], [0, 0, 0])
    exact = simulator.render(T, noisy=False).depth_m
    table = (simulator.render(T, noisy=False).instance == 0) & (np.abs(exact - 0.95) < 0.01)
    stack = np.stack([simulator.render(T, stamp_s=k).depth_m for k in range(24)])
    measured = stack > 0
    errors = (stack - exact)[measured & table]
    step = 0.0014 * 0.95**2
    expected = np.hypot(0.0012 + 0.0019 * 0.55**2, step / np.sqrt(12))
    assert errors.std() == pytest.approx(expected, rel=0.1)
    assert abs(errors.mean()) < 2e-4
    assert 0.9 < measured[:, table].mean() < 0.999
    values = stack[measured & table]
    assert (values > 0.5).all() and len(np.unique(values)) < 400, "depth is quantised"


def test_depth_is_missing_at_object_edges_more_than_inside(simulator):
    T = simulator.path(4)[1]
    exact = simulator.render(T, noisy=False)
    padded = np.pad(exact.depth_m, 1, mode="edge")
    spread = np.max(
        [np.abs(padded[1:-1, 1:-1] - s) for s in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2])], axis=0
    )
    holes = np.mean([simulator.render(T, stamp_s=k).depth_m == 0 for k in range(6)], axis=0)
    assert holes[spread > 0.08].mean() > 5 * holes[spread < 0.01].mean()


def test_pose_noise_moves_the_report_not_the_world():
    quiet = Simulator(SimulatorConfig(seed=0, **SMALL))
    shaky = Simulator(SimulatorConfig(seed=0, pose_noise_m=0.01, colour_noise=0, depth_noise=0, **SMALL))
    T = quiet.path(1)[0]
    errors = [shaky.render(T, k).T_world_camera[:3, 3] - T[:3, 3] for k in range(60)]
    assert np.std(errors) == pytest.approx(0.01, rel=0.2)
    R = shaky.render(T, 1.0).T_world_camera[:3, :3]
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(shaky.render(T, 1.0).depth_m, quiet.render(T, noisy=False).depth_m)


def test_scenes_are_full_varied_and_collision_free():
    duplicates = 0
    for seed in EVALUATION_SEEDS[:12]:
        placed = place_objects(np.random.default_rng(seed), 10, 0.03)
        assert len(placed) >= 7
        pairs = [(o.kind.name, o.colour) for o in placed]
        assert len(set(pairs)) == len(pairs)
        duplicates += len({kind for kind, _ in pairs}) < len(pairs)
        for item in placed:
            lowest = item.hull_world[:, 2].min()
            assert lowest == pytest.approx(0, abs=1e-9)
            assert (np.abs(item.hull_world[:, :2]) < TABLE_HALF_M).all()
        for i, a in enumerate(placed):
            for b in placed[:i]:
                gap = np.linalg.norm(a.hull_world[:, None, :2] - b.hull_world[None, :, :2], axis=-1).min()
                assert gap > 0.022
    assert duplicates >= 6, "one kind in two colours should be common"


def test_path_goes_round_and_sees_every_object_from_all_sides(simulator):
    seen_from = {truth.instance: [] for truth in simulator.objects}
    for T in simulator.path(36):
        azimuth = np.degrees(np.arctan2(T[1, 3], T[0, 3]))
        image = simulator.scene.geom_instance[simulator.cast(T).geom]
        for instance in np.unique(image[image > 0]):
            seen_from[instance].append(azimuth)
    for azimuths in seen_from.values():
        assert len(azimuths) * 10 >= 200


def test_surface_points_lie_on_surfaces(simulator):
    points, normals, semantic, instance = simulator.surface_points(4000, seed=1, views=8)
    assert points.shape == normals.shape == (4000, 3)
    table = semantic == CLASS_NAMES.index("table")
    top = table & (normals[:, 2] > 0.9)
    assert top.sum() > 1000 and np.abs(points[top, 2]).max() < 1e-4
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-4)
    assert {int(i) for i in instance} == {0, *(truth.instance for truth in simulator.objects)}
    again = simulator.surface_points(4000, seed=1, views=8)
    np.testing.assert_array_equal(again[0], points)


def test_colours_look_like_their_names():
    """The mean hue of each object's own parts is nearest to the colour it is named after."""
    right = total = 0
    for seed in range(4):
        simulator = Simulator(SimulatorConfig(seed=seed, **SMALL))
        cast = simulator.cast(simulator.path(1)[0])
        rgb = simulator.shader.shade(simulator.camera, simulator.path(1)[0], cast)
        palette = np.array(list(COLOURS.values()))
        for truth in simulator.objects:
            mine = (simulator.scene.geom_instance[cast.geom] == truth.instance) & simulator.scene.geom_main[cast.geom]
            if mine.sum() < 30 or truth.colour in ("white", "black"):
                continue
            mean = rgb[mine].mean(0)
            similarity = palette / np.linalg.norm(palette, axis=1, keepdims=True) @ (mean / np.linalg.norm(mean))
            right += list(COLOURS)[int(similarity[:6].argmax())] == truth.colour
            total += 1
    assert total > 10 and right / total > 0.9


def test_shadows_fall_away_from_the_lamp():
    kind = next(k for k in KINDS if k.name == "can")
    parts = kind.build(np.random.default_rng(0))
    caster = Caster(compile_scene((Placed(kind, "red", np.ones(3), parts, np.eye(4)),)))
    look = Look.from_seed(np.random.default_rng(1))
    shader = Shader(caster, look)
    away = -look.lamp_m[:2] / np.linalg.norm(look.lamp_m[:2]) * 0.05
    points = np.array([[*away, 0.0], [*-away, 0.0]], np.float32)
    lit = shader._lit(points, np.full(2, CLASS_NAMES.index("table")))
    assert lit[0] < 0.2 and lit[1] > 0.8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 1.5),
        ("width", 4),
        ("height", 10**6),
        ("horizontal_fov_deg", 0),
        ("frames", 0),
        ("rate_hz", 0.0),
        ("rate_hz", float("nan")),
        ("objects", -2),
        ("objects", 500),
        ("gap_m", 0.0),
        ("depth_noise", -0.1),
        ("depth_noise", float("nan")),
        ("colour_noise", -3),
        ("pose_noise_m", float("inf")),
        ("processes", -1),
        ("width", "wide"),
    ],
)
def test_unusable_settings_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name):
        SimulatorConfig(**{name: value})
