"""Faults of masks: each does what it says, no more, and the same twice."""

from __future__ import annotations

import numpy as np
import pytest

from semfield_ros.errors import ConfigError
from semfield_ros.evaluation.mask_faults import MaskFaults, faulty, merged, noised, shuffled, split
from semfield_ros.frame import Frame
from semfield_ros.geometry import Camera


def image() -> np.ndarray:
    found = np.zeros((30, 40), np.int32)
    found[2:12, 2:12], found[2:12, 14:24], found[20:28, 30:38] = 3, 8, 5
    found[29] = -1
    return found


def frame(stamp_s: float = 0.5) -> Frame:
    semantic = np.array([1, 1, 1, 2, 1, 4, 1, 1, 6])[np.maximum(image(), 0)]
    return Frame(
        stamp_s, Camera(40, 30, 40.0, 40.0, 19.5, 14.5), np.eye(4), np.zeros((30, 40, 3), np.uint8),
        np.ones((30, 40), np.float32), semantic.astype(np.int32), image(),
    )  # fmt: skip


def test_shuffling_keeps_the_masks():
    rng = np.random.default_rng(0)
    before = image()
    changed = False
    for _ in range(5):
        after = shuffled(before, rng)
        pairs = np.unique(np.stack([before.ravel(), after.ravel()]), axis=1)
        assert pairs.shape[1] == 5, "one new id for each old one"
        assert set(np.unique(after)) == {-1, 0, 1, 2, 3}
        assert ((after == 0) == (before == 0)).all()
        changed |= bool((after != shuffled(before, rng)).any())
    assert changed


def test_merging_takes_the_nearest():
    """All are chosen: 3 and 8 are neighbours, so 5 alone may join either of them."""
    after = merged(image(), 1.0, np.random.default_rng(0))
    assert after[5, 5] == after[5, 18]
    assert ((after > 0) == (image() > 0)).all()
    np.testing.assert_array_equal(merged(image(), 0.0, np.random.default_rng(0)), image())


def test_splitting_makes_two_of_one():
    after = split(image(), 1.0, np.random.default_rng(0))
    for mask in (3, 8, 5):
        parts = np.unique(after[image() == mask], return_counts=True)
        assert len(parts[0]) == 2 and parts[1].min() > 0.3 * parts[1].sum()
    assert len(np.unique(after[after > 0])) == 6
    np.testing.assert_array_equal(split(image(), 0.0, np.random.default_rng(0)), image())


def test_noise_changes_as_many_pixels_as_it_says():
    before = image()
    after, source = noised(before, 0.2, np.random.default_rng(0))
    known = before >= 0
    assert ((after != before).sum() / known.sum()) == pytest.approx(0.2, abs=0.02)
    assert (after[~known] == -1).all()
    np.testing.assert_array_equal(after, before.reshape(-1)[source])
    assert set(np.unique(after)) <= set(np.unique(before))


def test_a_frame_is_spoilt_alike_twice_and_no_other_like_it():
    faults = MaskFaults()
    first, again, other = (faulty(f, faults) for f in (frame(), frame(), frame(0.6)))
    np.testing.assert_array_equal(first.instance, again.instance)
    np.testing.assert_array_equal(first.semantic, again.semantic)
    assert (first.instance != other.instance).any()
    assert first.instance.dtype == first.semantic.dtype == np.int32


def test_without_faults_nothing_changes():
    clean = faulty(frame(), MaskFaults(merge=0, split=0, noise=0, shuffle=False))
    np.testing.assert_array_equal(clean.instance, image())
    np.testing.assert_array_equal(clean.semantic, frame().semantic)


def test_an_image_without_instances():
    empty, rng = np.zeros((6, 6), np.int32), np.random.default_rng(0)
    for found in (merged(empty, 1, rng), split(empty, 1, rng), noised(empty, 1, rng)[0], shuffled(empty, rng)):
        np.testing.assert_array_equal(found, empty)


def test_bad_shares_and_frames_are_refused():
    with pytest.raises(ConfigError, match=r"noise is 1\.5"):
        MaskFaults(noise=1.5)
    from dataclasses import replace

    with pytest.raises(ConfigError, match="no instances"):
        faulty(replace(frame(), instance=None), MaskFaults())
