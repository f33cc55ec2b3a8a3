"""Mask graphs on hand-made voxels: who belongs together, who must not, and what happens at the edges."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse

from semfield_ros.config import MaskConfig
from semfield_ros.errors import ConfigError, QueryError
from semfield_ros.evaluation.mask_components import components_of_masks
from semfield_ros.objects.mask_graph import instances_from_masks, majority, matched, sampled_voxels

V = 120


def matrix(rows: list[range | list[int]], columns: int = V) -> sparse.csr_matrix:
    out = np.zeros((len(rows), columns), bool)
    for row, members in zip(out, rows):
        row[list(members)] = True
    return sparse.csr_matrix(out)


def grouped(masks, sight, view, **config):
    return instances_from_masks(matrix(masks), matrix(sight), np.array(view, int), MaskConfig(**config))


def test_the_same_thing_in_several_views_is_one_instance():
    everything = range(V)
    got = grouped([range(40), range(60, 100), range(60, 99), range(1, 40)], [everything] * 2, [0, 0, 1, 1])
    assert len(got) == 2
    assert got.label[0] == got.label[3] != got.label[1] == got.label[2]
    assert got.views.tolist() == [2, 2]


def test_partial_views_of_one_thing_belong_together():
    # each view sees two thirds of a thing, from three sides: IoU of any two is a third, yet each holds what it sees
    whole = np.arange(60)
    parts = [whole[:40], whole[20:], np.r_[whole[:20], whole[40:]]]
    sight = [np.r_[part, 60:V] for part in parts]
    got = grouped(parts, sight, [0, 1, 2])
    assert got.label.tolist() == [0, 0, 0]
    assert set(got.voxels.indices) == set(range(60))
    assert len(components_of_masks(matrix(parts), 0.5)) == 0


def test_masks_of_one_view_are_never_grouped():
    # two halves in view 0, the whole in five others: one half joins, the other stays outside
    masks = [range(30), range(30, 60), *[range(60)] * 5]
    got = grouped(masks, [range(V)] * 6, [0, 0, 1, 2, 3, 4, 5])
    for row in range(len(got)):
        views = np.array([0, 0, 1, 2, 3, 4, 5])[got.label == row]
        assert len(set(views)) == len(views)
    assert len(got) == 1
    assert set(got.voxels.indices) == set(range(60))


def test_masks_of_one_view_stay_apart_on_random_input():
    rng = np.random.default_rng(0)
    masks, view = [], []
    for t in range(12):
        cuts = np.sort(rng.choice(V, 4, replace=False))
        for low, high in pairwise(cuts):
            masks.append(range(low, high))
            view.append(t)
    view = np.array(view)
    got = grouped(masks, [range(V)] * 12, view, min_views=1)
    for row in range(len(got)):
        assert len(set(view[got.label == row])) == (got.label == row).sum()


def test_a_chain_of_overlaps_does_not_grow_together():
    # a wall of 120 voxels, of which each view has a mask of 20, shifted by 3: neighbours overlap by 17 of 20
    masks = [range(start, start + 20) for start in range(0, 100, 3)]
    view = list(range(len(masks)))
    got = grouped(masks, [range(V)] * len(masks), view, divided_share=1.0, min_views=1)
    assert max(np.diff(got.voxels.indptr)) < 40
    chained = components_of_masks(matrix(masks), 0.5)
    assert np.diff(chained.voxels.indptr).tolist() == [119]


def test_one_mask_over_two_things_does_not_join_them():
    masks, view = [range(60)], [0]
    for t in range(1, 8):
        masks += [range(30), range(30, 60)]
        view += [t, t]
    got = grouped(masks, [range(V)] * 8, view)
    assert got.label[0] == -1
    assert sorted(np.diff(got.voxels.indptr).tolist()) == [30, 30]
    assert len(components_of_masks(matrix(masks), 0.45)) == 1


def test_what_other_views_do_not_see_does_not_count_against_a_mask():
    # view 1 sees only voxels 20 on; its mask holds all it sees of the thing
    got = grouped([range(40), range(20, 40)], [range(V), range(20, V)], [0, 1])
    assert got.label.tolist() == [0, 0]


def test_things_apart_stay_apart_where_no_view_sees_both():
    sight = [range(50)] * 2 + [range(50, V)] * 2
    got = grouped([range(30), range(30), range(60, 90), range(60, 90)], sight, [0, 1, 2, 3])
    assert len(got) == 2


def test_a_view_that_found_nothing_there_does_not_vote():
    masks = [range(40), range(40)]
    got = grouped(masks, [range(V)] * 9, [0, 1])
    assert got.label.tolist() == [0, 0]


def test_stray_voxels_of_one_view_do_not_stay():
    masks = [range(40), [*range(40), 100], range(40)]
    got = grouped(masks, [range(V)] * 3, [0, 1, 2])
    assert 100 not in got.voxels.indices
    assert got.of_voxels()[:40].tolist() == [0] * 40
    assert (got.of_voxels()[40:] == -1).all()


def test_voxels_that_only_one_view_sees_stay():
    got = grouped([range(40), range(50)], [range(40), range(60)], [0, 1])
    assert set(range(40, 50)) <= set(got.voxels.indices)


def test_labels_and_rows_are_the_same_instances():
    rng = np.random.default_rng(1)
    truth, masks, view = [], [[5]], [0]  # a mask that nothing confirms comes first: its row is skipped
    truth.append(-1)
    for t in range(1, 6):
        for thing in rng.permutation(4):
            masks.append(range(10 + 25 * thing, 30 + 25 * thing))
            truth.append(thing)
            view.append(t)
    got = grouped(masks, [range(V)] * 6, view)
    assert got.label[0] == -1
    assert len(got) == 4
    for row in range(4):
        things = {truth[m] for m in np.flatnonzero(got.label == row)}
        assert len(things) == 1
        thing = things.pop()
        start, end = got.voxels.indptr[row : row + 2]
        assert sorted(got.voxels.indices[start:end]) == list(range(10 + 25 * thing, 30 + 25 * thing))
        assert got.views[row] == (got.label == row).sum()


def test_the_surest_come_first_and_scores_are_shares():
    masks = [range(20), range(20), *[range(40, 80)] * 6]
    view = [0, 1, *range(6)]
    got = grouped(masks, [range(V)] * 6, view)
    assert got.views.tolist() == [6, 2]
    assert got.score.tolist() == pytest.approx([6 / 8, 2 / 4])


@pytest.mark.parametrize(("masks", "voxels", "views"), [(0, 10, 3), (0, 0, 0), (3, 0, 2), (0, 10, 0)])
def test_empty_input_works(masks, voxels, views):
    view = np.zeros(masks, int)
    got = instances_from_masks(sparse.csr_matrix((masks, voxels)), sparse.csr_matrix((views, voxels)), view)
    assert len(got) == 0
    assert got.label.tolist() == [-1] * masks
    assert got.voxels.shape == (0, voxels)
    assert got.of_voxels().tolist() == [-1] * voxels
    assert len(components_of_masks(sparse.csr_matrix((masks, voxels)))) == 0


def test_single_views_are_kept_when_asked_for():
    one = grouped([range(10), range(20, 40)], [range(V)], [0, 0])
    assert len(one) == 0
    assert len(grouped([range(10), range(20, 40)], [range(V)], [0, 0], min_views=1)) == 2


def test_unusable_input_is_refused():
    with pytest.raises(QueryError, match=r"\[M, V\], \[T, V\], \[M\]"):
        grouped([range(3)], [range(V)], [0, 1])
    with pytest.raises(QueryError, match="0 to 0"):
        grouped([range(3)], [range(V)], [1])
    with pytest.raises(ConfigError, match="contained_share"):
        MaskConfig(contained_share=0.0)
    with pytest.raises(ConfigError, match="iou is 0"):
        components_of_masks(matrix([range(3)]), 0.0)


def test_sampling_keeps_sums_unbiased():
    masks = matrix([range(0, 20000), range(0, 100), range(30000, 30010)], 40000)
    totals = []
    for seed in range(30):
        columns, weight = sampled_voxels(masks, 200, seed)
        totals.append(np.asarray(masks[:, columns] @ weight).reshape(-1))
        assert len(columns) < 600
    mean = np.mean(totals, axis=0)
    assert mean == pytest.approx([20000, 100, 10], rel=0.1)
    assert np.std(totals, axis=0)[1:].tolist() == [0, 0]  # small masks keep everything


def test_matching_uses_no_node_twice_and_leaves_no_pair():
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 50, (2, 300))
    a, b = a[a != b], b[a != b]
    strength = rng.integers(0, 3, len(a)).astype(float)
    pairs = matched(a, b, strength, 50)
    used = np.concatenate([a[pairs], b[pairs]])
    assert len(set(used)) == len(used)
    assert (np.isin(a, used) | np.isin(b, used)).all()
    # greedy: the strongest pair of all is in
    assert strength[pairs].max() == strength.max()


def test_majority_counts_views_that_see_a_voxel():
    covered = sparse.csr_matrix(np.array([[2.0, 1.0, 1.0]]))
    views = sparse.csr_matrix(np.array([[1, 1, 1, 0]]))
    sight = sparse.csr_matrix(np.array([[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 1]]))
    assert majority(covered, views, sight, MaskConfig()).toarray().tolist() == [[1.0, 0.0, 1.0]]


def test_many_views_of_many_things_under_faults():
    # 30 things, 60 views; a tenth of the masks cut in two, a tenth one with a neighbour
    rng = np.random.default_rng(3)
    things, size = 30, 40
    columns = things * size
    masks, sight, view = [], [], []
    for t in range(60):
        shown = (rng.integers(things) + np.arange(12)) % things
        sight.append(np.concatenate([np.arange(o * size, (o + 1) * size) for o in shown]))
        for at, thing in enumerate(shown):
            members = np.arange(thing * size, (thing + 1) * size)
            fate = rng.random()
            if fate < 0.1:
                cut = rng.integers(5, size - 5)
                masks += [members[:cut], members[cut:]]
                view += [t, t]
                continue
            if fate < 0.2 and at + 1 < len(shown):
                members = np.r_[members, np.arange(shown[at + 1] * size, (shown[at + 1] + 1) * size)]
            masks.append(members)
            view.append(t)
    got = instances_from_masks(matrix(masks, columns), matrix(sight, columns), np.array(view))
    covered = {tuple(sorted(got.voxels[k].indices)) for k in range(len(got))}
    whole = {tuple(range(o * size, (o + 1) * size)) for o in range(things)}
    assert whole <= covered
    assert len(got) <= things + 3


def test_islands_go_and_halves_stay():
    from semfield_ros.objects.mask_graph import MaskInstances
    from semfield_ros.objects.mask_islands import without_islands

    line = np.linspace(0, 0.4, 41)
    points = np.zeros((100, 3))
    points[:41, 0] = line  # a thing
    points[41:46] = (0.2, 0.0, 2.0)  # five voxels on the wall behind it
    points[50:91, 0] = np.where(line < 0.2, line, line + 1)  # another, cut in two by what stands before it
    voxels = matrix([range(46), range(50, 91)], 100)
    given = MaskInstances(np.array([0, 1]), voxels, np.array([2, 2]), np.array([0.5, 0.4]))
    got = without_islands(given, points, reach_m=0.03)
    assert set(got.voxels[0].indices) == set(range(41))
    assert set(got.voxels[1].indices) == set(range(50, 91))
    assert got.label is given.label
    none = MaskInstances(np.zeros(0), sparse.csr_matrix((0, 100), dtype=bool), np.zeros(0), np.zeros(0))
    assert without_islands(none, points, reach_m=0.03).voxels.shape == (0, 100)
