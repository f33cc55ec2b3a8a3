"""Maps as files for other programs: what `~/export` writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..engine import Engine
from ..errors import QueryError
from ..export import field_mesh, write_mesh, write_ply
from ..field.snapshot import Snapshot
from ..openlex3d import write_openlex3d
from ..semantic_mesh import semantic_mesh
from .labelling import label_map
from .palette import class_colour, colour_labels


def writers(
    snapshot: Snapshot, engine: Engine, vocabulary: Sequence[str], resolution_m: float, *, overwrite: bool
) -> list[tuple[str, Callable[[Path], int]]]:
    """What there is to write, in the order of the kinds of Export.srv: suffix ('' = a folder), and what writes it to a
    path and says how many points or vertices there are."""
    return [
        (".ply", lambda path: write_cloud(path, snapshot, engine, overwrite=overwrite)),
        (".ply", lambda path: write_labelled_cloud(path, snapshot, engine, vocabulary, overwrite=overwrite)),
        (".ply", lambda path: write_field_mesh(path, snapshot, engine, resolution_m, overwrite=overwrite)),
        (".ply", lambda path: write_semantic_mesh(path, snapshot, engine, resolution_m, overwrite=overwrite)),
        ("", lambda path: write_openlex3d(path, snapshot, overwrite=overwrite)[0]),
    ]


def write_cloud(path: Path, snapshot: Snapshot, engine: Engine, *, overwrite: bool) -> int:
    """The point map with normals, colours and observations as PLY; returns the number of points.

    Raises:
        ConfigError: the path is taken.
    """
    cloud = snapshot.cloud
    write_ply(
        path, cloud.points, normals=cloud.normals, rgb=cloud.rgb, scalars={"observations": cloud.observations},
        comments=_comments(engine), overwrite=overwrite,
    )  # fmt: skip
    return len(cloud)


def write_labelled_cloud(
    path: Path, snapshot: Snapshot, engine: Engine, vocabulary: Sequence[str], *, overwrite: bool
) -> int:
    """The point map with label, instance and confidence as PLY, coloured by label; returns the number of points.

    Raises:
        QueryError: the vocabulary is empty. ConfigError: the path is taken.
    """
    if not vocabulary:
        raise QueryError("no vocabulary is set, so there are no labels; call ~/set_vocabulary first")
    classes = engine.prompts.encode(list(vocabulary))
    found = label_map(snapshot, classes, engine)
    names = [f"label {k} is {prompt.label}" for k, prompt in enumerate(classes.prompts)]
    write_ply(
        path, found.cloud.points, normals=found.cloud.normals, rgb=colour_labels(found.label),
        scalars={"label": found.label, "instance": found.instance, "confidence": found.confidence},
        comments=_comments(engine, "label -1 and instance 0 are none", *names), overwrite=overwrite,
    )  # fmt: skip
    return len(found.cloud)


def write_field_mesh(path: Path, snapshot: Snapshot, engine: Engine, resolution_m: float, *, overwrite: bool) -> int:
    """The field's surface as a coloured mesh, PLY; returns the number of vertices.

    Raises:
        QueryError: there is no surface yet, or the grid would be too large. ConfigError: the path is taken.
    """
    vertices, faces, rgb = field_mesh(snapshot, resolution_m)
    write_mesh(path, vertices, faces, rgb, comments=_comments(engine), overwrite=overwrite)
    return len(vertices)


def write_semantic_mesh(
    path: Path, snapshot: Snapshot, engine: Engine, resolution_m: float, *, overwrite: bool
) -> int:  # fmt: skip
    """The field's surface as a mesh coloured by class, PLY, whose comments name the colours; returns the number of
    vertices.

    Raises:
        QueryError: there is no surface yet, or the map learns no labels. ConfigError: the path is taken.
    """
    mesh = semantic_mesh(snapshot, resolution_m)
    names = engine.config.heads.class_names
    there = [int(k) for k in np.unique(mesh.label)]
    said = [
        f"{names[k - 1] if 0 < k <= len(names) else f'class {k}' if k else 'unknown'} is "
        + " ".join(map(str, class_colour(k - 1)))
        for k in there
    ]
    rgb = colour_labels(mesh.label - 1)
    write_mesh(path, mesh.vertices, mesh.faces, rgb, comments=_comments(engine, *said), overwrite=overwrite)
    return len(mesh.vertices)


def _comments(engine: Engine, *more: str) -> list[str]:
    return [f"frame {engine.config.global_frame}, metres", *more]
