"""The hash grid: the one variant by hand-made rows, kernels against the reference, Adam against torch's."""

import numpy as np
import pytest
import torch

from semfield_ros.config import GridConfig
from semfield_ros.field.hash_grid import HashGrid, corner_rows, encode_reference, kernels, levels_of
from semfield_ros.field.optimiser import BETA1, BETA2, EPSILON, GridAdam

needs_kernels = pytest.mark.skipif(kernels is None, reason="numba is not installed")
CONFIGS = [
    GridConfig(levels=1, features=1, log2_table=19, min_resolution=16, max_resolution=16),
    GridConfig(levels=5, features=2, log2_table=8, min_resolution=4, max_resolution=64),
    GridConfig(levels=8, features=4, log2_table=12, min_resolution=8, max_resolution=256),
    GridConfig(levels=3, features=8, log2_table=10, min_resolution=5, max_resolution=33),
]


def grid_of(config: GridConfig, span: float = 1.0, backend: str = "auto") -> HashGrid:
    """A grid with entries of size one, not the tiny ones it starts with."""
    grid = HashGrid(config, span, torch.Generator().manual_seed(1), backend)
    with torch.no_grad():
        grid.table.normal_(generator=torch.Generator().manual_seed(2))
    return grid


def positions(n: int = 500) -> torch.Tensor:
    """Random positions in [0, 1]^3 and the corners of the cube."""
    corners = torch.tensor([[i, j, k] for i in (0.0, 1.0) for j in (0.0, 1.0) for k in (0.0, 1.0)])
    return torch.cat([torch.rand(n, 3, generator=torch.Generator().manual_seed(3)), corners])


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (GridConfig(levels=16, features=2, log2_table=19, min_resolution=16, max_resolution=2048), 12_196_240),
        (GridConfig(levels=12, features=8, log2_table=19, min_resolution=16, max_resolution=128), 19_849_216),
    ],
)
def test_published_grids_have_their_published_number_of_parameters(config, parameters):
    assert sum(level.rows for level in levels_of(config)) * config.features == parameters


def test_levels_by_hand():
    # growth 2: scales 3, 7, 15; the table of 512 holds 4^3 and 8^3 densely, 16^3 only hashed
    first, second, third = levels_of(GridConfig(levels=3, log2_table=9, min_resolution=4, max_resolution=16))
    assert (first.resolution, first.rows, first.offset, first.dense) == (4, 64, 0, True)
    assert (second.resolution, second.rows, second.offset, second.dense) == (8, 512, 64, True)
    assert (third.resolution, third.rows, third.offset, third.dense) == (16, 512, 576, False)
    assert [level.scale for level in (first, second, third)] == pytest.approx([3, 7, 15])
    spanned = levels_of(GridConfig(levels=1, min_resolution=4, max_resolution=4), span=2.0)
    assert spanned[0].resolution == 8, "contracted space takes twice the cells"


def test_corner_rows_by_hand():
    dense, hashed = levels_of(GridConfig(levels=2, log2_table=9, min_resolution=8, max_resolution=64))
    corner = torch.tensor([3, 5, 7])
    assert int(corner_rows(dense, corner)) == 3 + 8 * (5 + 8 * 7)
    expected = (3 ^ (5 * 2654435761 % 2**32) ^ (7 * 805459861 % 2**32)) % 512 + dense.rows
    assert int(corner_rows(hashed, corner)) == expected


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_vertex_has_the_value_of_its_row(backend):
    grid = grid_of(CONFIGS[0], backend=backend)
    k = torch.tensor([[3, 5, 7], [1, 1, 1], [14, 2, 9]])
    encoded = grid((k - 0.5) / grid.levels[0].scale)
    assert torch.allclose(encoded, grid.table[corner_rows(grid.levels[0], k)], atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_interpolation_is_exact_for_affine_functions(backend):
    grid = HashGrid(CONFIGS[0], 1.0, torch.Generator(), backend)
    level = grid.levels[0]
    z, y, x = torch.meshgrid(*[torch.arange(level.resolution, dtype=torch.float32)] * 3, indexing="ij")
    with torch.no_grad():
        grid.table[:, 0] = (1 + 0.3 * x - 0.2 * y + 0.7 * z).reshape(-1)
    p = positions()[:500] * 0.9  # the last half cell would need vertices the table does not have
    scaled = p * level.scale + 0.5
    assert torch.allclose(grid(p)[:, 0], 1 + scaled @ torch.tensor([0.3, -0.2, 0.7]), atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("span", [1.0, 2.0])
def test_kernels_agree_with_the_reference_forward_and_backward(config, span):
    fast, slow = grid_of(config, span), grid_of(config, span, "torch")
    p = positions()
    upstream = torch.randn(len(p), fast.width, generator=torch.Generator().manual_seed(4))
    a, b = fast(p), slow(p)
    assert torch.equal(b, encode_reference(slow.table, p, slow.levels))
    assert torch.allclose(a, b, atol=1e-4)
    (a * upstream).sum().backward()
    (b * upstream).sum().backward()
    assert torch.allclose(fast.table.grad, slow.table.grad, atol=1e-3)
    (fast(p) * upstream).sum().backward()
    assert torch.allclose(fast.table.grad, 2 * slow.table.grad, atol=2e-3), "gradients of two passes add up"
    with torch.no_grad():
        assert torch.equal(fast(p), a), "the same without gradients"


@needs_kernels
def test_kernels_give_the_same_numbers_with_any_number_of_threads():
    def run() -> list[torch.Tensor]:
        grid = grid_of(CONFIGS[2])
        encoded = grid(positions())
        encoded.square().sum().backward()
        gradient = grid.table.grad.clone()
        GridAdam(grid).step(0.1)
        return [encoded.detach(), gradient, grid.table.detach()]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        three = run()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three))


def test_no_points_are_encoded_to_no_features():
    for backend in ("auto", "torch"):
        grid = grid_of(CONFIGS[2], backend=backend)
        encoded = grid(torch.zeros(0, 3))
        assert encoded.shape == (0, grid.width)
        encoded.sum().backward()


@needs_kernels
@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_no_position_reads_and_writes_inside_the_table(config):
    grid = grid_of(config)
    nowhere = torch.tensor([[float("nan")] * 3, [float("inf")] * 3, [-float("inf")] * 3, [1e9, -1e9, 3.0]])
    encoded = grid(nowhere)
    assert encoded.shape == (4, grid.width)
    encoded.sum().backward()
    assert grid.table.grad.shape == grid.table.shape


def test_no_gradient_goes_through_positions():
    p = positions(20).requires_grad_()
    grid_of(CONFIGS[1])(p).sum().backward()
    assert p.grad is None, "geometry is never moved through positions"


def sparse_gradients(grid: HashGrid, steps: int):
    """Gradients that touch a third of the rows, another third every step."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        touched = torch.rand(len(grid.table), 1, generator=generator) < 1 / 3
        yield torch.where(touched, torch.randn(grid.table.shape, generator=generator), 0.0)


@needs_kernels
def test_adam_kernel_agrees_with_the_torch_branch():
    fast, slow = grid_of(CONFIGS[1]), grid_of(CONFIGS[1], backend="torch")
    optimisers = GridAdam(fast), GridAdam(slow)
    for gradient in sparse_gradients(fast, 20):
        for optimiser in optimisers:
            optimiser.grid.table.grad = gradient.clone()
            optimiser.step(1e-2)
            assert not optimiser.grid.table.grad.any(), "the gradient is cleared"
    assert torch.allclose(fast.table, slow.table, atol=1e-5)
    assert torch.allclose(optimisers[0].mean, optimisers[1].mean, atol=1e-6)
    assert torch.allclose(optimisers[0].square, optimisers[1].square, atol=1e-6)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_adam_is_adam_where_every_row_is_touched(backend):
    grid = grid_of(CONFIGS[1], backend=backend)
    twin = grid.table.detach().clone().requires_grad_()
    ours, theirs = GridAdam(grid), torch.optim.Adam([twin], lr=1e-2, betas=(BETA1, BETA2), eps=EPSILON)
    for step in range(10):
        gradient = torch.randn(twin.shape, generator=torch.Generator().manual_seed(step))
        grid.table.grad, twin.grad = gradient.clone(), gradient.clone()
        ours.step(1e-2)
        theirs.step()
    assert torch.allclose(grid.table, twin, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_adam_leaves_untouched_rows_alone(backend):
    grid = grid_of(CONFIGS[1], backend=backend)
    optimiser = GridAdam(grid)
    optimiser.step(1e-2)
    assert optimiser.steps == 0, "no gradient has come yet"
    before = grid.table.detach().clone()
    first, second = torch.zeros_like(before), torch.zeros_like(before)
    first[3], second[7] = 1.0, 1.0
    for gradient in (first, second):
        grid.table.grad = gradient.clone()
        optimiser.step(1e-2)
    changed = (grid.table != before).any(-1)
    assert changed.nonzero().squeeze(1).tolist() == [3, 7]
    first_step = float(before[3, 0] - grid.table.detach()[3, 0])
    assert first_step == pytest.approx(1e-2, rel=1e-4), "Adam's first step has the length of its rate"


def test_optimiser_state_round_trip_continues_alike():
    a, b = grid_of(CONFIGS[1]), grid_of(CONFIGS[1])
    first = GridAdam(a)
    gradients = list(sparse_gradients(a, 6))
    for gradient in gradients[:3]:
        a.table.grad = gradient.clone()
        first.step(1e-2)
    second = GridAdam(b)
    b.load_state_dict(a.state_dict())
    second.load({k: v.clone() for k, v in first.state().items()})
    for gradient in gradients[3:]:
        for optimiser in (first, second):
            optimiser.grid.table.grad = gradient.clone()
            optimiser.step(1e-2)
    assert torch.equal(a.table, b.table) and first.steps == second.steps == 6


def test_a_grid_starts_small_and_from_its_seed():
    config = CONFIGS[2]
    a, b = (HashGrid(config, 1.0, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a.table, b.table) and float(a.table.detach().abs().max()) <= 1e-4
    assert np.isclose(float(a.table.detach().mean()), 0, atol=1e-6)
