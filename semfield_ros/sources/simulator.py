"""The simulator: table scenes from a seed, as an endless supply of posed RGB-D frames with the exact truth.

World frame: metres, z up, the table top at z = 0, its centre at the origin. The demo's default source and the ground
truth of the tests. Seeds 0 to 99 are for demonstrations and evaluation; nothing is ever trained on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..errors import ConfigError
from ..frame import Frame
from ..geometry import Camera, back_project, invert, look_at, transform_points
from .simulator_objects import PART_NAMES, names_of
from .simulator_parts import nearest_part, part_image, part_of, surface_samples
from .simulator_render import Cast, Caster, Look, Shader, noisy_colour, noisy_depth
from .simulator_scene import CLASS_NAMES, TABLE_HALF_M, Placed, Scene, compile_scene, place_objects
from .simulator_worker import frames_of

EVALUATION_SEEDS = range(100)
"""Scenes that no training may use."""


@dataclass(frozen=True)
class SimulatorConfig:
    """One simulated recording."""

    seed: int = 0
    """Scene, colours, light, path and noise; 0 to 99 are reserved for evaluation."""
    width: int = 320
    height: int = 240
    horizontal_fov_deg: float = 60.0
    frames: int = 120
    rate_hz: float = 30.0
    objects: int = 0
    """Objects tried on the table; 0 = 8 to 12, by seed."""
    gap_m: float = 0.03
    """Smallest distance between objects."""
    depth_noise: float = 1.0
    """Scale of the depth sensor's noise; 0 = exact."""
    colour_noise: float = 2.0
    """Standard deviation of the colour sensor's noise, grey levels of 255."""
    pose_noise_m: float = 0.0
    """Standard deviation of the reported camera position, metres; a quarter of it per metre in angle (radians)."""
    processes: int = 2
    """Processes that render the frames when it is iterated; 0 = this one does."""

    def __post_init__(self) -> None:
        def require(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                raise ConfigError(f"simulator {name} is {getattr(self, name)!r}; allowed: {allowed}")

        def integer(value: object) -> bool:
            return isinstance(value, (int, np.integer)) and not isinstance(value, bool)

        for name in ("seed", "width", "height", "frames", "objects", "processes"):
            require(integer(getattr(self, name)), name, "an integer")
        require(self.seed >= 0, "seed", ">= 0")
        require(8 <= self.width <= 4096, "width", "8 to 4096 px")
        require(8 <= self.height <= 4096, "height", "8 to 4096 px")
        require(10 <= self.horizontal_fov_deg <= 140, "horizontal_fov_deg", "10 to 140 degrees")
        require(self.frames >= 1, "frames", ">= 1")
        require(0 < self.rate_hz < np.inf, "rate_hz", "> 0 and finite")
        require(0 <= self.objects <= 40, "objects", "0 (by seed) to 40")
        require(0.004 <= self.gap_m <= 0.3, "gap_m", "0.004 to 0.3 m")
        require(0 <= self.depth_noise <= 10, "depth_noise", "0 to 10")
        require(0 <= self.colour_noise <= 64, "colour_noise", "0 to 64 grey levels")
        require(0 <= self.pose_noise_m <= 0.5, "pose_noise_m", "0 to 0.5 m")
        require(0 <= self.processes <= 64, "processes", "0 to 64")


@dataclass(frozen=True)
class TruthPart:
    """What of an object has one part name: points [N, 3] float32, world frame, of its outside, about even in area."""

    name: str
    points_world: np.ndarray


@dataclass(frozen=True)
class TruthObject:
    """What is really there.

    Attributes:
        instance: its id in instance images. kind, colour: what it is. names: every caption that is right for it.
        T_world_object: [4, 4] float64. centre_m: [3] centre of its oriented box, world frame.
        half_extents_m: [3] of the box along the axes of T_world_object. item: its shape.
    """

    instance: int
    kind: str
    colour: str
    names: tuple[str, ...]
    T_world_object: np.ndarray
    centre_m: np.ndarray
    half_extents_m: np.ndarray
    item: Placed = field(repr=False)

    @cached_property
    def parts(self) -> tuple[TruthPart, ...]:
        """Its named parts, each name once, zones (a mug's rim) among them; made when first asked for."""
        points, number = surface_samples(self.item)
        world = transform_points(self.T_world_object, points).astype(np.float32)
        return tuple(TruthPart(PART_NAMES[k], world[number == k]) for k in np.unique(number))

    def part_at(self, points_world: np.ndarray, T_world_object: np.ndarray | None = None) -> list[str]:
        """The names of the parts whose surface is nearest to points [N, 3]; `T_world_object` where it has moved."""
        T = self.T_world_object if T_world_object is None else np.asarray(T_world_object, np.float64)
        points = np.asarray(points_world, np.float64).reshape(-1, 3)
        return [PART_NAMES[k] for k in nearest_part(self.item, transform_points(invert(T), points))]

    @property
    def T_world_box(self) -> np.ndarray:
        """[4, 4]: the box's centre and axes."""
        T = self.T_world_object.copy()
        T[:3, 3] = self.centre_m
        return T


class Simulator:
    """A source of Frames: iterate it for the recording, or `render` any view.

    With `objects`, those stand on the table instead of what the seed would place there.
    """

    def __init__(self, config: SimulatorConfig | None = None, objects: tuple[Placed, ...] | None = None):
        self.config = config = config or SimulatorConfig()
        scene_seed, look_seed, self._path_seed, self._noise_seed = np.random.SeedSequence(config.seed).spawn(4)
        rng = np.random.default_rng(scene_seed)
        count = config.objects or int(rng.integers(8, 13))
        self.name = f"simulator:{config.seed}"
        self.rate_hz = config.rate_hz
        self.class_names: tuple[str, ...] = CLASS_NAMES
        self.scene: Scene = compile_scene(place_objects(rng, count, config.gap_m) if objects is None else objects)
        self.caster = Caster(self.scene)
        self.shader = Shader(self.caster, Look.from_seed(np.random.default_rng(look_seed)))
        focal = 0.5 * config.width / float(np.tan(np.radians(config.horizontal_fov_deg) / 2))
        self.camera = Camera(config.width, config.height, focal, focal, (config.width - 1) / 2, (config.height - 1) / 2)
        self.objects: tuple[TruthObject, ...] = tuple(_truth(i, item) for i, item in enumerate(self.scene.objects, 1))

    def __len__(self) -> int:
        return self.config.frames

    def __iter__(self) -> Iterator[Frame]:
        stamps_s = [index / self.rate_hz for index in range(len(self))]
        if self.config.processes == 0:
            return (self.render(T, stamp_s) for T, stamp_s in zip(self._path, stamps_s))
        return frames_of(self.config, list(self._path), stamps_s, self.config.processes)

    @cached_property
    def _path(self) -> np.ndarray:
        return self.path(self.config.frames)

    def path(self, n: int) -> np.ndarray:
        """`n` poses once around the table, distance, height and gaze swaying: [n, 4, 4] float64 T_world_camera."""
        rng = np.random.default_rng(self._path_seed)
        start, direction = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
        phase = rng.uniform(0, 2 * np.pi, 4)
        poses = np.empty((n, 4, 4))
        for k, s in enumerate(np.arange(n) / n):
            turn = 2 * np.pi * s
            azimuth = start + direction * turn
            radius = 0.80 + 0.10 * np.sin(2 * turn + phase[0])
            height = 0.50 + 0.13 * np.sin(3 * turn + phase[1])
            gaze = 0.10 * np.array([np.sin(2 * turn + phase[2]), np.cos(3 * turn + phase[3]), 0.0])
            eye = np.array([radius * np.cos(azimuth), radius * np.sin(azimuth), height])
            poses[k] = look_at(eye, gaze)
        return poses

    def render(self, T_world_camera: np.ndarray, stamp_s: float = 0.0, noisy: bool = True) -> Frame:
        """The frame a camera at `T_world_camera` sees; the same arguments always give the same frame."""
        T = np.asarray(T_world_camera, dtype=np.float64)
        return self._frame(T, stamp_s, noisy, self.caster.cast(self.camera, T))

    def _frame(self, T: np.ndarray, stamp_s: float, noisy: bool, cast: Cast) -> Frame:
        config = self.config
        stamp_key = int(np.float64(stamp_s).view(np.uint64))
        rng = np.random.default_rng([*self._noise_seed.generate_state(2), stamp_key])
        rgb = self.shader.shade(self.camera, T, cast)
        depth = noisy_depth(rng, cast, self.camera, T, config.depth_noise if noisy else 0.0)
        reported = _perturbed(rng, T, config.pose_noise_m) if noisy and config.pose_noise_m > 0 else T
        return Frame(
            stamp_s=float(stamp_s),
            camera=self.camera,
            T_world_camera=reported,
            rgb=noisy_colour(rng, rgb, config.colour_noise if noisy else 0.0),
            depth_m=depth,
            semantic=self.scene.geom_semantic[cast.geom],
            instance=self.scene.geom_instance[cast.geom],
        )

    def surface_points(
        self, n: int, seed: int = 0, views: int = 24
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Exact samples of the table top and the objects, only where some camera of the path can see.

        Returns:
            points [n, 3] float32 world, normals [n, 3] float32 towards the side seen, semantic [n] int32,
            instance [n] int32; about even in area.
        """
        points, normals, geom = self._seen_points(n, seed, views)
        return points, normals, self.scene.geom_semantic[geom], self.scene.geom_instance[geom]

    def part_points(self, n: int, seed: int = 0, views: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same points as of `surface_points`, with the part of each.

        Returns:
            points [n, 3] float32 world, part [n] int32 indices into `scene.part_names`, instance [n] int32.
        """
        points, _, geom = self._seen_points(n, seed, views)
        return points, part_of(self.scene, geom, points), self.scene.geom_instance[geom]

    def _seen_points(self, n: int, seed: int, views: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        collected = []
        for T in self.path(views):
            cast = self.caster.cast(self.camera, T)
            points, index = back_project(self.camera, T, cast.depth_m)
            geom = cast.geom.reshape(-1)[index]
            near = (np.abs(points[:, :2]) < TABLE_HALF_M).all(1) & (points[:, 2] > -0.005)
            collected.append((points[near], cast.normal.reshape(-1, 3)[index][near], geom[near]))
        points, normals, geom = (np.concatenate(column) for column in zip(*collected))
        # One sample per 4 mm cell and side evens out what many cameras see from near and far.
        side = (normals @ np.array([0.48, 0.6, 0.64], np.float32) > 0).astype(np.int64)
        cells = np.concatenate([np.floor(points / 0.004).astype(np.int64), side[:, None], geom[:, None]], axis=1)
        rng = np.random.default_rng([self.config.seed, seed])
        order = rng.permutation(len(points))
        _, first = np.unique(cells[order], axis=0, return_index=True)
        unique = order[first]
        pick = unique[rng.permutation(len(unique))[:n]]
        if len(pick) < n:
            pick = np.concatenate([pick, rng.choice(len(points), n - len(pick))])
        return points[pick], normals[pick], geom[pick]

    def cast(self, T_world_camera: np.ndarray, camera: Camera | None = None) -> Cast:
        """Exact geometry seen by a camera (a crop of it, where `camera` says so)."""
        return self.caster.cast(camera or self.camera, T_world_camera)

    def part_image(self, T_world_camera: np.ndarray, camera: Camera | None = None) -> np.ndarray:
        """The exact part every pixel shows: [H, W] int32 indices into `scene.part_names`, 0 = no part of an object."""
        camera = camera or self.camera
        cast = self.caster.cast(camera, T_world_camera)
        return part_image(self.scene, camera, T_world_camera, cast.geom, cast.depth_m)


def _truth(instance: int, item: Placed) -> TruthObject:
    vertices = np.concatenate([part.surface.vertices for part in item.parts])
    low, high = vertices.min(0), vertices.max(0)
    names = names_of(item.kind, item.colour)
    centre = transform_points(item.T_world_object, (low + high) / 2)
    return TruthObject(
        instance, item.kind.name, item.colour, names, item.T_world_object.copy(), centre, (high - low) / 2, item
    )


def _perturbed(rng: np.random.Generator, T_world_camera: np.ndarray, sigma_m: float) -> np.ndarray:
    """The pose with a small random motion, as odometry reports it."""
    import cv2

    T = T_world_camera.copy()
    T[:3, 3] += rng.normal(0, sigma_m, 3)
    T[:3, :3] = T[:3, :3] @ cv2.Rodrigues(rng.normal(0, 0.25 * sigma_m, 3))[0]
    return T
