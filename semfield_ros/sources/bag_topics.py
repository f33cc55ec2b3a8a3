"""Which topics of a bag make frames: as given, or guessed where there is only one way to read the bag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal
from urllib.parse import parse_qsl

from ..errors import SourceError

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
INFO, TF = "sensor_msgs/msg/CameraInfo", "tf2_msgs/msg/TFMessage"
ODOMETRY, POSE = "nav_msgs/msg/Odometry", "geometry_msgs/msg/PoseStamped"
LABEL_INFO = "vision_msgs/msg/LabelInfo"
_ALLOWED = {
    "rgb": (IMAGE, COMPRESSED), "depth": (IMAGE, COMPRESSED), "info": (INFO,), "pose": (TF, ODOMETRY, POSE),
    "labels": (IMAGE,), "masks": (IMAGE,), "masks_info": (LABEL_INFO,),
}  # fmt: skip
"""Message types by what a topic is for."""
_FRAMES = ("frame", "pose_frame")
_DEPTH_ENCODINGS, _ID_ENCODINGS = ("16UC1", "mono16", "32FC1"), ("8UC1", "32SC1")
_TRANSPORTS = ("/compressed", "/compressedDepth")
POSE_SOURCES: dict[str, Literal["tf", "odometry", "pose"]] = {TF: "tf", ODOMETRY: "odometry", POSE: "pose"}

Peek = Callable[[str], Any]
"""The first message of a topic."""


@dataclass(frozen=True)
class Topics:
    """What is read of a bag: topics ('' = none), and the frames `frame` (global) and `pose_frame` (see AssemblyConfig).

    `pose` is a topic of Odometry or PoseStamped; '' = transforms.
    """

    rgb: str
    depth: str
    info: str
    pose: str
    frame: str
    pose_frame: str = ""
    labels: str = ""
    masks: str = ""
    masks_info: str = ""


@dataclass(frozen=True)
class Tree:
    """The transforms of a bag's first seconds: parent by child, and which children move."""

    parents: Mapping[str, str]
    moving: frozenset[str]

    def chain(self, frame: str) -> list[str]:
        """The frame and all above it."""
        above = [frame]
        while above[-1] in self.parents and len(above) <= len(self.parents):
            above.append(self.parents[above[-1]])
        return above


def parse_query(query: str) -> dict[str, str]:
    """`rgb=/a&depth=/b` as a dict. Raises SourceError on unknown names."""
    wanted = dict(parse_qsl(query))
    allowed = [*_ALLOWED, *_FRAMES]
    unknown = [name for name in wanted if name not in allowed]
    if unknown or bool(query) != bool(wanted):
        raise SourceError(f"{unknown[0] if unknown else query!r} is no setting of a bag; allowed: {', '.join(allowed)}")
    return wanted


def listed(types: Mapping[str, str]) -> str:
    """Topics with their types, a line each."""
    return "\n".join(f"  {topic}: {kind}" for topic, kind in sorted(types.items())) or "  none"


def choose(types: Mapping[str, str], wanted: Mapping[str, str], peek: Peek, tree: Tree) -> Topics:
    """The topics to read, from those of a bag (type by topic).

    Raises:
        SourceError: one is missing, of a wrong type, or there are several; the message lists the topics of the bag and
            says how to name one.
    """
    for use, topic in wanted.items():
        if use not in _FRAMES and types.get(topic) not in _ALLOWED[use]:
            there = f"is {types[topic]}" if topic in types else "is not in the bag"
            close = get_close_matches(topic, types, n=1)
            hint = f" (did you mean {close[0]}?)" if close and topic not in types else ""
            raise SourceError(
                f"{use}={topic} {there}{hint}; expected {' or '.join(_ALLOWED[use])}. The bag has:\n{listed(types)}"
            )
    rgb, depth = _images(types, wanted, peek)
    optical = peek(depth).header.frame_id
    info = wanted.get("info") or _info(types, rgb, peek)
    pose = wanted.get("pose") or _pose(types, optical, tree)
    if types[pose] == TF:
        chain = tree.chain(optical)
        frame = wanted.get("frame") or chain[-1]
        if len(chain) == 1 and wanted.get("frame") != optical:
            raise SourceError(
                f"no transform leads to {optical!r}, the frame of {depth}; transforms are known of: "
                f"{', '.join(sorted(tree.parents)) or 'nothing'}. Record /tf_static too, or name another topic of "
                f"poses as bag:PATH?pose=TOPIC. The bag has:\n{listed(types)}"
            )
    else:
        frame = wanted.get("frame") or peek(pose).header.frame_id or "map"
    extra = {name: wanted.get(name, "") for name in ("pose_frame", "labels", "masks", "masks_info")}
    return Topics(rgb, depth, info, "" if types[pose] == TF else pose, frame, **extra)


def _images(types: Mapping[str, str], wanted: Mapping[str, str], peek: Peek) -> tuple[str, str]:
    roles: dict[str, str] = {}
    frames: dict[str, str] = {}
    for topic, kind in types.items():
        if kind in (IMAGE, COMPRESSED) and topic not in (wanted.get("labels"), wanted.get("masks")):
            first = peek(topic)
            roles[topic], frames[topic] = _role(first), first.header.frame_id
    colours = [wanted["rgb"]] if "rgb" in wanted else _originals(roles, "colour") or _originals(roles, "grey")
    depths = [wanted["depth"]] if "depth" in wanted else _originals(roles, "depth")
    pairs = [(c, d) for c in colours for d in depths if c != d]
    # Registered depth says that it is in the colour camera's frame.
    registered = [(c, d) for c, d in pairs if frames[c] == frames[d]]
    # A bag of our own node also holds what that rendered.
    named = [(c, d) for c, d in registered if _stem(c, "rgb/image") == _stem(d, "depth/image") is not None]
    for choice in (pairs, registered, named):
        if len(choice) == 1:
            return choice[0]
    missing = "colour" if not colours else "depth"
    trouble = (
        f"which images are meant is not clear: colour may be {_or(colours)}, depth {_or(depths)}. Name"
        if colours and depths
        else f"there is no {missing} image in the bag. Record it, or name"
    )
    raise SourceError(f"{trouble} them as bag:PATH?rgb=TOPIC&depth=TOPIC. The bag has:\n{listed(types)}")


def _role(first: Any) -> str:
    """What an image topic is for, by its first message."""
    if not hasattr(first, "encoding"):
        return "depth" if "compressedDepth" in first.format else "colour"
    if first.encoding in _DEPTH_ENCODINGS:
        return "depth"
    if first.encoding in _ID_ENCODINGS:
        return "ids"
    return "grey" if first.encoding == "mono8" else "colour"


def _originals(roles: Mapping[str, str], role: str) -> list[str]:
    """Topics of a role, without compressed copies of others."""
    topics = [topic for topic, its in roles.items() if its == role]
    return [topic for topic in topics if _base(topic) == topic or _base(topic) not in topics]


def _base(topic: str) -> str:
    """The topic of the image that image_transport compressed."""
    for transport in _TRANSPORTS:
        topic = topic.removesuffix(transport)
    return topic


def _stem(topic: str, name: str) -> str | None:
    """What stands before `name`, if the topic is called so."""
    return _base(topic).removesuffix(name) if _base(topic).endswith(name) else None


def _info(types: Mapping[str, str], rgb: str, peek: Peek) -> str:
    infos = [topic for topic, kind in types.items() if kind == INFO]
    sibling = _base(rgb).rpartition("/")[0] + "/camera_info"
    if sibling in infos:
        return sibling
    same_frame = [topic for topic in infos if peek(topic).header.frame_id == peek(rgb).header.frame_id]
    for choice in (infos, same_frame):
        if len(choice) == 1:
            return choice[0]
    found = f"may be {_or(infos)}" if infos else "is not in the bag"
    raise SourceError(f"the CameraInfo of {rgb} {found}. Name it as bag:PATH?info=TOPIC. The bag has:\n{listed(types)}")


def _pose(types: Mapping[str, str], optical: str, tree: Tree) -> str:
    """Transforms if they lead to the camera and move; else the one topic of poses; else transforms that do not move."""
    transforms = next((topic for topic, kind in types.items() if kind == TF), "")
    if any(frame in tree.moving for frame in tree.chain(optical)):
        return transforms
    for wanted in (ODOMETRY, POSE):
        topics = [topic for topic, kind in types.items() if kind == wanted]
        if len(topics) == 1:
            return topics[0]
        if topics:
            raise SourceError(
                f"the poses may be {_or(topics)}. Name them as bag:PATH?pose=TOPIC. The bag has:\n{listed(types)}"
            )
    if not transforms:
        raise SourceError(
            "there are no poses in the bag: no /tf, no nav_msgs/Odometry, no geometry_msgs/PoseStamped. Record one of "
            f"them (a SLAM or odometry node makes them). The bag has:\n{listed(types)}"
        )
    return transforms


def _or(names: Iterable[str]) -> str:
    return " or ".join(sorted(names))
