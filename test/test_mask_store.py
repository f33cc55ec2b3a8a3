"""Views with masks: what comes out is what went in, within the budget, under the poses that are right by now."""

from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import cast, frame_at, ring

from semfield_ros.config import MemoryConfig
from semfield_ros.errors import ConfigError
from semfield_ros.frame import Segments
from semfield_ros.memory.keyframes import Keyframe
from semfield_ros.memory.mask_store import MaskStore, mask_view, masks_of


def keyframe(number: int, T: np.ndarray) -> Keyframe:
    frame = frame_at(T)
    return Keyframe(number, number, float(number), frame.camera, T)


def view(number: int = 0, T: np.ndarray | None = None, masks=None):
    T = ring(8)[number % 8] if T is None else T
    frame = frame_at(T, stamp_s=float(number))
    return mask_view(keyframe(number, T), frame, cast(T)[1] if masks is None else masks)


def test_a_view_gives_back_what_went_in():
    T = ring(4)[1]
    frame, what = frame_at(T), cast(T)[1]
    got = mask_view(keyframe(3, T), frame, what)
    assert (got.keyframe, len(got)) == (3, 2)
    (numbers,) = got.numbers()
    assert np.array_equal(numbers, what)
    assert np.abs(got.depth_m() - frame.depth_m).max() <= 0.0005 + 1e-6
    assert got.rgb().shape == frame.rgb.shape
    assert np.abs(got.rgb().astype(int) - frame.rgb).mean() < 6  # JPEG


def test_masks_that_overlap_and_ids_of_any_size():
    T = ring(4)[0]
    frame = frame_at(T)
    masks = np.zeros((3, 60, 80), bool)
    masks[0, 10:30], masks[1, 20:40], masks[2, 45:50] = True, True, True
    got = mask_view(keyframe(0, T), frame, masks, ["a", "b", "c"], [0.5, 0.25, 1.0])
    layers = got.numbers()
    assert len(layers) == 2
    for number, mask in enumerate(masks, 1):
        assert sum((layer == number).sum() for layer in layers) == mask.sum()
        assert any(np.array_equal(layer == number, mask) for layer in layers)
    assert got.names == ("a", "b", "c")
    assert got.confidence.tolist() == [0.5, 0.25, 1.0]
    wide = mask_view(keyframe(0, T), frame, np.where(masks[0], 2_000_000_000, -1).astype(np.int32))
    assert wide.numbers()[0].max() == len(wide) == 1


def test_no_mask_is_a_normal_view():
    T = ring(4)[0]
    assert len(view(masks=np.zeros((60, 80), int), T=T)) == 0
    assert len(view(masks=np.zeros((0, 60, 80), bool), T=T)) == 0


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="expected"):
        view(masks=np.ones((5, 5), int))
    T = ring(4)[0]
    with pytest.raises(ConfigError, match="1 names for 2 masks"):
        mask_view(keyframe(0, T), frame_at(T), cast(T)[1], ["one"])


def test_segments_come_before_instances():
    frame = frame_at(ring(4)[0])
    assert masks_of(frame) is None
    ids = np.zeros((60, 80), np.int32)
    ids[5:9], ids[20:30] = 7, 3
    with_instance = replace(frame, instance=ids)
    assert masks_of(with_instance)[0] is ids
    both = replace(with_instance, segments=Segments(ids, {7: "cup"}, {3: 0.5}))
    _, names, scores = masks_of(both)
    assert names == ["", "cup"]
    assert scores == [0.5, 1.0]


def test_the_budget_holds_and_the_most_redundant_view_goes():
    poses = ring(6)
    nudged = poses[0].copy()
    nudged[:3, 3] += 0.001
    views = [view(number, T) for number, T in enumerate([poses[0], poses[2], nudged, poses[4]])]
    store = MaskStore(sum(v.bytes for v in views) - 1, MemoryConfig())
    for one in views:
        store.add(one)
        assert store.bytes <= store.max_bytes
    # of 0 and 2, almost the same view, the older went
    assert [v.keyframe for v in store.views] == [1, 2, 3]
    assert store.dropped == 1
    tiny = MaskStore(10, MemoryConfig())
    tiny.add(one)
    assert (tiny.views, tiny.dropped) == ((), 1)


def test_poses_are_corrected_and_forgotten_keyframes_go():
    store = MaskStore(1e9, MemoryConfig())
    for number in range(3):
        store.add(view(number))
    before = store.views
    moved = np.eye(4)
    assert store.replace_poses([(1, moved), (9, moved)]) == 1
    assert np.array_equal(store.views[1].T_world_camera, moved)
    assert not np.array_equal(before[1].T_world_camera, moved)  # who reads an older snapshot is not disturbed
    store.keep({0, 1})
    assert [v.keyframe for v in store.views] == [0, 1]


def test_a_store_survives_its_own_state():
    store = MaskStore(1e9, MemoryConfig())
    store.add(view(0))
    store.add(view(5, masks=np.zeros((0, 60, 80), bool)))
    twin = MaskStore(1e9, MemoryConfig())
    twin.load(*store.state())
    for a, b in zip(store.views, twin.views, strict=True):
        assert (a.keyframe, a.camera, a.depth, a.colour, a.layers, a.names) == (
            b.keyframe, b.camera, b.depth, b.colour, b.layers, b.names,
        )  # fmt: skip
        assert np.array_equal(a.T_world_camera, b.T_world_camera)
    empty = MaskStore(1e9, MemoryConfig())
    empty.load(*MaskStore(1e9, MemoryConfig()).state())
    assert empty.views == ()
