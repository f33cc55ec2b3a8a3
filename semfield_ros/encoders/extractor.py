"""`extractor`: the last feature map of any image model of timm or open_clip, by name: features of any length, no words.

What a backbone's last stage says of each position, whatever its architecture: convolutional, transformer or mixed. It
is a space of its own (open_clip models too: only `openclip` maps patches into the text space), so it teaches beside an
encoder with words, or serves tasks and clicks, which need none. Models of other libraries: `FunctionEncoder`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..config import EncoderConfig
from ..errors import ConfigError
from ..frame import Frame
from .base import Calibration, Target, Window

DEFAULT_MODEL = "timm/vit_small_patch14_dinov2.lvd142m"
WEIGHTS = ("", "default", "random")
SHORTER_SIDE_PX = 224


def create(config: EncoderConfig) -> ExtractorEncoder:
    """From `config.model` (timm/NAME or open_clip/NAME), `pretrained` ('default', 'random', a tag or a file)."""
    usual = EncoderConfig()
    model = config.model if config.model not in ("", usual.model) else DEFAULT_MODEL
    weights = config.pretrained if config.pretrained != usual.pretrained else "default"
    return ExtractorEncoder(model, weights or "default", device=config.device)


def load_timm(name: str, weights: str) -> tuple[Any, Callable[[torch.Tensor], torch.Tensor], int]:
    """A frozen model of timm, what gives its last map [B, C, h, w] of images, and its fixed image size (0 = any)."""
    import timm

    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=4, cutoff=0.4)
        raise ConfigError(f"model {name!r} is not known to timm; near: {', '.join(near) or 'none'}")
    file = weights if weights not in WEIGHTS else ""
    if file and not Path(file).expanduser().is_file():
        raise ConfigError(f"pretrained is {weights!r}: no file; allowed: a file, 'default' or 'random'")
    options: dict[str, Any] = {
        "pretrained": weights in ("", "default"), "num_classes": 0,
        "checkpoint_path": str(Path(file).expanduser()) if file else "",
    }  # fmt: skip

    def made(**more: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return timm.create_model(name, **options, **more)

    try:
        try:
            model = made(dynamic_img_size=True)
        except TypeError:  # convolutional, or a transformer of one size
            model = made()
    except Exception as error:  # the hub, torch and the file system each raise their own family
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"weights {weights or 'default'!r} of timm's {name} cannot be had ({reason}); where there is a connection "
            f"run `hf download timm/{name}` and give its file as --encoder.pretrained, or use 'random'"
        ) from error
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"timm's {name} does not show its feature maps (no forward_intermediates); use another model")
    fixed = model.default_cfg.get("fixed_input_size") and not getattr(
        getattr(model, "patch_embed", None), "dynamic_img_pad", False
    )
    dynamic = getattr(model, "dynamic_img_size", False)
    size = int(model.default_cfg["input_size"][-1]) if fixed and not dynamic else 0

    def last_map(images: torch.Tensor) -> torch.Tensor:
        maps = model.forward_intermediates(images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)
        return maps[-1]

    model.image_mean, model.image_std = model.default_cfg["mean"], model.default_cfg["std"]
    return model, last_map, size


def load_open_clip(name: str, weights: str) -> tuple[Any, Callable[[torch.Tensor], torch.Tensor], int]:
    """The image tower of an open_clip model, as `load_timm`; transformers take one image size only."""
    import open_clip

    if open_clip.get_model_config(name) is None:
        near = get_close_matches(name, open_clip.list_models(), n=4, cutoff=0.4)
        raise ConfigError(f"model {name!r} is not an open_clip architecture; near: {', '.join(near) or 'none'}")
    if weights in ("", "default"):
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ConfigError(
            f"open_clip's {name} needs --encoder.pretrained: one of {', '.join(tags) or 'none'}, a file, or 'random'"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            visual = open_clip.create_model(name, pretrained=None if weights == "random" else weights).visual
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"could not build open_clip's {name} with weights {weights!r}: {reason}") from error
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]

    def last_map(images: torch.Tensor) -> torch.Tensor:
        maps = visual.forward_intermediates(images, indices=1, output_fmt="NCHW", intermediates_only=True)
        return maps["image_intermediates"][-1]

    return visual, last_map, int(size)


LIBRARIES = {"timm": load_timm, "open_clip": load_open_clip}


class Wordless:
    """What encoders without a text space have in common."""

    has_text = False
    calibration = Calibration()
    name = "extractor"

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """There is no text space: ConfigError."""
        raise ConfigError(f"encoder {self.name} has no text space; ask words of another encoder, e.g. openclip or tiny")


class ExtractorEncoder(Wordless):
    """One feature per cell of a model's last map. See `encoders.base.Encoder`.

    Args:
        model: timm/NAME or open_clip/NAME. weights: 'default' (timm's own), 'random' (a fixed seed), a tag, or a file.
        shorter_side_px: images are scaled to this, whole, where the model takes any size; else to its own.

    Raises:
        ConfigError: unknown library or model, missing weights, or a model without feature maps.
    """

    def __init__(
        self, model: str = DEFAULT_MODEL, weights: str = "default", *, device: str = "auto",
        shorter_side_px: int = SHORTER_SIDE_PX,
    ):  # fmt: skip
        library, _, name = model.partition("/")
        if library not in LIBRARIES or not name:
            allowed = " or ".join(f"{known}/NAME" for known in LIBRARIES)
            raise ConfigError(f"model is {model!r}; allowed: {allowed}, e.g. {DEFAULT_MODEL}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        network, self._last_map, self._size = LIBRARIES[library](name, weights)
        self.model = network.eval().requires_grad_(False).to(device)
        self._mean, self._std = (
            torch.tensor(value, device=device).view(3, 1, 1) for value in (network.image_mean, network.image_std)
        )
        self.shorter_side_px = shorter_side_px
        self._options = (model, shorter_side_px, torch.__version__)
        # asked, not looked up: every architecture calls it something else
        probe = self._features(np.zeros((256, 256, 3), np.uint8))
        self.dim = int(probe.shape[0])
        self._stride = max(1, round(self._input_size(256, 256)[0] / probe.shape[1]))

    @cached_property
    def cache_key(self) -> str:
        """Hash of the weights and settings."""
        digest = hashlib.blake2b(repr(self._options).encode(), digest_size=16)
        for key, tensor in self.model.state_dict().items():
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return f"extractor-{digest.hexdigest()}"

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        if self._size:
            return self._size, self._size
        multiple = getattr(self, "_stride", 1)
        patch = getattr(getattr(self.model, "patch_embed", None), "patch_size", None)
        multiple = int(patch[0]) if patch is not None else max(multiple, 32)
        scale = self.shorter_side_px / min(height, width)
        rows, columns = (max(1, round(n * scale / multiple)) * multiple for n in (height, width))
        return rows, columns

    def _features(self, rgb: np.ndarray) -> torch.Tensor:
        size = self._input_size(*rgb.shape[:2])
        image = torch.tensor(rgb, device=self._mean.device).permute(2, 0, 1).float()[None] / 255
        if image.shape[2:] != size:
            image = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        with torch.inference_mode():
            return self._last_map((image - self._mean) / self._std)[0].float()

    def encode_image(self, rgb: np.ndarray) -> np.ndarray:
        """Features [rows, columns, D] float32 of an image [H, W, 3] uint8; not normalised."""
        return self._features(rgb).permute(1, 2, 0).cpu().numpy()

    def encode_frame(self, frame: Frame) -> Target:
        """One measurement per cell, through a Gaussian about a cell wide."""
        return dense_target(self.encode_image(frame.rgb), frame)


class FunctionEncoder(Wordless):
    """Any function as an encoder: an image [H, W, 3] uint8 to features [h, w, dim] on a grid over the whole of it.

    Args:
        settings: all that the features depend on, for caches and maps.
    """

    def __init__(self, name: str, dim: int, function: Callable[[np.ndarray], np.ndarray], settings: str):
        if dim < 1 or not name:
            raise ConfigError(f"encoder {name!r} has {dim} dimensions; allowed: a name and at least one")
        self.name, self.dim, self._function = name, dim, function
        self.cache_key = f"{name}-{dim}-{settings}"

    def encode_frame(self, frame: Frame) -> Target:
        """One measurement per cell; ConfigError where the function gives another shape."""
        features = np.asarray(self._function(frame.rgb))
        if features.ndim != 3 or features.shape[2] != self.dim:
            raise ConfigError(
                f"encoder {self.name!r} gave features of shape {features.shape}; expected [h, w, {self.dim}]"
            )
        return dense_target(features, frame)


def dense_target(features: np.ndarray, frame: Frame) -> Target:
    """Features [h, w, D] over a frame, each seen through a Gaussian of sigma one cell."""
    height, width = frame.rgb.shape[:2]
    cell_px = float(np.sqrt(height / features.shape[0] * width / features.shape[1]))
    return Target.dense(features, Window.gaussian(cell_px, cell_px / 4))
