"""Mapping: the order of what happens to one map, and the workspace that follows the scene."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import SMALL, frame_at, ring, stream

from semfield_ros.config import EncoderConfig
from semfield_ros.encoders import create
from semfield_ros.field.snapshot import TRUSTED_STEPS
from semfield_ros.field.workspace import Workspace
from semfield_ros.geometry import back_project, look_at
from semfield_ros.mapping import MAX_EXTENT_M, Mapping, outgrown, pick_device, workspace_around
from semfield_ros.memory.features import FeatureShape

STUB = create(EncoderConfig(name="stub"))


def following(**field) -> Mapping:
    """A map whose workspace is not configured, but for what is given."""
    free = replace(SMALL.field, **{"centre_m": None, "extent_m": None, **field})
    return Mapping(replace(SMALL, field=free), STUB.dim, "cpu")


def add(mapping: Mapping, frame, features: bool = True):
    target = STUB.encode_frame(frame)
    mapping.saw(frame)
    keyframe = mapping.add_keyframe(frame, FeatureShape.of(target))
    if features:
        mapping.add_features(keyframe, frame, target)
    return keyframe


def view_from(x: float, stamp_s: float):
    return frame_at(look_at([x, -0.6, 0.6], [x, 0.0, 0.0]), stamp_s)


def test_a_workspace_is_a_cube_around_most_points():
    points = np.random.default_rng(0).uniform([-1, 2, 0], [1, 3, 0.5], (20_000, 3))
    points[:50] = 100.0
    workspace = workspace_around(points, 1.5)
    assert workspace.centre_m == pytest.approx((0.0, 2.5, 0.25), abs=0.05)
    assert workspace.extent_m == pytest.approx(1.5 * 2.0 * 0.96, rel=0.02)
    assert workspace_around(np.ones((1, 3)), 1.5).extent_m > 0, "one point is enough"
    assert workspace_around(points * 1000, 1.5).extent_m == MAX_EXTENT_M


def test_the_first_frame_makes_the_workspace_unless_it_is_configured():
    frame = stream(1)[0]
    points, _ = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
    free = following()
    add(free, frame)
    assert not outgrown(free.field.workspace, points)
    fixed = Mapping(SMALL, 32, "cpu")
    add(fixed, frame)
    assert fixed.field.workspace == Workspace(SMALL.field.centre_m, SMALL.field.extent_m)
    placed, sized = following(centre_m=(0.5, 0.0, 0.0)), following(extent_m=2.5)
    add(placed, frame)
    add(sized, frame)
    assert placed.field.workspace == Workspace((0.5, 0.0, 0.0), free.field.workspace.extent_m)
    assert sized.field.workspace == Workspace(free.field.workspace.centre_m, 2.5)


def test_an_outgrown_workspace_starts_the_field_again():
    mapping = following()
    for i in range(3):
        add(mapping, view_from(0.1 * i, float(i)))
    for _ in range(TRUSTED_STEPS + 1):
        mapping.train_step()
    small = mapping.field.workspace
    assert mapping.snapshot().trusted.any()
    extents, grown = [small.extent_m], False
    for i in range(3, 40):
        add(mapping, view_from(0.25 * i, float(i)))
        if not grown and mapping.field.workspace != small:
            grown = True
            assert mapping.steps == 0 and not mapping.snapshot().trusted.any(), "points answer in the meantime"
            assert len(mapping.keyframes) == i + 1, "nothing that was seen is lost"
        extents.append(mapping.field.workspace.extent_m)
        cloud = mapping.points.cloud().points
        assert not outgrown(mapping.field.workspace, cloud) or extents[-1] == MAX_EXTENT_M
    assert grown and np.all(np.diff(extents) >= 0) and extents[-1] <= MAX_EXTENT_M
    assert 1 <= mapping.counts["workspaces"] <= 10 and mapping.counts["workspaces"] == len(np.unique(extents)) - 1
    for _ in range(TRUSTED_STEPS):
        mapping.train_step()
    assert mapping.snapshot().trusted.any()


def test_a_configured_size_never_changes():
    mapping = following(extent_m=1.0)
    for i in range(12):
        add(mapping, view_from(0.4 * i, float(i)))
    assert mapping.field.workspace.extent_m == 1.0 and mapping.counts["workspaces"] == 0


def test_new_views_and_new_surfaces_are_accepted():
    mapping = Mapping(SMALL, 32, "cpu")
    frame = stream(1)[0]
    assert mapping.accepts(frame)
    add(mapping, frame)
    assert not mapping.accepts(replace(frame, stamp_s=1.0))
    assert mapping.accepts(frame_at(ring(8)[1], 1.0)), "another view"
    T = frame.T_world_camera.copy()
    T[:3, 3] += 0.02
    appeared = frame_at(T, 1.0, blocks=())
    assert mapping.points.unseen_fraction(appeared) > 0.08 and mapping.accepts(appeared), (
        "something new in the same view"
    )


def test_features_of_a_forgotten_keyframe_reach_the_points_but_not_a_strangers_rays():
    config = replace(SMALL, memory=replace(SMALL.memory, max_keyframes=1))
    mapping = Mapping(config, 32, "cpu")
    first, second = stream(2)
    target = STUB.encode_frame(first)
    old = add(mapping, first, features=False)
    add(mapping, second, features=False)
    mapping.add_features(old, first, target)
    assert mapping.replay.language.slots == [] and mapping.counts["encoded"] == 1
    assert (mapping.points.feature_mass > 0).any()


def test_pose_corrections_reach_keyframes_and_rays():
    mapping = Mapping(SMALL, 32, "cpu")
    assert not mapping.correct_pose(0, np.eye(4)), "nothing is remembered yet"
    keyframe = add(mapping, stream(1)[0])
    T = look_at([0.0, 0.9, 0.6], [0.0, 0.0, 0.0])
    assert mapping.correct_pose(keyframe.id, T) and not mapping.correct_pose(7, T)
    assert np.array_equal(mapping.keyframes.items[0].T_world_camera, T)
    assert torch.allclose(mapping.replay.pose[keyframe.slot], torch.tensor(T, dtype=torch.float32))


def test_an_empty_map_has_a_snapshot_and_a_status():
    mapping = Mapping(SMALL, 32, "cpu")
    mapping.train_step()
    snapshot, status = mapping.snapshot(), mapping.status()
    assert len(snapshot.cloud) == 0 and snapshot.field is None and not snapshot.language and np.isnan(snapshot.stamp_s)
    assert (status.frames, status.keyframes, status.steps, status.voxels, status.losses) == (0, 0, 0, 0, None)


def test_revision_changes_whenever_a_snapshot_would():
    mapping = Mapping(SMALL, 32, "cpu")
    frame = stream(1)[0]
    seen = {mapping.revision}
    keyframe = add(mapping, frame, features=False)
    for change in (
        lambda: mapping.add_features(keyframe, frame, STUB.encode_frame(frame)), mapping.train_step, mapping.train_step,
    ):  # fmt: skip
        before = len(seen)
        change()
        seen.add(mapping.revision)
        assert len(seen) == before + 1


def test_devices():
    assert pick_device("cpu") == "cpu" and pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
