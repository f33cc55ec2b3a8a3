"""`semfield bench query`: prompts against many points, factored, beside the form that builds every feature."""

from __future__ import annotations

import numpy as np
import torch
from rich.console import Console

from ..cloud import SurfaceCloud
from ..config import FieldConfig
from ..field.model import Field
from ..field.snapshot import TRUSTED_STEPS, Snapshot
from ..field.workspace import Workspace
from ..mapping import language_head
from ..memory.point_map import voxel_keys
from ..query.labels import label_points
from ..query.prompt import EncodedPrompts, Prompt
from ..query.relevancy import pairwise_relevancy
from ..query.scores import Source, field_cosines, map_cosines, score_points
from .report import json_line, median_seconds, show_table

POINTS, PROMPTS, NEGATIVES, DIM = 1_000_000, 10, 4, 512


@torch.no_grad()
def naive_cosines(field: Field, points: np.ndarray, texts: np.ndarray, chunk: int = 32768) -> np.ndarray:
    """What a straightforward program does: the D-dimensional feature of every point, normalised, times the texts."""
    head, t = field.head("language"), torch.from_numpy(texts.T.copy())
    parts = []
    for start in range(0, len(points), chunk):
        encoded = field.encode("feature", torch.from_numpy(points[start : start + chunk]))
        features = head.finish(head.hidden(encoded, None))
        parts.append((torch.nn.functional.normalize(features, dim=-1) @ t).numpy())
    return np.concatenate(parts)


def snapshot_of(field: Field, points: np.ndarray, features: np.ndarray, voxel_size_m: float) -> Snapshot:
    """A map whose voxels are at points [N, 3] with features [N, D], all of them trusted to the field."""
    keys = voxel_keys(points, voxel_size_m)
    order = np.argsort(keys)
    n, points = len(points), points[order]
    up = np.tile(np.array([0, 0, 1], np.float32), (n, 1))
    cloud = SurfaceCloud(points, up, np.zeros((n, 3), np.uint8), np.ones(n, np.int32), np.zeros(n))
    return Snapshot(
        stamp_s=0.0, frames=1, step=TRUSTED_STEPS, cloud=cloud, features=features[order], measured=np.ones(n, bool),
        created_step=np.zeros(n, np.int64), keys=keys[order], voxel_size_m=voxel_size_m, field=field, language=True,
    )  # fmt: skip


def run(*, console: Console, as_json: bool) -> int:
    """A million points in a field, 200,000 voxels of a point map; ten prompts, four negatives, 512 dimensions."""
    rng = np.random.default_rng(0)
    field = Field(FieldConfig(), Workspace((0.0, 0.0, 0.0), 4.0), (language_head(DIM),)).requires_grad_(False)
    points = rng.uniform(-2, 2, (POINTS, 3)).astype(np.float32)
    texts = rng.normal(size=(PROMPTS + NEGATIVES, DIM)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    features = rng.normal(size=(200_000, DIM)).astype(np.float16)

    def relevancy(cosine: np.ndarray) -> np.ndarray:
        return pairwise_relevancy(cosine[:, :PROMPTS], cosine[:, PROMPTS:])

    few = points[: len(features)]
    snapshot = snapshot_of(field, few, features, 0.002)
    prompts = tuple(Prompt(str(q), (str(q),)) for q in range(PROMPTS))
    encoded = EncodedPrompts(prompts, texts[:PROMPTS], np.arange(PROMPTS), texts[PROMPTS:])
    difference = np.abs(field_cosines(field, points[:5000], texts) - naive_cosines(field, points[:5000], texts)).max()
    factored_s = median_seconds(lambda: relevancy(field_cosines(field, points, texts)))
    naive_s = median_seconds(lambda: relevancy(naive_cosines(field, points, texts)), repeats=1)
    map_s = median_seconds(lambda: relevancy(map_cosines(features, texts)))

    def asked(source: Source) -> float:
        return median_seconds(lambda: score_points(snapshot, encoded, source=source))

    asked_s = {"field": asked("field"), "points": asked("points")}
    labelled_s = median_seconds(lambda: label_points(snapshot, encoded, few))
    show_table(
        console, f"{PROMPTS} prompts, {NEGATIVES} negatives, {DIM} dimensions, {torch.get_num_threads()} threads",
        ["what", "points", "seconds"],
        [["field, factored", POINTS, factored_s], ["field, every feature built (baseline)", POINTS, naive_s],
         ["point map", len(features), map_s], ["a map's own voxels, by its field", len(few), asked_s["field"]],
         ["a map's own voxels, by its points", len(few), asked_s["points"]],
         ["labels of any points, by field", len(few), labelled_s]],
    )  # fmt: skip
    console.print(f"largest difference of a cosine between the two forms: {difference:.1e}")
    if as_json:
        report = {"bench": "query", "points": POINTS, "prompts": PROMPTS, "dim": DIM, "factored_s": factored_s,
                  "naive_s": naive_s, "map_200k_s": map_s, "scores_200k_field_s": asked_s["field"],
                  "scores_200k_points_s": asked_s["points"], "labels_200k_s": labelled_s,
                  "difference": float(difference)}  # fmt: skip
        console.print(json_line(report), soft_wrap=True, highlight=False, markup=False)
    return 0
