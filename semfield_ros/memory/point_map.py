"""The point map: surface voxels with running means of colour, normal and features, answering from the first frame.

Voxels come from back-projected depth. Every keyframe's features are fused into all voxels that its depth image sees
(OpenScene's projection with the one visibility test, Peng et al. 2023) as a running mean with PointFusion's radial
weight exp(-r^2 / (2 .6^2)) (ConceptFusion, Jatavallabhula et al. 2023). What changes is followed (`forget`): space
seen through a voxel speaks against it, each voxel keeps a clamped hit count (as OctoMap's log-odds, Hornung et al.
2013) and disappears below zero; a colour that stays another one starts a voxel's means again; and what borders on
either is in doubt. A fusion costs O(voxels + pixels) of projection and O(visible voxels x D) of averaging; memory is
bounded by `max_voxels`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from ..cloud import SurfaceCloud
from ..config import MemoryConfig
from ..encoders.base import Target
from ..frame import Frame
from ..geometry import back_project, project, transform_points, visible
from .changes import COLOUR_CHANGE, NEIGHBOURS, SURE, crowded, disagreement, in_image, neighbour_keys, seen_through
from .cubes import Cube
from .surface import depth_normals
from .watch import Change, Watch

_HALF = 1 << 20  # voxel coordinates are packed as three unsigned 21-bit integers
_MAX_HITS = 5
_MAX_DOUBT = 3
"""Looks in another colour, net of those in the old one, that start a voxel's means again."""
_FADED_MASS = 1.0
"""Feature mass that is left where something changed: the next look counts as much as all before."""
_MAX_FEATURE_MASS = 40.0
_SETTLED = 4
"""Looks that make a voxel more than a stray measurement."""
_FACE = 12
"""Voxels side by side that make a change one of an object."""
_BODY_M = 0.15
"""How far from where something changed its hidden parts are looked for."""
_NO_KEYS = np.zeros(0, np.int64)
_NO_COLOURS = np.zeros((0, 3), np.float32)


@dataclass(frozen=True)
class Fusion:
    """What one fusion did: voxels created, seen, removed; the share of depth pixels on voxels not known before.

    `carved`, `recoloured`: sorted keys of the voxels that were seen through and forgotten, that started again.
    """

    created: int
    seen: int
    removed: int
    unseen_fraction: float
    carved: np.ndarray = field(default_factory=lambda: _NO_KEYS)
    recoloured: np.ndarray = field(default_factory=lambda: _NO_KEYS)


def voxel_keys(points: np.ndarray, voxel_size_m: float) -> np.ndarray:
    """Packed int64 voxel keys [N] of points [N, 3]; points beyond +-2^20 voxels clamp to the outermost voxel."""
    # clipped as numbers: a cast of what does not fit an integer is undefined
    cell = np.clip(np.floor(points / voxel_size_m), -_HALF, _HALF - 1).astype(np.int64) + _HALF
    return (cell[:, 0] << 42) | (cell[:, 1] << 21) | cell[:, 2]


def voxel_centres(keys: np.ndarray, voxel_size_m: float) -> np.ndarray:
    """Centres [N, 3] float64 of the voxels with packed keys [N]."""
    mask = (1 << 21) - 1
    cell = np.stack([keys >> 42, (keys >> 21) & mask, keys & mask], 1) - _HALF
    return np.asarray((cell + 0.5) * voxel_size_m)


class PointMap:
    """Voxels in rows of growing arrays; freed rows are reused. Not thread-safe: the engine's thread owns it."""

    def __init__(self, config: MemoryConfig, feature_dim: int, cube: Cube | None = None, classes: int = 0):
        self.config, self.feature_dim, self.cube, self.classes = config, feature_dim, cube, classes
        self.keys = np.zeros(0, np.int64)  # sorted, with _rows beside it
        self._rows = np.zeros(0, np.int64)
        self._allocate(4096)
        self._free = np.arange(4096)
        self._live = np.zeros(4096, bool)
        self._watch = Watch(self)
        self._reach = 0.0
        """How far beside it a feature may have seen something, as a share of the image's width."""

    def _allocate(self, rows: int) -> None:
        self.points = np.zeros((rows, 3), np.float32)
        self.normals = np.zeros((rows, 3), np.float32)
        self.rgb = np.zeros((rows, 3), np.float32)
        self.hits = np.zeros(rows, np.int8)
        self.doubt = np.zeros(rows, np.int8)
        self.mass = np.zeros(rows, np.float32)
        self.observations = np.zeros(rows, np.int32)
        self.last_seen_s = np.zeros(rows, np.float64)
        self.created_step = np.zeros(rows, np.int64)
        self.features = np.zeros((rows, self.feature_dim), np.float16)
        self.feature_mass = np.zeros(rows, np.float32)
        self.votes = np.zeros((rows, self.classes), np.float16)

    _ARRAYS = (
        "points", "normals", "rgb", "hits", "mass", "observations", "last_seen_s", "created_step", "features",
        "feature_mass", "doubt", "votes",
    )  # fmt: skip

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def rows(self) -> np.ndarray:
        """Rows of the living voxels, in key order: [N] int64."""
        return self._rows

    @property
    def bytes(self) -> int:
        """Allocated bytes."""
        return sum(getattr(self, name).nbytes for name in self._ARRAYS) + 17 * len(self._live)

    @property
    def max_bytes(self) -> int:
        """Bytes at `max_voxels`."""
        return self.config.max_voxels * (3 * 12 + 2 + 4 + 4 + 8 + 8 + 2 * (self.feature_dim + self.classes) + 4 + 17)

    def find(self, points: np.ndarray) -> np.ndarray:
        """Rows [N] of the voxels that hold points [N, 3]; -1 where there is none."""
        return self.rows_of(voxel_keys(points, self.config.voxel_size_m))

    def rows_of(self, keys: np.ndarray) -> np.ndarray:
        """Rows [N] of the voxels with packed keys [N]; -1 where there is none."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self._rows[at], -1)

    def settled(self, rows: np.ndarray) -> np.ndarray:
        """[N] bool: which rows [N] (still) hold a voxel that several looks have confirmed."""
        return self._live[rows] & (self.observations[rows] >= _SETTLED)

    def unseen_fraction(self, frame: Frame, sample: int = 2000) -> float:
        """Share of a frame's depth pixels that fall on no voxel and no neighbour of one (about `sample` pixels)."""
        measured, rows = self.lattice(frame, max(1, int(np.sqrt(frame.depth_m.size / sample))))
        return float(np.mean(rows[measured] < 0)) if measured.any() else 0.0

    def unlabelled_fraction(self, frame: Frame) -> float:
        """Share of a frame's labelled pixels that fall on voxels which no label has fallen on yet; 0 without any."""
        if not self.classes or frame.semantic is None:
            return 0.0
        labelled = (frame.semantic > 0) & (frame.semantic <= self.classes)
        points, _ = back_project(
            frame.camera, frame.T_world_camera, np.where(labelled, frame.depth_m, 0).astype(np.float32)
        )
        if self.cube is not None:
            points = points[self.cube.owns(points, self.config.voxel_size_m)]
        points = points[:: max(1, len(points) // 2000)]
        rows = self.rows_of(voxel_keys(points, self.config.voxel_size_m))
        known = (rows >= 0) & self.votes[rows].any(1)
        return float(1 - known.mean()) if len(rows) else 0.0

    def lattice(self, frame: Frame, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """Of every `stride`-th pixel of every `stride`-th row: whether it has depth (in the map's own space), and the
        row of the voxel that its point lies in or beside, -1 where there is none: [h, w] bool, [h, w] int64."""
        depth = np.zeros_like(frame.depth_m)
        depth[::stride, ::stride] = frame.depth_m[::stride, ::stride]
        points, pixel = back_project(frame.camera, frame.T_world_camera, depth)
        if self.cube is not None:
            mine = self.cube.owns(points, self.config.voxel_size_m)
            points, pixel = points[mine], pixel[mine]
        measured, rows = np.zeros(depth.shape, bool), np.full(depth.shape, -1)
        measured.reshape(-1)[pixel] = True
        step = self.config.voxel_size_m
        for offset in np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]):
            found = self.find(points + (offset * step).astype(np.float32))
            rows.reshape(-1)[pixel] = found
            points, pixel = points[found < 0], pixel[found < 0]
        return measured[::stride, ::stride], rows[::stride, ::stride]

    def change(self, frame: Frame) -> Change:
        """How a frame contradicts what is known of the place it looks at: see `Watch.change`."""
        return self._watch.change(frame) if self.config.forget else ""

    def fuse(self, frame: Frame, step: int = 0) -> Fusion:
        """Add a frame's surface: create, refresh and carve voxels. `step` is remembered as the voxels' age."""
        points, pixel = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
        if self.cube is not None:
            mine = self.cube.owns(points, self.config.voxel_size_m)
            points, pixel = points[mine], pixel[mine]
        keys = voxel_keys(points, self.config.voxel_size_m)
        unique, inverse = np.unique(keys, return_inverse=True)
        rows = self.rows_of(unique)
        fresh = rows < 0
        unseen = float(fresh[inverse].mean()) if len(inverse) else 0.0
        rows[fresh] = self._create(unique[fresh], step)
        rows_new = rows[fresh]

        count = np.bincount(inverse, minlength=len(unique)).astype(np.float32)

        def mean(values: np.ndarray) -> np.ndarray:
            columns = [np.bincount(inverse, values[:, c], minlength=len(unique)) for c in range(3)]
            return np.stack(columns, 1).astype(np.float32) / count[:, None]

        normals = depth_normals(frame.camera, frame.depth_m).reshape(-1, 3)[pixel]
        normals = transform_points(frame.T_world_camera, normals) - frame.T_world_camera[:3, 3].astype(np.float32)
        # noise grows with distance squared: near looks count for more
        place, colour = mean(points), mean(frame.rgb.reshape(-1, 3)[pixel].astype(np.float32))
        distance = np.linalg.norm(place - frame.T_world_camera[:3, 3].astype(np.float32), axis=1)
        weight = count / np.maximum(distance, 0.3) ** 2
        recoloured, old_colour = self._recolour(unique[~fresh], rows[~fresh], colour[~fresh])
        self.mass[rows] += weight
        share = (weight / np.maximum(self.mass[rows], 1e-9))[:, None]
        self.points[rows] += (place - self.points[rows]) * share
        self.rgb[rows] += (colour - self.rgb[rows]) * share
        self.normals[rows] += (mean(normals) - self.normals[rows]) * share
        # old evidence fades, so that a surface which changed is not held by its past
        self.mass[rows] = np.minimum(self.mass[rows], 2000.0)

        if self.classes and frame.semantic is not None:
            self._vote(rows[inverse], frame.semantic.reshape(-1)[pixel])
        carved, settled, before = self._carve(frame)
        changed = np.concatenate([settled, recoloured])
        self._doubt_around(frame, changed, step)
        carved = np.union1d(carved, self._forget_hidden(frame, changed, np.concatenate([before, old_colour])))
        removed = len(carved)
        seen = rows[self._live[rows]]
        self.observations[seen] += 1
        self.last_seen_s[seen] = frame.stamp_s
        self.hits[seen] = np.minimum(self.hits[seen] + 1, _MAX_HITS)
        if len(self) > self.config.max_voxels:
            removed += self._evict(len(self) - self.config.max_voxels, keep=rows_new)
        self._watch.fused(frame)
        return Fusion(int(fresh.sum()), len(seen), removed, unseen, carved, recoloured)

    def vote(self, points: np.ndarray, label: np.ndarray) -> None:
        """Count labels [P] for the voxels that points [P, 3] lie in; where there is none, for nothing."""
        rows = self.rows_of(voxel_keys(points, self.config.voxel_size_m))
        self._vote(rows[rows >= 0], label[rows >= 0])

    def _vote(self, rows: np.ndarray, label: np.ndarray) -> None:
        """Count the labels [P] of pixels for the voxels in `rows` [P]; 0 is none, and so is what no class is."""
        use = (label > 0) & (label <= self.classes)
        flat, n = np.unique(rows[use].astype(np.int64) * self.classes + label[use] - 1, return_counts=True)
        row, of = np.divmod(flat, self.classes)
        # half precision counts to 2048; old votes fade beyond
        self.votes[row, of] = np.minimum(self.votes[row, of].astype(np.float32) + n, 2000)

    def fuse_features(self, frame: Frame, target: Target) -> int:
        """Average a frame's feature measurements into the voxels it sees; returns how many."""
        config, rows = self.config, self.in_view(frame)
        mask, pixel = visible(
            frame.camera, frame.T_world_camera, frame.depth_m, self.points[rows],
            tolerance_m=config.visibility_tolerance_m, tolerance_relative=config.visibility_tolerance_relative,
            border_px=config.visibility_border_px,
        )  # fmt: skip
        rows, pixel = rows[mask], pixel[mask]
        wide = target.window.kernel.shape[0] * target.window.pitch_px + frame.camera.width / target.index.shape[1]
        self._reach = min(0.1, wide / 2 / frame.camera.width)
        cell = target.cell_of_pixels(frame.camera.width, frame.camera.height).reshape(-1)[pixel]
        rows, pixel, cell = rows[cell >= 0], pixel[cell >= 0], cell[cell >= 0]
        v, u = np.divmod(pixel, frame.camera.width)
        radius2 = ((u / frame.camera.width - 0.5) ** 2 + (v / frame.camera.height - 0.5) ** 2) * 2
        weight = (np.exp(-radius2 / (2 * 0.6**2)) * target.confidence[cell]).astype(np.float32)
        self.feature_mass[rows] += weight
        share = weight / np.maximum(self.feature_mass[rows], 1e-9)
        for start in range(0, len(rows), 8192):
            part = slice(start, start + 8192)
            mean = self.features[rows[part]].astype(np.float32)
            mean += (target.values[cell[part]] - mean) * share[part, None]
            self.features[rows[part]] = mean
        # a voxel that always meant one thing may mean another tomorrow
        self.feature_mass[rows] = np.minimum(self.feature_mass[rows], _MAX_FEATURE_MASS)
        return len(rows)

    def _create(self, keys: np.ndarray, step: int) -> np.ndarray:
        n = len(keys)
        if n > len(self._free):
            used = len(self._live)
            # by half, but not past the budget; a frame's voxels may exceed it until `fuse` has evicted
            extra = max(n - len(self._free), min(used // 2, self.config.max_voxels - used))
            for name in self._ARRAYS:
                array = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.zeros((extra, *array.shape[1:]), array.dtype)]))
            self._live = np.concatenate([self._live, np.zeros(extra, bool)])
            self._free = np.concatenate([self._free, np.arange(used, used + extra)])
        rows, self._free = self._free[:n], self._free[n:]
        for name in self._ARRAYS:
            getattr(self, name)[rows] = 0
        self.created_step[rows] = step
        self._live[rows] = True
        at = np.searchsorted(self.keys, keys)
        self.keys = np.insert(self.keys, at, keys)
        self._rows = np.insert(self._rows, at, rows)
        return rows

    def _remove(self, dead: np.ndarray) -> int:
        """Remove the rows where `dead` [N] (in key order) is set."""
        if not dead.any():
            return 0
        gone = self._rows[dead]
        self._live[gone] = False
        self._free = np.concatenate([self._free, gone])
        self.keys, self._rows = self.keys[~dead], self._rows[~dead]
        return len(gone)

    def other_colour(self, rows: np.ndarray, colour: np.ndarray) -> np.ndarray:
        """[N] bool: which 8-bit colours [N, 3] are neither those of the voxels in `rows` [N] nor of one beside them (an
        edge has those), beyond what the exposure did to all of them."""
        if not len(rows):
            return np.zeros(0, bool)
        # of a few thousand, as quickly as of all
        exposure = np.median((colour - self.rgb[rows])[:: max(1, len(rows) // 2000)], axis=0)
        colour = colour - exposure
        other = np.linalg.norm(colour - self.rgb[rows], axis=1) > COLOUR_CHANGE
        at = np.flatnonzero(other)
        near = self.rows_of(neighbour_keys(voxel_keys(self.points[rows[at]], self.config.voxel_size_m)).reshape(-1))
        near = near.reshape(len(NEIGHBOURS), len(at))
        apart = np.linalg.norm(self.rgb[near] - colour[at], axis=2)
        other[at] = np.where(near >= 0, apart, np.inf).min(0) > COLOUR_CHANGE
        return other

    def in_view(self, frame: Frame) -> np.ndarray:
        """Rows of the living voxels that project into a frame's image, seen or hidden, in key order."""
        return self._rows[in_image(frame, self.points[self._rows])]

    def contradicted(self, frame: Frame, rows: np.ndarray) -> np.ndarray:
        """How clearly a frame sees through the voxels in `rows` [N]: see `seen_through`."""
        usual = disagreement(frame, self.points[rows], self.normals[rows])
        return seen_through(self.config, frame, self.points[rows], usual)

    def _carve(self, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count against voxels that this frame sees through, twice where it does so clearly; forget those that lost.

        Returns the sorted keys of what was forgotten, of those the ones that had been more than strays, and the colours
        [N, 3] of these."""
        if not self.config.forget:
            return _NO_KEYS, _NO_KEYS, _NO_COLOURS
        rows = self.in_view(frame)
        clear = self.contradicted(frame, rows)
        rows, clear = rows[clear > 0], clear[clear > 0]
        self.hits[rows] -= np.where(clear > 2, 2, 1).astype(np.int8)
        gone = np.zeros(len(self._live), bool)
        gone[rows[self.hits[rows] < -1]] = True
        dead = gone[self._rows]
        carved, settled = self.keys[dead], self.observations[self._rows[dead]] >= _SETTLED
        colour = self.rgb[self._rows[dead]][settled]
        self._remove(dead)
        return carved, carved[settled], colour

    def _forget_hidden(self, frame: Frame, keys: np.ndarray, colours: np.ndarray) -> np.ndarray:
        """Forget what hung together with faces of voxels that changed, `keys` [M] of `colours` [M, 3], and is hidden
        from the frame that shows it: the back of what was exchanged, or what its successor stands in. No view may ever
        contradict that, but nobody has seen it since, and what is unseen is unknown. Returns the sorted keys.

        From voxel to voxel, to neighbours of about the same colour, `_BODY_M` far at most. O(voxels in view), and only
        when something has changed.
        """
        size_m, found = self.config.voxel_size_m, [_NO_KEYS]
        order = np.argsort(keys)
        whole = order[crowded(keys[order], 5)]  # a face; noise and poses take single voxels and rims
        if len(whole) < _FACE:
            return _NO_KEYS
        keys, colours = keys[whole], colours[whole]
        rows = self.in_view(frame)
        usual = disagreement(frame, self.points[rows], self.normals[rows])
        u, v, z = project(frame.camera, frame.T_world_camera, self.points[rows])
        column = np.clip(np.rint(u), 0, frame.camera.width - 1).astype(np.int64)
        line = np.clip(np.rint(v), 0, frame.camera.height - 1).astype(np.int64)
        surface = frame.depth_m[line, column]
        margin = np.maximum(1.5 * size_m, max(self.config.forget_relative, SURE * usual) * z)
        hidden = np.zeros(len(self._live), bool)
        hidden[rows[(surface > 0) & (z > surface + margin)]] = True
        for _ in range(int(np.ceil(_BODY_M / size_m))):
            near = neighbour_keys(keys)
            at = self.rows_of(near.reshape(-1)).reshape(near.shape)
            like = np.linalg.norm(self.rgb[at] - colours, axis=2) < COLOUR_CHANGE
            same = (at >= 0) & hidden[at] & like
            keys, first = np.unique(near[same], return_index=True)
            if not len(keys):
                break
            reached = at[same][first]
            hidden[reached] = False
            colours = self.rgb[reached]
            found.append(keys)
        gone = np.sort(np.concatenate(found))
        self._remove(np.isin(self.keys, gone))
        return gone

    def _recolour(self, keys: np.ndarray, rows: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Start again the means of voxels whose colours [N, 3] have kept disagreeing; returns their sorted keys, and
        the colours [M, 3] they had."""
        if not self.config.forget:
            return _NO_KEYS, _NO_COLOURS
        other = self.other_colour(rows, colour)
        self.doubt[rows] = np.clip(self.doubt[rows] + np.where(other, 1, -1), 0, _MAX_DOUBT)
        sure = np.flatnonzero(other & (self.doubt[rows] == _MAX_DOUBT))
        sure = sure[crowded(keys[sure], 4)]  # single voxels are edges and highlights, and lines are edges
        self.doubt[rows[sure]], self.mass[rows[sure]] = 0, 0.0
        self.votes[rows[sure]] = 0
        return keys[sure], self.rgb[rows[sure]]

    def _doubt_around(self, frame: Frame, keys: np.ndarray, step: int) -> None:
        """What changed, and what is seen around it as far as a feature's window reaches, keeps its place; but its
        features were measured on what was there before, or beside it: they fade, and the field has to learn anew."""
        if not len(keys):
            return
        camera = frame.camera
        u, v, z = project(camera, frame.T_world_camera, voxel_centres(keys, self.config.voxel_size_m))
        near = np.concatenate([keys, np.unique(neighbour_keys(keys))])
        rows = self.rows_of(near)
        seen = np.flatnonzero((z > 0) & (u >= 0) & (v >= 0) & (u < camera.width - 1) & (v < camera.height - 1))
        image = np.zeros((camera.height, camera.width), np.uint8)
        image[np.rint(v[seen]).astype(int), np.rint(u[seen]).astype(int)] = 1
        reach = 2 * int(np.ceil(self._reach * camera.width)) + 1
        touched = cv2.dilate(image, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))) > 0
        around = self.in_view(frame)
        mask, pixel = visible(
            camera, frame.T_world_camera, frame.depth_m, self.points[around],
            tolerance_m=self.config.visibility_tolerance_m,
            tolerance_relative=self.config.visibility_tolerance_relative,
        )  # fmt: skip
        around = around[mask]
        rows = np.concatenate([rows[rows >= 0], around[touched.reshape(-1)[pixel[mask]]]])
        self.feature_mass[rows] = np.minimum(self.feature_mass[rows], _FADED_MASS)
        self.created_step[rows] = step

    def _evict(self, n: int, keep: np.ndarray) -> int:
        """Forget the n least recently seen voxels."""
        seen = self.last_seen_s[self._rows].copy()
        seen[np.isin(self._rows, keep)] = np.inf
        dead = np.zeros(len(self._rows), bool)
        dead[np.argpartition(seen, n - 1)[:n]] = True
        return self._remove(dead)

    def clear_region(self, low: np.ndarray, high: np.ndarray) -> int:
        """Forget everything inside an axis-aligned box in global_frame; returns how many voxels."""
        points = self.points[self._rows]
        return self._remove(np.asarray(((points >= low) & (points <= high)).all(1)))

    def cloud(self) -> SurfaceCloud:
        """A copy of the living voxels as a SurfaceCloud, in key order."""
        rows = self._rows
        normals = self.normals[rows]
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        return SurfaceCloud(
            points=self.points[rows],
            normals=np.where(length > 0.2, normals / np.maximum(length, 1e-9), 0).astype(np.float32),
            rgb=np.clip(np.rint(self.rgb[rows]), 0, 255).astype(np.uint8),
            observations=self.observations[rows],
            last_seen_s=self.last_seen_s[rows],
        )

    def state(self) -> dict[str, np.ndarray]:
        """Everything a checkpoint needs, in key order."""
        return {"keys": self.keys.copy(), **{name: getattr(self, name)[self._rows] for name in self._ARRAYS}}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Replace the map by a `state()`."""
        n = len(state["keys"])
        size = max(n, 4096)
        self._allocate(size)
        for name in self._ARRAYS:
            if name in state:  # maps saved before there was doubt have none
                getattr(self, name)[:n] = state[name]
        self.keys, self._rows = state["keys"].astype(np.int64), np.arange(n)
        self._live = np.arange(size) < n
        self._free = np.arange(n, size)
