"""OpenMask3D's protocol (Takmaz et al., NeurIPS 2023): open-vocabulary instances, by average precision."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from tyro.conf import Positional

if TYPE_CHECKING:
    from ..config import SemfieldConfig
    from ..encoders.base import Encoder
    from ..field.snapshot import Snapshot
    from ..frame import Frame
    from ..objects.mask_instances import OpenInstances

METHODS = ("view consensus", "IoU > .25", "IoU > .5")
"""Ours, and the plain way at two thresholds: what is connected in a graph of masks by intersection over union."""
_STUFF = 1000
"""Ids of masks on table, floor and wall: a class-agnostic model finds those too."""


@dataclass(frozen=True)
class Plan:
    """Instances of anything from 2-D masks whose ids disagree between views, asked in words (OpenMask3D).

    On the simulator the masks are true ones, spoilt; the map, the masks and the crops come from the online engine. On a
    recording with objects.json (7-Scenes layout) they are the recording's own, and the truth is its labelled polygons.
    """

    source: Positional[str] = "simulator"
    """simulator, or a 7-Scenes folder with masks and objects.json."""
    seeds: int = 3
    """Simulated scenes, from seed 0."""
    frames: int = 90
    """Frames a scene."""
    samples: int = 40000
    """Exact surface points a scene, on which answers are compared with the truth."""
    encoder: str = "tiny"
    """What describes crops on the simulator; words are asked in its space."""
    only: str = ""
    """Faults whose name contains this; all by default."""
    text_table: Path | None = None
    """For a folder: the text vectors of the `precomputed` encoder."""
    json: bool = False
    """End with one line of JSON."""


def run(plan: Plan, console: Console) -> int:
    """Run the plan; returns the exit code."""
    from ..benchmarks.report import json_line

    report = _simulated(plan, console) if plan.source == "simulator" else _recorded(plan, console)
    if plan.json:
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0


def _faults() -> dict[str, Any]:
    from ..evaluation.mask_faults import MaskFaults

    clean = MaskFaults(merge=0.0, split=0.0, noise=0.0)
    return {
        "ids shuffled": clean,
        "5% of pixels wrong": replace(clean, noise=0.05),
        "20% of masks split": replace(clean, split=0.2),
        "20% of masks merged": replace(clean, merge=0.2),
        "all of it": replace(clean, noise=0.05, split=0.2, merge=0.2),
    }


def with_stuff(frame: Frame) -> Frame:
    """The frame with masks on table, floor and wall as well."""
    assert frame.instance is not None and frame.semantic is not None
    stuff = (frame.instance == 0) & (frame.semantic > 0)
    return replace(frame, instance=np.where(stuff, _STUFF + frame.semantic, frame.instance).astype(np.int32))


def instances_by(
    method: str, snapshot: Snapshot, encoder: Encoder, config: SemfieldConfig, by_name: bool = False
) -> tuple[OpenInstances, float]:
    """Instances of a snapshot by one of METHODS, described alike; and the seconds that grouping the masks took."""
    from ..evaluation.mask_components import components_of_masks
    from ..objects.mask_instances import described, grouped, incidence_of

    found = incidence_of(snapshot, config.masks)
    started = time.perf_counter()
    if method == METHODS[0]:
        groups = grouped(snapshot, found, config.masks)
    else:
        groups = components_of_masks(found.incidence, 0.25 if ".25" in method else 0.5)
    spent_s = time.perf_counter() - started
    return described(snapshot, groups, found, encoder, config.masks, by_name=by_name), spent_s


def _simulated(plan: Plan, console: Console) -> dict[str, Any]:
    from ..benchmarks.report import show_table
    from ..config import EncoderConfig, demo_config
    from ..encoders import create
    from ..evaluation.average_precision import InstanceScene, average_precision
    from ..evaluation.mask_faults import faulty
    from ..objects.mask_instances import ask
    from ..query.prompt import PromptEncoder
    from ..sources.simulator import Simulator, SimulatorConfig
    from ..sources.simulator_objects import KINDS

    config = replace(demo_config(), encoder=EncoderConfig(name=plan.encoder))
    encoder = create(config.encoder)
    texts = PromptEncoder(encoder, config.query)
    kinds = [kind.name for kind in KINDS]
    chosen = {name: f for name, f in _faults().items() if plan.only in name}
    scenes: dict[tuple[str, str], list[InstanceScene]] = {}
    spent: dict[tuple[str, str], list[float]] = {}
    counts: dict[tuple[str, str], list[int]] = {}
    masks = 0
    for seed in range(plan.seeds):
        simulator = Simulator(SimulatorConfig(seed=seed, frames=plan.frames, processes=0))
        frames = [with_stuff(frame) for frame in simulator]
        points, _, semantic, instance = simulator.surface_points(plan.samples)
        truth = np.where(instance > 0, instance, -1)
        class_of = {
            int(i): kinds.index(simulator.class_names[int(semantic[instance == i][0])])
            for i in np.unique(instance[instance > 0])
        }
        snapshot = mapped(frames, config, encoder)
        for name, faults in chosen.items():
            snapshot = remasked(snapshot, [faulty(frame, faults) for frame in frames])
            masks += sum(map(len, snapshot.masks))
            rows = snapshot.rows_of(points)
            for method in METHODS:
                found, seconds = instances_by(method, snapshot, encoder, config)
                key = name, method
                best = ask(found, texts, kinds).argmax(1) if len(found) else np.zeros(0, np.int64)
                answers = found.voxels[:, np.maximum(rows, 0)].toarray() & (rows >= 0)
                scenes.setdefault(key, []).append(InstanceScene(truth, class_of, answers, found.score, best))
                spent.setdefault(key, []).append(seconds)
                counts.setdefault(key, []).append(len(found))
    table, metrics = [], []
    for (name, method), of in scenes.items():
        agnostic = average_precision([replace(s, truth_class={}, answer_class=None) for s in of])
        asked = average_precision(of)
        seconds = float(np.mean(spent[name, method]))
        table.append([
            name, method, agnostic.ap, agnostic.ap50, agnostic.ap25, asked.ap, asked.ap50, asked.ap25,
            float(np.mean(counts[name, method])), agnostic.truths / len(of), seconds,
        ])  # fmt: skip
        metrics.append({
            "faults": name, "method": method, **_figures("agnostic", agnostic), **_figures("asked", asked),
            "instances": float(np.mean(counts[name, method])), "seconds": seconds,
        })  # fmt: skip
    each = masks / max(1, len(chosen) * plan.seeds)
    show_table(
        console, f"openmask3d, simulator, {plan.seeds} scenes, {each:.0f} masks each: class-agnostic AP, and AP of "
        "kinds asked in words",
        ["masks", "grouped by", "AP", "AP50", "AP25", "asked AP", "AP50", "AP25", "instances", "objects", "s"], table,
    )  # fmt: skip
    return {
        "protocol": "openmask3d", "source": "simulator", "metrics": metrics, "classes": kinds,
        "settings": {**_plain(plan), "masks": asdict(config.masks)},
    }  # fmt: skip


def mapped(frames: list[Frame], config: SemfieldConfig, encoder: Encoder) -> Snapshot:
    """What the engine has mapped of a stream, masks and all, without training."""
    from ..engine import Engine
    from ..session import take_in

    with Engine(config, encoder) as engine:
        take_in(engine, frames)
        return engine.snapshot(fresh=True)


def remasked(snapshot: Snapshot, frames: list[Frame]) -> Snapshot:
    """The snapshot with the masks that these frames bring instead, where they are keyframes."""
    from ..memory.keyframes import Keyframe
    from ..memory.mask_store import mask_view, masks_of

    at = {frame.stamp_s: frame for frame in frames}
    views = []
    for view in snapshot.masks:
        brought = masks_of(at[view.stamp_s])
        assert brought is not None
        keyframe = Keyframe(view.keyframe, 0, view.stamp_s, view.camera, view.T_world_camera, view.camera_name)
        views.append(mask_view(keyframe, at[view.stamp_s], *brought))
    return replace(snapshot, masks=tuple(views))


def _recorded(plan: Plan, console: Console) -> dict[str, Any]:
    import json

    from ..benchmarks.online import open_recording
    from ..benchmarks.report import show_table
    from ..encoders import create
    from ..evaluation.average_precision import average_precision
    from ..query.prompt import PromptEncoder

    folder = Path(plan.source)
    config, labelled, keyframes, _ = open_recording(folder, plan.text_table)
    drawn = json.loads((folder / "objects.json").read_text(encoding="utf-8"))["polygons"]
    encoder = create(config.encoder)
    texts = PromptEncoder(encoder, config.query)
    snapshot = mapped(keyframes, config, encoder)
    frames = _labelled_frames(folder, keyframes[0].camera.width, drawn, config)
    rows_out, metrics = [], []
    for method in METHODS:
        found, seconds = instances_by(method, snapshot, encoder, config, by_name=True)
        scene = _polygon_scene(frames, drawn, found, snapshot)
        got = average_precision(scene)
        hits = _localised(found, texts, labelled)
        rows_out.append([
            method, got.ap, got.ap50, got.ap25, got.recall50, float(np.mean(hits)) if hits else float("nan"),
            len(found), seconds,
        ])  # fmt: skip
        metrics.append({
            "method": method, **_figures("agnostic", got), "recall50": got.recall50,
            "localisation": float(np.mean(hits)) if hits else float("nan"), "instances": len(found), "seconds": seconds,
        })  # fmt: skip
    masks = sum(map(len, snapshot.masks))
    show_table(
        console, f"openmask3d, {folder.name}, {len(keyframes)} keyframes, {masks} masks of a closed-set model: AP of "
        f"{got.truths} labelled things in {len(frames)} images, and names whose best instance lies in a right box",
        ["grouped by", "AP", "AP50", "AP25", "recall .5", "named", "instances", "s"], rows_out,
    )  # fmt: skip
    return {
        "protocol": "openmask3d", "source": folder.name, "metrics": metrics, "classes": sorted(labelled),
        "settings": {**_plain(plan), "source": folder.name, "masks": asdict(config.masks)},
    }  # fmt: skip


PARTLY_LABELLED = ("table", "carpet", "cabinet_red")
"""Things whose polygons cover only part of them: not annotated, as far as AP goes."""


def _labelled_frames(folder: Path, width: int, drawn: dict[str, Any], config: SemfieldConfig) -> dict[str, Frame]:
    """The frames of a recording that have polygons, by the number in their name."""
    from ..sources import open_source

    found = {}
    for frame in open_source(str(folder), width=width, frame_config=config.frame):
        number = str(round(frame.stamp_s * 30))
        if number in drawn:
            found[number] = frame
    return found


def _polygon_scene(
    frames: dict[str, Frame], drawn: dict[str, Any], found: OpenInstances, snapshot: Snapshot
) -> Any:
    """All measured pixels of the labelled images as one scene: an answer has to be the same one in all of them."""
    import cv2

    from ..evaluation.average_precision import InstanceScene
    from ..geometry import back_project

    names = sorted({name for shapes in drawn.values() for name in shapes} - set(PARTLY_LABELLED))
    truth, rows = [], []
    for number, frame in frames.items():
        height, width = frame.depth_m.shape
        image = np.full((height, width), -1, np.int32)
        for name, corners in drawn[number].items():
            if name in names:
                polygon = np.asarray(corners, np.float64) * (width / 640.0)
                cv2.fillPoly(image, [np.rint(polygon).astype(np.int32)], names.index(name) + 1)
        points, pixel = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
        truth.append(image.reshape(-1)[pixel])
        rows.append(snapshot.rows_of(points))
    at = np.concatenate(rows)
    answers = found.voxels[:, np.maximum(at, 0)].toarray() & (at >= 0)
    return InstanceScene(np.concatenate(truth), {}, answers, found.score)


def _localised(found: OpenInstances, texts: Any, labelled: dict[str, Any]) -> list[bool]:
    """For every labelled name the encoder knows: whether the best instance's median point lies in a right box."""
    from ..errors import QueryError
    from ..evaluation.metrics import localised
    from ..objects.mask_instances import ask

    boxes: dict[str, list[dict[str, Any]]] = {}
    for thing in labelled.values():
        for name in thing["names"]:
            boxes.setdefault(name, []).append(thing)
    hits = []
    for name, right in boxes.items():
        try:
            cosine = ask(found, texts, [name])[:, 0]
        except QueryError:
            continue
        points = found.cloud.points[found.rows(int(cosine.argmax()))] if len(cosine) else None
        centre = None if points is None else np.median(points, axis=0)
        low, high = (np.array([thing[key] for thing in right]) for key in ("aabb_min", "aabb_max"))
        hits.append(localised(centre, low, high, 0.05))
    return hits


def _figures(prefix: str, got: Any) -> dict[str, float]:
    return {f"{prefix}_{key}": getattr(got, key) for key in ("ap", "ap50", "ap25")}


def _plain(plan: Plan) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(plan).items()}
