"""The node's services: request message in, response message out. What is asked wrongly is answered, never raised."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
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
from ..messages.clouds import cloud_points
from ..messages.images import camera_of, encode_colour, encode_depth
from ..messages.poses import matrix_of, seconds, stamp_of
from ..messages.types import types
from ..query.click import prompts_like, surface_point
from ..query.labels import label_points
from ..query.view import render_view
from ..wire.bus import Bus, Closeable
from .answers import answer_message, map_header
from .config import NodeConfig
from .exports import write_cloud, write_field_mesh, write_labelled_cloud
from .labelling import label_floor
from .maps import MapFolder
from .palette import FeaturePainter
from .questions import Question, ask_like, ask_words, bounded, matching, thresholds
from .world import World

log = logging.getLogger(__name__)

MAX_VALUES = 25_000_000
"""Numbers in a reply (points x prompts, or pixels x prompts): 100 MB."""
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
    "set_vocabulary": "semfield_ros/srv/SetVocabulary",
    "render": "semfield_ros/srv/Render",
    "save_map": "semfield_ros/srv/SaveMap",
    "load_map": "semfield_ros/srv/LoadMap",
    "export": "semfield_ros/srv/Export",
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
    """

    def __init__(
        self,
        engine: Engine,
        config: Callable[[], NodeConfig],
        maps: MapFolder,
        world: World,
        show: Callable[[Answer, Question], None] | None = None,
    ):
        self.engine, self.config, self.maps, self.world = engine, config, maps, world
        self._show = show
        self._painter = FeaturePainter()
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
        question = ask_words(prompts, options, self.engine.config)
        return question, question.ask(self.engine)

    def reply(self, question: Question, answer: Answer, options: Any) -> Any:
        """The Answer message of what `ask` returned.

        Raises:
            QueryError: the cloud would be too large.
        """
        config = self.engine.config
        if options.with_cloud:
            _reply_of(len(answer.cloud), len(answer.prompts), "points")
        return answer_message(
            answer, question.scores(answer, config), with_cloud=options.with_cloud,
            with_object_clouds=options.with_object_clouds, config=config,
            keyframes=self._keyframes() if options.with_object_clouds else (),
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
        snapshot, config = self._map(), self.engine.config
        frame_id = request.points.header.frame_id
        if frame_id not in ("", self.config().global_frame):
            raise QueryError(
                f"the points are in frame {frame_id!r}; allowed: global_frame, {self.config().global_frame!r}; "
                "transform them first"
            )
        points = cloud_points(request.points)
        prompts = list(request.prompts) or list(self.world.vocabulary)
        if not prompts:
            raise QueryError("there are no prompts and no vocabulary is set; give prompts or call ~/set_vocabulary")
        bounded(prompts, request.options.negatives, len(points))
        _reply_of(len(points), len(prompts), "points")
        how = matching(request.options)
        score = how["score"] or config.query.score
        least = thresholds(request.options, score).get("low", label_floor(self.engine, score))
        encoded = self.engine.prompts.encode(prompts, how["negatives"])
        found = label_points(
            snapshot, encoded, points, source=how["source"] or config.query.source,
            temperature=config.query.temperature, score=score, least=least,
        )  # fmt: skip
        return {
            "prompts": [p.label for p in encoded.prompts],
            "labels": found.label,
            "scores": np.where(found.seen[:, None], found.scores, np.float32(0)).astype(np.float32).reshape(-1),
            "confidence": found.confidence,
            "seen": found.seen,
        }

    @_service
    def query_click(self, request: Any) -> dict[str, Any]:
        """A pixel or a point -> what looks the same."""
        snapshot, config = self._map(), self.engine.config
        if request.mode == request.MODE_PIXEL:
            frame = self._frame(request.camera_name)
            point = surface_point(frame, *_pixel(request, frame.camera))
        elif request.mode == request.MODE_POINT:
            point = np.array([request.point.x, request.point.y, request.point.z])
        else:
            raise QueryError(f"mode is {request.mode}; allowed: MODE_PIXEL, MODE_POINT of QueryClick.srv")
        question = ask_like(snapshot, prompts_like(snapshot, point), request.options, config)
        answer = question.ask(self.engine)
        if self._show is not None:
            self._show(answer, question)
        x, y, z = map(float, point)
        return {
            "point": types().new("geometry_msgs/msg/Point", x=x, y=y, z=z),
            "answer": self.reply(question, answer, request.options),
        }

    @_service
    def set_vocabulary(self, request: Any) -> dict[str, Any]:
        """Classes of the labelled cloud and of ~/query_points."""
        names = list(request.names)
        if names:
            bounded(names, (), 0)
            labels = [p.label for p in self.engine.prompts.encode(names).prompts]
            twice = sorted({label for label in labels if labels.count(label) > 1})
            if twice:
                raise QueryError(f"class {twice[0]!r} is there twice; write synonyms into one name: 'mug; coffee cup'")
        self.world.vocabulary = tuple(names)
        return {}

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
        how, texts = matching(request.options), None
        if len(request.prompts):
            bounded(request.prompts, request.options.negatives, pixels)
            _reply_of(pixels, len(request.prompts), "pixels")
            texts = self.engine.prompts.encode(list(request.prompts), how["negatives"])
        view = render_view(
            snapshot, camera, T_world_camera, texts=texts, features=request.with_features,
            source=how["source"] or config.query.source, score=how["score"] or config.query.score,
            temperature=config.query.temperature, far_m=config.frame.max_depth_m,
        )  # fmt: skip
        header = map_header(snapshot.stamp_s, self.config().global_frame)
        fields = {
            "header": header,
            "image": encode_colour(view.rgb, header),
            "depth": encode_depth(view.depth_m, header),
            "accumulation": encode_depth(view.accumulation, header),
        }
        if view.features is not None:
            fields["features"] = encode_colour(self._painter.paint(snapshot, view.features, view.depth_m), header)
        if view.relevancy is not None:
            fields["relevancy"] = [encode_depth(view.relevancy[..., q], header) for q in range(view.relevancy.shape[2])]
        return fields

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
        snapshot, how = self._map(), {"overwrite": bool(request.overwrite)}
        kinds = {
            request.KIND_CLOUD: lambda path: write_cloud(path, snapshot, self.engine, **how),
            request.KIND_LABELLED_CLOUD: lambda path: write_labelled_cloud(
                path, snapshot, self.engine, self.world.vocabulary, **how
            ),
            request.KIND_MESH: lambda path: write_field_mesh(
                path, snapshot, self.engine, float(request.resolution) or snapshot.voxel_size_m, **how
            ),
        }
        if request.kind not in kinds:
            raise QueryError(f"kind is {request.kind}; allowed: {', '.join(map(str, kinds))}, as Export.srv has them")
        with self._files:  # or two requests could both find a name free
            path = self.maps.new(request.name, ".ply", overwrite=request.overwrite)
            points = kinds[request.kind](path)
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
        self.world.forget_frames()
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


def _reply_of(rows: int, prompts: int, what: str) -> None:
    """Refuse a reply that would be too large to send."""
    if rows * prompts > MAX_VALUES:
        raise QueryError(
            f"{rows} {what} x {prompts} prompts are {rows * prompts} numbers; allowed: {MAX_VALUES}; ask in parts"
        )
