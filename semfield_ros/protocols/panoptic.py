"""Panoptic Lifting's protocol (Siddiqui et al., CVPR 2023): ids of views become ids of the scene; PQ in held-out views.

Frames with masks whose ids mean nothing beyond their view go through an engine as a stream does. Views between them
are then rendered from their pose alone, and all of their pixels are rated together, so an id must be the same in each.
Beside it stands what needs no field: the masks joined frame by frame by voxel overlap, with the votes of the same
labels, asked where the surface really is. What an instance mostly is, is its class; one that is mostly stuff is none.

On the simulator the masks are exact up to faults that are set one by one. On a recording with a 2-D detector's masks
and hand-labelled objects (objects.json: polygons in some frames, boxes) those frames are held out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console
from tyro.conf import Positional

from ..config import require
from ..evaluation.mask_faults import MaskFaults

if TYPE_CHECKING:
    from ..config import SemfieldConfig
    from ..evaluation.panoptic import PanopticQuality
    from ..field.snapshot import Snapshot
    from ..frame import Frame
    from ..query.instances import Instances

Method = Literal["slots", "embedding"]
METHODS: tuple[Method, ...] = ("slots", "embedding")
Images = list[tuple[np.ndarray, np.ndarray]]
"""Ids and classes of stuff, [H, W] each, of every view."""


@dataclass(frozen=True)
class Plan:
    """Instances of the scene from masks of views (Panoptic Lifting, Contrastive Lift), rated by PQ of held-out views.

    The simulator's masks are shuffled in every view, and merged, split and noisy as `faults` says. A recording needs
    2-D masks and objects.json.
    """

    source: Positional[str] = "simulator"
    """simulator, simulator:SEED, or a 7-Scenes folder with masks and objects.json."""
    methods: tuple[Method, ...] = METHODS
    """slots (by assignment) and embedding (slow-fast, clustered)."""
    faults: MaskFaults = field(default_factory=MaskFaults)
    seeds: int = 1
    """Scenes of the simulator, and draws of the faults."""
    frames: int = 60
    """Frames that are mapped."""
    held_out: int = 12
    """Views that are rated."""
    width: int = 320
    """Of the frames, in pixels."""
    train_s: float = 20.0
    """Seconds of training after the last frame."""
    steps: int = 0
    """Training steps instead of seconds: the same on any machine; 0 = seconds."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        for method in self.methods:
            require(method in METHODS, "methods", method, ", ".join(METHODS))
        require(len(self.methods) > 0, "methods", self.methods, "one or more")
        for name in ("seeds", "frames", "held_out"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(self.train_s >= 0, "train_s", self.train_s, ">= 0")
        require(self.steps >= 0, "steps", self.steps, ">= 0")


@dataclass(frozen=True)
class View:
    """What is rated in one held-out frame: true class and instance of each pixel [H, W], class 0 = not rated."""

    frame: Frame
    semantic: np.ndarray
    instance: np.ndarray


@dataclass(frozen=True)
class Scene:
    """Frames to map, views to rate; names of classes, void first; classes of things are rated (False: instances alone).
    boxes: corners [K, 2, 3] of labelled objects, by name."""

    train: list[Frame]
    views: list[View]
    names: tuple[str, ...]
    classes: bool
    config: SemfieldConfig
    boxes: dict[str, np.ndarray]


def run(plan: Plan, console: Console) -> int:
    """Every method on all seeds; a table, and with `json` a line."""
    from ..benchmarks.report import json_line, mean, show_table

    found: dict[str, list[dict[str, float]]] = {}
    names: tuple[str, ...] = ()
    boxes = False
    for seed in range(plan.seeds):
        scene = scene_of(plan, seed)
        names, boxes = scene.names, bool(scene.boxes)
        for method in plan.methods:
            for row, figures in rate(plan, scene, method).items():
                found.setdefault(row, []).append(figures)
    table = {row: {k: mean([f[k] for f in each]) for k in each[0]} for row, each in found.items()}
    columns = {
        "PQ": "pq", "SQ": "sq", "RQ": "rq", "PQ things": "things", "PQ stuff": "stuff", "mIoU": "miou",
        "PQ instances": "instances", "RQ inst.": "instances_rq", "ids": "ids", "true": "true", "steps": "steps",
        "s": "seconds",
    }  # fmt: skip
    if boxes:
        columns |= {"boxes IoU>.25": "boxes25", ">.5": "boxes50"}
    columns = {k: v for k, v in columns.items() if not all(np.isnan(values[v]) for values in table.values())}
    rows = [[row, *(values[k] for k in columns.values())] for row, values in table.items()]
    title = f"{plan.source}: {plan.seeds} scene(s), all pixels of the held-out views of a scene together"
    show_table(console, title, ["ids from", *columns], rows)
    if plan.json:
        settings = {k: v for k, v in asdict(plan).items() if k != "json"}
        line = {"protocol": "panoptic", "source": plan.source, "rows": table, "classes": list(names)}
        line["settings"] = settings
        console.print(json_line(line), soft_wrap=True, highlight=False, markup=False)
    return 0


def scene_of(plan: Plan, seed: int) -> Scene:
    """The simulator's: faulty frames along its path, exact views between them. Or a recording's."""
    from ..config import demo_config
    from ..evaluation.mask_faults import faulty
    from ..sources import open_source

    kind, _, number = plan.source.partition(":")
    if kind != "simulator":
        return recorded(plan)
    simulator: Any = open_source(f"simulator:{int(number or 0) + seed}", width=plan.width)
    path = simulator.path(2 * plan.frames)
    faults = replace(plan.faults, seed=plan.faults.seed + seed)
    train = [faulty(simulator.render(T, stamp_s=float(i)), faults) for i, T in enumerate(path[::2])]
    config = demo_config()
    views = []
    for i in np.unique(np.linspace(0, plan.frames - 1, plan.held_out).astype(int)):
        frame = simulator.render(path[2 * i + 1], stamp_s=1e6 + i, noisy=False)
        near = (frame.depth_m > 0) & (frame.depth_m <= config.frame.max_depth_m)
        views.append(View(frame, np.where(near, frame.semantic, 0), np.where(near, frame.instance, -1)))
    return Scene(train, views, tuple(simulator.class_names), True, config, {})


def recorded(plan: Plan) -> Scene:
    """A recording with a detector's masks: classes are the detector's words, true instances the labelled polygons.

    Raises:
        SourceError: no objects.json, or no labelled frame is there.
    """
    import cv2

    from ..config import SemfieldConfig
    from ..errors import SourceError
    from ..sources import open_source, seven_scenes

    folder = Path(plan.source).expanduser()
    if not (folder / "objects.json").is_file():
        raise SourceError(f"{folder / 'objects.json'} is missing; the protocol needs hand-labelled objects")
    labelled = json.loads((folder / "objects.json").read_text(encoding="utf-8"))
    numbers = {name: i for i, name in enumerate(labelled["objects"], 1)}
    at = [str(round(30 * shot.stamp_s)) for shot in seven_scenes.shots(folder)]
    views, rest = [], [i for i, number in enumerate(at) if number not in labelled["polygons"]]
    for start in sorted(set(range(len(at))) - set(rest)):
        frame = next(iter(open_source(str(folder), width=plan.width, start=start, limit=1)))
        polygons = labelled["polygons"][at[start]]
        instance = np.full(frame.depth_m.shape, -1, np.int32)
        scale = frame.camera.width / 640
        for name, corners in polygons.items():
            drawn = np.zeros(instance.shape, np.uint8)
            cv2.fillPoly(drawn, [np.round((np.array(corners) + 0.5) * scale - 0.5).astype(np.int32)], 1)
            instance[(drawn > 0) & (frame.depth_m > 0)] = numbers[name]
        views.append(View(frame, (instance > 0).astype(np.int32), instance))
    if not views or not rest:
        raise SourceError(f"{folder} has {len(views)} labelled frames and {len(rest)} others; needed are some of both")
    chosen = np.unique(np.linspace(0, len(rest) - 1, plan.frames).astype(int))
    train = [next(iter(open_source(str(folder), width=plan.width, start=rest[i], limit=1))) for i in chosen]
    words = sorted({name for frame in train if frame.segments is not None for name in frame.segments.names.values()})
    train = [_with_classes(frame, words) for frame in train]
    boxes = {name: np.array([o["aabb_min"], o["aabb_max"]]) for name, o in labelled["objects"].items()}
    return Scene(train, views, ("void", *words), False, SemfieldConfig(), boxes)


def _with_classes(frame: Frame, words: Sequence[str]) -> Frame:
    """The frame with the classes of its masks as its labels."""
    if frame.segments is None:
        return frame
    table = np.zeros(max(frame.segments.names, default=0) + 1, np.int32)
    for number, name in frame.segments.names.items():
        table[number] = words.index(name) + 1
    ids = frame.segments.ids
    return replace(frame, semantic=table[np.where(ids < len(table), ids, 0)])


def rate(plan: Plan, scene: Scene, method: Method) -> dict[str, dict[str, float]]:
    """Map, train and rate: rows of the table by name."""
    from ..engine import Engine
    from ..evaluation.mask_votes import associate
    from ..query.instances import InstanceIds
    from ..query.pieces import APART_M, MIN_POINTS, pieces
    from ..query.semantics import semantic_view, semantics_at
    from ..session import take_in

    heads = replace(
        scene.config.heads, instances=method, semantic_classes=len(scene.names) - 1, class_names=scene.names[1:]
    )
    memory = replace(
        scene.config.memory, min_translation_m=1e-6, min_rotation_deg=1e-6, max_keyframes=max(8, len(scene.train))
    )
    config = replace(scene.config, heads=heads, memory=memory)
    started = time.perf_counter()
    with Engine(config) as engine:
        take_in(engine, scene.train, steps=plan.steps, train_s=plan.train_s)
        seconds = time.perf_counter() - started
        snapshot = engine.snapshot(fresh=True)
    stuff = stuff_of(scene.train, len(scene.names))
    instances = InstanceIds().update(snapshot)
    ids, classes = things(instances.ids, semantics_at(snapshot, source="field").label, stuff)
    instances = replace(instances, ids=ids)
    by_votes = semantics_at(snapshot, source="points").label
    votes = associate(scene.train, snapshot.keys, snapshot.voxel_size_m)
    # what is done to the field's labels before they are ids
    cleaned = pieces(snapshot.cloud.points, np.maximum(votes, 0), max(APART_M, 4 * snapshot.voxel_size_m), MIN_POINTS)
    by_votes_all = [things(of, by_votes, stuff) for of in (votes, np.where(votes < 0, -1, cleaned))]
    far_m, shown = 2 * config.frame.max_depth_m, []
    for view in scene.views:
        found, _ = instances.view(view.frame.camera, view.frame.T_world_camera, far_m=far_m)
        semantic = semantic_view(snapshot, view.frame.camera, view.frame.T_world_camera, far_m=far_m)
        shown.append((found, _stuff_label(semantic.probabilities, semantic.label, stuff)))
    surface, *voxels = _surface(snapshot, scene.views, instances, [of for of, _ in by_votes_all], stuff)
    rows = {}
    for name, images, of, named in (
        (f"{method}, rendered", shown, ids, classes), (f"{method}, surface", surface, ids, classes),
        ("voxel votes", voxels[0], *by_votes_all[0]), ("voxel votes, pieces", voxels[1], *by_votes_all[1]),
    ):  # fmt: skip
        rows[name] = _figures(scene, images, named) | {
            "ids": float(len(np.unique(of[of > 0]))), "steps": float(snapshot.step), "seconds": seconds,
            **_boxes(scene, snapshot, of),
        }  # fmt: skip
    return rows


def things(ids: np.ndarray, label: np.ndarray, stuff: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
    """Ids [N] without those whose points are mostly of a class of stuff, and the classes of the others by id."""
    from ..query.pieces import majority

    classes = majority(ids, label)
    gone = [i for i, c in classes.items() if stuff[c]]
    return np.where(np.isin(ids, gone), 0, ids), {i: c for i, c in classes.items() if not stuff[c]}


def stuff_of(frames: Sequence[Frame], classes: int) -> np.ndarray:
    """Classes (bool [classes]) most of whose labelled pixels are of no instance."""
    from ..evaluation.mask_votes import masks_of

    count = np.zeros((classes, 2))
    for frame in frames:
        masks = masks_of(frame)
        if frame.semantic is not None and masks is not None:
            np.add.at(count, (frame.semantic.reshape(-1), (masks > 0).reshape(-1).astype(int)), 1)
    found = count[:, 0] > count[:, 1]
    found[0] = False
    return found


def _stuff_label(probabilities: np.ndarray, label: np.ndarray, stuff: np.ndarray) -> np.ndarray:
    """The likeliest class [...] that is no thing's; 0 where there is none, or nothing is known."""
    if not stuff[1:].any():
        return np.zeros_like(label)
    best = np.where(stuff[1:], probabilities, -1).argmax(-1) + 1
    return np.asarray(np.where(label > 0, best, 0))


def _surface(
    snapshot: Snapshot, views: Sequence[View], instances: Instances, votes: Sequence[np.ndarray], stuff: np.ndarray
) -> list[Images]:
    """Ids and stuff classes of every view where the surface really is: the field's, and those of the nearest voxels,
    whose ids are `votes` [V] of each kind."""
    from ..evaluation.mask_votes import nearest_ids
    from ..geometry import back_project
    from ..query.semantics import semantics_at

    places = snapshot.cloud.points
    counted = np.where(stuff[1:], snapshot.votes, 0)
    best = np.where(counted.any(1), counted.argmax(1) + 1, -1)
    answers: list[Images] = [[] for _ in range(1 + len(votes))]
    for view in views:
        frame = view.frame
        points, pixel = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
        found = semantics_at(snapshot, points, source="field")
        nearest = np.maximum(nearest_ids(places, best, points), 0)
        labels = [(instances.at(points), _stuff_label(found.probabilities, found.label, stuff))]
        labels += [(nearest_ids(places, of, points), nearest) for of in votes]
        for images, (ids, classes) in zip(answers, labels):
            full = [np.full(frame.depth_m.size, fill, np.int32) for fill in (-1, 0)]
            full[0][pixel], full[1][pixel] = ids, classes
            images.append((full[0].reshape(frame.depth_m.shape), full[1].reshape(frame.depth_m.shape)))
    return answers


def _figures(scene: Scene, images: Images, classes: dict[int, int]) -> dict[str, float]:
    """Panoptic quality of ids and stuff classes of every view, with the class of each id."""
    from ..evaluation.metrics import confusion_matrix, segmentation
    from ..evaluation.panoptic import panoptic_quality

    ids = np.stack([a for a, _ in images])
    true_class, true = (np.stack([getattr(v, name) for v in scene.views]) for name in ("semantic", "instance"))
    agnostic = panoptic_quality(None, ids, None, true)
    figures = {
        "instances": agnostic.pq, "instances_sq": agnostic.sq, "instances_rq": agnostic.rq,
        "true": float(len(np.unique(true[true > 0]))),
    }  # fmt: skip
    if not scene.classes:
        return figures | {k: float("nan") for k in ("pq", "sq", "rq", "things", "stuff", "miou")}
    table = np.zeros(int(ids.max(initial=0)) + 1, np.int64)
    for i, c in classes.items():
        if i < len(table):
            table[i] = c
    predicted = np.where(ids > 0, table[np.maximum(ids, 0)], np.stack([b for _, b in images]))
    quality: PanopticQuality = panoptic_quality(predicted, np.maximum(ids, 0), true_class, np.maximum(true, 0))
    matrix = confusion_matrix(predicted, true_class, len(scene.names), void=0)
    return figures | {
        "pq": quality.pq, "sq": quality.sq, "rq": quality.rq, "things": quality.things, "stuff": quality.stuff,
        "miou": segmentation(matrix).miou,
    }  # fmt: skip


def _boxes(scene: Scene, snapshot: Snapshot, ids: np.ndarray) -> dict[str, float]:
    """Share of labelled boxes whose map points some id covers with IoU > .25 and > .5; empty where there is no box."""
    if not scene.boxes:
        return {}
    margin, points = 0.02, snapshot.cloud.points
    best = []
    for low, high in scene.boxes.values():
        inside = ((points > low - margin) & (points < high + margin)).all(1)
        here = np.unique(ids[inside & (ids > 0)])
        iou = [(inside & (ids == i)).sum() / (inside | (ids == i)).sum() for i in here]
        best.append(max(iou, default=0.0))
    found: Callable[[float], float] = lambda least: float(np.mean([b > least for b in best]))  # noqa: E731
    return {"boxes25": found(0.25), "boxes50": found(0.5)}
