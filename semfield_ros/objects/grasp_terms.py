"""What makes a pose of an open gripper good, as differentiable terms of many poses at once.

A pose is 8 numbers: how far the middle of the contacts has moved (m), how far the gripper has turned (a rotation vector
on the tangent at its start, rad), the width between the contacts (m), and how deep behind the fingertips they lie (m).
Every term is 0 for a perfect grasp and about 1 for one that is just not acceptable; weights are in `Weights`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import GraspConfig, GripperConfig
from .local_grid import LocalGrid

CONTACT_M, TARGET_M = 0.004, 0.006
"""Deviations at which a contact's distance, and its distance from what may be held, count 1."""
DEPTHS = (0.2, 1.5)
"""Contacts lie so many finger breadths behind the tips."""
SPARE_M = 0.003
"""Kept beside the clearance: distances between samples of a map are over-estimated by about so much."""


@dataclass(frozen=True)
class Weights:
    """Of the terms in the sum that is minimised."""

    contact: float = 1.0
    opposed: float = 1.0
    target: float = 1.0
    free: float = 1.0
    width: float = 4.0
    approach: float = 4.0
    downward: float = 0.3
    torque: float = 0.3
    language: float = 1.0
    task: float = 4.0


@dataclass(frozen=True)
class Sense:
    """Channels of `SceneGrids.sense`: alpha, alpha x how well it fits the words, alpha x features along a task's basis.

    Attributes:
        around: [K, 3] query points about a contact, gripper axes, metres. words: whether there are any.
        points: [N, 3] the task's, gripper frame; N = 0: no task. codes: [N, R] its features along the same basis.
        length: of the task's whole embedding.
    """

    around: torch.Tensor
    words: bool
    points: torch.Tensor
    codes: torch.Tensor
    length: float


@dataclass(frozen=True)
class SceneGrids:
    """Everything the terms ask for.

    Attributes:
        near: channels distance to the object (signed, m), its outward normal (3), distance to the target (m); fine.
        far: channels signed distance to the object, distance to everything else (m); coarse, as wide as the gripper.
        sense: see `Sense`; None = neither words nor task. up: [3]. centroid: [3] of the object. radius_m: of it.
    """

    near: LocalGrid
    far: LocalGrid
    up: torch.Tensor
    centroid: torch.Tensor
    radius_m: float
    sense: LocalGrid | None = None
    asked: Sense | None = None


@dataclass(frozen=True)
class Poses:
    """P poses, as the 8 numbers say: rotation [P, 3, 3], middle of the contacts [P, 3], width, depth [P]."""

    rotation: torch.Tensor
    middle: torch.Tensor
    width: torch.Tensor
    depth: torch.Tensor

    @property
    def origin(self) -> torch.Tensor:
        """[P, 3], midway between the fingertips."""
        return self.middle + self.depth[:, None] * self.rotation[:, :, 2]

    @property
    def contacts(self) -> torch.Tensor:
        """[P, 2, 3], on the -x and on the +x finger."""
        side = self.middle.new_tensor([-0.5, 0.5])
        return self.middle[:, None] + side[:, None] * (self.width[:, None] * self.rotation[:, :, 0])[:, None]


def rotation_of(vector: torch.Tensor) -> torch.Tensor:
    """Rodrigues' formula: matrices [P, 3, 3] of rotation vectors [P, 3]; smooth at 0."""
    square = (vector * vector).sum(-1)[:, None, None]
    angle = square.clamp_min(1e-12).sqrt()
    x, y, z = vector.unbind(-1)
    o = torch.zeros_like(x)
    K = torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(-1, 3, 3)
    eye = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return eye + torch.sinc(angle / torch.pi) * K + 0.5 * torch.sinc(angle / (2 * torch.pi)) ** 2 * (K @ K)


def posed(start: Poses, change: torch.Tensor) -> Poses:
    """The poses that changes [P, 8] make of the starts: middle (m), turn (rad), width, depth (m)."""
    turn = start.rotation @ rotation_of(change[:, 3:6])
    return Poses(turn, start.middle + change[:, :3], start.width + change[:, 6], start.depth + change[:, 7])


def body(gripper: GripperConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fingers and palm as balls: places [B, 3] of a gripper whose inner faces touch, sides [B] (-1, 1: moves with that
    finger as it opens; 0: palm), radii [B]; metres."""
    r = min(gripper.finger_thickness_m, gripper.finger_breadth_m) / 2
    wide = max(gripper.finger_breadth_m / 2 - r, 0.0)
    count = max(2, round(gripper.finger_length_m / (2 * r)))
    rows: list[tuple[float, float, float, float, float]] = []
    for side in (-1.0, 1.0):
        for y in (-wide, wide):
            for k in range(count):
                z = -r - k * (gripper.finger_length_m - r) / (count - 1)
                rows.append((side * gripper.finger_thickness_m / 2, y, z, side, r))
    thick = gripper.finger_breadth_m / 2
    half = gripper.max_width_m / 2 + gripper.finger_thickness_m - thick
    for x in torch.linspace(-half, half, 7).tolist():
        for k in range(3):
            z = -gripper.finger_length_m - thick - k * max(gripper.palm_depth_m - 2 * thick, 0.0) / 2
            rows.append((x, 0.0, z, 0.0, thick))
    table = torch.tensor(rows)
    return table[:, :3], table[:, 3], table[:, 4]


def placed(poses: Poses, local: torch.Tensor) -> torch.Tensor:
    """Points [P, N, 3] or [N, 3] of the gripper frames in global_frame, [P, N, 3]."""
    return poses.origin[:, None] + local @ poses.rotation.transpose(1, 2)


def opened(poses: Poses, gripper: GripperConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The balls of `body` in global_frame, [P, B, 3], opened for what they are to hold; and their radii [B]."""
    local, side, radius = (t.to(poses.middle) for t in body(gripper))
    aside = side * (poses.width[:, None] / 2 + gripper.clearance_m)
    local = torch.cat([(local[:, 0] + aside)[..., None], local[:, 1:].expand(len(aside), -1, -1)], -1)
    return placed(poses, local), radius


class Terms:
    """The loss of poses in one scene. Tensors of grids decide on device and dtype."""

    def __init__(
        self, grids: SceneGrids, gripper: GripperConfig, config: GraspConfig, weights: Weights | None = None
    ):
        self.grids, self.gripper, self.config, self.weights = grids, gripper, config, weights or Weights()
        self._cone = float(torch.cos(torch.atan(torch.tensor(gripper.friction))))
        self._lowest = float(torch.cos(torch.deg2rad(torch.tensor(config.max_approach_deg))))
        self._widest = gripper.max_width_m - 2 * gripper.clearance_m
        self._offset = grids.near.spacing_m

    def __call__(self, poses: Poses, task_points: int | None = None) -> dict[str, torch.Tensor]:
        """Every term [P], not yet weighted. task_points: use so many of the task's points; None = all."""
        x, z, up = poses.rotation[:, :, 0], poses.rotation[:, :, 2], self.grids.up
        distance, facing, off_target = self.at_contacts(poses)
        width = poses.width
        too_wide = torch.relu(width + SPARE_M - self._widest) + torch.relu(self.gripper.min_width_m - width)
        downward = -(z @ up)
        gravity = torch.cross(self.grids.centroid - poses.middle, up.expand_as(x), dim=1)
        found = {
            "contact": (torch.sqrt(1 + (distance / CONTACT_M) ** 2) - 1).mean(1),
            "opposed": ((1 - facing) / (1 - self._cone)).mean(1),
            "target": (torch.relu(off_target - TARGET_M) / TARGET_M).mean(1),
            "free": self._blocked(poses),
            "width": too_wide / CONTACT_M,
            "approach": torch.relu(self._lowest - downward),
            "downward": (1 - downward) / 2,
            "torque": torch.sqrt((gravity * x).sum(1) ** 2 + 1e-8) / self.grids.radius_m,
        }
        if self.grids.asked is not None and self.grids.asked.words:
            found["language"] = 1 - self.language(poses)
        if self.grids.asked is not None and len(self.grids.asked.points):
            found["task"] = 1 - self.similarity(poses, task_points)
        return found

    def loss(self, poses: Poses, task_points: int | None = None) -> torch.Tensor:
        """The weighted sum, [P]."""
        found = self(poses, task_points)
        return torch.stack([getattr(self.weights, name) * value for name, value in found.items()]).sum(0)

    def at_contacts(self, poses: Poses) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """At both contacts [P, 2]: distance of the pad to the surface (m, negative inside), cosine of the surface's
        normal with the closing direction, and distance to what may be held (m).

        Asked a grid cell outside of the pads: there even a wall thinner than a cell has a distance and a normal.
        """
        side = poses.middle.new_tensor([-1.0, 1.0])[:, None]
        outward = side * poses.rotation[:, None, :, 0]
        near = self.grids.near.at(poses.contacts + self._offset * outward)
        normal = near[..., 1:4]
        facing = (normal * outward).sum(-1) / (normal.square().sum(-1) + 1e-4).sqrt()
        return near[..., 0] - self._offset, facing, near[..., 4] - self._offset

    def _blocked(self, poses: Poses) -> torch.Tensor:
        """How far fingers and palm reach into things, squared and summed, in radii of the balls they are made of."""
        places, radius = opened(poses, self.gripper)
        space = self.grids.far.at(places)
        own = torch.relu(radius + SPARE_M / 2 - space[..., 0])
        rest = torch.relu(radius + self.gripper.clearance_m + SPARE_M - space[..., 1])
        return ((own.square() + rest.square()) / radius**2).sum(1)

    def language(self, poses: Poses) -> torch.Tensor:
        """How well what is around the contacts fits the words, [P] in [0, 1]; 0 in free space."""
        grids = self.grids
        assert grids.sense is not None and grids.asked is not None
        around = grids.asked.around @ poses.rotation.transpose(1, 2)
        found = grids.sense.at(poses.contacts[:, :, None] + around[:, None])[..., :2].flatten(1, 2)
        total = found.sum(1)
        return total[:, 1] / (total[:, 0] + 0.05 * found.shape[1])

    def similarity(self, poses: Poses, count: int | None = None) -> torch.Tensor:
        """The cosine of `TaskEmbedding.similarity`, [P], of the first `count` points of the task (None = all)."""
        grids = self.grids
        assert grids.sense is not None and grids.asked is not None
        points, codes = grids.asked.points[:count], grids.asked.codes[:count]
        found = grids.sense.at(placed(poses, points))
        length = grids.asked.length if count is None else codes.square().sum().sqrt()
        dot = (found[..., 2:] * codes).sum((1, 2))
        return dot / ((found[..., 0].square().sum(1) + 1e-6).sqrt() * length)
