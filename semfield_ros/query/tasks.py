"""Tasks shown, not named: grasps that were demonstrated, as one embedding to ask with (F3RM, Shen et al., CoRL 2023).

A demonstration is a pose of the gripper in a mapped scene. What the task is about is what lies around the gripper
there: features at 100 points ~ N(0, (7.5 mm)^2) in the gripper's frame, each weighted by how solid space is at it
(alpha). Averaged over demonstrations they are the task's embedding, [100, D]. At another pose the same points give
another such matrix, and the cosine of the two says how much that pose is like the demonstrations; their mean over
points is a single feature, which can be asked for like a word.

Files are safetensors with a JSON header, never pickles. `objects.grasp_optimiser` moves grippers until they are alike.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..errors import CheckpointError, QueryError
from ..field.model import Field
from ..field.snapshot import Block, Snapshot
from ..field.volume import density_of_distance, stretch
from ..geometry import rigid_error, transform_points
from .prompt import EncodedPrompts, Prompt, PromptEncoder
from .scores import field_cosines

QUERY_POINTS, SIGMA_M = 100, 0.0075
STEP_M = 0.01
"""alpha = 1 - exp(-density x this)."""
SOLID = 0.02
"""Space with an alpha below this is free: its features play no part."""
LEAST_SOLID = 0.05
"""A demonstration whose query points have a smaller mean alpha was shown in free space."""
SUFFIX = ".task"
_FORMAT = "1"


def query_points(count: int = QUERY_POINTS, sigma_m: float = SIGMA_M, seed: int = 0) -> np.ndarray:
    """Points [count, 3] float32 in the gripper's frame (origin midway between the fingertips), metres.

    Raises:
        QueryError: no points or no spread.
    """
    if count < 1 or not 0 < sigma_m < np.inf:
        raise QueryError(f"{count} query points with sigma {sigma_m} m; allowed: at least one, and a spread > 0")
    return (np.random.default_rng(seed).normal(size=(count, 3)) * sigma_m).astype(np.float32)


@torch.no_grad()
def field_features(field: Field, points: np.ndarray, head: str = "language") -> tuple[np.ndarray, np.ndarray]:
    """alpha [N] in [0, 1] and unit features [N, D] float32 of a field's head at points [N, 3]."""
    x = torch.from_numpy(np.ascontiguousarray(points, np.float32)).to(next(field.parameters()).device)
    features = field.head(head).finish(field.hidden(head, x))
    return alpha_at(field, x).cpu().numpy(), torch.nn.functional.normalize(features, dim=-1).cpu().numpy()


def alpha_at(field: Field, x: torch.Tensor, distance: torch.Tensor | None = None) -> torch.Tensor:
    """How solid space is at points [N, 3]: [N] in [0, 1]. With their `distance` [N], differentiable."""
    distance = field.distance_at(x) if distance is None else distance
    density = density_of_distance(distance, field.config.truncation_m, stretch(x, field.workspace))
    return 1 - torch.exp(-density * STEP_M)


def taught(snapshot: Snapshot, head: str) -> Iterator[tuple[Field, Block]]:
    """The blocks of a map whose field has learnt this head."""
    for block in snapshot.blocks():
        field = block.snapshot.field
        if field is not None and head in field.heads and (block.snapshot.language or block.snapshot.learnt.get(head)):
            yield field, block


@dataclass(frozen=True)
class FieldFeatures:
    """A map's features along a few directions: what `objects.wish.FeatureSource` asks for."""

    snapshot: Snapshot
    head: str = "language"

    @torch.no_grad()
    def __call__(self, points: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """alpha [N], and dot products [N, R] of unit features with directions [R, D], 0 in free space.

        Raises:
            QueryError: directions of another length than the map's features.
        """
        points = np.ascontiguousarray(points, np.float32)
        alpha, along = np.zeros(len(points), np.float32), np.zeros((len(points), len(directions)), np.float32)
        for field, block in taught(self.snapshot, self.head):
            rows = np.flatnonzero(((points >= block.low_m) & (points < block.high_m)).all(1))
            x = torch.from_numpy(points[rows]).to(next(field.parameters()).device)
            alpha[rows] = alpha_at(field, x).cpu().numpy()
            solid = rows[alpha[rows] > SOLID]
            along[solid] = field_cosines(field, points[solid], directions, head_name=self.head)
        return alpha, along


def pose_features(snapshot: Snapshot, T_world_gripper: np.ndarray, points: np.ndarray, head: str) -> np.ndarray:
    """alpha-weighted features [..., N, D] around gripper poses [..., 4, 4]; 0 in free space.

    Args:
        points: [N, 3] in the gripper's frame.

    Raises:
        QueryError: poses that are not rigid, or a field that has not learnt this head.
    """
    poses = np.asarray(T_world_gripper, np.float64)
    if poses.shape[-2:] != (4, 4) or not np.isfinite(poses).all():
        raise QueryError(f"gripper poses have shape {poses.shape}; expected finite [..., 4, 4]")
    flat = poses.reshape(-1, 4, 4)
    worst = max((rigid_error(T) for T in flat), default=0.0)
    if worst > 5e-3:
        raise QueryError(f"a gripper pose is {worst:.3g} away from a rigid transform; allowed is 0.005")
    world = np.concatenate([transform_points(T, points.astype(np.float64)) for T in flat]) if len(flat) else points[:0]
    found: np.ndarray | None = None
    for field, block in taught(snapshot, head):
        mine = ((world >= block.low_m) & (world < block.high_m)).all(1)
        alpha, features = field_features(field, world[mine], head)
        if found is None:
            found = np.zeros((len(world), features.shape[1]), np.float32)
        found[mine] = alpha[:, None] * features
    if found is None:
        raise QueryError(f"the field has not learnt {head!r} yet; wait for the first training steps")
    return found.reshape(*poses.shape[:-2], len(points), -1)


@dataclass(frozen=True)
class TaskEmbedding:
    """What demonstrations of one task have in common.

    Attributes:
        name: of the task. points: [N, 3] float32, gripper frame, metres. features: [N, D] float32, alpha-weighted, mean
            over demonstrations. demonstrations: how many. head: whose features ("language", "teacher_dino", ...).
        encoder: cache key of what measured them; '' = unknown.
    """

    name: str
    points: np.ndarray
    features: np.ndarray
    demonstrations: int
    head: str = "language"
    encoder: str = ""

    def __post_init__(self) -> None:
        shapes = self.points.shape, self.features.shape
        if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] != 3 or len(self.points) != len(self.features):
            raise QueryError(f"a task has points {shapes[0]} and features {shapes[1]}; expected [N, 3] and [N, D]")
        if self.demonstrations < 1:
            raise QueryError(f"task {self.name!r} has {self.demonstrations} demonstrations; needed is one")

    @property
    def feature(self) -> np.ndarray:
        """[D] float32, the unit mean over points, solid ones counting for more; QueryError where all was free space."""
        mean = self.features.mean(0)
        length = float(np.linalg.norm(mean))
        if length < 1e-6:
            raise QueryError(f"task {self.name!r} was demonstrated in free space; demonstrate it at a surface")
        return np.asarray(mean / length, np.float32)

    def prompts(self, negatives: np.ndarray | None = None) -> EncodedPrompts:
        """The task as a prompt under its name, for `Engine.query` and all that takes vectors.

        Args:
            negatives: [M, D] unit vectors of what to tell it apart from, in the same space; None = score by cosine.
        """
        feature = self.feature[None]
        none = np.zeros((0, feature.shape[1]), np.float32)
        against = none if negatives is None else np.asarray(negatives, np.float32)
        if against.ndim != 2 or against.shape[1] != feature.shape[1]:
            raise QueryError(f"negatives have shape {against.shape}; expected [M, {feature.shape[1]}], the same space")
        return EncodedPrompts((Prompt(self.name, (self.name,)),), feature, np.zeros(1, np.int64), against)

    def similarity(self, snapshot: Snapshot, T_world_gripper: np.ndarray) -> np.ndarray:
        """How much gripper poses [..., 4, 4] are like the demonstrations: cosines [...] of whole embeddings.

        Unlike `feature` this minds where around the gripper things are. 0 in free space.
        """
        found = pose_features(snapshot, T_world_gripper, self.points, self.head)
        if found.shape[-1] != self.features.shape[1]:
            lengths = f"{self.features.shape[1]} dimensions, the map {found.shape[-1]}"
            raise QueryError(f"task {self.name!r} has {lengths}: another encoder")
        flat = found.reshape(*found.shape[:-2], -1)
        length = np.linalg.norm(flat, axis=-1) * np.linalg.norm(self.features)
        return np.asarray((flat @ self.features.reshape(-1)) / np.maximum(length, 1e-9), np.float32)


def demonstrate(
    name: str,
    scenes: Sequence[tuple[Snapshot, np.ndarray]],
    *,
    head: str = "language",
    encoder: str = "",
    seed: int = 0,
) -> TaskEmbedding:
    """The embedding of a task from demonstrations: each a snapshot of its scene and T_world_gripper [4, 4] there.

    Raises:
        QueryError: none, a name that is empty, a pose that is not rigid or in free space, or scenes of different
            encoders.
    """
    if not name.strip():
        raise QueryError("a task needs a name: it is reported under it")
    if not scenes:
        raise QueryError(f"task {name!r} has no demonstrations; needed is one")
    points = query_points(seed=seed)
    found = [pose_features(snapshot, np.asarray(T), points, head) for snapshot, T in scenes]
    for k, features in enumerate(found):
        solid = float(np.linalg.norm(features, axis=-1).mean())
        if solid < LEAST_SOLID:
            where = np.round(np.asarray(scenes[k][1])[:3, 3], 3).tolist()
            raise QueryError(
                f"demonstration {k + 1} of {name!r} at {where} is in free space (mean alpha {solid:.2f}, needed is "
                f"{LEAST_SOLID}); the gripper's origin, midway between the fingertips, must be at a mapped surface"
            )
    lengths = sorted({f.shape[-1] for f in found})
    if len(lengths) > 1:
        raise QueryError(f"demonstrations have features of {lengths} dimensions; use maps of one encoder")
    mean = np.asarray(np.mean(found, axis=0), np.float32)
    return TaskEmbedding(name.strip(), points, mean, len(found), head, encoder)


def merged(task: TaskEmbedding, more: TaskEmbedding) -> TaskEmbedding:
    """A task with more demonstrations of it: the mean over all of them, under the first one's name.

    Raises:
        QueryError: they differ in head, encoder or query points.
    """
    for what in ("head", "encoder"):
        if getattr(task, what) != getattr(more, what):
            raise QueryError(
                f"task {task.name!r} has {what} {getattr(task, what)!r}, the new demonstrations "
                f"{getattr(more, what)!r}; record them under another name"
            )
    if task.features.shape != more.features.shape or not np.array_equal(task.points, more.points):
        raise QueryError(f"task {task.name!r} has other query points or features; record it under another name")
    count = task.demonstrations + more.demonstrations
    total = task.demonstrations * task.features + more.demonstrations * more.features
    return replace(task, features=np.asarray(total / count, np.float32), demonstrations=count)


@dataclass(frozen=True)
class TaskPrompts(EncodedPrompts):
    """Prompts of which some say how to hold what they find: `tasks` has one for each prompt, or None."""

    tasks: tuple[TaskEmbedding | None, ...] = ()


def with_tasks(encoder: PromptEncoder, texts: Sequence[str], tasks: Sequence[TaskEmbedding]) -> TaskPrompts:
    """Texts (may be none) and tasks as one question, told apart from the canonical negatives.

    What a task finds is held as it was shown. With one task, so is what the texts find: words say which object, the
    demonstration says how (F3RM).

    Raises:
        QueryError: neither, unusable texts, or tasks of another encoder.
    """
    negatives = encoder.vectors(encoder.config.negatives)
    parts = [encoder.encode(list(texts))] if texts or not tasks else []
    parts += [task.prompts(negatives) for task in tasks]
    first = np.cumsum([0, *(len(part.prompts) for part in parts)])
    shown = tasks[0] if len(tasks) == 1 else None
    return TaskPrompts(
        tuple(prompt for part in parts for prompt in part.prompts),
        np.concatenate([part.positives for part in parts]),
        np.concatenate([part.owner + start for part, start in zip(parts, first)]),
        negatives,
        parts=parts[0].parts,
        tasks=(*([shown] * (first[-1] - len(tasks))), *tasks),
    )


def save_task(path: str | Path, task: TaskEmbedding, *, overwrite: bool = False) -> Path:
    """Write a task (some hundred kB); returns the path, with suffix .task.

    Raises:
        CheckpointError: the file exists and `overwrite` is not set, or cannot be written.
    """
    from safetensors.numpy import save

    path = Path(path)
    path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} exists; choose another name or allow overwriting (overwrite=True)")
    header = {
        "semfield_task": _FORMAT, "name": task.name, "head": task.head, "encoder": task.encoder,
        "demonstrations": str(task.demonstrations),
    }  # fmt: skip
    data = save({"points": task.points, "features": task.features}, metadata=header)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    return path


def load_task(path: str | Path, encoder: str = "") -> TaskEmbedding:
    """Read a task.

    Args:
        encoder: cache key of the encoder it is to be used with; '' = do not check.

    Raises:
        CheckpointError: missing, torn, foreign or newer; or of another encoder.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("semfield_task") != _FORMAT:
                raise ValueError(f"its format is {header.get('semfield_task')!r}, this program reads {_FORMAT!r}")
            points, features = file.get_tensor("points"), file.get_tensor("features")
            count = int(header["demonstrations"])
        if not (np.isfinite(points).all() and np.isfinite(features).all()):
            raise ValueError("it holds numbers that are not finite")
        task = TaskEmbedding(header["name"], points, features, count, header["head"], header["encoder"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is no task that can be read ({error}); save it again") from error
    if encoder and task.encoder and task.encoder != encoder:
        raise CheckpointError(f"{path} was demonstrated with another encoder; demonstrate it again with this one")
    return task
