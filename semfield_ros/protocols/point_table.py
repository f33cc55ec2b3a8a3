"""The table of protocols that name surface points (OpenScene, ConceptFusion): scenes, means over them, retrieval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from ..config import SemfieldConfig
    from ..evaluation.labelled_points import LabelledPoints

FIGURES = {
    "miou": "mIoU", "miou_all": "mIoU all", "macc": "mAcc", "macc_all": "mAcc all", "accuracy": "accuracy",
    "answered": "answered",
}  # fmt: skip
"""Name -> heading."""


def evaluate(
    protocol: str, plan: Any, rated: Callable[..., dict[str, dict[str, float]]], console: Console, rows_are: str,
    cost: dict[str, str],
) -> int:  # fmt: skip
    """Rate every scene of a plan, print means over scenes and, where it asks for it, one line of JSON; returns 0.

    Args:
        rated: of a scene, a configuration, an encoder and the plan: figures by row. rows_are: heading of the rows.
        cost: what else to print, name -> heading.
    """
    from ..benchmarks.report import json_line, mean, show_table
    from ..config import EncoderConfig, demo_config
    from ..encoders import create
    from .retrieval import show_retrieval

    config = replace(demo_config(), encoder=EncoderConfig(name=plan.encoder))
    encoder = create(config.encoder)
    found: list[dict[str, dict[str, float]]] = []
    classes: tuple[str, ...] = ()
    for seed in range(plan.seeds if plan.source == "simulator" else 1):
        scene = scene_of(plan.source, seed, plan.frames, plan.width, plan.samples, config)
        classes = scene.names
        found.append(rated(scene, config, encoder, plan))
    rows = {name: {k: mean([each[name][k] for each in found]) for k in found[0][name]} for name in found[0]}
    columns = FIGURES | cost
    show_table(
        console, f"{plan.source}, {len(found)} scenes, {plan.encoder} encoder, {len(classes)} classes",
        [rows_are, *columns.values()],
        [[name, *(row[k] for k in columns)] for name, row in rows.items() if "miou" in row],
    )  # fmt: skip
    show_retrieval(console, rows)
    if plan.json:
        settings = {k: v for k, v in vars(plan).items() if k not in ("source", "json")}
        report = {"protocol": protocol, "source": plan.source, "scenes": len(found), "metrics": rows,
                  "classes": list(classes), "settings": settings}  # fmt: skip
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0


def scene_of(
    source: str, seed: int, frames: int, width: int, samples: int, config: SemfieldConfig
) -> LabelledPoints:
    """A simulated scene, or a recording with labels."""
    from ..evaluation.labelled_points import LabelledPoints
    from ..sources import open_source

    if source == "simulator":
        from ..sources.simulator import Simulator, SimulatorConfig

        simulator = Simulator(
            SimulatorConfig(seed=seed, frames=frames, width=width, height=width * 3 // 4, processes=0)
        )
        return LabelledPoints.of_simulator(simulator, config, samples)
    opened = open_source(source, width=width, limit=frames, frame_config=config.frame)
    return LabelledPoints.of_frames(opened, getattr(opened, "class_names", ()), config)
