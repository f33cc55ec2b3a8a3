"""`semfield eval grasp`: a tiny run of the whole of it, its pictures, and requests that are refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

pytest.importorskip("mujoco", reason="the simulator needs MuJoCo")

from semfield_ros.config import GripperConfig
from semfield_ros.errors import ConfigError
from semfield_ros.evaluation import grasp_pictures
from semfield_ros.evaluation.grasp_stage import Film, Moment
from semfield_ros.evaluation.grasp_trials import Outcome
from semfield_ros.geometry import Camera, look_at
from semfield_ros.grippers import FOLDER
from semfield_ros.objects.grasps import Grasp
from semfield_ros.protocols import grasp, protocol


def test_a_tiny_run(tmp_path):
    plan = grasp.Plan(
        first_seed=45, seeds=1, prompts=3, frames=12, width=96, steps=20, search=1, workers=0, out=tmp_path, tiles=2,
        maps=("field", "truth"), video=False, json=True,
    )  # fmt: skip
    console = Console(width=200, file=io.StringIO())
    assert grasp.run(plan, console) == 0
    text = console.file.getvalue()
    told = json.loads(text.strip().splitlines()[-1])
    for key in ("right_object", "right_part", "held", "abstained", "answer_s", "follows_s", "others_kept"):
        assert "trials" in told[key]
    assert told["protocol"] == "grasp" and set(told["maps"]) == {"field", "truth"}
    assert told["right_object"]["trials"] == 2 and told["abstained"]["trials"] == 1
    assert told["maps"]["truth"]["right_object"]["share"] == 1.0
    assert "F3RM" in text and "0.62" in text and "0.81" in text
    lines = [json.loads(line) for line in (tmp_path / grasp.OUTCOMES).read_text().splitlines()]
    assert [line["map"] for line in lines if "map" in line] == ["field"] * 3 + ["truth"] * 2
    assert Image.open(tmp_path / "grasp_sheet.png").size[0] > 240


@pytest.mark.parametrize(
    "bad",
    [
        {"source": "table.bag"}, {"seeds": 0}, {"prompts": 0}, {"workers": -1}, {"maps": ()}, {"width": 8},
        {"maps": ("field", "field")}, {"train_s": -1.0}, {"first_seed": -1},
    ],
)  # fmt: skip
def test_plans_that_make_no_sense(bad):
    with pytest.raises(ConfigError):
        grasp.Plan(**bad)


def test_it_is_found_by_name():
    assert protocol("grasp") is grasp


def test_a_gripper_from_a_file(tmp_path):
    path = tmp_path / "wide.yaml"
    path.write_text((FOLDER / "parallel.yaml").read_text().replace("0.085", "0.14"))
    config, stage = grasp.configured(grasp.Plan(gripper=str(path), planner="optimised", workers=0))
    assert config.gripper.max_width_m == 0.14 and config.grasp.planner == "optimised"
    assert stage.rate_hz == pytest.approx(90 / 12)


def film(**what):
    T = np.diag([1.0, -1.0, -1.0, 1.0])
    T[2, 3] = 0.1
    held = Grasp(T, 0.04, 0.9, "top", np.zeros((2, 3)))
    outcome = Outcome(45, "field", "red mug", "mug", answered=True, **what)
    return Film(outcome, held, T[:3, 3], [Moment(0.0, T, 0.05, {})] * 2)


def test_a_box_is_where_it_projects_to():
    camera = Camera(64, 48, 60.0, 60.0, 31.5, 23.5)
    T_world_camera = look_at(np.array([0.0, -1.0, 0.0]), np.zeros(3))
    depth, normal = grasp_pictures.trace_box(camera, T_world_camera, np.eye(4), np.array([0.1, 0.2, 0.05]))
    hit = np.isfinite(depth)
    assert depth[24, 32] == pytest.approx(0.8) and normal[24, 32] == pytest.approx([0, -1, 0])
    # the front face is 0.2 x 0.1 m at 0.8 m
    assert hit.any(axis=0).sum() == pytest.approx(60 * 0.2 / 0.8, abs=1)
    assert hit.any(axis=1).sum() == pytest.approx(60 * 0.1 / 0.8, abs=1)


def test_the_gripper_is_three_boxes_between_whose_fingers_there_is_room():
    gripper = GripperConfig()
    boxes = list(grasp_pictures.gripper_boxes(np.eye(4), 0.04, gripper))
    assert len(boxes) == 3
    (_, _), (left, half), (right, _) = boxes
    assert right[0, 3] - left[0, 3] - 2 * half[0] == pytest.approx(0.04)
    assert left[2, 3] + half[2] == pytest.approx(0.0)  # the tips are at the origin


def test_which_trials_are_shown():
    held, failed = film(held=True, tried=True), film(tried=True, reason="slipped")
    impossible, silent = film(possible=False, reason="no grasp"), film(absent=True)
    chosen = grasp_pictures.for_sheet([held, silent, impossible, failed], 3)
    assert chosen[0] is silent and chosen[1] is failed  # answered, though it is not there
    assert grasp_pictures.colour_of(impossible) == grasp_pictures.QUIET
    assert grasp_pictures.colour_of(held) == grasp_pictures.RIGHT
    assert grasp_pictures.for_video([failed, held, impossible]) == [held, failed]
    assert "slipped" in grasp_pictures.caption(failed)


def test_rare_colours_survive_the_palette(tmp_path):
    image = np.full((64, 64, 3), 150, np.uint8)
    image[..., 0] += np.arange(64, dtype=np.uint8)
    image[:3, :3] = 240, 210, 20
    corner = np.asarray(grasp_pictures.in_colours([image], 32)[0].convert("RGB"))[0, 0]
    assert np.abs(corner - [240.0, 210, 20]).max() < 10
    grasp_pictures.write_gif(tmp_path / "a.gif", [image, image[::-1]])
    assert Image.open(tmp_path / "a.gif").n_frames == 2
