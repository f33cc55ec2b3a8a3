"""FrameAssembler: from the messages of cameras, poses and labels to frames. No threads, no clock, nothing waits.

What comes in is only queued; `poll` decides, and decodes nothing but images that have their partner and their pose.
Every colour image that came in ends as a frame, or counted with a reason, or still waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..config import FrameConfig
from ..errors import FrameRejected, Reason
from ..frame import Frame, FrameGate, Segments, resized
from ..geometry import Camera
from .arrivals import Arrivals, AssemblyHealth
from .camera_inputs import CameraInputs, Pair
from .images import decode_colour, decode_depth, decode_labels
from .poses import PoseBuffer, TransformMissing, parts_of, seconds, stamp_of
from .stream import label_names
from .undistort import Undistorter

Lookup = Callable[[str, str, float], np.ndarray]
"""(target, source, stamp_s) -> T_target_source; raises TransformMissing."""

_JUMP_BACK_NS = 1_000_000_000
"""A stamp this much older than the newest of its stream: time has jumped back, a bag loops."""


@dataclass(frozen=True)
class AssemblyConfig:
    """How messages become frames.

    Attributes:
        cameras: namespaces; '' is called "camera" in frames.
        approx_sync, sync_slop_s, sync_queue_size: how colour and depth are brought together.
        width: frames are reduced to it after validation; 0 = as they come.
        labels, masks: whether to wait for label images and instance masks, and labels_timeout_s: for how long.
        masks_named: leave out masks that no LabelInfo names.
        pose_source: tf, or poses handed to `odometry` or `pose`; pose_frame: what PoseStamped, or Odometry without a
            child_frame_id, is the pose of ('' = the camera's optical frame).
        pose_timeout_s: how long a frame waits for pose and CameraInfo. max_gap_s: see PoseBuffer.
        pending_frames: pairs that may wait, over all cameras.
    """

    cameras: tuple[str, ...] = ("",)
    global_frame: str = "map"
    approx_sync: bool = True
    sync_slop_s: float = 0.02
    sync_queue_size: int = 10
    width: int = 0
    labels: bool = False
    masks: bool = False
    masks_named: bool = True
    labels_timeout_s: float = 0.5
    pose_source: Literal["tf", "odometry", "pose"] = "tf"
    pose_frame: str = ""
    pose_timeout_s: float = 1.0
    max_gap_s: float = 0.25
    pending_frames: int = 30


class FrameAssembler:
    """Frames from messages. Not thread-safe: one thread hands in messages and polls.

    Args:
        lookup: where transforms are asked; it must not wait.
        on_time_jump: called when stamps show that time jumped back, after everything here was dropped: for clearing
            the transforms.

    Attributes:
        gate: validates frames; its `rejected` counts by reason every colour image that did not become a frame.
        received: messages by stream of all cameras. frames: how many went out.
        unused: other messages that went to waste, by kind.
    """

    def __init__(
        self,
        config: AssemblyConfig,
        lookup: Lookup,
        frame_config: FrameConfig | None = None,
        on_time_jump: Callable[[], None] = lambda: None,
    ):
        self.config = config
        self.gate = FrameGate(frame_config)
        self.received: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.frames = 0
        self.time_jumps = 0
        self.last_pose_error = ""
        self._lookup, self._on_time_jump = lookup, on_time_jump
        slop_s = config.sync_slop_s if config.approx_sync else 0.0
        companions = ["labels"] * config.labels + ["masks"] * config.masks
        queue_size = config.sync_queue_size
        self._cameras = {name: CameraInputs(name, companions, slop_s, queue_size) for name in config.cameras}
        if not config.masks_named:
            for camera in self._cameras.values():
                camera.companions["masks"].names = {}
        self._slop_ns = round(slop_s * 1e9)
        self._poses = PoseBuffer(max_gap_s=config.max_gap_s)
        self._pose_parent, self._pose_child = config.global_frame, config.pose_frame
        self._pose_arrivals = Arrivals()

    @property
    def counters(self) -> Counter[str]:
        """Colour images that did not become frames, by reason."""
        return self.gate.rejected

    @property
    def waiting(self) -> int:
        """Colour images that wait for depth, pose, camera info or labels."""
        return sum(camera.sync.waiting("colour") + len(camera.pending) for camera in self._cameras.values())

    @property
    def label_names(self) -> Mapping[str, Mapping[int, str]]:
        """Names of label ids by camera namespace, as far as a LabelInfo came."""
        return {space: camera.companions["labels"].names or {} for space, camera in self._cameras.items()}

    # What comes in: only queued.

    def colour(self, camera: str, message: Any) -> None:
        """Take an Image or CompressedImage."""
        self._image(camera, "colour", message)

    def depth(self, camera: str, message: Any) -> None:
        """Take an Image or compressedDepth CompressedImage, registered to the colour image."""
        self._image(camera, "depth", message)

    def info(self, camera: str, message: Any) -> None:
        """Take the CameraInfo of the colour image."""
        self._arrived(camera, "info").info = message

    def labels(self, camera: str, message: Any) -> None:
        """Take a label image for `Frame.semantic`."""
        self._arrived(camera, "labels").companions["labels"].images.append((stamp_of(message.header.stamp), message))

    def masks(self, camera: str, message: Any) -> None:
        """Take instance masks for `Frame.segments`."""
        self._arrived(camera, "masks").companions["masks"].images.append((stamp_of(message.header.stamp), message))

    def label_info(self, camera: str, message: Any) -> None:
        """Take the LabelInfo that names label ids."""
        self._cameras[camera].companions["labels"].names = label_names(message)

    def masks_info(self, camera: str, message: Any) -> None:
        """Take the LabelInfo that names mask ids; with `masks_named` those that nobody named are left out."""
        self._cameras[camera].companions["masks"].names = label_names(message)

    def odometry(self, message: Any) -> None:
        """Take a nav_msgs/Odometry: the pose of its child_frame_id."""
        self._add_pose(message.header, message.pose.pose, message.child_frame_id or self.config.pose_frame)

    def pose(self, message: Any) -> None:
        """Take a geometry_msgs/PoseStamped: the pose of `pose_frame`."""
        self._add_pose(message.header, message.pose, self.config.pose_frame)

    def _arrived(self, namespace: str, stream: str) -> CameraInputs:
        camera = self._cameras[namespace]
        self.received[stream] += 1
        camera.arrivals.setdefault(stream, Arrivals()).count += 1
        return camera

    def _image(self, namespace: str, stream: str, message: Any) -> None:
        camera = self._arrived(namespace, stream)
        stamp_ns = stamp_of(message.header.stamp)
        newest_ns = camera.sync.newest_ns(stream)
        if newest_ns is not None and stamp_ns < newest_ns - _JUMP_BACK_NS:
            self.time_jumped()
            self._on_time_jump()
        camera.frame_ids[stream] = message.header.frame_id
        for colour, depth in camera.sync.put(stream, stamp_ns, message):
            camera.pending.append(Pair(colour, depth))
        self._count_given_up(camera)
        while sum(len(c.pending) for c in self._cameras.values()) > self.config.pending_frames:
            waiting = [c for c in self._cameras.values() if c.pending]
            min(waiting, key=lambda c: stamp_of(c.pending[0].depth.header.stamp)).pending.popleft()
            why = self.last_pose_error or "CameraInfo or labels are late, or poll is called too rarely"
            self._reject(Reason.PENDING_FULL, f"more than {self.config.pending_frames} frames wait: {why}")

    def _add_pose(self, header: Any, pose: Any, child: str) -> None:
        self._pose_arrivals.count += 1
        try:
            t, q = parts_of(pose.position, pose.orientation)
        except FrameRejected as error:
            self.unused[f"{self.config.pose_source}_{error.reason.value}"] += 1
            self.last_pose_error = str(error)
            return
        if not self._poses.add(stamp_of(header.stamp), t, q):
            self.unused[f"{self.config.pose_source}_old"] += 1
        self._pose_parent, self._pose_child = header.frame_id or self.config.global_frame, child

    # What goes out.

    def poll(self, now_s: float) -> list[Frame]:
        """The frames that are ready, in the order of stamps.

        Args:
            now_s: any clock that runs on while messages wait; timeouts are counted on it.
        """
        self._note(now_s)
        ready = []
        for camera in self._cameras.values():
            for pair in camera.pending:
                pair.since_s = now_s if pair.since_s is None else pair.since_s
            while camera.pending:
                pair = camera.pending[0]
                assert pair.since_s is not None
                try:
                    frame = self._frame(camera, pair, now_s - pair.since_s)
                except FrameRejected as error:
                    self.gate.count(error)
                    frame = None
                except _Wait:
                    break
                camera.pending.popleft()
                if frame is not None:
                    camera.frames += 1
                    ready.append(frame)
        self.frames += len(ready)
        return sorted(ready, key=lambda frame: frame.stamp_s)

    def finish(self, now_s: float) -> list[Frame]:
        """The last frames, when nothing more will come; what cannot become one any more is counted."""
        for camera in self._cameras.values():
            camera.pending.extend(Pair(colour, depth) for colour, depth in camera.sync.flush())
            self._count_given_up(camera)
        patience_s = 1.0 + self.config.pose_timeout_s + self.config.labels_timeout_s
        return self.poll(now_s) + self.poll(now_s + patience_s)

    def time_jumped(self) -> None:
        """Drop (and count) everything that waits, forget poses and the order of stamps: time jumped back."""
        self.time_jumps += 1
        for camera in self._cameras.values():
            for _ in range(camera.sync.waiting("colour") + len(camera.pending)):
                self._reject(Reason.TIME_JUMP, "it waited when time jumped back")
            camera.sync.clear()
            camera.given_up = camera.sync.dropped["colour"]
            camera.pending.clear()
            for companions in camera.companions.values():
                companions.images.clear()
        self._poses.clear()
        self.gate.reset()

    def _frame(self, camera: CameraInputs, pair: Pair, waited_s: float) -> Frame | None:
        """The frame of a pair, or None where the gate refused it. Raises FrameRejected or _Wait."""
        stamp_ns = stamp_of(pair.depth.header.stamp)
        late = waited_s >= self.config.pose_timeout_s
        if camera.info is None:
            if not late:
                raise _Wait
            raise FrameRejected(Reason.INFO_MISSING, f"camera {camera.name!r} has sent no CameraInfo; check its topic")
        undistorter = camera.undistorter()
        try:
            T_world_camera = self._pose_at(pair.depth.header.frame_id, stamp_ns)
        except TransformMissing as error:
            self.last_pose_error = error.message
            if late or error.hopeless:
                raise
            raise _Wait from None
        self.last_pose_error = ""
        labels, masks = self._companions(camera, pair, waited_s)
        rgb = undistorter.colour(decode_colour(pair.colour))
        depth = undistorter.values(decode_depth(pair.depth))
        frame = self.gate.admit(
            stamp_s=stamp_ns * 1e-9,
            camera=_fitted(undistorter.camera, rgb.shape[1], rgb.shape[0]),
            T_world_camera=T_world_camera,
            rgb=rgb,
            depth=depth,
            semantic=self._ids("labels", labels, undistorter),
            segments=self._segments(camera, masks, undistorter),
            camera_name=camera.name,
        )
        width = self.config.width
        if frame is None or not 0 < width < frame.camera.width:
            return frame
        return resized(frame, width, round(frame.camera.height * width / frame.camera.width))

    def _pose_at(self, optical: str, stamp_ns: int) -> np.ndarray:
        stamp_s, world = seconds(stamp_ns), self.config.global_frame
        if self.config.pose_source == "tf":
            return self._lookup(world, optical, stamp_s)
        T = self._poses.at(stamp_ns)
        if self._pose_parent != world:
            T = self._lookup(world, self._pose_parent, stamp_s) @ T
        if self._pose_child not in ("", optical):
            T = T @ self._lookup(self._pose_child, optical, stamp_s)
        return T

    def _companions(self, camera: CameraInputs, pair: Pair, waited_s: float) -> tuple[Any | None, Any | None]:
        """Label image and masks of a pair. Raises _Wait while they may still come."""
        stamp_ns, found = stamp_of(pair.colour.header.stamp), dict[str, Any]()
        for kind in camera.expected:
            known = camera.companions[kind]
            found[kind], may_come = known.find(stamp_ns, self._slop_ns)
            unnamed = kind == "masks" and found[kind] is not None and known.names is None
            if (may_come or unnamed) and waited_s < self.config.labels_timeout_s:
                raise _Wait
        for kind, message in found.items():
            self.unused[f"without_{kind}"] += message is None
        return found.get("labels"), found.get("masks")

    def _ids(self, kind: str, message: Any | None, undistorter: Undistorter) -> np.ndarray | None:
        """Ids without distortion; an unusable label image costs the labels, not the frame."""
        if message is None:
            return None
        try:
            return undistorter.values(decode_labels(message))
        except FrameRejected as error:
            self.unused[f"{kind}_{error.reason.value}"] += 1
            self.gate.last_error = str(error)
            return None

    def _segments(self, camera: CameraInputs, message: Any | None, undistorter: Undistorter) -> Segments | None:
        ids, names = self._ids("masks", message, undistorter), camera.companions["masks"].names
        if ids is None:
            return None
        if names is None:
            self.unused["masks_unnamed"] += 1
            return None
        present = set(np.unique(ids).tolist()) - {0}
        named = {i: names[i] for i in sorted(present & set(names))}
        return Segments(np.where(np.isin(ids, list(named)), ids, 0) if self.config.masks_named else ids, named)

    def _reject(self, reason: Reason, message: str) -> None:
        self.gate.count(FrameRejected(reason, message))

    def _count_given_up(self, camera: CameraInputs) -> None:
        for _ in range(camera.sync.dropped["colour"] - camera.given_up):
            miss_ns = camera.sync.last_miss_ns
            nearest = "there was none" if miss_ns is None else f"the nearest was {miss_ns * 1e-6:.1f} ms away"
            allowed = f"allowed are {self._slop_ns * 1e-6:.1f} ms (sync_slop_s)" if self._slop_ns else "sync is exact"
            self._reject(
                Reason.UNSYNCHRONISED, f"a colour image of {camera.name!r} has no depth image; {nearest}, {allowed}"
            )
        camera.given_up = camera.sync.dropped["colour"]

    # How it goes.

    def _note(self, now_s: float) -> None:
        self._pose_arrivals.note(now_s)
        for camera in self._cameras.values():
            for arrivals in camera.arrivals.values():
                arrivals.note(now_s)

    def health(self, now_s: float) -> AssemblyHealth:
        """What comes, what is missing, what looks wrong; `now_s` on the clock of `poll`."""
        return AssemblyHealth(
            cameras={namespace: camera.health(now_s) for namespace, camera in self._cameras.items()},
            poses=None if self.config.pose_source == "tf" else self._pose_arrivals.health(
                now_s, newest_stamp_s=None if self._poses.newest_ns is None else self._poses.newest_ns * 1e-9
            ),
            pending=sum(len(camera.pending) for camera in self._cameras.values()),
            rejected=dict(self.gate.rejected),
            unused=dict(self.unused),
            last_error=self.gate.last_error,
            last_pose_error=self.last_pose_error,
            time_jumps=self.time_jumps,
        )  # fmt: skip


class _Wait(Exception):
    """Not yet."""


def _fitted(camera: Camera, width: int, height: int) -> Camera:
    """The camera for images of another size and the same aspect ratio (within 1 %); otherwise as it is."""
    if abs(width * camera.height - height * camera.width) <= 0.01 * width * camera.height:
        return camera.resized(width, height)
    return camera
