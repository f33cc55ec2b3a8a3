"""Which classes are rated, counted by hand."""

from dataclasses import replace

import numpy as np
from analytic_scene import frame_at, ring

from semfield_ros.evaluation.labelled_views import in_range


def test_classes_mostly_out_of_range_are_not_rated():
    label = np.zeros((60, 80), np.int32)
    label[:, :20], label[:, 20:40], label[:, 40:60] = 1, 2, 3
    depth = np.ones((60, 80), np.float32)
    depth[:40, 20:40] = 3.0  # two thirds of class 2 are far
    depth[:20, 40:60] = 3.0  # one third of class 3
    depth[:, 60:] = 0.0
    frame = replace(frame_at(ring(1)[0]), depth_m=depth, semantic=label)
    assert in_range([frame], 6, 1.6).tolist() == [False, True, False, True, False, False]
    assert in_range([frame], 6, 5.0).tolist() == [False, True, True, True, False, False]
