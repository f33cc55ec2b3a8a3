"""One feature per cell from an open_clip ResNet, in a single pass.

CLIP's ResNets end in attention pooling. Without its queries and keys every position of the last stage keeps its own
value, c_proj(v_proj(x)), in the joint image-text space (MaskCLIP: Zhou, Loy, Dai, ECCV 2022, section 3.2).
"""

from __future__ import annotations

from typing import Any

import torch

STRIDE_PX = 32
"""Input pixels a cell of the last stage."""


def last_stage(visual: Any, images: torch.Tensor) -> torch.Tensor:
    """What attention pooling gets: [B, C, H / 32, W / 32] of normalised images [B, 3, H, W] (multiples of 32)."""
    x = visual.stem(images)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = stage(x)
    return x


def project_values(pool: Any, x: torch.Tensor) -> torch.Tensor:
    """Value-projected attention pooling of [B, C, h, w]: [B, h, w, D], not normalised."""
    projected: torch.Tensor = pool.c_proj(pool.v_proj(x.permute(0, 2, 3, 1)))
    return projected


def dense_features(visual: Any, images: torch.Tensor) -> torch.Tensor:
    """Features [B, H / 32, W / 32, D] in the text space, not normalised; arguments as `last_stage`."""
    return project_values(visual.attnpool, last_stage(visual, images))
