"""The plan of a simulated building: rooms on a grid, walls with doors, furniture, and a walk through all of it.

World frame: metres, z up, the floor at z = 0, the first room's middle at the origin. Rooms are visited in a serpentine,
so that every one has a door to the next. Everything that does not move or curve is an axis-aligned box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..geometry import look_at
from .simulator_objects import STUFF
from .simulator_scene import FLOOR_Z_M, TABLE_HALF_M, TABLE_THICKNESS_M

PITCH_M = 4.5
"""From the middle of a room to that of the next."""
WALL_M = 0.1
HEIGHT_M = 2.4
DOOR_M = (1.0, 2.1)
"""Width and height."""
TABLE_Z_M = -FLOOR_Z_M
ORBIT_M = 1.35
"""Radius of the walk around the middle table."""
EYE_M = 1.35
LARGE: tuple[str, ...] = ("cabinet", "sofa", "shelf")
"""Kinds of large things, beside those that lie on tables."""
FLOOR, WALL, TABLE = (1 + STUFF.index(name) for name in ("floor", "wall", "table"))


@dataclass(frozen=True)
class Boxes:
    """B axis-aligned boxes: low, high [B, 3] metres; semantic, instance [B] int32; rgb [B, 3] in [0, 1]."""

    low: np.ndarray
    high: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray
    rgb: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Boxes:
        return Boxes(self.low[rows], self.high[rows], self.semantic[rows], self.instance[rows], self.rgb[rows])


class _Builder:
    def __init__(self) -> None:
        self.rows: list[tuple[np.ndarray, np.ndarray, int, int, np.ndarray]] = []

    def add(
        self, low: np.ndarray, high: np.ndarray, semantic: int, rgb: np.ndarray, instance: int = 0
    ) -> None:
        self.rows.append((np.asarray(low, float), np.asarray(high, float), semantic, instance, np.asarray(rgb, float)))

    def boxes(self) -> Boxes:
        low, high, semantic, instance, rgb = zip(*self.rows)
        return Boxes(
            np.stack(low), np.stack(high), np.array(semantic, np.int32), np.array(instance, np.int32), np.stack(rgb)
        )


def serpentine(rooms: int) -> list[tuple[int, int]]:
    """Grid positions of rooms in the order of the walk: columns of a grid about as wide as it is deep, to and fro."""
    depth = max(1, int(np.ceil(np.sqrt(rooms))))
    cells = [(i, j if i % 2 == 0 else depth - 1 - j) for i in range(-(-rooms // depth)) for j in range(depth)]
    return cells[:rooms]


def centre_of(cell: tuple[int, int]) -> np.ndarray:
    """[3], on the floor."""
    return np.array([cell[0] * PITCH_M, cell[1] * PITCH_M, 0.0])


def structure(rng: np.random.Generator, cells: list[tuple[int, int]], class_names: tuple[str, ...]) -> Boxes:
    """Floors, walls with doors along the walk, and large things in corners; instances count up from 1."""
    build, half = _Builder(), PITCH_M / 2
    order = {cell: k for k, cell in enumerate(cells)}
    for k, cell in enumerate(cells):
        at = centre_of(cell)
        wall, floor = rng.uniform(0.5, 0.85, 3), rng.uniform(0.28, 0.62, 3)
        build.add(at - [half, half, 0.1], at + [half, half, 0.0], FLOOR, floor)
        for axis in (0, 1):
            for side in (-1, 1):
                step = (side, 0) if axis == 0 else (0, side)
                beyond = order.get((cell[0] + step[0], cell[1] + step[1]))
                if beyond is not None and side < 0:
                    continue  # that wall is the neighbour's
                door = beyond is not None and abs(beyond - k) == 1
                _wall(build, at, axis, side, door, wall)
        for number, corner in enumerate(rng.permutation(4)[: int(rng.integers(1, 4))]):
            _furnish(build, rng, at, corner, class_names, 1000 + 10 * k + number)
    return build.boxes()


def _wall(build: _Builder, at: np.ndarray, axis: int, side: int, door: bool, rgb: np.ndarray) -> None:
    """A wall of a room, in one piece or with a door in the middle."""
    half, along = PITCH_M / 2, 1 - axis
    spans = [((-half, 0.0), (half, HEIGHT_M))]
    if door:
        w = DOOR_M[0] / 2
        spans = [((-half, 0.0), (-w, HEIGHT_M)), ((w, 0.0), (half, HEIGHT_M)), ((-w, DOOR_M[1]), (w, HEIGHT_M))]
    for (a, bottom), (b, top) in spans:
        low, high = np.zeros(3), np.zeros(3)
        low[axis], high[axis] = side * half - WALL_M / 2, side * half + WALL_M / 2
        low[along], high[along], low[2], high[2] = a, b, bottom, top
        build.add(at + low, at + high, WALL, rgb)


def _furnish(
    build: _Builder, rng: np.random.Generator, at: np.ndarray, corner: int, class_names: tuple[str, ...], instance: int
) -> None:
    """A cabinet, a sofa or a shelf in a corner of a room."""
    kind = LARGE[int(rng.integers(len(LARGE)))]
    semantic, rgb = class_names.index(kind), rng.uniform(0.1, 0.8, 3)
    sx, sy = (-1, 1)[corner % 2], (-1, 1)[corner // 2]
    reach = PITCH_M / 2 - WALL_M / 2 - 0.02
    width, depth = rng.uniform(0.6, 0.85), rng.uniform(0.4, 0.55)

    def add(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], shade: float = 1.0) -> None:
        """From the corner inwards."""
        xs, ys = sorted(sx * (reach - v) for v in x), sorted(sy * (reach - v) for v in y)
        low, high = np.array([xs[0], ys[0], z[0]]), np.array([xs[1], ys[1], z[1]])
        build.add(at + low, at + high, semantic, rgb * shade, instance)

    if kind == "cabinet":
        add((0, width), (0, depth), (0, rng.uniform(1.0, 1.7)))
    elif kind == "sofa":
        add((0, width), (0, depth + 0.1), (0, 0.42))
        add((0, width), (0, 0.15), (0.42, 0.8), 0.9)
        add((0, 0.14), (0.15, depth + 0.1), (0.42, 0.6), 0.9)
    else:
        for z in np.arange(0.05, 1.6, 0.4):
            add((0, width), (0, 0.35), (z, z + 0.04))
        add((0, 0.04), (0, 0.35), (0, 1.65), 0.8)
        add((width, width + 0.04), (0, 0.35), (0, 1.65), 0.8)


def table_boxes(centre: np.ndarray, rgb: np.ndarray) -> Boxes:
    """The top and four legs of a table whose top is centred at `centre` [3]."""
    build, (x, y) = _Builder(), TABLE_HALF_M
    build.add(centre - [x, y, TABLE_THICKNESS_M], centre + [x, y, 0.0], TABLE, rgb)
    for sx in (-1, 1):
        for sy in (-1, 1):
            foot = np.array([centre[0] + sx * (x - 0.06), centre[1] + sy * (y - 0.06), 0.0])
            top = np.array([0.03, 0.03, centre[2] - TABLE_THICKNESS_M])
            build.add(foot - [0.03, 0.03, 0.0], foot + top, TABLE, rgb * 0.9)
    return build.boxes()


def joined(boxes: list[Boxes]) -> Boxes:
    """All of them."""
    names = ("low", "high", "semantic", "instance", "rgb")
    return Boxes(*(np.concatenate([getattr(b, name) for b in boxes]) for name in names))


def walk(rng: np.random.Generator, cells: list[tuple[int, int]], frames_per_room: int) -> np.ndarray:
    """Poses [rooms * frames_per_room, 4, 4] T_world_camera: into each room by its door, once and more around the table
    looking at it, once around looking outwards, and on to the next door."""
    poses = np.empty((len(cells) * frames_per_room, 4, 4))
    for k, cell in enumerate(cells):
        at = centre_of(cell)
        before = centre_of(cells[k - 1]) - at if k else np.array([-1.0, 0.0, 0.0])
        after = centre_of(cells[k + 1]) - at if k + 1 < len(cells) else -before
        start, end = (float(np.arctan2(d[1], d[0])) for d in (before, after))
        turn = (end - start) % (2 * np.pi) + 4 * np.pi
        sway = rng.uniform(0, 2 * np.pi, 3)
        for n in range(frames_per_room):
            s = n / frames_per_room
            poses[k * frames_per_room + n] = _step(at, start, turn, s, sway, entering=k > 0, last=k + 1 == len(cells))
    return poses


_DOOR_SHARE = 0.06
"""Of a room's frames, from the door to the orbit, and again from there to the next door."""


def _step(
    at: np.ndarray, start: float, turn: float, s: float, sway: np.ndarray, entering: bool, last: bool
) -> np.ndarray:
    first, final = (_DOOR_SHARE if entering else 0.0), (0.0 if last else _DOOR_SHARE)
    door = PITCH_M / 2
    height = EYE_M + 0.12 * np.sin(np.pi * s) * np.sin(6 * np.pi * s + sway[0])
    if s < first:
        angle, radius = start, door + (ORBIT_M - door) * s / first
    elif s >= 1 - final:
        angle, radius = start + turn, ORBIT_M + (door - ORBIT_M) * (s - 1 + final) / final
    else:
        angle, radius = start + turn * (s - first) / (1 - first - final), ORBIT_M
    outwards = np.array([np.cos(angle), np.sin(angle), 0.0])
    eye = at + radius * outwards + [0, 0, height]
    around = (s - first) / max(1e-9, 1 - first - final)
    if s < first or around < 0.55:
        gaze = 0.2 * np.array([np.sin(5 * np.pi * s + sway[1]), np.cos(7 * np.pi * s + sway[2]), 0])
        target = at + [0, 0, TABLE_Z_M] + gaze
    elif s >= 1 - final:
        target = eye + outwards + [0, 0, -0.25]
    else:
        # outwards, up and down along the wall; easing away from the table so that no view jumps
        ease = min(1.0, (around - 0.55) / 0.06)
        swing = angle + np.pi * (1 - ease)
        nod = -0.25 + 0.45 * np.sin(9 * np.pi * around)
        target = eye + [np.cos(swing), np.sin(swing), nod - 0.2 * (1 - ease)]
    return look_at(eye, target)
