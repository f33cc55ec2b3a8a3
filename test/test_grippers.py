"""Grippers by name and by file: dimensions from datasheets, and files that are wrong."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from surface_shapes import box, table

from semfield_ros import grippers
from semfield_ros.config import GripperConfig, SemfieldConfig
from semfield_ros.config_io import from_dict, from_yaml
from semfield_ros.errors import ConfigError
from semfield_ros.objects import grasp_candidates


def test_there_are_three_and_the_generic_one_is_the_default():
    assert set(grippers.names()) == {"parallel", "panda_hand", "robotiq_2f85"}
    assert replace(GripperConfig(model="parallel"), model="") == GripperConfig()


@pytest.mark.parametrize(
    ("model", "opening_m", "breadth_m"), [("panda_hand", 0.08, 0.018), ("robotiq_2f85", 0.085, 0.022)]
)
def test_dimensions_are_those_of_the_datasheets(model, opening_m, breadth_m):
    gripper = GripperConfig(model=model)
    assert gripper.max_width_m == opening_m and gripper.finger_breadth_m == breadth_m
    assert gripper.palm_half_m[0] > opening_m / 2 and gripper.palm_half_m[1] > breadth_m / 2
    assert gripper.opening_m(0.03) == pytest.approx(0.03 + 2 * gripper.clearance_m)
    assert gripper.opening_m(opening_m) == opening_m


def test_the_hand_reaches_as_far_as_its_maker_says():
    hand = GripperConfig(model="panda_hand")
    # the tool centre point of franka_description lies .1034 m from the flange, within the pads
    behind_tips_m = hand.finger_length_m + hand.palm_depth_m - 0.1034
    assert 0 < behind_tips_m < 0.015


def test_a_model_comes_from_yaml_and_from_a_mapping(tmp_path):
    assert from_dict({"gripper": {"model": "panda_hand"}}).gripper.max_width_m == 0.08
    file = tmp_path / "settings.yaml"
    file.write_text("gripper:\n  model: robotiq_2f85\n")
    assert from_yaml(file).gripper.palm_depth_m == GripperConfig(model="robotiq_2f85").palm_depth_m
    # the files themselves are settings too
    assert from_yaml(grippers.FOLDER / "panda_hand.yaml", SemfieldConfig()).gripper.finger_length_m == 0.0538


def test_somebodys_own_file(tmp_path):
    file = tmp_path / "mine.yaml"
    names = [f.name for f in fields(GripperConfig) if f.name in grippers.REQUIRED]
    file.write_text("".join(f"{name}: 0.07\n" for name in names))
    mine = GripperConfig(model=str(file))
    assert all(getattr(mine, name) == 0.07 for name in names) and mine.friction == GripperConfig().friction


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_width_m: 0.08\n", "finger_length_m is missing"),
        ("gripper: [1, 2]\n", "holds list"),
        ("a: [\n", "not YAML"),
        ("FULL\nwidth: 3\n", "width is unknown"),
        ("FULL\nfriction: much\n", "friction is 'much'"),
        ("FULL\nfriction: .inf\n", "finite"),
        ("FULL\nfriction: -1\n", "friction is -1"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path, text, words):
    full = "".join(f"{name}: 0.07\n" for name in grippers.REQUIRED)
    file = tmp_path / "bad.yaml"
    file.write_text(text.replace("FULL\n", full))
    with pytest.raises(ConfigError, match=words):
        GripperConfig(model=str(file))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="panda_hand, parallel, robotiq_2f85"):
        GripperConfig(model="claw")


def test_a_broad_palm_needs_more_room():
    """Two walls beside a bar, nearer than the hand is broad: only the narrow palm passes between them."""
    bar = box([0, 0, 0.02], [0.03, 0.1, 0.04], 0.004)
    walls = np.concatenate([box([0, y, 0.06], [0.3, 0.01, 0.12], 0.005)[0] for y in (-0.08, 0.08)])
    around = np.concatenate([table()[0], walls])
    narrow = replace(GripperConfig(), finger_length_m=0.054, clearance_m=0.004)
    broad = replace(narrow, palm_width_m=0.2, palm_breadth_m=0.2)
    assert grasp_candidates(*bar, around, gripper=narrow)
    assert not [g for g in grasp_candidates(*bar, around, gripper=broad) if g.approach == "top"]
