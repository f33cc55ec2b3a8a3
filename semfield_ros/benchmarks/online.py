"""`semfield bench online`: a stream mapped and asked, the field beside the voxel average of the same features."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..answer import answer
from ..config import EncoderConfig, MemoryConfig, ObjectConfig, SemfieldConfig, demo_config
from ..engine import Engine
from ..errors import QueryError, SourceError
from ..evaluation.metrics import confusion_matrix, inside_boxes, localised, segmentation, top_share_inside
from ..evaluation.simulated import Truth
from ..evaluation.simulated import rate as rate_simulated
from ..field.snapshot import Snapshot
from ..frame import Frame
from ..query.scores import Source, score_points
from ..session import take_in
from ..sources import open_source
from .held_out import rate as rate_held_out
from .report import json_line, mean, peak_rss_mb, show_table

MAPS: tuple[Source, ...] = ("field", "points")
UP = {"redkitchen": (0.007, -0.890, -0.455)}
"""Against gravity where a recording's axes are the first camera's: the normal of its table."""
ABSENT = ("elephant", "airplane", "horse", "pizza", "toilet", "bicycle", "umbrella", "surfboard", "giraffe", "zebra")


def run(
    source: str, *, console: Console, as_json: bool, seeds: int, train_s: float, text_table: Path | None
) -> int:
    """The benchmark; `source` is "simulator" or a 7-Scenes folder with objects.json."""
    if source == "simulator":
        report = simulated(console, seeds, train_s)
    else:
        report = recorded(console, Path(source), train_s, text_table)
    if as_json:
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0


def paused_engine(config: SemfieldConfig, frames: list[Frame]) -> tuple[Engine, float]:
    """A started engine that holds all frames and has not trained yet; and the seconds that mapping took."""
    engine = Engine(config)
    engine.start()
    started = time.perf_counter()
    take_in(engine, frames)
    return engine, time.perf_counter() - started


def simulated(console: Console, seeds: int, train_s: float) -> dict[str, Any]:
    """Unseen scenes: mapping, training, then every prompt; held-out views against exact depth and colour."""
    from ..sources.simulator import Simulator, SimulatorConfig
    from ..sources.simulator_objects import KINDS

    config = demo_config()
    kinds = [kind.name for kind in KINDS]
    rows: list[list[Any]] = []
    scenes: list[dict[str, Any]] = []
    for seed in range(seeds):
        simulator = Simulator(SimulatorConfig(seed=seed, frames=180))
        truth, frames = Truth.of(simulator, kinds), list(simulator)
        first_s = first_answer_s(config, frames, truth)
        engine, map_s = paused_engine(config, frames)
        with engine:
            curve = []
            spent = 0.0
            while spent < train_s - 1e-6:
                slice_s = min(1.0 if spent < 6 else 3.0, train_s - spent)
                engine.train(seconds=slice_s)
                spent += slice_s
                curve.append(
                    (spent, rate_simulated(truth, engine.snapshot(), engine.prompts, config, source="field").miou)
                )
            snapshot, status = engine.snapshot(fresh=True), engine.status()
            scores = {
                m: rate_simulated(truth, snapshot, engine.prompts, config, source=m) for m in MAPS
            }
            poses = simulator.path(97)[1::16]  # between the frames of the stream
            exact = [simulator.render(T, noisy=False) for T in poses]
            exact = [replace(f, depth_m=np.where(f.depth_m < 1.6, f.depth_m, 0)) for f in exact]
            held_out = rate_held_out(snapshot, exact, pixels=2000, far_m=2.5)
        t95 = next(t for t, miou in curve if miou >= 0.95 * curve[-1][1])
        scenes.append(
            {
                "seed": seed, "first_answer_s": first_s, "map_s": map_s, "field_95_s": t95,
                "samples_per_s": status.mapping.samples / status.train_s, "steps": snapshot.step,
                **asdict(held_out), **{m: asdict(s) for m, s in scores.items()},
            }
        )  # fmt: skip
        for m in MAPS:
            s = scores[m]
            rows.append([f"{seed} {m}", s.localisation, s.by_kind, s.by_colour, s.no_match, s.miou, s.accuracy,
                         held_out.depth_median_m * 1000 if m == "field" else float("nan"), first_s, t95])  # fmt: skip
    show_table(
        console, f"simulator, tiny encoder, {seeds} scenes, {train_s:g} s of training each",
        ["scene, map", "right object", "by kind", "colour + kind", "no match", "mIoU", "accuracy", "depth mm",
         "first answer s", "field 95% s"], rows,
    )  # fmt: skip
    report: dict[str, Any] = {
        "bench": "online", "source": "simulator", "train_s": train_s, "scenes": len(scenes),
        **{k: mean([s[k] for s in scenes]) for k in
           ("samples_per_s", "depth_median_m", "depth_within_5cm", "psnr_db", "first_answer_s", "field_95_s")},
        "peak_rss_mb": peak_rss_mb(),
        **{m: {k: mean([s[m][k] for s in scenes])
               for k in ("miou", "accuracy", "localisation", "by_kind", "by_colour", "no_match")} for m in MAPS},
    }  # fmt: skip
    report["localisation"], report["no_match"] = report["field"]["localisation"], report["field"]["no_match"]
    show_table(
        console, "mean over scenes", ["map", "right object", "no match", "mIoU", "accuracy"],
        [[m, *(report[m][k] for k in ("localisation", "no_match", "miou", "accuracy"))] for m in MAPS],
    )  # fmt: skip
    return report


def first_answer_s(config: SemfieldConfig, frames: list[Frame], truth: Truth) -> float:
    """Seconds from handing over the first frame to the first right answer, at the stream's own pace; nan if none."""
    with Engine(config) as engine:
        prompts = list(dict.fromkeys(truth.kinds))
        engine.prompts.encode(prompts)  # a robot's vocabulary is known before it looks
        started, first_stamp_s = time.perf_counter(), frames[0].stamp_s
        waiting = iter(frames)
        upcoming = next(waiting, None)
        while upcoming is not None or not engine.drain(timeout_s=0.0):
            now = time.perf_counter() - started
            while upcoming is not None and upcoming.stamp_s - first_stamp_s <= now:
                engine.submit(upcoming)
                upcoming = next(waiting, None)
            if len(engine.snapshot().cloud):
                found = answer(
                    engine.snapshot(), engine.prompts, prompts, config=config, source="points", grasps=False
                )
                for prompt, result in zip(prompts, found.prompts):
                    if result.objects and truth.right(prompt, result.objects[0].box.centre):
                        return time.perf_counter() - started
            time.sleep(0.01)
    return float("nan")


def open_recording(
    folder: Path, text_table: Path | None
) -> tuple[SemfieldConfig, dict[str, Any], list[Frame], list[Frame]]:
    """A 7-Scenes folder with objects.json: configuration, labelled boxes, 50 keyframes, every 8th frame (held out)."""
    boxes_file = folder / "objects.json"
    if not boxes_file.is_file():
        raise SourceError(f"{boxes_file} is missing; the benchmark needs labelled boxes beside the recording")
    text_table = text_table or folder.parent / "clip_text_vit_b32.npz"
    labelled = json.loads(boxes_file.read_text(encoding="utf-8"))["objects"]
    config = replace(
        SemfieldConfig(),
        encoder=EncoderConfig(name="precomputed", text_table=str(text_table)),
        memory=MemoryConfig(min_translation_m=1e-6, min_rotation_deg=1e-6),
        objects=ObjectConfig(up=UP.get(folder.name, (0.0, 0.0, 1.0))),
    )
    frames = list(open_source(str(folder), width=320, frame_config=config.frame))
    held_out_frames = frames[::8]
    kept = [f for i, f in enumerate(frames) if i % 8]
    keyframes = [kept[i] for i in np.linspace(0, len(kept) - 1, 50).round().astype(int)]
    return config, labelled, keyframes, held_out_frames


def recorded(console: Console, folder: Path, train_s: float, text_table: Path | None) -> dict[str, Any]:
    """A recording with hand-labelled boxes: 50 keyframes, every 8th frame held out; features from its 2-D masks."""
    config, labelled, keyframes, held_out_frames = open_recording(folder, text_table)
    engine, map_s = paused_engine(config, keyframes)
    with engine:
        views = held_out_frames[::4]
        curve = []
        spent = 0.0
        for mark in sorted({4.0, 10.0, 15.0, train_s}):
            if mark <= train_s:
                engine.train(seconds=mark - spent)
                spent = mark
                curve.append((mark, rate_held_out(engine.snapshot(fresh=True), views, pixels=1500, far_m=6.5)))
        status, snapshot = engine.status(), engine.snapshot(fresh=True)
        rows, scores = ask_recorded(engine, snapshot, config, labelled)
        absent = [w for w in ABSENT if _known(engine, w)]
        silent = {
            m: mean([float(not p.matched) for p in
                     answer(snapshot, engine.prompts, absent, config=config, source=m, grasps=False).prompts])
            for m in MAPS
        }  # fmt: skip
    first_s = _first_recorded(config, keyframes, labelled)
    show_table(
        console, f"{folder.name}, 50 keyframes of 320x240, held-out views rendered from their poses alone",
        ["training s", "depth median mm", "within 5 cm", "PSNR dB"],
        [[t, h.depth_median_m * 1000, h.depth_within_5cm, h.psnr_db] for t, h in curve],
    )  # fmt: skip
    show_table(
        console, "prompts (masks painted with text vectors: closed set on the image side)",
        ["prompt", "map", "peak", "objects", "best in labelled box", "top 1% inside"], rows,
    )  # fmt: skip
    at_10 = next((h for t, h in curve if t >= 10), curve[-1][1])
    report: dict[str, Any] = {
        "bench": "online", "source": folder.name, "train_s": train_s, "map_s": map_s,
        "samples_per_s": status.mapping.samples / status.train_s,
        "depth_median_m": at_10.depth_median_m, "depth_within_5cm": at_10.depth_within_5cm,
        "psnr_db": curve[-1][1].psnr_db, "curve": [{"train_s": t, **asdict(h)} for t, h in curve],
        "first_answer_s": first_s, "peak_rss_mb": peak_rss_mb(),
        "localisation": scores["field"]["localisation"], "no_match": silent["field"],
        **{m: {**scores[m], "no_match": silent[m]} for m in MAPS},
    }  # fmt: skip
    show_table(
        console, "both maps, same features, same time",
        ["map", "localisation", "top 1% inside", "no match", "mIoU", "accuracy"],
        [[m, scores[m]["localisation"], scores[m]["top_share"], silent[m], scores[m]["miou"], scores[m]["accuracy"]]
         for m in MAPS],
    )  # fmt: skip
    return report


def _known(engine: Engine, word: str) -> bool:
    try:
        engine.prompts.encode([word])
    except QueryError:
        return False
    return True


def _prompts_of(engine: Engine, labelled: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every labelled name the encoder has words for -> (lower, upper) corners [K, 3] of the boxes it is right for."""
    boxes: dict[str, tuple[list, list]] = {}
    for thing in labelled.values():
        for name in thing["names"]:
            if _known(engine, name):
                lower, upper = boxes.setdefault(name, ([], []))
                lower.append(thing["aabb_min"])
                upper.append(thing["aabb_max"])
    return {name: (np.array(a), np.array(b)) for name, (a, b) in boxes.items()}


def ask_recorded(
    engine: Engine, snapshot: Snapshot, config: SemfieldConfig, labelled: dict[str, Any],
    maps: Sequence[Source] = MAPS,
) -> tuple[list[list[Any]], dict[str, dict[str, float]]]:
    """Every labelled name: rows of a table, and each map's localisation, share of its best points, mIoU, accuracy."""
    prompts = _prompts_of(engine, labelled)
    rows: list[list[Any]] = []
    scores: dict[str, dict[str, float]] = {}
    for m in maps:
        found = answer(snapshot, engine.prompts, list(prompts), config=config, source=m, grasps=False)
        hits, shares = [], []
        for q, (name, (lower, upper)) in enumerate(prompts.items()):
            result = found.prompts[q]
            hit = localised(result.objects[0].box.centre if result.objects else None, lower, upper, 0.05)
            seen = found.scores.seen
            share = top_share_inside(found.cloud.points[seen], found.scores.relevancy[seen, q], lower, upper)
            hits.append(float(hit))
            shares.append(share)
            rows.append([name, m, result.peak, len(result.objects), "yes" if hit else "no", share])
        labels = _label_boxes(engine, snapshot, labelled, m)
        scores[m] = {"localisation": mean(hits), "top_share": mean(shares), **labels}
    rows.sort(key=lambda row: (list(prompts).index(row[0]), row[1]))
    return rows, scores


def _label_boxes(
    engine: Engine, snapshot: Snapshot, labelled: dict[str, Any], source: Source
) -> dict[str, float]:
    """Closed-set labels of the points inside exactly one labelled box: its first known name against the others'."""
    names, lower, upper = [], [], []
    for thing in labelled.values():
        known = [n for n in thing["names"] if _known(engine, n)]
        if known:
            names.append(known[0])
            lower.append(thing["aabb_min"])
            upper.append(thing["aabb_max"])
    classes = sorted(set(names))
    points = snapshot.cloud.points
    inside = np.stack([inside_boxes(points, np.array([a]), np.array([b])) for a, b in zip(lower, upper)], 1)
    single = inside.sum(1) == 1
    truth = np.array([classes.index(n) for n in names])[inside[single].argmax(1)]
    scores = score_points(snapshot, engine.prompts.encode(classes), points[single], source=source)
    predicted = np.where(scores.seen, scores.cosine.argmax(1), -1)
    result = segmentation(confusion_matrix(predicted[scores.seen], truth[scores.seen], len(classes)))
    return {"miou": result.miou, "accuracy": result.accuracy}


def _first_recorded(config: SemfieldConfig, frames: list[Frame], labelled: dict[str, Any]) -> float:
    """Seconds from the first frame to the first object inside a labelled box of its name, frames as fast as they go."""
    with Engine(config) as engine:
        prompts = _prompts_of(engine, labelled)
        started = time.perf_counter()
        for frame in frames:
            engine.submit(frame, block=True)
            if not len(engine.snapshot().cloud):
                continue
            found = answer(
                engine.snapshot(), engine.prompts, list(prompts), config=config, source="points", grasps=False
            )
            for result, (lower, upper) in zip(found.prompts, prompts.values()):
                if result.objects and localised(result.objects[0].box.centre, lower, upper, 0.05):
                    return time.perf_counter() - started
    return float("nan")
