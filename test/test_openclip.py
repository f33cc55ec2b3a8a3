"""Dense open_clip features against a slow forward pass in float64 NumPy, from the papers and the raw weights."""

import json
import math

import numpy as np
import pytest
from scipy.special import erf

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from semfield_ros.config import EncoderConfig  # noqa: E402
from semfield_ros.encoders import Encoder, create, dense_vit  # noqa: E402
from semfield_ros.encoders.openclip import OpenClipEncoder, default_window, load_model  # noqa: E402
from semfield_ros.errors import ConfigError  # noqa: E402
from semfield_ros.frame import make_frame  # noqa: E402
from semfield_ros.geometry import Camera  # noqa: E402

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
ODD = {"image_size": [28, 42], "patch_size": 7, "width": 24, "layers": 3, "head_width": 6}
SMALL = {
    "odd": ODD,
    "odd-quick": ODD,
    "odd-bare": {**ODD, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "odd-scaled": {**ODD, "ls_init_value": 0.3},
    "odd-custom": {
        **ODD, "qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True,
    },
}


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    """Small architectures of odd sizes, known to open_clip by name."""
    folder = tmp_path_factory.mktemp("architectures")
    for name, vision in SMALL.items():
        config = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": TEXT, "quick_gelu": name.endswith("quick")}
        (folder / f"{name}.json").write_text(json.dumps(config))
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    residual = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": TEXT}
    (folder / "odd-residual.json").write_text(json.dumps(residual))
    open_clip.add_model_config(folder)


def shaken(model):
    """The model with every weight off its initial value, so that no bias, norm or scale is trivially one or zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


class Reference:
    """The same network from its state dict, one head and one token row at a time where it matters."""

    def __init__(self, visual, heads: int, quick: bool):
        self.w = {key: value.double().numpy() for key, value in visual.state_dict().items()}
        self.heads, self.quick = heads, quick
        self.layers = 1 + max(int(key.split(".")[2]) for key in self.w if key.startswith("transformer.resblocks."))

    def norm(self, key, x):
        if f"{key}.weight" not in self.w:
            return x
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.w[f"{key}.weight"] + self.w[f"{key}.bias"]

    def tokens(self, image, positions):
        """image [3, H, W]; positions [1 + n, C]."""
        kernel = self.w["conv1.weight"]
        p, q = kernel.shape[2:]
        patches = [
            (kernel * image[:, i : i + p, j : j + q]).sum((1, 2, 3))
            for i in range(0, image.shape[1] - p + 1, p)
            for j in range(0, image.shape[2] - q + 1, q)
        ]
        return self.norm("ln_pre", np.stack([self.w["class_embedding"], *patches]) + positions)

    def heads_of(self, block, x):
        """Per head: queries, keys, values [L, d]."""
        key = f"transformer.resblocks.{block}.attn"
        packed = x @ self.w[f"{key}.in_proj_weight"].T + self.w[f"{key}.in_proj_bias"]
        width = x.shape[1]
        size = width // self.heads
        for head in range(self.heads):
            q, k, v = (packed[:, part * width + head * size : part * width + (head + 1) * size] for part in range(3))
            yield self.norm(f"{key}.ln_q", q), self.norm(f"{key}.ln_k", k), v

    def joined(self, block, mixed):
        """Heads to the attention branch's output."""
        name = f"transformer.resblocks.{block}"
        scales = self.w.get(f"{name}.attn.head_scale")
        if scales is not None:
            mixed = [m * float(scales[head, 0, 0]) for head, m in enumerate(mixed)]
        x = self.norm(f"{name}.attn.ln_inner", np.concatenate(mixed, axis=1))
        x = x @ self.w[f"{name}.attn.out_proj.weight"].T + self.w[f"{name}.attn.out_proj.bias"]
        return self.norm(f"{name}.ln_attn", x) * self.w.get(f"{name}.ls_1.gamma", 1.0)

    def block(self, block, x):
        name = f"transformer.resblocks.{block}"
        mixed = []
        for q, k, v in self.heads_of(block, self.norm(f"{name}.ln_1", x)):
            logits = q @ k.T / math.sqrt(q.shape[1])
            weights = np.exp(logits - logits.max(1, keepdims=True))
            mixed.append(weights / weights.sum(1, keepdims=True) @ v)
        x = x + self.joined(block, mixed)
        hidden = self.norm(f"{name}.ln_2", x) @ self.w[f"{name}.mlp.c_fc.weight"].T + self.w[f"{name}.mlp.c_fc.bias"]
        gate = 1 / (1 + np.exp(-1.702 * hidden)) if self.quick else (1 + erf(hidden / math.sqrt(2))) / 2
        hidden = self.norm(f"{name}.mlp.ln", hidden * gate)
        out = hidden @ self.w[f"{name}.mlp.c_proj.weight"].T + self.w[f"{name}.mlp.c_proj.bias"]
        return x + out * self.w.get(f"{name}.ls_2.gamma", 1.0)

    def dense(self, image, positions, grid, sigma=None):
        """[rows * columns, D]."""
        x = self.tokens(image, positions)
        for block in range(self.layers - 1):
            x = self.block(block, x)
        last = self.layers - 1
        mixed = []
        for _, k, v in self.heads_of(last, self.norm(f"transformer.resblocks.{last}.ln_1", x)):
            if sigma is None:
                mixed.append(v)
                continue
            out = np.zeros_like(v)
            for a in range(len(k)):
                logits = np.array([k[a] @ k[b] / math.sqrt(k.shape[1]) for b in range(len(k))])
                if a > 0:
                    i, j = divmod(a - 1, grid[1])
                    for b in range(1, len(k)):
                        m, n = divmod(b - 1, grid[1])
                        logits[b] += math.exp(-((i - m) ** 2 + (j - n) ** 2) / (2 * sigma**2))
                weights = np.exp(logits - logits.max())
                out[a] = weights / weights.sum() @ v
            mixed.append(out)
        return self.norm("ln_post", self.joined(last, mixed))[1:] @ self.w["proj"]


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(features, expected, tolerance=2e-4):
    assert features.shape == expected.shape
    assert np.abs(features - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("sigma", [None, 5.0, 1.5])
@pytest.mark.parametrize("name", list(SMALL))
def test_small_architectures_equal_the_reference(name, sigma):
    model = shaken(load_model(name, "", torch.device("cpu"))[0])
    image = torch.randn(1, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = dense_vit.dense_features(model.visual, image, sigma)[0].numpy()
    reference = Reference(model.visual, heads=4, quick=name.endswith("quick"))
    positions = reference.w["positional_embedding"]
    expected = reference.dense(image[0].double().numpy(), positions, (4, 6), sigma)
    assert_same(features.reshape(-1, 20), expected)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-B-32-quickgelu"])
def test_real_architectures_equal_the_reference(name):
    encoder = OpenClipEncoder(name, "", device="cpu")
    rgb = random_image(224, 224)
    mean, std = (np.array(values) for values in (encoder.model.visual.image_mean, encoder.model.visual.image_std))
    image = ((rgb / 255 - mean) / std).transpose(2, 0, 1)
    reference = Reference(encoder.model.visual, heads=12, quick=name.endswith("quickgelu"))
    grid = encoder.model.visual.grid_size
    positions = reference.w["positional_embedding"]
    expected = reference.dense(image, positions, grid).reshape(*grid, 512)
    assert_same(encoder.encode_image(rgb), expected)
    if name == "ViT-B-32":
        encoder.sigma = dense_vit.NEIGHBOURHOOD_SIGMA
        expected = reference.dense(image, positions, grid, sigma=5.0).reshape(*grid, 512)
        assert_same(encoder.encode_image(rgb), expected)


@pytest.mark.parametrize("name", ["odd", "odd-bare", "odd-custom"])
def test_blocks_before_the_last_are_open_clips_own(name):
    visual = load_model(name, "", torch.device("cpu"))[0].visual
    image = torch.randn(2, 3, 28, 42)
    with torch.inference_mode():
        out = visual.forward_intermediates(image, indices=[1], output_fmt="NLC", output_extra_tokens=True)
        own = torch.cat([out["image_intermediates_prefix"][0], out["image_intermediates"][0]], dim=1)
        torch.testing.assert_close(dense_vit.tokens_before_last_block(visual, image), own)


def test_positions_are_untouched_at_native_resolution_and_equal_open_clips_elsewhere(tmp_path):
    native, _ = load_model("odd", "", torch.device("cpu"))
    embedding = native.visual.positional_embedding
    assert dense_vit.interpolated_positions(embedding, (4, 6), (4, 6)) is embedding

    square = {"embed_dim": 20, "vision_cfg": {**ODD, "image_size": 28}, "text_cfg": TEXT}
    (tmp_path / "odd-square.json").write_text(json.dumps(square))
    open_clip.add_model_config(tmp_path)
    file = tmp_path / "weights.pt"
    small = open_clip.create_model("odd-square")
    torch.save(small.state_dict(), file)
    for size in [(14, 21), (56, 63)]:
        resized = open_clip.create_model("odd-square", pretrained=str(file), force_image_size=size).eval()
        grid = (size[0] // 7, size[1] // 7)
        ours = dense_vit.interpolated_positions(small.visual.positional_embedding, (4, 4), grid)
        torch.testing.assert_close(ours, resized.visual.positional_embedding)
        with torch.inference_mode():
            image = torch.randn(1, 3, *size)
            torch.testing.assert_close(
                dense_vit.dense_features(small.eval().visual, image), dense_vit.dense_features(resized.visual, image)
            )


@pytest.mark.parametrize(
    ("width", "height", "patch", "shorter", "grid"),
    [
        (640, 480, (16, 16), 224, (14, 19)),
        (320, 240, (32, 32), 224, (7, 9)),
        (480, 640, (16, 16), 224, (19, 14)),
        (224, 224, (14, 14), 224, (16, 16)),
        (1000, 10, (16, 16), 16, (1, 100)),
    ],
)
def test_patch_grid_keeps_the_whole_image_near_its_aspect(width, height, patch, shorter, grid):
    assert dense_vit.patch_grid(width, height, patch, shorter) == grid


def test_preprocessing_is_open_clips_own_on_a_square_image():
    from PIL import Image

    encoder = OpenClipEncoder("ViT-B-32", "", device="cpu")
    _, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    yy, xx = np.mgrid[0:300, 0:300]
    rgb = np.stack([xx * 255 / 299, yy * 255 / 299, 127 + 100 * np.sin(xx / 20)], -1).astype(np.uint8)
    theirs = preprocess(Image.fromarray(rgb))
    ours = encoder.images(rgb)[0]
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 2.5 / 255 / 0.26  # PIL rounds to whole grey levels after each of two passes


def test_encode_frame_covers_the_image_and_states_its_window():
    encoder = create(EncoderConfig(name="openclip", model="odd", pretrained="", device="cpu"))
    assert isinstance(encoder, Encoder)
    rgb = random_image(60, 80)
    camera = Camera(80, 60, 70.0, 70.0, 39.5, 29.5)
    depth = np.ones((60, 80), np.float32)
    frame = make_frame(stamp_s=0.0, camera=camera, T_world_camera=np.eye(4), rgb=rgb, depth=depth)
    target = encoder.encode_frame(frame)
    assert target.index.shape == (4, 5)
    assert target.values.shape == (20, encoder.dim) and target.values.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(target.values, axis=1), 1, atol=1e-5)
    features = encoder.encode_image(rgb)
    np.testing.assert_allclose(target.values[7], features[1, 2] / np.linalg.norm(features[1, 2]), atol=1e-5)
    assert target.window.pitch_px == pytest.approx(math.sqrt(15 * 16) / 4)


def test_default_window_has_a_deviation_of_one_patch():
    window = default_window(20.0)
    offsets = (np.arange(len(window.kernel)) - len(window.kernel) // 2) * window.pitch_px
    deviation = math.sqrt(float((window.kernel.sum(0) * offsets**2).sum()))
    assert deviation == pytest.approx(20, rel=0.06)


def test_text_equals_the_models_own_and_templates_average():
    encoder = OpenClipEncoder("odd", "", device="cpu")
    texts = ["a mug", "the red chair by the window", ""]
    with torch.inference_mode():
        own = encoder.model.encode_text(open_clip.get_tokenizer("odd")(texts)).numpy()
    np.testing.assert_allclose(encoder.encode_text(texts), own / np.linalg.norm(own, axis=1, keepdims=True), atol=1e-6)
    assert encoder.encode_text([]).shape == (0, 20)

    both = OpenClipEncoder("odd", "", device="cpu", templates=("{}", "a photo of a {}."))
    mean = encoder.encode_text(["mug"])[0] + encoder.encode_text(["a photo of a mug."])[0]
    np.testing.assert_allclose(both.encode_text(["mug"])[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_half_precision_stays_near():
    for name in ("odd", "odd-scaled", "odd-custom"):
        full = load_model(name, "", torch.device("cpu"))[0].visual
        half = open_clip.create_model(name, precision="bf16").eval()
        half.visual.load_state_dict(full.state_dict())
        image = torch.randn(1, 3, 35, 49, generator=torch.Generator().manual_seed(0))
        if name != "odd":  # open_clip's own blocks mix precisions here; only the last one is this package's
            x = torch.randn(1, 11, 24).bfloat16()
            block = half.visual.transformer.resblocks[-1]
            for sigma in (None, 5.0):
                assert torch.isfinite(dense_vit.last_block(block, x, (2, 5), sigma)).all()
            continue
        with torch.inference_mode():
            for sigma in (None, 5.0):
                exact = dense_vit.dense_features(full, image, sigma)
                rounded = dense_vit.dense_features(half.visual, image.bfloat16(), sigma)
                assert torch.cosine_similarity(exact, rounded.float(), dim=-1).min() > 0.99


def test_weights_load_from_a_local_file_and_make_the_cache_key(tmp_path):
    model = shaken(open_clip.create_model("odd"))
    file = tmp_path / "weights.pt"
    torch.save(model.state_dict(), file)
    first = OpenClipEncoder("odd", str(file), device="cpu")
    again = OpenClipEncoder("odd", str(file), device="cpu")
    rgb = random_image(40, 50)
    with torch.inference_mode():
        own = dense_vit.dense_features(model.eval().visual, first.images(rgb))[0].numpy()
    np.testing.assert_array_equal(first.encode_image(rgb), own)
    random = OpenClipEncoder("odd", "", device="cpu")
    near = OpenClipEncoder("odd", str(file), device="cpu", neighbourhood=True)
    large = OpenClipEncoder("odd", str(file), device="cpu", shorter_side_px=56)
    assert first.cache_key == again.cache_key
    assert len({first.cache_key, random.cache_key, near.cache_key, large.cache_key}) == 4


def test_random_initialisation_is_repeatable_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    rgb = random_image(30, 30)
    first, second = (OpenClipEncoder("odd", "", device="cpu").encode_image(rgb) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


def test_a_foreign_or_torn_file_is_refused(tmp_path):
    torn = tmp_path / "torn.pt"
    torn.write_bytes(b"PK\x03\x04 torn")
    foreign = tmp_path / "foreign.pt"
    torch.save(open_clip.create_model("odd-scaled").state_dict(), foreign)
    for file in (torn, foreign):
        with pytest.raises(ConfigError, match="complete and belongs to this architecture") as caught:
            OpenClipEncoder("odd", str(file), device="cpu")
        assert file.name in str(caught.value)


def test_missing_weights_name_the_file_the_place_and_the_alternative(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "nothing_here"))
    with pytest.raises(ConfigError) as caught:
        create(EncoderConfig(name="openclip", device="cpu"))
    message = str(caught.value)
    for part in (
        "laion2b_s34b_b88k", "hf download laion/CLIP-ViT-B-16-laion2B-s34B-b88K open_clip_model.safetensors",
        "nothing_here", "--encoder.pretrained /path/to/open_clip_model.safetensors", "--encoder.name tiny",
    ):
        assert part in message


def test_missing_weights_from_a_plain_address(monkeypatch):
    import semfield_ros.encoders.openclip as module

    def offline(source):
        raise OSError("no route to host")

    monkeypatch.setattr(module, "get_pretrained_cfg", lambda model, tag: {"url": "https://host/some/vit_b_32.pt"})
    monkeypatch.setattr(module, "download_pretrained", offline)
    with pytest.raises(ConfigError, match=r"no route to host.*https://host/some/vit_b_32\.pt.*--encoder\.pretrained"):
        load_model("ViT-B-32", "some", torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "odd-residual", "pretrained": "", "neighbourhood": True}, "is for vision transformers"),
        ({"model": "ViT-B-16-SigLIP"}, "timm's vit_base_patch16_siglip_224.*ViT-B-16"),
        ({"model": "coca_ViT-B-32"}, "learnt queries"),
        ({"model": "ViT-B16"}, "not an open_clip architecture; near: ViT-B-16"),
        ({"model": "ViT-B-16", "pretrained": "nope"}, "neither a file here nor a tag.*laion2b_s34b_b88k"),
        ({"model": "ViT-B-16", "pretrained": "/not/there.pt"}, "neither a file here"),
        ({"model": "odd", "pretrained": "", "device": "tpu"}, "allowed: auto, cpu, cuda"),
        ({"model": "odd", "pretrained": "", "shorter_side_px": 3}, "at least one patch, 7"),
        ({"model": "odd", "pretrained": "", "templates": ("a photo",)}, "must contain"),
    ],
)
def test_unusable_settings_are_refused_with_the_remedy(options, message):
    with pytest.raises(ConfigError, match=message):
        OpenClipEncoder(**{"device": "cpu", **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_refused():
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        OpenClipEncoder("odd", "", device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu():
    rgb = random_image(240, 320)
    for neighbourhood in (False, True):
        cpu, gpu = (OpenClipEncoder("ViT-B-32", "", neighbourhood=neighbourhood, device=d) for d in ("cpu", "cuda"))
        a, b = cpu.encode_image(rgb), gpu.encode_image(rgb)
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        assert cosine.min() > 0.995
        assert (cpu.encode_text(["a mug"]) * gpu.encode_text(["a mug"])).sum() > 0.995
