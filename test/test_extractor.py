"""Any model as a teacher: shapes, repeatability, refusals, and a field that learns features of odd length."""

from dataclasses import replace

import analytic_scene
import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from semfield_ros.config import EncoderConfig, HeadsConfig  # noqa: E402
from semfield_ros.encoders import create, teacher_config  # noqa: E402
from semfield_ros.encoders.base import Encoder  # noqa: E402
from semfield_ros.encoders.extractor import ExtractorEncoder, FunctionEncoder  # noqa: E402
from semfield_ros.encoders.stub import PALETTE  # noqa: E402
from semfield_ros.errors import ConfigError  # noqa: E402


def frame():
    return analytic_scene.stream(1)[0]


@pytest.mark.parametrize(
    ("model", "dim", "grid"),
    [
        ("timm/vit_tiny_patch16_224", 192, (4, 5)),  # a transformer of any size
        ("timm/resnet10t", 512, (2, 3)),  # convolutional, stride 32
        ("timm/mobilenetv3_small_050", 288, (2, 3)),
        ("open_clip/RN50", 2048, (7, 7)),  # one size only
    ],
)
def test_models_by_name(model, dim, grid):
    encoder = ExtractorEncoder(model, "random", device="cpu", shorter_side_px=64)
    target = encoder.encode_frame(frame())
    assert encoder.dim == dim and target.values.shape[1] == dim and isinstance(encoder, Encoder)
    assert target.index.shape == grid
    assert np.allclose(np.linalg.norm(target.values, axis=1), 1, atol=1e-4)
    assert not encoder.has_text


def test_random_weights_are_repeatable_and_settings_change_the_key():
    a, b = (ExtractorEncoder("timm/resnet10t", "random", device="cpu", shorter_side_px=64) for _ in range(2))
    rgb = frame().rgb
    assert np.array_equal(a.encode_image(rgb), b.encode_image(rgb)) and a.cache_key == b.cache_key
    other = ExtractorEncoder("timm/resnet10t", "random", device="cpu", shorter_side_px=96)
    assert other.cache_key != a.cache_key and other.encode_image(rgb).shape[0] == 3


def test_the_map_is_the_models_own():
    encoder = ExtractorEncoder("timm/resnet10t", "random", device="cpu", shorter_side_px=64)
    rgb = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    with torch.no_grad():
        torch.manual_seed(0)
        model = timm.create_model("resnet10t", pretrained=False, num_classes=0).eval()
        image = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(model.default_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
        own = model.forward_features((image - mean) / std)[0].permute(1, 2, 0).numpy()
    assert np.allclose(encoder.encode_image(rgb), own, atol=1e-4)


def test_words_are_refused():
    encoder = ExtractorEncoder("timm/resnet10t", "random", device="cpu", shorter_side_px=64)
    with pytest.raises(ConfigError, match="no text space"):
        encoder.encode_text(["mug"])


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("resnet10t", "random", "allowed: timm/NAME or open_clip/NAME"),
        ("torchvision/resnet18", "random", "allowed: timm/NAME"),
        ("timm/resnet10", "random", "near: resnet10t"),
        ("open_clip/RN5", "random", "near: .*RN50"),
        ("open_clip/RN50", "default", "one of openai"),
        ("timm/resnet10t", "/not/there.pt", "no file"),
    ],
)
def test_unusable_names_say_what_is_near(model, weights, message):
    with pytest.raises(ConfigError, match=message):
        ExtractorEncoder(model, weights, device="cpu")


def test_configuration_names_it_and_checks_its_length():
    config = EncoderConfig(name="extractor", model="timm/resnet10t", pretrained="random", device="cpu", dim=512)
    assert create(config).dim == 512
    with pytest.raises(ConfigError, match=r"512 dimensions, encoder\.dim asks for 768"):
        create(replace(config, dim=768))
    assert teacher_config("extractor:timm/resnet10t:random")[1].model == "timm/resnet10t"


def test_a_function_is_an_encoder_and_a_field_learns_its_17_dimensions():
    rng = np.random.default_rng(0)
    colours = rng.normal(size=(3, 17)).astype(np.float32)

    def features(rgb):
        small = cv2.resize(rgb, (20, 15), interpolation=cv2.INTER_AREA)
        return (small.astype(np.float32) / 255 - 0.5) @ colours

    encoder = FunctionEncoder("colours", 17, features, "v1")
    mapping = analytic_scene.mapped(6)
    for keyframe, seen in zip(list(mapping.keyframes.items), analytic_scene.stream(6)):
        mapping.add_teacher(keyframe, seen, "colours", {"colours": encoder.encode_frame(seen)})
    for _ in range(300):
        mapping.train_step()
    assert mapping.learnt["teacher_colours"] == 300
    points = torch.tensor([[-0.14, -0.02, 0.16], [0.15, 0.02, 0.1], [0.0, -0.3, 0.0]])
    with torch.no_grad():
        head = mapping.field.head("teacher_colours")
        found = torch.nn.functional.normalize(head.finish(mapping.field.hidden("teacher_colours", points)), dim=-1)
    truth = (np.array([PALETTE[c] for c in ("red", "blue", "white")], np.float32) / 255 - 0.5) @ colours
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    assert (found.numpy() @ truth.T).argmax(1).tolist() == [0, 1, 2]
    assert HeadsConfig().teachers == ()


def test_a_function_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match=r"expected \[h, w, 3\]"):
        FunctionEncoder("x", 3, lambda rgb: np.zeros((4, 4, 2)), "").encode_frame(frame())
    with pytest.raises(ConfigError, match="at least one"):
        FunctionEncoder("x", 0, lambda rgb: rgb, "")
