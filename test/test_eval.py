"""`semfield eval`: what it teaches, what it refuses, and Semantic-NeRF's protocol on a very small scene."""

import json

import numpy as np
import pytest

from semfield_ros import cli
from semfield_ros.errors import ConfigError
from semfield_ros.evaluation.corruptions import Corruption
from semfield_ros.protocols import PROTOCOLS, protocol


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_teaches(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", name, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "--json" in out and len(out) > 300


def test_help_lists_them_all(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and all(name in out for name in PROTOCOLS)


def test_unknown_protocols_are_refused(capfd):
    assert cli.main(["eval", "nothing"]) == 2
    assert "semantic" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="nothing"):
        protocol("nothing")


@pytest.mark.parametrize("source", ["simulator:one", "no-such-folder"])
def test_unusable_sources_are_named(source, capfd):
    assert cli.main(["eval", "semantic", source]) == 2
    assert source in capfd.readouterr().err


@pytest.mark.parametrize("flags", [["--tasks", "blur"], ["--seeds", "0"], ["--corruption.amount", "2"]])
def test_unusable_flags_are_named(flags, capfd):
    try:
        assert cli.main(["eval", "semantic", *flags]) == 2
    except SystemExit as stop:
        assert stop.code != 0


def test_semantic_protocol(tmp_path, capsys):
    """A row of the table and one of its own; saved labels give the same labels again."""
    pytest.importorskip("mujoco", reason="the simulator needs the extra [sim]")
    from semfield_ros.protocols.semantic import Plan

    small = ["--frames", "6", "--held-out", "2", "--width", "64", "--steps", "40"]
    flags = ["--tasks", "click", "--corruption.mode", "pixels", "--corruption.amount", "0.5"]
    assert cli.main(["eval", "semantic", *small, *flags, "--save-labels", str(tmp_path), "--json"]) == 0
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert line["protocol"] == "semantic" and line["classes"][0] == "void" and set(line["miou"]) == {"click", "custom"}
    for row in line["miou"].values():
        assert 0 < row["rendered"] <= 1 and row["steps"] == 40 and row["semantic_nerf"] is None
    assert line["miou"]["custom"]["votes"] > line["miou"]["click"]["votes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["click-0.npz", "custom-0.npz"]
    assert Plan(tasks=("full",), corruption=Corruption("pixels", 0.5)).rows().keys() == {"full", "custom"}
    again = ["--tasks", "click", "--load-labels", str(tmp_path), "--json"]
    assert cli.main(["eval", "semantic", *small, *again]) == 0
    repeated = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["miou"]["click"]
    assert repeated["labelled_pixels"] == line["miou"]["click"]["labelled_pixels"]
    assert repeated["votes"] == line["miou"]["click"]["votes"]


def test_semantic_nerf_learns_from_the_same_labels():
    pytest.importorskip("mujoco", reason="the simulator needs the extra [sim]")
    from semfield_ros.protocols.semantic import Plan, scene_of
    from semfield_ros.protocols.semantic_peer import semantic_nerf

    scene = scene_of(Plan(frames=3, held_out=1, width=48), 0)
    found = semantic_nerf(scene.train, scene.held_out, len(scene.names), 1.6, seconds=0.01, pixels=20)
    assert np.isfinite(found.miou) and 0 <= found.accuracy <= 1
