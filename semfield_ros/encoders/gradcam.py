"""Grad-CAM: where in an image a convolutional CLIP sees what a text says.

With A [C, h, w] the last stage of the image tower and s the cosine of image and text,
alpha_c = mean over positions of ds/dA_c and the map is ReLU(sum_c alpha_c A_c), divided by its maximum and enlarged
to the image (Selvaraju et al., ICCV 2017, with CLIP's cosine as the score).

A map belongs to a text, so this is no encoder of a field: it is the baseline that dense features are compared to, and a
look into what the pooled feature rests on. One forward pass an image, one backward pass a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ConfigError


@contextmanager
def recorded(layer: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inside, the list holds the layer's outputs, newest last; the hook is gone afterwards, whatever happens."""
    outputs: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def activation_maps(activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """ReLU(sum_c mean(gradient_c) A_c) of [B, C, h, w]: [B, h, w], each divided by its maximum (zeros stay zeros)."""
    alpha = gradient.mean((2, 3), keepdim=True)
    maps = (alpha * activation).sum(1).relu()
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def grad_cam(
    tower: nn.Module, layer: nn.Module, images: torch.Tensor, texts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps of what texts rest on.

    Args:
        tower: images to pooled features [B, D]. layer: inside it, whose output is [B, C, h, w].
        images: [B, 3, H, W] normalised. texts: [Q, D] unit.

    Returns:
        maps [B, Q, h, w] in [0, 1], cosines [B, Q].

    Raises:
        ConfigError: the layer has no spatial output.
    """
    with torch.enable_grad(), recorded(layer) as outputs:
        # a leaf that needs gradients, so that frozen towers have a graph too
        features = tower(images.detach().requires_grad_(True))
        if not outputs or not isinstance(outputs[-1], torch.Tensor) or outputs[-1].ndim != 4:
            raise ConfigError("this layer gives no [B, C, h, w]; name the last stage of a convolutional image tower")
        activation = outputs[-1]
        cosines = F.normalize(features.float(), dim=-1) @ texts.float().T
        maps = []
        for q in range(cosines.shape[1]):
            (gradient,) = torch.autograd.grad(cosines[:, q].sum(), activation, retain_graph=q + 1 < cosines.shape[1])
            maps.append(activation_maps(activation.detach().float(), gradient.float()))
    if not maps:
        b, _, h, w = activation.shape
        return activation.new_zeros(b, 0, h, w), cosines.detach()
    return torch.stack(maps, 1), cosines.detach()


class GradCam:
    """Grad-CAM of an open_clip ResNet, or of any encoder that shows its tower.

    Args:
        encoder: `openclip` with a ResNet (RN50, RN101, RN50x4 ...), or `tiny`.

    Raises:
        ConfigError: an encoder without a convolutional tower.
    """

    def __init__(self, encoder: Any):
        self.encoder = encoder
        visual: Any = getattr(getattr(encoder, "model", None), "visual", None)
        layer = getattr(visual, "layer4", None)
        if layer is None:
            layer = getattr(getattr(visual, "trunk", None), "merge", None)
        if layer is None:
            raise ConfigError(
                f"encoder {getattr(encoder, 'name', encoder)!r} has no convolutional image tower; use --encoder.name "
                "openclip with a ResNet such as RN50, or the encoder 'tiny'"
            )
        self.visual, self.layer = visual, layer

    def relevancy(self, rgb: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """[H, W, Q] float32 in [0, 1] for an image [H, W, 3] uint8: each text's largest value is 1 or all are 0."""
        unit = torch.from_numpy(self.encoder.encode_text(list(texts)))
        images = self.encoder.images(rgb)
        if hasattr(self.visual, "attnpool"):  # its positions are those of one size
            images = F.interpolate(images, size=self.visual.image_size, mode="bilinear", align_corners=False)
        maps, _ = grad_cam(self.visual, self.layer, images, unit.to(images.device))
        if not len(texts):
            return np.zeros((*rgb.shape[:2], 0), np.float32)
        large = F.interpolate(maps, size=rgb.shape[:2], mode="bilinear", align_corners=False)[0].clamp_min(0)
        large = large / large.amax((1, 2), keepdim=True).clamp_min(torch.finfo(large.dtype).tiny)
        return large.permute(1, 2, 0).cpu().numpy()
