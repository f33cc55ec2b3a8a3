"""What the ablation varies: faults of the 2-D model and of the poses, views, and parts of the field switched off."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.spatial.transform import Rotation

from ..config import TrainConfig
from ..evaluation.measured import Faults
from ..frame import Frame

BASE = Faults(patch_px=16, window_px=32, noise=0.5, wrong_views=0.2)
CLEAN, NOISY = replace(BASE, noise=0.0, wrong_views=0.0), replace(BASE, noise=1.0, wrong_views=0.3)
POSES = ((0.0, 0.0), (4.0, 0.4), (12.0, 1.2))
"""Errors of position (mm) and direction (degrees)."""


@dataclass(frozen=True)
class Setting:
    """One row of the ablation.

    Attributes:
        views: evenly once around the table. arc: share of that circle that is kept.
        pose_mm, pose_deg: standard deviations of the poses' errors. corner: part of the factorial (fewer scenes).
        through_window, smooth, fit_window: parts of the field; without one of them, a setting shows what it is for.
    """

    name: str
    faults: Faults
    views: int = 30
    arc: float = 1.0
    pose_mm: float = 0.0
    pose_deg: float = 0.0
    through_window: bool = True
    smooth: bool = True
    fit_window: bool = True
    corner: bool = False

    @property
    def counted(self) -> bool:
        """Whether this is the field as it is run."""
        return self.through_window and self.smooth and self.fit_window

    def training(self, train: TrainConfig, seed: int) -> TrainConfig:
        """How the field is trained for this setting."""
        return replace(
            train, through_window=self.through_window, fit_window=self.fit_window, seed=seed,
            smoothness=train.smoothness if self.smooth else 0.0,
        )  # fmt: skip

    def jittered(self, frame: Frame, rng: np.random.Generator) -> Frame:
        """The frame with an erroneous pose."""
        if not (self.pose_mm or self.pose_deg):
            return frame
        T = frame.T_world_camera.copy()
        T[:3, 3] += rng.normal(size=3) * self.pose_mm / 1000 / math.sqrt(3)
        turn = rng.normal(size=3) * np.radians(self.pose_deg) / math.sqrt(3)
        T[:3, :3] = T[:3, :3] @ Rotation.from_rotvec(turn).as_matrix()
        return replace(frame, T_world_camera=T)


def settings() -> Iterator[Setting]:
    """One thing varied at a time around BASE with 30 views and exact poses, then all corners."""
    yield Setting("base: patch 16, window 32", BASE)
    yield Setting("no noise", CLEAN)
    yield Setting("noise .3, 10% wrong", replace(BASE, noise=0.3, wrong_views=0.1))
    yield Setting("noise 1, 30% wrong", NOISY)
    yield Setting("patch 8, window 24", replace(BASE, patch_px=8, window_px=24))
    yield Setting("patch 8, no blur", replace(BASE, patch_px=8, window_px=8))
    yield Setting("patch 16, window 48", replace(BASE, window_px=48))
    yield Setting("poses 4 mm, .4 deg off", BASE, pose_mm=4, pose_deg=0.4)
    yield Setting("poses 12 mm, 1.2 deg off", BASE, pose_mm=12, pose_deg=1.2)
    yield Setting("8 views", BASE, views=8)
    yield Setting("half of the circle", BASE, arc=0.5)
    yield Setting("window declared 16 instead of 32", replace(BASE, assumed_window_px=16))
    yield Setting("window declared 64 instead of 32", replace(BASE, assumed_window_px=64))
    yield Setting("declared 64, not fitted", replace(BASE, assumed_window_px=64), fit_window=False)
    yield Setting("field fitted per pixel", BASE, through_window=False)
    yield Setting("no smoothness prior", BASE, smooth=False)
    noises = {"clean": CLEAN, "noise .5": BASE, "noise 1": NOISY}
    for (name, faults), (mm, deg), views in product(noises.items(), POSES, (30, 10)):
        yield Setting(f"{name}, poses {mm:g} mm, {views} views", faults, views, 1.0, mm, deg, corner=True)
