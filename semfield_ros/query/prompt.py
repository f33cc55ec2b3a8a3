"""Prompts: what is asked for, and what it is told apart from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import QueryConfig
from ..encoders.base import Encoder
from ..errors import QueryError

MAX_PROMPTS = 256
MAX_CHARACTERS = 1000


@dataclass(frozen=True)
class Prompt:
    """One thing asked for: the label it is reported under, and its synonyms (any of which may match)."""

    label: str
    synonyms: tuple[str, ...]


def _texts(text: str | Sequence[str]) -> list[str]:
    """The pieces of "a; b" or of a list of texts, spaces tidied, empty ones left out."""
    parts = text.split(";") if isinstance(text, str) else text
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise QueryError(f"{text!r} is not text; expected e.g. 'mug; coffee cup' or ['mug', 'coffee cup']")
    return [" ".join(part.split()) for part in parts if part.strip()]


def parse_prompt(text: str | Sequence[str]) -> Prompt:
    """A prompt from "mug; coffee cup" or ["mug", "coffee cup"]: synonyms, the first is the label."""
    synonyms = _texts(text)
    if not synonyms:
        raise QueryError(f"prompt {text!r} is empty; name what to look for, e.g. 'mug; coffee cup'")
    if sum(map(len, synonyms)) > MAX_CHARACTERS:
        raise QueryError(f"prompt has {sum(map(len, synonyms))} characters; allowed: {MAX_CHARACTERS}")
    return Prompt(synonyms[0], tuple(dict.fromkeys(synonyms)))


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts and negatives as unit vectors.

    Attributes:
        positives: [S, D], all synonyms of all prompts. owner: [S] int64, the prompt of each. negatives: [M, D].
    """

    prompts: tuple[Prompt, ...]
    positives: np.ndarray
    owner: np.ndarray
    negatives: np.ndarray


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
        parsed = tuple(parse_prompt(p) for p in prompts)
        negatives = _texts(self.config.negatives if negatives is None else negatives)
        if len(negatives) > MAX_PROMPTS:
            raise QueryError(f"{len(negatives)} negatives; allowed: up to {MAX_PROMPTS}")
        synonyms = [s for p in parsed for s in p.synonyms]
        owner = np.array([i for i, p in enumerate(parsed) for _ in p.synonyms])
        vectors = self.vectors(synonyms + negatives)
        return EncodedPrompts(parsed, vectors[: len(synonyms)], owner, vectors[len(synonyms) :])
