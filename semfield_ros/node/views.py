"""~/render and what ~/rendered/... shows: views of everything the field knows, as fields of messages."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import SemfieldConfig
from ..errors import QueryError
from ..field.normals import HEAD as NORMALS
from ..field.snapshot import Snapshot
from ..field.teachers import PREFIX
from ..geometry import Camera, back_project
from ..messages.images import encode_classes, encode_colour, encode_depth, encode_labels
from ..query.pca import PcaColours
from ..query.prompt import EncodedPrompts
from ..query.scales import score_scales
from ..query.semantics import semantic_view
from ..query.view import View, render_view, rendered
from .instances import InstanceBook
from .palette import FeaturePainter


class Views:
    """Views as messages; features keep their colours from view to view."""

    def __init__(self, book: InstanceBook) -> None:
        self.book = book
        self._painter = FeaturePainter()
        self._teachers: dict[str, PcaColours] = {}

    def fields(
        self, snapshot: Snapshot, camera: Camera, T_world_camera: np.ndarray, request: Any, config: SemfieldConfig,
        how: dict[str, Any], texts: EncodedPrompts | None, header: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """The fields of a Render response.

        Args:
            how: see `questions.matching`. texts: what to show relevancy of.

        Raises:
            QueryError: what is asked for has not been learnt, with the setting that would have it learnt.
        """
        far_m, query = config.frame.max_depth_m, config.query
        source, score = how["source"] or query.source, how["score"] or query.score
        by_scale = texts is not None and source == "scales"
        teacher = str(request.features_of) if request.with_features else ""
        features = request.with_features and not teacher
        view = render_view(
            snapshot, camera, T_world_camera, texts=None if by_scale else texts, features=features, source=source,
            score=score, temperature=query.temperature, far_m=far_m,
        )  # fmt: skip
        relevancy, scales_m = view.relevancy, np.zeros(0, np.float32)
        if by_scale:
            assert texts is not None
            relevancy, scales_m = scaled_relevancy(
                snapshot, camera, T_world_camera, view, texts, score, query.temperature, how.get("scales_m", ())
            )
        fields = {
            "header": header,
            "image": encode_colour(view.rgb, header),
            "depth": encode_depth(view.depth_m, header),
            "accumulation": encode_depth(view.accumulation, header),
            "scales": scales_m.astype(np.float32),
        }
        if view.features is not None:
            fields["features"] = encode_colour(self.painted(snapshot, view), header)
        elif teacher:
            colours = self.teacher(snapshot, camera, T_world_camera, teacher, far_m)
            fields["features"] = encode_colour(colours, header)
        if relevancy is not None:
            fields["relevancy"] = [encode_depth(relevancy[..., q], header) for q in range(relevancy.shape[2])]
        if request.with_labels:
            fields |= self.labels(snapshot, camera, T_world_camera, far_m, header)
        if request.with_instances:
            fields["instances"] = self.instances(snapshot, camera, T_world_camera, far_m, header)
        if request.with_normals:
            fields["normals"] = encode_colour(normal_colours(snapshot, camera, T_world_camera, far_m), header)
        return fields

    def painted(self, snapshot: Snapshot, view: View) -> np.ndarray:
        """[H, W, 3] uint8 of a view's features."""
        assert view.features is not None
        return self._painter.paint(snapshot, view.features, view.depth_m)

    def labels(
        self, snapshot: Snapshot, camera: Camera, T_world_camera: np.ndarray, far_m: float, header: Any
    ) -> dict[str, Any]:
        """Images `labels` (16UC1, 0 = none) and `entropy` (32FC1, NaN = nothing there)."""
        seen = semantic_view(snapshot, camera, T_world_camera, far_m=far_m)
        entropy = np.where(seen.label > 0, seen.entropy, np.float32(np.nan))
        return {"labels": encode_classes(seen.label, header), "entropy": encode_depth(entropy, header)}

    def instances(
        self, snapshot: Snapshot, camera: Camera, T_world_camera: np.ndarray, far_m: float, header: Any
    ) -> Any:
        """Image of instances, 32SC1, 0 = none."""
        ids, _ = self.book.of(snapshot).view(camera, T_world_camera, far_m=far_m)
        return encode_labels(np.maximum(ids, 0), header)

    def teacher(
        self, snapshot: Snapshot, camera: Camera, T_world_camera: np.ndarray, name: str, far_m: float
    ) -> np.ndarray:
        """[H, W, 3] uint8 of a teacher's features; black where nothing is."""
        head = PREFIX + name.split(":")[0]
        if not taught(snapshot, head):
            known = sorted(h.removeprefix(PREFIX) for h in learnt(snapshot) if h.startswith(PREFIX))
            raise QueryError(
                f"features_of is {name!r}, of whom no features were learnt; "
                + (f"allowed: {', '.join(known)}, or empty" if known else "add it to heads.teachers and wait")
            )
        out = rendered(snapshot, camera, T_world_camera, (head,), far_m)
        values = out.outputs[head].cpu().numpy()
        values[out.depth.cpu().numpy() <= 0] = 0
        colours = self._teachers.setdefault(head, PcaColours())
        return colours(values).reshape(camera.height, camera.width, 3)


def scaled_relevancy(
    snapshot: Snapshot, camera: Camera, T_world_camera: np.ndarray, view: View, texts: EncodedPrompts, score: str,
    temperature: float, scales_m: tuple[float, ...],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Scores [H, W, Q] of prompts over a view (0 = unseen), each at its best scale among what is in view, and those
    scales [Q] in metres."""
    points, pixels = back_project(camera, T_world_camera, view.depth_m)
    found = score_scales(snapshot, texts, points, scales_m=scales_m or None, temperature=temperature, score=score)
    image = np.zeros((camera.height, camera.width, len(texts.prompts)), np.float32)
    values = found.scores.relevancy if score == "relevancy" else found.scores.cosine
    image.reshape(-1, len(texts.prompts))[pixels] = values
    return image, found.scale_m


def normal_colours(snapshot: Snapshot, camera: Camera, T_world_camera: np.ndarray, far_m: float) -> np.ndarray:
    """[H, W, 3] uint8: normals of length 1 in global_frame, -1 to 1 as 0 to 255; black where nothing is."""
    if not taught(snapshot, NORMALS):
        raise QueryError("the field has learnt no normals; set heads.normals before mapping")
    out = rendered(snapshot, camera, T_world_camera, (NORMALS,), far_m)
    normals = out.outputs[NORMALS].cpu().numpy()
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    colours = np.rint((normals + 1) * 127.5).astype(np.uint8)
    colours[out.depth.cpu().numpy() <= 0] = 0
    return colours.reshape(camera.height, camera.width, 3)


def learnt(snapshot: Snapshot) -> set[str]:
    """Heads that some block of the map has been trained for."""
    return {name for block in snapshot.blocks() for name, steps in block.snapshot.learnt.items() if steps > 0}


def taught(snapshot: Snapshot, head: str) -> bool:
    """Whether some block of the map has learnt a head."""
    return any(block.snapshot.learnt.get(head, 0) > 0 for block in snapshot.blocks())
