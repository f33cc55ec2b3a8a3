"""PointCloud2: against NumPy structured arrays and bytes packed by hand with struct."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semfield_ros.errors import QueryError
from semfield_ros.messages.clouds import cloud_points, from_cloud, to_cloud, unpack_rgb
from semfield_ros.messages.poses import header_of
from semfield_ros.messages.types import types

HEADER = header_of(1_500_000_000, "map")


def field(name: str, offset: int, datatype: int, count: int = 1) -> object:
    message = types().new("sensor_msgs/msg/PointField", offset=offset, datatype=datatype, count=count)
    message.name = name
    return message


def cloud(data: bytes, fields: list, **sizes) -> object:
    return types().new(
        "sensor_msgs/msg/PointCloud2", header=HEADER, fields=fields, data=np.frombuffer(data, np.uint8), **sizes
    )


def test_the_bytes_are_those_that_rviz_reads():
    message = to_cloud(
        np.array([[1.0, 2.0, 3.0], [-1.5, np.nan, 0.0]]), HEADER, rgb=np.array([[255, 128, 1], [0, 0, 7]], np.uint8),
        fields={"label": np.array([5, -1], np.int32), "seen": np.array([True, False])},
    )  # fmt: skip
    assert [(f.name, f.offset, f.datatype, f.count) for f in message.fields] == [
        ("x", 0, 7, 1), ("y", 4, 7, 1), ("z", 8, 7, 1), ("rgb", 12, 7, 1), ("label", 16, 5, 1), ("seen", 20, 2, 1)
    ]  # fmt: skip
    assert (message.height, message.width, message.point_step, message.row_step) == (1, 2, 21, 42)
    assert not message.is_bigendian and not message.is_dense
    first = struct.pack("<fffIiB", 1, 2, 3, 0x00FF8001, 5, 1)
    second = struct.pack("<fffIiB", -1.5, np.nan, 0, 0x00000007, -1, 0)
    assert bytes(message.data) == first + second
    assert types().decode(types().encode(message), "sensor_msgs/msg/PointCloud2").header.frame_id == "map"


CHANNELS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64]


@given(st.integers(0, 40), st.lists(st.sampled_from(CHANNELS), max_size=6), st.booleans(), st.integers(0, 2**31))
def test_clouds_survive_their_bytes(count, kinds, coloured, seed):
    random = np.random.default_rng(seed)
    points = random.normal(size=(count, 3)).astype(np.float32)
    points[random.random(points.shape) < 0.1] = np.nan
    rgb = random.integers(0, 256, (count, 3), dtype=np.uint8) if coloured else None
    fields = {f"c{k}": (random.random(count) * 100).astype(kind) for k, kind in enumerate(kinds)}
    message = types().decode(
        types().encode(to_cloud(points, HEADER, rgb=rgb, fields=fields)), "sensor_msgs/msg/PointCloud2"
    )
    channels = from_cloud(message)
    assert np.array_equal(cloud_points(message), points, equal_nan=True)
    assert message.is_dense == bool(np.isfinite(points).all())
    for name, values in fields.items():
        assert channels[name].dtype == values.dtype and np.array_equal(channels[name], values)
    if coloured:
        assert np.array_equal(unpack_rgb(channels["rgb"]), rgb)


@pytest.mark.parametrize("order", "<>")
def test_organised_padded_clouds_in_either_byte_order(order):
    # Two rows of three points; each point has a hole of 2 bytes and each row 5 bytes of padding.
    rows = []
    for r in range(2):
        points = [struct.pack(f"{order}d2xfHfff", r, c, 10 * r + c, c, c + 1, c + 2) for c in range(3)]
        rows.append(b"".join(points) + b"\xaa" * 5)
    fields = [field("x", 0, 8), field("y", 10, 7), field("ring", 14, 4), field("normal", 16, 7, 3)]
    message = cloud(b"".join(rows), fields, height=2, width=3, point_step=28, row_step=89, is_bigendian=order == ">")
    channels = from_cloud(message)
    assert channels["x"].tolist() == [0, 0, 0, 1, 1, 1] and channels["x"].dtype == np.float64
    assert channels["y"].tolist() == [0, 1, 2] * 2 and channels["y"].dtype == np.float32
    assert channels["ring"].tolist() == [0, 1, 2, 10, 11, 12] and channels["ring"].dtype == np.uint16
    assert channels["normal"].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]] * 2
    assert all(values.dtype.isnative for values in channels.values())


def test_double_coordinates_become_float32():
    data = np.array([(1.5, 2.5, 3.5)], [("z", "<f8"), ("x", "<f8"), ("y", "<f8")]).tobytes()
    fields = [field("z", 0, 8), field("x", 8, 8), field("y", 16, 8)]
    message = cloud(data, fields, height=1, width=1, point_step=24, row_step=24)
    points = cloud_points(message)
    assert points.dtype == np.float32 and points.tolist() == [[2.5, 3.5, 1.5]]


def test_an_empty_cloud_has_no_points():
    assert cloud_points(to_cloud(np.zeros((0, 3)), HEADER)).shape == (0, 3)
    xyz = [field(name, 4 * k, 7) for k, name in enumerate("xyz")]
    assert cloud_points(cloud(b"", xyz, height=0, width=0, point_step=12)).shape == (0, 3)


XYZ = [field(name, 4 * k, 7) for k, name in enumerate("xyz")]


@pytest.mark.parametrize(
    ("fields", "sizes", "said"),
    [
        (XYZ, {"width": 3, "row_step": 36}, "24 bytes"),
        (XYZ, {"width": 2, "row_step": 12}, "row_step"),
        (XYZ, {"height": 2, "row_step": 24}, "2 rows"),
        (XYZ, {"point_step": 0}, "0 bytes"),
        ([*XYZ, field("w", 10, 7)], {}, "'w' ends at byte 14"),
        ([*XYZ, field("w", 0, 7, 4)], {}, "'w' ends at byte 16"),
        ([*XYZ, field("w", 0, 9)], {}, "datatype 9"),
        ([*XYZ, field("x", 0, 7)], {}, "twice"),
    ],
)
def test_lies_are_refused(fields, sizes, said):
    honest = {"height": 1, "width": 2, "point_step": 12, "row_step": 24}
    with pytest.raises(QueryError, match=said):
        from_cloud(cloud(bytes(24), fields, **{**honest, **sizes}))


def test_a_cloud_without_z_has_no_points():
    with pytest.raises(QueryError, match=r"no field 'z'.* x, y"):
        cloud_points(cloud(bytes(24), XYZ[:2], height=1, width=2, point_step=12, row_step=24))


@pytest.mark.parametrize(
    ("points", "options", "said"),
    [
        (np.zeros((4, 2)), {}, r"\(4, 2\)"),
        (np.zeros((4, 3)), {"rgb": np.zeros((4, 3))}, "rgb is float64"),
        (np.zeros((4, 3)), {"rgb": np.zeros((3, 3), np.uint8)}, "'rgb' has shape"),
        (np.zeros((4, 3)), {"fields": {"label": np.zeros(3, np.int32)}}, "'label' has shape"),
        (np.zeros((4, 3)), {"fields": {"x": np.zeros(4, np.int32)}}, "each name once"),
        (np.zeros((4, 3)), {"fields": {"word": np.array(list("abcd"))}}, "'word' has type"),
    ],
)
def test_what_is_no_cloud_is_refused(points, options, said):
    with pytest.raises(QueryError, match=said):
        to_cloud(points, HEADER, **options)


def test_wide_integers_are_sent_narrow():
    channels = from_cloud(to_cloud(np.zeros((2, 3)), HEADER, fields={"id": np.array([1, -2])}))
    assert channels["id"].dtype == np.int32 and channels["id"].tolist() == [1, -2]
