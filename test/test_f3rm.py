"""F3RM's released settings as a preset: the published sizes, and that the field it makes learns."""

import io
import json
from dataclasses import replace

import analytic_scene
import numpy as np
import pytest
from rich.console import Console

torch = pytest.importorskip("torch")

from semfield_ros.config import FieldConfig, GridConfig, LanguageConfig, SemfieldConfig, TrainConfig  # noqa: E402
from semfield_ros.config_io import from_yaml  # noqa: E402
from semfield_ros.errors import ConfigError  # noqa: E402
from semfield_ros.field.hash_grid import levels_of  # noqa: E402
from semfield_ros.field.heads import Head  # noqa: E402
from semfield_ros.field.snapshot import frozen  # noqa: E402
from semfield_ros.field.workspace import SPAN  # noqa: E402
from semfield_ros.geometry import look_at  # noqa: E402
from semfield_ros.mapping import language_head  # noqa: E402
from semfield_ros.protocols import f3rm  # noqa: E402
from semfield_ros.protocols.f3rm import Plan, released  # noqa: E402
from semfield_ros.query.scores import field_cosines  # noqa: E402
from semfield_ros.query.view import render_view  # noqa: E402


@pytest.fixture(scope="module")
def preset(root) -> SemfieldConfig:
    return from_yaml(root / "config" / "f3rm.yaml")


def parameters(grid: GridConfig, span: float) -> int:
    return sum(level.rows for level in levels_of(grid, span)) * grid.features


def test_grid_parameters_are_the_published_ones(preset):
    """F2 and B1, under tiny-cuda-nn's indexing; over contracted space resolutions run 16 -> 128 and 16 -> 2048."""
    assert parameters(preset.field.feature_grid, SPAN) == 19_849_216
    assert parameters(GridConfig(12, 8, 19, 16, 128), 1.0) == 19_849_216
    assert parameters(preset.field.geometry_grid, SPAN) == 12_196_240
    levels = levels_of(preset.field.feature_grid, SPAN)
    assert len(levels) == 12 and levels[0].resolution == 16 and levels[-1].resolution == 128
    assert levels_of(preset.field.geometry_grid, SPAN)[-1].resolution == 2048


def test_the_head_is_the_published_one(preset):
    config = language_head(768, preset.heads.language)
    head = Head(config, 12 * 8, preset.field.hidden)
    shapes = [tuple(p.shape) for name, p in head.named_parameters() if name.endswith("weight")]
    assert shapes == [(64, 96 + 36), (64, 64), (768, 64)]
    assert config.loss == "l2" and config.weight == 1e-3 and not config.unit
    volume = preset.field.volume
    assert (volume.coarse_samples, volume.fine_samples, volume.samples) == (256, 96, 48)
    assert preset.train.rays == 4096 and not preset.train.through_window


def small(config: SemfieldConfig) -> SemfieldConfig:
    """The preset's kind of field in sizes that a test can wait for."""
    mine = analytic_scene.SMALL
    train = replace(config.train, rays=512, feature_patches=256)
    return replace(mine, train=train, heads=config.heads)


def test_a_field_of_this_kind_learns_online(preset):
    mapping = analytic_scene.mapped(8, small(preset), steps=200)
    snapshot = mapping.snapshot()
    points = np.array([[-0.14, -0.02, 0.16], [0.15, 0.02, 0.1], [0.0, -0.3, 0.0]], np.float32)
    texts = analytic_scene.create(analytic_scene.EncoderConfig(name="stub")).encode_text(["red", "blue", "white"])
    cosine = field_cosines(snapshot.field, points, texts)
    assert cosine.argmax(1).tolist() == [0, 1, 2]
    field = frozen(mapping.field)
    with torch.no_grad():  # the factored query and the plain one are one thing, with two layers and frequencies too
        out = field.head("language").finish(field.hidden("language", torch.from_numpy(points)))
    plain = torch.nn.functional.normalize(out, dim=-1).numpy() @ texts.T
    assert np.allclose(cosine, plain, atol=1e-4)


def test_frequencies_are_rendered_as_they_are_queried(preset):
    mapping = analytic_scene.mapped(8, small(preset), steps=150)
    view = render_view(
        mapping.snapshot(), analytic_scene.CAMERA, look_at([0.7, 0.0, 0.5], [0.0, 0.0, 0.05]), features=True
    )
    assert view.features.shape == (60, 80, 32) and np.isfinite(view.features).all() and view.features.any()


def test_the_rate_falls_to_a_hundredth_where_it_is_asked_to():
    config = replace(analytic_scene.SMALL, train=replace(analytic_scene.SMALL.train, decay_steps=4))
    mapping, rates = analytic_scene.mapped(2, config), []
    for _ in range(6):
        rates.append(mapping.trainer.rate)
        mapping.train_step()
        assert all(group["lr"] == rates[-1] for group in mapping.trainer.dense.param_groups)
    assert np.allclose(rates, 1e-2 * 0.01 ** np.array([0, 0.25, 0.5, 0.75, 1, 1]))
    assert analytic_scene.mapped(2, steps=3).trainer.rate == 1e-2


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="frequencies is 17"):
        LanguageConfig(frequencies=17)
    with pytest.raises(ConfigError, match="loss is 'mse'"):
        LanguageConfig(loss="mse")
    assert FieldConfig() and TrainConfig()


def test_the_protocol_trains_what_the_preset_says(preset):
    assert replace(released(SemfieldConfig()), encoder=preset.encoder) == preset
    assert released(SemfieldConfig(), 8).train.rays == 512


def test_the_protocol_runs_and_tells_in_one_line(tmp_path):
    out = io.StringIO()
    plan = Plan(seeds=1, frames=4, held_out=1, width=64, steps=4, reduction=64, out=tmp_path, json=True)
    assert f3rm.run(plan, Console(file=out, width=200)) == 0
    report = json.loads(out.getvalue().strip().splitlines()[-1])
    assert report["protocol"] == "f3rm" and report["settings"]["steps"] == 4 and "mug" in report["classes"]
    assert set(report["metrics"]) == {f3rm.OURS, f3rm.RELEASED, f3rm.VOXELS}
    for metrics in report["metrics"].values():
        assert -1 <= metrics["feature_cosine"] <= 1 and 0 <= metrics["accuracy"] <= 1
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_the_protocol_takes_any_recording(tmp_path, monkeypatch):
    monkeypatch.setattr(f3rm, "_recorded", lambda plan: (analytic_scene.stream(6), analytic_scene.stream(3)[1:]))
    out = io.StringIO()
    plan = Plan(source="somewhere", steps=3, reduction=64, json=True)
    assert f3rm.run(plan, Console(file=out, width=200)) == 0
    report = json.loads(out.getvalue().strip().splitlines()[-1])
    assert report["metrics"][f3rm.OURS]["miou"] is None and report["metrics"][f3rm.OURS]["feature_cosine"] is not None


def test_few_shot_counts_objects_of_the_same_kind():
    mapping = analytic_scene.mapped(10, steps=250)
    top = np.stack([np.diag([1.0, -1, -1, 1])] * 3)
    top[:, :3, 3] = [[-0.14, -0.02, 0.155], [0.15, 0.02, 0.095], [0.0, -0.3, -0.005]]
    one = f3rm.Example(mapping.snapshot(), ["red box", "blue box", "table"], top)
    other = f3rm.Example(mapping.snapshot(), ["blue box", "red box"], top[[1, 0]])
    assert f3rm.few_shot([one, other]) == (1.0, 4)
    swapped = f3rm.Example(mapping.snapshot(), ["red box", "blue box"], top[[1, 0]])
    assert f3rm.few_shot([one, swapped]) == (0.0, 4)
    assert np.isnan(f3rm.few_shot([one])[0])


def test_a_bad_plan_is_refused():
    with pytest.raises(ConfigError, match="seeds is 0"):
        Plan(seeds=0)
    with pytest.raises(ConfigError, match="width is 8"):
        Plan(width=8)
