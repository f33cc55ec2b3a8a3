"""Offline building: the same bytes however many workers; what fails is tried again, what keeps failing is told."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import SMALL

from semfield_ros import checkpoint
from semfield_ros.atlas import Atlas
from semfield_ros.atlas_files import folder_of, load_map
from semfield_ros.cli import main
from semfield_ros.config import EncoderConfig, FrameConfig
from semfield_ros.encoders import create
from semfield_ros.errors import CheckpointError, ConfigError
from semfield_ros.mapping import Mapping
from semfield_ros.memory.cubes import surface_shares
from semfield_ros.memory.features import FeatureShape
from semfield_ros.offline import Here, Job, Recording, build, insist, names_of, perform, survey, usable
from semfield_ros.offline_ray import RayPool

pytest.importorskip("mujoco")
STUB = create(EncoderConfig(name="stub"))
HOUSE = Recording("building?rooms=2&frames_per_room=10", width=64)
OTHER = Recording("building:1?rooms=1&frames_per_room=8", width=64)
PLAIN = replace(
    SMALL, encoder=EncoderConfig(name="stub"), frame=FrameConfig(max_depth_m=5.0),
    memory=replace(SMALL.memory, voxel_size_m=0.05), field=replace(SMALL.field, centre_m=None, extent_m=None),
    train=replace(SMALL.train, rays=128, feature_patches=16, smooth_pairs=32),
)  # fmt: skip
BLOCKS = replace(PLAIN, memory=replace(PLAIN.memory, block_m=4.5))


def files(folder) -> dict[str, tuple[dict, bytes]]:
    """Header and body of every file; safetensors writes the header's entries in no fixed order."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        length = int.from_bytes(whole[:8], "little")
        found[str(path.relative_to(folder))] = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The house in blocks, and another recording, built here."""
    out = tmp_path_factory.mktemp("maps")
    told = []
    report = build([HOUSE, OTHER], BLOCKS, out, steps=3, tell=lambda *at: told.append(at))
    return out, report, told


def test_a_recording_becomes_a_map(tmp_path):
    report = build([HOUSE], PLAIN, tmp_path, steps=3)
    (path,) = report.maps
    assert path == tmp_path / "building_rooms_2_frames_per_room_10.semfield" and not report.failed
    loaded = load_map(path, PLAIN, STUB, "cpu")
    assert isinstance(loaded, Mapping) and loaded.steps == 3 and report.done[0].frames == 20
    assert report.done[0].voxels == len(loaded.points) > 1000


def test_blocks_make_one_map(built):
    _, report, told = built
    assert not report.failed and report.repeated == 0 and len(report.maps) == 2
    atlas = load_map(report.maps[0], BLOCKS, STUB, "cpu")
    assert isinstance(atlas, Atlas) and {(0, 0, 0), (0, 1, 0)} <= set(atlas.asleep)
    status = atlas.status()
    assert status.steps == 3 * status.blocks and status.voxels == len(atlas.snapshot().cloud) > 1000
    assert status.frames == 20 and len(list(folder_of(report.maps[0]).glob("built/*"))) == status.blocks
    phases = {phase: (done, total) for phase, done, total in told}
    assert phases == {"surveys": (2, 2), "maps": (len(report.done), len(report.done))}


def test_a_survey_finds_the_frames_of_each_block():
    found = survey(Job(HOUSE, BLOCKS, 0, None))
    frames = list(usable(iter(HOUSE.open(BLOCKS)), BLOCKS))
    assert found.frames == len(frames) == 20 and found.image == (64, 48)
    for cell, stamps in found.cells.items():
        start, length = found.spans[cell]
        assert set(stamps) <= {f.stamp_s for f in HOUSE.open(BLOCKS, start, length)}
        for frame in frames:
            shares = surface_shares(frame, 0.05, 4.5)
            if frame.stamp_s in stamps:
                assert shares[cell] >= 0.08 or shares[cell] == max(shares.values())
            else:
                assert shares.get(cell, 0.0) < max(0.08, 200 / (frame.depth_m > 0).sum())


def test_a_block_built_alone_is_the_block_an_atlas_maps(built):
    """Voxels and keyframes of the largest block, against all blocks mapped together, frame by frame."""
    _, report, _ = built
    atlas = Atlas(BLOCKS, STUB, "cpu")
    for frame in usable(iter(HOUSE.open(BLOCKS)), BLOCKS):
        target = STUB.encode_frame(frame)
        atlas.saw(frame)
        if atlas.accepts(frame):
            atlas.add_features(atlas.add_keyframe(frame, FeatureShape.of(target)), frame, target)
    loaded = load_map(report.maps[0], BLOCKS, STUB, "cpu")
    cell = max(loaded.asleep, key=lambda c: loaded.asleep[c].voxels)
    together, alone = atlas.awake[cell], loaded.shelf.wake(loaded.asleep[cell])
    assert [k.stamp_s for k in together.remembered()] == [k.stamp_s for k in alone.remembered()]
    shared = np.isin(alone.points.keys, together.points.keys).mean()
    assert shared > 0.99, "but for what the atlas saw through from elsewhere"


def test_building_twice_gives_the_same_bytes(built, tmp_path):
    out, _, _ = built
    build([HOUSE, OTHER], BLOCKS, tmp_path, steps=3)
    again, before = files(tmp_path), files(out)
    assert again.keys() == before.keys() and len(before) > 4
    for name in before:
        assert again[name] == before[name], name
    build([HOUSE, OTHER], BLOCKS, tmp_path, steps=3, overwrite=True)
    assert files(tmp_path) == again


# ---- faults --------------------------------------------------------------------------------------------------------


def test_what_fails_is_tried_again_and_counted(tmp_path, caplog):
    attempts = []

    def flaky(job):
        attempts.append(job.out)
        if attempts.count(job.out) == 1:
            raise OSError("the network is away")
        return perform(job)

    report = build([HOUSE, OTHER], PLAIN, tmp_path, steps=1, work=flaky)
    assert len(report.maps) == 2 and report.repeated == 2 and not report.failed and "the network is away" in caplog.text


def test_what_keeps_failing_is_given_up(tmp_path):
    def broken(job):
        if job.cell == (0, 0, 0):
            raise CheckpointError("no space left")
        return perform(job)

    report = build([HOUSE], BLOCKS, tmp_path, steps=1, retries=1, work=broken)
    ((job, error),) = report.failed
    assert job.cell == (0, 0, 0) and "no space" in str(error) and report.repeated == 1
    atlas = load_map(report.maps[0], BLOCKS, STUB, "cpu")
    assert (0, 0, 0) not in atlas.asleep and atlas.asleep, "the rest is a map"


def test_a_missing_recording_does_not_stop_the_others(tmp_path):
    report = build([Recording("/nowhere"), OTHER], PLAIN, tmp_path, steps=0, retries=0)
    assert len(report.maps) == 1 and "no directory" in str(report.failed[0][1])
    report = build([Recording("/nowhere"), OTHER], BLOCKS, tmp_path / "b", steps=0, retries=0)
    assert len(report.maps) == 1 and "no directory" in str(report.failed[0][1])


def test_insisting_is_bounded_and_in_order():
    calls, told = [], []

    def work(item):
        calls.append(item)
        if item < 0:
            raise ValueError(item)
        return 10 * item

    results, failed, repeated = insist(Here(), work, [1, -1, 2], 3, told.append)
    assert results == {0: 10, 2: 20} and set(failed) == {1} and repeated == 3
    assert calls == [1, -1, 2, -1, -1, -1] and told == [0, 2, 1]


def test_unusable_arguments_are_refused(tmp_path):
    for wrong in ({"steps": -1}, {"steps": 1, "retries": -1}):
        with pytest.raises(ConfigError, match="allowed: >= 0"):
            build([HOUSE], PLAIN, tmp_path, **wrong)
    with pytest.raises(ConfigError, match="at least one"):
        build([], PLAIN, tmp_path, steps=1)
    (tmp_path / "map.semfield").touch()
    with pytest.raises(CheckpointError, match="exists"):
        build([Recording("a/map")], PLAIN, tmp_path, steps=1)
    with pytest.raises(ConfigError, match="jobs is 0"):
        RayPool(0)


def test_names_of_maps_are_different():
    uris = ["a/kitchen", "b/kitchen/", "simulator:3", "/", "simulator:3"]
    assert names_of([Recording(u) for u in uris]) == ["kitchen", "kitchen_2", "simulator_3", "map", "simulator_3_2"]


def test_without_ray_several_jobs_say_what_to_install(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "ray":
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"semfield_ros\[build\].*--jobs 1"):
        RayPool(2)


# ---- the command ---------------------------------------------------------------------------------------------------

FLAGS = [
    "--encoder.name", "stub", "--memory.voxel-size-m", "0.05", "--memory.max-voxels", "20000",
    "--memory.replay-mb", "4", "--train.rays", "64", "--train.feature-patches", "16", "--width", "64",
]  # fmt: skip


def test_the_command_builds_and_reports(tmp_path, capsys):
    command = ["build", OTHER.uri, "--out", str(tmp_path), "--steps", "1", "--retries", "0", *FLAGS]
    assert main(command) == 0
    assert [p.suffix for p in tmp_path.iterdir()] == [".semfield"] and "1 maps or blocks" in capsys.readouterr().err
    assert main(command) == 2, "it exists"
    assert main([*command, "--overwrite"]) == 0
    assert main(["build", "/nowhere", "--out", str(tmp_path), "--retries", "0"]) == 1
    assert "given up" in capsys.readouterr().err
    assert checkpoint.describe(next(tmp_path.glob("*.semfield")))["steps"] == 1


# ---- on a real local cluster ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_gives_the_same_bytes_and_survives_a_killed_worker(built, tmp_path):
    pytest.importorskip("ray", reason="Ray has no wheel for this Python, or is not installed")
    out, _, _ = built
    marker = tmp_path / "killed"

    def dies_once(job):
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            from semfield_ros.offline import perform

            return perform(job)
        os.kill(os.getpid(), signal.SIGKILL)

    with RayPool(2) as pool:
        report = build([HOUSE, OTHER], BLOCKS, tmp_path / "maps", steps=3, pool=pool, work=dies_once)
    assert marker.exists() and report.repeated == 1 and not report.failed
    assert files(tmp_path / "maps") == files(out)
