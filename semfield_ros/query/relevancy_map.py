"""Relevancy maps of views: where in an image a prompt is, at which scale, and a picture of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import QueryError
from ..field.snapshot import Snapshot
from ..geometry import Camera, back_project
from .prompt import EncodedPrompts
from .scales import score_scales
from .scores import Source, score_points
from .view import View, render_view


@dataclass(frozen=True)
class RelevancyMaps:
    """A view and its relevancy.

    Attributes:
        view: colour and depth as the field knows them. relevancy: [H, W, Q], 0 = unseen.
        scale_m: [Q] the scale each prompt was looked for at; None where there is none.
    """

    view: View
    relevancy: np.ndarray
    scale_m: np.ndarray | None

    def peak(self, prompt: int) -> tuple[int, int]:
        """Row and column of the pixel where a prompt is most relevant (LERF's localisation)."""
        v, u = np.unravel_index(int(self.relevancy[..., prompt].argmax()), self.relevancy.shape[:2])
        return int(v), int(u)


def relevancy_maps(
    snapshot: Snapshot,
    camera: Camera,
    T_world_camera: np.ndarray,
    texts: EncodedPrompts,
    *,
    source: Source = "scales",
    temperature: float = 10.0,
    far_m: float = 6.0,
    view: View | None = None,
) -> RelevancyMaps:
    """Relevancy of prompts over a view rendered from a pose (OpenCV optical axes).

    With source scales each prompt is shown at the scale where it is most relevant anywhere in this view (LERF).

    Args:
        view: the same, where it has been rendered already.

    Raises:
        QueryError: there is nothing to render, or no scales were learnt yet.
    """
    view = view or render_view(snapshot, camera, T_world_camera, far_m=far_m)
    points, pixels = back_project(camera, T_world_camera, view.depth_m)
    scale_m = None
    if source == "scales":
        found = score_scales(snapshot, texts, points, temperature=temperature)
        scores, scale_m = found.scores, found.scale_m
    else:
        scores = score_points(snapshot, texts, points, source=source, temperature=temperature)
    relevancy = np.zeros((camera.height * camera.width, len(texts.prompts)), np.float32)
    relevancy[pixels] = scores.relevancy
    return RelevancyMaps(view, relevancy.reshape(camera.height, camera.width, -1), scale_m)


def strength(relevancy: np.ndarray) -> np.ndarray:
    """LERF's display: clip(relevancy - .5) to [0, .5], as a share of its largest value. [...] -> [...] in [0, 1].

    A half is where a prompt is as near as the nearest negative: below, nothing is shown.
    """
    above = np.clip(relevancy - 0.5, 0, 0.5).astype(np.float32)
    return above / max(float(above.max(initial=0)), 1e-6)


def picture(relevancy: np.ndarray, rgb: np.ndarray | None = None) -> np.ndarray:
    """`strength` of [H, W] in colours (turbo): [H, W, 3] uint8; over an image [H, W, 3] uint8 where there is one."""
    share = strength(relevancy)
    levels = np.rint(share * 255).astype(np.uint8)
    colours = np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[..., ::-1])
    if rgb is None:
        return colours
    if rgb.shape != colours.shape:
        raise QueryError(f"the image is {rgb.shape}, the relevancy {relevancy.shape}; they must be of one size")
    grey = rgb.mean(-1, keepdims=True).repeat(3, -1)
    opacity = np.sqrt(share)[..., None] * 0.8
    return np.rint(opacity * colours + (1 - opacity) * grey).astype(np.uint8)


def write_picture(path: Path, relevancy: np.ndarray, rgb: np.ndarray | None = None) -> Path:
    """`picture` as a PNG file.

    Raises:
        QueryError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() != ".png" or not cv2.imwrite(str(path), picture(relevancy, rgb)[..., ::-1]):
        raise QueryError(f"{path} cannot be written; expected a name ending in .png in a folder that may be written to")
    return path
