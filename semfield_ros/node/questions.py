"""Questions: what a request asks of the map, checked, and in the engine's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ..answer import Answer
from ..config import SemfieldConfig
from ..engine import Engine
from ..errors import QueryError
from ..field.snapshot import Snapshot
from ..query.prompt import MAX_CHARACTERS, MAX_PROMPTS, EncodedPrompts, PromptEncoder, parse_prompt
from ..query.relevancy import peak
from ..query.scores import score_points
from ..query.tasks import TaskEmbedding, with_tasks

Score = Literal["relevancy", "cosine"]

MAX_OBJECTS = 200
"""A prompt may ask for so many."""
MAX_OBJECTS_WITH_GRASPS = 1000
"""Of all prompts together: the grasps of one cost some hundredths of a second."""
MAX_TEXTS = 512
"""Synonyms of all prompts together: a text model reads some tens a second on a CPU."""
MAX_SCORES = 250_000_000
"""Points (or pixels) x texts: 1 GB while they are worked on."""
LIKENESS_SAMPLE = 20_000
MAX_SCALES = 64
MAX_TASKS = 16
MAX_VALUES = 25_000_000
"""Numbers in a reply (points x prompts, or pixels x prompts): 100 MB."""

_SCORES: dict[int, Score | None] = {0: None, 1: "relevancy", 2: "cosine"}
_SOURCES = {0: None, 1: "auto", 2: "field", 3: "points", 4: "ensemble", 5: "scales"}
_MODES = {0: "default", 1: "absolute", 2: "top_percent", 3: "hysteresis"}
_RANGES = {"relevancy": (0.0, 1.0), "cosine": (-1.0, 1.0)}


@dataclass(frozen=True)
class Question:
    """Prompts, or the features of a place, and the options of `answer.answer`."""

    prompts: tuple[str, ...] | EncodedPrompts
    options: Mapping[str, Any] = field(default_factory=dict)

    def ask(self, engine: Engine, **changed: Any) -> Answer:
        """The engine's answer from its last snapshot; `changed` options take the place of the question's own.

        Raises:
            SemfieldError: it cannot be answered as asked.
        """
        return engine.query(self.prompts, **{**self.options, **changed})

    def score(self, config: SemfieldConfig) -> Score:
        """Which score is asked for."""
        return self.options.get("score") or config.query.score

    def scores(self, answer: Answer, config: SemfieldConfig) -> np.ndarray:
        """The scores of an answer to this question, [N, Q] float32."""
        return answer.scores.cosine if self.score(config) == "cosine" else answer.scores.relevancy


def ask_words(prompts: list[str], options: Any, config: SemfieldConfig) -> Question:
    """The question of prompts and a QueryOptions message.

    Raises:
        QueryError: constants, thresholds, a region or numbers of objects that are not usable.
    """
    if len(options.tasks) > MAX_TASKS:
        raise QueryError(f"{len(options.tasks)} tasks are asked for; allowed: {MAX_TASKS}; ask in parts")
    if len(options.tasks) and len(options.negatives):
        raise QueryError("negatives are given, and tasks; tasks are told apart from the configured negatives only")
    found = matching(options)
    most = options.max_objects or config.objects.max_objects
    if options.with_grasps and most * len(prompts) > MAX_OBJECTS_WITH_GRASPS:
        raise QueryError(
            f"grasps of up to {most * len(prompts)} objects ({len(prompts)} prompts); allowed: "
            f"{MAX_OBJECTS_WITH_GRASPS}; ask for fewer prompts, for a smaller max_objects, or without grasps"
        )
    score = found["score"] or config.query.score
    found |= thresholds(options, score)
    if score == "cosine" and options.threshold_mode == 0 and None in (config.query.no_match, config.objects.high):
        raise QueryError("cosines have no calibrated thresholds; set threshold_mode and threshold, or take relevancy")
    return Question(tuple(prompts), found | _objects(options))


def ask_tasks(question: Question, texts: PromptEncoder, tasks: Sequence[TaskEmbedding]) -> Question:
    """A question in words that also asks for tasks, and how they were shown to be held.

    Raises:
        QueryError: unusable words, or tasks of another encoder.
    """
    assert isinstance(question.prompts, tuple)
    return replace(question, prompts=with_tasks(texts, question.prompts, tasks))


def ask_like(snapshot: Snapshot, features: EncodedPrompts, options: Any, config: SemfieldConfig) -> Question:
    """What looks like a place that has these features, by cosine. Without a threshold in the QueryOptions message, one
    is found between what is like the place and what is not.

    Raises:
        QueryError: options that are not usable; relevancy is: a place is told apart from no words.
    """
    if len(options.tasks):
        raise QueryError(f"{len(options.tasks)} tasks are asked for; allowed: with words only, as ~/query has them")
    found = matching(options)
    if found["score"] == "relevancy":
        raise QueryError("score is relevancy; allowed here: cosine (or 0), as a place has no negatives")
    found |= {"score": "cosine", **thresholds(options, "cosine"), **_objects(options)}
    if options.threshold_mode == 0:
        rows = np.flatnonzero(snapshot.measured)
        points = snapshot.cloud.points[rows[:: 1 + len(rows) // LIKENESS_SAMPLE]]
        source, scales_m = found["source"] or config.query.source, found.get("scales_m", ())
        sample = score_points(snapshot, features, points, source=source, scales_m=scales_m)
        threshold = likeness_threshold(sample.cosine[sample.seen, 0])
        found |= {"no_match": threshold, "high": threshold, "low": threshold}
    return Question(features, found)


def bounded(prompts: Sequence[str], negatives: Sequence[str], rows: int) -> None:
    """Refuse texts that would keep the text model or the scoring busy for minutes.

    Args:
        rows: points or pixels to be scored.

    Raises:
        QueryError: says how many are allowed. Too many prompts are left to `PromptEncoder`, which reads none then.
    """
    if len(prompts) > MAX_PROMPTS or len(negatives) > MAX_PROMPTS:
        return
    longest = max(map(len, negatives), default=0)
    if longest > MAX_CHARACTERS:
        raise QueryError(f"a negative has {longest} characters; allowed: {MAX_CHARACTERS}")
    parsed = [parse_prompt(prompt) for prompt in prompts]
    texts = sum(len(prompt.synonyms) + len(prompt.part) for prompt in parsed)
    if texts > MAX_TEXTS:
        raise QueryError(f"the prompts have {texts} synonyms in all; allowed: {MAX_TEXTS}; ask in parts")
    texts += len(negatives)
    if rows * texts > MAX_SCORES:
        raise QueryError(f"{rows} points x {texts} texts; allowed: a product of {MAX_SCORES}; ask in parts")


def reply_of(rows: int, columns: int, what: str, kind: str = "prompts") -> None:
    """Refuse a reply that would be too large to send.

    Raises:
        QueryError: says how many numbers are allowed.
    """
    if rows * columns > MAX_VALUES:
        raise QueryError(
            f"{rows} {what} x {columns} {kind} are {rows * columns} numbers; allowed: {MAX_VALUES}; ask in parts"
        )


def matching(options: Any) -> dict[str, Any]:
    """negatives, score and source of a QueryOptions message, None = as configured, and its scales where it has any.

    Raises:
        QueryError: a constant the message does not have, or scales that are not usable.
    """
    source = _choice("source", options.source, _SOURCES)
    scales_m = tuple(float(scale_m) for scale_m in options.scales)
    if scales_m and source != "scales":
        raise QueryError(f"{len(scales_m)} scales are given; allowed: with source = SOURCE_SCALES only")
    if len(scales_m) > MAX_SCALES or not all(0 < scale_m < np.inf for scale_m in scales_m):
        raise QueryError(f"scales are {list(scales_m)[:8]} m; allowed: up to {MAX_SCALES}, > 0 and finite")
    return {
        "negatives": list(options.negatives) or None,
        "score": _choice("score", options.score, _SCORES),
        "source": source,
        **({"scales_m": scales_m} if scales_m else {}),
    }


def thresholds(options: Any, score: Score) -> dict[str, float]:
    """no_match, high, low or top_percent of a QueryOptions message; empty = as configured.

    Raises:
        QueryError: a threshold that is not finite or out of the score's range, or thresholds the wrong way round.
    """
    mode = _choice("threshold_mode", options.threshold_mode, _MODES)
    high, low = float(options.threshold), float(options.threshold_low)
    least, most = _RANGES[score]
    if mode == "default":
        return {}
    if mode == "top_percent":
        if not 0 < high <= 100:
            raise QueryError(f"threshold is {high} percent; allowed: 0 < threshold <= 100")
        # the best cosines are taken whatever they are; a relevancy still says when nothing matches
        return {"top_percent": high} | ({"no_match": least, "high": most} if score == "cosine" else {})
    if mode == "absolute":
        low = high
    for name, value in (("threshold", high), ("threshold_low", low)):
        if not least <= value <= most:
            raise QueryError(f"{name} is {value}; allowed: {least:g} to {most:g}, the range of {score}")
    if low > high:
        raise QueryError(f"threshold_low is {low}, threshold {high}; allowed: threshold_low <= threshold")
    return {"no_match": high, "high": high, "low": low}


def likeness_threshold(cosines: np.ndarray) -> float:
    """Where to part [N] cosines to a thing's features, the thing's own among them: what is like it lies above.

    Midway between the best of them and the mean of what lies below, found by iteration from above: Ridler & Calvard
    (1978) with the upper class held where it is known to be, so that it does not matter how few are alike.
    """
    values = np.sort(np.asarray(cosines, np.float64))
    if not len(values):
        return 1.0
    alike = peak(values)
    count, threshold = len(values), float(values[-1])
    for _ in range(50):
        threshold = min(threshold, (alike + float(values[:count].mean())) / 2)
        below = int(np.searchsorted(values, threshold))
        if below in (0, count):
            break
        count = below
    return threshold


def _objects(options: Any) -> dict[str, Any]:
    if options.max_objects > MAX_OBJECTS:
        raise QueryError(f"max_objects is {options.max_objects}; allowed: up to {MAX_OBJECTS}, 0 = as configured")
    region = [[p.x, p.y, p.z] for p in (options.region_min, options.region_max)] if options.use_region else None
    return {"region": region, "max_objects": options.max_objects or None, "grasps": bool(options.with_grasps)}


def _choice(name: str, value: int, choices: Mapping[int, Any]) -> Any:
    if value not in choices:
        raise QueryError(f"{name} is {value}; allowed: {', '.join(map(str, choices))}, as QueryOptions.msg has them")
    return choices[value]
