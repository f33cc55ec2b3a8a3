"""Rigid transforms, pinhole rays and projection, and the one visibility test.

Conventions (docs/conventions.md): metres; OpenCV optical axes (x right, y down, z forward); `T_a_b` maps
points of frame b into frame a; integer pixel coordinates are pixel centres; depth is z-depth, never ray length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import ConfigError


@dataclass(frozen=True)
class Camera:
    """An undistorted pinhole camera: size in pixels, focal lengths and principal point in pixels."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    @classmethod
    def from_matrix(cls, K: np.ndarray, width: int, height: int) -> Camera:
        """From a 3x3 intrinsic matrix."""
        K = np.asarray(K, dtype=np.float64)
        if K.shape != (3, 3):
            raise ConfigError(f"intrinsic matrix has shape {K.shape}; expected (3, 3)")
        return cls(int(width), int(height), float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]))

    @property
    def matrix(self) -> np.ndarray:
        """The 3x3 intrinsic matrix, float64."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def resized(self, width: int, height: int) -> Camera:
        """The same camera after resampling its image to `width` x `height` (pixel centres kept consistent)."""
        sx, sy = width / self.width, height / self.height
        return Camera(
            width, height, self.fx * sx, self.fy * sy, (self.cx + 0.5) * sx - 0.5, (self.cy + 0.5) * sy - 0.5
        )


def pixel_directions(camera: Camera, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Camera-frame ray directions with z = 1 of pixels (u, v): [..., 3] float32.

    A point at z-depth `d` on the ray is `d * direction`; its distance from the camera is `d * |direction|`.
    """
    x = (np.asarray(u, dtype=np.float32) - np.float32(camera.cx)) / np.float32(camera.fx)
    y = (np.asarray(v, dtype=np.float32) - np.float32(camera.cy)) / np.float32(camera.fy)
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def image_directions(camera: Camera) -> np.ndarray:
    """`pixel_directions` of every pixel: [H, W, 3] float32."""
    u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    return pixel_directions(camera, u, v)


def transform_points(T_a_b: np.ndarray, points_b: np.ndarray) -> np.ndarray:
    """Points [..., 3] of frame b expressed in frame a; a floating dtype is kept, integers become float64."""
    points_b = np.asarray(points_b)
    if points_b.dtype.kind != "f":
        points_b = points_b.astype(np.float64)
    T = np.asarray(T_a_b, dtype=points_b.dtype)
    # columns, not a matrix product: BLAS is ten times slower on an inner dimension of 3
    x, y, z = points_b[..., 0:1], points_b[..., 1:2], points_b[..., 2:3]
    return x * T[:3, 0] + y * T[:3, 1] + z * T[:3, 2] + T[:3, 3]


def invert(T_a_b: np.ndarray) -> np.ndarray:
    """The inverse T_b_a of a rigid transform; a camera centre of a world-to-camera [R|t] is -R^T t."""
    R, t = T_a_b[:3, :3], T_a_b[:3, 3]
    out = np.eye(4)
    out[:3, :3] = R.T
    out[:3, 3] = -R.T @ t
    return out


def rigid_error(T: np.ndarray) -> float:
    """How far a 4x4 matrix is from SE(3): the largest deviation of R R^T from I, of det R from 1, of the last row."""
    T = np.asarray(T, dtype=np.float64)
    R = T[:3, :3]
    orthogonal = np.abs(R @ R.T - np.eye(3)).max()
    return float(max(orthogonal, abs(np.linalg.det(R) - 1.0), np.abs(T[3] - [0.0, 0.0, 0.0, 1.0]).max()))


def rotation_angle_rad(R_a: np.ndarray, R_b: np.ndarray) -> float:
    """The angle of the rotation between two 3x3 rotations, radians."""
    cosine = (np.trace(R_a.T @ R_b) - 1.0) / 2.0
    return float(np.arccos(np.clip(cosine, -1.0, 1.0)))


def look_at(eye: np.ndarray, target: np.ndarray, up: np.ndarray | None = None) -> np.ndarray:
    """T_world_camera (OpenCV axes) of a camera at `eye` looking at `target`; `up` defaults to world +z."""
    eye, target = np.asarray(eye, dtype=np.float64), np.asarray(target, dtype=np.float64)
    forward = target - eye
    length = np.linalg.norm(forward)
    if length < 1e-9:
        raise ConfigError(f"look_at: eye and target coincide at {eye.tolist()}; move one of them")
    forward = forward / length
    up = np.array([0.0, 0.0, 1.0]) if up is None else np.asarray(up, dtype=np.float64)
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-6:
        right = np.cross(forward, [1.0, 0.0, 0.0] if abs(forward[1]) > 0.9 else [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    T = np.eye(4)
    T[:3, 0], T[:3, 1], T[:3, 2], T[:3, 3] = right, np.cross(forward, right), forward, eye
    return T


def back_project(
    camera: Camera, T_world_camera: np.ndarray, depth_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """World points of the valid (> 0) depth pixels.

    Returns:
        points_world [N, 3] float32 and their flat pixel indices [N] int64, in row-major pixel order.
    """
    index = np.flatnonzero(depth_m.reshape(-1) > 0)
    v, u = np.divmod(index, camera.width)
    points = pixel_directions(camera, u, v) * depth_m.reshape(-1)[index, None]
    return transform_points(T_world_camera, points.astype(np.float32)), index


def project(
    camera: Camera, T_world_camera: np.ndarray, points_world: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixel coordinates u, v (float) and z-depth [N] of world points [N, 3]; points behind have z <= 0, u = v = nan."""
    points = transform_points(invert(T_world_camera), np.asarray(points_world, dtype=np.float64))
    z = points[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.where(z > 0, camera.fx * points[:, 0] / z + camera.cx, np.nan)
        v = np.where(z > 0, camera.fy * points[:, 1] / z + camera.cy, np.nan)
    return u, v, z


def visible(
    camera: Camera,
    T_world_camera: np.ndarray,
    depth_m: np.ndarray,
    points_world: np.ndarray,
    *,
    tolerance_m: float = 0.0,
    tolerance_relative: float = 0.0,
    border_px: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The one visibility test: is a point where this depth image saw a surface?

    A point is visible iff its rounded pixel lies `border_px` inside the image and
    |D(u, v) - z| <= max(tolerance_m, tolerance_relative * D(u, v)) with D valid (> 0).
    OpenScene (Peng et al. 2023) uses border 10 and relative .25 (ScanNet) or .02 (Matterport); OpenMask3D
    (Takmaz et al. 2023) an absolute .2 m.

    Returns:
        mask [N] bool, and flat pixel indices [N] int64 (-1 where not visible).
    """
    if tolerance_m < 0 or tolerance_relative < 0:
        raise ConfigError(f"visibility tolerances must be >= 0, got {tolerance_m} m and {tolerance_relative}")
    u, v, z = project(camera, T_world_camera, points_world)
    with np.errstate(invalid="ignore"):
        inside = (z > 0) & (u > -0.5) & (v > -0.5) & (u < camera.width - 0.5) & (v < camera.height - 0.5)
    column = np.rint(np.where(inside, u, 0)).astype(np.int64)
    row = np.rint(np.where(inside, v, 0)).astype(np.int64)
    inside &= (column >= border_px) & (column < camera.width - border_px)
    inside &= (row >= border_px) & (row < camera.height - border_px)
    pixel = row * camera.width + column
    measured = depth_m.reshape(-1)[np.where(inside, pixel, 0)]
    # an infinite depth would agree with everything to any share of itself
    with np.errstate(invalid="ignore"):
        close = np.abs(measured - z) <= np.maximum(tolerance_m, tolerance_relative * measured)
    mask = inside & (measured > 0) & np.isfinite(measured) & close
    return mask, np.where(mask, pixel, -1)


@dataclass(frozen=True)
class Visibility:
    """A rule for `visible`, with its arguments."""

    tolerance_m: float = 0.0
    tolerance_relative: float = 0.0
    border_px: int = 0

    def __post_init__(self) -> None:
        if self.border_px < 0 or not (0 <= self.tolerance_m < np.inf and 0 <= self.tolerance_relative < np.inf):
            raise ConfigError(f"{self} is no rule of visibility; allowed: finite tolerances and a border >= 0")

    def seen(
        self, camera: Camera, T_world_camera: np.ndarray, depth_m: np.ndarray, points_world: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """`visible` by this rule: mask [N] bool, and flat pixel indices [N] int64 (-1 where not visible)."""
        return visible(
            camera, T_world_camera, depth_m, points_world, tolerance_m=self.tolerance_m,
            tolerance_relative=self.tolerance_relative, border_px=self.border_px,
        )  # fmt: skip


VISIBILITY_RULES = {
    "openscene": Visibility(tolerance_relative=0.25, border_px=10),
    "openscene_matterport": Visibility(tolerance_relative=0.02, border_px=10),
    "openmask3d": Visibility(tolerance_m=0.2),
    "conceptfusion": Visibility(tolerance_m=0.05),
}
"""What the systems use: OpenScene on ScanNet and Replica, on Matterport; OpenMask3D; ConceptFusion."""
