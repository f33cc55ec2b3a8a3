"""Any source as a bag of rosbag2, written without ROS."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from rosbags.rosbag2 import Writer
from rosbags.rosbag2.errors import WriterError

from ..errors import SourceError
from ..frame import Frame
from ..messages.recorder import STORAGES, VERSION
from ..messages.stream import frame_messages
from ..messages.types import types


def write_bag(
    source: Iterable[Frame], path: str | Path, storage: Literal["mcap", "sqlite3"] = "mcap", **options: Any
) -> int:
    """Write every frame of a source into a new bag; returns how many.

    Args:
        path: a folder that does not exist yet.
        options: of `frame_messages`: namespace, frames, encodings, pose, labels. Topics become absolute.

    Raises:
        SourceError: the path exists.
    """
    if storage not in STORAGES:
        raise SourceError(f"storage is {storage!r}; allowed: {', '.join(STORAGES)}")
    store, frames = types(), 0
    try:
        with Writer(Path(path).expanduser(), version=VERSION, storage_plugin=STORAGES[storage]) as bag:
            connections: dict[str, Any] = {}
            for frame in source:
                frames += 1
                for topic, (kind, message) in frame_messages(frame, **options).items():
                    if topic not in connections:
                        connections[topic] = bag.add_connection(f"/{topic.lstrip('/')}", kind, typestore=store.store)
                    bag.write(connections[topic], round(frame.stamp_s * 1e9), store.encode(message))
    except WriterError as error:
        raise SourceError(f"bag {path} cannot be written: {error} Choose another folder, or remove it") from error
    return frames
