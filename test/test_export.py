"""Files read back by independent programs."""

from __future__ import annotations

import json
import stat

import numpy as np
import plyfile
import pytest
import trimesh
from surface_shapes import box, cloud_of, moved, mug, table

from semfield_ros.config import GraspConfig, GripperConfig, ObjectConfig
from semfield_ros.errors import ConfigError
from semfield_ros.export import objects_json, quaternion_xyzw, write_json, write_ply
from semfield_ros.objects import find_objects, with_grasps


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_ply_round_trip_with_every_type(tmp_path, rng):
    n = 37
    points, normals = rng.normal(size=(n, 3)), rng.normal(size=(n, 3)).astype(np.float32)
    rgb = rng.integers(0, 256, (n, 3), dtype=np.uint8)
    scalars = {
        "relevancy": rng.random(n).astype(np.float32),
        "half": rng.random(n).astype(np.float16),
        "stamp": rng.random(n) * 1e9,
        "seen": rng.random(n) > 0.5,
        "label": rng.integers(-5, 5, n),
        "count": rng.integers(0, 9, n).astype(np.uint16),
        "big": rng.random(n).astype(">f4"),
    }
    path = write_ply(tmp_path / "a.ply", points, normals=normals, rgb=rgb, scalars=scalars, comments=["frame map"])
    read = plyfile.PlyData.read(path)
    vertex = read["vertex"]
    names = [p.name for p in vertex.properties]
    assert names == ["x", "y", "z", "nx", "ny", "nz", "red", "green", "blue", *scalars]
    assert read.comments == ["frame map"] and read.byte_order == "<"
    np.testing.assert_array_equal(np.stack([vertex[k] for k in "xyz"], 1), points.astype(np.float32))
    np.testing.assert_array_equal(np.stack([vertex[k] for k in ("nx", "ny", "nz")], 1), normals)
    np.testing.assert_array_equal(np.stack([vertex[k] for k in ("red", "green", "blue")], 1), rgb)
    for name, values in scalars.items():
        np.testing.assert_array_equal(vertex[name], values)

    cloud = trimesh.load(path)
    np.testing.assert_allclose(cloud.vertices, points, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], rgb)


def test_an_empty_cloud_is_a_file_too(tmp_path):
    path = write_ply(tmp_path / "empty.ply", np.zeros((0, 3)), scalars={"s": np.zeros(0)})
    assert plyfile.PlyData.read(path)["vertex"].count == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": np.zeros((3, 2))}, r"points have shape \(3, 2\)"),
        ({"normals": np.zeros((2, 3))}, "normals has shape"),
        ({"rgb": np.zeros((3, 3))}, "expected uint8"),
        ({"scalars": {"s": np.zeros(4)}}, "'?s'? has shape"),
        ({"scalars": {"x": np.zeros(3)}}, "name not taken"),
        ({"scalars": {"white mug": np.zeros(3)}}, "white mug"),
        ({"scalars": {"s": np.array([1 << 40, 0, 0])}}, "beyond 32 bits"),
        ({"scalars": {"s": np.array(["a", "b", "c"])}}, "allowed are"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_leaves_no_file(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        write_ply(tmp_path / "a.ply", **{"points": np.zeros((3, 3)), **arguments})
    assert list(tmp_path.iterdir()) == []


def test_paths(tmp_path):
    target = tmp_path / "new" / "deep" / "a.json"
    write_json(target, {"a": 1})
    with pytest.raises(ConfigError, match="overwrite=True"):
        write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 1}
    write_json(target, {"a": 2}, overwrite=True)
    assert json.loads(target.read_text()) == {"a": 2}
    with pytest.raises(ConfigError, match="folder"):
        write_json(tmp_path / "new", {})
    with pytest.raises(ConfigError, match="below a file"):
        write_json(target / "b.json", {})
    assert [p.name for p in target.parent.iterdir()] == ["a.json"]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = write_json(tmp_path / "a.json", {"a": 1})

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_json(target, {"a": 2}, overwrite=True)
    assert json.loads(target.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_without_json_values(tmp_path):
    for bad in ({"a": float("nan")}, {"a": np.zeros(2)}):
        with pytest.raises(ConfigError, match="JSON"):
            write_json(tmp_path / "a.json", bad)


def test_objects_json_round_trip(tmp_path):
    cloud = cloud_of(
        (moved(mug(), (0.2, 0.1, 0)), (200, 30, 30)),
        (box([-0.2, 0, 0.03], [0.06, 0.05, 0.06]), (200, 200, 200)),
        (table(), (90, 70, 50)),
    )
    score = np.where(cloud.rgb[:, 0] == 90, 0.2, 0.8)
    gripper = GripperConfig()
    objects = find_objects(cloud, score, prompt="thing", high=0.6, low=0.5, stamp_s=12.5)
    objects = with_grasps(
        objects, cloud, objects_config=ObjectConfig(), gripper=gripper, config=GraspConfig()
    )
    assert len(objects) == 2 and all(o.grasps for o in objects)
    data = objects_json(objects, global_frame="map", stamp_s=12.5, gripper=gripper)
    read = json.loads(write_json(tmp_path / "objects.json", data).read_text())
    assert read == data
    assert read["global_frame"] == "map" and read["units"]["length"] == "m" and read["gripper"]["max_width_m"] == 0.085
    for thing, entry in zip(objects, read["objects"]):
        pose, T = entry["box"]["pose"], thing.box.T_world_box
        x, y, z, w = pose["orientation_xyzw"]
        # The quaternion's rotation, written out.
        R = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
        np.testing.assert_allclose(R, T[:3, :3], atol=1e-7)
        np.testing.assert_allclose(pose["position_m"], T[:3, 3], atol=1e-8)
        for grasp, stored in zip(thing.grasps, entry["grasps"]):
            np.testing.assert_allclose(stored["T_world_gripper"], grasp.T_world_gripper, atol=1e-8)
            assert stored["approach"] == grasp.approach
        assert entry["rejected"] == thing.rejected and entry["part"] is None
        assert entry["found_s"] == 12.5 and entry["points"] == thing.n_points


def test_no_objects_is_an_answer(tmp_path):
    data = objects_json([], global_frame="map", stamp_s=float("nan"))
    assert data["objects"] == [] and data["stamp_s"] is None
    write_json(tmp_path / "none.json", data)


def test_quaternion_sign():
    half_turn = np.diag([-1.0, -1.0, 1.0])
    assert quaternion_xyzw(np.eye(3)).tolist() == [0, 0, 0, 1]
    assert abs(quaternion_xyzw(half_turn)[2]) == pytest.approx(1) and quaternion_xyzw(half_turn)[3] >= 0
