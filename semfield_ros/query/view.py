"""Views: what the field looks like from anywhere, in colour, depth, features and relevancy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import QueryError
from ..field.render import Rendering, render
from ..field.snapshot import Snapshot
from ..geometry import Camera, image_directions, transform_points
from .prompt import EncodedPrompts
from .scores import Source, score_points

MAX_PIXELS = 4_000_000


@dataclass(frozen=True)
class View:
    """A rendered view, H x W.

    Attributes:
        rgb: [H, W, 3] uint8. depth_m: [H, W] float32 z-depth, 0 = nothing there. accumulation: [H, W] in [0, 1].
        features: [H, W, D] float32, or None. relevancy: [H, W, Q] float32 (0 = unseen), or None.
    """

    rgb: np.ndarray
    depth_m: np.ndarray
    accumulation: np.ndarray
    features: np.ndarray | None
    relevancy: np.ndarray | None


def render_view(
    snapshot: Snapshot,
    camera: Camera,
    T_world_camera: np.ndarray,
    *,
    texts: EncodedPrompts | None = None,
    features: bool = False,
    source: Source = "auto",
    score: str = "relevancy",
    temperature: float = 10.0,
    far_m: float = 6.0,
) -> View:
    """Render the field from a pose (OpenCV optical axes). O(pixels).

    Args:
        texts: prompts to show relevancy (or, with `score`, cosine) of. features: render the language head as well.

    Raises:
        QueryError: there is no field yet, too many pixels, or features before the field has learnt any.
    """
    if features and snapshot.field is not None and not snapshot.language:
        raise QueryError("the field has not learnt features yet; wait for the first training steps")
    out = rendered(snapshot, camera, T_world_camera, ("rgb", "language") if features else ("rgb",), far_m)
    pixels, shape = camera.width * camera.height, (camera.height, camera.width)
    T = T_world_camera.astype(np.float32)
    local = image_directions(camera).reshape(-1, 3)
    depth_m = out.depth.cpu().numpy()
    relevancy = None
    if texts is not None:
        hit = np.flatnonzero(depth_m > 0)
        points = transform_points(T, local[hit] * depth_m[hit, None])
        scores = score_points(snapshot, texts, points, source=source, temperature=temperature)
        values = np.zeros((pixels, len(texts.prompts)), np.float32)
        values[hit] = scores.relevancy if score == "relevancy" else scores.cosine
        relevancy = values.reshape(*shape, -1)
    return View(
        (out.outputs["rgb"].clamp(0, 1) * 255).round().byte().cpu().numpy().reshape(*shape, 3),
        depth_m.reshape(shape),
        out.accumulation.cpu().numpy().reshape(shape),
        out.outputs["language"].cpu().numpy().reshape(*shape, -1) if features else None,
        relevancy,
    )


def rendered(
    snapshot: Snapshot, camera: Camera, T_world_camera: np.ndarray, heads: tuple[str, ...], far_m: float
) -> Rendering:
    """Heads rendered for every pixel of a camera, row-major; blocks that have not learnt them show nothing. O(pixels).

    Raises:
        QueryError: there is no field yet, or too many pixels.
    """
    pixels = camera.width * camera.height
    if not 0 < pixels <= MAX_PIXELS:
        raise QueryError(f"a view of {camera.width}x{camera.height} pixels; allowed: 1 to {MAX_PIXELS} pixels in all")
    field = snapshot.field
    if field is None:
        raise QueryError("there is no field to render yet; feed frames first")
    device = next(field.parameters()).device
    T = T_world_camera.astype(np.float32)
    local = image_directions(camera).reshape(-1, 3)
    rays = torch.from_numpy(np.ascontiguousarray(local @ T[:3, :3].T)).to(device)
    origins = torch.from_numpy(T[:3, 3].copy()).to(device).expand_as(rays)
    return _render_blocks(snapshot, origins, rays, heads, far_m)


def _render_blocks(
    snapshot: Snapshot, origins: torch.Tensor, rays: torch.Tensor, heads: tuple[str, ...], far_m: float
) -> Rendering:
    """Every block shows what lies in its own space; of several the nearest is seen. O(blocks in reach x rays)."""
    eye = origins[0].cpu().numpy().astype(np.float64)
    reach_m = far_m * float(rays.norm(dim=-1).max())
    best: Rendering | None = None
    for block in snapshot.within(eye - reach_m, eye + reach_m).blocks():
        field = block.snapshot.field
        if field is None or not all(_taught(block.snapshot, name) for name in heads):
            continue
        out = render(field, origins, rays, heads, far_m=far_m)
        low, high = (torch.as_tensor(c).to(origins) for c in (block.low_m, block.high_m))
        hits = origins + rays * out.depth[:, None]
        inside = ((hits >= low) & (hits <= high)).all(1)
        elsewhere = (out.depth > 0) & ~inside
        for values in (out.depth, out.accumulation, out.entropy, *out.outputs.values()):
            values[elsewhere] = 0
        if best is None:
            best = out
            continue
        nearer = (out.depth > 0) & ((best.depth <= 0) | (out.depth < best.depth))
        for old, new in (
            (best.accumulation, out.accumulation), (best.entropy, out.entropy), (best.depth, out.depth),
            *((best.outputs[name], out.outputs[name]) for name in heads),
        ):  # fmt: skip
            old[nearer] = new[nearer]
    if best is None:
        raise QueryError("there is no field in sight of this camera; look at what was mapped")
    return best


def _taught(snapshot: Snapshot, name: str) -> bool:
    """Whether a block's field has learnt a head."""
    return name == "rgb" or (snapshot.language if name == "language" else snapshot.learnt.get(name, 0) > 0)
