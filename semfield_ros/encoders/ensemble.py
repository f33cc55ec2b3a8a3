"""Several teachers at once: each has a head in its own space, and only scores ever meet.

Features of different encoders live in unrelated spaces; no projection brings them together without training, so none is
made here. What can be compared is what a score means: teachers with a text space each say how relevant a prompt is, and
those numbers are fused (late fusion). A teacher without one, such as DINO, groups and regularises; it never takes part
in the likeness to words, and asking it to is an error rather than a silent average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ..errors import ConfigError, QueryError
from .base import Encoder

Fusion = Literal["mean", "max", "log_odds"]


class Ensemble:
    """Teachers by name.

    Attributes:
        encoders: name -> encoder, in the order given. aligned: names of those with a text space. dims: name -> D.

    Raises:
        ConfigError: none at all, or weights of teachers that are not there, negative, or all zero.
    """

    def __init__(self, encoders: Mapping[str, Encoder], weights: Mapping[str, float] | None = None):
        if not encoders:
            raise ConfigError("an ensemble needs at least one encoder")
        self.encoders = dict(encoders)
        self.aligned = tuple(name for name, encoder in self.encoders.items() if encoder.has_text)
        self.dims = {name: encoder.dim for name, encoder in self.encoders.items()}
        foreign = sorted(set(weights or {}) - set(self.aligned))
        if foreign:
            raise ConfigError(
                f"weights name {', '.join(foreign)}; only teachers with a text space have one: "
                f"{', '.join(self.aligned) or 'none'}"
            )
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in self.aligned}
        if self.aligned and (min(self.weights.values()) < 0 or not sum(self.weights.values()) > 0):
            raise ConfigError(f"weights are {self.weights}; allowed: >= 0, and not all 0")

    def encode_text(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Unit text vectors [N, D] of every aligned teacher, in its own space.

        Raises:
            QueryError: no teacher has a text space.
        """
        if not self.aligned:
            raise QueryError(
                f"none of {', '.join(self.encoders)} has a text space; add a teacher that has, such as openclip"
            )
        return {name: self.encoders[name].encode_text(texts) for name in self.aligned}

    def fuse(self, scores: Mapping[str, np.ndarray], how: Fusion = "log_odds") -> np.ndarray:
        """One score from those of aligned teachers; see `fuse`. QueryError where another teacher is among them."""
        foreign = sorted(set(scores) - set(self.aligned))
        if foreign:
            raise QueryError(f"{', '.join(foreign)} has no text space, so no likeness to words; fuse {self.aligned}")
        return fuse(scores, {name: self.weights[name] for name in scores}, how)


def fuse(scores: Mapping[str, np.ndarray], weights: Mapping[str, float], how: Fusion = "log_odds") -> np.ndarray:
    """Relevancies [N, Q] of several teachers as one.

    Args:
        scores: teacher -> [N, Q] in (0, 1); nan = this teacher does not know the point, and has no say there.
        weights: teacher -> weight. how: log_odds averages log(p / (1 - p)), so confident teachers count for more than
            those that say nothing (.5); mean; max.

    Returns:
        [N, Q] float32; 0 where no teacher knows the point.

    Raises:
        QueryError: no scores, unequal shapes, or an unknown `how`.
    """
    if not scores:
        raise QueryError("there are no scores to fuse; ask at least one teacher with a text space")
    shapes = {name: np.shape(values) for name, values in scores.items()}
    if len(set(shapes.values())) > 1:
        raise QueryError(f"scores have shapes {shapes}; expected the same points and prompts of every teacher")
    if how not in ("mean", "max", "log_odds"):
        raise QueryError(f"fusion is {how!r}; allowed: mean, max, log_odds")
    names = list(scores)
    stack = np.stack([np.asarray(scores[name], np.float32) for name in names])
    known = np.isfinite(stack) & (np.array([weights[name] for name in names]) > 0)[:, None, None]
    if how == "max":
        return np.where(known.any(0), np.where(known, stack, -np.inf).max(0), 0).astype(np.float32)
    share = known * np.array([weights[name] for name in names], np.float32)[:, None, None]
    total = share.sum(0)
    values = np.where(known, stack, 0.5)
    if how == "log_odds":
        p = values.clip(1e-6, 1 - 1e-6)
        values = np.log(p / (1 - p))
    mean = (share * values).sum(0) / np.maximum(total, 1e-12)
    if how == "log_odds":
        mean = 1 / (1 + np.exp(-mean))
    return np.where(total > 0, mean, 0).astype(np.float32)
