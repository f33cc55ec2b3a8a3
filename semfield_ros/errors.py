"""The exception family: every message names the value, what is allowed, and what to do."""

from __future__ import annotations

from enum import Enum


class SemfieldError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(SemfieldError, ValueError):
    """A configuration value is not usable."""


class QueryError(SemfieldError, ValueError):
    """A query cannot be answered as asked."""


class CheckpointError(SemfieldError):
    """A saved map is torn, foreign, newer than this program, or in the way."""


class SourceError(SemfieldError):
    """A frame source is missing, empty or malformed."""


class WireError(SemfieldError):
    """The middleware refused or broke."""


class EngineError(SemfieldError, RuntimeError):
    """A worker of the engine failed, or the engine is not in a state to do what was asked."""


class Reason(str, Enum):
    """Why a frame was rejected. The values are the names counted in diagnostics."""

    DEPTH_TYPE = "depth_type"
    DEPTH_EMPTY = "depth_empty"
    COLOUR_TYPE = "colour_type"
    SIZE_MISMATCH = "size_mismatch"
    UNCALIBRATED = "uncalibrated"
    POSE_NOT_FINITE = "pose_not_finite"
    POSE_NOT_RIGID = "pose_not_rigid"
    STAMP_NOT_FINITE = "stamp_not_finite"
    STAMP_BACKWARDS = "stamp_backwards"
    TARGET_TYPE = "target_type"
    IMAGE_ENCODING = "image_encoding"
    """An encoding, compression or distortion model that is not read."""
    IMAGE_MALFORMED = "image_malformed"
    """A message whose bytes are not the image it announces."""
    INFO_MISSING = "info_missing"
    """No CameraInfo came in time."""
    POSE_MISSING = "pose_missing"
    """No pose for the stamp came in time, or none can come any more."""
    UNSYNCHRONISED = "unsynchronised"
    """A colour image without its depth image."""
    PENDING_FULL = "pending_full"
    """Too many frames waited for their poses; the oldest goes."""
    TIME_JUMP = "time_jump"
    """It waited when time jumped back."""


class FrameRejected(SemfieldError, ValueError):
    """One frame is unusable; the stream goes on. `reason` is counted by whoever feeds the engine."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(f"{reason.value}: {message}")
        self.reason = reason
