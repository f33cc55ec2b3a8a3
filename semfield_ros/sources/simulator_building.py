"""A simulated building: many furnished rooms, walked through room by room, as posed RGB-D frames with the exact truth.

Walls, floors and furniture are boxes, met in closed form; what lies on the tables are the simulator's objects, cast by
MuJoCo where their outlines are. Only rooms near the camera are looked at, so a frame costs the same in any building.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from ..errors import ConfigError
from ..frame import Frame
from ..geometry import Camera, back_project, image_directions, invert, project, transform_points
from .simulator_floorplan import (
    LARGE,
    PITCH_M,
    TABLE_Z_M,
    Boxes,
    centre_of,
    joined,
    serpentine,
    structure,
    table_boxes,
    walk,
)
from .simulator_render import Cast, cast_objects, noisy_colour, noisy_depth, object_scenes, solid_noise
from .simulator_scene import CLASS_NAMES, Placed, Scene, place_objects

REACH_M = 0.85
"""Radius of a sphere around all that lies on a table."""
SECOND_TABLE_M = np.array([1.5, 1.65])
"""Where a second table stands, from the middle of the room: in a corner."""


@dataclass(frozen=True)
class BuildingConfig:
    """One simulated building and the walk through it."""

    seed: int = 0
    rooms: int = 20
    frames_per_room: int = 500
    width: int = 128
    height: int = 96
    horizontal_fov_deg: float = 75.0
    rate_hz: float = 30.0
    depth_noise: float = 0.5
    """Scale of the depth sensor's noise; 0 = exact."""
    colour_noise: float = 2.0
    """Standard deviation, grey levels of 255."""

    def __post_init__(self) -> None:
        allowed = {
            "seed": (0, 2**32), "rooms": (1, 400), "frames_per_room": (8, 100_000), "width": (8, 4096),
            "height": (8, 4096), "horizontal_fov_deg": (10, 140), "rate_hz": (1e-3, 1e4), "depth_noise": (0, 10),
            "colour_noise": (0, 64),
        }  # fmt: skip
        for name, (low, high) in allowed.items():
            value = getattr(self, name)
            whole = isinstance(value, (int, np.integer)) or name not in ("seed", "rooms", "frames_per_room", "width",
                                                                       "height")  # fmt: skip
            if isinstance(value, bool) or not whole or not low <= value <= high:
                raise ConfigError(f"building {name} is {value!r}; allowed: {low} to {high}")


@dataclass(frozen=True)
class _Table:
    """A laid table: where its top is, what lies on it, MuJoCo's models of that, the first instance id."""

    centre_m: np.ndarray
    objects: tuple[Placed, ...]
    scenes: tuple[Scene, ...]
    first: int


class Building:
    """A source of Frames: iterate it for the whole walk, or `render` any view.

    Attributes:
        class_names: by semantic id. rooms: grid positions in the order of the walk; room k has the frames
            [k frames_per_room, (k + 1) frames_per_room).
    """

    def __init__(self, config: BuildingConfig | None = None):
        self.config = config = config or BuildingConfig()
        plan_seed, path_seed, self._noise_seed, self._table_seed = np.random.SeedSequence(config.seed).spawn(4)
        self.name, self.rate_hz = f"building:{config.seed}", config.rate_hz
        self.class_names: tuple[str, ...] = (*CLASS_NAMES, *LARGE)
        self.rooms = serpentine(config.rooms)
        rng = np.random.default_rng(plan_seed)
        self._fixed = structure(rng, self.rooms, self.class_names)
        self._path_seed = path_seed
        self._tables: dict[int, tuple[_Table, ...]] = {}
        self._boxes: dict[tuple[int, int], Boxes] = {}
        focal = 0.5 * config.width / float(np.tan(np.radians(config.horizontal_fov_deg) / 2))
        self.camera = Camera(config.width, config.height, focal, focal, (config.width - 1) / 2, (config.height - 1) / 2)
        self._colours = {c: rng.uniform(0.3, 0.75, 3) * [1.0, 0.8, 0.6] for c in self.rooms}

    def __len__(self) -> int:
        return self.config.rooms * self.config.frames_per_room

    def __iter__(self) -> Iterator[Frame]:
        return self.excerpt(range(len(self)))

    def excerpt(self, frames: range) -> Iterator[Frame]:
        """Some frames, without making the others."""
        return (self.render(self.path[index], index / self.rate_hz) for index in frames)

    @cached_property
    def path(self) -> np.ndarray:
        """[frames, 4, 4] float64 T_world_camera."""
        return walk(np.random.default_rng(self._path_seed), self.rooms, self.config.frames_per_room)

    def room_of(self, points: np.ndarray) -> np.ndarray:
        """[N] int: number of the room that points [N, 3] lie in; -1 = none."""
        at = np.rint(np.asarray(points)[:, :2] / PITCH_M).astype(int)
        number = {cell: k for k, cell in enumerate(self.rooms)}
        return np.array([number.get((int(i), int(j)), -1) for i, j in at])

    def tables(self, room: int) -> tuple[_Table, ...]:
        """What stands laid in a room; made when a camera first comes near."""
        if room not in self._tables:
            rng = np.random.default_rng([*self._table_seed.generate_state(2), room])
            at = centre_of(self.rooms[room]) + [0, 0, TABLE_Z_M]
            places = [at]
            if rng.random() < 0.5:
                places.append(at + [*(SECOND_TABLE_M * rng.choice([-1, 1], 2)), 0])
            made = []
            for number, place in enumerate(places):
                objects = place_objects(rng, int(rng.integers(6, 11)) if number == 0 else 5, 0.03)
                first = 1_000_000 + 100 * room + 50 * number
                made.append(_Table(place, objects, object_scenes(objects), first))
            self._tables[room] = tuple(made)
        return self._tables[room]

    def _near(self, T: np.ndarray) -> tuple[list[int], Boxes]:
        """Rooms around a camera, and every box in them."""
        i, j = (int(v) for v in np.rint(T[:2, 3] / PITCH_M))
        rooms = [k for k, (a, b) in enumerate(self.rooms) if abs(a - i) + abs(b - j) <= 1]
        if (i, j) not in self._boxes:
            middle = np.array([i * PITCH_M, j * PITCH_M])
            reach = 1.5 * PITCH_M + 0.2
            low, high = self._fixed.low[:, :2], self._fixed.high[:, :2]
            close = np.asarray((low < middle + reach).all(1) & (high > middle - reach).all(1))
            laid = [table_boxes(t.centre_m, self._colours[self.rooms[k]]) for k in rooms for t in self.tables(k)]
            boxes = joined([self._fixed[close], *laid])
            self._boxes = {(i, j): boxes}  # a camera stays where it is for a while
        return rooms, self._boxes[i, j]

    def _in_view(self, table: _Table, T_world_camera: np.ndarray) -> bool:
        """Whether a sphere around what lies on a table touches the camera's view."""
        x, y, z = transform_points(invert(T_world_camera), table.centre_m[None] + [0, 0, 0.1])[0]
        right, down = (self.camera.width / 2 / self.camera.fx, self.camera.height / 2 / self.camera.fy)
        inside = all(abs(a) <= max(z, 0) * t + REACH_M * np.hypot(1, t) for a, t in ((x, right), (y, down)))
        return bool(inside and z > -REACH_M)

    def render(self, T_world_camera: np.ndarray, stamp_s: float = 0.0, noisy: bool = True) -> Frame:
        """The frame a camera at `T_world_camera` sees; the same arguments always give the same frame."""
        config, T = self.config, np.asarray(T_world_camera, dtype=np.float64)
        rooms, boxes = self._near(T)
        rays = image_directions(self.camera).reshape(-1, 3) @ T[:3, :3].T.astype(np.float32)
        origin = T[:3, 3]
        depth, box, normal = cast_boxes(boxes.low, boxes.high, self.camera, T)
        hit = np.maximum(box, 0)
        semantic = np.where(box >= 0, boxes.semantic[hit], 0).astype(np.int32)
        instance = np.where(box >= 0, boxes.instance[hit], 0).astype(np.int32)
        albedo = boxes.rgb[hit].astype(np.float32)
        for table in (t for k in rooms for t in self.tables(k) if self._in_view(t, T)):
            local = T.copy()
            local[:3, 3] -= table.centre_m
            cast = cast_objects(table.scenes, table.objects, self.camera, local)
            for number, (pixels, z, n, part) in enumerate(cast):
                nearer = (depth[pixels] <= 0) | (z < depth[pixels])
                pixels, scene = pixels[nearer], table.scenes[number]
                depth[pixels], normal[pixels] = z[nearer], n[nearer]
                semantic[pixels], albedo[pixels] = scene.geom_semantic[part[nearer]], scene.geom_rgb[part[nearer]]
                instance[pixels] = table.first + number
        facing = (normal * rays).sum(1) > 0
        normal[facing] *= -1
        shape = (config.height, config.width)
        points = origin.astype(np.float32) + rays * depth[:, None]
        lamp = centre_of((int(np.rint(origin[0] / PITCH_M)), int(np.rint(origin[1] / PITCH_M)))) + [0.4, 0.3, 2.2]
        to_lamp = lamp.astype(np.float32) - points
        to_lamp /= np.maximum(np.linalg.norm(to_lamp, axis=1, keepdims=True), 1e-6)
        light = 0.45 + 0.55 * np.maximum((normal * to_lamp).sum(1), 0) + 0.06 * solid_noise(points, 40.0)
        rgb = 255 * np.clip(albedo * light[:, None], 0, 1) ** np.float32(0.8)
        rng = np.random.default_rng(
            [*self._noise_seed.generate_state(2), int(np.float64(stamp_s).view(np.uint64))]
        )
        seen = Cast(np.where(depth > 0, 0, -1).reshape(shape), depth.reshape(shape), normal.reshape(*shape, 3))
        scale = config.depth_noise if noisy else 0.0
        return Frame(
            stamp_s=float(stamp_s), camera=self.camera, T_world_camera=T,
            rgb=noisy_colour(rng, rgb.reshape(*shape, 3).astype(np.float32), config.colour_noise if noisy else 0.0),
            depth_m=noisy_depth(rng, seen, self.camera, T, scale),
            semantic=semantic.reshape(shape), instance=instance.reshape(shape),
        )  # fmt: skip

    def surface_points(self, room: int, n: int, views: int = 40) -> tuple[np.ndarray, np.ndarray]:
        """Exact samples of what can be seen of a room on the walk through it, about even in area.

        Returns:
            points [at most n, 3] float32 world, semantic [at most n] int32.
        """
        per_room = self.config.frames_per_room
        found_points, found_semantic = [], []
        for index in np.linspace(room * per_room, (room + 1) * per_room - 1, min(views, per_room)).astype(int):
            frame = self.render(self.path[index], noisy=False)
            points, pixel = back_project(self.camera, frame.T_world_camera, frame.depth_m)
            assert frame.semantic is not None
            inside = self.room_of(points) == room
            found_points.append(points[inside])
            found_semantic.append(frame.semantic.reshape(-1)[pixel][inside])
        points, semantic = np.concatenate(found_points), np.concatenate(found_semantic)
        rng = np.random.default_rng([self.config.seed, room])
        order = rng.permutation(len(points))
        _, first = np.unique(np.floor(points[order] / 0.02), axis=0, return_index=True)
        pick = order[first][rng.permutation(len(first))[:n]]
        return points[pick], semantic[pick]


def cast_boxes(
    low: np.ndarray, high: np.ndarray, camera: Camera, T_world_camera: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First hits of an image's rays with boxes (low, high [B, 3], world), by slabs. O(pixels the boxes cover).

    Returns:
        z-depths [H W] float32 (0 = none), box [H W] int (-1 = none), normals [H W, 3] float32.
    """
    T = np.asarray(T_world_camera, np.float64)
    rays = (image_directions(camera).reshape(-1, 3) @ T[:3, :3].T.astype(np.float32)).astype(np.float32)
    rays[rays == 0] = 1e-12
    corners = np.stack([np.where(pick, high, low) for pick in np.ndindex(2, 2, 2)], 1)  # [B, 8, 3]
    u, v, z = (x.reshape(-1, 8) for x in project(camera, T, corners.reshape(-1, 3)))
    # a box that reaches behind the camera may be anywhere in the image
    behind = np.asarray((z < 0.05).any(1))
    rectangle = np.stack([u.min(1), u.max(1) + 1, v.min(1), v.max(1) + 1], 1)
    rectangle = np.where(behind[:, None], [0, camera.width, 0, camera.height], np.nan_to_num(rectangle))
    rectangle = np.clip(rectangle, 0, [camera.width, camera.width, camera.height, camera.height])
    ahead = np.flatnonzero((z > 0).any(1) & (rectangle[:, 0] < rectangle[:, 1]) & (rectangle[:, 2] < rectangle[:, 3]))
    z, which, axis = _slabs()(
        (low[ahead] - T[:3, 3]).astype(np.float32), (high[ahead] - T[:3, 3]).astype(np.float32),
        np.floor(rectangle[ahead]).astype(np.int64) + [0, 1, 0, 1], 1 / rays, camera.width, camera.height,
    )  # fmt: skip
    normal = np.zeros((len(rays), 3), np.float32)
    met = np.flatnonzero(which >= 0)
    normal[met, axis[met]] = -np.sign(rays[met, axis[met]])
    return z, np.where(which >= 0, ahead[which], -1) if len(ahead) else which, normal


@cache
def _slabs() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The loop of `cast_boxes`, compiled: z-depths, boxes and the axes of the sides that were met, by pixel."""
    from numba import njit

    @njit(cache=True)
    def slabs(low, high, rectangle, inverse, width, height):  # type: ignore[no-untyped-def]
        n = width * height
        z, which, side = np.full(n, np.inf, np.float32), np.full(n, -1, np.int64), np.zeros(n, np.int64)
        for b in range(len(low)):
            for v in range(rectangle[b, 2], min(height, rectangle[b, 3])):
                for u in range(rectangle[b, 0], min(width, rectangle[b, 1])):
                    r = v * width + u
                    near, far, axis = np.float32(1e-4), z[r], -1
                    for a in range(3):
                        first, second = low[b, a] * inverse[r, a], high[b, a] * inverse[r, a]
                        if first > second:
                            first, second = second, first
                        if first > near:
                            near, axis = first, a
                        far = min(far, second)
                    if axis >= 0 and near < far:
                        z[r], which[r], side[r] = near, b, axis
        for r in range(n):
            if which[r] < 0:
                z[r] = 0
        return z, which, side

    compiled: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]] = slabs
    return compiled
