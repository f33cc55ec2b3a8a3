"""Message types without ROS: hashes against rosidl's, CDR bytes against a hand-written encoder, defaults, refusals."""

import json
import os
import shutil
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semfield_ros.errors import ConfigError, WireError
from semfield_ros.messages import types as module
from semfield_ros.messages.types import Types, types

# As rosidl of ROS 2 Jazzy computes them (share/PACKAGE/{msg,srv}/NAME.json).
GOLDEN = {
    "std_msgs/msg/String": "df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18",
    "sensor_msgs/msg/Image": "d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47",
    "sensor_msgs/msg/PointCloud2": "9198cabf7da3796ae6fe19c4cb3bdd3525492988c70522628af5daa124bae2b5",
    "nav_msgs/msg/Odometry": "3cc97dc7fb7502f8714462c526d369e35b603cfc34d946e3f2eda2766dfec6e0",
    "tf2_msgs/msg/TFMessage": "e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087",
    "std_srvs/srv/Trigger": "eeff2cd6fa5ad9d27cdf4dec64818317839b62f212a91e6b5304b634b2062c5f",
    "std_srvs/srv/SetBool": "abe9e4bb6b41b40e6789712c00ec8871923e089af3f667a79992a428cff2da0a",
    "vision_msgs/msg/Detection3DArray": "793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018",
    "vision_msgs/msg/LabelInfo": "3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783",
}
PARTS = {
    "msg": ("",),
    "srv": ("", "_Request", "_Response", "_Event"),
    "action": ("_Goal", "_Result", "_Feedback"),
}


@pytest.fixture
def definitions(root, tmp_path, monkeypatch):
    """Definitions that a test may change, where a package installed by pip has them."""
    shutil.copytree(module.DEFINITIONS, tmp_path / "definitions")
    for kind in ("msg", "srv", "action"):
        shutil.copytree(root / kind, tmp_path / "definitions" / "semfield_ros" / kind)
    monkeypatch.setattr(module, "DEFINITIONS", tmp_path / "definitions")
    return tmp_path / "definitions"


def ours(root):
    """Names of all our types; of an action, of its goal, result and feedback."""
    for path in sorted(p for kind in ("msg", "srv", "action") for p in (root / kind).iterdir()):
        name = f"semfield_ros/{path.parent.name}/{path.stem}"
        parts = {
            "msg": [""],
            "srv": ["", "_Request", "_Response", "_Event"],
            "action": ["_Goal", "_Result", "_Feedback"],
        }
        yield from (name + part for part in parts[path.parent.name])


def test_golden_hashes():
    for name, digest in GOLDEN.items():
        assert types().hash(name) == f"RIHS01_{digest}"


def rosidl_hashes():
    """Every type hash that an installed ROS 2 knows, {name: hash}."""
    found = {}
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        for kind in ("msg", "srv", "action"):
            for path in Path(prefix).glob(f"share/*/{kind}/*.json"):
                entries = json.loads(path.read_text()).get("type_hashes", [])
                found.update({entry["type_name"]: entry["hash_string"] for entry in entries})
    return found


@pytest.mark.ros
def test_hashes_are_those_of_rosidl():
    hashes = rosidl_hashes()
    known = {name for name in hashes if name in types() and not name.startswith("semfield_ros/")}
    assert set(GOLDEN) <= known
    assert {name: types().hash(name) for name in known} == {name: hashes[name] for name in known}


@pytest.mark.ros
def test_our_hashes_are_those_of_rosidl(root):
    hashes = {name: value for name, value in rosidl_hashes().items() if name.startswith("semfield_ros/")}
    if not hashes:
        pytest.skip("semfield_ros is not built with colcon")
    assert {name: types().hash(name) for name in ours(root)} == {name: hashes[name] for name in ours(root)}


def test_a_hash_covers_fields_and_nested_types_but_not_comments(definitions):
    nested = definitions / "semfield_ros" / "msg" / "SemanticObject.msg"
    names = [f"semfield_ros/msg/{n}" for n in ("SemanticObject", "Answer", "GraspCandidate")]
    before = [Types().hash(name) for name in names]
    nested.write_text(nested.read_text() + "# a comment\n")
    assert [Types().hash(name) for name in names] == before
    nested.write_text(nested.read_text() + "float32 one_more\n")
    after = [Types().hash(name) for name in names]
    assert [a != b for a, b in zip(after, before)] == [True, True, False]
    service = definitions / "semfield_ros" / "srv" / "Query.srv"
    query = Types().hash("semfield_ros/srv/Query")
    service.write_text(service.read_text() + "bool more\n")
    assert Types().hash("semfield_ros/srv/Query") != query


def test_definitions_that_are_nowhere_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "a/b/c/types.py"))
    monkeypatch.setattr(module, "DEFINITIONS", tmp_path)
    with pytest.raises(WireError, match="install the package again"):
        Types()


def test_definitions_are_found_in_a_colcon_prefix(root, tmp_path, monkeypatch):
    for kind in ("msg", "srv", "action"):
        shutil.copytree(root / kind, tmp_path / "share" / "semfield_ros" / kind)
    installed = tmp_path / "lib/python3/site-packages/semfield_ros/messages/types.py"
    monkeypatch.setattr(module, "__file__", str(installed))
    assert "semfield_ros/msg/Answer" in Types()


def test_every_type_of_ours_goes_there_and_back(root):
    services = {f"semfield_ros/srv/{path.stem}" for path in (root / "srv").iterdir()}
    for name in ours(root):
        if name.endswith("_Event") or name in services:
            continue
        data = types().encode(types().new(name))
        assert types().encode(types().decode(data, name)) == data, name


def test_defaults_are_zero_empty_and_false():
    new = types().new
    message = new("sensor_msgs/msg/CameraInfo")
    assert (message.height, message.distortion_model, message.roi.do_rectify) == (0, "", False)
    assert message.k.shape == (9,) and message.k.dtype == np.float64 and not message.k.any()
    assert message.d.shape == (0,) and message.header.stamp.sec == 0
    assert new("vision_msgs/msg/Detection3DArray").detections == []
    assert new("geometry_msgs/msg/PoseWithCovariance").covariance.shape == (36,)
    assert types().fields("std_srvs/srv/Trigger_Request") == []
    assert new("diagnostic_msgs/msg/DiagnosticStatus", name="a field of that name").name


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])), stamp=st.tuples(
    st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1)), data=st.binary(max_size=40))  # fmt: skip
def test_cdr_bytes_are_those_of_the_specification(text, stamp, data):
    """sensor_msgs/CompressedImage by hand: 4-byte header, then alignment counted from after it."""
    new = types().new
    header = new("std_msgs/msg/Header", stamp=new("builtin_interfaces/msg/Time", sec=stamp[0], nanosec=stamp[1]))
    header.frame_id = text
    message = new("sensor_msgs/msg/CompressedImage", header=header, format="jpeg", data=data)

    body = struct.pack("<iI", *stamp)
    for string in (text, "jpeg"):
        encoded = string.encode() + b"\0"
        body += b"\0" * (-len(body) % 4) + struct.pack("<I", len(encoded)) + encoded
    body += b"\0" * (-len(body) % 4) + struct.pack("<I", len(data)) + data
    assert types().encode(message) == b"\0\1\0\0" + body

    back = types().decode(b"\0\1\0\0" + body, "sensor_msgs/msg/CompressedImage")
    assert (back.header.frame_id, back.header.stamp.sec, back.data.tobytes()) == (text, stamp[0], data)


def test_doubles_are_aligned_to_eight_bytes():
    point = types().new("geometry_msgs/msg/Point", x=1.0, y=2.0, z=3.0)
    header = types().new("std_msgs/msg/Header", frame_id="map")
    data = types().encode(types().new("geometry_msgs/msg/PointStamped", header=header, point=point))
    assert data == bytes.fromhex("00010000") + struct.pack("<iII4s", 0, 0, 4, b"map\0") + struct.pack("<3d", 1, 2, 3)
    data = types().encode(types().new("geometry_msgs/msg/PointStamped", point=point))
    assert data[4:] == struct.pack("<iIIB3x", 0, 0, 1, 0) + struct.pack("<3d", 1, 2, 3)


def test_big_endian_bytes_are_understood():
    data = bytes.fromhex("00000000") + struct.pack(">iI", -5, 7)
    stamp = types().decode(data, "builtin_interfaces/msg/Time")
    assert (stamp.sec, stamp.nanosec) == (-5, 7)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "0001",
        "00010000",
        "00010000ffffffff",
        "0001000005000000616263",
        "0001000003000000616263",
        "000300000100000000",
        "00010000020000006100000000000000000000",
    ],
)
def test_foreign_bytes_are_refused(data):
    """Nothing, cut off, no terminator, another encapsulation, far too long."""
    with pytest.raises(WireError, match="are no std_msgs/msg/String"):
        types().decode(bytes.fromhex(data), "std_msgs/msg/String")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data):
    for name in ("sensor_msgs/msg/PointCloud2", "tf2_msgs/msg/TFMessage", "vision_msgs/msg/LabelInfo"):
        try:
            types().decode(b"\0\1\0\0" + data, name)
        except WireError:
            pass


def test_arrays_are_views_and_numbers_are_converted():
    new = types().new
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    message = new("sensor_msgs/msg/Image", data=pixels[:, ::-1])
    assert message.data.tolist() == pixels[:, ::-1].reshape(-1).tolist()
    back = types().decode(types().encode(message), "sensor_msgs/msg/Image")
    assert not back.data.flags.writeable and back.data.base is not None
    assert new("sensor_msgs/msg/CameraInfo", k=[1, 0, 0, 0, 1, 0, 0, 0, 1]).k.dtype == np.float64
    assert new("sensor_msgs/msg/CameraInfo", d=np.arange(5)).d.dtype == np.float64
    assert new("sensor_msgs/msg/Image", data=b"\1\2").data.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("sensor_msgs/msg/Image", {"daat": b""}, "did you mean data"),
        ("sensor_msgs/msg/Image", {"data": np.zeros(3)}, "convert it explicitly"),
        ("sensor_msgs/msg/Image", {"data": ["a"]}, "holds uint8; "),
        ("sensor_msgs/msg/Image", {"data": [256]}, "holds uint8; "),
        ("sensor_msgs/msg/Image", {"data": [-1, 0]}, "holds uint8; "),
        ("sensor_msgs/msg/Image", {"data": [1.5]}, "holds uint8; "),
        ("sensor_msgs/msg/Image", {"data": [float("nan")]}, "holds uint8; "),
        ("sensor_msgs/msg/Image", {"data": np.zeros(3, np.int64)}, "convert it explicitly"),
        ("sensor_msgs/msg/LaserScan", {"ranges": "abc"}, "holds float32; 'abc'"),
        ("sensor_msgs/msg/CameraInfo", {"k": [1.0]}, "holds 9 numbers, not 1"),
        ("sensor_msgs/msg/Imag", {}, "did you mean sensor_msgs/msg/Image"),
        ("nonsense", {}, "not known"),
    ],
)
def test_what_cannot_be_is_refused(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        types().new(name, **fields)


def test_fields_of_the_wrong_type_are_refused_when_encoded():
    for message in (
        types().new("std_msgs/msg/String", data=3),
        types().new("std_msgs/msg/Header", stamp="now"),
        types().new("builtin_interfaces/msg/Time", sec=1.5),
        types().new("builtin_interfaces/msg/Time", nanosec=-1),
    ):
        with pytest.raises(WireError, match="has the wrong type"):
            types().encode(message)


def test_threads_share_one_set():
    fresh, errors = Types(), []

    def use():
        try:
            for name in ("sensor_msgs/msg/Image", "semfield_ros/msg/Answer"):
                fresh.decode(fresh.encode(fresh.new(name)), name)
                fresh.hash(name)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
