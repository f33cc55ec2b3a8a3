"""Checkpoints: whole or refused, and nothing else is touched."""

import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import SMALL, mapped, ring, stream
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from semfield_ros import checkpoint
from semfield_ros.config import EncoderConfig, GridConfig
from semfield_ros.encoders import create
from semfield_ros.encoders.stub import StubEncoder
from semfield_ros.errors import CheckpointError
from semfield_ros.mapping import Mapping
from semfield_ros.memory.features import FeatureShape

STUB = create(EncoderConfig(name="stub"))
TINY = replace(
    SMALL,
    field=replace(
        SMALL.field,
        geometry_grid=GridConfig(levels=2, log2_table=8, min_resolution=4, max_resolution=8),
        feature_grid=GridConfig(levels=2, log2_table=8, min_resolution=4, max_resolution=8),
        hidden=16,
    ),
    memory=replace(SMALL.memory, pixels_per_keyframe=300),
)


def small_map(n: int = 3, config=TINY, steps: int = 2) -> Mapping:
    return mapped(n, config, steps)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return checkpoint.save(tmp_path_factory.mktemp("maps") / "table", small_map(), STUB)


def everything(mapping: Mapping) -> dict[str, np.ndarray]:
    """All that a mapping knows, as arrays."""
    return {k: v.numpy() for k, v in checkpoint._tensors(mapping).items()}


def load(path, encoder=STUB, config=TINY) -> Mapping:
    return checkpoint.load(path, config, encoder, "cpu")


# ---- round trips ---------------------------------------------------------------------------------------------------


def test_a_map_comes_back_whole(tmp_path):
    mapping = small_map(4)
    path = checkpoint.save(tmp_path / "deep" / "map.v1", mapping, STUB)
    assert path.name == "map.v1.semfield" and [p.name for p in path.parent.iterdir()] == [path.name]
    loaded = load(path)
    a, b = everything(mapping), everything(loaded)
    assert set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)
    assert loaded.counts == mapping.counts and loaded.steps == mapping.steps == 2
    assert (loaded.stamp_s, loaded.samples, loaded.language_steps) == (0.1 * 3, mapping.samples, 2)
    assert loaded.field.workspace == mapping.field.workspace
    for x, y in zip(loaded.keyframes.items, mapping.keyframes.items, strict=True):
        assert replace(x, T_world_camera=None) == replace(y, T_world_camera=None)
        assert np.array_equal(x.T_world_camera, y.T_world_camera)
    assert loaded.replay.order == mapping.replay.order and loaded.replay.language.slots == mapping.replay.language.slots
    assert np.array_equal(loaded.replay.language.window.kernel, mapping.replay.language.window.kernel)


def test_a_map_that_dropped_keyframes_comes_back_whole(tmp_path):
    config = replace(TINY, memory=replace(TINY.memory, max_keyframes=7))
    mapping = small_map(14, config)
    mapping.correct_pose(mapping.keyframes.items[0].id, ring(3)[1])
    assert len(mapping.keyframes) == 7 and mapping.replay.order != sorted(mapping.replay.order)
    loaded = load(checkpoint.save(tmp_path / "m", mapping, STUB), config=config)
    batches = [m.replay.rays(300, 0.5, torch.Generator().manual_seed(0)) for m in (mapping, loaded)]
    for name in ("origins", "directions", "depth_m", "rgb"):
        assert torch.equal(getattr(batches[0], name), getattr(batches[1], name)), name
    more = [m.keyframes.admit(stream(1)[0]) for m in (mapping, loaded)]
    assert (more[0].id, more[0].slot) == (more[1].id, more[1].slot)


def test_sizes_come_from_the_file_and_the_rest_from_the_engine(saved):
    ours = replace(
        SMALL, field=replace(SMALL.field, hidden=64), train=replace(SMALL.train, rays=33), global_frame="odom",
        memory=replace(SMALL.memory, voxel_size_m=0.1),
    )  # fmt: skip
    loaded = load(saved, config=ours)
    assert loaded.config.field == TINY.field and loaded.config.memory == TINY.memory
    assert loaded.config.train.rays == 33 and loaded.config.global_frame == "odom"
    loaded.train_step()
    assert checkpoint.saved_config(saved) == TINY


def test_a_description_needs_no_tensors(saved):
    description = checkpoint.describe(saved)
    assert description["encoder"] == {"name": "stub", "dim": STUB.dim, "cache_key": STUB.cache_key}
    assert description["steps"] == 2 and len(description["keyframes"]) == 3


def test_maps_before_the_first_frame_and_without_features(tmp_path):
    empty = load(checkpoint.save(tmp_path / "empty", Mapping(TINY, STUB.dim, "cpu"), STUB))
    assert empty.field is None and len(empty.points) == 0 and np.isnan(empty.stamp_s)
    blind = Mapping(TINY, STUB.dim, "cpu")
    frame = stream(1)[0]
    blind.add_keyframe(frame, FeatureShape.of(STUB.encode_frame(frame)))
    loaded = load(checkpoint.save(tmp_path / "blind", blind, STUB))
    assert loaded.replay.language.window is None and loaded.replay.language.slots == []
    loaded.train_step()


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 0.1, 0.5, 0.9, -1])
def test_torn_files_are_refused(saved, tmp_path, kept):
    whole = saved.read_bytes()
    torn = tmp_path / "torn.semfield"
    torn.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    for read in (load, checkpoint.describe, checkpoint.saved_config):
        with pytest.raises(CheckpointError, match=r"torn\.semfield"):
            read(torn)


def test_a_longer_file_is_refused(saved, tmp_path):
    path = tmp_path / "longer.semfield"
    path.write_bytes(saved.read_bytes() + b"\0" * 16)
    with pytest.raises(CheckpointError, match="longer"):
        load(path)


def test_any_flipped_byte_is_refused(saved, tmp_path):
    whole = bytearray(saved.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    places = [*range(9), *rng.integers(9, header, 60), *rng.integers(header, len(whole), 40), len(whole) - 1]
    path = tmp_path / "flipped.semfield"
    for place in places:
        damaged = whole.copy()
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"flipped\.semfield"):
            load(path)


def rewritten(saved, path, change) -> None:
    """A copy of a map with another description."""
    description = checkpoint.describe(saved)
    change(description)
    save_file(load_file(saved), path, metadata={"semfield": json.dumps(description)})


def test_newer_formats_are_refused_by_name(saved, tmp_path):
    path = tmp_path / "newer.semfield"
    rewritten(saved, path, lambda d: d.update(format=checkpoint.FORMAT + 1))
    for read in (load, checkpoint.describe):
        with pytest.raises(CheckpointError, match=r"format 3, this program reads up to 2; update"):
            read(path)


def test_altered_descriptions_are_refused(saved, tmp_path):
    path = tmp_path / "altered.semfield"
    for change in (
        lambda d: d["workspace"].update(extent_m=3.0),
        lambda d: d["keyframes"][0]["T_world_camera"][0].__setitem__(3, 7.0),
        lambda d: d.update(crc32={}),
        lambda d: d.pop("encoder"),
        lambda d: d.update(format="1"),
    ):
        rewritten(saved, path, change)
        with pytest.raises(CheckpointError, match="altered"):
            load(path)


def test_foreign_files_are_refused(tmp_path):
    foreign = tmp_path / "foreign.semfield"
    save_file({"weight": torch.zeros(3)}, foreign)
    for read in (load, checkpoint.describe):
        with pytest.raises(CheckpointError, match="not a semfield map"):
            read(foreign)
    save_file({"weight": torch.zeros(3)}, foreign, metadata={"semfield": "[1, 2]"})
    with pytest.raises(CheckpointError, match="format"):
        load(foreign)
    save_file({"weight": torch.zeros(3)}, foreign, metadata={"semfield": "{not json"})
    with pytest.raises(CheckpointError, match="torn or is not"):
        load(foreign)
    foreign.write_bytes(b"PK\x03\x04 a zip, a pickle, anything" * 100)
    with pytest.raises(CheckpointError):
        load(foreign)
    for missing in (tmp_path / "absent.semfield", tmp_path):
        with pytest.raises(CheckpointError, match="not a file"):
            load(missing)


def test_a_map_of_another_encoder_is_refused(saved):
    with pytest.raises(CheckpointError, match=r"encoder 'stub' \(stub-1-32\).*stub-1-48"):
        load(saved, StubEncoder(48))


# ---- saving --------------------------------------------------------------------------------------------------------


def test_an_existing_file_is_kept_unless_overwriting_is_allowed(tmp_path):
    mapping = small_map(1, steps=0)
    path = checkpoint.save(tmp_path / "m", mapping, STUB)
    before = path.read_bytes()
    mapping.train_step()
    with pytest.raises(CheckpointError, match=r"exists; .*overwrite=True"):
        checkpoint.save(tmp_path / "m", mapping, STUB)
    assert path.read_bytes() == before
    checkpoint.save(path, mapping, STUB, overwrite=True)
    assert load(path).steps == 1 and [p.name for p in tmp_path.iterdir()] == ["m.semfield"]


def test_places_that_cannot_be_written_are_clear_errors(tmp_path):
    mapping = small_map(1, steps=0)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match="cannot write"):
        checkpoint.save(tmp_path / "file" / "m", mapping, STUB)
    (tmp_path / "folder.semfield").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*folder\.semfield"):
        checkpoint.save(tmp_path / "folder", mapping, STUB, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.semfield"], "nothing is left behind"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="cannot write into"):
            checkpoint.save(tmp_path / "m", small_map(1, steps=0), STUB)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")])
def test_a_full_disk_leaves_the_old_map_whole(tmp_path, monkeypatch, error):
    mapping = small_map(1, steps=0)
    path = checkpoint.save(tmp_path / "m", mapping, STUB)
    before = path.read_bytes()

    def fail(tensors, temporary, metadata):
        with open(temporary, "wb") as half:
            half.write(before[: len(before) // 2])
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(CheckpointError, match="cannot write"):
        checkpoint.save(path, mapping, STUB, overwrite=True)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.semfield"]


def test_saving_and_failing_to_load_leave_a_map_as_it_was(saved, tmp_path):
    mapping = small_map(2)
    before = everything(mapping)
    checkpoint.save(tmp_path / "m", mapping, STUB)
    (tmp_path / "torn.semfield").write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        load(tmp_path / "torn.semfield")
    after = everything(mapping)
    assert all(np.array_equal(before[k], after[k]) for k in before)
