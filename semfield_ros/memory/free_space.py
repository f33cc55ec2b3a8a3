"""Seen space: which of the space around has been looked through, from small depth images of the remembered keyframes.

A point is seen where some camera measured a surface at its depth or behind it; what no camera looked at, or only at
something nearer, is unknown. A coarse pixel holds the nearest depth under it, so that free space is never claimed for
what was only seen past an edge. Bounded: `BYTES_PER_VIEW` a keyframe, at most `memory.max_keyframes` of them; forgotten
keyframes leave, corrected poses move their views. Views are immutable and shared with snapshots.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..geometry import Camera, invert
from .keyframes import Keyframe

WIDTH = 80
"""Pixels across of the kept images; their height follows."""
BYTES_PER_VIEW = 2 * WIDTH * WIDTH
"""At most, for images no taller than wide: float16 each; 80 x 60 takes 9.6 kB."""
NEAREST_VIEWS = 40
"""Views that are asked about a set of points: those whose cameras are nearest, spread over all that are near."""
WIDE = 1.5
"""Tangent of the widest angle from the middle of an image that is looked at."""
MARGIN_M = 0.02
"""Surface this much behind the measured depth still counts as seen: noise, and the slope inside a coarse pixel."""


@dataclass(frozen=True)
class SpaceView:
    """What one keyframe looked through.

    Attributes:
        keyframe: its id. camera: of the small image. T_world_camera: [4, 4], as last corrected.
        depth_m: [h, w] float16, the nearest z-depth under each pixel; 0 = nothing was measured there.
    """

    keyframe: int
    camera: Camera
    T_world_camera: np.ndarray
    depth_m: np.ndarray


def space_view(keyframe: Keyframe, depth_m: np.ndarray, block_px: int = 1) -> SpaceView:
    """The nearest measured depth in each block of a keyframe's depth image [h, w]. O(pixels).

    Args:
        block_px: `depth_m` has one value for so many pixels of the camera, in both directions.
    """
    height, width = depth_m.shape
    block = max(1, -(-width // WIDTH))
    rows, columns = -(-height // block), -(-width // block)
    padded = np.full((rows * block, columns * block), np.inf, np.float32)
    padded[:height, :width] = np.where(depth_m > 0, depth_m, np.inf)
    blocks = padded.reshape(rows, block, columns, block)
    # a block without half its measurements is an edge or a hole: nothing is claimed there
    known = np.isfinite(blocks).mean((1, 3)) >= 0.5
    depth = np.where(known, blocks.min((1, 3)), 0).astype(np.float16)
    c, px = keyframe.camera, block * block_px
    camera = Camera(columns * px, rows * px, c.fx, c.fy, c.cx, c.cy).resized(columns, rows)
    return SpaceView(keyframe.id, camera, np.array(keyframe.T_world_camera), depth)


@dataclass(frozen=True)
class SeenSpace:
    """The views of a map at one instant; readers may keep it."""

    views: tuple[SpaceView, ...] = ()

    def __len__(self) -> int:
        return len(self.views)

    @property
    def bytes(self) -> int:
        """Held in memory."""
        return sum(view.depth_m.nbytes + 300 for view in self.views)

    def centres(self) -> np.ndarray:
        """[V, 3] where the cameras were, global_frame."""
        return np.array([view.T_world_camera[:3, 3] for view in self.views]).reshape(-1, 3)

    def seeing(self, points: np.ndarray) -> np.ndarray:
        """[V, 3] where the cameras were that measured surface within 2 cm of the middle of points [N, 3], or in front
        of it by no more: the view points of an object."""
        middle = points.mean(0, keepdims=True) if len(points) else np.zeros((0, 3))
        found = []
        for view in self.views if len(points) else ():
            radius = float(np.linalg.norm(points - middle, axis=1).max())
            depth, z = _look(view, middle)
            if depth[0] > 0 and abs(depth[0] - z[0]) <= radius + MARGIN_M:
                found.append(view.T_world_camera[:3, 3])
        return np.array(found).reshape(-1, 3)

    def unknown(self, points: np.ndarray) -> np.ndarray:
        """[N] bool: no remembered camera saw as far as these points [N, 3], nor looked at them. O(N x NEAREST_VIEWS).

        Where nothing at all is remembered all space is unknown.
        """
        hidden = np.ones(len(points), bool)
        if not len(points):
            return hidden
        middle = points.mean(0)
        for view in self._near(middle, float(np.linalg.norm(points - middle, axis=1).max())):
            left = np.flatnonzero(hidden)
            if not len(left):
                break
            depth, z = _look(view, points[left])
            hidden[left[(depth > 0) & (z <= depth + MARGIN_M)]] = False
        return hidden

    def _near(self, middle: np.ndarray, radius_m: float) -> Sequence[SpaceView]:
        """Views to ask about a ball of space: those that look at any of it, evenly thinned."""
        facing = []
        for view in self.views:
            offset = view.T_world_camera[:3, :3].T @ (middle - view.T_world_camera[:3, 3])
            ahead = offset[2] + radius_m
            if ahead > 0 and np.hypot(offset[0], offset[1]) < WIDE * ahead + radius_m:
                facing.append(view)
        if len(facing) > NEAREST_VIEWS:
            facing = [facing[k] for k in np.linspace(0, len(facing) - 1, NEAREST_VIEWS).astype(int)]
        return facing


class FreeSpace:
    """The views that are remembered now. Not thread-safe; `seen` is what readers may keep."""

    def __init__(self) -> None:
        self.seen = SeenSpace()

    def add(self, view: SpaceView, keyframes: Container[int]) -> None:
        """Remember a view, and forget those of other keyframes than these."""
        kept = [v for v in self.seen.views if v.keyframe in keyframes and v.keyframe != view.keyframe]
        self.seen = SeenSpace((*kept, view))

    def replace_poses(self, poses: Iterable[tuple[int, np.ndarray]]) -> None:
        """Move views of keyframes (id, T_world_camera [4, 4])."""
        moved = dict(poses)
        self.seen = SeenSpace(
            tuple(
                replace(v, T_world_camera=np.array(moved[v.keyframe])) if v.keyframe in moved else v
                for v in self.seen.views
            )
        )


def _look(view: SpaceView, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The depth that a view measured towards points [N, 3] (0 = none, or outside the image), and their own z: [N]."""
    T = invert(view.T_world_camera)
    local = points @ T[:3, :3].T + T[:3, 3]
    z, camera = local[:, 2], view.camera
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.rint(camera.fx * local[:, 0] / z + camera.cx)
        v = np.rint(camera.fy * local[:, 1] / z + camera.cy)
        inside = (z > 0) & (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)
    row, column = np.where(inside, v, 0).astype(np.int64), np.where(inside, u, 0).astype(np.int64)
    return np.where(inside, view.depth_m[row, column].astype(np.float64), 0.0), z
