"""Teachers in their own spaces: only scores meet, and only those of teachers that know words."""

import analytic_scene
import numpy as np
import pytest

from semfield_ros.config import EncoderConfig
from semfield_ros.encoders import create
from semfield_ros.encoders.ensemble import Ensemble, fuse
from semfield_ros.encoders.stub import StubEncoder
from semfield_ros.errors import ConfigError, QueryError
from semfield_ros.query.teachers import score_teachers


class Mute:
    """A teacher without words, as DINO is."""

    name, dim, has_text, cache_key = "dino", 8, False, "m"
    calibration = StubEncoder.calibration

    def encode_frame(self, frame):
        raise NotImplementedError

    def encode_text(self, texts):
        raise AssertionError("nobody may ask a teacher without words")


@pytest.fixture
def ensemble():
    return Ensemble({"language": create(EncoderConfig(name="stub")), "wide": StubEncoder(48), "dino": Mute()})


def test_each_teacher_keeps_its_own_space(ensemble):
    vectors = ensemble.encode_text(["red", "blue"])
    assert {name: v.shape for name, v in vectors.items()} == {"language": (2, 32), "wide": (2, 48)}
    assert ensemble.aligned == ("language", "wide") and ensemble.dims["dino"] == 8


def test_dino_never_takes_part_in_likeness_to_words(ensemble):
    scores = np.full((3, 2), 0.5, np.float32)
    with pytest.raises(QueryError, match="dino has no text space"):
        ensemble.fuse({"language": scores, "dino": scores})
    with pytest.raises(ConfigError, match="weights name dino"):
        Ensemble(ensemble.encoders, {"dino": 1.0})
    with pytest.raises(QueryError, match="text space"):
        Ensemble({"dino": Mute()}).encode_text(["red"])


def test_fusions_by_hand():
    a, b = np.array([[0.8]], np.float32), np.array([[0.5]], np.float32)
    even = {"a": 1.0, "b": 1.0}
    assert np.isclose(fuse({"a": a, "b": b}, even, "mean"), 0.65)
    assert np.isclose(fuse({"a": a, "b": b}, even, "max"), 0.8)
    # odds 4 and 1: geometric mean 2, so 2/3
    assert np.isclose(fuse({"a": a, "b": b}, even, "log_odds"), 2 / 3)
    # weights 3:1 of log odds
    assert np.isclose(fuse({"a": a, "b": b}, {"a": 3.0, "b": 1.0}), 4**0.75 / (1 + 4**0.75))


@pytest.mark.parametrize("how", ["mean", "max", "log_odds"])
def test_laws(how):
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0.01, 0.99, (40, 3)).astype(np.float32) for _ in range(2))
    even = {"a": 1.0, "b": 1.0}
    fused = fuse({"a": a, "b": b}, even, how)
    assert np.allclose(fused, fuse({"b": b, "a": a}, even, how)), "order does not matter"
    assert np.allclose(fuse({"a": a, "b": a}, even, how), a, atol=1e-5), "agreement stays"
    assert (fused >= np.minimum(a, b) - 1e-6).all() and (fused <= np.maximum(a, b) + 1e-6).all()
    assert np.allclose(fuse({"a": a, "b": b}, {"a": 1.0, "b": 0.0}, how), a, atol=1e-5), "weight 0 has no say"
    hole = b.copy()
    hole[:5] = np.nan
    assert np.allclose(fuse({"a": a, "b": hole}, even, how)[:5], a[:5], atol=1e-5), "who does not know has no say"
    both = a.copy()
    both[:5] = np.nan
    assert not fuse({"a": both, "b": hole}, even, how)[:5].any(), "nobody knows: 0"


def test_bad_input_is_refused(ensemble):
    scores = np.full((3, 2), 0.5, np.float32)
    with pytest.raises(QueryError, match="no scores"):
        ensemble.fuse({})
    with pytest.raises(QueryError, match="shapes"):
        ensemble.fuse({"language": scores, "wide": scores[:2]})
    with pytest.raises(QueryError, match="'sum'; allowed"):
        ensemble.fuse({"language": scores}, "sum")
    with pytest.raises(ConfigError, match="at least one encoder"):
        Ensemble({})
    with pytest.raises(ConfigError, match="allowed: >= 0"):
        Ensemble(ensemble.encoders, {"language": -1.0})
    with pytest.raises(ConfigError, match="not all 0"):
        Ensemble(ensemble.encoders, {"language": 0.0, "wide": 0.0})


@pytest.fixture(scope="module")
def two_teachers():
    """A map whose field has learnt the stub twice: as the main encoder, and in another space as a teacher."""
    mapping = analytic_scene.mapped(8)
    wide = StubEncoder(48)
    for keyframe, frame in zip(list(mapping.keyframes.items), analytic_scene.stream(8)):
        mapping.add_teacher(keyframe, frame, "wide", {"wide": wide.encode_frame(frame)})
    for _ in range(250):
        mapping.train_step()
    return mapping.snapshot(), wide


POINTS = np.array([[-0.14, -0.02, 0.16], [0.15, 0.02, 0.1], [0.0, -0.3, 0.0], [5.0, 5.0, 5.0]], np.float32)


def test_two_heads_answer_as_one(two_teachers):
    snapshot, wide = two_teachers
    both = Ensemble({"language": create(EncoderConfig(name="stub")), "wide": wide, "dino": Mute()})
    scores = score_teachers(snapshot, both, ["red", "blue", "white"], POINTS)
    assert scores.relevancy[:3].argmax(1).tolist() == [0, 1, 2]
    assert scores.seen.tolist() == [True, True, True, False] and not scores.relevancy[3].any()
    alone = {
        name: score_teachers(snapshot, Ensemble({name: encoder}), ["red"], POINTS).relevancy[:3]
        for name, encoder in (("language", both.encoders["language"]), ("wide", wide))
    }
    odds = [np.log(p / (1 - p)) for p in alone.values()]
    together = score_teachers(snapshot, both, ["red"], POINTS).relevancy[:3]
    assert np.allclose(together, 1 / (1 + np.exp(-np.mean(odds, axis=0))), atol=1e-4)
    whole = score_teachers(snapshot, both, ["red"])
    assert len(whole.relevancy) == len(snapshot.cloud)


def test_who_has_not_been_learnt_has_no_say(two_teachers):
    snapshot, wide = two_teachers
    with pytest.raises(QueryError, match="learnt yet"):
        score_teachers(snapshot, Ensemble({"other": wide}), ["red"], POINTS)
    with pytest.raises(QueryError, match="none of dino has a text space"):
        score_teachers(snapshot, Ensemble({"dino": Mute()}), ["red"], POINTS)
