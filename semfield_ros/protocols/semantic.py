"""Semantic-NeRF's protocol (Zhi et al., ICCV 2021): classes from few, wrong or coarse labels, rated in held-out views.

Frames with their labels go through an engine as a stream does; every one of them is a keyframe, so that all systems see
the same labels. Views between them are then rendered from their pose alone, and compared with the exact labels. Beside
it stand (a) the voxel map of the same run with the votes of the same labels, asked where the surface really is, once as
it is (a voxel that no label fell on is wrong) and once filled from the nearest voted voxel; and (b), where asked for,
Semantic-NeRF's own settings on this engine, with the same labels and seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console
from tyro.conf import Positional

from ..config import require
from ..evaluation.corruptions import Corruption

if TYPE_CHECKING:
    from ..config import SemfieldConfig
    from ..evaluation.corruptions import Corrupted
    from ..evaluation.labelled_views import RatedViews
    from ..evaluation.metrics import Segmentation
    from ..frame import Frame

log = logging.getLogger(__name__)

TASKS: dict[str, Corruption] = {
    "full": Corruption(),
    "sparse": Corruption(drop_views=0.9),
    "pixels50": Corruption("pixels", 0.5),
    "pixels90": Corruption("pixels", 0.9),
    "regions_sort": Corruption("regions_sort", 0.5),
    "regions_even": Corruption("regions_even", 0.5),
    "coarse8": Corruption("coarse", factor=8),
    "coarse16": Corruption("coarse", factor=16),
    "lattice8": Corruption("lattice", factor=8),
    "lattice16": Corruption("lattice", factor=16),
    "click": Corruption("clicks"),
    "clicks1": Corruption("clicks", 0.01),
    "clicks5": Corruption("clicks", 0.05),
}
"""Rows of the table by name: all of the published settings."""


@dataclass(frozen=True)
class Plan:
    """Closed-set labels from few, wrong or coarse annotations (Semantic-NeRF), rated in held-out views.

    Tasks: full = all labels; sparse = of 10% of the frames; pixels50, pixels90 = that share of labels is random;
    regions_sort, regions_even = half of an instance's views are called another class; coarse8, coarse16 = label images
    of 1/8, 1/16 of the resolution; lattice8, lattice16 = one labelled pixel in 8 x 8, 16 x 16; click, clicks1, clicks5
    = one pixel, 1%, 5% of each class in each frame. `custom` is what the corruption's own flags say.
    """

    source: Positional[str] = "simulator"
    """simulator, simulator:SEED, or a recording whose frames have label images (Replica, ScanNet, Panoptic Lifting)."""
    tasks: tuple[str, ...] = ("full", "sparse", "pixels50", "pixels90", "regions_sort", "coarse8", "coarse16",
                              "lattice16", "click", "clicks1", "clicks5")  # fmt: skip
    """Which rows: see above. Any corruption of your own adds the row custom."""
    corruption: Corruption = field(default_factory=Corruption)
    seeds: int = 1
    """Scenes of the simulator, and draws of the corruption."""
    frames: int = 120
    """Frames that are mapped."""
    held_out: int = 20
    """Views that are rated."""
    width: int = 320
    """Of the frames, in pixels."""
    stride: int = 5
    """Of a recording every so manieth frame is mapped, and those half-way between them are rated."""
    train_s: float = 20.0
    """Seconds of training after the last frame."""
    steps: int = 0
    """Training steps instead of seconds: the same on any machine; 0 = seconds."""
    compositing: Literal["logits", "probability"] = "logits"
    """What rays composite."""
    smoothness: float | None = None
    """Weight of the prior that neighbours are of one class; None = the default, 0 = off."""
    semantic_nerf: bool = False
    """Train Semantic-NeRF's own settings too, on the same labels for as many seconds (minutes more)."""
    save_labels: Path | None = None
    """Folder to write the corrupted labels into, as TASK-SEED.npz."""
    load_labels: Path | None = None
    """Folder to read them from again instead of drawing them: exact reruns."""
    json: bool = False
    """End with one line of JSON."""

    def __post_init__(self) -> None:
        for name in self.tasks:
            require(name in TASKS, "tasks", name, ", ".join(TASKS))
        for name in ("seeds", "frames", "held_out", "stride"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(self.train_s >= 0, "train_s", self.train_s, ">= 0")
        require(self.steps >= 0, "steps", self.steps, ">= 0")

    def rows(self) -> dict[str, Corruption]:
        """The tasks by name."""
        rows = {name: TASKS[name] for name in self.tasks}
        return rows if self.corruption == Corruption() else rows | {"custom": self.corruption}


@dataclass(frozen=True)
class Scene:
    """What is mapped and what is rated: frames with exact labels; the names of all classes, void first."""

    train: list[Frame]
    held_out: list[Frame]
    names: tuple[str, ...]
    config: SemfieldConfig


@dataclass(frozen=True)
class Outcome:
    """One task on one scene: how the views were rated, labelled pixels there were, steps and seconds that mapping and
    training took, and Semantic-NeRF's settings where they were asked for."""

    rated: RatedViews
    labels: int
    steps: int
    seconds: float
    nerf: Segmentation | None


def run(plan: Plan, console: Console) -> int:
    """All tasks on all seeds; a table, and with `json` a line."""
    from ..benchmarks.report import json_line, mean, show_table

    found: dict[str, list[Outcome]] = {}
    names: tuple[str, ...] = ()
    for seed in range(plan.seeds):
        scene = scene_of(plan, seed)
        names = scene.names
        for name, corruption in plan.rows().items():
            labels = _labels(plan, scene, name, replace(corruption, seed=corruption.seed + seed))
            outcome = _outcome(plan, scene, labels)
            found.setdefault(name, []).append(outcome)
            rated = outcome.rated
            log.info(
                "%s, scene %d: rendered %.3f, surface %.3f, votes %.3f, filled %.3f; %d steps, %.0f s", name, seed,
                rated.rendered.miou, rated.surface.miou, rated.votes.miou, rated.filled.miou, outcome.steps,
                outcome.seconds,
            )  # fmt: skip
    figures: dict[str, Callable[[Outcome], float]] = {
        "rendered": lambda o: o.rated.rendered.miou, "rendered_answered": lambda o: o.rated.rendered.miou_answered,
        "accuracy": lambda o: o.rated.rendered.accuracy,
        "class_accuracy": lambda o: o.rated.rendered.class_accuracy, "surface": lambda o: o.rated.surface.miou,
        "votes": lambda o: o.rated.votes.miou, "filled": lambda o: o.rated.filled.miou,
        "semantic_nerf": lambda o: o.nerf.miou if o.nerf is not None else float("nan"),
        "labelled_pixels": lambda o: o.labels, "steps": lambda o: o.steps, "seconds": lambda o: o.seconds,
    }  # fmt: skip
    table = {
        name: {figure: mean([float(of(o)) for o in each]) for figure, of in figures.items()}
        for name, each in found.items()
    }
    full = table.get("full", {}).get("rendered", float("nan"))
    rows = [
        [name, int(values["labelled_pixels"]), values["rendered"], values["rendered"] - full,
         *(values[k] for k in ("accuracy", "class_accuracy", "surface", "votes", "filled", "semantic_nerf")),
         int(values["steps"]), values["seconds"]]
        for name, values in table.items()
    ]  # fmt: skip
    show_table(
        console, f"{plan.source}: mIoU in {plan.held_out} held-out views, {plan.seeds} scenes: rendered from the pose "
        "alone, less what all labels give; its accuracy and class average; at the true surface, beside voxel votes of "
        "the same labels, plain and filled from the nearest; Semantic-NeRF's settings",
        ["labels", "pixels", "rendered", "-full", "acc.", "class", "surface", "votes", "filled", "S-NeRF", "steps",
         "s"], rows,
    )  # fmt: skip
    if plan.json:
        some = [o.rated for each in found.values() for o in each]
        depth = {key: mean([float(asdict(r.depth)[key]) for r in some]) for key in asdict(some[0].depth)}
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(plan).items() if k != "json"}
        line = json_line({
            "protocol": "semantic", "source": plan.source, "miou": table, "psnr_db": mean([r.psnr_db for r in some]),
            "depth": depth, "classes": list(names), "settings": settings,
        })  # fmt: skip
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return 0


def scene_of(plan: Plan, seed: int) -> Scene:
    """Frames to map and views to rate: of the simulator along its path, the latter between the former and exact."""
    from ..config import SemfieldConfig, demo_config
    from ..errors import SourceError
    from ..sources import open_source

    kind, _, number = plan.source.partition(":")
    if kind == "simulator" and (number.isdecimal() or plan.source == kind):
        simulator: Any = open_source(f"simulator:{int(number or 0) + seed}", width=plan.width)
        path = simulator.path(2 * plan.frames)
        between = path[1::2][np.linspace(0, plan.frames - 1, plan.held_out).astype(int)]
        train = [simulator.render(T, stamp_s=float(i)) for i, T in enumerate(path[::2])]
        held_out = [simulator.render(T, stamp_s=1e6 + i, noisy=False) for i, T in enumerate(between)]
        return Scene(train, held_out, tuple(simulator.class_names), demo_config())
    limit = plan.frames * plan.stride
    source: Any = open_source(plan.source, width=plan.width, limit=limit)
    frames = [frame for frame in source if frame.semantic is not None]
    train, rated = frames[:: plan.stride], frames[plan.stride // 2 :: plan.stride]
    if plan.stride == 1:
        train, rated = frames[::2], frames[1::2]
    if not train or not rated:
        raise SourceError(f"{plan.source} has {len(frames)} labelled frames; needed are some to map and some to rate")
    picked = np.unique(np.linspace(0, len(rated) - 1, min(plan.held_out, len(rated))).astype(int))
    most = max(int(frame.semantic.max()) for frame in frames)
    names = tuple(getattr(source, "class_names", ())) or ("void", *(f"class {k}" for k in range(1, most + 1)))
    return Scene(train, [rated[i] for i in picked], names, SemfieldConfig())


def _labels(plan: Plan, scene: Scene, name: str, corruption: Corruption) -> Corrupted:
    """The task's labels: drawn, or read where they were saved."""
    from ..evaluation.corruptions import corrupt, load_corrupted, save_corrupted

    truth = [np.asarray(frame.semantic) for frame in scene.train]
    if plan.load_labels is not None:
        return load_corrupted(plan.load_labels / f"{name}-{corruption.seed}.npz", truth)
    instances = [frame.instance for frame in scene.train if frame.instance is not None]
    made = corrupt(truth, corruption, len(scene.names), instances if len(instances) == len(truth) else None)
    if plan.save_labels is not None:
        save_corrupted(plan.save_labels / f"{name}-{corruption.seed}.npz", made, overwrite=True)
    return made


def _configured(plan: Plan, scene: Scene) -> SemfieldConfig:
    """Every frame is a keyframe, all of its labels are kept."""
    config, camera = scene.config, scene.train[0].camera
    pixels = camera.width * camera.height
    heads = replace(
        config.heads, semantic_classes=len(scene.names) - 1, class_names=scene.names[1:],
        semantic_compositing=plan.compositing,
        semantic_smoothness=config.heads.semantic_smoothness if plan.smoothness is None else plan.smoothness,
    )  # fmt: skip
    memory = replace(
        config.memory, min_translation_m=1e-6, min_rotation_deg=1e-6, max_keyframes=len(scene.train),
        labels_per_keyframe=pixels, labels_mb=2 * 19e-6 * pixels * len(scene.train),
    )  # fmt: skip
    return replace(config, heads=heads, memory=memory)


def _outcome(plan: Plan, scene: Scene, labels: Corrupted) -> Outcome:
    """Map the frames with these labels, train, and rate."""
    from ..engine import Engine
    from ..evaluation.labelled_views import rate
    from ..session import take_in
    from .semantic_peer import semantic_nerf

    config = _configured(plan, scene)
    frames = [
        replace(frame, semantic=image if there else None, instance=None)
        for frame, image, there in zip(scene.train, labels.labels, labels.labelled)
    ]
    started = time.perf_counter()
    with Engine(config) as engine:
        take_in(engine, frames, steps=plan.steps, train_s=plan.train_s)
        seconds = time.perf_counter() - started
        snapshot = engine.snapshot(fresh=True)
    far_m, classes = config.frame.max_depth_m, len(scene.names)
    nerf = semantic_nerf(frames, scene.held_out, classes, far_m, seconds) if plan.semantic_nerf else None
    rated = rate(snapshot, scene.held_out, classes, far_m)
    return Outcome(rated, int((labels.labels > 0).sum()), snapshot.step, seconds, nerf)
