"""Small multi-layer perceptrons: plain linear layers that a GPU computes in one kernel."""

from __future__ import annotations

import torch
from torch import nn

from .hash_grid import HashGrid, triton_unavailable


class Mlp(nn.Sequential):
    """nn.Linear layers with nn.ReLU between them and, perhaps, after the last; parameters are the layers' own.

    With backend auto or triton the whole of it is one Triton kernel on CUDA devices, where it has one (`fused`); else,
    and on CPUs, the layers in turn. `precision` is that of the kernel's products (see `mlp_triton.PRECISIONS`).
    """

    def __init__(self, *layers: nn.Module, backend: str = "auto", precision: str = "float32"):
        super().__init__(*layers)
        self.backend, self.precision = backend, precision

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Outputs [N, O] of rows [N, K]."""
        if self.fused(input.device.type) and input.dim() == 2 and not torch.is_autocast_enabled(input.device.type):
            from . import mlp_triton

            return mlp_triton.mlp(input, self.linears(), self._ends_with_relu(), self.precision)
        out: torch.Tensor = super().forward(input)
        return out

    def of_grid(self, grid: HashGrid, positions: torch.Tensor) -> torch.Tensor:
        """Outputs [N, O] at positions [N, 3] in [0, 1] of a grid. No gradients.

        On GPUs the grid's features never reach memory."""
        device_type = positions.device.type
        with torch.no_grad():
            if self.fused(device_type) and grid.by_triton():
                from . import mlp_triton

                return mlp_triton.grid_mlp(
                    positions, grid.table, grid.layout, self.linears(), self._ends_with_relu(), self.precision
                )
            out: torch.Tensor = self(grid(positions))
            return out

    def fused(self, device_type: str) -> bool:
        """Whether one kernel computes all layers on a device of that type."""
        if self.backend not in ("auto", "triton", "tcnn") or (device_type != "cuda" and self.backend != "triton"):
            return False
        if triton_unavailable(device_type) is not None:
            return False
        from . import mlp_triton

        linears = self.linears()
        return bool(linears) and mlp_triton.fits([linears[0][0].shape[1], *(weight.shape[0] for weight, _ in linears)])

    def linears(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weight [out, in] and bias [out] of each layer."""
        return [(layer.weight, layer.bias) for layer in self if isinstance(layer, nn.Linear)]

    def _ends_with_relu(self) -> bool:
        return bool(len(self)) and isinstance(self[len(self) - 1], nn.ReLU)
