"""`semfield bench simulator`: frames a second of the whole camera, beside casting its rays alone."""

from __future__ import annotations

import time

from rich.console import Console

from .report import json_line, show_table


def run(*, console: Console, as_json: bool, frames: int = 90) -> int:
    """320x240 with colour, noise and labels, as a stream gives it; the baseline is MuJoCo's ray casting of the same."""
    from ..sources.simulator import Simulator, SimulatorConfig
    rows, rates = [], []
    for seed in range(3):
        simulator = Simulator(SimulatorConfig(seed=seed, frames=frames))
        poses = simulator.path(frames)
        started = time.perf_counter()
        for T_world_camera in poses:
            simulator.cast(T_world_camera)
        rays_hz = frames / (time.perf_counter() - started)
        stream = iter(simulator)
        next(stream)  # the processes are there
        started = time.perf_counter()
        count = sum(1 for _ in stream)
        rates.append((count / (time.perf_counter() - started), rays_hz))
        rows.append([seed, len(simulator.objects), *rates[-1]])
    show_table(
        console, "simulator, 320x240",
        ["seed", "objects", "frames/s, two processes", "one process, rays alone, frames/s"], rows,
    )  # fmt: skip
    if as_json:
        report = {"bench": "simulator", "frames_hz": min(r[0] for r in rates), "rays_hz": min(r[1] for r in rates)}
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0
