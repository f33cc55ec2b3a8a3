"""Maps as files, in blocks or not: NAME.semfield is the map itself, or the index of the blocks in NAME.blocks/."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from . import checkpoint
from .atlas import AnyMap, Atlas
from .config import SemfieldConfig
from .encoders.base import Encoder
from .errors import CheckpointError
from .mapping import Mapping
from .memory.cubes import Cell
from .memory.features import FeatureShape
from .shelf import Shelf, link


def folder_of(path: Path) -> Path:
    """Where the blocks of an index lie."""
    return path.with_suffix(".blocks")


def save_map(path: str | Path, map: AnyMap, encoder: Encoder, *, overwrite: bool = False) -> Path:
    """Save a map; training can resume from it. A map in blocks becomes an index with a folder beside it.

    The blocks are written first, under names no index knows yet, so a crash leaves the old map whole.

    Raises:
        CheckpointError: the file exists and `overwrite` is not set, or it cannot be written.
    """
    if isinstance(map, Mapping):
        path = checkpoint.save(path, map, encoder, overwrite=overwrite)
        shutil.rmtree(folder_of(path), ignore_errors=True)  # of the map that had this name before
        return path
    path = checkpoint.checked_path(path, overwrite)
    generation = uuid.uuid4().hex[:12]
    try:
        folder = folder_of(path) / generation
        folder.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(f"cannot write into {path.parent}: {error}") from error
    try:
        cells = _write_blocks(folder, map, encoder)
        status = map.status()
        totals = {"steps": status.steps, "samples": status.samples, "voxels": status.voxels}
        write_index(path, map, encoder, generation, cells, totals)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    for old in folder_of(path).iterdir():
        if old.name != generation:
            shutil.rmtree(old, ignore_errors=True)
    return path


def block_name(cell: Cell) -> str:
    """The file of a block."""
    x, y, z = cell
    return f"{x}_{y}_{z}{checkpoint.SUFFIX}"


def _write_blocks(folder: Path, atlas: Atlas, encoder: Encoder) -> list[Cell]:
    cells = []
    for cell in sorted([*atlas.awake, *atlas.asleep]):
        if cell in atlas.asleep:
            link(atlas.asleep[cell].path, folder / block_name(cell))
        elif atlas.awake[cell].can_train:
            checkpoint.save(folder / block_name(cell), atlas.awake[cell], encoder)
        else:
            continue
        cells.append(cell)
    return cells


def write_index(
    path: Path, atlas: Atlas, encoder: Encoder, generation: str, cells: list[Cell], totals: dict[str, int]
) -> Path:
    """The file that makes a folder of blocks a map; `totals`: steps, samples and voxels of all of them."""
    # where blocks sleep is a matter of the machine
    config = replace(atlas.config, memory=replace(atlas.config.memory, block_folder=""))
    return checkpoint.write(
        path,
        {
            "format": checkpoint.FORMAT,
            "config": asdict(config),
            "encoder": {"name": encoder.name, "dim": encoder.dim, "cache_key": encoder.cache_key},
            "stamp_s": atlas.stamp_s if np.isfinite(atlas.stamp_s) else None,
            "counts": dict(atlas.counts),
            **totals,
            "image": atlas.image_size,
            "features": None if atlas.feature_shape is None else asdict(atlas.feature_shape),
            "folder": f"{folder_of(path).name}/{generation}",
            "blocks": [list(cell) for cell in cells],
        },
        {},
    )  # fmt: skip


def load_map(path: str | Path, config: SemfieldConfig, encoder: Encoder, device: str) -> AnyMap:
    """A saved map, of whichever kind it is, ready to train on. Sizes of grids, memory and blocks come from the file.

    The blocks of an index stay asleep until they are seen or asked; one that is missing or torn is counted then.

    Raises:
        CheckpointError: missing, torn, foreign, newer, or made with another encoder.
    """
    path = Path(path)
    description = checkpoint.describe(path)
    if "blocks" not in description:
        return checkpoint.load(path, config, encoder, device)
    checkpoint.same_encoder(path, description.get("encoder", {}), encoder)
    saved = checkpoint.saved_config(path)
    try:
        # where blocks sleep and how many are in memory is this machine's business, not the map's
        memory = replace(
            saved.memory, block_folder=config.memory.block_folder, asleep_mb=config.memory.asleep_mb,
            max_active_blocks=config.memory.max_active_blocks,
        )  # fmt: skip
        config = replace(config, memory=memory, field=saved.field)
        atlas = Atlas(config, encoder, device, Shelf(config, encoder, device))
        folder = path.parent / description["folder"]
        atlas.counts.update(description["counts"])
        atlas.stamp_s = float("nan") if description["stamp_s"] is None else float(description["stamp_s"])
        size, features = description["image"], description["features"]
        atlas.resume(None if size is None else tuple(size), None if features is None else FeatureShape(**features))
        cells: list[Cell] = [tuple(cell) for cell in description["blocks"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole map: {error!r}") from error
    for cell in cells:
        atlas.shelve(cell, folder / block_name(cell))
    return atlas


def bytes_of(path: Path) -> int:
    """Size of a saved map on disk, with its blocks."""
    blocks = folder_of(path)
    return path.stat().st_size + sum(p.stat().st_size for p in blocks.rglob("*") if p.is_file())
