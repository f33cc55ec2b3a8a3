"""The mesh of classes: pieces by hand, and a scene whose every surface is known."""

from dataclasses import replace

import numpy as np
import pytest
from analytic_scene import SMALL, STUB_DIM, cast, frame_at, ring
from plyfile import PlyData

from semfield_ros.config import EncoderConfig, HeadsConfig
from semfield_ros.encoders import create
from semfield_ros.engine import Engine
from semfield_ros.errors import QueryError
from semfield_ros.mapping import Mapping
from semfield_ros.node.exports import write_semantic_mesh
from semfield_ros.semantic_mesh import large_parts, semantic_mesh

CONFIG = replace(SMALL, heads=HeadsConfig(semantic_classes=3, class_names=("table", "red", "blue")))


def fan(first, n):
    """n triangles around one vertex, as rows of vertices from `first` on."""
    return np.array([(first, first + i, first + i + 1) for i in range(1, n + 1)])


def test_small_parts_go_and_rows_follow():
    faces = np.concatenate([fan(0, 5), fan(7, 2), fan(11, 6)])
    left, used = large_parts(faces, 19, 5)
    assert used.tolist() == [*range(7), *range(11, 19)]
    assert (used[left] == np.concatenate([fan(0, 5), fan(11, 6)])).all()
    assert len(large_parts(faces, 19, 7)[0]) == 0 and len(large_parts(faces, 19, 0)[0]) == 13


@pytest.fixture(scope="module")
def engine():
    with Engine(CONFIG, create(EncoderConfig(name="stub"))) as running:
        running.pause()
        for i, T in enumerate(ring(8)):
            running.submit(replace(frame_at(T, i), semantic=(cast(T)[1] + 1).astype(np.int32)), block=True)
        running.drain()
        running.train(steps=200)
        yield running


def test_vertices_have_the_class_of_their_surface(engine):
    mesh = semantic_mesh(engine.snapshot(), 0.02)
    assert len(mesh.faces) >= 400 and mesh.label.shape == (len(mesh.vertices),)
    x, y, z = mesh.vertices.T
    on_top = (z > 0.13) & (x > -0.2) & (x < -0.08) & (y > -0.08) & (y < 0.04)
    plain = (np.abs(z) < 0.02) & (np.hypot(x, y) > 0.32) & (np.hypot(x, y) < 0.5)
    assert on_top.sum() > 20 and plain.sum() > 100
    assert (mesh.label[on_top] == 2).mean() > 0.95 and (mesh.label[plain] == 1).mean() > 0.95


def test_the_file_says_what_the_colours_mean(engine, tmp_path):
    count = write_semantic_mesh(tmp_path / "mesh.ply", engine.snapshot(), engine, 0.03, overwrite=False)
    read = PlyData.read(str(tmp_path / "mesh.ply"))
    assert len(read["vertex"]) == count and len(read["face"]) > 0
    assert any("red is" in comment for comment in read.comments)


def test_what_cannot_be_meshed_is_said(engine):
    with pytest.raises(QueryError, match="1000000000 triangles"):
        semantic_mesh(engine.snapshot(), 0.05, 10**9)
    with pytest.raises(QueryError, match="least_triangles"):
        semantic_mesh(engine.snapshot(), 0.05, -1)
    with pytest.raises(QueryError, match="no surface"):
        semantic_mesh(Mapping(CONFIG, STUB_DIM, "cpu").snapshot())
