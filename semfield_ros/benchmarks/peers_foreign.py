"""Semantic-NeRF's own code beside ours: its program, its settings, one simulated scene in its layout.

The checkout is anybody's: it is neither part of this project nor changed. Its settings are those it is published with,
but for the image size and the rays a step, which `Size` says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ..errors import ConfigError
from ..evaluation.metrics import confusion_matrix, psnr_db, segmentation
from ..sources.replica_layout import write_replica_layout
from . import peers_runner
from .peers import OURS, SHARES, Rated, course, ratio, systems, views_of
from .report import show_table

NEEDS = ("imgviz", "skimage", "sklearn", "imageio", "cv2", "yaml", "trimesh", "matplotlib", "tqdm")


@dataclass(frozen=True)
class Size:
    """What is reduced for a machine without a GPU: published are 320x240 and 1024 rays of 64 + 128 samples."""

    width: int = 160
    rays: int = 128
    samples: int = 64
    importance: int = 128


def missing() -> list[str]:
    """Packages that program needs and this Python does not have."""
    return [name for name in NEEDS if find_spec(name) is None]


def settings(folder: Path, out: Path, size: Size) -> dict[str, Any]:
    """That program's configuration, as its own file for a Replica room has it, at another size."""
    return {
        "experiment": {
            "scene_file": str(folder), "save_dir": str(out), "dataset_dir": str(folder), "convention": "opencv",
            "width": size.width, "height": size.width * 3 // 4, "gpu": "0", "enable_semantic": True,
            "enable_depth": True, "endpoint_feat": False, "dataset_type": "replica",
        },
        "model": {"netdepth": 8, "netwidth": 256, "netdepth_fine": 8, "netwidth_fine": 256, "chunk": 131072,
                  "netchunk": 131072},
        "render": {
            "N_rays": size.rays, "N_samples": size.samples, "N_importance": size.importance, "perturb": 1,
            "use_viewdirs": True, "i_embed": 0, "multires": 10, "multires_views": 4, "raw_noise_std": 1,
            "test_viz_factor": 1, "no_batching": True, "depth_range": [0.1, 10.0], "white_bkgd": False,
        },
        "train": {"lrate": 5e-4, "lrate_decay": 250e3, "N_iters": 200000, "wgt_sem": 4e-2},
        "logging": {"step_log_print": 10**9, "step_log_tfb": 10**9, "step_save_ckpt": 10**9, "step_val": 10**9,
                    "step_vis_train": 10**9},
    }  # fmt: skip


def beside(
    checkout: Path, console: Console, train_s: float, *, size: Size | None = None, frames: int = 60, pixels: int = 300,
    share_ours: float = 0.1,
) -> dict[str, Any]:  # fmt: skip
    """Both on seed 0: that program for train_s, ours for a tenth of it; how many times longer it takes to reach ours.

    Raises:
        ConfigError: no such checkout. What is missing is told, not raised.
    """
    if not (checkout / "SSR" / "training" / "trainer.py").is_file():
        raise ConfigError(f"{checkout} is not a checkout of Semantic-NeRF's code: it has no SSR/training/trainer.py")
    lacking = missing()
    if lacking:
        console.print(f"Semantic-NeRF's own code is not run: this Python lacks {', '.join(lacking)}; install them")
        return {"missing": lacking}
    size = size or Size()
    views, names = views_of(0, frames, size.width)
    held_out, kept = iter(views.held_out), iter(range(len(views.frames)))
    images, train, test = [], [], []
    for i in range(frames):
        if i % 6 == 3:
            test.append(i)
            images.append(next(held_out))
        else:
            k = next(kept)
            train.append(i)
            shape = views.frames[k].depth_m.shape
            images.append(replace(views.frames[k], semantic=views.label[k].numpy().reshape(shape).astype(np.int32)))
    rng = np.random.default_rng(0)
    rows = [rng.choice(views.depth_m.shape[1], pixels, replace=False).tolist() for _ in views.held_out]
    with tempfile.TemporaryDirectory(prefix="semfield-peers-") as name:
        folder, out = Path(name) / "scene", Path(name) / "out"
        out.mkdir()
        write_replica_layout(folder, images, names)
        marks_s = [share * train_s for share in SHARES]
        plan = {
            "config": settings(folder, out, size), "train": train, "test": test, "marks_s": marks_s, "rows": rows,
            "out": str(out),
        }  # fmt: skip
        plan_file = Path(name) / "plan.json"
        plan_file.write_text(json.dumps(plan), encoding="utf-8")
        command = [sys.executable, "-W", "ignore", str(peers_runner.__file__), str(checkout), str(plan_file)]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "MPLBACKEND": "agg"}
        done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            console.print(f"Semantic-NeRF's own code stopped: {lines[-1] if lines else done.returncode}")
            return {"failed": lines[-3:]}
        told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"mark_s"')]
        found = [_rated(np.load(out / f"{mark:g}.npz"), views.held_out, rows, len(names)) for mark in marks_s]
    ours = systems(views, len(names), 1)[OURS]
    ours().learn()  # kernels are compiled outside the clock
    mine = course(ours(), views, len(names), train_s * share_ours, SHARES)
    return _compared(console, train_s, share_ours, size, [t["steps"] for t in told], found, mine)


def _rated(saved: Any, frames: list[Any], rows: list[list[int]], classes: int) -> Rated:
    semantic = saved["classes"][1:][saved["sem_logits"].argmax(-1)]
    matrix = np.zeros((classes, classes + 1), np.int64)
    truth, exact = [], []
    for frame, label, pick in zip(frames, semantic, rows):
        matrix += confusion_matrix(label, frame.semantic.reshape(-1)[pick], classes, void=0)
        truth.append(frame.rgb.reshape(-1, 3)[pick] / np.float32(255))
        exact.append(frame.depth_m.reshape(-1)[pick])
    z, measured = saved["depth"], np.stack(exact)
    known = measured > 0
    return Rated(
        segmentation(matrix).miou, psnr_db(saved["rgb"].clip(0, 1), np.stack(truth)),
        float(np.median(np.abs(z[known] / measured[known] - 1))),
    )  # fmt: skip


def _compared(
    console: Console, train_s: float, share_ours: float, size: Size, steps: list[int], found: list[Rated],
    mine: list[Rated],
) -> dict[str, Any]:  # fmt: skip
    rows = [
        ["Semantic-NeRF's code", share * train_s, step, each.miou, each.psnr_db, each.depth]
        for share, step, each in zip(SHARES, steps, found)
    ]
    rows += [
        [OURS, share * share_ours * train_s, "", each.miou, each.psnr_db, each.depth]
        for share, each in zip(SHARES, mine)
    ]
    show_table(
        console, f"its own code ({size.width}x{size.width * 3 // 4}, {size.rays} rays a step) beside this engine",
        ["program", "training s", "steps", "mIoU", "PSNR dB", "depth (rel.)"], rows,
    )  # fmt: skip
    # the first of our marks that is as good as its last
    times = {}
    for figure in ("miou", "psnr_db", "depth"):
        reached = ratio(mine, found[-1], figure, figure == "depth") * SHARES[0]
        times[figure] = 1 / (reached * share_ours)
    return {
        "size": vars(size), "train_s": train_s, "steps": steps, "ours_is_faster_by_at_least": times,
        "its": [[r.miou, r.psnr_db, r.depth] for r in found], "ours": [[r.miou, r.psnr_db, r.depth] for r in mine],
    }  # fmt: skip
