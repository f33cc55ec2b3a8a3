"""Offline building: recordings, or the blocks of large ones, become saved maps, each job by itself and reproducibly.

A job depends on nothing but its description: same source, settings and steps, same map to the last bit, wherever and
beside whatever it runs. So it may run again when it fails, on another machine as well.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from . import checkpoint
from .atlas import PIXELS, SHARE, Atlas, block_config
from .atlas_files import block_name, folder_of, write_index
from .config import SemfieldConfig
from .encoders import create
from .encoders.base import Encoder
from .errors import ConfigError, SourceError
from .frame import Frame, resized, within_range
from .mapping import Mapping, class_texts, pick_device
from .memory.cubes import Cell, Cube, surface_shares
from .memory.features import FeatureShape
from .sources import Source, open_source

log = logging.getLogger(__name__)
A = TypeVar("A")
B = TypeVar("B")
GENERATION = "built"


@dataclass(frozen=True)
class Recording:
    """What is mapped: a source as `open_source` names it, and how it is read."""

    uri: str
    width: int | None = None
    stride: int = 1
    limit: int | None = None

    def open(self, settings: SemfieldConfig, start: int = 0, count: int | None = None) -> Source:
        """Its frames from number `start` on, at most `count`."""
        limits = [n for n in (count, None if self.limit is None else self.limit - start) if n is not None]
        return open_source(
            self.uri, width=self.width, stride=self.stride, start=start * self.stride,
            limit=min(limits, default=None), frame_config=settings.frame,
        )  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One map to make: of a whole recording, or of one block of it (`cell`, with the stamps of the frames it is in)."""

    recording: Recording
    settings: SemfieldConfig
    steps: int
    out: Path
    cell: Cell | None = None
    stamps_s: tuple[float, ...] = ()
    span: tuple[int, int] = (0, 0)
    """First frame and number of frames between which those stamps lie; 0 frames = anywhere."""


@dataclass(frozen=True)
class Done:
    """What a job made."""

    path: Path
    frames: int
    keyframes: int
    voxels: int
    steps: int
    samples: int
    seconds: float


@dataclass(frozen=True)
class Survey:
    """Which blocks a recording lies in: stamps of each one's frames, and where those are; its frames and their size."""

    cells: dict[Cell, tuple[float, ...]]
    spans: dict[Cell, tuple[int, int]]
    frames: int
    image: tuple[int, int] | None


class Pool(Protocol):
    """Runs the same work on many items."""

    def run(self, work: Callable[[A], B], items: Sequence[A]) -> Iterator[tuple[int, B | Exception]]:
        """Number of an item and its result, or what it failed with; in any order."""
        ...


class Here:
    """One after the other, in this process."""

    def run(self, work: Callable[[A], B], items: Sequence[A]) -> Iterator[tuple[int, B | Exception]]:
        """In order."""
        for number, item in enumerate(items):
            try:
                yield number, work(item)
            except Exception as error:
                yield number, error


def usable(frames: Iterator[Frame], settings: SemfieldConfig) -> Iterator[Frame]:
    """Frames as an engine would take them: at the size of the first, with the depth that is trusted; empty ones out."""
    size: tuple[int, int] | None = None
    for frame in frames:
        frame = within_range(frame, settings.frame)
        size = size or (frame.camera.width, frame.camera.height)
        if (frame.camera.width, frame.camera.height) != size:
            frame = resized(frame, *size)
        if frame.depth_m.any():
            yield frame


def survey(job: Job) -> Survey:
    """One pass over a recording. O(frames x pixels)."""
    memory = job.settings.memory
    assert memory.block_m is not None
    found: dict[Cell, list[float]] = {}
    where: dict[Cell, list[int]] = {}
    count, image = 0, None
    source = job.recording.open(job.settings)
    for frame in usable(iter(source), job.settings):
        image = image or (frame.camera.width, frame.camera.height)
        shares = surface_shares(frame, memory.voxel_size_m, memory.block_m)
        least = max(SHARE, PIXELS / max(1, int((frame.depth_m > 0).sum())))
        for cell in [c for c, share in shares.items() if share >= least] or list(shares)[:1]:
            found.setdefault(cell, []).append(frame.stamp_s)
            where.setdefault(cell, []).append(count)
        count += 1
    # where frames were left out, their numbers in the recording are not known: all of it is read
    whole = count == len(source)
    spans = {cell: (at[0], at[-1] - at[0] + 1) if whole else (0, 0) for cell, at in where.items()}
    return Survey({cell: tuple(stamps) for cell, stamps in found.items()}, spans, count, image)


def perform(job: Job) -> Done:
    """Map and train one job's recording or block, and save it.

    One thread: sums over several come in an order that is not the same twice.

    Raises:
        SemfieldError: the source or its frames are unusable, or the map cannot be written.
    """
    started, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encoder = create(job.settings.encoder)
        mapping, frames = _mapped(job, encoder)
        for _ in range(job.steps):
            mapping.train_step()
        path = checkpoint.save(job.out, mapping, encoder, overwrite=True)
    finally:
        torch.set_num_threads(threads)
    return Done(
        path, frames, len(mapping.remembered()), len(mapping.points), mapping.steps, mapping.samples,
        time.perf_counter() - started,
    )  # fmt: skip


def _mapped(job: Job, encoder: Encoder) -> tuple[Mapping, int]:
    settings, device = job.settings, pick_device(job.settings.engine.device)
    wanted = set(job.stamps_s)
    if job.cell is None:
        mapping = Mapping(settings, encoder.dim, device)
    else:
        assert settings.memory.block_m is not None
        cube = Cube(job.cell, settings.memory.block_m)
        mapping = Mapping(block_config(settings, cube), encoder.dim, device, cube)
    mapping.align(class_texts(settings.heads, encoder))
    count, shape = 0, None
    start, length = job.span
    for frame in usable(iter(job.recording.open(settings, start, length or None)), settings):
        if job.cell is not None and frame.stamp_s not in wanted:
            continue
        count += 1
        mapping.saw(frame)
        if mapping.accepts(frame):
            target = encoder.encode_frame(frame)
            shape = shape or FeatureShape.of(target)
            mapping.add_features(mapping.add_keyframe(frame, shape), frame, target)
    if not count:
        raise SourceError(f"{job.recording.uri} gave no usable frame")
    return mapping, count


@dataclass
class Report:
    """What was built: maps by recording, jobs done, attempts that failed and were repeated, jobs given up."""

    maps: list[Path]
    done: list[Done]
    repeated: int
    failed: list[tuple[Job, Exception]]


def insist(
    pool: Pool, work: Callable[[A], B], items: Sequence[A], retries: int, tell: Callable[[int], None]
) -> tuple[dict[int, B], dict[int, Exception], int]:
    """Run all items; what fails runs again, `retries` times at most.

    Returns:
        results and last errors by number, and how many attempts were repeated. `tell` hears of each that is settled.
    """
    results: dict[int, B] = {}
    failed: dict[int, Exception] = {}
    repeated, left = 0, list(range(len(items)))
    for attempt in range(retries + 1):
        repeated += len(left) if attempt else 0
        failed = {}
        for at, outcome in pool.run(work, [items[i] for i in left]):
            number = left[at]
            if isinstance(outcome, Exception):
                failed[number] = outcome
                log.warning("job %d of %d failed (attempt %d): %s", number + 1, len(items), attempt + 1, outcome)
                if attempt == retries:
                    tell(number)
            else:
                results[number] = outcome
                tell(number)
        left = sorted(failed)
        if not left:
            break
    return results, failed, repeated


def names_of(recordings: Sequence[Recording]) -> list[str]:
    """A file name for each: the last part of its path, made different where two are the same."""
    names: list[str] = []
    for recording in recordings:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", recording.uri.rstrip("/").split("/")[-1]).strip("_") or "map"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


def build(
    recordings: Sequence[Recording],
    settings: SemfieldConfig,
    out: Path,
    *,
    steps: int,
    pool: Pool | None = None,
    retries: int = 2,
    overwrite: bool = False,
    tell: Callable[[str, int, int], None] = lambda phase, done, total: None,
    work: Callable[[Job], Done] = perform,
) -> Report:
    """A map of each recording in the folder `out`; with `memory.block_m`, in blocks that are jobs of their own.

    Args:
        steps: of training, a job. pool: where jobs run (None = here). retries: of a job that fails.
        tell: called with a phase, the jobs settled in it and all of its jobs. work: what a job does.

    Raises:
        ConfigError: unusable arguments, or a map that exists already.
    """
    if not recordings:
        raise ConfigError("nothing to build; name at least one source")
    if steps < 0 or retries < 0:
        raise ConfigError(f"steps is {steps} and retries {retries}; allowed: >= 0")
    pool = pool or Here()
    paths = [out / (name + checkpoint.SUFFIX) for name in names_of(recordings)]
    for path in paths:
        checkpoint.checked_path(path, overwrite)
    whole = [Job(recording, settings, steps, path) for recording, path in zip(recordings, paths)]
    if settings.memory.block_m is None:
        jobs, repeated = whole, 0
        surveys: dict[int, Survey] = {}
        lost: dict[int, tuple[Job, Exception]] = {}
    else:
        jobs, surveys, lost, repeated = _divided(whole, pool, retries, tell)

    settled = 0

    def count(_: int) -> None:
        nonlocal settled
        settled += 1
        tell("maps", settled, len(jobs))

    tell("maps", 0, len(jobs))
    results, failed, again = insist(pool, work, jobs, retries, count)
    report = Report([], [results[k] for k in sorted(results)], repeated + again, list(lost.values()))
    report.failed += [(jobs[k], error) for k, error in sorted(failed.items())]
    if settings.memory.block_m is None:
        report.maps = [done.path for done in report.done]
    else:
        for number, found in sorted(surveys.items()):
            mine = {jobs[k].cell: done for k, done in results.items() if jobs[k].recording is recordings[number]}
            if mine:
                report.maps.append(_index(whole[number], found, mine))
    return report


def _divided(
    whole: Sequence[Job], pool: Pool, retries: int, tell: Callable[[str, int, int], None]
) -> tuple[list[Job], dict[int, Survey], dict[int, tuple[Job, Exception]], int]:
    """The jobs of all blocks, surveys and failures by number of the recording, and repeated attempts."""
    settled = 0

    def count(_: int) -> None:
        nonlocal settled
        settled += 1
        tell("surveys", settled, len(whole))

    surveys, failed, repeated = insist(pool, survey, whole, retries, count)
    jobs = [
        replace(
            whole[number], out=folder_of(whole[number].out) / GENERATION / block_name(cell), cell=cell,
            stamps_s=stamps, span=found.spans[cell],
        )
        for number, found in sorted(surveys.items())
        for cell, stamps in sorted(found.cells.items())
    ]  # fmt: skip
    return jobs, surveys, {n: (whole[n], error) for n, error in failed.items()}, repeated


def _index(job: Job, found: Survey, made: dict[Cell | None, Done]) -> Path:
    """The file that makes a recording's blocks one map."""
    encoder = create(job.settings.encoder)
    atlas = Atlas(job.settings, encoder, "cpu")
    atlas.counts.update(frames=found.frames, keyframes=sum(done.keyframes for done in made.values()))
    cells = sorted(cell for cell in made if cell is not None)
    last = max(max(stamps) for stamps in found.cells.values())
    atlas.stamp_s = last
    first = checkpoint.describe(made[cells[0]].path)
    atlas.resume(found.image, checkpoint.shape_of(first))
    totals = {
        "steps": sum(d.steps for d in made.values()), "samples": sum(d.samples for d in made.values()),
        "voxels": sum(d.voxels for d in made.values()),
    }  # fmt: skip
    return write_index(job.out, atlas, encoder, GENERATION, cells, totals)
