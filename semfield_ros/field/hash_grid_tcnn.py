"""The hash grid through tiny-cuda-nn's own kernels (Mueller 2021), where `tinycudann` can be imported.

Parameters stay in our table: the two layouts are one, level after level, each of min(next multiple of 8 of
resolution^3, 2^log2_table) rows. tiny-cuda-nn computes in half precision, so a field trained here differs from the
other backends' in the fourth digit; a checkpoint moves to them and back as it is.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..config import GridConfig
from ..errors import ConfigError
from .hash_grid import Layout, Level, adam_reference, triton_unavailable

BATCH = 256
"""tiny-cuda-nn takes multiples of this many points."""
LOSS_SCALE = 128.0
"""Gradients are this much larger while they are in half precision: a mean over a batch would vanish there."""
MAX_LEVELS = 16


@lru_cache
def unavailable(device_type: str) -> str | None:
    """Why tiny-cuda-nn cannot compute on a device of that type, with the remedy; None where it can."""
    if device_type != "cuda":
        return "tiny-cuda-nn computes on CUDA devices only: set field.backend to auto, or engine.device to cuda"
    try:
        importlib.import_module("tinycudann")
    except Exception as error:  # its import raises whatever is amiss: no module, no device, no build for this device
        return (
            f"tinycudann cannot be imported ({type(error).__name__}: {error}): build it for this device, as "
            "https://github.com/NVlabs/tiny-cuda-nn says, or set field.backend to auto"
        )
    return None


def resolutions(base: int, growth: np.float32, levels: int) -> list[int]:
    """Cells an edge of each level as tiny-cuda-nn computes them: in single precision, so that a resolution that is
    exact on paper may come out one larger."""
    log2_growth = np.log2(growth, dtype=np.float32)
    scales = np.exp2(np.arange(levels, dtype=np.float32) * log2_growth) * np.float32(base) - np.float32(1)
    return [int(np.ceil(scale)) + 1 for scale in scales]


def encoding_config(config: GridConfig, levels: list[Level]) -> dict[str, Any]:
    """tiny-cuda-nn's configuration of a grid.

    Raises:
        ConfigError: tiny-cuda-nn would lay its levels out in another way.
    """
    wanted = [level.resolution for level in levels]
    base = round(levels[0].scale + 1)
    growth = np.float32(1)
    if len(levels) > 1:
        growth = np.float32(((levels[-1].scale + 1) / (levels[0].scale + 1)) ** (1 / (len(levels) - 1)))
    for _ in range(64):
        if resolutions(base, growth, len(levels)) == wanted:
            break
        growth = np.nextafter(growth, np.float32(0))
    else:
        raise ConfigError(
            f"tiny-cuda-nn cannot lay out levels of {wanted} cells an edge; change min_resolution or max_resolution, "
            "or set field.backend to auto"
        )
    if len(levels) > MAX_LEVELS:
        raise ConfigError(f"a grid has {len(levels)} levels; tiny-cuda-nn allows {MAX_LEVELS}")
    return {
        "otype": "HashGrid",
        "n_levels": len(levels),
        "n_features_per_level": config.features,
        "log2_hashmap_size": config.log2_table,
        "base_resolution": base,
        "per_level_scale": float(growth),
        "interpolation": "Linear",
    }


class TcnnKernels:
    """One grid's encoding, behind `hash_grid.Kernels`. Made for one device when it is first used there."""

    def __init__(self, config: GridConfig, levels: list[Level]):
        self._config = encoding_config(config, levels)
        self._rows = sum(level.rows for level in levels)
        self._encoding: Any = None

    def forward(self, positions: torch.Tensor, table: torch.Tensor, layout: Layout) -> torch.Tensor:
        """See `Kernels.forward`."""
        if not len(positions):
            return table.new_empty(0, len(layout[0]) * table.shape[1])
        encoding = self._on(table)
        encoding.params.data = table.detach().reshape(-1)
        with torch.no_grad():
            out: torch.Tensor = encoding(_padded(positions))[: len(positions)].float()
        return out

    def backward(
        self, positions: torch.Tensor, grad_out: torch.Tensor, layout: Layout, grad_table: torch.Tensor
    ) -> None:
        """See `Kernels.backward`. Encodes once more, since tiny-cuda-nn keeps what it needs for the way back."""
        if not len(positions):
            return
        encoding = self._on(grad_table)
        with torch.enable_grad():
            out = encoding(_padded(positions))
            scaled = _padded(grad_out * LOSS_SCALE).to(out.dtype)
            (grad,) = torch.autograd.grad(out, encoding.params, scaled)
        grad_table.view(-1).add_(grad, alpha=1 / LOSS_SCALE)

    def adam_touched(
        self, table: torch.Tensor, grad: torch.Tensor, mean: torch.Tensor, square: torch.Tensor,
        numbers: tuple[float, ...],
    ) -> None:
        """See `Kernels.adam_touched`: ours, tiny-cuda-nn's optimisers cannot be called on their own."""
        if triton_unavailable(table.device.type) is None:
            from . import hash_grid_triton

            hash_grid_triton.adam_touched(table, grad, mean, square, numbers)
        else:
            adam_reference(table, grad, mean, square, numbers)

    def _on(self, table: torch.Tensor) -> Any:
        if self._encoding is None:
            with torch.device(table.device):
                encoding = importlib.import_module("tinycudann").Encoding(3, self._config)
            if encoding.params.numel() != table.numel():
                raise ConfigError(
                    f"tiny-cuda-nn made a grid of {encoding.params.numel()} parameters of {self._config}, not "
                    f"{table.numel()}; set field.backend to auto"
                )
            # it would scale after the conversion to half precision, when small gradients are gone already
            encoding.loss_scale = 1.0
            self._encoding = encoding
        return self._encoding


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """Rows [N, *] and zeros up to the next multiple of BATCH."""
    missing = -len(rows) % BATCH
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
