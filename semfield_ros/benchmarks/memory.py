"""`semfield bench memory`: a long stream against small budgets; once they are full, memory must not grow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from rich.console import Console

from ..config import demo_config
from ..engine import Engine
from ..progress import memory_mb
from .report import json_line, peak_rss_mb, show_table


def run(*, console: Console, as_json: bool, frames: int) -> int:
    """Feed `frames` simulator frames, nearly all of them keyframes, into budgets that fill after a tenth of them."""
    from ..sources.simulator import Simulator, SimulatorConfig

    base = demo_config()
    memory = replace(base.memory, max_keyframes=40, max_voxels=30_000, min_translation_m=0.002, min_rotation_deg=0.2)
    config = replace(base, memory=memory)
    simulator = Simulator(SimulatorConfig(seed=1, frames=frames))
    marks = set(np.linspace(0, frames, 13).round().astype(int)[1:].tolist())
    rows, resident = [], []
    with Engine(config) as engine:
        for number, frame in enumerate(simulator, 1):
            engine.submit(frame, block=True)
            if number in marks:
                engine.drain()
                engine.query(["mug", "red bottle"])
                status = engine.status()
                resident.append(memory_mb())
                rows.append([number, status.mapping.keyframes, status.mapping.voxels, status.mapping.steps,
                             status.mapping.encoded, resident[-1]])  # fmt: skip
    growth_mb = resident[-1] - resident[len(resident) // 3]
    show_table(
        console, f"{frames} frames; budgets: 40 keyframes, 30,000 voxels",
        ["frames", "keyframes", "voxels", "steps", "encoded", "resident MB"], rows,
    )  # fmt: skip
    console.print(f"growth over the last two thirds: {growth_mb:+.0f} MB")
    if as_json:
        report = {"bench": "memory", "frames": frames, "growth_mb": growth_mb, "rss_mb": resident[-1],
                  "peak_rss_mb": peak_rss_mb(), "curve_mb": resident}  # fmt: skip
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0
