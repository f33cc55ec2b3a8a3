"""tf2_ros behind the Transforms protocol."""

from __future__ import annotations

import numpy as np
import tf2_ros
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

from ..messages.poses import TransformMissing, matrix_of_transform


class RclpyTransforms:
    """Where frames are, from /tf and /tf_static as tf2 keeps them. A jump back in time clears it by itself.

    Args:
        keep_s: how long moving transforms are remembered.
    """

    def __init__(self, node: Node, keep_s: float = 10.0):
        self._node = node
        self._buffer = tf2_ros.Buffer(cache_time=Duration(seconds=keep_s), node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def lookup(self, target: str, source: str, stamp_s: float) -> np.ndarray:
        """T_target_source [4, 4] at a time, interpolated; never waits.

        Raises:
            TransformMissing: which frame or which time is not known, and what to do.
        """
        target, source = target.lstrip("/"), source.lstrip("/")
        # tf2 takes time 0 for "the latest there is".
        stamp = Time(nanoseconds=max(1, round(stamp_s * 1e9)))
        try:
            # Not lookup_transform: that asks can_transform first, which makes a clock each time.
            stamped = self._buffer.lookup_transform_core(target, source, stamp)
        except tf2_ros.TransformException as error:
            raise self._missing(error, target, source, stamp) from error
        return matrix_of_transform(stamped.transform)

    def clear(self) -> None:
        """Forget what moves; static transforms stay."""
        self._buffer.clear()

    def close(self) -> None:
        """Stop listening."""
        self._listener.unregister()
        self._node.destroy_service(self._buffer.srv)
        self._buffer.jump_handle.unregister()

    def _missing(self, error: Exception, target: str, source: str, stamp: Time) -> TransformMissing:
        wanted = f"{target!r} <- {source!r}"
        if isinstance(error, tf2_ros.ConnectivityException):
            return TransformMissing(
                "not_connected", source,
                f"{target!r} and {source!r} are not connected ({error}); publish the transform between their trees",
            )  # fmt: skip
        if isinstance(error, tf2_ros.ExtrapolationException):
            try:
                newest = self._buffer.get_latest_common_time(target, source)
            except tf2_ros.TransformException:
                return TransformMissing("empty", source, f"{wanted}: nothing has come yet since the last time jump")
            if stamp > newest:
                remedy = "it may still come; if it never does, the publisher of a frame between these is behind"
                return TransformMissing("too_late", source, f"{wanted}: {error}; {remedy}")
            remedy = "images older than that cannot be placed: do their stamps come from another clock?"
            return TransformMissing("too_early", source, f"{wanted}: {error}; {remedy}")
        frame = target if f'"{target}" passed' in str(error) or not target else source
        return TransformMissing(
            "unknown_frame", frame,
            f"frame {frame!r} (for {wanted}) is on neither /tf nor /tf_static; start its publisher, or correct "
            "the name",
        )  # fmt: skip
