"""A table with coloured boxes, ray cast in closed form: every pixel of its frames is known without a renderer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semfield_ros.config import (
    EncoderConfig,
    EngineConfig,
    FieldConfig,
    GridConfig,
    MemoryConfig,
    SemfieldConfig,
    TrainConfig,
)
from semfield_ros.encoders import create
from semfield_ros.encoders.stub import PALETTE
from semfield_ros.frame import Frame, make_frame
from semfield_ros.geometry import Camera, image_directions, look_at
from semfield_ros.mapping import Mapping
from semfield_ros.memory.features import FeatureShape

STUB_DIM = create(EncoderConfig(name="stub")).dim
CAMERA = Camera(80, 60, 70.0, 70.0, 39.5, 29.5)


@dataclass(frozen=True)
class Block:
    """An axis-aligned box of one colour, between two corners (world, metres)."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    colour: str


RED = Block((-0.22, -0.1, 0.0), (-0.06, 0.06, 0.16), "red")
BLUE = Block((0.08, -0.05, 0.0), (0.22, 0.09, 0.1), "blue")
BLOCKS = (RED, BLUE)

SMALL = SemfieldConfig(
    memory=MemoryConfig(replay_mb=8, max_keyframes=20, max_voxels=50_000),
    field=FieldConfig(
        centre_m=(0.0, 0.0, 0.1),
        extent_m=1.6,
        geometry_grid=GridConfig(levels=5, features=4, log2_table=14, min_resolution=8, max_resolution=96),
        feature_grid=GridConfig(levels=4, features=4, log2_table=13, min_resolution=8, max_resolution=64),
        hidden=32,
    ),
    train=TrainConfig(rays=512, feature_patches=64, window_rays=4, smooth_pairs=128),
    engine=EngineConfig(snapshot_period_s=0.1, device="cpu"),
)
"""A configuration that learns this scene in a second."""


def cast(T_world_camera: np.ndarray, blocks=BLOCKS, camera: Camera = CAMERA) -> tuple[np.ndarray, np.ndarray]:
    """Exact z-depth [H, W] (0 = nothing) and what is hit [H, W]: 0 = the table z = 0, k = blocks[k - 1]."""
    directions = image_directions(camera).astype(np.float64) @ T_world_camera[:3, :3].T
    origin = T_world_camera[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = -origin[2] / directions[..., 2]
        depth = np.where(depth > 0, depth, np.inf)
        what = np.zeros(depth.shape, np.int32)
        for k, block in enumerate(blocks, 1):
            a, b = (np.array(block.low) - origin) / directions, (np.array(block.high) - origin) / directions
            enters, leaves = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
            hit = (enters <= leaves) & (enters > 0) & (enters < depth)
            depth, what = np.where(hit, enters, depth), np.where(hit, k, what)
    return np.where(np.isfinite(depth), depth, 0.0), what


def frame_at(T_world_camera: np.ndarray, stamp_s: float = 0.0, blocks=BLOCKS, camera: Camera = CAMERA) -> Frame:
    """What the camera sees: a white table under blocks of the colours of the stub encoder."""
    depth, what = cast(T_world_camera, blocks, camera)
    colours = np.array([PALETTE["white"], *(PALETTE[block.colour] for block in blocks)], np.uint8)
    return make_frame(stamp_s=stamp_s, camera=camera, T_world_camera=T_world_camera, rgb=colours[what], depth=depth)


def ring(n: int, radius_m: float = 0.7, height_m: float = 0.5, turn: float = 1.0) -> list[np.ndarray]:
    """n poses around the table, looking at its middle."""
    angles = 2 * np.pi * turn * np.arange(n) / n
    return [look_at([radius_m * np.cos(a), radius_m * np.sin(a), height_m], [0.0, 0.0, 0.05]) for a in angles]


def stream(n: int, blocks=BLOCKS, first_s: float = 0.0) -> list[Frame]:
    """n frames around the table, ten a second."""
    return [frame_at(T, first_s + 0.1 * i, blocks) for i, T in enumerate(ring(n))]


def mapped(n: int, config: SemfieldConfig = SMALL, steps: int = 0, device: str = "cpu") -> Mapping:
    """A map of the first n frames of the stream, with the stub encoder's features, trained so many steps."""
    return mapped_frames(stream(n), config, steps, device)


def mapped_frames(frames, config: SemfieldConfig = SMALL, steps: int = 0, device: str = "cpu") -> Mapping:
    """A map in which each of these frames is a keyframe, with the stub encoder's features, trained so many steps."""
    encoder = create(EncoderConfig(name="stub"))
    mapping = Mapping(config, encoder.dim, device)
    for frame in frames:
        target = encoder.encode_frame(frame)
        mapping.saw(frame)
        mapping.add_features(mapping.add_keyframe(frame, FeatureShape.of(target)), frame, target)
    for _ in range(steps):
        mapping.train_step()
    return mapping
