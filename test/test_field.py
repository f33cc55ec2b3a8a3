"""The field: contraction, heads, rendering and training, against closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import CAMERA, SMALL, cast, frame_at, mapped, ring
from hypothesis import given
from hypothesis import strategies as st

from semfield_ros.config import EncoderConfig, FieldConfig, GridConfig
from semfield_ros.encoders import create
from semfield_ros.errors import ConfigError
from semfield_ros.field.heads import Head, HeadConfig, head_loss, spherical_harmonics
from semfield_ros.field.model import Field
from semfield_ros.field.render import neus_weights, render, trace
from semfield_ros.field.snapshot import frozen
from semfield_ros.field.trainer import Trainer, depth_guided
from semfield_ros.field.window import patch_loss
from semfield_ros.field.workspace import Workspace, contract
from semfield_ros.geometry import image_directions, look_at
from semfield_ros.mapping import Mapping, language_head
from semfield_ros.memory.features import FeatureShape
from semfield_ros.memory.replay import RayBatch, Replay

STUB = create(EncoderConfig(name="stub"))
TINY = FieldConfig(
    geometry_grid=GridConfig(levels=3, log2_table=10, min_resolution=4, max_resolution=16),
    feature_grid=GridConfig(levels=2, log2_table=10, min_resolution=4, max_resolution=16),
    hidden=16,
)
WORKSPACE = Workspace((0.0, 0.0, 0.0), 2.0)


@pytest.fixture(scope="module")
def trained() -> Mapping:
    """A map trained until it knows the scene."""
    mapping = mapped(10)
    for _ in range(250):
        mapping.train_step()
    return mapping


class Analytic(Field):
    """A field whose signed distance is a closed form of the position."""

    def __init__(self, shape, heads=(), truncation_m: float = 0.06):
        super().__init__(replace(TINY, truncation_m=truncation_m), WORKSPACE, heads)
        self.shape = shape

    def encode(self, grid, points_world):
        return points_world if grid == "geometry" else super().encode(grid, points_world)

    def distance(self, encoded):
        return self.shape(encoded).clamp(-self.config.truncation_m, self.config.truncation_m)


def sphere(centre, radius):
    return lambda p: (p - torch.tensor(centre)).norm(dim=-1) - radius


# ---- the workspace -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ((0.5, -0.25, 0.0), (0.5, -0.25, 0.0)),
        ((1.0, 0.0, 0.0), (1.0, 0.0, 0.0)),
        ((2.0, 1.0, 0.0), (1.5, 0.75, 0.0)),
        ((-4.0, 0.0, 2.0), (-1.75, 0.0, 0.875)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ],
)
def test_contraction_by_hand(x, expected):
    assert contract(torch.tensor([x]))[0].tolist() == pytest.approx(list(expected))


coordinates = st.floats(-50, 50, allow_nan=False, width=32)


@given(st.tuples(coordinates, coordinates, coordinates), st.floats(0, 1e-3))
def test_contraction_is_continuous_bounded_and_keeps_directions(x, nudge):
    x = torch.tensor(x, dtype=torch.float64)
    here, there = contract(x), contract(x + nudge)
    assert float(here.abs().max()) < 2
    assert float((here - there).abs().max()) <= 4 * nudge + 1e-9, "no jumps"
    assert float(torch.linalg.cross(x, here).abs().max()) <= 1e-6 * float(x.norm()) + 1e-12, "same direction"
    if float(x.abs().max()) < 1:
        assert torch.equal(here, x)


def test_the_workspace_is_the_middle_half_of_the_grid():
    workspace = Workspace((1.0, 2.0, 3.0), 4.0)
    points = torch.tensor([[1.0, 2, 3], [3, 2, 3], [1, 0, 3], [5, 2, 3], [1e6, 2, 3]])
    expected = [[0.5, 0.5, 0.5], [0.75, 0.5, 0.5], [0.5, 0.25, 0.5], [0.875, 0.5, 0.5], [1, 0.5, 0.5]]
    assert torch.allclose(workspace.to_unit(points), torch.tensor(expected), atol=1e-5)


@pytest.mark.parametrize("extent", [0.0, -1.0, float("nan")])
def test_a_workspace_has_a_size(extent):
    with pytest.raises(ConfigError, match="extent_m"):
        Workspace((0.0, 0.0, 0.0), extent)


# ---- heads ---------------------------------------------------------------------------------------------------------


def test_spherical_harmonics_are_orthonormal():
    # exact quadrature for polynomials of this degree: Gauss-Legendre in z, uniform in azimuth
    z, weight = np.polynomial.legendre.leggauss(8)
    azimuth = 2 * np.pi * np.arange(16) / 16
    zz, aa = (x.reshape(-1) for x in np.meshgrid(z, azimuth, indexing="ij"))
    ring_m = np.sqrt(1 - zz**2)
    directions = torch.tensor(np.stack([ring_m * np.cos(aa), ring_m * np.sin(aa), zz], -1))
    y = spherical_harmonics(directions).numpy()
    area = np.repeat(weight, 16) * 2 * np.pi / 16
    assert np.allclose((y * area[:, None]).T @ y, np.eye(9), atol=1e-6)


def test_heads_reject_what_cannot_work():
    with pytest.raises(ConfigError, match="late_linear"):
        HeadConfig("x", 3, late_linear=True, activation="softmax")
    with pytest.raises(ConfigError, match="out_dim"):
        HeadConfig("x", 0)
    with pytest.raises(ConfigError, match="different"):
        Field(TINY, WORKSPACE, (HeadConfig("x", 3), HeadConfig("x", 4)))
    field = Field(TINY, WORKSPACE, (HeadConfig("x", 3, direction=True),))
    with pytest.raises(ConfigError, match="directions"):
        field.head("x").hidden(torch.zeros(1, field.grid("feature").width), None)
    with pytest.raises(ConfigError, match="no head 'y'; it has: x"):
        field.head("y")


def test_activations_are_per_sample():
    encoded = torch.randn(50, 8)
    probabilities = Head(HeadConfig("p", 5, activation="softmax"), 8, 16).hidden(encoded, None)
    assert torch.allclose(probabilities.sum(-1), torch.ones(50)) and (probabilities > 0).all()
    colour = Head(HeadConfig("c", 3, activation="sigmoid"), 8, 16).hidden(encoded, None)
    assert (colour > 0).all() and (colour < 1).all()


def test_the_last_linear_layer_commutes_with_compositing():
    head = Head(HeadConfig("f", 512, late_linear=True), 8, 64)
    encoded, weights = torch.randn(40, 12, 8), torch.rand(40, 12)
    h = head.hidden(encoded.view(-1, 8), None).view(40, 12, -1)
    naive = (head.last(head.trunk(encoded)) * weights[..., None]).sum(1)
    late = head.finish((h * weights[..., None]).sum(1))
    assert float((naive - late).detach().abs().max()) < 1e-5


def test_unit_features_commute_with_compositing_too():
    head = Head(HeadConfig("f", 512, late_linear=True, unit=True), 8, 64)
    encoded, weights = torch.randn(40, 12, 8), torch.rand(40, 12)
    h = head.hidden(encoded.view(-1, 8), None).view(40, 12, -1)
    naive = torch.nn.functional.normalize(head.last(head.trunk(encoded)), dim=-1)
    assert float((head.finish(h) - naive).detach().abs().max()) < 1e-5
    late = head.finish((h * weights[..., None]).sum(1))
    assert float((late - (naive * weights[..., None]).sum(1)).detach().abs().max()) < 1e-5
    with pytest.raises(ConfigError, match="unit"):
        HeadConfig("x", 3, unit=True)


def test_cosines_of_composited_values_are_those_of_their_outputs():
    head = Head(HeadConfig("f", 512, late_linear=True), 8, 64)
    a, b = (head.hidden(torch.randn(50, 8), None) for _ in range(2))
    naive = torch.nn.functional.cosine_similarity(head.finish(a), head.finish(b), dim=-1)
    assert float((head.cosine(a, b) - naive).detach().abs().max()) < 1e-5
    assert float((head.cosine(a, a) - 1).detach().abs().max()) < 1e-5


def test_losses_by_hand():
    predicted, target = torch.tensor([[3.0, 0], [0, 2], [-1, 0]]), torch.tensor([[1.0, 0], [1, 0], [1, 0]])
    confidence = torch.tensor([1.0, 3.0, 0.0])
    assert float(head_loss(HeadConfig("x", 2, loss="l1"), predicted, target)) == pytest.approx((1 + 1.5 + 1) / 3)
    assert float(head_loss(HeadConfig("x", 2, loss="l2", weight=2.0), predicted, target, confidence)) == pytest.approx(
        2 * (1 * 2 + 3 * 2.5) / 4
    )
    cosine = head_loss(HeadConfig("x", 2, loss="cosine_sqrt"), predicted, target, confidence)
    assert float(cosine) == pytest.approx((math.sqrt(1e-3) + 3 * math.sqrt(1 + 1e-3)) / 4, rel=1e-4)


def test_a_detached_head_does_not_move_its_grid():
    field = Field(TINY, WORKSPACE, (HeadConfig("a", 3, detach_grid=True), HeadConfig("b", 3)))
    for name, moves in (("a", False), ("b", True)):
        points = torch.rand(20, 3)
        field.head(name).hidden(field.encode("feature", points), None).sum().backward()
        grad = field.grid("feature").table.grad
        assert (grad is not None and bool(grad.any())) == moves


# ---- rendering -----------------------------------------------------------------------------------------------------


def test_neus_weights_by_hand():
    d = [2.0, 0.5, -1.0]
    s = [1 / (1 + math.exp(-x)) for x in d]
    first = (s[0] - s[1]) / s[0]
    second = (s[1] - s[2]) / s[1] * (1 - first)
    expected = [first / 2, (first + second) / 2, second / 2]
    assert neus_weights(torch.tensor([d]), 1.0)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_neus_weights_of_a_sharp_crossing_lie_on_it_and_nowhere_else():
    sharp = neus_weights(torch.tensor([[3.0, 2, 1, -1, -2, -1, 1], [1.0, 2, 3, 4, 5, 6, 7]]), 1e3)
    assert sharp[0].tolist() == pytest.approx([0, 0, 0.5, 0.5, 0, 0, 0], abs=1e-5)
    assert sharp[1].tolist() == pytest.approx([0] * 7), "leaving a surface weighs nothing"
    random = neus_weights(torch.randn(200, 12), 5.0)
    assert (random >= 0).all() and float(random.sum(1).max()) <= 1 + 1e-5


def camera_rays(T: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins and z-unit directions [H W, 3] in the world."""
    directions = torch.from_numpy((image_directions(CAMERA).reshape(-1, 3) @ T[:3, :3].T).astype(np.float32))
    return torch.from_numpy(T[:3, 3].astype(np.float32)).expand_as(directions), directions


@pytest.mark.parametrize("truncation_m", [0.03, 0.06, 0.2])
def test_a_rendered_sphere_has_its_closed_form_depth(truncation_m):
    centre, radius = np.array([0.1, -0.05, 0.2]), 0.25
    field = Analytic(sphere(centre.astype(np.float32), radius), truncation_m=truncation_m)
    T = look_at([0.9, 0.7, 0.8], centre)
    origins, directions = camera_rays(T)
    rendering = render(field, origins, directions)
    d, o = directions.double().numpy(), origins.double().numpy() - centre
    a, b, c = (d * d).sum(1), (d * o).sum(1), (o * o).sum(1) - radius**2
    root = b**2 - a * c
    exact = (-b - np.sqrt(np.maximum(root, 0))) / a  # z-depth: directions have camera z = 1
    hit = rendering.depth.numpy() > 0
    # away from the silhouette, where a ray's band passes through a chord and not a surface
    centred = root > 0.3 * (a * radius**2)
    outside = root < 0
    assert centred.sum() > 300 and outside.sum() > 300
    assert hit[centred].all() and not hit[outside].any()
    assert np.abs(rendering.depth.numpy() - exact)[centred].max() < 0.06 * truncation_m
    assert rendering.accumulation.numpy()[centred].min() > 0.8
    assert float(rendering.accumulation.max()) <= 1 + 1e-5
    assert not rendering.accumulation.numpy()[outside].any() and not rendering.entropy.numpy()[outside].any()
    entropy = rendering.entropy.numpy()[centred]
    assert (entropy > 0).all() and (entropy <= math.log(8)).all()


def test_z_depth_of_a_wall_is_the_same_in_every_pixel():
    field = Analytic(lambda p: 1.5 - p[:, 2])
    origins, directions = camera_rays(np.eye(4))
    depth = render(field, origins, directions).depth.numpy()
    assert np.abs(depth - 1.5).max() < 2e-3, "z-depth, not distance along the ray"
    nothing = render(field, origins, directions, far_m=1.0)
    assert not nothing.depth.any(), "nothing before far_m"


def test_a_ray_that_starts_inside_hits_at_once():
    field = Analytic(sphere([0.0, 0.0, 0.0], 1.0))
    hit = trace(field, torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]]), near_m=0.1, far_m=6.0)
    assert float(hit) == pytest.approx(0.1)


def test_rendering_does_not_depend_on_the_chunk_and_takes_no_rays():
    heads = (HeadConfig("f", 4, late_linear=True), HeadConfig("p", 3, activation="softmax"))
    field = Analytic(sphere([0.0, 0.0, 0.0], 0.4), heads)
    origins, directions = camera_rays(look_at([1.0, 0.2, 0.5], [0.0, 0.0, 0.0]))
    whole = render(field, origins, directions, ("f", "p"))
    parts = render(field, origins, directions, ("f", "p"), chunk=777)
    for name in ("depth", "accumulation", "entropy"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-6)
    for name in ("f", "p"):
        assert torch.allclose(whole.outputs[name], parts.outputs[name], atol=1e-5)
    hit = whole.depth > 0
    assert torch.allclose(whole.outputs["p"].sum(1), hit.float(), atol=1e-5), "probabilities, composited"
    none = render(field, origins[:0], directions[:0], ("f",))
    assert none.depth.shape == (0,) and none.outputs["f"].shape == (0, 4)


def test_rendered_features_equal_the_naive_form():
    config = HeadConfig("f", 64, late_linear=True)
    late = Analytic(sphere([0.0, 0.0, 0.0], 0.4), (config,))
    naive = Analytic(sphere([0.0, 0.0, 0.0], 0.4), (replace(config, late_linear=False),))
    with torch.no_grad():
        late.grid("feature").table *= 1e4
    naive.load_state_dict(late.state_dict())
    rays = camera_rays(look_at([1.0, 0.2, 0.5], [0.0, 0.0, 0.0]))
    a, b = (render(field, *rays, ("f",)).outputs["f"] for field in (late, naive))
    assert float(a[a != 0].std()) > 0.1 and float((a - b).abs().max()) < 1e-5


# ---- training ------------------------------------------------------------------------------------------------------


def batch_of(depth: torch.Tensor, directions: torch.Tensor) -> RayBatch:
    n = len(depth)
    return RayBatch(
        torch.zeros(n, 3), directions, directions.norm(dim=-1), depth, torch.zeros(n, 3), torch.ones(n),
        torch.zeros(n, dtype=torch.int64),
    )  # fmt: skip


def test_depth_guided_samples_lie_where_they_should():
    generator = torch.Generator().manual_seed(0)
    directions = torch.cat([torch.rand(400, 2, generator=generator) - 0.5, torch.ones(400, 1)], 1)
    batch = batch_of(0.3 + 3 * torch.rand(400, generator=generator), directions)
    free, surface = depth_guided(batch, 6, 8, 0.06, 0.05, generator)
    band = 0.06 / batch.norms
    assert free.shape == (400, 6) and surface.shape == (400, 8)
    assert (free >= 0.05).all() and (free <= (batch.depth_m - band)[:, None] + 1e-6).all()
    assert ((surface - batch.depth_m[:, None]).abs() <= band[:, None] + 1e-6).all()
    assert (free.diff(dim=1) > 0).all() and (surface.diff(dim=1) > 0).all(), "in order along the ray"
    nearest, _ = depth_guided(batch_of(torch.full((3,), 0.06), directions[:3]), 6, 8, 0.06, 0.05, generator)
    assert torch.allclose(nearest, torch.full_like(nearest, 0.05)), "no free space in front of the near plane"


def test_the_true_distance_of_a_plane_has_no_loss():
    """Also where rays graze it: the distance is measured at right angles to the surface, not along the ray."""
    fine = CAMERA.resized(320, 240)
    frame = frame_at(look_at([0.6, 0.0, 0.6], [0.0, 0.0, 0.0]), blocks=(), camera=fine)
    replay = Replay(SMALL.memory, fine.width, fine.height, FeatureShape(STUB.dim, 1, 1), "cpu")
    replay.write(0, frame, np.random.default_rng(0))
    field = Analytic(lambda p: p[:, 2])
    trainer = Trainer(field, SMALL.train)
    rays = replay.rays(2000, 0.0, trainer.generator)
    losses, samples = trainer._ray_losses(rays)
    assert samples == len(rays.depth_m) * (SMALL.train.free_samples + SMALL.train.surface_samples)
    assert float(losses["sdf"]) / 5 < 0.02, "a share of the band"
    assert float(losses["free"]) < 0.05
    moved = Trainer(Analytic(lambda p: p[:, 2] - 0.03), SMALL.train)
    worse, _ = moved._ray_losses(replay.rays(2000, 0.0, moved.generator))
    assert float(worse["sdf"]) / 5 > 0.15


def gradients(field: Field) -> dict[str, bool]:
    """Which parameters a loss has reached."""
    return {name: p.grad is not None and bool(p.grad.any()) for name, p in field.named_parameters()}


def test_language_never_shapes_geometry_and_geometry_never_shapes_language():
    mapping = mapped(6)
    trainer, replay, field = mapping.trainer, mapping.replay, mapping.field
    batch = replay.patches(64, 4, True, 0.3, trainer.generator)
    means, _ = trainer._composited(batch, None)
    patch_loss(trainer.field.head("language"), batch, means).backward()
    reached = gradients(field)
    assert {n for n, yes in reached.items() if yes} and all(
        n.startswith(("grids.feature", "heads.language")) for n, yes in reached.items() if yes
    )
    assert reached["grids.feature.table"] and reached["heads.language.last.weight"]
    for p in field.parameters():
        p.grad = None
    losses, _ = trainer._ray_losses(replay.rays(200, 0.0, trainer.generator))
    torch.stack(list(losses.values())).sum().backward()
    reached = gradients(field)
    assert reached["grids.geometry.table"] and reached["sdf.0.weight"] and reached["heads.rgb.last.weight"]
    assert not any(yes for n, yes in reached.items() if n.startswith(("grids.feature", "heads.language")))


def test_training_language_alone_leaves_geometry_as_it_was():
    """The same through whole steps: with or without features, the same rays give the same geometry."""
    silent = mapped(4)
    silent.replay.language.slots.clear()
    spoken = mapped(4)
    for mapping in (silent, spoken):
        # patches draw from the generator too: give every step its own
        for step in range(5):
            mapping.trainer.generator.manual_seed(step)
            mapping.train_step()
    assert silent.language_steps == 0 and spoken.language_steps == 5
    a, b = silent.field.state_dict(), spoken.field.state_dict()
    for name in a:
        same = torch.equal(a[name], b[name])
        assert same != name.startswith(("grids.feature", "heads.language")), name


def test_a_trained_field_renders_the_scene(trained):
    errors, colour_errors = [], []
    for T in ring(7)[1:4]:  # not one of the ten training views
        exact, _ = cast(T)
        rendering = render(trained.field, *camera_rays(T), ("rgb",))
        depth = rendering.depth.numpy().reshape(exact.shape)
        both = (exact > 0) & (exact < 1.2)
        errors.append(np.abs(depth - exact)[both])
        truth = frame_at(T).rgb / 255
        colour_errors.append(np.abs(rendering.outputs["rgb"].numpy().reshape(truth.shape) - truth)[both])
    errors = np.concatenate(errors)
    assert np.median(errors) < 0.01 and (errors < 0.05).mean() > 0.85
    assert np.median(np.concatenate(colour_errors)) < 0.06


def test_a_trained_field_knows_what_is_where(trained):
    from semfield_ros.query.scores import field_cosines

    texts = STUB.encode_text(["white", "red", "blue"])
    tops = np.array([[0.3, 0.3, 0.0], [-0.14, -0.02, 0.16], [0.15, 0.02, 0.1]], np.float32)
    cosines = field_cosines(trained.field, tops, texts)
    assert cosines.argmax(1).tolist() == [0, 1, 2] and np.diag(cosines).min() > 0.9


def test_steps_report_what_they_did():
    mapping = mapped(3)
    report = mapping.trainer.step(mapping.replay)
    assert set(report.losses) == {"sdf", "free", "rgb", "language", "smooth"}
    assert all(torch.isfinite(v) and not v.requires_grad for v in report.losses.values())
    train = SMALL.train
    per_ray = train.free_samples + train.surface_samples
    features = train.feature_patches * train.window_rays + 2 * train.smooth_pairs
    assert report.rays * per_ray < report.samples <= report.rays * per_ray + features
    assert mapping.trainer.steps == 1


def test_training_is_repeatable():
    a, b = mapped(3), mapped(3)
    for mapping in (a, b):
        for _ in range(3):
            mapping.train_step()
    assert all(torch.equal(x, y) for x, y in zip(a.field.state_dict().values(), b.field.state_dict().values()))


def test_frozen_is_a_copy_that_shares_nothing():
    mapping = mapped(3)
    mapping.train_step()
    before = [None if p.grad is None else p.grad.clone() for p in mapping.field.parameters()]
    twin = frozen(mapping.field)
    state = {k: v.clone() for k, v in twin.state_dict().items()}
    after = [p.grad for p in mapping.field.parameters()]
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(before, after)), "gradients are back"
    assert not any(p.requires_grad for p in twin.parameters())
    mapping.train_step()
    assert all(torch.equal(v, state[k]) for k, v in twin.state_dict().items())
    assert not torch.equal(mapping.field.state_dict()["grids.feature.table"], state["grids.feature.table"])


def test_a_language_head_is_late_linear_and_compared_by_cosine():
    config = language_head(STUB.dim)
    assert config.late_linear and config.grid == "feature" and config.loss == "cosine_sqrt"
