"""Files for other programs: point clouds as PLY, objects as JSON. Every file appears whole or not at all."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .config import GripperConfig
from .errors import ConfigError, QueryError
from .field.snapshot import Snapshot
from .field.world import WorldSnapshot
from .objects import Grasp, Object

PLY_TYPES = {
    "f2": ("<f4", "float"), "f4": ("<f4", "float"), "f8": ("<f8", "double"),
    "b1": ("u1", "uchar"), "u1": ("u1", "uchar"), "i1": ("i1", "char"),
    "i2": ("<i2", "short"), "u2": ("<u2", "ushort"), "i4": ("<i4", "int"), "u4": ("<u4", "uint"),
}  # fmt: skip
CONVENTIONS = {
    "frame": "every pose and point is in global_frame; x, y, z in metres",
    "orientation": "unit quaternion x, y, z, w; axes of the box or gripper in global_frame",
    "box": "half_extents_m along the box's own x, y, z from its centre; z is up, x the longer horizontal side",
    "gripper": "origin midway between the fingertips, x closes, z approaches the object, y = z cross x",
    "width": "width_m is what is held, between contacts[0] (-x finger) and contacts[1] (+x finger)",
    "measured": "false: one contact lies on a surface no camera saw, guessed by symmetry",
    "part": "what of the object was asked for (mug; handle), grasps are on it alone; null: the whole, or none found",
    "rejected": "grasp candidates that were ruled out, by reason",
    "order": "objects and grasps are sorted, best first",
}


def write_file(path: str | Path, data: bytes, *, overwrite: bool = False) -> Path:
    """Write a whole file or nothing: to a temporary name beside it, then renamed. Missing folders are made.

    Raises:
        ConfigError: the path is taken (and `overwrite` is not set), is a folder, or lies below a file.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; pass overwrite=True or choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{path} lies below a file, which cannot hold it; choose another folder") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _rows(name: str, array: np.ndarray, count: int, width: int) -> np.ndarray:
    array = np.asarray(array)
    expected = (count,) if width == 1 else (count, width)
    if array.shape != expected:
        raise ConfigError(f"{name} has shape {array.shape}; expected {list(expected)}, one row a point")
    return array


def write_ply(
    path: str | Path,
    points: np.ndarray,
    *,
    normals: np.ndarray | None = None,
    rgb: np.ndarray | None = None,
    scalars: Mapping[str, np.ndarray] | None = None,
    comments: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """A point cloud as binary little-endian PLY 1.0 (Turk, 1994), with any number of named scalars a point.

    Properties in order: x y z, nx ny nz, red green blue, then the scalars by their own names and types (bool becomes
    uchar, half float; int64 becomes int where the values fit).

    Args:
        points, normals: [N, 3] metres, global_frame; stored as float. rgb: [N, 3] uint8. scalars: [N] each.
        comments: lines of the header, such as the frame; without line breaks.

    Raises:
        ConfigError: shapes, types or names that cannot be stored, or a path that is taken.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ConfigError(f"points have shape {points.shape}; expected [N, 3]")
    count = len(points)
    columns: list[tuple[str, np.ndarray]] = list(zip("xyz", points.astype(np.float32).T))
    if normals is not None:
        columns += zip(("nx", "ny", "nz"), _rows("normals", normals, count, 3).astype(np.float32).T)
    if rgb is not None:
        colours = _rows("rgb", rgb, count, 3)
        if colours.dtype != np.uint8:
            raise ConfigError(f"rgb is {colours.dtype}; expected uint8, 0 to 255")
        columns += zip(("red", "green", "blue"), colours.T)
    for name, values in (scalars or {}).items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in dict(columns):
            raise ConfigError(f"scalar {name!r} cannot be a property; use letters, digits, _ and a name not taken")
        columns.append((name, _storable(name, _rows(name, values, count, 1))))
    types = [(name, *PLY_TYPES[column.dtype.str[1:]]) for name, column in columns]
    table = np.empty(count, dtype=[(name, binary) for name, binary, _ in types])
    for name, column in columns:
        table[name] = column
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += ["comment " + " ".join(comment.split()) for comment in comments]
    lines += [f"element vertex {count}", *(f"property {ply} {name}" for name, _, ply in types), "end_header", ""]
    return write_file(path, "\n".join(lines).encode("ascii", "replace") + table.tobytes(), overwrite=overwrite)


MAX_GRID_CELLS = 100_000_000


def field_mesh(snapshot: Snapshot, resolution_m: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The field's surface, zero of its signed distance, as triangles: marching cubes (Lewiner et al. 2003) around the
    voxels of the point map, so that nothing is invented where no camera looked. O(volume of the map's bounding box)
    bytes, O(voxels) field evaluations.

    Returns:
        vertices [V, 3] float32 in global_frame [m], faces [F, 3] int32 (counter-clockwise seen from outside), rgb
        [V, 3] uint8, the field's colour seen along the normal.

    Raises:
        QueryError: there is no field or no surface yet, or the grid would be too large.
    """
    from scipy.ndimage import binary_dilation
    from skimage.measure import marching_cubes  # half a second of imports that few need

    if not (np.isfinite(resolution_m) and resolution_m > 0):
        raise QueryError(f"resolution is {resolution_m} m; allowed: > 0")
    if isinstance(snapshot, WorldSnapshot):
        return _joined_mesh(snapshot, resolution_m)
    field, points = snapshot.field, snapshot.cloud.points
    if field is None or not len(points):
        raise QueryError("there is no surface yet; feed frames first")
    margin = int(np.ceil(1.5 * snapshot.voxel_size_m / resolution_m)) + 1
    low = points.min(0) - (margin + 1) * resolution_m
    shape = tuple(int(n) for n in np.ceil((points.max(0) - low) / resolution_m) + margin + 2)
    if np.prod([float(n) for n in shape]) > MAX_GRID_CELLS:
        raise QueryError(f"a mesh at {resolution_m} m needs a grid of {shape} cells; allowed are {MAX_GRID_CELLS:.0e} "
                         "in all: choose a coarser resolution, or clear what is far away")  # fmt: skip
    near = np.zeros(shape, bool)
    cells = np.rint((points - low) / resolution_m).astype(np.int64)
    near[cells[:, 0], cells[:, 1], cells[:, 2]] = True
    near = binary_dilation(near, iterations=margin)
    rows = np.argwhere(near)
    distance = np.full(shape, field.config.truncation_m, np.float32)
    device = next(field.parameters()).device
    with torch.no_grad():
        for start in range(0, len(rows), 262_144):
            part = rows[start : start + 262_144]
            x = torch.from_numpy((part * resolution_m + low).astype(np.float32)).to(device)
            distance[part[:, 0], part[:, 1], part[:, 2]] = field.distance_at(x).cpu().numpy()
    if not (distance.min() < 0 < distance.max()):
        raise QueryError("the field has no surface yet; wait for the first training steps")
    vertices, faces, inwards, _ = marching_cubes(
        distance, 0.0, spacing=(resolution_m,) * 3, gradient_direction="descent", mask=near
    )
    vertices = (vertices + low).astype(np.float32)
    colours = []
    with torch.no_grad():
        for start in range(0, len(vertices), 262_144):
            x, along = (torch.from_numpy(np.ascontiguousarray(a[start : start + 262_144], np.float32)).to(device)
                        for a in (vertices, inwards))  # fmt: skip
            colour = field.values("rgb", x, along)
            colours.append((colour.clamp(0, 1) * 255).round().byte().cpu().numpy())
    return vertices, faces.astype(np.int32), np.concatenate(colours)


def _joined_mesh(world: WorldSnapshot, resolution_m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`field_mesh` of every block that has a surface, side by side."""
    pieces, first = [], 0
    for block in world.blocks():
        try:
            vertices, faces, rgb = field_mesh(block.snapshot, resolution_m)
        except QueryError as error:
            why = error  # a block may be too young, the whole must not
            continue
        pieces.append((vertices, faces + np.int32(first), rgb))
        first += len(vertices)
    if not pieces:
        raise QueryError("there is no surface yet; feed frames first") if first == 0 and not world.parts else why
    vertices, faces, rgb = (np.concatenate(column) for column in zip(*pieces))
    return vertices, faces, rgb


def write_mesh(
    path: str | Path, vertices: np.ndarray, faces: np.ndarray, rgb: np.ndarray, *, comments: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """A coloured triangle mesh as binary little-endian PLY.

    Args:
        vertices: [V, 3] metres. faces: [F, 3] rows of vertices. rgb: [V, 3] uint8.

    Raises:
        ConfigError: shapes that do not belong together, or a path that is taken.
    """
    vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ConfigError(f"vertices are {vertices.shape} and faces {faces.shape}; expected [V, 3] and [F, 3]")
    if len(faces) and not (0 <= faces.min() and faces.max() < len(vertices)):
        raise ConfigError(f"faces name vertices {faces.min()} to {faces.max()}; there are {len(vertices)}")
    points = np.empty(len(vertices), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    points["xyz"], points["rgb"] = vertices, _rows("rgb", rgb, len(vertices), 3)
    triangles = np.empty(len(faces), [("count", "u1"), ("rows", "<i4", 3)])
    triangles["count"], triangles["rows"] = 3, faces
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += ["comment " + " ".join(comment.split()) for comment in comments]
    lines += [f"element vertex {len(vertices)}", *(f"property float {axis}" for axis in "xyz")]
    lines += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    data = "\n".join(lines).encode("ascii", "replace") + points.tobytes() + triangles.tobytes()
    return write_file(path, data, overwrite=overwrite)


def _storable(name: str, values: np.ndarray) -> np.ndarray:
    """The values in a type PLY has."""
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        small = values.astype(np.int32)
        if not np.array_equal(small, values):
            raise ConfigError(f"scalar {name!r} is {values.dtype} beyond 32 bits, PLY's widest; pass float64")
        return small
    if values.dtype.str[1:] not in PLY_TYPES:
        raise ConfigError(f"scalar {name!r} is {values.dtype}; allowed are bool, integers and floats up to 64 bits")
    return values


def quaternion_xyzw(R: np.ndarray) -> np.ndarray:
    """The unit quaternion x, y, z, w of a rotation [3, 3], w >= 0."""
    from scipy.spatial.transform import Rotation

    q = np.asarray(Rotation.from_matrix(R).as_quat())
    return q if q[3] >= 0 else -q


def _numbers(array: np.ndarray) -> Any:
    """Nested lists with nanometres kept and what is not finite as null: JSON has no NaN."""
    if array.ndim:
        return [_numbers(row) for row in array]
    value = float(array)
    return round(value, 9) + 0.0 if np.isfinite(value) else None


def _pose(T: np.ndarray) -> dict[str, Any]:
    return {"position_m": _numbers(T[:3, 3]), "orientation_xyzw": _numbers(quaternion_xyzw(T[:3, :3]))}


def _grasp(grasp: Grasp) -> dict[str, Any]:
    return {
        "score": _numbers(np.asarray(grasp.score)),
        "approach": grasp.approach,
        "width_m": _numbers(np.asarray(grasp.width_m)),
        "measured": grasp.measured,
        "pose": _pose(grasp.T_world_gripper),
        "T_world_gripper": _numbers(grasp.T_world_gripper),
        "contacts_m": _numbers(grasp.contacts),
    }


def _object(thing: Object) -> dict[str, Any]:
    return {
        "id": thing.id,
        "prompt": thing.prompt,
        "score": _numbers(np.asarray(thing.score)),
        "confidence": _numbers(np.asarray(thing.confidence)),
        "centroid_m": _numbers(thing.centroid),
        "box": {"pose": _pose(thing.box.T_world_box), "half_extents_m": _numbers(thing.box.half_extents)},
        "points": thing.n_points,
        "observations": thing.observations,
        "last_seen_s": _numbers(np.asarray(thing.last_seen_s)),
        "found_s": _numbers(np.asarray(thing.stamp_s)),
        "part": None if thing.part is None else {
            "prompt": thing.part.prompt, "score": _numbers(np.asarray(thing.part.score)), "points": len(thing.part.rows)
        },
        "grasps": [_grasp(grasp) for grasp in thing.grasps],
        "rejected": dict(sorted(thing.rejected.items(), key=lambda item: (-item[1], item[0]))),
    }  # fmt: skip


def objects_json(
    objects: Sequence[Object], *, global_frame: str, stamp_s: float, gripper: GripperConfig | None = None
) -> dict[str, Any]:
    """Objects as plain JSON values, with units, frame and conventions, so that the file explains itself.

    Args:
        stamp_s: seconds, of the map that answered. gripper: what the grasps were made for.
    """
    return {
        "format": "semfield-objects",
        "version": 1,
        "global_frame": global_frame,
        "stamp_s": _numbers(np.asarray(stamp_s)),
        "units": {"length": "m", "time": "s", "score": "0 to 1", "confidence": "0 to 1"},
        "conventions": CONVENTIONS,
        "gripper": None if gripper is None else asdict(gripper),
        "objects": [_object(thing) for thing in objects],
    }


def write_json(path: str | Path, data: Mapping[str, Any], *, overwrite: bool = False) -> Path:
    """Strict JSON (no NaN), UTF-8, indented; written whole or not at all.

    Raises:
        ConfigError: values JSON does not have, or a path that is taken.
    """
    try:
        text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {error}; JSON holds finite numbers, text, lists and dictionaries only") from error
    return write_file(path, (text + "\n").encode(), overwrite=overwrite)
