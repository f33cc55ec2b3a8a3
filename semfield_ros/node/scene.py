"""~/edit: a scene beside the map in which instances are gone, moved or doubled; the map stays as it is."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..errors import QueryError
from ..field.snapshot import Snapshot
from ..geometry import Camera
from ..messages.clouds import to_cloud
from ..messages.images import encode_colour, encode_depth, encode_labels
from ..messages.poses import matrix_of
from ..objects.editing import EditedScene
from .instances import InstanceBook

ACTIONS = ("delete", "move", "duplicate", "extract", "reset")
"""In the order of their numbers in Edit.srv."""


class Scene:
    """The changes so far. Thread-safe."""

    def __init__(self, book: InstanceBook):
        self._book = book
        self._scene: EditedScene | None = None
        self._lock = threading.Lock()

    def edit(self, snapshot: Snapshot, request: Any, header: Any) -> dict[str, Any]:
        """The fields of an Edit response.

        Args:
            snapshot: of now, which the first change is made to.

        Raises:
            QueryError: no such action or instance, a transform that is not rigid, or a map that tells none apart.
        """
        if not request.action < len(ACTIONS):
            raise QueryError(f"action is {request.action}; allowed: 0 to {len(ACTIONS) - 1}, as Edit.srv has them")
        action, instance = ACTIONS[request.action], int(request.instance)
        with self._lock:
            if action == "reset":
                self._scene = None
                return {}
            scene = self._scene or EditedScene(self._book.of(snapshot))
            if action == "delete":
                scene = scene.delete(instance)
            elif action == "extract":
                scene = scene.extract(instance)
            elif action == "move":
                scene = scene.move(instance, matrix_of(request.transform))
            else:
                scene, instance = scene.duplicate(instance, matrix_of(request.transform))
            self._scene = scene
        cloud, _, ids = scene.cloud()
        return {
            "instance": instance,
            "cloud": to_cloud(cloud.points, header, rgb=cloud.rgb, fields={"instance": np.maximum(ids, 0)}),
        }

    def forget(self) -> None:
        """The map is another one."""
        with self._lock:
            self._scene = None

    @property
    def snapshot(self) -> Snapshot:
        """The map as it was at the first change.

        Raises:
            QueryError: nothing was changed.
        """
        return self._changed.snapshot

    @property
    def _changed(self) -> EditedScene:
        with self._lock:
            if self._scene is None:
                raise QueryError("the scene was not changed; call ~/edit first")
            return self._scene

    def view(self, camera: Camera, T_world_camera: np.ndarray, far_m: float, header: Any) -> dict[str, Any]:
        """Images `image`, `depth` and `instances` of the scene, as in a Render response."""
        seen = self._changed.view(camera, T_world_camera, far_m=far_m)
        return {
            "image": encode_colour(seen.rgb, header),
            "depth": encode_depth(seen.depth_m, header),
            "instances": encode_labels(np.maximum(seen.ids, 0), header),
        }
