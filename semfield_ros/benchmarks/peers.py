"""`semfield bench peers`: published settings on this engine, beside its own; the same frames, measurements and seconds.

Every system gets the same images, poses, depth where it uses any, and the same measurements of the same 2-D model
(`evaluation.measured`). Held-out views are rendered from their pose alone. What counts is when a system reaches what
this engine's defaults have after an eighth of the time: ratios of seconds, not seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console

from ..config import MemoryConfig, SemfieldConfig, demo_config
from ..evaluation.measured import Faults, MeasuredEncoder
from ..evaluation.metrics import confusion_matrix, psnr_db, segmentation
from ..field.model import Field
from ..field.render import render
from ..field.trainer import Trainer
from ..field.workspace import Workspace
from ..frame import Frame
from ..geometry import image_directions
from ..mapping import colour_head, language_head, workspace_around
from ..memory.features import FeatureShape
from ..memory.point_map import PointMap
from ..memory.replay import Replay
from ..sources.simulator import Simulator, SimulatorConfig
from .published import PUBLISHED, Peer, Published, Rays
from .published_coslam import RAYS as COSLAM_RAYS
from .published_coslam import CoSlam
from .report import json_line, mean, show_table

REDUCTION = 8
"""Without a GPU the published rays a step are divided by this."""
SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of the time: where everybody is rated."""
SCALE_M = 0.1
"""Size of what is asked for, where features depend on it."""
OURS = "semfield_ros"


@dataclass(frozen=True)
class Rated:
    """Held-out pixels: mIoU over classes present (nan without semantics), colour, relative depth error."""

    miou: float
    psnr_db: float
    depth: float


@dataclass(frozen=True)
class Views:
    """What everybody learns from, as tensors over N training images of P pixels.

    Attributes:
        frames, held_out: images. encoders: one for each size of measurement, the one everybody uses first.
        origins [N, 3], rotations [N, 3, 3], local [P, 3]: rays. rgb [N, P, 3] uint8. depth_m [N, P].
        features: of each encoder [N, P, D] float16. angles: of each, its window at 1 m. label: [N, P] int64.
    """

    frames: list[Frame]
    held_out: list[Frame]
    encoders: list[MeasuredEncoder]
    origins: torch.Tensor
    rotations: torch.Tensor
    local: torch.Tensor
    rgb: torch.Tensor
    depth_m: torch.Tensor
    features: list[torch.Tensor]
    angles: list[float]
    label: torch.Tensor

    def draw(self, n: int, one_image: bool, generator: torch.Generator) -> Rays:
        """n random pixels, of one random image or of all."""
        images, pixels = self.depth_m.shape
        image = torch.randint(images, (1 if one_image else n,), generator=generator).expand(n)
        pixel = torch.randint(pixels, (n,), generator=generator)
        level = int(torch.randint(len(self.features), (1,), generator=generator))
        directions = (self.rotations[image] @ self.local[pixel][..., None]).squeeze(-1)
        return Rays(
            self.origins[image], directions, self.rgb[image, pixel].float() / 255, self.depth_m[image, pixel],
            self.label[image, pixel], self.features[level][image, pixel].float(),
            torch.full((n,), self.angles[level]),
        )  # fmt: skip


class System(Protocol):
    """Something that learns and can be looked at."""

    @property
    def steps(self) -> int:
        """Taken so far."""

    def learn(self) -> None:
        """One step."""

    def look(self, origins: torch.Tensor, directions: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Colour [R, 3], z-depth [R], and scores of classes [R, C] or None."""


class Ours:
    """This engine's field and trainer with their defaults."""

    def __init__(self, config: SemfieldConfig, views: Views, workspace: Workspace):
        frame, target = views.frames[0], views.encoders[0].encode_frame(views.frames[0])
        shape = FeatureShape.of(target)
        memory = replace(config.memory, max_keyframes=len(views.frames))
        self.replay = Replay(memory, frame.camera.width, frame.camera.height, shape, "cpu")
        rng = np.random.default_rng(0)
        for slot, frame in enumerate(views.frames):
            self.replay.write(slot, frame, rng)
            self.replay.write_target(slot, views.encoders[0].encode_frame(frame))
        self.vectors = views.encoders[0].vectors
        self.field = Field(config.field, workspace, (colour_head(), language_head(views.encoders[0].dim)))
        self.trainer = Trainer(self.field, config.train)

    @property
    def steps(self) -> int:
        """Taken so far."""
        return self.trainer.steps

    def learn(self) -> None:
        """One step."""
        self.trainer.step(self.replay)

    def look(self, origins: torch.Tensor, directions: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """See System."""
        out = render(self.field, origins, directions, ("rgb", "language"))
        scores = out.outputs["language"].numpy() @ self.vectors.T
        return out.outputs["rgb"].numpy(), out.depth.numpy(), scores


class Other:
    """A published system."""

    def __init__(self, peer: Peer | CoSlam, views: Views, rays: int, one_image: bool, labels: bool):
        self.peer, self.views, self.rays, self.one_image, self.labels = peer, views, rays, one_image, labels

    @property
    def steps(self) -> int:
        """Taken so far."""
        return self.peer.steps

    def learn(self) -> None:
        """One step."""
        self.peer.step(self.views.draw(self.rays, self.one_image, self.peer.generator))

    def look(self, origins: torch.Tensor, directions: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """See System."""
        seen = self.peer.render(origins, directions, SCALE_M)
        semantics = seen.semantics.numpy()
        if not semantics.shape[1]:
            scores = None
        elif self.labels:
            # logits are of the classes beside void
            scores = np.concatenate([np.full((len(semantics), 1), -np.inf, np.float32), semantics], 1)
        else:
            scores = semantics @ self.views.encoders[0].vectors.T
        return seen.rgb.numpy(), seen.depth_m.numpy(), scores


def views_of(seed: int, frames: int, width: int) -> tuple[Views, tuple[str, ...]]:
    """Views around a simulated table (field of view 90 degrees, as Semantic-NeRF's data), every sixth held out."""
    simulator = Simulator(
        SimulatorConfig(seed=seed, width=width, height=width * 3 // 4, horizontal_fov_deg=90, processes=0)
    )
    images = [simulator.render(T, stamp_s=float(i)) for i, T in enumerate(simulator.path(frames))]
    kept, held_out = [f for i, f in enumerate(images) if i % 6 != 3], images[3::6]
    encoders = [
        MeasuredEncoder(simulator.class_names, Faults(patch_px=4, window_px=edge, noise=0.3, wrong_views=0.0))
        for edge in (8.0, 24.0)
    ]
    camera = kept[0].camera
    features = []
    for encoder in encoders:
        each = []
        for frame in kept:
            target = encoder.encode_frame(frame)
            each.append(target.values[target.cell_of_pixels(camera.width, camera.height).reshape(-1)])
        features.append(torch.from_numpy(np.stack(each).astype(np.float16)))
    best = np.stack([(f.float().numpy() @ encoders[0].vectors.T).argmax(1) for f in features[0]])
    poses = torch.from_numpy(np.stack([f.T_world_camera for f in kept]).astype(np.float32))
    return Views(
        kept, held_out, encoders, poses[:, :3, 3], poses[:, :3, :3],
        torch.from_numpy(image_directions(camera).reshape(-1, 3)),
        torch.from_numpy(np.stack([f.rgb.reshape(-1, 3) for f in kept])),
        torch.from_numpy(np.stack([f.depth_m.reshape(-1) for f in kept])),
        features, [e.faults.window_px / camera.fx for e in encoders], torch.from_numpy(best),
    ), simulator.class_names  # fmt: skip


def rated(system: System, frames: Sequence[Frame], classes: int, pixels: int = 800) -> Rated:
    """Random labelled pixels of held-out views."""
    rng = np.random.default_rng(0)
    colour, truth, depth, exact, matrix = [], [], [], [], np.zeros((classes, classes + 1), np.int64)
    for frame in frames:
        assert frame.semantic is not None
        label = frame.semantic.reshape(-1)
        pick = rng.choice(label.size, min(pixels, label.size), replace=False)
        T = frame.T_world_camera.astype(np.float32)
        rays = torch.from_numpy(image_directions(frame.camera).reshape(-1, 3)[pick] @ T[:3, :3].T)
        rgb, z, scores = system.look(torch.from_numpy(T[:3, 3]).expand_as(rays), rays)
        colour.append(rgb.clip(0, 1))
        truth.append(frame.rgb.reshape(-1, 3)[pick] / np.float32(255))
        depth.append(z)
        exact.append(frame.depth_m.reshape(-1)[pick])
        if scores is not None:
            # void is nobody's answer
            matrix += confusion_matrix(scores[:, 1:].argmax(1) + 1, label[pick], classes, void=0)
    z, measured = np.concatenate(depth), np.concatenate(exact)
    known = measured > 0
    return Rated(
        segmentation(matrix).miou if matrix.any() else float("nan"),
        psnr_db(np.concatenate(colour), np.concatenate(truth)),
        float(np.median(np.abs(z[known] / measured[known] - 1))),
    )


def systems(views: Views, classes: int, reduction: int) -> dict[str, Callable[[], System]]:
    """Name -> a fresh one."""
    config = replace(demo_config(), memory=MemoryConfig(), frame=SemfieldConfig().frame)
    points = PointMap(config.memory, 1)
    for frame in views.frames:
        points.fuse(frame)
    workspace = workspace_around(points.points[points.rows], 1.2)
    far_m = float(views.depth_m.max()) * 1.2

    def other(settings: Published) -> System:
        outputs = classes - 1 if settings.semantics == "label" else views.encoders[0].dim
        peer = Peer(settings, workspace, outputs)
        return Other(peer, views, settings.rays, settings.one_image, settings.semantics == "label")

    made: dict[str, Callable[[], System]] = {OURS: lambda: Ours(config, views, workspace)}
    made["Co-SLAM"] = lambda: Other(CoSlam(config.field, workspace, far_m), views, COSLAM_RAYS, False, False)
    for published in PUBLISHED:
        settings = published.reduced(reduction) if reduction > 1 else published
        made[settings.name] = lambda settings=settings: other(settings)  # type: ignore[misc]
    return made


def course(system: System, views: Views, classes: int, train_s: float, shares: Sequence[float]) -> list[Rated]:
    """Train for so many seconds and rate it at these shares of them."""
    spent, found = 0.0, []
    for share in shares:
        while spent < share * train_s:
            started = time.perf_counter()
            system.learn()
            spent += time.perf_counter() - started
        found.append(rated(system, views.held_out, classes))
    return found


def ratio(found: Sequence[Rated], goal: Rated, figure: str, lower: bool = False) -> float:
    """Of the shares at which the goal is reached, the first, over that of the goal; nan where it never is."""
    for share, each in zip(SHARES, found):
        value, wanted = getattr(each, figure), getattr(goal, figure)
        if (value <= wanted) if lower else (value >= wanted):
            return share / SHARES[0]
    return float("nan")


def run(
    *, console: Console, as_json: bool, seeds: int, train_s: float, semantic_nerf: Path | None = None,
    frames: int = 60, width: int = 160, reduction: int = REDUCTION,
) -> int:  # fmt: skip
    """All systems on each seed; with `semantic_nerf` also its own code, on the first seed."""
    courses: dict[str, list[list[Rated]]] = {}
    taken: dict[str, list[int]] = {}
    for seed in range(seeds):
        views, names = views_of(seed, frames, width)
        for name, make in systems(views, len(names), reduction).items():
            if not seed:
                make().learn()  # kernels are compiled outside the clock
            system = make()
            courses.setdefault(name, []).append(course(system, views, len(names), train_s, SHARES))
            taken.setdefault(name, []).append(system.steps)
    goals = [each[0] for each in courses[OURS]]
    rows, report = [], {}
    for name, each in courses.items():
        last = [found[-1] for found in each]
        figures = {figure: mean([getattr(found, figure) for found in last]) for figure in ("miou", "psnr_db", "depth")}
        times = {
            figure: mean([ratio(found, goal, figure, figure == "depth") for found, goal in zip(each, goals)])
            for figure in figures
        }
        rows.append([name, mean([float(n) for n in taken[name]]), *figures.values(), *times.values()])
        report[name] = {
            "steps": mean([float(n) for n in taken[name]]), **figures,
            "time_ratio": times, "course": [[found.miou, found.psnr_db, found.depth] for found in each[0]],
        }  # fmt: skip
    show_table(
        console, f"{seeds} scenes, {train_s:.0f} s of training each, held-out views; x = times longer than {OURS} to "
        f"what that has after {train_s * SHARES[0]:.1f} s (- = not within the time, or no such output)",
        ["settings", "steps", "mIoU", "PSNR dB", "depth (rel.)", "x mIoU", "x PSNR", "x depth"], rows,
    )  # fmt: skip
    data: dict[str, Any] = {"bench": "peers", "seeds": seeds, "train_s": train_s, "reduction": reduction, **report}
    if semantic_nerf is not None:
        from .peers_foreign import beside

        data["semantic_nerf_code"] = beside(semantic_nerf, console, train_s)
    if as_json:
        console.print(json_line(data), soft_wrap=True, highlight=False, markup=False)
    return 0
