"""Frames written in the layout of Semantic-NeRF's Replica renders, so that its code can read them.

rgb/rgb_N.png, depth/depth_N.png (uint16 millimetres), semantic_class/semantic_class_N.png (uint8, 0 = void),
traj_w_c.txt (16 numbers a line, T_world_camera), info_semantic.json (names). That code takes the horizontal field of
view to be 90 degrees and the centre (W - 1) / 2.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..errors import SourceError
from ..frame import Frame

CLASSES = 101
"""That code expects so many names, without void."""


def write_replica_layout(folder: Path, frames: Sequence[Frame], class_names: Sequence[str]) -> None:
    """Write frames; class_names by semantic id, the first being void.

    Raises:
        SourceError: frames without labels, a camera of another shape, or ids that do not fit.
    """
    if len(class_names) - 1 > CLASSES:
        raise SourceError(f"{len(class_names) - 1} classes; allowed: at most {CLASSES} beside void")
    for name in ("rgb", "depth", "semantic_class"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(frames):
        camera = frame.camera
        expected = (camera.width / 2, camera.width / 2, (camera.width - 1) / 2, (camera.height - 1) / 2)
        if not np.allclose((camera.fx, camera.fy, camera.cx, camera.cy), expected, atol=1e-3):
            raise SourceError(
                f"frame {i} has intrinsics {camera}; this layout allows only a horizontal field of view of 90 degrees "
                f"with the centre in the middle: fx, fy, cx, cy = {expected}"
            )
        if frame.semantic is None or not (0 <= frame.semantic.min() and frame.semantic.max() < len(class_names)):
            raise SourceError(
                f"frame {i} has no labels, or ids outside 0..{len(class_names) - 1}; this layout needs them"
            )
        cv2.imwrite(str(folder / "rgb" / f"rgb_{i}.png"), np.ascontiguousarray(frame.rgb[..., ::-1]))
        millimetres = np.rint(frame.depth_m * 1000).clip(0, 65535).astype(np.uint16)
        cv2.imwrite(str(folder / "depth" / f"depth_{i}.png"), millimetres)
        cv2.imwrite(
            str(folder / "semantic_class" / f"semantic_class_{i}.png"), frame.semantic.astype(np.uint8)
        )
    np.savetxt(folder / "traj_w_c.txt", np.stack([f.T_world_camera.reshape(16) for f in frames]))
    names = [*class_names[1:], *(f"unused {k}" for k in range(CLASSES - len(class_names) + 1))]
    description = {
        "classes": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
        "id_to_label": list(range(len(names) + 1)),
    }
    (folder / "info_semantic.json").write_text(json.dumps(description), encoding="utf-8")
