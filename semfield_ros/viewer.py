"""Pictures of what the map knows: colours for features, depth and relevancy, boxes and grasps, one sheet of all.

NumPy arrays in, [H, W, 3] uint8 RGB out; nothing opens a window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import ConfigError
from .geometry import Camera, invert, transform_points

BACKGROUND = (22, 24, 29)
TEXT = (236, 238, 242)
QUIET = (150, 156, 168)
RULE = (58, 62, 72)
UNKNOWN = (44, 46, 52)
"""Colour of what was not measured."""
OBJECT_COLOURS = ((255, 196, 61), (90, 200, 250), (255, 105, 130), (120, 220, 130), (190, 140, 255), (255, 150, 70))
GRASP = (255, 255, 255)
NEAR_M = 0.02
"""Lines are cut off where they come nearer than this to the camera's plane."""

_MAPS = {
    name: getattr(cv2, f"COLORMAP_{name.upper()}")
    for name in ("turbo", "viridis", "magma", "inferno", "plasma", "cividis", "bone")
}
_EDGES = [(a, a | bit) for a in range(8) for bit in (1, 2, 4) if not a & bit]


class Box(Protocol):
    """An oriented box: centre [3] metres, axes [3, 3] with columns the box's axes in the world, half_extents [3]."""

    centre: np.ndarray
    axes: np.ndarray
    half_extents: np.ndarray


def colour_map(values: np.ndarray, name: str = "turbo") -> np.ndarray:
    """Values in [0, 1] (clipped) of any shape [...] as colours [..., 3] uint8; NaN is `UNKNOWN`."""
    if name not in _MAPS:
        raise ConfigError(f"colour map {name!r} is not known; allowed: {', '.join(_MAPS)}")
    values = np.asarray(values, dtype=np.float32)
    levels = np.arange(256, dtype=np.uint8)[:, None]
    table = cv2.applyColorMap(levels, _MAPS[name])[:, 0, ::-1]
    known = ~np.isnan(values)
    index = np.rint(np.clip(np.where(known, values, 0), 0, 1) * 255).astype(np.uint8)
    out: np.ndarray = np.where(known[..., None], table[index], np.array(UNKNOWN, np.uint8))
    return out


def depth_image(depth_m: np.ndarray, range_m: tuple[float, float] | None = None) -> np.ndarray:
    """Depth [H, W] metres as colours, near bright; 0 and non-finite (no measurement) are `UNKNOWN`.

    `range_m` is what the colours span; None = the 1 to 99% quantiles of this image.
    """
    depth = np.asarray(depth_m, dtype=np.float32)
    valid = np.isfinite(depth) & (depth > 0)
    if range_m is None:
        range_m = tuple(np.quantile(depth[valid], [0.01, 0.99])) if valid.any() else (0.0, 1.0)
    near, far = range_m
    return colour_map(np.where(valid, 1 - (depth - near) / max(far - near, 1e-6), np.nan), "magma")


def overlay(rgb: np.ndarray, relevancy: np.ndarray, no_match: float = 0.5, high: float = 1.0) -> np.ndarray:
    """An image [H, W, 3] uint8, dimmed and grey, with relevancy [h, w] over it: clear at `no_match`, full at `high`.

    Relevancy is stretched to the image's size; NaN (never seen) stays bare.
    """
    if high <= no_match:
        raise ConfigError(f"overlay spans {no_match} to {high}; expected no_match < high")
    height, width = rgb.shape[:2]
    heat = np.asarray(relevancy, dtype=np.float32)
    if heat.ndim != 2 or heat.size == 0:
        raise ConfigError(f"relevancy has shape {heat.shape}; expected [h, w]")
    seen = np.where(np.isfinite(heat), heat, no_match)
    share: np.ndarray = np.clip((seen - no_match) / (high - no_match), 0, 1).astype(np.float32)
    if share.shape != (height, width):
        share = cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR)
    grey = rgb.astype(np.float32).mean(axis=2, keepdims=True)
    base = 0.62 * (0.45 * rgb + 0.55 * grey)
    alpha = 0.82 * np.sqrt(share)[..., None]
    return np.rint((1 - alpha) * base + alpha * colour_map(0.25 + 0.65 * share)).astype(np.uint8)


def box_corners(box: Box) -> np.ndarray:
    """The corners [8, 3] of an oriented box; bit k of a corner's number says on which side of axis k it lies."""
    signs = np.array([[1.0 if corner >> k & 1 else -1.0 for k in range(3)] for corner in range(8)])
    corners: np.ndarray = np.asarray(box.centre) + (signs * np.asarray(box.half_extents)) @ np.asarray(box.axes).T
    return corners


def project_segment(camera: Camera, T_camera_world: np.ndarray, ends_world: np.ndarray) -> np.ndarray | None:
    """Pixel coordinates [2, 2] (u, v) of a line between two world points [2, 3], cut off in front of the camera.

    None where nothing of it lies in front, or an end is not finite.
    """
    a, b = transform_points(T_camera_world, np.asarray(ends_world, dtype=np.float64))
    if not np.isfinite([a, b]).all() or (a[2] < NEAR_M and b[2] < NEAR_M):
        return None
    if a[2] < NEAR_M:
        a = b + (a - b) * (b[2] - NEAR_M) / (b[2] - a[2])
    elif b[2] < NEAR_M:
        b = a + (b - a) * (a[2] - NEAR_M) / (a[2] - b[2])
    points = np.stack([a, b])
    return points[:, :2] / points[:, 2:] * [camera.fx, camera.fy] + [camera.cx, camera.cy]


def gripper_lines(T_world_gripper: np.ndarray, width_m: float, finger_m: float = 0.045) -> np.ndarray:
    """A parallel gripper as a U with a stem, world lines [4, 2, 3]: two fingers, the palm, the wrist.

    Gripper frame: origin between the fingertips, x the closing direction, z the approach direction.
    """
    half = width_m / 2
    tip_a, tip_b, root_a, root_b = [-half, 0, 0], [half, 0, 0], [-half, 0, -finger_m], [half, 0, -finger_m]
    palm, wrist = [0, 0, -finger_m], [0, 0, -2 * finger_m]
    lines = np.array([[tip_a, root_a], [tip_b, root_b], [root_a, root_b], [palm, wrist]], dtype=np.float64)
    return transform_points(T_world_gripper, lines)


def _line(image: np.ndarray, ends: np.ndarray | None, colour: Sequence[int], width: int) -> None:
    """An antialiased line at sub-pixel position; ends far outside are left to OpenCV's clipping."""
    if ends is None or np.abs(ends).max() > 1e6:
        return
    a, b = (tuple(round(16 * float(value)) for value in end) for end in ends)
    cv2.line(image, a, b, tuple(int(c) for c in colour), width, cv2.LINE_AA, 4)


def _font(size: float) -> Any:
    return ImageFont.load_default(size)


def _tags(image: np.ndarray, tags: Sequence[tuple[str, float, float, tuple[int, int, int]]], size: float) -> np.ndarray:
    """Small labels (text, u, v, colour) above the given points, kept inside the image and off each other."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    font, pad = _font(size), max(2, round(size / 4))
    taken: list[tuple[float, float, float, float]] = []
    for text, u, v, colour in tags:
        wide, high = draw.textlength(text, font=font) + 3 * pad, size + 2 * pad
        x = min(max(0.0, u - wide / 2), max(0.0, image.shape[1] - wide))
        y = min(max(0.0, v - high - 2 * pad), max(0.0, image.shape[0] - high))
        for _ in taken:
            hit = [t for t in taken if x < t[2] and t[0] < x + wide and y < t[3] and t[1] < y + high]
            if not hit:
                break
            below = max(t[3] for t in hit) + 1
            y = below if below + high <= image.shape[0] else max(0.0, min(t[1] for t in hit) - high - 1)
        taken.append((x, y, x + wide, y + high))
        draw.rounded_rectangle((x, y, x + wide, y + high), radius=pad, fill=colour)
        draw.text((x + wide / 2, y + high / 2), text, font=font, fill=BACKGROUND, anchor="mm")
    return np.asarray(canvas).copy()


def draw_boxes(
    rgb: np.ndarray,
    camera: Camera,
    T_world_camera: np.ndarray,
    objects: Sequence[Any],
    *,
    grasps: int = 1,
    scale: int = 1,
) -> np.ndarray:
    """Oriented boxes with label and score, and the first `grasps` grasps of each, over an image [H, W, 3] uint8.

    Args:
        camera, T_world_camera: of this image.
        objects: anything with `label`, `score`, `box` (a `Box`) and `grasps`, a list of things with `T_world_gripper`
            [4, 4] and `width_m`. What lies behind the camera is left out.
        scale: the result is this many times as large, which small images need for thin lines and legible labels.
    """
    if rgb.shape[:2] != (camera.height, camera.width):
        raise ConfigError(f"image is {rgb.shape[1]}x{rgb.shape[0]}, the camera {camera.width}x{camera.height}")
    size = (camera.width * scale, camera.height * scale)
    camera = camera.resized(*size)
    out = cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC) if scale != 1 else rgb.copy()
    T_camera_world = invert(np.asarray(T_world_camera, dtype=np.float64))
    stroke = max(1, round(size[1] / 260))
    tags = []
    for number, thing in enumerate(objects):
        colour = OBJECT_COLOURS[number % len(OBJECT_COLOURS)]
        corners = box_corners(thing.box)
        hidden = int(np.argmax(np.linalg.norm(corners - np.asarray(T_world_camera)[:3, 3], axis=1)))
        drawn = []
        for edge in sorted(_EDGES, key=lambda ends: hidden not in ends):
            ends = project_segment(camera, T_camera_world, corners[list(edge)])
            shade = [c // 2 for c in colour] if hidden in edge else colour
            _line(out, ends, shade, max(1, stroke // 2) if hidden in edge else stroke)
            drawn += [] if ends is None else [ends]
        for grasp in thing.grasps[:grasps]:
            for ends_world in gripper_lines(grasp.T_world_gripper, grasp.width_m):
                ends = project_segment(camera, T_camera_world, ends_world)
                _line(out, ends, BACKGROUND, stroke + 2)
                _line(out, ends, GRASP, stroke)
        if drawn:
            points = np.concatenate(drawn)
            inside = (points > -0.5).all(1) & (points < np.array(size) - 0.5).all(1)
            if inside.any():
                top = points[inside][:, 1].min()
                tags.append((f"{thing.prompt}  {thing.score:.2f}", points[inside][:, 0].mean(), top, colour))
    return _tags(out, tags, max(9.0, size[1] / 27))


def _as_rgb(caption: str, image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim == 2 and image.dtype == np.uint8:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ConfigError(f"tile {caption!r} is {image.dtype} {image.shape}; expected uint8 [H, W] or [H, W, 3]")
    return image


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: Any, width: float) -> str:
    """The text, with an ellipsis where it would be wider than `width` pixels."""
    if draw.textlength(text, font=font) <= width:
        return text
    fitting = bisect_right(range(len(text)), width, key=lambda n: draw.textlength(text[:n] + "…", font=font))
    return text[: max(0, fitting - 1)].rstrip() + "…"


def contact_sheet(
    tiles: Sequence[tuple[str, np.ndarray]],
    columns: int = 4,
    title: str = "",
    tile_width: int = 320,
    footer: str = "",
    relevancy_bar: tuple[float, float] | None = None,
) -> np.ndarray:
    """One picture of many: a title, captioned tiles in rows, a footer: [H, W, 3] uint8.

    Args:
        tiles: (caption, image) pairs, uint8 [H, W] or [H, W, 3]. A second line of a caption is set smaller. Images of
            other shapes than the first are fitted into its frame.
        relevancy_bar: the (no_match, high) of the `overlay` tiles: adds a colour bar to the footer.
    """
    if columns < 1 or tile_width < 32:
        raise ConfigError(f"contact sheet of {columns} columns, {tile_width} px wide; allowed: >= 1 and >= 32")
    images = [_as_rgb(caption, image) for caption, image in tiles]
    columns = max(1, min(columns, len(tiles)))
    unit = tile_width / 320
    gap, margin = round(18 * unit), round(30 * unit)
    large, medium, small = _font(26 * unit), _font(15 * unit), _font(12.5 * unit)
    tile_height = round(tile_width * images[0].shape[0] / images[0].shape[1]) if images else round(40 * unit)
    second = any("\n" in caption for caption, _ in tiles)
    caption_height = round((46 if second else 30) * unit)
    rows = -(-len(tiles) // columns) if tiles else 1
    top = margin + (round(52 * unit) if title else 0)
    bottom = margin + (round(40 * unit) if footer or relevancy_bar else 0)
    width = max(2 * margin + columns * tile_width + (columns - 1) * gap, round(480 * unit))
    height = top + rows * (tile_height + caption_height) + (rows - 1) * gap + bottom
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)

    if title:
        draw.text((margin, margin + 10 * unit), _fitted(draw, title, large, width - 2 * margin), TEXT, large, "lm")
        draw.line((margin, top - 18 * unit, width - margin, top - 18 * unit), RULE, max(1, round(unit)))
    if not tiles:
        draw.text((margin, top + tile_height / 2), "nothing to show", QUIET, medium, "lm")
    for number, ((caption, _), image) in enumerate(zip(tiles, images)):
        x = margin + number % columns * (tile_width + gap)
        y = top + number // columns * (tile_height + caption_height + gap)
        fit = min(tile_width / image.shape[1], tile_height / image.shape[0])
        size = (max(1, round(image.shape[1] * fit)), max(1, round(image.shape[0] * fit)))
        shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA if fit < 1 else cv2.INTER_CUBIC)
        if size != (tile_width, tile_height):
            draw.rectangle((x, y, x + tile_width - 1, y + tile_height - 1), UNKNOWN)
        canvas.paste(Image.fromarray(shown), (x + (tile_width - size[0]) // 2, y + (tile_height - size[1]) // 2))
        first, _, rest = caption.partition("\n")
        below = y + tile_height + 16 * unit
        draw.text((x, below), _fitted(draw, first, medium, tile_width), TEXT, medium, "lm")
        rest = _fitted(draw, rest.replace("\n", " "), small, tile_width)
        draw.text((x, below + 18 * unit), rest, QUIET, small, "lm")

    line, right = float(height - margin), float(width - margin)
    if relevancy_bar is not None:
        right = _draw_bar(canvas, relevancy_bar, right, line, unit, small) - gap
    draw.text((margin, line), _fitted(draw, footer, small, right - margin), QUIET, small, "lm")
    return np.asarray(canvas).copy()


def _draw_bar(
    canvas: Image.Image, bounds: tuple[float, float], right: float, line: float, unit: float, font: Any
) -> float:
    """The colour bar of `overlay`, ending at `right` and centred on the height `line`; returns where it begins."""
    draw = ImageDraw.Draw(canvas)
    low, high = (f"{value:.2f}" for value in bounds)
    wide, tall, pad = round(140 * unit), max(2, round(10 * unit)), 8 * unit
    draw.text((right, line), high, QUIET, font, "rm")
    x = round(right - draw.textlength(high, font=font) - pad - wide)
    strip = overlay(np.full((tall, wide, 3), 90, np.uint8), np.tile(np.linspace(0, 1, wide), (tall, 1)), 0.0, 1.0)
    canvas.paste(Image.fromarray(strip), (x, round(line - tall / 2)))
    draw.text((x - pad, line), f"relevancy  {low}", QUIET, font, "rm")
    return x - pad - draw.textlength(f"relevancy  {low}", font=font)
