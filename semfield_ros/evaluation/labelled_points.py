"""Points whose classes are known, the frames that look at them, and how well answers about them agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import SemfieldConfig
from ..encoders.base import Encoder, Target
from ..errors import ConfigError
from ..frame import Frame, within_range
from ..mapping import Mapping
from ..memory.features import FeatureShape
from ..memory.point_map import PointMap
from .metrics import confusion_matrix, segmentation


@dataclass(frozen=True)
class Thing:
    """An object to retrieve: the words that are right for it, and its box."""

    names: tuple[str, ...]
    instance: int
    T_world_box: np.ndarray
    half_extents_m: np.ndarray

    def holds(self, point: np.ndarray, margin_m: float = 0.02) -> bool:
        """Whether a point [3] lies in the box, grown by a margin."""
        T = self.T_world_box
        local = T[:3, :3].T @ (np.asarray(point, np.float64) - T[:3, 3])
        return bool((np.abs(local) <= self.half_extents_m + margin_m).all())


@dataclass(frozen=True)
class LabelledPoints:
    """N points with classes, of what V frames show.

    Attributes:
        points, normals: [N, 3] float32, normals 0 = unknown. truth: [N] int64, rows of `names`.
        names: the C classes. things: what can be retrieved, where boxes are known.
    """

    frames: list[Frame]
    points: np.ndarray
    normals: np.ndarray
    truth: np.ndarray
    names: tuple[str, ...]
    things: tuple[Thing, ...] = ()

    @classmethod
    def of_simulator(cls, simulator: Any, config: SemfieldConfig, samples: int) -> LabelledPoints:
        """Exact surface samples of a `sources.simulator.Simulator` (passed in: evaluation knows no source)."""
        frames = [within_range(frame, config.frame) for frame in simulator]
        points, normals, semantic, _ = simulator.surface_points(samples)
        known = semantic > 0
        things = tuple(Thing(t.names, t.instance, t.T_world_box, t.half_extents_m) for t in simulator.objects)
        return cls(
            frames, points[known], normals[known], semantic[known].astype(np.int64) - 1,
            tuple(simulator.class_names[1:]), things,
        )  # fmt: skip

    @classmethod
    def of_frames(cls, frames: Iterable[Frame], class_names: Sequence[str], config: SemfieldConfig) -> LabelledPoints:
        """Voxels of a recording with the class most of its label pixels give them.

        Args:
            class_names: by semantic id, the first being void.

        Raises:
            ConfigError: frames without labels, or names without classes.
        """
        if len(class_names) < 2:
            raise ConfigError("this source names no classes; use the simulator, or a recording with labels")
        kept = [within_range(frame, config.frame) for frame in frames]
        voxels = PointMap(config.memory, 1, classes=len(class_names) - 1)
        for frame in kept:
            voxels.fuse(frame)
        rows = voxels.rows[voxels.votes[voxels.rows].sum(1) > 0]
        if not len(rows):
            raise ConfigError("no frame of this source has labels; use the simulator, or a recording with labels")
        truth = voxels.votes[rows].argmax(1).astype(np.int64)
        return cls(kept, voxels.points[rows], voxels.normals[rows], truth, tuple(class_names[1:]))


def agreement(predicted: np.ndarray, labelled: LabelledPoints) -> dict[str, float]:
    """Both conventions of mIoU and mAcc: over the classes present, and over all there are (an absent one counts 0).

    Args:
        predicted: [N] rows of `labelled.names`; anything else is no answer, which is wrong.
    """
    count = len(labelled.names)
    found = segmentation(confusion_matrix(predicted, labelled.truth, count))
    present = int((np.bincount(labelled.truth, minlength=count) > 0).sum())
    return {
        "miou": found.miou, "miou_all": found.miou_all, "macc": found.class_accuracy,
        "macc_all": found.class_accuracy * present / count, "accuracy": found.accuracy,
        "answered": float(((predicted >= 0) & (predicted < count)).mean()),
    }  # fmt: skip


def mapped(
    frames: Iterable[Frame], config: SemfieldConfig, encoder: Encoder, *,
    adjust: Callable[[Mapping], None] = lambda mapping: None,
) -> tuple[Mapping, list[tuple[Frame, Target]]]:
    """A map of the keyframes among frames, untrained, and what the encoder measured of those.

    Args:
        adjust: called with the empty map.
    """  # fmt: skip
    mapping = Mapping(config, encoder.dim, "cpu")
    adjust(mapping)
    measured = []
    for frame in frames:
        mapping.saw(frame)
        if mapping.accepts(frame):
            target = encoder.encode_frame(frame)
            mapping.add_features(mapping.add_keyframe(frame, FeatureShape.of(target)), frame, target)
            measured.append((frame, target))
    return mapping, measured
