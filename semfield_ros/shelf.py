"""The shelf: blocks of a map that sleep on disk, woken to be mapped again or read for a query within a byte budget."""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile
import threading
import weakref
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from . import checkpoint
from .config import SemfieldConfig
from .encoders.base import Encoder
from .errors import CheckpointError
from .field.snapshot import Snapshot
from .mapping import Mapping
from .memory.cubes import Cube
from .memory.keyframes import Keyframe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sleeper:
    """A block on disk: its cube and file, and what is known of it without opening that."""

    cube: Cube
    path: Path
    keyframes: tuple[Keyframe, ...]
    voxels: int
    steps: int
    samples: int
    encoded: int
    news_step: int
    has_field: bool
    language: bool
    trusted: bool = True
    """Written by this process: nothing but a waking need check it again."""

    @classmethod
    def of(cls, cube: Cube, path: Path, mapping: Mapping) -> Sleeper:
        """What to remember of a map that was saved there."""
        return cls(
            cube, path, tuple(mapping.remembered()), len(mapping.points), mapping.steps, mapping.samples,
            mapping.counts["encoded"], mapping.news_step, mapping.field is not None, mapping.language_steps > 0,
        )  # fmt: skip


def _bytes(snapshot: Snapshot) -> int:
    cloud = snapshot.cloud
    arrays = (
        cloud.points, cloud.normals, cloud.rgb, cloud.observations, cloud.last_seen_s, snapshot.features,
        snapshot.measured, snapshot.created_step, snapshot.keys,
    )  # fmt: skip
    weights = sum(p.nbytes for p in snapshot.field.parameters()) if snapshot.field is not None else 0
    return sum(array.nbytes for array in arrays) + weights


class Shelf:
    """Files of sleeping blocks, in a folder that is gone with the last who uses it.

    `put` and `wake` belong to the map's thread; `read` may be called from any.
    """

    def __init__(self, config: SemfieldConfig, encoder: Encoder, device: str):
        self.config, self.encoder, self.device = config, encoder, device
        self.budget = int(config.memory.asleep_mb * 2**20)
        self.unreadable = 0
        """Files that could not be read; the space of their blocks is unknown."""
        self._folder: Path | None = None
        self._numbers = count()
        self._written: dict[Cube, list[Path]] = {}
        self._broken: set[Path] = set()
        self._read: dict[Path, Snapshot] = {}
        self._random = random.Random(0)
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        """Made when it is first needed."""
        if self._folder is None:
            parent = self.config.memory.block_folder
            try:
                if parent:
                    Path(parent).mkdir(parents=True, exist_ok=True)
                self._folder = Path(tempfile.mkdtemp(prefix="semfield-blocks-", dir=parent or None))
            except OSError as error:
                raise CheckpointError(f"cannot make a folder for sleeping blocks: {error}; set memory.block_folder") \
                    from error  # fmt: skip
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    @property
    def bytes(self) -> int:
        """Of the blocks that queries keep in memory."""
        with self._lock:
            return sum(_bytes(snapshot) for snapshot in self._read.values())

    @property
    def disk_bytes(self) -> int:
        """Of all files on the shelf."""
        return sum(p.stat().st_size for p in self._folder.iterdir()) if self._folder is not None else 0

    def _place(self, cube: Cube) -> Path:
        x, y, z = cube.cell
        return self.folder / f"{x}_{y}_{z}.{next(self._numbers)}{checkpoint.SUFFIX}"

    def _keep_two(self, cube: Cube, path: Path) -> None:
        """A snapshot made before the block woke may still read the version before this one."""
        versions = self._written.setdefault(cube, [])
        versions.append(path)
        while len(versions) > 2:
            versions.pop(0).unlink(missing_ok=True)

    def put(self, cube: Cube, mapping: Mapping) -> Sleeper:
        """Save a block.

        Raises:
            CheckpointError: it cannot be written.
        """
        path = checkpoint.save(self._place(cube), mapping, self.encoder, durable=False)
        self._keep_two(cube, path)
        return Sleeper.of(cube, path, mapping)

    def adopt(self, path: Path) -> Sleeper:
        """A block that was saved elsewhere: linked here (or copied), so that what happens there matters no more.

        Raises:
            CheckpointError: it is missing, torn, or no block.
        """
        description = checkpoint.describe(path)
        cube = checkpoint.cube_of(description)
        if cube is None:
            raise CheckpointError(f"{path} is a map, but no block of one")
        mine = self._place(cube)
        link(path, mine)
        self._keep_two(cube, mine)
        return Sleeper(
            cube, mine, tuple(checkpoint.keyframes_of(description)), description["voxels"], description["steps"],
            description["samples"], description["counts"].get("encoded", 0), description["steps"],
            "workspace" in description, checkpoint.learnt_of(description).get("language", 0) > 0, trusted=False,
        )  # fmt: skip

    def wake(self, sleeper: Sleeper) -> Mapping | None:
        """The block again, ready to train on; None (counted) where its file cannot be read."""
        with self._lock:
            self._read.pop(sleeper.path, None)
        if sleeper.path in self._broken:
            return None
        try:
            mapping = checkpoint.load(sleeper.path, self.config, self.encoder, self.device)
        except CheckpointError as error:
            self.give_up(sleeper.path, error)
            return None
        mapping.news_step = sleeper.news_step
        return mapping

    def read(self, sleeper: Sleeper) -> Snapshot | None:
        """What readers need of a sleeping block; None (counted once) where its file cannot be read. From any thread."""
        with self._lock:
            if sleeper.path in self._read:
                return self._read[sleeper.path]
            if sleeper.path in self._broken:
                return None
            try:
                snapshot = checkpoint.read_snapshot(
                    sleeper.path, self.config, self.encoder.dim, self.device, check=not sleeper.trusted
                )
            except CheckpointError as error:
                self.give_up(sleeper.path, error)
                return None
            self._read[sleeper.path] = snapshot
            total = sum(_bytes(s) for s in self._read.values())
            while total > self.budget:
                # any of them: questions to the whole map read all blocks in turn, where the longest unread is the next
                path = self._random.choice(list(self._read))
                total -= _bytes(self._read.pop(path))
            return snapshot

    def give_up(self, path: Path, error: CheckpointError) -> None:
        """Count a block's file as lost, once."""
        if path in self._broken:
            return
        self._broken.add(path)
        self.unreadable += 1
        log.error("a sleeping block is lost, its space is unknown until it is seen again: %s", error)


def link(source: Path, target: Path) -> None:
    """The same bytes under another name: a hard link where the file system has them (these files never change).

    Raises:
        CheckpointError: neither linking nor copying works.
    """
    try:
        os.link(source, target)
    except OSError:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise CheckpointError(f"cannot copy {source} to {target}: {error}") from error
