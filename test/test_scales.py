"""The scale-conditioned head and what it learns from a pyramid, against brute force, LERF's formulas and the truth."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import CAMERA, SMALL, mapped, ring, stream

from semfield_ros.checkpoint import load, save
from semfield_ros.config import DinoConfig, FieldConfig, HeadsConfig, PyramidConfig
from semfield_ros.encoders.dino import DinoEncoder
from semfield_ros.encoders.pyramid import PyramidEncoder, levels_of, ratios
from semfield_ros.encoders.stub import StubEncoder
from semfield_ros.engine import Engine
from semfield_ros.errors import ConfigError
from semfield_ros.field.composite import reduced
from semfield_ros.field.heads import HeadConfig
from semfield_ros.field.model import Field
from semfield_ros.field.render import render
from semfield_ros.field.scale_head import ScaleHead, at_every_knot
from semfield_ros.field.scales import HEAD, cosine_loss, draw, huber_loss, knots_of, predicted, teacher_head
from semfield_ros.field.workspace import Workspace

SETTINGS = PyramidConfig(levels=3, smallest=0.1, largest=0.5, smallest_m=0.03, largest_m=0.6, knots=5, pixels=256)
KNOTS = (0.02, 0.1, 0.4, 2.0)


def a_field(dim=16, knots=KNOTS):
    head = HeadConfig(HEAD, dim, late_linear=True, knots_m=knots)
    return Field(SMALL.field, Workspace((0.0, 0.0, 0.0), 1.6), (head,))


def with_pyramids(steps=0, heads=None, frames=6):
    heads = heads or HeadsConfig(teachers=("pyramid",), pyramid=SETTINGS)
    mapping = mapped(frames, replace(SMALL, heads=heads))
    encoder = PyramidEncoder(StubEncoder(), heads.pyramid)
    for keyframe, frame in zip(mapping.remembered(), stream(frames)):
        mapping.add_teacher(keyframe, frame, "pyramid", {"pyramid": encoder.encode_frame(frame)})
    for _ in range(steps):
        mapping.train_step()
    return mapping


@pytest.fixture(scope="module")
def trained():
    return with_pyramids(steps=150)


# ---- the head


def test_between_knots_features_lie_on_the_chord_between_theirs():
    head = a_field().head(HEAD)
    h, scale = torch.randn(40, head.width), torch.exp(torch.empty(40).uniform_(-5, 1.5))
    x = scale.clamp(KNOTS[0], KNOTS[-1]).log()
    knots = torch.tensor(KNOTS).log()
    for row in range(40):
        k = min(int((x[row] >= knots).sum()) - 1, len(KNOTS) - 2)
        u = (x[row] - knots[k]) / (knots[k + 1] - knots[k])
        w = head.last.weight.view(len(KNOTS), 16, -1)
        b = head.last.bias.view(len(KNOTS), 16)
        ends = [w[i] @ h[row, :-1] + b[i] * h[row, -1] for i in (k, k + 1)]
        assert torch.allclose(head.at(h, scale)[row], (1 - u) * ends[0] + u * ends[1], atol=1e-5)


def test_any_order_of_scales_gives_the_same_rows():
    head = a_field().head(HEAD)
    h, scale = torch.randn(30, head.width), torch.rand(30) * 2.2
    order = torch.randperm(30)
    assert torch.allclose(head.at(h, scale)[order], head.at(h[order], scale[order]), atol=1e-6)
    assert head.at(h[:0], scale[:0]).shape == (0, 16)
    # as GPUs compute it
    assert torch.allclose(at_every_knot(h, *head.place(scale), head.affines()), head.at(h, scale), atol=1e-5)


def test_compositing_commutes_with_the_scale():
    """Composited once for all scales: the same as every sample's feature at that scale, composited."""
    field = a_field()
    head = field.head(HEAD)
    samples = torch.rand(5, 7, 3) - 0.5
    weights = torch.rand(5, 7)
    h = head.hidden(field.encode("feature", samples.view(-1, 3)), None).view(5, 7, -1)
    once = head.finish((h * weights[..., None]).sum(1))
    for scale in (0.01, 0.05, 0.3, 1.7, 9.0):
        each = head.at(h.view(35, -1), torch.full((35,), scale)).view(5, 7, -1)
        expected = (each * weights[..., None]).sum(1)
        assert torch.allclose(head.at(once, torch.full((5,), scale)), expected, atol=1e-5)


def test_scale_gradients_reach_both_knots_beside_it_and_no_other():
    head = a_field().head(HEAD)
    head.at(torch.randn(4, head.width), torch.full((4,), 0.2)).sum().backward()
    moved = head.last.weight.grad.view(len(KNOTS), -1).abs().sum(1) > 0
    assert moved.tolist() == [False, True, True, False]


def test_it_knows_which_scales_it_was_taught_where():
    head = a_field().head(HEAD)
    here, there, nowhere = torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.9, 0.2], [0.9, 0.9, 0.9]])
    assert head.range_m() is None
    head.count(here.expand(100, 3), torch.full((100,), 0.2))
    head.count(there.expand(100, 3), torch.full((100,), 0.02))
    low, high = head.range_at(torch.stack([here, there, nowhere])).T
    assert low.tolist()[:2] == [1, 0] and high.tolist()[:2] == [2, 0]
    assert low[2] > high[2]  # nothing
    assert head.range_m() == pytest.approx((0.02, 0.4))
    # interpolation weights add up to what was taught
    assert head.taught.sum() == pytest.approx(200, rel=1e-5)
    # a checkpoint carries it
    twin = a_field()
    twin.load_state_dict({**twin.state_dict(), f"heads.{HEAD}.taught": head.taught})
    assert twin.head(HEAD).range_m() == head.range_m()


def test_a_scale_that_hardly_occurred_is_not_known():
    head = a_field().head(HEAD)
    here = torch.full((1000, 3), 0.5)
    head.count(here, torch.full((1000,), 0.1))
    head.count(here[:5], torch.full((5,), 2.0))
    assert head.range_at(here[:1]).tolist() == [[1, 1]]


@pytest.mark.parametrize(
    "settings", [{"knots_m": (0.1,)}, {"knots_m": (0.2, 0.1)}, {"knots_m": (0.0, 0.1)},
                 {"knots_m": KNOTS, "late_linear": False}, {"knots_m": KNOTS, "unit": True}],
)  # fmt: skip
def test_a_head_that_cannot_be_is_refused(settings):
    with pytest.raises(ConfigError, match=r"scales are for|knots_m are"):
        HeadConfig("x", 8, **{"late_linear": True, **settings})


# ---- losses


def test_huber_is_summed_over_dimensions_with_delta_1_25():
    predicted_, target = torch.zeros(1, 3), torch.tensor([[0.5, -1.0, 3.0]])
    # .5 x^2 below 1.25, 1.25 (|x| - .625) above
    assert huber_loss(predicted_, target).item() == pytest.approx(0.125 + 0.5 + 1.25 * (3 - 0.625))


def test_for_unit_features_lerfs_two_losses_pull_alike():
    """|f - g|^2 / 2 = 1/2 + |g|^2 / 2 - f . g: below delta they differ by what does not depend on unit f."""
    f = torch.nn.functional.normalize(torch.randn(20, 64), dim=-1)
    g = torch.nn.functional.normalize(torch.randn(20, 64), dim=-1) * torch.rand(20, 1)
    expected = 0.5 + 0.5 * g.square().sum(-1).mean() + cosine_loss(f, g)
    assert torch.allclose(huber_loss(f, g), expected, atol=1e-5)


# ---- what is drawn


def test_a_drawn_scale_is_the_crops_height_at_the_surface():
    mapping = with_pyramids()
    replay = mapping.replay
    batch = draw(replay, SETTINGS, 400, torch.Generator().manual_seed(0))
    eyes = torch.tensor(np.array([T[:3, 3] for T in ring(6)]), dtype=torch.float32)
    distance = torch.cdist(batch.points, eyes)
    ratio = batch.scale_m[:, None] * CAMERA.fy / (CAMERA.height * distance)
    # from the camera it was seen by, the ratio is one of the pyramid's
    inside = (ratio > SETTINGS.smallest - 1e-4) & (ratio < SETTINGS.largest + 1e-4)
    assert inside.any(1).all()
    assert torch.isfinite(batch.values).all() and (batch.values.norm(dim=1) <= 1.001).all()


def test_drawn_features_are_what_the_crops_around_say():
    mapping = with_pyramids()
    replay, red = mapping.replay, torch.from_numpy(StubEncoder().encode_text(["red"])[0])
    batch = draw(replay, replace(SETTINGS), 3000, torch.Generator().manual_seed(1))
    on_red = (batch.points[:, 2] > 0.03) & (batch.points[:, 0] < -0.08)
    table = (batch.points[:, 2] < 0.005) & (batch.points[:, 0].abs() > 0.3)
    small = batch.scale_m < batch.scale_m.median()
    score = batch.values @ red
    assert score[on_red & small].mean() > 0.75 > 0.3 > score[table & small].mean()


def test_nothing_is_drawn_before_the_first_pyramid_or_from_one_of_other_tiles():
    mapping = mapped(2)
    assert draw(mapping.replay, SETTINGS, 10, torch.Generator()) is None
    mapping = with_pyramids()
    assert draw(mapping.replay, replace(SETTINGS, levels=4), 10, torch.Generator()) is None


# ---- what is learnt


def test_it_costs_nothing_where_there_is_no_pyramid():
    mapping = mapped(2, steps=1)
    assert HEAD not in mapping.field.heads and HEAD not in mapping.learnt


def test_a_pyramid_adds_its_head_while_the_map_runs(trained):
    head = trained.field.head(HEAD)
    assert isinstance(head, ScaleHead) and head.config == teacher_head("pyramid", 32, trained.config.heads)
    assert trained.learnt[HEAD] == 150 and trained.snapshot().learnt[HEAD] == 150
    low, high = head.range_m()
    assert SETTINGS.smallest_m <= low < high <= SETTINGS.largest_m


def test_it_learns_what_the_pyramid_measured_at_every_scale(trained):
    batch = draw(trained.replay, SETTINGS, 2000, torch.Generator().manual_seed(7))
    with torch.no_grad():
        found = predicted(trained.field, batch.points, batch.scale_m)
    cosine = torch.nn.functional.cosine_similarity(found, batch.values)
    edges = torch.quantile(batch.scale_m, torch.tensor([0.0, 0.33, 0.67, 1.0]))
    for low, high in ((edges[k], edges[k + 1]) for k in range(3)):
        assert cosine[(batch.scale_m >= low) & (batch.scale_m <= high)].mean() > 0.9


def test_the_same_place_means_another_thing_at_another_scale(trained):
    """A small crop on the red box is red; one of half a metre is mostly white table."""
    red, white = torch.from_numpy(StubEncoder().encode_text(["red", "white"]))
    point = torch.tensor([[-0.14, -0.02, 0.16]])
    with torch.no_grad():
        small, large = (predicted(trained.field, point, torch.tensor([s]))[0] for s in (0.06, 0.5))
    assert small @ red > 0.9 and large @ white > large @ red


@pytest.mark.parametrize("loss", ["huber", "cosine"])
def test_either_loss_learns(loss):
    heads = HeadsConfig(teachers=("pyramid",), pyramid=replace(SETTINGS, loss=loss))
    mapping = with_pyramids(1, heads)
    generator = torch.Generator().manual_seed(3)
    batch = draw(mapping.replay, SETTINGS, 500, generator)

    def error():
        with torch.no_grad():
            return huber_loss(predicted(mapping.field, batch.points, batch.scale_m), batch.values).item()

    before = error()
    for _ in range(40):
        mapping.train_step()
    assert error() < 0.5 * before


def test_shape_learns_nothing_from_it():
    """d(loss) / d(geometry) = 0: another head's features never bend a surface."""
    mapping = with_pyramids(1)
    loss, count = mapping.trainer.objectives[HEAD].losses(mapping.field, mapping.replay, 0, torch.Generator())
    mapping.field.zero_grad(set_to_none=False)
    loss[HEAD].backward()
    assert count > 0
    assert not mapping.field.grid("geometry").table.grad.any()
    assert all(p.grad is None or not p.grad.any() for p in mapping.field.sdf.parameters())
    assert mapping.field.grid("feature").table.grad.abs().sum() > 0


def test_a_rendered_ray_is_composited_once_for_all_scales(trained):
    field = trained.snapshot().field
    T = ring(6)[0].astype(np.float32)
    rays = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (50, 3)).astype(np.float32) + [0, 0, 1]).float()
    rays = rays @ torch.from_numpy(T[:3, :3]).T
    origins = torch.from_numpy(T[:3, 3]).expand(50, 3)
    out = render(field, origins, rays, (HEAD,))
    head = field.head(HEAD)
    assert out.outputs[HEAD].shape == (50, head.width)
    hit = out.depth > 0
    assert hit.float().mean() > 0.8
    composited = head.at(out.outputs[HEAD][hit], torch.full((int(hit.sum()),), 0.1))
    points = (origins + rays * out.depth[:, None])[hit]
    at_surface = predicted(field, points, torch.full((len(points),), 0.1))
    cosine = torch.nn.functional.cosine_similarity(composited, at_surface)
    assert cosine.median() > 0.95


def test_knots_are_even_in_the_logarithm():
    knots = knots_of(PyramidConfig())
    assert knots[0] == 0.02 and knots[-1] == 2.0 and len(knots) == 7
    assert np.allclose(np.diff(np.log(knots)), np.log(100) / 6, atol=1e-3)
    assert len(ratios(SETTINGS)) == 3 and len(levels_of(80, 60, SETTINGS)) == 3
    assert FieldConfig().hidden + 1 == Field(
        FieldConfig(), Workspace((0, 0, 0), 1.0), (teacher_head("pyramid", 8, HeadsConfig()),)
    ).head(HEAD).width


# ---- rendering with the heaviest samples


def test_top_k_asks_the_heaviest_samples_only():
    field = a_field()
    points, directions = torch.rand(6, 12, 3) - 0.5, torch.randn(6, 3)
    weights = torch.rand(6, 12, requires_grad=True)
    top = reduced(field, HEAD, points, directions, weights, {}, top=4)
    masked = torch.where(weights >= weights.topk(4, dim=1).values[:, -1:], weights, 0.0)
    assert torch.allclose(top, reduced(field, HEAD, points, directions, masked, {}), atol=1e-6)
    everything = reduced(field, HEAD, points, directions, weights, {})
    assert torch.equal(reduced(field, HEAD, points, directions, weights, {}, top=12), everything)
    top.sum().backward()
    assert weights.grad is None  # weights are detached: features never shape geometry


def test_top_k_of_a_rendered_view_hardly_changes_it(trained):
    field = trained.snapshot().field
    T = torch.from_numpy(ring(6)[1].astype(np.float32))
    local = torch.randn(80, 3, generator=torch.Generator().manual_seed(0)) * 0.1 + torch.tensor([0, 0, 1.0])
    rays = local @ T[:3, :3].T
    views = [render(field, T[:3, 3].expand(80, 3), rays, (HEAD,), samples=48, top=top) for top in (0, 24)]
    assert torch.equal(views[0].depth, views[1].depth)
    head, hit = field.head(HEAD), views[0].depth > 0
    scale = torch.full((int(hit.sum()),), 0.1)
    a, b = (head.at(v.outputs[HEAD][hit], scale) for v in views)
    assert torch.nn.functional.cosine_similarity(a, b).min() > 0.98


# ---- at a low rate in the background


class Patient:
    """A stub whose crops wait to be let through, one batch at a time."""

    def __init__(self):
        self._stub = StubEncoder()
        self.name, self.has_text, self.dim = "stub", True, self._stub.dim
        self.cache_key, self.calibration = "patient", self._stub.calibration
        self.allowed, self.order = threading.Semaphore(0), []

    def encode_frame(self, frame):
        self.order.append("frame")
        return self._stub.encode_frame(frame)

    def encode_text(self, texts):
        return self._stub.encode_text(texts)

    def encode_crops(self, crops, frame_width_px):
        assert self.allowed.acquire(timeout=30)
        self.order.append("crops")
        return self._stub.encode_crops(crops, frame_width_px)


def test_the_dense_encoder_goes_before_the_rest_of_a_pyramid():
    """Frames that come while crops are encoded are seen by the main encoder after the crops in hand, not after all."""
    encoder = Patient()
    config = replace(SMALL, heads=HeadsConfig(teachers=("pyramid",), pyramid=SETTINGS))
    frames = stream(3)
    with Engine(config, encoder) as engine:
        assert engine.teachers["pyramid"].of is encoder
        engine.submit(frames[0])  # its pyramid waits
        for frame in frames[1:]:
            engine.submit(frame)
        while engine.status().mapping.keyframes < 3:
            time.sleep(0.01)
        for _ in range(500):
            encoder.allowed.release()
        assert engine.drain(timeout_s=60)
        engine.train(steps=5)
        snapshot = engine.snapshot(fresh=True)
    first = encoder.order.index("crops")
    batches = encoder.order.count("crops")
    assert encoder.order.count("frame") == 3 and batches > 3
    assert encoder.order[first + 1 : first + 4].count("frame") + encoder.order[:first].count("frame") == 3
    assert snapshot.learnt[HEAD] >= 5


def test_a_few_of_many_keyframes_are_enough():
    heads = HeadsConfig(teachers=("pyramid",), teacher_period=3, pyramid=SETTINGS)
    with Engine(replace(SMALL, heads=heads), StubEncoder()) as engine:
        for frame in stream(8):
            engine.submit(frame, block=True)
            engine.drain()
        taught, keyframes = engine.run(lambda m: (m.counts["encoded_pyramid"], len(m.remembered()))).result()
    assert keyframes == 8 and 2 <= taught <= 4


def test_a_saved_map_goes_on_with_its_scales(tmp_path, trained):
    engine_config = replace(trained.config, engine=SMALL.engine)
    encoder = StubEncoder()
    path = save(tmp_path / "map", trained, encoder)
    loaded = load(path, engine_config, encoder, "cpu")
    a, b = (m.snapshot().field.head(HEAD) for m in (trained, loaded))
    assert a.config == b.config and torch.equal(a.last.weight, b.last.weight) and torch.equal(a.taught, b.taught)
    loaded.train_step()
    assert loaded.learnt[HEAD] == trained.learnt[HEAD] + 1


# ---- DINO beside it


def test_dino_regularises_the_grid_that_scales_are_read_from():
    """A head of its own on the same grid (LERF); no words are ever compared with it."""
    heads = HeadsConfig(teachers=("dino", "pyramid"), pyramid=SETTINGS)
    mapping = with_pyramids(0, heads, frames=3)
    dino = DinoEncoder(DinoConfig("vit_tiny_patch16_224", "", 1, 16, 64), "cpu")
    for keyframe, frame in zip(mapping.remembered(), stream(3)):
        mapping.add_teacher(keyframe, frame, "dino", {"dino": dino.encode_frame(frame)})
    mapping.train_step()
    assert mapping.learnt["teacher_dino"] == mapping.learnt[HEAD] == 1
    config = mapping.field.head("teacher_dino").config
    assert config.grid == mapping.field.head(HEAD).config.grid == "feature" and config.out_dim == 192
    objective = mapping.trainer.objectives["teacher_dino"]
    loss, _ = objective.losses(mapping.field, mapping.replay, 0, torch.Generator())
    mapping.field.zero_grad(set_to_none=False)
    loss["teacher_dino"].backward()
    assert mapping.field.grid("feature").table.grad.abs().sum() > 0
    assert not mapping.field.grid("geometry").table.grad.any()
    assert all(p.grad is None or not p.grad.any() for p in mapping.field.head(HEAD).parameters())
