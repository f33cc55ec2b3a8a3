"""The encoder with known faults, by hand, and the ablation that uses it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import CAMERA
from rich.console import Console

from semfield_ros.benchmarks import ablation
from semfield_ros.benchmarks.ablation_settings import BASE, Setting, settings
from semfield_ros.config import demo_config
from semfield_ros.engine import Engine
from semfield_ros.errors import ConfigError
from semfield_ros.evaluation.measured import Faults, MeasuredEncoder
from semfield_ros.evaluation.surface import COMPLETION_M, VISIBLE_M, Surface, rate
from semfield_ros.frame import make_frame
from semfield_ros.geometry import visible

NAMES = ("void", "left", "right")
EXACT = Faults(patch_px=4, window_px=4, noise=0.0, wrong_views=0.0)


def halves(stamp_s=0.0):
    """Left half one class, right half another."""
    semantic = np.ones((60, 80), np.int32)
    semantic[:, 40:] = 2
    depth, rgb = np.ones((60, 80), np.float32), np.zeros((60, 80, 3), np.uint8)
    return make_frame(stamp_s=stamp_s, camera=CAMERA, T_world_camera=np.eye(4), rgb=rgb, depth=depth, semantic=semantic)


def cosines(encoder, frame):
    target = encoder.encode_frame(frame)
    return (target.values @ encoder.encode_text(["left", "right"]).T).reshape(*target.index.shape, 2)


def test_without_faults_a_cell_is_its_class():
    seen = cosines(MeasuredEncoder(NAMES, EXACT), halves())
    assert seen.shape == (15, 20, 2)
    assert np.allclose(seen[:, :10], [1, 0], atol=1e-5) and np.allclose(seen[:, 10:], [0, 1], atol=1e-5)


def test_a_window_mixes_what_it_covers():
    """A cell 8 px from the edge sees, through 32 px, a quarter of the other side."""
    encoder = MeasuredEncoder(NAMES, replace(EXACT, patch_px=16, window_px=32))
    seen = cosines(encoder, halves())
    assert seen.shape == (3, 5, 2)
    left, right = seen[1, 1]  # centred on u = 23.5: the window reaches to 39.5
    assert left == pytest.approx(1.0, abs=0.01)
    left, right = seen[1, 2]  # centred on the edge
    assert left / right == pytest.approx(1.0, abs=0.15)
    assert encoder.window.kernel.shape[0] * encoder.window.pitch_px == pytest.approx(32, abs=4)


def test_noise_has_the_length_it_says():
    exact, noisy = (MeasuredEncoder(NAMES, replace(EXACT, noise=n)) for n in (0.0, 0.5))
    cosine = (exact.encode_frame(halves()).values * noisy.encode_frame(halves()).values).sum(1)
    assert np.median(cosine) == pytest.approx(1 / np.sqrt(1 + 0.25), abs=0.02)


def test_wrong_views_are_wrong_throughout_and_the_same_view_is_always_measured_alike():
    encoder = MeasuredEncoder(NAMES, replace(EXACT, wrong_views=0.4))
    right = []
    for k in range(60):
        seen = cosines(encoder, halves(0.1 * k))
        for part, label in ((seen[:, :10], 0), (seen[:, 10:], 1)):
            hit = part[..., label] > 0.99
            assert hit.all() or not hit.any(), "all of a class in a view, or nothing"
            right.append(hit.all())
    assert np.mean(right) == pytest.approx(0.6, abs=0.12)
    a, b = (encoder.encode_frame(halves(0.3)) for _ in range(2))
    assert np.array_equal(a.values, b.values)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ConfigError, match="true labels"):
        MeasuredEncoder(NAMES, EXACT).encode_frame(replace(halves(), semantic=None))
    with pytest.raises(ConfigError, match="raise dim"):
        MeasuredEncoder(NAMES, EXACT, dim=2)


def test_another_window_is_another_encoder():
    a = MeasuredEncoder(NAMES, EXACT)
    b = MeasuredEncoder(NAMES, replace(EXACT, assumed_window_px=16.0))
    assert a.cache_key != b.cache_key and b.window.kernel.shape[0] > a.window.kernel.shape[0]


def test_settings_vary_what_they_say():
    every = list(settings())
    assert len({s.name for s in every}) == len(every)
    assert sum(s.corner for s in every) == 3 * 3 * 2 and all(s.counted for s in every if s.corner)
    assert {s.name for s in every if not s.counted} == {
        "declared 64, not fitted", "field fitted per pixel", "no smoothness prior"
    }  # fmt: skip
    train = Setting("x", BASE, smooth=False, fit_window=False).training(demo_config().train, 7)
    assert train.smoothness == 0 and not train.fit_window and train.through_window and train.seed == 7


def test_poses_err_by_what_they_say():
    rng = np.random.default_rng(0)
    setting = Setting("x", BASE, pose_mm=12, pose_deg=1.2)
    moved = [setting.jittered(halves(), rng).T_world_camera for _ in range(400)]
    shift_m = np.sqrt(np.mean([np.square(T[:3, 3]).sum() for T in moved]))
    turn_rad = [np.arccos(np.clip((np.trace(T[:3, :3]) - 1) / 2, -1, 1)) for T in moved]
    assert shift_m == pytest.approx(0.012, rel=0.1)
    assert np.degrees(np.sqrt(np.mean(np.square(turn_rad)))) == pytest.approx(1.2, rel=0.1)
    assert Setting("y", BASE).jittered(halves(), rng).T_world_camera is not None


def test_a_name_that_no_setting_has_is_refused():
    with pytest.raises(ConfigError, match="no setting's name contains 'moon'"):
        ablation.run(console=Console(), as_json=False, seeds=1, train_s=1.0, only="moon")


def test_hidden_surface_is_what_no_camera_looked_at_but_close_to_what_one_did():
    pytest.importorskip("mujoco", reason="the extra [sim] is not installed")
    from semfield_ros.sources.simulator import Simulator, SimulatorConfig

    simulator = Simulator(SimulatorConfig(seed=0, frames=12, width=80, height=60, processes=0))
    frames = tuple(simulator)
    half, whole = Surface.of(simulator, frames[:6]), Surface.of(simulator, frames)
    assert len(half.hidden) > 3 * len(whole.hidden) > 0 or len(half.hidden) > 100
    assert len(half.points) < len(whole.points) and len(half.boundary) == len(half.points)
    for frame in frames[:6]:
        exact = simulator.cast(frame.T_world_camera).depth_m
        mask, _ = visible(frame.camera, frame.T_world_camera, exact, half.hidden, tolerance_m=VISIBLE_M)
        assert not mask.any()
    away = np.linalg.norm(half.hidden[:, None] - half.points[None], axis=2).min(1)
    assert away.max() <= COMPLETION_M
    assert not len(Surface.of(simulator).hidden), "nothing is hidden from no camera"


@pytest.mark.slow
def test_the_field_beats_the_voxel_average_where_features_are_coarse_and_noisy():
    """Patches of 16 pixels seen through 32, noise .5, a fifth of the views wrong: 150 steps on one scene."""
    pytest.importorskip("mujoco", reason="the extra [sim] is not installed")
    truth, surface, frames = ablation.recording(0, 30, 1.0)
    config = demo_config()
    config = replace(config, memory=replace(config.memory, min_translation_m=1e-6, min_rotation_deg=1e-6))
    here = sorted(set(surface.semantic.tolist()))
    with Engine(config, MeasuredEncoder(truth.classes, BASE)) as engine:
        engine.pause()
        for frame in frames:
            engine.submit(frame, block=True)
        engine.drain()
        engine.train(steps=150)
        texts = engine.prompts.encode([truth.classes[i] for i in here], [])
        field, points = (rate(engine.snapshot(), texts, here, surface, m)["miou"] for m in ("field", "points"))
    assert field > points + 0.1 and field > 0.5


@pytest.mark.slow
def test_the_ablation_reports_what_it_measured(capsys):
    pytest.importorskip("mujoco", reason="the extra [sim] is not installed")
    console = Console(width=200)
    assert ablation.run(console=console, as_json=True, seeds=1, train_s=2.0, only="base") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"miou_field", "miou_points", "miou_auto", "worst_gain", "settings"} <= set(report)
    (setting,) = report["settings"]
    assert setting["miou_field"] == report["miou_field"] and 0 < report["miou_points"] < 1
    assert report["worst_gain"] == pytest.approx(report["miou_field"] - report["miou_points"], abs=1e-4)
    for name in ("localisation", "boundary_error", "fmiou", "query_ms", "bytes"):
        assert all(setting[f"{name}_{m}"] >= 0 for m in ("field", "points", "auto"))
