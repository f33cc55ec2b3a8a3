"""Maps as predictions for the OpenLex3D benchmark (Kassab et al. 2025): a folder of three files.

embeddings.npy [objects, D] float32, index.npy [points] int32 and point_cloud.pcd: point i looks like
embeddings[index[i]]. A dense prediction has one row a point. The benchmark compares the embeddings with words that it
encodes itself (open_clip ViT-H-14 laion2b_s32b_b79k by default, or the model its configuration names), so a map is to
be made with that encoder; and it has no way to say "nothing known", so points without features are left out.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np

from .errors import ConfigError, QueryError
from .field.snapshot import Snapshot
from .query.points import features_at
from .query.scores import Source

EMBEDDINGS, INDEX, CLOUD = "embeddings.npy", "index.npy", "point_cloud.pcd"
_CHUNK = 65_536
_LARGEST_INDEX = 2**31 - 1


def pcd_bytes(points: np.ndarray, rgb: np.ndarray) -> bytes:
    """A coloured cloud as binary PCD 0.7 (Point Cloud Library): points [N, 3] metres, rgb [N, 3] uint8."""
    points, rgb = np.asarray(points), np.asarray(rgb)
    if points.ndim != 2 or points.shape[1] != 3 or rgb.shape != points.shape or rgb.dtype != np.uint8:
        raise ConfigError(
            f"points are {points.shape} and rgb {rgb.dtype} {rgb.shape}; expected [N, 3] both, rgb in uint8"
        )
    table = np.empty(len(points), [("xyz", "<f4", 3), ("rgb", "<u4")])
    table["xyz"] = points
    # PCL packs 0x00RRGGBB and calls the four bytes a float
    red, green, blue = rgb.astype(np.uint32).T
    table["rgb"] = (red << 16) | (green << 8) | blue
    header = (
        "# .PCD v0.7 - Point Cloud Data file format", "VERSION 0.7", "FIELDS x y z rgb", "SIZE 4 4 4 4", "TYPE F F F F",
        "COUNT 1 1 1 1", f"WIDTH {len(points)}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {len(points)}",
        "DATA binary", "",
    )  # fmt: skip
    return "\n".join(header).encode("ascii") + table.tobytes()


def object_embeddings(features: np.ndarray, instance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit mean features [objects, D] float32, and which points [N] bool are of an object.

    Args:
        features: [N, D] unit features, 0 where nothing is known. instance: [N] ids, 0 = none; in ascending order they
            are the rows, so `np.unique(instance[kept], return_inverse=True)[1]` is the index.
    """
    instance = np.asarray(instance)
    if instance.shape != (len(features),) or instance.dtype.kind not in "iu":
        raise ConfigError(f"instance is {instance.dtype} {instance.shape}; expected integers [{len(features)}]")
    known = np.linalg.norm(features, axis=1) > 0
    named = np.unique(instance[known & (instance > 0)])
    kept = np.isin(instance, named)
    rows = np.searchsorted(named, instance[kept])
    sums = np.zeros((len(named), features.shape[1]), np.float32)
    np.add.at(sums, rows, features[kept])
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6), kept


def write_openlex3d(
    folder: str | Path,
    snapshot: Snapshot,
    *,
    instance: np.ndarray | None = None,
    source: Source = "auto",
    overwrite: bool = False,
) -> tuple[int, int]:
    """Write a map's prediction folder; returns how many points and embeddings it holds.

    Args:
        instance: [N] ids of the map's points, 0 = none: one embedding an object, points of none left out. None = dense,
            one embedding a point; features are then worked out and written in pieces.
        source: which map the features are of.
        overwrite: replace a folder that holds such a prediction and nothing else.

    Raises:
        QueryError: no features are known yet. ConfigError: the folder is taken, or ids that do not fit the map.
    """
    target = Path(folder)
    _check_free(target, overwrite)
    blocks = [block.snapshot for block in snapshot.blocks()]
    measured = np.concatenate([block.measured for block in blocks]) if blocks else np.zeros(0, bool)
    if not measured.any():
        raise QueryError("no features are known yet; feed frames first")
    if instance is not None and np.shape(instance) != measured.shape:
        raise ConfigError(f"instance has shape {np.shape(instance)}; the map has {len(measured)} points")
    if np.count_nonzero(measured) > _LARGEST_INDEX:
        raise QueryError(f"the map has {np.count_nonzero(measured)} points; index.npy holds at most {_LARGEST_INDEX}")
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    temporary.mkdir(parents=True)
    try:
        if instance is None:
            counts = _write_dense(temporary, blocks, int(np.count_nonzero(measured)), source)
        else:
            counts = _write_objects(temporary, blocks, np.asarray(instance), source)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def _check_free(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    foreign = [] if target.is_dir() else [target.name]
    if target.is_dir():
        foreign = sorted({path.name for path in target.iterdir()} - {EMBEDDINGS, INDEX, CLOUD})
    if foreign or not overwrite:
        what = f"exists and holds {foreign[0]}, which is no prediction's" if foreign else "exists"
        raise ConfigError(f"{target} {what}; choose another folder" + ("" if foreign else ", or pass overwrite=True"))


def _write_dense(folder: Path, blocks: list[Snapshot], count: int, source: Source) -> tuple[int, int]:
    dim = next(block.features.shape[1] for block in blocks if len(block.cloud))
    embeddings = np.lib.format.open_memmap(folder / EMBEDDINGS, "w+", np.float32, (count, dim))
    points, rgb, start = [], [], 0
    for block in blocks:
        rows = np.flatnonzero(block.measured)
        for part in np.array_split(rows, -(-len(rows) // _CHUNK) or 1):
            embeddings[start : start + len(part)] = features_at(block, block.cloud.points[part], source)
            start += len(part)
        points.append(block.cloud.points[rows])
        rgb.append(block.cloud.rgb[rows])
    embeddings.flush()
    np.save(folder / INDEX, np.arange(count, dtype=np.int32))
    (folder / CLOUD).write_bytes(pcd_bytes(np.concatenate(points), np.concatenate(rgb)))
    return count, count


def _write_objects(folder: Path, blocks: list[Snapshot], instance: np.ndarray, source: Source) -> tuple[int, int]:
    points = np.concatenate([block.cloud.points for block in blocks])
    rgb = np.concatenate([block.cloud.rgb for block in blocks])
    features = np.concatenate([features_at(block, block.cloud.points, source) for block in blocks])
    embeddings, kept = object_embeddings(features, instance)
    if not len(embeddings):
        raise QueryError("no object has known features; without `instance` the prediction is dense")
    np.save(folder / EMBEDDINGS, embeddings)
    np.save(folder / INDEX, np.unique(instance[kept], return_inverse=True)[1].reshape(-1).astype(np.int32))
    (folder / CLOUD).write_bytes(pcd_bytes(points[kept], rgb[kept]))
    return int(np.count_nonzero(kept)), len(embeddings)
