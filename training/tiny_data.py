"""Training data of `tiny`: object-dense crops of simulator renders with a label for every 8 x 8 patch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semfield_ros.geometry import Camera, look_at, project
from semfield_ros.sources.simulator import EVALUATION_SEEDS
from semfield_ros.sources.simulator_objects import COLOURS, PART_NAMES
from semfield_ros.sources.simulator_parts import part_image
from semfield_ros.sources.simulator_render import Caster, Look, Shader
from semfield_ros.sources.simulator_scene import CLASS_NAMES, Scene, compile_scene, place_objects

PATCH_PX = 8
CROP_PX = 128
IGNORE = 255
FIRST_TRAINING_SEED = 1000
assert FIRST_TRAINING_SEED not in EVALUATION_SEEDS


@dataclass(frozen=True)
class PatchLabels:
    """Labels of an [h, w] grid of patches, uint8, IGNORE where mixed or not applicable.

    Attributes:
        semantic: class id (simulator CLASS_NAMES). colour: the object's colour. main: 1 where the patch shows mostly
            parts that carry this colour. part: index into PART_NAMES, 0 = stuff. instance: object id, 0 = stuff.
    """

    semantic: np.ndarray
    colour: np.ndarray
    main: np.ndarray
    part: np.ndarray
    instance: np.ndarray

    def stacked(self) -> np.ndarray:
        """[5, h, w] in the order of the attributes."""
        return np.stack([self.semantic, self.colour, self.main, self.part, self.instance])


def patch_labels(scene: Scene, geom: np.ndarray, parts: np.ndarray | None = None) -> PatchLabels:
    """Labels from a geom-id image [H, W], sizes divisible by the patch, and its exact parts [H, W] where known.

    An object owns a patch it covers to 3/8 when no other object covers half as much; thin things would otherwise
    never be seen. Stuff owns a patch with at most 1/16 of objects.
    """
    h, w = geom.shape[0] // PATCH_PX, geom.shape[1] // PATCH_PX
    tiles = geom.reshape(h, PATCH_PX, w, PATCH_PX).transpose(0, 2, 1, 3).reshape(h * w, -1)
    instance = scene.geom_instance[tiles]
    area, rows = tiles.shape[1], np.arange(h * w)
    count = len(scene.objects) + 1
    votes = np.bincount((rows[:, None] * count + instance).reshape(-1), minlength=h * w * count).reshape(h * w, count)
    things = votes.copy()
    things[:, 0] = 0
    best = things.argmax(1)
    first = things[rows, best]
    things[rows, best] = 0
    owned = (first >= area * 3 // 8) & (things.max(1, initial=0) * 2 <= first)
    stuff = area - votes[:, 0] <= area // 16

    def majority(values: np.ndarray, mask: np.ndarray, classes: int, share: float) -> np.ndarray:
        weights = np.bincount((rows[:, None] * classes + values)[mask], minlength=h * w * classes).reshape(-1, classes)
        top = weights.argmax(1)
        return np.where(weights[rows, top] >= share * np.maximum(mask.sum(1), 1), top, IGNORE)

    everything = np.ones_like(tiles, bool)
    background = majority(scene.geom_semantic[tiles], everything, len(CLASS_NAMES), 0.75)
    kinds = np.array([0, *(CLASS_NAMES.index(o.kind.name) for o in scene.objects)])
    colours = np.array([IGNORE, *(list(COLOURS).index(o.colour) for o in scene.objects)])
    semantic = np.where(owned, kinds[best], np.where(stuff, background, IGNORE))
    mine = (instance == best[:, None]) & owned[:, None]
    main = owned & ((scene.geom_main[tiles] & mine).sum(1) >= 0.7 * first)
    part = np.where(stuff, 0, IGNORE)
    if parts is not None:
        part_tiles = parts.reshape(h, PATCH_PX, w, PATCH_PX).transpose(0, 2, 1, 3).reshape(h * w, -1)
        part = np.where(owned, majority(part_tiles, mine, len(PART_NAMES), 0.6), part)
    labels = (semantic, np.where(owned, colours[best], IGNORE), main, part, np.where(owned, best, 0))
    return PatchLabels(*(x.reshape(h, w).astype(np.uint8) for x in labels))


def scene_crops(seed: int, views: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops of one crowded training scene, each around an object seen from a random place.

    Returns:
        images [views, CROP, CROP, 3] uint8 without sensor noise, labels [views, 5, CROP / 8, CROP / 8] uint8.
    """
    rng = np.random.default_rng([seed, 7])
    scene = compile_scene(place_objects(rng, int(rng.integers(9, 20)), 0.012))
    caster = Caster(scene)
    shader = Shader(caster, Look.from_seed(rng), shadow_pixels=200)
    images = np.empty((views, CROP_PX, CROP_PX, 3), np.uint8)
    labels = np.empty((views, 5, CROP_PX // PATCH_PX, CROP_PX // PATCH_PX), np.uint8)
    for view in range(views):
        T, camera = _random_crop(rng, scene)
        cast = caster.cast(camera, T)
        images[view] = (shader.shade(camera, T, cast) + 0.5).astype(np.uint8)
        parts = part_image(scene, camera, T, cast.geom, cast.depth_m)
        labels[view] = patch_labels(scene, cast.geom, parts).stacked()
    return images, labels


def _random_crop(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, Camera]:
    """A camera pose and the crop of its 320x240 image that shows some object, at distances a robot looks from.

    Half of them are close-ups, in which parts are larger than a patch.
    """
    frame = Camera(0, 0, 277.0, 277.0, 0.0, 0.0)
    close = rng.random() < 0.5
    while True:
        azimuth, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.75) if close else rng.uniform(0.55, 1.05)
        eye = np.array([radius * np.cos(azimuth), radius * np.sin(azimuth), rng.uniform(0.22, 0.8)])
        T = look_at(eye, rng.uniform([-0.3, -0.3, -0.05], [0.3, 0.3, 0.05]))
        roll = rng.normal(0, 0.08)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]]
        T = T @ turn
        target = scene.objects[rng.integers(len(scene.objects))].T_world_object[:3, 3] + [0, 0, 0.03]
        u, v, z = (float(x[0]) for x in project(frame, T, target[None]))
        if z > (0.25 if close else 0.35) and abs(u) < 170 and abs(v) < 130:
            zoom = rng.uniform(0.95, 1.6) if close else rng.uniform(0.85, 1.25)
            centre = (CROP_PX - 1) / 2 + rng.uniform(-30, 30, 2) - zoom * np.array([u, v])
            return T, Camera(CROP_PX, CROP_PX, 277.0 * zoom, 277.0 * zoom, float(centre[0]), float(centre[1]))


def render_shards(folder: Path, shards: int, scenes: int, views: int, first_shard: int = 0) -> None:
    """Write `shards` pairs of .npy files of `scenes` scenes each; existing ones are kept, so it can be resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocabulary.json").write_text(
        json.dumps({"classes": CLASS_NAMES, "colours": list(COLOURS), "parts": PART_NAMES})
    )
    for shard in range(first_shard, first_shard + shards):
        path = folder / f"labels_{shard:04d}.npy"
        if path.exists():
            continue
        first = FIRST_TRAINING_SEED + shard * scenes
        crops = [scene_crops(seed, views) for seed in range(first, first + scenes)]
        np.save(folder / f"images_{shard:04d}.npy", np.concatenate([image for image, _ in crops]))
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, np.concatenate([label for _, label in crops]))
        temporary.rename(path)
        print(f"shard {shard}: {scenes * views} crops", flush=True)


def load_shards(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The finished shards, memory-mapped: lists of images [N, CROP, CROP, 3] and labels [N, 5, h, w]."""
    finished = sorted(p for p in folder.glob("labels_*.npy") if ".tmp" not in p.name)
    if not finished:
        raise SystemExit(f"no training data in {folder}; run `tiny_encoder.py render --data {folder}` first")
    images = [np.load(p.with_name(p.name.replace("labels", "images")), mmap_mode="r") for p in finished]
    return images, [np.load(p) for p in finished]


assert max(len(CLASS_NAMES), len(PART_NAMES)) < IGNORE
