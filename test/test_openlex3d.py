"""OpenLex3D predictions, read back as that benchmark reads them: embeddings[index[i]] belongs to point i of the PCD."""

from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import SMALL, frame_at, mapped, ring

from semfield_ros import cli
from semfield_ros.config import EncoderConfig
from semfield_ros.engine import Engine
from semfield_ros.errors import ConfigError, QueryError
from semfield_ros.openlex3d import object_embeddings, pcd_bytes, write_openlex3d
from semfield_ros.query.points import features_at


def read_pcd(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Points and colours of a binary PCD with x y z rgb, by the text of its header."""
    header, body = data.split(b"DATA binary\n", 1)
    entries = dict(line.split(" ", 1) for line in header.decode().splitlines() if not line.startswith("#"))
    assert entries["FIELDS"] == "x y z rgb" and entries["SIZE"] == "4 4 4 4" and entries["TYPE"] == "F F F F"
    count = int(entries["POINTS"])
    assert count == int(entries["WIDTH"]) * int(entries["HEIGHT"]) and len(body) == 16 * count
    values = np.frombuffer(body, "<f4").reshape(count, 4)
    packed = values[:, 3].copy().view(np.uint32)
    return values[:, :3], np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], 1).astype(np.uint8)


@pytest.fixture(scope="module")
def snapshot():
    return mapped(6, steps=5).snapshot()


def read(folder):
    return (
        np.load(folder / "embeddings.npy"), np.load(folder / "index.npy"),
        *read_pcd((folder / "point_cloud.pcd").read_bytes()),
    )  # fmt: skip


def test_pcd_keeps_points_and_colours():
    rng = np.random.default_rng(0)
    points, rgb = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, 256, (50, 3), np.uint8)
    got_points, got_rgb = read_pcd(pcd_bytes(points, rgb))
    assert np.array_equal(got_points, points) and np.array_equal(got_rgb, rgb)
    with pytest.raises(ConfigError, match=r"expected \[N, 3\] both"):
        pcd_bytes(points, rgb.astype(float))


def test_an_object_looks_like_the_mean_of_its_points():
    features = np.array([[1, 0], [0, 1], [0, 1], [0, 0], [1, 0]], np.float32)
    embeddings, kept = object_embeddings(features, np.array([5, 5, 0, 5, 9]))
    half = np.sqrt(0.5)
    assert np.allclose(embeddings, [[half, half], [1, 0]]), "unit lengths; the point without a feature does not count"
    assert kept.tolist() == [True, True, False, True, True]
    with pytest.raises(ConfigError, match="expected integers"):
        object_embeddings(features, np.zeros(5))


def test_dense_predictions_have_the_feature_of_every_point(snapshot, tmp_path):
    points, embeddings = write_openlex3d(tmp_path / "dense", snapshot)
    features, index, xyz, rgb = read(tmp_path / "dense")
    assert points == embeddings == len(features) == len(index) == len(xyz) == snapshot.measured.sum()
    assert features.dtype == np.float32 and np.array_equal(index, np.arange(points))
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-4)
    assert np.allclose(features[index], features_at(snapshot, xyz), atol=1e-5)
    assert np.array_equal(rgb, snapshot.cloud.rgb[snapshot.measured])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"], "nothing temporary is left"


def test_object_predictions_have_one_embedding_each(snapshot, tmp_path):
    instance = np.where(snapshot.cloud.points[:, 2] > 0.02, np.where(snapshot.cloud.points[:, 0] < 0, 4, 9), 0)
    points, embeddings = write_openlex3d(tmp_path / "objects", snapshot, instance=instance)
    features, index, xyz, _ = read(tmp_path / "objects")
    assert embeddings == len(features) == 2 and points == len(xyz) == (instance > 0).sum()
    assert np.array_equal(index == 0, xyz[:, 0] < 0), "index 0 is the lower id"
    own = features_at(snapshot, xyz[index == 1])
    assert np.allclose(features[1], own.mean(0) / np.linalg.norm(own.mean(0)), atol=1e-3)
    with pytest.raises(QueryError, match="no object has known features"):
        write_openlex3d(tmp_path / "none", snapshot, instance=np.zeros(len(instance), int))
    with pytest.raises(ConfigError, match=r"instance has shape \(3,\); the map has"):
        write_openlex3d(tmp_path / "none", snapshot, instance=np.zeros(3, int))
    assert not (tmp_path / "none").exists()


def test_only_a_prediction_is_overwritten(snapshot, tmp_path):
    write_openlex3d(tmp_path / "out", snapshot)
    with pytest.raises(ConfigError, match="exists; choose another folder, or pass overwrite=True"):
        write_openlex3d(tmp_path / "out", snapshot)
    write_openlex3d(tmp_path / "out", snapshot, overwrite=True)
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"holds thesis\.tex, which is no prediction's"):
        write_openlex3d(tmp_path / "out", snapshot, overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_a_map_without_features_cannot_be_compared(snapshot, tmp_path):
    empty = replace(snapshot, measured=np.zeros(len(snapshot.measured), bool))
    with pytest.raises(QueryError, match="no features are known yet"):
        write_openlex3d(tmp_path / "out", empty)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_folder(tmp_path):
    with Engine(replace(SMALL, encoder=EncoderConfig(name="stub"))) as engine:
        for i, T in enumerate(ring(6)):
            engine.submit(frame_at(T, i / 10), block=True)
        engine.snapshot(fresh=True)
        engine.save(tmp_path / "map")
    saved = next(tmp_path.glob("map*"))
    assert cli.main(["export", str(saved), str(tmp_path / "dense"), "--format", "openlex3d"]) == 0
    dense = read(tmp_path / "dense")
    assert len(dense[0]) == len(dense[2]) > 100
    assert cli.main(["export", str(saved), str(tmp_path / "dense"), "--format", "openlex3d"]) == 2
    words = ["--vocabulary", "red", "--vocabulary", "blue", "--vocabulary", "white"]
    assert cli.main(["export", str(saved), str(tmp_path / "things"), "--format", "openlex3d", *words]) == 0
    features, index, points, _ = read(tmp_path / "things")
    assert 2 <= len(features) < len(points) == len(index) <= len(dense[2])
    assert set(index) == set(range(len(features))) and np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-4)
