"""The layout of Panoptic Lifting (Siddiqui et al. 2023): posed images beside machine-made panoptic labels.

color/STEM.jpg, depth/STEM.png (uint16 millimetres; scenes without depth are refused), pose/STEM.txt (T_world_camera,
OpenCV axes, metres), intrinsic/intrinsic_color.txt [and intrinsic_depth.txt], splits.json ({"train": [...], "test":
[...]} of stems). Stems are sorted by the numbers in them. Predictions of a 2-D panoptic model, ids anew in every image:
    m2f_semantics/STEM.png      class ids, 0 = void                 -> Frame.semantic
    m2f_instance/STEM.png       instances of things, 0 = stuff      -> Frame.instance; ids disagree between images
    m2f_segments/STEM.png       segments of things and stuff        -> Frame.segments, numbered from 1 in each image
    m2f_probabilities/STEM.npz  probability [h, w, C] (see `predictions`), confidence [h, w] -> mean score of a segment
    m2f_invalid/STEM.png        255 where the model found nothing   -> no label
    invalid/STEM.jpg            not 0 outside an undistorted image  -> no depth and no label
`labels=notta` reads m2f_notta_* (predictions without test-time augmentation), `labels=truth` rs_semantics and
rs_instance, the dataset's own annotation. segmentation_data.pkl is not read: a pickle may run any program. The layout
has no stamps: frames are laid out at 10 Hz.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import FrameRejected, Reason, SourceError
from ..frame import Segments
from .images import read_colour, read_raw
from .posed_folder import Split, images, read_ids_if_any, read_matrix, read_pose, registered
from .recording import Shot

LAYOUT = "Panoptic Lifting: color/, depth/, pose/ and intrinsic/ with m2f_semantics/ or rs_semantics/"
PREFIXES = ("panoptic", "panoptic_lifting")
LABELS = ("m2f", "notta", "truth")
REDUCED = (
    "void", "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "counter", "shelves",
    "curtain", "ceiling", "refrigerator", "television", "person", "toilet", "sink", "lamp", "bag", "other prop",
)  # fmt: skip
"""Names by semantic id of the 21 classes of the ScanNet, Replica and HyperSim scenes."""
EXTENDED = (
    *REDUCED[:-1], "bottle", "cup", "keyboard", "mouse", "book", "laptop", "blanket", "pillow", "clock", "cellphone",
    "other prop",
)  # fmt: skip
"""Names by semantic id of the 31 classes of self-captured scenes."""
_THINGS = frozenset((
    "bed", "chair", "sofa", "table", "refrigerator", "television", "person", "toilet", "sink", "bag", "bottle", "cup",
    "keyboard", "mouse", "book", "laptop", "pillow", "cellphone",
))  # fmt: skip
_RATE_HZ = 10.0
_FOLDERS = {
    "m2f": ("m2f_semantics", "m2f_instance"),
    "notta": ("m2f_notta_semantics", "m2f_notta_instance"),
    "truth": ("rs_semantics", "rs_instance"),
}
_TEST_EVERY = 5


def recognises(directory: Path) -> bool:
    """Whether the directory holds this layout."""
    posed = all((directory / name).is_dir() for name in ("color", "pose", "intrinsic"))
    return posed and any((directory / semantics).is_dir() for semantics, _ in _FOLDERS.values())


def shots(directory: Path, labels: str = LABELS[0]) -> list[Shot]:
    """Every frame in order.

    Raises:
        SourceError: depth, intrinsics or the labels asked for are missing or unreadable.
    """
    for folder in ("depth", _FOLDERS[labels][0]):
        if not (directory / folder).is_dir():
            raise SourceError(
                f"{directory} has no {folder}/; needed are depth images, and the folder of the labels asked for "
                f"(labels={'|'.join(LABELS)})"
            )
    matrices = [m for m in (read_matrix(directory / "intrinsic" / f"intrinsic_{which}.txt")
                            for which in ("depth", "color")) if m is not None]  # fmt: skip
    if not matrices:
        raise SourceError(f"{directory} has no intrinsics; looked for intrinsic/intrinsic_color.txt")
    names = class_names(directory)
    colours = images(directory / "color").values()
    return [
        Shot(i / _RATE_HZ, partial(_load, directory, colour, labels, matrices, names))
        for i, colour in enumerate(colours)
    ]


def class_names(directory: Path, labels: str = LABELS[0]) -> tuple[str, ...]:
    """Names by semantic id, the first being void: as many classes as the predicted probabilities have.

    Without predictions the 21 classes of the published ScanNet and Replica scenes.
    """
    for path in sorted((directory / "m2f_probabilities").glob("*.npz"))[:1]:
        try:
            with np.load(path, allow_pickle=False) as file:
                count = file["probability"].shape[-1]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            break  # torn: frames say so when they are read
        # the published networks predict every class beside void, or void too
        known = next((names for names in (REDUCED, EXTENDED) if count in (len(names), len(names) - 1)), None)
        return known or ("void", *(f"class {k}" for k in range(1, count)))
    return REDUCED


def things(names: tuple[str, ...]) -> np.ndarray:
    """[classes] bool: which of the classes of this layout are things, counted; the others are stuff."""
    return np.array([name in _THINGS for name in names])


def split(directory: Path) -> Split:
    """The frames splits.json names; without it every fifth tests, as the authors split ScanNet."""
    stems = list(images(directory / "color"))
    path = directory / "splits.json"
    if not path.exists():
        test = tuple(range(0, len(stems), _TEST_EVERY))
        return Split(tuple(i for i in range(len(stems)) if i not in test), test)
    at = {stem: i for i, stem in enumerate(stems)}
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        train, test = splits["train"], splits.get("test", splits.get("val", []))
        return Split(tuple(sorted(at[str(s)] for s in train)), tuple(sorted(at[str(s)] for s in test)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(
            f'{path} is not {{"train": [...], "test": [...]}} of names of images in color/: {error!r}'
        ) from error


def predictions(directory: Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
    """Of one image the class probabilities [h, w, C] and confidence [h, w], float32, as the 2-D model gave them.

    Raises:
        FrameRejected: TARGET_TYPE, when they are missing or torn.
    """
    values = dict(_arrays(directory / "m2f_probabilities" / f"{stem}.npz", "probability", "confidence"))
    return values["probability"].astype(np.float32), values["confidence"].astype(np.float32)


def _arrays(path: Path, *names: str) -> Iterator[tuple[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in names:
                yield name, file[name]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise FrameRejected(Reason.TARGET_TYPE, f"cannot read {', '.join(names)} of {path.name}: {error}") from error


def _load(
    directory: Path, colour: Path, labels: str, matrices: list[np.ndarray], names: tuple[str, ...]
) -> dict[str, Any]:
    stem = colour.stem
    rgb = read_colour(colour)
    depth = read_raw(directory / "depth" / f"{stem}.png", Reason.DEPTH_TYPE)
    semantic, instance = (read_ids_if_any(directory / folder / f"{stem}.png") for folder in _FOLDERS[labels])
    segments = read_ids_if_any(directory / "m2f_segments" / f"{stem}.png") if labels == "m2f" else None
    if semantic is not None and labels != "truth":
        empty = read_ids_if_any(directory / "m2f_invalid" / f"{stem}.png")
        semantic = _without(semantic, empty)
    outside = _outside(directory / "invalid" / f"{stem}.jpg")
    if outside is not None:
        semantic, instance, segments = (
            ids if ids is None else _without(ids, outside) for ids in (semantic, instance, segments)
        )
        depth = _without(depth, _resized(outside, depth.shape))
    arguments = registered(
        rgb, depth, {"semantic": semantic, "instance": instance, "segment": segments}, matrices
    )
    listed, classes = arguments.pop("segment"), arguments["semantic"]
    if isinstance(listed, np.ndarray) and isinstance(classes, np.ndarray):
        if listed.shape != classes.shape:
            raise FrameRejected(
                Reason.TARGET_TYPE, f"segments of {stem} have shape {listed.shape}, classes {classes.shape}"
            )
        arguments["segments"] = _segments(directory, stem, listed, classes, names)
    return {**arguments, "T_world_camera": read_pose(directory / "pose" / f"{stem}.txt")}


def _segments(directory: Path, stem: str, raw: np.ndarray, semantic: np.ndarray, names: tuple[str, ...]) -> Segments:
    """Segments numbered from 1, named by the class most of their pixels have, with their mean confidence."""
    values, ids = np.unique(raw, return_inverse=True)
    ids = ids.reshape(raw.shape) + (0 if values[0] == 0 else 1)
    count = int(ids.max())
    classes = int(semantic.max()) + 1
    votes = np.bincount((ids * classes + semantic).reshape(-1), minlength=(count + 1) * classes)
    winners = votes[: (count + 1) * classes].reshape(-1, classes).argmax(1)
    named = {k: names[winners[k]] if winners[k] < len(names) else f"class {winners[k]}" for k in range(1, count + 1)}
    path = directory / "m2f_probabilities" / f"{stem}.npz"
    if not path.is_file():
        return Segments(ids.astype(np.int32), named)
    (_, confidence), = _arrays(path, "confidence")  # fmt: skip
    confidence = cv2.resize(confidence.astype(np.float32), raw.shape[::-1], interpolation=cv2.INTER_LINEAR)
    sums = np.bincount(ids.reshape(-1), weights=confidence.reshape(-1), minlength=count + 1)
    means = np.clip(sums / np.maximum(np.bincount(ids.reshape(-1), minlength=count + 1), 1), 0.0, 1.0)
    return Segments(ids.astype(np.int32), named, {k: float(means[k]) for k in range(1, count + 1)})


def _outside(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    image = read_raw(path, Reason.TARGET_TYPE)
    return (image if image.ndim == 2 else image[..., 0]) > 127


def _resized(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8), (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST) > 0


def _without(ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Ids with 0 where the mask is not 0; as they are where the two have different sizes."""
    if mask is None or mask.shape != ids.shape:
        return ids
    return np.where(mask > 0, ids.dtype.type(0), ids)
