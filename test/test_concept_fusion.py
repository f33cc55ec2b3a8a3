"""Class-agnostic masks, crops, and their mixture with the whole image: by hand, and on images whose parts are known."""

from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import frame_at, ring

from semfield_ros.config import ConceptFusionConfig, EncoderConfig
from semfield_ros.encoders import create
from semfield_ros.encoders.base import Encoder
from semfield_ros.encoders.boxes import boxes_of, encode_boxes, encode_image, pooled, unit_rows
from semfield_ros.encoders.concept_fusion import ConceptFusionEncoder, global_shares, mixed, spread
from semfield_ros.encoders.masks import as_masks, felzenszwalb_masks, filtered, mask_maker
from semfield_ros.encoders.stub import PALETTE, StubEncoder
from semfield_ros.errors import ConfigError
from semfield_ros.frame import Frame, Segments
from semfield_ros.geometry import Camera

RED, BLUE, WHITE = (np.array(PALETTE[name], np.uint8) for name in ("red", "blue", "white"))


def picture() -> Frame:
    """A red and a blue square on white, 96 x 64, at one depth."""
    rgb = np.tile(WHITE, (64, 96, 1))
    rgb[16:48, 8:40], rgb[24:56, 56:88] = RED, BLUE
    return Frame(0.0, Camera(96, 64, 90.0, 90.0, 47.5, 31.5), np.eye(4), rgb, np.ones((64, 96), np.float32))


def two_masks(frame: Frame) -> np.ndarray:
    masks = np.zeros((2, 64, 96), bool)
    masks[0, 16:48, 8:40], masks[1, 24:56, 56:88] = True, True
    return masks


def label_image(rgb: np.ndarray) -> np.ndarray:
    """A mask generator of another program: the two squares as ids 1 and 2."""
    return (rgb == RED).all(2) * 1 + (rgb == BLUE).all(2) * 2


def sam_like(rgb: np.ndarray) -> list[dict]:
    """Another one, that returns records."""
    return [{"segmentation": (rgb == RED).all(2), "area": 1024}, {"segmentation": (rgb == BLUE).all(2)}]


not_a_callable = 3


# ---- masks ---------------------------------------------------------------------------------------------------------


def test_felzenszwalb_finds_things_of_one_colour():
    frame = picture()
    masks = felzenszwalb_masks(frame)
    for truth in two_masks(frame):
        iou = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
        assert iou.max() > 0.75
    assert masks.dtype == bool and masks.any((1, 2)).all()
    assert np.array_equal(masks, felzenszwalb_masks(frame)), "the same every time"


def test_felzenszwalb_sees_steps_of_depth_that_have_no_colour():
    frame = picture()
    depth = np.ones((64, 96), np.float32)
    depth[20:44, 30:70] = 0.6
    masks = felzenszwalb_masks(replace(frame, rgb=np.tile(WHITE, (64, 96, 1)), depth_m=depth))
    truth = depth < 0.8
    assert ((masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))).max() > 0.8


def test_felzenszwalb_takes_large_images_and_images_without_depth():
    frame = picture()
    large = replace(frame, rgb=np.repeat(np.repeat(frame.rgb, 5, 0), 5, 1), depth_m=np.zeros((320, 480), np.float32))
    masks = felzenszwalb_masks(large)
    assert masks.shape[1:] == (320, 480) and len(masks) >= 2


def test_mask_generators_are_named():
    frame = picture()
    for name in ("test_concept_fusion:label_image", "test_concept_fusion:sam_like"):
        found = mask_maker(name)(frame)
        assert {m.tobytes() for m in found} == {m.tobytes() for m in two_masks(frame)}
    segments = replace(frame, segments=Segments(label_image(frame.rgb).astype(np.int32), {1: "a", 2: "b"}))
    assert len(mask_maker("segments")(segments)) == 2
    with pytest.raises(ConfigError, match="felzenszwalb"):
        mask_maker("segments")(frame)


@pytest.mark.parametrize(
    "name", ["", "sam", ":x", "no_such_module_anywhere:x", "numpy:no_such_thing", "test_concept_fusion:not_a_callable"]
)
def test_unknown_generators_are_refused(name):
    with pytest.raises(ConfigError, match="masks is"):
        mask_maker(name)


@pytest.mark.parametrize(
    "found",
    [
        None, "masks", np.zeros((2, 4, 4)), np.zeros((2, 5, 4), bool), [{"area": 3}],
        [np.ones((4, 4), bool), np.ones((5, 4), bool)],
    ],
)
def test_what_is_no_mask_is_refused(found):
    with pytest.raises(ConfigError, match="mask"):
        as_masks(found, (4, 4))


def test_masks_of_nothing():
    assert as_masks([], (4, 4)).shape == (0, 4, 4) and as_masks(np.zeros((4, 4), int), (4, 4)).shape == (0, 4, 4)
    assert filtered(np.zeros((0, 4, 4), bool)).shape == (0, 4, 4)


def test_filtered_keeps_each_mask_once_and_the_largest():
    masks = np.zeros((5, 10, 10), bool)
    masks[0, :5], masks[1, :8], masks[2, :5], masks[3, 0, 0] = True, True, True, True
    kept = filtered(masks, least=0.02, most=2)
    assert kept.sum((1, 2)).tolist() == [80, 50]


# ---- crops ---------------------------------------------------------------------------------------------------------


def test_boxes_of_masks():
    masks = np.zeros((2, 8, 10), bool)
    masks[0, 2:5, 3:9] = True
    assert boxes_of(masks).tolist() == [[3, 2, 9, 5], [0, 0, 0, 0]]
    assert boxes_of(masks, margin=0.5)[0].tolist() == [0, 0, 10, 7], "grown, and cut off at the image"


@pytest.mark.parametrize("box", [[0, 0, 0, 4], [-1, 0, 4, 4], [0, 0, 97, 4], [5, 5, 3, 9]])
def test_empty_and_outlying_boxes_are_refused(box):
    with pytest.raises(ConfigError, match="outside the image of 96x64"):
        encode_boxes(StubEncoder(), picture().rgb, np.array([box]))


@pytest.mark.parametrize("rgb", [None, np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_image_is_refused(rgb):
    with pytest.raises(ConfigError, match="uint8 of shape"):
        encode_image(StubEncoder(), rgb)


def test_crops_mean_what_they_show():
    encoder, rgb = StubEncoder(), picture().rgb
    features = encode_boxes(encoder, rgb, np.array([[8, 16, 40, 48], [56, 24, 88, 56], [0, 0, 96, 16]]))
    best = (features @ encoder.encode_text(["red", "blue", "white"]).T).argmax(1)
    assert best.tolist() == [0, 1, 2] and np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert encode_boxes(encoder, rgb, np.zeros((0, 4))).shape == (0, encoder.dim)


def test_pooling_is_the_mean_under_the_mask():
    encoder, frame = StubEncoder(), picture()
    target = encoder.encode_frame(frame)
    masks = np.concatenate([two_masks(frame), np.zeros((1, 64, 96), bool)])
    features = pooled(target, masks)
    dense = target.values[target.cell_of_pixels(96, 64)]
    assert np.allclose(features[0], unit_rows(dense[masks[0]].mean(0, keepdims=True))[0], atol=1e-5)
    assert not features[2].any(), "an empty mask says nothing"


# ---- the mixture ---------------------------------------------------------------------------------------------------


def test_shares_by_hand():
    whole = np.array([1.0, 0.0], np.float32)
    local = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], np.float32)
    cosine = np.array([1.0, 0.0, 0.6])
    expected = np.exp(cosine / 0.5) / np.exp(cosine / 0.5).sum()
    assert np.allclose(global_shares(local, whole, temperature=0.5, uniqueness=False), expected, atol=1e-6)
    unique = np.array([(1 + 0 + 0.6) / 3, (0 + 1 + 0.8) / 3, (0.6 + 0.8 + 1) / 3])
    expected = np.exp(cosine + unique) / np.exp(cosine + unique).sum()
    assert np.allclose(global_shares(local, whole, temperature=1.0, uniqueness=True), expected, atol=1e-6)
    assert global_shares(local[:0], whole).shape == (0,)
    with pytest.raises(ConfigError, match="temperature"):
        global_shares(local, whole, temperature=0.0)


def test_shares_are_stable_at_low_temperatures():
    rng = np.random.default_rng(0)
    local, whole = unit_rows(rng.normal(size=(40, 16))), unit_rows(rng.normal(size=(1, 16)))[0]
    share = global_shares(local, whole, temperature=1e-3)
    assert np.isfinite(share).all() and share.sum() == pytest.approx(1.0, abs=1e-5)


def test_the_mixture_is_the_formula():
    rng = np.random.default_rng(1)
    local, whole = unit_rows(rng.normal(size=(5, 8))), unit_rows(rng.normal(size=(1, 8)))[0]
    w = global_shares(local, whole)
    for i, row in enumerate(mixed(local, whole)):
        raw = w[i] * whole + (1 - w[i]) * local[i]
        assert np.allclose(row, raw / np.linalg.norm(raw), atol=1e-6)


def test_overlaps_sum_and_renormalise_and_pixels_in_no_mask_have_the_whole():
    masks = np.zeros((2, 4, 6), bool)
    masks[0, :, :3], masks[1, :, 2:4] = True, True
    features = np.array([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]], np.float32)
    whole = np.array([0.0, 0.0, 1.0], np.float32)
    rows, index = spread(masks, features, whole)
    image = rows[index]
    both = features.sum(0) / np.linalg.norm(features.sum(0))
    for column, expected in enumerate([features[0], features[0], both, features[1], whole, whole]):
        assert np.allclose(image[:, column], expected, atol=1e-6)
    counts = np.bincount(index.reshape(-1))
    assert len(rows) == 4 and (np.diff(counts) <= 0).all(), "the commonest first: what is cut off is rare"
    rows, index = spread(masks[:0], features[:0], whole)
    assert np.allclose(rows[index], whole)


@pytest.mark.parametrize("uniqueness", [True, False])
@pytest.mark.parametrize("local", ["crop", "pooled"])
def test_pixels_mean_what_their_mask_shows(uniqueness, local):
    encoder = ConceptFusionEncoder(StubEncoder(), two_masks, uniqueness=uniqueness, local=local)
    frame = picture()
    target = encoder.encode_frame(frame)
    image = target.values[target.cell_of_pixels(96, 64)]
    words = encoder.encode_text(["red", "blue", "white"])
    best = (image @ words.T).argmax(2)
    assert (best[20:40, 12:36] == 0).mean() == 1 and (best[28:52, 60:84] == 1).mean() == 1
    whole = encode_image(StubEncoder(), frame.rgb)
    assert np.allclose(image[0, 0], whole, atol=1e-5)
    assert np.allclose(np.linalg.norm(target.values, axis=1), 1, atol=1e-5) and target.window.pitch_px == 0


def test_the_registry_makes_it_and_its_key_follows_its_settings():
    def made(**settings) -> ConceptFusionEncoder:
        return create(EncoderConfig(name="concept_fusion", concept_fusion=ConceptFusionConfig(base="stub", **settings)))

    encoder = made()
    assert isinstance(encoder, Encoder) and encoder.dim == StubEncoder().dim and encoder.has_text
    keys = {made(**s).cache_key for s in ({}, {"uniqueness": False}, {"temperature": 0.5}, {"local": "pooled"},
                                          {"masks": "segments"})}  # fmt: skip
    assert len(keys) == 5 and made().cache_key == encoder.cache_key
    with pytest.raises(ConfigError, match="itself"):
        made_of_itself = ConceptFusionConfig(base="concept_fusion")
        create(EncoderConfig(name="concept_fusion", concept_fusion=made_of_itself))
    with pytest.raises(ConfigError, match="local"):
        ConceptFusionEncoder(StubEncoder(), two_masks, local="both")


def test_a_base_without_words_is_refused():
    blind = StubEncoder()
    blind.has_text = False
    with pytest.raises(ConfigError, match="no text space"):
        ConceptFusionEncoder(blind)


def test_it_works_with_the_embedded_encoder():
    encoder = create(EncoderConfig(name="concept_fusion", device="cpu"))
    frame = frame_at(ring(8)[0])
    target = encoder.encode_frame(frame)
    assert target.values.shape[1] == encoder.dim == 128 and target.index.shape == frame.depth_m.shape
    assert (target.index >= 0).all()
