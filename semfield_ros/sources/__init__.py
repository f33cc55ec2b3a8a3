"""Where frames come from: a recording on disk in one of the known layouts, a bag, or the simulator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from ..config import FrameConfig
from ..errors import ConfigError, SourceError
from ..frame import Frame
from .layouts import directory_listing
from .recording import Recording, fitted

__all__ = ["Source", "open_source"]


class Source(Protocol):
    """A finite stream of valid frames in the order of their stamps; iterating again starts again.

    Attributes:
        name: what to call it in titles and file names. rate_hz: nominal frames a second.

    `len` is the number of frames at most: unusable ones are left out. Sources over recordings have a `gate`
    (FrameGate) that counts those; sources that know the truth have `class_names`, by semantic id.
    """

    @property
    def name(self) -> str: ...

    @property
    def rate_hz(self) -> float: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...


def open_source(
    uri: str | Path,
    *,
    width: int | None = None,
    height: int | None = None,
    stride: int = 1,
    start: int = 0,
    limit: int | None = None,
    frame_config: FrameConfig | None = None,
) -> Source:
    """The source `uri` names: "simulator", "simulator:SEED", "building", "building:SEED?rooms=N", "bag:PATH" (see
    sources.bag), or a directory or bag.

    The layout of a directory is known by its files, or named: "replica:PATH", "scannet:PATH", "panoptic:PATH",
    "lerf:PATH", "f3rm:PATH", "nerfstudio:PATH", "tum:PATH", "seven_scenes:PATH". "PATH?split=train" and
    "PATH?split=test" are the frames its layout trains and tests with; "PATH?labels=NAME" chooses among its label sets
    (scannet: nyu40, nyu13, scannet20, scannet200; panoptic: m2f, notta, truth).

    Args:
        width, height: size of the frames in pixels; one alone keeps the aspect ratio, none the source's own.
        start, stride, limit: use every `stride`-th frame from `start` on, at most `limit` of them.
        frame_config: what makes a frame of a recording valid.

    Raises:
        SourceError: there is no such source, its layout is not known, or it is malformed or empty.
        ConfigError: an argument is out of range.
    """
    arguments = {"width": width, "height": height, "stride": stride, "start": start, "limit": limit}
    for (name, value), least in zip(arguments.items(), (8, 8, 1, 0, 1)):
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value!r}; allowed: {least} or more")
    if re.split("[:?]", str(uri))[0] == "building":
        return _Excerpt.of(_building(str(uri), width, height), start, stride, limit)
    if str(uri).split(":")[0] == "simulator":
        return _Excerpt.of(_simulator(str(uri), width, height), start, stride, limit)
    if _is_bag(str(uri)):
        from .bag import open_bag

        bag = open_bag(str(uri), width=width, height=height, frame_config=frame_config)
        return _Excerpt.of(bag, start, stride, limit)
    listed = directory_listing(str(uri))
    chosen = listed.shots[start::stride][:limit]
    if not chosen:
        raise SourceError(f"{listed.name} holds {len(listed.shots)} frames; none is left from frame {start} on")
    return Recording(
        listed.name, chosen, width=width, height=height, frame_config=frame_config, class_names=listed.class_names
    )


def _is_bag(uri: str) -> bool:
    """Whether a source's name says bag, or is a bag's folder or file."""
    path = Path(uri).expanduser()
    return uri.startswith("bag:") or (path / "metadata.yaml").is_file() or path.suffix in (".mcap", ".db3")


def _simulator(uri: str, width: int | None, height: int | None) -> Source:
    _, colon, seed = uri.partition(":")
    if colon and not seed.isdecimal():
        raise SourceError(f"source {uri!r} has seed {seed!r}; allowed: simulator or simulator:SEED with a number >= 0")
    from .simulator import Simulator, SimulatorConfig

    default = SimulatorConfig()
    width, height = fitted(default.width, default.height, width, height)
    return Simulator(replace(default, seed=int(seed or default.seed), width=width, height=height))


def _building(uri: str, width: int | None, height: int | None) -> Source:
    """building, building:SEED, building?rooms=N, building:SEED?rooms=N&frames_per_room=M."""
    from .simulator_building import Building, BuildingConfig

    match = re.fullmatch(r"building(?::(\d+))?(?:\?(.*))?", uri)
    pairs = [pair.partition("=") for pair in match[2].split("&")] if match and match[2] else []
    if not match or any(k not in ("rooms", "frames_per_room") or not v.isdecimal() for k, _, v in pairs):
        raise SourceError(f"source {uri!r} is not known; allowed: building:SEED?rooms=N&frames_per_room=M, in numbers")
    default = BuildingConfig()
    width, height = fitted(default.width, default.height, width, height)
    numbers = {k: int(v) for k, _, v in pairs}
    return Building(replace(default, seed=int(match[1] or default.seed), width=width, height=height, **numbers))


class _Excerpt:
    """Every `stride`-th frame of a source from `start` on; everything else is the source's own."""

    def __init__(self, source: Source, frames: range):
        self._source, self._frames = source, frames
        self.name, self.rate_hz = source.name, source.rate_hz / frames.step

    @classmethod
    def of(cls, source: Source, start: int, stride: int, limit: int | None) -> Source:
        """The excerpt, or the source itself where nothing is left out."""
        frames = range(len(source))[start::stride][:limit]
        return source if frames == range(len(source)) else cls(source, frames)

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[Frame]:
        excerpt = getattr(self._source, "excerpt", None)
        if excerpt is not None:  # frames that can be made one by one need not be made to be left out
            return iter(excerpt(self._frames))
        return islice(iter(self._source), self._frames.start, self._frames.stop, self._frames.step)

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)
