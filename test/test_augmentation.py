"""Test-time augmentation of a 2-D panoptic model: by hand, and on a model that errs in single looks."""

from __future__ import annotations

import numpy as np
import pytest

from semfield_ros.encoders.augmentation import LOOKS, PanopticMasks, agreed, augmented, segments_of, soft_iou
from semfield_ros.errors import ConfigError


def image() -> np.ndarray:
    """A red block left and a green one right of the middle, on grey."""
    rgb = np.full((20, 30, 3), 90, np.uint8)
    rgb[4:14, 3:11], rgb[6:16, 18:28] = (200, 30, 30), (30, 200, 30)
    return rgb


def painter(rgb: np.ndarray) -> PanopticMasks:
    """A model that finds what is much redder or greener than the rest; blind to grey images."""
    signed = rgb.astype(int)
    masks = np.stack([signed[..., i] - signed.max(-1, where=np.arange(3) != i, initial=0) > 30 for i in (0, 1)])
    there = masks.any((1, 2))
    classes = np.eye(2, dtype=np.float32)[there]
    return PanopticMasks(masks[there].astype(np.float32), classes, np.ones(there.sum(), np.float32))


def masks_of(*areas: slice, scores: float = 1.0, width: int = 12) -> PanopticMasks:
    masks = np.zeros((len(areas), 1, width), np.float32)
    for mask, area in zip(masks, areas):
        mask[0, area] = 1
    return PanopticMasks(masks, np.eye(2, dtype=np.float32)[[0] * len(areas)], np.full(len(areas), scores, np.float32))


def test_there_are_thirteen_looks_and_each_keeps_the_image():
    assert len(LOOKS) == 13 and len({look.name for look in LOOKS}) == 13
    rgb = image()
    marks = np.arange(600, dtype=np.float32).reshape(1, 20, 30)
    for look in LOOKS:
        shown = look.show(rgb)
        assert shown.shape == rgb.shape and shown.dtype == np.uint8
        assert look.name == "as it is" or (shown != rgb).any()
        there = marks if look.name != "mirrored" else marks[..., ::-1]
        np.testing.assert_array_equal(look.back(there), marks)
    np.testing.assert_array_equal(rgb, image())


def test_soft_iou_by_hand():
    a = np.array([[[1.0, 0.5, 0.0, 0.0]]])
    b = np.array([[[0.5, 0.5, 0.5, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(soft_iou(a, b), [[1.0 / 2.0, 0.0]])


def test_masks_are_averaged_by_hand():
    """[0, 6) and [1, 7): IoU 5/7, one mask. [8, 12) in one of two looks: half its score."""
    found = agreed([masks_of(slice(0, 6)), masks_of(slice(1, 7), slice(8, 12), scores=0.5)])
    assert len(found.masks) == 2
    np.testing.assert_allclose(found.masks[0, 0], [0.5, 1, 1, 1, 1, 1, 0.5, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(found.scores, [0.75, 0.25])


def test_two_masks_of_one_look_are_never_one():
    found = agreed([masks_of(slice(0, 6), slice(0, 5)), masks_of(slice(0, 6), slice(0, 5))])
    assert len(found.masks) == 2
    np.testing.assert_allclose(found.masks.sum((1, 2)), [6, 5])


def test_masks_that_overlap_too_little_stay_apart():
    assert len(agreed([masks_of(slice(0, 6)), masks_of(slice(3, 9))]).masks) == 2  # IoU 1/3


def test_a_models_answers_are_mirrored_back():
    plain, found = painter(image()), augmented(painter)(image())
    assert len(found.masks) == 2
    best = soft_iou(plain.masks, found.masks).max(1)
    assert (best > 0.9).all()
    # the grey look shows nothing: 12 of 13 agree
    assert found.scores.max() == pytest.approx(12 / 13)


def test_one_wrong_look_is_outvoted():
    calls = []

    def erring(rgb: np.ndarray) -> PanopticMasks:
        calls.append(rgb)
        found = painter(rgb)
        if len(calls) == 5:  # a phantom in one look
            phantom = np.zeros((1, 20, 30), np.float32)
            phantom[0, 15:, :5] = 1
            classes = np.concatenate([found.classes, np.eye(2, dtype=np.float32)[:1]])
            return PanopticMasks(
                np.concatenate([found.masks, phantom]), classes, np.ones(len(classes), np.float32)
            )
        return found

    found = augmented(erring)(image())
    segments = segments_of(found, ("red", "green"))
    assert len(calls) == 13
    assert sorted(segments.names.values()) == ["green", "red"]
    assert segments.ids[17, 2] == 0 and segments.ids[8, 6] > 0
    assert segments.names[int(segments.ids[8, 6])] == "red"


def test_an_image_with_nothing_in_it():
    grey = np.full((8, 8, 3), 128, np.uint8)
    found = augmented(painter)(grey)
    assert found.masks.shape == (0, 8, 8)
    assert not segments_of(found, ("red", "green")).ids.any()


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match=r"expected \[M, H, W\]"):
        PanopticMasks(np.zeros((2, 3, 3)), np.zeros((1, 2)), np.zeros(2))
    with pytest.raises(ConfigError, match="no look"):
        agreed([])
    with pytest.raises(ConfigError, match="the same of all"):
        agreed([masks_of(slice(0, 2)), masks_of(slice(0, 2), width=9)])
    with pytest.raises(ConfigError, match="expected the image's"):
        augmented(lambda rgb: masks_of(slice(0, 2)))(image())
    with pytest.raises(ConfigError, match="names"):
        segments_of(masks_of(slice(0, 2)), ("a",))
