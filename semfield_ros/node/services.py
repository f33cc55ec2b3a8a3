"""The node's services: request message in, response message out. What is asked wrongly is answered, never raised."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import checkpoint
from ..answer import Answer
from ..atlas_files import bytes_of
from ..engine import Engine
from ..errors import QueryError, SemfieldError
from ..field.snapshot import Snapshot
from ..frame import Frame
from ..geometry import Camera
from ..memory.keyframes import Keyframe
from ..messages.images import camera_of
from ..messages.poses import matrix_of, seconds, stamp_of
from ..messages.types import types
from ..objects import Object
from ..query.click import prompts_like, surface_point
from ..query.tasks import SUFFIX as TASK_SUFFIX
from ..query.tasks import load_task
from ..wire.bus import Bus, Closeable
from .answers import answer_message, map_header, ranked
from .config import NodeConfig
from .exports import writers
from .maps import MapFolder
from .points_service import answer_points
from .questions import Question, ask_like, ask_tasks, ask_words, bounded, matching, reply_of
from .scene import Scene
from .things import about
from .views import Views
from .world import World, class_names

log = logging.getLogger(__name__)

MAX_RENDERED_PIXELS = {"cpu": 640 * 480, "cuda": 1920 * 1200}
"""By device: some seconds of work."""
MAX_CORRECTIONS = 20_000
MAX_DISTANCE_M = 1e5
"""A camera farther from the origin is a mistake, and beyond the precision of the field."""
_MESSAGE_CHARACTERS = 1000
_SERVICES = {
    "query": "semfield_ros/srv/Query",
    "query_points": "semfield_ros/srv/QueryPoints",
    "query_click": "semfield_ros/srv/QueryClick",
    "label": "semfield_ros/srv/Label",
    "set_vocabulary": "semfield_ros/srv/SetVocabulary",
    "render": "semfield_ros/srv/Render",
    "save_map": "semfield_ros/srv/SaveMap",
    "load_map": "semfield_ros/srv/LoadMap",
    "export": "semfield_ros/srv/Export",
    "edit": "semfield_ros/srv/Edit",
    "clear_region": "semfield_ros/srv/ClearRegion",
    "correct_poses": "semfield_ros/srv/CorrectPoses",
    "reset": "std_srvs/srv/Trigger",
    "pause": "std_srvs/srv/SetBool",
}
"""Type by name; the method of the same name answers."""

Handler = Callable[["Services", Any], dict[str, Any]]


def _service(method: Handler) -> Callable[[Services, Any], Any]:
    """A method that returns a response's fields, or raises, as one that always returns the response."""
    response = f"{_SERVICES[method.__name__]}_Response"

    @functools.wraps(method)
    def handle(self: Services, request: Any) -> Any:
        try:
            fields = {"success": True, **method(self, request)}
        except (SemfieldError, OSError) as error:
            fields = {"success": False, "message": _words(error)}
        except Exception as error:  # a caller through rmw_zenoh would wait for ever for the reply of an exception
            log.exception("~/%s failed", method.__name__)
            self.world.last_error = f"~/{method.__name__}: {type(error).__name__}: {_words(error)}"
            fields = {"success": False, "message": f"internal error, see the node's log: {_words(error)}"}
        known = types().fields(response)
        if "header" in known:
            fields.setdefault("header", self.header())
        if "answer" in known:
            fields.setdefault("answer", types().new("semfield_ros/msg/Answer", header=self.header()))
        return types().new(response, **fields)

    return handle


def _words(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= _MESSAGE_CHARACTERS else f"{text[:_MESSAGE_CHARACTERS]}..."


class Services:
    """Answers requests from several threads at a time.

    Args:
        config: the settings of now.
        show: called with the answer to ~/query and its question, to publish them; must not take long.
        frames: called with the objects of an answer and its header, to publish their tf frames.
    """

    def __init__(
        self,
        engine: Engine,
        config: Callable[[], NodeConfig],
        maps: MapFolder,
        world: World,
        show: Callable[[Answer, Question], None] | None = None,
        frames: Callable[[Sequence[Object], Any], None] | None = None,
    ):
        self.engine, self.config, self.maps, self.world = engine, config, maps, world
        self._show, self._frames = show, frames
        self._views = Views(world.instances)
        self._scene = Scene(world.instances)
        self._files = threading.Lock()
        self._served: list[Closeable] = []

    def serve_all(self, bus: Bus) -> None:
        """Offer every service as ~/NAME."""
        self._served += [bus.serve(kind, f"~/{name}", getattr(self, name)) for name, kind in _SERVICES.items()]

    def close(self) -> None:
        """Offer nothing any more. Safe to call twice."""
        while self._served:
            self._served.pop().close()

    def load(self, name: str) -> None:
        """Go on from a map of the map folder; the running map stays as it was on any error.

        Raises:
            SemfieldError: no such map, one that cannot be loaded, or one made in another frame.
        """
        path = self.maps.existing(name, checkpoint.SUFFIX)
        frame, ours = checkpoint.saved_config(path).global_frame, self.config().global_frame
        if frame != ours:
            raise QueryError(f"{path.name} was made in frame {frame!r}; set global_frame, now {ours!r}, to that")
        self.engine.load(path)
        self.world.instances.forget()
        self._scene.forget()

    def header(self) -> Any:
        """Stamp of the last fused frame (zero before the first, and when the engine has failed), global_frame."""
        try:
            stamp_s = self.engine.snapshot().stamp_s
        except SemfieldError:
            stamp_s = float("nan")
        return map_header(stamp_s, self.config().global_frame)

    # ---- questions --------------------------------------------------------------------------------------------

    def ask(self, prompts: list[str], options: Any) -> tuple[Question, Answer]:
        """The answer to prompts under a QueryOptions message, for ~/query and ~/locate.

        Raises:
            SemfieldError: it cannot be answered as asked.
        """
        bounded(prompts, options.negatives, len(self._map().cloud))
        question = self.question(prompts, options)
        return question, question.ask(self.engine)

    def question(self, prompts: list[str], options: Any) -> Question:
        """What prompts and the tasks of a QueryOptions message ask for.

        Raises:
            SemfieldError: it cannot be asked, or there is no such task.
        """
        question = ask_words(prompts, options, self.engine.config)
        if not len(options.tasks):
            return question
        key = self.engine.encoder.cache_key
        tasks = [load_task(self.maps.existing(name, TASK_SUFFIX), key) for name in options.tasks]
        return ask_tasks(question, self.engine.prompts, tasks)

    def reply(self, question: Question, answer: Answer, options: Any) -> Any:
        """The Answer message of what `ask` returned; publishes its frames if asked to.

        Raises:
            QueryError: the cloud would be too large.
        """
        config = self.engine.config
        if options.with_cloud:
            reply_of(len(answer.cloud), len(answer.prompts), "points")
        things = ranked(answer)
        self.world.planned(things)
        if options.publish_tf and self._frames is not None:
            self._frames(things, map_header(answer.stamp_s, answer.global_frame))
        return answer_message(
            answer, question.scores(answer, config), with_cloud=options.with_cloud,
            with_object_clouds=options.with_object_clouds, with_grasps=options.with_grasps, config=config,
            keyframes=self._keyframes() if options.with_object_clouds else (),
            known=about(
                self.engine.snapshot(), things, self.world.instances, config.heads.semantic_classes,
                self._class_names(),
            ),
        )  # fmt: skip

    @_service
    def query(self, request: Any) -> dict[str, Any]:
        """Prompts -> objects, scores, grasps."""
        question, answer = self.ask(list(request.prompts), request.options)
        if self._show is not None:
            self._show(answer, question)
        return {"answer": self.reply(question, answer, request.options)}

    @_service
    def query_points(self, request: Any) -> dict[str, Any]:
        """What is at given points."""
        snapshot = self._map()
        frame_id = request.points.header.frame_id
        if frame_id not in ("", self.config().global_frame):
            raise QueryError(
                f"the points are in frame {frame_id!r}; allowed: global_frame, {self.config().global_frame!r}; "
                "transform them first"
            )
        return answer_points(
            snapshot, request, self.engine, self.world.instances, self.world.vocabulary, self._class_names()
        )

    @_service
    def query_click(self, request: Any) -> dict[str, Any]:
        """A pixel or a point -> what looks the same."""
        snapshot, config = self._map(), self.engine.config
        point = self._place(request)
        question = ask_like(snapshot, prompts_like(snapshot, point), request.options, config)
        answer = question.ask(self.engine)
        if self._show is not None:
            self._show(answer, question)
        return {"point": _point(point), "answer": self.reply(question, answer, request.options)}

    @_service
    def label(self, request: Any) -> dict[str, Any]:
        """A class for one place, which the map learns from."""
        self._map()
        number = int(request.class_id)
        if not number:
            numbers = {name: k for k, name in self._class_names().items()}
            name = str(request.class_name)
            if name not in numbers:
                known = ", ".join(sorted(numbers)[:20]) or "none has a name; give class_id, or set heads.class_names"
                raise QueryError(f"class_name is {name!r}, class_id 0; known classes: {known}")
            number = numbers[name]
        point = self._place(request)
        if not self.engine.label(point[None], [number])[0]:
            raise QueryError(f"no remembered view has surface at {np.round(point, 3).tolist()}; label what was mapped")
        return {"point": _point(point)}

    @_service
    def set_vocabulary(self, request: Any) -> dict[str, Any]:
        """Classes of the labelled cloud and of ~/query_points."""
        names = list(request.names)
        if names:
            bounded(names, (), 0)
            classes = self.engine.prompts.encode(names).prompts
            part = next((prompt.label for prompt in classes if prompt.part), None)
            if part is not None:
                raise QueryError(f"class {part!r} is a part; classes are whole things: write 'box lid'")
            labels = [prompt.label for prompt in classes]
            twice = sorted({label for label in labels if labels.count(label) > 1})
            if twice:
                raise QueryError(f"class {twice[0]!r} is there twice; write synonyms into one name: 'mug; coffee cup'")
        self.world.vocabulary = tuple(names)
        return {}

    def _place(self, request: Any) -> np.ndarray:
        """The point [3] on the surface that a pixel or a point stands for."""
        if request.mode == request.MODE_PIXEL:
            frame = self._frame(request.camera_name)
            return surface_point(frame, *_pixel(request, frame.camera))
        if request.mode == request.MODE_POINT:
            return np.array([request.point.x, request.point.y, request.point.z])
        raise QueryError(f"mode is {request.mode}; allowed: MODE_PIXEL, MODE_POINT, as the .srv has them")

    def _class_names(self) -> dict[int, str]:
        return class_names(self.config(), self.world)

    # ---- views ------------------------------------------------------------------------------------------------

    @_service
    def render(self, request: Any) -> dict[str, Any]:
        """The field from any place."""
        snapshot, config = self._map(), self.engine.config
        info = request.camera_info
        bare = not (info.width or info.height or np.any(info.k))
        camera = self._frame().camera if bare else camera_of(info)
        pixels, most = camera.width * camera.height, MAX_RENDERED_PIXELS[self.engine.device.split(":")[0]]
        if pixels > most:
            raise QueryError(
                f"the image would have {camera.width}x{camera.height} pixels; allowed: {most} in all; scale the "
                "camera_info down"
            )
        T_world_camera = self._frame().T_world_camera if request.use_last_pose else matrix_of(request.pose)
        if np.abs(T_world_camera[:3, 3]).max() > MAX_DISTANCE_M:
            at = T_world_camera[:3, 3].tolist()
            raise QueryError(f"the camera is at {at} m; allowed: within {MAX_DISTANCE_M:g} m of the origin")
        header = map_header(snapshot.stamp_s, self.config().global_frame)
        if request.edited:
            return {"header": header, **self._scene.view(camera, T_world_camera, config.frame.max_depth_m, header)}
        how, texts = matching(request.options), None
        if len(request.prompts):
            bounded(request.prompts, request.options.negatives, pixels)
            reply_of(pixels, len(request.prompts), "pixels")
            texts = self.engine.prompts.encode(list(request.prompts), how["negatives"])
        return self._views.fields(snapshot, camera, T_world_camera, request, config, how, texts, header)

    @_service
    def edit(self, request: Any) -> dict[str, Any]:
        """A scene beside the map, with instances taken away, moved or doubled."""
        snapshot = self._map()
        return self._scene.edit(snapshot, request, map_header(snapshot.stamp_s, self.config().global_frame))

    # ---- maps -------------------------------------------------------------------------------------------------

    @_service
    def save_map(self, request: Any) -> dict[str, Any]:
        """The map as a file from which training can go on."""
        self._map()
        path = self.maps.new(request.name, checkpoint.SUFFIX, overwrite=request.overwrite)
        path = self.engine.save(path, overwrite=request.overwrite)
        stamp_s = checkpoint.describe(path)["stamp_s"]
        header = map_header(float("nan") if stamp_s is None else stamp_s, self.config().global_frame)
        return {"header": header, "size": bytes_of(path)}

    @_service
    def load_map(self, request: Any) -> dict[str, Any]:
        """A saved map in place of the running one."""
        self.load(request.name)
        return {"keyframes": self.engine.status().mapping.keyframes}

    @_service
    def export(self, request: Any) -> dict[str, Any]:
        """The map as a file for other programs."""
        snapshot = self._map()
        kinds = writers(
            snapshot, self.engine, self.world.vocabulary, float(request.resolution) or snapshot.voxel_size_m,
            overwrite=bool(request.overwrite),
        )  # fmt: skip
        if request.kind >= len(kinds):
            known = ", ".join(map(str, range(len(kinds))))
            raise QueryError(f"kind is {request.kind}; allowed: {known}, as Export.srv has them")
        suffix, write = kinds[request.kind]
        with self._files:  # or two requests could both find a name free
            path = self.maps.new(request.name, suffix, overwrite=request.overwrite)
            points = write(path)
        return {"header": map_header(snapshot.stamp_s, self.config().global_frame), "file": path.name, "points": points}

    # ---- the map itself ---------------------------------------------------------------------------------------

    @_service
    def clear_region(self, request: Any) -> dict[str, Any]:
        """Forget what is inside a box."""
        self._map()
        low, high = ([p.x, p.y, p.z] for p in (request.region_min, request.region_max))
        cleared = self.engine.clear_region(low, high)
        return {"voxels": cleared.voxels, "rays": cleared.rays}

    @_service
    def correct_poses(self, request: Any) -> dict[str, Any]:
        """Move keyframes after a loop closure."""
        self._map()
        stamps, poses = request.stamps, request.poses
        if len(stamps) != len(poses) or not 1 <= len(stamps) <= MAX_CORRECTIONS:
            raise QueryError(
                f"{len(stamps)} stamps and {len(poses)} poses; allowed: as many of one as of the other, 1 to "
                f"{MAX_CORRECTIONS}; send more in parts"
            )
        moved = self.engine.correct_poses(
            request.camera_name, np.array([seconds(stamp_of(stamp)) for stamp in stamps]),
            np.stack([matrix_of(pose) for pose in poses]), float(request.tolerance),
        )  # fmt: skip
        return {
            "corrected": moved.corrected,
            "unknown": moved.unknown,
            "largest_translation": moved.largest_translation_m,
            "largest_rotation": moved.largest_rotation_rad,
        }

    @_service
    def reset(self, request: Any) -> dict[str, Any]:
        """Forget the map."""
        self.engine.reset()
        self.world.forget_map()
        self._scene.forget()
        return {"message": "the map is empty"}

    @_service
    def pause(self, request: Any) -> dict[str, Any]:
        """Stop or go on fusing frames and training; questions are answered meanwhile."""
        self.engine.check()
        self.world.paused = bool(request.data)
        self.engine.pause(bool(request.data))
        return {"message": "paused" if request.data else "running"}

    # ---- what there is ----------------------------------------------------------------------------------------

    def _map(self) -> Snapshot:
        """The last snapshot.

        Raises:
            QueryError: nothing is in it.
        """
        snapshot = self.engine.snapshot()
        if not len(snapshot.cloud):
            raise QueryError("the map is empty: no frame has been fused yet; ~/status and /diagnostics say why")
        return snapshot

    def _frame(self, camera_name: str = "") -> Frame:
        frame = self.world.last_frame(camera_name)
        if frame is None:
            whose = f"of camera {camera_name!r} " if camera_name else ""
            raise QueryError(f"no frame {whose}has come yet; check the camera's name and topics, or wait")
        return frame

    def _keyframes(self) -> list[Keyframe]:
        return self.engine.run(lambda m: m.remembered()).result()


def _pixel(request: Any, camera: Camera) -> tuple[int, int]:
    """The clicked pixel in the frame's own image: of the same place, as pixel centres have it."""
    width, height = request.image_width or camera.width, request.image_height or camera.height
    if request.u >= width or request.v >= height:
        raise QueryError(f"pixel ({request.u}, {request.v}) lies outside the image of {width}x{height}")
    return int((request.u + 0.5) * camera.width / width), int((request.v + 0.5) * camera.height / height)


def _point(at: np.ndarray) -> Any:
    x, y, z = map(float, at)
    return types().new("geometry_msgs/msg/Point", x=x, y=y, z=z)
