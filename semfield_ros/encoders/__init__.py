"""Pixels and words to features: a registry of encoders by name."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import cast

from ..config import EncoderConfig, HeadsConfig
from ..errors import ConfigError
from .base import Calibration, Encoder, Target, Window

__all__ = ["Calibration", "Encoder", "Target", "Window", "available", "create"]

_FAMILIES = {
    "tiny": "tiny", "openclip": "openclip", "precomputed": "precomputed", "stub": "stub", "pyramid": "pyramid",
    "dino": "dino", "concept_fusion": "concept_fusion",
    "extractor": "extractor",
}  # fmt: skip


def available() -> list[str]:
    """Names that `create` takes."""
    return sorted(_FAMILIES)


def teacher_config(spec: str, settings: EncoderConfig | None = None) -> tuple[str, EncoderConfig]:
    """A further encoder's name and settings, of NAME, NAME:MODEL or NAME:MODEL:WEIGHTS; '' leaves the encoder's own
    default where NAME alone is given.

    Raises:
        ConfigError: no such encoder.
    """
    name, _, rest = spec.partition(":")
    model, _, weights = rest.partition(":")
    if name not in _FAMILIES:
        names = ", ".join(available())
        raise ConfigError(f"teacher {spec!r} is not known; available: {names}, as NAME[:MODEL[:WEIGHTS]]")
    usual = EncoderConfig()
    if name == "openclip" and not rest:
        model, weights = usual.model, usual.pretrained
    return name, replace(settings or usual, name=name, model=model, pretrained=weights, dim=0)


def teacher(spec: str, lead: Encoder, settings: EncoderConfig, heads: HeadsConfig) -> tuple[str, Encoder]:
    """A further encoder beside the one that leads, and its name; `spec` as in `teacher_config`.

    Args:
        settings: of the leading encoder; what `spec` does not say is taken from there.
    """
    name, config = teacher_config(spec, settings)
    if name == "pyramid":
        from .pyramid import beside

        return name, remembering(cast(Encoder, beside(lead, config, heads.pyramid)), config)
    return name, create(config)


def create(config: EncoderConfig) -> Encoder:
    """The encoder `config.name` names; its module (and its heavy imports) is loaded only now."""
    if config.name not in _FAMILIES:
        raise ConfigError(f"encoder {config.name!r} is not known; available: {', '.join(available())}")
    module = import_module(f"{__name__}.{_FAMILIES[config.name]}")
    encoder: Encoder = module.create(config)
    if config.dim and encoder.dim != config.dim:
        raise ConfigError(
            f"encoder {config.name!r} has features of {encoder.dim} dimensions, encoder.dim asks for {config.dim}; "
            "choose another model, or leave encoder.dim at 0"
        )
    return remembering(encoder, config)


def remembering(encoder: Encoder, config: EncoderConfig) -> Encoder:
    """The encoder with its features kept on disk, where `config.cache_folder` says so."""
    if not config.cache_folder:
        return encoder
    from .cache import CachedEncoder, FeatureCache

    return CachedEncoder(encoder, FeatureCache(config.cache_folder, config.cache_mb))
