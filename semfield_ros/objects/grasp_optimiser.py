"""Grasps by gradient: many poses of the gripper moved and turned at once until they hold, fit words, and fit a task.

F3RM's optimisation (Shen et al., CoRL 2023) with three changes that make it answer in a second on two cores. Poses
start at opposed surfaces and not at voxels, so hundreds do for its thousands. The map is asked once, for dense grids
around the object, and never within the loop. And geometry is part of the loss, so that what comes out closes on the
object with both fingers; words and demonstrations are further terms of it and may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..config import GraspConfig, GripperConfig
from ..errors import QueryError
from . import reasons
from .antipodal import antipodal_pairs
from .antipodal_planner import AntipodalPlanner, assessed, usable
from .approaches import approaches
from .diversity import diverse
from .grasp_terms import DEPTHS, Poses, SceneGrids, Sense, Terms, posed
from .grasps import Grasp, GraspPlan, GraspScene
from .local_grid import LocalGrid, Nodes, nearest, sample_spacing, signed_distance
from .wish import Wish

MAX_SAMPLES = 300
MAX_PAIRS = 160
STEP = (1e-3, 1e-3, 1e-3, 0.025, 0.025, 0.025, 1e-3, 1e-3)
"""Of Adam at first, in the pose's 8 numbers: metres, radians, metres."""
MARGIN_M = 0.025
"""Of the fine grid around what may be held."""


@dataclass(frozen=True)
class OptimiserSettings:
    """How much is tried.

    Attributes:
        poses: that start, the best of all proposals. steps: of Adam. keep: pruning stops at so many.
        near_nodes, far_nodes, sense_nodes: at most so many nodes of each grid. ranks: of a task's basis.
        task_points: of the task's points, so many are in the loss; all are in the ranking.
    """

    poses: int = 256
    steps: int = 50
    keep: int = 64
    near_nodes: int = 100_000
    far_nodes: int = 60_000
    sense_nodes: int = 40_000
    ranks: int = 12
    task_points: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """Poses before and after, with their losses [P]; the same rows are the same pose."""

    start: Poses
    start_loss: torch.Tensor
    end: Poses
    end_loss: torch.Tensor


class OptimisedPlanner:
    """A `GraspPlanner` that refines geometric candidates by gradient, and follows a wish where the scene has one."""

    def __init__(self, settings: OptimiserSettings | None = None, device: str = "auto"):
        self.settings = settings or OptimiserSettings()
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device

    def plan(self, scene: GraspScene, gripper: GripperConfig, config: GraspConfig) -> GraspPlan:
        """Ranked, diverse, collision-free grasps of the target."""
        return optimise(scene, gripper, config, self.settings, device=self.device)


def optimise(
    scene: GraspScene,
    gripper: GripperConfig,
    config: GraspConfig,
    settings: OptimiserSettings | None = None,
    *,
    device: str = "cpu",
) -> GraspPlan:
    """Grasps of a scene, and of its wish where it has one; the best of the purely geometric ones stay among them.

    Ranking: the geometric planner's score; times 0.7 and more as the words fit; with a task, 3/4 of the score is the
    similarity to its demonstrations.

    Raises:
        QueryError: a wish of another encoder than the map's.
    """
    settings, scene = settings or OptimiserSettings(), usable(scene)
    geometric = AntipodalPlanner().plan(scene, gripper, config)
    if (scene.target_normals != 0).any(1).sum() < 2:
        return geometric
    terms = Terms(scene_grids(scene, gripper, settings, device), gripper, config)
    starts = proposals(scene, gripper, config, terms, settings, geometric.grasps)
    if not len(starts.width):
        return geometric
    end = descend(terms, starts, settings).end
    downward = -(end.rotation[:, :, 2] @ terms.grids.up).cpu().numpy()
    steep = downward < np.cos(np.deg2rad(config.max_approach_deg))
    grasps, rejected = assessed(scene, gripper, config, *(v[~steep] for v in matrices(end)))
    rejected[reasons.FROM_BELOW] += int(steep.sum())
    rejected.update(geometric.rejected)
    found = _wished([*grasps, *geometric.grasps], terms, gripper)
    return GraspPlan(tuple(found), {reason: count for reason, count in rejected.items() if count})


def scene_grids(
    scene: GraspScene, gripper: GripperConfig, settings: OptimiserSettings, device: str = "cpu"
) -> SceneGrids:
    """The local copy of a scene that poses are optimised in."""
    known = (scene.own_normals != 0).any(1)
    own, normals = scene.own[known], scene.own_normals[known]
    target = scene.target
    spacing = sample_spacing(own)
    near = Nodes.around(target, MARGIN_M, 0.0025, settings.near_nodes)
    distance, normal = signed_distance(own, normals, near.points, spacing, device)
    off_target = np.full(len(near.points), 0.0)
    if len(target) < len(scene.own):
        off_target = nearest(target, near.points, 1, device)[0][:, 0]
    reach = gripper.finger_length_m + gripper.palm_depth_m + gripper.max_width_m / 2
    far = Nodes.around(scene.target, reach, 0.008, settings.far_nodes)
    to_own = signed_distance(own, normals, far.points, spacing, device)[0]
    to_rest = nearest(scene.surroundings, far.points, 1, device)[0][:, 0]
    centroid = scene.own.mean(0)
    sense, asked = (None, None) if scene.wish is None else _sensed(scene.wish, target, settings)
    return SceneGrids(
        near=near.grid(np.column_stack([distance, normal, off_target])).moved(device),
        far=far.grid(np.column_stack([to_own, to_rest])).moved(device),
        up=torch.tensor(scene.up, dtype=torch.float32, device=device),
        centroid=torch.tensor(centroid, dtype=torch.float32, device=device),
        radius_m=max(float(np.linalg.norm(scene.own - centroid, axis=1).max()), 0.01),
        sense=None if sense is None else sense.moved(device),
        asked=None if asked is None else replace(
            asked, around=asked.around.to(device), points=asked.points.to(device), codes=asked.codes.to(device)
        ),
    )  # fmt: skip


def _sensed(wish: Wish, target: np.ndarray, settings: OptimiserSettings) -> tuple[LocalGrid | None, Sense | None]:
    """What the map says of the wish around the target: asked once, along few directions."""
    words, task = np.asarray(wish.positives, np.float32), wish.task
    if not len(words) and task is None:
        return None, None
    dim = words.shape[1] if task is None else task.features.shape[1]
    if len(words) and words.shape[1] != dim:
        raise QueryError(f"the words have {words.shape[1]} dimensions and the task {dim}: another encoder")
    basis, codes, points = np.zeros((0, dim), np.float32), np.zeros((0, 0), np.float32), np.zeros((0, 3), np.float32)
    if task is not None:
        _, values, rows = np.linalg.svd(task.features, full_matrices=False)
        share = np.cumsum(values**2) / max(float((values**2).sum()), 1e-12)
        rank = min(settings.ranks, int(np.searchsorted(share, 0.999)) + 1)
        basis = np.asarray(rows[:rank], np.float32)
        codes, points = task.features @ basis.T, task.points
    negatives = np.asarray(wish.negatives if len(words) else [], np.float32).reshape(-1, dim)
    nodes = Nodes.around(target, 0.035, 0.005, settings.sense_nodes)
    directions = np.concatenate([words.reshape(-1, dim), negatives, basis])
    alpha, along = wish.features(nodes.points.astype(np.float32), directions)
    fit = np.zeros(len(alpha), np.float32)
    if len(words):
        margin = along[:, : len(words)].max(1)
        if len(negatives):
            margin = margin - along[:, len(words) : len(words) + len(negatives)].max(1)
        solid = alpha > 0.3
        # F3RM's s_min and s_max, but of quantiles: single voxels are not to be trusted
        low, high = np.quantile(margin[solid], [0.1, 0.98]) if solid.any() else (0.0, 1.0)
        fit = np.clip((margin - low) / max(high - low, 1e-3), 0, 1)
    channels = np.column_stack([alpha, alpha * fit, alpha[:, None] * along[:, len(words) + len(negatives) :]])
    around = np.random.default_rng(settings.seed).normal(size=(8, 3)) * 0.005
    asked = Sense(
        torch.tensor(around, dtype=torch.float32), bool(len(words)), torch.from_numpy(points.copy()),
        torch.from_numpy(np.ascontiguousarray(codes)), 0.0 if task is None else float(np.linalg.norm(task.features)),
    )  # fmt: skip
    return nodes.grid(channels), asked


def proposals(
    scene: GraspScene, gripper: GripperConfig, config: GraspConfig, terms: Terms, settings: OptimiserSettings,
    seen: Sequence[Grasp],
) -> Poses:  # fmt: skip
    """Where poses start: nearly opposed surfaces of the target, each approached from all sides, and the grasps that
    were `seen` already; the `settings.poses` of the lowest loss."""
    rng = np.random.default_rng(settings.seed)
    rows = scene.target_rows[(scene.target_normals != 0).any(1)]
    rows = rng.permutation(rows)[:MAX_SAMPLES]
    wider = replace(gripper, friction=1.5 * gripper.friction)
    pairs = antipodal_pairs(scene.own[rows], scene.own_normals[rows], np.ones(len(rows), bool), wider)
    order = np.argsort(-pairs.quality, kind="stable")
    cells = np.round(np.concatenate([pairs.middle / 0.008, 2 * np.abs(pairs.axis)], 1))[order].astype(np.int64)
    chosen = order[np.sort(np.unique(cells, axis=0, return_index=True)[1])][:MAX_PAIRS]
    like = terms.grids.up
    starts = [poses_of(seen, like)]
    # turned by half a turn a gripper holds the same, but its features are not those that were shown
    flips = (1.0, -1.0) if terms.grids.asked is not None and len(terms.grids.asked.points) else (1.0,)
    for flip in flips:
        some = pairs[chosen]
        some = replace(some, axis=flip * some.axis)
        rotation, pair, _ = approaches(some, scene.up, scene.target.mean(0), config)
        depth = np.full(len(pair), 0.5 * gripper.finger_breadth_m)
        values = (rotation, some.middle[pair], some.width[pair], depth)
        starts.append(Poses(*(torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in values)))
    every = _joined(starts)
    with torch.no_grad():
        loss = terms.loss(every, settings.task_points)
    return _subset(every, torch.argsort(loss, stable=True)[: settings.poses])


def descend(terms: Terms, start: Poses, settings: OptimiserSettings) -> Run:
    """Adam on all poses at once. Three times on the way the worse half is dropped, down to `settings.keep`."""
    like = start.middle
    step = like.new_tensor(STEP)
    change = torch.zeros(len(like), 8, dtype=like.dtype, device=like.device)
    mean, square = torch.zeros_like(change), torch.zeros_like(change)
    breadth = terms.gripper.finger_breadth_m
    rows = torch.arange(len(like), device=like.device)
    with torch.no_grad():
        start_loss = terms.loss(start, settings.task_points)
    for k in range(settings.steps):
        change.requires_grad_(True)
        loss = terms.loss(posed(start, change), settings.task_points)
        (gradient,) = torch.autograd.grad(loss.sum(), change)
        with torch.no_grad():
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.98 * square + 0.02 * gradient.square()
            # in steps of each number, so that the floor is the same for metres and radians
            unit = (mean / (1 - 0.9 ** (k + 1))) / ((square / (1 - 0.98 ** (k + 1))).sqrt() + 1e-6 / step)
            rate = 0.55 + 0.45 * float(np.cos(np.pi * k / settings.steps))
            change = change - rate * step * unit
            change[:, 7] = (start.depth + change[:, 7]).clamp(DEPTHS[0] * breadth, DEPTHS[1] * breadth) - start.depth
            change[:, 6] = (start.width + change[:, 6]).clamp_min(terms.gripper.min_width_m) - start.width
            if k + 1 in (settings.steps // 4, settings.steps // 2, 3 * settings.steps // 4) and k + 1 < settings.steps:
                count = max(min(settings.keep, len(rows)), len(rows) // 2)
                best = torch.argsort(loss.detach(), stable=True)[:count].sort().values
                rows, change, mean, square = rows[best], change[best], mean[best], square[best]
                start, start_loss = _subset(start, best), start_loss[best]
    with torch.no_grad():
        end = posed(start, change)
        return Run(start, start_loss, end, terms.loss(end, settings.task_points))


def _wished(grasps: list[Grasp], terms: Terms, gripper: GripperConfig) -> list[Grasp]:
    """The grasps scored as the wish says, ranked, none near a better one."""
    asked = terms.grids.asked
    score = np.array([g.score for g in grasps])
    poses = poses_of(grasps, terms.grids.up)
    with torch.no_grad():
        if asked is not None and asked.words:
            score = score * (0.7 + 0.3 * terms.language(poses).cpu().numpy())
        if asked is not None and len(asked.points):
            score = 0.25 * score + 0.75 * terms.similarity(poses).clamp(0, 1).cpu().numpy()
    T = np.array([g.T_world_gripper for g in grasps]).reshape(-1, 4, 4)
    kept = diverse(T[:, :3, 3], T[:, :3, :3], np.round(score, 9), 0.01, 25.0, gripper.candidates)
    return [replace(grasps[k], score=float(np.clip(score[k], 0, 1))) for k in kept]


def matrices(poses: Poses) -> tuple[np.ndarray, np.ndarray]:
    """T_world_gripper [P, 4, 4] and contacts [P, 2, 3], float64."""
    # float32 products are rotations to six digits only
    u, _, v = np.linalg.svd(poses.rotation.cpu().numpy().astype(np.float64))
    T = np.tile(np.eye(4), (len(u), 1, 1))
    T[:, :3, :3], T[:, :3, 3] = u @ v, poses.origin.cpu().numpy()
    return T, poses.contacts.cpu().numpy().astype(np.float64)


def poses_of(grasps: Sequence[Grasp], like: torch.Tensor) -> Poses:
    """Finished grasps as poses, of the type and on the device of `like`."""
    T = np.array([g.T_world_gripper for g in grasps]).reshape(-1, 4, 4)
    middle = np.array([g.contacts.mean(0) for g in grasps]).reshape(-1, 3)
    depth = ((T[:, :3, 3] - middle) * T[:, :3, 2]).sum(1)
    values = (T[:, :3, :3], middle, np.array([g.width_m for g in grasps]), depth)
    return Poses(*(torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in values))


def _subset(poses: Poses, rows: np.ndarray | torch.Tensor) -> Poses:
    index = torch.as_tensor(rows, device=poses.middle.device)
    return Poses(*(v[index] for v in vars(poses).values()))


def _joined(parts: list[Poses]) -> Poses:
    return Poses(*(torch.cat([getattr(p, name) for p in parts]) for name in vars(parts[0])))
