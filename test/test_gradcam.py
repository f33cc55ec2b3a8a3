"""Grad-CAM and ResNet features: against the definition, by finite differences, and on two things in one picture."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from semfield_ros.config import EncoderConfig  # noqa: E402
from semfield_ros.encoders import create, dense_resnet  # noqa: E402
from semfield_ros.encoders.gradcam import GradCam, activation_maps, grad_cam, recorded  # noqa: E402
from semfield_ros.encoders.openclip import OpenClipEncoder  # noqa: E402
from semfield_ros.encoders.tiny import TinyEncoder  # noqa: E402
from semfield_ros.errors import ConfigError  # noqa: E402
from semfield_ros.sources.simulator import Simulator, SimulatorConfig  # noqa: E402


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small random ResNet of open_clip's."""
    folder = tmp_path_factory.mktemp("architectures")
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    (folder / "residual.json").write_text(json.dumps({"embed_dim": 20, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    encoder = OpenClipEncoder("residual", "", device="cpu", shorter_side_px=128)
    with torch.no_grad():  # blocks start as their shortcuts: give the last norms something to say
        for name, parameter in encoder.model.visual.named_parameters():
            if name.endswith("bn3.weight"):
                parameter.fill_(0.5)
    return encoder


def image(seed=0, size=(64, 64)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())


def test_dense_features_are_what_attention_would_pool_if_it_looked_at_one_cell(encoder):
    """With attention on one position only, pooling gives that position's value."""
    pool = encoder.model.visual.attnpool
    x = torch.randn(1, pool.v_proj.in_features, 1, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense = dense_resnet.project_values(pool, x)[0, 0, 0]
        positions, pool.positional_embedding.data = pool.positional_embedding.data, torch.zeros(2, x.shape[1])
        pooled = pool(x)[0]  # the mean of one position is that position
        pool.positional_embedding.data = positions
    assert torch.allclose(dense, pooled, atol=1e-5)


def test_a_resnet_encodes_frames_at_stride_32(encoder):
    rgb = image(size=(96, 128))
    features = encoder.encode_image(rgb)
    assert features.shape == (4, 5, 20) and encoder.dim == 20 and encoder.patch == (32, 32)
    with torch.no_grad():
        own = dense_resnet.dense_features(encoder.model.visual, encoder.images(rgb))[0].numpy()
    assert np.array_equal(features, own)


def test_maps_are_the_formula_on_hand_made_numbers():
    activation = torch.tensor([[[[1.0, 0.0], [2.0, 3.0]], [[0.0, 4.0], [1.0, 1.0]]]])
    gradient = torch.tensor([[[[1.0, 1.0], [2.0, 0.0]], [[-1.0, 0.0], [0.0, -1.0]]]])  # means: 1 and -1/2
    expected = torch.tensor([[[1.0, 0.0], [1.5, 2.5]]]) / 2.5
    assert torch.allclose(activation_maps(activation, gradient), expected)
    assert not activation_maps(activation, -gradient.abs()).any(), "nothing speaks for it: zeros, not nan"


def test_the_gradient_is_that_of_the_cosine(encoder):
    visual = encoder.model.visual
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    text = torch.nn.functional.normalize(torch.randn(1, 20, generator=torch.Generator().manual_seed(2)), dim=-1)
    with torch.no_grad():
        stage = dense_resnet.last_stage(visual, images)

        def cosine(x):
            return float(torch.nn.functional.normalize(visual.attnpool(x.float()), dim=-1) @ text[0])

        alpha = torch.zeros(stage.shape[1])
        for c in range(stage.shape[1]):  # mean of ds/dA_c = slope of s when all of channel c moves, over its positions
            step = torch.zeros_like(stage)
            step[0, c] = 1e-2
            alpha[c] = (cosine(stage + step) - cosine(stage - step)) / 2e-2 / stage[0, 0].numel()
        expected = (alpha[:, None, None] * stage[0]).sum(0).relu()
        expected = expected / expected.max()
    maps, cosines = grad_cam(visual, visual.layer4, images, text)
    assert np.isclose(float(cosines), cosine(stage), atol=1e-5)
    assert torch.allclose(maps[0, 0], expected, atol=0.02)


def test_maps_are_full_size_normalised_and_leave_no_hook(encoder):
    cam = GradCam(encoder)
    rgb = image(size=(96, 128))
    before = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    with torch.inference_mode(), pytest.raises(RuntimeError):
        cam.relevancy(rgb, ["a mug"])  # inference tensors have no gradients; the hook goes all the same
    maps = cam.relevancy(rgb, ["a mug", "a table"])
    assert maps.shape == (96, 128, 2) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1
    assert all(np.isclose(m.max(), 1) or not m.any() for m in np.moveaxis(maps, 2, 0))
    assert np.allclose(maps[..., 1], cam.relevancy(rgb, ["a table"])[..., 0], atol=1e-5)
    assert cam.relevancy(rgb, []).shape == (96, 128, 0)
    assert hooks(encoder.model) == 0
    assert all(p.grad is None for p in encoder.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in encoder.model.state_dict().items())


def test_hooks_go_when_the_tower_fails(encoder):
    layer = encoder.model.visual.layer4

    class Broken(torch.nn.Module):
        def forward(self, x):
            layer(torch.zeros(1, 128, 4, 4))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        grad_cam(Broken(), layer, torch.zeros(1, 3, 64, 64), torch.zeros(1, 20))
    assert hooks(encoder.model) == 0
    with pytest.raises(ValueError), recorded(layer):
        raise ValueError
    assert hooks(encoder.model) == 0


def test_what_has_no_convolutional_tower_is_refused(encoder):
    with pytest.raises(ConfigError, match="no convolutional image tower"):
        GradCam(create(EncoderConfig(name="stub")))
    with pytest.raises(ConfigError, match=r"no \[B, C, h, w\]"):
        grad_cam(encoder.model.visual, encoder.model.visual.attnpool, torch.zeros(1, 3, 64, 64), torch.zeros(1, 20))


@pytest.mark.parametrize("seed", [0, 4, 6])
def test_each_of_two_texts_finds_its_own_object(seed):
    """Two things on a table, seen by a network that knows them: each name lights up one and not the other."""
    encoder = TinyEncoder(device="cpu")
    simulator = Simulator(SimulatorConfig(seed=seed, frames=1, objects=2, processes=0))
    frame = next(iter(simulator))
    a, b = simulator.objects
    maps = GradCam(encoder).relevancy(frame.rgb, [f"{o.colour} {o.kind}" for o in (a, b)])
    masks = [frame.instance == o.instance for o in (a, b)]
    mean = np.array([[maps[mask][:, q].mean() for mask in masks] for q in range(2)])
    assert mean[0, 0] > mean[0, 1] + 0.3 and mean[1, 1] > mean[1, 0] + 0.3
    for q, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        v, u = np.unravel_index(maps[..., q].argmax(), maps.shape[:2])
        assert rows.min() - 8 <= v <= rows.max() + 8 and columns.min() - 8 <= u <= columns.max() + 8
    assert hooks(encoder.model) == 0
