"""OpenScene's protocol (Peng et al., CVPR 2023): open-vocabulary classes of points."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from tyro.conf import Positional

if TYPE_CHECKING:
    from ..config import SemfieldConfig
    from ..encoders.base import Encoder
    from ..evaluation.labelled_points import LabelledPoints
    from ..field.snapshot import Snapshot
    from ..query.prompt import EncodedPrompts

FUSED = ("openscene", "openscene_matterport")

@dataclass(frozen=True)
class Plan:
    """Words for points: features fused on them, a field distilled from those, and the ensemble of both (OpenScene).

    Rows: fusion with the visibility rule of ScanNet (.25 of the depth) and of Matterport (.02); the field's head at
    points, distilled on visible points alone; of both the surer. Beside them this project's own: the voxel map, the
    field trained through the encoder's window, and their ensemble. mIoU and mAcc are over the classes that are there
    ("all": over all there are, as OpenScene divides).
    """

    source: Positional[str] = "simulator"
    """simulator, or a recording with labels."""
    seeds: int = 3
    """Simulated scenes, from seed 0."""
    frames: int = 60
    """Frames a scene."""
    width: int = 320
    """Of images."""
    steps: int = 500
    """Training steps of each field."""
    samples: int = 12_000
    """Exact surface points of a simulated scene."""
    encoder: str = "tiny"
    """Of images and words."""
    template: str = "a {} in a scene"
    """Around every class name."""
    other: bool = True
    """A last class "other" takes part; what it wins is wrong."""
    json: bool = False
    """End with one line of JSON."""


def run(plan: Plan, console: Console) -> int:
    """Run the plan; returns the exit code."""
    from .point_table import evaluate

    return evaluate("openscene", plan, rated, console, "points answered by", {"seconds": "seconds"})


def rated(
    scene: LabelledPoints, config: SemfieldConfig, encoder: Encoder, plan: Plan
) -> dict[str, dict[str, float]]:
    """Figures by row."""
    from ..evaluation.labelled_points import agreement, mapped
    from ..memory.point_fusion import PointFusion
    from ..query.classes import best_class, encode_classes
    from ..query.click import prompts_like
    from ..query.ensemble import ensemble_features
    from ..query.points import features_at
    from ..query.prompt import PromptEncoder
    from ..query.scores import map_cosines, score_points
    from .retrieval import CLICK_M, retrieved

    texts = PromptEncoder(encoder, config.query)
    classes = encode_classes(texts, scene.names, template=plan.template, other=plan.other)
    found: dict[str, dict[str, float]] = {}

    def tell(name: str, cosine: np.ndarray, seen: np.ndarray, seconds: float) -> None:
        label = np.where(seen, best_class(cosine, plan.other), -1)
        found[name] = {**agreement(label, scene), "seconds": seconds}

    started = time.perf_counter()
    ours, measured = mapped(scene.frames, config, encoder)
    mapping_s = time.perf_counter() - started
    fused: dict[str, np.ndarray] = {}
    for rule in FUSED:
        started = time.perf_counter()
        fusion = PointFusion(scene.points, encoder.dim, rule)
        for frame, target in measured:
            fusion.add(frame, target)
        fused[rule] = fusion.features
        tell(
            f"2-D fused, {fusion.rule.visibility.tolerance_relative:g} of depth",
            map_cosines(fusion.features, classes.positives), fusion.seen, time.perf_counter() - started,
        )  # fmt: skip
    started = time.perf_counter()
    alone = replace(config, heads=replace(config.heads, point_weight=1.0))
    snapshot = trained(scene, alone, encoder, plan.steps)
    distilled = features_at(snapshot, scene.points, "field")
    spent = time.perf_counter() - started
    seen = np.abs(distilled).sum(1) > 0
    tell("3-D distilled on visible points", map_cosines(distilled, classes.positives), seen, spent)
    for rule in FUSED:
        features = ensemble_features(fused[rule], distilled, classes.positives)
        name = f"ensemble with 2-D {PointFusion(scene.points[:0], 1, rule).rule.visibility.tolerance_relative:g}"
        tell(name, map_cosines(features, classes.positives), seen, spent)
    started = time.perf_counter()
    for _ in range(plan.steps):
        ours.train_step()
    spent = mapping_s + time.perf_counter() - started
    snapshot = ours.snapshot()
    own(snapshot, classes, scene, tell, mapping_s, spent)
    if scene.things:

        def cosine(prompts: EncodedPrompts) -> np.ndarray:
            scores = score_points(snapshot, prompts, scene.points, source="ensemble")
            return np.where(scores.seen, scores.cosine[:, 0], -np.inf)

        found.update(retrieved(scene, texts, encoder, cosine, lambda point: prompts_like(snapshot, point, CLICK_M)))
    return found


def trained(scene: LabelledPoints, config: SemfieldConfig, encoder: Encoder, steps: int) -> Snapshot:
    """A field whose features are learnt at single visible points and nowhere else."""
    from ..evaluation.labelled_points import mapped
    from ..mapping import Mapping

    def points_only(mapping: Mapping) -> None:
        mapping.heads["language"] = replace(mapping.heads["language"], weight=0.0)

    config = replace(config, train=replace(config.train, smoothness=0.0, fit_window=False, feature_patches=1))
    mapping, _ = mapped(scene.frames, config, encoder, adjust=points_only)
    for _ in range(steps):
        mapping.train_step()
    return mapping.snapshot()


def own(
    snapshot: Snapshot, classes: EncodedPrompts, scene: LabelledPoints, tell: Any, mapping_s: float, spent: float
) -> None:
    """This project's own answers at the same points."""
    from ..query.scores import score_points

    for name, source, seconds in (
        ("voxel map", "points", mapping_s), ("field through windows", "field", spent),
        ("ensemble of these two", "ensemble", spent),
    ):  # fmt: skip
        scores = score_points(snapshot, classes, scene.points, source=source)  # type: ignore[arg-type]
        tell(name, scores.cosine, scores.seen, seconds)
