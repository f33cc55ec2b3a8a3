"""The fused CPU kernels against what autograd makes of the same losses, and small matrix products against numpy's."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from semfield_ros.config import FieldConfig, GridConfig, TrainConfig
from semfield_ros.field import trainer as trainers
from semfield_ros.field.heads import HeadConfig
from semfield_ros.field.model import Field
from semfield_ros.field.trainer import Trainer
from semfield_ros.field.workspace import Workspace
from semfield_ros.mapping import colour_head, language_head
from semfield_ros.memory.replay import NeighbourBatch, PatchBatch, RayBatch

pytest.importorskip("numba")
from semfield_ros.field import fused_cpu
from semfield_ros.field.lanes_cpu import COLUMNS, ROWS, matmul, padded

WORKSPACE = Workspace((0.0, 0.0, 0.0), 2.0)
USUAL = FieldConfig(geometry_grid=GridConfig(log2_table=12), feature_grid=GridConfig(levels=6, log2_table=12))
NARROW = FieldConfig(
    geometry_grid=GridConfig(levels=3, features=2, log2_table=10, min_resolution=4, max_resolution=16),
    feature_grid=GridConfig(levels=5, features=1, log2_table=10, min_resolution=4, max_resolution=16),
    hidden=16,
)


def field_of(config: FieldConfig = USUAL, heads: tuple[HeadConfig, ...] | None = None, seed: int = 1) -> Field:
    """A field that has something to say everywhere: entries and weights of size one, not the small ones of a start."""
    field = Field(config, WORKSPACE, (colour_head(), language_head(24)) if heads is None else heads)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in field.parameters():
            p.normal_(0, 0.3, generator=generator)
    return field


def rays_of(n: int, seed: int = 2, reach_m: float = 1.5) -> RayBatch:
    """Random rays; some end outside the workspace, where space is contracted."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.cat([torch.rand(n, 2, generator=g) - 0.5, torch.ones(n, 1)], 1)
    return RayBatch(
        torch.rand(n, 3, generator=g) - 0.5, directions, directions.norm(dim=-1),
        0.06 + reach_m * torch.rand(n, generator=g), torch.rand(n, 3, generator=g),
        0.25 + 0.75 * torch.rand(n, generator=g), torch.zeros(n, dtype=torch.int64),
    )  # fmt: skip


def compare(monkeypatch, losses_of, field: Field, config: TrainConfig) -> None:
    """`losses_of(trainer)` must give the same losses and the same gradients of every parameter with and without."""
    found = []
    for enabled in (True, False):
        if not enabled:
            monkeypatch.setattr(trainers, "fused", None)
        for p in field.parameters():
            p.grad = None
        losses = losses_of(Trainer(field, config))
        if losses:
            torch.stack(list(losses.values())).sum().backward()
        gradients = {n: None if p.grad is None else p.grad.clone() for n, p in field.named_parameters()}
        found.append(({k: float(v.detach()) for k, v in losses.items()}, gradients))
    (fast, fast_gradients), (slow, slow_gradients) = found
    assert fast == pytest.approx(slow, rel=1e-5, abs=1e-7)
    for name, expected in slow_gradients.items():
        actual = fast_gradients[name]
        if expected is None:
            assert actual is None or not actual.any(), name
            continue
        scale = float(expected.abs().max())
        assert actual is not None and actual.shape == expected.shape, name
        assert torch.allclose(actual, expected, rtol=1e-4, atol=max(1e-5 * scale, 1e-9)), name


@pytest.mark.parametrize("config", [USUAL, NARROW, replace(USUAL, hidden=128), replace(USUAL, hidden=32)])
@pytest.mark.parametrize(
    ("n", "free", "surface"), [(150, 6, 8), (1, 6, 8), (37, 0, 8), (64, 6, 1), (3, 0, 1), (0, 6, 8)]
)
def test_ray_losses_are_those_of_autograd(monkeypatch, config, n, free, surface):
    field, batch = field_of(config), rays_of(n)
    train = replace(TrainConfig(), free_samples=free, surface_samples=surface)
    assert fused_cpu.fuses_rays(field)
    compare(monkeypatch, lambda trainer: trainer._ray_losses(batch)[0], field, train)


def test_ray_losses_without_a_colour_head_and_far_outside_the_workspace(monkeypatch):
    field, batch = field_of(heads=()), rays_of(50, reach_m=300.0)
    compare(monkeypatch, lambda trainer: trainer._ray_losses(batch)[0], field, TrainConfig())


def test_a_colour_loss_keeps_its_weight(monkeypatch):
    field, batch = field_of(heads=(replace(colour_head(), weight=0.3),)), rays_of(50)
    compare(monkeypatch, lambda trainer: trainer._ray_losses(batch)[0], field, TrainConfig())


class Measured:
    """A replay of given patches and pairs."""

    def __init__(self, p: int, k: int, pairs: int, seed: int = 3):
        g = torch.Generator().manual_seed(seed)
        values = torch.nn.functional.normalize(torch.randn(p, 24, generator=g), dim=-1)
        valid = torch.rand(p, k, generator=g) < 0.7
        valid[:1] = False  # a window that sees nothing
        points = torch.randn(p, k, 3, generator=g)
        self.language = SimpleNamespace(window=None)
        self.batch = PatchBatch(points, torch.randn(p, k, 3, generator=g), valid, values, torch.rand(p, generator=g))
        ends = torch.randn(2, pairs, 3, generator=g)
        self.pairs = NeighbourBatch(ends[0], ends[1], torch.rand(pairs, generator=g))

    def patches(self, *_: object, **__: object) -> PatchBatch:
        return self.batch

    def neighbours(self, *_: object, **__: object) -> NeighbourBatch:
        return self.pairs


@pytest.mark.parametrize("config", [USUAL, NARROW])
@pytest.mark.parametrize(("p", "k", "pairs"), [(40, 24, 100), (1, 1, 1), (7, 5, 0), (300, 3, 11)])
@pytest.mark.parametrize("smoothness", [0.0, 0.7])
def test_language_losses_are_those_of_autograd(monkeypatch, config, p, k, pairs, smoothness):
    field, replay = field_of(config), Measured(p, k, pairs)

    def losses(trainer: Trainer) -> dict[str, torch.Tensor]:
        trainer.steps = 150
        return trainer._language_losses(replay)[0]

    assert fused_cpu.fuses_language(field.head("language"))
    compare(monkeypatch, losses, field, replace(TrainConfig(), smoothness=smoothness))


def test_features_of_no_length_have_no_direction(monkeypatch):
    """Where the head's output is zero, neither path divides by it."""
    field, replay = field_of(), Measured(5, 4, 6)
    with torch.no_grad():
        field.head("language").last.weight.zero_()
        field.head("language").last.bias.zero_()
    for enabled in (True, False):
        if not enabled:
            monkeypatch.setattr(trainers, "fused", None)
        losses, _ = Trainer(field, TrainConfig())._language_losses(replay)
        torch.stack(list(losses.values())).sum().backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in field.parameters())


@pytest.mark.parametrize(
    "head",
    [
        HeadConfig("rgb", 3, grid="geometry", layers=2, activation="sigmoid"),
        HeadConfig("rgb", 3, grid="geometry", direction=True, layers=1, activation="sigmoid"),
        HeadConfig("rgb", 3, grid="geometry", direction=True, layers=2, loss="l1"),
    ],
)
def test_heads_that_the_kernels_do_not_know_are_left_to_autograd(head):
    field = field_of(heads=(head,))
    assert not fused_cpu.fuses_rays(field)
    losses, _ = Trainer(field, TrainConfig())._ray_losses(rays_of(20))
    torch.stack(list(losses.values())).sum().backward()
    assert field.grid("geometry").table.grad is not None


def test_the_reference_backend_is_not_fused():
    field = field_of()
    assert Trainer(field, TrainConfig())._fuses("geometry")
    field.grid("geometry").backend = "torch"
    assert not Trainer(field, TrainConfig())._fuses("geometry")


def test_fused_losses_can_only_be_summed():
    field, batch = field_of(), rays_of(8)
    losses, _ = Trainer(field, TrainConfig())._ray_losses(batch)
    with pytest.raises(RuntimeError, match="equal weights"):
        (losses["sdf"] + 2 * losses["free"] + losses["rgb"]).backward()


def test_gradients_do_not_depend_on_the_number_of_threads():
    before, found = torch.get_num_threads(), []
    points, share = torch.randn(300, 3, generator=torch.Generator().manual_seed(5)), torch.full((50, 4), 1 / 4)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            field = field_of()
            losses, _ = Trainer(field, TrainConfig())._ray_losses(rays_of(100))
            torch.stack(list(losses.values())).sum().backward()
            encoded = fused_cpu.encode(field, "feature", points)
            means, smooth = fused_cpu.language(field.head("language"), encoded, share, torch.ones(50))
            (means.sum() + smooth).backward()
            found.append({n: p.grad.clone() for n, p in field.named_parameters()})
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0] if ".last." not in n), "the last is torch's"


@pytest.mark.parametrize("m", [1, ROWS - 1, ROWS, 2 * ROWS + 3])
@pytest.mark.parametrize("k", [1, 9, 64])
@pytest.mark.parametrize("n", [COLUMNS, 3 * COLUMNS])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_products_are_numpys(m, k, n, transposed):
    rng = np.random.default_rng(m * 1000 + k)
    a, b, c = (rng.normal(size=s).astype(np.float32) for s in ((m, k), (k, n), (m, n)))
    if transposed:
        a = np.asfortranarray(a)
    out = c.copy()
    matmul(a, b, out)
    assert np.allclose(out, c + a.astype(np.float64) @ b, atol=1e-4)


def test_edges_are_padded_to_whole_tiles():
    assert [padded(n) for n in (1, COLUMNS, COLUMNS + 1)] == [COLUMNS, COLUMNS, 2 * COLUMNS]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_work_is_shared_out_once_and_whole(threads, count):
    from semfield_ros.field.workers_cpu import split, undisturbed

    before, done = torch.get_num_threads(), np.zeros(count, int)

    def work(first: int, last: int) -> None:
        done[first:last] += 1

    try:
        torch.set_num_threads(threads)
        with undisturbed():
            assert torch.get_num_threads() == 1
            split(count, work)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert (done == 1).all()


def test_an_error_on_a_worker_reaches_the_caller():
    from semfield_ros.field.workers_cpu import split

    def work(first: int, last: int) -> None:
        raise ValueError(f"{first}")

    with pytest.raises(ValueError):
        split(4, work)
