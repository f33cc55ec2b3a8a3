"""`openclip`: dense language features from any open_clip vision transformer or ResNet.

How: `dense_vit` and `dense_resnet`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transformer import VisionTransformer

from ..config import EncoderConfig
from ..errors import ConfigError
from ..frame import Frame
from . import dense_resnet, dense_vit
from .base import Calibration, Target, Window

TEXT_BATCH = 256
CROP_BATCH = 64


def create(config: EncoderConfig) -> OpenClipEncoder:
    """From `config.model`, `pretrained`, `neighbourhood`, `device`. ConfigError where they cannot be used."""
    return OpenClipEncoder(
        config.model, config.pretrained, neighbourhood=config.neighbourhood, device=config.device
    )


def default_window(patch_px: float) -> Window:
    """The receptive window assumed for a patch `patch_px` frame pixels wide: a Gaussian of sigma one patch.

    A patch token sees the whole image through attention but reacts mostly to itself and its neighbours. To be replaced
    by a measured one where there is one.
    """
    return Window.gaussian(sigma_px=patch_px, pitch_px=patch_px / 4)


def resolve_device(device: str) -> torch.device:
    """'auto' is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu" or device.partition(":")[0] == "cuda":
        if device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(f"device is {device!r}, but torch sees no CUDA device; use 'auto' or 'cpu'")
        return torch.device(device)
    raise ConfigError(f"device is {device!r}; allowed: auto, cpu, cuda")


def _refuse_unsupported(model: str, vision: dict[str, Any]) -> None:
    """Raise for architectures whose patches have no value path into the text space, before anything is downloaded."""
    advice = "use an open_clip vision transformer such as ViT-B-16, ViT-L-14 or ViT-H-14, or a ResNet such as RN50"
    if vision.get("timm_model_name"):
        why = f"its image tower is timm's {vision['timm_model_name']}, which open_clip does not build itself"
    elif vision.get("attentional_pool"):
        why = "it pools patches by learnt queries (CoCa), so single patches have no path into the text space"
    else:
        return
    raise ConfigError(f"model {model!r} gives no dense features here: {why}; {advice}")


def _missing_weights(model: str, tag: str, source: dict[str, Any], error: Exception) -> ConfigError:
    """What to download, where to place it, and how to name a file instead."""
    repository, _, file = str(source.get("hf_hub") or "").rpartition("/")
    if repository:
        from huggingface_hub import constants

        file = file or "open_clip_model.safetensors"
        place = (
            f"where there is a connection run `hf download {repository} {file}`, then either copy "
            f"models--{repository.replace('/', '--')} into {constants.HF_HUB_CACHE} here"
        )
    else:
        url = str(source.get("url", ""))
        file = url.rpartition("/")[2]
        cache = Path("~/.cache/clip").expanduser()
        place = f"where there is a connection download {url}, then either place {file} in {cache}"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ConfigError(
        f"weights {tag!r} of {model} are not on this machine and could not be downloaded ({reason}). To fix: {place}, "
        f"or place the file anywhere and pass `--encoder.pretrained /path/to/{file}`. Without weights use "
        "`--encoder.name tiny`"
    )


def load_model(model: str, pretrained: str, device: torch.device) -> tuple[Any, Any]:
    """The model, frozen and in evaluation mode, and its tokenizer, from open_clip's own loader.

    Args:
        model: an open_clip architecture. pretrained: a tag of open_clip, a local weights file, or '' for
            initialisation from a fixed seed.

    Raises:
        ConfigError: unknown or unsupported architecture, unknown tag, missing or foreign weights.
    """
    architecture = open_clip.get_model_config(model)
    if architecture is None:
        near = get_close_matches(model, open_clip.list_models(), n=4, cutoff=0.4)
        raise ConfigError(f"model {model!r} is not an open_clip architecture; near: {', '.join(near) or 'none'}")
    _refuse_unsupported(model, architecture["vision_cfg"])
    path = Path(pretrained).expanduser() if pretrained else None
    source = get_pretrained_cfg(model, pretrained) if pretrained else {}
    if path is not None and not source and not path.is_file():
        tags = ", ".join(list_pretrained_tags_by_model(model)) or "none"
        raise ConfigError(
            f"pretrained is {pretrained!r}: neither a file here nor a tag of {model}. Its tags: {tags}; "
            "or give the path of a weights file, or '' for random initialisation"
        )
    if source:
        try:
            download_pretrained(source)
        except Exception as error:  # the hub, urllib and the file system each raise their own family
            raise _missing_weights(model, pretrained, source, error) from error
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loaded = open_clip.create_model(
                model,
                pretrained=pretrained if source else None if path is None else str(path),
                precision="fp16" if device.type == "cuda" else "fp32",
                device=device,
                force_quick_gelu=bool(source.get("quick_gelu", False)),
            )
        tokenizer = open_clip.get_tokenizer(model)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"could not build {model} with weights {pretrained or 'random'!r}: {' '.join(lines[:2])}. "
            "Check that the file is complete and belongs to this architecture"
        ) from error
    if not isinstance(loaded.visual, (VisionTransformer, ModifiedResNet)):
        tower = type(loaded.visual).__name__
        known = "VisionTransformer or ModifiedResNet"
        raise ConfigError(f"model {model!r} has a {tower} as image tower; expected a {known}")
    return loaded.eval().requires_grad_(False), tokenizer


class OpenClipEncoder:
    """One feature per patch of the whole image; text in the same space.

    fp16 on CUDA, fp32 on the CPU. Thread-safe: nothing changes after construction.

    Args:
        model, pretrained, device: as `load_model`, `resolve_device`.
        neighbourhood: NACLIP-style attention in the last block instead of MaskCLIP's value path.
        shorter_side_px: the image is scaled so that its shorter side is about this (whole patches, never cropped);
            None = the size the model was trained at. Larger is sharper and quadratically slower.
        templates: each text is the normalised mean over these, `{}` standing for the text.
    """

    name = "openclip"
    has_text = True
    calibration = Calibration(no_match=0.5, high=0.55, low=0.54)

    def __init__(
        self,
        model: str = "ViT-B-16",
        pretrained: str = "laion2b_s34b_b88k",
        *,
        neighbourhood: bool = False,
        device: str = "auto",
        shorter_side_px: int | None = None,
        templates: Sequence[str] = ("{}",),
    ):
        if not templates or any("{}" not in template for template in templates):
            raise ConfigError(f"templates are {list(templates)}; each must contain '{{}}', e.g. 'a photo of a {{}}'")
        self.device = resolve_device(device)
        self.model, self._tokenize = load_model(model, pretrained, self.device)
        visual = self.model.visual
        self.dim = int(visual.output_dim)
        self.residual = isinstance(visual, ModifiedResNet)
        self.patch: tuple[int, int] = (dense_resnet.STRIDE_PX,) * 2 if self.residual else tuple(visual.patch_size)
        trained_px = visual.image_size if isinstance(visual.image_size, int) else min(visual.image_size)
        self.shorter_side_px = trained_px if shorter_side_px is None else shorter_side_px
        if self.residual and neighbourhood:
            raise ConfigError(f"neighbourhood attention is for vision transformers; {model!r} is a ResNet")
        if self.shorter_side_px < max(self.patch):
            raise ConfigError(f"shorter_side_px is {shorter_side_px}; allowed: at least one patch, {max(self.patch)}")
        self.templates = tuple(templates)
        self.sigma = dense_vit.NEIGHBOURHOOD_SIGMA if neighbourhood else None
        self._dtype = visual.conv1.weight.dtype
        self._mean = torch.tensor(visual.image_mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(visual.image_std, device=self.device).view(3, 1, 1)
        self._options = (model, self.sigma, self.shorter_side_px, self.templates, str(self._dtype))

    @cached_property
    def cache_key(self) -> str:
        """Hash of the weights themselves, the options, and the versions of torch and open_clip."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self._options, version("open_clip_torch"), torch.__version__)).encode())
        for key, tensor in self.model.state_dict().items():
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def images(self, rgb: np.ndarray) -> torch.Tensor:
        """The network's input [1, 3, H', W'] for an image [H, W, 3] uint8: whole, near its own aspect, normalised."""
        grid = dense_vit.patch_grid(rgb.shape[1], rgb.shape[0], self.patch, self.shorter_side_px)
        size = (grid[0] * self.patch[0], grid[1] * self.patch[1])
        image = torch.tensor(rgb, device=self.device).permute(2, 0, 1).float()[None] / 255
        if image.shape[2:] != size:
            image = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return ((image - self._mean) / self._std).to(self._dtype)

    def encode_image(self, rgb: np.ndarray) -> np.ndarray:
        """Patch features [rows, columns, D] float32 of an image [H, W, 3] uint8; not normalised."""
        with torch.inference_mode():
            visual, images = self.model.visual, self.images(rgb)
            if self.residual:
                return dense_resnet.dense_features(visual, images)[0].float().cpu().numpy()
            return dense_vit.dense_features(visual, images, self.sigma)[0].float().cpu().numpy()

    def encode_crops(self, crops: np.ndarray, frame_width_px: int) -> np.ndarray:
        """Unit features [N, D] float32 of crops [N, h, w, 3] uint8, stretched to the size the model was trained at."""
        size = self.model.visual.image_size
        parts = []
        for start in range(0, len(crops), CROP_BATCH):
            some = torch.tensor(crops[start : start + CROP_BATCH], device=self.device)
            batch = some.permute(0, 3, 1, 2).float() / 255
            batch = F.interpolate(batch, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
            with torch.inference_mode():
                images = ((batch - self._mean) / self._std).to(self._dtype)
                parts.append(self.model.encode_image(images, normalize=True).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def encode_frame(self, frame: Frame) -> Target:
        """One measurement per patch."""
        features = self.encode_image(frame.rgb)
        height, width = frame.rgb.shape[:2]
        patch_px = float(np.sqrt(height / features.shape[0] * width / features.shape[1]))
        return Target.dense(features, default_window(patch_px))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [N, D] float32."""
        prompts = [template.format(text) for text in texts for template in self.templates]
        if not prompts:
            return np.zeros((0, self.dim), np.float32)
        with torch.inference_mode():
            parts = [
                self.model.encode_text(self._tokenize(prompts[i : i + TEXT_BATCH]).to(self.device), normalize=True)
                for i in range(0, len(prompts), TEXT_BATCH)
            ]
            mean = torch.cat(parts).float().reshape(len(texts), len(self.templates), -1).mean(dim=1)
            return F.normalize(mean, dim=-1).cpu().numpy()
