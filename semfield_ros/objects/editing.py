"""Editing: a map in which instances are deleted, extracted, duplicated or moved; nothing of it is trained or changed.

An edited scene is the map and a list of what stands where. Every question about a place is asked where the map learnt
about what stands there now, so clouds, scores and views follow without a new field. What an instance hid has never been
seen: where it was taken away there is a hole, and it says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..cloud import SurfaceCloud
from ..errors import QueryError
from ..field.render import render
from ..field.snapshot import Snapshot
from ..geometry import Camera, image_directions, invert, rigid_error, transform_points
from ..memory.point_map import voxel_keys
from ..query.instances import Instances
from ..query.prompt import EncodedPrompts
from ..query.scores import Scores, checked, score_points

HOPS = 12
"""A ray passes through so many surfaces at most that are not there any more."""


@dataclass(frozen=True)
class Placed:
    """An instance that stands elsewhere: its own id, whose surface it has, and T_new_old [4, 4] from there to here."""

    id: int
    source: int
    T_new_old: np.ndarray


@dataclass(frozen=True)
class EditedView:
    """A view of an edited scene.

    Attributes:
        rgb: [H, W, 3] uint8. depth_m: [H, W] float32 z-depth, 0 = nothing. ids: [H, W] int32, 0 = no instance,
            -1 = nothing there, or never seen (behind what was taken away).
    """

    rgb: np.ndarray
    depth_m: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True)
class EditedScene:
    """A map with edits; each method gives another scene.

    Attributes:
        instances: of the map. removed: ids whose own place is empty now. placed: what stands elsewhere.
        surroundings: whether everything else is still there.
    """

    instances: Instances
    removed: frozenset[int] = frozenset()
    placed: tuple[Placed, ...] = ()
    surroundings: bool = True

    @property
    def snapshot(self) -> Snapshot:
        """The map."""
        return self.instances.snapshot

    def delete(self, instance: int) -> EditedScene:
        """Without an instance; QueryError where there is none."""
        self._source(instance)
        placed = tuple(p for p in self.placed if p.id != instance)
        return replace(self, removed=self.removed | {instance}, placed=placed)

    def extract(self, instance: int) -> EditedScene:
        """An instance alone; QueryError where there is none."""
        source, T = self._source(instance)
        return replace(self, placed=(Placed(instance, source, T),), surroundings=False)

    def move(self, instance: int, T_new_old: np.ndarray) -> EditedScene:
        """An instance moved by a rigid transform of global_frame; QueryError for one that is not, or no instance."""
        source, T = self._source(instance)
        moved = Placed(instance, source, _rigid(T_new_old) @ T)
        return replace(self.delete(instance), placed=(*(p for p in self.placed if p.id != instance), moved))

    def duplicate(self, instance: int, T_new_old: np.ndarray) -> tuple[EditedScene, int]:
        """A second one, moved by a rigid transform, and its id; errors as of `move`."""
        source, T = self._source(instance)
        taken = [int(self.instances.ids.max(initial=0)), *(p.id for p in self.placed)]
        copy = Placed(max(taken) + 1, source, _rigid(T_new_old) @ T)
        return replace(self, placed=(*self.placed, copy)), copy.id

    def _source(self, instance: int) -> tuple[int, np.ndarray]:
        for p in self.placed:
            if p.id == instance:
                return p.source, p.T_new_old
        if instance in self.removed or not self.surroundings:
            raise QueryError(f"instance {instance} was taken out of this scene; edit an earlier one")
        self.instances.rows(instance)
        return instance, np.eye(4)

    def cloud(self) -> tuple[SurfaceCloud, np.ndarray, np.ndarray]:
        """The scene's surface, the row of the map [N] int64 each point is from, and its id [N] int32."""
        base, ids = self.snapshot.cloud, self.instances.ids
        stays = ~np.isin(ids, list(self.removed)) if self.surroundings else np.zeros(len(ids), bool)
        rows, named = [np.flatnonzero(stays)], [ids[stays]]
        points, normals = [base.points[stays]], [base.normals[stays]]
        for p in self.placed:
            mine = self.instances.rows(p.source)
            turn = p.T_new_old.copy()
            turn[:3, 3] = 0
            rows.append(mine)
            named.append(np.full(len(mine), p.id, np.int32))
            points.append(transform_points(p.T_new_old, base.points[mine]))
            normals.append(transform_points(turn, base.normals[mine]))
        at = np.concatenate(rows)
        cloud = replace(base[at], points=np.concatenate(points), normals=np.concatenate(normals))
        return cloud, at, np.concatenate(named)

    def map(self) -> Snapshot:
        """The scene as a map of points that can be asked and searched for objects like any other; it has no field."""
        cloud, rows, _ = self.cloud()
        keys = voxel_keys(cloud.points, self.snapshot.voxel_size_m)
        # what was put there last stands there
        keys, last = np.unique(keys[::-1], return_index=True)
        at = len(rows) - 1 - last
        rows, old = rows[at], self.snapshot
        return replace(
            old, cloud=cloud[at], keys=keys, features=old.features[rows], measured=old.measured[rows],
            created_step=old.created_step[rows], field=None, language=False, learnt={},
            votes=old.votes[rows] if len(old.votes) else old.votes,
        )  # fmt: skip

    def source_of(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the map learnt about what is at points [N, 3] now, [N, 3], and the id there [N] int32: 0 = no instance,
        -1 = nothing is known of the place."""
        points = checked(points)
        at, ids = points.copy(), np.full(len(points), -1, np.int32)
        if self.surroundings:
            found = self._ids(points)
            ids = np.where(np.isin(found, list(self.removed)), -1, found).astype(np.int32)
        for p in self.placed:
            back = transform_points(invert(p.T_new_old), points)
            mine = self._ids(back) == p.source
            at[mine], ids[mine] = back[mine], p.id
        return at, ids

    def score(self, texts: EncodedPrompts, points: np.ndarray, **options: Any) -> Scores:
        """`query.scores.score_points` of the edited scene at points [N, 3]."""
        at, ids = self.source_of(points)
        found = score_points(self.snapshot, texts, at, **options)
        gone = ids < 0
        cosine, relevancy = (np.where(gone[:, None], 0, a).astype(np.float32) for a in (found.cosine, found.relevancy))
        return Scores(cosine, relevancy, found.seen & ~gone, found.from_field & ~gone)

    def _ids(self, points: np.ndarray) -> np.ndarray:
        rows = self.snapshot.rows_of(points)
        return np.where(rows >= 0, self.instances.ids[np.maximum(rows, 0)], -1)

    def view(self, camera: Camera, T_world_camera: np.ndarray, *, far_m: float = 6.0) -> EditedView:
        """The scene from a pose (OpenCV optical axes). O(pixels x (1 + placed + surfaces taken away)).

        Raises:
            QueryError: there is no field yet.
        """
        if self.snapshot.field is None:
            raise QueryError("there is no field to render yet; feed frames first")
        T = np.asarray(T_world_camera, np.float64)
        rays = image_directions(camera).reshape(-1, 3).astype(np.float64) @ T[:3, :3].T
        best = _Hits(len(rays))
        if self.surroundings:
            boxes = {i: self._box(i) for i in self.removed if (self.instances.ids == i).any()}

            def beyond(o: np.ndarray, d: np.ndarray, z: np.ndarray, ids: np.ndarray) -> np.ndarray:
                out = z.copy()
                for i, (low, high) in boxes.items():
                    mine = ids == i
                    out[mine] = np.maximum(_through(o[mine], d[mine], low, high)[1], z[mine] + self._hop)
                return out

            origins = np.broadcast_to(T[:3, 3], rays.shape)
            gone = list(self.removed)
            found = self._march(origins, rays, np.zeros(len(rays)), far_m, lambda ids: ~np.isin(ids, gone), beyond)
            best.add(np.arange(len(rays)), *found)
        for p in self.placed:
            back = invert(p.T_new_old)
            origin, turned = transform_points(back, T[:3, 3]), rays @ back[:3, :3].T
            enters, leaves = _through(np.broadcast_to(origin, rays.shape), turned, *self._box(p.source))
            rows = np.flatnonzero((leaves > enters) & (leaves > 0))
            z, rgb, ids = self._march(
                np.broadcast_to(origin, rays.shape)[rows], turned[rows], np.maximum(enters[rows], 0), far_m,
                partial(np.equal, p.source), lambda o, d, z, ids: z + self._hop, leaves[rows],
            )  # fmt: skip
            best.add(rows, z, rgb, np.where(ids == p.source, p.id, -1))
        shape = (camera.height, camera.width)
        rgb = np.rint(255 * np.clip(best.rgb, 0, 1)).astype(np.uint8)
        return EditedView(rgb.reshape(*shape, 3), best.depth.astype(np.float32).reshape(shape), best.ids.reshape(shape))

    @property
    def _hop(self) -> float:
        return 2 * self.snapshot.voxel_size_m

    def _box(self, instance: int) -> tuple[np.ndarray, np.ndarray]:
        points = self.snapshot.cloud.points[self.instances.rows(instance)]
        margin = self.snapshot.voxel_size_m
        return points.min(0) - margin, points.max(0) + margin

    def _march(
        self, origins: np.ndarray, rays: np.ndarray, start: np.ndarray, far_m: float,
        wanted: Callable[[np.ndarray], np.ndarray],
        beyond: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray], end: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """z-depth [R] (0 = none), colour [R, 3] and map id [R] of the first wanted surface of each ray; `beyond` says
        where a ray goes on that has met another one."""
        field = self.snapshot.field
        assert field is not None
        device = next(field.parameters()).device
        depth, rgb, ids = np.zeros(len(rays)), np.zeros((len(rays), 3)), np.full(len(rays), -1, np.int64)
        z, active = start.astype(np.float64), np.arange(len(rays))
        for _ in range(HOPS):
            if not len(active):
                break
            o = origins[active] + rays[active] * z[active, None]
            out = render(
                field, torch.from_numpy(o.astype(np.float32)).to(device),
                torch.from_numpy(rays[active].astype(np.float32)).to(device), ("rgb",), near_m=1e-3, far_m=far_m,
            )  # fmt: skip
            step = out.depth.cpu().numpy().astype(np.float64)
            hit = step > 0
            at = z[active] + step
            hit &= at < (far_m if end is None else end[active] + self._hop)
            active, at, colour = active[hit], at[hit], out.outputs["rgb"].cpu().numpy()[hit]
            found = self._ids((origins[active] + rays[active] * at[:, None]).astype(np.float32))
            good = wanted(found)
            depth[active[good]], rgb[active[good]], ids[active[good]] = at[good], colour[good], found[good]
            left = active[~good]
            z[left] = beyond(origins[left], rays[left], at[~good], found[~good])
            active = left
        return depth, rgb, ids


class _Hits:
    """The nearest of what several marches met, by ray."""

    def __init__(self, rays: int):
        self.depth, self.rgb, self.ids = np.zeros(rays), np.zeros((rays, 3)), np.full(rays, -1, np.int32)

    def add(self, rows: np.ndarray, depth: np.ndarray, rgb: np.ndarray, ids: np.ndarray) -> None:
        nearer = (depth > 0) & ((self.depth[rows] == 0) | (depth < self.depth[rows]))
        at = rows[nearer]
        self.depth[at], self.rgb[at], self.ids[at] = depth[nearer], rgb[nearer], ids[nearer]


def _through(
    origins: np.ndarray, rays: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """z-depths [R] at which rays enter and leave an axis-aligned box (enter > leave = they miss it)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (low - origins) / rays, (high - origins) / rays
    enters, leaves = np.fmin(a, b).max(1), np.fmax(a, b).min(1)
    return enters, leaves


def _rigid(T: np.ndarray) -> np.ndarray:
    T = np.asarray(T, np.float64)
    if T.shape != (4, 4) or not np.isfinite(T).all() or rigid_error(T) > 1e-3:
        raise QueryError(f"a move is a rigid transform [4, 4] without scale; got shape {T.shape}, {T.tolist()}")
    return T
