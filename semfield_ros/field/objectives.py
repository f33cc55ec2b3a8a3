"""What a field is trained for besides shape, colour and language: one small file each, one interface.

An objective draws what it needs from the replay and returns losses; the trainer sums them all. Heads are configurations
(`heads.HeadConfig`); which there are follows from `config.HeadsConfig` and from the teachers that have spoken.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Protocol

import torch

from ..config import HeadsConfig
from ..memory.replay import Replay
from .heads import HeadConfig
from .model import Field

MODULES = ("semantics", "teachers", "instances", "segments", "scales", "normals", "pose_refinement", "points")
"""Each has `heads(config) -> HeadConfigs` and `objectives(config, field) -> Objectives` of the heads a field has."""
TEACHER_HEADS: dict[str, str] = {"pyramid": "scales"}
"""Teachers whose head is not the usual one: name -> module with `teacher_head(name, dim, config)`."""


class Objective(Protocol):
    """One thing to learn.

    Attributes:
        name: of its state in checkpoints. Its losses are named after what they train; `Snapshot.learnt` counts them.
    """

    name: str

    def losses(
        self, field: Field, replay: Replay, step: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Weighted losses (scalars) by name, and how many samples of the field they took; empty where there is nothing
        to learn from yet."""
        ...

    def parameters(self) -> Iterable[torch.Tensor]:
        """What is trained with the field and is no part of it."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint: what else it remembers."""
        ...

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a `state()`."""
        ...


class Stateless:
    """An objective that remembers nothing."""

    def parameters(self) -> Iterable[torch.Tensor]:
        """None."""
        return ()

    def state(self) -> dict[str, torch.Tensor]:
        """Empty."""
        return {}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Nothing."""


def heads_of(config: HeadsConfig) -> tuple[HeadConfig, ...]:
    """The heads that a configuration asks for from the beginning."""
    return tuple(head for name in MODULES for head in import_module(f".{name}", __package__).heads(config))


def objectives_of(config: HeadsConfig, field: Field) -> tuple[Objective, ...]:
    """What the heads of a field are to be trained for."""
    return tuple(o for name in MODULES for o in import_module(f".{name}", __package__).objectives(config, field))


def teacher_head(name: str, dim: int, config: HeadsConfig) -> HeadConfig:
    """The head that learns the features of a teacher, of length `dim`."""
    module = import_module(f".{TEACHER_HEADS.get(name, 'teachers')}", __package__)
    head: HeadConfig = module.teacher_head(name, dim, config)
    return head
