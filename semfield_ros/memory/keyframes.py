"""Keyframes: which frames are worth remembering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import MemoryConfig
from ..frame import Frame
from ..geometry import Camera


@dataclass(frozen=True)
class Keyframe:
    """A remembered frame: its id (never reused), its replay slot, and where it was taken from."""

    id: int
    slot: int
    stamp_s: float
    camera: Camera
    T_world_camera: np.ndarray
    camera_name: str = "camera"


def view_distances(config: MemoryConfig, poses: np.ndarray, T: np.ndarray) -> np.ndarray:
    """How different poses [K, 4, 4] are from a pose [4, 4], in translation or rotation: [K], 1 = just enough for a new
    keyframe."""
    translation = np.linalg.norm(poses[:, :3, 3] - T[:3, 3], axis=1) / config.min_translation_m
    cosine = (np.einsum("kij,ij->k", poses[:, :3, :3], T[:3, :3]) - 1.0) / 2.0
    rotation = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))) / config.min_rotation_deg
    return np.asarray(np.maximum(translation, rotation))


class Keyframes:
    """The remembered frames, at most `capacity`; when full the most redundant one makes room. O(capacity) a frame."""

    def __init__(self, config: MemoryConfig, capacity: int):
        self.config, self.capacity = config, capacity
        self.items: list[Keyframe] = []
        self.next_id = 0
        self._poses = np.zeros((0, 4, 4))
        """T_world_camera of the items: the novelty of 30 frames a second is asked, keyframes change seldom."""

    def restore(self, items: list[Keyframe], next_id: int) -> None:
        """Continue from a saved list."""
        self.items, self.next_id = list(items), next_id
        self._restack()

    def _restack(self) -> None:
        self._poses = np.stack([k.T_world_camera for k in self.items]) if self.items else np.zeros((0, 4, 4))

    def __contains__(self, keyframe_id: object) -> bool:
        """Whether the keyframe of that id is remembered. O(keyframes)."""
        return any(k.id == keyframe_id for k in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def novelty(self, frame: Frame) -> float:
        """View distance to the nearest keyframe (inf when there is none); >= 1 is a new view."""
        if not len(self._poses):
            return float("inf")
        return float(view_distances(self.config, self._poses, frame.T_world_camera).min())

    def admit(self, frame: Frame) -> Keyframe:
        """Remember a frame, in a free slot or in that of the keyframe that adds least."""
        if len(self.items) < self.capacity:
            slot = len(self.items)
        else:
            slot = self._drop_most_redundant()
        keyframe = Keyframe(self.next_id, slot, frame.stamp_s, frame.camera, frame.T_world_camera, frame.camera_name)
        self.next_id += 1
        self.items.append(keyframe)
        self._restack()
        return keyframe

    def _drop_most_redundant(self) -> int:
        """Forget, of the two closest keyframes, the older; the newest few are never dropped."""
        old = self.items[: max(1, len(self.items) - 5)]
        positions = np.stack([k.T_world_camera[:3, 3] for k in self.items])
        forward = np.stack([k.T_world_camera[:3, 2] for k in self.items])
        # chord of the viewing directions stands for the angle: this is a ranking, not a measure
        chord = np.radians(self.config.min_rotation_deg)
        distance = np.maximum(
            np.linalg.norm(positions[:, None] - positions[None], axis=-1) / self.config.min_translation_m,
            np.linalg.norm(forward[:, None] - forward[None], axis=-1) / chord,
        )
        np.fill_diagonal(distance, np.inf)
        worst = int(np.argmin(distance[: len(old)].min(1)))
        return self.items.pop(worst).slot

    def replace_pose(self, keyframe_id: int, T_world_camera: np.ndarray) -> Keyframe | None:
        """Correct a pose; None where that keyframe is no longer remembered."""
        for i, k in enumerate(self.items):
            if k.id == keyframe_id:
                self.items[i] = Keyframe(k.id, k.slot, k.stamp_s, k.camera, np.array(T_world_camera), k.camera_name)
                self._restack()
                return self.items[i]
        return None
