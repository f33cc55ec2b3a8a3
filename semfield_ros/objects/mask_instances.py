"""Instances of anything at all, with features to ask them by: the masks a map has collected, as things in space.

OpenMask3D (Takmaz et al., NeurIPS 2023) over a mask graph: `find_instances` makes the instances from a snapshot's masks
(`mask_graph`), chooses the views that show each best (`mask_views`) and describes it by crops of those
(`encoders.crops`); `ask` compares the descriptions with words. Pure functions of a snapshot: the map goes on beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..cloud import SurfaceCloud
from ..config import MaskConfig
from ..encoders.base import Encoder
from ..encoders.boxes import unit_rows
from ..encoders.crops import crop_features
from ..errors import QueryError
from ..field.snapshot import Snapshot
from ..memory.mask_store import MaskView
from ..query.prompt import PromptEncoder
from .mask_graph import MaskInstances, instances_from_masks
from .mask_islands import without_islands
from .mask_views import MaskIncidence, mask_incidence, top_views, visible_boxes

TEMPLATE = "a {} in a scene"


@dataclass(frozen=True)
class OpenInstances:
    """K instances in global_frame, the surest first; row k of everything is the same instance.

    Attributes:
        stamp_s: of the snapshot. cloud: its points, V. voxels: [K, V] bool csr; instances may overlap.
        score: [K] float32 in [0, 1), how well the views agree on it. views: [K] int32, views that show it in a mask.
        best_views: [K, k] int64, where it is seen best, as rows of `Snapshot.masks`; -1 = in no more views.
        features: [K, D] float32, unit, zero where nothing is known; None where no encoder was given.
        names: [K] what most of its masks were called by what made them, '' = nothing.
    """

    stamp_s: float
    cloud: SurfaceCloud
    voxels: sparse.csr_matrix
    score: np.ndarray
    views: np.ndarray
    best_views: np.ndarray
    features: np.ndarray | None
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.score)

    def rows(self, k: int) -> np.ndarray:
        """The rows of the cloud that instance k covers: [n] int32."""
        return np.asarray(self.voxels.indices[self.voxels.indptr[k] : self.voxels.indptr[k + 1]])


def find_instances(
    snapshot: Snapshot,
    encoder: Encoder | None = None,
    config: MaskConfig | None = None,
    *,
    by_name: bool = False,
) -> OpenInstances:
    """The instances that the masks of a snapshot's keyframes show. None is a normal answer.

    O(T V) for T views with masks and V voxels, and top_views x crop_levels crops an instance through the encoder.

    Args:
        encoder: describes instances; None = they get no features.
        by_name: describe instances by the text features of their masks' names instead of by crops, for encoders
            that have no image tower. What then answers is whoever named the masks, closed-set.
    """
    config = config or MaskConfig()
    found = incidence_of(snapshot, config)
    return described(snapshot, grouped(snapshot, found, config), found, encoder, config, by_name=by_name)


def incidence_of(snapshot: Snapshot, config: MaskConfig) -> MaskIncidence:
    """The masks of a snapshot over its points."""
    return mask_incidence(
        snapshot.masks, snapshot.cloud.points, tolerance_m=config.tolerance_voxels * snapshot.voxel_size_m,
        tolerance_relative=config.tolerance_relative,
    )  # fmt: skip


def grouped(snapshot: Snapshot, found: MaskIncidence, config: MaskConfig) -> MaskInstances:
    """Masks as instances, whose islands are left out."""
    return without_islands(
        instances_from_masks(found.incidence, found.visibility, found.view, config), snapshot.cloud.points,
        reach_m=config.island_voxels * snapshot.voxel_size_m, share=config.island_share,
    )  # fmt: skip


def described(
    snapshot: Snapshot,
    instances: MaskInstances,
    found: MaskIncidence,
    encoder: Encoder | None,
    config: MaskConfig,
    *,
    by_name: bool = False,
) -> OpenInstances:
    """Instances with their views, names and features: see `find_instances`."""
    views, points = snapshot.masks, snapshot.cloud.points
    looks = visible_boxes(
        instances.voxels, points, views, tolerance_m=config.view_tolerance_m, spacing_m=snapshot.voxel_size_m
    )
    best = top_views(looks.pixels, config.top_views)
    names = _names(views, found, instances.label, len(instances))
    if encoder is None:
        features = None
    elif by_name:
        features = _named_features(views, found, instances.label, len(instances), encoder)
    else:
        features = crop_features(
            encoder, len(instances), _looks(views, best, looks.boxes), config.crop_levels, config.crop_growth
        )
    return OpenInstances(
        snapshot.stamp_s, snapshot.cloud, instances.voxels, instances.score, instances.views, best, features, names
    )


def ask(
    instances: OpenInstances,
    texts: PromptEncoder,
    prompts: str | Sequence[str | Sequence[str]],
    template: str = TEMPLATE,
) -> np.ndarray:
    """Cosines [K, Q] float32 of instances with prompts (each text, "a; b" or a list of synonyms, of which the best
    counts), every text put into `template`. Instances without features get 0.

    Raises:
        QueryError: unusable prompts, a template without {}, or instances that were made without an encoder.
    """
    if instances.features is None:
        raise QueryError("these instances have no features; find them with an encoder")
    if "{}" not in template:
        raise QueryError(f"template is {template!r}; expected {{}} where the word goes, e.g. {TEMPLATE!r}")
    encoded = texts.encode(prompts, [])
    vectors = texts.vectors([template.format(s) for prompt in encoded.prompts for s in prompt.synonyms])
    cosine = instances.features @ vectors.T
    out = np.full((len(instances), len(encoded.prompts)), -np.inf, np.float32)
    for column, owner in enumerate(encoded.owner):
        out[:, owner] = np.maximum(out[:, owner], cosine[:, column])
    return out


def _looks(views: Sequence[MaskView], best: np.ndarray, boxes: np.ndarray) -> Iterator[tuple]:
    """View by view: how to read it, which instances are to be cropped from it, and their boxes."""
    for t, view in enumerate(views):
        things = np.flatnonzero((best == t).any(1))
        if len(things):
            yield view.rgb, things, boxes[things, t]


def _names(views: Sequence[MaskView], found: MaskIncidence, label: np.ndarray, count: int) -> tuple[str, ...]:
    """The name that the masks of each instance were given most, weighted by their confidence."""
    votes: list[dict[str, float]] = [{} for _ in range(count)]
    for mask in np.flatnonzero(label >= 0):
        view, number = views[found.view[mask]], int(found.number[mask])
        name = view.names[number]
        if name:
            own = votes[label[mask]]
            own[name] = own.get(name, 0.0) + float(view.confidence[number])
    return tuple(max(own, key=lambda name: own[name]) if own else "" for own in votes)


def _named_features(
    views: Sequence[MaskView], found: MaskIncidence, label: np.ndarray, count: int, encoder: Encoder
) -> np.ndarray:
    """Mean of the text features of masks' names, weighted by their confidence: [count, D], unit or zero."""
    total = np.zeros((count, encoder.dim), np.float32)
    known: dict[str, np.ndarray | None] = {"": None}
    for mask in np.flatnonzero(label >= 0):
        view, number = views[found.view[mask]], int(found.number[mask])
        name = view.names[number]
        if name not in known:
            try:
                known[name] = encoder.encode_text([name])[0]
            except QueryError:  # a name the encoder has no words for says nothing
                known[name] = None
        vector = known[name]
        if vector is not None:
            total[label[mask]] += vector * view.confidence[number]
    return unit_rows(total)
