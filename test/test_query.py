"""Queries: prompts, relevancy by hand, factored cosines against the naive form, and what cannot be asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import BLUE, RED, SMALL, mapped
from hypothesis import given
from hypothesis import strategies as st

from semfield_ros.answer import answer, in_region
from semfield_ros.config import EncoderConfig, QueryConfig
from semfield_ros.encoders import create
from semfield_ros.errors import QueryError
from semfield_ros.field.model import Field
from semfield_ros.field.snapshot import TRUSTED_STEPS, Snapshot
from semfield_ros.field.workspace import Workspace
from semfield_ros.mapping import Mapping, language_head
from semfield_ros.query.classes import encode_classes
from semfield_ros.query.prompt import MAX_CHARACTERS, MAX_PROMPTS, PromptEncoder, known_parts, parse_prompt
from semfield_ros.query.relevancy import best_synonym, hysteresis, pairwise_relevancy, peak, top_percent
from semfield_ros.query.scores import field_cosines, map_cosines, score_points

STUB = create(EncoderConfig(name="stub"))
RED_TOP, BLUE_TOP, TABLE = (-0.14, -0.02, 0.159), (0.15, 0.02, 0.099), (0.0, -0.3, 0.001)


def texts_of(*prompts, negatives=None):
    return PromptEncoder(STUB, QueryConfig()).encode(list(prompts), negatives)


@pytest.fixture(scope="module")
def untrained() -> Snapshot:
    return mapped(8).snapshot()


@pytest.fixture(scope="module")
def trained() -> Snapshot:
    return mapped(8, steps=TRUSTED_STEPS).snapshot()


@pytest.fixture(scope="module")
def empty() -> Snapshot:
    return Mapping(SMALL, STUB.dim, "cpu").snapshot()


# ---- prompts -------------------------------------------------------------------------------------------------------


def test_prompts_and_synonyms():
    assert parse_prompt("mug; coffee  cup ;; mug").synonyms == ("mug", "coffee cup")
    assert parse_prompt(["a red mug", "cup"]).label == "a red mug"
    encoded = texts_of("mug; cup", ["blue box"], "pen")
    assert encoded.owner.tolist() == [0, 0, 1, 2] and encoded.positives.shape == (4, STUB.dim)
    assert encoded.negatives.shape == (4, STUB.dim), "the canonical four"
    assert [p.label for p in encoded.prompts] == ["mug", "blue box", "pen"]
    assert np.array_equal(encoded.positives, STUB.encode_text(["mug", "cup", "blue box", "pen"]))
    assert len(PromptEncoder(STUB, QueryConfig()).encode("one text").prompts) == 1


@pytest.mark.parametrize(
    ("text", "label", "synonyms", "part"),
    [
        ("mug; handle", "mug; handle", ["mug"], ["handle"]),
        ("mug; cup; the handle", "mug; handle", ["mug", "cup"], ["handle"]),
        ("mug; handle; cup; Grip", "mug; handle", ["mug", "cup"], ["handle", "Grip"]),
        ("white mug; mug handle", "white mug; handle", ["white mug"], ["handle"]),
        ("the white mug; its handle", "the white mug; handle", ["the white mug"], ["handle"]),
        ("a mug; mug handle", "a mug; handle", ["a mug"], ["handle"]),
        (["mug", "cup", "rim"], "mug; rim", ["mug", "cup"], ["rim"]),
        ("drill > chuck", "drill; chuck", ["drill"], ["chuck"]),
        ("drill; power tool > the chuck; jaws", "drill; chuck", ["drill", "power tool"], ["chuck", "jaws"]),
        (["drill > chuck"], "drill; chuck", ["drill"], ["chuck"]),
        (["drill", "> chuck"], "drill; chuck", ["drill"], ["chuck"]),
        ("the white mug by its handle", "white mug; handle", ["white mug"], ["handle"]),
        ("the white mug by its handle; cup", "white mug; handle", ["white mug", "cup"], ["handle"]),
        ("mug's handle", "mug; handle", ["mug"], ["handle"]),
        ("the mug\u2019s handle", "mug; handle", ["mug"], ["handle"]),
        ("scissors' handle", "scissors; handle", ["scissors"], ["handle"]),
        ("handle of the mug", "mug; handle", ["mug"], ["handle"]),
        ("The rim of a white bowl", "white bowl; rim", ["white bowl"], ["rim"]),
        # what only looks like it
        ("handle", "handle", ["handle"], []),
        ("handle; grip", "handle", ["handle", "grip"], []),
        ("the bottle cap; lid", "the bottle cap", ["the bottle cap", "lid"], []),
        ("mug handle", "mug handle", ["mug handle"], []),
        ("mug; bottle cap", "mug", ["mug", "bottle cap"], []),
        ("drill; chuck", "drill", ["drill", "chuck"], []),
        ("head of lettuce", "head of lettuce", ["head of lettuce"], []),
        ("a bowl of the soup", "a bowl of the soup", ["a bowl of the soup"], []),
        ("table by the window", "table by the window", ["table by the window"], []),
        ("child's toy", "child's toy", ["child's toy"], []),
        ("of the mug", "of the mug", ["of the mug"], []),
        ("by its handle", "by its handle", ["by its handle"], []),
    ],
)
def test_the_grammar_of_parts(text, label, synonyms, part):
    found = parse_prompt(text)
    assert (found.label, list(found.synonyms), list(found.part)) == (label, synonyms, part)


@pytest.mark.parametrize(
    "text", [">", "mug >", "> handle", "mug > ;", "; > x", "a > b > c", ["a > b", "c > d"], "mug >>"]
)
def test_half_a_part_is_refused(text):
    with pytest.raises(QueryError, match=">"):
        parse_prompt(text)


def test_classes_are_whole_things():
    texts = PromptEncoder(STUB, QueryConfig())
    assert encode_classes(texts, ["box; lid"], other=False).prompts[0].label == "box", "part words are synonyms here"
    with pytest.raises(QueryError, match="whole"):
        encode_classes(texts, ["box > lid"])


def test_part_words_are_the_users_own():
    assert parse_prompt("drill; chuck", known_parts(["chuck; jaws"])).part == ("chuck",)
    assert parse_prompt("mug; handle", known_parts([])).synonyms == ("mug", "handle")
    mine = PromptEncoder(STUB, QueryConfig(part_words=("chuck; jaws", "trigger"))).encode("drill; jaws")
    assert mine.prompts[0].part == ("jaws",)
    against = mine.parts[0].negatives
    assert np.array_equal(against[-1:], STUB.encode_text(["trigger"])), "words for the same part do not compete"


@given(
    st.lists(st.sampled_from(["mug", "handle", "the", "of", "by", "its", ";", ">", "'s", " ", "a", "rim"]), max_size=12)
)
def test_any_prompt_is_read_or_refused(words):
    try:
        found = parse_prompt(" ".join(words))
    except QueryError:
        return
    assert found.label and found.synonyms and all(found.synonyms) and all(found.part)


def test_parts_are_encoded_beside_their_prompts():
    encoded = texts_of("mug; cup", "red; blue > green", "pen")
    assert encoded.owner.tolist() == [0, 0, 1, 1, 2] and list(encoded.parts) == [1]
    part = encoded.parts[1]
    assert part.positives.shape[1] == part.negatives.shape[1] == STUB.dim
    assert not texts_of("mug").parts
    known, strange = texts_of("a mug; handle").parts[0], texts_of("a spoon > bowl").parts[0]
    assert np.allclose(known.positives, STUB.encode_text(["handle"]))
    both = STUB.encode_text(["bowl", "spoon bowl"]).sum(0)
    assert np.allclose(strange.positives, both / np.linalg.norm(both)), "a word that may be a thing of its own"


def test_negatives_are_text_or_texts():
    one = texts_of("mug", negatives=["table", "wall"])
    assert np.array_equal(one.negatives, STUB.encode_text(["table", "wall"]))
    assert np.array_equal(texts_of("mug", negatives="table; wall").negatives, one.negatives), "not its letters"
    assert texts_of("mug", negatives=[]).negatives.shape == (0, STUB.dim)


@pytest.mark.parametrize(
    "prompts",
    [
        [], "", " ; ;", ["mug", ""], [[]], [["mug", 3]], [None], 5, None, [5], ["x" * (MAX_CHARACTERS + 1)],
        ["mug"] * (MAX_PROMPTS + 1), [[" "]], [b"mug"],
    ],
)  # fmt: skip
def test_unusable_prompts_are_query_errors(prompts):
    with pytest.raises(QueryError):
        PromptEncoder(STUB, QueryConfig()).encode(prompts)


@pytest.mark.parametrize("negatives", [[3], [None], 7, [b"x"], ["x"] * 5000])
def test_unusable_negatives_are_query_errors(negatives):
    with pytest.raises(QueryError):
        texts_of("mug", negatives=negatives)


class Counting:
    """The stub encoder, remembering what it was asked."""

    dim, name, has_text, cache_key, calibration = STUB.dim, "counting", True, "counting", STUB.calibration

    def __init__(self):
        self.asked: list[str] = []

    def encode_text(self, texts):
        self.asked += texts
        return STUB.encode_text(texts)


def test_texts_are_encoded_once_and_memory_is_bounded():
    encoder = Counting()
    prompts = PromptEncoder(encoder, QueryConfig(), memory=10)
    prompts.encode(["a", "b"])
    prompts.encode(["b; a", "a"])
    assert sorted(encoder.asked) == sorted(["a", "b", "object", "things", "stuff", "texture"])
    for i in range(50):
        prompts.encode([f"thing {i}"])
        assert len(prompts._vectors) <= 10
    many = [f"word {i}" for i in range(40)]
    assert np.array_equal(prompts.vectors(many), STUB.encode_text(many)), "more at once than are remembered"


def test_another_threads_new_texts_do_not_disturb_a_query():
    """The memory may be replaced by another thread between any two looks at it."""

    class Racing(PromptEncoder):
        looks = 0

        @property
        def _vectors(self):
            self.looks += 1
            return {"mug": STUB.encode_text(["mug"])[0]} if self.looks == 1 else {}

        @_vectors.setter
        def _vectors(self, value):
            pass

    assert np.array_equal(Racing(STUB, QueryConfig()).vectors(["mug"]), STUB.encode_text(["mug"]))


# ---- relevancy -----------------------------------------------------------------------------------------------------


def test_relevancy_has_the_published_check_value():
    value = pairwise_relevancy(np.array([[0.30]]), np.array([[0.20, 0.21, 0.22, 0.19]]))
    assert value.item() == pytest.approx(0.690, abs=5e-4)


def test_relevancy_is_the_minimum_over_negatives():
    rng = np.random.default_rng(0)
    positive, negative = rng.uniform(-1, 1, (50, 3)), rng.uniform(-1, 1, (50, 4))
    e = lambda c: np.exp(10 * c)  # noqa: E731
    expected = np.min([e(positive) / (e(positive) + e(negative[:, i : i + 1])) for i in range(4)], axis=0)
    assert np.allclose(pairwise_relevancy(positive, negative), expected)


@pytest.mark.filterwarnings("error")
def test_relevancy_does_not_overflow():
    extreme = pairwise_relevancy(np.array([[-1.0], [1.0]], np.float32), np.array([[1.0], [-1.0]], np.float32), 1e4)
    assert extreme.tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_relevancy_needs_a_temperature(temperature):
    with pytest.raises(QueryError, match="temperature"):
        pairwise_relevancy(np.zeros((1, 1)), np.zeros((1, 1)), temperature)


def test_relevancy_needs_a_negative():
    with pytest.raises(QueryError, match="negative"):
        pairwise_relevancy(np.zeros((1, 1)), np.zeros((1, 0)))


def test_the_best_synonym_counts():
    values = np.array([[0.1, 0.9, 0.3], [0.5, 0.2, 0.4]])
    assert best_synonym(values, np.array([0, 0, 1]), 2).tolist() == [[0.9, 0.3], [0.5, 0.4]]
    assert best_synonym(values, np.array([0, 1, 2]), 3) is values


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0.1, 100))
def test_top_percent_takes_the_best(scores, percent):
    scores = np.array(scores)
    selected = top_percent(scores, percent)
    assert selected.sum() == max(1, round(len(scores) * percent / 100))
    assert selected.all() or scores[selected].min() >= scores[~selected].max()


def test_top_percent_of_nothing_and_of_nonsense():
    assert top_percent(np.zeros(0), 5).shape == (0,)
    for percent in (0, -1, 101, float("nan")):
        with pytest.raises(QueryError, match="percent"):
            top_percent(np.zeros(3), percent)


def test_hysteresis_keeps_what_hangs_together_with_a_seed():
    # two rows of points 1 cm apart with a gap of 5 cm between them; only the first has a seed
    x = np.concatenate([np.arange(10) * 0.01, 0.14 + np.arange(10) * 0.01])
    points = np.stack([x, 0 * x, 0 * x], 1)
    score = np.full(20, 0.5)
    score[4], score[7] = 0.9, 0.1
    selected = hysteresis(points, score, high=0.8, low=0.4, radius_m=0.011)
    assert selected.nonzero()[0].tolist() == [0, 1, 2, 3, 4, 5, 6], "up to the drop at 7"
    wide = hysteresis(points, score, high=0.8, low=0.4, radius_m=0.06)
    assert wide.nonzero()[0].tolist() == [i for i in range(20) if i != 7]
    assert not hysteresis(points, score, high=0.95, low=0.4, radius_m=0.06).any()
    assert not hysteresis(points, score, high=0.99, low=0.98, radius_m=0.06).any()
    with pytest.raises(QueryError, match="swap"):
        hysteresis(points, score, high=0.4, low=0.8, radius_m=0.06)


def test_hysteresis_leaves_out_points_that_are_nowhere():
    points = np.array([[0.0, 0, 0], [np.nan, 0, 0], [0.01, 0, 0], [np.inf, 0, 0]])
    assert hysteresis(points, np.ones(4), high=0.5, low=0.0, radius_m=0.02).tolist() == [True, False, True, False]


def test_a_robust_peak():
    score = np.zeros(100_000)
    score[:50] = 0.8
    score[0] = 100.0
    assert peak(score, 50) == pytest.approx((100 + 49 * 0.8) / 50)
    assert peak(np.array([0.2, 0.4])) == pytest.approx(0.3), "fewer points than a peak needs"
    assert peak(np.zeros(0)) == float("-inf")


# ---- cosines -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_field() -> Field:
    """A field with 512-D features that vary with position."""
    field = Field(SMALL.field, Workspace((0.0, 0.0, 0.0), 2.0), (language_head(512),))
    with torch.no_grad():
        field.grid("feature").table *= 1e4
    return field


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_factored_cosines_equal_the_naive_form(wide_field):
    points, texts = np.random.default_rng(0).uniform(-2, 2, (500, 3)).astype(np.float32), unit_rows(7, 512)
    head = wide_field.head("language")
    with torch.no_grad():
        h = head.hidden(wide_field.encode("feature", torch.from_numpy(points)), None)
        feature = torch.nn.functional.normalize(head.finish(h), dim=-1)
    naive = (feature @ torch.from_numpy(texts).T).numpy()
    assert naive.std() > 0.01
    assert np.abs(field_cosines(wide_field, points, texts) - naive).max() < 1e-5


def test_cosines_do_not_depend_on_the_chunk(wide_field):
    points, texts = np.random.default_rng(0).uniform(-1, 1, (1000, 3)).astype(np.float32), unit_rows(3, 512)
    assert np.abs(field_cosines(wide_field, points, texts) - field_cosines(wide_field, points, texts, 37)).max() < 1e-6
    features = np.random.default_rng(1).normal(size=(1000, 512)).astype(np.float16)
    assert np.abs(map_cosines(features, texts) - map_cosines(features, texts, 37)).max() < 1e-6
    assert field_cosines(wide_field, points[:0], texts).shape == (0, 3)


def test_map_cosines_by_hand():
    features = np.array([[2.0, 0, 0], [0, 0, 0], [3, 4, 0]], np.float16)
    assert np.allclose(map_cosines(features, np.eye(3, dtype=np.float32)[:2]), [[1, 0], [0, 0], [0.6, 0.8]], atol=1e-3)


def test_map_cosines_of_some_rows_with_known_lengths_are_those_of_all():
    features, texts = np.random.default_rng(1).normal(size=(500, 64)).astype(np.float16), unit_rows(3, 64)
    features[7] = 0
    lengths = np.linalg.norm(features.astype(np.float32), axis=1)
    rows = np.array([7, 3, 499, 3])
    expected = map_cosines(features, texts)
    assert np.abs(map_cosines(features, texts, lengths=lengths) - expected).max() < 1e-6
    assert np.abs(map_cosines(features, texts, 3, rows=rows, lengths=lengths) - expected[rows]).max() < 1e-6
    assert np.abs(map_cosines(features, texts, 3, rows=rows) - expected[rows]).max() < 1e-6


def test_texts_of_another_encoder_are_refused(wide_field):
    with pytest.raises(QueryError, match=r"32 dimensions.*512"):
        field_cosines(wide_field, np.zeros((1, 3), np.float32), unit_rows(2, 32))
    with pytest.raises(QueryError, match=r"32 dimensions.*3"):
        map_cosines(np.zeros((1, 3), np.float16), unit_rows(2, 32))


# ---- scores over points --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["points", "field", "auto"])
def test_scores_know_the_scene_from_either_map(trained, source):
    points = np.array([RED_TOP, BLUE_TOP, TABLE], np.float32)
    scores = score_points(trained, texts_of("red", "blue", "white"), points, source=source)
    assert scores.seen.all() and (scores.from_field == (source != "points")).all()
    assert scores.cosine.argmax(1).tolist() == scores.relevancy.argmax(1).tolist() == [0, 1, 2]
    assert np.diag(scores.relevancy).min() > 0.8


def test_auto_answers_from_the_points_until_the_field_can_be_trusted(untrained, trained):
    texts = texts_of("red")
    early = score_points(untrained, texts)
    assert not early.from_field.any() and early.seen.mean() > 0.8
    late = score_points(trained, texts)
    assert np.array_equal(late.from_field, late.seen), "then the field knows every point that was measured"
    young = replace(trained, created_step=np.full(len(trained.cloud), trained.step - TRUSTED_STEPS + 1))
    assert not score_points(young, texts).from_field.any(), "voxels that training has hardly met"
    with pytest.raises(QueryError, match="not learnt"):
        score_points(untrained, texts, source="field")


def test_default_points_are_the_maps_own(trained):
    texts = texts_of("red", "blue")
    own, given_points = score_points(trained, texts), score_points(trained, texts, trained.cloud.points)
    assert np.array_equal(own.seen, given_points.seen)
    assert np.allclose(own.relevancy, given_points.relevancy, atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_map_known_in_part_answers_each_voxel_from_where_it_is_known(trained):
    texts = texts_of("red", "blue")
    created = np.where(np.arange(len(trained.cloud)) % 3 == 0, trained.step, 0)
    measured = trained.measured & (np.arange(len(trained.cloud)) % 5 != 0)
    mixed = replace(trained, created_step=created, measured=measured)
    for where in (None, trained.cloud.points):
        field, points = (score_points(trained, texts, where, source=m) for m in ("field", "points"))
        rows = np.arange(len(measured)) if where is None else mixed.rows_of(where)
        found = score_points(mixed, texts, where)
        assert np.array_equal(found.seen, measured[rows])
        assert np.array_equal(found.from_field, (measured & (created == 0))[rows])
        expected = np.where(found.from_field[:, None], field.cosine, points.cosine)
        assert np.abs(found.cosine - np.where(found.seen[:, None], expected, 0)).max() < 1e-5
        assert not found.relevancy[~found.seen].any()


def test_rows_that_are_known_already_change_nothing(trained):
    texts, points = texts_of("red"), np.array([RED_TOP, BLUE_TOP, (9.0, 9.0, 9.0)], np.float32)
    once = score_points(trained, texts, points)
    again = score_points(trained, texts, points, rows=trained.rows_of(points))
    assert np.array_equal(once.relevancy, again.relevancy) and np.array_equal(once.seen, again.seen)


def test_unseen_points_abstain(trained):
    """Unseen is not background: nothing is claimed about it."""
    points = np.array([[0, 0, 2.0], [50, 0, 0], [np.nan, 0, 0], [0, np.inf, 0], [1e30, 0, 0], RED_TOP])
    for source in ("auto", "points", "field"):
        scores = score_points(trained, texts_of("red"), points, source=source)
        assert scores.seen.tolist() == [False] * 5 + [True]
        assert not scores.relevancy[:5].any() and not scores.cosine[:5].any() and not scores.from_field[:5].any()
        assert scores.relevancy[5, 0] > 0.8


@pytest.mark.filterwarnings("error")
def test_points_of_any_number_type_and_none_at_all(trained):
    texts = texts_of("red", "blue")
    double = score_points(trained, texts, np.array([RED_TOP, BLUE_TOP], np.float64))
    assert np.allclose(double.relevancy, score_points(trained, texts, [RED_TOP, BLUE_TOP]).relevancy)
    assert score_points(trained, texts, np.zeros((1, 3), int)).relevancy.shape == (1, 2)
    assert score_points(trained, texts, np.zeros((0, 3))).relevancy.shape == (0, 2)
    assert not score_points(trained, texts, np.array([[1e300, 0, 0]])).seen.any()


def test_an_empty_map_has_seen_nothing(empty):
    texts = texts_of("red")
    assert score_points(empty, texts).relevancy.shape == (0, 1)
    assert not score_points(empty, texts, np.zeros((4, 3))).seen.any()
    assert not answer(empty, PromptEncoder(STUB, QueryConfig()), "red").prompts[0].matched


@pytest.mark.parametrize(
    "points", [np.zeros(3), np.zeros((2, 2)), "points", [[0, 0], [0, 0, 0]], np.zeros((2, 3), bool), [["a", "b", "c"]]]
)
def test_unusable_points_are_query_errors(trained, points):
    with pytest.raises(QueryError, match="points"):
        score_points(trained, texts_of("red"), points)


def test_unusable_sources_and_temperatures_are_query_errors(trained):
    with pytest.raises(QueryError, match="auto, field, points"):
        score_points(trained, texts_of("red"), source="voxels")
    with pytest.raises(QueryError, match="temperature"):
        score_points(trained, texts_of("red"), temperature=0.0)


def test_without_negatives_there_are_cosines_only(trained):
    scores = score_points(trained, texts_of("red", negatives=[]))
    assert np.isnan(scores.relevancy).all() and np.isfinite(scores.cosine).all()


# ---- answers -------------------------------------------------------------------------------------------------------


def ask(snapshot, prompts, **options):
    return answer(snapshot, PromptEncoder(STUB, QueryConfig()), prompts, config=SMALL, grasps=False, **options)


def inside(point, block, margin=0.02):
    return all(lo - margin <= x <= hi + margin for x, lo, hi in zip(point, block.low, block.high))


@pytest.mark.parametrize("source", ["points", "auto"])
def test_answers_find_what_is_named_and_nothing_else(trained, source):
    found = ask(trained, ["red mug; red box", "blue", "zebra"], source=source)
    red, blue, zebra = found.prompts
    assert red.label == "red mug" and red.matched and blue.matched
    assert inside(red.objects[0].centroid, RED) and inside(blue.objects[0].centroid, BLUE)
    assert not zebra.matched and zebra.objects == () and zebra.peak < found.no_match
    assert found.source == ("points" if source == "points" else "field") and found.global_frame == "map"
    assert len(found.objects) == len(red.objects) + len(blue.objects)


def test_a_region_bounds_the_search(trained):
    everywhere = ask(trained, "red")
    left = ask(trained, "red", region=[[-0.3, -0.2, -0.01], [0.0, 0.2, 0.3]])
    right = ask(trained, "red", region=[[0.05, -0.2, -0.01], [0.3, 0.2, 0.3]])
    assert left.prompts[0].matched and not right.prompts[0].matched
    assert np.allclose(left.objects[0].centroid, everywhere.objects[0].centroid, atol=0.02)
    assert (left.cloud.points[:, 0] <= 0).all() and len(left.cloud) < len(everywhere.cloud)
    nowhere = ask(trained, "red", region=[[50, 50, 50], [51, 51, 51]])
    assert not nowhere.prompts[0].matched and len(nowhere.cloud) == 0 and nowhere.source == "points"


@pytest.mark.parametrize(
    "region",
    [[[0, 0, 0]], [[0, 0], [1, 1]], [[1, 0, 0], [0, 1, 1]], [[0, 0, 0], [1, 1, np.nan]], [[0, 0], [1]], "box", 3],
)
def test_unusable_regions_are_query_errors(region):
    with pytest.raises(QueryError, match="region"):
        in_region(np.zeros((2, 3)), region)


def test_thresholds_bound_the_answer(trained):
    assert not ask(trained, "red", no_match=0.9999).prompts[0].matched
    found = ask(trained, "red", no_match=0.3, high=0.9)
    assert (found.no_match, found.high) == (0.3, 0.9)
    red = found.objects[0]
    assert found.scores.relevancy[red.rows, 0].min() >= 0.5 - 1e-6, "the stub's calibrated low"
    assert ask(trained, "red", no_match=0.6, high=0.2).high == 0.6, "a seed at least matches"
    for threshold in (float("nan"), float("inf")):
        for name in ("no_match", "high"):
            with pytest.raises(QueryError, match=name):
                ask(trained, "red", **{name: threshold})


def test_relevancy_without_negatives_is_refused_and_cosines_are_not(trained):
    with pytest.raises(QueryError, match="negative"):
        ask(trained, "red", negatives=[])
    config = replace(SMALL, query=QueryConfig(score="cosine"))
    prompts = PromptEncoder(STUB, config.query)
    found = answer(trained, prompts, "red", config=config, negatives=[], no_match=0.6, high=0.9, grasps=False)
    assert found.prompts[0].matched and inside(found.objects[0].centroid, RED)
