"""Normals and their losses: closed forms, which parameters they move, and a field that learns them."""

from dataclasses import replace

import analytic_scene
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from semfield_ros.config import HeadsConfig  # noqa: E402
from semfield_ros.field import normals  # noqa: E402
from semfield_ros.field.heads import Head, HeadConfig, position_frequencies  # noqa: E402
from semfield_ros.field.normals import (  # noqa: E402
    field_normals,
    orientation_loss,
    predicted_normal_loss,
    predicted_normals,
    slope,
)
from semfield_ros.field.workspace import Workspace  # noqa: E402


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def exact_slope(distance, points, create_graph=True):
    """Gradient [N, 3] of a function that is differentiable in the position.

    Without `create_graph` it is a number: a loss of it trains nothing.
    """
    with torch.enable_grad():
        at = points.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(distance(at).sum(), at, create_graph=create_graph)
    return gradient


def test_slope_of_a_plane_is_exact_and_of_a_sphere_radial(generator):
    points = torch.randn(50, 3, generator=generator)
    n = torch.tensor([0.6, 0.0, 0.8])
    assert torch.allclose(slope(lambda x: x @ n - 0.3, points, 0.05), n.expand(50, 3), atol=1e-5)
    radial = torch.nn.functional.normalize(points, dim=-1)
    assert torch.allclose(slope(lambda x: x.norm(dim=-1) - 1, points + radial, 1e-2), radial, atol=1e-2)
    assert torch.allclose(exact_slope(lambda x: x.norm(dim=-1) - 1, points), radial, atol=1e-5)


def test_normals_are_metric_although_grids_are_contracted(generator):
    """Far outside the workspace the grid's space is squeezed, unevenly: a metric slope does not notice."""
    workspace = Workspace((0.0, 0.0, 0.0), 1.0)

    def distance(x):  # a plane in metres, read through the contraction and back
        unit = workspace.to_unit(x) * 4 - 2
        size = unit.abs().amax(-1, keepdim=True)
        return (torch.where(size < 1, unit, unit / size / (2 - size)) * 0.5) @ torch.tensor([0.6, 0.0, 0.8])

    points = torch.tensor([[3.0, 1.0, 0.5], [0.2, -2.0, 1.5], [0.1, 0.2, 0.3]])
    assert torch.allclose(slope(distance, points, 1e-2), torch.tensor([0.6, 0.0, 0.8]).expand(3, 3), atol=1e-2)
    contracted = exact_slope(lambda u: distance_of_unit(u), workspace.to_unit(points))
    contracted = torch.nn.functional.normalize(contracted, dim=-1)
    assert (contracted[0] - torch.tensor([0.6, 0.0, 0.8])).abs().max() > 0.1, "what forgetting the Jacobian gives"


def distance_of_unit(unit):
    x = unit * 4 - 2
    size = x.abs().amax(-1, keepdim=True)
    return (torch.where(size < 1, x, x / size / (2 - size)) * 0.5) @ torch.tensor([0.6, 0.0, 0.8])


def test_losses_by_hand():
    weights = torch.tensor([[0.25, 0.5]])
    n = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.6, -0.8]]])
    d = torch.tensor([[0.0, 0.0, -1.0]])  # looking down: the first faces the camera, the second away by .8
    assert torch.isclose(orientation_loss(weights, n, d), torch.tensor(0.5 * 0.64))
    predicted = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    assert torch.isclose(predicted_normal_loss(weights, n, predicted), torch.tensor(0.5 * (1 - 0.6)))


def network(generator):
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Softplus(), torch.nn.Linear(16, 1))
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    return net


@pytest.mark.parametrize("kind", ["exact", "differences"])
def test_the_orientation_loss_trains_only_with_the_graph_of_the_normals(generator, kind):
    """The trap: normals without create_graph are numbers, and the loss silently trains nothing."""
    net, points = network(generator), torch.randn(40, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(40, 3, generator=generator), dim=-1)

    def function(x):
        return net(x).squeeze(-1)

    def loss(gradient):
        unit = torch.nn.functional.normalize(gradient, dim=-1)[:, None]
        return orientation_loss(torch.ones(40, 1), unit, directions)

    kept = loss(exact_slope(function, points) if kind == "exact" else slope(function, points, 1e-3))
    before = float(kept.detach())
    assert before > 0
    moved = torch.autograd.grad(kept, list(net.parameters()), allow_unused=True)
    assert all(g is not None and g.abs().max() > 0 for g in moved[:3:2]), "both weight matrices move"
    if kind == "exact":
        lost = loss(exact_slope(function, points, create_graph=False))
        assert float(lost) == pytest.approx(before, abs=1e-6) and not lost.requires_grad
    with torch.no_grad():
        for p, g in zip(net.parameters(), moved):
            p -= 0.05 * (g if g is not None else 0)
    assert float(loss(exact_slope(function, points)).detach()) < before


def test_the_weights_of_the_orientation_loss_are_not_detached_and_those_of_the_prediction_are(generator):
    weights = torch.rand(8, 4, generator=generator).requires_grad_()
    n = torch.nn.functional.normalize(torch.randn(8, 4, 3, generator=generator), dim=-1).requires_grad_()
    predicted = torch.nn.functional.normalize(torch.randn(8, 4, 3, generator=generator), dim=-1).requires_grad_()
    directions = torch.nn.functional.normalize(torch.randn(8, 3, generator=generator), dim=-1)
    gw, gn = torch.autograd.grad(orientation_loss(weights, n, directions), (weights, n))
    assert gw.abs().max() > 0 and gn.abs().max() > 0
    gw, gn, gp = torch.autograd.grad(
        predicted_normal_loss(weights, n, predicted), (weights, n, predicted), allow_unused=True
    )
    assert gw is None and gn is None and gp.abs().max() > 0


def test_the_head_is_nerfactos():
    (config,) = normals.heads(HeadsConfig(normals=True))
    head = Head(config, 15, 64)
    shapes = [tuple(p.shape) for n, p in head.named_parameters() if n.endswith("weight")]
    assert shapes == [(64, 15 + 12), (64, 64), (3, 64)], "15 geometry features and 2 frequencies (12)"
    out = head.finish(head.hidden(torch.randn(9, 15), None, torch.rand(9, 3)))
    assert torch.allclose(out.norm(dim=-1), torch.ones(9), atol=1e-5)
    assert normals.heads(HeadsConfig()) == ()


def test_frequencies_are_tiny_cuda_nns_with_pi():
    x = torch.tensor([[0.25, 0.5, 1.0]])
    expected = [np.sin(np.pi * v) for v in x[0].tolist()] + [np.sin(2 * np.pi * v) for v in x[0].tolist()]
    expected += [np.cos(np.pi * v) for v in x[0].tolist()] + [np.cos(2 * np.pi * v) for v in x[0].tolist()]
    assert torch.allclose(position_frequencies(x, 2)[0], torch.tensor(expected, dtype=torch.float32), atol=1e-5)


def test_a_head_that_needs_positions_says_so():
    from semfield_ros.errors import ConfigError

    head = Head(HeadConfig("x", 3, frequencies=2), 4, 16)
    with pytest.raises(ConfigError, match="needs positions"):
        head.hidden(torch.zeros(1, 4), None)
    with pytest.raises(ConfigError, match="frequencies 17"):
        HeadConfig("x", 3, frequencies=17)


def test_a_map_learns_normals_online():
    """The table faces up, the faces of the boxes sideways; the head agrees with the shape it saw, box or table."""
    config = replace(analytic_scene.SMALL, heads=HeadsConfig(normals=True))
    mapping = analytic_scene.mapped(10, config, steps=400)
    points = torch.tensor([[0.0, -0.3, 0.0], [0.3, -0.25, 0.0], [-0.06, -0.02, 0.08], [-0.14, -0.02, 0.16]])
    truth = torch.tensor([[0.0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 1]])
    with torch.no_grad():
        shape = field_normals(mapping.field, points)
    assert ((shape * truth).sum(-1) > 0.8).all(), shape
    rays = mapping.replay.rays(2000, 0.0, torch.Generator().manual_seed(1))
    points = rays.origins + rays.directions * rays.depth_m[:, None]
    with torch.no_grad():
        agree = (field_normals(mapping.field, points) * predicted_normals(mapping.field, points)).sum(-1)
    assert agree.mean() > 0.95 and agree[points[:, 2] > 0.01].mean() > 0.75
    assert mapping.learnt["normal"] == 400 and mapping.learnt["orientation"] == 400


def test_without_being_asked_for_there_is_no_cost():
    mapping = analytic_scene.mapped(2, steps=2)
    assert "normal" not in mapping.field.heads and "normal" not in mapping.learnt
