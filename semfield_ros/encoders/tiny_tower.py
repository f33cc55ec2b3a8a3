"""The image tower of `tiny`, registered with timm as `semfield_tiny`: a small residual network that ends at stride 8.

Residual blocks (He et al. 2016) at strides 4, 8 and 16; the stride-16 stage sees whole objects and is merged back into
the stride-8 map as in feature pyramids (Lin et al. 2017). Pooling is a plain mean, so that a linear projection of the
pooled feature equals the mean of the projected positions: dense features and `encode_image` are one thing.
"""

from __future__ import annotations

import torch
from timm.models import register_model
from torch import nn
from torch.nn import functional


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution and batch normalisation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.first = _conv(inputs, outputs, stride=stride)
        self.second = _conv(outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else _conv(inputs, outputs, 1, stride)
        # Blocks start as their shortcuts.
        nn.init.zeros_(self.second.get_parameter("1.weight"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(functional.relu(self.first(x), inplace=True))
        return functional.relu(y + self.shortcut(x), inplace=True)


class TinyTower(nn.Module):
    """Images [B, 3, H, W] to feature maps [B, num_features, ceil(H / 8), ceil(W / 8)] and their means.

    Follows timm's protocol (`forward_features`, `forward_head`, `reset_classifier`), so that open_clip can hold it.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (24, 48, 96, 192),
        depths: tuple[int, int, int] = (1, 2, 3),
        num_features: int = 160,
        num_classes: int = 0,
        global_pool: str = "avg",
    ):
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.default_cfg = {"pool_size": None, "input_size": (3, 128, 128)}
        stem, *stages = widths
        self.stem = nn.Sequential(_conv(3, stem, stride=2), nn.ReLU(inplace=True))
        blocks, inputs = [], stem
        for width, depth in zip(stages, depths):
            blocks.append(nn.Sequential(_Block(inputs, width, 2), *(_Block(width, width) for _ in range(depth - 1))))
            inputs = width
        self.stages = nn.ModuleList(blocks)
        self.lateral = _conv(stages[1], num_features, 1)
        self.top = _conv(stages[2], num_features, 1)
        self.merge = nn.Sequential(_conv(num_features, num_features), nn.ReLU(inplace=True))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The stride-8 map."""
        x = self.stages[0](self.stem(x))
        fine = self.stages[1](x)
        coarse = self.top(self.stages[2](fine))
        coarse = functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.merge(functional.relu(self.lateral(fine) + coarse, inplace=True))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The mean over positions: [B, num_features]."""
        return x.mean((2, 3)) if self.global_pool else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's protocol: there is no classifier; only the pooling may change."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool


@register_model
def semfield_tiny(pretrained: bool = False, **kwargs: object) -> TinyTower:
    """timm's entry point."""
    known = {"widths", "depths", "num_features", "num_classes", "global_pool"}
    return TinyTower(**{key: value for key, value in kwargs.items() if key in known})  # type: ignore[arg-type]
