"""TransformBuffer: /tf and /tf_static without tf2, with tf2's rules.

pytransform3d keeps the graph of frames; each edge keeps its own last seconds (`PoseBuffer`).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from pytransform3d.transform_manager import TemporalTransformManager, TimeVaryingTransform

from ..errors import FrameRejected
from .poses import PoseBuffer, TransformMissing, matrix, parts_of, stamp_of

__all__ = ["TransformBuffer", "TransformMissing"]


class _Static(TimeVaryingTransform):
    """An edge that never changes."""

    def __init__(self, T_parent_child: np.ndarray):
        self.T_parent_child = T_parent_child

    def as_matrix(self, query_time: Any) -> np.ndarray:
        return self.T_parent_child

    def check_transforms(self) -> _Static:
        return self


class _Moving(TimeVaryingTransform):
    """An edge that moves, at integer nanoseconds."""

    def __init__(self, poses: PoseBuffer):
        self.poses = poses

    def as_matrix(self, query_time: Any) -> np.ndarray:
        return self.poses.at(query_time)

    def check_transforms(self) -> _Moving:
        return self


class TransformBuffer:
    """Where frames were during the last seconds. Safe to use from several threads.

    Args:
        keep_s: how long moving transforms are remembered.

    Attributes:
        refused: transforms that were not taken, by reason.
    """

    def __init__(self, keep_s: float = 10.0):
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._graph = TemporalTransformManager(check=False)
        self._edges: dict[str, tuple[str, _Static | _Moving]] = {}
        """Parent and motion by child."""
        self.refused: Counter[str] = Counter()
        self.last_error = ""

    def add(self, message: Any, static: bool = False) -> None:
        """Take a tf2_msgs/TFMessage, of /tf_static if `static`. Unusable transforms are counted in `refused`."""
        with self._lock:
            for stamped in message.transforms:
                child, parent = _name(stamped.child_frame_id), _name(stamped.header.frame_id)
                try:
                    t, q = parts_of(stamped.transform.translation, stamped.transform.rotation)
                except FrameRejected as error:
                    self._refuse(error.reason.value, f"{parent!r} -> {child!r}: {error}")
                    continue
                if not child or not parent or self._makes_loop(child, parent):
                    self._refuse("not_a_tree", f"{parent!r} -> {child!r} would make the frames a loop, or has no name")
                elif static:
                    self._connect(child, parent, _Static(matrix(t, q)))
                elif not self._moving(child, parent).add(stamp_of(stamped.header.stamp), t, q):
                    self._refuse("old", f"{parent!r} -> {child!r} is older than {self._keep_s} s: time jumped back?")

    def lookup(self, target: str, source: str, stamp_s: float) -> np.ndarray:
        """T_target_source [4, 4] float64 at a time, interpolated; never waits.

        Raises:
            TransformMissing: which frame or which time is not known, and what to do.
        """
        return self.lookup_ns(target, source, round(stamp_s * 1e9))

    def lookup_ns(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
        """`lookup` at integer nanoseconds."""
        target, source = _name(target), _name(source)
        with self._lock:
            if target == source:
                return np.eye(4)
            for frame in (target, source):
                if frame not in self._graph.nodes:
                    raise TransformMissing(
                        "unknown_frame", frame,
                        f"frame {frame!r} (for {target!r} <- {source!r}) is on neither /tf nor /tf_static; "
                        f"known are: {_listed(self._graph.nodes)}. Start its publisher, or correct the name",
                    )  # fmt: skip
            try:
                T = self._graph.get_transform_at_time(source, target, stamp_ns)
            except KeyError:
                raise TransformMissing(
                    "not_connected", source,
                    f"{target!r} and {source!r} are in two trees, under {self._root(target)!r} and "
                    f"{self._root(source)!r}; publish the transform between these",
                ) from None  # fmt: skip
            return np.array(T)

    def frames(self) -> dict[str, str]:
        """Parent by child."""
        with self._lock:
            return {child: parent for child, (parent, _) in self._edges.items()}

    def clear(self) -> None:
        """Forget what moves (time jumped back); static transforms stay."""
        with self._lock:
            for _, motion in self._edges.values():
                if isinstance(motion, _Moving):
                    motion.poses.clear()

    def _moving(self, child: str, parent: str) -> PoseBuffer:
        known = self._edges.get(child)
        if known is not None and known[0] == parent and isinstance(known[1], _Moving):
            return known[1].poses
        return self._connect(child, parent, _Moving(PoseBuffer(child, keep_s=self._keep_s))).poses

    def _connect(self, child: str, parent: str, motion: Any) -> Any:
        known = self._edges.get(child)
        if known is not None and known[0] != parent:
            self._graph.remove_transform(child, known[0])
        self._edges[child] = (parent, motion)
        self._graph.add_transform(child, parent, motion)
        return motion

    def _makes_loop(self, child: str, parent: str) -> bool:
        known = self._edges.get(child)
        return (known is None or known[0] != parent) and self._root(parent, stop=child) == child

    def _root(self, frame: str, stop: str = "") -> str:
        while frame in self._edges and frame != stop:
            frame = self._edges[frame][0]
        return frame

    def _refuse(self, reason: str, message: str) -> None:
        self.refused[reason] += 1
        self.last_error = message


def _name(frame: str) -> str:
    """Frames as tf2 names them: the leading slash of old drivers is no part of the name."""
    return frame.lstrip("/")


def _listed(names: Iterable[Any], most: int = 20) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"
