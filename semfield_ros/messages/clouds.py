"""sensor_msgs/PointCloud2 to arrays and back: any fields, any layout, either byte order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import QueryError
from .types import types

_DATATYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""NumPy type by sensor_msgs/PointField datatype."""
_NUMBERS = {name: number for number, name in _DATATYPES.items()}


def to_cloud(
    points: np.ndarray,
    header: Any,
    *,
    rgb: np.ndarray | None = None,
    fields: Mapping[str, np.ndarray] | None = None,
) -> Any:
    """A PointCloud2 of N points (one row, no padding, little endian).

    Args:
        points: [N, 3], metres; sent as float32. NaN is allowed and clears `is_dense`.
        header: std_msgs/Header. rgb: [N, 3] uint8; sent as RViz expects it, packed into a float32 named `rgb`.
        fields: further channels [N] by name; int8 to int32, uint8 to uint32, float32 and float64 are sent as they are,
            bool as uint8, 64-bit integers as int32.

    Raises:
        QueryError: a channel of another length or type.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3:
        raise QueryError(f"points have shape {points.shape}; expected [N, 3]")
    channels = {name: points[:, k] for k, name in enumerate("xyz")}
    kinds = dict.fromkeys("xyz", "f4")
    if rgb is not None:
        channels["rgb"], kinds["rgb"] = pack_rgb(rgb), "f4"
    for name, values in (fields or {}).items():
        values = np.asarray(values)
        if values.dtype == bool:
            values = values.astype(np.uint8)
        kind = "i4" if values.dtype.kind in "iu" and values.dtype.itemsize == 8 else values.dtype.str[1:]
        if kind not in _NUMBERS or name in channels:
            raise QueryError(
                f"channel {name!r} has type {values.dtype}; allowed: {', '.join(_NUMBERS)}, each name once"
            )
        channels[name], kinds[name] = values, kind
    table = np.empty(len(points), dtype=[(name, f"<{kind}") for name, kind in kinds.items()])
    for name, values in channels.items():
        if values.shape != (len(points),):
            raise QueryError(f"channel {name!r} has shape {values.shape}; expected ({len(points)},)")
        table[name] = values
    new, dtype = types().new, table.dtype
    assert dtype.fields is not None
    return new(
        "sensor_msgs/msg/PointCloud2",
        header=header,
        height=1,
        width=len(points),
        fields=[_field(name, int(dtype.fields[name][1]), _NUMBERS[kind]) for name, kind in kinds.items()],
        is_bigendian=False,
        point_step=dtype.itemsize,
        row_step=dtype.itemsize * len(points),
        data=table.view(np.uint8),
        is_dense=bool(np.isfinite(points).all()),
    )


def _field(name: str, offset: int, datatype: int) -> Any:
    field = types().new("sensor_msgs/msg/PointField", offset=offset, datatype=datatype, count=1)
    field.name = name
    return field


def from_cloud(message: Any) -> dict[str, np.ndarray]:
    """The channels of a PointCloud2 by name, native byte order: [N], or [N, count] for fields of several numbers.

    Organised clouds become N = height * width points, row by row. NaN is kept. `rgb` stays packed, see `unpack_rgb`.

    Raises:
        QueryError: a message whose sizes do not fit together, or with a datatype that does not exist.
    """
    height, width = int(message.height), int(message.width)
    step, row_step = int(message.point_step), int(message.row_step)
    data = np.frombuffer(message.data, np.uint8)
    if not height * width:
        height, width, row_step, data = 1, 0, 0, data[:0]
    elif width * step > row_step or height * row_step > len(data) or step < 1:
        raise QueryError(
            f"the cloud says {height} rows of {row_step} bytes with {width} points of {step} bytes, and has "
            f"{len(data)} bytes; its publisher filled point_step, row_step or data wrongly"
        )
    order = ">" if message.is_bigendian else "<"
    layout = {}
    for field in message.fields:
        kind = _DATATYPES.get(int(field.datatype))
        if kind is None:
            raise QueryError(f"field {field.name!r} has datatype {field.datatype}; allowed: 1 to 8 (PointField)")
        dtype = np.dtype((f"{order}{kind}", (int(field.count),) if field.count > 1 else ()))
        if field.offset + dtype.itemsize > step or field.name in layout:
            raise QueryError(
                f"field {field.name!r} ends at byte {field.offset + dtype.itemsize} of points of {step} bytes, or is "
                "there twice; its publisher filled the fields wrongly"
            )
        layout[field.name] = (dtype, int(field.offset))
    record = np.dtype(
        {
            "names": list(layout),
            "formats": [dtype for dtype, _ in layout.values()],
            "offsets": [offset for _, offset in layout.values()],
            "itemsize": max(step, 1),
        }
    )
    table = np.ndarray((height, width), record, data, strides=(row_step, step))
    channels = {}
    for name in layout:
        values = table[name].reshape(height * width, *table[name].shape[2:])
        channels[name] = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    return channels


def cloud_points(message: Any) -> np.ndarray:
    """x, y, z of a PointCloud2: [N, 3] float32, NaN kept.

    Raises:
        QueryError: as `from_cloud`, or there is no x, y, z.
    """
    channels = from_cloud(message)
    missing = [name for name in "xyz" if name not in channels]
    if missing:
        raise QueryError(f"the cloud has no field {missing[0]!r}; it has {', '.join(channels) or 'none'}")
    return np.stack([channels[name].astype(np.float32, copy=False) for name in "xyz"], axis=-1)


def pack_rgb(rgb: np.ndarray) -> np.ndarray:
    """[N, 3] uint8 as [N] float32 whose bits are 0x00RRGGBB, the way of PCL and RViz."""
    rgb = np.asarray(rgb)
    if rgb.ndim != 2 or rgb.shape[1] != 3 or rgb.dtype != np.uint8:
        raise QueryError(f"rgb is {rgb.dtype} of shape {rgb.shape}; expected uint8 [N, 3]")
    wide = rgb.astype(np.uint32)
    return ((wide[:, 0] << 16) | (wide[:, 1] << 8) | wide[:, 2]).view(np.float32)


def unpack_rgb(packed: np.ndarray) -> np.ndarray:
    """[N, 3] uint8 of a channel `rgb` or `rgba`, float32 or 32-bit integer."""
    if packed.dtype.itemsize != 4:
        raise QueryError(f"packed colours are {packed.dtype}; expected float32, int32 or uint32")
    bits = np.ascontiguousarray(packed).view(np.uint32)
    return np.stack([(bits >> 16) & 255, (bits >> 8) & 255, bits & 255], axis=-1).astype(np.uint8)
