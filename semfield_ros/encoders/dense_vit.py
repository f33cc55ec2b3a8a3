"""One feature per patch from an open_clip vision transformer, in a single pass.

CLIP trains only its pooled token against text. Two ways to read patches in the same space, both changing nothing but
the last block, whose residual and MLP are left out:

- the value path: every patch keeps its own value, out_proj(v_proj(ln_1(x))) (MaskCLIP: Zhou, Loy, Dai, "Extract Free
  Dense Labels from CLIP", ECCV 2022, section 3.2);
- neighbourhood attention: values are mixed by softmax(k k^T / sqrt(d) + G), where G is an unnormalised Gaussian of the
  distance between patches (NACLIP: Hajimiri, Ben Ayed, Dolz, "Pay Attention to Your Neighbours", WACV 2025,
  arXiv 2404.08181, section 3.3).

The result goes through ln_post and the projection, as the pooled token would.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

NEIGHBOURHOOD_SIGMA = 5.0
"""Standard deviation of the Gaussian in patches (NACLIP's value)."""


def patch_grid(width: int, height: int, patch: tuple[int, int], shorter_side_px: int) -> tuple[int, int]:
    """Rows and columns of patches (height, width in `patch`) for an image scaled to `shorter_side_px`, uncropped.

    Each side is rounded to whole patches on its own, so the aspect changes by less than half a patch.
    """
    scale = shorter_side_px / min(width, height)
    return max(1, round(height * scale / patch[0])), max(1, round(width * scale / patch[1]))


def interpolated_positions(embedding: torch.Tensor, native: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Position embeddings [1 + rows*columns, C] of `grid` from those of the `native` grid, class token first.

    Bicubic with antialiasing, as open_clip resizes them when it loads weights; the identity on the native grid.
    """
    if native == grid:
        return embedding
    image = embedding[1:].float().reshape(1, *native, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=grid, mode="bicubic", antialias=True, align_corners=False)
    patches = image.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1)
    return torch.cat([embedding[:1], patches.to(embedding.dtype)])


def tokens_before_last_block(visual: Any, images: torch.Tensor) -> torch.Tensor:
    """Tokens [B, 1 + rows*columns, C] that enter the last block, class token first.

    Args:
        visual: open_clip.transformer.VisionTransformer.
        images: [B, 3, H, W], normalised, in the dtype of the weights; H and W multiples of the patch.
    """
    x = visual.conv1(images)
    grid = (x.shape[2], x.shape[3])
    x = x.flatten(2).transpose(1, 2)
    token = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    positions = interpolated_positions(visual.positional_embedding, tuple(visual.grid_size), grid)
    x = visual.ln_pre(torch.cat([token, x], dim=1) + positions.to(x.dtype))
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    return x


def neighbourhood_bias(grid: tuple[int, int], sigma: float, device: torch.device) -> torch.Tensor:
    """exp(-distance^2 / (2 sigma^2)) between patches, 0 to and from the class token: [1 + n, 1 + n] float32."""
    rows, columns = (torch.arange(n, device=device, dtype=torch.float32) for n in grid)
    along_rows = torch.exp(-((rows[:, None] - rows) ** 2) / (2 * sigma**2))
    along_columns = torch.exp(-((columns[:, None] - columns) ** 2) / (2 * sigma**2))
    return F.pad(torch.kron(along_rows, along_columns), (1, 0, 1, 0))


def _projected(attention: Any, x: torch.Tensor, part: int) -> torch.Tensor:
    """Queries (0), keys (1) or values (2) of tokens [B, L, C] from the packed input projection."""
    width = x.shape[-1]
    rows = slice(part * width, (part + 1) * width)
    bias = attention.in_proj_bias
    return F.linear(x, attention.in_proj_weight[rows], None if bias is None else bias[rows])


def _optional(module: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    """Apply a layer that only some kinds of block have."""
    layer = getattr(module, name, None)
    out: torch.Tensor = x if layer is None else layer(x)
    return out


def last_block(block: Any, x: torch.Tensor, grid: tuple[int, int], sigma: float | None) -> torch.Tensor:
    """The attention branch of the last block alone, patches only: [B, rows*columns, C].

    Args:
        block: an open_clip residual attention block, default or custom (query-key norm, head scale, inner and outer
            norms, layer scale: whatever follows the values in the branch is kept).
        x: [B, 1 + rows*columns, C]. sigma: None = each patch keeps its own value, else neighbourhood attention with
            this standard deviation in patches.
    """
    attention = block.attn
    x = block.ln_1(x)
    batch, length, width = x.shape
    values = _projected(attention, x, 2).reshape(batch, length, attention.num_heads, -1).transpose(1, 2)
    if sigma is not None:
        keys = _projected(attention, x, 1).reshape(batch, length, attention.num_heads, -1).transpose(1, 2)
        keys = _optional(attention, "ln_k", keys).float()
        logits = keys @ keys.transpose(2, 3) * keys.shape[-1] ** -0.5 + neighbourhood_bias(grid, sigma, x.device)
        values = logits.softmax(dim=-1).to(values.dtype) @ values
    if getattr(attention, "head_scale", None) is not None:
        values = (values * attention.head_scale).to(values.dtype)
    mixed = values.transpose(1, 2).reshape(batch, length, width)[:, 1:]
    out = attention.out_proj(_optional(attention, "ln_inner", mixed))
    return _optional(block, "ls_1", _optional(block, "ln_attn", out))


def dense_features(visual: Any, images: torch.Tensor, sigma: float | None = None) -> torch.Tensor:
    """Patch features in the joint image-text space: [B, rows, columns, D], not normalised.

    Args:
        visual, images: as `tokens_before_last_block`. sigma: as `last_block`.
    """
    grid = (images.shape[2] // visual.patch_size[0], images.shape[3] // visual.patch_size[1])
    x = last_block(visual.transformer.resblocks[-1], tokens_before_last_block(visual, images), grid, sigma)
    features: torch.Tensor = visual.ln_post(x).to(visual.proj.dtype) @ visual.proj
    return features.reshape(len(images), *grid, -1)
