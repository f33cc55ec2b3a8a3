"""`precomputed`: instance masks of another program, painted with the text vectors of their class names.

Closed-set on the image side: the masks know only their own classes, so an answer to "magazine" is whatever was called
something near it ("book"). Open only in the words one may ask with, and those must be in the table. Never report it as
open-vocabulary.

The table is an .npz of one or more sets, each a pair of arrays `<set>` [N, D] (text vectors, any float type) and
`<set>_names` [N] (strings; underscores and parentheses are read as spaces). Earlier sets win where names repeat.

The space. Text vectors of one model lie in a narrow cone (CLIP ViT-B/32: cosine .75 between two random nouns, and .70
to .95 between a noun and the mean), so raw cosines mostly say how ordinary a word is. They are therefore centred on the
mean of all names (Mu, Viswanath, "All-but-the-Top", ICLR 2018), and one constant direction is added that all share:

    v' = sqrt(1 - g^2) (v - mean) / |v - mean| + g e

with e the direction along which the names differ least (removed from v first), so the dimension stays. "object",
"things", "stuff", "texture", in no table of things, are e itself: a word that says nothing. Then cos(v', e) = g for
every name and cos(v', w') = g^2 + (1 - g^2) r, with r the correlation of the two names: pairwise relevancy is above .5
exactly where r > g / (1 + g), a third for g = .5.

Measured with CLIP ViT-B/32 and 1203 LVIS and 80 COCO names, on 50 frames of a real kitchen fused in 2 cm voxels, at
temperature 10: best relevancy .89 for "mug" on cups, .82 for "magazine" on books, .90 for "table" on dining tables, .99
where the name is the class; below .5 for 92% of 300 names drawn at random (most others are kin of what is there), below
.35 for 16 of 18 absent things. Hence the calibration: no match below .5, confident from .6.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from ..config import EncoderConfig
from ..errors import ConfigError, QueryError
from ..frame import Frame
from .base import Calibration, Target, Window

GENERIC_SHARE = 0.5
"""g above: the cosine of every name to a word that says nothing."""
GENERIC_WORDS = frozenset("object objects thing things stuff texture textures something background".split())

_TEMPLATE = re.compile(r"^(?:an? |the )?(?:photo|picture|image|view) of ")
_ARTICLE = re.compile(r"^(?:an?|the|some) ")

logger = logging.getLogger(__name__)


def create(config: EncoderConfig) -> PrecomputedEncoder:
    """From `config.text_table`."""
    if not config.text_table:
        raise ConfigError(
            "encoder 'precomputed' needs --encoder.text_table FILE.npz, text vectors of class names "
            "(docs/encoders.md shows how to make one)"
        )
    return PrecomputedEncoder(Path(config.text_table).expanduser())


def plain_name(text: str) -> str:
    """The form names are compared in: lower case, no template, article, underscore, parenthesis or final stop."""
    words = " ".join(re.sub(r"[_()\-]", " ", text.lower()).split()).rstrip(" .!?")
    return _ARTICLE.sub("", _TEMPLATE.sub("", words)).removesuffix(" in a scene")


def load_table(path: Path) -> tuple[list[str], np.ndarray]:
    """Names as written [N], without repetitions, and their vectors [N, D] float32 of unit length.

    Raises:
        ConfigError: no such file, not an .npz, no usable pair of arrays, or vectors that are not finite.
    """
    if not path.is_file():
        raise ConfigError(f"text_table {path} does not exist; docs/encoders.md shows how to make one")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # zipfile, numpy and struct each have their own
        raise ConfigError(f"text_table {path} is not a readable .npz of plain arrays: {error}") from error
    sets = [key for key in arrays if f"{key}_names" in arrays]
    if not sets:
        raise ConfigError(
            f"text_table {path} has arrays {sorted(arrays)}; expected pairs '<set>' [N, D] and '<set>_names' [N]"
        )
    names: list[str] = []
    rows: list[np.ndarray] = []
    seen: set[str] = set()
    for key in sets:
        vectors, labels = arrays[key], arrays[f"{key}_names"]
        if vectors.ndim != 2 or vectors.dtype.kind != "f" or labels.shape != vectors.shape[:1]:
            raise ConfigError(
                f"text_table {path}: {key!r} is {vectors.dtype} {vectors.shape} and '{key}_names' has shape "
                f"{labels.shape}; expected floating point [N, D] and [N]"
            )
        for label, vector in zip(labels.tolist(), vectors.astype(np.float32), strict=True):
            if plain_name(str(label)) not in seen:
                seen.add(plain_name(str(label)))
                names.append(str(label))
                rows.append(vector)
    if len(rows) < 2 or len({len(row) for row in rows}) != 1:
        raise ConfigError(f"text_table {path} holds {len(rows)} names; expected two or more vectors of one length")
    table = np.stack(rows)
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or norms.min() < 1e-6:
        bad = names[int(np.argmin(np.where(np.isfinite(norms[:, 0]), norms[:, 0], -1)))]
        raise ConfigError(f"text_table {path}: the vector of {bad!r} is zero or not finite; make the table again")
    return names, table / norms


def contrasted(table: np.ndarray, share: float = GENERIC_SHARE) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [N, D] whose cosines tell names apart, and the generic direction [D] (see the module's text)."""
    centred = table.astype(np.float64) - table.mean(axis=0, dtype=np.float64)
    generic = np.linalg.eigh(centred.T @ centred)[1][:, 0]
    centred -= np.outer(centred @ generic, generic)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    vectors = np.sqrt(1 - share**2) * centred + share * generic
    return vectors.astype(np.float32), generic.astype(np.float32)


class PrecomputedEncoder:
    """Paints each mask of `frame.segments` with the vector of its class; asks by name.

    Args:
        text_table: the .npz of text vectors. Masks of classes that are not in it are left out (logged once a class).
    """

    name = "precomputed"
    has_text = True
    calibration = Calibration(no_match=0.5, high=0.6, low=0.575)

    def __init__(self, text_table: Path | str):
        names, table = load_table(Path(text_table))
        self.names = tuple(names)
        self.vectors, self.generic = contrasted(table)
        self.dim = self.vectors.shape[1]
        digest = hashlib.blake2b(repr((names, GENERIC_SHARE)).encode(), digest_size=16)
        digest.update(table.tobytes())
        self.cache_key = digest.hexdigest()
        self._row = {plain_name(name): row for row, name in enumerate(names)}
        self._add_short_names()
        self._unknown: set[str] = set()

    def _add_short_names(self) -> None:
        """'orange' for 'orange_(fruit)', where only one name has that beginning."""
        short: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            if name.endswith(")"):
                short.setdefault(plain_name(name.partition("(")[0]), []).append(row)
        for text, rows in short.items():
            if len(rows) == 1:
                self._row.setdefault(text, rows[0])

    def encode_frame(self, frame: Frame) -> Target:
        """One row of values per mask of a known class, at full resolution; pixels of no mask were not measured.

        Raises:
            ConfigError: the frame carries no masks at all (an image in which nothing was found is fine).
        """
        if frame.segments is None:
            raise ConfigError(
                "this frame has no instance masks, which encoder 'precomputed' paints; use a source with masks "
                "or another encoder"
            )
        ids = frame.segments.ids
        table = np.full(max(0, int(ids.max(initial=0))) + 1, -1, np.int32)
        rows: list[int] = []
        scores: list[float] = []
        for mask in np.unique(ids[ids > 0]).tolist():
            name = str(frame.segments.names.get(mask, ""))
            row = self._row.get(plain_name(name))
            if row is None:
                if name not in self._unknown:
                    self._unknown.add(name)
                    logger.warning("masks of class %r are left out: it is not in the text table", name)
                continue
            table[mask] = len(rows)
            rows.append(row)
            scores.append(float(frame.segments.scores.get(mask, 1.0)))
        confidence = np.clip(np.nan_to_num(np.array(scores, np.float32)), 0, 1)
        return Target(self.vectors[rows], table[np.maximum(ids, 0)], confidence, Window.pixel())

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [N, D] float32 of names in the table, and of words that say nothing ("object", "stuff").

        Raises:
            QueryError: a text that is not in the table, with the nearest names.
        """
        return np.stack([self._vector(text) for text in texts]) if len(texts) else np.zeros((0, self.dim), np.float32)

    def _vector(self, text: str) -> np.ndarray:
        name = plain_name(text)
        if name in self._row:
            return self.vectors[self._row[name]]
        if name in GENERIC_WORDS:
            return self.generic
        contained = [word for word in reversed(name.split()) if word in self._row]
        longer = [known for known in self._row if known.startswith(f"{name} ")] if name else []
        near = list(dict.fromkeys(contained + longer + get_close_matches(name, self._row, n=5, cutoff=0.6)))[:6]
        raise QueryError(
            f"{text!r} is not among the {len(self.names)} names of the text table, and encoder 'precomputed' knows "
            f"no others; near: {', '.join(near) or 'none'}"
        )
