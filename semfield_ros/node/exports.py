"""Maps as files for other programs: what `~/export` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..engine import Engine
from ..errors import QueryError
from ..export import field_mesh, write_mesh, write_ply
from ..field.snapshot import Snapshot
from .labelling import label_map
from .palette import colour_labels


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


def _comments(engine: Engine, *more: str) -> list[str]:
    return [f"frame {engine.config.global_frame}, metres", *more]
