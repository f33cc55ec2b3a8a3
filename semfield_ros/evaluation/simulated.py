"""How right are the answers? Against the simulator's exact truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..answer import answer
from ..config import SemfieldConfig
from ..field.snapshot import Snapshot
from ..query.prompt import PromptEncoder
from ..query.scores import Source, score_points
from .metrics import confusion_matrix, segmentation


@dataclass(frozen=True)
class Truth:
    """What a simulated scene really holds.

    Attributes:
        names: [K] every caption that is right for object k. boxes: [K] (T_world_box [4, 4], half_extents_m [3]).
        kinds, colours: [K]. absent: captions right for nothing here.
        points: [N, 3] exact surface samples, with `semantic` [N] ids into `classes` (0 = void).
    """

    names: list[tuple[str, ...]]
    kinds: list[str]
    colours: list[str]
    boxes: list[tuple[np.ndarray, np.ndarray]]
    absent: list[str]
    points: np.ndarray
    semantic: np.ndarray
    classes: tuple[str, ...]

    @classmethod
    def of(cls, simulator: Any, kinds: Sequence[str], samples: int = 20000) -> Truth:
        """From a `sources.simulator.Simulator` (passed in: evaluation knows no source); `kinds` are all there are."""
        things = simulator.objects
        here = {t.kind for t in things}
        points, _, semantic, _ = simulator.surface_points(samples)
        return cls(
            [t.names for t in things], [t.kind for t in things], [t.colour for t in things],
            [(t.T_world_box, t.half_extents_m) for t in things],
            [k for k in kinds if k not in here], points, semantic, tuple(simulator.class_names),
        )  # fmt: skip

    def prompts(self) -> list[str]:
        """Everything that can be asked for here by kind, and by colour + kind, once each."""
        return list(dict.fromkeys([*self.kinds, *(f"{c} {k}" for c, k in zip(self.colours, self.kinds))]))

    def right(self, prompt: str, centre: np.ndarray, margin_m: float = 0.02) -> bool:
        """Whether a point lies in the box of an object this prompt is right for."""
        for names, (T, half) in zip(self.names, self.boxes):
            local = T[:3, :3].T @ (centre - T[:3, 3])
            if prompt in names and (np.abs(local) <= half + margin_m).all():
                return True
        return False


@dataclass(frozen=True)
class Score:
    """Shares in [0, 1]; nan where nothing could be asked. `by_kind` and `by_colour` split `localisation`."""

    localisation: float
    no_match: float
    miou: float
    accuracy: float
    by_kind: float
    by_colour: float
    prompts: int
    absent: int


def rate(
    truth: Truth, snapshot: Snapshot, texts: PromptEncoder, config: SemfieldConfig, source: Source = "auto",
    tell: Callable[[str], None] = lambda line: None,
) -> Score:  # fmt: skip
    """Ask for everything, and for what is not there; label the exact surface."""
    prompts = truth.prompts()
    asked = answer(snapshot, texts, prompts + truth.absent, config=config, source=source, grasps=False)
    hits = []
    for prompt, found in zip(prompts, asked.prompts):
        ok = bool(found.objects) and truth.right(prompt, found.objects[0].box.centre)
        hits.append(ok)
        if not ok:
            tell(f"missed {prompt!r}: peak {found.peak:.2f}, {len(found.objects)} objects")
    silent = []
    for prompt, found in zip(truth.absent, asked.prompts[len(prompts) :]):
        silent.append(not found.matched)
        if found.matched:
            tell(f"found {prompt!r}, which is not there: peak {found.peak:.2f}")
    here = sorted(set(truth.semantic[truth.semantic > 0].tolist()))
    names = [truth.classes[i] for i in here]
    # open vocabulary: every kind there is competes, not only those in the scene
    others = [n for n in truth.absent if n not in names]
    scores = score_points(snapshot, texts.encode(names + others), truth.points, source=source)
    best = scores.cosine.argmax(1)
    lookup = np.array([*here, *([len(truth.classes)] * len(others))])
    predicted = np.where(scores.seen, lookup[best], -1)
    labelled = truth.semantic > 0
    matrix = confusion_matrix(
        _dense(predicted[labelled], here), _dense(truth.semantic[labelled], here), len(here)
    )
    result = segmentation(matrix)
    kinds = len(set(truth.kinds))
    return Score(
        _mean(hits), _mean(silent), result.miou, result.accuracy, _mean(hits[:kinds]), _mean(hits[kinds:]),
        len(hits), len(silent),
    )  # fmt: skip


def _dense(labels: np.ndarray, present: list[int]) -> np.ndarray:
    """Ids as positions in `present`; -1 for every other answer."""
    table = {value: i for i, value in enumerate(present)}
    return np.array([table.get(int(v), -1) for v in labels])


def _mean(outcomes: Sequence[bool]) -> float:
    return float(np.mean(outcomes)) if len(outcomes) else float("nan")
