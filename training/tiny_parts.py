"""How well `tiny` finds a part inside an object that was already found, on scenes no training saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from tiny_captions import CANONICAL, PARTS_OF
from tiny_data import PATCH_PX
from tiny_evaluate import relevancy, unit

from semfield_ros.config import QueryConfig
from semfield_ros.encoders.tiny import dense_features, normalised_images
from semfield_ros.geometry import back_project
from semfield_ros.query.prompt import known_parts
from semfield_ros.sources.simulator import Simulator, SimulatorConfig
from semfield_ros.sources.simulator_objects import PART_NAMES

CELL_M = 0.015
CLUSTER_M = 0.0125
"""Radius of the cluster a grasp would be centred on."""
LEAST_VOXELS = 3
"""A part with fewer voxels was not seen."""
FORMS = ("word", "phrase")
"""How a part is asked: by its word alone ("handle"), or with the object's name ("mug handle")."""
NEGATIVES = ("canonical", "other parts", "both")
"""What it competes with: LERF's negatives; the words of all other parts, as queries do (`query.part_words`); both."""


@dataclass(frozen=True)
class ObjectPoints:
    """An object as a map holds it: N voxels with the mean of the features seen there.

    Attributes:
        kind: its name. points: [N, 3] voxel centres, metres. features: [N, D] unit. part: [N] into PART_NAMES.
    """

    kind: str
    points: np.ndarray
    features: np.ndarray
    part: np.ndarray


def see_objects(model: Any, seed: int, views: int) -> list[ObjectPoints]:
    """The objects of an evaluation scene, from noisy frames around it."""
    import torch

    simulator = Simulator(SimulatorConfig(seed=seed, frames=views, processes=0))
    keys, features, parts = [], [], []
    for index, T in enumerate(simulator.path(views)):
        frame = simulator.render(T, index / 30)
        with torch.inference_mode():
            dense = unit(dense_features(model, normalised_images(model, frame.rgb[None]))[0].float().numpy())
        points, flat = back_project(frame.camera, T, frame.depth_m)
        v, u = np.divmod(flat, frame.camera.width)
        assert frame.instance is not None
        instance, part = frame.instance.reshape(-1)[flat], simulator.part_image(T).reshape(-1)[flat]
        keep = (instance > 0) & (u % 2 == 0) & (v % 2 == 0)
        cells = np.floor(points[keep] / CELL_M).astype(np.int64)
        keys.append(np.concatenate([instance[keep, None], cells], axis=1))
        features.append(dense[v[keep] // PATCH_PX, u[keep] // PATCH_PX])
        parts.append(part[keep])
    unique, inverse, counts = np.unique(np.concatenate(keys), axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    sums = np.zeros((len(unique), features[0].shape[-1]))
    np.add.at(sums, inverse, np.concatenate(features))
    votes = np.zeros((len(unique), len(PART_NAMES)))
    np.add.at(votes, (inverse, np.concatenate(parts)), 1)
    supported = counts >= 3
    found = []
    for truth in simulator.objects:
        mine = supported & (unique[:, 0] == truth.instance)
        points = (unique[mine, 1:] + 0.5) * CELL_M
        found.append(ObjectPoints(truth.kind, points, unit(sums[mine]), votes[mine].argmax(1)))
    return found


def part_scores(
    thing: ObjectPoints, part: str, encode: Callable[[list[str]], np.ndarray], form: str, against: str
) -> np.ndarray:
    """Relevancy of a part asked inside an object: [N]."""
    known = known_parts(QueryConfig.part_words)
    groups = {group: word for word, group in reversed(known.items()) if group != known.get(part)}
    named = (lambda word: f"{thing.kind} {word}") if form == "phrase" else str
    texts = [*(() if against == "other parts" else CANONICAL)]
    texts += [] if against == "canonical" else [named(word) for word in groups.values()]
    negatives = encode(texts)
    return relevancy(thing.features, encode([named(part)]), negatives)[:, 0]


def judged(thing: ObjectPoints, part: str, scores: np.ndarray) -> tuple[float, float]:
    """Share of the best-scoring voxels, as many as the part has, that are on it; 1 where the best cluster is on it."""
    right = thing.part == PART_NAMES.index(part)
    best = np.argsort(-scores, kind="stable")[: right.sum()]
    around = cKDTree(thing.points).query_ball_point(thing.points, 2 * CLUSTER_M)
    smooth = np.array([scores[near].mean() for near in around])
    near = np.linalg.norm(thing.points - thing.points[int(smooth.argmax())], axis=1) <= CLUSTER_M + 1e-9
    return float(right[best].mean()), float(right[near].mean() >= 0.5)


def part_figures(
    model: Any, encode: Callable[[list[str]], np.ndarray], seeds: Iterable[int], views: int
) -> dict[str, dict[str, dict[str, tuple[float, float, float, int]]]]:
    """Per form and negatives, per part word (and "all", their mean): precision, cluster on part, chance, count.

    Chance is the share of the object's voxels that are on the part.
    """
    things = [thing for seed in seeds for thing in see_objects(model, seed, views)]
    table: dict[str, dict[str, dict[str, tuple[float, float, float, int]]]] = {}
    for form in FORMS:
        for against in NEGATIVES:
            rows: dict[str, list[tuple[float, float, float]]] = {}
            for thing in things:
                for part in PARTS_OF[thing.kind]:
                    share = float((thing.part == PART_NAMES.index(part)).mean())
                    if (thing.part == PART_NAMES.index(part)).sum() < LEAST_VOXELS or share > 0.999:
                        continue
                    scores = part_scores(thing, part, encode, form, against)
                    rows.setdefault(part, []).append((*judged(thing, part, scores), share))
            rows["all"] = [row for part in sorted(rows) for row in rows[part]]
            means = {part: (*np.mean(rows[part], axis=0).round(3).tolist(), len(rows[part])) for part in sorted(rows)}
            table.setdefault(form, {})[against] = means
    return table


def part_table(figures: dict[str, dict[str, tuple[float, float, float, int]]], against: str) -> str:
    """One Markdown table of a form's figures."""
    lines = ["| part | parts seen | chance | best voxels on it | best cluster on it |", "|---|---|---|---|---|"]
    for part, (precision, cluster, chance, count) in figures[against].items():
        lines.append(f"| {part} | {count} | {100 * chance:.0f} % | {100 * precision:.0f} % | {100 * cluster:.0f} % |")
    return "\n".join(lines)
