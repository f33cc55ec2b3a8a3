"""Grasp trials: what is asked of a scene, what became of each request, and the shares that are reported.

Pure accounting: who answered, planned and moved the gripper is `grasp_stage`'s business. Definitions:

right object: the best object's points lie mostly on an object the prompt is right for. Of all requests for what is
    there.
part found: more than half of what was taken for the part lies within `FOUND_MARGIN_M` of it. Of part requests whose
    object was right.
right part: both fingers, or more than half of all contacts, touch the right object within `PART_MARGIN_M` of the part
    that was asked for. Of all part requests that can be fulfilled.
lifted, held: the right object rose with the gripper; and was still between the fingers after the shake. Of all requests
    that can be fulfilled; one without an answer, without a grasp or with the wrong object counts as not held.
abstained: no object was named. Of requests for what is not there.
declined: no grasp was offered. Of requests that cannot be fulfilled: neither a search on exact geometry, each of whose
    grasps was tried in physics, nor any map found a grasp that holds as asked (too wide, too flat, walled in). The set
    is the same for every map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

PART_MARGIN_M, FOUND_MARGIN_M = 0.005, 0.01
ASKED_PARTS: dict[str, tuple[str, ...]] = {
    "mug": ("handle", "rim"), "bowl": ("rim",), "plate": ("rim",), "bottle": ("neck", "cap"),
    "wine glass": ("stem", "rim"), "pitcher": ("handle", "rim"), "can": ("lid",), "screwdriver": ("handle", "shaft"),
    "hammer": ("handle", "head"), "spoon": ("handle",), "frying pan": ("handle",), "flashlight": ("head",),
}  # fmt: skip
"""Parts a person would ask a gripper to hold, by kind."""
PUBLISHED: dict[str, dict[str, float]] = {
    "F3RM": {"held": 0.62},
    "LERF-TOGO": {"held": 0.69, "right_part": 0.81},
}
"""Shares published of other objects, grippers and rooms: a mark to pass, not a comparison on equal terms."""
SOURCES = "F3RM: Shen et al., CoRL 2023; LERF-TOGO: Rashid et al., CoRL 2023: real robots, other objects"
"""Of PUBLISHED."""
GOALS = {"right_object": 0.90, "right_part": 0.85, "lifted": 0.85, "held": 0.85}


class Named(Protocol):
    """An object as `sources.simulator.TruthObject` describes it."""

    @property
    def instance(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Request:
    """What is asked of a scene.

    Attributes:
        text: the prompt. instances: the objects it is right for; none = it is not there.
        part: what of the object should be held; empty = whatever suits. kind: of the object, or what is missing.
    """

    text: str
    instances: tuple[int, ...]
    part: str = ""
    kind: str = ""

    @property
    def absent(self) -> bool:
        """Nothing here is what it asks for."""
        return not self.instances


def requests_of(things: Sequence[Named], kinds: Sequence[str], colours: Sequence[str], seed: int, count: int) \
        -> list[Request]:  # fmt: skip
    """What a scene is asked, drawn from the seed: a fifth of it is not there, of the rest half name a part.

    Every object is as likely to be asked for as any other. Things are called by colour and kind, by a synonym with its
    colour, or by the kind alone where there is one such thing; what is missing is a kind that is not there, or one that
    is in another colour.

    Args:
        kinds, colours: all there are in this world.
    """
    rng = np.random.default_rng([seed, 6])
    missing = max(1, round(count / 5)) if count > 1 else 0
    with_parts = [t for t in _shuffled(rng, things) if t.kind in ASKED_PARTS]
    parts = min((count - missing) // 2, len(with_parts)) if count - missing > 1 else 0
    whole = _shuffled(rng, things)[: count - missing - parts]
    number = Counter(t.kind for t in things)

    def right(text: str) -> tuple[int, ...]:
        return tuple(t.instance for t in things if text in t.names)

    requests = []
    for turn, thing in enumerate(whole):
        texts = [f"{thing.colour} {thing.kind}"]
        if number[thing.kind] == 1:
            texts.append(thing.kind)
        texts.append(str(rng.choice([n for n in thing.names if n.startswith(f"{thing.colour} ")])))
        text = texts[turn % len(texts)]
        requests.append(Request(text, right(text), "", thing.kind))
    for thing in with_parts[:parts]:
        text, part = f"{thing.colour} {thing.kind}", str(rng.choice(ASKED_PARTS[thing.kind]))
        requests.append(Request(f"{text}; {part}", right(text), part, thing.kind))
    return requests + absent_requests(rng, things, kinds, colours, missing)


def absent_requests(
    rng: np.random.Generator, things: Sequence[Named], kinds: Sequence[str], colours: Sequence[str], count: int
) -> list[Request]:
    """Prompts right for nothing here: kinds that are not there, and (every other one) kinds in a colour that is not."""
    names = {name for thing in things for name in thing.names}
    strange = [k for k in _shuffled(rng, kinds) if k not in names]
    here = _shuffled(rng, sorted({t.kind for t in things}))
    recoloured = [f"{colour} {kind}" for kind in here for colour in _shuffled(rng, colours)[:1]]
    recoloured = [text for text in recoloured if text not in names]
    found: list[Request] = []
    turn = int(rng.integers(2))
    while len(found) < count and (strange or recoloured):
        pool = strange if strange and ((len(found) + turn) % 2 == 0 or not recoloured) else recoloured
        text = pool.pop(0)
        found.append(Request(text, (), "", next((k for k in kinds if text.endswith(k)), text)))
    return found


def _shuffled(rng: np.random.Generator, items: Sequence[Any]) -> list[Any]:
    return [items[int(k)] for k in rng.permutation(len(items))]


def on_part(distance_m: np.ndarray, fingers: np.ndarray, margin_m: float = PART_MARGIN_M) -> bool:
    """Whether a grip holds a part.

    Args:
        distance_m: [K] of each contact from the part. fingers: [K] which finger (-1, +1).
    """
    near = np.asarray(distance_m) <= margin_m
    both = {int(f) for f in np.asarray(fingers)[near]} >= {-1, 1}
    return bool(both or 2 * near.sum() > len(near))


@dataclass(frozen=True)
class Outcome:
    """What became of one request with one map; see the module for what the words mean.

    Attributes:
        map: field, points or truth. answered: an object was named. offered: with a grasp. tried: it was executed.
        collided: something else was touched on the way in. brushed: something was, the object itself included.
        reason: why it was not held as asked; empty = it was. detail: more of it, in words.
        answer_s: from the prompt to objects and grasps (of truth: planning alone).
    """

    seed: int
    map: str
    prompt: str
    kind: str
    part: str = ""
    absent: bool = False
    possible: bool = True
    answered: bool = False
    right_object: bool = False
    part_found: bool = False
    offered: bool = False
    tried: bool = False
    right_part: bool = False
    lifted: bool = False
    held: bool = False
    collided: bool = False
    brushed: bool = False
    answer_s: float = 0.0
    reason: str = ""
    detail: str = ""

    @property
    def as_asked(self) -> bool:
        """The right object was held, by its right part where one was asked for."""
        return self.held and (self.right_part or not self.part)

    @property
    def right(self) -> bool:
        """All went as it should: held as asked, or rightly left alone."""
        if self.absent:
            return not self.answered
        return self.as_asked if self.possible else not self.offered


@dataclass(frozen=True)
class Following:
    """How the map followed a lift. follows_s: seconds of stream until the old place was silent, inf = not in time.

    kept: of `others` objects that answered before and were not touched, how many answer where they did.
    second: whether the next request was held; None = nothing else could be asked.
    """

    seed: int
    prompt: str
    follows_s: float
    kept: int
    others: int
    second: bool | None = None
    second_prompt: str = ""


@dataclass(frozen=True)
class Share:
    """`hits` of `trials`."""

    hits: int
    trials: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Share:
        """Counted."""
        listed = [bool(o) for o in outcomes]
        return cls(sum(listed), len(listed))

    @property
    def share(self) -> float:
        """In [0, 1]; nan of no trials."""
        return self.hits / self.trials if self.trials else float("nan")

    @property
    def json(self) -> dict[str, Any]:
        """As the last line tells it."""
        return {"share": self.share, "trials": self.trials}


@dataclass(frozen=True)
class Tally:
    """The shares of one map, by name; times to answer; why requests that can be fulfilled were not, commonest first."""

    shares: Mapping[str, Share]
    answers_s: tuple[float, ...] = ()
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        times = np.array(self.answers_s or (float("nan"),))
        answer_s = {
            "median": float(np.median(times)), "p95": float(np.quantile(times, 0.95)), "trials": len(self.answers_s)
        }  # fmt: skip
        return {name: share.json for name, share in self.shares.items()} | {
            "answer_s": answer_s, "reasons": dict(self.reasons)
        }  # fmt: skip


def tally(outcomes: Sequence[Outcome]) -> Tally:
    """The shares of outcomes of one map."""
    there = [o for o in outcomes if not o.absent]
    possible = [o for o in there if o.possible]
    parts = [o for o in possible if o.part]
    tried = [o for o in there if o.tried]
    shares = {
        "right_object": Share.of(o.right_object for o in there),
        "part_found": Share.of(o.part_found for o in there if o.part and o.right_object),
        "right_part": Share.of(o.right_part for o in parts),
        "lifted": Share.of(o.lifted for o in possible),
        "held": Share.of(o.held for o in possible),
        "held_as_asked": Share.of(o.right for o in possible),
        "held_of_all_there": Share.of(o.held for o in there),
        "held_of_tried": Share.of(o.held for o in tried),
        "collided": Share.of(o.collided for o in tried),
        "brushed": Share.of(o.brushed for o in tried),
        "abstained": Share.of(not o.answered for o in outcomes if o.absent),
        "declined": Share.of(not o.offered for o in there if not o.possible),
    }
    reasons = Counter(o.reason for o in possible if not o.right)
    return Tally(shares, tuple(o.answer_s for o in outcomes), dict(reasons.most_common()))


def tally_following(followings: Sequence[Following]) -> dict[str, Any]:
    """Median seconds until old places are silent (inf where most never were), shares of others and second requests."""
    times = [f.follows_s for f in followings]
    kept = Share(sum(f.kept for f in followings), sum(f.others for f in followings))
    second = Share.of(f.second for f in followings if f.second is not None)
    return {
        "follows_s": {
            "median": float(np.median(times)) if times else float("nan"), "trials": len(times),
            "silent": int(np.isfinite(times).sum()) if times else 0,
        },
        "others_kept": kept.json, "second_held": second.json,
    }  # fmt: skip
