"""An atlas: one map in many blocks of space, each with a field, a replay, a point map and budgets of its own.

A frame goes to the blocks its surface lies in; those seen lately live in memory and share the training, the others
sleep on disk and are woken when they are seen again. Queries reach all of them (`field.world`). Mapping a frame costs
O(voxels of the blocks it sees), a training step what it costs in one block, however large the building is.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from .config import SemfieldConfig
from .encoders.base import Encoder, Target
from .errors import CheckpointError
from .field.snapshot import Snapshot
from .field.world import Part, WorldSnapshot
from .frame import Frame
from .mapping import Cleared, Mapping, MappingStatus
from .memory.clicks import checked_labels
from .memory.corrections import Correction, check_poses, match_poses
from .memory.cubes import Cell, Cube, cells_of, crossed, surface_shares
from .memory.features import FeatureShape
from .memory.keyframes import Keyframe
from .shelf import Shelf, Sleeper

log = logging.getLogger(__name__)

SHARE = 0.08
"""A frame is for the blocks in which at least this share of its surface lies..."""
PIXELS = 200
"""...and as many pixels of it."""
PRESENT = 0.5
"""Share of the training steps that goes to the blocks seen now; what the others still need shares the rest."""


def block_config(config: SemfieldConfig, cube: Cube) -> SemfieldConfig:
    """The configuration of one block: its workspace is known in advance, so it is never outgrown."""
    extent_m = cube.edge_m + 2 * cube.margin_m
    return replace(config, field=replace(config.field, centre_m=cube.centre_m, extent_m=extent_m))


@dataclass(frozen=True)
class BlockKeyframes:
    """What one frame became: a keyframe in each block that took it."""

    of: dict[Cell, Keyframe]


class Atlas:
    """Many blocks with the verbs of one `Mapping`. Not thread-safe."""

    def __init__(self, config: SemfieldConfig, encoder: Encoder, device: str, shelf: Shelf | None = None):
        assert config.memory.block_m is not None
        self.config, self.encoder, self.device = config, encoder, device
        self.edge_m = config.memory.block_m
        self.shelf = shelf or Shelf(config, encoder, device)
        self.awake: dict[Cell, Mapping] = {}
        """In memory, least recently seen first."""
        self.asleep: dict[Cell, Sleeper] = {}
        self.present: list[Cell] = []
        """The blocks that the last frame lies in."""
        self.counts: Counter[str] = Counter()
        self.stamp_s = float("nan")
        self._shape: FeatureShape | None = None
        self._size: tuple[int, int] | None = None
        self._credit: dict[Cell, float] = {}
        self._last: Mapping | None = None
        self._accepted: tuple[Frame, list[Cell]] | None = None
        self._taken: dict[Cell, tuple[Mapping, int, Snapshot]] = {}
        self._owed: dict[Cell, list[tuple[str, np.ndarray, np.ndarray, float]]] = {}
        """Pose corrections that sleeping blocks still have to follow."""
        self._revision = 0
        self._class_texts: np.ndarray | None = None

    def align(self, texts: np.ndarray | None) -> None:
        """See `Mapping.align`: all blocks."""
        self._class_texts = texts
        for mapping in self.awake.values():
            mapping.align(texts)

    # ---- what there is ---------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """Changes whenever a snapshot would."""
        return self._revision

    @property
    def steps(self) -> int:
        """Training steps taken, in all blocks."""
        return sum(m.steps for m in self.awake.values()) + sum(s.steps for s in self.asleep.values())

    @property
    def can_train(self) -> bool:
        """Whether there is anything in memory to learn from."""
        return any(m.can_train for m in self.awake.values())

    @property
    def settled_steps(self) -> int:
        """Training steps since the last news, of the block in memory that has had the fewest."""
        return min((m.settled_steps for m in self.awake.values() if m.can_train), default=0)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height of the frames it takes; None before the first."""
        return self._size

    @property
    def feature_shape(self) -> FeatureShape | None:
        """Room for features of a keyframe; None before the first."""
        return self._shape

    @property
    def bytes(self) -> int:
        """Allocated for voxels and replay of the blocks in memory, and for what queries keep of the others."""
        return sum(m.bytes for m in self.awake.values()) + self.shelf.bytes

    def remembered(self) -> list[Keyframe]:
        """All keyframes, oldest first; one frame once, whichever blocks took it."""
        found: dict[tuple[str, float], Keyframe] = {}
        for keyframes in [*(m.remembered() for m in self.awake.values()), *(s.keyframes for s in self.asleep.values())]:
            for keyframe in keyframes:
                found.setdefault((keyframe.camera_name, keyframe.stamp_s), keyframe)
        return sorted(found.values(), key=lambda k: k.stamp_s)

    # ---- blocks come and go ----------------------------------------------------------------------------------

    def _seen_in(self, frame: Frame) -> list[Cell]:
        """The cubes a frame's surface lies in, largest share first; as many as may be in memory."""
        memory = self.config.memory
        shares = surface_shares(frame, memory.voxel_size_m, self.edge_m)
        least = max(SHARE, PIXELS / max(1, int((frame.depth_m > 0).sum())))
        cells = [cell for cell, share in shares.items() if share >= least] or list(shares)[:1]
        return cells[: memory.max_active_blocks]

    def _open(self, cells: list[Cell]) -> None:
        """Have these blocks in memory, as the last seen; others go to sleep for them."""
        for cell in reversed(cells):
            mapping = self.awake.pop(cell, None) or self._woken(cell)
            if mapping is None:
                cube = Cube(cell, self.edge_m)
                mapping = Mapping(block_config(self.config, cube), self.encoder.dim, self.device, cube)
            mapping.align(self._class_texts)
            self.awake[cell] = mapping
        while len(self.awake) > self.config.memory.max_active_blocks:
            self._sleep(next(cell for cell in self.awake if cell not in cells))

    def _woken(self, cell: Cell) -> Mapping | None:
        sleeper = self.asleep.pop(cell, None)
        if sleeper is None:
            return None
        self._revision += 1
        mapping = self.shelf.wake(sleeper)
        owed = self._owed.pop(cell, [])
        if mapping is None:
            return None
        # what holds for everything but its sizes may have changed since it was saved
        mapping.config = block_config(self.config, sleeper.cube)
        self.counts["wakes"] += 1
        for correction in owed:
            mapping.correct_poses(*correction)
        return mapping

    def _sleep(self, cell: Cell) -> None:
        mapping = self.awake.pop(cell)
        self._taken.pop(cell, None)
        self._credit.pop(cell, None)
        while mapping.rebuilding:
            mapping.rebuild_some()
        if not mapping.can_train:
            return  # nothing was ever mapped here
        self._revision += 1
        try:
            self.asleep[cell] = self.shelf.put(Cube(cell, self.edge_m), mapping)
            self.counts["sleeps"] += 1
        except CheckpointError as error:
            # bounded memory comes first: what finds no room on disk is forgotten
            self.counts["unwritten"] += 1
            log.error("block %s could not be put to sleep and is forgotten: %s", cell, error)

    def resume(self, image_size: tuple[int, int] | None, feature_shape: FeatureShape | None) -> None:
        """Go on with a saved map's frames: what their sizes were."""
        self._size, self._shape = image_size, feature_shape

    def shelve(self, cell: Cell, path: Path) -> None:
        """Take in a saved block, asleep; one that cannot be read is counted, its space is unknown."""
        try:
            sleeper = self.shelf.adopt(path)
            if sleeper.cube != Cube(cell, self.edge_m):
                raise CheckpointError(f"{path} is of block {sleeper.cube}, not of {Cube(cell, self.edge_m)}")
            self.asleep[cell] = sleeper
        except CheckpointError as error:
            self.shelf.give_up(path, error)
        self._revision += 1

    # ---- what is done with it --------------------------------------------------------------------------------

    def saw(self, frame: Frame) -> None:
        """Count a frame, keyframe or not."""
        self.counts["frames"] += 1
        self.stamp_s = frame.stamp_s

    def accepts(self, frame: Frame) -> bool:
        """Whether a frame shows enough new to become a keyframe of some block; wakes those it lies in."""
        self.present = self._seen_in(frame)
        self._open(self.present)
        cells = [cell for cell in self.present if self.awake[cell].accepts(frame)]
        self._accepted = frame, cells
        return bool(cells)

    def add_keyframe(self, frame: Frame, shape: FeatureShape) -> BlockKeyframes:
        """Remember a frame in the blocks that accept it. Features follow with `add_features`."""
        if self._accepted is None or self._accepted[0] is not frame:
            self.accepts(frame)
        assert self._accepted is not None
        cells = self._accepted[1] or self.present
        self._shape, self._size = shape, (frame.camera.width, frame.camera.height)
        made = {}
        for cell in cells:
            self.awake[cell].saw(frame)
            made[cell] = self.awake[cell].add_keyframe(frame, shape)
        memory = self.config.memory
        for cell, share in crossed(frame, memory.voxel_size_m, self.edge_m).items():
            if share >= SHARE and cell in self.awake and cell not in made:
                # no keyframe there, but what stood in these rays' way is gone
                self.awake[cell].look_through(frame)
        self.counts["keyframes"] += 1
        self._revision += 1
        return BlockKeyframes(made)

    def add_features(self, keyframe: BlockKeyframes, frame: Frame, target: Target) -> None:
        """Attach a frame's feature measurements where it became a keyframe; blocks that sleep by now miss them."""
        for cell, own in keyframe.of.items():
            if cell in self.awake:
                self.awake[cell].add_features(own, frame, target)
            else:
                self.counts["features_missed"] += 1
        self.counts["encoded"] += 1
        self._revision += 1

    def add_teacher(self, keyframe: BlockKeyframes, frame: Frame, name: str, targets: dict[str, Target]) -> None:
        """Attach what a further encoder measured of a frame where it became a keyframe."""
        for cell, own in keyframe.of.items():
            if cell in self.awake:
                self.awake[cell].add_teacher(own, frame, name, targets)
        self._revision += 1

    def add_masks(self, keyframe: BlockKeyframes, frame: Frame, masks: np.ndarray) -> None:
        """Remember 2-D masks of a frame where it became a keyframe."""
        for cell, own in keyframe.of.items():
            if cell in self.awake:
                self.awake[cell].add_masks(own, frame, masks)
        self._revision += 1

    def _next(self) -> Cell | None:
        """Whose turn it is to train: by need, half of it for the blocks seen now. Deterministic."""
        blocks = {cell: m for cell, m in self.awake.items() if m.can_train}
        if not blocks:
            return None
        settle = self.config.train.settle_steps
        need = {c: float(max(0, settle - m.settled_steps)) if settle else 1.0 for c, m in blocks.items()}
        if not any(need.values()):
            need = dict.fromkeys(blocks, 1.0)
        here = [c for c in self.present if need.get(c, 0) > 0]
        total = sum(need.values())
        for cell in blocks:
            due = need[cell] / total
            if here:
                due = (1 - PRESENT) * due + (PRESENT / len(here) if cell in here else 0.0)
            self._credit[cell] = self._credit.get(cell, 0.0) + due
        cell = max(blocks, key=lambda c: self._credit[c])
        self._credit[cell] -= 1
        return cell

    def train_step(self) -> None:
        """One step in one block; nothing before the first keyframe."""
        cell = self._next()
        if cell is not None:
            self._last = self.awake[cell]
            self._last.train_step()
            self._revision += 1

    def correct_poses(
        self, camera_name: str, stamps_s: np.ndarray, poses: np.ndarray, tolerance_s: float = 0.0
    ) -> Correction:
        """Give keyframes of all blocks new poses: see `Mapping.correct_poses`. Sleeping blocks follow one by one
        (`rebuild_some`). Surface that moves into another block by more than the margin is seen anew there.

        Raises:
            QueryError: lengths that disagree, or a pose that is not rigid; nothing is moved then.
        """
        check_poses(stamps_s, poses, tolerance_s, self.config.frame.rigid_tolerance)
        everything = [replace(k, id=i) for i, k in enumerate(self.remembered())]
        _, correction = match_poses(everything, camera_name, stamps_s, poses, tolerance_s)
        for mapping in self.awake.values():
            mapping.correct_poses(camera_name, stamps_s, poses, tolerance_s)
        for cell, sleeper in self.asleep.items():
            if match_poses(sleeper.keyframes, camera_name, stamps_s, poses, tolerance_s)[0]:
                self._owed.setdefault(cell, []).append((camera_name, stamps_s, poses, tolerance_s))
        self.counts["pose_corrections"] += correction.corrected
        self._revision += bool(correction.corrected)
        return correction

    @property
    def rebuilding(self) -> bool:
        """Whether a block still has to follow a pose correction."""
        return bool(self._owed) or any(m.rebuilding for m in self.awake.values())

    def rebuild_some(self) -> None:
        """One more keyframe of a block that is being made anew, or the next sleeping block that has to be."""
        for mapping in self.awake.values():
            if mapping.rebuilding:
                mapping.rebuild_some()
                self._revision += not mapping.rebuilding
                return
        if self._owed:
            self._visit(next(iter(self._owed)))

    def _visit(self, cell: Cell) -> Mapping | None:
        """Wake a block that nobody sees; it is the first to sleep again. None where it cannot be read."""
        mapping = self._woken(cell)
        if mapping is not None:
            while len(self.awake) >= self.config.memory.max_active_blocks:
                self._sleep(next(iter(self.awake)))
            self.awake = {cell: mapping, **self.awake}
        return mapping

    def label(self, points: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """See `Mapping.label`: each point is its block's, sleeping blocks included."""
        at, label = checked_labels(points, classes, self.config.heads.semantic_classes)
        cells = cells_of(at, self.config.memory.voxel_size_m, self.edge_m)
        reached = np.zeros(len(at), bool)
        for cell in [*self.awake, *self.asleep]:
            mine = np.flatnonzero((cells == cell).all(1))
            mapping = (self.awake.get(cell) or self._visit(cell)) if len(mine) else None
            if mapping is not None:
                reached[mine] = mapping.label(at[mine], label[mine])
        self._revision += 1
        return reached

    def clear_region(self, low: np.ndarray, high: np.ndarray) -> Cleared:
        """Forget what is inside an axis-aligned box [3], [3] in global_frame, sleeping blocks included."""
        voxels = rays = 0
        for cell in [*self.awake, *self.asleep]:
            cube = Cube(cell, self.edge_m)
            if (cube.high_m + cube.margin_m < low).any() or (cube.low_m - cube.margin_m > high).any():
                continue
            mapping = self.awake.get(cell) or self._visit(cell)
            if mapping is not None:
                cleared = mapping.clear_region(low, high)
                voxels, rays = voxels + cleared.voxels, rays + cleared.rays
        self._revision += 1
        return Cleared(voxels, rays)

    # ---- what readers get ------------------------------------------------------------------------------------

    def _snapshot_of(self, cell: Cell, mapping: Mapping) -> Snapshot:
        taken = self._taken.get(cell)
        if taken is None or taken[0] is not mapping or taken[1] != mapping.revision:
            taken = self._taken[cell] = mapping, mapping.revision, mapping.snapshot()
        return taken[2]

    def snapshot(self) -> WorldSnapshot:
        """All blocks as one immutable snapshot: copies of those that changed, and where to read the sleeping ones."""
        parts = []
        for cell in sorted([*self.awake, *self.asleep]):
            cube = Cube(cell, self.edge_m)
            if cell in self.awake:
                own = self._snapshot_of(cell, self.awake[cell])
                parts.append(Part(cube.low_m, cube.high_m, own.field is not None, own.language, partial(_same, own)))
            else:
                s = self.asleep[cell]
                parts.append(Part(cube.low_m, cube.high_m, s.has_field, s.language, partial(self.shelf.read, s)))
        return WorldSnapshot(
            parts, stamp_s=self.stamp_s, frames=self.counts["frames"], step=self.steps,
            voxel_size_m=self.config.memory.voxel_size_m,
        )  # fmt: skip

    def status(self) -> MappingStatus:
        """Counters of all blocks; reading the losses waits for the device."""
        report = self._last.last_report if self._last else None
        awake, asleep = self.awake.values(), self.asleep.values()
        return MappingStatus(
            frames=self.counts["frames"],
            # a frame that became a keyframe of two blocks is two
            keyframes=sum(len(m.keyframes or ()) for m in awake) + sum(len(s.keyframes) for s in asleep),
            encoded=self.counts["encoded"],
            steps=self.steps,
            samples=sum(m.samples for m in awake) + sum(s.samples for s in asleep),
            voxels=sum(len(m.points) for m in awake) + sum(s.voxels for s in asleep),
            voxels_forgotten=sum(m.counts["voxels_removed"] for m in awake),
            losses={k: float(v) for k, v in report.losses.items()} if report else None,
            learnt=dict(sum((m.learnt for m in awake), Counter[str]())),
            blocks=len(self.awake) + len(self.asleep),
            awake=len(self.awake),
            wakes=self.counts["wakes"],
            unreadable=self.shelf.unreadable + self.counts["unwritten"],
        )


def _same(snapshot: Snapshot) -> Snapshot:
    return snapshot


AnyMap = Mapping | Atlas


def new_map(config: SemfieldConfig, encoder: Encoder, device: str) -> AnyMap:
    """An empty map: in blocks where `memory.block_m` says so, else one without end."""
    if config.memory.block_m is None:
        return Mapping(config, encoder.dim, device)
    return Atlas(config, encoder, device)
