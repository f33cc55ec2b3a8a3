"""The protocol, small: it prints a table and a line of JSON, and view consensus finds most of what is there."""

import json

from rich.console import Console

from semfield_ros.protocols import protocol
from semfield_ros.protocols.openmask3d import METHODS, Plan, run


def test_the_protocol_on_the_simulator(capsys):
    assert protocol("openmask3d").Plan is Plan
    plan = Plan(seeds=1, frames=12, samples=6000, encoder="stub", only="all of it", json=True)
    assert run(plan, Console(width=160)) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    report = json.loads(lines[-1])
    assert (report["protocol"], report["source"]) == ("openmask3d", "simulator")
    assert report["settings"]["masks"]["consensus"] == 0.8
    assert "mug" in report["classes"]
    by_method = {m["method"]: m for m in report["metrics"]}
    assert set(by_method) == set(METHODS)
    ours = by_method[METHODS[0]]
    assert ours["agnostic_ap25"] >= ours["agnostic_ap50"] >= ours["agnostic_ap"] > 0.4
    # which way is better is for many scenes to say, not for one
    assert all(0 <= m["agnostic_ap"] <= 1 and m["instances"] > 0 for m in report["metrics"])
    assert "view consensus" in "".join(lines)
