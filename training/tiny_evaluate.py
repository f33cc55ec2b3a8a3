"""What `tiny` knows, measured on scenes no training saw: accuracy, thresholds for "no match", the receptive window."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_captions import CANONICAL, HELD_OUT_ABSENT, evaluation_wordings, nouns_of
from tiny_data import IGNORE, PATCH_PX, patch_labels

from semfield_ros.encoders.tiny import dense_features, normalised_images
from semfield_ros.geometry import back_project
from semfield_ros.sources.simulator import Simulator, SimulatorConfig
from semfield_ros.sources.simulator_objects import COLOURS, KINDS, STUFF
from semfield_ros.sources.simulator_scene import CLASS_NAMES

KIND_NAMES = [kind.name for kind in KINDS]
COLOUR_NAMES = list(COLOURS)
FIRST_KIND = 1 + len(STUFF)
EVALUATION_SCENES = range(0, 24)
CALIBRATION_SCENES = range(60, 84)
TEMPERATURE = 10.0


@dataclass(frozen=True)
class SceneFeatures:
    """One scene seen from several sides through the encoder.

    Attributes:
        features: [V, h, w, D] unit. labels: [V, 5, h, w] (tiny_data.PatchLabels). voxels: [M, D] unit means of features
            over 2 cm cells. voxel_instance: [M]. present: (kind, colour) of the objects seen.
    """

    features: np.ndarray
    labels: np.ndarray
    voxels: np.ndarray
    voxel_instance: np.ndarray
    present: list[tuple[str, str]]


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def text_encoder(model: Any, tokenizer: Any) -> Callable[[list[str]], np.ndarray]:
    """Texts to unit rows."""

    def encode(texts: list[str]) -> np.ndarray:
        with torch.inference_mode():
            return model.encode_text(tokenizer(texts), normalize=True).float().numpy()

    return encode


def see_scene(model: Any, seed: int, views: int, cell_m: float = 0.02) -> SceneFeatures:
    """Noisy frames of an evaluation scene through the model, and their average in voxels."""
    simulator = Simulator(SimulatorConfig(seed=seed, frames=views, processes=0))
    features, labels = [], []
    keys, pixels_features, pixels_instance = [], [], []
    for index, T in enumerate(simulator.path(views)):
        frame = simulator.render(T, index / 30)
        with torch.inference_mode():
            dense = unit(dense_features(model, normalised_images(model, frame.rgb[None]))[0].float().numpy())
        features.append(dense)
        labels.append(patch_labels(simulator.scene, simulator.cast(T).geom).stacked())
        points, flat = back_project(frame.camera, T, frame.depth_m)
        v, u = np.divmod(flat, frame.camera.width)
        keep = (u % 4 == 2) & (v % 4 == 2) & (np.abs(points[:, :2]) < 0.6).all(1) & (points[:, 2] > -0.02)
        keys.append(np.floor(points[keep] / cell_m).astype(np.int64))
        pixels_features.append(dense[v[keep] // PATCH_PX, u[keep] // PATCH_PX])
        pixels_instance.append(frame.instance.reshape(-1)[flat[keep]])
    _, inverse, counts = np.unique(np.concatenate(keys), axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    sums = np.zeros((len(counts), features[0].shape[-1]))
    np.add.at(sums, inverse, np.concatenate(pixels_features))
    votes = np.zeros((len(counts), 64))
    np.add.at(votes, (inverse, np.concatenate(pixels_instance)), 1)
    supported = counts >= 4
    present = [(truth.kind, truth.colour) for truth in simulator.objects]
    return SceneFeatures(
        np.stack(features), np.stack(labels), unit(sums[supported]), votes[supported].argmax(1), present
    )


def object_means(scene: SceneFeatures, views: slice = slice(None)) -> dict[int, np.ndarray]:
    """The mean feature of every object over the chosen views, by instance."""
    flat, instance = scene.features[views].reshape(-1, scene.features.shape[-1]), scene.labels[views, 4].reshape(-1)
    ids = [int(i) for i in np.unique(instance) if i > 0 and (instance == i).sum() >= 2]
    return {i: unit(flat[instance == i].mean(0)) for i in ids}


def accuracies(
    scenes: Iterable[SceneFeatures], encode: Callable[[list[str]], np.ndarray], held_out: bool
) -> dict[str, float]:
    """Zero-shot accuracy per patch and per object among all kinds, all colours, all colours x kinds."""
    rng = np.random.default_rng(0)
    pairs = list(itertools.product(range(len(KIND_NAMES)), range(len(COLOUR_NAMES))))
    hits: dict[str, list[float]] = {}

    def record(name: str, values: np.ndarray | list[bool]) -> None:
        hits.setdefault(name, []).extend(np.asarray(values, dtype=float).tolist())

    for scene in scenes:
        kinds = encode([evaluation_wordings(rng, kind, None, held_out) for kind in KIND_NAMES])
        colours = encode([evaluation_wordings(rng, None, colour, held_out) for colour in COLOUR_NAMES])
        both = encode([evaluation_wordings(rng, KIND_NAMES[k], COLOUR_NAMES[c], held_out) for k, c in pairs])
        stuff = encode(list(STUFF))
        flat = scene.features.reshape(-1, scene.features.shape[-1])
        semantic, colour, main, _, _ = (scene.labels[:, k].reshape(-1) for k in range(5))
        thing = (semantic >= FIRST_KIND) & (semantic != IGNORE)
        kind_id = semantic.astype(int) - FIRST_KIND
        record("patch kind", (flat[thing] @ kinds.T).argmax(1) == kind_id[thing])
        record("patch colour", (flat[thing & (main == 1)] @ colours.T).argmax(1) == colour[thing & (main == 1)])
        pair_id = kind_id * len(COLOUR_NAMES) + colour
        record("patch colour + kind", (flat[thing] @ both.T).argmax(1) == pair_id[thing])
        known = semantic != IGNORE
        record("patch kind or stuff", (flat[known] @ np.concatenate([stuff, kinds]).T).argmax(1) == semantic[known] - 1)
        for name, views in (("object", slice(None)), ("object in one view", None)):
            selections = [views] if views is not None else [slice(v, v + 1) for v in range(len(scene.features))]
            for selection in selections:
                for instance, mean in object_means(scene, selection).items():
                    kind_name, colour_name = scene.present[instance - 1]
                    k, c = KIND_NAMES.index(kind_name), COLOUR_NAMES.index(colour_name)
                    record(f"{name} kind", [(kinds @ mean).argmax() == k])
                    record(f"{name} colour", [(colours @ mean).argmax() == c])
                    record(f"{name} colour + kind", [(both @ mean).argmax() == k * len(COLOUR_NAMES) + c])
    return {name: float(np.mean(values)) for name, values in hits.items()}


def relevancy(features: np.ndarray, texts: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """LERF's pairwise relevancy: [N, Q] in (0, 1), > .5 where the text beats every negative."""
    margin = features @ texts.T - (features @ negatives.T).max(1, keepdims=True)
    return 1 / (1 + np.exp(-TEMPERATURE * margin))


def decisions(scenes: list[SceneFeatures], encode: Callable[[list[str]], np.ndarray]) -> dict[str, np.ndarray]:
    """Best relevancies over the voxels of each scene, for prompts that are there and that are not.

    Returns:
        present, absent: best scores. localised: 1 where a present prompt's best voxel is on a right object.
        matching: relevancies of voxels on the right objects.
    """
    negatives = encode(list(CANONICAL))
    present, absent, localised, matching = [], [], [], []
    for scene in scenes:
        kinds_here = {kind for kind, _ in scene.present}
        prompts: list[tuple[str, set[int]]] = []
        for kind in KIND_NAMES:
            right = {i for i, (k, _) in enumerate(scene.present, 1) if k == kind}
            prompts.append((kind, right))
        for kind in kinds_here:
            for colour in COLOUR_NAMES:
                right = {i for i, pair in enumerate(scene.present, 1) if pair == (kind, colour)}
                prompts.append((f"{colour} {kind}", right))
        prompts += [(word, set()) for word in HELD_OUT_ABSENT]
        scores = relevancy(scene.voxels, encode([text for text, _ in prompts]), negatives)
        for column, (_, right) in enumerate(prompts):
            best = int(scores[:, column].argmax())
            if not right:
                absent.append(scores[best, column])
            elif np.isin(scene.voxel_instance, list(right)).sum() >= 5:
                present.append(scores[best, column])
                localised.append(float(scene.voxel_instance[best] in right))
                matching.append(scores[np.isin(scene.voxel_instance, list(right)), column])
    return {
        "present": np.array(present),
        "absent": np.array(absent),
        "localised": np.array(localised),
        "matching": np.concatenate(matching),
    }


def thresholds(figures: dict[str, np.ndarray]) -> tuple[float, float]:
    """no_match: least balanced error of deciding presence. high: what most voxels of right objects reach."""
    candidates = np.linspace(0.3, 0.95, 261)
    balanced = np.array([(figures["present"] >= t).mean() + (figures["absent"] < t).mean() for t in candidates])
    # Of thresholds that decide equally well the lowest leaves most of an object above it.
    no_match = float(candidates[np.flatnonzero(balanced >= balanced.max() - 0.01)[0]])
    high = float(np.clip(np.quantile(figures["matching"], 0.35), no_match + 0.01, 0.97))
    return round(no_match, 4), round(high, 4)


def fitted_window(
    scenes: list[SceneFeatures], seeds: Iterable[int], views: int, half: int = 6, pitch_px: int = 4
) -> np.ndarray:
    """The point-spread function of the features: how much each place around a patch contributes to it.

    A patch's feature is explained as the weighted mean of what lies around it: every pixel stands for the mean feature
    of its surface (an object of the scene, table, floor, wall), and the weights are the non-negative least-squares
    solution over all patches near a boundary. Context that only helps to recognise a thing does not count as blur.

    Returns:
        [2 half + 1, 2 half + 1] float32 on a pitch of `pitch_px`, symmetric, summing to 1.
    """
    from scipy.optimize import nnls

    edge = 2 * half + 1
    gram, moment = np.zeros((edge**2, edge**2)), np.zeros(edge**2)
    for scene, seed in zip(scenes, seeds):
        simulator = Simulator(SimulatorConfig(seed=seed, frames=views, processes=0))
        dim = scene.features.shape[-1]
        flat, semantic, instance = (
            scene.features.reshape(-1, dim),
            scene.labels[:, 0].reshape(-1),
            scene.labels[:, 4].reshape(-1),
        )
        surface = np.where(instance > 0, instance + FIRST_KIND, semantic)
        prototypes = np.zeros((len(scene.present) + FIRST_KIND + 1, dim))
        for s in np.unique(surface[semantic != IGNORE]):
            prototypes[s] = flat[(surface == s) & (semantic != IGNORE)].mean(0)
        for view, T in enumerate(simulator.path(views)):
            geom = simulator.cast(T).geom
            labels = simulator.scene.geom_instance[geom]
            labels = np.where(labels > 0, labels + FIRST_KIND, simulator.scene.geom_semantic[geom])
            h, w = scene.features.shape[1:3]
            offsets = np.arange(-half, half + 1) * pitch_px
            rows = np.arange(h)[:, None] * PATCH_PX + PATCH_PX // 2 + offsets
            columns = np.arange(w)[:, None] * PATCH_PX + PATCH_PX // 2 + offsets
            good = ((rows >= 0) & (rows < labels.shape[0])).all(1)[:, None] & (
                (columns >= 0) & (columns < labels.shape[1])
            ).all(1)
            i, j = np.nonzero(good)
            around = labels[rows[i][:, :, None], columns[j][:, None, :]].reshape(len(i), -1)
            mixed = (around[:, 0:1] != around).any(1) & (around >= FIRST_KIND).any(1)
            around, target = around[mixed], scene.features[view, i[mixed], j[mixed]]
            similar = prototypes @ prototypes.T
            for row, feature in zip(around, target @ prototypes.T):
                gram += similar[np.ix_(row, row)]
                moment += feature[row]
    ridge = 1e-4 * np.trace(gram) / len(gram)
    # Mirror images and quarter turns of a scene are as likely: only symmetric kernels are considered.
    groups = _symmetry_groups(edge)
    fold = np.zeros((edge**2, groups.max() + 1))
    fold[np.arange(edge**2), groups] = 1
    A = fold.T @ (gram + ridge * np.eye(len(gram))) @ fold
    b = fold.T @ moment
    factor = np.linalg.cholesky(A + 1e-9 * np.trace(A) * np.eye(len(A)))
    weights, _ = nnls(factor.T, np.linalg.solve(factor, b))
    kernel = (fold @ weights).reshape(edge, edge)
    return (kernel / kernel.sum()).astype(np.float32)


def _symmetry_groups(edge: int) -> np.ndarray:
    """Cells of an edge x edge kernel that the symmetries of the square map onto each other share a number: [edge^2]."""
    half = edge // 2
    y, x = np.divmod(np.arange(edge**2), edge)
    a, b = np.abs(y - half), np.abs(x - half)
    key = np.maximum(a, b) * edge + np.minimum(a, b)
    return np.unique(key, return_inverse=True)[1].reshape(-1)


def synonym_accuracy(scenes: Iterable[SceneFeatures], encode: Callable[[list[str]], np.ndarray]) -> float:
    """Objects by kind when every kind is called by its last taught synonym."""
    kinds = encode([nouns_of(kind)[-1] for kind in KIND_NAMES])
    hits = [
        (kinds @ mean).argmax() == KIND_NAMES.index(scene.present[instance - 1][0])
        for scene in scenes
        for instance, mean in object_means(scene).items()
    ]
    return float(np.mean(hits))


def report(
    model: Any, tokenizer: Any, views: int, seeds: range, calibration_seeds: range
) -> tuple[dict[str, Any], str]:
    """All figures, and the table of docs/tiny_encoder.md."""
    encode = text_encoder(model, tokenizer)
    scenes = [see_scene(model, seed, views) for seed in seeds]
    held = [see_scene(model, seed, views) for seed in calibration_seeds]
    no_match, high = thresholds(decisions(held, encode))
    plain, reworded = accuracies(scenes, encode, False), accuracies(scenes, encode, True)
    found = decisions(scenes, encode)
    figures = {
        "plain": plain,
        "held_out_wordings": reworded,
        "object kind by synonym": synonym_accuracy(scenes, encode),
        "no_match": no_match,
        "high": high,
        "present found": float((found["present"] >= no_match).mean()),
        "absent refused": float((found["absent"] < no_match).mean()),
        "best voxel on the right object": float(found["localised"].mean()),
        "median relevancy present": float(np.median(found["present"])),
        "right voxels above no_match": float((found["matching"] >= no_match).mean()),
        "median relevancy absent": float(np.median(found["absent"])),
        "objects": sum(len(s.present) for s in scenes),
        "views": views,
        "scenes": len(scenes),
    }
    lines = ["| accuracy | plain words | wordings never trained on |", "|---|---|---|"]
    lines += [f"| {name} | {100 * plain[name]:.1f} % | {100 * reworded[name]:.1f} % |" for name in plain]
    lines += ["", "| deciding | |", "|---|---|"]
    lines += [f"| {k} | {v:.3f} |" for k, v in figures.items() if isinstance(v, float)]
    return figures, "\n".join(lines)


def update_meta(path: Path, **values: Any) -> None:
    """Merge values into the shipped meta.json."""
    meta = json.loads(path.read_text()) if path.exists() else {}
    meta.update(values)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    temporary.rename(path)


assert len(CLASS_NAMES) == FIRST_KIND + len(KIND_NAMES)
