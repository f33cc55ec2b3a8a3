"""Instances of a snapshot: which thing each map point, point and pixel belongs to, under ids that last.

The head says slot or embedding; what is alike there and hangs together in space is one instance. Ids belong to places:
`InstanceIds` gives the instances of the next snapshot the ids of those they overlap, whatever the head calls them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..errors import QueryError
from ..field.instances import EMBEDDING, SLOTS
from ..field.model import Field
from ..field.render import render
from ..field.snapshot import Snapshot
from ..field.world import WorldSnapshot
from ..geometry import Camera, back_project, image_directions
from ..memory.point_map import voxel_keys
from .pieces import APART_M, MIN_POINTS, joined, matched, pieces
from .scores import checked
from .view import render_view

Clustering = Literal["hdbscan", "mean_shift"]
SAMPLE = 8000
"""Points whose embeddings are clustered; the others join the nearest cluster."""
BANDWIDTH = 0.15
"""Of mean shift (Contrastive Lift)."""
_NOT_YET = "the field has not learnt instances yet; feed frames with instances or segments, and train"
RIM = 0.5
"""Clusters nearer than this are one: the loss draws together what is nearer than 1 or so."""


@dataclass(frozen=True)
class Instances:
    """The instances of a snapshot.

    Attributes:
        ids: [N] int32 of the map's points, 0 = no instance. label: [N] int64 what the head says there, 0 = stuff; of a
            map in blocks, whose heads have each their own labels, that is the id.
        centres: [K, D] centre of each label in embedding space, the origin first; None where labels are slots.
    """

    snapshot: Snapshot
    ids: np.ndarray
    label: np.ndarray
    centres: np.ndarray | None

    def rows(self, instance: int) -> np.ndarray:
        """Rows of the map's points that belong to an instance; QueryError where there is none of that id."""
        rows = np.flatnonzero(self.ids == instance) if instance > 0 else np.zeros(0, np.int64)
        if not len(rows):
            known = np.unique(self.ids[self.ids > 0]).tolist()
            raise QueryError(f"there is no instance {instance}; there are {known}")
        return rows

    @cached_property
    def _places(self) -> dict[int, tuple[np.ndarray, cKDTree | None]]:
        """Ids by label; where one label has several, what tells them apart by place."""
        found: dict[int, tuple[np.ndarray, cKDTree | None]] = {}
        for label in np.unique(self.label[self.ids > 0]).tolist():
            rows = np.flatnonzero((self.label == label) & (self.ids > 0))
            ids = self.ids[rows]
            single = (ids == ids[0]).all()
            found[label] = (ids[:1], None) if single else (ids, cKDTree(self.snapshot.cloud.points[rows]))
        return found

    def named(self, label: np.ndarray, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Ids [n] int32 of labels [n] at points [n, 3] in voxels `rows` [n] (-1 = in none): the voxel's where it has
        the label, else the id of the nearest that has it."""
        agrees = (rows >= 0) & (self.label[np.maximum(rows, 0)] == label) if len(self.label) else rows < -1
        ids = np.where(agrees, self.ids[np.maximum(rows, 0)] if len(self.ids) else 0, 0).astype(np.int32)
        for value, (names, tree) in self._places.items():
            at = np.flatnonzero((label == value) & ~agrees)
            if len(at):
                ids[at] = names[0] if tree is None else names[tree.query(points[at])[1]]
        return ids

    def at(self, points: np.ndarray) -> np.ndarray:
        """Ids [n] int32 at points [n, 3] in global_frame: 0 = no instance, -1 = unseen."""
        points = checked(points)
        rows = self.snapshot.rows_of(points)
        seen = rows >= 0
        ids = np.full(len(points), -1, np.int32)
        if isinstance(self.snapshot, WorldSnapshot):
            ids[seen] = self.ids[rows[seen]]
            return ids
        label = labels_of(head_values(_field(self.snapshot), points[seen]), self.centres)
        ids[seen] = self.named(label, points[seen], rows[seen])
        return ids

    def view(self, camera: Camera, T_world_camera: np.ndarray, *, far_m: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
        """Ids [H, W] int32 (0 = no instance, -1 = nothing there) and z-depth [H, W] as seen from a pose: the head's
        outputs are composited before they are read (of a map in blocks, voxels are read where rays end)."""
        if isinstance(self.snapshot, WorldSnapshot):
            depth_m = render_view(self.snapshot, camera, T_world_camera, far_m=far_m).depth_m
            points, pixel = back_project(camera, T_world_camera, depth_m)
            image = np.full(depth_m.size, -1, np.int32)
            image[pixel] = self.at(points)
            return image.reshape(depth_m.shape), depth_m
        field = _field(self.snapshot)
        device = next(field.parameters()).device
        T = np.asarray(T_world_camera, np.float32)
        local = image_directions(camera).reshape(-1, 3)
        rays = torch.from_numpy(np.ascontiguousarray(local @ T[:3, :3].T)).to(device)
        origins = torch.from_numpy(T[:3, 3].copy()).to(device).expand_as(rays)
        name = head_of(field)
        out = render(field, origins, rays, (name,), far_m=far_m)
        depth = out.depth.cpu().numpy()
        hit = np.flatnonzero(depth > 0)
        ids = np.full(len(depth), -1, np.int32)
        points = (origins + rays * out.depth[:, None]).cpu().numpy()[hit]
        label = labels_of(out.outputs[name].cpu().numpy()[hit], self.centres)
        ids[hit] = self.named(label, points, self.snapshot.rows_of(points))
        return ids.reshape(camera.height, camera.width), depth.reshape(camera.height, camera.width)


def head_of(field: Field) -> str:
    """The instance head of a field; QueryError where it has none."""
    for name in (SLOTS, EMBEDDING):
        if name in field.heads:
            return name
    raise QueryError("this map learns no instances; set heads.instances to slots or embedding")


def learns(snapshot: Snapshot) -> bool:
    """Whether a map (of one piece) knows of instances yet."""
    return snapshot.field is not None and any(snapshot.learnt.get(name) for name in (SLOTS, EMBEDDING))


def _field(snapshot: Snapshot) -> Field:
    if snapshot.field is None or not (head_of(snapshot.field) and learns(snapshot)):
        raise QueryError(_NOT_YET)
    return snapshot.field


@torch.no_grad()
def head_values(field: Field, points: np.ndarray, chunk: int = 65536) -> np.ndarray:
    """What the instance head says at points [N, 3]: logits of slots [N, S] or embeddings [N, D]; any chunk agrees."""
    head = field.head(head_of(field))
    device, parts = head.last.weight.device, []
    for start in range(0, len(points), chunk):
        x = torch.from_numpy(np.ascontiguousarray(points[start : start + chunk], np.float32)).to(device)
        parts.append(field.values(head.config.name, x).cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, head.config.out_dim), np.float32)


def labels_of(values: np.ndarray, centres: np.ndarray | None) -> np.ndarray:
    """Labels [N] of slot logits [N, S], or of embeddings [N, D] by the nearest of K centres; 0 = stuff."""
    if centres is None:
        return values.argmax(1)
    square = (values**2).sum(1)[:, None] - 2 * values @ centres.T + (centres**2).sum(1)
    return np.asarray(square.argmin(1))


def cluster_centres(
    embedding: np.ndarray, *, clustering: Clustering = "hdbscan", seed: int = 0, share: float = 0.01
) -> np.ndarray:
    """Centres [K, D] of the clusters of embeddings [N, D], the origin (stuff) first. What is nearer to the origin than
    where its similarity to it is 1/2 is stuff. A cluster has `share` of the clustered points at least, or 8."""
    from sklearn.cluster import HDBSCAN, MeanShift

    things = embedding[np.exp(-(embedding**2).sum(1)) < 0.5]
    if len(things) > SAMPLE:
        things = things[np.random.default_rng(seed).choice(len(things), SAMPLE, replace=False)]
    least = max(8, int(share * len(things)))
    origin = np.zeros((1, embedding.shape[1]), np.float32)
    if len(things) < 2 * least:
        few = len(things) >= least
        return np.concatenate([origin, things.mean(0, keepdims=True)]) if few else origin
    if clustering == "hdbscan":
        label = HDBSCAN(min_cluster_size=least, allow_single_cluster=True, copy=True).fit_predict(things)
    elif clustering == "mean_shift":
        shift = MeanShift(bandwidth=BANDWIDTH, bin_seeding=True, min_bin_freq=least, cluster_all=False)
        label = shift.fit_predict(things)
    else:
        raise QueryError(f"clustering is {clustering!r}; allowed: hdbscan, mean_shift")
    count = np.bincount(label[label >= 0], minlength=1)
    kept = [origin[0]]
    for k in np.argsort(-count, kind="stable").tolist():
        centre = things[label == k].mean(0) if count[k] >= least else origin[0]
        # the seam between two clusters, or a cluster's own rim, is no cluster
        if min(float(((centre - c) ** 2).sum()) for c in kept) > RIM**2:
            kept.append(centre)
    return np.stack(kept).astype(np.float32)


class InstanceIds:
    """Ids that last: the instances of each snapshot get those of the instances they overlap in the one before.

    An instance that is lost for a while gets its id back: places remember whose they were last.

    Args:
        apart_m: pieces this far apart are different instances. min_points: fewer map points are none.
    """

    def __init__(self, apart_m: float = APART_M, min_points: int = MIN_POINTS, clustering: Clustering = "hdbscan"):
        self.apart_m, self.min_points, self.clustering = apart_m, min_points, clustering
        self.keys, self.last = np.zeros(0, np.int64), np.zeros(0, np.int32)
        self.next_id = 1

    def update(self, snapshot: Snapshot) -> Instances:
        """The instances of a snapshot. O(map points).

        Raises:
            QueryError: the map has not learnt instances.
        """
        if isinstance(snapshot, WorldSnapshot):
            return self._of_blocks(snapshot)
        label, centres, piece = self._pieces(snapshot)
        return Instances(snapshot, self.named(snapshot.keys, piece), label, centres)

    def _pieces(self, snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Labels, their centres, and pieces, of one field."""
        values = head_values(_field(snapshot), snapshot.cloud.points)
        centres = None
        if head_of(_field(snapshot)) == EMBEDDING:
            centres = cluster_centres(values, clustering=self.clustering)
        label = labels_of(values, centres)
        apart_m = max(self.apart_m, 4 * snapshot.voxel_size_m)
        return label, centres, pieces(snapshot.cloud.points, label, apart_m, self.min_points)

    def _of_blocks(self, snapshot: WorldSnapshot) -> Instances:
        """Pieces of every block that has learnt instances, joined where they touch across a border."""
        found, block_of, count = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        for number, block in enumerate(snapshot.blocks()):
            piece = np.zeros(len(block.snapshot.cloud), np.int64)
            if learns(block.snapshot):
                piece = self._pieces(block.snapshot)[2]
            found.append(np.where(piece > 0, piece + count, 0))
            block_of.append(np.full(len(piece), number))
            count += int(piece.max(initial=0))
        if not count:
            raise QueryError(_NOT_YET)
        points = snapshot.cloud.points
        piece = joined(points, np.concatenate(found), np.concatenate(block_of), 1.8 * snapshot.voxel_size_m)
        keys = voxel_keys(points, snapshot.voxel_size_m)
        order = np.argsort(keys, kind="stable")
        ids = np.zeros(len(points), np.int32)
        ids[order] = self.named(keys[order], piece[order])
        return Instances(snapshot, ids, ids.astype(np.int64), None)

    def named(self, keys: np.ndarray, piece: np.ndarray) -> np.ndarray:
        """Ids [N] int32 of pieces [N] (0 = none) of voxels with sorted keys [N], which are remembered."""
        at = np.minimum(np.searchsorted(self.keys, keys), max(0, len(self.keys) - 1))
        before = np.zeros(len(keys), np.int32)
        if len(self.keys):
            before = np.where(self.keys[at] == keys, self.last[at], 0)
        table = matched(piece, before, self.next_id)
        ids = table[piece].astype(np.int32)
        self.next_id = max(self.next_id, int(table.max(initial=0)) + 1)
        self.keys, self.last = keys.copy(), np.where(ids > 0, ids, before).astype(np.int32)
        return ids
