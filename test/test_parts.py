"""Parts of objects: exact cuts against exhaustive search, and parts of shapes and maps that are known."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from analytic_scene import SMALL, Block, mapped_frames, stream
from surface_shapes import cloud_of, mug, sphere

from semfield_ros.answer import answer
from semfield_ros.config import EncoderConfig, ObjectConfig, QueryConfig, demo_config
from semfield_ros.encoders import create
from semfield_ros.errors import QueryError
from semfield_ros.field.snapshot import Snapshot
from semfield_ros.objects.part_region import LEAST_POINTS, minimum_cut, part_region, span
from semfield_ros.objects.reasons import PART_NOT_FOUND
from semfield_ros.query.parts import part_scores
from semfield_ros.query.prompt import PromptEncoder

STUB = create(EncoderConfig(name="stub"))
WHITE = (230, 230, 225)
BODY = Block((-0.15, -0.1, 0.0), (0.05, 0.1, 0.16), "red")
GRIP = Block((0.05, -0.03, 0.05), (0.15, 0.03, 0.11), "orange")
"""A red body and, sticking out of it, an orange grip."""


# ---- the cut -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_minimum_cut_is_the_best_of_all_labellings(seed):
    rng = np.random.default_rng(seed)
    pull, links = rng.uniform(-1, 1, 9), np.array([(a, b) for a in range(9) for b in range(a) if rng.random() < 0.4])
    cost = rng.uniform(0, 0.6, len(links))

    def energy(x):
        return -(pull * x).sum() + (cost * (x[links[:, 0]] != x[links[:, 1]])).sum()

    best = min(energy(np.array(x)) for x in product([0, 1], repeat=9))
    assert energy(minimum_cut(pull, links, cost).astype(int)) == pytest.approx(best, abs=1e-3)


def test_without_links_everyone_follows_its_own_pull():
    pull = np.array([0.3, -0.2, 0.0, 1e-3])
    assert minimum_cut(pull, np.zeros((0, 2), int), np.zeros(0)).tolist() == [True, False, False, True]


def test_a_strong_link_takes_the_weaker_one_along():
    links = np.array([[0, 1]])
    assert minimum_cut(np.array([0.4, -0.1]), links, np.array([0.2])).tolist() == [True, True]
    assert minimum_cut(np.array([0.4, -0.1]), links, np.array([0.05])).tolist() == [True, False]
    assert minimum_cut(np.array([0.1, -0.4]), links, np.array([0.2])).tolist() == [False, False]


def test_the_span_of_scores_is_from_their_median_to_the_mean_of_the_best():
    assert span(np.arange(101.0)) == (50.0, 98.0), "the best five are 96 to 100"
    assert span(np.array([1.0, 1.0, 1.0, 7.0])) == (1.0, 3.0), "of few the best three"


# ---- parts of shapes -----------------------------------------------------------------------------------------------


def blurred(points, on, sigma_m, noise, seed=0):
    """What a coarse encoder makes of a part: its share around every point, and noise."""
    near = np.exp(-0.5 * (np.linalg.norm(points[:, None] - points[None], axis=2) / sigma_m) ** 2)
    share = near @ on / near.sum(axis=1)
    return (0.3 + 0.5 * share + np.random.default_rng(seed).normal(0, noise, len(on))).astype(np.float32)


@pytest.fixture(scope="module")
def mug_cloud():
    """A mug's cloud, and which points are its handle's."""
    cloud = cloud_of((mug(spacing=0.008), WHITE))
    return cloud, np.linalg.norm(cloud.points[:, :2], axis=1) > 0.047


def region_of(cloud, score, **options):
    return part_region(cloud, score, config=ObjectConfig(), voxel_size_m=0.01, **options)


def test_a_handle_is_found_in_coarse_noisy_scores(mug_cloud):
    cloud, handle = mug_cloud
    score = blurred(cloud.points, handle, 0.012, 0.04)
    region = region_of(cloud, score)
    chosen = np.zeros(len(cloud), bool)
    chosen[region.rows] = True
    union = (chosen | handle).sum()
    assert handle[chosen].mean() > 0.8
    assert (chosen & handle).sum() / union > 0.7
    assert 0.5 < region.score <= 1
    assert region_of(cloud, score, no_match=region.score - 1e-6) is not None
    assert region_of(cloud, score, no_match=region.score + 0.01) is None


def test_the_same_scores_give_the_same_part(mug_cloud):
    cloud, handle = mug_cloud
    score = blurred(cloud.points, handle, 0.012, 0.04)
    assert np.array_equal(region_of(cloud, score).rows, region_of(cloud, score).rows)


def test_what_looks_the_same_all_over_has_no_part():
    cloud = cloud_of((sphere(np.zeros(3), 0.04, spacing=0.008), WHITE))
    assert region_of(cloud, np.full(len(cloud), 0.6, np.float32)) is None
    noise = 0.5 + 0.01 * np.random.default_rng(0).normal(size=len(cloud))
    assert region_of(cloud, noise.astype(np.float32)) is None


def test_a_large_thing_is_cut_coarsely_and_still_along_its_part():
    points = np.random.default_rng(0).uniform(0, 1, (40_000, 3)) * [4, 4, 0]
    cloud = cloud_of(((points, np.tile([0.0, 0, 1], (len(points), 1))), WHITE))
    corner = (points[:, :2] < 1).all(axis=1)
    region = region_of(cloud, np.where(corner, 0.8, 0.3).astype(np.float32))
    assert corner[region.rows].mean() > 0.97 and len(region.rows) > 0.9 * corner.sum()


def test_a_handful_of_points_has_no_part():
    cloud = cloud_of((sphere(np.zeros(3), 0.04, spacing=0.008), WHITE))[np.arange(LEAST_POINTS - 1)]
    assert region_of(cloud, np.linspace(0, 1, len(cloud))) is None


# ---- parts in maps -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return mapped_frames(stream(10, (BODY, GRIP)), SMALL).snapshot()


def ask(snapshot, text, **options):
    config = replace(SMALL, query=QueryConfig(no_match=0.5))
    texts = PromptEncoder(STUB, config.query)
    return answer(snapshot, texts, text, config=config, high=0.55, low=0.52, **options).prompts[0]


def test_the_object_first_and_the_part_only_inside_it(snapshot):
    whole = ask(snapshot, "red orange", grasps=False)
    asked = ask(snapshot, "red orange > orange", grasps=False)
    assert [o.rows.tolist() for o in asked.objects] == [o.rows.tolist() for o in whole.objects]
    assert asked.label == "red orange; orange" and asked.part == "orange" and asked.part_found
    assert not whole.part and not whole.part_found and whole.objects[0].part is None
    thing = asked.objects[0]
    assert thing.part.prompt == "orange"
    assert np.isin(thing.part.rows, thing.rows).all() and len(thing.part.scores) == len(thing.rows)
    on_grip = snapshot.cloud.points[thing.part.rows][:, 0] > GRIP.low[0] - 0.03
    assert on_grip.mean() > 0.9
    of_grip = snapshot.cloud.points[thing.rows][:, 0] > GRIP.low[0] + 0.01
    assert np.isin(thing.rows[of_grip], thing.part.rows).mean() > 0.9


def test_grasps_are_on_the_part(snapshot):
    thing = ask(snapshot, "red orange > orange").objects[0]
    assert thing.grasps
    for grasp in thing.grasps:
        assert grasp.contacts[:, 0].mean() > GRIP.low[0] - 0.02


def test_a_part_that_is_not_there_leaves_the_object_and_no_grasp(snapshot):
    asked = ask(snapshot, "red orange > wheel")
    assert asked.matched and not asked.part_found and asked.part == "wheel"
    for thing in asked.objects:
        assert thing.part is None and not thing.grasps and thing.rejected == {PART_NOT_FOUND: 1}


def test_scores_of_a_part_prompt_are_the_objects(snapshot):
    config = replace(SMALL, query=QueryConfig(no_match=0.5))
    texts = PromptEncoder(STUB, config.query)
    found = answer(snapshot, texts, ["red orange", "red orange > orange"], config=config, grasps=False)
    assert np.array_equal(found.scores.relevancy[:, 0], found.scores.relevancy[:, 1])


def test_a_part_needs_something_to_be_told_apart_from(snapshot):
    alone = PromptEncoder(STUB, QueryConfig(part_words=(), negatives=())).encode("red > orange", ["table"])
    with pytest.raises(QueryError, match="part_words"):
        part_scores(snapshot, alone.parts[0], snapshot.cloud.points[:5])
    canonical = PromptEncoder(STUB, QueryConfig(part_words=())).encode("red > orange").parts[0]
    assert np.array_equal(canonical.negatives, STUB.encode_text(list(QueryConfig().negatives)))


def test_part_scores_are_relevancies_by_hand(snapshot):
    texts = PromptEncoder(STUB, QueryConfig()).encode("red > orange; pink").parts[0]
    rows = np.flatnonzero(snapshot.measured)[:50]
    found = part_scores(snapshot, texts, snapshot.cloud.points[rows], source="points")
    feature = snapshot.features[rows].astype(np.float64)
    feature /= np.linalg.norm(feature, axis=1, keepdims=True)
    best, other = (feature @ texts.positives.T).max(axis=1), (feature @ texts.negatives.T).max(axis=1)
    assert np.allclose(found, 1 / (1 + np.exp(10 * (other - best))), atol=2e-3)


# ---- parts of simulated things, by the embedded encoder ------------------------------------------------------------


@pytest.fixture(scope="module")
def table_of_mugs():
    """A simulated table that was never used to train, its truth, and a map of a few views."""
    pytest.importorskip("mujoco")
    from semfield_ros.engine import Engine
    from semfield_ros.session import take_in
    from semfield_ros.sources.simulator import Simulator, SimulatorConfig

    simulator = Simulator(SimulatorConfig(seed=54, frames=24, processes=0))
    with Engine(demo_config()) as engine:
        take_in(engine, simulator)
        yield simulator, engine


@pytest.mark.parametrize(("text", "part"), [("the green mug by its handle", "handle"), ("red mug; rim", "rim")])
def test_parts_of_simulated_things(table_of_mugs, text, part):
    simulator, engine = table_of_mugs
    thing = engine.query(text, grasps=False).objects[0]
    truth = next(t for t in simulator.objects if f"{t.colour} {t.kind}" in text)
    chosen = engine.snapshot().cloud.points[thing.part.rows]
    assert np.mean([name == part for name in truth.part_at(chosen)]) > 0.6


def test_a_mug_has_no_wheel(table_of_mugs):
    assert not table_of_mugs[1].query("green mug; wheel", grasps=False).prompts[0].part_found
