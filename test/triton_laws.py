"""What Triton's kernels must compute, op by op, against plain torch. Not collected: `test_triton.py` runs this file in
a process of its own, through Triton's interpreter (TRITON_INTERPRET=1, device cpu) and on a GPU where there is one."""

import os
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from analytic_scene import SMALL, mapped
from torch import nn

from semfield_ros.config import FieldConfig, GridConfig
from semfield_ros.field import hash_grid_triton, mlp_triton
from semfield_ros.field.hash_grid import HashGrid, adam_reference
from semfield_ros.field.heads import HeadConfig
from semfield_ros.field.mlp import Mlp
from semfield_ros.field.mlp_triton import fits, grid_mlp, mlp
from semfield_ros.field.model import Field
from semfield_ros.field.optimiser import GridAdam
from semfield_ros.field.rehearsal import rehearse
from semfield_ros.field.render import trace
from semfield_ros.field.snapshot import frozen
from semfield_ros.field.workspace import Workspace

DEVICE = os.environ["SEMFIELD_TRITON_DEVICE"]
CONFIGS = [
    GridConfig(levels=1, features=1, log2_table=19, min_resolution=16, max_resolution=16),
    GridConfig(levels=4, features=2, log2_table=8, min_resolution=4, max_resolution=64),
    GridConfig(levels=3, features=4, log2_table=12, min_resolution=8, max_resolution=256),
    GridConfig(levels=2, features=8, log2_table=10, min_resolution=5, max_resolution=33),
]
"""Dense levels, hashed ones, rows that many corners share; every number of features."""


def pair(config: GridConfig) -> tuple[HashGrid, HashGrid]:
    """The same grid, by Triton and by torch, with entries of size one."""
    grids = [HashGrid(config, 2.0, torch.Generator().manual_seed(1), backend) for backend in ("triton", "torch")]
    values = torch.randn(grids[0].table.shape, generator=torch.Generator().manual_seed(2))
    for grid in grids:
        with torch.no_grad():
            grid.table.copy_(values)
    return grids[0].to(DEVICE), grids[1].to(DEVICE)


def positions(n: int = 101) -> torch.Tensor:
    """n random positions and the corners of the cube: an odd number."""
    corners = torch.tensor([[i, j, k] for i in (0.0, 1.0) for j in (0.0, 1.0) for k in (0.0, 1.0)])
    return torch.cat([torch.rand(n, 3, generator=torch.Generator().manual_seed(3)), corners]).to(DEVICE)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 2e-5) -> bool:
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.levels}x{c.features}")
def test_grid_forward_backward_and_adam(config):
    fast, slow = pair(config)
    p = positions()
    upstream = torch.randn(len(p), fast.width, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    a, b = fast(p), slow(p)
    assert close(a, b)
    (a * upstream).sum().backward()
    (b * upstream).sum().backward()
    assert close(fast.table.grad, slow.table.grad)
    with torch.no_grad():
        assert torch.equal(fast(p), a), "the same without gradients"
    optimisers = GridAdam(fast), GridAdam(slow)
    untouched = (slow.table.grad == 0).all(-1)
    untouched[3] = False
    before = slow.table.detach().clone()
    for step in range(3):
        for optimiser in optimisers:
            if step == 1:  # now most rows have none
                optimiser.grid.table.grad[3] = 0.5
            optimiser.step(1e-2)
            assert not optimiser.grid.table.grad.any(), "the gradient is cleared"
    assert close(fast.table.detach(), slow.table.detach())
    for name in ("mean", "square"):
        assert close(getattr(optimisers[0], name), getattr(optimisers[1], name))
    assert torch.equal(fast.table.detach()[untouched], before[untouched]), "rows without a gradient stay"


def test_gradients_of_many_points_in_one_cell_and_of_two_passes_add_up():
    fast, slow = pair(CONFIGS[0])
    p = positions()[:1].expand(131, 3).contiguous()  # more than one block
    for grid in (fast, slow):
        for _ in range(2):
            grid(p).sum().backward()
    assert close(fast.table.grad, slow.table.grad)


def test_adam_takes_the_numbers_of_many_steps():
    shape = (700, 2)  # more than one block
    tensors = [[torch.zeros(shape, device=DEVICE) for _ in range(3)] for _ in range(2)]
    for step in range(1, 4):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        gradient[:: step + 1] = 0
        numbers = (1e-2, 0.9, 0.99, 1e-15, 1 / (1 - 0.9**step), 1 / (1 - 0.99**step))
        for (table, mean, square), adam in zip(tensors, (hash_grid_triton.adam_touched, adam_reference)):
            adam(table, gradient.clone().to(DEVICE), mean, square, numbers)
    assert all(close(a, b) for a, b in zip(*tensors))


@pytest.mark.parametrize("n", [0, 1])
def test_few_points(n):
    fast, slow = pair(CONFIGS[2])
    p = positions()[:n]
    encoded = fast(p)
    assert encoded.shape == (n, fast.width)
    encoded.sum().backward()
    slow(p).sum().backward()
    assert close(fast.table.grad, slow.table.grad) if n else not fast.table.grad.any()


def test_what_is_no_position_reads_nothing_beyond_the_table():
    for config in CONFIGS[:2]:
        fast, slow = pair(config)
        p = positions()[:20]
        odd = p.clone()
        odd[3], odd[4], odd[5] = float("nan"), 1e9, -1e9
        good = torch.ones(20, dtype=torch.bool, device=DEVICE)
        good[3:6] = False
        encoded = fast(odd)
        encoded.sum().backward()
        assert close(encoded[good], slow(p)[good])


def layers(widths: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(6)
    return [
        ((torch.randn(b, a, generator=generator) / a**0.5).to(DEVICE), torch.randn(b, generator=generator).to(DEVICE))
        for a, b in pairwise(widths)
    ]


def reference(x: torch.Tensor, parameters: list[tuple[torch.Tensor, torch.Tensor]], relu_out: bool) -> torch.Tensor:
    for i, (weight, bias) in enumerate(parameters):
        x = x @ weight.T + bias
        if relu_out or i < len(parameters) - 1:
            x = x.relu()
    return x


@pytest.mark.parametrize("n", [0, 1, 101])
@pytest.mark.parametrize(
    ("widths", "relu_out"), [((24, 64, 1), False), ((32, 64), True), ((41, 64, 64, 3), False), ((5, 16, 32), True)]
)
def test_mlp_forward_and_backward(widths, relu_out, n):
    parameters = layers(widths)
    flat = [tensor.requires_grad_() for layer in parameters for tensor in layer]
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, widths[0], generator=generator).to(DEVICE).requires_grad_()
    upstream = torch.randn(n, widths[-1], generator=generator).to(DEVICE)
    a, b = mlp(x, parameters, relu_out), reference(x, parameters, relu_out)
    assert a.shape == b.shape and (not n or close(a, b))
    ours, theirs = (torch.autograd.grad((y * upstream).sum(), [x, *flat]) for y in (a, b))
    assert all(p.shape == q.shape and (not p.numel() or close(p, q)) for p, q in zip(ours, theirs))


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_mlp_in_less_precision_is_near(precision):
    if precision == "bfloat16" and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16, not their values")
    parameters = layers((24, 64, 1))
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(8)).to(DEVICE)
    assert close(mlp(x, parameters, False, precision), reference(x, parameters, False), 3e-2)


def test_an_mlp_leaves_inputs_alone_that_want_no_gradient():
    parameters = layers((24, 16))
    flat = [tensor.requires_grad_() for layer in parameters for tensor in layer]
    mlp(torch.ones(5, 24, device=DEVICE), parameters, True).sum().backward()
    assert all(tensor.grad is not None for tensor in flat)


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[2], CONFIGS[3]], ids=lambda c: f"{c.levels}x{c.features}")
def test_grid_and_mlp_in_one_kernel(config):
    _, slow = pair(config)
    p = positions()
    for widths, relu_out in (((slow.width, 64, 1), False), ((slow.width, 16), True)):
        parameters = layers(widths)
        ours = grid_mlp(p, slow.table, slow.layout, parameters, relu_out)
        assert close(ours, reference(slow(p).detach(), parameters, relu_out))
    assert grid_mlp(p[:0], slow.table, slow.layout, parameters, True).shape == (0, 16)


def test_what_is_too_wide_has_no_kernel_and_is_computed_by_torch(monkeypatch):
    assert fits([32, 64, 1]) and not fits([32, 128, 1]) and not fits([72, 64, 1]) and not fits([8] * 5)
    monkeypatch.setattr(mlp_triton, "_shared_bytes", lambda: 64 * 1024)
    assert fits([32, 64, 1]) and not fits([32, 64, 64]), "a small GPU"
    wide = Mlp(nn.Linear(3, 128), nn.ReLU(), nn.Linear(128, 1), backend="triton").to(DEVICE)
    assert not wide.fused(DEVICE) and wide(torch.zeros(2, 3, device=DEVICE)).shape == (2, 1)


def test_a_field_is_the_same_by_triton_and_by_torch_and_a_checkpoint_moves():
    small = {
        "geometry_grid": GridConfig(levels=3, log2_table=10, min_resolution=4, max_resolution=16),
        "feature_grid": GridConfig(levels=2, log2_table=10, min_resolution=4, max_resolution=16),
        "hidden": 16,
    }
    heads = (
        HeadConfig("rgb", 3, grid="geometry", direction=True, layers=2, activation="sigmoid"),
        HeadConfig("language", 8, late_linear=True, unit=True),
    )
    workspace = Workspace((0.1, 0.2, 0.3), 2.0)
    slow = Field(FieldConfig(backend="torch", **small), workspace, heads)
    fast = Field(FieldConfig(backend="triton", seed=1, **small), workspace, heads)
    with torch.no_grad():
        for p in slow.parameters():
            p.normal_(0, 0.3, generator=torch.Generator().manual_seed(p.numel()))
    fast.load_state_dict({k: v.clone() for k, v in slow.state_dict().items()})
    fast = fast.to(DEVICE)
    generator = torch.Generator().manual_seed(9)
    points, directions = (torch.rand(70, 3, generator=generator) * 4 - 2 for _ in range(2))
    assert fast.sdf.fused(DEVICE) and not slow.sdf.fused("cpu")

    def outputs(field: Field, device: str) -> list[torch.Tensor]:
        x, d = points.to(device), directions.to(device)
        encoded = field.encode("geometry", x)
        return [
            field.distance(encoded), field.head("rgb").hidden(encoded, d),
            field.head("language").hidden(field.encode("feature", x), None),
        ]  # fmt: skip

    rehearse(fast.config, heads, DEVICE)
    ours, theirs = outputs(fast, DEVICE), outputs(slow, "cpu")
    assert all(close(a.cpu(), b) for a, b in zip(ours, theirs))
    for values in (ours, theirs):
        sum(v.square().mean() for v in values).backward()
    for (name, p), q in zip(fast.named_parameters(), slow.parameters()):
        assert (p.grad is None) == (q.grad is None) and (p.grad is None or close(p.grad.cpu(), q.grad)), name
    assert close(fast.distance_at(points.to(DEVICE)).cpu(), theirs[0].detach()), "without leaving the kernel"
    trunk = slow.trunk_at("language", points)
    assert close(frozen(fast).trunk_at("language", points.to(DEVICE)).cpu(), trunk)


def test_rays_are_traced_to_the_same_surface():
    grid = GridConfig(levels=2, features=2, log2_table=12, min_resolution=4, max_resolution=12)
    config = {"geometry_grid": grid, "feature_grid": grid, "hidden": 16, "truncation_m": 0.2}
    workspace = Workspace((0.1, 0.0, 0.2), 1.5)
    slow, fast = (Field(FieldConfig(backend=b, **config), workspace, ()) for b in ("torch", "triton"))
    with torch.no_grad():
        slow.grid("geometry").table.normal_(0, 1, generator=torch.Generator().manual_seed(1))
        slow.sdf[2].bias.fill_(0.1)  # rather free space
    fast.load_state_dict(slow.state_dict())
    slow, fast = slow.to(DEVICE), fast.to(DEVICE)
    generator = torch.Generator().manual_seed(2)
    origins = (torch.rand(49, 3, generator=generator) - 0.5).to(DEVICE)
    directions = torch.cat([torch.rand(49, 2, generator=generator) - 0.5, torch.ones(49, 1)], 1).to(DEVICE)
    none = origins[:0]
    assert fast.traced(none, none, 0.1, 1.0, 1) is not None and slow.traced(none, none, 0.1, 1.0, 1) is None
    ours, theirs = (trace(field, origins, directions, 0.1, 1.5, 10) for field in (fast, slow))
    same = torch.isfinite(ours) == torch.isfinite(theirs)
    assert same.all() and 9 < int(torch.isfinite(theirs).sum()) < 45, "some hit, some do not"
    assert close(ours.nan_to_num(), theirs.nan_to_num(), 1e-4)
    assert trace(fast, none, none, 0.1, 2.0).shape == (0,)


def test_training_by_triton_is_training_by_torch():
    config = replace(
        SMALL,
        field=replace(
            SMALL.field, hidden=16,
            geometry_grid=GridConfig(levels=2, log2_table=8, min_resolution=4, max_resolution=16),
            feature_grid=GridConfig(levels=1, log2_table=8, min_resolution=8, max_resolution=8),
        ),
        train=replace(
            SMALL.train, rays=12, feature_patches=4, window_rays=3, smooth_pairs=8, free_samples=2, surface_samples=4,
            depthless_rays=0,
        ),
    )  # fmt: skip
    learnt = []
    for backend in ("triton", "torch"):
        mapping = mapped(2, replace(config, field=replace(config.field, backend=backend)), device=DEVICE)
        assert mapping.field is not None
        for _ in range(2):
            mapping.train_step()
        learnt.append(mapping.field.state_dict())
    moved = False
    for name, value in learnt[1].items():
        assert close(learnt[0][name], value, 1e-4), name
        moved |= name.endswith("table") and float(value.abs().max()) > 2e-4
    assert moved, "something was learnt"
