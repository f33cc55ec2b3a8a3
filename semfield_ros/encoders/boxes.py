"""Parts of an image, and whole images, as single vectors of an encoder's space: crops, and what a mask pools.

For an encoder that cannot look at a crop alone (`base.CropEncoder`), the mean of its dense features over the box stands
in.
"""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError
from ..frame import Frame
from ..geometry import Camera
from .base import CropEncoder, Encoder, Target


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows [N, D] scaled to length 1, float32; zero rows stay zero."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-12), np.float32)


def boxes_of(masks: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """The boxes [K, 4] int64 (left, top, right, bottom; right and bottom excluded) of masks [K, H, W] bool.

    Grown by `margin` of their size on each side, within the image. An empty mask has the empty box (0, 0, 0, 0).
    """
    height, width = masks.shape[1:]
    boxes = np.zeros((len(masks), 4), np.int64)
    for k, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            low = np.array([columns[0], rows[0]])
            high = np.array([columns[-1] + 1, rows[-1] + 1])
            grow = np.round(margin * (high - low)).astype(np.int64)
            boxes[k, :2] = np.maximum(low - grow, 0)
            boxes[k, 2:] = np.minimum(high + grow, (width, height))
    return boxes


def encode_boxes(encoder: Encoder, rgb: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Unit vectors [K, D] float32 of parts of an image, each seen alone where the encoder can do that.

    Args:
        rgb: [H, W, 3] uint8. boxes: [K, 4] left, top, right, bottom in pixels, right and bottom excluded.

    Raises:
        ConfigError: a box that is empty or reaches out of the image.
    """
    height, width = checked_image(rgb).shape[:2]
    boxes = np.asarray(boxes, dtype=np.int64).reshape(-1, 4)
    wrong = (boxes[:, :2] < 0).any(1) | (boxes[:, 2:] > (width, height)).any(1) | (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if wrong.any():
        raise ConfigError(
            f"box {boxes[wrong][0].tolist()} is empty or outside the image of {width}x{height}; "
            "expected left < right <= width and top < bottom <= height"
        )
    if not len(boxes):
        return np.zeros((0, encoder.dim), np.float32)
    if isinstance(encoder, CropEncoder):
        crops = (np.ascontiguousarray(rgb[top:bottom, left:right])[None] for left, top, right, bottom in boxes)
        return np.concatenate([encoder.encode_crops(crop, width) for crop in crops])
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    return pooled(encoder.encode_frame(_bare(rgb)), masks)


def checked_image(rgb: np.ndarray) -> np.ndarray:
    """The image itself; ConfigError where it is not uint8 [H, W, 3] with a pixel at least."""
    if isinstance(rgb, np.ndarray) and rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size:
        return rgb
    what = f"{rgb.dtype} of shape {rgb.shape}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
    raise ConfigError(f"the image is {what}; expected uint8 of shape [H, W, 3]")


def encode_image(encoder: Encoder, rgb: np.ndarray) -> np.ndarray:
    """The unit vector [D] of a whole image [H, W, 3] uint8."""
    rgb = checked_image(rgb)
    return encode_boxes(encoder, rgb, np.array([[0, 0, rgb.shape[1], rgb.shape[0]]]))[0]


def pooled(target: Target, masks: np.ndarray) -> np.ndarray:
    """Unit mean [K, D] of the measurements under each mask [K, H, W] bool; zero where there is none."""
    height, width = masks.shape[1:]
    cell = target.cell_of_pixels(width, height).reshape(-1)
    rows = np.zeros((len(masks), target.values.shape[1]), np.float32)
    for k, mask in enumerate(masks.reshape(len(masks), -1)):
        inside = cell[mask]
        count = np.bincount(inside[inside >= 0], minlength=len(target.values))
        rows[k] = (count * target.confidence) @ target.values
    return unit_rows(rows)


def _bare(rgb: np.ndarray) -> Frame:
    """A frame of which only the colours mean anything."""
    height, width = rgb.shape[:2]
    camera = Camera(width, height, float(width), float(width), (width - 1) / 2, (height - 1) / 2)
    return Frame(0.0, camera, np.eye(4), rgb, np.ones((height, width), np.float32))
