"""tf frames of an answer, for whoever plans by frame names: objects, and how to grasp the best of each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..config import SemfieldConfig
from ..messages.poses import transform_of
from ..messages.types import types
from ..objects import Object
from ..objects.boxes import unit
from ..wire.bus import LATCHED, Bus, Publisher

MAX_OBJECTS = 20
TF = "tf2_msgs/msg/TFMessage"


def frames_of(things: Sequence[Object], prefix: str, config: SemfieldConfig) -> dict[str, np.ndarray]:
    """T_world_frame [4, 4] by frame name, of the first `MAX_OBJECTS` objects.

    PREFIX/object_0 is the box of the first, PREFIX/grasp_0 its best grasp with ..._pregrasp and ..._retreat, and so on.
    """
    up, found = unit(config.objects.up), {}
    for place, thing in enumerate(things[:MAX_OBJECTS]):
        found[f"{prefix}/object_{place}"] = thing.box.T_world_box
        if thing.grasps:
            best, name = thing.grasps[0], f"{prefix}/grasp_{place}"
            found[name] = best.T_world_gripper
            found[f"{name}_pregrasp"] = best.backed_off(config.grasp.standoff_m)
            found[f"{name}_retreat"] = best.raised(config.grasp.retreat_m, up)
    return found


def frames_message(frames: dict[str, np.ndarray], header: Any) -> Any:
    """tf2_msgs/TFMessage; the parent of all is the frame of `header`."""
    new = types().new
    return new(
        TF,
        transforms=[
            new("geometry_msgs/msg/TransformStamped", header=header, child_frame_id=name, transform=transform_of(T))
            for name, T in frames.items()
        ],
    )


class GraspFrames:
    """Publishes frames on /tf_static when they are asked for, and is not there before. Thread-safe.

    Each answer takes the place of the one before: who comes later sees the newest only. tf2 itself forgets no static
    frame, so who was there keeps those that the newer answer does not have (object_3 when only two are found).
    """

    def __init__(self, bus: Bus, config: Callable[[], SemfieldConfig]):
        self._bus, self._config = bus, config
        self._publisher: Publisher | None = None
        self._lock = threading.Lock()

    def publish(self, things: Sequence[Object], header: Any) -> None:
        """Publish the frames of the objects of an answer, best first."""
        message = frames_message(frames_of(things, self._bus.node_name.lstrip("/"), self._config()), header)
        with self._lock:
            if self._publisher is None:
                self._publisher = self._bus.publisher(TF, "/tf_static", LATCHED)
            self._publisher.publish(message)

    def close(self) -> None:
        """Publish no more. Safe to call twice."""
        with self._lock:
            if self._publisher is not None:
                self._publisher.close()
                self._publisher = None
