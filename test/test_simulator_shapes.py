"""Convex pieces and solids against winding numbers, enclosed volumes and distances known in closed form."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.spatial import ConvexHull, cKDTree

from semfield_ros.errors import ConfigError
from semfield_ros.sources.simulator_objects import KINDS, Kind, Part
from semfield_ros.sources.simulator_pieces import TOLERANCE_M, convex_polygons
from semfield_ros.sources.simulator_scene import TABLE_HALF_M, Placed
from semfield_ros.sources.simulator_shapes import Surface, box, lathe, tube
from semfield_ros.sources.simulator_solids import Solid, TruthClearance, solid_surface


def placed(parts: tuple[Part, ...], position=(0.0, 0.0, 0.0), name: str = "thing") -> Placed:
    T = np.eye(4)
    T[:3, 3] = position
    return Placed(Kind(name, (), lambda rng: parts, ()), "red", np.ones(3), parts, T)


def volume_of_mesh(surface: Surface) -> float:
    a, b, c = (surface.vertices[surface.faces[:, k]] for k in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def volume_of_pieces(surface: Surface) -> float:
    return sum(ConvexHull(surface.vertices[piece]).volume for piece in surface.pieces)


def winding(surface: Surface, points: np.ndarray) -> np.ndarray:
    """How often a closed mesh winds around points (Van Oosterom and Strackee 1983): 1 inside, 0 outside."""
    a, b, c = (surface.vertices[surface.faces[:, k]][None] - points[:, None] for k in range(3))
    la, lb, lc = (np.linalg.norm(x, axis=2) for x in (a, b, c))
    triple = np.einsum("pfi,pfi->pf", a, np.cross(b, c))
    below = la * lb * lc + (a * b).sum(2) * lc + (b * c).sum(2) * la + (c * a).sum(2) * lb
    return 2 * np.arctan2(triple, below).sum(axis=1) / (4 * np.pi)


def dense(surface: Surface, rng: np.random.Generator, n: int = 20_000) -> np.ndarray:
    triangles = surface.vertices[surface.faces]
    area = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
    u = rng.dirichlet((1, 1, 1), n)
    return np.einsum("nk,nkd->nd", u, triangles[rng.choice(len(area), n, p=area / area.sum())])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_pieces_are_the_solid(kind):
    rng = np.random.default_rng(7)
    for part in kind.build(np.random.default_rng(2)):
        surface = part.surface.scaled((1.05,) * 3)
        assert 0.98 < volume_of_pieces(surface) / volume_of_mesh(surface) < 1.13, part.name
        low, high = surface.vertices.min(0), surface.vertices.max(0)
        points = np.concatenate([rng.uniform(low - 0.005, high + 0.005, (250, 3)), dense(surface, rng, 250)])
        points += rng.normal(0, 0.003, points.shape)
        clear = cKDTree(dense(surface, rng)).query(points)[0] > 1.5 * TOLERANCE_M + 0.001
        inside = Solid(placed((Part(part.name, surface),))).depth_m(points) > 0
        wrong = inside[clear] != (winding(surface, points[clear]) > 0.5)
        assert wrong.sum() <= (part.name == "body" and kind.name == "pitcher"), "the pitcher's lip is a bent lathe"


def test_a_pot_is_hollow_with_thin_walls_and_a_tube_bends():
    pot = lathe([(0, 0), (0.05, 0), (0.05, 0.1), (0.046, 0.1), (0.046, 0.004), (0, 0.004)])
    solid = Solid(placed((Part("body", pot),)))
    angle = np.linspace(0, 2 * np.pi, 50)
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(50)], 1)
    assert (solid.depth_m(ring * 0.0475 + [0, 0, 0.06]) > 0).all(), "the wall is there all around"
    assert (solid.depth_m(ring * 0.044 + [0, 0, 0.06]) == 0).all(), "the inside is empty"
    assert solid.depth_m(np.array([[0, 0, 0.05], [0, 0, 0.002]])) == pytest.approx([0, 0.002], abs=1e-6)
    assert volume_of_pieces(pot) == pytest.approx(volume_of_mesh(pot), rel=0.1)
    assert len(box((1, 1, 1)).pieces) == 1
    straight, bent = [(x, 0, 0) for x in (0, 0.1, 0.2, 0.3)], [(0, 0, 0), (0.1, 0, 0), (0.1, 0.1, 0), (0.2, 0.1, 0)]
    assert len(tube(straight, 0.01).pieces) == 1 and len(tube(bent, 0.01).pieces) == 3
    assert len(lathe([(0, 0), (0.02, 0), (0.02, 0.1), (0.01, 0.12), (0.01, 0.2), (0, 0.2)]).pieces) == 2


def test_pieces_survive_moving_bending_and_pickling():
    pot = lathe([(0, 0), (0.05, 0), (0.05, 0.1), (0.046, 0.1), (0.046, 0.004), (0, 0.004)])
    bent = pot.vertices + 0.3 * pot.vertices[:, 2:] * [0.1, 0, 0]
    for other in (pot.moved((1, 2, 3)).scaled((2, 1, 1)), pot.deformed(bent), pickle.loads(pickle.dumps(pot))):
        for mine, its in zip(pot.pieces, other.pieces):
            np.testing.assert_array_equal(mine, its)
    assert volume_of_pieces(pot.deformed(bent)) == pytest.approx(volume_of_pieces(pot), rel=0.01)


def test_polygons_are_cut_into_few_convex_ones():
    corner = np.array([(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)], float)
    parts = convex_polygons(corner, lambda c: 0.0 if len(ConvexHull(c).vertices) == len(c) else 1.0)
    assert len(parts) <= 3

    def area(c: np.ndarray) -> float:
        return 0.5 * float((c[:, 0] * np.roll(c[:, 1], -1) - np.roll(c[:, 0], -1) * c[:, 1]).sum())

    assert sum(area(corner[p]) for p in parts) == pytest.approx(area(corner)) and area(corner) == pytest.approx(3)


def test_distances_to_a_block_on_the_table():
    truth = TruthClearance([placed((Part("body", box((0.1, 0.1, 0.1), (0, 0, 0.05))),))])
    points = np.array([[0, 0, 0.15], [0, 0, 0.07], [0.3, 0, 0.02], [0.3, 0, -0.01], [0.2, 0, 0.3]])
    expected = [0.05, -0.03, 0.02, -0.01, np.hypot(0.15, 0.2)]
    np.testing.assert_allclose(truth.distance(points), expected, atol=0.004)
    edge = np.array([[TABLE_HALF_M[0] + 0.03, 0, 0.04]])
    assert truth.distance(edge)[0] == pytest.approx(0.05, abs=1e-3), "past the edge of the table"
    assert not truth.unknown(points).any()
    with pytest.raises(ConfigError, match="expected"):
        truth.distance(np.zeros((2, 2)))
    alone = TruthClearance([placed((Part("body", box((0.1, 0.1, 0.1))),))], without=[1], table=False)
    assert np.isinf(alone.distance(points)).all()


def test_surface_samples_cover_the_outside_only():
    # A rod through a ball: what is inside the other is no surface. The ball's part of the area is known.
    ball = lathe([(0.05 * np.sin(a), -0.05 * np.cos(a)) for a in np.linspace(0, np.pi, 41)], 80)
    rod = box((0.3, 0.02, 0.02))
    points, normals, instance = solid_surface([placed((Part("body", ball), Part("handle", rod)), (1, 2, 3))], 6000)
    local = points - np.float32([1, 2, 3])
    radius, in_rod = np.linalg.norm(local, axis=1), (np.abs(local[:, 1:]) < 0.0097).all(1)
    assert (radius > 0.0485).all() and not (in_rod & (np.abs(local[:, 0]) < 0.149)).any()
    on_ball = radius < 0.0505
    share = 4 * np.pi * 0.05**2 / (4 * np.pi * 0.05**2 + 4 * 0.02 * (0.3 - 0.1))
    assert on_ball.mean() == pytest.approx(share, abs=0.04)
    outward = np.einsum("ij,ij->i", normals[on_ball], local[on_ball]) / radius[on_ball]
    assert outward[np.abs(local[on_ball, 0]) < 0.04].min() > 0.98
    assert set(instance) == {1} and points.dtype == np.float32
    assert len(solid_surface([], 10)[0]) == 0
    with pytest.raises(ConfigError, match="surface points"):
        Solid(placed((Part("body", ball),))).surface(0)
