"""Window fitting: a field that knows the truth tells which window its measurements were made through."""

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from analytic_scene import CAMERA, SMALL, mapped

from semfield_ros.config import MemoryConfig
from semfield_ros.encoders.base import Target, Window
from semfield_ros.field.heads import HeadConfig
from semfield_ros.field.trainer import Trainer
from semfield_ros.field.window import EVERY_STEPS, FROM_STEP, SCALES, WindowFit, patch_shape, widest_of_the_best
from semfield_ros.frame import make_frame
from semfield_ros.memory.features import FeatureShape
from semfield_ros.memory.replay import HELD_OUT, Replay

CLASSES, FRAMES, CELL_PX = 5, 5, 10


def patterns() -> np.ndarray:
    """What the wall of each frame shows: [FRAMES, 60, 80] classes in squares of 10 pixels."""
    squares = np.random.default_rng(3).integers(0, CLASSES, (FRAMES, 6, 8))
    return squares.repeat(CELL_PX, 1).repeat(CELL_PX, 2)


class PerfectField:
    """Knows the class of every point of the walls, which stand at 1 m, 2 m, ... in front of one camera."""

    def __init__(self) -> None:
        self.classes = patterns()

    def head(self, name):
        config = HeadConfig("language", CLASSES, late_linear=True, unit=True, loss="cosine_sqrt")
        return SimpleNamespace(config=config, finish=lambda means: means)

    def hidden(self, name, points):
        wall = points[:, 2].round().long().clamp(1, FRAMES) - 1
        u = (points[:, 0] / points[:, 2] * CAMERA.fx + CAMERA.cx).round().long().clamp(0, 79)
        v = (points[:, 1] / points[:, 2] * CAMERA.fy + CAMERA.cy).round().long().clamp(0, 59)
        return torch.eye(CLASSES)[torch.from_numpy(self.classes)[wall, v, u]]


def measured(true_px: int, declared_px: float, noise: float = 0.0) -> Replay:
    """A replay of the walls, their classes averaged over `true_px` and said to be averaged over `declared_px`."""
    rng = np.random.default_rng(0)
    shape = FeatureShape(CLASSES, 12 * 16, 12 * 16)
    memory = MemoryConfig(replay_mb=32, pixels_per_keyframe=4800)
    replay = Replay(memory, CAMERA.width, CAMERA.height, shape, "cpu")
    for k, classes in enumerate(patterns()):
        depth = np.full(classes.shape, k + 1.0, np.float32)
        rgb = np.zeros((*classes.shape, 3), np.uint8)
        frame = make_frame(stamp_s=float(k), camera=CAMERA, T_world_camera=np.eye(4), rgb=rgb, depth=depth)
        shares = [cv2.blur((classes == c).astype(np.float32), (true_px, true_px)) for c in range(CLASSES)]
        values = np.stack(shares, -1)[2::5, 2::5]
        values = values + rng.normal(size=values.shape) * noise
        replay.write(k, frame, rng)
        replay.write_target(k, Target.dense(values, Window.box(declared_px, 2.0)))
    return replay


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("declared_px", [10.0, 20.0, 40.0, 60.0])
def test_a_wrong_declaration_is_put_right(declared_px, noise):
    replay, fit = measured(20, declared_px, noise), WindowFit(0.75)
    for step in range(FROM_STEP, FROM_STEP + 5 * EVERY_STEPS, EVERY_STEPS):
        assert fit.due(step)
        fit.update(PerfectField(), replay, step)
    assert 0.65 * 20 < fit.size * declared_px < 1.6 * 20
    assert fit.scale == 0.75 * fit.size
    assert torch.isfinite(fit.loss).all() and len(fit.loss) == len(SCALES)


def test_of_sizes_about_equally_good_the_widest_is_taken():
    rising = torch.tensor([0.50, 0.50, 0.51, 0.50, 0.519, 0.55, 0.57, 0.60])
    assert widest_of_the_best(rising) == 4
    assert widest_of_the_best(torch.tensor([0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])) == 7


def test_before_there_is_anything_to_compare_the_size_stays():
    empty = Replay(MemoryConfig(replay_mb=8), CAMERA.width, CAMERA.height, FeatureShape(CLASSES, 4, 4), "cpu")
    fit = WindowFit(0.75)
    fit.update(PerfectField(), empty, FROM_STEP)
    assert fit.size == 1.0 and torch.isnan(fit.loss).all()
    assert not fit.due(FROM_STEP - EVERY_STEPS) and not fit.due(FROM_STEP + 1)


def test_held_out_measurements_are_never_drawn_for_training():
    replay = measured(20, 20.0)
    values = torch.randn(replay.language.values.shape, generator=torch.Generator().manual_seed(1))
    replay.language.values.copy_(values)  # so that a value says which measurement it is

    def drawn(held_out):
        batch = replay.patches(6000, 1, True, 0.0, torch.Generator().manual_seed(0), held_out=held_out)
        return {tuple(row) for row in batch.values[:, :2].tolist()}

    kept, trained, everything = drawn(True), drawn(False), drawn(None)
    assert kept and not kept & trained
    assert kept | trained == everything
    assert len(kept) / len(everything) == pytest.approx(1 / HELD_OUT, rel=0.1)


def test_measurements_of_a_pixel_need_few_rays_and_leave_them_to_more_measurements():
    memory = MemoryConfig(replay_mb=8, pixels_per_keyframe=1200)  # one record for 2 x 2 pixels
    replay = Replay(memory, CAMERA.width, CAMERA.height, FeatureShape(CLASSES, 4800, 4800), "cpu")
    assert patch_shape(replay, 192, 24, True) == (192, 24), "nothing is known of measurements yet"
    for window, cells, expected in (
        (Window.pixel(), (60, 80), (768, 6)),  # masks: a pixel each
        (Window.pixel(), (3, 4), (192, 24)),  # a hundred records each
        (Window.box(20.0, 4.0), (60, 80), (192, 24)),
    ):
        rgb, depth = np.zeros((60, 80, 3), np.uint8), np.ones((60, 80), np.float32)
        frame = make_frame(stamp_s=0.0, camera=CAMERA, T_world_camera=np.eye(4), rgb=rgb, depth=depth)
        replay.write(0, frame, np.random.default_rng(0))
        replay.write_target(0, Target.dense(np.ones((*cells, CLASSES), np.float32), window))
        assert patch_shape(replay, 192, 24, True) == expected
        assert np.prod(patch_shape(replay, 100, 7, False)) <= 700


def test_the_fit_is_part_of_a_trainers_state():
    mapping = mapped(4)
    mapping.trainer.window.size, mapping.trainer.window.loss = 1.41, torch.linspace(0.1, 0.8, len(SCALES))
    twin = Trainer(mapping.field, SMALL.train)
    twin.load(mapping.trainer.state(), 3)
    assert twin.window.size == pytest.approx(1.41) and torch.equal(twin.window.loss, mapping.trainer.window.loss)
    older = {k: v for k, v in mapping.trainer.state().items() if not k.startswith("window.")}
    twin.load(older, 4)
    assert twin.window.size == pytest.approx(1.41), "a map saved before windows were fitted"


def test_without_fitting_every_measurement_is_trained_and_the_window_stays():
    fixed = mapped(4)
    fixed.trainer = Trainer(fixed.field, replace(SMALL.train, fit_window=False))
    fixed.trainer.steps = FROM_STEP
    fixed.train_step()
    assert fixed.trainer.window.scale == SMALL.train.window_scale and torch.isnan(fixed.trainer.window.loss).all()
    fitted = mapped(4)
    fitted.trainer.steps = FROM_STEP
    fitted.train_step()
    assert torch.isfinite(fitted.trainer.window.loss).all()


@pytest.mark.parametrize("edge_px", [4.0, 8.0, 20.0, 32.0, 64.0])
def test_a_box_is_as_wide_as_it_says(edge_px):
    window = Window.box(edge_px, 4.0)
    assert window.kernel.shape[0] * window.pitch_px == pytest.approx(edge_px)
    assert window.kernel.shape[0] % 2 == 1
