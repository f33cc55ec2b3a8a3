"""ScanNet (Dai et al. 2017) as its exporter unpacks a .sens file, with 2-D labels beside it.

color/N.jpg, depth/N.png (uint16 millimetres), pose/N.txt (T_world_camera, OpenCV axes, metres; -inf where tracking was
lost: those frames are counted and left out), intrinsic/intrinsic_color.txt and intrinsic_depth.txt, all in the folder
itself or in frames/ (NICE-SLAM) or renders/ (Semantic-NeRF; intrinsics then from SCENE.txt). Labels: label-filt/N.png
(uint16 ids of scannetv2-labels) and instance-filt/N.png, there or in SCENE_2d-label-filt/ and SCENE_2d-instance-filt/
as the archives unpack; 0 = none. Frames come on the grid of depth. Without stamps, frame N was taken at N / 30 s.

Semantic ids are mapped, by a table of ids kept with this module, to one of `LABELS`:
    nyu40       NYU40 ids, 1 to 40
    nyu13       NYU13 ids of Eigen and Fergus, 1 to 13
    scannet20   the benchmark's 20 classes, numbered 1 to 20 in its order
    scannet200  the 200 classes of Rozenberszki et al. 2022, numbered 1 to 200 in its order
"""

from __future__ import annotations

import csv
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FrameRejected, Reason, SourceError
from .images import read_colour, read_raw
from .posed_folder import Split, every, images, numbers, read_ids_if_any, read_matrix, read_pose, registered
from .recording import Shot

LAYOUT = "ScanNet: color/, depth/ and pose/ with intrinsic/ (here, in frames/ or in renders/)"
PREFIXES = ("scannet",)
LABELS = ("nyu40", "nyu13", "scannet20", "scannet200")
NYU40 = (
    "void", "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling",
    "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person",
    "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture", "other prop",
)  # fmt: skip
NYU13 = (
    "void", "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table",
    "television", "wall", "window",
)  # fmt: skip
SCANNET20 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)
"""NYU40 ids of the benchmark's classes, in its order."""
_RATE_HZ = 30.0
_STEP, _OFFSET = 100, 50


def recognises(directory: Path) -> bool:
    """Whether the directory holds this layout."""
    return _frames(directory) is not None


def shots(directory: Path, labels: str = LABELS[0]) -> list[Shot]:
    """Every frame in order.

    Raises:
        SourceError: intrinsics are missing or unreadable.
    """
    root = _frames(directory)
    if root is None:
        return []
    matrices = [m for m in (read_matrix(root / "intrinsic" / f"intrinsic_{which}.txt") for which in ("depth", "color"))
                if m is not None] or _scene_matrices(directory)  # fmt: skip
    folders = {kind: _labels(directory, root, kind) for kind in ("label-filt", "instance-filt")}
    table = _table()[labels]
    return [
        Shot(numbers(stem)[-1] / _RATE_HZ, partial(_load, root, colour, folders, matrices, table))
        for stem, colour in _colours(root).items()
    ]


def class_names(directory: Path, labels: str = LABELS[0]) -> tuple[str, ...]:
    """Names by semantic id, the first being void; empty where the recording has no labels."""
    root = _frames(directory)
    if root is None or _labels(directory, root, "label-filt") is None:
        return ()
    if labels == "scannet20":
        return ("void", *(NYU40[k] for k in SCANNET20))
    if labels == "scannet200":
        return ("void", *(row["scannet200"] for row in _rows() if row["scannet200"]))
    return NYU13 if labels == "nyu13" else NYU40


def split(directory: Path) -> Split:
    """Every 100th of the frames with a pose trains, the 50th after it tests (Zhi et al. 2021)."""
    root = _frames(directory)
    posed = []
    for i, stem in enumerate(_colours(root) if root else ()):
        try:
            if root is not None and np.isfinite(read_pose(root / "pose" / f"{stem}.txt")).all():
                posed.append(i)
        except FrameRejected:
            continue  # it is counted when it is read
    chosen = every(len(posed), _STEP, _OFFSET)
    return Split(tuple(posed[i] for i in chosen.train), tuple(posed[i] for i in chosen.test))


def mapped(ids: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Ids [H, W] of scannetv2-labels in another set of classes; ids that the table does not know become 0."""
    return table[np.where(ids < len(table), ids, 0)]


def _load(
    root: Path, colour: Path, folders: dict[str, Path | None], matrices: list[np.ndarray], table: np.ndarray
) -> dict[str, Any]:
    rgb = read_colour(colour)
    depth = read_raw(root / "depth" / f"{colour.stem}.png", Reason.DEPTH_TYPE)
    ids = {kind: read_ids_if_any(folder / f"{colour.stem}.png") if folder else None for kind, folder in folders.items()}
    raw = ids["label-filt"]
    labels = {"semantic": None if raw is None else mapped(raw, table), "instance": ids["instance-filt"]}
    arguments = registered(rgb, depth, labels, matrices)
    return {**arguments, "T_world_camera": read_pose(root / "pose" / f"{colour.stem}.txt")}


def _frames(directory: Path) -> Path | None:
    """Where color/, depth/ and pose/ lie."""
    for root in (directory, directory / "frames", directory / "renders"):
        if all((root / name).is_dir() for name in ("color", "depth", "pose")):
            return root
    return None


def _colours(root: Path) -> dict[str, Path]:
    return {stem: path for stem, path in images(root / "color").items() if numbers(stem)}


def _labels(directory: Path, root: Path, kind: str) -> Path | None:
    places = (root / kind, directory / kind, directory / f"{directory.resolve().name}_2d-{kind}" / kind)
    return next((place for place in places if place.is_dir()), None)


def _scene_matrices(directory: Path) -> list[np.ndarray]:
    """Intrinsic matrices of depth and colour from SCENE.txt, lines of `key = value`."""
    path = directory / f"{directory.resolve().name}.txt"
    if not path.is_file():
        raise SourceError(
            f"{directory} has no intrinsics; looked for intrinsic/intrinsic_depth.txt, intrinsic/intrinsic_color.txt "
            f"and {path.name}"
        )
    pairs = [line.partition("=") for line in path.read_text(encoding="utf-8").splitlines()]
    values = {key.strip(): value.strip() for key, _, value in pairs}
    matrices = []
    try:
        for which in ("depth", "color"):
            fx, fy, cx, cy = (float(values[f"{key}_{which}"]) for key in ("fx", "fy", "mx", "my"))
            matrices.append(np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]))
    except (KeyError, ValueError) as error:
        raise SourceError(f"{path} has no fx, fy, mx, my of depth and color in numbers: {error!r}") from error
    return matrices


@lru_cache(maxsize=1)
def _rows() -> list[dict[str, str]]:
    path = Path(__file__).with_name("scannet_labels.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@lru_cache(maxsize=1)
def _table() -> dict[str, np.ndarray]:
    """For each of LABELS the class by id of scannetv2-labels, [ids] int32."""
    rows = _rows()
    tables = {name: np.zeros(max(int(row["id"]) for row in rows) + 1, np.int32) for name in LABELS}
    fine = 0
    for row in rows:
        k, nyu40 = int(row["id"]), int(row["nyu40"])
        tables["nyu40"][k], tables["nyu13"][k] = nyu40, int(row["nyu13"])
        tables["scannet20"][k] = SCANNET20.index(nyu40) + 1 if nyu40 in SCANNET20 else 0
        if row["scannet200"]:
            fine += 1
            tables["scannet200"][k] = fine
    return tables
