"""PCA colours against scikit-learn, and that they stand still."""

import cv2
import numpy as np
import pytest

from semfield_ros.errors import QueryError
from semfield_ros.query.pca import PcaColours, Projection, fit, write_png


def cloud(n=600, d=24, seed=0):
    """Directions that mostly vary along three axes."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(7).normal(size=(d, d)))[0]
    scales = np.r_[0.5, 0.35, 0.2, np.full(d - 3, 0.02)]
    return (3 * basis[:, -1] + (rng.normal(size=(n, d)) * scales) @ basis.T).astype(np.float32)


def test_axes_are_those_of_scikit_learn():
    pca = pytest.importorskip("sklearn.decomposition").PCA(3)
    features = cloud()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pca.fit(unit)
    found = fit(features)
    assert np.allclose(np.abs((found.axes * pca.components_).sum(1)), 1, atol=1e-4)
    assert np.allclose(found.mean, pca.mean_, atol=1e-5)
    scores = (unit - found.mean) @ found.axes.T
    assert np.allclose(np.quantile(scores, 0.01, axis=0), found.low, atol=1e-5)
    assert np.allclose(np.quantile(scores, 0.99, axis=0), found.high, atol=1e-5)


def test_two_percent_of_each_channel_saturate():
    features = cloud(5000)
    colours = fit(features).colours(features)
    share = ((colours == 0) | (colours == 255)).mean(0)
    assert (share > 0.015).all() and (share < 0.035).all()


def test_length_and_order_of_rows_do_not_matter():
    features = cloud()
    a = fit(features)
    rng = np.random.default_rng(1)
    b = fit(features[rng.permutation(len(features))] * rng.uniform(0.1, 9, (len(features), 1)).astype(np.float32))
    for name in ("mean", "axes", "low", "high"):
        assert np.allclose(getattr(a, name), getattr(b, name), atol=1e-4)


def test_signs_are_settled_whatever_the_solver_gives():
    features = cloud()
    axes = fit(features).axes
    assert (axes[np.arange(3), np.abs(axes).argmax(1)] > 0).all()


def test_one_projection_is_kept_until_refreshed():
    colours = PcaColours()
    first = cloud(seed=0)
    a = colours(first)
    kept = colours.projection
    colours(cloud(seed=1) + np.float32(0.5))
    assert colours.projection is kept and np.array_equal(colours(first), a)
    colours.refresh(cloud(seed=2))
    assert colours.projection is not kept


def test_a_refresh_moves_colours_as_little_as_features_moved():
    """Equal variances leave the axes to chance; what came before decides."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    base = (rng.normal(size=(3000, 3)) * 0.3) @ basis[:3] + 2 * basis[3]
    first = fit(base)
    moved = base + rng.normal(size=base.shape) * 0.01
    alone, turned = fit(moved), fit(moved, first)
    before = first.colours(base).astype(int)
    assert np.abs(turned.colours(base).astype(int) - before).mean() < 4
    assert np.abs((turned.axes @ first.axes.T) - np.eye(3)).max() < 0.05
    assert np.allclose(turned.axes @ turned.axes.T, np.eye(3), atol=1e-5)
    span = np.linalg.norm(turned.axes @ alone.axes.T @ alone.axes - turned.axes)
    assert span < 1e-4, "turned within its own span"


def test_unknown_is_black_and_shapes_are_kept():
    features = cloud(40).reshape(5, 8, 24).copy()
    features[2, 3] = 0
    features[1, 1, 0] = np.nan
    colours = fit(features.reshape(-1, 24)).colours(features)
    assert colours.shape == (5, 8, 3) and colours.dtype == np.uint8
    assert not colours[2, 3].any() and not colours[1, 1].any()


def test_another_encoder_starts_afresh_and_a_bare_projection_refuses():
    colours = PcaColours()
    colours(cloud(d=24))
    assert colours(cloud(d=12)).shape == (600, 3)
    with pytest.raises(QueryError, match="24 dimensions"):
        fit(cloud(d=24)).colours(cloud(d=12))


@pytest.mark.parametrize("bad", [np.zeros((10, 8)), np.zeros((0, 8)), np.full((3, 6), np.nan), np.ones(8)])
def test_nothing_to_fit_is_refused(bad):
    with pytest.raises(QueryError):
        fit(bad)


def test_what_does_not_vary_is_grey():
    same = np.tile(np.arange(1, 9, dtype=np.float32), (20, 1))
    assert fit(same).colours(same[:2]).tolist() == [[128] * 3] * 2
    assert fit(same[:1]).colours(same[:1]).tolist() == [[128] * 3]
    angle = np.linspace(0, 1, 101)
    line = fit(np.stack([np.cos(angle), np.sin(angle)], 1))
    colours = line.colours(np.stack([np.cos(angle), np.sin(angle)], 1))
    assert {colours[0, 0], colours[-1, 0]} == {0, 255} and (colours[:, 2] == 128).all(), "two dimensions have two axes"


def test_unknown_has_the_colour_that_is_asked_for_and_does_not_shape_the_others():
    features = cloud(50)
    spoilt = np.vstack([features, np.full((1, 24), np.nan), np.full((1, 24), np.inf), np.zeros((1, 24))])
    colours = fit(spoilt).colours(spoilt, (1, 2, 3))
    assert np.array_equal(colours[:50], fit(features).colours(features))
    assert colours[50:].tolist() == [[1, 2, 3]] * 3


def test_png_round_trip(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    path = write_png(tmp_path / "new" / "view", image)
    assert path.suffix == ".png"
    assert np.array_equal(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), image)
    with pytest.raises(QueryError, match="uint8"):
        write_png(tmp_path / "x.png", image.astype(float))


def test_projection_fields_are_float32():
    projection = fit(cloud())
    assert isinstance(projection, Projection)
    assert all(getattr(projection, n).dtype == np.float32 for n in ("mean", "axes", "low", "high"))
