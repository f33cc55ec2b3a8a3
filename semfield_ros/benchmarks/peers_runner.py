"""Run by `peers_foreign` as a program of its own: drives a checkout of Semantic-NeRF's code and saves what it renders.

Arguments: the checkout, and a JSON file with config (that program's own settings), train and test image numbers,
marks_s, rows (pixels of each test image to render) and out (folder). Nothing of the checkout is changed: on machines
without CUDA `.cuda()` leaves tensors where they are, and what it imports only to draw is replaced by nothing.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

DRAWING = ("open3d", "torch.utils.tensorboard")
"""Imported by that program and not needed to train."""


def _stand_in(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        module = types.ModuleType(name)
        module.__getattr__ = lambda attribute: MagicMock()  # type: ignore[method-assign]
        sys.modules[name] = module


def main(checkout: str, plan_file: str) -> None:
    """Train until each mark, render, save; one JSON line a mark."""
    plan: dict[str, Any] = json.loads(Path(plan_file).read_text(encoding="utf-8"))
    sys.path.insert(0, checkout)
    for name in DRAWING:
        _stand_in(name)
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
        torch.nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.manual_seed(0)
    np.random.seed(0)
    trainer_module = importlib.import_module("SSR.training.trainer")
    data_module = importlib.import_module("SSR.datasets.replica.replica_datasets")
    config = plan["config"]
    height, width = config["experiment"]["height"], config["experiment"]["width"]
    data = data_module.ReplicaDatasetCache(
        data_dir=config["experiment"]["dataset_dir"], train_ids=plan["train"], test_ids=plan["test"],
        img_h=height, img_w=width,
    )  # fmt: skip
    program = trainer_module.SSRTrainer(config)
    program.set_params_replica()
    program.prepare_data_replica(data)
    program.create_ssr()
    program.init_rays()
    spent_s, step = 0.0, 1  # its step 0 draws
    for mark_s in plan["marks_s"]:
        while spent_s < mark_s:
            started = time.perf_counter()
            program.step(step)
            spent_s += time.perf_counter() - started
            step += 1
        program.training = False
        images = []
        with torch.no_grad():
            for image, rows in enumerate(plan["rows"]):
                images.append(program.render_rays_chunk(program.rays_test[image, rows], 1024))
        program.training = True
        rgb, depth, logits = (
            np.stack([image[f"{key}_fine"].numpy() for image in images]) for key in ("rgb", "depth", "sem_logits")
        )
        np.savez(
            Path(plan["out"]) / f"{mark_s:g}.npz",
            classes=data.semantic_classes, rgb=rgb, depth=depth, sem_logits=logits,
        )  # fmt: skip
        print(json.dumps({"mark_s": mark_s, "steps": step - 1, "spent_s": spent_s}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
