"""Retrieval by word, picture and click: does the best point of all lie in the right object?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

if TYPE_CHECKING:
    from ..encoders.base import Encoder
    from ..evaluation.labelled_points import LabelledPoints, Thing
    from ..frame import Frame
    from ..query.prompt import EncodedPrompts, PromptEncoder

CLICK_M = 0.03
"""A click is the mean feature of the surface this near."""


def retrieved(
    scene: LabelledPoints,
    texts: PromptEncoder,
    encoder: Encoder,
    cosine: Callable[[EncodedPrompts], np.ndarray],
    clicked: Callable[[np.ndarray], EncodedPrompts],
) -> dict[str, dict[str, float]]:
    """Way of asking -> share of objects found ("right"), and of the smallest third of them ("rare").

    A word is right for whatever it names; a picture and a click ask for the very object, or one just like it.

    Args:
        cosine: a prompt to cosines [N] of the scene's points, -inf where nothing is known.
        clicked: a point [3] to a prompt.
    """
    from ..errors import QueryError
    from ..query.image import prompts_of_image

    def prompt(way: str, thing: Thing) -> EncodedPrompts:
        if way == "word":
            return texts.encode([thing.names[0]], [])
        if way == "click":
            return clicked(top_of(scene, thing))
        frame, box = best_look(scene, thing.instance)
        return prompts_of_image(encoder, frame.rgb, box)

    hits: dict[str, list[bool]] = {"word": [], "picture": [], "click": []}
    for way, each in hits.items():
        for thing in scene.things:
            alike = [t.names == thing.names or (way == "word" and thing.names[0] in t.names) for t in scene.things]
            right = [t for t, same in zip(scene.things, alike) if same]
            try:
                point = scene.points[cosine(prompt(way, thing)).argmax()]
            except QueryError:  # nothing is known of it
                each.append(False)
            else:
                each.append(any(t.holds(point) for t in right))
    volume = np.array([np.prod(thing.half_extents_m) for thing in scene.things])
    rare = volume <= np.quantile(volume, 1 / 3)
    return {
        way: {"right": float(np.mean(each)), "rare": float(np.mean(np.array(each)[rare]))}
        for way, each in hits.items()
    }  # fmt: skip


def show_retrieval(console: Console, rows: Mapping[str, Mapping[str, float]]) -> None:
    """A table of those rows that are of retrieval, where there are any."""
    from ..benchmarks.report import show_table

    asked = [[name, row["right"], row["rare"]] for name, row in rows.items() if "right" in row]
    if asked:
        title = "retrieval: the best point lies in the right object"
        show_table(console, title, ["asked by", "all objects", "smallest third"], asked)


def best_look(scene: LabelledPoints, instance: int) -> tuple[Frame, tuple[int, int, int, int]]:
    """The frame that shows most of an instance, and its box there."""
    from ..encoders.boxes import boxes_of

    def shown(frame: Frame) -> np.ndarray:
        return np.zeros(frame.depth_m.shape, bool) if frame.instance is None else frame.instance == instance

    frame = max(scene.frames, key=lambda f: int(shown(f).sum()))
    left, top, right, bottom = boxes_of(shown(frame)[None])[0].tolist()
    return frame, (left, top, right, bottom)


def top_of(scene: LabelledPoints, thing: Thing) -> np.ndarray:
    """The highest of the points in a thing's box: where one clicks on it."""
    inside = np.array([thing.holds(point, 0.0) for point in scene.points])
    own = scene.points[inside] if inside.any() else thing.T_world_box[:3, 3][None]
    return np.asarray(own[own[:, 2].argmax()], np.float64)
