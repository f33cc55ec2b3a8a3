"""Accounting of grasp trials: hand-made outcomes, prompts of real scenes, the exact scene a planner gets."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from semfield_ros.benchmarks.report import json_line
from semfield_ros.config import GripperConfig, QueryConfig
from semfield_ros.evaluation.grasp_trials import (
    ASKED_PARTS,
    Following,
    Outcome,
    Request,
    Share,
    on_part,
    requests_of,
    tally,
    tally_following,
)
from semfield_ros.query.prompt import parse_prompt

pytest.importorskip("mujoco", reason="the simulator needs MuJoCo")

from semfield_ros.evaluation.grasp_following import inside
from semfield_ros.evaluation.grasp_truth import ExactScene, standing
from semfield_ros.sources.simulator import Simulator, SimulatorConfig
from semfield_ros.sources.simulator_objects import COLOURS, KINDS
from semfield_ros.sources.simulator_parts import surface_samples

NAMES = [k.name for k in KINDS]


@dataclass
class Thing:
    instance: int
    kind: str
    colour: str

    @property
    def names(self):
        return (self.kind, f"{self.colour} {self.kind}")


def outcome(**what):
    return Outcome(seed=1, map="field", prompt="p", kind="mug", **what)


HELD = {"answered": True, "right_object": True, "offered": True, "tried": True, "lifted": True, "held": True}


def test_shares_of_hand_made_outcomes():
    found = tally([
        outcome(**HELD),
        outcome(**HELD, part="handle", part_found=True, right_part=True, brushed=True),
        outcome(**HELD, part="handle", reason="held elsewhere than asked"),
        outcome(**{**HELD, "held": False}, collided=True, brushed=True, reason="dropped"),
        outcome(answered=True, reason="wrong object"),
        outcome(reason="no answer"),
        outcome(possible=False, answered=True, right_object=True),
        outcome(possible=False, **{**HELD, "lifted": False, "held": False}, reason="slipped"),
        outcome(absent=True),
        outcome(absent=True, answered=True, reason="not there"),
        outcome(absent=True),
    ])  # fmt: skip
    assert {name: (s.hits, s.trials) for name, s in found.shares.items()} == {
        "right_object": (6, 8), "part_found": (1, 2), "right_part": (1, 2), "lifted": (4, 6),
        "held": (3, 6), "held_as_asked": (2, 6),
        "held_of_all_there": (3, 8), "held_of_tried": (3, 5), "collided": (1, 5), "brushed": (2, 5),
        "abstained": (2, 3), "declined": (1, 2),
    }  # fmt: skip
    assert found.reasons == {"held elsewhere than asked": 1, "dropped": 1, "wrong object": 1, "no answer": 1}


def test_the_last_line_has_a_number_of_trials_for_every_figure():
    told = json.loads(json_line(tally([outcome(**HELD, answer_s=0.2), outcome(absent=True, answer_s=0.4)]).json))
    assert told["held"] == {"share": 1.0, "trials": 1}
    assert told["right_part"] == {"share": None, "trials": 0}
    assert told["answer_s"]["median"] == pytest.approx(0.3) and told["answer_s"]["trials"] == 2
    assert all("trials" in told[k] for k in ("right_object", "right_part", "held", "abstained", "answer_s"))


def test_what_counts_as_right():
    assert outcome(absent=True).right and not outcome(absent=True, answered=True).right
    assert outcome(possible=False).right and not outcome(possible=False, offered=True).right
    assert outcome(**HELD).right and not outcome(**HELD, part="rim").right
    assert outcome(**HELD, part="rim", right_part=True).right
    assert Share(0, 0).share != Share(0, 0).share


def test_following():
    told = tally_following([
        Following(1, "mug", 2.0, 5, 6, True), Following(2, "can", float("inf"), 4, 4, None),
        Following(3, "bowl", 4.0, 3, 3, False),
    ])  # fmt: skip
    assert told["follows_s"] == {"median": 4.0, "trials": 3, "silent": 2}
    assert told["others_kept"] == {"share": 12 / 13, "trials": 13}
    assert told["second_held"] == {"share": 0.5, "trials": 2}
    assert tally_following([])["follows_s"]["trials"] == 0


@pytest.mark.parametrize(
    ("distance_mm", "fingers", "held"),
    [
        ([1, 1], [-1, 1], True),
        ([1, 9, 9, 9, 2], [-1, -1, 1, 1, 1], True),  # one contact of each finger
        ([1, 1, 1, 9], [-1, -1, -1, 1], True),  # three of four contacts
        ([1, 9], [-1, 1], False),  # half is not more than half
        ([9, 9], [-1, 1], False),
        ([], [], False),
    ],
)
def test_contacts_on_a_part(distance_mm, fingers, held):
    assert on_part(np.array(distance_mm) / 1000, np.array(fingers)) is held


@pytest.fixture(scope="module")
def scenes():
    return [Simulator(SimulatorConfig(seed=seed, width=32, height=24, processes=0)) for seed in (45, 46)]


def test_prompts_name_what_is_there_and_absent_ones_what_is_not(scenes):
    for seed, scene in enumerate(scenes, 45):
        requests = requests_of(scene.objects, NAMES, list(COLOURS), seed, 10)
        assert requests == requests_of(scene.objects, NAMES, list(COLOURS), seed, 10)
        assert len({r.text for r in requests}) == len(requests)
        assert sum(r.absent for r in requests) == 2 and sum(bool(r.part) for r in requests) >= 3
        things = {t.instance: t for t in scene.objects}
        for request in requests:
            parsed = parse_prompt(request.text)
            right = tuple(i for i, t in things.items() if parsed.synonyms[0] in t.names)
            assert right == request.instances
            if request.part:
                assert parsed.part and request.part in parsed.part[0]
                assert request.part in {p.name for p in things[request.instances[0]].parts}


def test_every_object_is_asked_for_sooner_or_later():
    things = [Thing(i, kind, colour) for i, (kind, colour) in enumerate(
        [("mug", "red"), ("mug", "blue"), ("ball", "red"), ("book", "white"), ("can", "black")], start=1)]  # fmt: skip
    asked = [r for seed in range(30) for r in requests_of(things, NAMES, list(COLOURS), seed, 6)]
    assert {i for r in asked if not r.part for i in r.instances} == {1, 2, 3, 4, 5}
    assert {(r.kind, r.part) for r in asked if r.part} == {("mug", "handle"), ("mug", "rim"), ("can", "lid")}
    # a kind alone only where there is one such thing; absent: other kinds, and kinds in colours that are not there
    assert not any(r.text == "mug" for r in asked) and any(r.text == "ball" for r in asked)
    absent = {r.text for r in asked if r.absent}
    assert absent & set(NAMES) and any(" " in text and text.split()[-1] in ("mug", "can", "ball") for text in absent)
    assert not absent & {name for t in things for name in t.names}


def test_few_prompts_and_few_objects():
    thing = Thing(1, "ball", "red")
    assert requests_of([thing], NAMES, list(COLOURS), 1, 1) == [Request("red ball", (1,), "", "ball")]
    assert [r.absent for r in requests_of([thing], NAMES, list(COLOURS), 1, 5)] == [False, True]
    assert all(r.absent for r in requests_of([], NAMES, list(COLOURS), 1, 4))


def test_asked_parts_are_parts_and_known_words():
    words = {w.strip() for group in QueryConfig().part_words for w in group.split(";")}
    assert set(ASKED_PARTS) <= set(NAMES)
    assert {part for parts in ASKED_PARTS.values() for part in parts} <= words


def test_the_exact_scene(scenes):
    objects = scenes[0].scene.objects
    poses = {i: item.T_world_object for i, item in enumerate(objects, 1)}
    keep = tuple(i for i in poses if i != 2)
    exact = ExactScene(standing(objects, keep, poses))
    for instance in keep:
        points, normals = exact.surfaces[instance]
        assert exact.instance_of(points[:50] + 0.002) == instance
        # normals point out of the object
        assert np.median(exact.space.distance(points + 0.004 * normals)) > 0
        assert np.median(exact.space.distance(points - 0.0005 * normals)) < 0
    assert exact.instance_of(np.array([[0.0, 0.0, 1.0]])) == 0 and exact.instance_of(np.zeros((0, 3))) == 0
    spoon = next(i for i in keep if objects[i - 1].kind.name == "spoon")
    scene = exact.grasp_scene(spoon, "handle", GripperConfig())
    assert 0 < len(scene.target_rows) < len(scene.own)
    local, number = surface_samples(objects[spoon - 1])
    handle = local[number == scenes[0].scene.part_names.index("handle")]
    assert exact.distance_to_part(spoon, "handle", handle[:20] + [0, 0, 0.001]).max() <= 0.001 + 1e-9
    assert np.isinf(exact.distance_to_part(spoon, "wheel", handle[:2])).all()
    assert scene.surroundings[:, 2].min() == 0.0  # the table under it


def test_what_is_meant_by_the_old_place():
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]], [1.0, 0.0, 0.0]
    half = np.array([0.1, 0.02, 0.02])  # its long axis is the world's y
    assert inside(np.array([1.0, 0.1, 0.0]), T, half)
    assert inside(np.array([1.03, 0.0, 0.0]), T, half)  # 15 mm around it still count
    assert not inside(np.array([1.1, 0.0, 0.0]), T, half)
