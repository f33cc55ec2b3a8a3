"""`semfield bench scale` at its smallest: rooms are mapped, sleep, and are reported beside one map."""

import io
import json
from itertools import pairwise

import pytest
from rich.console import Console

from semfield_ros.benchmarks import scale
from semfield_ros.errors import ConfigError

pytest.importorskip("mujoco")


def test_it_reports_every_room_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "TRUTH_POINTS", 300)
    plot = None
    try:
        import matplotlib  # noqa: F401

        plot = tmp_path / "scale.png"
    except ModuleNotFoundError:
        pass
    plan = scale.Plan(rooms=3, frames_per_room=10, steps_per_room=2, baseline_rooms=1, max_active_blocks=1, plot=plot)
    out = io.StringIO()
    assert scale.run(plan, console=Console(file=out, width=200), as_json=True) == 0
    report = json.loads(out.getvalue().strip().splitlines()[-1])
    rooms = report["by_room"]
    assert [r["room"] for r in rooms] == [1, 2, 3] and [r["frames"] for r in rooms] == [10, 20, 30]
    assert all(a["points"] < b["points"] for a, b in pairwise(rooms))
    assert rooms[-1]["awake"] == 1 and rooms[-1]["disk_mb"] > 0 and report["unreadable"] == 0
    assert report["steps"] == 6 and 0 < report["miou_end"] <= 1 and len(report["baseline_by_room"]) == 1
    assert set(report["score_ms_by_prompts"]) == {"1", "10", "100"} and report["wakes"] >= 1
    assert plot is None or plot.stat().st_size > 10_000


def test_one_map_has_the_memory_of_all_active_blocks():
    plan = scale.Plan(max_active_blocks=3)
    blocks, one = scale.settings(plan).memory, scale.undivided(scale.settings(plan)).memory
    assert one.block_m is None and blocks.block_m == plan.block_m
    for name in ("max_voxels", "max_keyframes", "replay_mb"):
        assert getattr(one, name) == 3 * getattr(blocks, name)


@pytest.mark.parametrize("wrong", [{"rooms": 0}, {"frames_per_room": 0}, {"rooms": 2, "baseline_rooms": 3}])
def test_unusable_plans_are_refused(wrong):
    with pytest.raises(ConfigError):
        scale.Plan(**wrong)
