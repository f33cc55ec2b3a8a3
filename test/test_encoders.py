"""The stub and precomputed encoders: painted cells, words, relevancy, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest

from semfield_ros.config import EncoderConfig
from semfield_ros.encoders import Encoder, available, create
from semfield_ros.encoders.precomputed import GENERIC_SHARE, PrecomputedEncoder, contrasted, plain_name
from semfield_ros.encoders.stub import PALETTE, StubEncoder
from semfield_ros.errors import ConfigError, QueryError
from semfield_ros.frame import Frame, Segments, make_frame, resized
from semfield_ros.geometry import Camera

NEGATIVES = ["object", "things", "stuff", "texture"]


def frame_of(rgb: np.ndarray, segments: Segments | None = None) -> Frame:
    height, width = rgb.shape[:2]
    camera = Camera(width, height, 100.0, 100.0, (width - 1) / 2, (height - 1) / 2)
    depth = np.ones((height, width), np.float32)
    return make_frame(stamp_s=0.0, camera=camera, T_world_camera=np.eye(4), rgb=rgb, depth=depth, segments=segments)


def relevancy(encoder, features, text):
    """LERF's pairwise relevancy at temperature 10, by its definition."""
    positive = np.exp(10 * features @ encoder.encode_text([text])[0])
    return min(positive / (positive + np.exp(10 * features @ negative)) for negative in encoder.encode_text(NEGATIVES))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'stab' is not known; available: .*stub"):
        create(EncoderConfig(name="stab"))
    assert {"openclip", "precomputed", "stub", "tiny"} <= set(available())


# stub


def halves(left: str, right: str) -> np.ndarray:
    rgb = np.empty((48, 64, 3), np.uint8)
    rgb[:, :32], rgb[:, 32:] = PALETTE[left], PALETTE[right]
    return rgb


def test_stub_finds_each_colour_by_its_word_and_abstains_otherwise():
    encoder = create(EncoderConfig(name="stub"))
    assert isinstance(encoder, Encoder) and encoder.has_text
    for left in PALETTE:
        right = "grey" if left != "grey" else "blue"
        target = encoder.encode_frame(frame_of(halves(left, right)))
        first, last = target.values[target.index[2, 1]], target.values[target.index[2, 6]]
        assert relevancy(encoder, first, f"the {left} mug") > encoder.calibration.high
        assert relevancy(encoder, last, f"the {left} mug") < encoder.calibration.no_match
        assert relevancy(encoder, first, "giraffe") < encoder.calibration.no_match


def test_stub_cells_are_the_mean_of_their_pixels_features():
    encoder = StubEncoder()
    rgb = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    target = encoder.encode_frame(frame_of(rgb))
    assert target.index.shape == (2, 3)
    flats = [np.tile(pixel, (8, 8, 1)) for pixel in rgb[:8, 8:16].reshape(-1, 3)]
    each = np.stack([encoder.encode_frame(frame_of(flat)).values[0] for flat in flats])
    weights = encoder.memberships(rgb)[:8, 8:16].reshape(64, -1)
    expected = (each * np.linalg.norm(weights, axis=1, keepdims=True)).sum(0)
    np.testing.assert_allclose(target.values[1], expected / np.linalg.norm(expected), atol=1e-5)
    window = target.window
    assert window.pitch_px * len(window.kernel) == pytest.approx(8) and np.ptp(window.kernel) == 0


def test_stub_is_smooth_deterministic_and_takes_any_size():
    encoder = StubEncoder(dim=20)
    rgb = np.full((9, 13, 3), 100, np.uint8)
    a = encoder.encode_frame(frame_of(rgb)).values
    b = StubEncoder(dim=20).encode_frame(frame_of(rgb + np.array([1, 0, 0], np.uint8))).values
    assert a.shape[1] == 20 and 0.99 < float(a[0] @ b[0]) < 1
    words = ["red", "object", "zebra crossing", "gray", "grey", "red and blue"]
    text = encoder.encode_text(words)
    np.testing.assert_array_equal(text, StubEncoder(dim=20).encode_text(words))
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, atol=1e-6)
    assert text[2] @ text[0] == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(text[3], text[4])
    assert text[5] @ text[0] == pytest.approx(np.sqrt(0.5), abs=1e-6)
    assert encoder.encode_text([]).shape == (0, 20)
    assert encoder.cache_key != StubEncoder().cache_key
    with pytest.raises(ConfigError, match="stub dim is 12; allowed: more than the 12"):
        StubEncoder(dim=12)


# precomputed

NAMES = ["cup", "mug", "dining_table", "orange_(fruit)", "bow_(weapon)", "bow_(ribbon)", "computer_keyboard", "chair"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table in a narrow cone, as real ones are; mug lies near cup."""
    rng = np.random.default_rng(0)
    vectors = 4 * rng.normal(size=64) + rng.normal(size=(len(NAMES), 64))
    vectors[1] = vectors[0] + 0.4 * rng.normal(size=64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (vectors @ vectors.T).min() > 0.85
    path = tmp_path_factory.mktemp("table") / "table.npz"
    extra = np.stack([vectors[7], rng.normal(size=64)])
    np.savez(
        path, big=vectors.astype(np.float16), big_names=np.array(NAMES), small=extra.astype(np.float32),
        small_names=np.array(["chair", "tv"]),
    )
    return path


@pytest.fixture(scope="module")
def encoder(table):
    return create(EncoderConfig(name="precomputed", text_table=str(table)))


def masks() -> tuple[np.ndarray, Segments]:
    ids = np.zeros((24, 32), np.int32)
    ids[2:10, 3:9], ids[12:20, 10:30], ids[0:2, 0:2], ids[22:, 30:] = 1, 4, 7, 9
    names = {1: "Cup", 4: "dining table", 7: "dragon", 9: "mug", 200: "chair"}
    return ids, Segments(ids, names, {1: 0.5, 4: 1.7, 9: float("nan")})


def test_masks_become_rows_and_everything_else_is_unmeasured(encoder, caplog):
    ids, segments = masks()
    frame = frame_of(np.zeros((24, 32, 3), np.uint8), segments)
    target = encoder.encode_frame(frame)
    assert target.index.shape == (24, 32) and target.values.shape == (3, 64)
    cup, table_row, mug = (target.index[ids == k] for k in (1, 4, 9))
    for rows, text in ((cup, "cup"), (table_row, "dining table"), (mug, "mug")):
        assert len(set(rows.tolist())) == 1
        np.testing.assert_array_equal(target.values[rows[0]], encoder.encode_text([text])[0])
    assert (target.index[(ids == 0) | (ids == 7)] == -1).all()
    np.testing.assert_allclose(target.confidence[[cup[0], table_row[0], mug[0]]], [0.5, 1.0, 0.0])
    assert target.window.pitch_px == 0 and target.window.kernel.tolist() == [[1.0]]
    np.testing.assert_array_equal(target.cell_of_pixels(32, 24), target.index)
    encoder.encode_frame(frame)
    assert len([r for r in caplog.records if "dragon" in r.getMessage()]) == 1


def test_frames_without_anything_found_are_fine_but_without_masks_are_not(encoder):
    rgb = np.zeros((24, 32, 3), np.uint8)
    target = encoder.encode_frame(frame_of(rgb, Segments(np.zeros((24, 32), np.int32), {})))
    assert target.values.shape == (0, 64) and (target.index == -1).all()
    only_bad = encoder.encode_frame(frame_of(rgb, Segments(np.full((24, 32), -3, np.int32), {})))
    assert (only_bad.index == -1).all()
    half = encoder.encode_frame(resized(frame_of(rgb, masks()[1]), 16, 12))
    assert half.index.shape == (12, 16) and len(half.values) == 3
    with pytest.raises(ConfigError, match="no instance masks"):
        encoder.encode_frame(replace(frame_of(rgb), segments=None))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cup", "cup"), ("A cup", "cup"), (" the  CUP. ", "cup"), ("a photo of a cup.", "cup"),
        ("a cup in a scene", "cup"), ("Dining Table", "dining_table"), ("dining-table", "dining_table"),
        ("an orange", "orange_(fruit)"), ("orange fruit", "orange_(fruit)"), ("orange_(fruit)", "orange_(fruit)"),
        ("bow (ribbon)", "bow_(ribbon)"),
    ],
)
def test_names_are_found_however_they_are_written(encoder, text, name):
    np.testing.assert_array_equal(encoder.encode_text([text])[0], encoder.vectors[encoder.names.index(name)])


@pytest.mark.parametrize(
    ("text", "near"),
    [("cupp", "cup"), ("white mug", "near: mug"), ("bow", "bow weapon, bow ribbon"), ("keyboard", "computer keyboard"),
     ("", "near: none"), ("xyzzy", "near: none")],
)
def test_other_words_are_refused_with_the_nearest_names(encoder, text, near):
    with pytest.raises(QueryError, match="is not among the 9 names") as caught:
        encoder.encode_text(["cup", text])
    assert near in str(caught.value)


def test_plain_name():
    assert plain_name("monitor_(computer_equipment) computer_monitor") == "monitor computer equipment computer monitor"
    assert plain_name("a picture of the red_cup") == "red cup"


def test_contrast_follows_its_law(table):
    vectors = np.load(table)["big"].astype(np.float64)
    contrast, generic = contrasted(vectors.astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(contrast, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(contrast @ generic, GENERIC_SHARE, atol=1e-5)
    centred = vectors - vectors.mean(0)  # fewer names than dimensions: nothing is lost along the generic direction
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    expected = GENERIC_SHARE**2 + (1 - GENERIC_SHARE**2) * centred @ centred.T
    np.testing.assert_allclose(contrast @ contrast.T, expected, atol=1e-4)


def test_relevancy_tells_the_class_its_kin_and_the_rest_apart(encoder):
    cup, chair = encoder.encode_text(["cup", "chair"])
    assert relevancy(encoder, cup, "cup") == pytest.approx(1 / (1 + np.exp(-5)), abs=1e-4)
    assert relevancy(encoder, cup, "mug") > encoder.calibration.high
    assert relevancy(encoder, chair, "cup") < encoder.calibration.no_match
    mixed = (cup + chair) / np.linalg.norm(cup + chair)
    assert relevancy(encoder, chair, "cup") < relevancy(encoder, mixed, "cup") < relevancy(encoder, cup, "cup")
    assert encoder.encode_text([]).shape == (0, 64)
    np.testing.assert_array_equal(encoder.encode_text(NEGATIVES), np.tile(encoder.generic, (4, 1)))


def test_the_cache_key_follows_the_table(table, tmp_path):
    arrays = dict(np.load(table))
    same = tmp_path / "same.npz"
    np.savez_compressed(same, **arrays)
    arrays["big"][0, 0] += 0.1
    other = tmp_path / "other.npz"
    np.savez(other, **arrays)
    keys = [PrecomputedEncoder(path).cache_key for path in (table, same, other)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vectors": np.ones((2, 4))}, r"has arrays \['vectors'\]; expected pairs"),
        ({"a": np.ones((2, 4)), "a_names": np.array(["x"])}, r"'a' is float64 \(2, 4\) and 'a_names' has shape \(1,\)"),
        ({"a": np.ones((2, 4), int), "a_names": np.array(["x", "y"])}, "expected floating point"),
        ({"a": np.array([[1.0, 0], [0, np.nan]]), "a_names": np.array(["x", "y"])}, "vector of 'y' is zero"),
        ({"a": np.array([[1.0, 0], [0, 0]]), "a_names": np.array(["x", "y"])}, "vector of 'y' is zero"),
        ({"a": np.ones((1, 4)), "a_names": np.array(["x"])}, "holds 1 names; expected two or more"),
        (
            {"a": np.ones((1, 4)), "a_names": np.array(["x"]), "b": np.ones((1, 3)), "b_names": np.array(["y"])},
            "vectors of one length",
        ),
        ({"a": np.ones((2, 4)), "a_names": np.array([{}, {}], object)}, "not a readable .npz of plain arrays"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match=message):
        PrecomputedEncoder(path)


def test_missing_or_torn_tables_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"needs --encoder\.text_table"):
        create(EncoderConfig(name="precomputed"))
    with pytest.raises(ConfigError, match="does not exist"):
        PrecomputedEncoder(tmp_path / "none.npz")
    torn = tmp_path / "torn.npz"
    torn.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ConfigError, match="not a readable"):
        PrecomputedEncoder(torn)
