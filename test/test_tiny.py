"""The embedded encoder: is it really open_clip's, do its features obey their laws, and does it know its world?"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from semfield_ros.config import EncoderConfig  # noqa: E402
from semfield_ros.encoders import Encoder, create  # noqa: E402
from semfield_ros.encoders.tiny import (  # noqa: E402
    MODEL_FOLDER,
    MODEL_NAME,
    TinyEncoder,
    dense_features,
    load_weights,
    new_model,
    new_tokenizer,
    normalised_images,
)
from semfield_ros.errors import ConfigError  # noqa: E402
from semfield_ros.frame import resized  # noqa: E402
from semfield_ros.sources.simulator import EVALUATION_SEEDS, Simulator, SimulatorConfig  # noqa: E402
from semfield_ros.sources.simulator_objects import COLOURS, KINDS, PART_NAMES  # noqa: E402
from semfield_ros.sources.simulator_scene import CLASS_NAMES  # noqa: E402

NEGATIVES = ["object", "things", "stuff", "texture"]


@pytest.fixture(scope="module")
def encoder() -> TinyEncoder:
    return create(EncoderConfig(name="tiny", device="cpu"))


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(SimulatorConfig(seed=11, frames=6, processes=0))


@pytest.fixture(scope="module")
def frames(simulator) -> list:
    return list(simulator)


def cell_labels(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The commonest label of every 8 x 8 cell and its share."""
    h, w = image.shape[0] // 8, image.shape[1] // 8
    tiles = image.reshape(h, 8, w, 8).transpose(0, 2, 1, 3).reshape(h * w, 64)
    top = np.array([np.bincount(tile).argmax() for tile in tiles])
    return top, (tiles == top[:, None]).mean(1)


def test_it_is_an_open_clip_model_with_the_shipped_weights(encoder):
    from safetensors.torch import load_file

    assert isinstance(encoder, Encoder)
    model = load_weights(new_model(), MODEL_FOLDER / "weights.safetensors")
    assert type(model).__module__.startswith("open_clip")
    assert MODEL_NAME in open_clip.list_models()
    state = load_file(str(MODEL_FOLDER / "weights.safetensors"))
    assert set(state) == set(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name].to(value.dtype), rtol=0, atol=0)
    assert (MODEL_FOLDER / "weights.safetensors").stat().st_size <= 16e6


@pytest.mark.parametrize("size", [(240, 320), (152, 200), (95, 133), (8, 8)])
def test_dense_features_average_to_encode_image(encoder, size):
    model = encoder._model
    images = normalised_images(model, np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8))
    with torch.inference_mode():
        dense, pooled = dense_features(model, images), model.encode_image(images)
    assert dense.shape == (2, -(-size[0] // 8), -(-size[1] // 8), encoder.dim)
    torch.testing.assert_close(dense.mean((1, 2)), pooled, rtol=1e-4, atol=1e-5)


def test_images_are_normalised_as_open_clip_does(encoder):
    from PIL import Image
    from torchvision.transforms import Compose, Normalize, ToTensor

    rgb = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    model = encoder._model
    expected = Compose([ToTensor(), Normalize(model.visual.image_mean, model.visual.image_std)])(Image.fromarray(rgb))
    torch.testing.assert_close(normalised_images(model, rgb[None])[0], expected)


def test_targets_are_unit_deterministic_and_sized_by_stride(encoder, frames):
    target = encoder.encode_frame(frames[0])
    assert target.index.shape == (30, 40) and target.values.shape == (1200, encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(target.values, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(encoder.encode_frame(frames[0]).values, target.values)
    kernel = target.window.kernel
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-6)
    np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-6)


def test_larger_frames_are_seen_at_the_scale_of_training(encoder, frames):
    small, large = encoder.encode_frame(frames[0]), encoder.encode_frame(resized(frames[0], 640, 480))
    assert large.index.shape == small.index.shape
    assert large.window.pitch_px == pytest.approx(2 * small.window.pitch_px)
    assert np.einsum("ij,ij->i", small.values, large.values).mean() > 0.9
    odd = encoder.encode_frame(resized(frames[0], 333, 217))
    assert np.isfinite(odd.values).all() and odd.index.shape[1] == 40


def test_text_is_open_clips_and_cached_without_change(encoder):
    texts = ["red mug", "a photo of a bottle", "red mug"]
    features = encoder.encode_text(texts)
    with torch.inference_mode():
        expected = encoder._model.encode_text(new_tokenizer()(texts), normalize=True).numpy()
    np.testing.assert_allclose(features, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(features[0], features[2])
    assert encoder.encode_text([]).shape == (0, encoder.dim)
    with pytest.raises(ConfigError, match="list of texts"):
        encoder.encode_text("red mug")


def test_words_never_taught_carry_nothing(encoder):
    """Rows of the token table outside the vocabulary of training are zero."""
    table = encoder._model.token_embedding.weight
    row = new_tokenizer().encoder["stethoscope</w>"] if "stethoscope</w>" in new_tokenizer().encoder else None
    if row is not None:
        assert float(table[row].abs().max()) < 1e-3
    assert float((table.abs().amax(1) == 0).float().mean()) > 0.2


def test_names_objects_of_a_scene_it_never_saw(encoder, simulator, frames):
    assert simulator.config.seed in EVALUATION_SEEDS
    sums = {truth.instance: np.zeros(encoder.dim) for truth in simulator.objects}
    for frame in frames:
        values = encoder.encode_frame(frame).values
        instance, share = cell_labels(frame.instance)
        for i in np.unique(instance[instance > 0]):
            sums[i] += values[(instance == i) & (share > 0.6)].sum(0)
    seen = [truth for truth in simulator.objects if np.linalg.norm(sums[truth.instance]) > 1]
    assert len(seen) >= 6
    means = np.stack([sums[truth.instance] for truth in seen])
    kinds = [kind.name for kind in KINDS]
    pairs = [f"{colour} {kind}" for colour, kind in itertools.product(COLOURS, kinds)]
    by_kind = (means @ encoder.encode_text(kinds).T).argmax(1)
    by_colour = (means @ encoder.encode_text(list(COLOURS)).T).argmax(1)
    by_both = (means @ encoder.encode_text(pairs).T).argmax(1)
    assert np.mean([kinds[k] == truth.kind for k, truth in zip(by_kind, seen)]) >= 0.8
    assert np.mean([list(COLOURS)[k] == truth.colour for k, truth in zip(by_colour, seen)]) >= 0.8
    assert np.mean([pairs[k] == f"{truth.colour} {truth.kind}" for k, truth in zip(by_both, seen)]) >= 0.8


def test_tells_the_parts_of_an_object_apart(encoder):
    """Part words inside objects of scenes it never saw, against what guessing by area would reach."""
    from tiny_parts import part_figures

    figures = part_figures(encoder.model, encoder.encode_text, [11, 17], 6)["word"]["other parts"]
    precision, cluster, chance, count = figures["all"]
    assert count > 20 and chance < 0.45
    assert precision > chance + 0.25 and cluster > 0.6
    assert figures["handle"][1] > 0.7


def test_relevancy_decides_what_is_there(encoder, frames):
    values = encoder.encode_frame(frames[1]).values
    semantic, share = cell_labels(frames[1].semantic)
    table = (semantic == CLASS_NAMES.index("table")) & (share == 1)
    negatives = values @ encoder.encode_text(NEGATIVES).T
    margin = values @ encoder.encode_text(["table", "giraffe", "red violin", ""]).T - negatives.max(1, keepdims=True)
    relevancy = 1 / (1 + np.exp(-10 * margin))
    assert np.median(relevancy[table, 0]) > max(0.5, encoder.calibration.no_match)
    assert (np.median(relevancy[:, 1:], axis=0) < 0.5).all()
    assert 0 < encoder.calibration.no_match < encoder.calibration.high < 1


def copy_of_model(folder: Path) -> Path:
    for name in ("weights.safetensors", "meta.json"):
        shutil.copy(MODEL_FOLDER / name, folder / name)
    return folder


@pytest.mark.parametrize("damage", ["missing", "torn", "foreign", "meta missing", "meta torn"])
def test_damaged_files_are_refused_with_a_remedy(tmp_path, damage):
    folder = copy_of_model(tmp_path)
    weights, meta = folder / "weights.safetensors", folder / "meta.json"
    if damage == "missing":
        weights.unlink()
    elif damage == "torn":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "foreign":
        from safetensors.torch import save_file

        save_file({"something": torch.zeros(3)}, str(weights))
    elif damage == "meta missing":
        meta.unlink()
    else:
        meta.write_text('{"window": [[1')
    with pytest.raises(ConfigError, match=r"reinstall|training/tiny_encoder\.py"):
        TinyEncoder(folder, device="cpu")


def test_cache_key_follows_weights_and_settings(tmp_path, encoder):
    folder = copy_of_model(tmp_path)
    assert TinyEncoder(folder, device="cpu").cache_key == encoder.cache_key
    meta = json.loads((folder / "meta.json").read_text())
    meta["no_match"] += 0.001
    (folder / "meta.json").write_text(json.dumps(meta))
    assert TinyEncoder(folder, device="cpu").cache_key != encoder.cache_key


def test_patch_labels_by_hand():
    from tiny_data import IGNORE, patch_labels

    simulator = Simulator(SimulatorConfig(seed=0, width=64, height=64, processes=0))
    scene = simulator.scene
    table = int(np.flatnonzero(scene.geom_semantic[:-1] == CLASS_NAMES.index("table"))[0])
    one = int(np.flatnonzero((scene.geom_instance == 1) & scene.geom_main)[0])
    two = int(np.flatnonzero(scene.geom_instance == 2)[0])
    geom = np.full((8, 40), table, np.int32)
    geom[:, 8:11] = one
    geom[:, 16:20] = one
    geom[:, 20:24] = two
    geom[:, 24:25] = one
    geom[0, 32:36] = one
    labels = patch_labels(scene, geom)
    kind = CLASS_NAMES.index(scene.objects[0].kind.name)
    # table; 3/8 of one object; two objects half and half; 1/8 of an object; 1/16 of an object.
    assert labels.semantic[0].tolist() == [CLASS_NAMES.index("table"), kind, IGNORE, IGNORE, CLASS_NAMES.index("table")]
    assert labels.instance[0].tolist() == [0, 1, 0, 0, 0]
    assert labels.main[0].tolist() == [0, 1, 0, 0, 0]
    assert labels.colour[0, 1] == list(COLOURS).index(scene.objects[0].colour) and labels.colour[0, 0] == IGNORE


def test_captions_are_right_for_what_they_say():
    from tiny_captions import CANONICAL, HELD_OUT_ABSENT, HELD_OUT_TEMPLATES, PART_NOUNS, TEMPLATES, CaptionSampler
    from tiny_train import Rows

    assert set(CANONICAL) == set(NEGATIVES)
    assert not set(HELD_OUT_TEMPLATES[1:]) & set(TEMPLATES)
    mug, bowl = CLASS_NAMES.index("mug"), CLASS_NAMES.index("bowl")
    red, blue = list(COLOURS).index("red"), list(COLOURS).index("blue")
    captions = CaptionSampler(["zebu", "quux"]).sample(np.random.default_rng(0), [(mug, red), (bowl, blue)])
    assert not any(word in text.split() for text in captions.texts for word in HELD_OUT_ABSENT)
    handle = PART_NAMES.index("handle")
    labels = torch.tensor([[mug, red, 1, handle], [bowl, blue, 0, 255], [CLASS_NAMES.index("table"), 255, 0, 0]])
    right, counts = Rows(torch.zeros(3, 4), labels, torch.ones(3)).matches(captions)
    for column, (family, kind, colour) in enumerate(zip(captions.family, captions.kind, captions.colour)):
        hits, part = right[:, column].tolist(), int(captions.part[column])
        if family in ("canonical", "absent"):
            assert hits == [False] * 3
        elif family == "pair":
            assert hits == [(kind, colour) == (mug, red), (kind, colour) == (bowl, blue), False]
        elif family == "kind":
            assert hits == [kind == mug, kind == bowl, False]
        elif family == "colour":
            # The bowl's patch shows a part of another colour: nothing is said about its colour.
            assert counts[:, column].tolist() == [True, False, True] and hits[0] == (colour == red)
        elif family in ("part", "own part"):
            # The bowl's patch shows several parts: nothing is said about them.
            assert counts[:, column].tolist() == [True, False, True] and hits[1:] == [False, False]
            assert hits[0] == (part == handle and kind in (-1, mug))
            assert any(
                word in captions.texts[column] for word in (PART_NAMES[part], *PART_NOUNS.get(PART_NAMES[part], ()))
            )
    assert {"part", "own part"} <= set(captions.family)


def test_patches_have_the_part_most_of_their_object_shows():
    from tiny_data import IGNORE, patch_labels

    simulator = Simulator(SimulatorConfig(seed=0, width=64, height=64, processes=0))
    scene = simulator.scene
    table = int(np.flatnonzero(scene.geom_semantic[:-1] == CLASS_NAMES.index("table"))[0])
    one = int(np.flatnonzero(scene.geom_instance == 1)[0])
    rim, body = PART_NAMES.index("rim"), PART_NAMES.index("body")
    geom, parts = np.full((8, 32), table, np.int32), np.zeros((8, 32), np.int32)
    geom[:, 8:] = one
    geom[:, 24:28] = table
    parts[:, 8:24], parts[:, 28:] = body, rim
    parts[:4, 16:24] = rim
    # table; body; half and half; rim in what the object has of the patch.
    assert patch_labels(scene, geom, parts).part[0].tolist() == [0, body, IGNORE, rim]
    assert patch_labels(scene, geom).part[0].tolist() == [0, IGNORE, IGNORE, IGNORE]


def test_part_captions_compete_only_with_parts_of_the_same_object():
    """Features that are the text of their own part lose nothing inside the object; those of a sibling lose most."""
    from tiny_captions import CaptionSampler
    from tiny_train import Rows, loss_of_parts

    mug = CLASS_NAMES.index("mug")
    rim, handle = PART_NAMES.index("rim"), PART_NAMES.index("handle")
    captions = CaptionSampler(["zebu", "quux"]).sample(np.random.default_rng(1), [(mug, 0)], part_kinds=99)
    labels = torch.tensor([[mug, 0, 1, rim], [mug, 0, 1, handle], [CLASS_NAMES.index("table"), 255, 0, 0]])
    rows = Rows(torch.zeros(3, 4), labels, torch.ones(3))
    right, _ = rows.matches(captions)
    scale = torch.tensor(40.0)
    perfect, figures = loss_of_parts(rows, right.float(), captions, scale)
    assert figures == {"part": 1.0, "sibling": 1.0, "own": 1.0} and float(perfect) < 1e-3
    swapped, figures = loss_of_parts(rows, right.float()[[1, 0, 2]], captions, scale)
    assert set(figures.values()) == {0.0} and float(swapped) > 10
    # a part that mugs do not have may score as it likes: only the comparison with all parts minds
    other = torch.as_tensor((captions.family == "part") & (captions.part == PART_NAMES.index("neck")))
    loud = right.float() + 2 * other
    _, figures = loss_of_parts(rows, loud, captions, scale)
    assert figures == {"part": 0.0, "sibling": 1.0, "own": 1.0}


def test_parts_are_judged_by_their_own_size():
    from tiny_parts import ObjectPoints, judged

    points = np.stack([0.02 * np.arange(10.0), np.zeros(10), np.zeros(10)], 1)
    part = np.where(np.arange(10) < 4, PART_NAMES.index("handle"), PART_NAMES.index("body"))
    thing = ObjectPoints("mug", points, np.zeros((10, 2)), part)
    assert judged(thing, "handle", -np.arange(10.0)) == (1.0, 1.0)
    assert judged(thing, "handle", np.arange(10.0)) == (0.0, 0.0)
    # three of the best four on it, and the best three in a row are not
    assert judged(thing, "handle", np.array([5, 5, 5, 0, 0, 0, 0, 0, 0, 9.0])) == (0.75, 1.0)


def test_window_fit_recovers_a_known_blur():
    from tiny_data import patch_labels
    from tiny_evaluate import SceneFeatures, fitted_window, unit

    config = SimulatorConfig(seed=5, frames=3, processes=0)
    simulator = Simulator(config)
    axis = np.arange(-3, 4)
    line = np.exp(-(axis**2) / 2.0)
    kernel = np.outer(line, line) / line.sum() ** 2
    rng = np.random.default_rng(0)
    table = unit(rng.standard_normal((len(simulator.objects) + 5, 64)))
    features, labels = [], []
    for T in simulator.path(3):
        geom = simulator.cast(T).geom
        surface = np.where(
            simulator.scene.geom_instance[geom] > 0,
            simulator.scene.geom_instance[geom] + 4,
            simulator.scene.geom_semantic[geom],
        )
        padded = np.pad(surface, 12, mode="edge")
        dense = np.zeros((30, 40, 64))
        for a, b in itertools.product(range(7), range(7)):
            rows = np.arange(30) * 8 + 4 + 4 * (a - 3) + 12
            columns = np.arange(40) * 8 + 4 + 4 * (b - 3) + 12
            dense += kernel[a, b] * table[padded[rows[:, None], columns[None]]]
        features.append(dense)
        labels.append(patch_labels(simulator.scene, geom).stacked())
    present = [(truth.kind, truth.colour) for truth in simulator.objects]
    scene = SceneFeatures(np.stack(features), np.stack(labels), np.zeros((0, 64)), np.zeros(0), present)
    fitted = fitted_window([scene], [5], 3, half=4)
    assert fitted.sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(fitted[1:-1, 1:-1], kernel, atol=0.03)
    np.testing.assert_allclose(fitted, fitted.T, atol=1e-6)


def test_shared_gradients_keep_the_layout_the_fused_optimiser_relies_on(tmp_path):
    from tiny_train import _share_gradients
    from torch import distributed, nn

    def stepped(share: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)).to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(model.parameters(), fused=True, lr=0.1)
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        if share:
            _share_gradients(model, 1)
        optimiser.step()
        return [p.detach().clone() for p in model.parameters()]

    distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        for alone, shared in zip(stepped(False), stepped(True)):
            torch.testing.assert_close(alone, shared)
    finally:
        distributed.destroy_process_group()
