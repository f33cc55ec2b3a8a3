"""The speed benchmark: its report is whole and its counts are those of shapes. No wall-clock is judged."""

import io
import json

import pytest
import torch
from rich.console import Console

from semfield_ros.benchmarks import speed
from semfield_ros.config import FieldConfig, GridConfig, TrainConfig
from semfield_ros.field.model import Field
from semfield_ros.field.workspace import Workspace

GRID = GridConfig(levels=2, log2_table=10, min_resolution=4, max_resolution=16)
SMALL = speed.Plan(
    device="cpu", keyframes=2, warm_up_steps=1, steps=1, repeats=1, baseline_warm_up_steps=1, baseline_steps=1,
    baseline_repeats=1, matrix=64, floats=1 << 12,
    train=TrainConfig(rays=64, feature_patches=8, window_rays=4, smooth_pairs=16, depthless_rays=0),
    field=FieldConfig(geometry_grid=GRID, feature_grid=GRID, hidden=16),
)  # fmt: skip
KEYS = {
    "samples_per_s", "steps_per_s", "baseline_samples_per_s", "language_samples_per_s", "language_steps_per_s",
    "flops_per_sample", "bytes_per_sample", "share_of_flops", "share_of_bandwidth", "device", "backend", "parts_ms",
}  # fmt: skip


def test_the_report_is_whole():
    console = Console(record=True, file=io.StringIO(), width=200)
    assert speed.run(SMALL, console=console, as_json=True) == 0
    report = json.loads(console.export_text().strip().splitlines()[-1])
    assert KEYS <= set(report)
    numbers = [report[k] for k in KEYS - {"device", "backend", "parts_ms"}]
    assert all(isinstance(n, float | int) and n > 0 for n in numbers)
    assert report["device"] == "cpu" and report["language_samples_per_step"] > report["samples_per_step"]
    assert {"replay", "grid forward", "grid backward", "MLP and losses", "adam", "language"} <= set(report["parts_ms"])


def test_the_bench_is_deterministic():
    replay, workspace, dim = speed.filled_replay(SMALL, "cpu")
    again, same, _ = speed.filled_replay(SMALL, "cpu")
    assert workspace == same and dim == 128
    assert all(torch.equal(a, b) for a, b in zip(replay.state().values(), again.state().values()))


def test_operations_of_an_mlp_by_hand():
    # 3 inputs, 4 hidden, 1 output: 16 multiply-adds a sample, once forward and twice back
    assert speed.mlp_count(10, [3, 4, 1]).flops == 10 * 16 * 2 * 3


def test_touched_rows_by_hand():
    config = FieldConfig(geometry_grid=GridConfig(levels=1, log2_table=12, min_resolution=4, max_resolution=4))
    field = Field(config, Workspace((0.0, 0.0, 0.0), 1.0), ())
    level = field.grid("geometry").levels[0]
    middle = torch.full((1, 3), 2.0 / level.scale)  # halfway between vertices 2 and 3
    assert level.dense and speed.touched_rows(field, "geometry", middle) == 8
    beside = middle + torch.tensor([1.0, 0.0, 0.0]) / level.scale
    assert speed.touched_rows(field, "geometry", torch.cat([middle, middle, beside])) == 12, "four are shared"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_report_is_whole_on_a_gpu():
    from dataclasses import replace

    console = Console(record=True, file=io.StringIO(), width=200)
    assert speed.run(replace(SMALL, device="cuda"), console=console, as_json=True) == 0
    assert KEYS <= set(json.loads(console.export_text().strip().splitlines()[-1]))
