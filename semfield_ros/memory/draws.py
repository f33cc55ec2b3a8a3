"""Random draws whose sizes no one has to wait for.

How many of n drawn records are usable is known on a GPU only once it has computed everything before: asking stops the
program until then. So a GPU gets batches of n always, with usable records a second time in place of the others; a CPU
gets the usable ones alone.
"""

from __future__ import annotations

from functools import lru_cache

import torch


def kept(usable: torch.Tensor) -> torch.Tensor:
    """Rows to take of a draw [n] bool. On GPUs n rows, and if none is usable the last ones as they are."""
    if usable.device.type == "cpu":
        return torch.nonzero(usable).squeeze(1)
    return repeated(usable)


def repeated(usable: torch.Tensor) -> torch.Tensor:
    """Rows [n] of a draw [n] bool: the usable ones in their order, again and again."""
    order = torch.argsort((~usable).to(torch.uint8), stable=True)
    turn = torch.arange(len(usable), device=usable.device) % usable.sum().clamp_min(1)
    return order[turn]


@lru_cache(maxsize=16)
def on_device(
    numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A tensor [len] of Python numbers, copied to the device once for as long as they stay the same: a copy a step
    would be waited for. Not to be changed: it is shared."""
    return torch.tensor(numbers, device=device, dtype=dtype)
