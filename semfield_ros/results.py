"""Results of a session as files: clouds, objects, the map, and one sheet of pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from .answer import Answer
from .config import GripperConfig
from .engine import Engine
from .export import objects_json, write_file, write_json, write_ply
from .field.snapshot import Snapshot
from .frame import Frame
from .geometry import image_directions, visible
from .query.pca import PcaColours
from .query.scores import score_points
from .query.view import render_view
from .session import Session
from .viewer import contact_sheet, depth_image, draw_boxes, overlay


def best_view(frames: Sequence[Frame], answer: Answer) -> Frame:
    """The frame that sees most of the found objects, each counted by the share of its points in view."""

    def seen(frame: Frame) -> float:
        total = 0.0
        for thing in answer.objects:
            mask, _ = visible(
                frame.camera, frame.T_world_camera, frame.depth_m, thing.cloud.points, tolerance_m=0.03, border_px=8
            )
            total += float(mask.mean())
        return total

    return max(frames, key=seen)


def slug(text: str) -> str:
    """A file name from a prompt: letters, digits and dashes only, never empty, never a path."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "prompt"


def relevancy_image(engine: Engine, snapshot: Snapshot, frame: Frame, prompts: list[str]) -> np.ndarray:
    """Relevancy [H, W, Q] of prompts at the surface a frame measured; nan where nothing is known."""
    camera, T = frame.camera, frame.T_world_camera.astype(np.float32)
    hit = np.flatnonzero(frame.depth_m.reshape(-1) > 0)
    rays = image_directions(camera).reshape(-1, 3)[hit]
    points = (rays * frame.depth_m.reshape(-1)[hit, None]) @ T[:3, :3].T + T[:3, 3]
    scores = score_points(snapshot, engine.prompts.encode(prompts), points)
    image = np.full((camera.height * camera.width, len(prompts)), np.nan, np.float32)
    image[hit] = np.where(scores.seen[:, None], scores.relevancy, np.nan)
    return image.reshape(camera.height, camera.width, -1)


def sheet(
    engine: Engine, snapshot: Snapshot, frame: Frame, answer: Answer, prompts: list[str], title: str, footer: str
) -> np.ndarray:
    """The contact sheet: what the camera saw, what the field learnt, what the words found."""
    view = render_view(
        snapshot, frame.camera, frame.T_world_camera, features=True, far_m=engine.config.frame.max_depth_m
    )
    assert view.features is not None
    seen = view.depth_m > 0
    colours = np.full(view.rgb.shape, 40, np.uint8)
    if seen.any():
        colours[seen] = PcaColours()(view.features[seen])
    valid = frame.depth_m[frame.depth_m > 0]
    span = (float(valid.min()), float(np.percentile(valid, 99))) if len(valid) else (0.0, 1.0)
    error_m = np.median(np.abs(view.depth_m - frame.depth_m)[(frame.depth_m > 0) & seen]) if seen.any() else np.nan
    boxes = draw_boxes(frame.rgb, frame.camera, frame.T_world_camera, answer.objects, grasps=1, scale=2)
    tiles = [
        ("camera", frame.rgb),
        ("depth, measured", depth_image(frame.depth_m, span)),
        (f"depth, rendered\nmedian error {error_m * 1000:.0f} mm in this view", depth_image(view.depth_m, span)),
        ("colour, rendered", view.rgb),
        ("features, first three components", colours),
        ("objects, boxes and best grasps", boxes),
    ]
    relevancy = relevancy_image(engine, snapshot, frame, prompts)
    for q, found in enumerate(answer.prompts):
        note = f"{len(found.objects)} found, peak {found.peak:.2f}" if found.matched else f"no match ({found.peak:.2f})"
        heat = overlay(frame.rgb, relevancy[..., q], answer.no_match, 1.0)
        tiles.append((f"“{found.label}”\n{note}", heat))
    return contact_sheet(tiles, 4, title, 360, footer, relevancy_bar=(answer.no_match, 1.0))


def write_answer(directory: Path, answer: Answer, gripper: GripperConfig) -> list[Path]:
    """Labelled and relevancy clouds and objects.json into a folder (made if need be, same names overwritten)."""
    cloud, scores = answer.cloud, answer.scores
    written = []
    label = np.full(len(cloud), -1, np.int32)
    instance = np.full(len(cloud), -1, np.int32)
    confidence = np.zeros(len(cloud), np.float32)
    for number, thing in enumerate(answer.objects):
        rows = thing.rows[thing.confidence > confidence[thing.rows]]
        label[rows] = [p.label for p in answer.prompts].index(thing.prompt)
        instance[rows], confidence[rows] = number, thing.confidence
    names = ", ".join(f"{i}={slug(p.label)}" for i, p in enumerate(answer.prompts))
    written.append(
        write_ply(
            directory / "labelled.ply", cloud.points, normals=cloud.normals, rgb=cloud.rgb,
            scalars={"label": label, "instance": instance, "confidence": confidence,
                     "seen": scores.seen, "observations": cloud.observations},
            comments=[f"frame {answer.global_frame}, metres; label -1 = none; {names}"], overwrite=True,
        )
    )  # fmt: skip
    for q, prompt in enumerate(answer.prompts):
        written.append(
            write_ply(
                directory / f"relevancy-{q:02d}-{slug(prompt.label)}.ply", cloud.points, rgb=cloud.rgb,
                scalars={"relevancy": scores.relevancy[:, q], "cosine": scores.cosine[:, q], "seen": scores.seen},
                comments=[f"frame {answer.global_frame}, metres; prompt {slug(prompt.label)}"], overwrite=True,
            )
        )  # fmt: skip
    data = objects_json(answer.objects, global_frame=answer.global_frame, stamp_s=answer.stamp_s, gripper=gripper)
    data["prompts"] = [
        {"label": p.label, "matched": p.matched, "peak": float(p.peak) if np.isfinite(p.peak) else None}
        for p in answer.prompts
    ]
    data["source"], data["no_match"], data["high"] = answer.source, answer.no_match, answer.high
    written.append(write_json(directory / "objects.json", data, overwrite=True))
    return written


def write_results(
    directory: Path, engine: Engine, session: Session, answer: Answer, prompts: list[str], title: str
) -> list[Path]:
    """An answer's files, the saved map, and the contact sheet; returns what was written."""
    snapshot = engine.snapshot(fresh=True)
    written = write_answer(directory, answer, engine.config.gripper)
    written.append(engine.save(directory / "map", overwrite=True))
    if session.views and snapshot.field is not None:
        frame = best_view(session.views, answer)
        status = engine.status().mapping
        footer = (
            f"{snapshot.frames} frames, {status.keyframes} keyframes, {snapshot.step} training steps, "
            f"{len(snapshot.cloud)} voxels; answered from {answer.source}; frame {answer.global_frame}, metres"
        )
        picture = sheet(engine, snapshot, frame, answer, prompts, title, footer)
        _, png = cv2.imencode(".png", picture[..., ::-1])
        written.append(write_file(directory / "sheet.png", png.tobytes(), overwrite=True))
    return written
