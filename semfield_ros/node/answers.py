"""Answers as messages: everything the map says, in the types of `msg/`, vision_msgs and visualization_msgs."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..answer import Answer
from ..cloud import SurfaceCloud, sureness
from ..config import GripperConfig, SemfieldConfig
from ..engine import EngineStatus
from ..geometry import invert
from ..memory.keyframes import Keyframe
from ..messages.clouds import to_cloud
from ..messages.poses import header_of, pose_of, time_of
from ..messages.types import types
from ..objects import Object
from ..objects.grasping import grasp_scene
from ..query.scales import ScaleScores
from ..viewer import gripper_lines, overlay
from .grasp_messages import grasp_fields, opening_m, point, poses, vector
from .palette import class_colour
from .things import UNKNOWN, About

SOURCES = {"mixed": 1, "field": 2, "points": 3}
GRASPS_SHOWN = 3
"""Grasps drawn of each object."""
_LINE_LIST, _TEXT, _DELETE_ALL = 5, 9, 3
_LINE_M, _TEXT_M = 0.003, 0.03
_NORMALS_LOOKED_AT = 64


def map_header(stamp_s: float, global_frame: str) -> Any:
    """Header of whatever is said of the map: stamp of its last fused frame (zero before the first), global_frame."""
    return header_of(stamp_s if np.isfinite(stamp_s) else 0, global_frame)


def ranked(answer: Answer) -> list[Object]:
    """Objects of all prompts, best first: those of one prompt stay in their order, prompts are merged by score."""
    return list(heapq.merge(*(p.objects for p in answer.prompts), key=lambda o: -o.score))


# ---- Answer.msg ---------------------------------------------------------------------------------------------------


def answer_message(
    answer: Answer,
    scores: np.ndarray,
    *,
    with_cloud: bool = False,
    with_object_clouds: bool = False,
    with_grasps: bool = False,
    config: SemfieldConfig | None = None,
    keyframes: Sequence[Keyframe] = (),
    known: Sequence[About] = (),
) -> Any:
    """semfield_ros/msg/Answer.

    Args:
        scores: [N, Q], what was asked for: `answer.scores.relevancy` or `.cosine`.
        with_grasps: whether grasps were looked for; objects without any then say why.
        config: with which it was answered. keyframes: with_object_clouds says from which of them an object was seen.
        known: what heads say about each of `ranked(answer)`, where any do.
    """
    header = map_header(answer.stamp_s, answer.global_frame)
    things = ranked(answer)
    config = config or SemfieldConfig()
    messages = []
    for place, thing in enumerate(things):
        extra = grasp_fields(thing, header, config, asked=with_grasps) | _part(thing, answer.cloud)
        if with_object_clouds:
            views = view_points(thing, keyframes, config.frame.max_depth_m)
            extra |= {
                "cloud": surface(thing.cloud, header),
                "surroundings": to_cloud(surroundings(answer.cloud, thing, config), header),
                "view_points": [point(at) for at in views],
            }
            if thing.part is not None:
                extra["part_cloud"] = surface(answer.cloud[thing.part.rows], header)
        messages.append(_object(thing, place, known[place] if known else UNKNOWN, **extra))
    seen = answer.scores.seen
    peaks = [p.peak if np.isfinite(p.peak) else np.nan for p in answer.prompts]
    return types().new(
        "semfield_ros/msg/Answer",
        header=header,
        source=SOURCES[answer.source],
        prompts=[p.label for p in answer.prompts],
        found=np.array([p.matched for p in answer.prompts], bool),
        parts=[p.part for p in answer.prompts],
        parts_found=np.array([bool(p.part) and p.part_found for p in answer.prompts], bool),
        best_scores=np.array(peaks, np.float32),
        no_match=float(answer.no_match),
        high=float(answer.high),
        seen_fraction=float(seen.mean()) if len(seen) else 0.0,
        objects=messages,
        **({"cloud": scored_cloud(answer, scores, header)} if with_cloud else {}),
        **_scales(answer.scales),
    )


def _scales(found: ScaleScores | None) -> dict[str, Any]:
    """The fields of an Answer that say at which scales prompts were looked for."""
    if found is None:
        return {}
    peaks = np.where(np.isfinite(found.peaks), found.peaks, np.nan)
    rows: dict[str, np.ndarray] = {"scales": found.scale_m, "searched_scales": found.scales_m, "scale_peaks": peaks}
    return {name: np.asarray(values, np.float32).reshape(-1) for name, values in rows.items()}


def scored_cloud(answer: Answer, scores: np.ndarray, header: Any) -> Any:
    """sensor_msgs/PointCloud2 of what was searched: x y z rgb seen confidence relevancy_0 relevancy_1 ..."""
    fields: dict[str, np.ndarray] = {
        "seen": answer.scores.seen.astype(np.uint8), "confidence": sureness(answer.cloud.observations)
    }  # fmt: skip
    fields |= {f"relevancy_{q}": scores[:, q] for q in range(scores.shape[1])}
    return to_cloud(answer.cloud.points, header, rgb=answer.cloud.rgb, fields=fields)


def surroundings(cloud: SurfaceCloud, thing: Object, config: SemfieldConfig) -> np.ndarray:
    """What a gripper must not hit around an object, [M, 3]: all surface within its reach that is not the object's own,
    and the part of the support under it that no camera can see."""
    whole = replace(thing, part=None)
    scene = grasp_scene(cloud, whole, config.objects, config.gripper, standoff_m=config.grasp.standoff_m)
    # a planner may take more for the object than words found; whoever gets its cloud does not
    others = np.delete(scene.own, scene.target_rows, axis=0)
    return np.concatenate([others, scene.surroundings])


def view_points(thing: Object, keyframes: Sequence[Keyframe], far_m: float) -> np.ndarray:
    """Centres [K, 3] of the cameras that had the middle of an object in view, from the side of its surface.

    What stood in between is not considered. O(keyframes).
    """
    if not keyframes:
        return np.zeros((0, 3))
    T_camera_world = np.stack([invert(k.T_world_camera) for k in keyframes])
    centres = np.stack([k.T_world_camera[:3, 3] for k in keyframes])
    x, y, z = (T_camera_world[:, :3, :3] @ thing.centroid + T_camera_world[:, :3, 3]).T
    fx, fy, cx, cy, width, height = np.array(
        [(c.fx, c.fy, c.cx, c.cy, c.width, c.height) for c in (k.camera for k in keyframes)]
    ).T
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = fx * x / z + cx, fy * y / z + cy
        inside = (z > 0) & (z <= far_m) & (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
    some = slice(None, None, 1 + len(thing.cloud) // _NORMALS_LOOKED_AT)
    rays = centres[:, None] - thing.cloud.points[some].astype(np.float64)
    facing = ((rays * thing.cloud.normals[some]).sum(-1) >= 0).mean(1)
    return np.asarray(centres[inside & (facing > 0.25)])


def _object(thing: Object, place: int, known: About, **extra: Any) -> Any:
    return types().new(
        "semfield_ros/msg/SemanticObject",
        id=place,
        prompt=thing.prompt,
        score=float(thing.score),
        confidence=float(thing.confidence),
        centroid=point(thing.centroid),
        box_pose=pose_of(thing.box.T_world_box),
        box_size=vector(2 * thing.box.half_extents),
        observations=int(thing.observations),
        last_seen=time_of(thing.last_seen_s if np.isfinite(thing.last_seen_s) else 0),
        instance=known.instance,
        class_id=known.class_id,
        class_name=known.class_name,
        entropy=known.entropy,
        **extra,
    )


def _part(thing: Object, searched: SurfaceCloud) -> dict[str, Any]:
    """The fields of a SemanticObject about its part, but for the cloud."""
    nowhere, part = np.full(3, np.nan), thing.part
    if part is None:
        return {"part_score": float("nan"), "part_centroid": point(nowhere)}
    at = searched.points[part.rows].astype(np.float64).mean(0) if len(part.rows) else nowhere
    return {"part": part.prompt, "part_score": float(part.score), "part_centroid": point(at)}


def surface(cloud: SurfaceCloud, header: Any) -> Any:
    """sensor_msgs/PointCloud2 x y z rgb normal_x normal_y normal_z."""
    normals = dict(zip(("normal_x", "normal_y", "normal_z"), cloud.normals.T))
    return to_cloud(cloud.points, header, rgb=cloud.rgb, fields=normals)


# ---- what RViz and others show --------------------------------------------------------------------------------------


def relevancy_cloud(answer: Answer, scores: np.ndarray, rows: slice | np.ndarray = slice(None)) -> Any:
    """sensor_msgs/PointCloud2 x y z rgb relevancy relevancy_0 ...: what matches glows over the dimmed map.

    Args:
        scores: [N, Q]. rows: of the points to show.
    """
    cloud, scores = answer.cloud[rows], scores[rows]  # type: ignore[index]  # a slice selects as rows do
    best = scores.max(1) if scores.shape[1] and len(scores) else np.zeros(len(cloud), np.float32)
    bare = np.where(answer.scores.seen[rows], best, np.nan)
    rgb = cloud.rgb
    if len(cloud):
        # clear where it begins to match, full at the best there is: relevancies and cosines alike
        full = max(float(best.max()), answer.no_match + 0.05)
        rgb = overlay(cloud.rgb[None], bare[None], answer.no_match, full)[0]
    fields = {"relevancy": best} | {f"relevancy_{q}": scores[:, q] for q in range(scores.shape[1])}
    return to_cloud(cloud.points, map_header(answer.stamp_s, answer.global_frame), rgb=rgb, fields=fields)


def detections(answer: Answer, known: Sequence[About] = ()) -> Any:
    """vision_msgs/Detection3DArray, best first: class_id = the prompt; id = the instance, the same as long as the map
    knows it, or, where the map tells no instances apart, the place in the answer."""
    told_apart = any(one.instance for one in known)
    header = map_header(answer.stamp_s, answer.global_frame)
    found = []
    for place, thing in enumerate(ranked(answer)):
        pose = pose_of(thing.box.T_world_box)
        hypothesis = types().new(
            "vision_msgs/msg/ObjectHypothesisWithPose",
            hypothesis=types().new(
                "vision_msgs/msg/ObjectHypothesis", class_id=thing.prompt, score=float(thing.score)
            ),
            pose=types().new("geometry_msgs/msg/PoseWithCovariance", pose=pose),
        )
        box = types().new("vision_msgs/msg/BoundingBox3D", center=pose, size=vector(2 * thing.box.half_extents))
        number = str(place) if not told_apart else str(known[place].instance or "")
        found.append(
            types().new("vision_msgs/msg/Detection3D", header=header, results=[hypothesis], bbox=box, id=number)
        )
    return types().new("vision_msgs/msg/Detection3DArray", header=header, detections=found)


def grasps(answer: Answer) -> Any:
    """geometry_msgs/PoseArray: the grasps of the best object, best first, then those of the next."""
    return poses(ranked(answer), map_header(answer.stamp_s, answer.global_frame))


def markers(answer: Answer, gripper: GripperConfig) -> Any:
    """visualization_msgs/MarkerArray: all of before deleted, then each object's box, its label with the score, and its
    best grasps as open grippers. They stay until the next array."""
    header = map_header(answer.stamp_s, answer.global_frame)
    number = {p.label: q for q, p in enumerate(answer.prompts)}
    found = [_marker(header, "", 0, 0, action=_DELETE_ALL)]
    for place, thing in enumerate(ranked(answer)):
        colour = _rgba(class_colour(number[thing.prompt]))
        found.append(_lines(header, "boxes", place, thing.box.corners()[_EDGES].reshape(-1, 3), colour))
        top = thing.box.centre + np.array([0.0, 0.0, float(np.abs(thing.box.axes[2]) @ thing.box.half_extents)])
        found.append(
            _marker(
                header, "labels", place, _TEXT, pose=_at(top + [0, 0, _TEXT_M]), color=_rgba((255, 255, 255)),
                scale=vector(np.array([0, 0, _TEXT_M])), text=f"{thing.prompt}\n{thing.score:.2f}",
            )
        )  # fmt: skip
        lines = [
            gripper_lines(g.T_world_gripper, opening_m(g, gripper), gripper.finger_length_m)
            for g in thing.grasps[:GRASPS_SHOWN]
        ]
        if lines:
            found.append(_lines(header, "grasps", place, np.concatenate(lines).reshape(-1, 3), colour))
    return types().new("visualization_msgs/msg/MarkerArray", markers=found)


_EDGES = np.array([(a, a | bit) for a in range(8) for bit in (1, 2, 4) if not a & bit])
"""Pairs of corners of a box that an edge joins, as `OrientedBox.corners` numbers them."""


def _lines(header: Any, namespace: str, number: int, ends: np.ndarray, colour: Any) -> Any:
    return _marker(
        header, namespace, number, _LINE_LIST, pose=_at(np.zeros(3)), color=colour,
        scale=vector(np.array([_LINE_M, 0, 0])), points=[point(end) for end in ends],
    )  # fmt: skip


def _marker(header: Any, namespace: str, number: int, type_: int, **fields: Any) -> Any:
    return types().new("visualization_msgs/msg/Marker", header=header, ns=namespace, id=number, type=type_, **fields)


def _at(position: np.ndarray) -> Any:
    T = np.eye(4)
    T[:3, 3] = position
    return pose_of(T)


def _rgba(rgb: tuple[int, int, int]) -> Any:
    r, g, b = (float(c) / 255 for c in rgb)
    return types().new("std_msgs/msg/ColorRGBA", r=r, g=g, b=b, a=1.0)


# ---- Status.msg -----------------------------------------------------------------------------------------------------

REJECTED_BY_ENGINE = ("depth_empty",)
"""Of what the engine drops, what it refuses; the rest was superseded."""


def status_message(
    status: EngineStatus,
    *,
    stamp_s: float,
    global_frame: str,
    rejected: Mapping[str, int],
    paused: bool = False,
    failed: bool = False,
    last_error: str = "",
    samples_per_s: float = 0.0,
    memory_bytes: int = 0,
    gpu_memory_bytes: int = 0,
    learnt: Mapping[str, int] | None = None,
) -> Any:
    """semfield_ros/msg/Status. frames_in = used + skipped + dropped + rejected + waiting, up to a frame being mapped:
    nothing is lost silently.

    Args:
        rejected: counts by reason of what never reached the engine. learnt: steps of training by head.
    """
    learnt = learnt or {}
    mapping, dropped = status.mapping, dict(status.dropped)
    features_dropped = dropped.pop("encoder_behind", 0)
    rejections = {reason: dropped.pop(reason) for reason in REJECTED_BY_ENGINE if reason in dropped}
    for reason, count in rejected.items():
        rejections[reason] = rejections.get(reason, 0) + count
    lost = sum(dropped.values())
    state = 3 if failed else 2 if paused else 1 if mapping.keyframes else 0
    return types().new(
        "semfield_ros/msg/Status",
        header=map_header(stamp_s, global_frame),
        state=state,
        frames_in=status.submitted + sum(rejected.values()),
        frames_used=status.used,
        frames_skipped=status.skipped,
        frames_dropped=lost,
        frames_waiting=status.frames_waiting,
        features_dropped=features_dropped,
        rejected_reasons=sorted(rejections),
        rejected_counts=np.array([rejections[reason] for reason in sorted(rejections)], np.uint64),
        keyframes=mapping.keyframes,
        voxels=mapping.voxels,
        train_steps=mapping.steps,
        samples_per_s=float(samples_per_s),
        loss=float(sum((mapping.losses or {}).values())),
        memory_bytes=memory_bytes,
        gpu_memory_bytes=gpu_memory_bytes,
        last_error=last_error,
        heads=sorted(learnt),
        head_steps=np.array([learnt[name] for name in sorted(learnt)], np.uint64),
    )
