"""Answers: thresholds in all their forms, regions, sources; on a map whose scores are known by construction."""

from dataclasses import replace

import numpy as np
import pytest

from semfield_ros.answer import answer
from semfield_ros.cloud import SurfaceCloud
from semfield_ros.config import EncoderConfig, QueryConfig, SemfieldConfig
from semfield_ros.encoders import create
from semfield_ros.errors import ConfigError, QueryError
from semfield_ros.field.snapshot import Snapshot
from semfield_ros.memory.point_map import voxel_keys
from semfield_ros.query.prompt import PromptEncoder

VOXEL_M = 0.02


@pytest.fixture(scope="module")
def texts():
    return PromptEncoder(create(EncoderConfig(name="stub")), QueryConfig())


def blob(centre, n=6):
    axis = (np.arange(n) - (n - 1) / 2) * VOXEL_M
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    return (grid + centre).astype(np.float32)


@pytest.fixture(scope="module")
def snapshot(texts):
    """A red and a blue cube of voxels, half a metre apart; their features are the very text vectors."""
    red, blue = texts.vectors(["red", "blue"])
    points = np.concatenate([blob([0.01, 0.01, 0.11]), blob([0.51, 0.01, 0.11])])
    features = np.repeat(np.stack([red, blue]), len(points) // 2, axis=0).astype(np.float16)
    order = np.argsort(voxel_keys(points, VOXEL_M))
    n = len(points)
    rgb = np.repeat(np.array([[200, 10, 10], [10, 10, 200]], np.uint8), n // 2, axis=0)
    cloud = SurfaceCloud(
        points[order], np.zeros((n, 3), np.float32), rgb[order], np.full(n, 5, np.int32), np.full(n, 2.0)
    )
    return Snapshot(
        stamp_s=2.0, frames=3, step=0, cloud=cloud, features=features[order], measured=np.ones(n, bool),
        created_step=np.zeros(n, np.int64), keys=np.sort(voxel_keys(points, VOXEL_M)), voxel_size_m=VOXEL_M,
        field=None, language=False,
    )  # fmt: skip


def test_each_colour_is_found_where_it_is(snapshot, texts):
    found = answer(snapshot, texts, ["red", "blue"], grasps=False)
    assert [p.matched for p in found.prompts] == [True, True]
    assert found.source == "points" and found.stamp_s == 2.0
    np.testing.assert_allclose(found.prompts[0].objects[0].box.centre, [0.01, 0.01, 0.11], atol=0.02)
    np.testing.assert_allclose(found.prompts[1].objects[0].box.centre, [0.51, 0.01, 0.11], atol=0.02)


def test_region_hides_what_lies_outside(snapshot, texts):
    found = answer(snapshot, texts, "red", region=[[0.3, -1, -1], [1, 1, 1]], grasps=False)
    assert not found.prompts[0].matched and len(found.cloud) == len(snapshot.cloud) // 2


def test_absolute_threshold_above_the_peak_means_no_match(snapshot, texts):
    best = answer(snapshot, texts, "red", grasps=False).prompts[0].peak
    assert not answer(snapshot, texts, "red", no_match=min(1.0, best + 1e-3), grasps=False).prompts[0].matched
    assert answer(snapshot, texts, "red", no_match=best - 1e-3, grasps=False).prompts[0].matched


def test_top_percent_takes_that_share(snapshot, texts):
    found = answer(snapshot, texts, "red", top_percent=50.0, grasps=False).prompts[0]
    assert sum(o.n_points for o in found.objects) == len(snapshot.cloud) // 2


def test_raw_cosines_need_thresholds_of_their_own(snapshot, texts):
    config = replace(SemfieldConfig(), query=QueryConfig(score="cosine"))
    with pytest.raises(QueryError, match="no_match and high"):
        answer(snapshot, texts, "red", config=config)
    found = answer(snapshot, texts, "red", config=config, no_match=0.8, high=0.9, grasps=False)
    assert found.prompts[0].matched and found.prompts[0].peak == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("percent", [0.0, -1.0, 101.0, float("nan")])
def test_absurd_percent_is_refused(percent):
    with pytest.raises(ConfigError, match="top_percent"):
        QueryConfig(top_percent=percent)


def test_field_that_does_not_exist_is_a_clear_error(snapshot, texts):
    with pytest.raises(QueryError, match="has not learnt"):
        answer(snapshot, texts, "red", source="field")
