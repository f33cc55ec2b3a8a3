"""`pyramid`: language with a scale, from crops of several sizes (LERF: Kerr et al., ICCV 2023, section 3.2).

A crop says what a place is part of: a small one "handle", a larger one "mug". Square tiles of 7 heights, from a
twentieth to half of the image's, go through the image tower of a CLIP model, each into one feature. Thousands of crops
a frame are slow, so this is a teacher that works in the background at a low rate while a dense encoder leads
(`heads.teachers`); the field learns it with a scale in metres as an input (`field/scales.py`).

Everything about the crops' places is a pure function of the image's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import cast

import numpy as np
import torch

from ..config import EncoderConfig, PyramidConfig, require
from ..errors import ConfigError
from ..frame import Frame
from .base import Calibration, CropEncoder, Encoder, Target, Window

IMAGE_TOWERS = ("tiny", "openclip", "stub")
"""Encoders that can say what a crop shows."""
STEP = 64
"""Tiles that are encoded before something else may come first."""


@dataclass(frozen=True)
class Level:
    """Tiles of one size: a grid of `rows` x `columns` squares of `tile_px`, every `stride_px`.

    Tile (i, j) covers the pixels from (i, j) * stride_px - tile_px // 2 on; what lies outside the image is black. The
    tiles of a level have the rows `first` and after of what the encoder measures.
    """

    tile_px: int
    stride_px: int
    rows: int
    columns: int
    first: int

    @property
    def count(self) -> int:
        """Tiles."""
        return self.rows * self.columns

    @property
    def centre_px(self) -> float:
        """Pixel coordinate, down and across alike, of the centre of tile (0, 0)."""
        return (self.tile_px - 1) / 2 - self.tile_px // 2


@lru_cache(maxsize=64)
def ratios(config: PyramidConfig) -> tuple[float, ...]:
    """Tile heights as shares of the image's height, ascending."""
    return tuple(np.linspace(config.smallest, config.largest, config.levels).tolist())


@lru_cache(maxsize=64)
def levels_of(width: int, height: int, config: PyramidConfig) -> tuple[Level, ...]:
    """The tiles of an image. Small tiles stand side by side, those from 15% of the height on overlap by half (LERF).

    Raises:
        ConfigError: the image is so small that a tile has less than 4 pixels.
    """
    levels: list[Level] = []
    for ratio in ratios(config):
        tile = int(ratio * height + 1e-6)
        if tile < 4:
            raise ConfigError(
                f"tiles of {ratio:.3f} of an image {height} px high have {tile} px; allowed: at least 4; "
                "use larger images or a larger heads.pyramid.smallest"
            )
        stride = max(1, int(tile * float(np.interp(ratio, [0.05, 0.15], [1.0, 0.5]))))
        slack = 2 * (tile // 2) - tile
        rows, columns = (height + slack) // stride + 1, (width + slack) // stride + 1
        first = levels[-1].first + levels[-1].count if levels else 0
        levels.append(Level(tile, stride, rows, columns, first))
    return tuple(levels)


def crops_of(rgb: np.ndarray, level: Level) -> np.ndarray:
    """The tiles of an image [H, W, 3]: [count, tile, tile, 3], row by row. A copy of their pixels."""
    pad = level.tile_px // 2
    padded = np.pad(rgb, ((pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (level.tile_px, level.tile_px), axis=(0, 1))
    s = level.stride_px
    chosen = windows[::s, ::s][: level.rows, : level.columns]
    return np.ascontiguousarray(chosen.transpose(0, 1, 3, 4, 2).reshape(level.count, *chosen.shape[3:], -1))


@lru_cache(maxsize=16)
def _numbers(levels: tuple[Level, ...], device: torch.device) -> torch.Tensor:
    """[levels, 5] float32; kept, since a copy to a GPU a step would be waited for."""
    rows = [[x.stride_px, x.centre_px, x.rows, x.columns, x.first] for x in levels]
    return torch.tensor(rows, dtype=torch.float32, device=device)


def corners(levels: Sequence[Level], u: torch.Tensor, v: torch.Tensor, level: torch.Tensor) -> tuple[
    torch.Tensor, torch.Tensor
]:  # fmt: skip
    """The 4 nearest tiles of pixels u, v [N] in the levels [N], and their bilinear weights: [N, 4] int64, [N, 4].

    Beyond the outermost centres the outermost tiles count.
    """
    stride, centre, rows, columns, first = _numbers(tuple(levels), u.device)[level].unbind(1)
    zero = torch.zeros_like(u)
    j = torch.minimum(torch.maximum((u - centre) / stride, zero), columns - 1)
    i = torch.minimum(torch.maximum((v - centre) / stride, zero), rows - 1)
    j0, i0 = j.floor(), i.floor()
    j1, i1 = torch.minimum(j0 + 1, columns - 1), torch.minimum(i0 + 1, rows - 1)
    x, y = j - j0, i - i0
    at = torch.stack([i0 * columns + j0, i0 * columns + j1, i1 * columns + j0, i1 * columns + j1], 1)
    weight = torch.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], 1)
    return (at + first[:, None]).long(), weight


def blend(
    levels: Sequence[Level], u: torch.Tensor, v: torch.Tensor, level: torch.Tensor, share: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and weights [N, 8] of the feature of pixels u, v [N] at `share` [N] of the way from `level` to the next.

    Bilinear among the tiles of either level, linear between the two (LERF); weights sum to 1.
    """
    below, w_below = corners(levels, u, v, level)
    above, w_above = corners(levels, u, v, (level + 1).clamp_max(len(levels) - 1))
    share = share[:, None]
    return torch.cat([below, above], 1), torch.cat([w_below * (1 - share), w_above * share], 1)


def metric_scale(ratio: torch.Tensor, height: int, distance_m: torch.Tensor, focal_px: torch.Tensor) -> torch.Tensor:
    """The height in metres of a tile of `ratio` of the image's height at a distance: s = r H t / f (LERF)."""
    return ratio * height * distance_m / focal_px


class PyramidEncoder:
    """All tiles of a frame through the image tower of `of`; texts are that encoder's. See `encoders.base.Encoder`.

    A target has the features of all tiles, level by level, in `values` [K, D]; its `index` [1, K] names them in turn
    and is no grid over the image: `blend` says which rows a pixel belongs to.
    """

    name = "pyramid"
    has_text = True

    def __init__(self, of: CropEncoder, config: PyramidConfig | None = None):
        self.of, self.config = of, config or PyramidConfig()
        self.dim = of.dim
        self.calibration: Calibration = of.calibration

    @cached_property
    def cache_key(self) -> str:
        """Of the image tower and the tiles."""
        return f"pyramid-1-{self.config.levels}-{self.config.smallest}-{self.config.largest}-{self.of.cache_key}"

    def encode_frame(self, frame: Frame) -> Target:
        """Unit features of every tile, all levels."""
        *_, target = self.encode_steps(frame)
        assert target is not None
        return target

    def encode_steps(self, frame: Frame) -> Iterator[Target | None]:
        """`encode_frame`, with a None after every STEP tiles."""
        height, width = frame.rgb.shape[:2]
        levels = levels_of(width, height, self.config)
        parts = []
        for level in levels:
            crops = crops_of(frame.rgb, level)
            for start in range(0, len(crops), STEP):
                parts.append(self.of.encode_crops(crops[start : start + STEP], width))
                yield None
        values = np.concatenate(parts)
        index = np.arange(len(values), dtype=np.int32)[None]
        yield Target(values, index, np.ones(len(values), np.float32), Window.pixel())

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit text features [N, D] float32."""
        return self.of.encode_text(texts)


def create(config: EncoderConfig) -> PyramidEncoder:
    """Over the encoder that `config.model` names, and its own defaults.

    Raises:
        ConfigError: it names none; what leads a map needs features on a regular grid.
    """
    from . import create as create_encoder

    require(
        config.model in IMAGE_TOWERS, "the encoder whose image tower sees the pyramid's crops", config.model,
        f"{', '.join(IMAGE_TOWERS)}; a pyramid leads no map but teaches beside an encoder: heads.teachers = "
        "('pyramid',) for that encoder's own image tower, or ('pyramid:openclip',)",
    )  # fmt: skip
    usual = EncoderConfig()
    of = create_encoder(replace(config, name=config.model, model=usual.model, pretrained=usual.pretrained))
    return PyramidEncoder(cast(CropEncoder, of))


def beside(lead: Encoder, config: EncoderConfig, pyramid: PyramidConfig) -> PyramidEncoder:
    """As a teacher: over the encoder that leads, or over another one that `config.model` names."""
    if config.model:
        return PyramidEncoder(create(config).of, pyramid)
    require(
        hasattr(lead, "encode_crops"), "the leading encoder", lead.name,
        f"beside it, name an image tower for the pyramid: pyramid:{' or pyramid:'.join(IMAGE_TOWERS)}",
    )  # fmt: skip
    return PyramidEncoder(cast(CropEncoder, lead), pyramid)
