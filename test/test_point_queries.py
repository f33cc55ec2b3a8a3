"""Queries at points: chunk invariance to the last bit, confidence, closed sets with "other", images, the ensemble."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import BLUE, CAMERA, RED, SMALL, mapped, ring

from semfield_ros.config import EncoderConfig, HeadsConfig, QueryConfig
from semfield_ros.encoders import create
from semfield_ros.encoders.stub import PALETTE
from semfield_ros.errors import QueryError
from semfield_ros.evaluation.metrics import confusion_matrix, segmentation
from semfield_ros.field.snapshot import TRUSTED_STEPS
from semfield_ros.mapping import Mapping
from semfield_ros.query.classes import best_class, encode_classes, probabilities
from semfield_ros.query.click import prompts_like
from semfield_ros.query.ensemble import combined, ensemble_features, from_distilled
from semfield_ros.query.image import prompts_of_image
from semfield_ros.query.points import features_at, query_points, surface_confidence, text_query
from semfield_ros.query.prompt import PromptEncoder
from semfield_ros.query.scores import score_points
from semfield_ros.query.tiles import TILE

STUB = create(EncoderConfig(name="stub"))
TEXTS = PromptEncoder(STUB, QueryConfig())
NAMES = ["red", "blue", "white"]
TOPS = np.array([(-0.14, -0.02, 0.16), (0.15, 0.02, 0.1), (0.0, -0.3, 0.0)], np.float32)
UNSEEN = np.array([(0.0, 0.0, 3.0), (np.nan, 0.0, 0.0)], np.float32)


@pytest.fixture(scope="module")
def trained():
    labelled = replace(SMALL, heads=HeadsConfig(semantic_classes=3, class_names=("white", "red", "blue")))
    from analytic_scene import cast, stream

    from semfield_ros.memory.features import FeatureShape

    mapping = Mapping(labelled, STUB.dim, "cpu")
    for frame in stream(8):
        frame = replace(frame, semantic=cast(frame.T_world_camera)[1] + 1)
        target = STUB.encode_frame(frame)
        mapping.saw(frame)
        mapping.add_features(mapping.add_keyframe(frame, FeatureShape.of(target)), frame, target)
    for _ in range(TRUSTED_STEPS + 60):
        mapping.train_step()
    return mapping.snapshot()


@pytest.fixture(scope="module")
def points(trained):
    rng = np.random.default_rng(0)
    on = trained.cloud.points[rng.integers(0, len(trained.cloud), TILE + 700)]
    return np.concatenate([on + rng.normal(0, 0.01, on.shape).astype(np.float32), UNSEEN])


# ---- Q1 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["auto", "field", "points", "ensemble"])
def test_answers_are_identical_for_any_chunk_size(trained, points, source):
    classes = encode_classes(TEXTS, NAMES, template="{}")
    whole = query_points(trained, points, classes, source=source, features=True)
    for chunk in (1, 777, TILE, TILE + 1, 10**9):
        again = query_points(trained, points, classes, source=source, features=True, chunk=chunk)
        for name, values in vars(whole).items():
            assert np.array_equal(values, getattr(again, name)), (name, chunk)


def test_classes_of_the_semantic_head_are_chunk_invariant_too(trained, points):
    whole, parts = query_points(trained, points), query_points(trained, points, chunk=100)
    assert all(np.array_equal(v, getattr(parts, name)) for name, v in vars(whole).items())
    assert query_points(trained, TOPS).label.tolist() == [1, 2, 0], "red, blue, white: classes 2, 3, 1"


@pytest.mark.parametrize("source", ["auto", "points"])
def test_scores_of_words_are_identical_for_any_chunk_size(trained, points, source):
    whole = text_query(trained, TEXTS, NAMES, points=points, source=source)
    for chunk in (1, 999, TILE + 5):
        again = text_query(trained, TEXTS, NAMES, points=points, source=source, chunk=chunk)
        assert all(np.array_equal(values, getattr(again, name)) for name, values in vars(whole).items())


def test_a_world_in_blocks_answers_as_well():
    from analytic_scene import stream

    from semfield_ros.atlas import Atlas
    from semfield_ros.memory.features import FeatureShape

    in_blocks = replace(
        SMALL, memory=replace(SMALL.memory, block_m=0.5), field=replace(SMALL.field, centre_m=None, extent_m=None)
    )
    atlas = Atlas(in_blocks, STUB, "cpu")
    for frame in stream(8):
        target = STUB.encode_frame(frame)
        atlas.saw(frame)
        if atlas.accepts(frame):
            atlas.add_features(atlas.add_keyframe(frame, FeatureShape.of(target)), frame, target)
    world, classes = atlas.snapshot(), encode_classes(TEXTS, NAMES, template="{}")
    at = np.concatenate([TOPS, UNSEEN])
    found = query_points(world, at, classes, source="points", features=True)
    assert found.label.tolist() == [0, 1, 2, -1, -1] and found.features.shape == (5, STUB.dim)
    assert found.probabilities[:3].sum(1) == pytest.approx(1, abs=1e-5) and not found.confidence[3:].any()
    assert text_query(world, TEXTS, NAMES, points=at).best.tolist() == [0, 1, 2, -1, -1]


def test_labels_probabilities_and_the_unknown(trained):
    classes = encode_classes(TEXTS, NAMES, template="{}", other=False)
    found = query_points(trained, np.concatenate([TOPS, UNSEEN]), classes, features=True)
    assert found.label.tolist() == [0, 1, 2, -1, -1] and found.seen.tolist() == [True] * 3 + [False] * 2
    assert np.allclose(found.probabilities[:3].sum(1), 1, atol=1e-5) and not found.probabilities[3:].any()
    assert not found.confidence[3:].any() and not found.features[3:].any()
    assert np.allclose(np.linalg.norm(found.features[:3], axis=1), 1, atol=1e-3)
    by_feature = found.features[:3] @ STUB.encode_text(NAMES).T
    assert by_feature.argmax(1).tolist() == [0, 1, 2]


def test_confidence_is_opacity_not_a_sigmoid_of_density(trained):
    """1 - exp(-sigma delta): nothing in free space, where sigmoid(sigma) would say a half."""
    above = TOPS[0] + np.outer(np.array([0.0, 0.055]), [0, 0, 1]).astype(np.float32)
    on, free = surface_confidence(trained.field, above)
    assert on > 0.8 and free < 0.2
    thin, thick = (surface_confidence(trained.field, TOPS[:1], d)[0] for d in (0.001, 0.1))
    sigma = -np.log1p(-thin) / 0.001
    assert thick == pytest.approx(1 - np.exp(-sigma * 0.1), rel=1e-3) and thin < thick
    for bad in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(QueryError, match="delta_m"):
            surface_confidence(trained.field, TOPS, bad)


def test_points_alone_answer_without_a_field():
    snapshot = mapped(8).snapshot()
    found = query_points(snapshot, TOPS, encode_classes(TEXTS, NAMES, template="{}", other=False), source="points")
    assert found.label.tolist() == [0, 1, 2]
    rows = snapshot.rows_of(TOPS)
    n = snapshot.cloud.observations[rows]
    assert np.allclose(found.confidence, n / (n + 2))


@pytest.mark.parametrize("bad", [np.zeros((3, 2)), "points", [[1, 2]], np.zeros(3)])
def test_unusable_points_and_chunks(trained, bad):
    classes = encode_classes(TEXTS, NAMES)
    with pytest.raises(QueryError):
        query_points(trained, bad, classes)
    with pytest.raises(QueryError, match="chunk"):
        query_points(trained, TOPS, classes, chunk=0)


def test_nothing_learnt_and_nothing_asked(trained):
    with pytest.raises(QueryError, match="no labels"):
        query_points(mapped(2).snapshot(), TOPS)
    empty = query_points(trained, np.zeros((0, 3)), encode_classes(TEXTS, NAMES), features=True)
    assert empty.label.shape == (0,) and empty.probabilities.shape == (0, 4) and empty.features.shape == (0, STUB.dim)
    nowhere = Mapping(SMALL, STUB.dim, "cpu").snapshot()
    assert query_points(nowhere, TOPS, encode_classes(TEXTS, NAMES)).label.tolist() == [-1] * 3


# ---- Q2 ------------------------------------------------------------------------------------------------------------


def test_texts_at_points(trained):
    at = np.concatenate([TOPS, UNSEEN])
    found = text_query(trained, TEXTS, NAMES, points=at)
    assert found.scores.shape == (5, 3) and found.best.tolist() == [0, 1, 2, -1, -1]
    assert found.valid.tolist() == [True] * 3 + [False] * 2 and ((found.scores >= 0) & (found.scores <= 1)).all()
    strict = text_query(trained, TEXTS, NAMES, points=at, threshold=0.999999)
    assert not strict.valid.any() and (strict.best == -1).all()
    raw = text_query(trained, TEXTS, NAMES, points=at, negatives=[])
    assert np.allclose(raw.scores[:3], score_points(trained, TEXTS.encode(NAMES, []), TOPS).cosine, atol=1e-6)
    assert len(text_query(trained, TEXTS, "red").best) == len(trained.cloud), "the map's own voxels"


def test_texts_in_a_view(trained):
    found = text_query(trained, TEXTS, NAMES, view=(CAMERA, ring(8)[2]), negatives=[])
    assert found.scores.shape == (60, 80, 3) and found.best.shape == found.valid.shape == (60, 80)
    assert found.valid.mean() > 0.3 and set(np.unique(found.best[found.valid])) == {0, 1, 2}
    assert (found.best[~found.valid] == -1).all() and not found.scores[~found.valid].any()


def test_texts_at_points_or_in_a_view_but_not_both(trained):
    with pytest.raises(QueryError, match="one of them"):
        text_query(trained, TEXTS, "red", points=TOPS, view=(CAMERA, np.eye(4)))
    with pytest.raises(QueryError, match="threshold"):
        text_query(trained, TEXTS, "red", points=TOPS, threshold=float("nan"))


# ---- O5 ------------------------------------------------------------------------------------------------------------


def test_class_prompts():
    encoded = encode_classes(TEXTS, ["mug; cup", "red box"])
    assert [p.label for p in encoded.prompts] == ["mug", "red box", "other"]
    assert encoded.prompts[0].synonyms == ("a mug in a scene", "a cup in a scene")
    assert encoded.owner.tolist() == [0, 0, 1, 2] and encoded.negatives.shape == (0, STUB.dim)
    assert np.array_equal(encoded.positives[3], STUB.encode_text(["a other in a scene"])[0])
    assert [p.label for p in encode_classes(TEXTS, ["a", "other"]).prompts] == ["a", "other"], "not twice"
    assert [p.label for p in encode_classes(TEXTS, ["a"], other=False).prompts] == ["a"]


@pytest.mark.parametrize(
    ("names", "template"), [([], "{}"), ("red", "{}"), (["a", "a"], "{}"), (["a"], "a scene"), (["a"], "{} {}"),
                            (["other", "a"], "{}"), ([""], "{}")]
)  # fmt: skip
def test_unusable_classes(names, template):
    with pytest.raises(QueryError):
        encode_classes(TEXTS, names, template=template)


def test_other_never_wins_ties():
    cosine = np.array([[0.3, 0.5, 0.5], [0.5, 0.3, 0.5], [0.2, 0.1, 0.5], [0.5, 0.5, 0.5 + 1e-8], [0.1, 0.1, 0.1]])
    assert best_class(cosine.astype(np.float32), other=True).tolist() == [1, 0, 2, 0, 0]
    assert best_class(cosine, other=False).tolist()[2] == 2
    assert best_class(np.zeros((2, 1)), other=True).tolist() == [0, 0], "nothing else to be"
    assert best_class(np.zeros((2, 0)), other=True).tolist() == [-1, -1]


def test_other_is_last_and_answers_what_no_name_fits(trained):
    # the vector of "other" is the direction of blue here
    encoded = encode_classes(TEXTS, ["red", "white"], template="{}")
    encoded.positives[-1] = STUB.encode_text(["blue"])[0]
    found = query_points(trained, TOPS, encoded, other=True)
    assert found.label.tolist() == [0, 2, 1]
    encoded.positives[-1] = encoded.positives[0]
    assert query_points(trained, TOPS, encoded, other=True).label.tolist()[0] == 0, "a tie is the named class's"


def test_probabilities_are_a_softmax():
    share = probabilities(np.array([[0.1, 0.2, 0.3]], np.float32), 0.1)
    assert np.allclose(share, np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum(), atol=1e-6)
    assert np.isfinite(probabilities(np.array([[1.0, -1.0]], np.float32), 1e-4)).all()
    with pytest.raises(QueryError, match="temperature"):
        probabilities(np.zeros((1, 2)), 0.0)


def patch(colour: str) -> np.ndarray:
    return np.full((24, 24, 3), PALETTE[colour], np.uint8)


def test_retrieval_by_image_and_by_click(trained):
    for colour, top in (("red", TOPS[0]), ("blue", TOPS[1])):
        encoded = prompts_of_image(STUB, patch(colour))
        assert encoded.prompts[0].label == "image" and len(encoded.negatives) == 0
        cosine = text_query(trained, TEXTS, encoded, points=TOPS).scores[:, 0]
        assert np.array_equal(TOPS[cosine.argmax()], top)
        clicked = text_query(trained, TEXTS, prompts_like(trained, top), points=TOPS).scores[:, 0]
        assert np.array_equal(TOPS[clicked.argmax()], top)


def test_a_box_of_an_image_is_asked_for():
    both = np.concatenate([patch("red"), patch("blue")], 1)
    right = prompts_of_image(STUB, both, box=(24, 0, 48, 24)).positives
    assert np.allclose(right, prompts_of_image(STUB, patch("blue")).positives, atol=1e-5)
    for bad in [(0, 0, 0, 4), (0, 0, 49, 4), (-1, 0, 4, 4)]:
        with pytest.raises(QueryError, match="box"):
            prompts_of_image(STUB, both, box=bad)
    with pytest.raises(QueryError, match="uint8"):
        prompts_of_image(STUB, both.astype(float))


# ---- O4, O6 --------------------------------------------------------------------------------------------------------


def test_the_ensemble_keeps_the_surer_feature_of_each_point():
    fused, distilled = np.array([[0.9, 0.1], [0.2, 0.3], [0.5, 0.4]]), np.array([[0.2, 0.8], [0.1, 0.4], [0.5, 0.1]])
    assert from_distilled(fused, distilled).tolist() == [False, True, False], "equal: what was measured"
    both = np.concatenate([fused, [[9.0], [9.0], [9.0]]], 1), np.concatenate([distilled, np.zeros((3, 1))], 1)
    kept, chosen = combined(*both, labels=2)
    assert kept.tolist() == [[0.9, 0.1, 9.0], [0.1, 0.4, 0.0], [0.5, 0.4, 9.0]], "negatives have no say"
    assert chosen.tolist() == [False, True, False]
    with pytest.raises(QueryError):
        from_distilled(fused, distilled[:2])
    with pytest.raises(QueryError):
        from_distilled(fused[:, :0], distilled[:, :0])


def test_ensemble_features_are_compared_at_length_one():
    texts = np.eye(2, dtype=np.float32)
    fused, distilled = np.array([[10.0, 9.0], [0.0, 3.0]]), np.array([[0.9, 0.1], [1.0, 1.0]])
    kept = ensemble_features(fused, distilled, texts)
    assert np.allclose(kept, [[0.9939, 0.1104], [0.0, 1.0]], atol=1e-3), "length is no argument"


def test_the_ensemble_as_a_source(trained):
    texts, own = TEXTS.encode(["red", "blue"]), trained.cloud.points
    fused, field = (score_points(trained, texts, source=s) for s in ("points", "field"))
    both = score_points(trained, texts, source="ensemble")
    known = trained.trusted
    surer = field.cosine.max(1) > fused.cosine.max(1)
    expected = np.where((surer & known)[:, None], field.cosine, fused.cosine)
    assert np.allclose(both.cosine, expected, atol=1e-5) and np.array_equal(both.from_field, surer & known)
    assert 0 < both.from_field.mean() < 1
    at = score_points(trained, texts, own, source="ensemble")
    rows = trained.rows_of(own)
    same = rows == np.arange(len(own))
    assert np.allclose(at.cosine[same], both.cosine[same], atol=1e-5)
    untrained = mapped(4).snapshot()
    assert np.array_equal(
        score_points(untrained, texts, source="ensemble").cosine, score_points(untrained, texts, source="points").cosine
    ), "before the field knows anything the map answers alone"


def test_both_conventions_of_the_mean():
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0])
    result = segmentation(confusion_matrix(predicted, truth, 4))
    assert result.miou == pytest.approx((2 / 3 + 1 / 2) / 2), "over the classes that are there"
    assert result.miou_all == pytest.approx((2 / 3 + 1 / 2) / 4), "over all, as OpenScene divides"
    assert result.class_accuracy == pytest.approx((1 + 0.5) / 2)


def test_features_at_prefers_what_the_source_says(trained):
    for source in ("points", "field"):
        found = features_at(trained, TOPS, source)
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    rows = trained.rows_of(TOPS)
    own = trained.features[rows].astype(np.float32)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    assert np.allclose(features_at(trained, TOPS, "points"), own, atol=1e-3)
    with torch.no_grad():
        assert not features_at(trained, UNSEEN).any()
    assert RED.colour == "red" and BLUE.colour == "blue"
