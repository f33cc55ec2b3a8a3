"""The protocols of points: they run, tell both conventions, and end with one line that a program reads."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import SMALL, cast, stream
from rich.console import Console

from semfield_ros.errors import ConfigError
from semfield_ros.evaluation.labelled_points import LabelledPoints, Thing, agreement, mapped
from semfield_ros.protocols import protocol


def told(name: str, **settings) -> dict:
    chosen = protocol(name)
    out = io.StringIO()
    plan = chosen.Plan(seeds=1, frames=3, width=160, steps=2, samples=800, json=True, **settings)
    assert chosen.run(plan, Console(file=out, width=200)) == 0
    return json.loads(out.getvalue().strip().splitlines()[-1])


@pytest.mark.parametrize(("name", "settings"), [("openscene", {}), ("conceptfusion", {"encoder": "stub"})])
def test_a_protocol_runs(name, settings):
    pytest.importorskip("mujoco")
    report = told(name, **settings)
    assert report["protocol"] == name and report["source"] == "simulator" and len(report["classes"]) == 20
    scored = [row for row in report["metrics"].values() if "miou" in row]
    assert len(scored) == 8 and all(0 <= row["miou_all"] <= row["miou"] + 1e-9 <= 1 for row in scored)
    assert all(0 <= row["macc_all"] <= row["macc"] + 1e-9 for row in scored)
    assert {"word", "picture", "click"} <= set(report["metrics"]) and report["settings"]["frames"] == 3


def labelled(frames=3) -> LabelledPoints:
    kept = [replace(f, semantic=cast(f.T_world_camera)[1] + 1) for f in stream(frames)]
    return LabelledPoints.of_frames(kept, ("void", "white", "red", "blue", "never"), SMALL)


def test_points_of_a_recording_have_the_class_of_most_of_their_pixels():
    found = labelled()
    high = found.points[:, 2] > 0.12
    assert found.names == ("white", "red", "blue", "never") and (found.truth[high] == 1).all() and high.any()
    assert (found.truth[np.abs(found.points[:, 2]) < 0.005] == 0).mean() > 0.9
    with pytest.raises(ConfigError, match="labels"):
        LabelledPoints.of_frames(stream(2), ("void", "white"), SMALL)
    with pytest.raises(ConfigError, match="classes"):
        LabelledPoints.of_frames(stream(2), (), SMALL)


def test_agreement_in_both_conventions():
    scene = LabelledPoints([], np.zeros((4, 3)), np.zeros((4, 3)), np.array([0, 0, 1, 1]), ("a", "b", "c", "d"))
    found = agreement(np.array([0, 0, 1, 4]), scene)
    assert found["miou"] == pytest.approx((1 + 0.5) / 2) and found["miou_all"] == pytest.approx((1 + 0.5) / 4)
    assert found["macc"] == pytest.approx(0.75) and found["macc_all"] == pytest.approx(1.5 / 4)
    assert found["accuracy"] == 0.75 and found["answered"] == 0.75, "an answer that is no class is none"


def test_a_thing_holds_what_is_in_its_turned_box():
    T = np.eye(4)
    T[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    T[:3, 3] = [1, 0, 0]
    thing = Thing(("x",), 1, T, np.array([0.1, 0.3, 0.1]))
    assert thing.holds(np.array([1.25, 0, 0])) and not thing.holds(np.array([1.0, 0.25, 0]))


def test_mapped_keeps_what_it_measured_of_each_keyframe():
    from semfield_ros.encoders.stub import StubEncoder

    mapping, measured = mapped(stream(4), SMALL, StubEncoder())
    assert len(measured) == mapping.counts["keyframes"] == mapping.counts["encoded"] and mapping.steps == 0
