"""How a frame looks on the wire: the messages of an RGB-D camera with a known pose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ..frame import Frame
from .images import compress_colour, compress_depth, encode_colour, encode_depth, encode_labels, info_of
from .poses import header_of, pose_of, transform_of
from .types import types

Messages = dict[str, tuple[str, Any]]
"""Type and message by topic."""


def frame_messages(
    frame: Frame,
    *,
    namespace: str = "",
    global_frame: str = "map",
    optical_frame: str = "camera_optical_frame",
    depth_encoding: Literal["32FC1", "16UC1"] = "32FC1",
    compressed: bool = False,
    pose: Literal["tf", "odometry", "pose"] = "tf",
    labels: bool = False,
    class_names: Mapping[int, str] | None = None,
    stamp_ns: int | None = None,
) -> Messages:
    """The messages of a frame by topic: relative to the camera's `namespace`, except `/tf`, `odom` and `pose`.

    Args:
        compressed: JPEG on rgb/image/compressed and PNG on depth/image/compressedDepth instead of raw images.
        pose: where it goes: `/tf` (global_frame -> optical_frame), `odom` or `pose`, of the optical frame.
        labels: also `labels/image` of the frame's semantic ids (with `labels/info` of `class_names`), and
            `masks/image` with `masks/info` of its segments, or without names of its instances, as far as it has them.
        stamp_ns: another stamp than the frame's own.
    """
    prefix = f"{namespace.strip('/')}/" if namespace.strip("/") else ""
    if namespace.startswith("/"):
        prefix = f"/{prefix}"
    stamp_ns = round(frame.stamp_s * 1e9) if stamp_ns is None else stamp_ns
    header = header_of(stamp_ns, optical_frame)
    messages: Messages = {}

    def put(topic: str, message: Any) -> None:
        messages[topic] = (message.__msgtype__, message)

    if compressed:
        put(f"{prefix}rgb/image/compressed", compress_colour(frame.rgb, header))
        put(f"{prefix}depth/image/compressedDepth", compress_depth(frame.depth_m, header, depth_encoding))
    else:
        put(f"{prefix}rgb/image", encode_colour(frame.rgb, header))
        put(f"{prefix}depth/image", encode_depth(frame.depth_m, header, depth_encoding))
    put(f"{prefix}rgb/camera_info", info_of(frame.camera, header))
    if labels:
        for topic, ids, names in _label_images(frame, class_names or {}):
            put(f"{prefix}{topic}/image", encode_labels(ids, header))
            if names:
                put(f"{prefix}{topic}/info", label_info(names, header))
    put(*_pose_message(frame.T_world_camera, pose, stamp_ns, global_frame, optical_frame))
    return messages


def _label_images(frame: Frame, class_names: Mapping[int, str]) -> list[tuple[str, np.ndarray, Mapping[int, str]]]:
    images = []
    if frame.semantic is not None:
        images.append(("labels", frame.semantic, class_names))
    if frame.segments is not None:
        images.append(("masks", frame.segments.ids, frame.segments.names))
    elif frame.instance is not None:
        images.append(("masks", frame.instance, {}))
    return images


def _pose_message(T: np.ndarray, kind: str, stamp_ns: int, global_frame: str, optical_frame: str) -> tuple[str, Any]:
    new, header = types().new, header_of(stamp_ns, global_frame)
    if kind == "pose":
        return "pose", new("geometry_msgs/msg/PoseStamped", header=header, pose=pose_of(T))
    if kind == "odometry":
        pose = new("geometry_msgs/msg/PoseWithCovariance", pose=pose_of(T))
        return "odom", new("nav_msgs/msg/Odometry", header=header, child_frame_id=optical_frame, pose=pose)
    stamped = new(
        "geometry_msgs/msg/TransformStamped", header=header, child_frame_id=optical_frame, transform=transform_of(T)
    )
    return "/tf", new("tf2_msgs/msg/TFMessage", transforms=[stamped])


def label_info(names: Mapping[int, str], header: Any) -> Any:
    """vision_msgs/LabelInfo of class names by id."""
    new = types().new
    return new(
        "vision_msgs/msg/LabelInfo",
        header=header,
        class_map=[new("vision_msgs/msg/VisionClass", class_id=int(i), class_name=name) for i, name in names.items()],
    )


def label_names(info: Any) -> dict[int, str]:
    """Class names by id of a vision_msgs/LabelInfo."""
    return {int(entry.class_id): str(entry.class_name) for entry in info.class_map}
