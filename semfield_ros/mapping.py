"""Mapping: the state of one map and the pure order of what happens to it. No threads; the engine adds those."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field

import numpy as np
import torch

from .config import HeadsConfig, LanguageConfig, SemfieldConfig
from .encoders.base import Encoder, Target
from .errors import ConfigError
from .field.hash_grid import choose_backend
from .field.heads import HeadConfig
from .field.model import Field
from .field.objectives import heads_of, objectives_of, teacher_head
from .field.snapshot import Snapshot, take
from .field.trainer import StepReport, Trainer
from .field.workspace import Workspace
from .frame import Frame
from .geometry import back_project
from .memory.clicks import checked_labels, label_surface
from .memory.corrections import Correction, check_poses, match_poses
from .memory.cubes import Cube
from .memory.features import FeatureShape
from .memory.forgetting import forget_voxels
from .memory.free_space import FreeSpace, space_view
from .memory.keyframes import Keyframe, Keyframes
from .memory.mask_store import MaskStore, mask_view, masks_of
from .memory.point_map import PointMap
from .memory.replay import Replay

log = logging.getLogger(__name__)


def colour_head(images: int = 0) -> HeadConfig:
    """Colour: on the geometry grid, seen from a direction, and in one of so many images, each with its own code."""
    return HeadConfig(
        "rgb", 3, grid="geometry", direction=True, layers=2, activation="sigmoid", shapes_geometry=True, images=images
    )


def language_head(dim: int, config: LanguageConfig | None = None) -> HeadConfig:
    """Features of the encoder: on the feature grid, last linear layer after compositing, compared by cosine."""
    config = config or LanguageConfig()
    return HeadConfig(
        "language", dim, grid="feature", layers=config.layers, late_linear=True, unit=config.unit, loss=config.loss,
        weight=config.weight, frequencies=config.frequencies,
    )  # fmt: skip


MAX_EXTENT_M = 12.0
ADOPT_STEPS = 300
"""Poses that are refined while mapping reach the point map this often, in training steps."""
_OUTSIDE = 0.2


def class_texts(config: HeadsConfig, encoder: Encoder) -> np.ndarray | None:
    """Words of the classes [C, D], where features are aligned with them; ConfigError where no class has a name."""
    if not config.align_weight:
        return None
    if not config.class_names:
        raise ConfigError(f"align_weight is {config.align_weight} without class_names; name the classes, or set 0")
    return encoder.encode_text(config.class_names)


def workspace_around(points: np.ndarray, margin: float) -> Workspace:
    """A cube around the middle 96% of points [N, 3], `margin` times as large, at most MAX_EXTENT_M."""
    low, high = np.percentile(points[:: max(1, len(points) // 20000)], [2, 98], axis=0)
    centre = (low + high) / 2
    extent_m = min(MAX_EXTENT_M, max(0.2, float(margin * (high - low).max())))
    return Workspace((float(centre[0]), float(centre[1]), float(centre[2])), extent_m)


def outgrown(workspace: Workspace, points: np.ndarray) -> bool:
    """Whether so much of a map lies outside its workspace that a larger one is worth starting the field again."""
    if workspace.extent_m >= MAX_EXTENT_M:
        return False
    offset = np.abs(points - np.array(workspace.centre_m, np.float32)).max(1)
    return float((offset > workspace.extent_m / 2).mean()) > _OUTSIDE


@dataclass
class MappingStatus:
    """Counters of a map, for progress displays and diagnostics."""

    frames: int = 0
    keyframes: int = 0
    encoded: int = 0
    steps: int = 0
    samples: int = 0
    voxels: int = 0
    voxels_forgotten: int = 0
    """Seen through, hidden behind a change, or over the budget, in this map's life; in blocks, of those in memory."""
    train_s: float = 0.0
    losses: dict[str, float] | None = None
    learnt: dict[str, int] = dataclass_field(default_factory=dict)
    """Steps in which each head was trained; in blocks, of those in memory."""
    blocks: int = 1
    awake: int = 1
    wakes: int = 0
    unreadable: int = 0
    """Blocks of space in all, those in memory, how often one was loaded again, and how many could not be."""


@dataclass(frozen=True)
class Cleared:
    """What was forgotten: voxels of the point map, ray records of the replay."""

    voxels: int
    rays: int


class Mapping:
    """One map being built: keyframes, replay, point map, field and trainer. Not thread-safe.

    With a `cube` it is one block of a larger map: its voxels are that cube's alone, its rays end there or near it.
    """

    def __init__(self, config: SemfieldConfig, feature_dim: int, device: str, cube: Cube | None = None):
        choose_backend(config.field.backend, torch.device(device).type)  # refuses what cannot compute here
        self.config, self.feature_dim, self.device, self.cube = config, feature_dim, device, cube
        self.points = self.empty_points()
        self.masks = MaskStore(config.masks.store_mb * 2**20, config.memory)
        self.free_space = FreeSpace()
        self.keyframes: Keyframes | None = None
        self.replay: Replay | None = None
        self.field: Field | None = None
        self.trainer: Trainer | None = None
        self.counts: Counter[str] = Counter()
        self.stamp_s = float("nan")
        self.samples = 0
        images = config.memory.max_keyframes if config.heads.appearance else 0
        self.heads: dict[str, HeadConfig] = {
            head.name: head
            for head in (
                colour_head(images),
                language_head(feature_dim, config.heads.language),
                *heads_of(config.heads),
            )
        }
        """What the field is to know; teachers add to it when they first say something."""
        self.class_texts: torch.Tensor | None = None
        self.learnt: Counter[str] = Counter()
        """Steps in which each head, or part of it, was trained."""
        self.last_report: StepReport | None = None
        self.rng = np.random.default_rng(config.train.seed)
        self.news_step = 0
        """Training step of the last change of what there is to learn."""
        self._revision = 0
        self._fresh: PointMap | None = None
        self._rebuilt: set[int] = set()

    def empty_points(self, feature_dim: int | None = None) -> PointMap:
        """A point map of this map's kind with nothing in it, for features of another length where one is given."""
        dim = self.feature_dim if feature_dim is None else feature_dim
        return PointMap(self.config.memory, dim, self.cube, self.config.heads.semantic_classes)

    @property
    def steps(self) -> int:
        """Training steps taken."""
        return self.trainer.steps if self.trainer else 0

    @property
    def language_steps(self) -> int:
        """Steps in which features of the main encoder were trained."""
        return self.learnt["language"]

    @property
    def can_train(self) -> bool:
        """Whether there is anything to learn from yet."""
        return self.trainer is not None

    @property
    def settled_steps(self) -> int:
        """Training steps since the last change of what there is to learn."""
        return self.steps - self.news_step

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height of the frames it takes; None before the first."""
        return (self.replay.width, self.replay.height) if self.replay else None

    @property
    def feature_shape(self) -> FeatureShape | None:
        """Room for features of a keyframe; None before the first."""
        return self.replay.language.shape if self.replay else None

    @property
    def bytes(self) -> int:
        """Allocated for voxels and replay."""
        return self.points.bytes + (self.replay.bytes if self.replay else 0)

    def remembered(self) -> list[Keyframe]:
        """All keyframes, oldest first."""
        return list(self.keyframes.items) if self.keyframes else []

    @property
    def revision(self) -> int:
        """Changes whenever a snapshot would."""
        return self._revision

    def begin(self, frame: Frame, shape: FeatureShape) -> None:
        """Allocate replay and field for frames like this one; done by the first keyframe."""
        memory = self.config.memory
        self.replay = Replay(memory, frame.camera.width, frame.camera.height, shape, self.device)
        self.keyframes = Keyframes(memory, self.replay.capacity)
        centre_m, extent_m = self.config.field.centre_m, self.config.field.extent_m
        if centre_m is None or extent_m is None:
            points, _ = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
            if not len(points):
                raise ConfigError(
                    "the first frame has no depth to place the workspace by; set field.centre_m and field.extent_m"
                )
            # one view shows about half a scene
            around = workspace_around(points, 1.8)
            centre_m, extent_m = centre_m or around.centre_m, extent_m or around.extent_m
        workspace = Workspace(centre_m, extent_m)
        self.make_field(workspace)
        log.info(
            "budgets: %d keyframes in %.0f MB of replay, %d voxels in %.0f MB; workspace %.2f m at %s",
            self.replay.capacity, self.replay.bytes / 2**20, memory.max_voxels, self.points.max_bytes / 2**20,
            workspace.extent_m, np.round(workspace.centre_m, 2).tolist(),
        )  # fmt: skip

    def make_field(self, workspace: Workspace) -> None:
        """A fresh field and trainer."""
        self.field = Field(self.config.field, workspace, tuple(self.heads.values())).to(self.device)
        for keyframe in self.remembered():
            self.field.head("rgb").meet(keyframe.slot)
        self.field.class_texts = self.class_texts
        self.trainer = Trainer(self.field, self.config.train, objectives_of(self.config.heads, self.field))

    def align(self, texts: np.ndarray | None) -> None:
        """Draw features at labelled pixels towards these words, unit vectors [C, D] of classes 1 to C, from now on."""
        self.class_texts = None if texts is None else torch.from_numpy(texts).to(self.device)
        if self.field is not None:
            self.field.class_texts = self.class_texts

    def know(self, head: HeadConfig) -> None:
        """Have the field learn one more thing from now on; nothing where it does so already."""
        if head.name in self.heads:
            return
        self.heads[head.name] = head
        if self.field is not None and self.trainer is not None:
            self.field.add_head(head)
            self.trainer.pursue(objectives_of(self.config.heads, self.field))

    def accepts(self, frame: Frame) -> bool:
        """Whether a frame shows enough new to become a keyframe. O(keyframes)."""
        if self.keyframes is None or not len(self.keyframes):
            return True
        memory = self.config.memory
        if self.keyframes.novelty(frame) >= 1:
            return True
        mine = frame if self.cube is None else self.cube.part_of(frame, 0.0)
        if self.points.unseen_fraction(mine) >= memory.min_unseen_fraction:
            return True
        if self.points.unlabelled_fraction(mine) >= memory.min_unseen_fraction:
            self.counts["keyframes_labelled"] += 1
            return True
        change = self.points.change(frame)
        if change:
            self.counts[f"keyframes_{change}"] += 1
        return bool(change)

    def add_keyframe(self, frame: Frame, shape: FeatureShape) -> Keyframe:
        """Remember a frame: its rays, its surface. Features follow with `add_features`."""
        if self.replay is None or self.keyframes is None:
            self.begin(frame, shape)
        assert self.replay is not None and self.keyframes is not None
        keyframe = self.keyframes.admit(frame)
        self.replay.write(keyframe.slot, frame, self.rng)
        if self.field is not None:
            self.field.head("rgb").meet(keyframe.slot)
        if self.cube is not None:
            margin_m = self.cube.margin_m
            self.replay.keep_inside(keyframe.slot, self.cube.low_m - margin_m, self.cube.high_m + margin_m)
        self.counts["keyframes"] += 1
        self.masks.keep(self.keyframes)
        self.free_space.add(space_view(keyframe, frame.depth_m), self.keyframes)
        brought = masks_of(frame)
        if brought is not None:
            self.add_masks(keyframe, frame, *brought)
        self._fuse(frame, keyframe.slot)
        self._follow_scene()
        self.news_step = self.steps
        self._revision += 1
        return keyframe

    def recall_space(self) -> None:
        """Make the views of seen space anew, from what the replay holds: after a checkpoint was loaded."""
        if self.replay is None or self.keyframes is None:
            return
        shape = self.replay.grid_h, self.replay.grid_w
        for keyframe in self.keyframes.items:
            depth = self.replay.depth[keyframe.slot].cpu().numpy().reshape(shape)
            self.free_space.add(space_view(keyframe, depth, self.replay.stride), self.keyframes)

    def look_through(self, frame: Frame) -> None:
        """Only what a frame says of the voxels: those it sees through, and those on its surface. No keyframe."""
        self._fuse(frame, -1)
        self._revision += 1

    def _fuse(self, frame: Frame, slot: int) -> None:
        """Take in a frame's surface; what it contradicts is forgotten by the replay too, or the field would keep it."""
        fusion = self.points.fuse(frame, self.steps)
        self.counts.update(voxels_removed=fusion.removed, voxels_recoloured=len(fusion.recoloured))
        if self.replay is None or not (len(fusion.carved) or len(fusion.recoloured)):
            return
        size_m = self.config.memory.voxel_size_m
        rays = forget_voxels(self.replay, fusion.carved, size_m, spare=slot)
        rgb = self.points.rgb[self.points.rows_of(fusion.recoloured)]
        rays += forget_voxels(self.replay, fusion.recoloured, size_m, rgb, spare=slot)
        self.counts["rays_forgotten"] += rays

    def _follow_scene(self) -> None:
        """Start the field again in a larger workspace when the scene has outgrown it; replay teaches it anew.

        The extent grows by a fifth at least, so this happens a few times in a map's life. O(voxels).
        """
        assert self.field is not None
        if self.config.field.extent_m is not None:
            return
        cloud = self.points.points[self.points.rows]
        if not outgrown(self.field.workspace, cloud):
            return
        workspace = workspace_around(cloud, 1.2)
        if workspace.extent_m < 1.2 * self.field.workspace.extent_m:
            workspace = Workspace(workspace.centre_m, min(MAX_EXTENT_M, 1.2 * self.field.workspace.extent_m))
        log.info("the scene outgrew its workspace; now %.2f m at %s", workspace.extent_m,
                 np.round(workspace.centre_m, 2).tolist())  # fmt: skip
        self.make_field(workspace)
        self.points.created_step[:] = 0
        self.learnt.clear()
        self.counts["workspaces"] += 1

    def add_features(self, keyframe: Keyframe, frame: Frame, target: Target) -> None:
        """Attach a keyframe's feature measurements; ignored when it was dropped meanwhile."""
        assert self.replay is not None and self.keyframes is not None
        if keyframe.id in self.keyframes:
            self.replay.write_target(keyframe.slot, target)
        self.points.fuse_features(frame, target)
        self.counts["encoded"] += 1
        self._revision += 1

    def add_teacher(self, keyframe: Keyframe, frame: Frame, name: str, targets: dict[str, Target]) -> None:
        """Attach what a further encoder measured: each target under its name, of which most encoders have one, their
        own. The field gets a head for it the first time; the point map holds the main encoder's features only."""
        assert self.replay is not None and self.keyframes is not None
        if keyframe.id not in self.keyframes:
            return
        for teacher, target in targets.items():
            self.replay.write_target(keyframe.slot, target, teacher)
        self.know(teacher_head(name, next(iter(targets.values())).values.shape[1], self.config.heads))
        self.counts[f"encoded_{name}"] += 1
        self.news_step = self.steps

    def add_masks(
        self, keyframe: Keyframe, frame: Frame, masks: np.ndarray, names: Sequence[str] = (),
        confidence: Sequence[float] = (),
    ) -> None:  # fmt: skip
        """Remember the 2-D masks of a keyframe, as far as their budget goes: see `memory.mask_store.mask_view`."""
        if self.config.masks.store_mb > 0 and self.keyframes is not None:
            if keyframe.id in self.keyframes:
                self.masks.add(mask_view(keyframe, frame, masks, names, confidence))
                self._revision += 1

    def saw(self, frame: Frame) -> None:
        """Count a frame, keyframe or not."""
        self.counts["frames"] += 1
        self.stamp_s = frame.stamp_s

    def train_step(self) -> None:
        """One step; nothing before the first keyframe."""
        if self.trainer is None or self.replay is None:
            return
        self.last_report = self.trainer.step(self.replay)
        if self.config.heads.refine_poses and self.steps % ADOPT_STEPS == 0:
            self._adopt_refined_poses()
        self.samples += self.last_report.samples
        self.learnt.update(self.last_report.losses.keys())
        self._revision += 1

    def correct_pose(self, keyframe_id: int, T_world_camera: np.ndarray) -> bool:
        """Move a keyframe's rays to a corrected pose; False where it is no longer remembered."""
        if self.keyframes is None or self.replay is None:
            return False
        keyframe = self.keyframes.replace_pose(keyframe_id, T_world_camera)
        if keyframe is not None:
            self.replay.set_pose(keyframe.slot, T_world_camera)
            self.masks.replace_poses([(keyframe.id, T_world_camera)])
            self.free_space.replace_poses([(keyframe.id, T_world_camera)])
        return keyframe is not None

    def correct_poses(
        self, camera_name: str, stamps_s: np.ndarray, poses: np.ndarray, tolerance_s: float = 0.0
    ) -> Correction:
        """Give keyframes new poses: a table edit, since rays are stored in camera coordinates. The field trains on from
        there; the point map is made anew (`rebuild_some`). O(keyframes x stamps).

        Args:
            camera_name: '' = whichever camera took it. stamps_s: [K]. poses: [K, 4, 4] T_world_camera.
            tolerance_s: stamps match within this.

        Raises:
            QueryError: lengths that disagree, or a pose that is not rigid; nothing is moved then.
        """
        check_poses(stamps_s, poses, tolerance_s, self.config.frame.rigid_tolerance)
        moved, correction = match_poses(self.remembered(), camera_name, stamps_s, poses, tolerance_s)
        for keyframe_id, T in moved.items():
            self.correct_pose(keyframe_id, T)
        if moved:
            self._remake_points()
            self.news_step = self.steps
            self.counts["pose_corrections"] += len(moved)
            self._revision += 1
        return correction

    @property
    def rebuilding(self) -> bool:
        """Whether a point map is being made anew."""
        return self._fresh is not None

    def _remake_points(self) -> None:
        self._fresh, self._rebuilt = self.empty_points(), set()

    def _adopt_refined_poses(self) -> None:
        """Make the point map anew where learnt poses have left those it was made with by half a voxel. O(keyframes)."""
        if self._fresh is not None or self.keyframes is None or self.replay is None:
            return
        moved = {}
        for keyframe in list(self.keyframes.items):
            T = self.replay.pose[keyframe.slot].cpu().numpy().astype(np.float64)
            if np.linalg.norm(T[:3, 3] - keyframe.T_world_camera[:3, 3]) > self.config.memory.voxel_size_m / 2:
                if self.keyframes.replace_pose(keyframe.id, T) is not None:
                    moved[keyframe.id] = T
        if moved:
            self.free_space.replace_poses(moved.items())
            self._remake_points()
            self.counts["poses_refined"] += 1
            self._revision += 1

    def rebuild_some(self) -> None:
        """Fuse one more keyframe into the point map that is being made anew; when all are in, it becomes the map.

        Its pixels are those the replay kept of each keyframe. What only forgotten keyframes had seen is forgotten."""
        if self._fresh is None or self.keyframes is None or self.replay is None:
            return
        left = [k for k in self.keyframes.items if k.id not in self._rebuilt]
        if left:
            keyframe = left[0]
            frame, target = self.replay.frame(keyframe.slot, keyframe)
            # as old as the correction: the field has yet to learn where things are now
            self._fresh.fuse(frame, self.steps)
            if target is not None:
                self._fresh.fuse_features(frame, target)
            self._rebuilt.add(keyframe.id)
            return
        self.points, self._fresh = self._fresh, None
        self._revision += 1

    def label(self, points: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Clicks: say what class the surface at points [N, 3] is; it spreads from there while training goes on.

        Returns:
            [N] bool: where a remembered surface lies within two voxels of the point.

        Raises:
            QueryError: unusable points or classes, or a map that learns no labels; nothing is labelled then.
        """
        at, label = checked_labels(points, classes, self.config.heads.semantic_classes)
        if self.replay is None or not len(at):
            return np.zeros(len(at), bool)
        reached = label_surface(self.replay, at, label, 2 * self.config.memory.voxel_size_m)
        self.points.vote(at[reached], label[reached])
        if reached.any():
            self.news_step = self.steps
            self._revision += 1
        return reached

    def clear_region(self, low: np.ndarray, high: np.ndarray) -> Cleared:
        """Forget voxels and ray records inside an axis-aligned box [3], [3] in global_frame. O(voxels + records)."""
        voxels = self.points.clear_region(low, high)
        if self._fresh is not None:
            self._fresh.clear_region(low, high)
        rays = self.replay.clear_region(low, high) if self.replay is not None else 0
        self.news_step = self.steps
        self._revision += 1
        return Cleared(voxels, rays)

    def snapshot(self) -> Snapshot:
        """An immutable copy for readers."""
        return take(
            self.points, self.field, stamp_s=self.stamp_s, frames=self.counts["frames"], step=self.steps,
            language=self.language_steps > 0, learnt=self.learnt, masks=self.masks.views,
            seen_space=self.free_space.seen,
        )  # fmt: skip

    def status(self) -> MappingStatus:
        """Counters; reading the losses waits for the device."""
        report = self.last_report
        return MappingStatus(
            frames=self.counts["frames"],
            keyframes=len(self.keyframes) if self.keyframes else 0,
            encoded=self.counts["encoded"],
            steps=self.steps,
            samples=self.samples,
            voxels=len(self.points),
            voxels_forgotten=self.counts["voxels_removed"],
            losses={k: float(v) for k, v in report.losses.items()} if report else None,
            learnt=dict(self.learnt),
        )


def pick_device(device: str) -> str:
    """`auto` becomes cuda where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
