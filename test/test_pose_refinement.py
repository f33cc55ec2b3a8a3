"""Poses that come back: a keyframe reported in the wrong place, and the others staying where they are."""

from dataclasses import replace

import analytic_scene
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

torch = pytest.importorskip("torch")

from semfield_ros import checkpoint  # noqa: E402
from semfield_ros.config import EncoderConfig, HeadsConfig, LanguageConfig  # noqa: E402
from semfield_ros.encoders import create  # noqa: E402
from semfield_ros.field.pose_refinement import PoseRefinement, corrected, linearised, skew  # noqa: E402
from semfield_ros.geometry import rotation_angle_rad  # noqa: E402
from semfield_ros.mapping import Mapping  # noqa: E402
from semfield_ros.memory.features import FeatureShape  # noqa: E402

CONFIG = replace(analytic_scene.SMALL, heads=HeadsConfig(refine_poses=True))
WRONG = np.eye(4)
WRONG[:3, 3] = 0.02, -0.015, 0.01
WRONG[:3, :3] = Rotation.from_rotvec(np.deg2rad([1.5, -1.0, 1.0])).as_matrix()


def mapped(frames: int, steps: int, wrong: int | None = None):
    """A map of the stream with one keyframe's pose perturbed, its replay slots and the true poses."""
    encoder = create(EncoderConfig(name="stub"))
    mapping, true = Mapping(CONFIG, encoder.dim, "cpu"), []
    for i, frame in enumerate(analytic_scene.stream(frames)):
        true.append(frame.T_world_camera)
        target = encoder.encode_frame(frame)
        if i == wrong:
            frame = replace(frame, T_world_camera=frame.T_world_camera @ WRONG)
        mapping.saw(frame)
        mapping.add_features(mapping.add_keyframe(frame, FeatureShape.of(target)), frame, target)
    for _ in range(steps):
        mapping.train_step()
    return mapping, [k.slot for k in mapping.keyframes.items], true


def errors(mapping, slots, true):
    """Metres and degrees of each keyframe."""
    poses = mapping.replay.pose[slots].numpy().astype(np.float64)
    metres = np.array([np.linalg.norm(p[:3, 3] - T[:3, 3]) for p, T in zip(poses, true)])
    return metres, np.array([np.rad2deg(rotation_angle_rad(p[:3, :3], T[:3, :3])) for p, T in zip(poses, true)])


def test_corrections_are_those_of_scipy():
    rng = np.random.default_rng(0)
    T = np.tile(np.eye(4), (5, 1, 1))
    T[:, :3, :3], T[:, :3, 3] = Rotation.random(5, random_state=1).as_matrix(), rng.normal(size=(5, 3))
    correction = rng.normal(size=(5, 6)) * 0.3
    found = corrected(torch.from_numpy(T), torch.from_numpy(correction)).numpy()
    move = np.tile(np.eye(4), (5, 1, 1))
    move[:, :3, :3], move[:, :3, 3] = Rotation.from_rotvec(correction[:, 3:]).as_matrix(), correction[:, :3]
    assert np.allclose(found, T @ move, atol=1e-10)
    assert np.allclose(corrected(torch.from_numpy(T), torch.zeros(5, 6, dtype=torch.float64)), T)
    a, b = torch.randn(2, 4, 3)
    assert torch.allclose((skew(a) @ b[..., None]).squeeze(-1), torch.linalg.cross(a, b), atol=1e-6)
    zero = torch.zeros(1, 6, requires_grad=True)
    corrected(torch.eye(4)[None], zero)[0, 0, 1].backward()
    assert torch.allclose(zero.grad[0], torch.tensor([0.0, 0, 0, 0, 0, -1.0])), "differentiable where it begins"


def test_the_slopes_are_those_of_the_field():
    mapping, _, _ = mapped(3, 60)
    rays = mapping.replay.rays(64, 0.0, torch.Generator().manual_seed(0))
    points, field = rays.origins + rays.directions * rays.depth_m[:, None], mapping.field
    with torch.no_grad():
        (distance, slope), (colour, tint) = linearised(field, points, rays.directions)

        def at(x):
            colour = field.head("rgb").finish(field.hidden("rgb", x, rays.directions))
            return field.distance_at(x) / field.config.truncation_m, colour

        for axis in range(3):
            step = torch.eye(3)[axis] * 0.006
            (d1, c1), (d0, c0) = at(points + step), at(points - step)
            assert torch.corrcoef(torch.stack([(d1 - d0) / 0.012, slope[:, axis]]))[0, 1] > 0.9
            found = torch.stack([((c1 - c0) / 0.012).flatten(), tint[..., axis].flatten()])
            assert torch.corrcoef(found)[0, 1] > 0.7
        exact, seen = at(points)
    assert (distance - exact).abs().median() < 0.05 and (colour - seen).abs().median() < 0.02


def test_a_perturbed_keyframe_comes_back_and_the_others_stay():
    mapping, slots, true = mapped(10, 0, wrong=5)
    before_m, before_deg = errors(mapping, slots, true)
    for _ in range(350):
        mapping.train_step()
    after_m, after_deg = errors(mapping, slots, true)
    assert before_m[5] > 0.025 and before_deg[5] > 2
    assert after_m[5] < before_m[5] / 2 and after_deg[5] < before_deg[5] / 2, (after_m, after_deg)
    others = np.arange(10) != 5
    assert after_m[others].max() < 0.008 and after_deg[others].max() < 0.6, (after_m, after_deg)
    moved = np.array([p[:3, 3] - T[:3, 3] for p, T in zip(mapping.replay.pose[slots].numpy(), true)])
    assert np.abs(np.median(moved, axis=0)).max() < 0.002, "together they are where they were"
    poses = mapping.replay.pose[slots].double()
    assert (poses[:, :3, :3] @ poses[:, :3, :3].mT - torch.eye(3)).abs().max() < 1e-4, "still rigid"
    assert mapping.learnt["poses"] > 0
    # the point map is made anew with the poses that were learnt
    assert mapping.rebuilding and mapping.counts["poses_refined"] == 1
    adopted = mapping.keyframes.items[5].T_world_camera
    assert np.linalg.norm(adopted[:3, 3] - true[5][:3, 3]) < before_m[5] / 2
    while mapping.rebuilding:
        mapping.rebuild_some()
    assert len(mapping.points) > 100


def test_a_pose_that_somebody_else_corrects_is_a_new_reported_one():
    mapping, slots, _ = mapped(4, 170)
    refinement = mapping.trainer.objectives["poses"]
    assert refinement.correction[slots[2]].abs().sum() > 0
    closed = np.eye(4)
    closed[:3, 3] = 9, 9, 9
    assert mapping.correct_pose(mapping.keyframes.items[2].id, closed)
    refinement._follow(mapping.replay)
    assert not refinement.correction[slots[2]].any() and refinement.steps[slots[2]] == 0
    assert torch.equal(refinement.reported[slots[2]], torch.from_numpy(closed).float())
    assert refinement.correction[slots[1]].any(), "the others go on"


def test_state_round_trip_goes_on_where_it_was():
    mapping, slots, _ = mapped(4, 160)
    first = mapping.trainer.objectives["poses"]
    second = PoseRefinement()
    second.load(first.state())
    second._follow(mapping.replay)
    assert torch.equal(first.correction, second.correction) and torch.equal(first.steps, second.steps)
    assert PoseRefinement().state() == {}
    assert slots


def test_off_by_default_and_nothing_moves_before_the_field_knows_anything():
    mapping = analytic_scene.mapped(3, steps=2)
    assert "poses" not in mapping.trainer.objectives
    mapping, slots, true = mapped(3, 20)
    assert errors(mapping, slots, true)[0].max() < 1e-6 and "poses" not in mapping.learnt


def test_a_saved_map_resumes_with_its_corrections(tmp_path):
    """Normals, a deeper language head with frequencies and refined poses survive a checkpoint."""
    config = replace(
        CONFIG, heads=HeadsConfig(refine_poses=True, normals=True, language=LanguageConfig(layers=2, frequencies=4))
    )
    encoder = create(EncoderConfig(name="stub"))
    mapping = analytic_scene.mapped(4, config, steps=170)
    path = checkpoint.save(tmp_path / "map", mapping, encoder)
    again = checkpoint.load(path, config, encoder, "cpu")
    first, second = (m.trainer.objectives["poses"] for m in (mapping, again))
    assert first.correction.any()
    slots = mapping.replay.order
    assert torch.equal(first.correction[slots], second.correction[slots])
    second._follow(again.replay)
    assert torch.equal(first.correction[slots], second.correction[slots]), "the loaded poses are no new reports"
    points = torch.tensor([[-0.14, -0.02, 0.16], [0.0, -0.3, 0.0]])
    with torch.no_grad():
        for name in ("normal", "language"):
            assert torch.equal(mapping.field.hidden(name, points), again.field.hidden(name, points))
    again.train_step()
    assert again.steps == 171
