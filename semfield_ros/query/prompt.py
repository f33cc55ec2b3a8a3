"""Prompts: what is asked for, which part of it, and what it is told apart from.

    prompt  = object [">" part]         "drill > chuck": what stands behind ">" is always the part
    object  = piece {";" piece}         "mug; cup; handle": the first piece names the object; a later one that is a
                                        known part word, alone, with an article or with the object's name ("the
                                        handle", "mug handle"), is the part; any other is a synonym of the object.
                                        After a first piece that is a part ("handle", "bottle cap") all are synonyms
    piece 1 = X "by its" P | X"'s" P | P "of the" X | anything else, with P a known part word

Known part words stand in the configuration (`query.part_words`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field

import numpy as np

from ..config import QueryConfig
from ..encoders.base import Encoder
from ..errors import QueryError

MAX_PROMPTS = 256
MAX_CHARACTERS = 1000
BEHIND = ">"
"""Between an object and its part."""
_ARTICLE = re.compile(r"^(?:the|a|an|its|their)\s+", re.IGNORECASE)
_NATURAL = (
    re.compile(r"^(?P<object>.+?)\s+by\s+(?:its|their)\s+(?P<part>.+)$", re.IGNORECASE),
    re.compile(r"^(?P<object>.+?)(?:['\u2019]s|(?<=s)['\u2019])\s+(?P<part>.+)$", re.IGNORECASE),
    re.compile(r"^(?P<part>.+?)\s+of\s+(?:the|a|an)\s+(?P<object>.+)$", re.IGNORECASE),
)


@dataclass(frozen=True)
class Prompt:
    """One thing asked for: the label it is reported under, its synonyms (any of which may match), and the words for
    the part of it that is meant (any of which may match; none = the whole)."""

    label: str
    synonyms: tuple[str, ...]
    part: tuple[str, ...] = ()


def _texts(text: str | Sequence[str]) -> list[str]:
    """The pieces of "a; b" or of a list of texts, spaces tidied, empty ones left out."""
    parts = text.split(";") if isinstance(text, str) else text
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise QueryError(f"{text!r} is not text; expected e.g. 'mug; coffee cup' or ['mug', 'coffee cup']")
    return [" ".join(part.split()) for part in parts if part.strip()]


def known_parts(groups: Iterable[str] = QueryConfig.part_words) -> dict[str, int]:
    """Which group each part word belongs to, from groups of words for the same part ("rim; edge; lip")."""
    return {word.casefold(): number for number, group in enumerate(groups) for word in _texts(group)}


def parse_prompt(text: str | Sequence[str], parts: Mapping[str, int] | None = None) -> Prompt:
    """A prompt from "mug; coffee cup" or ["mug", "coffee cup"]: synonyms, the first is the label; from "mug; handle",
    "mug > handle" or "the mug by its handle": an object and its part, labelled "mug; handle".

    Args:
        parts: known part words (`known_parts`); None = those configured by default.

    Raises:
        QueryError: no text, nothing on a side of ">", more than one ">", or too long.
    """
    pieces = _texts(text)
    if not pieces:
        raise QueryError(f"prompt {text!r} is empty; name what to look for, e.g. 'mug; coffee cup'")
    if sum(map(len, pieces)) > MAX_CHARACTERS:
        raise QueryError(f"prompt has {sum(map(len, pieces))} characters; allowed: {MAX_CHARACTERS}")
    synonyms, part = _split(pieces, known_parts() if parts is None else parts)
    label = "; ".join([synonyms[0], *part[:1]])
    return Prompt(label, tuple(dict.fromkeys(synonyms)), tuple(dict.fromkeys(part)))


def _split(pieces: list[str], known: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Words for the object and words for its part."""
    text = "; ".join(pieces)
    marks = text.count(BEHIND)
    if marks > 1:
        raise QueryError(f"prompt {text!r} has {marks} {BEHIND!r}; allowed: one, as in 'mug > handle'")
    if marks:
        at = next(i for i, piece in enumerate(pieces) if BEHIND in piece)
        before, behind = pieces[at].split(BEHIND)
        objects, part = _texts([*pieces[:at], before]), [_bare(p) for p in _texts([behind, *pieces[at + 1 :]])]
        if not objects or not part:
            raise QueryError(f"prompt {text!r} has nothing on a side of {BEHIND!r}; name both, as in 'mug > handle'")
        return objects, part
    first, part = _natural(pieces[0], known)
    objects = [first]
    if _bare(first).casefold().split(" ")[-1] in known:  # a part itself, and by other words
        return pieces, []
    for piece in pieces[1:]:
        word = _part_word(piece, objects, known)
        (part if word else objects).append(word or piece)
    return objects, part


def _natural(piece: str, known: Mapping[str, int]) -> tuple[str, list[str]]:
    """X and [P] of the natural forms, where P is a known part word; else the piece and nothing."""
    for form in _NATURAL:
        found = form.match(piece)
        if found and _bare(found["part"]).casefold() in known and _bare(found["object"]):
            return _bare(found["object"]), [_bare(found["part"])]
    return piece, []


def _part_word(piece: str, objects: Sequence[str], known: Mapping[str, int]) -> str:
    """The part word that a piece is, alone ("the handle") or behind an object's name ("mug handle"); else ""."""
    bare = _bare(piece)
    if bare.casefold() in known:
        return bare
    whole, _, last = bare.rpartition(" ")
    names = {_bare(name).casefold() for name in objects}
    names |= {name.split()[-1] for name in names if name}
    return last if last.casefold() in known and whole.casefold() in names else ""


def _bare(piece: str) -> str:
    """Without a leading article."""
    return _ARTICLE.sub("", piece)


@dataclass(frozen=True)
class PartTexts:
    """What a part is looked for with, inside its object, as unit vectors: positives [S, D], and negatives [M, D], words
    for other parts."""

    positives: np.ndarray
    negatives: np.ndarray


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts and negatives as unit vectors.

    Attributes:
        positives: [S, D], all synonyms of all prompts. owner: [S] int64, the prompt of each. negatives: [M, D].
        parts: of each prompt that asks for a part, by its number, what to look for inside the object.
    """

    prompts: tuple[Prompt, ...]
    positives: np.ndarray
    owner: np.ndarray
    negatives: np.ndarray
    parts: Mapping[int, PartTexts] = dataclass_field(default_factory=dict)


class PromptEncoder:
    """Encodes prompts, remembering text vectors (bounded) so that a repeated query costs no text model."""

    def __init__(self, encoder: Encoder, config: QueryConfig, memory: int = 4096):
        self.encoder, self.config, self._memory = encoder, config, memory
        self._vectors: dict[str, np.ndarray] = {}

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Unit text vectors [N, D]."""
        found = dict(self._vectors)  # looked at once: another thread may swap it
        missing = [t for t in dict.fromkeys(texts) if t not in found]
        if missing:
            found.update(zip(missing, self.encoder.encode_text(missing), strict=True))
            # a new dict, swapped in whole: queries come from several threads
            self._vectors = dict(list(found.items())[-self._memory :])
        return np.stack([found[t] for t in texts]) if texts else np.zeros((0, self.encoder.dim), np.float32)

    def encode(
        self, prompts: str | Sequence[str | Sequence[str]], negatives: str | Sequence[str] | None = None
    ) -> EncodedPrompts:
        """Prompts (each text, "a; b" or a list of synonyms) against negatives (None = the configured ones).

        Raises:
            QueryError: not text, empty, too long or too many.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        if not isinstance(prompts, Sequence):
            raise QueryError(f"prompts are {prompts!r}; expected a text or a list of texts")
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise QueryError(f"{len(prompts)} prompts; allowed: 1 to {MAX_PROMPTS}")
        known = known_parts(self.config.part_words)
        parsed = tuple(parse_prompt(p, known) for p in prompts)
        negatives = _texts(self.config.negatives if negatives is None else negatives)
        if len(negatives) > MAX_PROMPTS:
            raise QueryError(f"{len(negatives)} negatives; allowed: up to {MAX_PROMPTS}")
        synonyms = [s for p in parsed for s in p.synonyms]
        owner = np.array([i for i, p in enumerate(parsed) for _ in p.synonyms])
        vectors = self.vectors(synonyms + negatives)
        parts = {q: self._part(prompt, known) for q, prompt in enumerate(parsed) if prompt.part}
        return EncodedPrompts(parsed, vectors[: len(synonyms)], owner, vectors[len(synonyms) :], parts)

    def _part(self, prompt: Prompt, known: Mapping[str, int]) -> PartTexts:
        """The words of a prompt's part against those of every other part. Where one is not known for a part, and may
        name a thing of its own (the bowl of a spoon), it is the mean of "bowl" and "spoon bowl"."""
        own = {known.get(word.casefold(), -1) for word in prompt.part}
        others = list({group: word for word, group in [*known.items()][::-1] if group not in own}.values())
        thing = _bare(prompt.synonyms[0])
        said = [[word] if word.casefold() in known else [word, f"{thing} {word}"] for word in prompt.part]
        means = np.stack([self.vectors(texts).mean(0) for texts in said])
        positives = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
        return PartTexts(positives, self.vectors(others or _texts(self.config.negatives)))
