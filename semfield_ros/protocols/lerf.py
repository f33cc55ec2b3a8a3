"""LERF's protocol (Kerr et al., ICCV 2023): is the most relevant place in the right object? What does asking cost?"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from tyro.conf import Positional

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..field.snapshot import Snapshot
    from ..query.prompt import EncodedPrompts
    from ..query.scores import Source

SYSTEMS: tuple[Source, ...] = ("scales", "field", "points")
TITLES = {
    "scales": "scales of a pyramid (LERF), one pass",
    "field": "dense encoder, field, one scale",
    "points": "dense encoder, voxel average",
}


@dataclass(frozen=True)
class Plan:
    """Language with scale (LERF): is the most relevant point of a map, or pixel of a view, in the right object?

    Beside it, in the same map: the field of the dense encoder without scales, and the voxel average of the same
    features. Queries are timed in one pass over all scales and, as LERF does, in a pass for each.
    """

    source: Positional[str] = "simulator"
    """simulator: the embedded encoder's image tower sees the crops."""
    seeds: int = 2
    """Scenes."""
    frames: int = 120
    """Frames of each."""
    steps: int = 600
    """Training steps of each scene."""
    views: int = 6
    """Views between those of the stream, in which prompts are looked for."""
    period: int = 3
    """Of so many keyframes the pyramid sees one."""
    smallest: float = 0.1
    """Height of the smallest crops, of the image's: LERF's .05 of 480 rows is as many pixels as this of 240."""
    scales: int = 30
    """Scales that are searched."""
    maps: Path | None = None
    """Write relevancy maps of the first view of each scene into this folder, as PNG."""
    json: bool = False
    """End with one line of JSON."""


def run(plan: Plan, console: Console) -> int:
    """Run the plan; returns the exit code.

    Raises:
        ConfigError: a source without exact objects, or nothing to do.
    """
    from ..benchmarks.report import json_line, mean, show_table

    if plan.source != "simulator":
        raise ConfigError(f"source is {plan.source!r}; allowed: simulator, which knows its objects exactly")
    for name in ("seeds", "frames", "steps", "views", "period", "scales"):
        if getattr(plan, name) < 1:
            raise ConfigError(f"{name} is {getattr(plan, name)}; allowed: >= 1")
    scenes = [_scene(plan, seed) for seed in range(plan.seeds)]
    figures: dict[str, dict[str, float]] = {
        system: {name: mean([scene[system][name] for scene in scenes]) for name in ("point", "pixel")}
        for system in SYSTEMS
    }
    times = {name: mean([scene[name] for scene in scenes]) for name in TIMES}
    done = f"{plan.seeds} scenes, {plan.steps} steps each ({times['train_s']:.0f} s)"
    show_table(
        console, f"{done}: most relevant place in the right object",
        ["map", "point of the map", "pixel of a view"],
        [[TITLES[system], figures[system]["point"], figures[system]["pixel"]] for system in SYSTEMS],
    )  # fmt: skip
    show_table(
        console, f"one prompt over the whole map ({times['voxels']:.0f} voxels), {plan.scales} scales",
        ["query", "seconds"],
        [["all scales in one pass", times["one_pass_s"]], ["a pass a scale (LERF)", times["passes_s"]],
         ["dense encoder, no scale", times["dense_s"]]],
    )  # fmt: skip
    console.print(
        f"largest difference of a cosine between one pass and many: {times['difference']:.1e}; a pyramid of "
        f"{times['crops']:.0f} crops took {times['pyramid_s']:.2f} s, a dense frame {times['frame_s']:.3f} s; "
        f"{times['pyramids']:.0f} of {times['keyframes']:.0f} keyframes had one"
    )
    if plan.json:
        report: dict[str, Any] = {
            "protocol": "lerf", "source": plan.source, **figures, **times,
            "scale_m": {k: v for scene in scenes for k, v in scene["scale_m"].items()},
            "classes": sorted({prompt for scene in scenes for prompt in scene["scale_m"]}),
            "settings": {k: getattr(plan, k) for k in SETTINGS},
        }  # fmt: skip
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0


TIMES = (
    "one_pass_s", "passes_s", "dense_s", "difference", "voxels", "crops", "pyramid_s", "frame_s", "pyramids",
    "keyframes", "train_s",
)  # fmt: skip


SETTINGS = ("seeds", "frames", "steps", "views", "period", "smallest", "scales")


def _scene(plan: Plan, seed: int) -> dict[str, Any]:
    """Map and train one scene, ask for everything in it, everywhere and in views."""
    from ..benchmarks.online import paused_engine
    from ..benchmarks.report import median_seconds
    from ..config import HeadsConfig, PyramidConfig, demo_config
    from ..evaluation.simulated import Truth
    from ..query.prompt import PromptEncoder
    from ..query.scales import score_scales, searched_scales
    from ..query.scores import score_points
    from ..sources.simulator import Simulator, SimulatorConfig
    from ..sources.simulator_objects import KINDS

    simulator = Simulator(SimulatorConfig(seed=seed, frames=plan.frames))
    truth, frames = Truth.of(simulator, [kind.name for kind in KINDS]), list(simulator)
    pyramid = PyramidConfig(smallest=plan.smallest)
    heads = HeadsConfig(teachers=("pyramid",), teacher_period=plan.period, pyramid=pyramid)
    config = replace(demo_config(), heads=heads)
    engine, _ = paused_engine(config, frames)
    with engine:
        started = time.perf_counter()
        engine.train(steps=plan.steps)
        train_s = time.perf_counter() - started
        snapshot = engine.snapshot(fresh=True)
        pyramids, keyframes = engine.run(lambda m: (m.counts["encoded_pyramid"], len(m.remembered()))).result()
        of_crops = PromptEncoder(engine.teachers["pyramid"], config.query)
        texts = {"scales": of_crops, "field": engine.prompts, "points": engine.prompts}
        started = time.perf_counter()
        crops = len(engine.teachers["pyramid"].encode_frame(frames[0]).values)
        pyramid_s = time.perf_counter() - started
        frame_s = median_seconds(lambda: engine.encoder.encode_frame(frames[0]))
    prompts = truth.prompts()
    assert snapshot.field is not None
    scales = searched_scales(snapshot.field, plan.scales)
    encoded: dict[str, EncodedPrompts] = {name: texts[name].encode(prompts) for name in SYSTEMS}
    found = score_scales(snapshot, encoded["scales"], scales_m=scales)
    figures: dict[str, Any] = {}
    for system in SYSTEMS:
        scores = found.scores if system == "scales" else score_points(snapshot, encoded[system], source=system)
        best = snapshot.cloud.points[scores.relevancy.argmax(0)]
        figures[system] = {"point": float(np.mean([truth.right(p, c) for p, c in zip(prompts, best)]))}
    figures |= _in_views(plan, simulator, snapshot, encoded, prompts, figures, seed)
    one = texts["scales"].encode(prompts[:1])
    return figures | {
        "scale_m": dict(zip(prompts, found.scale_m.tolist())),
        "one_pass_s": median_seconds(lambda: score_scales(snapshot, one, scales_m=scales)),
        "dense_s": median_seconds(lambda: score_points(snapshot, one, source="field")),
        **_against_passes(snapshot, one, scales),
        "voxels": float(snapshot.measured.sum()), "crops": float(crops), "pyramid_s": pyramid_s, "frame_s": frame_s,
        "pyramids": float(pyramids), "keyframes": float(keyframes),
        "train_s": train_s,
    }  # fmt: skip


def _in_views(
    plan: Plan, simulator: Any, snapshot: Snapshot, encoded: dict[str, EncodedPrompts], prompts: list[str],
    figures: dict[str, Any], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Share of prompts, of those that a view shows, whose most relevant pixel is in the box, in the image, of an object
    that they are right for (as LERF is rated)."""
    from ..query.relevancy_map import relevancy_maps, write_picture
    from ..query.view import render_view

    right = {p: [o.instance for o in simulator.objects if p in o.names] for p in prompts}
    hits: dict[str, list[bool]] = {system: [] for system in SYSTEMS}
    for number, T in enumerate(simulator.path(2 * plan.views + 1)[1::2]):
        frame = simulator.render(T, noisy=False)
        assert frame.instance is not None
        shown = [q for q, p in enumerate(prompts) if np.isin(frame.instance, right[p]).sum() >= SHOWN_PX]
        view = render_view(snapshot, frame.camera, T, far_m=FAR_M)
        for system in SYSTEMS:
            maps = relevancy_maps(snapshot, frame.camera, T, encoded[system], source=system, view=view)
            hits[system] += [in_boxes(frame.instance, right[prompts[q]], maps.peak(q)) for q in shown]
            if plan.maps is not None and not number:
                for q in shown:
                    name = f"{seed}_{prompts[q].replace(' ', '_')}_{system}.png"
                    write_picture(plan.maps / name, maps.relevancy[..., q], maps.view.rgb)
    for system in SYSTEMS:
        figures[system]["pixel"] = float(np.mean(hits[system])) if hits[system] else float("nan")
    return figures


FAR_M = 2.5
"""How far is looked in views."""
SHOWN_PX = 80
"""A view shows an object of which it sees so many pixels."""


def in_boxes(instance: np.ndarray, ids: list[int], pixel: tuple[int, int]) -> bool:
    """Whether a pixel (row, column) lies in the box around one of the instances `ids` of an image [H, W]."""
    for number in ids:
        v, u = np.nonzero(instance == number)
        if len(v) and v.min() <= pixel[0] <= v.max() and u.min() <= pixel[1] <= u.max():
            return True
    return False


def _against_passes(snapshot: Snapshot, texts: EncodedPrompts, scales: np.ndarray) -> dict[str, float]:
    """What a pass of the field for each scale takes, and how much its cosines differ from those of one pass."""
    import torch

    from ..field.scales import predicted
    from ..query.scales import factors

    field, points = snapshot.field, snapshot.cloud.points[snapshot.measured]
    assert field is not None
    vectors = np.concatenate([texts.positives, texts.negatives])
    transposed = torch.from_numpy(vectors.T.copy()).to(next(field.parameters()).device)

    def passes() -> list[np.ndarray]:
        found = []
        with torch.no_grad():
            for scale_m in scales:
                parts = []
                for start in range(0, len(points), 16384):
                    x = torch.from_numpy(points[start : start + 16384]).to(transposed.device)
                    features = predicted(field, x, torch.full((len(x),), float(scale_m), device=x.device))
                    parts.append((features @ transposed).cpu().numpy())
                found.append(np.concatenate(parts))
        return found

    started = time.perf_counter()
    each = passes()
    passes_s = time.perf_counter() - started
    once = factors(field, points, vectors)
    # elsewhere one pass answers for the nearest scale that was taught, many do not
    apart = [np.abs(once.cosines(s) - e)[once.knows(s)].max(initial=0) for s, e in zip(scales.tolist(), each)]
    return {"passes_s": passes_s, "difference": float(max(apart))}
