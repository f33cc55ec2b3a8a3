"""Answers: prompts in, scored cloud, objects and grasp candidates out; a pure function of a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .cloud import SurfaceCloud
from .config import SemfieldConfig
from .errors import QueryError
from .field.snapshot import Snapshot
from .objects.field_space import space_of
from .objects.grasping import with_grasps
from .objects.objects import Object, find_objects
from .objects.part_region import with_parts
from .objects.wish import wish_of
from .query.prompt import EncodedPrompts, PromptEncoder
from .query.relevancy import peak
from .query.relevancy import top_percent as top_percent_mask
from .query.scales import ScaleScores, score_scales
from .query.scores import Scores, Source, score_points


@dataclass(frozen=True)
class PromptAnswer:
    """One prompt's answer; `matched` False (no objects) is a normal one. `peak`: mean score of its best surface.

    `part`: what of the objects was asked for; '' = the whole."""

    label: str
    peak: float
    matched: bool
    objects: tuple[Object, ...]
    part: str = ""

    @property
    def part_found(self) -> bool:
        """Whether a part was asked for, and some object has it."""
        return any(thing.part is not None for thing in self.objects)


@dataclass(frozen=True)
class Answer:
    """Everything that was found, in `global_frame`, as of `stamp_s` (the last fused frame).

    Attributes:
        cloud: the points that were searched, N. scores: their scores, [N, Q] in the order of `prompts`.
        prompts: one answer each. source: which map answered: field, points, or mixed.
        no_match, high: the thresholds that were used. scales: where each prompt was looked for, with source scales.
    """

    global_frame: str
    stamp_s: float
    cloud: SurfaceCloud
    scores: Scores
    prompts: tuple[PromptAnswer, ...]
    source: str
    no_match: float
    high: float
    scales: ScaleScores | None = None

    @property
    def objects(self) -> list[Object]:
        """All objects of all prompts, in order of prompts."""
        return [o for p in self.prompts for o in p.objects]


def in_region(points: np.ndarray, region: Sequence[Sequence[float]] | None) -> np.ndarray:
    """[N] bool: points inside an axis-aligned box ((x, y, z) low, (x, y, z) high) in global_frame; all if None."""
    if region is None:
        return np.ones(len(points), bool)
    try:
        box = np.asarray(region, dtype=np.float64)
    except (TypeError, ValueError):
        box = np.empty(0)
    if box.shape != (2, 3) or not np.isfinite(box).all() or (box[0] > box[1]).any():
        raise QueryError(f"region is {region!r}; expected two finite corners [[x, y, z] low, [x, y, z] high]")
    return np.asarray(((points >= box[0]) & (points <= box[1])).all(1))


def answer(
    snapshot: Snapshot,
    texts: PromptEncoder,
    prompts: str | Sequence[str | Sequence[str]] | EncodedPrompts,
    *,
    config: SemfieldConfig | None = None,
    negatives: Sequence[str] | None = None,
    source: Source | None = None,
    score: Literal["relevancy", "cosine"] | None = None,
    region: Sequence[Sequence[float]] | None = None,
    no_match: float | None = None,
    high: float | None = None,
    low: float | None = None,
    top_percent: float | None = None,
    max_objects: int | None = None,
    grasps: bool = True,
    scales_m: Sequence[float] = (),
) -> Answer:
    """Find what prompts name.

    Args:
        prompts: one text or several; synonyms inside one are separated by ";" (or given as a list). "mug; handle",
            "mug > handle" or "the mug by its handle" ask for a part of an object (`query.prompt`): scores are the
            object's, grasps are on the part alone. Or vectors: what looks like a place (`query.click.prompts_like`);
            `negatives` play no part then.
        negatives: what to tell it apart from (None = the canonical four).
        source: auto, field, points, ensemble or scales. scales_m: to search, with scales only; none = what was learnt.
        score: relevancy or cosine (None = as configured).
        region: search only inside [[x, y, z] low, [x, y, z] high].
        no_match, high, low: score thresholds (None = as configured, or the encoder's calibration): a prompt whose peak
            stays below `no_match` has no answer, and no object is listed that stays below it; objects are seeded at
            `high` and grow down to `low`.
        top_percent: make objects of the best so many percent of the seen points instead (`no_match` still holds).
        max_objects: a prompt has no more (None = as configured).
        grasps: whether to look for grasp candidates.

    Raises:
        QueryError: unusable prompts, thresholds or region.
    """
    config = config or SemfieldConfig()
    question = config.query
    for name, value in (("no_match", no_match), ("high", high), ("low", low)):
        if value is not None and not np.isfinite(value):
            raise QueryError(f"{name} is {value}; allowed: a finite score")
    if max_objects is not None and max_objects < 1:
        raise QueryError(f"max_objects is {max_objects}; allowed: >= 1")
    encoded = prompts if isinstance(prompts, EncodedPrompts) else texts.encode(prompts, negatives)
    cosine = (score or question.score) == "cosine"
    if not cosine and not len(encoded.negatives):
        raise QueryError("relevancy needs at least one negative; give some or ask for raw cosines (score='cosine')")
    if region is not None:
        in_region(np.zeros((0, 3)), region)  # refuses unusable corners before anything is read
        snapshot = snapshot.within(*np.asarray(region, np.float64))
    inside = in_region(snapshot.cloud.points, region)
    cloud = snapshot.cloud if region is None else snapshot.cloud[inside]
    points = None if region is None else cloud.points
    source, scaled = source or question.source, None
    if source == "scales":
        scaled = score_scales(
            snapshot, encoded, points, scales_m=scales_m or None, temperature=question.temperature,
            score="cosine" if cosine else "relevancy",
        )  # fmt: skip
        scores = scaled.scores
    elif scales_m:
        raise QueryError(f"scales_m are given, and source is {source!r}; allowed with source 'scales' only")
    else:
        scores = score_points(snapshot, encoded, points, source=source, temperature=question.temperature)
    values = scores.cosine if cosine else scores.relevancy
    floor = no_match if no_match is not None else question.no_match
    top = high if high is not None else config.objects.high
    if cosine and (floor is None or top is None):
        raise QueryError("raw cosines have no calibrated thresholds; give no_match and high, or ask for relevancy")
    calibration = texts.encoder.calibration
    floor = calibration.no_match if floor is None else floor
    top = max(calibration.high if top is None else top, floor)
    bottom = low if low is not None else config.objects.low
    if bottom is None:
        bottom = floor if cosine else calibration.low
    percent = question.top_percent if top_percent is None else top_percent
    evidence = max(8, round(question.evidence_area_m2 / snapshot.voxel_size_m**2))
    # neighbours in a map of noisy voxels lie up to two of them apart, however fine a radius was asked for
    objects = replace(
        config.objects,
        radius_m=max(config.objects.radius_m, 2 * snapshot.voxel_size_m),
        max_objects=max_objects or config.objects.max_objects,
    )
    answers = []
    space = space_of(snapshot, config.grasp) if grasps else None
    for q, prompt in enumerate(encoded.prompts):
        seen = values[scores.seen, q]
        best = peak(seen, evidence)
        found: list[Object] = []
        if best >= floor:
            least = floor
            if percent is not None:
                least = -np.inf
                seed = least_score = float(seen[top_percent_mask(seen, percent)].min())
            else:
                # a weak but matching peak must still seed its own region
                seed = min(top, best)
                least_score = min(seed, bottom)
            found = find_objects(
                cloud, values[:, q], prompt=prompt.label, high=seed, low=least_score, config=objects,
                seen=scores.seen, stamp_s=snapshot.stamp_s, evidence=evidence, least=least,
            )  # fmt: skip
            if q in encoded.parts:
                found = with_parts(
                    found, snapshot, prompt, encoded.parts[q], config=config.objects, query=question, source=source
                )
            if grasps:
                found = with_grasps(
                    found, cloud, objects_config=config.objects, gripper=config.gripper, config=config.grasp,
                    space=space, wish=wish_of(snapshot, encoded, q),
                )
        answers.append(PromptAnswer(prompt.label, best, bool(found), tuple(found), "".join(prompt.part[:1])))
    share = scores.from_field[scores.seen].mean() if scores.seen.any() else 0.0
    used = "field" if share > 0.95 else "points" if share == 0 else "mixed"
    return Answer(config.global_frame, snapshot.stamp_s, cloud, scores, tuple(answers), used, floor, top, scaled)
