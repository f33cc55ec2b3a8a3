"""Grasp trials to look at: a contact sheet with one tile a trial, failures first, and a video of a few of them.

The scene is rendered at the poses the physics had; the gripper, which is three boxes, is traced into the same image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..config import GripperConfig
from ..geometry import Camera, image_directions, invert, look_at
from ..sources.simulator import Simulator, SimulatorConfig
from ..sources.simulator_scene import Placed
from ..viewer import BACKGROUND, TEXT, contact_sheet, gripper_lines, project_segment
from .grasp_stage import Film, Moment
from .grasp_truth import standing

RIGHT, WRONG, QUIET = (96, 208, 120), (240, 84, 84), (150, 156, 168)
"""Colours of what went as asked, of failures, and of requests that nothing could fulfil."""
GRIPPER_RGB = np.array([206.0, 212.0, 222.0])
FIELD_OF_VIEW_DEG = 42.0
AWAY_M, FAR_M, ELEVATION_RAD = 0.85, 1.35, np.radians(32.0)
ABOVE_M = 0.12
"""The camera looks at a point so far above the grasp, between the table and where the object is lifted to."""
VIDEO_FILMS, VIDEO_FAILURES, VIDEO_FRAMES, VIDEO_HZ = 10, 3, 20, 7.0
VIDEO_COLOURS = 128


def write_pictures(
    folder: Path, films: Sequence[Film], *, gripper: GripperConfig | None = None, tiles: int = 60, video: bool = True
) -> list[Path]:
    """Writes grasp_sheet.png and grasp_trials.gif of one map's trials; returns what was written."""
    gripper = gripper or GripperConfig()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if films:
        chosen = for_sheet(films, tiles)
        failed = sum(colour_of(film) == WRONG for film in films)
        sheet = contact_sheet(
            [(caption(film), tile(film, gripper)) for film in chosen], columns=8, tile_width=240,
            title=f"{len(chosen)} of {len(films)} requests, all that failed ({failed}) first",
            footer="green: as asked    red: failed    grey: nothing that was tried holds this object, or part of it",
        )  # fmt: skip
        path = folder / "grasp_sheet.png"
        in_colours([sheet], 256)[0].save(path, optimize=True)
        written.append(path)
    shown = for_video(films) if video else []
    if shown:
        path = folder / "grasp_trials.gif"
        write_gif(path, [image for film in shown for image in frames_of(film, gripper)])
        written.append(path)
    return written


def for_sheet(films: Sequence[Film], tiles: int) -> list[Film]:
    """Failures first, by seed; then as many of the rest, evenly, without those that were rightly not answered."""
    failed = [film for film in films if colour_of(film) == WRONG][:tiles]
    rest = [film for film in films if colour_of(film) != WRONG and film.outcome.answered]
    count = min(tiles - len(failed), len(rest))
    return failed + [rest[int(k)] for k in np.linspace(0, len(rest) - 1, count).round()] if count > 0 else failed


def for_video(films: Sequence[Film]) -> list[Film]:
    """A few executed trials: of each kind of object at most one that held, then failures of different kinds."""
    held: dict[str, Film] = {}
    failed: dict[tuple[str, str], Film] = {}
    for film in (f for f in films if f.outcome.tried and len(f.moments) > 1):
        outcome = film.outcome
        if outcome.held and outcome.right:
            # a part that was asked for and held says more
            if outcome.kind not in held or (outcome.part and not held[outcome.kind].outcome.part):
                held[outcome.kind] = film
        elif outcome.possible:
            failed.setdefault((outcome.reason, outcome.kind), film)
    failures = list(failed.values())[:VIDEO_FAILURES]
    return list(held.values())[: VIDEO_FILMS - len(failures)] + failures


def caption(film: Film) -> str:
    """Two lines: the prompt, and what became of it."""
    outcome = film.outcome
    if outcome.absent:
        told = "absent: answered" if outcome.answered else "absent: no answer, as it should be"
    elif outcome.held and outcome.right:
        told = "held by the " + outcome.part if outcome.part else "held"
    else:
        told = outcome.reason or "held"
    return f"{outcome.prompt}\n{outcome.seed}: {told}"


def colour_of(film: Film) -> tuple[int, int, int]:
    """Of a trial's border and gripper lines."""
    outcome = film.outcome
    if not outcome.absent and not outcome.possible:
        return QUIET
    return RIGHT if outcome.right else WRONG


def tile(film: Film, gripper: GripperConfig, width: int = 240) -> np.ndarray:
    """The end of a trial, with the grasp that was planned: [H, W, 3] uint8, framed in the outcome's colour."""
    camera, T_world_camera = view_of(film, width)
    image = picture(film.outcome.seed, film.moments[-1], gripper, camera, T_world_camera, film.grasp is not None)
    colour = colour_of(film)
    if film.grasp is not None:
        _draw_grasp(image, camera, T_world_camera, film, colour)
    cv2.rectangle(image, (1, 1), (camera.width - 2, camera.height - 2), colour, 3)
    return image


def frames_of(film: Film, gripper: GripperConfig, width: int = 400) -> Iterator[np.ndarray]:
    """A trial as images with a caption, the last one three times."""
    camera, T_world_camera = view_of(film, width)
    keep = np.unique(np.linspace(0, len(film.moments) - 1, VIDEO_FRAMES).round().astype(int))
    text, _, told = caption(film).partition("\n")
    for k in (*keep, keep[-1], keep[-1], keep[-1]):
        image = picture(film.outcome.seed, film.moments[k], gripper, camera, T_world_camera, True)
        band = np.full((30, width, 3), BACKGROUND, np.uint8)
        cv2.putText(band, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.45, TEXT, 1, cv2.LINE_AA)
        if k == keep[-1]:
            told = told.partition(": ")[2] or told
            size = cv2.getTextSize(told, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0]
            cv2.putText(
                band, told, (width - size - 8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour_of(film), 1, cv2.LINE_AA
            )
        yield np.concatenate([image, band])


def view_of(film: Film, width: int) -> tuple[Camera, np.ndarray]:
    """A camera that looks between the fingers, from the side that is nearer to the edge of the table; else at what was
    asked for, or at the whole table."""
    height = width * 3 // 4
    focal = 0.5 * width / float(np.tan(np.radians(FIELD_OF_VIEW_DEG) / 2))
    camera = Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
    focus, away, side = np.array([0.0, 0.0, 0.02]), FAR_M, np.array([0.0, -1.0])
    if film.grasp is not None:
        T = film.grasp.T_world_gripper
        focus, away = T[:3, 3] + [0, 0, ABOVE_M], AWAY_M
        if np.linalg.norm(T[:2, 1]) > 0.2:
            side = T[:2, 1] * (1.0 if T[:2, 1] @ focus[:2] >= 0 else -1.0)
    elif film.focus is not None:
        focus, away = film.focus, AWAY_M
    side = side / np.linalg.norm(side)
    reach = np.array([*(np.cos(ELEVATION_RAD) * side), np.sin(ELEVATION_RAD)])
    return camera, look_at(focus + away * reach, focus)


def picture(
    seed: int, moment: Moment, gripper: GripperConfig, camera: Camera, T_world_camera: np.ndarray, with_gripper: bool
) -> np.ndarray:
    """The scene of a seed at a moment of a trial: [H, W, 3] uint8."""
    objects = _objects(seed)
    placed = standing(objects, tuple(i for i in moment.poses if moment.poses[i][2, 3] > -0.5), moment.poses)
    config = SimulatorConfig(seed=seed, width=camera.width, height=camera.height, processes=0)
    simulator = Simulator(config, objects=tuple(placed.values()))
    cast = simulator.cast(T_world_camera, camera)
    image = np.clip(simulator.shader.shade(camera, T_world_camera, cast), 0, 255)
    if with_gripper:
        lamp = simulator.shader.look.lamp_m
        for T_world_box, half in gripper_boxes(moment.T_world_gripper, moment.opening_m, gripper):
            depth, normal = trace_box(camera, T_world_camera, T_world_box, half)
            seen = np.isfinite(depth) & ((cast.depth_m == 0) | (depth < cast.depth_m))
            light = 0.45 + 0.55 * np.clip(normal @ (lamp / np.linalg.norm(lamp)), 0, 1)
            image[seen] = (GRIPPER_RGB * light[..., None])[seen]
            cast.depth_m[seen] = depth[seen]
    return np.ascontiguousarray(np.rint(image).astype(np.uint8))


def gripper_boxes(
    T_world_gripper: np.ndarray, opening_m: float, gripper: GripperConfig
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Palm and fingers: T_world_box [4, 4] and half extents [3]."""
    breadth, length = gripper.finger_breadth_m / 2, gripper.finger_length_m
    thick, depth = gripper.finger_thickness_m, gripper.palm_depth_m
    middles = [(0.0, 0.0, -length - depth / 2)]
    halves = [(gripper.max_width_m / 2 + thick, breadth, depth / 2)]
    for sign in (-1, 1):
        middles.append((sign * (opening_m + thick) / 2, 0.0, -length / 2))
        halves.append((thick / 2, breadth, length / 2))
    for middle, half in zip(middles, halves):
        T = np.asarray(T_world_gripper, np.float64).copy()
        T[:3, 3] += T[:3, :3] @ np.array(middle)
        yield T, np.array(half)


def trace_box(
    camera: Camera, T_world_camera: np.ndarray, T_world_box: np.ndarray, half_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What every pixel sees of a box (slabs, Kay and Kajiya 1986): z-depth [H, W], inf beside it; normals [H, W, 3]."""
    T = invert(T_world_box) @ np.asarray(T_world_camera, np.float64)
    rays = image_directions(camera).astype(np.float64) @ T[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = (np.array([[[-half_m]], [[half_m]]]).reshape(2, 1, 1, 3) - T[:3, 3]) / rays
    near = np.minimum(ends[0], ends[1])
    enter, leave = near.max(axis=-1), np.maximum(ends[0], ends[1]).min(axis=-1)
    hit = (enter <= leave) & (enter > 0)
    axis = near.argmax(axis=-1)
    normal = np.zeros((*hit.shape, 3))
    np.put_along_axis(normal, axis[..., None], -np.sign(np.take_along_axis(rays, axis[..., None], -1)), -1)
    return np.where(hit, enter, np.inf), normal @ T_world_box[:3, :3].T


def write_gif(path: Path, images: Sequence[np.ndarray], rate_hz: float = VIDEO_HZ) -> None:
    """An endless GIF of images [H, W, 3] uint8, all in the same few colours, which keeps it small."""
    frames = in_colours(images, VIDEO_COLOURS)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / rate_hz), loop=0, optimize=True)


def in_colours(images: Sequence[np.ndarray], count: int) -> list[Image.Image]:
    """Images [H, W, 3] uint8 in one palette of so many colours.

    A shade counts by the logarithm of how much it fills of the picture: a small yellow can on grey stays yellow.
    """
    some = np.concatenate([image[::2, ::2].reshape(-1, 3) for image in images[:: max(1, len(images) // 48)]])
    _, first, filled = np.unique(some >> 2, axis=0, return_index=True, return_counts=True)
    shades = np.repeat(some[first], 1 + np.log2(filled).astype(int), axis=0)
    palette = Image.fromarray(shades[None]).quantize(count, dither=Image.Dither.NONE)
    return [Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE) for image in images]


@lru_cache(maxsize=2)
def _objects(seed: int) -> tuple[Placed, ...]:
    return Simulator(SimulatorConfig(seed=seed)).scene.objects


def _draw_grasp(
    image: np.ndarray, camera: Camera, T_world_camera: np.ndarray, film: Film, colour: tuple[int, int, int]
) -> None:
    assert film.grasp is not None
    for line in gripper_lines(film.grasp.T_world_gripper, film.grasp.width_m):
        ends = project_segment(camera, invert(T_world_camera), line)
        if ends is not None:
            a, b = (tuple(round(float(value)) for value in end) for end in ends)
            cv2.line(image, a, b, colour, 1, cv2.LINE_AA)
