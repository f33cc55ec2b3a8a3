"""The command line, as a user types it: a small recording from the simulator, asked, saved, asked again."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData

from semfield_ros import cli
from semfield_ros.config import SemfieldConfig

pytest.importorskip("mujoco", reason="the simulator needs the extra [sim]")

FAST = ["--width", "96", "--limit", "12", "--train-s", "1.5", "--frame.max-depth-m", "1.6", "--encoder.name", "stub"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    code = cli.main(["run", "simulator:3", "-q", "red", "-q", "a blue thing; blue", "--out", str(out), *FAST])
    assert code == 0
    return out


def test_run_writes_everything(results):
    names = sorted(path.name for path in results.iterdir())
    assert names == [
        "labelled.ply", "map.semfield", "objects.json", "relevancy-00-red.ply", "relevancy-01-a-blue-thing.ply",
        "sheet.png",
    ]  # fmt: skip


def test_objects_explain_themselves(results):
    data = json.loads((results / "objects.json").read_text())
    assert data["global_frame"] == "map" and data["units"]["length"] == "m"
    assert [p["label"] for p in data["prompts"]] == ["red", "a blue thing"]
    for thing in data["objects"]:
        assert 0 <= thing["confidence"] <= 1 and len(thing["box"]["half_extents_m"]) == 3


def test_clouds_agree_with_objects(results):
    cloud = PlyData.read(str(results / "labelled.ply"))["vertex"]
    data = json.loads((results / "objects.json").read_text())
    assert len(cloud) > 500 and set(np.unique(cloud["label"])) <= {-1, 0, 1}
    labelled = len(set(cloud["instance"][cloud["instance"] >= 0].tolist()))
    assert labelled <= len(data["objects"])
    relevancy = PlyData.read(str(results / "relevancy-00-red.ply"))["vertex"]
    assert len(relevancy) == len(cloud) and 0 <= relevancy["relevancy"].min() <= relevancy["relevancy"].max() <= 1


def test_sheet_is_a_picture(results):
    import cv2

    picture = cv2.imread(str(results / "sheet.png"))
    assert picture.shape[0] > 300 and picture.shape[1] > 1000 and picture.std() > 10


def test_saved_map_answers_alike(results, tmp_path, capsys):
    assert cli.main(["query", str(results / "map.semfield"), "red", "--out", str(tmp_path)]) == 0
    before = json.loads((results / "objects.json").read_text())
    after = json.loads((tmp_path / "objects.json").read_text())
    assert after["prompts"][0]["peak"] == pytest.approx(before["prompts"][0]["peak"], abs=0.02)


def test_export_refuses_to_overwrite(results, tmp_path):
    target = tmp_path / "cloud.ply"
    assert cli.main(["export", str(results / "map.semfield"), str(target)]) == 0
    assert len(PlyData.read(str(target))["vertex"]) > 500
    assert cli.main(["export", str(results / "map.semfield"), str(target)]) == 2
    assert cli.main(["export", str(results / "map.semfield"), str(target), "--overwrite"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "no-such-folder"],
        ["run", "simulator:minus"],
        ["run", "simulator:3", "-q", " ; ", *FAST],
        ["run", "simulator:3", "--rate", "-1", *FAST],
        ["query", "missing.semfield", "mug"],
        ["run", "--config", "missing.yaml", "simulator"],
    ],
)
def test_mistakes_end_with_a_message_and_code_2(arguments, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert "Error" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_preset_gives_the_defaults_of_the_flags(tmp_path):
    preset = tmp_path / "preset.yaml"
    preset.write_text("memory:\n  voxel_size_m: 0.05\n")
    rest, config = cli._with_preset(["run", "--config", str(preset), "simulator"], SemfieldConfig())
    assert rest == ["run", "simulator"] and config.memory.voxel_size_m == 0.05


@pytest.mark.parametrize("command", ["demo", "run", "query", "export", "node", "publish", "ask", "bench"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 300


@pytest.mark.slow
def test_readme_python_example_runs(tmp_path, monkeypatch, capsys):
    """The ten lines of the README, with the tiny encoder, find something."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_demo_end_to_end(tmp_path, capfd):
    """The demo, shortened: the tiny encoder finds most of what is there, and the truth table is printed."""
    assert cli.main(["demo", "--frames", "45", "--rate", "0", "--train-s", "3", "--out", str(tmp_path)]) == 0
    err = capfd.readouterr().err
    assert "exact truth" in err and (tmp_path / "sheet.png").is_file()
    shares = [int(s) for s in re.findall(r"(\d+)% of \d+", err)]
    assert shares and shares[0] >= 40, err
