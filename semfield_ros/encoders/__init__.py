"""Pixels and words to features: a registry of encoders by name."""

from __future__ import annotations

from importlib import import_module

from ..config import EncoderConfig
from ..errors import ConfigError
from .base import Calibration, Encoder, Target, Window

__all__ = ["Calibration", "Encoder", "Target", "Window", "available", "create"]

_FAMILIES = {"tiny": "tiny", "openclip": "openclip", "precomputed": "precomputed", "stub": "stub"}


def available() -> list[str]:
    """Names that `create` takes."""
    return sorted(_FAMILIES)


def create(config: EncoderConfig) -> Encoder:
    """The encoder `config.name` names; its module (and its heavy imports) is loaded only now."""
    if config.name not in _FAMILIES:
        raise ConfigError(f"encoder {config.name!r} is not known; available: {', '.join(available())}")
    module = import_module(f"{__name__}.{_FAMILIES[config.name]}")
    encoder: Encoder = module.create(config)
    return encoder
