"""Labels made worse: what each mode promises, counted."""

import cv2
import numpy as np
import pytest

from semfield_ros.errors import ConfigError
from semfield_ros.evaluation.corruptions import (
    Corruption,
    clicks,
    coarse,
    corrupt,
    labelled_views,
    lattice,
    load_corrupted,
    noisy_pixels,
    noisy_regions,
    save_corrupted,
    spread,
)

CLASSES = 6


def images(n=10, height=48, width=64, seed=0):
    """Blocks of classes 0 to 5 and instances, other sizes in each frame."""
    rng = np.random.default_rng(seed)
    labels, instances = [], []
    for f in range(n):
        label, instance = np.ones((height, width), np.int32), np.zeros((height, width), np.int32)
        for k in range(1, 4):
            top, left, size = 4 + 2 * k, 18 * k - 14, 6 + (f * (k + 2)) % 9
            label[top : top + size, left : left + size] = k + 1
            instance[top : top + size, left : left + size] = k
        label[rng.integers(0, height, 20), rng.integers(0, width, 20)] = 0
        labels.append(label)
        instances.append(instance)
    return labels, instances


@pytest.mark.parametrize(("n", "k"), [(10, 3), (7, 7), (100, 1), (13, 5)])
def test_spread_is_the_formula_and_even(n, k):
    q, rem = divmod(n, k)
    found = spread(n, k)
    assert found.tolist() == [q * i + min(i, rem) for i in range(k)]
    assert len(set(found.tolist())) == k and found.max() < n
    assert set(np.diff(found)) <= {q, q + 1}


def test_nothing_to_spread():
    assert len(spread(5, 0)) == 0
    with pytest.raises(ConfigError, match="6 of 5"):
        spread(5, 6)


@pytest.mark.parametrize("drop", [0.0, 0.05, 0.3, 0.5, 0.51, 0.9, 0.95, 1.0])
def test_sparse_views_drop_int_of_n_r(drop):
    for n in (1, 10, 37):
        keep = labelled_views(n, drop)
        assert (~keep).sum() == int(n * drop)
        assert (~labelled_views(n, drop, np.random.default_rng(0))).sum() == int(n * drop)


def test_sparse_views_by_hand():
    # r <= .5: the dropped are at 0, 4, 7; r > .5: of 10, int(7.0) go and the kept are at 0, 4, 7
    assert np.flatnonzero(~labelled_views(10, 0.3)).tolist() == [0, 4, 7]
    assert np.flatnonzero(labelled_views(10, 0.7)).tolist() == [0, 4, 7]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_pixel_noise_counts_and_is_uniform(share):
    truth = np.full((120, 160), CLASSES, np.int32)  # a label that noise cannot give, so every hit shows
    noisy = noisy_pixels(truth, share, CLASSES, np.random.default_rng(0))
    hit = noisy != CLASSES
    assert hit.sum() == int(truth.size * share)
    if share:
        counts = np.bincount(noisy[hit], minlength=CLASSES)
        expected = hit.sum() / CLASSES
        # chi-square with 5 degrees of freedom; 99.99% lie below 25.7
        assert ((counts - expected) ** 2 / expected).sum() < 25.7 and counts[0] > 0
    assert (truth == CLASSES).all()


@pytest.mark.parametrize("even", [False, True])
def test_regions_flip_whole_instances_in_the_right_frames(even):
    labels, instances = images()
    for label, instance in zip(labels, instances):
        label[instance > 0] = instance[instance > 0] + 1
    share = 0.35
    noisy = noisy_regions(labels, instances, share, CLASSES, even=even, rng=np.random.default_rng(1))
    for k in range(1, 4):
        areas = np.array([(i == k).sum() for i in instances])
        order = np.argsort(areas, kind="stable")
        wanted = set(order[spread(10, 3)] if even else order[:3])
        flipped = set()
        for f in range(10):
            inside = noisy[f][instances[f] == k]
            assert len(set(inside.tolist())) == 1, "one class for a frame"
            assert inside[0] > 0
            if inside[0] != k + 1:
                flipped.add(f)
        assert flipped == wanted
    outside = [instance == 0 for instance in instances]
    assert all((a[m] == b[m]).all() for a, b, m in zip(noisy, labels, outside))


def test_regions_seen_once_stay():
    labels, instances = images(1)
    noisy = noisy_regions(labels, instances, 0.9, CLASSES, even=True, rng=np.random.default_rng(0))
    assert (noisy[0] == labels[0]).all()


@pytest.mark.parametrize("factor", [1, 4, 8, 16])
def test_coarse_is_nearest_down_and_up(factor):
    label = images(1)[0][0]
    down = cv2.resize(label, (64 // factor, 48 // factor), interpolation=cv2.INTER_NEAREST)
    assert (coarse(label, factor) == cv2.resize(down, (64, 48), interpolation=cv2.INTER_NEAREST)).all()


def test_coarse_of_sizes_that_do_not_divide():
    label = np.arange(7 * 10, dtype=np.int32).reshape(7, 10)
    out = coarse(label, 4)
    assert out.shape == label.shape and out[6, 9] == label[4, 8] and out[3, 3] == 0


@pytest.mark.parametrize("factor", [1, 8, 16])
def test_lattice_keeps_every_nth(factor):
    label = np.full((48, 64), 3, np.int32)
    out = lattice(label, factor)
    assert (out[::factor, ::factor] == 3).all() and (out > 0).sum() == -(-48 // factor) * -(-64 // factor)


def test_single_clicks():
    label = images(1)[0][0]
    out = clicks(label, 0.0, np.random.default_rng(0))
    for c in np.unique(label[label > 0]):
        assert (out == c).sum() == 1
    assert (label[out > 0] == out[out > 0]).all()


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 1.0])
def test_spots_cover_their_share_and_hang_together(share):
    label = images(1)[0][0]
    label[:, 60:] = 2  # a second part of a class
    out = clicks(label, share, np.random.default_rng(3))
    assert (label[out > 0] == out[out > 0]).all()
    for c in np.unique(label[label > 0]):
        spot, mask = out == c, label == c
        assert spot.sum() == max(1, np.ceil(share * mask.sum() - 1e-9))
        if share <= 0.05:
            grown = cv2.dilate(spot.astype(np.uint8), np.ones((5, 5), np.uint8))
            assert cv2.connectedComponents(grown)[0] == 2, "one spot"


def test_modes_are_seeded_and_combine_with_sparse_views():
    labels, instances = images()
    for mode in ("none", "pixels", "regions_sort", "regions_even", "coarse", "lattice", "clicks"):
        asked = Corruption(mode, 0.4, 4, drop_views=0.6, seed=5)
        a, b = (corrupt(labels, asked, CLASSES, instances) for _ in range(2))
        assert (a.labels == b.labels).all()
        assert a.labelled.sum() == 4 and not a.labels[~a.labelled].any()
        assert all(a.labels[i].any() for i in np.flatnonzero(a.labelled))
        if mode in ("pixels", "clicks"):
            other = corrupt(labels, Corruption(mode, 0.4, 4, drop_views=0.6, seed=6), CLASSES, instances)
            assert (other.labels != a.labels).any()
    random, evenly = Corruption(drop_views=0.5, random_views=True, seed=1), Corruption(drop_views=0.5)
    assert (corrupt(labels, random, CLASSES).labelled != corrupt(labels, evenly, CLASSES).labelled).any()


def test_a_frame_is_corrupted_alike_whatever_stands_beside_it():
    labels, _ = images()
    noisy = Corruption("pixels", 0.3)
    assert (corrupt(labels, noisy, CLASSES).labels[2] == corrupt(labels[:3], noisy, CLASSES).labels[2]).all()


def test_saved_labels_come_back(tmp_path):
    labels, instances = images()
    made = corrupt(labels, Corruption("regions_even", 0.5, drop_views=0.2, seed=9), CLASSES, instances)
    path = save_corrupted(tmp_path / "labels.npz", made)
    back = load_corrupted(path, labels)
    assert (back.labels == made.labels).all() and (back.labelled == made.labelled).all()
    assert back.corruption == made.corruption and back.classes == CLASSES
    with pytest.raises(ConfigError, match="other labels"):
        load_corrupted(path, images(seed=1)[0])
    with pytest.raises(ConfigError, match="exists"):
        save_corrupted(path, made)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 torn"])
def test_files_of_another_kind_are_refused(tmp_path, content):
    (tmp_path / "labels.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="no corrupted labels"):
        load_corrupted(tmp_path / "labels.npz")
    with pytest.raises(ConfigError, match="no corrupted labels"):
        load_corrupted(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "blur"}, {"amount": 1.5}, {"amount": float("nan")}, {"factor": 0}, {"drop_views": -0.1}, {"seed": -1}],
)
def test_unusable_settings_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Corruption(**wrong)


def test_unusable_labels_are_refused():
    labels, _ = images(2)
    with pytest.raises(ConfigError, match="allowed: 0 to 2"):
        corrupt(labels, Corruption(), 3)
    with pytest.raises(ConfigError, match="one size"):
        corrupt([labels[0], labels[1][:4]], Corruption(), CLASSES)
    with pytest.raises(ConfigError, match="one size"):
        corrupt([], Corruption(), CLASSES)
    with pytest.raises(ConfigError, match="instances"):
        corrupt(labels, Corruption("regions_sort", 0.5), CLASSES)
