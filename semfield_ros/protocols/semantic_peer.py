"""Semantic-NeRF's own settings (Zhi et al., ICCV 2021) on this engine's mechanism, learning from the same labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch

from ..benchmarks.peers import REDUCTION, Other, Views
from ..benchmarks.published import SEMANTIC_NERF, Peer
from ..evaluation.labelled_views import in_range
from ..evaluation.metrics import Segmentation, confusion_matrix, segmentation
from ..frame import Frame
from ..geometry import back_project, image_directions
from ..mapping import workspace_around

log = logging.getLogger(__name__)


def semantic_nerf(
    frames: Sequence[Frame], held_out: Sequence[Frame], classes: int, far_m: float, seconds: float, pixels: int = 400
) -> Segmentation:
    """Train on frames, some of them labelled, for so many seconds; rate random pixels of held-out views.

    Without a GPU the rays of a step are divided as in the other comparisons of published settings.
    """
    local = image_directions(frames[0].camera).reshape(-1, 3)
    poses = torch.from_numpy(np.stack([f.T_world_camera for f in frames]).astype(np.float32))
    none = np.zeros(frames[0].depth_m.size, np.int64)
    labels = np.stack([none if f.semantic is None else f.semantic.reshape(-1).astype(np.int64) for f in frames])
    views = Views(
        list(frames), [], [], poses[:, :3, 3], poses[:, :3, :3], torch.from_numpy(local),
        torch.from_numpy(np.stack([f.rgb.reshape(-1, 3) for f in frames])),
        torch.from_numpy(np.stack([f.depth_m.reshape(-1) for f in frames])),
        [torch.zeros(len(frames), local.shape[0], 1, dtype=torch.float16)], [0.0], torch.from_numpy(labels),
    )  # fmt: skip
    cloud = np.concatenate([back_project(f.camera, f.T_world_camera, f.depth_m)[0][::50] for f in frames])
    settings = SEMANTIC_NERF if torch.cuda.is_available() else SEMANTIC_NERF.reduced(REDUCTION)
    peer = Peer(settings, workspace_around(cloud, 1.2), classes - 1)
    system, spent = Other(peer, views, settings.rays, settings.one_image, True), 0.0
    while spent < seconds:
        started = time.perf_counter()
        system.learn()
        spent += time.perf_counter() - started
    log.info("Semantic-NeRF's settings: %d steps in %.0f s", peer.steps, spent)
    rated = in_range(held_out, classes, far_m)
    rng, matrix = np.random.default_rng(0), np.zeros((classes, classes + 1), np.int64)
    for frame in held_out:
        known = np.flatnonzero((frame.depth_m > 0) & (frame.depth_m <= far_m))
        pick = rng.choice(known, min(pixels, len(known)), replace=False)
        T = frame.T_world_camera.astype(np.float32)
        rays = torch.from_numpy(local[pick] @ T[:3, :3].T)
        scores = system.look(torch.from_numpy(T[:3, 3]).expand_as(rays), rays)[2]
        assert scores is not None
        label = np.asarray(frame.semantic).reshape(-1)[pick]
        truth = np.where(rated[label], label, 0)
        matrix += confusion_matrix(scores[:, 1:].argmax(1) + 1, truth, classes, void=0)
    return segmentation(matrix)
