"""Images instead of words: what in the map looks like this picture?"""

from __future__ import annotations

import numpy as np

from ..encoders.base import Encoder
from ..encoders.boxes import encode_boxes, encode_image
from ..errors import ConfigError, QueryError
from .prompt import EncodedPrompts, Prompt

LABEL = "image"


def prompts_of_image(
    encoder: Encoder, rgb: np.ndarray, box: tuple[int, int, int, int] | None = None
) -> EncodedPrompts:
    """A picture, or the part of it in a box, as a prompt named "image": one unit vector, no negatives.

    Args:
        rgb: [H, W, 3] uint8. box: left, top, right, bottom in pixels, right and bottom excluded.

    Raises:
        QueryError: what is no image, a box outside it, or an image the encoder says nothing about.
    """
    try:
        vector = encode_image(encoder, rgb)[None] if box is None else encode_boxes(encoder, rgb, np.array([box]))
    except ConfigError as error:
        raise QueryError(str(error)) from error
    if not np.linalg.norm(vector) > 0.5:
        raise QueryError(f"encoder {encoder.name!r} measures nothing in this image; show it something else")
    return EncodedPrompts(
        (Prompt(LABEL, (LABEL,)),), vector, np.zeros(1, np.int64), np.zeros((0, vector.shape[1]), np.float32)
    )
