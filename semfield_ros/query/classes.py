"""Closed sets of class names as prompts: a template around each name, and "other" for what is none of them.

OpenScene (Peng et al. 2023): "a {} in a scene", the last class "other".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import QueryError
from .prompt import EncodedPrompts, Prompt, PromptEncoder, parse_prompt

TEMPLATE = "a {} in a scene"
OTHER = "other"
_EQUAL = 1e-6
"""Cosines this close are a tie: rounding must not decide for "other"."""


def encode_classes(
    texts: PromptEncoder, names: Sequence[str], *, template: str = TEMPLATE, other: bool = True
) -> EncodedPrompts:
    """One prompt a class in the order of `names` (synonyms separated by ";"), "other" last where asked for.

    Raises:
        QueryError: no name, a name twice, a part of a class, a template without `{}`, or unusable text.
    """
    if isinstance(names, str) or not len(names):
        raise QueryError(f"class names are {names!r}; expected a list with at least one name")
    if template.count("{}") != 1:
        raise QueryError(f"template is {template!r}; it must contain '{{}}' once, e.g. {TEMPLATE!r}")
    parsed = [parse_prompt(name, {}) for name in names]
    for prompt in parsed:
        if prompt.part:
            raise QueryError(f"class {prompt.label!r} is a part of something; classes are whole things")
    labels = [prompt.label for prompt in parsed]
    if other and OTHER not in labels:
        parsed.append(Prompt(OTHER, (OTHER,)))
    elif other:
        if labels[-1] != OTHER:
            raise QueryError(f"{OTHER!r} is class {labels.index(OTHER) + 1} of {len(labels)}; it must be the last")
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise QueryError(f"class {twice!r} is there twice; name each once")
    filled = tuple(Prompt(p.label, tuple(template.format(word) for word in p.synonyms)) for p in parsed)
    words = [text for prompt in filled for text in prompt.synonyms]
    owner = np.array([i for i, prompt in enumerate(filled) for _ in prompt.synonyms])
    return EncodedPrompts(filled, texts.vectors(words), owner, np.zeros((0, texts.encoder.dim), np.float32))


def best_class(cosine: np.ndarray, other: bool) -> np.ndarray:
    """The class with the highest cosine [N, C]: [N] int32; of equal ones the first.

    Args:
        other: the last class is "other", and wins only where it is truly ahead of every named one.
    """
    if not other or cosine.shape[1] < 2:
        return np.asarray(cosine.argmax(1), np.int32) if cosine.shape[1] else np.full(len(cosine), -1, np.int32)
    named = cosine[:, :-1]
    best = named.argmax(1)
    ahead = cosine[:, -1] > named[np.arange(len(best)), best] + _EQUAL
    return np.where(ahead, cosine.shape[1] - 1, best).astype(np.int32)


def probabilities(cosine: np.ndarray, temperature: float = 0.07) -> np.ndarray:
    """softmax(cosine / temperature) over classes: [N, C] float32, rows sum to 1."""
    if not 0 < temperature < np.inf:
        raise QueryError(f"temperature is {temperature}; allowed: > 0 and finite")
    scaled = cosine / np.float32(temperature)
    share = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(share / share.sum(1, keepdims=True), np.float32)
