"""DINO keys, against timm's own forward pass, and the parts of a real small architecture with random weights."""

import numpy as np
import pytest
import torch

from semfield_ros.config import DinoConfig, EncoderConfig
from semfield_ros.encoders import create
from semfield_ros.encoders.dino import DinoEncoder, attention_keys, load_model
from semfield_ros.errors import ConfigError
from semfield_ros.frame import Frame
from semfield_ros.geometry import Camera

RANDOM = DinoConfig(weights="", shorter_side_px=64)


def frame_of(rgb):
    height, width = rgb.shape[:2]
    return Frame(0.0, Camera(width, height, 50.0, 50.0, 1.0, 1.0), np.eye(4), rgb, np.ones((height, width), np.float32))


@pytest.fixture(scope="module")
def encoder():
    return DinoEncoder(RANDOM, "cpu")


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def test_vit_small_8_gives_384_numbers_a_patch_and_no_words(encoder, image):
    target = encoder.encode_frame(frame_of(image))
    assert (encoder.dim, encoder.patch_px) == (384, 8)
    assert target.index.shape == (8, 12) and target.values.shape == (96, 384)
    assert not encoder.has_text
    with pytest.raises(ConfigError, match="no text space"):
        encoder.encode_text(["mug"])


def test_keys_are_those_of_timms_own_forward_pass():
    model = load_model("vit_small_patch8_224.dino", "")
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))[:, :, :, :]
    seen = []
    handle = model.blocks[2].attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        model.blocks = model.blocks[:3]
        model(images)
        handle.remove()
        keys = attention_keys(model, images, 2, 8)
    expected = seen[0][0, 1:, 384:768].reshape(28, 28, 384)
    assert torch.allclose(keys[0], expected, atol=1e-4)


def test_layer_11_is_the_last_of_twelve(encoder):
    assert DinoConfig().layer == 11 and len(encoder._model.blocks) == 12
    with pytest.raises(ConfigError, match="blocks 0 to 11"):
        DinoEncoder(DinoConfig(weights="", layer=12), "cpu")


def test_stride_4_gives_twice_as_fine_a_grid_over_the_same_image(encoder, image):
    fine = DinoEncoder(DinoConfig(weights="", shorter_side_px=64, stride_px=4), "cpu")
    target = fine.encode_frame(frame_of(image))
    assert target.index.shape == (16, 24)
    # what differs in one corner differs in that corner: the projection itself is local, cell (i, j) is centred there
    projection = fine._model.patch_embed.proj
    impulse = torch.zeros(1, 3, 64, 96)
    impulse[0, :, 30:34, 70:74] = 1  # centred on cell (7.5, 17.5)
    padded = torch.nn.functional.pad(impulse, (2, 2, 2, 2), mode="replicate")
    with torch.inference_mode():
        response = torch.nn.functional.conv2d(padded, torch.ones_like(projection.weight[:1]), stride=4)[0, 0]
    i, j = torch.nonzero(response == response.max()).float().mean(0).tolist()
    assert (i * 4 + 1.5, j * 4 + 1.5) == (31.5, 71.5)


def test_the_registry_knows_it_and_its_key_follows_settings_and_weights(encoder):
    made = create(EncoderConfig(name="dino", device="cpu", dino=RANDOM))
    assert made.name == "dino" and made.cache_key == encoder.cache_key
    other = DinoEncoder(DinoConfig(weights="", shorter_side_px=64, layer=9), "cpu")
    assert other.cache_key != encoder.cache_key


def test_another_architecture_of_timm(image):
    encoder = DinoEncoder(DinoConfig("vit_tiny_patch16_224", "", 5, 16, 64), "cpu")
    assert encoder.dim == 192 and encoder.encode_frame(frame_of(image)).index.shape == (4, 6)


def test_weights_of_a_file_are_read(tmp_path, image, encoder):
    from safetensors.torch import save_file

    path = tmp_path / "dino.safetensors"
    save_file({k: v.clone() for k, v in encoder._model.state_dict().items()}, str(path))
    read = DinoEncoder(DinoConfig(weights=str(path), shorter_side_px=64), "cpu")
    assert np.allclose(read.encode_image(image), encoder.encode_image(image))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (DinoConfig(model="vit_small_patch9_dino"), "not known to timm"),
        (DinoConfig(model="resnet18", weights=""), "no vision transformer"),
        (DinoConfig(weights="/nowhere/dino.pth"), "no file"),
        (DinoConfig(weights="", stride_px=9), "1 to the patch's 8"),
    ],
)
def test_what_cannot_work_is_refused(config, told):
    with pytest.raises(ConfigError, match=told):
        DinoEncoder(config, "cpu")
