"""The search of scales in one pass, against a pass for each scale, LERF's relevancy by hand, and the truth."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from analytic_scene import BLUE, CAMERA, RED, SMALL, ring
from test_scales import SETTINGS, a_field, with_pyramids

from semfield_ros.config import QueryConfig
from semfield_ros.encoders.pyramid import PyramidEncoder
from semfield_ros.encoders.stub import StubEncoder
from semfield_ros.errors import QueryError
from semfield_ros.field.scale_head import cells_of
from semfield_ros.field.scales import HEAD
from semfield_ros.field.snapshot import frozen
from semfield_ros.field.world import Part, WorldSnapshot
from semfield_ros.query.prompt import EncodedPrompts, Prompt, PromptEncoder
from semfield_ros.query.relevancy import pairwise_relevancy
from semfield_ros.query.relevancy_map import picture, relevancy_maps, strength, write_picture
from semfield_ros.query.scales import (
    COUNT,
    LERF_SCALES_M,
    Factors,
    composited_factors,
    factors,
    score_scales,
    searched_scales,
)  # fmt: skip
from semfield_ros.query.scores import score_points
from semfield_ros.query.view import render_view


@pytest.fixture(scope="module")
def snapshot():
    return with_pyramids(steps=150).snapshot()


@pytest.fixture(scope="module")
def prompts():
    return PromptEncoder(PyramidEncoder(StubEncoder(), SETTINGS), QueryConfig(negatives=("white", "texture")))


def texts_of(vectors, negatives):
    named = tuple(Prompt(str(i), (str(i),)) for i in range(len(vectors)))
    return EncodedPrompts(named, vectors, np.arange(len(vectors)), negatives)


def inside(block, point):
    return bool(((np.array(block.low) - 0.02 <= point) & (point <= np.array(block.high) + 0.02)).all())


def test_lerfs_relevancy_by_hand():
    """q = .30 against .20/.21/.22/.19: 1 / (1 + exp(-10 (.30 - .22))) = .690."""
    relevancy = pairwise_relevancy(np.array([[0.30]]), np.array([[0.20, 0.21, 0.22, 0.19]]))
    assert relevancy[0, 0] == pytest.approx(0.690, abs=5e-4)


@pytest.mark.parametrize("scale_m", [0.001, 0.02, 0.021, 0.0999, 0.1, 0.27, 1.99, 2.0, 50.0])
def test_one_pass_gives_the_cosines_of_a_pass_a_scale(scale_m):
    field = a_field(dim=24)
    head = field.head(HEAD)
    head.taught.fill_(1.0)  # everything everywhere
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.7, 0.7, (300, 3)).astype(np.float32)
    texts = rng.normal(size=(5, 24)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    with torch.no_grad():
        hidden = head.hidden(field.encode("feature", torch.from_numpy(points)), None)
        feature = head.at(hidden, torch.full((300,), scale_m))
        expected = (torch.nn.functional.normalize(feature, dim=-1) @ torch.from_numpy(texts).T).numpy()
    assert np.allclose(factors(field, points, texts).cosines(scale_m), expected, atol=1e-5)
    assert np.allclose(factors(field, points, texts, chunk=7).cosines(scale_m), expected, atol=1e-5)
    rays = composited_factors(field, hidden, torch.from_numpy(points), texts)
    assert np.allclose(rays.cosines(scale_m), expected, atol=1e-5)


def test_places_are_asked_at_the_nearest_scale_that_they_were_taught():
    field = a_field(dim=24)
    head = field.head(HEAD)
    points = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [-0.5, 0.5, 0.2]], np.float32)
    units = field.workspace.to_unit(torch.from_numpy(points))
    head.count(units[:1].expand(50, 3), torch.full((50,), 0.05))  # between the knots .02 and .1
    head.count(units[1:2].expand(50, 3), torch.full((50,), 1.0))  # between .4 and 2
    texts = np.eye(24, dtype=np.float32)[:3]
    found = factors(field, points, texts)
    known = [found.knows(scale_m).tolist() for scale_m in (0.05, 1.0, 0.2)]
    assert known == [[True, False, False], [False, True, False], [False, False, False]]
    head.taught.fill_(1.0)
    everywhere = factors(field, points, texts)
    at = found.cosines(0.2)
    assert np.allclose(at[0], everywhere.cosines(0.1)[0], atol=1e-6)
    assert np.allclose(at[1], everywhere.cosines(0.4)[1], atol=1e-6)
    assert np.isfinite(at).all()
    assert found.known.tolist() == [True, True, False]


def test_surface_that_no_pyramid_showed_is_unseen(snapshot, prompts):
    """What was never taught may be the most relevant of all: it is not asked."""
    field = frozen(snapshot.field)
    units = field.workspace.to_unit(torch.from_numpy(snapshot.cloud.points))
    on_red = (units[:, 0] < 0.5) & (units[:, 2] > 0.46)
    field.head(HEAD).taught[cells_of(units[on_red])] = 0
    found = score_scales(replace(snapshot, field=field), prompts.encode("red")).scores
    assert not found.seen[on_red.numpy()].any() and not found.relevancy[on_red.numpy()].any() and found.seen.any()


def test_a_scale_that_was_taught_nowhere_is_never_chosen(snapshot, prompts):
    """Untaught, a head may say anything at all: it must not win."""
    found = score_scales(snapshot, prompts.encode(["red", "blue"]), scales_m=[0.0001, 0.1, 50.0])
    low, high = snapshot.field.head(HEAD).range_m()
    assert ((found.scale_m >= low) & (found.scale_m <= high)).all()


def test_the_trunk_is_asked_once_for_all_scales(snapshot, prompts, monkeypatch):
    asked, kind = [], type(snapshot.field)
    trunk_at = kind.trunk_at
    monkeypatch.setattr(kind, "trunk_at", lambda self, name, x: asked.append(len(x)) or trunk_at(self, name, x))
    score_scales(snapshot, prompts.encode(["red", "blue"]), scales_m=np.linspace(0.01, 1, 30))
    assert sum(asked) == int(snapshot.measured.sum())


def test_the_chosen_scale_is_the_one_of_the_highest_relevancy_anywhere(snapshot, prompts):
    encoded = prompts.encode(["red", "blue", "white"])
    found = score_scales(snapshot, encoded)
    assert found.peaks.shape == (3, COUNT) and len(found.scales_m) == COUNT
    vectors = np.concatenate([encoded.positives, encoded.negatives])
    once = factors(snapshot.field, snapshot.cloud.points[snapshot.measured], vectors)
    for q in range(3):
        alone = []
        for s in found.scales_m:
            cosine = once.cosines(s)[once.knows(s)]
            alone.append(pairwise_relevancy(cosine[:, [q]], cosine[:, 3:]).max())
        assert np.allclose(found.peaks[q], alone, atol=1e-5)
        assert found.scale_m[q] == found.scales_m[int(np.argmax(alone))]
        at_it = score_scales(snapshot, encoded, scales_m=found.scale_m[q]).scores.relevancy[:, q]
        assert np.allclose(found.scores.relevancy[:, q], at_it, atol=1e-6)


def test_by_default_only_scales_that_were_trained_are_searched(snapshot):
    scales = searched_scales(snapshot.field)
    low, high = snapshot.field.head(HEAD).range_m()
    assert scales[0] == pytest.approx(low) and scales[-1] == pytest.approx(high) and len(scales) == 30
    assert LERF_SCALES_M[0] == 0 and LERF_SCALES_M[-1] == 1.5 and len(LERF_SCALES_M) == 30


def test_what_is_asked_for_is_found_where_it_is(snapshot, prompts):
    found = score_scales(snapshot, prompts.encode(["red", "blue"])).scores
    points = snapshot.cloud.points
    assert inside(RED, points[found.relevancy[:, 0].argmax()]) and inside(BLUE, points[found.relevancy[:, 1].argmax()])
    assert found.from_field[found.seen].all() and not found.relevancy[~found.seen].any()


def test_the_maps_own_source_of_scores(snapshot, prompts):
    encoded = prompts.encode(["red; blue", "green"])
    expected = score_scales(snapshot, encoded).scores
    assert np.array_equal(score_points(snapshot, encoded, source="scales").relevancy, expected.relevancy)
    none = prompts.encode(["red"], negatives=[])
    assert np.isnan(score_points(snapshot, none, source="scales").relevancy).all()


def test_unseen_space_has_no_score(snapshot, prompts):
    points = np.array([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0], [np.nan, 0, 0]], np.float32)
    found = score_scales(snapshot, prompts.encode("red"), points).scores
    assert found.seen.tolist() == [True, False, False] and not found.relevancy[1:].any()
    everywhere = score_scales(snapshot, prompts.encode("red"), points[1:])
    assert not everywhere.scores.seen.any()


def test_more_evidence_than_one_point_can_be_asked_for(snapshot, prompts):
    one, many = (score_scales(snapshot, prompts.encode("red"), evidence=n).peaks for n in (1, 50))
    assert (many <= one + 1e-6).all() and (many < one - 1e-6).any()


def test_a_view_is_searched_as_a_whole(snapshot, prompts):
    encoded = prompts.encode(["red", "blue"])
    maps = relevancy_maps(snapshot, CAMERA, ring(6)[0], encoded)
    assert maps.relevancy.shape == (60, 80, 2) and maps.scale_m.shape == (2,)
    for q, block in enumerate((RED, BLUE)):
        v, u = maps.peak(q)
        z = maps.view.depth_m[v, u]
        local = np.array([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, 1]) * z
        T = ring(6)[0]
        assert inside(block, T[:3, :3] @ local + T[:3, 3])
    assert not maps.relevancy[maps.view.depth_m == 0].any()
    same = render_view(snapshot, CAMERA, ring(6)[0], texts=encoded, source="scales")
    assert np.allclose(same.relevancy, maps.relevancy, atol=1e-6)
    other = relevancy_maps(snapshot, CAMERA, ring(6)[0], encoded, source="points")
    assert other.scale_m is None


def test_pictures_show_what_is_above_a_half(tmp_path):
    relevancy = np.array([[0.2, 0.5, 0.55], [0.6, 0.7, 0.0]], np.float32)
    assert np.allclose(strength(relevancy), [[0, 0, 0.25], [0.5, 1, 0]], atol=1e-5)
    assert not strength(np.full((2, 2), 0.4)).any()
    alone = picture(relevancy)
    assert alone.shape == (2, 3, 3) and (alone[0, 0] == alone[0, 1]).all() and (alone[1, 1] != alone[0, 0]).any()
    rgb = np.full((2, 3, 3), 90, np.uint8)
    assert (picture(relevancy, rgb)[0, :2] == 90).all()
    path = write_picture(tmp_path / "maps" / "mug.png", relevancy, rgb)
    assert np.array_equal(cv2.imread(str(path))[..., ::-1], picture(relevancy, rgb))
    with pytest.raises(QueryError, match="one size"):
        picture(relevancy, rgb[:1])
    with pytest.raises(QueryError, match="png"):
        write_picture(tmp_path / "mug.jpg", relevancy)


def test_what_cannot_be_answered_is_refused(snapshot, prompts):
    encoded = prompts.encode("red")
    with pytest.raises(QueryError, match="teacher pyramid"):
        score_scales(replace(snapshot, learnt={}, field=None), encoded)
    with pytest.raises(QueryError, match="dimensions"):
        score_scales(snapshot, texts_of(np.ones((1, 7), np.float32), np.ones((1, 7), np.float32)))
    with pytest.raises(QueryError, match="negative"):
        score_scales(snapshot, prompts.encode("red", negatives=[]))
    for scales in ([], [-1.0], [np.nan], [[1.0]]):
        with pytest.raises(QueryError, match="scales_m"):
            score_scales(snapshot, encoded, scales_m=scales)
    with pytest.raises(QueryError, match="evidence"):
        score_scales(snapshot, encoded, evidence=0)
    with pytest.raises(QueryError, match="score is"):
        score_scales(snapshot, encoded, score="sharpness")
    assert isinstance(factors(snapshot.field, np.zeros((0, 3), np.float32), encoded.positives), Factors)
    assert SMALL.query.source == "auto"


def test_blocks_of_a_large_map_agree_on_one_scale(snapshot, prompts):
    edge = np.full(3, np.inf)
    silent = replace(snapshot, learnt={})
    parts = [Part(-edge, edge, True, True, lambda each=each: each) for each in (snapshot, silent)]
    world = WorldSnapshot(parts, stamp_s=0.0, frames=1, step=150, voxel_size_m=snapshot.voxel_size_m)
    encoded = prompts.encode(["red", "blue"])
    found, alone = score_scales(world, encoded), score_scales(snapshot, encoded)
    n = len(snapshot.cloud)
    assert np.array_equal(found.scale_m, alone.scale_m) and np.allclose(found.peaks, alone.peaks)
    assert np.array_equal(found.scores.relevancy[:n], alone.scores.relevancy)
    # the block that has learnt no scales knows nothing
    assert not found.scores.seen[n:].any() and not found.scores.relevancy[n:].any()
