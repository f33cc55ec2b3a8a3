"""The panoptic protocol: the baseline by hand, and a tiny run from the command line's side."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import BLUE, RED, cast, frame_at, ring
from rich.console import Console

from semfield_ros.errors import ConfigError, SourceError
from semfield_ros.evaluation.mask_votes import MaskVotes, associate, nearest_ids
from semfield_ros.frame import Segments
from semfield_ros.geometry import back_project
from semfield_ros.memory.point_map import voxel_centres, voxel_keys
from semfield_ros.protocols import PROTOCOLS, protocol
from semfield_ros.protocols.panoptic import Plan, run, stuff_of, things

SIZE_M = 0.02


def masked(T: np.ndarray, number: int):
    frame = frame_at(T, 0.1 * number)
    _, what = cast(T)
    ids = np.random.default_rng(number).permutation([4, 9])
    return replace(frame, instance=np.where(what > 0, ids[np.maximum(what, 1) - 1], 0).astype(np.int32))


def keys_of(frames) -> np.ndarray:
    return np.unique(np.concatenate([
        voxel_keys(back_project(f.camera, f.T_world_camera, f.depth_m)[0], SIZE_M) for f in frames
    ]))  # fmt: skip


def test_voxel_votes_join_clean_masks_of_neighbouring_views():
    """Where views overlap much and masks are right, the baseline is right: one id a block, whatever it was called."""
    frames = [masked(T, i) for i, T in enumerate(ring(40, turn=0.5))]
    keys = keys_of(frames)
    ids = associate(frames, keys, SIZE_M)
    centres = voxel_centres(keys, SIZE_M)
    found = []
    for block in (RED, BLUE):
        low, high = np.array(block.low), np.array(block.high)
        inside = ((centres > low) & (centres < high + SIZE_M)).all(1) & (centres[:, 2] > 0.03)
        votes = np.bincount(ids[inside & (ids > 0)])
        assert votes.max() > 0.9 * votes.sum()
        found.append(int(votes.argmax()))
    assert found[0] != found[1]


def test_masks_join_by_overlap_by_hand():
    """A second mask covering 2 of 3 voxels (IoU 2/3) is the first; one that covers none is new."""
    votes = MaskVotes(np.arange(8), SIZE_M)
    numbers = np.array([0, 5])
    assert votes._joined(numbers, np.array([1, 1, 1]), np.array([0, 1, 2])).tolist() == [0, 1]
    votes.votes[:3, 1] = 1
    assert votes._joined(numbers, np.array([1, 1, 0]), np.array([0, 1, 2])).tolist() == [0, 1]
    assert votes._joined(np.array([0, 7]), np.array([1, 1]), np.array([5, 6])).tolist() == [0, 2]
    assert votes.ids == 3


def test_segments_serve_as_masks_and_frames_without_any_are_passed_by():
    frame = masked(ring(8)[0], 0)
    as_segments = replace(frame, instance=None, segments=Segments(frame.instance, {4: "a", 9: "b"}))
    keys = keys_of([frame])
    np.testing.assert_array_equal(associate([as_segments], keys, SIZE_M), associate([frame], keys, SIZE_M))
    nothing = associate([replace(frame, instance=None)], keys, SIZE_M)
    assert (nothing == -1).all()
    points = np.zeros((2, 3), np.float32)
    assert nearest_ids(voxel_centres(keys, SIZE_M), nothing, points).tolist() == [-1, -1]


def test_what_is_mostly_stuff_is_no_thing():
    ids, label = np.array([1, 1, 1, 2, 2, 0]), np.array([3, 3, 4, 4, 4, 3])
    stuff = np.array([False, False, False, True, False])
    left, classes = things(ids, label, stuff)
    assert left.tolist() == [0, 0, 0, 2, 2, 0] and classes == {2: 4}
    frame = masked(ring(8)[0], 0)
    frame = replace(frame, semantic=np.where(frame.instance > 0, 2, 1).astype(np.int32))
    assert stuff_of([frame], 3).tolist() == [False, True, False]


def test_it_runs_on_the_simulator():
    pytest.importorskip("mujoco")
    out = io.StringIO()
    plan = Plan(methods=("slots",), frames=4, held_out=1, width=64, steps=4, json=True)
    assert run(plan, Console(file=out, width=240)) == 0
    line = json.loads(out.getvalue().strip().splitlines()[-1])
    assert line["protocol"] == "panoptic" and line["settings"]["steps"] == 4 and "table" in line["classes"]
    assert set(line["rows"]) == {"slots, rendered", "slots, surface", "voxel votes", "voxel votes, pieces"}
    for row in line["rows"].values():
        assert 0 <= row["pq"] <= 1 and row["steps"] == 4 and row["true"] > 0


def test_it_is_registered():
    assert PROTOCOLS["panoptic"] == "panoptic"
    assert protocol("panoptic").Plan is Plan


def test_bad_plans_and_sources_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="slots, embedding"):
        Plan(methods=("votes",))
    with pytest.raises(ConfigError, match="held_out"):
        Plan(held_out=0)
    with pytest.raises(SourceError, match=r"objects\.json"):
        run(Plan(source=str(tmp_path)), Console(file=io.StringIO()))
