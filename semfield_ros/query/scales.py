"""The best scale of each prompt, and scores at it: all scales from one pass of the field.

LERF (Kerr et al. 2023) renders its field at 30 scales for every query and keeps, for each prompt, the scale at which
its relevancy is highest anywhere in the view. With the scale head (`field/scale_head.py`) a point's hidden value h is
computed once; at a scale between knots k and k + 1, u of the way, with f_k = A_k h,

    t . f = (1 - u) t . f_k + u t . f_(k+1)
    |f|^2 = (1 - u)^2 |f_k|^2 + 2 u (1 - u) f_k . f_(k+1) + u^2 |f_(k+1)|^2,

so `Factors` holds the few numbers a point that every cosine at every scale follows from, however long features are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import QueryError
from ..field.model import Field
from ..field.scale_head import ScaleHead
from ..field.scales import HEAD
from ..field.snapshot import Snapshot
from ..field.world import WorldSnapshot
from .prompt import EncodedPrompts
from .relevancy import best_synonym, pairwise_relevancy, peak
from .scores import Scores, checked

COUNT = 30
"""Scales that are searched by default, as many as LERF does."""
LERF_SCALES_M = tuple(np.linspace(0, 1.5, COUNT).tolist())
"""Those of LERF's code; its paper goes to 2 m."""


@dataclass(frozen=True)
class Factors:
    """N points and T unit texts, for any scale.

    Attributes:
        products: [N, K, T], t . f_k. squares: [N, K], |f_k|^2. crossed: [N, K - 1], f_k . f_(k+1).
        log_knots: [K] logarithms of the scales in metres of the knots that were taught anywhere.
        taught: [N, 2] logarithms of the scales that each point was taught at, from and to; from > to: at none.
    """

    products: torch.Tensor
    squares: torch.Tensor
    crossed: torch.Tensor
    log_knots: torch.Tensor
    taught: torch.Tensor

    @property
    def known(self) -> np.ndarray:
        """[N] bool: the points that were taught at any scale."""
        return (self.taught[:, 0] <= self.taught[:, 1]).numpy()

    def knows(self, scale_m: float) -> np.ndarray:
        """[N] bool: the points that were taught at a scale."""
        x, rounding = _log(scale_m), 1e-5
        return ((x >= self.taught[:, 0] - rounding) & (x <= self.taught[:, 1] + rounding)).numpy()

    def cosines(self, scale_m: float) -> np.ndarray:
        """[N, T] float32 at one scale or, where a point was not taught at it, at the nearest that it was. O(N T)."""
        last = len(self.log_knots) - 1
        # of points that were taught nothing, "from" is above "to": any scale is as good
        x = torch.minimum(torch.maximum(_log(scale_m), self.taught[:, 0]), self.taught[:, 1])
        x = x.clamp(self.log_knots[0], self.log_knots[-1])
        k = torch.searchsorted(self.log_knots, x, right=True).clamp(1, last) - 1
        u = (x - self.log_knots[k]) / (self.log_knots[k + 1] - self.log_knots[k])
        row = torch.arange(len(x))
        square = (1 - u) ** 2 * self.squares[row, k] + u**2 * self.squares[row, k + 1]
        square += 2 * u * (1 - u) * self.crossed[row, k]
        u = u[:, None]
        product = (1 - u) * self.products[row, k] + u * self.products[row, k + 1]
        return (product * square.clamp_min(1e-12).rsqrt()[:, None]).numpy()


def _log(scale_m: float) -> torch.Tensor:
    return torch.tensor(max(scale_m, 1e-9)).log()


def scale_head_of(field: Field | None) -> ScaleHead:
    """The scale head of a field.

    Raises:
        QueryError: it has none, or one that has learnt nothing.
    """
    head = field.heads[HEAD] if field is not None and HEAD in field.heads else None
    if not isinstance(head, ScaleHead) or head.range_m() is None:
        raise QueryError(
            "the field has not learnt scales yet: they need the teacher pyramid (heads.teachers = ['pyramid']) and "
            "some training; ask the field or the point map without scales (source='auto')"
        )
    return head


@torch.no_grad()
def factors(field: Field, points: np.ndarray, texts: np.ndarray, chunk: int = 2048) -> Factors:
    """What cosines of points [N, 3] with unit texts [T, D] are made of. One pass of the trunk, whatever the chunk."""
    head = scale_head_of(field)
    device = head.last.weight.device

    def hidden(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.from_numpy(np.ascontiguousarray(points[part], np.float32)).to(device)
        h = field.trunk_at(HEAD, x)
        return torch.cat([h, torch.ones_like(h[:, :1])], 1), x

    return _factors(field, head, hidden, len(points), texts, chunk)


@torch.no_grad()
def composited_factors(
    field: Field, composited: torch.Tensor, points: torch.Tensor, texts: np.ndarray, chunk: int = 2048
) -> Factors:
    """The same of rays, by what `render` gives for the scale head, [R, hidden + 1], composited once for all scales; and
    the points [R, 3] where they end."""

    def hidden(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return composited[part], points[part]

    return _factors(field, scale_head_of(field), hidden, len(composited), texts, chunk)


def _factors(
    field: Field, head: ScaleHead, hidden: Callable[[slice], tuple[torch.Tensor, torch.Tensor]], count: int,
    texts: np.ndarray, chunk: int,
) -> Factors:  # fmt: skip
    known = head.known()
    assert known is not None
    # what no place was taught need not be worked out; two knots there must be
    first = min(known[0], len(head.config.knots_m) - 2)
    last = max(known[1], first + 1)
    affines = head.affines()[first : last + 1]
    device = affines.device
    t = torch.from_numpy(np.ascontiguousarray(texts, np.float32)).to(device)
    if t.shape[1] != affines.shape[1]:
        raise QueryError(f"texts have {t.shape[1]} dimensions, the pyramid's features {affines.shape[1]}")
    knots, width = len(affines), affines.shape[2]
    projected = torch.einsum("kdh,td->hkt", affines, t).reshape(width, -1)
    # h^T (A_j^T A_k) h for j = k and j = k + 1, as one product for all: [H + 1, (2 K - 1) (H + 1)]
    squares = torch.einsum("kdh,kdi->khi", affines, affines)
    crossed = torch.einsum("kdh,kdi->khi", affines[:-1], affines[1:])
    gram = torch.cat([squares, crossed]).permute(1, 0, 2).reshape(width, -1)
    chunk = chunk if device.type == "cpu" else 64 * chunk  # what fits a processor's cache keeps no GPU busy
    products, forms = torch.empty(count, knots, len(t)), torch.empty(count, 2 * knots - 1)
    between = torch.empty(count, 2, dtype=torch.int64)
    for start in range(0, count, chunk):
        part = slice(start, min(start + chunk, count))
        h, x = hidden(part)
        products[part] = (h @ projected).view(len(h), knots, -1).cpu()
        forms[part] = ((h @ gram).view(len(h), -1, width) * h[:, None]).sum(-1).cpu()
        between[part] = head.range_at(field.workspace.to_unit(x)).cpu()
    log_knots = head.get_buffer("log_knots").cpu()
    taught = log_knots[between].clamp(log_knots[first], log_knots[last])
    return Factors(products, forms[:, :knots], forms[:, knots:], log_knots[first : last + 1], taught)


@dataclass(frozen=True)
class ScaleScores:
    """N points against Q prompts, each prompt at its scale.

    Attributes:
        scores: as `query.scores.Scores`, all from the field. scale_m: [Q] the scale that was chosen.
        peaks: [Q, S] the highest relevancy (or cosine) anywhere at each of scales_m [S].
    """

    scores: Scores
    scale_m: np.ndarray
    peaks: np.ndarray
    scales_m: np.ndarray


def searched_scales(field: Field, count: int = COUNT) -> np.ndarray:
    """`count` scales [m], evenly in the logarithm, over those that the field has been trained at."""
    found = scale_head_of(field).range_m()
    assert found is not None
    return np.geomspace(*found, count)


def score_scales(
    snapshot: Snapshot,
    texts: EncodedPrompts,
    points: np.ndarray | None = None,
    *,
    scales_m: Sequence[float] | np.ndarray | None = None,
    temperature: float = 10.0,
    score: str = "relevancy",
    evidence: int = 1,
) -> ScaleScores:
    """Each prompt at points [N, 3] (None = the map's own) at the scale where it is most relevant anywhere among them.

    Places vote for the scales that they were taught at, and are asked at the nearest of those; where none was taught,
    nothing is known. One pass of the trunk whatever the number of scales S; O(N S T) multiplications besides.

    Args:
        texts: of the encoder whose image tower saw the crops. scales_m: [S] to search, or one for a fixed scale; None =
            `COUNT` over what was trained (LERF's own: LERF_SCALES_M).
        score: relevancy, or cosine, which needs no negatives.
        evidence: a scale is rated by the mean of so many best points; 1 = by the best one alone (LERF).

    Raises:
        QueryError: no scales were learnt yet, unusable points or scales, or relevancy without negatives.
    """
    if score not in ("relevancy", "cosine"):
        raise QueryError(f"score is {score!r}; allowed: relevancy, cosine")
    if score == "relevancy" and not len(texts.negatives):
        raise QueryError("relevancy needs at least one negative; give some or ask for raw cosines (score='cosine')")
    if evidence < 1:
        raise QueryError(f"evidence is {evidence}; allowed: >= 1 points")
    points = None if points is None else checked(points)
    vectors = np.concatenate([texts.positives, texts.negatives])
    count, synonyms = len(texts.prompts), len(texts.positives)
    total = len(snapshot.cloud) if points is None else len(points)
    parts = [(rows, factors(field, at, vectors), field) for field, at, rows in _asked(snapshot, points)]
    if not parts:
        scale_head_of(snapshot.field)  # says why, where there is no map or no pyramid yet
        scales = np.array([], np.float64) if scales_m is None else _usable(scales_m)
        none = np.zeros((total, count), np.float32)
        unseen = np.zeros(total, bool)
        return ScaleScores(Scores(none, none.copy(), unseen, unseen), np.full(count, np.nan),
                           np.zeros((count, len(scales)), np.float32), scales)  # fmt: skip
    scales = searched_scales(parts[0][2]) if scales_m is None else _usable(scales_m)

    def at_scale(found: Factors, scale_m: float) -> tuple[np.ndarray, np.ndarray]:
        cosine = found.cosines(scale_m)
        positive, negative = cosine[:, :synonyms], cosine[:, synonyms:]
        if not negative.shape[1]:
            return best_synonym(positive, texts.owner, count), np.full((len(positive), count), np.nan, np.float32)
        relevancy = pairwise_relevancy(positive, negative, temperature)
        return best_synonym(positive, texts.owner, count), best_synonym(relevancy, texts.owner, count)

    which = 1 if score == "relevancy" else 0
    peaks = np.full((count, len(scales)), -np.inf, np.float32)
    for s, scale_m in enumerate(scales.tolist()):
        values = np.concatenate([at_scale(found, scale_m)[which][found.knows(scale_m)] for _, found, _ in parts])
        peaks[:, s] = [peak(column, evidence) for column in values.T]
    best = peaks.argmax(1)
    cosine = np.zeros((total, count), np.float32)
    relevancy = np.full((total, count), 0.0 if len(texts.negatives) else np.nan, np.float32)
    seen = np.zeros(total, bool)
    for rows, found, _ in parts:
        known = found.known
        seen[rows[known]] = True
        for s in np.unique(best):
            at = np.ix_(rows[known], np.flatnonzero(best == s))
            c, r = at_scale(found, float(scales[s]))
            cosine[at], relevancy[at] = c[known][:, best == s], r[known][:, best == s]
    return ScaleScores(Scores(cosine, relevancy, seen, seen.copy()), scales[best], peaks, scales)


def _usable(scales_m: Sequence[float] | np.ndarray) -> np.ndarray:
    scales = np.atleast_1d(np.asarray(scales_m, np.float64))
    if scales.ndim != 1 or not len(scales) or not np.isfinite(scales).all() or (scales < 0).any():
        raise QueryError(f"scales_m are {scales_m!r}; allowed: one or more finite numbers >= 0 [m]")
    return scales


def _asked(snapshot: Snapshot, points: np.ndarray | None) -> Iterator[tuple[Field, np.ndarray, np.ndarray]]:
    """By block of the map: its field, the points [n, 3] that it is asked about and knows, and their rows."""
    if isinstance(snapshot, WorldSnapshot):
        if points is None:
            numbered = [
                (k, np.arange(snapshot.offsets[k], snapshot.offsets[k + 1])) for k in range(len(snapshot.parts))
            ]
        else:
            numbered = list(snapshot.split(snapshot.rows_of(points)))
        for number, mine in numbered:
            block = snapshot.parts[number].read()
            if block is None or not block.learnt.get(HEAD, 0):
                continue
            for field, at, rows in _asked(block, None if points is None else points[mine]):
                yield field, at, mine[rows]
        return
    if not snapshot.learnt.get(HEAD, 0):
        return
    assert snapshot.field is not None
    if points is None:
        rows = np.flatnonzero(snapshot.measured)
        yield snapshot.field, snapshot.cloud.points[rows], rows
        return
    known = snapshot.rows_of(points)
    rows = np.flatnonzero(known >= 0)
    rows = rows[snapshot.measured[known[rows]]]
    yield snapshot.field, points[rows], rows
