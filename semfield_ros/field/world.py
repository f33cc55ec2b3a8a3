"""A map in several blocks of space, read as one: a Snapshot that is put together only where somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from ..cloud import SurfaceCloud
from ..memory.free_space import SeenSpace
from ..memory.mask_store import MaskView
from .model import Field
from .snapshot import Block, Snapshot


@dataclass(frozen=True)
class Part:
    """One block: its corners [3] in global_frame, what it can answer with, and how to read it.

    `read` gives the block's own snapshot, or None where it cannot be read: its space is then unknown. It may be slow
    (a file) and is called again each time; whoever provides it keeps what is asked often.
    """

    low_m: np.ndarray
    high_m: np.ndarray
    has_field: bool
    language: bool
    read: Callable[[], Snapshot | None]


class FeatureRows:
    """Features [N, D] of all blocks, read for the rows that are asked for: `features[rows]`, rows or mask [N]."""

    def __init__(self, world: WorldSnapshot):
        self._world = world

    @property
    def shape(self) -> tuple[int, int]:
        """N and D; D is 0 while there are no points."""
        width = next((block.snapshot.features.shape[1] for block in self._world.blocks()), 0)
        return len(self._world.cloud), width

    def __len__(self) -> int:
        return len(self._world.cloud)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        out: np.ndarray | None = None
        for number, mine in self._world.split(rows):
            part = self._world.parts[number].read()
            if part is not None:
                if out is None:
                    out = np.zeros((len(rows), part.features.shape[1]), part.features.dtype)
                out[mine] = part.features[rows[mine] - self._world.offsets[number]]
        return np.zeros((len(rows), self.shape[1]), np.float16) if out is None else out


class WorldSnapshot(Snapshot):
    """A snapshot of blocks that partition space. Its rows are those of its parts, one after the other.

    Whole arrays (`cloud`, `measured`, ...) cost O(points) on first use and are kept; features are read row by row.
    `field` is only some block's: scores and views go through `blocks`.
    """

    def __init__(self, parts: Sequence[Part], *, stamp_s: float, frames: int, step: int, voxel_size_m: float):
        # past the frozen dataclass: its other fields are properties here
        self.__dict__.update(
            parts=tuple(parts), stamp_s=stamp_s, frames=frames, step=step, voxel_size_m=voxel_size_m,
            language=any(part.language for part in parts),
        )  # fmt: skip

    parts: tuple[Part, ...]

    def __repr__(self) -> str:
        return f"WorldSnapshot({len(self.parts)} blocks, step {self.step})"

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def blocks(self) -> Iterator[Block]:
        """The parts that can be read, one at a time."""
        for part in self.parts:
            snapshot = part.read()
            if snapshot is not None:
                yield Block(snapshot, part.low_m, part.high_m)

    @cached_property
    def _whole(self) -> dict[str, Any]:
        names, columns = [f.name for f in fields(SurfaceCloud)], []
        for part in self.parts:
            snapshot = part.read()
            if snapshot is None:
                empty = SurfaceCloud.empty()
                none = np.zeros(0, bool)
                columns.append((*(getattr(empty, n) for n in names), none, np.zeros(0, np.int64), none))
            else:
                cloud = [getattr(snapshot.cloud, n) for n in names]
                columns.append((*cloud, snapshot.measured, snapshot.created_step, snapshot.trusted))
        lengths = [len(column[0]) for column in columns]
        empty = SurfaceCloud.empty()
        nothing = [*(getattr(empty, n) for n in names), np.zeros(0, bool), np.zeros(0, np.int64), np.zeros(0, bool)]
        joined = [np.concatenate(column) for column in zip(*columns)] if columns else nothing
        return {
            "cloud": SurfaceCloud(**dict(zip(names, joined))),
            "measured": joined[-3], "created_step": joined[-2], "trusted": joined[-1],
            "offsets": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        }  # fmt: skip

    @property
    def cloud(self) -> SurfaceCloud:
        """All N voxels."""
        cloud: SurfaceCloud = self._whole["cloud"]
        return cloud

    @property
    def measured(self) -> np.ndarray:
        """[N] bool."""
        return np.asarray(self._whole["measured"])

    @property
    def created_step(self) -> np.ndarray:
        """[N] int64, in steps of each point's own block."""
        return np.asarray(self._whole["created_step"])

    @property
    def trusted(self) -> np.ndarray:
        """[N] bool, as each point's own block has it."""
        return np.asarray(self._whole["trusted"])

    @property
    def offsets(self) -> np.ndarray:
        """[P + 1] int64: part p has the rows from offsets[p] up to offsets[p + 1]."""
        return np.asarray(self._whole["offsets"])

    @property
    def features(self) -> Any:
        """[N, D] rows to index."""
        return FeatureRows(self)

    @property
    def keys(self) -> np.ndarray:
        """[N] int64, sorted within each part only."""
        found = [block.snapshot.keys for block in self.blocks()]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    @property
    def field(self) -> Field | None:
        """Some block's field, None where there is none: to see whether there is any."""
        for part in self.parts:
            snapshot = part.read() if part.has_field else None
            if snapshot is not None:
                return snapshot.field
        return None

    @property
    def masks(self) -> tuple[MaskView, ...]:
        """Views with masks of all blocks, each once, oldest first."""
        found = {(v.camera_name, v.stamp_s): v for block in self.blocks() for v in block.snapshot.masks}
        return tuple(sorted(found.values(), key=lambda view: view.stamp_s))

    @property
    def seen_space(self) -> SeenSpace:
        """The views of all blocks."""
        return SeenSpace(tuple(view for block in self.blocks() for view in block.snapshot.seen_space.views))

    def split(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Rows [R] of the whole (-1 = none) by part: number of the part, and which of them are its."""
        owner = np.searchsorted(self.offsets, rows, side="right") - 1
        for number in np.unique(owner[rows >= 0]):
            yield int(number), np.flatnonzero((owner == number) & (rows >= 0))

    def _reached(self, points: np.ndarray) -> Iterator[tuple[int, Part, np.ndarray]]:
        """Parts with the points [N, 3] that lie in them or a voxel beside, where a face neighbour may be theirs."""
        if len(points):
            low, high = points.min(0) - 2 * self.voxel_size_m, points.max(0) + 2 * self.voxel_size_m
            for number, part in enumerate(self.parts):
                if (part.high_m >= low).all() and (part.low_m <= high).all():
                    reach = 2 * self.voxel_size_m
                    near = ((points >= part.low_m - reach) & (points <= part.high_m + reach)).all(1)
                    if near.any():
                        yield number, part, np.flatnonzero(near)

    def find(self, points: np.ndarray) -> np.ndarray:
        """Rows [N] of the whole; see `Snapshot.find`."""
        rows = np.full(len(points), -1)
        for number, part, near in self._reached(points):
            snapshot = part.read()
            todo = near[rows[near] < 0]
            if snapshot is not None and len(todo):
                found = snapshot.find(points[todo])
                rows[todo] = np.where(found >= 0, found + self.offsets[number], -1)
        return rows

    def nothing(self) -> Snapshot:
        """A snapshot of the same instant without any point."""
        return Snapshot(
            self.stamp_s, self.frames, self.step, SurfaceCloud.empty(), np.zeros((0, 0), np.float16),
            np.zeros(0, bool), np.zeros(0, np.int64), np.zeros(0, np.int64), self.voxel_size_m, self.field,
            self.language,
        )  # fmt: skip

    def within(self, low: np.ndarray, high: np.ndarray) -> WorldSnapshot:
        """Only the blocks that reach into an axis-aligned box [3], [3]; the others need not be read."""
        low, high = low - self.voxel_size_m, high + self.voxel_size_m
        parts = [p for p in self.parts if (p.high_m >= low).all() and (p.low_m <= high).all()]
        if len(parts) == len(self.parts):
            return self
        return WorldSnapshot(
            parts, stamp_s=self.stamp_s, frames=self.frames, step=self.step, voxel_size_m=self.voxel_size_m
        )
