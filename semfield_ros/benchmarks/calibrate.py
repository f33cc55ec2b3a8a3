"""`semfield bench calibrate`: what different thresholds of the embedded encoder would answer, on scenes kept for this.

Seeds 60 and up: never trained on, and not those of the other benchmarks. The thresholds chosen from this table stand in
`encoders/tiny_model/meta.json` under "map_thresholds".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from rich.console import Console

from ..config import QueryConfig, demo_config
from ..engine import Engine
from ..evaluation.simulated import Truth, rate
from .report import json_line, mean, show_table

NO_MATCH = (0.7, 0.74, 0.76, 0.78, 0.8, 0.82, 0.85)
FIRST_SEED = 60


def run(*, console: Console, as_json: bool, seeds: int, train_s: float) -> int:
    """Map each scene, then ask everything at every threshold."""
    from ..sources.simulator import Simulator, SimulatorConfig
    from ..sources.simulator_objects import KINDS

    config, kinds = demo_config(), [kind.name for kind in KINDS]
    sources: tuple[Literal["field", "points"], ...] = ("field", "points")
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        simulator = Simulator(SimulatorConfig(seed=seed, frames=180))
        truth = Truth.of(simulator, kinds, samples=2000)
        with Engine(config) as engine:
            for frame in simulator:
                engine.submit(frame, block=True)
            engine.drain()
            engine.train(seconds=train_s)
            snapshot = engine.snapshot()
            for source in sources:
                for no_match in NO_MATCH:
                    asked = replace(config, query=QueryConfig(no_match=no_match))
                    score = rate(truth, snapshot, engine.prompts, asked, source=source)
                    found.setdefault((source, no_match), []).append((score.localisation, score.no_match))
    rows: list[list[Any]] = [
        [source, no_match, mean([a for a, _ in pairs]), mean([b for _, b in pairs])]
        for (source, no_match), pairs in found.items()
    ]
    show_table(
        console, f"{seeds} scenes from seed {FIRST_SEED}, {train_s:g} s of training each",
        ["map", "no_match", "right object", "absent: no match"], rows,
    )  # fmt: skip
    if as_json:
        report = {"bench": "calibrate", "scenes": seeds, "rows": rows}
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0
