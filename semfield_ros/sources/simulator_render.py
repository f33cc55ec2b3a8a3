"""Images of a scene: rays through MuJoCo, shading and sensor noise in NumPy. No OpenGL.

Shading is Lambert's law with hemispheric ambient light and a Blinn-Phong highlight (Blinn 1977); shadows come from a
depth map seen from the lamp (Williams 1978), filtered bilinearly (percentage-closer, Reeves et al. 1987).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import cv2
import numpy as np

from ..geometry import Camera, image_directions, invert, look_at, project
from .simulator_scene import (
    CLASS_NAMES,
    OBJECT_GROUP,
    STUFF_GEOMS,
    STUFF_GROUP,
    TABLE_HALF_M,
    TABLE_TOP_GEOM,
    Placed,
    Scene,
    compile_scene,
)

FAR_M = 20.0


@dataclass(frozen=True)
class Cast:
    """What the rays of one image hit.

    Attributes:
        geom: [H, W] int32, -1 = nothing. depth_m: [H, W] float32 exact z-depth, 0 = nothing.
        normal: [H, W, 3] float32, world frame, towards the camera.
    """

    geom: np.ndarray
    depth_m: np.ndarray
    normal: np.ndarray


class Caster:
    """Casts rays into one scene.

    MuJoCo tests every ray against every geom it is given, so each object is a model of its own that only the rays
    inside its outline meet. Safe to use from several threads (one image at a time).
    """

    def __init__(self, scene: Scene):
        self.scene = scene
        self._single = [compile_scene((item,)) for item in scene.objects]
        geoms = [single.model.ngeom - STUFF_GEOMS for single in self._single]
        self._first_geom = [STUFF_GEOMS + sum(geoms[:k]) for k in range(len(geoms))]
        self._lock = Lock()

    def cast(self, camera: Camera, T_world_camera: np.ndarray) -> Cast:
        """Nearest surfaces through every pixel centre; the camera may be a crop (any principal point)."""
        T = np.asarray(T_world_camera, dtype=np.float64)
        # Directions with z = 1 make MuJoCo's ray parameter the z-depth itself.
        rays = image_directions(camera).reshape(-1, 3).astype(np.float64) @ T[:3, :3].T
        origin = T[:3, 3]
        table, table_depth = _table_top(origin, rays)
        geom = np.where(table, TABLE_TOP_GEOM, -1).astype(np.int32)
        depth = np.where(table, table_depth, np.inf)
        normal = np.zeros((len(rays), 3))
        normal[table] = [0.0, 0.0, 1.0]
        room = np.flatnonzero(~table)
        work = [
            (single.model, single.data, OBJECT_GROUP, first - STUFF_GEOMS, outline(item, camera, T), rays, origin)
            for single, item, first in zip(self._single, self.scene.objects, self._first_geom)
        ]
        work.append((self.scene.model, self.scene.data, STUFF_GROUP, 0, room, rays, origin))
        with self._lock:
            hits = [_shoot(part) for part in work]
        for pixels, ids, distance, normals in hits:
            nearer = (ids >= 0) & (distance < depth[pixels])
            chosen = pixels[nearer]
            geom[chosen], depth[chosen], normal[chosen] = ids[nearer], distance[nearer], normals[nearer]
        depth[geom < 0] = 0.0
        normal = normal.astype(np.float32)
        facing = (normal * rays.astype(np.float32)).sum(1) > 0
        normal[facing] *= -1
        shape = (camera.height, camera.width)
        return Cast(geom.reshape(shape), depth.astype(np.float32).reshape(shape), normal.reshape(*shape, 3))


def object_scenes(objects: tuple[Placed, ...]) -> tuple[Scene, ...]:
    """Each object as a model of its own, for `cast_objects`."""
    return tuple(compile_scene((item,)) for item in objects)


def cast_objects(
    scenes: tuple[Scene, ...], objects: tuple[Placed, ...], camera: Camera, T_table_camera: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """What an image shows of each object: flat pixels, z-depths, normals [.., 3] and geoms of its own scene, where hit.

    Only rays inside an object's outline are cast. The camera's pose is in the table's frame.
    """
    T = np.asarray(T_table_camera, dtype=np.float64)
    rays = image_directions(camera).reshape(-1, 3).astype(np.float64) @ T[:3, :3].T
    for scene, item in zip(scenes, objects, strict=True):
        work = (scene.model, scene.data, OBJECT_GROUP, 0, outline(item, camera, T), rays, T[:3, 3])
        pixels, geom, distance, normals = _shoot(work)
        hit = geom >= 0
        yield pixels[hit], distance[hit].astype(np.float32), normals[hit].astype(np.float32), geom[hit]


def _shoot(work: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Some pixels' rays against one group of one model: pixels, geom ids of the whole scene, distances, normals."""
    import mujoco

    model, data, group, shift, pixels, rays, origin = work
    count = len(pixels)
    geom, distance, normal = np.full(count, -1, np.int32), np.zeros(count), np.zeros(3 * count)
    if count:
        mujoco.mj_multiRay(
            model,
            data,
            origin,
            rays[pixels].reshape(-1),
            np.eye(6, dtype=np.uint8)[group],
            1,
            -1,
            geom,
            distance,
            normal,
            count,
            FAR_M,
        )
    return pixels, np.where(geom >= 0, geom + shift, -1), distance, normal.reshape(-1, 3)


def _table_top(origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rays [N, 3] from `origin` meet the table top, and at which multiple of themselves; objects aside.

    Nothing but objects can stand between a camera above the table and its top, so these rays need no search.
    """
    if origin[2] <= 0:
        return np.zeros(len(rays), bool), np.zeros(len(rays))
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = -origin[2] / rays[:, 2]
        hit = origin[:2] + rays[:, :2] * distance[:, None]
        # The last hair's breadth is left to the full search, so that both agree on the edge.
        inside = (np.abs(hit) < np.array(TABLE_HALF_M) - 1e-6).all(1)
    return (distance > 0) & (distance < FAR_M) & inside, distance


def outline(item: Placed, camera: Camera, T_world_camera: np.ndarray) -> np.ndarray:
    """Flat indices of the pixels whose rays may meet an object: the filled outline of its convex hull, grown by one."""
    u, v, z = project(camera, T_world_camera, item.hull_world)
    if (z < 0.02).all():
        return np.zeros(0, np.int64)
    mask = np.zeros((camera.height, camera.width), np.uint8)
    if (z < 0.02).any():
        mask[:] = 1
    else:
        # Within +-30000 px the outline survives OpenCV's 16-bit fixed-point drawing.
        corners = np.clip(np.stack([u, v], axis=1), -30000, 30000)
        cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(corners).astype(np.int32)), 1)
        left, top, width, height = cv2.boundingRect(mask)
        left, top = max(0, left - 1), max(0, top - 1)
        part = mask[top : top + height + 2, left : left + width + 2]
        part[:] = cv2.dilate(part, np.ones((3, 3), np.uint8))
    return np.flatnonzero(mask)


@dataclass(frozen=True)
class Look:
    """How a scene is lit and painted; drawn from a seed."""

    lamp_m: np.ndarray
    lamp_rgb: np.ndarray
    ambient: float
    table_rgb: np.ndarray
    wood: float
    wood_axis: int
    floor_rgb: np.ndarray
    wall_rgb: np.ndarray
    texture: float

    @classmethod
    def from_seed(cls, rng: np.random.Generator) -> Look:
        """A plausible room: warm or cool lamp, wooden or plain table, muted floor and walls."""
        azimuth, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.9)
        lamp = np.array([reach * np.cos(azimuth), reach * np.sin(azimuth), rng.uniform(1.2, 1.55)])
        warmth = rng.uniform(-0.06, 0.06)
        woods = np.array(
            [
                [0.60, 0.43, 0.27],
                [0.45, 0.30, 0.18],
                [0.72, 0.58, 0.42],
                [0.55, 0.53, 0.50],
                [0.70, 0.69, 0.66],
                [0.36, 0.38, 0.40],
            ]
        )
        pick = int(rng.integers(len(woods)))
        grey = rng.uniform(0.28, 0.62)
        wall = rng.uniform(0.5, 0.85)
        return cls(
            lamp,
            np.array([1 + warmth, 1.0, 1 - warmth]) * rng.uniform(0.62, 0.78),
            rng.uniform(0.3, 0.42),
            np.clip(woods[pick] * rng.uniform(0.85, 1.12) + rng.normal(0, 0.02, 3), 0.1, 0.9),
            float(rng.uniform(0.5, 1.0)) if pick < 3 else 0.12,
            int(rng.integers(2)),
            np.clip(grey + rng.normal(0, 0.03, 3), 0.1, 0.9),
            np.clip(wall + rng.normal(0, 0.04, 3), 0.2, 0.95),
            float(rng.uniform(0.5, 1.0)),
        )


@cache
def _noise_volume() -> np.ndarray:
    """A smooth periodic random field in [-1, 1]: [64, 64, 64] float32, for solid textures (Perlin 1985)."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(12)
    field = (
        gaussian_filter(rng.standard_normal((64, 64, 64)), 1.2, mode="wrap")
        + 0.5 * gaussian_filter(rng.standard_normal((64, 64, 64)), 3.0, mode="wrap") * 4
    )
    return np.clip(field / (2.2 * field.std()), -1, 1).astype(np.float32)


def solid_noise(points: np.ndarray, cells_per_m: float) -> np.ndarray:
    """The noise field at points [N, 3], nearest cell: [N] float32."""
    cell = (points * np.float32(cells_per_m)).astype(np.int32) & 63
    return _noise_volume().reshape(-1)[(cell[:, 0] * 64 + cell[:, 1]) * 64 + cell[:, 2]]


class Shader:
    """Colours what a Caster hit."""

    def __init__(self, caster: Caster, look: Look, shadow_pixels: int = 360):
        self.scene, self.look = caster.scene, look
        self._T_world_lamp = look_at(look.lamp_m, np.array([0.0, 0.0, 0.0]))
        # The table's farthest corner is about 0.75 m from its centre.
        focal = 0.5 * shadow_pixels * float(np.linalg.norm(look.lamp_m)) / 0.85
        middle = (shadow_pixels - 1) / 2
        self._lamp = Camera(shadow_pixels, shadow_pixels, focal, focal, middle, middle)
        self._shadow = caster.cast(self._lamp, self._T_world_lamp).depth_m
        self._semantic = self.scene.geom_semantic
        self._base = self.scene.geom_rgb.copy()
        for name, rgb in (("table", look.table_rgb), ("floor", look.floor_rgb), ("wall", look.wall_rgb)):
            self._base[self._semantic == CLASS_NAMES.index(name)] = rgb

    def shade(self, camera: Camera, T_world_camera: np.ndarray, cast: Cast) -> np.ndarray:
        """The colour image without sensor noise: [H, W, 3] float32, 0 to 255."""
        look = self.look
        rays = image_directions(camera).reshape(-1, 3) @ T_world_camera[:3, :3].T.astype(np.float32)
        origin = T_world_camera[:3, 3].astype(np.float32)
        geom, normal = cast.geom.reshape(-1), cast.normal.reshape(-1, 3)
        points = origin + rays * cast.depth_m.reshape(-1, 1)
        semantic = self._semantic[geom]
        albedo = self._base[geom]
        albedo *= self._texture(points, semantic)[:, None]

        to_lamp = look.lamp_m.astype(np.float32) - points
        to_lamp /= np.sqrt(np.einsum("ij,ij->i", to_lamp, to_lamp))[:, None]
        cosine = np.maximum(np.einsum("ij,ij->i", normal, to_lamp), 0)
        lit = self._lit(points, semantic)
        diffuse = cosine * lit
        ambient = np.float32(look.ambient) * (1 + 0.25 * normal[:, 2]) * np.float32(0.9)
        rgb = albedo * (ambient[:, None] + diffuse[:, None] * look.lamp_rgb.astype(np.float32))

        thing = np.flatnonzero(semantic > 3)
        view = -rays[thing]
        view /= np.linalg.norm(view, axis=1, keepdims=True)
        half = to_lamp[thing] + view
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        shine = np.maximum(np.einsum("ij,ij->i", normal[thing], half), 0) ** 28
        rgb[thing] += (0.55 * self.scene.geom_gloss[geom[thing]] * shine * lit[thing])[:, None]
        rgb[geom < 0] = self._base[-1]
        # sRGB-like response keeps dark things apart from shadows.
        np.clip(rgb, 0, 1, out=rgb)
        image = (255 * np.power(rgb, np.float32(0.8))).reshape(camera.height, camera.width, 3)
        # A lens is never sharper than a pixel; this also hides the stair steps of point sampling.
        return cv2.GaussianBlur(image, (3, 3), 0.6)

    def _texture(self, points: np.ndarray, semantic: np.ndarray) -> np.ndarray:
        """Brightness of the surface pattern at points [N, 3]: [N] float32 around 1."""
        look = self.look
        strength = np.float32(0.09 * look.texture)
        factor = 1 + strength * solid_noise(points, 300.0)
        table = np.flatnonzero(semantic == CLASS_NAMES.index("table"))
        along, across = (0, 1) if look.wood_axis == 0 else (1, 0)
        p = points[table]
        stretched = np.stack([p[:, along] * 5, p[:, across] * 60, p[:, 2] * 60], axis=1)
        grain = solid_noise(stretched, 1.0)
        rings = np.sin(p[:, across] * np.float32(70) + 3 * grain + 2.5 * np.sin(p[:, along] * np.float32(4)))
        factor[table] += np.float32(look.wood) * (0.09 * grain + 0.07 * rings)
        floor = np.flatnonzero(semantic == CLASS_NAMES.index("floor"))
        board = np.floor(points[floor, across] * np.float32(7)).astype(np.int32)
        factor[floor] += 0.16 * (((board * 2654435) & 255) / np.float32(255) - 0.5)
        return factor

    def _lit(self, points: np.ndarray, semantic: np.ndarray) -> np.ndarray:
        """Share of the lamp's light that reaches points [N, 3]: [N] float32 in [0, 1]."""
        lit = np.ones(len(points), np.float32)
        near = np.flatnonzero(semantic >= CLASS_NAMES.index("table"))
        T = invert(self._T_world_lamp).astype(np.float32)
        local = points[near] @ T[:3, :3].T + T[:3, 3]
        z = np.maximum(local[:, 2], np.float32(1e-3))
        u = np.clip(self._lamp.fx * local[:, 0] / z + self._lamp.cx, 0, self._lamp.width - 1.001).astype(np.float32)
        v = np.clip(self._lamp.fy * local[:, 1] / z + self._lamp.cy, 0, self._lamp.height - 1.001).astype(np.float32)
        column, row = u.astype(np.int32), v.astype(np.int32)
        fu, fv = u - column, v - row
        flat, index = self._shadow.reshape(-1), row * self._lamp.width + column
        z = z - np.float32(0.006)
        upper = (flat[index] > z) * (1 - fu) + (flat[index + 1] > z) * fu
        below = index + self._lamp.width
        lower = (flat[below] > z) * (1 - fu) + (flat[below + 1] > z) * fu
        lit[near] = upper * (1 - fv) + lower * fv
        return lit


def noisy_colour(rng: np.random.Generator, rgb: np.ndarray, sigma: float) -> np.ndarray:
    """Sensor noise and quantisation: [H, W, 3] float32 in 0..255 -> uint8. `sigma` in grey levels."""
    if sigma > 0:
        luma = rng.standard_normal(rgb.shape[:2], dtype=np.float32) * np.float32(sigma)
        chroma = rng.standard_normal(rgb.shape[:2], dtype=np.float32) * np.float32(0.5 * sigma)
        rgb = rgb + luma[..., None]
        rgb[..., 0] += chroma
        rgb[..., 2] -= chroma
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8)


def noisy_depth(
    rng: np.random.Generator, cast: Cast, camera: Camera, T_world_camera: np.ndarray, scale: float
) -> np.ndarray:
    """Structured-light depth: axial noise, quantisation, holes at edges and grazing angles, dropouts.

    Axial noise grows as sigma = scale (.0012 + .0019 (z - .4)^2) metres (Nguyen, Izadi, Lovell 2012, without their
    grazing term, which becomes missing data here). Disparity is what a sensor quantises: inverse depth comes in steps
    of scale * 0.0014 / m, which is 1.4 mm at 1 m (half Kinect v1's) and grows with the square of depth.

    Returns:
        [H, W] float32 metres, 0 = no measurement. Exact depth when `scale` is 0.
    """
    depth = cast.depth_m
    if scale <= 0:
        return depth.copy()
    sigma = np.float32(scale) * (np.float32(0.0012) + np.float32(0.0019) * (depth - np.float32(0.4)) ** 2)
    noise = rng.standard_normal(depth.shape, dtype=np.float32)
    measured = depth + sigma * noise
    inverse_step = np.float32(0.0014 * scale)
    with np.errstate(divide="ignore", invalid="ignore"):
        measured = 1 / (np.rint(1 / (measured * inverse_step)) * inverse_step)
    measured[~np.isfinite(measured)] = 0

    # The projector sits to the right of the camera: the background beside a left edge lies in its shadow.
    chance = rng.random(depth.shape, dtype=np.float32)
    near = cv2.erode(depth, np.ones((3, 3), np.uint8))
    far = cv2.dilate(depth, np.ones((3, 3), np.uint8))
    edge = (far - near > np.float32(0.02) + np.float32(0.02) * depth) & (chance < np.float32(0.45 * min(scale, 2.0)))
    shadow = np.zeros_like(edge)
    shadow[:, :-2] = depth[:, :-2] - depth[:, 2:] > 0.04
    rays = image_directions(camera) @ T_world_camera[:3, :3].T.astype(np.float32)
    length = np.sqrt(np.einsum("ijk,ijk->ij", rays, rays))
    facing = -np.einsum("ijk,ijk->ij", cast.normal, rays) / length
    grazing = facing < np.float32(0.12) + np.float32(0.10) * chance
    dropped = chance > np.float32(1 - 0.004 * scale)
    measured[edge | shadow | grazing | dropped | (cast.geom < 0)] = 0
    return np.maximum(measured, 0, out=measured)
