"""Volume rendering and proposals: hand-computed values, NumPy, laws, and a scene whose depth only colour knows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from semfield_ros.config import (
    FieldConfig,
    FrameConfig,
    GridConfig,
    MemoryConfig,
    SemfieldConfig,
    TrainConfig,
    VolumeConfig,
)
from semfield_ros.errors import ConfigError, FrameRejected
from semfield_ros.field.composite import composite
from semfield_ros.field.heads import HeadConfig
from semfield_ros.field.model import Field
from semfield_ros.field.photometric import Photometric
from semfield_ros.field.proposal import Proposals
from semfield_ros.field.render import render
from semfield_ros.field.trainer import Trainer
from semfield_ros.field.volume import (
    Span,
    anneal_exponent,
    density_of_distance,
    distortion_loss,
    expected_depth,
    interlevel_loss,
    median_depth,
    outer_weights,
    resample,
    spacing,
    stretch,
    uniform_edges,
    unspacing,
    update_period,
    weights_of,
)
from semfield_ros.field.workspace import Workspace, contract
from semfield_ros.frame import make_frame
from semfield_ros.geometry import Camera
from semfield_ros.mapping import Mapping
from semfield_ros.memory.features import FeatureShape
from semfield_ros.memory.replay import ColourBatch, Replay

WORKSPACE = Workspace((0.0, 0.0, 0.0), 2.0)
SMALL = FieldConfig(
    geometry_grid=GridConfig(levels=4, features=4, log2_table=14, min_resolution=8, max_resolution=64),
    feature_grid=GridConfig(levels=2, features=4, log2_table=12, min_resolution=8, max_resolution=16),
    hidden=32,
    truncation_m=0.1,
    volume=VolumeConfig(coarse_samples=32, fine_samples=24, samples=20),
)
COLOUR = HeadConfig("rgb", 3, grid="geometry", direction=True, layers=1, activation="sigmoid", shapes_geometry=True)
LANGUAGE = HeadConfig("language", 8, grid="feature", late_linear=True, unit=True, loss="cosine_sqrt")


def random_bins(rays=6, bins=9, seed=0):
    """Sorted edges on [0, 1] and weights that sum to less than 1."""
    rng = np.random.default_rng(seed)
    inner = np.sort(rng.uniform(0.01, 0.99, (rays, bins - 1)), 1)
    edges = np.concatenate([np.zeros((rays, 1)), inner, np.ones((rays, 1))], 1)
    weights = rng.dirichlet(np.full(bins, 0.4), rays) * rng.uniform(0.5, 1, (rays, 1))
    return torch.tensor(edges), torch.tensor(weights)


def test_spacing_by_hand():
    x = torch.tensor([0.0, 0.5, 1.0, 2.0, 10.0])
    assert torch.allclose(spacing(x), torch.tensor([0.0, 0.25, 0.5, 0.75, 0.95]))
    assert torch.allclose(unspacing(spacing(x)), x)
    span = Span(0.1, 1000.0, 3.0)
    ends = span.distance_m(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([0.3, 3000.0])


def test_contraction_by_hand():
    x = torch.tensor([[0.5, -0.2, 0.0], [4.0, -2.0, 1.0], [0.0, 0.0, -1e9]])
    expected = torch.tensor([[0.5, -0.2, 0.0], [1.75, -0.875, 0.4375], [0.0, 0.0, -2.0]])
    assert torch.allclose(contract(x), expected)
    unit = WORKSPACE.to_unit(x)
    assert torch.allclose(unit, (expected + 2) / 4) and unit.min() >= 0 and unit.max() <= 1


def test_stretch_is_the_inverse_of_how_contraction_shrinks_radial_lengths():
    direction = torch.tensor([1.0, 0.3, -0.2], dtype=torch.float64)
    for r in (0.5, 1.5, 4.0, 20.0):
        r = torch.tensor(r, dtype=torch.float64)
        (slope,) = torch.autograd.functional.jacobian(lambda s: contract(direction * s).norm(), (r,))
        expected = float(direction.norm() / slope)
        assert float(stretch(direction * r, WORKSPACE)) == pytest.approx(expected, rel=1e-9)


def test_resampling_is_the_inverse_of_the_cumulative_distribution():
    edges, weights = random_bins()
    jitter = torch.tensor(np.random.default_rng(1).uniform(size=(len(edges), 1)))
    new = resample(edges, weights, 16, jitter)
    for e, w, j, found in zip(edges.numpy(), weights.numpy(), jitter.numpy(), new.numpy()):
        pdf = (w + 0.01) / (w + 0.01).sum()
        u = (np.arange(17) + j) / 17
        assert np.allclose(found, np.interp(u, np.r_[0, np.cumsum(pdf)], e), atol=1e-12)
        assert (np.diff(found) > 0).all()


def test_resampling_goes_where_the_weight_is():
    edges = torch.linspace(0, 1, 11)[None]
    weights = torch.zeros(1, 10)
    weights[0, 6] = 1
    inside = resample(edges, weights, 99, None, padding=1e-9)
    assert ((inside >= 0.6 - 1e-5) & (inside <= 0.7 + 1e-5)).all()
    # without any weight, padding alone: even
    assert torch.allclose(resample(edges, weights * 0, 9, None), (torch.arange(10) + 0.5)[None] / 10, atol=1e-6)


def test_uniform_edges_stay_sorted_within_the_ray():
    jitter = torch.rand(50, 9, generator=torch.Generator().manual_seed(0))
    edges = uniform_edges(50, 8, jitter, "cpu")
    assert (edges.diff(dim=1) >= 0).all() and edges.min() >= 0 and edges.max() <= 1
    assert torch.equal(uniform_edges(1, 4, None, "cpu")[0], torch.tensor([0, 0.25, 0.5, 0.75, 1]))


def test_weights_follow_their_formula():
    sigma = torch.tensor([[0.5, 2.0, 0.0, 30.0]], dtype=torch.float64)
    delta = torch.tensor([[0.2, 0.1, 1.0, 0.5]], dtype=torch.float64)
    expected, travelled = [], 0.0
    for s, d in zip(sigma[0].tolist(), delta[0].tolist()):
        expected.append((1 - math.exp(-s * d)) * math.exp(-travelled))
        travelled += s * d
    weights = weights_of(sigma, delta)
    assert weights[0].tolist() == pytest.approx(expected)
    assert float(weights.sum()) == pytest.approx(1 - math.exp(-travelled))
    assert float(weights_of(torch.tensor([[float("nan")]]), torch.ones(1, 1))) == 0
    t = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    w = torch.tensor([[0.1, 0.3, 0.2, 0.1]], dtype=torch.float64)
    assert float(median_depth(w, t)) == 3.0
    assert float(expected_depth(w, t)) == pytest.approx((0.1 + 0.6 + 0.6 + 0.4) / 0.7)
    assert float(median_depth(w * 0, t)) == 4.0 and float(expected_depth(w * 0, t)) == 1.0


def test_annealing_and_update_period():
    assert [round(anneal_exponent(s), 4) for s in (0, 500, 1000, 5000)] == [0.0, 0.9091, 1.0, 1.0]
    assert [update_period(s) for s in (0, 249, 250, 500, 999, 1000, 90000)] == [1, 1, 2, 3, 4, 5, 5]


def test_outer_weights_cover_what_overlaps():
    proposal = torch.tensor([[0.0, 0.3, 0.6, 1.0]])
    w = torch.tensor([[0.2, 0.5, 0.3]])
    edges = torch.tensor([[0.0, 0.3, 0.4, 0.5, 0.7, 1.0]])
    assert torch.allclose(outer_weights(edges, proposal, w), torch.tensor([[0.2, 0.5, 0.5, 0.8, 0.3]]))


def test_the_interlevel_loss_is_nothing_where_proposals_cover_and_else_as_its_formula():
    edges, weights = random_bins()
    coarse = edges[:, ::3].contiguous()
    covering = weights.reshape(len(weights), 3, 3).sum(2)
    assert float(interlevel_loss(edges, weights, [(coarse, covering), (edges, weights)])) < 1e-25
    half = (covering / 2).requires_grad_()
    target = weights.clone().requires_grad_()
    loss = interlevel_loss(edges, target, [(coarse, half)])
    short = (weights - half.detach().repeat_interleave(3, 1)).clamp_min(0)
    assert float(loss.detach()) == pytest.approx(float((short**2 / (weights + 1e-7)).mean()))
    loss.backward()
    assert target.grad is None, "the proposals follow the field, never the reverse"
    assert (half.grad <= 0).all() and (half.grad < 0).any()


def test_distortion_is_the_double_sum():
    edges, w = random_bins()
    m = (edges[:, 1:] + edges[:, :-1]) / 2
    pairs = (w[:, :, None] * w[:, None, :] * (m[:, :, None] - m[:, None, :]).abs()).sum((1, 2))
    expected = (pairs + (w**2 * edges.diff(dim=1)).sum(1) / 3).mean()
    assert float(distortion_loss(edges, w)) == pytest.approx(float(expected))


def test_a_plane_is_half_gone_at_its_surface():
    """Transmittance to signed distance d in front of a plane is sigmoid(k d / tau), k = 10."""
    t = torch.linspace(0, 2, 200001, dtype=torch.float64)[None]
    density = density_of_distance(1.2 - t, 0.1, torch.ones(1, 1, dtype=torch.float64))
    weights = weights_of(density[:, :-1], t.diff(dim=1))
    assert float(median_depth(weights, t[:, :-1])) == pytest.approx(1.2, abs=1e-3)
    at = 118000
    assert float(1 - weights[:, :at].sum()) == pytest.approx(1 / (1 + math.exp(-10 * (1.2 - 1.18) / 0.1)), rel=1e-3)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)


def test_unknown_space_is_clear_at_hand_and_closed_at_the_horizon():
    """A field that says "free" everywhere lets the workspace through and ends at the horizon."""
    t = Span(0.05, 1000.0, 1.0).distance_m(torch.linspace(0, 1, 4001, dtype=torch.float64))[None]
    points = torch.stack([t[0], 0 * t[0], 0 * t[0]], 1)
    density = density_of_distance(torch.full_like(t, 0.1), 0.1, stretch(points, WORKSPACE)[None])
    weights = weights_of(density[:, :-1], t.diff(dim=1))
    assert float(weights[:, t[0, 1:] < 1].sum()) < 0.01
    assert float(weights[:, t[0, 1:] < 2].sum()) < 0.1
    assert float(weights.sum()) > 0.9


def batch_of(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    origins = torch.rand(n, 3, generator=generator) - 0.5
    directions = torch.randn(n, 3, generator=generator)
    return ColourBatch(origins, directions, torch.rand(n, 3, generator=generator))


def test_gradients_go_where_they_should():
    field = Field(SMALL, WORKSPACE, (COLOUR, LANGUAGE))
    photometric = Photometric(field, TrainConfig())
    losses, samples = photometric.losses(batch_of(), torch.Generator().manual_seed(0))
    assert set(losses) == {"photometric", "interlevel", "distortion", "clear"} and samples == 64 * 20

    def moved(loss, module):
        grads = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
        return any(g is not None and bool((g != 0).any()) for g in grads)

    assert moved(losses["photometric"], field.sdf), "colour is what teaches the shape"
    assert not moved(losses["photometric"], photometric.proposals.networks[0].mlp)
    assert not moved(losses["interlevel"], field.sdf)
    assert moved(losses["interlevel"], photometric.proposals.networks[0].mlp)
    assert moved(losses["interlevel"], photometric.proposals.networks[1].mlp)


@pytest.mark.parametrize("grid", ["geometry", "feature"])
def test_features_never_move_the_shape(grid):
    language = HeadConfig("language", 8, grid=grid, late_linear=True)
    field = Field(SMALL, WORKSPACE, (COLOUR, language))
    proposals = Proposals(SMALL.volume, WORKSPACE, 0)
    batch = batch_of()
    directions = torch.nn.functional.normalize(batch.directions, dim=-1)
    out = composite(field, batch.origins, directions, proposals.sample(batch.origins, directions), ("rgb", "language"))
    out.outputs["language"].square().sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in field.sdf.parameters())
    table = field.grid("geometry").table
    assert table.grad is None or not table.grad.any()
    assert field.head("language").last.weight.grad.any()
    out = composite(field, batch.origins, directions, proposals.sample(batch.origins, directions), ("rgb",))
    out.outputs["rgb"].square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in field.sdf.parameters())
    assert table.grad.any()


def test_late_linear_heads_composite_as_the_naive_sum():
    field = Field(SMALL, WORKSPACE, (COLOUR, HeadConfig("language", 8, late_linear=True)))
    batch = batch_of()
    directions = torch.nn.functional.normalize(batch.directions, dim=-1)
    samples = Proposals(SMALL.volume, WORKSPACE, 0).sample(batch.origins, directions)
    with torch.no_grad():
        out = composite(field, batch.origins, directions, samples, ("language",))
        points = batch.origins[:, None] + directions[:, None] * samples.middle_m[..., None]
        head = field.head("language")
        features = head.last(head.trunk(field.encode("feature", points.reshape(-1, 3))))
        features = features.view(*samples.middle_m.shape, 8)
        naive = (features * out.weights[..., None]).sum(1)
    assert torch.allclose(out.outputs["language"], naive, atol=1e-5)


class TwoPlanes:
    """A replay without any depth: cameras look along +z at a textured plane with a hole, and one behind it."""

    FRONT_M, BACK_M, HALF_M = 0.2, 0.8, 0.35

    def rays(self, n, recent_fraction, generator):
        from semfield_ros.memory.replay import RayBatch

        none = torch.zeros(0, 3)
        return RayBatch(none, none, none[:, 0], none[:, 0], none, none[:, 0], none[:, 0].long())

    def truth(self, origins, directions):
        """z of what a ray meets, and its colour."""
        z = torch.full((len(origins),), self.FRONT_M) - origins[:, 2]
        at = origins + directions * z[:, None]
        through = (at[:, :2].abs() > self.HALF_M).any(1)
        z = torch.where(through, self.BACK_M - origins[:, 2], z)
        at = origins + directions * z[:, None]
        scale = torch.where(through, 9.0, 14.0)[:, None]
        shift = torch.where(through, 1.0, 0.0)[:, None]
        waves = torch.stack([at[:, 0], at[:, 1], at[:, 0] + at[:, 1]], 1) * scale + shift
        return z, 0.5 + 0.45 * torch.sin(waves)

    def draw(self, n, generator):
        origins = torch.rand(n, 3, generator=generator) * torch.tensor([1.4, 1.4, 0.3]) - torch.tensor([0.7, 0.7, 1.0])
        slope = (torch.rand(n, 2, generator=generator) - 0.5) * 1.2
        directions = torch.cat([slope, torch.ones(n, 1)], 1)
        return origins, directions

    def rays_without_depth(self, n, generator):
        origins, directions = self.draw(n, generator)
        return ColourBatch(origins, directions, self.truth(origins, directions)[1])


def test_colour_alone_finds_two_planes():
    """Nobody measured a depth: after training, rendered depth agrees with the planes all the same."""
    scene, torch_threads = TwoPlanes(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        field = Field(SMALL, WORKSPACE, (COLOUR,))
        trainer = Trainer(field, TrainConfig(depthless_rays=256, depthless_period=1, clear=0.02))
        for _ in range(180):
            report = trainer.step(scene)
        assert report.rays == 0 and report.samples == 256 * 20
        origins, directions = scene.draw(600, torch.Generator().manual_seed(7))
        z, colour = scene.truth(origins, directions)
        out = render(field, origins, directions, ("rgb",))
    finally:
        torch.set_num_threads(torch_threads)
    error = (out.depth - z).abs()
    assert float(error.median()) < 0.05
    assert float((error < 0.1).float().mean()) > 0.75
    mse = float((out.outputs["rgb"] - colour).square().mean())
    assert -10 * math.log10(mse) > 20


def test_settings_out_of_range_are_named():
    with pytest.raises(ConfigError, match="samples"):
        VolumeConfig(samples=1)
    with pytest.raises(ConfigError, match="near_m"):
        VolumeConfig(near_m=0.0)
    assert SemfieldConfig().train.depthless_rays > 0


def depthless_frames(config, n=6):
    rng = np.random.default_rng(0)
    camera = Camera(32, 24, 30.0, 30.0, 15.5, 11.5)
    for i in range(n):
        T = np.eye(4)
        T[0, 3] = 0.2 * i
        rgb = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        depth = np.zeros((24, 32), np.float32)
        yield make_frame(stamp_s=float(i), camera=camera, T_world_camera=T, rgb=rgb, depth=depth, config=config.frame)


def test_pictures_without_any_depth_train_where_they_are_allowed():
    frame = FrameConfig(min_valid_fraction=0.0)
    config = SemfieldConfig(frame=frame, field=replace(SMALL, centre_m=(0.0, 0.0, 1.0), extent_m=2.0))
    mapping = Mapping(config, 8, "cpu")
    for picture in depthless_frames(config):
        mapping.add_keyframe(picture, FeatureShape(1, 1, 1))
    before = mapping.field.sdf[0].weight.detach().clone()
    for _ in range(5):
        mapping.train_step()
    assert "photometric" in mapping.last_report.losses
    assert not torch.equal(before, mapping.field.sdf[0].weight)
    assert mapping.snapshot().field.proposals is not None
    with pytest.raises(FrameRejected, match="depth"):
        next(depthless_frames(SemfieldConfig()))
    with pytest.raises(ConfigError, match=r"centre_m and field\.extent_m"):
        unplaced = Mapping(SemfieldConfig(frame=frame), 8, "cpu")
        unplaced.add_keyframe(next(depthless_frames(config)), FeatureShape(1, 1, 1))


def replay_with(depth):
    rng = np.random.default_rng(0)
    camera = Camera(32, 24, 30.0, 30.0, 15.5, 11.5)
    replay = Replay(MemoryConfig(pixels_per_keyframe=32 * 24, max_keyframes=4), 32, 24, FeatureShape(1, 1, 1), "cpu")
    rgb = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
    frame = make_frame(stamp_s=0.0, camera=camera, T_world_camera=np.eye(4), rgb=rgb, depth=depth)
    replay.write(0, frame, rng)
    return replay, frame


def test_only_pixels_without_depth_are_drawn_and_none_where_all_have_it():
    depth = np.ones((24, 32), np.float32)
    replay, _ = replay_with(depth)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert len(replay.rays_without_depth(64, generator).rgb) == 0
    assert torch.equal(generator.get_state(), before), "not even a random number is spent"
    depth[:, 20:] = 0
    replay, frame = replay_with(depth)
    batch = replay.rays_without_depth(64, generator)
    assert 32 <= len(batch.rgb) <= 64 and float(batch.share) == 1
    sparse, _ = replay_with(np.where(np.arange(32) > 0, depth.max(), 0).astype(np.float32).repeat(24).reshape(32, 24).T)
    few = sparse.rays_without_depth(64, generator)
    assert 0 < len(few.rgb) < 40 and float(few.share) == pytest.approx(len(few.rgb) / 64)
    u = (batch.directions[:, 0] * 30 + 15.5).round().long()
    v = (batch.directions[:, 1] * 30 + 11.5).round().long()
    assert (u >= 20).all()
    assert torch.allclose(batch.rgb, torch.from_numpy(frame.rgb)[v, u].float() / 255)


def test_forgotten_records_are_no_pixels_without_depth():
    depth = np.ones((24, 32), np.float32)
    replay, _ = replay_with(depth)
    assert replay.clear_region(np.full(3, -5.0), np.full(3, 5.0)) == 32 * 24
    generator = torch.Generator().manual_seed(0)
    assert len(replay.rays_without_depth(64, generator).rgb) == 0 and len(replay.rays(64, 0.0, generator).rgb) == 0
    again = Replay(replay.config, 32, 24, FeatureShape(1, 1, 1), "cpu")
    again.load(replay.state(), replay.describe())
    assert not again.with_holes


def test_nothing_is_made_where_all_pixels_have_depth():
    replay, _ = replay_with(np.ones((24, 32), np.float32))
    field = Field(SMALL, WORKSPACE, (COLOUR,))
    trainer = Trainer(field, TrainConfig(rays=64))
    for _ in range(6):
        report = trainer.step(replay)
    assert field.proposals is None and trainer.photometric is None and set(report.losses) == {"sdf", "free", "rgb"}


def test_training_without_depth_resumes_from_its_state():
    replay, _ = replay_with(np.concatenate([np.ones((24, 16)), np.zeros((24, 16))], 1).astype(np.float32))

    def fresh():
        field = Field(SMALL, WORKSPACE, (COLOUR,))
        return field, Trainer(field, TrainConfig(rays=64, depthless_period=2))

    field, trainer = fresh()
    for _ in range(6):
        trainer.step(replay)
    twin, resumed = fresh()
    resumed.without_depth()
    twin.load_state_dict(field.state_dict())
    resumed.load({k: v.clone() for k, v in trainer.state().items()}, trainer.steps)
    resumed.generator.set_state(trainer.generator.get_state())
    for _ in range(3):
        trainer.step(replay)
        resumed.step(replay)
    assert resumed.photometric.rounds == trainer.photometric.rounds == 5
    for a, b in zip(field.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
