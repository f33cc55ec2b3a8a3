"""Bags of rosbag2 (mcap or sqlite3) as a source, read without ROS.

`bag:PATH`, a folder with metadata.yaml, or a single .mcap or .db3 file. Topics are guessed where there is one way to
read the bag; otherwise they are named: `bag:PATH?rgb=/a&depth=/b&info=/c&pose=/odom&frame=map`, with pose one of
tf2_msgs/TFMessage, nav_msgs/Odometry and geometry_msgs/PoseStamped. `labels`, `masks` and `masks_info` add label images
and instance masks; `pose_frame` says what PoseStamped is the pose of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import Reader

from ..config import FrameConfig
from ..errors import SemfieldError, SourceError, WireError
from ..frame import Frame, FrameGate, resized
from ..messages.assembly import AssemblyConfig, FrameAssembler
from ..messages.transforms import TransformBuffer
from ..messages.types import types
from .bag_topics import POSE_SOURCES, TF, Topics, Tree, choose, listed, parse_query
from .recording import fitted

SCHEME = "bag:"
_FILES = (".mcap", ".db3")
_PREVIEW_S = 5.0
_PATIENCE_S = 2.0
_WAITING_PAIRS = 120


def open_bag(
    uri: str, *, width: int | None = None, height: int | None = None, frame_config: FrameConfig | None = None
) -> BagSource:
    """The bag that `uri` names, with its topics chosen.

    Raises:
        SourceError: there is no such bag, it is torn, or its topics do not make frames; lists what it has.
    """
    name, _, query = uri.removeprefix(SCHEME).partition("?") if uri.startswith(SCHEME) else (uri, "", "")
    wanted, path = parse_query(query), _located(Path(name).expanduser())
    with _opened(path) as reader:
        kinds = {c.topic: c.msgtype for c in reader.connections if c.msgcount}
        if not kinds:
            raise SourceError(f"bag {path} holds no messages")
        static, first = _transforms(reader, kinds)
        tree = _tree(static, first)
        topics = choose(kinds, wanted, lambda topic: _first(reader, topic), tree)
        counts = {topic: sum(c.msgcount for c in reader.connections if c.topic == topic) for topic in kinds}
        duration_s = max(reader.duration * 1e-9, 1e-9)
    return BagSource(
        path, topics, kinds, counts[topics.depth], counts[topics.depth] / duration_s, width, height, frame_config
    )


class BagSource:
    """A Source over a bag; made by `open_bag`. Unusable images are counted in `gate`; each iteration starts anew.

    Attributes:
        topics: what is read. gate: of the newest iteration.
    """

    def __init__(
        self,
        path: Path,
        topics: Topics,
        kinds: dict[str, str],
        count: int,
        rate_hz: float,
        width: int | None,
        height: int | None,
        frame_config: FrameConfig | None,
    ):
        self.name, self.rate_hz, self.topics = path.stem, rate_hz, topics
        self.gate = FrameGate(frame_config)
        self._path, self._kinds, self._count = path, kinds, count
        self._width, self._height, self._frame_config = width, height, frame_config

    def __len__(self) -> int:
        """Depth images."""
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        topics, transforms = self.topics, TransformBuffer()
        config = AssemblyConfig(
            global_frame=topics.frame,
            labels=bool(topics.labels),
            masks=bool(topics.masks),
            labels_timeout_s=_PATIENCE_S,
            pose_source=POSE_SOURCES[self._kinds[topics.pose]] if topics.pose else "tf",
            pose_frame=topics.pose_frame,
            pose_timeout_s=_PATIENCE_S,
            pending_frames=_WAITING_PAIRS,
        )
        assembler = FrameAssembler(config, transforms.lookup, self._frame_config, transforms.clear)
        self.gate = assembler.gate
        handlers = _handlers(topics, self._kinds, assembler, transforms)
        now_s = 0.0
        with _opened(self._path) as reader:
            # Latched transforms are often recorded once, and late.
            for static in _decoded(reader, [t for t in self._kinds if _is_static(t, self._kinds[t])]):
                transforms.add(static[1], static=True)
            for stamp_ns, topic, message in _raw(reader, list(handlers)):
                try:
                    handlers[topic](types().decode(message, self._kinds[topic]))
                except WireError:
                    assembler.unused[f"malformed {topic}"] += 1
                now_s = stamp_ns * 1e-9
                yield from map(self._sized, assembler.poll(now_s))
        yield from map(self._sized, assembler.finish(now_s))
        if not assembler.frames:
            raise SourceError(
                f"none of the {self._count} depth images of bag {self._path.name} made a frame: "
                f"{dict(assembler.gate.rejected) or dict(assembler.unused)}. {assembler.gate.last_error}"
            )

    def _sized(self, frame: Frame) -> Frame:
        return resized(frame, *fitted(frame.camera.width, frame.camera.height, self._width, self._height))


def _handlers(
    topics: Topics, kinds: dict[str, str], assembler: FrameAssembler, transforms: TransformBuffer
) -> dict[str, Callable[[Any], None]]:
    """What to do with the messages of a topic."""
    (camera,) = assembler.config.cameras
    of_camera = {
        topics.rgb: assembler.colour, topics.depth: assembler.depth, topics.info: assembler.info,
        topics.labels: assembler.labels, topics.masks: assembler.masks, topics.masks_info: assembler.masks_info,
    }  # fmt: skip
    handlers: dict[str, Callable[[Any], None]] = {
        topic: partial(take, camera) for topic, take in of_camera.items() if topic
    }
    for topic, kind in kinds.items():
        if kind == TF and not _is_static(topic, kind):
            handlers[topic] = transforms.add
    if topics.pose:
        handlers[topics.pose] = assembler.odometry if "Odometry" in kinds[topics.pose] else assembler.pose
    return handlers


def _is_static(topic: str, kind: str) -> bool:
    return kind == TF and topic.endswith("_static")


def _located(path: Path) -> Path:
    """What rosbags opens: a folder with metadata.yaml, or a file."""
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        files = [file for file in sorted(path.iterdir()) if file.suffix in _FILES]
        if len(files) == 1:
            return files[0]
        raise SourceError(
            f"folder {path} has no metadata.yaml; expected a bag of rosbag2. "
            + (f"Name one of its {len(files)} files, or run ros2 bag reindex" if files else "It holds no .mcap or .db3")
        )
    if path.is_dir() or (path.is_file() and path.suffix in _FILES):
        return path
    there = f"is no {' or '.join(_FILES)} file" if path.exists() else "does not exist"
    raise SourceError(f"bag {path} {there}; expected a folder with metadata.yaml, or such a file")


@contextmanager
def _opened(path: Path) -> Iterator[Reader]:
    try:
        reader = Reader(path)
        reader.open()
    except Exception as error:  # rosbags lets through whatever a torn file provokes
        raise _torn(path, error) from error
    try:
        yield reader
    finally:
        reader.close()


def _torn(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"bag {path} cannot be read: {type(error).__name__}: {error}. It may be cut off or damaged: try "
        "`ros2 bag reindex`, or `mcap recover` on its files"
    )


def _raw(reader: Reader, topics: list[str], stop_ns: int | None = None) -> Iterator[tuple[int, str, bytes]]:
    """Log stamp, topic and bytes of topics in the order of the bag."""
    connections = [c for c in reader.connections if c.topic in topics]
    if not connections:
        return
    for connection in connections:
        kind, ours = connection.msgtype, connection.msgtype in types()
        if ours and connection.digest and connection.digest != types().hash(kind):
            raise SourceError(f"{connection.topic} was recorded with another definition of {kind} than is known here")
    messages = reader.messages(connections, stop=stop_ns)
    while True:
        try:
            connection, stamp_ns, data = next(messages)
        except StopIteration:
            return
        except Exception as error:  # as in _opened
            raise _torn(Path(str(reader.path)), error) from error
        yield stamp_ns, connection.topic, data


def _decoded(reader: Reader, topics: list[str], stop_ns: int | None = None) -> Iterator[tuple[str, Any]]:
    kinds = {c.topic: c.msgtype for c in reader.connections}
    for _, topic, data in _raw(reader, topics, stop_ns):
        yield topic, types().decode(data, kinds[topic])


def _first(reader: Reader, topic: str) -> Any:
    """The first message of a topic that can be read."""
    try:
        return next(_decoded(reader, [topic]))[1]
    except StopIteration:
        problem: object = "it has none"
    except SourceError:
        raise
    except SemfieldError as error:
        problem = error
    kinds = {c.topic: c.msgtype for c in reader.connections}
    raise SourceError(f"{topic} gives no message: {problem}. The bag has:\n{listed(kinds)}")


def _transforms(reader: Reader, kinds: dict[str, str]) -> tuple[list[Any], list[Any]]:
    """All static transforms, and the moving ones of the first seconds."""
    static = [topic for topic, kind in kinds.items() if _is_static(topic, kind)]
    moving = [topic for topic, kind in kinds.items() if kind == TF and topic not in static]
    stop_ns = reader.start_time + round(_PREVIEW_S * 1e9)
    return [m for _, m in _decoded(reader, static)], [m for _, m in _decoded(reader, moving, stop_ns)]


def _tree(static: list[Any], moving: list[Any]) -> Tree:
    edges = {
        stamped.child_frame_id.lstrip("/"): (stamped.header.frame_id.lstrip("/"), moves)
        for messages, moves in ((static, False), (moving, True))
        for message in messages
        for stamped in message.transforms
    }
    parents = {child: parent for child, (parent, _) in edges.items()}
    return Tree(parents, frozenset(child for child, (_, moves) in edges.items() if moves))
