"""How right are the classes of a map, in views it has never seen? The field's, and the voxels' beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..field.snapshot import Snapshot
from ..frame import Frame
from ..geometry import back_project
from ..query.semantics import semantic_view, semantics_at
from .metrics import Depth, Segmentation, confusion_matrix, depth, psnr_db, segmentation


@dataclass(frozen=True)
class RatedViews:
    """Held-out views.

    Attributes:
        rendered: labels of views rendered from their pose alone; psnr_db, depth: their colour and depth.
        surface: the field asked where the surface really is. votes: the voxels asked there, unknown ones being wrong;
            filled: with the label of the nearest voxel that has one.
    """

    rendered: Segmentation
    surface: Segmentation
    votes: Segmentation
    filled: Segmentation
    psnr_db: float
    depth: Depth


def rate(snapshot: Snapshot, held_out: Sequence[Frame], classes: int, far_m: float) -> RatedViews:
    """Rendered views, the field and the voxels against exact frames.

    What is farther than `far_m` is not rated, it was out of the sensor's range, nor are classes of which most is: the
    floor beyond a table, of which a few pixels are in range, would weigh as much as what stands on it.
    """
    matrices = {name: np.zeros((classes, classes + 1), np.int64) for name in ("rendered", "surface", "votes", "filled")}
    shown, exact, seen_m, true_m = [], [], [], []
    fill, rated = _filled(snapshot), in_range(held_out, classes, far_m)
    for frame in held_out:
        near = (frame.depth_m > 0) & (frame.depth_m <= far_m)
        label = np.asarray(frame.semantic)
        truth = np.where(near & rated[np.clip(label, 0, classes - 1)], label, 0)
        view = semantic_view(snapshot, frame.camera, frame.T_world_camera, far_m=2 * far_m)
        points, pixel = back_project(frame.camera, frame.T_world_camera, np.where(near, frame.depth_m, 0))
        answers = {"surface": semantics_at(snapshot, points, source="field").label}
        answers["votes"] = semantics_at(snapshot, points, source="points").label
        answers["filled"] = np.where(answers["votes"] > 0, answers["votes"], fill(points))
        matrices["rendered"] += confusion_matrix(view.label, truth, classes, void=0)
        for name, answer in answers.items():
            matrices[name] += confusion_matrix(answer, truth.reshape(-1)[pixel], classes, void=0)
        shown.append(view.rgb[near])
        exact.append(frame.rgb[near])
        seen_m.append(view.depth_m[near])
        true_m.append(frame.depth_m[near])
    scores = {name: segmentation(matrix) for name, matrix in matrices.items()}
    return RatedViews(
        **scores, psnr_db=psnr_db(np.concatenate(shown), np.concatenate(exact)),
        depth=depth(np.concatenate(seen_m), np.concatenate(true_m)),
    )  # fmt: skip


def in_range(frames: Sequence[Frame], classes: int, far_m: float) -> np.ndarray:
    """[C] bool: classes of which most labelled pixels with depth are no farther than `far_m`; void is none."""
    near, every = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for frame in frames:
        label = np.clip(np.asarray(frame.semantic), 0, classes - 1)
        every += np.bincount(label[frame.depth_m > 0], minlength=classes)
        near += np.bincount(label[(frame.depth_m > 0) & (frame.depth_m <= far_m)], minlength=classes)
    wanted: np.ndarray = 2 * near >= np.maximum(every, 1)
    wanted[0] = False
    return wanted


def _filled(snapshot: Snapshot) -> Callable[[np.ndarray], np.ndarray]:
    """Labels of the nearest voted voxel at points [N, 3]; 0 where there is no vote at all."""
    from scipy.spatial import cKDTree

    voted = np.flatnonzero(snapshot.votes.any(1))
    if not len(voted):
        return lambda points: np.zeros(len(points), np.int32)
    tree = cKDTree(snapshot.cloud.points[voted])
    label = (snapshot.votes[voted].argmax(1) + 1).astype(np.int32)
    return lambda points: label[tree.query(points)[1]]
