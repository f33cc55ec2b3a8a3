"""What `tiny` is told about its patches: concepts, their wordings for training and evaluation, what never matches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semfield_ros.sources.simulator_objects import COLOURS, KINDS, PART_NAMES, STUFF, Kind
from semfield_ros.sources.simulator_scene import CLASS_NAMES

CANONICAL = ("object", "things", "stuff", "texture")
"""The negatives of relevancy queries (LERF): never right for anything."""

TEMPLATES = (
    "{}",
    "{}",
    "{}",
    "{}",
    "{}",
    "a {}",
    "a {}",
    "the {}",
    "the {}",
    "a photo of a {}",
    "a photo of the {}",
    "a picture of a {}",
    "an image of a {}",
    "a {} on a table",
    "the {} on the table",
    "there is a {}",
    "this is a {}",
    "my {}",
    "one {}",
    "a close-up of a {}",
    "find the {}",
    "a rendering of a {}",
    "show me the {}",
    "a photo of one {}",
    "photograph of {}",
    "grasp the {}",
    "pick a {}",
    "take the {} up",
    "give me the {}",
    "bring the {}",
    "do you see the {}",
    "i want the {}",
    "here is a {}",
    "can you find a {}",
    "where are my {}",
    "look at that {}",
    "an old {}",
    "a small {}",
    "some {}",
    "is there any {}",
)
HELD_OUT_TEMPLATES = (
    "{}",
    "a photograph of a {}",
    "where is the {}",
    "pick up the {}",
    "i can see a {} here",
    "bring me a {}",
)

COLOURED = (
    "{c} {n}",
    "{c} {n}",
    "{c} {n}",
    "{c} {n}",
    "{n} in {c}",
    "{n} that is {c}",
    "{c} coloured {n}",
    "{c} colored {n}",
    "{n} with {c} color",
    "{n} with {c} paint",
    "{n} , {c}",
    "{n} which looks {c}",
)
HELD_OUT_COLOURED = ("{c} {n}", "{n} which is {c}", "{n} of {c} color", "{n} painted {c}")

COLOUR_ALONE = (
    "{c}",
    "something {c}",
    "{c} object",
    "{c} thing",
    "a thing that is {c}",
    "{c} color",
    "{c} colour",
    "something in {c}",
    "things that are {c}",
    "some {c} object",
)
HELD_OUT_COLOUR_ALONE = ("{c}", "a thing in {c}", "some {c} thing")

MORE_NOUNS = {
    "mug": ("drinking cup", "tea mug"),
    "bowl": ("cereal bowl",),
    "plate": ("saucer",),
    "wine glass": ("glass", "wineglass"),
    "pitcher": ("carafe", "milk jug"),
    "can": ("beer can", "tin", "drink can"),
    "cereal box": ("cardboard box", "cereal", "package"),
    "book": ("notebook", "textbook"),
    "banana": ("fruit",),
    "ball": ("small ball", "round ball"),
    "screwdriver": ("tool with a shaft",),
    "hammer": ("carpenter hammer",),
    "spoon": ("cooking spoon",),
    "frying pan": ("saucepan", "fry pan"),
    "flashlight": ("pocket torch", "flash light"),
    "toy car": ("vehicle", "small car"),
}
STUFF_NOUNS = {
    "floor": ("floor", "ground", "flooring"),
    "wall": ("wall", "walls", "background"),
    "table": ("table", "desk", "tabletop", "table top", "wooden table"),
}
PART_NOUNS = {
    "handle": ("grip",),
    "rim": ("edge", "lip", "brim"),
    "base": ("foot",),
    "body": ("side",),
    "cap": ("stopper",),
    "shaft": ("rod",),
    "wheel": ("wheels", "tyre"),
    "window": ("windows",),
}
AMBIGUOUS_PARTS = ("bowl",)
"""Part words that alone are the name of a kind; they mean the part only with the name of the object."""
PART_PHRASES = (
    "{n} {p}",
    "{n} {p}",
    "{p} of a {n}",
    "{p} of the {n}",
    "the {p} of the {n}",
    "{p} on a {n}",
    "a {n} , its {p}",
)
HELD_OUT_PART_PHRASES = ("{n} {p}", "the {n} by its {p}", "the {p} that belongs to the {n}")


def _parts_of(kind: Kind) -> tuple[str, ...]:
    parts = kind.build(np.random.default_rng(0))
    return tuple(dict.fromkeys(name for p in parts for name in (p.name, *(zone.name for zone in p.zones))))


PARTS_OF = {
    kind.name: tuple(name for name in _parts_of(kind) if (kind.name, name) != ("wine glass", "body")) for kind in KINDS
}
"""The parts of every kind; a wine glass's zones leave nothing that is only its body."""

_ABSENT_WORDS = """
    dog cat laptop keyboard phone chair sofa lamp clock scissors guitar shoe hat umbrella backpack fork knife apple
    carrot pizza tree flower person hand robot monitor mouse toothbrush candle basket pillow duck vase drill wrench
    pliers saw tape ruler pencil pen stapler calculator camera headphones bicycle airplane boat horse elephant zebra
    bread cake egg lemon tomato corn broccoli towel soap sponge brush comb wallet key coin watch necklace glove sock
    shirt coat belt tie dress teapot kettle printer television plant bear train bus truck bed door curtain mirror
    bird fish cow sheep sandwich donut shovel bucket rope hose lighter battery cable socket speaker radio piano
    trumpet flute racket frame
"""
ABSENT = (
    *_ABSENT_WORDS.split(),
    "teddy bear",
    "remote control",
    "toy duck",
    "potted plant",
    "computer mouse",
    "cell phone",
    "coffee machine",
    "tooth paste",
)
HELD_OUT_ABSENT = (
    "giraffe",
    "violin",
    "tractor",
    "sunglasses",
    "microwave",
    "refrigerator",
    "ladder",
    "helmet",
    "kite",
    "penguin",
    "telescope",
    "skateboard",
    "toaster",
    "strawberry",
    "fire hydrant",
    "washing machine",
    "passport",
    "stethoscope",
)


@dataclass(frozen=True)
class Captions:
    """A batch of captions with what makes each right: C texts; kind (class id), colour, part: [C] int, -1 = any.

    `absent` [C] bool: right for nothing. `family` [C]: kind, stuff, colour, pair, part (of anything), own part (of one
    kind), absent, canonical.
    """

    texts: tuple[str, ...]
    kind: np.ndarray
    colour: np.ndarray
    part: np.ndarray
    absent: np.ndarray
    family: np.ndarray


@dataclass
class _Rows:
    rows: list[tuple[str, int, int, int, bool, str]]

    def add(
        self, text: str, kind: int = -1, colour: int = -1, part: int = -1, absent: bool = False, family: str = ""
    ) -> None:
        self.rows.append((text, kind, colour, part, absent, family))

    def build(self) -> Captions:
        texts, kind, colour, part, absent, family = zip(*self.rows)
        return Captions(
            tuple(texts), np.array(kind), np.array(colour), np.array(part), np.array(absent), np.array(family)
        )


def nouns_of(kind_name: str) -> tuple[str, ...]:
    """Every noun taught for a kind; the canonical one first."""
    kind = next(k for k in KINDS if k.name == kind_name)
    return (kind.name, *kind.synonyms, *MORE_NOUNS.get(kind_name, ()))


def taught_texts() -> list[str]:
    """Every text whose words training gives a meaning; all other words stay without any."""
    nouns = [noun for kind in KINDS for noun in nouns_of(kind.name)]
    patterns = [text.format("") for text in TEMPLATES]
    patterns += [text.format(c="", n="", p="") for text in (*COLOURED, *COLOUR_ALONE, *PART_PHRASES)]
    stuff = [noun for names in STUFF_NOUNS.values() for noun in names]
    parts = [*PART_NAMES[1:], *(noun for nouns in PART_NOUNS.values() for noun in nouns)]
    return [*nouns, *patterns, *stuff, *COLOURS, "violet", *parts, *CANONICAL, *ABSENT]


class CaptionSampler:
    """Draws each step's captions: every concept in random wordings, hard colour + kind distractors, absences."""

    def __init__(self, vocabulary: list[str]):
        held_out = (*HELD_OUT_ABSENT, *HELD_OUT_TEMPLATES, *HELD_OUT_COLOURED, *HELD_OUT_PART_PHRASES)
        avoided = {word for text in (*taught_texts(), *held_out) for word in text.split()}
        self.strangers = [word for word in vocabulary if word not in avoided]
        self.kinds = [k.name for k in KINDS]
        self.colours = list(COLOURS)

    def sample(
        self, rng: np.random.Generator, present: list[tuple[int, int]], pairs: int = 56, part_kinds: int = 8
    ) -> Captions:
        """Captions for a batch whose (class id, colour id) combinations are `present`."""
        out = _Rows([])
        for text in CANONICAL:
            out.add(text, absent=True, family="canonical")
        for kind in self.kinds:
            class_id = CLASS_NAMES.index(kind)
            for _ in range(2):
                out.add(self._say(rng, self._noun(rng, kind)), kind=class_id, family="kind")
        for stuff in STUFF:
            nouns = STUFF_NOUNS[stuff]
            out.add(self._say(rng, nouns[rng.integers(len(nouns))]), kind=CLASS_NAMES.index(stuff), family="stuff")
        for index, colour in enumerate(self.colours):
            phrase = COLOUR_ALONE[rng.integers(len(COLOUR_ALONE))].format(c=self._colour(rng, colour))
            template = TEMPLATES[rng.integers(len(TEMPLATES))] if rng.random() < 0.4 else "{}"
            out.add(template.format(phrase), colour=index, family="colour")
        for class_id, colour_id in self._pairs(rng, present, pairs):
            out.add(
                self._pair(rng, CLASS_NAMES[class_id], self.colours[colour_id]),
                kind=class_id,
                colour=colour_id,
                family="pair",
            )
        for number, part in enumerate(PART_NAMES):
            if part and part not in AMBIGUOUS_PARTS:
                phrase = self._part_noun(rng, part)
                out.add(self._say(rng, phrase) if rng.random() < 0.3 else phrase, part=number, family="part")
        for kind in rng.permutation([kind for kind, parts in PARTS_OF.items() if len(parts) > 1])[:part_kinds]:
            for part in PARTS_OF[kind]:
                self._own_part(rng, out, kind, part)
        for k in range(10):
            noun = ABSENT[rng.integers(len(ABSENT))] if k < 6 else self.strangers[rng.integers(len(self.strangers))]
            if rng.random() < 0.35:
                noun = f"{self.colours[rng.integers(len(self.colours))]} {noun}"
            out.add(self._say(rng, noun), absent=True, family="absent")
        out.add(TEMPLATES[rng.integers(len(TEMPLATES))].format("").strip(), absent=True, family="absent")
        return out.build()

    def _pairs(self, rng: np.random.Generator, present: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
        chosen = [present[i] for i in rng.permutation(len(present))[: count * 2 // 3]]
        seen = set(chosen)
        for class_id, colour_id in list(chosen):
            near = (class_id, int(rng.integers(len(self.colours))))
            if rng.random() < 0.5:
                near = (CLASS_NAMES.index(self.kinds[rng.integers(len(self.kinds))]), colour_id)
            if near not in seen and len(chosen) < count:
                seen.add(near)
                chosen.append(near)
        return chosen

    def _noun(self, rng: np.random.Generator, kind: str) -> str:
        nouns = nouns_of(kind)
        return nouns[0] if rng.random() < 0.4 else nouns[rng.integers(len(nouns))]

    def _part_noun(self, rng: np.random.Generator, part: str) -> str:
        others = PART_NOUNS.get(part, ())
        return others[rng.integers(len(others))] if others and rng.random() < 0.35 else part

    def _own_part(self, rng: np.random.Generator, out: _Rows, kind: str, part: str) -> None:
        noun = self._noun(rng, kind)
        if part not in AMBIGUOUS_PARTS or rng.random() < 0.5:
            phrase = PART_PHRASES[rng.integers(len(PART_PHRASES))].format(p=self._part_noun(rng, part), n=noun)
        else:
            phrase = f"{part} of the {noun}"
        phrase = self._say(rng, phrase) if rng.random() < 0.2 else phrase
        out.add(phrase, kind=CLASS_NAMES.index(kind), part=PART_NAMES.index(part), family="own part")

    def _colour(self, rng: np.random.Generator, colour: str) -> str:
        return "violet" if colour == "purple" and rng.random() < 0.15 else colour

    def _say(self, rng: np.random.Generator, phrase: str) -> str:
        if rng.random() < 0.15:
            # Meaningless company at any position teaches that only known words count.
            before, after = rng.integers(0, 5), rng.integers(0, 3)
            words = [self.strangers[i] for i in rng.integers(len(self.strangers), size=before + after)]
            return " ".join([*words[:before], phrase, *words[before:]])
        return TEMPLATES[rng.integers(len(TEMPLATES))].format(phrase)

    def _pair(self, rng: np.random.Generator, kind: str, colour: str) -> str:
        phrase = COLOURED[rng.integers(len(COLOURED))].format(c=self._colour(rng, colour), n=self._noun(rng, kind))
        return self._say(rng, phrase)


def evaluation_wordings(rng: np.random.Generator, kind: str | None, colour: str | None, held_out: bool) -> str:
    """One caption for a concept: the plain words, or a wording that training never used."""
    if colour is None:
        assert kind is not None
        phrase = kind
    elif kind is None:
        return HELD_OUT_COLOUR_ALONE[1 + rng.integers(2)].format(c=colour) if held_out else colour
    else:
        pattern = HELD_OUT_COLOURED[1 + rng.integers(len(HELD_OUT_COLOURED) - 1)] if held_out else "{c} {n}"
        phrase = pattern.format(c=colour, n=kind)
    return HELD_OUT_TEMPLATES[1 + rng.integers(len(HELD_OUT_TEMPLATES) - 1)].format(phrase) if held_out else phrase
