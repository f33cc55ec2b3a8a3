"""Forgetting what a replay remembers of voxels that are gone or have changed: their records, and features of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from .changes import COLOUR_CHANGE
from .features import FeatureStore
from .point_map import voxel_centres, voxel_keys
from .replay import FORGOTTEN, Replay

_MAX_REACH = 8
_PAIRS = 4_000_000
_CELL_SHARE = 0.2
"""A feature measurement goes with this share of what it was measured on."""


def forget_voxels(
    replay: Replay, keys: np.ndarray, voxel_size_m: float, rgb: np.ndarray | None = None, spare: int = -1
) -> int:
    """Forget the records that lie in voxels `keys` [M] (sorted), and the feature measurements that were made of them.

    Args:
        rgb: [M, 3] what colours the voxels have now, 0 to 255: records of about that colour are kept.
        spare: a slot that is left alone.

    Returns:
        How many records were forgotten. Every other record is kept as it is. Costs O(slots x M) of projection and O(1)
        for each of the few records around where a voxel falls in an image.
    """
    slots = [s for s in replay.order if s != spare]
    if not len(keys) or not slots:
        return 0
    device = replay.device
    centres = torch.from_numpy(voxel_centres(keys, voxel_size_m).astype(np.float32)).to(device)
    count = 0
    per_chunk = max(1, _PAIRS // (len(keys) * 9))
    for start in range(0, len(slots), per_chunk):
        chunk = torch.tensor(slots[start : start + per_chunk], device=device)
        near, record = _records_near(replay, chunk, centres, 0.87 * voxel_size_m)
        slot = chunk[near]
        keep = replay.depth[slot, record] > 0
        slot, record = slot[keep], record[keep]
        origins, directions, _ = replay.world_rays(slot, replay.pixel[slot, record])
        points = origins + directions * replay.depth[slot, record, None]
        own = voxel_keys(points.cpu().numpy(), voxel_size_m)
        at = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
        inside = keys[at] == own
        if rgb is not None:
            colour = replay.rgb[slot, record].cpu().numpy().astype(np.float32)
            inside &= np.linalg.norm(colour - rgb[at], axis=1) > COLOUR_CHANGE
        gone = torch.from_numpy(inside).to(device)
        if inside.any():
            replay.depth[slot[gone], record[gone]] = FORGOTTEN
            for store in (replay.language, *replay.teachers.values()):
                _forget_features(replay, store, slot[gone], record[gone])
            count += int(inside.sum())
    return count


def _records_near(
    replay: Replay, slots: torch.Tensor, centres: torch.Tensor, radius_m: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which records of `slots` [K] may lie near points [M, 3]: index into `slots`, and record, [P] each."""
    pose, camera, s = replay.pose[slots], replay.camera[slots], replay.stride
    local = torch.einsum("kmi,kij->kmj", centres[None] - pose[:, None, :3, 3], pose[:, :3, :3])
    z = local[..., 2].clamp_min(1e-3)
    u = camera[:, 0, None] * local[..., 0] / z + camera[:, 2, None]
    v = camera[:, 1, None] * local[..., 1] / z + camera[:, 3, None]
    column, row = (torch.div(x.clamp(-1e6, 1e6), s, rounding_mode="floor").long() for x in (u, v))
    ahead = (local[..., 2] > radius_m) & (u > -s) & (v > -s) & (u < replay.width + s) & (v < replay.height + s)
    mask = torch.zeros(len(slots), replay.grid_h, replay.grid_w, dtype=torch.bool, device=replay.device)
    k, m = torch.nonzero(ahead, as_tuple=True)
    if not len(k):
        return k, m
    blocks = camera[k, 0] * radius_m / (z[k, m] * s)
    reach = min(_MAX_REACH, int(np.ceil(float(blocks.max()))))
    row, column = row[k, m], column[k, m]
    for dv, du in product(range(-reach, reach + 1), repeat=2):
        r, c = row + dv, column + du
        inside = (r >= 0) & (c >= 0) & (r < replay.grid_h) & (c < replay.grid_w)
        mask[k[inside], r[inside], c[inside]] = True
    near, record = torch.nonzero(mask.view(len(slots), -1), as_tuple=True)
    return near, record


def _forget_features(replay: Replay, store: FeatureStore, slot: torch.Tensor, record: torch.Tensor) -> None:
    """Forget the measurements in the middle of whose windows a share of the records has just been forgotten."""
    known = store.row[slot] >= 0
    slot, record = slot[known], record[known]
    if store.window is None or not len(slot):
        return
    touched = torch.unique(slot)
    of = torch.searchsorted(touched, slot)
    gone = torch.zeros(len(touched), replay.grid_h * replay.grid_w, device=replay.device)
    gone[of, record] = 1.0
    used = ((replay.depth[touched] > 0) | (gone > 0)).float()
    sums = [
        torch.nn.functional.pad(x.view(-1, replay.grid_h, replay.grid_w).cumsum(1).cumsum(2), (1, 0, 1, 0))
        for x in (gone, used)
    ]
    at = store.row[touched]
    shapes = store.grid_shape[at]
    window_px = store.window.kernel.shape[0] * store.window.pitch_px / 2
    for h, w in torch.unique(shapes, dim=0).tolist():
        mine = torch.nonzero((shapes == torch.tensor([h, w], device=replay.device)).all(1)).squeeze(1)
        top, bottom = _spans(h, replay.height, replay.grid_h, window_px, replay.stride)
        left, right = _spans(w, replay.width, replay.grid_w, window_px, replay.stride)
        lost, all_of = (
            x[mine][:, bottom][:, :, right] - x[mine][:, top][:, :, right]
            - x[mine][:, bottom][:, :, left] + x[mine][:, top][:, :, left]
            for x in sums
        )  # fmt: skip
        drop = (lost > 0) & (lost >= _CELL_SHARE * all_of)
        rows = store.cell_row[at[mine], : h * w]
        rows[drop.view(len(mine), -1)] = -1
        store.cell_row[at[mine], : h * w] = rows


def _spans(cells: int, pixels: int, blocks: int, window_px: float, stride: int) -> tuple[list[int], list[int]]:
    """First block and the one after the last under each of `cells` windows, at least a cell wide, along one axis."""
    centre = (np.arange(cells) + 0.5) * pixels / cells
    half = max(window_px, pixels / cells) / 2
    low = np.clip(np.floor((centre - half) / stride), 0, blocks - 1).astype(int)
    high = np.clip(np.ceil((centre + half) / stride), low + 1, blocks).astype(int)
    return low.tolist(), high.tolist()
