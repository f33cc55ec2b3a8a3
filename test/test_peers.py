"""Published settings: their sizes as published, hand-computed encodings, and the benchmarks that use them, small."""

import json
import math
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console

from semfield_ros.benchmarks import peers, peers_foreign, unbounded
from semfield_ros.benchmarks.published import F3RM, LERF, SEMANTIC_NERF, Peer, Published, Rays
from semfield_ros.benchmarks.published_coslam import CoSlam
from semfield_ros.benchmarks.published_nets import FrequencyNet, frequencies
from semfield_ros.config import FieldConfig, GridConfig
from semfield_ros.errors import ConfigError, SourceError
from semfield_ros.field.hash_grid import levels_of
from semfield_ros.field.workspace import Workspace
from semfield_ros.sources.replica_layout import write_replica_layout
from semfield_ros.sources.simulator import Simulator, SimulatorConfig

WORKSPACE = Workspace((0.0, 0.0, 0.0), 2.0)


def small(settings: Published) -> Published:
    """The same mechanism with little of everything."""
    grid = GridConfig(levels=2, features=4, log2_table=10, min_resolution=4, max_resolution=8)
    return replace(
        settings, rays=32, samples=(8,) * len(settings.samples), feature_widths=(16,) * len(settings.feature_widths),
        feature_grids=(grid,) * len(settings.feature_grids), top=min(settings.top, 4),
    )  # fmt: skip


def some_rays(n=32, outputs=5):
    generator = torch.Generator().manual_seed(0)
    origins = torch.rand(n, 3, generator=generator) - 0.5
    directions = torch.cat([torch.rand(n, 2, generator=generator) - 0.5, torch.ones(n, 1)], 1)
    feature = torch.nn.functional.normalize(torch.randn(n, outputs, generator=generator), dim=-1)
    return Rays(
        origins, directions, torch.rand(n, 3, generator=generator), torch.rand(n, generator=generator) + 0.5,
        torch.randint(0, outputs + 1, (n,), generator=generator), feature, torch.full((n,), 0.1),
    )  # fmt: skip


def test_frequencies_by_hand():
    found = frequencies(torch.tensor([[0.5, -1.0]]), 2)[0].tolist()
    expected = [0.5, -1.0]
    expected += [math.sin(0.5), math.sin(-1), math.sin(1.0), math.sin(-2)]
    expected += [math.cos(0.5), math.cos(-1), math.cos(1.0), math.cos(-2)]
    assert found == pytest.approx(expected)


def test_semantic_nerf_has_its_published_size():
    net = FrequencyNet(30)
    assert net.before[0].in_features == 63 and net.after[0].in_features == 256 + 63 and net.colour[0].in_features == 283
    # eight layers of 256, a density, a code, a colour and a label head
    trunk = 63 * 256 + 256 + 4 * (256 * 256 + 256) + (319 * 256 + 256) + 2 * (256 * 256 + 256)
    found = sum(p.numel() for part in (net.before, net.after) for p in part.parameters())
    assert found == trunk
    assert sum(p.numel() for p in net.label.parameters()) == 256 * 128 + 128 + 128 * 30 + 30
    assert (SEMANTIC_NERF.rays, SEMANTIC_NERF.samples, SEMANTIC_NERF.weight) == (1024, (64, 128), 0.04)


def test_f3rm_has_its_published_grid():
    (grid,) = F3RM.feature_grids
    # 19,849,216 parameters as published, where the unit cube is not shared with contracted space
    assert sum(level.rows for level in levels_of(grid)) * grid.features == 19_849_216
    assert F3RM.samples == (256, 96, 48) and LERF.top == 24 and LERF.optimiser == "radam"


@pytest.mark.parametrize("settings", [SEMANTIC_NERF, F3RM, LERF], ids=lambda s: s.name)
def test_each_setting_learns_the_colour_of_a_batch(settings):
    peer = Peer(small(settings), WORKSPACE, 5, far_m=3.0)
    rays = some_rays()
    errors = [peer.step(rays) for _ in range(25)]
    assert peer.steps == 25 and np.isfinite(errors).all()
    assert min(errors[-5:]) < errors[0]
    seen = peer.render(rays.origins, rays.directions, 0.1)
    assert seen.semantics.shape == (32, 5) and (seen.depth_m >= 0).all()


def test_semantics_move_density_only_where_published():
    for settings, moves in ((SEMANTIC_NERF, True), (F3RM, True), (LERF, False)):
        peer = Peer(small(settings), WORKSPACE, 5, far_m=3.0)
        rays = some_rays()
        if peer.proposals is None:
            seen = peer._coarse_fine(rays.origins, rays.directions, True)[1]
        else:
            seen, _ = peer._proposed(rays.origins, rays.directions, rays.angle, 0)
        seen.semantics.square().sum().backward()
        net = peer.nets[-1]
        density = net.density if settings is SEMANTIC_NERF else net.shape
        grads = [p.grad for p in density.parameters() if p.grad is not None]
        assert any(bool((g != 0).any()) for g in grads) == moves, settings.name


def test_coslam_learns_a_wall():
    grid = GridConfig(levels=3, features=4, log2_table=12, min_resolution=8, max_resolution=32)
    slam = CoSlam(FieldConfig(geometry_grid=grid, feature_grid=grid, hidden=16), WORKSPACE, far_m=2.0)
    generator = torch.Generator().manual_seed(0)

    def wall():
        origins = torch.cat([torch.rand(256, 2, generator=generator) - 0.5, torch.full((256, 1), -0.8)], 1)
        directions = torch.cat([(torch.rand(256, 2, generator=generator) - 0.5) / 2, torch.ones(256, 1)], 1)
        rgb = torch.full((256, 3), 0.7)
        rest = torch.zeros(256, dtype=torch.int64), torch.zeros(256, 0), torch.zeros(256)
        return Rays(origins, directions, rgb, torch.full((256,), 1.1), *rest)

    for _ in range(80):
        slam.step(wall())
    rays = wall()
    seen = slam.render(rays.origins, rays.directions, 0.0)
    assert float((seen.depth_m - 1.1).abs().median()) < 0.03
    assert seen.semantics.shape == (256, 0)


def last_line(capture: Console) -> dict:
    return json.loads(capture.export_text().strip().splitlines()[-1])


def test_the_benchmark_of_peers_says_what_it_must(monkeypatch):
    monkeypatch.setattr(peers, "PUBLISHED", tuple(small(p) for p in (SEMANTIC_NERF, F3RM, LERF)))
    monkeypatch.setattr(peers, "COSLAM_RAYS", 64)
    console = Console(record=True, width=200, quiet=False, file=open("/dev/null", "w"))
    peers.run(console=console, as_json=True, seeds=1, train_s=0.2, frames=12, width=64, reduction=1)
    data = last_line(console)
    assert data["bench"] == "peers"
    for name in (peers.OURS, "Co-SLAM", "Semantic-NeRF", "F3RM", "LERF"):
        assert data[name]["steps"] >= 1 and len(data[name]["course"]) == len(peers.SHARES)
    assert data[peers.OURS]["time_ratio"]["psnr_db"] == 1
    assert data["Co-SLAM"]["miou"] is None


def test_the_benchmark_of_unmeasured_pixels_says_what_it_must():
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    unbounded.run(console=console, as_json=True, seeds=1, train_s=0.2, frames=8, width=48)
    settings = last_line(console)["settings"]
    assert len(settings) == 2 * len(unbounded.SETTINGS)
    assert settings["all measured, from colour"]["without_depth"] == 0
    assert settings["sphere at 50 m, from colour"]["without_depth"] > 0.2


def test_the_painted_sphere_is_where_it_says():
    origin = np.array([0.4, -0.3, 0.5])
    directions = np.random.default_rng(0).normal(size=(50, 3))
    t, colour = unbounded.painted_sphere(origin, directions)
    assert (t > 0).all()
    assert np.allclose(np.linalg.norm(origin + directions * t[:, None], axis=1), 50.0)
    assert colour.dtype == np.uint8 and colour.std() > 20


@pytest.fixture(scope="module")
def square_views():
    simulator = Simulator(SimulatorConfig(seed=1, width=32, height=24, horizontal_fov_deg=90, processes=0))
    return [simulator.render(T, stamp_s=float(i)) for i, T in enumerate(simulator.path(3))], simulator.class_names


def test_the_replica_layout_holds_what_was_written(tmp_path, square_views):
    frames, names = square_views
    write_replica_layout(tmp_path, frames, names)
    poses = np.loadtxt(tmp_path / "traj_w_c.txt").reshape(-1, 4, 4)
    assert np.allclose(poses, np.stack([f.T_world_camera for f in frames]))
    for i, frame in enumerate(frames):
        rgb = cv2.imread(str(tmp_path / "rgb" / f"rgb_{i}.png"))[..., ::-1]
        depth = cv2.imread(str(tmp_path / "depth" / f"depth_{i}.png"), cv2.IMREAD_UNCHANGED)
        labels = cv2.imread(str(tmp_path / "semantic_class" / f"semantic_class_{i}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(rgb, frame.rgb) and np.array_equal(labels, frame.semantic)
        assert depth.dtype == np.uint16 and np.abs(depth / 1000 - frame.depth_m).max() <= 0.0006
    description = json.loads((tmp_path / "info_semantic.json").read_text())
    assert len(description["classes"]) == 101
    assert [c["name"] for c in description["classes"][: len(names) - 1]] == list(names[1:])


def test_the_replica_layout_refuses_what_it_cannot_say(tmp_path, square_views):
    frames, names = square_views
    other = Simulator(SimulatorConfig(seed=1, width=32, height=24, horizontal_fov_deg=60, processes=0))
    with pytest.raises(SourceError, match="90 degrees"):
        write_replica_layout(tmp_path, [other.render(other.path(1)[0])], names)
    with pytest.raises(SourceError, match="ids outside"):
        write_replica_layout(tmp_path, frames, names[:2])
    with pytest.raises(SourceError, match="at most 101"):
        write_replica_layout(tmp_path, frames, [f"class {k}" for k in range(200)])


def test_a_foreign_program_is_named_or_what_it_lacks(tmp_path, monkeypatch):
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    with pytest.raises(ConfigError, match=r"no SSR/training/trainer\.py"):
        peers_foreign.beside(tmp_path, console, 1.0)
    (tmp_path / "SSR" / "training").mkdir(parents=True)
    (tmp_path / "SSR" / "training" / "trainer.py").write_text("raise SystemExit('this is no trainer')\n")
    monkeypatch.setattr(peers_foreign, "NEEDS", ("numpy", "no_such_package_anywhere"))
    assert peers_foreign.beside(tmp_path, console, 1.0) == {"missing": ["no_such_package_anywhere"]}
    assert "no_such_package_anywhere" in console.export_text()


STUB_TRAINER = """
import numpy as np, torch
class SSRTrainer:
    def __init__(self, config): self.config = config
    def set_params_replica(self): pass
    def prepare_data_replica(self, data): self.data = data
    def create_ssr(self): assert torch.zeros(1).cuda() is not None
    def init_rays(self): self.rays_test = torch.zeros(len(self.data.test), 48 * 64, 11)
    def step(self, step): assert step > 0
    def render_rays_chunk(self, rays, chunk):
        n = len(rays)
        logits = torch.eye(3)[[0] * n]
        return {"rgb_fine": torch.full((n, 3), .5), "depth_fine": torch.ones(n), "sem_logits_fine": logits}
"""
STUB_DATA = """
import numpy as np
class ReplicaDatasetCache:
    def __init__(self, data_dir, train_ids, test_ids, img_h, img_w):
        assert (img_h, img_w) == (48, 64) and np.loadtxt(data_dir + "/traj_w_c.txt").shape[1] == 16
        self.test, self.semantic_classes = test_ids, np.array([0, 1, 2, 3])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the runner is a POSIX program")
def test_a_program_in_that_layout_is_run_and_rated(tmp_path, monkeypatch):
    for folder, name, text in (
        ("training", "trainer.py", STUB_TRAINER), ("datasets/replica", "replica_datasets.py", STUB_DATA)
    ):  # fmt: skip
        (tmp_path / "SSR" / folder).mkdir(parents=True)
        (tmp_path / "SSR" / folder / name).write_text(text)
    monkeypatch.setattr(peers_foreign, "NEEDS", ())
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    size = peers_foreign.Size(width=64)
    found = peers_foreign.beside(tmp_path, console, 0.8, size=size, frames=12, pixels=50)
    assert "failed" not in found, found
    assert len(found["its"]) == len(found["ours"]) == len(peers.SHARES)
    assert found["its"][0][1] == pytest.approx(found["its"][-1][1]), "grey is grey"
    assert 5 < found["its"][0][1] < 30
