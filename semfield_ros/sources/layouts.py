"""The layouts a directory of images can have, known by their files or named: "replica:PATH?split=train".

A layout is a module with LAYOUT (its name and files), PREFIXES, `recognises(directory)` and `shots(directory)`; where
it has them also LABELS (names of its label sets, an argument of `shots` and `class_names`), `class_names(directory)`
and `split(directory)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ..errors import SourceError
from .recording import Shot

# more particular ones before those whose files they also have
_LAYOUTS = ("seven_scenes", "tum", "replica", "panoptic_lifting", "scannet", "nerfstudio")
_BAG = "a bag of rosbag2: metadata.yaml with .mcap or .db3"


@dataclass(frozen=True)
class Listing:
    """What a directory holds: its name, its frames in order, and the names of their semantic ids, void first."""

    name: str
    shots: Sequence[Shot]
    class_names: tuple[str, ...]


def directory_listing(uri: str) -> Listing:
    """The directory `uri` names: [LAYOUT:]PATH[?split=train|test&labels=NAME].

    Raises:
        SourceError: there is no such directory, layout, split or label set, or the layout is malformed.
    """
    layouts = [import_module(f"{__package__}.{name}") for name in _LAYOUTS]
    named = {prefix: layout for layout in layouts for prefix in layout.PREFIXES}
    prefix, colon, rest = uri.partition(":")
    path, options = _options(rest if colon and prefix in named else uri)
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise SourceError(
            f"source {uri!r} is no directory; allowed: simulator, simulator:SEED, building:SEED?rooms=N, "
            f"a directory, {', '.join(f'{name}:DIRECTORY' for name in named)}, bag:PATH, or a .mcap or .db3 file"
        )
    candidates = [named[prefix]] if colon and prefix in named else layouts
    layout = next((layout for layout in candidates if layout.recognises(directory)), None)
    if layout is None:
        known = "\n".join(f"  - {name}" for name in [*(layout.LAYOUT for layout in candidates), _BAG])
        raise SourceError(f"{directory} has none of the known layouts. Looked for:\n{known}")
    labels = _labels(layout, options.get("labels"))
    shots = layout.shots(directory, **labels)
    if "split" in options:
        shots = [shots[i] for i in _part(layout, directory, options["split"])]
    names = layout.class_names(directory, **labels) if hasattr(layout, "class_names") else ()
    return Listing(directory.resolve().name, shots, names)


def _options(uri: str) -> tuple[str, dict[str, str]]:
    """Path and options of PATH[?split=...&labels=...]; a path that exists as it stands has none."""
    path, mark, query = uri.partition("?")
    if not mark or Path(uri).expanduser().exists():
        return uri, {}
    pairs = [pair.partition("=") for pair in query.split("&")]
    if any(key not in ("split", "labels") or not value for key, _, value in pairs):
        raise SourceError(f"source {uri!r} has options {query!r}; allowed: split=train|test and labels=NAME")
    return path, {key: value for key, _, value in pairs}


def _labels(layout: ModuleType, wanted: str | None) -> dict[str, str]:
    """The argument that chooses among a layout's label sets, where it has several."""
    known = getattr(layout, "LABELS", ())
    if wanted is not None and wanted not in known:
        allowed = ", ".join(known) if known else "no choice in this layout; leave the option out"
        raise SourceError(f"labels={wanted} is not known to {layout.LAYOUT.partition(':')[0]}; allowed: {allowed}")
    return {} if wanted is None else {"labels": wanted}


def _part(layout: ModuleType, directory: Path, wanted: str) -> tuple[int, ...]:
    """Positions of the frames of one part of a layout's split."""
    if wanted not in ("train", "test"):
        raise SourceError(f"split={wanted}; allowed: train, test")
    if not hasattr(layout, "split"):
        name = layout.LAYOUT.partition(":")[0]
        raise SourceError(f"{name} has no split; use stride and start instead of split={wanted}")
    part: tuple[int, ...] = getattr(layout.split(directory), wanted)
    if not part:
        raise SourceError(f"{directory} has no frames for split={wanted}")
    return part
