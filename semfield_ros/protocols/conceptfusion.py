"""ConceptFusion's protocol (Jatavallabhula et al., RSS 2023): pixel-aligned features on points, asked any way."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from tyro.conf import Positional

if TYPE_CHECKING:
    from ..config import SemfieldConfig
    from ..encoders.base import Encoder
    from ..evaluation.labelled_points import LabelledPoints
    from ..frame import Frame


@dataclass(frozen=True)
class Plan:
    """Masks mixed with the whole image, fused on points, asked by word, picture and click (ConceptFusion).

    Rows: the encoder's own dense features; masks described by crops, with and without uniqueness; masks described by
    the dense features under them; the same on true masks, which is what a better mask model could give. All fused on
    the same points by the same rule (.05 m, 20 degrees, weights falling off from the image's centre). Last, the same
    encoder online: its voxel map, and the field trained on it.
    """

    source: Positional[str] = "simulator"
    """simulator, or a recording with labels."""
    seeds: int = 3
    """Simulated scenes, from seed 0."""
    frames: int = 24
    """Frames a scene."""
    width: int = 320
    """Of images."""
    steps: int = 300
    """Training steps of the field; 0 = only the fusions."""
    samples: int = 12_000
    """Exact surface points of a simulated scene."""
    encoder: str = "tiny"
    """Of crops, images and words."""
    masks: str = "felzenszwalb"
    """felzenszwalb, segments, or module:attribute of a mask generator."""
    temperature: float = 1.0
    """Of the softmax over masks."""
    template: str = "a {} in a scene"
    """Around every class name."""
    json: bool = False
    """End with one line of JSON."""


def run(plan: Plan, console: Console) -> int:
    """Run the plan; returns the exit code."""
    from .point_table import evaluate

    return evaluate("conceptfusion", plan, rated, console, "features", {"frame_s": "s / frame"})


def true_masks(frame: Frame) -> np.ndarray:
    """The instances and the surfaces that a frame's labels show: [K, H, W] bool."""
    shape = frame.depth_m.shape
    found = [
        image == value
        for image in (frame.instance, None if frame.semantic is None else frame.semantic * (_thing(frame) == 0))
        if image is not None
        for value in np.unique(image[image > 0])
    ]
    return np.stack(found) if found else np.zeros((0, *shape), bool)


def _thing(frame: Frame) -> np.ndarray:
    return np.zeros(frame.depth_m.shape, np.int32) if frame.instance is None else frame.instance


def encoders_of(base: Encoder, plan: Plan) -> dict[str, Encoder]:
    """Row -> encoder."""
    from ..encoders.concept_fusion import ConceptFusionEncoder

    def made(masks: Any = plan.masks, **settings: Any) -> Encoder:
        return ConceptFusionEncoder(base, masks, temperature=plan.temperature, **settings)

    return {
        "dense, per pixel": base,
        "masks, crops": made(),
        "masks, crops, no uniqueness": made(uniqueness=False),
        "masks, dense features pooled": made(local="pooled"),
        "true masks, crops": made(true_masks),
        "true masks, dense features pooled": made(true_masks, local="pooled"),
    }


def rated(
    scene: LabelledPoints, config: SemfieldConfig, base: Encoder, plan: Plan
) -> dict[str, dict[str, float]]:
    """Figures by row."""
    from ..evaluation.labelled_points import agreement, mapped
    from ..memory.point_fusion import PointFusion
    from ..query.classes import best_class, encode_classes
    from ..query.prompt import EncodedPrompts, Prompt, PromptEncoder
    from ..query.scores import map_cosines, score_points
    from .retrieval import CLICK_M, retrieved

    texts = PromptEncoder(base, config.query)
    classes = encode_classes(texts, scene.names, template=plan.template, other=False)
    found: dict[str, dict[str, float]] = {}

    def tell(name: str, cosine: np.ndarray, seen: np.ndarray, frame_s: float) -> None:
        label = np.where(seen, best_class(cosine, False), -1)
        found[name] = {**agreement(label, scene), "frame_s": frame_s}

    asked: PointFusion | None = None
    for name, encoder in encoders_of(base, plan).items():
        started = time.perf_counter()
        fusion = PointFusion(scene.points, base.dim, "conceptfusion", normals=scene.normals)
        for frame in scene.frames:
            fusion.add(frame, encoder.encode_frame(frame))
        spent = time.perf_counter() - started
        tell(name, map_cosines(fusion.features, classes.positives), fusion.seen, spent / len(scene.frames))
        asked = fusion if name == "masks, dense features pooled" else asked
    if plan.steps:
        online = encoders_of(base, plan)["masks, dense features pooled"]
        started = time.perf_counter()
        mapping, _ = mapped(scene.frames, config, online)
        per_frame_s = (time.perf_counter() - started) / len(scene.frames)
        for _ in range(plan.steps):
            mapping.train_step()
        snapshot = mapping.snapshot()
        for name, source in (("the same online, voxel map", "points"), ("the same online, field", "field")):
            scores = score_points(snapshot, classes, scene.points, source=source)  # type: ignore[arg-type]
            tell(name, scores.cosine, scores.seen, per_frame_s)
    if scene.things and asked is not None:
        features, seen = asked.features, asked.seen

        def cosine(prompts: EncodedPrompts) -> np.ndarray:
            return np.where(seen, map_cosines(features, prompts.positives)[:, 0], -np.inf)

        def clicked(point: np.ndarray) -> EncodedPrompts:
            near = features[(np.linalg.norm(scene.points - point, axis=1) <= CLICK_M) & seen]
            mean = near.sum(0, keepdims=True)
            mean = mean / max(float(np.linalg.norm(mean)), 1e-9)
            return EncodedPrompts((Prompt("click", ("click",)),), mean, np.zeros(1, np.int64), mean[:0])

        found.update(retrieved(scene, texts, base, cosine, clicked))
    return found
