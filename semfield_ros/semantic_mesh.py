"""The field's surface as a mesh of classes: Semantic-NeRF's output for other programs (Zhi et al. 2021).

The surface is the zero of the signed distance, where a ray that looks along the normal is half opaque; small pieces are
dropped as they do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import QueryError
from .export import field_mesh
from .field.snapshot import Snapshot
from .query.semantics import semantics_at

LEAST_TRIANGLES = 400
"""Pieces of surface with fewer triangles are dropped."""


@dataclass(frozen=True)
class SemanticMesh:
    """Triangles with a class at each vertex.

    Attributes:
        vertices: [V, 3] float32 in global_frame, metres. faces: [F, 3] int32, counter-clockwise from outside.
        rgb: [V, 3] uint8, as seen along the normal. label: [V] int32, 0 = unknown.
    """

    vertices: np.ndarray
    faces: np.ndarray
    rgb: np.ndarray
    label: np.ndarray


def large_parts(faces: np.ndarray, vertices: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Without the connected parts of fewer than `least` triangles: faces [G, 3] of the vertices that are left, and
    which those are [W]."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    a, b = faces[:, [0, 1]].T
    b2 = faces[:, 2]
    rows, columns = np.concatenate([a, b]), np.concatenate([b, b2])
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(vertices, vertices))
    _, part = connected_components(graph, directed=False)
    triangles = np.bincount(part[faces[:, 0]], minlength=part.max() + 1 if vertices else 0)
    kept_faces = faces[triangles[part[faces[:, 0]]] >= least]
    used = np.unique(kept_faces)
    return np.searchsorted(used, kept_faces).astype(np.int32).reshape(-1, 3), used


def semantic_mesh(
    snapshot: Snapshot, resolution_m: float = 0.01, least_triangles: int = LEAST_TRIANGLES
) -> SemanticMesh:
    """The surface of a map with the class of each vertex.

    Raises:
        QueryError: no surface yet, no piece of that size, the grid would be too large, or the map learns no labels.
    """
    if least_triangles < 0:
        raise QueryError(f"least_triangles is {least_triangles}; allowed: >= 0")
    vertices, faces, rgb = field_mesh(snapshot, resolution_m)
    faces, used = large_parts(faces, len(vertices), least_triangles)
    if not len(faces):
        raise QueryError(f"no piece of surface has {least_triangles} triangles; ask for fewer, or a finer resolution")
    vertices, rgb = vertices[used], rgb[used]
    return SemanticMesh(vertices, faces, rgb, semantics_at(snapshot, vertices).label)
