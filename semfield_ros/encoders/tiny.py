"""The embedded encoder: a small open_clip model that knows the simulator's world, and nothing else.

Its features are open_clip's own: the position-wise projection of the last feature map, whose mean is `encode_image`.
Weights, configuration and calibration are shipped in `tiny_model/`; docs/tiny_encoder.md tells how they were made.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..config import EncoderConfig
from ..errors import ConfigError
from ..frame import Frame
from .base import Calibration, Target, Window

if TYPE_CHECKING:
    import torch

MODEL_NAME = "semfield-tiny"
MODEL_FOLDER = Path(__file__).parent / "tiny_model"
WIDTH_PX = 320
"""Frames are seen at this width: the scale at which the world was learnt."""
CELL_PX = 8
CROP_PIXELS = 1 << 17
"""Pixels of crops that go through the network at once."""


def new_model() -> Any:
    """An untrained open_clip model of the shipped configuration."""
    import open_clip

    from . import tiny_tower  # noqa: F401  registers the image tower with timm

    if MODEL_NAME not in open_clip.list_models():
        open_clip.add_model_config(MODEL_FOLDER / f"{MODEL_NAME}.json")
    root = logging.getLogger()
    root.addFilter(_not_about_weights)
    try:
        return open_clip.create_model(MODEL_NAME, pretrained=None, precision="fp32", device="cpu")
    finally:
        root.removeFilter(_not_about_weights)


def _not_about_weights(record: logging.LogRecord) -> bool:
    """open_clip warns that a model has no weights, which it is about to get."""
    return "No pretrained weights" not in record.getMessage()


def new_tokenizer() -> Any:
    """CLIP's BPE tokenizer at the model's context length."""
    import open_clip

    length = json.loads((MODEL_FOLDER / f"{MODEL_NAME}.json").read_text())["text_cfg"]["context_length"]
    return open_clip.SimpleTokenizer(context_length=length)


def load_weights(model: Any, path: Path) -> Any:
    """Fill `model` from a safetensors file; every tensor must be there with its shape.

    Raises:
        ConfigError: missing, torn or foreign file.
    """
    from safetensors.torch import load_file

    remedy = "reinstall semfield_ros, or make the weights with training/tiny_encoder.py"
    if not path.is_file():
        raise ConfigError(f"weights of the tiny encoder are not at {path}; {remedy}")
    try:
        state = load_file(str(path))
    except Exception as error:
        raise ConfigError(f"weights of the tiny encoder at {path} cannot be read ({error}); {remedy}") from error
    try:
        model.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        )
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise ConfigError(f"weights at {path} are not those of the tiny encoder ({first}); {remedy}") from error
    return model.eval()


def normalised_images(model: Any, rgb: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Images [B, H, W, 3] uint8 (or float, 0 to 255) as the model's input [B, 3, H, W] float32."""
    import torch

    # images off a wire are read-only, which torch does not like to share
    rgb = rgb.astype(np.float32) if isinstance(rgb, np.ndarray) else rgb.float()
    images = torch.as_tensor(rgb).permute(0, 3, 1, 2) / 255
    mean = torch.tensor(model.visual.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(model.visual.image_std).view(1, 3, 1, 1)
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def dense_features(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Features of every position, not normalised, in the text space: [B, 3, H, W] -> [B, h, w, D].

    Their mean over positions is `model.encode_image(images)`: mean and linear projection commute.
    """
    maps = model.visual.trunk.forward_features(images)
    return model.visual.head(maps.permute(0, 2, 3, 1))


class TinyEncoder:
    """See `encoders.base.Encoder`."""

    name = "tiny"
    has_text = True

    def __init__(self, folder: Path = MODEL_FOLDER, device: str = "auto"):
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        weights, meta_path = folder / "weights.safetensors", folder / "meta.json"
        self._device = torch.device(device)
        self._model = load_weights(new_model(), weights).to(self._device)
        try:
            meta = json.loads(meta_path.read_text())
            self.calibration = Calibration(**{k: float(v) for k, v in meta["map_thresholds"].items()})
            self._window = Window(np.asarray(meta["window"], np.float32), float(meta["window_pitch_px"]))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{meta_path} is missing or torn ({error}); reinstall semfield_ros, "
                "or run `training/tiny_encoder.py window` and `evaluate`"
            ) from error
        self._tokenizer = new_tokenizer()
        self.dim = int(self._model.visual.head.proj.out_features)
        digest = hashlib.sha256(weights.read_bytes() + meta_path.read_bytes())
        self.cache_key = f"tiny-{WIDTH_PX}-{digest.hexdigest()[:16]}"
        self._encode_word = lru_cache(maxsize=4096)(self._encode_one)

    @property
    def model(self) -> Any:
        """The open_clip model."""
        return self._model

    def images(self, rgb: np.ndarray) -> torch.Tensor:
        """The network's input [1, 3, H', 320] for an image [H, W, 3] uint8."""
        height, width = rgb.shape[:2]
        if width != WIDTH_PX:
            size = (WIDTH_PX, max(8, round(height * WIDTH_PX / width)))
            rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if width > WIDTH_PX else cv2.INTER_LINEAR)
        return normalised_images(self._model, rgb[None]).to(self._device)

    def encode_frame(self, frame: Frame) -> Target:
        """Features on a grid of 8 px cells of the frame at 320 px width."""
        import torch

        width = frame.rgb.shape[1]
        with torch.inference_mode():
            features = dense_features(self._model, self.images(frame.rgb))[0].float().cpu().numpy()
        return Target.dense(features, Window(self._window.kernel, self._window.pitch_px * width / WIDTH_PX))

    def encode_crops(self, crops: np.ndarray, frame_width_px: int) -> np.ndarray:
        """Unit features [N, D] float32 of crops [N, h, w, 3] uint8 of one size, seen as in a frame 320 px wide.

        Enlarged they would be of a scale that training never met.
        """
        import torch

        edges = (max(2 * CELL_PX, CELL_PX * round(n * WIDTH_PX / frame_width_px / CELL_PX)) for n in crops.shape[1:3])
        height, width = edges
        parts = []
        batch = max(1, CROP_PIXELS // (height * width))
        for start in range(0, len(crops), batch):
            rgb = torch.tensor(crops[start : start + batch]).permute(0, 3, 1, 2).float()
            if rgb.shape[2:] != (height, width):
                rgb = torch.nn.functional.interpolate(
                    rgb, size=(height, width), mode="bilinear", antialias=True, align_corners=False
                )
            with torch.inference_mode():
                images = normalised_images(self._model, rgb.permute(0, 2, 3, 1)).to(self._device)
                parts.append(self._model.encode_image(images, normalize=True).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit text features [N, D] float32."""
        if isinstance(texts, str):
            raise ConfigError(f"encode_text takes a list of texts, got the string {texts!r}; write [{texts!r}]")
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return np.stack([self._encode_word(text) for text in texts])

    def _encode_one(self, text: str) -> np.ndarray:
        import torch

        with torch.inference_mode():
            features = self._model.encode_text(self._tokenizer([text]).to(self._device), normalize=True)
        return features[0].float().cpu().numpy()


def create(config: EncoderConfig) -> TinyEncoder:
    """From configuration; only `device` matters here."""
    return TinyEncoder(device=config.device)
