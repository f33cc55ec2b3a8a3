"""`dino`: self-supervised features that know what belongs together, without any words (Caron et al., ICCV 2021).

The keys of one attention block of a vision transformer of timm: Amir et al., "Deep ViT Features as Dense Visual
Descriptors" (2021), found the keys of the last block of ViT-S/8 to part objects best; LERF regularises its language
field with them, F3RM distils them with patches every 4 px. There is no text space: they group and regularise, and must
never be compared with words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F

from ..config import DinoConfig, EncoderConfig
from ..errors import ConfigError
from ..frame import Frame
from .base import Calibration, Target, Window
from .dense_vit import interpolated_positions, patch_grid


def load_model(model: str, weights: str) -> Any:
    """A frozen vision transformer of timm in evaluation mode; see `DinoConfig` for the arguments.

    Raises:
        ConfigError: no such model, one without the parts that are read, missing or foreign weights.
    """
    if not timm.is_model(model):
        near = timm.list_models(f"*{model.split('.')[0].split('_patch')[0]}*")[:4]
        raise ConfigError(f"encoder.dino.model {model!r} is not known to timm; near: {', '.join(near) or 'none'}")
    path = Path(weights).expanduser() if weights not in ("", "default") else None
    if path is not None and not path.is_file():
        raise ConfigError(f"encoder.dino.weights is {weights!r}: no file; allowed: a file, 'default', or '' for random")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loaded = timm.create_model(
                model, pretrained=weights == "default", num_classes=0,
                checkpoint_path=str(path) if path else "",
            )  # fmt: skip
    except Exception as error:  # the hub, torch and the file system each raise their own family
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        repository = f"timm/{model}"
        remedy = (
            f"where there is a connection run `hf download {repository}` and give its model.safetensors as "
            "`--encoder.dino.weights /path/to/model.safetensors`"
        )
        raise ConfigError(f"weights {weights!r} of {model} cannot be had ({reason}); {remedy}") from error
    parts = all(hasattr(loaded, name) for name in ("patch_embed", "cls_token", "pos_embed", "blocks"))
    if not parts or loaded.pos_embed is None or getattr(loaded, "num_prefix_tokens", 0) != 1:
        raise ConfigError(
            f"encoder.dino.model {model!r} is no vision transformer with one class token and learnt positions; use "
            "e.g. vit_small_patch8_224.dino or vit_small_patch14_dinov2"
        )
    return loaded.eval().requires_grad_(False)


def attention_keys(model: Any, images: torch.Tensor, layer: int, stride: int) -> torch.Tensor:
    """Keys of all heads of block `layer`, patches only: [B, H / stride, W / stride, C].

    With a stride below the patch's size patches overlap. The border is repeated so that they stay centred on a regular
    grid over the whole image; position embeddings are interpolated to it.

    Args:
        images: [B, 3, H, W], normalised; H and W multiples of the stride.
    """
    projection = model.patch_embed.proj
    patch = projection.kernel_size[0]
    before = (patch - stride) // 2
    after = patch - stride - before
    images = F.pad(images, (before, after, before, after), mode="replicate")
    x = F.conv2d(images, projection.weight, projection.bias, stride=stride)
    grid = (x.shape[2], x.shape[3])
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    native = model.patch_embed.grid_size
    x = model.norm_pre(x + interpolated_positions(model.pos_embed[0], tuple(native), grid))
    for block in model.blocks[:layer]:
        x = block(x)
    block = model.blocks[layer]
    attention = block.attn
    batch, length, _ = x.shape
    qkv = attention.qkv(block.norm1(x)).reshape(batch, length, 3, attention.num_heads, -1)
    keys = attention.k_norm(qkv[:, 1:, 1])
    return keys.reshape(batch, *grid, -1)


class DinoEncoder:
    """One feature per patch, all blocks below `config.layer` once. See `encoders.base.Encoder`."""

    name = "dino"
    has_text = False
    calibration = Calibration()

    def __init__(self, config: DinoConfig | None = None, device: str = "auto"):
        self.config = config = config or DinoConfig()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_model(config.model, config.weights).to(device)
        depth = len(self._model.blocks)
        if config.layer >= depth:
            raise ConfigError(f"encoder.dino.layer is {config.layer}; {config.model} has the blocks 0 to {depth - 1}")
        self.patch_px = int(self._model.patch_embed.proj.kernel_size[0])
        if config.stride_px > self.patch_px:
            patch = f"1 to the patch's {self.patch_px}"
            raise ConfigError(f"encoder.dino.stride_px is {config.stride_px}; allowed: {patch}")
        self.dim = int(self._model.embed_dim)
        mean, std = (self._model.default_cfg[k] for k in ("mean", "std"))
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)

    @cached_property
    def cache_key(self) -> str:
        """Hash of the weights, the settings, and the versions of torch and timm."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self.config, version("timm"), torch.__version__)).encode())
        for key, tensor in self._model.state_dict().items():
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return f"dino-{digest.hexdigest()}"

    def encode_image(self, rgb: np.ndarray) -> np.ndarray:
        """Keys [rows, columns, D] float32 of an image [H, W, 3] uint8; not normalised."""
        unit = (self.patch_px, self.patch_px)
        grid = patch_grid(rgb.shape[1], rgb.shape[0], unit, self.config.shorter_side_px)
        stride = self.config.stride_px
        size = tuple(max(stride, round(n * self.patch_px / stride) * stride) for n in grid)
        image = torch.tensor(rgb, device=self._mean.device).permute(2, 0, 1).float()[None] / 255
        if image.shape[2:] != size:
            image = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        with torch.inference_mode():
            keys = attention_keys(self._model, (image - self._mean) / self._std, self.config.layer, stride)
        return keys[0].float().cpu().numpy()

    def encode_frame(self, frame: Frame) -> Target:
        """One measurement per patch, through a window about as wide as the patch and its neighbours."""
        features = self.encode_image(frame.rgb)
        height, width = frame.rgb.shape[:2]
        cell_px = float(np.sqrt(height / features.shape[0] * width / features.shape[1]))
        patch_px = cell_px * self.patch_px / self.config.stride_px
        return Target.dense(features, Window.gaussian(patch_px / 2, patch_px / 4))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """There is no text space."""
        raise ConfigError("encoder dino has no text space; ask words of another encoder, e.g. tiny or openclip")


def create(config: EncoderConfig) -> DinoEncoder:
    """From `config.dino` and `config.device`; a model that is named as a teacher's (dino:MODEL:WEIGHTS) goes before."""
    dino = config.dino
    if config.model not in ("", EncoderConfig().model):
        dino = replace(dino, model=config.model, weights=config.pretrained or "default")
    return DinoEncoder(dino, config.device)
