"""The protocol of LERF, on a few frames: that it runs, and what it prints."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from semfield_ros.errors import ConfigError
from semfield_ros.protocols import PROTOCOLS, protocol
from semfield_ros.protocols.lerf import SYSTEMS, Plan, in_boxes, run


def test_it_is_known_by_name():
    assert PROTOCOLS["lerf"] == "lerf" and protocol("lerf").Plan is Plan


def test_a_small_run_ends_with_one_line_of_json(tmp_path):
    out = io.StringIO()
    plan = Plan(seeds=1, frames=4, steps=10, views=1, period=2, smallest=0.25, scales=5, maps=tmp_path, json=True)
    assert run(plan, Console(file=out, width=120)) == 0
    lines = out.getvalue().strip().splitlines()
    report = json.loads(lines[-1])
    assert report["protocol"] == "lerf" and report["settings"]["scales"] == 5
    for system in SYSTEMS:
        assert 0 <= report[system]["point"] <= 1 and 0 <= report[system]["pixel"] <= 1
    # one pass gives what a pass for each scale gives
    assert report["difference"] < 1e-4
    assert report["pyramids"] >= 1 and report["voxels"] > 100 and set(report["scale_m"]) == set(report["classes"])
    assert any("voxel average" in line for line in lines)
    assert len(list(tmp_path.glob("*_scales.png"))) >= 1


def test_other_sources_are_refused():
    with pytest.raises(ConfigError, match="simulator"):
        run(Plan(source="somewhere"), Console(file=io.StringIO()))
    with pytest.raises(ConfigError, match="steps"):
        run(Plan(steps=0), Console(file=io.StringIO()))


def test_a_pixel_is_right_anywhere_in_the_box_of_one_of_the_objects():
    instance = np.zeros((6, 8), int)
    instance[1, 1] = instance[3, 4] = 2
    instance[5, 7] = 3
    assert in_boxes(instance, [2], (2, 3)) and in_boxes(instance, [9, 3], (5, 7))
    assert not in_boxes(instance, [2], (4, 4)) and not in_boxes(instance, [9], (1, 1))
